"""Device cards: what one technology's devices look like, how much they spread, and where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from circuitsim.devices.curve import Curve
from circuitsim.errors import DeviceError, SpecError
from circuitsim.network.documents import Inconsistent, Positive, Quantity, Spec, parse_document, read_document

__all__ = [
    "AmplifierCard",
    "ConverterCard",
    "CrossbarCard",
    "DeviceCard",
    "DiodeCard",
    "Drift",
    "FlickerNoise",
    "GaussianNoise",
    "LogarithmicDrift",
    "PassiveCard",
    "PowerLawDrift",
    "PulseCard",
    "ReadNoise",
    "RelaxationDrift",
    "StuckCard",
    "SupplyCard",
    "TelegraphNoise",
    "ThermalNoise",
    "TransistorCard",
    "UpdateCard",
    "WireCard",
    "card_names",
    "find_card",
    "ideal_card",
    "load_card",
    "merged_cards",
]

Spread = Annotated[Quantity, Field(ge=0)]
Relative = Annotated[Quantity, Field(ge=0, le=1)]
NotNegative = Annotated[Quantity, Field(ge=0)]
_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string"}]}


class PowerLawDrift(Spec):
    """``g(t) = g (t / start)^-nu`` for an age t beyond ``start`` [s]; nu ~ N(mean(x), std(x)) per device.

    ``until`` is the largest age that was measured [s].
    """

    kind: Literal["power_law"]
    start: Positive
    mean: Curve
    std: Curve
    until: Positive | None = None


class LogarithmicDrift(Spec):
    """``g(t) = g + N(mean ln t, std0 + std1 ln t)`` [S] for an age t in s beyond 1 s; one draw per write."""

    kind: Literal["logarithmic"]
    mean: Quantity
    std: tuple[Quantity, Quantity]
    until: Positive | None = None


class RelaxationStep(Spec):
    """The spread of conductances about their targets at one age: ``sigma(x)`` [S]."""

    age: Positive
    sigma: Curve


class RelaxationDrift(Spec):
    """Spreads about the target that were measured at several ages, the first that of the write itself.

    Between two ages the variance is interpolated in ln t; before the first it is that of the write.
    What comes on top of the write is one draw per write and device that grows with age.
    """

    kind: Literal["relaxation"]
    steps: Annotated[tuple[RelaxationStep, ...], Field(min_length=2)]

    @property
    def until(self) -> float:
        return self.steps[-1].age

    @model_validator(mode="after")
    def _ordered(self) -> RelaxationDrift:
        ages = [step.age for step in self.steps]
        if ages != sorted(set(ages)):
            raise ValueError(f"ages must rise: {ages}")
        return self


Drift = Annotated[PowerLawDrift | LogarithmicDrift | RelaxationDrift, Field(discriminator="kind")]


class GaussianNoise(Spec):
    """Each read of a device: ``g (1 + N(0, relative))``."""

    kind: Literal["gaussian"]
    relative: Relative


class FlickerNoise(Spec):
    """1/f noise accumulated over an age t: one standard deviation is ``a(x) sqrt(ln((t + r) / (2 r)))``.

    r is ``read_time`` [s]. a(x) is ``relative`` times g, or ``absolute`` [S]. Slower than the phases of a
    training step: all phases of one step see the same draw.
    """

    kind: Literal["flicker"]
    read_time: Positive
    relative: Curve | None = None
    absolute: Curve | None = None

    @model_validator(mode="after")
    def _one(self) -> FlickerNoise:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give relative or absolute: one of the two")
        return self


class TelegraphNoise(Spec):
    """Random telegraph noise: a ``fraction`` of the devices has a trap that lowers g by ``amplitude`` (a
    fraction of g) while it is filled, at every read with probability ``duty``."""

    kind: Literal["telegraph"]
    amplitude: Relative
    fraction: Relative = 1.0
    duty: Relative = 0.5


class ThermalNoise(Spec):
    """Johnson noise of what loads a node: ``v^2 = 4 k T B / g``, B at most ``bandwidth`` [Hz] and at most the
    node's own ``g / (4 C)``, where it is k T / C."""

    kind: Literal["thermal"]
    bandwidth: Positive
    temperature: Positive = 300.0


