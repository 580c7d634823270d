"""Circuits whose equations cannot hold as tightly as the tolerances ask: rounding ends the iterations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from circuitsim.netlist import NetlistBuilder
from circuitsim.solver import build_plan, solve

_INPUT = 1.1


@pytest.mark.parametrize("gain", [1e3, 1e5, 1e6, 1e7, 1e8])
@pytest.mark.parametrize("stages", [1, 30])
def test_followers_of_any_gain_converge_to_the_finite_gain_formula(gain: float, stages: int) -> None:
    builder = NetlistBuilder()
    builder.add("vsource", "v1", "n0", "0", voltage=_INPUT)
    for k in range(1, stages + 1):
        # v_out = gain (v_in - v_out): the controls stand at 1.1 V and differ by 1.1 V / gain.
        builder.add("vcvs", f"e{k}", f"n{k}", "0", f"n{k - 1}", f"n{k}", gain=gain)
        builder.add("resistor", f"r{k}", f"n{k}", "0", conductance=1e-4)
    netlist = builder.build()
    point = solve(build_plan(netlist), netlist.values(), np.zeros((1, 0)))
    followed = _INPUT * (gain / (1 + gain)) ** np.arange(stages + 1)
    found = [point.node_voltage[0, netlist.node_names.index(f"n{k}")] for k in range(stages + 1)]
    # The condition number of the equations is about the gain.
    assert_allclose(found, followed, rtol=1e-14 * max(gain, 10.0) / 10)
    assert point.converged


@pytest.mark.parametrize("light", [1e-3, 2.81e-3, 5e-3, 9e-3])
def test_milliohms_beside_kilohms_and_a_diode_converge(light: float) -> None:
    # A photodiode: 1 mohm contacts at up to 10 V are worth 1e-12 A of rounding, 1e-9 V across 1 kohm.
    builder = NetlistBuilder()
    builder.add("vsource", "v1", "supply", "0", voltage=10.0)
    builder.add("resistor", "r1", "supply", "contact", conductance=1e-3)
    builder.add("resistor", "r2", "contact", "cathode", conductance=1e3)
    diode = {"saturation_current": 1e-12, "slope_voltage": 0.05, "parallel_conductance": 1e-12}
    builder.add("diode", "d1", "0", "cathode", **diode)
    builder.add("isource", "i1", "cathode", "0", current=light)
    netlist = builder.build()
    point = solve(build_plan(netlist), netlist.values(), np.zeros((1, 0)))
    found = point.node_voltage[0, netlist.node_names.index("cathode")]
    assert_allclose(found, 10.0 - light * 1000.001, atol=2e-8)
    assert point.converged
