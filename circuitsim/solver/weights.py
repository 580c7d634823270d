"""One set of values as the layered method uses it: everything that sweeps need, summed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import NetlistError
from circuitsim.netlist import Crossbar, Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.kernels.conductances import bit_sums, currents_and_sums, pair_sums, single_sums
from circuitsim.solver.layers import Layers
from circuitsim.solver.threads import share_batch
from circuitsim.solver.wired_block import WiredBlock

__all__ = [
    "FEW_SAMPLES",
    "PARTS",
    "WORTH_PARTS",
    "Clamps",
    "Fixed",
    "Weights",
    "Words",
    "constant_currents",
    "gather",
    "known_voltages",
    "known_words",
    "lines_of",
]

Array = NDArray[Any]
Diodes = tuple[Array, Array, Array, Array, Array]
Clamps = tuple[Array, Array, Array, Array]

_STEEP = 100.0
"""Largest conductance of an ideal diode away from 0 V whose current float32 can tell [S]."""
FEW_SAMPLES = 8
"""Most samples for which currents and sums are found in one pass, rather than by a product and a sum."""
PARTS = 4
"""Slices in which a large crossbar is summed, whatever the number of threads, so that sums are the same."""
WORTH_PARTS = 4 * 65536
"""Devices of a half beyond which a crossbar is large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """Voltages of known word lines: ``plus`` (B, M) V, or (1, M) where all samples share them.

    ``minus`` is None where it is the opposite of ``plus``, or where there are no such lines.
    """

    plus: Array
    minus: Array | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed:
    """What is left of one set of values when its crossbars are taken out, in the working precision."""

    tables: Any
    banks: Any
    senses: Any
    leak: list[FloatArray]
    """(n,) S to known nodes through single resistors, per layer."""
    injected: list[Array | None]
    """(n,) A from current sources, per layer; None where there are none."""
    gain: list[Array]
    saturation: list[Array]
    offset: list[Array]
    back: list[Array]
    linear: list[bool]
    """Whether no amplifier of a bank saturates."""
    two_way: list[bool]
    """Whether a bank draws current from its controls."""
    centred: list[bool]
    """Whether a bank has no offsets."""
    sense: list[Array]
    diodes: list[Diodes | None]
    """(sign, ref, i_s, slope, gmin), each (D, n), per layer."""
    clamps: list[Clamps | None]
    """Ideal diodes (low, low_g, high, high_g), each (n,), per layer."""
    lines: list[_Lines | None]
    """Known word lines, per link."""

    def holds(self, values: Values) -> bool:
        """Whether these are those of ``values`` too."""
        return self.tables is values.tables and self.banks is values.banks and self.senses is values.senses


@dataclass(kw_only=True, eq=False)
class Weights:
    """One set of values, in the working precision, with everything that is summed once."""

    values: Values
    dtype: Any
    fixed: Fixed
    signed: list[Array]
    """W = g_plus - g_minus (M, N) per link; empty for wired ones."""
    word_sum: list[Array]
    """sum over bit lines of g_plus + g_minus (M,) per link; of wired ones the loads of their ports.
    Empty where word lines are known."""
    blocks: list[WiredBlock | None]
    """Wired crossbars, per link."""
    sums: list[FloatArray]
    """(n,) S that loads each node, per layer, but for ``pending``."""
    pending: dict[int, int]
    """Links whose bit lines are not summed yet, and their layers."""

    @cached_property
    def load(self) -> list[Array]:
        """(n,) S that loads each node, per layer: leaks, crossbars, layer-to-layer conductances."""
        for number, layer in self.pending.items():
            self.sums[layer] += _bit_sum(self.signed[number])
        self.pending.clear()
        return [x.astype(self.dtype) for x in self.sums]


