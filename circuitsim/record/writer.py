"""Write a record so that a kill, a full disk or a power cut costs at most the epoch under way.

HDF5 lays the file out in memory once, with every dataset contiguous and allocated. From then on
nothing but array bytes changes, and those are written straight to their offsets. The file
is therefore a valid, closed HDF5 file at every moment, which any HDF5 program can read while the run
goes on. (HDF5's own SWMR mode was tried: it leaves a flag that other programs refuse after a kill,
reads a damaged file for minutes, and a disk that fills up can crash the interpreter.)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import RecordError
from circuitsim.record import layout as paths
from circuitsim.record.layout import SCHEMA_VERSION, ArmLayout, ArraySpec, Layout, header_text
from circuitsim.record.reader import FORMAT, contents, offset_of
from circuitsim.record.storage import failure, open_for_writing, publish, sync, write_at

__all__ = ["RunWriter"]


class RunWriter:
    """The one writer of a record; a context manager that closes it.

    Leaving the ``with`` block does not mark the run finished: call ``finish`` for that.
    """

    def __init__(
        self, path: Path, file: FileIO, layout: Layout, offsets: Mapping[str, int], done: Mapping[str, int]
    ) -> None:
        """For ``create`` and ``resume``, which are what to call."""
        self._path = path
        self._file = file
        self._layout = layout
        self._offsets = dict(offsets)
        self._done = dict(done)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        header: Mapping[str, Any],
        arms: Sequence[ArmLayout],
        extras: Mapping[str, ArraySpec] | None = None,
        overwrite: bool = False,
    ) -> RunWriter:
        """Create a record with all its space allocated, so that a full disk shows now.

        Args:
            path: the file; its folder must exist.
            header: what describes the run (plain JSON types).
            arms: the arms, in the order in which to show them.
            extras: arrays written once per run with ``put``: name -> (shape, dtype).
            overwrite: replace an existing file; it is kept until the new one is complete.

        Raises:
            RecordError: a bad name, shape, dtype or header; the file exists, or a run is writing
                it; no folder, no permission, no space. Nothing partial is left.
        """
        path = Path(path)
        layout = Layout.of(arms, {} if extras is None else extras)
        image, offsets = _image(layout, header_text(header), path)
        file = publish(image, path, overwrite=overwrite)
        return cls(path, file, layout, offsets, dict.fromkeys(layout.arms, 0))

    @classmethod
    def resume(cls, path: str | Path) -> RunWriter:
        """Open an interrupted record to go on after each arm's last complete epoch.

        Raises:
            RecordError: not a readable record, a run is writing it, it is finished, or no permission.
        """
        path = Path(path)
        # Validity first: a wrong path should be named as such, not as a permission.
        with contents(path):
            pass
        file = open_for_writing(path)
        try:
            with contents(path) as found:
                if found.finished():
                    raise RecordError(
                        "the run is finished", file=path, remedy="Nothing is left to resume; start a new run."
                    )
                done = {name: found.epochs_done(arm) for name, arm in found.layout.arms.items()}
                return cls(path, file, found.layout, found.offsets(), done)
        except BaseException:
            file.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def epochs_done(self) -> dict[str, int]:
        """Completed epochs of each arm."""
        return dict(self._done)

    def write_epoch(
        self, arm: str, epoch: int, metrics: Mapping[str, float], state: Mapping[str, NDArray[Any]]
    ) -> None:
        """Record one completed epoch; on return it is on the disk.

        Args:
            arm: the arm's name.
            epoch: index of the epoch, from 0; must be the arm's next.
            metrics: name -> number; a metric left out is NaN.
            state: the checkpoint; every array of the arm's layout.

        Raises:
            RecordError: an unknown or missing name, a wrong shape or dtype, an epoch out of turn, or a
                failed write. The epochs before stay readable, and the call may be repeated.
        """
        plan = self._arm(arm)
        if epoch != self._done[arm] or epoch >= plan.epochs:
            rule = (
                f"all {plan.epochs} planned epochs are written"
                if self._done[arm] >= plan.epochs
                else f"epochs are written in turn: epoch {self._done[arm]} is next"
            )
            raise RecordError(rule, file=self._path, object=arm, field="epoch", value=epoch)
        for name in metrics:
            if name not in plan.metrics:
                raise self._unknown("metric", arm, name, plan.metrics)
        for name in state:
            if name not in plan.state:
                raise self._unknown("state array", arm, name, tuple(plan.state))
        numbers = {name: self._number(arm, name, metrics.get(name, np.nan)) for name in plan.metrics}
        arrays: dict[str, bytes] = {}
        for name, (shape, dtype) in plan.state.items():
            if name not in state:
                raise RecordError("a state array is missing", file=self._path, object=arm, field=name)
            arrays[name] = self._bytes(arm, name, state[name], shape, np.dtype(dtype))

        # The counter comes last and only after a sync: it vouches for what was written before it.
        writes = [(self._offsets[paths.state_path(arm, epoch, name)], data) for name, data in arrays.items()]
        writes += [
            (self._offsets[paths.metric_path(arm, name)] + 8 * epoch, np.array(number, "<f8").tobytes())
            for name, number in numbers.items()
        ]
        self._write(writes)
        self._write([(self._offsets[paths.counter_path(arm)], np.array(epoch + 1, "<i8").tobytes())])
        self._done[arm] = epoch + 1

    def put(self, name: str, array: ArrayLike) -> None:
        """Write one extra array, whole.

        Raises:
            RecordError: an unknown name, a wrong shape or dtype, or a failed write.
        """
        if name not in self._layout.extras:
            raise self._unknown("extra", "extras", name, tuple(self._layout.extras))
        shape, dtype = self._layout.extras[name]
        data = self._bytes("extras", name, array, shape, dtype)
        flag = self._offsets[paths.written_path()] + list(self._layout.extras).index(name)
        self._write([(flag, b"\0")])
        self._write([(self._offsets[paths.extra_path(name)], data)])
        self._write([(flag, b"\1")])

    def finish(self) -> None:
        """Mark the run finished; it can be resumed no more.

        Raises:
            RecordError: a failed write.
        """
        self._write([(self._offsets[paths.finished_path()], b"\1")])

    def close(self) -> None:
        """Release the file. Closing twice does nothing.

        Raises:
            RecordError: the operating system reports a failed write.
        """
        try:
            self._file.close()
        except OSError as error:
            raise failure(error, "close the record", self._path) from error

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RecordError:
            # An error on its way out says more than the failure to close after it.
            if error is None:
                raise

    def _write(self, writes: Sequence[tuple[int, bytes]]) -> None:
        if self._file.closed:
            raise RecordError("the record is closed", file=self._path)
        try:
            for offset, data in writes:
                write_at(self._file, offset, data)
            sync(self._file)
        except OSError as error:
            raise failure(error, "write to the record", self._path) from error

    def _arm(self, name: str) -> ArmLayout:
        if name not in self._layout.arms:
            raise self._unknown("arm", None, name, tuple(self._layout.arms))
        return self._layout.arms[name]

    def _unknown(self, kind: str, place: str | None, name: str, known: tuple[str, ...]) -> RecordError:
        remedy = f"The record was created with {', '.join(known)}." if known else "It was created with none."
        return RecordError(f"unknown {kind}", file=self._path, object=place, value=name, remedy=remedy)

    def _number(self, arm: str, name: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise RecordError(
                "a metric is one number", file=self._path, object=arm, field=name, value=value
            ) from error

    def _bytes(
        self, place: str, name: str, value: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> bytes:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise RecordError("not an array", file=self._path, object=place, field=name) from error
        if array.shape != shape:
            raise RecordError(
                f"the shape must be {shape}", file=self._path, object=place, field=name, value=array.shape
            )
        if not np.can_cast(array.dtype, dtype, casting="same_kind"):
            raise RecordError(
                f"the dtype must be {dtype}", file=self._path, object=place, field=name, value=array.dtype
            )
        return array.astype(dtype).tobytes()


def _image(layout: Layout, header: str, path: Path) -> tuple[bytes, dict[str, int]]:
    """Return the bytes of a new record and the offset of every dataset in them."""
    memory = io.BytesIO()
    offsets: dict[str, int] = {}
    try:
        # v110: checksummed metadata, which betrays damage, and readable from HDF5 1.10 on.
        # Alignment keeps the eight bytes of a counter from being read half written.
        with h5py.File(
            memory, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=8
        ) as file:
            file.attrs["schema_version"] = SCHEMA_VERSION
            for attribute, text in (("format", FORMAT), ("header", header), ("layout", layout.to_json())):
                # Fixed length: HDF5 has no checksum on the heap of variable-length text and can
                # loop for ever over a damaged one.
                data = text.encode()
                file.attrs.create(attribute, data, dtype=h5py.string_dtype("utf-8", len(data)))
            for name, shape, dtype in layout.datasets():
                properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                properties.set_layout(h5py.h5d.CONTIGUOUS)
                properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
                # Complex numbers and fixed-length bytes have zeros as they are.
                fill = np.nan if dtype.kind == "f" else None
                dataset = file.create_dataset(name, shape=shape, dtype=dtype, dcpl=properties, fillvalue=fill)
                if shape == ():  # h5py leaves our properties out for these: allocate by writing
                    dataset[...] = np.zeros((), dtype)
                offsets[name] = offset_of(dataset)
    except (OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise RecordError(f"the record cannot be laid out: {error}", file=path) from error
    return memory.getvalue(), offsets
