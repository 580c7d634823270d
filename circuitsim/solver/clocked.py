"""Finite time: every node settles once per clock step, given what its neighbours held before it.

A step of exactly one time constant of every node, sampled and held (arXiv:2602.02281). The circuit m
and its transposed copy d step together:

    m_l(t + 1) solves  F_l(m_l; m_others(t)) = 0
    d_l(t + 1) solves  J_ll(m(t)) d_l = -sum_k J_kl(m(t))^T d_k(t) - dC/dm_l(m(t))

In a feedforward network of L layers m is exact after L steps and d after 2 L: backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.layered import LayeredPlan
from circuitsim.solver.point import SolverSettings
from circuitsim.solver.weights import constant_currents, known_voltages

__all__ = ["clocked_steps"]


def clocked_steps(
    plan: LayeredPlan,
    values: Values,
    inputs: FloatArray,
    output_slope: Callable[[FloatArray], FloatArray],
    steps: int,
    settings: SolverSettings,
) -> tuple[FloatArray, FloatArray]:
    """Return node voltages m and dual voltages d, both (B, N), after ``steps`` clock steps from zero.

    ``output_slope`` gives dC/dy (B, K) A at outputs y (B, K) V.

    Raises:
        NetlistError: the network has loops, so that no number of steps is exact.
    """
    if not plan.structure.feedforward or any(not bank.one_way for bank in plan.netlist.banks):
        raise NetlistError(
            "clocked steps need a feedforward network of buffered synapses",
            object=plan.netlist.title,
            remedy="Use the dyadic estimator for networks with feedback.",
        )
    w = plan.weights(values, settings.precision)
    known = known_voltages(plan.structure, values, inputs).astype(w.dtype)
    constant = constant_currents(plan.structure, w, known)
    sizes = [len(nodes) for nodes in plan.layers]
    m = [np.zeros((len(known), size), dtype=w.dtype) for size in sizes]
    d = [np.zeros_like(x) for x in m]
    for _ in range(steps):
        banks = plan.bank_points(w, m)
        new_m = [
            plan.settle(
                w,
                layer,
                np.broadcast_to(w.load[layer], m[layer].shape),
                constant[layer] + plan.incoming(w, layer, m),
                m[layer],
            )
            for layer in range(len(m))
        ]
        d = [_dual(plan, w, layer, m, d, banks, output_slope) for layer in range(len(m))]
        m = new_m
    banks = plan.bank_points(w, m)
    voltage = plan.full_voltage(w, known, m)
    return voltage, plan.full_displacement(w, "transposed", banks, d)


def _dual(plan, w, layer, m, d, banks, output_slope):  # type: ignore[no-untyped-def]
    structure = plan.structure
    current = np.zeros_like(d[layer])
    if layer == structure.output_layer:
        current -= plan.spread(output_slope(plan.read(m[layer])).astype(w.dtype), m[layer])
    for number, link in enumerate(plan.links):
        if link.source == "bank" and structure.bank_layer[link.index] == layer:
            bit = d[link.target] if link.sense < 0 else w.sense[link.sense] * d[link.target]
            current += banks[link.index].slope * (bit @ w.signed[number].T)
    return current / (w.load[layer] + plan.diode_slopes(w, layer, m[layer]))
