"""Operating points: closed forms, dense algebra, a slow Newton, and the theorems that hold at each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from circuits import (
    BLOCKS,
    ELEMENTS,
    EVERYTHING,
    LINEAR,
    PASSIVE,
    SEEDS,
    SOURCES,
    branch_errors,
    branches,
    dense_jacobian,
    dense_newton,
    kcl,
    random_inputs,
    random_netlist,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.netlist import Netlist, NetlistBuilder, flatten
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Equations, OperatingPoint, build_plan, solve

NONE = np.empty((1, 0))


def operating_point(netlist: Netlist, inputs: FloatArray) -> OperatingPoint:
    return solve(build_plan(netlist), netlist.values(), inputs)


def solved(builder: NetlistBuilder) -> tuple[dict[str, float], dict[str, float]]:
    """Node voltages and branch currents by name."""
    netlist = builder.build()
    point = operating_point(netlist, NONE)
    assert point.converged
    assert point.relative_residual[0] < 1e-12
    voltage = dict(zip(netlist.node_names, point.node_voltage[0].tolist(), strict=True))
    return voltage, dict(zip(netlist.branch_names, point.branch_current[0].tolist(), strict=True))


# Circuits that anyone can solve by hand: they fix the signs --------------------------------------


def source(voltage: float = 2.0) -> NetlistBuilder:
    builder = NetlistBuilder("by hand")
    builder.add("vsource", "in", "a", "0", voltage=voltage)
    return builder


def test_divider() -> None:
    builder = source(2.0)
    builder.add("resistor", "top", "a", "b", conductance=1e-3)
    builder.add("resistor", "bottom", "b", "0", conductance=3e-3)
    voltage, current = solved(builder)
    assert voltage["b"] == pytest.approx(0.5, rel=1e-14)
    # The current of a source flows from its positive node through it: a source that delivers has it negative.
    assert current["in"] == pytest.approx(-1.5e-3, rel=1e-14)


def test_current_source() -> None:
    builder = NetlistBuilder()
    builder.add("isource", "i", "0", "b", current=2e-3)
    builder.add("resistor", "r", "b", "0", conductance=1e-3)
    assert solved(builder)[0]["b"] == pytest.approx(2.0, rel=1e-14)


def test_vccs() -> None:
    builder = source(2.0)
    builder.add("vccs", "g", "b", "0", "a", "0", transconductance=1e-3)
    builder.add("resistor", "r", "b", "0", conductance=4e-3)
    assert solved(builder)[0]["b"] == pytest.approx(-0.5, rel=1e-14)


def test_vcvs() -> None:
    builder = source(2.0)
    builder.add("vcvs", "e", "b", "0", "a", "0", gain=-3.0)
    builder.add("resistor", "r", "b", "0", conductance=1e-3)
    voltage, current = solved(builder)
    assert voltage["b"] == pytest.approx(-6.0, rel=1e-14)
    assert current["e"] == pytest.approx(6e-3, rel=1e-14)
    assert current["in"] == pytest.approx(0.0, abs=1e-18)


def test_cccs_and_ccvs() -> None:
    builder = source(2.0)
    builder.add("resistor", "load", "a", "0", conductance=1e-3)
    builder.add("cccs", "f", "b", "0", control="in", gain=5.0)
    builder.add("resistor", "r", "b", "0", conductance=1e-2)
    builder.add("ccvs", "h", "c", "0", control="in", transresistance=100.0)
    builder.add("resistor", "s", "c", "0", conductance=1e-3)
    voltage, current = solved(builder)
    assert current["in"] == pytest.approx(-2e-3, rel=1e-14)
    # -10 mA leave b into the source: 10 mA enter it, and flow on through 100 ohm.
    assert voltage["b"] == pytest.approx(1.0, rel=1e-14)
    assert voltage["c"] == pytest.approx(-0.2, rel=1e-14)


def test_buffer() -> None:
    builder = source(0.3)
    builder.add("buffer", "b", "b", "0", "a", "0", gain=4.0, saturation=0.5, offset=-0.1)
    builder.add("buffer", "line", "c", "0", "0", "a", gain=4.0, saturation=np.inf, offset=0.0)
    for node in "bc":
        builder.add("resistor", f"r{node}", node, "0", conductance=1e-3)
    voltage, _ = solved(builder)
    assert voltage["b"] == pytest.approx(0.5 * math.tanh(4.0 * 0.2 / 0.5), rel=1e-14)
    assert voltage["c"] == pytest.approx(-1.2, rel=1e-14)


@pytest.mark.parametrize("current", [1e-9, 1e-6, 1e-3, 1.0, -1e-13])
def test_diode_carries_what_it_is_given(current: float) -> None:
    builder = NetlistBuilder()
    builder.add("isource", "i", "0", "a", current=current)
    builder.add(
        "diode", "d", "a", "0", saturation_current=1e-12, slope_voltage=0.025, parallel_conductance=1e-15
    )
    voltage, _ = solved(builder)
    shockley = 1e-12 * math.expm1(voltage["a"] / 0.025) + 1e-15 * voltage["a"]
    assert shockley == pytest.approx(current, rel=1e-9)


def test_everything_at_once_by_superposition() -> None:
    # Linear circuits: the response to all sources is the sum of the responses to each.
    netlist = random_netlist(4, kinds=LINEAR)
    inputs = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-2.0, 3.0]])
    v = operating_point(netlist, inputs).node_voltage
    np.testing.assert_allclose(v[3] - v[0], v[1] + v[2] - 2 * v[0], atol=1e-13)
    np.testing.assert_allclose(v[4] - v[0], -2 * (v[1] - v[0]) + 3 * (v[2] - v[0]), atol=1e-13)


# Dense algebra and a slow Newton -----------------------------------------------------------------


def dense_mna(netlist: Netlist, source_voltage: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Write the equations of a flat linear netlist entry by entry, and solve them."""
    n = netlist.n_nodes
    tables = (netlist.vsource, netlist.vcvs, netlist.ccvs, netlist.inductor)
    size = n + sum(len(table) for table in tables)
    a, z = np.zeros((size, size)), np.zeros(size)

    def conduct(p: int, q: int, cp: int, cq: int, g: float) -> None:
        a[p, cp] += g
        a[p, cq] -= g
        a[q, cp] -= g
        a[q, cq] += g

    r, g, s, f = netlist.resistor, netlist.vccs, netlist.isource, netlist.cccs
    for k in range(len(r)):
        conduct(r.pos[k], r.neg[k], r.pos[k], r.neg[k], r.conductance[k])
    for k in range(len(g)):
        conduct(g.pos[k], g.neg[k], g.control_pos[k], g.control_neg[k], g.transconductance[k])
    for k in range(len(s)):
        z[s.pos[k]] -= s.current[k]
        z[s.neg[k]] += s.current[k]
    for k in range(len(f)):
        a[f.pos[k], n + f.control[k]] += f.gain[k]
        a[f.neg[k], n + f.control[k]] -= f.gain[k]
    row = n
    for table in tables:
        for k in range(len(table)):
            a[table.pos[k], row] += 1
            a[table.neg[k], row] -= 1
            a[row, table.pos[k]] += 1
            a[row, table.neg[k]] -= 1
            if table is netlist.vsource:
                z[row] = source_voltage[k]
            elif table is netlist.vcvs:
                a[row, netlist.vcvs.control_pos[k]] -= netlist.vcvs.gain[k]
                a[row, netlist.vcvs.control_neg[k]] += netlist.vcvs.gain[k]
            elif table is netlist.ccvs:
                a[row, n + netlist.ccvs.control[k]] -= netlist.ccvs.transresistance[k]
            row += 1
    x = np.concatenate([[0.0], np.linalg.solve(a[1:, 1:], z[1:])])
    return x[:n], x[n:]


