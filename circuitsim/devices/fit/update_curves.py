"""Update curves of devices, each fitted alone, and which form suits them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.measurements import PulseData, device_list
from circuitsim.devices.fit.spread import signed_root
from circuitsim.devices.fit.staircases import Direction, Steps, directions, grouped_regression
from circuitsim.devices.least_squares import LeastSquares, least_squares
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray

__all__ = [
    "LEAST_STEPS",
    "UPDATES",
    "Bins",
    "FittedSide",
    "StepNoise",
    "Update",
    "UpdateFit",
    "exponential_step",
    "pooled_exponential",
]

Update = Literal["linear", "soft_bounds", "exponential"]
UPDATES: tuple[Update, ...] = ("linear", "soft_bounds", "exponential")

LEAST_STEPS = 4
"""Of one device in one direction, besides those next to a bound."""
_BINS = 40
_FLATTEST, _STEEPEST = 0.2, 20.0
"""Rates of an exponential step. Below, it is a straight line, of which scale and amplitude are one number."""
_STRONG = 10.0
"""By how much the criterion must favour four numbers that bend the curve: readings that went astray bend it
too."""
_CLEARLY = 3.0
"""Gain of log-likelihood from which noise is taken to be in proportion to the step."""
_LARGEST = 50.0
"""Amplitude of an exponential step."""
_SOFT_SLOPE = 0.8
"""Where steps shrink by more than this from the middle of the measured range to its end, that end is where
they vanish: a soft bound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepNoise:
    """Spread of single steps: ``single``, relative to the device's own step in the middle of the window, or
    to the step as it is there if ``multiplicative``; ``reading`` [w] of each reading. The columns (D,) are
    sums per device that those come from."""

    multiplicative: bool
    noisy: bool
    squares: FloatArray
    """Of weighted squared residuals."""
    readings: FloatArray
    """Of what one reading's variance adds to those."""
    scale: FloatArray
    """Of what the variance of single steps adds to those."""
    moments: FloatArray
    """(D, 2): of squared residuals, and of products of residuals that follow each other, both relative."""
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

    def variance(self, side: FittedSide) -> FloatArray:
        """Return the variance of each kept step (N,)."""
        single, reading = self.single, self.reading
        found = (single * side.measure(self.multiplicative)) ** 2 + 2 * reading**2
        return np.maximum(found, max(1e-3 * float(found.mean()), 1e-20))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedSide:
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

    def measure(self, multiplicative: bool) -> FloatArray:
        """Return what the spread of each kept step is relative to (N,)."""
        if multiplicative:
            return np.abs(self.curve)
        level = np.abs(self.coefficients[:, 0])
        found: FloatArray = np.maximum(level, 0.05 * float(np.median(level)) + 1e-15)[self.steps.device]
        return found

    @property
    def residual(self) -> FloatArray:
        return self.steps.move - self.curve

    def at(self, u: FloatArray) -> FloatArray:
        """Return the step of each kept step's device, had it started at ``u`` (N,)."""
        level = self.coefficients[self.steps.device]
        if len(self.shape):
            return level[:, 0] * exponential_step(self.shape, u)
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

    def covariance(self, noise: StepNoise) -> FloatArray:
        """Return the covariance of each device's coefficients (D, P, P) under ``noise``."""
        side, width = self.steps, self.design.shape[1]
        pulled = self.design * self.weight[:, None]
        reading, shared_reading = self.of_readings()
        variance = noise.variance(self) + noise.reading**2 * (reading - 2)
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


