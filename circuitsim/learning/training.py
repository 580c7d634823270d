"""Learning on one die: epochs of estimate, step, program; each epoch measured on held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from circuitsim.chip import Chip
from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.cost import Cost
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Gradient, alignment
from circuitsim.learning.optimiser import Optimiser, OptimiserSpec
from circuitsim.learning.phases import Phases
from circuitsim.learning.scores import score_of
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream
from circuitsim.solver import Drive, Plan, SolverSettings, solve

__all__ = ["Samples", "Trainer"]

_CHECKED = 1000
"""Test samples solved at once, and those of them whose residual and power are measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Inputs (n, n_in) with class labels (n,), or with wanted outputs (n, K) V."""

    inputs: FloatArray
    labels: IntArray | FloatArray

    def __len__(self) -> int:
        return len(self.labels)


class Trainer:
    """One estimator learning on one die. `epoch` advances it; `state` is all it needs to go on.

    ``classes`` is None where the labels are wanted outputs: these are scored by their RMS error in V,
    classes by accuracy.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        chip: Chip,
        cost: Cost,
        estimator: Estimator,
        optimiser: OptimiserSpec,
        train: Samples,
        test: Samples,
        classes: int | None,
        batch: int,
        epochs: int,
        seed: int,
        probe: int = 64,
        settings: SolverSettings | None = None,
    ) -> None:
        self.settings = settings or SolverSettings(check=False)
        self.plan = plan
        self.chip = chip if self.settings.precision == "float64" else chip.in_precision("float32")
        self.cost = cost
        self.estimator = estimator
        self.optimiser = Optimiser(optimiser, plan.netlist, cost.conductance, self.settings.precision)
        self.train = train
        self.test = test
        self.classes = classes
        self.score = score_of(cost, classes)
        self.batch = batch
        self.epochs = epochs
        self.seed = seed
        self._probe = stream(seed, "probe").permutation(len(train))[:probe]
        self._targets = cost.targets(train.labels, classes)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of what `epoch` returns, in order."""
        names = (
            "train_cost",
            f"train_{self.score.name}",
            "test_cost",
            f"test_{self.score.name}",
            "kcl_residual",
            "power",
            "seconds",
        )
        crossbars = [crossbar.name for crossbar in self.plan.netlist.trainable]
        return (*names, *(f"{kind}/{name}" for kind in ("cosine", "relative_error") for name in crossbars))

    def phases(self) -> Phases:
        """Return the phases of the die as it is now."""
        return Phases(plan=self.plan, values=self.chip.values, cost=self.cost, settings=self.settings)

    def epoch(
        self,
        number: int,
        on_step: Callable[[int, int, Mapping[str, float]], None] = lambda step, steps, running: None,
    ) -> dict[str, float]:
        """Train one epoch (from 0) and return its metrics.

        ``train_cost`` and ``train_accuracy`` (of wanted outputs: ``train_rms_error``) are running means over
        the epoch; ``test_*`` and the worst relative KCL residual over the test set are measured after it;
        ``cosine/...`` and ``relative_error/...`` compare the estimate to the adjoint on a fixed probe batch
        after it; ``seconds`` is the time of training alone.

        Raises:
            ConvergenceError: a phase did not converge.
        """
        started = time.perf_counter()
        order = stream(self.seed, "shuffle", number).permutation(len(self.train))
        parts = np.array_split(order, max(1, round(len(order) / self.batch)))
        factor = self.optimiser.spec.schedule.factor(number, self.epochs)
        cost, total = 0.0, 0.0
        seen = 0
        for step, rows in enumerate(parts):
            gradient = self.step(rows, factor)
            seen += len(rows)
            cost += gradient.cost * len(rows)
            total += self.score.total(gradient.outputs, self.train.labels[rows])
            running = {"train_cost": cost / seen, f"train_{self.score.name}": self.score.mean(total, seen)}
            on_step(step + 1, len(parts), running)
        seconds = time.perf_counter() - started
        metrics = {
            "train_cost": cost / len(order),
            f"train_{self.score.name}": self.score.mean(total, len(order)),
            "seconds": seconds,
        }
        metrics |= self.measure()
        return {name: metrics[name] for name in self.metric_names}

    def step(self, rows: IntArray, factor: float = 1.0) -> Gradient:
        """Learn from the training samples ``rows`` once: estimate, step, program."""
        gradient = self.estimator.estimate(self.phases(), self.train.inputs[rows], self._targets[rows])
        self.chip = self.chip.reprogrammed(self.optimiser.step(self.chip.target, gradient, factor))
        return gradient

    def measure(self) -> dict[str, float]:
        """Return the metrics that do not train: test set, residual, power, gradient alignment.

        The residual and the power are those of the first `_CHECKED` test samples.
        """
        netlist = self.plan.netlist
        checked = SolverSettings(
            method=self.settings.method,
            precision=self.settings.precision,
            relative_tolerance=self.settings.relative_tolerance,
            max_iterations=self.settings.max_iterations,
            check=True,
        )
        phases = self.phases()
        point = solve(self.plan, self.chip.values, Drive(inputs=self.test.inputs[:_CHECKED]), checked)
        outputs = [netlist.outputs.read(point.node_voltage)]
        for start in range(_CHECKED, len(self.test), _CHECKED):
            outputs.append(phases.outputs(phases.free(self.test.inputs[start : start + _CHECKED])))
        y = np.concatenate(outputs)
        metrics = {
            "test_cost": float(
                np.mean(self.cost.value(y, self.cost.targets(self.test.labels, self.classes)))
            ),
            f"test_{self.score.name}": self.score.mean(self.score.total(y, self.test.labels), len(self.test)),
            "kcl_residual": float(point.relative_residual.max()),
            "power": float(point.power.mean()),
        }
        inputs, targets = self.train.inputs[self._probe], self._targets[self._probe]
        free = phases.free(inputs)
        estimate = self.estimator.estimate(phases, inputs, targets, free=free)
        exact = Adjoint().estimate(phases, inputs, targets, free=free)
        for name, (cosine, error) in alignment(estimate, exact).items():
            metrics[f"cosine/{name}"] = cosine
            metrics[f"relative_error/{name}"] = error
        return metrics

    def state(self) -> dict[str, FloatArray]:
        """Return everything that training changes: target conductances and the optimiser's moments."""
        arrays: dict[str, FloatArray] = {"optimiser/count": np.array([float(self.optimiser.count)])}
        for crossbar in self.plan.netlist.trainable:
            for half, g in zip(("g_plus", "g_minus"), self.chip.target[crossbar.name], strict=True):
                if g is not None:
                    arrays[f"conductance/{crossbar.name}/{half}"] = g
        arrays |= {f"optimiser/{key}": array for key, array in self.optimiser.state.items()}
        return arrays

    def restore(self, state: Mapping[str, FloatArray]) -> None:
        """Go on from what `state` returned: the same numbers follow, bit for bit."""
        target = {}
        for crossbar in self.plan.netlist.trainable:
            minus = state.get(f"conductance/{crossbar.name}/g_minus")
            target[crossbar.name] = (state[f"conductance/{crossbar.name}/g_plus"], minus)
        self.chip = self.chip.reprogrammed(target)
        moments = {key.removeprefix("optimiser/"): array for key, array in state.items()}
        self.optimiser.restore(moments, int(state["optimiser/count"][0]))
