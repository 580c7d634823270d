"""Circuits in time: adaptive TR-BDF2 steps on the general plan, checked by equations no solver uses.

    F(x, t) + dQ/dt = 0,   Q: charge of capacitors and junctions, flux of inductors

`circuitsim.solver.kernels.transient` has the method. Steps follow an estimate of the error that each
makes in node voltages and inductor currents; they end exactly at the corners of the sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import ConvergenceError, NetlistError, SpecError
from circuitsim.netlist import GROUND, Netlist, Values
from circuitsim.netlist.formulas import Operation
from circuitsim.netlist.models import DIODE_CHARGE, diode_charge
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.netlist.waveforms import Exponential, PiecewiseLinear, Pulse, Sine, Waveform
from circuitsim.solver.driven import DrivenCircuit, Stored
from circuitsim.solver.kernels.newton import small_signal_values
from circuitsim.solver.kernels.sparse_lu import OK, analyse
from circuitsim.solver.kernels.transient import (
    ACCEPTED,
    ARRIVED,
    EXPONENTIAL,
    FAILED,
    ITERATIONS,
    LINEAR,
    PULSE,
    REFUSED,
    REJECTED,
    SINE,
    TOO_SMALL,
    Dynamics,
    advance,
)
from circuitsim.solver.point import Drive, OperatingPoint, SolverSettings
from circuitsim.solver.solve import Plan, build_plan, solve

__all__ = [
    "TransientResult",
    "TransientRun",
    "TransientSettings",
    "operating_point_at_start",
    "transient",
]

_G = 2.0 - math.sqrt(2.0)
_D = _G / 2.0
_C1 = 1.0 / (_G * (2.0 - _G))
_C0 = (1.0 - _G) ** 2 / (_G * (2.0 - _G))
_ROOM = 4_000_000
"""Numbers in the buffer of steps."""
_MOST_TRIES = 2000
"""Steps between two chances to interrupt."""
_MOST_KEPT = 250_000_000
"""Most numbers that a result may hold: 2 GB."""
_MOST_ENDS = 20_000
"""Most times asked for at which steps end."""
_REFEREE = 1e-9
_ROUNDING = 16 * np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True)
class TransientSettings:
    """How to step. A step's error in a node voltage may be ``relative_tolerance`` of the largest size it has
    had, plus ``voltage_tolerance`` [V]; likewise for inductor currents with ``current_tolerance`` [A].

    ``largest_step`` [s] defaults to a fiftieth of the time simulated, and an eighth of the period of a
    sine; ``smallest_step`` [s] to 1e-13 of it.
    """

    relative_tolerance: float = 1e-6
    voltage_tolerance: float = 1e-9
    current_tolerance: float = 1e-12
    largest_step: float | None = None
    smallest_step: float | None = None
    max_steps: int = 20_000_000
    start: SolverSettings = field(default_factory=lambda: SolverSettings(method="general"))
    """How to solve the operating point that the run starts from."""

    def __post_init__(self) -> None:
        for name in ("relative_tolerance", "voltage_tolerance", "current_tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise SpecError("must be a positive number", field=name, value=getattr(self, name))
        for name in ("largest_step", "smallest_step"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SpecError("must be a positive number of seconds", field=name, value=value)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransientResult:
    """A run: T times, N nodes, M branches."""

    time: FloatArray
    """(T,) s: every accepted step, or the times asked for."""
    node_voltage: FloatArray
    """(T, N) V, ground included."""
    branch_current: FloatArray
    """(T, M) A, in the order of ``Netlist.branch_names``."""
    kcl_residual: float
    """Largest over all steps [A], beyond rounding of the charges' differences, by equations that the
    stepping does not use. The very short steps after corners do not count."""
    relative_residual: float
    """The same over the largest current of any element in the run."""
    accepted: int
    rejected: int
    failed: int
    """Steps that Newton's method did not solve."""
    iterations: int
    node_names: tuple[str, ...]
    branch_names: tuple[str, ...]

    def voltage(self, node: str) -> FloatArray:
        """Return the voltage of a node (T,) V by its name.

        Raises:
            NetlistError: no such node.
        """
        if node not in self.node_names:
            raise NetlistError("no such node", value=node)
        return self.node_voltage[:, self.node_names.index(node)]

    def current(self, branch: str) -> FloatArray:
        """Return the current of a branch (T,) A by its name.

        Raises:
            NetlistError: no such branch.
        """
        if branch not in self.branch_names:
            raise NetlistError("no such branch", value=branch)
        return self.branch_current[:, self.branch_names.index(branch)]


