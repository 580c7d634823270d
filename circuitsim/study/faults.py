"""What hardware faults do to gradients: random networks of one layer, faults drawn die by die.

The networks are dense and non-reciprocal: n tanh units, each driving all others through a buffered crossbar
of differential pairs, some of them outputs. An error is that of the whole gradient, relative to the
adjoint's, Frobenius norms.

One fault is told in up to three ways:

``circuit``
    The crossbar itself carries both directions, so that only amplifiers can be off: what the hold amplifier
    takes from a buffer's slope (c_f), and what the swap amplifier returns (c_b). A hold amplifier that is off
    moves a whole word line, and the current that this draws comes back: an error of its unit's own load,
    though J0^T - J0 has no diagonal.
``held``
    The same where buffers' outputs are held by a perfect sample-and-hold, so that only what returns is off.
``matrix``
    Every entry of J0^T - J0 between the units is off on its own, as if a second array supplied it. Solved in
    dense NumPy, by no solver of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuitsim.compiler import compile_network
from circuitsim.errors import ConvergenceError
from circuitsim.learning import Adjoint, AsymEP, Cost, Dyadic, Phases
from circuitsim.learning.gradient import Crossbars, local_rule
from circuitsim.netlist import GROUND, Netlist, OutputPort, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.seeds import stream
from circuitsim.solver import (
    Correction,
    DualNetwork,
    Equations,
    OperatingPoint,
    SolverSettings,
    build_plan,
)

__all__ = [
    "FAULTS",
    "FaultCase",
    "FaultErrors",
    "averaged_errors",
    "beta_sweep",
    "fault_case",
    "fault_errors",
    "mismatched_copy",
]

_SETTINGS = SolverSettings(
    method="layered", check=False, relative_tolerance=1e-12, voltage_tolerance=1e-12, max_iterations=1000
)
_UNITS, _INPUTS = 20, 6
_NEWTON_STEPS = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultCase:
    """One random network with a batch of B samples, its free phase and its exact gradient."""

    phases: Phases
    inputs: FloatArray
    targets: FloatArray
    free: OperatingPoint
    exact: Crossbars
    seed: int

    @property
    def netlist(self) -> Netlist:
        return self.phases.netlist

    @property
    def bank(self) -> str:
        """Name of the units' buffers."""
        return self.netlist.banks[0].name

    @property
    def size(self) -> int:
        """Units n."""
        return len(self.netlist.banks[0].control)

    @property
    def scale(self) -> float:
        """Root mean square voltage of the units [V]."""
        return _rms(self.free.node_voltage[:, self.netlist.groups["units"]])

    @property
    def current_scale(self) -> float:
        """Root mean square current that the outputs of the units' buffers take [A]."""
        equations = Equations(netlist=self.netlist, values=self.phases.values)
        current = equations.grounded_branch_currents(self.free.node_voltage)
        start, n = self.netlist.branch_starts["blocks"], self.size
        return _rms(current[:, start : start + n] - current[:, start + n : start + 2 * n])

    def error(self, found: Crossbars) -> float:
        """Return the relative error of a gradient."""
        exact = _flat(self.exact)
        return float(np.linalg.norm(_flat(found) - exact) / np.linalg.norm(exact))

    def corrected(self, correction: Correction | None, beta: float, *, centred: bool = True) -> float:
        """Return the error of a corrected estimate; NaN where the phase has no stable point nearby."""
        phases = replace(self.phases, correction=correction)
        estimator = AsymEP(beta=beta, centred=centred)
        try:
            found = estimator.estimate(phases, self.inputs, self.targets, free=self.free)
        except ConvergenceError:
            return float("nan")
        return self.error(found.crossbars)

    def dyadic(self, dual: DualNetwork | None) -> float:
        """Return the error of a dyadic estimate whose copy has devices of its own."""
        phases = replace(self.phases, dual=dual)
        return self.error(Dyadic().estimate(phases, self.inputs, self.targets, free=self.free).crossbars)

    def drawn(self, *names: str | int) -> np.random.Generator:
        """Return the stream of one fault of this network."""
        return stream(self.seed, "faults", *names)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultErrors:
    """Errors of the gradient under one kind of fault at several sizes, over networks."""

    fault: str
    levels: FloatArray
    """(L,) relative size."""
    beta: float
    errors: Mapping[str, FloatArray]
    """How the fault is told -> (L, networks); NaN where a network has no stable phase."""

    def mean(self, told: str) -> FloatArray:
        """Return the mean over the networks that have a phase (L,); NaN where none has."""
        return np.array([_over(np.mean, row) for row in self.errors[told]])

    def spread(self, told: str) -> FloatArray:
        """Return the standard deviation over these networks (L,)."""
        return np.array([_over(np.std, row) for row in self.errors[told]])

    def lost(self, told: str) -> FloatArray:
        """Return how many networks have no phase (L,)."""
        return np.isnan(self.errors[told]).sum(axis=1)


