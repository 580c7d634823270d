"""One step of an optimiser on one half of a crossbar, in one pass over its conductances.

The slope of device (j, i) is ``word_j + bit_i - sign * p_ji`` with the product p = left^T right, given as a
matrix or, where its rank is small, formed row by row. Steps are in fractions of the window
``g_max - g_min``, to which conductances are clipped; ``unit`` [S] makes costs dimensionless.

    sgd     m <- momentum m + slope w / unit,            g <- g - rate w m
    adam    m <- m + (1 - b1) (slope w - m),  v likewise with its square
            g <- g - rate w (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + least)

w is the window (Kingma and Ba 2015). Rows first to last; g, m, v are (M, N) and change in place. The two
halves of a pair, on word lines at opposite voltages, have slopes of opposite ``sign``. No sum is reordered: a
device's step is rounded alike wherever threads divide the rows.
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import fused

__all__ = ["LOW_RANK", "adam_pairs", "adam_rows", "sgd_pairs", "sgd_rows"]

LOW_RANK = 16
"""Rank up to which a product is formed row by row inside the step, which saves two passes over it."""
_NARROW = 24
"""Bit lines up to which slopes are found along word lines, which are more, and vectorise better."""


@fused
def _narrow_slopes(first, last, left, right, sign, word, bit):  # type: ignore[no-untyped-def]
    """Return the slopes (last - first, N) of rows, of a product of small rank."""
    n, rank, rows = len(bit), left.shape[0], last - first
    column, slopes = np.empty(rows, left.dtype), np.empty((rows, n), left.dtype)
    for i in range(n):
        for j in range(rows):
            column[j] = bit[i]
        if len(word) > 0:
            for j in range(rows):
                column[j] += word[first + j]
        k = 0
        while k + 4 <= rank:
            f0, f1, f2, f3 = right[k, i], right[k + 1, i], right[k + 2, i], right[k + 3, i]
            l0, l1 = left[k][first:last], left[k + 1][first:last]
            l2, l3 = left[k + 2][first:last], left[k + 3][first:last]
            for j in range(rows):
                column[j] -= sign * ((f0 * l0[j] + f1 * l1[j]) + (f2 * l2[j] + f3 * l3[j]))
            k += 4
        while k < rank:
            f, line = sign * right[k, i], left[k][first:last]
            for j in range(rows):
                column[j] -= f * line[j]
            k += 1
        for j in range(rows):
            slopes[j, i] = column[j]
    return slopes


@fused
def _product_row(j, left, right, product, row):  # type: ignore[no-untyped-def]
    """Write row j of the product into ``row`` (N,)."""
    n, rank = len(row), left.shape[0]
    if len(product) > 0:
        for i in range(n):
            row[i] = product[j, i]
        return
    for i in range(n):
        row[i] = 0
    k = 0
    while k + 4 <= rank:
        f0, f1, f2, f3 = left[k, j], left[k + 1, j], left[k + 2, j], left[k + 3, j]
        for i in range(n):
            row[i] += (f0 * right[k, i] + f1 * right[k + 1, i]) + (
                f2 * right[k + 2, i] + f3 * right[k + 3, i]
            )
        k += 4
    while k < rank:
        f = left[k, j]
        for i in range(n):
            row[i] += f * right[k, i]
        k += 1


@fused
def _slope_row(base, bit, sign, product, slope):  # type: ignore[no-untyped-def]
    for i in range(len(slope)):
        slope[i] = (bit[i] + base) - sign * product[i]


@fused
def _sgd(slope, g, m, rate, momentum, g_min, g_max):  # type: ignore[no-untyped-def]
    if len(m) > 0:
        for i in range(len(g)):
            m[i] = momentum * m[i] + slope[i]
            slope[i] = m[i]
    for i in range(len(g)):
        moved = g[i] - rate * slope[i]
        moved = g_max if moved > g_max else moved
        g[i] = g_min if moved < g_min else moved


@fused
def _adam(slopes, g, m, v, numbers):  # type: ignore[no-untyped-def]
    rate, window, keep1, keep2 = numbers[0], numbers[1], numbers[2], numbers[3]
    unbias1, unbias2, least, g_min, g_max = numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
    for i in range(len(g)):
        slope = slopes[i] * window
        mean = m[i] + keep1 * (slope - m[i])
        square = v[i] + keep2 * (slope * slope - v[i])
        m[i] = mean
        v[i] = square
        moved = g[i] - rate * (mean * unbias1) / (np.sqrt(square * unbias2) + least)
        moved = g_max if moved > g_max else moved
        g[i] = g_min if moved < g_min else moved


@fused
def sgd_rows(  # type: ignore[no-untyped-def]
    first, last, left, right, product, sign, word, bit, g, m, numbers
):
    """``numbers``: rate times window^2 over unit, momentum, g_min, g_max. ``m`` is empty without momentum."""
    rate, momentum, g_min, g_max = numbers[0], numbers[1], numbers[2], numbers[3]
    n = len(bit)
    row, start = np.empty(n, g.dtype), np.empty(n, g.dtype)
    zero = g.dtype.type(0)
    if len(m) == 0 and (len(product) > 0 or left.shape[0] == 4):
        # Four samples, or a product: the whole step in one pass.
        for i in range(n):
            start[i] = rate * bit[i]
        step = rate * sign
        for j in range(first, last):
            base = rate * word[j] if len(word) > 0 else zero
            if len(product) > 0:
                for i in range(n):
                    moved = g[j, i] + (step * product[j, i] - (start[i] + base))
                    moved = g_max if moved > g_max else moved
                    g[j, i] = g_min if moved < g_min else moved
                continue
            f0, f1, f2, f3 = step * left[0, j], step * left[1, j], step * left[2, j], step * left[3, j]
            for i in range(n):
                up = (f0 * right[0, i] + f1 * right[1, i]) + (f2 * right[2, i] + f3 * right[3, i])
                moved = g[j, i] + (up - (start[i] + base))
                moved = g_max if moved > g_max else moved
                g[j, i] = g_min if moved < g_min else moved
        return
    if n <= _NARROW and len(product) == 0:
        slopes = _narrow_slopes(first, last, left, right, sign, word, bit).reshape(-1)
        moments = m[first:last].reshape(-1) if len(m) > 0 else slopes[:0]
        _sgd(slopes, g[first:last].reshape(-1), moments, rate, momentum, g_min, g_max)
        return
    for j in range(first, last):
        _product_row(j, left, right, product, row)
        _slope_row(word[j] if len(word) > 0 else zero, bit, sign, row, start)
        _sgd(start, g[j], m[j] if len(m) > 0 else row[:0], rate, momentum, g_min, g_max)


@fused
def sgd_pairs(  # type: ignore[no-untyped-def]
    first, last, left, right, product, word, bit, plus, minus, moments, numbers
):
    """`sgd_rows` of the half of sign 1, and of the other one; ``moments`` of both halves."""
    rate, momentum, g_min, g_max = numbers[0], numbers[1], numbers[2], numbers[3]
    m_plus, m_minus = moments
    n = len(bit)
    one, zero = plus.dtype.type(1), plus.dtype.type(0)
    if n <= _NARROW and len(product) == 0:
        sgd_rows(first, last, left, right, product, one, word, bit, plus, m_plus, numbers)
        sgd_rows(first, last, left, right, product, -one, word, bit, minus, m_minus, numbers)
        return
    row, start = np.empty(n, plus.dtype), np.empty(n, plus.dtype)
    if len(m_plus) == 0 and len(word) == 0 and (len(product) > 0 or left.shape[0] == 4):
        for i in range(n):
            start[i] = rate * bit[i]
        for j in range(first, last):
            up_side, down_side = plus[j], minus[j]
            if len(product) > 0:
                for i in range(n):
                    up = rate * product[j, i]
                    raised, lowered = (up_side[i] - start[i]) + up, (down_side[i] - start[i]) - up
                    raised = g_max if raised > g_max else raised
                    lowered = g_max if lowered > g_max else lowered
                    up_side[i] = g_min if raised < g_min else raised
                    down_side[i] = g_min if lowered < g_min else lowered
                continue
            f0, f1, f2, f3 = rate * left[0, j], rate * left[1, j], rate * left[2, j], rate * left[3, j]
            for i in range(n):
                up = (f0 * right[0, i] + f1 * right[1, i]) + (f2 * right[2, i] + f3 * right[3, i])
                raised, lowered = (up_side[i] - start[i]) + up, (down_side[i] - start[i]) - up
                raised = g_max if raised > g_max else raised
                lowered = g_max if lowered > g_max else lowered
                up_side[i] = g_min if raised < g_min else raised
                down_side[i] = g_min if lowered < g_min else lowered
        return
    for j in range(first, last):
        _product_row(j, left, right, product, row)
        base = word[j] if len(word) > 0 else zero
        _slope_row(base, bit, one, row, start)
        _sgd(start, plus[j], m_plus[j] if len(m_plus) > 0 else row[:0], rate, momentum, g_min, g_max)
        _slope_row(base, bit, -one, row, start)
        _sgd(start, minus[j], m_minus[j] if len(m_plus) > 0 else row[:0], rate, momentum, g_min, g_max)


@fused
def adam_rows(  # type: ignore[no-untyped-def]
    first, last, left, right, product, sign, word, bit, g, m, v, numbers
):
    """``numbers``: rate times window, window over unit, 1 - b1, 1 - b2, 1 / (1 - b1^t), 1 / (1 - b2^t), the
    smallest slope that counts, g_min, g_max."""
    n = len(bit)
    if n <= _NARROW and len(product) == 0:
        slopes = _narrow_slopes(first, last, left, right, sign, word, bit).reshape(-1)
        flat = g[first:last].reshape(-1), m[first:last].reshape(-1), v[first:last].reshape(-1)
        _adam(slopes, flat[0], flat[1], flat[2], numbers)
        return
    row, slope = np.empty(n, g.dtype), np.empty(n, g.dtype)
    for j in range(first, last):
        _product_row(j, left, right, product, row)
        _slope_row(word[j] if len(word) > 0 else g.dtype.type(0), bit, sign, row, slope)
        _adam(slope, g[j], m[j], v[j], numbers)


@fused
def adam_pairs(  # type: ignore[no-untyped-def]
    first, last, left, right, product, word, bit, plus, minus, moments, numbers
):
    """`adam_rows` of the half of sign 1, and of the other one; ``moments`` m of both halves, and v."""
    m_plus, m_minus, v_plus, v_minus = moments
    n = len(bit)
    one = plus.dtype.type(1)
    if n <= _NARROW and len(product) == 0:
        adam_rows(first, last, left, right, product, one, word, bit, plus, m_plus, v_plus, numbers)
        adam_rows(first, last, left, right, product, -one, word, bit, minus, m_minus, v_minus, numbers)
        return
    row, slope = np.empty(n, plus.dtype), np.empty(n, plus.dtype)
    for j in range(first, last):
        _product_row(j, left, right, product, row)
        base = word[j] if len(word) > 0 else plus.dtype.type(0)
        _slope_row(base, bit, one, row, slope)
        _adam(slope, plus[j], m_plus[j], v_plus[j], numbers)
        _slope_row(base, bit, -one, row, slope)
        _adam(slope, minus[j], m_minus[j], v_minus[j], numbers)
