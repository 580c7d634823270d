"""Sampled inputs through every phase, on our solver and on a SPICE simulator, and the gradients of both.

The simulator gets a deck per phase. In a corrected phase that deck holds our anchor, as a board would hold
what it sampled; the simulator's own free point is compared to it in the free phase. Its gradient then comes
from its voltages alone: the local rule on its free point and on ``(x(+beta) - x(-beta)) / (2 beta)``, or on
``d / beta``.

The simulator starts a corrected phase from the anchor, as a board does: that circuit has other operating
points, and from nothing a simulator may end at one of those, or nowhere. It starts the other phases from
nothing; where that ends elsewhere than we did, it is run again from our free point, and the result says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from circuitsim.errors import ConvergenceError, SimulatorError
from circuitsim.learning import Adjoint, AsymEP, Cost, Dyadic, Gradient, Phases, local_rule
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Drive, OperatingPoint, Plan, SolverSettings, solve
from circuitsim.spice import (
    CrossCheck,
    DeckOptions,
    SpiceEngine,
    crosscheck_deck,
    crosscheck_point,
    phase_netlist,
    with_inputs,
)

__all__ = ["PHASES", "Comparison", "CrossCheckStudy", "GradientResult", "Phase", "PhaseResult", "Subject"]

Phase = Literal["free", "nudged", "corrected", "dyadic"]
PHASES: tuple[Phase, ...] = get_args(Phase)
_ANOTHER = 1e-6
"""A point further from ours than this [V] may be another operating point."""
_NEGLIGIBLE = 1e-9
"""A crossbar whose gradient is this small beside all of them is measured against all of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is cross-checked: a circuit with its values, and S inputs for it."""

    name: str
    kind: Literal["network", "experiment", "record", "netlist", "deck"]
    plan: Plan
    values: Values
    inputs: FloatArray
    """(S, n_in)"""
    targets: FloatArray | None = None
    """(S, K)"""
    cost: Cost | None = None
    """None leaves the free phase only."""
    settings: SolverSettings = field(default_factory=SolverSettings)
    drawn: str = ""
    """Where inputs and targets come from."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know."""
    deck: Path | None = None
    """A deck that the simulator gets as it stands, in the free phase, in the place of one that we write."""

    @property
    def netlist(self) -> Netlist:
        return self.plan.netlist

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that this circuit has."""
        return PHASES if self.cost is not None else ("free",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """One sample in one phase; ``beta`` is None in the free phase."""

    sample: int
    phase: Phase
    beta: float | None
    check: CrossCheck
    signal: float
    """V: the largest voltage of a free phase, the largest change that a nudge made, or the largest dual
    voltage of a dyadic phase."""
    relative: float
    """The largest difference over ``signal``; in a dyadic phase that of a dual voltage."""
    elsewhere: float
    """V, the largest difference where the simulator started from nothing, if it had to start again."""
    seconds: float
    """What our solve took, its KCL check included. In a dyadic phase, the free phase too: so does the
    simulator's."""


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """All samples of one phase."""

    phase: Phase
    beta: float | None
    samples: int
    nodes: int
    worst_node: str
    worst_sample: int
    difference: float
    """The largest at any node [V]."""
    relative: float
    """The largest of any sample, see `Comparison.relative`."""
    signal: float
    """The smallest of any sample [V]."""
    elsewhere: int
    """Samples for which the simulator found another operating point before it was started close to ours."""
    seconds: float
    """Ours, mean per sample."""
    spice_seconds: float
    """The simulator's, mean per sample."""

    @property
    def ratio(self) -> float:
        return self.spice_seconds / max(self.seconds, 1e-300)


@dataclass(frozen=True, kw_only=True)
class GradientResult:
    """The gradient of one crossbar from the simulator's voltages alone, over all samples.

    Errors are norms over samples and devices of the difference, over that of the gradient compared to.
    """

    estimator: str
    crossbar: str
    samples: int
    to_ours: float
    """The simulator's estimate against ours, by the same estimator."""
    to_adjoint: float
    """The simulator's estimate against the exact gradient."""
    ours_to_adjoint: float


