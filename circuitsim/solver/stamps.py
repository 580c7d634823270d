"""What linear elements add to the equations: matrix entries as signed sums of parameters.

``F(x, t) + S dx/dt`` with x = (v, i): `linear_stamps` are the entries of the constant part of dF/dx,
`storage_stamps` those of S. Rows and columns: nodes as 0 ... N-1, branches as N + k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["Entries", "Stamps", "linear_parameters", "linear_stamps", "storage_parameters", "storage_stamps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """``matrix[row, col] += sign * parameter[which]``."""

    row: IntArray
    col: IntArray
    which: IntArray
    sign: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Stamps:
    """Entries with their place in a list of values: ``values[slot] += sign * parameter[which]``."""

    slot: IntArray
    which: IntArray
    sign: FloatArray
    size: int

    def assemble(self, parameters: FloatArray) -> FloatArray:
        return np.bincount(self.slot, self.sign * parameters[self.which], self.size).astype(np.float64)


class _Collector:
    def __init__(self) -> None:
        nothing = np.empty(0, np.int64)
        self._parts: list[tuple[IntArray, IntArray, IntArray, FloatArray]] = [
            (nothing, nothing, nothing, np.empty(0))
        ]

    def add(self, row: IntArray, col: IntArray, parameter: IntArray, sign: float) -> None:
        self._parts.append((row, col, parameter, np.full(len(row), sign)))

    def conductance(self, pos: IntArray, neg: IntArray, parameter: IntArray) -> None:
        self.transconductance(pos, neg, pos, neg, parameter)

    def transconductance(
        self, pos: IntArray, neg: IntArray, cpos: IntArray, cneg: IntArray, parameter: IntArray
    ) -> None:
        for row, s in ((pos, 1.0), (neg, -1.0)):
            self.add(row, cpos, parameter, s)
            self.add(row, cneg, parameter, -s)

    def entries(self) -> Entries:
        row, col, which, sign = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return Entries(row=row, col=col, which=which, sign=sign)


def linear_stamps(n: Netlist) -> Entries:
    """Return the entries of a flat netlist's resistors, sources and branches, by `linear_parameters`."""
    found = _Collector()
    sizes = [1, len(n.resistor), len(n.vccs), len(n.vcvs), len(n.cccs), len(n.ccvs)]
    offset = np.concatenate([[0], np.cumsum(sizes)])
    branch = {kind: n.n_nodes + start for kind, start in n.branch_starts.items()}
    r, g, e, f, h = n.resistor, n.vccs, n.vcvs, n.cccs, n.ccvs
    found.conductance(r.pos, r.neg, offset[1] + np.arange(len(r)))
    found.transconductance(g.pos, g.neg, g.control_pos, g.control_neg, offset[2] + np.arange(len(g)))
    tables: tuple[Any, ...] = n.voltage_defined
    for table in tables:
        k = branch[table.kind] + np.arange(len(table))
        one = np.zeros(len(table), dtype=np.int64)
        for node, s in ((table.pos, 1.0), (table.neg, -1.0)):
            found.add(k, node, one, s)
            found.add(node, k, one, s)
    k = branch["vcvs"] + np.arange(len(e))
    found.add(k, e.control_pos, offset[3] + np.arange(len(e)), -1.0)
    found.add(k, e.control_neg, offset[3] + np.arange(len(e)), 1.0)
    found.add(f.pos, n.n_nodes + f.control, offset[4] + np.arange(len(f)), 1.0)
    found.add(f.neg, n.n_nodes + f.control, offset[4] + np.arange(len(f)), -1.0)
    k = branch["ccvs"] + np.arange(len(h))
    found.add(k, n.n_nodes + h.control, offset[5] + np.arange(len(h)), -1.0)
    return found.entries()


def linear_parameters(tables: Mapping[str, Mapping[str, FloatArray]]) -> FloatArray:
    """Return the parameters of `linear_stamps`: 1, then value columns."""
    return np.concatenate(
        [
            np.ones(1),
            tables["resistor"]["conductance"],
            tables["vccs"]["transconductance"],
            tables["vcvs"]["gain"],
            tables["cccs"]["gain"],
            tables["ccvs"]["transresistance"],
        ]
    )


def storage_stamps(n: Netlist) -> Entries:
    """Return the entries of a flat netlist's capacitors and inductors, by `storage_parameters`."""
    found = _Collector()
    c, k = n.capacitor, n.coupling
    found.conductance(c.pos, c.neg, np.arange(len(c)))
    branch = n.n_nodes + n.branch_starts["inductor"] + np.arange(len(n.inductor))
    found.add(branch, branch, len(c) + np.arange(len(n.inductor)), -1.0)
    mutual = len(c) + len(n.inductor) + np.arange(len(k))
    found.add(branch[k.first], branch[k.second], mutual, -1.0)
    found.add(branch[k.second], branch[k.first], mutual, -1.0)
    return found.entries()


def storage_parameters(n: Netlist, tables: Mapping[str, Mapping[str, FloatArray]]) -> FloatArray:
    """Return the parameters of `storage_stamps`: capacitances, inductances, mutual inductances."""
    inductance = tables["inductor"]["inductance"]
    product = inductance[n.coupling.first] * inductance[n.coupling.second]
    mutual = tables["coupling"]["coefficient"] * np.sqrt(product)
    return np.concatenate([tables["capacitor"]["capacitance"], inductance, mutual])
