"""A user's own deck as a simulator gets it for a cross-check: as it stands, but for what it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from circuitsim.errors import NetlistError
from circuitsim.spice.deck import DeckOptions

__all__ = ["operating_point_deck"]

# What asks for an analysis or for output, and what ends a deck.
_ASKS = re.compile(
    r"\.(op|dc|tran|ac|noise|tf|sens|pz|disto|pss|four|print|plot|probe|save|width|meas|measure|end)\b",
    re.IGNORECASE,
)
_INCLUDE = re.compile(r"""\.inc(?:l|lude)?\s+["']?([^"'\s]+)["']?\s*$""", re.IGNORECASE)
_LIBRARY = re.compile(r"""(\.lib\s+)["']?([^"'\s]+)["']?(\s+\S.*)$""", re.IGNORECASE)
_DEEPEST = 20


def operating_point_deck(
    path: str | Path, *, options: DeckOptions | None = None, start: Mapping[str, float] | None = None
) -> str:
    """Return a deck file's text with ``.op`` in the place of all that it asks to be run or printed.

    Included files are written out, so that the text can be run from anywhere.

    Args:
        path: the deck.
        options: tolerances, which take the place of the deck's own; by default those stay.
        start: first guesses [V] by node.

    Raises:
        NetlistError: a file cannot be read, or includes itself.
    """
    path = Path(path)
    title, _, rest = _text(path).partition("\n")
    lines = [title, *_lines(rest, path.parent, 0)]
    if options is not None:
        written = (f"{key.rpartition('.')[2]}={value!r}" for key, value in options.written().items())
        lines.append(f".options {' '.join(written)}")
    lines += [f".nodeset v({node})={voltage!r}" for node, voltage in (start or {}).items()]
    return "\n".join([*lines, ".op", ".end", ""])


def _lines(text: str, folder: Path, depth: int) -> Iterator[str]:
    """Yield the lines that stay; those that continue a dropped line go with it."""
    dropped = control = False
    for line in text.splitlines():
        word = line.strip()
        if control or word.lower().startswith(".control"):
            control = not word.lower().startswith(".endc")
            continue
        if dropped and (word.startswith(("+", "*")) or not word):
            continue
        dropped = bool(_ASKS.match(word))
        if dropped:
            continue
        if (included := _INCLUDE.match(word)) is not None:
            if depth == _DEEPEST:
                raise NetlistError("includes too many files inside one another", file=included[1])
            inner = folder / included[1]
            yield from _lines(_text(inner), inner.parent, depth + 1)
        elif (library := _LIBRARY.match(word)) is not None:
            yield f'{library[1]}"{(folder / library[2]).resolve()}"{library[3]}'
        else:
            yield line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise NetlistError(f"cannot be read: {error.strerror or error}", file=path) from error
