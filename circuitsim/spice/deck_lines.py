"""The lines of a deck: its elements kind by kind, its model cards, options and analyses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist, SoftmaxLoad
from circuitsim.netlist.expressions import Current
from circuitsim.netlist.tables import FloatArray
from circuitsim.netlist.waveforms import PiecewiseLinear, Waveform
from circuitsim.spice.deck_file import Analysis, Deck, SweepAnalysis, TransientAnalysis
from circuitsim.spice.names import LegalNames, node_names

__all__ = ["KINDS", "DeckLines", "expression_constant", "keeps_brackets", "one_line"]

_LOWEST_GMIN = 1e-21
"""gmin where a diode has no parallel conductance [S]: 0 S could leave gmin stepping without an end."""
_LARGEST_EXPONENT = 100.0
"""exp of more than this is not taken in a softmax: its 1e-44 is as good as any smaller share."""
_ANCHORS = {"held": "what it is held at", "anchor": "anchor of its swapped source"}
"""Ends of the names of sources that carry anchor values, see `circuitsim.netlist.adjoint`."""


class DeckLines:
    """Writes one flat circuit; ``rows(kind)`` are the lines of each row of a table, joined, perhaps none."""

    def __init__(self, deck: Deck, flat: Netlist, thermal_voltage: float) -> None:
        self.deck = deck
        self.flat = flat
        self.thermal_voltage = thermal_voltage
        brackets = keeps_brackets(flat)
        self.node = node_names(flat.node_names, brackets=brackets)
        # Names of a block's elements are made when they are asked for: once is enough.
        self.given_names = {kind: list(getattr(flat, kind).name) for kind in KINDS}
        self._names = LegalNames(brackets=brackets)
        self._parameter_names = LegalNames(brackets=False)
        # Other lines refer to sources and inductors, so their names come before any line.
        self.source = self._names.elements(flat.vsource.name, "V", _sensed_sources(flat))
        coupled = {*flat.coupling.first.tolist(), *flat.coupling.second.tolist()}
        self.inductor = self._names.elements(flat.inductor.name, "L", coupled)
        self._written: dict[str, list[str]] = {"V": self.source}
        self._models: dict[str, str] = {}
        parallel = flat.diode.parallel_conductance
        # gmin lies in parallel with every diode: what one has beyond the least is a resistor.
        self.gmin = float(parallel.min()) if len(parallel) else 1e-12
        if self.gmin != deck.options.get("gmin"):
            self.gmin = max(self.gmin, _LOWEST_GMIN)

    def rows(self, kind: str) -> list[str]:
        return KINDS[kind](self, getattr(self.flat, kind))

    def elements(self, letter: str, names: Iterable[str]) -> list[str]:
        return self._names.elements(names, letter)

    def named(self, letter: str, table: Any) -> Iterator[tuple[str, str, str]]:
        """Return the deck's name and nodes of each row of a table."""
        names = self.elements(letter, self.given_names[table.kind])
        self._written[letter] = names
        return self.with_ends(names, table)

    def lettered(self, letters: Sequence[str], names: Sequence[str]) -> list[str]:
        """Return the deck's names of elements of one table that are written as different kinds."""
        found = [""] * len(names)
        for letter in sorted(set(letters)):
            rows = [row for row, own in enumerate(letters) if own == letter]
            for row, name in zip(rows, self.elements(letter, (names[row] for row in rows)), strict=True):
                found[row] = name
        return found

    def with_ends(self, names: Iterable[str], table: Any) -> Iterator[tuple[str, str, str]]:
        node = self.node.__getitem__
        return zip(names, map(node, table.pos.tolist()), map(node, table.neg.tolist()), strict=True)

    def controls(self, table: Any) -> Iterator[tuple[str, str]]:
        node = self.node.__getitem__
        ends = table.control_pos.tolist(), table.control_neg.tolist()
        return zip(map(node, ends[0]), map(node, ends[1]), strict=True)

    def source_values(self, table: Any, values: FloatArray, unit: str) -> Iterator[tuple[str, str]]:
        """Return the definition before each row of a source table, if any, and the row's value."""
        for name, value in zip(table.name, values.tolist(), strict=True):
            stem, _, last = name.rpartition(".")
            # Sources of the dual network hold 0 V: they only sense.
            if not stem or last not in _ANCHORS or (value == 0 and name.startswith("d.")):
                definition, text = "", repr(value)
            else:
                (parameter,) = self._parameter_names.plain([f"{last}_{stem}"])
                definition = f".param {parameter}={value!r} ; {one_line(stem)}: {_ANCHORS[last]} [{unit}]\n"
                text = f"{{{parameter}}}"
            waveform = self.deck.waveforms.get(name)
            yield definition, text if waveform is None else f"DC {text} {_waveform(waveform)}"

    def initial(self, table: Any) -> Iterator[str]:
        """Return what follows the value of each capacitor or inductor."""
        given = self.deck.element_initial
        if not given:
            return repeat("", len(table))
        return (f" ic={float(given[name])!r}" if name in given else "" for name in table.name)

    def model(self, card: str) -> str:
        """Return the name of a diode's model card, shared between equal ones."""
        return self._models.setdefault(card, f"diode_{len(self._models) + 1}")

    def models(self) -> list[str]:
        return [f".model {name} D ({card})" for card, name in self._models.items()]

    def softmax(self, load: SoftmaxLoad) -> list[str]:
        # 1 / sum_m exp((y_m - y_k)/scale) holds no exponential of a voltage itself; it takes K^2 terms.
        ends = [(self.node[p], self.node[n]) for p, n in zip(load.pos, load.neg, strict=True)]
        y = [_drop(*pair) for pair in ends]
        names = self.elements("B", (f"{load.name}.{k}" for k in range(len(ends))))
        scale, amplitude = expression_constant(float(load.scale)), expression_constant(float(load.amplitude))
        lines = []
        for k, target in enumerate(load.target.tolist()):
            rises = [f"({y_m} - {y[k]})/{scale}" for m, y_m in enumerate(y) if m != k]
            others = [f"exp(min({rise}, {_LARGEST_EXPONENT!r}))" for rise in rises]
            share = f"1/({' + '.join(['1', *others])})"
            lines.append(
                f"{names[k]} {' '.join(ends[k])} I={{{amplitude}*({share} - {expression_constant(target)})}}"
            )
        return lines

    def start(self) -> list[str]:
        """Return the initial conditions and first guesses of nodes."""
        deck = dict(zip(self.flat.node_names, self.node, strict=True))
        lines = []
        for command, voltages in ((".ic", self.deck.initial_voltage), (".nodeset", self.deck.nodeset)):
            for name, voltage in voltages.items():
                if name not in deck:
                    raise NetlistError("no such node", object=command, value=name)
                lines.append(f"{command} v({deck[name]})={float(voltage)!r}")
        return lines

    def analysis(self, analysis: Analysis) -> str:
        if isinstance(analysis, SweepAnalysis):
            sweeps = (
                f"{self._swept(s.source)} {float(s.start)!r} {float(s.stop)!r} {float(s.step)!r}"
                for s in analysis.sweeps
            )
            return f".dc {' '.join(sweeps)}"
        if not isinstance(analysis, TransientAnalysis):
            return ".op"
        numbers = [analysis.step, analysis.stop]
        if analysis.start or analysis.largest_step is not None:
            numbers.append(analysis.start)
        if analysis.largest_step is not None:
            numbers.append(analysis.largest_step)
        return " ".join([".tran", *map(repr, map(float, numbers)), *(["uic"] if analysis.uic else [])])

    def _swept(self, name: str) -> str:
        for letter, table in (("V", self.flat.vsource), ("I", self.flat.isource), ("R", self.flat.resistor)):
            if name in table.name:
                return self._written[letter][list(table.name).index(name)]
        raise NetlistError("no such source", object=".dc", value=name)


