"""Errors that a user can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "CircuitsimError",
    "ConvergenceError",
    "CrossCheckError",
    "DeviceError",
    "InstrumentError",
    "NetlistError",
    "RecordError",
    "SimulatorError",
    "SimulatorMissingError",
    "SpecError",
]

_UNSET: Any = object()


class CircuitsimError(Exception):
    """One problem, named by file, object, field, value, rule and remedy.

    ``exit_code`` is what the command line returns: 2 for bad input, 3 for a solve that did not
    converge, on either side of a cross-check, 4 where there is no SPICE simulator.
    """

    exit_code = 2

    def __init__(
        self,
        rule: str,
        *,
        file: object = None,
        object: str | None = None,
        field: str | None = None,
        value: Any = _UNSET,
        remedy: str | None = None,
    ) -> None:
        self.rule = rule
        self.file = None if file is None else str(file)
        self.object = object
        self.field = field
        self.value = None if value is _UNSET else value
        self.remedy = remedy
        place = ".".join(part for part in (object, field) if part)
        text = ": ".join(part for part in (self.file, place, rule) if part)
        if value is not _UNSET:
            text += f" (got {_short(value)})"
        if remedy:
            text = f"{text.rstrip('.')}. {remedy}"
        super().__init__(text)

    @classmethod
    def all_of(cls, problems: Sequence[CircuitsimError], *, file: object = None) -> CircuitsimError:
        """One error that lists every problem found, so that one edit can mend them all."""
        if len(problems) == 1:
            return problems[0]
        lines = "\n".join(f"  - {problem}" for problem in problems)
        error = cls(f"{len(problems)} problems:\n{lines}", file=file)
        return error


class SpecError(CircuitsimError):
    """A network, experiment or data description that breaks a rule."""


class NetlistError(CircuitsimError):
    """A netlist that no simulator could solve, or that names what is not there."""


class DeviceError(CircuitsimError):
    """A device card, or a request to a device, outside its range."""


class RecordError(CircuitsimError):
    """A record that cannot be written or read."""


class ConvergenceError(CircuitsimError):
    """A solve that stopped before its residual met the tolerance."""

    exit_code = 3


class CrossCheckError(CircuitsimError):
    """A cross-check that cannot be made as asked."""


class SimulatorError(CrossCheckError):
    """The other simulator gave no answer, or none that can be trusted."""

    exit_code = 3


class SimulatorMissingError(CrossCheckError):
    """The other simulator is not installed, or does not run here at all."""

    exit_code = 4


class InstrumentError(CircuitsimError):
    """An instrument refused or vanished."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
