"""One way in: a plan for a netlist, and solves on it that report their own residual."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import ConvergenceError, NetlistError
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.banks import Phase
from circuitsim.solver.dual import DualNetwork
from circuitsim.solver.equations import Equations, drive_residual
from circuitsim.solver.general import GeneralPlan
from circuitsim.solver.layered import FreePoint, LayerChange, LayeredPlan
from circuitsim.solver.layers import NotLayered
from circuitsim.solver.lines import batches
from circuitsim.solver.point import STATUS, Drive, OperatingPoint, SolverSettings
from circuitsim.solver.wired import NotWired, WiredPlan

__all__ = ["Plan", "build_plan", "free_layers", "layered_change", "solve", "solve_transposed", "unsettled"]

_REFEREE = {"float64": 1e-9, "float32": 1e-4}
"""Largest KCL residual that counts as converged, relative to the largest branch current."""
_REFEREE_FLOOR = 1e-15
"""The same in A, where nothing flows."""
_OUTWEIGHED = 4
_RESCUE_LIMIT, _RESCUE_DEVICES = 20_000, 100_000
"""Most unknowns and devices for which samples that sweeps leave unconverged go to the general method."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a netlist's structure implies for solving it; made by `build_plan`."""

    netlist: Netlist
    method: Literal["general", "layered", "wired"]
    """The method that ``auto`` takes."""
    why_not_layered: str | None
    why_not_wired: str | None
    _layered: LayeredPlan | None
    _wired: WiredPlan | None

    @cached_property
    def general(self) -> GeneralPlan:
        return GeneralPlan(self.netlist)

    @property
    def layered(self) -> LayeredPlan:
        """The layered plan.

        Raises:
            NetlistError: the netlist is not a network of layers.
        """
        if self._layered is None:
            raise NetlistError(
                f"the layered method does not fit: {self.why_not_layered}",
                object=self.netlist.title,
                remedy="Use method general.",
            )
        return self._layered

    @property
    def wired(self) -> WiredPlan:
        """The wired plan.

        Raises:
            NetlistError: the netlist is more than crossbars with line resistance.
        """
        if self._wired is None:
            raise NetlistError(
                f"the wired method does not fit: {self.why_not_wired}",
                object=self.netlist.title,
                remedy="Use method general.",
            )
        return self._wired

    def chosen(self, settings: SolverSettings) -> Literal["general", "layered", "wired"]:
        return self.method if settings.method == "auto" else settings.method


def build_plan(netlist: Netlist) -> Plan:
    """Look at the structure once: pick the method, number the unknowns, find the layers."""
    layered, not_layered, wired, not_wired = None, None, None, None
    try:
        layered = LayeredPlan(netlist)
    except NotLayered as error:
        not_layered = str(error)
    try:
        wired = WiredPlan(netlist)
    except NotWired as error:
        not_wired = str(error)
    return Plan(
        netlist=netlist,
        method="wired" if wired is not None else "layered" if layered is not None else "general",
        why_not_layered=not_layered,
        why_not_wired=not_wired,
        _layered=layered,
        _wired=wired,
    )


def solve(
    plan: Plan,
    values: Values,
    drive: Drive | ArrayLike,
    settings: SolverSettings | None = None,
    *,
    start: OperatingPoint | None = None,
    guess: FloatArray | None = None,
) -> OperatingPoint:
    """Solve ``F(x) = 0`` with the drive's nudge and correction, for B samples.

    Args:
        plan: from `build_plan`.
        values: element values, ``netlist.values()`` or a chip's.
        drive: a `Drive`, or plain inputs (B, n_in) for the free phase.
        settings: method, precision, tolerances.
        start: a nearby operating point to start from.
        guess: for the layered nudged and corrected phases, a displacement (B, N) V to start from.

    Raises:
        ConvergenceError: a sample did not converge and ``settings.throw`` is set.
        NetlistError: a correction that does not fit the netlist, or without an anchor.
    """
    settings = settings or SolverSettings()
    if not isinstance(drive, Drive):
        drive = Drive.of(plan.netlist, drive)
    _check_correction(plan, drive)
    method = plan.chosen(settings)
    wired = plan.wired if method == "wired" else None
    if method == "layered":
        point = _solve_layered(plan, values, drive, settings, start, guess)
    elif wired is not None and drive.nudge is None and drive.anchor is None:
        point = _solve_wired(wired, values, drive, settings)
    else:
        point = _solve_general(plan, values, drive, settings, start)
    if settings.throw and not point.converged:
        raise _not_converged(plan, point)
    if drive.nudge is None and drive.anchor is None and point.converged:
        object.__setattr__(point, "_free_of", (values, drive.inputs))
    return point


