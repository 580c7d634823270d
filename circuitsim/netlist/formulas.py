"""Formulas as tapes: each operation works on earlier results, and the last result is the value.

What an operation means, on odd arguments too, is what ngspice 39 makes of it in a B source (measured):

- ``x/y`` is ``x/(y +- 1e-32)``, away from zero: it never overflows, and 0/0 is 0;
- a power is one of the base's absolute value; it, and exp, end at 1e99; ln and log10 of 0 are -1e99;
- ln, log10, sqrt, asin, acos, acosh, atanh outside their domain are not a number.

A slope is that of the branch taken: 0 for comparisons, roundings and steps. Where it would be infinite
(sqrt at 0) or not a number it is 0, so that it is finite wherever the value is; the slope of exp
beyond its end is the value, 1e99, which leads Newton's method back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum, auto
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import NetlistError

__all__ = [
    "LARGEST_EXPONENT",
    "LARGEST_TANH",
    "LARGEST_VALUE",
    "RULES",
    "SMALLEST_DIVISOR",
    "Formula",
    "Operation",
    "Rule",
    "Tape",
]

LARGEST_EXPONENT = 227.9559242
"""exp rises no further beyond this argument; exp of it is 1e99."""
LARGEST_VALUE = 1e99
LARGEST_TANH = 1 - 1e-12
"""atanh is held beyond it, so that it undoes a tanh that rounds to 1."""
SMALLEST_DIVISOR = 1e-32
"""Added to the size of every divisor; ngspice's is 1e-20 times its gmin."""
_MOST_OPERATIONS = 20_000


class Operation(IntEnum):
    """What one step of a tape does. ``a``, ``b`` and ``c`` are its operands' places on the tape."""

    CONSTANT = 0
    INPUT = auto()
    """``a`` is the number of the input."""
    TIME = auto()
    NEGATIVE = auto()
    NOT = auto()
    ADD = auto()
    SUBTRACT = auto()
    MULTIPLY = auto()
    DIVIDE = auto()
    LESS = auto()
    LESS_OR_EQUAL = auto()
    GREATER = auto()
    GREATER_OR_EQUAL = auto()
    EQUAL = auto()
    UNEQUAL = auto()
    AND = auto()
    OR = auto()
    SELECT = auto()
    """``b`` where ``a`` is not 0, else ``c``."""
    POWER = auto()
    """The base ``a`` is never negative: `Tape` takes its absolute value."""
    MINIMUM = auto()
    MAXIMUM = auto()
    ABSOLUTE = auto()
    SIGN = auto()
    STEP = auto()
    """0 below 0, 1 above, 0.5 at it."""
    UNIT_RAMP = auto()
    """The operand, held between 0 and 1."""
    RAMP = auto()
    FLOOR = auto()
    CEILING = auto()
    NEAREST = auto()
    """Halves go to the even neighbour."""
    EXP = auto()
    LN = auto()
    LOG10 = auto()
    SQRT = auto()
    SIN = auto()
    COS = auto()
    TAN = auto()
    SINH = auto()
    COSH = auto()
    TANH = auto()
    ASIN = auto()
    ACOS = auto()
    ATAN = auto()
    ASINH = auto()
    ACOSH = auto()
    ATANH = auto()


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """One operation: its name in text, value and slopes.

    ``slopes`` takes the operands and the value and returns one slope per operand; None: all 0.
    """

    name: str
    operands: int
    value: Callable[..., Any]
    slopes: Callable[..., tuple[Any, ...]] | None = None


def _divisor(y: Array) -> Array:
    return np.where(y >= 0, y + SMALLEST_DIVISOR, y - SMALLEST_DIVISOR)