def fix(layers: Layers, values: Values, precision: str) -> Fixed:
    """Convert everything but crossbars of one set of values."""
    n, dtype = layers.netlist, np.dtype(precision)
    leak = [np.zeros(len(nodes)) for nodes in layers.layers]
    if len(n.resistor):
        node_load = np.zeros(n.n_nodes)
        conductance = values.tables["resistor"]["conductance"]
        for nodes in (n.resistor.pos, n.resistor.neg):
            node_load += np.bincount(nodes, conductance, n.n_nodes)
        for layer, nodes in enumerate(layers.layers):
            leak[layer] += node_load[nodes]
    banks = [values.banks[bank.name] for bank in n.banks]
    injected: list[Array | None] = [None] * len(layers.layers)
    for near, sign in ((n.isource.pos, -1.0), (n.isource.neg, 1.0)):
        for k in np.flatnonzero(layers.is_free[near]):
            layer = int(layers.layer_of[near[k]])
            into = injected[layer]
            if into is None:
                into = injected[layer] = np.zeros(len(layers.layers[layer]), dtype=dtype)
            into[layers.place[near[k]]] += sign * values.tables["isource"]["current"][k]
    return Fixed(
        tables=values.tables,
        banks=values.banks,
        senses=values.senses,
        leak=leak,
        injected=injected,
        gain=[b["gain"].astype(dtype) for b in banks],
        saturation=[b["saturation"].astype(dtype) for b in banks],
        offset=[b["offset"].astype(dtype) for b in banks],
        back=[b["back_gain"].astype(dtype) for b in banks],
        linear=[bool(np.isinf(b["saturation"]).all()) for b in banks],
        two_way=[bool(np.any(b["back_gain"])) for b in banks],
        centred=[not np.any(b["offset"]) for b in banks],
        sense=[values.senses[sense.name].astype(dtype) for sense in n.senses],
        diodes=[_diodes(layers, layer, values) for layer in range(len(layers.layers))],
        clamps=[_clamps(layers, layer, values, dtype) for layer in range(len(layers.layers))],
        lines=[
            _known_lines(layers, link.crossbar, values, dtype) if link.source == "known" else None
            for link in layers.links
        ],
    )


def gather(layers: Layers, values: Values, precision: str, last: Weights | None = None) -> Weights:
    """Sum and convert one set of values; what ``last`` has of them already is taken from there."""
    n, dtype = layers.netlist, np.dtype(precision)
    fixed = last.fixed if last is not None and last.fixed.holds(values) else fix(layers, values, precision)
    sums = [leak.copy() for leak in fixed.leak]
    signed, word_sum = [], []
    blocks: list[WiredBlock | None] = []
    pending: dict[int, int] = {}
    for number, link in enumerate(layers.links):
        halves = [g for _, g in n.device_conductances(link.crossbar, values)]
        g_plus, g_minus = halves[0], halves[1] if len(halves) == 2 else None
        if link.wired:
            before = None if last is None else last.blocks[number]
            block = WiredBlock(
                link.crossbar,
                np.asarray(g_plus, dtype=np.float64),
                None if g_minus is None else np.asarray(g_minus, dtype=np.float64),
                # Training asks for as many samples again.
                reduce=before is not None and before.reduced,
            )
            blocks.append(block)
            signed.append(np.empty((0, 0), dtype=dtype))
            words, bits = np.asarray(block.load_word), np.asarray(block.load_bit)
            if g_minus is not None:
                words = words.reshape(-1, 2).sum(axis=1)
        else:
            blocks.append(None)
            if link.source == "known" and g_minus is None and link.sense < 0:
                # Summed together with the first currents through it, where that saves a pass.
                signed.append(np.ascontiguousarray(g_plus, dtype=dtype))
                word_sum.append(np.empty(0, dtype=dtype))
                pending[number] = link.target
                continue
            difference, words, bits = _sums(g_plus, g_minus, dtype, need_words=link.source != "known")
            signed.append(difference)
        word_sum.append(words.astype(dtype))
        if link.sense < 0:
            sums[link.target][slice(None) if link.bits is None else link.bits] += bits
        if link.source == "layer":
            sums[link.index][slice(None) if link.words is None else link.words] += words
    return Weights(
        values=values,
        dtype=dtype,
        fixed=fixed,
        signed=signed,
        word_sum=word_sum,
        blocks=blocks,
        sums=sums,
        pending=pending,
    )


