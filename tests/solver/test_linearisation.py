"""The Jacobian: against differences, its transpose, its spectrum, and the adjoint gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from circuits import ELEMENTS, EVERYTHING, SEEDS, dense_jacobian, random_inputs, random_netlist, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.netlist import Netlist, Values, flatten
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Equations, SolverSettings, build_plan, solve, solve_transposed

TIGHT = SolverSettings(method="general", relative_tolerance=1e-14, voltage_tolerance=1e-13)
KINDS = st.sampled_from([ELEMENTS, EVERYTHING])


def somewhere(
    seed: int, kinds: frozenset[str]
) -> tuple[Equations, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Equations of a random circuit, a point (v, i) near nothing in particular, and a direction."""
    netlist = random_netlist(seed, kinds=kinds)
    rng = np.random.default_rng([seed, 3])
    n, m = netlist.n_nodes, len(netlist.branch_names)
    v, dv = rng.normal(0, 0.08, (1, n)), rng.normal(0, 0.1, (1, n))
    v[:, 0] = dv[:, 0] = 0
    i, di = rng.normal(0, 1e-4, (1, m)), rng.normal(0, 1e-4, (1, m))
    return Equations(netlist=netlist, values=netlist.values()), v, i, dv, di


@given(SEEDS, KINDS)
@settings(max_examples=20)
def test_taylor_remainder_is_of_second_order(seed: int, kinds: frozenset[str]) -> None:
    # Across the kink of an ideal diode it is of first order.
    equations, v, i, dv, di = somewhere(seed, kinds - {"ideal diode"})
    source = equations.netlist.source_voltage(np.zeros((1, 2)))
    at = np.concatenate(equations.residual(v, i, source)[:2], axis=1)
    slope = np.concatenate(equations.jacobian_product(v, i, dv, di), axis=1)
    steps = 10.0 ** -np.array([1.5, 2.0, 2.5, 3.0])
    remainder = []
    for h in steps:
        moved = np.concatenate(equations.residual(v + h * dv, i + h * di, source)[:2], axis=1)
        # Currents are small numbers beside voltages: weigh both alike.
        weight = np.where(np.arange(moved.shape[1]) < equations.netlist.n_nodes, 1e4, 1.0)
        remainder.append(np.linalg.norm(weight * (moved - at - h * slope)))
    order = np.polyfit(np.log(steps), np.log(remainder), 1)[0]
    assert order == pytest.approx(2.0, abs=0.1)


@given(SEEDS, KINDS)
@settings(max_examples=20)
def test_jacobian_product_against_central_differences(seed: int, kinds: frozenset[str]) -> None:
    equations, v, i, dv, di = somewhere(seed, kinds)
    source = equations.netlist.source_voltage(np.zeros((1, 2)))
    h = 1e-5
    above = equations.residual(v + h * dv, i + h * di, source)
    below = equations.residual(v - h * dv, i - h * di, source)
    for product, up, down in zip(equations.jacobian_product(v, i, dv, di), above, below, strict=False):
        np.testing.assert_allclose(product, (up - down) / (2 * h), rtol=0, atol=1e-7 * np.abs(product).max())


@given(SEEDS, KINDS)
@settings(max_examples=20)
def test_adjoint_identity(seed: int, kinds: frozenset[str]) -> None:
    # <J x, y> = <x, J^T y>
    equations, v, i, xv, xi = somewhere(seed, kinds)
    rng = np.random.default_rng([seed, 4])
    yv, yi = rng.normal(0, 1, xv.shape), rng.normal(0, 1e-4, xi.shape)
    yv[:, 0] = 0
    jx = equations.jacobian_product(v, i, xv, xi)
    jy = equations.jacobian_product(v, i, yv, yi, transpose=True)
    left = np.concatenate([(jx[0] * yv)[0], (jx[1] * yi)[0]])
    right = np.concatenate([(xv * jy[0])[0], (xi * jy[1])[0]])
    assert left.sum() == pytest.approx(right.sum(), rel=0, abs=1e-12 * np.abs(left).sum())


@given(SEEDS, KINDS)
@settings(max_examples=15)
def test_transposing_keeps_the_spectrum_but_not_the_matrix(seed: int, kinds: frozenset[str]) -> None:
    # The stability of the free phase is that of the transposed one.
    equations, v, i, *_ = somewhere(seed, kinds)
    n, m = equations.netlist.n_nodes, equations.n_branches
    j = dense_jacobian(equations, v[0], i[0])
    unit = np.eye(n + m)[1:]
    node, branch = equations.jacobian_product(
        np.tile(v, (n + m - 1, 1)), np.tile(i, (n + m - 1, 1)), unit[:, :n], unit[:, n:], transpose=True
    )
    transposed = np.concatenate([node[:, 1:], branch], axis=1).T
    np.testing.assert_allclose(transposed, j.T, rtol=0, atol=1e-15)
    assert np.abs(j - j.T).max() > 1e-6
    # Scale rows and columns to volts alike, which a spectrum survives.
    scale = np.where(np.arange(n + m - 1) < n - 1, 1e2, 1e-2)
    one, other = (
        np.sort_complex(np.linalg.eigvals(a * scale[:, None] / scale[None, :])) for a in (j, transposed)
    )
    found = np.abs(one[:, None] - other[None, :]).min(axis=1)
    assert found.max() < 1e-6 * np.abs(one).max()


