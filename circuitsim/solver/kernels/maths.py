"""exp, exp - 1 and tanh that LLVM can vectorise: no branches, no calls.

    exp x  = 2^n exp r,  n = round(x / ln 2),  r = x - n ln 2 in two parts (Cody and Waite 1980)
    tanh x = ((w - 1) q + (w + 1) r) / ((w + 1) q + (w - 1) r),  w = 2^n,  n = round(2 x / ln 2),
             r = x - n ln(2) / 2,  q = r coth r

with the Taylor sums of exp r - 1 to r^13, |r| <= ln(2) / 2, and of r coth r, which is even, to r^12,
|r| <= ln(2) / 4. The form of tanh is its addition theorem, (tanh u + tanh r) / (1 + tanh u tanh r) with
tanh u = (w - 1) / (w + 1): one division, and for small x it is r / q. Errors are a few units in the last
place of float64; of float32 only tanh has a form of its own, whose sum ends at r^6.
"""

from __future__ import annotations

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

_TWICE_LOG2_E, _HALF_LN2_HIGH, _HALF_LN2_LOW = 2 * _LOG2_E, _LN2_HIGH / 2, _LN2_LOW / 2
_TWICE_LOG2_E_SINGLE = np.float32(_TWICE_LOG2_E)
_HALF_LN2_HIGH_SINGLE = np.float32(0.693359375 / 2)
_HALF_LN2_LOW_SINGLE = np.float32(-2.12194440e-4 / 2)
_TO_NEAREST_SINGLE = np.float32(12582912.0)
_ONE_SINGLE, _TEN_SINGLE = np.float32(1.0), np.float32(10.0)
_COTANGENT = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555, -1382 / 638512875)
"""Of r coth r - 1, from r^2 to r^12."""
_COTANGENT_SINGLE = tuple(np.float32(term) for term in _COTANGENT[:3])

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
    shifted = y * _TWICE_LOG2_E + _TO_NEAREST
    n = shifted - _TO_NEAREST
    r = (y - n * _HALF_LN2_HIGH) - n * _HALF_LN2_LOW
    square = r * r
    q = _COTANGENT[5]
    q = q * square + _COTANGENT[4]
    q = q * square + _COTANGENT[3]
    q = q * square + _COTANGENT[2]
    q = q * square + _COTANGENT[1]
    q = q * square + _COTANGENT[0]
    q = q * square + 1.0
    power = _power(shifted)
    less, more = power - 1.0, power + 1.0
    return (less * q + more * r) / (more * q + less * r)


@inline
def _tangent_single(x):  # type: ignore[no-untyped-def]
    # At 10 it is 1 in float32 already.
    y = min(max(x, -_TEN_SINGLE), _TEN_SINGLE)
    shifted = y * _TWICE_LOG2_E_SINGLE + _TO_NEAREST_SINGLE
    n = shifted - _TO_NEAREST_SINGLE
    r = (y - n * _HALF_LN2_HIGH_SINGLE) - n * _HALF_LN2_LOW_SINGLE
    square = r * r
    q = _COTANGENT_SINGLE[2]
    q = q * square + _COTANGENT_SINGLE[1]
    q = q * square + _COTANGENT_SINGLE[0]
    q = q * square + _ONE_SINGLE
    power = _power(shifted)
    less, more = power - _ONE_SINGLE, power + _ONE_SINGLE
    return (less * q + more * r) / (more * q + less * r)


def hyperbolic_tangent(x: Any) -> Any:
    """tanh(x) to full relative precision of its type."""
    return _tangent_single(x) if isinstance(x, np.float32) else _tangent(x)


@overload(hyperbolic_tangent, inline="always")
def _typed_tangent(x):  # type: ignore[no-untyped-def]
    if x is types.float32:
        return lambda x: _tangent_single(x)
    return lambda x: _tangent(x)
