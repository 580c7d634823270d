"""Netlist -> SPICE deck: text that ngspice and Xyce both read.

Element lines are the dialect that the two share. Options carry Xyce's package names; ngspice takes
those for unknown flags and ignores them. Xyce warns of the options that only ngspice knows, and takes
a diode's NBV into account from its level 2 on. Sources: the ngspice manual, chapters 3 to 5, 7 and 11;
the Xyce Reference Guide, ``.OPTIONS``, B and D device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitsim.netlist import Netlist, flatten
from circuitsim.netlist.models import thermal_voltage
from circuitsim.netlist.tables import IntArray
from circuitsim.spice.deck_file import Analysis, Deck, OperatingPointAnalysis, TransientAnalysis
from circuitsim.spice.deck_lines import KINDS, DeckLines, keeps_brackets, one_line
from circuitsim.spice.names import node_names

__all__ = ["DeckOptions", "deck_nodes", "write_deck"]

_WIDTH = 110
_ACTED_ON = ("gmin", "temp", "tnom", "rshunt")
"""Options of a deck that its elements hold already, or that are written from what these hold."""
_UNSAFE = re.compile(r"[^\w.+-]")


@dataclass(frozen=True, kw_only=True)
class DeckOptions:
    """Tolerances of the simulator, tight enough to agree with ours to rounding.

    ``thermal_voltage`` [V] turns a diode's slope voltage into an emission coefficient. It is
    ngspice's at the deck's temperature; Xyce's constants differ from ngspice's in the fifth digit.
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
    thermal_voltage: float | None = None

    def written(self) -> dict[str, float | str | bool]:
        """Return the options as a deck has them."""
        return {
            "reltol": float(self.relative_tolerance),
            "abstol": float(self.current_tolerance),
            "vntol": float(self.voltage_tolerance),
            "itl1": self.iterations,
            "pivtol": float(self.pivot_tolerance),
        }


def deck_nodes(netlist: Netlist) -> dict[str, str]:
    """Return the deck's name of every node, by its name in the circuit; internal nodes come last."""
    flat = flatten(netlist).netlist
    legal = node_names(flat.node_names, brackets=keeps_brackets(flat))
    return dict(zip(flat.node_names, legal, strict=True))


def write_deck(
    circuit: Netlist | Deck,
    *,
    title: str | None = None,
    options: DeckOptions | None = None,
    analyses: Sequence[Analysis] | None = None,
    origin: Netlist | None = None,
) -> str:
    """Return the deck of a circuit: the same text for the same circuit.

    Blocks are written as their elements, with a comment over each group of lines that says which
    crossbar, bank of amplifiers or neuron it is. Devices of 0 S are left out. A node or an element whose
    name is legal in SPICE keeps it, and values read back as the same doubles, so that a deck that is read,
    written and read again is the same circuit. The anchor values of a corrected phase are parameters.

    Args:
        circuit: any circuit, its input voltages in its voltage sources (see `with_inputs`), or a deck.
        title: the first line; the circuit's title by default.
        options: tolerances; by default a deck's own, and `DeckOptions` for a netlist.
        analyses: what to run; by default what the deck says, else the operating point.
        origin: the circuit that a flat ``circuit`` was derived from, whose blocks the comments name.
    """
    deck = circuit if isinstance(circuit, Deck) else Deck(title=circuit.title, netlist=circuit)
    flat = flatten(deck.netlist).netlist
    if options is None and not isinstance(circuit, Deck):
        options = DeckOptions()
    chosen = None if options is None else options.thermal_voltage
    writer = DeckLines(deck, flat, float(chosen or thermal_voltage(deck.temperature)))
    heading = re.sub(r"^[*\s]+", "", one_line(deck.title if title is None else title))
    lines = [f"* {heading}".rstrip(), *_node_comments(flat, writer.node)]
    rows = {kind: writer.rows(kind) for kind in KINDS}
    for section in _sections(deck.netlist, writer.given_names, origin):
        lines += ["*", f"* {one_line(section.heading)}"]
        lines += [rows[kind][row] for kind, own in section.rows.items() for row in own if rows[kind][row]]
    for load in flat.loads:
        lines += ["*", f"* {one_line(f'softmax load {load.name}')}", *writer.softmax(load)]
    if models := writer.models():
        lines += ["*", "* diodes", *models]
    if start := writer.start():
        lines += ["*", *start]
    wanted = (deck.analyses if analyses is None else tuple(analyses)) or (OperatingPointAnalysis(),)
    lines += ["*", *_option_lines(deck, options, writer.gmin, wanted)]
    lines += [*(writer.analysis(analysis) for analysis in wanted), ".end"]
    return "\n".join(_wrapped("\n".join(lines).split("\n"))) + "\n"


def _node_comments(flat: Netlist, node: Sequence[str]) -> list[str]:
    renamed = [(deck, name) for deck, name in zip(node, flat.node_names, strict=True) if deck != name]
    lines = [f"* node {deck} is {one_line(name)}" for deck, name in renamed]
    return ["*", "* names of nodes here and in the circuit", *lines] if lines else []


def _option_lines(
    deck: Deck, options: DeckOptions | None, gmin: float, analyses: Sequence[Analysis]
) -> list[str]:
    groups: dict[str, dict[str, float | str | bool]] = {"device": {"gmin": gmin}, "nonlin": {}}
    if deck.temperature != 27.0:
        # Values are those at the circuit's temperature: nothing is left to be scaled.
        groups["device"] |= {"temp": float(deck.temperature), "tnom": float(deck.temperature)}
    for key, value in (deck.options if options is None else options.written()).items():
        package, dot, name = key.rpartition(".")
        if key not in _ACTED_ON and not _UNSAFE.search(f"{key}{value}"):
            groups.setdefault(package if dot else "nonlin", {})[name] = value
    if any(isinstance(analysis, TransientAnalysis) for analysis in analyses) and "timeint" not in groups:
        given = groups["nonlin"]
        groups["timeint"] = {key: given[key] for key in ("reltol", "abstol") if key in given}
    return [
        " ".join([f".options {package}", *(_option(key, value) for key, value in group.items())])
        for package, group in groups.items()
        if group
    ]