def fault_case(
    seed: int, *, units: int = _UNITS, outputs: int = 5, samples: int = 4, gain: float = 1.5
) -> FaultCase:
    """Return a random network of tanh units, all to all, ``outputs`` of them with targets of their own.

    Devices are 1 uS or more: of most pairs one is at the lower end, so that weights are of either sign.
    """
    devices = {"center": 0.0, "spread": 0.6}
    spec = parse_network(
        {
            "name": f"units-{seed}",
            "conductance": {"min": 1e-6, "max": 1e-4},
            "inputs": {"u": {"size": _INPUTS}},
            "layers": {"units": {"size": units, "neuron": {"kind": "tanh", "gain": gain, "saturation": 0.2}}},
            "synapses": [
                {"from": "u", "to": "units", "initial": devices},
                {"from": "units", "to": "units", "name": "recurrent", "initial": devices},
            ],
            "output": {"layer": "units"},
            "cost": {"kind": "squared_error"},
        }
    )
    netlist = compile_network(spec, seed=seed)
    nodes = netlist.groups["units"]
    netlist = replace(netlist, outputs=OutputPort(pos=nodes[:outputs], neg=np.full(outputs, GROUND)))
    values = netlist.values()
    plan = build_plan(netlist)
    # A nudge of beta = 1 is worth about half of what loads a node.
    load = float(plan.layered.weights(values, "float64").load[0].mean())
    cost = Cost(kind="quadratic", conductance=0.5 * load)
    phases = Phases(plan=plan, values=values, cost=cost, settings=_SETTINGS)
    rng = stream(seed, "faults", "samples")
    inputs = rng.uniform(-1, 1, (samples, _INPUTS))
    free = phases.free(inputs)
    targets = 1.5 * _rms(free.node_voltage[:, nodes]) * rng.uniform(-1, 1, (samples, outputs))
    exact = Adjoint().estimate(phases, inputs, targets, free=free).crossbars
    return FaultCase(phases=phases, inputs=inputs, targets=targets, free=free, exact=exact, seed=seed)


# Faults ------------------------------------------------------------------------------------------


def _gain(case: FaultCase, level: float, beta: float) -> dict[str, float]:
    """All gains of the correction too large by ``level``."""
    off = {case.bank: np.full(case.size, 1 + level)}
    return {
        "circuit": case.corrected(Correction(forward=off, back=off), beta),
        "held": case.corrected(Correction(back=off), beta),
        "matrix": _Units(case).corrected(beta, factor=1 + level),
    }


def _mismatch(case: FaultCase, level: float, beta: float) -> dict[str, float]:
    """Every gain of the correction off on its own, by ``level`` (normal)."""
    rng = case.drawn("mismatch")
    forward, back = ({case.bank: 1 + level * rng.normal(size=case.size)} for _ in range(2))
    entries = 1 + level * case.drawn("mismatch", "matrix").normal(size=(case.size, case.size))
    return {
        "circuit": case.corrected(Correction(forward=forward, back=back), beta),
        "held": case.corrected(Correction(back=back), beta),
        "matrix": _Units(case).corrected(beta, factor=entries),
    }


def _anchor(centred: bool) -> Callable[[FaultCase, float, float], dict[str, float]]:
    def errors(case: FaultCase, level: float, beta: float) -> dict[str, float]:
        """Every stored voltage and current off by ``level`` of their root mean square (normal)."""
        rng = case.drawn("anchor")
        shape = (len(case.inputs), case.size)
        volts = level * case.scale * rng.normal(size=shape)
        amps = {case.bank: level * case.current_scale * rng.normal(size=shape)}
        both = Correction(anchor={case.bank: volts}, anchor_current=amps)
        return {
            "circuit": case.corrected(both, beta, centred=centred),
            "held": case.corrected(Correction(anchor_current=amps), beta, centred=centred),
            "matrix": _Units(case).corrected(beta, error=volts, centred=centred),
        }

    return errors


def _copy(case: FaultCase, level: float, beta: float) -> dict[str, float]:
    """Every device and slope of the dyadic copy off by ``level`` (normal)."""
    dual = mismatched_copy(case.netlist, case.phases.values, level, case.drawn("copy"))
    entries = 1 + level * case.drawn("copy", "matrix").normal(size=(case.size, case.size))
    return {"circuit": case.dyadic(dual), "matrix": _Units(case).dyadic(entries)}


