"""The state of a served die on disk: written whole or not at all, read by the same die only."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

try:
    import fcntl
except ImportError:  # pragma: no cover - not every system has it
    fcntl = None  # type: ignore[assignment]

from circuitsim.errors import InstrumentError
from circuitsim.netlist.tables import FloatArray

__all__ = ["SavedDie", "Snapshot", "StateFile"]

Snapshot: TypeAlias = Mapping[str, FloatArray]
"""Everything of a die that changes in use, as arrays by name."""

_FORMAT = "circuitsim-die/1"
_HEADER = "header"
_PRESENT = "present"
_REGISTER = "register"
_MAGIC = b"PK\x03\x04"
"""Of an archive: NumPy takes anything else for a pickle, and says so."""


@dataclass(frozen=True, kw_only=True)
class SavedDie:
    """The present state of a die, and its registers by number."""

    present: Snapshot
    registers: Mapping[int, Snapshot] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class StateFile:
    """A file (NumPy's .npz, without pickled objects) that keeps a die between two runs of its server.

    ``identity`` says by name and value what makes it this die: circuit, card, seed. From the first reading or
    writing to `release` no other process can have it.
    """

    path: Path
    identity: Mapping[str, str]
    _claimed: IO[bytes] | None = None
    """The file as it was last written or read, locked while it is open."""

    def write(self, saved: SavedDie) -> None:
        """Replace the file in one step: whatever interrupts it leaves the old one or the new one.

        Raises:
            OSError: it cannot be written.
        """
        header = {"format": _FORMAT, "identity": dict(self.identity), "registers": sorted(saved.registers)}
        arrays: dict[str, Any] = {_HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
        arrays |= {f"{_PRESENT}/{key}": array for key, array in saved.present.items()}
        for number, snapshot in saved.registers.items():
            arrays |= {f"{_REGISTER} {number}/{key}": array for key, array in snapshot.items()}
        beside = self.path.with_name(f"{self.path.name}.new")
        file = beside.open("wb")
        try:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
            # The new file is locked before it takes the place of the old one.
            self._lock(file)
            beside.replace(self.path)
        except BaseException:
            file.close()
            raise
        self.release()
        self._claimed = file
        with contextlib.suppress(OSError):
            # Not every system can make sure of a folder.
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def read(self) -> SavedDie | None:
        """Return what was saved; None where there is no file yet.

        Raises:
            InstrumentError: it is no such file, that of another die, or another server has it.
        """
        self._claim()
        try:
            return self._read()
        except InstrumentError:
            self.release()
            raise

    def _read(self) -> SavedDie | None:
        try:
            with self.path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError("no .npz file")
                file.seek(0)
                with np.load(file, allow_pickle=False) as archive:
                    header = json.loads(archive[_HEADER].tobytes())
                    arrays = {key: archive[key] for key in archive.files if key != _HEADER}
            if header["format"] != _FORMAT:
                raise ValueError(f"format {header['format']}")
            identity, numbers = dict(header["identity"]), [int(number) for number in header["registers"]]
            for key, array in arrays.items():
                if array.dtype != np.float64:
                    raise ValueError(f"{key} is {array.dtype}")
        except FileNotFoundError:
            return None
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            EOFError,
            AttributeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InstrumentError(
                f"is not the state of a served die, or not whole: {error}",
                file=self.path,
                remedy="Give another file, or move this one away to start anew.",
            ) from error
        for name, value in self.identity.items():
            if identity.get(name) != value:
                raise InstrumentError(
                    f"is the state of another die: here it is {value}",
                    file=self.path,
                    field=name,
                    value=identity.get(name),
                    remedy="Serve the circuit, cards and seed that it was saved with, or give another file.",
                )
        return SavedDie(
            present=_part(arrays, _PRESENT),
            registers={number: _part(arrays, f"{_REGISTER} {number}") for number in numbers},
        )

    def release(self) -> None:
        """Let others have the file."""
        if self._claimed is not None:
            self._claimed.close()
            self._claimed = None

    def _claim(self) -> None:
        if self._claimed is not None:
            return
        # What cannot be opened is for who reads it to say.
        with contextlib.suppress(OSError):
            file = self.path.open("rb")
            try:
                self._lock(file)
            except BlockingIOError:
                file.close()
                raise InstrumentError(
                    "is kept by another server that runs",
                    file=self.path,
                    remedy="Stop that one, or give another file.",
                ) from None
            self._claimed = file

    @staticmethod
    def _lock(file: IO[bytes]) -> None:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _part(arrays: Mapping[str, FloatArray], name: str) -> Snapshot:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
