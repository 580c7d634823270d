"""The circuit that a deck's elements add up to: rows, node numbers, and references that may come later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist.expressions import parse_expression
from circuitsim.netlist.netlist import GROUND, Netlist
from circuitsim.netlist.tables import ELEMENT_TABLES
from circuitsim.netlist.waveforms import Waveform
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.models import DiodeValues, Model, Temperatures
from circuitsim.spice.parameters import Scope
from circuitsim.spice.structure import Definition

__all__ = ["LARGEST", "Circuit", "Instance", "Rows"]

_TABLES = {table.kind: table for table in ELEMENT_TABLES}
LARGEST = 1e300
"""A value beyond this is checked with more care [SI]."""
_SIMPLE = {
    "r": ("resistor", "conductance", 0.0),
    "c": ("capacitor", "capacitance", 0.0),
    "l": ("inductor", "inductance", 0.0),
    "v": ("vsource", "voltage", -LARGEST),
    "i": ("isource", "current", -LARGEST),
}
_GROUND_NAMES = ("gnd", "gnd!", "ground")


class Rows:
    """The rows of one element kind, column by column."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name: list[str] = []
        self.line: list[Line] = []
        self.columns: dict[str, list[Any]] = {column.name: [] for column in _TABLES[kind].columns()}

    def add(self, line: Line, name: str, **columns: Any) -> int:
        """Append a row and return its number; columns with a default may be left out of all rows."""
        self.name.append(name)
        self.line.append(line)
        for column, value in columns.items():
            self.columns[column].append(value)
        return len(self.name) - 1


@dataclass(slots=True)
class Instance:
    """One use of a definition: the deck itself, or an X line's subcircuit.

    ``path`` is its name, ``x1.x2``; ``local`` numbers the nodes that it has seen by their names inside it.
    """

    definition: Definition
    scope: Scope
    circuit: Circuit
    path: str = ""
    caller: Instance | None = None
    local: dict[str, int] = field(default_factory=dict)
    multiplier: float = 1.0
    models: dict[str, Model] = field(default_factory=dict)
    diodes: dict[str, DiodeValues] = field(default_factory=dict)

    def node(self, word: str) -> int:
        """Return the number of a node, which is made on first use."""
        index = self.local.get(word)
        return self.circuit.new_node(self, word) if index is None else index

    def known_node(self, word: str) -> int:
        """Return the number of a node that some element connects to."""
        index = self.local.get(word)
        if index is None:
            plain = word.replace(":", ".")
            names = (f"{self.path}.{plain}", plain) if self.path else (plain,)
            index = next((self.circuit.nodes[name] for name in names if name in self.circuit.nodes), None)
        if index is None:
            raise NetlistError("is a node that no element connects to", value=word)
        return index

    def name_of(self, line: Line) -> str:
        """Return the full name of the element on a line."""
        return self.element(line.text.split(None, 1)[0].partition("(")[0])

    def element(self, word: str) -> str:
        """Return the full name of an element: ``r.x1.x2.r1``."""
        return f"{word[0]}.{self.path}.{word}" if self.path else word

    def model(self, line: Line, name: str, kinds: tuple[str, ...]) -> Model:
        """Return a model that is visible here.

        Raises:
            NetlistError: there is none, or it is of another kind.
        """
        for definition in self.definition.outward():
            if name in definition.models:
                owner = self._instance_of(definition)
                if name not in owner.models:
                    owner.models[name] = Model(definition.models[name], owner.scope)
                model = owner.models[name]
                if model.kind not in kinds:
                    raise problem(line, f"needs a model of kind {' or '.join(kinds)}", value=name)
                return model
        known = sorted({model for definition in self.definition.outward() for model in definition.models})
        remedy = f"Models here: {', '.join(known[:8])}." if known else "Add a .model line."
        raise problem(line, "names a model that is not defined", value=name, remedy=remedy)

    def has_model(self, name: str) -> bool:
        return any(name in definition.models for definition in self.definition.outward())

    def _instance_of(self, definition: Definition) -> Instance:
        instance = self
        while instance.definition is not definition and instance.caller is not None:
            instance = instance.caller
        return instance


