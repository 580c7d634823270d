"""Ideal diodes as SPICE decks: B sources that ngspice and our own reader solve alike."""

from __future__ import annotations

import numpy as np
import pytest

from circuitsim.compiler import compile_network
from circuitsim.netlist import Netlist, NetlistBuilder, Nudge
from circuitsim.network import parse_network
from circuitsim.solver import Drive, SolverSettings, build_plan, solve, solve_transposed
from circuitsim.spice import (
    NgspiceEngine,
    crosscheck_point,
    phase_netlist,
    with_inputs,
    write_deck,
)
from circuitsim.spice.reader import parse_deck

GENERAL = SolverSettings(method="general")
TOLERANCE = 1e-9


def resistive(clamp: float) -> Netlist:
    """64-32-10, hidden nodes held by ideal diodes of alternating polarity."""
    neuron = {"kind": "ideal_relu", "polarity": "alternating", "clamp": clamp}
    document = {
        "name": "resistive",
        "conductance": {"min": "1u", "max": "100u"},
        "inputs": {"u": {"size": 64, "encoding": "signed_pair"}},
        "layers": {
            "hidden": {"size": 32, "neuron": neuron},
            "out": {"size": 10, "neuron": {"kind": "linear"}},
        },
        "synapses": [
            {"from": "u", "to": "hidden", "kind": "resistive"},
            {"from": "hidden", "to": "out", "kind": "resistive"},
        ],
        "output": {"layer": "out"},
        "cost": {"kind": "squared_error"},
    }
    return compile_network(parse_network(document), seed=3)


@pytest.mark.parametrize("clamp", [0.0, -0.01])
def test_a_deep_resistive_network(clamp: float, engine: NgspiceEngine) -> None:
    netlist = resistive(clamp)
    for seed in range(3):
        u = np.random.default_rng(seed).uniform(-1, 1, (1, 64))
        point = solve(build_plan(netlist), netlist.values(), u, GENERAL)
        drop = point.node_voltage[0, netlist.ideal_diode.pos] - point.node_voltage[0, netlist.ideal_diode.neg]
        assert 0 < np.count_nonzero(drop > 0) < 32
        check = crosscheck_point(with_inputs(netlist, u), point.node_voltage[0], engine=engine)
        assert check.worst_difference < TOLERANCE, check.worst_node


def test_the_deck_reads_back_as_the_same_circuit() -> None:
    netlist = resistive(0.0)
    u = np.random.default_rng(1).uniform(-1, 1, (1, 64))
    deck = write_deck(with_inputs(netlist, u))
    assert "I={1000000.0*max((0 - v(hidden_0)), 0)}" in deck
    again = parse_deck(deck).netlist
    assert len(again.behavioural_current) == 32
    point = solve(build_plan(netlist), netlist.values(), u, GENERAL)
    read = solve(build_plan(again), again.values(), np.zeros((1, 0)), GENERAL)
    ours = [point.node_voltage[0, netlist.node_index[f"out[{k}]"]] for k in range(10)]
    theirs = [read.node_voltage[0, again.node_index[f"out_{k}"]] for k in range(10)]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conductance", [1e6, 12345.678901234567])
def test_one_diode_by_hand(conductance: float, engine: NgspiceEngine) -> None:
    builder = NetlistBuilder("by hand")
    builder.add("vsource", "in", "a", "0", voltage=2.0)
    for node, ends in (("b", ("b", "0")), ("c", ("0", "c")), ("d", ("d", "b"))):
        builder.add("resistor", f"r{node}", "a", node, conductance=1e-3)
        builder.add("resistor", f"g{node}", node, "0", conductance=1e-6)
        builder.add("ideal_diode", f"z{node}", *ends, conductance=conductance)
    netlist = builder.build()
    point = solve(build_plan(netlist), netlist.values(), np.zeros((1, 0)), GENERAL)
    found = dict(zip(netlist.node_names, point.node_voltage[0].tolist(), strict=True))
    # 4 mA through the diode at b, 2 mA of it by way of the one at d.
    assert found["b"] == pytest.approx(4e-3 / conductance, rel=1e-5)
    assert found["d"] - found["b"] == pytest.approx(2e-3 / conductance, rel=1e-5)
    assert found["c"] == pytest.approx(2 / 1.001, rel=1e-12)
    check = crosscheck_point(netlist, point.node_voltage[0], engine=engine)
    assert check.worst_difference < 1e-14


def test_phases(engine: NgspiceEngine) -> None:
    netlist = resistive(0.0)
    plan, values = build_plan(netlist), netlist.values()
    u = np.random.default_rng(2).uniform(-1, 1, (1, 64))
    free = solve(plan, values, u, GENERAL)
    nudge = Nudge(kind="quadratic", beta=0.5, conductance=1e-4, target=np.full((1, 10), 0.2))
    drive = Drive.of(netlist, u, nudge)
    here = with_inputs(netlist, u)
    for phase, ours in (
        ("nudged", solve(plan, values, drive, GENERAL)),
        ("corrected", solve(plan, values, drive.corrected(free), GENERAL)),
    ):
        derived = phase_netlist(here, phase, anchor=free, nudge=nudge)  # type: ignore[arg-type]
        check = crosscheck_point(derived, ours.node_voltage[0], engine=engine)
        assert check.worst_difference < TOLERANCE, (phase, check.worst_node)
    pull = nudge.current(netlist.outputs.read(free.node_voltage))
    dual = solve_transposed(plan, values, free, pull, GENERAL, inputs=u)
    derived = phase_netlist(here, "dyadic", anchor=free, nudge=nudge)
    names = [f"d.{name}" for name in netlist.node_names[1:]]
    check = crosscheck_point(
        derived, np.concatenate([[0.0], dual[0, 1:]]), nodes=["0", *names], engine=engine
    )
    assert check.worst_difference < TOLERANCE, check.worst_node
    assert np.abs(dual).max() > 1e-3
