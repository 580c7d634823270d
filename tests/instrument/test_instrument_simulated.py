"""A simulated die behind converters: its readings are the circuit's, and nothing but readings comes out."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitsim.chip import Chip, fabricate
from circuitsim.chip.substrate import PHASES, AgeingSubstrate, StatefulSubstrate, Terminals
from circuitsim.compiler import compile_network
from circuitsim.data import load_digits
from circuitsim.devices import DeviceCard, merged_cards
from circuitsim.errors import InstrumentError
from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate, with_converters
from circuitsim.learning import EP, Adjoint, AsymEP, Cost, Dyadic, Phases, SubstratePhases, alignment
from circuitsim.learning.readout import ReadoutSpec
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import NetworkSpec, parse_network
from circuitsim.seeds import stream
from circuitsim.solver import SolverSettings, build_plan

NETWORK: dict[str, Any] = {
    "name": "small",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"u": {"size": 5, "gain": "200m"}},
    "layers": {
        "hidden": {
            "size": 4,
            "neuron": {"kind": "tanh", "gain": 4, "saturation": "300m"},
            "bias": {"voltage": "100m"},
            "leak": "50u",
        },
        "output": {"size": 3, "neuron": {"kind": "linear"}, "leak": "50u"},
    },
    "synapses": [
        {"from": "u", "to": "hidden"},
        {"from": "hidden", "to": "output"},
        {"from": "output", "to": "hidden", "name": "feedback"},
    ],
    "output": {"layer": "output"},
    "cost": {"kind": "squared_error", "conductance": "20u"},
}
RECIPROCAL: dict[str, Any] = {
    "name": "reciprocal",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"u": {"size": 5, "encoding": "signed_pair", "gain": "200m"}},
    "layers": {
        "hidden": {"size": 4, "neuron": {"kind": "linear"}},
        "output": {"size": 3, "neuron": {"kind": "linear"}},
    },
    "synapses": [
        {"from": "u", "to": "hidden", "kind": "resistive"},
        {"from": "hidden", "to": "output", "kind": "resistive"},
    ],
    "output": {"layer": "output"},
    "cost": {"kind": "squared_error", "conductance": "20u"},
}
GROUNDED = copy.deepcopy(NETWORK)
GROUNDED["synapses"][1]["virtual_ground"] = True
NETWORKS = {"feedback": NETWORK, "reciprocal": RECIPROCAL, "virtual ground": GROUNDED}


class Setup:
    """A circuit with its cost, a batch, and a die behind converters."""

    def __init__(
        self, document: dict[str, Any] = NETWORK, *, bits: int = 24, seed: int = 3, **sections: Any
    ) -> None:
        self.spec: NetworkSpec = parse_network(document)
        self.netlist: Netlist = compile_network(self.spec, seed=1)
        self.cost = Cost.of(self.spec)
        readout = sections.pop("readout", {})
        update = sections.pop("update", None)
        self.card = DeviceCard.model_validate({"name": "test", "source": "test", **sections})
        self.substrate = simulated_substrate(
            self.netlist,
            self.cost,
            self.card,
            seed=seed,
            bits=bits,
            readout=ReadoutSpec(**readout),
            update=update,
            settings=SolverSettings(check=False, relative_tolerance=1e-13, voltage_tolerance=1e-13),
        )
        self.terminals = Terminals.of(self.netlist)
        self.inputs = stream(seed, "test", "inputs").uniform(-1, 1, (6, 5))
        self.volts = self.inputs * self.terminals.gain
        self.targets = stream(seed, "test", "targets").uniform(-0.1, 0.1, (6, 3))

    @property
    def die(self) -> Chip:
        """The same die, seen from inside."""
        return fabricate(self.netlist, with_converters(self.card, self.netlist, bits=24), seed=3)

    def inside(self, chip: Chip) -> Phases:
        return Phases(
            plan=build_plan(self.netlist),
            values=chip.values,
            cost=self.cost,
            settings=SolverSettings(check=False, relative_tolerance=1e-13, voltage_tolerance=1e-13),
            correction=chip.correction,
            dual=chip.dual,
        )

    def outside(self, averaging: int = 1) -> SubstratePhases:
        return SubstratePhases(
            substrate=self.substrate, terminals=self.terminals, cost=self.cost, averaging=averaging
        )

    def nudge(self, beta: float) -> Any:
        return self.cost.nudge(self.targets, beta)


SPREAD: dict[str, Any] = {
    "crossbar": {"device_to_device": 0.05},
    "amplifier": {"gain": 0.05, "offset": "2m", "correction_gain": 0.05},
}


class TestReadings:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_are_the_circuits_own(self, name: str) -> None:
        """All phases of a die with spread, to a 24-bit step; changes to a step behind the amplifier."""
        setup = Setup(NETWORKS[name], **SPREAD)
        phases = setup.inside(setup.die)
        step = setup.substrate.capabilities.adc.step
        read = setup.terminals.read
        # What the DAC's codes stand for.
        inputs = setup.substrate.capabilities.dac.rounded(setup.volts) / setup.terminals.gain
        free = phases.free(inputs)
        found = setup.substrate.relax(setup.volts, "free")
        np.testing.assert_allclose(found, free.node_voltage[:, read], rtol=0, atol=step)
        for phase in ("nudged", "corrected", "dyadic"):
            change = getattr(phases, phase)(inputs, setup.targets, 0.3, free)
            expected = phases.nodes(change, inputs, free)[:, read]
            seen = setup.substrate.relax(setup.volts, phase, setup.nudge(0.3))
            assert np.abs(expected).max() > 1e4 * step
            np.testing.assert_allclose(seen, expected, rtol=0, atol=step, err_msg=phase)

    @pytest.mark.parametrize("name", ["feedback", "reciprocal"])
    def test_satisfy_kirchhoffs_current_law(self, name: str) -> None:
        """From readings, sources and programmed conductances alone, at every neuron of an ideal die."""
        setup = Setup(NETWORKS[name])
        readings = setup.substrate.relax(setup.volts, "free")
        limits = setup.substrate.capabilities
        v = setup.terminals.voltages(readings, limits.dac.rounded(setup.volts))
        leaving = np.zeros_like(v)
        scale = np.zeros_like(v)
        for crossbar in setup.netlist.crossbars:
            values = setup.netlist.values()
            for words, g in setup.netlist.device_conductances(crossbar, values):
                drop = v[:, crossbar.bit][:, None, :] - v[:, words][:, :, None]
                np.add.at(leaving, (slice(None), crossbar.bit), (g * drop).sum(axis=1))
                np.add.at(leaving, (slice(None), words), -(g * drop).sum(axis=2))
                np.add.at(scale, (slice(None), crossbar.bit), np.abs(g * drop).sum(axis=1))
        table = setup.netlist.resistor
        for pos, neg, g in zip(table.pos, table.neg, table.conductance, strict=True):
            leaving[:, pos] += g * (v[:, pos] - v[:, neg])
        nodes = np.concatenate(list(setup.netlist.groups.values()))
        # A 24-bit step through all conductances at a node.
        allowed = limits.adc.step * 30 * 100e-6
        assert np.abs(leaving[:, nodes]).max() < allowed < 1e-4 * scale[:, nodes].min(axis=0).max()

    def test_are_codes(self) -> None:
        """Of few bits, voltages lie on the converter's levels; nothing finer comes out."""
        setup = Setup(bits=6, **SPREAD)
        adc = setup.substrate.capabilities.adc
        found = setup.substrate.relax(setup.volts, "free")
        codes = (found - adc.low) / adc.step
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
        assert len(np.unique(np.rint(codes))) > 5
        back = setup.substrate.program({"u-hidden": setup.netlist.values().crossbars["u-hidden"]})
        steps = back["u-hidden"][0] / setup.substrate.capabilities.resolution
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)

    def test_noise_averages(self) -> None:
        """Read noise falls as 1/sqrt(n); 1,000 presentations of 60 readings tell it to 0.5 %."""
        noise = 1e-3
        setup = Setup(adc={"bits": 16, "range": [-1, 1], "noise": noise})
        spread = {}
        for count in (1, 4, 16):
            found = np.array([setup.substrate.relax(setup.volts, "free", None, count) for _ in range(300)])
            spread[count] = found.std(axis=0, ddof=1).mean()
        for count, sigma in spread.items():
            assert sigma == pytest.approx(noise / np.sqrt(count), rel=0.02)

    def test_amplifier_before_the_converter(self) -> None:
        """It makes steps of changes finer by its gain, and is never driven beyond the range."""
        coarse = {}
        for gain in (1, 64):
            setup = Setup(adc={"bits": 8, "range": [-1, 1]}, readout={"gain": gain})
            setup.substrate.relax(setup.volts, "free")
            seen = setup.substrate.relax(setup.volts, "corrected", setup.nudge(0.5))
            exact = Setup()
            exact.substrate.relax(exact.volts, "free")
            coarse[gain] = np.abs(
                seen - exact.substrate.relax(exact.volts, "corrected", exact.nudge(0.5))
            ).max()
        assert coarse[64] < coarse[1] / 8

    def test_digital_differences(self) -> None:
        """Codes of both phases are subtracted: the step stays that of the converter."""
        setup = Setup(adc={"bits": 8, "range": [-1, 1]}, readout={"difference": "digital", "gain": 64})
        setup.substrate.relax(setup.volts, "free")
        seen = setup.substrate.relax(setup.volts, "nudged", setup.nudge(0.5))
        step = setup.substrate.capabilities.adc.step
        np.testing.assert_allclose(seen / step, np.rint(seen / step), atol=1e-9)
        assert setup.substrate.capabilities.largest_gain == 1


