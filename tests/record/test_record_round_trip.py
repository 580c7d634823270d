"""What is written comes back; a record is a plain HDF5 file at every moment."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.errors import RecordError
from circuitsim.record import (
    SCHEMA_VERSION,
    ArmLayout,
    RunWriter,
    free_path,
    list_records,
    provenance,
    read_record,
)

STATE = {
    "conductance/input-hidden/g_plus": ((5, 3), "float64"),
    "adam/m/bias": ((3,), "float32"),
    "step": ((), "int64"),
    "frozen": ((4,), "bool"),
    "phase": ((2,), "complex128"),
    "labels": ((2,), "S8"),
    "nothing": ((0, 2), "float64"),
}
ARMS = (
    ArmLayout(name="raw one-sided", epochs=4, metrics=("test_accuracy",), state=STATE),
    ArmLayout(name="corrected-centred", epochs=3, metrics=("test_accuracy", "cosine/hidden.crossbar")),
)


def state(epoch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(epoch)
    return {
        "conductance/input-hidden/g_plus": rng.random((5, 3)),
        "adam/m/bias": rng.random(3).astype("f4"),
        "step": np.array(epoch),
        "frozen": rng.random(4) > 0.5,
        "phase": rng.random(2) * 1j,
        "labels": np.array([b"zero", b"one"]),
        "nothing": np.zeros((0, 2)),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_everything_comes_back(path: Path) -> None:
    header = {"name": "demo", "seed": 7, "network": {"layers": [64, 10], "µ": "Größe"}, "none": None}
    extras = {"initial/hidden/g_plus": ((2, 2), "float64"), "never": ((9,), "float64")}
    with RunWriter.create(path, header=header, arms=ARMS, extras=extras) as writer:
        for epoch in range(3):
            writer.write_epoch("raw one-sided", epoch, {"test_accuracy": 0.5 + epoch}, state(epoch))
        writer.write_epoch("corrected-centred", 0, {"cosine/hidden.crossbar": 0.25}, {})
        writer.put("initial/hidden/g_plus", [[1, 2], [3, 4]])
        assert writer.path == path
        assert writer.epochs_done == {"raw one-sided": 3, "corrected-centred": 1}
    record = read_record(path)
    assert record.path == path
    assert record.schema_version == SCHEMA_VERSION
    assert record.header == header
    assert list(record.arms) == ["raw one-sided", "corrected-centred"]
    assert not record.finished
    assert record.extras_written == set(record.extras) == {"initial/hidden/g_plus"}
    np.testing.assert_array_equal(record.extras["initial/hidden/g_plus"], [[1.0, 2.0], [3.0, 4.0]])
    raw, corrected = record.arms.values()
    assert (raw.epochs, raw.epochs_done) == (4, 3)
    np.testing.assert_array_equal(raw.metrics["test_accuracy"], [0.5, 1.5, 2.5])
    assert list(raw.state) == list(STATE)
    for name, array in state(2).items():
        assert raw.state[name].dtype == np.dtype(STATE[name][1])
        np.testing.assert_array_equal(raw.state[name], array)
    np.testing.assert_array_equal(corrected.metrics["test_accuracy"], [np.nan])
    np.testing.assert_array_equal(corrected.metrics["cosine/hidden.crossbar"], [0.25])
    assert corrected.state == {}


def test_before_the_first_epoch_there_is_no_state(path: Path) -> None:
    with RunWriter.create(path, header={}, arms=ARMS):
        arm = read_record(path).arms["raw one-sided"]
    assert arm.epochs_done == 0
    assert arm.state == {}
    assert {name: column.shape for name, column in arm.metrics.items()} == {"test_accuracy": (0,)}


def test_finished(path: Path) -> None:
    with RunWriter.create(path, header={}, arms=ARMS) as writer:
        writer.finish()
    assert read_record(path).finished
    with pytest.raises(RecordError, match="the run is finished"):
        RunWriter.resume(path)


def test_resume_goes_on_where_it_stopped(path: Path) -> None:
    with RunWriter.create(path, header={"name": "x"}, arms=ARMS, extras={"late": ((2,), "f8")}) as writer:
        writer.write_epoch("raw one-sided", 0, {"test_accuracy": 1}, state(0))
    with RunWriter.resume(path) as writer:
        assert writer.epochs_done == {"raw one-sided": 1, "corrected-centred": 0}
        writer.write_epoch("raw one-sided", 1, {"test_accuracy": 2}, state(1))
        writer.put("late", [5, 6])
        writer.finish()
    record = read_record(path)
    arm = record.arms["raw one-sided"]
    np.testing.assert_array_equal(arm.metrics["test_accuracy"], [1, 2])
    np.testing.assert_array_equal(arm.state["phase"], state(1)["phase"])
    np.testing.assert_array_equal(record.extras["late"], [5, 6])
    assert record.header == {"name": "x"}
    assert record.finished


def test_any_hdf5_program_reads_it_while_the_run_goes_on(path: Path) -> None:
    with RunWriter.create(path, header={"name": "x"}, arms=ARMS) as writer:
        writer.write_epoch("raw one-sided", 0, {"test_accuracy": 0.75}, state(0))
        for options in ({}, {"swmr": True}):
            with h5py.File(path, "r", **options) as file:
                arm = file["arms/raw one-sided"]
                assert arm["metrics/test_accuracy"][0] == 0.75
                assert np.isnan(arm["metrics/test_accuracy"][1:]).all()
                np.testing.assert_array_equal(arm["state/slot_a/adam/m/bias"], state(0)["adam/m/bias"])


def test_a_large_header_is_kept(path: Path) -> None:
    header = {"cards": ["x" * 1000] * 300}
    RunWriter.create(path, header=header, arms=[]).close()
    assert read_record(path).header == header


@given(
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(["float64", "float32", "float16", "int8", "uint16", ">i4", "bool", "complex64"]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_dtype(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], dtype: str, seed: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.h5"
    array = (np.random.default_rng(seed).random(shape) * 100).astype(dtype)
    arm = ArmLayout(name="a", epochs=1, state={"x": (shape, dtype)})
    with RunWriter.create(path, header={}, arms=[arm], extras={"x": (shape, dtype)}) as writer:
        writer.write_epoch("a", 0, {}, {"x": array})
        writer.put("x", array)
    record = read_record(path)
    for read in (record.arms["a"].state["x"], record.extras["x"]):
        assert read.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read, array)


def test_the_space_is_allocated_at_creation(path: Path) -> None:
    arm = ArmLayout(name="a", epochs=1, state={"x": ((100_000,), "float64")})
    with RunWriter.create(path, header={}, arms=[arm]) as writer:
        size = path.stat().st_size
        assert size > 2 * 800_000
        assert path.stat().st_blocks * 512 >= size
        writer.write_epoch("a", 0, {}, {"x": np.ones(100_000)})
    assert path.stat().st_size == size


def test_list_records(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "b.h5", header={"name": "bee"}, arms=ARMS) as writer:
        writer.write_epoch("raw one-sided", 0, {}, state(0))
        (tmp_path / "a.h5").write_bytes(b"not HDF5 at all")
        (tmp_path / "c.h5").mkdir()
        (tmp_path / "d.txt").write_text("ignored")
        (tmp_path / ".e.h5").write_text("ignored")
        bad, good, folder = list_records(tmp_path)
    assert (bad.path.name, good.path.name, folder.path.name) == ("a.h5", "b.h5", "c.h5")
    assert "not an HDF5 file" in str(bad.problem)
    assert "folder" in str(folder.problem)
    assert good.problem is None
    assert good.header["name"] == "bee"
    assert good.progress == {"raw one-sided": (1, 4), "corrected-centred": (0, 3)}
    assert not good.finished


def test_free_path(tmp_path: Path) -> None:
    assert free_path(tmp_path, "run") == tmp_path / "run.h5"
    (tmp_path / "run.h5").touch()
    (tmp_path / "run-2.h5").touch()
    assert free_path(tmp_path, "run") == tmp_path / "run-3.h5"
    assert free_path(tmp_path / "absent", "run").name == "run.h5"
    for stem in ("", "..", "a/b"):
        with pytest.raises(RecordError, match="name of a file"):
            free_path(tmp_path, stem)


def test_provenance(path: Path) -> None:
    found = provenance()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == np.__version__
    assert found["h5py"] == h5py.__version__
    assert found["threads"] >= 1
    assert found["argv"] == sys.argv
    assert found["cpu"]
    age = datetime.now(UTC) - datetime.fromisoformat(found["created"])
    assert timedelta(0) <= age < timedelta(seconds=60)
    RunWriter.create(path, header={"provenance": found}, arms=[]).close()
    assert read_record(path).header["provenance"] == found