@pytest.mark.parametrize(
    "kinds",
    [PASSIVE, PASSIVE | SOURCES, *(PASSIVE | {kind} for kind in ("vccs", "vcvs", "cccs", "ccvs")), LINEAR],
    ids=lambda kinds: "+".join(sorted(kinds)),
)
def test_linear_circuits_against_dense_algebra(kinds: frozenset[str]) -> None:
    for seed in range(8):
        netlist = random_netlist(seed, kinds=kinds)
        inputs = random_inputs(seed, 2, 2)
        point = operating_point(netlist, inputs)
        for b in range(2):
            v, i = dense_mna(netlist, netlist.source_voltage(inputs)[b])
            np.testing.assert_allclose(point.node_voltage[b], v, rtol=0, atol=1e-12 * np.abs(v).max())
            np.testing.assert_allclose(point.branch_current[b], i, rtol=0, atol=1e-12 * np.abs(i).max())


@given(SEEDS, st.sampled_from([ELEMENTS, EVERYTHING, PASSIVE | {"diode"}, PASSIVE | {"buffer", "load"}]))
@settings(max_examples=20)
def test_nonlinear_circuits_against_a_slow_newton(seed: int, kinds: frozenset[str]) -> None:
    netlist = random_netlist(seed, kinds=kinds)
    inputs = random_inputs(seed, 1, 2)
    point = operating_point(netlist, inputs)
    v, i = dense_newton(netlist, inputs)
    np.testing.assert_allclose(point.node_voltage[0], v, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        point.branch_current[0], i, rtol=0, atol=1e-10 * float(point.largest_current[0])
    )