def _sums(
    g_plus: Array, g_minus: Array | None, dtype: Any, *, need_words: bool
) -> tuple[Array, FloatArray, FloatArray]:
    """Return g_plus - g_minus (M, N), and the sums of both over bit lines (M,) and word lines (N,)."""
    size, n = g_plus.shape
    words = np.empty(size if need_words else 0)
    edges = _parts(g_plus)
    bits = np.zeros((len(edges) - 1, n))
    signed = np.ascontiguousarray(g_plus, dtype=dtype) if g_minus is None else np.empty((size, n), dtype)

    def rows(k: slice) -> None:
        for part in range(k.start, k.stop):
            first, last = edges[part], edges[part + 1]
            if g_minus is not None:
                pair_sums(g_plus, g_minus, first, last, signed, words, bits[part])
            elif need_words:
                single_sums(g_plus, first, last, words, bits[part])
            else:
                bit_sums(g_plus, first, last, bits[part])

    share_batch(rows, len(bits), work=g_plus.size // (16 * len(bits)), parts=len(bits))
    return signed, words, bits[0] if len(bits) == 1 else bits.sum(axis=0)


def _bit_sum(g: Array) -> FloatArray:
    """Return the sum (N,) over word lines."""
    edges = _parts(g)
    bits = np.zeros((len(edges) - 1, g.shape[1]))

    def rows(k: slice) -> None:
        for part in range(k.start, k.stop):
            bit_sums(g, edges[part], edges[part + 1], bits[part])

    share_batch(rows, len(bits), work=g.size // (16 * len(bits)), parts=len(bits))
    return bits.sum(axis=0)


def _parts(g: Array) -> list[int]:
    """Return the first rows of the slices in which a crossbar is summed, and the end."""
    parts = PARTS if g.size > WORTH_PARTS and len(g) >= PARTS else 1
    return [len(g) * k // parts for k in range(parts + 1)]


def _diodes(layers: Layers, layer: int, values: Values) -> Diodes | None:
    rows, sign, far = layers.diodes[layer]
    if not rows.size:
        return None
    fixed = np.zeros(layers.netlist.n_nodes)
    fixed[layers.known_node] = values.tables["vsource"]["voltage"]
    t = values.tables["diode"]
    here = rows >= 0
    # A place without a diode holds one that conducts nothing.
    columns = [
        np.where(here, t[name][rows], nothing)
        for name, nothing in (
            ("saturation_current", 0.0),
            ("slope_voltage", 1.0),
            ("parallel_conductance", 0.0),
        )
    ]
    reference = np.where(here, fixed[far], 0.0)
    sign, reference, i_s, slope, gmin = (
        np.ascontiguousarray(column.T) for column in (sign, reference, *columns)
    )
    return sign, reference, i_s, slope, gmin


def _clamps(layers: Layers, layer: int, values: Values, dtype: Any) -> Clamps | None:
    low_row, low_far, high_row, high_far = layers.clamps[layer]
    if not (np.any(low_row >= 0) or np.any(high_row >= 0)):
        return None
    fixed = np.zeros(layers.netlist.n_nodes)
    fixed[layers.known_node] = values.tables["vsource"]["voltage"]
    g = values.tables["ideal_diode"]["conductance"]
    found: list[Array] = []
    # A place without a diode holds one that never conducts.
    for row, far, never in ((low_row, low_far, -np.inf), (high_row, high_far, np.inf)):
        here = row >= 0
        found += [np.where(here, fixed[far], never), np.where(here, g[row], 0.0)]
        away = np.flatnonzero(here & (fixed[far] != 0) & (g[row] > _STEEP))
        if dtype == np.float32 and away.size:
            raise NetlistError(
                "float32 cannot hold a node on so steep a diode away from 0 V: its current would be rounding",
                object=layers.netlist.ideal_diode.name[int(row[away[0]])],
                field="clamp",
                value=float(fixed[far[away[0]]]),
                remedy=f"Use precision float64, a clamp at 0 V, or a conductance up to {_STEEP:g} S.",
            )
    low, low_g, high, high_g = (column.astype(dtype) for column in found)
    return low, low_g, high, high_g


def known_voltages(layers: Layers, values: Values, inputs: Array) -> FloatArray:
    """Return node voltages (B, N) V with those that sources fix filled in, for inputs (B, n_in)."""
    n = layers.netlist
    known = np.zeros((len(inputs), n.n_nodes))
    known[:, layers.known_node] = values.tables["vsource"]["voltage"]
    known[:, layers.known_node[n.inputs.source]] = inputs[:, n.inputs.column] * n.inputs.gain
    return known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lines:
    """How the inputs drive the known word lines of a link."""

    plus: _Half
    minus: _Half | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Half:
    """Lines j at ``gain[j] * u[column[j]]``, or at ``fixed[j]`` V where the column is -1."""

    column: IntArray
    gain: Array
    fixed: Array
    columns: slice | None
    """The columns, where every line has one and they follow each other."""
    undriven: bool
    """Whether no line has one."""
    some: bool
    """Whether some lines have none."""

    def voltage(self, inputs: Array) -> Array:
        if self.undriven:
            return self.fixed[None]
        if self.columns is not None:
            dtype: Any = self.gain.dtype
            return np.multiply(inputs[:, self.columns], self.gain, dtype=dtype, casting="same_kind")
        dtype = self.gain.dtype
        driven = np.take(inputs.astype(dtype, copy=False), self.column, axis=1)
        driven *= self.gain
        return np.where(self.column < 0, self.fixed, driven) if self.some else driven


def _known_lines(layers: Layers, crossbar: Crossbar, values: Values, dtype: Any) -> _Lines:
    voltage = values.tables["vsource"]["voltage"]
    minus: _Half | None = None
    if crossbar.word_neg is not None and not layers.mirrored(crossbar, voltage):
        minus = _half(layers, voltage, crossbar.word_neg, dtype)
    return _Lines(plus=_half(layers, voltage, crossbar.word_pos, dtype), minus=minus)


def _half(layers: Layers, voltage: FloatArray, nodes: IntArray, dtype: Any) -> _Half:
    column = layers.input_column[nodes]
    fixed = np.zeros(layers.netlist.n_nodes)
    fixed[layers.known_node] = voltage
    first, size = int(column[0]), len(column)
    follow = first >= 0 and np.array_equal(column, np.arange(first, first + size))
    return _Half(
        column=column,
        gain=layers.input_gain[nodes].astype(dtype),
        fixed=fixed[nodes].astype(dtype),
        columns=slice(first, first + size) if follow else None,
        undriven=bool(np.all(column < 0)),
        some=bool(np.any(column < 0)),
    )


def known_words(w: Weights, inputs: Array) -> list[Words | None]:
    """Return the word lines of every link whose voltages are known; None for the others."""
    found: list[Words | None] = []
    for lines in w.fixed.lines:
        if lines is None:
            found.append(None)
            continue
        minus = None if lines.minus is None else lines.minus.voltage(inputs)
        found.append(Words(plus=lines.plus.voltage(inputs), minus=minus))
    return found


def constant_currents(
    layers: Layers, w: Weights, words: list[Words | None], batch: int, known: FloatArray | None = None
) -> list[Array]:
    """Return the currents (B, n) into each layer that no free node changes: once per sample.

    ``known`` (B, N) V is needed where single resistors join nodes to sources (``layers.pulled``).
    """
    n = layers.netlist
    total: list[Array | None] = [None] * len(layers.layers)
    shared = list(w.fixed.injected)

    def add(layer: int, current: Array) -> None:
        one = shared[layer]
        if len(current) == 1 and batch != 1:
            shared[layer] = current[0] if one is None else one + current[0]
        elif total[layer] is None:
            total[layer] = current
        else:
            total[layer] += current

    for number, link in enumerate(layers.links):
        line = words[number]
        if line is None or link.wired:
            continue
        if number in w.pending and len(line.plus) <= FEW_SAMPLES and line.plus.shape[1] > FEW_SAMPLES:
            current = _summed_on_the_way(w, number, line.plus)
        else:
            current = line.plus @ w.signed[number]
        if link.crossbar.word_neg is not None and line.minus is not None:
            g_minus = n.device_conductances(link.crossbar, w.values)[1][1]
            current = current + (line.plus + line.minus) @ np.asarray(g_minus, dtype=w.dtype)
        add(link.target, current if link.sense < 0 else w.fixed.sense[link.sense] * current)
    t = w.values.tables
    for node, other, row in layers.pulled:
        assert known is not None
        layer = int(layers.layer_of[node])
        column = np.zeros((batch, len(layers.layers[layer])), dtype=w.dtype)
        column[:, layers.place[node]] = t["resistor"]["conductance"][row] * known[:, other]
        add(layer, column)
    found = []
    for nodes, own, of_all in zip(layers.layers, total, shared, strict=True):
        whole = np.zeros((batch, len(nodes)), dtype=w.dtype) if own is None else own
        if of_all is not None:
            whole += of_all
        found.append(whole)
    return found


def _summed_on_the_way(w: Weights, number: int, words: Array) -> Array:
    """Return the currents (B, N) into bit lines, and sum their conductances in the same pass."""
    g = w.signed[number]
    edges = _parts(g)
    current = np.zeros((len(edges) - 1, len(words), g.shape[1]), dtype=w.dtype)
    bits = np.zeros((len(edges) - 1, g.shape[1]))

    def rows(k: slice) -> None:
        for part in range(k.start, k.stop):
            currents_and_sums(words, g, g[:0], edges[part], edges[part + 1], current[part], bits[part])

    share_batch(rows, len(bits), work=g.size // (16 * len(bits)), parts=len(bits))
    w.sums[w.pending.pop(number)] += bits[0] if len(bits) == 1 else bits.sum(axis=0)
    return current[0] if len(current) == 1 else current.sum(axis=0)


def lines_of(crossbar: Crossbar, plus: Array, minus: Array | None) -> FloatArray:
    """Return voltages (B, R) V of the word lines in the order of ``Crossbar.lines``."""
    if crossbar.word_neg is None:
        return np.asarray(plus, dtype=np.float64)
    both = np.stack([plus, -plus if minus is None else minus], axis=2)
    return np.asarray(both, dtype=np.float64).reshape(len(plus), -1)
