"""What was measured of a substrate through its readings: per amplifier, per device, with standard errors.

A calibration is a YAML file. Numbers are in SI units; ratios are to the circuit as designed, so 1 is what the
network description says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, model_validator

from circuitsim.devices import DeviceCard
from circuitsim.errors import SpecError
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network.documents import Quantity, Spec, parse_document, read_document

__all__ = [
    "AmplifierCalibration",
    "Calibration",
    "ConverterCalibration",
    "CrossbarCalibration",
    "Estimate",
    "NoiseCalibration",
    "SenseCalibration",
    "Series",
    "StuckDevice",
    "calibration_text",
    "measured_card",
    "read_calibration",
    "rounded",
    "write_calibration",
]

_DIGITS = 7
"""Significant figures of what is written."""
_LEAST = 1e-3
"""Relative spreads below this are no fault of a technology: a card leaves them out."""
_LEAST_SHARE = 0.1
"""The same of voltages, in steps of the ADC."""
NotNegative = Annotated[Quantity, Field(ge=0)]


class Estimate(Spec):
    """One measured number with its standard error."""

    value: Quantity
    error: NotNegative
    unit: str

    @classmethod
    def of(cls, value: float, error: float, unit: str) -> Estimate:
        return cls(value=rounded(value), error=rounded(error), unit=unit)


class Series(Spec):
    """One quantity of each amplifier of a bank, with standard errors; null where it was not measured.

    ``spread`` is the standard deviation over amplifiers with the errors of measurement taken off.
    """

    unit: str
    mean: Quantity
    mean_error: NotNegative
    spread: NotNegative
    spread_error: NotNegative
    values: tuple[Quantity | None, ...]
    errors: tuple[NotNegative | None, ...]

    @model_validator(mode="after")
    def _paired(self) -> Series:
        if len(self.values) != len(self.errors):
            raise ValueError(f"{len(self.values)} values need as many errors, not {len(self.errors)}")
        if any((v is None) != (e is None) for v, e in zip(self.values, self.errors, strict=True)):
            raise ValueError("a value and its error are both given, or both null")
        return self

    @classmethod
    def of(cls, values: FloatArray, errors: FloatArray, unit: str) -> Series | None:
        """Return values (n,) with standard errors (n,); what is not finite was not measured.

        None where nothing was.
        """
        known = np.isfinite(values) & np.isfinite(errors)
        n = int(known.sum())
        if not n:
            return None
        v, e = values[known], errors[known]
        variance = float(v.var(ddof=1)) if n > 1 else 0.0
        own = float(np.mean(e**2))
        spread = math.sqrt(max(variance - own, 0.0))
        doubt = max(variance, own) * math.sqrt(2 / max(n - 1, 1))
        return cls(
            unit=unit,
            mean=rounded(float(v.mean())),
            mean_error=rounded(math.sqrt(max(variance, own) / n)),
            spread=rounded(spread),
            spread_error=rounded(doubt / (2 * max(spread, math.sqrt(doubt), 1e-300))),
            values=tuple(rounded(x) if k else None for x, k in zip(values, known, strict=True)),
            errors=tuple(rounded(x) if k else None for x, k in zip(errors, known, strict=True)),
        )

    @property
    def significant_spread(self) -> float:
        """``spread``, or 0 where it is less than two of its standard errors."""
        return self.spread if self.spread > 2 * self.spread_error else 0.0

    def filled(self, missing: float) -> FloatArray:
        """Return values (n,), ``missing`` where nothing was measured."""
        return np.array([missing if value is None else value for value in self.values])


class AmplifierCalibration(Spec):
    """One bank. Ratios are to the design's; ``offset`` and ``anchor`` in V.

    ``forward``, ``back`` and ``anchor`` are of the correction, see `circuitsim.solver.correction`;
    ``copy_slope`` of the second network of a dyadic phase. ``control``: whether the amplifiers' inputs are
    read, or follow from the circuit before them; what is off there is then part of ``gain``. ``sensed``:
    whether virtual grounds drive them; what is off in their ways forward is then part of ``back``.
    """

    control: Literal["read", "modelled"]
    sensed: bool = False
    gain: Series | None = None
    offset: Series | None = None
    saturation: Series | None = None
    back_gain: Series | None = None
    forward: Series | None = None
    back: Series | None = None
    anchor: Series | None = None
    copy_slope: Series | None = None


class SenseCalibration(Spec):
    """One family of virtual grounds: ratios to the design's gains, and factors of the correction."""

    gain: Series | None = None
    forward: Series | None = None
    back: Series | None = None


