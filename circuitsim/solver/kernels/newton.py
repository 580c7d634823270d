"""Damped Newton on the reduced MNA equations, sample by sample; threads take ranges of samples.

Unknowns x: the voltages of nodes that no grounded source fixes, then the currents of the remaining
voltage-defined branches. With the linear part A (CSC, values in ``linear``),

    F(x) = A x + constant + diodes + amplifiers + softmax loads + K (x - x0),    J dx = F,    x <- x - dx.

K = J0^T - J0 is present in the corrected phase only. Diodes and amplifiers are linearised at voltages
of their own, which follow the nodes by limited steps (Nagel's limiting for junctions): where nothing
is limited this is Newton's method. Ideal diodes conduct or block by a state of their own, which follows
their drops. Where full steps do not settle, each step ends among the kinks that it crosses: in a
reciprocal circuit F is the gradient of a convex function, and the step ends where that is least; else
it ends at the first kink, as in Katzenelson's method (1965). If all this fails, a shunt conductance to
the start point is lowered step by step (gmin stepping), then all excitation is raised step by step
(source stepping).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.compiling import strict
from circuitsim.solver.kernels.formulas import formula_value_and_slopes
from circuitsim.solver.kernels.sparse_lu import (
    OK,
    new_factors,
    refactor,
    repivot,
    solve,
    solve_transposed,
)

__all__ = [
    "CONVERGED",
    "DIVERGED",
    "SINGULAR",
    "UNFINISHED",
    "Circuit",
    "adjoint_batch",
    "newton_batch",
    "small_signal_values",
]

CONVERGED, UNFINISHED, SINGULAR, DIVERGED = 0, 1, 2, 3

_LARGEST_EXPONENT = 200.0
_TOO_LARGE = 1e9
# With behavioural sources voltages and currents may be larger, sinh(20) V say, but no step leads farther than
# this plus ten times the largest: the logarithm of a node that is still at 0 V is -1e99.
_TOO_LARGE_BEHAVIOURAL = 1e18
_FARTHEST = 1e4
_ROUNDINGS = 16 * np.finfo(np.float64).eps
# An ideal diode's current is known to this part of its conductance times its nodes' voltages.
_KINK_ROUNDINGS = 4.0 * float(np.finfo(np.float64).eps)
# Iterations with full steps before steps end at the kinks of ideal diodes.
_FREE_STEPS = 15
# Steps that stay below this part of the largest voltage without getting smaller are rounding.
_STALLED = 1e-8


class Circuit(NamedTuple):
    """Structure and values of one flat circuit. Indices of -1 mean: not an unknown."""

    indptr: np.ndarray  # (n + 1,) CSC pattern of J, structurally symmetric
    indices: np.ndarray  # (nnz,)
    transpose: np.ndarray  # (nnz,) where the transposed entry stands
    diagonal: np.ndarray  # (n,) where the diagonal entries stand
    linear: np.ndarray  # (nnz,) values of A
    is_node: np.ndarray  # (n,) bool: a KCL row [A], not a branch equation [V]
    node_unknown: np.ndarray  # (N,) unknown of each node
    # Diodes: nodes, slots (pos,pos) (pos,neg) (neg,pos) (neg,neg), Is, N*Vt, parallel conductance.
    d_pos: np.ndarray
    d_neg: np.ndarray
    d_slot: np.ndarray  # (D, 4)
    d_is: np.ndarray
    d_slope: np.ndarray
    d_gmin: np.ndarray
    d_bv: np.ndarray  # breakdown voltage, inf for none, and its slope voltage
    d_bv_slope: np.ndarray
    d_cjo: np.ndarray  # depletion capacitance, junction potential, grading, limit; transit time
    d_vj: np.ndarray
    d_m: np.ndarray
    d_fc: np.ndarray
    d_tt: np.ndarray
    # Ideal diodes: nodes, slots as those of diodes, conductance.
    z_pos: np.ndarray
    z_neg: np.ndarray
    z_slot: np.ndarray  # (Z, 4)
    z_g: np.ndarray
    # Amplifiers: branch row, control nodes, slots (row,cpos) (row,cneg), gain, saturation, offset.
    b_row: np.ndarray
    b_cpos: np.ndarray
    b_cneg: np.ndarray
    b_slot: np.ndarray  # (A, 2)
    b_gain: np.ndarray
    b_sat: np.ndarray
    b_off: np.ndarray
    # Formulas: tapes one after another.
    f_ptr: np.ndarray  # (F + 1,)
    f_op: np.ndarray
    f_a: np.ndarray
    f_b: np.ndarray
    f_c: np.ndarray
    f_constant: np.ndarray
    # Behavioural sources: formula, branch row (-1 for a current source), nodes, inputs.
    e_formula: np.ndarray  # (E,)
    e_row: np.ndarray
    e_pos: np.ndarray
    e_neg: np.ndarray
    e_ptr: np.ndarray  # (E + 1,)
    x_pos: np.ndarray  # (inputs,) nodes of a sensed drop
    x_neg: np.ndarray
    x_branch: np.ndarray  # unknown of a sensed current, -1 for a drop
    x_sign: np.ndarray  # (inputs, 4)
    x_slot: np.ndarray  # (inputs, 4)
    # Softmax loads, one group after another; the last one may be the drive's nudge.
    s_ptr: np.ndarray  # (G + 1,)
    s_pos: np.ndarray
    s_neg: np.ndarray
    s_slot: np.ndarray  # (sum K^2, 4), pairs (k, m) in row-major order within a group
    s_slot_ptr: np.ndarray  # (G + 1,)
    s_amplitude: np.ndarray  # (G,)
    s_scale: np.ndarray  # (G,)


@strict
def junction(v: float, i_s: float, slope: float, bv: float, bv_slope: float) -> tuple[float, float]:
    """Current [A] and conductance [S] of a diode without gmin; see `circuitsim.netlist.models`."""
    x = v / slope
    if x >= -3.0:
        e = min(x, _LARGEST_EXPONENT)
        y = np.exp(e)
        return i_s * (np.expm1(e) + y * (x - e)), i_s / slope * y
    if v >= -bv:
        q = 3.0 / (np.e * x)
        cube = q * q * q
        return -i_s * (1.0 + cube), 3.0 * i_s / slope * cube / x
    depth = (-bv - v) / bv_slope
    e = min(depth, _LARGEST_EXPONENT)
    y = np.exp(e)
    return -i_s * y * (1.0 + depth - e), i_s / bv_slope * y


@strict
def junction_charge(  # type: ignore[no-untyped-def]
    v, i, g, tt, cjo, vj, m, fc
):
    """Charge [C] and capacitance [F] of a diode at drop v, whose junction carries i with conductance g.

    Numbers only: handing over all arrays of a circuit would cost more than the rest.
    """
    q, cap = tt * i, tt * g
    if cjo > 0.0:
        below = min(v, fc * vj)
        ratio = 1.0 - below / vj
        power = ratio ** (-m)
        q += cjo * vj * (1.0 - ratio * power) / (1.0 - m)
        if v > below:
            f2 = (1.0 - fc) ** (1.0 + m)
            f3 = 1.0 - fc * (1.0 + m)
            q += cjo / f2 * (f3 * (v - below) + m / (2.0 * vj) * (v * v - below * below))
            cap += cjo / f2 * (f3 + m * v / vj)
        else:
            cap += cjo * power
    return q, cap


@strict
def _amplifier(v: float, gain: float, sat: float, off: float) -> tuple[float, float]:
    """Output [V] and gain of ``sat * tanh(gain * (v + off) / sat)``."""
    z = gain * (v + off)
    if np.isinf(sat):
        return z, gain
    t = np.tanh(z / sat)
    return sat * t, gain * (1.0 - t * t)


@strict
def _limited_forward(new: float, old: float, i_s: float, slope: float) -> float:
    critical = slope * np.log(slope / (np.sqrt(2.0) * i_s))
    if new > critical and abs(new - old) > 2.0 * slope:
        if old > 0.0:
            step = (new - old) / slope
            return old + slope * np.log1p(step) if step > 0.0 else old + max(new - old, -10.0 * slope)
        return slope * np.log(max(new / slope, 1.0))
    return new


@strict
def _limited_junction(new: float, old: float, i_s: float, slope: float, bv: float, bv_slope: float) -> float:
    # Near breakdown the mirrored junction is limited, as in ngspice.
    if new < min(0.0, -bv + 10.0 * bv_slope):
        mirrored = -(new + bv)
        limited = _limited_forward(mirrored, -(old + bv), i_s, bv_slope)
        # Mirroring twice would round: what is not limited must come back as it is.
        return new if limited == mirrored else -(limited + bv)
    return _limited_forward(new, old, i_s, slope)


@strict
def _limited_control(new: float, old: float, gain: float, sat: float, off: float) -> float:
    """Let a saturating amplifier's control voltage cross its linear region in bounded steps."""
    if np.isinf(sat) or gain == 0.0:
        return new
    unit = sat / abs(gain)
    z_old, z_new = (old + off) / unit, (new + off) / unit
    if abs(z_new - z_old) <= 2.0 or (z_old * z_new > 0.0 and abs(z_old) >= 1.0 and abs(z_new) >= 1.0):
        return new
    if abs(z_old) > 1.0:
        z = np.sign(z_old)
    else:
        z = z_old + 2.0 * np.sign(z_new - z_old)
    return z * unit - off


