"""Find everything that makes a circuit unsolvable, and say it all at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import NetlistError
from circuitsim.netlist.expressions import Current, Drop
from circuitsim.netlist.netlist import GROUND, Netlist
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["conducting_edges", "connected_parts", "validate", "voltage_edges"]

_MOST_SHOWN = 5


def validate(netlist: Netlist, *, at_rest: bool = True) -> None:
    """Check names, indices, values, voltage loops and floating nodes.

    Without ``at_rest`` the circuit need not have an operating point, only a response in time: capacitors
    hold nodes, and inductors may close loops.

    Raises:
        NetlistError: with every problem, each naming the element, the value, the rule and the remedy.
    """
    structural = [*_lengths(netlist), *_ranges(netlist)]
    problems = [*_duplicates(netlist), *structural, *_values(netlist)]
    if not structural:
        problems += [*_voltage_loops(netlist, at_rest), *_floating(netlist, at_rest), *_couplings(netlist)]
    if problems:
        error = NetlistError.all_of(problems)
        raise error


def _duplicates(netlist: Netlist) -> list[NetlistError]:
    problems = []
    if len(set(netlist.node_names)) < netlist.n_nodes:
        for name, count in Counter(netlist.node_names).items():
            if count > 1:
                problems.append(NetlistError("node name is used twice", object=name))
    for table in netlist.tables():
        if len(set(table.name)) < len(table):
            for name, count in Counter(table.name).items():
                if count > 1:
                    problems.append(
                        NetlistError(f"{count} elements of kind {table.kind} have this name", object=name)
                    )
    for name, count in Counter(block.name for block in netlist.blocks).items():
        if count > 1:
            problems.append(NetlistError(f"{count} blocks have this name", object=name))
    return problems


def _lengths(netlist: Netlist) -> list[NetlistError]:
    """Columns that belong together have one length; a crossbar's arrays have its shape."""
    problems = []
    columns: list[tuple[str, int, str, Any]] = []
    for table in netlist.tables():
        columns += [(table.kind, len(table), c.name, getattr(table, c.name)) for c in table.columns()]
    for bank in netlist.banks:
        names = ("out_pos", "out_neg", "gain", "saturation", "offset", "back_gain")
        columns += [(bank.name, len(bank.control), name, getattr(bank, name)) for name in names]
    for sense in netlist.senses:
        columns += [(sense.name, len(sense.bit), name, getattr(sense, name)) for name in ("output", "gain")]
    for load in netlist.loads:
        columns += [(load.name, len(load.pos), name, getattr(load, name)) for name in ("neg", "target")]
    columns += [
        ("inputs", len(netlist.inputs.source), n, getattr(netlist.inputs, n)) for n in ("column", "gain")
    ]
    columns += [("outputs", len(netlist.outputs.pos), "neg", netlist.outputs.neg)]
    for owner, length, name, array in columns:
        if array is not None and len(array) != length:
            problems.append(
                NetlistError(f"must have {length} entries", object=owner, field=name, value=len(array))
            )
    for crossbar in netlist.crossbars:
        halves = [crossbar.word_neg is None, crossbar.g_minus is None]
        if any(halves) and not all(halves):
            problems.append(
                NetlistError(
                    "word_neg and g_minus: both or neither, for a differential pair", object=crossbar.name
                )
            )
        elif crossbar.word_neg is not None and len(crossbar.word_neg) != len(crossbar.word_pos):
            problems.append(
                NetlistError(
                    f"must have {len(crossbar.word_pos)} entries",
                    object=crossbar.name,
                    field="word_neg",
                    value=len(crossbar.word_neg),
                )
            )
        if crossbar.device_names and len(crossbar.device_names) != crossbar.devices:
            problems.append(
                NetlistError(
                    f"must have {crossbar.devices} entries, one per device",
                    object=crossbar.name,
                    field="device_names",
                    value=len(crossbar.device_names),
                )
            )
        for name in ("g_plus", "g_minus", "mask"):
            array = getattr(crossbar, name)
            if array is not None and array.shape != crossbar.shape:
                problems.append(
                    NetlistError(
                        f"must have the crossbar's shape {crossbar.shape}",
                        object=crossbar.name,
                        field=name,
                        value=array.shape,
                    )
                )
    return problems