class UpdateFit:
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
            if count[worst] < LEAST_STEPS:
                raise DeviceError(
                    f"too few pulses {side.name} away from their bounds: at least {LEAST_STEPS} are needed",
                    file=data.file,
                    object=device_list(data, count < LEAST_STEPS),
                    value=int(count[worst]),
                    remedy="Use shorter or weaker pulses, or leave such devices out (--without).",
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
                    _fitted(s, form, shape, noise.variance(old))
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
        noise: StepNoise,
        update: Update | None,
        fitted_window: bool,
        sides: list[FittedSide] | None = None,
    ) -> tuple[list[FloatArray], str]:
        """Return the shape of each direction's curve and its form, by the information criterion."""
        variances = []
        lines = []
        for number, side in enumerate(self.steps):
            old = _fitted(side, "slopes", np.empty(0), None) if sides is None else sides[number]
            variances.append(noise.variance(old))
            lines.append(_fitted(side, "slopes", np.empty(0), variances[-1]))
        bins = [Bins.of(side, variance) for side, variance in zip(self.steps, variances, strict=True)]
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
            shapes = [pooled_exponential(b).parameters for b in bins]
        self.bins = bins
        return shapes, form

    def mean_step(self, number: int, device: int, u: FloatArray | float) -> FloatArray:
        """Return what a pulse up (``number`` 0) or down (1) moves a device by on average, at ``u``."""
        side = self.sides[number]
        level = side.coefficients[device]
        if self.form == "exponential":
            return level[0] * exponential_step(side.shape, np.asarray(u))
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
class Bins:
    """Steps of a direction, averaged per device over narrow ranges of u: rows (K,)."""

    devices: int
    device: NDArray[np.int64]
    start: FloatArray
    move: FloatArray
    weight: FloatArray
    """1 / variance of the mean."""

    @classmethod
    def of(cls, side: Direction, variance: FloatArray) -> Bins:
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

    def weighted(self, times: FloatArray) -> Bins:
        """Return the bins with device d counted ``times[d]`` times."""
        return Bins(
            devices=self.devices,
            device=self.device,
            start=self.start,
            move=self.move,
            weight=self.weight * times[self.device],
        )

    def scale(self, f: FloatArray) -> FloatArray:
        """Return each device's best scale (D,) in ``moves = scale f``."""
        top = np.bincount(self.device, self.weight * self.move * f, minlength=self.devices)
        below = np.bincount(self.device, self.weight * f * f, minlength=self.devices)
        found: FloatArray = top / np.maximum(below, 1e-300)
        return found

    def residual(self, f: FloatArray) -> FloatArray:
        """Return weighted residuals of moves from ``scale f``, with the best scale for each device."""
        return np.sqrt(self.weight) * (self.move - self.scale(f)[self.device] * f)

    def misfit(self, f: FloatArray) -> float:
        """Return the weighted sum of squares of moves from each device's own ``a + b f``."""
        design = np.column_stack([np.ones(len(f)), f])
        found, _ = grouped_regression(self.device, self.devices, design, self.move, self.weight)
        r = self.move - np.einsum("np,np->n", design, found[self.device])
        return float(np.sum(self.weight * r * r))


def _mean_slope(line: FittedSide, covariance: FloatArray) -> tuple[float, float]:
    """Return by how much steps shrink per unit of u, relative to those at 0: mean over devices, error."""
    level, change = line.coefficients.T
    slope = -change / level
    gradient = np.stack([change / level**2, -1 / level], axis=1)
    variance = np.einsum("da,dab,db->d", gradient, covariance, gradient)
    between = float(np.var(slope, ddof=1)) if len(slope) > 1 else 0.0
    error = np.sqrt(max(between, float(variance.mean()), 1e-12) / len(slope))
    return float(slope.mean()), float(error)


def _bent_misfit(bins: Bins) -> float:
    """Return the sum of squares that each device's own ``a + b exp(rate u)`` leaves; one rate for all."""

    def misfit(rate: float) -> float:
        return bins.misfit(np.exp(rate * bins.start))

    reach = max(float(np.abs(bins.start).max()), 1e-9)
    rates = np.array([0.3, 0.6, 1.0, 1.5, 2.2, 3.2, 4.5, 6.5, 9.0]) / reach
    best = min((sign * float(rate) for rate in rates for sign in (-1, 1)), key=misfit)
    return min(misfit(float(rate)) for rate in best * np.linspace(0.75, 1.3, 9))


def exponential_step(shape: FloatArray, u: FloatArray) -> FloatArray:
    return np.maximum(1 - shape[0] * np.exp(shape[1] * u), 0.0)


