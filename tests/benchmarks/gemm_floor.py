"""What this machine can do at best: matrix products and memory copies, the floor of the speed tables.

Run it from the repository's root: python tests/benchmarks/gemm_floor.py

Best of seven runs for each number, since a floor is what nothing disturbs; float32 (s) and float64 (d), numpy
and torch, on one thread and on two. Copies count what is read and what is written.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

RUNS = 7
LEAST = 0.02
THREADS = (1, 2)
PINNED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# B, M, N of a product (B, M) @ (M, N).
SHAPES = ((2048, 2048, 2048), (64, 784, 512), (64, 1568, 1024), (4, 1568, 1024))
# One 1568 x 1024 crossbar in float32, which a large cache holds, and what no cache holds.
COPIES = (6_422_528, 256_000_000)


def best_seconds(work: Callable[[], object]) -> float:
    """Return the least time of one call, from runs of as many calls as take `LEAST` seconds."""
    work()
    start = time.perf_counter()
    work()
    calls = max(1, round(LEAST / max(time.perf_counter() - start, 1e-7)))
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - start) / calls)
    return min(times)


def numpy_product(shape: tuple[int, int, int], dtype: str) -> Callable[[], object]:
    """Return a product of this shape in numpy, into a kept output."""
    b, m, n = shape
    rng = np.random.default_rng(0)
    x, g = rng.random((b, m)).astype(dtype), rng.random((m, n)).astype(dtype)
    return partial(np.matmul, x, g, out=np.empty((b, n), dtype))


def torch_product(shape: tuple[int, int, int], dtype: str) -> Callable[[], object]:
    """Return the same in torch."""
    import torch

    b, m, n = shape
    kind = getattr(torch, dtype)
    x, g = torch.rand((b, m), dtype=kind), torch.rand((m, n), dtype=kind)
    return partial(torch.mm, x, g, out=torch.empty((b, n), dtype=kind))


def copy(size: int, library: str) -> Callable[[], object]:
    """Return a copy of ``size`` bytes; numpy's runs on one thread always."""
    if library == "torch":
        import torch

        return partial(torch.empty(size // 4).copy_, torch.rand(size // 4))
    source = np.random.default_rng(0).random(size // 8)
    return partial(np.copyto, np.empty_like(source), source)


def rates(libraries: list[str]) -> None:
    """Print the lines of one number of threads, as the environment set it."""
    threads = os.environ["OMP_NUM_THREADS"]
    products = {"numpy": numpy_product, "torch": torch_product}
    for shape in SHAPES:
        flops = 2 * shape[0] * shape[1] * shape[2]
        cells = []
        for library in ("numpy", "torch"):
            for dtype in ("float32", "float64"):
                if library not in libraries:
                    cells.append(f"{'-':>12s}")
                    continue
                rate = flops / best_seconds(products[library](shape, dtype)) / 1e9
                cells.append(f"{rate:12.1f}")
        name = " x ".join(str(n) for n in shape)
        print(f"{threads:>7s}  {name:20s} {''.join(cells)}  GFLOP/s", flush=True)
    for size in COPIES:
        cells = []
        for library in ("numpy", "torch"):
            if library not in libraries:
                cells.append(f"{'-':>24s}")
                continue
            cells.append(f"{2 * size / best_seconds(copy(size, library)) / 1e9:24.1f}")
        print(f"{threads:>7s}  {f'copy of {size / 1e6:.1f} MB':20s} {''.join(cells)}  GB/s", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        rates(sys.argv[1:])
        return
    libraries = ["numpy"]
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: its columns stay empty (pip install 'circuitsim[bench]')")
    else:
        libraries.append("torch")
    print(f"threads  {'':20s} {'numpy s':>12s}{'numpy d':>12s}{'torch s':>12s}{'torch d':>12s}", flush=True)
    for threads in THREADS:
        # Read when the libraries are first imported, so a process for each number of threads.
        environment = os.environ | dict.fromkeys(PINNED, str(threads))
        subprocess.run([sys.executable, __file__, *libraries], env=environment, check=True)


if __name__ == "__main__":
    main()
