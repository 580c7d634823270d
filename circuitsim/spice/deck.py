"""Netlist -> SPICE deck: text that ngspice and Xyce both read.

Element lines are the dialect that the two share. Options carry Xyce's package names; ngspice takes
those for unknown flags and ignores them, Xyce warns of the options that only ngspice knows. Sources:
the ngspice manual, chapters 3 to 5, 7 and 11; the Xyce Reference Guide, ``.OPTIONS`` and B device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from circuitsim.netlist import Netlist, SoftmaxLoad, flatten
from circuitsim.netlist.models import thermal_voltage
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.spice.names import LegalNames, node_names

__all__ = ["DeckOptions", "deck_nodes", "write_deck"]

_WIDTH = 110
_LOWEST_GMIN = 1e-21
"""gmin where a diode has no parallel conductance [S]: 0 S could leave gmin stepping without an end."""
_LARGEST_EXPONENT = 100.0
"""exp of more than this is not taken in a softmax: its 1e-44 is as good as any smaller share."""


@dataclass(frozen=True, kw_only=True)
class DeckOptions:
    """Tolerances of the simulator, tight enough to agree with ours to rounding.

    ``thermal_voltage`` [V] turns a diode's slope voltage into an emission coefficient. It is
    ngspice's at 27 C; Xyce's constants differ from ngspice's in the fifth digit.
    """

    relative_tolerance: float = 1e-9
    voltage_tolerance: float = 1e-12
    """Largest change of a node voltage in the last Newton step [V] (ngspice)."""
    current_tolerance: float = 1e-15
    """The same of branch currents [A]."""
    iterations: int = 1000
    """Newton steps before ngspice turns to gmin and source stepping."""
    pivot_tolerance: float = 1e-24
    """Smallest matrix entry that ngspice accepts as a pivot [S]; its default, 1e-13, calls circuits
    of weak conductances singular."""
    thermal_voltage: float = field(default_factory=thermal_voltage)


def deck_nodes(netlist: Netlist) -> dict[str, str]:
    """Return the deck's name of every node, by its name in the circuit; internal nodes come last."""
    names = flatten(netlist).netlist.node_names
    return dict(zip(names, node_names(names), strict=True))


def write_deck(netlist: Netlist, *, title: str | None = None, options: DeckOptions = DeckOptions()) -> str:
    """Return the deck of a circuit's operating point: the same text for the same circuit.

    Blocks are written as their elements, with a comment over each group of lines that says which
    crossbar, bank of amplifiers or neuron it is. Devices of 0 S are left out.

    Args:
        netlist: any circuit, its input voltages in its voltage sources (see `with_inputs`).
        title: the first line; the netlist's title by default.
        options: tolerances.
    """
    writer = _Writer(netlist, flatten(netlist).netlist, options)
    lines = [f"* {_one_line(netlist.title if title is None else title)}"]
    lines += writer.node_comments()
    for section in writer.sections():
        lines += section
    lines += writer.models()
    lines += writer.options()
    lines += [".op", ".end"]
    return "\n".join(part for line in lines for part in _wrapped(line)) + "\n"


@dataclass(frozen=True)
class _Section:
    """Rows of the flat tables that belong together."""

    heading: str
    rows: Mapping[str, Iterable[int]]


