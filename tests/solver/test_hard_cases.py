"""Hard circuits, and circuits without an answer: a true one, an error or a status, never a false one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from circuits import EVERYTHING, SEEDS, branch_errors, kcl, random_inputs, random_netlist, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.errors import ConvergenceError, NetlistError, SpecError
from circuitsim.netlist import Netlist, NetlistBuilder, flatten
from circuitsim.solver import STATUS, Drive, OperatingPoint, SolverSettings, build_plan, solve

NONE = np.empty((1, 0))
QUIET = SolverSettings(throw=False)


def diode(builder: NetlistBuilder, name: str, pos: str, neg: str, i_s: float = 1e-14) -> None:
    builder.add(
        "diode", name, pos, neg, saturation_current=i_s, slope_voltage=0.02585, parallel_conductance=1e-12
    )


def source(voltage: float) -> NetlistBuilder:
    builder = NetlistBuilder("hard")
    builder.add("vsource", "in", "a", "0", voltage=voltage)
    return builder


def checked(netlist: Netlist, inputs: np.ndarray = NONE) -> OperatingPoint:
    """Solve, and check the answer by the elements' own equations."""
    point = solve(build_plan(netlist), netlist.values(), inputs)
    assert point.converged
    flat = flatten(netlist)
    v, i = flat.lift(point.node_voltage, point.branch_current)
    source_voltage = flat.netlist.source_voltage(inputs)
    for b in range(len(v)):
        assert kcl(flat.netlist, v[b], i[b]) < 1e-9
        assert max(map(abs, branch_errors(flat.netlist, v[b], i[b], source_voltage[b])), default=0.0) < 1e-9
    assert np.all(point.relative_residual < 1e-9)
    return point


@pytest.mark.parametrize("voltage", [0.7, 5.0, 10.0, 1000.0, -1000.0])
def test_a_diode_behind_one_ohm(voltage: float) -> None:
    builder = source(voltage)
    # In reverse 1 nA flows: of 1000 V across 1 ohm a double can only tell 100 nA.
    builder.add("resistor", "r", "a", "b", conductance=1.0 if voltage > 0 else 1e-6)
    diode(builder, "d", "b", "0")
    point = checked(builder.build())
    drop = float(point.node_voltage[0, 2])
    if voltage > 0:
        current = 1e-14 * math.expm1(drop / 0.02585) + 1e-12 * drop
        assert voltage - drop == pytest.approx(current, rel=1e-6)
    else:
        assert drop == pytest.approx(voltage, rel=1e-5)


@pytest.mark.parametrize("length", [2, 10, 40])
@pytest.mark.parametrize("each", [0.4, 0.7, 3.0])
def test_diode_chains(length: int, each: float) -> None:
    builder = source(each * length)
    builder.add("resistor", "r", "a", "n0", conductance=1e-2)
    for k in range(length):
        diode(builder, f"d{k}", f"n{k}", f"n{k + 1}" if k < length - 1 else "0")
    point = checked(builder.build())
    v = point.node_voltage[0, 2:]
    # Equal diodes in series share the voltage equally.
    np.testing.assert_allclose(-np.diff([*v, 0.0]), v[0] / length, rtol=1e-6)


@pytest.mark.parametrize("voltage", [3.0, -3.0, 100.0])
def test_bridge_rectifier(voltage: float) -> None:
    builder = source(voltage)
    builder.add("resistor", "line", "a", "x", conductance=1.0)
    for name, pos, neg in (("1", "x", "p"), ("2", "0", "p"), ("3", "m", "x"), ("4", "m", "0")):
        diode(builder, name, pos, neg)
    builder.add("resistor", "load", "p", "m", conductance=1e-3)
    netlist = builder.build()
    v = checked(netlist).node_voltage[0]
    across = v[netlist.node_index["p"]] - v[netlist.node_index["m"]]
    # Two diode drops below the source, whatever its sign.
    assert abs(voltage) - 2.2 < across < abs(voltage) - 1.0


@pytest.mark.parametrize("gain", [2.0, 20.0, 1000.0])
@pytest.mark.parametrize("kick", [0.0, 1e-3, -0.2])
def test_latch(gain: float, kick: float) -> None:
    # Two inverters in a ring: three operating points, any of which is an answer.
    builder = source(kick)
    builder.add("resistor", "kick", "a", "x", conductance=1e-5)
    for name, inp, out in (("one", "x", "y"), ("two", "y", "x")):
        builder.add("buffer", name, f"{name}.o", "0", inp, "0", gain=-gain, saturation=1.0, offset=0.0)
        builder.add("resistor", f"{name}.r", f"{name}.o", out, conductance=1e-3)
        builder.add("resistor", f"{name}.leak", out, "0", conductance=1e-5)
    netlist = builder.build()
    v = checked(netlist).node_voltage[0]
    x = v[netlist.node_index["x"]]
    if kick != 0 and gain > 2:
        assert abs(x) <= 1.0
    # Started near a stable state, it stays there.
    plan = build_plan(netlist)
    first = solve(plan, netlist.values(), NONE)
    tilted = np.array(first.node_voltage)
    tilted[0, netlist.node_index["x"]] = 0.95
    tilted[0, netlist.node_index["y"]] = -0.95
    state = solve(plan, netlist.values(), NONE, start=replace(first, node_voltage=tilted))
    assert state.relative_residual[0] < 1e-9
    assert state.node_voltage[0, netlist.node_index["x"]] > 0.5