class TestGradients:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_of_readings_are_those_of_simulation(self, name: str) -> None:
        setup = Setup(NETWORKS[name])
        inside, outside = setup.inside(setup.die), setup.outside()
        for estimator in (AsymEP(beta=0.1), AsymEP(beta=0.1, centred=False), EP(beta=0.1), Dyadic(beta=1.0)):
            expected = estimator.estimate(inside, setup.inputs, setup.targets)
            found = estimator.estimate(outside, setup.inputs, setup.targets)
            assert found.phases == expected.phases
            for crossbar, (cosine, error) in alignment(found, expected).items():
                if not expected.flat(crossbar).any():
                    # Nudges alone do not move what virtual grounds hold.
                    assert not found.flat(crossbar).any()
                    continue
                assert cosine > 1 - 1e-6, (estimator.label, crossbar)
                assert error < 2e-4, (estimator.label, crossbar)

    def test_corrected_is_exact_and_nudged_only_is_not(self) -> None:
        setup = Setup()
        exact = Adjoint().estimate(setup.inside(setup.die), setup.inputs, setup.targets)
        outside = setup.outside()
        for estimator, low, high in (
            (AsymEP(beta=0.03), 0, 2e-3),
            (Dyadic(), 0, 2e-3),
            (EP(beta=0.03), 0.1, 10),
        ):
            found = estimator.estimate(outside, setup.inputs, setup.targets)
            _, error = alignment(found, exact)["u-hidden"]
            assert low <= error < high, estimator.label

    def test_error_is_of_second_order_centred_and_of_first_one_sided(self) -> None:
        setup = Setup()
        outside = setup.outside()
        exact = Dyadic().estimate(outside, setup.inputs, setup.targets)

        def slope(centred: bool) -> float:
            errors = []
            for beta in (0.8, 0.4):
                found = AsymEP(beta=beta, centred=centred).estimate(outside, setup.inputs, setup.targets)
                errors.append(alignment(found, exact)["hidden-output"][1])
            return float(np.log2(errors[0] / errors[1]))

        assert slope(True) == pytest.approx(2, abs=0.3)
        assert slope(False) == pytest.approx(1, abs=0.25)

    def test_a_board_learns_what_the_host_would(self) -> None:
        """An update at the devices moves them by minus rate times the local rule's gradient."""
        setup = Setup()
        estimate = AsymEP(beta=0.1).estimate(setup.outside(), setup.inputs, setup.targets)
        before = setup.netlist.values().crossbars
        rates = dict.fromkeys(before, 0.2 * 9.9e-05**2 / 2e-05)
        setup.substrate.update(rates)
        after = {
            key.removeprefix("present/"): array
            for key, array in setup.substrate.state().items()
            if key.startswith("present/")
        }
        for name, (plus, minus) in before.items():
            for half, g, slope in zip(
                ("g_plus", "g_minus"), (plus, minus), estimate.crossbars[name], strict=True
            ):
                if g is None:
                    continue
                moved = after[f"{name}/{half}"] - g
                asked = np.clip(g - rates[name] * slope, 1e-6, 100e-6) - g
                np.testing.assert_allclose(moved, asked, atol=2e-4 * np.abs(asked).max())
                assert np.abs(moved).max() > 0


