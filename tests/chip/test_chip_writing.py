"""Dies that are written, pulsed, aged and read: statistics, slow twins, and what must not move."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from circuits import EVERYTHING, network_document, random_netlist
from interpreted import interpreted

from circuitsim.chip import Chip, fabricate
from circuitsim.chip.energy import settling_time
from circuitsim.chip.pulses import conductance_step, pulsed_half, symmetric_point
from circuitsim.compiler import compile_network
from circuitsim.devices import DeviceCard
from circuitsim.devices.memristor import DeviceArray, fabricated
from circuitsim.errors import DeviceError
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.seeds import stream
from circuitsim.solver import build_plan
from circuitsim.solver.settling import settle

HERE = Path(__file__).resolve()
LOW, HIGH = 1e-6, 1e-4
WINDOW = HIGH - LOW
NOISE = {"polynomial": ["0.5u", "1u"]}
"""Programming noise: 0.5 uS + x 1 uS."""


def card(**sections: Any) -> DeviceCard:
    return DeviceCard.model_validate({"name": "test", "source": "test", **sections})


def devices(**crossbar: Any) -> DeviceCard:
    return card(crossbar={"range": ["1u", "100u"], **crossbar})


def netlist(*, density: float | None = None, **options: Any) -> Netlist:
    document = network_document(**{"sizes": (40, 50, 4), **options})
    if density is not None:
        document["synapses"][0]["connectivity"] = {"density": density}
    return compile_network(parse_network(document), seed=3)


NAME = "u-hidden"


def everywhere(die: Chip, g: float) -> dict[str, tuple[FloatArray, FloatArray | None]]:
    shape = die.netlist.crossbar(NAME).shape
    return {NAME: (np.full(shape, g), np.full(shape, g))}


def both(pairs: Any, name: str = NAME) -> FloatArray:
    """Both halves of a crossbar as one vector."""
    return np.concatenate([half.ravel() for half in pairs[name] if half is not None])


class TestWrites:
    def test_have_the_mean_and_spread_of_the_card(self) -> None:
        die = fabricate(netlist(), devices(device_to_device=0.05, programming=NOISE), seed=1)
        first = die.write(everywhere(die, 50e-6))
        second = first.write(everywhere(die, 50e-6))
        a, b = both(first.written), both(second.written)
        n = len(a)
        assert n == 4000
        sigma = 0.5e-6 + 0.5 * 1e-6
        spread = math.hypot(0.05 * 50e-6, sigma)
        assert abs(a.mean() - 50e-6) < 4 * spread / math.sqrt(n)
        assert a.std() == pytest.approx(spread, rel=4 / math.sqrt(2 * n))
        # What belongs to the die is in both writes.
        assert (a - b).std() == pytest.approx(math.sqrt(2) * sigma, rel=4 / math.sqrt(2 * n))
        assert (a - b).mean() == pytest.approx(0.0, abs=4 * math.sqrt(2) * sigma / math.sqrt(n))

    def test_the_spread_is_that_of_the_level_asked_for(self) -> None:
        die = fabricate(netlist(), devices(programming=NOISE), seed=1)
        for g in (1e-6, 20e-6, 100e-6):
            found = both(die.write(everywhere(die, g)).written)
            if g > 5e-6:
                assert found.std() == pytest.approx(0.5e-6 + g * 1e-2, rel=0.05)
            assert found.min() >= 0.0

    def test_levels_are_the_nearest_of_a_grid_over_the_window(self) -> None:
        die = fabricate(netlist(), devices(levels=8), seed=1)
        rng = np.random.default_rng(2)
        shape = die.netlist.crossbar(NAME).shape
        asked = {NAME: (rng.uniform(LOW, HIGH, shape), rng.uniform(LOW, HIGH, shape))}
        found = both(die.write(asked).written)
        grid = np.linspace(LOW, HIGH, 8)
        nearest = np.abs(found[:, None] - grid).min(axis=1)
        assert nearest.max() < 1e-12
        assert np.abs(found - both(asked)).max() <= WINDOW / 14 * (1 + 1e-9)
        assert len(np.unique(np.round(found, 12))) == 8

    def test_a_write_at_levels_is_no_match_of_its_target(self) -> None:
        """So that ideal steps after it move devices on from where they are."""
        die = fabricate(netlist(), devices(levels=8), seed=1)
        asked = everywhere(die, 50e-6)
        written = die.write(asked)
        assert not written.matched
        moved = written.moved(everywhere(die, 51e-6))
        np.testing.assert_allclose(both(moved.written) - both(written.written), 1e-6, rtol=1e-9)

    def test_stay_within_the_window_where_a_mask_is(self) -> None:
        die = fabricate(netlist(density=0.3), devices(programming=NOISE), seed=1)
        mask = die.netlist.crossbar(NAME).mask
        assert mask is not None
        written = die.write(everywhere(die, 50e-6))
        for half in written.written[NAME]:
            assert half is not None
            assert np.all(half[~mask] == 0)
            assert np.all(half[mask] > 40e-6)
        # Devices that do not exist take no writes.
        assert written.report.writes == 2 * int(mask.sum())
        checked = die.write(everywhere(die, 50e-6), tolerance=1e-9, budget=3)
        assert checked.report.writes == 6 * int(mask.sum())
        assert checked.report.missed == 2 * int(mask.sum())

    def test_the_energy_is_that_of_the_pulses_through_the_devices(self) -> None:
        pulse = {"voltage": 2.0, "width": "50n"}
        die = fabricate(netlist(density=0.5), devices(programming=NOISE, pulse=pulse), seed=1)
        written = die.write(everywhere(die, 30e-6))
        assert written.report.energy == pytest.approx(4.0 * 50e-9 * both(written.written).sum(), rel=1e-12)
        assert written.report.writes == 2 * int(die.netlist.crossbar(NAME).mask.sum())  # type: ignore[union-attr]
        assert (
            fabricate(netlist(), devices(programming=NOISE)).write(everywhere(die, 3e-5)).report.energy == 0
        )

    def test_only_some_devices_are_written(self) -> None:
        die = fabricate(netlist(), devices(programming=NOISE), seed=1).write(
            everywhere(fabricate(netlist()), 3e-5)
        )
        shape = die.netlist.crossbar(NAME).shape
        masks = np.random.default_rng(0).random((2, *shape)) < 0.3
        again = die.write(everywhere(die, 60e-6), only={NAME: (masks[0], masks[1])})
        for mask, before, after in zip(masks, die.written[NAME], again.written[NAME], strict=True):
            assert before is not None
            assert after is not None
            np.testing.assert_array_equal(after[~mask], before[~mask])
            assert np.all(after[mask] > 50e-6)
        assert again.report.writes == int(masks.sum())
        np.testing.assert_array_equal(both(again.target), 60e-6)
        assert not again.matched
        few = die.write(everywhere(die, 60e-6), only={NAME: (masks[0], masks[1])}, tolerance=1e-12, budget=4)
        assert few.report.missed == int(masks.sum())
        assert few.report.writes == 4 * int(masks.sum())

    def test_a_die_is_written_the_same_again(self) -> None:
        first, second = (
            fabricate(netlist(), devices(device_to_device=0.1, programming=NOISE), seed=8) for _ in range(2)
        )
        for _ in range(3):
            first, second = (die.write(everywhere(die, 5e-5)) for die in (first, second))
            np.testing.assert_array_equal(both(first.written), both(second.written))

    def test_float32_dies_stay_float32(self) -> None:
        die = fabricate(netlist(), devices(device_to_device=0.1, programming=NOISE), seed=8)
        low = die.in_precision("float32")
        asked = {NAME: tuple(g.astype(np.float32) for g in everywhere(die, 5e-5)[NAME])}
        a, b = die.write(everywhere(die, 5e-5)), low.write(asked)  # type: ignore[arg-type]
        assert both(b.written).dtype == both(b.values.crossbars).dtype == np.float32
        np.testing.assert_allclose(both(b.written), both(a.written), rtol=1e-6)

    def test_devices_without_a_window_have_no_levels(self) -> None:
        circuit = random_netlist(3, kinds=EVERYTHING)
        for section in ({"levels": 4}, {"stuck": {"on": 0.1}}, {"update": {"step": 0.01}}):
            with pytest.raises(DeviceError, match="need a conductance window") as error:
                fabricate(circuit, card(crossbar=section))
            assert error.value.object == "plain"


class TestWriteVerify:
    def test_devices_end_within_the_tolerance_or_are_counted_as_missed(self) -> None:
        die = fabricate(netlist(), devices(device_to_device=0.05, programming=NOISE), seed=2)
        asked = everywhere(die, 50e-6)
        for budget in (1, 2, 30):
            found = die.write(asked, tolerance=0.005, budget=budget)
            off = np.abs(both(found.written) - 50e-6) > 0.005 * WINDOW
            assert found.report.missed == int(off.sum())
            assert found.report.writes <= budget * len(off)
            if budget == 30:
                assert found.report.missed == 0
        once = die.write(asked)
        assert once.report.writes == len(off)
        np.testing.assert_array_equal(both(die.write(asked, tolerance=0.5).written), both(once.written))

    def test_noise_of_writing_takes_as_many_tries_as_its_odds(self) -> None:
        """Without spread of their own devices are written again as before: a geometric number of writes."""
        die = fabricate(netlist(), devices(programming="1u"), seed=2)
        allowed = 0.5e-6
        found = die.write(everywhere(die, 50e-6), tolerance=allowed / WINDOW, budget=200)
        p = math.erf(allowed / 1e-6 / math.sqrt(2))
        n = 4000
        mean, spread = 1 / p, math.sqrt(1 - p) / p
        assert found.report.missed == 0
        assert abs(found.report.writes / n - mean) < 4 * spread / math.sqrt(n)

    def test_a_device_s_own_mismatch_is_made_up_for(self) -> None:
        """Known after the first write, where writes have no noise."""
        die = fabricate(netlist(), devices(device_to_device=0.05), seed=2)
        found = die.write(everywhere(die, 50e-6), tolerance=1e-9, budget=2)
        np.testing.assert_allclose(both(found.written), 50e-6, rtol=1e-12)
        assert found.report.missed == 0
        assert found.report.writes == 8000
        assert not found.matched
        # Not beyond the window: a device of 0.9 times its target reaches 0.9 of the upper end.
        top = both(die.write(everywhere(die, HIGH), tolerance=1e-9, budget=5).written)
        np.testing.assert_allclose(top, HIGH * np.minimum(both(die.mismatch), 1), rtol=1e-12)

    def test_it_helps_where_both_spread(self) -> None:
        die = fabricate(netlist(), devices(device_to_device=0.1, programming="1u"), seed=2)
        asked = everywhere(die, 50e-6)
        missed = [die.write(asked, tolerance=0.01, budget=n).report.missed for n in (1, 2, 4, 16)]
        assert missed == sorted(missed, reverse=True)
        assert missed[0] > 0.8 * 4000
        # Left to itself a write would be within 1 uS of its target with odds of 0.15 each.
        assert missed[2] < 0.5 * 4000
        assert missed[3] < 0.05 * 4000

    def test_stuck_devices_are_missed(self) -> None:
        die = fabricate(netlist(), devices(stuck={"off": 0.1, "open": 0.05}), seed=2)
        found = die.write(everywhere(die, 50e-6), tolerance=0.02, budget=5)
        stuck = sum(int(array.stuck.sum()) for array in die.arrays[NAME] if array is not None)  # type: ignore[union-attr]
        assert 400 < stuck < 800
        assert found.report.missed == stuck
        assert found.report.writes == 4000 + 4 * stuck

    def test_pulses_lead_there_where_a_card_knows_the_curve_alone(self) -> None:
        update = {"step": 0.01, "step_spread": 0.3, "cycle_to_cycle": 0.3}
        die = fabricate(netlist(), devices(update=update), seed=2)
        start = die.write(everywhere(die, 50e-6), tolerance=0.01, budget=20)
        found = start.write(everywhere(die, 60e-6), tolerance=0.01, budget=20)
        within = np.abs(both(found.written) - 60e-6) <= 0.01 * WINDOW
        assert found.report.missed == int((~within).sum()) < 20
        # One pulse moves a nominal device by 0.5 uS in the middle.
        assert found.report.writes > 4000 * 10e-6 / 0.5e-6 * 0.8


POWER = {"kind": "power_law", "start": 20.0, "mean": 0.05, "std": 0.0, "until": "1e6"}


class TestAged:
    def test_a_power_law_without_spread_is_exact(self) -> None:
        die = fabricate(netlist(density=0.5), devices(drift=POWER), seed=1)
        for age in (0.0, 5.0, 20.0):
            np.testing.assert_array_equal(both(die.aged(age).values.crossbars), both(die.written))
        later = die.aged(3600.0)
        expected = both(die.written) * (3600 / 20) ** -0.05
        np.testing.assert_allclose(both(later.values.crossbars), expected, rtol=1e-14)
        np.testing.assert_array_equal(both(later.written), both(die.written))

    @pytest.mark.parametrize(
        "drift",
        [
            {"kind": "power_law", "start": 1.0, "mean": 0.05, "std": 0.02},
            {"kind": "logarithmic", "mean": "-0.1u", "std": ["0.4u", "0.04u"]},
            {
                "kind": "relaxation",
                "steps": [
                    {"age": 1.0, "sigma": "1u"},
                    {"age": 1e3, "sigma": "2u"},
                    {"age": 1e5, "sigma": "4u"},
                ],
            },
        ],
        ids=["power law", "logarithmic", "relaxation"],
    )
    def test_two_times_are_their_sum(self, drift: dict[str, Any]) -> None:
        die = fabricate(netlist(), devices(drift=drift, device_to_device=0.05), seed=1)
        at_once, in_parts = die.aged(700.0), die.aged(300.0).aged(400.0)
        np.testing.assert_array_equal(both(at_once.values.crossbars), both(in_parts.values.crossbars))
        assert at_once.age == in_parts.age == 700.0
        change = both(at_once.values.crossbars) - both(die.written)
        assert np.std(change) > 1e-7
        # A write draws anew, and age begins again.
        again = die.programmed(die.target)
        assert again.age == 0.0
        other = both(again.aged(700.0).values.crossbars) - both(again.written)
        if drift["kind"] == "power_law":
            np.testing.assert_array_equal(other, change)
        else:
            assert abs(np.corrcoef(change, other)[0, 1]) < 0.1

    def test_a_negative_time_and_one_beyond_the_measurements_are_refused(self) -> None:
        die = fabricate(netlist(), devices(drift=POWER))
        for wrong in (-1.0, math.inf, math.nan):
            with pytest.raises(DeviceError, match="not negative") as error:
                die.aged(wrong)
            assert error.value.field == "age"
        die.aged(1e6)
        with pytest.raises(DeviceError, match="holds up to 1e\\+06 s") as error:
            die.aged(9e5).aged(2e5)
        assert error.value.value == pytest.approx(1.1e6)

    def test_what_pulses_left_a_read_off_by_stays(self) -> None:
        update = {"step": 0.01, "write_noise": 2.0}
        die = fabricate(netlist(), devices(update=update, drift=POWER), seed=1)
        die = die.pulsed({NAME: (np.ones((40, 50)), np.ones((40, 50)))})
        off = both(die.values.crossbars) - both(die.written)
        assert np.std(off) > 0.5e-6
        for age in (0.0, 3600.0):
            later = die.aged(age)
            drifted = both(die.written) * max(1.0, age / 20) ** -0.05
            np.testing.assert_allclose(both(later.values.crossbars) - drifted, off, atol=1e-12)


# Pulses ------------------------------------------------------------------------------------------

CURVES: dict[str, dict[str, Any]] = {
    "linear": {"step": 0.02, "step_spread": 0.3, "up_down": 0.1, "up_down_spread": 0.05},
    "slopes": {
        "step": 0.05,
        "slope_up": 0.4,
        "slope_down": 0.7,
        "slope_spread": 0.1,
        "bound_up_spread": 0.2,
        "bound_down_spread": 0.2,
        "cycle_to_cycle": 0.5,
    },
    "soft bounds": {
        "kind": "soft_bounds",
        "step": 0.1,
        "step_spread": 0.5,
        "step_law": "lognormal",
        "bound_up_spread": 0.1,
        "cycle_to_cycle": 0.3,
        "multiplicative": True,
    },
    "exponential": {
        "kind": "exponential",
        "step": 0.02,
        "exponential": {
            "amplitude_up": 0.3,
            "amplitude_down": 0.1,
            "rate_up": 1.2,
            "rate_down": 2.0,
            "a": 0.9,
            "b": 0.1,
        },
        "cycle_to_cycle": 0.2,
    },
}
SHAPE = (4, 5)


def array_of(
    curve: dict[str, Any], *, shape: tuple[int, int] = SHAPE, **more: Any
) -> tuple[Any, DeviceArray]:
    spec = devices(update=curve, **more).crossbar
    return spec.update, fabricated(spec, shape, (LOW, HIGH), lambda what: stream(5, what))


def start_of(array: DeviceArray, seed: int = 1) -> FloatArray:
    """Conductances that a write may have left."""
    return array.reached(np.random.default_rng(seed).uniform(LOW, HIGH, array.shape))


def counts_of(shape: tuple[int, int] = SHAPE, most: int = 60) -> Any:
    return np.random.default_rng(2).integers(-most, most + 1, shape)


def twin(spec: Any, array: DeviceArray, g: FloatArray, counts: Any, normals: FloatArray) -> FloatArray:
    """One device after the other, one pulse after the other."""
    c, half = array.update, 0.5 * WINDOW
    assert c is not None
    found = g.copy()
    place = 0
    for j, i in np.ndindex(g.shape):
        factor = 1.0 if array.factor is None else max(array.factor[j, i], 1e-9)
        w = (g[j, i] / factor - LOW) / half - 1
        up = counts[j, i] > 0
        for _ in range(abs(counts[j, i])):
            if spec.exponential is not None:
                e = spec.exponential
                z = e.a * w + e.b
                f = 1 - (
                    e.amplitude_up * math.exp(e.rate_up * z)
                    if up
                    else e.amplitude_down * math.exp(-e.rate_down * z)
                )
                f = max(f, 0.0)
            else:
                f = 1 - c.slope_up[j, i] * w if up else 1 + c.slope_down[j, i] * w
            step = c.step_up[j, i] if up else c.step_down[j, i]
            move = step * f if up else -step * f
            if spec.cycle_to_cycle:
                move += spec.cycle_to_cycle * (abs(move) if spec.multiplicative else step) * normals[place]
                place += 1
            w = min(max(w + move, c.low[j, i]), c.high[j, i])
        if counts[j, i]:
            found[j, i] = max((LOW + (w + 1) * half) * factor, 0.0)
            if array.stuck is not None and array.stuck[j, i]:
                found[j, i] = array.stuck_at[j, i]  # type: ignore[index]
    return found


MISMATCH = {"device_to_device": 0.1, "stuck": {"on": 0.1, "anywhere": 0.1}}


def pulsed_cases() -> list[FloatArray]:
    found = []
    for curve in CURVES.values():
        spec, array = array_of(curve, **MISMATCH)
        found.append(pulsed_half(spec, array, start_of(array), counts_of(), stream(9, "pulses")))
    return found


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "interpreted"])
def test_pulses_are_those_of_the_slow_twin(compiled: bool) -> None:
    cases = pulsed_cases() if compiled else interpreted(__file__, "pulsed_cases")
    for curve, found in zip(CURVES.values(), cases, strict=True):
        spec, array = array_of(curve, **MISMATCH)
        counts = counts_of()
        normals = stream(9, "pulses").standard_normal(int(np.abs(counts).sum()))
        expected = twin(spec, array, start_of(array), counts, normals)
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-11, atol=1e-18)
        assert np.abs(expected - start_of(array)).max() > 5e-6


class TestPulses:
    @pytest.mark.parametrize("kind", CURVES)
    def test_end_at_each_device_s_own_bounds(self, kind: str) -> None:
        spec, array = array_of(CURVES[kind], shape=(20, 20))
        assert array.update is not None
        g = start_of(array)
        for sign, bound in ((1, array.update.high), (-1, array.update.low)):
            counts = np.full(array.shape, sign * 3000)
            found = pulsed_half(spec, array, g, counts, stream(1, "x"))
            edge = np.maximum(LOW + (bound + 1) * 0.5 * WINDOW, 0.0)
            over = sign * (found - edge)
            assert over.max() < 1e-15
            if kind == "linear":
                # All that have a step to speak of.
                steps = array.update.step_up if sign > 0 else array.update.step_down
                assert np.mean(steps > 1e-3) > 0.98
                np.testing.assert_allclose(found[steps > 1e-3], edge[steps > 1e-3], rtol=1e-12)

    def test_stuck_devices_and_those_without_a_pulse_never_move(self) -> None:
        update = CURVES["slopes"] | {"write_noise": 3.0}
        die = fabricate(
            netlist(density=0.7), devices(update=update, stuck={"off": 0.2, "anywhere": 0.2}), seed=4
        )
        array = die.arrays[NAME][0]
        assert array.stuck is not None
        before = die.written[NAME][0]
        counts = np.random.default_rng(0).integers(-9, 10, before.shape)
        later = die.pulsed({NAME: (counts, np.zeros_like(counts))})
        mask = die.netlist.crossbar(NAME).mask
        still = array.stuck | (counts == 0) | ~mask  # type: ignore[operator]
        for found in (later.written[NAME][0], later.values.crossbars[NAME][0]):
            np.testing.assert_array_equal(found[still], before[still])
            assert np.mean(found[~still] != before[~still]) > 0.99
        np.testing.assert_array_equal(later.written[NAME][1], die.written[NAME][1])  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", CURVES)
    def test_one_up_and_one_down_cancel_at_the_symmetric_point(self, kind: str) -> None:
        curve = CURVES[kind] | {"step": 1e-4, "cycle_to_cycle": 0.0, "up_down": 0.05}
        spec, array = array_of(curve, shape=(15, 15))
        assert array.update is not None
        if kind == "linear":
            # Steps that differ everywhere cancel nowhere: what is left is the bound where they push.
            end = symmetric_point(spec, array)
            rises = array.update.step_up > array.update.step_down
            w = np.where(rises, array.update.high, array.update.low)
            np.testing.assert_allclose(end, LOW + (w + 1) * 0.5 * WINDOW, rtol=1e-9)
            return
        ones = np.ones(array.shape, dtype=np.int64)

        def there_and_back(g: FloatArray) -> tuple[FloatArray, FloatArray]:
            up = pulsed_half(spec, array, g, ones, stream(1, "x"))
            return up - g, pulsed_half(spec, array, up, -ones, stream(1, "x")) - g

        step, left = there_and_back(symmetric_point(spec, array))
        inside = step > 0.1 * conductance_step(spec, (LOW, HIGH))
        assert inside.mean() > 0.8
        # To first order in the step: what is left is the step's own slope, below 3 steps of 1e-4 in w.
        assert np.abs(left / step)[inside].max() < 1e-3
        step, left = there_and_back(start_of(array))
        assert np.median(np.abs(left / np.maximum(step, 1e-12))) > 0.05

    def test_write_noise_is_what_reads_are_off_by_until_the_next_write(self) -> None:
        die = fabricate(netlist(), devices(update={"step": 0.01, "write_noise": 2.0}), seed=4)
        ones = np.ones((40, 50))
        first = die.pulsed({NAME: (ones, ones)})
        off = both(first.values.crossbars) - both(first.written)
        unit = 0.01 * 0.5 * WINDOW
        assert off.std() == pytest.approx(2 * unit, rel=4 / math.sqrt(8000))
        # The pulses themselves had no noise, and the next ones go on from there.
        np.testing.assert_allclose(both(first.written) - both(die.written), unit, rtol=1e-9)
        some = np.zeros((40, 50))
        some[:20] = 1
        second = first.pulsed({NAME: (some, some)})
        np.testing.assert_allclose(
            both(second.written) - both(first.written), unit * np.tile(some.ravel(), 2), atol=1e-18
        )
        kept = np.tile(some.ravel(), 2) == 0
        a, b = both(first.values.crossbars), both(second.values.crossbars)
        np.testing.assert_array_equal(a[kept], b[kept])
        assert abs(np.corrcoef(off[~kept], (b - both(second.written))[~kept])[0, 1]) < 0.1

    def test_energy_and_number(self) -> None:
        pulse = {"voltage": 1.5, "width": "100n"}
        die = fabricate(netlist(density=0.5), devices(update={"step": 1e-4}, pulse=pulse), seed=4)
        mask = die.netlist.crossbar(NAME).mask
        counts = np.where(mask, np.random.default_rng(0).integers(-3, 4, (40, 50)), 0)  # type: ignore[arg-type]
        later = die.pulsed({NAME: (counts, counts)})
        assert later.report.writes == 2 * int(np.abs(counts).sum())
        expected = 1.5**2 * 100e-9 * sum((np.abs(counts) * half).sum() for half in later.written[NAME])  # type: ignore[operator]
        assert later.report.energy == pytest.approx(expected, rel=1e-12)

    def test_need_a_curve(self) -> None:
        die = fabricate(netlist(), devices(programming=NOISE))
        with pytest.raises(DeviceError, match="has no update curve"):
            die.pulsed({NAME: (np.ones((40, 50)), np.ones((40, 50)))})


# Draws -------------------------------------------------------------------------------------------

READS = [{"kind": "gaussian", "relative": 0.02}, {"kind": "flicker", "read_time": "1u", "relative": 0.01}]


def test_a_die_is_the_same_whatever_is_drawn_before() -> None:
    update = CURVES["slopes"] | {"write_noise": 1.0}
    options = {"update": update, "read_noise": READS, "drift": POWER | {"std": 0.01}, "device_to_device": 0.1}
    circuit = netlist()
    counts = {NAME: (counts_of((40, 50)), counts_of((40, 50)))}
    quiet = fabricate(circuit, devices(**options), seed=6)
    busy = fabricate(circuit, devices(**options), seed=6)
    busy.read("a", 1)
    busy.aged(1e3).read("b")
    busy.write(everywhere(busy, 5e-5))
    busy.pulsed({"hidden-out": (np.ones((50, 4)), np.ones((50, 4)))})
    symmetric_point(busy.card.crossbar.update, busy.arrays[NAME][0])  # type: ignore[arg-type]
    a, b = quiet.pulsed(counts), busy.pulsed(counts)
    np.testing.assert_array_equal(both(a.values.crossbars), both(b.values.crossbars))
    np.testing.assert_array_equal(
        both(a.aged(500.0).read("k").crossbars), both(b.aged(500.0).read("k").crossbars)
    )
    # Another key, another read; another section of the card, the same die.
    assert np.mean(both(a.read("k").crossbars) != both(a.read("l").crossbars)) > 0.9
    less = fabricate(circuit, devices(device_to_device=0.1), seed=6)
    np.testing.assert_array_equal(both(less.mismatch), both(quiet.mismatch))


def test_slow_noise_is_shared_between_fast_reads() -> None:
    die = fabricate(netlist(), devices(read_noise=READS), seed=6).aged(10.0)
    slow = die.read("step", 1, fast=False)
    first, second = (die.read("step", 1, phase, values=slow) for phase in ("free", "nudged"))
    a, b, c = (both(values.crossbars) / both(die.written) - 1 for values in (slow, first, second))
    growth = math.sqrt(math.log((10.0 + 1e-6) / 2e-6))
    assert a.std() == pytest.approx(0.01 * growth, rel=0.05)
    assert (b - a).std() == pytest.approx(0.02, rel=0.06)
    assert np.corrcoef(b, c)[0, 1] > 0.7
    assert abs(np.corrcoef(b - a, c - a)[0, 1]) < 0.1


class TestCopies:
    @pytest.mark.parametrize(
        "sections",
        [
            {"crossbar": {"device_to_device": 0.1}},
            {"crossbar": {"range": ["1u", "100u"], "programming": "1u"}},
            {"crossbar": {"update": {"step": 0.01, "cycle_to_cycle": 0.3}}},
            {"crossbar": {"range": ["1u", "100u"], "drift": POWER | {"std": 0.01}}},
            {"crossbar": {"read_noise": READS}},
            {"crossbar": {"stuck": {"on": 0.05}}},
            {"amplifier": {"copy_gain": 0.1}},
            {"passive": {"resistor": 0.1}},
        ],
        ids=["mismatch", "writes", "pulses", "drift", "reads", "stuck", "gain", "leaks"],
    )
    def test_differ_from_the_first_network(self, sections: dict[str, Any]) -> None:
        die = fabricate(netlist(), card(**sections), seed=2)
        if "amplifier" in sections:
            # Only what is set from the first network's gains differs.
            assert die.copy is not None
            assert np.std(die.copy_slope["hidden.buffer"]) == pytest.approx(0.1, rel=0.5)
            return
        die = die.write(everywhere(die, 5e-5))
        if "update" in sections.get("crossbar", {}):
            die = die.pulsed({NAME: (np.full((40, 50), 20), np.full((40, 50), -20))})
        die = die.aged(1e4)
        copy, first = die.copy, die.values
        assert copy is not None
        second = copy.values
        if "read_noise" in sections.get("crossbar", {}):
            first, second = die.read("k"), copy.read("k")
        if "passive" in sections:
            a, b = (values.tables["resistor"]["conductance"] for values in (first, second))
        else:
            a, b = both(first.crossbars), both(second.crossbars)
        assert np.mean(a != b) > 0.05
        assert die.dual is not None
        assert die.without_copy().dual is None
        if "update" not in sections.get("crossbar", {}):
            np.testing.assert_array_equal(both(copy.target), both(die.target))

    def test_an_ideal_die_has_none(self) -> None:
        assert fabricate(netlist()).copy is None
        for sections in ({"amplifier": {"offset": "1m"}}, {"adc": {"bits": 8, "range": [-1, 1]}}):
            assert fabricate(netlist(), card(**sections), seed=1).copy is None

    def test_correlate_with_nothing(self) -> None:
        die = fabricate(netlist(), devices(device_to_device=0.1), seed=2)
        assert die.copy is not None
        assert abs(np.corrcoef(both(die.mismatch), both(die.copy.mismatch))[0, 1]) < 0.1


# Every element -----------------------------------------------------------------------------------

SPREADS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "device_to_device": ({"crossbar": {"device_to_device": 0.05}}, {"crossbar"}),
    "gain": (
        {"amplifier": {"gain": 0.05}},
        {
            "bank.gain",
            "bank.back_gain",
            "sense",
            "buffer.gain",
            "vcvs.gain",
            "cccs.gain",
            "vccs.transconductance",
            "ccvs.transresistance",
        },
    ),
    "back_gain": ({"amplifier": {"back_gain": 0.05}}, {"bank.back_gain"}),
    "saturation": ({"amplifier": {"saturation": 0.05}}, {"bank.saturation", "buffer.saturation"}),
    "offset": ({"amplifier": {"offset": "1m"}}, {"bank.offset", "buffer.offset"}),
    "input pair": (
        {"amplifier": {"input_pair": {"width": "1u", "length": "1u"}}, "transistor": {"threshold": "4n"}},
        {"bank.offset", "buffer.offset"},
    ),
    "open loop": ({"amplifier": {"open_loop": 1000}}, {"bank.gain", "buffer.gain", "vcvs.gain"}),
    "diode current": ({"diode": {"saturation_current": 0.1}}, {"diode.saturation_current"}),
    "diode slope": ({"diode": {"slope_voltage": 0.05}}, {"diode.slope_voltage"}),
    "supply": ({"supply": {"voltage": 0.01}}, {"vsource.voltage"}),
    "resistor": ({"passive": {"resistor": 0.05}}, {"resistor.conductance"}),
    "capacitor": ({"passive": {"capacitor": 0.05}}, {"capacitor.capacitance"}),
}
UNSPREAD = {
    "inductor.inductance",
    "coupling.coefficient",
    "ideal_diode.conductance",
    "isource.current",
    *(
        f"diode.{column}"
        for column in (
            "parallel_conductance",
            "breakdown_voltage",
            "breakdown_slope",
            "junction_capacitance",
            "junction_potential",
            "grading",
            "depletion_limit",
            "transit_time",
        )
    ),
}
"""What no card spreads."""


def columns_of(die: Chip) -> dict[str, list[FloatArray]]:
    """Every value of a die, by the kind of its element and its column."""
    found: dict[str, list[FloatArray]] = {}
    for kind, columns in die.values.tables.items():
        for column, values in columns.items():
            found.setdefault(f"{kind}.{column}", []).append(np.asarray(values))
    for columns in die.values.banks.values():
        for column, values in columns.items():
            found.setdefault(f"bank.{column}", []).append(values)
    found["sense"] = list(die.values.senses.values())
    found["crossbar"] = [half for pair in die.values.crossbars.values() for half in pair if half is not None]
    return found


def changed(a: Chip, b: Chip) -> set[str]:
    x, y = columns_of(a), columns_of(b)
    return {
        name for name in x if any(not np.array_equal(p, q) for p, q in zip(x[name], y[name], strict=True))
    }


@pytest.mark.parametrize("spread", SPREADS)
def test_each_spread_touches_its_own_columns(spread: str) -> None:
    circuit = random_netlist(3, kinds=EVERYTHING)
    sections, columns = SPREADS[spread]
    assert changed(fabricate(circuit, card(**sections), seed=1), fabricate(circuit)) == columns


def test_mismatch_reaches_every_element() -> None:
    """Every single value, but zeros and infinities that are spread in proportion, and the inputs."""
    circuit = random_netlist(3, kinds=EVERYTHING)
    sections: dict[str, dict[str, Any]] = {}
    for name, (given, _) in SPREADS.items():
        if name not in ("input pair", "open loop"):
            for key, values in given.items():
                sections[key] = sections.get(key, {}) | values
    die, nominal = columns_of(fabricate(circuit, card(**sections), seed=1)), columns_of(fabricate(circuit))
    for name, arrays in die.items():
        for a, b in zip(arrays, nominal[name], strict=True):
            if name in UNSPREAD:
                np.testing.assert_array_equal(a, b)
                continue
            apart = a != b
            if not name.endswith("offset"):
                apart |= (b == 0) | np.isinf(b)
            assert apart.all(), name
    reached = set.union(*(columns for _, columns in SPREADS.values()))
    assert reached | UNSPREAD == set(die)


# Time and energy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [1e-2, 1e-4])
def test_settling_time_bounds_that_of_a_feedforward_circuit(accuracy: float) -> None:
    """Never shorter than the transient's own, and no more than four times as long."""
    document = network_document(sizes=(3, 5, 4), neuron="tanh", gain=1.0)
    circuit = compile_network(parse_network(document), seed=3)
    plan, die = build_plan(circuit), fabricate(circuit, devices(device_to_device=0.1), seed=1)
    estimate = settling_time(plan, die, accuracy=accuracy)
    inputs = np.array([0.5, -0.3, 0.8])
    end = settle(plan, die.values, inputs=inputs, tolerance=1e-12)
    assert end.point is not None
    outputs = circuit.outputs.read(end.point.node_voltage)
    tolerance = accuracy * float(np.abs(outputs).max())
    took = settle(plan, die.values, inputs=inputs, tolerance=tolerance).time
    print(f"estimate {estimate:.3g} s, transient {took:.3g} s")
    assert took <= estimate <= 4 * took


