"""A learning step of a plain network and a small batch with few calls: its phases are compiled as one.

The numbers are those of `circuitsim.learning.phases` and `circuitsim.learning.optimiser` up to rounding.
Conductances are read where they are and step in place, which spares a copy of all of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.chip import Conductances
from circuitsim.learning.asymep import AsymEP
from circuitsim.learning.cost import Cost
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.ep import EP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Factors, Gradient, LayeredGradient
from circuitsim.learning.optimiser import Optimiser
from circuitsim.netlist import Crossbar, Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver import Plan, SolverSettings
from circuitsim.solver.kernels.relaxing import CORRECTED, NUDGED, TRANSPOSED
from circuitsim.solver.kernels.step_phases import (
    BANK,
    KNOWN,
    LAYER,
    Devices,
    Learned,
    Signals,
    read_devices,
    settle_phases,
    step_devices,
    swing_products,
)
from circuitsim.solver.kernels.steps import LOW_RANK
from circuitsim.solver.relaxation import tolerances
from circuitsim.solver.threads import share_batch, threads
from circuitsim.solver.weights import FEW_SAMPLES, PARTS, WORTH_PARTS

__all__ = ["CompiledStep"]

Array = NDArray[Any]

_KINDS = {"quadratic": 1, "softmax": 2}
_PHASES = {"nudged": NUDGED, "corrected": CORRECTED, "dyadic": TRANSPOSED}
_SHARED, _WORTH = 32, 500_000
"""Samples, and matrix entries in all, some 2 ns each, from which on threads share a batch."""
_LINE = 64
"""Bytes of a cache line."""
_SLICES = 8
"""Slices of the rows of devices that threads step."""


class CompiledStep:
    """Gradients and steps of one network, for batches that `fits` says are small enough.

    ``values`` are those of the network, whose conductances it copies into one array.
    """

    def __init__(
        self,
        plan: Plan,
        values: Values,
        cost: Cost,
        estimator: EP | AsymEP | Dyadic,
        settings: SolverSettings,
    ) -> None:
        layered = plan.layered
        self.structure, self.compiled = layered.structure, layered.compiled
        self.weights = layered.weights(values, settings.precision)
        self.estimator, self.dtype = estimator, np.dtype(settings.precision)
        fixed, wiring = self.weights.fixed, self.compiled.wiring(self.weights)
        self.start = self.compiled.start
        self.size, self.bank_size = int(self.start[-1]), sum(len(bank.control) for bank in plan.netlist.banks)
        self.places = [slice(a, b) for a, b in zip(self.start, self.start[1:], strict=False)]
        self.leak = np.concatenate(fixed.leak)
        self.injected = np.zeros(self.size, dtype=self.dtype)
        for place, current in zip(self.places, fixed.injected, strict=True):
            self.injected[place] += 0 if current is None else current
        self._trainable = [crossbar.name for crossbar in plan.netlist.trainable]
        self._set_out(values, np.array(wiring.weights))
        self.tables = tuple(wiring._replace(weights=self.devices.inner))
        output = self.compiled.output
        assert output is not None
        centred = not isinstance(estimator, Dyadic) and estimator.centred
        name = "transposed" if isinstance(estimator, Dyadic) else estimator.phase
        scale = abs(estimator.beta) if isinstance(estimator, Dyadic) else 1.0
        # What is the same for every batch, in the order of `settle_phases`.
        self.asked = (_PHASES[estimator.phase], 2 if centred else 1, float(estimator.beta), self.tables)
        self.told = (
            (_KINDS[cost.kind], float(cost.conductance), float(cost.scale)),
            (output.layer, output.pos, output.neg),
            (self.compiled.orders["free"], self.compiled.orders[name]),
            (self._limits("free", settings, 1.0), self._limits(name, settings, scale)),
            settings.max_iterations,
            1e-9 if self.dtype == np.float32 else 1e-13,
        )

    def _set_out(self, values: Values, inner: Array) -> None:
        """Copy all conductances into one array, and tell where each is."""
        rows: list[tuple[int, ...]] = []
        columns: list[Array] = []
        gains: list[Array] = []
        fixeds: list[Array] = []
        self.crossbars: list[Crossbar] = []
        self.folded: list[bool] = []
        parts: list[Array] = []
        words = signed = seen = 0
        self.pairs: dict[str, tuple[slice, slice | None, tuple[int, int]]] = {}
        size = 0
        for number, link in enumerate(self.structure.links):
            m, n = link.crossbar.shape
            plus, minus = values.crossbars[link.crossbar.name]
            self.crossbars.append(link.crossbar)
            self.folded.append(False)
            first, second = size, -1 if minus is None else size + m * n
            for g in (plus, minus):
                if g is not None:
                    parts.append(np.asarray(g, dtype=self.dtype).reshape(-1))
                    size += m * n
            self.pairs[link.crossbar.name] = (
                slice(first, first + m * n),
                None if minus is None else slice(second, second + m * n),
                (m, n),
            )
            if link.source == "known":
                lines = self.weights.fixed.lines[number]
                assert lines is not None
                of_words = lines.plus.column, lines.plus.gain, lines.plus.fixed
                if minus is None and _opposite(*of_words):
                    # A pair in all but name: one half of the word lines stands for both.
                    self.folded[-1] = True
                    m //= 2
                    second = first + m * n
                for array, all_words in zip(of_words, (columns, gains, fixeds), strict=True):
                    all_words.append(array[:m])
                rows.append((KNOWN, -1, link.target, m, n, 0, first, second, words, signed))
                words, signed = words + m, signed + (0 if second < 0 else m * n)
                continue
            _, source, _, place, _, _, turned = self.compiled.links[seen]
            seen += 1
            kind = BANK if link.source == "bank" else LAYER
            rows.append((kind, int(source), link.target, m, n, int(turned), first, second, -1, int(place)))
        self.links = np.array(rows, dtype=np.int64)
        self.words = words
        nothing = [np.empty(0, dtype=self.dtype)]
        self.devices = Devices(
            links=self.links,
            column=np.concatenate([np.empty(0, dtype=np.int64), *columns]),
            gain=np.concatenate(nothing + gains),
            fixed=np.concatenate(nothing + fixeds),
            conductance=_aligned(np.concatenate(parts)),
            signed=np.empty(signed, dtype=self.dtype),
            inner=inner,
        )
        self.table = tuple(self.devices)
        self._nothing = np.empty(0, dtype=self.dtype)
        self._formed: Array | None = None
        self._optimiser: tuple[Optimiser, float] | None = None
        largest = max((m * n for kind, _, _, m, n, *_ in rows if kind == KNOWN), default=0)
        self.parts = PARTS if largest > WORTH_PARTS else 1

    @classmethod
    def of(
        cls, plan: Plan, values: Values, cost: Cost, estimator: Estimator, settings: SolverSettings
    ) -> CompiledStep | None:
        """Return the steps of an estimator on a network; None where they cannot be taken so."""
        if not isinstance(estimator, (EP, AsymEP, Dyadic)) or plan.chosen(settings) != "layered":
            return None
        structure, compiled = plan.layered.structure, plan.layered.compiled
        if settings.check or not compiled.plain or compiled.output is None or structure.pulled:
            return None
        for link in structure.links:
            held = link.source != "bank" or link.crossbar.driven
            if link.words is not None or link.bits is not None or not held:
                return None
        w = plan.layered.weights(values, settings.precision)
        if not compiled.fits(w, 1) or any(w.fixed.two_way):
            return None
        if isinstance(estimator, Dyadic) and any(x is not None for x in w.fixed.diodes):
            return None
        if any(x is not None and x.minus is not None for x in w.fixed.lines):
            # The other half of such word lines takes a product of its own.
            return None
        return cls(plan, values, cost, estimator, settings)

    @cached_property
    def conductance(self) -> Conductances:
        """Conductances of the trainable crossbars: what is read, and what steps."""
        flat, found = self.devices.conductance, {}
        for name in self._trainable:
            plus, minus, shape = self.pairs[name]
            found[name] = flat[plus].reshape(shape), None if minus is None else flat[minus].reshape(shape)
        return found

    def fits(self, batch: int) -> bool:
        """Whether a batch is small enough."""
        return self.compiled.fits(self.weights, batch)

    def gradient(self, inputs: FloatArray, targets: FloatArray) -> Gradient | None:
        """Return the gradient for inputs (B, n_in), targets (B, K); None where a sample did not settle."""
        found = self._signals(inputs, targets)
        return None if found is None else self._gradient(*found)

    def learn(
        self, inputs: FloatArray, targets: FloatArray, optimiser: Optimiser, factor: float
    ) -> Gradient | None:
        """Do what `gradient` does, and take the optimiser's step; None, and no step, as there."""
        found = self._signals(inputs, targets)
        if found is None:
            return None
        signals, batch = found[0], len(inputs)
        optimiser.count += 1
        learned = self._learned(optimiser, factor)
        stepped = tuple(signals._replace(products=self._products(signals, learned, batch)))
        given = self.table, self.start, self.compiled.bank_start, batch, stepped, tuple(learned)

        def rows(k: slice) -> None:
            step_devices(k.start, k.stop, _SLICES, *given)

        share_batch(rows, _SLICES, work=self.devices.conductance.size // (16 * _SLICES), parts=_SLICES)
        for crossbar in self.crossbars:
            if crossbar.trainable and crossbar.mask is not None:
                for g in self.conductance[crossbar.name]:
                    if g is not None:
                        g[~crossbar.mask] = 0
        return self._gradient(*found)

    def _signals(self, inputs: FloatArray, targets: FloatArray) -> tuple[Signals, Array, Array] | None:
        """Return what the phases found for the local rule, outputs (B, K) V and costs (B,) W."""
        batch = len(inputs)
        carried, words = self._carried(np.ascontiguousarray(inputs, dtype=self.dtype))
        targets = np.ascontiguousarray(targets, dtype=np.float64)
        blocks = np.empty(3 * batch * self.size, dtype=self.dtype)
        out = np.empty(batch * self.bank_size, dtype=self.dtype)
        y, value = np.empty(targets.shape), np.empty(batch)
        settled: list[bool] = []

        def rows(k: slice) -> None:
            found = blocks, out, y[k], value[k]
            samples = k.start, batch, targets[k]
            settled.append(settle_phases(*self.asked, carried, *self.told, samples, found))

        work = self.compiled.products
        worth = batch >= _SHARED and batch * work > _WORTH
        share_batch(rows, batch, work=work, parts=threads() if worth else 1)
        if not all(settled):
            return None
        swings = np.empty(self.size, dtype=self.dtype)
        swing_products(self.start, batch, blocks, swings)
        found = Signals(words=words, blocks=blocks, out=out, swings=swings, products=self._nothing)
        return found, y, value

    def _gradient(self, signals: Signals, y: Array, value: Array) -> Gradient:
        return Gradient(
            crossbars=LayeredGradient(lambda: self._factors(signals, len(y))),
            estimator=self.estimator.label,
            beta=self.estimator.beta,
            phases=self.estimator.reads,
            cost=float(value.sum()) / len(y),
            outputs=y,
        )

    def _carried(self, inputs: Array) -> tuple[tuple[Array, ...], Array]:
        """Return what devices carry while free nodes are at 0 V, for `settle_phases`, and the word lines."""
        batch, few = len(inputs), len(inputs) <= FEW_SAMPLES
        words = np.empty(batch * self.words, dtype=self.dtype)
        sums, word_load = np.zeros((self.parts, self.size)), np.zeros(self.size)
        sent = np.zeros((self.parts if few else 1, batch * self.size), dtype=self.dtype)
        into = sent if few else np.empty((self.parts, 0), dtype=self.dtype)

        def rows(k: slice) -> None:
            read_devices(
                k.start, k.stop, self.parts, self.table, self.start, inputs, words, into, sums, word_load
            )

        share_batch(
            rows, self.parts, work=self.devices.conductance.size // (16 * self.parts), parts=self.parts
        )
        if not few:
            for kind, _, target, m, n, _, plus, minus, first, place in self.links.tolist():
                if kind == KNOWN:
                    flat, at = (self.devices.conductance, plus) if minus < 0 else (self.devices.signed, place)
                    block = self._block(sent[0], target, batch)
                    block += self._lines(words, first, m, batch) @ flat[at : at + m * n].reshape(m, n)
        return (self.leak, self.injected, sums, sent, word_load), words

    def _learned(self, optimiser: Optimiser, factor: float) -> Learned:
        """Return the optimiser's step as the kernel takes it."""
        if self._optimiser is None or self._optimiser[0] is not optimiser:
            table, formed = np.full((len(self.links), 4), -1, dtype=np.int64), 0
            for row, learns, crossbar in zip(self.links.tolist(), table, self.crossbars, strict=True):
                size = row[3] * row[4]
                learns[0] = crossbar.trainable
                if crossbar.trainable:
                    plus, minus = optimiser.places[crossbar.name]
                    learns[1:] = plus, plus + size if minus < 0 and row[7] >= 0 else minus, formed
                    formed += size
            self._formed = None
            self._table, self._of_products = table, formed
            self._optimiser = None
        if self._optimiser is None or optimiser.moments or self._optimiser[1] != factor:
            numbers = [
                optimiser.numbers(crossbar, factor) if crossbar.trainable else None
                for crossbar in self.crossbars
            ]
            width = max((len(x) for x in numbers if x is not None), default=4)
            self._numbers = np.array([x or (0.0,) * width for x in numbers], dtype=self.dtype)
            self._optimiser = optimiser, factor
        m, v = (optimiser.moments.get(name, self._nothing) for name in ("m", "v"))
        return Learned(links=self._table, numbers=self._numbers, m=m, v=v)

    def _products(self, signals: Signals, learned: Learned, batch: int) -> Array:
        """Return the products left^T right of crossbars that learn, where their rank is not small."""
        if batch <= LOW_RANK // 2:
            return self._nothing
        if self._formed is None:
            self._formed = np.empty(self._of_products, dtype=self.dtype)
        for row, (learns, _, _, place) in zip(self.links.tolist(), learned.links.tolist(), strict=True):
            if learns:
                m, n = row[3:5]
                left, right = self._sides(row, signals, batch)
                np.matmul(left.T, right, out=self._formed[place : place + m * n].reshape(m, n))
        return self._formed

    def _sides(self, row: list[int], signals: Signals, batch: int) -> tuple[Array, Array]:
        """Return ``left`` and ``right`` of a link; its word lines are half of them where it is folded."""
        kind, source, target, m, *_ = row
        there = self._rows(signals.blocks, target, batch)
        # v, then s / B, then v again.
        if kind == KNOWN:
            return self._lines(signals.words, row[8], m, batch), there[batch : 2 * batch]
        if kind == BANK:
            left = self._lines(signals.out, int(self.compiled.bank_start[source]), m, batch)
            return left, there[batch : 2 * batch]
        return self._rows(signals.blocks, source, batch)[: 2 * batch], there[batch:]

    def _rows(self, blocks: Array, layer: int, batch: int) -> Array:
        place = self.places[layer]
        return blocks[3 * batch * place.start : 3 * batch * place.stop].reshape(3 * batch, -1)

    def _lines(self, words: Array, first: int, size: int, batch: int) -> Array:
        return words[batch * first : batch * (first + size)].reshape(batch, size)

    def _block(self, flat: Array, layer: int, batch: int) -> Array:
        place = self.places[layer]
        return flat[batch * place.start : batch * place.stop].reshape(batch, -1)

    def _limits(
        self, phase: str, settings: SolverSettings, scale: float
    ) -> tuple[float, float, float, float]:
        """Return what ends the sweeps of a phase: step [V], relative, rounding, absolute [A]."""
        step, relative, rounding = tolerances(settings, self.dtype)
        order, loops = self.compiled.orders[phase]
        if self.dtype != np.float32 and loops:
            closing = order[len(order) - loops :]
            relative /= float(np.sqrt(sum(self.compiled.sizes[layer] for layer in closing)))
        return step, relative, rounding, scale * settings.absolute_tolerance

    def _factors(self, signals: Signals, batch: int) -> dict[str, Factors]:
        """Return the gradient of every trainable crossbar in product form."""
        found: dict[str, Factors] = {}
        for row, crossbar, folded in zip(self.links.tolist(), self.crossbars, self.folded, strict=True):
            if crossbar.trainable:
                left, right = self._sides(row, signals, batch)
                found[crossbar.name] = Factors(
                    left=np.concatenate([left, -left], axis=1) if folded else left,
                    right=right,
                    word=signals.swings[self.places[row[1]]] if row[0] == LAYER else None,
                    bit=signals.swings[self.places[row[2]]],
                    mirrored=crossbar.word_neg is not None,
                    minus=None,
                    mask=crossbar.mask,
                )
        return found


def _aligned(x: Array) -> Array:
    """Return a copy that begins where a cache line does, which vectors of it do not straddle then."""
    room = np.empty(x.size + _LINE // x.itemsize, dtype=x.dtype)
    first = -room.ctypes.data % _LINE // x.itemsize
    found = room[first : first + x.size]
    found[:] = x
    return found


def _opposite(column: IntArray, gain: Array, fixed: Array) -> bool:
    """Whether the second half of some word lines is at the opposite voltages of the first."""
    half = len(column) // 2
    if len(column) != 2 * half:
        return False
    a, b = slice(half), slice(half, None)
    driven = column[a] >= 0
    same = np.array_equal(column[a], column[b]) and np.array_equal(gain[a][driven], -gain[b][driven])
    return same and np.array_equal(fixed[a][~driven], -fixed[b][~driven])
