"""Calibration through readings alone: what is found is what the die has, with errors that are honest."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from circuits import network_document
from served import TINY, serving

from circuitsim.chip import Conductances, fabricate
from circuitsim.chip.substrate import Capabilities, Phase
from circuitsim.cli.main import main
from circuitsim.compiler import compile_network
from circuitsim.data import load_digits
from circuitsim.devices import DeviceCard, merged_cards
from circuitsim.errors import InstrumentError, SpecError
from circuitsim.instrument.calibration.amplifiers import fit_amplifiers
from circuitsim.instrument.calibration.calibrating import calibrate_substrate
from circuitsim.instrument.calibration.calibration import (
    Calibration,
    Series,
    read_calibration,
    write_calibration,
)
from circuitsim.instrument.calibration.measurements import reading_noise
from circuitsim.instrument.calibration.mock import mock_substrate
from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate
from circuitsim.learning import AsymEP, Cost, OptimiserSpec, Samples, SubstrateTrainer
from circuitsim.netlist import Netlist, Nudge
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import load_network, parse_network
from circuitsim.solver import build_plan

ADC = {"bits": 12, "range": ["-250m", "250m"], "noise": "1m"}
DAC = {"bits": 12, "range": ["-100m", "100m"]}
AMPLIFIER = {"gain": 0.05, "offset": "2m", "correction_gain": 0.05, "saturation": 0.02}
POOR = {"gain": 0.2, "offset": "15m", "saturation": 0.1, "correction_gain": 0.05}
LAB = {"amplifier": AMPLIFIER, "adc": ADC, "dac": DAC}
BANK = "hidden.buffer"


def card(**sections: Any) -> DeviceCard:
    return DeviceCard.model_validate({"name": "lab", "source": "test", **sections})


class Die:
    """A simulated die, which its calibration sees from outside and a test from inside."""

    def __init__(self, document: Any, die: DeviceCard, *, seed: int = 7, bits: int = 16) -> None:
        self.spec = load_network(document) if isinstance(document, Path) else parse_network(document)
        self.netlist: Netlist = compile_network(self.spec, seed=0)
        self.cost = Cost.of(self.spec)
        self.substrate: SimulatedSubstrate = simulated_substrate(
            self.netlist, self.cost, die, seed=seed, bits=bits
        )

    def calibrated(self, **options: Any) -> Calibration:
        return calibrate_substrate(self.substrate, self.netlist, self.cost, date="2026-11-28", **options)

    def truth(self, bank: str) -> dict[str, FloatArray]:
        """What fabrication drew for a bank."""
        chip, nominal = self.substrate._chip, self.netlist.values().banks[bank]
        drawn, faults = chip.values.banks[bank], chip.correction
        found = {
            "gain": drawn["gain"] / nominal["gain"],
            "offset": np.asarray(drawn["offset"]),
        }
        if np.isfinite(nominal["saturation"]).all():
            found["saturation"] = drawn["saturation"] / nominal["saturation"]
        if np.all(nominal["back_gain"]):
            found["back_gain"] = drawn["back_gain"] / nominal["back_gain"]
        ones = np.ones(len(nominal["gain"]))
        for kind in ("forward", "back"):
            found[kind] = ones if faults is None else getattr(faults, kind)[bank]
        found["copy_slope"] = chip.copy_slope.get(bank, ones)
        return found


def deviation(series: Series | None, true: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return how far off the values are, and that in standard errors; all must be measured."""
    assert series is not None
    assert None not in series.values
    off = series.filled(np.nan) - true
    return off, off / np.array(series.errors, dtype=np.float64)


@pytest.fixture(scope="module")
def tapered(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.rootpath) / "netlists" / "digits-tapered.yaml"


@pytest.fixture(scope="module")
def lab(tapered: Path) -> Die:
    return Die(tapered, card(**LAB))


@pytest.fixture(scope="module")
def found(lab: Die) -> Calibration:
    return lab.calibrated()


# -------------------------------------------------------------------------------- one lab's die


BOUNDS = {
    "gain": 0.015,
    "offset": 1e-4,
    "saturation": 1e-3,
    "forward": 1e-3,
    "back": 0.015,
    "copy_slope": 0.015,
}


