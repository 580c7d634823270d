"""Circuits in time against their exact solutions, a dense twin of the method, and KCL."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from circuits import network_document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from circuitsim.compiler import compile_network
from circuitsim.errors import CircuitsimError, ConvergenceError, NetlistError, SpecError
from circuitsim.netlist import Netlist, NetlistBuilder
from circuitsim.netlist.expressions import parse_expression
from circuitsim.netlist.models import DIODE_CHARGE, diode_charge, thermal_voltage
from circuitsim.netlist.tables import FloatArray
from circuitsim.netlist.waveforms import Exponential, PiecewiseLinear, Pulse, Sine, Waveform
from circuitsim.network import parse_network
from circuitsim.solver import Equations, build_plan, solve
from circuitsim.solver.kernels.transient import next_corner, source_value
from circuitsim.solver.transient import (
    Steps,
    TransientResult,
    TransientRun,
    TransientSettings,
    _encoded,
    transient,
)

MICRO, NANO = 1e-6, 1e-9
G = 2 - math.sqrt(2)
C1, C0 = 1 / (G * (2 - G)), (1 - G) ** 2 / (G * (2 - G))
PULSE = Pulse(
    initial=0, pulsed=1, delay=MICRO, rise=10 * NANO, fall=20 * NANO, width=4 * MICRO, period=10 * MICRO
)


def run(netlist: Netlist, *, tolerance: float = 1e-6, **options: Any) -> TransientResult:
    tight = TransientSettings(relative_tolerance=tolerance)
    return transient(build_plan(netlist), netlist.values(), settings=tight, **options)


def rc() -> Netlist:
    b = NetlistBuilder("rc")
    b.add("vsource", "v1", "in", "0", voltage=0.0)
    b.add("resistor", "r1", "in", "out", conductance=1e-3)
    b.add("capacitor", "c1", "out", "0", capacitance=NANO)
    return b.build()


def rc_response(wave: Waveform, time: FloatArray, tau: float) -> FloatArray:
    """The voltage behind R and C of a piecewise linear source, line by line."""
    knots = np.unique([0.0, *wave.corners(float(time[-1])), float(time[-1])])
    found, v = np.zeros_like(time), float(wave.value(0.0))
    for start, end in itertools.pairwise(knots):
        gap = end - start
        slope = (float(wave.value(end - 1e-6 * gap)) - float(wave.value(start + 1e-6 * gap))) / (
            gap * (1 - 2e-6)
        )
        level = float(wave.value(start + 1e-6 * gap)) - 1e-6 * gap * slope - slope * tau
        inside = (time > start) & (time <= end)
        since = time[inside] - start
        found[inside] = level + slope * since + (v - level) * np.exp(-since / tau)
        v = level + slope * gap + (v - level) * math.exp(-gap / tau)
    return found


def diode_amplifier() -> Netlist:
    """Diodes that store charge, a saturating amplifier, a formula, an inductor, coupled sources."""
    b = NetlistBuilder("mixture")
    b.add("vsource", "v1", "in", "0", voltage=0.0)
    b.add("resistor", "r1", "in", "a", conductance=1e-3)
    b.add("capacitor", "c1", "a", "0", capacitance=100e-12)
    b.add(
        "diode",
        "d1",
        "a",
        "b",
        saturation_current=1e-14,
        slope_voltage=thermal_voltage(),
        parallel_conductance=1e-12,
        junction_capacitance=2e-12,
        junction_potential=0.8,
        grading=0.4,
        transit_time=5e-9,
    )
    b.add("resistor", "r2", "b", "0", conductance=5e-4)
    b.add("capacitor", "c2", "b", "in", capacitance=5e-12)
    b.add("buffer", "u1", "y", "0", "b", "0", gain=-5.0, saturation=1.0, offset=0.01)
    b.add("inductor", "l1", "y", "z", inductance=2e-6)
    b.add("resistor", "r3", "z", "0", conductance=1e-3)
    b.add("capacitor", "c3", "z", "0", capacitance=20e-12)
    text = "1e-4*tanh(2*v(z))*v(b)"
    formula = parse_expression(text, node=b.node, source=lambda name: 0)
    b.add("behavioural_current", "b1", "z", "0", expression=formula)
    b.add("isource", "i1", "0", "z", current=0.0)
    return b.build()


MOVING: dict[str, Waveform] = {"v1": PULSE, "i1": Sine(offset=0, amplitude=2e-4, frequency=3e5)}

# ------------------------------------------------------------------------------- against exact solutions


def test_rc_follows_a_pulse_and_errors_shrink_with_the_tolerance() -> None:
    time = np.linspace(0, 20 * MICRO, 1501)
    exact = rc_response(PULSE.resolved(0.1 * MICRO, 20 * MICRO), time, MICRO)
    errors, steps = [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = run(rc(), stop=20 * MICRO, waveforms={"v1": PULSE}, times=time, tolerance=tolerance)
        errors.append(float(np.abs(found.voltage("out") - exact).max()))
        steps.append(found.accepted)
    assert errors[1] < 5e-5
    assert errors[2] < 3e-6
    # Order two: the error falls with the square of the number of steps.
    order = math.log(errors[0] / errors[2]) / math.log(steps[2] / steps[0])
    assert 1.7 < order < 3.2
    assert np.array_equal(found.time, time)


def test_source_currents_follow_from_kcl() -> None:
    found = run(rc(), stop=20 * MICRO, waveforms={"v1": PULSE})
    through = (found.voltage("in") - found.voltage("out")) * 1e-3
    assert found.current("v1") == pytest.approx(-through, abs=1e-15)


def test_every_corner_of_a_source_is_a_step() -> None:
    found = run(rc(), stop=25 * MICRO, waveforms={"v1": PULSE}, tolerance=1e-3)
    corners = list(PULSE.resolved(1, 25 * MICRO).corners(25 * MICRO))
    assert len(corners) == 10
    assert set(corners) <= set(found.time)
    assert found.time[-1] == 25 * MICRO


def test_series_resonance_after_a_jump() -> None:
    inductance, capacitance, resistance = MICRO, NANO, 10.0
    b = NetlistBuilder("rlc")
    b.add("vsource", "v1", "in", "0", voltage=0.0)
    b.add("resistor", "r1", "in", "m", conductance=1 / resistance)
    b.add("inductor", "l1", "m", "out", inductance=inductance)
    b.add("capacitor", "c1", "out", "0", capacitance=capacitance)
    jump = PiecewiseLinear(times=(0, 0), values=(0, 1))
    time = np.linspace(0, 2 * MICRO, 501)
    found = run(b.build(), stop=2 * MICRO, waveforms={"v1": jump}, times=time, tolerance=1e-7)
    decay = resistance / (2 * inductance)
    omega = math.sqrt(1 / (inductance * capacitance) - decay**2)
    ringing = np.cos(omega * time) + decay / omega * np.sin(omega * time)
    assert found.voltage("out") == pytest.approx(1 - np.exp(-decay * time) * ringing, abs=5e-5)
    assert found.voltage("in")[0] == 0
    assert found.voltage("in")[1:] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(("tolerance", "loss"), [(1e-4, 2e-2), (1e-6, 1.5e-4)])
def test_tank_keeps_its_energy_for_100_periods(tolerance: float, loss: float) -> None:
    inductance, capacitance = MICRO, NANO
    period = 2 * math.pi * math.sqrt(inductance * capacitance)
    b = NetlistBuilder("tank")
    b.add("inductor", "l1", "a", "0", inductance=inductance)
    b.add("capacitor", "c1", "a", "0", capacitance=capacitance)
    found = run(
        b.build(at_rest=False),
        stop=100 * period,
        uic=True,
        element_initial={"c1": 1.0},
        times=np.linspace(0, 100 * period, 2001),
        tolerance=tolerance,
    )
    v, i = found.voltage("a"), found.current("l1")
    energy = (0.5 * capacitance * v**2 + 0.5 * inductance * i**2) / (0.5 * capacitance)
    assert energy[0] == pytest.approx(1, abs=1e-9)
    assert 1 - loss < energy[-1] < 1
    # Never more than there was: the method damps.
    assert energy.max() < 1 + 1e-6


def test_transformer_transforms_and_stores_no_more_than_its_coupling() -> None:
    primary, secondary, k, load = 1e-3, 4e-3, 0.999999, 1e3
    b = NetlistBuilder("transformer")
    b.add("vsource", "v1", "in", "0", voltage=0.0)
    b.add("resistor", "rs", "in", "p", conductance=1 / 50)
    b.add("inductor", "l1", "p", "0", inductance=primary)
    b.add("inductor", "l2", "s", "0", inductance=secondary)
    b.add("coupling", "k1", coupled=("l1", "l2"), coefficient=k)
    b.add("resistor", "rl", "s", "0", conductance=1 / load)
    found = run(b.build(), stop=1e-3, waveforms={"v1": Sine(offset=0, amplitude=1, frequency=1e5)})
    turns = math.sqrt(secondary / primary)
    assert found.voltage("s") == pytest.approx(turns * found.voltage("p"), abs=3e-5)
    # The load's current, transformed, adds to the magnetising one: L1 di/dt = v_p.
    magnetising = found.current("l1") + turns * found.current("l2")
    drawn = (found.voltage("in") - found.voltage("p")) / 50
    assert found.current("l1") == pytest.approx(drawn, abs=1e-9)
    flux = np.concatenate(
        [[0], np.cumsum(0.5 * np.diff(found.time) * (found.voltage("p")[1:] + found.voltage("p")[:-1]))]
    )
    assert magnetising == pytest.approx(flux / primary, abs=2e-6)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000))
def test_random_linear_networks_against_the_matrix_exponential(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = NetlistBuilder("linear")
    nodes = [f"n{k}" for k in range(4)]
    for k, node in enumerate(nodes):
        b.add("resistor", f"r{k}", node, "0", conductance=rng.uniform(1e-4, 1e-3))
        b.add("capacitor", f"c{k}", node, "0", capacitance=rng.uniform(0.1, 1) * NANO)
        b.add("resistor", f"s{k}", node, nodes[k - 1], conductance=rng.uniform(1e-4, 1e-3))
        b.add("isource", f"i{k}", "0", node, current=rng.uniform(-1e-3, 1e-3))
    b.add("capacitor", "cc", "n0", "n2", capacitance=0.3 * NANO)
    b.add("inductor", "l", "n1", "n3", inductance=MICRO * rng.uniform(20, 200))
    b.add("vccs", "g", "n2", "0", "n0", "0", transconductance=rng.uniform(-1e-4, 1e-4))
    netlist = b.build()
    plan, values = build_plan(netlist), netlist.values()
    initial = dict(zip(nodes, rng.uniform(-1, 1, 4), strict=True))
    stop = 5 * MICRO
    found = run(netlist, stop=stop, uic=True, initial_voltage=initial, tolerance=1e-8)
    j = plan.general.small_signal(values, np.zeros(5))
    s = plan.general.dense(plan.general.storage(values)[0])
    point = solve(plan, values, np.empty((1, 0)))
    rest = np.concatenate([point.node_voltage[0, 1:], point.branch_current[0]])
    x0 = np.array([*(initial[name] for name in netlist.node_names[1:]), 0.0])
    exact = rest + expm(-np.linalg.solve(s, j) * stop) @ (x0 - rest)
    assert found.node_voltage[-1, 1:] == pytest.approx(exact[:4], abs=1e-6)
    assert found.branch_current[-1] == pytest.approx(exact[4:], abs=1e-8)


# --------------------------------------------------------------------------------- against a dense twin


def charges(netlist: Netlist, v: FloatArray, i: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Charge at every node (N,) and minus the flux of every branch (M,), element by element."""
    node, branch = np.zeros(netlist.n_nodes), np.zeros(len(netlist.branch_names))
    c, d, values = netlist.capacitor, netlist.diode, netlist.values().tables
    stored = [(c, c.capacitance * (v[c.pos] - v[c.neg]))]
    stored.append(
        (d, diode_charge(v[d.pos] - v[d.neg], **{name: values["diode"][name] for name in DIODE_CHARGE})[0])
    )
    for table, charge in stored:
        np.add.at(node, table.pos, charge)
        np.subtract.at(node, table.neg, charge)
    first = netlist.branch_starts["inductor"]
    for k, inductance in enumerate(netlist.inductor.inductance):
        branch[first + k] = -inductance * i[first + k]
    return node, branch