@strict
def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """Spelt out: slice assignment makes numba compile the text of its error message, for seconds."""
    for k in range(len(source)):
        target[k] = source[k]


@strict
def _add(values: np.ndarray, slot: int, amount: float) -> None:
    if slot >= 0:
        values[slot] += amount


@strict
def _leave(f: np.ndarray, unknown: np.ndarray, pos: int, neg: int, current: float) -> None:
    p, q = unknown[pos], unknown[neg]
    if p >= 0:
        f[p] += current
    if q >= 0:
        f[q] -= current


@strict
def _softmax_loads(c, v, target, f, values):  # type: ignore[no-untyped-def]
    for g in range(len(c.s_ptr) - 1):
        a, b = c.s_ptr[g], c.s_ptr[g + 1]
        size = b - a
        scale, amplitude = c.s_scale[g], c.s_amplitude[g]
        if amplitude == 0.0:
            continue
        p = np.empty(size)
        top = -np.inf
        for k in range(size):
            p[k] = (v[c.s_pos[a + k]] - v[c.s_neg[a + k]]) / scale
            top = max(top, p[k])
        total = 0.0
        for k in range(size):
            p[k] = np.exp(p[k] - top)
            total += p[k]
        for k in range(size):
            p[k] /= total
        for k in range(size):
            _leave(f, c.node_unknown, c.s_pos[a + k], c.s_neg[a + k], amplitude * (p[k] - target[a + k]))
            for m in range(size):
                h = -p[k] * p[m]
                if k == m:
                    h += p[k]
                h *= amplitude / scale
                slot = c.s_slot[c.s_slot_ptr[g] + k * size + m]
                _add(values, slot[0], h)
                _add(values, slot[1], -h)
                _add(values, slot[2], -h)
                _add(values, slot[3], h)


