"""Find the layers of a netlist: which nodes are known, free or driven, and which blocks link them.

A layer is a set of free nodes that blocks always name together and in the same order. Within a layer,
and between layers, nodes couple through crossbars, amplifier banks and virtual grounds only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from circuitsim.netlist import GROUND, Crossbar, Netlist
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["Layers", "Link", "NotLayered", "Sweep"]


_FEW_LAYERS = 12
"""Up to which every choice of layers that close the loops is looked at."""


class NotLayered(Exception):
    """Why a netlist is not a network of layers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """One crossbar between layers: its word lines are known, a bank's outputs, or a layer itself."""

    crossbar: Crossbar
    source: Literal["known", "bank", "layer"]
    index: int
    """Bank or layer number of the word lines; -1 where they are known."""
    target: int
    sense: int
    """Number of the virtual ground that takes the bit lines; -1 where they are the nodes themselves."""
    words: IntArray | None = None
    bits: IntArray | None = None
    """Places of the word and bit lines in their bank and layers, where a tile takes only some; None: all."""

    @property
    def wired(self) -> bool:
        return self.crossbar.wired


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """The order in which a phase visits the layers, those that close its loops last.

    With the ``loops`` held the others follow from each other in order; without any, one pass is exact.
    """

    order: tuple[int, ...]
    loops: tuple[int, ...]