# Theorems ----------------------------------------------------------------------------------------


@given(SEEDS, st.floats(0.2, 3.0))
@settings(max_examples=20)
def test_kirchhoff_tellegen_and_power(seed: int, size: float) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    flat = flatten(netlist)
    inputs = size * random_inputs(seed, 2, 2)
    point = operating_point(netlist, inputs)
    assert np.all(point.relative_residual < 1e-9)
    v, i = flat.lift(point.node_voltage, point.branch_current)
    source_voltage = flat.netlist.source_voltage(inputs)
    both = []
    for b in range(2):
        assert kcl(flat.netlist, v[b], i[b]) < 1e-9
        assert max(map(abs, branch_errors(flat.netlist, v[b], i[b], source_voltage[b]))) < 1e-9
        found = branches(flat.netlist, v[b], i[b])
        both.append(found)
        power = [(v[b][x.pos] - v[b][x.neg]) * x.current for x in found]
        total = sum(abs(p) for p in power)
        # Tellegen: all branches together take no power.
        assert abs(sum(power)) < 1e-9 * total
        passive = ("resistor", "diode", "ideal_diode")
        dissipated = sum(p for p, x in zip(power, found, strict=True) if x.kind in passive)
        delivered = -sum(p for p, x in zip(power, found, strict=True) if x.kind not in passive)
        assert point.power[b] == pytest.approx(dissipated, rel=1e-9)
        assert point.power[b] == pytest.approx(delivered, abs=1e-9 * total)
        assert point.power[b] > 0
    # Quasi-power: voltages of one state and currents of another, on the same graph.
    for one, other in ((0, 1), (1, 0)):
        quasi = [(v[one][x.pos] - v[one][x.neg]) * x.current for x in both[other]]
        assert abs(sum(quasi)) < 1e-9 * sum(map(abs, quasi))


@given(SEEDS)
@settings(max_examples=20)
def test_the_reported_residual_is_the_one_summed_element_by_element(seed: int) -> None:
    # At any point, solved or not: the check must be able to fail.
    netlist = random_netlist(seed, kinds=ELEMENTS)
    rng = np.random.default_rng(seed)
    v = rng.normal(0, 0.1, (1, netlist.n_nodes))
    v[:, 0] = 0
    i = rng.normal(0, 1e-4, (1, len(netlist.branch_names)))
    inputs = random_inputs(seed, 1, 2)
    source_voltage = netlist.source_voltage(inputs)
    node, branch, largest = Equations(netlist=netlist, values=netlist.values()).residual(v, i, source_voltage)
    by_hand = np.zeros(netlist.n_nodes)
    biggest = 0.0
    for x in branches(netlist, v[0], i[0]):
        by_hand[x.pos] += x.current
        by_hand[x.neg] -= x.current
        if x.kind not in ("isource", "vccs", "cccs", "load"):
            biggest = max(biggest, abs(x.current))
    by_hand[0] = 0
    np.testing.assert_allclose(node[0], by_hand, rtol=0, atol=1e-13 * biggest)
    np.testing.assert_allclose(branch[0], branch_errors(netlist, v[0], i[0], source_voltage[0]), atol=1e-14)
    assert largest[0] == pytest.approx(biggest, rel=1e-12)


