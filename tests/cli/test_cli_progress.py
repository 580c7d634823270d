"""The lines of a log while training goes on, at a pace that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from circuitsim.cli import progress
from circuitsim.cli.progress import ProgressDisplay


class Clock:
    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def display(clock: Clock, capsys: pytest.CaptureFixture[str]) -> Iterator[ProgressDisplay]:
    """A display that was told what begins, on something else than a terminal."""
    bench: Any = SimpleNamespace(
        experiment=SimpleNamespace(name="images"),
        data=SimpleNamespace(name="mnist", train_labels=range(60), test_labels=range(10), held_out=True),
        network=object(),
        plan=SimpleNamespace(netlist=SimpleNamespace(title="small", crossbars=()), method="layered"),
        chip=SimpleNamespace(seed=3),
        card=SimpleNamespace(name="spread"),
    )
    with ProgressDisplay() as display:
        display.begin(bench, "images-s3.h5")  # type: ignore[arg-type]
        assert capsys.readouterr().err.splitlines() == [
            "images: mnist, 60 samples to learn from, 10 held out",
            "network small, 0 devices, layered method; die 3, card spread",
        ]
        yield display


NAME = f"{'adjoint':20s}"
TESTED = "test 95.50 %, KCL 3e-16"
METRICS = {"train_accuracy": 0.91, "test_accuracy": 0.955, "kcl_residual": 3e-16, "seconds": 40.0}


def train(display: ProgressDisplay, clock: Clock, *, pace: float, epochs: int = 3, done: int = 0) -> None:
    """Ten steps an epoch, ``pace`` seconds each, and as long as one step for the test after it."""
    display.arm("adjoint", done, epochs)
    for epoch in range(done, epochs):
        for step in range(1, 11):
            clock.now += pace
            display.step("adjoint", epoch, step, 10, {"train_cost": 1.0, "train_accuracy": step / 20})
        clock.now += pace
        display.epoch("adjoint", epoch, METRICS | {"seconds": 10 * pace})


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_short_run_is_one_line(
    display: ProgressDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    train(display, clock, pace=0.5)
    assert lines(capsys) == [f"{NAME} 3 epochs, {TESTED}, 15.0 s"]


def test_a_long_epoch_gets_lines_every_twenty_seconds(
    display: ProgressDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    train(display, clock, pace=8, epochs=2)
    # An epoch takes 80 s and its test 8 s; the pace before the first test does not know of tests.
    assert lines(capsys) == [
        f"{NAME} epoch 1/2 30 %, train 15.00 %, 0.12 steps/s, 2:16 left",
        f"{NAME} epoch 1/2 60 %, train 30.00 %, 0.12 steps/s, 1:52 left",
        f"{NAME} epoch 1/2 90 %, train 45.00 %, 0.12 steps/s, 1:28 left",
        f"{NAME} epoch 2/2 10 %, train 5.00 %, {TESTED}, 0.12 steps/s, 1:19 left",
        f"{NAME} epoch 2/2 40 %, train 20.00 %, {TESTED}, 0.12 steps/s, 0:51 left",
        f"{NAME} epoch 2/2 70 %, train 35.00 %, {TESTED}, 0.12 steps/s, 0:25 left",
        f"{NAME} 2 epochs, {TESTED}, 160.0 s",
    ]


def test_a_long_run_of_short_epochs_gets_lines_after_epochs(
    display: ProgressDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    train(display, clock, pace=0.11, epochs=40)
    *between, last = lines(capsys)
    # 40 epochs of 1.21 s: sixteen and six tenths of the next are over after 20.02 s.
    assert between[0] == f"{NAME} epoch 17/40 60 %, train 30.00 %, {TESTED}, 9.1 steps/s, 0:28 left"
    assert len(between) == 2
    assert last == f"{NAME} 40 epochs, {TESTED}, 44.0 s"


def test_a_run_that_goes_on_does_not_count_what_was_done_before(
    display: ProgressDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    train(display, clock, pace=30, epochs=100, done=99)
    found = lines(capsys)
    assert found[0] == f"{NAME} epoch 100/100 10 %, train 5.00 %, 4:30 left"
    assert found[-1] == f"{NAME} 100 epochs, {TESTED}, 300.0 s"
    display.arm("dyadic", 100, 100)
    assert lines(capsys) == ["dyadic               100 epochs done before"]


def test_hours_and_errors_of_wanted_outputs(
    display: ProgressDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    display.arm("adjoint", 0, 50)
    clock.now += 100
    display.step("adjoint", 0, 1, 10, {"train_rms_error": 3.456e-3, "kcl_residual": 2e-7})
    assert lines(capsys) == [f"{NAME} epoch 1/50 10 %, train RMS 3.46 mV, KCL 2e-07, 13:51:40 left"]
    # As a training loop tells that has no running metrics.
    clock.now += 100
    display.step("adjoint", 0, 2, 10)
    assert lines(capsys) == [
        f"{NAME} epoch 1/50 20 %, train RMS 3.46 mV, KCL 2e-07, 0.01 steps/s, 13:50:00 left"
    ]
