"""The scalar equation of every node of a layer, its neighbours held.

Absolute:    a v + sum_d p_d I_d(p_d (v - ref_d)) = current
Incremental: a D + sum_d p_d [I_d(p_d (v0 + D - ref_d)) - I_d(p_d (v0 - ref_d))] = current

p_d is +1 where the node is the anode of diode d and -1 where it is the cathode. Both left sides rise
with the unknown while a > 0, so that a bracket holds one root. Newton's steps run over a row of nodes at
once, so that they vectorise; a node that they leave unsettled is solved by safeguarded Newton of its own.

Arrays of a layer are (B, n); loads ``a`` are (1, n) S where all samples share them. Diode columns are
(D, n).
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import fused
from circuitsim.solver.kernels.maths import exponential, exponential_less_one

__all__ = ["clamp_increments", "clamp_nodes", "solve_increments", "solve_nodes"]

_LARGEST_EXPONENT = 200.0
_MOST_STEPS = 200
_ROW_STEPS = 6
"""Newton's steps of a whole row; from a near start two or three settle it."""
_SETTLED = 1e-8
"""A step below this part of a diode's slope voltage leaves an error far below rounding."""
_JOINT = -3.0
_TAIL = 3.0 / np.e


@fused
def _current(x: float, i_s: float) -> float:
    """Diode current without its parallel conductance, at x = v / (N Vt)."""
    if x >= _JOINT:
        e = min(x, _LARGEST_EXPONENT)
        return i_s * (np.expm1(e) + np.exp(e) * (x - e))
    q = _TAIL / x
    return -i_s * (1.0 + q * q * q)


@fused
def _slope(x: float, i_s: float, slope: float) -> float:
    if x >= _JOINT:
        return i_s / slope * np.exp(min(x, _LARGEST_EXPONENT))
    q = _TAIL / x
    return 3.0 * i_s / slope * q * q * q / x


@fused
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
            if base and at >= _JOINT and now >= _JOINT and max(at, now) < _LARGEST_EXPONENT:
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


@fused
def _node(conductance, total, start, sign, ref, i_s, slope, gmin):  # type: ignore[no-untyped-def]
    """Solve the absolute equation of one node, in a bracket from its clamps."""
    free = total / conductance
    low, high = -np.inf, np.inf
    upper, lower = -np.inf, np.inf
    # A clamp that would carry all the current, and more, bounds the node from its side.
    for d in range(len(ref)):
        if i_s[d] == 0.0:
            continue
        r = ref[d]
        if sign[d] > 0.0:
            lower = min(lower, r)
            high = min(high, r + slope[d] * np.log1p(max(0.0, total - conductance * r) / i_s[d]))
        else:
            upper = max(upper, r)
            low = max(low, r - slope[d] * np.log1p(max(0.0, conductance * r - total) / i_s[d]))
    lowest, highest = free, free
    for d in range(len(ref)):
        if i_s[d] != 0.0:
            lowest = min(lowest, ref[d])
            highest = max(highest, ref[d])
    # Where another clamp drives the node against it, it holds beyond that clamp's reference only.
    low = lowest if low == -np.inf else min(low, lower)
    high = highest if high == np.inf else max(high, upper)
    # The bounds ignore reverse currents of the other clamp: let them breathe a little.
    room = 1e-9 + 1e-6 * (abs(low) + abs(high)) + 0.01 * (high - low)
    for d in range(len(ref)):
        room += i_s[d] / conductance * 1.1
    return _root(conductance, total, 0.0, False, start, low - room, high + room, sign, ref, i_s, slope, gmin)


@fused
def solve_nodes(a, current, sign, ref, i_s, slope, gmin, v):  # type: ignore[no-untyped-def]
    """Solve the absolute equation for v (B, n), in place, from its old content; current (B, n) A."""
    batch, n = v.shape
    diodes = ref.shape[0]
    x, f, g, moved = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    least = np.full(n, np.inf)
    for d in range(diodes):
        for k in range(n):
            if i_s[d, k] > 0.0:
                least[k] = min(least[k], _SETTLED * slope[d, k])
    for b in range(batch):
        load = a[b if a.shape[0] > 1 else 0]
        for k in range(n):
            x[k] = v[b, k]
        unsettled = 1
        for _ in range(_ROW_STEPS):
            for k in range(n):
                f[k] = load[k] * x[k] - current[b, k]
                g[k] = load[k]
            for d in range(diodes):
                for k in range(n):
                    drop = x[k] - ref[d, k]
                    y = sign[d, k] * drop / slope[d, k]
                    e = i_s[d, k] * exponential(y)
                    q = _TAIL / min(y, _JOINT)
                    cube = i_s[d, k] * q * q * q
                    tail = y < _JOINT
                    f[k] += sign[d, k] * ((-cube if tail else e) - i_s[d, k]) + gmin[d, k] * drop
                    g[k] += (3.0 * cube / min(y, _JOINT) if tail else e) / slope[d, k] + gmin[d, k]
            unsettled = 0
            for k in range(n):
                step = f[k] / g[k]
                x[k] -= step
                moved[k] = step
                unsettled += 0 if abs(step) <= least[k] else 1
            if unsettled == 0:
                break
        if unsettled > 0:
            for k in range(n):
                if not abs(moved[k]) <= least[k]:
                    x[k] = _node(
                        float(load[k]),
                        float(current[b, k]),
                        float(v[b, k]),
                        sign[:, k],
                        ref[:, k],
                        i_s[:, k],
                        slope[:, k],
                        gmin[:, k],
                    )
        for k in range(n):
            v[b, k] = x[k]


