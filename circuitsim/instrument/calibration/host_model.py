"""The host's model of a substrate, and parameters of it fitted to readings, one per amplifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from circuitsim.chip import Conductances
from circuitsim.chip.substrate import Phase
from circuitsim.errors import ConvergenceError
from circuitsim.learning import Cost
from circuitsim.learning.phases import Phases
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver import Correction, DualNetwork, Plan, SolverSettings

__all__ = ["HostModel", "ModelParameters", "fit_parameters", "redrawn"]

_DIFFERENCE = 1e-3
_LEAST_DIFFERENCE = 1e-7
"""Relative steps of the sensitivities: of a parameter, and the least of one whose error is known."""
_ROUNDS = 12
_TOLERANCE = 1e-5
_LONGEST_STEP = 0.3
_MOST_HALVINGS = 4
_PRIOR = 0.2
"""Spread, relative, of what is expected before anything is read: far beyond what can be told well. What
cannot be told stays near where it was, and the model with it."""
_MOST_CONDITION = 1e6
"""Of a normal matrix of unit diagonal, beyond which readings do not tell its parameters apart."""


@dataclass(eq=False)
class HostModel:
    """The circuit as designed, which gets nearer to the substrate as more of that is measured.

    ``copy`` holds the crossbars of a dyadic phase's second network: devices of its own, which nothing reads.
    """

    plan: Plan
    cost: Cost
    settings: SolverSettings
    banks: dict[str, dict[str, FloatArray]]
    senses: dict[str, FloatArray]
    crossbars: Conductances = field(default_factory=dict)
    copy: Conductances = field(default_factory=dict)
    forward: dict[str, FloatArray] = field(default_factory=dict)
    back: dict[str, FloatArray] = field(default_factory=dict)
    anchor: dict[str, FloatArray] = field(default_factory=dict)
    slope: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, cost: Cost, settings: SolverSettings) -> HostModel:
        """Return the model of a circuit of which nothing has been measured yet."""
        nominal = plan.netlist.values()
        return cls(
            plan=plan,
            cost=cost,
            settings=settings,
            banks={name: {key: np.array(c) for key, c in b.items()} for name, b in nominal.banks.items()},
            senses={name: np.array(gain) for name, gain in nominal.senses.items()},
        )

    def phases(self) -> Phases:
        """Return the circuit as it is now thought to be."""
        nominal = self.plan.netlist.values()

        def values(crossbars: Conductances) -> Values:
            return replace(
                nominal,
                banks={name: dict(columns) for name, columns in self.banks.items()},
                senses=dict(self.senses),
                crossbars={**nominal.crossbars, **crossbars},
            )

        faults = None
        if self.forward or self.back:
            faults = Correction(forward=dict(self.forward), back=dict(self.back), anchor=dict(self.anchor))
        dual = None
        if self.copy or self.slope:
            dual = DualNetwork(values=values(self.copy), slope=dict(self.slope))
        return Phases(
            plan=self.plan,
            values=values(self.crossbars),
            cost=self.cost,
            settings=self.settings,
            correction=faults,
            dual=dual,
        )

    def free(self, inputs: FloatArray) -> FloatArray:
        """Return node voltages (B, N) V at inputs (B, n_in) in the network's units."""
        return self.phases().free(inputs).node_voltage

    def changed(self, phase: Phase, inputs: FloatArray, targets: FloatArray, beta: float) -> FloatArray:
        """Return displacements of nodes (B, N) V in the corrected or the dyadic phase."""
        phases = self.phases()
        point = phases.free(inputs)
        form = phases.dyadic if phase == "dyadic" else phases.corrected
        return phases.nodes(form(inputs, targets, beta, point), inputs, point)


@dataclass(eq=False)
class ModelParameters:
    """Parameters (n,) of one block, each told by the reading at place ``probe`` (n,), alone or with others.

    ``home[key]`` is where the model has them. ``nuisances`` are others that were measured before, each with
    its home, key and standard errors: what they are off by, these will be off by. Where one is NaN, nothing
    is known of these either.
    """

    name: str
    kind: str
    home: dict[str, FloatArray]
    key: str
    probe: IntArray
    nuisances: list[tuple[dict[str, FloatArray], str, FloatArray]] = field(default_factory=list)
    error: FloatArray = field(default_factory=lambda: np.empty(0))
    """Standard errors (n,) once fitted; NaN where nothing could be told."""

    @property
    def value(self) -> FloatArray:
        return self.home[self.key]


