"""Measured devices from CSV files: staircases of pulses, reads after writes, I-V curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.data.csv_files import CsvTable, read_table
from circuitsim.devices.fit.measurements import CurveData, Measurement, PulseData, ReadData
from circuitsim.errors import SpecError
from circuitsim.netlist.tables import FloatArray
from circuitsim.units import parse_quantity

__all__ = ["KINDS", "Kind", "load_measurement"]

Kind = Literal["pulses", "reads", "curves"]
KINDS: tuple[Kind, ...] = ("pulses", "reads", "curves")

_NAMES: dict[str, tuple[str, ...]] = {
    "device": ("device",),
    "cycle": ("cycle",),
    "pulse": ("pulse",),
    "direction": ("direction", "polarity", "phase"),
    "conductance": ("conductance", "g"),
    "target": ("target",),
    "time": ("time",),
    "voltage": ("voltage", "v"),
    "current": ("current", "i"),
}
"""What is measured -> names that its column may have, in any case."""
_UNITS = {"conductance": "S", "target": "S", "time": "s", "voltage": "V", "current": "A"}
_TITLE = re.compile(r"\s*([^\[\]()]*?)\s*(?:[\[(]\s*([^\[\]()]*?)\s*[\])])?\s*")
_UP = {"up", "+", "set", "potentiation", "pot", "ltp", "increase"}
_DOWN = {"down", "-", "reset", "depression", "dep", "ltd", "decrease"}
_NEEDS = {
    "pulses": ("device", "pulse", "conductance"),
    "reads": ("device", "conductance"),
    "curves": ("device", "voltage", "current"),
}
_SHAPES = (
    "Pulses: device, cycle (optional), pulse, direction, conductance. Reads: device, cycle (optional), "
    "target (optional), time (optional), conductance. I-V curves: device, voltage, current."
)


def load_measurement(path: str | Path, *, kind: Kind | None = None) -> Measurement:
    """Return the readings of a CSV file: one line a reading, names of columns on the first line.

    Columns: ``device`` and ``cycle`` (any text), ``pulse`` (0, 1, ...), ``direction`` (up or down, + or -,
    set or reset, or a number of that sign; also called ``polarity`` or ``phase``, and without it the sign of
    ``voltage``), ``conductance`` [S], ``target`` [S], ``time`` [s], ``voltage`` [V], ``current`` [A]. A unit
    may follow in brackets, ``conductance [uS]``; numbers take SPICE suffixes. Other columns are left alone.

    Args:
        path: the file.
        kind: what it holds; by default what its columns say: a pulse number, or a voltage and a current, or
            a conductance alone.

    Raises:
        SpecError: the file cannot be read, lacks a column, or holds what no measurement gives: text for a
            number, a negative conductance, a time that is not positive. Names file, line and column.
    """
    columns = _Columns.of(read_table(Path(path)))
    kind = kind or _kind(columns)
    missing = [name for name in _NEEDS[kind] if name not in columns.title]
    if missing:
        there = ", ".join(columns.table.header)
        raise SpecError(
            f"has no column {missing[0]}, which {kind if kind != 'curves' else 'I-V curves'} need",
            file=path,
            remedy=f"Columns there: {there}. {_SHAPES}",
        )
    names, device = _numbered(columns.cells("device"))
    if "" in names:
        row = columns.cells("device").index("")
        raise columns.refusal("device", columns.table.lines[row], "is empty", "")
    cycle = _numbered(columns.cells("cycle"))[1] if "cycle" in columns.title else np.zeros_like(device)
    line = np.array(columns.table.lines, dtype=np.int64)
    file = str(path)
    if kind == "curves":
        return CurveData(
            file=file,
            names=names,
            device=device,
            cycle=cycle,
            line=line,
            voltage=columns.numbers("voltage"),
            current=columns.numbers("current"),
        )
    conductance = columns.numbers("conductance", least=0.0)
    if kind == "reads":
        time = columns.numbers("time", above=0.0) if "time" in columns.title else None
        target = columns.numbers("target", least=0.0) if "target" in columns.title else None
        return ReadData(
            file=file,
            names=names,
            device=device,
            cycle=cycle,
            line=line,
            target=target,
            time=time,
            conductance=conductance,
        )
    pulse = columns.counts("pulse")
    return PulseData(
        file=file,
        names=names,
        device=device,
        cycle=cycle,
        line=line,
        pulse=pulse,
        up=columns.directions(pulse),
        conductance=conductance,
    )


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """A table whose columns are known by what they hold."""

    table: CsvTable
    title: dict[str, str]
    """What is measured -> the column's title in the file."""
    scale: dict[str, float]

    @classmethod
    def of(cls, table: CsvTable) -> _Columns:
        title: dict[str, str] = {}
        scale: dict[str, float] = {}
        for header in table.header:
            match = _TITLE.fullmatch(header)
            word, unit = (match[1].lower(), match[2]) if match else (header.lower(), None)
            for name, words in _NAMES.items():
                if word not in words:
                    continue
                if name in title:
                    rule = f"two columns hold the {name}: {title[name]} and {header}"
                    raise SpecError(rule, file=table.path, remedy="Rename one of them.")
                title[name] = header
                scale[name] = _scale(table.path, header, unit, _UNITS.get(name))
        return cls(table=table, title=title, scale=scale)

    def cells(self, name: str) -> list[str]:
        return self.table.cells(self.title[name], "column")

    def refusal(self, name: str, line: int, rule: str, cell: str, remedy: str | None = None) -> SpecError:
        return SpecError(
            rule,
            file=self.table.path,
            object=f"line {line}",
            field=f"column {self.title[name]}",
            value=cell,
            remedy=remedy,
        )

    def numbers(self, name: str, *, least: float = -np.inf, above: float = -np.inf) -> FloatArray:
        found = self.table.numbers(self.title[name], "column") * self.scale[name]
        bad = np.flatnonzero((found < least) | (found <= above))
        if len(bad):
            rule = "must be greater than 0" if above == 0 else "must not be negative"
            cell = self.cells(name)[bad[0]]
            remedy = "Seconds since the write." if name == "time" else "Leave the reading out if it failed."
            raise self.refusal(name, self.table.lines[bad[0]], rule, cell, remedy)
        return found

    def counts(self, name: str) -> NDArray[np.int64]:
        found = self.numbers(name)
        for value, line, cell in zip(found, self.table.lines, self.cells(name), strict=True):
            if value < 0 or value != np.floor(value) or value > 1e12:
                remedy = "Pulses are counted 0 (before any), 1, 2, ...; their direction has its own column."
                raise self.refusal(name, line, "must be a whole number from 0", cell, remedy)
        return found.astype(np.int64)

    def directions(self, pulse: NDArray[np.int64]) -> NDArray[np.bool_]:
        name = "direction" if "direction" in self.title else "voltage"
        if name not in self.title:
            raise SpecError(
                "has no column that gives the direction of pulses",
                file=self.table.path,
                remedy="Add a column direction (up or down), or the pulses' voltage with its sign.",
            )
        found = np.empty(len(pulse), dtype=bool)
        known: list[int] = []
        for k, (cell, line) in enumerate(zip(self.cells(name), self.table.lines, strict=True)):
            word = cell.lower()
            if pulse[k] == 0:
                # Before any pulse there is no direction; it takes that of the next one.
                known.append(k)
                continue
            if word in _UP or word in _DOWN:
                found[k] = word in _UP
            else:
                found[k] = self._sign(name, line, cell) > 0
            found[known] = found[k]
            known.clear()
        found[known] = True
        return found

    def _sign(self, name: str, line: int, cell: str) -> float:
        remedy = "Write up or down, + or -, set or reset, or a number of that sign."
        try:
            value = parse_quantity(cell)
        except SpecError:
            raise self.refusal(name, line, "is no direction", cell, remedy) from None
        if value == 0:
            raise self.refusal(name, line, "is no direction", cell, remedy)
        return value


