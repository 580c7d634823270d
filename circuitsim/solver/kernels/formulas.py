"""Value and slopes of formulas: a tape run forward, then backward.

Forward:   y_k = f_k(y_a, y_b, y_c) for each operation k, whose operands stand before it.
Backward:  bar_last = 1; bar_a += bar_k df_k/dy_a, and so on: bar_k = d y_last / d y_k.

What each f_k is, and its slope where it has none: `circuitsim.netlist.formulas`, the NumPy twin.
"""

from __future__ import annotations

import numpy as np

from circuitsim.netlist.formulas import (
    LARGEST_EXPONENT,
    LARGEST_TANH,
    LARGEST_VALUE,
    SMALLEST_DIVISOR,
    Operation,
)
from circuitsim.solver.kernels.compiling import strict

__all__ = ["formula_value_and_slopes"]

_LN_10 = float(np.log(10.0))

_CONSTANT = int(Operation.CONSTANT)
_INPUT = int(Operation.INPUT)
_TIME = int(Operation.TIME)
_NEGATIVE = int(Operation.NEGATIVE)
_NOT = int(Operation.NOT)
_ADD = int(Operation.ADD)
_SUBTRACT = int(Operation.SUBTRACT)
_MULTIPLY = int(Operation.MULTIPLY)
_DIVIDE = int(Operation.DIVIDE)
_LESS = int(Operation.LESS)
_LESS_OR_EQUAL = int(Operation.LESS_OR_EQUAL)
_GREATER = int(Operation.GREATER)
_GREATER_OR_EQUAL = int(Operation.GREATER_OR_EQUAL)
_EQUAL = int(Operation.EQUAL)
_UNEQUAL = int(Operation.UNEQUAL)
_AND = int(Operation.AND)
_OR = int(Operation.OR)
_SELECT = int(Operation.SELECT)
_POWER = int(Operation.POWER)
_MINIMUM = int(Operation.MINIMUM)
_MAXIMUM = int(Operation.MAXIMUM)
_ABSOLUTE = int(Operation.ABSOLUTE)
_SIGN = int(Operation.SIGN)
_STEP = int(Operation.STEP)
_UNIT_RAMP = int(Operation.UNIT_RAMP)
_RAMP = int(Operation.RAMP)
_FLOOR = int(Operation.FLOOR)
_CEILING = int(Operation.CEILING)
_NEAREST = int(Operation.NEAREST)
_EXP = int(Operation.EXP)
_LN = int(Operation.LN)
_LOG10 = int(Operation.LOG10)
_SQRT = int(Operation.SQRT)
_SIN = int(Operation.SIN)
_COS = int(Operation.COS)
_TAN = int(Operation.TAN)
_SINH = int(Operation.SINH)
_COSH = int(Operation.COSH)
_TANH = int(Operation.TANH)
_ASIN = int(Operation.ASIN)
_ACOS = int(Operation.ACOS)
_ATAN = int(Operation.ATAN)
_ASINH = int(Operation.ASINH)
_ACOSH = int(Operation.ACOSH)
_ATANH = int(Operation.ATANH)