class Layers:
    """The layers, links and sweep orders of a netlist.

    Raises:
        NotLayered: with the element that does not fit.
    """

    def __init__(self, netlist: Netlist) -> None:
        self.netlist = netlist
        self._classify_nodes()
        self._find_layers()
        self._find_links()
        self._find_diodes()
        self._sort()

    @property
    def depth(self) -> int:
        """Number of layers on the longest way through a feedforward network."""
        edges = self._edges(swapped=False)
        longest = [1] * len(self.layers)
        for layer in self.order:
            for a, b in edges:
                if b == layer:
                    longest[b] = max(longest[b], longest[a] + 1)
        return max(longest)

    def _classify_nodes(self) -> None:
        n = self.netlist
        outsiders = (n.vccs, n.cccs, n.behavioural_current, *n.voltage_defined[1:])
        for outside in outsiders:
            if len(outside):
                raise NotLayered(f"{outside.kind} {outside.name[0]} is outside a block")
        if n.loads:
            raise NotLayered(f"load {n.loads[0].name} couples nodes of a layer")
        known = np.zeros(n.n_nodes, dtype=np.bool_)
        known[GROUND] = True
        self.known_node = np.zeros(len(n.vsource), dtype=np.int64)
        for row in range(len(n.vsource)):
            pos, neg = int(n.vsource.pos[row]), int(n.vsource.neg[row])
            if neg != GROUND or known[pos]:
                raise NotLayered(
                    f"voltage source {n.vsource.name[row]} is not from a node of its own to ground"
                )
            known[pos] = True
            self.known_node[row] = pos
        self.known = known
        self.driven_by_input = np.zeros(n.n_nodes, dtype=np.bool_)
        self.driven_by_input[self.known_node[n.inputs.source]] = True
        self.input_column = np.full(n.n_nodes, -1)
        self.input_column[self.known_node[n.inputs.source]] = n.inputs.column
        self.input_gain = np.zeros(n.n_nodes)
        self.input_gain[self.known_node[n.inputs.source]] = n.inputs.gain
        bank_of = np.full(n.n_nodes, -1)
        for index, bank in enumerate(n.banks):
            for outputs in (bank.out_pos, bank.out_neg):
                if outputs is not None:
                    if (
                        known[outputs].any()
                        or (bank_of[outputs] >= 0).any()
                        or len(set(outputs)) < len(outputs)
                    ):
                        raise NotLayered(f"an output of bank {bank.name} is driven twice")
                    bank_of[outputs] = index
        sense_of = np.full(n.n_nodes, -1)
        for index, sense in enumerate(n.senses):
            if known[sense.bit].any() or (bank_of[sense.bit] >= 0).any():
                raise NotLayered(f"a virtual ground of {sense.name} is driven twice")
            sense_of[sense.bit] = index
        self.bank_of, self.sense_of = bank_of, sense_of
        self.is_free = ~known & (bank_of < 0) & (sense_of < 0)
        for table in (n.resistor, n.diode, n.ideal_diode, n.isource):
            if not len(table):
                continue
            free = ~known[table.pos] & ~known[table.neg]
            odd = free | (~known[table.pos] & ~self.is_free[table.pos])
            odd |= ~known[table.neg] & ~self.is_free[table.neg]
            if odd.any():
                row = int(np.flatnonzero(odd)[0])
                raise NotLayered(f"{table.kind} {table.name[row]} joins two nodes that are not known")
        d = n.diode
        if np.isfinite(d.breakdown_voltage).any():
            raise NotLayered("a diode breaks down")
        for table in (d, n.ideal_diode):
            if self.driven_by_input[table.pos].any() or self.driven_by_input[table.neg].any():
                raise NotLayered("a diode clamps to an input")

    def _find_layers(self) -> None:
        n = self.netlist
        layer_of = np.full(n.n_nodes, -1)
        layers: list[IntArray] = []
        candidates = [bank.control for bank in n.banks] + [sense.output for sense in n.senses]
        plain = [crossbar for crossbar in n.crossbars if not crossbar.wired]
        for crossbar in plain:
            candidates += [a for a in (crossbar.word_pos, crossbar.word_neg, crossbar.bit) if a is not None]
        if len(plain) < len(n.crossbars):
            # A tile joins parts of layers.
            candidates += n.groups.values()
        for nodes in candidates:
            if len(nodes) == 0 or not self.is_free[nodes].any():
                continue
            if not self.is_free[nodes].all():
                raise NotLayered("a block mixes free and driven nodes")
            first = layer_of[nodes[0]]
            if first >= 0 and np.array_equal(layers[first], nodes):
                continue
            if (layer_of[nodes] >= 0).any() or len(set(nodes.tolist())) < len(nodes):
                raise NotLayered(f"two blocks share some nodes of {n.node_names[nodes[0]]} but not all")
            layer_of[nodes] = len(layers)
            layers.append(nodes)
        rest = np.flatnonzero(self.is_free & (layer_of < 0))
        if len(rest):
            layer_of[rest] = len(layers)
            layers.append(rest)
        if not layers:
            raise NotLayered("no node is free")
        self.layers = layers
        self.layer_of = layer_of
        self.place = np.zeros(n.n_nodes, dtype=np.int64)
        for nodes in layers:
            self.place[nodes] = np.arange(len(nodes))
        self.bank_layer = [int(layer_of[bank.control[0]]) for bank in n.banks]
        r = n.resistor
        self.pulled = [
            (int(near[k]), int(far[k]), int(k))
            for near, far in ((r.pos, r.neg), (r.neg, r.pos))
            for k in np.flatnonzero(self.is_free[near] & (far != GROUND))
        ]
        """Single resistors between a free node and a source: (node, node of the source, row)."""
        self.sense_layer = [int(layer_of[sense.output[0]]) for sense in n.senses]
        ports = n.outputs
        self.output_layer = -1
        if len(ports.pos):
            owners = {int(layer_of[node]) for node in ports.pos} | {
                int(layer_of[node]) for node in ports.neg if node != GROUND
            }
            if (
                len(owners) != 1
                or -1 in owners
                or (np.any(ports.neg == GROUND) and np.any(ports.neg != GROUND))
            ):
                raise NotLayered("the outputs are not nodes of one layer")
            self.output_layer = owners.pop()
            self.y_pos = self.place[ports.pos]
            self.y_neg = self.place[ports.neg] if np.all(ports.neg != GROUND) else None

    def _find_links(self) -> None:
        n = self.netlist
        self.links: list[Link] = []
        for crossbar in n.crossbars:
            words, minus, bit = crossbar.word_pos, crossbar.word_neg, crossbar.bit
            sense = int(self.sense_of[bit[0]])
            bits: IntArray | None = None
            if sense >= 0:
                bits = self._part(n.senses[sense].bit, bit, crossbar, "shares a virtual ground only in part")
                target = self.sense_layer[sense]
            else:
                target = int(self.layer_of[bit[0]])
                if target >= 0:
                    bits = self._part(self.layers[target], bit, crossbar, "reads two layers")
            if target < 0:
                raise NotLayered(f"crossbar {crossbar.name} reads driven nodes")
            source: Literal["known", "bank", "layer"]
            places: IntArray | None = None
            if self.known[words].all() and (minus is None or self.known[minus].all()):
                source, index = "known", -1
            elif self.bank_of[words[0]] >= 0:
                source, index = "bank", int(self.bank_of[words[0]])
                bank = n.banks[index]
                partly = f"takes only part of bank {bank.name}"
                places = self._part(bank.out_pos, words, crossbar, partly)
                if minus is not None:
                    if bank.out_neg is None:
                        raise NotLayered(f"crossbar {crossbar.name} {partly}")
                    other = self._part(bank.out_neg, minus, crossbar, partly)
                    if not np.array_equal(
                        bank.out_pos if places is None else places, bank.out_pos if other is None else other
                    ):
                        raise NotLayered(f"crossbar {crossbar.name} {partly}")
            elif self.layer_of[words[0]] >= 0 and minus is None and sense < 0:
                source, index = "layer", int(self.layer_of[words[0]])
                places = self._part(self.layers[index], words, crossbar, "has word lines of two layers")
            else:
                raise NotLayered(f"crossbar {crossbar.name} has word lines of two kinds")
            self.links.append(
                Link(
                    crossbar=crossbar,
                    source=source,
                    index=index,
                    target=target,
                    sense=sense,
                    words=places,
                    bits=bits,
                )
            )
        for index, bank in enumerate(n.banks):
            if not bank.one_way and np.isfinite(bank.saturation).any():
                raise NotLayered(f"bank {bank.name} saturates and feeds back")
            if self.bank_layer[index] < 0:
                raise NotLayered(f"bank {bank.name} is controlled by a driven node")
        for index, layer in enumerate(self.sense_layer):
            if layer < 0:
                raise NotLayered(f"virtual ground {n.senses[index].name} feeds a driven node")

    def _part(self, whole: IntArray, nodes: IntArray, crossbar: Crossbar, otherwise: str) -> IntArray | None:
        """Return the places of ``nodes`` in ``whole``; None where they are the same."""
        if np.array_equal(whole, nodes):
            return None
        if not crossbar.wired or len(set(nodes.tolist())) < len(nodes):
            raise NotLayered(f"crossbar {crossbar.name} {otherwise}")
        order = np.argsort(whole)
        found = np.minimum(np.searchsorted(whole, nodes, sorter=order), len(whole) - 1)
        places = order[found]
        if not np.array_equal(whole[places], nodes):
            raise NotLayered(f"crossbar {crossbar.name} {otherwise}")
        return places

    def _find_diodes(self) -> None:
        """Give every layer its diodes: table rows (n, D), -1 for none, sign (n, D) and far nodes (n, D).

        Sign is +1 where the layer's node is the anode.
        """
        d = self.netlist.diode
        self.diodes: list[tuple[IntArray, FloatArray, IntArray]] = []
        for layer, nodes in enumerate(self.layers):
            found: list[list[tuple[int, float, int]]] = [[] for _ in nodes]
            for near, far, sign in ((d.pos, d.neg, 1.0), (d.neg, d.pos, -1.0)):
                for k in np.flatnonzero(self.is_free[near] & (self.layer_of[near] == layer)):
                    found[self.place[near[k]]].append((int(k), sign, int(far[k])))
            most = max((len(row) for row in found), default=0)
            table = np.array([row + [(-1, 1.0, GROUND)] * (most - len(row)) for row in found])
            table = table.reshape(len(nodes), most, 3)
            rows, far_nodes = (table[:, :, k].astype(np.int64) for k in (0, 2))
            self.diodes.append((rows, np.ascontiguousarray(table[:, :, 1]), far_nodes))

        ideal = self.netlist.ideal_diode
        fixed = np.zeros(self.netlist.n_nodes)
        fixed[self.known_node] = self.netlist.vsource.voltage
        self.clamps: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
        for layer, nodes in enumerate(self.layers):
            sides = []
            for near, far in ((ideal.neg, ideal.pos), (ideal.pos, ideal.neg)):
                row, other = np.full(len(nodes), -1), np.zeros(len(nodes), dtype=np.int64)
                for k in np.flatnonzero(self.is_free[near] & (self.layer_of[near] == layer)):
                    place = self.place[near[k]]
                    if row[place] >= 0:
                        raise NotLayered(f"ideal diode {ideal.name[int(k)]} shares its side of a node")
                    row[place], other[place] = k, far[k]
                sides += [row, other]
            low_row, low_far, high_row, high_far = sides
            clamped = (low_row >= 0) | (high_row >= 0)
            if clamped.any() and self.diodes[layer][0].size:
                raise NotLayered("a layer has ideal and other diodes")
            both = (low_row >= 0) & (high_row >= 0)
            if np.any(fixed[low_far[both]] > fixed[high_far[both]]):
                raise NotLayered("two ideal diodes hold a node apart")
            self.clamps.append((low_row, low_far, high_row, high_far))

    def mirrored(self, crossbar: Crossbar, voltage: FloatArray) -> bool:
        """Whether the known word lines of the two halves always stand at opposite voltages."""
        plus, minus = crossbar.word_pos, crossbar.word_neg
        assert minus is not None
        fixed = np.zeros(self.netlist.n_nodes)
        fixed[self.known_node] = voltage
        undriven = self.input_column[plus] < 0
        return bool(
            np.array_equal(self.input_column[plus], self.input_column[minus])
            and np.array_equal(self.input_gain[plus], -self.input_gain[minus])
            and np.array_equal(fixed[plus[undriven]], -fixed[minus[undriven]])
        )

    def _edges(self, *, swapped: bool) -> set[tuple[int, int]]:
        """Return (from, to) between layers: in the free phase, or in the transposed one."""
        edges = set()
        for link in self.links:
            if link.source == "layer":
                edges |= {(link.index, link.target), (link.target, link.index)}
            elif link.source == "bank":
                a, b = self.bank_layer[link.index], link.target
                two_way = not self.netlist.banks[link.index].one_way
                if swapped or two_way:
                    edges.add((b, a))
                if not swapped or two_way:
                    edges.add((a, b))
                if two_way and link.wired and link.sense >= 0:
                    edges.add((a, a))
            if link.wired and link.sense < 0:
                # Bit lines of one crossbar couple through its wires.
                edges.add((link.target, link.target))
                if link.source == "layer":
                    edges.add((link.index, link.index))
        return edges

    @property
    def _bent(self) -> set[tuple[int, int]]:
        """Edges along which held amplifiers pass on what bends."""
        edges = set()
        for link in self.links:
            if link.source != "bank":
                continue
            bank_layer = self.bank_layer[link.index]
            if link.sense < 0:
                edges.add((bank_layer, link.target))
            elif link.wired and np.isfinite(self.netlist.banks[link.index].saturation).any():
                # Word lines of one crossbar couple through its wires.
                edges.add((bank_layer, bank_layer))
        return edges

    @property
    def _pulled(self) -> set[tuple[int, int]]:
        """Edges of a nudge: that of a softmax couples the outputs to each other."""
        return {(self.output_layer, self.output_layer)} if self.output_layer >= 0 else set()

    @cached_property
    def faulty_sweep(self) -> Sweep:
        """The sweep of a corrected phase whose correction is not perfect: where anything passes forward."""
        if not self.netlist.senses and not any(link.wired for link in self.links):
            return self.sweeps["corrected"]
        edges = self._edges(swapped=False) | self._edges(swapped=True) | self._bent | self._pulled
        for link in self.links:
            if link.wired:
                edges.add((link.target, link.target))
                if link.source == "bank":
                    edges.add((self.bank_layer[link.index], self.bank_layer[link.index]))
        return _sweep([len(nodes) for nodes in self.layers], edges)

    def _sort(self) -> None:
        count = len(self.layers)
        forward, back = self._edges(swapped=False), self._edges(swapped=True)
        bent, pulled = self._bent, self._pulled
        sizes = [len(nodes) for nodes in self.layers]
        self.order, self.feedforward = _topological(count, forward)
        self.sweeps: dict[str, Sweep] = {
            "free": _sweep(sizes, forward),
            "nudged": _sweep(sizes, forward | pulled),
            "corrected": _sweep(sizes, back | bent | pulled),
            "transposed": _sweep(sizes, back),
        }


def _sweep(sizes: list[int], edges: set[tuple[int, int]]) -> Sweep:
    """Return the cheapest sweep: hold the fewest nodes that leave no loop among the other layers."""
    count = len(sizes)
    own = {a for a, b in edges if a == b}
    subsets: Iterable[tuple[int, ...]]
    if count <= _FEW_LAYERS:
        subsets = (tuple(k for k in range(count) if chosen >> k & 1) for chosen in range(1 << count))
    else:
        subsets = (tuple(range(count)),)
    best: Sweep | None = None
    least = math.inf
    for loops in sorted(subsets, key=lambda s: (sum(sizes[k] for k in s), s)):
        if own - set(loops) or sum(sizes[k] for k in loops) >= least:
            continue
        rest = [k for k in range(count) if k not in loops]
        inner = {(a, b) for a, b in edges if a not in loops and b not in loops}
        order, follows = _topological(count, inner)
        if follows:
            best = Sweep(order=(*(k for k in order if k in rest), *loops), loops=loops)
            least = sum(sizes[k] for k in loops)
            break
    assert best is not None
    return best


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
