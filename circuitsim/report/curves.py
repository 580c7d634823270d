"""Figures over epochs: learning, and how well each estimate points along the exact gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from circuitsim.record import ArmRecord, RunRecord
from circuitsim.report.style import FAINT, count_epochs, headline_arm, line_styles, new_figure

__all__ = ["FLOOR", "gradient_alignment", "learning_curves"]

FLOOR = 2.0**-53
"""Smallest 1 - cosine that is drawn: rounding of a cosine near 1 hides all below."""

_COSINE = "cosine/"
_COLUMNS = 4
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def learning_curves(record: RunRecord) -> Figure | None:
    """Draw test accuracy [%] and training cost [W] per epoch; None before the first epoch."""
    if not any(_reached(arm, "test_accuracy") for arm in record.arms.values()):
        return None
    figure = new_figure(5.2, _learning_title(record))
    left, right = figure.subplots(1, 2)
    styles = line_styles(record)
    epochs = max(arm.epochs_done for arm in record.arms.values())
    scale, unit = _watts(record)
    for name, arm in record.arms.items():
        if _reached(arm, "test_accuracy"):
            accuracy = 100 * arm.metrics["test_accuracy"]
            label = f"{name} {_last(arm, 'test_accuracy'):.2%}".replace("%", " %")
            left.plot(_epochs(accuracy), accuracy, label=label, **styles[name])
        if _reached(arm, "train_cost"):
            cost = arm.metrics["train_cost"] / scale
            right.plot(_epochs(cost), cost, label=name, **styles[name])
    left.set_title("Held-out samples classified correctly")
    left.set_ylabel("test accuracy [%]")
    right.set_title("Cost while learning, mean over the epoch")
    right.set_ylabel(f"training cost [{unit}]")
    _log_if_positive(right)
    for axes in (left, right):
        count_epochs(axes, epochs)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), handlelength=3.2)
    return figure


def gradient_alignment(record: RunRecord) -> Figure | None:
    """Draw each arm's cosine to the exact gradient, one panel per crossbar, and 1 - cosine below.

    None where no arm has measured it.
    """
    crossbars = _crossbars(record)
    if not crossbars:
        return None
    columns = min(_COLUMNS, len(crossbars))
    bands = -(-len(crossbars) // columns)
    figure = new_figure(0.9 + 5.0 * bands, _alignment_title(record, crossbars))
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    styles = line_styles(record)
    epochs = max(arm.epochs_done for arm in record.arms.values())
    low = min(float(np.nanmin(_cosine(arm, name))) for arm, name in _measured(record, crossbars))
    for place in range(bands * columns):
        top, bottom = (grid[2 * (place // columns) + row][place % columns] for row in (0, 1))
        if place >= len(crossbars):
            top.remove()
            bottom.remove()
            continue
        _alignment_panels(record, crossbars[place], top, bottom, styles)
        top.set_ylim(min(-0.05, low - 0.05 * (1 - low)), 1.05)
        count_epochs(top, epochs)
        count_epochs(bottom, epochs)
        top.set_xlabel("")
        top.tick_params(labelbottom=False)
        if place % columns == 0:
            top.set_ylabel("cosine to exact gradient")
            bottom.set_ylabel("1 − cosine")
        else:
            top.tick_params(labelleft=False)
            bottom.tick_params(labelleft=False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), handlelength=3.2)
    return figure


def _alignment_panels(
    record: RunRecord, crossbar: str, top: Axes, bottom: Axes, styles: dict[str, dict[str, Any]]
) -> None:
    top.set_title(crossbar)
    bottom.set_yscale("log")
    bottom.set_ylim(FLOOR / 1e3, 10)
    for name, arm in record.arms.items():
        cosine = _cosine(arm, crossbar)
        top.plot(_epochs(cosine), cosine, label=name, **styles[name])
        bottom.plot(_epochs(cosine), np.maximum(1 - cosine, FLOOR), label=name, **styles[name])
    bottom.set_yticks([10.0**power for power in range(-16, 1, 4)])
    bottom.minorticks_off()
    bottom.axhline(FLOOR, color=FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    bottom.annotate(
        "limit of double precision",
        (0.98, FLOOR),
        xycoords=("axes fraction", "data"),
        xytext=(0, -5),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=FAINT,
    )


def _learning_title(record: RunRecord) -> str:
    final = {name: _last(arm, "test_accuracy") for name, arm in record.arms.items()}
    final = {name: value for name, value in final.items() if np.isfinite(value)}
    chosen = headline_arm(record)
    name = chosen.name if chosen is not None and chosen.name in final else next(iter(final))
    worst = min(final, key=lambda other: final[other])
    epochs = record.arms[name].epochs_done
    text = f"{name}: {100 * final[name]:.1f} % of the test set after {epochs} epoch{'s' * (epochs != 1)}"
    if final[name] - final[worst] > 0.01:
        text += f"; {worst}: {100 * final[worst]:.1f} %"
    return text


def _alignment_title(record: RunRecord, crossbars: list[str]) -> str:
    wrong: dict[str, list[str]] = {}
    error = FLOOR
    for arm, crossbar in _measured(record, crossbars):
        found = float(np.nanmean(1 - _cosine(arm, crossbar)))
        if found > 0.1:
            wrong.setdefault(arm.name, []).append(crossbar)
        else:
            error = max(error, found)
    if len(wrong) > 1:
        return f"{', '.join(wrong)} miss the exact gradient"
    if not wrong:
        return f"Every estimate has the direction of the exact gradient, to {_order(error)}"
    [(name, places)] = wrong.items()
    where = f"in {len(places)} of {len(crossbars)} crossbars"
    if len(record.arms) == 1:
        return f"{name} misses the exact gradient {where}"
    return f"{name} misses the gradient {where}; all else agrees to {_order(error)}"


def _watts(record: RunRecord) -> tuple[float, str]:
    """Return the unit in which the largest training cost reads well, in W and by name."""
    costs = [np.abs(arm.metrics["train_cost"]) for arm in record.arms.values() if _reached(arm, "train_cost")]
    largest = max((float(np.nanmax(cost)) for cost in costs), default=1.0)
    for scale, unit in ((1.0, "W"), (1e-3, "mW"), (1e-6, "µW"), (1e-9, "nW"), (1e-12, "pW")):
        if largest >= scale:
            return scale, unit
    return 1.0, "W"


def _order(value: float) -> str:
    digits, _, power = f"{value:.0e}".partition("e")
    return f"{digits}×10{str(int(power)).translate(_SUPERSCRIPT)}"


def _crossbars(record: RunRecord) -> list[str]:
    names: dict[str, None] = {}
    for arm in record.arms.values():
        for metric in arm.metrics:
            if metric.startswith(_COSINE) and _reached(arm, metric):
                names[metric.removeprefix(_COSINE)] = None
    return list(names)


def _measured(record: RunRecord, crossbars: list[str]) -> list[tuple[ArmRecord, str]]:
    pairs = [(arm, name) for arm in record.arms.values() for name in crossbars]
    return [(arm, name) for arm, name in pairs if _reached(arm, _COSINE + name)]


def _cosine(arm: ArmRecord, crossbar: str) -> NDArray[np.float64]:
    return arm.metrics.get(_COSINE + crossbar, np.full(arm.epochs_done, np.nan))


def _reached(arm: ArmRecord, metric: str) -> bool:
    return metric in arm.metrics and bool(np.isfinite(arm.metrics[metric]).any())


def _last(arm: ArmRecord, metric: str) -> float:
    values = arm.metrics.get(metric, np.zeros(0))
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else float("nan")


def _epochs(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.arange(1, len(values) + 1)


def _log_if_positive(axes: Axes) -> None:
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]
    values = np.concatenate(lines) if lines else np.zeros(0)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
