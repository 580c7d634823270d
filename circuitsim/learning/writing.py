"""How a step of learning reaches the devices: exactly, by writes, or by pulses along their update curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from circuitsim.chip import Chip, Conductances
from circuitsim.chip.pulses import conductance_step, symmetric_point
from circuitsim.devices import DeviceCard
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import Quantity, Spec
from circuitsim.seeds import stream

__all__ = ["DeviceWriter", "ProgrammingSpec", "UpdateSpec"]

_HALVES = ("g_plus", "g_minus")


class ProgrammingSpec(Spec):
    """How a whole set of conductances is written to a die.

    ``write``: once, with programming noise. ``write_verify``: each device again until it is within
    ``tolerance`` (a fraction of the window) of its target, or has had ``budget`` writes. ``exact``: without
    noise.
    """

    method: Literal["write", "write_verify", "exact"] = "write"
    tolerance: Annotated[Quantity, Field(gt=0, lt=1)] = 0.02
    budget: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10

    def apply(
        self, chip: Chip, target: Conductances, only: Mapping[str, tuple[Any, Any]] | None = None
    ) -> Chip:
        """Return the die with ``target`` written to it, to the devices of the masks ``only`` if given."""
        if self.method == "exact":
            return chip.programmed(target)
        if self.method == "write":
            return chip.write(target, only=only)
        return chip.write(target, tolerance=self.tolerance, budget=self.budget, only=only)


class UpdateSpec(Spec):
    """How the steps of learning reach the devices.

    ``ideal``: every device takes the change that it is given, its own mismatch aside. ``write``: devices
    are written to their new targets, with programming noise. ``pulses``: as many pulses as nominally make
    up the change, each along the device's own curve. ``auto``: pulses where the card has an update curve,
    else ideal.

    Of pulses, and writes: ``accumulate`` steps are summed up before the devices are touched;
    ``threshold``, in pulses or in fractions of the window, is the smallest change that is made. ``carry``
    keeps what was not made for later, in a digital memory. ``rounding`` to whole pulses is ``stochastic``
    or to the ``nearest``; at most ``most`` pulses are given to a device at once.

    ``start``: ``symmetric_point`` first brings every device to where a pulse up and one down undo each
    other. ``zero_shift`` moves the first device of each pair alone and keeps the second, its reference, at
    the first one's symmetric point.

    ``bias``: what circuits at the devices add to every update besides what they were meant to: of each
    device its own, N(0, ``bias``) of the window, drawn once at fabrication. It is asked for like all else of
    an update, so thresholds and pulses see it too. Programming by a host does not go through these circuits.
    """

    method: Literal["auto", "ideal", "write", "pulses"] = "auto"
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    threshold: Annotated[Quantity, Field(ge=0)] = 0.0
    accumulate: Annotated[int, Field(ge=1, strict=True)] = 1
    carry: bool = False
    most: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 1000
    start: Literal["as_written", "symmetric_point"] = "as_written"
    zero_shift: bool = False
    bias: Annotated[Quantity, Field(ge=0, lt=1)] = 0.0

    def chosen(self, card: DeviceCard) -> Literal["ideal", "write", "pulses"]:
        """Return the method for a card.

        Raises:
            DeviceError: pulses on a card without an update curve, or what is for pulses without them.
        """
        method = self.method
        if method == "auto":
            method = "ideal" if card.crossbar.update is None else "pulses"
        if card.crossbar.update is None and method == "pulses":
            raise DeviceError(
                "needs a card with an update curve",
                object=card.name,
                field="update.method",
                value=method,
                remedy="Choose another card, or updates that are ideal or writes.",
            )
        for name, asked in (("start", self.start != "as_written"), ("zero_shift", self.zero_shift)):
            if asked and method != "pulses":
                raise DeviceError(
                    "is for updates by pulses",
                    object=card.name,
                    field=f"update.{name}",
                    value=getattr(self, name),
                    remedy="Leave it out, or choose a card with an update curve and method: pulses.",
                )
        return method


@dataclass(eq=False)
class DeviceWriter:
    """Brings new conductances to a die. ``state`` is what it keeps between steps."""

    spec: UpdateSpec
    seed: int
    state: dict[str, FloatArray] = field(default_factory=dict)
    steps: int = 0
    writes: int = 0
    """Writes or pulses so far."""
    energy: float = 0.0
    """Spent on them [J]."""
    method: Literal["ideal", "write", "pulses"] = "ideal"
    _bias: dict[str, tuple[FloatArray, FloatArray | None]] = field(default_factory=dict)
    """What every update adds to the devices [S]: part of the die, so no part of ``state``."""

    @property
    def plain(self) -> bool:
        """Whether devices get just the steps that they are meant to get."""
        return self.method == "ideal" and not self._bias

    def prepare(self, chip: Chip) -> Chip:
        """Return the die as learning starts on it."""
        self.method = self.spec.chosen(chip.card)
        if self.spec.bias:
            self._bias = self._drawn(chip)
        if self.method == "ideal":
            return chip
        for crossbar in chip.netlist.trainable:
            for half, g in zip(_HALVES, chip.target[crossbar.name], strict=True):
                if g is not None:
                    self.state[f"{crossbar.name}/{half}"] = np.zeros(g.shape)
        if self.spec.start == "symmetric_point" or self.spec.zero_shift:
            chip = self._at_symmetric_points(chip)
        return chip

    def _drawn(self, chip: Chip) -> dict[str, tuple[FloatArray, FloatArray | None]]:
        """Return the bias of every device [S], of the die whatever the training."""
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for crossbar in chip.netlist.trainable:
            spread = self.spec.bias * (crossbar.g_max - crossbar.g_min)
            halves: list[FloatArray | None] = []
            for half, g in zip(_HALVES, chip.target[crossbar.name], strict=True):
                if g is None:
                    halves.append(None)
                    continue
                draw = stream(chip.seed, "update bias", crossbar.name, half).standard_normal(g.shape)
                halves.append((spread * draw).astype(g.dtype))
            assert halves[0] is not None
            found[crossbar.name] = halves[0], halves[1]
        return found

    def _biased(self, chip: Chip, new: Conductances) -> Conductances:
        """Return what devices are asked for where circuits at them add something of their own."""
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for name, (plus, minus) in new.items():
            up, down = self._bias[name]
            found[name] = plus + up, None if minus is None or down is None else minus + down
        return chip.checked(found)

    def _at_symmetric_points(self, chip: Chip) -> Chip:
        update = chip.card.crossbar.update
        assert update is not None
        start = self.spec.start == "symmetric_point"
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for crossbar in chip.netlist.trainable:
            first, second = chip.arrays[crossbar.name]
            plus, minus = chip.written[crossbar.name]
            own = symmetric_point(update, first)
            if second is not None and self.spec.zero_shift:
                # A device like any other: where it is stuck it stays.
                minus = second.held(own)
            elif second is not None and start:
                minus = symmetric_point(update, second)
            if start:
                plus = own
            dtype = chip.target[crossbar.name][0].dtype
            if crossbar.mask is not None:
                plus = np.where(crossbar.mask, plus, 0.0)
                minus = None if minus is None else np.where(crossbar.mask, minus, 0.0)
            found[crossbar.name] = plus.astype(dtype), None if minus is None else minus.astype(dtype)
        copy = None if chip.copy is None else self._at_symmetric_points(chip.copy)
        return replace(chip.restored(found, found, found, chip.writes + 1), copy=copy)

    def conductance(self, chip: Chip) -> Conductances:
        """Return what the optimiser steps from: targets, or of pulsed devices what they have."""
        if self.method != "pulses":
            return chip.target
        return chip.checked(
            {crossbar.name: chip.written[crossbar.name] for crossbar in chip.netlist.trainable}
        )

    def apply(self, chip: Chip, old: Conductances, new: Conductances) -> Chip:
        """Return the die after one step of the optimiser, from ``old`` to ``new`` conductances."""
        if self._bias:
            new = self._biased(chip, new)
        if self.method == "ideal":
            return chip.reprogrammed(new) if chip.matched else chip.moved(new)
        self.steps += 1
        if self.method == "write":
            return self._written(chip, new)
        for name, pair in new.items():
            for half, g, before in zip(_HALVES, pair, old[name], strict=True):
                if g is not None and before is not None:
                    self.state[f"{name}/{half}"] += g - before
        if self.steps % self.spec.accumulate:
            return chip
        update = chip.card.crossbar.update
        assert update is not None
        counts: dict[str, tuple[Any, Any]] = {}
        for crossbar in chip.netlist.trainable:
            step = conductance_step(update, (crossbar.g_min, crossbar.g_max))
            halves: list[Any] = []
            for half, g in zip(_HALVES, new[crossbar.name], strict=True):
                held = half == "g_minus" and self.spec.zero_shift
                if g is None:
                    halves.append(None)
                    continue
                key = f"{crossbar.name}/{half}"
                asked = np.zeros(g.shape) if held else self.state[key] / step
                count = self._rounded(asked, key)
                self.state[key] = (
                    (asked - count) * step if self.spec.carry and not held else np.zeros(g.shape)
                )
                halves.append(count)
            counts[crossbar.name] = halves[0], halves[1]
        return self._counted(chip.pulsed(counts))

    def _rounded(self, asked: FloatArray, key: str) -> Any:
        if self.spec.rounding == "stochastic":
            draw = stream(self.seed, "rounding", key, self.steps).random(asked.shape)
            count = np.floor(asked + draw)
        else:
            count = np.rint(asked)
        if self.spec.threshold:
            count = np.where(np.abs(asked) < self.spec.threshold, 0.0, count)
        return np.clip(count, -self.spec.most, self.spec.most).astype(np.int64)

    def _written(self, chip: Chip, new: Conductances) -> Chip:
        """Write what is due; targets move on in the host's memory."""
        due = self.steps % self.spec.accumulate == 0
        masks: dict[str, tuple[Any, Any]] = {}
        for crossbar in chip.netlist.trainable:
            window = crossbar.g_max - crossbar.g_min
            halves: list[Any] = []
            for half, g, target in zip(_HALVES, new[crossbar.name], chip.target[crossbar.name], strict=True):
                if g is None or target is None:
                    halves.append(None)
                    continue
                key = f"{crossbar.name}/{half}"
                self.state[key] += g - target
                moved = np.abs(self.state[key])
                mask = due & (moved > 0) & (moved >= self.spec.threshold * window)
                self.state[key] = np.where(mask, 0.0, self.state[key])
                halves.append(mask)
            masks[crossbar.name] = halves[0], halves[1]
        if not due:
            return chip.retargeted(new)
        return self._counted(chip.write(new, only=masks))

    def _counted(self, chip: Chip) -> Chip:
        self.writes += chip.report.writes
        self.energy += chip.report.energy
        return chip

    def restore(self, state: Mapping[str, FloatArray], counts: FloatArray) -> None:
        """Go on from a checkpoint."""
        for key in self.state:
            self.state[key] = np.array(state[key])
        self.steps, self.writes, self.energy = int(counts[0]), int(counts[1]), float(counts[2])
