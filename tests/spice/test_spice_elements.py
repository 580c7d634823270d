"""Every element and block, by a circuit small enough to solve by hand: deck and solver against it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from circuits import EVERYTHING, random_inputs, random_netlist

from circuitsim.netlist import AmplifierBank, Crossbar, CurrentSense, NetlistBuilder, SoftmaxLoad
from circuitsim.netlist.expressions import Expression, parse_expression
from circuitsim.netlist.models import thermal_voltage
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import SolverSettings, build_plan, solve
from circuitsim.spice import NgspiceEngine, crosscheck_point, deck_nodes, with_inputs, write_deck

pytestmark = pytest.mark.ngspice

TOLERANCE = 1e-12
GENERAL = SolverSettings(method="general", relative_tolerance=1e-13, voltage_tolerance=1e-12)

Circuit = tuple[NetlistBuilder, dict[str, float]]
"""A circuit and what its nodes should be at [V]."""


def source(voltage: float, node: str = "a") -> NetlistBuilder:
    builder = NetlistBuilder("by hand")
    builder.add("vsource", "in", node, "0", voltage=voltage)
    return builder


def load(builder: NetlistBuilder, *nodes: str, conductance: float = 1e-3) -> NetlistBuilder:
    for node in nodes:
        builder.add("resistor", f"{node}.load", node, "0", conductance=conductance)
    return builder


def resistor() -> Circuit:
    builder = load(source(1.0), "b", conductance=3e-3)
    builder.add("resistor", "r", "a", "b", conductance=1e-3)
    return builder, {"b": 0.25}


def capacitor() -> Circuit:
    builder, _ = resistor()
    builder.add("capacitor", "c", "a", "b", capacitance=1e-9)
    return builder, {"b": 0.25}


def current_source() -> Circuit:
    # 1 mA flows from b through the source to ground, so b is pulled down.
    builder = load(source(1.0), "a", "b")
    builder.add("isource", "i", "b", "0", current=1e-3)
    return builder, {"b": -1.0}


def vccs() -> Circuit:
    builder = load(source(0.5), "a", "b")
    builder.add("vccs", "g", "b", "0", "a", "0", transconductance=2e-3)
    return builder, {"b": -1.0}


def vcvs() -> Circuit:
    builder = load(source(0.5), "b")
    builder.add("vcvs", "e", "b", "0", "0", "a", gain=3.0)
    return builder, {"b": -1.5}


def cccs() -> Circuit:
    # The source delivers 1 mA, so its own current, from plus through it to minus, is -1 mA.
    builder = load(source(1.0), "a", "b")
    builder.add("cccs", "f", "b", "0", control="in", gain=2.0)
    return builder, {"b": 2.0}


def ccvs() -> Circuit:
    builder = load(source(1.0), "a", "b")
    builder.add("ccvs", "h", "b", "0", control="in", transresistance=500.0)
    return builder, {"b": -0.5}


def buffers() -> Circuit:
    builder = load(source(0.3), "linear", "shifted", "tanh", "full", "below")
    add = builder.add
    infinite = float(np.inf)
    add("buffer", "linear", "linear", "0", "a", "0", gain=-2.0, saturation=infinite, offset=0.0)
    add("buffer", "shifted", "shifted", "0", "a", "0", gain=2.0, saturation=infinite, offset=-0.1)
    add("buffer", "tanh", "tanh", "0", "a", "0", gain=2.0, saturation=0.5, offset=0.05)
    add("buffer", "full", "full", "0", "a", "0", gain=1e6, saturation=0.5, offset=0.0)
    add("buffer", "below", "below", "0", "0", "a", gain=16.0, saturation=1.0, offset=0.1)
    return builder, {
        "linear": -0.6,
        "shifted": 0.4,
        "tanh": 0.5 * np.tanh(1.4),
        "full": 0.5,
        "below": np.tanh(-3.2),
    }


def diodes() -> Circuit:
    # Every diode sees a known drop; its current makes a voltage on a meter's 1 kohm by a CCCS.
    builder = NetlistBuilder("by hand")
    expected = {}
    cases = [
        (0.5, 1e-9, 0.05, 1e-12),
        (-0.1, 1e-6, 0.04, 0.0),
        (-0.5, 1e-6, 0.04, 1e-6),
        (0.2, 1e-6, 0.04, 0.0),
    ]
    for k, (drop, i_s, slope, parallel) in enumerate(cases):
        builder.add("vsource", f"v{k}", f"a{k}", "0", voltage=drop)
        builder.add(
            "diode",
            f"d{k}",
            f"a{k}",
            "0",
            saturation_current=i_s,
            slope_voltage=slope,
            parallel_conductance=parallel,
        )
        builder.add("cccs", f"f{k}", f"m{k}", "0", control=f"v{k}", gain=1.0)
        load(builder, f"m{k}")
        x = drop / slope
        junction = np.expm1(x) if x > -3 else -(1 + (3 / (np.e * x)) ** 3)
        expected[f"m{k}"] = 1e3 * (i_s * junction + parallel * drop)
    return builder, expected


def inductor() -> Circuit:
    # A short at rest; what couples two of them does nothing then.
    builder = load(source(1.0), "b", "c", conductance=3e-3)
    builder.add("resistor", "r", "a", "m", conductance=1e-3)
    builder.add("inductor", "l", "m", "b", inductance=1e-3)
    builder.add("inductor", "second", "m", "c", inductance=1e-6)
    builder.add("coupling", "pair", coupled=("l", "second"), coefficient=0.9)
    return builder, {"m": 1 / 7, "b": 1 / 7, "c": 1 / 7}


def behavioural_sources() -> Circuit:
    # The source delivers 1 mA into its own load; constants have more digits than ngspice keeps of one.
    builder = load(source(1.0), "a", "b", "c", "d")
    gain = 1.23456789012345678

    def expression(text: str) -> Expression:
        return parse_expression(
            text, node=builder.node, source=lambda name: int(builder.rows_of("vsource", [name])[0])
        )

    builder.add("behavioural_current", "b", "b", "0", expression=expression(f"{gain!r}*i(in)*v(a)"))
    builder.add(
        "behavioural_voltage", "c", "c", "0", expression=expression(f"tanh({gain!r}*v(a,b)) + v(0,b)")
    )
    builder.add("behavioural_voltage", "e", "d", "0", expression=expression("v(a) > v(b) ? v(a)**2/3 : 5"))
    return builder, {"b": gain, "c": float(np.tanh(gain * (1 - gain)) - gain), "d": 5.0}


def breakdown() -> Circuit:
    builder = NetlistBuilder("by hand")
    expected = {}
    vt = thermal_voltage()
    for k, (drop, limit, slope) in enumerate([(-5.3, 5.0, 1.3 * vt), (-5.3, 5.3, vt), (-0.3, 0.05, 2 * vt)]):
        builder.add("vsource", f"v{k}", f"a{k}", "0", voltage=drop)
        builder.add(
            "diode",
            f"d{k}",
            f"a{k}",
            "0",
            saturation_current=1e-9,
            slope_voltage=1.7 * vt,
            parallel_conductance=1e-12,
            breakdown_voltage=limit,
            breakdown_slope=slope,
        )
        builder.add("cccs", f"f{k}", f"m{k}", "0", control=f"v{k}", gain=1.0)
        load(builder, f"m{k}")
        expected[f"m{k}"] = 1e3 * (-1e-9 * float(np.exp((-limit - drop) / slope)) + 1e-12 * drop)
    # At its breakdown voltage the avalanche is only about to begin.
    x = -5.3 / (1.7 * vt)
    expected["m1"] = 1e3 * (-1e-9 * (1 + (3 / (np.e * x)) ** 3) - 5.3e-12)
    return builder, expected


def softmax_load() -> Circuit:
    # The outputs are held, so that the shares are known; the first is far above the others.
    builder = NetlistBuilder("by hand")
    y = np.array([3.0, 0.1, 0.0, -0.05])
    scale, amplitude, target = 0.02, -1e-3, np.array([0.0, 1.0, 0.0, 0.0])
    for name, values in (("far", y), ("near", 0.01 * y)):
        for k, voltage in enumerate(values):
            builder.add("vsource", f"{name}{k}", f"{name}{k}", "0", voltage=voltage)
            builder.add("cccs", f"{name}{k}", f"m.{name}{k}", "0", control=f"{name}{k}", gain=1.0)
            load(builder, f"m.{name}{k}")
        pos = builder.nodes(f"{name}{k}" for k in range(4))
        builder.load(
            SoftmaxLoad(name=name, pos=pos, neg=0 * pos, target=target, amplitude=amplitude, scale=scale)
        )
    expected = {}
    for name, values in (("far", y), ("near", 0.01 * y)):
        share = np.exp((values - values.max()) / scale)
        share /= share.sum()
        expected |= {f"m.{name}{k}": float(1e3 * amplitude * (share - target)[k]) for k in range(4)}
    return builder, expected


def crossbar() -> Circuit:
    builder = source(1.0)
    builder.add("vsource", "minus", "b", "0", voltage=-1.0)
    g_plus, g_minus = np.array([[3e-3, 1e-3]]), np.array([[1e-3, 0.0]])
    builder.crossbar(
        Crossbar(
            name="x",
            word_pos=builder.nodes(["a"]),
            word_neg=builder.nodes(["b"]),
            bit=builder.nodes(["p", "q"]),
            g_plus=g_plus,
            g_minus=g_minus,
        )
    )
    load(builder, "q", conductance=4e-3)
    return builder, {"p": 0.5, "q": 0.2}


def one_way_bank() -> Circuit:
    builder = load(source(0.2), "p", "n")
    builder.bank(
        AmplifierBank(
            name="bank",
            control=builder.nodes(["a"]),
            out_pos=builder.nodes(["p"]),
            out_neg=builder.nodes(["n"]),
            gain=np.array([4.0]),
            saturation=np.array([0.5]),
            offset=np.array([0.05]),
            back_gain=np.zeros(1),
        )
    )
    return builder, {"p": 0.5 * np.tanh(2.0), "n": -0.5 * np.tanh(2.0)}


def two_way_bank() -> Circuit:
    # Each output delivers gain * v * 1 mS, counted with its sign, so control is loaded by
    # 2 * gain * back_gain * 1 mS = 3 mS behind 1 kohm.
    builder = load(source(1.0), "p", "n")
    builder.add("resistor", "r", "a", "c", conductance=1e-3)
    builder.bank(
        AmplifierBank(
            name="bank",
            control=builder.nodes(["c"]),
            out_pos=builder.nodes(["p"]),
            out_neg=builder.nodes(["n"]),
            gain=np.array([3.0]),
            saturation=np.array([np.inf]),
            offset=np.zeros(1),
            back_gain=np.array([0.5]),
        )
    )
    return builder, {"c": 0.25, "p": 0.75, "n": -0.75}


def virtual_ground() -> Circuit:
    # 1 mA arrives at the bit line and 2 mA enter the output.
    builder = load(source(1.0), "o")
    builder.add("resistor", "r", "a", "bit", conductance=1e-3)
    bit, output = builder.nodes(["bit"]), builder.nodes(["o"])
    builder.sense(CurrentSense(name="sense", bit=bit, output=output, gain=np.array([2.0])))
    return builder, {"bit": 0.0, "o": 2.0}


CIRCUITS = [
    resistor,
    capacitor,
    current_source,
    vccs,
    vcvs,
    cccs,
    ccvs,
    buffers,
    diodes,
    inductor,
    behavioural_sources,
    breakdown,
    softmax_load,
    crossbar,
    one_way_bank,
    two_way_bank,
    virtual_ground,
]


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_by_hand(circuit: Callable[[], Circuit], engine: NgspiceEngine) -> None:
    builder, expected = circuit()
    netlist = builder.build()
    names = deck_nodes(netlist)
    spice = engine.solve(write_deck(netlist)).voltages(names[node] for node in expected)
    np.testing.assert_allclose(spice, list(expected.values()), rtol=1e-12, atol=TOLERANCE)
    point = solve(build_plan(netlist), netlist.values(), np.zeros((1, 0)), GENERAL)
    ours = point.node_voltage[0, [netlist.node_index[node] for node in expected]]
    np.testing.assert_allclose(ours, list(expected.values()), rtol=1e-12, atol=TOLERANCE)


def test_branch_currents_have_our_sign(engine: NgspiceEngine) -> None:
    builder, _ = resistor()
    builder.add("vcvs", "e", "o", "0", "b", "0", gain=2.0)
    builder.add("buffer", "u", "u", "0", "b", "0", gain=2.0, saturation=0.5, offset=0.0)
    builder.add("ccvs", "h", "w", "0", control="in", transresistance=100.0)
    netlist = load(builder, "o", "u", "w").build()
    point = solve(build_plan(netlist), netlist.values(), np.zeros((1, 0)), GENERAL)
    current = engine.solve(write_deck(netlist)).branch_current
    assert netlist.branch_names == ("in", "e", "h", "u")
    found = [current[name] for name in ("v_in", "e", "h", "b_u")]
    np.testing.assert_allclose(found, point.branch_current[0], rtol=1e-11)


@pytest.mark.parametrize("seed", range(12))
def test_random_circuits_of_every_element_and_block(seed: int, engine: NgspiceEngine) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    u: FloatArray = random_inputs(seed, 1, 2)
    point = solve(build_plan(netlist), netlist.values(), u, GENERAL)
    check = crosscheck_point(with_inputs(netlist, u), point.node_voltage[0], engine=engine)
    assert check.worst_difference < TOLERANCE, check.worst_node
