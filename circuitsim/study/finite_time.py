"""How far learning has come after a finite time: the dyadic phase as it relaxes, against its clocked form.

Free and transposed network start from rest together and relax with the capacitances of their nodes:

    C dm/dt = -F(m),    C dd/dt = -(J(m)^T d + dC/dm),

the gains of the second following the first at every instant (arXiv:2602.02281). What a board
would read at time t is the local rule at m(t), d(t). Both are integrated by the classical Runge-Kutta
rule with steps well below the fastest node's time constant; nothing that stores no charge has dynamics
of its own. The clocked form replaces the relaxation by unit steps of one time constant, sampled and
held, which is exact after 2 L.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuitsim.errors import NetlistError, SpecError
from circuitsim.learning import Adjoint, DyadicBP, Phases
from circuitsim.learning.gradient import Gradient, local_rule
from circuitsim.netlist import GROUND, Netlist, Values
from circuitsim.netlist.models import diode_conductance
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.weights import known_voltages

__all__ = ["FiniteTime", "finite_time_learning"]

_STEPS_PER_CONSTANT = 5
"""Runge-Kutta steps per time constant of the fastest node: they err by some 1e-5 of what is left."""
_MOST_STEPS = 2_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class FiniteTime:
    """Relative error of the gradient, all crossbars together, against the adjoint's."""

    time: FloatArray
    """(T,) in time constants."""
    continuous: FloatArray
    """(T,) error of the relaxing network."""
    forward: FloatArray
    """(T,) largest distance of an output from its operating point, relative to the largest output there."""
    clocked: FloatArray | None
    """(K,) error after 0, 1, ... K - 1 unit steps; None where the network has loops."""
    depth: int
    """Layers L."""
    time_constant: float
    """C / g of the slowest node [s]; 1 where all are equal, since only ratios count."""
    capacitance: Literal["equal", "file"]

    def at(self, time: float) -> float:
        """Return the error of the relaxing network at ``time`` constants."""
        return float(np.exp(np.interp(time, self.time, np.log(np.maximum(self.continuous, 1e-300)))))


def finite_time_learning(
    phases: Phases,
    inputs: FloatArray,
    targets: FloatArray,
    *,
    duration: float | None = None,
    points_per_constant: int = 4,
    capacitance: Literal["equal", "file"] = "equal",
) -> FiniteTime:
    """Relax a layered network and its transposed copy from rest, and compare its gradient as it goes.

    Args:
        phases: circuit, values and cost.
        inputs: (B, n_in).
        targets: (B, K).
        duration: in time constants; 8 L + 2 unless given.
        points_per_constant: how many times the gradient is read per time constant.
        capacitance: ``equal`` gives every node the same time constant C / g, g being the conductance that
            loads it; ``file`` takes the capacitances of the netlist, and the slowest node as the unit.

    Raises:
        NetlistError: not a network of layers, or ``file`` and a node without capacitance.
        SpecError: the duration is not a positive number.
    """
    free = phases.free(inputs)
    exact = Adjoint().estimate(phases, inputs, targets, free=free)
    relaxing = _Relaxing(phases, inputs, targets, capacitance)
    depth = phases.plan.layered.structure.depth
    duration = 8.0 * depth + 2.0 if duration is None else duration
    if not (math.isfinite(duration) and duration > 0):
        raise SpecError("must be a positive number of time constants", field="duration", value=duration)
    count = max(2, round(duration * points_per_constant) + 1)
    time = np.linspace(0.0, duration, count)
    size = phases.netlist.outputs.read(free.node_voltage)
    scale = max(float(np.abs(size).max(initial=0.0)), 1e-300)
    error, forward = np.empty(count), np.empty(count)
    m, d = relaxing.rest()
    for k in range(count):
        if k:
            m, d = relaxing.advance(m, d, (time[k] - time[k - 1]) * relaxing.time_constant)
        v, s = relaxing.full(m, d)
        error[k] = _distance(local_rule(phases.netlist, v, s), exact)
        forward[k] = float(np.abs(phases.netlist.outputs.read(v) - size).max(initial=0.0)) / scale
    return FiniteTime(
        time=time,
        continuous=error,
        forward=forward,
        clocked=_clocked(phases, inputs, targets, exact, 2 * depth + 2),
        depth=depth,
        time_constant=relaxing.time_constant,
        capacitance=capacitance,
    )