class StuckDevice(Spec):
    """A device that writes do not move, at crossing (``word``, ``bit``)."""

    half: Literal["g_plus", "g_minus"]
    word: Annotated[int, Field(ge=0, strict=True)]
    bit: Annotated[int, Field(ge=0, strict=True)]
    conductance: NotNegative


Rows = tuple[tuple[Quantity, ...], ...]


class CrossbarCalibration(Spec):
    """Devices of one crossbar as their substrate reads them back.

    ``error``: root mean square of read back minus asked. ``device_to_device``: the part of it that is each
    device's own, relative. ``write``: what differs from write to write; ``read_back``: between two requests
    of the same in a row. ``g_plus`` and ``g_minus``: each device's conductance over what was asked, where
    that could be told and the crossbar is not too large for a file.
    """

    shape: tuple[int, int]
    error: Estimate
    bias: Estimate
    device_to_device: Estimate
    write: Estimate
    read_back: Estimate
    stuck: tuple[StuckDevice, ...] = ()
    g_plus: Rows | None = None
    g_minus: Rows | None = None

    @model_validator(mode="after")
    def _sized(self) -> CrossbarCalibration:
        for half in ("g_plus", "g_minus"):
            rows = getattr(self, half)
            if rows is None:
                continue
            if len(rows) != self.shape[0] or any(len(row) != self.shape[1] for row in rows):
                raise ValueError(f"{half} must have {self.shape[0]} rows of {self.shape[1]}")
        for device in self.stuck:
            if device.word >= self.shape[0] or device.bit >= self.shape[1]:
                raise ValueError(f"stuck device ({device.word}, {device.bit}) is outside {self.shape}")
        return self


class ConverterCalibration(Spec):
    """A converter as its substrate describes it: ``bits`` over ``range`` [V]."""

    bits: Annotated[int, Field(ge=1, le=24, strict=True)]
    range: tuple[Quantity, Quantity]


class NoiseCalibration(Spec):
    """Noise of reading a voltage.

    ``single``: standard deviation of one reading [V], the converter's rounding taken off. ``channels``: that
    of its spread over what is read. ``averaged`` is the observed standard deviation of means of ``averaging``
    readings, times the root of ``averaging``, over that of single ones: 1 where the 1/sqrt(n) law holds.
    ``change`` [V]: of one reading of a change, in the corrected phase, per sample.
    """

    single: Estimate
    channels: Estimate
    averaging: Annotated[int, Field(ge=1, strict=True)]
    averaged: Estimate
    adc_offset: Quantity
    adc_noise: NotNegative
    change: Estimate | None = None


