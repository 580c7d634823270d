"""Boards of word and bit lines: what is solved, written, learned and refused through three calls."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from circuits import network_document

from circuitsim.chip import Conductances, fabricate
from circuitsim.chip.substrate import PHASES, Phase, Substrate
from circuitsim.compiler import compile_network
from circuitsim.data import load_digits
from circuitsim.devices import DeviceCard
from circuitsim.devices.card import find_card, ideal_card, load_card
from circuitsim.errors import DeviceError, InstrumentError
from circuitsim.instrument.boards.arc_two import BIT_CHANNELS, WORD_CHANNELS, ArcTwoPlatform
from circuitsim.instrument.boards.platform import (
    Block,
    CrossbarPlatform,
    PlatformSpec,
    PlatformSubstrate,
    stacked_placement,
)
from circuitsim.instrument.boards.simulated_platform import SimulatedPlatform
from circuitsim.instrument.opening import open_substrate
from circuitsim.learning import AsymEP, Cost, Dyadic, OptimiserSpec, Phases, Samples
from circuitsim.learning.in_the_loop import SubstratePhases, SubstrateTrainer, check_substrate
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.network import parse_network
from circuitsim.solver import SolverSettings, build_plan

WINDOW = (1e-6, 100e-6)
HALF = 0.5 * (WINDOW[1] - WINDOW[0])


def device(**update: Any) -> DeviceCard:
    """Devices of even steps, 1/100 of half the window, without spread unless asked for."""
    crossbar = {"update": {"step": 0.01} | update}
    return DeviceCard.model_validate({"name": "even", "source": "test", "crossbar": crossbar})


def board_spec(step: float = 0.01 * HALF, **options: Any) -> PlatformSpec:
    pulse = {"voltage": 1.0, "width": 1e-6, "step": step}
    return PlatformSpec.model_validate({"up": pulse, "down": pulse, **options})


class Recorded:
    """A platform whose calls are counted, device by device."""

    def __init__(self, platform: SimulatedPlatform) -> None:
        self._platform = platform
        self.words, self.bits = platform.words, platform.bits
        self.pulses = np.zeros((len(self.words), len(self.bits)), dtype=int)
        self.reads = np.zeros_like(self.pulses)

    def read_one(self, low: int, high: int, vread: float) -> float:
        return self._platform.read_one(low, high, vread)

    def read_slice_masked(self, chan: int, mask: IntArray, vread: float) -> FloatArray:
        self.reads[mask, chan - len(self.words)] += 1
        return self._platform.read_slice_masked(chan, mask, vread)

    def pulse_slice_masked(self, chan: int, voltage: float, width: float, mask: IntArray) -> None:
        self.pulses[mask, chan - len(self.words)] += 1
        self._platform.pulse_slice_masked(chan, voltage, width, mask)


class Board:
    """A network on a simulated board of 32 word and 32 bit lines."""

    def __init__(
        self,
        card: DeviceCard | None = None,
        *,
        document: dict[str, Any] | None = None,
        seed: int = 1,
        noise: float = 0.0,
        current_step: float = 0.0,
        placement: Any = None,
        rounding_seed: int = 0,
        **spec: Any,
    ) -> None:
        network = parse_network(document or network_document(recurrent=True))
        self.netlist = compile_network(network, seed=0)
        self.cost = Cost.of(network)
        self.platform = Recorded(
            SimulatedPlatform(
                card or device(),
                32,
                32,
                seed=seed,
                window=WINDOW,
                current_noise=noise,
                current_step=current_step,
            )
        )
        self.substrate = PlatformSubstrate(
            self.platform,
            self.netlist,
            self.cost,
            board_spec(seed=rounding_seed, **spec),
            placement=placement,
        )
        rng = np.random.default_rng(3)
        port = self.netlist.inputs
        self.volts = rng.uniform(-1, 1, (4, port.size)) * self.substrate.terminals.gain
        self.targets = self.cost.targets(np.arange(4) % 2, len(self.netlist.outputs.pos))

    @property
    def asked(self) -> Conductances:
        values = self.netlist.values()
        return {crossbar.name: values.crossbars[crossbar.name] for crossbar in self.netlist.trainable}

    def phases(self, conductance: Conductances, **settings: Any) -> Phases:
        """The phases of the circuit with conductances of ours."""
        values = self.netlist.values()
        return Phases(
            plan=build_plan(self.netlist),
            values=replace(values, crossbars={**values.crossbars, **conductance}),
            cost=self.cost,
            settings=SolverSettings(check=True, **settings),
        )

    def currents(self) -> FloatArray:
        """Every device of the array, read at 0.1 V."""
        p = self.platform._platform
        return np.stack([p.read_slice_masked(int(low), p.words, 0.1) for low in p.bits], axis=1)


def flat(conductance: Conductances) -> FloatArray:
    return np.concatenate([g.ravel() for pair in conductance.values() for g in pair if g is not None])


def with_update(name: str, **update: Any) -> DeviceCard:
    """A shipped card, values of its update curve changed."""
    card = load_card(find_card(name))
    assert card.crossbar.update is not None
    curve = card.crossbar.update.model_copy(update=update)
    return card.model_copy(update={"crossbar": card.crossbar.model_copy(update={"update": curve})})


def scattered() -> DeviceCard:
    """Spreads of a resistive processing unit, with steps six times as large."""
    return with_update("rpu-gokmen-2016", step=0.01)


# The circuit that is solved ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_is_that_of_the_circuit_with_the_conductances_that_were_read(phase: Phase) -> None:
    board = Board(scattered(), noise=1e-8, tolerance=0.05, reads="written")
    substrate: Substrate = board.substrate
    found = substrate.program(board.asked)
    v = substrate.relax(board.volts, "free")
    # By another method than the substrate's own, and checked by the routine that no solver uses.
    phases = board.phases(found, method="general", relative_tolerance=1e-13)
    inputs = board.volts / board.substrate.terminals.gain
    point = phases.free(inputs)
    assert (point.kcl_residual < 1e-9 * point.largest_current).all()
    read = board.substrate.terminals.read
    scale = np.abs(v).max()
    np.testing.assert_allclose(v, point.node_voltage[:, read], rtol=0, atol=1e-9 * scale)
    asked = board.phases(board.asked).free(inputs)
    assert np.abs(v - asked.node_voltage[:, read]).max() > 1e-3 * scale, "devices are not what was asked"
    if phase == "free":
        return
    beta = 0.01
    d = substrate.relax(board.volts, phase, board.cost.nudge(board.targets, beta))
    change = getattr(phases, phase)(inputs, board.targets, beta, point)
    wanted = phases.nodes(change, inputs, point)[:, read]
    assert np.abs(wanted).max() > 1e-6
    np.testing.assert_allclose(d, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_estimates_are_gradients_of_the_measured_circuit() -> None:
    board = Board(scattered(), noise=1e-8, reads="written")
    found = board.substrate.program(board.asked)
    host = SubstratePhases(substrate=board.substrate, terminals=board.substrate.terminals, cost=board.cost)
    inputs = board.volts / board.substrate.terminals.gain
    estimate = AsymEP(beta=0.001).estimate(host, inputs, board.targets)
    exact = Dyadic().estimate(board.phases(found), inputs, board.targets)
    nominal = Dyadic().estimate(board.phases(board.asked), inputs, board.targets)
    for name in exact.crossbars:
        size = np.linalg.norm(exact.flat(name))
        assert np.linalg.norm(estimate.flat(name) - exact.flat(name)) < 1e-4 * size
        assert np.linalg.norm(estimate.flat(name) - nominal.flat(name)) > 1e-3 * size


def test_how_often_devices_are_read_is_the_users_choice() -> None:
    """Between phases that are read apart noise does not cancel; where reads are shared it does."""
    spread = {}
    for reads in ("written", "free", "phase"):
        board = Board(noise=1e-8, reads=reads)
        board.substrate.program(board.asked)
        before = board.platform.reads.sum()
        nudge = board.cost.nudge(board.targets, 0.01)
        seen = []
        for _ in range(20):
            v = board.substrate.relax(board.volts, "free")
            seen.append((v, board.substrate.relax(board.volts, "nudged", nudge)))
        devices = (flat(board.asked) > 0).sum()
        per_pass = {"written": 0, "free": 1, "phase": 2}[reads]
        assert board.platform.reads.sum() - before == 20 * per_pass * devices
        spread[reads] = [float(np.ptp([pair[k] for pair in seen], axis=0).mean()) for k in (0, 1)]
    assert spread["written"] == [0, 0]
    assert spread["free"][0] == pytest.approx(spread["phase"][0], rel=0.3)
    assert spread["phase"][1] > 20 * spread["free"][1] > 0


# Writing -----------------------------------------------------------------------------------------------


def test_write_verify_reaches_its_tolerance_and_says_how_many_devices_it_missed() -> None:
    board = Board(scattered(), noise=5e-9, tolerance=0.02, averaging=4, budget=30)
    found = board.substrate.program(board.asked)
    error = np.abs(flat(found) - flat(board.asked)) / (WINDOW[1] - WINDOW[0])
    report = board.substrate.report
    assert report.missed == (error > 0.02).sum()
    # Bounds spread by 30 %: some devices cannot reach their targets, most can.
    assert report.missed <= 0.05 * len(error)
    assert np.median(error) < 0.02
    assert report.writes == board.platform.pulses.sum()
    assert 0 < report.energy < report.writes * 1e-6 * 1.3 * WINDOW[1]
    # What was read back is what devices have, but for the noise of four readings.
    seen = board.currents() / 0.1
    used = board.platform.reads > 0
    again = flat(board.substrate.program(board.asked))
    again = again[flat(board.asked) > 0]
    assert len(again) == used.sum()
    assert np.sort(seen[used]) == pytest.approx(np.sort(again), abs=6 * 5e-9 / 0.1)


def test_a_larger_budget_misses_fewer() -> None:
    missed = []
    for budget in (1, 3, 30):
        board = Board(scattered(), tolerance=0.02, budget=budget)
        board.substrate.program(board.asked)
        missed.append(board.substrate.report.missed)
    assert missed[0] > 2 * missed[1] > 2 * missed[2]


def test_noisy_writes_are_repeated_until_a_device_is_where_it_should_be() -> None:
    """ReRAM whose reads are off by a tenth of half the window after each write, until the next."""
    # Steps of five times the card's size, for the test's sake; noise after a write is the card's.
    card = with_update(
        "reram-es-gong-2018", step=5 * 0.001174932675, cycle_to_cycle=1.0, write_noise=86.17515 / 5
    )
    options: dict[str, Any] = {"tolerance": 0.03, "step": 0.0059 * HALF, "document": network_document()}
    board = Board(card, budget=30, **options)
    found = board.substrate.program(board.asked)
    error = np.abs(flat(found) - flat(board.asked)) / (WINDOW[1] - WINDOW[0])
    assert board.substrate.report.missed == (error > 0.03).sum() <= 0.05 * len(error)
    # One write alone leaves 5 % of the window: two thirds of all devices would miss.
    once = Board(card, budget=1, **options)
    once.substrate.program(once.asked)
    assert once.substrate.report.missed > 0.4 * len(error)


def test_devices_that_are_stuck_are_counted_and_not_worn_out() -> None:
    card = device()
    crossbar = card.crossbar.model_validate(card.crossbar.model_dump() | {"stuck": {"off": 0.2}})
    board = Board(card.model_copy(update={"crossbar": crossbar}), tolerance=0.02, budget=30)
    found = flat(board.substrate.program(board.asked))
    stuck = found == pytest.approx(WINDOW[0], rel=1e-9)
    stuck = np.isclose(found, WINDOW[0], rtol=1e-9)
    off = np.abs(found - flat(board.asked)) > 0.02 * (WINDOW[1] - WINDOW[0])
    assert 0.1 < stuck.mean() < 0.3
    assert board.substrate.report.missed == off.sum() == (stuck & off).sum() > 0
    # 30 rounds of the first round's pulses would be thousands.
    assert board.platform.pulses.max() < 400


def test_only_devices_that_are_off_are_pulsed_and_nothing_else_of_the_array_is_touched() -> None:
    document = network_document()
    document["synapses"][0]["connectivity"] = {"density": 0.5}
    board = Board(document=document)
    substrate = board.substrate
    held = {crossbar.name: crossbar.mask for crossbar in board.netlist.trainable}
    assert any(mask is not None and not mask.all() for mask in held.values())
    devices = sum(
        (2 if crossbar.differential else 1)
        * int(crossbar.mask.sum() if crossbar.mask is not None else np.prod(crossbar.shape))
        for crossbar in board.netlist.trainable
    )
    untouched = board.currents()
    substrate.program(board.asked)
    assert (board.platform.reads > 0).sum() == devices
    assert (board.platform.pulses > 0).sum() <= devices
    unused = board.platform.reads == 0
    assert np.array_equal(board.currents()[unused], untouched[unused])
    # Within tolerance already: no pulse, and not the smallest change.
    before, pulses = board.currents(), board.platform.pulses.sum()
    substrate.program(board.asked)
    assert board.platform.pulses.sum() == pulses
    assert np.array_equal(board.currents(), before)
    # One device asked for something else is one device pulsed.
    name, (plus, minus) = next(iter(board.asked.items()))
    mask = held[name]
    i, j = (0, 0) if mask is None else np.argwhere(mask)[0]
    moved = np.array(plus)
    moved[i, j] = WINDOW[1] if plus[i, j] < 50e-6 else WINDOW[0]
    substrate.program({name: (moved, minus)})
    assert (board.currents() != before).sum() == 1


# Reading -----------------------------------------------------------------------------------------------


def test_averaging_lowers_read_noise_as_one_over_the_root_of_its_number() -> None:
    noise, found = 1e-8, {}
    for averaging in (1, 4, 16, 64):
        board = Board(noise=noise, averaging=averaging, tolerance=0.99)
        # The devices are within so wide a tolerance from the start: this reads, and pulses none.
        reads = np.array([flat(board.substrate.program(board.asked)) for _ in range(12)])
        assert board.platform.pulses.sum() == 0
        # Where a reading may fall below 0 it is cut; the lowest conductance is 10 times the noise.
        found[averaging] = float(np.sqrt(reads.var(axis=0, ddof=1).mean()))
    for averaging, spread in found.items():
        # 11 degrees of freedom for each of about 200 devices: 1.5 % of one standard deviation.
        assert spread == pytest.approx(noise / 0.1 / math.sqrt(averaging), rel=0.06)


def test_readings_of_a_phase_are_averaged_over_reads_of_its_devices() -> None:
    spread = []
    for n_average in (1, 16):
        board = Board(noise=2e-8)
        board.substrate.program(board.asked)
        seen = [board.substrate.relax(board.volts, "free", None, n_average) for _ in range(30)]
        spread.append(float(np.sqrt(np.var(seen, axis=0, ddof=1).mean())))
    assert spread[1] / spread[0] == pytest.approx(0.25, rel=0.25)


def test_calibration_finds_the_noise_and_pulses_nothing() -> None:
    board = Board(noise=1e-8)
    board.substrate.program(board.asked)
    before = board.platform.pulses.sum()
    found = board.substrate.calibrate()
    assert found["read_noise"] == pytest.approx(1e-7, rel=0.05)
    # 32 devices, 16 readings each way.
    assert abs(found["slice_offset"]) < 4 * 1e-7 * math.sqrt(2 / (16 * 32))
    assert board.platform.pulses.sum() == before


# Learning ----------------------------------------------------------------------------------------------


def test_an_update_gives_pulses_by_sign_and_size_of_the_local_rule() -> None:
    """Devices of even steps: each moves by exactly so many of them as the rule's step makes, rounded."""
    step = 0.01 * HALF
    board = Board(rounding="nearest", reads="written")
    substrate = board.substrate
    g = substrate.program(board.asked)
    for sign in (1, -1):
        substrate.relax(board.volts, "free") if sign == 1 else None
        substrate.relax(board.volts, "corrected", board.cost.nudge(board.targets, sign * 0.001))
    inputs = board.volts / substrate.terminals.gain
    gradient = Dyadic().estimate(board.phases(g), inputs, board.targets).crossbars
    largest = max(
        float(np.abs(half).max()) for pair in gradient.values() for half in pair if half is not None
    )
    rates = dict.fromkeys(board.asked, 6.3 * step / largest)
    pulses = substrate.update(rates)
    found = substrate.measured
    total, moved = 0, 0
    for name, pair in gradient.items():
        there = board.netlist.crossbar(name).mask
        for before, after, slope in zip(g[name], found[name], pair, strict=True):
            assert before is not None
            assert after is not None
            room = np.clip(before - rates[name] * slope, *WINDOW) - before
            room = room if there is None else np.where(there, room, 0.0)
            exact = room / step
            counts = np.rint(exact)
            clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
            assert np.abs((after - before)[clear] / step - counts[clear]).max() < 1e-6
            total += int(np.abs(counts).sum())
            moved += int((counts != 0).sum())
    assert moved > 20
    assert pulses == pytest.approx(total, abs=3)