class CrossCheckStudy:
    """A cross-check under way. `run` goes through it; the results are of what has been compared so far."""

    def __init__(
        self,
        subject: Subject,
        engine: SpiceEngine,
        *,
        phases: Sequence[Phase] = PHASES,
        beta: float = 0.01,
        options: DeckOptions | None = None,
    ) -> None:
        self.subject = subject
        self.engine = engine
        self.beta = beta
        # Started close to its answer, a simulator with a looser tolerance stops a step too soon.
        self.options = options or DeckOptions(relative_tolerance=1e-12)
        self.comparisons: list[Comparison] = []
        self.own_tolerances = False
        """Whether a user's deck had to be run with its own tolerances, which are looser."""
        # Every other phase starts from the free one.
        wanted = [phase for phase in subject.phases if phase == "free" or phase in phases]
        signs = {"free": (None,), "nudged": (beta, -beta), "corrected": (beta, -beta), "dyadic": (beta,)}
        self.points: list[tuple[Phase, float | None]] = [
            (phase, sign) for phase in wanted for sign in signs[phase]
        ]
        self._errors: dict[tuple[str, str], _Errors] = {}
        self._netlist = subject.netlist.with_values(subject.values)

    @property
    def total(self) -> int:
        """How many comparisons there are in all."""
        return len(self.subject.inputs) * len(self.points)

    def run(self, on_comparison: Callable[[Comparison], None] = lambda comparison: None) -> None:
        """Compare everything, sample by sample.

        Raises:
            ConvergenceError: our solver found no operating point.
            SimulatorError: the simulator gave no answer that can be trusted.
        """
        # The first solves load compiled kernels and make the plan: not what a solve takes.
        for phase, beta in self.points:
            self._solved(0, phase, beta, self._free(0))
        for sample in range(len(self.subject.inputs)):
            free, found = self._free(sample), {}
            for phase, beta in self.points:
                try:
                    comparison = self._compared(sample, phase, beta, free)
                except (ConvergenceError, SimulatorError) as error:
                    sign = "" if beta is None else f", beta {beta:g}"
                    raise type(error)(
                        f"sample {sample}, {phase} phase{sign}: {error.rule}",
                        object=error.object,
                        field=error.field,
                        remedy=error.remedy,
                    ) from error
                found[phase, beta] = comparison.check.spice
                self.comparisons.append(comparison)
                on_comparison(comparison)
            self._take_gradients(sample, free, found)

    def phase_results(self) -> list[PhaseResult]:
        """Return one result for each phase that has been compared, in order."""
        results = []
        for phase, beta in self.points:
            found = [c for c in self.comparisons if (c.phase, c.beta) == (phase, beta)]
            if not found:
                continue
            worst = max(found, key=lambda c: c.check.worst_difference)
            results.append(
                PhaseResult(
                    phase=phase,
                    beta=beta,
                    samples=len(found),
                    nodes=len(worst.check.node_names),
                    worst_node=worst.check.worst_node,
                    worst_sample=worst.sample,
                    difference=worst.check.worst_difference,
                    relative=max(c.relative for c in found),
                    signal=min(c.signal for c in found),
                    elsewhere=sum(c.elsewhere > 0 for c in found),
                    seconds=float(np.mean([c.seconds for c in found])),
                    spice_seconds=float(np.mean([c.check.seconds for c in found])),
                )
            )
        return results

    def gradient_results(self) -> list[GradientResult]:
        """Return one result for each estimator and crossbar; empty where there is no gradient."""
        results = []
        for (estimator, crossbar), errors in self._errors.items():
            whole = sum(other.exact for (name, _), other in self._errors.items() if name == estimator)
            exact = max(errors.exact, _NEGLIGIBLE**2 * whole, 1e-300)
            ours = max(errors.ours, _NEGLIGIBLE**2 * whole, 1e-300)
            results.append(
                GradientResult(
                    estimator=estimator,
                    crossbar=crossbar,
                    samples=errors.samples,
                    to_ours=float(np.sqrt(errors.spice_to_ours / ours)),
                    to_adjoint=float(np.sqrt(errors.spice_to_exact / exact)),
                    ours_to_adjoint=float(np.sqrt(errors.ours_to_exact / exact)),
                )
            )
        return results

    def agrees(self, tolerance: float, gradient_tolerance: float) -> bool:
        """Whether all voltages agree to ``tolerance`` [V], and all gradients to a relative tolerance."""
        voltages = all(result.difference <= tolerance for result in self.phase_results())
        return voltages and all(result.to_ours <= gradient_tolerance for result in self.gradient_results())

    @cached_property
    def _settings(self) -> SolverSettings:
        # The check gives the branch currents that an anchor needs, and the residual that we vouch for.
        return replace(self.subject.settings, check=True, throw=True)

    def _phases(self) -> Phases:
        subject = self.subject
        assert subject.cost is not None
        return Phases(plan=subject.plan, values=subject.values, cost=subject.cost, settings=self._settings)

    def _free(self, sample: int) -> OperatingPoint:
        subject = self.subject
        return solve(
            subject.plan,
            subject.values,
            Drive(inputs=subject.inputs[sample : sample + 1]),
            self._settings,
        )

    def _solved(self, sample: int, phase: Phase, beta: float | None, free: OperatingPoint) -> FloatArray:
        """Solve one phase: node voltages (N,) V, or dual ones."""
        if beta is None:
            return self._free(sample).node_voltage[0]
        subject, rows = self.subject, slice(sample, sample + 1)
        assert subject.cost is not None
        assert subject.targets is not None
        inputs, targets = subject.inputs[rows], subject.targets[rows]
        if phase == "dyadic":
            phases = self._phases()
            return phases.nodes(phases.dyadic(inputs, targets, beta, free), inputs, free)[0]
        drive = Drive(
            inputs=inputs,
            nudge=subject.cost.nudge(targets, beta),
            anchor=free if phase == "corrected" else None,
        )
        return solve(subject.plan, subject.values, drive, self._settings, start=free).node_voltage[0]

    def _compared(self, sample: int, phase: Phase, beta: float | None, free: OperatingPoint) -> Comparison:
        subject = self.subject
        started = time.perf_counter()
        if phase == "dyadic":
            free = self._free(sample)
        ours = self._solved(sample, phase, beta, free)
        seconds = time.perf_counter() - started
        nudge = None
        if beta is not None:
            assert subject.cost is not None
            assert subject.targets is not None
            nudge = subject.cost.nudge(subject.targets[sample : sample + 1], beta)
        circuit = phase_netlist(
            with_inputs(self._netlist, subject.inputs[sample]), phase, anchor=free, nudge=nudge
        )
        at_rest = free.node_voltage[0]
        signal = float(np.abs(ours if phase in ("free", "dyadic") else ours - at_rest).max())
        nodes = list(subject.netlist.node_names)
        first = 0
        if phase == "dyadic":
            # Its first network must stay in the free phase.
            first = len(nodes)
            nodes += [f"d.{name}" for name in nodes[1:]]
            ours = np.concatenate([at_rest, ours[1:]])
        start = at_rest if phase == "corrected" else None
        check = self._against_spice(circuit, ours, nodes, start)
        elsewhere = 0.0
        if start is None and check.worst_difference > _ANOTHER:
            again = self._against_spice(circuit, ours, nodes, at_rest)
            if again.worst_difference <= _ANOTHER:
                elsewhere, check = check.worst_difference, again
        return Comparison(
            sample=sample,
            phase=phase,
            beta=beta,
            check=check,
            signal=signal,
            relative=float(np.abs(check.difference[first:]).max()) / max(signal, 1e-300),
            elsewhere=elsewhere,
            seconds=seconds,
        )

    def _against_spice(
        self, circuit: Netlist, ours: FloatArray, nodes: Sequence[str], start: FloatArray | None
    ) -> CrossCheck:
        deck = self.subject.deck
        if deck is None:
            return crosscheck_point(
                circuit, ours, nodes=nodes, start=start, engine=self.engine, options=self.options
            )
        options = None if self.own_tolerances else self.options
        netlist = self.subject.netlist
        try:
            return crosscheck_deck(deck, netlist, ours, start=start, engine=self.engine, options=options)
        except SimulatorError:
            if self.own_tolerances:
                raise
        self.own_tolerances = True
        return crosscheck_deck(deck, netlist, ours, start=start, engine=self.engine)

    def _take_gradients(
        self, sample: int, free: OperatingPoint, spice: dict[tuple[Phase, float | None], FloatArray]
    ) -> None:
        """Compare the gradients of one sample, as far as its phases allow."""
        subject, beta = self.subject, self.beta
        if subject.cost is None or subject.targets is None or not subject.netlist.trainable:
            return
        phases = self._phases()
        batch = (phases, subject.inputs[sample : sample + 1], subject.targets[sample : sample + 1])
        size = subject.netlist.n_nodes
        v0 = spice["free", None]
        exact = Adjoint().estimate(*batch, free=free)
        if ("corrected", beta) in spice:
            s = (spice["corrected", beta] - spice["corrected", -beta]) / (2 * beta)
            self._compare_gradients(v0, s, AsymEP(beta=beta).estimate(*batch, free=free), exact)
        if ("dyadic", beta) in spice:
            s = np.concatenate([[0.0], spice["dyadic", beta][size:]]) / beta
            self._compare_gradients(v0, s, Dyadic(beta=beta).estimate(*batch, free=free), exact)

    def _compare_gradients(self, v0: FloatArray, s: FloatArray, ours: Gradient, exact: Gradient) -> None:
        spice = replace(ours, crossbars=local_rule(self.subject.netlist, v0[None], s[None]))
        for name in ours.crossbars:
            errors = self._errors.setdefault((ours.estimator, name), _Errors())
            errors.add(spice.flat(name), ours.flat(name), exact.flat(name))


@dataclass
class _Errors:
    """Sums of squares over samples and devices."""

    samples: int = 0
    spice_to_ours: float = 0.0
    spice_to_exact: float = 0.0
    ours_to_exact: float = 0.0
    ours: float = 0.0
    exact: float = 0.0

    def add(self, spice: FloatArray, ours: FloatArray, exact: FloatArray) -> None:
        self.samples += 1
        self.spice_to_ours += float(((spice - ours) ** 2).sum())
        self.spice_to_exact += float(((spice - exact) ** 2).sum())
        self.ours_to_exact += float(((ours - exact) ** 2).sum())
        self.ours += float((ours**2).sum())
        self.exact += float((exact**2).sum())