class _Writer:
    """The lines of one circuit; ``_LINES`` has one function per element kind."""

    def __init__(self, blocks: Netlist, flat: Netlist, options: DeckOptions) -> None:
        self.blocks = blocks
        self.flat = flat
        self.settings = options
        self.node = node_names(flat.node_names)
        self.names = LegalNames()
        # Currents are sensed through voltage sources: their names are needed before their lines.
        self.source = [self.names.legal(name, "V") for name in flat.vsource.name]
        self.model_of: dict[tuple[float, float], str] = {}
        parallel = flat.diode.parallel_conductance
        # gmin lies in parallel with every diode: what one has beyond the least is a resistor.
        self.gmin = max(float(parallel.min()), _LOWEST_GMIN) if len(parallel) else 1e-12

    def node_comments(self) -> list[str]:
        renamed = [
            (deck, name) for deck, name in zip(self.node, self.flat.node_names, strict=True) if deck != name
        ]
        lines = [f"* node {deck} is {_one_line(name)}" for deck, name in renamed]
        return ["*", "* names of nodes here and in the circuit", *lines] if lines else []

    def sections(self) -> Iterator[list[str]]:
        text = {kind: lines(self, getattr(self.flat, kind)) for kind, lines in _LINES.items()}
        for section in _sections(self.blocks, self.flat):
            lines = [line for kind, rows in section.rows.items() for row in rows for line in text[kind][row]]
            yield ["*", f"* {_one_line(section.heading)}", *lines]
        for load in self.flat.loads:
            yield ["*", f"* {_one_line(f'softmax load {load.name}')}", *self._softmax(load)]

    def models(self) -> list[str]:
        if not self.model_of:
            return []
        cards = [
            f".model {name} D (IS={saturation!r} N={emission!r})"
            for (saturation, emission), name in self.model_of.items()
        ]
        return ["*", "* diodes", *cards]

    def options(self) -> list[str]:
        s = self.settings
        return [
            "*",
            f".options device gmin={self.gmin!r}",
            f".options nonlin reltol={s.relative_tolerance!r} abstol={s.current_tolerance!r} "
            f"vntol={s.voltage_tolerance!r} itl1={s.iterations} pivtol={s.pivot_tolerance!r}",
        ]

    def element(self, letter: str, name: str) -> str:
        return self.names.legal(name, letter)

    def ends(self, table: Any) -> Iterator[tuple[str, str, str]]:
        """Yield the name and the deck's nodes of each row of a table."""
        node = self.node
        for name, pos, neg in zip(table.name, table.pos.tolist(), table.neg.tolist(), strict=True):
            yield name, node[pos], node[neg]

    def controls(self, table: Any) -> Iterator[tuple[str, str]]:
        for pos, neg in zip(table.control_pos.tolist(), table.control_neg.tolist(), strict=True):
            yield self.node[pos], self.node[neg]

    def model(self, saturation_current: float, slope_voltage: float) -> str:
        """Return the model card for a diode's parameters, shared between equal ones."""
        key = (saturation_current, slope_voltage / float(self.settings.thermal_voltage))
        return self.model_of.setdefault(key, f"diode_{len(self.model_of) + 1}")

    def _softmax(self, load: SoftmaxLoad) -> list[str]:
        # 1 / sum_m exp((y_m - y_k)/scale) holds no exponential of a voltage itself; it takes K^2 terms.
        ends = [(self.node[p], self.node[n]) for p, n in zip(load.pos, load.neg, strict=True)]
        y = [_drop(*pair) for pair in ends]
        scale, amplitude = _constant(float(load.scale)), _constant(float(load.amplitude))
        lines = []
        for k, target in enumerate(load.target.tolist()):
            rises = [f"({y_m} - {y[k]})/{scale}" for m, y_m in enumerate(y) if m != k]
            others = [f"exp(min({rise}, {_LARGEST_EXPONENT!r}))" for rise in rises]
            share = f"1/({' + '.join(['1', *others])})"
            lines.append(
                f"{self.element('B', f'{load.name}.{k}')} {' '.join(ends[k])} "
                f"I={{{amplitude}*({share} - {_constant(target)})}}"
            )
        return lines


# Each function returns, per row of its table, the lines of that row.


def _resistors(w: _Writer, table: Any) -> list[list[str]]:
    return [
        [f"{w.element('R', name)} {pos} {neg} {1 / g!r}"] if g else []
        for (name, pos, neg), g in zip(w.ends(table), table.conductance.tolist(), strict=True)
    ]


def _capacitors(w: _Writer, table: Any) -> list[list[str]]:
    return _two_terminal(w, table, "C", table.capacitance)


def _current_sources(w: _Writer, table: Any) -> list[list[str]]:
    return _two_terminal(w, table, "I", table.current)