def test_stochastic_rounding_is_right_on_average_and_follows_its_seed() -> None:
    """Steps smaller than a pulse: every update gives few pulses, their mean is the rule's step."""

    step, name = 0.1 * HALF, "u-hidden"
    options: dict[str, Any] = {"step": step, "tolerance": 0.05, "reads": "written"}
    board = Board(device(step=0.1), **options)
    g = board.substrate.program(board.asked)
    inputs = board.volts / board.substrate.terminals.gain
    slope = Dyadic().estimate(board.phases(g), inputs, board.targets).crossbars[name][0]
    rate = 0.4 * step / float(np.abs(slope).max())

    def one(seed: int) -> tuple[int, FloatArray]:
        board = Board(device(step=0.1), rounding_seed=seed, **options)
        g = board.substrate.program(board.asked)
        board.substrate.relax(board.volts, "free")
        board.substrate.relax(board.volts, "corrected", board.cost.nudge(board.targets, 0.001))
        pulses = board.substrate.update({name: rate})
        return pulses, (board.substrate.measured[name][0] - g[name][0]) / step

    first, again = one(1), one(1)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])
    moved = np.array([one(seed)[1] for seed in range(2, 42)])
    exact = -rate * slope / step
    inside = (g["u-hidden"][0] > WINDOW[0] + 2 * step) & (g["u-hidden"][0] < WINDOW[1] - 2 * step)
    # A mean of 40 draws between two whole numbers is off by 0.08 of a pulse at most, one deviation.
    z = (moved.mean(axis=0) - exact)[inside] / np.sqrt(0.25 / 40)
    assert inside.sum() > 10
    assert np.abs(exact[inside]).max() > 0.1
    assert np.abs(z).max() < 4.5
    assert abs(z.mean()) < 4 / math.sqrt(z.size)


