"""Learning in finite time: a relaxing network, its clocked form, and other ways to the same."""

from __future__ import annotations

import numpy as np
import pytest
from circuits import SYNAPSES, network_document
from scipy.integrate import solve_ivp

from circuitsim.compiler import compile_network
from circuitsim.errors import NetlistError, SpecError
from circuitsim.learning import Adjoint, Cost, Phases
from circuitsim.learning.gradient import local_rule
from circuitsim.network import parse_network
from circuitsim.solver import build_plan
from circuitsim.solver.smallsignal import small_signal
from circuitsim.solver.transient import TransientSettings, transient
from circuitsim.study.finite_time import finite_time_learning


def layered(depth: int, *, kind: str = "tanh", seed: int = 0) -> tuple[Phases, np.ndarray, np.ndarray]:
    """A feedforward network of ``depth`` layers, one input, one target."""
    neuron = {"kind": "tanh", "gain": 6.0, "saturation": 0.3} if kind == "tanh" else {"kind": kind}
    names = [f"l{k}" for k in range(depth)]
    document = {
        "name": "deep",
        "inputs": {"u": {"size": 3, "gain": 0.3}},
        "layers": {name: {"size": 4, "neuron": neuron, "leak": "30u"} for name in names},
        "synapses": [
            {"from": a, "to": b, "initial": {"center": 0.5, "spread": 0.5}}
            for a, b in zip(["u", *names], names, strict=False)
        ],
        "output": {"layer": names[-1]},
        "cost": {"kind": "squared_error", "conductance": "5u"},
    }
    return ready(document, seed)


def ready(document: dict, seed: int) -> tuple[Phases, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    spec = parse_network(document)
    netlist = compile_network(spec, seed=seed)
    cost = Cost.of(spec)
    phases = Phases(plan=build_plan(netlist), values=netlist.values(), cost=cost)
    inputs = np.random.default_rng(seed).normal(size=(1, netlist.inputs.size))
    return phases, inputs, cost.targets(np.array([1]), len(netlist.outputs.pos))


def test_four_layers_relax_as_the_physics_says_and_eight_clocked_steps_are_exact() -> None:
    found = finite_time_learning(*layered(4))
    assert found.depth == 4
    assert found.clocked is not None
    # Backpropagation, to rounding, at step 2 L and no earlier.
    assert found.clocked[8] < 1e-14
    assert found.clocked[7] > 1e-2
    assert found.clocked[4] > 0.1
    # 14 %, 0.2 % and 1e-8 on another network: each within a decade.
    assert 1.4e-2 < found.at(8) < 0.5
    assert 2e-4 < found.at(16) < 2e-2
    assert 1e-9 < found.at(32) < 1e-7
    late = found.continuous[found.time > 8]
    assert np.all(np.diff(late) < 0)
    assert found.continuous[0] == pytest.approx(1.0, abs=0.2)


def test_the_circuit_relaxes_as_a_transient_of_its_netlist() -> None:
    phases, inputs, targets = layered(2)
    found = finite_time_learning(phases, inputs, targets, capacitance="file", duration=6.0)
    time = found.time * found.time_constant
    run = transient(
        phases.plan,
        phases.values,
        stop=float(time[-1]),
        inputs=inputs[0],
        uic=True,
        times=time,
        settings=TransientSettings(relative_tolerance=1e-8),
    )
    outputs = phases.netlist.outputs.read(run.node_voltage)
    rest = phases.outputs(phases.free(inputs))[0]
    distance = np.abs(outputs - rest).max(axis=1) / np.abs(rest).max()
    assert found.forward == pytest.approx(distance, abs=2e-5)


def test_both_networks_relax_by_the_small_signal_matrix() -> None:
    phases, inputs, targets = layered(2, kind="linear")
    netlist = phases.netlist
    duration = 5.0
    found = finite_time_learning(phases, inputs, targets, capacitance="file", duration=duration)
    free = phases.free(inputs)
    signal = small_signal(phases.plan, phases.values, free.node_voltage[0])
    assert signal is not None
    j, nodes = signal.matrix, signal.nodes
    total = np.zeros(netlist.n_nodes)
    np.add.at(total, netlist.capacitor.pos, netlist.capacitor.capacitance)
    c = total[nodes]
    rest = free.node_voltage[0]

    def full(m: np.ndarray) -> np.ndarray:
        """All node voltages of a linear circuit, from those that store charge."""
        v = rest.copy()
        v[nodes] = m
        for bank in netlist.banks:
            moved = bank.gain * (m - rest[nodes])[np.searchsorted(nodes, bank.control)]
            v[bank.out_pos] = rest[bank.out_pos] + moved
            if bank.out_neg is not None:
                v[bank.out_neg] = rest[bank.out_neg] - moved
        return v

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        m, d = np.split(y, 2)
        current = np.zeros(netlist.n_nodes)
        pull = phases.cost.nudge(targets, 1.0).current(netlist.outputs.read(full(m))[None])[0]
        np.add.at(current, netlist.outputs.pos, pull)
        np.subtract.at(current, netlist.outputs.neg, pull)
        return np.concatenate([-(j @ (m - rest[nodes])) / c, -(j.T @ d + current[nodes]) / c])

    assert np.all(np.diff(nodes) > 0)
    end = duration * found.time_constant
    y = solve_ivp(slope, (0, end), np.zeros(2 * len(nodes)), method="LSODA", rtol=1e-10, atol=1e-15).y[:, -1]
    m, d = np.split(y, 2)
    s = np.zeros(netlist.n_nodes)
    s[nodes] = d
    exact = Adjoint().estimate(phases, inputs, targets, free=free)
    estimate = local_rule(netlist, full(m)[None], s[None])
    wrong = right = 0.0
    for name, halves in exact.crossbars.items():
        for a, b in zip(estimate[name], halves, strict=True):
            assert a is not None
            assert b is not None
            wrong, right = wrong + float(((a - b) ** 2).sum()), right + float((b**2).sum())
    assert found.continuous[-1] == pytest.approx(np.sqrt(wrong / right), rel=1e-3)


def test_networks_with_loops_relax_too_but_have_no_clocked_form() -> None:
    phases, inputs, targets = ready(network_document(recurrent=True), seed=1)
    found = finite_time_learning(phases, inputs, targets, duration=12.0, points_per_constant=1)
    assert found.clocked is None
    assert found.continuous[-1] < 1e-2 * found.continuous[2]


@pytest.mark.parametrize(
    ("synapse", "neuron"), [*((synapse, "tanh") for synapse in SYNAPSES), ("resistive", "diode")]
)
def test_every_kind_of_network_ends_at_its_exact_gradient(synapse: str, neuron: str) -> None:
    document = network_document(synapse=synapse, neuron=neuron, recurrent=True)
    phases, inputs, targets = ready(document, seed=2)
    found = finite_time_learning(phases, inputs, targets, duration=60.0, points_per_constant=1)
    assert found.continuous[-1] < 1e-6


def test_refusals() -> None:
    phases, inputs, targets = layered(2)
    with pytest.raises(SpecError, match="duration: must be a positive number"):
        finite_time_learning(phases, inputs, targets, duration=0.0)
    document = network_document()
    document["layers"]["hidden"]["capacitance"] = 0
    with pytest.raises(NetlistError, match="has no capacitance"):
        finite_time_learning(*ready(document, 0), capacitance="file")
