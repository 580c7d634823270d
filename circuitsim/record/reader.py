"""Read a record: finished, interrupted, or still being written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import RecordError
from circuitsim.record import layout as paths
from circuitsim.record.layout import SCHEMA_VERSION, ArmLayout, Layout
from circuitsim.record.storage import failure

__all__ = [
    "FORMAT",
    "ArmRecord",
    "Contents",
    "RecordSummary",
    "RunRecord",
    "contents",
    "list_records",
    "offset_of",
    "read_record",
]

FORMAT = "circuitsim-run"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ATTEMPTS = 200
_REPLACE = "Restore a copy of it, or run again."


@dataclass(frozen=True, kw_only=True)
class ArmRecord:
    """What one arm has reached.

    Attributes:
        name: the arm's name.
        epochs: planned epochs.
        epochs_done: completed epochs.
        metrics: name -> float64 array of length ``epochs_done``; NaN = not reached.
        state: the last complete checkpoint, name -> array; empty before the first.
    """

    name: str
    epochs: int
    epochs_done: int
    metrics: Mapping[str, NDArray[np.float64]]
    state: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as read at one moment.

    Attributes:
        path: the file it was read from.
        schema_version: version of the file layout.
        header: what the run was given at creation (plain JSON types).
        arms: name -> arm, in the order of creation.
        extras: name -> array; only those that the run has written.
        extras_written: the names of those.
        finished: whether the run came to its end.
    """

    path: Path
    schema_version: int
    header: dict[str, Any]
    arms: Mapping[str, ArmRecord]
    extras: Mapping[str, NDArray[Any]]
    extras_written: set[str]
    finished: bool


@dataclass(frozen=True, kw_only=True)
class RecordSummary:
    """One file of a folder of records, without its arrays.

    Attributes:
        path: the file.
        problem: why it cannot be read, or None; with a problem, all that follows is empty.
        header: as in ``RunRecord``.
        progress: arm -> (epochs done, epochs planned).
        finished: whether the run came to its end.
    """

    path: Path
    problem: str | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Contents:
    """An open record whose format, version and layout were checked."""

    file: h5py.File
    raw: BinaryIO
    schema_version: int
    header: dict[str, Any]
    layout: Layout

    def array(self, path: str) -> NDArray[Any]:
        """Read one dataset whole."""
        return np.asarray(self.file[path][...])

    def finished(self) -> bool:
        return bool(self.array(paths.finished_path())[0])

    def written(self) -> set[str]:
        """Names of the extras that the run has written."""
        flags = self.array(paths.written_path())
        return {name for name, flag in zip(self.layout.extras, flags, strict=True) if flag}

    def epochs_done(self, arm: ArmLayout) -> int:
        """Completed epochs of ``arm`` at this moment."""
        # Past HDF5, which may answer from a buffer, and at a fraction of the time.
        self.raw.seek(offset_of(self.file[paths.counter_path(arm.name)]))
        done = int.from_bytes(self.raw.read(8), "little")
        if done > arm.epochs:
            raise ValueError(f"{arm.name} counts {done} of {arm.epochs} epochs")
        return done

    def offsets(self) -> dict[str, int]:
        """Byte offset in the file of every dataset, by path."""
        found = {}
        for path, shape, dtype in self.layout.datasets():
            dataset = self.file[path]
            if dataset.shape != shape or dataset.dtype != dtype:
                raise ValueError(f"{path} is not as the layout says")
            found[path] = offset_of(dataset)
        return found


def offset_of(dataset: h5py.Dataset) -> int:
    """Return the byte offset in the file of a contiguous dataset. Raises ValueError if it has none."""
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise ValueError(f"{dataset.name} has no place in the file")
    return int(offset or 0)