def pooled_digits() -> tuple[Samples, Samples]:
    """Digits 0 to 3 in 4 x 4 pixels."""
    data = load_digits()
    assert data.classes is not None

    def some(inputs: FloatArray, labels: Any, count: int) -> Samples:
        keep = np.flatnonzero(labels < 4)[:count]
        x = np.asarray(inputs[keep], dtype=np.float64).reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
        return Samples(inputs=x.reshape(len(keep), 16), labels=labels[keep])

    train, test = (
        some(data.train_inputs, data.train_labels, 160),
        some(data.test_inputs, data.test_labels, 144),
    )
    mean = train.inputs.mean(axis=0)
    return tuple(Samples(inputs=2 * (part.inputs - mean), labels=part.labels) for part in (train, test))


DIGITS: dict[str, Any] = {
    "name": "pooled-digits",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"pixels": {"size": 16, "encoding": "voltage", "gain": "100mV"}},
    "layers": {
        "hidden": {
            "size": 8,
            "neuron": {"kind": "tanh", "gain": 8, "saturation": "200mV"},
            "bias": {"voltage": "100mV"},
        },
        "output": {"size": 4, "neuron": {"kind": "linear"}, "bias": {"voltage": "100mV"}},
    },
    "synapses": [
        {"from": "pixels", "to": "hidden", "kind": "buffered", "initial": {"center": 0.5, "spread": 0.3}},
        {"from": "hidden", "to": "output", "kind": "buffered", "initial": {"center": 0.5, "spread": 0.3}},
    ],
    "output": {"layer": "output", "encoding": "single"},
    "cost": {"kind": "cross_entropy", "conductance": "100u", "scale": "20mV"},
}


