"""Behavioural sources whose formulas differ in constants alone, evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitsim.netlist.expressions import Drop, Expression, Formula
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["BehaviouralGroup", "behavioural_groups"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BehaviouralGroup:
    """R sources of one kind, rows ``rows`` of its table, whose formulas have n inputs.

    ``formula`` has arrays (R,) for constants. ``ends`` (n, 2, R) are the nodes of input m where
    ``is_drop[m]``, or else the sensed branch.
    """

    formula: Formula
    rows: IntArray
    is_drop: tuple[bool, ...]
    ends: IntArray

    def inputs(self, v: FloatArray, i: FloatArray) -> FloatArray:
        """Return the formula's inputs (B, R, n) at node voltages (B, N) and branch currents (B, M)."""
        x = np.empty((len(v), len(self.rows), len(self.is_drop)))
        for m, (is_drop, (pos, neg)) in enumerate(zip(self.is_drop, self.ends, strict=True)):
            x[:, :, m] = v[:, pos] - v[:, neg] if is_drop else i[:, pos]
        return x


def behavioural_groups(expressions: Sequence[Expression]) -> list[BehaviouralGroup]:
    """Return the rows of a table's expressions, those of one shape together."""
    alike: dict[Any, list[int]] = {}
    for row, expression in enumerate(expressions):
        f = expression.formula
        kinds = tuple(isinstance(entry, Drop) for entry in expression.inputs)
        alike.setdefault((f.op, f.a, f.b, f.c, kinds), []).append(row)
    found = []
    for (*_, kinds), rows in alike.items():
        ends = np.zeros((len(kinds), 2, len(rows)), dtype=np.int64)
        for place, row in enumerate(rows):
            for m, entry in enumerate(expressions[row].inputs):
                ends[m, :, place] = (entry.pos, entry.neg) if isinstance(entry, Drop) else (entry.source, 0)
        constants: Any = tuple(np.array([expressions[row].formula.constant for row in rows]).T)
        found.append(
            BehaviouralGroup(
                formula=replace(expressions[rows[0]].formula, constant=constants),
                rows=np.array(rows, dtype=np.int64),
                is_drop=kinds,
                ends=ends,
            )
        )
    return found
