"""The wired method: crossbars with line resistance between sources, resistances and virtual grounds.

Every node is held, by ground, a voltage source or a virtual ground, or is the port of one line, or
carries what virtual grounds deliver. Resistances join held nodes to others: each port then has one
source behind one conductance, which is the last segment of its line as `CrossbarLines` sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import GROUND, Netlist, Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.equations import Equations, accumulate
from circuitsim.solver.lines import CrossbarLines, Interior
from circuitsim.solver.point import SolverSettings

__all__ = ["NotWired", "WiredPlan", "WiredResult"]

_ELEMENTS = {"resistor", "capacitor", "vsource", "isource"}
_CELLS_AT_ONCE = 1 << 22
"""Most samples times cells whose interiors are held in memory together."""


class NotWired(Exception):
    """Why a netlist is more than wired crossbars between sources and resistances."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WiredResult:
    """Node voltages (B, N), branch currents (B, M), what is inside, iterations and status (B,)."""

    node_voltage: FloatArray
    branch_current: FloatArray
    interiors: dict[str, Interior]
    iterations: IntArray
    status: NDArray[np.int8]


class WiredPlan:
    """Which nodes of a netlist are held, ports and others.

    Raises:
        NotWired: with the element that does not fit.
    """

    method = "wired"

    def __init__(self, netlist: Netlist) -> None:
        self.netlist = netlist
        self._refuse_others()
        self._hold_nodes()
        self._check_ends()
        cells = sum(len(c.lines) * len(c.bit) for c in netlist.crossbars)
        self.batch = max(1, _CELLS_AT_ONCE // cells)
        """Samples to solve at once."""
        self._lines: tuple[Values, list[CrossbarLines]] | None = None

    def _refuse_others(self) -> None:
        n = self.netlist
        if not any(crossbar.wired for crossbar in n.crossbars):
            raise NotWired("no crossbar has line resistance")
        for crossbar in n.crossbars:
            if not crossbar.wired:
                raise NotWired(f"crossbar {crossbar.name} has no line resistance")
        for table in n.tables():
            if table.kind not in _ELEMENTS and len(table):
                raise NotWired(f"{table.kind} {table.name[0]} is no source or resistance")
        for block in (*n.banks, *n.loads):
            raise NotWired(f"block {block.name} is no crossbar or virtual ground")

    def _hold_nodes(self) -> None:
        n = self.netlist
        held = np.zeros(n.n_nodes, dtype=np.bool_)
        held[GROUND] = True
        self._source_node = np.zeros(len(n.vsource), dtype=np.int64)
        for row in range(len(n.vsource)):
            pos, neg = int(n.vsource.pos[row]), int(n.vsource.neg[row])
            node = pos if neg == GROUND else neg
            if GROUND not in (pos, neg) or held[node]:
                raise NotWired(f"voltage source {n.vsource.name[row]} does not hold a node of its own")
            held[node] = True
            self._source_node[row] = node
        self._source_sign = np.where(n.vsource.pos == self._source_node, 1.0, -1.0)
        grounded = np.zeros(n.n_nodes, dtype=np.bool_)
        for sense in n.senses:
            if held[sense.bit].any() or len(set(sense.bit.tolist())) < len(sense.bit):
                raise NotWired(f"a virtual ground of {sense.name} is held twice")
            held[sense.bit] = grounded[sense.bit] = True
        self._held, self._virtual = held, grounded

    def _check_ends(self) -> None:
        n, held = self.netlist, self._held
        ends = np.concatenate([nodes for c in n.crossbars for nodes in (c.lines, c.bit)])
        lines = np.bincount(ends, minlength=n.n_nodes)
        shared = np.flatnonzero((lines > 1) & ~held)
        if len(shared):
            raise NotWired(f"node {n.node_names[shared[0]]} is the port of two lines")
        port = (lines == 1) & ~held
        loose = ~held & ~port
        r = n.resistor
        odd = (~held[r.pos] & ~held[r.neg] & (r.pos != r.neg)) | (loose[r.pos] & self._virtual[r.neg])
        odd |= loose[r.neg] & self._virtual[r.pos]
        if odd.any():
            raise NotWired(f"resistor {r.name[int(np.argmax(odd))]} joins two nodes that are not held")
        for name, pos, neg in zip(n.isource.name, n.isource.pos, n.isource.neg, strict=True):
            if port[pos] or port[neg]:
                raise NotWired(f"current source {name} drives a line")
        for sense in n.senses:
            if port[sense.output].any():
                raise NotWired(f"virtual ground {sense.name} drives a line")
        self._loose = np.flatnonzero(loose)

    def free(self, values: Values, inputs: FloatArray, settings: SolverSettings) -> WiredResult:
        """Solve the free phase of B samples."""
        n, held = self.netlist, self._held
        equations = Equations(netlist=n, values=values)
        source = n.with_values(values).source_voltage(inputs)
        v = np.zeros((len(source), n.n_nodes))
        v[:, self._source_node] = self._source_sign * source
        conductance, supplied = self._norton(values, v)
        behind = np.divide(supplied, conductance, out=np.zeros_like(supplied), where=conductance > 0)
        interiors = {}
        iterations, status = np.zeros(len(v), np.int64), np.zeros(len(v), np.int8)
        for crossbar, lines in zip(n.crossbars, self._ready(values, conductance), strict=True):
            state = lines.solve(
                *(np.where(held[ends], v[:, ends], behind[:, ends]) for ends in (crossbar.lines, crossbar.bit)),
                relative_tolerance=settings.relative_tolerance,
                max_iterations=10 * settings.max_iterations,
            )
            v[:, crossbar.lines], v[:, crossbar.bit] = state.word, state.bit
            interiors[crossbar.name] = state
            iterations += state.iterations
            status = np.maximum(status, state.status)
        i = np.zeros((len(v), len(n.branch_names)))
        # What virtual grounds take follows from KCL at their nodes; so do the currents of sources, later.
        current = equations.resistive_currents(v, interiors)
        taken = supplied.copy()
        start = n.branch_starts["blocks"]
        for sense in n.senses:
            k = slice(start, start + len(sense.bit))
            start += len(sense.bit)
            i[:, k] = -current[:, sense.bit]
            accumulate(taken, sense.output, values.senses[sense.name] * i[:, k])
        v[:, self._loose] = taken[:, self._loose] / conductance[self._loose]
        return WiredResult(
            node_voltage=v, branch_current=i, interiors=interiors, iterations=iterations, status=status
        )
