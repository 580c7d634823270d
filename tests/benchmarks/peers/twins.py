"""The PyTorch twin of a fabricated die."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from circuitsim.chip import Chip
from circuitsim.network import NetworkSpec
from peers.backprop import BufferedLayer, BufferedTwin


def twin_of(chip: Chip, spec: NetworkSpec) -> BufferedTwin:
    """Return a buffered feedforward network's own equations, from the conductances of its die."""
    layers = []
    for below, name in itertools.pairwise([*spec.inputs, *spec.layers]):
        layer = spec.layers[name]
        halves = [torch.from_numpy(np.array(g)) for g in chip.target[f"{below}-{name}"]]
        bias = chip.target.get(f"{name}.bias")
        neuron = layer.neuron
        layers.append(
            BufferedLayer(
                g_plus=halves[0],
                g_minus=halves[1],
                bias_plus=None if bias is None else torch.from_numpy(np.array(bias[0])),
                bias_minus=None if bias is None else torch.from_numpy(np.array(bias[1])),
                bias_voltage=0.0 if layer.bias is None else layer.bias.voltage,
                leak=layer.leak,
                gain=getattr(neuron, "gain", 1.0),
                saturation=getattr(neuron, "saturation", math.inf),
            )
        )
    cost = spec.cost
    assert cost.kind == "cross_entropy"
    return BufferedTwin(
        layers=layers,
        conductance=cost.conductance,
        scale=cost.scale,
        g_min=spec.conductance.min,
        g_max=spec.conductance.max,
    )