def _two_terminal(w: _Writer, table: Any, letter: str, values: FloatArray) -> list[list[str]]:
    return [
        [f"{w.element(letter, name)} {pos} {neg} {value!r}"]
        for (name, pos, neg), value in zip(w.ends(table), values.tolist(), strict=True)
    ]


def _diodes(w: _Writer, table: Any) -> list[list[str]]:
    found = []
    parameters = zip(
        table.saturation_current.tolist(),
        table.slope_voltage.tolist(),
        table.parallel_conductance.tolist(),
        strict=True,
    )
    for (name, pos, neg), (saturation, slope, parallel) in zip(w.ends(table), parameters, strict=True):
        lines = [f"{w.element('D', name)} {pos} {neg} {w.model(saturation, slope)}"]
        if parallel > w.gmin:
            lines.append(f"{w.element('R', f'{name}.parallel')} {pos} {neg} {1 / (parallel - w.gmin)!r}")
        found.append(lines)
    return found


def _voltage_sources(w: _Writer, table: Any) -> list[list[str]]:
    return [
        [f"{source} {pos} {neg} {value!r}"]
        for source, (_, pos, neg), value in zip(w.source, w.ends(table), table.voltage.tolist(), strict=True)
    ]


def _voltage_controlled(letter: str, column: str) -> Callable[[_Writer, Any], list[list[str]]]:
    def lines(w: _Writer, table: Any) -> list[list[str]]:
        values = getattr(table, column).tolist()
        return [
            [f"{w.element(letter, name)} {pos} {neg} {c_pos} {c_neg} {value!r}"]
            for (name, pos, neg), (c_pos, c_neg), value in zip(
                w.ends(table), w.controls(table), values, strict=True
            )
        ]

    return lines


def _current_controlled(letter: str, column: str) -> Callable[[_Writer, Any], list[list[str]]]:
    def lines(w: _Writer, table: Any) -> list[list[str]]:
        values = zip(table.control.tolist(), getattr(table, column).tolist(), strict=True)
        return [
            [f"{w.element(letter, name)} {pos} {neg} {w.source[control]} {value!r}"]
            for (name, pos, neg), (control, value) in zip(w.ends(table), values, strict=True)
        ]

    return lines


def _buffers(w: _Writer, table: Any) -> list[list[str]]:
    found = []
    parameters = zip(table.gain.tolist(), table.saturation.tolist(), table.offset.tolist(), strict=True)
    for (name, pos, neg), control, (gain, saturation, offset) in zip(
        w.ends(table), w.controls(table), parameters, strict=True
    ):
        if saturation == np.inf and offset == 0:
            found.append([f"{w.element('E', name)} {pos} {neg} {control[0]} {control[1]} {gain!r}"])
            continue
        drop = _drop(*control)
        linear = f"{_constant(gain)}*({f'{drop} + {_constant(offset)}' if offset else drop})"
        if saturation != np.inf:
            limit = _constant(saturation)
            linear = f"{limit}*tanh({linear}/{limit})"
        found.append([f"{w.element('B', name)} {pos} {neg} V={{{linear}}}"])
    return found


_LINES: dict[str, Callable[[_Writer, Any], list[list[str]]]] = {
    "vsource": _voltage_sources,
    "isource": _current_sources,
    "capacitor": _capacitors,
    "resistor": _resistors,
    "diode": _diodes,
    "vccs": _voltage_controlled("G", "transconductance"),
    "vcvs": _voltage_controlled("E", "gain"),
    "cccs": _current_controlled("F", "gain"),
    "ccvs": _current_controlled("H", "transresistance"),
    "buffer": _buffers,
}


