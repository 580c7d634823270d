"""Directives that say what to run, how, and from where: `.options`, `.temp`, `.dc`, `.tran`, `.ic`."""

from __future__ import annotations

import re
from collections.abc import Callable

from circuitsim.spice.deck_file import (
    Analysis,
    OperatingPointAnalysis,
    Sweep,
    SweepAnalysis,
    TransientAnalysis,
)
from circuitsim.spice.fields import read_fields, words_of
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.models import Temperatures
from circuitsim.spice.parameters import Scope
from circuitsim.units import spice_number

__all__ = ["Start", "read_analysis", "read_options", "read_start", "read_temperatures"]

_POINTS = 100
"""Results of a transient analysis without a step, which Xyce and LTspice leave to the program."""
# Packages of Xyce's options: a name in one says nothing about the same name in another.
_PACKAGES = frozenset(
    ("device", "nonlin", "nonlin-tran", "timeint", "linsol", "linsol-ac", "output", "restart", "parser")
) | frozenset(("dist", "loca", "sensitivity", "hbint", "measure", "diagnostic", "topology", "fft", "locarun"))
_SHARED_PACKAGES = frozenset(("device", "nonlin"))
_ACTED_ON = frozenset(("reltol", "abstol", "vntol", "gmin", "temp", "tnom", "rshunt"))
_CIRCUIT_CHANGING = ("cshunt", "gshunt", "scale")
_PLAIN_START = re.compile(r"(?!v\s*\()([^\s(),={}'\"]+)[\s,=]+(\{[^{}]*\}|'[^']*'|[^\s,(){}'\"=]+)[\s,]*")
"""Xyce's other form: a node and a value."""
_START = re.compile(
    r"""v\s*\(\s*([^\s(),={}'"]+)\s*\)\s*=?\s*(\{[^{}]*\}|'[^']*'|[^\s,(){}'"=]+)[\s,]*""", re.VERBOSE
)


def read_options(lines: list[Line], scope: Scope) -> tuple[dict[str, float | str | bool], list[str]]:
    """Return the options by lower-case name, and notes on those that have no effect.

    An option of a Xyce package that ngspice does not share is called ``package.name``.
    """
    options: dict[str, float | str | bool] = {}
    notes = []
    for line in lines:
        fields = read_fields(line, words_of(line)[1:])
        package = fields.words[0] if fields.words and fields.words[0] in _PACKAGES else ""
        flags = fields.words[1:] if package else fields.words
        prefix = f"{package}." if package and package not in _SHARED_PACKAGES else ""
        for flag in flags:
            options[prefix + flag] = True
        for name, word in fields.named.items():
            if name in _ACTED_ON and not prefix:
                options[name] = scope.number(line, word, name)
            else:
                number = spice_number(word)
                options[prefix + name] = word if number is None else number
            if name in _CIRCUIT_CHANGING and options[prefix + name] != 1:
                remedy = "Leave it out, or write its elements into the deck."
                raise problem(
                    line, "changes the circuit and is not supported", field=name, value=word, remedy=remedy
                )
        idle = [prefix + name for name in (*flags, *fields.named) if prefix or name not in _ACTED_ON]
        if idle:
            notes.append(f"{line.place}: options without effect here: {' '.join(idle)}")
    return options, notes


def read_temperatures(
    lines: list[Line], options: dict[str, float | str | bool], scope: Scope
) -> Temperatures:
    """Return the temperatures of the circuit: ``.temp`` comes before the option ``temp``."""
    circuit, nominal = (float(options.get(name, 27.0)) for name in ("temp", "tnom"))
    for line in lines:
        words = [word for word in words_of(line)[1:] if word not in ("=", "temp")]
        if len(words) != 1:
            raise problem(line, "wants one temperature", value=" ".join(words))
        circuit = scope.number(line, words[0], "temperature")
    return Temperatures(circuit=circuit, nominal=nominal)


