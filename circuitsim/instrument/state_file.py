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
from typing import Any, TypeAlias

import numpy as np

from circuitsim.errors import InstrumentError
from circuitsim.netlist.tables import FloatArray

__all__ = ["SavedDie", "Snapshot", "StateFile"]

Snapshot: TypeAlias = Mapping[str, FloatArray]
"""Everything of a die that changes in use, as arrays by name."""

_FORMAT = "circuitsim-die/1"
_HEADER = "header"
_PRESENT = "present"
_REGISTER = "register"


@dataclass(frozen=True, kw_only=True)
class SavedDie:
    """The present state of a die, and its registers by number."""

    present: Snapshot
    registers: Mapping[int, Snapshot] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """A file (NumPy's .npz, without pickled objects) that keeps a die between two runs of its server.

    ``identity`` says by name and value what makes it this die: circuit, card, seed.
    """

    path: Path
    identity: Mapping[str, str]

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
        with beside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
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
            InstrumentError: it is no such file, or that of another die.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
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


def _part(arrays: Mapping[str, FloatArray], name: str) -> Snapshot:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
