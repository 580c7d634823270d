"""What no simulator could solve is named before any solver sees it, all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import EVERYTHING, SEEDS, random_netlist
from hypothesis import given

from circuitsim.errors import NetlistError
from circuitsim.netlist import AmplifierBank, Crossbar, CurrentSense, Netlist, NetlistBuilder, validate

Write = Callable[[NetlistBuilder], Any]


def divider() -> NetlistBuilder:
    builder = NetlistBuilder("divider")
    builder.add("vsource", "in", "a", "0", voltage=1.0)
    builder.add("resistor", "top", "a", "b", conductance=1e-3)
    builder.add("resistor", "bottom", "b", "0", conductance=1e-3)
    return builder


def refusal(netlist: Netlist) -> NetlistError:
    with pytest.raises(NetlistError) as caught:
        validate(netlist)
    return caught.value


def test_a_sound_circuit_passes() -> None:
    assert divider().build().node_names == ("0", "a", "b")


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda b: b.node("c"), "no path for direct current to ground from node c"),
        (lambda b: b.add("resistor", "x", "c", "d", conductance=1.0), "ground from node c, d"),
        (lambda b: b.add("capacitor", "x", "c", "0", capacitance=1e-12), "ground from node c"),
        (lambda b: b.add("isource", "x", "c", "0", current=1e-6), "ground from node c"),
        (lambda b: b.add("vccs", "x", "c", "0", "a", "b", transconductance=1.0), "ground from node c"),
        (lambda b: b.add("cccs", "x", "c", "0", control="in", gain=1.0), "ground from node c"),
        (lambda b: b.add("vsource", "x", "c", "d", voltage=1.0), "ground from node c, d"),
        (lambda b: b.add("vsource", "x", "b", "b", voltage=0.0), "vsource x: both ends are the same node"),
        (
            lambda b: b.add("vsource", "x", "0", "a", voltage=0.0),
            "vsource x: closes a loop of voltage sources between nodes 0 and a",
        ),
        (lambda b: b.add("vcvs", "x", "a", "0", "b", "0", gain=1.0), "vcvs x: closes a loop"),
        (lambda b: b.add("ccvs", "x", "a", "0", control="in", transresistance=1.0), "ccvs x: closes a loop"),
        (
            lambda b: (
                b.add("vsource", "x", "b", "a", voltage=1.0),
                b.add("buffer", "y", "b", "0", "a", "0", gain=1.0, saturation=1.0, offset=0.0),
            ),
            "buffer y: closes a loop",
        ),
        (
            lambda b: b.add("resistor", "top", "b", "0", conductance=1.0),
            "top: 2 elements of kind resistor have this name",
        ),
        (
            lambda b: b.add("resistor", "x", "b", "0", conductance=-1e-3),
            "resistor x.conductance: must be positive [S] (got -0.001)",
        ),
        (
            lambda b: b.add("resistor", "x", "b", "0", conductance=0.0),
            "resistor x.conductance: must be positive",
        ),
        (lambda b: b.add("resistor", "x", "b", "0", conductance=np.nan), "must be positive [S] (got nan)"),
        (
            lambda b: b.add("vsource", "x", "c", "0", voltage=np.inf),
            "vsource x.voltage: must be finite [V] (got inf)",
        ),
        (lambda b: b.add("isource", "x", "b", "0", current=np.nan), "isource x.current: must be finite"),
        (
            lambda b: b.add("buffer", "x", "c", "0", "b", "0", gain=1.0, saturation=-1.0, offset=0.0),
            "buffer x.saturation: must be positive",
        ),
        (
            lambda b: b.add(
                "diode", "x", "b", "0", saturation_current=0.0, slope_voltage=0.02, parallel_conductance=0.0
            ),
            "diode x.saturation_current: must be positive",
        ),
        (
            lambda b: b.add_rows("resistor", ["x"], pos=[1], neg=[7], conductance=1.0),
            "resistor.nodes: neg refers to what is not there",
        ),
        (
            lambda b: b.add_rows("resistor", ["x"], pos=[-1], neg=[0], conductance=1.0),
            "resistor.nodes: pos refers to what is not there",
        ),
        (
            lambda b: b.add_rows("cccs", ["x"], pos=[1], neg=[0], control=[5], gain=1.0),
            "cccs.nodes: control refers to what is not there",
        ),
        (lambda b: b.outputs([9]), "outputs.nodes: pos refers to what is not there"),
        (lambda b: b.group("layer", [9]), "group layer.nodes: nodes refers to what is not there"),
        (lambda b: b.inputs(["in"], [-1]), "inputs.nodes: column refers to what is not there"),
        (lambda b: b.inputs(["in"], [0], np.nan), "inputs.gain[0]: must be finite (got nan)"),
        (lambda b: b.inputs(["in", "in"], [0, 1]), "inputs: source is driven by two input columns"),
    ],
)
def test_one_fault(write: Write, text: str) -> None:
    builder = divider()
    write(builder)
    with pytest.raises(NetlistError) as caught:
        builder.build()
    assert text in str(caught.value)
    assert "problems" not in str(caught.value)


def bank(**changes: Any) -> AmplifierBank:
    columns: dict[str, Any] = {
        "name": "bank",
        "control": [2],
        "out_pos": [3],
        "gain": [1.0],
        "saturation": [1.0],
        "offset": [0.0],
        "back_gain": [0.0],
    }
    return AmplifierBank(**(columns | changes))


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (
            lambda b: b.crossbar(grid(g_plus=np.ones((3, 2)))),
            "grid.g_plus: must have the crossbar's shape (1, 2)",
        ),
        (lambda b: b.crossbar(grid(mask=np.ones((3, 3), bool))), "grid.mask: must have the crossbar's shape"),
        (
            lambda b: b.crossbar(grid(g_plus=[[1e-6, -2e-6]])),
            "grid.g_plus[0, 1]: conductances must be finite",
        ),
        (lambda b: b.crossbar(grid(g_plus=[[np.nan, 1e-6]])), "not negative [S]; 1 are not (got nan)"),
        (
            lambda b: b.crossbar(grid(g_min=2.0, g_max=1.0)),
            "must satisfy 0 <= g_min <= g_max (got (2.0, 1.0))",
        ),
        (lambda b: b.crossbar(grid(g_minus=np.ones((1, 2)))), "grid: word_neg and g_minus: both or neither"),
        (lambda b: b.crossbar(grid(bit=[2, 9])), "grid.nodes: bit refers to what is not there"),
        (lambda b: b.bank(bank(out_pos=[3, 3])), "bank.out_pos: must have 1 entries (got 2)"),
        (lambda b: b.bank(bank(gain=[np.nan])), "bank.gain[0]: must be finite (got nan)"),
        (
            lambda b: b.bank(bank(saturation=[0.0])),
            "bank.saturation[0]: must be positive or infinite (got 0.0)",
        ),
        (lambda b: b.bank(bank(out_pos=[1])), "amplifier bank bank: closes a loop of voltage sources"),
        (lambda b: b.bank(bank(out_pos=[0])), "amplifier bank bank: both ends are the same node"),
        (
            lambda b: b.sense(CurrentSense(name="sense", bit=[1], output=[2], gain=[1.0])),
            "current sense sense: closes a loop of voltage sources",
        ),
        (
            lambda b: b.sense(CurrentSense(name="sense", bit=[2], output=[2], gain=[np.inf])),
            "sense.gain[0]: must be finite (got inf)",
        ),
        (lambda b: [b.crossbar(grid()), b.crossbar(grid())], "grid: 2 blocks have this name"),
    ],
)
def test_one_fault_in_a_block(write: Write, text: str) -> None:
    builder = divider()
    builder.add("resistor", "load", "c", "0", conductance=1e-3)
    write(builder)
    with pytest.raises(NetlistError) as caught:
        builder.build()
    assert text in str(caught.value)
    assert "problems" not in str(caught.value)


def grid(**changes: Any) -> Crossbar:
    columns: dict[str, Any] = {
        "name": "grid",
        "word_pos": [1],
        "bit": [2, 3],
        "g_plus": np.full((1, 2), 1e-6),
    }
    return Crossbar(**(columns | changes))


def test_a_crossbar_without_devices_connects_nothing() -> None:
    builder = divider()
    builder.node("c")
    builder.crossbar(grid(mask=np.array([[True, False]])))
    with pytest.raises(NetlistError, match="ground from node c"):
        builder.build()
    builder = divider()
    builder.node("c")
    builder.crossbar(grid(mask=np.array([[False, True]])))
    builder.build()


def test_all_faults_are_named_at_once() -> None:
    builder = divider()
    builder.add("resistor", "top", "b", "0", conductance=-1.0)
    builder.add("vsource", "loop", "a", "0", voltage=2.0)
    builder.add("vsource", "short", "b", "b", voltage=np.nan)
    builder.add("capacitor", "x", "c", "0", capacitance=1e-12)
    with pytest.raises(NetlistError) as caught:
        builder.build()
    text = str(caught.value)
    for part in (
        "6 problems",
        "top: 2 elements of kind resistor",
        "resistor top.conductance: must be positive",
        "vsource short.voltage: must be finite",
        "vsource loop: closes a loop",
        "vsource short: both ends",
        "from node c",
    ):
        assert part in text
    assert caught.value.exit_code == 2


@given(SEEDS)
def test_random_circuits_are_sound(seed: int) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    validate(netlist)
    # And each column's length counts.
    shorter = replace(netlist.vccs, control_pos=netlist.vccs.control_pos[:-1], name=netlist.vccs.name)
    if len(shorter.control_pos) != len(shorter):
        assert "vccs.control_pos: must have" in str(refusal(replace(netlist, vccs=shorter)))
    doubled = replace(netlist, node_names=(*netlist.node_names[:-1], "n0"))
    assert "n0: node name is used twice" in str(refusal(doubled))


def coils(*coefficients: float) -> NetlistBuilder:
    builder = NetlistBuilder("coils")
    for k in range(3):
        builder.add("inductor", f"l{k}", f"n{k}", "0", inductance=1e-3)
        builder.add("resistor", f"r{k}", f"n{k}", "0", conductance=1e-3)
    for pair, k in zip((("l0", "l1"), ("l0", "l2"), ("l1", "l2")), coefficients, strict=False):
        builder.add("coupling", f"k.{pair[0]}.{pair[1]}", coupled=pair, coefficient=k)
    return builder


def test_couplings_must_store_energy() -> None:
    coils(0.75, 0.8, 0.5).build()
    coils(1.0, 1.0, 1.0).build()
    with pytest.raises(NetlistError, match=r"l0, l1, l2\.coupling: no coils can be coupled like this"):
        coils(0.75, 0.8).build()
    with pytest.raises(NetlistError, match="must be between -1 and 1"):
        coils(1.2).build()
