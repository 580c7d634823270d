"""Choose a file name that no earlier record has."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from circuitsim.errors import RecordError

__all__ = ["free_path"]


def free_path(folder: str | Path, stem: str) -> Path:
    """Return ``stem.h5``, or the first of ``stem-2.h5``, ``stem-3.h5``, ... that does not exist.

    Raises:
        RecordError: ``stem`` is not the name of a file.
    """
    if stem in ("", ".", "..") or "/" in stem or "\\" in stem or "\0" in stem:
        raise RecordError("not usable as the name of a file", object="name", value=stem)
    folder = Path(folder)
    path = folder / f"{stem}.h5"
    for number in count(2):
        if not path.exists() and not path.is_symlink():
            break
        path = folder / f"{stem}-{number}.h5"
    return path
