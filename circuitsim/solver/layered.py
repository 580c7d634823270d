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

from circuitsim.netlist import GROUND, Crossbar, Netlist, Nudge, Values
from circuitsim.netlist.models import diode_conductance, diode_current, softmax
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.kernels.nodes import solve_increments, solve_nodes
from circuitsim.solver.point import Drive, SolverSettings

__all__ = ["LayeredPlan", "NotLayered"]

Phase = Literal["nudged", "corrected", "transposed"]
Array = NDArray[Any]


class NotLayered(Exception):
    """Why a netlist is not a network of layers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Link:
    """One crossbar between layers: its word lines are known, a bank's outputs, or a layer itself."""

    crossbar: Crossbar
    source: Literal["known", "bank", "layer"]
    index: int
    """Bank or layer number of the word lines; -1 where they are known."""
    target: int
    sense: int
    """Number of the virtual ground that takes the bit lines; -1 where they are the nodes themselves."""


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
    """The layers, banks and links of a netlist.

    Raises:
        NotLayered: with the element that does not fit.
    """

    method = "layered"

    def __init__(self, netlist: Netlist) -> None:
        self.netlist = netlist
        self._weights: dict[Any, _Weights] = {}
        self._classify_nodes()
        self._find_layers()
        self._find_links()
        self._sort()

    # Structure -----------------------------------------------------------------------------------

    def _classify_nodes(self) -> None:
        n = self.netlist
        for table in (n.vccs, n.vcvs, n.cccs, n.ccvs, n.buffer):
            if len(table):
                raise NotLayered(f"{table.kind} {table.name[0]} is outside a block")
        if n.loads:
            raise NotLayered(f"load {n.loads[0].name} couples nodes of a layer")
        known = np.zeros(n.n_nodes, dtype=np.bool_)
        known[GROUND] = True
        self._known_sign = np.ones(len(n.vsource))
        self._known_node = np.zeros(len(n.vsource), dtype=np.int64)
        for row in range(len(n.vsource)):
            pos, neg = int(n.vsource.pos[row]), int(n.vsource.neg[row])
            if neg != GROUND or known[pos]:
                raise NotLayered(f"voltage source {n.vsource.name[row]} is not from a node of its own to ground")
            known[pos] = True
            self._known_node[row] = pos
        self._known = known
        self._driven_by_input = np.zeros(n.n_nodes, dtype=np.bool_)
        self._driven_by_input[self._known_node[n.inputs.source]] = True
        bank_of = np.full(n.n_nodes, -1)
        for index, bank in enumerate(n.banks):
            for outputs in (bank.out_pos, bank.out_neg):
                if outputs is not None:
                    if known[outputs].any() or (bank_of[outputs] >= 0).any() or len(set(outputs)) < len(outputs):
                        raise NotLayered(f"an output of bank {bank.name} is driven twice")
                    bank_of[outputs] = index
        sense_of = np.full(n.n_nodes, -1)
        for index, sense in enumerate(n.senses):
            if known[sense.bit].any() or (bank_of[sense.bit] >= 0).any():
                raise NotLayered(f"a virtual ground of {sense.name} is driven twice")
            sense_of[sense.bit] = index
        self._bank_of, self._sense_of = bank_of, sense_of
        self._state = ~known & (bank_of < 0) & (sense_of < 0)
        for table in (n.resistor, n.diode, n.isource):
            if not len(table):
                continue
            free = ~known[table.pos] & ~known[table.neg]
            odd = free | (~known[table.pos] & ~self._state[table.pos])
            odd |= ~known[table.neg] & ~self._state[table.neg]
            if odd.any():
                row = int(np.flatnonzero(odd)[0])
                raise NotLayered(f"{table.kind} {table.name[row]} joins two nodes that are not known")
        d = n.diode
        if self._driven_by_input[d.pos].any() or self._driven_by_input[d.neg].any():
            raise NotLayered("a diode clamps to an input")

    def _find_layers(self) -> None:
        n = self.netlist
        layer_of = np.full(n.n_nodes, -1)
        layers: list[IntArray] = []
        candidates = [bank.control for bank in n.banks] + [sense.output for sense in n.senses]
        for crossbar in n.crossbars:
            candidates += [a for a in (crossbar.word_pos, crossbar.word_neg, crossbar.bit) if a is not None]
        for nodes in candidates:
            if len(nodes) == 0 or not self._state[nodes].any():
                continue
            if not self._state[nodes].all():
                raise NotLayered("a block mixes free and driven nodes")
            first = layer_of[nodes[0]]
            if first >= 0 and np.array_equal(layers[first], nodes):
                continue
            if (layer_of[nodes] >= 0).any() or len(set(nodes.tolist())) < len(nodes):
                raise NotLayered(f"two blocks share some nodes of {n.node_names[nodes[0]]} but not all")
            layer_of[nodes] = len(layers)
            layers.append(nodes)
        rest = np.flatnonzero(self._state & (layer_of < 0))
        if len(rest):
            layer_of[rest] = len(layers)
            layers.append(rest)
        if not layers:
            raise NotLayered("no node is free")
        self.layers = layers
        self._layer_of = layer_of
        self._place = np.zeros(n.n_nodes, dtype=np.int64)
        for nodes in layers:
            self._place[nodes] = np.arange(len(nodes))
        self._bank_layer = [int(layer_of[bank.control[0]]) for bank in n.banks]
        self._sense_layer = [int(layer_of[sense.output[0]]) for sense in n.senses]
        ports = n.outputs
        self._output_layer = -1
        if len(ports.pos):
            owners = {int(layer_of[node]) for node in ports.pos} | {
                int(layer_of[node]) for node in ports.neg if node != GROUND
            }
            if len(owners) != 1 or -1 in owners or (np.any(ports.neg == GROUND) and np.any(ports.neg != GROUND)):
                raise NotLayered("the outputs are not nodes of one layer")
            self._output_layer = owners.pop()
            self._y_pos = self._place[ports.pos]
            self._y_neg = self._place[ports.neg] if np.all(ports.neg != GROUND) else None

    def _find_links(self) -> None:
        n = self.netlist
        self.links: list[_Link] = []
        for crossbar in n.crossbars:
            words, minus, bit = crossbar.word_pos, crossbar.word_neg, crossbar.bit
            sense = int(self._sense_of[bit[0]])
            if sense >= 0:
                if not np.array_equal(n.senses[sense].bit, bit):
                    raise NotLayered(f"crossbar {crossbar.name} shares a virtual ground only in part")
                target = self._sense_layer[sense]
            else:
                target = int(self._layer_of[bit[0]])
            if target < 0:
                raise NotLayered(f"crossbar {crossbar.name} reads driven nodes")
            source: Literal["known", "bank", "layer"]
            if self._known[words].all() and (minus is None or self._known[minus].all()):
                source, index = "known", -1
            elif self._bank_of[words[0]] >= 0:
                source, index = "bank", int(self._bank_of[words[0]])
                bank = n.banks[index]
                fits = np.array_equal(bank.out_pos, words)
                fits &= minus is None or (bank.out_neg is not None and np.array_equal(bank.out_neg, minus))
                if not fits:
                    raise NotLayered(f"crossbar {crossbar.name} takes only part of bank {bank.name}")
            elif self._layer_of[words[0]] >= 0 and minus is None and sense < 0:
                source, index = "layer", int(self._layer_of[words[0]])
            else:
                raise NotLayered(f"crossbar {crossbar.name} has word lines of two kinds")
            self.links.append(_Link(crossbar=crossbar, source=source, index=index, target=target, sense=sense))
        for index, bank in enumerate(n.banks):
            if not bank.one_way and np.isfinite(bank.saturation).any():
                raise NotLayered(f"bank {bank.name} saturates and feeds back")
            if any(link.source == "layer" and self._bank_layer[index] < 0 for link in self.links):
                raise NotLayered(f"bank {bank.name} is controlled by a driven node")

    def _edges(self, *, swapped: bool) -> set[tuple[int, int]]:
        """Return (from, to) between layers: in the free phase, or in the corrected and transposed ones."""
        edges = set()
        for link in self.links:
            if link.source == "layer":
                edges |= {(link.index, link.target), (link.target, link.index)}
            elif link.source == "bank":
                a, b = self._bank_layer[link.index], link.target
                two_way = not self.netlist.banks[link.index].one_way
                if swapped or two_way:
                    edges.add((b, a))
                if not swapped or two_way:
                    edges.add((a, b))
        return edges

    def _sort(self) -> None:
        count = len(self.layers)
        self.order, self.feedforward = _topological(count, self._edges(swapped=False))
        self.order_back, self.feedforward_back = _topological(count, self._edges(swapped=True))

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
            free = self._state[nodes]
            for node, g in zip(nodes[free], conductance[free], strict=True):
                load[self._layer_of[node]][self._place[node]] += g
        signed, word_sum = [], []
        for link in self.links:
            g_plus, g_minus = values.crossbars[link.crossbar.name]
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
        fixed[self._known_node] = values.tables["vsource"]["voltage"]
        rows: list[list[tuple[float, float, float, float, float]]] = [[] for _ in self.layers[layer]]
        for near, far, sign in ((d.pos, d.neg, 1.0), (d.neg, d.pos, -1.0)):
            for k in np.flatnonzero(self._state[near] & (self._layer_of[near] == layer)):
                parameters = (t[c][k] for c in ("saturation_current", "slope_voltage", "parallel_conductance"))
                rows[self._place[near[k]]].append((sign, fixed[far[k]], *parameters))
        most = max(len(row) for row in rows)
        if most == 0:
            return None
        table = np.array([row + [(1.0, 0.0, 0.0, 1.0, 0.0)] * (most - len(row)) for row in rows])
        sign, ref, i_s, slope, gmin = (np.ascontiguousarray(table[:, :, k]) for k in range(5))
        return sign, ref, i_s, slope, gmin

    # Solving -------------------------------------------------------------------------------------

    def free(
        self, values: Values, drive: Drive, settings: SolverSettings, start: FloatArray | None
    ) -> LayeredResult:
        """Solve the free phase of B samples, from node voltages ``start`` (B, N) if given."""
        w = self.weights(values, settings.precision)
        known = self._known_voltages(values, drive.inputs).astype(w.dtype)
        constant = self._constant_currents(w, known)
        state = [
            np.zeros((len(known), len(nodes)), dtype=w.dtype)
            if start is None
            else np.ascontiguousarray(start[:, nodes], dtype=w.dtype)
            for nodes in self.layers
        ]
        conductance = [np.broadcast_to(load, x.shape) for load, x in zip(self._free_loads(w), state, strict=True)]
        sweeps = _Sweeps(len(known))

        def update(layer: int) -> Array:
            current = constant[layer] + self._incoming(w, layer, state)
            return self._solve_layer(w, layer, conductance[layer], current, state[layer])

        self._sweep(self.order, self.feedforward, update, state, conductance, sweeps, settings)
        return self._free_result(w, known, state, sweeps)

    def _free_loads(self, w: _Weights) -> list[Array]:
        loads = list(w.load)
        for number, link in enumerate(self.links):
            if link.source == "bank":
                layer = self._bank_layer[link.index]
                feedback = w.back[link.index] * w.gain[link.index] * w.word_sum[number]
                if np.any(feedback):
                    loads[layer] = loads[layer] + feedback
        return loads

    def _incoming(self, w: _Weights, layer: int, state: list[Array]) -> Array:
        """Return the current (B, n) that other layers send into this one in the free phase."""
        total = np.zeros_like(state[layer])
        for number, link in enumerate(self.links):
            signed = w.signed[number]
            if link.source == "bank":
                source = self._bank_layer[link.index]
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

    def _solve_layer(self, w: _Weights, layer: int, a: Array, current: Array, old: Array) -> Array:
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
        start: FloatArray | None = None,
    ) -> LayeredResult:
        """Solve for the displacement from the free point (B, N) that a nudge or a current causes.

        ``output_current`` (B, K) A leaves the outputs, whatever they do; a nudge follows them.
        ``residual`` adds what is left of the free phase's equations at ``free_voltage``.
        """
        w = self.weights(values, settings.precision)
        known = self._known_voltages(values, inputs).astype(w.dtype)
        v0 = [np.ascontiguousarray(free_voltage[:, nodes], dtype=w.dtype) for nodes in self.layers]
        batch = len(known)
        slopes = [self._slope(w, bank, v0[self._bank_layer[bank]]) for bank in range(len(self.netlist.banks))]
        back: list[Array] = list(slopes) if phase != "nudged" else [np.asarray(b) for b in w.back]
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
                layer = self._bank_layer[link.index]
                loop = w.back[link.index] * slopes[link.index] * w.word_sum[number]
                conductance[layer] = conductance[layer] + loop
        constant = [np.zeros_like(x) for x in state]
        if residual:
            for layer, current in enumerate(self._free_residual(w, known, v0)):
                constant[layer] -= current
        y0 = self._read(v0[self._output_layer]) if self._output_layer >= 0 else None
        if output_current is not None:
            constant[self._output_layer] -= self._spread(output_current.astype(w.dtype), v0[self._output_layer])
        small_signal = phase == "transposed"
        linear_diodes = [self._diode_slopes(w, layer, v0[layer]) if small_signal else None for layer in range(len(v0))]
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
                source = self._bank_layer[link.index]
                if link.target == layer and not (link.sense >= 0 and phase != "nudged"):
                    passed = self._forward(w, phase, link.index, v0[source], state[source], slopes[link.index])
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
                    if phase == "corrected" and np.isfinite(w.saturation[link.index]).any():
                        # Second-order curvature of the held bank: linearised where it stands.
                        bend, tilt = self._curvature(w, link.index, v0[source], state[source], slopes[link.index])
                        load = gain * w.word_sum[number]
                        h = np.maximum(load * tilt, -0.5 * a)
                        current += h * state[layer] - load * bend
                        a = a + h
            if layer == self._output_layer and nudge is not None and y0 is not None:
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

        once = self.feedforward_back and phase == "transposed"
        order = self.order if phase == "nudged" else self.order_back
        self._sweep(order, once, update, state, conductance, sweeps, settings)
        return self._moved_result(w, phase, free_voltage, v0, slopes, state, sweeps)

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
        mixer = _Anderson()
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

    def _forward(self, w: _Weights, phase: Phase, bank: int, v0: Array, d: Array, slope: Array) -> Array | None:
        """Return the change of a bank's output (B, n), or None where it is held."""
        back = w.back[bank]
        two_way = bool(np.any(back))
        if phase == "transposed":
            return back * d if two_way else None
        if phase == "corrected":
            if not np.isfinite(w.saturation[bank]).any():
                return back * d if two_way else None
            return self._change(w, bank, v0, d) - slope * d
        return self._change(w, bank, v0, d)

    def _output(self, w: _Weights, bank: int, v: Array) -> Array:
        linear = w.gain[bank] * (v + w.offset[bank])
        limit = w.saturation[bank]
        if np.isinf(limit).all():
            return linear
        finite = np.where(np.isinf(limit), 1, limit).astype(w.dtype)
        return np.where(np.isinf(limit), linear, finite * np.tanh(linear / finite))

    def _slope(self, w: _Weights, bank: int, v: Array) -> Array:
        limit = w.saturation[bank]
        if np.isinf(limit).all():
            return np.broadcast_to(w.gain[bank], v.shape)
        finite = np.where(np.isinf(limit), 1, limit).astype(w.dtype)
        t = np.tanh(w.gain[bank] * (v + w.offset[bank]) / finite)
        return w.gain[bank] * np.where(np.isinf(limit), 1, 1 - t * t).astype(w.dtype)

    def _change(self, w: _Weights, bank: int, v0: Array, d: Array) -> Array:
        """Return f(v0 + d) - f(v0) without cancellation: tanh(x + e) - tanh(x) in product form."""
        linear = w.gain[bank] * d
        limit = w.saturation[bank]
        if np.isinf(limit).all():
            return linear
        finite = np.where(np.isinf(limit), 1, limit).astype(w.dtype)
        t = np.tanh(w.gain[bank] * (v0 + w.offset[bank]) / finite)
        e = np.tanh(linear / finite)
        return np.where(np.isinf(limit), linear, finite * e * (1 - t * t) / (1 + t * e)).astype(w.dtype)

    def _curvature(self, w: _Weights, bank: int, v0: Array, d: Array, slope: Array) -> tuple[Array, Array]:
        """Return f(v0 + d) - f(v0) - a d and its derivative."""
        return self._change(w, bank, v0, d) - slope * d, self._slope(w, bank, v0 + d) - slope

    def _diode_slopes(self, w: _Weights, layer: int, v0: Array) -> Array | float:
        diodes = w.diodes[layer]
        if diodes is None:
            return 0.0
        sign, ref, i_s, slope, gmin = diodes
        drop = sign * (v0[:, :, None] - ref)
        return np.where(i_s > 0, diode_conductance(drop, i_s, slope, gmin), 0.0).sum(axis=2).astype(w.dtype)

    def _nudge_current(self, nudge: Nudge, y0: Array, d: Array) -> tuple[Array, Array]:
        """Return the nudge's current (B, n) that leaves each node, and its own derivative there."""
        dy = self._read(d)
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
        out[:, self._y_pos] = stiffness
        if self._y_neg is not None:
            out[:, self._y_neg] = stiffness
        return self._spread(current.astype(d.dtype), d), out

    def _read(self, layer_voltage: Array) -> Array:
        y = layer_voltage[:, self._y_pos]
        return y if self._y_neg is None else y - layer_voltage[:, self._y_neg]

    def _spread(self, output_current: Array, like: Array) -> Array:
        total = np.zeros_like(like)
        total[:, self._y_pos] += output_current
        if self._y_neg is not None:
            total[:, self._y_neg] -= output_current
        return total

    def _known_voltages(self, values: Values, inputs: FloatArray) -> FloatArray:
        n = self.netlist
        known = np.zeros((len(inputs), n.n_nodes))
        known[:, self._known_node] = values.tables["vsource"]["voltage"]
        known[:, self._known_node[n.inputs.source]] = inputs[:, n.inputs.column] * n.inputs.gain
        return known

    def _constant_currents(self, w: _Weights, known: Array) -> list[Array]:
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
                    g_minus = w.values.crossbars[c.name][1]
                    current += rest @ np.asarray(g_minus, dtype=w.dtype)
            total[link.target] += current if link.sense < 0 else w.sense[link.sense] * current
        t = w.values.tables
        r, s = n.resistor, n.isource
        for near, far in ((r.pos, r.neg), (r.neg, r.pos)):
            use = np.flatnonzero(self._state[near] & (far != GROUND))
            for k in use:
                node = near[k]
                current = t["resistor"]["conductance"][k] * known[:, far[k]]
                total[self._layer_of[node]][:, self._place[node]] += current.astype(w.dtype)
        for near, sign in ((s.pos, -1.0), (s.neg, 1.0)):
            for k in np.flatnonzero(self._state[near]):
                node = near[k]
                total[self._layer_of[node]][:, self._place[node]] += w.dtype.type(sign * t["isource"]["current"][k])
        return total

    def _free_residual(self, w: _Weights, known: Array, v0: list[Array]) -> list[Array]:
        """Return the current (B, n) that leaves each node at v0 in the free phase."""
        constant = self._constant_currents(w, known)
        residual = []
        for layer, load in enumerate(self._free_loads(w)):
            current = load * v0[layer] - constant[layer] - self._incoming(w, layer, v0)
            diodes = w.diodes[layer]
            if diodes is not None:
                sign, ref, i_s, slope, gmin = diodes
                drop = sign * (v0[layer][:, :, None] - ref)
                current += np.where(i_s > 0, sign * diode_current(drop, i_s, slope, gmin), 0.0).sum(axis=2)
            residual.append(current)
        return residual

    def _free_result(self, w: _Weights, known: Array, state: list[Array], sweeps: _Sweeps) -> LayeredResult:
        v = np.array(known, dtype=np.float64)
        for nodes, x in zip(self.layers, state, strict=True):
            v[:, nodes] = x
        for index, bank in enumerate(self.netlist.banks):
            out = self._output(w, index, state[self._bank_layer[index]])
            v[:, bank.out_pos] = out
            if bank.out_neg is not None:
                v[:, bank.out_neg] = -out
        return LayeredResult(
            node_voltage=v, displacement=None, iterations=sweeps.iterations, status=sweeps.status
        )

    def _moved_result(
        self,
        w: _Weights,
        phase: Phase,
        free_voltage: FloatArray,
        v0: list[Array],
        slopes: list[Array],
        state: list[Array],
        sweeps: _Sweeps,
    ) -> LayeredResult:
        d = np.zeros(free_voltage.shape)
        for nodes, x in zip(self.layers, state, strict=True):
            d[:, nodes] = x
        for index, bank in enumerate(self.netlist.banks):
            layer = self._bank_layer[index]
            passed = self._forward(w, phase, index, v0[layer], state[layer], slopes[index])
            if passed is not None:
                d[:, bank.out_pos] = passed
                if bank.out_neg is not None:
                    d[:, bank.out_neg] = -passed
        if phase != "nudged":
            for index, sense in enumerate(self.netlist.senses):
                d[:, sense.bit] = w.sense[index] * state[self._sense_layer[index]]
        return LayeredResult(
            node_voltage=free_voltage + d, displacement=d, iterations=sweeps.iterations, status=sweeps.status
        )


