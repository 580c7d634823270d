"""Small batches of plain networks: their phases set out as arrays for sweeps that are compiled as a whole.

Plain means unwired crossbars, no virtual grounds, at most one bank to a layer. Small means that the
products inside sweeps are worth less than the calls that they would take otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import Nudge
from circuitsim.netlist.tables import IntArray
from circuitsim.solver.banks import BankPoint, Phase
from circuitsim.solver.kernels.relaxing import (
    CORRECTED,
    FREE,
    NUDGED,
    TRANSPOSED,
    Bench,
    Nudging,
    Wiring,
    closed_by_few,
    relax_layers,
)
from circuitsim.solver.layers import Layers
from circuitsim.solver.point import SolverSettings
from circuitsim.solver.relaxation import Relaxed, tolerances
from circuitsim.solver.threads import share_batch, threads
from circuitsim.solver.weights import Fixed, Weights

__all__ = ["CompiledSweeps"]

Array = NDArray[Any]

_MOST_PRODUCTS = 4_000_000
"""Multiplications in the crossbars of a sweep, batch included, up to which compiled sweeps are faster."""
_MOST_OF_FEW = 100_000_000
"""The same where few nodes close the loops: these sweeps take Newton's steps, NumPy's do not."""
_SHARED, _WORTH = 32, 200_000
"""Samples, and matrix entries in all, from which on threads share a batch."""
_PHASES = {"free": FREE, "nudged": NUDGED, "corrected": CORRECTED, "transposed": TRANSPOSED}
_KINDS = {"quadratic": 1, "softmax": 2}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Output:
    """Where outputs are read: layer, places of their two sides."""

    layer: int
    pos: IntArray
    neg: IntArray


class CompiledSweeps:
    """The compiled form of a network of layers; `fits` says for which batches it is worth taking."""

    def __init__(self, structure: Layers) -> None:
        self.structure = structure
        layers = structure.layers
        self.start = np.concatenate([[0], np.cumsum([len(nodes) for nodes in layers])]).astype(np.int64)
        inner = [link for link in structure.links if link.source != "known"]
        self.plain = (
            not structure.netlist.senses
            and not any(link.wired for link in structure.links)
            and len(set(structure.bank_layer)) == len(structure.bank_layer)
        )
        self.sizes = [len(nodes) for nodes in layers]
        self.nowhere = [np.zeros((1, size)) for size in self.sizes]
        self.bank_of = {layer: bank for bank, layer in enumerate(structure.bank_layer)}
        self.bank_start = np.zeros(len(layers), dtype=np.int64)
        place = 0
        for layer in structure.bank_layer:
            self.bank_start[layer] = place
            place += self.sizes[layer]
        self.products = 0
        rows: list[tuple[int, ...]] = []
        for link in inner:
            m, n = link.crossbar.shape
            banked = link.source == "bank"
            source = structure.bank_layer[link.index] if banked else link.index
            turned = n < m
            rows.append((int(banked), source, link.target, self.products, *sorted((m, n)), int(turned)))
            self.products += m * n
        self.links = np.array(rows, dtype=np.int64).reshape(-1, 7)
        self.orders = {
            name: (np.array(sweep.order, dtype=np.int64), len(sweep.loops))
            for name, sweep in structure.sweeps.items()
        }
        self.output: _Output | None = None
        if structure.output_layer >= 0:
            neg = structure.y_neg
            self.output = _Output(
                layer=structure.output_layer,
                pos=structure.y_pos,
                neg=np.empty(0, dtype=np.int64) if neg is None else neg,
            )
        self._wiring: tuple[Weights, Wiring] | None = None
        self._fixed: tuple[Fixed, Wiring] | None = None
        self._bent = False
        """Whether any layer of these has diodes."""
        self._few = False
        """Whether few nodes close the loops of these."""

    def fits(self, w: Weights, batch: int) -> bool:
        """Whether a batch is small enough, and no layer has both a saturating bank and diodes."""
        products = batch * self.products
        if not self.plain or products > max(_MOST_PRODUCTS, _MOST_OF_FEW):
            return False
        if products > _MOST_PRODUCTS:
            self._of_fixed(w)
            if not self._few:
                return False
        return not any(
            w.fixed.diodes[layer] is not None or w.fixed.clamps[layer] is not None
            for bank, layer in enumerate(self.structure.bank_layer)
            if not w.fixed.linear[bank]
        )

    def wiring(self, w: Weights) -> Wiring:
        """Return one set of values as the kernel takes it; the last one is kept."""
        if self._wiring is not None and self._wiring[0] is w:
            return self._wiring[1]
        structure = self.structure
        weights = [
            (w.signed[number].T if turned else w.signed[number]).reshape(-1)
            for (number, _), turned in zip(
                ((k, link) for k, link in enumerate(structure.links) if link.source != "known"),
                self.links[:, 6],
                strict=True,
            )
        ]
        fixed = self._of_fixed(w)
        found = fixed._replace(weights=np.concatenate(weights) if weights else np.zeros(0, dtype=w.dtype))
        self._wiring = w, found
        return found

    def _of_fixed(self, w: Weights) -> Wiring:
        """Return the wiring without weights; the last one is kept."""
        if self._fixed is not None and self._fixed[0] is w.fixed:
            return self._fixed[1]
        layers = self.structure.layers
        nodes = np.zeros((len(layers), 3), dtype=np.int64)
        clamps: list[Array] = []
        diodes: list[Array] = []
        for layer in range(len(layers)):
            columns, junctions = w.fixed.clamps[layer], w.fixed.diodes[layer]
            if columns is not None:
                nodes[layer] = 1, 0, sum(part.size for part in clamps)
                clamps += columns
            elif junctions is not None:
                nodes[layer] = 2, len(junctions[0]), sum(part.size for part in diodes)
                diodes += [column.reshape(-1) for column in junctions]
        size = int(self.start[-1])
        bank = np.zeros(len(layers), dtype=np.int64)
        gain, offset, back = (np.zeros(size, dtype=w.dtype) for _ in range(3))
        limit = np.full(size, np.inf, dtype=w.dtype)
        for layer, index in self.bank_of.items():
            k = slice(self.start[layer], self.start[layer + 1])
            bank[layer] = 1 if w.fixed.linear[index] else 2
            gain[k], offset[k], back[k] = w.fixed.gain[index], w.fixed.offset[index], w.fixed.back[index]
            limit[k] = w.fixed.saturation[index]
        nothing, empty = np.zeros(0), np.zeros(0, dtype=w.dtype)
        found = Wiring(
            start=self.start,
            links=self.links,
            weights=empty,
            nodes=nodes,
            clamps=np.concatenate(clamps) if clamps else empty,
            diodes=np.concatenate(diodes) if diodes else nothing,
            bank=bank,
            gain=gain,
            offset=offset,
            limit=limit,
            back=back,
            bank_start=self.bank_start,
        )
        self._bent = bool(nodes[:, 0].any())
        self._few = bool(closed_by_few(found, *self.orders["free"])[0])
        self._fixed = w.fixed, found
        return found

    def relax(
        self,
        phase: Phase | str,
        w: Weights,
        settings: SolverSettings,
        *,
        loads: list[Array],
        constant: list[Array | None],
        state: list[Array] | None,
        v0: list[Array] | None = None,
        banks: list[BankPoint] | None = None,
        drawn: list[Array | None] | None = None,
        nudge: Nudge | None = None,
        y0: Array | None = None,
    ) -> Relaxed:
        """Solve a phase; arguments are the layers' as `circuitsim.solver.layered` has them."""
        batch = max(len(x) for x in (*loads, *(c for c in constant if c is not None), *(v0 or ())))
        wiring, single = self.wiring(w), w.dtype == np.float32
        if phase == "corrected" and banks and any(bank.passing is not bank.back for bank in banks):
            wiring = wiring._replace(back=self._passing(wiring, banks))
        order, loops = self.orders[phase]
        step, relative, rounding = tolerances(settings, w.dtype)
        if not single and loops:
            relative /= np.sqrt(sum(self.sizes[layer] for layer in order[len(order) - loops :]))
        limits = (step, relative, rounding, settings.absolute_tolerance)
        iterations, status = np.empty(batch, dtype=np.int64), np.empty(batch, dtype=np.int8)
        parts: dict[int, list[Array]] = {}

        def rows(k: slice) -> None:
            bench = self._bench(phase, w, k, loads, constant, state, v0, banks, drawn)
            relax_layers(
                _PHASES[phase],
                (tuple(wiring), tuple(bench), tuple(self._nudging(nudge, y0, k))),
                order,
                loops,
                limits,
                settings.max_iterations,
                1e-9 if single else 1e-13,
                iterations[k],
                status[k],
            )
            size = k.stop - k.start
            parts[k.start] = [
                bench.state[size * self.start[layer] : size * self.start[layer + 1]].reshape(size, n)
                for layer, n in enumerate(self.sizes)
            ]

        work = self.products // 4
        worth = batch >= _SHARED and batch * work > _WORTH
        share_batch(rows, batch, work=work, parts=threads() if worth else 1)
        pieces = [parts[first] for first in sorted(parts)]
        found = pieces[0]
        if len(pieces) > 1:
            found = [np.concatenate(part) for part in zip(*pieces, strict=True)]
        return Relaxed(state=found, iterations=iterations, status=status)

    def _passing(self, wiring: Wiring, banks: list[BankPoint]) -> Array:
        """Return what linear banks of a faulty correction pass on per volt, in place of their back gains."""
        passing = wiring.back.copy()
        for layer, index in self.bank_of.items():
            passing[self.start[layer] : self.start[layer + 1]] = banks[index].passing
        return passing

    def _bench(
        self,
        phase: str,
        w: Weights,
        k: slice,
        loads: list[Array],
        constant: list[Array | None],
        state: list[Array] | None,
        v0: list[Array] | None,
        banks: list[BankPoint] | None,
        drawn: list[Array | None] | None,
    ) -> Bench:
        """Set out some samples of a phase."""
        batch, dtype = k.stop - k.start, w.dtype
        nothing = np.empty(0, dtype=dtype)

        def flat(parts: list[Array]) -> Array:
            blocks = [
                np.broadcast_to(x, (batch, x.shape[1])).ravel() if len(x) == 1 else x[k].reshape(-1)
                for x in parts
            ]
            return np.concatenate(blocks, dtype=dtype, casting="same_kind")

        def of_banks(parts: list[Array]) -> Array:
            if len(parts) == 1 and len(parts[0]) > 1:
                return np.ascontiguousarray(parts[0][k], dtype=dtype).reshape(-1)
            return flat(parts)

        shared = all(len(load) == 1 for load in loads)
        steady = all(current is None for current in constant)
        tangent = returned = held = taken = nothing
        if banks and phase != "free":
            still = [np.zeros((1, len(bank.gain)), dtype=dtype) for bank in banks]
            if phase != "transposed":
                tangent = of_banks(
                    [z if bank.t is None else bank.t for bank, z in zip(banks, still, strict=True)]
                )
            if phase != "nudged":
                returned = held = of_banks([bank.returned for bank in banks])
            if phase == "corrected":
                if any(bank.held is not bank.returned for bank in banks):
                    held = of_banks([bank.held for bank in banks])
                assert drawn is not None
                taken = of_banks([z if d is None else d for d, z in zip(drawn, still, strict=True)])
        return Bench(
            a=np.concatenate(loads, axis=1, dtype=dtype, casting="same_kind")[0] if shared else flat(loads),
            constant=nothing
            if steady
            else flat([z if x is None else x for x, z in zip(constant, self.nowhere, strict=True)]),
            v0=flat(v0) if v0 is not None and self._bent else nothing,
            tangent=tangent,
            returned=returned,
            held=held,
            drawn=taken,
            state=np.zeros(batch * int(self.start[-1]), dtype=dtype) if state is None else flat(state),
        )

    def _nudging(self, nudge: Nudge | None, y0: Array | None, k: slice) -> Nudging:
        nobody = np.empty(0, dtype=np.int64)
        if nudge is None or y0 is None:
            none = np.empty((0, 0))
            return Nudging(0, -1, nobody, nobody, none, none, 0.0, 1.0)
        output = self.output
        assert output is not None
        amplitude = nudge.beta * nudge.conductance if nudge.kind == "quadratic" else nudge.amplitude
        return Nudging(
            _KINDS[nudge.kind],
            output.layer,
            output.pos,
            output.neg,
            np.ascontiguousarray(y0[k], dtype=np.float64),
            np.ascontiguousarray(nudge.target[k], dtype=np.float64),
            float(amplitude),
            float(nudge.scale),
        )
