"""Roles make a drawn circuit trainable without changing it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist, NetlistBuilder, flatten
from circuitsim.netlist.roles import Roles, TrainableResistors, with_roles
from circuitsim.netlist.tables import Resistors
from circuitsim.solver import build_plan, solve


def bridge() -> Netlist:
    """Two sources, an amplifier and a bridge of resistors; R1 and r1b lie in parallel."""
    builder = NetlistBuilder("bridge")
    builder.add("vsource", "Vin", "a", "0", voltage=1.0)
    builder.add("vsource", "Vref", "ref", "0", voltage=0.5)
    builder.add("resistor", "R1", "a", "m", conductance=1e-4)
    builder.add("resistor", "r1b", "a", "m", conductance=2e-4)
    builder.add("resistor", "R2", "ref", "m", conductance=3e-4)
    builder.add("resistor", "R3", "ref", "n", conductance=4e-4)
    builder.add("resistor", "Rload", "out", "0", conductance=5e-4)
    builder.add("resistor", "Rn", "n", "m", conductance=6e-4)
    builder.add("vccs", "G1", "0", "out", "m", "n", transconductance=1e-3)
    return builder.build()


def roles(*patterns: str, name: str = "weights", initial: str = "deck", **others: object) -> Roles:
    entry = TrainableResistors(name=name, patterns=patterns, g_min=1e-5, g_max=1e-3, initial=initial)  # type: ignore[arg-type]
    given = {
        "inputs": ("vin",),
        "input_gain": (0.1,),
        "outputs": (("out", "0"),),
        "trainable": (entry,),
    }
    return Roles(**(given | others))  # type: ignore[arg-type]


def test_resistors_move_into_a_crossbar_of_their_nodes() -> None:
    netlist = with_roles(bridge(), roles("R[1-3]", "R1B"))
    assert netlist.resistor.name == ("Rload", "Rn")
    (crossbar,) = netlist.crossbars
    names = netlist.node_names
    # Of the two parallel resistors each has a word line of its own.
    assert [names[k] for k in crossbar.word_pos] == ["a", "a", "ref"]
    assert [names[k] for k in crossbar.bit] == ["m", "n"]
    np.testing.assert_array_equal(crossbar.g_plus, [[1e-4, 0], [2e-4, 0], [3e-4, 4e-4]])
    np.testing.assert_array_equal(crossbar.mask, [[1, 0], [1, 0], [1, 1]])
    assert (crossbar.trainable, crossbar.driven, crossbar.devices) == (True, False, 4)
    assert (crossbar.g_min, crossbar.g_max) == (1e-5, 1e-3)
    assert crossbar.device_names == ("R1", "r1b", "R2", "R3")


def test_it_stays_the_same_circuit() -> None:
    drawn = bridge()
    netlist = with_roles(drawn, roles("R1*", "R3", "Rn", input_gain=(0.3,)))
    u = np.array([[2.0], [-1.0]])
    free = solve(build_plan(netlist), netlist.values(), u)
    for k, voltage in enumerate((0.6, -0.3)):
        source = replace(drawn.vsource, voltage=np.array([voltage, 0.5]))
        held = replace(drawn, vsource=source)
        point = solve(build_plan(held), held.values(), np.empty((1, 0)))
        np.testing.assert_allclose(free.node_voltage[k], point.node_voltage[0], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(
        netlist.outputs.read(free.node_voltage)[:, 0], free.node_voltage[:, drawn.node_index["out"]]
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25), st.data())
def test_flattening_gives_back_every_resistor(ends: list[tuple[int, int]], data: st.DataObject) -> None:
    """Any resistors, parallel and looped ones too, whichever of them learn."""
    builder = NetlistBuilder()
    builder.add("vsource", "v1", "n0", "0", voltage=1.0)
    for node in range(6):
        builder.add("resistor", f"rg{node}", f"n{node}", "0", conductance=1e-3)
    for k, (pos, neg) in enumerate(ends):
        builder.add("resistor", f"rx{k}", f"n{pos}", f"n{neg}", conductance=(k + 1) * 1e-5)
    drawn = builder.build()
    chosen = data.draw(st.sets(st.integers(0, len(ends) - 1), min_size=1))
    entry = TrainableResistors(name="all", patterns=tuple(f"RX{k}" for k in chosen), g_min=1e-6, g_max=1e-3)
    netlist = with_roles(drawn, roles(inputs=("v1",), outputs=(("n1", "n2"),), trainable=(entry,)))
    table = flatten(netlist).netlist.resistor

    def elements(table: Resistors) -> list[tuple[str, int, int, float]]:
        return sorted(zip(table.name, table.pos, table.neg, table.conductance, strict=True))

    assert elements(table) == elements(drawn.resistor)


def test_random_conductances_depend_on_seed_and_name_alone() -> None:
    first = with_roles(bridge(), roles("R1*", "R2", initial="random"), seed=3).crossbars[0]
    again = with_roles(bridge(), roles("r1*", "r2", initial="random"), seed=3).crossbars[0]
    np.testing.assert_array_equal(first.g_plus, again.g_plus)
    drawn = first.g_plus[first.g_plus > 0]
    assert len(set(drawn)) == 3
    assert ((drawn >= 1e-5) & (drawn <= 1e-3)).all()
    for other in (
        with_roles(bridge(), roles("R1*", "R2", initial="random"), seed=4),
        with_roles(bridge(), roles("R1*", "R2", initial="random", name="other"), seed=3),
    ):
        assert not np.any(other.crossbars[0].g_plus[first.g_plus > 0] == drawn)


def entry(name: str, *patterns: str) -> TrainableResistors:
    return TrainableResistors(name=name, patterns=patterns, g_min=1e-5, g_max=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            roles("R1", inputs=("Vinn",)),
            "inputs.0: no voltage source of bridge.cir has this name (got 'Vinn'). Did you mean vin? "
            "Voltage sources there: vin, vref.",
        ),
        (roles("R1", inputs=("vin", "VIN")), "inputs.1: is an input already (got 'VIN')"),
        (
            roles("R1", outputs=(("oot", "0"),)),
            "outputs.0: no node of bridge.cir has this name (got 'oot'). Did you mean out? "
            "Nodes there: a, m, n, out, ref.",
        ),
        (
            roles("Q*"),
            "trainable.0.resistors: matches no resistor of bridge.cir (got 'Q*'). "
            "Resistors there: r1, r1b, r2, r3, rload, rn.",
        ),
        (
            roles("RLoda"),
            "trainable.0.resistors: matches no resistor of bridge.cir (got 'RLoda'). Did you mean rload? "
            "Resistors there: r1, r1b, r2, r3, rload, rn.",
        ),
        (
            roles(trainable=(entry("first", "R1*"), entry("second", "R2", "R1"))),
            "trainable.1.resistors: takes R1, which first has already (got 'R2, R1')",
        ),
        (
            roles(trainable=(replace(entry("narrow", "R[123]"), g_max=2e-4),)),
            "trainable.0: R2 starts at 300 uS, outside its window 10 uS to 200 uS (got 'narrow'). "
            "Widen the window, change the resistor, or set initial: random.",
        ),
    ],
)
def test_a_role_that_does_not_fit(wrong: Roles, message: str) -> None:
    with pytest.raises(NetlistError) as error:
        with_roles(bridge(), wrong, circuit="bridge.cir")
    assert str(error.value) == message


def test_all_problems_come_at_once() -> None:
    with pytest.raises(NetlistError) as error:
        with_roles(bridge(), roles("x*", inputs=("vx",), outputs=(("out", "y"),)))
    assert str(error.value).startswith("3 problems:\n  - inputs.0: no voltage source of bridge has this name")


def test_resistors_too_scattered_for_one_crossbar() -> None:
    builder = NetlistBuilder("chain")
    builder.add("vsource", "v1", "n0", "0", voltage=1.0)
    count = 5000
    names = [f"r{k}" for k in range(count)]
    nodes = builder.nodes(f"n{k}" for k in range(count + 1))
    builder.add_rows("resistor", names, pos=nodes[:-1], neg=nodes[1:], conductance=1e-4)
    chain = roles("r*", inputs=("v1",), outputs=(("n1", "0"),))
    with pytest.raises(NetlistError, match="5000 resistors between 5000 and 5000 nodes do not make one"):
        with_roles(builder.build(), chain)
