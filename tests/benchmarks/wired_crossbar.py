"""Crossbars with line resistance: one solve against scipy's splu on the same matrix, in one run.

Run it from the repository's root: python tests/benchmarks/wired_crossbar.py [SIZE ...]

Square crossbars, 1 ohm per segment, devices of 1 kohm to 100 kohm, word lines driven at one end, bit
lines sensed at 0 V at the other, one input. Each number is the median of five runs or more on one thread:

    first    a new set of conductances: factors, solution, currents, and the independent KCL check
    again    the same with new input voltages only
    lines    factors and solution alone, without netlist, currents and check (CrossbarLines)
    splu     scipy's SuperLU on the flat conductance matrix, the best of its orderings and modes:
             factors and one solution; again: one solution with the factors kept
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from circuitsim.netlist import Crossbar, Netlist, NetlistBuilder, flatten
from circuitsim.solver import build_plan, solve
from circuitsim.solver.lines import CrossbarLines, point_voltages

RUNS = 5
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SIZES = (16, 64, 128, 256)
ORDERINGS = (("MMD_AT_PLUS_A", True), ("COLAMD", False), ("MMD_ATA", False))


def crossbar_netlist(size: int, r_wire: float = 1.0, low: float = 1e-5, high: float = 1e-3) -> Netlist:
    """A square crossbar between voltage sources and ground."""
    rng = np.random.default_rng(size)
    builder = NetlistBuilder(f"crossbar {size}")
    words = [f"w{j}" for j in range(size)]
    for word in words:
        builder.add("vsource", word, word, "0", voltage=0.0)
    builder.inputs(words, list(range(size)), [1.0] * size)
    conductance = 10 ** rng.uniform(np.log10(low), np.log10(high), (size, size))
    builder.crossbar(
        Crossbar(
            name="x",
            word_pos=builder.nodes(words),
            bit=np.zeros(size, dtype=np.int64),
            g_plus=conductance,
            r_wire=r_wire,
        )
    )
    return builder.build(check=False)


def conductance_matrix(netlist: Netlist) -> tuple[scipy.sparse.csc_matrix, np.ndarray, np.ndarray]:
    """The conductance matrix of the flat circuit's points, and what each point has to each word source."""
    flat = flatten(netlist).netlist
    r, known = flat.resistor, netlist.n_nodes
    g = r.conductance
    a, b = r.pos - known, r.neg - known
    inner = (a >= 0) & (b >= 0)
    size = flat.n_nodes - known
    row = np.concatenate([a[a >= 0], b[b >= 0], a[inner], b[inner]])
    column = np.concatenate([a[a >= 0], b[b >= 0], b[inner], a[inner]])
    value = np.concatenate([g[a >= 0], g[b >= 0], -g[inner], -g[inner]])
    matrix = scipy.sparse.csc_matrix((value, (row, column)), shape=(size, size))
    driven = (r.pos > 0) & (r.pos < known)
    return matrix, b[driven], g[driven]


def seconds(work: Callable[[], object], least: float = 0.05) -> float:
    """The median time of a call, of at least `RUNS` after one that is not counted."""
    work()
    times: list[float] = []
    while len(times) < RUNS or sum(times) < least:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or SIZES
    warnings.simplefilter("ignore", scipy.sparse.SparseEfficiencyWarning)
    print("one input, milliseconds, one thread")
    print(
        "   N   first   again   lines  iterations |    splu   again  with                   |"
        " splu/first  splu/lines | KCL residual  worst difference [V]"
    )
    for size in sizes:
        netlist = crossbar_netlist(size)
        plan, crossbar = build_plan(netlist), netlist.crossbars[0]
        rng = np.random.default_rng(1)
        inputs = rng.uniform(-1, 1, (1, size))
        values = netlist.values()
        point = solve(plan, values, inputs)
        first = seconds(lambda p=plan, v=values, u=inputs: solve(p, replace(v), u))
        again = seconds(lambda p=plan, v=values, u=inputs: solve(p, v, u))
        ground = np.zeros((1, size))
        lines = seconds(lambda c=crossbar, u=inputs, z=ground: CrossbarLines(c, c.g_plus).solve(u, z))

        matrix, entry, conductance = conductance_matrix(netlist)
        load = np.zeros(matrix.shape[0])
        load[entry] = conductance * inputs[0]
        best, kept, how = np.inf, np.inf, ""
        for ordering, symmetric in ORDERINGS if size <= 128 else ORDERINGS[:1]:
            options = {"SymmetricMode": symmetric}
            threshold = 0.0 if symmetric else None

            def factor(m=matrix, p=ordering, t=threshold, o=options):
                return scipy.sparse.linalg.splu(m, permc_spec=p, diag_pivot_thresh=t, options=o)

            took = seconds(lambda f=factor, b=load: f().solve(b))
            if took < best:
                best, how = took, ordering + (" symmetric" if symmetric else "")
                factors = factor()
                kept = seconds(lambda f=factors, b=load: f.solve(b))
                reference = factors.solve(load)
        ours = point_voltages(netlist, values, point.node_voltage)
        assert ours is not None
        print(
            f"{size:4d} {1e3 * first:7.2f} {1e3 * again:7.2f} {1e3 * lines:7.2f} {point.iterations[0]:11d} |"
            f" {1e3 * best:7.1f} {1e3 * kept:7.2f}  {how:23s} | {best / first:10.0f} {best / lines:11.0f} |"
            f" {point.relative_residual[0]:12.0e} {np.abs(ours[0] - reference).max():12.0e}"
        )


if __name__ == "__main__":
    if not ONE_THREAD.items() <= os.environ.items():
        # Read when the libraries are first imported, so set before Python starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    main()