def _sensed_sources(netlist: Netlist) -> set[int]:
    """Return the rows of the voltage sources whose current something reads."""
    expressions = (*netlist.behavioural_current.expression, *netlist.behavioural_voltage.expression)
    read = {entry.source for e in expressions for entry in e.inputs if isinstance(entry, Current)}
    return read | {*netlist.cccs.control.tolist(), *netlist.ccvs.control.tolist()}


def _shortened(numbers: FloatArray, same: Callable[[FloatArray], NDArray[np.bool_]]) -> list[float]:
    """Return numbers of 15 digits at most where these are the ``same``, the given ones elsewhere."""
    with np.errstate(all="ignore"):
        scale = 10.0 ** np.maximum(14 - np.floor(np.log10(np.abs(numbers))), 0)
        short = np.rint(numbers * scale) / scale
        return [*np.where(same(short), short, numbers).tolist()]


def keeps_brackets(netlist: Netlist) -> bool:
    """Tell whether names keep their brackets: those of a drawn circuit do, neuron ``h[0]`` is ``h_0``."""
    return not netlist.groups


def one_line(text: str) -> str:
    """Return text fit for a comment: one line, ASCII."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def expression_constant(value: float) -> str:
    """Return a number for an expression, in brackets where it is more than one digit string.

    ngspice rounds each number inside an expression to 11 significant digits (measured with version
    39; not so on other lines), so a longer one is written as a sum of two.
    """
    head = float(f"{value:.10e}")
    rest = float(f"{value - head:.6e}")
    if head + rest != value:
        rest = float(f"{value - head:.10e}")
    if rest:
        return f"({head!r} {'-' if rest < 0 else '+'} {abs(rest)!r})"
    return repr(head) if head >= 0 else f"({head!r})"


def _waveform(waveform: Waveform) -> str:
    numbers = [float(number) for number in waveform.arguments()]
    extra = ""
    if isinstance(waveform, PiecewiseLinear):
        if waveform.repeat_from is not None:
            extra += f" r={float(waveform.repeat_from)!r}"
        if waveform.delay:
            extra += f" td={float(waveform.delay)!r}"
    else:
        # A zero at the end is what is taken when nothing is there.
        while len(numbers) > 2 and numbers[-1] == 0:
            numbers.pop()
    return f"{waveform.keyword}({' '.join(map(repr, numbers))}){extra}"


def _drop(pos: str, neg: str) -> str:
    """Return the expression of the voltage between two of the deck's nodes."""
    if pos == neg:
        return "0"
    if neg == "0":
        return f"v({pos})"
    return f"(0 - v({neg}))" if pos == "0" else f"(v({pos}) - v({neg}))"


