"""Published formulas as data: a function of the relative conductance x = g / g_max."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from circuitsim.netlist.tables import FloatArray
from circuitsim.network.documents import Quantity, Spec

__all__ = ["Curve", "CurvePiece"]

_SMALLEST = 1e-7
"""Of x in a logarithm or a negative power, which published fits leave undefined at 0."""


class CurvePiece(Spec):
    """``sum_k polynomial[k] x^k + log ln(x) + power[0] x^power[1]``, clipped; for x below ``below``."""

    polynomial: tuple[Quantity, ...] = ()
    log: Quantity = 0.0
    power: tuple[Quantity, Quantity] | None = None
    clip: tuple[Quantity, Quantity] | None = None
    below: Quantity | None = None

    def __call__(self, x: FloatArray) -> FloatArray:
        total = np.zeros(np.shape(x))
        for coefficient in reversed(self.polynomial):
            total = total * x + coefficient
        if self.log or self.power is not None:
            x = np.maximum(x, _SMALLEST)
        if self.log:
            total = total + self.log * np.log(x)
        if self.power is not None:
            total = total + self.power[0] * x ** self.power[1]
        return total if self.clip is None else np.clip(total, *self.clip)


def _pieces(value: Any) -> Any:
    if isinstance(value, dict) and "pieces" not in value:
        return {"pieces": [value]}
    if isinstance(value, list):
        return {"pieces": value}
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return {"pieces": [{"polynomial": [value]}]}
    return value


class _Curve(Spec):
    """One formula, or one per range of x: a list in rising order of ``below``, the last without it."""

    pieces: Annotated[tuple[CurvePiece, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ordered(self) -> _Curve:
        ends = [piece.below for piece in self.pieces]
        if ends[-1] is not None or None in ends[:-1]:
            raise ValueError("every piece but the last needs `below`, and the last has none")
        rising = [end for end in ends if end is not None]
        if rising != sorted(set(rising)):
            raise ValueError(f"`below` must rise from piece to piece: {rising}")
        return self

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return the value at relative conductances ``x``, of the same shape."""
        x = np.asarray(x, dtype=np.float64)
        total = self.pieces[-1](x)
        for piece in reversed(self.pieces[:-1]):
            assert piece.below is not None
            total = np.where(x < piece.below, piece(x), total)
        return total


Curve = Annotated[
    _Curve,
    BeforeValidator(_pieces),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "object"}, {"type": "array"}]}
    ),
]
"""A number, one `CurvePiece`, or a list of them."""
