"""Devices with a nonlinear I-V: straight at small voltages, KCL with the bent ones, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from circuits import network_document

from circuitsim.chip import fabricate
from circuitsim.chip.nonlinear import nonlinear_netlist
from circuitsim.compiler import compile_network
from circuitsim.devices import DeviceCard
from circuitsim.errors import DeviceError
from circuitsim.network import parse_network
from circuitsim.solver import build_plan, solve


def die(v0: float | None = None, **options: Any) -> Any:
    card = DeviceCard.model_validate(
        {"name": "bent", "source": "test", "crossbar": {"device_to_device": 0.1, "nonlinearity": v0}}
    )
    netlist = compile_network(parse_network(network_document(**options)), seed=3)
    return fabricate(netlist, card, seed=5)


@pytest.mark.parametrize("wired", [False, True])
def test_bent_devices_approach_straight_ones_with_the_square_of_the_voltage(wired: bool) -> None:
    document = network_document(neuron="linear")
    if wired:
        for synapse in document["synapses"]:
            synapse["wires"] = {"resistance": 2.0}
    netlist = compile_network(parse_network(document), seed=3)
    chip = fabricate(netlist, seed=5)
    inputs = np.full((1, netlist.inputs.size), 0.3)
    straight = solve(build_plan(netlist), chip.values, inputs).node_voltage
    errors = []
    for v0 in (2.0, 4.0, 8.0):
        bent = nonlinear_netlist(chip, v0)
        point = solve(build_plan(bent), bent.values(), inputs)
        assert point.converged
        nodes = [bent.node_index[name] for name in netlist.node_names]
        errors.append(float(np.abs(point.node_voltage[:, nodes] - straight).max()))
    # sinh(x) - x is x^3 / 6: a quarter with every doubling of V0.
    assert errors[0] > 1e-7
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4.0, rel=0.1)


def test_currents_of_bent_devices_balance() -> None:
    chip = die(0.2, neuron="linear")
    bent = nonlinear_netlist(chip)
    inputs = np.full((1, bent.inputs.size), 0.5)
    point = solve(build_plan(bent), bent.values(), inputs)
    v = point.node_voltage[0]
    table = bent.behavioural_current
    leaving = np.zeros(bent.n_nodes)
    conductances = {
        f"{crossbar.name}": chip.values.crossbars[crossbar.name] for crossbar in chip.netlist.crossbars
    }
    assert len(table) == sum(half.size for pair in conductances.values() for half in pair if half is not None)
    for row, expression in enumerate(table.expression):
        drop = v[table.pos[row]] - v[table.neg[row]]
        g = expression.formula.gradient(np.array([0.0]))[1][0]
        current = g * 0.2 * np.sinh(drop / 0.2)
        leaving[table.pos[row]] += current
        leaving[table.neg[row]] -= current
    hidden = bent.groups["hidden"]
    r = bent.resistor
    for row in range(len(r)):
        current = r.conductance[row] * (v[r.pos[row]] - v[r.neg[row]])
        leaving[r.pos[row]] += current
        leaving[r.neg[row]] -= current
    assert not len(bent.diode)
    np.testing.assert_allclose(leaving[hidden], 0.0, atol=1e-12)
    assert point.relative_residual.max() < 1e-9


def test_a_card_without_a_nonlinear_curve_is_refused() -> None:
    with pytest.raises(DeviceError, match="no nonlinear I-V"):
        nonlinear_netlist(die())