def _check_correction(plan: Plan, drive: Drive) -> None:
    if drive.correction is None:
        return
    if drive.anchor is None:
        raise NetlistError(
            "faults of a correction need a corrected phase",
            object=plan.netlist.title,
            field="correction",
            remedy="Give the drive an anchor, or no correction.",
        )
    drive.correction.check(plan.netlist, len(drive.inputs))


def _solve_general(
    plan: Plan, values: Values, drive: Drive, settings: SolverSettings, start: OperatingPoint | None
) -> OperatingPoint:
    general = plan.general
    if settings.precision != "float64":
        raise NetlistError("float32 is for the layered method only", object=plan.netlist.title)
    equations = Equations(netlist=plan.netlist, values=values)
    drive = replace(drive, anchor=_with_currents(equations, drive.anchor))
    result = general.run(values, drive, settings, _with_currents(equations, start))
    v, i = result.node_voltage, result.branch_current
    # The currents of sources that left the equations follow from KCL at the nodes that they hold.
    nodes = general.fixed_nodes
    node, _, _ = drive_residual(equations, drive, v, i)
    sign = np.where(plan.netlist.vsource.pos[general.fixing_source[nodes]] == nodes, 1.0, -1.0)
    i[:, general.fixing_source[nodes]] = -sign * node[:, nodes]
    return _checked(equations, drive, settings, v, i, result.iterations, result.status, "general")


def _solve_wired(wired: WiredPlan, values: Values, drive: Drive, settings: SolverSettings) -> OperatingPoint:
    if settings.precision != "float64":
        raise NetlistError("float32 is for the layered method only", object=wired.netlist.title)
    points = []
    for rows in batches(len(drive.inputs), wired.cells):
        part = replace(drive, inputs=drive.inputs[rows])
        result = wired.free(values, part.inputs, settings)
        equations = Equations(netlist=wired.netlist, values=values, interiors=result.interiors)
        v, i = result.node_voltage, result.branch_current
        leaving, _, _ = drive_residual(equations, part, v, i)
        wired.source_currents(i, leaving)
        points.append(_checked(equations, part, settings, v, i, result.iterations, result.status, "wired"))
    if len(points) == 1:
        return points[0]
    arrays: dict[str, Any] = {
        item.name: np.concatenate([getattr(point, item.name) for point in points])
        for item in fields(OperatingPoint)
        if isinstance(getattr(points[0], item.name), np.ndarray)
    }
    return replace(points[0], **arrays)


def _solve_layered(
    plan: Plan,
    values: Values,
    drive: Drive,
    settings: SolverSettings,
    start: OperatingPoint | None,
    guess: FloatArray | None,
) -> OperatingPoint:
    layered = plan.layered
    if drive.anchor is None and drive.nudge is None:
        found = layered.free(values, drive.inputs, settings, _start(layered, start))
        left = np.flatnonzero(found.status)
        if not settings.check and not len(left):
            return OperatingPoint.of_layers(found, lambda: layered.node_voltage(found))
        v = layered.node_voltage(found)
        point = _finished(plan, values, drive, settings, v, found.iterations, found.status, None, None)
        if not len(left):
            object.__setattr__(point, "_layers", found)
        return point
    base = drive.anchor
    if base is None:
        base = start or solve(plan, values, drive.with_nudge(None), settings)
    phase: Phase = "nudged" if drive.anchor is None else "corrected"
    first = None if guess is None else layered.change_of(guess, phase, settings.precision)
    change, point0 = layered_change(plan, values, drive, base, settings, start=first)
    moved = layered.displacement(point0, change)
    implied = layered.node_voltage(point0)
    v = implied + moved
    if not base.is_free_of(values, drive.inputs):
        # The point may be off, or of other inputs: driven nodes then move from where it has them.
        moved += implied - base.node_voltage
    return _finished(plan, values, drive, settings, v, change.iterations, change.status, moved, base)