@strict
def _behavioural(c, v, x, time, level, f, size, values):  # type: ignore[no-untyped-def]
    """Add behavioural sources, ``level`` times their value, to F and J. Returns whether all had one.

    One without a value, as the logarithm of a voltage that is still negative, counts as 0.
    """
    valid = True
    longest = 0
    for k in range(len(c.f_ptr) - 1):
        longest = max(longest, c.f_ptr[k + 1] - c.f_ptr[k])
    y, bar = np.empty(longest), np.empty(longest)
    inputs, slopes = np.empty(len(c.x_pos)), np.empty(len(c.x_pos))
    for k in range(len(c.x_pos)):
        inputs[k] = x[c.x_branch[k]] if c.x_branch[k] >= 0 else v[c.x_pos[k]] - v[c.x_neg[k]]
    for k in range(len(c.e_row)):
        tape, first, last = c.e_formula[k], c.e_ptr[k], c.e_ptr[k + 1]
        out = level * formula_value_and_slopes(
            c.f_op,
            c.f_a,
            c.f_b,
            c.f_c,
            c.f_constant,
            c.f_ptr[tape],
            c.f_ptr[tape + 1],
            inputs,
            first,
            last - first,
            time,
            y,
            bar,
            slopes,
        )
        row = c.e_row[k]
        if not np.isfinite(out):
            valid, out = False, 0.0
        if row < 0:
            _leave(f, c.node_unknown, c.e_pos[k], c.e_neg[k], out)
            _leave(size, c.node_unknown, c.e_pos[k], 0, abs(out))
            _leave(size, c.node_unknown, c.e_neg[k], 0, abs(out))
        else:
            f[row] -= out
        for m in range(first, last):
            for corner in range(4):
                _add(values, c.x_slot[m, corner], c.x_sign[m, corner] * level * slopes[m])
    return valid


