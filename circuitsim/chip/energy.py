"""What a die takes: time to settle, from its capacitances, and energy."""

from __future__ import annotations

import math

import numpy as np

from circuitsim.chip.chip import Chip
from circuitsim.solver import Plan

__all__ = ["settling_time"]


def settling_time(plan: Plan, chip: Chip, *, accuracy: float) -> float:
    """Return how long a phase takes to settle to ``accuracy`` (a fraction) [s], layer after layer.

    Each layer of nodes takes ``ln(1 / accuracy)`` of its slowest node's time constant, its capacitance over
    all that loads it plus that of the amplifier that reads it; layers follow each other. Loops make it
    longer: `circuitsim tran` shows what they do. 0 where nothing stores charge, NaN for circuits without
    layers.
    """
    if plan.why_not_layered is not None:
        return math.nan
    capacitance = np.zeros(plan.netlist.n_nodes)
    table = plan.netlist.capacitor
    value = chip.values.tables["capacitor"]["capacitance"]
    for nodes in (table.pos, table.neg):
        np.add.at(capacitance, nodes, value)
    bandwidth = chip.card.amplifier.bandwidth
    amplifier = 0.0 if bandwidth is None else 1 / (2 * math.pi * bandwidth)
    layered = plan.layered
    loads = layered.weights(chip.values, "float64").load
    total = 0.0
    for nodes, load in zip(layered.layers, loads, strict=True):
        own = capacitance[nodes] / load
        total += (float(own.max(initial=0.0)) + (amplifier if own.any() else 0.0)) * math.log(1 / accuracy)
    return total