def pooled_exponential(bins: Bins, start: FloatArray | None = None) -> LeastSquares:
    """Return amplitude and rate that suit all devices best."""

    def residual(p: FloatArray) -> FloatArray:
        if not _FLATTEST < abs(p[1]) < _STEEPEST or abs(p[0]) > _LARGEST:
            return np.full(len(bins.start), np.inf)
        return bins.residual(exponential_step(p, bins.start))

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
    found = [least_squares(residual, s, tolerance=1e-6, most_steps=40) for s in starts]
    return min(found, key=lambda fit: fit.cost)


def _fitted(side: Direction, form: str, shape: FloatArray, variance: FloatArray | None) -> FittedSide:
    """Return each device's own curve of a given form."""
    u = side.start
    if form == "exponential":
        design = exponential_step(shape, u)[:, None]
    elif form == "constant":
        design = np.ones((len(u), 1))
    else:
        design = np.column_stack([np.ones(len(u)), u])
    weight = np.ones(len(u)) if variance is None else 1 / variance
    found, inverse = grouped_regression(side.device, side.devices, design, side.move, weight)
    return FittedSide(
        steps=side, shape=shape, design=design, weight=weight, coefficients=found, inverse=inverse
    )


def _noise(sides: list[FittedSide]) -> StepNoise:
    """Return the spread of single steps about their curves: of one size, or in proportion to the step,
    whichever makes the residuals likelier."""
    noisy = sides[0].steps.noisy
    one = _noise_sums(sides, noisy=noisy)
    several = _noise_sums(sides, noisy=noisy, first=one)
    residual = np.concatenate([side.residual for side in sides])

    def likelihood(noise: StepNoise) -> float:
        variance = np.concatenate([noise.variance(side) for side in sides])
        return -0.5 * float(np.sum(np.log(variance) + residual**2 / variance))

    return several if likelihood(several) > likelihood(one) + _CLEARLY else one


def _noise_sums(sides: list[FittedSide], *, noisy: bool, first: StepNoise | None = None) -> StepNoise:
    """Return noise of one size per device; or in proportion to the step, weighted by what ``first`` says."""
    multiplicative = first is not None
    devices = sides[0].steps.devices
    sums = {name: np.zeros(devices) for name in ("squares", "readings", "scale")}
    moments, expected = np.zeros((devices, 2)), np.zeros((devices, 2, 2))
    level = np.concatenate([side.curve**2 for side in sides]).mean()
    for side in sides:
        device, r, m = side.steps.device, side.residual_as_read(), side.curve
        at = side.steps.neighbours()
        own = _expected_moments(side)
        unit = side.measure(False)
        moments[:, 0] += np.bincount(device, (r / unit) ** 2, minlength=devices)
        moments[:, 1] += np.bincount(device[at], r[at] * r[at + 1] / unit[at] ** 2, minlength=devices)
        inverse = np.zeros(devices)
        inverse[device] = unit**-2
        own[:, :, 1] *= inverse[:, None]
        expected += own
        if first is not None:
            number = np.bincount(device, minlength=devices)
            # Residuals are smaller than errors, by what the fitted coefficients took.
            grown = number / np.maximum(number - side.design.shape[1], 1)
            # Of least variance where the noise is as it was found at first.
            expected_square = first.single**2 * (m**2 + 0.0025 * level) + 2 * first.reading**2 + 1e-30
            weight = m**2 / expected_square**2
            sums["squares"] += grown * np.bincount(device, weight * r * r, minlength=devices)
            sums["readings"] += np.bincount(device, weight * side.of_readings()[0], minlength=devices)
            sums["scale"] += np.bincount(device, weight * m**2, minlength=devices)
        else:
            sums["squares"] += np.bincount(device, (r / unit) ** 2, minlength=devices)
            sums["readings"] += own[:, 0, 1]
            sums["scale"] += own[:, 0, 0]
    return StepNoise(multiplicative=multiplicative, noisy=noisy, moments=moments, expected=expected, **sums)


def _expected_moments(side: FittedSide) -> FloatArray:
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
