"""Steps in time of one circuit: F(x, t) + dQ/dt = 0 with Q = S x + q(v) + charge of known nodes.

TR-BDF2 (Bank et al. 1985, in the one-step form of Hosea and Shampine 1996), g = 2 - sqrt(2):

    Q(x_g) - Q_n + g h / 2 (F(x_g) - Q'_n) = 0                  trapezoidal rule to t + g h, Q' = -F
    Q(x_1) - c1 Q(x_g) + c0 Q_n + d h F(x_1) = 0                BDF2 to t + h
    c1 = 1 / (g (2 - g)),  c0 = (1 - g)^2 / (g (2 - g)),  d = g / 2 = (1 - g) / (2 - g)

Both stages have the matrix dF/dx + a dQ/dx with a = 1 / (d h). The method is of order two, L-stable and
exact at rest. Its error per step is estimated by the embedded rule of order three,

    e_Q = h (e0 Q'_n + e1 Q'_g + e2 Q'_1),

and carried over to voltages and currents by that matrix, which also damps what stiff nodes add.

After every corner of a source one backward Euler step, too short to matter, finds voltages and
currents that suit the new slopes: with it a step never sees both sides of a jump.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.compiling import strict
from circuitsim.solver.kernels.newton import (
    CONVERGED,
    DIVERGED,
    SINGULAR,
    UNFINISHED,
    _conducting,
    _controls,
    _copy,
    _ideal_diodes,
    _leave,
    _limited_control,
    _limited_junction,
    _nonlinear,
    _product,
    _spread,
    _switch,
    junction,
    junction_charge,
)
from circuitsim.solver.kernels.sparse_lu import OK, new_factors, refactor, repivot, solve

__all__ = [
    "ACCEPTED",
    "ARRIVED",
    "EXPONENTIAL",
    "FAILED",
    "FULL",
    "ITERATIONS",
    "LINEAR",
    "PULSE",
    "REFUSED",
    "REJECTED",
    "SINE",
    "TOO_SMALL",
    "Dynamics",
    "advance",
    "next_corner",
    "source_value",
]

ARRIVED, FULL, TOO_SMALL, REFUSED = 0, 1, 2, 3
"""Outcomes of `advance`: at the stop time; out of room; steps got too small; the first step failed."""
ACCEPTED, REJECTED, FAILED, ITERATIONS = 0, 1, 2, 3
"""Places in the counters: steps accepted, rejected for error, failed to converge; Newton iterations."""
PULSE, SINE, EXPONENTIAL, LINEAR = 1, 2, 3, 4
"""Kinds of waveform."""
EULER, TRAPEZOIDAL, BDF2 = 0, 1, 2
"""Stages of a step."""
NOW, STEP, STOP, LARGEST, MINIMUM, FRESH = 0, 1, 2, 3, 4, 5
"""Places in the clock: time, next step, stop time, largest and smallest step, 1 if a corner was just met."""

_G = 2.0 - np.sqrt(2.0)
_D = _G / 2.0
_C1 = 1.0 / (_G * (2.0 - _G))
_C0 = (1.0 - _G) ** 2 / (_G * (2.0 - _G))
_W = np.sqrt(2.0) / 4.0
_E0, _E1, _E2 = _W - (1.0 - _W) / 3.0, _W - (3.0 * _W + 1.0) / 3.0, _D - _D / 3.0
_NEXT = 1e-12
_MOST_ITERATIONS = 40
_ROUNDING = 1e-12


class Dynamics(NamedTuple):
    """What makes a circuit dynamic. w (W,) are the values of the sources that move in time."""

    storage: np.ndarray  # (nnz,) S on the pattern of J
    stores: np.ndarray  # (n,) bool: rows with a charge
    weigh: np.ndarray  # (n,) 0: not in the error; 1: node; 2: current of an inductor
    constant: np.ndarray  # (n,) what does not move
    still: np.ndarray  # (n,) charge due to known nodes that do not move
    w_kind: np.ndarray  # (W,)
    w_ptr: np.ndarray  # (W + 1,)
    w_data: np.ndarray
    # Entries constant[row] += share w[source], and likewise for charges and voltages of known nodes.
    c_row: np.ndarray
    c_source: np.ndarray
    c_share: np.ndarray
    q_row: np.ndarray
    q_source: np.ndarray
    q_share: np.ndarray
    v_node: np.ndarray
    v_source: np.ndarray
    v_share: np.ndarray


class _Work(NamedTuple):
    linear: np.ndarray
    values: np.ndarray
    f: np.ndarray
    size: np.ndarray
    dx: np.ndarray
    work: np.ndarray
    constant: np.ndarray
    d_at: np.ndarray
    b_at: np.ndarray
    z_on: np.ndarray


@strict
def source_value(kind, data, t):  # type: ignore[no-untyped-def]
    """Value of one waveform; the equations of `circuitsim.netlist.waveforms`."""
    if kind == PULSE:
        low, high, delay, rise = data[0], data[1], data[2], data[3]
        width, fall, period, count = data[4], data[5], data[6], data[7]
        since = t - delay
        if since > count * period:
            return low
        if since > period:
            since -= period * np.floor(since / period)
        if since <= 0.0 or since >= rise + width + fall:
            return low
        if since < rise:
            return low + (high - low) * since / rise
        if since <= rise + width:
            return high
        return high + (low - high) * (since - (rise + width)) / fall
    if kind == SINE:
        since = max(t - data[3], 0.0)
        return data[0] + data[1] * np.sin(data[2] * since + data[5]) * np.exp(-since * data[4])
    if kind == EXPONENTIAL:
        change = data[1] - data[0]
        value = data[0]
        if t > data[2]:
            value -= change * np.expm1(-(t - data[2]) / data[3])
            if t > data[4]:
                value += change * np.expm1(-(t - data[4]) / data[5])
        return value
    count = (len(data) - 2) // 2
    since = t - data[0]
    last = data[1 + count]
    if data[1] >= 0.0 and since > last:
        period = last - data[1]
        since -= period * np.ceil((since - last) / period)
    k = _place(data, count, since)
    if k == 0:
        return data[2 + count]
    if k == count:
        return data[1 + 2 * count]
    before, after = data[1 + k], data[2 + k]
    low, high = data[1 + count + k], data[2 + count + k]
    return low + (since - before) / (after - before) * (high - low)


@strict
def _place(data, count, since):  # type: ignore[no-untyped-def]
    """Number of points of a piecewise linear waveform before ``since``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if data[2 + middle] < since:
            low = middle + 1
        else:
            high = middle
    return low