FAULTS: Mapping[str, Callable[[FaultCase, float, float], dict[str, float]]] = {
    "correction gain": _gain,
    "correction mismatch": _mismatch,
    "anchor, centred": _anchor(True),
    "anchor, one-sided": _anchor(False),
    "copy mismatch": _copy,
}
"""Fault -> errors of one network, by how the fault is told, at (size, beta)."""


def fault_errors(
    cases: Sequence[FaultCase], fault: str, levels: Sequence[float], *, beta: float = 0.03
) -> FaultErrors:
    """Return the errors of all networks at every size of one fault; the draws are the same at each size."""
    rows = [[FAULTS[fault](case, level, beta) for case in cases] for level in levels]
    told = rows[0][0].keys()
    errors = {name: np.array([[one[name] for one in row] for row in rows]) for name in told}
    return FaultErrors(fault=fault, levels=np.array(levels), beta=beta, errors=errors)


def mismatched_copy(netlist: Netlist, values: Values, spread: float, rng: np.random.Generator) -> DualNetwork:
    """Return a copy whose every device, leak, back gain and slope is off by ``spread`` (normal)."""

    def off(array: FloatArray) -> FloatArray:
        return np.asarray(array * np.maximum(1 + spread * rng.normal(size=array.shape), 0.0))

    tables = {kind: dict(columns) for kind, columns in values.tables.items()}
    tables["resistor"]["conductance"] = off(tables["resistor"]["conductance"])
    crossbars = {}
    for name, (g_plus, g_minus) in values.crossbars.items():
        crossbars[name] = (off(g_plus), None if g_minus is None else off(g_minus))
    banks = {name: {**bank, "back_gain": off(bank["back_gain"])} for name, bank in values.banks.items()}
    senses = {name: off(gain) for name, gain in values.senses.items()}
    return DualNetwork(
        values=replace(values, tables=tables, crossbars=crossbars, banks=banks, senses=senses),
        slope={bank.name: off(np.ones(len(bank.control))) for bank in netlist.banks},
        diode=off(np.ones(len(netlist.diode))),
        ideal_diode=off(np.ones(len(netlist.ideal_diode))),
    )


# Read noise --------------------------------------------------------------------------------------


def beta_sweep(
    cases: Sequence[FaultCase], betas: Sequence[float], noises: Sequence[float], *, reads: int = 1
) -> FloatArray:
    """Return errors (noise, beta, networks) of centred corrected estimates that are read with noise.

    Every voltmeter is off by ``noise`` times the root mean square of the units' voltages (normal), anew for
    every node of every phase and sample, and the mean of ``reads`` is taken.
    """
    found = np.empty((len(noises), len(betas), len(cases)))
    for c, case in enumerate(cases):
        for b, beta in enumerate(betas):
            for k, (_, error) in enumerate(_noisy(case, beta, noises, (reads,))):
                found[k, b, c] = error
    return found


def averaged_errors(
    cases: Sequence[FaultCase], beta: float, noise: float, reads: Sequence[int]
) -> FloatArray:
    """Return errors (reads, networks) as in `beta_sweep` where the mean of several reads is taken."""
    found = [[error for _, error in _noisy(case, beta, (noise,), reads)] for case in cases]
    return np.array(found).T


def _noisy(
    case: FaultCase, beta: float, noises: Sequence[float], reads: Sequence[int]
) -> Iterator[tuple[tuple[float, int], float]]:
    """Yield errors for every noise and number of reads; draws are the same for every noise and beta."""
    phases, inputs, targets, free = case.phases, case.inputs, case.targets, case.free
    v0 = free.node_voltage
    try:
        up = phases.corrected(inputs, targets, beta, free)
        change = phases.nodes(up - phases.corrected(inputs, targets, -beta, free, guess=-up), inputs, free)
    except ConvergenceError:
        # So strong a nudge leaves no stable point.
        change = np.full_like(v0, np.nan)
    for noise in noises:
        for count in reads:
            rng = case.drawn("read", count)
            off = np.zeros((3, *v0.shape))
            for _ in range(count):
                off[:, :, 1:] += rng.normal(size=(3, len(v0), v0.shape[1] - 1))
            at_free, at_up, at_down = noise * case.scale / count * off
            s = (change + at_up - at_down) / (2 * beta)
            yield (noise, count), case.error(local_rule(case.netlist, v0 + at_free, s))