@strict
def _conducting(c, v, z_on):  # type: ignore[no-untyped-def]
    for k in range(len(z_on)):
        z_on[k] = v[c.z_pos[k]] > v[c.z_neg[k]]


@strict
def _ideal_diodes(c, v, z_on, f, values):  # type: ignore[no-untyped-def]
    """Add those ideal diodes to F and J that conduct; return the largest current g |v| at one's ends."""
    largest = 0.0
    for k in range(len(z_on)):
        if z_on[k]:
            g, v_pos, v_neg = c.z_g[k], v[c.z_pos[k]], v[c.z_neg[k]]
            _leave(f, c.node_unknown, c.z_pos[k], c.z_neg[k], g * (v_pos - v_neg))
            _add(values, c.z_slot[k, 0], g)
            _add(values, c.z_slot[k, 1], -g)
            _add(values, c.z_slot[k, 2], -g)
            _add(values, c.z_slot[k, 3], g)
            largest = max(largest, g * max(abs(v_pos), abs(v_neg)))
    return largest


@strict
def _is_wrong(on: bool, drop: float, reach: float, g: float, floor: float) -> bool:
    """Whether a state does not fit a drop by more than rounding and ``floor`` [A]."""
    return on != (drop > 0.0) and g * abs(drop) > _KINK_ROUNDINGS * g * reach + floor


@strict
def _switch(c, v, z_on, floor):  # type: ignore[no-untyped-def]
    """Let the states of ideal diodes follow their drops; return whether one changed."""
    changed = False
    for k in range(len(z_on)):
        v_pos, v_neg = v[c.z_pos[k]], v[c.z_neg[k]]
        if _is_wrong(z_on[k], v_pos - v_neg, max(abs(v_pos), abs(v_neg)), c.z_g[k], floor):
            z_on[k] = not z_on[k]
            changed = True
    return changed


@strict
def _step_to_kinks(c, v, z_on, dx, f, longest, floor, at):  # type: ignore[no-untyped-def]
    """Switch the ideal diodes that a step -dx crosses up to its part t <= longest, the one to take.

    phi(t) = sum over nodes of dx_k F_k(x - t dx) falls from phi(0) = dx^T J dx at the rate phi(0). On the
    way every diode that starts to conduct adds g (change of its drop)^2 to that rate, one that stops takes
    as much away. In a reciprocal circuit -phi is the slope along the step of a convex function, least at t.
    ``at`` (Z,) is room for the parts of the step at which diodes switch. Returns (t, whether one did).
    """
    curvature = 0.0
    for k in range(len(dx)):
        if c.is_node[k]:
            curvature += dx[k] * f[k]
    for k in range(len(z_on)):
        p, q = c.z_pos[k], c.z_neg[k]
        change = 0.0
        if c.node_unknown[p] >= 0:
            change -= dx[c.node_unknown[p]]
        if c.node_unknown[q] >= 0:
            change += dx[c.node_unknown[q]]
        drop = v[p] - v[q]
        at[k] = np.inf
        if _is_wrong(z_on[k], drop + change, max(abs(v[p]), abs(v[q])), c.z_g[k], floor):
            at[k] = -drop / change if z_on[k] == (drop > 0.0) else 0.0
    phi, t, switched = curvature, 0.0, False
    descends = curvature > 0.0
    while True:
        first = -1
        for k in range(len(z_on)):
            if at[k] <= longest and (first < 0 or at[k] < at[first]):
                first = k
        end = at[first] if first >= 0 else longest
        if descends and phi <= curvature * (end - t):
            return min(t + phi / curvature, longest), switched
        if first < 0:
            return longest, switched
        phi -= curvature * (end - t)
        t = end
        change = 0.0
        if c.node_unknown[c.z_pos[first]] >= 0:
            change -= dx[c.node_unknown[c.z_pos[first]]]
        if c.node_unknown[c.z_neg[first]] >= 0:
            change += dx[c.node_unknown[c.z_neg[first]]]
        curvature += (-1.0 if z_on[first] else 1.0) * c.z_g[first] * change * change
        z_on[first], switched = not z_on[first], True
        at[first] = np.inf
        if not descends:
            return t, switched