class Twin:
    """The method in dense NumPy: nodes and branches unknown, sources as equations, Newton by differences."""

    def __init__(self, netlist: Netlist, moving: dict[str, Waveform]) -> None:
        self.netlist, self.moving = netlist, moving
        self.size = netlist.n_nodes - 1

    def split(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        return np.concatenate([[0.0], x[: self.size]]), x[self.size :]

    def static(self, x: FloatArray, time: float) -> FloatArray:
        n = self.netlist
        tables: dict[str, Any] = {kind: dict(columns) for kind, columns in n.values().tables.items()}
        for kind, column, names in (
            ("vsource", "voltage", n.vsource.name),
            ("isource", "current", n.isource.name),
        ):
            tables[kind][column] = np.array(
                [
                    self.moving[name].value(time) if name in self.moving else old
                    for name, old in zip(names, tables[kind][column], strict=True)
                ],
                dtype=np.float64,
            )
        values = type(n.values())(tables=tables, crossbars={}, banks={}, senses={})
        v, i = self.split(x)
        equations = Equations(netlist=n, values=values)
        source = tables["vsource"]["voltage"][None]
        node, branch, _ = equations.residual(v[None], i[None], source, time)
        return np.concatenate([node[0, 1:], branch[0]])

    def charge(self, x: FloatArray) -> FloatArray:
        node, branch = charges(self.netlist, *self.split(x))
        return np.concatenate([node[1:], branch])

    def root(self, equation: Callable[[FloatArray], FloatArray], x: FloatArray) -> FloatArray:
        """Newton with central differences, from a good guess."""
        x = x.copy()
        for _ in range(3):
            columns = []
            for k in range(len(x)):
                move = np.zeros_like(x)
                move[k] = 1e-6
                columns.append((equation(x + move) - equation(x - move)) / 2e-6)
            x = x - np.linalg.solve(np.array(columns).T, equation(x))
        return x

    def slope(self, start: FloatArray, mid: FloatArray, end: FloatArray, h: float) -> FloatArray:
        """Return dQ/dt at the end of a step, as its BDF2 formula has it."""
        before = C1 * self.charge(mid) - C0 * self.charge(start)
        return (self.charge(end) - before) / (G / 2 * h)

    def step(
        self,
        x: FloatArray,
        slope: FloatArray,
        start: float,
        end: float,
        guesses: tuple[FloatArray, FloatArray],
    ) -> tuple[FloatArray, FloatArray]:
        """Return the middle point and the end of a step from x, where dQ/dt is ``slope``."""
        h = end - start
        q, middle, late = self.charge(x), start + G * h, end - 1e-12 * h
        mid = self.root(
            lambda y: (self.charge(y) - q) / (G * h / 2) + self.static(y, middle) - slope, guesses[0]
        )
        before = C1 * self.charge(mid) - C0 * q
        new = self.root(lambda y: (self.charge(y) - before) / (G / 2 * h) + self.static(y, late), guesses[1])
        return mid, new


def full(run: TransientRun, steps: Steps) -> tuple[FloatArray, FloatArray]:
    """Ends and middle points of steps with the currents of all branches."""
    parts = []
    for x, w in ((steps.x, steps.w), (steps.x_mid, steps.w_mid)):
        v, i = run.expand(x, w)
        parts.append(np.concatenate([v[:, 1:], i], axis=1))
    return parts[0], parts[1]


def test_kernel_and_dense_twin_take_the_same_steps() -> None:
    netlist = diode_amplifier()
    moving = {name: wave.resolved(0.01 * MICRO, 2 * MICRO) for name, wave in MOVING.items()}
    stepping = TransientRun(
        build_plan(netlist),
        netlist.values(),
        span=2 * MICRO,
        step=0.01 * MICRO,
        waveforms=MOVING,
        inputs=None,
        settings=TransientSettings(relative_tolerance=1e-4),
    )
    stepping.start_at(stepping.operating_point({}))
    steps = stepping.advance(2 * MICRO)
    assert stepping.time == 2 * MICRO
    ends, mids = full(stepping, steps)
    twin = Twin(netlist, moving)
    # The current of a source that left the equations is not among what the kernel solves for.
    known = np.arange(len(ends[0])) != twin.size + netlist.branch_names.index("v1")
    checked = 0
    for k in range(2, len(ends), 25):
        if min(steps.length[k - 1 : k + 1]) < 0:
            continue
        slope = twin.slope(ends[k - 2], mids[k - 1], ends[k - 1], steps.length[k - 1])
        times = (steps.end[k - 1], steps.end[k])
        mid, new = twin.step(ends[k - 1], slope, *times, (mids[k], ends[k]))
        assert mid[known] == pytest.approx(mids[k][known], abs=2e-9)
        assert new[known] == pytest.approx(ends[k][known], abs=2e-9)
        checked += 1
    assert checked > 3


@given(st.floats(-1, 50), st.sampled_from(range(8)))
def test_source_kernels_are_the_waveforms(microseconds: float, which: int) -> None:
    u = MICRO
    waves: list[Waveform] = [
        PULSE,
        Pulse(initial=1, pulsed=-2, rise=u, fall=2 * u, width=3 * u, period=5 * u, count=3),
        Sine(offset=1, amplitude=2, frequency=1e5, delay=3 * u, damping=1e5, phase=30),
        Exponential(initial=0, pulsed=1, rise_delay=2 * u, rise_time=u, fall_delay=9 * u, fall_time=3 * u),
        Exponential(initial=0, pulsed=1, rise_delay=9 * u, rise_time=u, fall_delay=2 * u, fall_time=3 * u),
        PiecewiseLinear(times=(u, 2 * u, 2 * u, 7 * u), values=(1, 3, -1, 2)),
        PiecewiseLinear(times=(0, u, 2 * u, 3 * u), values=(0, 1, 0, 5), repeat_from=u, delay=3 * u),
        PiecewiseLinear(times=(2 * u,), values=(3,)),
    ]
    time = microseconds * u
    wave = waves[which].resolved(0.1 * u, 40 * u)
    kind, numbers = _encoded(wave)
    data = np.array(numbers)
    assert source_value(kind, data, time) == pytest.approx(float(wave.value(time)), rel=1e-12, abs=1e-12)
    assert next_corner(kind, data, time) == pytest.approx(wave.next_corner(time), rel=1e-12)


# ------------------------------------------------------------------------------- what holds in every run


def test_kcl_holds_at_every_step_by_equations_of_its_own() -> None:
    found = run(diode_amplifier(), stop=20 * MICRO, waveforms=MOVING)
    assert found.relative_residual < 1e-10
    assert found.accepted > 500


def test_a_circuit_that_steps_on_wrong_charges_is_found_out() -> None:
    netlist = diode_amplifier()
    plan, values = build_plan(netlist), netlist.values()
    right = plan.general.storage
    plan.general.storage = lambda values: tuple(part * (1 + 1e-6) for part in right(values))  # type: ignore
    with pytest.raises(ConvergenceError, match="KCL is violated"):
        transient(plan, values, stop=20 * MICRO, waveforms=MOVING)


def test_times_asked_for_agree_with_the_steps() -> None:
    netlist = diode_amplifier()
    steps = run(netlist, stop=12 * MICRO, waveforms=MOVING)
    middle = 0.5 * (steps.time[1:] + steps.time[:-1])
    asked = np.unique(np.concatenate([steps.time, middle]))
    found = run(netlist, stop=12 * MICRO, waveforms=MOVING, times=asked)
    place = np.searchsorted(asked, steps.time)
    # Steps of a nonlinear circuit end where values are asked for, so there are more of them.
    assert found.node_voltage[place] == pytest.approx(steps.node_voltage, abs=2e-4)
    fine = run(netlist, stop=12 * MICRO, waveforms=MOVING, times=asked, tolerance=1e-8)
    assert found.node_voltage == pytest.approx(fine.node_voltage, abs=2e-4)


def test_nothing_moves_from_a_stable_operating_point() -> None:
    network = parse_network(network_document(recurrent=True))
    netlist = compile_network(network, seed=3)
    inputs = np.random.default_rng(3).normal(size=netlist.inputs.size)
    plan, values = build_plan(netlist), netlist.values()
    found = transient(plan, values, stop=MICRO, inputs=inputs)
    point = solve(plan, values, inputs[None])
    assert np.abs(found.node_voltage - point.node_voltage).max() < 1e-9
    assert np.abs(found.branch_current[-1] - point.branch_current).max() < 1e-14


def test_a_waveform_may_drive_an_input_port() -> None:
    b = NetlistBuilder("ports")
    for k in range(2):
        b.add("vsource", f"v{k}", f"in{k}", "0", voltage=0.0)
        b.add("resistor", f"r{k}", f"in{k}", "out", conductance=1e-3)
    b.add("capacitor", "c", "out", "0", capacitance=NANO)
    b.inputs(["v0", "v1"], [0, 1], [2.0, 1.0])
    step = PiecewiseLinear(times=(0, 1e-9), values=(2, 0))
    found = run(b.build(), stop=10 * MICRO, inputs=[5.0, 1.0], waveforms={"v0": step})
    assert found.voltage("out")[0] == pytest.approx(1.5)
    assert found.voltage("out")[-1] == pytest.approx(0.5, abs=1e-6)
    assert np.all(found.voltage("in1") == 1.0)


def test_loops_of_capacitors_and_sources_and_cutsets_of_inductors() -> None:
    b = NetlistBuilder("degenerate")
    b.add("vsource", "v1", "a", "b", voltage=0.0)
    b.add("capacitor", "c1", "a", "b", capacitance=NANO)
    b.add("capacitor", "c2", "a", "0", capacitance=NANO)
    b.add("capacitor", "c3", "b", "0", capacitance=NANO)
    b.add("resistor", "r1", "a", "0", conductance=1e-3)
    b.add("resistor", "r2", "b", "0", conductance=1e-3)
    b.add("inductor", "l1", "a", "c", inductance=MICRO)
    b.add("inductor", "l2", "c", "d", inductance=3 * MICRO)
    b.add("resistor", "r3", "d", "0", conductance=1e-2)
    ramp = PiecewiseLinear(times=(0, MICRO), values=(0, 1))
    found = run(b.build(), stop=2 * MICRO, waveforms={"v1": ramp}, times=[0, 0.5 * MICRO, 2 * MICRO])
    a, there, d = (found.voltage(name) for name in "abd")
    assert a - there == pytest.approx([0, 0.5, 1], abs=1e-12)
    # KCL at node b: the source feeds C dv/dt of its own loop, which is 1 mA, and what b loses.
    before, after = run(
        b.build(), stop=2 * MICRO, waveforms={"v1": ramp}, times=np.array([0.49, 0.51]) * MICRO
    ).voltage("b")
    drift = NANO * (after - before) / (0.02 * MICRO)
    assert found.current("v1")[1] == pytest.approx(-1e-3 + drift + 1e-3 * there[1], rel=1e-4)
    # Inductors in series share the drop by their inductances.
    middle = found.voltage("c")
    assert middle[1] - d[1] == pytest.approx(0.75 * (a[1] - d[1]), rel=1e-6)


# ------------------------------------------------------------------------------------ initial conditions


def relaxing() -> Netlist:
    b = NetlistBuilder("relaxing")
    b.add("vsource", "v1", "in", "0", voltage=1.0)
    b.add("resistor", "r1", "in", "a", conductance=1e-3)
    b.add("resistor", "r2", "a", "0", conductance=1e-3)
    b.add("capacitor", "c1", "a", "0", capacitance=NANO)
    return b.build()


def test_without_initial_conditions_it_starts_at_the_operating_point() -> None:
    found = run(relaxing(), stop=MICRO)
    assert found.voltage("a") == pytest.approx(0.5, abs=1e-12)


def test_nodes_are_held_while_the_operating_point_is_solved() -> None:
    found = run(relaxing(), stop=5 * MICRO, initial_voltage={"a": 2.0, "in": 9.0})
    exact = 0.5 + 1.5 * np.exp(-found.time / (0.5 * MICRO))
    assert found.voltage("a") == pytest.approx(exact, abs=5e-5)
    # A node that a source holds stays the source's.
    assert np.all(found.voltage("in") == 1.0)


def test_uic_takes_capacitor_voltages_before_node_voltages() -> None:
    for conditions in (
        {"element_initial": {"c1": 2.0}},
        {"initial_voltage": {"a": 2.0}},
        {"initial_voltage": {"a": -7.0}, "element_initial": {"c1": 2.0}},
    ):
        found = run(relaxing(), stop=5 * MICRO, uic=True, **conditions)
        exact = 0.5 + 1.5 * np.exp(-found.time / (0.5 * MICRO))
        assert found.time[0] == 0
        assert found.voltage("a") == pytest.approx(exact, abs=5e-5)


def test_uic_starts_at_rest_and_inductors_carry_their_current() -> None:
    b = NetlistBuilder("coil")
    b.add("inductor", "l1", "a", "0", inductance=MICRO)
    b.add("resistor", "r1", "a", "0", conductance=1e-2)
    found = run(b.build(at_rest=False), stop=50 * NANO, uic=True, element_initial={"l1": 3e-3})
    exact = 3e-3 * np.exp(-found.time * 100 / MICRO)
    assert found.current("l1") == pytest.approx(exact, abs=1e-7)
    # Its current keeps flowing: out of node a, so that the resistor lifts it below ground.
    assert found.voltage("a")[0] == pytest.approx(-0.3, rel=1e-4)


def test_a_start_can_be_given() -> None:
    netlist = relaxing()
    plan, values = build_plan(netlist), netlist.values()
    point = solve(plan, values, np.empty((1, 0)))
    v, i = point.node_voltage.copy(), point.branch_current.copy()
    v[0, netlist.node_index["a"]] = 0.0
    moved = type(point)(**{**vars_of(point), "node_voltage": v, "branch_current": i})
    found = transient(plan, values, stop=5 * MICRO, start=moved)
    assert found.voltage("a")[0] == 0
    assert found.voltage("a")[-1] == pytest.approx(0.5, abs=1e-4)


def vars_of(point: Any) -> dict[str, Any]:
    return {name: getattr(point, name) for name, f in type(point).__dataclass_fields__.items() if f.init}


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stop": 0.0}, SpecError, "stop: must be a positive number of seconds"),
        ({"stop": math.inf}, SpecError, "stop: must be a positive number of seconds"),
        ({"stop": 1e-6, "step": -1.0}, SpecError, "step: must be a positive number"),
        ({"stop": 1e-6, "waveforms": {"vx": PULSE}}, NetlistError, "no voltage or current source"),
        ({"stop": 1e-6, "waveforms": {"r1": PULSE}}, NetlistError, "no voltage or current source"),
        ({"stop": 1e-6, "initial_voltage": {"zz": 1.0}}, NetlistError, "no such node"),
        ({"stop": 1e-6, "uic": True, "initial_voltage": {"zz": 1.0}}, NetlistError, "no such node"),
        ({"stop": 1e-6, "uic": True, "element_initial": {"r1": 1.0}}, NetlistError, "no capacitor"),
        ({"stop": 1e-6, "times": [0.0, 2e-6]}, SpecError, "times: must rise"),
        ({"stop": 1e-6, "times": [1e-7, 0.0]}, SpecError, "times: must rise"),
    ],
)
def test_bad_requests_are_named(options: dict[str, Any], error: type[CircuitsimError], words: str) -> None:
    with pytest.raises(error, match=words):
        run(rc(), **options)


