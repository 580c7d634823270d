"""Crossbars with line resistance, many samples at once: alternating lines and a coarse correction.

The equations and symbols are those of `circuitsim.solver.kernels.wired`: drops u along word lines and x along
bit lines, ``u = T^-1 a (e - x)``, and KCL at the points of bit lines, ``S x = f`` with ``f = a (e - u)``.
Here a source stands behind the head of every line, so a port is held or the head includes what drives it.

A sweep replaces x by ``S^-1 f(x) + Z c``. The first term alone contracts the error by S^-1 a T^-1 a,
which is close to 1 for what varies slowly along both kinds of lines and small for all else. Z holds products
of piecewise linear functions of j and i; with r the residual of the old x, ``A = S - a T^-1 a`` and

    c = (Z'AZ)^-1 (Z'(S - A)Z) (Z'SZ)^-1 Z' r

the slow part is solved for, less what S^-1 f already did about it. Both terms together are a symmetric
preconditioner no larger than 2 A^-1, so the error shrinks in every sweep whatever the conductances are.

The state of a sweep is f, eliminated along the bit lines (``y``). S has two factors, eliminated from the free
end (j = 0) and from the sense end (j = R - 1): a sweep towards one end substitutes back in the one and
eliminates in the other, so each passes over y once. `LANES` samples lie side by side in the last dimension,
where each step along a word line needs no other lane's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.compiling import reordered

__all__ = [
    "LANES",
    "Sweeps",
    "coarse_words",
    "sense_pivots",
    "sum_products",
    "sweep_lanes",
    "write_drops",
]

LANES = 8
_ROUNDING = 1e-15


class Sweeps(NamedTuple):
    """One crossbar of R word lines and N bit lines, factored."""

    a: np.ndarray  # (R, N), r times the conductances
    word_pivot: np.ndarray  # (R, N), reciprocal pivots of T, heads included
    word_gain: np.ndarray  # (R, N), a times word_pivot
    free_pivot: np.ndarray  # (R, N), reciprocal pivots of S eliminated from the free end
    sense_pivot: np.ndarray  # (R, N), reciprocal pivots of S eliminated from the sense end
    word_head: np.ndarray  # (R,), conductances of the heads, times r
    bit_head: np.ndarray  # (N,)
    row_node: np.ndarray  # (R,), the coarse function that falls where a row lies; the next one rises
    row_share: np.ndarray  # (R,), how far it has risen
    column_node: np.ndarray  # (N,)
    column_share: np.ndarray  # (N,)
    plain: np.ndarray  # (k_rows, k_columns, k_rows, k_columns), Z'SZ
    correction: np.ndarray  # the same shape, from Z'r to c
    largest: float  # of a


@reordered
def sense_pivots(a: np.ndarray, bit_head: np.ndarray, sense_pivot: np.ndarray) -> None:
    """Write the reciprocal pivots (R, N) of S, eliminated from the sense end, for heads (N,)."""
    last, n = a.shape[0] - 1, a.shape[1]
    leak = bit_head.copy()
    for j in range(last, 0, -1):
        for i in range(n):
            total = leak[i] + a[j, i]
            pivot = 1.0 / (1.0 + total)
            sense_pivot[j, i] = pivot
            leak[i] = total * pivot
    for i in range(n):
        sense_pivot[0, i] = 1.0 / (leak[i] + a[0, i])


@reordered
def coarse_words(
    a: np.ndarray,
    word_pivot: np.ndarray,
    node: np.ndarray,
    share: np.ndarray,
    through: np.ndarray,
    shunt: np.ndarray,
) -> None:
    """Write ``P' a T^-1 a P`` and ``P' a P`` of every word line (R, k, k), P being coarse functions of i."""
    rows, n = a.shape
    k = through.shape[1]
    u = np.empty((n, k))
    for j in range(rows):
        through[j] = 0.0
        shunt[j] = 0.0
        last = np.zeros(k)
        for i in range(n - 1, -1, -1):
            q, w, g, pivot = node[i], share[i], a[j, i], word_pivot[j, i]
            shunt[j, q, q] += g * (1.0 - w) * (1.0 - w)
            last[q] += g * (1.0 - w)
            if w > 0.0:
                shunt[j, q, q + 1] += g * (1.0 - w) * w
                shunt[j, q + 1, q] += g * (1.0 - w) * w
                shunt[j, q + 1, q + 1] += g * w * w
                last[q + 1] += g * w
            for m in range(k):
                last[m] *= pivot
                u[i, m] = last[m]
        last[:] = 0.0
        for i in range(n):
            q, w, g, pivot = node[i], share[i], a[j, i], word_pivot[j, i]
            for m in range(k):
                last[m] = u[i, m] + pivot * last[m]
                through[j, q, m] += g * (1.0 - w) * last[m]
            if w > 0.0:
                for m in range(k):
                    through[j, q + 1, m] += g * w * last[m]


@reordered
def _blend(s: Sweeps, j: int, c: np.ndarray, value: np.ndarray, rise: np.ndarray) -> None:
    """Write the coarse part of x in row j at each coarse column (k, LANES), and its change to the next."""
    p, w = s.row_node[j], s.row_share[j]
    columns = c.shape[1]
    for q in range(columns):
        for l in range(LANES):
            value[q, l] = (1.0 - w) * c[p, q, l]
            if w > 0.0:
                value[q, l] += w * c[p + 1, q, l]
    for q in range(columns - 1):
        for l in range(LANES):
            rise[q, l] = value[q + 1, l] - value[q, l]
    rise[columns - 1] = 0.0


@reordered
def _sweep(
    s: Sweeps,
    upward: bool,
    word: np.ndarray,
    bit: np.ndarray,
    c: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    u: np.ndarray,
    projection: np.ndarray,
    flow: np.ndarray,
) -> None:
    """Replace ``y`` (R, N, LANES) by that of the next x; write Z'f and the largest port current (LANES,).

    ``upward``: from the sense end to the free end, y having been eliminated from the free end.
    """
    rows, n = s.a.shape
    columns = c.shape[1]
    value, rise = np.empty((columns, LANES)), np.empty((columns, LANES))
    falls, rises = np.empty((columns, LANES)), np.empty((columns, LANES))
    x[:] = 0.0
    u[n] = 0.0
    projection[:] = 0.0
    flow[:] = 0.0
    for step in range(rows):
        j = rows - 1 - step if upward else step
        before = j + 1 if upward else j - 1
        _blend(s, j, c, value, rise)
        for i in range(n - 1, -1, -1):
            pivot = s.free_pivot[j, i] if upward else s.sense_pivot[j, i]
            q, w = s.column_node[i], s.column_share[i]
            g, t = s.word_gain[j, i], s.word_pivot[j, i]
            for l in range(LANES):
                x[i, l] = pivot * (y[j, i, l] + x[i, l])
                e = word[j, l] - bit[i, l]
                u[i, l] = g * (e - x[i, l] - value[q, l] - w * rise[q, l]) + t * u[i + 1, l]
        falls[:] = 0.0
        rises[:] = 0.0
        for i in range(n):
            t, g = s.word_pivot[j, i], s.a[j, i]
            q, w = s.column_node[i], s.column_share[i]
            carry = 0.0
            if step > 0:
                carry = s.sense_pivot[before, i] if upward else s.free_pivot[before, i]
            last = i - 1 if i > 0 else n
            for l in range(LANES):
                u[i, l] += t * u[last, l]
                f = g * (word[j, l] - bit[i, l] - u[i, l])
                falls[q, l] += f
                rises[q, l] += w * f
                y[j, i, l] = f + carry * y[before if step > 0 else j, i, l]
        p, w = s.row_node[j], s.row_share[j]
        for q in range(columns):
            for l in range(LANES):
                part = falls[q, l] - rises[q, l]
                if q > 0:
                    part += rises[q - 1, l]
                projection[p, q, l] += (1.0 - w) * part
                if w > 0.0:
                    projection[p + 1, q, l] += w * part
        for l in range(LANES):
            flow[l] = max(flow[l], abs(s.word_head[j] * u[0, l]))


@reordered
def _open_row(
    s: Sweeps,
    j: int,
    upward: bool,
    word: np.ndarray,
    bit: np.ndarray,
    c: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    total: np.ndarray,
    u: np.ndarray,
    across: np.ndarray,
    value: np.ndarray,
    rise: np.ndarray,
) -> None:
    """Write x (``total``), u and the voltages across the devices of row j; ``x`` is S^-1 f so far."""
    n = s.a.shape[1]
    _blend(s, j, c, value, rise)
    u[n] = 0.0
    for i in range(n - 1, -1, -1):
        pivot = s.free_pivot[j, i] if upward else s.sense_pivot[j, i]
        q, w = s.column_node[i], s.column_share[i]
        g, t = s.word_gain[j, i], s.word_pivot[j, i]
        for l in range(LANES):
            x[i, l] = pivot * (y[j, i, l] + x[i, l])
            total[i, l] = x[i, l] + value[q, l] + w * rise[q, l]
            across[i, l] = word[j, l] - bit[i, l] - total[i, l]
            u[i, l] = g * across[i, l] + t * u[i + 1, l]
    for i in range(n):
        t = s.word_pivot[j, i]
        last = i - 1 if i > 0 else n
        for l in range(LANES):
            u[i, l] += t * u[last, l]
            across[i, l] -= u[i, l]


@reordered
def _check(
    s: Sweeps,
    upward: bool,
    tolerance: float,
    word: np.ndarray,
    bit: np.ndarray,
    c: np.ndarray,
    y: np.ndarray,
    word_current: np.ndarray,
    bit_current: np.ndarray,
) -> float:
    """Write r times the currents into the heads; return the residual over what is allowed.

    KCL at the points of word lines holds by construction; at those of bit lines segments are added up.
    """
    rows, n = s.a.shape
    columns = c.shape[1]
    value, rise = np.empty((columns, LANES)), np.empty((columns, LANES))
    x, total, before = np.zeros((n, LANES)), np.empty((n, LANES)), np.zeros((n, LANES))
    u, across, missing = np.empty((n + 1, LANES)), np.empty((n, LANES)), np.zeros((n, LANES))
    worst, largest, highest = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    for step in range(rows):
        j = rows - 1 - step if upward else step
        _open_row(s, j, upward, word, bit, c, y, x, total, u, across, value, rise)
        for l in range(LANES):
            word_current[j, l] = s.word_head[j] * u[0, l]
            if not abs(word_current[j, l]) < np.inf:
                return np.inf
            largest[l] = max(largest[l], abs(word_current[j, l]))
            highest[l] = max(highest[l], abs(word[j, l]))
        for i in range(n):
            for l in range(LANES):
                device = s.a[j, i] * across[i, l]
                largest[l] = max(largest[l], abs(device))
                if j == rows - 1:
                    bit_current[i, l] = -s.bit_head[i] * total[i, l]
                    device += bit_current[i, l]
                if step > 0:
                    segment = total[i, l] - before[i, l]
                    device -= segment
                    worst[l] = max(worst[l], abs(missing[i, l] + segment))
                missing[i, l] = device
                before[i, l] = total[i, l]
    ratio = 0.0
    for l in range(LANES):
        for i in range(n):
            worst[l] = max(worst[l], abs(missing[i, l]))
            largest[l] = max(largest[l], abs(bit_current[i, l]))
            highest[l] = max(highest[l], abs(bit[i, l]))
        # What the rounding of voltages and drops makes of the currents is nothing.
        allowed = tolerance * largest[l] + _ROUNDING * (s.largest + 2.0) * highest[l]
        if allowed > 0.0:
            ratio = max(ratio, worst[l] / allowed)
    return ratio


@reordered
def sweep_lanes(
    s: Sweeps,
    tolerance: float,
    most: int,
    word: np.ndarray,
    bit: np.ndarray,
    y: np.ndarray,
    c: np.ndarray,
    word_current: np.ndarray,
    bit_current: np.ndarray,
) -> int:
    """Solve LANES samples; return the number of sweeps, negative where they did not reach the tolerance.

    Args:
        word, bit: (R, LANES), (N, LANES) V, source voltages.
        tolerance: of KCL at the points, relative to the largest current.
        most: sweeps.
        y, c: (R, N, LANES), (k_rows, k_columns, LANES), the state, written. After an odd number of sweeps y
            is eliminated from the free end, after an even one from the sense end.
        word_current, bit_current: (R, LANES), (N, LANES) V, r times the current that leaves each source into
            its line, written.
    """
    rows, n = s.a.shape
    k_rows, k_columns = c.shape[0], c.shape[1]
    x, u = np.empty((n, LANES)), np.empty((n + 1, LANES))
    projection, last = np.empty(c.shape), np.zeros(c.shape)
    remains, flow = np.empty(c.shape), np.empty(LANES)
    y[:] = 0.0
    c[:] = 0.0
    mass = rows * n / (k_rows * k_columns)
    before, wait = np.inf, 0
    for count in range(1, most + 1):
        upward = count % 2 == 0
        _sweep(s, upward, word, bit, c, y, x, u, projection, flow)
        # What Z sees of the residual of the old x = S^-1 f_last + Z c.
        for p in range(k_rows):
            for q in range(k_columns):
                for l in range(LANES):
                    total = projection[p, q, l] - last[p, q, l]
                    # A segment that passes a coarse node joins three functions of j.
                    for m in range(max(0, p - 2), min(k_rows, p + 3)):
                        for o in range(max(0, q - 1), min(k_columns, q + 2)):
                            total -= s.plain[p, q, m, o] * c[m, o, l]
                    remains[p, q, l] = total
        last[:] = projection
        c[:] = 0.0
        now = 0.0
        for p in range(k_rows):
            for q in range(k_columns):
                for m in range(k_rows):
                    for o in range(k_columns):
                        for l in range(LANES):
                            c[p, q, l] += s.correction[p, q, m, o] * remains[m, o, l]
                for l in range(LANES):
                    if remains[p, q, l] != 0.0:
                        now = max(now, abs(remains[p, q, l]) / (mass * tolerance * flow[l]))
        wait -= 1
        rate = min(0.7, max(1e-3, now / before)) if before > 0.0 else 1e-3
        before = now
        if wait <= 0 and not now * rate > 1.0:
            ratio = _check(s, not upward, tolerance, word, bit, c, y, word_current, bit_current)
            if ratio <= 1.0:
                return count
            if not ratio < np.inf:
                return -count
            wait = int(np.ceil(np.log(ratio) / -np.log(rate)))
    return -most


@reordered
def write_drops(s: Sweeps, sweeps: int, c: np.ndarray, y: np.ndarray, bit_drop: np.ndarray) -> None:
    """Write x of the first samples of a state that `sweep_lanes` left into ``bit_drop`` (samples, R, N) V."""
    rows, n = s.a.shape
    columns = c.shape[1]
    value, rise = np.empty((columns, LANES)), np.empty((columns, LANES))
    x = np.zeros((n, LANES))
    upward = sweeps % 2 == 1
    for step in range(rows):
        j = rows - 1 - step if upward else step
        _blend(s, j, c, value, rise)
        for i in range(n):
            pivot = s.free_pivot[j, i] if upward else s.sense_pivot[j, i]
            q, w = s.column_node[i], s.column_share[i]
            for l in range(LANES):
                x[i, l] = pivot * (y[j, i, l] + x[i, l])
            for l in range(len(bit_drop)):
                bit_drop[l, j, i] = x[i, l] + value[q, l] + w * rise[q, l]


@reordered
def sum_products(
    s: Sweeps, sweeps: int, word: np.ndarray, bit: np.ndarray, c: np.ndarray, y: np.ndarray, total: np.ndarray
) -> None:
    """Add to ``total`` (R, N) the product of the voltages across each device in lanes l and l + LANES / 2."""
    rows, n = s.a.shape
    columns = c.shape[1]
    value, rise = np.empty((columns, LANES)), np.empty((columns, LANES))
    x, drop = np.zeros((n, LANES)), np.empty((n, LANES))
    u, across = np.empty((n + 1, LANES)), np.empty((n, LANES))
    upward = sweeps % 2 == 1
    for step in range(rows):
        j = rows - 1 - step if upward else step
        _open_row(s, j, upward, word, bit, c, y, x, drop, u, across, value, rise)
        for i in range(n):
            product = 0.0
            for l in range(LANES // 2):
                product += across[i, l] * across[i, l + LANES // 2]
            total[j, i] += product