@strict
def _nonlinear(c, v, x, d_at, b_at, target, time, level, rate, f, size, values):  # type: ignore[no-untyped-def]
    """Add nonlinear elements to F and J, linearised at ``d_at`` and ``b_at``; return whether all are valid.

    ``rate`` [1/s] times the charge of a junction counts as its current; 0 at an operating point.
    """
    for k in range(len(c.d_pos)):
        i, g = junction(d_at[k], c.d_is[k], c.d_slope[k], c.d_bv[k], c.d_bv_slope[k])
        if rate > 0.0:
            q, cap = junction_charge(d_at[k], i, g, c.d_tt[k], c.d_cjo[k], c.d_vj[k], c.d_m[k], c.d_fc[k])
            i += rate * q
            g += rate * cap
        i += c.d_gmin[k] * d_at[k]
        g += c.d_gmin[k]
        drop = v[c.d_pos[k]] - v[c.d_neg[k]]
        _leave(f, c.node_unknown, c.d_pos[k], c.d_neg[k], i + g * (drop - d_at[k]))
        _add(values, c.d_slot[k, 0], g)
        _add(values, c.d_slot[k, 1], -g)
        _add(values, c.d_slot[k, 2], -g)
        _add(values, c.d_slot[k, 3], g)
    for k in range(len(c.b_row)):
        out, a = _amplifier(b_at[k], c.b_gain[k], c.b_sat[k], c.b_off[k])
        control = v[c.b_cpos[k]] - v[c.b_cneg[k]]
        f[c.b_row[k]] -= out + a * (control - b_at[k])
        _add(values, c.b_slot[k, 0], -a)
        _add(values, c.b_slot[k, 1], a)
    if len(c.s_ptr) > 1:
        _softmax_loads(c, v, target, f, values)
    if len(c.e_row) > 0:
        return _behavioural(c, v, x, time, level, f, size, values)
    return True


@strict
def _spread(c, x, v):  # type: ignore[no-untyped-def]
    for node in range(len(v)):
        k = c.node_unknown[node]
        if k >= 0:
            v[node] = x[k]


@strict
def _controls(c, v, d_at, b_at):  # type: ignore[no-untyped-def]
    for k in range(len(d_at)):
        d_at[k] = v[c.d_pos[k]] - v[c.d_neg[k]]
    for k in range(len(b_at)):
        b_at[k] = v[c.b_cpos[k]] - v[c.b_cneg[k]]


@strict
def _product(c, values, x, f, size):  # type: ignore[no-untyped-def]
    """f += A x; size += |A| |x|."""
    for j in range(len(x)):
        for s in range(c.indptr[j], c.indptr[j + 1]):
            term = values[s] * x[j]
            f[c.indices[s]] += term
            size[c.indices[s]] += abs(term)