class Circuit:
    """Collects a deck's elements; `netlist` resolves what refers to other elements, and builds the tables."""

    def __init__(
        self,
        *,
        temperatures: Temperatures,
        gmin: float,
        tolerance: float,
        global_nodes: set[str],
        replace_ground: bool,
    ) -> None:
        self.temperatures = temperatures
        self.gmin = gmin
        self.tolerance = tolerance
        self.global_nodes = global_nodes
        self.grounds = ["0", *(_GROUND_NAMES if replace_ground else _GROUND_NAMES[:1])]
        self.nodes: dict[str, int] = dict.fromkeys(self.grounds, GROUND)
        self.node_names: list[str] = ["0"]
        self.rows = {kind: Rows(kind) for kind in _TABLES}
        self.simple = {letter: self._appends(*what) for letter, what in _SIMPLE.items()}
        """What appends the columns of an element that is two nodes and a number above a bound."""
        self.diode_values: list[DiodeValues] = []
        self.waveforms: dict[str, Waveform] = {}
        self.element_initial: dict[str, float] = {}
        self.notes: list[str] = []
        self._behind: dict[str, tuple[str, int]] = {}
        self._later: list[Callable[[], None]] = []
        self._place: dict[str, tuple[str, int]] = {}
        self._sensed: dict[str, int] = {}

    def _appends(self, kind: str, column: str, least: float) -> tuple[Any, Any, Any, Any, Any, float]:
        rows = self.rows[kind]
        pos, neg, value = (rows.columns[name].append for name in ("pos", "neg", column))
        return rows.name.append, rows.line.append, pos, neg, value, least

    def new_node(self, instance: Instance, word: str) -> int:
        """Number a node that the instance meets for the first time."""
        if word[0] in "{'\"=":
            raise NetlistError("is no name of a node", value=word)
        name = word
        if instance.path and word not in self.global_nodes and not word.startswith("$g_"):
            name = f"{instance.path}.{word}"
        index = self.nodes.get(name)
        if index is None:
            index = self.nodes[name] = len(self.node_names)
            self.node_names.append(name)
        instance.local[word] = index
        return index

    def internal_node(self, name: str) -> int:
        """Return a node of no name in the deck."""
        while name in self.nodes:
            name += "_"
        index = self.nodes[name] = len(self.node_names)
        self.node_names.append(name)
        return index

    def add(self, kind: str, line: Line, name: str, **columns: Any) -> int:
        return self.rows[kind].add(line, name, **columns)

    def stands_behind(self, name: str, kind: str, row: int) -> None:
        """Say that the current of element ``name`` enters through another row: a diode's resistance."""
        self._behind[name] = (kind, row)

    def later(self, action: Callable[[], None]) -> None:
        """Do something when every element is known."""
        self._later.append(action)

    def behavioural(
        self,
        kind: str,
        instance: Instance,
        line: Line,
        text: str,
        *,
        ends: tuple[int, int],
        nodes: Mapping[str, int] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Add a behavioural source whose text is read when every element is known.

        ``nodes`` and ``sources`` give meaning to names in the text that are not the deck's.
        """
        own = instance.element(line.text.split(None, 1)[0])
        # What a deck can only write as a B source is called as one: a polynomial F or H, a switch.
        letters = {"behavioural_current": "bg", "behavioural_voltage": "be"}[kind]
        name = own if own[0] in letters else f"b.{own}"
        row = self.add(kind, line, name, pos=ends[0], neg=ends[1], expression=None)
        self.stands_behind(own, kind, row)

        def node(word: str) -> int:
            word = word.lower()
            return nodes[word] if nodes and word in nodes else instance.known_node(word)

        def source(word: str) -> int:
            word = word.lower()
            return self.source_row(instance, sources[word] if sources and word in sources else word)

        def read() -> None:
            try:
                expression = parse_expression(
                    text,
                    node=node,
                    source=source,
                    parameters=instance.scope,
                    functions=instance.scope.functions,
                )
            except NetlistError as error:
                if error.file is not None:
                    raise
                raise problem(line, error.rule, value=error.value, remedy=error.remedy) from None
            self.rows[kind].columns["expression"][row] = expression

        self._later.append(read)

    def source_row(self, instance: Instance, word: str) -> int:
        """Return the row of the voltage source that carries an element's current.

        That is the element itself if it is a voltage source; any other gets one of 0 V in series, at its
        first node.

        Raises:
            NetlistError: no element has this name.
        """
        found = self._found(instance, word)
        if found is None:
            raise NetlistError("names an element that is not there", value=word)
        kind, row = found
        if kind == "vsource":
            return row
        name = self.rows[kind].name[row]
        if name not in self._sensed:
            columns = self.rows[kind].columns
            inner = self.internal_node(f"{name}#sense")
            source = f"v_{name}"
            while source in self._place:
                source += "_"
            self._sensed[name] = self.add(
                "vsource", self.rows[kind].line[row], source, pos=columns["pos"][row], neg=inner, voltage=0.0
            )
            columns["pos"][row] = inner
        return self._sensed[name]

    def inductor_row(self, instance: Instance, word: str) -> int:
        found = self._found(instance, word)
        if found is None or found[0] != "inductor":
            raise NetlistError("names an inductor that is not there", value=word)
        return found[1]

    def _found(self, instance: Instance, word: str) -> tuple[str, int] | None:
        plain = word.replace(":", ".")
        path, _, last = plain.rpartition(".")
        names = [instance.element(plain)]
        if path and last:
            inner = f"{instance.path}.{path}" if instance.path else path
            names += [plain, f"{last[0]}.{inner}.{last}"]
        return next((self._place[name] for name in names if name in self._place), None)

    def netlist(self, title: str, *, shunt: float = 0.0) -> Netlist:
        """Resolve references and return the circuit, not yet validated.

        ``shunt`` [ohm] is the option ``rshunt``: a resistor from every node to ground, 0 for none.

        Raises:
            NetlistError: two elements of one name, or a reference to what is not there.
        """
        if self._later:
            for kind, rows in self.rows.items():
                self._place.update((name, (kind, row)) for row, name in enumerate(rows.name))
            self._place.update(self._behind)
            for action in self._later:
                action()
        self._refuse_duplicates()
        if shunt:
            self._shunt(shunt)
        self._fill_diodes()
        tables: dict[str, Any] = {kind: _table(rows) for kind, rows in self.rows.items() if rows.name}
        return Netlist(title=title, node_names=tuple(self.node_names), **tables)

    def _shunt(self, resistance: float) -> None:
        line = Line(".options rshunt", 0, None)
        for node, name in enumerate(self.node_names[1:], 1):
            self.add("resistor", line, f"r.{name}#shunt", pos=node, neg=GROUND, conductance=resistance)

    def line_of(self, kind: str, name: str) -> Line | None:
        """Return the line that a row stems from."""
        rows = self.rows.get(kind)
        return rows.line[rows.name.index(name)] if rows and name in rows.name else None

    def _fill_diodes(self) -> None:
        columns = self.rows["diode"].columns
        for name in DiodeValues.__slots__:
            if name in columns:
                columns[name] = [getattr(values, name) for values in self.diode_values]
        columns["parallel_conductance"] = [self.gmin] * len(self.diode_values)

    def _refuse_duplicates(self) -> None:
        names = [name for rows in self.rows.values() for name in rows.name]
        if len(set(names)) == len(names):
            return
        twice, _ = Counter(names).most_common(1)[0]
        lines = [
            line
            for rows in self.rows.values()
            for name, line in zip(rows.name, rows.line, strict=True)
            if name == twice
        ]
        remedy = f"First at {lines[0].place}; case is ignored."
        raise problem(lines[1], "is the name of another element too", object=twice, remedy=remedy)


def _table(rows: Rows) -> Any:
    table = _TABLES[rows.kind]
    columns: dict[str, Iterable[Any]] = {name: values for name, values in rows.columns.items() if values}
    if rows.kind == "resistor":
        columns["conductance"] = 1.0 / np.array(rows.columns["conductance"], dtype=np.float64)
    return table(name=tuple(rows.name), **columns)
