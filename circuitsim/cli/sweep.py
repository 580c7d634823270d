"""`circuitsim sweep`: an experiment at many points and on many dies, to a table and figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    announce_compilation,
    print_json,
    print_line,
    print_table,
    progress_console,
    remark,
)
from circuitsim.errors import SpecError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from circuitsim.study.sweep import SweepResult
    from circuitsim.study.sweep_points import Design
    from circuitsim.study.sweep_tasks import Outcome

_SILENCE = 20.0
"""Seconds after which a log gets another line."""
_MOST_ROWS = 100
_MOST_FAILURES = 5


def command(
    sweep: Path = typer.Argument(..., help="Sweep (.yaml): an experiment, axes, dies."),
    workers: int | None = typer.Option(
        None, "--workers", min=1, help="Processes on this machine; this one alone by default."
    ),
    scheduler: str | None = typer.Option(
        None, "--scheduler", help="A dask.distributed scheduler to use instead: tcp://HOST:8786."
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Folder of the results; NAME/ beside the sweep by default."
    ),
    figures: bool = typer.Option(True, help="Write figures (PNG) into the folder."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Run an experiment over the axes of a sweep, on many dies each; write a table (HDF5, CSV) and figures.

    Every point on every die is kept as soon as it is done: after Ctrl-C or a crash the same command goes
    on, and ends with the same numbers whatever ran where. Prints, as mean and standard deviation over dies,
    test accuracy (%) or, of wanted outputs, their error (mV, root mean square), and the cosine of the
    estimated gradient to the exact one.

    Example: circuitsim sweep runs/sweep-gain.yaml --workers 2

    JSON: {name, folder, table, csv, figures, tasks {total, done_before, lost}, seconds, points [{point, axes,
    estimator, dies, failed, test_accuracy (0 to 1; null without classes), test_rms_error (V; null with
    classes), cosine, relative_error: each {mean, std}; seconds}], failures [{point, die, reason}]}.
    """
    from circuitsim.study.sweep import run_sweep

    announce_compilation()
    if output is not None and output.exists() and not output.is_dir():
        raise SpecError("is a file, not a folder", field="--output", value=str(output))
    with SweepDisplay() as display:
        try:
            done = run_sweep(sweep, output=output, workers=workers, scheduler=scheduler, watcher=display)
        except KeyboardInterrupt:
            display.__exit__()
            _interrupted(display)
            raise typer.Exit(130) from None
    paths: list[Path] = []
    if figures and len(done.table):
        from circuitsim.report.sweep import write_sweep_figures

        paths = write_sweep_figures(done.table, done.folder)
    if as_json:
        _report_json(done, paths)
    else:
        _report(done, paths)
    if done.lost:
        raise typer.Exit(3)


class SweepDisplay:
    """A `circuitsim.study.sweep.SweepWatcher`; use it in a with statement."""

    design: Design | None = None
    folder: Path

    def __init__(self) -> None:
        self.kept = 0
        self.total = 0
        self._before = 0
        self._failed = 0
        self._started = self._last_line = time.perf_counter()
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, design: Design, folder: Path, tasks: int, done: int) -> None:
        sweep = design.sweep
        self.design, self.folder = design, folder
        self.total, self._before, self.kept = tasks, done, done
        points = f"{len(design.points)} points" if len(design.points) != 1 else "1 point"
        remark(f"{sweep.name}: {points}, {sweep.dies} dies each, {tasks} results in {folder}")
        if done:
            remark(f"{done} of them are there already")
        self._started = self._last_line = time.perf_counter()
        console = progress_console()
        if done == tasks or not console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn

        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[failed]}", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._live.add_task(sweep.name, total=tasks, completed=done, left="", failed="")
        self._live.start()

    def outcome(self, outcome: Outcome) -> None:
        if outcome.result is None or outcome.errors:
            self._failed += 1
        self.kept += outcome.result is not None
        now = time.perf_counter()
        new = self.kept - self._before
        left = _clock((now - self._started) * (self.total - self.kept) / max(1, new))
        failed = f"{self._failed} failed" if self._failed else ""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.kept, left=f"{left} left", failed=failed)
        elif now - self._last_line > _SILENCE and self.kept < self.total:
            self._last_line = now
            facts = [f"{self.kept} of {self.total}", f"{left} left", *([failed] if failed else [])]
            remark(", ".join(facts))


def _interrupted(display: SweepDisplay) -> None:
    if display.design is None:
        remark("interrupted before anything ran")
        return
    from circuitsim.study.sweep_tasks import tasks_of

    # Counted on the disk: the interrupt may have come between a write and the word of it.
    keys = {task.key for task in tasks_of(display.design)}
    kept = sum((display.folder / "tasks" / f"{key}.json").exists() for key in keys)
    remark(f"interrupted; {kept} of {len(keys)} results are kept")
    remark("the same command goes on")


def _report_json(done: SweepResult, paths: list[Path]) -> None:
    from circuitsim.report.sweep_summary import summary

    print_json(
        {
            "name": done.table.header["name"],
            "folder": str(done.folder),
            "table": str(done.table_file),
            "csv": str(done.csv_file),
            "figures": [str(path) for path in paths],
            "tasks": {"total": done.tasks, "done_before": done.done_before, "lost": len(done.lost)},
            "seconds": done.seconds,
            "points": summary(done.table),
            "failures": _failures(done),
        }
    )


def _report(done: SweepResult, paths: list[Path]) -> None:
    from circuitsim.report.sweep_summary import summary_rows

    header = done.table.header
    columns, rows = summary_rows(done.table)
    axes = len(header["axes"])
    dies = "1 die" if header["dies"] == 1 else f"{header['dies']} dies, mean ± standard deviation"
    title = f"{header['name']}: {header['points']} points, {dies}"
    print_table(title, columns, rows[:_MOST_ROWS], left=(*range(axes + 1),))
    if len(rows) > _MOST_ROWS:
        print_line(f"{len(rows) - _MOST_ROWS} more rows are in the table\n")
    failures = _failures(done)
    for failure in failures[:_MOST_FAILURES]:
        print_line(f"point {failure['point']}, die {failure['die']}: {failure['reason']}")
    if len(failures) > _MOST_FAILURES:
        print_line(f"and {len(failures) - _MOST_FAILURES} more failures, in the column `error` of the table")
    if done.lost:
        print_line(f"{len(done.lost)} have no result; the same command tries them again")
    if failures:
        print_line("")
    print_line(f"table    {done.table_file}")
    print_line(f"table    {done.csv_file}")
    for path in paths:
        print_line(f"figure   {path}")


def _failures(done: SweepResult) -> list[dict[str, Any]]:
    """Return what failed: estimators that an error stopped, and tasks without a result."""
    columns = done.table.columns
    found = [
        {"point": int(point), "die": int(die), "reason": f"{estimator}: {error}"}
        for point, die, estimator, error in zip(
            *(columns[name].tolist() for name in ("point", "die", "estimator", "error")), strict=True
        )
        if error
    ]
    lost = [
        {"point": outcome.task.point, "die": outcome.task.die, "reason": outcome.lost}
        for outcome in done.lost
    ]
    return found + lost


def _clock(seconds: float) -> str:
    """Return a duration as m:ss, or as h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
