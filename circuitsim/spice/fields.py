"""The words of a line: names, numbers, expressions in braces or quotes, and `name=value`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from circuitsim.spice.lines import Line, problem

__all__ = [
    "Fields",
    "enough",
    "only",
    "positive",
    "read_fields",
    "unquoted",
    "words_of",
]

_WORD = re.compile(r"[^\s=(),{}'\"]+|=")
_MARK = re.compile(r"[(){}=,'\"]")
_BRACE = re.compile(r"[{}]")
_QUOTES = "'\""


@dataclass(slots=True)
class Fields:
    """The words of a line in their order, and its ``name=value`` pairs."""

    words: list[str]
    named: dict[str, str]


def words_of(line: Line, text: str | None = None) -> list[str]:
    """Split a line at spaces, brackets and commas; ``=`` and what is in braces or quotes are words."""
    text = line.text if text is None else text
    if not _MARK.search(text):
        return text.split()
    return list(_split(line, text))


def _split(line: Line, text: str) -> Iterator[str]:
    at, end = 0, len(text)
    while at < end:
        match = _WORD.match(text, at)
        if match:
            yield match[0]
            at = match.end()
        elif text[at] == "{":
            close = _matching_brace(text, at)
            if close < 0:
                raise problem(line, "has a brace that is not closed", value=text[at : at + 40])
            yield text[at : close + 1]
            at = close + 1
        elif text[at] in _QUOTES:
            close = text.find(text[at], at + 1)
            if close < 0:
                raise problem(line, "has a quote that is not closed", value=text[at : at + 40])
            yield text[at : close + 1]
            at = close + 1
        elif text[at] == "}":
            raise problem(line, "closes a brace that was not opened", value=text[max(0, at - 40) : at + 1])
        else:
            at += 1


def _matching_brace(text: str, at: int) -> int:
    """Return where the brace at ``at`` closes, or -1."""
    depth = 0
    for match in _BRACE.finditer(text, at):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    return -1


def read_fields(line: Line, words: list[str] | None = None) -> Fields:
    """Sort a line's words into plain ones and ``name=value`` pairs.

    Raises:
        NetlistError: an ``=`` without a name or a value, or a name given twice.
    """
    words = words_of(line) if words is None else words
    if "=" not in words:
        return Fields(words, {})
    plain: list[str] = []
    named: dict[str, str] = {}
    k = 0
    while k < len(words):
        word = words[k]
        if k + 1 < len(words) and words[k + 1] == "=":
            if k + 2 >= len(words) or words[k + 2] == "=" or word == "=":
                raise problem(line, "has no value", field=word)
            if word in named:
                raise problem(line, "is given twice", field=word)
            named[word] = words[k + 2]
            k += 3
        elif word == "=":
            raise problem(line, "has an = that follows no name")
        else:
            plain.append(word)
            k += 1
    return Fields(plain, named)


def enough(line: Line, least: int, form: str) -> Fields:
    """Return the fields after an element's name, at least so many plain words; ``form`` shows what to write.

    Raises:
        NetlistError: fewer.
    """
    fields = read_fields(line, words_of(line)[1:])
    if len(fields.words) < least:
        raise problem(line, "is incomplete", value=line.text[:80], remedy=f"Write {form}.")
    return fields


def only(line: Line, named: Iterable[str], known: Collection[str]) -> None:
    """Refuse a parameter that is not one of those known."""
    for name in named:
        if name not in known:
            remedy = f"Supported: {' '.join(known)}." if known else None
            raise problem(line, "is no parameter that is supported here", value=name, remedy=remedy)


def positive(line: Line, value: float, what: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise problem(line, "must be positive", field=what, value=value)
    return value


def unquoted(text: str) -> str:
    """Return the text of an expression without the quotes around all of it."""
    text = text.strip()
    if len(text) > 1 and text[0] in _QUOTES and text.find(text[0], 1) == len(text) - 1:
        return text[1:-1]
    return text
