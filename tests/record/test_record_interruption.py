"""Kill the writer, fill the disk, read meanwhile: every completed epoch survives, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import endless_writer
import h5py
import numpy as np
import pytest
from endless_writer import ARM

from circuitsim.errors import RecordError
from circuitsim.record import RunRecord, RunWriter, list_records, read_record, storage


@contextmanager
def writing(path: Path, pause: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Run ``endless_writer`` on ``path`` and kill it with SIGKILL at the end."""
    process = subprocess.Popen(
        [sys.executable, endless_writer.__file__, str(path), str(pause)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def run_python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_consistent(record: RunRecord) -> int:
    """Check that the metrics and the checkpoint are those of the last complete epoch."""
    arm = record.arms[ARM]
    done = arm.epochs_done
    for column in arm.metrics.values():
        np.testing.assert_array_equal(column, np.arange(done))
    assert set(arm.state) == (set(endless_writer.STATE) if done else set())
    for name, array in arm.state.items():
        assert (array == done - 1).all(), f"{name} is not of epoch {done - 1}"
    return done


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    moments = random.Random(7)
    reached = [0]
    for _ in range(5):
        with writing(path) as process:
            time.sleep(moments.uniform(0.001, 0.15))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
        reached.append(check_consistent(read_record(path)))
        with h5py.File(path, "r+"):
            pass  # no trace of the killed writer keeps other programs out
    assert reached == sorted(reached)
    assert reached[-1] > 0
    with RunWriter.resume(path) as writer:
        endless_writer.write(writer, reached[-1])
    assert check_consistent(read_record(path)) == reached[-1] + 1
    assert os.listdir(tmp_path) == ["run.h5"]


@pytest.mark.parametrize("call", range(6))
def test_stop_between_any_two_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    # Like a kill at every point in turn: after ``call`` of an epoch's six writes nothing reaches the file.
    path = tmp_path / "run.h5"
    with endless_writer.create(path) as writer:
        for epoch in range(3):
            endless_writer.write(writer, epoch)
        left = [call]
        write_at = storage.write_at

        def write_some(file: FileIO, offset: int, data: bytes) -> None:
            if left[0] == 0:
                raise OSError(5, "Input/output error")
            left[0] -= 1
            write_at(file, offset, data)

        with monkeypatch.context() as patch:
            patch.setattr("circuitsim.record.writer.write_at", write_some)
            with pytest.raises(RecordError, match="Input/output error"):
                endless_writer.write(writer, 3)
        assert check_consistent(read_record(path)) == 3
        endless_writer.write(writer, 3)
    assert check_consistent(read_record(path)) == 4


def test_reading_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    seen = []
    with writing(path, pause=0.002):
        for _ in range(25):
            seen.append(check_consistent(read_record(path)))
            assert list_records(tmp_path)[0].problem is None
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with writing(path):
        for attempt in (
            lambda: RunWriter.resume(path),
            lambda: RunWriter.create(path, header={}, arms=[], overwrite=True),
        ):
            with pytest.raises(RecordError, match="another run is writing"):
                attempt()
    RunWriter.resume(path).close()
    with endless_writer.create(tmp_path / "own.h5"):
        read_record(tmp_path / "own.h5")  # must not drop this process's own lock
        with pytest.raises(RecordError, match="another run is writing"):
            RunWriter.resume(tmp_path / "own.h5")


LIMITED = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from circuitsim.errors import RecordError
    from circuitsim.record import ArmLayout, RunWriter, read_record

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = Path(sys.argv[1])
    arm = ArmLayout(name="a", epochs=9, metrics=("m",), state={"x": ((50_000,), "float64")})

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""


def test_full_disk_at_creation(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with endless_writer.create(path) as writer:
        endless_writer.write(writer, 0)
    result = run_python(
        LIMITED
        + """
    limit(100_000)
    for target, overwrite in ((path, True), (path.with_name("new.h5"), False)):
        try:
            RunWriter.create(target, header={}, arms=[arm], overwrite=overwrite)
        except RecordError as error:
            print(error)
    """,
        str(path),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("no space is left") == 2
    assert os.listdir(tmp_path) == ["run.h5"]
    assert check_consistent(read_record(path)) == 1


def test_full_disk_during_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    result = run_python(
        LIMITED
        + """
    with RunWriter.create(path, header={}, arms=[arm], extras={"e": ((50_000,), "float64")}) as writer:
        for epoch in range(3):
            writer.write_epoch("a", epoch, {"m": epoch}, {"x": np.full(50_000, epoch)})
        limit(200_000)
        for failing in (
            lambda: writer.write_epoch("a", 3, {"m": 3}, {"x": np.full(50_000, 3)}),
            lambda: writer.write_epoch("a", 3, {"m": 3}, {"x": np.full(50_000, 3)}),
            lambda: writer.put("e", np.ones(50_000)),
        ):
            try:
                failing()
            except RecordError as error:
                print(error)
    """,
        str(path),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("no space is left") == 3
    record = read_record(path)
    arm = record.arms["a"]
    np.testing.assert_array_equal(arm.metrics["m"], [0, 1, 2])
    assert (arm.state["x"] == 2).all()
    assert not record.extras_written
    with RunWriter.resume(path) as writer:
        writer.write_epoch("a", 3, {"m": 3}, {"x": np.full(50_000, 3)})


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    # Root may write anywhere, so the attempt is made as nobody, in a folder that nobody can reach.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        RunWriter.create(folder / "old.h5", header={}, arms=[]).close()
        folder.chmod(0o555)
        (folder / "old.h5").chmod(0o444)
        script = """
        import os, sys
        from pathlib import Path
        from circuitsim.errors import RecordError
        from circuitsim.record import RunWriter, read_record

        if os.getuid() == 0:
            os.setuid(65534)
        folder = Path(sys.argv[1])
        read_record(folder / "old.h5")
        for attempt in (
            lambda: RunWriter.create(folder / "new.h5", header={}, arms=[]),
            lambda: RunWriter.create(folder / "old.h5", header={}, arms=[], overwrite=True),
            lambda: RunWriter.resume(folder / "old.h5"),
        ):
            try:
                attempt()
            except RecordError as error:
                print(error)
        """
        result = run_python(script, name)
        folder.chmod(0o755)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.count("permission denied") == 3
        assert os.listdir(folder) == ["old.h5"]
