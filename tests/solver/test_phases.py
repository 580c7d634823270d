"""Nudged, corrected and dyadic phases: each against the circuit that would compute it, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from circuits import (
    ELEMENTS,
    EVERYTHING,
    PASSIVE,
    SEEDS,
    SOURCES,
    kcl,
    random_inputs,
    random_netlist,
    random_nudge,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist, Nudge, corrected_netlist, dyadic_netlist, flatten, nudged_netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Drive, OperatingPoint, SolverSettings, build_plan, solve, solve_transposed

TIGHT = SolverSettings(method="general", relative_tolerance=1e-14, voltage_tolerance=1e-13)
KINDS = st.sampled_from([ELEMENTS, EVERYTHING])
NUDGES = st.tuples(st.sampled_from(["quadratic", "softmax"]), st.sampled_from([0.2, 0.01, -0.05]))


def free(netlist: Netlist, inputs: FloatArray) -> OperatingPoint:
    return solve(build_plan(netlist), netlist.values(), inputs, TIGHT)


def phase(
    netlist: Netlist, inputs: FloatArray, nudge: Nudge, anchor: OperatingPoint | None
) -> OperatingPoint:
    drive = Drive.of(netlist, inputs, nudge)
    if anchor is not None:
        drive = drive.corrected(anchor)
    return solve(build_plan(netlist), netlist.values(), drive, TIGHT)


@given(SEEDS, KINDS, NUDGES)
@settings(max_examples=20)
def test_nudged_phase_is_a_circuit(seed: int, kinds: frozenset[str], nudging: tuple[str, float]) -> None:
    netlist = random_netlist(seed, kinds=kinds)
    inputs = random_inputs(seed, 1, 2)
    nudge = random_nudge(seed, *nudging, 1, 3)
    native = phase(netlist, inputs, nudge, None)
    built = nudged_netlist(netlist, nudge)
    other = free(built, inputs)
    np.testing.assert_allclose(
        native.node_voltage[0], other.node_voltage[0, : netlist.n_nodes], rtol=0, atol=1e-12
    )
    assert native.relative_residual[0] < 1e-9
    moved = native.node_voltage - free(netlist, inputs).node_voltage
    assert np.abs(moved).max() > 1e-6


@given(SEEDS, KINDS, NUDGES)
@settings(max_examples=25)
def test_corrected_phase_is_a_circuit(seed: int, kinds: frozenset[str], nudging: tuple[str, float]) -> None:
    # The rule that swaps the ports of every controlled source, against J0^T - J0 itself.
    netlist = random_netlist(seed, kinds=kinds)
    flat = flatten(netlist)
    inputs = random_inputs(seed, 1, 2)
    anchor = free(netlist, inputs)
    v0, i0 = flat.lift(anchor.node_voltage, anchor.branch_current)
    nudge = random_nudge(seed, *nudging, 1, 3)
    native = phase(netlist, inputs, nudge, anchor)
    built = nudged_netlist(corrected_netlist(flat.netlist, v0[0], i0[0]), nudge)
    other = free(built, inputs)
    np.testing.assert_allclose(
        native.node_voltage[0], other.node_voltage[0, : netlist.n_nodes], rtol=0, atol=1e-12
    )
    assert native.relative_residual[0] < 1e-9
    assert kcl(built, other.node_voltage[0], other.branch_current[0]) < 1e-9
    assert np.abs(native.node_voltage - phase(netlist, inputs, nudge, None).node_voltage).max() > 1e-9


@given(SEEDS, KINDS)
@settings(max_examples=10)
def test_without_a_nudge_the_corrected_phase_stays_at_its_anchor(seed: int, kinds: frozenset[str]) -> None:
    netlist = random_netlist(seed, kinds=kinds)
    flat = flatten(netlist)
    inputs = random_inputs(seed, 1, 2)
    anchor = free(netlist, inputs)
    v0, i0 = flat.lift(anchor.node_voltage, anchor.branch_current)
    built = corrected_netlist(flat.netlist, v0[0], i0[0])
    np.testing.assert_allclose(free(built, inputs).node_voltage[0, : v0.shape[1]], v0[0], rtol=0, atol=1e-12)
    drive = Drive.of(netlist, inputs).corrected(anchor)
    still = solve(build_plan(netlist), netlist.values(), drive, TIGHT)
    np.testing.assert_allclose(still.node_voltage, anchor.node_voltage, rtol=0, atol=1e-13)


@given(SEEDS, KINDS, st.sampled_from(["quadratic", "softmax"]), st.sampled_from([100.0, 1.0, 1e-3, -2.0]))
@settings(max_examples=20)
def test_dyadic_phase_is_beta_times_the_adjoint(
    seed: int, kinds: frozenset[str], kind: str, beta: float
) -> None:
    netlist = random_netlist(seed, kinds=kinds)
    flat = flatten(netlist)
    inputs = random_inputs(seed, 1, 2)
    plan, values = build_plan(netlist), netlist.values()
    point = free(netlist, inputs)
    v0, i0 = flat.lift(point.node_voltage, point.branch_current)
    nudge = random_nudge(seed, kind, beta, 1, 3)
    slope = nudge.scaled(1.0).current(netlist.outputs.read(point.node_voltage))
    s = solve_transposed(plan, values, point, slope, inputs=inputs)[0]
    built = dyadic_netlist(flat.netlist, v0[0], nudge, current=i0[0])
    both = free(built, inputs)
    dual = [0, *(built.node_index[f"d.{name}"] for name in netlist.node_names[1:])]
    scale = np.abs(beta * s).max()
    np.testing.assert_allclose(both.node_voltage[0, dual], beta * s, rtol=0, atol=1e-9 * scale)
    # The circuit itself does not notice its copy.
    np.testing.assert_allclose(
        both.node_voltage[0, : netlist.n_nodes], point.node_voltage[0], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        built.outputs.read(both.node_voltage[0]), beta * netlist.outputs.read(s), rtol=0, atol=1e-9 * scale
    )


def errors(
    netlist: Netlist, seed: int, betas: FloatArray, *, corrected: bool, centred: bool, kind: str = "quadratic"
) -> FloatArray:
    """Relative error of dx/dbeta at each beta against the adjoint."""
    inputs = random_inputs(seed, 1, 2)
    point = free(netlist, inputs)
    nudge = random_nudge(seed, kind, 1.0, 1, 3)
    slope = nudge.current(netlist.outputs.read(point.node_voltage))
    s = solve_transposed(build_plan(netlist), netlist.values(), point, slope, inputs=inputs)
    anchor = point if corrected else None
    found = []
    for beta in betas:
        up = phase(netlist, inputs, nudge.scaled(float(beta)), anchor).node_voltage
        low = (
            phase(netlist, inputs, nudge.scaled(-float(beta)), anchor).node_voltage
            if centred
            else point.node_voltage
        )
        estimate = (up - low) / ((2 if centred else 1) * beta)
        found.append(np.linalg.norm(estimate - s) / np.linalg.norm(s))
    return np.array(found)


@pytest.mark.parametrize("kind", ["quadratic", "softmax"])
@pytest.mark.parametrize(("centred", "order"), [(True, 2.0), (False, 1.0)])
def test_corrected_estimates_converge_to_the_adjoint(centred: bool, order: float, kind: str) -> None:
    betas = 10.0 ** -np.array([1.0, 1.5, 2.0]) * (1.0 if centred else 0.1)
    for seed in range(4):
        # A nudge of 0.1 may carry an ideal diode across its kink, where there is no derivative.
        netlist = random_netlist(seed, kinds=EVERYTHING - {"ideal diode"}, strength=1.2)
        found = errors(netlist, seed, betas, corrected=True, centred=centred, kind=kind)
        slope = np.polyfit(np.log(betas), np.log(found), 1)[0]
        assert slope == pytest.approx(order, abs=0.15), (seed, found)
        assert found[-1] < (1e-3 if centred else 1e-2)


def test_the_nudge_alone_is_biased_where_the_circuit_is_not_reciprocal() -> None:
    betas = np.array([1e-2, 1e-3])
    for seed in range(4):
        netlist = random_netlist(seed, kinds=EVERYTHING)
        found = errors(netlist, seed, betas, corrected=False, centred=True)
        assert found.min() > 0.02
        assert found[0] == pytest.approx(found[1], rel=0.05)


def test_the_nudge_alone_is_exact_where_the_circuit_is_reciprocal() -> None:
    betas = 10.0 ** -np.array([1.0, 1.5, 2.0])
    for seed in range(4):
        netlist = random_netlist(seed, kinds=PASSIVE | SOURCES | {"diode", "load"})
        # A heavier load, so that the curvature of the diodes shows at all.
        inputs = random_inputs(seed, 1, 2)
        found = errors(netlist, seed, betas, corrected=False, centred=True)
        assert found[-1] < 1e-3
        assert found[-1] < 0.02 * found[0]
        # And the correction does nothing there.
        anchor = free(netlist, inputs)
        nudge = random_nudge(seed, "quadratic", 0.1, 1, 3)
        np.testing.assert_allclose(
            phase(netlist, inputs, nudge, anchor).node_voltage,
            phase(netlist, inputs, nudge, None).node_voltage,
            rtol=0,
            atol=1e-13,
        )


@given(SEEDS, st.sampled_from(["quadratic", "softmax"]))
@settings(max_examples=10)
def test_the_nudge_is_the_slope_of_its_cost(seed: int, kind: str) -> None:
    nudge = random_nudge(seed, kind, 1.0, 2, 3)
    y = np.random.default_rng(seed).normal(0, 0.2, (2, 3))

    def cost(y: FloatArray) -> float:
        if kind == "quadratic":
            return float(0.5 * nudge.conductance * ((y - nudge.target) ** 2).sum())
        z = y / nudge.scale
        top = z.max(axis=1, keepdims=True)
        log_softmax = z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))
        return float(-nudge.conductance * nudge.scale**2 * (nudge.target * log_softmax).sum())

    slope = np.zeros_like(y)
    for index in np.ndindex(*y.shape):
        h = np.zeros_like(y)
        h[index] = 1e-5
        slope[index] = (cost(y + h) - cost(y - h)) / 2e-5
    np.testing.assert_allclose(nudge.current(y), slope, rtol=0, atol=1e-6 * np.abs(slope).max())
    np.testing.assert_allclose(nudge.scaled(0.3).current(y), 0.3 * nudge.current(y), rtol=1e-14)
    np.testing.assert_array_equal(nudge.rows(slice(1, 2)).current(y[1:]), nudge.current(y)[1:])


def test_the_adjoint_circuits_need_a_flat_netlist() -> None:
    netlist = random_netlist(0, kinds=EVERYTHING)
    nudge = random_nudge(0, "quadratic", 0.1, 1, 3)
    nothing = np.zeros(netlist.n_nodes)
    with pytest.raises(NetlistError, match="Call flatten"):
        corrected_netlist(netlist, nothing, nothing)
    with pytest.raises(NetlistError, match="Call flatten"):
        dyadic_netlist(netlist, nothing, nudge)


def test_softmax_loads_and_nudges_are_the_same_element() -> None:
    netlist = random_netlist(3, kinds=ELEMENTS - {"load"})
    inputs = random_inputs(3, 1, 2)
    nudge = random_nudge(3, "softmax", 0.5, 1, 3)
    loaded = nudged_netlist(netlist, nudge)
    assert loaded.loads[0].amplitude == pytest.approx(nudge.amplitude)
    np.testing.assert_allclose(
        free(loaded, inputs).node_voltage, phase(netlist, inputs, nudge, None).node_voltage, atol=1e-13
    )
