"""Saturating amplifiers f(v) = L tanh(G (v + offset) / L) of a layer, and what they pass on when nodes move.

Around a point v0 with t = tanh there and a = f'(v0) = G (1 - t^2), and e = tanh(G D / L):

    f(v0 + D) - f(v0) = L e (1 - t^2) / (1 + t e)

has no cancellation. Arrays of a layer are (B, n), parameters (n,).
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import fused
from circuitsim.solver.kernels.maths import hyperbolic_tangent

__all__ = ["held_nodes", "output_changes", "outputs", "tangents"]

_MOST_STEPS = 100
_SETTLED = 1e-8
_SETTLED_SINGLE = 3e-4
"""Relative steps after which Newton's method is as good as float64 and float32 are."""
_ROUNDING, _ROUNDING_SINGLE = 1e-15, 3e-7


@fused
def _slopes_and_limits(gain, limit):  # type: ignore[no-untyped-def]
    """Return G / L and L of the saturating amplifier that each one is, or is nearly."""
    finite = np.empty_like(limit)
    for k in range(len(limit)):
        finite[k] = limit[k] if limit[k] < np.inf else limit.dtype.type(1e30)
    return gain / finite, finite


@fused
def outputs(v, gain, offset, limit, out):  # type: ignore[no-untyped-def]
    """Write f(v); an infinite ``limit`` is a linear amplifier."""
    batch, n = v.shape
    steep, finite = _slopes_and_limits(gain, limit)
    for b in range(batch):
        for k in range(n):
            moved = v[b, k] + offset[k]
            curved = finite[k] * hyperbolic_tangent(steep[k] * moved)
            out[b, k] = curved if limit[k] < np.inf else gain[k] * moved


@fused
def tangents(v, gain, offset, limit, t, slope, out):  # type: ignore[no-untyped-def]
    """Write t, a and f at v."""
    batch, n = v.shape
    one = v.dtype.type(1)
    steep, finite = _slopes_and_limits(gain, limit)
    for b in range(batch):
        for k in range(n):
            moved = v[b, k] + offset[k]
            x = hyperbolic_tangent(steep[k] * moved)
            t[b, k] = x
            out[b, k] = finite[k] * x if limit[k] < np.inf else gain[k] * moved
            slope[b, k] = gain[k] * (one - x * x)


@fused
def output_changes(d, gain, limit, t, out):  # type: ignore[no-untyped-def]
    """Write f(v0 + d) - f(v0)."""
    batch, n = d.shape
    one, least = d.dtype.type(1), d.dtype.type(1e-9)
    steep, finite = _slopes_and_limits(gain, limit)
    for b in range(batch):
        for k in range(n):
            e = hyperbolic_tangent(steep[k] * d[b, k])
            lift = one + t[b, k] * e
            # From one saturation to the other the product is 0/0; there nothing cancels.
            across = lift < least
            lift = one if across else lift
            change = -(t[b, k] + t[b, k]) if across else e * (one - t[b, k] * t[b, k]) / lift
            out[b, k] = finite[k] * change if limit[k] < np.inf else gain[k] * d[b, k]


@fused
def held_nodes(a, current, drawn, gain, limit, t, slope, d, bend):  # type: ignore[no-untyped-def]
    """Solve ``a D + drawn c(D) = current`` for the node that controls a held amplifier, in place from d.

    c(D) = f(v0 + D) - f(v0) - a0 D is what a corrected phase lets the amplifier pass on, ``drawn`` (B, n)
    the conductance through which it comes back. Writes c(D) into ``bend``.
    """
    batch, n = d.shape
    kind = d.dtype.type
    one, half, near, least = kind(1), kind(0.5), kind(0.05), kind(1e-12)
    settled = kind(_SETTLED_SINGLE if d.itemsize == 4 else _SETTLED)
    # Where the slope was held up, steps shrink by a factor only.
    slowly = max(settled * settled, kind(_ROUNDING_SINGLE if d.itemsize == 4 else _ROUNDING))
    x, c = np.empty(n, d.dtype), np.empty(n, d.dtype)
    steep, finite = _slopes_and_limits(gain, limit)
    for b in range(batch):
        load = a[b if a.shape[0] > 1 else 0]
        for k in range(n):
            # c(D) is -a0 t G/L D^2 to second order; further out the old d is the better start.
            per_load = one / load[k]
            first = current[b, k] * per_load
            y = steep[k] * first
            second = first * (one + drawn[b, k] * slope[b, k] * t[b, k] * y * per_load)
            x[k] = second if abs(y) < near else d[b, k]
        for _ in range(_MOST_STEPS):
            unsettled = 0
            for k in range(n):
                e = hyperbolic_tangent(steep[k] * x[k])
                share = one / max(one + t[b, k] * e, least)
                there = (t[b, k] + e) * share
                bent = finite[k] * e * (one - t[b, k] * t[b, k]) * share - slope[b, k] * x[k]
                tilt = gain[k] * (one - there * there) - slope[b, k]
                bending = drawn[b, k] * tilt
                lowest = -half * load[k]
                step = (load[k] * x[k] + drawn[b, k] * bent - current[b, k]) / (
                    load[k] + max(bending, lowest)
                )
                x[k] -= step
                # What is left after a small step is its square: to that order c is known too.
                c[k] = bent - tilt * step
                enough = settled if bending > lowest else slowly
                unsettled += 0 if abs(step) <= enough * abs(x[k]) else 1
            if unsettled == 0:
                break
        for k in range(n):
            d[b, k] = x[k]
            bend[b, k] = c[k]