@pytest.mark.parametrize("quantity", BOUNDS)
def test_every_amplifier_is_what_fabrication_drew(lab: Die, found: Calibration, quantity: str) -> None:
    true = lab.truth(BANK)[quantity]
    series = getattr(found.amplifiers[BANK], quantity)
    off, score = deviation(series, true)
    assert np.abs(off).max() < BOUNDS[quantity]
    assert np.abs(score).max() < 4
    # Errors that are honest: neither too small nor too large. Of 64 the rms is within 9 % (1 sigma).
    assert 0.7 < np.sqrt(np.mean(score**2)) < 1.35
    single = float(np.sqrt(np.mean(np.array(series.errors) ** 2)))
    assert abs(series.mean - true.mean()) < 4 * single / np.sqrt(64)
    assert abs(series.spread - true.std(ddof=1)) < 0.05 * true.std() + single


def test_noise_of_reading_and_the_root_n_law(found: Calibration) -> None:
    noise = found.noise
    assert abs(noise.single.value - 1e-3) < 4 * noise.single.error < 1.5e-5
    assert abs(noise.averaged.value - 1) < 4 * noise.averaged.error < 0.02
    assert noise.channels.value < 1e-5
    assert noise.adc_noise == pytest.approx(1e-3, rel=0.02)
    assert abs(noise.adc_offset) < 5e-5
    # Changes are read behind an amplifier: by powers of two less noise, here 32 or more.
    assert noise.change is not None
    assert noise.change.value < 1e-3 / 16


def test_the_card_draws_dies_like_the_one_measured(lab: Die, found: Calibration) -> None:
    again = merged_cards([found.card])
    amplifier = again.amplifier
    # Spreads of 64 are known to 9 %.
    assert amplifier.gain == pytest.approx(0.05, rel=0.3)
    assert amplifier.offset == pytest.approx(2e-3, rel=0.3)
    assert amplifier.saturation == pytest.approx(0.02, rel=0.3)
    assert amplifier.correction_gain == pytest.approx(0.05, rel=0.2)
    assert amplifier.copy_gain == 0
    assert again.adc is not None
    assert (again.adc.bits, again.adc.noise) == (12, pytest.approx(1e-3, rel=0.01))
    drawn = fabricate(lab.netlist, again, seed=3).values.banks[BANK]["gain"] / 16
    assert drawn.std() == pytest.approx(0.05, rel=0.5)


def test_it_leaves_no_trace(tapered: Path) -> None:
    die = Die(tapered, card(**LAB))
    before = {key: np.array(value) for key, value in die.substrate.state().items()}
    die.calibrated(samples=16, averaging=2)
    after = die.substrate.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


class Narrow:
    """A substrate with nothing but the protocol: whatever else is looked for is not there."""

    def __init__(self, inner: SimulatedSubstrate) -> None:
        self._Narrow__inner = inner
        self.capabilities: Capabilities = inner.capabilities

    def program(self, conductance: Conductances) -> Conductances:
        return self._Narrow__inner.program(conductance)

    def relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        return self._Narrow__inner.relax(inputs, phase, nudge, n_average)

    def update(self, rates: Mapping[str, float]) -> int:
        raise AssertionError("a calibration does not learn")

    def calibrate(self) -> Mapping[str, float]:
        return self._Narrow__inner.calibrate()

    def close(self) -> None:
        raise AssertionError("a substrate that was handed over is not this function's to close")


def test_it_needs_nothing_but_the_protocol(lab: Die, found: Calibration, tapered: Path) -> None:
    fresh = Die(tapered, card(**LAB))
    again = calibrate_substrate(Narrow(fresh.substrate), lab.netlist, lab.cost, date="2026-11-28")
    assert again == found


# -------------------------------------------------------------------------------------- other dies


def test_an_ideal_die_is_as_designed(tapered: Path) -> None:
    ideal = Die(tapered, card(), bits=14).calibrated()
    bank = ideal.amplifiers[BANK]
    for quantity, bound in (("gain", 1e-3), ("saturation", 1e-4), ("forward", 1e-4), ("back", 1e-3)):
        off, _ = deviation(getattr(bank, quantity), np.ones(64))
        assert np.abs(off).max() < bound, quantity
    off, _ = deviation(bank.offset, np.zeros(64))
    assert np.abs(off).max() < 5e-6
    assert ideal.noise.single.value == 0
    assert all(item.device_to_device.value < 1e-3 and not item.stuck for item in ideal.crossbars.values())
    # Nothing is left that would be a fault of the technology.
    assert set(ideal.card) == {"dac", "adc"}