def _scale(path: Path, header: str, unit: str | None, base: str | None) -> float:
    if not unit or base is None:
        return 1.0
    prefix = unit[: -len(base)] if unit.lower().endswith(base.lower()) else None
    # h, min and the like are no seconds; ms, us and ns are.
    if prefix is not None and (base.isupper() or unit.endswith(base)):
        try:
            return parse_quantity(f"1{prefix}")
        except SpecError:
            pass
    raise SpecError(
        f"has an unknown unit: expected {base}, with a SPICE prefix if you like",
        file=path,
        field=f"column {header}",
        value=unit,
    )


def _numbered(cells: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the distinct texts in the order of the file, and each row's place among them."""
    places: dict[str, int] = {}
    numbers = [places.setdefault(cell, len(places)) for cell in cells]
    return tuple(places), np.array(numbers, dtype=np.int64)


def _kind(columns: _Columns) -> Kind:
    there = set(columns.title)
    if "pulse" in there and "conductance" in there:
        return "pulses"
    if "conductance" in there:
        return "reads"
    if {"voltage", "current"} <= there:
        return "curves"
    raise SpecError(
        "holds neither conductances nor voltages and currents",
        file=columns.table.path,
        remedy=f"Columns there: {', '.join(columns.table.header)}. {_SHAPES}",
    )
