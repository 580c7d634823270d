"""Device cards: what one technology's devices look like, and how much they spread over a die."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from circuitsim.network.documents import Quantity, Spec, parse_document, read_document

__all__ = ["AmplifierSpread", "CrossbarSpread", "DeviceCard", "DiodeSpread", "ideal_card", "load_card"]

Spread = Annotated[Quantity, Field(ge=0)]


class CrossbarSpread(Spec):
    """Programmable devices: present = target * (1 + N(0, device_to_device)), never below 0."""

    device_to_device: Annotated[Spread, Field(le=1)] = 0.0


class AmplifierSpread(Spec):
    """Amplifiers: gain and saturation * (1 + N(0, spread)); offset N(0, offset) [V] at the input."""

    gain: Annotated[Spread, Field(le=1)] = 0.0
    saturation: Annotated[Spread, Field(le=0.3)] = 0.0
    offset: Spread = 0.0


class DiodeSpread(Spec):
    """Diodes: saturation current * exp(N(0, saturation_current))."""

    saturation_current: Annotated[Spread, Field(le=2)] = 0.0


class DeviceCard(Spec):
    """One technology. Spreads are one standard deviation, relative unless a unit is given."""

    name: str
    source: str
    description: str = ""
    crossbar: CrossbarSpread = CrossbarSpread()
    amplifier: AmplifierSpread = AmplifierSpread()
    diode: DiodeSpread = DiodeSpread()


def ideal_card() -> DeviceCard:
    """Return the card without any spread."""
    return DeviceCard(name="ideal", source="by definition")


def load_card(path: str | Path) -> DeviceCard:
    """Read a card from YAML.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    return parse_document(DeviceCard, read_document(Path(path)), file=path)
