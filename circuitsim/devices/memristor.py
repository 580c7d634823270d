"""What programmable devices do: fabrication, writes, drift, reads. Arrays in, arrays out, all in S.

A device array holds what fabrication drew once; generators are passed in, so that every draw has a
stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from circuitsim.devices.card import (
    CrossbarCard,
    FlickerNoise,
    GaussianNoise,
    LogarithmicDrift,
    PowerLawDrift,
    RelaxationDrift,
    TelegraphNoise,
)
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray

__all__ = ["DeviceArray", "UpdateCurves", "drifted", "fabricated", "flicker_spread", "read", "written"]

Draw = Callable[[str], Generator]
"""What is drawn -> the generator of its own stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UpdateCurves:
    """Each device's own update curve, see `UpdateCard`: arrays (M, N) in w = -1 ... 1."""

    step_up: FloatArray
    step_down: FloatArray
    slope_up: FloatArray
    slope_down: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceArray:
    """One array of devices as fabricated. What a card leaves out is None."""

    shape: tuple[int, int]
    window: tuple[float, float]
    """Lowest and highest conductance that writes ask for [S]."""
    factor: FloatArray | None = None
    """Present conductance over target (M, N)."""
    stuck: NDArray[np.bool_] | None = None
    stuck_at: FloatArray | None = None
    """Conductance of the devices that are stuck (M, N) S."""
    trap: NDArray[np.bool_] | None = None
    drift: FloatArray | None = None
    """Standard normal (M, N): where each device lies in the spread of drift exponents."""
    update: UpdateCurves | None = None

    reach: tuple[FloatArray, FloatArray] | None = None
    """Bounds of each device (M, N) S where these spread; else they are those of the window."""

    @property
    def exact(self) -> bool:
        """Whether a write gives what it asks for on every device."""
        return self.factor is None and self.stuck is None and self.reach is None

    def reached(self, g: FloatArray) -> FloatArray:
        """Return conductances within each device's bounds, and those of stuck devices put in."""
        return self.held(g if self.reach is None else np.clip(g, *self.reach))

    def held(self, g: FloatArray) -> FloatArray:
        """Return conductances with those of stuck devices put in."""
        return g if self.stuck is None or self.stuck_at is None else np.where(self.stuck, self.stuck_at, g)


def fabricated(
    card: CrossbarCard, shape: tuple[int, int], window: tuple[float, float], draw: Draw
) -> DeviceArray:
    """Draw an array of devices: mismatch, stuck devices, traps, drift exponents, update curves."""
    factor = stuck = stuck_at = trap = drift = update = None
    if card.device_to_device:
        normal = draw("device_to_device").standard_normal(shape)
        factor = np.maximum(1 + card.device_to_device * normal, 0.0)
    if card.stuck.total:
        at = draw("stuck").random(shape)
        edges = np.cumsum([card.stuck.on, card.stuck.off, card.stuck.anywhere, card.stuck.open])
        stuck = at < edges[-1]
        anywhere = window[0] + (window[1] - window[0]) * draw("stuck at").random(shape)
        stuck_at = np.select(
            [at < edges[0], at < edges[1], at < edges[2]],
            [np.full(shape, window[1]), np.full(shape, window[0]), anywhere],
            0.0,
        )
    for noise in card.read_noise:
        if isinstance(noise, TelegraphNoise):
            trap = draw("trap").random(shape) < noise.fraction
    if isinstance(card.drift, PowerLawDrift):
        drift = draw("drift").standard_normal(shape)
    reach = None
    if card.update is not None:
        update = _curves(card, shape, draw)
        if card.update.bound_up_spread or card.update.bound_down_spread:
            half = 0.5 * (window[1] - window[0])
            scale = 1.0 if factor is None else factor
            low, high = (
                np.maximum(window[0] + (w + 1) * half, 0.0) * scale for w in (update.low, update.high)
            )
            reach = low, high
    return DeviceArray(
        shape=shape,
        window=window,
        factor=factor,
        stuck=stuck,
        stuck_at=stuck_at,
        trap=trap,
        drift=drift,
        update=update,
        reach=reach,
    )


def _curves(card: CrossbarCard, shape: tuple[int, int], draw: Draw) -> UpdateCurves:
    spec = card.update
    assert spec is not None

    def normal(name: str, spread: float) -> FloatArray | float:
        return spread * draw(name).standard_normal(shape) if spread else 0.0

    if spec.step_law == "lognormal":
        # Of mean 1 and the stated spread of its logarithm, so that the card's step is the mean step.
        step = spec.step * np.exp(np.asarray(normal("step", spec.step_spread)) - 0.5 * spec.step_spread**2)
    else:
        step = spec.step * np.maximum(1 + normal("step", spec.step_spread), 0.0)
    tilt = spec.up_down + normal("up_down", spec.up_down_spread)
    up, down = (1.0, 1.0) if spec.kind == "soft_bounds" else (spec.slope_up, spec.slope_down)
    # A bound on the wrong side of 0 would leave no range at all.
    high = np.maximum(1 + normal("bound_up", spec.bound_up_spread), 0.0)
    low = np.minimum(-1 + normal("bound_down", spec.bound_down_spread), 0.0)
    whole = np.ones(shape)
    # A soft bound is where the step ends: each device's slope follows its own bound.
    soft = spec.kind == "soft_bounds"
    return UpdateCurves(
        step_up=step * (1 + tilt) * whole,
        step_down=step * (1 - tilt) * whole,
        slope_up=(1 / np.maximum(high, 1e-3) if soft else up + normal("slope_up", spec.slope_spread)) * whole,
        slope_down=(1 / np.maximum(-low, 1e-3) if soft else down + normal("slope_down", spec.slope_spread))
        * whole,
        low=low * whole,
        high=high * whole,
    )