@pytest.mark.parametrize(
    ("updates", "optimiser"),
    [("host", {"step": 0.05}), ("board", {"kind": "sgd", "step": 4000.0})],
    ids=["host-written", "board-updated"],
)
def test_a_network_learns_on_devices_that_spread_and_are_noisy(
    updates: str, optimiser: dict[str, Any]
) -> None:
    board = Board(scattered(), document=DIGITS, noise=5e-9, current_step=1e-9, averaging=2, budget=6)
    train, test = pooled_digits()
    trainer = SubstrateTrainer(
        substrate=board.substrate,
        model=fabricate(board.netlist, seed=0),
        plan=build_plan(board.netlist),
        cost=board.cost,
        estimator=AsymEP(beta=0.02),
        optimiser=OptimiserSpec.model_validate(optimiser),
        train=train,
        test=test,
        classes=4,
        batch=16,
        epochs=2,
        seed=0,
        updates=updates,
    )
    before = trainer.measure()
    for number in range(2):
        after = trainer.epoch(number)
    assert before["test_accuracy"] < 0.5
    assert after["test_accuracy"] > 0.75
    assert after["test_cost"] < 0.7 * before["test_cost"]
    assert after["writes"] > 0
    # What it learned is in the devices: erased, the board is as good as a guess.
    board.substrate.program(
        {name: tuple(np.full_like(g, 50e-6) for g in pair) for name, pair in board.asked.items()}
    )
    assert trainer.measure()["test_accuracy"] < 0.5


