"""Parameters and functions of a deck: `.param` and `.func`, and where each name is known.

As in ngspice, a subcircuit sees, from near to far: what its instance gives, its own ``.param`` lines, the
defaults of its header, and all that the circuit around the instance sees. Order on the page is of no account.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from circuitsim.errors import NetlistError
from circuitsim.netlist.expressions import UserFunction, parse_constant
from circuitsim.spice.lines import Line, problem
from circuitsim.units import spice_number

__all__ = ["PARAMETER_LINES", "Assignment", "Names", "Scope", "read_parameters"]

PARAMETER_LINES = (".param", ".params", ".parameter", ".global_param", ".csparam")
_FUNCTION_LINES = (".func", ".function")
_NAME = r"[a-z_][a-z0-9_.$#@]*"
_ASSIGNED = re.compile(rf"({_NAME})\s*(\([^()]*\))?\s*=(?!=)")
_FUNCTION = re.compile(rf"({_NAME})\s*\(([^()]*)\)\s*=?\s*(.+)")
_USED = re.compile(rf"[0-9.][0-9a-z.]*|({_NAME})")
_NESTING = {"(": 1, "{": 1, ")": -1, "}": -1}


@dataclass(frozen=True, slots=True)
class Assignment:
    """``name = text`` and the line it stands on."""

    text: str
    line: Line


@dataclass
class Names:
    """What one circuit or subcircuit defines."""

    parameters: dict[str, Assignment] = field(default_factory=dict)
    defaults: dict[str, Assignment] = field(default_factory=dict)
    functions: dict[str, UserFunction] = field(default_factory=dict)


def read_parameters(names: Names, line: Line) -> bool:
    """Add what a ``.param`` or ``.func`` line defines; return False if the line is neither.

    Raises:
        NetlistError: neither ``name=value`` nor ``name(arguments)``.
    """
    word, _, rest = line.text.partition(" ")
    if word in _FUNCTION_LINES:
        name, function = _function(line, rest)
        names.functions[name] = function
        return True
    if word not in PARAMETER_LINES:
        return False
    for name, text in _assignments(line, rest).items():
        if name.endswith(")"):
            name, function = _function(line, f"{name} {text}")
            names.functions[name] = function
        else:
            names.parameters[name] = Assignment(text, line)
    return True


def _assignments(line: Line, text: str) -> dict[str, str]:
    """Return the ``name = expression`` pairs of a line, whatever spaces and commas are between them.

    Raises:
        NetlistError: something that belongs to no pair.
    """
    pairs = _pairs(text)
    if not pairs or text[: pairs[0].start()].strip(" \t,"):
        raise problem(line, "wants name=value", value=text[:80])
    found: dict[str, str] = {}
    for pair, following in zip(pairs, [*pairs[1:], None], strict=True):
        value = text[pair.end() : following.start() if following else len(text)].strip(" \t,")
        if not value:
            raise problem(line, "has no value", field=pair[1])
        found[pair[1] + (pair[2] or "")] = value
    return found


def _pairs(text: str) -> list[re.Match[str]]:
    """Return where names are assigned: not inside brackets, braces or quotes."""
    found, at, depth = [], 0, 0
    while at < len(text):
        starts = depth == 0 and (at == 0 or text[at - 1] in " \t,}')")
        if starts and (match := _ASSIGNED.match(text, at)):
            found.append(match)
            at = match.end()
            continue
        letter = text[at]
        if letter in "'\"":
            close = text.find(letter, at + 1)
            at = len(text) if close < 0 else close + 1
            continue
        depth += _NESTING.get(letter, 0)
        at += 1
    return found


def _function(line: Line, text: str) -> tuple[str, UserFunction]:
    """Return the name and the content of ``name(a, b) {expression}``."""
    match = _FUNCTION.fullmatch(text.strip())
    if match is None:
        raise problem(
            line, "wants a function", value=text[:80], remedy="Write .func name(x, y) {expression}."
        )
    arguments = tuple(argument.strip() for argument in match[2].split(",")) if match[2].strip() else ()
    for argument in arguments:
        if not re.fullmatch(_NAME, argument):
            raise problem(line, "is no name of an argument", field=match[1], value=argument)
    return match[1], UserFunction(arguments, match[3].strip())


class Scope(Mapping[str, float]):
    """The parameters that one instance sees, worked out when they are asked for."""

    def __init__(
        self,
        names: Names,
        *,
        caller: Scope | None = None,
        given: Mapping[str, float] | None = None,
        constants: Mapping[str, float] | None = None,
    ) -> None:
        self.names = names
        self.caller = caller
        self._values: dict[str, float] = dict(given or {})
        # The caller may fill it later.
        self._constants: Mapping[str, float] = {} if constants is None else constants
        if caller is None:
            self.functions: Mapping[str, UserFunction] = names.functions
        elif names.functions:
            self.functions = {**caller.functions, **names.functions}
        else:
            self.functions = caller.functions

    def __getitem__(self, name: str) -> float:
        owner = self._owner(name)
        if owner is None:
            scope: Scope | None = self
            while scope is not None:
                if name in scope._constants:
                    return scope._constants[name]
                scope = scope.caller
            raise KeyError(name)
        if name not in owner._values:
            _work_out(owner, name)
        return owner._values[name]

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and (self._owner(name) is not None or self[name] is not None)
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        seen = set()
        scope: Scope | None = self
        while scope is not None:
            known = (scope._values, scope.names.parameters, scope.names.defaults, scope._constants)
            seen |= {name for names in known for name in names}
            scope = scope.caller
        return iter(sorted(seen))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _owner(self, name: str) -> Scope | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope._values or name in scope.names.parameters or name in scope.names.defaults:
                return scope
            scope = scope.caller
        return None

    def _definition(self, name: str) -> Assignment:
        return self.names.parameters.get(name) or self.names.defaults[name]

    def number(self, line: Line, word: str, what: str) -> float:
        """Return the value of a word: a number, an expression in braces or quotes, or a parameter's name.

        ``what`` names the value in messages: ``r``, ``gain``.
        """
        value = spice_number(word)
        if value is not None:
            return value
        if word[0] in "{'\"":
            return self.constant(line, word, what)
        sign, name = (-1.0, word[1:]) if word[0] == "-" else (1.0, word)
        if name in self:
            return sign * self[name]
        remedy = None
        if word[0].isdigit() or word[0] in ".+-":
            remedy = "Write for example 1.5k, 2meg, 10pF, or an expression as {2*x}."
            if spice_number(word.rstrip("x")) is not None:
                remedy = "x is 1e6 to some programs and a unit to others: write meg."
        elif re.fullmatch(_NAME, word):
            remedy = f"No parameter has this name; define it: .param {word}=..."
        raise problem(line, "is not a number", field=what, value=word, remedy=remedy)

    def constant(self, line: Line, text: str, what: str) -> float:
        """Return the value of an expression of parameters."""
        value = spice_number(text)
        if value is not None:
            return value
        try:
            return parse_constant(text, parameters=self, functions=self.functions)
        except NetlistError as error:
            if error.file is not None:
                raise
            raise problem(line, error.rule, field=what, value=error.value, remedy=error.remedy) from None


class _Within(Mapping[str, float]):
    """A scope as the text of one of its own parameters sees it: the same name means an outer one."""

    def __init__(self, scope: Scope, name: str) -> None:
        self._scope = scope
        self._name = name

    def __getitem__(self, name: str) -> float:
        if name == self._name:
            if self._scope.caller is None:
                raise KeyError(name)
            return self._scope.caller[name]
        return self._scope[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scope)

    def __len__(self) -> int:
        return len(self._scope)


def _work_out(owner: Scope, name: str) -> None:
    """Work out a parameter after all that it needs, without recursion: chains may be long."""
    waiting: list[tuple[Scope, str]] = [(owner, name)]
    begun: set[tuple[int, str]] = set()
    while waiting:
        scope, name = waiting[-1]
        if name in scope._values:
            waiting.pop()
            continue
        definition = scope._definition(name)
        key = (id(scope), name)
        if key not in begun:
            begun.add(key)
            for needed, label in _needed(scope, name, definition):
                if (id(needed), label) in begun and label not in needed._values:
                    raise problem(
                        definition.line,
                        "depends on itself",
                        object=".param",
                        field=name,
                        value=definition.text[:80],
                    )
                if label not in needed._values:
                    waiting.append((needed, label))
            continue
        value = spice_number(definition.text)
        if value is None:
            try:
                value = parse_constant(
                    definition.text, parameters=_Within(scope, name), functions=scope.functions
                )
            except NetlistError as error:
                if error.file is not None:
                    raise
                raise problem(
                    definition.line,
                    error.rule,
                    object=".param",
                    field=name,
                    value=error.value,
                    remedy=error.remedy,
                ) from None
        scope._values[name] = value
        waiting.pop()


def _needed(scope: Scope, name: str, definition: Assignment) -> Iterator[tuple[Scope, str]]:
    """Yield what a definition's text refers to, through the functions it calls."""
    texts: list[tuple[str, tuple[str, ...]]] = [(definition.text, ())]
    seen: set[str] = set()
    while texts:
        text, arguments = texts.pop()
        for match in _USED.finditer(text):
            used = match[1]
            if used is None or used in arguments:
                continue
            if text[match.end() : match.end() + 1] == "(":
                function = scope.functions.get(used)
                if function is not None and used not in seen:
                    seen.add(used)
                    texts.append((function.text, function.arguments))
                continue
            if used != name:
                owner = scope._owner(used)
            else:
                owner = (scope.caller._owner(used) if scope.caller is not None else None) or scope
            if owner is not None:
                yield owner, used
