"""Read SPICE decks, with the meaning that ngspice 39 gives them.

    lines -> structure -> parameters, models -> elements, sources -> circuit -> Deck

What is read: R C L K V I E F G H B D S W X; ``.subckt .param .func .model .include .lib .global .options
.temp .ic .nodeset .op .dc .tran``. What asks for output, or for an analysis that is not ours, is noted and
ignored. Anything else is an error that names its file and line: nothing that could change the circuit is
skipped.
"""

from __future__ import annotations

import re
from pathlib import Path

from circuitsim.errors import NetlistError
from circuitsim.netlist.tables import GMIN
from circuitsim.netlist.validate import validate
from circuitsim.spice.circuit import Circuit, Instance
from circuitsim.spice.deck_file import Analysis, Deck, TransientAnalysis
from circuitsim.spice.directives import (
    read_analysis,
    read_options,
    read_start,
    read_temperatures,
)
from circuitsim.spice.elements import expand
from circuitsim.spice.lines import DeckText, deck_text, deck_text_of_file
from circuitsim.spice.parameters import Scope
from circuitsim.spice.structure import Structure, read_structure

__all__ = ["parse_deck", "read_deck"]

_RELATIVE_TOLERANCE = 1e-3
_LOOKS_LIKE_AN_ELEMENT = re.compile(r"[rclvi]\w*\s+\S+\s+\S+\s+[0-9.+-]\S*", re.IGNORECASE)


def read_deck(path: str | Path) -> Deck:
    """Read a deck from a file, and the files that it includes.

    Raises:
        NetlistError: a line that is not supported or not understood, with its file and number; or a
            circuit that no simulator could solve.
    """
    return _deck(deck_text_of_file(path), file=str(path))


def parse_deck(text: str, *, file: str | Path | None = None, folder: str | Path | None = None) -> Deck:
    """Read a deck from text.

    Args:
        text: the deck; its first line is the title.
        file: where the text came from, for messages.
        folder: where ``.include`` looks; by default the folder of ``file``, or nowhere.

    Raises:
        NetlistError: see `read_deck`.
    """
    name = None if file is None else str(file)
    return _deck(deck_text(text, file=name, folder=folder), file=name)


def _deck(text: DeckText, *, file: str | None) -> Deck:
    structure = read_structure(text.lines)
    constants: dict[str, float] = {}
    scope = Scope(structure.top.names, constants=constants)
    options, notes = read_options(structure.options, scope)
    temperatures = read_temperatures(structure.temperatures, options, scope)
    constants["temper"] = temperatures.circuit
    circuit = Circuit(
        temperatures=temperatures,
        gmin=float(options.get("gmin", GMIN)),
        tolerance=float(options.get("reltol", _RELATIVE_TOLERANCE)),
        global_nodes=structure.global_nodes,
        replace_ground=structure.replace_ground,
    )
    top = expand(circuit, structure.top, scope)
    title = _title(text, structure)
    netlist = circuit.netlist(title, shunt=float(options.get("rshunt", 0.0)))
    analyses, analysis_notes = _analyses(structure, scope, circuit)
    analysis_notes += _unused_initial(circuit, analyses)
    starts, start_notes = _starts(structure, scope, top)
    if not netlist.n_nodes > 1:
        raise NetlistError("holds no elements", file=file, remedy="The first line of a deck is its title.")
    in_time = [isinstance(analysis, TransientAnalysis) and analysis.uic for analysis in analyses]
    try:
        validate(netlist, at_rest=not in_time or not all(in_time))
    except NetlistError as error:
        kind, _, name = (error.object or "").partition(" ")
        line = circuit.line_of(kind, name)
        raise NetlistError(str(error), file=file if line is None else line.place) from None
    all_notes = [*text.notes, *_title_note(text), *structure.notes, *notes, *circuit.notes]
    return Deck(
        title=title,
        netlist=netlist,
        waveforms=circuit.waveforms,
        initial_voltage=starts[".ic"],
        element_initial=circuit.element_initial,
        nodeset=starts[".nodeset"],
        analyses=analyses,
        temperature=temperatures.circuit,
        options=options,
        notes=(*all_notes, *analysis_notes, *start_notes),
    )


def _title(text: DeckText, structure: Structure) -> str:
    return structure.title or text.title.lstrip("*").strip() or "circuit"


def _title_note(text: DeckText) -> list[str]:
    if not _LOOKS_LIKE_AN_ELEMENT.match(text.title):
        return []
    return [f"line 1: the title is {text.title!r}: the first line of a deck is never an element"]


def _analyses(structure: Structure, scope: Scope, circuit: Circuit) -> tuple[tuple[Analysis, ...], list[str]]:
    swept = {name for kind in ("vsource", "isource", "resistor") for name in circuit.rows[kind].name}
    analyses: list[Analysis] = []
    notes = []
    for line in structure.analyses:
        analysis, note = read_analysis(line, scope, swept.__contains__)
        if analysis is not None:
            analyses.append(analysis)
        if note is not None:
            notes.append(note)
    return tuple(analyses), notes


def _unused_initial(circuit: Circuit, analyses: tuple[Analysis, ...]) -> list[str]:
    """Return a note if elements have initial conditions and no analysis starts from them."""
    in_time = [analysis for analysis in analyses if isinstance(analysis, TransientAnalysis)]
    if not circuit.element_initial or not in_time or any(analysis.uic for analysis in in_time):
        return []
    name = next(iter(circuit.element_initial))
    lines = (circuit.line_of(kind, name) for kind in ("capacitor", "inductor"))
    place = next(line.place for line in lines if line is not None)
    more = f" and {len(circuit.element_initial) - 1} more" if len(circuit.element_initial) > 1 else ""
    return [
        f"{place}: ic= of {name}{more} has no effect: the run starts from the operating point; "
        "end .tran with uic, or hold nodes by .ic"
    ]


def _starts(
    structure: Structure, scope: Scope, top: Instance
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the voltages of ``.ic`` and of ``.nodeset`` by node."""
    found: dict[str, dict[str, float]] = {".ic": {}, ".nodeset": {}}
    notes = []
    for line in structure.starts:
        kind = ".nodeset" if line.text.startswith(".nodeset") else ".ic"
        for word, voltage, _ in read_start(line, scope):
            name = _node_name(top, word)
            if name == "0":
                notes.append(f"{line.place}: {kind} of ground was ignored")
            elif name is None:
                notes.append(f"{line.place}: {kind} of {word} was ignored: no element connects to it")
            else:
                found[kind][name] = voltage
    return found, notes


def _node_name(top: Instance, word: str) -> str | None:
    try:
        return top.circuit.node_names[top.known_node(word)]
    except NetlistError:
        return None