def _logarithm(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: np.where(x == 0, -LARGEST_VALUE, function(x))


def _truth(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda *operands: function(*operands).astype(np.float64)


RULES = MappingProxyType(
    {
        Operation.NEGATIVE: Rule("-", 1, lambda x: -x, lambda x, y: (-1.0,)),
        Operation.NOT: Rule("!", 1, _truth(lambda x: x == 0)),
        Operation.ADD: Rule("+", 2, lambda x, z: x + z, lambda x, z, y: (1.0, 1.0)),
        Operation.SUBTRACT: Rule("-", 2, lambda x, z: x - z, lambda x, z, y: (1.0, -1.0)),
        Operation.MULTIPLY: Rule("*", 2, lambda x, z: x * z, lambda x, z, y: (z, x)),
        Operation.DIVIDE: Rule(
            "/", 2, lambda x, z: x / _divisor(z), lambda x, z, y: (1 / _divisor(z), -y / _divisor(z))
        ),
        Operation.LESS: Rule("<", 2, _truth(lambda x, z: x < z)),
        Operation.LESS_OR_EQUAL: Rule("<=", 2, _truth(lambda x, z: x <= z)),
        Operation.GREATER: Rule(">", 2, _truth(lambda x, z: x > z)),
        Operation.GREATER_OR_EQUAL: Rule(">=", 2, _truth(lambda x, z: x >= z)),
        Operation.EQUAL: Rule("==", 2, _truth(lambda x, z: x == z)),
        Operation.UNEQUAL: Rule("!=", 2, _truth(lambda x, z: x != z)),
        Operation.AND: Rule("&&", 2, _truth(lambda x, z: (x != 0) & (z != 0))),
        Operation.OR: Rule("||", 2, _truth(lambda x, z: (x != 0) | (z != 0))),
        Operation.SELECT: Rule(
            "?",
            3,
            lambda x, z, w: np.where(x != 0, z, w),
            lambda x, z, w, y: (0.0, np.where(x != 0, 1.0, 0.0), np.where(x != 0, 0.0, 1.0)),
        ),
        Operation.POWER: Rule(
            "pow",
            2,
            lambda x, z: np.minimum(x**z, LARGEST_VALUE),
            lambda x, z, y: (np.where(z == 0, 0.0, z * x ** (z - 1)), np.where(x > 0, y * np.log(x), 0.0)),
        ),
        Operation.MINIMUM: Rule(
            "min",
            2,
            lambda x, z: np.where(x > z, z, x),
            lambda x, z, y: (np.where(x > z, 0.0, 1.0), np.where(x > z, 1.0, 0.0)),
        ),
        Operation.MAXIMUM: Rule(
            "max",
            2,
            lambda x, z: np.where(x > z, x, z),
            lambda x, z, y: (np.where(x > z, 1.0, 0.0), np.where(x > z, 0.0, 1.0)),
        ),
        Operation.ABSOLUTE: Rule("abs", 1, np.abs, lambda x, y: (np.sign(x),)),
        Operation.SIGN: Rule("sgn", 1, lambda x: np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0))),
        Operation.STEP: Rule("u", 1, lambda x: np.where(x < 0, 0.0, np.where(x > 0, 1.0, 0.5))),
        Operation.UNIT_RAMP: Rule(
            "u2",
            1,
            lambda x: np.where(x <= 0, 0.0, np.where(x <= 1, x, 1.0)),
            lambda x, y: (np.where((x > 0) & (x <= 1), 1.0, 0.0),),
        ),
        Operation.RAMP: Rule(
            "uramp", 1, lambda x: np.where(x < 0, 0.0, x), lambda x, y: (np.where(x < 0, 0.0, 1.0),)
        ),
        Operation.FLOOR: Rule("floor", 1, np.floor),
        Operation.CEILING: Rule("ceil", 1, np.ceil),
        Operation.NEAREST: Rule("nint", 1, np.rint),
        Operation.EXP: Rule(
            "exp",
            1,
            lambda x: np.where(x > LARGEST_EXPONENT, LARGEST_VALUE, np.exp(np.minimum(x, LARGEST_EXPONENT))),
            lambda x, y: (y,),
        ),
        Operation.LN: Rule("ln", 1, _logarithm(np.log), lambda x, y: (1 / x,)),
        Operation.LOG10: Rule("log10", 1, _logarithm(np.log10), lambda x, y: (1 / (x * np.log(10.0)),)),
        Operation.SQRT: Rule("sqrt", 1, np.sqrt, lambda x, y: (0.5 / y,)),
        Operation.SIN: Rule("sin", 1, np.sin, lambda x, y: (np.cos(x),)),
        Operation.COS: Rule("cos", 1, np.cos, lambda x, y: (-np.sin(x),)),
        Operation.TAN: Rule("tan", 1, np.tan, lambda x, y: (1 + y * y,)),
        Operation.SINH: Rule("sinh", 1, np.sinh, lambda x, y: (np.cosh(x),)),
        Operation.COSH: Rule("cosh", 1, np.cosh, lambda x, y: (np.sinh(x),)),
        # 1 - tanh^2 would lose its digits where the function is nearly flat.
        Operation.TANH: Rule("tanh", 1, np.tanh, lambda x, y: (1 / np.cosh(x) / np.cosh(x),)),
        Operation.ASIN: Rule("asin", 1, np.arcsin, lambda x, y: (1 / np.sqrt((1 - x) * (1 + x)),)),
        Operation.ACOS: Rule("acos", 1, np.arccos, lambda x, y: (-1 / np.sqrt((1 - x) * (1 + x)),)),
        Operation.ATAN: Rule("atan", 1, np.arctan, lambda x, y: (1 / (1 + x * x),)),
        Operation.ASINH: Rule("asinh", 1, np.arcsinh, lambda x, y: (1 / np.sqrt(x * x + 1),)),
        Operation.ACOSH: Rule("acosh", 1, np.arccosh, lambda x, y: (1 / np.sqrt((x - 1) * (x + 1)),)),
        Operation.ATANH: Rule(
            "atanh",
            1,
            lambda x: np.arctanh(np.clip(x, -LARGEST_TANH, LARGEST_TANH)),
            lambda x, y: (np.where(np.abs(x) > LARGEST_TANH, 0.0, 1 / ((1 - x) * (1 + x))),),
        ),
    }
)

