"""What a SPICE simulator is to us: a deck goes in, an operating point comes out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from circuitsim.errors import CrossCheckError
from circuitsim.netlist.tables import FloatArray

__all__ = ["SpiceEngine", "SpiceSolution", "refuse_unsound"]

_NONE = "the circuit has no operating point, or the options are too tight"
# Notes after which a simulator may still exit with 0 and print voltages, which are then wrong: a
# floating node, no convergence, and an operating point taken from a transient run's end.
_UNSOUND = (
    (r"singular matrix", "look for a floating node or a loop of ideal sources"),
    (r"no convergence|failed to converge", _NONE),
    (r"aborted|simulation interrupted", _NONE),
    (r"transient op (started|finished)", "the operating point is only the end of a transient run"),
    (r"timestep too small", _NONE),
)


@dataclass(frozen=True, kw_only=True)
class SpiceSolution:
    """An operating point as a simulator reports it. Names are the deck's, in lower case."""

    node_voltage: Mapping[str, float]
    """V, without ground."""
    branch_current: Mapping[str, float]
    """A, from the positive node through the source to the negative one, by the element's name."""
    engine: str
    """Program and version."""
    log: str

    def voltages(self, nodes: Iterable[str]) -> FloatArray:
        """Return the voltages of nodes [V] by their deck names; ground, ``0``, is 0 V.

        Raises:
            CrossCheckError: a node that the simulator did not report.
        """
        found = []
        for node in nodes:
            if node == "0":
                found.append(0.0)
            elif node.lower() in self.node_voltage:
                found.append(self.node_voltage[node.lower()])
            else:
                raise CrossCheckError("no voltage was reported for this node", object=node)
        return np.array(found)


class SpiceEngine(Protocol):
    """A simulator."""

    def solve(self, deck: str) -> SpiceSolution:
        """Run a deck's ``.op``.

        Raises:
            CrossCheckError: the simulator is missing, failed, or its answer is not to be trusted.
        """
        ...


def refuse_unsound(log: str, program: str) -> None:
    """Raise CrossCheckError if a log says that the answer is not to be trusted.

    Only notes count, not the echo of the deck's title, which may hold any word.
    """
    notes = "\n".join(line for line in log.splitlines() if not re.match(r"\s*(Circuit|Title):", line))
    for pattern, remedy in _UNSOUND:
        match = re.search(pattern, notes, re.IGNORECASE)
        if match:
            line = next(line for line in notes.splitlines() if match[0] in line)
            raise CrossCheckError(f"said: {line.strip()}", object=program, remedy=f"{remedy.capitalize()}.")