def test_devices_their_own_spread_that_of_writing_and_the_stuck_ones(tapered: Path) -> None:
    devices = {
        "range": ["1n", "100u"],
        "device_to_device": 0.05,
        "programming": "200n",
        "stuck": {"off": 0.002, "on": 0.001},
    }
    amplifier = AMPLIFIER | {"correction_error": 0.02, "copy_gain": 0.03}
    die = Die(tapered, card(**LAB | {"crossbar": devices, "amplifier": amplifier}))
    chip = die.substrate._chip
    got = die.calibrated()
    item = got.crossbars["pixels-hidden"]
    for estimate, true in (
        (item.device_to_device, 0.05),
        (item.write, 2e-7),
        # The converter's noise, of 0.5 V, over a range of 125 uS.
        (item.read_back, 1e-3 / 0.5 * 125e-6),
    ):
        assert abs(estimate.value - true) < 4 * estimate.error < 0.1 * true
    array, second = chip.arrays["pixels-hidden"]
    assert second is not None
    assert array.stuck is not None
    assert second.stuck is not None
    true_stuck = {("g_plus", int(j), int(i)) for j, i in np.argwhere(array.stuck)}
    true_stuck |= {("g_minus", int(j), int(i)) for j, i in np.argwhere(second.stuck)}
    assert {(d.half, d.word, d.bit) for d in item.stuck} == true_stuck
    factor = np.array(item.g_plus)[~array.stuck]
    assert array.factor is not None
    assert np.std(factor - array.factor[~array.stuck]) < 0.005
    # With devices that are known so well and no better, amplifiers are still what they are.
    for quantity, most in (("gain", 0.015), ("forward", 1e-3), ("back", 0.12)):
        off, score = deviation(getattr(got.amplifiers[BANK], quantity), die.truth(BANK)[quantity])
        assert np.abs(off).max() < most
        assert np.abs(score).max() < 4
    assert got.card["amplifier"]["correction_gain"] == pytest.approx(0.05, rel=0.25)
    assert got.card["amplifier"]["copy_gain"] == pytest.approx(0.03, rel=0.5)
    assert got.card["crossbar"]["device_to_device"] == pytest.approx(0.05, rel=0.05)
    assert got.card["crossbar"]["programming"] == pytest.approx(2e-7, rel=0.05)


def test_an_anchor_that_is_off_is_told_from_a_gain(tapered: Path) -> None:
    die = Die(tapered, card(**LAB | {"amplifier": AMPLIFIER | {"anchor": "20u"}}))
    bank = die.calibrated().amplifiers[BANK]
    faults = die.substrate._chip.correction
    assert faults is not None
    off, score = deviation(bank.anchor, faults.anchor[BANK])
    assert np.abs(off).max() < 1e-6
    assert np.abs(score).max() < 4
    _, score = deviation(bank.forward, faults.forward[BANK])
    assert np.abs(score).max() < 4


SMALL_LAB = {
    "amplifier": {"gain": 0.05, "offset": "2m", "correction_gain": 0.02},
    "adc": {"bits": 14, "range": [-1.5, 1.5], "noise": "0.2m"},
}


def test_back_gains_of_bidirectional_amplifiers() -> None:
    die = Die(network_document(synapse="amplifier"), card(**SMALL_LAB), seed=3)
    bank = die.calibrated().amplifiers["hidden-out.amplifier"]
    true = die.truth("hidden-out.amplifier")
    assert bank.saturation is None
    for quantity in ("gain", "offset", "back_gain", "forward", "back"):
        off, score = deviation(getattr(bank, quantity), true[quantity])
        assert np.abs(off).max() < 1e-3
        assert np.abs(score).max() < 4


