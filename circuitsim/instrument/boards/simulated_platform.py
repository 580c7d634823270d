"""A simulated board: an array of devices that can be read and pulsed, and nothing else of it seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from circuitsim.chip.pulses import conductance_step, pulsed_half
from circuitsim.devices import DeviceCard
from circuitsim.devices.card import PulseCard
from circuitsim.devices.memristor import DeviceArray, UpdateCurves, fabricated, read
from circuitsim.errors import DeviceError, InstrumentError
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream

__all__ = ["SimulatedPlatform"]


class SimulatedPlatform:
    """Devices of one card at the crossings of word and bit lines. Satisfies `CrossbarPlatform`.

    Word lines are channels 0 ... rows - 1, bit lines the next ones. Devices start at the lowest conductance,
    each with its own mismatch, and move by pulses along their own curves. A curve is known for one pulse,
    ``pulse`` (the card's, else 1 V for 1 us), up or down: others are refused. Devices that share one line
    with those selected do not move, and line resistance and sneak currents are none.

    A reading has the card's read noise (but 1/f, which takes time), ``current_noise`` [A, rms] of the
    board's, and its resolution ``current_step`` [A]. No time passes: nothing drifts. Pulses and reads have
    streams of noise of their own, so the same pulses move devices the same way however often they are read.
    """

    def __init__(
        self,
        card: DeviceCard,
        rows: int,
        columns: int,
        *,
        seed: int,
        window: tuple[float, float] | None = None,
        pulse: PulseCard | None = None,
        current_step: float = 0.0,
        current_noise: float = 0.0,
    ) -> None:
        devices = card.crossbar
        if devices.update is None:
            raise DeviceError(
                "has no update curve", object=card.name, field="crossbar.update", remedy="Choose another."
            )
        window = window or devices.range
        if window is None:
            raise DeviceError(
                "names no conductances", object=card.name, field="crossbar.range", remedy="Give a window."
            )
        devices.check_window(*window, object="platform", card=card.name)
        self._card, self._spec, self._seed = devices, devices.update, seed
        self._pulse = pulse or devices.pulse or PulseCard(voltage=1.0, width=1e-6)
        self._current_step, self._current_noise = current_step, current_noise
        self._array = fabricated(
            devices, (rows, columns), window, lambda what: stream(seed, "mismatch", "platform", what)
        )
        start = np.full((rows, columns), window[0])
        if self._array.factor is not None:
            start = start * self._array.factor
        self._written = self._array.reached(start)
        self._seen = self._written.copy()
        """What reads find: off from what was written, where the card's writes leave noise behind."""
        self._streams: dict[str, np.random.Generator] = {}
        self._lines: dict[int, DeviceArray] = {}
        self.words: IntArray = np.arange(rows)
        self.bits: IntArray = np.arange(rows, rows + columns)

    def read_one(self, low: int, high: int, vread: float) -> float:
        """Return the current of one device [A]."""
        return float(self.read_slice_masked(low, np.array([high]), vread)[0])

    def read_slice_masked(self, chan: int, mask: IntArray, vread: float) -> FloatArray:
        """Return the currents (k,) A between ``chan`` and each channel of ``mask``."""
        places = self._places(chan, mask)
        if not 0 < abs(vread) < 0.5 * self._pulse.voltage:
            rule = f"must be below half a pulse, {0.5 * self._pulse.voltage:g} V, which would move devices"
            raise InstrumentError(rule, object="platform", field="vread", value=vread)
        line, g = self._line(chan), self._along(self._seen, chan)[:, None]
        g = read(self._card, line, g, 0.0, self._stream, fast=True)[places, 0]
        knee = self._card.nonlinearity
        current = g * (vread if knee is None else knee * np.sinh(vread / knee))
        if self._current_noise:
            current = current + self._current_noise * self._stream("current").standard_normal(current.shape)
        if self._current_step:
            current = np.rint(current / self._current_step) * self._current_step
        return current

    def pulse_slice_masked(self, chan: int, voltage: float, width: float, mask: IntArray) -> None:
        """Give the devices between ``chan`` and ``mask`` one pulse, up where ``voltage`` is positive."""
        places = self._places(chan, mask)
        own = self._pulse
        for name, asked, there in (("voltage", abs(voltage), own.voltage), ("width", width, own.width)):
            if not math.isclose(asked, there, rel_tol=1e-6):
                rule = f"must be {there:g}: of other pulses the card's curve says nothing"
                raise InstrumentError(rule, object="platform", field=name, value=asked)
        line, generator = self._line(chan), self._stream("pulse")
        counts = np.zeros(line.shape, dtype=np.int64)
        counts[places] = 1 if voltage > 0 else -1
        written = self._along(self._written, chan)
        found = pulsed_half(self._spec, line, written[:, None], counts, generator)
        written[:] = found[:, 0]
        if self._spec.write_noise:
            spread = conductance_step(self._spec, line.window) * self._spec.write_noise
            found = line.held(np.maximum(found + spread * generator.standard_normal(line.shape), 0.0))
        self._along(self._seen, chan)[places] = found[places, 0]

    def _stream(self, what: str) -> np.random.Generator:
        if what not in self._streams:
            self._streams[what] = stream(self._seed, "platform", what)
        return self._streams[what]

    def _along(self, grid: FloatArray, chan: int) -> FloatArray:
        """Return what a grid (rows, columns) has along the line of a channel, a view."""
        rows = len(grid)
        return grid[chan] if chan < rows else grid[:, chan - rows]

    def _line(self, chan: int) -> DeviceArray:
        """Return the devices along one line, as an array of a single column."""
        if chan not in self._lines:
            self._lines[chan] = _part(self._array, lambda grid: self._along(grid, chan)[:, None].copy())
        return self._lines[chan]

    def _places(self, chan: int, mask: IntArray) -> IntArray:
        """Return where along the line of ``chan`` the channels that cross it lie."""
        rows, columns = self._array.shape
        highs = np.asarray(mask)
        if highs.ndim != 1 or not len(highs) or highs.dtype.kind not in "iu":
            raise InstrumentError(
                "must be channels, one or more", object="platform", field="mask", value=mask
            )
        if not 0 <= chan < rows + columns:
            rule = f"channels are 0 to {rows + columns - 1}"
            raise InstrumentError(rule, object="platform", field="chan", value=chan)
        first, last = (rows, rows + columns) if chan < rows else (0, rows)
        bad = (highs < first) | (highs >= last)
        if bad.any():
            rule = f"channels that cross channel {chan} are {first} to {last - 1}"
            raise InstrumentError(rule, object="platform", field="mask", value=int(highs[bad][0]))
        if len(set(highs.tolist())) != len(highs):
            raise InstrumentError("names a channel twice", object="platform", field="mask", value=mask)
        return highs.astype(np.int64) - first


def _part(array: DeviceArray, some: Callable[[Any], Any]) -> DeviceArray:
    """Return some devices of an array: ``some`` takes them out of a grid."""

    def taken(grid: Any) -> Any:
        return None if grid is None else some(grid)

    curves = array.update
    assert curves is not None
    return DeviceArray(
        shape=some(curves.low).shape,
        window=array.window,
        factor=taken(array.factor),
        stuck=taken(array.stuck),
        stuck_at=taken(array.stuck_at),
        trap=taken(array.trap),
        update=UpdateCurves(**{name: some(grid) for name, grid in vars(curves).items()}),
        reach=None if array.reach is None else (some(array.reach[0]), some(array.reach[1])),
    )
