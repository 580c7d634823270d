"""What a source does in time: PULSE, PWL, SIN and EXP as ngspice 39 has them.

A parameter that is None or, as in SPICE, zero where zero means nothing takes a default that depends on
the step and the stop time of the analysis: `resolved` fills it in, and only then is there a value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import NetlistError

__all__ = ["Exponential", "PiecewiseLinear", "Pulse", "Sine", "Waveform"]

FloatArray = NDArray[np.float64]

_NEXT = 1e-12
"""A corner this close to the present time, relative to the corner's own time, is the present one."""


def _finite(waveform: Waveform) -> None:
    for column in fields(waveform):
        value = getattr(waveform, column.name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(math.isfinite(number) for number in numbers):
            raise NetlistError("must be finite", object=waveform.keyword, field=column.name, value=value)


def _not_negative(waveform: Waveform, *names: str) -> None:
    for name in names:
        value = getattr(waveform, name)
        if value is not None and value < 0:
            raise NetlistError("must not be negative", object=waveform.keyword, field=name, value=value)


def _first_after(time: float, candidates: list[float]) -> float:
    later = [corner for corner in candidates if corner - time > _NEXT * max(abs(corner), abs(time))]
    return min(later, default=math.inf)


class _Corners(ABC):
    """Points where a waveform or its slope jumps, and no more of them than are asked for."""

    @abstractmethod
    def next_corner(self, time: float) -> float:
        """Return the first corner after a time [s]; infinity for none."""

    def corners(self, stop: float) -> Iterator[float]:
        """Yield the corners in (0, stop], one by one: a fast pulse may have very many."""
        corner = self.next_corner(0.0)
        while corner <= stop:
            yield corner
            corner = self.next_corner(corner)


@dataclass(frozen=True, kw_only=True)
class Pulse(_Corners):
    """PULSE(initial pulsed delay rise fall width period count), V or A and s.

    Zero or None: rise and fall take the step, width and period the stop time, count no end.
    """

    keyword: ClassVar[str] = "PULSE"
    initial: float
    pulsed: float
    delay: float = 0.0
    rise: float | None = None
    fall: float | None = None
    width: float | None = None
    period: float | None = None
    count: float | None = None

    def __post_init__(self) -> None:
        _finite(self)
        _not_negative(self, "rise", "fall", "width", "period", "count")

    def arguments(self) -> tuple[float, ...]:
        """Return the numbers in the order of the deck, undefined ones as 0."""
        given = (self.rise, self.fall, self.width, self.period, self.count)
        return (self.initial, self.pulsed, self.delay, *(value or 0.0 for value in given))

    def resolved(self, step: float, stop: float) -> Pulse:
        return replace(
            self,
            rise=self.rise or step,
            fall=self.fall or step,
            width=self.width or stop,
            period=self.period or stop,
            count=self.count or math.floor(1e15),
        )

    def value(self, time: ArrayLike) -> FloatArray:
        rise, width, fall, period, count = self.shape()
        since = np.asarray(time, dtype=np.float64) - self.delay
        inside = since > period
        phase = np.where(inside, since - period * np.floor(since / period), since)
        up = self.initial + (self.pulsed - self.initial) * phase / rise
        down = self.pulsed + (self.initial - self.pulsed) * (phase - (rise + width)) / fall
        value = np.where(phase < rise, up, np.where(phase <= rise + width, self.pulsed, down))
        low = (phase <= 0) | (phase >= rise + width + fall) | (since > count * period)
        return np.where(low, self.initial, value)

    def next_corner(self, time: float) -> float:
        """Return the first corner after ``time``, or infinity."""
        rise, width, fall, period, count = self.shape()
        number = max(0.0, math.floor((time - self.delay) / period) - 1.0)
        ends = [phase for phase in (0.0, rise, rise + width, rise + width + fall) if phase <= period]
        candidates = []
        for k in range(4):
            if number + k <= count:
                start = self.delay + (number + k) * period
                candidates += [start + phase for phase in (ends if number + k < count else ends[:1])]
        return _first_after(time, candidates)

    def shape(self) -> tuple[float, float, float, float, float]:
        """Return rise, width, fall, period and count of a resolved pulse."""
        shape = (self.rise, self.width, self.fall, self.period, self.count)
        if any(value is None for value in shape):
            raise NetlistError("has defaults that depend on the analysis: resolve it first", object="PULSE")
        return shape  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Sine(_Corners):
    """SIN(offset amplitude frequency delay damping phase), V or A, Hz, s, 1/s, degrees.

    Zero or no frequency: one period in the stop time. Before the delay: the value at its start.
    """

    keyword: ClassVar[str] = "SIN"
    offset: float
    amplitude: float
    frequency: float | None = None
    delay: float = 0.0
    damping: float = 0.0
    phase: float = 0.0

    def __post_init__(self) -> None:
        _finite(self)

    def arguments(self) -> tuple[float, ...]:
        """Return the numbers in the order of the deck, undefined ones as 0."""
        return (self.offset, self.amplitude, self.frequency or 0.0, self.delay, self.damping, self.phase)

    def resolved(self, step: float, stop: float) -> Sine:
        return replace(self, frequency=self.frequency or 1.0 / stop)

    def value(self, time: ArrayLike) -> FloatArray:
        if self.frequency is None:
            raise NetlistError("has defaults that depend on the analysis: resolve it first", object="SIN")
        since = np.maximum(np.asarray(time, dtype=np.float64) - self.delay, 0.0)
        angle = 2 * math.pi * self.frequency * since + math.radians(self.phase)
        return self.offset + self.amplitude * np.sin(angle) * np.exp(-since * self.damping)

    def next_corner(self, time: float) -> float:
        """Return the first corner after ``time``, or infinity."""
        return _first_after(time, [self.delay])


@dataclass(frozen=True, kw_only=True)
class Exponential(_Corners):
    """EXP(initial pulsed rise_delay rise_time fall_delay fall_time), V or A and s.

    Zero or None: the delay of the rise and both time constants take the step; the fall starts one
    step after the rise.
    """

    keyword: ClassVar[str] = "EXP"
    initial: float
    pulsed: float
    rise_delay: float | None = None
    rise_time: float | None = None
    fall_delay: float | None = None
    fall_time: float | None = None

    def __post_init__(self) -> None:
        _finite(self)
        _not_negative(self, "rise_delay", "rise_time", "fall_delay", "fall_time")

    def arguments(self) -> tuple[float, ...]:
        """Return the numbers in the order of the deck, undefined ones as 0."""
        given = (self.rise_delay, self.rise_time, self.fall_delay, self.fall_time)
        return (self.initial, self.pulsed, *(value or 0.0 for value in given))

    def resolved(self, step: float, stop: float) -> Exponential:
        rise_delay = self.rise_delay or step
        return replace(
            self,
            rise_delay=rise_delay,
            rise_time=self.rise_time or step,
            fall_delay=self.fall_delay or rise_delay + step,
            fall_time=self.fall_time or step,
        )

    def value(self, time: ArrayLike) -> FloatArray:
        rise_delay, rise_time, fall_delay, fall_time = self.shape()
        t = np.asarray(time, dtype=np.float64)
        change = self.pulsed - self.initial
        up = -change * np.expm1(-np.maximum(t - rise_delay, 0.0) / rise_time)
        down = change * np.expm1(-np.maximum(t - fall_delay, 0.0) / fall_time)
        # A fall that is set before the rise waits for it.
        started = t > rise_delay
        return self.initial + np.where(started, up + np.where(t > fall_delay, down, 0.0), 0.0)

    def next_corner(self, time: float) -> float:
        """Return the first corner after ``time``, or infinity."""
        rise_delay, _, fall_delay, _ = self.shape()
        return _first_after(time, [rise_delay, max(rise_delay, fall_delay)])

    def shape(self) -> tuple[float, float, float, float]:
        """Return delay and time of the rise, delay and time of the fall."""
        shape = (self.rise_delay, self.rise_time, self.fall_delay, self.fall_time)
        if any(value is None for value in shape):
            raise NetlistError("has defaults that depend on the analysis: resolve it first", object="EXP")
        return shape  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class PiecewiseLinear(_Corners):
    """PWL(time value ...) with r= (``repeat_from``) and td= (``delay``), s and V or A.

    The first value holds before the first point, the last after the last, or the part from
    ``repeat_from`` on is played again and again. Two points at one time are a jump.
    """

    keyword: ClassVar[str] = "PWL"
    times: tuple[float, ...]
    values: tuple[float, ...]
    repeat_from: float | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        _finite(self)
        if not self.times or len(self.times) != len(self.values):
            raise NetlistError("needs pairs of time and value", object="PWL", value=self.arguments())
        for before, after in zip(self.times, self.times[1:], strict=False):
            if after < before:
                raise NetlistError("times must not decrease", object="PWL", value=after)
        if self.repeat_from is not None and not 0 <= self.repeat_from < self.times[-1]:
            raise NetlistError(
                "must be at least 0 and before the last time", object="PWL", field="r", value=self.repeat_from
            )

    def arguments(self) -> tuple[float, ...]:
        """Return times and values in the order of the deck, without r and td."""
        return tuple(number for pair in zip(self.times, self.values, strict=False) for number in pair)

    def resolved(self, step: float, stop: float) -> PiecewiseLinear:
        return self

    def value(self, time: ArrayLike) -> FloatArray:
        t = np.asarray(time, dtype=np.float64) - self.delay
        if self.repeat_from is not None:
            last = self.times[-1]
            period = last - self.repeat_from
            t = np.where(t > last, t - period * np.ceil((t - last) / period), t)
        times, values = np.array(self.times), np.array(self.values)
        # At a jump the earlier value counts, as in ngspice.
        k = np.searchsorted(times, t, side="left")
        low, high = np.clip(k - 1, 0, None), np.clip(k, None, len(times) - 1)
        span = times[high] - times[low]
        part = np.clip((t - times[low]) / np.where(span > 0, span, 1.0), 0.0, 1.0)
        return values[low] + np.where(span > 0, part, 1.0 * (k > 0)) * (values[high] - values[low])

    def next_corner(self, time: float) -> float:
        """Return the first corner after ``time``, or infinity."""
        since = time - self.delay
        last = self.times[-1]
        place = max(0, bisect_left(self.times, since) - 1)
        candidates = [self.delay + t for t in self._differing(place)]
        if self.repeat_from is not None:
            period = last - self.repeat_from
            number = max(1.0, math.floor((since - last) / period))
            first = bisect_right(self.times, self.repeat_from)
            for k in range(3):
                shift = (number + k) * period
                place = max(first, bisect_left(self.times, since - shift) - 1)
                candidates += [self.delay + shift + t for t in self._differing(place)]
        return _first_after(time, candidates)

    def _differing(self, place: int) -> list[float]:
        """Return the first few different times from a place on: the present one may be among them."""
        found: list[float] = []
        while place < len(self.times) and len(found) < 4:
            found.append(self.times[place])
            place = bisect_right(self.times, self.times[place])
        return found


Waveform = Pulse | PiecewiseLinear | Sine | Exponential
"""Any of them: ``resolved(step, stop)``, then ``value(time)``, ``next_corner(time)``, ``corners(stop)``."""
