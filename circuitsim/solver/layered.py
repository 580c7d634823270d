"""The layered method: nodes that couple only through crossbars, amplifier banks and virtual grounds.

State: one array (B, n) per layer of nodes. A sweep visits the layers; each gets one BLAS product per
crossbar and direction for the whole batch, then every node's scalar equation is solved to the end. One
sweep is exact where the phase is feedforward; otherwise sweeps repeat until nothing moves.

The nudged and corrected phases and the transposed system are solved for the displacement D = v - v0
from the free point, never as differences of voltages, so that a small beta costs no digits. They
differ only in what a bank passes on (f its output, a = f'(v0), B its back gain):

    phase        forward, to the bit lines       back, to the control node
    nudged       f(v0 + D) - f(v0)               B
    corrected    f(v0 + D) - f(v0) - a D + B D   a
    transposed   B D                             a
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import Netlist, Nudge, Values
from circuitsim.netlist.models import diode_conductance, diode_current, softmax
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.banks import BankPoint, Phase, bank_output, bank_point
from circuitsim.solver.kernels.nodes import solve_increments, solve_nodes
from circuitsim.solver.layers import Layers
from circuitsim.solver.mixing import Anderson
from circuitsim.solver.point import Drive, SolverSettings
from circuitsim.solver.weights import Weights, constant_currents, gather, known_voltages

__all__ = ["LayeredPlan", "LayeredResult"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayeredResult:
    """Node voltages (B, N), displacement (B, N) or None, sweeps and status (B,)."""

    node_voltage: FloatArray
    displacement: FloatArray | None
    iterations: IntArray
    status: NDArray[np.int8]


@dataclass(eq=False)
class _Sweeps:
    """Convergence of the samples of a batch over sweeps."""

    batch: int
    done: NDArray[np.bool_] = field(init=False)
    iterations: IntArray = field(init=False)
    status: NDArray[np.int8] = field(init=False)

    def __post_init__(self) -> None:
        self.done = np.zeros(self.batch, dtype=np.bool_)
        self.iterations = np.zeros(self.batch, dtype=np.int64)
        self.status = np.ones(self.batch, dtype=np.int8)

    def note(self, sweep: int, settled: NDArray[np.bool_], lost: NDArray[np.bool_]) -> bool:
        """Record who has settled or is lost after a sweep; True when nobody is left."""
        self.status[settled & ~self.done] = 0
        self.status[lost & ~self.done] = 3
        self.iterations[~self.done] = sweep
        self.done |= settled | lost
        return bool(self.done.all())


class LayeredPlan:
    """A netlist's layers, and the sweeps over them.

    Raises:
        NotLayered: with the element that does not fit.
    """

    method = "layered"

    def __init__(self, netlist: Netlist) -> None:
        self.netlist = netlist
        self.structure = Layers(netlist)
        self.layers = self.structure.layers
        self.links = self.structure.links
        self._weights: dict[Any, Weights] = {}

    def weights(self, values: Values, precision: str) -> Weights:
        """Return the working copies of one set of values; the last one is kept."""
        kept = self._weights.get(precision)
        if kept is None or kept.values is not values:
            kept = self._weights[precision] = gather(self.structure, values, precision)
        return kept

    def free(
        self, values: Values, drive: Drive, settings: SolverSettings, start: FloatArray | None
    ) -> LayeredResult:
        """Solve the free phase of B samples, from node voltages ``start`` (B, N) if given."""
        w = self.weights(values, settings.precision)
        known = known_voltages(self.structure, values, drive.inputs).astype(w.dtype)
        constant = constant_currents(self.structure, w, known)
        state = [
            np.zeros((len(known), len(nodes)), dtype=w.dtype)
            if start is None
            else np.ascontiguousarray(start[:, nodes], dtype=w.dtype)
            for nodes in self.layers
        ]
        conductance = [
            np.broadcast_to(load, x.shape) for load, x in zip(self._free_loads(w), state, strict=True)
        ]
        sweeps = _Sweeps(len(known))

        def update(layer: int) -> Array:
            current = constant[layer] + self.incoming(w, layer, state)
            return self.settle(w, layer, conductance[layer], current, state[layer])

        # Sweeps that run away overflow: the status says so, not NumPy.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._sweep(
                self.structure.order, self.structure.feedforward, update, state, conductance, sweeps, settings
            )
        return LayeredResult(
            node_voltage=self.full_voltage(w, known, state),
            displacement=None,
            iterations=sweeps.iterations,
            status=sweeps.status,
        )

    def _free_loads(self, w: Weights) -> list[Array]:
        loads = list(w.load)
        for number, link in enumerate(self.links):
            if link.source == "bank":
                layer = self.structure.bank_layer[link.index]
                feedback = w.back[link.index] * w.gain[link.index] * w.word_sum[number]
                if np.any(feedback):
                    loads[layer] = loads[layer] + feedback
        return loads

    def incoming(self, w: Weights, layer: int, state: list[Array]) -> Array:
        """Return the current (B, n) that other layers send into this one in the free phase."""
        total = np.zeros_like(state[layer])
        for number, link in enumerate(self.links):
            signed = w.signed[number]
            if link.source == "bank":
                source = self.structure.bank_layer[link.index]
                back = w.back[link.index]
                if link.target == layer:
                    current = bank_output(w, link.index, state[source]) @ signed
                    total += current if link.sense < 0 else w.sense[link.sense] * current
                if source == layer and np.any(back):
                    if link.sense < 0:
                        total += back * (state[link.target] @ signed.T)
                    total -= back * w.gain[link.index] * w.offset[link.index] * w.word_sum[number]
            elif link.source == "layer":
                if link.target == layer:
                    total += state[link.index] @ signed
                if link.index == layer:
                    total += state[link.target] @ signed.T
        return total

    def settle(self, w: Weights, layer: int, a: Array, current: Array, old: Array) -> Array:
        diodes = w.diodes[layer]
        if diodes is None:
            return current / a
        new = old.copy()
        solve_nodes(a, current, *diodes, new)
        return new

    def increments(
        self,
        values: Values,
        phase: Phase,
        free_voltage: FloatArray,
        settings: SolverSettings,
        *,
        inputs: FloatArray,
        nudge: Nudge | None = None,
        output_current: FloatArray | None = None,
        residual: bool = False,
        held_current: FloatArray | None = None,
        start: FloatArray | None = None,
    ) -> LayeredResult:
        """Solve for the displacement from the free point (B, N) that a nudge or a current causes.

        ``output_current`` (B, K) A leaves the outputs, whatever they do; a nudge follows them.
        ``residual`` is for points that are not the free point: it adds what is left of the free phase's
        equations there. ``held_current`` (B, M) A is by how much the anchor's branch currents differ
        from those that its node voltages imply.
        """
        w = self.weights(values, settings.precision)
        known = known_voltages(self.structure, values, inputs).astype(w.dtype)
        v0 = [np.ascontiguousarray(free_voltage[:, nodes], dtype=w.dtype) for nodes in self.layers]
        batch = len(known)
        banks = self.bank_points(w, v0)
        back: list[Array] = [bank.back if phase == "nudged" else bank.slope for bank in banks]
        state = [
            np.zeros((batch, len(nodes)), dtype=w.dtype)
            if start is None
            else np.ascontiguousarray(start[:, nodes], dtype=w.dtype)
            for nodes in self.layers
        ]
        conductance: list[Array] = [
            np.broadcast_to(load, x.shape) for load, x in zip(w.load, state, strict=True)
        ]
        for number, link in enumerate(self.links):
            # What the bank passes forward linearly: B D or a D, read back through its own back gain.
            if link.source == "bank" and np.any(w.back[link.index]):
                layer = self.structure.bank_layer[link.index]
                loop = w.back[link.index] * banks[link.index].slope * w.word_sum[number]
                conductance[layer] = conductance[layer] + loop
        constant = [np.zeros_like(x) for x in state]
        if residual:
            for layer, current in enumerate(self.free_residual(w, known, v0)):
                constant[layer] -= current
        if held_current is not None:
            self._hold(w, banks, held_current, constant)
        y0 = self.read(v0[self.structure.output_layer]) if self.structure.output_layer >= 0 else None
        if output_current is not None:
            constant[self.structure.output_layer] -= self.spread(
                output_current.astype(w.dtype), v0[self.structure.output_layer]
            )
        small_signal = phase == "transposed"
        linear_diodes = [
            self.diode_slopes(w, layer, v0[layer]) if small_signal else None for layer in range(len(v0))
        ]
        sweeps = _Sweeps(batch)

        def update(layer: int) -> Array:
            a: Array = conductance[layer]
            current = constant[layer].copy()
            for number, link in enumerate(self.links):
                signed = w.signed[number]
                if link.source == "layer":
                    if link.target == layer:
                        current += state[link.index] @ signed
                    if link.index == layer:
                        current += state[link.target] @ signed.T
                    continue
                if link.source != "bank":
                    continue
                source = self.structure.bank_layer[link.index]
                if link.target == layer and not (link.sense >= 0 and phase != "nudged"):
                    passed = banks[link.index].forward(phase, state[source])
                    if passed is not None:
                        sent = passed @ signed
                        current += sent if link.sense < 0 else w.sense[link.sense] * sent
                if source == layer:
                    gain = back[link.index]
                    if link.sense < 0:
                        bit: Array | None = state[link.target]
                    else:
                        bit = w.sense[link.sense] * state[link.target] if phase != "nudged" else None
                    if bit is not None and (phase != "nudged" or np.any(gain)):
                        current += gain * (bit @ signed.T)
                    if phase == "corrected" and banks[link.index].limit is not None:
                        # Second-order curvature of the held bank: linearised where it stands.
                        bend, tilt = banks[link.index].curvature(state[source])
                        load = gain * w.word_sum[number]
                        h = np.maximum(load * tilt, -0.5 * a)
                        current += h * state[layer] - load * bend
                        a = a + h
            if layer == self.structure.output_layer and nudge is not None and y0 is not None:
                pull, stiffness = self._nudge_current(nudge, y0, state[layer])
                current += stiffness * state[layer] - pull
                a = a + stiffness
            diodes = w.diodes[layer]
            if diodes is None:
                return current / a
            if small_signal:
                return current / (a + linear_diodes[layer])
            new = state[layer].copy()
            solve_increments(a, current, v0[layer], *diodes, new)
            return new

        once = self.structure.feedforward_back and phase == "transposed"
        order = self.structure.order if phase == "nudged" else self.structure.order_back
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._sweep(order, once, update, state, conductance, sweeps, settings)
        moved = self.full_displacement(w, phase, banks, state)
        implied = self.full_voltage(w, known, v0)
        node_voltage = implied + moved
        if residual:
            # The point may be off, or of other inputs: driven nodes then move from where it has them.
            moved += implied - free_voltage
        return LayeredResult(
            node_voltage=node_voltage,
            displacement=moved,
            iterations=sweeps.iterations,
            status=sweeps.status,
        )

    def _sweep(
        self,
        order: list[int],
        once: bool,
        update: Any,
        state: list[Array],
        conductance: list[Array],
        sweeps: _Sweeps,
        settings: SolverSettings,
    ) -> None:
        single = state[0].dtype == np.float32
        step_tolerance = 0.1 * settings.voltage_tolerance
        relative = max(settings.relative_tolerance, 2e-6 if single else 0.0)
        mixer = Anderson()
        for sweep in range(1, settings.max_iterations + 1):
            batch = len(state[0])
            moved, largest = np.zeros(batch), np.zeros(batch)
            flow, scale = np.zeros(batch), np.zeros(batch)
            before = [x.copy() for x in state] if not once else state
            for layer in order:
                new = update(layer)
                if not once:
                    delta = np.abs(new - state[layer])
                    a = conductance[layer]
                    moved = np.maximum(moved, delta.max(axis=1))
                    flow = np.maximum(flow, (a * delta).max(axis=1))
                    size = np.abs(new)
                    largest = np.maximum(largest, size.max(axis=1))
                    scale = np.maximum(scale, (a * size).max(axis=1))
                state[layer] = new
            if once:
                finite = np.ones(batch, dtype=np.bool_)
                for x in state:
                    finite &= np.isfinite(x).all(axis=1)
                sweeps.note(1, finite, ~finite)
                return
            lost = ~np.isfinite(moved) | (largest > 1e9)
            steady = moved <= np.maximum(step_tolerance, 2e-6 * largest if single else 1e-15 * largest)
            settled = steady & (flow <= relative * scale + settings.absolute_tolerance)
            if sweeps.note(sweep, settled, lost):
                return
            mixer.mix(before, state, sweeps.done)

    def diode_slopes(self, w: Weights, layer: int, v0: Array) -> Array | float:
        diodes = w.diodes[layer]
        if diodes is None:
            return 0.0
        sign, ref, i_s, slope, gmin = diodes
        drop = sign * (v0[:, :, None] - ref)
        return np.where(i_s > 0, diode_conductance(drop, i_s, slope, gmin), 0.0).sum(axis=2).astype(w.dtype)

    def _nudge_current(self, nudge: Nudge, y0: Array, d: Array) -> tuple[Array, Array]:
        """Return the nudge's current (B, n) that leaves each node, and its own derivative there."""
        dy = self.read(d)
        y = y0 + dy
        if nudge.kind == "quadratic":
            g = nudge.beta * nudge.conductance
            stiffness = np.full_like(y, g)
            current = g * (y - nudge.target)
        else:
            p = softmax(y, nudge.scale)
            current = nudge.amplitude * (p - nudge.target)
            stiffness = nudge.amplitude / nudge.scale * p * (1 - p)
        out = np.zeros_like(d)
        out[:, self.structure.y_pos] = stiffness
        if self.structure.y_neg is not None:
            out[:, self.structure.y_neg] = stiffness
        return self.spread(current.astype(d.dtype), d), out

    def read(self, layer_voltage: Array) -> Array:
        y = layer_voltage[:, self.structure.y_pos]
        return y if self.structure.y_neg is None else y - layer_voltage[:, self.structure.y_neg]

    def spread(self, output_current: Array, like: Array) -> Array:
        total = np.zeros_like(like)
        total[:, self.structure.y_pos] += output_current
        if self.structure.y_neg is not None:
            total[:, self.structure.y_neg] -= output_current
        return total

    def _hold(self, w: Weights, banks: list[BankPoint], held: FloatArray, constant: list[Array]) -> None:
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
            draw = (banks[index].slope - w.back[index]) * extra.astype(w.dtype)
            constant[self.structure.bank_layer[index]] -= draw
        for index, sense in enumerate(n.senses):
            extra = held[:, start : start + len(sense.bit)]
            start += len(sense.bit)
            constant[self.structure.sense_layer[index]] += w.sense[index] * extra.astype(w.dtype)

    def free_residual(self, w: Weights, known: Array, v0: list[Array]) -> list[Array]:
        """Return the current (B, n) that leaves each node at v0 in the free phase."""
        constant = constant_currents(self.structure, w, known)
        residual = []
        for layer, load in enumerate(self._free_loads(w)):
            current = load * v0[layer] - constant[layer] - self.incoming(w, layer, v0)
            diodes = w.diodes[layer]
            if diodes is not None:
                sign, ref, i_s, slope, gmin = diodes
                drop = sign * (v0[layer][:, :, None] - ref)
                current += np.where(i_s > 0, sign * diode_current(drop, i_s, slope, gmin), 0.0).sum(axis=2)
            residual.append(current)
        return residual

    def bank_points(self, w: Weights, state: list[Array]) -> list[BankPoint]:
        """Return every bank at the node voltages of the layers."""
        return [bank_point(w, k, state[layer]) for k, layer in enumerate(self.structure.bank_layer)]

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

    def driven_voltages(self, values: Values, inputs: FloatArray, voltage: FloatArray) -> FloatArray:
        """Return all node voltages (B, N) V that the layers' voltages in ``voltage`` imply."""
        w = self.weights(values, "float64")
        return self.full_voltage(
            w, known_voltages(self.structure, values, inputs), [voltage[:, nodes] for nodes in self.layers]
        )

    def full_displacement(
        self, w: Weights, phase: Phase, banks: list[BankPoint], state: list[Array]
    ) -> FloatArray:
        """Return the displacement of all nodes (B, N) V from that of the layers."""
        d = np.zeros((len(state[0]), self.netlist.n_nodes))
        for nodes, x in zip(self.layers, state, strict=True):
            d[:, nodes] = x
        for index, bank in enumerate(self.netlist.banks):
            layer = self.structure.bank_layer[index]
            passed = banks[index].forward(phase, state[layer])
            if passed is not None:
                d[:, bank.out_pos] = passed
                if bank.out_neg is not None:
                    d[:, bank.out_neg] = -passed
        if phase != "nudged":
            for index, sense in enumerate(self.netlist.senses):
                d[:, sense.bit] = w.sense[index] * state[self.structure.sense_layer[index]]
        return d