@strict
def _later(best, corner, t):  # type: ignore[no-untyped-def]
    if corner < best and corner - t > _NEXT * max(abs(corner), abs(t)):
        return corner
    return best


@strict
def next_corner(kind, data, t):  # type: ignore[no-untyped-def]
    """First time after t at which a waveform or its slope jumps, or infinity."""
    best = np.inf
    if kind == PULSE:
        delay, rise, width, fall = data[2], data[3], data[4], data[5]
        period, count = data[6], data[7]
        number = max(0.0, np.floor((t - delay) / period) - 1.0)
        for _ in range(4):
            start = delay + number * period
            if number <= count:
                best = _later(best, start, t)
            if number < count:
                if rise <= period:
                    best = _later(best, start + rise, t)
                if rise + width <= period:
                    best = _later(best, start + (rise + width), t)
                if rise + width + fall <= period:
                    best = _later(best, start + (rise + width + fall), t)
            number += 1.0
        return best
    if kind == SINE:
        return _later(best, data[3], t)
    if kind == EXPONENTIAL:
        return _later(_later(best, data[2], t), max(data[2], data[4]), t)
    count = (len(data) - 2) // 2
    since = t - data[0]
    last = data[1 + count]
    if data[1] < 0.0 or since < last:
        for k in range(_place(data, count, since), count):
            corner = _later(best, data[0] + data[2 + k], t)
            if corner < np.inf:
                return corner
    if data[1] >= 0.0:
        period = last - data[1]
        number = max(1.0, np.floor((since - last) / period))
        for _ in range(3):
            shift = data[0] + number * period
            inner = since - number * period
            for k in range(_place(data, count, max(inner, data[1]) - _NEXT * last), count):
                if data[2 + k] > data[1]:
                    best = _later(best, shift + data[2 + k], t)
                    if best < np.inf:
                        return best
            number += 1.0
    return best