def fit_parameters(
    parameters: Sequence[ModelParameters],
    predict: Callable[[], FloatArray],
    read: FloatArray,
    weight: FloatArray,
    scatter: Sequence[Callable[[], FloatArray]] = (),
) -> str | None:
    """Fit parameters to readings (B, R) with weights (B, R), by Gauss and Newton's method.

    Those of a block are moved together for the sensitivities, so the effect of one on another's reading
    counts as its own: that changes the steps, not where they end.

    Args:
        parameters: what to fit. Where the model stops converging they keep their values, with errors NaN.
        predict: readings (B, R) of the model as it is.
        read: what was read.
        weight: 0 where a reading does not count.
        scatter: readings of the model with devices redrawn within what is known of them: what that moves the
            parameters by is part of their errors.

    Returns:
        Why there was no fit, or None.
    """
    before = [p.value.copy() for p in parameters]
    first = {id(p): value for p, value in zip(parameters, before, strict=True)}
    groups = _sharing(parameters)
    try:
        base = predict()
        for _ in range(_ROUNDS):
            largest = 0.0
            steps: list[tuple[ModelParameters, FloatArray]] = []
            for group in groups:
                s, w = _sensitivities(group, predict, base), weight[:, group[0].probe]
                r = (read - base)[:, group[0].probe]
                variance = (w * r**2).sum(axis=0) / np.maximum(w.sum(axis=0) - len(group), 1.0)
                start = np.stack([first[id(p)] for p in group])
                trust = variance / (_PRIOR * np.abs(start)) ** 2
                away = np.stack([p.value for p in group]) - start
                moves, _ = _projected(s, w, r, trust, away)
                for p, move in zip(group, moves, strict=True):
                    most = _LONGEST_STEP * np.abs(p.value)
                    steps.append((p, np.clip(np.nan_to_num(move), -most, most)))
                    largest = max(largest, float(np.abs(steps[-1][1] / p.value).max()))
            base = _stepped(steps, predict)
            if largest < _TOLERANCE:
                break
        moved = [draw() - base for draw in scatter]
        for group in groups:
            for p, error in zip(group, _errors(group, predict, base, read, weight, moved), strict=True):
                p.error = error
    except ConvergenceError as failure:
        for p, value in zip(parameters, before, strict=True):
            p.home[p.key] = value
            p.error = np.full(value.shape, np.nan)
        return failure.rule
    return None


def _sharing(parameters: Sequence[ModelParameters]) -> list[list[ModelParameters]]:
    """Return the parameters that are told by the same readings together."""
    groups: dict[tuple[int, ...], list[ModelParameters]] = {}
    for p in parameters:
        groups.setdefault(tuple(p.probe.tolist()), []).append(p)
    return list(groups.values())


def _stepped(
    steps: Sequence[tuple[ModelParameters, FloatArray]], predict: Callable[[], FloatArray]
) -> FloatArray:
    """Move parameters as far along their steps as the model converges; return its readings there."""
    before = [p.value for p, _ in steps]
    for halvings in range(_MOST_HALVINGS + 1):
        for (p, step), value in zip(steps, before, strict=True):
            p.home[p.key] = value + 0.5**halvings * step
        try:
            return predict()
        except ConvergenceError:
            if halvings == _MOST_HALVINGS:
                raise
    raise AssertionError