def test_the_same_seeds_give_the_same_numbers() -> None:
    found = []
    for seed in (1, 1, 2):
        board = Board(scattered(), noise=1e-8, seed=seed)
        g = board.substrate.program(board.asked)
        v = board.substrate.relax(board.volts, "free")
        board.substrate.relax(board.volts, "nudged", board.cost.nudge(board.targets, 0.01))
        pulses = board.substrate.update(dict.fromkeys(board.asked, 0.1))
        found.append((flat(g), v, pulses, flat(board.substrate.measured)))
    first, again, other = found
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def small_board(netlist: Netlist, cost: Cost) -> PlatformSubstrate:
    """What an experiment's ``substrate: python:MODULE:small_board`` calls."""
    return PlatformSubstrate(
        SimulatedPlatform(device(), 32, 32, seed=5, window=WINDOW), netlist, cost, board_spec()
    )


def test_an_address_opens_a_board_of_the_users_own(tmp_path: Path) -> None:
    board = Board()
    address = f"python:{__name__}:small_board"
    found = open_substrate(address, board.netlist, board.cost, ideal_card(), die=0, folder=tmp_path)
    check_substrate(found, board.netlist, board.cost, AsymEP())
    wanted = small_board(board.netlist, board.cost).program(board.asked)
    assert np.array_equal(flat(found.program(board.asked)), flat(wanted))


# Refusals ----------------------------------------------------------------------------------------------


def test_an_array_that_is_too_small_is_refused_with_what_is_needed() -> None:
    board = Board()
    platform = SimulatedPlatform(device(), 8, 12, seed=0, window=WINDOW)
    with pytest.raises(InstrumentError, match=r"too small: small needs \d+ word lines and \d+ bit lines"):
        PlatformSubstrate(platform, board.netlist, board.cost, board_spec())
    wide = max(2 * crossbar.shape[1] for crossbar in board.netlist.trainable)
    placed = stacked_placement(board.netlist, 200, wide)
    rows = max(int(block.rows.max()) for pair in placed.values() for block in pair if block is not None) + 1
    assert stacked_placement(board.netlist, rows, wide).keys() == placed.keys()
    with pytest.raises(InstrumentError, match=f"needs {rows} word lines"):
        stacked_placement(board.netlist, rows - 1, wide)


