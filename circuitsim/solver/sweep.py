"""Operating points along a sweep of sources or resistors, each started from the one before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import ConvergenceError, SpecError
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.driven import DrivenCircuit
from circuitsim.solver.kernels.sweep import follow
from circuitsim.solver.point import STATUS, OperatingPoint, SolverSettings
from circuitsim.solver.solve import Plan

__all__ = ["SweepResult", "Swept", "sweep", "sweep_values"]

_MOST_POINTS = 10_000_000
_MOST_KEPT = 250_000_000
_CHUNK = 1024
"""Points between two chances to interrupt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """``source``, a voltage source [V], current source [A] or resistor [ohm], takes ``values`` (P,)."""

    source: str
    values: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult:
    """P operating points, in the order in which they were solved."""

    names: tuple[str, ...]
    """What was swept; the first runs fastest."""
    swept: FloatArray
    """(P, len(names)) V, A or ohm."""
    node_voltage: FloatArray
    """(P, N) V, ground included."""
    branch_current: FloatArray
    """(P, M) A"""
    kcl_residual: FloatArray
    """(P,) A"""
    relative_residual: FloatArray
    """(P,) over the largest current."""
    iterations: int


def sweep_values(start: float, stop: float, step: float) -> FloatArray:
    """Return start, start + step, ... up to stop, both ends included where they meet.

    Raises:
        SpecError: a step of 0, one that leads away from the end, or too many points.
    """
    for name, value in (("start", start), ("stop", stop), ("step", step)):
        if not math.isfinite(value):
            raise SpecError("must be finite", field=name, value=value)
    if start == stop:
        return np.array([start])
    if step == 0 or (stop - start) / step < 0:
        raise SpecError("must lead from the start to the end of the sweep", field="step", value=step)
    # A thousandth of a step is rounding of decimal numbers, not a wish to end earlier.
    count = (stop - start) / step + 1e-3
    if count > _MOST_POINTS:
        raise SpecError(f"makes more than {_MOST_POINTS} points", field="step", value=step)
    return start + step * np.arange(int(count) + 1, dtype=np.float64)


