"""Blocks written out as plain elements: the same circuit, for solvers and simulators without blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitsim.netlist.blocks import Crossbar
from circuitsim.netlist.netlist import GROUND, Netlist, Values
from circuitsim.netlist.tables import FloatArray, IntArray, Table

__all__ = ["Flat", "flatten"]


class _Names(Sequence[str]):
    """Names made when they are asked for: a block of 10^6 devices should not cost 10^6 strings."""

    def __init__(self, *parts: tuple[int, Callable[[int], str]]) -> None:
        self._parts = parts
        self._length = sum(length for length, _ in parts)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[k] for k in range(*index.indices(self._length)))
        if index < 0:
            index += self._length
        for length, name in self._parts:
            if index < length:
                return name(index)
            index -= length
        raise IndexError(index)

    def __iter__(self) -> Iterator[str]:
        for length, name in self._parts:
            for k in range(length):
                yield name(k)


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A flattened netlist, and the way from the block netlist's values and branches to its own.

    ``netlist`` has the block netlist's nodes first, then internal ones, each at the voltage of node
    ``internal_copy[k]``, then the ``points`` of wired lines: crossbar by crossbar those of its word
    lines, (R, N), then those of its bit lines, (R, N). ``branch[k]`` is the flat branch that carries
    branch k of the block netlist; source ``sense_row[k]`` carries the current of block branch
    ``sense_branch[k]``, negated.
    """

    netlist: Netlist
    blocks: Netlist
    branch: IntArray
    internal_copy: IntArray
    sense_row: IntArray
    sense_branch: IntArray
    points: int = 0

    def lift(
        self, voltage: FloatArray, current: FloatArray, points: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return flat node voltages and branch currents for those of the block netlist (B, N), (B, M).

        What the points of wired lines are at (B, ``self.points``) V follows from the nodes and from the
        values, and a solver knows it; without it they are returned at 0 V.
        """
        if points is None:
            points = np.zeros((len(voltage), self.points))
        v = np.concatenate([voltage, voltage[:, self.internal_copy], points], axis=1)
        i = np.zeros((len(current), len(self.netlist.branch_names)))
        i[:, self.branch] = current
        i[:, self.sense_row] = -current[:, self.sense_branch]
        return v, i

    def values(self, values: Values) -> Values:
        """Return the value columns of the flat netlist for values of the block netlist."""
        tables = {kind: dict(columns) for kind, columns in values.tables.items()}
        conductance = [tables["resistor"]["conductance"]]
        for crossbar in self.blocks.crossbars:
            g_plus, g_minus = values.crossbars[crossbar.name]
            for g in (g_plus, g_minus):
                if g is not None:
                    conductance.append(g.reshape(-1) if crossbar.mask is None else g[crossbar.mask])
            if crossbar.wired:
                conductance += _segment_conductances(crossbar)
        tables["resistor"]["conductance"] = np.concatenate(conductance)
        columns: dict[str, list[FloatArray]] = {name: [tables["buffer"][name]] for name in tables["buffer"]}
        feedback = [tables["cccs"]["gain"]]
        n_sense = 0
        for bank in self.blocks.banks:
            v = values.banks[bank.name]
            for sign in (1.0, -1.0) if bank.out_neg is not None else (1.0,):
                columns["gain"].append(sign * v["gain"])
                columns["saturation"].append(v["saturation"])
                columns["offset"].append(v["offset"])
                if not bank.one_way:
                    feedback.append(sign * v["back_gain"])
                    n_sense += len(bank.control)
        for sense in self.blocks.senses:
            feedback.append(-values.senses[sense.name])
            n_sense += len(sense.bit)
        tables["buffer"] = {name: np.concatenate(parts) for name, parts in columns.items()}
        tables["cccs"]["gain"] = np.concatenate(feedback)
        zeros = np.zeros(n_sense)
        tables["vsource"]["voltage"] = np.concatenate([tables["vsource"]["voltage"], zeros])
        return Values(tables=tables, crossbars={}, banks={}, senses={})


def flatten(netlist: Netlist) -> Flat:
    """Write every crossbar, amplifier bank and virtual ground as rows of the element tables.

    A two-way bank senses the current of each output with a 0 V source behind an internal node. Lines
    with resistance get a node at every point and a resistor for every segment: those of crossbar x are
    called x.w.j.i and x.b.j.i, x.word.j.i and x.bit.j.i, or x.w.p.j.i and so on for differential pairs.
    Node numbers, voltage source rows and ports of ``netlist`` stay valid.
    """
    names = list(netlist.node_names)
    taken = set(names)
    resistors = _Rows(netlist.resistor)
    buffers = _Rows(netlist.buffer)
    sources = _Rows(netlist.vsource)
    feedback = _Rows(netlist.cccs)
    internals = sum(
        len(bank.control) * (1 if bank.out_neg is None else 2) for bank in netlist.banks if not bank.one_way
    )
    first_point = len(names) + internals
    points: list[str] = []
    for crossbar in netlist.crossbars:
        m, n = crossbar.shape
        if crossbar.mask is None:
            j, i = np.divmod(np.arange(m * n), n)
        else:
            j, i = np.nonzero(crossbar.mask)
        word_points = first_point + len(points) + np.arange(len(crossbar.lines) * n).reshape(-1, n)
        bit_points = word_points + word_points.size
        both = [words for words in (crossbar.word_pos, crossbar.word_neg) if words is not None]
        for number, words in enumerate(both):
            name = _device_name(crossbar, "pn"[number], j, i)
            if crossbar.wired:
                line = len(both) * j + number
                resistors.add(name, pos=word_points[line, i], neg=bit_points[line, i])
            else:
                resistors.add(name, pos=words[j], neg=crossbar.bit[i])
        if crossbar.wired:
            labels = _line_labels(crossbar)
            points += [f"{crossbar.name}.{kind}.{label}" for kind in "wb" for label in labels]
            pos, neg = _word_segments(crossbar, word_points)
            resistors.add(_segment_name(f"{crossbar.name}.word", labels), pos=pos, neg=neg)
            pos, neg = _bit_segments(crossbar, bit_points)
            resistors.add(_segment_name(f"{crossbar.name}.bit", labels), pos=pos, neg=neg)

    # Where block branches go: known only when all tables are complete, so keep (table, row).
    where: list[tuple[str, int]] = []
    internal_copy: list[IntArray] = []
    sense_row: list[int] = []
    sense_branch: list[int] = []
    for table in netlist.voltage_defined:
        where += [(table.kind, row) for row in range(len(table))]
    for bank in netlist.banks:
        for half, outputs in (("p", bank.out_pos), ("n", bank.out_neg)):
            if outputs is None:
                continue
            size = len(outputs)
            label = _label(f"{bank.name}.{half}")
            drive = outputs
            if not bank.one_way:
                drive = np.arange(len(names), len(names) + size)
                internal_copy.append(outputs)
                names += [_fresh(f"{netlist.node_names[node]}.drive", taken) for node in outputs]
                row = sources.add((size, label), pos=drive, neg=outputs)
                sense_row += range(row, row + size)
                sense_branch += range(len(where), len(where) + size)
                feedback.add(
                    (size, label), pos=bank.control, neg=np.full(size, GROUND), control=row + np.arange(size)
                )
            first = buffers.add(
                (size, label),
                pos=drive,
                neg=np.full(size, GROUND),
                control_pos=bank.control,
                control_neg=np.full(size, GROUND),
            )
            where += [("buffer", first + k) for k in range(size)]
    for sense in netlist.senses:
        size = len(sense.bit)
        label = _label(sense.name)
        row = sources.add((size, label), pos=sense.bit, neg=np.full(size, GROUND))
        feedback.add(
            (size, label), pos=sense.output, neg=np.full(size, GROUND), control=row + np.arange(size)
        )
        where += [("vsource", row + k) for k in range(size)]

    names += [_fresh(name, taken) for name in points]
    nothing = np.empty(0, np.int64)
    links: dict[str, Any] = {
        "points": len(points),
        "internal_copy": np.concatenate([nothing, *internal_copy]),
        "sense_row": np.array(sense_row, dtype=np.int64),
        "sense_branch": np.array(sense_branch, dtype=np.int64),
    }
    values = Flat(netlist=netlist, blocks=netlist, branch=nothing, **links).values(netlist.values())
    flat = replace(
        netlist,
        node_names=tuple(names),
        resistor=resistors.table(values),
        buffer=buffers.table(values),
        vsource=sources.table(values),
        cccs=feedback.table(values),
        crossbars=(),
        banks=(),
        senses=(),
    )
    branch = np.array([flat.branch_starts[kind] + row for kind, row in where], dtype=np.int64)
    return Flat(netlist=flat, blocks=netlist, branch=branch, **links)


class _Rows:
    """A table being extended without its values, which `Flat.values` supplies in the same order."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._names: list[tuple[int, Callable[[int], str]]] = [(len(table), table.name.__getitem__)]
        roles = [c for c in table.columns() if c.metadata["role"] != "value"]
        self._columns = {c.name: [getattr(table, c.name)] for c in roles}
        self._length = len(table)

    def add(self, names: tuple[int, Callable[[int], str]], **columns: IntArray) -> int:
        """Append rows and return the number of the first."""
        first = self._length
        self._names.append(names)
        for name, array in columns.items():
            self._columns[name].append(array)
        self._length += names[0]
        return first

    def table(self, values: Values) -> Any:
        if self._length == len(self._table):
            return self._table
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        return type(self._table)(name=_Names(*self._names), **columns, **values.tables[self._table.kind])


def _label(stem: str) -> Callable[[int], str]:
    return lambda k: f"{stem}.{k}"


def _device_name(crossbar: Crossbar, half: str, j: IntArray, i: IntArray) -> tuple[int, Callable[[int], str]]:
    if crossbar.device_names:
        return len(j), crossbar.device_names.__getitem__
    return len(j), lambda k: f"{crossbar.name}.{half}.{j.item(k)}.{i.item(k)}"


def _line_labels(crossbar: Crossbar) -> list[str]:
    """Return what tells the points of a line apart, in the order of a raveled (R, N) array."""
    m, n = crossbar.shape
    rows = [f"{half}.{j}" for j in range(m) for half in "pn"] if crossbar.differential else list(range(m))
    return [f"{row}.{i}" for row in rows for i in range(n)]


def _segment_name(stem: str, labels: list[str]) -> tuple[int, Callable[[int], str]]:
    return len(labels), lambda k: f"{stem}.{labels[k]}"


def _word_segments(crossbar: Crossbar, points: IntArray) -> tuple[IntArray, IntArray]:
    """Return the ends of the segment on the driven side of each point (R, N) of the word lines, raveled."""
    driven = np.empty_like(points)
    if crossbar.drive_end == "first":
        driven[:, 0], driven[:, 1:] = crossbar.lines, points[:, :-1]
    else:
        driven[:, -1], driven[:, :-1] = crossbar.lines, points[:, 1:]
    return driven.reshape(-1), points.reshape(-1)


def _bit_segments(crossbar: Crossbar, points: IntArray) -> tuple[IntArray, IntArray]:
    """Return the ends of the segment on the sensed side of each point (R, N) of the bit lines, raveled."""
    sensed = np.empty_like(points)
    if crossbar.sense_end == "last":
        sensed[-1], sensed[:-1] = crossbar.bit, points[1:]
    else:
        sensed[0], sensed[1:] = crossbar.bit, points[:-1]
    return points.reshape(-1), sensed.reshape(-1)


def _segment_conductances(crossbar: Crossbar) -> list[FloatArray]:
    """Return what `_word_segments` and `_bit_segments` join with [S]."""
    word, bit = (np.full((len(crossbar.lines), len(crossbar.bit)), 1 / crossbar.r_wire) for _ in range(2))
    word_head, bit_head = crossbar.heads
    word[:, 0 if crossbar.drive_end == "first" else -1] = word_head
    bit[0 if crossbar.sense_end == "first" else -1] = bit_head
    return [word.reshape(-1), bit.reshape(-1)]


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
