"""Converters between codes and volts, with the errors of their curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from circuitsim.devices.card import ConverterCard
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray

__all__ = ["Converter", "converter"]

_TABLE_BITS = 18
"""Most bits of a converter whose curve is kept code by code."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Converter:
    """One converter as fabricated. ``levels`` (2^bits,) V is where its codes really lie; None: in line."""

    card: ConverterCard
    levels: FloatArray | None = None

    def codes(self, volts: FloatArray) -> FloatArray:
        """Return the codes (as floats) that a host asks for, or an ideal converter gives."""
        card = self.card
        top = 2**card.bits - 1
        return np.clip(np.rint((volts - card.range[0]) / card.step), 0, top)

    def ideal(self, volts: FloatArray) -> FloatArray:
        """Return what the host believes its codes to be [V]."""
        return self.card.range[0] + self.codes(volts) * self.card.step

    def driven(self, volts: FloatArray) -> FloatArray:
        """Return what a DAC puts out for wanted ``volts``: the nearest code, as it really lies."""
        if self.levels is None:
            return self.ideal(volts)
        return self.levels[self.codes(volts).astype(np.int64)]

    def read(self, volts: FloatArray, generator: Generator | None = None, scale: float = 1.0) -> FloatArray:
        """Return what an ADC makes of ``volts``, with its sampling noise if there is a generator.

        ``scale`` is the range over the card's: that of a programmable gain before the converter, which
        shrinks noise and steps alike.
        """
        v = volts / scale if scale != 1.0 else volts
        if generator is not None and self.card.noise:
            v = v + self.card.noise * generator.standard_normal(np.shape(v))
        if self.levels is None:
            found = self.ideal(v)
        else:
            # A code begins half way between its level and the one below.
            edges = 0.5 * (self.levels[1:] + self.levels[:-1])
            found = self.card.range[0] + np.searchsorted(edges, v).astype(np.float64) * self.card.step
        return found * scale if scale != 1.0 else found


def converter(card: ConverterCard, generator: Generator, *, object: str = "") -> Converter:
    """Draw one converter: its steps ``1 + N(0, dnl)``, and a bow of at most ``inl`` steps.

    Ends of the range are exact. The curve rises everywhere.

    Raises:
        DeviceError: errors of single codes for more bits than a curve is kept for.
    """
    if not card.inl and not card.dnl:
        return Converter(card=card)
    if card.bits > _TABLE_BITS:
        raise DeviceError(
            f"INL and DNL are for up to {_TABLE_BITS} bits", object=object, field="bits", value=card.bits
        )
    count = 2**card.bits
    steps = np.maximum(1 + card.dnl * generator.standard_normal(count - 1), 0.0)
    codes = np.concatenate([[0.0], np.cumsum(steps)])
    codes *= (count - 1) / codes[-1]
    place = np.linspace(-1, 1, count)
    codes += card.inl * generator.uniform(-1, 1) * (1 - place**2)
    levels = np.maximum.accumulate(np.clip(codes, 0, count - 1))
    return Converter(card=card, levels=card.range[0] + levels * card.step)
