"""Every wrong file and every wrong call is refused with an error that names it."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from circuitsim.errors import RecordError
from circuitsim.record import ArmLayout, RunWriter, list_records, read_record

ARM = ArmLayout(name="a", epochs=2, metrics=("cost",), state={"g/plus": ((2, 3), "float32")})


def write_record(path: Path) -> Path:
    with RunWriter.create(path, header={"name": "x"}, arms=[ARM], extras={"e": ((2,), "float64")}) as writer:
        writer.write_epoch("a", 0, {"cost": 1.0}, {"g/plus": np.ones((2, 3))})
        writer.put("e", [1, 2])
    return path


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return write_record(tmp_path / "run.h5")


def refused(path: Path, rule: str) -> None:
    """Check that reading, resuming and listing ``path`` all say ``rule``."""
    for attempt in (read_record, RunWriter.resume):
        with pytest.raises(RecordError, match=rule) as caught:
            attempt(path)
        assert caught.value.file == str(path)
    if path.exists():
        [summary] = [found for found in list_records(path.parent) if found.path == path]
        assert rule in str(summary.problem)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", "no such file")
    with pytest.raises(RecordError, match="no such file or folder"):
        list_records(tmp_path / "none")
    with pytest.raises(RecordError, match="the folder does not exist"):
        RunWriter.create(tmp_path / "none" / "run.h5", header={}, arms=[])


def test_a_folder(tmp_path: Path, record: Path) -> None:
    (tmp_path / "folder.h5").mkdir()
    refused(tmp_path / "folder.h5", "it is a folder")
    for overwrite in (False, True):
        with pytest.raises(RecordError, match="is a folder"):
            RunWriter.create(tmp_path / "folder.h5", header={}, arms=[], overwrite=overwrite)
    with pytest.raises(RecordError, match="is not a folder"):
        list_records(record)


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "the file is empty")
    (tmp_path / "text.h5").write_text("epochs: 3\n")
    refused(tmp_path / "text.h5", "not an HDF5 file")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    refused(tmp_path / "other.h5", "not a circuitsim record")


def test_truncated_anywhere(record: Path) -> None:
    whole = record.read_bytes()
    for size in range(8, len(whole), 61):
        record.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"cut short|damaged"):
            read_record(record)
    record.write_bytes(whole[:-1])
    refused(record, "cut short")


def test_a_damaged_byte_anywhere(record: Path) -> None:
    # HDF5 can hang or crash on a damaged file; this layout leaves it nothing unchecked to trip over.
    whole = record.read_bytes()
    refusals = []
    for place in random.Random(1).sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        record.write_bytes(damaged)
        try:
            read_record(record)
        except RecordError as error:
            refusals.append(error)
    assert {error.file for error in refusals} == {str(record)}
    assert len(refusals) > 120


@pytest.mark.parametrize(
    ("version", "rule", "remedy"), [(2, "newer circuitsim", "Upgrade circuitsim"), (0, "no longer", "again")]
)
def test_another_schema(record: Path, version: int, rule: str, remedy: str) -> None:
    with h5py.File(record, "r+") as file:
        file.attrs["schema_version"] = version
    refused(record, rule)
    with pytest.raises(RecordError) as caught:
        read_record(record)
    assert caught.value.value == version
    assert remedy in str(caught.value.remedy)


def test_missing_dataset(record: Path) -> None:
    with h5py.File(record, "r+") as file:
        del file["arms/a/metrics/cost"]
    with pytest.raises(RecordError, match="damaged"):
        read_record(record)


def test_an_existing_file_is_kept(record: Path) -> None:
    before = record.read_bytes()
    with pytest.raises(RecordError, match="a file of this name exists"):
        RunWriter.create(record, header={}, arms=[])
    with pytest.raises(RecordError, match="JSON has no type"):
        RunWriter.create(record, header={"x": object()}, arms=[], overwrite=True)
    assert record.read_bytes() == before
    RunWriter.create(record, header={"name": "new"}, arms=[], overwrite=True).close()
    assert read_record(record).header == {"name": "new"}
    assert os.listdir(record.parent) == [record.name]


def test_without_hard_links(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RecordError, match="exists"):
        RunWriter.create(record, header={}, arms=[])
    RunWriter.create(record.with_name("other.h5"), header={}, arms=[]).close()
    assert sorted(os.listdir(record.parent)) == ["other.h5", record.name]


GOOD = {"g/plus": np.zeros((2, 3))}


@pytest.mark.parametrize(
    ("arm", "epoch", "metrics", "state", "rule"),
    [
        ("b", 1, {}, GOOD, "unknown arm"),
        ("a", 0, {}, GOOD, "epoch 1 is next"),
        ("a", 2, {}, GOOD, "epoch 1 is next"),
        ("a", 1, {"accuracy": 1.0}, GOOD, "unknown metric"),
        ("a", 1, {"cost": "high"}, GOOD, "a metric is one number"),
        ("a", 1, {}, {}, "a state array is missing"),
        ("a", 1, {}, {**GOOD, "h": 1}, "unknown state array"),
        ("a", 1, {}, {"g/plus": np.zeros((3, 2))}, r"the shape must be \(2, 3\)"),
        ("a", 1, {}, {"g/plus": np.zeros((2, 3), complex)}, "the dtype must be float32"),
    ],
)
def test_wrong_epochs(
    record: Path, arm: str, epoch: int, metrics: dict[str, Any], state: dict[str, Any], rule: str
) -> None:
    before = record.read_bytes()
    with RunWriter.resume(record) as writer, pytest.raises(RecordError, match=rule):
        writer.write_epoch(arm, epoch, metrics, state)
    assert record.read_bytes() == before


def test_more_epochs_than_planned(record: Path) -> None:
    with RunWriter.resume(record) as writer:
        writer.write_epoch("a", 1, {}, GOOD)
        with pytest.raises(RecordError, match="all 2 planned epochs are written"):
            writer.write_epoch("a", 2, {}, GOOD)


def test_wrong_extras(record: Path) -> None:
    with RunWriter.resume(record) as writer:
        with pytest.raises(RecordError, match=r"unknown extra .*created with e"):
            writer.put("f", [1, 2])
        for wrong in ([1, 2, 3], ["x", "y"], [[1], [1, 2]]):
            with pytest.raises(RecordError, match=r"the shape|the dtype|not an array"):
                writer.put("e", wrong)
    np.testing.assert_array_equal(read_record(record).extras["e"], [1, 2])


def test_a_closed_writer_refuses(record: Path) -> None:
    writer = RunWriter.resume(record)
    writer.close()
    writer.close()
    with pytest.raises(RecordError, match="the record is closed"):
        writer.finish()


def test_an_error_inside_the_block_wins(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter.resume(record)

    def fail() -> None:
        writer._file.close()
        raise RecordError("cannot close")

    monkeypatch.setattr(writer, "close", fail)
    with pytest.raises(ZeroDivisionError), writer:
        _ = 1 / 0
    with pytest.raises(RecordError, match="cannot close"), writer:
        pass


@pytest.mark.parametrize(
    ("header", "place"),
    [
        ({"a": {"b": [1, Path("x")]}}, r"header\.a\.b\[1\]"),
        ({"a": float("nan")}, r"header\.a"),
        ({1: 2}, "header"),
        ({"a": np.int64(3)}, r"header\.a"),
    ],
)
def test_a_header_that_json_cannot_hold(tmp_path: Path, header: dict[Any, Any], place: str) -> None:
    with pytest.raises(RecordError, match=place):
        RunWriter.create(tmp_path / "x.h5", header=header, arms=[])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arms", "extras", "rule"),
    [
        ([ARM, ARM], {}, "two arms have the same name"),
        ([ArmLayout(name="a/b", epochs=1)], {}, "must not contain"),
        ([ArmLayout(name="", epochs=1)], {}, "not a usable name"),
        ([ArmLayout(name="a", epochs=-1)], {}, "zero or more"),
        ([ArmLayout(name="a", epochs=1, metrics=("x", "x"))], {}, "the same name twice"),
        ([ArmLayout(name="a", epochs=1, metrics=("x", "x/y"))], {}, "both an array and the group"),
        ([ArmLayout(name="a", epochs=1, state={"x": ((1,), "object")})], {}, "only numbers"),
        ([], {"x//y": ((1,), "f8")}, "not a usable name"),
        ([], {"x": ((-1,), "f8")}, "negative"),
        ([], {"x": ((1,), "float65")}, "not a NumPy dtype"),
        ([], {"x": ((1,), "U5")}, "only numbers"),
    ],
)
def test_a_layout_that_cannot_be(
    tmp_path: Path, arms: list[ArmLayout], extras: Mapping[str, Any], rule: str
) -> None:
    with pytest.raises(RecordError, match=rule):
        RunWriter.create(tmp_path / "x.h5", header={}, arms=arms, extras=extras)
    assert os.listdir(tmp_path) == []
