"""Behavioural sources as the kernels take them: tapes one after another, and inputs with their slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from circuitsim.netlist import Netlist
from circuitsim.netlist.expressions import Drop, Formula
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["BehaviouralPlan"]


class BehaviouralPlan:
    """The behavioural sources of a flat netlist.

    ``pairs`` (inputs, 4, 2): the (row, column) where the slope with respect to each input enters J, with
    ``sign`` (inputs, 4); -1 is no unknown.
    """

    def __init__(self, netlist: Netlist, node_unknown: IntArray, branch_unknown: IntArray) -> None:
        n = netlist
        place: dict[Formula, int] = {}
        tapes: list[Formula] = []
        formula, rows, ends, counts = [], [], [], []
        inputs: list[tuple[int, int, int]] = []
        pairs: list[list[tuple[int, int]]] = []
        signs: list[tuple[float, float, float, float]] = []
        first = n.branch_starts["behavioural_voltage"]
        for table, is_current in ((n.behavioural_current, True), (n.behavioural_voltage, False)):
            for k, expression in enumerate(table.expression):
                pos, neg = int(table.pos[k]), int(table.neg[k])
                row = -1 if is_current else int(branch_unknown[first + k])
                if expression.formula not in place:
                    place[expression.formula] = len(tapes)
                    tapes.append(expression.formula)
                formula.append(place[expression.formula])
                rows.append(row)
                ends.append((pos, neg))
                counts.append(len(expression.inputs))
                out = (int(node_unknown[pos]), int(node_unknown[neg])) if is_current else (row, -1)
                for entry in expression.inputs:
                    if isinstance(entry, Drop):
                        controls = int(node_unknown[entry.pos]), int(node_unknown[entry.neg])
                        inputs.append((entry.pos, entry.neg, -1))
                    else:
                        controls = int(branch_unknown[entry.source]), -1
                        inputs.append((0, 0, controls[0]))
                    pairs.append([(r, c) for r in out for c in controls])
                    signs.append((1.0, -1.0, -1.0, 1.0) if is_current else (-1.0, 1.0, 0.0, 0.0))
        self.pairs = np.array(pairs, dtype=np.int64).reshape(-1, 4, 2)
        self._sign = np.array(signs, dtype=np.float64).reshape(-1, 4)
        ends_array = np.array(ends, dtype=np.int64).reshape(-1, 2)
        inputs_array = np.array(inputs, dtype=np.int64).reshape(-1, 3)
        self._arrays: dict[str, Any] = {
            "f_ptr": _starts([len(tape.op) for tape in tapes]),
            **{f"f_{part}": _joined(tapes, part, np.int64) for part in ("op", "a", "b", "c")},
            "f_constant": _joined(tapes, "constant", np.float64),
            "e_formula": np.array(formula, dtype=np.int64),
            "e_row": np.array(rows, dtype=np.int64),
            "e_pos": np.ascontiguousarray(ends_array[:, 0]),
            "e_neg": np.ascontiguousarray(ends_array[:, 1]),
            "e_ptr": _starts(counts),
            "x_pos": np.ascontiguousarray(inputs_array[:, 0]),
            "x_neg": np.ascontiguousarray(inputs_array[:, 1]),
            "x_branch": np.ascontiguousarray(inputs_array[:, 2]),
            "x_sign": self._sign,
        }

    def arrays(self, slots: Callable[[IntArray], IntArray]) -> dict[str, Any]:
        """Return the fields of the kernels' Circuit; ``slots`` finds places on the pattern."""
        return {**self._arrays, "x_slot": slots(self.pairs)}


def _starts(lengths: list[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _joined(tapes: list[Formula], part: str, dtype: Any) -> FloatArray | IntArray:
    return np.array([entry for tape in tapes for entry in getattr(tape, part)], dtype=dtype)