def test_a_saturated_network_far_from_its_start() -> None:
    builder = source(5.0)
    builder.add("resistor", "r", "a", "x0", conductance=1e-3)
    for k in range(6):
        builder.add(
            "buffer", f"b{k}", f"y{k}", "0", f"x{k}", "0", gain=300.0 * (-1) ** k, saturation=2.0, offset=0.1
        )
        builder.add("resistor", f"r{k}", f"y{k}", f"x{k + 1}", conductance=1e-3)
        diode(builder, f"d{k}", f"x{k + 1}", "0", 1e-9)
    builder.add("resistor", "loop", "x6", "x0", conductance=1e-4)
    checked(builder.build())


# No answer ---------------------------------------------------------------------------------------


def test_a_negative_conductance_beside_a_diode() -> None:
    # J is negative where Newton starts and as large as the diode is taken for when the pivots are planned.
    builder = NetlistBuilder("negative")
    diode(builder, "d", "b", "0", 1e-6)
    builder.add("vccs", "negative", "b", "0", "b", "0", transconductance=-1e-3)
    builder.add("isource", "i", "0", "b", current=1.0)
    builder.add("resistor", "r", "b", "0", conductance=1e-6)
    v = float(checked(builder.build()).node_voltage[0, 1])
    assert 1e-6 * math.expm1(v / 0.02585) - 0.999e-3 * v == pytest.approx(1.0, rel=1e-6)


def exponential_runaway() -> Netlist:
    """A diode that a source forces backwards: its current cannot reach 1 A, nor can the rest take it."""
    builder = NetlistBuilder("runaway")
    builder.add("isource", "i", "b", "0", current=1.0)
    builder.add(
        "diode", "d", "b", "0", saturation_current=1e-9, slope_voltage=0.025, parallel_conductance=0.0
    )
    return builder.build()


def test_no_solution_raises_with_its_exit_code() -> None:
    netlist = exponential_runaway()
    plan = build_plan(netlist)
    with pytest.raises(ConvergenceError) as caught:
        solve(plan, netlist.values(), NONE)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert "runaway: 1 of 1 samples did not converge (first: sample 0" in text
    assert any(sentence in text for sentence in STATUS[1:])
    point = solve(plan, netlist.values(), NONE, QUIET)
    assert not point.converged
    assert point.status[0] in (1, 2, 3)


def test_one_bad_sample_leaves_the_others_alone() -> None:
    builder = NetlistBuilder("some")
    builder.add("vsource", "in", "a", "0", voltage=0.0)
    builder.inputs(["in"], [0])
    builder.add("vccs", "pull", "b", "0", "a", "0", transconductance=1e-3)
    builder.add(
        "diode", "d", "0", "b", saturation_current=1e-9, slope_voltage=0.025, parallel_conductance=0.0
    )
    netlist = builder.build()
    plan, values = build_plan(netlist), netlist.values()
    inputs = np.array([[0.1], [-5.0], [0.5]])
    point = solve(plan, values, inputs, QUIET)
    assert point.status[0] == point.status[2] == 0
    assert point.status[1] != 0
    assert np.all(point.relative_residual[[0, 2]] < 1e-9)
    with pytest.raises(ConvergenceError, match="1 of 3 samples did not converge"):
        solve(plan, values, inputs)


@given(SEEDS, st.integers(1, 12), st.sampled_from([0.5, 3.0, 8.0]))
@settings(max_examples=40)
def test_converged_means_converged(seed: int, most: int, strength: float) -> None:
    # Too few iterations, or gains that allow for many answers, or none: status 0 is a promise.
    netlist = random_netlist(seed, kinds=EVERYTHING, strength=strength)
    inputs = 3 * random_inputs(seed, 2, 2)
    settings_ = replace(QUIET, max_iterations=most)
    point = solve(build_plan(netlist), netlist.values(), inputs, settings_)
    good = point.status == 0
    assert np.all(point.relative_residual[good] < 1e-9)
    v, i = flatten(netlist).lift(point.node_voltage, point.branch_current)
    flat = flatten(netlist).netlist
    for b in np.flatnonzero(good):
        assert max(map(abs, branch_errors(flat, v[b], i[b], flat.source_voltage(inputs)[b]))) < 1e-8


