"""Crossbars with line resistance against scipy's splu and badcrossbar on the same circuit, in one run.

Run it from the repository's root: python tests/benchmarks/wired_crossbar.py [SIZE ...]

Square crossbars, 1 ohm per segment, devices of 1 kohm to 100 kohm, word lines driven at one end, bit
lines sensed at 0 V at the other, KCL to 1e-10. Every number is a median of five runs or more; of runs that
take more than two seconds, it is that of as many as the table says. One input, one thread:

    first    a new set of conductances: factors, solution, currents, and the independent KCL check (solve)
    again    the same with new input voltages only
    lines    factors and solution alone, without netlist, currents and check (CrossbarLines)
    splu     scipy's SuperLU on the flat conductance matrix, the best of its orderings and modes up to 128,
             MMD_AT_PLUS_A in symmetric mode beyond: factors and one solution
    badcrossbar    `badcrossbar.compute`, voltages and currents of everything

A hundred inputs, two threads (splu and badcrossbar use one of them):

    whole    as first above
    lines    factors and the voltages of all points of all samples
    ports    factors and the currents at the ports alone (WiredBlock)
    splu     a hundred solutions with factors that are there already; with them: the factors, too

Last, the worst conditioning: 20 ohm segments, all devices 1 kohm, one input and a hundred.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from circuitsim.netlist import Crossbar, Netlist, NetlistBuilder, flatten
from circuitsim.solver import SolverSettings, build_plan, solve
from circuitsim.solver.lines import CrossbarLines, line_currents, point_voltages
from circuitsim.solver.wired_block import WiredBlock

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ImportWarning)  # It plots only with cairo.
    try:
        import badcrossbar
    except ImportError:
        badcrossbar = None
logging.getLogger().setLevel(logging.WARNING)  # It tells of every step.

RUNS = 5
SLOW = 2.0
"""Seconds of a run from which on fewer do."""
SIZES = (128, 256, 512)
INPUTS = 100
TOLERANCE = 1e-10
WIRED = SolverSettings(method="wired", relative_tolerance=TOLERANCE)
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


def seconds(work: Callable[[], object], least: float = 0.05) -> tuple[float, int]:
    """The median time of a call and the number of runs: at least `RUNS` after one that is not counted.

    A call that takes more than `SLOW` is its own first run, and one or two do.
    """
    times: list[float] = []

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    once = run()
    if once > 5 * SLOW:
        return once, 1
    if once > SLOW:
        return statistics.median([once, run()]), 2
    while len(times) < RUNS or sum(times) < least:
        times.append(run())
    return statistics.median(times), len(times)


class Circuit:
    """One crossbar, as each of the programs takes it."""

    def __init__(self, size: int, inputs: int, **devices: float) -> None:
        self.netlist = crossbar_netlist(size, **devices)
        self.crossbar = self.netlist.crossbars[0]
        self.plan, self.values = build_plan(self.netlist), self.netlist.values()
        self.inputs = np.random.default_rng(1).uniform(-1, 1, (inputs, size))
        self.ground = np.zeros_like(self.inputs)
        self.point = solve(self.plan, self.values, self.inputs, WIRED)

    def first(self) -> Any:
        return solve(self.plan, replace(self.values), self.inputs, WIRED)

    def again(self) -> Any:
        return solve(self.plan, self.values, self.inputs, WIRED)

    def lines(self) -> Any:
        lines = CrossbarLines(self.crossbar, self.crossbar.g_plus)
        return lines.solve(self.inputs, self.ground, relative_tolerance=TOLERANCE)

    def ports(self) -> Any:
        block = WiredBlock(self.crossbar, self.crossbar.g_plus, None)
        return block.currents(self.inputs, self.ground, relative_tolerance=TOLERANCE)

    def badcrossbar(self) -> Any:
        return badcrossbar.compute(self.inputs.T, 1 / self.crossbar.g_plus, self.crossbar.r_wire)

    def matrix(self) -> tuple[scipy.sparse.csc_matrix, np.ndarray]:
        """The conductance matrix of the points, and the currents (points, B) into them."""
        matrix, entry, conductance = conductance_matrix(self.netlist)
        load = np.zeros((matrix.shape[0], len(self.inputs)))
        load[entry] = conductance[:, None] * self.inputs.T
        return matrix, load

    def factors(self, matrix: scipy.sparse.csc_matrix) -> tuple[Callable[[], Any], str]:
        """What makes splu's factors, with its best ordering, and which that is."""
        best, chosen, how = np.inf, None, ""
        orderings = ORDERINGS if len(self.crossbar.bit) <= 128 else ORDERINGS[:1]
        for ordering, symmetric in orderings:

            def factor(p: str = ordering, symmetric: bool = symmetric) -> Any:
                return scipy.sparse.linalg.splu(
                    matrix,
                    permc_spec=p,
                    diag_pivot_thresh=0.0 if symmetric else None,
                    options={"SymmetricMode": symmetric},
                )

            took = seconds(factor)[0] if len(orderings) > 1 else 0.0
            if took < best:
                best, chosen, how = took, factor, ordering + (" symmetric" if symmetric else "")
        assert chosen is not None
        return chosen, how

    def difference(self, reference: np.ndarray) -> float:
        """The largest difference of a point's voltage to splu's solution (points, B)."""
        few = slice(0, 4)
        ours = point_voltages(self.netlist, self.values, self.point.node_voltage[few])
        assert ours is not None
        return float(np.abs(ours - reference.T[few]).max())


