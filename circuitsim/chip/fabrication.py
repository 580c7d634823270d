"""Fabrication: every spread of a card, drawn once, from streams keyed by what they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuitsim.chip.chip import Chip
from circuitsim.devices import DeviceCard, ideal_card
from circuitsim.devices.memristor import DeviceArray, fabricated
from circuitsim.errors import DeviceError
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream
from circuitsim.solver.correction import Correction

__all__ = ["fabricate"]

_GAINS = {
    "buffer": "gain",
    "vcvs": "gain",
    "cccs": "gain",
    "vccs": "transconductance",
    "ccvs": "transresistance",
}
"""Amplifiers that were drawn one by one, and their gains."""


def fabricate(netlist: Netlist, card: DeviceCard | None = None, *, seed: int = 0, copy: bool = True) -> Chip:
    """Draw one die: every spread of the card, from streams keyed by the block's or element's name.

    Its crossbars are set to the conductances of the netlist, each device with its own mismatch; noise of
    writing comes with `Chip.write`. With ``copy`` the die has the second network that a dyadic phase
    needs, a circuit with devices of its own.

    Raises:
        DeviceError: a conductance window outside the range in which the card holds, or none.
    """
    card = card or ideal_card()
    devices = card.crossbar
    for crossbar in netlist.crossbars:
        if not np.isfinite(crossbar.g_max) and (devices.stuck.total or devices.update or devices.levels):
            raise DeviceError(
                "levels, stuck devices and update curves need a conductance window",
                object=crossbar.name,
                field="g_max",
                value=crossbar.g_max,
                remedy="Give the crossbar g_min and g_max.",
            )
        devices.check_window(crossbar.g_min, crossbar.g_max, object=crossbar.name, card=card.name)
    chip = _network(netlist, card, seed, ())
    if not copy or not _differs(chip):
        return _with_correction(chip)
    slope = {}
    if card.amplifier.copy_gain:
        for bank in netlist.banks:
            normal = stream(seed, "mismatch", bank.name, "copy_gain").standard_normal(len(bank.control))
            slope[bank.name] = 1 + card.amplifier.copy_gain * normal
    second = _network(netlist, card, seed, ("copy",))
    chip = Chip(**{**vars(chip), "copy": second, "copy_slope": slope})
    return _with_correction(chip)


def _differs(chip: Chip) -> bool:
    """Whether a second network of this die would differ from the first."""
    card = chip.card
    return (
        not chip.exact
        or any(
            (card.amplifier.gain, card.amplifier.back_gain, card.amplifier.copy_gain, card.passive.resistor)
        )
        or any((card.crossbar.programming, card.crossbar.update, card.crossbar.drift))
        or chip.noisy
    )


def _with_correction(chip: Chip) -> Chip:
    spec = chip.card.amplifier
    if not (spec.correction_gain or spec.correction_error or spec.anchor):
        return chip

    def factors(name: str, way: str, size: int) -> FloatArray:
        normal = stream(chip.seed, "mismatch", name, "correction", way).standard_normal(size)
        return (1 + spec.correction_error) * (1 + spec.correction_gain * normal)

    blocks = {bank.name: len(bank.control) for bank in chip.netlist.banks}
    blocks |= {sense.name: len(sense.bit) for sense in chip.netlist.senses}
    anchor = {}
    if spec.anchor:
        for name, size in blocks.items():
            normal = stream(chip.seed, "mismatch", name, "anchor").standard_normal(size)
            anchor[name] = spec.anchor * normal
    correction = Correction(
        forward={name: factors(name, "forward", size) for name, size in blocks.items()},
        back={name: factors(name, "back", size) for name, size in blocks.items()},
        anchor=anchor,
    )
    return Chip(**{**vars(chip), "correction": correction})


def _network(netlist: Netlist, card: DeviceCard, seed: int, path: tuple[str, ...]) -> Chip:
    """Draw one network of a die. ``path`` comes before the names of its streams."""

    def draws(*names: str) -> np.random.Generator:
        return stream(seed, *path, "mismatch", *names)

    def normal(size: int, *names: str) -> FloatArray:
        return draws(*names).standard_normal(size)

    nominal = netlist.values()
    arrays: dict[str, tuple[DeviceArray, DeviceArray | None]] = {}
    mismatch: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    present: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    exact = True
    for crossbar in netlist.crossbars:
        halves: list[DeviceArray | None] = []
        factors: list[FloatArray | None] = []
        shown: list[FloatArray | None] = []
        for half, g in zip(("g_plus", "g_minus"), nominal.crossbars[crossbar.name], strict=True):
            if g is None:
                halves.append(None)
                factors.append(None)
                shown.append(None)
                continue

            def draw(what: str, name: str = crossbar.name, half: str = half) -> np.random.Generator:
                return draws(name, half) if what == "device_to_device" else draws(name, half, what)

            array = fabricated(card.crossbar, crossbar.shape, (crossbar.g_min, crossbar.g_max), draw)
            exact = exact and array.exact
            halves.append(array)
            factors.append(np.ones(crossbar.shape) if array.factor is None else array.factor)
            found = array.reached(g if array.factor is None else g * array.factor)
            if crossbar.mask is not None and not array.exact:
                found = np.where(crossbar.mask, found, 0.0)
            shown.append(found)
        assert halves[0] is not None
        assert factors[0] is not None
        assert shown[0] is not None
        arrays[crossbar.name] = halves[0], halves[1]
        mismatch[crossbar.name] = factors[0], factors[1]
        present[crossbar.name] = shown[0], shown[1]
    values = Values(
        tables=_tables(netlist, nominal, card, normal),
        crossbars=present,
        banks=_banks(netlist, nominal, card, normal),
        senses=_senses(netlist, nominal, card, normal),
    )
    return Chip(
        netlist=netlist,
        card=card,
        seed=seed,
        target=nominal.crossbars,
        written=present,
        values=values,
        mismatch=mismatch,
        arrays=arrays,
        exact=exact,
        path=path,
    )


def _banks(
    netlist: Netlist, nominal: Values, card: DeviceCard, normal: Any
) -> dict[str, Mapping[str, FloatArray]]:
    amplifier, offset = card.amplifier, card.offset
    back = amplifier.gain if amplifier.back_gain is None else amplifier.back_gain
    banks: dict[str, Mapping[str, FloatArray]] = {}
    for bank in netlist.banks:
        size = len(bank.control)
        columns = dict(nominal.banks[bank.name])
        gain = columns["gain"] * (1 + amplifier.gain * normal(size, bank.name, "gain"))
        if amplifier.open_loop is not None:
            gain = gain / (1 + (1 + np.abs(gain)) / amplifier.open_loop)
        columns["gain"] = gain
        columns["back_gain"] = columns["back_gain"] * (1 + back * normal(size, bank.name, "back_gain"))
        columns["saturation"] = columns["saturation"] * np.maximum(
            1 + amplifier.saturation * normal(size, bank.name, "saturation"), 0.1
        )
        columns["offset"] = columns["offset"] + offset * normal(size, bank.name, "offset")
        banks[bank.name] = columns
    return banks


def _senses(netlist: Netlist, nominal: Values, card: DeviceCard, normal: Any) -> dict[str, FloatArray]:
    spread = card.amplifier.gain
    if not spread:
        return dict(nominal.senses)
    return {
        sense.name: nominal.senses[sense.name] * (1 + spread * normal(len(sense.bit), sense.name, "gain"))
        for sense in netlist.senses
    }


def _tables(
    netlist: Netlist, nominal: Values, card: DeviceCard, normal: Any
) -> dict[str, dict[str, FloatArray]]:
    tables = {kind: dict(columns) for kind, columns in nominal.tables.items()}
    offset = card.offset

    def spread(kind: str, column: str, make: Any) -> None:
        """Change a column by ``make(value, draw)``; one stream to a family of elements."""
        values = np.array(tables[kind][column], dtype=np.float64)
        for family, rows in _families(getattr(netlist, kind).name).items():
            values[rows] = make(values[rows], normal(len(rows), kind, family, column))
        tables[kind][column] = values

    if card.diode.saturation_current:
        s = card.diode.saturation_current
        spread("diode", "saturation_current", lambda value, draw: value * np.exp(s * draw))
    for kind, column, s in (
        ("diode", "slope_voltage", card.diode.slope_voltage),
        ("resistor", "conductance", card.passive.resistor),
        ("capacitor", "capacitance", card.passive.capacitor),
        *((kind, column, card.amplifier.gain) for kind, column in _GAINS.items()),
        ("buffer", "saturation", card.amplifier.saturation),
    ):
        if s:
            spread(kind, column, lambda value, draw, s=s: value * np.maximum(1 + s * draw, 0.1))
    finite = card.amplifier.open_loop
    for kind in ("buffer", "vcvs") if finite is not None else ():
        gain = np.asarray(tables[kind]["gain"], dtype=np.float64)
        tables[kind]["gain"] = gain / (1 + (1 + np.abs(gain)) / finite)
    if offset:
        spread("buffer", "offset", lambda value, draw: value + offset * draw)
    if card.supply.voltage:
        s, driven = card.supply.voltage, netlist.vsource.name
        inputs = {driven[int(row)] for row in netlist.inputs.source}
        voltage = np.array(tables["vsource"]["voltage"], dtype=np.float64)
        for family, rows in _families(driven).items():
            own = [row for row in rows if driven[row] not in inputs]
            voltage[own] *= 1 + s * normal(len(own), "vsource", family, "voltage")
        tables["vsource"]["voltage"] = voltage
    return tables


def _families(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each family of elements: those whose names differ in their number alone."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(re.sub(r"\[\d+\]", "[]", name), []).append(row)
    return found