def written(card: CrossbarCard, array: DeviceArray, target: FloatArray, generator: Generator) -> FloatArray:
    """Return conductances (M, N) S after one write to ``target``: levels, mismatch, programming noise."""
    g = target
    low, high = array.window
    if card.levels is not None and high > low:
        step = (high - low) / (card.levels - 1)
        g = low + np.rint((g - low) / step) * step
    if card.programming is not None:
        # The spread belongs to the level that was asked for.
        spread = card.programming(card.relative(g))
        g = g if array.factor is None else g * array.factor
        g = np.maximum(g + spread * generator.standard_normal(array.shape), 0.0)
    elif array.factor is not None:
        g = g * array.factor
    return array.reached(g)


def drifted(
    card: CrossbarCard,
    array: DeviceArray,
    g: FloatArray,
    age: float,
    generator: Generator,
    *,
    asked: FloatArray | None = None,
    name: str = "",
) -> FloatArray:
    """Return conductances (M, N) S at ``age`` [s] after a write that ``asked`` for some and gave ``g``.

    ``generator`` is that of the write: the same at every age, so that a device's path is one path.

    Raises:
        DeviceError: an age beyond what the card was measured for.
    """
    drift = card.drift
    if drift is None or age <= 0:
        return g
    if drift.until is not None and age > drift.until * (1 + 1e-9):
        raise DeviceError(
            f"the card's drift holds up to {drift.until:g} s", object=name, field="age", value=age
        )
    x = card.relative(g)
    if isinstance(drift, PowerLawDrift):
        if age <= drift.start:
            return g
        assert array.drift is not None
        exponent = np.maximum(drift.mean(x) + drift.std(x) * array.drift, 0.0)
        g = g * (age / drift.start) ** -exponent
    elif isinstance(drift, LogarithmicDrift):
        if age <= 1:
            return g
        log = np.log(age)
        spread = max(drift.std[0] + drift.std[1] * log, 0.0)
        g = np.maximum(g + drift.mean * log + spread * generator.standard_normal(array.shape), 0.0)
    else:
        # Spreads about a target belong to the target.
        x = x if asked is None else card.relative(asked)
        g = np.maximum(g + _relaxed(drift, x, age) * generator.standard_normal(array.shape), 0.0)
    return array.held(g)


def _relaxed(drift: RelaxationDrift, x: FloatArray, age: float) -> FloatArray:
    """Return the spread [S] that relaxation adds to that of the write."""
    ages = np.array([step.age for step in drift.steps])
    variances = np.array([step.sigma(x) ** 2 for step in drift.steps])
    place = np.interp(np.log(age), np.log(ages), np.arange(len(ages)))
    first = min(int(place), len(ages) - 2)
    part = place - first
    variance = (1 - part) * variances[first] + part * variances[first + 1]
    return np.sqrt(np.maximum(variance - variances[0], 0.0))


def flicker_spread(card: CrossbarCard, noise: FlickerNoise, g: FloatArray, age: float) -> FloatArray:
    """Return one standard deviation of 1/f noise [S] at ``age`` [s], at least one read time."""
    x = card.relative(g)
    time = noise.read_time
    growth = np.sqrt(np.log((max(age, time) + time) / (2 * time)))
    if noise.absolute is not None:
        return np.abs(noise.absolute(x)) * growth
    assert noise.relative is not None
    return g * noise.relative(x) * growth


def read(
    card: CrossbarCard, array: DeviceArray, g: FloatArray, age: float, draw: Draw, *, fast: bool
) -> FloatArray:
    """Return conductances (M, N) S as one read finds them.

    ``fast`` noise differs between the phases of a training step; the other, 1/f, they share.
    """
    total = None
    for number, noise in enumerate(card.read_noise):
        if isinstance(noise, FlickerNoise) == fast:
            continue
        part: FloatArray
        if isinstance(noise, FlickerNoise):
            part = flicker_spread(card, noise, g, age) * draw(f"flicker {number}").standard_normal(
                array.shape
            )
        elif isinstance(noise, GaussianNoise):
            part = g * noise.relative * draw(f"gaussian {number}").standard_normal(array.shape)
        elif isinstance(noise, TelegraphNoise):
            assert array.trap is not None
            filled = draw(f"telegraph {number}").random(array.shape) < noise.duty
            part = np.where(array.trap & filled, -noise.amplitude * g, 0.0)
        else:
            continue
        total = part if total is None else total + part
    return g if total is None else np.maximum(g + total, 0.0)
