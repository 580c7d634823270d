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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import GROUND, Netlist, Nudge, Values
from circuitsim.netlist.models import diode_conductance, diode_current, softmax
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.kernels.nodes import solve_increments, solve_nodes
from circuitsim.solver.layers import Layers
from circuitsim.solver.mixing import Anderson
from circuitsim.solver.point import Drive, SolverSettings

__all__ = ["LayeredPlan", "LayeredResult"]

Phase = Literal["nudged", "corrected", "transposed"]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weights:
    """One set of values, in the working precision, with everything that is summed once."""

    values: Values
    dtype: Any
    signed: list[Array]
    """W = g_plus - g_minus (M, N) per link."""
    word_sum: list[Array]
    """sum over bit lines of g_plus + g_minus (M,) per link."""
    load: list[Array]
    """(n,) S that loads each node, per layer: leaks, crossbars, layer-to-layer conductances."""
    gain: list[Array]
    saturation: list[Array]
    offset: list[Array]
    back: list[Array]
    sense: list[Array]
    diodes: list[tuple[Array, Array, Array, Array, Array] | None]
    """(sign, ref, i_s, slope, gmin), each (n, D), per layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _BankPoint:
    """A bank around the free point v0, with what its increments need: t = tanh(x) at v0, a = f'(v0)."""

    gain: Array
    limit: Array | None
    """Saturation (n,) V, or None for linear banks."""
    x: Array | None
    t: Array | None
    slope: Array
    back: Array
    two_way: bool

    def change(self, d: Array) -> Array:
        """Return f(v0 + d) - f(v0) without cancellation: tanh(x + e) - tanh(x) in product form."""
        if self.limit is None or self.t is None:
            return self.gain * d
        return self.limit * self._moved(d)[0]

    def curvature(self, d: Array) -> tuple[Array, Array]:
        """Return f(v0 + d) - f(v0) - a d and its derivative."""
        if self.limit is None or self.t is None:
            return np.zeros_like(d), np.zeros_like(d)
        change, there = self._moved(d)
        return self.limit * change - self.slope * d, self.gain * (1 - there * there) - self.slope

    def _moved(self, d: Array) -> tuple[Array, Array]:
        """Return tanh(x + e) - tanh(x) and tanh(x + e), x being where v0 is."""
        assert self.t is not None
        assert self.x is not None
        assert self.limit is not None
        step = self.gain / self.limit * d
        e = np.tanh(step)
        lift = 1 + self.t * e
        if lift.min() > 1e-3:
            return e * (1 - self.t * self.t) / lift, (self.t + e) / lift
        # From deep saturation to the other side the product form is 0/0; there nothing cancels.
        across = lift < 1e-3
        lift = np.where(across, 1, lift)
        there = np.where(across, np.tanh(self.x + step), (self.t + e) / lift)
        change = np.where(across, there - self.t, e * (1 - self.t * self.t) / lift)
        return change.astype(d.dtype, copy=False), there.astype(d.dtype, copy=False)

    def forward(self, phase: Phase, d: Array) -> Array | None:
        """Return the change of the outputs that phase ``phase`` passes on, or None where they are held."""
        if phase == "nudged":
            return self.change(d)
        if phase == "corrected" and self.limit is not None:
            return self.curvature(d)[0] + (self.back * d if self.two_way else 0)
        return self.back * d if self.two_way else None


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
        self._weights: dict[Any, _Weights] = {}

    # Values --------------------------------------------------------------------------------------

    def weights(self, values: Values, precision: str) -> _Weights:
        """Return the working copies of one set of values; the last one is kept."""
        kept = self._weights.get(precision)
        if kept is not None and kept.values is values:
            return kept
        n, dtype = self.netlist, np.dtype(precision)
        load = [np.zeros(len(nodes)) for nodes in self.layers]
        r = n.resistor
        conductance = values.tables["resistor"]["conductance"]
        for nodes in (r.pos, r.neg):
            free = self.structure.is_free[nodes]
            for node, g in zip(nodes[free], conductance[free], strict=True):
                load[self.structure.layer_of[node]][self.structure.place[node]] += g
        signed, word_sum = [], []
        for link in self.links:
            halves = [g for _, g in n.device_conductances(link.crossbar, values)]
            g_plus, g_minus = halves[0], halves[1] if len(halves) == 2 else None
            total = g_plus if g_minus is None else g_plus + g_minus
            signed.append(np.asarray(g_plus if g_minus is None else g_plus - g_minus, dtype=dtype))
            words = total.sum(axis=1)
            word_sum.append(words.astype(dtype))
            if link.sense < 0:
                load[link.target] += total.sum(axis=0)
            if link.source == "layer":
                load[link.index] += words
        banks = [values.banks[bank.name] for bank in n.banks]
        weights = _Weights(
            values=values,
            dtype=dtype,
            signed=signed,
            word_sum=word_sum,
            load=[x.astype(dtype) for x in load],
            gain=[b["gain"].astype(dtype) for b in banks],
            saturation=[b["saturation"].astype(dtype) for b in banks],
            offset=[b["offset"].astype(dtype) for b in banks],
            back=[b["back_gain"].astype(dtype) for b in banks],
            sense=[values.senses[sense.name].astype(dtype) for sense in n.senses],
            diodes=[self._layer_diodes(layer, values) for layer in range(len(self.layers))],
        )
        self._weights[precision] = weights
        return weights

    def _layer_diodes(self, layer: int, values: Values) -> tuple[Array, Array, Array, Array, Array] | None:
        d, t = self.netlist.diode, values.tables["diode"]
        fixed = np.zeros(self.netlist.n_nodes)
        fixed[self.structure.known_node] = values.tables["vsource"]["voltage"]
        rows: list[list[tuple[float, float, float, float, float]]] = [[] for _ in self.layers[layer]]
        for near, far, sign in ((d.pos, d.neg, 1.0), (d.neg, d.pos, -1.0)):
            for k in np.flatnonzero(self.structure.is_free[near] & (self.structure.layer_of[near] == layer)):
                parameters = (
                    t[c][k] for c in ("saturation_current", "slope_voltage", "parallel_conductance")
                )
                rows[self.structure.place[near[k]]].append((sign, fixed[far[k]], *parameters))
        most = max(len(row) for row in rows)
        if most == 0:
            return None
        table = np.array([row + [(1.0, 0.0, 0.0, 1.0, 0.0)] * (most - len(row)) for row in rows])
        columns = [np.ascontiguousarray(table[:, :, k]) for k in range(5)]
        return columns[0], columns[1], columns[2], columns[3], columns[4]

    # Solving -------------------------------------------------------------------------------------

    def free(
        self, values: Values, drive: Drive, settings: SolverSettings, start: FloatArray | None
    ) -> LayeredResult:
        """Solve the free phase of B samples, from node voltages ``start`` (B, N) if given."""
        w = self.weights(values, settings.precision)
        known = self.known_voltages(values, drive.inputs).astype(w.dtype)
        constant = self.constant_currents(w, known)
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

    def _free_loads(self, w: _Weights) -> list[Array]:
        loads = list(w.load)
        for number, link in enumerate(self.links):
            if link.source == "bank":
                layer = self.structure.bank_layer[link.index]
                feedback = w.back[link.index] * w.gain[link.index] * w.word_sum[number]
                if np.any(feedback):
                    loads[layer] = loads[layer] + feedback
        return loads

    def incoming(self, w: _Weights, layer: int, state: list[Array]) -> Array:
        """Return the current (B, n) that other layers send into this one in the free phase."""
        total = np.zeros_like(state[layer])
        for number, link in enumerate(self.links):
            signed = w.signed[number]
            if link.source == "bank":
                source = self.structure.bank_layer[link.index]
                back = w.back[link.index]
                if link.target == layer:
                    current = self._output(w, link.index, state[source]) @ signed
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

    def settle(self, w: _Weights, layer: int, a: Array, current: Array, old: Array) -> Array:
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
        known = self.known_voltages(values, inputs).astype(w.dtype)
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
            for layer, current in enumerate(self._free_residual(w, known, v0)):
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

    def _output(self, w: _Weights, bank: int, v: Array) -> Array:
        linear = w.gain[bank] * (v + w.offset[bank])
        limit = w.saturation[bank]
        if np.isinf(limit).all():
            return linear
        if np.isfinite(limit).all():
            return limit * np.tanh(linear / limit)
        finite = np.where(np.isinf(limit), 1, limit).astype(w.dtype)
        return np.where(np.isinf(limit), linear, finite * np.tanh(linear / finite))

    def _bank_point(self, w: _Weights, bank: int, v0: Array) -> _BankPoint:
        limit = w.saturation[bank]
        back = w.back[bank]
        gain = w.gain[bank]
        two_way = bool(np.any(back))
        if np.isinf(limit).all():
            slope = np.broadcast_to(gain, v0.shape)
            return _BankPoint(gain=gain, limit=None, x=None, t=None, slope=slope, back=back, two_way=two_way)
        # A linear amplifier among saturating ones: so wide that no voltage here bends it.
        finite = np.where(np.isinf(limit), 1e30, limit).astype(w.dtype)
        x = gain * (v0 + w.offset[bank]) / finite
        t = np.tanh(x)
        slope = gain * (1 - t * t)
        return _BankPoint(gain=gain, limit=finite, x=x, t=t, slope=slope, back=back, two_way=two_way)

    def diode_slopes(self, w: _Weights, layer: int, v0: Array) -> Array | float:
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

    def known_voltages(self, values: Values, inputs: FloatArray) -> FloatArray:
        n = self.netlist
        known = np.zeros((len(inputs), n.n_nodes))
        known[:, self.structure.known_node] = values.tables["vsource"]["voltage"]
        known[:, self.structure.known_node[n.inputs.source]] = inputs[:, n.inputs.column] * n.inputs.gain
        return known

    def constant_currents(self, w: _Weights, known: Array) -> list[Array]:
        """Return the currents (B, n) into each layer that no free node changes: once per sample."""
        n = self.netlist
        total = [np.zeros((len(known), len(nodes)), dtype=w.dtype) for nodes in self.layers]
        for number, link in enumerate(self.links):
            if link.source != "known":
                continue
            c = link.crossbar
            plus = known[:, c.word_pos]
            if c.word_neg is None:
                current = plus @ w.signed[number]
            else:
                minus = known[:, c.word_neg]
                current = plus @ w.signed[number]
                rest = plus + minus
                if np.any(rest):
                    g_minus = self.netlist.device_conductances(c, w.values)[1][1]
                    current += rest @ np.asarray(g_minus, dtype=w.dtype)
            total[link.target] += current if link.sense < 0 else w.sense[link.sense] * current
        t = w.values.tables
        r, s = n.resistor, n.isource
        for near, far in ((r.pos, r.neg), (r.neg, r.pos)):
            use = np.flatnonzero(self.structure.is_free[near] & (far != GROUND))
            for k in use:
                node = near[k]
                current = t["resistor"]["conductance"][k] * known[:, far[k]]
                total[self.structure.layer_of[node]][:, self.structure.place[node]] += current.astype(w.dtype)
        for near, sign in ((s.pos, -1.0), (s.neg, 1.0)):
            for k in np.flatnonzero(self.structure.is_free[near]):
                node = near[k]
                total[self.structure.layer_of[node]][:, self.structure.place[node]] += w.dtype.type(
                    sign * t["isource"]["current"][k]
                )
        return total

    def _hold(self, w: _Weights, banks: list[_BankPoint], held: FloatArray, constant: list[Array]) -> None:
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

    def _free_residual(self, w: _Weights, known: Array, v0: list[Array]) -> list[Array]:
        """Return the current (B, n) that leaves each node at v0 in the free phase."""
        constant = self.constant_currents(w, known)
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

    def bank_points(self, w: _Weights, state: list[Array]) -> list[_BankPoint]:
        """Return every bank at the node voltages of the layers."""
        return [self._bank_point(w, k, state[layer]) for k, layer in enumerate(self.structure.bank_layer)]

    def full_voltage(self, w: _Weights, known: Array, state: list[Array]) -> FloatArray:
        """Return all node voltages (B, N) V of the free phase from those of the layers."""
        v = np.array(known, dtype=np.float64)
        for nodes, x in zip(self.layers, state, strict=True):
            v[:, nodes] = x
        for index, bank in enumerate(self.netlist.banks):
            out = self._output(w, index, state[self.structure.bank_layer[index]])
            v[:, bank.out_pos] = out
            if bank.out_neg is not None:
                v[:, bank.out_neg] = -out
        return v

    def driven_voltages(self, values: Values, inputs: FloatArray, voltage: FloatArray) -> FloatArray:
        """Return all node voltages (B, N) V that the layers' voltages in ``voltage`` imply."""
        w = self.weights(values, "float64")
        return self.full_voltage(
            w, self.known_voltages(values, inputs), [voltage[:, nodes] for nodes in self.layers]
        )

    def full_displacement(
        self, w: _Weights, phase: Phase, banks: list[_BankPoint], state: list[Array]
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
