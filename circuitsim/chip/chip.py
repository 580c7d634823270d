"""One die: a netlist with the values that its fabrication drew and its programming set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from circuitsim.chip.pulses import conductance_step, pulsed_half
from circuitsim.devices import DeviceCard
from circuitsim.devices.memristor import DeviceArray, drifted, read, written
from circuitsim.errors import DeviceError
from circuitsim.netlist import Values
from circuitsim.netlist.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream
from circuitsim.solver.correction import Correction
from circuitsim.solver.dual import DualNetwork

__all__ = ["Chip", "Conductances", "WriteReport"]

Conductances: TypeAlias = Mapping[str, tuple[FloatArray, FloatArray | None]]
"""Crossbar name -> (g_plus, g_minus or None), each (M, N) S."""
Arrays: TypeAlias = Mapping[str, tuple[DeviceArray, DeviceArray | None]]
_HALVES = ("g_plus", "g_minus")


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """What programming took: pulses or writes in all, energy [J], devices that missed their tolerance."""

    writes: int = 0
    energy: float = 0.0
    missed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Chip:
    """One fabricated sample. Its mismatch was drawn once and is the same in every phase.

    ``target`` holds what was asked of each crossbar [S]; ``written`` what the devices had after their last
    write; ``values`` what every element has now: crossbars aged by ``age`` [s] since that write. Read noise
    is no part of them: `read` draws it.
    """

    netlist: Netlist
    card: DeviceCard
    seed: int
    target: Conductances
    written: Conductances
    values: Values
    mismatch: Conductances
    """Factors of the crossbar devices; 1 on an ideal die."""
    arrays: Arrays
    exact: bool = False
    """Whether every device takes exactly the conductance that it is asked for."""
    matched: bool = True
    """Whether every device has its target times its mismatch: no noise of writing, levels or pulses."""
    age: float = 0.0
    writes: int = 0
    """Programming operations so far: each has noise of its own."""
    report: WriteReport = field(default_factory=WriteReport)
    """Of the last programming operation."""
    correction: Correction | None = None
    """Faults of the correction network; None where it is perfect."""
    copy: Chip | None = None
    """The second network of a dyadic phase, as it was fabricated; None where it equals this one."""
    copy_slope: Mapping[str, FloatArray] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    """What comes before the names of this network's streams: empty, or that it is a copy."""

    @property
    def dual(self) -> DualNetwork | None:
        """The second network of a dyadic phase with its mismatch; None where it is a perfect copy."""
        if self.copy is None:
            return None
        return DualNetwork(values=self.copy.values, slope=self.copy_slope)

    def without_copy(self) -> Chip:
        """Return the die without the second network of a dyadic phase, which then costs nothing."""
        return replace(self, copy=None)

    def programmed(self, target: Conductances) -> Chip:
        """Return the die with crossbars set to targets, which are clipped to their windows.

        Every device then has its target times its own mismatch; a stuck one stays as it is. Noise of
        writing is drawn by `write`.

        Raises:
            DeviceError: an unknown crossbar, a wrong shape, or a target that is not finite.
        """
        return self.reprogrammed(self.checked(target))

    def checked(self, target: Conductances) -> Conductances:
        """Return targets clipped to their windows, 0 where a mask leaves devices out.

        Raises:
            DeviceError: an unknown crossbar, a wrong shape, or a target that is not finite.
        """
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for name, pair in target.items():
            if name not in self.target:
                known = ", ".join(self.target)
                raise DeviceError("no such crossbar", object=name, remedy=f"Crossbars here: {known}.")
            crossbar = self.netlist.crossbar(name)
            halves: list[FloatArray | None] = []
            for half, g in zip(_HALVES, pair, strict=True):
                if g is None:
                    halves.append(None)
                    continue
                if g.shape != crossbar.shape:
                    raise DeviceError(f"must be {crossbar.shape}", object=name, field=half, value=g.shape)
                if not np.isfinite(g).all():
                    raise DeviceError("must be finite", object=name, field=half)
                clipped = np.clip(g, crossbar.g_min, crossbar.g_max)
                halves.append(clipped if crossbar.mask is None else np.where(crossbar.mask, clipped, 0.0))
            plus, minus = halves
            if plus is None or (minus is None) != (self.target[name][1] is None):
                raise DeviceError("must give both halves of a differential pair", object=name)
            found[name] = (plus, minus)
        return found

    def reprogrammed(self, target: Conductances) -> Chip:
        """Return the die set to targets that are known to be in their windows."""
        present = {name: self._matched(name, pair) for name, pair in target.items()}
        copy = None if self.copy is None else self.copy.reprogrammed(target)
        chip = self._with(present, target=target, copy=copy)
        return chip if self.matched else replace(chip, matched=target.keys() >= self.target.keys())

    def moved(self, target: Conductances) -> Chip:
        """Return the die with its devices moved by what targets have moved, each times its mismatch.

        What writing left them with, beyond their targets, stays.
        """
        present: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for name, pair in target.items():
            halves: list[FloatArray | None] = []
            for place, g in enumerate(pair):
                old, had, array = (
                    self.target[name][place],
                    self.written[name][place],
                    self.arrays[name][place],
                )
                if g is None or old is None or had is None or array is None:
                    halves.append(None)
                    continue
                step = g - old if array.factor is None else (g - old) * array.factor
                halves.append(self._masked(name, array.reached(np.maximum(had + step, 0.0))))
            assert halves[0] is not None
            present[name] = halves[0], halves[1]
        copy = None if self.copy is None else self.copy.moved(target)
        return self._with(present, target=target, copy=copy)

    def write(
        self,
        target: Conductances,
        *,
        tolerance: float | None = None,
        budget: int = 1,
        only: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> Chip:
        """Return the die after writing every device of the given crossbars, with programming noise.

        With ``tolerance`` [fraction of the window] each device is read back and written again until it is
        that close to its target, or has had ``budget`` writes: write-verify. The reads are exact; the mean
        relative error of a device's writes is made up for, as far as the card's spreads make it the device's
        own and not the writes'. ``only`` (masks per crossbar and half) leaves the other devices as
        they are. With a card that has an update curve and no programming noise, a write is a train of pulses.
        """
        target = self.checked(target)
        present: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        count, missed, energy = 0, 0, 0.0
        for name, pair in target.items():
            crossbar = self.netlist.crossbar(name)
            halves: list[FloatArray | None] = []
            for place, (half, g) in enumerate(zip(_HALVES, pair, strict=True)):
                if g is None:
                    halves.append(None)
                    continue
                array = self.arrays[name][place]
                assert array is not None
                before = self.written[name][place]
                assert before is not None
                generator = stream(self.seed, *self.path, "write", name, half, self.writes)
                asked = g.astype(np.float64)
                there = np.ones(array.shape, bool) if crossbar.mask is None else crossbar.mask
                if only is not None:
                    there = there & only[name][place]
                found, tries = self._try(array, before.astype(np.float64), asked, generator)
                tries = np.where(there, tries, 0)
                if tolerance is not None:
                    allowed = tolerance * (crossbar.g_max - crossbar.g_min)
                    error = _relative_error(found, asked)
                    for done in range(1, budget):
                        off = there & (np.abs(found - asked) > allowed)
                        if not off.any():
                            break
                        own = np.maximum(1 + self._own_share(asked, done) * error / done, 0.1)
                        ask = np.clip(asked / own, *array.window)
                        again, more = self._try(array, found, ask, generator)
                        error += _relative_error(again, ask)
                        found = np.where(off, again, found)
                        tries += np.where(off, more, 0)
                    missed += int((there & (np.abs(found - asked) > allowed)).sum())
                if only is not None:
                    found = np.where(there, found, before)
                count += int(tries.sum())
                energy += self._pulse_energy(found, tries)
                halves.append(self._masked(name, found))
            assert halves[0] is not None
            present[name] = (halves[0], halves[1])
        report = WriteReport(writes=count, energy=energy, missed=missed)
        copy = self.copy
        if copy is not None:
            copy = copy.write(target, tolerance=tolerance, budget=budget, only=only)
        chip = self._with(present, target=target, copy=copy, report=report)
        devices = self.card.crossbar
        plain = devices.programming is None and devices.update is None and devices.levels is None
        return replace(chip, matched=self.matched and plain and tolerance is None and only is None)

    def _own_share(self, asked: FloatArray, writes: int) -> FloatArray | float:
        """Return how much of the mean error of some writes a device will repeat, by least squares."""
        card = self.card.crossbar
        if card.programming is None:
            # Pulses start where the last ones ended: there is nothing else to make up for.
            return 0.0 if card.update is not None or not card.device_to_device else 1.0
        own = (card.device_to_device * asked) ** 2
        noise = card.programming(card.relative(asked)) ** 2 / writes
        return own / np.maximum(own + noise, 1e-300)

    def _try(
        self, array: DeviceArray, before: FloatArray, asked: FloatArray, generator: np.random.Generator
    ) -> tuple[FloatArray, Any]:
        """Return conductances after one write, and how many pulses it took.

        Where a card knows the update curve alone, a write is as many pulses as nominally lead from the
        present conductance to the one asked for.
        """
        card = self.card.crossbar
        if card.update is not None and card.programming is None:
            step = conductance_step(card.update, array.window)
            counts = np.rint((asked - before) / step).astype(np.int64)
            return pulsed_half(card.update, array, before, counts, generator), np.abs(counts)
        return written(card, array, asked, generator), np.ones(array.shape, dtype=np.int64)

    def pulsed(self, counts: Mapping[str, tuple[FloatArray, FloatArray | None]]) -> Chip:
        """Return the die after pulses on its devices: ``counts`` (M, N), positive for up.

        Needs a card with an update curve. The second network of a dyadic phase gets the same pulses.
        """
        spec = self.card.crossbar.update
        if spec is None:
            raise DeviceError(
                "has no update curve",
                object=self.card.name,
                field="crossbar.update",
                remedy="Choose another.",
            )
        written: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        present: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        count, energy = 0, 0.0
        for name, pair in counts.items():
            halves: list[FloatArray | None] = []
            shown: list[FloatArray | None] = []
            for place, (half, n) in enumerate(zip(_HALVES, pair, strict=True)):
                g, array = self.written[name][place], self.arrays[name][place]
                before = self.values.crossbars[name][place]
                if n is None or g is None or array is None or before is None:
                    halves.append(None)
                    shown.append(None)
                    continue
                moved = np.asarray(n, dtype=np.int64)
                generator = stream(self.seed, *self.path, "pulses", name, half, self.writes)
                found = self._masked(name, pulsed_half(spec, array, g.astype(np.float64), moved, generator))
                halves.append(found)
                if spec.write_noise:
                    noise = conductance_step(spec, array.window) * spec.write_noise
                    off = found + noise * generator.standard_normal(array.shape)
                    off = np.where(moved == 0, before, array.held(np.maximum(off, 0.0)))
                    shown.append(self._masked(name, off))
                else:
                    shown.append(found)
                count += int(np.abs(moved).sum())
                energy += self._pulse_energy(found, np.abs(moved))
            assert halves[0] is not None
            assert shown[0] is not None
            written[name] = (halves[0], halves[1])
            present[name] = (shown[0], shown[1])
        copy = None if self.copy is None else self.copy.pulsed(counts)
        report = WriteReport(writes=count, energy=energy)
        chip = replace(self._with(written, target=written, copy=copy, report=report), matched=False)
        if not spec.write_noise:
            return chip
        crossbars = {**self.values.crossbars, **present}
        return replace(chip, values=replace(chip.values, crossbars=crossbars))

    def aged(self, seconds: float) -> Chip:
        """Return the die ``seconds`` later: what it was written with has drifted.

        Raises:
            DeviceError: a negative time, or an age beyond what the card was measured for.
        """
        if not 0 <= seconds < np.inf:
            raise DeviceError("must be a time in s, not negative", field="age", value=seconds)
        age = self.age + seconds
        copy = None if self.copy is None else self.copy.aged(seconds)
        chip = replace(self, age=age, copy=copy)
        if self.card.crossbar.drift is None:
            return chip
        update = self.card.crossbar.update

        def at(array: DeviceArray, g: FloatArray, half: str, name: str, age: float) -> FloatArray:
            generator = stream(self.seed, *self.path, "drift", name, half, self.writes)
            asked = self.target[name][_HALVES.index(half)]
            return drifted(self.card.crossbar, array, g, age, generator, asked=asked, name=name)

        def later(array: DeviceArray, g: FloatArray, half: str, name: str) -> FloatArray:
            found = at(array, g, half, name, age)
            if update is None or not update.write_noise:
                return found
            # What a read has been off by since the last pulse stays.
            seen = self.values.crossbars[name][_HALVES.index(half)]
            assert seen is not None
            return np.maximum(found + (seen - at(array, g, half, name, self.age)), 0.0)

        present = {
            name: self._halves(name, pair, lambda array, g, half, name=name: later(array, g, half, name))
            for name, pair in self.written.items()
        }
        return replace(chip, values=replace(self.values, crossbars=present))

    @property
    def noisy(self) -> bool:
        """Whether reads of its devices differ from each other."""
        return any(noise.kind != "thermal" for noise in self.card.crossbar.read_noise)

    def read(self, *key: str | int, fast: bool = True, values: Values | None = None) -> Values:
        """Return the values that one read finds; ``key`` tells reads apart.

        ``fast`` noise is drawn for every phase, the other, 1/f, once for all phases of a step: read with
        ``fast=False`` first and hand its ``values`` on.
        """
        base = values or self.values
        crossbars = {
            name: self._halves(
                name,
                pair,
                lambda array, g, half, name=name: read(
                    self.card.crossbar,
                    array,
                    g,
                    self.age,
                    lambda what: stream(self.seed, *self.path, "read", name, half, what, *key),
                    fast=fast,
                ),
            )
            for name, pair in base.crossbars.items()
        }
        return replace(base, crossbars=crossbars)

    def retargeted(self, target: Conductances) -> Chip:
        """Return the die with new targets that no device knows of yet."""
        return replace(self, target={**self.target, **target})

    def in_precision(self, precision: str) -> Chip:
        """Return the die with the conductances of its crossbars kept in ``float32`` or ``float64``."""

        def half(g: FloatArray | None) -> Any:
            return None if g is None else np.ascontiguousarray(g, dtype=precision)

        def converted(pairs: Conductances) -> Conductances:
            return {name: (half(plus), half(minus)) for name, (plus, minus) in pairs.items()}

        return replace(
            self,
            target=converted(self.target),
            written=converted(self.written),
            values=replace(self.values, crossbars=converted(self.values.crossbars)),
            mismatch=self.mismatch if self.exact else converted(self.mismatch),
            copy=None if self.copy is None else self.copy.in_precision(precision),
        )

    def restored(
        self,
        target: Conductances,
        written: Conductances,
        present: Conductances,
        writes: int,
        *,
        matched: bool = False,
    ) -> Chip:
        """Return the die as a checkpoint left it, just written."""
        crossbars = {**self.values.crossbars, **present}
        return replace(
            self,
            target={**self.target, **target},
            written={**self.written, **written},
            values=replace(self.values, crossbars=crossbars),
            matched=matched,
            writes=writes,
            age=0.0,
        )

    def _with(
        self,
        present: Conductances,
        *,
        target: Conductances,
        copy: Chip | None,
        report: WriteReport | None = None,
    ) -> Chip:
        crossbars = {**self.written, **present}
        return replace(
            self,
            target={**self.target, **target},
            written=crossbars,
            values=replace(self.values, crossbars=crossbars),
            writes=self.writes + 1,
            age=0.0,
            copy=copy,
            report=report or WriteReport(),
        )

    def _matched(
        self, name: str, pair: tuple[FloatArray, FloatArray | None]
    ) -> tuple[FloatArray, FloatArray | None]:
        if self.exact:
            return pair
        halves: list[FloatArray | None] = []
        for g, factor, array in zip(pair, self.mismatch[name], self.arrays[name], strict=True):
            if g is None or factor is None or array is None:
                halves.append(None)
                continue
            halves.append(self._masked(name, array.reached(g if array.factor is None else g * factor)))
        assert halves[0] is not None
        return halves[0], halves[1]

    def _halves(self, name: str, pair: Any, change: Any) -> tuple[FloatArray, FloatArray | None]:
        """Return both halves as ``change(array, g, half)`` makes them, in their own precision."""
        found: list[FloatArray | None] = []
        for array, g, half in zip(self.arrays[name], pair, _HALVES, strict=True):
            if g is None:
                found.append(None)
                continue
            found.append(self._masked(name, change(array, g.astype(np.float64), half)).astype(g.dtype))
        assert found[0] is not None
        return found[0], found[1]

    def _masked(self, name: str, g: FloatArray) -> FloatArray:
        dtype = self.target[name][0].dtype
        mask = self.netlist.crossbar(name).mask
        g = g.astype(dtype, copy=False)
        return g if mask is None else np.where(mask, g, dtype.type(0))

    def _pulse_energy(self, g: FloatArray, count: Any) -> float:
        pulse = self.card.crossbar.pulse
        if pulse is None:
            return 0.0
        return float(pulse.voltage**2 * pulse.width * (g * count).sum())


def _relative_error(found: FloatArray, asked: FloatArray) -> FloatArray:
    return (found - asked) / np.maximum(asked, 1e-30)
