"""Figures in time: node voltages of a run, and how far learning has come while a network relaxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from circuitsim.report.style import FAINT, PALETTE, new_figure, save, styled

__all__ = ["draw_finite_time", "draw_transient"]

FloatArray = NDArray[np.float64]

_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"), (1e-15, "f"))
_FLOOR = 1e-17
"""Errors below it, 0 included, are drawn here."""


def draw_transient(
    time: FloatArray, voltages: Mapping[str, FloatArray], path: str | Path, *, title: str
) -> None:
    """Write voltages [V] (T,) of nodes by name against time [s] (T,) as PNG.

    Raises:
        RecordError: the file cannot be written.
    """
    seconds, second = _scale(float(time[-1]) if len(time) else 1.0)
    largest = max((float(np.abs(v).max(initial=0.0)) for v in voltages.values()), default=1.0)
    volts, volt = _scale(largest)
    with styled():
        figure = new_figure(4.8, title)
        axes = figure.subplots()
        for number, (name, v) in enumerate(voltages.items()):
            axes.plot(time / seconds, v / volts, color=PALETTE[number % len(PALETTE)], label=name)
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        axes.set_xlabel(f"time [{second}s]")
        axes.set_ylabel(f"voltage [{volt}V]")
        axes.margins(x=0)
        if voltages:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        save(figure, Path(path))


def draw_finite_time(
    time: FloatArray,
    continuous: FloatArray,
    clocked: FloatArray | None,
    path: str | Path,
    *,
    name: str,
    depth: int,
    marks: Sequence[tuple[int, float]],
) -> None:
    """Write the gradient's error against time as PNG.

    Args:
        time: (T,) in time constants.
        continuous: (T,) relative error while the network relaxes.
        clocked: (K,) relative error after 0, 1, ... unit steps, or None.
        path: the file.
        name: the network's.
        depth: layers L.
        marks: (multiple of L, error there) to point out on the curve.

    Raises:
        RecordError: the file cannot be written.
    """
    finding = f"{name}: the relaxing circuit comes closer to the gradient with every time constant"
    if clocked is not None and clocked[2 * depth] < 1e-9:
        finding = f"{name}: {2 * depth} clocked steps are backpropagation; relaxing only comes close"
    with styled():
        figure = new_figure(5.0, finding)
        axes = figure.subplots()
        axes.plot(time, _shown(continuous), color=PALETTE[0], label="relaxing: continuous time")
        if clocked is not None:
            axes.plot(
                np.arange(len(clocked)),
                _shown(clocked),
                color=PALETTE[1],
                marker="o",
                markersize=6,
                linestyle=(0, (1, 2)),
                linewidth=1.2,
                label="clocked: every node settles once a step",
            )
            exact = np.flatnonzero(clocked <= _FLOOR * 10)
            if len(exact):
                axes.annotate(
                    "exact to rounding",
                    (float(exact[0]), float(_shown(clocked)[exact[0]])),
                    xytext=(6, 8),
                    textcoords="offset points",
                    color=PALETTE[1],
                )
        for multiple, error in marks:
            place = multiple * depth
            axes.plot(place, max(error, _FLOOR), marker="D", color=PALETTE[0], markersize=6)
            axes.annotate(
                f"{multiple} L: {error:.1e}",
                (place, max(error, _FLOOR)),
                xytext=(8, 4),
                textcoords="offset points",
            )
        _decades(axes, continuous, clocked)
        axes.set_xlabel(f"time [time constants, clock steps]; L = {depth} layers")
        axes.set_ylabel("relative error of the gradient [1]")
        axes.set_xlim(0, float(time[-1]))
        axes.legend(loc="upper right")
        save(figure, Path(path))


def _decades(axes: Axes, continuous: FloatArray, clocked: FloatArray | None) -> None:
    shown = [_shown(continuous)] + ([] if clocked is None else [_shown(clocked)])
    low = min(float(part.min()) for part in shown)
    high = max(float(part.max()) for part in shown)
    axes.set_yscale("log")
    axes.set_ylim(low / 5, high * 5)
    axes.yaxis.set_major_locator(LogLocator(numticks=10))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _shown(error: FloatArray) -> FloatArray:
    return np.maximum(error, _FLOOR)


def _scale(size: float) -> tuple[float, str]:
    """Return the largest unit prefix at which ``size`` is at least 1."""
    for scale, prefix in _PREFIXES:
        if size >= 0.9995 * scale:
            return scale, prefix
    return 1.0, ""