def _ranges(netlist: Netlist) -> list[NetlistError]:
    problems = []
    columns: list[tuple[str, str, IntArray, int]] = []
    for table in netlist.tables():
        columns += [
            (table.kind, c.name, getattr(table, c.name), netlist.n_nodes) for c in table.columns("node")
        ]
        columns += [
            (table.kind, c.name, getattr(table, c.name), len(getattr(netlist, c.metadata["table"])))
            for c in table.columns("row")
        ]
        for c in table.columns("expression"):
            inputs = [entry for expression in getattr(table, c.name) for entry in expression.inputs]
            ends = [end for entry in inputs if isinstance(entry, Drop) for end in (entry.pos, entry.neg)]
            rows = [entry.source for entry in inputs if isinstance(entry, Current)]
            columns.append((table.kind, c.name, np.array(ends, np.int64), netlist.n_nodes))
            columns.append((table.kind, c.name, np.array(rows, np.int64), len(netlist.vsource)))
    for block in netlist.blocks:
        for name in ("word_pos", "word_neg", "bit", "control", "out_pos", "out_neg", "output", "pos", "neg"):
            nodes = getattr(block, name, None)
            if nodes is not None:
                columns.append((block.name, name, nodes, netlist.n_nodes))
    columns += [("outputs", name, getattr(netlist.outputs, name), netlist.n_nodes) for name in ("pos", "neg")]
    columns += [("inputs", "source", netlist.inputs.source, len(netlist.vsource))]
    columns += [("inputs", "column", netlist.inputs.column, netlist.inputs.size)]
    columns += [(f"group {name}", "nodes", nodes, netlist.n_nodes) for name, nodes in netlist.groups.items()]
    for owner, column, indices, limit in columns:
        if len(indices) and (indices.min() < 0 or indices.max() >= limit):
            problems.append(
                NetlistError(f"{column} refers to what is not there", object=owner, field="nodes")
            )
    driven, times = np.unique(netlist.inputs.source, return_counts=True)
    for row in driven[times > 1]:
        problems.append(
            NetlistError("source is driven by two input columns", object="inputs", value=int(row))
        )
    return problems


def _values(netlist: Netlist) -> list[NetlistError]:
    problems = []
    blocks: list[tuple[str, str, FloatArray, str]] = [("inputs", "gain", netlist.inputs.gain, "finite")]
    for bank in netlist.banks:
        for name in ("gain", "saturation", "offset", "back_gain"):
            rule = "positive or infinite" if name == "saturation" else "finite"
            blocks.append((bank.name, name, getattr(bank, name), rule))
    blocks += [(sense.name, "gain", sense.gain, "finite") for sense in netlist.senses]
    for load in netlist.loads:
        blocks.append((load.name, "target", load.target, "finite"))
        blocks.append((load.name, "amplitude", np.array([load.amplitude]), "finite"))
        blocks.append((load.name, "scale", np.array([load.scale]), "positive"))
    for owner, name, values, rule in blocks:
        for row in np.flatnonzero(~_obeys(values, rule))[:_MOST_SHOWN]:
            problems.append(
                NetlistError(
                    f"must be {rule}", object=owner, field=f"{name}[{row}]", value=float(values[row])
                )
            )
    for table in netlist.tables():
        for column in table.columns("value"):
            rule, unit = column.metadata["rule"], column.metadata["unit"]
            values = getattr(table, column.name)
            if len(values) != len(table):
                continue
            for row in np.flatnonzero(~_obeys(values, rule))[:_MOST_SHOWN]:
                problems.append(
                    NetlistError(
                        f"must be {rule} [{unit}]",
                        object=f"{table.kind} {table.name[row]}",
                        field=column.name,
                        value=float(values[row]),
                    )
                )
    for crossbar in netlist.crossbars:
        for name in ("g_plus", "g_minus"):
            g = getattr(crossbar, name)
            if g is None or g.shape != crossbar.shape:
                continue
            bad = ~(np.isfinite(g) & (g >= 0))
            if bad.any():
                j, i = (int(k) for k in np.argwhere(bad)[0])
                problems.append(
                    NetlistError(
                        f"conductances must be finite and not negative [S]; {int(bad.sum())} are not",
                        object=crossbar.name,
                        field=f"{name}[{j}, {i}]",
                        value=float(g[j, i]),
                    )
                )
        if not 0 <= crossbar.g_min <= crossbar.g_max:
            problems.append(
                NetlistError(
                    "the conductance window must satisfy 0 <= g_min <= g_max",
                    object=crossbar.name,
                    value=(crossbar.g_min, crossbar.g_max),
                )
            )
        for name, unit in (("r_wire", "ohm per segment"), ("r_driver", "ohm"), ("r_sense", "ohm")):
            resistance = getattr(crossbar, name)
            if not (np.isfinite(resistance) and resistance >= 0):
                problems.append(
                    NetlistError(
                        f"must be finite and not negative [{unit}]",
                        object=crossbar.name,
                        field=name,
                        value=resistance,
                    )
                )
            elif resistance > 0 and crossbar.r_wire == 0:
                problems.append(
                    NetlistError(
                        "is in series with the wires of a crossbar, and its r_wire is 0",
                        object=crossbar.name,
                        field=name,
                        value=resistance,
                        remedy="Set r_wire, or put a resistor at each port.",
                    )
                )
        for name in ("drive_end", "sense_end"):
            if getattr(crossbar, name) not in ("first", "last"):
                problems.append(
                    NetlistError(
                        "must be first or last",
                        object=crossbar.name,
                        field=name,
                        value=getattr(crossbar, name),
                    )
                )
    return problems


