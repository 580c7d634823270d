"""Measured or made-up samples from a table: one line a sample, column names on the first line."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from circuitsim.data.samples import DataSet, split_data
from circuitsim.errors import SpecError
from circuitsim.netlist.tables import FloatArray
from circuitsim.units import parse_quantity

__all__ = ["CsvTable", "load_csv", "read_table"]

_DELIMITERS = (",", ";", "\t")


def load_csv(
    path: str | Path,
    *,
    inputs: Sequence[str],
    targets: Sequence[str] | None = None,
    label: str | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> DataSet:
    """Return the samples of a CSV file: columns ``inputs``, and columns ``targets`` or a column ``label``.

    Columns are parted by commas, semicolons or tabs; empty lines and lines that begin with # do not
    count. Inputs and targets are numbers, SPICE suffixes allowed. Labels may be any text: their classes
    are numbered in the order of the numbers, or of the alphabet.

    Raises:
        SpecError: the file cannot be read, lacks a column, or holds something else than a number.
    """
    table = read_table(Path(path))
    x = np.column_stack([table.numbers(name, "data.inputs") for name in inputs])
    names: tuple[str, ...] = ()
    if label is not None:
        cells = table.cells(label, "data.label")
        names = _classes(cells)
        number = {name: k for k, name in enumerate(names)}
        labels = np.array([number[cell] for cell in cells], dtype=np.int64)
        if len(names) < 2:
            raise SpecError("holds one class only", file=path, object=f"column {label}", value=names[0])
    else:
        labels = np.column_stack([table.numbers(name, "data.targets") for name in targets or ()])
    data = split_data(
        Path(path).stem,
        x,
        labels,
        classes=len(names) if label is not None else None,
        test_fraction=test_fraction,
        split_seed=split_seed,
    )
    if not len(data.train_labels) or not len(data.test_labels):
        raise SpecError(
            f"{len(labels)} samples cannot be split",
            file=path,
            field="data.test_fraction",
            value=test_fraction,
            remedy="Set test_fraction: 0 to test on the training samples.",
        )
    return replace(data, class_names=names)


@dataclass(frozen=True, kw_only=True)
class CsvTable:
    """A CSV file with a header: its rows as text, and the line of the file that each came from."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    """Line number of each row, for messages."""

    def cells(self, name: str, field: str) -> list[str]:
        if name not in self.header:
            close = difflib.get_close_matches(name, self.header, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            remedy = f"{meant}Columns there: {', '.join(self.header)}."
            raise SpecError(f"no column of {self.path} has this name", field=field, value=name, remedy=remedy)
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def numbers(self, name: str, field: str) -> FloatArray:
        cells = self.cells(name, field)
        found = np.empty(len(cells))
        for k, cell in enumerate(cells):
            try:
                found[k] = parse_quantity(cell)
            except SpecError as error:
                raise SpecError(
                    error.rule,
                    file=self.path,
                    object=f"line {self.lines[k]}",
                    field=f"column {name}",
                    value=cell,
                    remedy=error.remedy,
                ) from error
        return found


def read_table(path: Path) -> CsvTable:
    """Read a CSV file whose rows are all as long as its header.

    Raises:
        SpecError: naming the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as failure:
        raise SpecError(f"cannot be read: {failure.strerror}", file=path) from failure
    except UnicodeDecodeError as failure:
        raise SpecError("is not a text file", file=path, remedy="A CSV file was expected.") from failure
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if len(lines) < 2:
        remedy = "The first line holds the names of the columns, every further line one sample."
        raise SpecError("holds no samples", file=path, remedy=remedy)
    delimiter = max(_DELIMITERS, key=lines[0][1].count)
    rows: list[list[str]] = []
    try:
        for _, line in lines:
            (row,) = csv.reader([line], delimiter=delimiter, strict=True)
            rows.append([cell.strip() for cell in row])
    except csv.Error as failure:
        raise SpecError(
            f"is not CSV: {failure}", file=path, object=f"line {lines[len(rows)][0]}"
        ) from failure
    header = rows.pop(0)
    numbers = [number for number, _ in lines[1:]]
    for name in header:
        if header.count(name) > 1 or not name:
            rule = "two columns have the same name" if name else "a column has no name"
            raise SpecError(rule, file=path, object=f"line {lines[0][0]}", value=name)
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(header):
            cells = f"{len(row)} cell{'s' * (len(row) != 1)}"
            rule = f"has {cells}, and the first line names {len(header)} columns"
            raise SpecError(rule, file=path, object=f"line {number}")
    return CsvTable(path=path, header=header, rows=rows, lines=numbers)


def _classes(cells: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct labels, numbers by their value and before all other text."""

    def order(name: str) -> tuple[bool, float, str]:
        try:
            return False, parse_quantity(name), name
        except SpecError:
            return True, 0.0, name

    return tuple(sorted(set(cells), key=order))
