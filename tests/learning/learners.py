"""Circuits ready to learn, and ways to compare gradients, for the tests of learning."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from circuits import network_document, random_inputs, random_netlist

from circuitsim.chip import fabricate
from circuitsim.compiler import compile_network
from circuitsim.devices import DeviceCard
from circuitsim.learning import Cost, Gradient, OptimiserSpec, Phases, Samples, Trainer
from circuitsim.learning.estimators import Estimator
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import NetworkSpec, parse_network
from circuitsim.solver import SolverSettings, build_plan

SPREAD = DeviceCard.model_validate(
    {
        "name": "spread",
        "source": "test",
        "crossbar": {"device_to_device": 0.05},
        "amplifier": {"gain": 0.05, "saturation": 0.02, "offset": "1mV"},
        "diode": {"saturation_current": 0.1},
    }
)
COSTS: dict[str, dict[str, Any]] = {
    "squared error": {"kind": "squared_error", "conductance": "5u"},
    "cross entropy": {"kind": "cross_entropy", "conductance": "5u", "scale": 0.2},
}
TIGHT = {"check": False, "relative_tolerance": 1e-13, "voltage_tolerance": 1e-13, "max_iterations": 1000}


class Case:
    """Phases of one circuit on one die, with a batch."""

    def __init__(self, phases: Phases, inputs: FloatArray, targets: FloatArray) -> None:
        self.phases = phases
        self.inputs = inputs
        self.targets = targets
        self.free = phases.free(inputs)

    @property
    def netlist(self) -> Netlist:
        return self.phases.netlist

    def estimate(self, estimator: Estimator) -> Gradient:
        return estimator.estimate(self.phases, self.inputs, self.targets, free=self.free)


def case(
    document: dict[str, Any], *, cost: str = "squared error", batch: int = 3, seed: int = 1, **settings: Any
) -> Case:
    """A network description on a die with spread, with random inputs and classes 0, 1, 0 ..."""
    spec = parse_network(document | {"cost": COSTS[cost]})
    netlist = compile_network(spec, seed=seed)
    phases = Phases(
        plan=build_plan(netlist),
        values=fabricate(netlist, SPREAD, seed=seed).values,
        cost=Cost.of(spec),
        settings=SolverSettings(**{"check": False} | settings),
    )
    inputs = random_inputs(seed, batch, spec.input_size)
    return Case(phases, inputs, phases.cost.targets(np.arange(batch) % 2, spec.output_size))


def random_case(seed: int, kinds: frozenset[str], *, kind: str, batch: int = 2) -> Case:
    """A random circuit with crossbars to train, and a cost on its three outputs."""
    netlist = random_netlist(seed, kinds=kinds)
    # Amplifiers that feed back move their own word lines, so these count in the gradient.
    netlist = replace(netlist, crossbars=tuple(replace(c, driven=False) for c in netlist.crossbars))
    rng = np.random.default_rng([seed, 5])
    if kind == "quadratic":
        cost = Cost(kind="quadratic", conductance=1e-5)
        targets = rng.uniform(-0.5, 0.5, (batch, 3))
    else:
        cost = Cost(kind="softmax", conductance=1e-5, scale=0.1)
        targets = rng.dirichlet(np.ones(3), batch)
    phases = Phases(
        plan=build_plan(netlist), values=netlist.values(), cost=cost, settings=SolverSettings(**TIGHT)
    )
    return Case(phases, random_inputs(seed, batch, 2), targets)


def chain_document(
    gains: list[tuple[float, float]], *, size: int = 4, neuron: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A chain of layers joined by bidirectional amplifiers of (forward, back) gain; inputs resistive."""
    cell = neuron or {"kind": "linear"}
    names = [f"l{k}" for k in range(len(gains) + 1)]
    return {
        "name": "chain",
        "inputs": {"u": {"size": 3, "encoding": "signed_pair"}},
        "layers": {name: {"size": size, "neuron": cell, "leak": "50u"} for name in names},
        "synapses": [
            {"from": "u", "to": "l0", "kind": "resistive"},
            *(
                {
                    "from": a,
                    "to": b,
                    "kind": "bidirectional_amplifier",
                    "forward_gain": forward,
                    "back_gain": back,
                }
                for a, b, (forward, back) in zip(names, names[1:], gains, strict=False)
            ),
        ],
        "output": {"layer": names[-1]},
        "cost": {"kind": "squared_error"},
    }


def feedforward_document(sizes: list[int], *, neuron: dict[str, Any] | None = None) -> dict[str, Any]:
    """Buffered layers with biases and leaks; ``sizes`` starts with the inputs."""
    cell = neuron or {"kind": "tanh", "gain": 6.0, "saturation": 0.3}
    names = ["u", *(f"l{k}" for k in range(len(sizes) - 1))]
    return {
        "name": "feedforward",
        "inputs": {"u": {"size": sizes[0], "gain": 0.3}},
        "layers": {
            name: {"size": size, "neuron": cell, "leak": "30u", "bias": {"voltage": 0.2}}
            for name, size in zip(names[1:], sizes[1:], strict=True)
        },
        "synapses": [
            {"from": a, "to": b, "initial": {"center": 0.5, "spread": 0.5}}
            for a, b in itertools.pairwise(names)
        ],
        "output": {"layer": names[-1]},
        "cost": {"kind": "squared_error"},
    }


def flat(gradient: Gradient) -> FloatArray:
    """All crossbars' gradients as one vector."""
    return np.concatenate([gradient.flat(name) for name in gradient.crossbars])


def relative(a: Gradient, b: Gradient) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)))


def cosine(a: Gradient, b: Gradient) -> float:
    x, y = flat(a), flat(b)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def small_trainer(
    estimator: Estimator,
    *,
    seed: int = 0,
    die: int = 0,
    epochs: int = 3,
    optimiser: dict[str, Any] | None = None,
    document: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """Two classes of three numbers each, told apart by a small network with loops, on a die with spread."""
    document = document or network_document(recurrent=True, output="differential_pair")
    spec: NetworkSpec = parse_network(document | {"cost": COSTS["cross entropy"]})
    netlist = compile_network(spec, seed=7)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    inputs = rng.normal(size=(60, 3)) * 0.4 + np.where(labels[:, None] == 1, 0.5, -0.5)
    return Trainer(
        plan=build_plan(netlist),
        chip=fabricate(netlist, SPREAD, seed=die),
        cost=Cost.of(spec),
        estimator=estimator,
        optimiser=OptimiserSpec.model_validate(optimiser or {"step": 0.05}),
        train=Samples(inputs=inputs[:40], labels=labels[:40]),
        test=Samples(inputs=inputs[40:], labels=labels[40:]),
        classes=2,
        batch=8,
        epochs=epochs,
        seed=seed,
        probe=10,
        settings=SolverSettings(**{"check": False} | settings),
    )