ReadNoise = Annotated[
    GaussianNoise | FlickerNoise | TelegraphNoise | ThermalNoise, Field(discriminator="kind")
]


class StuckCard(Spec):
    """Fractions of devices that no write moves: at the upper or lower end of the window, anywhere in it, or
    open (0 S)."""

    on: Relative = 0.0
    off: Relative = 0.0
    anywhere: Relative = 0.0
    open: Relative = 0.0

    @model_validator(mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        # YAML 1.1 reads the words on and off as true and false.
        if not isinstance(value, Mapping):
            return value
        return {"on" if key is True else "off" if key is False else key: item for key, item in value.items()}

    @model_validator(mode="after")
    def _at_most_all(self) -> StuckCard:
        if self.total > 1:
            raise ValueError(f"fractions add up to {self.total:g}, more than all devices")
        return self

    @property
    def total(self) -> float:
        return self.on + self.off + self.anywhere + self.open


class ExponentialStep(Spec):
    """``1 - amplitude exp(+-rate z)``, z = a w + b, + for pulses up and - for pulses down."""

    amplitude_up: Quantity
    amplitude_down: Quantity
    rate_up: Quantity
    rate_down: Quantity
    a: Quantity
    b: Quantity


class UpdateCard(Spec):
    """How a pulse moves a device, in w = -1 ... 1 over the conductance window.

    A pulse up adds ``step (1 + up_down) f(w)``, one down subtracts ``step (1 - up_down) f(w)``. f is 1 for
    ``linear`` without slopes; ``1 - slope w`` (up) and ``1 + slope w`` (down) with them; ``soft_bounds`` has
    slopes of 1; ``exponential`` its own form. Steps end at the device's bounds.

    Spreads are from device to device; ``cycle_to_cycle`` is the spread of single pulses in units of the
    device's own step where f is 1, or of the step as it is there where it is ``multiplicative``.
    ``write_noise``, in units of ``step``, is what a read after a write differs by until the next write.
    """

    kind: Literal["linear", "soft_bounds", "exponential"] = "linear"
    step: Annotated[Quantity, Field(gt=0, le=1)]
    step_spread: Spread = 0.0
    step_law: Literal["normal", "lognormal"] = "normal"
    up_down: Annotated[Quantity, Field(gt=-1, lt=1)] = 0.0
    up_down_spread: Spread = 0.0
    slope_up: Annotated[Quantity, Field(ge=0, le=1)] = 0.0
    slope_down: Annotated[Quantity, Field(ge=0, le=1)] = 0.0
    slope_spread: Spread = 0.0
    exponential: ExponentialStep | None = None
    bound_up_spread: Spread = 0.0
    bound_down_spread: Spread = 0.0
    cycle_to_cycle: Spread = 0.0
    multiplicative: bool = False
    write_noise: Spread = 0.0

    @model_validator(mode="after")
    def _fits(self) -> UpdateCard:
        if (self.kind == "exponential") != (self.exponential is not None):
            raise ValueError("`exponential` holds the numbers of kind exponential, and of no other")
        if self.kind != "linear" and (self.slope_up or self.slope_down):
            raise ValueError("slopes are for kind linear")
        return self


class PulseCard(Spec):
    """A programming pulse: ``voltage`` [V] for ``width`` [s], which costs ``voltage^2 g width`` [J]."""

    voltage: Positive
    width: Positive


class CrossbarCard(Spec):
    """Programmable devices.

    ``range`` [S] is where the card holds: a conductance window outside it is refused. x in curves is g over
    its upper end. ``levels`` is how many conductances a write can ask for, evenly spread over the window.
    Present conductance after a write: ``target (1 + N(0, device_to_device)) + N(0, programming(x))``,
    never below 0; the first draw is the die's, the second the write's.
    ``nonlinearity`` is V0 [V] in ``i = g V0 sinh(v / V0)``; see `circuitsim.chip.nonlinear`.
    """

    range: tuple[NotNegative, Positive] | None = None
    levels: Annotated[int, Field(ge=2, strict=True)] | None = None
    device_to_device: Relative = 0.0
    programming: Curve | None = None
    drift: Drift | None = None
    read_noise: tuple[ReadNoise, ...] = ()
    stuck: StuckCard = StuckCard()
    nonlinearity: Positive | None = None
    update: UpdateCard | None = None
    pulse: PulseCard | None = None
    temperature: tuple[Quantity, Quantity] | None = None
    """Range in which it was measured [K]."""

    @model_validator(mode="after")
    def _consistent(self) -> CrossbarCard:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range must rise: {self.range[0]:g} S ... {self.range[1]:g} S")
        if self.range is None:
            for name in ("programming", "drift"):
                if getattr(self, name) is not None:
                    rule, remedy = "needs a range", "Give range: [lowest, highest] conductance in S."
                    raise Inconsistent([SpecError(rule, field=name, remedy=remedy)])
        return self

    def relative(self, g: Any) -> Any:
        """Return x = g / g_max of conductances g [S]."""
        assert self.range is not None
        return np.clip(g / self.range[1], 0.0, 1.0)

    def check_window(self, low: float, high: float, *, object: str, card: str) -> None:
        """Refuse a conductance window outside the range in which the card holds.

        Raises:
            DeviceError: with the range.
        """
        if self.range is None:
            return
        slack = 1e-9 * self.range[1]
        if low < self.range[0] - slack or high > self.range[1] + slack:
            raise DeviceError(
                f"card {card} holds for {self.range[0]:g} S to {self.range[1]:g} S",
                object=object,
                field="conductance",
                value=f"{low:g} S to {high:g} S",
                remedy="Set the experiment's `window: card`, or choose a window or a card that fit.",
            )


class TransistorPair(Spec):
    """Two equal transistors, ``width`` by ``length`` [m]."""

    width: Positive
    length: Positive


class AmplifierCard(Spec):
    """Amplifiers. Spreads are one standard deviation over a die, relative unless a unit is given.

    ``gain``, ``saturation``, ``offset`` [V at the input]; ``back_gain`` of bidirectional amplifiers (that of
    ``gain`` unless given). ``open_loop`` gain A0 lowers a gain G by the factor ``1 / (1 + (1 + G) / A0)``.
    ``output_resistance`` [ohm] lies in series with the word lines that it drives, which must be wires.
    ``bandwidth`` [Hz] adds 1 / (2 pi bandwidth) to the time constant of what it drives.
    ``input_pair``: its transistors give the offset by Pelgrom's law, with the card's ``transistor``.

    The correction network: ``correction_gain`` is the spread of each of its paths, forward and back;
    ``correction_error`` what all of a die's are off by in common. ``anchor`` [V] is the spread of the stored
    control voltages from amplifier to amplifier, ``anchor_noise`` [V] from sample to sample.
    ``copy_gain`` is the spread of the gains that a dyadic phase's second network is set to.
    """

    gain: Relative = 0.0
    back_gain: Relative | None = None
    saturation: Annotated[Spread, Field(le=0.3)] = 0.0
    offset: Spread = 0.0
    open_loop: Annotated[Quantity, Field(ge=1)] | None = None
    output_resistance: NotNegative = 0.0
    bandwidth: Positive | None = None
    input_pair: TransistorPair | None = None
    correction_gain: Relative = 0.0
    correction_error: Annotated[Quantity, Field(ge=-1, le=1)] = 0.0
    anchor: Spread = 0.0
    anchor_noise: Spread = 0.0
    copy_gain: Relative = 0.0


class DiodeCard(Spec):
    """Diodes: ``saturation_current * exp(N(0, s))``; ``slope_voltage`` N Vt ``* (1 + N(0, s))``."""

    saturation_current: Annotated[Spread, Field(le=2)] = 0.0
    slope_voltage: Annotated[Spread, Field(le=0.3)] = 0.0


class TransistorCard(Spec):
    """Pelgrom's law: the threshold of one transistor spreads by ``threshold / sqrt(width length)`` [V].

    ``threshold`` is in V m: 3.9 mV um is 3.9n. Pelgrom, Duinmaijer and Welbers, JSSC 24, 1433 (1989).
    """

    threshold: Positive
    smallest: TransistorPair | None = None
    """Width and length below which the law was not measured."""

    def pair_offset(self, pair: TransistorPair, *, card: str = "") -> float:
        """Return the spread of the offset of a pair [V]: sqrt(2) that of one transistor.

        Raises:
            DeviceError: a transistor smaller than those the law was measured on.
        """
        if self.smallest is not None:
            for side in ("width", "length"):
                least, asked = getattr(self.smallest, side), getattr(pair, side)
                if asked < least * (1 - 1e-9):
                    raise DeviceError(
                        f"the law holds from {least:g} m",
                        object=card,
                        field=f"input_pair.{side}",
                        value=asked,
                    )
        return float(np.sqrt(2.0) * self.threshold / np.sqrt(pair.width * pair.length))


class ConverterCard(Spec):
    """A converter of ``bits`` over ``range`` [V]: levels evenly spaced but for its errors, in steps (LSB).

    ``dnl``: spread of single steps; ``inl``: largest bow of the curve, whose sign and height the die draws.
    ``noise`` [V]: of every sample.
    """

    bits: Annotated[int, Field(ge=1, le=24, strict=True)]
    range: tuple[Quantity, Quantity]
    inl: Spread = 0.0
    dnl: Annotated[Spread, Field(le=0.5)] = 0.0
    noise: Spread = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> ConverterCard:
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range must rise: {self.range[0]:g} V ... {self.range[1]:g} V")
        return self

    @property
    def step(self) -> float:
        """One LSB [V]."""
        return (self.range[1] - self.range[0]) / (2**self.bits - 1)


class SupplyCard(Spec):
    """Fixed voltages of a die, bias lines and rails: ``voltage * (1 + N(0, s))``."""

    voltage: Relative = 0.0


class PassiveCard(Spec):
    """Leaks and other single resistors, and capacitors: ``value * (1 + N(0, s))``, never below a tenth."""

    resistor: Annotated[Spread, Field(le=0.5)] = 0.0
    capacitor: Annotated[Spread, Field(le=0.5)] = 0.0


def _table(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(width, ohm) for width, ohm in value.items()]
    return value


class WireCard(Spec):
    """Lines of crossbars: ``resistance`` [ohm per segment], or a ``width`` [m] of a published ``table``.

    Within the table resistance is interpolated in the logarithms; outside it is refused.
    ``driver`` and ``sense`` [ohm] lie at the ports.
    """

    resistance: Positive | None = None
    width: Positive | None = None
    table: Annotated[
        tuple[tuple[Positive, Positive], ...],
        BeforeValidator(_table),
        WithJsonSchema({"type": "object", "additionalProperties": _NUMBER}),
    ] = ()
    driver: NotNegative = 0.0
    sense: NotNegative = 0.0

    def per_segment(self, *, card: str = "") -> float:
        """Return ohm per segment.

        Raises:
            DeviceError: a width outside the table, or neither resistance nor width.
        """
        if self.resistance is not None:
            return self.resistance
        if self.width is None or not self.table:
            remedy = "Give wire.resistance, or wire.width with a table."
            raise DeviceError("has no resistance", object=card, field="wire", remedy=remedy)
        widths, ohms = np.array(sorted(self.table)).T
        if not widths[0] * (1 - 1e-9) <= self.width <= widths[-1] * (1 + 1e-9):
            raise DeviceError(
                f"card {card} holds for widths of {widths[0]:g} m to {widths[-1]:g} m",
                object=card,
                field="wire.width",
                value=self.width,
            )
        return float(np.exp(np.interp(np.log(self.width), np.log(widths), np.log(ohms))))


class DeviceCard(Spec):
    """One technology, or several that make up a die. Every section is optional; absent is ideal."""

    name: str
    source: str
    doi: str | None = None
    description: str = ""
    crossbar: CrossbarCard = CrossbarCard()
    amplifier: AmplifierCard = AmplifierCard()
    diode: DiodeCard = DiodeCard()
    supply: SupplyCard = SupplyCard()
    passive: PassiveCard = PassiveCard()
    transistor: TransistorCard | None = None
    dac: ConverterCard | None = None
    adc: ConverterCard | None = None
    wire: WireCard | None = None

    @model_validator(mode="after")
    def _pair_needs_a_law(self) -> DeviceCard:
        pair = self.amplifier.input_pair
        if pair is not None and self.amplifier.offset:
            rule = "give an offset or an input pair, not both"
            raise Inconsistent([SpecError(rule, field="amplifier.offset", value=self.amplifier.offset)])
        return self

    @property
    def offset(self) -> float:
        """Spread of amplifier offsets [V], given or by Pelgrom's law.

        Raises:
            DeviceError: an input pair without the law of its transistors, or smaller than it holds for.
        """
        pair = self.amplifier.input_pair
        if pair is None:
            return self.amplifier.offset
        if self.transistor is None:
            raise DeviceError(
                "needs the law of its transistors",
                object=self.name,
                field="amplifier.input_pair",
                remedy="Add a card with a transistor section, such as pelgrom-130nm-nfet.",
            )
        return self.transistor.pair_offset(pair, card=self.name)


_SECTIONS = ("crossbar", "amplifier", "diode", "supply", "passive", "transistor", "dac", "adc", "wire")


def ideal_card() -> DeviceCard:
    """Return the card without any spread."""
    return DeviceCard(name="ideal", source="by definition")


def load_card(path: str | Path) -> DeviceCard:
    """Read a card from YAML.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    return parse_document(DeviceCard, read_document(Path(path)), file=path)


def card_names() -> dict[str, Path]:
    """Return the shipped cards: name -> file."""
    here = Path(__file__).resolve()
    # In a wheel the cards lie inside the package; in a checkout they have a folder of their own.
    for folder in (here.parent / "cards", here.parents[2] / "devices"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_card(name: str, folder: Path | None = None) -> Path:
    """Return the file of a card: a path relative to ``folder``, or the name of a shipped card.

    Raises:
        SpecError: there is no such file and no such card.
    """
    path = (folder or Path()) / name
    if path.is_file():
        return path
    known = card_names()
    if name in known:
        return known[name]
    raise SpecError(
        "is neither a file nor the name of a card",
        value=name,
        remedy=f"Paths are relative to the file that names them. Cards: {', '.join(known)}.",
    )


def merged_cards(cards: Sequence[str | Mapping[str, Any]], folder: Path | None = None) -> DeviceCard:
    """Return one card of several: names, files, and mappings that change what comes before them.

    Two named cards must not describe the same section; a mapping may change single values of it.

    Raises:
        SpecError: a card cannot be read, or two describe the same section.
    """
    if not cards:
        return ideal_card()
    whole: dict[str, Any] = {}
    origin: dict[str, str] = {}
    names: list[str] = []
    sources: list[str] = []
    for item in cards:
        if isinstance(item, Mapping):
            whole = _updated(whole, item)
            continue
        path = find_card(item, folder)
        document = read_document(path)
        card = parse_document(DeviceCard, document, file=path)
        names.append(card.name)
        sources.append(card.source)
        for key in _SECTIONS:
            if key not in document:
                continue
            if key in origin:
                raise SpecError(
                    f"is described by two cards, {origin[key]} and {card.name}",
                    field=key,
                    remedy=f"Keep one of them, or change single values with a mapping: - {{{key}: ...}}.",
                )
            if key in whole:
                raise SpecError(
                    f"is given before {card.name}, which describes it too",
                    field=key,
                    remedy="Put the mapping behind the cards that it changes.",
                )
            origin[key] = card.name
            whole[key] = document[key]
        if card.doi is not None and "doi" not in whole:
            whole["doi"] = card.doi
    named = {"name": " + ".join(names) or "inline", "source": "; ".join(sources) or "given in the experiment"}
    return parse_document(DeviceCard, named | whole)


def _updated(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(old)
    for key, value in new.items():
        before = found.get(key)
        found[key] = (
            _updated(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
    return found
