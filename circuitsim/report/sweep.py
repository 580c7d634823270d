"""Figures of a sweep: accuracy, gradient cosine and error against an axis; every die, mean and spread."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from circuitsim.record.table import Table
from circuitsim.report.curves import FLOOR
from circuitsim.report.figures import save_figures
from circuitsim.report.style import FAINT, PALETTE, new_figure, styled
from circuitsim.report.sweep_summary import DieResults, die_results

__all__ = ["build_sweep_figures", "write_sweep_figures"]

_COLUMNS = 4
_MOST_PANELS = 12
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DECADES = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
_MOST_POINTS = 20_000
"""Dies that are drawn one by one, in all panels together."""


@dataclass(frozen=True)
class _Law:
    """How an error is expected to go along an axis: as its power ``slope``."""

    word: str
    slope: float


_LAWS = {
    "averaging": (_Law("1 / √n", -0.5),),
    "beta": (_Law("1 / β", -1.0), _Law("β²", 2.0)),
}
"""Of errors of the gradient, by the last word of an axis: noise that averages out; steps and noise in which
a change drowns, and curvature."""


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """What is drawn upwards."""

    values: NDArray[np.float64]
    label: str
    digits: str
    unit: str
    more_is_better: bool
    before: str = ""
    near_one: bool = False
    """Whether the distance from 1 matters: it is then drawn too, below."""
    logarithmic: bool = False
    laws: bool = False
    """Whether expected laws are drawn as guides."""

    def said(self, value: float) -> str:
        if self.near_one and 0 < 1 - value < 5e-4:
            return f"cosine 1 − {1 - value:.0e}"
        return f"{self.before}{value:{self.digits}}{self.unit}"

    def limits(self) -> tuple[float, float]:
        """Return the lowest and highest value to leave room for, the same in all panels."""
        values = self.values[np.isfinite(self.values)]
        low, high = float(values.min()), float(values.max())
        if self.logarithmic:
            return 0.5 * max(low, FLOOR), 2 * max(high, FLOOR)
        if self.near_one:
            low, high = min(low, 0.98), 1.0
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return low - margin, high + margin


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One combination of the axes that are not drawn along x."""

    title: str
    rows: NDArray[np.int64]


def build_sweep_figures(table: Table) -> dict[str, Figure]:
    """Return the figures that a sweep has data for: ``accuracy`` (or ``error``), ``cosine``, and of gradients
    before training ``gradient-error``."""
    found = _with_series(table, die_results(table))
    figures: dict[str, Figure] = {}
    with styled():
        trained = table.header["measure"] == "training"
        if trained and found.score_name is not None and np.isfinite(found.score).any():
            accuracy = found.score_name == "test_accuracy"
            quantity = _Quantity(
                values=found.score * (100.0 if accuracy else 1e3),
                label="test accuracy [%]" if accuracy else "test RMS error [mV]",
                digits=".1f" if accuracy else ".3g",
                unit=" %" if accuracy else " mV",
                more_is_better=accuracy,
            )
            figures["accuracy" if accuracy else "error"] = _figure(table, found, quantity)
        if np.isfinite(found.cosine).any():
            quantity = _Quantity(
                values=found.cosine,
                label="cosine to exact gradient",
                digits=".3f",
                unit="",
                more_is_better=True,
                before="cosine ",
                near_one=True,
            )
            figures["cosine"] = _figure(table, found, quantity)
        if not trained and (found.relative_error > 0).any():
            quantity = _Quantity(
                values=np.where(found.relative_error > 0, found.relative_error, np.nan),
                label="relative error of the gradient",
                digits=".2g",
                unit="",
                more_is_better=False,
                before="gradient error ",
                logarithmic=True,
                laws=True,
            )
            figures["gradient-error"] = _figure(table, found, quantity)
    return figures


def write_sweep_figures(table: Table, folder: str | Path) -> list[Path]:
    """Write the figures of a sweep as ``NAME-accuracy.png`` and so on, 1600 pixels wide.

    Raises:
        RecordError: the folder or a file cannot be written.
    """
    name = table.header["name"]
    figures = {f"{name}-{stem}": figure for stem, figure in build_sweep_figures(table).items()}
    return save_figures(figures, folder)