@given(SEEDS, st.sampled_from([PASSIVE | {"vsource"}, PASSIVE | SOURCES | {"diode", "load"}]))
@settings(max_examples=20)
def test_networks_of_two_terminal_elements_are_reciprocal(seed: int, kinds: frozenset[str]) -> None:
    # The transfer resistances, by small signals about the operating point, are symmetric.
    netlist = random_netlist(seed, kinds=kinds)
    inputs = random_inputs(seed, 1, 2)
    point = operating_point(netlist, inputs)
    j = dense_jacobian(Equations(netlist=netlist, values=netlist.values()), point.node_voltage[0])
    transfer = np.linalg.inv(j)[: netlist.n_nodes - 1, : netlist.n_nodes - 1]
    np.testing.assert_allclose(transfer, transfer.T, rtol=0, atol=1e-10 * np.abs(transfer).max())


def test_transfer_resistance_by_two_measurements() -> None:
    # The same without derivatives: a current in at one node, the voltage out at the other.
    netlist = random_netlist(6, kinds=PASSIVE | {"vsource", "bank"}, strength=0.0)
    linear = random_netlist(6, kinds=PASSIVE | {"vsource"})
    zero = np.zeros((1, 2))
    for circuit, tolerance in ((linear, 1e-12), (netlist, 1e-12)):
        response = []
        for a, b in (("n1", "n4"), ("n4", "n1")):
            builder = NetlistBuilder.extending(circuit)
            builder.add("isource", "probe", "0", a, current=1e-4)
            probed = builder.build()
            base, moved = operating_point(circuit, zero), operating_point(probed, zero)
            response.append(float((moved.node_voltage - base.node_voltage)[0, circuit.node_index[b]]))
        assert abs(response[0]) > 1e-3
        assert response[0] == pytest.approx(response[1], rel=tolerance)
    # And an amplifier breaks it.
    active = random_netlist(6, kinds=PASSIVE | {"vccs"}, strength=2.0)
    j = dense_jacobian(Equations(netlist=active, values=active.values()), np.zeros(active.n_nodes))
    assert np.abs(j - j.T).max() > 1e-6


@given(SEEDS)
@settings(max_examples=25)
def test_resistor_networks_obey_the_maximum_principle(seed: int) -> None:
    # No node lies outside the range of the sources; and more conductance means more current.
    netlist = random_netlist(seed, kinds=PASSIVE)
    inputs = random_inputs(seed, 4, 2)
    point = operating_point(netlist, inputs)
    driven = np.concatenate([np.zeros((4, 1)), netlist.source_voltage(inputs)], axis=1)
    slack = 1e-12
    assert np.all(point.node_voltage.max(axis=1) <= driven.max(axis=1) + slack)
    assert np.all(point.node_voltage.min(axis=1) >= driven.min(axis=1) - slack)
    builder = NetlistBuilder.extending(netlist)
    builder.add("resistor", "more", "n0", "n3", conductance=1e-4)
    more = operating_point(builder.build(), inputs)
    assert np.all(more.power >= point.power * (1 - 1e-12))


@given(SEEDS)
@settings(max_examples=10)
def test_blocks_alone(seed: int) -> None:
    netlist = random_netlist(seed, kinds=BLOCKS)
    inputs = random_inputs(seed, 1, 2)
    v, _ = dense_newton(netlist, inputs)
    np.testing.assert_allclose(operating_point(netlist, inputs).node_voltage[0], v, rtol=0, atol=1e-11)
