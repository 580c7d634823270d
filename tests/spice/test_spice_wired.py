"""Crossbars with line resistance against ngspice: every point of every line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from circuitsim.netlist import Crossbar, CurrentSense, Netlist, NetlistBuilder, flatten
from circuitsim.solver import SolverSettings, build_plan, solve
from circuitsim.solver.lines import point_voltages
from circuitsim.spice import NgspiceEngine, deck_nodes, write_deck

pytestmark = pytest.mark.ngspice

TOLERANCE = 1e-10


def crossbar(
    size: int, n: int, *, pair: bool = False, resistance: float = 0.0, virtual: bool = False, **wires: Any
) -> Netlist:
    """Word lines at random voltages, behind a resistance or not; bit lines to ground or virtual ground."""
    rng = np.random.default_rng(size)
    builder = NetlistBuilder(f"{size} by {n}")
    words = [f"{half}{j}" for half in ("pn" if pair else "p") for j in range(size)]
    for word in words:
        source = f"{word}.source" if resistance else word
        builder.add("vsource", f"v.{word}", source, "0", voltage=float(rng.uniform(-1, 1)))
        if resistance:
            builder.add("resistor", f"r.{word}", source, word, conductance=1 / resistance)
    bit = np.zeros(n, dtype=np.int64)
    if virtual:
        bit, outputs = (builder.nodes([f"{name}{i}" for i in range(n)]) for name in ("bit", "out"))
        for i in range(n):
            builder.add("resistor", f"load{i}", f"out{i}", "0", conductance=1e-3)
        builder.sense(CurrentSense(name="tia", bit=bit, output=outputs, gain=0.9))
    elif resistance:
        bit = builder.nodes([f"bit{i}" for i in range(n)])
        for i in range(n):
            builder.add("resistor", f"sense{i}", f"bit{i}", "0", conductance=1 / resistance)
    nodes = builder.nodes(words)
    builder.crossbar(
        Crossbar(
            name="xbar",
            word_pos=nodes[:size],
            word_neg=nodes[size:] if pair else None,
            bit=bit,
            g_plus=10 ** rng.uniform(-6, -3, (size, n)),
            g_minus=10 ** rng.uniform(-6, -3, (size, n)) if pair else None,
            mask=rng.random((size, n)) < 0.8 if pair else None,
            **wires,
        )
    )
    return builder.build()


@pytest.mark.parametrize(
    "netlist",
    [
        crossbar(16, 16, r_wire=1.0),
        crossbar(16, 16, r_wire=20.0, resistance=100.0, drive_end="last"),
        crossbar(8, 16, r_wire=2.5, pair=True, virtual=True, resistance=50.0, sense_end="first"),
        crossbar(5, 24, r_wire=0.3, pair=True, resistance=1e4, drive_end="last", sense_end="first"),
        crossbar(9, 7, r_wire=2.0, pair=True, r_driver=150.0, r_sense=30.0, drive_end="last"),
        pytest.param(crossbar(64, 64, r_wire=1.0), marks=pytest.mark.slow),
    ],
    ids=["16", "16 through resistances", "16 pairs", "5 by 24 pairs", "9 by 7 pairs", "64"],
)
def test_every_point_of_every_line(netlist: Netlist, engine: NgspiceEngine) -> None:
    point = solve(build_plan(netlist), netlist.values(), np.zeros((1, 0)), SolverSettings(method="wired"))
    assert point.relative_residual[0] < 1e-10
    points = point_voltages(netlist, netlist.values(), point.node_voltage)
    ours, _ = flatten(netlist).lift(point.node_voltage, point.branch_current, points)
    names = deck_nodes(netlist)
    spice = engine.solve(write_deck(netlist)).voltages(names.values())
    np.testing.assert_allclose(ours[0], spice, rtol=0, atol=TOLERANCE)
    # Wires take something: an ideal crossbar is outside the tolerance.
    assert np.ptp(spice[names_index(netlist, "xbar.w.")]) > 0.1
    own = netlist.crossbars[0]
    drops = spice[own.lines][:, None] - spice[names_index(netlist, "xbar.w.")].reshape(len(own.lines), -1)
    assert np.abs(drops).max() > 1e3 * TOLERANCE


def names_index(netlist: Netlist, start: str) -> np.ndarray:
    """The nodes whose names start so, in order."""
    return np.array([k for k, name in enumerate(deck_nodes(netlist)) if name.startswith(start)])


def test_a_deck_says_what_is_what() -> None:
    deck = write_deck(crossbar(2, 3, r_wire=4.0, pair=True))
    assert "* crossbar xbar, wires\n" in deck
    # However the writer joins the parts of a name.
    lines = [line.replace(".", "_").split() for line in deck.splitlines()]
    assert ["R_xbar_word_n_1_2", "xbar_w_n_1_1", "xbar_w_n_1_2", "4_0"] in lines
    assert ["R_xbar_bit_p_1_2", "xbar_b_p_1_2", "xbar_b_n_1_2", "4_0"] in lines
    assert ["R_xbar_bit_n_1_2", "xbar_b_n_1_2", "0", "4_0"] in lines
    assert ["R_xbar_n_1_2", "xbar_w_n_1_2", "xbar_b_n_1_2"] in [line[:3] for line in lines]
