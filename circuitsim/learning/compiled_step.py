"""A learning step of a plain network and a small batch with few calls: its phases are compiled as one.

The numbers are those of `circuitsim.learning.phases` up to rounding. Conductances are read where they are and
may change between steps, which spares a step that writes them in place a copy of all of them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.chip import Conductances
from circuitsim.errors import ConvergenceError
from circuitsim.learning.asymep import AsymEP
from circuitsim.learning.cost import Cost
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.ep import EP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Factors, Gradient, LayeredGradient
from circuitsim.learning.phases import Phases
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Plan, SolverSettings
from circuitsim.solver.kernels.conductances import bit_sums, currents_and_sums, pair_sums
from circuitsim.solver.kernels.relaxing import CORRECTED, NUDGED, TRANSPOSED
from circuitsim.solver.kernels.step_phases import (
    BANK,
    KNOWN,
    LAYER,
    Devices,
    read_devices,
    settle_phases,
    swing_products,
)
from circuitsim.solver.relaxation import tolerances
from circuitsim.solver.threads import share_batch, threads
from circuitsim.solver.weights import FEW_SAMPLES, PARTS, WORTH_PARTS

__all__ = ["CompiledStep"]

Array = NDArray[Any]

_KINDS = {"quadratic": 1, "softmax": 2}
_PHASES = {"nudged": NUDGED, "corrected": CORRECTED, "dyadic": TRANSPOSED}
_SHARED, _WORTH = 32, 50_000
"""Samples, and matrix entries in all, from which on threads share a batch."""


class CompiledStep:
    """Gradients of one network, for batches that `fits` says are small enough.

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
        _load_alone(plan, values, cost, estimator, settings)
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
        columns, gains, fixeds = [], [], []
        parts: list[Array] = []
        words = signed = seen = 0
        self.pairs: dict[str, tuple[slice, slice | None, tuple[int, int]]] = {}
        size = 0
        for number, link in enumerate(self.structure.links):
            m, n = link.crossbar.shape
            plus, minus = values.crossbars[link.crossbar.name]
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
                columns.append(lines.plus.column)
                gains.append(lines.plus.gain)
                fixeds.append(lines.plus.fixed)
                rows.append((KNOWN, -1, link.target, m, n, 0, first, second, words, signed))
                words, signed = words + m, signed + (0 if minus is None else m * n)
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
            conductance=np.concatenate(parts),
            signed=np.empty(signed, dtype=self.dtype),
            inner=inner,
        )
        self.table = tuple(self.devices)
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

    @property
    def conductance(self) -> Conductances:
        """Conductances of the trainable crossbars, which `gradient` reads and others may change."""
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
        products = np.empty(self.size, dtype=self.dtype)
        swing_products(self.start, batch, blocks, products)
        return Gradient(
            crossbars=self._factors(words, blocks, out, products, batch),
            estimator=self.estimator.label,
            beta=self.estimator.beta,
            phases=self.estimator.reads,
            cost=float(value.sum()) / batch,
            outputs=y,
        )

    def _carried(self, inputs: Array) -> tuple[tuple[Array, ...], Array]:
        """Return what devices carry while free nodes are at 0 V, for `settle_phases`, and the word lines."""
        batch, few = len(inputs), len(inputs) <= FEW_SAMPLES
        words = np.empty(batch * self.words, dtype=self.dtype)
        sums, word_load = np.zeros((self.parts, self.size)), np.zeros(self.size)
        sent = np.zeros((self.parts if few else 1, batch * self.size), dtype=self.dtype)
        nothing = sent[0, :0]

        def rows(k: slice) -> None:
            for part in range(k.start, k.stop):
                into = sent[part] if few else nothing
                read_devices(
                    part, self.parts, self.table, self.start, inputs, words, into, sums[part], word_load
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

    def _factors(
        self, words: Array, blocks: Array, out: Array, products: Array, batch: int
    ) -> LayeredGradient:
        """Return the gradient of every trainable crossbar in product form."""
        found: dict[str, Any] = {}
        rows = [blocks[3 * batch * k.start : 3 * batch * k.stop].reshape(3 * batch, -1) for k in self.places]
        for link, row in zip(self.structure.links, self.links.tolist(), strict=True):
            if not link.crossbar.trainable:
                continue
            kind, source, target, m, *_ = row
            # v, then s / B, then v again.
            own, right = None, rows[target][batch : 2 * batch]
            if kind == KNOWN:
                left = self._lines(words, row[8], m, batch)
            elif kind == BANK:
                left = self._lines(out, int(self.compiled.bank_start[source]), m, batch)
            else:
                left, right, own = (
                    rows[source][: 2 * batch],
                    rows[target][batch:],
                    products[self.places[source]],
                )
            found[link.crossbar.name] = Factors(
                left=left,
                right=right,
                word=own,
                bit=products[self.places[target]],
                mirrored=link.crossbar.word_neg is not None,
                minus=None,
                mask=link.crossbar.mask,
            )
        return LayeredGradient(found)


def _load_alone(
    plan: Plan, values: Values, cost: Cost, estimator: EP | AsymEP | Dyadic, settings: SolverSettings
) -> None:
    """Load kernels that phases call on their own before those that contain copies of them.

    A process takes the first copy that it loads of a kernel for all calls, and copies are optimised for
    where they stand: without this, rounding would depend on what a process did first.
    """
    dtype = np.dtype(settings.precision)
    g, sums, line = np.ones((1, 1), dtype), np.zeros(1), np.zeros((1, 1), dtype)
    pair_sums(g, g, 0, 1, line, np.empty(0), sums)
    bit_sums(g, 0, 1, sums)
    currents_and_sums(line, g, 0, 1, np.zeros((1, 1), dtype), sums)
    inputs = np.zeros((1, plan.netlist.inputs.size), dtype=dtype)
    targets = np.zeros((1, len(plan.netlist.outputs.pos)))
    phases = Phases(plan=plan, values=values, cost=cost, settings=settings)
    # A point that does not settle has loaded them, too.
    with contextlib.suppress(ConvergenceError):
        estimator.estimate(phases, inputs, targets)
