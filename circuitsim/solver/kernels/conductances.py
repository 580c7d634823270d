"""Passes over the conductances of a crossbar: differences of pairs, what loads its lines, currents.

g_plus, g_minus (M, N) S; sums are float64 whatever the precision of the conductances.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["bit_sums", "currents_and_sums", "pair_sums", "single_sums"]

kernel = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")

_ROWS = 32
"""Rows summed in the working precision before their sum is added in float64."""


@kernel
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


@kernel
def single_sums(g, first, last, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write ``word_sum`` (M,) of rows first to last; add to ``bit_sum`` (N,)."""
    for j in range(first, last):
        total = 0.0
        for i in range(g.shape[1]):
            one = np.float64(g[j, i])
            bit_sum[i] += one
            total += one
        word_sum[j] = total


@kernel
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


@kernel
def currents_and_sums(words, w, first, last, currents, bit_sum):  # type: ignore[no-untyped-def]
    """Add ``words @ w`` of rows first to last to ``currents`` (B, N), and the rows to ``bit_sum`` (N,).

    One pass over w (M, N) for a few samples: words (B, M).
    """
    batch, n = currents.shape
    few = np.zeros(n, w.dtype)
    j = first
    while j < last:
        if j + 4 <= last:
            for b in range(batch):
                u0, u1, u2, u3 = words[b, j], words[b, j + 1], words[b, j + 2], words[b, j + 3]
                for i in range(n):
                    currents[b, i] += (u0 * w[j, i] + u1 * w[j + 1, i]) + (
                        u2 * w[j + 2, i] + u3 * w[j + 3, i]
                    )
            for i in range(n):
                few[i] += (w[j, i] + w[j + 1, i]) + (w[j + 2, i] + w[j + 3, i])
            j += 4
        else:
            for b in range(batch):
                u0 = words[b, j]
                for i in range(n):
                    currents[b, i] += u0 * w[j, i]
            for i in range(n):
                few[i] += w[j, i]
            j += 1
        if (j - first) % _ROWS == 0 or j == last:
            for i in range(n):
                bit_sum[i] += few[i]
                few[i] = 0
