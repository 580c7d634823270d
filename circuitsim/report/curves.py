"""Figures over epochs: learning, and how well each estimate points along the exact gradient."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class _Score:
    """How a measure of the test set is drawn: ``scale`` times it, in ``unit``."""

    name: str
    title: str
    scale: float
    unit: str
    digits: str
    """Format of a number in labels."""
    short: str
    """Format of a number in titles."""
    more_is_better: bool


_SCORES = {
    "test_accuracy": _Score(
        name="accuracy",
        title="Share of {samples} classified correctly",
        scale=100.0,
        unit="%",
        digits=".2f",
        short=".1f",
        more_is_better=True,
    ),
    "test_rms_error": _Score(
        name="RMS error",
        title="Error of the outputs on {samples}",
        scale=1e3,
        unit="mV",
        digits=".3g",
        short=".3g",
        more_is_better=False,
    ),
}
_COSINE = "cosine/"
_COLUMNS = 4
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def learning_curves(record: RunRecord) -> Figure | None:
    """Draw test accuracy [%] or error [V], and training cost [W], per epoch; None before the first."""
    metric = next((name for name in _SCORES for arm in record.arms.values() if _reached(arm, name)), None)
    if metric is None:
        return None
    score = _SCORES[metric]
    figure = new_figure(5.2, _learning_title(record, metric))
    left, right = figure.subplots(1, 2)
    styles = line_styles(record)
    epochs = max(arm.epochs_done for arm in record.arms.values())
    scale, unit = _watts(record)
    for name, arm in record.arms.items():
        if _reached(arm, metric):
            values = score.scale * arm.metrics[metric]
            label = f"{name} {score.scale * _last(arm, metric):{score.digits}} {score.unit}"
            left.plot(_epochs(values), values, label=label, **styles[name])
        if _reached(arm, "train_cost"):
            cost = arm.metrics["train_cost"] / scale
            right.plot(_epochs(cost), cost, label=name, **styles[name])
    held_out = record.header.get("data", {}).get("held_out", True)
    left.set_title(score.title.format(samples="held-out samples" if held_out else "the training samples"))
    left.set_ylabel(f"test {score.name} [{score.unit}]")
    if not score.more_is_better:
        _log_if_positive(left)
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


def _learning_title(record: RunRecord, metric: str) -> str:
    score = _SCORES[metric]
    final = {name: _last(arm, metric) for name, arm in record.arms.items()}
    final = {name: value for name, value in final.items() if np.isfinite(value)}
    chosen = headline_arm(record)
    name = chosen.name if chosen is not None and chosen.name in final else next(iter(final))
    worst = (min if score.more_is_better else max)(final, key=lambda other: final[other])
    epochs = record.arms[name].epochs_done
    reached = {other: f"{score.scale * final[other]:{score.short}} {score.unit}" for other in (name, worst)}
    what = "of the test set" if score.more_is_better else "from the wanted outputs"
    text = f"{name}: {reached[name]} {what} after {epochs} epoch{'s' * (epochs != 1)}"
    apart = abs(final[name] - final[worst]) > (0.01 if score.more_is_better else 0.1 * final[name])
    if apart and worst != name:
        text += f"; {worst}: {reached[worst]}"
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