def sweep(
    plan: Plan,
    values: Values,
    swept: Sequence[Swept],
    *,
    inputs: ArrayLike | None = None,
    start: OperatingPoint | None = None,
    settings: SolverSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Solve an operating point at every combination of values, the first quantity running fastest.

    Each point starts from the one before, as a slow sweep of the real circuit would: where there are
    several operating points it stays on its branch as long as that exists.

    Args:
        plan: from `build_plan`.
        values: element values.
        swept: what takes which values.
        inputs: (n_in,) for the input ports.
        start: a point to start the first one from.
        settings: method and tolerances.
        progress: called with points done and points in all.

    Raises:
        ConvergenceError: a point that was not found, neither from its neighbour nor from zero.
        NetlistError: no such source or resistor.
        SpecError: a value that the quantity cannot take.
    """
    settings = settings or SolverSettings(method="general")
    n = plan.netlist
    resistors = {name: row for row, name in enumerate(n.resistor.name)}
    circuit = DrivenCircuit(
        plan, values, [one.source for one in swept if one.source not in resistors], inputs
    )
    n, general = circuit.netlist, circuit.general
    columns = [circuit.names.index(one.source) if one.source not in resistors else -1 for one in swept]
    shape = tuple(len(one.values) for one in swept)
    total = math.prod(shape)
    if total * (n.n_nodes + len(n.branch_names)) > _MOST_KEPT:
        raise SpecError("the sweep has too many points for this many nodes", value=total)
    grid = np.meshgrid(*(one.values for one in reversed(swept)), indexing="ij")
    table = np.stack([part.reshape(-1) for part in reversed(grid)], axis=1)
    # Values of sources change from point to point, those of resistors from stretch to stretch.
    held = np.array([column < 0 for column in columns])
    edges = np.flatnonzero(np.any(np.diff(table[:, held], axis=0) != 0, axis=1)) + 1
    tables = {kind: dict(part) for kind, part in circuit.values.tables.items()}
    conductance = tables["resistor"]["conductance"] = np.array(tables["resistor"]["conductance"])
    parts: list[tuple[FloatArray, FloatArray, FloatArray, FloatArray]] = []
    iterations = 0
    x = np.zeros(general.n_unknowns)
    if start is not None:
        v, i = general.lift(circuit.values, start.node_voltage[:1], start.branch_current[:1])
        x = general._unknowns(v, i)[0]
    for rows in np.split(table, [*_chunks(edges, total)]):
        for column, one, value in zip(columns, swept, rows[0], strict=True):
            if column < 0:
                if value == 0:
                    raise SpecError("a resistance must not be 0", field=one.source, value=float(value))
                conductance[resistors[one.source]] = 1 / value
        circuit.values = replace(circuit.values, tables=tables)
        w = np.empty((len(rows), len(circuit.names)))
        for column, part in zip(columns, rows.T, strict=True):
            if column >= 0:
                w[:, column] = part
        found, used, x = _follow(circuit, w, x, settings, names=[one.source for one in swept], table=rows)
        parts.append(found)
        iterations += used
        if progress is not None:
            progress(sum(len(part[0]) for part in parts), total)
    voltage, current, residual, largest = (np.concatenate(part) for part in zip(*parts, strict=True))
    return SweepResult(
        names=tuple(one.source for one in swept),
        swept=table,
        node_voltage=voltage,
        branch_current=current,
        kcl_residual=residual,
        relative_residual=residual / np.maximum(largest, 1e-300),
        iterations=iterations,
    )


def _chunks(edges: NDArray[np.int64], total: int) -> list[int]:
    """Return where to cut: at the edges, and often enough that a run can be interrupted."""
    return sorted({*edges.tolist(), *range(_CHUNK, total, _CHUNK)})


def _follow(
    circuit: DrivenCircuit,
    w: FloatArray,
    x0: FloatArray,
    settings: SolverSettings,
    *,
    names: Sequence[str],
    table: FloatArray,
) -> tuple[tuple[FloatArray, FloatArray, FloatArray, FloatArray], int, FloatArray]:
    """Solve the points w (P, W) from unknowns x0; return what a result keeps, iterations, the last x."""
    general = circuit.general
    values = circuit.values_at(np.zeros(w.shape[1]))
    matrices, tied, flat_values = general._circuit(values, None)
    tables = {kind: dict(part) for kind, part in flat_values.tables.items()}
    tables["isource"] = dict(circuit.values_at(w).tables["isource"])
    source = circuit.source_voltage(w)
    v = general._known_voltages(source)
    constant = general._constant(v, source, tied, replace(flat_values, tables=tables), None)
    x = np.zeros((len(w), len(x0)))
    x[0] = x0
    iterations = np.zeros(len(w), dtype=np.int64)
    limits = (settings.relative_tolerance, settings.absolute_tolerance, settings.voltage_tolerance)
    lu, target = general._factors(matrices, v[0]), general._targets(1, None)[0]
    done, status = follow(matrices, lu, x, v, constant, target, limits, settings.max_iterations, iterations)
    place = min(done, len(w) - 1)
    where = ", ".join(f"{name} = {value:g}" for name, value in zip(names, table[place], strict=True))
    if done < len(w):
        raise ConvergenceError(f"at {where}: {STATUS[status]}", object=circuit.netlist.title)
    voltage, current = circuit.expand(x, w)
    residual, largest = circuit.balance(voltage, current, w)
    wrong = np.flatnonzero(residual > 1e-9 * largest + 1e-15)
    if len(wrong):
        raise ConvergenceError(
            f"KCL is violated by {residual[wrong[0]]:.2e} A at point {wrong[0]} of the sweep",
            object=circuit.netlist.title,
        )
    return (voltage, current, residual, largest), int(iterations.sum()), x[-1]
