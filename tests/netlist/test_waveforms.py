"""Waveforms of sources: what ngspice's manual says they are, their corners, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.errors import NetlistError
from circuitsim.netlist.waveforms import Exponential, PiecewiseLinear, Pulse, Sine, Waveform

STEP, STOP = 0.5e-6, 40e-6
MICRO = 1e-6
times = st.floats(1e-9, 1e-5)
levels = st.floats(-5, 5)


@st.composite
def waveforms(draw: st.DrawFn) -> Waveform:
    """Any waveform, as a deck might have it."""
    kind = draw(st.sampled_from(["pulse", "sine", "exponential", "linear"]))
    low, high = draw(levels), draw(levels)
    if kind == "pulse":
        shape = {name: draw(times | st.none()) for name in ("rise", "fall", "width", "period")}
        count = draw(st.integers(1, 5) | st.none())
        return Pulse(initial=low, pulsed=high, delay=draw(st.floats(-1e-5, 1e-5)), count=count, **shape)
    if kind == "sine":
        return Sine(
            offset=low,
            amplitude=high,
            frequency=draw(st.floats(1e3, 1e6) | st.none()),
            delay=draw(times),
            damping=draw(st.floats(0, 1e6)),
            phase=draw(st.floats(-180, 180)),
        )
    if kind == "exponential":
        names = ("rise_delay", "rise_time", "fall_delay", "fall_time")
        return Exponential(initial=low, pulsed=high, **{name: draw(times | st.none()) for name in names})
    points = sorted(draw(st.lists(times, min_size=1, max_size=6, unique=True)))
    values = tuple(draw(levels) for _ in points)
    again = draw(st.booleans()) and len(points) > 1
    return PiecewiseLinear(
        times=tuple(points), values=values, repeat_from=points[0] if again else None, delay=draw(times)
    )


def test_pulse_defaults_come_from_the_analysis() -> None:
    pulse = Pulse(initial=0, pulsed=1).resolved(STEP, STOP)
    assert (pulse.rise, pulse.fall, pulse.width, pulse.period) == (STEP, STEP, STOP, STOP)
    assert pulse.value([0.0, STEP / 2, STEP, STOP]).tolist() == [0.0, 0.5, 1.0, 1.0]


def test_zero_counts_as_not_given() -> None:
    zeros = Pulse(initial=0, pulsed=1, rise=0, fall=0, width=0, period=0, count=0)
    assert zeros.resolved(STEP, STOP) == Pulse(initial=0, pulsed=1).resolved(STEP, STOP)
    assert Sine(offset=0, amplitude=1, frequency=0).resolved(STEP, STOP).frequency == 1 / STOP
    late = Exponential(initial=0, pulsed=1, rise_delay=2 * MICRO).resolved(STEP, STOP)
    assert late.fall_delay == 2 * MICRO + STEP


def test_pulse_repeats_until_its_count() -> None:
    pulse = Pulse(
        initial=0,
        pulsed=1,
        delay=MICRO,
        rise=2 * MICRO,
        fall=3 * MICRO,
        width=4 * MICRO,
        period=10 * MICRO,
        count=2,
    ).resolved(STEP, STOP)
    at = np.array([0, 2, 4, 8.5, 10.5, 12, 15, 22, 25]) * MICRO
    assert pulse.value(at) == pytest.approx([0, 0.5, 1, 0.5, 0, 0.5, 1, 0, 0], abs=1e-12)
    corners = [round(1e6 * corner, 9) for corner in pulse.corners(STOP)]
    assert corners == [1, 3, 7, 10, 11, 13, 17, 20, 21]


def test_sine_rests_at_its_phase_before_the_delay() -> None:
    sine = Sine(offset=1, amplitude=2, frequency=1e5, delay=3 * MICRO, damping=1e5, phase=30)
    early, later = sine.value(0.0), sine.value(3 * MICRO + 2.5 * MICRO)
    assert early == pytest.approx(1 + 2 * math.sin(math.pi / 6))
    assert later == pytest.approx(1 + 2 * math.sin(math.pi / 6 + math.pi / 2) * math.exp(-0.25))
    assert list(sine.corners(STOP)) == [3 * MICRO]


def test_exponential_rises_then_falls() -> None:
    wave = Exponential(
        initial=0, pulsed=1, rise_delay=2 * MICRO, rise_time=3 * MICRO, fall_delay=10 * MICRO, fall_time=MICRO
    )
    assert wave.value(MICRO) == 0
    assert wave.value(5 * MICRO) == pytest.approx(1 - math.exp(-1))
    assert wave.value(11 * MICRO) == pytest.approx(-math.expm1(-3) - 1 + math.exp(-1))


def test_piecewise_linear_holds_its_ends_and_jumps() -> None:
    wave = PiecewiseLinear(times=(1, 2, 2, 3), values=(1, 3, 7, 5))
    assert wave.value([0, 1, 1.5, 2, 2 + 1e-9, 2.5, 3, 9]) == pytest.approx(
        [1, 1, 2, 3, 7, 6, 5, 5], abs=1e-8
    )
    assert list(wave.corners(10)) == [1, 2, 3]


def test_piecewise_linear_repeats_from_a_point() -> None:
    wave = PiecewiseLinear(times=(0, 1, 2, 3), values=(0, 1, 0, 5), repeat_from=1, delay=3)
    assert wave.value([0, 3, 4, 5, 5.5, 6]) == pytest.approx([0, 0, 1, 0, 2.5, 5])
    # What is played again starts with the value at 1.
    assert wave.value([6.5, 7, 7.5, 8, 8.5]) == pytest.approx([0.5, 0, 2.5, 5, 0.5])
    assert list(wave.corners(9)) == [3, 4, 5, 6, 7, 8, 9]


def test_corners_of_endless_pulses_cost_nothing_until_asked_for() -> None:
    fast = Pulse(initial=0, pulsed=1, rise=1e-12, fall=1e-12, width=1e-9, period=1e-8).resolved(1e-12, 1e6)
    first = list(itertools.islice(fast.corners(1e6), 5))
    assert first == pytest.approx([1e-12, 1.001e-9, 1.002e-9, 1e-8, 1.0001e-8])


@given(waveforms())
def test_between_corners_a_waveform_is_smooth(waveform: Waveform) -> None:
    wave = waveform.resolved(STEP, STOP)
    corners = [0.0, *itertools.islice(wave.corners(STOP), 40)]
    for before, after in itertools.pairwise(corners):
        gap = after - before
        if gap < 1e-8 * STOP:
            continue
        inside = wave.value(before + gap * np.linspace(1e-6, 1 - 1e-6, 9))
        assert np.all(np.isfinite(inside))
        if not isinstance(wave, (Sine, Exponential)):
            # Straight lines: no point leaves the line through its neighbours.
            assert np.abs(np.diff(inside, 2)).max() < 1e-6


@given(waveforms())
def test_corners_rise_and_stay_inside(waveform: Waveform) -> None:
    wave = waveform.resolved(STEP, STOP)
    corners = list(itertools.islice(wave.corners(STOP), 200))
    assert all(0 < corner <= STOP for corner in corners)
    assert all(a < b for a, b in itertools.pairwise(corners))


@given(waveforms())
def test_arguments_make_the_same_waveform_again(waveform: Waveform) -> None:
    arguments = waveform.arguments()
    if isinstance(waveform, PiecewiseLinear):
        again: Waveform = PiecewiseLinear(
            times=arguments[::2],
            values=arguments[1::2],
            repeat_from=waveform.repeat_from,
            delay=waveform.delay,
        )
    else:
        names = [name for name in type(waveform).__dataclass_fields__ if name != "keyword"]
        again = type(waveform)(**dict(zip(names, arguments, strict=True)))
    at = np.linspace(0, STOP, 50)
    assert np.array_equal(again.resolved(STEP, STOP).value(at), waveform.resolved(STEP, STOP).value(at))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pulse(initial=0, pulsed=1, width=-1e-6), "PULSE.width: must not be negative"),
        (lambda: Pulse(initial=math.nan, pulsed=1), "PULSE.initial: must be finite"),
        (lambda: Exponential(initial=0, pulsed=1, fall_time=-1.0), "EXP.fall_time: must not be negative"),
        (lambda: PiecewiseLinear(times=(), values=()), "PWL: needs pairs of time and value"),
        (lambda: PiecewiseLinear(times=(0, 1), values=(1,)), "PWL: needs pairs of time and value"),
        (lambda: PiecewiseLinear(times=(1, 0), values=(1, 2)), "PWL: times must not decrease"),
        (lambda: PiecewiseLinear(times=(0, 1), values=(1, 2), repeat_from=1), "PWL.r: must be at least 0"),
        (lambda: PiecewiseLinear(times=(0, math.inf), values=(1, 2)), "PWL.times: must be finite"),
    ],
)
def test_bad_waveforms_are_named(make: object, words: str) -> None:
    with pytest.raises(NetlistError, match=words):
        make()  # type: ignore[operator]


def test_a_waveform_without_times_must_be_resolved() -> None:
    for wave in (Pulse(initial=0, pulsed=1), Sine(offset=0, amplitude=1), Exponential(initial=0, pulsed=1)):
        with pytest.raises(NetlistError, match="resolve it first"):
            wave.value(0.0)
