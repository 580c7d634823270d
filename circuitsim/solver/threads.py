"""A batch shared between threads."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["share_batch"]


def share_batch(rows: Callable[[slice], None], batch: int, *, work: int) -> None:
    """Run ``rows`` over the slices of a batch, on as many threads as the work is worth.

    ``work`` is that of one sample in matrix entries visited; a thread is taken to be worth it from about
    10^5 on. Kernels release the GIL. Threads of numba's own (``prange``) would make them take longer to
    compile.
    """
    threads = min(os.cpu_count() or 1, batch, 1 + batch * work // 100_000)
    if threads <= 1:
        rows(slice(0, batch))
        return
    # More parts than threads, because samples differ in how many steps they take.
    edges = np.linspace(0, batch, min(batch, 4 * threads) + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(rows, slice(a, b)) for a, b in itertools.pairwise(edges.tolist())]:
            job.result()
