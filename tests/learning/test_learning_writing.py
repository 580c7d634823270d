"""How steps of learning reach devices: rounding, thresholds, carry, pulses; and going on bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import network_document
from dies import card, trainer

from circuitsim.chip import Chip, fabricate
from circuitsim.chip.pulses import conductance_step, pulsed_half, symmetric_point
from circuitsim.compiler import compile_network
from circuitsim.devices import DeviceCard
from circuitsim.errors import DeviceError
from circuitsim.learning import Adjoint, AsymEP, Dyadic, DyadicBP, Trainer
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.writing import DeviceWriter, UpdateSpec
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network

WINDOW = (1e-6, 1e-4)
NAME = "u-hidden"
SHAPE = (40, 50)


def netlist(density: float | None = None) -> Netlist:
    document = network_document(sizes=(*SHAPE, 2))
    document["synapses"] = document["synapses"][:1]
    document["layers"] = {"hidden": document["layers"]["hidden"] | {"bias": None}}
    document["output"]["layer"] = "hidden"
    document["synapses"][0]["name"] = NAME
    if density is not None:
        document["synapses"][0]["connectivity"] = {"density": density}
    return compile_network(parse_network(document), seed=3)


def ready(
    die: DeviceCard, density: float | None = None, seed: int = 5, **update: Any
) -> tuple[DeviceWriter, Chip]:
    writer = DeviceWriter(UpdateSpec.model_validate(update), seed)
    chip = fabricate(netlist(density), die, seed=2, copy=False)
    return writer, writer.prepare(chip)


def asked(writer: DeviceWriter, chip: Chip, change: FloatArray | float) -> Chip:
    """One step that moves every device that there is by ``change`` [S]; of a pair, one up and one down."""
    old = writer.conductance(chip)
    mask = chip.netlist.crossbar(NAME).mask
    delta = np.broadcast_to(change, SHAPE) * (1.0 if mask is None else mask)
    plus, minus = old[NAME]
    assert minus is not None
    return writer.apply(chip, old, {NAME: (plus + delta, minus - delta)})


def moved(after: Chip, before: Chip, half: int = 0) -> FloatArray:
    a, b = after.written[NAME][half], before.written[NAME][half]
    assert a is not None
    assert b is not None
    return a - b


FLAT = card(crossbar={"update": {"step": 0.01}})
"""Every pulse is 0.01 of half the window, everywhere."""
STEP = conductance_step(FLAT.crossbar.update, WINDOW)  # type: ignore[arg-type]


class TestPulses:
    def test_stochastic_rounding_is_unbiased(self) -> None:
        """A third of a pulse is one pulse in three."""
        writer, chip = ready(FLAT, method="pulses")
        total = np.zeros(SHAPE)
        for _ in range(30):
            after = asked(writer, chip, STEP / 3)
            total += moved(after, chip) / STEP
            chip = after
        inside = (chip.written[NAME][0] > WINDOW[0] * 1.01) & (chip.written[NAME][0] < WINDOW[1] * 0.99)
        pulses = total[inside]
        assert len(pulses) > 1900
        # 30 draws each of odds 1/3.
        assert abs(pulses.mean() - 10) < 4 * math.sqrt(30 * 2 / 9 / len(pulses))
        assert pulses.std() == pytest.approx(math.sqrt(30 * 2 / 9), rel=0.08)
        down = moved(chip, fabricate(netlist(), FLAT, seed=2), 1)[inside] / STEP
        assert abs(down.mean() + 10) < 4 * math.sqrt(30 * 2 / 9 / len(down)) + 0.05
        assert abs(np.corrcoef(pulses, down)[0, 1]) < 0.1

    def test_the_nearest_drops_what_is_below_half_a_pulse(self) -> None:
        writer, chip = ready(FLAT, method="pulses", rounding="nearest")
        np.testing.assert_array_equal(moved(asked(writer, chip, 0.49 * STEP), chip), 0.0)
        np.testing.assert_allclose(moved(asked(writer, chip, 2.6 * STEP), chip), 3 * STEP, rtol=1e-9)

    def test_a_threshold_holds_small_changes_back(self) -> None:
        writer, chip = ready(FLAT, method="pulses", threshold=2.0)
        np.testing.assert_array_equal(moved(asked(writer, chip, 1.9 * STEP), chip), 0.0)
        assert asked(writer, chip, 1.9 * STEP).report.writes == 0
        assert np.all(moved(asked(writer, chip, 2.1 * STEP), chip) > 1.9 * STEP)

    def test_steps_are_summed_up_before_devices_are_touched(self) -> None:
        writer, chip = ready(FLAT, method="pulses", rounding="nearest", accumulate=4)
        first = chip
        for number in range(1, 9):
            chip = asked(writer, chip, 0.75 * STEP)
            np.testing.assert_allclose(moved(chip, first), 3 * STEP * (number // 4), rtol=1e-9, atol=1e-20)
        assert writer.writes == 2 * 6 * np.prod(SHAPE)

    def test_carry_conserves_what_was_asked(self) -> None:
        rng = np.random.default_rng(1)
        for options in ({"rounding": "nearest"}, {"threshold": 3.0}, {"most": 1}, {"accumulate": 3}):
            writer, chip = ready(FLAT, method="pulses", carry=True, **options)
            first, total = chip, np.zeros(SHAPE)
            for _ in range(12):
                change = rng.normal(size=SHAPE) * STEP
                chip = asked(writer, chip, change)
                total += change
            kept = writer.state[f"{NAME}/g_plus"]
            np.testing.assert_allclose(moved(chip, first) + kept, total, atol=1e-9 * STEP)
            assert np.abs(moved(chip, first)).max() > STEP / 2
        writer, chip = ready(FLAT, method="pulses", rounding="nearest")
        asked(writer, chip, 0.3 * STEP)
        np.testing.assert_array_equal(writer.state[f"{NAME}/g_plus"], 0.0)

    def test_at_most_so_many_at_once(self) -> None:
        writer, chip = ready(FLAT, method="pulses", rounding="nearest", most=5)
        np.testing.assert_allclose(moved(asked(writer, chip, 20 * STEP), chip), 5 * STEP, rtol=1e-9)

    def test_devices_that_do_not_exist_get_none(self) -> None:
        writer, chip = ready(FLAT, density=0.3, method="pulses", rounding="nearest", carry=True)
        mask = chip.netlist.crossbar(NAME).mask
        assert mask is not None
        for _ in range(3):
            chip = asked(writer, chip, 2.0 * STEP)
        assert writer.writes == 3 * 2 * 2 * int(mask.sum())
        assert np.all(chip.written[NAME][0][~mask] == 0)
        np.testing.assert_allclose(writer.state[f"{NAME}/g_plus"], 0.0, atol=1e-9 * STEP)

    def test_start_at_the_symmetric_point(self) -> None:
        update = {"kind": "soft_bounds", "step": 0.02, "up_down_spread": 0.2}
        die = card(crossbar={"update": update})
        _, chip = ready(die, method="pulses", start="symmetric_point", density=0.5)
        mask = chip.netlist.crossbar(NAME).mask
        for half, array in zip(chip.written[NAME], chip.arrays[NAME], strict=True):
            expected = symmetric_point(die.crossbar.update, array)  # type: ignore[arg-type]
            np.testing.assert_array_equal(half, np.where(mask, expected, 0.0))  # type: ignore[arg-type]
            assert np.std(expected) > 1e-6

    def test_zero_shift_moves_the_first_device_alone(self) -> None:
        update = {
            "kind": "soft_bounds",
            "step": 0.02,
            "up_down_spread": 0.2,
            "cycle_to_cycle": 0.3,
            "write_noise": 1.0,
        }
        die = card(crossbar={"update": update, "stuck": {"off": 0.1}})
        writer, chip = ready(die, method="pulses", zero_shift=True)
        arrays = chip.arrays[NAME]
        assert arrays[0].stuck is not None
        assert arrays[1] is not None
        reference = chip.values.crossbars[NAME][1]
        own = symmetric_point(die.crossbar.update, arrays[0])  # type: ignore[arg-type]
        np.testing.assert_array_equal(reference, arrays[1].held(own))
        later = chip
        for _ in range(5):
            later = asked(writer, later, 3 * 0.02 * 0.5 * (WINDOW[1] - WINDOW[0]))
        np.testing.assert_array_equal(later.written[NAME][1], reference)  # type: ignore[arg-type]
        np.testing.assert_array_equal(later.values.crossbars[NAME][1], reference)  # type: ignore[arg-type]
        free = ~arrays[0].stuck
        assert np.all(moved(later, chip)[free] != 0)
        assert np.all(moved(later, chip)[~free] == 0)

    def test_small_steps_drift_to_the_symmetric_point(self) -> None:
        """What in-situ learning on asymmetric devices suffers from: steps without a mean still move them."""
        update = {"kind": "soft_bounds", "step": 0.05, "up_down": 0.2}
        die = card(crossbar={"update": update})
        writer, chip = ready(die, method="pulses")
        target = symmetric_point(die.crossbar.update, chip.arrays[NAME][0])  # type: ignore[arg-type]
        before = np.abs(chip.written[NAME][0] - target).mean()
        rng = np.random.default_rng(0)
        for _ in range(150):
            chip = asked(writer, chip, rng.choice([-1.0, 1.0], SHAPE) * 0.05 * 0.5 * (WINDOW[1] - WINDOW[0]))
        assert np.abs((chip.written[NAME][0] - target).mean()) < 0.1 * before


class TestWrites:
    DIE = card(crossbar={"range": ["1u", "100u"], "programming": "0.2u"})

    def test_each_step_writes_what_moved(self) -> None:
        writer, chip = ready(self.DIE, method="write")
        change = np.zeros(SHAPE)
        change[:10] = 5e-6
        later = asked(writer, chip, change)
        assert writer.writes == 2 * 10 * SHAPE[1]
        np.testing.assert_array_equal(moved(later, chip)[10:], 0.0)
        assert moved(later, chip)[:10].mean() == pytest.approx(5e-6, rel=0.02)

    def test_small_changes_wait_until_they_add_up(self) -> None:
        writer, chip = ready(self.DIE, method="write", threshold=0.05)
        first = chip
        for number in range(1, 7):
            chip = asked(writer, chip, 0.02 * (WINDOW[1] - WINDOW[0]))
            assert bool(np.any(moved(chip, first))) == (number >= 3)
        inside = chip.target[NAME][0] < WINDOW[1]
        off = (chip.written[NAME][0] - chip.target[NAME][0])[inside]
        # Written after the third and the sixth: all of it has been asked for.
        assert abs(off.mean()) < 4 * 0.2e-6 / math.sqrt(off.size)

    def test_targets_move_on_while_devices_wait(self) -> None:
        writer, chip = ready(self.DIE, method="write", accumulate=3)
        first = chip
        for number in range(1, 4):
            chip = asked(writer, chip, 1e-6)
            assert np.any(moved(chip, first)) == (number == 3)
            np.testing.assert_allclose(chip.target[NAME][0] - first.target[NAME][0], number * 1e-6, rtol=1e-9)


class TestRefusals:
    def test_pulses_need_a_curve(self) -> None:
        with pytest.raises(DeviceError, match="needs a card with an update curve") as error:
            ready(TestWrites.DIE, method="pulses")
        assert error.value.field == "update.method"

    @pytest.mark.parametrize("update", [{"start": "symmetric_point"}, {"zero_shift": True}], ids=str)
    @pytest.mark.parametrize("method", ["auto", "ideal", "write"])
    def test_what_is_for_pulses_needs_them(self, method: str, update: dict[str, Any]) -> None:
        with pytest.raises(DeviceError, match="is for updates by pulses") as error:
            ready(TestWrites.DIE, method=method, **update)
        assert error.value.field == f"update.{next(iter(update))}"
        if method != "auto":
            with pytest.raises(DeviceError, match="is for updates by pulses"):
                ready(FLAT, method=method, **update)

    def test_auto_is_pulses_where_there_is_a_curve(self) -> None:
        assert UpdateSpec().chosen(FLAT) == "pulses"
        assert UpdateSpec().chosen(TestWrites.DIE) == "ideal"


# Training ----------------------------------------------------------------------------------------

SOFT = {"kind": "soft_bounds", "step": 0.02, "step_spread": 0.2, "cycle_to_cycle": 0.3}


@pytest.mark.parametrize("estimator", [AsymEP(beta=0.1), Dyadic()], ids=["corrected", "dyadic"])
def test_pulses_learn_a_small_task(estimator: Estimator) -> None:
    found = trainer(
        estimator,
        card(crossbar={"update": SOFT}),
        update={"method": "pulses"},
        epochs=4,
        optimiser={"step": 0.03},
    )
    before = found.measure()["test_cost"]
    metrics = [found.epoch(number) for number in range(4)]
    print([round(m["test_cost"] / before, 3) for m in metrics], metrics[-1]["test_accuracy"])
    assert metrics[-1]["test_cost"] < 0.6 * before
    assert metrics[-1]["test_accuracy"] >= 0.9
    assert metrics[0]["writes"] > 0
    assert sum(m["writes"] for m in metrics) == found.writer.writes


def test_step_energy_is_that_of_phases_and_of_pulses() -> None:
    pulse = {"voltage": 1.0, "width": "100n"}
    die = card(crossbar={"update": SOFT, "pulse": pulse})
    found = trainer(AsymEP(beta=0.1), die, update={"method": "pulses"})
    metrics = found.epoch(0)
    steps = 5
    expected = 3 * 8 * metrics["inference_energy"] + found.writer.energy / steps
    assert metrics["step_energy"] == pytest.approx(expected, rel=1e-12)
    assert found.writer.energy > 0
    assert metrics["inference_energy"] == pytest.approx(
        metrics["power"] * metrics["settling_time"], rel=1e-15
    )


NOISY = [{"kind": "gaussian", "relative": 0.01}, {"kind": "flicker", "read_time": "1u", "relative": 0.02}]
ADC = {"bits": 10, "range": [-1, 1], "noise": "0.2m"}
DAC = {"bits": 10, "range": [-4, 4], "noise": "1m"}
DRIFT = {"kind": "logarithmic", "mean": "-0.1u", "std": ["0.3u", "0.05u"]}
CASES: dict[str, tuple[Estimator, dict[str, Any], dict[str, Any]]] = {
    "ideal": (AsymEP(), {"crossbar": {"device_to_device": 0.05}}, {}),
    "ideal, written": (
        AsymEP(),
        {"crossbar": {"range": ["1u", "100u"], "device_to_device": 0.05, "programming": "0.3u"}},
        {"write": True},
    ),
    "ideal, levels": (AsymEP(), {"crossbar": {"levels": 16, "device_to_device": 0.05}}, {"write": True}),
    "ideal, aged": (Adjoint(), {"crossbar": {"range": ["1u", "100u"], "drift": DRIFT}}, {"age": 100.0}),
    "ideal, read": (AsymEP(), {"crossbar": {"range": ["1u", "100u"], "read_noise": NOISY}, "adc": ADC}, {}),
    "driven": (AsymEP(), {"dac": DAC}, {}),
    "write": (
        AsymEP(),
        {"crossbar": {"range": ["1u", "100u"], "programming": "0.3u", "stuck": {"on": 0.05}}},
        {"update": {"method": "write", "threshold": 0.01}, "write": True},
    ),
    "pulses": (
        AsymEP(),
        {"crossbar": {"update": SOFT | {"write_noise": 0.5}, "stuck": {"off": 0.05}}},
        {"update": {"method": "pulses", "carry": True, "accumulate": 2}},
    ),
    "pulses, symmetric": (
        AsymEP(),
        {"crossbar": {"update": SOFT | {"bound_up_spread": 0.1}}},
        {"update": {"start": "symmetric_point"}},
    ),
    "pulses, everything": (
        AsymEP(beta=0.1),
        {
            "crossbar": {
                "range": ["1u", "100u"],
                "device_to_device": 0.05,
                "update": SOFT,
                "read_noise": NOISY,
                "drift": DRIFT,
            },
            "amplifier": {"gain": 0.05, "offset": "1m", "correction_gain": 0.05, "anchor_noise": "0.1m"},
            "adc": ADC,
            "dac": DAC,
        },
        {"update": {"zero_shift": True}, "age": 30.0},
    ),
    "copy": (
        Dyadic(),
        {
            "crossbar": {"range": ["1u", "100u"], "update": SOFT, "read_noise": NOISY},
            "amplifier": {"copy_gain": 0.05},
        },
        {"update": {"method": "pulses", "start": "symmetric_point"}},
    ),
    "copy, written": (
        Dyadic(),
        {"crossbar": {"range": ["1u", "100u"], "programming": "0.3u", "device_to_device": 0.05}},
        {"update": {"method": "write"}, "write": True},
    ),
}


def run(found: Trainer, epochs: range) -> list[dict[str, float]]:
    rows = []
    for number in epochs:
        metrics = found.epoch(number)
        metrics.pop("seconds")
        rows.append(metrics)
    return rows


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_training_repeats_and_goes_on_bit_for_bit(case: str, precision: str) -> None:
    estimator, sections, options = CASES[case]

    def fresh() -> Trainer:
        return trainer(estimator, card(**sections), precision=precision, **options)

    whole = fresh()
    layout = {key: (array.shape, array.dtype) for key, array in whole.state().items()}
    first = run(whole, range(1))
    kept = {key: array.copy() for key, array in whole.state().items()}
    # As a record keeps it: of the types that it was laid out with.
    assert {key: (array.shape, array.dtype) for key, array in kept.items()} == layout
    rest = run(whole, range(1, 2))
    again = fresh()
    assert run(again, range(2)) == first + rest
    resumed = fresh()
    resumed.restore(kept)
    assert run(resumed, range(1, 2)) == rest
    ends = [found.state() for found in (whole, again, resumed)]
    for end in ends[1:]:
        assert set(end) == set(ends[0])
        for key, array in end.items():
            np.testing.assert_array_equal(array, ends[0][key])
            assert array.dtype == ends[0][key].dtype
    for plus, _ in whole.chip.values.crossbars.values():
        assert plus.dtype == precision
    assert np.isfinite([list(row.values()) for row in first + rest]).all()


def test_clocked_learning_keeps_the_copy_of_its_die() -> None:
    document = network_document(output="differential_pair")
    die = card(crossbar={"device_to_device": 0.2})
    clocked, plain = (trainer(estimator, die, document=document) for estimator in (DyadicBP(), AsymEP()))
    assert clocked.chip.copy is not None
    assert plain.chip.copy is None
    exact = trainer(DyadicBP(), card(), document=document).measure()
    assert exact["relative_error/u-hidden"] < 1e-9
    assert 0.02 < clocked.measure()["relative_error/u-hidden"] < 1.0


def test_pulses_through_a_trainer_are_those_of_the_device() -> None:
    """One step by hand: the optimiser's change, rounded, along each device's curve."""
    found = trainer(
        Adjoint(),
        card(crossbar={"update": {"kind": "soft_bounds", "step": 0.02}}),
        update={"rounding": "nearest"},
    )
    before = found.chip
    old = found.writer.conductance(before)
    twin = trainer(Adjoint(), card(crossbar={"update": {"kind": "soft_bounds", "step": 0.02}}))
    gradient = twin.estimator.estimate(twin.phases(), twin.train.inputs[:8], twin._targets[:8])
    new = twin.optimiser.step(old, gradient, 1.0)
    found.step(np.arange(8))
    spec = before.card.crossbar.update
    assert spec is not None
    for name, pair in new.items():
        for half in (0, 1):
            array, g = before.arrays[name][half], before.written[name][half]
            if array is None or g is None:
                continue
            counts = np.rint((pair[half] - old[name][half]) / conductance_step(spec, array.window))  # type: ignore[operator]
            mask = before.netlist.crossbar(name).mask
            counts = (counts if mask is None else np.where(mask, counts, 0)).astype(np.int64)
            expected = pulsed_half(spec, array, g, counts, np.random.default_rng(0))
            np.testing.assert_array_equal(
                found.chip.written[name][half],  # type: ignore[arg-type]
                expected if mask is None else np.where(mask, expected, 0.0),
            )
    assert found.chip.report.writes > 0
    assert replace(found.chip, report=before.report).writes == before.writes + 1