@strict
def formula_value_and_slopes(  # type: ignore[no-untyped-def]
    op, a, b, c, constant, begin, end, x, x_begin, n_inputs, time, y, bar, slopes
):
    """Return the value of one formula; write its slopes into ``slopes[x_begin : x_begin + n_inputs]``.

    Args:
        op, a, b, c: tapes after each other, int64; this one is ``begin:end``. Operands count from
            ``begin``, inputs from ``x_begin``.
        constant: likewise, float64.
        x: inputs of all sources; this one's begin at ``x_begin``.
        n_inputs: of this formula.
        time: [s].
        y, bar: work arrays, at least ``end - begin`` long.
        slopes: as long as ``x``.
    """
    n = end - begin
    for k in range(n):
        code, i, j = op[begin + k], a[begin + k], b[begin + k]
        bar[k] = 0.0
        # Of a constant, an input and the time, i and j are not places before k; y[0] does no harm.
        u = y[i] if i < k else 0.0
        w = y[j] if j < k else 0.0
        v = 0.0
        if code == _CONSTANT:
            v = constant[begin + k]
        elif code == _INPUT:
            v = x[x_begin + i]
        elif code == _TIME:
            v = time
        elif code == _NEGATIVE:
            v = -u
        elif code == _NOT:
            v = 1.0 if u == 0.0 else 0.0
        elif code == _ADD:
            v = u + w
        elif code == _SUBTRACT:
            v = u - w
        elif code == _MULTIPLY:
            v = u * w
        elif code == _DIVIDE:
            v = u / (w + SMALLEST_DIVISOR if w >= 0.0 else w - SMALLEST_DIVISOR)
        elif code == _LESS:
            v = 1.0 if u < w else 0.0
        elif code == _LESS_OR_EQUAL:
            v = 1.0 if u <= w else 0.0
        elif code == _GREATER:
            v = 1.0 if u > w else 0.0
        elif code == _GREATER_OR_EQUAL:
            v = 1.0 if u >= w else 0.0
        elif code == _EQUAL:
            v = 1.0 if u == w else 0.0
        elif code == _UNEQUAL:
            v = 1.0 if u != w else 0.0
        elif code == _AND:
            v = 1.0 if u != 0.0 and w != 0.0 else 0.0
        elif code == _OR:
            v = 1.0 if u != 0.0 or w != 0.0 else 0.0
        elif code == _SELECT:
            v = w if u != 0.0 else y[c[begin + k]]
        elif code == _POWER:
            v = u**w
            if v > LARGEST_VALUE:
                v = LARGEST_VALUE
        elif code == _MINIMUM:
            v = w if u > w else u
        elif code == _MAXIMUM:
            v = u if u > w else w
        elif code == _ABSOLUTE:
            v = abs(u)
        elif code == _SIGN:
            v = 1.0 if u > 0.0 else (-1.0 if u < 0.0 else 0.0)
        elif code == _STEP:
            v = 0.0 if u < 0.0 else (1.0 if u > 0.0 else 0.5)
        elif code == _UNIT_RAMP:
            v = 0.0 if u <= 0.0 else (u if u <= 1.0 else 1.0)
        elif code == _RAMP:
            v = 0.0 if u < 0.0 else u
        elif code == _FLOOR:
            v = np.floor(u)
        elif code == _CEILING:
            v = np.ceil(u)
        elif code == _NEAREST:
            v = np.rint(u)
        elif code == _EXP:
            v = LARGEST_VALUE if u > LARGEST_EXPONENT else np.exp(u)
        elif code == _LN:
            v = -LARGEST_VALUE if u == 0.0 else np.log(u)
        elif code == _LOG10:
            v = -LARGEST_VALUE if u == 0.0 else np.log10(u)
        elif code == _SQRT:
            v = np.sqrt(u)
        elif code == _SIN:
            v = np.sin(u)
        elif code == _COS:
            v = np.cos(u)
        elif code == _TAN:
            v = np.tan(u)
        elif code == _SINH:
            v = np.sinh(u)
        elif code == _COSH:
            v = np.cosh(u)
        elif code == _TANH:
            v = np.tanh(u)
        elif code == _ASIN:
            v = np.arcsin(u)
        elif code == _ACOS:
            v = np.arccos(u)
        elif code == _ATAN:
            v = np.arctan(u)
        elif code == _ASINH:
            v = np.arcsinh(u)
        elif code == _ACOSH:
            v = np.arccosh(u)
        elif code == _ATANH:
            v = np.arctanh(min(max(u, -LARGEST_TANH), LARGEST_TANH))
        y[k] = v

    for k in range(n_inputs):
        slopes[x_begin + k] = 0.0
    bar[n - 1] = 1.0
    for k in range(n - 1, -1, -1):
        t = bar[k]
        if t == 0.0:
            continue
        code, i, j = op[begin + k], a[begin + k], b[begin + k]
        if code == _CONSTANT or code == _TIME:
            continue
        if code == _INPUT:
            total = slopes[x_begin + i] + t
            slopes[x_begin + i] = total if np.isfinite(total) else 0.0
            continue
        if code == _SELECT:
            if y[i] != 0.0:
                bar[j] += t
            else:
                bar[c[begin + k]] += t
            continue
        u, w, v = y[i], y[j], y[k]
        # Slopes with respect to the first and the second operand.
        p, q = 0.0, 0.0
        if code == _NEGATIVE:
            p = -1.0
        elif code == _ADD:
            p, q = 1.0, 1.0
        elif code == _SUBTRACT:
            p, q = 1.0, -1.0
        elif code == _MULTIPLY:
            p, q = w, u
        elif code == _DIVIDE:
            divisor = w + SMALLEST_DIVISOR if w >= 0.0 else w - SMALLEST_DIVISOR
            p, q = 1.0 / divisor, -v / divisor
        elif code == _POWER:
            if w != 0.0:
                p = w * u ** (w - 1.0)
            if u > 0.0:
                q = v * np.log(u)
        elif code == _MINIMUM:
            if u > w:
                q = 1.0
            else:
                p = 1.0
        elif code == _MAXIMUM:
            if u > w:
                p = 1.0
            else:
                q = 1.0
        elif code == _ABSOLUTE:
            p = 1.0 if u > 0.0 else (-1.0 if u < 0.0 else 0.0)
        elif code == _UNIT_RAMP:
            p = 1.0 if u > 0.0 and u <= 1.0 else 0.0
        elif code == _RAMP:
            p = 0.0 if u < 0.0 else 1.0
        elif code == _EXP:
            p = v
        elif code == _LN:
            p = 1.0 / u
        elif code == _LOG10:
            p = 1.0 / (u * _LN_10)
        elif code == _SQRT:
            p = 0.5 / v
        elif code == _SIN:
            p = np.cos(u)
        elif code == _COS:
            p = -np.sin(u)
        elif code == _TAN:
            p = 1.0 + v * v
        elif code == _SINH:
            p = np.cosh(u)
        elif code == _COSH:
            p = np.sinh(u)
        elif code == _TANH:
            p = 1.0 / np.cosh(u) / np.cosh(u)
        elif code == _ASIN:
            p = 1.0 / np.sqrt((1.0 - u) * (1.0 + u))
        elif code == _ACOS:
            p = -1.0 / np.sqrt((1.0 - u) * (1.0 + u))
        elif code == _ATAN:
            p = 1.0 / (1.0 + u * u)
        elif code == _ASINH:
            p = 1.0 / np.sqrt(u * u + 1.0)
        elif code == _ACOSH:
            p = 1.0 / np.sqrt((u - 1.0) * (u + 1.0))
        elif code == _ATANH:
            p = 1.0 / ((1.0 - u) * (1.0 + u)) if abs(u) <= LARGEST_TANH else 0.0
        # 0 times infinite, and what overflows, is no slope.
        part = t * p
        if np.isfinite(part):
            bar[i] += part
        part = t * q
        if np.isfinite(part):
            bar[j] += part
    return y[n - 1]
