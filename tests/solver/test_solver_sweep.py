"""Sweeps: the same points as one by one, on one branch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from circuitsim.errors import CircuitsimError, ConvergenceError, NetlistError, SpecError
from circuitsim.netlist import Netlist, NetlistBuilder
from circuitsim.netlist.models import diode_current, thermal_voltage
from circuitsim.solver import build_plan, solve
from circuitsim.solver.sweep import Swept, sweep, sweep_values

DIODE = {"saturation_current": 1e-14, "slope_voltage": thermal_voltage(), "parallel_conductance": 1e-12}


def clipper() -> Netlist:
    b = NetlistBuilder("clipper")
    b.add("vsource", "v1", "a", "0", voltage=1.0)
    b.add("resistor", "r1", "a", "b", conductance=1e-3)
    b.add("diode", "d1", "b", "0", **DIODE)
    b.add("isource", "i1", "0", "b", current=0.0)
    b.add("capacitor", "c1", "b", "0", capacitance=1e-9)
    b.add("inductor", "l1", "b", "c", inductance=1e-6)
    b.add("resistor", "r2", "c", "0", conductance=1e-5)
    return b.build()


def test_values_of_a_sweep_include_both_ends() -> None:
    assert sweep_values(0, 1, 0.1) == pytest.approx(np.arange(11) / 10)
    assert sweep_values(1, -1, -0.5) == pytest.approx([1, 0.5, 0, -0.5, -1])
    assert sweep_values(0, 1, 0.3) == pytest.approx([0, 0.3, 0.6, 0.9])
    assert sweep_values(2, 2, 0).tolist() == [2]


def test_a_sweep_is_its_points_one_by_one() -> None:
    netlist = clipper()
    plan, values = build_plan(netlist), netlist.values()
    swept = [
        Swept(source="v1", values=np.array([-1.0, 0.5, 2.0])),
        Swept(source="i1", values=np.array([0.0, 1e-3])),
        Swept(source="r1", values=np.array([1e3, 5e3])),
    ]
    found = sweep(plan, values, swept)
    assert found.names == ("v1", "i1", "r1")
    assert found.swept[:4].tolist() == [[-1, 0, 1e3], [0.5, 0, 1e3], [2, 0, 1e3], [-1, 1e-3, 1e3]]
    for row, (voltage, current, resistance) in enumerate(found.swept.tolist()):
        tables = {kind: dict(columns) for kind, columns in values.tables.items()}
        tables["vsource"]["voltage"] = np.array([voltage])
        tables["isource"]["current"] = np.array([current])
        tables["resistor"]["conductance"] = np.array([1 / resistance, 1e-5])
        alone = type(values)(tables=tables, crossbars={}, banks={}, senses={})
        point = solve(plan, alone, np.empty((1, 0)))
        assert found.node_voltage[row] == pytest.approx(point.node_voltage[0], abs=1e-12)
        assert found.branch_current[row] == pytest.approx(point.branch_current[0], abs=1e-15)
    assert found.relative_residual.max() < 1e-9


def test_a_diode_s_curve() -> None:
    netlist = clipper()
    found = sweep(
        build_plan(netlist), netlist.values(), [Swept(source="v1", values=sweep_values(-2, 5, 0.01))]
    )
    b = found.node_voltage[:, netlist.node_index["b"]]
    through = diode_current(b, *DIODE.values()) + 1e-5 * b
    assert -found.branch_current[:, 0] == pytest.approx(through, rel=1e-9, abs=1e-15)
    # From neighbour to neighbour: few iterations a point.
    assert found.iterations < 5 * len(found.swept)


def test_a_sweep_stays_on_its_branch_until_that_ends() -> None:
    b = NetlistBuilder("hysteresis")
    b.add("vsource", "v1", "in", "0", voltage=0.0)
    b.add("resistor", "r1", "in", "p", conductance=1e-3)
    b.add("resistor", "r2", "out", "p", conductance=1e-3)
    b.add("buffer", "u1", "out", "0", "p", "0", gain=10.0, saturation=1.0, offset=0.0)
    netlist = b.build()
    plan, values = build_plan(netlist), netlist.values()
    levels = sweep_values(-2, 2, 0.02)
    there_and_back = np.concatenate([levels, levels[::-1]])
    found = sweep(plan, values, [Swept(source="v1", values=there_and_back)])
    out = found.node_voltage[:, netlist.node_index["out"]]
    up, down = out[: len(levels)], out[len(levels) :][::-1]
    assert np.all(np.diff(up) >= -1e-9)
    middle = len(levels) // 2
    assert up[middle] < -0.9
    assert down[middle] > 0.9
    assert up[-1] == pytest.approx(down[-1])


def test_an_input_port_may_be_swept() -> None:
    b = NetlistBuilder("ports")
    for k in range(2):
        b.add("vsource", f"v{k}", f"in{k}", "0", voltage=0.0)
        b.add("resistor", f"r{k}", f"in{k}", "out", conductance=1e-3)
    b.inputs(["v0", "v1"], [0, 1], [2.0, 1.0])
    netlist = b.build()
    found = sweep(
        build_plan(netlist),
        netlist.values(),
        [Swept(source="v0", values=np.array([0.0, 3.0]))],
        inputs=[7, 1],
    )
    assert found.node_voltage[:, netlist.node_index["out"]] == pytest.approx([0.5, 2.0])


@pytest.mark.parametrize(
    ("swept", "error", "words"),
    [
        ([Swept(source="zz", values=np.array([1.0]))], NetlistError, "no voltage or current source"),
        ([Swept(source="r1", values=np.array([0.0]))], SpecError, "a resistance must not be 0"),
    ],
)
def test_bad_sweeps_are_named(swept: list[Swept], error: type[CircuitsimError], words: str) -> None:
    netlist = clipper()
    with pytest.raises(error, match=words):
        sweep(build_plan(netlist), netlist.values(), swept)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0, 1, 0), "step: must lead from the start"),
        ((0, 1, -0.1), "step: must lead from the start"),
        ((0, np.inf, 1), "stop: must be finite"),
        ((0, 1, 1e-9), "step: makes more than"),
    ],
)
def test_bad_steps_are_named(numbers: tuple[float, float, float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        sweep_values(*numbers)


def test_a_point_that_is_not_there_is_named() -> None:
    b = NetlistBuilder("runaway")
    b.add("vsource", "v1", "a", "0", voltage=0.0)
    b.add("isource", "i1", "0", "b", current=0.0)
    b.add("diode", "d1", "0", "b", **{**DIODE, "parallel_conductance": 0.0})
    b.add("resistor", "r1", "a", "0", conductance=1.0)
    netlist = b.build()
    # A diode cannot carry more than its saturation current backwards.
    with pytest.raises(ConvergenceError, match=r"at i1 = 0\.001"):
        sweep(build_plan(netlist), netlist.values(), [Swept(source="i1", values=np.array([0.0, 1e-3]))])
