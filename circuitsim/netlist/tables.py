"""One table per element kind: a struct of arrays whose columns say what they hold.

A column is a node, a row of another table, a value with its unit, or an expression. Validation,
digests, files and flattening all read the columns' declarations, so a new element is a new table and
no more bookkeeping than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from circuitsim.netlist.expressions import Expression

__all__ = [
    "ELEMENT_TABLES",
    "GMIN",
    "BehaviouralCurrents",
    "BehaviouralVoltages",
    "Buffers",
    "Capacitors",
    "Couplings",
    "CurrentControlledCurrentSources",
    "CurrentControlledVoltageSources",
    "CurrentSources",
    "Diodes",
    "FloatArray",
    "IdealDiodes",
    "Inductors",
    "IntArray",
    "Resistors",
    "Table",
    "VoltageControlledCurrentSources",
    "VoltageControlledVoltageSources",
    "VoltageSources",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GMIN = 1e-12
"""Conductance that SPICE puts in parallel with every diode by default [S]."""


def _node() -> Any:
    return field(metadata={"role": "node"})


def _row_of(table: str) -> Any:
    return field(metadata={"role": "row", "table": table})


def _value(unit: str, rule: str = "finite", default: float | None = None) -> Any:
    metadata = {"role": "value", "unit": unit, "rule": rule, "default": default}
    return field(metadata=metadata) if default is None else field(default=default, metadata=metadata)


def _expression() -> Any:
    return field(metadata={"role": "expression"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Base of the element tables: equal-length columns, read-only."""

    kind: ClassVar[str]
    letter: ClassVar[str]
    name: Sequence[str]

    def __post_init__(self) -> None:
        for column in self.columns():
            if column.metadata["role"] == "expression":
                object.__setattr__(self, column.name, tuple(getattr(self, column.name)))
                continue
            dtype = np.float64 if column.metadata["role"] == "value" else np.int64
            array = np.array(getattr(self, column.name), dtype=dtype).reshape(-1)
            if array.size == 1 and len(self.name) != 1:
                array = np.repeat(array, len(self.name))
            array.flags.writeable = False
            object.__setattr__(self, column.name, array)

    @classmethod
    def columns(cls, role: str | None = None) -> list[Any]:
        """Return the column declarations, all or those of one role (node, row, value, expression)."""
        found = [f for f in fields(cls) if "role" in f.metadata]
        return found if role is None else [f for f in found if f.metadata["role"] == role]

    @classmethod
    def empty(cls) -> Self:
        return cls(name=(), **{column.name: () for column in cls.columns()})

    def __len__(self) -> int:
        return len(self.name)

    def extended(self, name: Sequence[str], **columns: ArrayLike) -> Self:
        """Return a table with more rows at its end; a scalar column is repeated."""
        joined: dict[str, Any] = {}
        for column in self.columns():
            if column.metadata["role"] == "expression":
                added_expressions: Any = columns[column.name]
                joined[column.name] = (*getattr(self, column.name), *added_expressions)
                continue
            value = columns.get(column.name, column.metadata.get("default"))
            added = np.broadcast_to(np.asarray(value), (len(name),))
            joined[column.name] = np.concatenate([getattr(self, column.name), added])
        return type(self)(name=(*self.name, *name), **joined)


@dataclass(frozen=True, kw_only=True, eq=False)
class Resistors(Table):
    """Current leaving ``pos``: ``conductance * (v_pos - v_neg)``."""

    kind, letter = "resistor", "R"
    pos: IntArray = _node()
    neg: IntArray = _node()
    conductance: FloatArray = _value("S", "positive")


@dataclass(frozen=True, kw_only=True, eq=False)
class Capacitors(Table):
    """Current leaving ``pos``: ``capacitance * d(v_pos - v_neg)/dt``; none at an operating point."""

    kind, letter = "capacitor", "C"
    pos: IntArray = _node()
    neg: IntArray = _node()
    capacitance: FloatArray = _value("F", "positive")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inductors(Table):
    """Branch equation: ``v_pos - v_neg - inductance * di/dt = 0``; a short at an operating point."""

    kind, letter = "inductor", "L"
    pos: IntArray = _node()
    neg: IntArray = _node()
    inductance: FloatArray = _value("H", "positive")