def layered_change(
    plan: Plan,
    values: Values,
    drive: Drive,
    base: OperatingPoint,
    settings: SolverSettings,
    *,
    start: LayerChange | None = None,
) -> tuple[LayerChange, FreePoint]:
    """Return the displacement of the layers from ``base`` in a nudged or corrected phase, and its base."""
    layered = plan.layered
    _check_correction(plan, drive)
    # Around the free point its own equations drop out, and with them all cancellation.
    elsewhere = not base.is_free_of(values, drive.inputs)
    point = free_layers(plan, values, drive.inputs, base, settings)
    held = None
    if elsewhere and drive.anchor is not None and base.branch_current.shape[1]:
        equations = Equations(netlist=plan.netlist, values=values)
        held = base.branch_current - equations.grounded_branch_currents(layered.node_voltage(point))
    phase: Phase = "nudged" if drive.anchor is None else "corrected"
    change = layered.increments(
        point,
        phase,
        settings,
        nudge=drive.nudge,
        residual=elsewhere,
        held_current=held,
        start=start,
        correction=drive.correction,
    )
    return change, point


def free_layers(
    plan: Plan, values: Values, inputs: FloatArray, point: OperatingPoint, settings: SolverSettings
) -> FreePoint:
    """Return the layers' form of a point: its own if it is the free point of these values and inputs."""
    own = point._layers
    if (
        own is not None
        and own.weights.dtype == settings.precision
        and own.weights.values is values
        and point.is_free_of(values, inputs)
    ):
        return own
    return plan.layered.at(values, inputs, point.node_voltage, settings.precision)


def _start(layered: LayeredPlan, start: OperatingPoint | None) -> list[FloatArray] | None:
    if start is None:
        return None
    if start._layers is not None:
        return start._layers.layers
    return [np.ascontiguousarray(start.node_voltage[:, nodes]) for nodes in layered.layers]


def _finished(
    plan: Plan,
    values: Values,
    drive: Drive,
    settings: SolverSettings,
    v: FloatArray,
    iterations: NDArray[np.int64],
    status: NDArray[np.int8],
    displacement: FloatArray | None,
    base: OperatingPoint | None,
) -> OperatingPoint:
    """Return the point of a layered solve: samples that it left go to the general method."""
    equations = Equations(netlist=plan.netlist, values=values)
    method = "layered"
    left = np.flatnonzero((status != 0) & (status != _OUTWEIGHED))
    if len(left) and settings.method == "auto" and _rescuable(plan):
        # Sweeps need not contract where Newton converges.
        rescue = _solve_general(
            plan, values, _rows(drive, left), replace(settings, check=True, precision="float64"), None
        )
        iterations, status = iterations.copy(), status.copy()
        v[left], iterations[left], status[left] = rescue.node_voltage, rescue.iterations, rescue.status
        if displacement is not None and base is not None:
            displacement[left] = rescue.node_voltage - base.node_voltage[left]
        method = f"layered, {len(left)} of {len(v)} samples by general"
    i = np.empty((len(v), 0))
    if settings.check:
        i = equations.grounded_branch_currents(v)
    point = _checked(equations, drive, settings, v, i, iterations, status, method, displacement)
    return replace(point, displacement=displacement)


def _with_currents(equations: Equations, point: OperatingPoint | None) -> OperatingPoint | None:
    if point is None or point.branch_current.shape[1] == equations.n_branches:
        return point
    return replace(point, branch_current=equations.grounded_branch_currents(point.node_voltage))


def _rows(drive: Drive, index: NDArray[np.int64]) -> Drive:
    anchor = drive.anchor
    if anchor is not None:
        anchor = replace(
            anchor,
            node_voltage=anchor.node_voltage[index],
            branch_current=anchor.branch_current[index],
        )
    nudge = None if drive.nudge is None else drive.nudge.rows(index)
    correction = None if drive.correction is None else drive.correction.rows(index)
    return replace(drive, inputs=drive.inputs[index], nudge=nudge, anchor=anchor, correction=correction)