# Each function returns, per row of its table, the lines of that row.


def _resistors(w: DeckLines, table: Any) -> list[str]:
    # If a conductance is the reciprocal of any number, it is that of its own reciprocal.
    g = table.conductance
    with np.errstate(divide="ignore", over="ignore"):
        resistance = _shortened(1.0 / g, lambda r: 1.0 / r == g)
    return [
        f"{name} {pos} {neg} {value!r}" if value != np.inf else ""
        for (name, pos, neg), value in zip(w.named("R", table), resistance, strict=True)
    ]


def _capacitors(w: DeckLines, table: Any) -> list[str]:
    values = zip(table.capacitance.tolist(), w.initial(table), strict=True)
    return [
        f"{name} {pos} {neg} {value!r}{initial}"
        for (name, pos, neg), (value, initial) in zip(w.named("C", table), values, strict=True)
    ]


def _inductors(w: DeckLines, table: Any) -> list[str]:
    values = zip(table.inductance.tolist(), w.initial(table), strict=True)
    return [
        f"{name} {pos} {neg} {value!r}{initial}"
        for (name, pos, neg), (value, initial) in zip(w.with_ends(w.inductor, table), values, strict=True)
    ]


def _couplings(w: DeckLines, table: Any) -> list[str]:
    rows = zip(table.first.tolist(), table.second.tolist(), table.coefficient.tolist(), strict=True)
    return [
        f"{name} {w.inductor[first]} {w.inductor[second]} {value!r}"
        for name, (first, second, value) in zip(w.elements("K", table.name), rows, strict=True)
    ]