Start = tuple[str, float, Line]
"""Node name, voltage [V], and the line that says so."""


def read_start(line: Line, scope: Scope) -> list[Start]:
    """Return the node voltages of an ``.ic`` or ``.nodeset`` line."""
    _, _, text = line.text.partition(" ")
    found: list[Start] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _START.match(text, at) or _PLAIN_START.match(text, at)
        if match is None:
            raise problem(
                line, "wants v(node)=value", value=text[at : at + 40], remedy="Only node voltages can be set."
            )
        found.append((match[1], scope.number(line, match[2], f"v({match[1]})"), line))
        at = match.end()
    return found


def read_analysis(
    line: Line, scope: Scope, is_element: Callable[[str], bool]
) -> tuple[Analysis | None, str | None]:
    """Return an analysis, or None and a note that says why it is not one of ours.

    ``is_element`` tells whether the netlist has a V, I or R of this name.
    """
    words = words_of(line)
    if words[0] == ".op":
        return OperatingPointAnalysis(), None
    if words[0] == ".tran":
        return _transient(line, words[1:], scope)
    return _sweep(line, words[1:], scope, is_element)


def _sweep(
    line: Line, words: list[str], scope: Scope, is_element: Callable[[str], bool]
) -> tuple[Analysis | None, str | None]:
    if words and words[0] in ("dec", "oct", "data"):
        return None, f"{line.place}: .dc was not run: {words[0]} sweeps are not supported"
    words = [word for word in words if word not in ("lin", "sweep")]
    if "list" in words:
        return None, f"{line.place}: .dc was not run: sweeps over a list are not supported"
    if len(words) not in (4, 8) or "=" in words:
        remedy = "Write .dc v1 start stop step, or two of them."
        raise problem(line, "wants one or two sweeps", value=" ".join(words)[:80], remedy=remedy)
    sweeps = []
    for k in range(0, len(words), 4):
        name = words[k].partition(":")[0]
        start, stop, step = (scope.number(line, word, words[k]) for word in words[k + 1 : k + 4])
        if not is_element(name):
            if name in scope or name == "temp":
                return None, f"{line.place}: .dc was not run: {words[k]} is no element"
            raise problem(line, "sweeps what is no V, I or R element of this deck", value=words[k])
        if (step == 0 and start != stop) or (stop - start) * step < 0:
            raise problem(line, "never reaches its end with this step", object=name, value=step)
        sweeps.append(Sweep(source=name, start=start, stop=stop, step=step or 1.0))
    if len(sweeps) == 2 and sweeps[0].source == sweeps[1].source:
        raise problem(line, "sweeps one source twice", value=sweeps[0].source)
    return SweepAnalysis(sweeps=tuple(sweeps)), None


def _transient(line: Line, words: list[str], scope: Scope) -> tuple[Analysis | None, str | None]:
    uic = bool(words) and words[-1] in ("uic", "noop")
    times = [scope.number(line, word, "time") for word in (words[:-1] if uic else words)]
    if len(times) == 1:
        # LTspice's short form.
        times = [0.0, *times]
    if not 2 <= len(times) <= 4:
        remedy = "Write .tran step stop [start [largest step]] [uic]."
        raise problem(line, "wants a step and a stop time", value=" ".join(words), remedy=remedy)
    step, stop, start, largest = (*times, 0.0, 0.0)[:4]
    if step < 0 or stop <= 0 or start < 0 or largest < 0:
        raise problem(line, "times must be positive", value=" ".join(words))
    if start >= stop:
        raise problem(line, "starts at or after its stop", value=" ".join(words))
    note = None
    if step == 0:
        step = (stop - start) / _POINTS
        note = f"{line.place}: .tran with a step of 0: results every {step:g} s"
    analysis = TransientAnalysis(step=step, stop=stop, start=start, largest_step=largest or None, uic=uic)
    return analysis, note
