"""Names that every SPICE accepts, as close to the circuit's own as they can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

__all__ = ["LegalNames", "node_names"]

_PLAIN = bytes(
    code if (chr(code).isascii() and chr(code).isalnum()) or code == 10 else ord("_") for code in range(256)
)
# What ngspice takes in every line. // starts a comment, and $ does so after a space.
_NODE = r"(?!.*//)[A-Za-z0-9_.:#/+!<>@%&|?-][A-Za-z0-9_.:#/+!<>@%&|?^*$[\]-]*"
_ELEMENT = r"(?!.*//)[A-Za-z][A-Za-z0-9_.:#/+!<>@%&|?^*$[\]-]*"
# The name of a source or an inductor that another line refers to ends at an operator.
_REFERENCE = r"[A-Za-z][A-Za-z0-9_.:#!<>@%&|?$[\]]*"
# Ground, and what an expression or an output line would take for something else than a node.
_RESERVED = ("0", "gnd", "time", "temper", "limit", "agauss", "gauss", "unif", "aunif")


class LegalNames:
    """Gives each name a legal one, distinct whatever the case, because ngspice folds names to lower case.

    A name that is legal already stays: that of an element is so if it begins with the letter of its kind.
    Any other is written with letters, digits and single underscores, after the letter of its kind; a
    number at the start of a node's name gets an ``n`` before it. Without ``brackets``, those are not legal
    either: a command such as ``print v(h[0])`` takes them for an index.
    """

    def __init__(self, *, brackets: bool, reserved: Iterable[str] = ()) -> None:
        self._taken = {name.lower() for name in reserved}
        self._next: dict[str, int] = {}
        self._brackets = brackets

    def elements(self, names: Iterable[str], letter: str, referred: Iterable[int] = ()) -> list[str]:
        """Return legal names of elements of one kind, each numbered where it is taken already.

        Other lines refer to those whose indices are in ``referred``.
        """
        given = list(names)
        first = (letter.upper(), letter.lower())
        fits, refers = self._pattern(_ELEMENT), self._pattern(_REFERENCE)
        legal = [name.startswith(first) and fits(name) for name in given]
        for index in referred:
            legal[index] = legal[index] and refers(given[index])
        return self._distinct(given, legal, f"{letter}_")

    def nodes(self, names: Iterable[str]) -> list[str]:
        """Return legal names of nodes; each depends on those before it only."""
        given = list(names)
        return self._distinct(given, map(self._pattern(_NODE), given), "")

    def plain(self, names: Iterable[str]) -> list[str]:
        """Return names of parameters, which may stand in expressions: letters, digits and underscores."""
        given = list(names)
        return self._distinct(given, (name.isidentifier() and name.isascii() for name in given), "")

    def _pattern(self, pattern: str) -> Callable[[str], object]:
        return re.compile(pattern if self._brackets else pattern.replace("[\\]", "")).fullmatch

    def _distinct(self, given: list[str], legal: Iterable[object], prefix: str) -> list[str]:
        changed = [index for index, fits in enumerate(legal) if not fits]
        if changed:
            stems = _stems([given[index] for index in changed], prefix)
            for index, stem in zip(changed, stems, strict=True):
                given[index] = stem
        folded = [name.lower() for name in given]
        fresh = set(folded)
        if len(fresh) == len(folded) and fresh.isdisjoint(self._taken):
            self._taken |= fresh
            return given
        return [self._fresh(stem, key) for stem, key in zip(given, folded, strict=True)]

    def _fresh(self, stem: str, key: str) -> str:
        found, folded = stem, key
        while folded in self._taken:
            self._next[key] = number = self._next.get(key, 1) + 1
            found = f"{stem}_{number}"
            folded = found.lower()
        self._taken.add(folded)
        return found


def _stems(names: Sequence[str], prefix: str) -> list[str]:
    # One pass over all names is many times quicker than one over each.
    text = "\n".join(names)
    if text.count("\n") >= len(names):
        text = "\n".join(name.replace("\n", " ") for name in names)
    text = text.encode("ascii", "replace").translate(_PLAIN).decode("ascii")
    while "__" in text:
        text = text.replace("__", "_")
    stems = [part.strip("_") or "node" for part in text.split("\n")]
    if prefix:
        return [prefix + stem for stem in stems]
    return [f"n{stem}" if stem[0].isdigit() else stem for stem in stems]


def node_names(names: Iterable[str], *, brackets: bool = False) -> list[str]:
    """Return the deck's names of a circuit's nodes, the first of which is ground, ``0``.

    The name of a node depends on those before it only, so that nodes appended later (internal
    ones) never rename a node of the circuit. See `LegalNames` about ``brackets``.
    """
    _, *others = names
    return ["0", *LegalNames(brackets=brackets, reserved=_RESERVED).nodes(others)]
