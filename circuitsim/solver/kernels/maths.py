"""exp, exp - 1 and tanh that LLVM can vectorise: no branches, no calls.

    exp x  = 2^n exp r,  n = round(x / ln 2),  r = x - n ln 2 in two parts (Cody and Waite 1980)
    tanh x = m / (m + 2),  m = exp(2 x) - 1

with the Taylor sum of exp r - 1 to r^13, |r| <= ln(2) / 2. Errors are a few units in the last place of
float64; kernels that work in float32 round the results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic

__all__ = ["exponential", "exponential_less_one", "hyperbolic_tangent"]

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_TO_NEAREST = 6755399441055744.0
"""1.5 * 2^52: adding it leaves the nearest integer in the low bits."""
_MOST = 700.0

inline = njit(inline="always", error_model="numpy")


if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _bits(x: float) -> int:
        return int(np.float64(x).view(np.int64))

    def _from_bits(n: int) -> float:
        return float(np.uint64(n & 0xFFFFFFFFFFFFFFFF).view(np.float64))

else:

    @intrinsic
    def _bits(typing_context, x):  # type: ignore[no-untyped-def]
        """Return the bits of a float64 as an int64."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(types.int64))

        return types.int64(types.float64), generate

    @intrinsic
    def _from_bits(typing_context, n):  # type: ignore[no-untyped-def]
        """Return the float64 with the bits of an int64."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(types.float64))

        return types.float64(types.int64), generate


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
    power = _from_bits((_bits(shifted) + 1023) << 52)
    return power, less_one


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
def hyperbolic_tangent(x):  # type: ignore[no-untyped-def]
    """tanh(x) to full relative precision."""
    # At 20 it is 1 in float64 already.
    y = min(max(x, -20.0), 20.0)
    m = exponential_less_one(2.0 * y)
    return m / (m + 2.0)
