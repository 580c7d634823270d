"""Every phase of compiled networks: our solver, the circuit that the phase is, and ngspice."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest
from circuits import EVERYTHING, random_inputs, random_netlist, random_nudge
from spice_networks import NETWORKS, large_network, network, sample_inputs, sample_nudge

from circuitsim.errors import CrossCheckError
from circuitsim.netlist import Netlist, Nudge
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import (
    Drive,
    OperatingPoint,
    Plan,
    SolverSettings,
    build_plan,
    solve,
    solve_transposed,
)
from circuitsim.spice import (
    NgspiceEngine,
    crosscheck_point,
    deck_nodes,
    phase_netlist,
    with_inputs,
    write_deck,
)

# The issue asks for 1e-9 V. ngspice and we agree to 1e-14 V or better on all of these.
TOLERANCE = 1e-12
BETAS = (0.1, -0.1)
KINDS = ("quadratic", "softmax")
LARGE = "64-32-10"

Method = Literal["general", "layered"]


def settings(method: Method) -> SolverSettings:
    return SolverSettings(method=method, relative_tolerance=1e-13, voltage_tolerance=1e-12)


@cache
def plan_of(name: str) -> Plan:
    return build_plan(large_network() if name == LARGE else network(name))


@cache
def anchor_of(name: str) -> OperatingPoint:
    netlist = plan_of(name).netlist
    return solve(plan_of(name), netlist.values(), sample_inputs(netlist), settings("general"))


def methods(name: str) -> list[Method]:
    return ["general", "layered"] if plan_of(name).method == "layered" else ["general"]


def circuit(name: str) -> Netlist:
    """The network with its sample's inputs."""
    netlist = plan_of(name).netlist
    return with_inputs(netlist, sample_inputs(netlist))


def phase_point(name: str, nudge: Nudge, *, corrected: bool, method: Method) -> OperatingPoint:
    """Our own answer for a nudged or corrected phase."""
    plan = plan_of(name)
    drive = Drive(inputs=sample_inputs(plan.netlist), nudge=nudge)
    if corrected:
        drive = drive.corrected(anchor_of(name))
    return solve(plan, plan.netlist.values(), drive, settings(method))


def free_solve(netlist: Netlist) -> OperatingPoint:
    """The operating point of a phase's circuit, by the general method."""
    inputs = np.zeros((1, netlist.inputs.size))
    if netlist.inputs.size:
        rows, columns = netlist.inputs.source, netlist.inputs.column
        inputs[0, columns] = netlist.vsource.voltage[rows] / netlist.inputs.gain
    return solve(build_plan(netlist), netlist.values(), inputs, settings("general"))


def moved(name: str, point: OperatingPoint) -> float:
    return float(np.abs(point.node_voltage - anchor_of(name).node_voltage).max())


@pytest.mark.ngspice
@pytest.mark.parametrize("name", [*NETWORKS, LARGE])
def test_free_phase(name: str, engine: NgspiceEngine) -> None:
    plan = plan_of(name)
    for method in methods(name):
        point = solve(plan, plan.netlist.values(), sample_inputs(plan.netlist), settings(method))
        check = crosscheck_point(circuit(name), point.node_voltage[0], engine=engine)
        assert check.worst_difference < TOLERANCE, (method, check.worst_node)
        assert np.abs(check.spice).max() > 0.1


@pytest.mark.ngspice
@pytest.mark.parametrize("phase", ["nudged", "corrected"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NETWORKS, LARGE])
def test_nudged_and_corrected_phases(
    name: str, kind: str, phase: Literal["nudged", "corrected"], engine: NgspiceEngine
) -> None:
    for beta in BETAS:
        nudge = sample_nudge(plan_of(name).netlist, kind, beta)
        derived = phase_netlist(circuit(name), phase, anchor=anchor_of(name), nudge=nudge)
        for method in methods(name):
            point = phase_point(name, nudge, corrected=phase == "corrected", method=method)
            check = crosscheck_point(derived, point.node_voltage[0], engine=engine)
            assert check.worst_difference < TOLERANCE, (beta, method, check.worst_node)
            assert moved(name, point) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NETWORKS, LARGE])