class _Anderson:
    """Anderson acceleration of the sweeps, each sample with coefficients of its own."""

    depth = 5
    first = 4
    """Plain sweeps before mixing: fast contractions never pay for it."""

    def __init__(self) -> None:
        self._x: list[Array] = []
        self._f: list[Array] = []
        self._count = 0

    def mix(self, before: list[Array], state: list[Array], done: NDArray[np.bool_]) -> None:
        """Replace the sweep's result in ``state`` by the mixed one, for samples that are not done."""
        self._count += 1
        if self._count < self.first:
            return
        x = np.concatenate(before, axis=1).astype(np.float64)
        g = np.concatenate(state, axis=1).astype(np.float64)
        f = g - x
        worse = np.zeros(len(x), dtype=np.bool_)
        if self._f:
            worse = np.linalg.norm(f, axis=1) > 2.0 * np.linalg.norm(self._f[-1], axis=1)
        self._x.append(x)
        self._f.append(f)
        self._x, self._f = self._x[-self.depth - 1 :], self._f[-self.depth - 1 :]
        if len(self._f) < 2:
            return
        df = np.stack([f - old for old in self._f[:-1]], axis=1)
        dx = np.stack([x - old for old in self._x[:-1]], axis=1)
        normal = df @ df.transpose(0, 2, 1)
        trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
        normal += (1e-14 * trace + 1e-300) * np.eye(normal.shape[1])
        gamma = np.linalg.solve(normal, df @ f[:, :, None])
        mixed = g - ((dx + df).transpose(0, 2, 1) @ gamma)[:, :, 0]
        use = ~done & ~worse & np.isfinite(mixed).all(axis=1)
        start = 0
        for layer, old in enumerate(state):
            stop = start + old.shape[1]
            new = old.copy()
            new[use] = mixed[use, start:stop]
            state[layer] = new
            start = stop


def _topological(count: int, edges: set[tuple[int, int]]) -> tuple[list[int], bool]:
    """Return layers in an order that follows the edges as far as it can, and whether it follows all."""
    left, order = set(range(count)), []
    while left:
        ready = [k for k in sorted(left) if not any(b == k and a in left for a, b in edges)]
        nxt = ready[0] if ready else min(left)
        order.append(nxt)
        left.discard(nxt)
    place = {layer: k for k, layer in enumerate(order)}
    return order, all(place[a] < place[b] for a, b in edges)