@strict
def _sources(d, t, w):  # type: ignore[no-untyped-def]
    for k in range(len(w)):
        w[k] = source_value(d.w_kind[k], d.w_data[d.w_ptr[k] : d.w_ptr[k + 1]], t)


@strict
def _bent(d, t, h, start, middle, end, peak, relative):  # type: ignore[no-untyped-def]
    """How far curved sources leave the parabola through a step's points, relative to what is allowed.

    Nodes that store nothing have no error of their own; this bounds what interpolation makes of them.
    """
    worst = 0.0
    place = 0.3
    l0 = (place - _G) * (place - 1.0) / _G
    l1 = place * (place - 1.0) / (_G * (_G - 1.0))
    l2 = place * (place - _G) / (1.0 - _G)
    for k in range(len(start)):
        if d.w_kind[k] == SINE or d.w_kind[k] == EXPONENTIAL:
            there = source_value(d.w_kind[k], d.w_data[d.w_ptr[k] : d.w_ptr[k + 1]], t + place * h)
            off = abs(there - (l0 * start[k] + l1 * middle[k] + l2 * end[k]))
            worst = max(worst, off / (10.0 * relative * max(peak[k], abs(there)) + 1e-300))
    return worst


@strict
def _corner(d, t, gap):  # type: ignore[no-untyped-def]
    """First corner of any source more than ``gap`` after t."""
    best = np.inf
    for k in range(len(d.w_kind)):
        data = d.w_data[d.w_ptr[k] : d.w_ptr[k + 1]]
        corner = t
        for _ in range(1000):
            corner = next_corner(d.w_kind[k], data, corner)
            if corner > t + gap:
                break
        best = min(best, corner)
    return best


@strict
def _moved(d, w, v, constant):  # type: ignore[no-untyped-def]
    """Set what moving sources give: known voltages in v, and F's constant."""
    _copy(constant, d.constant)
    for k in range(len(d.c_row)):
        constant[d.c_row[k]] += d.c_share[k] * w[d.c_source[k]]
    for k in range(len(d.v_node)):
        v[d.v_node[k]] = 0.0
    for k in range(len(d.v_node)):
        v[d.v_node[k]] += d.v_share[k] * w[d.v_source[k]]


@strict
def _driven_charge(d, w, q):  # type: ignore[no-untyped-def]
    _copy(q, d.still)
    for k in range(len(d.q_row)):
        q[d.q_row[k]] += d.q_share[k] * w[d.q_source[k]]


@strict
def _charge(c, d, x, v, w, q, size):  # type: ignore[no-untyped-def]
    """q = Q(x)."""
    _driven_charge(d, w, q)
    _product(c, d.storage, x, q, size)
    for k in range(len(c.d_pos)):
        if c.d_cjo[k] > 0.0 or c.d_tt[k] > 0.0:
            drop = v[c.d_pos[k]] - v[c.d_neg[k]]
            i, g = junction(drop, c.d_is[k], c.d_slope[k], c.d_bv[k], c.d_bv_slope[k])
            stored = junction_charge(drop, i, g, c.d_tt[k], c.d_cjo[k], c.d_vj[k], c.d_m[k], c.d_fc[k])[0]
            p, m = c.node_unknown[c.d_pos[k]], c.node_unknown[c.d_neg[k]]
            if p >= 0:
                q[p] += stored
            if m >= 0:
                q[m] -= stored


@strict
def _matrix(c, d, rate, linear):  # type: ignore[no-untyped-def]
    for k in range(len(linear)):
        linear[k] = c.linear[k] + rate * d.storage[k]