def _obeys(values: FloatArray, rule: str) -> NDArray[np.bool_]:
    finite = np.isfinite(values)
    if rule == "positive":
        return finite & (values > 0)
    if rule == "positive or infinite":
        return values > 0
    if rule == "not negative":
        return finite & (values >= 0)
    if rule == "at least 0 and below 1":
        return (values >= 0) & (values < 1)
    if rule == "between -1 and 1":
        return np.abs(values) <= 1
    return finite


def voltage_edges(netlist: Netlist) -> list[tuple[str, int, int]]:
    """Return (name, pos, neg) of every voltage-defined branch, in branch order."""
    edges: list[tuple[str, int, int]] = []
    for table in netlist.voltage_defined:
        ends: Any = table
        edges += zip(
            (f"{table.kind} {n}" for n in table.name), ends.pos.tolist(), ends.neg.tolist(), strict=True
        )
    for bank in netlist.banks:
        for nodes in (bank.out_pos, bank.out_neg):
            if nodes is not None:
                edges += [(f"amplifier bank {bank.name}", int(node), GROUND) for node in nodes]
    for sense in netlist.senses:
        edges += [(f"current sense {sense.name}", int(node), GROUND) for node in sense.bit]
    return edges


def _voltage_loops(netlist: Netlist, at_rest: bool) -> list[NetlistError]:
    problems = []
    forest = _Forest(netlist.n_nodes)
    first = netlist.branch_starts["inductor"]
    for branch, (name, pos, neg) in enumerate(voltage_edges(netlist)):
        if not at_rest and first <= branch < first + len(netlist.inductor):
            continue
        if pos == neg:
            problems.append(
                NetlistError("both ends are the same node: a shorted voltage source", object=name)
            )
        elif not forest.join(pos, neg):
            problems.append(
                NetlistError(
                    f"closes a loop of voltage sources between nodes {netlist.node_names[pos]} "
                    f"and {netlist.node_names[neg]}",
                    object=name,
                    remedy="Put a resistance in series with one of them.",
                )
            )
    return problems[:_MOST_SHOWN]


def conducting_edges(netlist: Netlist) -> tuple[IntArray, IntArray]:
    """Return the ends of branches that carry direct current, enough of them to show connection."""
    pos: list[IntArray] = [netlist.resistor.pos, netlist.diode.pos]
    neg: list[IntArray] = [netlist.resistor.neg, netlist.diode.neg]
    voltage = voltage_edges(netlist)
    if voltage:
        ends = np.array([(p, n) for _, p, n in voltage], dtype=np.int64)
        pos.append(ends[:, 0])
        neg.append(ends[:, 1])
    for crossbar in netlist.crossbars:
        for words in (crossbar.word_pos, crossbar.word_neg):
            if words is None or not crossbar.devices:
                continue
            if crossbar.mask is None:
                pos += [words, np.full(len(crossbar.bit), words[0])]
                neg += [np.full(len(words), crossbar.bit[0]), crossbar.bit]
            else:
                j, i = np.nonzero(crossbar.mask)
                pos.append(words[j])
                neg.append(crossbar.bit[i])
    return np.concatenate(pos), np.concatenate(neg)