_PLAIN: MappingProxyType[Operation, Callable[..., Any]] = MappingProxyType(
    {
        Operation.DIVIDE: lambda x, z: x / z,
        Operation.POWER: lambda x, z: x**z,
        Operation.EXP: np.exp,
        Operation.LN: np.log,
        Operation.LOG10: np.log10,
    }
)
"""Arithmetic without ngspice's ends, for parameters: there what overflows is an error."""


@dataclass(frozen=True)
class Formula:
    """A function of ``n_inputs`` numbers and of the time, as a tape; hashable.

    The five columns are of one length, one entry per `Operation`; what an operation does not use is 0.
    """

    op: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]
    c: tuple[int, ...]
    constant: tuple[float, ...]
    n_inputs: int

    def __len__(self) -> int:
        return len(self.op)

    def value(self, x: ArrayLike, time: ArrayLike = 0.0) -> Array:
        """Return the value (...) at inputs ``x`` (..., n_inputs) and ``time`` [s] (...)."""
        inputs, t = self._arguments(x, time)
        with np.errstate(all="ignore"):
            return np.array(self._forward(inputs, t)[-1], dtype=np.float64)

    def gradient(self, x: ArrayLike, time: ArrayLike = 0.0) -> tuple[Array, Array]:
        """Return the value (...) and its slopes with respect to the inputs (..., n_inputs)."""
        inputs, t = self._arguments(x, time)
        slopes = np.zeros((*t.shape, self.n_inputs))
        with np.errstate(all="ignore"):
            y = self._forward(inputs, t)
            bar = [np.zeros(t.shape) for _ in self.op]
            bar[-1] = np.ones(t.shape)
            for k in reversed(range(len(self.op))):
                if self.op[k] == Operation.INPUT:
                    total = slopes[..., self.a[k]] + bar[k]
                    slopes[..., self.a[k]] = np.where(np.isfinite(total), total, 0.0)
                    continue
                rule = RULES.get(Operation(self.op[k]))
                if rule is None or rule.slopes is None:
                    continue
                places = (self.a[k], self.b[k], self.c[k])[: rule.operands]
                for place, slope in zip(places, rule.slopes(*(y[p] for p in places), y[k]), strict=True):
                    part = bar[k] * slope
                    bar[place] = bar[place] + np.where(np.isfinite(part), part, 0.0)
        return np.array(y[-1], dtype=np.float64), slopes

    def _arguments(self, x: ArrayLike, time: ArrayLike) -> tuple[Array, Array]:
        inputs = np.asarray(x, dtype=np.float64)
        shape = np.broadcast_shapes(inputs.shape[:-1], np.shape(time))
        inputs = np.broadcast_to(inputs, (*shape, self.n_inputs))
        return inputs, np.broadcast_to(np.asarray(time, dtype=np.float64), shape)

    def _forward(self, inputs: Array, time: Array) -> list[Array]:
        y: list[Array] = []
        for op, a, b, c, constant in zip(self.op, self.a, self.b, self.c, self.constant, strict=True):
            if op == Operation.CONSTANT:
                y.append(np.full(time.shape, constant))
            elif op == Operation.INPUT:
                y.append(inputs[..., a])
            elif op == Operation.TIME:
                y.append(time)
            else:
                rule = RULES[Operation(op)]
                y.append(rule.value(*(y[p] for p in (a, b, c)[: rule.operands])))
        return y


_Step = tuple[Operation, int, int, int, float]