@strict
def _newton(c, plan, factors, fresh, space, x, v, target, time, rate, small, most):  # type: ignore[no-untyped-def]
    """Solve ``linear x + constant + nonlinear(x) = 0`` from x, in place.

    It ends after a step below ``small`` (n,) in every voltage that leaves no more than rounding of the
    residual, or below a thousandth of it. ``fresh``: the factors are those of ``linear`` already. Returns
    (status, iterations, plan, factors).
    """
    n = len(x)
    all_linear = len(c.d_pos) == 0 and len(c.b_row) == 0 and len(target) == 0 and len(c.e_row) == 0
    all_linear = all_linear and len(c.z_pos) == 0
    f, size, dx = space.f, space.size, space.dx
    _spread(c, x, v)
    _controls(c, v, space.d_at, space.b_at)
    _conducting(c, v, space.z_on)
    settled = False
    for iteration in range(most):
        _copy(f, space.constant)
        for k in range(n):
            size[k] = abs(f[k])
        _product(c, space.linear, x, f, size)
        if not (all_linear and fresh):
            _copy(space.values, space.linear)
        valid = True
        if not all_linear:
            valid = _nonlinear(
                c, v, x, space.d_at, space.b_at, target, time, 1.0, rate, f, size, space.values
            )
            _ideal_diodes(c, v, space.z_on, f, space.values)
        if settled and valid:
            for k in range(len(c.d_pos)):
                # A junction's charge is the small difference of large ones near 0 V.
                noise = c.d_is[k] + rate * c.d_cjo[k] * c.d_vj[k]
                _leave(size, c.node_unknown, c.d_pos[k], 0, noise)
                _leave(size, c.node_unknown, c.d_neg[k], 0, noise)
            for k in range(len(c.z_pos)):
                if space.z_on[k]:
                    noise = c.z_g[k] * max(abs(v[c.z_pos[k]]), abs(v[c.z_neg[k]]))
                    _leave(size, c.node_unknown, c.z_pos[k], 0, noise)
                    _leave(size, c.node_unknown, c.z_neg[k], 0, noise)
            left = False
            for k in range(n):
                left = left or abs(f[k]) > _ROUNDING * size[k]
            if not left:
                return CONVERGED, iteration, plan, factors
        if not (all_linear and fresh) and refactor(plan, space.values, factors, space.work) != OK:
            found = repivot(plan, space.values)
            if found[0] != OK:
                return SINGULAR, iteration, plan, factors
            plan, factors = found[-2], found[-1]
        solve(plan, factors, f, dx, space.work)
        damping = 1.0
        if len(c.e_row) > 0 and iteration >= 10:
            damping = 0.5
        settled, tiny = True, True
        largest = 0.0
        for k in range(n):
            x[k] -= damping * dx[k]
            largest += abs(x[k])
            if c.is_node[k]:
                settled = settled and abs(dx[k]) <= small[k]
                tiny = tiny and abs(dx[k]) <= 1e-3 * small[k]
        if not np.isfinite(largest):
            return DIVERGED, iteration + 1, plan, factors
        _spread(c, x, v)
        if all_linear:
            return CONVERGED, iteration + 1, plan, factors
        for k in range(len(c.d_pos)):
            new = v[c.d_pos[k]] - v[c.d_neg[k]]
            old = space.d_at[k]
            space.d_at[k] = _limited_junction(new, old, c.d_is[k], c.d_slope[k], c.d_bv[k], c.d_bv_slope[k])
            settled = settled and space.d_at[k] == new
        for k in range(len(c.b_row)):
            new = v[c.b_cpos[k]] - v[c.b_cneg[k]]
            space.b_at[k] = _limited_control(new, space.b_at[k], c.b_gain[k], c.b_sat[k], c.b_off[k])
            settled = settled and space.b_at[k] == new
        if len(c.z_pos) > 0:
            floor = 0.0
            for k in range(n):
                if c.is_node[k]:
                    floor = max(floor, _ROUNDING * size[k])
            settled = not _switch(c, v, space.z_on, floor) and settled
        if settled and tiny and valid:
            return CONVERGED, iteration + 1, plan, factors
    return UNFINISHED, most, plan, factors


