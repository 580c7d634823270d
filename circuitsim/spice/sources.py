"""Independent sources of a deck: their DC value and what they do in time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist.waveforms import Exponential, PiecewiseLinear, Pulse, Sine, Waveform
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.parameters import Scope
from circuitsim.units import spice_number

__all__ = ["SourceValues", "read_source"]

_SHAPES: dict[str, type[Any]] = {"pulse": Pulse, "sin": Sine, "exp": Exponential}
_REFUSED = ("sffm", "am", "pat", "trnoise", "trrandom", "external", "file", "portnum", "z0", "noise")
_SMALL_SIGNAL = ("ac", "distof1", "distof2")
_KEYWORDS = frozenset(("dc", "pwl", *_SHAPES, *_SMALL_SIGNAL, *_REFUSED))
_SUPPORTED = "Supported: DC, AC (not used), PULSE, PWL, SIN, EXP."


@dataclass(frozen=True, slots=True)
class SourceValues:
    """The DC value [V or A], the waveform if there is one, and how many such sources are in parallel."""

    value: float
    waveform: Waveform | None = None
    multiplier: float = 1.0


def read_source(line: Line, words: list[str], scope: Scope, *, current: bool) -> SourceValues:
    """Read what stands after the nodes of a V or I line.

    Without a DC value the source holds the value of its waveform at time 0, or 0.

    Raises:
        NetlistError: what is not understood, with the word.
    """
    dc: float | None = None
    shape: tuple[str, list[str]] | None = None
    named: dict[str, float] = {}
    k = 0
    while k < len(words):
        word = words[k]
        k += 1
        if k < len(words) and words[k] == "=" and word not in ("dc", *_SMALL_SIGNAL):
            if k + 1 >= len(words):
                raise problem(line, "has no value", field=word)
            if word not in ("r", "td", "m") or (word == "m" and not current):
                raise problem(line, "is not supported", value=word, remedy=_SUPPORTED)
            named[word] = scope.number(line, words[k + 1], word)
            k += 2
        elif word == "dc":
            k += k < len(words) and words[k] == "="
            if k >= len(words):
                raise problem(line, "has no value", field="dc")
            if words[k] not in _KEYWORDS:
                dc = scope.number(line, words[k], "dc")
                k += 1
        elif word in _SMALL_SIGNAL:
            k += k < len(words) and words[k] == "="
            for _ in range(2):
                if k < len(words) and (spice_number(words[k]) is not None or words[k][0] in "{'"):
                    k += 1
        elif word == "pwl" or word in _SHAPES:
            if shape is not None:
                raise problem(line, "has two waveforms", value=word)
            start = k
            while k < len(words) and words[k] not in _KEYWORDS and words[k + 1 : k + 2] != ["="]:
                k += 1
            shape = (word, words[start:k])
        elif word in _REFUSED or word == "=":
            raise problem(line, "is not supported", value=word, remedy=_SUPPORTED)
        elif dc is None and k == 1:
            dc = scope.number(line, word, "dc")
        else:
            raise problem(line, "is not understood here", value=word, remedy=_SUPPORTED)
    waveform = _waveform(line, shape, named, scope)
    if dc is None:
        dc = 0.0 if waveform is None else _at_rest(line, waveform)
    return SourceValues(dc, waveform, named.get("m", 1.0))


def _at_rest(line: Line, waveform: Waveform) -> float:
    with np.errstate(all="ignore"):
        value = float(waveform.resolved(1.0, 1.0).value(0.0))
    if not isfinite(value):
        raise problem(line, "has a waveform without a finite value at time 0")
    return value


def _waveform(
    line: Line, shape: tuple[str, list[str]] | None, named: dict[str, float], scope: Scope
) -> Waveform | None:
    if shape is None:
        for word in ("r", "td"):
            if word in named:
                raise problem(line, "belongs to a PWL source", value=word)
        return None
    kind, words = shape
    numbers = [scope.number(line, word, kind) for word in words]
    try:
        if kind == "pwl":
            if len(numbers) % 2 or not numbers:
                raise problem(line, "wants pairs of time and value", field="pwl", value=len(numbers))
            return PiecewiseLinear(
                times=tuple(numbers[0::2]),
                values=tuple(numbers[1::2]),
                repeat_from=named.get("r"),
                delay=named.get("td", 0.0),
            )
        names = [column.name for column in fields(_SHAPES[kind])]
        if not 2 <= len(numbers) <= len(names):
            raise problem(line, f"wants 2 to {len(names)} numbers", field=kind, value=len(numbers))
        return _SHAPES[kind](**dict(zip(names, numbers, strict=False)))
    except NetlistError as error:
        if error.file is not None:
            raise
        raise problem(line, error.rule, field=error.field or kind, value=error.value) from None