def test_a_native_corrected_phase_is_the_free_phase_of_the_derived_circuit(name: str, kind: str) -> None:
    for beta in BETAS:
        nudge = sample_nudge(plan_of(name).netlist, kind, beta)
        derived = free_solve(phase_netlist(circuit(name), "corrected", anchor=anchor_of(name), nudge=nudge))
        for method in methods(name):
            point = phase_point(name, nudge, corrected=True, method=method)
            size = point.node_voltage.shape[1]
            np.testing.assert_allclose(
                derived.node_voltage[:, :size], point.node_voltage, rtol=0, atol=TOLERANCE
            )


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_nudge_the_corrected_circuit_rests_at_its_anchor(name: str) -> None:
    anchor = anchor_of(name)
    derived = free_solve(phase_netlist(circuit(name), "corrected", anchor=anchor))
    size = anchor.node_voltage.shape[1]
    np.testing.assert_allclose(derived.node_voltage[:, :size], anchor.node_voltage, rtol=0, atol=TOLERANCE)


@pytest.mark.ngspice
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NETWORKS, LARGE])
def test_dyadic_phase(name: str, kind: str, engine: NgspiceEngine) -> None:
    plan, anchor = plan_of(name), anchor_of(name)
    netlist = plan.netlist
    # The dual voltages are the adjoint's at any beta, 100 included.
    for beta in (0.1, 100.0):
        nudge = sample_nudge(netlist, kind, beta)
        derived = phase_netlist(circuit(name), "dyadic", anchor=anchor, nudge=nudge)
        ours = free_solve(derived).node_voltage[0]
        check = crosscheck_point(derived, ours, engine=engine)
        scale = max(1.0, float(np.abs(ours).max()))
        assert check.worst_difference < TOLERANCE * scale, check.worst_node
        dual = [derived.node_index[f"d.{node}"] for node in netlist.node_names[1:]]
        draw = nudge.scaled(1.0).current(netlist.outputs.read(anchor.node_voltage))
        for method in methods(name):
            s = solve_transposed(
                plan, netlist.values(), anchor, draw, settings(method), inputs=sample_inputs(netlist)
            )
            adjoint = beta * s[0, 1:]
            # The first network is not disturbed by the second.
            size = netlist.n_nodes
            np.testing.assert_allclose(check.spice[:size], anchor.node_voltage[0], rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(check.spice[dual], adjoint, rtol=0, atol=TOLERANCE * scale)
            y = derived.outputs.read(check.spice)
            # Differential outputs read differences of dual nodes.
            expected = netlist.outputs.read(beta * s[0])
            np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE * scale)
            assert np.abs(adjoint).max() > 1e-5


def gradient(netlist: Netlist, s: FloatArray, v: FloatArray) -> dict[str, FloatArray]:
    """dC/dg of every device [W/S], from s = dv/dbeta (N,) V and free voltages (N,) V alone."""
    found = {}
    for crossbar in netlist.trainable:
        for half, words in (("plus", crossbar.word_pos), ("minus", crossbar.word_neg)):
            if words is not None:
                drop_s = s[words][:, None] - s[crossbar.bit]
                drop_v = v[words][:, None] - v[crossbar.bit]
                found[f"{crossbar.name}.{half}"] = drop_s * drop_v
    return found