def moved(placement: Any, name: str, **lines: IntArray) -> dict[str, Any]:
    plus, minus = placement[name]
    return {**placement, name: (replace(plus, **lines), minus)}


def test_placements_are_checked() -> None:
    board = Board()
    good = dict(stacked_placement(board.netlist, 32, 32))
    name = board.netlist.trainable[0].name
    m, n = board.netlist.trainable[0].shape
    for placement, message in (
        ({key: pair for key, pair in good.items() if key != name}, "has no place"),
        (good | {"more": good[name]}, "is no crossbar that can be written"),
        (moved(good, name, columns=np.arange(n) + 30), "columns are 0 to 31"),
        (moved(good, name, rows=np.arange(m) - 1), "rows are 0 to 31"),
        (moved(good, name, rows=np.arange(m + 1)), "must be"),
        (moved(good, name, rows=np.zeros(m, dtype=int)), "lies on top of"),
        (good | {name: (good[name][0], None)}, "is made of pairs"),
    ):
        with pytest.raises(InstrumentError, match=message):
            PlatformSubstrate(board.platform, board.netlist, board.cost, board_spec(), placement=placement)
    # Lines in any order: here from the last one backwards.
    turned = {
        key: tuple(Block(rows=31 - block.rows, columns=31 - block.columns) for block in pair)
        for key, pair in good.items()
    }
    other = Board(placement=turned)
    assert np.array_equal(
        flat(other.substrate.program(board.asked)), flat(board.substrate.program(board.asked))
    )
    assert np.array_equal(other.currents()[::-1, ::-1], board.currents())


def test_a_crossbar_without_a_window_is_refused() -> None:
    board = Board()
    crossbars = tuple(replace(crossbar, g_max=math.inf) for crossbar in board.netlist.crossbars)
    with pytest.raises(InstrumentError, match="need a conductance window"):
        PlatformSubstrate(
            board.platform, replace(board.netlist, crossbars=crossbars), board.cost, board_spec()
        )


def test_refused_requests_raise_and_change_nothing() -> None:
    board = Board(reads="written")
    substrate, volts = board.substrate, board.volts
    substrate.program(board.asked)
    v = substrate.relax(volts, "free")
    before, pulses = board.currents(), board.platform.pulses.sum()
    name, (plus, minus) = next(iter(board.asked.items()))
    nudge = board.cost.nudge(board.targets, 0.01)
    other = Cost.of(parse_network(DIGITS)).nudge(board.targets, 0.01)
    for refused in (
        lambda: substrate.program({"none": (plus, minus)}),
        lambda: substrate.program({name: (plus, None)}),
        lambda: substrate.program({name: (plus[1:], minus)}),
        lambda: substrate.program({name: (plus * 0 + 1.0, minus)}),
        lambda: substrate.program({name: (plus * np.nan, minus)}),
        lambda: substrate.relax(volts[:, 1:], "free"),
        lambda: substrate.relax(volts * 1e6, "free"),
        lambda: substrate.relax(volts, "free", nudge),
        lambda: substrate.relax(volts, "nudged"),
        lambda: substrate.relax(volts, "nudged", other),
        lambda: substrate.relax(volts, "nudged", nudge, 100_000),
        lambda: substrate.relax(volts * 0.5, "nudged", nudge),
        lambda: substrate.update({name: 1.0}),
        lambda: substrate.relax(volts, "sideways", nudge),  # type: ignore[arg-type]
    ):
        with pytest.raises(InstrumentError):
            refused()
    substrate.relax(volts, "nudged", nudge)
    for rates in ({"none": 1.0}, {name: math.nan}):
        with pytest.raises(InstrumentError):
            substrate.update(rates)
    assert board.platform.pulses.sum() == pulses
    assert np.array_equal(board.currents(), before)
    assert np.array_equal(substrate.relax(volts, "free"), v)


def test_phases_refer_to_the_conductances_of_their_free_phase() -> None:
    board = Board()
    substrate, nudge = board.substrate, board.cost.nudge(board.targets, 0.01)
    with pytest.raises(InstrumentError, match="no free phase"):
        substrate.relax(board.volts, "corrected", nudge)
    substrate.program(board.asked)
    for change in (
        lambda: substrate.program(board.asked),
        lambda: substrate.update(dict.fromkeys(board.asked, 0.01)),
    ):
        substrate.relax(board.volts, "free")
        substrate.relax(board.volts, "corrected", nudge)
        change()
        with pytest.raises(InstrumentError, match="no free phase of these conductances"):
            substrate.relax(board.volts, "corrected", nudge)


