"""The circuit: node names, element tables, blocks and ports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import NetlistError
from circuitsim.netlist.behavioural import BehaviouralGroup, behavioural_groups
from circuitsim.netlist.blocks import AmplifierBank, Crossbar, CurrentSense, SoftmaxLoad
from circuitsim.netlist.tables import (
    ELEMENT_TABLES,
    BehaviouralCurrents,
    BehaviouralVoltages,
    Buffers,
    Capacitors,
    Couplings,
    CurrentControlledCurrentSources,
    CurrentControlledVoltageSources,
    CurrentSources,
    Diodes,
    FloatArray,
    IdealDiodes,
    Inductors,
    IntArray,
    Resistors,
    Table,
    VoltageControlledCurrentSources,
    VoltageControlledVoltageSources,
    VoltageSources,
)

__all__ = ["GROUND", "InputPort", "Netlist", "OutputPort", "Values"]

GROUND = 0
"""Index of the reference node, named ``0``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputPort:
    """Voltage source ``source[k]`` carries ``gain[k] * u[column[k]]`` [V] for an input vector u."""

    source: IntArray
    column: IntArray
    gain: FloatArray

    @classmethod
    def none(cls) -> Self:
        return cls(source=np.empty(0, np.int64), column=np.empty(0, np.int64), gain=np.empty(0))

    @property
    def size(self) -> int:
        """Length of the input vector."""
        return int(self.column.max()) + 1 if len(self.column) else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputPort:
    """Outputs ``y[k] = v[pos[k]] - v[neg[k]]`` [V]; ``neg`` is ground for single outputs."""

    pos: IntArray
    neg: IntArray

    @classmethod
    def none(cls) -> Self:
        return cls(pos=np.empty(0, np.int64), neg=np.empty(0, np.int64))

    def read(self, node_voltage: FloatArray) -> FloatArray:
        """Return the outputs (..., K) V from node voltages (..., N) V."""
        return node_voltage[..., self.pos] - node_voltage[..., self.neg]


