"""`circuitsim sweep`: what it prints and leaves, what it refuses, and how it goes on after any end."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import EXPERIMENT, PROGRAM, Command, Outcome

SWEEP: dict[str, Any] = {
    "name": "gains",
    "experiment": "quick.yaml",
    "axes": {"cards.amplifier.gain": [0, 0.1], "network.layers.hidden.size": [3, 5]},
    "dies": 2,
    "measure": "gradient",
}
TASKS = 8


@pytest.fixture
def sweep(folder: Path) -> Callable[..., Path]:
    """Write sweep.yaml with some keys changed, and those of its experiment."""

    def written(base: dict[str, Any] | None = None, **changes: Any) -> Path:
        (folder / "quick.yaml").write_text(yaml.safe_dump(EXPERIMENT | (base or {}), sort_keys=False))
        (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
        return folder

    return written


def test_a_sweep_leaves_a_table_and_figures_and_says_so(sweep: Callable[..., Path], call: Command) -> None:
    folder = sweep()
    found = call("sweep", "sweep.yaml", "--json").document
    assert (found["name"], found["folder"]) == ("gains", "gains")
    assert found["tasks"] == {"total": TASKS, "done_before": 0, "lost": 0}
    assert found["failures"] == []
    assert found["figures"] == ["gains/gains-cosine.png", "gains/gains-gradient-error.png"]
    assert len(list((folder / "gains" / "tasks").glob("*.json"))) == TASKS
    assert [(p["axes"]["cards.amplifier.gain"], p["estimator"]) for p in found["points"][:2]] == [
        (0, "corrected-centred"),
        (0, "adjoint"),
    ]
    for point in found["points"]:
        assert point["dies"] == 2
        assert point["cosine"]["mean"] > 0.99
        assert point["seconds"] > 0
    with (folder / "gains" / "gains.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TASKS * 2
    assert [row["die"] for row in rows[:4]] == ["5", "5", "6", "6"]
    words = set(re.findall(r"\w+", call("sweep", "--help").out.partition("JSON:")[2]))
    assert set(found) | set(found["tasks"]) | set(found["points"][0]) <= words

    # The second time everything is there; a person gets a table.
    shown = call("sweep", "sweep.yaml", "--no-figures")
    assert shown.code == 0
    assert f"{TASKS} of them are there already" in shown.err
    assert "4 points, 2 dies, mean ± standard deviation" in shown.out
    assert re.search(
        r"^0\.1 +5 +corrected-centred +2 +\S+ ± \S+ +\S+ ± \S+ +[\d.]+$", shown.out, re.MULTILINE
    )
    assert "table    gains/gains.h5" in shown.out
    assert "figure" not in shown.out


def test_training_is_measured_on_the_test_set_and_drawn(sweep: Callable[..., Path], call: Command) -> None:
    sweep({"training": {"epochs": 1, "batch": 256}}, measure="training", dies=1)
    found = call("sweep", "sweep.yaml", "-o", "out", "--json").document
    assert found["figures"] == ["out/gains-accuracy.png", "out/gains-cosine.png"]
    assert all(0 < point["test_accuracy"]["mean"] < 1 for point in found["points"])
    assert all(point["test_accuracy"]["std"] is None for point in found["points"])


def test_failures_are_counted_and_shown_and_are_no_crash(sweep: Callable[..., Path], call: Command) -> None:
    sweep(
        {"solver": {"method": "general"}},
        axes={"solver.max_iterations": [1, 200]},
    )
    found = call("sweep", "sweep.yaml", "--json").document
    # Two dies, two estimators.
    assert len(found["failures"]) == 4
    assert {failure["point"] for failure in found["failures"]} == {0}
    assert all("ConvergenceError" in failure["reason"] for failure in found["failures"])
    assert [point["failed"] for point in found["points"]] == [2, 2, 0, 0]
    shown = call("sweep", "sweep.yaml", "--no-figures")
    assert shown.code == 0
    assert "point 0, die 5: corrected-centred: ConvergenceError" in shown.out


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (
            {"axes": {"cards.amplifier.gian": [1]}},
            (),
            "sweep.yaml: axes.cards.amplifier.gian: does not exist",
        ),
        ({"axes": {"training.epochs": [0]}}, (), "axes.training.epochs: must be greater than or equal to 1"),
        ({"experiment": "none.yaml"}, (), "sweep.yaml: experiment: names a file that does not exist"),
        ({"dies": 0}, (), "sweep.yaml: dies: must be greater than or equal to 1 (got 0)"),
        ({"dice": 2}, (), "sweep.yaml: dice: unknown key. Did you mean `dies`?"),
        ({"figures": {"x": "gain"}}, (), "figures.x: is not an axis (got 'gain')"),
        ({"measure": "power"}, (), "sweep.yaml: measure: must be 'training' or 'gradient'"),
        ({"design": {"random": 0}}, (), "random"),
        ({}, ("-o", "quick.yaml"), "--output: is a file, not a folder"),
        ({}, ("--workers", "2", "--scheduler", "tcp://x:1"), "--workers: is for local processes only"),
    ],
)
def test_bad_input_is_one_clear_error(
    sweep: Callable[..., Path], call: Command, changes: dict[str, Any], options: tuple[str, ...], words: str
) -> None:
    folder = sweep(**changes)
    call("sweep", "sweep.yaml", *options).refuses(words)
    assert not list(folder.glob("gains/*.csv"))


def test_a_missing_file_and_an_experiment_are_refused(sweep: Callable[..., Path], call: Command) -> None:
    sweep()
    call("sweep", "none.yaml").refuses("none.yaml: cannot be read: No such file")
    call("sweep", "quick.yaml").refuses("quick.yaml", "axes: is required")


def test_the_schema_knows_sweeps(call: Command) -> None:
    schema = call("schema", "sweep").document
    assert schema["required"] == ["name", "experiment", "axes"]
    assert set(schema["properties"]["design"]["anyOf"][0].values()) >= {"grid"}


# ------------------------------------------------------------------------------------ interruption


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, "sweep", "sweep.yaml", "--no-figures", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until some results are kept."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if len(list(folder.glob("gains/tasks/*.json"))) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"there never were {count} results")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a process has started."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in text.split()]


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(numbers: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(alive(number) for number in numbers):
            return True
        time.sleep(0.02)
    return False


def results(folder: Path) -> dict[str, Any]:
    """What is kept, without times."""
    found = {}
    for path in folder.glob("tasks/*.json"):
        document = json.loads(path.read_text())
        del document["seconds"]
        found[path.name] = document
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_ctrl_c_and_kill_lose_nothing_that_is_finished(
    sweep: Callable[..., Path], call: Command, installed: Callable[..., Outcome]
) -> None:
    folder = sweep({"training": {"epochs": 2, "batch": 16}}, measure="training", dies=8)
    tasks = 4 * 8
    assert call("sweep", "sweep.yaml", "-o", "whole", "--no-figures").code == 0

    # Ctrl-C goes to all processes of the terminal; the workers leave it to the first.
    process = start(folder, "--workers", "2")
    wait_for(folder, 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    hint = re.search(rf"interrupted; (\d+) of {tasks} results are kept\nthe same command goes on", err)
    assert hint is not None, err
    kept = len(list(folder.glob("gains/tasks/*.json")))
    assert int(hint[1]) == kept
    assert 2 <= kept < tasks

    # kill -9 of the program: its workers go too, and no result is half there.
    process = start(folder, "--workers", "2")
    wait_for(folder, kept + 2, process)
    workers = children(process)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert gone(workers)
    kept = len(results(folder / "gains"))
    assert kept < tasks

    # The same command in one process finishes what two began.
    ended = installed("sweep", "sweep.yaml", "--no-figures", "--json", cwd=folder)
    assert ended.document["tasks"] == {"total": tasks, "done_before": kept, "lost": 0}
    assert (folder / "gains/gains.csv").read_bytes() == (folder / "whole/gains.csv").read_bytes()
    assert results(folder / "gains") == results(folder / "whole")


def test_ctrl_c_in_one_process_keeps_what_is_finished(sweep: Callable[..., Path]) -> None:
    folder = sweep({"training": {"epochs": 2, "batch": 16}}, measure="training", dies=8)
    process = start(folder)
    wait_for(folder, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"interrupted; {len(results(folder / 'gains'))} of 32 results are kept" in err
