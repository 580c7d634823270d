"""One die: a netlist with the values that its fabrication drew and its programming set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitsim.devices import DeviceCard, ideal_card
from circuitsim.errors import DeviceError
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream

__all__ = ["Chip", "Conductances", "fabricate"]

Conductances = Mapping[str, tuple[FloatArray, FloatArray | None]]
"""Crossbar name -> (g_plus, g_minus or None), each (M, N) S."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chip:
    """One fabricated sample. Its mismatch was drawn once and is the same in every phase.

    ``target`` holds what was asked of each crossbar [S], ``values`` what every element has: for a
    crossbar the present conductance, ``target * mismatch``.
    """

    netlist: Netlist
    card: DeviceCard
    seed: int
    target: Conductances
    values: Values
    mismatch: Conductances
    """Factors of the crossbar devices; 1 on an ideal die."""
    exact: bool = False
    """Whether all those factors are 1."""

    def programmed(self, target: Conductances) -> Chip:
        """Return the die with the given crossbars programmed; targets are clipped to the window.

        Raises:
            DeviceError: an unknown crossbar, a wrong shape, or a target that is not finite.
        """
        targets, present = dict(self.target), dict(self.values.crossbars)
        for name, pair in target.items():
            if name not in targets:
                known = ", ".join(targets)
                raise DeviceError("no such crossbar", object=name, remedy=f"Crossbars here: {known}.")
            crossbar = self.netlist.crossbar(name)
            written: list[FloatArray | None] = []
            for half, g in zip(("g_plus", "g_minus"), pair, strict=True):
                if g is None:
                    written.append(None)
                    continue
                if g.shape != crossbar.shape:
                    raise DeviceError(f"must be {crossbar.shape}", object=name, field=half, value=g.shape)
                if not np.isfinite(g).all():
                    raise DeviceError("must be finite", object=name, field=half)
                clipped = np.clip(g, crossbar.g_min, crossbar.g_max)
                written.append(clipped if crossbar.mask is None else np.where(crossbar.mask, clipped, 0.0))
            plus, minus = written
            if plus is None or (minus is None) != (targets[name][1] is None):
                raise DeviceError("must give both halves of a differential pair", object=name)
            targets[name] = (plus, minus)
            present[name] = (plus, minus) if self.exact else _times((plus, minus), self.mismatch[name])
        return replace(self, target=targets, values=replace(self.values, crossbars=present))

    def reprogrammed(self, target: Conductances) -> Chip:
        """Return the die with crossbars programmed to targets that are known to be in their window."""
        present = {
            name: pair if self.exact else _times(pair, self.mismatch[name]) for name, pair in target.items()
        }
        values = replace(self.values, crossbars={**self.values.crossbars, **present})
        return replace(self, target={**self.target, **target}, values=values)

    def in_precision(self, precision: str) -> Chip:
        """Return the die with the conductances of its crossbars kept in ``float32`` or ``float64``."""

        def half(g: FloatArray | None) -> Any:
            return None if g is None else np.ascontiguousarray(g, dtype=precision)

        def converted(pairs: Conductances) -> Conductances:
            return {name: (half(plus), half(minus)) for name, (plus, minus) in pairs.items()}

        chip = self if self.exact else replace(self, mismatch=converted(self.mismatch))
        return chip.reprogrammed(converted(self.target))


def fabricate(netlist: Netlist, card: DeviceCard | None = None, *, seed: int = 0) -> Chip:
    """Draw one die: every spread of the card, from streams keyed by the block's or element's name.

    Its crossbars are programmed to the conductances of the netlist.
    """
    card = card or ideal_card()

    def normal(size: int | tuple[int, ...], *names: str) -> FloatArray:
        return stream(seed, "mismatch", *names).standard_normal(size)

    nominal = netlist.values()
    mismatch: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    spread = card.crossbar.device_to_device
    for crossbar in netlist.crossbars:
        halves = [
            np.maximum(1 + spread * normal(crossbar.shape, crossbar.name, half), 0.0)
            if spread
            else np.ones(crossbar.shape)
            for half in ("g_plus", "g_minus")
        ]
        mismatch[crossbar.name] = (halves[0], halves[1] if crossbar.differential else None)
    banks: dict[str, Mapping[str, FloatArray]] = {}
    amplifier = card.amplifier
    for bank in netlist.banks:
        size = len(bank.control)
        columns = dict(nominal.banks[bank.name])
        gain = 1 + amplifier.gain * normal(size, bank.name, "gain")
        columns["gain"] = columns["gain"] * gain
        columns["back_gain"] = columns["back_gain"] * (
            1 + amplifier.gain * normal(size, bank.name, "back_gain")
        )
        columns["saturation"] = columns["saturation"] * np.maximum(
            1 + amplifier.saturation * normal(size, bank.name, "saturation"), 0.1
        )
        columns["offset"] = columns["offset"] + amplifier.offset * normal(size, bank.name, "offset")
        banks[bank.name] = columns
    tables = {kind: dict(columns) for kind, columns in nominal.tables.items()}
    if card.diode.saturation_current:
        factor = np.ones(len(netlist.diode))
        for family, rows in _families(netlist.diode.name).items():
            draw = normal(len(rows), "diode", family, "saturation_current")
            factor[rows] = np.exp(card.diode.saturation_current * draw)
        tables["diode"]["saturation_current"] = tables["diode"]["saturation_current"] * factor
    target = nominal.crossbars
    present = {name: _times(target[name], mismatch[name]) for name in target}
    values = Values(tables=tables, crossbars=present, banks=banks, senses=nominal.senses)
    return Chip(
        netlist=netlist,
        card=card,
        seed=seed,
        target=target,
        values=values,
        mismatch=mismatch,
        exact=spread == 0,
    )


def _families(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each family of elements: those whose names differ in their number alone."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(re.sub(r"\[\d+\]", "[]", name), []).append(row)
    return found


def _times(
    pair: tuple[FloatArray, FloatArray | None], factor: tuple[FloatArray, FloatArray | None]
) -> tuple[FloatArray, FloatArray | None]:
    minus = None if pair[1] is None or factor[1] is None else pair[1] * factor[1]
    return pair[0] * factor[0], minus