def transient(
    plan: Plan,
    values: Values,
    *,
    stop: float,
    step: float | None = None,
    waveforms: Mapping[str, Waveform] | None = None,
    inputs: ArrayLike | None = None,
    initial_voltage: Mapping[str, float] | None = None,
    element_initial: Mapping[str, float] | None = None,
    start: OperatingPoint | None = None,
    uic: bool = False,
    times: ArrayLike | None = None,
    settings: TransientSettings | None = None,
    progress: Callable[[float], None] | None = None,
) -> TransientResult:
    """Integrate a circuit from time 0 to ``stop`` [s].

    Args:
        plan: from `build_plan`.
        values: element values.
        stop: end [s].
        step: what waveforms without times of their own take as one step [s]; a hundredth of ``stop``
            unless given.
        waveforms: what voltage and current sources do, by name; the others keep their values.
        inputs: (n_in,) for the input ports.
        initial_voltage: V by node. Without ``uic`` these nodes are held there while the operating point
            that the run starts from is solved; with it, capacitors start from the differences.
        element_initial: V by capacitor, A by inductor; with ``uic`` only.
        start: a point to start from instead of the operating point.
        uic: start from the initial conditions, everything else at rest, and solve no operating point.
            The first row is then just after time 0.
        times: rising times [s] to report, instead of all accepted steps. Steps of a nonlinear circuit end
            at them, as long as there are no more than 20,000; else they are read off a parabola per step.
        settings: tolerances and step lengths.
        progress: called now and then with the time reached [s].

    Raises:
        ConvergenceError: no operating point to start from, or steps that got too small.
        NetlistError: a source, node or element that is not there.
        SpecError: a time that is no time.
    """
    if not 0 < stop < math.inf:
        raise SpecError("must be a positive number of seconds", field="stop", value=stop)
    run = TransientRun(
        plan,
        values,
        span=stop,
        step=stop / 100 if step is None else step,
        waveforms=waveforms or {},
        inputs=inputs,
        settings=settings or TransientSettings(),
    )
    if uic:
        run.start_unsettled(initial_voltage or {}, element_initial or {})
    elif start is not None:
        run.start_at(start)
    else:
        run.start_at(run.operating_point(initial_voltage or {}))
    wanted = None if times is None else _checked_times(times, stop)
    keep = _Keeper(run, wanted)
    run.end_steps_at(wanted)
    while run.time < stop:
        keep.add(run.advance(stop))
        if progress is not None:
            progress(run.time)
    return keep.result()


def operating_point_at_start(
    plan: Plan,
    values: Values,
    *,
    waveforms: Mapping[str, Waveform] | None = None,
    inputs: ArrayLike | None = None,
    initial_voltage: Mapping[str, float] | None = None,
    settings: SolverSettings | None = None,
) -> OperatingPoint:
    """Return the operating point at time 0, sources at what they are then, nodes held if asked for."""
    run = TransientRun(
        plan,
        values,
        span=1.0,
        step=0.01,
        waveforms=waveforms or {},
        inputs=inputs,
        settings=TransientSettings(start=settings or SolverSettings(method="general")),
    )
    return run.operating_point(initial_voltage or {})


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """K steps as the kernel left them: unknowns and moving sources at their ends and middle points."""

    end: FloatArray
    """(K,) s"""
    length: FloatArray
    """(K,) s; negative for a backward Euler step."""
    x: FloatArray
    x_mid: FloatArray
    w: FloatArray
    w_mid: FloatArray