@strict
def _slope(c, d, space, x, v, target, time, qdot):  # type: ignore[no-untyped-def]
    """qdot = -F(x) where charge is stored; ``space.constant`` holds F's constant."""
    _copy(qdot, space.constant)
    _product(c, c.linear, x, qdot, space.size)
    _controls(c, v, space.d_at, space.b_at)
    _nonlinear(c, v, x, space.d_at, space.b_at, target, time, 1.0, 0.0, qdot, space.size, space.values)
    _conducting(c, v, space.z_on)
    _ideal_diodes(c, v, space.z_on, qdot, space.values)
    for k in range(len(qdot)):
        qdot[k] = -qdot[k] if d.stores[k] else 0.0


@strict
def _extrapolate(past_t, past_x, known, t, x):  # type: ignore[no-untyped-def]
    """Continue the last ``known`` points (of at most 3, latest first) to t."""
    n = len(x)
    if known <= 1:
        for k in range(n):
            x[k] = past_x[0, k]
    elif known == 2:
        part = (t - past_t[0]) / (past_t[0] - past_t[1])
        for k in range(n):
            x[k] = past_x[0, k] + part * (past_x[0, k] - past_x[1, k])
    else:
        t0, t1, t2 = past_t[0], past_t[1], past_t[2]
        l0 = (t - t1) * (t - t2) / ((t0 - t1) * (t0 - t2))
        l1 = (t - t0) * (t - t2) / ((t1 - t0) * (t1 - t2))
        l2 = (t - t0) * (t - t1) / ((t2 - t0) * (t2 - t1))
        for k in range(n):
            x[k] = l0 * past_x[0, k] + l1 * past_x[1, k] + l2 * past_x[2, k]


@strict
def _extrapolate_end(past_t, past_x, known, mid_t, mid_x, t, x):  # type: ignore[no-untyped-def]
    """Continue the middle point and the last ``known`` ones, at most two of them, to t."""
    t0, t1 = mid_t, past_t[0]
    if known < 2:
        part = (t - t1) / (t0 - t1)
        for k in range(len(x)):
            x[k] = past_x[0, k] + part * (mid_x[k] - past_x[0, k])
        return
    t2 = past_t[1]
    l0 = (t - t1) * (t - t2) / ((t0 - t1) * (t0 - t2))
    l1 = (t - t0) * (t - t2) / ((t1 - t0) * (t1 - t2))
    l2 = (t - t0) * (t - t1) / ((t2 - t0) * (t2 - t1))
    for k in range(len(x)):
        x[k] = l0 * mid_x[k] + l1 * past_x[0, k] + l2 * past_x[1, k]


@strict
def _remember(past_t, past_x, known, t, x):  # type: ignore[no-untyped-def]
    for p in range(2, 0, -1):
        past_t[p] = past_t[p - 1]
        for k in range(len(x)):
            past_x[p, k] = past_x[p - 1, k]
    past_t[0] = t
    for k in range(len(x)):
        past_x[0, k] = x[k]
    return min(known + 1, 3)


