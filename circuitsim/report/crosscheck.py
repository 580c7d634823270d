"""The figure of a cross-check: our voltages against a simulator's, and what is left between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from circuitsim.report.style import FAINT, PALETTE, new_figure, save, styled

__all__ = ["draw_crosscheck"]

_SMALLEST = -20.0
"""log10 of the difference [V] at which smaller ones, 0 included, are drawn."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_crosscheck(
    phases: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    path: str | Path,
    *,
    name: str,
    engine: str,
    tolerance: float,
) -> None:
    """Write the figure as PNG.

    Args:
        phases: label -> (our voltages, the simulator's) [V], each of all nodes and samples.
        path: the file.
        name: the circuit's.
        engine: what the simulator is called.
        tolerance: the largest difference that passes [V].

    Raises:
        RecordError: the file cannot be written.
    """
    worst = max(float(np.abs(spice - ours).max(initial=0)) for ours, spice in phases.values())
    finding = f"agree to {worst:.0e} V" if worst <= tolerance else f"differ by {worst:.0e} V"
    with styled():
        figure = new_figure(max(4.4, 1.6 + 0.62 * len(phases)), f"{name}: {engine} and circuitsim {finding}")
        grid = figure.add_gridspec(len(phases), 2)
        left = figure.add_subplot(grid[:, 0])
        _voltages(left, phases, engine)
        high = max(float(np.log10(max(worst, tolerance))) + 1.0, _SMALLEST + 1)
        shared: Axes | None = None
        for row, (label, (ours, spice)) in enumerate(phases.items()):
            axes = figure.add_subplot(grid[row, 1], sharex=shared, sharey=shared)
            shared = shared or axes
            _residual(axes, np.abs(spice - ours), high, PALETTE[row % len(PALETTE)], label, tolerance)
            if row == 0:
                axes.set_title("What is left between the two, nodes × samples")
            axes.tick_params(labelbottom=row == len(phases) - 1)
        axes.set_xlabel(f"log10 of the difference in V ({_SMALLEST:.0f}: this or less); dashed: tolerance")
        save(figure, Path(path))


def _voltages(
    axes: Axes, phases: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], engine: str
) -> None:
    # The phases lie almost on one another: each is drawn smaller than the one before.
    for number, (label, (ours, spice)) in enumerate(phases.items()):
        axes.plot(
            ours,
            spice,
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=max(8.0 - 1.1 * number, 2.0),
            markerfacecolor="none",
            markeredgecolor=PALETTE[number % len(PALETTE)],
            markeredgewidth=0.8,
            label=label,
        )
    ends = [float(end(part)) for pair in phases.values() for part in pair for end in (np.min, np.max)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=FAINT, linewidth=0.9, zorder=1)
    axes.set_title("Every node of every sample")
    axes.set_xlabel("circuitsim [V]")
    axes.set_ylabel(f"{engine} [V]")
    axes.legend(loc="upper left")


def _residual(
    axes: Axes, difference: NDArray[np.float64], high: float, color: str, label: str, tolerance: float
) -> None:
    logarithm = np.log10(np.maximum(difference, 10**_SMALLEST))
    axes.hist(logarithm, bins=np.linspace(_SMALLEST, high, 60).tolist(), color=color)
    axes.axvline(float(np.log10(tolerance)), color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, None)
    axes.set_yticks([1, 100])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(_SMALLEST, high)
    axes.annotate(
        f"{label}\nworst {difference.max(initial=0):.0e} V",
        (float(np.log10(tolerance)), 0.95),
        xycoords=("data", "axes fraction"),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8.5,
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1.0},
    )
