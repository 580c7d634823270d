"""exp, exp - 1 and tanh that LLVM can vectorise: no branches, no calls.

    exp x  = 2^n exp r,  n = round(x / ln 2),  r = x - n ln 2 in two parts (Cody and Waite 1980)
    tanh x = m / (m + 2),  m = exp(2 x) - 1

with the Taylor sum of exp r - 1 to r^13, |r| <= ln(2) / 2. Errors are a few units in the last place of
float64; of float32 only tanh has a form of its own, whose sum ends at r^7.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic, overload

__all__ = ["exponential", "exponential_less_one", "hyperbolic_tangent"]

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_TO_NEAREST = 6755399441055744.0
"""1.5 * 2^52: adding it leaves the nearest integer in the low bits."""
_MOST = 700.0

_LOG2_E_SINGLE = np.float32(_LOG2_E)
_LN2_HIGH_SINGLE = np.float32(0.693359375)
_LN2_LOW_SINGLE = np.float32(-2.12194440e-4)
_TO_NEAREST_SINGLE = np.float32(12582912.0)
_ONE_SINGLE, _TWO_SINGLE = np.float32(1.0), np.float32(2.0)
_TEN_SINGLE = np.float32(10.0)
_SERIES_SINGLE = tuple(np.float32(1.0 / math.factorial(k)) for k in range(2, 8))
"""Of exp r - 1 - r, from r^2 to r^7."""

inline = njit(inline="always", error_model="numpy")


if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _power(shifted: Any) -> Any:
        if isinstance(shifted, np.float32):
            bits = int(shifted.view(np.int32)) + 127 << 23
            return np.uint32(bits & 0xFFFFFFFF).view(np.float32)
        bits = int(np.float64(shifted).view(np.int64)) + 1023 << 52
        return float(np.uint64(bits & 0xFFFFFFFFFFFFFFFF).view(np.float64))

else:

    @intrinsic
    def _power(typing_context, shifted):  # type: ignore[no-untyped-def]
        """Return 2^n, n the integer in the low bits of a float that it was added to."""
        bits, bias, place = (types.int32, 127, 23) if shifted is types.float32 else (types.int64, 1023, 52)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            whole = context.get_value_type(bits)
            n = builder.bitcast(arguments[0], whole)
            exponent = builder.shl(builder.add(n, whole(bias)), whole(place))
            return builder.bitcast(exponent, context.get_value_type(shifted))

        return shifted(shifted), generate


@inline
def _reduced(x):  # type: ignore[no-untyped-def]
    """Return 2^n and exp(r) - 1 with x = n ln 2 + r."""
    shifted = x * _LOG2_E + _TO_NEAREST
    n = shifted - _TO_NEAREST
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    less_one = r + r * r * p
    return _power(shifted), less_one


@inline
def exponential(x):  # type: ignore[no-untyped-def]
    """exp(x), x cut to +-700; NaN stays NaN."""
    x = min(max(x, -_MOST), _MOST)
    power, less_one = _reduced(x)
    return power + power * less_one


@inline
def exponential_less_one(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1 to full relative precision, x cut to +-700."""
    x = min(max(x, -_MOST), _MOST)
    power, less_one = _reduced(x)
    return power * less_one + (power - 1.0)


@inline
def _tangent(x):  # type: ignore[no-untyped-def]
    # At 20 it is 1 in float64 already.
    y = min(max(x, -20.0), 20.0)
    m = exponential_less_one(2.0 * y)
    return m / (m + 2.0)


@inline
def _tangent_single(x):  # type: ignore[no-untyped-def]
    # At 10 it is 1 in float32 already.
    y = min(max(x, -_TEN_SINGLE), _TEN_SINGLE)
    shifted = (y + y) * _LOG2_E_SINGLE + _TO_NEAREST_SINGLE
    n = shifted - _TO_NEAREST_SINGLE
    r = ((y + y) - n * _LN2_HIGH_SINGLE) - n * _LN2_LOW_SINGLE
    p = _SERIES_SINGLE[5]
    p = p * r + _SERIES_SINGLE[4]
    p = p * r + _SERIES_SINGLE[3]
    p = p * r + _SERIES_SINGLE[2]
    p = p * r + _SERIES_SINGLE[1]
    p = p * r + _SERIES_SINGLE[0]
    power = _power(shifted)
    m = power * (r + r * r * p) + (power - _ONE_SINGLE)
    return m / (m + _TWO_SINGLE)


def hyperbolic_tangent(x: Any) -> Any:
    """tanh(x) to full relative precision of its type."""
    return _tangent_single(x) if isinstance(x, np.float32) else _tangent(x)


@overload(hyperbolic_tangent, inline="always")
def _typed_tangent(x):  # type: ignore[no-untyped-def]
    if x is types.float32:
        return lambda x: _tangent_single(x)
    return lambda x: _tangent(x)
