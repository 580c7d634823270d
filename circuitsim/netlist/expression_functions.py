"""The functions of SPICE expressions, as steps on a tape.

Meanings are ngspice 39's; what only other simulators have (``if``, ``limit`` with three arguments, ``int``,
``sign``, ``stp``, ``table``, ``atan2``, ``pwrs``) is made of operations that ngspice has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from circuitsim.netlist.formulas import RULES, Operation, Tape

__all__ = ["BUILT_IN", "PARAMETER_FUNCTIONS", "BuiltIn", "apply_numbers"]

_MOST_POINTS = 2000
_Build = Callable[..., int]


@dataclass(frozen=True)
class BuiltIn:
    """A function: how many arguments it takes, and what writes it on a tape.

    ``build`` raises ValueError for arguments that it cannot use.
    """

    least: int
    most: int
    build: _Build


def _operation(operation: Operation) -> BuiltIn:
    def build(tape: Tape, *operands: int) -> int:
        return tape.apply(operation, *operands)

    count = RULES[operation].operands
    return BuiltIn(count, count, build)


def _chain(operation: Operation) -> BuiltIn:
    """Minimum or maximum of two numbers or more."""

    def build(tape: Tape, first: int, *others: int) -> int:
        for other in others:
            first = tape.apply(operation, first, other)
        return first

    return BuiltIn(2, 1000, build)


def _signed_power(tape: Tape, x: int, exponent: int) -> int:
    power = tape.apply(Operation.POWER, x, exponent)
    return tape.apply(Operation.MULTIPLY, tape.apply(Operation.SIGN, x), power)


def _limit(tape: Tape, x: int, low: int, high: int) -> int:
    """Hold x between two bounds, which may come in either order."""
    least, most = (tape.apply(op, low, high) for op in (Operation.MINIMUM, Operation.MAXIMUM))
    return tape.apply(Operation.MINIMUM, tape.apply(Operation.MAXIMUM, x, least), most)


def _whole(tape: Tape, x: int) -> int:
    """Round towards 0."""
    below, above = tape.apply(Operation.FLOOR, x), tape.apply(Operation.CEILING, x)
    return tape.apply(Operation.SELECT, tape.apply(Operation.LESS, x, tape.constant(0.0)), above, below)


def _transferred_sign(tape: Tape, x: int, y: int) -> int:
    return tape.apply(Operation.MULTIPLY, tape.apply(Operation.SIGN, y), tape.apply(Operation.ABSOLUTE, x))


def _compared(operation: Operation) -> BuiltIn:
    """A comparison with 0."""
    return BuiltIn(1, 1, lambda tape, x: tape.apply(operation, x, tape.constant(0.0)))


def _positive(tape: Tape, x: int) -> int:
    return tape.apply(Operation.GREATER, x, tape.constant(0.0))


def _square(tape: Tape, x: int) -> int:
    return tape.apply(Operation.MULTIPLY, x, x)


def _angle(tape: Tape, y: int, x: int) -> int:
    """atan2(y, x): from the arc tangent of the smaller over the larger, right in every quadrant."""
    apply, constant = tape.apply, tape.constant
    zero = constant(0.0)
    below = apply(Operation.LESS, y, zero)
    half_turn = apply(Operation.SELECT, below, constant(-math.pi), constant(math.pi))
    quarter_turn = apply(Operation.SELECT, below, constant(-math.pi / 2), constant(math.pi / 2))
    flat = apply(Operation.ATAN, apply(Operation.DIVIDE, y, x))
    turned = apply(Operation.ADD, flat, half_turn)
    ahead_or_behind = apply(Operation.SELECT, apply(Operation.LESS, x, zero), turned, flat)
    steep = apply(Operation.SUBTRACT, quarter_turn, apply(Operation.ATAN, apply(Operation.DIVIDE, x, y)))
    origin = apply(Operation.EQUAL, y, zero)
    leans = apply(Operation.GREATER, apply(Operation.ABSOLUTE, x), apply(Operation.ABSOLUTE, y))
    at_side = apply(Operation.SELECT, origin, zero, steep)
    return apply(Operation.SELECT, leans, ahead_or_behind, at_side)


def _table(extended: bool) -> BuiltIn:
    """Straight lines between points; beyond the ends the last lines, or the last values."""

    def build(tape: Tape, x: int, *rest: int) -> int:
        points = [tape.known(place) for place in rest]
        numbers = [point for point in points if point is not None and math.isfinite(point)]
        if len(numbers) != len(points):
            raise ValueError("needs finite constants as points")
        if len(points) % 2:
            raise ValueError("needs an x and a y for every point")
        at, y = numbers[::2], numbers[1::2]
        if any(after <= before for before, after in pairwise(at)):
            raise ValueError("needs points at rising x")
        found = _lines(tape, x, at, y)
        if extended:
            return found
        below = tape.apply(Operation.LESS, x, tape.constant(at[0]))
        above = tape.apply(Operation.GREATER, x, tape.constant(at[-1]))
        held = tape.apply(Operation.SELECT, above, tape.constant(y[-1]), found)
        return tape.apply(Operation.SELECT, below, tape.constant(y[0]), held)

    return BuiltIn(5, 2 * _MOST_POINTS + 1, build)


def _lines(tape: Tape, x: int, at: Sequence[float], y: Sequence[float]) -> int:
    """Search the points by halves, so that the depth is the logarithm of their number."""

    def line(k: int) -> int:
        slope = (y[k + 1] - y[k]) / (at[k + 1] - at[k])
        if slope == 0:
            return tape.constant(y[k])
        run = tape.apply(Operation.SUBTRACT, x, tape.constant(at[k])) if at[k] else x
        rise = tape.apply(Operation.MULTIPLY, tape.constant(slope), run)
        return tape.apply(Operation.ADD, tape.constant(y[k]), rise) if y[k] else rise

    def between(first: int, last: int) -> int:
        if last - first == 1:
            return line(first)
        middle = (first + last) // 2
        left = tape.apply(Operation.LESS, x, tape.constant(at[middle]))
        return tape.apply(Operation.SELECT, left, between(first, middle), between(middle, last))

    return between(0, len(at) - 1)


def apply_numbers(tape: Tape, function: Callable[..., float], places: Sequence[int]) -> int:
    """Return the place of a function of constants; what has no value is NaN."""
    numbers = [tape.known(place) for place in places]
    try:
        return tape.constant(function(*numbers))
    except (ValueError, OverflowError, ZeroDivisionError):
        return tape.constant(math.nan)


BUILT_IN: Mapping[str, BuiltIn] = {
    **{rule.name: _operation(op) for op, rule in RULES.items() if rule.name.isalnum()},
    "min": _chain(Operation.MINIMUM),
    "max": _chain(Operation.MAXIMUM),
    "log": _operation(Operation.LN),
    "arctan": _operation(Operation.ATAN),
    "if": _operation(Operation.SELECT),
    "ternary_fcn": _operation(Operation.SELECT),
    "pwr": BuiltIn(2, 2, _signed_power),
    "pwrs": BuiltIn(2, 2, _signed_power),
    "limit": BuiltIn(3, 3, _limit),
    "int": BuiltIn(1, 1, _whole),
    "sign": BuiltIn(2, 2, _transferred_sign),
    "stp": BuiltIn(1, 1, _positive),
    **{
        f"{name}0": _compared(operation)
        for name, operation in {
            "eq": Operation.EQUAL,
            "ne": Operation.UNEQUAL,
            "gt": Operation.GREATER,
            "lt": Operation.LESS,
            "ge": Operation.GREATER_OR_EQUAL,
            "le": Operation.LESS_OR_EQUAL,
        }.items()
    },
    "sqr": BuiltIn(1, 1, _square),
    "atan2": BuiltIn(2, 2, _angle),
    "table": _table(extended=False),
    "pwl": _table(extended=True),
}
"""By lower-case name."""

PARAMETER_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "pow": math.pow,
    "pwr": lambda x, y: math.pow(abs(x), y),
}
"""What means something else in ngspice's parameters than in its sources."""