@strict
def _iterate(  # type: ignore[no-untyped-def]
    c, plan, linear, x, v, constant, correction, x0, target, moment, shunt, x_ref, limits, max_iterations
):
    """Newton from x, in place, on ``linear x + constant + nonlinear(x) = 0``. Returns (status, iterations).

    ``moment``: (time, level, rate) of `_nonlinear`.
    """
    n = len(x)
    relative, absolute, voltage = limits
    time, level, rate = moment
    f = np.empty(n)
    size = np.empty(n)
    dx = np.zeros(n)
    step = np.empty(n)
    work = np.empty(n)
    values = np.empty(len(linear))
    d_at = np.empty(len(c.d_pos))
    b_at = np.empty(len(c.b_row))
    corrected = len(correction) > 0
    behavioural = len(c.e_row) > 0
    too_large = _TOO_LARGE_BEHAVIOURAL if behavioural else _TOO_LARGE
    kinks = len(c.z_pos)
    z_on, z_at = np.empty(kinks, np.bool_), np.empty(kinks)
    all_linear = len(d_at) == 0 and len(b_at) == 0 and len(target) == 0 and not behavioural and kinks == 0
    factors = new_factors(plan)
    _spread(c, x, v)
    _controls(c, v, d_at, b_at)
    _conducting(c, v, z_on)
    settled = False
    stalled, last = 0, np.inf
    for iteration in range(max_iterations + 1):
        _copy(values, linear)
        _copy(f, constant)
        for k in range(n):
            size[k] = abs(constant[k])
        _product(c, linear, x, f, size)
        if corrected:
            for k in range(n):
                step[k] = x[k] - x0[k]
            _product(c, correction, step, f, size)
            for k in range(len(values)):
                values[k] += correction[k]
        valid = _nonlinear(c, v, x, d_at, b_at, target, time, level, rate, f, size, values)
        through = _ideal_diodes(c, v, z_on, f, values)
        if shunt > 0.0:
            for k in range(n):
                if c.is_node[k]:
                    f[k] += shunt * (x[k] - x_ref[k])
                    values[c.diagonal[k]] += shunt
        worst_i, worst_v, scale_i, scale_v, reach = 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(n):
            reach = max(reach, abs(x[k]))
            if c.is_node[k]:
                worst_i = max(worst_i, abs(f[k]))
                scale_i = max(scale_i, size[k])
                scale_v = max(scale_v, abs(x[k]))
            else:
                # The equation of an amplifier with a gain of 1e6 holds to 1e6 roundings of a volt, no better.
                worst_v = max(worst_v, abs(f[k]) - _ROUNDINGS * size[k])
                scale_i = max(scale_i, abs(x[k]))
        if not np.isfinite(worst_i + worst_v) or scale_v > too_large:
            return DIVERGED, iteration
        allowed = 0.1 * relative * scale_i + absolute
        small = worst_i <= allowed + _KINK_ROUNDINGS * through and worst_v <= 0.01 * voltage + 1e-13 * scale_v
        # A milliohm beside a kilohm lets no step fall below 1e-16 * 6 V / 1 mohm * 1 kohm.
        if (settled or stalled >= 3) and small and valid:
            return CONVERGED, iteration
        if iteration == max_iterations:
            return UNFINISHED, iteration
        if refactor(plan, values, factors, work) != OK:
            found = repivot(plan, values)
            if found[0] != OK:
                return SINGULAR, iteration
            solve(found[-2], found[-1], f, dx, work)
        else:
            solve(plan, factors, f, dx, work)
        # Behavioural sources are not limited: smaller steps end the cycles that sharp ones lead into.
        damping = 1.0
        if behavioural and iteration >= 20:
            damping = 0.5 if iteration < 60 else 0.2
        limited = False
        if kinks > 0 and iteration >= _FREE_STEPS:
            damping, switched = _step_to_kinks(c, v, z_on, dx, f, damping, 0.01 * allowed, z_at)
            limited = switched or damping < 1.0
        farthest = _FARTHEST + 10.0 * reach
        largest = 0.0
        for k in range(n):
            x[k] -= damping * dx[k]
            if behavioural:
                x[k] = min(max(x[k], -farthest), farthest)
            if c.is_node[k]:
                largest = max(largest, abs(dx[k]))
        _spread(c, x, v)
        if kinks > 0 and iteration < _FREE_STEPS:
            limited = _switch(c, v, z_on, 0.01 * allowed)
        for k in range(len(d_at)):
            new = v[c.d_pos[k]] - v[c.d_neg[k]]
            d_at[k] = _limited_junction(new, d_at[k], c.d_is[k], c.d_slope[k], c.d_bv[k], c.d_bv_slope[k])
            limited = limited or d_at[k] != new
        for k in range(len(b_at)):
            new = v[c.b_cpos[k]] - v[c.b_cneg[k]]
            b_at[k] = _limited_control(new, b_at[k], c.b_gain[k], c.b_sat[k], c.b_off[k])
            limited = limited or b_at[k] != new
        settled = not limited and (largest <= voltage + 1e-12 * scale_v or all_linear)
        stalls = not limited and small and 0.25 * last <= largest <= voltage + _STALLED * scale_v
        stalled = stalled + 1 if stalls else 0
        last = largest
    return UNFINISHED, max_iterations


