"""Amplifier banks in the layered method: their outputs, and what they pass on when nodes move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.solver.weights import Weights

__all__ = ["BankPoint", "Phase", "bank_output", "bank_point"]

Phase = Literal["nudged", "corrected", "transposed"]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class BankPoint:
    """A bank around the free point v0, with what its increments need: t = tanh(x) at v0, a = f'(v0)."""

    gain: Array
    limit: Array | None
    """Saturation (n,) V, or None for linear banks."""
    x: Array | None
    t: Array | None
    slope: Array
    back: Array
    two_way: bool

    def change(self, d: Array) -> Array:
        """Return f(v0 + d) - f(v0) without cancellation: tanh(x + e) - tanh(x) in product form."""
        if self.limit is None or self.t is None:
            return self.gain * d
        return self.limit * self._moved(d)[0]

    def curvature(self, d: Array) -> tuple[Array, Array]:
        """Return f(v0 + d) - f(v0) - a d and its derivative."""
        if self.limit is None or self.t is None:
            return np.zeros_like(d), np.zeros_like(d)
        change, there = self._moved(d)
        return self.limit * change - self.slope * d, self.gain * (1 - there * there) - self.slope

    def _moved(self, d: Array) -> tuple[Array, Array]:
        """Return tanh(x + e) - tanh(x) and tanh(x + e), x being where v0 is."""
        assert self.t is not None
        assert self.x is not None
        assert self.limit is not None
        step = self.gain / self.limit * d
        e = np.tanh(step)
        lift = 1 + self.t * e
        if lift.min() > 1e-3:
            return e * (1 - self.t * self.t) / lift, (self.t + e) / lift
        # From deep saturation to the other side the product form is 0/0; there nothing cancels.
        across = lift < 1e-3
        lift = np.where(across, 1, lift)
        there = np.where(across, np.tanh(self.x + step), (self.t + e) / lift)
        change = np.where(across, there - self.t, e * (1 - self.t * self.t) / lift)
        return change.astype(d.dtype, copy=False), there.astype(d.dtype, copy=False)

    def forward(self, phase: Phase, d: Array) -> Array | None:
        """Return the change of the outputs that phase ``phase`` passes on, or None where they are held."""
        if phase == "nudged":
            return self.change(d)
        if phase == "corrected" and self.limit is not None:
            return self.curvature(d)[0] + (self.back * d if self.two_way else 0)
        return self.back * d if self.two_way else None


def bank_output(w: Weights, bank: int, v: Array) -> Array:
    """Return the output (B, n) V of a bank at control voltages v (B, n) V."""
    linear = w.gain[bank] * (v + w.offset[bank])
    limit = w.saturation[bank]
    if np.isinf(limit).all():
        return linear
    if np.isfinite(limit).all():
        return limit * np.tanh(linear / limit)
    finite = np.where(np.isinf(limit), 1, limit).astype(w.dtype)
    return np.where(np.isinf(limit), linear, finite * np.tanh(linear / finite))


def bank_point(w: Weights, bank: int, v0: Array) -> BankPoint:
    """Return a bank around control voltages v0 (B, n) V."""
    limit = w.saturation[bank]
    back = w.back[bank]
    gain = w.gain[bank]
    two_way = bool(np.any(back))
    if np.isinf(limit).all():
        slope = np.broadcast_to(gain, v0.shape)
        return BankPoint(gain=gain, limit=None, x=None, t=None, slope=slope, back=back, two_way=two_way)
    # A linear amplifier among saturating ones: so wide that no voltage here bends it.
    finite = np.where(np.isinf(limit), 1e30, limit).astype(w.dtype)
    x = gain * (v0 + w.offset[bank]) / finite
    t = np.tanh(x)
    slope = gain * (1 - t * t)
    return BankPoint(gain=gain, limit=finite, x=x, t=t, slope=slope, back=back, two_way=two_way)