@strict
def advance(  # type: ignore[no-untyped-def]
    c,
    plan,
    d,
    target,
    x,
    v,
    q,
    qdot,
    peak,
    tolerance,
    clock,
    ends,
    counters,
    most,
    out_t,
    out_h,
    out_x,
    out_mid,
    out_w,
    out_mid_w,
):
    """Step on from the state (x, v, q, qdot), all in place, until the stop time or until room runs out.

    ``tolerance``: (relative, voltage [V], current [A]); ``peak`` (n,): largest sizes so far. ``ends``:
    rising times at which steps end. ``most`` bounds the steps tried. Rows of the output are accepted
    steps: time at their end, length, x there and at the middle point t + g h (on the line between its
    ends for a backward Euler step, which is marked by a negative length), and the moving sources'
    values there.
    Returns (status, rows, plan).
    """
    n = len(x)
    relative, voltage, current = tolerance
    space = _Work(
        np.empty(len(c.linear)),
        np.empty(len(c.linear)),
        np.empty(n),
        np.empty(n),
        np.zeros(n),
        np.empty(n),
        np.empty(n),
        np.empty(len(c.d_pos)),
        np.empty(len(c.b_row)),
        np.empty(len(c.z_pos), np.bool_),
    )
    factors = new_factors(plan)
    q_mid, q_end, qdot_mid, qdot_end = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    rest, trial, small = np.empty(n), np.empty(n), np.empty(n)
    w, w_start, w_peak = np.empty(len(d.w_kind)), np.empty(len(d.w_kind)), np.zeros(len(d.w_kind))
    w_early = np.empty(len(d.w_kind))
    past_t, past_x = np.empty(3), np.empty((3, n))
    known = 0
    factored = 0.0
    grown = True
    minimum = clock[MINIMUM]
    if clock[FRESH] > 1.0:
        _sources(d, clock[NOW], w)
        _moved(d, w, v, space.constant)
        _spread(c, x, v)
        _charge(c, d, x, v, w, q, space.size)
        clock[FRESH] = 1.0
    _sources(d, clock[NOW], w_start)
    for k in range(len(w)):
        w_peak[k] = abs(w_start[k])
    known = _remember(past_t, past_x, known, clock[NOW], x)
    corner = _corner(d, clock[NOW], minimum)
    # No step is made very short for an end: the rounding of charges over a short time is a large current, and
    # over a hundredth of a step the parabola does.
    storing = 0.0
    for k in range(n):
        storing = max(storing, 0.01 if d.stores[k] else 0.0)
    place = 0
    row = 0
    tried = 0
    while row < len(out_t) and tried < most:
        t = clock[NOW]
        if t >= clock[STOP]:
            return ARRIVED, row, plan
        tried += 1
        # A corner that only rounding keeps from the stop would leave a step too short to solve.
        limit = corner if corner < clock[STOP] - minimum else clock[STOP]
        close = max(1000.0 * minimum, storing * clock[STEP])
        while place < len(ends) and ends[place] <= t + close:
            place += 1
        if place < len(ends) and ends[place] < limit - close:
            limit = ends[place]
        left = limit - t
        euler = clock[FRESH] > 0.0
        highest = 0.0
        for k in range(n):
            if d.weigh[k] == 1:
                highest = max(highest, peak[k])
        for k in range(n):
            # Rounding moves every node by some 1e-16 of the highest.
            small[k] = min(0.01 * (relative * peak[k] + voltage), 5e-7) + 1e-14 * highest
        h = min(clock[STEP], clock[LARGEST])
        lands = h >= 0.999 * left
        if euler:
            # Too short to matter.
            clock[STEP] = min(clock[STEP], 0.05 * left)
            h, lands = min(max(1e-5 * clock[STEP], 4.0 * minimum), 0.25 * left), False
        elif lands:
            h = left
        elif 2.0 * h > left:
            h = 0.5 * left
        rate = 1.0 / h if euler else 1.0 / (_D * h)
        if rate != factored:
            _matrix(c, d, rate, space.linear)
            factored = 0.0
        # One place for all stages: what is called twice is compiled twice.
        status = CONVERGED
        for stage in range(EULER if euler else TRAPEZOIDAL, TRAPEZOIDAL if euler else BDF2 + 1):
            time = t + _G * h if stage == TRAPEZOIDAL else t + h
            if lands and stage == BDF2:
                time = limit
            _sources(d, time, w)
            if lands and stage == BDF2:
                _sources(d, limit - max(1e-12 * h, 1e-15 * limit), w_early)
                for k in range(len(w)):
                    # This step has the value before a jump, the next one that after it.
                    if abs(w[k] - w_early[k]) > 1e-6 * max(w_peak[k], abs(w_early[k])):
                        w[k] = w_early[k]
            _moved(d, w, v, space.constant)
            _driven_charge(d, w, rest)
            if stage == EULER:
                for k in range(n):
                    space.constant[k] += rate * (rest[k] - q[k])
                    trial[k] = x[k]
            elif stage == TRAPEZOIDAL:
                for k in range(n):
                    space.constant[k] += rate * (rest[k] - q[k]) - qdot[k]
                _extrapolate(past_t, past_x, known, time, trial)
            else:
                for k in range(n):
                    space.constant[k] += rate * (rest[k] - _C1 * q_mid[k] + _C0 * q[k])
                _extrapolate_end(past_t, past_x, known, t + _G * h, out_mid[row], time, trial)
            status, used, plan, factors = _newton(
                c,
                plan,
                factors,
                factored == rate,
                space,
                trial,
                v,
                target,
                time,
                rate,
                small,
                _MOST_ITERATIONS,
            )
            counters[ITERATIONS] += used
            if status != CONVERGED:
                break
            factored = rate
            _charge(c, d, trial, v, w, q_end, space.size)
            if stage == TRAPEZOIDAL:
                _copy(out_mid[row], trial)
                _copy(out_mid_w[row], w)
                _copy(q_mid, q_end)
                for k in range(n):
                    qdot_mid[k] = rate * (q_mid[k] - q[k]) - qdot[k]
        if status != CONVERGED:
            counters[FAILED] += 1
            factored = 0.0
            clock[STEP] = 0.25 * h
            grown = False
            known = 1
            if euler:
                return REFUSED, row, plan
            if clock[STEP] < minimum:
                return TOO_SMALL, row, plan
            continue
        if euler:
            _moved(d, w, v, space.constant)
            _slope(c, d, space, trial, v, target, t + h, qdot)
            for k in range(n):
                out_mid[row, k] = x[k] + _G * (trial[k] - x[k])
            for k in range(len(w)):
                out_mid_w[row, k] = w_start[k] + _G * (w[k] - w_start[k])
            clock[FRESH] = 0.0
            known = 0
        else:
            for k in range(n):
                qdot_end[k] = rate * (q_end[k] - _C1 * q_mid[k] + _C0 * q[k])
                space.f[k] = rate * h * (_E0 * qdot[k] + _E1 * qdot_mid[k] + _E2 * qdot_end[k])
            solve(plan, factors, space.f, space.dx, space.work)
            error = _bent(d, t, h, w_start, out_mid_w[row], w, w_peak, relative)
            for k in range(n):
                if d.weigh[k] > 0:
                    floor = voltage if d.weigh[k] == 1 else current
                    allowed = relative * max(peak[k], abs(trial[k])) + floor
                    error = max(error, abs(space.dx[k]) / allowed)
            factor = 0.9 * max(error, 1e-6) ** (-1.0 / 3.0)
            if not error <= 1.0:
                counters[REJECTED] += 1
                clock[STEP] = h * (min(max(factor, 0.1), 0.9) if np.isfinite(error) else 0.1)
                grown = False
                if clock[STEP] < minimum:
                    return TOO_SMALL, row, plan
                continue
            counters[ACCEPTED] += 1
            known = _remember(past_t, past_x, known, t + _G * h, out_mid[row])
            _copy(qdot, qdot_end)
            if h < 0.999 * clock[STEP]:
                if error > 1e-6:
                    clock[STEP] = min(clock[STEP], factor * h)
            elif factor < 1.0 or factor >= 1.2:
                # Otherwise the same again, which spares a factorisation where all is linear.
                clock[STEP] = min(factor, 2.5 if grown else 1.0) * h
            grown = True
        clock[NOW] = limit if lands else t + h
        for k in range(n):
            x[k], q[k], out_x[row, k] = trial[k], q_end[k], trial[k]
            peak[k] = max(peak[k], abs(x[k]))
        for k in range(len(w)):
            w_start[k], out_w[row, k] = w[k], w[k]
            w_peak[k] = max(w_peak[k], abs(w[k]))
        known = _remember(past_t, past_x, known, clock[NOW], x)
        out_t[row] = clock[NOW]
        out_h[row] = -h if euler else h
        row += 1
        if lands and corner <= limit + minimum:
            clock[FRESH] = 1.0
            corner = _corner(d, clock[NOW], minimum)
    return FULL if clock[NOW] < clock[STOP] else ARRIVED, row, plan
