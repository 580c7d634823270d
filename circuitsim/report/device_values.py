"""A device card as rows of values, each with its unit and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from circuitsim.devices import DeviceCard
from circuitsim.devices.curve import CurvePiece
from circuitsim.units import engineering

__all__ = ["MEANINGS", "CardValue", "age_text", "card_sections", "card_values", "headline_spreads"]

_HEADER = ("name", "source", "doi", "description")
_PLAIN = ("", "1", "steps", "LSB", "bits", "K")
"""Units that take no prefix."""
_LONG = ((365.25 * 86400.0, "year"), (86400.0, "day"), (3600.0, "hour"))

MEANINGS: dict[str, tuple[str, str]] = {
    "crossbar.range": ("S", "conductances for which the card holds"),
    "crossbar.levels": ("", "conductances that a write can ask for"),
    "crossbar.device_to_device": ("%", "spread of conductance over target, fixed at fabrication"),
    "crossbar.programming": ("S", "spread of a write"),
    "crossbar.drift.kind": ("", "law of drift"),
    "crossbar.drift.start": ("s", "age from which conductances drift"),
    "crossbar.drift.mean": ("1", "mean drift exponent"),
    "crossbar.drift.std": ("1", "spread of drift exponents, device to device"),
    "crossbar.drift.until": ("s", "largest age that was measured"),
    "crossbar.drift.mean (logarithmic)": ("S", "mean change per unit of ln(age / 1 s)"),
    "crossbar.drift.std (logarithmic)": ("S", "spread of the change: at 1 s, and per unit of ln(age / 1 s)"),
    "crossbar.drift.steps.age": ("s", "age of the spread below"),
    "crossbar.drift.steps.sigma": ("S", "spread about the target at that age"),
    "crossbar.read_noise.kind": ("", "law of read noise"),
    "crossbar.read_noise.relative (gaussian)": ("%", "spread of each read over conductance"),
    "crossbar.read_noise.read_time": ("s", "time of one read"),
    "crossbar.read_noise.relative": ("1", "1/f noise over g, before its growth with age"),
    "crossbar.read_noise.absolute": ("S", "1/f noise before its growth with age"),
    "crossbar.read_noise.amplitude": ("%", "what a filled trap takes off the conductance"),
    "crossbar.read_noise.fraction": ("%", "devices with a trap"),
    "crossbar.read_noise.duty": ("%", "reads that find a trap filled"),
    "crossbar.read_noise.bandwidth": ("Hz", "largest bandwidth of thermal noise"),
    "crossbar.read_noise.temperature": ("K", "temperature of thermal noise"),
    "crossbar.stuck.on": ("%", "devices stuck at the upper end of the window"),
    "crossbar.stuck.off": ("%", "devices stuck at the lower end of the window"),
    "crossbar.stuck.anywhere": ("%", "devices stuck somewhere in the window"),
    "crossbar.stuck.open": ("%", "devices that do not conduct"),
    "crossbar.nonlinearity": ("V", "V0 in i = g V0 sinh(v / V0)"),
    "crossbar.update.kind": ("", "law of updates, in w = -1 ... 1 over the window"),
    "crossbar.update.step": ("1", "mean step of a pulse"),
    "crossbar.update.step_spread": ("%", "spread of steps, device to device"),
    "crossbar.update.step_law": ("", "distribution of steps"),
    "crossbar.update.up_down": ("1", "half the difference of steps up and down over their mean"),
    "crossbar.update.up_down_spread": ("1", "spread of up_down, device to device"),
    "crossbar.update.slope_up": ("1", "fall of the step up with w"),
    "crossbar.update.slope_down": ("1", "rise of the step down with w"),
    "crossbar.update.slope_spread": ("1", "spread of slopes, device to device"),
    "crossbar.update.exponential.amplitude_up": ("1", "A in 1 - A exp(rate z), pulses up"),
    "crossbar.update.exponential.amplitude_down": ("1", "A in 1 - A exp(-rate z), pulses down"),
    "crossbar.update.exponential.rate_up": ("1", "rate of pulses up"),
    "crossbar.update.exponential.rate_down": ("1", "rate of pulses down"),
    "crossbar.update.exponential.a": ("1", "a in z = a w + b"),
    "crossbar.update.exponential.b": ("1", "b in z = a w + b"),
    "crossbar.update.bound_up_spread": ("1", "spread of upper bounds of w, device to device"),
    "crossbar.update.bound_down_spread": ("1", "spread of lower bounds of w, device to device"),
    "crossbar.update.cycle_to_cycle": ("steps", "spread of single pulses"),
    "crossbar.update.multiplicative": ("", "whether that is in steps as they are at w"),
    "crossbar.update.write_noise": ("steps", "spread of what is read until the next write"),
    "crossbar.pulse.voltage": ("V", "programming pulse"),
    "crossbar.pulse.width": ("s", "length of a programming pulse"),
    "crossbar.temperature": ("K", "temperatures at which it was measured"),
    "amplifier.gain": ("%", "spread of gains"),
    "amplifier.back_gain": ("%", "spread of gains of the way back"),
    "amplifier.saturation": ("%", "spread of saturation voltages"),
    "amplifier.offset": ("V", "spread of offsets at the input"),
    "amplifier.open_loop": ("1", "open-loop gain"),
    "amplifier.output_resistance": ("ohm", "in series with the word lines that are driven"),
    "amplifier.bandwidth": ("Hz", "bandwidth"),
    "amplifier.input_pair.width": ("m", "width of the input transistors"),
    "amplifier.input_pair.length": ("m", "length of the input transistors"),
    "amplifier.correction_gain": ("%", "spread of the paths of the correction"),
    "amplifier.correction_error": ("%", "what all paths of the correction are off by"),
    "amplifier.anchor": ("V", "spread of stored control voltages, amplifier to amplifier"),
    "amplifier.anchor_noise": ("V", "spread of stored control voltages, sample to sample"),
    "amplifier.copy_gain": ("%", "spread of gains of the dyadic phase's second network"),
    "diode.saturation_current": ("1", "spread of ln(saturation current)"),
    "diode.slope_voltage": ("%", "spread of slope voltages N Vt"),
    "supply.voltage": ("%", "spread of bias lines and rails"),
    "passive.resistor": ("%", "spread of single resistors"),
    "passive.capacitor": ("%", "spread of capacitors"),
    "transistor.threshold": ("V m", "threshold spread times sqrt(width length), one transistor"),
    "transistor.smallest.width": ("m", "smallest width for which the law holds"),
    "transistor.smallest.length": ("m", "smallest length for which the law holds"),
    "converter.bits": ("bits", "resolution"),
    "converter.range": ("V", "voltages of the first and the last code"),
    "converter.inl": ("LSB", "largest bow of the curve"),
    "converter.dnl": ("LSB", "spread of single steps"),
    "converter.noise": ("V", "noise of every sample"),
    "wire.resistance": ("ohm", "of one segment"),
    "wire.width": ("m", "width of the line"),
    "wire.table": ("ohm", "of one segment, by width of the line"),
    "wire.driver": ("ohm", "at the driven end of each line"),
    "wire.sense": ("ohm", "at the sensed end of each line"),
}
"""Place in a card -> unit and meaning. The two converters share theirs."""


@dataclass(frozen=True, kw_only=True)
class CardValue:
    """One value that a card gives: in SI units, and as people read it, parts separated by semicolons."""

    field: str
    value: Any
    unit: str
    shown: str
    meaning: str


def card_sections(card: DeviceCard) -> list[str]:
    """Return the sections that a card fills, and for crossbars which parts of one."""
    found = []
    for name in DeviceCard.model_fields:
        section = getattr(card, name)
        if name in _HEADER or section is None or not section.model_fields_set:
            continue
        if name != "crossbar":
            found.append(name)
            continue
        found += [
            part
            for part in type(section).model_fields
            if part in section.model_fields_set and part != "range"
        ]
    return found


def card_values(card: DeviceCard) -> list[CardValue]:
    """Return every value that the card gives, in the order of its sections."""
    values = []
    for name in DeviceCard.model_fields:
        section = getattr(card, name)
        if name not in _HEADER and section is not None:
            family = "converter" if name in ("dac", "adc") else name
            values += list(_walk(section, name, family))
    return values


def headline_spreads(card: DeviceCard) -> list[CardValue]:
    """Return the few spreads by which technologies are compared."""
    wanted = (
        "crossbar.device_to_device",
        "crossbar.programming",
        "crossbar.update.step",
        "crossbar.update.step_spread",
        "crossbar.update.cycle_to_cycle",
        "amplifier.gain",
        "amplifier.offset",
        "diode.saturation_current",
        "transistor.threshold",
        "dac.dnl",
        "adc.dnl",
    )
    return [value for value in card_values(card) if value.field in wanted]


def age_text(seconds: float) -> str:
    """Return an age as people say it: ``1 day``, ``20 s``, ``250 ns``."""
    for length, name in _LONG:
        count = seconds / length
        if count >= 0.9995:
            return f"{count:.3g} {name}{'' if f'{count:.3g}' == '1' else 's'}"
    return engineering(seconds, "s", 3)


def _walk(model: BaseModel, place: str, family: str) -> Iterator[CardValue]:
    kind = getattr(model, "kind", "")
    for name in type(model).model_fields:
        if name not in model.model_fields_set:
            continue
        value = getattr(model, name)
        key = f"{family}.{name}"
        if isinstance(value, BaseModel) and not hasattr(value, "pieces"):
            yield from _walk(value, f"{place}.{name}", key)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for number, item in enumerate(value):
                yield from _walk(item, f"{place}.{name}[{number}]", key)
        elif value is not None:
            unit, meaning = MEANINGS.get(f"{key} ({kind})") or MEANINGS[key]
            plain = _plain(value)
            yield CardValue(
                field=f"{place}.{name}",
                value=plain,
                unit="1" if unit == "%" else unit,
                shown=_shown(value, unit),
                meaning=meaning,
            )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)["pieces"]
    return value


def _shown(value: Any, unit: str) -> str:
    if isinstance(value, BaseModel):
        pieces: tuple[CurvePiece, ...] = value.pieces  # type: ignore[attr-defined]
        return _formula(pieces, unit)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "; ".join(f"{engineering(x, 'm')}: {engineering(y, unit)}" for x, y in sorted(value))
    if isinstance(value, tuple):
        return ", ".join(_number(item, unit) for item in value)
    return _number(value, unit)


def _number(value: Any, unit: str) -> str:
    if isinstance(value, (str, int)):
        return f"{value} {unit}".rstrip()
    if unit == "%":
        return f"{100 * value:.4g} %"
    if unit == "V m":
        return f"{1e9 * value:.4g} mV um"
    if unit == "s" and value >= 3600:
        return age_text(value)
    if unit in _PLAIN:
        return f"{value:.4g} {unit}".removesuffix(" 1").rstrip()
    return engineering(value, unit)


def _formula(pieces: tuple[CurvePiece, ...], unit: str) -> str:
    scale, suffix = (1e6, " uS") if unit == "S" else (1.0, "")
    texts = []
    for piece in pieces:
        text = _terms(piece, scale)
        if suffix:
            text = f"({text}){suffix}" if " " in text else f"{text}{suffix}"
        if piece.clip is not None:
            low, high = (f"{scale * end:.4g}" for end in piece.clip)
            text += f" within {low} ... {high}{suffix}"
        texts.append(text if piece.below is None else f"{text} for x < {piece.below:.4g}")
    return "; else ".join(texts)


def _terms(piece: CurvePiece, scale: float) -> str:
    terms = [(c, ("", " x")[k] if k < 2 else f" x^{k}") for k, c in enumerate(piece.polynomial)]
    terms.append((piece.log, " ln(x)"))
    if piece.power is not None:
        terms.append((piece.power[0], f" x^{piece.power[1]:.4g}"))
    text = ""
    for coefficient, name in terms:
        if coefficient:
            size = f"{abs(scale * coefficient):.4g}{name}"
            sign = ("-" if not text else " - ") if coefficient < 0 else ("" if not text else " + ")
            text += sign + size
    return text or "0"
