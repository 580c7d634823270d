"""The kernels as plain Python: what numba compiles gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from circuits import (
    PASSIVE,
    network_document,
    random_inputs,
    random_netlist,
    random_nudge,
    small_network,
)
from interpreted import interpreted

from circuitsim.compiler import compile_network
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.solver import Drive, SolverSettings, build_plan, solve, solve_transposed
from circuitsim.solver.kernels.amplifiers import held_nodes, output_changes, tangents

HERE = Path(__file__).resolve().parent


def general() -> list[FloatArray]:
    """Free, nudged, corrected and transposed, with diodes, an amplifier and a softmax nudge."""
    netlist = random_netlist(3, kinds=PASSIVE | {"diode", "ideal diode", "buffer", "cccs"}, nodes=4)
    plan, values, inputs = build_plan(netlist), netlist.values(), random_inputs(3, 1, 2)
    free = solve(plan, values, inputs)
    drive = Drive.of(netlist, inputs, random_nudge(3, "softmax", 0.1, 1, 3))
    corrected = solve(plan, values, drive.corrected(free))
    s = solve_transposed(plan, values, free, np.array([[1e-5, -2e-5, 3e-5]]), inputs=inputs)
    return [free.node_voltage, free.branch_current, corrected.node_voltage, s, free.iterations.astype(float)]


def layered() -> list[FloatArray]:
    """Sweeps over diode neurons."""
    spec, netlist = small_network(1, neuron="diode", recurrent=True, sizes=(2, 3, 2))
    plan, values, inputs = build_plan(netlist), netlist.values(), random_inputs(1, 2, spec.input_size)
    chosen = SolverSettings(method="layered")
    free = solve(plan, values, inputs, chosen)
    drive = Drive.of(netlist, inputs, random_nudge(1, "quadratic", 0.1, 2, 2, conductance=1e-5))
    moved = solve(plan, values, drive.corrected(free), chosen)
    return [free.node_voltage, moved.node_voltage, free.iterations.astype(float)]


def compiled_sweeps() -> list[FloatArray]:
    """Sweeps that are compiled as a whole: every phase, ideal diodes behind resistors, buffers in loops."""
    found: list[FloatArray] = []
    _, tanh = small_network(1, neuron="tanh", recurrent=True, sizes=(2, 3, 2))
    _, ideal = small_network(1, neuron="ideal relu", synapse="resistive", recurrent=True, sizes=(2, 3, 2))
    # Two nodes that close the loop through eight.
    document = network_document(recurrent=True, sizes=(2, 8, 2))
    document["synapses"] = [synapse for synapse in document["synapses"] if synapse.get("name") != "lateral"]
    few = compile_network(parse_network(document), seed=1)
    for netlist in (tanh, ideal, few):
        plan, values = build_plan(netlist).layered, netlist.values()
        inputs = random_inputs(1, 2, netlist.inputs.size)
        chosen = SolverSettings(method="layered")
        assert plan.compiled.fits(plan.weights(values, "float64"), 2)
        free = plan.free(values, inputs, chosen)
        nudge = random_nudge(1, "softmax", 0.1, 2, 2, conductance=1e-5)
        current = np.array([[1e-6, -2e-6], [3e-6, 1e-6]])
        moved = [
            plan.increments(free, "nudged", chosen, nudge=nudge),
            plan.increments(free, "corrected", chosen, nudge=nudge),
            plan.increments(free, "transposed", chosen, output_current=current),
        ]
        for point in (free, *moved):
            found += [*point.layers, point.iterations.astype(float)]
    return found


def single_amplifiers() -> list[FloatArray]:
    """Saturating amplifiers in float32, which have functions of their own."""
    rng = np.random.default_rng(2)
    shape = (3, 7)
    gain, limit = (rng.uniform(0.5, 2.0, 7).astype(np.float32) for _ in range(2))
    v0, d = (rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(2))
    t, slope, out, change, bend = (np.empty(shape, np.float32) for _ in range(5))
    tangents(v0, gain, np.zeros(7, np.float32), limit, t, slope, out)
    output_changes(d, gain, limit, t, change)
    moved, load = np.zeros(shape, np.float32), np.ones((1, 7), np.float32)
    held_nodes(load, d, np.full(shape, 0.3, np.float32), gain, limit, t, slope, moved, bend)
    return [t, slope, out, change, moved, bend]


def test_interpreted_amplifiers_agree_in_float32() -> None:
    for found, expected in zip(interpreted(__file__, "single_amplifiers"), single_amplifiers(), strict=True):
        assert expected.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", [general, layered, compiled_sweeps], ids=lambda case: case.__name__)
def test_interpreted_kernels_agree(case: object) -> None:
    name = case.__name__  # type: ignore[attr-defined]
    compiled = globals()[name]()
    for found, expected in zip(interpreted(__file__, name), compiled, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)
