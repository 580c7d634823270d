"""The scalar equation of every node of a layer, its neighbours held: a fused, safeguarded Newton.

Absolute:    a v + sum_d p_d I_d(p_d (v - ref_d)) = current
Incremental: a D + sum_d p_d [I_d(p_d (v0 + D - ref_d)) - I_d(p_d (v0 - ref_d))] = current

p_d is +1 where the node is the anode of diode d and -1 where it is the cathode. Both left sides rise
with the unknown while a > 0, so that a bracket holds one root.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["solve_increments", "solve_nodes"]

kernel = njit(cache=True, nogil=True, fastmath=False, error_model="numpy")

_LARGEST_EXPONENT = 200.0
_MOST_STEPS = 200


@kernel
def _current(x: float, i_s: float) -> float:
    """Diode current without its parallel conductance, at x = v / (N Vt)."""
    if x >= -3.0:
        e = min(x, _LARGEST_EXPONENT)
        return i_s * (np.expm1(e) + np.exp(e) * (x - e))
    q = 3.0 / (np.e * x)
    return -i_s * (1.0 + q * q * q)


@kernel
def _slope(x: float, i_s: float, slope: float) -> float:
    if x >= -3.0:
        return i_s / slope * np.exp(min(x, _LARGEST_EXPONENT))
    q = 3.0 / (np.e * x)
    return 3.0 * i_s / slope * q * q * q / x


@kernel
def _root(a, total, v0, base, start, low, high, sign, ref, i_s, slope, gmin):  # type: ignore[no-untyped-def]
    """Find D in [low, high] with a D + sum_d sign [I(v0 + D) - I(v0)] = total.

    ``base`` 0 leaves out the terms at v0: the absolute equation with v0 = 0.
    """
    x = min(max(start, low), high)
    previous = np.inf
    for _ in range(_MOST_STEPS):
        f, g = a * x - total, a
        for d in range(len(ref)):
            if i_s[d] == 0.0:
                continue
            at = sign[d] * (v0 - ref[d]) / slope[d]
            now = at + sign[d] * x / slope[d]
            if base and at >= -3.0 and now >= -3.0 and max(at, now) < _LARGEST_EXPONENT:
                f += sign[d] * i_s[d] * np.exp(at) * np.expm1(now - at)
            else:
                f += sign[d] * _current(now, i_s[d])
                if base:
                    f -= sign[d] * _current(at, i_s[d])
            f += gmin[d] * (x if base else x - ref[d])
            g += _slope(now, i_s[d], slope[d]) + gmin[d]
        if f > 0.0:
            high = min(high, x)
        elif f < 0.0:
            low = max(low, x)
        else:
            return x
        step = f / g
        trial = x - step
        if not (low <= trial <= high):
            trial = 0.5 * (low + high)
        moved = abs(trial - x)
        x = trial
        # Quadratic convergence ends in rounding: stop when a step no longer shrinks.
        if moved == 0.0 or (moved < 1e-9 * (abs(x) + abs(v0) + 1e-3) and moved >= 0.5 * previous):
            break
        previous = moved
        if moved < 1e-15 * abs(x):
            break
    return x


@kernel
def solve_nodes(a, current, sign, ref, i_s, slope, gmin, v):  # type: ignore[no-untyped-def]
    """Solve the absolute equation for v (B, n), in place, from its old content.

    a (n,) or (B, n) S broadcast by the caller to (B, n); current (B, n) A; diode columns (n, D).
    """
    batch, n = v.shape
    for b in range(batch):
        for k in range(n):
            conductance, total = float(a[b, k]), float(current[b, k])
            free = total / conductance
            low, high = -np.inf, np.inf
            # A clamp that would carry all the current, and more, bounds the node from its side.
            for d in range(ref.shape[1]):
                if i_s[k, d] == 0.0:
                    continue
                r = ref[k, d]
                if sign[k, d] > 0.0:
                    high = min(
                        high, r + slope[k, d] * np.log1p(max(0.0, total - conductance * r) / i_s[k, d])
                    )
                else:
                    low = max(low, r - slope[k, d] * np.log1p(max(0.0, conductance * r - total) / i_s[k, d]))
            lowest, highest = free, free
            for d in range(ref.shape[1]):
                if i_s[k, d] != 0.0:
                    lowest = min(lowest, ref[k, d])
                    highest = max(highest, ref[k, d])
            if low == -np.inf:
                low = lowest
            if high == np.inf:
                high = highest
            # The bounds ignore reverse currents of the other clamp: let them breathe a little.
            room = 1e-9 + 1e-6 * (abs(low) + abs(high)) + 0.01 * (high - low)
            for d in range(ref.shape[1]):
                room += i_s[k, d] / conductance * 1.1
            v[b, k] = _root(
                conductance,
                total,
                0.0,
                False,
                float(v[b, k]),
                low - room,
                high + room,
                sign[k],
                ref[k],
                i_s[k],
                slope[k],
                gmin[k],
            )


@kernel
def solve_increments(a, current, v0, sign, ref, i_s, slope, gmin, dv):  # type: ignore[no-untyped-def]
    """Solve the incremental equation for dv (B, n), in place, from its old content."""
    batch, n = dv.shape
    for b in range(batch):
        for k in range(n):
            conductance, total = float(a[b, k]), float(current[b, k])
            free = total / conductance
            dv[b, k] = _root(
                conductance,
                total,
                float(v0[b, k]),
                True,
                float(dv[b, k]),
                min(0.0, free),
                max(0.0, free),
                sign[k],
                ref[k],
                i_s[k],
                slope[k],
                gmin[k],
            )