@dataclass(frozen=True, kw_only=True)
class Values:
    """Every value column of a netlist, apart from its structure: what one die draws and learns.

    ``tables[kind][column]``, ``banks[name][column]`` and ``senses[name]`` are arrays as in the netlist;
    ``crossbars[name]`` is ``(g_plus, g_minus or None)`` [S].
    """

    tables: Mapping[str, Mapping[str, FloatArray]]
    crossbars: Mapping[str, tuple[FloatArray, FloatArray | None]]
    banks: Mapping[str, Mapping[str, FloatArray]]
    senses: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Netlist:
    """A circuit as tables and blocks. Node 0 is ground. Validated by `circuitsim.netlist.validate`."""

    title: str = "circuit"
    node_names: tuple[str, ...] = ("0",)
    resistor: Resistors = field(default_factory=Resistors.empty)
    capacitor: Capacitors = field(default_factory=Capacitors.empty)
    inductor: Inductors = field(default_factory=Inductors.empty)
    coupling: Couplings = field(default_factory=Couplings.empty)
    diode: Diodes = field(default_factory=Diodes.empty)
    ideal_diode: IdealDiodes = field(default_factory=IdealDiodes.empty)
    vsource: VoltageSources = field(default_factory=VoltageSources.empty)
    isource: CurrentSources = field(default_factory=CurrentSources.empty)
    vccs: VoltageControlledCurrentSources = field(default_factory=VoltageControlledCurrentSources.empty)
    vcvs: VoltageControlledVoltageSources = field(default_factory=VoltageControlledVoltageSources.empty)
    cccs: CurrentControlledCurrentSources = field(default_factory=CurrentControlledCurrentSources.empty)
    ccvs: CurrentControlledVoltageSources = field(default_factory=CurrentControlledVoltageSources.empty)
    buffer: Buffers = field(default_factory=Buffers.empty)
    behavioural_current: BehaviouralCurrents = field(default_factory=BehaviouralCurrents.empty)
    behavioural_voltage: BehaviouralVoltages = field(default_factory=BehaviouralVoltages.empty)
    crossbars: tuple[Crossbar, ...] = ()
    banks: tuple[AmplifierBank, ...] = ()
    senses: tuple[CurrentSense, ...] = ()
    loads: tuple[SoftmaxLoad, ...] = ()
    inputs: InputPort = field(default_factory=InputPort.none)
    outputs: OutputPort = field(default_factory=OutputPort.none)
    groups: Mapping[str, IntArray] = field(default_factory=dict)
    """Layer name -> nodes of its neurons, for tables and figures."""

    @property
    def n_nodes(self) -> int:
        """Number of nodes, ground included."""
        return len(self.node_names)

    def tables(self) -> Iterator[Table]:
        for table in ELEMENT_TABLES:
            yield getattr(self, table.kind)

    @property
    def voltage_defined(self) -> tuple[Table, ...]:
        """The tables whose rows are branches, in the order of ``branch_names``."""
        return (self.vsource, self.vcvs, self.ccvs, self.buffer, self.inductor, self.behavioural_voltage)

    @cached_property
    def branch_starts(self) -> Mapping[str, int]:
        """First branch of each voltage-defined table, by kind; ``blocks``: where those of blocks begin."""
        starts, start = {}, 0
        for table in self.voltage_defined:
            starts[table.kind] = start
            start += len(table)
        return {**starts, "blocks": start}

    @cached_property
    def behavioural_groups(self) -> tuple[list[BehaviouralGroup], list[BehaviouralGroup]]:
        """The behavioural currents and voltages, those whose formulas differ in constants alone together."""
        sources = (self.behavioural_current, self.behavioural_voltage)
        currents, voltages = (behavioural_groups(table.expression) for table in sources)
        return currents, voltages

    @property
    def blocks(self) -> tuple[Crossbar | AmplifierBank | CurrentSense | SoftmaxLoad, ...]:
        return (*self.crossbars, *self.banks, *self.senses, *self.loads)

    def crossbar(self, name: str) -> Crossbar:
        for crossbar in self.crossbars:
            if crossbar.name == name:
                return crossbar
        known = ", ".join(c.name for c in self.crossbars) or "none"
        raise NetlistError("no such crossbar", object=name, remedy=f"Crossbars here: {known}.")

    @property
    def trainable(self) -> tuple[Crossbar, ...]:
        return tuple(crossbar for crossbar in self.crossbars if crossbar.trainable)

    @cached_property
    def node_index(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.node_names)}

    @cached_property
    def branch_names(self) -> tuple[str, ...]:
        """Names of the voltage-defined branches, in the order of ``OperatingPoint.branch_current``.

        Voltage sources, VCVS, CCVS, buffers, inductors, behavioural voltages, then each bank's positive
        and negative outputs, then each virtual ground.
        """
        names = [name for table in self.voltage_defined for name in table.name]
        for bank in self.banks:
            names += [f"{bank.name}.{self.node_names[node]}" for node in bank.out_pos]
            if bank.out_neg is not None:
                names += [f"{bank.name}.{self.node_names[node]}" for node in bank.out_neg]
        for sense in self.senses:
            names += [f"{sense.name}.{self.node_names[node]}" for node in sense.bit]
        return tuple(names)

    def device_conductances(self, crossbar: Crossbar, values: Values) -> list[tuple[IntArray, FloatArray]]:
        """Return (word lines, conductances (M, N) S) of each half of a crossbar; 0 where masked out."""
        halves = []
        for words, g in zip(
            (crossbar.word_pos, crossbar.word_neg), values.crossbars[crossbar.name], strict=True
        ):
            if words is not None and g is not None:
                halves.append((words, g if crossbar.mask is None else np.where(crossbar.mask, g, 0.0)))
        return halves

    def source_voltage(self, inputs: ArrayLike) -> FloatArray:
        """Return the voltage of every source (B, n_vsource) V for input vectors (B, n_in)."""
        u = np.atleast_2d(np.asarray(inputs, dtype=np.float64))
        voltage = np.tile(self.vsource.voltage, (u.shape[0], 1))
        if len(self.inputs.source):
            voltage[:, self.inputs.source] = u[:, self.inputs.column] * self.inputs.gain
        return voltage

    def values(self) -> Values:
        """Return the value columns as they stand in the tables and blocks."""
        tables = {
            table.kind: {column.name: getattr(table, column.name) for column in table.columns("value")}
            for table in self.tables()
        }
        banks = {
            bank.name: {name: getattr(bank, name) for name in ("gain", "saturation", "offset", "back_gain")}
            for bank in self.banks
        }
        return Values(
            tables=tables,
            crossbars={c.name: (c.g_plus, c.g_minus) for c in self.crossbars},
            banks=banks,
            senses={sense.name: sense.gain for sense in self.senses},
        )

    def with_values(self, values: Values) -> Netlist:
        """Return the same structure carrying ``values``."""
        changed: dict[str, Any] = {
            table.kind: _changed(table, values.tables[table.kind]) for table in self.tables()
        }
        changed["crossbars"] = tuple(
            replace(c, g_plus=values.crossbars[c.name][0], g_minus=values.crossbars[c.name][1])
            for c in self.crossbars
        )
        changed["banks"] = tuple(_changed(bank, values.banks[bank.name]) for bank in self.banks)
        changed["senses"] = tuple(replace(sense, gain=values.senses[sense.name]) for sense in self.senses)
        return replace(self, **changed)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over structure and values, whatever the order of nodes and rows: equal digests are equal
        circuits."""
        return self._digest(with_values=True)

    @cached_property
    def structure_digest(self) -> str:
        """SHA-256 over structure alone."""
        return self._digest(with_values=False)

    def _digest(self, *, with_values: bool) -> str:
        digest = hashlib.sha256()

        def add(label: str, value: Any) -> None:
            digest.update(f"{label}\x1f".encode())
            if value is None:
                digest.update(b"none")
            elif isinstance(value, np.ndarray):
                digest.update(f"{value.dtype.str}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            elif isinstance(value, (str, float, bool, int)):
                digest.update(repr(value).encode())
            else:
                digest.update("\x1f".join(value).encode() + b"\x1f")

        node_order, node_rank = _sorted(self.node_names)
        add("nodes", [self.node_names[k] for k in node_order])
        sorted_rows = {table.kind: _sorted(table.name) for table in self.tables()}
        for table in self.tables():
            if table.kind == "ideal_diode" and not len(table):
                # A kind that came later: circuits without it keep the digests that records hold.
                continue
            order, _ = sorted_rows[table.kind]
            add(table.kind, [table.name[k] for k in order])
            for column in table.columns():
                role, content = column.metadata["role"], getattr(table, column.name)
                if role == "expression":
                    add(
                        column.name,
                        [content[k].text(self.node_names, self.vsource.name) for k in order],
                    )
                elif role == "node":
                    add(column.name, node_rank[content[order]])
                elif role == "row":
                    add(column.name, sorted_rows[column.metadata["table"]][1][content[order]])
                elif with_values:
                    add(column.name, content[order])
        nodes = {"word_pos", "word_neg", "bit", "control", "out_pos", "out_neg", "pos", "neg", "output"}
        structural = {"mask", "driven", "name", "g_min", "g_max", "trainable", "device_names"}
        structural |= {"drive_end", "sense_end"}
        for block in self.blocks:
            for item in fields(block):
                content = getattr(block, item.name)
                if item.name in ("r_driver", "r_sense") and content == 0:
                    # Fields that came later, likewise.
                    continue
                if item.name in nodes:
                    add(item.name, None if content is None else node_rank[content])
                elif with_values or item.name in structural:
                    add(item.name, content)
        by_source = np.argsort(sorted_rows["vsource"][1][self.inputs.source])
        add("source", sorted_rows["vsource"][1][self.inputs.source[by_source]])
        add("column", self.inputs.column[by_source])
        add("gain", self.inputs.gain[by_source])
        add("pos", node_rank[self.outputs.pos])
        add("neg", node_rank[self.outputs.neg])
        return digest.hexdigest()


def _sorted(names: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Return the order that sorts names, and the rank of each."""
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return order, rank


T = TypeVar("T", Table, AmplifierBank)


def _changed(item: T, columns: Mapping[str, FloatArray]) -> T:
    changes: dict[str, Any] = dict(columns)
    return replace(item, **changes)