def _current_sources(w: DeckLines, table: Any) -> list[str]:
    values = w.source_values(table, table.current, "A")
    return [
        f"{definition}{name} {pos} {neg} {value}"
        for (name, pos, neg), (definition, value) in zip(w.named("I", table), values, strict=True)
    ]


def _voltage_sources(w: DeckLines, table: Any) -> list[str]:
    values = w.source_values(table, table.voltage, "V")
    return [
        f"{definition}{name} {pos} {neg} {value}"
        for (name, pos, neg), (definition, value) in zip(w.with_ends(w.source, table), values, strict=True)
    ]


def _diodes(w: DeckLines, table: Any) -> list[str]:
    columns = [getattr(table, column.name).tolist() for column in table.columns("value")]
    vt = w.thermal_voltage
    slope = _shortened(table.slope_voltage / vt, lambda n: n * vt == table.slope_voltage)
    avalanche = _shortened(table.breakdown_slope / vt, lambda n: n * vt == table.breakdown_slope)
    rows = zip(*columns, slope, avalanche, strict=True)
    names = [column.name for column in table.columns("value")] + ["emission", "breakdown_emission"]
    found = []
    extra = []
    for (name, pos, neg), row_values in zip(w.named("D", table), rows, strict=True):
        values = dict(zip(names, row_values, strict=True))
        found.append(f"{name} {pos} {neg} {w.model(_diode_card(values, vt))}")
        parallel = values["parallel_conductance"]
        extra.append(parallel - w.gmin if parallel > w.gmin else 0.0)
    wider = [row for row, g in enumerate(extra) if g]
    resistors = w.elements("R", (f"{table.name[row]}.parallel" for row in wider))
    for row, name in zip(wider, resistors, strict=True):
        pos, neg = w.node[table.pos[row]], w.node[table.neg[row]]
        found[row] += f"\n{name} {pos} {neg} {1 / extra[row]!r}"
    return found


def _ideal_diodes(w: DeckLines, table: Any) -> list[str]:
    return [
        f"{name} {pos} {neg} I={{{expression_constant(value)}*max({_drop(pos, neg)}, 0)}}"
        for (name, pos, neg), value in zip(w.named("B", table), table.conductance.tolist(), strict=True)
    ]


def _diode_card(row: Mapping[str, float], thermal_voltage: float) -> str:
    """Return the parameters of a model card whose defaults are those of the diode table."""
    parts = [f"IS={row['saturation_current']!r} N={row['emission']!r}"]
    if row["breakdown_voltage"] != np.inf:
        # Up to this current at the knee a simulator takes BV as it is, else it moves it.
        knee = row["saturation_current"] * row["breakdown_voltage"] / thermal_voltage
        parts.append(f"BV={row['breakdown_voltage']!r} IBV={0.5 * knee!r} NBV={row['breakdown_emission']!r}")
    for key, column, default in (
        ("CJO", "junction_capacitance", 0.0),
        ("VJ", "junction_potential", 1.0),
        ("M", "grading", 0.5),
        ("FC", "depletion_limit", 0.5),
        ("TT", "transit_time", 0.0),
    ):
        if row[column] != default:
            parts.append(f"{key}={row[column]!r}")
    return " ".join(parts)


