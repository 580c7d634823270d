"""A fitted card as YAML for people: SPICE suffixes, and behind each number its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from circuitsim.devices.card import DeviceCard
from circuitsim.devices.fit.result import DeviceFit, Estimate
from circuitsim.network.documents import parse_document

__all__ = ["card_document", "card_text", "plain", "rounded", "spice_text"]

DIGITS = 4
"""Significant digits of numbers in a card."""
_SUFFIXES = {12: "t", 9: "g", 6: "meg", 3: "k", 0: "", -3: "m", -6: "u", -9: "n", -12: "p", -15: "f"}
_WIDTH = 110
_COLUMN = 44
"""Where comments begin."""


def rounded(value: float, digits: int = DIGITS) -> float:
    """Return a number as it is written in a card."""
    return float(f"{value:.{digits}g}")


def spice_text(value: float, digits: int = DIGITS) -> str | float:
    """Return a number with a SPICE suffix: ``2.513e-5`` is ``25.13u``."""
    value = rounded(value, digits)
    if value == 0:
        return 0.0
    power = 3 * math.floor(math.log10(abs(value)) / 3 + 1e-12)
    power = min(max(power, min(_SUFFIXES)), max(_SUFFIXES))
    # Shifting the exponent in the text keeps the digits as they were rounded.
    digits_of, exponent = f"{value:.{digits - 1}e}".split("e")
    number = f"{float(f'{digits_of}e{int(exponent) - power}'):.{digits}g}"
    return f"{number}{_SUFFIXES[power]}" if _SUFFIXES[power] else float(number)


def plain(value: float, unit: str = "", *, spice: bool = False) -> str:
    """Return a number as a person reads it in a table or a comment."""
    if not math.isfinite(value):
        return "none"
    text = str(spice_text(value, 3)) if spice else f"{value:.3g}"
    return f"{text} {unit}".rstrip() if not spice else f"{text}{unit}"


def card_document(fit: DeviceFit, *, name: str, source: str, description: str) -> dict[str, Any]:
    """Return the card as a mapping, checked.

    Raises:
        SpecError: the fitted numbers make no card; `DeviceCard` says why.
    """
    document = {"name": name, "source": source, "description": description, **fit.document}
    parse_document(DeviceCard, document)
    return document


def card_text(fit: DeviceFit, document: Mapping[str, Any], *, heading: Sequence[str] = ()) -> str:
    """Return the YAML text of a card: `load_card` reads it back as ``document``."""
    fields: dict[str, list[Estimate]] = {}
    for estimate in fit.estimates:
        if estimate.field:
            fields.setdefault(estimate.field, []).append(estimate)
    comments = {field: _comment(estimates) for field, estimates in fields.items()}
    lines = [f"# {line}".rstrip() for line in heading]
    lines += [f"# Note: {note}." for note in fit.notes]
    loose = [estimate for estimate in fit.estimates if not estimate.field]
    if loose:
        lines += ["#", "# Measured, and without a place in a card:"]
        lines += [f"#   {e.name}: {plain(e.value, e.unit, spice=e.spice)}  {_comment([e])}" for e in loose]
    for line, field in _lines(document, "", 0):
        comment = comments.get(field)
        beside = f"{line:<{_COLUMN}}  # {comment}"
        if comment is None:
            lines.append(line)
        elif len(beside) <= _WIDTH:
            lines.append(beside)
        else:
            indent = " " * (len(line) - len(line.lstrip()))
            lines += [f"{indent}# {comment}", line]
    return "\n".join(lines) + "\n"


def _comment(estimates: Sequence[Estimate]) -> str:
    """Return the intervals of the numbers on one line, and what they mean."""
    texts = []
    for estimate in estimates:
        if estimate.interval is not None:
            ends = " ... ".join(plain(end, spice=estimate.spice) for end in estimate.interval)
            texts.append(f"[{ends}]")
    meaning = "; ".join(dict.fromkeys(estimate.meaning for estimate in estimates))
    return f"{', '.join(texts)}  {meaning}" if texts else meaning


def _lines(value: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        field = f"{path}.{key}" if path else str(key)
        head = f"{'  ' * depth}{key}:"
        if isinstance(item, Mapping):
            yield head, field
            yield from _lines(item, field, depth + 1)
        elif isinstance(item, (list, tuple)) and item and isinstance(item[0], Mapping):
            yield head, field
            for number, entry in enumerate(item):
                for k, (line, inner) in enumerate(_lines(entry, f"{field}.{number}", depth + 2)):
                    indent = "  " * (depth + 1)
                    yield (f"{indent}- {line.lstrip()}" if k == 0 else line), inner
        else:
            yield f"{head} {_scalar(item)}", field


def _scalar(item: Any) -> str:
    if isinstance(item, (list, tuple)):
        return f"[{', '.join(_scalar(part) for part in item)}]"
    if isinstance(item, float) and item == int(item) and abs(item) < 1e6:
        return str(int(item))
    text = yaml.safe_dump(item, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("...").strip()
