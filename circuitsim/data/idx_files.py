"""IDX files, the format that MNIST was published in: a magic number, the sizes, then one byte a value."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import SpecError

__all__ = ["read_idx"]

_BYTES = 0x08
"""The code of unsigned bytes in the magic number, the only type that images and labels use."""


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of a compressed IDX file; read-only.

    Raises:
        SpecError: the file cannot be read, is damaged, or holds something else.
    """
    remedy = f"Wanted: IDX bytes in {dimensions} dimension{'s' * (dimensions != 1)}, .gz, as published."
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as failure:
        raise SpecError(f"is damaged, or no gzip file: {failure}", file=path, remedy=remedy) from failure
    except OSError as failure:
        raise SpecError(f"cannot be read: {failure.strerror or failure}", file=path) from failure
    if not content:
        raise SpecError("is empty", file=path, remedy=remedy)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, _BYTES, dimensions)):
        raise SpecError("is another kind of file", file=path, value=content[:4].hex(" "), remedy=remedy)
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    # Python's integers: sizes that a damaged header makes up do not overflow.
    expected = 1
    for size in shape:
        expected *= size
    if len(content) - start != expected:
        sizes = " x ".join(str(size) for size in shape)
        rule = f"says that it holds {sizes} bytes, and holds {len(content) - start}"
        raise SpecError(rule, file=path, remedy=remedy)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
