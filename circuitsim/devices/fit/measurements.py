"""Measured devices as columns: pulses, reads, I-V curves. Row k of every column is one reading."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray

__all__ = ["CurveData", "Measurement", "PulseData", "ReadData"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Readings:
    file: str
    """Where the readings came from, for messages and the card's source."""
    names: tuple[str, ...]
    """Names of the devices."""
    device: NDArray[np.int64]
    """(N,): place in ``names``."""
    cycle: NDArray[np.int64]
    """(N,): 0, 1, ... in the order of the file; all 0 without such a column."""
    line: NDArray[np.int64]
    """(N,): line of the file, for messages."""

    def __len__(self) -> int:
        return len(self.device)

    @property
    def cycles(self) -> int:
        """The largest number of cycles of any device."""
        return len(np.unique(self.cycle))


@dataclass(frozen=True, kw_only=True, eq=False)
class PulseData(_Readings):
    """Staircases: conductances (N,) S, each read after a pulse up or down.

    A device's rows are in the order of time. ``pulse`` counts from 1 in each staircase, or on through the
    cycle; a reading with number 0 came before any pulse.
    """

    pulse: NDArray[np.int64]
    up: NDArray[np.bool_]
    conductance: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadData(_Readings):
    """Conductances (N,) S of devices that were written: rows of one device, cycle and target are reads of
    one write, ``time`` [s] after it."""

    target: FloatArray | None
    time: FloatArray | None
    conductance: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveData(_Readings):
    """Currents (N,) A at voltages (N,) V."""

    voltage: FloatArray
    current: FloatArray


Measurement = PulseData | ReadData | CurveData
