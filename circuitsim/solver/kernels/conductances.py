"""One pass over the conductances of a crossbar: differences of pairs, and what loads its lines.

g_plus, g_minus (M, N) S; sums are float64 whatever the precision of the conductances.
"""

from __future__ import annotations

from numba import njit

__all__ = ["pair_sums", "single_sums"]

kernel = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@kernel
def pair_sums(g_plus, g_minus, first, last, signed, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write ``g_plus - g_minus`` and ``word_sum`` (M,) of rows first to last; add to ``bit_sum`` (N,)."""
    for j in range(first, last):
        total = 0.0
        for i in range(g_plus.shape[1]):
            signed[j, i] = g_plus[j, i] - g_minus[j, i]
            both = float(g_plus[j, i]) + float(g_minus[j, i])
            bit_sum[i] += both
            total += both
        word_sum[j] = total


@kernel
def single_sums(g, first, last, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write ``word_sum`` (M,) of rows first to last; add to ``bit_sum`` (N,)."""
    for j in range(first, last):
        total = 0.0
        for i in range(g.shape[1]):
            one = float(g[j, i])
            bit_sum[i] += one
            total += one
        word_sum[j] = total