@given(SEEDS)
@settings(max_examples=10)
def test_the_solver_linearises_as_the_equations_do(seed: int) -> None:
    netlist = random_netlist(seed, kinds=ELEMENTS)
    plan = build_plan(netlist)
    v = np.random.default_rng(seed).normal(0, 0.08, netlist.n_nodes)
    v[0] = 0
    general = plan.general
    kept = np.concatenate([general.free_nodes, netlist.n_nodes + general.free_branches]) - 1
    j = dense_jacobian(Equations(netlist=netlist, values=netlist.values()), v)[np.ix_(kept, kept)]
    np.testing.assert_allclose(general.small_signal(netlist.values(), v), j, rtol=0, atol=1e-13)


# The adjoint gradient ----------------------------------------------------------------------------


def cost(netlist: Netlist, values: Values, inputs: FloatArray, target: FloatArray) -> float:
    point = solve(build_plan(netlist), values, inputs, TIGHT)
    y = netlist.outputs.read(point.node_voltage)
    return float(0.5 * ((y - target) ** 2).sum())


def with_conductance(values: Values, row: int, conductance: float) -> Values:
    tables = {kind: dict(columns) for kind, columns in values.tables.items()}
    changed = np.array(tables["resistor"]["conductance"])
    changed[row] = conductance
    tables["resistor"]["conductance"] = changed
    return replace(values, tables=tables)


@given(SEEDS)
@settings(max_examples=8)
def test_gradient_by_the_transposed_solve(seed: int) -> None:
    # dC/dg = (s_a - s_b) (v_a - v_b): for every resistor, crossbar devices written out included.
    netlist = flatten(random_netlist(seed, kinds=EVERYTHING)).netlist
    inputs = random_inputs(seed, 1, 2)
    target = np.random.default_rng([seed, 5]).uniform(-0.3, 0.3, (1, 3))
    values, plan = netlist.values(), build_plan(netlist)
    point = solve(plan, values, inputs, TIGHT)
    v = point.node_voltage[0]
    s = solve_transposed(
        plan, values, point, netlist.outputs.read(point.node_voltage) - target, inputs=inputs
    )[0]
    r = netlist.resistor
    gradient = (s[r.pos] - s[r.neg]) * (v[r.pos] - v[r.neg])
    rng = np.random.default_rng([seed, 6])
    scale = np.abs(gradient * r.conductance).max()
    for row in rng.choice(len(r), 6, replace=False):
        g = r.conductance[row]
        # Richardson: central differences at h and 2h, so that the error is of fourth order.
        h = 2e-3 * g
        slopes = []
        for step in (h, 2 * h):
            up, down = (
                cost(netlist, with_conductance(values, row, g + d), inputs, target) for d in (step, -step)
            )
            slopes.append((up - down) / (2 * step))
        expected = (4 * slopes[0] - slopes[1]) / 3
        assert gradient[row] * g == pytest.approx(expected * g, rel=0, abs=1e-7 * scale)


@pytest.mark.parametrize("neuron", ["tanh", "diode"])
@pytest.mark.parametrize("synapse", ["buffered", "virtual ground", "resistive", "amplifier"])
def test_gradient_of_networks_by_the_layered_transposed_solve(neuron: str, synapse: str) -> None:
    spec, netlist = small_network(1, neuron=neuron, synapse=synapse, recurrent=True)
    inputs = random_inputs(3, 1, spec.input_size)
    values, plan = netlist.values(), build_plan(netlist)
    assert plan.method == "layered"
    point = solve(plan, values, inputs)
    y = netlist.outputs.read(point.node_voltage)
    target = y + np.random.default_rng(1).uniform(-0.3, 0.3, y.shape)
    s = solve_transposed(plan, values, point, y - target, inputs=inputs)
    crossbar = netlist.crossbar("hidden-out")
    v = point.node_voltage[0]
    # What the devices' change of current would do, felt at both ends by s: word lines of ideal
    # amplifiers have s = 0 unless the amplifier passes the current on.
    j, i = 2, 1
    word, bit = crossbar.word_pos[j], crossbar.bit[i]
    gradient = (s[0, word] - s[0, bit]) * (v[word] - v[bit])
    changed = []
    for h in (1e-3, -1e-3):
        g_plus = np.array(crossbar.g_plus)
        g_plus[j, i] *= 1 + h
        crossbars = {**values.crossbars, crossbar.name: (g_plus, crossbar.g_minus)}
        changed.append(cost(netlist, replace(values, crossbars=crossbars), inputs, target))
    expected = (changed[0] - changed[1]) / (2e-3 * crossbar.g_plus[j, i])
    assert gradient == pytest.approx(expected, rel=1e-4)