def test_settling_time_is_known_in_a_simple_case() -> None:
    """Two layers of one node each: tau = C / g, twice, plus that of the amplifiers."""
    document = network_document(sizes=(1, 1, 1))
    for layer in document["layers"].values():
        layer["capacitance"] = "2p"
    document["layers"]["hidden"].pop("bias")
    circuit = compile_network(parse_network(document), seed=3)
    plan, die = build_plan(circuit), fabricate(circuit)
    load = [20e-6 + sum(float(g[0, 0]) for g in die.written[name] if g is not None) for name in die.written]
    expected = sum(2e-12 / g for g in load) * math.log(1e3)
    assert settling_time(plan, die, accuracy=1e-3) == pytest.approx(expected, rel=1e-12)
    slow = replace(die, card=card(amplifier={"bandwidth": "1meg"}))
    more = 2 / (2 * math.pi * 1e6) * math.log(1e3)
    assert settling_time(plan, slow, accuracy=1e-3) == pytest.approx(expected + more, rel=1e-12)
    still = replace(
        die,
        values=replace(
            die.values,
            tables=die.values.tables | {"capacitor": {"capacitance": np.zeros(2)}},  # type: ignore[operator]
        ),
    )
    assert settling_time(plan, still, accuracy=1e-3) == 0.0
    assert math.isnan(
        settling_time(build_plan(random_netlist(3)), fabricate(random_netlist(3)), accuracy=1e-3)
    )
