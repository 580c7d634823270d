"""The platform of an ArC TWO board, over its maker's Python package (pyarc2).

That package is not needed here: an `Instrument` of it is handed in. It counts pulses in ns, queues them
until they are executed, and answers slices with a value for every line across, asked for or not.
Written to its published signatures; this project has run it with a stand-in, not with a board.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import InstrumentError
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["ArcTwoInstrument", "ArcTwoPlatform"]

BIT_CHANNELS: IntArray = np.concatenate([np.arange(0, 16), np.arange(32, 48)])
"""Channels of the board's rows; a slice whose low channel is one of them reads the others."""
WORD_CHANNELS: IntArray = np.concatenate([np.arange(16, 32), np.arange(48, 64)])
_LONGEST_PULSE = 0.5
"""What its fast drivers make [s]; as a programming pulse more is a unit mistaken."""


class ArcTwoInstrument(Protocol):
    """What is used of pyarc2's `Instrument`, with its own names and units."""

    def read_one(self, low: int, high: int, vread: float, /) -> float:
        """Return the current [A] into the high channel, the low one being at ``-vread``."""

    def read_slice_masked(self, chan: int, mask: NDArray[np.uint64], vread: float, /) -> ArrayLike:
        """Return currents [A] (32,), one per channel that crosses ``chan``, in rising order."""

    def pulse_slice_masked(
        self, chan: int, voltage: float, nanos: int, mask: NDArray[np.uint64], /
    ) -> ArcTwoInstrument:
        """Queue a pulse."""

    def ground_all(self) -> Any: ...

    def execute(self) -> Any: ...

    def wait(self) -> None: ...


class ArcTwoPlatform:
    """Satisfies `CrossbarPlatform`. ``words`` and ``bits``: channels that the array is bonded to.

    ``polarity`` is -1 where devices are mounted so that a positive pulse lowers their conductance.
    """

    def __init__(
        self,
        instrument: ArcTwoInstrument,
        *,
        words: ArrayLike = WORD_CHANNELS,
        bits: ArrayLike = BIT_CHANNELS,
        polarity: int = 1,
    ) -> None:
        self._instrument = instrument
        self.words = _channels(words, WORD_CHANNELS, "words")
        self.bits = _channels(bits, BIT_CHANNELS, "bits")
        if polarity not in (-1, 1):
            raise InstrumentError("must be 1 or -1", object="ArC TWO", field="polarity", value=polarity)
        self._polarity = polarity

    def read_one(self, low: int, high: int, vread: float) -> float:
        """Return the current of one device [A]."""
        return float(self._instrument.read_one(low, high, vread))

    def read_slice_masked(self, chan: int, mask: IntArray, vread: float) -> FloatArray:
        """Return currents [A] of the channels of ``mask`` alone."""
        found = self._instrument.read_slice_masked(chan, np.asarray(mask, dtype=np.uint64), vread)
        across = WORD_CHANNELS if chan in BIT_CHANNELS else BIT_CHANNELS
        return np.asarray(found, dtype=np.float64)[np.searchsorted(across, mask)]

    def pulse_slice_masked(self, chan: int, voltage: float, width: float, mask: IntArray) -> None:
        """Give one pulse, and return when the board has."""
        nanos = round(width * 1e9)
        if not 0 < nanos < _LONGEST_PULSE * 1e9:
            rule = f"must be 1 ns or more, and less than {_LONGEST_PULSE:g} s"
            raise InstrumentError(rule, object="ArC TWO", field="width", value=width)
        highs = np.asarray(mask, dtype=np.uint64)
        self._instrument.pulse_slice_masked(chan, self._polarity * voltage, nanos, highs)
        self._instrument.ground_all()
        self._instrument.execute()
        self._instrument.wait()


def _channels(asked: ArrayLike, known: IntArray, field: str) -> IntArray:
    found = np.asarray(asked, dtype=np.int64)
    if found.ndim != 1 or not np.isin(found, known).all() or len(np.unique(found)) != len(found):
        rule = f"must be different channels of {known[0]} to {known[15]} and {known[16]} to {known[-1]}"
        raise InstrumentError(rule, object="ArC TWO", field=field, value=found.tolist())
    return found
