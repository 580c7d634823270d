"""What was measured of every amplifier of a substrate, with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitsim.instrument.calibration.calibration import Calibration, Series
from circuitsim.report.style import FAINT, PALETTE, new_figure, write_png

__all__ = ["draw_calibration", "write_calibration_figure"]

_PANEL = 2.9
"""Height of a row of panels [inch]."""
_QUANTITIES: tuple[tuple[str, str, float, float], ...] = (
    ("gain", "gain, over the design's", 1.0, 1.0),
    ("offset", "offset [mV]", 1e3, 0.0),
    ("saturation", "saturation, over the design's", 1.0, 1.0),
    ("back_gain", "back gain, over the design's", 1.0, 1.0),
    ("forward", "correction, forward", 1.0, 1.0),
    ("back", "correction, back", 1.0, 1.0),
    ("anchor", "error of the anchor [uV]", 1e6, 0.0),
    ("copy_slope", "slope of the dyadic copy", 1.0, 1.0),
)


def draw_calibration(calibration: Calibration) -> Figure:
    """Return the figure of a calibration: one panel a quantity, all banks in it, in the order of nodes."""
    blocks = {**calibration.amplifiers, **calibration.senses}
    panels: list[Callable[[Axes], None]] = []
    for quantity, label, scale, ideal in _QUANTITIES:
        known = {name: getattr(block, quantity, None) for name, block in blocks.items()}
        series = {name: one for name, one in known.items() if one is not None}
        if series:
            panels.append(_panel(series, list(blocks), label, scale, ideal))
    rows = max(1, -(-len(panels) // 2))
    noise = calibration.noise.single
    figure = new_figure(
        0.9 + _PANEL * rows,
        f"{calibration.circuit}: read noise {1e3 * noise.value:.3g} mV, amplifiers as measured "
        "(bars: one standard error)",
    )
    grid = figure.subplots(rows, 2, squeeze=False).reshape(-1)
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def write_calibration_figure(calibration: Calibration, path: str | Path) -> Path:
    """Write the figure of a calibration as PNG, 1600 pixels wide.

    Raises:
        RecordError: it cannot be written.
    """
    return write_png(lambda: draw_calibration(calibration), path)


def _panel(
    series: dict[str, Series], blocks: list[str], label: str, scale: float, ideal: float
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        axes.axhline(ideal, color=FAINT, linewidth=1.0, zorder=1)
        start = 0
        for name, one in series.items():
            values = scale * one.filled(np.nan)
            errors = np.array([np.nan if e is None else scale * e for e in one.errors])
            axes.errorbar(
                start + np.arange(len(values)),
                values,
                yerr=errors,
                fmt="o",
                markersize=3.0,
                linewidth=1.0,
                color=PALETTE[blocks.index(name) % len(PALETTE)],
                label=f"{name}: {scale * one.mean:.4g}, spread {scale * one.spread:.2g}",
                zorder=2,
            )
            start += len(values)
        axes.set_title(label)
        axes.set_xlabel("amplifier")
        # Room above the points for a line of text per bank.
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + (0.06 + 0.09 * len(series)) * (high - low))
        axes.legend(loc="upper left", fontsize=8.0, handletextpad=0.2)

    return draw