class Broken(Recorded):
    """A board that fails on request."""

    failure: Any = None

    def read_slice_masked(self, chan: int, mask: IntArray, vread: float) -> FloatArray:
        if isinstance(self.failure, Exception):
            raise self.failure
        found = super().read_slice_masked(chan, mask, vread)
        return found if self.failure is None else self.failure(found)


def test_a_board_that_fails_is_an_instrument_error_and_is_read_anew_afterwards() -> None:
    board = Board()
    platform = Broken(board.platform._platform)
    substrate = PlatformSubstrate(platform, board.netlist, board.cost, board_spec())
    wanted = substrate.program(board.asked)
    for failure, message in (
        (OSError("no device"), "platform: failed: OSError: no device"),
        (InstrumentError("is busy"), "is busy"),
        (lambda found: found[:-1], "must return"),
        (lambda found: found * np.nan, "must return"),
    ):
        platform.failure = failure
        with pytest.raises(InstrumentError, match=message):
            substrate.relax(board.volts, "free")
    platform.failure = None
    assert np.array_equal(flat(substrate.measured), flat(wanted))
    substrate.close()
    with pytest.raises(InstrumentError, match="closed"):
        substrate.relax(board.volts, "free")


# The simulated board ---------------------------------------------------------------------------------------


def test_nothing_of_a_simulated_board_is_seen_but_its_lines_and_three_calls() -> None:
    platform: CrossbarPlatform = SimulatedPlatform(device(), 4, 6, seed=0, window=WINDOW)
    public = {name for name in dir(platform) if not name.startswith("_")}
    assert public == {"bits", "words", "pulse_slice_masked", "read_one", "read_slice_masked"}


def test_pulses_move_the_selected_devices_along_their_curve_and_no_other() -> None:
    platform = SimulatedPlatform(device(), 4, 6, seed=0, window=WINDOW)

    def conductance() -> FloatArray:
        return np.stack(
            [platform.read_slice_masked(int(low), platform.words, 0.1) / 0.1 for low in platform.bits], 1
        )

    assert conductance() == pytest.approx(np.full((4, 6), WINDOW[0]), rel=1e-9)
    for _ in range(7):
        platform.pulse_slice_masked(int(platform.bits[2]), 1.0, 1e-6, platform.words[[0, 3]])
    platform.pulse_slice_masked(int(platform.bits[2]), -1.0, 1e-6, platform.words[[3]])
    # A word line may be the low one as well.
    platform.pulse_slice_masked(int(platform.words[1]), 1.0, 1e-6, platform.bits[[0, 5]])
    wanted = np.full((4, 6), WINDOW[0])
    wanted[0, 2] += 7 * 0.01 * HALF
    wanted[3, 2] += 6 * 0.01 * HALF
    wanted[1, [0, 5]] += 0.01 * HALF
    assert conductance() == pytest.approx(wanted, rel=1e-9)
    by_word = np.stack(
        [platform.read_slice_masked(int(word), platform.bits, 0.1) / 0.1 for word in platform.words]
    )
    assert by_word == pytest.approx(wanted, rel=1e-9)
    assert platform.read_one(int(platform.bits[2]), 3, -0.05) == pytest.approx(-0.05 * wanted[3, 2], rel=1e-9)


def test_currents_have_the_boards_noise_and_resolution() -> None:
    platform = SimulatedPlatform(device(), 8, 8, seed=0, window=WINDOW, current_noise=5e-9, current_step=2e-9)
    reads = np.array([platform.read_slice_masked(8, np.arange(8), 0.1) for _ in range(400)])
    assert np.abs(reads / 2e-9 - np.rint(reads / 2e-9)).max() < 1e-6
    # Noise and rounding to even steps: their variances add up.
    assert reads.std() == pytest.approx(math.hypot(5e-9, 2e-9 / math.sqrt(12)), rel=0.05)
    assert reads.mean() == pytest.approx(1e-7, abs=4 * 5.1e-9 / math.sqrt(3200))


def test_reading_does_not_change_what_pulses_do() -> None:
    found = []
    for reads in (0, 5):
        platform = SimulatedPlatform(scattered(), 8, 8, seed=4, window=WINDOW, current_noise=1e-9)
        for _ in range(20):
            for _ in range(reads):
                platform.read_slice_masked(8, np.arange(8), 0.1)
            platform.pulse_slice_masked(8, 1.0, 1e-6, np.arange(8))
        found.append(platform._written.copy())
    assert np.array_equal(found[0], found[1])
    assert found[0][:, 0].std() > 0


