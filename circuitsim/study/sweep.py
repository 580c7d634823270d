"""A sweep from its file to its table: tasks that are not done yet, on an engine, each kept as it comes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import SpecError
from circuitsim.record import provenance
from circuitsim.record.storage import failure
from circuitsim.record.table import Table, write_csv, write_table
from circuitsim.study.engines import Cluster, Engine, InProcess, LocalWorkers
from circuitsim.study.sweep_points import Design, read_design
from circuitsim.study.sweep_spec import RandomDesign
from circuitsim.study.sweep_tasks import Outcome, Task, read_result, tasks_of, write_result

__all__ = ["SweepResult", "SweepWatcher", "run_sweep"]

_STALE = 60.0
"""Seconds after which the unfinished write of a result has been abandoned."""


class SweepWatcher(Protocol):
    """Is told how a sweep goes on; for progress displays."""

    def begin(self, design: Design, folder: Path, tasks: int, done: int) -> None:
        """``done`` of ``tasks`` were finished before."""

    def outcome(self, outcome: Outcome) -> None:
        """A task has come to its end, and is kept if it has a result."""


class _Silent:
    def begin(self, design: Design, folder: Path, tasks: int, done: int) -> None: ...

    def outcome(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult:
    """A finished sweep. ``lost`` are tasks without a result, tried again by the same sweep."""

    folder: Path
    table: Table
    table_file: Path
    csv_file: Path
    tasks: int
    done_before: int
    lost: tuple[Outcome, ...]
    seconds: float


def run_sweep(
    path: str | Path,
    *,
    output: Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    watcher: SweepWatcher | None = None,
) -> SweepResult:
    """Run what a sweep file asks for and is not done yet, and write its table.

    Args:
        path: the sweep.
        output: folder of the results; NAME beside the sweep by default. A result is kept as soon as it is
            there, under the digest of all that it depends on, and never computed again.
        workers: number of local processes; None runs in this one.
        scheduler: address of a dask scheduler to use instead.
        watcher: is told how it goes on.

    Raises:
        SpecError: the sweep is wrong, found before anything runs; or the engine is not there.
        RecordError: a result cannot be written.
    """
    started = time.perf_counter()
    watcher = watcher or _Silent()
    design = read_design(path)
    folder = output or design.file.parent / design.sweep.name
    kept = folder / "tasks"
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(error, "make the folder for the results", kept) from error
    _sweep_out(kept)
    tasks = tasks_of(design)
    results: dict[str, dict[str, Any]] = {}
    for task in tasks:
        found = read_result(task.key, kept)
        if found is not None:
            results[task.key] = found
    # Points may coincide: what is the same is computed once.
    left = list({task.key: task for task in tasks if task.key not in results}.values())
    done = len(tasks) - sum(task.key not in results for task in tasks)
    watcher.begin(design, folder, done + len(left), done)
    lost: list[Outcome] = []
    if left:
        for outcome in _engine(workers, scheduler).run(left):
            if outcome.result is None:
                lost.append(outcome)
            else:
                write_result(outcome.result, kept)
                results[outcome.task.key] = outcome.result
            watcher.outcome(outcome)
    table = _table(design, tasks, results)
    table_file, csv_file = (folder / f"{design.sweep.name}.{kind}" for kind in ("h5", "csv"))
    write_table(table, table_file)
    write_csv(table, csv_file)
    return SweepResult(
        folder=folder,
        table=table,
        table_file=table_file,
        csv_file=csv_file,
        tasks=done + len(left),
        done_before=done,
        lost=tuple(lost),
        seconds=time.perf_counter() - started,
    )


def _engine(workers: int | None, scheduler: str | None) -> Engine:
    if scheduler is not None and workers is not None:
        remedy = "Leave one of the two out."
        raise SpecError("is for local processes only", field="--workers", value=workers, remedy=remedy)
    if scheduler is not None:
        return Cluster(address=scheduler)
    return LocalWorkers(workers=workers) if workers else InProcess()


def _sweep_out(folder: Path) -> None:
    """Remove what writes left behind that were killed half way."""
    for partial in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE:
                partial.unlink()


def _table(design: Design, tasks: Sequence[Task], results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return all rows in design order: point, die, estimator, epoch."""
    sweep = design.sweep
    rows: list[tuple[Task, Mapping[str, Any], float]] = []
    for task in tasks:
        if task.key in results:
            result = results[task.key]
            seconds = result["seconds"]["rows"]
            rows += [(task, row, took) for row, took in zip(result["rows"], seconds, strict=True)]
    columns: dict[str, NDArray[Any]] = {"point": _whole([task.point for task, _, _ in rows])}
    for axis in sweep.axes:
        if axis == "die":
            continue
        values = [design.points[task.point].values[axis] for task, _, _ in rows]
        columns[axis] = _column(values, numeric=sweep.numeric(axis))
    columns["die"] = _whole([task.die for task, _, _ in rows])
    columns["estimator"] = _column([row["estimator"] for _, row, _ in rows], numeric=False)
    columns["epoch"] = _whole([row["epoch"] for _, row, _ in rows])
    names = dict.fromkeys(name for _, row, _ in rows for name in row["metrics"])
    for name in names:
        numbers = [float(row["metrics"].get(name, "nan")) for _, row, _ in rows]
        columns[name] = np.array(numbers, dtype=np.float64)
    columns["error"] = _column([row["error"] for _, row, _ in rows], numeric=False)
    took = np.array([seconds for _, _, seconds in rows], dtype=np.float64)
    return Table(columns=columns, header=_header(design), aside={"seconds": took})


def _whole(values: Sequence[int]) -> NDArray[Any]:
    return np.array(values, dtype=np.int64)


def _column(values: Sequence[Any], *, numeric: bool) -> NDArray[Any]:
    if not numeric:
        return np.array([str(value) for value in values], dtype=np.str_)
    if all(isinstance(value, int) for value in values):
        return _whole(values)
    return np.array(values, dtype=np.float64)


def _header(design: Design) -> dict[str, Any]:
    sweep, base = design.sweep, design.base
    numeric = [axis for axis in sweep.axes if sweep.numeric(axis)]
    return {
        "kind": "sweep",
        "name": sweep.name,
        "measure": sweep.measure,
        "random": isinstance(sweep.design, RandomDesign),
        "axes": {axis: axis in numeric for axis in sweep.axes},
        "x": sweep.figures.x or next(iter(numeric or sweep.axes)),
        "points": len(design.points),
        "dies": sweep.dies,
        "sweep": sweep.model_dump(mode="json"),
        "experiment": base.experiment,
        "network": base.network,
        "deck": base.deck,
        "card": base.card,
        "provenance": provenance(),
    }
