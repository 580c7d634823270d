"""Tables of results: columns of equal length, as HDF5 with what they come from, and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import RecordError
from circuitsim.record.layout import header_text
from circuitsim.record.storage import failure, publish

__all__ = ["Table", "read_table", "write_csv", "write_table"]

FORMAT = "circuitsim-table"
TABLE_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Tidy results: one row per measurement.

    Attributes:
        columns: name -> array (n,) of int64, float64 (NaN = not measured) or str, in order.
        header: where they come from, in plain JSON types.
        aside: further columns that two runs of the same do not share, such as times [s].
    """

    columns: Mapping[str, NDArray[Any]]
    header: Mapping[str, Any] = field(default_factory=dict)
    aside: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (*self.columns.values(), *self.aside.values())}
        if len(lengths) > 1:
            raise RecordError("columns must be of equal length", object="table", value=sorted(lengths))
        for name, column in (*self.columns.items(), *self.aside.items()):
            if column.ndim != 1 or column.dtype.kind not in "ifU":
                rule = "a column is one row of whole numbers, numbers or texts"
                raise RecordError(rule, object="table", field=name, value=f"{column.dtype} {column.shape}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def write_table(table: Table, path: str | Path) -> None:
    """Write a table as HDF5, in one step: datasets ``columns/NAME`` and ``aside/NAME``, the header as JSON.

    Raises:
        RecordError: a name or header that the file cannot hold, or a failed write.
    """
    path = Path(path)
    header = header_text(table.header)
    memory = io.BytesIO()
    try:
        with h5py.File(memory, "w", libver=("v110", "v110")) as file:
            file.attrs["table_version"] = TABLE_VERSION
            order = {"columns": list(table.columns), "aside": list(table.aside)}
            for attribute, text in (("format", FORMAT), ("order", json.dumps(order))):
                data = text.encode()
                file.attrs.create(attribute, data, dtype=h5py.string_dtype("utf-8", len(data)))
            # A dataset, because an attribute ends at 64 KiB in older files; fixed length as in records.
            file.create_dataset("header", data=np.frombuffer(header.encode(), dtype="u1"))
            for group, columns in (("columns", table.columns), ("aside", table.aside)):
                for number, (name, column) in enumerate(columns.items()):
                    # Numbered, because names may hold the slash that makes groups.
                    dataset = file.create_dataset(f"{group}/{number:03d}", data=_stored(column))
                    dataset.attrs["name"] = name
                    dataset.attrs["text"] = column.dtype.kind == "U"
    except (OSError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise RecordError(f"the table cannot be laid out: {error}", file=path) from error
    publish(memory.getvalue(), path, overwrite=True).close()


def read_table(path: str | Path) -> Table:
    """Read what `write_table` wrote.

    Raises:
        RecordError: missing, damaged, or something else.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            if _text(file.attrs.get("format", b"")) != FORMAT:
                raise RecordError("is not a table of results", file=path)
            if int(file.attrs["table_version"]) > TABLE_VERSION:
                raise RecordError(
                    "was written by a newer version of circuitsim",
                    file=path,
                    value=int(file.attrs["table_version"]),
                    remedy="Update circuitsim.",
                )
            header = json.loads(file["header"][...].tobytes().decode())
            parts = {
                group: {
                    str(dataset.attrs["name"]): _read(dataset)
                    for dataset in (file[group].values() if group in file else ())
                }
                for group in ("columns", "aside")
            }
    except OSError as error:
        if not path.exists() or error.errno:
            raise failure(error, "read the table", path) from error
        raise RecordError("is not HDF5, or is damaged", file=path) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecordError(f"is damaged: {error}", file=path) from error
    return Table(header=header, columns=parts["columns"], aside=parts["aside"])


def write_csv(table: Table, path: str | Path) -> None:
    """Write the columns, but for those aside, as CSV: numbers as short as they read back exactly, NaN empty.

    Raises:
        RecordError: a failed write.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    columns = [_cells(column) for column in table.columns.values()]
    writer.writerows(zip(*columns, strict=True))
    publish(text.getvalue().encode(), Path(path), overwrite=True).close()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


def _stored(column: NDArray[Any]) -> NDArray[Any]:
    if column.dtype.kind != "U":
        return column.astype("<i8" if column.dtype.kind == "i" else "<f8")
    data = [text.encode() for text in column.tolist()]
    return np.array(data, dtype=f"S{max((len(text) for text in data), default=1) or 1}")


def _read(dataset: Any) -> NDArray[Any]:
    array = np.asarray(dataset[...])
    if not dataset.attrs["text"]:
        return array
    texts = [text.decode() for text in array.tolist()]
    return np.array(texts, dtype=f"U{max((len(text) for text in texts), default=1) or 1}")


def _cells(column: NDArray[Any]) -> list[Any]:
    if column.dtype.kind != "f":
        return list(column.tolist())
    return ["" if value != value else repr(value) for value in column.tolist()]