def _option(key: str, value: float | str | bool) -> str:
    if isinstance(value, bool):
        return key
    # Iteration limits are whole numbers.
    whole = isinstance(value, float) and key.startswith("itl") and value.is_integer()
    return f"{key}={int(value) if whole else value}"


@dataclass(frozen=True)
class _Section:
    """Rows of the flat tables that belong together."""

    heading: str
    rows: Mapping[str, Sequence[int]]


def _sections(blocks: Netlist, names: Mapping[str, Sequence[str]], origin: Netlist | None) -> list[_Section]:
    """Return the rows of the flat tables, whose names by kind are given, by what they came from.

    Rows of blocks, and all rows of a derived circuit, are told by the start of their names.
    """
    source = blocks if origin is None else origin
    own = list(_own_sections(source))
    headings = [section.heading for section in own]
    known: dict[str, int] = {}
    for prefixes, heading in _block_headings(source):
        known |= dict.fromkeys(prefixes, len(headings))
        headings.append(heading)
    found: dict[str, dict[str, list[int]]] = {heading: {} for heading in headings}
    first = {table.kind: len(table) if origin is None else 0 for table in blocks.tables()}
    for index, section in enumerate(own):
        for kind, rows in section.rows.items():
            if origin is None:
                found[section.heading][kind] = list(rows)
            else:
                own_names = getattr(source, kind).name
                known |= {own_names[row]: index for row in rows}
    find = _Headings(headings, known)
    for kind, kind_names in names.items():
        last, rows_here = None, list[int]()
        for row in range(first[kind], len(kind_names)):
            name = kind_names[row]
            start = name.rpartition(".")[0]
            # Devices of one line follow each other, and share all but the end of their names.
            is_known = name in known or name[2:] in known
            if start != last or is_known:
                rows_here = found.setdefault(find(name), {}).setdefault(kind, [])
                last = None if is_known else start
            rows_here.append(row)
    return [_Section(heading, rows) for heading, rows in found.items() if rows]


class _Headings:
    """Finds the heading of an element by its name, or by what its name starts with up to a dot."""

    def __init__(self, headings: Sequence[str], known: Mapping[str, int]) -> None:
        self._headings = headings
        self._known = known

    def __call__(self, name: str) -> str:
        start = name
        while start:
            if start in self._known:
                return self._headings[self._known[start]]
            if start.startswith("d."):
                return f"dual network: {self(start[2:])}"
            start = start.rpartition(".")[0]
        return "nudge" if name.partition(".")[0] == "nudge" else "other elements"


def _block_headings(netlist: Netlist) -> Iterator[tuple[list[str], str]]:
    """Yield what the names of a block's elements start with, and what to call them."""
    for crossbar in netlist.crossbars:
        m, n = crossbar.shape
        mask = np.ones((m, n), dtype=bool) if crossbar.mask is None else crossbar.mask
        for half, letter, g in (("positive", "p", crossbar.g_plus), ("negative", "n", crossbar.g_minus)):
            if g is None:
                continue
            heading = f"crossbar {crossbar.name}, {half} word lines: {m} word lines, {n} bit lines"
            absent = int(np.count_nonzero(mask & (g == 0)))
            if absent:
                heading += f"; {absent} devices of 0 S are left out"
            yield [f"{crossbar.name}.{letter}", *crossbar.device_names], heading
        if crossbar.wired:
            yield [crossbar.name], f"crossbar {crossbar.name}, wires"
    for bank in netlist.banks:
        for half, letter in (("positive", "p"), ("negative", "n")):
            yield [f"{bank.name}.{letter}"], f"amplifier bank {bank.name}, {half} outputs"
    for sense in netlist.senses:
        yield [sense.name], f"virtual grounds {sense.name}"


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
    for kind in KINDS:
        table = getattr(netlist, kind)
        owners = [owner[getattr(table, column.name)] for column in table.columns("node")]
        for row, which in enumerate(_only_owner(owners, len(table)).tolist()):
            rows[which].setdefault(kind, []).append(row)
    if rows[-1]:
        yield _Section("sources and elements between neurons" if labels else "elements", rows[-1])
    for label, own in zip(labels, rows[:-1], strict=True):
        if own:
            yield _Section(label, own)


def _only_owner(owners: Sequence[IntArray], rows: int) -> IntArray:
    """Return, per row, the one owner that is named, or -1 for none and for more than one."""
    stacked = np.stack([np.full(rows, -1, dtype=np.int64), *owners])
    highest = stacked.max(axis=0)
    lowest = np.where(stacked < 0, highest, stacked).min(axis=0)
    return np.where(lowest == highest, highest, -1)


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Break long lines at spaces into continuation lines; a comment goes on as a comment."""
    for line in lines:
        if len(line) <= _WIDTH:
            yield line
            continue
        code, mark, comment = line.partition(" ; ")
        if mark and not line.startswith("*"):
            # A line cannot go on behind a comment.
            yield from _wrapped([f"* {comment}", code])
            continue
        mark = "*  " if line.startswith("*") else "+ "
        head = ""
        for word in line.split(" "):
            if head and len(head) + 1 + len(word) > _WIDTH:
                yield head
                head = mark + word
            else:
                head = f"{head} {word}" if head else word
        yield head
