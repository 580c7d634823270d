"""The layered method: nodes that couple only through crossbars, amplifier banks and virtual grounds.

State: one array (B, n) per layer of nodes. Visiting a layer takes one BLAS product per crossbar and
direction for the whole batch, then every node's scalar equation is solved to the end. One pass over
the layers is exact where the phase is feedforward; otherwise sweeps repeat (`circuitsim.solver.relaxation`).

The nudged and corrected phases and the transposed system are solved for the displacement D = v - v0
from the free point, never as differences of voltages, so that a small beta costs no digits; see
`circuitsim.solver.banks` for what sets them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import Netlist, Nudge, Values
from circuitsim.netlist.models import diode_conductance, diode_current
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.banks import BankPoint, Phase, bank_output, bank_point
from circuitsim.solver.compiled import CompiledSweeps
from circuitsim.solver.correction import Correction
from circuitsim.solver.dual import DualNetwork
from circuitsim.solver.faults import Faults
from circuitsim.solver.layer_systems import FreeSystem, IncrementSystem
from circuitsim.solver.layers import Layers, Link
from circuitsim.solver.point import SolverSettings
from circuitsim.solver.relaxation import relax
from circuitsim.solver.weights import (
    Weights,
    Words,
    constant_currents,
    gather,
    known_voltages,
    known_words,
)

__all__ = ["FreePoint", "LayerChange", "LayeredPlan"]

Array = NDArray[Any]

_GREW, _OUTWEIGHED = 3, 4
"""Statuses, see `STATUS`."""


@dataclass(frozen=True, eq=False)
class LayerChange:
    """Displacements (B, n) V of the layers in a phase: an element of a vector space."""

    phase: Phase
    layers: tuple[Array, ...]
    iterations: IntArray
    status: NDArray[np.int8]
    driven: tuple[Array, ...] | None = None
    """Displacements (B, n) V of every bank's outputs, then of every virtual ground, where they are not those
    that a perfect phase of this circuit gives them: with faults, and in a copy of its own."""
    copy: Weights | None = None
    """The transposed copy's own weights."""

    def __sub__(self, other: LayerChange) -> LayerChange:
        def less(ours: tuple[Array, ...], theirs: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(a - b for a, b in zip(ours, theirs, strict=True))

        assert (self.driven is None) == (other.driven is None)
        driven = None
        if self.driven is not None and other.driven is not None:
            driven = less(self.driven, other.driven)
        return replace(self, layers=less(self.layers, other.layers), driven=driven)

    def __neg__(self) -> LayerChange:
        return self._each(lambda a: -a)

    def __truediv__(self, divisor: float) -> LayerChange:
        return self._each(lambda a: a * a.dtype.type(1 / divisor))

    def _each(self, f: Callable[[Array], Array]) -> LayerChange:
        driven = None if self.driven is None else tuple(map(f, self.driven))
        return replace(self, layers=tuple(map(f, self.layers)), driven=driven)


@dataclass(frozen=True, kw_only=True, eq=False)
class FreePoint:
    """The free phase of a batch, layer by layer, with what its other phases need of it."""

    weights: Weights
    inputs: Array
    words: list[Words | None]
    layers: list[Array]
    """v0 (B, n) V"""
    banks: list[BankPoint]
    iterations: IntArray
    status: NDArray[np.int8]


class LayeredPlan:
    """A netlist's layers, and the phases of a network of them.

    Raises:
        NotLayered: with the element that does not fit.
    """

    method = "layered"

    def __init__(self, netlist: Netlist) -> None:
        self.netlist = netlist
        self.structure = Layers(netlist)
        self.layers = self.structure.layers
        self.links = self.structure.links
        # Per layer: what enters it from a link's word lines ("from"), or back from its bit lines ("to").
        self.entering: list[list[tuple[int, Link, str]]] = [[] for _ in self.layers]
        for number, link in enumerate(self.links):
            if link.source == "known":
                if link.wired:
                    self.entering[link.target].append((number, link, "wired"))
                continue
            if link.source == "layer":
                self.entering[link.target].append((number, link, "from"))
                self.entering[link.index].append((number, link, "to"))
                continue
            self.entering[link.target].append((number, link, "from"))
            self.entering[self.structure.bank_layer[link.index]].append((number, link, "to"))
        self.compiled = CompiledSweeps(self.structure)
        self._weights: dict[Any, Weights] = {}

    @cached_property
    def _compiled_copy(self) -> CompiledSweeps:
        """The same for a transposed copy, whose weights are kept beside those of the circuit."""
        return CompiledSweeps(self.structure)

    def weights(self, values: Values, precision: str, *, copy: bool = False) -> Weights:
        """Return the working copies of one set of values; the last one is kept, and one of a ``copy``."""
        key = (precision, copy)
        kept = self._weights.get(key)
        if kept is None or kept.values is not values:
            kept = self._weights[key] = gather(self.structure, values, precision, kept)
        return kept

    def free(
        self, values: Values, inputs: Array, settings: SolverSettings, start: list[Array] | None = None
    ) -> FreePoint:
        """Solve the free phase for inputs (B, n_in), from layers' voltages ``start`` if given."""
        w = self.weights(values, settings.precision)
        words = known_words(w, inputs)
        constant = self._constant(w, words, inputs)
        system = FreeSystem(self, w, words, constant, start)
        if self.compiled.fits(w, len(inputs)):
            found = self.compiled.relax(
                "free", w, settings, loads=system.loads, constant=system.whole_constant(), state=start
            )
        else:
            found = relax(system, self.structure.sweeps["free"], settings)
        return FreePoint(
            weights=w,
            inputs=inputs,
            words=words,
            layers=found.state,
            banks=self.bank_points(w, found.state),
            iterations=found.iterations,
            status=found.status,
        )

    def at(self, values: Values, inputs: Array, voltage: FloatArray, precision: str) -> FreePoint:
        """Return node voltages (B, N) V as a free point, which they need not be."""
        w = self.weights(values, precision)
        layers = [np.ascontiguousarray(voltage[:, nodes], dtype=w.dtype) for nodes in self.layers]
        return FreePoint(
            weights=w,
            inputs=inputs,
            words=known_words(w, inputs),
            layers=layers,
            banks=self.bank_points(w, layers),
            iterations=np.zeros(len(voltage), dtype=np.int64),
            status=np.zeros(len(voltage), dtype=np.int8),
        )

    def increments(
        self,
        base: FreePoint,
        phase: Phase,
        settings: SolverSettings,
        *,
        nudge: Nudge | None = None,
        output_current: FloatArray | None = None,
        residual: bool = False,
        held_current: FloatArray | None = None,
        start: LayerChange | None = None,
        correction: Correction | None = None,
        dual: DualNetwork | None = None,
    ) -> LayerChange:
        """Solve for the displacement from the free point that a nudge or a current causes.

        ``output_current`` (B, K) A leaves the outputs, whatever they do; a nudge follows them.
        ``residual`` is for points that are not the free point: it adds what is left of the free phase's
        equations there. ``held_current`` (B, M) A is by how much the anchor's branch currents differ
        from those that its node voltages imply. ``correction`` is for the corrected phase, ``dual`` for the
        transposed system.
        """
        slopes: list[Array | float] | None = None
        compiled = self.compiled
        if dual is not None:
            slopes, base = self._copy(base, dual, settings.precision)
            compiled = self._compiled_copy
        w, v0 = base.weights, base.layers
        faults = None if correction is None else Faults(self, base, correction)
        banks = base.banks if faults is None else faults.banks
        constant: list[Array | None] = [None] * len(v0)
        if residual:
            constant = [-current for current in self._residual(w, base.words, base.inputs, v0)]
        if held_current is not None:
            constant = [np.zeros_like(x) if c is None else c for c, x in zip(constant, v0, strict=True)]
            holds = w.fixed.sense if faults is None else faults.sense_holds
            self._hold(w, banks, holds, held_current, constant)
        if faults is not None:
            faults.add_errors(constant)
        if output_current is not None:
            layer = self.structure.output_layer
            pulled = self.spread(output_current.astype(w.dtype, copy=False), v0[layer])
            constant[layer] = -pulled if constant[layer] is None else constant[layer] - pulled
        system = IncrementSystem(self, base, phase, constant, nudge, start, faults, slopes)
        if nudge is not None and system.outweighed:
            status = np.full(len(v0[0]), _OUTWEIGHED, dtype=np.int8)
            nothing = tuple(np.zeros_like(x) for x in v0)
            return LayerChange(phase, nothing, np.zeros(len(status), np.int64), status)
        if compiled.fits(w, len(v0[0])):
            found = compiled.relax(
                phase,
                w,
                settings,
                loads=system.loads,
                constant=constant,
                state=None if start is None else list(start.layers),
                v0=v0,
                banks=banks,
                drawn=system.drawn,
                nudge=nudge,
                y0=system.y0,
            )
        else:
            sweep = self.structure.sweeps[phase] if faults is None else self.structure.faulty_sweep
            found = relax(system, sweep, settings)
        state = found.state
        lost = found.status == _GREW
        if lost.any():
            # Their last voltages mean nothing, and would overflow in whatever is made of them.
            state = [np.where(lost[:, None], x.dtype.type(0), x) for x in state]
        change = LayerChange(phase, tuple(state), found.iterations, found.status)
        if faults is None and dual is None:
            return change
        driven = self._driven(w, phase, banks, state, faults)
        return replace(change, driven=driven, copy=None if dual is None else w)

    def change_of(
        self,
        displacement: FloatArray,
        phase: Phase,
        precision: str,
        *,
        driven: bool = False,
        copy: Weights | None = None,
    ) -> LayerChange:
        """Return node displacements (B, N) V as those of the layers, and of the ``driven`` nodes if asked."""
        dtype = np.dtype(precision)

        def parts(groups: Iterable[IntArray]) -> tuple[Array, ...]:
            return tuple(np.ascontiguousarray(displacement[:, nodes], dtype=dtype) for nodes in groups)

        count, n = len(displacement), self.netlist
        ends = [*(bank.out_pos for bank in n.banks), *(sense.bit for sense in n.senses)]
        return LayerChange(
            phase,
            parts(self.layers),
            np.zeros(count, np.int64),
            np.zeros(count, np.int8),
            driven=parts(ends) if driven else None,
            copy=copy,
        )

    def _copy(
        self, base: FreePoint, dual: DualNetwork, precision: str
    ) -> tuple[list[Array | float], FreePoint]:
        """Return a transposed copy around the point of its circuit: diodes' slopes, and the point itself."""
        w = self.weights(dual.values, precision, copy=True)
        slopes = [
            self.diode_slopes(base.weights, layer, v0, dual.diode, dual.ideal_diode)
            for layer, v0 in enumerate(base.layers)
        ]
        banks = [
            point.of_copy(back, dual.slope.get(bank.name))
            for bank, point, back in zip(self.netlist.banks, base.banks, w.fixed.back, strict=True)
        ]
        return slopes, replace(base, weights=w, banks=banks)

    def clocked(
        self,
        values: Values,
        inputs: Array,
        output_slope: Callable[[FloatArray], FloatArray],
        steps: int,
        settings: SolverSettings,
        dual: DualNetwork | None = None,
    ) -> tuple[FreePoint, LayerChange]:
        """Return the circuit m and its transposed copy d after unit steps from zero; see `clocked_steps`."""
        w = self.weights(values, settings.precision)
        words = known_words(w, inputs)
        system = FreeSystem(self, w, words, self._constant(w, words, inputs), None)
        m, layers = system.state, range(len(self.layers))
        d = [np.zeros_like(x) for x in m]
        for _ in range(steps):
            at = self._clocked_point(w, words, inputs, m, steps)
            slopes: list[Array | float] | None = None
            if dual is not None:
                slopes, at = self._copy(at, dual, settings.precision)
            settled = [system.settled(layer) for layer in layers]
            d = [self._dual(at, layer, d, slopes, output_slope) for layer in layers]
            for layer in layers:
                system.place(layer, settled[layer])
            m = list(system.state)
        point = self._clocked_point(w, words, inputs, m, steps)
        change = LayerChange("transposed", tuple(d), point.iterations, point.status)
        if dual is None:
            return point, change
        at = self._copy(point, dual, settings.precision)[1]
        driven = self._driven(at.weights, "transposed", at.banks, d, None)
        return point, replace(change, driven=driven, copy=at.weights)

    def _clocked_point(
        self, w: Weights, words: list[Words | None], inputs: Array, m: list[Array], steps: int
    ) -> FreePoint:
        return FreePoint(
            weights=w,
            inputs=inputs,
            words=words,
            layers=m,
            banks=self.bank_points(w, m),
            iterations=np.full(len(inputs), steps, dtype=np.int64),
            status=np.zeros(len(inputs), dtype=np.int8),
        )

    def _dual(
        self,
        at: FreePoint,
        layer: int,
        d: list[Array],
        slopes: list[Array | float] | None,
        output_slope: Callable[[FloatArray], FloatArray],
    ) -> Array:
        w, m, banks = at.weights, at.layers, at.banks
        current = np.zeros_like(d[layer])
        if layer == self.structure.output_layer:
            current -= self.spread(output_slope(self.read(m[layer])).astype(w.dtype), m[layer])
        for number, link in enumerate(self.links):
            if link.source == "bank" and self.structure.bank_layer[link.index] == layer:
                bit = d[link.target] if link.sense < 0 else w.fixed.sense[link.sense] * d[link.target]
                current += banks[link.index].slope * (bit @ w.signed[number].T)
        slope = self.diode_slopes(w, layer, m[layer]) if slopes is None else slopes[layer]
        return current / (w.load[layer] + slope)

    def read(self, layer_voltage: Array) -> Array:
        """Return the outputs (B, K) V from the voltages of the output layer."""
        y = layer_voltage[:, self.structure.y_pos]
        return y if self.structure.y_neg is None else y - layer_voltage[:, self.structure.y_neg]

    def spread(self, output_current: Array, like: Array) -> Array:
        """Return the currents (B, n) A of the output layer's nodes from those of outputs (B, K) A."""
        total = np.zeros(like.shape, like.dtype)
        total[:, self.structure.y_pos] += output_current
        if self.structure.y_neg is not None:
            total[:, self.structure.y_neg] -= output_current
        return total

    def bank_points(self, w: Weights, state: list[Array]) -> list[BankPoint]:
        """Return every bank at the node voltages of the layers."""
        return [bank_point(w, k, state[layer]) for k, layer in enumerate(self.structure.bank_layer)]

    def diode_slopes(
        self,
        w: Weights,
        layer: int,
        v0: Array,
        factor: FloatArray | None = None,
        ideal_factor: FloatArray | None = None,
    ) -> Array | float:
        """Return dI/dv (B, n) S of the diodes at the nodes of a layer, times factors (rows,) if given."""
        clamps, diodes = w.fixed.clamps[layer], w.fixed.diodes[layer]
        if clamps is not None:
            low, low_g, high, high_g = clamps
            if ideal_factor is not None:
                low_row, _, high_row, _ = self.structure.clamps[layer]
                low_g, high_g = low_g * ideal_factor[low_row], high_g * ideal_factor[high_row]
            return (np.where(v0 < low, low_g, 0.0) + np.where(v0 > high, high_g, 0.0)).astype(w.dtype)
        if diodes is None:
            return 0.0
        total = np.zeros(v0.shape)
        for place, (sign, ref, i_s, slope, gmin) in enumerate(zip(*diodes, strict=True)):
            g = np.where(i_s > 0, diode_conductance(sign * (v0 - ref), i_s, slope, gmin), 0.0)
            if factor is not None:
                g = g * factor[self.structure.diodes[layer][0][:, place]]
            total += g
        return total.astype(w.dtype)

    def free_residual(self, w: Weights, inputs: Array, v0: list[Array]) -> list[Array]:
        """Return the current (B, n) that leaves each node at v0 in the free phase."""
        return self._residual(w, known_words(w, inputs), inputs, v0)

    def _residual(self, w: Weights, words: list[Words | None], inputs: Array, v0: list[Array]) -> list[Array]:
        system = FreeSystem(self, w, words, self._constant(w, words, inputs), v0)
        residual = []
        for layer, x in enumerate(v0):
            current = system.load(layer) * x - system.current(layer)
            clamps, diodes = w.fixed.clamps[layer], w.fixed.diodes[layer]
            if clamps is not None:
                low, low_g, high, high_g = clamps
                current += low_g * np.minimum(x - low, 0.0) + high_g * np.maximum(x - high, 0.0)
            elif diodes is not None:
                for sign, ref, i_s, slope, gmin in zip(*diodes, strict=True):
                    through = sign * diode_current(sign * (x - ref), i_s, slope, gmin)
                    current += np.where(i_s > 0, through, 0.0)
            residual.append(current.astype(w.dtype, copy=False))
        return residual

    def _constant(self, w: Weights, words: list[Words | None], inputs: Array) -> list[Array]:
        known = known_voltages(self.structure, w.values, inputs) if self.structure.pulled else None
        return constant_currents(self.structure, w, words, len(inputs), known)

    def _hold(
        self,
        w: Weights,
        banks: list[BankPoint],
        sense_holds: list[Array],
        held: FloatArray,
        constant: list[Any],
    ) -> None:
        """Add the currents that anchored branch currents ``held`` (B, M) A beyond KCL draw."""
        n = self.netlist
        start = len(n.vsource)
        for index, bank in enumerate(n.banks):
            size = len(bank.control)
            extra = held[:, start : start + size]
            start += size
            if bank.out_neg is not None:
                extra = extra - held[:, start : start + size]
                start += size
            draw = (banks[index].returned - w.fixed.back[index]) * extra.astype(w.dtype)
            constant[self.structure.bank_layer[index]] -= draw
        for index, sense in enumerate(n.senses):
            extra = held[:, start : start + len(sense.bit)]
            start += len(sense.bit)
            constant[self.structure.sense_layer[index]] += sense_holds[index] * extra.astype(w.dtype)

    def full_voltage(self, w: Weights, known: Array, state: list[Array]) -> FloatArray:
        """Return all node voltages (B, N) V of the free phase from those of the layers."""
        v = np.array(known, dtype=np.float64)
        for nodes, x in zip(self.layers, state, strict=True):
            v[:, nodes] = x
        for index, bank in enumerate(self.netlist.banks):
            out = bank_output(w, index, state[self.structure.bank_layer[index]])
            v[:, bank.out_pos] = out
            if bank.out_neg is not None:
                v[:, bank.out_neg] = -out
        return v

    def node_voltage(self, point: FreePoint) -> FloatArray:
        """Return all node voltages (B, N) V of a free point."""
        w = point.weights
        return self.full_voltage(w, known_voltages(self.structure, w.values, point.inputs), point.layers)

    def displacement(self, base: FreePoint, change: LayerChange) -> FloatArray:
        """Return a change as the displacement of all nodes (B, N) V."""
        if change.driven is None:
            return self.full_displacement(base.weights, change.phase, base.banks, change.layers)
        d = np.zeros((len(change.layers[0]), self.netlist.n_nodes))
        for nodes, x in zip(self.layers, change.layers, strict=True):
            d[:, nodes] = x
        banks, senses = self.netlist.banks, self.netlist.senses
        for bank, x in zip(banks, change.driven[: len(banks)], strict=True):
            d[:, bank.out_pos] = x
            if bank.out_neg is not None:
                d[:, bank.out_neg] = -x
        for sense, x in zip(senses, change.driven[len(banks) :], strict=True):
            d[:, sense.bit] = x
        return d

    def _driven(
        self, w: Weights, phase: Phase, banks: list[BankPoint], state: list[Array], faults: Faults | None
    ) -> tuple[Array, ...]:
        """Return the displacements of banks' outputs and of virtual grounds, see `LayerChange`."""
        found = []
        for bank, layer in zip(banks, self.structure.bank_layer, strict=True):
            x = state[layer]
            passed = bank.forward(phase, x)
            if phase == "corrected" and bank.limit is not None:
                passed = bank.change(x) - bank.held * x
            passed = np.zeros_like(x) if passed is None else passed
            found.append(passed if bank.shift is None else passed + bank.shift)
        for index, layer in enumerate(self.structure.sense_layer):
            if faults is None:
                found.append(w.fixed.sense[index] * state[layer])
                continue
            moved = faults.sense_moves[index] * state[layer]
            error = faults.sense_shift[index]
            found.append(moved if error is None else moved + error)
        return tuple(found)

    def full_displacement(self, w: Weights, phase: Phase, banks: list[BankPoint], state: Any) -> FloatArray:
        """Return the displacement of all nodes (B, N) V from that of the layers."""
        d = np.zeros((len(state[0]), self.netlist.n_nodes))
        for nodes, x in zip(self.layers, state, strict=True):
            d[:, nodes] = x
        for index, bank in enumerate(self.netlist.banks):
            x = state[self.structure.bank_layer[index]]
            point = banks[index]
            passed = point.forward(phase, x)
            if phase == "corrected" and point.limit is not None:
                passed = point.change(x) - point.slope * x
            if passed is not None:
                d[:, bank.out_pos] = passed
                if bank.out_neg is not None:
                    d[:, bank.out_neg] = -passed
        if phase != "nudged":
            for index, sense in enumerate(self.netlist.senses):
                d[:, sense.bit] = w.fixed.sense[index] * state[self.structure.sense_layer[index]]
        return d
