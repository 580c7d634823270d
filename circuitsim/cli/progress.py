"""How training goes on, on standard error: a live display, or plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from circuitsim.cli.output import progress_console, remark

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from circuitsim.study import Bench

__all__ = ["ProgressDisplay"]

_SILENCE = 20.0
"""Seconds after which a log gets a line in the middle of things."""
_BAR_FROM = 100
"""Columns of a terminal that leave room for a bar."""


@dataclass
class _Arm:
    """One estimator under way."""

    name: str
    epochs: int
    done: float
    """Epochs at the start of this run, and the time then."""
    started: float
    at: float = 0.0
    """Epochs by now; a fraction within one."""
    seconds: float = 0.0
    """Time of training, without tests."""
    rate: float = 0.0
    """Steps per second, a running mean."""
    train: str = ""
    test: str = ""
    residual: str = ""

    def left(self, now: float) -> str:
        """Return the time that the remaining epochs will take at the pace so far, tests included."""
        seconds = round((now - self.started) * (self.epochs - self.at) / (self.at - self.done))
        return _clock(seconds)

    def facts(self, now: float) -> str:
        """Return what there is to say beside the epoch, in words that stay the same from line to line."""
        rate = f"{_short(self.rate)} steps/s" if self.rate else ""
        left = f"{self.left(now)} left" if self.at > self.done else ""
        return ", ".join(fact for fact in (self.train, self.test, self.residual, rate, left) if fact)


class ProgressDisplay:
    """A `circuitsim.study.Watcher`; use it in a with statement."""

    record: Path | None = None
    """The record under way."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._arm: _Arm | None = None
        self._last_step = 0.0
        self._last_line = 0.0

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
        self._last_line = time.perf_counter()
        self._start()

    def arm(self, name: str, done: int, epochs: int) -> None:
        now = time.perf_counter()
        self._arm = _Arm(name=name, epochs=epochs, done=done, started=now, at=done)
        self._last_step = now
        if self._live is not None:
            self._task = self._live.add_task(
                name,
                total=epochs,
                completed=done,
                epoch=f"{done}/{epochs}",
                train="",
                test="",
                residual="",
                rate="",
                left="",
            )
        elif done == epochs:
            self._line(f"{name:20s} {epochs} epochs done before", now)

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None:
        arm = self._arm
        if arm is None:
            return
        now = time.perf_counter()
        # The first step of an epoch waits for the test after the epoch before.
        if step > 1 and now > self._last_step:
            rate = 1 / (now - self._last_step)
            arm.rate = rate if arm.rate == 0 else 0.9 * arm.rate + 0.1 * rate
        self._last_step = now
        arm.at = epoch + step / steps
        if running:
            arm.train = _score("train", running)
            if "kcl_residual" in running:
                arm.residual = _residual(running)
        if self._live is not None:
            self._draw(now, epoch=epoch)
        elif now - self._last_line > _SILENCE and step < steps:
            share = 100 * step / steps
            self._line(f"{name:20s} epoch {epoch + 1}/{arm.epochs} {share:.0f} %, {arm.facts(now)}", now)

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        arm = self._arm
        if arm is None:
            return
        now = time.perf_counter()
        arm.seconds += metrics["seconds"]
        arm.at = epoch + 1
        arm.train, arm.test = _score("train", metrics), _score("test", metrics)
        arm.residual = _residual(metrics)
        if self._live is not None:
            self._draw(now, epoch=epoch + 1)
        elif epoch + 1 == arm.epochs:
            facts = [f"{arm.epochs} epochs", arm.test, arm.residual, f"{arm.seconds:.1f} s"]
            self._line(f"{name:20s} {', '.join(fact for fact in facts if fact)}", now)
        elif now - self._last_line > _SILENCE:
            self._line(f"{name:20s} {epoch + 1}/{arm.epochs} epochs, {arm.facts(now)}", now)

    def _line(self, text: str, now: float) -> None:
        self._last_line = now
        remark(text)

    def _draw(self, now: float, *, epoch: int) -> None:
        arm = self._arm
        if self._live is None or self._task is None or arm is None:
            return
        finished = epoch == arm.epochs
        self._live.update(
            self._task,
            completed=arm.at,
            epoch=f"{epoch}/{arm.epochs}",
            train=arm.train.replace("RMS ", ""),
            test=arm.test.replace("RMS ", ""),
            residual=arm.residual,
            rate=f"{_short(arm.rate)}/s" if arm.rate else "",
            left=_clock(round(now - arm.started)) if finished else arm.left(now),
        )

    def _start(self) -> None:
        console = progress_console()
        if not console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn

        def column(field: str) -> TextColumn:
            return TextColumn(f"{{task.fields[{field}]}}", markup=False, justify="right")

        bar = [BarColumn(bar_width=16)] if console.width >= _BAR_FROM else []
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            *bar,
            *(column(field) for field in ("epoch", "train", "test", "residual", "rate", "left")),
            console=console,
            refresh_per_second=8,
        )
        self._live.start()


def _score(part: str, metrics: Mapping[str, float]) -> str:
    """Return the accuracy or the error of the training or the test samples."""
    if f"{part}_accuracy" in metrics:
        return f"{part} {100 * metrics[f'{part}_accuracy']:.2f} %"
    if f"{part}_rms_error" in metrics:
        return f"{part} RMS {1e3 * metrics[f'{part}_rms_error']:.3g} mV"
    return ""


def _residual(metrics: Mapping[str, float]) -> str:
    residual = metrics["kcl_residual"]
    if math.isfinite(residual):
        return f"KCL {residual:.0e}"
    # Of a substrate nobody sees the currents.
    error = metrics.get("programming_error", math.nan)
    return f"write error {100 * error:.2g} %" if math.isfinite(error) else ""


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: int) -> str:
    """Return a duration as m:ss, or as h:mm:ss from an hour on."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
