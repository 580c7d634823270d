"""Ideal diodes: complementarity, kinks that full Newton steps cycle between, rounding, phases, time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from circuits import EVERYTHING, branches, random_inputs, random_netlist, random_nudge

from circuitsim.compiler import compile_network
from circuitsim.errors import NetlistError
from circuitsim.netlist import GROUND, Netlist, NetlistBuilder, flatten
from circuitsim.netlist.models import ideal_diode_conductance, ideal_diode_current
from circuitsim.netlist.tables import FloatArray
from circuitsim.netlist.waveforms import Pulse
from circuitsim.network import parse_network
from circuitsim.solver import (
    Drive,
    Equations,
    OperatingPoint,
    SolverSettings,
    build_plan,
    solve,
    solve_transposed,
)
from circuitsim.solver.kernels.newton import _FREE_STEPS
from circuitsim.solver.smallsignal import small_signal
from circuitsim.solver.transient import TransientSettings, transient

NONE = np.empty((1, 0))
GENERAL = SolverSettings(method="general")


def general(netlist: Netlist, inputs: FloatArray = NONE) -> OperatingPoint:
    return solve(build_plan(netlist), netlist.values(), inputs, GENERAL)


def resistive(
    sizes: tuple[int, ...] = (64, 64, 32, 10), *, polarity: str = "alternating", clamp: float = 0.0
) -> Netlist:
    """A deep resistive network: hidden nodes that ideal diodes hold, a linear output."""
    layers: dict[str, Any] = {}
    names = [f"h{k}" for k in range(len(sizes) - 1)]
    for name, size in zip(names, sizes[1:], strict=True):
        neuron: dict[str, Any] = {"kind": "ideal_relu", "polarity": polarity, "clamp": clamp}
        layers[name] = {"size": size, "neuron": {"kind": "linear"} if name == names[-1] else neuron}
    document = {
        "name": "resistive",
        "conductance": {"min": "1u", "max": "100u"},
        "inputs": {"u": {"size": sizes[0], "encoding": "signed_pair"}},
        "layers": layers,
        "synapses": [
            {"from": a, "to": b, "kind": "resistive"} for a, b in zip(["u", *names], names, strict=False)
        ],
        "output": {"layer": names[-1]},
        "cost": {"kind": "squared_error"},
    }
    return compile_network(parse_network(document), seed=1)


def coordinate_descent(netlist: Netlist, inputs: FloatArray, sweeps: int = 400) -> FloatArray:
    """Node voltages (N,) of a resistive network with perfect diodes to sources, one node at a time.

    Each node goes to the mean of its neighbours, but no further than its diodes let it: the published
    way of solving deep resistive networks.
    """
    flat = flatten(netlist).netlist
    g = np.zeros((flat.n_nodes, flat.n_nodes))
    r = flat.resistor
    np.add.at(g, (r.pos, r.neg), r.conductance)
    np.add.at(g, (r.neg, r.pos), r.conductance)
    v = np.zeros(flat.n_nodes)
    v[flat.vsource.pos] = flat.source_voltage(inputs)[0]
    known = np.zeros(flat.n_nodes, dtype=bool)
    known[[GROUND, *flat.vsource.pos]] = True
    low, high = np.full(flat.n_nodes, -np.inf), np.full(flat.n_nodes, np.inf)
    z = flat.ideal_diode
    for pos, neg in zip(z.pos, z.neg, strict=True):
        if known[neg]:
            high[pos] = v[neg]
        else:
            low[neg] = v[pos]
    for _ in range(sweeps):
        for node in np.flatnonzero(~known):
            v[node] = min(max(g[node] @ v / g[node].sum(), low[node]), high[node])
    return v


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("clamp", [0.0, 0.25])
def test_one_node(sign: float, clamp: float) -> None:
    for u in (-0.8, 0.8):
        builder = NetlistBuilder("neuron")
        builder.add("vsource", "in", "a", "0", voltage=u)
        builder.add("vsource", "rail", "rail", "0", voltage=clamp)
        builder.add("resistor", "r", "a", "b", conductance=1e-3)
        builder.add("ideal_diode", "d", *(("rail", "b") if sign > 0 else ("b", "rail")))
        netlist = builder.build()
        point = general(netlist)
        found = float(point.node_voltage[0, netlist.node_index["b"]])
        held = sign * u < sign * clamp
        assert found == pytest.approx(clamp if held else u, abs=2e-9)
        # What flows through the conducting diode is what its drop says.
        current = 1e-3 * (u - found)
        if held and clamp == 0.0:
            assert found == pytest.approx(current / 1e6, rel=1e-12)
        assert point.power[0] == pytest.approx(current * (u - clamp), rel=1e-6, abs=1e-20)


def test_the_slope_at_the_kink_is_zero() -> None:
    drops = np.array([-1.0, -0.0, 0.0, 1e-300, 2.0])
    assert ideal_diode_conductance(drops, 3.0).tolist() == [0.0, 0.0, 0.0, 3.0, 3.0]
    assert ideal_diode_current(drops, 3.0).tolist() == [0.0, 0.0, 0.0, 3e-300, 6.0]
    # Nothing flows at all: the point is on every kink.
    netlist = resistive((4, 3, 2))
    point = general(netlist, np.zeros((1, 4)))
    assert point.converged
    assert not point.node_voltage.any()


@pytest.mark.parametrize("polarity", ["positive", "negative", "alternating"])
@pytest.mark.parametrize("clamp", [0.0, 0.02])
def test_deep_resistive_networks_against_coordinate_descent(polarity: str, clamp: float) -> None:
    netlist = resistive(polarity=polarity, clamp=clamp)
    inputs = np.random.default_rng(5).uniform(-1, 1, (3, 64))
    point = general(netlist, inputs)
    # A voltage near 20 mV is known to 3e-18 V, a current through 1e6 S to 3e-12 A.
    assert np.all(point.relative_residual < (1e-12 if clamp == 0 else 1e-6))
    z = netlist.ideal_diode
    drop = point.node_voltage[:, z.pos] - point.node_voltage[:, z.neg]
    assert 0.02 < np.mean(drop > 0) < 0.9
    for b in range(3):
        expected = coordinate_descent(netlist, inputs[b : b + 1])
        # What our diodes drop.
        np.testing.assert_allclose(point.node_voltage[b], expected, rtol=0, atol=2 * drop.max())
        assert drop.max() < 1e-9


def test_the_check_allows_no_more_than_rounding() -> None:
    netlist = resistive()
    inputs = np.random.default_rng(6).uniform(-1, 1, (2, 64))
    point = general(netlist, inputs)
    equations = Equations(netlist=netlist, values=netlist.values())
    # Diodes to ground: the conductance of 1e6 S does not enter.
    assert np.all(equations.rounding(point.node_voltage) <= 2 * point.largest_current)
    assert equations.largest_conductance <= 1e-4
    # A tenth of a nanovolt at a held node is a hundred times the current there.
    moved = point.node_voltage.copy()
    z = netlist.ideal_diode
    k = int(np.flatnonzero(point.node_voltage[0, z.pos] > point.node_voltage[0, z.neg])[0])
    node = int(z.pos[k]) if z.pos[k] != GROUND else int(z.neg[k])
    moved[:, node] += 1e-10 if z.pos[k] == node else -1e-10
    residual, _, _ = equations.residual(moved, point.branch_current, netlist.source_voltage(inputs))
    assert np.abs(residual[0, node]) > 9e-5
    assert np.abs(residual[0, node]) > 1e3 * equations.rounding(moved)[0] * np.finfo(float).eps


def floating(seed: int, *, diodes: int, conductance: float, vccs: int = 0, nodes: int = 60) -> Netlist:
    """Ideal diodes between any nodes of a random circuit: full Newton steps may cycle."""
    rng = np.random.default_rng(seed)
    builder = NetlistBuilder("floating")
    names = [f"n{k}" for k in range(nodes)]
    for k, name in enumerate(names):
        builder.add("resistor", f"l{k}", name, "0", conductance=10.0 ** rng.uniform(-6, -4))
        builder.add("isource", f"i{k}", name, "0", current=rng.normal(0, 1e-5))
    for k in range(3 * nodes):
        ends = rng.choice(names, 2, replace=False)
        builder.add("resistor", f"r{k}", *ends, conductance=10.0 ** rng.uniform(-6, -4))
    for k in range(diodes):
        ends = rng.choice([*names, "0"], 2, replace=False)
        builder.add("ideal_diode", f"d{k}", *ends, conductance=conductance)
    for k in range(vccs):
        ends = rng.choice(names, 4, replace=False)
        builder.add("vccs", f"g{k}", *ends, transconductance=rng.normal(0, 1e-5))
    return builder.build()


@pytest.mark.parametrize(
    ("diodes", "conductance", "vccs", "residual"),
    [
        (120, 1.0, 0, 1e-9),
        (300, 1.0, 0, 1e-9),
        (120, 1.0, 10, 1e-9),
        # The rounding of volts through 1e6 S.
        (120, 1e6, 0, 1e-4),
    ],
)
def test_hundreds_of_ideal_diodes_between_nodes(
    diodes: int, conductance: float, vccs: int, residual: float
) -> None:
    longest = 0
    for seed in range(40):
        netlist = floating(seed, diodes=diodes, conductance=conductance, vccs=vccs)
        point = general(netlist)
        assert point.relative_residual[0] < residual
        longest = max(longest, int(point.iterations[0]))
    # Some of these do not settle with full steps.
    assert (longest > _FREE_STEPS) == (diodes == 120)


def test_a_blocked_node_is_not_held() -> None:
    builder = NetlistBuilder("blocked")
    builder.add("vsource", "in", "a", "0", voltage=1.0)
    builder.add("ideal_diode", "d", "a", "b")
    with pytest.raises(NetlistError, match=r"from node b.*ideal diodes, which may block, do not fix a volt"):
        builder.build()


def with_feedback() -> Netlist:
    """Nodes that ideal diodes hold, and amplifiers in a loop around them."""
    netlist = random_netlist(4, kinds={"vccs", "buffer", "isource"}, nodes=8)
    builder = NetlistBuilder.extending(netlist)
    for k in range(6):
        builder.add("ideal_diode", f"z{k}", *((f"n{k}", "0") if k % 2 else ("0", f"n{k}")))
    return builder.build()


def test_phases_of_a_circuit_that_ideal_diodes_hold() -> None:
    netlist = with_feedback()
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(2, 3, 2)
    free = solve(plan, values, inputs, GENERAL)
    z = netlist.ideal_diode
    on = free.node_voltage[:, z.pos] > free.node_voltage[:, z.neg]
    assert on.any()
    assert not on.all()
    nudge = random_nudge(2, "quadratic", 1.0, 3, 3)
    pull = nudge.conductance * (netlist.outputs.read(free.node_voltage) - nudge.target)
    s = solve_transposed(plan, values, free, pull, GENERAL, inputs=inputs)
    moved = [
        solve(plan, values, Drive.of(netlist, inputs, nudge.scaled(beta)).corrected(free), GENERAL)
        for beta in (1e-4, -1e-4)
    ]
    estimate = (moved[0].node_voltage - moved[1].node_voltage) / 2e-4
    assert np.linalg.norm(estimate - s) < 1e-6 * np.linalg.norm(s)
    # A strong nudge carries diodes over their kinks, and KCL holds there all the same.
    strong = solve(plan, values, Drive.of(netlist, inputs, nudge.scaled(10.0)).corrected(free), GENERAL)
    assert np.any(on != (strong.node_voltage[:, z.pos] > strong.node_voltage[:, z.neg]))
    assert np.all(strong.relative_residual < 1e-9)


def test_small_signal_looks_past_diodes_that_conduct() -> None:
    # A VCCS pair between b and c; d is held by a diode to ground, e is joined to c by one.
    builder = NetlistBuilder("held")
    builder.add("vsource", "in", "a", "0", voltage=1.0)
    for node in "bcde":
        builder.add("resistor", f"r{node}", "a", node, conductance=1e-3)
        builder.add("resistor", f"g{node}", node, "0", conductance=1e-3)
        builder.add("capacitor", f"c{node}", node, "0", capacitance=1e-12)
    builder.add("resistor", "bc", "b", "c", conductance=1e-3)
    builder.add("vccs", "g", "c", "0", "b", "0", transconductance=1e-3)
    open_netlist = builder.build()
    builder.add("ideal_diode", "down", "d", "0")
    builder.add("ideal_diode", "across", "e", "c")
    netlist = builder.build()
    plan, values = build_plan(netlist), netlist.values()
    point = general(netlist)
    signal = small_signal(plan, values, point.node_voltage[0], point.branch_current[0])
    assert signal is not None
    names = [netlist.node_names[node] for node in signal.nodes]
    assert names == ["b", "c"]
    # c carries e's conductances too.
    expected = 1e-3 * np.array([[3.0, -1.0], [0.0, 5.0]])
    np.testing.assert_allclose(signal.matrix, expected, rtol=0, atol=1e-9)
    assert not signal.symmetrisable
    assert signal.largest_real is not None
    # b: 3 mS on 1 pF; c and e together: 5 mS on 2 pF.
    assert signal.largest_real == pytest.approx(-2.5e9, rel=1e-3)
    free = general(open_netlist)
    whole = small_signal(build_plan(open_netlist), open_netlist.values(), free.node_voltage[0])
    assert whole is not None
    assert len(whole.nodes) == 4


def test_a_clamp_in_time() -> None:
    # R and C: from -1 V, where the diode holds the node at 0, to +1 V, where it lets go.
    builder = NetlistBuilder("clamp")
    builder.add("vsource", "v", "in", "0", voltage=-1.0)
    builder.add("resistor", "r", "in", "out", conductance=1e-3)
    builder.add("capacitor", "c", "out", "0", capacitance=1e-9)
    builder.add("ideal_diode", "d", "0", "out")
    netlist = builder.build()
    wave = Pulse(initial=-1, pulsed=1, delay=1e-6, rise=1e-9, fall=1e-9, width=3e-6, period=1.0)
    times = np.linspace(0, 8e-6, 161)
    result = transient(
        build_plan(netlist),
        netlist.values(),
        stop=8e-6,
        waveforms={"v": wave},
        times=times,
        settings=TransientSettings(relative_tolerance=1e-7),
    )
    rise = np.clip(times - 1.0005e-6, 0, 3.001e-6 - 0.0005e-6)
    expected = 1 - np.exp(-rise / 1e-6)
    # After the fall at 4 us it decays towards -1 V until the diode catches it.
    fall = np.maximum(times - 4.0015e-6, 0)
    expected = np.where(fall > 0, np.maximum((1 + expected.max()) * np.exp(-fall / 1e-6) - 1, 0), expected)
    np.testing.assert_allclose(result.voltage("out"), expected, rtol=0, atol=2e-3)
    held = times < 1e-6
    np.testing.assert_allclose(result.voltage("out")[held], -1e-9, rtol=1e-6)
    assert result.relative_residual < 1e-9
    assert result.accepted < 2000


def test_what_ideal_diodes_carry_is_in_the_balance() -> None:
    netlist = flatten(random_netlist(7, kinds=EVERYTHING)).netlist
    inputs = random_inputs(7, 1, 2)
    point = general(netlist, inputs)
    found = branches(netlist, point.node_voltage[0], point.branch_current[0])
    carried = {branch.name: branch.current for branch in found if branch.kind == "ideal_diode"}
    assert len(carried) == 3
    assert max(carried.values()) > 1e-7
    assert min(carried.values()) >= 0.0