def _checked(
    equations: Equations,
    drive: Drive,
    settings: SolverSettings,
    v: FloatArray,
    i: FloatArray,
    iterations: NDArray[np.int64],
    status: NDArray[np.int8],
    method: str,
    displacement: FloatArray | None = None,
) -> OperatingPoint:
    unknown = np.full(len(v), np.nan)
    residual, largest, power = unknown, unknown, unknown
    if settings.check:
        drive = replace(drive, anchor=_with_currents(equations, drive.anchor))
        # Samples that were lost may have overflowed: their status says so.
        with np.errstate(over="ignore", invalid="ignore"):
            node, _, largest = drive_residual(equations, drive, v, i)
            residual = np.maximum(np.abs(node).max(axis=1), equations.interior_residual(v))
            power = equations.power(v)
        # Whatever a method believes: the referee decides what is called converged.
        rounding = np.finfo(settings.precision).eps * equations.rounding(v, displacement)
        allowed = _REFEREE[settings.precision] * largest + 8 * rounding + _REFEREE_FLOOR
        status = np.where((status == 0) & ~(residual <= allowed), np.int8(1), status)
    for array in (v, i):
        array.flags.writeable = False
    return OperatingPoint(
        node_voltage=v,
        branch_current=i,
        kcl_residual=residual,
        largest_current=largest,
        power=power,
        iterations=iterations,
        status=status,
        method=method,
    )


def _not_converged(plan: Plan, point: OperatingPoint) -> ConvergenceError:
    bad = np.flatnonzero(point.status)
    code = int(point.status[bad[0]])
    residual = point.kcl_residual[bad[0]]
    detail = "" if np.isnan(residual) else f", KCL residual {residual:.2e} A"
    return ConvergenceError(
        f"{len(bad)} of {len(point.status)} samples did not converge (first: sample {bad[0]}{detail}; "
        f"{point.method}): {STATUS[code]}",
        object=plan.netlist.title,
    )


def solve_transposed(
    plan: Plan,
    values: Values,
    point: OperatingPoint,
    output_current: FloatArray,
    settings: SolverSettings | None = None,
    *,
    inputs: FloatArray,
    start: FloatArray | None = None,
    dual: DualNetwork | None = None,
) -> FloatArray:
    """Return ``s`` (B, N) V with ``J0^T s = -output_current`` at the outputs, J0 at ``point``.

    The response of the adjoint network to ``output_current`` (B, K) A drawn from its outputs; with ``dual``
    that of a copy with devices of its own.

    Raises:
        ConvergenceError: the sweeps of the layered method did not settle.
        NetlistError: a copy that does not fit the netlist.
    """
    settings = settings or SolverSettings()
    equations = Equations(netlist=plan.netlist, values=values)
    if plan.chosen(settings) != "layered":
        full = _with_currents(equations, point)
        assert full is not None
        return _transposed(plan, values, full, output_current, dual)
    if dual is not None:
        dual.check(plan.netlist)
    layered = plan.layered
    base = free_layers(plan, values, inputs, point, settings)
    guess = None if start is None else layered.change_of(start, "transposed", settings.precision)
    result = layered.increments(
        base, "transposed", settings, output_current=output_current, start=guess, dual=dual
    )
    displacement = layered.displacement(base, result)
    left = np.flatnonzero(result.status)
    if len(left):
        if settings.method == "layered" or not _rescuable(plan):
            raise unsettled(plan, result.status)
        full = _with_currents(equations, point)
        assert full is not None
        some = replace(full, node_voltage=full.node_voltage[left], branch_current=full.branch_current[left])
        displacement[left] = _transposed(plan, values, some, output_current[left], dual)
    return displacement


def _transposed(
    plan: Plan, values: Values, point: OperatingPoint, output_current: FloatArray, dual: DualNetwork | None
) -> FloatArray:
    """Solve the transposed system by the general method, a copy's sample by sample: each is linear."""
    if dual is None:
        return plan.general.transposed(values, point, output_current)
    dual.check(plan.netlist)
    found = []
    for b, voltage in enumerate(point.node_voltage):
        k = slice(b, b + 1)
        one = replace(point, node_voltage=voltage[None], branch_current=point.branch_current[k])
        copied = dual.linearised(plan.netlist, values, voltage)
        found.append(plan.general.transposed(copied, one, output_current[k]))
    return np.concatenate(found)


def _rescuable(plan: Plan) -> bool:
    """Whether a network is small enough for Newton's method on all of its devices."""
    devices = sum(crossbar.devices for crossbar in plan.netlist.crossbars)
    return devices <= _RESCUE_DEVICES and plan.general.n_unknowns <= _RESCUE_LIMIT


def unsettled(plan: Plan, status: NDArray[np.int8]) -> ConvergenceError:
    """Return the error of layered displacements that did not settle."""
    bad = np.flatnonzero(status)
    return ConvergenceError(
        f"{len(bad)} of {len(status)} samples did not settle (first: sample {bad[0]}): "
        f"{STATUS[int(status[bad[0]])]}",
        object=plan.netlist.title,
    )