class _Relaxing:
    """The doubled network as a system of differential equations over the nodes of the layers."""

    def __init__(
        self,
        phases: Phases,
        inputs: FloatArray,
        targets: FloatArray,
        capacitance: Literal["equal", "file"],
    ) -> None:
        self.netlist, self.values, self.targets = phases.netlist, phases.values, targets
        self.inputs = inputs
        self.plan, self.cost = phases.plan.layered, phases.cost
        self.weights = self.plan.weights(self.values, "float64")
        self.known = known_voltages(self.plan.structure, self.values, inputs)
        self.nodes = np.concatenate(self.plan.layers)
        self.ends = np.cumsum([len(layer) for layer in self.plan.layers])[:-1]
        load = np.concatenate(self.weights.load)
        stored = load.copy()
        if capacitance == "file":
            stored = _node_capacitance(self.netlist, self.values)[self.nodes]
        if not np.all(stored > 0):
            name = self.netlist.node_names[self.nodes[np.flatnonzero(stored <= 0)[0]]]
            raise NetlistError(
                "has no capacitance, and so no time constant",
                object=f"node {name}",
                remedy="Give every layer a capacitance, or choose equal time constants.",
            )
        self.load, self.capacitance = load, stored
        self.time_constant = float((stored / load).max())

    def rest(self) -> tuple[FloatArray, FloatArray]:
        shape = (len(self.known), len(self.nodes))
        return np.zeros(shape), np.zeros(shape)

    def advance(self, m: FloatArray, d: FloatArray, duration: float) -> tuple[FloatArray, FloatArray]:
        """Return the state after ``duration`` [s]."""
        steps = max(1, math.ceil(duration * _STEPS_PER_CONSTANT * self._fastest(m)))
        if steps > _MOST_STEPS:
            raise NetlistError(
                "time constants differ too much for explicit steps",
                object=self.netlist.title,
                remedy="Choose equal time constants.",
            )
        h = duration / steps
        for _ in range(steps):
            m1, d1 = self._slope(m, d)
            m2, d2 = self._slope(m + h / 2 * m1, d + h / 2 * d1)
            m3, d3 = self._slope(m + h / 2 * m2, d + h / 2 * d2)
            m4, d4 = self._slope(m + h * m3, d + h * d3)
            m = m + h / 6 * (m1 + 2 * m2 + 2 * m3 + m4)
            d = d + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return m, d

    def full(self, m: FloatArray, d: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return all node voltages (B, N) of the circuit and of its transposed copy."""
        state = np.split(m, self.ends, axis=1)
        v = self.plan.full_voltage(self.weights, self.known, state)
        banks = self.plan.bank_points(self.weights, state)
        dual = np.split(d, self.ends, axis=1)
        return v, self.plan.full_displacement(self.weights, "transposed", banks, dual)

    def _slope(self, m: FloatArray, d: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return -F(m) / C and -(J(m)^T d + dC/dm) / C."""
        plan, w = self.plan, self.weights
        state, dual = np.split(m, self.ends, axis=1), np.split(d, self.ends, axis=1)
        leaving = plan.free_residual(w, self.inputs, state)
        banks = plan.bank_points(w, state)
        into = [np.zeros_like(x) for x in dual]
        loads: list[FloatArray] = [
            load + plan.diode_slopes(w, layer, state[layer]) for layer, load in enumerate(w.load)
        ]
        for number, link in enumerate(plan.links):
            signed, there = w.signed[number], dual[link.target]
            if link.source == "layer":
                into[link.target] += dual[link.index] @ signed
                into[link.index] += there @ signed.T
            elif link.source == "bank":
                # Control and output swap: what the bank passed on comes back through its gain.
                source, bank = plan.structure.bank_layer[link.index], banks[link.index]
                bit = there if link.sense < 0 else w.fixed.sense[link.sense] * there
                into[source] += bank.slope * (bit @ signed.T)
                passed = bank.forward("transposed", dual[source]) if link.sense < 0 else None
                if passed is not None:
                    into[link.target] += passed @ signed
                    loads[source] = loads[source] + w.fixed.back[link.index] * bank.slope * w.word_sum[number]
        output = plan.structure.output_layer
        pull = self.cost.nudge(self.targets, 1.0).current(plan.read(state[output]))
        into[output] -= plan.spread(pull, state[output])
        turning = [load * x - current for load, x, current in zip(loads, dual, into, strict=True)]
        m_slope = -np.concatenate(leaving, axis=1) / self.capacitance
        return m_slope, -np.concatenate(turning, axis=1) / self.capacitance

    def _fastest(self, m: FloatArray) -> float:
        """Return the largest rate g / C of a node [1/s], diodes included."""
        rate = np.zeros(self.netlist.n_nodes)
        d, t = self.netlist.diode, self.values.tables["diode"]
        if len(d):
            v = self.plan.full_voltage(self.weights, self.known, np.split(m, self.ends, axis=1))
            columns = {name: t[name] for name in ("saturation_current", "slope_voltage")}
            # The junction's slope where it stands; it cannot rise faster than the node relaxes.
            g = diode_conductance(
                v[:, d.pos] - v[:, d.neg], **columns, parallel_conductance=t["parallel_conductance"]
            ).max(axis=0)
            np.add.at(rate, d.pos, g)
            np.add.at(rate, d.neg, g)
        return float(((self.load + 2 * rate[self.nodes]) / self.capacitance).max())


def _node_capacitance(netlist: Netlist, values: Values) -> FloatArray:
    """Return the capacitance from every node to ground (N,) F."""
    total = np.zeros(netlist.n_nodes)
    c = netlist.capacitor
    for pos, neg, size in zip(c.pos, c.neg, values.tables["capacitor"]["capacitance"], strict=True):
        if GROUND not in (pos, neg):
            raise NetlistError(
                "a capacitance between two nodes has no place in finite-time learning",
                object=netlist.title,
                remedy="Choose equal time constants.",
            )
        total[pos] += size
        total[neg] += size
    return total


def _clocked(
    phases: Phases, inputs: FloatArray, targets: FloatArray, exact: Gradient, count: int
) -> FloatArray | None:
    structure = phases.plan.layered.structure
    if not structure.feedforward or any(not bank.one_way for bank in phases.netlist.banks):
        return None
    found = [1.0]
    for steps in range(1, count + 1):
        gradient = DyadicBP(steps=steps).estimate(phases, inputs, targets)
        found.append(_distance(gradient.crossbars, exact))
    return np.array(found)


def _distance(crossbars: Mapping[str, tuple[FloatArray, FloatArray | None]], exact: Gradient) -> float:
    """Return ``||a - b|| / ||b||`` over the devices of all crossbars."""
    wrong = right = 0.0
    for name, halves in exact.crossbars.items():
        for found, true in zip(crossbars[name], halves, strict=True):
            if found is not None and true is not None:
                wrong += float(((found - true) ** 2).sum())
                right += float((true**2).sum())
    return math.sqrt(wrong / max(right, 1e-300))