class Tape:
    """Writes a formula step by step: folds constants, and writes an operation on equal operands once.

    Args:
        plain: fold with plain arithmetic, where 1/0 is infinite.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self._steps: list[_Step] = []
        self._place: dict[_Step, int] = {}
        self._keys: dict[Hashable, int] = {}
        self._origin: dict[int, str] = {}
        self._plain = plain

    def constant(self, value: float) -> int:
        """Return the place of a constant."""
        # There is one zero, and one NaN that is equal to itself as a key.
        return self._step((Operation.CONSTANT, 0, 0, 0, float(value) + 0.0 if value == value else np.nan))

    def input(self, key: Hashable) -> int:
        """Return the place of an input; equal keys are the same input."""
        return self._step((Operation.INPUT, self._keys.setdefault(key, len(self._keys)), 0, 0, 0.0))

    def time(self) -> int:
        """Return the place of the time."""
        return self._step((Operation.TIME, 0, 0, 0, 0.0))

    def known(self, place: int) -> float | None:
        """Return what a place holds if it is a constant."""
        operation, _, _, _, constant = self._steps[place]
        return constant if operation is Operation.CONSTANT else None

    def apply(self, operation: Operation, *operands: int) -> int:
        """Return the place of an operation on earlier places."""
        rule = RULES[operation]
        if operation is Operation.POWER:
            operands = (self.apply(Operation.ABSOLUTE, operands[0]), operands[1])
        if operation is Operation.ABSOLUTE and self._steps[operands[0]][0] is Operation.ABSOLUTE:
            return operands[0]
        known = [self.known(place) for place in operands]
        if operation is Operation.SELECT and known[0] is not None:
            return operands[1] if known[0] != 0 else operands[2]
        numbers = [value for value in known if value is not None]
        if len(numbers) == rule.operands:
            return self._folded(operation, numbers, operands)
        a, b, c = (*operands, 0, 0)[:3]
        return self._step((operation, a, b, c, 0.0))

    def formula(self, place: int) -> tuple[Formula, tuple[Hashable, ...]]:
        """Return the formula whose value is at ``place``, and the keys of its inputs.

        Steps come in the order in which its text names them first, inputs too, so that equal
        formulas are equal tapes.

        Raises:
            NetlistError: a constant is not finite.
        """
        order = self._order(place)
        new = {old: k for k, old in enumerate(order)}
        key_of = list(self._keys)
        used: dict[int, int] = {}
        columns: list[_Step] = []
        for old in order:
            operation, a, b, c, constant = self._steps[old]
            if operation is Operation.INPUT:
                a = used.setdefault(a, len(used))
            elif operation is Operation.CONSTANT:
                self._finite(old, constant)
            elif operation in RULES:
                count = RULES[operation].operands
                a, b, c = (*(new[p] for p in (a, b, c)[:count]), 0, 0)[:3]
            columns.append((operation, a, b, c, constant))
        op, a_column, b_column, c_column, constants = zip(*columns, strict=True)
        formula = Formula(tuple(map(int, op)), a_column, b_column, c_column, constants, len(used))
        return formula, tuple(key_of[k] for k in used)

    def _order(self, root: int) -> list[int]:
        """Return the places that ``root`` needs, operands first, from left to right."""
        order: list[int] = []
        done: set[int] = set()
        waiting = [(root, False)]
        while waiting:
            place, ready = waiting.pop()
            if place in done:
                continue
            operation, *operands, _ = self._steps[place]
            rule = RULES.get(operation)
            if ready or rule is None:
                done.add(place)
                order.append(place)
            else:
                waiting.append((place, True))
                waiting += [(p, False) for p in reversed(operands[: rule.operands])]
        return order

    def _folded(self, operation: Operation, numbers: list[float], operands: tuple[int, ...]) -> int:
        rule = RULES[operation]
        value = _PLAIN.get(operation, rule.value) if self._plain else rule.value
        with np.errstate(all="ignore"):
            result = float(value(*(np.float64(number) for number in numbers)))
        place = self.constant(result)
        if not np.isfinite(result) and place not in self._origin:
            earlier = [self._origin[p] for p in operands if p in self._origin]
            self._origin[place] = earlier[0] if earlier else _call(rule, numbers)
        return place

    def _finite(self, place: int, constant: float) -> None:
        if not np.isfinite(constant):
            part = self._origin.get(place, repr(constant))
            raise NetlistError(f"has a part without a finite value, {part}")

    def _step(self, step: _Step) -> int:
        place = self._place.get(step)
        if place is None:
            place = self._place[step] = len(self._steps)
            self._steps.append(step)
            if place >= _MOST_OPERATIONS:
                raise NetlistError(
                    f"has more than {_MOST_OPERATIONS} operations", remedy="Split it over several sources."
                )
        return place


def _call(rule: Rule, numbers: list[float]) -> str:
    if rule.name.isalnum():
        return f"{rule.name}({', '.join(map(repr, numbers))})"
    return f" {rule.name} ".join(map(repr, numbers)) if len(numbers) > 1 else f"{rule.name}{numbers[0]!r}"
