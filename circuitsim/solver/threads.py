"""A batch shared between threads. Kernels release the GIL; threads of numba's own (``prange``) would make
them take longer to compile."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

__all__ = ["share_batch", "threads"]

_WORTH = 30_000
"""Matrix entries visited from which on a thread of its own is worth it."""


@cache
def threads() -> int:
    """Return how many threads to use: CIRCUITSIM_THREADS or OMP_NUM_THREADS, else the processors at hand."""
    for name in ("CIRCUITSIM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads())


def share_batch(rows: Callable[[slice], None], batch: int, *, work: int, parts: int | None = None) -> None:
    """Run ``rows`` over the slices of a batch, on as many threads as the work is worth.

    ``work`` is that of one sample in matrix entries visited by a sparse solver, some 10 ns each: handing
    work to a thread and waiting for it takes 0.1 ms and more. ``parts`` fixes the number of slices,
    whatever the number of threads; where it is that of the samples, which do not depend on each other, one
    thread takes them all at once.
    """
    count = min(threads(), batch, 1 + batch * work // _WORTH)
    if count <= 1 and parts in (None, batch):
        rows(slice(0, batch))
        return
    # More parts than threads, because samples differ in how many steps they take.
    size = parts or min(batch, 4 * count)
    slices = [slice(batch * k // size, batch * (k + 1) // size) for k in range(size)]
    if count <= 1:
        for part in slices:
            rows(part)
        return
    left = iter(slices)

    def work_off() -> None:
        for part in left:
            rows(part)

    # A pool does not survive a fork.
    helpers = [_pool(os.getpid()).submit(work_off) for _ in range(min(count, size) - 1)]
    try:
        work_off()
    finally:
        # One that has not begun is not waited for.
        for helper in helpers:
            if not helper.cancel():
                helper.result()
