"""Letting a circuit relax to its steady state, and saying whether it did, or why it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import ConvergenceError, NetlistError, SpecError
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.point import Drive, OperatingPoint, SolverSettings
from circuitsim.solver.smallsignal import small_signal
from circuitsim.solver.solve import Plan, solve
from circuitsim.solver.transient import TransientRun, TransientSettings

__all__ = ["Settling", "settle"]

_CONSTANTS = 200.0
"""Time constants of the slowest motion that a circuit is given."""
_BETWEEN_LOOKS = 20
"""Steps between two looks at where the circuit is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Settling:
    """How a circuit relaxed. ``distance`` [V] is that of its nodes to ``point`` in the end."""

    settled: bool
    reason: str
    """In a sentence."""
    time: float
    """Since the start [s]."""
    distance: float
    point: OperatingPoint | None
    """The operating point that it settled at, or at which it should have."""
    largest_real: float | None
    """Largest real part of the spectrum at that point [1/s]; None where it was not computed."""
    node_voltage: FloatArray
    """(N,) V in the end."""
    steps: int


def settle(
    plan: Plan,
    values: Values,
    *,
    inputs: ArrayLike | None = None,
    initial_voltage: Mapping[str, float] | None = None,
    element_initial: Mapping[str, float] | None = None,
    limit: float | None = None,
    tolerance: float = 1e-9,
    settings: TransientSettings | None = None,
    progress: Callable[[float], None] | None = None,
) -> Settling:
    """Relax a circuit from rest, its sources constant, until it is at an operating point.

    Args:
        plan: from `build_plan`.
        values: element values.
        inputs: (n_in,) for the input ports.
        initial_voltage: V by node, where capacitors do not start empty.
        element_initial: V by capacitor, A by inductor.
        limit: when to give up [s]; 200 time constants of the slowest motion unless given.
        tolerance: largest distance of a node from the operating point [V] that counts as settled.
        settings: tolerances of the steps on the way; the end does not depend on them.
        progress: called now and then with the time reached [s].

    Raises:
        ConvergenceError: a step that could not be solved.
        NetlistError: nothing stores charge, or there is no saying how long to wait.
        SpecError: a tolerance or limit that is not a positive number.
    """
    for name, value in (("tolerance", tolerance), ("limit", 1.0 if limit is None else limit)):
        if not 0 < value < math.inf:
            raise SpecError("must be a positive number", field=name, value=value)
    if not _stores_charge(plan, values):
        raise NetlistError(
            "has no dynamics: nothing in it stores charge",
            object=plan.netlist.title,
            remedy="Give its layers a capacitance.",
        )
    u = np.zeros(plan.netlist.inputs.size) if inputs is None else np.asarray(inputs, dtype=np.float64)
    drive = Drive(inputs=Drive.of(plan.netlist, u).inputs[:1])
    try:
        expected: OperatingPoint | None = solve(plan, values, drive, SolverSettings(method="general"))
    except (ConvergenceError, NetlistError):
        expected = None
    rate = _spectrum(plan, values, expected)
    slowest = 1 / abs(rate) if rate else _slowest(plan, values)
    limit = _CONSTANTS * slowest if limit is None else limit
    settings = settings or TransientSettings()
    if settings.largest_step is None:
        settings = replace(settings, largest_step=limit)
    run = TransientRun(plan, values, span=limit, step=limit / 100, waveforms={}, inputs=u, settings=settings)
    run.start_unsettled(initial_voltage or {}, element_initial or {})
    before, still = run.voltage, False
    while run.time < limit and not still:
        steps = run.advance(limit, most=_BETWEEN_LOOKS)
        if not len(steps.end):
            continue
        voltage, _ = run.expand(steps.x, steps.w)
        if progress is not None:
            progress(run.time)
        if expected is not None and (rate is None or rate < 0):
            distance = np.abs(voltage - expected.node_voltage[0]).max(axis=1)
            if distance[-1] <= tolerance:
                away = np.flatnonzero(distance > tolerance)
                first = int(away[-1]) + 1 if len(away) else 0
                return _finished(run, expected, rate, float(distance[-1]), tolerance, time=steps.end[first])
        moved = float(np.abs(voltage[-1] - before).max(initial=0.0))
        before = voltage[-1]
        still = moved <= 0.1 * tolerance and float(np.abs(steps.length[-1])) >= slowest
    # At rest elsewhere, at an unstable point, or not at rest: the point nearby decides.
    v, i = run.state()
    try:
        nearby = solve(
            plan, values, drive, SolverSettings(method="general"), start=_point_like(expected, v, i)
        )
    except (ConvergenceError, NetlistError):
        nearby = None
    if nearby is not None and (expected is None or _distance(v[0], nearby) <= tolerance):
        expected, rate = nearby, _spectrum(plan, values, nearby)
    gave_up = None if still else limit
    return _finished(run, expected, rate, _distance(v[0], expected), tolerance, gave_up=gave_up)