@contextmanager
def contents(path: Path) -> Iterator[Contents]:
    """Open the record at ``path`` for reading.

    Raises:
        RecordError: not a file, not HDF5, not a record, of another schema version, or damaged; also
            for errors that reading from it inside the ``with`` block meets.
    """
    try:
        raw = path.open("rb", buffering=0)
    except OSError as error:
        raise failure(error, "read the record", path) from error
    with raw:
        try:
            _check_signature(raw.read(len(_SIGNATURE)), path)
            with h5py.File(path, "r") as file:
                yield _checked(file, raw, path)
        except (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            if "truncated file" in str(error):
                raise RecordError("the file is cut short", file=path, remedy=_REPLACE) from error
            detail = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise RecordError(f"the file is damaged: {detail}", file=path, remedy=_REPLACE) from error


def read_record(path: str | Path) -> RunRecord:
    """Read a record; a run may be writing it meanwhile.

    Args:
        path: the file.

    Returns:
        The record, consistent in itself: metrics and checkpoint of an arm belong together.

    Raises:
        RecordError: not a file, not HDF5, not a record, of another schema version, or damaged.
    """
    path = Path(path)
    with contents(path) as found:
        found.offsets()
        arms = {arm.name: _read_arm(found, arm, path) for arm in found.layout.arms.values()}
        written = found.written()
        extras = {
            name: found.array(paths.extra_path(name)) for name in found.layout.extras if name in written
        }
        return RunRecord(
            path=path,
            schema_version=found.schema_version,
            header=found.header,
            arms=arms,
            extras=extras,
            extras_written=written,
            finished=found.finished(),
        )


def list_records(folder: str | Path) -> list[RecordSummary]:
    """Summarise every ``.h5`` file of a folder, sorted by name; unreadable ones say why.

    Raises:
        RecordError: the folder does not exist or cannot be read.
    """
    folder = Path(folder)
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".h5" and path.name[0] != ".")
    except NotADirectoryError:
        raise RecordError("is not a folder", file=folder) from None
    except OSError as error:
        raise failure(error, "list the folder", folder) from error
    return [_summary(path) for path in files]


def _summary(path: Path) -> RecordSummary:
    try:
        with contents(path) as found:
            return RecordSummary(
                path=path,
                header=found.header,
                progress={
                    name: (found.epochs_done(arm), arm.epochs) for name, arm in found.layout.arms.items()
                },
                finished=found.finished(),
            )
    except RecordError as error:
        return RecordSummary(path=path, problem=error.rule)


def _read_arm(found: Contents, arm: ArmLayout, path: Path) -> ArmRecord:
    for _ in range(_ATTEMPTS):
        count = found.epochs_done(arm)
        last = count - 1
        state = {name: found.array(paths.state_path(arm.name, last, name)) for name in arm.state if count}
        # This slot is written again only after the counter has moved on, so an unmoved counter
        # proves that no writer touched it meanwhile.
        if found.epochs_done(arm) == count:
            break
    else:
        raise RecordError(
            "it is being written faster than it can be read", file=path, remedy="Try again later."
        )
    metrics = {name: found.array(paths.metric_path(arm.name, name))[:count].copy() for name in arm.metrics}
    return ArmRecord(name=arm.name, epochs=arm.epochs, epochs_done=count, metrics=metrics, state=state)


def _check_signature(start: bytes, path: Path) -> None:
    if not start:
        raise RecordError("the file is empty", file=path, remedy=_REPLACE)
    if start != _SIGNATURE:
        raise RecordError("not a record: it is not an HDF5 file", file=path, remedy="Check the path.")


def _checked(file: h5py.File, raw: BinaryIO, path: Path) -> Contents:
    attributes = file.attrs
    if _text(attributes.get("format")) != FORMAT:
        raise RecordError("an HDF5 file, but not a circuitsim record", file=path, remedy="Check the path.")
    version = int(attributes["schema_version"])
    if version > SCHEMA_VERSION:
        raise RecordError(
            "was written by a newer circuitsim",
            file=path,
            field="schema_version",
            value=version,
            remedy=f"Upgrade circuitsim; this one reads version {SCHEMA_VERSION}.",
        )
    if version < SCHEMA_VERSION:
        raise RecordError(
            "has a format that is no longer supported",
            file=path,
            field="schema_version",
            value=version,
            remedy="Read it with the circuitsim that wrote it, or run again.",
        )
    return Contents(
        file=file,
        raw=raw,
        schema_version=version,
        header=json.loads(_text(attributes["header"])),
        layout=Layout.from_json(_text(attributes["layout"])),
    )


def _text(attribute: Any) -> str:
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)
