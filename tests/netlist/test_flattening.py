"""Blocks and plain elements are one circuit; digests tell circuits apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import (
    EVERYTHING,
    SEEDS,
    branch_errors,
    kcl,
    random_inputs,
    random_netlist,
    small_network,
)
from hypothesis import given, settings

from circuitsim.netlist import Netlist, flatten, validate
from circuitsim.solver import Equations, SolverSettings, build_plan, solve

GENERAL = SolverSettings(method="general")


def check_same_circuit(netlist: Netlist, seed: int) -> None:
    flat = flatten(netlist)
    inputs = random_inputs(seed, 2, netlist.inputs.size)
    blocks = solve(build_plan(netlist), netlist.values(), inputs, GENERAL)
    plain = solve(build_plan(flat.netlist), flat.netlist.values(), inputs, GENERAL)
    v, i = flat.lift(blocks.node_voltage, blocks.branch_current)
    np.testing.assert_allclose(plain.node_voltage, v, rtol=0, atol=1e-12)
    scale = float(plain.largest_current.max())
    np.testing.assert_allclose(plain.branch_current, i, rtol=0, atol=1e-11 * scale)
    np.testing.assert_allclose(plain.power, blocks.power, rtol=1e-10)
    source = flat.netlist.source_voltage(inputs)
    for b in range(2):
        assert kcl(flat.netlist, v[b], i[b]) < 1e-11
        assert max(map(abs, branch_errors(flat.netlist, v[b], i[b], source[b]))) < 1e-12
    # Branch k of the blocks is the flat branch that carries the same current, by definition.
    np.testing.assert_array_equal(plain.branch_current[:, flat.branch].shape, blocks.branch_current.shape)
    np.testing.assert_allclose(
        plain.branch_current[:, flat.branch], blocks.branch_current, rtol=0, atol=1e-11 * scale
    )


@given(SEEDS)
@settings(max_examples=15)
def test_random_blocks(seed: int) -> None:
    check_same_circuit(random_netlist(seed, kinds=EVERYTHING), seed)


@pytest.mark.parametrize("synapse", ["buffered", "virtual ground", "resistive", "differential amplifier"])
@pytest.mark.parametrize("neuron", ["tanh", "diode"])
def test_networks(neuron: str, synapse: str) -> None:
    _, netlist = small_network(2, neuron=neuron, synapse=synapse, recurrent=True)
    check_same_circuit(netlist, 4)


@given(SEEDS)
@settings(max_examples=10)
def test_structure_of_the_flat_netlist(seed: int) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    flat = flatten(netlist)
    validate(flat.netlist)
    for table in flat.netlist.tables():
        assert len(set(table.name)) == len(table)
    assert flat.netlist.node_names[: netlist.n_nodes] == netlist.node_names
    assert flat.netlist.vsource.name[: len(netlist.vsource)] == tuple(netlist.vsource.name)
    assert len(flat.netlist.resistor) == len(netlist.resistor) + sum(c.devices for c in netlist.crossbars)
    assert not flat.netlist.crossbars
    assert not flat.netlist.banks
    assert not flat.netlist.senses
    assert flat.netlist.loads == netlist.loads
    assert flatten(flat.netlist).netlist.digest == flat.netlist.digest


def test_a_name_that_is_taken_stays_unique() -> None:
    netlist = random_netlist(1, kinds=EVERYTHING)
    names = list(netlist.node_names)
    names[names.index("n0")] = "two-way[0].p.drive"
    flat = flatten(replace(netlist, node_names=tuple(names)))
    assert len(set(flat.netlist.node_names)) == flat.netlist.n_nodes


@given(SEEDS)
@settings(max_examples=10)
def test_lifted_points_satisfy_the_flat_equations_exactly_as_the_blocks_do(seed: int) -> None:
    # Any voltages and currents, not only those of an operating point.
    netlist = random_netlist(seed, kinds=EVERYTHING)
    flat = flatten(netlist)
    rng = np.random.default_rng(seed)
    v = rng.normal(0, 0.1, (1, netlist.n_nodes))
    v[:, 0] = 0
    i = rng.normal(0, 1e-4, (1, len(netlist.branch_names)))
    inputs = random_inputs(seed, 1, 2)
    blocks = Equations(netlist=netlist, values=netlist.values())
    plain = Equations(netlist=flat.netlist, values=flat.netlist.values())
    node, _, largest = blocks.residual(v, i, netlist.source_voltage(inputs))
    lifted = flat.lift(v, i)
    flat_node, flat_branch, _ = plain.residual(*lifted, flat.netlist.source_voltage(inputs))
    np.testing.assert_allclose(flat_node[:, : netlist.n_nodes], node, rtol=0, atol=1e-14 * largest[0])
    np.testing.assert_allclose(flat_node[:, netlist.n_nodes :], 0, atol=1e-18)
    np.testing.assert_allclose(flat_branch[:, flat.sense_row], 0, atol=1e-15)


def nudged(array: Any, index: int = 0) -> Any:
    changed = np.array(array)
    flat = changed.reshape(-1)
    finite = np.flatnonzero(np.isfinite(flat) & (flat != 0))
    flat[finite[index]] *= 1 + 1e-15 * 4
    return changed


def test_the_digest_tells_every_value_and_index_apart() -> None:
    netlist = random_netlist(2, kinds=EVERYTHING)
    structure, values = {netlist.structure_digest: "itself"}, {netlist.digest: "itself"}

    def differs(changed: Netlist, what: str, *, structural: bool) -> None:
        assert changed.digest not in values, f"{what} is like {values[changed.digest]}"
        values[changed.digest] = what
        if structural:
            assert changed.structure_digest not in structure, what
            structure[changed.structure_digest] = what
        else:
            assert changed.structure_digest == netlist.structure_digest, what

    for table in netlist.tables():
        for column in table.columns():
            value = column.metadata["role"] == "value"
            array = getattr(table, column.name)
            if column.metadata["role"] == "expression":
                new = replace(netlist, **{table.kind: replace(table, expression=array[::-1])})
                differs(new, f"{table.kind}.expression", structural=True)
                continue
            changed = nudged(array) if value else np.concatenate([[array[0] ^ 1], array[1:]])
            if value and np.array_equal(changed, array):
                continue
            new = replace(netlist, **{table.kind: replace(table, **{column.name: changed})})
            differs(new, f"{table.kind}.{column.name}", structural=not value)
    for kind, names in {
        "crossbars": ("g_plus",),
        "banks": ("gain", "saturation", "offset"),
        "senses": ("gain",),
        "loads": ("target",),
    }.items():
        for name in names:
            blocks = getattr(netlist, kind)
            new = replace(
                netlist,
                **{kind: (replace(blocks[0], **{name: nudged(getattr(blocks[0], name))}), *blocks[1:])},
            )
            differs(new, f"{kind}.{name}", structural=False)
    load = netlist.loads[0]
    differs(replace(netlist, loads=(replace(load, amplitude=2e-5),)), "amplitude", structural=False)
    differs(replace(netlist, loads=(replace(load, scale=0.3),)), "scale", structural=False)
    differs(replace(netlist, node_names=(*netlist.node_names[:-1], "other")), "node name", structural=True)
    differs(replace(netlist, crossbars=netlist.crossbars[:-1]), "crossbar", structural=True)
    differs(replace(netlist, banks=netlist.banks[::-1]), "bank order", structural=True)
    differs(
        replace(netlist, outputs=replace(netlist.outputs, neg=netlist.outputs.pos)),
        "outputs",
        structural=True,
    )
    differs(
        replace(netlist, inputs=replace(netlist.inputs, gain=np.array([1.0, 2.0]))), "gain", structural=True
    )
    assert replace(netlist, title="another title").digest == netlist.digest


def test_values_can_be_carried_by_the_same_structure() -> None:
    netlist, other = random_netlist(3, kinds=EVERYTHING), random_netlist(3, kinds=EVERYTHING, strength=0.5)
    assert netlist.structure_digest == other.structure_digest
    assert netlist.digest != other.digest
    assert netlist.with_values(other.values()).digest == other.digest


def test_arrays_cannot_be_changed_behind_the_digest() -> None:
    netlist = random_netlist(0, kinds=EVERYTHING)
    for array in (netlist.resistor.conductance, netlist.crossbars[0].g_plus, netlist.banks[0].gain):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