def test_what_a_simulated_board_cannot_do_is_refused_and_changes_nothing() -> None:
    platform = SimulatedPlatform(device(), 4, 6, seed=0, window=WINDOW)
    before = platform._written.copy()
    words = np.arange(4)
    for refused in (
        lambda: platform.read_slice_masked(4, words, 0.6),
        lambda: platform.read_slice_masked(4, words, 0.0),
        lambda: platform.read_slice_masked(4, np.array([4, 5]), 0.1),
        lambda: platform.read_slice_masked(10, words, 0.1),
        lambda: platform.read_slice_masked(4, np.array([], dtype=int), 0.1),
        lambda: platform.read_one(0, 1, 0.1),
        lambda: platform.pulse_slice_masked(4, 2.0, 1e-6, words),
        lambda: platform.pulse_slice_masked(4, 1.0, 2e-6, words),
        lambda: platform.pulse_slice_masked(4, 1.0, 1e-6, np.array([0, 0])),
        lambda: platform.pulse_slice_masked(4, 1.0, 1e-6, np.array([0.0, 1.0])),
    ):
        with pytest.raises(InstrumentError):
            refused()
    assert np.array_equal(platform._written, before)
    with pytest.raises(DeviceError, match="update curve"):
        SimulatedPlatform(load_card(find_card("pcm-joshi-2020")), 4, 4, seed=0)
    with pytest.raises(DeviceError, match="window"):
        SimulatedPlatform(device(), 4, 4, seed=0)


# ArC TWO ---------------------------------------------------------------------------------------------------


class StandIn:
    """What pyarc2's Instrument does by its documentation: channels, nanoseconds, a queue of pulses."""

    def __init__(self) -> None:
        self.g = np.full((64, 64), 10e-6)
        self.queue: list[Any] = []
        self.executed = 0

    def read_one(self, low: int, high: int, vread: float, /) -> float:
        return float(self.g[low, high] * vread)

    def read_slice_masked(self, chan: int, mask: Any, vread: float, /) -> Any:
        assert mask.dtype == np.uint64
        across = WORD_CHANNELS if chan in BIT_CHANNELS else BIT_CHANNELS
        found = np.full(32, np.nan, dtype=np.float32)
        for k, high in enumerate(across):
            if high in mask:
                found[k] = self.g[chan, high] * vread
        return found

    def pulse_slice_masked(self, chan: int, voltage: float, nanos: int, mask: Any, /) -> StandIn:
        assert mask.dtype == np.uint64
        assert isinstance(nanos, int)
        self.queue.append((chan, voltage, nanos, mask))
        return self

    def ground_all(self) -> StandIn:
        self.queue.append(None)
        return self

    def execute(self) -> StandIn:
        for item in self.queue:
            if item is None:
                continue
            chan, voltage, nanos, mask = item
            for high in mask.astype(int):
                self.g[chan, high] += np.sign(voltage) * 1e-6 * nanos / 1000
        assert self.queue[-1] is None, "lines are grounded after a pulse"
        self.queue.clear()
        return self

    def wait(self) -> None:
        self.executed += 1


def test_an_arc_two_is_driven_by_its_own_channels_and_units() -> None:
    board = StandIn()
    platform: CrossbarPlatform = ArcTwoPlatform(board, words=[50, 17, 30], bits=[40, 3])
    rng = np.random.default_rng(0)
    board.g[...] = rng.uniform(1e-6, 1e-4, board.g.shape)
    found = platform.read_slice_masked(40, platform.words, 0.2)
    assert found == pytest.approx(board.g[40, [50, 17, 30]] * 0.2, rel=1e-6)
    assert platform.read_slice_masked(17, platform.bits, 0.2) == pytest.approx(
        board.g[17, [40, 3]] * 0.2, rel=1e-6
    )
    before = board.g.copy()
    platform.pulse_slice_masked(3, -1.5, 2e-6, np.array([30, 50]))
    change = np.zeros_like(before)
    change[3, [30, 50]] = -2e-6
    assert board.g - before == pytest.approx(change, abs=1e-12)
    assert board.executed == 1
    for refused in (
        lambda: platform.pulse_slice_masked(3, 1.0, 0.0, np.array([30])),
        lambda: platform.pulse_slice_masked(3, 1.0, 1.0, np.array([30])),
        lambda: ArcTwoPlatform(board, words=[3]),
        lambda: ArcTwoPlatform(board, bits=[3, 3]),
        lambda: ArcTwoPlatform(board, polarity=0),
    ):
        with pytest.raises(InstrumentError):
            refused()


def test_a_network_is_written_to_an_arc_two() -> None:
    network = Board()
    board = StandIn()
    substrate = PlatformSubstrate(
        ArcTwoPlatform(board), network.netlist, network.cost, board_spec(step=1e-6, tolerance=0.02)
    )
    found = substrate.program(network.asked)
    assert substrate.report.missed == 0
    assert np.abs(flat(found) - flat(network.asked)).max() < 0.02 * (WINDOW[1] - WINDOW[0])
    assert substrate.relax(network.volts, "free").shape == (4, len(substrate.terminals.names))
