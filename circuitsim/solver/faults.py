"""Faults of a correction as the layered method needs them: what blocks pass on, and what errors add.

See `circuitsim.solver.correction` for the equations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.correction import Correction
from circuitsim.solver.layers import Link
from circuitsim.solver.weights import lines_of

if TYPE_CHECKING:
    from circuitsim.solver.layered import FreePoint, LayeredPlan

__all__ = ["Faults"]

Array = NDArray[Any]


class Faults:
    """Faults of a correction around one point, as increments need them.

    A virtual ground of gain k passes (1 - c_f) k times the change of its bit current, and its bit line
    moves by c_b k (D - e).
    """

    def __init__(self, plan: LayeredPlan, base: FreePoint, correction: Correction) -> None:
        self.plan, self.base, self.correction = plan, base, correction
        n, w = plan.netlist, base.weights
        kinds = correction.forward, correction.back, correction.anchor
        self.banks = [
            point.faulty(*(kind.get(bank.name) for kind in kinds))
            for bank, point in zip(n.banks, base.banks, strict=True)
        ]
        self.sense_passes: list[Array | None] = []
        self.sense_moves: list[Array] = []
        self.sense_holds: list[Array] = []
        self.sense_shift: list[Array | None] = []
        for sense, gain in zip(n.senses, w.fixed.sense, strict=True):
            c_f, c_b, e = (kind.get(sense.name) for kind in kinds)
            held = gain if c_f is None else c_f.astype(w.dtype) * gain
            passes = gain - held
            moves = gain if c_b is None else c_b.astype(w.dtype) * gain
            self.sense_holds.append(held)
            self.sense_passes.append(passes if np.any(passes) else None)
            self.sense_moves.append(moves)
            self.sense_shift.append(None if e is None else -moves * np.atleast_2d(e).astype(w.dtype))

    def sense_loads(self) -> Iterator[tuple[int, Array]]:
        """Yield (layer, (1, n) S): what a bit line that moves takes from its own output."""
        for number, link in enumerate(self.plan.links):
            passes = None if link.sense < 0 else self.sense_passes[link.sense]
            if passes is None:
                continue
            bits = slice(None) if link.bits is None else link.bits
            load = np.zeros((1, len(passes)), dtype=passes.dtype)
            load[0, bits] = self._bit_sum(number, link)
            yield link.target, passes * self.sense_moves[link.sense] * load

    def _bit_sum(self, number: int, link: Link) -> FloatArray:
        block = self.base.weights.blocks[number]
        if block is not None:
            return np.asarray(block.load_bit)
        halves = self.plan.netlist.device_conductances(link.crossbar, self.base.weights.values)
        return np.asarray(sum(g.sum(axis=0, dtype=np.float64) for _, g in halves))

    def add_errors(self, constant: list[Any]) -> None:
        """Add the currents (B, n) A into the layers that errors of the anchor cause while no node moves."""
        n, structure, w = self.plan.netlist, self.plan.structure, self.base.weights

        def into(layer: int, places: Any, current: Array) -> None:
            if constant[layer] is None:
                constant[layer] = np.zeros_like(self.base.layers[layer])
            constant[layer][:, places] += current

        for bank, layer, point in zip(n.banks, structure.bank_layer, self.banks, strict=True):
            error = self.correction.anchor_current.get(bank.name)
            if error is not None:
                into(layer, slice(None), -(point.returned - point.back) * error.astype(w.dtype))
        for index, sense in enumerate(n.senses):
            error = self.correction.anchor_current.get(sense.name)
            if error is not None:
                layer = structure.sense_layer[index]
                into(layer, slice(None), self.sense_holds[index] * error.astype(w.dtype))
        for number, link in enumerate(self.plan.links):
            line = self.banks[link.index].shift if link.source == "bank" else None
            bit = None if link.sense < 0 else self.sense_shift[link.sense]
            if line is None and bit is None:
                continue
            words = slice(None) if link.words is None else link.words
            bits = slice(None) if link.bits is None else link.bits
            into_word, into_bit = self._currents(
                number, link, None if line is None else line[:, words], None if bit is None else bit[:, bits]
            )
            if link.source == "bank":
                bank_layer, returned = structure.bank_layer[link.index], self.banks[link.index].returned
                into(bank_layer, words, returned[:, words] * into_word)
            if link.sense < 0:
                into(link.target, bits, into_bit)
                continue
            passes = self.sense_passes[link.sense]
            if passes is not None:
                into(link.target, bits, passes[bits] * into_bit)

    def _currents(
        self, number: int, link: Link, line: Array | None, bit: Array | None
    ) -> tuple[Array, Array]:
        """Return the currents into word lines, those of a pair as their difference, and into bit lines."""
        w, crossbar = self.base.weights, link.crossbar
        rows, columns = len(crossbar.word_pos), len(crossbar.bit)
        batch = max(len(x) for x in (line, bit) if x is not None)
        x = np.broadcast_to(np.zeros((1, rows), w.dtype) if line is None else line, (batch, rows))
        y = np.broadcast_to(np.zeros((1, columns), w.dtype) if bit is None else bit, (batch, columns))
        block = w.blocks[number]
        if block is not None:
            word, into_bit = block.currents(lines_of(crossbar, x, None), np.asarray(y, dtype=np.float64))
            paired = crossbar.word_neg is not None
            into_word = word[:, 1::2] - word[:, 0::2] if paired else -word
            return into_word.astype(w.dtype), -into_bit.astype(w.dtype)
        # Known word lines are only met where their bit lines move.
        signed = w.signed[number]
        into_bit = x @ signed if line is not None else np.zeros_like(y)
        if bit is not None:
            into_bit = into_bit - self._bit_sum(number, link).astype(w.dtype) * y
        if link.source != "bank":
            return np.zeros_like(x), into_bit
        into_word = y @ signed.T - w.word_sum[number] * x
        return into_word, into_bit
