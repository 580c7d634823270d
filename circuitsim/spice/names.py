"""Names that every SPICE accepts, as close to the circuit's own as they can be."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["LegalNames", "node_names"]

_ILLEGAL = re.compile(r"[^A-Za-z0-9]+")
# What an expression or an output line would take for something else than a node.
_RESERVED = ("gnd", "time", "temp", "temper", "freq", "hertz", "all", "pi", "e")


class LegalNames:
    """Gives each name a legal one: letters, digits and single underscores, distinct whatever the case.

    ngspice folds names to lower case and would take more characters than these, but Xyce reads
    some of them as operators inside an expression. A number at the start gets an ``n`` before it,
    because ``v(1e3)`` and ``v(1000)`` may be the same.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._taken = {name.lower() for name in reserved}
        self._next: dict[str, int] = {}

    def legal(self, name: str, prefix: str = "") -> str:
        """Return ``prefix`` and a legal form of ``name``, numbered where it is taken already."""
        stem = _ILLEGAL.sub("_", name).strip("_") or "node"
        if prefix:
            stem = f"{prefix}_{stem}"
        elif stem[0].isdigit():
            stem = f"n{stem}"
        key = stem.lower()
        found, folded = stem, key
        while folded in self._taken:
            self._next[key] = number = self._next.get(key, 1) + 1
            found = f"{stem}_{number}"
            folded = found.lower()
        self._taken.add(folded)
        return found


def node_names(names: Iterable[str]) -> list[str]:
    """Return the deck's names of a circuit's nodes, the first of which is ground, ``0``.

    The name of a node depends on those before it only, so that nodes appended later (internal
    ones) never rename a node of the circuit.
    """
    legal = LegalNames(_RESERVED)
    return ["0" if index == 0 else legal.legal(name) for index, name in enumerate(names)]