@dataclass(frozen=True, kw_only=True, eq=False)
class Couplings(Table):
    """Mutual inductance ``coefficient * sqrt(L_first * L_second)`` of two inductors, SPICE K."""

    kind, letter = "coupling", "K"
    first: IntArray = _row_of("inductor")
    second: IntArray = _row_of("inductor")
    coefficient: FloatArray = _value("1", "between -1 and 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Diodes(Table):
    """Diode as ngspice solves it, anode ``pos``; see `circuitsim.netlist.models`.

    ``slope_voltage`` is the emission coefficient times the thermal voltage, N * Vt. Below
    ``-breakdown_voltage`` the current grows with ``breakdown_slope``. The junction stores the charge of a
    depletion layer (``junction_capacitance`` at 0 V, ``junction_potential``, ``grading``, linear above
    ``depletion_limit`` times the potential) and ``transit_time`` times the junction's current.
    """

    kind, letter = "diode", "D"
    pos: IntArray = _node()
    neg: IntArray = _node()
    saturation_current: FloatArray = _value("A", "positive")
    slope_voltage: FloatArray = _value("V", "positive")
    parallel_conductance: FloatArray = _value("S", "not negative")
    breakdown_voltage: FloatArray = _value("V", "positive or infinite", np.inf)
    breakdown_slope: FloatArray = _value("V", "positive", 1.0)
    junction_capacitance: FloatArray = _value("F", "not negative", 0.0)
    junction_potential: FloatArray = _value("V", "positive", 1.0)
    grading: FloatArray = _value("1", "at least 0 and below 1", 0.5)
    depletion_limit: FloatArray = _value("1", "at least 0 and below 1", 0.5)
    transit_time: FloatArray = _value("s", "not negative", 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class IdealDiodes(Table):
    """Piecewise linear, anode ``pos``. Current leaving ``pos``: ``conductance * max(v_pos - v_neg, 0)``.

    The slope is ``conductance`` above 0 V, and 0 at 0 V and below: a node that ideal diodes alone hold
    floats where these block. Between nodes away from 0 V the current is known to within ``conductance``
    times the rounding of their voltages; with one end at ground there is no such limit.
    """

    kind, letter = "ideal_diode", "B"
    pos: IntArray = _node()
    neg: IntArray = _node()
    conductance: FloatArray = _value("S", "positive", 1e6)


@dataclass(frozen=True, kw_only=True, eq=False)
class VoltageSources(Table):
    """Branch equation: ``v_pos - v_neg - voltage = 0``."""

    kind, letter = "vsource", "V"
    pos: IntArray = _node()
    neg: IntArray = _node()
    voltage: FloatArray = _value("V")


@dataclass(frozen=True, kw_only=True, eq=False)
class CurrentSources(Table):
    """Current leaving ``pos``: ``current`` (it flows from pos through the source to neg)."""

    kind, letter = "isource", "I"
    pos: IntArray = _node()
    neg: IntArray = _node()
    current: FloatArray = _value("A")


@dataclass(frozen=True, kw_only=True, eq=False)
class VoltageControlledCurrentSources(Table):
    """VCCS, SPICE G. Current leaving ``pos``: ``transconductance * (v_cpos - v_cneg)``."""

    kind, letter = "vccs", "G"
    pos: IntArray = _node()
    neg: IntArray = _node()
    control_pos: IntArray = _node()
    control_neg: IntArray = _node()
    transconductance: FloatArray = _value("S")


@dataclass(frozen=True, kw_only=True, eq=False)
class VoltageControlledVoltageSources(Table):
    """VCVS, SPICE E. Branch equation: ``v_pos - v_neg - gain * (v_cpos - v_cneg) = 0``."""

    kind, letter = "vcvs", "E"
    pos: IntArray = _node()
    neg: IntArray = _node()
    control_pos: IntArray = _node()
    control_neg: IntArray = _node()
    gain: FloatArray = _value("V/V")


@dataclass(frozen=True, kw_only=True, eq=False)
class CurrentControlledCurrentSources(Table):
    """CCCS, SPICE F. Current leaving ``pos``: ``gain`` times the current of voltage source ``control``."""

    kind, letter = "cccs", "F"
    pos: IntArray = _node()
    neg: IntArray = _node()
    control: IntArray = _row_of("vsource")
    gain: FloatArray = _value("A/A")


@dataclass(frozen=True, kw_only=True, eq=False)
class CurrentControlledVoltageSources(Table):
    """CCVS, SPICE H. Branch equation: ``v_pos - v_neg - transresistance * i_control = 0``."""

    kind, letter = "ccvs", "H"
    pos: IntArray = _node()
    neg: IntArray = _node()
    control: IntArray = _row_of("vsource")
    transresistance: FloatArray = _value("ohm")


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffers(Table):
    """Saturating amplifier: ``v_pos - v_neg = saturation * tanh(gain * (v_c + offset) / saturation)``.

    ``v_c`` is ``v_cpos - v_cneg``. It draws no current at its control port.
    """

    kind, letter = "buffer", "B"
    pos: IntArray = _node()
    neg: IntArray = _node()
    control_pos: IntArray = _node()
    control_neg: IntArray = _node()
    gain: FloatArray = _value("V/V")
    saturation: FloatArray = _value("V", "positive or infinite")
    offset: FloatArray = _value("V")


@dataclass(frozen=True, kw_only=True, eq=False)
class BehaviouralCurrents(Table):
    """SPICE B with ``I=``. Current leaving ``pos``: the expression [A]."""

    kind, letter = "behavioural_current", "B"
    pos: IntArray = _node()
    neg: IntArray = _node()
    expression: tuple[Expression, ...] = _expression()


@dataclass(frozen=True, kw_only=True, eq=False)
class BehaviouralVoltages(Table):
    """SPICE B with ``V=``. Branch equation: ``v_pos - v_neg`` minus the expression [V] is 0."""

    kind, letter = "behavioural_voltage", "B"
    pos: IntArray = _node()
    neg: IntArray = _node()
    expression: tuple[Expression, ...] = _expression()


ELEMENT_TABLES: tuple[type[Table], ...] = (
    Resistors,
    Capacitors,
    Inductors,
    Couplings,
    Diodes,
    IdealDiodes,
    VoltageSources,
    CurrentSources,
    VoltageControlledCurrentSources,
    VoltageControlledVoltageSources,
    CurrentControlledCurrentSources,
    CurrentControlledVoltageSources,
    Buffers,
    BehaviouralCurrents,
    BehaviouralVoltages,
)
"""A table stands behind those that its rows refer to."""