def _figure(table: Table, found: DieResults, quantity: _Quantity) -> Figure:
    x, distance = table.header["x"], quantity.near_one
    panels, pooled = _panels(table, found, x)
    columns = min(_COLUMNS, len(panels))
    bands = -(-len(panels) // columns)
    levels = 2 if distance else 1
    title = _title(table, found, quantity, x)
    if len(panels) > 1:
        title += ", mean of all panels"
    figure = new_figure(0.9 + bands * (5.0 if distance else 4.4 if bands == 1 else 3.0), title)
    grid = figure.subplots(levels * bands, columns, squeeze=False)
    distances = np.maximum(1 - quantity.values, FLOOR)
    for place in range(bands * columns):
        drawn = [grid[levels * (place // columns) + level][place % columns] for level in range(levels)]
        if place >= len(panels):
            for axes in drawn:
                axes.set_axis_off()
            continue
        panel = panels[place]
        top = drawn[0]
        if quantity.logarithmic:
            top.set_yscale("log")
        _draw(top, table, found, quantity.values, x, panel.rows)
        if quantity.laws:
            _guide(top, table, found, quantity.values, x, panel.rows)
        top.set_title(textwrap.fill(panel.title, 80 // columns))
        top.set_ylim(*quantity.limits())
        if distance:
            bottom = drawn[1]
            bottom.set_yscale("log")
            _draw(bottom, table, found, distances, x, panel.rows)
            low = float(np.nanmin(distances))
            bottom.set_ylim(low / 5, 5.0)
            if low <= 10 * FLOOR:
                bottom.axhline(FLOOR, color=FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
            top.tick_params(labelbottom=False)
        drawn[-1].set_xlabel(x)
        labels = [quantity.label, "1 − cosine"]
        for axes, label in zip(drawn, labels, strict=False):
            if place % columns == 0:
                axes.set_ylabel(label)
            else:
                axes.tick_params(labelleft=False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    what = "points: dies; line and band: their mean and standard deviation"
    if _scattered(table, x):
        what = "each mark: a die at a point of the random design"
    if pooled:
        what += f"; all values of {', '.join(pooled)} together"
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, max(1, len(labels))),
        handlelength=3.2,
        title=what,
        title_fontsize=8.5,
    )
    return figure


def _with_series(table: Table, found: DieResults) -> DieResults:
    """Where all is by one estimator, let the values of another axis have the colours: call them so."""
    if len(np.unique(found.estimator)) != 1:
        return found
    for axis in sorted(found.axes, key=lambda axis: table.header["axes"][axis]):
        values = found.axes[axis].tolist()
        if axis != table.header["x"] and 1 < len(set(values)) <= len(PALETTE):
            words = [
                f"{_short(axis)} {_value(value)}" if table.header["axes"][axis] else str(value)
                for value in values
            ]
            return replace(found, estimator=np.array(words))
    return found


def _panels(table: Table, found: DieResults, x: str) -> tuple[list[_Panel], list[str]]:
    """Return the panels, and the axes that are pooled in each of them."""
    everything = [_Panel(title="", rows=np.arange(len(found.point)))]
    others = [axis for axis in found.axes if axis != x and len(np.unique(found.axes[axis])) > 1]
    # An axis that other labels of estimators tell apart needs no panels of its own.
    others = [axis for axis in others if not _told_by_estimator(found, axis)]
    if not others:
        return everything, []
    if table.header["random"]:
        return everything, others
    combinations: dict[tuple[Any, ...], list[int]] = {}
    values = zip(*(found.axes[axis].tolist() for axis in others), strict=True)
    for row, combination in enumerate(values):
        combinations.setdefault(combination, []).append(row)
    if len(combinations) > _MOST_PANELS:
        return everything, others
    panels = []
    for combination, rows in combinations.items():
        words = [f"{_short(axis)} {_value(v)}" for axis, v in zip(others, combination, strict=True)]
        panels.append(_Panel(title=", ".join(words), rows=np.array(rows)))
    return panels, []


def _told_by_estimator(found: DieResults, axis: str) -> bool:
    seen: dict[str, Any] = {}
    pairs = zip(found.estimator.tolist(), found.axes[axis].tolist(), strict=True)
    return all(seen.setdefault(estimator, value) == value for estimator, value in pairs)


def _scattered(table: Table, x: str) -> bool:
    return bool(table.header["random"] and table.header["axes"][x])


def _draw(
    axes: Axes,
    table: Table,
    found: DieResults,
    values: NDArray[np.float64],
    x: str,
    rows: NDArray[np.int64],
) -> None:
    numeric = table.header["axes"][x]
    ticks = list(dict.fromkeys(found.axes[x].tolist()))
    names = list(dict.fromkeys(found.estimator.tolist()))
    share = max(1, len(found.point) // _MOST_POINTS)
    for number, name in enumerate(names):
        mine = rows[(found.estimator[rows] == name) & np.isfinite(values[rows])]
        colour = "#9A9A9A" if name.startswith("adjoint") else PALETTE[number % len(PALETTE)]
        marker = _MARKERS[number % len(_MARKERS)]
        if numeric:
            places = found.axes[x][mine].astype(np.float64)
        else:
            # Side by side, where there is no order in which lines could run.
            aside = 0.5 * (number - (len(names) - 1) / 2) / len(names)
            places = np.array([ticks.index(value) for value in found.axes[x][mine].tolist()]) + aside
        heights = values[mine]
        if _scattered(table, x):
            under = 1.5 if name.startswith("adjoint") else 3 + 0.01 * number
            axes.plot(
                places, heights, marker, color=colour, markersize=5, alpha=0.7, label=name, zorder=under
            )
            continue
        dies: dict[str, Any] = {
            "color": colour,
            "markersize": 6,
            "alpha": 0.4,
            "markeredgewidth": 0,
            "zorder": 2,
        }
        axes.plot(places[::share], heights[::share], ".", **dies)
        at = np.unique(places)
        groups = [heights[places == place] for place in at]
        mean = np.array([group.mean() for group in groups])
        spread = np.array([group.std(ddof=1) if len(group) > 1 else 0.0 for group in groups])
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "label": name}
        style |= {"markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 3 + 0.01 * number}
        if numeric and name.startswith("adjoint"):
            # The exact reference, beneath those that agree with it.
            axes.plot(
                at, mean, color="#C9C9C9", linewidth=6.0, zorder=1.5, solid_capstyle="round", label=name
            )
        elif numeric:
            axes.plot(at, mean, **style)
            axes.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.errorbar(at, mean, yerr=spread, linestyle="none", capsize=3, elinewidth=1.2, **style)
    if numeric:
        _scale(axes, np.array(ticks, dtype=np.float64))
    else:
        axes.set_xticks(range(len(ticks)), [_value(tick) for tick in ticks])
        axes.set_xlim(-0.6, len(ticks) - 0.4)
        axes.grid(visible=False, axis="x")


def _guide(
    axes: Axes,
    table: Table,
    found: DieResults,
    values: NDArray[np.float64],
    x: str,
    rows: NDArray[np.int64],
) -> None:
    """Draw the laws that are expected along x: a falling one from the first series' start, a rising one up to
    the lowest end."""
    laws = _LAWS.get(x.split(".")[-1], ())
    rows = rows[np.isfinite(values[rows])]
    if not laws or not len(rows) or not table.header["axes"][x] or _scattered(table, x):
        return
    at = np.unique(found.axes[x][rows].astype(np.float64))
    if len(at) < 3 or at[0] <= 0:
        return
    for law in laws:
        end = at[0] if law.slope < 0 else at[-1]
        here = rows[found.axes[x][rows] == end]
        names = list(dict.fromkeys(found.estimator[here].tolist()))
        heights = [float(values[here][found.estimator[here] == name].mean()) for name in names]
        height = heights[0] if law.slope < 0 else min(heights)
        axes.plot(
            at,
            height * (at / end) ** law.slope,
            color=FAINT,
            linewidth=1.1,
            linestyle=(0, (2, 2)) if law.slope < 0 else (0, (6, 2)),
            zorder=1,
            label=f"∝ {law.word}",
        )


def _scale(axes: Axes, ticks: NDArray[np.float64]) -> None:
    positive = ticks[ticks > 0]
    if not len(positive) or (ticks < 0).any() or positive.max() < _DECADES * positive.min():
        return
    if len(positive) == len(ticks) and (np.log2(ticks) % 1 == 0).all():
        axes.set_xscale("log", base=2)
        shown = np.unique(ticks)
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown], minor=False)
    elif len(positive) == len(ticks):
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=float(positive.min()))


def _title(table: Table, found: DieResults, quantity: _Quantity, x: str) -> str:
    names = list(dict.fromkeys(found.estimator[np.isfinite(quantity.values)].tolist()))
    name = "corrected-centred" if "corrected-centred" in names else names[0]
    rows = np.flatnonzero((found.estimator == name) & np.isfinite(quantity.values))
    values, at = quantity.values[rows], found.axes[x][rows]
    where = _short(x)

    if table.header["random"]:
        best = int(values.argmax() if quantity.more_is_better else values.argmin())
        reached = f"{quantity.said(values[best])} at {where} {_value(at[best].item())}"
        return f"{name}: best {reached}, of {len(rows)} dies"
    ticks = list(dict.fromkeys(at.tolist()))
    if table.header["axes"][x]:
        ticks.sort()
    means = [float(values[at == tick].mean()) for tick in ticks]
    if len(ticks) == 1:
        return f"{name}: {quantity.said(means[0])} at {where} {_value(ticks[0])}"
    ends: Sequence[int] = (0, len(ticks) - 1)
    if not table.header["axes"][x]:
        ends = (int(np.argmax(means)), int(np.argmin(means)))
    first, last = ends
    return (
        f"{name}: {quantity.said(means[first])} at {where} {_value(ticks[first])}, "
        f"{quantity.said(means[last])} at {_value(ticks[last])}"
    )


def _short(axis: str) -> str:
    """Return the end of a path, from the last name before it on: ``estimators.0.beta``, ``hidden.size``."""
    parts = axis.split(".")
    first = len(parts) - 2
    while first > 0 and (parts[first].isdigit() or parts[first] == "*"):
        first -= 1
    return ".".join(parts[max(first, 0) :])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
