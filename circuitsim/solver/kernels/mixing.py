"""Anderson acceleration of a fixed-point map x -> g(x), each sample with coefficients of its own.

With f_k = g_k - x_k of the last steps, the coefficients minimise |f - sum_k c_k (f - f_k)| and the next
x is g - sum_k c_k ((x - x_k) + (f - f_k)) (Walker and Ni 2011). The inner products of the f_k are kept,
so that a step costs one product with each.
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import reordered

__all__ = ["coefficients", "mix", "progress"]

_WORSE = 4.0
"""A step whose squared residual grows by more than this starts a sample's history anew."""


@reordered
def progress(x, g, a, found):  # type: ignore[no-untyped-def]
    """Write, per sample, the squares |g - x|^2, |g|^2, |a (g - x)|^2, |a g|^2 into ``found`` (B, 4)."""
    batch, n = x.shape
    for b in range(batch):
        load = a[b if a.shape[0] > 1 else 0]
        moved = size = flow = scale = 0.0
        for k in range(n):
            step = np.float64(g[b, k]) - np.float64(x[b, k])
            there = np.float64(g[b, k])
            conductance = np.float64(load[k])
            moved += step * step
            size += there * there
            flow += conductance * step * conductance * step
            scale += conductance * there * conductance * there
        found[b, 0] = moved
        found[b, 1] = size
        found[b, 2] = flow
        found[b, 3] = scale


@reordered
def coefficients(m: np.ndarray, right: np.ndarray, c: np.ndarray, count: int) -> None:
    """Solve m c = right by Gaussian elimination with pivots from the diagonal, in place."""
    for k in range(count):
        pivot = m[k, k]
        for i in range(k + 1, count):
            factor = m[i, k] / pivot
            for j in range(k, count):
                m[i, j] -= factor * m[k, j]
            right[i] -= factor * right[k]
    for k in range(count - 1, -1, -1):
        total = right[k]
        for j in range(k + 1, count):
            total -= m[k, j] * c[j]
        c[k] = total / m[k, k]


@reordered
def mix(x, g, slot, xs, fs, gram, held, regular, out):  # type: ignore[no-untyped-def]
    """Store x and g - x (B, n) as entry ``slot`` of the histories (depth, B, n), and write the next x.

    gram (B, depth, depth) holds the inner products of the entries, held (B, depth) which are in use.
    ``regular`` is added to the normal matrix, relative to its trace.
    """
    batch, n = x.shape
    depth = xs.shape[0]
    normal, right, c = np.empty((depth, depth)), np.empty(depth), np.empty(depth)
    entry = np.empty(depth, np.int64)
    last = (slot - 1) % depth
    for b in range(batch):
        own = 0.0
        for k in range(n):
            step = g[b, k] - x[b, k]
            xs[slot, b, k] = x[b, k]
            fs[slot, b, k] = step
            own += np.float64(step) * np.float64(step)
        if held[b, last] and not own <= _WORSE * gram[b, last, last]:
            for i in range(depth):
                held[b, i] = False
        held[b, slot] = False
        count = 0
        for i in range(depth):
            if held[b, i]:
                product = 0.0
                for k in range(n):
                    product += np.float64(fs[i, b, k]) * np.float64(fs[slot, b, k])
                gram[b, i, slot] = product
                gram[b, slot, i] = product
                entry[count] = i
                count += 1
        gram[b, slot, slot] = own
        held[b, slot] = True
        usable = count > 0
        if usable:
            trace = 0.0
            for i in range(count):
                for j in range(count):
                    normal[i, j] = (
                        own - gram[b, entry[i], slot] - gram[b, entry[j], slot] + gram[b, entry[i], entry[j]]
                    )
                right[i] = own - gram[b, entry[i], slot]
                trace += normal[i, i]
            for i in range(count):
                normal[i, i] += regular * trace + 1e-300
            coefficients(normal, right, c, count)
            for i in range(count):
                usable = usable and abs(c[i]) < 1e3
        for k in range(n):
            out[b, k] = g[b, k]
        if usable:
            for i in range(count):
                e, weight = entry[i], c[i]
                for k in range(n):
                    out[b, k] -= weight * (x[b, k] - xs[e, b, k] + fs[slot, b, k] - fs[e, b, k])
