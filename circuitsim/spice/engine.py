"""What a SPICE simulator is to us: a deck goes in, its vectors or an operating point come out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from circuitsim.errors import CrossCheckError, SimulatorError, SimulatorMissingError
from circuitsim.netlist.tables import FloatArray

__all__ = ["SpiceEngine", "SpiceRun", "SpiceSolution", "probe", "refuse_unsound"]

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
# As raw files (v(a), i(v1)) and the shared library (a, V(1), v1#branch) write them.
_VECTOR = re.compile(r"(?:(v|i)\((.+)\)|(.+)#branch)", re.IGNORECASE)
_PROBE = "* divider\nV1 a 0 1\nR1 a b 1k\nR2 b 0 3k\n.op\n.end\n"
_PROBED = 0.75


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
    seconds: float = 0.0
    """What the simulator took: reading the deck, solving it, handing its values over."""

    def voltages(self, nodes: Iterable[str]) -> FloatArray:
        """Return the voltages of nodes [V] by their deck names; ground, ``0``, is 0 V.

        Raises:
            SimulatorError: a node that the simulator did not report.
        """
        found = []
        for node in nodes:
            if node == "0":
                found.append(0.0)
            elif node.lower() in self.node_voltage:
                found.append(self.node_voltage[node.lower()])
            else:
                raise SimulatorError("no voltage was reported for this node", object=node)
        return np.array(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpiceRun:
    """What a simulator wrote for a deck's one analysis."""

    vectors: Mapping[str, FloatArray]
    """Each (points,), by the name that the simulator gave it."""
    engine: str
    log: str
    seconds: float

    def solution(self) -> SpiceSolution:
        """Return the last point as an operating point.

        Raises:
            SimulatorError: a value that is not finite.
        """
        voltage: dict[str, float] = {}
        current: dict[str, float] = {}
        for name, values in self.vectors.items():
            value = float(values[-1])
            if not np.isfinite(value):
                raise SimulatorError("reported a value that is not finite", object=self.engine, field=name)
            match = _VECTOR.fullmatch(name)
            if match is None:
                # The bare name of a node; a node called time is written so in raw files too.
                voltage[name.lower()] = value
            elif match[1] and match[1].lower() == "v":
                voltage[match[2].lower()] = value
            else:
                current[(match[2] or match[3]).lower()] = value
        return SpiceSolution(
            node_voltage=voltage,
            branch_current=current,
            engine=self.engine,
            log=self.log,
            seconds=self.seconds,
        )


class SpiceEngine(Protocol):
    """A simulator. It may keep a process between decks until it is closed."""

    def run(self, deck: str) -> SpiceRun:
        """Run a deck that asks for one analysis.

        Raises:
            SimulatorMissingError: the simulator is not installed.
            SimulatorError: it crashed, ran out of time, wrote nothing, or reported a singular matrix or
                no convergence, after which its values are not to be trusted.
        """
        ...

    def solve(self, deck: str) -> SpiceSolution:
        """Run a deck's ``.op``. Raises what `run` raises."""
        ...

    def close(self) -> None:
        """End what runs between decks; a later deck starts it again."""
        ...


def probe(engine: SpiceEngine) -> str:
    """Return program and version of a simulator that solves a voltage divider here and now.

    Raises:
        SimulatorMissingError: it does not, for whatever reason.
    """
    try:
        solution = engine.solve(_PROBE)
        found = float(solution.voltages(["b"])[0])
    except SimulatorMissingError:
        raise
    except CrossCheckError as error:
        raise SimulatorMissingError(
            f"does not even solve a voltage divider: {error.rule}", object=error.object, remedy=error.remedy
        ) from error
    if abs(found - _PROBED) > 1e-9:
        raise SimulatorMissingError(
            f"solves a voltage divider wrongly: {_PROBED} V expected", object=solution.engine, value=found
        )
    return solution.engine


def refuse_unsound(log: str, program: str) -> None:
    """Raise SimulatorError if a log says that the answer is not to be trusted.

    Only notes count, not the echo of the deck's title, which may hold any word.
    """
    notes = "\n".join(line for line in log.splitlines() if not re.match(r"\s*(Circuit|Title):", line))
    for pattern, remedy in _UNSOUND:
        match = re.search(pattern, notes, re.IGNORECASE)
        if match:
            line = next(line for line in notes.splitlines() if match[0] in line)
            raise SimulatorError(f"said: {line.strip()}", object=program, remedy=f"{remedy.capitalize()}.")