def test_gains_of_virtual_grounds() -> None:
    die = Die(network_document(synapse="virtual ground"), card(**SMALL_LAB), seed=3)
    got = die.calibrated()
    chip = die.substrate._chip
    assert chip.correction is not None
    for name in ("u-hidden.sense", "hidden-out.sense"):
        off, _ = deviation(
            got.senses[name].gain, chip.values.senses[name] / die.netlist.values().senses[name]
        )
        assert np.abs(off).max() < 3e-4
        off, _ = deviation(got.senses[name].back, chip.correction.back[name])
        assert np.abs(off).max() < 3e-4
    # Behind the hidden layer's virtual grounds sit its buffers: which of the two is off cannot be told.
    assert got.amplifiers[BANK].sensed
    assert got.senses["u-hidden.sense"].forward is None
    off, _ = deviation(got.senses["hidden-out.sense"].forward, chip.correction.forward["hidden-out.sense"])
    assert np.abs(off).max() < 3e-4


def test_a_circuit_without_amplifiers_has_noise_and_devices() -> None:
    die = Die(network_document(synapse="resistive"), card(**SMALL_LAB), seed=3)
    got = die.calibrated()
    assert got.beta is None
    assert not got.amplifiers
    assert got.noise.single.value == pytest.approx(2e-4, rel=0.02)


class Oscillating(Narrow):
    """A board whose correction has no operating point."""

    def relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        if phase == "corrected":
            raise InstrumentError("did not settle", object="phase corrected")
        return super().relax(inputs, phase, nudge, n_average)


def test_a_correction_that_does_not_settle_is_noted() -> None:
    die = Die(network_document(), card(**SMALL_LAB), seed=3)
    got = calibrate_substrate(Oscillating(die.substrate), die.netlist, die.cost, date="2026-11-28")
    assert got.beta is None
    assert got.notes == ("correction not measured: did not settle",)
    bank = got.amplifiers[BANK]
    assert (bank.forward, bank.back, bank.copy_slope) == (None, None, None)
    off, _ = deviation(bank.gain, die.truth(BANK)["gain"])
    assert np.abs(off).max() < 1e-3
    # The die is left with the network's own conductances.
    for name, (plus, _) in die.substrate._chip.target.items():
        assert np.array_equal(plus, die.netlist.crossbar(name).g_plus)


# ---------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25, 0.5, 1.0, 3.0])
def test_rounding_is_taken_off_noise(noise: float) -> None:
    """Against a converter of step 1 and voltages anywhere between its codes."""
    rng = np.random.default_rng(4)
    v = rng.uniform(0, 1, (4000, 1))
    read = np.rint(v + noise * rng.standard_normal((4000, 64)))
    assert reading_noise(float(read.var(axis=1, ddof=1).mean()), 1.0) == pytest.approx(noise, abs=0.01)


def test_noise_at_the_control_does_not_flatten_an_amplifier() -> None:
    rng = np.random.default_rng(5)
    n, batch, noise = 200, 200, 2e-3
    gain = 16 * (1 + 0.05 * rng.standard_normal(n))
    offset = 2e-3 * rng.standard_normal(n)
    xi = 7e-3 * rng.standard_normal((batch, n))

    def read(v: FloatArray) -> FloatArray:
        return v + noise * rng.standard_normal(v.shape)

    x, p = read(xi), read(gain * (xi + offset))
    plain = (x * p).sum(axis=0) / (x**2).sum(axis=0)
    assert np.mean(plain / gain) < 0.95
    good = np.ones(x.shape, bool)
    fit = fit_amplifiers(x, p, None, good, gain=np.full(n, 16.0), saturation=np.full(n, np.inf))
    score = (fit.gain - gain) / fit.gain_error
    assert abs(np.mean(fit.gain / gain) - 1) < 0.005
    assert 0.85 < np.std(score) < 1.15
    assert fit.noise == pytest.approx(noise, rel=0.02)


def test_what_the_readings_do_not_reach_is_not_told() -> None:
    v = np.linspace(-1e-3, 1e-3, 50)[:, None] * np.ones((1, 3))
    fit = fit_amplifiers(
        v, 16 * v, None, np.ones(v.shape, bool), gain=np.full(3, 16.0), saturation=np.full(3, 1.0)
    )
    assert np.isnan(fit.saturation).all()
    assert np.allclose(fit.gain, 16, rtol=1e-3)


# ---------------------------------------------------------------------------------------- the file