def _finished(
    run: TransientRun,
    point: OperatingPoint | None,
    rate: float | None,
    distance: float,
    tolerance: float,
    *,
    time: float | None = None,
    gave_up: float | None = None,
) -> Settling:
    stable = rate is None or rate < 0
    settled = stable and distance <= tolerance
    if settled:
        reason = f"settled within {tolerance:g} V of the operating point"
    elif point is None:
        reason = "does not settle: no operating point was found"
    elif not stable:
        growth = f"largest real part {rate:.3g} /s"
        if distance <= tolerance:
            reason = f"does not settle: it rests at an unstable operating point, {growth}"
        else:
            reason = f"does not settle: the operating point is unstable, {growth}"
    elif gave_up is not None:
        reason = f"had not settled after {gave_up:.3g} s, {distance:.2e} V from the operating point"
    else:
        reason = f"rests {distance:.2e} V from the operating point"
    return Settling(
        settled=settled,
        reason=reason,
        time=run.time if time is None else float(time),
        distance=distance,
        point=point,
        largest_real=rate,
        node_voltage=run.voltage,
        steps=run.accepted,
    )


def _distance(voltage: FloatArray, point: OperatingPoint | None) -> float:
    if point is None:
        return math.inf
    return float(np.abs(voltage - point.node_voltage[0]).max(initial=0.0))


def _spectrum(plan: Plan, values: Values, point: OperatingPoint | None) -> float | None:
    if point is None:
        return None
    signal = small_signal(plan, values, point.node_voltage[0], point.branch_current[0])
    return None if signal is None else signal.largest_real


def _stores_charge(plan: Plan, values: Values) -> bool:
    diode = values.tables["diode"]
    junctions = np.any(diode["junction_capacitance"] > 0) or np.any(diode["transit_time"] > 0)
    return bool(junctions or np.any(plan.general.storage(values)[0]))


def _slowest(plan: Plan, values: Values) -> float:
    """Return the longest time constant that a node would have alone [s]."""
    general = plan.general
    storage = np.abs(general.storage(values)[0][general.diagonal])
    conductance = np.abs(general._circuit(values, None)[0].linear[general.diagonal])
    there = (storage > 0) & (conductance > 0)
    if not there.any():
        raise NetlistError(
            "how long to wait is not known", object=plan.netlist.title, remedy="Give a limit in seconds."
        )
    return float((storage[there] / conductance[there]).max())


def _point_like(like: OperatingPoint | None, v: FloatArray, i: FloatArray) -> OperatingPoint:
    nothing = np.zeros(1)
    if like is not None:
        return replace(like, node_voltage=v, branch_current=i)
    return OperatingPoint(
        node_voltage=v,
        branch_current=i,
        kcl_residual=nothing,
        largest_current=nothing,
        power=nothing,
        iterations=np.zeros(1, dtype=np.int64),
        status=np.zeros(1, dtype=np.int8),
        method="general",
    )