def relative_error(found: dict[str, FloatArray], expected: dict[str, FloatArray]) -> float:
    assert found.keys() == expected.keys()
    a = np.concatenate([found[name].ravel() for name in expected])
    b = np.concatenate([expected[name].ravel() for name in expected])
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.ngspice
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_from_spice_voltages_alone(name: str, kind: str, engine: NgspiceEngine) -> None:
    plan, anchor = plan_of(name), anchor_of(name)
    netlist = plan.netlist
    unit = sample_nudge(netlist, kind, 1.0)
    draw = unit.current(netlist.outputs.read(anchor.node_voltage))
    adjoint = solve_transposed(
        plan, netlist.values(), anchor, draw, settings("general"), inputs=sample_inputs(netlist)
    )
    v0 = anchor.node_voltage[0]
    oracle = gradient(netlist, adjoint[0], v0)
    spice_free = crosscheck_point(circuit(name), v0, engine=engine).spice
    errors = []
    for beta in (0.1, 0.02):
        states, ours = [], []
        for sign in (1.0, -1.0):
            nudge = unit.scaled(sign * beta)
            point = phase_point(name, nudge, corrected=True, method="general").node_voltage[0]
            derived = phase_netlist(circuit(name), "corrected", anchor=anchor, nudge=nudge)
            states.append(crosscheck_point(derived, point, engine=engine).spice)
            ours.append(point)
        spice = gradient(netlist, (states[0] - states[1]) / (2 * beta), spice_free)
        native = gradient(netlist, (ours[0] - ours[1]) / (2 * beta), v0)
        assert relative_error(spice, native) < 1e-9
        errors.append(relative_error(spice, oracle))
    # Centred differences: the error falls with beta squared.
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 15


@pytest.mark.ngspice
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_phases_of_random_circuits_of_every_element_and_block(
    seed: int, kind: str, engine: NgspiceEngine
) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    inputs, plan = random_inputs(seed, 1, 2), build_plan(netlist)
    values, free = netlist.values(), with_inputs(netlist, inputs)
    anchor = solve(plan, values, inputs, settings("general"))
    for beta in BETAS:
        nudge = random_nudge(seed, kind, beta, 1, 3)
        drive = Drive(inputs=inputs, nudge=nudge)
        phases: tuple[tuple[Literal["nudged", "corrected"], Drive], ...]
        phases = (("nudged", drive), ("corrected", drive.corrected(anchor)))
        for phase, excitation in phases:
            point = solve(plan, values, excitation, settings("general")).node_voltage[0]
            derived = phase_netlist(free, phase, anchor=anchor, nudge=nudge)
            check = crosscheck_point(derived, point, engine=engine)
            assert check.worst_difference < TOLERANCE, (phase, beta, check.worst_node)
        dyadic = phase_netlist(free, "dyadic", anchor=anchor, nudge=nudge)
        draw = nudge.current(netlist.outputs.read(anchor.node_voltage))
        adjoint = solve_transposed(plan, values, anchor, draw, settings("general"), inputs=inputs)
        dual = [f"d.{node}" for node in netlist.node_names[1:]]
        names = deck_nodes(dyadic)
        spice = engine.solve(write_deck(dyadic)).voltages(names[node] for node in dual)
        np.testing.assert_allclose(spice, adjoint[0, 1:], rtol=0, atol=TOLERANCE)


def test_a_phase_says_what_it_needs() -> None:
    with pytest.raises(CrossCheckError, match="the corrected phase needs an anchor"):
        phase_netlist(circuit("relu"), "corrected")
    with pytest.raises(CrossCheckError, match="the dyadic phase needs a nudge"):
        phase_netlist(circuit("relu"), "dyadic", anchor=anchor_of("relu"))
    with pytest.raises(CrossCheckError, match="one input vector is needed"):
        with_inputs(network("relu"), np.zeros((2, 9)))


@pytest.mark.ngspice
def test_a_difference_is_found_where_it_is(engine: NgspiceEngine) -> None:
    voltage = anchor_of("relu").node_voltage[0].copy()
    node = plan_of("relu").netlist.node_index["hidden[4]"]
    voltage[node] += 1e-6
    check = crosscheck_point(circuit("relu"), voltage, engine=engine)
    assert check.worst_node == "hidden[4]"
    assert check.worst_difference == pytest.approx(1e-6, rel=1e-6)
    assert check.engine.startswith("ngspice ")