def test_bad_settings_are_named() -> None:
    with pytest.raises(SpecError, match="relative_tolerance: must be a positive number"):
        TransientSettings(relative_tolerance=0.0)
    with pytest.raises(SpecError, match="largest_step: must be a positive number"):
        TransientSettings(largest_step=-1.0)


def test_too_many_steps_are_an_error_that_says_how_far_it_came() -> None:
    fast = Pulse(initial=0, pulsed=1, rise=1e-9, fall=1e-9, width=1e-8, period=2e-8)
    with pytest.raises(ConvergenceError, match="1000 steps only came to"):
        transient(
            build_plan(rc()),
            rc().values(),
            stop=1.0,
            waveforms={"v1": fast},
            settings=TransientSettings(max_steps=1000),
        )


def test_a_formula_that_cannot_be_followed_is_an_error() -> None:
    b = NetlistBuilder("contradiction")
    b.add("vsource", "v1", "in", "0", voltage=0.0)
    b.add("resistor", "r1", "in", "a", conductance=1e-3)
    b.add("capacitor", "c1", "a", "0", capacitance=NANO)
    # Up when it is down and down when it is up: no value is consistent once a reaches a half.
    text = "v(y) + v(a) > 0.5 ? 0 : 1"
    b.add(
        "behavioural_voltage",
        "b1",
        "y",
        "0",
        expression=parse_expression(text, node=b.node, source=lambda name: 0),
    )
    netlist = b.build()
    ramp = PiecewiseLinear(times=(0, MICRO), values=(-2, 2))
    with pytest.raises(ConvergenceError, match="no step could be found"):
        run(netlist, stop=5 * MICRO, waveforms={"v1": ramp})


def test_progress_rises_to_the_end() -> None:
    seen: list[float] = []
    netlist = rc()
    fast = Pulse(initial=0, pulsed=1, rise=1e-9, fall=1e-9, width=1e-7, period=2e-7)
    transient(build_plan(netlist), netlist.values(), stop=5e-4, waveforms={"v1": fast}, progress=seen.append)
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == 5e-4
