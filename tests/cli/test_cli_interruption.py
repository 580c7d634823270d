"""Training survives Ctrl-C and kill -9: the record stays readable, and --resume gives the same numbers."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import EXPERIMENT, PROGRAM, Command, Outcome

from circuitsim.record import RunRecord, list_records, read_record

FIRST, SECOND = "corrected-centred", "adjoint"
EPOCHS = 4


@pytest.fixture
def study(folder: Path) -> Path:
    """A folder with an experiment of a few seconds; the working folder is elsewhere."""
    document = {**EXPERIMENT, "training": {"epochs": EPOCHS, "batch": 16}}
    (folder / "quick.yaml").write_text(yaml.safe_dump(document))
    return folder


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, "train", "quick.yaml", "--no-figures", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(record: Path, arm: str, epochs: int, process: subprocess.Popen[str]) -> None:
    """Wait until an arm of a record that another process writes has some epochs."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        found = [summary for summary in list_records(record.parent) if summary.path == record]
        if found and found[0].progress[arm][0] >= epochs:
            return
        time.sleep(0.01)
    raise AssertionError(f"{arm} never had {epochs} epochs")


def assert_same_run(a: RunRecord, b: RunRecord) -> None:
    """Compare everything that was measured and learned, but for the time that it took."""
    assert a.finished
    assert b.finished
    assert list(a.arms) == list(b.arms) == [FIRST, SECOND]
    for name, arm in a.arms.items():
        other = b.arms[name]
        assert arm.epochs_done == other.epochs_done == EPOCHS
        assert arm.metrics.keys() == other.metrics.keys()
        for metric in arm.metrics.keys() - {"seconds"}:
            np.testing.assert_array_equal(arm.metrics[metric], other.metrics[metric], err_msg=metric)
        assert arm.state.keys() == other.state.keys()
        assert any(key.startswith("conductance/") for key in arm.state)
        for key, array in arm.state.items():
            np.testing.assert_array_equal(array, other.state[key], err_msg=key)
    assert a.extras.keys() == b.extras.keys()
    for key, array in a.extras.items():
        np.testing.assert_array_equal(array, b.extras[key], err_msg=key)


def test_ctrl_c_and_kill_lose_nothing(study: Path, call: Command, installed: Callable[..., Outcome]) -> None:
    assert call("train", "quick.yaml", "--no-figures").code == 0
    whole = read_record(study / "quick-s5.h5")
    shutil.move(study / "quick-s5.h5", study / "whole.h5")
    record = study / "quick-s5.h5"

    # Ctrl-C in the first arm: exit code 130, and the command that goes on.
    process = start(study)
    wait_for(record, FIRST, 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted; quick-s5.h5 holds every whole epoch" in err
    hint = err.strip().splitlines()[-1].split()
    assert hint == ["circuitsim", "train", "quick-s5.h5", "--resume"]
    stopped = read_record(record)
    assert not stopped.finished
    assert 1 <= stopped.arms[FIRST].epochs_done < EPOCHS
    assert call("show", "quick-s5.h5", "--no-figures", "--json").document["finished"] is False
    assert "--resume" in call("runs", ".").err

    # Gone on with and killed in the second arm: readable to the last epoch.
    process = start(study, "--resume")
    wait_for(record, SECOND, 1, process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    stopped = read_record(record)
    assert not stopped.finished
    done = {name: arm.epochs_done for name, arm in stopped.arms.items()}
    assert done[FIRST] == EPOCHS
    assert 1 <= done[SECOND] < EPOCHS
    np.testing.assert_array_equal(
        stopped.arms[SECOND].metrics["test_accuracy"],
        whole.arms[SECOND].metrics["test_accuracy"][: done[SECOND]],
    )

    # The hint of before finishes the run, to the numbers of the one that was left alone.
    ended = installed(*hint[1:], "--no-figures", "--json", cwd=study)
    assert ended.document["record"] == "quick-s5.h5"
    assert "done before" in ended.err
    assert_same_run(read_record(record), whole)

    # Once more changes nothing.
    before = record.read_bytes()
    again = call("train", "quick.yaml", "--resume", "--no-figures", "--json")
    assert "is finished: nothing to resume" in again.err
    assert again.document["epochs"] == EPOCHS
    assert record.read_bytes() == before


def test_ctrl_c_before_the_first_epoch_says_so(
    study: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("circuitsim.study.run.prepare", interrupted)
    ended = call("train", "quick.yaml")
    assert (ended.code, ended.out) == (130, "")
    assert "nothing was written" in ended.err


def test_resume_picks_the_record_of_its_seed(study: Path, call: Command) -> None:
    Path("quick.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    started = call("train", "quick.yaml", "--resume", "--no-figures", "--json")
    assert "no record of quick with seed 5 yet: starting one" in started.err
    other = call("train", "quick.yaml", "--seed", "6", "--resume", "--no-figures", "--json")
    assert other.document["record"] == "quick-s6.h5"
    call("train", "quick.yaml", "--seed", "7", "--resume", "-o", "quick-s6.h5").refuses(
        "quick-s6.h5: seed: belongs to another run: quick.yaml has 7 (got 6)"
    )


def test_overwrite_replaces_the_record_and_nothing_else(study: Path, call: Command) -> None:
    Path("quick.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    Path("result.h5").write_text("earlier")
    call("train", "quick.yaml", "-o", "result.h5").refuses("result.h5: a file of this name exists")
    assert Path("result.h5").read_text() == "earlier"
    trained = call("train", "quick.yaml", "-o", "result.h5", "--overwrite", "--no-figures", "--json")
    assert trained.document["record"] == "result.h5"
    assert read_record(Path("result.h5")).finished
    assert not Path("quick-s5.h5").exists()


@pytest.mark.parametrize(("width", "bar"), [(80, ""), (110, "━+ +")])
def test_a_terminal_shows_progress_and_a_pipe_gets_the_results(study: Path, width: int, bar: str) -> None:
    Path("quick.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "train", "quick.yaml", "--no-figures"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(width)},
    )
    os.close(terminal)
    drawn = b""
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:  # how Linux tells that the other side is closed
            break
        if not part:
            break
        drawn += part
    os.close(screen)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode()).replace("\r", "\n").split("\n")
    for name in (FIRST, SECOND):
        line = [line for line in last if line.startswith(name)][-1]
        scores = r"train \d\d\.\d\d % test \d\d\.\d\d % KCL \de-\d\d"
        assert re.search(rf"^{name} +{bar}2/2 {scores} +\d+/s +\d:\d\d$", line.rstrip()), line
        assert len(line.rstrip()) <= width
    assert "\x1b" not in out
    assert re.search(rf"^{FIRST} +\d\d\.\d\d ", out, re.MULTILINE)
    assert shlex.split(out.split("Try next:")[1].splitlines()[1]) == ["circuitsim", "show", "quick-s5.h5"]