class Calibration(Spec):
    """All that was measured of one substrate."""

    kind: Literal["calibration"] = "calibration"
    identity: str
    circuit: str
    date: str
    seed: Annotated[int, Field(ge=0, strict=True)]
    readings: Annotated[int, Field(ge=0, strict=True)]
    """Conversions that it took: of every node, sample, phase and repetition."""
    beta: NotNegative | None = None
    """Of the corrected phases; null where there were none."""
    notes: tuple[str, ...] = ()
    dac: ConverterCalibration
    adc: ConverterCalibration
    largest_gain: Annotated[int, Field(ge=1, strict=True)]
    noise: NoiseCalibration
    amplifiers: dict[str, AmplifierCalibration] = Field(default_factory=dict)
    senses: dict[str, SenseCalibration] = Field(default_factory=dict)
    crossbars: dict[str, CrossbarCalibration] = Field(default_factory=dict)
    card: dict[str, Any] = Field(default_factory=dict)
    """The technology that it amounts to: one item of an experiment's ``cards``."""

    @model_validator(mode="after")
    def _makes_a_card(self) -> Calibration:
        parse_document(DeviceCard, {"name": "calibrated", "source": self.identity} | self.card)
        return self

    def check(self, netlist: Netlist, *, file: object = None) -> None:
        """Refuse a netlist that this is no calibration of.

        Raises:
            SpecError: naming the circuit, or the bank, virtual ground or crossbar that differs.
        """
        if self.circuit != netlist.title:
            raise SpecError(
                f"was measured on another circuit than {netlist.title}",
                file=file,
                field="circuit",
                value=self.circuit,
                remedy="Calibrate this network's die.",
            )
        there = {bank.name: len(bank.control) for bank in netlist.banks}
        senses = {sense.name: len(sense.bit) for sense in netlist.senses}
        shapes = {crossbar.name: crossbar.shape for crossbar in netlist.crossbars}
        for kind, own, known in (
            ("amplifiers", self.amplifiers, there),
            ("senses", self.senses, senses),
            ("crossbars", self.crossbars, shapes),
        ):
            for name, item in own.items():
                sizes = {item.shape} if isinstance(item, CrossbarCalibration) else _sizes(item)
                if name not in known or sizes - {known[name]}:
                    raise SpecError(
                        f"was measured on another circuit than {netlist.title}",
                        file=file,
                        object=f"calibration of {self.circuit}",
                        field=f"{kind}.{name}",
                        value=sorted(sizes),
                        remedy=f"There: {known.get(name, 'no such block')}. Calibrate this network's die.",
                    )


def _sizes(item: Spec) -> set[Any]:
    return {len(series.values) for _, series in item if isinstance(series, Series)}


