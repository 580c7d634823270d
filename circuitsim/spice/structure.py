"""Logical lines -> the tree of subcircuits, and the deck's other lines sorted by what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from circuitsim.spice.conditions import chosen_lines
from circuitsim.spice.fields import read_fields, words_of
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.parameters import Assignment, Names, read_parameters

__all__ = ["Call", "Definition", "Structure", "read_structure"]

_DEEPEST = 30
_OPTIONS = (".option", ".options", ".opt")
_STARTS = (".ic", ".initcond", ".dcvolt", ".nodeset")
_ANALYSES = (".op", ".dc", ".tran")
_OUTPUT = (
    *(".print", ".plot", ".probe", ".probe64", ".save", ".width", ".measure", ".meas", ".four", ".fourier"),
    *(".graph", ".result", ".fft", ".backanno", ".alias", ".csdf", ".wave"),
)
_OTHER_ANALYSES = (
    *(".ac", ".noise", ".tf", ".sens", ".pz", ".disto", ".pss", ".sp", ".hb", ".mpde", ".step", ".mc"),
    *(".wcase", ".sampling", ".embeddedsampling", ".pce", ".lin", ".net", ".xf"),
)
_SUPPORTED = (
    ".param .func .subckt .model .include .lib .if .global .options .temp .ic .nodeset .op .dc .tran "
    ".title; output such as .print is ignored"
)
_SKIPPED_BLOCKS = {".aliases": ".endaliases", ".data": ".enddata"}
"""First and last line of what is for output, or for analyses that are not run."""
_CONTROL_HARMLESS = frozenset(
    (
        *("run", "print", "plot", "gnuplot", "asciiplot", "hardcopy", "iplot", "write", "wrdata", "wrs2p"),
        *("echo", "display", "listing", "show", "showmod", "destroy", "linearize", "fft", "psd", "spec"),
        *("fourier", "meas", "measure", "let", "unlet", "setplot", "setscale", "set", "unset", "define"),
        *("undefine", "quit", "exit", "rusage", "status", "save", "reset", "stop", "delete", "diff", "cross"),
        *("compose", "rspice", "history", "help", "version", "where", "if", "else", "end", "while", "repeat"),
        *("dowhile", "foreach", "break", "continue", "goto", "label", "shell", "cd", "settype", "color"),
        *("ac", "noise", "tf", "sens", "pz", "disto", "pss", "sp", "strcmp", "alias", "unalias", "load"),
    )
)
_CIRCUIT_VARIABLES = frozenset(
    ("temp", "tnom", "gmin", "reltol", "abstol", "vntol", "chgtol", "rshunt", "cshunt", "scale", "method")
)


@dataclass(eq=False)
class Definition:
    """A circuit or subcircuit: its pins, its elements, and the names that it defines."""

    name: str = ""
    line: Line | None = None
    parent: Definition | None = None
    pins: tuple[str, ...] = ()
    elements: list[Line] = field(default_factory=list)
    names: Names = field(default_factory=Names)
    models: dict[str, Line] = field(default_factory=dict)
    subcircuits: dict[str, Definition] = field(default_factory=dict)
    calls: dict[Line, Call] = field(default_factory=dict)
    """What its X lines use, found when it is counted."""
    size: int | None = None
    """Elements and instances inside, those of inner instances included; None before it is counted."""

    def subcircuit(self, name: str) -> Definition | None:
        """Return a definition that is visible here: of this one, or of those around it."""
        return next((d.subcircuits[name] for d in self.outward() if name in d.subcircuits), None)

    def outward(self) -> Iterator[Definition]:
        """Yield this definition, the one it stands in, and so on to the deck itself."""
        definition: Definition | None = self
        while definition is not None:
            yield definition
            definition = definition.parent


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What an X line uses, the words for its pins, and the parameters that it gives."""

    definition: Definition
    pins: list[str]
    given: dict[str, str]


@dataclass
class Structure:
    """A deck, line by line where it belongs."""

    top: Definition = field(default_factory=Definition)
    title: str | None = None
    global_nodes: set[str] = field(default_factory=set)
    options: list[Line] = field(default_factory=list)
    temperatures: list[Line] = field(default_factory=list)
    starts: list[Line] = field(default_factory=list)
    analyses: list[Line] = field(default_factory=list)
    replace_ground: bool = False
    notes: list[str] = field(default_factory=list)


def read_structure(lines: list[Line]) -> Structure:
    """Sort the lines of a deck.

    Raises:
        NetlistError: a line that is not supported and might change the circuit, or blocks that do not
            close.
    """
    structure = Structure()
    current = structure.top
    control: Line | None = None
    skipped: str | None = None
    for line in chosen_lines(lines):
        word = line.text.partition(" ")[0]
        if skipped is not None:
            skipped = None if word == skipped else skipped
        elif word in _SKIPPED_BLOCKS:
            skipped = _SKIPPED_BLOCKS[word]
            structure.notes.append(f"{line.place}: {word} was ignored")
        elif control is not None:
            control = _control_line(structure, line, control)
        elif line.text[0] != ".":
            current.elements.append(line)
        else:
            rest = line.text.partition(" ")[2]
            if word == ".control":
                control = line
            elif word in (".subckt", ".macro"):
                current = _begun(current, line)
            elif word in (".ends", ".eom"):
                current = _ended(structure, current, line, rest.strip())
            else:
                _directive(structure, current, line, word, rest.strip())
    if control is not None:
        raise problem(control, "is not closed by .endc")
    if current.line is not None:
        raise problem(current.line, "is not closed by .ends", field=current.name)
    return structure


