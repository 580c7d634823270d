"""Decks that are wrong in ways nobody thought of: mutations of bytes, words and lines."""

from __future__ import annotations

import random
from collections.abc import Sequence

NASTY = (
    *("", "(", ")", "()", "{", "}", "{}", "'", "''", '"', "=", "==", ",", "+", "-", "*", ";", "$", "//", "."),
    *("0", "-0", "1e999", "-1e999", "1e-999", "nan", "inf", "1e308", "1e-308", "1k5", "1x", "1meg", "1_000"),
    *(
        "{1/0}",
        "{0/0}",
        "{x}",
        "{x*}",
        "{-1}",
        "{1e308*10}",
        "{sqrt(-1)}",
        "{v(a)}",
        "'1+1'",
        "{{1}}",
        "{(1}",
    ),
    *("gnd", "GND", "V1", "R1", "x1", "x1.a", "0", "00", "a:b", "$g_x", "é", "µ", "\u2028", "\ufeff", "\x00"),
    *(".end", ".ends", ".subckt", ".model", ".param", ".include", ".lib", ".op", ".tran", ".dc", ".ic"),
    *(
        "poly(0)",
        "poly(2)",
        "POLY(99999999)",
        "table",
        "value=",
        "params:",
        "m=0",
        "m=-1",
        "m=3",
        "off",
        "uic",
    ),
    *("dc", "ac", "pulse", "pwl(", "sin(0)", "exp", "sffm", "r=0", "td=1", "ic=", "tc=1,2", "temp=-300"),
    *("i(V1)", "v(a,b,c)", "v()", "time", "temper", "((((", "))))", "1?2:3", "a==b", "!a", "2**3", "max(1)"),
    *("x" * 300, "{" * 60, "(" * 400, "1" * 400, "1+" * 400, ".subckt q\nx1 q\n.ends\nx9 q"),
)
_BYTES = "\x00\x07\t\n\r+*.;$/{}()='\",0123456789eEkKmMrRvVxXbB éµ\u2028\U0001f600"


def mutated(rng: random.Random, decks: Sequence[str]) -> str:
    """Return one of the decks after a few changes."""
    text = rng.choice(decks)
    for _ in range(1 + min(rng.getrandbits(3), rng.getrandbits(3))):
        text = _CHANGES[rng.randrange(len(_CHANGES))](rng, text, decks)
    return text[:20_000]


def _position(rng: random.Random, text: str) -> int:
    return rng.randrange(len(text) + 1)


def _byte_inserted(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    at = _position(rng, text)
    return text[:at] + rng.choice(_BYTES) + text[at:]


def _byte_replaced(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    at = _position(rng, text)
    return text[:at] + rng.choice(_BYTES) + text[at + 1 :]


def _stretch_removed(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    at = _position(rng, text)
    return text[:at] + text[at + 1 + rng.getrandbits(5) :]


def _word_replaced(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    k = rng.randrange(len(lines))
    words = lines[k].split(" ")
    words[rng.randrange(len(words))] = rng.choice(NASTY)
    lines[k] = " ".join(words)
    return "\n".join(lines)


def _word_inserted(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    k = rng.randrange(len(lines))
    words = lines[k].split(" ")
    words.insert(rng.randrange(len(words) + 1), rng.choice(NASTY))
    lines[k] = " ".join(words)
    return "\n".join(lines)


def _word_removed(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    k = rng.randrange(len(lines))
    words = lines[k].split(" ")
    del words[rng.randrange(len(words))]
    lines[k] = " ".join(words)
    return "\n".join(lines)


def _word_borrowed(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    k = rng.randrange(len(lines))
    words = lines[k].split(" ")
    words[rng.randrange(len(words))] = rng.choice(rng.choice(decks).split())
    lines[k] = " ".join(words)
    return "\n".join(lines)


def _line_removed(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines)


def _line_repeated(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    k = rng.randrange(len(lines))
    return "\n".join([*lines[:k], *([lines[k]] * (2 + rng.getrandbits(4))), *lines[k:]])


def _line_moved(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    line = lines.pop(rng.randrange(len(lines)))
    lines.insert(rng.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def _line_borrowed(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    lines = text.split("\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(rng.choice(decks).split("\n")))
    return "\n".join(lines)


def _lines_joined(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    at = text.find("\n", _position(rng, text))
    return text if at < 0 else text[:at] + rng.choice((" ", "", "\n+ ", "\n+")) + text[at + 1 :]


def _cut_short(rng: random.Random, text: str, decks: Sequence[str]) -> str:
    return text[: _position(rng, text)]


_CHANGES = (
    *(_byte_inserted, _byte_replaced, _stretch_removed, _word_replaced, _word_replaced, _word_inserted),
    *(_word_removed, _word_borrowed, _line_removed, _line_repeated, _line_moved, _line_borrowed),
    *(_lines_joined, _cut_short),
)
