"""What programmable devices do, from what a substrate reads back of them after several programs.

Read back = present + error of reading; present = asked * (1 + own) + write. ``own`` is each device's, the
same in every program, so it is what two programs of different conductances have in common; ``write`` is new
with every write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.chip import Conductances
from circuitsim.instrument.calibration.calibration import CrossbarCalibration, Estimate, StuckDevice
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray

__all__ = ["DeviceReadings", "MeasuredDevices", "calibrate_devices"]

_HALVES = ("g_plus", "g_minus")
_MOST_LISTED = 40_000
"""Devices of a crossbar whose own factors go into a file."""
_MOVED = 0.1
"""Of the window: a device asked to move by this much should."""
_SAME = 0.7
"""Of the spread between writes: requests in a row that differ by less were not written twice."""
_CLEAR = 10.0
"""... and by this much more than what reading it is off by."""
_STUCK = 0.2
"""Of what it was asked to move by: one that moves less is stuck."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceReadings:
    """What was asked of crossbars, and what was read back: (M, N) S."""

    name: str
    asked: Conductances
    read: Conductances


@dataclass(frozen=True, kw_only=True, eq=False)
class _Half:
    """One half of a crossbar: its devices' factors (M, N); by program, conductances and their errors [S]."""

    factor: FloatArray
    present: Mapping[str, FloatArray]
    doubt: Mapping[str, FloatArray]
    others: Mapping[str, FloatArray]
    """Standard deviations of other devices of the same technology."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredDevices:
    """Crossbars as they were measured, and what each program left them at."""

    crossbars: Mapping[str, CrossbarCalibration]
    halves: Mapping[str, tuple[_Half, _Half | None]]
    programs: Mapping[str, Conductances]

    def asked(self, name: str) -> Conductances:
        """Return the conductances that the program ``name`` asked for."""
        return self.programs[name]

    def doubt(self, name: str) -> Conductances:
        """Return standard errors [S] of what `present` returns."""
        return self._each(lambda half: half.doubt[name])

    def copy_doubt(self, name: str) -> Conductances:
        """Return standard deviations [S] of devices like these that were asked for the same."""
        return self._each(lambda half: half.others[name])

    def present(self, name: str) -> Conductances:
        """Return the best estimate of the conductances after the program ``name``."""
        return self._each(lambda half: half.present[name])

    def _each(self, of: Callable[[_Half], FloatArray]) -> Conductances:
        return {
            crossbar: (of(plus), None if minus is None else of(minus))
            for crossbar, (plus, minus) in self.halves.items()
        }


def calibrate_devices(
    programs: Sequence[DeviceReadings], netlist: Netlist, *, resolution: float, reading_error: float
) -> MeasuredDevices:
    """Compare what was asked of devices with what was read back.

    Args:
        programs: in order; the first two ask for the same in a row, the last for that once more after others.
        netlist: the circuit.
        resolution: step [S] of what is read back; 0 where devices are not read, and nothing is known of them.
        reading_error: what reading one device back is off by [S], noise and rounding.
    """
    crossbars: dict[str, CrossbarCalibration] = {}
    halves: dict[str, tuple[_Half, _Half | None]] = {}
    for crossbar in netlist.trainable:
        there = np.ones(crossbar.shape, np.bool_) if crossbar.mask is None else crossbar.mask
        window = crossbar.g_max - crossbar.g_min
        parts: list[_Part | None] = []
        for half in range(2):
            if programs[0].asked[crossbar.name][half] is None:
                parts.append(None)
                continue
            asked = [_half(program.asked, crossbar.name, half) for program in programs]
            read = [_half(program.read, crossbar.name, half) for program in programs]
            parts.append(_Part(np.stack(asked), np.stack(read), there, window, reading_error))
        known = [part for part in parts if part is not None]
        own, own_error = _own_spread(known)
        write, again, error, bias, count = _write_spread(known)
        # A substrate that writes anew what it has been asked for already differs both times.
        reading = again if again < _SAME * write else min(reading_error, write)
        single = math.sqrt(max(write**2 - reading**2, 0.0))
        doubt = write**2 * math.sqrt(2 / count)
        if single**2 < 3 * doubt:
            single = 0.0
        made = [
            None
            if part is None
            else part.shrunk(
                own if own > 2 * own_error else 0.0, single, reading, [program.name for program in programs]
            )
            for part in parts
        ]
        assert made[0] is not None
        halves[crossbar.name] = made[0], made[1]
        if resolution <= 0:
            continue
        listed = len(known) * there.size <= _MOST_LISTED and own > 2 * own_error
        crossbars[crossbar.name] = CrossbarCalibration(
            shape=crossbar.shape,
            error=Estimate.of(error, error / math.sqrt(2 * count), "S"),
            bias=Estimate.of(bias, error / math.sqrt(count), "S"),
            device_to_device=Estimate.of(own, own_error, "1"),
            write=Estimate.of(single, doubt / (2 * max(single, math.sqrt(doubt), 1e-300)), "S"),
            read_back=Estimate.of(again, again / math.sqrt(2 * count), "S"),
            stuck=tuple(
                StuckDevice(half=name, word=int(j), bit=int(i), conductance=float(part.settled[j, i]))
                for name, part in zip(_HALVES, parts, strict=True)
                if part is not None
                for j, i in np.argwhere(part.stuck)
            ),
            **{
                name: _rows(half.factor)
                for name, half in zip(_HALVES, made, strict=True)
                if half is not None and listed
            },
        )
    return MeasuredDevices(
        crossbars=crossbars, halves=halves, programs={program.name: program.asked for program in programs}
    )


class _Part:
    """One half of one crossbar in P programs: asked and read (P, M, N) S."""

    def __init__(
        self, asked: FloatArray, read: FloatArray, there: NDArray[np.bool_], window: float, reading: float
    ) -> None:
        self.asked, self.read, self.there = asked, read, there
        far = np.abs(asked - asked[0]) > max(_MOVED * window, _CLEAR * reading)
        least = np.abs(read - read[0]) < _STUCK * np.abs(asked - asked[0])
        self.stuck = there & far.any(axis=0) & (least | ~far).all(axis=0)
        self.settled = np.asarray(read.mean(axis=0))
        self.fine = there & ~self.stuck

    def shrunk(self, own: float, write: float, reading: float, names: Sequence[str]) -> _Half:
        """Return each device's factor and present conductances, as far as the spreads say they are known."""
        power = (self.asked**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = (self.asked * self.read).sum(axis=0) / power
            doubt = (write**2 + reading**2) / power
            share = own**2 / np.maximum(own**2 + doubt, 1e-300) if own > 0 else 0.0
            factor = np.where(self.fine, 1 + share * (factor - 1), 1.0)
            left = np.where(self.fine, share * doubt, 0.0)
        kept = write**2 / max(write**2 + reading**2, 1e-300)
        present: dict[str, FloatArray] = {}
        errors: dict[str, FloatArray] = {}
        others: dict[str, FloatArray] = {}
        for name, asked, read in zip(names, self.asked, self.read, strict=True):
            expected = asked * factor
            found = expected + kept * (read - expected)
            errors[name] = np.where(self.fine, np.sqrt(left * asked**2 + kept * reading**2), 0.0)
            others[name] = np.where(self.there, np.hypot(own * asked, write), 0.0)
            present[name] = np.where(
                self.stuck, self.settled, np.where(self.there, np.maximum(found, 0.0), 0.0)
            )
        return _Half(factor=factor, present=present, doubt=errors, others=others)


def _own_spread(parts: Sequence[_Part]) -> tuple[float, float]:
    """Return the relative spread that programs of different conductances have in common, and its error.

    The product of a device's relative errors in two programs is that spread squared, in the mean: errors of
    writing and of rounding have nothing to do with each other. Weights are what makes it precise.
    """
    products: list[FloatArray] = []
    weights: list[FloatArray] = []
    for part in parts:
        error = part.read - part.asked
        # One program of each kind: the first of the network's own, and those between it and the last.
        kinds = [0, *range(2, len(part.asked) - 1)]
        for place, one in enumerate(kinds):
            for other in kinds[place + 1 :]:
                g = (part.asked[one] * part.asked[other])[part.fine]
                products.append((error[one] * error[other])[part.fine] * g)
                weights.append(g**2)
    if not products or not sum(len(w) for w in weights):
        return 0.0, 0.0
    product, weight = np.concatenate(products), np.concatenate(weights)
    total = float(weight.sum())
    square = float(product.sum()) / total
    # The pairs of a device have its own deviation in common: count devices, not pairs.
    pairs = len(products) / len(parts)
    doubt = math.sqrt(float(((product - square * weight) ** 2).sum()) * pairs) / total
    own = math.sqrt(max(square, 0.0))
    return own, doubt / (2 * max(own, math.sqrt(doubt), 1e-300))


def _write_spread(parts: Sequence[_Part]) -> tuple[float, float, float, float, int]:
    """Return spreads [S] between writes of the same and between requests of the same in a row, the rms and
    the mean of all errors, and the number of devices."""
    write = again = square = total = 0.0
    count = programs = 0
    for part in parts:
        fine = part.fine
        write += 0.5 * float(((part.read[-1] - part.read[0])[fine] ** 2).sum())
        again += 0.5 * float(((part.read[1] - part.read[0])[fine] ** 2).sum())
        error = (part.read - part.asked)[:, fine]
        square += float((error**2).sum())
        total += float(error.sum())
        count += int(fine.sum())
        programs = len(part.read)
    n = max(count, 1)
    many = n * max(programs, 1)
    return math.sqrt(write / n), math.sqrt(again / n), math.sqrt(square / many), total / many, n


def _half(pairs: Conductances, name: str, half: int) -> FloatArray:
    found: Any = pairs[name][half]
    return np.asarray(found, dtype=np.float64)


def _rows(factor: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{g:.6g}") for g in row) for row in factor)
