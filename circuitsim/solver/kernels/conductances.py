"""Passes over the conductances of a crossbar: differences of pairs, what loads its lines, currents.

g_plus, g_minus (M, N) S; sums are float64 whatever the precision of the conductances.
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import reordered

__all__ = ["bit_sums", "currents_and_sums", "pair_sums", "single_sums"]

_ROWS = 32
"""Rows summed in the working precision before their sum is added in float64."""
_BITS = 512
"""Bit lines whose currents are found together: what four rows need of them fits the first cache."""
_APART = 528
"""From one of the currents to the next: more than `_BITS`, and not in step with pages, at whose distance a
load waits for a store that has nothing to do with it."""


@reordered
def pair_sums(g_plus, g_minus, first, last, signed, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write ``g_plus - g_minus`` and ``word_sum`` (M,) of rows first to last; add to ``bit_sum`` (N,).

    ``word_sum`` may be empty.
    """
    n = g_plus.shape[1]
    few = np.zeros(n, g_plus.dtype)
    for j in range(first, last):
        for i in range(n):
            signed[j, i] = g_plus[j, i] - g_minus[j, i]
            few[i] += g_plus[j, i] + g_minus[j, i]
        if len(word_sum) > 0:
            total = 0.0
            for i in range(n):
                total += np.float64(g_plus[j, i]) + np.float64(g_minus[j, i])
            word_sum[j] = total
        if (j - first) % _ROWS == _ROWS - 1 or j == last - 1:
            for i in range(n):
                bit_sum[i] += few[i]
                few[i] = 0


