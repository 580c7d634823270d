"""Write a circuit down element by element, then `build()` it: checked and frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import NetlistError
from circuitsim.netlist.blocks import AmplifierBank, Crossbar, CurrentSense, SoftmaxLoad
from circuitsim.netlist.netlist import GROUND, InputPort, Netlist, OutputPort
from circuitsim.netlist.tables import ELEMENT_TABLES, FloatArray, IntArray, Table
from circuitsim.netlist.validate import validate

if TYPE_CHECKING:
    from circuitsim.netlist.expressions import Expression

__all__ = ["NetlistBuilder"]

_TABLES = {table.kind: table for table in ELEMENT_TABLES}


class NetlistBuilder:
    """Collects nodes, elements and blocks; nodes are made on first use of their name.

    >>> builder = NetlistBuilder("divider")
    >>> builder.add("vsource", "in", "a", "0", voltage=1.0)
    >>> builder.add("resistor", "top", "a", "b", conductance=1e-3)
    >>> builder.add("resistor", "bottom", "b", "0", conductance=1e-3)
    >>> builder.build().n_nodes
    3
    """

    def __init__(self, title: str = "circuit") -> None:
        self.title = title
        self._nodes: dict[str, int] = {"0": GROUND, "gnd": GROUND}
        self._names: list[str] = ["0"]
        self._rows: dict[str, list[tuple[Sequence[str], dict[str, Any]]]] = {kind: [] for kind in _TABLES}
        # Rows by name, of the tables that other tables refer to.
        self._row_of: dict[str, dict[str, int]] = {"vsource": {}, "inductor": {}}
        self._crossbars: list[Crossbar] = []
        self._banks: list[AmplifierBank] = []
        self._senses: list[CurrentSense] = []
        self._loads: list[SoftmaxLoad] = []
        self._inputs: list[tuple[IntArray, IntArray, FloatArray]] = []
        self._outputs = OutputPort.none()
        self._groups: dict[str, IntArray] = {}

    @classmethod
    def extending(cls, netlist: Netlist) -> NetlistBuilder:
        """Start from an existing circuit; its nodes, rows and blocks keep their numbers."""
        builder = cls(netlist.title)
        builder._names = list(netlist.node_names)
        builder._nodes |= {name: index for index, name in enumerate(netlist.node_names)}
        for table in netlist.tables():
            if len(table):
                columns = {column.name: getattr(table, column.name) for column in table.columns()}
                builder._rows[table.kind].append((table.name, columns))
        for kind, known in builder._row_of.items():
            known |= {name: row for row, name in enumerate(getattr(netlist, kind).name)}
        builder._crossbars = list(netlist.crossbars)
        builder._banks = list(netlist.banks)
        builder._senses = list(netlist.senses)
        builder._loads = list(netlist.loads)
        builder._inputs = [(netlist.inputs.source, netlist.inputs.column, netlist.inputs.gain)]
        builder._outputs = netlist.outputs
        builder._groups = dict(netlist.groups)
        return builder

    def node(self, name: str) -> int:
        """Return the index of a node, making it if it is new."""
        if name not in self._nodes:
            self._nodes[name] = len(self._names)
            self._names.append(name)
        return self._nodes[name]

    def nodes(self, names: Iterable[str]) -> IntArray:
        return np.array([self.node(name) for name in names], dtype=np.int64)

    def group(self, name: str, nodes: ArrayLike) -> None:
        """Name a set of nodes: a layer of neurons."""
        self._groups[name] = np.asarray(nodes, dtype=np.int64)

    def add(
        self,
        kind: str,
        name: str,
        *nodes: str,
        control: str | None = None,
        expression: Expression | None = None,
        coupled: tuple[str, str] | None = None,
        **values: float,
    ) -> None:
        """Add one element. ``nodes`` are names in the order of the table's node columns.

        ``control`` names the voltage source whose current a CCCS or CCVS reads, ``coupled`` the inductors
        of a coupling; ``expression`` is what a behavioural source follows. Values with a default may be
        left out.
        """
        if kind not in _TABLES:
            raise NetlistError(
                "no such kind of element", object=name, value=kind, remedy=f"Known: {', '.join(_TABLES)}."
            )
        table = _TABLES[kind]
        wanted = [column.name for column in table.columns("node")]
        if len(nodes) != len(wanted):
            raise NetlistError(f"a {kind} has the nodes {', '.join(wanted)}", object=name, value=nodes)
        expected = {column.name for column in table.columns("value")}
        needed = {column.name for column in table.columns("value") if column.metadata["default"] is None}
        if not needed <= set(values) <= expected:
            raise NetlistError(
                f"a {kind} has the values {', '.join(sorted(expected))}", object=name, value=sorted(values)
            )
        columns: dict[str, Any] = {
            column: np.array([self.node(node)]) for column, node in zip(wanted, nodes, strict=True)
        }
        referred = list(coupled or (str(control),))
        for column in table.columns("row"):
            columns[column.name] = self.rows_of(column.metadata["table"], [referred.pop(0)])
        for column in table.columns("expression"):
            if expression is None:
                raise NetlistError(f"a {kind} needs an expression", object=name)
            columns[column.name] = (expression,)
        self._append(kind, (name,), {**columns, **{k: np.array([v]) for k, v in values.items()}})

    def add_rows(self, kind: str, names: Sequence[str], **columns: Any) -> None:
        """Add many elements at once, by node indices and value arrays; scalars are repeated.

        Values with a default may be left out.
        """
        arrays = {
            key: tuple(value) if key == "expression" else np.broadcast_to(np.asarray(value), (len(names),))
            for key, value in columns.items()
        }
        self._append(kind, names, arrays)

    def _append(self, kind: str, names: Sequence[str], columns: dict[str, Any]) -> None:
        for column in _TABLES[kind].columns("value"):
            default = column.metadata["default"]
            if default is not None and column.name not in columns:
                columns[column.name] = np.full(len(names), default)
        if kind in self._row_of:
            known = self._row_of[kind]
            first = len(known)
            known |= {name: first + k for k, name in enumerate(names)}
        self._rows[kind].append((names, columns))

    def rows_of(self, kind: str, names: Iterable[str]) -> IntArray:
        """Return the rows of voltage sources or inductors by name; they must have been added before."""
        rows = []
        for name in names:
            if name not in self._row_of[kind]:
                what = {"vsource": "voltage source"}.get(kind, kind)
                raise NetlistError(f"no {what} of this name has been added", value=name)
            rows.append(self._row_of[kind][name])
        return np.array(rows, dtype=np.int64)

    def crossbar(self, crossbar: Crossbar) -> None:
        self._crossbars.append(crossbar)

    def bank(self, bank: AmplifierBank) -> None:
        self._banks.append(bank)

    def sense(self, sense: CurrentSense) -> None:
        self._senses.append(sense)

    def load(self, load: SoftmaxLoad) -> None:
        self._loads.append(load)

    def inputs(self, sources: Sequence[str], columns: ArrayLike, gain: ArrayLike = 1.0) -> None:
        """Let ``sources`` be driven by ``gain`` times the given columns of the input vector."""
        rows = self.rows_of("vsource", sources)
        gains = np.array(np.broadcast_to(np.asarray(gain, dtype=np.float64), rows.shape))
        self._inputs.append((rows, np.asarray(columns, dtype=np.int64), gains))

    def outputs(self, pos: ArrayLike, neg: ArrayLike = GROUND) -> None:
        """Declare outputs ``v[pos] - v[neg]``."""
        p = np.asarray(pos, dtype=np.int64).reshape(-1)
        n = np.array(np.broadcast_to(np.asarray(neg, dtype=np.int64), p.shape))
        self._outputs = OutputPort(pos=p, neg=n)

    def build(self, *, check: bool = True, at_rest: bool = True) -> Netlist:
        """Freeze the circuit, after `validate` unless ``check`` is off.

        Raises:
            NetlistError: every problem found, in one message.
        """
        tables: dict[str, Any] = {}
        for kind, parts in self._rows.items():
            if parts:
                tables[kind] = _join(_TABLES[kind], parts)
        inputs = InputPort.none()
        if self._inputs:
            source, column, gain = (np.concatenate(part) for part in zip(*self._inputs, strict=True))
            inputs = InputPort(source=source, column=column, gain=gain)
        netlist = Netlist(
            title=self.title,
            node_names=tuple(self._names),
            crossbars=tuple(self._crossbars),
            banks=tuple(self._banks),
            senses=tuple(self._senses),
            loads=tuple(self._loads),
            inputs=inputs,
            outputs=self._outputs,
            groups=dict(self._groups),
            **tables,
        )
        if check:
            validate(netlist, at_rest=at_rest)
        return netlist

    def build_like(self, netlist: Netlist) -> Netlist:
        """Build without checks and keep the ports of ``netlist``: for circuits derived from it."""
        return replace(self.build(check=False), inputs=netlist.inputs, outputs=netlist.outputs)


def _join(table: type[Table], parts: list[tuple[Sequence[str], dict[str, Any]]]) -> Table:
    if len(parts) == 1:
        names, columns = parts[0]
        return table(name=names if not isinstance(names, list) else tuple(names), **columns)
    names = tuple(name for part, _ in parts for name in part)
    joined = {
        column.name: tuple(item for _, columns in parts for item in columns[column.name])
        if column.metadata["role"] == "expression"
        else np.concatenate([columns[column.name] for _, columns in parts])
        for column in table.columns()
    }
    return table(name=names, **joined)