def test_iterations_that_run_out_between_the_steps_of_a_continuation() -> None:
    # A step of gmin or source stepping that converged is not the circuit's own operating point.
    few = 0
    for seed in range(12):
        netlist = random_netlist(seed, strength=4.0)
        settings_ = replace(QUIET, max_iterations=4)
        point = solve(build_plan(netlist), netlist.values(), 3 * random_inputs(seed, 1, 2), settings_)
        assert point.status[0] != 0 or point.relative_residual[0] < 1e-9
        few += int(point.status[0] != 0)
    assert few > 0


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([1.0, 6.0]))
@settings(max_examples=15)
def test_converged_means_converged_for_sweeps(seed: int, most: int, gain: float) -> None:
    spec, netlist = small_network(seed, neuron="tanh", recurrent=True, gain=gain)
    chosen = SolverSettings(method="layered", throw=False, max_iterations=most)
    point = solve(build_plan(netlist), netlist.values(), random_inputs(seed, 3, spec.input_size), chosen)
    assert np.all(point.relative_residual[point.status == 0] < 1e-9)


def test_sweeps_that_do_not_settle_are_rescued_or_refused() -> None:
    spec, netlist = small_network(0, neuron="tanh", recurrent=True, gain=4.0)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(0, 2, spec.input_size)
    with pytest.raises(ConvergenceError, match="2 of 2 samples did not converge"):
        solve(plan, values, inputs, SolverSettings(method="layered", max_iterations=3))
    # Newton takes over where the method is free to choose.
    rescued = solve(plan, values, inputs, SolverSettings(max_iterations=12, voltage_tolerance=1e-14))
    assert rescued.converged
    assert np.all(rescued.relative_residual < 1e-9)


# Singular circuits -------------------------------------------------------------------------------


def test_a_node_that_only_amplifiers_hold_is_singular() -> None:
    builder = source(1.0)
    builder.add("resistor", "r", "a", "b", conductance=1e-3)
    builder.add("vccs", "cancel", "b", "0", "b", "0", transconductance=-1e-3)
    netlist = builder.build()
    with pytest.raises(NetlistError, match="the equations are singular at node b") as caught:
        solve(build_plan(netlist), netlist.values(), NONE)
    assert caught.value.exit_code == 2


def test_a_loop_of_ideal_amplifiers_is_singular() -> None:
    builder = source(1.0)
    builder.add("vcvs", "one", "x", "0", "y", "0", gain=2.0)
    builder.add("vcvs", "two", "y", "0", "x", "0", gain=0.5)
    builder.add("resistor", "r", "x", "a", conductance=1e-3)
    netlist = builder.build()
    with pytest.raises(NetlistError, match=r"the equations are singular at (node|branch)"):
        solve(build_plan(netlist), netlist.values(), NONE)


def test_a_circuit_of_sources_alone() -> None:
    builder = source(2.0)
    builder.add("resistor", "r", "a", "0", conductance=1e-3)
    point = checked(builder.build())
    assert point.branch_current[0, 0] == pytest.approx(-2e-3)
    assert point.power[0] == pytest.approx(4e-3)


# What goes in ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([1.0], "inputs: an input vector of this network has 2 values (got (1, 1))"),
        ([[1.0, 2.0, 3.0]], "inputs: an input vector of this network has 2 values (got (1, 3))"),
        ([[[1.0, 2.0]]], "inputs: an input vector of this network has 2 values (got (1, 1, 2))"),
        ([[1.0, 2.0], [3.0, math.nan]], "inputs[1, 1]: must be finite (got nan)"),
        ([[math.inf, 2.0]], "inputs[0, 0]: must be finite (got inf)"),
    ],
)
def test_inputs_that_do_not_fit(inputs: list[float], text: str) -> None:
    netlist = random_netlist(0)
    for attempt in (
        lambda: Drive.of(netlist, inputs),
        lambda: solve(build_plan(netlist), netlist.values(), inputs),
    ):
        with pytest.raises(SpecError) as caught:
            attempt()
        assert str(caught.value) == text


def test_one_vector_is_a_batch_of_one() -> None:
    netlist = random_netlist(0)
    drive = Drive.of(netlist, [0.5, 1])
    assert drive.inputs.shape == (1, 2)
    point = solve(build_plan(netlist), netlist.values(), drive)
    assert point.node_voltage.shape == (1, netlist.n_nodes)
    with pytest.raises(ValueError, match="read-only"):
        point.node_voltage[0, 0] = 1.0


def test_without_the_check_nothing_is_claimed() -> None:
    netlist = random_netlist(0)
    point = solve(build_plan(netlist), netlist.values(), [[0.5, 1.0]], SolverSettings(check=False))
    assert np.isnan(point.kcl_residual).all()
    assert np.isnan(point.power).all()
