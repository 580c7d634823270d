"""Fits of devices against what was measured, with residuals and intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from circuitsim.devices.fit.result import DeviceFit, Panel, Series
from circuitsim.report.style import PALETTE, new_figure, write_png

__all__ = ["draw_fit", "write_fit"]

_PANEL = 3.5
"""Height of a row of panels [inch]."""


def draw_fit(fit: DeviceFit) -> Figure:
    """Return the figure of a fit: two panels a row, titled with its finding."""
    rows = -(-len(fit.panels) // 2)
    figure = new_figure(0.9 + _PANEL * rows, fit.finding)
    grid = figure.subplots(rows, 2, squeeze=False).reshape(-1)
    for axes, panel in zip(grid, fit.panels, strict=False):
        _draw(axes, panel)
    for axes in grid[len(fit.panels) :]:
        axes.remove()
    return figure


def write_fit(fit: DeviceFit, path: str | Path) -> Path:
    """Write the figure of a fit as PNG, 1600 pixels wide.

    Raises:
        RecordError: it cannot be written.
    """
    return write_png(lambda: draw_fit(fit), path)


def _draw(axes: Axes, panel: Panel) -> None:
    for series in panel.series:
        _add(axes, series)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    if any(series.label for series in panel.series):
        axes.legend(loc="best", fontsize=8.5)


def _add(axes: Axes, series: Series) -> None:
    color = PALETTE[series.color % len(PALETTE)]
    label = series.label or "_nolegend_"
    if series.kind == "line":
        axes.plot(series.x, series.y, color=color, label=label, zorder=3)
    elif series.kind == "points":
        crowded = len(series.x) > 200
        axes.plot(
            series.x,
            series.y,
            "o",
            color=color,
            markersize=2.0 if crowded else 3.5,
            alpha=0.5 if crowded else 0.8,
            markeredgewidth=0,
            label=label,
            zorder=2,
        )
    elif series.kind == "band":
        assert series.upper is not None
        order = np.argsort(series.x, kind="stable")
        axes.fill_between(
            series.x[order],
            series.y[order],
            series.upper[order],
            color=color,
            alpha=0.2,
            linewidth=0,
            label=label,
            zorder=1,
        )
    else:
        axes.errorbar(
            series.x,
            series.y,
            yerr=series.upper,
            fmt="o",
            color=color,
            markersize=3.5,
            linewidth=1.2,
            label=label,
            zorder=3,
        )
