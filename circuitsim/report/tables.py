"""A record's results as rows: for terminals, JSON and figures alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from circuitsim.record import ArmRecord, RunRecord
from circuitsim.units import engineering

__all__ = ["energy_line", "headline", "result_rows", "score_cell"]


def headline(record: RunRecord) -> dict[str, Any]:
    """Return the run's main numbers: of the arm named in its header, or the first.

    ``test_accuracy`` is None where outputs were wanted rather than classes, ``test_rms_error`` [V] where
    there were classes.
    """
    name = record.header.get("figures", {}).get("arm")
    arm = record.arms.get(name) or next(iter(record.arms.values()))
    return {
        "estimator": arm.name,
        "test_accuracy": _last(arm, "test_accuracy"),
        "test_rms_error": _last(arm, "test_rms_error"),
        "epochs": arm.epochs_done,
        "seconds": _total(arm, "seconds"),
    }


def result_rows(record: RunRecord) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Return column titles, rows of text, and the same numbers per estimator as plain values.

    Of a substrate, ``programming_error`` is the last RMS difference of conductances read back from those
    asked for, over the window. The cosine to the exact gradient is the mean over epochs, on the probe batch.
    """
    first = next(iter(record.arms.values()))
    crossbars = [metric.removeprefix("cosine/") for metric in first.metrics if metric.startswith("cosine/")]
    # Where every arm came to its end the column would say the same in every row.
    whole = len({(arm.epochs_done, arm.epochs) for arm in record.arms.values()}) == 1
    whole = whole and first.epochs_done == first.epochs
    wanted = "test_rms_error" in first.metrics
    on_substrate = "programming_error" in first.metrics
    columns = [
        "estimator",
        *(["test RMS [mV]"] if wanted else ["test [%]"]),
        *([] if whole else ["epochs"]),
        "time [s]",
        *(f"cosine {name}" for name in crossbars),
        "write error [%]" if on_substrate else "KCL residual",
    ]
    rows, results = [], []
    for arm in record.arms.values():
        accuracy, rms = _last(arm, "test_accuracy"), _last(arm, "test_rms_error")
        residual = _worst(arm, "kcl_residual")
        cosines = {name: _mean(arm, f"cosine/{name}") for name in crossbars}
        result = {
            "estimator": arm.name,
            "test_accuracy": accuracy,
            "test_rms_error": rms,
            "epochs": arm.epochs_done,
            "seconds": _total(arm, "seconds"),
            "cosine": cosines,
            "kcl_residual": residual,
            "settling_time": _last(arm, "settling_time"),
            "inference_energy": _last(arm, "inference_energy"),
            "step_energy": _last(arm, "step_energy"),
            "writes": _total(arm, "writes"),
        }
        last = f"{residual:.0e}" if residual is not None else ""
        if on_substrate:
            error = result["programming_error"] = _last(arm, "programming_error")
            last = "" if error is None else f"{100 * error:.2g}"
        results.append(result)
        label = f"{arm.name} (exact)" if arm.name.startswith("adjoint") else arm.name
        rows.append(
            [
                label,
                score_cell(rms if wanted else accuracy, in_volts=wanted),
                *([] if whole else [f"{arm.epochs_done}/{arm.epochs}"]),
                f"{result['seconds']:.1f}",
                *(_cosine(cosines[name]) for name in crossbars),
                last,
            ]
        )
    return columns, rows, results


def energy_line(record: RunRecord) -> str | None:
    """Return what the run's main estimator takes, in words; None where nothing stores charge."""
    arm = record.arms[headline(record)["estimator"]]
    settling, inference = _last(arm, "settling_time"), _last(arm, "inference_energy")
    step, writes = _last(arm, "step_energy"), _total(arm, "writes")
    if not settling or inference is None:
        return None
    words = f"{engineering(inference, 'J', 3)} per inference, settled in {engineering(settling, 's', 3)}"
    if step is not None:
        words += f"; {engineering(step, 'J', 3)} per training step"
    return words + (f"; {writes:.3g} writes or pulses in all" if writes else "")


def score_cell(value: float | None, *, in_volts: bool) -> str:
    """Return an accuracy in %, or an error [V] in mV, as the cell of a column that says so."""
    if value is None:
        return ""
    return f"{1e3 * value:.3g}" if in_volts else f"{100 * value:.2f}"


def _cosine(value: float | None) -> str:
    if value is None:
        return ""
    if 0 < 1 - value < 5e-5:
        return f"1-{1 - value:.0e}"
    return f"{value:.4f}"


def _series(arm: ArmRecord, metric: str) -> np.ndarray:
    values = np.asarray(arm.metrics.get(metric, []), dtype=np.float64)
    return values[np.isfinite(values)]


def _last(arm: ArmRecord, metric: str) -> float | None:
    values = _series(arm, metric)
    return float(values[-1]) if len(values) else None


def _mean(arm: ArmRecord, metric: str) -> float | None:
    values = _series(arm, metric)
    return float(values.mean()) if len(values) else None


def _worst(arm: ArmRecord, metric: str) -> float | None:
    values = _series(arm, metric)
    return float(values.max()) if len(values) else None


def _total(arm: ArmRecord, metric: str) -> float:
    return float(_series(arm, metric).sum())
