"""Behavioural expressions: SPICE text over voltages and currents, and the formula that it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from circuitsim.errors import NetlistError
from circuitsim.netlist.expression_text import LONGEST_TEXT, PRECEDENCE, UserFunction, read_formula
from circuitsim.netlist.formulas import RULES, Formula, Operation, Tape

__all__ = ["Current", "Drop", "Expression", "Formula", "UserFunction", "parse_constant", "parse_expression"]

_GROUND = 0
_ATOM = 9
_LOOSE = 0
_COMPARISONS = (PRECEDENCE[Operation.EQUAL], PRECEDENCE[Operation.LESS])


@dataclass(frozen=True)
class Drop:
    """Voltage between two nodes [V], by index: ``v_pos - v_neg``."""

    pos: int
    neg: int


@dataclass(frozen=True)
class Current:
    """Current through a voltage source [A] from its pos to its neg node, by the source's row."""

    source: int


@dataclass(frozen=True)
class Expression:
    """A formula and what its inputs are."""

    formula: Formula
    inputs: tuple[Drop | Current, ...]

    def text(
        self,
        node_names: Sequence[str],
        source_names: Sequence[str],
        number: Callable[[float], str] = repr,
    ) -> str:
        """Return SPICE text that parses to an equal expression; ngspice reads it the same way.

        Args:
            node_names: by index, ground first: ``0``.
            source_names: of the voltage sources, by row.
            number: writes a constant; what it writes must be worth that constant to the last bit.

        Raises:
            NetlistError: the text would be too long; what a formula shares, its text repeats.
        """
        formula = self.formula
        parts: list[tuple[str, int]] = []
        for k, code in enumerate(formula.op):
            operation = Operation(code)
            if operation is Operation.CONSTANT:
                digits = number(formula.constant[k])
                parts.append((f"({digits})" if digits.startswith("-") else digits, _ATOM))
            elif operation is Operation.INPUT:
                parts.append((_probe(self.inputs[formula.a[k]], node_names, source_names), _ATOM))
            elif operation is Operation.TIME:
                parts.append(("time", _ATOM))
            else:
                places = (formula.a[k], formula.b[k], formula.c[k])[: RULES[operation].operands]
                parts.append(_written(operation, [parts[place] for place in places]))
            if len(parts[-1][0]) > LONGEST_TEXT:
                raise NetlistError(
                    f"is longer than {LONGEST_TEXT} characters when written out",
                    remedy="Give what it repeats a source and a node of its own.",
                )
        return parts[-1][0]


def _probe(quantity: Drop | Current, node_names: Sequence[str], source_names: Sequence[str]) -> str:
    if isinstance(quantity, Current):
        return f"i({source_names[quantity.source]})"
    if quantity.neg == _GROUND:
        return f"v({node_names[quantity.pos]})"
    return f"v({node_names[quantity.pos]},{node_names[quantity.neg]})"


def _written(operation: Operation, operands: list[tuple[str, int]]) -> tuple[str, int]:
    """Return the text of an operation on written operands, and how tightly the text binds."""
    name = RULES[operation].name
    texts = [text for text, _ in operands]
    if operation is Operation.SELECT:
        return f"({texts[0]} ? {texts[1]} : {texts[2]})", _ATOM
    precedence = PRECEDENCE.get(operation)
    if precedence is None or operation is Operation.POWER:
        return f"{name}({', '.join(texts)})", _ATOM
    if len(operands) == 1:
        # A sign beside another operator is read in more than one way.
        return f"{name}{_bracketed(operands[0], precedence + 1)}", _LOOSE
    # Comparisons in a row are legal and mean what nobody expects.
    left = precedence + 1 if precedence in _COMPARISONS else precedence
    return f"{_bracketed(operands[0], left)} {name} {_bracketed(operands[1], precedence + 1)}", precedence


def _bracketed(operand: tuple[str, int], least: int) -> str:
    text, precedence = operand
    return text if precedence >= least else f"({text})"


def parse_expression(
    text: str,
    *,
    node: Callable[[str], int],
    source: Callable[[str], int],
    parameters: Mapping[str, float] = MappingProxyType({}),
    functions: Mapping[str, UserFunction] = MappingProxyType({}),
) -> Expression:
    """Return the expression that the text of a SPICE B source means; see `expression_text` for the grammar.

    Args:
        text: with or without braces or quotes around it.
        node: returns a node's index by its name as written; may raise what it likes.
        source: returns a voltage source's row by its name as written.
        parameters: values by lower-case name, ``temper`` [C] included where it is wanted.
        functions: ``.func`` by lower-case name.

    Raises:
        NetlistError: not an expression; the message names what was met, and where.
    """
    tape = Tape()

    def probe(letter: str, names: tuple[str, ...]) -> int:
        if letter == "i":
            return tape.input(Current(source(names[0])))
        drop = Drop(node(names[0]), node(names[1]) if len(names) > 1 else _GROUND)
        return tape.constant(0.0) if drop.pos == drop.neg else tape.input(drop)

    place = read_formula(text, tape, probe=probe, parameters=parameters, functions=functions)
    formula, inputs = _finished(tape, place, text)
    return Expression(formula, tuple(key for key in inputs if isinstance(key, Drop | Current)))


def parse_constant(
    text: str,
    *,
    parameters: Mapping[str, float] = MappingProxyType({}),
    functions: Mapping[str, UserFunction] = MappingProxyType({}),
) -> float:
    """Return the number that the text of a parameter means: no voltages, currents and time.

    Raises:
        NetlistError: not an expression, or not finite.
    """
    tape = Tape(plain=True)
    place = read_formula(text, tape, probe=None, parameters=parameters, functions=functions)
    formula, _ = _finished(tape, place, text)
    return formula.constant[0]


def _finished(tape: Tape, place: int, text: str) -> tuple[Formula, tuple[object, ...]]:
    try:
        return tape.formula(place)
    except NetlistError as error:
        raise NetlistError(error.rule, value=text, remedy=error.remedy) from None
