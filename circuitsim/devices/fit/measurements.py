"""Measured devices as columns: pulses, reads, I-V curves. Row k of every column is one reading."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray

__all__ = ["CurveData", "Measurement", "PulseData", "ReadData", "device_list", "left_out"]


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

M = TypeVar("M", bound=_Readings)


def left_out(data: M, names: Collection[str]) -> M:
    """Return the readings of the other devices.

    Raises:
        DeviceError: there is no such device, or no other.
    """
    for name in names:
        if name not in data.names:
            known = ", ".join(data.names)
            raise DeviceError("has no such device", file=data.file, value=name, remedy=f"Devices: {known}.")
    kept = [name for name in data.names if name not in names]
    if not kept:
        raise DeviceError("has no other device", file=data.file)
    place = np.array([kept.index(name) if name in kept else -1 for name in data.names])
    rows = place[data.device] >= 0
    columns = {
        column.name: getattr(data, column.name)[rows]
        for column in fields(data)
        if isinstance(getattr(data, column.name), np.ndarray)
    }
    columns["device"] = place[columns["device"]]
    return replace(data, names=tuple(kept), **columns)


def device_list(data: Measurement, bad: NDArray[np.bool_]) -> str:
    """Return the names of devices (D,), for a message."""
    names = [data.names[k] for k in np.flatnonzero(bad)]
    return f"device{'s' * (len(names) > 1)} {', '.join(names)}"