def one_input(sizes: list[int]) -> None:
    print("\none input, one thread, milliseconds (runs of splu, badcrossbar in brackets)")
    print(
        "   N    first    again    lines  iterations |     splu      badcrossbar     |"
        " splu/first  splu/lines  badcrossbar/first | KCL residual  difference [V]"
    )
    for size in sizes:
        circuit = Circuit(size, 1)
        first, again, lines = (seconds(work)[0] for work in (circuit.first, circuit.again, circuit.lines))
        steps = circuit.point.iterations.max()
        matrix, load = circuit.matrix()
        factor, how = circuit.factors(matrix)
        splu, runs = seconds(lambda f=factor, b=load: f().solve(b))
        reference = factor().solve(load)
        bad, bad_runs = seconds(circuit.badcrossbar) if badcrossbar else (np.nan, 0)
        print(
            f"{size:4d} {1e3 * first:8.2f} {1e3 * again:8.2f} {1e3 * lines:8.2f} {steps:11d} |"
            f" {1e3 * splu:8.0f} ({runs}) {1e3 * bad:8.0f} ({bad_runs}) |"
            f" {splu / first:10.0f} {splu / lines:11.0f} {bad / first:18.0f} |"
            f" {circuit.point.relative_residual[0]:12.0e} {circuit.difference(reference):12.0e}  {how}",
            flush=True,
        )


def many_inputs(sizes: list[int]) -> None:
    print(f"\n{INPUTS} inputs, two threads, milliseconds (runs of splu, badcrossbar in brackets)")
    print(
        "   N    whole    lines    ports  sweeps |  splu kept   with factors  badcrossbar  |"
        " kept splu/whole /lines /ports  badcrossbar/whole /lines | KCL residual  difference [V]"
    )
    for size in sizes:
        circuit = Circuit(size, INPUTS)
        whole, lines, ports = (seconds(work)[0] for work in (circuit.first, circuit.lines, circuit.ports))
        steps = circuit.point.iterations.max()
        matrix, load = circuit.matrix()
        factor, _ = circuit.factors(matrix)
        factored, _ = seconds(factor)
        factors = factor()
        kept, runs = seconds(lambda f=factors, b=load: f.solve(b))
        reference = factors.solve(load[:, :4])
        bad, bad_runs = seconds(circuit.badcrossbar) if badcrossbar else (np.nan, 0)
        print(
            f"{size:4d} {1e3 * whole:8.0f} {1e3 * lines:8.0f} {1e3 * ports:8.0f} {steps:7d} |"
            f" {1e3 * kept:10.0f} ({runs}) {1e3 * (kept + factored):8.0f} {1e3 * bad:11.0f} ({bad_runs}) |"
            f" {kept / whole:15.1f} {kept / lines:6.1f} {kept / ports:6.1f}"
            f" {bad / whole:18.1f} {bad / lines:6.1f} |"
            f" {circuit.point.relative_residual.max():12.0e} {circuit.difference(reference):12.0e}",
            flush=True,
        )


def worst_conditioning(sizes: list[int]) -> None:
    print("\n20 ohm segments, devices of 1 kohm, milliseconds")
    print("   N  inputs    lines  iterations | KCL residual at the points")
    for size in sizes:
        for inputs in (1, INPUTS):
            circuit = Circuit(size, 1, r_wire=20.0, low=1e-3)
            circuit.inputs = np.random.default_rng(1).uniform(-1, 1, (inputs, size))
            circuit.ground = np.zeros_like(circuit.inputs)
            took, _ = seconds(circuit.lines)
            state = circuit.lines()
            assert not state.status.any()
            few = replace(state, **{name: getattr(state, name)[:4] for name in vars(state)})
            found = line_currents(circuit.crossbar, circuit.crossbar.g_plus, few)
            print(
                f"{size:4d} {inputs:7d} {1e3 * took:8.1f} {state.iterations.max():11d} |"
                f" {(found.residual / found.largest).max():12.0e}",
                flush=True,
            )


PARTS = {"one": (one_input, 1), "many": (many_inputs, 2), "worst": (worst_conditioning, 2)}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in PARTS:
        warnings.simplefilter("ignore", scipy.sparse.SparseEfficiencyWarning)
        PARTS[sys.argv[1]][0]([int(text) for text in sys.argv[2:]])
        return
    sizes = sys.argv[1:] or [str(size) for size in SIZES]
    if badcrossbar is None:
        print("badcrossbar is not installed (pip install badcrossbar): its columns are skipped and show nan")
    for part, (_, threads) in PARTS.items():
        # Numbers of threads are read when libraries are first imported: a process for each.
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CIRCUITSIM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        subprocess.run([sys.executable, __file__, part, *sizes], env=environment, check=True)


if __name__ == "__main__":
    main()
