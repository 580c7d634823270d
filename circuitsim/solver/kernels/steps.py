"""One step of an optimiser on one half of a crossbar, in one pass over its conductances.

The slope of device (j, i) is ``word_j + bit_i - sign * p_ji`` with the product p = left^T right, given as a
matrix or, where its rank is small, formed row by row. Steps are in fractions of the window
``g_max - g_min``, to which conductances are clipped; ``unit`` [S] makes costs dimensionless.

    sgd     m <- momentum m + slope w / unit,            g <- g - rate w m
    adam    m <- m + (1 - b1) (slope w - m),  v likewise with its square
            g <- g - rate w (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + least)

w is the window (Kingma and Ba 2015). Rows first to last; g, m, v are (M, N) and change in place.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["adam_rows", "sgd_rows"]

_NARROW = 24
"""Bit lines up to which slopes are found along word lines, which are more, and vectorise better."""

kernel = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@kernel
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
        for k in range(rank):
            f, line = sign * right[k, i], left[k][first:last]
            for j in range(rows):
                column[j] -= f * line[j]
        for j in range(rows):
            slopes[j, i] = column[j]
    return slopes


@kernel
def _slope_row(j, left, right, product, sign, word, bit, row):  # type: ignore[no-untyped-def]
    """Write the slopes of row j into ``row`` (N,)."""
    n = len(bit)
    base = word[j] if len(word) > 0 else row.dtype.type(0)
    if len(product) > 0:
        for i in range(n):
            row[i] = bit[i] + base - sign * product[j, i]
        return
    for i in range(n):
        row[i] = bit[i] + base
    rank = left.shape[0]
    k = 0
    while k + 4 <= rank:
        f0, f1 = sign * left[k, j], sign * left[k + 1, j]
        f2, f3 = sign * left[k + 2, j], sign * left[k + 3, j]
        for i in range(n):
            row[i] -= (f0 * right[k, i] + f1 * right[k + 1, i]) + (
                f2 * right[k + 2, i] + f3 * right[k + 3, i]
            )
        k += 4
    while k < rank:
        f = sign * left[k, j]
        for i in range(n):
            row[i] -= f * right[k, i]
        k += 1


@kernel
def _sgd(slope, g, m, rate, momentum, g_min, g_max):  # type: ignore[no-untyped-def]
    if len(m) > 0:
        for i in range(len(g)):
            m[i] = momentum * m[i] + slope[i]
            slope[i] = m[i]
    for i in range(len(g)):
        moved = g[i] - rate * slope[i]
        moved = g_max if moved > g_max else moved
        g[i] = g_min if moved < g_min else moved


@kernel
def _adam(slopes, g, m, v, numbers):  # type: ignore[no-untyped-def]
    rate, window, keep1, keep2, unbias1, unbias2, least, g_min, g_max = numbers
    for i in range(len(g)):
        slope = slopes[i] * window
        mean = m[i] + keep1 * (slope - m[i])
        square = v[i] + keep2 * (slope * slope - v[i])
        m[i] = mean
        v[i] = square
        moved = g[i] - rate * (mean * unbias1) / (np.sqrt(square * unbias2) + least)
        moved = g_max if moved > g_max else moved
        g[i] = g_min if moved < g_min else moved


@kernel
def sgd_rows(  # type: ignore[no-untyped-def]
    first, last, left, right, product, sign, word, bit, g, m, rate, momentum, g_min, g_max
):
    """``rate`` holds the window squared over the unit; ``m`` is empty where there is no momentum."""
    n = len(bit)
    row, start = np.empty(n, g.dtype), np.empty(n, g.dtype)
    if len(m) == 0 and len(product) == 0 and left.shape[0] == 4:
        # Four samples: the whole step in one pass.
        for i in range(n):
            start[i] = rate * bit[i]
        step = rate * sign
        for j in range(first, last):
            base = rate * word[j] if len(word) > 0 else g.dtype.type(0)
            f0, f1, f2, f3 = step * left[0, j], step * left[1, j], step * left[2, j], step * left[3, j]
            for i in range(n):
                up = (f0 * right[0, i] + f1 * right[1, i]) + (f2 * right[2, i] + f3 * right[3, i])
                moved = g[j, i] + (up - (start[i] + base))
                moved = g_max if moved > g_max else moved
                g[j, i] = g_min if moved < g_min else moved
        return
    if len(m) == 0 and len(product) > 0:
        for i in range(n):
            start[i] = rate * bit[i]
        step = rate * sign
        for j in range(first, last):
            base = rate * word[j] if len(word) > 0 else g.dtype.type(0)
            for i in range(n):
                moved = g[j, i] + (step * product[j, i] - (start[i] + base))
                moved = g_max if moved > g_max else moved
                g[j, i] = g_min if moved < g_min else moved
        return
    if n <= _NARROW and len(product) == 0:
        slopes = _narrow_slopes(first, last, left, right, sign, word, bit).reshape(-1)
        moments = m[first:last].reshape(-1) if len(m) > 0 else slopes[:0]
        _sgd(slopes, g[first:last].reshape(-1), moments, rate, momentum, g_min, g_max)
        return
    for j in range(first, last):
        _slope_row(j, left, right, product, sign, word, bit, row)
        _sgd(row, g[j], m[j] if len(m) > 0 else row[:0], rate, momentum, g_min, g_max)


@kernel
def adam_rows(  # type: ignore[no-untyped-def]
    first,
    last,
    left,
    right,
    product,
    sign,
    word,
    bit,
    g,
    m,
    v,
    rate,
    window,
    keep1,
    keep2,
    unbias1,
    unbias2,
    least,
    g_min,
    g_max,
):
    """``keep`` are 1 - b, ``unbias`` 1 / (1 - b^t); ``rate`` holds the window."""
    n = len(bit)
    numbers = rate, window, keep1, keep2, unbias1, unbias2, least, g_min, g_max
    if n <= _NARROW and len(product) == 0:
        slopes = _narrow_slopes(first, last, left, right, sign, word, bit).reshape(-1)
        flat = g[first:last].reshape(-1), m[first:last].reshape(-1), v[first:last].reshape(-1)
        _adam(slopes, flat[0], flat[1], flat[2], numbers)
        return
    row = np.empty(n, g.dtype)
    for j in range(first, last):
        _slope_row(j, left, right, product, sign, word, bit, row)
        _adam(row, g[j], m[j], v[j], numbers)
