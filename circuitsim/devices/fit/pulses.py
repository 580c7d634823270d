"""Update curves from staircases of pulses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.card_text import rounded, spice_text
from circuitsim.devices.fit.measurements import PulseData
from circuitsim.devices.fit.result import DeviceFit, Estimate, Panel, Series
from circuitsim.devices.fit.spread import (
    LEAST_DEVICES,
    Interval,
    bootstrap,
    corrected_spread,
    signed_root,
    student_quantile,
)
from circuitsim.devices.fit.staircases import Direction, Steps, directions, grouped_regression, single_steps
from circuitsim.devices.least_squares import LeastSquares, least_squares
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream

__all__ = ["UPDATES", "fit_pulses"]

Update = Literal["linear", "soft_bounds", "exponential"]
UPDATES: tuple[Update, ...] = ("linear", "soft_bounds", "exponential")

_LEAST_STEPS = 4
"""Of one device in one direction, besides those next to a bound."""
_BINS = 40
_STEEPEST = 20.0
"""Largest rate of an exponential step."""
_STRONG = 10.0
"""By how much the criterion must favour four numbers that bend the curve: readings that went astray bend it
too."""
_CLEARLY = 3.0
"""Gain of log-likelihood from which noise is taken to be in proportion to the step."""
_LARGEST = 50.0
"""Amplitude of an exponential step."""
_SHAPE_REPLICATES = 200
_SOFT_SLOPE = 0.8
"""Where steps shrink by more than this from the middle of the measured range to its end, that end is where
they vanish: a soft bound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Noise:
    """Spread of single steps: ``single`` [w], or relative to the step if ``multiplicative``; ``reading`` [w]
    of each reading. The columns (D,) are sums per device that those come from."""

    multiplicative: bool
    noisy: bool
    squares: FloatArray
    """Of weighted squared residuals."""
    readings: FloatArray
    """Of what one reading's variance adds to those."""
    scale: FloatArray
    """Of what the variance of single steps adds to those."""
    moments: FloatArray
    """(D, 2): of squared residuals, and of products of residuals that follow each other."""
    expected: FloatArray
    """(D, 2, 2): of what one step's variance and one reading's add to those."""

    def parts(self, draws: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return ``single`` and ``reading`` of resampled devices, each (R,), as signed roots."""
        reading = np.zeros(len(draws))
        if self.noisy:
            (square, product), m = self.moments[draws].sum(axis=1).T, self.expected[draws].sum(axis=1)
            determinant = m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]
            reading = (product * m[:, 0, 0] - square * m[:, 1, 0]) / determinant
        total = self.squares[draws].sum(axis=1) - reading * self.readings[draws].sum(axis=1)
        single = total / self.scale[draws].sum(axis=1)
        return signed_root(single), signed_root(reading)

    @property
    def single(self) -> float:
        return max(float(self.parts(np.arange(len(self.squares))[None, :])[0][0]), 0.0)

    @property
    def reading(self) -> float:
        return max(float(self.parts(np.arange(len(self.squares))[None, :])[1][0]), 0.0)

    def variance(self, curve: FloatArray) -> FloatArray:
        """Return the variance of steps that are ``curve`` on average."""
        single, reading = self.single, self.reading
        if not self.multiplicative:
            return np.full(len(curve), max(single**2 + 2 * reading**2, 1e-20))
        found = (single * curve) ** 2 + 2 * reading**2
        return np.maximum(found, max(1e-3 * float(found.mean()), 1e-20))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One direction, fitted: device d moves by ``coefficients[d] @ design``."""

    steps: Direction
    shape: FloatArray
    """(amplitude, rate) of an exponential step; otherwise empty."""
    design: FloatArray
    """(N, P): f alone, or 1 and u."""
    weight: FloatArray
    """(N,)"""
    coefficients: FloatArray
    """(D, P): step at u = 0, or where f is 1; and its change with u."""
    inverse: FloatArray
    """(D, P, P): of the normal equations."""

    @property
    def curve(self) -> FloatArray:
        """(N,): fitted steps."""
        found: FloatArray = np.einsum("np,np->n", self.design, self.coefficients[self.steps.device])
        return found

    @property
    def residual(self) -> FloatArray:
        return self.steps.move - self.curve

    def at(self, u: FloatArray) -> FloatArray:
        """Return the step of each kept step's device, had it started at ``u`` (N,)."""
        level = self.coefficients[self.steps.device]
        if len(self.shape):
            return level[:, 0] * _exponential(self.shape, u)
        return level[:, 0] + (level[:, 1] * u if level.shape[1] > 1 else 0.0)

    def residual_as_read(self) -> FloatArray:
        return self.steps.move - self.at(self.steps.read)

    def of_readings(self) -> tuple[FloatArray, FloatArray]:
        """Return what independent readings of variance 1 make of ``residual_as_read``: variances (N,), and
        covariances of neighbours, one for each of ``steps.neighbours()``.

        A reading enters the step that it ends, the one that it starts, and where that starts.
        """
        u, small = self.steps.start, 1e-4
        left = 1 + (self.at(u + small) - self.at(u - small)) / (2 * small)
        return 1 + left**2, -left[self.steps.neighbours() + 1]

    def covariance(self, noise: _Noise) -> FloatArray:
        """Return the covariance of each device's coefficients (D, P, P) under ``noise``."""
        side, width = self.steps, self.design.shape[1]
        pulled = self.design * self.weight[:, None]
        reading, shared_reading = self.of_readings()
        variance = noise.variance(self.curve) + noise.reading**2 * (reading - 2)
        at = side.neighbours()
        meat = np.empty((side.devices, width, width))
        for a in range(width):
            for b in range(width):
                own = np.bincount(side.device, variance * pulled[:, a] * pulled[:, b], minlength=side.devices)
                cross = pulled[at, a] * pulled[at + 1, b] + pulled[at + 1, a] * pulled[at, b]
                shared = np.bincount(side.device[at], cross * shared_reading, minlength=side.devices)
                meat[:, a, b] = own + noise.reading**2 * shared
        found: FloatArray = self.inverse @ meat @ self.inverse
        return found


def fit_pulses(
    data: PulseData, *, window: tuple[float, float] | None = None, update: Update | None = None, seed: int = 0
) -> DeviceFit:
    """Return the update curve of devices: its form, its spreads from device to device, and its noise.

    Args:
        data: staircases; see `PulseData`.
        window: conductances [S] at which w is -1 and 1. Fitted if left out: where steps vanish (soft
            bounds), where devices stop (hard bounds), or else between the mean ends of the staircases.
        update: form of the curve; by default the one with the smallest Bayesian information criterion.
        seed: of the resamples that intervals come from.

    Every device is fitted alone, by regression of its single steps on where they start. Steps that a bound
    may cut short are left out, chosen by where they start, which their own noise does not change. Where
    readings are noisy (steps that follow each other are anticorrelated) the start is predicted from the
    reading before, and the noise of readings is told from that of steps by its covariance. Spreads are
    those of the devices' estimates less what estimation errors add. Intervals hold for the window as given.

    Raises:
        DeviceError: too few pulses, pulses one way only, or steps that no update curve describes.
    """
    steps = single_steps(data)
    devices = len(data.names)
    _check(data, steps)
    fitted_window = window is None
    ends = _staircase_ends(data, steps)
    low, high = (float(ends[0].mean()), float(ends[1].mean())) if window is None else window
    if not high > low:
        raise DeviceError(
            "conductances do not rise with pulses up",
            file=data.file,
            value=f"{low:g} S to {high:g} S",
            remedy="Check which direction is up, or give --window.",
        )
    fit = _Fit(data, steps, (low, high), update, fitted_window)
    notes: list[str] = []
    window_devices = ends
    kind_of_window = ("as given", "as given")
    if fitted_window:
        window_devices, kind_of_window = fit.window_of_devices(ends)
        low, high = float(np.nanmean(window_devices[0])), float(np.nanmean(window_devices[1]))
        fit = _Fit(data, steps, (low, high), fit.kind, fitted_window, criterion=fit.criterion)
    notes += fit.notes
    if steps.gaps:
        notes.append(f"{steps.gaps} readings do not follow the one before by one pulse and make no step")
    summary = _summary(fit, window_devices if fitted_window else None, seed, data.file, data.names)
    window = (low, high)
    document, estimates = _card(data, fit, summary, window, kind_of_window, fitted_window, notes)
    return DeviceFit(
        kind="pulses",
        document=document,
        estimates=tuple(estimates),
        panels=_panels(data, fit, window, summary.own),
        finding=_finding(fit, summary, devices),
        devices=devices,
        cycles=data.cycles,
        readings=len(data),
        notes=tuple(notes),
        criterion=fit.criterion,
    )


def _check(data: PulseData, steps: Steps) -> None:
    for up, name in ((True, "up"), (False, "down")):
        count = np.bincount(steps.device[steps.up == up], minlength=len(data.names))
        if not count.any():
            raise DeviceError(
                f"there is no pulse {name}",
                file=data.file,
                remedy="An update curve needs staircases up and down, each read after every pulse.",
            )
        worst = int(np.argmin(count))
        if count[worst] < _LEAST_STEPS + 2:
            raise DeviceError(
                f"too few pulses {name} that follow a reading one pulse before: at least {_LEAST_STEPS + 2} "
                "are needed",
                file=data.file,
                object=f"device {data.names[worst]}",
                value=int(count[worst]),
                remedy="Measure longer staircases, read after every pulse, or leave the device out.",
            )


def _staircase_ends(data: PulseData, steps: Steps) -> tuple[FloatArray, FloatArray]:
    """Return where each device's staircases down and up end (D,) S."""
    up, down = directions(steps, data.conductance, len(data.names))
    return -down.final, up.final


class _Fit:
    """Curves of all devices over one window."""

    def __init__(
        self,
        data: PulseData,
        steps: Steps,
        window: tuple[float, float],
        update: Update | None,
        fitted_window: bool,
        criterion: dict[str, float] | None = None,
    ) -> None:
        low, high = window
        self.window = window
        self.notes: list[str] = []
        w = 2 * (data.conductance - low) / (high - low) - 1
        whole = directions(steps, w, len(data.names))
        for side in whole:
            count = np.bincount(side.device[side.kept], minlength=side.devices)
            worst = int(np.argmin(count))
            if count[worst] < _LEAST_STEPS:
                raise DeviceError(
                    f"too few pulses {side.name} away from the device's bounds: at least {_LEAST_STEPS} "
                    "are needed",
                    file=data.file,
                    object=f"device {data.names[worst]}",
                    value=int(count[worst]),
                    remedy="Use shorter or weaker pulses, or leave the device out.",
                )
        self.whole = whole
        self.steps = tuple(side.only_kept() for side in whole)
        self.criterion: dict[str, float] = {}
        # First with equal weights, to see the noise; then with the weights that it asks for.
        free = [_fitted(side, "slopes", np.empty(0), None) for side in self.steps]
        noise = _noise(free)
        shapes, form = self._choose(noise, update, fitted_window)
        sides = [_fitted(s, form, shape, None) for s, shape in zip(self.steps, shapes, strict=True)]
        noise = _noise(sides)
        if noise.multiplicative:
            for _ in range(2):
                shapes, form = self._choose(noise, update, fitted_window, sides)
                sides = [
                    _fitted(s, form, shape, noise.variance(old.curve))
                    for s, shape, old in zip(self.steps, shapes, sides, strict=True)
                ]
                noise = _noise(sides)
        self.form = form
        self.noise = noise
        self.sides = sides
        if criterion is not None:
            self.criterion = criterion
        self.kind: Update = "linear" if form in ("constant", "slopes") else form  # type: ignore[assignment]

    def _choose(
        self,
        noise: _Noise,
        update: Update | None,
        fitted_window: bool,
        sides: list[_Side] | None = None,
    ) -> tuple[list[FloatArray], str]:
        """Return the shape of each direction's curve and its form, by the information criterion."""
        variances = []
        lines = []
        for number, side in enumerate(self.steps):
            old = _fitted(side, "slopes", np.empty(0), None) if sides is None else sides[number]
            variances.append(noise.variance(old.curve))
            lines.append(_fitted(side, "slopes", np.empty(0), variances[-1]))
        bins = [_Bins.of(side, variance) for side, variance in zip(self.steps, variances, strict=True)]
        slope, error = np.array([_mean_slope(line, line.covariance(noise)) for line in lines]).T
        straight = np.array([b.misfit(b.start) for b in bins])
        bent = np.array([_bent_misfit(b) for b in bins])
        size = sum(len(b.start) - 2 * b.devices for b in bins)
        # Devices differ by more than their own lines: what no form explains is no evidence for one.
        scale = max(1.0, min(straight.sum(), bent.sum()) / max(size, 1))
        price = np.log(max(size, 2))
        # All relative to each device's own line.
        criterion = {
            "constant": float(np.sum((slope / error) ** 2)),
            "slopes": float(2 * price),
            "soft_bounds": float(np.sum(((slope - 1) / error) ** 2)),
            "exponential": float((bent - straight).sum() / scale + 4 * price + _STRONG),
        }
        none = np.empty(0)
        bounded = any(side.bounded for side in self.whole)
        if fitted_window:
            # Soft bounds place the window where steps vanish, so the slopes over the measured range tell.
            soft = not bounded and float(min(slope)) >= _SOFT_SLOPE
            criterion["soft_bounds"] = criterion["slopes"] if soft else np.inf
            if soft:
                criterion["slopes"] = np.inf
        self.criterion = {
            {"constant": "linear", "slopes": "linear with slopes"}.get(name, name): float(value)
            for name, value in criterion.items()
            if np.isfinite(value)
        }
        allowed = {
            "linear": ("constant", "slopes"),
            "soft_bounds": ("soft_bounds",),
            "exponential": ("exponential",),
            None: tuple(criterion),
        }[update]
        if update == "linear" and not np.isfinite(criterion["slopes"]):
            criterion["slopes"] = criterion["soft_bounds"]
        form = min(allowed, key=lambda name: criterion[name])
        shapes = [none, none]
        if form == "exponential":
            shapes = [_pooled_exponential(b).parameters for b in bins]
        self.bins = bins
        return shapes, form

    def mean_step(self, number: int, device: int, u: FloatArray | float) -> FloatArray:
        """Return what a pulse up (``number`` 0) or down (1) moves a device by on average, at ``u``."""
        side = self.sides[number]
        level = side.coefficients[device]
        if self.form == "exponential":
            return level[0] * _exponential(side.shape, np.asarray(u))
        return level[0] + (level[1] * np.asarray(u) if len(level) > 1 else np.zeros(np.shape(u)))

    def window_of_devices(
        self, ends: tuple[FloatArray, FloatArray]
    ) -> tuple[tuple[FloatArray, FloatArray], tuple[str, str]]:
        """Return where each device's range ends (D,) S, and what that is; nan where it is not seen."""
        low, high = self.window
        half = 0.5 * (high - low)

        def conductance(u: FloatArray, sign: float) -> FloatArray:
            return low + half * (1 + sign * u)

        if self.form == "soft_bounds":
            up, down = (-side.coefficients[:, 0] / side.coefficients[:, 1] for side in self.sides)
            return (conductance(down, -1.0), conductance(up, 1.0)), ("where steps vanish",) * 2
        found = []
        kinds = []
        for side, sign, end in ((self.whole[1], -1.0, ends[0]), (self.whole[0], 1.0, ends[1])):
            found.append(conductance(side.bound, sign) if side.bounded else end)
            kinds.append("where devices stop" if side.bounded else "mean end of the staircases")
        return (found[0], found[1]), (kinds[0], kinds[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bins:
    """Steps of a direction, averaged per device over narrow ranges of u: rows (K,)."""

    devices: int
    device: NDArray[np.int64]
    start: FloatArray
    move: FloatArray
    weight: FloatArray
    """1 / variance of the mean."""

    @classmethod
    def of(cls, side: Direction, variance: FloatArray) -> _Bins:
        first, last = float(side.start.min()), float(side.start.max())
        width = max(last - first, 1e-12) / _BINS
        place = np.minimum(((side.start - first) / width).astype(np.int64), _BINS - 1)
        key = side.device * _BINS + place
        size = side.devices * _BINS
        weight: FloatArray = np.bincount(key, 1 / variance, minlength=size).astype(np.float64)
        there = weight > 0

        def mean(values: FloatArray) -> FloatArray:
            found: FloatArray = np.bincount(key, values / variance, minlength=size)[there] / weight[there]
            return found

        return cls(
            devices=side.devices,
            device=np.flatnonzero(there) // _BINS,
            start=mean(side.start),
            move=mean(side.move),
            weight=weight[there],
        )

    def weighted(self, times: FloatArray) -> _Bins:
        """Return the bins with device d counted ``times[d]`` times."""
        return _Bins(
            devices=self.devices,
            device=self.device,
            start=self.start,
            move=self.move,
            weight=self.weight * times[self.device],
        )

    def residual(self, f: FloatArray) -> FloatArray:
        """Return weighted residuals of moves from ``scale f``, with the best scale for each device."""
        top = np.bincount(self.device, self.weight * self.move * f, minlength=self.devices)
        below = np.bincount(self.device, self.weight * f * f, minlength=self.devices)
        scale = top / np.maximum(below, 1e-300)
        return np.sqrt(self.weight) * (self.move - scale[self.device] * f)

    def misfit(self, f: FloatArray) -> float:
        """Return the weighted sum of squares of moves from each device's own ``a + b f``."""
        design = np.column_stack([np.ones(len(f)), f])
        found, _ = grouped_regression(self.device, self.devices, design, self.move, self.weight)
        r = self.move - np.einsum("np,np->n", design, found[self.device])
        return float(np.sum(self.weight * r * r))


def _mean_slope(line: _Side, covariance: FloatArray) -> tuple[float, float]:
    """Return by how much steps shrink per unit of u, relative to those at 0: mean over devices, error."""
    level, change = line.coefficients.T
    slope = -change / level
    gradient = np.stack([change / level**2, -1 / level], axis=1)
    variance = np.einsum("da,dab,db->d", gradient, covariance, gradient)
    between = float(np.var(slope, ddof=1)) if len(slope) > 1 else 0.0
    error = np.sqrt(max(between, float(variance.mean()), 1e-12) / len(slope))
    return float(slope.mean()), float(error)


def _bent_misfit(bins: _Bins) -> float:
    """Return the sum of squares that each device's own ``a + b exp(rate u)`` leaves; one rate for all."""

    def misfit(rate: float) -> float:
        return bins.misfit(np.exp(rate * bins.start))

    reach = max(float(np.abs(bins.start).max()), 1e-9)
    rates = np.array([0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.5, 6.5, 9.0]) / reach
    best = min((sign * float(rate) for rate in rates for sign in (-1, 1)), key=misfit)
    return min(misfit(float(rate)) for rate in best * np.linspace(0.75, 1.3, 9))


def _exponential(shape: FloatArray, u: FloatArray) -> FloatArray:
    return np.maximum(1 - shape[0] * np.exp(shape[1] * u), 0.0)


def _pooled_exponential(bins: _Bins, start: FloatArray | None = None) -> LeastSquares:
    """Return amplitude and rate that suit all devices best."""

    def residual(p: FloatArray) -> FloatArray:
        if abs(p[1]) > _STEEPEST or abs(p[0]) > _LARGEST:
            return np.full(len(bins.start), np.inf)
        return bins.residual(_exponential(p, bins.start))

    starts = [start] if start is not None else []
    if start is None:
        for rate in (-5.0, -1.5, 1.5, 5.0):
            # With the rate known the curve is linear in its scale and in scale times amplitude.
            design = np.column_stack([np.ones(len(bins.start)), np.exp(rate * bins.start)])
            root = np.sqrt(bins.weight)
            (level, change), *_ = np.linalg.lstsq(design * root[:, None], bins.move * root, rcond=None)
            if level > 0:
                starts.append(np.array([np.clip(-change / level, -0.9 * _LARGEST, 0.9 * _LARGEST), rate]))
        starts = starts or [np.array([0.1, 1.5])]
    found = [least_squares(residual, s, tolerance=1e-8, most_steps=60) for s in starts]
    return min(found, key=lambda fit: fit.cost)


def _fitted(side: Direction, form: str, shape: FloatArray, variance: FloatArray | None) -> _Side:
    """Return each device's own curve of a given form."""
    u = side.start
    if form == "exponential":
        design = _exponential(shape, u)[:, None]
    elif form == "constant":
        design = np.ones((len(u), 1))
    else:
        design = np.column_stack([np.ones(len(u)), u])
    weight = np.ones(len(u)) if variance is None else 1 / variance
    found, inverse = grouped_regression(side.device, side.devices, design, side.move, weight)
    return _Side(steps=side, shape=shape, design=design, weight=weight, coefficients=found, inverse=inverse)


def _noise(sides: list[_Side]) -> _Noise:
    """Return the spread of single steps about their curves: of one size, or in proportion to the step,
    whichever makes the residuals likelier."""
    noisy = sides[0].steps.noisy
    one, several = (_noise_sums(sides, multiplicative=m, noisy=noisy) for m in (False, True))
    residual = np.concatenate([side.residual for side in sides])
    curve = np.concatenate([side.curve for side in sides])

    def likelihood(noise: _Noise) -> float:
        variance = noise.variance(curve)
        return -0.5 * float(np.sum(np.log(variance) + residual**2 / variance))

    return several if likelihood(several) > likelihood(one) + _CLEARLY else one


def _noise_sums(sides: list[_Side], *, multiplicative: bool, noisy: bool) -> _Noise:
    devices = sides[0].steps.devices
    sums = {name: np.zeros(devices) for name in ("squares", "readings", "scale")}
    moments, expected = np.zeros((devices, 2)), np.zeros((devices, 2, 2))
    level = np.concatenate([side.curve**2 for side in sides]).mean()
    for side in sides:
        device, r, m = side.steps.device, side.residual_as_read(), side.curve
        at = side.steps.neighbours()
        moments[:, 0] += np.bincount(device, r * r, minlength=devices)
        moments[:, 1] += np.bincount(device[at], r[at] * r[at + 1], minlength=devices)
        own = _expected_moments(side)
        expected += own
        if multiplicative:
            number = np.bincount(device, minlength=devices)
            # Residuals are smaller than errors, by what the fitted coefficients took.
            grown = number / np.maximum(number - side.design.shape[1], 1)
            weight = 1 / (m**2 + 0.0025 * level + 1e-30)
            sums["squares"] += grown * np.bincount(device, weight * r * r, minlength=devices)
            sums["readings"] += np.bincount(device, weight * side.of_readings()[0], minlength=devices)
            sums["scale"] += np.bincount(device, weight * m**2, minlength=devices)
        else:
            sums["squares"] += np.bincount(device, r * r, minlength=devices)
            sums["readings"] += own[:, 0, 1]
            sums["scale"] += own[:, 0, 0]
    return _Noise(multiplicative=multiplicative, noisy=noisy, moments=moments, expected=expected, **sums)


def _expected_moments(side: _Side) -> FloatArray:
    """Return what independent steps and independent readings, of variance 1, add to the sum of squared
    residuals and to that of products of neighbours (D, 2, 2).

    With the projection M = 1 - H onto residuals and the covariance T of steps that independent readings
    make: tr M, tr MT; and the sums of M and MTM over neighbours.
    """
    device, devices, x = side.steps.device, side.steps.devices, side.design
    at = side.steps.neighbours()
    _, inverse = grouped_regression(device, devices, x, np.zeros(len(x)))
    pulled = np.einsum("np,npq->nq", x, inverse[device])

    def over(where: NDArray[np.int64], values: FloatArray) -> FloatArray:
        return np.bincount(device[where], values, minlength=devices).astype(np.float64)

    def hat(left: NDArray[np.int64], right: NDArray[np.int64]) -> FloatArray:
        found: FloatArray = np.einsum("nq,nq->n", pulled[left], x[right])
        return found

    every = np.arange(len(x))
    kept = 1 - hat(every, every)
    beside = hat(at, at + 1)
    diagonal, off = side.of_readings()
    # X^T T X per device, for the part of MTM that is projected twice.
    shifted = diagonal[:, None] * x
    np.add.at(shifted, at, off[:, None] * x[at + 1])
    np.add.at(shifted, at + 1, off[:, None] * x[at])
    middle = np.zeros((devices, x.shape[1], x.shape[1]))
    np.add.at(middle, device, np.einsum("na,nb->nab", x, shifted))
    twice = np.einsum("na,nab,nb->n", pulled[at], middle[device[at]], pulled[at + 1])
    # (HT + TH) between neighbours k and k + 1: H with the shifted rows on one side and on the other.
    once = np.einsum("nq,nq->n", pulled[at], shifted[at + 1]) + np.einsum(
        "nq,nq->n", pulled[at + 1], shifted[at]
    )
    found = np.empty((devices, 2, 2))
    found[:, 0, 0] = over(every, kept)
    found[:, 0, 1] = over(every, diagonal * kept) - 2 * over(at, off * beside)
    found[:, 1, 0] = -over(at, beside)
    found[:, 1, 1] = over(at, off - once + twice)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Devices:
    """Every device's own numbers (D,) and the variances of their estimates."""

    step: FloatArray
    step_variance: FloatArray
    up_down: FloatArray
    up_down_variance: FloatArray
    slope: tuple[FloatArray, FloatArray]
    """Up and down."""
    slope_variance: tuple[FloatArray, FloatArray]
    bound: tuple[FloatArray, FloatArray]
    """Upper and lower, as distances from the middle of the window; nan where none was seen."""
    bound_variance: tuple[FloatArray, FloatArray]


def _devices(fit: _Fit, file: str, names: tuple[str, ...]) -> _Devices:
    covariance = [side.covariance(fit.noise) for side in fit.sides]
    (up, down), (var_up, var_down) = (
        [side.coefficients[:, 0] for side in fit.sides],
        [c[:, 0, 0] for c in covariance],
    )
    for values, side in zip((up, down), fit.sides, strict=True):
        worst = int(np.argmin(values))
        if values[worst] <= 0:
            raise DeviceError(
                f"pulses {side.steps.name} move the device the other way on average",
                file=file,
                object=f"device {names[worst]}",
                remedy="Check the directions, measure more pulses, or leave the device out.",
            )
    total = up + down
    slopes, slope_variances, bounds, bound_variances = [], [], [], []
    for side, whole, c in zip(fit.sides, fit.whole, covariance, strict=True):
        level = side.coefficients[:, 0]
        change = side.coefficients[:, 1] if side.coefficients.shape[1] > 1 else np.zeros_like(level)
        slopes.append(-change / level)
        if side.coefficients.shape[1] > 1:
            gradient = np.stack([change / level**2, -1 / level], axis=1)
            slope_variances.append(np.einsum("da,dab,db->d", gradient, c, gradient))
        else:
            slope_variances.append(np.zeros_like(level))
        if fit.form == "soft_bounds":
            with np.errstate(divide="ignore", invalid="ignore"):
                bound = np.where(change < 0, -level / change, np.nan)
                gradient = np.stack([-1 / change, level / change**2], axis=1)
                bound_variances.append(np.einsum("da,dab,db->d", gradient, c, gradient))
            bounds.append(bound)
        else:
            bounds.append(whole.bound if whole.bounded else np.full(len(level), np.nan))
            bound_variances.append(whole.bound_variance)
    return _Devices(
        step=0.5 * total,
        step_variance=0.25 * (var_up + var_down),
        up_down=(up - down) / total,
        up_down_variance=4 * (down**2 * var_up + up**2 * var_down) / total**4,
        slope=(slopes[0], slopes[1]),
        slope_variance=(slope_variances[0], slope_variances[1]),
        bound=(bounds[0], bounds[1]),
        bound_variance=(bound_variances[0], bound_variances[1]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Summary:
    """Values and intervals by name."""

    value: dict[str, float]
    interval: dict[str, Interval | None]
    law: Literal["normal", "lognormal"]
    own: _Devices


def _summary(
    fit: _Fit,
    window: tuple[FloatArray, FloatArray] | None,
    seed: int,
    file: str,
    names: tuple[str, ...],
) -> _Summary:
    own = _devices(fit, file, names)
    devices = len(own.step)
    law = _law(own.step)

    def spread(value: FloatArray, variance: FloatArray, draws: NDArray[np.int64]) -> FloatArray:
        if draws.shape[1] < 2:
            return np.zeros(len(draws))
        return corrected_spread(value[draws], variance[draws])

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        step = own.step[draws].mean(axis=1)
        if law == "lognormal":
            steps = spread(np.log(own.step), own.step_variance / own.step**2, draws)
        else:
            steps = spread(own.step, own.step_variance, draws) / step
        slope_spreads = [spread(k, v, draws) for k, v in zip(own.slope, own.slope_variance, strict=True)]
        single, reading = fit.noise.parts(draws)
        columns = [
            step,
            steps,
            own.up_down[draws].mean(axis=1),
            spread(own.up_down, own.up_down_variance, draws),
            own.slope[0][draws].mean(axis=1),
            own.slope[1][draws].mean(axis=1),
            signed_root(
                0.5
                * (slope_spreads[0] * np.abs(slope_spreads[0]) + slope_spreads[1] * np.abs(slope_spreads[1]))
            ),
            *(_bound_spread(b, v, draws) for b, v in zip(own.bound, own.bound_variance, strict=True)),
            *(_mean(b, draws) for b in own.bound),
            single if fit.noise.multiplicative else single / step,
            reading / step,
        ]
        if window is not None:
            columns += [_mean(end, draws) for end in window]
        return np.column_stack(columns)

    labels = [
        "step", "step_spread", "up_down", "up_down_spread", "slope_up", "slope_down", "slope_spread",
        "bound_up_spread", "bound_down_spread", "bound_up", "bound_down", "cycle_to_cycle", "write_noise",
        *(["low", "high"] if window is not None else []),
    ]  # fmt: skip
    found = bootstrap(statistic, devices, stream(seed, "fit", "pulses", "devices"))
    value = dict(zip(labels, found.value.tolist(), strict=True))
    interval = dict(zip(labels, found.intervals, strict=True))
    for label in labels:
        if label.endswith(("_spread", "cycle_to_cycle", "write_noise")):
            value[label] = max(value[label], 0.0)
            ends = interval[label]
            interval[label] = None if ends is None else (max(ends[0], 0.0), max(ends[1], 0.0))
    if fit.form == "exponential":
        _add_shapes(fit, value, interval, devices, seed)
    return _Summary(value=value, interval=interval, law=law, own=own)


def _add_shapes(
    fit: _Fit,
    value: dict[str, float],
    interval: dict[str, Interval | None],
    devices: int,
    seed: int,
) -> None:
    for side, bins in zip(fit.sides, fit.bins, strict=True):
        name = side.steps.name

        def statistic(
            draws: NDArray[np.int64], bins: _Bins = bins, shape: FloatArray = side.shape
        ) -> FloatArray:
            rows = []
            for row in draws:
                times = np.bincount(row, minlength=devices).astype(np.float64)
                rows.append(_pooled_exponential(bins.weighted(times), shape).parameters)
            return np.array(rows)

        generator = stream(seed, "fit", "pulses", "shape", name)
        found = bootstrap(statistic, devices, generator, replicates=_SHAPE_REPLICATES)
        for k, what in enumerate(("amplitude", "rate")):
            value[f"{what}_{name}"] = float(side.shape[k])
            interval[f"{what}_{name}"] = found.intervals[k]


def _law(step: FloatArray) -> Literal["normal", "lognormal"]:
    """Return which law makes the devices' steps clearly likelier; normal where neither does."""
    if len(step) < LEAST_DEVICES or np.std(step) == 0:
        return "normal"
    log = np.log(step)
    gain = len(step) * (np.log(np.std(step)) - np.log(np.std(log))) - np.sum(log)
    return "lognormal" if gain > 2 else "normal"


def _mean(value: FloatArray, draws: NDArray[np.int64]) -> FloatArray:
    seen = np.isfinite(value[draws])
    total = np.where(seen, value[draws], 0.0).sum(axis=1)
    return np.where(seen.any(axis=1), total / np.maximum(seen.sum(axis=1), 1), np.nan)


def _bound_spread(value: FloatArray, variance: FloatArray, draws: NDArray[np.int64]) -> FloatArray:
    """Return the spread of the bounds that were seen; 0 where fewer than two were."""
    chosen = value[draws]
    seen = np.isfinite(chosen)
    count = seen.sum(axis=1)
    centre = _mean(value, draws)
    squares = np.where(seen, (chosen - centre[:, None]) ** 2, 0.0).sum(axis=1)
    error = np.where(seen, variance[draws], 0.0).sum(axis=1) / np.maximum(count, 1)
    found = squares / np.maximum(count - 1, 1) - error
    return np.where(count > 1, signed_root(found), 0.0)


def _card(
    data: PulseData,
    fit: _Fit,
    summary: _Summary,
    window: tuple[float, float],
    kind_of_window: tuple[str, str],
    fitted_window: bool,
    notes: list[str],
) -> tuple[dict[str, Any], list[Estimate]]:
    value, interval = summary.value, summary.interval
    several = len(data.names) > 1
    estimates: list[Estimate] = []
    update: dict[str, Any] = {"kind": fit.kind}
    at = "crossbar.update"

    def put(
        name: str, meaning: str, *, key: str | None = None, low: float = 0.0, high: float = np.inf
    ) -> None:
        number = float(np.clip(value[name], low, high))
        if number != value[name]:
            notes.append(f"{name} was fitted as {value[name]:.3g} and is {number:g} in the card, its limit")
        update[key or name] = rounded(number)
        estimates.append(
            Estimate(
                name=name, value=number, interval=interval[name], meaning=meaning, field=f"{at}.{key or name}"
            )
        )

    if value["step"] > 1:
        raise DeviceError(
            "one pulse moves devices by more than half their window, which no update curve describes",
            file=data.file,
            field="step",
            value=value["step"],
            remedy="Use weaker or shorter pulses, or a wider window.",
        )
    put("step", "step at w = 0, mean over devices")
    if several:
        what = "of ln step, from device to device" if summary.law == "lognormal" else "of steps, relative"
        put("step_spread", f"spread {what}")
        if summary.law == "lognormal":
            update["step_law"] = "lognormal"
    put("up_down", "steps up are larger by this", low=-0.999, high=0.999)
    if several:
        put("up_down_spread", "from device to device")
    if fit.form == "slopes":
        put("slope_up", "steps up shrink by this from w = 0 to 1", high=1.0)
        put("slope_down", "steps down shrink by this from w = 0 to -1", high=1.0)
        if several:
            put("slope_spread", "from device to device")
    if fit.form == "exponential":
        inner = {}
        for way in ("up", "down"):
            for what in ("amplitude", "rate"):
                name = f"{what}_{way}"
                inner[name] = rounded(value[name])
                estimates.append(
                    Estimate(
                        name=name,
                        value=value[name],
                        interval=interval[name],
                        meaning="step = 1 - amplitude exp(rate w)" if way == "up" else "and exp(-rate w)",
                        field=f"{at}.exponential.{name}",
                    )
                )
        update["exponential"] = {**inner, "a": 1.0, "b": 0.0}
    for side, name in enumerate(("bound_up", "bound_down")):
        seen = int(np.isfinite(summary.own.bound[side]).sum())
        if several and seen > 1:
            put(f"{name}_spread", f"of {'upper' if side == 0 else 'lower'} bounds, in w; {seen} devices")
        if seen:
            mean, ends = value[name], interval[name]
            sign = 1 if side == 0 else -1
            if ends is not None and sign < 0:
                ends = (-ends[1], -ends[0])
            estimates.append(
                Estimate(name=name, value=sign * mean, interval=ends, meaning="mean bound, in w", unit="")
            )
            if (
                not fitted_window
                and abs(mean - 1) > 0.02
                and (
                    interval[name] is None or not interval[name][0] <= 1 <= interval[name][1]  # type: ignore[index]
                )
            ):
                notes.append(
                    f"devices end at w = {sign * mean:.3g} on average, where a card has {sign}: the window "
                    "that was given is not theirs"
                )
        if 0 < seen < len(data.names):
            notes.append(
                f"{len(data.names) - seen} of {len(data.names)} devices do not reach their "
                f"{'upper' if side == 0 else 'lower'} bound; its spread is that of the others"
            )
        if not seen:
            notes.append(
                f"too few devices reach {'an upper' if side == 0 else 'a lower'} bound for a spread of it"
            )
    put(
        "cycle_to_cycle",
        f"of single pulses, in units of {'each step' if fit.noise.multiplicative else 'step'}",
    )
    if fit.noise.multiplicative:
        update["multiplicative"] = True
    if fit.noise.noisy:
        put("write_noise", "of readings between pulses, in steps")
    if not several:
        notes.append("one device: nothing can be said about the spread from device to device")
    elif len(data.names) < LEAST_DEVICES:
        notes.append(f"{len(data.names)} devices: too few for confidence intervals")
    for name, number, origin in zip(("low", "high"), window, kind_of_window, strict=True):
        estimates.append(
            Estimate(
                name=f"window {name}",
                value=number,
                interval=interval.get(name),
                unit="S",
                meaning=f"end of the window, {origin}",
                field="crossbar.range",
                spice=True,
            )
        )
    measured = (float(data.conductance.min()), float(data.conductance.max()))
    for name, number in zip(("lowest reading", "highest reading"), measured, strict=True):
        estimates.append(
            Estimate(name=name, value=number, interval=None, unit="S", meaning="measured", spice=True)
        )
    return {"crossbar": {"range": [spice_text(end) for end in window], "update": update}}, estimates


def _finding(fit: _Fit, summary: _Summary, devices: int) -> str:
    names = {
        "constant": "equal steps",
        "slopes": "steps that shrink linearly",
        "soft_bounds": "soft bounds",
        "exponential": "exponential steps",
    }
    value = summary.value
    text = f"{names[fit.form]} of {value['step']:.3g} in w"
    if devices > 1:
        text += f", ± {100 * value['step_spread']:.2g} % over {devices} devices"
    noise = f"{value['cycle_to_cycle']:.2g} {'of each step' if fit.noise.multiplicative else 'steps'}"
    return f"{text[0].upper()}{text[1:]}; single pulses scatter by {noise}"


def _panels(data: PulseData, fit: _Fit, window: tuple[float, float], own: _Devices) -> tuple[Panel, ...]:
    return (
        _staircase_panel(data, fit, window),
        _curve_panel(fit),
        _residual_panel(fit),
        _device_panel(own),
    )


def _staircase_panel(data: PulseData, fit: _Fit, window: tuple[float, float]) -> Panel:
    """Draw the first cycle of a few devices over what their own fitted curves predict."""
    low, high = window
    series = []
    chosen = np.unique(np.linspace(0, len(data.names) - 1, min(3, len(data.names))).astype(int))
    for color, device in enumerate(chosen):
        rows = np.flatnonzero(data.device == device)
        rows = rows[data.cycle[rows] == data.cycle[rows[0]]]
        w = 2 * (data.conductance[rows[0]] - low) / (high - low) - 1
        path = [w]
        limits = [
            bound[device] if np.isfinite(bound[device]) else np.inf
            for bound in (fit.whole[0].bound, fit.whole[1].bound)
        ]
        for before, row in pairwise(rows.tolist()):
            number = 0 if data.up[row] else 1
            sign = 1.0 if data.up[row] else -1.0
            if data.pulse[row] > 0 and data.pulse[row] in (1, data.pulse[before] + 1):
                w = w + sign * fit.mean_step(number, int(device), sign * w)
            else:
                w = 2 * (data.conductance[row] - low) / (high - low) - 1
            w = min(max(w, -limits[1]), limits[0])
            path.append(w)
        fitted = low + 0.5 * (np.array(path) + 1) * (high - low)
        order = np.arange(len(rows), dtype=np.float64)
        series.append(
            Series(
                kind="points", x=order, y=1e6 * data.conductance[rows], color=color, label=data.names[device]
            )
        )
        series.append(Series(kind="line", x=order, y=1e6 * fitted, color=color))
    return Panel(
        title="Staircases: readings, and each device's own curve",
        x_label="reading of the first cycle",
        y_label="conductance [µS]",
        series=tuple(series),
    )


def _curve_panel(fit: _Fit) -> Panel:
    """Draw mean steps against where they start, with the mean curve and its interval."""
    series = []
    for number, side in enumerate(fit.sides):
        sign = 1.0 if number == 0 else -1.0
        first, last = np.quantile(side.steps.start, [0.005, 0.995])
        edges = np.linspace(first, last, 25)
        place = np.clip(np.digitize(side.steps.start, edges) - 1, 0, len(edges) - 2)
        count = np.bincount(place, minlength=len(edges) - 1)
        there = count > 0
        middle = (0.5 * (edges[1:] + edges[:-1]))[there]
        mean = (np.bincount(place, side.steps.move, minlength=len(count)) / np.maximum(count, 1))[there]
        grid = np.linspace(first, last, 80)
        curves = np.stack([fit.mean_step(number, d, grid) for d in range(side.steps.devices)])
        centre = curves.mean(axis=0)
        if len(curves) > 1:
            error = student_quantile(0.975, max(len(curves) - 1, 3)) * curves.std(axis=0, ddof=1)
            error = error / np.sqrt(len(curves))
            ends = sign * (centre - error), sign * (centre + error)
            series.append(
                Series(kind="band", x=sign * grid, y=np.minimum(*ends), upper=np.maximum(*ends), color=number)
            )
        series.append(Series(kind="line", x=sign * grid, y=sign * centre, color=number))
        series.append(
            Series(
                kind="points",
                x=sign * middle,
                y=sign * mean,
                color=number,
                label=f"{side.steps.name}: mean steps, fit with its 95 % interval",
            )
        )
    return Panel(
        title="Update curve", x_label="w before the pulse", y_label="step in w", series=tuple(series)
    )


def _residual_panel(fit: _Fit) -> Panel:
    series = []
    for number, side in enumerate(fit.sides):
        sign = 1.0 if number == 0 else -1.0
        thin = max(1, len(side.steps.start) // 700)
        order = np.argsort(side.steps.start)
        spread = 2 * np.sqrt(fit.noise.variance(side.curve))[order]
        # Of all devices together: their own curves differ.
        block = max(1, len(order) // 60)
        blocks = [slice(k, k + block) for k in range(0, len(order), block)]
        x = np.array([sign * side.steps.start[order][b].mean() for b in blocks])
        edge = np.array([spread[b].mean() for b in blocks])
        series.append(
            Series(
                kind="points",
                x=sign * side.steps.start[::thin],
                y=side.residual[::thin],
                color=number,
                label=f"single steps {side.steps.name}",
            )
        )
        series.append(Series(kind="band", x=x, y=-edge, upper=edge, color=number))
    return Panel(
        title="Residuals, and twice the fitted spread",
        x_label="w before the pulse",
        y_label="step - its curve, in w",
        series=tuple(series),
    )


def _device_panel(own: _Devices) -> Panel:
    order = np.argsort(own.step)
    place = np.arange(1.0, len(order) + 1)
    series = [
        Series(
            kind="bars",
            x=place,
            y=own.step[order],
            upper=1.96 * np.sqrt(own.step_variance[order]),
            label="device, with its 95 % interval",
        )
    ]
    if len(order) > 1:
        mean = float(own.step.mean())
        spread = max(float(corrected_spread(own.step, own.step_variance)), 0.0)
        ends = np.array([1.0, len(order)])
        series += [
            Series(kind="line", x=ends, y=np.full(2, mean), color=1, label="mean"),
            Series(
                kind="band",
                x=ends,
                y=np.full(2, mean - spread),
                upper=np.full(2, mean + spread),
                color=1,
                label="spread from device to device",
            ),
        ]
    return Panel(
        title="Steps of the devices",
        x_label="device, in the order of its step",
        y_label="step in w",
        series=tuple(series),
    )