def _transconductances(w: DeckLines, table: Any) -> list[str]:
    # A resistor of negative resistance is read as a VCCS across itself: it stays a resistor.
    ends = (column.tolist() for column in (table.pos, table.neg, table.control_pos, table.control_neg))
    values = table.transconductance.tolist()
    letters = [
        "R" if value < 0 and (p, n) == (cp, cn) and name.startswith(("r", "R")) else "G"
        for name, value, p, n, cp, cn in zip(table.name, values, *ends, strict=True)
    ]
    return [
        f"{name} {pos} {neg} {1 / value!r}"
        if letter == "R"
        else f"{name} {pos} {neg} {c_pos} {c_neg} {value!r}"
        for (name, pos, neg), (c_pos, c_neg), value, letter in zip(
            w.with_ends(w.lettered(letters, table.name), table),
            w.controls(table),
            values,
            letters,
            strict=True,
        )
    ]


def _voltage_gains(w: DeckLines, table: Any) -> list[str]:
    return [
        f"{name} {pos} {neg} {c_pos} {c_neg} {value!r}"
        for (name, pos, neg), (c_pos, c_neg), value in zip(
            w.named("E", table), w.controls(table), table.gain.tolist(), strict=True
        )
    ]


def _current_controlled(letter: str, column: str) -> Callable[[DeckLines, Any], list[str]]:
    def lines(w: DeckLines, table: Any) -> list[str]:
        values = zip(table.control.tolist(), getattr(table, column).tolist(), strict=True)
        return [
            f"{name} {pos} {neg} {w.source[control]} {value!r}"
            for (name, pos, neg), (control, value) in zip(w.named(letter, table), values, strict=True)
        ]

    return lines


def _buffers(w: DeckLines, table: Any) -> list[str]:
    rows = list(zip(table.gain.tolist(), table.saturation.tolist(), table.offset.tolist(), strict=True))
    letters = ["E" if saturation == np.inf and offset == 0 else "B" for _, saturation, offset in rows]
    names = w.lettered(letters, table.name)
    return [
        f"{name} {pos} {neg} {control[0]} {control[1]} {row[0]!r}"
        if letter == "E"
        else f"{name} {pos} {neg} V={{{_amplified(_drop(*control), *row)}}}"
        for (name, pos, neg), control, row, letter in zip(
            w.with_ends(names, table), w.controls(table), rows, letters, strict=True
        )
    ]


def _amplified(drop: str, gain: float, saturation: float, offset: float) -> str:
    inside = f"({drop} + {expression_constant(offset)})" if offset else f"({drop})"
    linear = f"{expression_constant(gain)}*{inside}"
    if saturation == np.inf:
        return linear
    limit = expression_constant(saturation)
    return f"{limit}*tanh({linear}/{limit})"


def _behavioural(valued: str, quantity: str) -> Callable[[DeckLines, Any], list[str]]:
    def lines(w: DeckLines, table: Any) -> list[str]:
        # What was an E or a G with an expression stays one, and keeps its name.
        letters = [valued if name.startswith((valued, valued.lower())) else "B" for name in table.name]
        texts = (e.text(w.node, w.source, number=expression_constant) for e in table.expression)
        return [
            f"{name} {pos} {neg} {quantity if letter == 'B' else 'VALUE'}={{{text}}}"
            for (name, pos, neg), text, letter in zip(
                w.with_ends(w.lettered(letters, table.name), table), texts, letters, strict=True
            )
        ]

    return lines


KINDS: Mapping[str, Callable[[DeckLines, Any], list[str]]] = {
    "vsource": _voltage_sources,
    "isource": _current_sources,
    "capacitor": _capacitors,
    "inductor": _inductors,
    "coupling": _couplings,
    "resistor": _resistors,
    "diode": _diodes,
    "ideal_diode": _ideal_diodes,
    "vccs": _transconductances,
    "vcvs": _voltage_gains,
    "cccs": _current_controlled("F", "gain"),
    "ccvs": _current_controlled("H", "transresistance"),
    "buffer": _buffers,
    "behavioural_current": _behavioural("G", "I"),
    "behavioural_voltage": _behavioural("E", "V"),
}
"""How each kind of element is written."""