def test_a_calibration_goes_through_its_file(found: Calibration, tmp_path: Path) -> None:
    write_calibration(found, tmp_path / "deep" / "die.yaml")
    assert read_calibration(tmp_path / "deep" / "die.yaml") == found
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["die.yaml"]


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("kind", "card", "is no calibration"),
        ("noise.single.value", "loud", "is not a number"),
        ("amplifiers.hidden.buffer.gain.values", [1.0], "1 values need as many errors, not 64"),
        ("adc.bits", 99, "adc.bits"),
        ("card.amplifier.gain", -1, "amplifier.gain"),
        ("weather", "fine", "unknown key"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    found: Calibration, tmp_path: Path, place: str, value: object, says: str
) -> None:
    document = found.model_dump(mode="json")
    document["amplifiers"]["hidden"] = {"buffer": document["amplifiers"][BANK]}
    inner: Any = document
    *path, last = place.split(".")
    for part in path:
        inner = inner[part]
    inner[last] = value
    document["amplifiers"] = {BANK: document["amplifiers"].pop("hidden")["buffer"]}
    file = tmp_path / "die.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(SpecError, match=says):
        read_calibration(file)


def test_the_calibration_of_another_circuit_is_refused(found: Calibration) -> None:
    other = Die(network_document(), card())
    with pytest.raises(SpecError, match="was measured on another circuit than small"):
        mock_substrate(found, other.netlist, other.cost)


def test_a_substrate_that_holds_another_circuit_is_refused(lab: Die) -> None:
    other = Die(network_document(), card())
    with pytest.raises(InstrumentError, match="holds another circuit"):
        calibrate_substrate(lab.substrate, other.netlist, other.cost, date="today")


# ---------------------------------------------------------------------------------------- the mock


def conductances(netlist: Netlist, seed: int) -> Conductances:
    rng = np.random.default_rng(seed)
    return {
        crossbar.name: (
            rng.uniform(crossbar.g_min, crossbar.g_max, crossbar.shape),
            rng.uniform(crossbar.g_min, crossbar.g_max, crossbar.shape),
        )
        for crossbar in netlist.trainable
    }


def test_a_mock_reads_as_the_die_does(tapered: Path) -> None:
    """At conductances and inputs that the calibration has not seen."""
    die = Die(tapered, card(**LAB | {"crossbar": {"device_to_device": 0.05}}))
    mock = mock_substrate(die.calibrated(), die.netlist, die.cost, seed=5)
    quiet = card(dac=DAC, adc=ADC | {"noise": 0})
    ideal = simulated_substrate(die.netlist, die.cost, quiet, seed=9)
    rng = np.random.default_rng(0)
    inputs, targets = rng.uniform(-0.1, 0.1, (64, 64)), np.eye(10)[rng.integers(10, size=64)]
    nudge = die.cost.nudge(targets, 10.0)
    read = []
    for substrate in (die.substrate, mock, ideal):
        substrate.program(conductances(die.netlist, 1))
        free = substrate.relax(inputs, "free", None, 64)
        read.append((free, substrate.relax(inputs, "corrected", nudge, 64)))
    for place, factor in ((0, 40.0), (1, 5.0)):
        own, mocked, designed = (part[place] for part in read)
        assert np.linalg.norm(designed - own) > factor * np.linalg.norm(mocked - own)


def test_poor_amplifiers_are_measured_too(tapered: Path) -> None:
    """Offsets wider than an amplifier's slope, and saturations beyond the converter's range."""
    die = Die(tapered, card(**LAB | {"amplifier": POOR}))
    bank = die.calibrated().amplifiers[BANK]
    for quantity, most in (("gain", 0.03), ("offset", 3e-4), ("saturation", 3e-3)):
        off, score = deviation(getattr(bank, quantity), die.truth(BANK)[quantity])
        assert np.abs(off).max() < most
        assert np.abs(score).max() < 4


