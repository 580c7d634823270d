"""A board with biased updates beside one without: cost by step, and the way of the conductances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitsim.netlist.tables import FloatArray
from circuitsim.report.curves import FLOOR
from circuitsim.report.style import FAINT, PALETTE, new_figure, styled

__all__ = ["Way", "limit_cycle_figure", "principal_plane"]

_ROUNDS = 3
"""Periods that the close-up shows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """Cost [W] (steps + 1,) and conductances (steps + 1, D), in fractions of the window, step by step."""

    cost: FloatArray
    conductance: FloatArray


def principal_plane(points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the middle (D,) of points (n, D), two directions (2, D), and shares of the variance (2,)."""
    middle = points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(points - middle, full_matrices=False)
    total = float((sizes**2).sum())
    return middle, directions[:2], sizes[:2] ** 2 / (total or 1.0)


def limit_cycle_figure(ways: Mapping[str, Way], period: int) -> Figure:
    """Return the figure of two or more boards by label, the biased one first.

    Above, the cost. Below, on the left the whole way of each board, in the plane in which all of them
    together vary most; on the right the last periods of each, in the plane in which those of the first vary
    most, moved so that each board's mean is at the origin.
    """
    labels = list(ways)
    first = ways[labels[0]]
    with styled():
        figure = new_figure(8.2, _title(labels[0], first, period))
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.7))
        top = figure.add_subplot(grid[0, :])
        left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
        whole = principal_plane(np.concatenate([way.conductance for way in ways.values()]))
        close = principal_plane(first.conductance[-_ROUNDS * period - 1 :])
        for number, (label, way) in enumerate(ways.items()):
            colour = PALETTE[(1, 0, 2, 3, 4, 5, 6)[number % len(PALETTE)]]
            top.plot(np.maximum(way.cost, FLOOR), color=colour, linewidth=1.2, label=label)
            x, y = ((way.conductance - whole[0]) @ whole[1].T).T
            left.plot(x, y, color=colour, linewidth=1.0)
            left.plot(x[0], y[0], "o", color=colour, markersize=5, markerfacecolor="white")
            left.plot(x[-1], y[-1], "s", color=colour, markersize=6, zorder=4 + number)
            late = way.conductance[-_ROUNDS * period - 1 :]
            # The first point is the end of the round before.
            x, y = ((late - late[1:].mean(axis=0)) @ close[1].T).T
            right.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=3, zorder=3 + number)
        top.set_yscale("log")
        top.set_xlabel("step")
        top.set_ylabel("cost, mean of all samples [W]")
        top.legend(loc="best", ncols=len(ways))
        _label(left, whole[2], "all steps; open circle: start, square: end")
        _label(right, close[2], f"last {_ROUNDS} rounds, about their mean")
        right.axhline(0, color=FAINT, linewidth=0.6, zorder=1)
        right.axvline(0, color=FAINT, linewidth=0.6, zorder=1)
    return figure


def _label(axes: Axes, shares: FloatArray, title: str) -> None:
    axes.set_title(title)
    for set_label, number in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
        set_label(f"principal component {number + 1} [windows], {100 * shares[number]:.0f} %")


def _title(label: str, way: Way, period: int) -> str:
    late = way.conductance[-period - 1 :]
    travel = float(np.linalg.norm(np.diff(late, axis=0), axis=1).sum())
    gap = float(np.linalg.norm(late[-1] - late[0]))
    return f"{label}: {travel:.2g} windows of way each round, {gap:.1g} from where it was a round ago"
