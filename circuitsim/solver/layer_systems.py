"""What sweeps work on: layers that take currents and settle, in the free phase and around its point.

A system answers with the current into a layer as its neighbours stand, and settles its nodes given that; the
order of visits and when to stop are those of `circuitsim.solver.relaxation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import Nudge
from circuitsim.netlist.models import softmax
from circuitsim.netlist.tables import IntArray
from circuitsim.solver.banks import Phase, bank_output
from circuitsim.solver.faults import Faults
from circuitsim.solver.kernels.amplifiers import held_nodes
from circuitsim.solver.kernels.nodes import clamp_increments, clamp_nodes, solve_increments, solve_nodes
from circuitsim.solver.layers import Link
from circuitsim.solver.threads import share_batch
from circuitsim.solver.weights import Weights, Words, lines_of

if TYPE_CHECKING:
    from circuitsim.solver.layered import FreePoint, LayerChange, LayeredPlan

__all__ = ["FreeSystem", "IncrementSystem"]

Array = NDArray[Any]

_NODE_WORK = 3
"""What one node with diodes is worth in matrix entries, see `share_batch`."""


class _LayerSystem:
    """What the free phase and the increments share: layers that take currents and settle."""

    def __init__(self, plan: LayeredPlan, w: Weights, state: list[Array]) -> None:
        self.plan, self.structure, self.w = plan, plan.structure, w
        self.state = state
        self.entering = plan.entering

    def place(self, layer: int, voltage: Array) -> None:
        self.state[layer] = voltage

    def wired_currents(
        self, number: int, link: Link, line: Array | None, bit: Array | None
    ) -> tuple[Array, Array]:
        """Return what enters word ports (B, R) and bit ports (B, N) A of a wired crossbar from its wires."""
        block = self.w.blocks[number]
        assert block is not None
        batch = len(self.state[0])
        rows, columns = len(link.crossbar.lines), len(link.crossbar.bit)
        words = np.zeros((batch, rows)) if line is None else line
        bits = np.zeros((batch, columns)) if bit is None else np.asarray(bit, dtype=np.float64)
        leaving_word, leaving_bit = block.currents(np.broadcast_to(words, (batch, rows)), bits)
        return -leaving_word, -leaving_bit


class FreeSystem(_LayerSystem):
    """The free phase: a v = constant + what neighbours send."""

    def __init__(
        self,
        plan: LayeredPlan,
        w: Weights,
        words: list[Words | None],
        constant: list[Array],
        start: list[Array] | None,
    ) -> None:
        state = [np.zeros(x.shape, x.dtype) for x in constant] if start is None else list(start)
        super().__init__(plan, w, state)
        self.constant, self.words = constant, words
        self.loads = [load[None] for load in w.load]
        for number, link in enumerate(plan.links):
            if link.source == "bank" and w.fixed.two_way[link.index]:
                layer = self.structure.bank_layer[link.index]
                loop = w.fixed.back[link.index] * w.fixed.gain[link.index]
                places = slice(None) if link.words is None else link.words
                extra = np.zeros_like(w.load[layer])
                extra[places] = loop[places] * w.word_sum[number]
                self.loads[layer] = self.loads[layer] + extra
        self.outputs: list[Array | None] = [None] * len(plan.netlist.banks)

    def load(self, layer: int) -> Array:
        return self.loads[layer]

    def place(self, layer: int, voltage: Array) -> None:
        self.state[layer] = voltage
        for bank, own in enumerate(self.structure.bank_layer):
            if own == layer:
                self.outputs[bank] = None

    def whole_constant(self) -> list[Array | None]:
        """Return the current (B, n) A into every layer that does not move with any node."""
        w, total = self.w, list(self.constant)
        for number, link in enumerate(self.plan.links):
            if link.source == "bank" and w.fixed.two_way[link.index] and not w.fixed.centred[link.index]:
                layer = self.structure.bank_layer[link.index]
                offset = w.fixed.gain[link.index] * w.fixed.offset[link.index]
                total[layer] = total[layer] - w.fixed.back[link.index] * offset * w.word_sum[number]
        return list(total)

    def output(self, bank: int) -> Array:
        """Return the outputs (B, n) V of a bank as its layer stands."""
        out = self.outputs[bank]
        if out is None:
            out = self.outputs[bank] = bank_output(self.w, bank, self.state[self.structure.bank_layer[bank]])
        return out

    def current(self, layer: int) -> Array:
        """Return the current (B, n) A into the nodes of a layer at 0 V."""
        w, total = self.w, self.constant[layer]
        for number, link, side in self.entering[layer]:
            signed = w.signed[number]
            if link.wired:
                total = self._wired(number, link, side, total)
            elif link.source == "layer":
                if side == "from":
                    total = total + self.state[link.index] @ signed
                else:
                    total = total + self.state[link.target] @ signed.T
            elif side == "from":
                sent = self.output(link.index) @ signed
                total = total + (sent if link.sense < 0 else w.fixed.sense[link.sense] * sent)
            elif w.fixed.two_way[link.index]:
                back = w.fixed.back[link.index]
                if link.sense < 0:
                    total = total + back * (self.state[link.target] @ signed.T)
                if not w.fixed.centred[link.index]:
                    total = (
                        total
                        - back * w.fixed.gain[link.index] * w.fixed.offset[link.index] * w.word_sum[number]
                    )
        return total

    def _wired(self, number: int, link: Link, side: str, total: Array) -> Array:
        w, state = self.w, self.state
        words = slice(None) if link.words is None else link.words
        bits = slice(None) if link.bits is None else link.bits
        if link.source == "known":
            line = self.words[number]
            assert line is not None
            plus, minus = line.plus, line.minus
        else:
            own = self.output(link.index) if link.source == "bank" else state[link.index]
            plus, minus = own[:, words], None
        bit = None if link.sense >= 0 else state[link.target][:, bits]
        if side == "to" and link.source == "bank" and not w.fixed.two_way[link.index]:
            return total
        into_word, into_bit = self.wired_currents(number, link, lines_of(link.crossbar, plus, minus), bit)
        total = total.copy()
        if side == "to":
            if link.source == "layer":
                total[:, words] += into_word + w.word_sum[number] * plus
                return total
            if link.crossbar.word_neg is not None:
                into_word = into_word[:, 0::2] - into_word[:, 1::2]
            back, gain = w.fixed.back[link.index][words], w.fixed.gain[link.index][words]
            own_voltage = state[self.structure.bank_layer[link.index]][:, words]
            total[:, words] += back * (into_word + gain * w.word_sum[number] * own_voltage)
            return total
        if bit is None:
            total[:, bits] += w.fixed.sense[link.sense][bits] * into_bit
        else:
            load = self._bit_load(number)
            total[:, bits] += into_bit + load * bit
        return total

    def _bit_load(self, number: int) -> Array:
        block = self.w.blocks[number]
        assert block is not None
        return np.asarray(block.load_bit, dtype=self.w.dtype)

    def update(self, layer: int) -> None:
        self.place(layer, self.settled(layer))

    def settled(self, layer: int) -> Array:
        """Return the voltages (B, n) V at which the nodes of a layer settle."""
        w, a, current, old = self.w, self.loads[layer], self.current(layer), self.state[layer]
        diodes, clamps = w.fixed.diodes[layer], w.fixed.clamps[layer]
        if clamps is not None:
            new = np.empty_like(old)
            clamp_nodes(a, np.ascontiguousarray(current, dtype=w.dtype), *clamps, new)
        elif diodes is None:
            new = current / a
        else:
            new = old.copy()
            drawn = np.ascontiguousarray(current, dtype=w.dtype)
            columns = diodes

            def rows(k: slice) -> None:
                solve_nodes(a if len(a) == 1 else a[k], drawn[k], *columns, new[k])

            share_batch(rows, len(new), work=_NODE_WORK * new.shape[1])
        return new.astype(w.dtype, copy=False)

    def keep(self, rows: IntArray) -> None:
        self.state = [x[rows] for x in self.state]
        self.constant = [x[rows] for x in self.constant]
        self.words = [None if line is None else _rows_of(line, rows) for line in self.words]
        self.outputs = [None if out is None else out[rows] for out in self.outputs]
        self.loads = [a if len(a) == 1 else a[rows] for a in self.loads]


def _rows_of(line: Words, rows: IntArray) -> Words:
    return Words(
        plus=line.plus if len(line.plus) == 1 else line.plus[rows],
        minus=line.minus if line.minus is None or len(line.minus) == 1 else line.minus[rows],
    )


class IncrementSystem(_LayerSystem):
    """A phase around the free point: a D = constant + what neighbours' displacements send."""

    def __init__(
        self,
        plan: LayeredPlan,
        base: FreePoint,
        phase: Phase,
        constant: list[Array | None],
        nudge: Nudge | None,
        start: LayerChange | None,
        faults: Faults | None = None,
        slopes: list[Array | float] | None = None,
    ) -> None:
        w, v0 = base.weights, base.layers
        state = [np.zeros(x.shape, x.dtype) for x in v0] if start is None else list(start.layers)
        super().__init__(plan, w, state)
        self.phase, self.constant, self.v0 = phase, constant, v0
        self.banks = base.banks if faults is None else faults.banks
        # Gains of virtual grounds: what they pass forward, and how far their bit lines follow their outputs.
        self.sense_passes: list[Array | None] = [k if phase == "nudged" else None for k in w.fixed.sense]
        self.sense_moves: list[Array] = w.fixed.sense
        if faults is not None:
            self.sense_passes, self.sense_moves = faults.sense_passes, faults.sense_moves
        self.loads: list[Array] = [load[None] for load in w.load]
        held = phase == "corrected"
        self.drawn: list[Array | None] = [None] * len(base.banks)
        if faults is not None:
            for layer, load in faults.sense_loads():
                self.loads[layer] = self.loads[layer] + load
        for number, link in enumerate(plan.links):
            if link.source != "bank":
                continue
            layer, bank = self.structure.bank_layer[link.index], self.banks[link.index]
            words = w.word_sum[number]
            if link.words is not None:
                words = np.zeros_like(w.load[layer])
                words[link.words] = w.word_sum[number]
            if bank.two_way if phase == "nudged" else bank.passes:
                # What the bank passes forward linearly: B D or a D, read back through its own back gain.
                gain = bank.back * bank.slope if phase == "nudged" else bank.passing * bank.returned
                self.loads[layer] = self.loads[layer] + gain * words
            elif held and bank.limit is not None:
                drawn = bank.returned * words
                before = self.drawn[link.index]
                self.drawn[link.index] = drawn if before is None else before + drawn
        if phase == "transposed":
            for layer, x in enumerate(v0):
                slope = plan.diode_slopes(w, layer, x) if slopes is None else slopes[layer]
                if isinstance(slope, np.ndarray):
                    self.loads[layer] = self.loads[layer] + slope
        self.nudge = nudge
        self.y0 = plan.read(v0[self.structure.output_layer]) if self.structure.output_layer >= 0 else None
        self.stiff: Array | None = None
        if nudge is not None and nudge.kind == "quadratic":
            # A resistor at each output: part of its load.
            layer = self.structure.output_layer
            g = np.full((1, len(self.structure.y_pos)), nudge.beta * nudge.conductance, dtype=w.dtype)
            self.stiff = np.abs(plan.spread(g, v0[layer][:1]))
            if nudge.beta < 0:
                self.stiff = -self.stiff
            self.loads[layer] = self.loads[layer] + self.stiff
        # What saturating banks pass on while held, found with their control nodes.
        self.bends: list[Array | None] = [None] * len(base.banks)
        self.passing: list[Array | None] = [None] * len(base.banks)
        self.fresh = [False] * len(base.banks)

    @property
    def outweighed(self) -> bool:
        """Whether the negative conductance of a nudge leaves an output without a positive load."""
        nudge, layer = self.nudge, self.structure.output_layer
        if nudge is None or nudge.beta >= 0:
            return False
        # A softmax is steepest at a probability of one half.
        steepest = 0.0 if nudge.kind == "quadratic" else 0.25 * nudge.amplitude / nudge.scale
        return bool(self.loads[layer].min() + steepest <= 0)

    def load(self, layer: int) -> Array:
        return self.loads[layer]

    def place(self, layer: int, voltage: Array) -> None:
        self.state[layer] = voltage
        for bank, own in enumerate(self.structure.bank_layer):
            if own == layer:
                self.fresh[bank] = False

    def passed(self, bank: int) -> Array | None:
        """Return what a bank passes on (B, n) V as its layer stands; None where nothing."""
        if not self.fresh[bank]:
            point, d = self.banks[bank], self.state[self.structure.bank_layer[bank]]
            if self.phase == "corrected" and point.limit is not None:
                self.passing[bank] = point.change(d) - point.held * d
            else:
                self.passing[bank] = point.forward(self.phase, d)
            self.fresh[bank] = True
        return self.passing[bank]

    def update(self, layer: int) -> None:
        w, a, old = self.w, self.loads[layer], self.state[layer]
        current = self._current(layer)
        if layer == self.structure.output_layer and self.nudge is not None:
            pull, stiffness = self._pull(self.nudge, old)
            current = current - pull
            if stiffness is not None:
                a = a + stiffness
                current += stiffness * old
        diodes, clamps = w.fixed.diodes[layer], w.fixed.clamps[layer]
        held = [
            bank
            for bank, own in enumerate(self.structure.bank_layer)
            if own == layer and self.drawn[bank] is not None
        ]
        linear = self.phase == "transposed" or (diodes is None and clamps is None)
        bends: dict[int, Array] = {}
        if held and not (linear and len(held) == 1):
            # Curvature beside diodes, or of several banks: linearised where it stands.
            for bank in held:
                bend, tilt = self._curvature(bank, old)
                drawn = self.drawn[bank]
                assert drawn is not None
                h = np.maximum(drawn * tilt, -0.5 * a)
                current = current + h * old - drawn * bend
                a = a + h
        current = np.ascontiguousarray(current, dtype=w.dtype)
        if not linear:
            new = old.copy()
            v0 = self.v0[layer]
            if clamps is not None:
                clamp_increments(a, current, v0, *clamps, new)
            else:
                assert diodes is not None
                columns, loads = diodes, np.ascontiguousarray(a, dtype=w.dtype)

                def node_rows(k: slice) -> None:
                    part = loads if len(loads) == 1 else loads[k]
                    solve_increments(part, current[k], v0[k], *columns, new[k])

                share_batch(node_rows, len(new), work=_NODE_WORK * new.shape[1])
        elif len(held) == 1:
            point, drawn = self.banks[held[0]], self.drawn[held[0]]
            assert drawn is not None
            assert point.limit is not None
            limit, tangent, bend = point.limit, point.t, np.empty_like(old)
            assert tangent is not None
            new, loads = old.copy(), np.ascontiguousarray(a, dtype=w.dtype)

            def held_rows(k: slice) -> None:
                held_nodes(
                    loads if len(loads) == 1 else loads[k],
                    current[k],
                    drawn[k],
                    point.gain,
                    limit,
                    tangent[k],
                    point.held[k],
                    new[k],
                    bend[k],
                )

            share_batch(held_rows, len(new), work=_NODE_WORK * new.shape[1])
            bends[held[0]] = bend
        else:
            new = current / a
        self.place(layer, new.astype(w.dtype, copy=False))
        for bank, bend in bends.items():
            self.passing[bank], self.fresh[bank] = bend, True

    def _current(self, layer: int) -> Array:
        """Return the current (B, n) A into the nodes of a layer where none of them moves."""
        w, state, phase = self.w, self.state, self.phase
        total = self.constant[layer]
        for number, link, side in self.entering[layer]:
            if link.wired:
                sent = self._wired(number, link, side)
            elif link.source == "layer":
                signed = w.signed[number]
                sent = state[link.index] @ signed if side == "from" else state[link.target] @ signed.T
            elif side == "from":
                gain = None if link.sense < 0 else self.sense_passes[link.sense]
                if link.sense >= 0 and gain is None:
                    continue
                passed = self.passed(link.index)
                if passed is None:
                    continue
                sent = passed @ w.signed[number]
                if gain is not None:
                    sent *= gain
            else:
                bank = self.banks[link.index]
                if phase == "nudged" and (not bank.two_way or link.sense >= 0):
                    continue
                bit = state[link.target]
                if link.sense >= 0:
                    bit = self.sense_moves[link.sense] * bit
                sent = bit @ w.signed[number].T
                sent *= bank.back if phase == "nudged" else bank.returned
            if sent is not None:
                total = sent if total is None else total + sent
        return np.zeros_like(state[layer]) if total is None else total

    def _wired(self, number: int, link: Link, side: str) -> Array | None:
        """Return what a wired crossbar's displacement sends into a layer, its diagonal load taken back."""
        w, state, phase = self.w, self.state, self.phase
        words = slice(None) if link.words is None else link.words
        bits = slice(None) if link.bits is None else link.bits
        line: Array | None = None
        if link.source == "layer":
            line = state[link.index][:, words]
        elif link.source == "bank":
            if side == "to" and phase == "nudged" and not w.fixed.two_way[link.index]:
                return None
            passed = self.passed(link.index)
            line = None if passed is None else passed[:, words]
        moving: Array | None = None
        ground = None if link.sense < 0 else self.sense_passes[link.sense]
        if link.sense < 0:
            moving = state[link.target][:, bits]
        elif ground is None and (side == "from" or link.source == "known"):
            return None
        elif phase != "nudged":
            moving = self.sense_moves[link.sense][bits] * state[link.target][:, bits]
        elif link.source == "known":
            return None
        into_word, into_bit = self.wired_currents(
            number, link, None if line is None else lines_of(link.crossbar, line, None), moving
        )
        batch = len(state[0])
        if side == "to":
            layer = link.index if link.source == "layer" else self.structure.bank_layer[link.index]
            sent = np.zeros((batch, state[layer].shape[1]), dtype=w.dtype)
            if link.source == "layer":
                assert line is not None
                sent[:, words] = into_word + w.word_sum[number] * line
                return sent
            if link.crossbar.word_neg is not None:
                into_word = into_word[:, 0::2] - into_word[:, 1::2]
            bank = self.banks[link.index]
            gain = bank.back[None] if phase == "nudged" else bank.returned
            if line is not None:
                # What the bank itself passes on is in the load, or is drawn with its bend.
                into_word = into_word + w.word_sum[number] * line
            sent[:, words] = gain[:, words] * into_word
            return sent
        sent = np.zeros((batch, state[link.target].shape[1]), dtype=w.dtype)
        block = w.blocks[number]
        assert block is not None
        if moving is not None:
            into_bit = into_bit + block.load_bit * moving
        sent[:, bits] = into_bit if ground is None else ground[bits] * into_bit
        return sent

    def _curvature(self, bank: int, d: Array) -> tuple[Array, Array]:
        """Return f(v0 + d) - f(v0) - a d and its derivative."""
        point = self.banks[bank]
        change = point.change(d)
        assert point.t is not None
        assert point.limit is not None
        finite = np.where(np.isinf(point.limit), 1e30, point.limit)
        there = point.t + change / finite
        return change - point.held * d, point.gain * (1 - there * there) - point.held

    def _pull(self, nudge: Nudge, d: Array) -> tuple[Array, Array | None]:
        """Return the nudge's current (B, n) that leaves each node and, where it bends, its own derivative.

        Of a quadratic cost's the part that grows with the displacement is in the load.
        """
        assert self.y0 is not None
        if nudge.kind == "quadratic":
            current = nudge.beta * nudge.conductance * (self.y0 - nudge.target)
            if self.structure.y_neg is not None:
                # The other side of a pair moves the target of this one.
                g = nudge.beta * nudge.conductance
                pull = self.plan.spread(current.astype(d.dtype), d)
                pull[:, self.structure.y_pos] -= d.dtype.type(g) * d[:, self.structure.y_neg]
                pull[:, self.structure.y_neg] -= d.dtype.type(g) * d[:, self.structure.y_pos]
                return pull, None
            return self.plan.spread(current.astype(d.dtype), d), None
        y = self.y0 + self.plan.read(d)
        p = softmax(y, nudge.scale)
        current = nudge.amplitude * (p - nudge.target)
        stiffness = nudge.amplitude / nudge.scale * p * (1 - p)
        own = np.zeros_like(d)
        own[:, self.structure.y_pos] = stiffness
        if self.structure.y_neg is not None:
            own[:, self.structure.y_neg] = stiffness
        return self.plan.spread(current.astype(d.dtype), d), own

    def keep(self, rows: IntArray) -> None:
        def some(array: Array | None) -> Array | None:
            return array if array is None or len(array) == 1 else array[rows]

        self.state = [x[rows] for x in self.state]
        self.v0 = [x[rows] for x in self.v0]
        self.constant = [some(x) for x in self.constant]
        self.loads = [a if len(a) == 1 else a[rows] for a in self.loads]
        self.drawn = [some(x) for x in self.drawn]
        self.passing = [some(x) for x in self.passing]
        self.banks = [bank.rows(rows) for bank in self.banks]
        if self.y0 is not None:
            self.y0 = self.y0[rows]
        if self.nudge is not None:
            self.nudge = self.nudge.rows(rows)
