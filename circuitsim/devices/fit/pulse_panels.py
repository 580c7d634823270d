"""What there is to draw of a fit to staircases."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from circuitsim.devices.fit.measurements import PulseData
from circuitsim.devices.fit.result import Panel, Series, thinned
from circuitsim.devices.fit.spread import corrected_spread, student_quantile
from circuitsim.devices.fit.update_curves import UpdateFit
from circuitsim.netlist.tables import FloatArray

__all__ = ["pulse_panels"]


def pulse_panels(
    data: PulseData,
    fit: UpdateFit,
    window: tuple[float, float],
    step: FloatArray,
    step_variance: FloatArray,
) -> tuple[Panel, ...]:
    """Return the panels: staircases, mean steps, residuals, and the steps (D,) of the devices."""
    return (
        _staircase_panel(data, fit, window),
        _curve_panel(fit),
        _residual_panel(fit),
        _device_panel(step, step_variance),
    )


def _staircase_panel(data: PulseData, fit: UpdateFit, window: tuple[float, float]) -> Panel:
    """Draw the first cycle of a few devices over what their own fitted curves predict."""
    low, high = window
    series = []
    chosen = np.unique(np.linspace(0, len(data.names) - 1, min(3, len(data.names))).astype(int))
    for color, device in enumerate(chosen):
        rows = np.flatnonzero(data.device == device)
        rows = rows[data.cycle[rows] == data.cycle[rows[0]]]
        w = 2 * (data.conductance[rows[0]] - low) / (high - low) - 1
        path = [w]
        limits = [
            bound[device] if np.isfinite(bound[device]) else np.inf
            for bound in (fit.whole[0].bound, fit.whole[1].bound)
        ]
        for before, row in pairwise(rows.tolist()):
            number = 0 if data.up[row] else 1
            sign = 1.0 if data.up[row] else -1.0
            if data.pulse[row] > 0 and data.pulse[row] in (1, data.pulse[before] + 1):
                w = w + sign * fit.mean_step(number, int(device), sign * w)
            else:
                w = 2 * (data.conductance[row] - low) / (high - low) - 1
            w = min(max(w, -limits[1]), limits[0])
            path.append(w)
        fitted = low + 0.5 * (np.array(path) + 1) * (high - low)
        order = np.arange(len(rows), dtype=np.float64)
        series.append(
            Series(
                kind="points", x=order, y=1e6 * data.conductance[rows], color=color, label=data.names[device]
            )
        )
        series.append(Series(kind="line", x=order, y=1e6 * fitted, color=color))
    return Panel(
        title="Staircases: readings, and each device's own curve",
        x_label="reading of the first cycle",
        y_label="conductance [µS]",
        series=tuple(series),
    )


def _curve_panel(fit: UpdateFit) -> Panel:
    """Draw mean steps against where they start, with the mean curve and its interval."""
    series = []
    for number, side in enumerate(fit.sides):
        sign = 1.0 if number == 0 else -1.0
        first, last = np.quantile(side.steps.start, [0.005, 0.995])
        edges = np.linspace(first, last, 25)
        place = np.clip(np.digitize(side.steps.start, edges) - 1, 0, len(edges) - 2)
        count = np.bincount(place, minlength=len(edges) - 1)
        there = count > 0
        middle = (0.5 * (edges[1:] + edges[:-1]))[there]
        mean = (np.bincount(place, side.steps.move, minlength=len(count)) / np.maximum(count, 1))[there]
        grid = np.linspace(first, last, 80)
        curves = np.stack([fit.mean_step(number, d, grid) for d in range(side.steps.devices)])
        centre = curves.mean(axis=0)
        if len(curves) > 1:
            error = student_quantile(0.975, max(len(curves) - 1, 3)) * curves.std(axis=0, ddof=1)
            error = error / np.sqrt(len(curves))
            ends = sign * (centre - error), sign * (centre + error)
            series.append(
                Series(kind="band", x=sign * grid, y=np.minimum(*ends), upper=np.maximum(*ends), color=number)
            )
        series.append(Series(kind="line", x=sign * grid, y=sign * centre, color=number))
        series.append(
            Series(
                kind="points",
                x=sign * middle,
                y=sign * mean,
                color=number,
                label=f"{side.steps.name}: mean steps, fit with its 95 % interval",
            )
        )
    return Panel(
        title="Update curve", x_label="w before the pulse", y_label="step in w", series=tuple(series)
    )


def _residual_panel(fit: UpdateFit) -> Panel:
    series = []
    for number, side in enumerate(fit.sides):
        sign = 1.0 if number == 0 else -1.0
        shown = thinned(len(side.steps.start), 700)
        order = np.argsort(side.steps.start)
        spread = 2 * np.sqrt(fit.noise.variance(side))[order]
        # Of all devices together: their own curves differ.
        block = max(1, len(order) // 60)
        blocks = [slice(k, k + block) for k in range(0, len(order), block)]
        x = np.array([sign * side.steps.start[order][b].mean() for b in blocks])
        edge = np.array([spread[b].mean() for b in blocks])
        series.append(
            Series(
                kind="points",
                x=sign * side.steps.start[shown],
                y=side.residual[shown],
                color=number,
                label=f"single steps {side.steps.name}",
            )
        )
        series.append(Series(kind="band", x=x, y=-edge, upper=edge, color=number))
    return Panel(
        title="Residuals, and twice the fitted spread",
        x_label="w before the pulse",
        y_label="step - its curve, in w",
        series=tuple(series),
    )


def _device_panel(step: FloatArray, variance: FloatArray) -> Panel:
    order = np.argsort(step)
    place = np.arange(1.0, len(order) + 1)
    series = [
        Series(
            kind="bars",
            x=place,
            y=step[order],
            upper=1.96 * np.sqrt(variance[order]),
            label="device, with its 95 % interval",
        )
    ]
    if len(order) > 1:
        mean = float(step.mean())
        spread = max(float(corrected_spread(step, variance)), 0.0)
        ends = np.array([1.0, len(order)])
        series += [
            Series(kind="line", x=ends, y=np.full(2, mean), color=1, label="mean"),
            Series(
                kind="band",
                x=ends,
                y=np.full(2, mean - spread),
                upper=np.full(2, mean + spread),
                color=1,
                label="spread from device to device",
            ),
        ]
    return Panel(
        title="Steps of the devices",
        x_label="device, in the order of its step",
        whole_x=True,
        y_label="step in w",
        series=tuple(series),
    )