def digits_die(tmp: Path, card: Any = "rram-wan-2022") -> tuple[SimulatedSubstrate, Terminals, FloatArray]:
    network = parse_network(NETWORK)
    found = merged_cards((card, {"adc": {"bits": 10, "range": [-1, 1], "noise": "1m"}}), tmp)
    if found.crossbar.range is not None:
        network = network.scaled_to(*found.crossbar.range)
    netlist = compile_network(network, seed=1)
    substrate = simulated_substrate(netlist, Cost.of(network), found, seed=5)
    terminals = Terminals.of(netlist)
    volts = stream(0, "test").uniform(-1, 1, (4, 5)) * terminals.gain
    return substrate, terminals, volts


class TestState:
    @pytest.mark.parametrize(
        "card", ["rram-wan-2022", "pcm-nandakumar-2019", "rpu-gokmen-2016", "reram-es-gong-2018", "spread"]
    )
    def test_comes_back_bit_for_bit(self, card: str, tmp_path: Path) -> None:
        """Whatever was done before and since: writes, pulses, drift, reads with noise."""
        substrate, terminals, volts = digits_die(tmp_path, card)
        assert isinstance(substrate, StatefulSubstrate)
        assert isinstance(substrate, AgeingSubstrate)
        cost = substrate.capabilities.nudge
        netlist = terminals.netlist
        target = {c.name: netlist.values().crossbars[c.name] for c in netlist.trainable}

        def work(scale: float) -> list[FloatArray]:
            moved = {
                name: (plus * scale + (1 - scale) * plus.mean(), minus)
                for name, (plus, minus) in target.items()
            }
            found = [
                array for pair in substrate.program(moved).values() for array in pair if array is not None
            ]
            found.append(substrate.relax(volts, "free"))
            nudge = Cost(kind=cost.kind, conductance=cost.conductance).nudge(np.full((4, 3), 0.1), 0.2)
            found.append(substrate.relax(volts, "corrected", nudge))
            found.append(substrate.relax(volts, "corrected", nudge.scaled(-0.2)))
            found.append(np.array([substrate.update(dict.fromkeys(target, 1e-5))]))
            substrate.wait(30.0)
            found.append(substrate.relax(volts, "free", None, 3))
            return found

        work(1.0)
        kept = {key: array.copy() for key, array in substrate.state().items()}
        first = work(0.7)
        substrate.restore(kept)
        for a, b in zip(first, work(0.7), strict=True):
            np.testing.assert_array_equal(a, b)
        # And on another object of the same die.
        again, _, _ = digits_die(tmp_path, card)
        again.restore(kept)
        substrate = again
        for a, b in zip(first, work(0.7), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_of_another_circuit_is_refused(self) -> None:
        with pytest.raises(InstrumentError, match="state of another circuit"):
            Setup(RECIPROCAL).substrate.restore(Setup().substrate.state())

    def test_time_passes(self, tmp_path: Path) -> None:
        substrate, _, volts = digits_die(tmp_path, "pcm-nandakumar-2019")
        before = [substrate.relax(volts, "free", None, 400) for _ in range(2)]
        substrate.wait(1e5)
        after = substrate.relax(volts, "free", None, 400)
        noise = np.abs(before[1] - before[0]).max()
        assert np.abs(after - before[0]).max() > 5 * noise


def refusals(setup: Setup) -> dict[str, Any]:
    """What must be refused: name -> (what is asked, words of the refusal)."""
    substrate, volts, g = setup.substrate, setup.volts, setup.netlist.values().crossbars["u-hidden"]
    bad = g[0].copy()
    bad[0, 0] = 1e-3
    nan = g[0].copy()
    nan[0, 0] = np.nan
    return {
        "a volt too many": (lambda: substrate.relax(volts * 10, "free"), r"within -0\.2 \.\.\. 0\.2 V"),
        "a volt that is none": (lambda: substrate.relax(volts * np.nan, "free"), "within"),
        "another width": (lambda: substrate.relax(volts[:, :4], "free"), r"must be \(B, 5\)"),
        "no sample": (lambda: substrate.relax(volts[:0], "free"), "1 to 4096 samples"),
        "no reading": (lambda: substrate.relax(volts, "free", None, 0), "1 to 10000 readings"),
        "a phase of another circuit": (lambda: substrate.relax(volts, "lucid"), "cannot form this phase"),  # type: ignore[arg-type]
        "a free phase with a nudge": (
            lambda: substrate.relax(volts, "free", setup.nudge(0.1)),
            "goes without a nudge",
        ),
        "no nudge": (lambda: substrate.relax(volts, "nudged"), "needs a nudge"),
        "no free phase": (lambda: substrate.relax(volts, "nudged", setup.nudge(0.1)), "no free phase"),
        "another cost": (
            lambda: substrate.relax(
                volts, "nudged", Cost(kind="quadratic", conductance=1.0).nudge(setup.targets, 0.1)
            ),
            "is 2e-05 on this substrate",
        ),
        "too much beta": (lambda: substrate.relax(volts, "nudged", setup.nudge(1e3)), "at most 100"),
        "beta 0": (lambda: substrate.relax(volts, "nudged", setup.nudge(0.0)), "not 0"),
        "targets of another shape": (
            lambda: substrate.relax(volts, "nudged", setup.cost.nudge(setup.targets[:2], 0.1)),
            r"must be \(6, 3\)",
        ),
        "a conductance outside": (
            lambda: substrate.program({"u-hidden": (bad, g[1])}),
            r"within 1e-06 \.\.\. 0\.0001 S",
        ),
        "a conductance that is none": (lambda: substrate.program({"u-hidden": (nan, g[1])}), "within"),
        "half a pair": (lambda: substrate.program({"u-hidden": (g[0], None)}), "made of pairs"),
        "another shape": (
            lambda: substrate.program({"u-hidden": (g[0][:2], g[1])}),
            r"must be \(5, 4\)",
        ),
        "no such crossbar": (lambda: substrate.program({"x": g}), "Crossbars here: u-hidden"),
        "an update of nothing": (lambda: substrate.update({"u-hidden": 1.0}), "needs a free phase"),
        "time backwards": (lambda: substrate.wait(-1.0), "not negative"),
    }


@pytest.mark.parametrize("what", refusals(Setup()))
def test_what_is_refused_changes_nothing(what: str) -> None:
    setup = Setup(**SPREAD)
    ask, words = refusals(setup)[what]
    before = {key: array.copy() for key, array in setup.substrate.state().items()}
    with pytest.raises(Exception, match=words) as found:
        ask()
    assert type(found.value).__name__ in ("InstrumentError", "DeviceError")
    for key, array in setup.substrate.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_a_phase_needs_the_free_phase_of_its_inputs_and_conductances() -> None:
    setup = Setup()
    setup.substrate.relax(setup.volts, "free")
    with pytest.raises(InstrumentError, match="no free phase of these inputs"):
        setup.substrate.relax(setup.volts[::-1], "nudged", setup.nudge(0.1))
    setup.substrate.program({"u-hidden": setup.netlist.values().crossbars["u-hidden"]})
    with pytest.raises(InstrumentError, match="no free phase of these conductances"):
        setup.substrate.relax(setup.volts, "nudged", setup.nudge(0.1))


def test_a_phase_that_does_not_settle_is_refused() -> None:
    setup = Setup()
    setup.substrate.relax(setup.volts, "free")
    with pytest.raises(InstrumentError, match="phase nudged: did not settle"):
        setup.substrate.relax(setup.volts, "nudged", setup.nudge(-90.0))


def test_capabilities() -> None:
    setup = Setup(bits=12, amplifier={"offset": "1m"})
    found = setup.substrate.capabilities
    assert found.phases == PHASES
    assert (found.inputs, found.outputs) == (5, 3)
    assert found.dac.bits == found.adc.bits == 12
    assert found.dac.high == pytest.approx(0.2)
    # 1.25 times the largest saturation.
    assert found.adc.high == pytest.approx(1.25 * 0.3)
    assert {c.name: c.shape for c in found.crossbars} == {c.name: c.shape for c in setup.netlist.trainable}


def test_capabilities_are_those_of_the_design_and_tell_nothing_of_the_die() -> None:
    def found(seed: int) -> dict[str, Any]:
        die = Setup(seed=seed, crossbar={"device_to_device": 0.2}, amplifier={"offset": "5m", "gain": 0.1})
        assert np.isfinite(die.substrate.capabilities.settling_time)
        return asdict(die.substrate.capabilities) | {"identity": ""}

    assert found(3) == found(4)


def test_digits_at_the_readings_of_a_board() -> None:
    """12 bits and 1 mV leave the gradient of the shipped network within 1 % in direction."""
    data = load_digits()
    from circuitsim.network import load_network

    network = load_network(Path(__file__).parents[2] / "netlists" / "digits.yaml")
    netlist = compile_network(network, seed=0)
    card = DeviceCard.model_validate(
        {
            "name": "board",
            "source": "test",
            "dac": {"bits": 12, "range": [-0.1, 0.1]},
            "adc": {"bits": 12, "range": [-0.25, 0.25], "noise": 1e-3},
        }
    )
    cost = Cost.of(network)
    substrate = simulated_substrate(netlist, cost, card, seed=1, readout=ReadoutSpec(gain=256))
    outside = SubstratePhases(substrate=substrate, terminals=Terminals.of(netlist), cost=cost)
    inputs, targets = data.train_inputs[:64], cost.targets(data.train_labels[:64], 10)
    model = Phases(plan=build_plan(netlist), values=netlist.values(), cost=cost)
    exact = Adjoint().estimate(model, inputs, targets)
    found = AsymEP(beta=1.0).estimate(outside, inputs, targets)
    assert min(cosine for cosine, _ in alignment(found, exact).values()) > 0.95
    assert alignment(found, exact)["hidden-output"][0] > 0.999