def measured_card(
    *,
    dac: ConverterCalibration,
    adc: ConverterCalibration,
    noise: NoiseCalibration,
    amplifiers: Sequence[AmplifierCalibration],
    senses: Sequence[SenseCalibration],
    crossbars: Sequence[CrossbarCalibration],
    windows: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Return the card that draws dies like the one measured; spreads that are not significant are left out.

    ``windows`` [S] of the crossbars, in their order. Where a spread was measured on several banks, it is
    their root mean square over amplifiers.
    """
    amplifier: dict[str, float] = {}
    adc_step = (adc.range[1] - adc.range[0]) / (2**adc.bits - 1)
    for field, all_series in (
        ("gain", [a.gain for a in amplifiers] + [s.gain for s in senses]),
        ("back_gain", [a.back_gain for a in amplifiers]),
        ("saturation", [a.saturation for a in amplifiers]),
        ("offset", [a.offset for a in amplifiers]),
        ("anchor", [a.anchor for a in amplifiers]),
        # A copy's own back gains and virtual grounds show in its slopes: then these are no spread of theirs.
        (
            "copy_gain",
            [] if senses or any(a.back_gain for a in amplifiers) else [a.copy_slope for a in amplifiers],
        ),
    ):
        spread = _pooled(all_series)
        if spread > (_LEAST_SHARE * adc_step if field in ("offset", "anchor") else _LEAST):
            amplifier[field] = rounded(spread)
    if "gain" in amplifier and any(a.back_gain for a in amplifiers):
        amplifier.setdefault("back_gain", 0.0)
    paths = [part for a in amplifiers for part in (a.forward, None if a.sensed else a.back)]
    paths += [part for s in senses for part in (s.forward, s.back)]
    known = [part for part in paths if part is not None]
    if known:
        weights = np.array([len(part.values) for part in known], dtype=np.float64)
        mean = float(np.average([part.mean for part in known], weights=weights))
        doubt = float(np.sqrt(np.sum((weights * [part.mean_error for part in known]) ** 2)) / weights.sum())
        if abs(mean - 1) > max(2 * doubt, _LEAST):
            amplifier["correction_error"] = rounded(mean - 1)
        spread = _pooled(paths)
        if spread > _LEAST:
            amplifier["correction_gain"] = rounded(spread / abs(mean))
    card: dict[str, Any] = {
        "dac": {"bits": dac.bits, "range": list(dac.range)},
        "adc": {"bits": adc.bits, "range": list(adc.range), "noise": noise.single.value},
    }
    if amplifier:
        card["amplifier"] = amplifier
    crossbar = _device_card(crossbars, windows)
    if crossbar:
        card["crossbar"] = crossbar
    return card


def _device_card(
    crossbars: Sequence[CrossbarCalibration], windows: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    if not crossbars:
        return {}
    weights = np.array([np.prod(c.shape) for c in crossbars], dtype=np.float64)

    def pooled(name: str) -> float:
        found = [getattr(c, name) for c in crossbars]
        square = [e.value**2 if e.value > 2 * e.error else 0.0 for e in found]
        return math.sqrt(float(np.average(square, weights=weights)))

    card: dict[str, Any] = {}
    if pooled("device_to_device") > _LEAST:
        card["device_to_device"] = rounded(pooled("device_to_device"))
    if pooled("write"):
        card["range"] = [min(low for low, _ in windows), max(high for _, high in windows)]
        card["programming"] = rounded(pooled("write"))
    stuck: dict[str, float] = {}
    total = float(sum((1 if c.g_minus is None else 2) * np.prod(c.shape) for c in crossbars))
    for item, (low, high) in zip(crossbars, windows, strict=True):
        for device in item.stuck:
            near = 0.02 * (high - low)
            g = device.conductance
            kind = "open" if g < 0.5 * low else "off" if g < low + near else "on" if g > high - near else ""
            stuck[kind or "anywhere"] = stuck.get(kind or "anywhere", 0.0) + 1 / total
    if stuck:
        card["stuck"] = {kind: rounded(fraction) for kind, fraction in stuck.items()}
    return card


def _pooled(all_series: Sequence[Series | None]) -> float:
    known = [series for series in all_series if series is not None]
    if not known:
        return 0.0
    weights = [len(series.values) for series in known]
    square = [series.significant_spread**2 for series in known]
    return math.sqrt(float(np.average(square, weights=weights)))


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    document = read_document(Path(path))
    if document.get("kind") != "calibration":
        raise SpecError(
            "is no calibration",
            file=path,
            field="kind",
            value=document.get("kind"),
            remedy="`circuitsim calibrate SUBSTRATE --network NET.yaml -o FILE` makes one.",
        )
    return parse_document(Calibration, document, file=path)


def write_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration file, whole or not at all.

    Raises:
        SpecError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(calibration_text(calibration), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise SpecError(f"cannot be written: {error.strerror or error}", file=path) from error


def calibration_text(calibration: Calibration) -> str:
    """Return the YAML text of a calibration."""
    document = calibration.model_dump(mode="json", exclude_none=False, exclude_defaults=False)
    heading = (
        "# Made by `circuitsim calibrate`. SI units; gains, saturations, slopes: ratios to the design's.\n"
        "# `substrate: mock:THIS-FILE` in an experiment learns on a simulated chip with these numbers;\n"
        "# `card` is an item of an experiment's `cards`, for new dies with these spreads.\n"
    )
    text = yaml.dump(_without_none(document), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return heading + text


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on as few lines as they need; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        flat = all(not isinstance(item, (Mapping, list, tuple)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data))


def _without_none(value: Any) -> Any:
    """Leave out what was not measured; inside lists null keeps its place."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def rounded(value: float) -> float:
    """Return a number with as many figures as a calibration file holds."""
    return float(f"{float(value):.{_DIGITS - 1}e}")
