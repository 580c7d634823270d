"""One set of values as the layered method uses it: everything that sweeps need, summed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import GROUND, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.layers import Layers

__all__ = ["Weights", "constant_currents", "gather", "known_voltages"]

Array = NDArray[Any]
Diodes = tuple[Array, Array, Array, Array, Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
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
    diodes: list[Diodes | None]
    """(sign, ref, i_s, slope, gmin), each (n, D), per layer."""


def gather(layers: Layers, values: Values, precision: str) -> Weights:
    """Sum and convert one set of values."""
    n, dtype = layers.netlist, np.dtype(precision)
    load = [np.zeros(len(nodes)) for nodes in layers.layers]
    node_load = np.zeros(n.n_nodes)
    conductance = values.tables["resistor"]["conductance"]
    for nodes in (n.resistor.pos, n.resistor.neg):
        node_load += np.bincount(nodes, conductance, n.n_nodes)
    for layer, nodes in enumerate(layers.layers):
        load[layer] += node_load[nodes]
    signed, word_sum = [], []
    for link in layers.links:
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
    return Weights(
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
        diodes=[_diodes(layers, layer, values) for layer in range(len(layers.layers))],
    )


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
    return sign, np.where(here, fixed[far], 0.0), columns[0], columns[1], columns[2]


def known_voltages(layers: Layers, values: Values, inputs: FloatArray) -> FloatArray:
    """Return node voltages (B, N) V with those that sources fix filled in, for inputs (B, n_in)."""
    n = layers.netlist
    known = np.zeros((len(inputs), n.n_nodes))
    known[:, layers.known_node] = values.tables["vsource"]["voltage"]
    known[:, layers.known_node[n.inputs.source]] = inputs[:, n.inputs.column] * n.inputs.gain
    return known


def constant_currents(layers: Layers, w: Weights, known: Array) -> list[Array]:
    """Return the currents (B, n) into each layer that no free node changes: once per sample."""
    n = layers.netlist
    total = [np.zeros((len(known), len(nodes)), dtype=w.dtype) for nodes in layers.layers]
    for number, link in enumerate(layers.links):
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
                g_minus = n.device_conductances(c, w.values)[1][1]
                current += rest @ np.asarray(g_minus, dtype=w.dtype)
        total[link.target] += current if link.sense < 0 else w.sense[link.sense] * current
    t = w.values.tables
    r, s = n.resistor, n.isource
    for near, far in ((r.pos, r.neg), (r.neg, r.pos)):
        use = np.flatnonzero(layers.is_free[near] & (far != GROUND))
        for k in use:
            node = near[k]
            current = t["resistor"]["conductance"][k] * known[:, far[k]]
            total[layers.layer_of[node]][:, layers.place[node]] += current.astype(w.dtype)
    for near, sign in ((s.pos, -1.0), (s.neg, 1.0)):
        for k in np.flatnonzero(layers.is_free[near]):
            node = near[k]
            total[layers.layer_of[node]][:, layers.place[node]] += w.dtype.type(
                sign * t["isource"]["current"][k]
            )
    return total
