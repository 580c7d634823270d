"""A learning step of a plain network and a small batch with few calls: its phases are compiled as one.

The numbers are those of `circuitsim.learning.phases` up to rounding. Conductances are read where they are and
may change between steps, which spares a step that writes them in place a copy of all of them.
"""

from __future__ import annotations

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
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Plan, SolverSettings
from circuitsim.solver.kernels.conductances import bit_sums, currents_and_sums, pair_sums
from circuitsim.solver.kernels.relaxing import CORRECTED, NUDGED, TRANSPOSED
from circuitsim.solver.kernels.step_phases import settle_phases, signed_weights, swing_products
from circuitsim.solver.relaxation import tolerances
from circuitsim.solver.threads import share_batch, threads
from circuitsim.solver.weights import FEW_SAMPLES, known_words, parts_of

__all__ = ["CompiledStep"]

Array = NDArray[Any]

_KINDS = {"quadratic": 1, "softmax": 2}
_PHASES = {"nudged": NUDGED, "corrected": CORRECTED, "dyadic": TRANSPOSED}
_SHARED, _WORTH = 32, 50_000
"""Samples, and matrix entries in all, from which on threads share a batch."""


class CompiledStep:
    """Gradients of one network, for batches that `fits` says are small enough.

    ``values`` are those of the network, whose conductances it copies.
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
        self.cost, self.estimator, self.settings = cost, estimator, settings
        self.dtype = np.dtype(settings.precision)
        wiring = self.compiled.wiring(self.weights)
        self.inner = np.array(wiring.weights)
        self.tables = tuple(wiring._replace(weights=self.inner))
        fixed = self.weights.fixed
        self.leak = np.concatenate(fixed.leak)
        self.injected = [None if x is None else x[None] for x in fixed.injected]
        self.start = self.compiled.start
        self.size, self.bank_size = (
            int(self.start[-1]),
            sum(len(b.control) for b in plan.netlist.banks),
        )
        self.places = [slice(a, b) for a, b in zip(self.start, self.start[1:], strict=False)]
        self._owned = {
            crossbar.name: tuple(self._copied(g) for g in values.crossbars[crossbar.name])
            for crossbar in plan.netlist.trainable
        }
        self.halves: list[tuple[Array, Array]] = []
        for link in self.structure.links:
            name = link.crossbar.name
            pair = self._owned.get(name)
            if pair is None:
                pair = tuple(self._copied(g) for g in values.crossbars[name])
            plus, minus = pair
            assert plus is not None
            self.halves.append((plus, np.empty((0, 0), dtype=self.dtype) if minus is None else minus))
        self.signed: dict[int, Array] = {}
        output = self.compiled.output
        assert output is not None
        self.output = (output.layer, output.pos, output.neg)
        centred = not isinstance(estimator, Dyadic) and estimator.centred
        self.sides = 2 if centred else 1
        name = "transposed" if isinstance(estimator, Dyadic) else estimator.phase
        self.sweeps = (self.compiled.orders["free"], self.compiled.orders[name])
        self.phase = _PHASES[estimator.phase]
        scale = abs(estimator.beta) if isinstance(estimator, Dyadic) else 1.0
        self.limits = (self._limits("free", 1.0), self._limits(name, scale))

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
            if link.words is not None or link.bits is not None or link.crossbar.mask is not None or not held:
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
        return self._owned

    def fits(self, batch: int) -> bool:
        """Whether a batch is small enough."""
        return self.compiled.fits(self.weights, batch)

    def gradient(self, inputs: FloatArray, targets: FloatArray) -> Gradient | None:
        """Return the gradient for inputs (B, n_in), targets (B, K); None where a sample did not settle."""
        batch = len(inputs)
        words = self._words(inputs)
        load, word_load = self.leak.copy(), np.zeros(self.size)
        constant = np.zeros(batch * self.size, dtype=self.dtype)
        for layer, current in enumerate(self.injected):
            if current is not None:
                self._block(constant, layer, batch)[:] += current
        self._read_conductances(words, constant, load, word_load)
        blocks = np.empty(3 * batch * self.size, dtype=self.dtype)
        out = np.empty(batch * self.bank_size, dtype=self.dtype)
        targets = np.ascontiguousarray(targets, dtype=np.float64)
        y, value = np.empty(targets.shape), np.empty(batch)
        cost = (_KINDS[self.cost.kind], float(self.cost.conductance), float(self.cost.scale))
        settled: list[bool] = []

        def rows(k: slice) -> None:
            settled.append(
                settle_phases(
                    self.phase,
                    self.sides,
                    float(self.estimator.beta),
                    self.tables,
                    (load, word_load),
                    cost,
                    self.output,
                    self.sweeps,
                    self.limits,
                    self.settings.max_iterations,
                    1e-9 if self.dtype == np.float32 else 1e-13,
                    (k.start, batch, constant, targets[k]),
                    (blocks, out, y[k], value[k]),
                )
            )

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
            cost=float(value.mean()),
            outputs=y,
        )

    def _copied(self, g: Array | None) -> Any:
        return None if g is None else np.array(g, dtype=self.dtype, order="C")

    def _limits(self, phase: str, scale: float) -> tuple[float, float, float, float]:
        """Return what ends the sweeps of a phase: step [V], relative, rounding, absolute [A]."""
        step, relative, rounding = tolerances(self.settings, self.dtype)
        order, loops = self.compiled.orders[phase]
        if self.dtype != np.float32 and loops:
            closing = order[len(order) - loops :]
            relative /= np.sqrt(sum(self.compiled.sizes[layer] for layer in closing))
        return step, float(relative), rounding, scale * self.settings.absolute_tolerance

    def _words(self, inputs: FloatArray) -> list[Array | None]:
        """Return the voltages (B, M) V of the word lines of every link that are known."""
        found: list[Array | None] = []
        for words in known_words(self.weights, inputs):
            if words is None:
                found.append(None)
                continue
            whole = np.broadcast_to(words.plus, (len(inputs), words.plus.shape[1]))
            found.append(np.ascontiguousarray(whole, dtype=self.dtype))
        return found

    def _block(self, flat: Array, layer: int, batch: int) -> Array:
        place = self.places[layer]
        return flat[batch * place.start : batch * place.stop].reshape(batch, -1)

    def _read_conductances(
        self, words: list[Array | None], constant: Array, load: FloatArray, word_load: FloatArray
    ) -> None:
        """Add up what devices carry while nodes are at 0 V, and what they load; set out inner weights."""
        batch = len(constant) // self.size
        inner = 0
        for number, link in enumerate(self.structure.links):
            plus, minus = self.halves[number]
            bits = load[self.places[link.target]]
            line = words[number]
            if line is not None:
                current = self._block(constant, link.target, batch)
                self._known(number, line, plus, minus, current, bits)
                continue
            banked, source, _, place, _, _, turned = self.compiled.links[inner]
            inner += 1
            loaded = (word_load if banked else load)[self.places[source]]
            signed_weights(plus, minus, bool(turned), self.inner[place : place + plus.size], loaded, bits)

    def _known(
        self, number: int, line: Array, plus: Array, minus: Array, current: Array, bits: FloatArray
    ) -> None:
        """Add the currents (B, N) of known word lines, and the sums (N,) over them."""
        edges, few = parts_of(plus), len(minus) == 0 and len(line) <= FEW_SAMPLES
        count = len(edges) - 1
        sums = np.zeros((count, plus.shape[1]))
        sent = np.zeros((count if few else 0, *current.shape), dtype=self.dtype)
        signed = plus
        if len(minus):
            signed = self.signed.setdefault(number, np.empty_like(plus))

        def rows(k: slice) -> None:
            for part in range(k.start, k.stop):
                first, last = edges[part], edges[part + 1]
                if few:
                    currents_and_sums(line, plus, first, last, sent[part], sums[part])
                elif len(minus):
                    pair_sums(plus, minus, first, last, signed, _NO_SUMS, sums[part])
                else:
                    bit_sums(plus, first, last, sums[part])

        share_batch(rows, count, work=plus.size // (16 * count), parts=count)
        for part in range(count):
            bits += sums[part]
        if not few:
            current += line @ signed
            return
        for part in sent:
            current += part

    def _factors(
        self, words: list[Array | None], blocks: Array, out: Array, products: Array, batch: int
    ) -> LayeredGradient:
        """Return the gradient of every trainable crossbar in product form."""
        found: dict[str, Any] = {}
        for number, link in enumerate(self.structure.links):
            if not link.crossbar.trainable:
                continue
            target, own = self.places[link.target], None
            # v, then s / B, then v again.
            there = blocks[3 * batch * target.start : 3 * batch * target.stop].reshape(3 * batch, -1)
            left, right = words[number], there[batch : 2 * batch]
            if link.source == "bank":
                layer = self.structure.bank_layer[link.index]
                place, n = int(self.compiled.bank_start[layer]), self.compiled.sizes[layer]
                left = out[batch * place : batch * (place + n)].reshape(batch, n)
            elif link.source == "layer":
                source = self.places[link.index]
                here = blocks[3 * batch * source.start : 3 * batch * source.stop].reshape(3 * batch, -1)
                left, right, own = here[: 2 * batch], there[batch:], products[source]
            assert left is not None
            found[link.crossbar.name] = Factors(
                left=left,
                right=right,
                word=own,
                bit=products[target],
                mirrored=link.crossbar.word_neg is not None,
                minus=None,
                mask=None,
            )
        return LayeredGradient(found)


_NO_SUMS = np.empty(0)