@fused
def solve_increments(a, current, v0, sign, ref, i_s, slope, gmin, dv):  # type: ignore[no-untyped-def]
    """Solve the incremental equation for dv (B, n), in place, from its old content; v0 (B, n) V."""
    batch, n = dv.shape
    diodes = ref.shape[0]
    x, f, g, moved = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    for b in range(batch):
        load = a[b if a.shape[0] > 1 else 0]
        for k in range(n):
            x[k] = dv[b, k]
        unsettled = 1
        for _ in range(_ROW_STEPS):
            for k in range(n):
                f[k] = load[k] * x[k] - current[b, k]
                g[k] = load[k]
            for d in range(diodes):
                for k in range(n):
                    at = sign[d, k] * (v0[b, k] - ref[d, k]) / slope[d, k]
                    now = at + sign[d, k] * x[k] / slope[d, k]
                    e = i_s[d, k] * exponential(at)
                    less_one = exponential_less_one(now - at)
                    there = e * (less_one + 1.0)
                    low, low_now = min(at, _JOINT), min(now, _JOINT)
                    p, q = _TAIL / low, _TAIL / low_now
                    before = -p * p * p * i_s[d, k] if at < _JOINT else e
                    cube = q * q * q * i_s[d, k]
                    after = -cube if now < _JOINT else there
                    smooth = at >= _JOINT and now >= _JOINT
                    change = e * less_one if smooth else after - before
                    f[k] += sign[d, k] * change + gmin[d, k] * x[k]
                    g[k] += (3.0 * cube / low_now if now < _JOINT else there) / slope[d, k] + gmin[d, k]
            unsettled = 0
            for k in range(n):
                step = f[k] / g[k]
                x[k] -= step
                moved[k] = step
                unsettled += 0 if abs(step) <= _SETTLED * abs(x[k]) else 1
            if unsettled == 0:
                break
        if unsettled > 0:
            for k in range(n):
                if not abs(moved[k]) <= _SETTLED * abs(x[k]):
                    conductance, total = float(load[k]), float(current[b, k])
                    free = total / conductance
                    x[k] = _root(
                        conductance,
                        total,
                        float(v0[b, k]),
                        True,
                        float(dv[b, k]),
                        min(0.0, free),
                        max(0.0, free),
                        sign[:, k],
                        ref[:, k],
                        i_s[:, k],
                        slope[:, k],
                        gmin[:, k],
                    )
        for k in range(n):
            dv[b, k] = x[k]


@fused
def clamp_nodes(a, current, low, low_g, high, high_g, v):  # type: ignore[no-untyped-def]
    """Solve nodes with ideal diodes: ``high_g`` S conducts above ``high`` (n,) V, ``low_g`` below ``low``.

    At most one of them does, ``low <= high``.
    """
    batch, n = v.shape
    zero = v.dtype.type(0)
    for b in range(batch):
        load = a[b if a.shape[0] > 1 else 0]
        for k in range(n):
            above = current[b, k] - load[k] * high[k]
            below = current[b, k] - load[k] * low[k]
            over, under = above > zero, below < zero
            # One division, of what was selected.
            pushed = above if over else current[b, k]
            pushed = below if under else pushed
            stiff = high_g[k] if over else zero
            stiff = low_g[k] if under else stiff
            base = high[k] if over else zero
            base = low[k] if under else base
            v[b, k] = base + pushed / (load[k] + stiff)


@fused
def clamp_increments(a, current, v0, low, low_g, high, high_g, dv):  # type: ignore[no-untyped-def]
    """The same for the displacement dv (B, n) V from v0 (B, n) V."""
    batch, n = dv.shape
    zero = dv.dtype.type(0)
    for b in range(batch):
        load = a[b if a.shape[0] > 1 else 0]
        for k in range(n):
            total, there = current[b, k], v0[b, k]
            beyond, short = there - high[k], there - low[k]
            over, under = beyond > zero, short < zero
            stiff = high_g[k] if over else zero
            stiff = low_g[k] if under else stiff
            # What the conducting diode carries at v0 comes back if it opens.
            carried = high_g[k] * beyond if over else zero
            carried = low_g[k] * short if under else carried
            opened = total + carried
            # Comparisons are of currents, so that one division is left.
            stays = ((total > -beyond * (load[k] + stiff)) == over) & (
                (total < -short * (load[k] + stiff)) == under
            )
            above, below = opened > -beyond * load[k], opened < -short * load[k]
            pushed = opened - high_g[k] * beyond if above else opened
            pushed = opened - low_g[k] * short if below else pushed
            other = high_g[k] if above else zero
            other = low_g[k] if below else other
            dv[b, k] = (total if stays else pushed) / (load[k] + (stiff if stays else other))
