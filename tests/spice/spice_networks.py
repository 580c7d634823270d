"""The networks that the SPICE tests solve: one of each kind of layer and connection."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from circuitsim.compiler import compile_network
from circuitsim.netlist import Netlist, Nudge
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network

# Numbers of many digits, as a drawn die has them.
TANH = {"kind": "tanh", "gain": 8.123456789012345, "saturation": 0.6012345678901234}
DIODE = {
    "kind": "diode",
    "offset": 0.05,
    "saturation_current": "1u",
    "slope_voltage": "40m",
    "gain": 3.0123456789012345,
}
RELU = {"kind": "relu", "clamp": -0.01, "saturation_current": "0.1u", "slope_voltage": "30m", "gain": 4.0}
LINEAR = {"kind": "linear"}
BIAS = {"voltage": 0.5}

NETWORKS: dict[str, dict[str, Any]] = {
    "feedforward": {
        "layers": {"hidden": (10, TANH, BIAS), "out": (8, TANH, BIAS)},
        "synapses": [("u", "hidden", {}), ("hidden", "out", {})],
    },
    "recurrent": {
        "layers": {
            "hidden": (10, TANH | {"gain": 10 / 3}, BIAS),
            "out": (8, TANH | {"gain": 2 + 1 / 3}, None),
        },
        "synapses": [
            ("u", "hidden", {}),
            ("hidden", "out", {}),
            ("hidden", "hidden", {"name": "lateral", "connectivity": {"density": 0.6}}),
            ("out", "hidden", {"name": "feedback"}),
        ],
    },
    "reciprocal": {
        "layers": {"hidden": (10, DIODE, None), "out": (8, LINEAR, BIAS)},
        "synapses": [("u", "hidden", {"kind": "resistive"}), ("hidden", "out", {"kind": "resistive"})],
    },
    "bidirectional": {
        "layers": {"hidden": (10, DIODE, None), "out": (8, DIODE, BIAS)},
        "synapses": [
            ("u", "hidden", {"kind": "resistive"}),
            ("hidden", "out", {"kind": "bidirectional_amplifier", "forward_gain": 4.0, "back_gain": 0.25}),
        ],
    },
    "virtual ground": {
        # What a bit line's current becomes at a node is divided by the node's leak.
        "leak": "500u",
        "layers": {"hidden": (9, TANH | {"gain": 3.0}, BIAS), "out": (8, LINEAR, None)},
        "synapses": [("u", "hidden", {"virtual_ground": True}), ("hidden", "out", {"virtual_ground": True})],
    },
    "relu": {
        "layers": {"hidden": (12, RELU, BIAS), "out": (8, LINEAR, None)},
        "synapses": [("u", "hidden", {}), ("hidden", "out", {})],
    },
}


def document(name: str, inputs: int = 9) -> dict[str, Any]:
    """The description of one of `NETWORKS`."""
    short = NETWORKS[name]
    return {
        "name": name.replace(" ", "-"),
        "inputs": {"u": {"size": inputs, "encoding": "signed_pair"}},
        "layers": {
            layer: {"size": size, "neuron": neuron, "leak": short.get("leak", "20u"), "bias": bias}
            for layer, (size, neuron, bias) in short["layers"].items()
        },
        "synapses": [
            {"from": source, "to": target, **options} for source, target, options in short["synapses"]
        ],
        "output": {"layer": "out", "encoding": "differential_pair" if name == "feedforward" else "single"},
        "cost": {"kind": "squared_error"},
    }


@cache
def network(name: str) -> Netlist:
    """The circuit of one of `NETWORKS`."""
    return compile_network(parse_network(document(name)), seed=3)


@cache
def large_network() -> Netlist:
    """64-32-10, tanh units with biases."""
    description = document("feedforward", inputs=64)
    description["output"] = {"layer": "out"}
    for layer, size in (("hidden", 32), ("out", 10)):
        description["layers"][layer]["size"] = size
    return compile_network(parse_network(description), seed=5)


def sample_inputs(netlist: Netlist, seed: int = 0) -> FloatArray:
    """One input vector (1, n_in) V."""
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (1, netlist.inputs.size))


def sample_nudge(netlist: Netlist, kind: str, beta: float, conductance: float = 2e-4) -> Nudge:
    """A nudge of one sample towards the first output."""
    target = np.zeros((1, len(netlist.outputs.pos)))
    target[0, 0] = 1.0
    if kind == "softmax":
        return Nudge(
            kind="softmax", beta=beta, conductance=conductance, target=target, scale=0.051234567890123456
        )
    return Nudge(kind="quadratic", beta=beta, conductance=conductance, target=0.3 * target)
