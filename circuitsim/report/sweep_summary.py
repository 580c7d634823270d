"""What a sweep comes to: one result per die, means and spreads over dies; for terminals, JSON and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.record.table import Table

__all__ = ["DieResults", "die_results", "summary", "summary_rows"]

_COSINE, _ERROR = "cosine/", "relative_error/"
_SCORES = ("test_accuracy", "test_rms_error")


@dataclass(frozen=True, kw_only=True, eq=False)
class DieResults:
    """What each estimator reached on each die, in the order of the table.

    Attributes:
        axes: name -> values, the same for every die of a point.
        score: at the last epoch: accuracy (0 to 1), or RMS error [V]; NaN where the estimator failed.
        score_name: ``test_accuracy`` or ``test_rms_error``; None where neither was measured.
        cosine: of the estimate to the exact gradient, mean over epochs and crossbars.
        relative_error: of the estimate, likewise.
        seconds: that it took, without tests.
        failed: whether an error ended it.
    """

    point: NDArray[np.int64]
    axes: dict[str, NDArray[Any]]
    die: NDArray[np.int64]
    estimator: NDArray[np.str_]
    score: NDArray[np.float64]
    score_name: str | None
    cosine: NDArray[np.float64]
    relative_error: NDArray[np.float64]
    seconds: NDArray[np.float64]
    failed: NDArray[np.bool_]


def die_results(table: Table) -> DieResults:
    """Return one result per point, die and estimator."""
    columns = table.columns
    keys = list(zip(*(columns[name].tolist() for name in ("point", "die", "estimator")), strict=True))
    places: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        places.setdefault(key, []).append(row)
    errors = columns["error"]
    score_name = next((name for name in _SCORES if name in columns), None)
    kinds = [[c for name, c in columns.items() if name.startswith(kind)] for kind in (_COSINE, _ERROR)]
    score: list[float] = []
    cosine: list[float] = []
    relative_error: list[float] = []
    failed: list[bool] = []
    for rows in places.values():
        wrong = any(errors[row] for row in rows)
        failed.append(wrong)
        last = columns[score_name][rows[-1]] if score_name is not None else np.nan
        score.append(np.nan if wrong else last)
        for means, found in zip((cosine, relative_error), kinds, strict=True):
            values = np.array([column[rows] for column in found])
            values = values[np.isfinite(values)]
            means.append(values.mean() if len(values) and not wrong else np.nan)
    first = [rows[0] for rows in places.values()]
    return DieResults(
        point=columns["point"][first],
        axes={axis: columns[axis][first] for axis in table.header["axes"]},
        die=columns["die"][first],
        estimator=columns["estimator"][first],
        score=np.array(score, dtype=np.float64),
        score_name=score_name,
        cosine=np.array(cosine, dtype=np.float64),
        relative_error=np.array(relative_error, dtype=np.float64),
        seconds=np.array([table.aside["seconds"][rows].sum() for rows in places.values()]),
        failed=np.array(failed, dtype=np.bool_),
    )


def summary(table: Table) -> list[dict[str, Any]]:
    """Return mean and standard deviation over dies for every point and estimator, as plain values.

    Keys: ``point``, ``axes``, ``estimator``, ``dies`` (with a result), ``failed``, ``test_accuracy`` or
    ``test_rms_error``, ``cosine`` and ``relative_error`` to the exact gradient, these as ``{mean, std}``
    with ``std`` None for a single die, and ``seconds``, the median over dies.
    """
    found = die_results(table)
    groups: dict[tuple[int, str], list[int]] = {}
    for row, key in enumerate(zip(found.point.tolist(), found.estimator.tolist(), strict=True)):
        groups.setdefault(key, []).append(row)
    rows = []
    for (point, estimator), members in groups.items():
        rows.append(
            {
                "point": point,
                "axes": {axis: values[members[0]].item() for axis, values in found.axes.items()},
                "estimator": estimator,
                "dies": int((~found.failed[members]).sum()),
                "failed": int(found.failed[members].sum()),
                **{
                    name: _spread(found.score[members]) if name == found.score_name else None
                    for name in _SCORES
                },
                "cosine": _spread(found.cosine[members]),
                "relative_error": _spread(found.relative_error[members]),
                "seconds": float(np.median(found.seconds[members])),
            }
        )
    return rows


def summary_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return column titles and rows of text, one per point and estimator.

    After training the score on the test set is shown; before it the gradient's relative error.
    """
    rows = summary(table)
    axes = list(table.header["axes"])
    trained = table.header["measure"] == "training"
    in_volts = any(row["test_rms_error"] for row in rows)
    failed = any(row["failed"] for row in rows)
    score = "test RMS [mV]" if in_volts else "test [%]"
    columns = [*axes, "estimator", "dies", *(["failed"] if failed else [])]
    columns += [score, "cosine", "time [s]"] if trained else ["cosine", "relative error", "time [ms]"]
    lines = []
    for row in rows:
        line = [*(_cell(row["axes"][axis]) for axis in axes), row["estimator"], str(row["dies"])]
        if failed:
            line.append(str(row["failed"] or ""))
        if trained and in_volts:
            line.append(_plus_minus(row["test_rms_error"], 1e3, ".3g"))
        elif trained:
            line.append(_plus_minus(row["test_accuracy"], 100.0, ".2f"))
        line.append(_cosine(row["cosine"]))
        if not trained:
            line.append(_plus_minus(row["relative_error"], 1.0, ".1e"))
        line.append(f"{row['seconds']:.2f}" if trained else f"{1e3 * row['seconds']:.1f}")
        lines.append(line)
    return columns, lines


def _spread(values: NDArray[np.float64]) -> dict[str, float | None] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
    }


def _plus_minus(spread: dict[str, float | None] | None, scale: float, digits: str) -> str:
    if spread is None or spread["mean"] is None:
        return ""
    text = f"{scale * spread['mean']:{digits}}"
    return text if spread["std"] is None else f"{text} ± {scale * spread['std']:{digits}}"


def _cosine(spread: dict[str, float | None] | None) -> str:
    if spread is None or spread["mean"] is None:
        return ""
    distance = 1 - spread["mean"]
    text = f"1-{distance:.0e}" if 0 < distance < 5e-5 else f"{spread['mean']:.4f}"
    return text if spread["std"] is None else f"{text} ± {spread['std']:.0e}"


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
