"""A simulated chip with what was measured of a real one, to try things on before they go there."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from circuitsim.chip import Chip, fabricate
from circuitsim.devices import DeviceCard
from circuitsim.devices.card import ConverterCard
from circuitsim.devices.memristor import DeviceArray
from circuitsim.instrument.calibration.calibration import Calibration, CrossbarCalibration, Series
from circuitsim.instrument.simulated import SimulatedSubstrate
from circuitsim.learning import Cost
from circuitsim.learning.readout import ReadoutSpec
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network.documents import parse_document
from circuitsim.solver import Correction, SolverSettings, build_plan

__all__ = ["mock_substrate"]

_HALVES = ("g_plus", "g_minus")


def mock_substrate(
    calibration: Calibration,
    netlist: Netlist,
    cost: Cost,
    *,
    seed: int = 0,
    settings: SolverSettings | None = None,
) -> SimulatedSubstrate:
    """Return a simulated chip whose amplifiers, devices, correction and noise are those that were measured.

    What was not measured of an amplifier is as designed. Devices have the factors that the calibration
    lists, and those that were stuck are; where it lists none, ``seed`` draws them with the measured spread.
    Noise of reading and of writing is drawn from ``seed``.

    Raises:
        SpecError: it is the calibration of another circuit.
    """
    calibration.check(netlist)
    chip = _fabricated(calibration, netlist, seed)
    banks = {name: dict(columns) for name, columns in chip.values.banks.items()}
    senses = dict(chip.values.senses)
    forward: dict[str, FloatArray] = {}
    back: dict[str, FloatArray] = {}
    anchor: dict[str, FloatArray] = {}
    slope: dict[str, FloatArray] = {}
    nominal = netlist.values()
    for name, amplifier in calibration.amplifiers.items():
        columns = dict(nominal.banks[name])
        for column in ("gain", "saturation", "back_gain"):
            columns[column] = columns[column] * _filled(getattr(amplifier, column), 1.0)
        if amplifier.offset is not None:
            columns["offset"] = np.where(
                np.isfinite(amplifier.offset.filled(np.nan)), amplifier.offset.filled(0.0), columns["offset"]
            )
        banks[name] = columns
        for home, series, missing in (
            (forward, amplifier.forward, 1.0),
            (back, amplifier.back, 1.0),
            (anchor, amplifier.anchor, 0.0),
            (slope, amplifier.copy_slope, 1.0),
        ):
            if series is not None:
                home[name] = series.filled(missing)
    for name, sense in calibration.senses.items():
        senses[name] = nominal.senses[name] * _filled(sense.gain, 1.0)
        for home, series in ((forward, sense.forward), (back, sense.back)):
            if series is not None:
                home[name] = series.filled(1.0)
    faults = Correction(forward=forward, back=back, anchor=anchor) if forward or back else None
    values = replace(chip.values, banks=banks, senses=senses)
    chip = replace(chip, values=values, correction=faults)
    # The second network of a dyadic phase has the devices of the first: of its own, nothing was measured.
    copy = replace(chip, correction=None, copy=None, copy_slope={}, path=("copy",)) if slope else None
    chip = replace(chip, copy=copy, copy_slope=slope)
    chip = chip.reprogrammed(chip.target)
    analog = calibration.largest_gain > 1
    readout = ReadoutSpec(
        difference="analog" if analog else "digital", gain=calibration.largest_gain if analog else 1
    )
    substrate = SimulatedSubstrate(
        chip=chip, plan=build_plan(netlist), cost=cost, readout=readout, settings=settings
    )
    own = calibration.identity.replace(",", " ")
    substrate.capabilities = replace(
        substrate.capabilities, identity=f"circuitsim,mock of {own},{seed},{version('circuitsim')}"
    )
    return substrate


def _fabricated(calibration: Calibration, netlist: Netlist, seed: int) -> Chip:
    """Return a die whose amplifiers are as designed, with the devices that were measured."""
    noise = calibration.noise.single.value
    dac, adc = calibration.dac, calibration.adc
    # The card's spreads are for new dies; this one has its own. What is new with every write stays.
    crossbar: dict[str, Any] = dict(calibration.card.get("crossbar", {}))
    if all(item.g_plus is not None for item in calibration.crossbars.values()):
        crossbar.pop("device_to_device", None)
    crossbar.pop("stuck", None)
    card = parse_document(
        DeviceCard,
        {"name": "calibrated", "source": calibration.identity, "crossbar": crossbar},
    ).model_copy(
        update={
            "dac": ConverterCard(bits=dac.bits, range=dac.range),
            "adc": ConverterCard(bits=adc.bits, range=adc.range, noise=noise),
        }
    )
    chip = fabricate(netlist, card, seed=seed, copy=False)
    arrays, mismatch = dict(chip.arrays), dict(chip.mismatch)
    for name, item in calibration.crossbars.items():
        halves: list[DeviceArray | None] = []
        for half, array in zip(_HALVES, chip.arrays[name], strict=True):
            halves.append(None if array is None else _measured(item, half, array))
        assert halves[0] is not None
        arrays[name] = halves[0], halves[1]
        ones = np.ones(item.shape)
        plus, minus = (None if a is None else ones if a.factor is None else a.factor for a in halves)
        assert plus is not None
        mismatch[name] = plus, minus
    exact = all(half is None or half.exact for pair in arrays.values() for half in pair)
    return replace(chip, arrays=arrays, mismatch=mismatch, exact=exact)


def _measured(item: CrossbarCalibration, half: str, array: DeviceArray) -> DeviceArray:
    rows = getattr(item, half)
    if rows is not None:
        array = replace(array, factor=np.array(rows, dtype=np.float64))
    own = [device for device in item.stuck if device.half == half]
    if own:
        stuck, at = np.zeros(item.shape, np.bool_), np.zeros(item.shape)
        for device in own:
            stuck[device.word, device.bit] = True
            at[device.word, device.bit] = device.conductance
        array = replace(array, stuck=stuck, stuck_at=at)
    return array


def _filled(series: Series | None, missing: float) -> FloatArray | float:
    return missing if series is None else series.filled(missing)