def _begun(current: Definition, line: Line) -> Definition:
    words = words_of(line)[1:]
    header = [word for word in words if word != "params:"]
    fields = read_fields(line, header)
    if not fields.words:
        raise problem(line, "has no name")
    name, *pins = fields.words
    if name in current.subcircuits:
        first = current.subcircuits[name].line
        raise problem(
            line, "is defined twice", field=name, remedy=f"First at {first.place}." if first else None
        )
    if len(set(pins)) < len(pins):
        twice = next(pin for pin in pins if pins.count(pin) > 1)
        raise problem(line, "has one pin twice", field=name, value=twice)
    for word in pins:
        if word.endswith(":") or word[0] in "{'\"":
            raise problem(line, "is no name of a pin", field=name, value=word)
    defaults = {key: Assignment(text, line) for key, text in fields.named.items()}
    inner = Definition(name, line, current, tuple(pins), names=Names(defaults=defaults))
    if sum(1 for _ in inner.outward()) > _DEEPEST:
        raise problem(line, f"subcircuits are defined inside each other more than {_DEEPEST} deep")
    current.subcircuits[name] = inner
    return inner


def _ended(structure: Structure, current: Definition, line: Line, name: str) -> Definition:
    if current.parent is None:
        raise problem(line, "closes no .subckt")
    if name and name != current.name:
        structure.notes.append(f"{line.place}: this .ends closes {current.name}, though it says {name}")
    return current.parent


def _directive(structure: Structure, current: Definition, line: Line, word: str, rest: str) -> None:
    if read_parameters(current.names, line):
        return
    if word == ".model":
        _model(current, line)
    elif word == ".global":
        structure.global_nodes |= set(words_of(line)[1:])
    elif word in _OPTIONS:
        structure.options.append(line)
    elif word == ".temp":
        structure.temperatures.append(line)
    elif word in _STARTS:
        if current.parent is not None:
            remedy = "Put it outside, with the node's full name, such as v(x1.node)."
            raise problem(line, "stands inside a subcircuit", remedy=remedy)
        structure.starts.append(line)
    elif word in _ANALYSES:
        structure.analyses.append(line)
    elif word in _OUTPUT:
        structure.notes.append(f"{line.place}: {word} was ignored")
    elif word in _OTHER_ANALYSES:
        structure.notes.append(f"{line.place}: {word} was not run: this analysis is not supported")
    elif word == ".title":
        structure.title = rest
    elif word == ".preprocess":
        _preprocess(structure, line, rest.split())
    else:
        raise problem(line, "is not supported", remedy=f"Supported: {_SUPPORTED}.")


def _model(current: Definition, line: Line) -> None:
    words = words_of(line)
    if len(words) < 3 or "=" in words[1:3]:
        raise problem(line, "wants a name and a kind", remedy="Write .model name D (is=1e-14).")
    if words[1] in current.models and current.models[words[1]].text != line.text:
        first = current.models[words[1]]
        raise problem(line, "is defined twice", field=words[1], remedy=f"First at {first.place}.")
    current.models[words[1]] = line


def _preprocess(structure: Structure, line: Line, words: list[str]) -> None:
    match words:
        case ["replaceground", switch] if switch in ("true", "false"):
            structure.replace_ground = switch == "true"
        case ["removeunused", *_]:
            structure.notes.append(f"{line.place}: .preprocess removeunused was ignored")
        case _:
            raise problem(line, "is not supported", remedy="Supported: .preprocess replaceground true.")


def _control_line(structure: Structure, line: Line, control: Line) -> Line | None:
    """Take one line of a .control block; return None where the block ends."""
    words = line.text.lstrip(".").split() or [""]
    word = words[0]
    if line.text.startswith(".endc"):
        structure.notes.append(f"{control.place}: the .control block was not run, but for its analyses")
        return None
    if word in ("op", "dc", "tran"):
        if "$" in line.text:
            structure.notes.append(f"{line.place}: {word} was not run: it depends on a variable")
            return control
        structure.analyses.append(Line(f".{' '.join(words)}", line.number, line.file))
    elif word == "set" and len(words) > 1 and words[1].partition("=")[0] in _CIRCUIT_VARIABLES:
        raise problem(
            line,
            "changes the circuit from a .control block, which is not supported",
            value=" ".join(words[:4]),
            remedy=f"Write .options {words[1].partition('=')[0]}=... outside it.",
        )
    elif word not in _CONTROL_HARMLESS:
        raise problem(
            line,
            "is a command that may change the circuit from a .control block, which is not supported",
            value=word,
            remedy="Leave it out; change the deck's lines instead.",
        )
    return control
