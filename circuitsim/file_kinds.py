"""What kind of file is given, by its name or the look of it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

__all__ = ["DECK_SUFFIXES", "RECORD_SUFFIXES", "is_deck", "is_experiment", "is_netlist", "is_record"]

RECORD_SUFFIXES = (".h5", ".hdf5")
DECK_SUFFIXES = (".cir", ".ckt", ".net", ".sp", ".spi", ".spice")

_NETLIST = re.compile(rb"""^\s*\{?\s*["']?format["']?\s*:""", re.MULTILINE)
_EXPERIMENT = re.compile(rb"""(?:^|[{,])\s*["']?estimators["']?\s*:""", re.MULTILINE)


def is_record(path: Path) -> bool:
    return path.suffix in RECORD_SUFFIXES


def is_deck(path: Path) -> bool:
    return path.suffix.lower() in DECK_SUFFIXES


def is_netlist(path: Path) -> bool:
    """Whether a YAML file is a netlist's; what cannot be read is not, and its reader says why."""
    return _holds(path, _NETLIST)


def is_experiment(path: Path) -> bool:
    """Whether a YAML file is an experiment's; what cannot be read is not."""
    return not is_record(path) and not is_deck(path) and _holds(path, _EXPERIMENT)


def _holds(path: Path, mark: re.Pattern[bytes]) -> bool:
    with contextlib.suppress(OSError):
        return mark.search(path.read_bytes()) is not None
    return False