def _errors(
    group: Sequence[ModelParameters],
    predict: Callable[[], FloatArray],
    base: FloatArray,
    read: FloatArray,
    weight: FloatArray,
    scatter: Sequence[FloatArray],
) -> FloatArray:
    """Standard errors (K, n) of K parameters of the same readings: of these, of what was measured before, of
    devices."""
    probe = group[0].probe
    s, w = _sensitivities(group, predict, base), weight[:, probe]
    freedom = np.maximum(w.sum(axis=0) - len(group), 1.0)
    variance = (w * (read - base)[:, probe] ** 2).sum(axis=0) / freedom
    _, inverse = _projected(s, w, (read - base)[:, probe])
    square = variance * inverse
    known = {(id(home), key): (home, key, error) for p in group for home, key, error in p.nuisances}
    for home, key, error in known.values():
        if not error.any():
            continue
        # Steps of the size of the error: larger ones may be more than a loop bears.
        size = float(np.sqrt(np.nanmean(error**2))) if np.isfinite(error).any() else np.nan
        if np.isnan(size):
            square = square + np.nan
            continue
        moves, _ = _projected(s, w, _sensitivity(home, key, predict, base, step=size)[:, probe])
        # Of another block there is no saying which amplifier moves which reading: take them as alike.
        square = square + (moves * (error if error.shape == probe.shape else size)) ** 2
    if scatter:
        shifts = np.stack([_projected(s, w, moved[:, probe])[0] for moved in scatter])
        own = (shifts**2).mean(axis=0)
        # Few draws say little of one amplifier: those of its block help.
        square = square + np.maximum(own, np.nanmean(own, axis=1, keepdims=True))
    return np.sqrt(square)


def _sensitivities(
    group: Sequence[ModelParameters], predict: Callable[[], FloatArray], base: FloatArray
) -> FloatArray:
    """Return (K, B, n): what each of K parameters does to the readings that they share."""
    return np.stack([_sensitivity(p.home, p.key, predict, base)[:, p.probe] for p in group])


def _projected(
    s: FloatArray,
    w: FloatArray,
    r: FloatArray,
    trust: FloatArray | float = 0.0,
    away: FloatArray | float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    """Solve least squares of n amplifiers: residuals r (B, n) for K parameters of sensitivities s (K, B, n).

    ``trust`` (K, n), the variance of a residual over that of the parameter before anything was read, pulls
    parameters that are ``away`` (K, n) from where they were expected back there, as far as readings let it.

    Returns:
        The parameters' steps (K, n), and the diagonals (K, n) of the inverse normal matrices; NaN where the
        readings do not tell the parameters apart.
    """
    prior = np.broadcast_to(trust, s.shape[::2]).T
    normal = np.einsum("kbn,bn,lbn->nkl", s, w, s) + prior[:, :, None] * np.eye(len(s))
    right = np.einsum("kbn,bn,bn->nk", s, w, r) - prior * np.broadcast_to(away, s.shape[::2]).T
    size = np.sqrt(np.einsum("nkk->nk", normal))
    told = size.min(axis=1) > 0
    size = np.where(told[:, None], size, 1.0)
    unit = np.where(told[:, None, None], normal / (size[:, :, None] * size[:, None, :]), np.eye(len(s)))
    told &= np.linalg.cond(unit) < _MOST_CONDITION
    inverse = np.linalg.inv(np.where(told[:, None, None], unit, np.eye(len(s))))
    inverse = np.where(told[:, None, None], inverse / (size[:, :, None] * size[:, None, :]), np.nan)
    return np.einsum("nkl,nl->kn", inverse, right), np.einsum("nkk->kn", inverse)


def _sensitivity(
    home: dict[str, FloatArray],
    key: str,
    predict: Callable[[], FloatArray],
    base: FloatArray,
    *,
    step: float = 0.0,
) -> FloatArray:
    """Return what the predicted readings (B, R) change by per unit of a block's parameters.

    ``step`` is what they are moved by for it, a thousandth of the largest where it is 0.
    """
    held = home[key]
    size = float(np.abs(held).max(initial=0.0))
    step = max(step, _LEAST_DIFFERENCE * size) if step else _DIFFERENCE * size
    home[key] = held + step
    try:
        return (predict() - base) / step
    finally:
        home[key] = held


def redrawn(
    conductance: Conductances, spread: Conductances, generators: Mapping[str, np.random.Generator]
) -> Conductances:
    """Return conductances [S] moved by normal draws of a standard deviation [S], never below 0."""
    found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    for name, pair in conductance.items():
        halves = [
            None
            if g is None or s is None
            else np.maximum(g + s * generators[name].standard_normal(g.shape), 0.0)
            for g, s in zip(pair, spread[name], strict=True)
        ]
        assert halves[0] is not None
        found[name] = halves[0], halves[1]
    return found
