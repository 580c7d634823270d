"""`circuitsim train`: an experiment file to a record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from circuitsim.cli.output import JSON_OPTION, console, make_table, notices, print_json
from circuitsim.errors import RecordError, SpecError

if TYPE_CHECKING:
    from circuitsim.record import RunRecord
    from circuitsim.study import Bench


def command(
    experiment: Path = typer.Argument(
        ..., help="Experiment (.yaml), or an unfinished record (.h5) with --resume."
    ),
    seed: int | None = typer.Option(
        None, "--seed", min=0, help="Seed of die, conductances and order of samples."
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with the newest unfinished record of this seed."
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Record to write; NAME-sSEED.h5 by default."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the file given with -o."),
    figures: bool = typer.Option(True, help="Write figures (PNG) into a folder beside the record."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Train every estimator of an experiment on one die; write a record (HDF5) and figures.

    Prints test accuracy (%), training time (s), and the cosine of each crossbar's estimated gradient to
    the exact one. Ctrl-C stops after the last whole epoch; --resume goes on to the same numbers.

    Example: [bold]circuitsim train runs/demo.yaml --seed 3[/bold]
    """
    from circuitsim.study import resume_experiment, run_experiment

    record: Path | None = output
    watcher = _Display(quiet=as_json)
    try:
        with watcher:
            if experiment.suffix == ".h5":
                if not resume:
                    raise SpecError(
                        "is a record", file=experiment, remedy="Add --resume, or use: circuitsim show."
                    )
                run = resume_experiment(experiment, watcher=watcher)
            else:
                record = _unfinished(experiment, seed, output) if resume else None
                if record is not None:
                    run = resume_experiment(record, watcher=watcher)
                else:
                    run = run_experiment(
                        experiment, seed=seed, output=output, overwrite=overwrite, watcher=watcher
                    )
    except KeyboardInterrupt:
        where = watcher.record
        if where is not None:
            notices().print(f"\ninterrupted; {where} holds every whole epoch. Go on with:")
            notices().print(f"  circuitsim train {where} --resume")
        raise typer.Exit(130) from None
    paths: list[Path] = []
    if figures:
        from circuitsim.report import write_figures

        folder = run.path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_figures(run, folder)
    _report(run, paths, as_json=as_json)


def _unfinished(experiment: Path, seed: int | None, output: Path | None) -> Path | None:
    from circuitsim.record import list_records
    from circuitsim.study import load_experiment

    spec = load_experiment(experiment)
    wanted = spec.seed if seed is None else seed
    if output is not None:
        if not output.exists():
            raise RecordError("does not exist, so nothing can be resumed", file=output)
        return output
    found = [
        summary
        for summary in list_records(experiment.parent)
        if summary.problem is None
        and summary.header.get("name") == spec.name
        and summary.header.get("seed") == wanted
    ]
    left = [summary.path for summary in found if not summary.finished]
    if left:
        return max(left, key=lambda path: path.stat().st_mtime)
    if found:
        finished = max((summary.path for summary in found), key=lambda path: path.stat().st_mtime)
        notices().print(f"{finished} is finished: nothing to resume")
        return finished
    notices().print("no record of this experiment and seed yet: starting one")
    return None


def _report(run: RunRecord, paths: list[Path], *, as_json: bool) -> None:
    from circuitsim.report.tables import headline, result_rows

    columns, rows, results = result_rows(run)
    if as_json:
        print_json(
            {
                **headline(run),
                "record": str(run.path),
                "estimators": results,
                "figures": [str(path) for path in paths],
            }
        )
        return
    out = console()
    card = run.header["card"]["name"]
    out.print(
        make_table(f"{run.header['name']}: one die (seed {run.header['seed']}, card {card})", columns, rows)
    )
    out.print("Cosine: estimated to exact gradient on a probe batch, mean over epochs.", style="dim")
    out.print(f"record   {run.path}")
    for path in paths:
        out.print(f"figure   {path}")
    network = run.header["experiment"]["network"]
    out.print("Try next:")
    out.print(f"  circuitsim show {run.path}")
    out.print(f"  circuitsim train EXPERIMENT.yaml --seed {run.header['seed'] + 1}     another die")
    if Path("netlists/hopfield.yaml").exists() and not network.endswith("hopfield.yaml"):
        out.print("  circuitsim gradcheck netlists/hopfield.yaml     loops: where nudged-only fails")


class _Display:
    """Progress on standard error; nothing where there is no terminal but one line an estimator."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._rate = 0.0
        self._last = 0.0
        self.record: Path | None = None

    def __enter__(self) -> _Display:
        if not self._quiet:
            self._progress = Progress(
                TextColumn("{task.description:22s}"),
                BarColumn(bar_width=24),
                TextColumn("epoch {task.fields[epoch]}"),
                TextColumn("test {task.fields[accuracy]}"),
                TextColumn("KCL {task.fields[residual]}"),
                TextColumn("{task.fields[rate]} steps/s"),
                TimeRemainingColumn(compact=True),
                console=notices(),
                refresh_per_second=8,
            )
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begin(self, bench: Bench, record: Path) -> None:
        self.record = record
        if self._quiet:
            return
        data, netlist = bench.data, bench.plan.netlist
        devices = sum(crossbar.devices for crossbar in netlist.crossbars)
        notices().print(
            f"{bench.experiment.name}: {data.name}, {len(data.train_labels)} to learn from, "
            f"{len(data.test_labels)} held out; network {netlist.title}, {devices} devices, "
            f"{bench.plan.method} method; die {bench.chip.seed}, card {bench.card.name}"
        )

    def arm(self, name: str, done: int, epochs: int) -> None:
        if self._progress is not None:
            self._task = self._progress.add_task(
                name,
                total=epochs,
                completed=done,
                epoch=f"{done}/{epochs}",
                accuracy="   -  ",
                residual="  -  ",
                rate="   -",
            )

    def step(self, name: str, epoch: int, step: int, steps: int) -> None:
        if self._progress is None or self._task is None:
            return
        now = time.perf_counter()
        if step > 1 and now > self._last:
            rate = 1 / (now - self._last)
            self._rate = rate if self._rate == 0 else 0.9 * self._rate + 0.1 * rate
        self._last = now
        self._progress.update(self._task, completed=epoch + step / steps, rate=f"{self._rate:4.0f}")

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        if self._progress is None or self._task is None:
            return
        total: Any = self._progress.tasks[self._task].total
        self._progress.update(
            self._task,
            completed=epoch + 1,
            epoch=f"{epoch + 1}/{total:.0f}",
            accuracy=f"{100 * metrics['test_accuracy']:5.2f}%",
            residual=f"{metrics['kcl_residual']:.0e}",
        )
