"""The figure of a fault study: errors of gradients over the size of each fault, and over beta with noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from circuitsim.report.style import FAINT, PALETTE, new_figure, styled

__all__ = ["FaultPanel", "fault_figure"]

FloatArray = NDArray[np.float64]

_COLUMNS = 3
_PANEL = 3.5
"""Height of a panel [inch]."""
_BAND = (10.0, 90.0)
"""Percentiles between which the band of the networks lies."""
_MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True, kw_only=True)
class FaultPanel:
    """Curves over one abscissa: name -> errors (L, networks), relative; NaN where a network has none."""

    title: str
    abscissa: str
    """Label with its unit."""
    levels: FloatArray
    curves: Mapping[str, FloatArray]
    floor: float | None = None
    """Error without the fault."""


def fault_figure(panels: Sequence[FaultPanel], title: str) -> Figure:
    """Draw medians and 10th to 90th percentiles over networks, both axes logarithmic.

    Sizes at which half of the networks or more have no stable phase are left out.
    """
    rows = -(-len(panels) // _COLUMNS)
    # What is told the same way has one colour in all panels.
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    with styled():
        figure = new_figure(1.0 + _PANEL * rows, title)
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).reshape(-1)
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, names)
        for axes in grid[len(panels) :]:
            axes.remove()
    return figure


def _draw(axes: Axes, panel: FaultPanel, names: list[str]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for name, errors in panel.curves.items():
        number = names.index(name)
        kept = np.isnan(errors).mean(axis=1) < 0.5
        if not kept.any():
            continue
        low, middle, high = np.nanpercentile(100 * errors[kept], [_BAND[0], 50.0, _BAND[1]], axis=1)
        colour = PALETTE[number % len(PALETTE)]
        axes.fill_between(panel.levels[kept], low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            panel.levels[kept],
            middle,
            color=colour,
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            label=name,
        )
    if panel.floor is not None:
        axes.axhline(100 * panel.floor, color=FAINT, linewidth=1.0, linestyle=":", label="no fault")
    axes.set_title(panel.title)
    axes.set_xlabel(panel.abscissa)
    axes.set_ylabel("error of the gradient [%]")
    axes.legend(loc="best")