@reordered
def single_sums(g, first, last, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write ``word_sum`` (M,) of rows first to last; add to ``bit_sum`` (N,)."""
    for j in range(first, last):
        total = 0.0
        for i in range(g.shape[1]):
            one = np.float64(g[j, i])
            bit_sum[i] += one
            total += one
        word_sum[j] = total


@reordered
def bit_sums(g, first, last, bit_sum):  # type: ignore[no-untyped-def]
    """Add rows first to last to ``bit_sum`` (N,)."""
    n = g.shape[1]
    few = np.zeros(n, g.dtype)
    for j in range(first, last):
        for i in range(n):
            few[i] += g[j, i]
        if (j - first) % _ROWS == _ROWS - 1 or j == last - 1:
            for i in range(n):
                bit_sum[i] += few[i]
                few[i] = 0


@reordered
def currents_and_sums(words, g_plus, g_minus, first, last, currents, bit_sum):  # type: ignore[no-untyped-def]
    """Add ``words @ (g_plus - g_minus)`` of rows first to last to ``currents`` (B, N), and the rows of both
    to ``bit_sum`` (N,). The difference is not kept; ``g_minus`` has no rows where there is none.

    One pass over the conductances (M, N) for every four samples: words (B, M).
    """
    batch, n = currents.shape
    zero = g_plus.dtype.type(0)
    # Samples side by side, zeros for those that are missing.
    u = np.empty((last - first, 4), g_plus.dtype)
    # Four currents and the sum of some bit lines, in one array so that nothing else can lie in them.
    kept = np.empty(5 * _APART, g_plus.dtype)
    for b0 in range(0, batch, 4):
        for j in range(first, last):
            for b in range(4):
                u[j - first, b] = words[b0 + b, j] if b0 + b < batch else zero
        for left in range(0, n, _BITS):
            size = min(_BITS, n - left)
            kept[:] = 0
            for top in range(first, last, _ROWS):
                bottom = min(top + _ROWS, last)
                j = top
                if len(g_minus) > 0:
                    while j + 2 <= bottom:
                        _two_pairs(u, g_plus, g_minus, first, j, left, size, kept)
                        j += 2
                    if j < bottom:
                        _one_pair(u, g_plus, g_minus, first, j, left, size, kept)
                else:
                    while j + 4 <= bottom:
                        _four_rows(u, g_plus, first, j, left, size, kept)
                        j += 4
                    while j < bottom:
                        _one_row(u, g_plus, first, j, left, size, kept)
                        j += 1
                if b0 == 0:
                    for i in range(size):
                        bit_sum[left + i] += kept[4 * _APART + i]
                for i in range(size):
                    kept[4 * _APART + i] = 0
            for b in range(min(4, batch - b0)):
                for i in range(size):
                    currents[b0 + b, left + i] += kept[b * _APART + i]


@reordered
def _four_rows(u, w, first, j, left, size, kept):  # type: ignore[no-untyped-def]
    """Add what four rows of some bit lines carry for four samples, and the rows, to ``kept``."""
    k = j - first
    a0, a1, a2, a3 = u[k, 0], u[k + 1, 0], u[k + 2, 0], u[k + 3, 0]
    b0, b1, b2, b3 = u[k, 1], u[k + 1, 1], u[k + 2, 1], u[k + 3, 1]
    c0, c1, c2, c3 = u[k, 2], u[k + 1, 2], u[k + 2, 2], u[k + 3, 2]
    d0, d1, d2, d3 = u[k, 3], u[k + 1, 3], u[k + 2, 3], u[k + 3, 3]
    w0, w1 = w[j][left : left + size], w[j + 1][left : left + size]
    w2, w3 = w[j + 2][left : left + size], w[j + 3][left : left + size]
    for i in range(size):
        x0, x1, x2, x3 = w0[i], w1[i], w2[i], w3[i]
        kept[i] += (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
        kept[_APART + i] += (b0 * x0 + b1 * x1) + (b2 * x2 + b3 * x3)
        kept[2 * _APART + i] += (c0 * x0 + c1 * x1) + (c2 * x2 + c3 * x3)
        kept[3 * _APART + i] += (d0 * x0 + d1 * x1) + (d2 * x2 + d3 * x3)
        kept[4 * _APART + i] += (x0 + x1) + (x2 + x3)


@reordered
def _one_row(u, w, first, j, left, size, kept):  # type: ignore[no-untyped-def]
    k, row = j - first, w[j][left : left + size]
    for i in range(size):
        x = row[i]
        kept[i] += u[k, 0] * x
        kept[_APART + i] += u[k, 1] * x
        kept[2 * _APART + i] += u[k, 2] * x
        kept[3 * _APART + i] += u[k, 3] * x
        kept[4 * _APART + i] += x


@reordered
def _two_pairs(u, g_plus, g_minus, first, j, left, size, kept):  # type: ignore[no-untyped-def]
    k = j - first
    a0, b0, c0, d0 = u[k, 0], u[k, 1], u[k, 2], u[k, 3]
    a1, b1, c1, d1 = u[k + 1, 0], u[k + 1, 1], u[k + 1, 2], u[k + 1, 3]
    p0, p1 = g_plus[j][left : left + size], g_plus[j + 1][left : left + size]
    m0, m1 = g_minus[j][left : left + size], g_minus[j + 1][left : left + size]
    for i in range(size):
        x0, x1 = p0[i] - m0[i], p1[i] - m1[i]
        kept[i] += a0 * x0 + a1 * x1
        kept[_APART + i] += b0 * x0 + b1 * x1
        kept[2 * _APART + i] += c0 * x0 + c1 * x1
        kept[3 * _APART + i] += d0 * x0 + d1 * x1
        kept[4 * _APART + i] += (p0[i] + m0[i]) + (p1[i] + m1[i])


@reordered
def _one_pair(u, g_plus, g_minus, first, j, left, size, kept):  # type: ignore[no-untyped-def]
    k, plus, minus = j - first, g_plus[j][left : left + size], g_minus[j][left : left + size]
    for i in range(size):
        x = plus[i] - minus[i]
        kept[i] += u[k, 0] * x
        kept[_APART + i] += u[k, 1] * x
        kept[2 * _APART + i] += u[k, 2] * x
        kept[3 * _APART + i] += u[k, 3] * x
        kept[4 * _APART + i] += plus[i] + minus[i]
