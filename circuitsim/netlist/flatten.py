"""Blocks written out as plain elements: the same circuit, for solvers and simulators without blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
    ``internal_copy[k]``. ``branch[k]`` is the flat branch that carries branch k of the block netlist;
    source ``sense_row[k]`` carries the current of block branch ``sense_branch[k]``, negated.
    """

    netlist: Netlist
    blocks: Netlist
    branch: IntArray
    internal_copy: IntArray
    sense_row: IntArray
    sense_branch: IntArray

    def lift(self, voltage: FloatArray, current: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return flat node voltages and branch currents for those of the block netlist (B, N), (B, M)."""
        v = np.concatenate([voltage, voltage[:, self.internal_copy]], axis=1)
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

    A two-way bank senses the current of each output with a 0 V source behind an internal node.
    Node numbers, voltage source rows and ports of ``netlist`` stay valid.
    """
    names = list(netlist.node_names)
    taken = set(names)
    resistors = _Rows(netlist.resistor)
    buffers = _Rows(netlist.buffer)
    sources = _Rows(netlist.vsource)
    feedback = _Rows(netlist.cccs)
    for crossbar in netlist.crossbars:
        m, n = crossbar.shape
        if crossbar.mask is None:
            j, i = np.divmod(np.arange(m * n), n)
        else:
            j, i = np.nonzero(crossbar.mask)
        for half, words in (("p", crossbar.word_pos), ("n", crossbar.word_neg)):
            if words is not None:
                resistors.add(_device_name(crossbar.name, half, j, i), pos=words[j], neg=crossbar.bit[i])

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

    nothing = np.empty(0, np.int64)
    links = {
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


def _device_name(crossbar: str, half: str, j: IntArray, i: IntArray) -> tuple[int, Callable[[int], str]]:
    return len(j), lambda k: f"{crossbar}.{half}.{j[k]}.{i[k]}"


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
