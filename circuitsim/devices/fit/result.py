"""What a fit gives: a card, every number with its interval, and what there is to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.spread import Interval
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream

__all__ = ["DeviceFit", "Estimate", "Panel", "Series", "thinned"]


def thinned(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of ``count`` places, drawn without order in them, for a figure of points."""
    if count <= most:
        return np.arange(count)
    return np.sort(stream(0, "fit", "shown").permutation(count)[:most])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number that was fitted.

    ``field`` is its place in the card, such as ``crossbar.update.step``; empty where a card has no place
    for it. ``interval`` is None where there are too few devices for one.
    """

    name: str
    value: float
    interval: Interval | None
    unit: str = ""
    meaning: str
    field: str = ""
    spice: bool = False
    """Whether people write it with a suffix."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Points, a line, or a band between ``y`` and ``upper``."""

    kind: Literal["points", "line", "band", "bars"]
    x: FloatArray
    y: FloatArray
    upper: FloatArray | None = None
    """Upper edge of a band; or half the length of error bars."""
    label: str | None = None
    color: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    whole_x: bool = False
    """Whether x counts something."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceFit:
    """A card's numbers from measured devices.

    ``document`` holds the sections of the card with numbers as they are written in it.
    """

    kind: Literal["pulses", "reads", "curves"]
    document: Mapping[str, Any]
    estimates: tuple[Estimate, ...]
    panels: tuple[Panel, ...]
    finding: str
    """One sentence: the title of the figure."""
    devices: int
    cycles: int
    readings: int
    notes: tuple[str, ...] = ()
    """What the data could not say, or a card cannot hold."""
    criterion: Mapping[str, float] = field(default_factory=dict)
    """Model -> Bayesian information criterion, where several were compared; the smallest won."""