def test_what_a_mock_has_learned_the_die_can_do(tapered: Path) -> None:
    die = Die(tapered, card(**LAB | {"amplifier": POOR}))
    calibration = die.calibrated(samples=64)
    data = load_digits()
    train = Samples(inputs=data.train_inputs, labels=data.train_labels)
    test = Samples(inputs=data.test_inputs, labels=data.test_labels)

    def trainer(substrate: SimulatedSubstrate) -> SubstrateTrainer:
        return SubstrateTrainer(
            substrate=substrate,
            model=fabricate(die.netlist, seed=0),
            plan=build_plan(die.netlist),
            cost=die.cost,
            estimator=AsymEP(beta=0.1),
            optimiser=OptimiserSpec.model_validate({"kind": "adam", "step": 0.03}),
            train=train,
            test=test,
            classes=10,
            batch=32,
            epochs=3,
            seed=0,
        )

    def moved(substrate: SimulatedSubstrate) -> tuple[float, float]:
        """Accuracy where it was learned, and on the die."""
        first, last = trainer(substrate), trainer(die.substrate)
        for number in range(3):
            metrics = first.epoch(number)
        last.transfer(first.model.target)
        return metrics["test_accuracy"], last.measure(learns=False)["test_accuracy"]

    there, here = moved(mock_substrate(calibration, die.netlist, die.cost, seed=2))
    assert there > 0.85
    assert abs(here - there) < 0.03
    # The ideal circuit learns better, and what it has learned is worth less on the die.
    ideal = simulated_substrate(die.netlist, die.cost, card(adc=ADC, dac=DAC), seed=2)
    _, blind = moved(ideal)
    assert here > blind + 0.04


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["circuitsim", "calibrate", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    sections = {
        "amplifier": {"gain": 0.05, "offset": "2m"},
        "adc": {"bits": 12, "range": [-1, 1], "noise": "1m"},
    }
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"name": "lab", "source": "test", **sections}))
    return tmp_path


def test_command(run: Any, files: Path) -> None:
    options = ("--network", files / "tiny.yaml", "--cards", files / "lab.yaml", "--seed", 7)
    output, figure = files / "die.yaml", files / "die.png"
    code, out, err = run("simulated", *options, "-o", output, "--figure", figure)
    assert code == 0, err
    assert "hidden.buffer" in out
    assert "read noise" in out
    assert figure.read_bytes().startswith(b"\x89PNG")
    code, out, err = run("simulated", *options, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["noise"]["single"]["value"] == pytest.approx(1e-3, rel=0.05)
    kept = read_calibration(output)
    assert document["amplifiers"] == kept.model_dump(mode="json")["amplifiers"]
    # What a mock is calibrated to is what it was made of.
    code, out, err = run(f"mock:{output}", "--network", files / "tiny.yaml", "--json")
    assert code == 0, err
    for one, other in zip(
        json.loads(out)["amplifiers"][BANK]["gain"]["values"],
        kept.model_dump(mode="json")["amplifiers"][BANK]["gain"]["values"],
        strict=True,
    ):
        assert one == pytest.approx(other, abs=0.02)


def test_a_served_die_tells_its_own_network(run: Any, files: Path) -> None:
    with serving(
        files / "tiny.yaml", "--cards", files / "lab.yaml", "--seed", 7, errors=files / "errors"
    ) as served:
        code, out, err = run(f"visa:{served.resource}", "--seed", 7, "--samples", 32, "--json")
        assert code == 0, err
    far = json.loads(out)
    options = ("--network", files / "tiny.yaml", "--cards", files / "lab.yaml", "--seed", 7, "--samples", 32)
    code, out, err = run("simulated", *options, "--json")
    assert code == 0, err
    near = json.loads(out)
    assert {key: far[key] for key in far if key != "date"} == {
        key: near[key] for key in near if key != "date"
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("simulated",), "--network: is needed"),
        (("abacus", "--network", "tiny.yaml"), "SUBSTRATE: is no substrate (got 'abacus')"),
        (("simulated", "--network", "tiny.yaml", "-o", "die.txt"), "--output: must be a .yaml file"),
        (("simulated", "--network", "tiny.yaml", "--figure", "die.jpg"), "--figure: must be a .png file"),
        (("simulated", "--network", "tiny.yaml", "--cards", "gold"), "--cards: is neither a file"),
        (("mock:lab.yaml", "--network", "tiny.yaml"), "lab.yaml: kind: is no calibration"),
        (("mock:lab.yaml", "--network", "tiny.yaml", "--die", "3"), "--die: is for a simulated die"),
        (("visa:TCPIP::127.0.0.1::1::SOCKET",), "does not answer"),
    ],
)
def test_refusals(
    run: Any, files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(files)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.count("error: ") == 1
