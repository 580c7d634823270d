"""How training goes on, on standard error: a live display, or one line an estimator in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from circuitsim.cli.output import progress_console, remark

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from circuitsim.study import Bench

__all__ = ["ProgressDisplay"]


class ProgressDisplay:
    """A `circuitsim.study.Watcher`; use it in a with statement."""

    record: Path | None = None
    """The record under way."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._epochs = 0
        self._seconds = 0.0
        self._rate = 0.0
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, bench: Bench, record: Path) -> None:
        self.record = record
        data, netlist = bench.data, bench.plan.netlist
        devices = sum(crossbar.devices for crossbar in netlist.crossbars)
        tested = f"{len(data.test_labels)} held out" if data.held_out else "the same ones to test on"
        remark(
            f"{bench.experiment.name}: {data.name}, {len(data.train_labels)} samples to learn from, {tested}"
        )
        kind = "deck" if bench.network is None else "network"
        remark(
            f"{kind} {netlist.title}, {devices} devices, {bench.plan.method} method; "
            f"die {bench.chip.seed}, card {bench.card.name}"
        )
        self._start()

    def arm(self, name: str, done: int, epochs: int) -> None:
        self._epochs, self._seconds, self._rate = epochs, 0.0, 0.0
        if self._live is not None:
            self._task = self._live.add_task(
                name,
                total=epochs,
                completed=done,
                epoch=f"{done}/{epochs}",
                score="",
                residual="",
                rate="",
            )
        elif done == epochs:
            remark(f"{name:20s} {epochs} epochs done before")

    def step(self, name: str, epoch: int, step: int, steps: int) -> None:
        if self._live is None or self._task is None:
            return
        now = time.perf_counter()
        if step > 1 and now > self._last:
            rate = 1 / (now - self._last)
            self._rate = rate if self._rate == 0 else 0.9 * self._rate + 0.1 * rate
        self._last = now
        self._live.update(self._task, completed=epoch + step / steps, rate=f"{self._rate:.0f} steps/s")

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        self._seconds += metrics["seconds"]
        if "test_accuracy" in metrics:
            score = f"{100 * metrics['test_accuracy']:.2f} %"
        else:
            score = f"RMS {1e3 * metrics['test_rms_error']:.3g} mV"
        residual = f"KCL {metrics['kcl_residual']:.0e}"
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task,
                completed=epoch + 1,
                epoch=f"{epoch + 1}/{self._epochs}",
                score=score,
                residual=residual,
            )
        elif epoch + 1 == self._epochs:
            remark(f"{name:20s} {self._epochs} epochs, test {score}, {residual}, {self._seconds:.1f} s")

    def _start(self) -> None:
        console = progress_console()
        if not console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        def column(field: str) -> TextColumn:
            return TextColumn(f"{{task.fields[{field}]}}", markup=False, justify="right")

        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            *(column(field) for field in ("epoch", "score", "residual", "rate")),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            refresh_per_second=8,
        )
        self._live.start()