# The same in matrices ----------------------------------------------------------------------------


class _Units:
    """The units alone: F(v) = load v - W^T f(v) - i, f(v) = L tanh(G (v + offset) / L), per sample."""

    def __init__(self, case: FaultCase) -> None:
        self.case = case
        netlist, values = case.netlist, case.phases.values
        p = values.banks[case.bank]
        self.gain, self.limit, self.offset = p["gain"], p["saturation"], p["offset"]
        self.nodes = netlist.groups["units"]
        self.v0 = case.free.node_voltage[:, self.nodes]
        load = np.zeros(netlist.n_nodes)
        np.add.at(load, netlist.resistor.pos, values.tables["resistor"]["conductance"])
        np.add.at(load, netlist.resistor.neg, values.tables["resistor"]["conductance"])
        self.weights = np.zeros((case.size, case.size))
        for crossbar in netlist.crossbars:
            halves = [g for _, g in netlist.device_conductances(crossbar, values)]
            np.add.at(load, crossbar.bit, sum(g.sum(axis=0) for g in halves))
            if np.array_equal(crossbar.word_pos, netlist.banks[0].out_pos):
                self.weights += halves[0] - halves[1]
        self.load = load[self.nodes]
        # What the inputs drive follows from the free phase.
        self.current = self.load * self.v0 - self._output(self.v0) @ self.weights
        self.pull = np.isin(self.nodes, netlist.outputs.pos) * case.phases.cost.conductance
        self.target = np.zeros_like(self.v0)
        self.target[:, : case.targets.shape[1]] = case.targets

    def corrected(
        self,
        beta: float,
        *,
        factor: float | FloatArray = 1.0,
        error: FloatArray | float = 0.0,
        centred: bool = True,
    ) -> float:
        """Return the error where J0^T - J0 is off by ``factor`` (n, n), the anchor by ``error`` (B, n) V.

        NaN where Newton's method finds no point.
        """
        up = self._moved(beta, factor, error)
        down = self._moved(-beta, factor, error) if centred else np.zeros_like(up)
        s = (up - down) / ((2 if centred else 1) * beta)
        return self._error(s) if np.isfinite(s).all() else float("nan")

    def dyadic(self, factor: FloatArray) -> float:
        """Return the error where every entry of the copy's J^T is off by ``factor`` (n, n)."""
        s = np.empty_like(self.v0)
        for b, v in enumerate(self.v0):
            s[b] = np.linalg.solve(self._jacobian(v).T * factor, -self.pull * (v - self.target[b]))
        return self._error(s)

    def _moved(self, beta: float, factor: float | FloatArray, error: FloatArray | float) -> FloatArray:
        moved = np.empty_like(self.v0)
        errors = np.broadcast_to(error, self.v0.shape)
        for b, v0 in enumerate(self.v0):
            j0 = self._jacobian(v0)
            swap = factor * (j0.T - j0)
            v = v0.copy()
            for _ in range(_NEWTON_STEPS):
                f = self.load * v - self._output(v) @ self.weights - self.current[b]
                f += swap @ (v - v0 - errors[b]) + beta * self.pull * (v - self.target[b])
                step = np.linalg.solve(self._jacobian(v) + swap + np.diag(beta * self.pull), f)
                v -= step
                if np.abs(step).max() < 1e-14:
                    break
            else:
                v = np.full_like(v0, np.nan)
            moved[b] = v - v0
        return moved

    def _output(self, v: FloatArray) -> FloatArray:
        return np.asarray(self.limit * np.tanh(self.gain * (v + self.offset) / self.limit))

    def _jacobian(self, v: FloatArray) -> FloatArray:
        slope = self.gain * (1 - (self._output(v) / self.limit) ** 2)
        return np.asarray(np.diag(self.load) - (slope[:, None] * self.weights).T)

    def _error(self, s: FloatArray) -> float:
        nodes = np.zeros_like(self.case.free.node_voltage)
        nodes[:, self.nodes] = s
        return self.case.error(local_rule(self.case.netlist, self.case.free.node_voltage, nodes))


def _flat(gradient: Crossbars) -> FloatArray:
    return np.concatenate(
        [half.reshape(-1) for pair in gradient.values() for half in pair if half is not None]
    )


def _rms(x: FloatArray) -> float:
    return float(np.sqrt(np.mean(x * x)))


def _over(how: Callable[[FloatArray], float], row: FloatArray) -> float:
    kept = row[~np.isnan(row)]
    return float(how(kept)) if len(kept) else float("nan")