def _sections(blocks: Netlist, flat: Netlist) -> Iterator[_Section]:
    """Yield the rows of the flat tables by what they came from, in the order in which `flatten` writes."""
    start = {table.kind: len(table) for table in blocks.tables()}
    yield from _own_sections(blocks)

    def take(kind: str, count: int) -> range:
        rows = range(start[kind], start[kind] + count)
        start[kind] += count
        return rows

    for crossbar in blocks.crossbars:
        m, n = crossbar.shape
        size = crossbar.devices // (2 if crossbar.differential else 1)
        for half, words in (("positive", crossbar.word_pos), ("negative", crossbar.word_neg)):
            if words is None:
                continue
            rows = take("resistor", size)
            heading = f"crossbar {crossbar.name}, {half} word lines: {m} word lines, {n} bit lines"
            absent = int(np.count_nonzero(flat.resistor.conductance[rows.start : rows.stop] == 0))
            if absent:
                heading += f"; {absent} devices of 0 S are left out"
            yield _Section(heading, {"resistor": rows})
    for bank in blocks.banks:
        for half, outputs in (("positive", bank.out_pos), ("negative", bank.out_neg)):
            if outputs is None:
                continue
            size = len(outputs)
            section: dict[str, Iterable[int]] = {}
            if not bank.one_way:
                section = {"vsource": take("vsource", size), "cccs": take("cccs", size)}
            section["buffer"] = take("buffer", size)
            yield _Section(f"amplifier bank {bank.name}, {half} outputs", section)
    for sense in blocks.senses:
        size = len(sense.bit)
        rows = take("vsource", size)
        yield _Section(f"virtual grounds {sense.name}", {"vsource": rows, "cccs": take("cccs", size)})
    for table in flat.tables():
        assert start[table.kind] == len(table), f"rows of {table.kind} that belong to nothing"


def _own_sections(netlist: Netlist) -> Iterator[_Section]:
    """Yield the elements of the tables: those of no neuron, then those of each neuron in turn.

    An element belongs to a neuron if it touches that neuron's node and no other's.
    """
    owner = np.full(netlist.n_nodes, -1, dtype=np.int64)
    labels: list[str] = []
    for layer, nodes in netlist.groups.items():
        owner[nodes] = np.arange(len(labels), len(labels) + len(nodes))
        labels += [f"layer {layer}, neuron {netlist.node_names[node]}" for node in nodes]
    rows: list[dict[str, list[int]]] = [{} for _ in range(len(labels) + 1)]
    for kind in _LINES:
        table = getattr(netlist, kind)
        owners = [owner[getattr(table, column.name)] for column in table.columns("node")]
        for row, which in enumerate(_only_owner(owners).tolist()):
            rows[which].setdefault(kind, []).append(row)
    if rows[-1]:
        yield _Section("sources and elements between neurons" if labels else "elements", rows[-1])
    for label, own in zip(labels, rows[:-1], strict=True):
        if own:
            yield _Section(label, own)


def _only_owner(owners: Sequence[IntArray]) -> IntArray:
    """Return, per row, the one owner that is named, or -1 for none and for more than one."""
    stacked = np.stack(owners)
    highest = stacked.max(axis=0)
    lowest = np.where(stacked < 0, highest, stacked).min(axis=0)
    return np.where(lowest == highest, highest, -1)


def _drop(pos: str, neg: str) -> str:
    """Return the expression of the voltage between two of the deck's nodes."""
    if pos == neg:
        return "0"
    if neg == "0":
        return f"v({pos})"
    return f"(0 - v({neg}))" if pos == "0" else f"(v({pos}) - v({neg}))"


def _constant(value: float) -> str:
    """Return a number for an expression, in brackets where it is more than one digit string.

    ngspice rounds each number inside an expression to 11 significant digits (measured with version
    39; not so on other lines), so a longer one is written as a sum of two.
    """
    head = float(f"{value:.10e}")
    rest = float(f"{value - head:.10e}")
    if rest:
        return f"({head!r} {'-' if rest < 0 else '+'} {abs(rest)!r})"
    return repr(head) if head >= 0 else f"({head!r})"


def _one_line(text: str) -> str:
    """Return text fit for a comment: one line, ASCII."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def _wrapped(line: str) -> Iterator[str]:
    """Break a long line at spaces into continuation lines; a comment goes on as a comment."""
    if len(line) <= _WIDTH:
        yield line
        return
    mark = "*  " if line.startswith("*") else "+ "
    head = ""
    for word in line.split(" "):
        if head and len(head) + 1 + len(word) > _WIDTH:
            yield head
            head = mark + word
        else:
            head = f"{head} {word}" if head else word
    yield head
