"""The simulators by the names that a user gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from circuitsim.spice.engine import SpiceEngine
from circuitsim.spice.ngspice import NgspiceEngine
from circuitsim.spice.pyspice import PySpiceEngine

__all__ = ["ENGINES"]

ENGINES: Mapping[str, Callable[[float], SpiceEngine]] = {
    "ngspice": lambda timeout: NgspiceEngine(timeout=timeout),
    "pyspice-shared": lambda timeout: PySpiceEngine(mode="shared", timeout=timeout),
    "pyspice-subprocess": lambda timeout: PySpiceEngine(mode="subprocess", timeout=timeout),
}
"""Name -> engine for a time limit per deck [s]. Nothing is started before the first deck."""
