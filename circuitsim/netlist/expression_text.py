"""The grammar of SPICE expressions: text -> steps on a tape, without recursion on the text's depth.

Precedence, from tight to loose, all from left to right: ``^ **``; unary ``+ - ! ~``; ``* /``; ``+ -``;
``< <= > >=``; ``== != <>``; ``&& &``; ``|| |``; ``? :`` (from right to left). So ``-2^2`` is -4, ``2^-1`` is
0.5 and ``2^3^2`` is 64, as in a B source of ngspice 39 (measured). A ``.param`` of ngspice differs in four
places, and so do parameters here: a minus after an operator is tightest (``2*-3^2`` is 18), ``pow`` keeps the
sign (``pow(-2,3)`` is -8) where ``pwr`` drops it, ``%`` is a remainder, and overflow is an error.

Braces are brackets. ngspice 39 takes inner ones away instead, so that its ``2*{1+1}`` is 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from circuitsim.errors import NetlistError
from circuitsim.netlist.expression_functions import BUILT_IN, PARAMETER_FUNCTIONS, apply_numbers
from circuitsim.netlist.formulas import RULES, Operation, Tape
from circuitsim.units import spice_number

__all__ = ["LONGEST_TEXT", "PRECEDENCE", "UserFunction", "read_formula"]

LONGEST_TEXT = 200_000
"""Characters of one expression, read or written."""
_DEEPEST = 1000
"""Brackets, calls and signs inside each other."""
_DEEPEST_CALL = 40
"""Functions of the user inside each other."""
_MOST_TOKENS = 200_000
"""Tokens read for one expression, those of the functions that it calls included."""

PRECEDENCE: Mapping[Operation, int] = {
    Operation.OR: 1,
    Operation.AND: 2,
    Operation.EQUAL: 3,
    Operation.UNEQUAL: 3,
    Operation.LESS: 4,
    Operation.LESS_OR_EQUAL: 4,
    Operation.GREATER: 4,
    Operation.GREATER_OR_EQUAL: 4,
    Operation.ADD: 5,
    Operation.SUBTRACT: 5,
    Operation.MULTIPLY: 6,
    Operation.DIVIDE: 6,
    Operation.NEGATIVE: 7,
    Operation.NOT: 7,
    Operation.POWER: 8,
}
"""How tightly an operator binds; what is not here is an atom in text, or is written in brackets."""
_TERNARY = 0
_SIGN = PRECEDENCE[Operation.NEGATIVE]
_TIGHTEST = 9

_BINARY = {
    **{RULES[op].name: op for op in PRECEDENCE if RULES[op].operands == 2 and op is not Operation.POWER},
    "<>": Operation.UNEQUAL,
    "&": Operation.AND,
    "|": Operation.OR,
    "^": Operation.POWER,
    "**": Operation.POWER,
}
_UNARY = {"-": Operation.NEGATIVE, "!": Operation.NOT, "~": Operation.NOT, "+": None}
_CLOSING = {"(": ")", "{": "}"}
_CONSTANTS = {"pi": math.pi, "e": math.e}

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<probe>[vi]\s*\((?P<named>[^()]*)\))
    |(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?[a-zµμ]*)
    |(?P<name>[a-z_][a-z0-9_.$\#@]*)
    |(?P<sign>\*\*|<=|>=|==|!=|<>|&&|\|\||[-+*/^<>!~?:(),{}&|%])
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class UserFunction:
    """A ``.func``: the names of its arguments, lower case, and its text."""

    arguments: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


@dataclass(frozen=True, slots=True)
class _Argument:
    """What a function of the user was called with, read where its body first asks for it."""

    tokens: Sequence[_Token]
    scope: _Scope


@dataclass(slots=True)
class _Scope:
    """Where a stretch of text stands: its names of arguments, and what they were found to be."""

    text: str
    arguments: Mapping[str, _Argument] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Pending:
    """An operator, bracket or call that waits for its last operand."""

    token: _Token
    kind: str
    """unary, binary, then (``?``), else (``:``), bracket or call."""
    precedence: int = _TERNARY
    operation: Operation | None = None
    start: int = 0
    """Operands there were when a call began."""

    @property
    def bracket(self) -> str:
        return "(" if self.kind == "call" else self.token.text


def read_formula(
    text: str,
    tape: Tape,
    *,
    probe: Callable[[str, tuple[str, ...]], int] | None,
    parameters: Mapping[str, float],
    functions: Mapping[str, UserFunction],
) -> int:
    """Write the formula that ``text`` means on a tape and return the place of its value.

    Args:
        text: as it stands in a deck; quotes or braces around it are taken off.
        tape: to write on.
        probe: returns the place of ``v(...)`` or ``i(...)`` from the letter and the names in the
            brackets; None where there are no voltages, currents and time: in a parameter.
        parameters: values by lower-case name.
        functions: by lower-case name; they hide those that are built in.

    Raises:
        NetlistError: not an expression, or one out of bounds.
    """
    return _Reader(tape, probe, parameters, functions).read(_unwrapped(text))


def _unwrapped(text: str) -> str:
    """Return text without the quotes around it; braces are brackets anyhow."""
    inner = text.strip()
    while len(inner) > 1 and inner[0] == inner[-1] and inner[0] in "'\"":
        inner = inner[1:-1].strip()
    return inner


class _Reader:
    """Shunting yard: operands are places on the tape; operators wait on a list of their own."""

    def __init__(
        self,
        tape: Tape,
        probe: Callable[[str, tuple[str, ...]], int] | None,
        parameters: Mapping[str, float],
        functions: Mapping[str, UserFunction],
    ) -> None:
        self.tape = tape
        self.probe = probe
        self.parameters = parameters
        self.functions = functions
        self.bodies: dict[str, list[_Token]] = {}
        self.tokens_left = _MOST_TOKENS
        self.calls = 0

    def read(self, text: str) -> int:
        scope = _Scope(text)
        return self.run(list(_tokens(text)), scope)

    def run(self, tokens: Sequence[_Token], scope: _Scope) -> int:
        """Write a stretch of tokens and return the place of its value."""
        self.tokens_left -= len(tokens)
        if self.tokens_left < 0:
            raise NetlistError(f"takes more than {_MOST_TOKENS} steps to read", value=scope.text)
        return _Run(self, tokens, scope).place()

    def body(self, name: str) -> list[_Token]:
        if name not in self.bodies:
            self.bodies[name] = list(_tokens(_unwrapped(self.functions[name].text)))
        return self.bodies[name]


class _Run:
    """One stretch of tokens on its way to the tape."""

    def __init__(self, reader: _Reader, tokens: Sequence[_Token], scope: _Scope) -> None:
        self.reader = reader
        self.tape = reader.tape
        self.tokens = tokens
        self.scope = scope
        self.operands: list[int] = []
        self.pending: list[_Pending] = []

    def place(self) -> int:
        wants_operand = True
        k = 0
        while k < len(self.tokens):
            if wants_operand:
                k, wants_operand = self.operand(k)
            else:
                wants_operand = self.operator(self.tokens[k])
                k += 1
            if len(self.pending) > _DEEPEST:
                raise self.problem(f"is nested deeper than {_DEEPEST} levels", self.tokens[k - 1])
        if wants_operand:
            raise self.problem("ends where a value should stand" if self.tokens else "is empty")
        self.reduce(_TERNARY)
        if self.pending:
            raise self.unfinished(self.pending[-1])
        return self.operands.pop()

    def operand(self, k: int) -> tuple[int, bool]:
        """Take the token where a value should stand; return the next one's index, and whether a value is
        still wanted."""
        token = self.tokens[k]
        if token.kind == "number":
            self.operands.append(self.tape.constant(self.number(token)))
        elif token.kind == "probe":
            self.operands.append(self.probed(token))
        elif token.kind == "name":
            if k + 1 < len(self.tokens) and self.tokens[k + 1].text == "(":
                return self.call(k)
            self.operands.append(self.named(token))
        elif token.text in _CLOSING:
            self.pending.append(_Pending(token, "bracket"))
            return k + 1, True
        elif token.text in _UNARY:
            # In a parameter, ngspice takes the minus of `2*-3^2` for a part of the number.
            tight = self.reader.probe is None and k > 0 and self.tokens[k - 1].text not in ("(", "{", ",")
            tight = tight or (self.reader.probe is None and token.text in ("!", "~"))
            self.pending.append(_Pending(token, "unary", _TIGHTEST if tight else _SIGN, _UNARY[token.text]))
            return k + 1, True
        else:
            raise self.problem("has no value before", token)
        return k + 1, False

    def operator(self, token: _Token) -> bool:
        """Take the token after a value; return whether a value must follow."""
        if token.kind == "sign":
            operation = _BINARY.get(token.text)
            if operation is not None:
                precedence = PRECEDENCE[operation]
                self.reduce(precedence)
                self.pending.append(_Pending(token, "binary", precedence, operation))
                return True
            if token.text == "%" and self.reader.probe is None:
                self.reduce(PRECEDENCE[Operation.MULTIPLY])
                self.pending.append(_Pending(token, "binary", PRECEDENCE[Operation.MULTIPLY]))
                return True
            if token.text == "?":
                self.reduce(_TERNARY + 1)
                self.pending.append(_Pending(token, "then"))
                return True
            if token.text == ":":
                self.reduce(_TERNARY)
                if not self.pending or self.pending[-1].kind != "then":
                    raise self.problem("has a colon without a question mark", token)
                self.pending[-1] = _Pending(token, "else")
                return True
            if token.text == ",":
                self.reduce(_TERNARY)
                if not self.pending or self.pending[-1].kind != "call":
                    raise self.problem("has a comma outside a function", token)
                return True
            if token.text in _CLOSING.values():
                self.close(token)
                return False
        raise self.problem("has no operator before", token)

    def reduce(self, precedence: int) -> None:
        """Write every waiting operator that binds at least as tightly."""
        while self.pending and self.pending[-1].kind in ("unary", "binary", "else"):
            top = self.pending[-1]
            if top.precedence < precedence:
                break
            self.pending.pop()
            if top.kind == "else":
                c, b, a = (self.operands.pop() for _ in range(3))
                self.operands.append(self.tape.apply(Operation.SELECT, a, b, c))
            elif top.kind == "unary":
                if top.operation is not None:
                    self.operands.append(self.tape.apply(top.operation, self.operands.pop()))
            else:
                b, a = self.operands.pop(), self.operands.pop()
                if top.operation is None:
                    self.operands.append(apply_numbers(self.tape, math.fmod, (a, b)))
                else:
                    self.operands.append(self.tape.apply(top.operation, a, b))

    def close(self, token: _Token) -> None:
        self.reduce(_TERNARY)
        if not self.pending:
            raise self.problem("has no opening bracket for", token)
        opened = self.pending[-1]
        if opened.kind == "then":
            raise self.unfinished(opened)
        if token.text != _CLOSING[opened.bracket]:
            raise self.problem("does not close what was opened last with", token)
        self.pending.pop()
        if opened.kind == "call":
            arguments = tuple(self.operands[opened.start :])
            del self.operands[opened.start :]
            self.operands.append(self.built_in(opened.token, arguments))

    def number(self, token: _Token) -> float:
        value = spice_number(token.text.lower())
        if value is None:
            raise self.problem("has no finite number in", token, "Write for example 10k, 2meg, 1u, 1e-3.")
        return value

    def probed(self, token: _Token) -> int:
        letter = token.text[0].lower()
        if self.reader.probe is None:
            raise self.problem("must be known before the circuit is solved, so it cannot hold", token)
        inside = token.text.partition("(")[2][:-1]
        # An argument of a function is a value: within v() and i() its name is a node's, as in ngspice.
        names = tuple(name.strip() for name in inside.split(","))
        if not all(names) or len(names) > (2 if letter == "v" else 1):
            form = "v(node) or v(node,node)" if letter == "v" else "i(source)"
            raise self.problem(f"needs {form} instead of", token)
        return self.reader.probe(letter, names)

    def named(self, token: _Token) -> int:
        name = token.text.lower()
        argument = self.scope.arguments.get(name)
        if argument is not None:
            if name not in self.scope.places:
                self.enter(token)
                self.scope.places[name] = self.reader.run(argument.tokens, argument.scope)
                self.reader.calls -= 1
            return self.scope.places[name]
        if name == "time" and self.reader.probe is not None:
            return self.tape.time()
        value = self.reader.parameters.get(name, _CONSTANTS.get(name))
        if value is None:
            solved = [] if self.reader.probe is None else ["v(node)", "i(source)", "time"]
            known = [*solved, *_CONSTANTS, *self.scope.arguments, *sorted(self.reader.parameters)]
            raise self.problem("has an unknown name,", token, f"Known: {_listed(known)}.")
        return self.tape.constant(value)

    def call(self, k: int) -> tuple[int, bool]:
        """Take a name and the bracket after it."""
        token = self.tokens[k]
        name = token.text.lower()
        function = self.reader.functions.get(name)
        if function is None:
            if name not in BUILT_IN:
                known = sorted({*BUILT_IN, *self.reader.functions})
                raise self.problem("has an unknown function,", token, f"Known: {', '.join(known)}.")
            self.pending.append(_Pending(token, "call", start=len(self.operands)))
            return k + 2, True
        arguments, end = self.arguments(k)
        if len(arguments) != len(function.arguments):
            raise self.problem(f"needs {len(function.arguments)} arguments, not {len(arguments)}, in", token)
        scope = _Scope(
            function.text,
            {n.lower(): _Argument(t, self.scope) for n, t in zip(function.arguments, arguments, strict=True)},
        )
        self.enter(token)
        self.operands.append(self.reader.run(self.reader.body(name), scope))
        self.reader.calls -= 1
        return end, False

    def enter(self, token: _Token) -> None:
        self.reader.calls += 1
        if self.reader.calls > _DEEPEST_CALL:
            raise self.problem(
                f"calls functions more than {_DEEPEST_CALL} levels deep at",
                token,
                "A .func must not call itself.",
            )

    def arguments(self, k: int) -> tuple[list[Sequence[_Token]], int]:
        """Return the tokens of each argument of the call at ``k``, and the index after its bracket."""
        found: list[Sequence[_Token]] = []
        depth = 0
        begin = k + 2
        for end in range(k + 1, len(self.tokens)):
            text = self.tokens[end].text
            if text in _CLOSING:
                depth += 1
            elif text in _CLOSING.values():
                depth -= 1
            if (text == "," and depth == 1) or depth == 0:
                found.append(self.tokens[begin:end])
                begin = end + 1
            if depth == 0:
                return ([] if found == [[]] else found), end + 1
        raise self.problem("lacks a ')' for", self.tokens[k])

    def built_in(self, token: _Token, arguments: tuple[int, ...]) -> int:
        name = token.text.lower()
        function = BUILT_IN[name]
        if not function.least <= len(arguments) <= function.most:
            exact = function.least == function.most
            bound = f"{'' if exact else 'at least '}{function.least}"
            if len(arguments) > function.most and not exact:
                bound = f"at most {function.most}"
            raise self.problem(f"needs {bound} arguments, not {len(arguments)}, in", token)
        if self.reader.probe is None and name in PARAMETER_FUNCTIONS:
            return apply_numbers(self.tape, PARAMETER_FUNCTIONS[name], arguments)
        try:
            return function.build(self.tape, *arguments)
        except ValueError as error:
            raise self.problem(f"{error} in", token) from None

    def unfinished(self, opened: _Pending) -> NetlistError:
        missing = "':'" if opened.kind == "then" else repr(_CLOSING[opened.bracket])
        return self.problem(f"lacks a {missing} for", opened.token)

    def problem(self, rule: str, token: _Token | None = None, remedy: str | None = None) -> NetlistError:
        if token is not None:
            rule = f"{rule} {_short(token.text)!r} at character {token.position + 1}"
        return NetlistError(rule, value=self.scope.text, remedy=remedy)


def _tokens(text: str) -> Iterator[_Token]:
    if len(text) > LONGEST_TEXT:
        raise NetlistError(f"is longer than {LONGEST_TEXT} characters", value=text)
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NetlistError(
                f"has {text[position]!r} at character {position + 1}, which no expression holds", value=text
            )
        kind = match.lastgroup or ""
        if kind == "named":
            kind = "probe"
        if kind != "space":
            yield _Token(kind, match[0], position)
        position = match.end()


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
