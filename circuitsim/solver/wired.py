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
        self.cells = sum(len(c.lines) * len(c.bit) for c in netlist.crossbars)
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
        if n.banks:
            raise NotWired(f"bank {n.banks[0].name} is no source or resistance")
        if n.loads:
            raise NotWired(f"load {n.loads[0].name} is no source or resistance")

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
        """Solve the free phase of B samples; the currents of voltage sources are left to the caller."""
        n, held = self.netlist, self._held
        source = n.source_voltage(inputs)
        v = np.zeros((len(source), n.n_nodes))
        v[:, self._source_node] = self._source_sign * source
        conductance, supplied = self._norton(values, v)
        behind = np.divide(supplied, conductance, out=np.zeros_like(supplied), where=conductance > 0)
        iterations, status = np.zeros(len(v), np.int64), np.zeros(len(v), np.int8)
        interiors = {}
        for crossbar, lines in zip(n.crossbars, self._ready(values, conductance), strict=True):
            word, bit = (
                np.where(held[ends], v[:, ends], behind[:, ends]) for ends in (crossbar.lines, crossbar.bit)
            )
            state = lines.solve(
                word,
                bit,
                relative_tolerance=settings.relative_tolerance,
                max_iterations=10 * settings.max_iterations,
            )
            v[:, crossbar.lines], v[:, crossbar.bit] = state.word, state.bit
            interiors[crossbar.name] = state
            iterations += state.iterations
            status = np.maximum(status, state.status)
        i = np.zeros((len(v), len(n.branch_names)))
        if n.senses:
            # What a virtual ground takes follows from KCL at its node.
            equations = Equations(netlist=n, values=values, interiors=interiors)
            leaving, _, _ = equations.residual(v, i, source)
            start = n.branch_starts["blocks"]
            for sense in n.senses:
                k = slice(start, start + len(sense.bit))
                start += len(sense.bit)
                i[:, k] = -leaving[:, sense.bit]
                accumulate(supplied, sense.output, values.senses[sense.name] * i[:, k])
        v[:, self._loose] = supplied[:, self._loose] / conductance[self._loose]
        return WiredResult(
            node_voltage=v, branch_current=i, interiors=interiors, iterations=iterations, status=status
        )

    def _norton(self, values: Values, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what joins each node to held ones (N,) S, and the current (B, N) A into it at 0 V."""
        n, held = self.netlist, self._held
        conductance, supplied = np.zeros(n.n_nodes), np.zeros_like(v)
        g = values.tables["resistor"]["conductance"]
        for here, there in ((n.resistor.pos, n.resistor.neg), (n.resistor.neg, n.resistor.pos)):
            k = np.flatnonzero(~held[here] & held[there])
            conductance += np.bincount(here[k], g[k], n.n_nodes)
            accumulate(supplied, here[k], g[k] * v[:, there[k]])
        if len(n.isource):
            current = np.broadcast_to(values.tables["isource"]["current"], (len(v), len(n.isource)))
            accumulate(supplied, n.isource.pos, -current)
            accumulate(supplied, n.isource.neg, current)
        return conductance, supplied

    def _ready(self, values: Values, conductance: FloatArray) -> list[CrossbarLines]:
        """Return every crossbar factored; those of the last values are kept."""
        if self._lines is None or self._lines[0] is not values:
            drive = np.where(self._held, np.inf, conductance)
            lines = [
                CrossbarLines(
                    c,
                    c.cells(*values.crossbars[c.name]),
                    word_drive=drive[c.lines],
                    bit_drive=drive[c.bit],
                )
                for c in self.netlist.crossbars
            ]
            self._lines = values, lines
        return self._lines[1]

    def source_currents(self, current: FloatArray, leaving: FloatArray) -> None:
        """Write the currents of voltage sources into ``current`` (B, M); (B, N) A leave the nodes."""
        current[:, : len(self._source_node)] = -self._source_sign * leaving[:, self._source_node]