@strict
def _solve_sample(c, plan, x, v, constant, correction, x0, target, time, limits, max_iterations):  # type: ignore[no-untyped-def]
    """Plain Newton, then gmin stepping, then source stepping. Returns (status, iterations)."""
    plain, gmin_stepping, source_stepping = 0, 1, 2
    start = x.copy()
    good = x.copy()
    scaled = constant.copy()
    largest = 1e-12
    for k in range(len(c.linear)):
        largest = max(largest, abs(c.linear[k]))
    shunt, factor = 0.0, 10.0
    reached, stride, level = 0.0, 0.1, 1.0
    stage, total = plain, 0
    status = UNFINISHED
    # Every ideal diode may take a step of its own.
    kinks = len(c.z_pos)
    while total < 10 * (max_iterations + kinks):
        most = kinks + (min(max_iterations, 60) if stage == plain else max_iterations)
        moment = (time, level, 0.0)
        status, used = _iterate(
            c, plan, c.linear, x, v, scaled, correction, x0, target, moment, shunt, start, limits, most
        )
        total += used + 1
        found = status == CONVERGED
        if found and shunt == 0.0 and level == 1.0:
            return status, total - 1
        failed = False
        if stage == plain:
            stage, shunt = gmin_stepping, min(largest, 1.0)
            _copy(x, start)
        elif stage == gmin_stepping:
            if found:
                _copy(good, x)
                shunt = 0.0 if shunt < 1e-13 else shunt / factor
                factor = min(factor * 2.0, 10.0)
            else:
                _copy(x, good)
                factor = np.sqrt(factor)
                failed = factor < 1.05 or shunt == 0.0 or total > 5 * (max_iterations + kinks)
                shunt *= factor
            if failed:
                if len(correction) > 0:
                    # An anchored phase is not defined at reduced excitation.
                    return status, total
                stage, shunt = source_stepping, 0.0
                good.fill(0.0)
        elif found:
            _copy(good, x)
            reached = level
            stride = min(2.0 * stride, 0.25)
        else:
            stride *= 0.5
            if stride < 1e-6:
                break
        if stage == source_stepping:
            level = min(1.0, reached + stride)
            _copy(x, good)
            for k in range(len(constant)):
                scaled[k] = level * constant[k]
    # The last step may have converged, but with a shunt or at reduced excitation.
    return max(status, UNFINISHED), total


@strict
def _smooth_values(c, v, x, target):  # type: ignore[no-untyped-def]
    """Values of J at node voltages v, unknowns x, without ideal diodes."""
    values = c.linear.copy()
    f, size = np.empty(len(c.is_node)), np.empty(len(c.is_node))
    d_at = np.empty(len(c.d_pos))
    b_at = np.empty(len(c.b_row))
    _controls(c, v, d_at, b_at)
    _nonlinear(c, v, x, d_at, b_at, target, 0.0, 1.0, 0.0, f, size, values)
    return values


@strict
def small_signal_values(c, v, x, target):  # type: ignore[no-untyped-def]
    """Values of J at node voltages v, unknowns x."""
    values = _smooth_values(c, v, x, target)
    z_on = np.empty(len(c.z_pos), np.bool_)
    _conducting(c, v, z_on)
    _ideal_diodes(c, v, z_on, np.empty(len(c.is_node)), values)
    return values


@strict
def newton_batch(  # type: ignore[no-untyped-def]
    c, plan, x, v, constant, x0, v0, factor, target, time, limits, max_iterations, status, iterations
):
    """Solve B samples in place: x (B, n), v (B, N) with fixed nodes filled in, status and iterations (B,).

    ``x0``, ``v0``: anchors (B, n), (B, N) of the corrected phase, or (B, 0). ``factor`` multiplies the
    entries of J0^T - J0 where the correction is not perfect, or is empty. ``target`` (B, sum K):
    targets of the softmax loads, whose Jacobian is symmetric and so leaves J0^T - J0 as it is.
    """
    for b in range(len(x)):
        correction = np.empty(0)
        if x0.shape[1] > 0:
            # Ideal diodes are the same in J0 and J0^T; taking them in would leave their rounding.
            j0 = _smooth_values(c, v0[b], x0[b], target[b])
            correction = np.empty(len(j0))
            for k in range(len(j0)):
                correction[k] = j0[c.transpose[k]] - j0[k]
            for k in range(len(factor)):
                correction[k] *= factor[k]
        status[b], iterations[b] = _solve_sample(
            c, plan, x[b], v[b], constant[b], correction, x0[b], target[b], time, limits, max_iterations
        )


@strict
def adjoint_batch(c, plan, v, x, target, load, s, status):  # type: ignore[no-untyped-def]
    """Solve ``J^T s = -load`` at voltages v (B, N), unknowns x (B, n), for loads (B, n) into s (B, n)."""
    n = load.shape[1]
    factors = new_factors(plan)
    work = np.empty(n)
    for b in range(len(load)):
        values = small_signal_values(c, v[b], x[b], target[b])
        status[b] = CONVERGED
        if refactor(plan, values, factors, work) == OK:
            solve_transposed(plan, factors, load[b], s[b], work)
        else:
            found = repivot(plan, values)
            if found[0] == OK:
                solve_transposed(found[-2], found[-1], load[b], s[b], work)
            else:
                status[b] = SINGULAR
        for k in range(n):
            s[b, k] = -s[b, k]