def _floating(netlist: Netlist, at_rest: bool) -> list[NetlistError]:
    pos, neg = conducting_edges(netlist)
    if not at_rest:
        pos = np.concatenate([pos, netlist.capacitor.pos])
        neg = np.concatenate([neg, netlist.capacitor.neg])
    part = connected_parts(netlist.n_nodes, pos, neg)
    held = np.zeros(netlist.n_nodes, dtype=np.bool_)
    held[part[GROUND]] = True
    # Controlled currents that flow into nodes which control others may fix their voltages too.
    supplied, sensed = (part[nodes] for nodes in _controlled_currents_and_controls(netlist))
    held[np.intersect1d(supplied, sensed)] = True
    names = [netlist.node_names[node] for node in np.flatnonzero(~held[part])]
    if not names:
        return []
    shown = ", ".join(names[:_MOST_SHOWN]) + (
        f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    )
    unfit = "capacitors and current sources"
    if len(netlist.ideal_diode):
        unfit = "capacitors, current sources and ideal diodes, which may block,"
    return [
        NetlistError(
            f"no path for direct current to ground from node {shown}",
            remedy=f"Connect it by a resistor (a leak), a diode or a source; {unfit} do not fix a voltage.",
        )
    ]


def _controlled_currents_and_controls(netlist: Netlist) -> tuple[IntArray, IntArray]:
    """Return the nodes that controlled currents enter, and those whose voltages control something."""
    n = netlist
    supplied = [end for table in (n.vccs, n.cccs, n.behavioural_current) for end in (table.pos, table.neg)]
    sensed = [end for table in (n.vccs, n.vcvs, n.buffer) for end in (table.control_pos, table.control_neg)]
    expressions = (*n.behavioural_current.expression, *n.behavioural_voltage.expression)
    drops = [entry for e in expressions for entry in e.inputs if isinstance(entry, Drop)]
    sensed.append(np.array([end for drop in drops for end in (drop.pos, drop.neg)], dtype=np.int64))
    sensed += [bank.control for bank in n.banks]
    return np.concatenate(supplied), np.concatenate(sensed)


def _couplings(netlist: Netlist) -> list[NetlistError]:
    """Coupled inductors must store energy, whatever their currents."""
    k = netlist.coupling
    forest = _Forest(len(netlist.inductor))
    for first, second in zip(k.first.tolist(), k.second.tolist(), strict=True):
        forest.join(first, second)
    groups: dict[int, list[int]] = {}
    for row in np.unique(np.concatenate([k.first, k.second])).tolist():
        groups.setdefault(forest.find(row), []).append(row)
    problems = []
    for rows in groups.values():
        place = {row: m for m, row in enumerate(rows)}
        matrix = np.eye(len(rows))
        for first, second, coefficient in zip(k.first, k.second, k.coefficient, strict=True):
            if int(first) in place:
                matrix[place[int(first)], place[int(second)]] = coefficient
                matrix[place[int(second)], place[int(first)]] = coefficient
        if np.linalg.eigvalsh(matrix).min() < -1e-9:
            problems.append(
                NetlistError(
                    "no coils can be coupled like this: some currents would store negative energy",
                    object=", ".join(netlist.inductor.name[row] for row in rows[:_MOST_SHOWN]),
                    field="coupling",
                    remedy="Lower the coefficients, or add the coupling that is missing.",
                )
            )
    return problems


def connected_parts(size: int, pos: IntArray, neg: IntArray) -> IntArray:
    """Return for each node (size,) the lowest node that edges connect it to."""
    part = np.arange(size)
    while True:
        # Both ends, and what they belong to, go to the lower of the two parts; then chains are cut short.
        lower = np.minimum(part[pos], part[neg])
        before = part.copy()
        for ends in (before[pos], before[neg], pos, neg):
            np.minimum.at(part, ends, lower)
        part = part[part]
        if np.array_equal(part, before):
            return part


class _Forest:
    """Disjoint sets of nodes."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, node: int) -> int:
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, a: int, b: int) -> bool:
        a, b = self.find(a), self.find(b)
        self._parent[a] = b
        return a != b