class TransientRun(DrivenCircuit):
    """One circuit on its way: its state, and the arrays that the kernel steps with."""

    def __init__(
        self,
        plan: Plan,
        values: Values,
        *,
        span: float,
        step: float,
        waveforms: Mapping[str, Waveform],
        inputs: ArrayLike | None,
        settings: TransientSettings,
    ) -> None:
        if not 0 < step < math.inf:
            raise SpecError("must be a positive number of seconds", field="step", value=step)
        super().__init__(plan, values, waveforms, inputs)
        self.settings, self.span = settings, span
        self.waveforms = [waveforms[name].resolved(step, span) for name in self.names]
        self._gather()
        self._ends = np.empty(0)
        self.accepted = self.rejected = self.failed = self.iterations = 0

    @property
    def time(self) -> float:
        return float(self._clock[0])

    @property
    def voltage(self) -> FloatArray:
        """(N,) V now."""
        return self.state()[0][0]

    def state(self) -> tuple[FloatArray, FloatArray]:
        """Return node voltages (1, N) and branch currents (1, M) now, those of eliminated sources as 0."""
        return self.expand(self._x[None], self.source_values(self.time)[None])

    # ------------------------------------------------------------------------------ what never moves

    def _gather(self) -> None:
        general, n = self.general, self.general.flat.netlist
        w0 = self.source_values(0.0)
        self._values0 = self.values_at(w0)
        still = self.values_at(np.zeros_like(w0))
        circuit, tied, flat_values = general._circuit(still, None)
        storage, tied_storage = general.storage(still)
        source = self.source_voltage(np.zeros((1, len(w0))))
        v = general._known_voltages(source)
        constant = general._constant(v, source, tied, flat_values, None)[0]
        size = len(general.is_node)
        known = v[0, general.fixed_nodes]
        c_entries, q_entries, v_entries = [], [], []
        for k, row in enumerate(self.voltage_rows):
            unknown = int(general.branch_unknown[row])
            if unknown >= 0:
                c_entries.append((unknown, k, -1.0))
                continue
            for node in general.fixed_nodes[general._fixed_row == row]:
                place = general._fixed_place[node]
                sign = float(general._fixed_sign[place])
                v_entries.append((int(node), k, sign))
                for entry in np.flatnonzero(general._tied_col == place):
                    target = int(general._tied_row[entry])
                    c_entries.append((target, k, sign * float(tied[entry])))
                    if tied_storage[entry]:
                        q_entries.append((target, k, sign * float(tied_storage[entry])))
        for k, row in enumerate(self.current_rows, start=len(self.voltage_rows)):
            for node, sign in ((n.isource.pos[row], 1.0), (n.isource.neg[row], -1.0)):
                if general.node_unknown[node] >= 0:
                    c_entries.append((int(general.node_unknown[node]), k, sign))
        stores = np.zeros(size, dtype=np.bool_)
        stores[general.indices[storage != 0]] = True
        stores[[row for row, _, _ in q_entries]] = True
        d = n.diode
        charged = (circuit.d_cjo > 0) | (circuit.d_tt > 0)
        for nodes in (d.pos[charged], d.neg[charged]):
            unknowns = general.node_unknown[nodes]
            stores[unknowns[unknowns >= 0]] = True
        weigh = np.where(general.is_node, 1, 0)
        first = n.branch_starts["inductor"]
        inductors = general.branch_unknown[first : first + len(n.inductor)]
        weigh[inductors[inductors >= 0]] = 2
        encoded = [_encoded(waveform) for waveform in self.waveforms]
        self._circuit = circuit
        self._dynamics = Dynamics(
            storage=storage,
            stores=stores,
            weigh=weigh,
            constant=constant,
            still=_summed(general._tied_row, tied_storage * known[general._tied_col], size),
            w_kind=np.array([kind for kind, _ in encoded], dtype=np.int64),
            w_ptr=np.cumsum([0, *(len(data) for _, data in encoded)]),
            w_data=np.array([number for _, data in encoded for number in data], dtype=np.float64),
            **_columns("c", "row", c_entries),
            **_columns("q", "row", q_entries),
            **_columns("v", "node", v_entries),
        )
        self._target = general._targets(1, None)[0]
        self._known = np.ascontiguousarray(v[0])
        self._still_source = source[0]

    def source_values(self, time: float) -> FloatArray:
        """Return the moving sources' values (W,) at a time."""
        return np.array([float(waveform.value(time)) for waveform in self.waveforms])

    # ----------------------------------------------------------------------------------- where it starts

    def operating_point(self, held: Mapping[str, float]) -> OperatingPoint:
        """Return the operating point at time 0, with nodes held at voltages by ideal sources."""
        settings = replace(self.settings.start, throw=True, check=True)
        n = self.netlist
        nodes = [_node(n, name) for name in held]
        kept = [k for k, node in enumerate(nodes) if node != GROUND and self.general.fixing_source[node] < 0]
        if not kept:
            return solve(self.plan, self._values0, Drive(inputs=self.inputs), settings)
        voltage = np.array(list(held.values()), dtype=np.float64)[kept]
        pos = np.array(nodes, dtype=np.int64)[kept]
        names = [f"hold {n.node_names[node]}" for node in pos]
        sources = n.vsource.extended(names, pos=pos, neg=np.zeros_like(pos), voltage=voltage)
        tables = {kind: dict(columns) for kind, columns in self._values0.tables.items()}
        tables["vsource"]["voltage"] = np.concatenate([tables["vsource"]["voltage"], voltage])
        plan = build_plan(replace(n, vsource=sources))
        point = solve(plan, replace(self._values0, tables=tables), Drive(inputs=self.inputs), settings)
        added = len(n.vsource) + np.arange(len(pos))
        return replace(point, branch_current=np.delete(point.branch_current, added, axis=1))

    def start_at(self, point: OperatingPoint) -> None:
        """Start from a point's voltages and currents."""
        v, i = self.general.lift(self.values, point.node_voltage[:1], point.branch_current[:1])
        self._begin(self.general._unknowns(v, i)[0], None)

    def start_unsettled(self, voltage: Mapping[str, float], element: Mapping[str, float]) -> None:
        """Start from capacitor voltages and inductor currents, 0 where none is given."""
        n, general = self.netlist, self.general
        v = np.zeros(n.n_nodes)
        for name, value in voltage.items():
            v[_node(n, name)] = value
        capacitors, inductors = n.capacitor, n.inductor
        drop = v[capacitors.pos] - v[capacitors.neg]
        current = np.zeros(len(inductors))
        rows = {name: (drop, k) for k, name in enumerate(capacitors.name)}
        rows |= {name: (current, k) for k, name in enumerate(inductors.name)}
        for name, value in element.items():
            if name not in rows:
                raise NetlistError("no capacitor or inductor of this name", value=name)
            array, k = rows[name]
            array[k] = value
        node, branch = np.zeros((1, n.n_nodes)), np.zeros((1, len(n.branch_names)))
        stored = drop * self.values.tables["capacitor"]["capacitance"]
        node[0] += np.bincount(capacitors.pos, stored, n.n_nodes)
        node[0] -= np.bincount(capacitors.neg, stored, n.n_nodes)
        charge = _junction_charge(n, self.values, v[None])[0]
        node[0] += np.bincount(n.diode.pos, charge, n.n_nodes)
        node[0] -= np.bincount(n.diode.neg, charge, n.n_nodes)
        first = n.branch_starts["inductor"]
        branch[0, first : first + len(inductors)] = -_flux(n, self.values, current[None])[0]
        at_nodes = np.zeros((1, general.flat.netlist.n_nodes))
        at_nodes[:, : n.n_nodes] = node
        at_branches = np.zeros((1, len(general.flat.netlist.branch_names)))
        at_branches[:, general.flat.branch] = branch
        i = np.zeros_like(branch)
        i[0, first : first + len(inductors)] = current
        x = general._unknowns(*general.lift(self.values, v[None], i))[0]
        self._begin(x, general._unknowns(at_nodes, at_branches)[0])
        self.start_charges = [stored[None], charge[None]]

    def _begin(self, x: FloatArray, q: FloatArray | None) -> None:
        self.unsettled = q is not None
        size = len(x)
        self._x = np.array(x)
        self._v = self._known.copy()
        self._q = np.zeros(size) if q is None else np.array(q)
        self._qdot = np.zeros(size)
        # Where charges are given, voltages are only a guess yet.
        self._peak = np.abs(self._x) if q is None else np.zeros(size)
        smallest = self.settings.smallest_step or 1e-13 * self.span
        self._clock = np.array([0.0, 1e-6 * self.span, 0.0, self._largest(), smallest, 1.0 + (q is None)])
        v = self.expand(x[None], self.source_values(0.0)[None], flat=True)[0][0]
        rate = 1e3 / self.span
        matrix = small_signal_values(self._circuit, np.ascontiguousarray(v), self._x, self._target)
        analysis = analyse(
            size, self.general.indptr, self.general.indices, matrix + rate * self._dynamics.storage
        )
        if analysis.status != OK:
            raise NetlistError(
                f"the equations are singular at {self.general._unknown_name(analysis.column)}",
                object=self.netlist.title,
                remedy="Look for a node that nothing holds, or a loop of sources and inductors.",
            )
        self._lu = analysis.plan
        room = max(16, min(_MOST_TRIES, _ROOM // (2 * max(size, 1))))
        moving = len(self._dynamics.w_kind)
        self._out = (
            np.empty(room),
            np.empty(room),
            np.empty((room, size)),
            np.empty((room, size)),
            np.empty((room, moving)),
            np.empty((room, moving)),
        )

    def _largest(self) -> float:
        largest = self.settings.largest_step or self.span / 50
        for waveform in self.waveforms:
            if isinstance(waveform, Sine) and waveform.frequency and waveform.amplitude:
                largest = min(largest, 1 / (8 * abs(waveform.frequency)))
        n = self.netlist
        for expression in (*n.behavioural_current.expression, *n.behavioural_voltage.expression):
            if Operation.TIME in expression.formula.op:
                # What a formula does with the time is not known beforehand.
                largest = min(largest, self.span / 1000)
        return largest

    # -------------------------------------------------------------------------------------- on its way

    def end_steps_at(self, times: FloatArray | None) -> None:
        """Let steps end at these times, where no parabola through a step's points may be trusted.

        Nodes that nonlinear elements give without storing anything may bend anywhere inside a step.
        """
        c = self._circuit
        linear = not (len(c.d_pos) or len(c.z_pos) or len(c.e_row) or len(c.b_row) or len(c.s_pos))
        if times is not None and not linear and len(times) <= _MOST_ENDS:
            self._ends = np.array(times, dtype=np.float64)

    def advance(self, stop: float, *, most: int = _MOST_TRIES) -> Steps:
        """Step towards ``stop`` until there, or until the buffer is full.

        Raises:
            ConvergenceError: a step could not be solved, or there were too many.
        """
        clock, out = self._clock, self._out
        clock[2] = stop
        counters = np.zeros(4, dtype=np.int64)
        tolerance = (
            self.settings.relative_tolerance,
            self.settings.voltage_tolerance,
            self.settings.current_tolerance,
        )
        with np.errstate(all="ignore"):
            status, rows, self._lu = advance(
                self._circuit,
                self._lu,
                self._dynamics,
                self._target,
                self._x,
                self._v,
                self._q,
                self._qdot,
                self._peak,
                tolerance,
                clock,
                self._ends,
                counters,
                most,
                *out,
            )
        self.accepted += int(counters[ACCEPTED])
        self.rejected += int(counters[REJECTED])
        self.failed += int(counters[FAILED])
        self.iterations += int(counters[ITERATIONS])
        if status in (TOO_SMALL, REFUSED):
            raise ConvergenceError(
                f"at {self.time:.6g} s no step could be found that solves the equations"
                + ("" if status == TOO_SMALL else " just after a corner of the sources"),
                object=self.netlist.title,
                remedy="Look for a source or formula that jumps, or a node without capacitance that "
                "switches; loosen the tolerance.",
            )
        if status != ARRIVED and self.accepted + self.rejected + self.failed > self.settings.max_steps:
            raise ConvergenceError(
                f"{self.settings.max_steps} steps only came to {self.time:.6g} s of {stop:.6g} s",
                object=self.netlist.title,
                remedy="Shorten the run, loosen the tolerance or raise max_steps.",
            )
        end, length, x, x_mid, w, w_mid = (array[:rows].copy() for array in out)
        return Steps(end=end, length=length, x=x, x_mid=x_mid, w=w, w_mid=w_mid)


class _Keeper:
    """Collects what a run reports, step by step, and checks it."""

    def __init__(self, run: TransientRun, times: FloatArray | None) -> None:
        self.run, self.times = run, times
        w0 = run.source_values(run.time)[None]
        v, i = run.expand(run._x[None], w0)
        zero = [np.zeros((1, len(table))) for table in (run.netlist.capacitor, run.netlist.diode)]
        if not run.unsettled:
            # At a held start the source's current is what the circuit asks for, not yet what flows.
            run.balance(v, i, w0, time=np.array([run.time]))
        self._last = (run.time, v, i, run.start_charges if run.unsettled else self._charges(v))
        self._rates = zero
        self._parts: list[tuple[FloatArray, FloatArray, FloatArray]] = []
        self._next = 0
        self._worst = self._largest = 0.0
        self._kept = 0
        self._skip_first = run.unsettled
        if not run.unsettled:
            self._keep(np.array([run.time]), v, i)
        if times is not None:
            self._next = int(np.searchsorted(times, run.time, side="right"))
            self._parts.clear()
            if not run.unsettled and self._next:
                repeated = np.zeros(self._next, dtype=np.int64)
                self._keep(times[: self._next], v[repeated], i[repeated])

    def _charges(self, v: FloatArray) -> list[FloatArray]:
        n, values = self.run.netlist, self.run.values
        drop = v[:, n.capacitor.pos] - v[:, n.capacitor.neg]
        return [drop * values.tables["capacitor"]["capacitance"], _junction_charge(n, values, v)]

    def add(self, steps: Steps) -> None:
        run = self.run
        if not len(steps.end):
            return
        euler = steps.length < 0
        h = np.abs(steps.length)[:, None]
        start = np.concatenate([[self._last[0]], steps.end[:-1]])
        v_mid, i_mid = run.expand(steps.x_mid, steps.w_mid)
        v, i = run.expand(steps.x, steps.w)
        q, q_mid = self._charges(v), self._charges(v_mid)
        ends: list[FloatArray] = []
        mids: list[FloatArray] = []
        noise: list[FloatArray] = []
        a = np.where(euler[:, None], 1.0 / h, 1.0 / (_D * h))
        for kind in range(2):
            before = np.concatenate([self._last[3][kind], q[kind][:-1]])
            bdf = a * (q[kind] - _C1 * q_mid[kind] + _C0 * before)
            ends.append(np.where(euler[:, None], a * (q[kind] - before), bdf))
            earlier = np.concatenate([self._rates[kind], ends[kind][:-1]])
            mids.append(np.where(euler[:, None], ends[kind], a * (q_mid[kind] - before) - earlier))
            noise.append(_ROUNDING * a * (np.abs(q[kind]) + np.abs(before)))
        stored = Stored(capacitor=ends[0], capacitor_noise=noise[0], diode=ends[1], diode_noise=noise[1])
        residual, largest = run.balance(v, i, steps.w, time=steps.end, stored=stored)
        self._worst = max(self._worst, float(residual[~euler].max(initial=0.0)))
        self._largest = max(self._largest, float(largest[~euler].max(initial=0.0)))
        middle = start + np.where(euler, 0.5, _G) * h[:, 0]
        stored = Stored(capacitor=mids[0], capacitor_noise=noise[0], diode=mids[1], diode_noise=noise[1])
        run.balance(v_mid, i_mid, steps.w_mid, time=middle, stored=stored)
        time = steps.end.copy()
        if self._skip_first:
            # The first step of an unsettled start only finds what goes with the given charges.
            self._skip_first = False
            time[0] = 0.0
            if self.times is not None and len(self.times) and self.times[0] == 0.0:
                self._keep(self.times[:1], v[:1], i[:1])
                self._next = 1
        if self.times is None:
            self._keep(time, v, i)
        else:
            self._interpolate(start, steps, v, v_mid, i, i_mid)
        self._last = (float(steps.end[-1]), v[-1:], i[-1:], [part[-1:] for part in q])
        self._rates = [part[-1:] for part in ends]

    def _interpolate(
        self,
        start: FloatArray,
        steps: Steps,
        v: FloatArray,
        v_mid: FloatArray,
        i: FloatArray,
        i_mid: FloatArray,
    ) -> None:
        """Read the parabola through a step's three points at the times inside it."""
        assert self.times is not None
        upto = int(np.searchsorted(self.times, steps.end[-1], side="right"))
        if self.run.time >= steps.end[-1] and self.run.time >= self.times[-1]:
            upto = len(self.times)
        wanted = self.times[self._next : upto]
        self._next = upto
        if not len(wanted):
            return
        k = np.minimum(np.searchsorted(steps.end, wanted, side="left"), len(steps.end) - 1)
        s = ((wanted - start[k]) / np.abs(steps.length[k]))[:, None]
        l0 = (s - _G) * (s - 1.0) / _G
        l1 = s * (s - 1.0) / (_G * (_G - 1.0))
        l2 = s * (s - _G) / (1.0 - _G)
        found = []
        for first, mid, end in ((self._last[1], v_mid, v), (self._last[2], i_mid, i)):
            before = np.concatenate([first, end[:-1]])
            found.append(l0 * before[k] + l1 * mid[k] + l2 * end[k])
        # What sources hold is known, wherever it bends.
        general = self.run.general
        w = np.array([waveform.value(wanted) for waveform in self.run.waveforms]).reshape(-1, len(wanted)).T
        held = general._known_voltages(self.run.source_voltage(w))
        found[0][:, general.fixed_nodes] = held[:, general.fixed_nodes]
        self._keep(wanted, found[0], found[1])

    def _keep(self, time: FloatArray, v: FloatArray, i: FloatArray) -> None:
        self._kept += v.size + i.size
        if self._kept > _MOST_KEPT:
            raise SpecError(
                "the result does not fit: too many steps for this many nodes",
                value=len(time),
                remedy="Ask for fewer times, or loosen the tolerance.",
            )
        self._parts.append((time, v, i))

    def result(self) -> TransientResult:
        run = self.run
        n = run.netlist
        nothing = (np.empty(0), np.empty((0, n.n_nodes)), np.empty((0, len(n.branch_names))))
        time, v, i = (np.concatenate(parts) for parts in zip(nothing, *self._parts, strict=True))
        for array in (time, v, i):
            array.flags.writeable = False
        relative = self._worst / max(self._largest, 1e-300)
        if relative > _REFEREE and self._worst > 1e-15:
            raise ConvergenceError(
                f"KCL is violated by {self._worst:.2e} A, {relative:.1e} of the largest current",
                object=n.title,
                remedy="Tighten the tolerance.",
            )
        return TransientResult(
            time=time,
            node_voltage=v,
            branch_current=i,
            kcl_residual=self._worst,
            relative_residual=relative,
            accepted=run.accepted,
            rejected=run.rejected,
            failed=run.failed,
            iterations=run.iterations,
            node_names=n.node_names,
            branch_names=n.branch_names,
        )


def _junction_charge(n: Netlist, values: Values, v: FloatArray) -> FloatArray:
    """Return the charges of all diodes (R, D) C at node voltages (R, N)."""
    if not len(n.diode):
        return np.zeros((len(v), 0))
    columns = {name: values.tables["diode"][name] for name in DIODE_CHARGE}
    return diode_charge(v[:, n.diode.pos] - v[:, n.diode.neg], **columns)[0]


def _flux(n: Netlist, values: Values, current: FloatArray) -> FloatArray:
    """Return the flux linkages of all inductors (R, L) Wb at their currents (R, L)."""
    inductance = values.tables["inductor"]["inductance"]
    flux = inductance * current
    k = n.coupling
    mutual = values.tables["coupling"]["coefficient"] * np.sqrt(inductance[k.first] * inductance[k.second])
    for row, (a, b) in enumerate(zip(k.first, k.second, strict=True)):
        flux[:, a] += mutual[row] * current[:, b]
        flux[:, b] += mutual[row] * current[:, a]
    return flux


def _encoded(waveform: Waveform) -> tuple[int, list[float]]:
    """Return the kind and the numbers of a resolved waveform as the kernel reads them."""
    match waveform:
        case Pulse(initial=low, pulsed=high, delay=delay):
            return PULSE, [low, high, delay, *waveform.shape()]
        case Sine(offset=offset, amplitude=size, delay=delay, damping=damping):
            angular = 2 * math.pi * (waveform.frequency or 0.0)
            return SINE, [offset, size, angular, delay, damping, math.radians(waveform.phase)]
        case Exponential(initial=low, pulsed=high):
            return EXPONENTIAL, [low, high, *waveform.shape()]
        case PiecewiseLinear(delay=delay, repeat_from=again):
            return LINEAR, [delay, -1.0 if again is None else again, *waveform.times, *waveform.values]


def _summed(row: IntArray, value: FloatArray, size: int) -> FloatArray:
    # Of nothing, bincount makes integers, for which the kernel would be compiled again.
    return np.bincount(row, value, size).astype(np.float64)


def _columns(letter: str, target: str, entries: list[tuple[int, int, float]]) -> dict[str, Any]:
    places = np.array([(row, source) for row, source, _ in entries], dtype=np.int64).reshape(-1, 2)
    return {
        f"{letter}_{target}": np.ascontiguousarray(places[:, 0]),
        f"{letter}_source": np.ascontiguousarray(places[:, 1]),
        f"{letter}_share": np.array([share for _, _, share in entries], dtype=np.float64),
    }


def _node(n: Netlist, name: str) -> int:
    if name not in n.node_index:
        raise NetlistError("no such node", object=n.title, value=name)
    return n.node_index[name]


def _checked_times(times: ArrayLike, stop: float) -> FloatArray:
    t = np.asarray(times, dtype=np.float64).reshape(-1)
    if np.any(~np.isfinite(t)) or np.any(np.diff(t) < 0) or (len(t) and (t[0] < 0 or t[-1] > stop)):
        raise SpecError("must rise from 0 or later to the stop time at most", field="times")
    return t
