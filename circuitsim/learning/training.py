"""Learning on one die: epochs of estimate, step, program; each epoch measured on held-out samples.

What a die's devices, converters and reads do to it is drawn from streams keyed by the number of the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitsim.chip import Chip, Conductances, WriteReport
from circuitsim.chip.energy import settling_time
from circuitsim.errors import ConvergenceError, DeviceError
from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.compiled_step import CompiledStep
from circuitsim.learning.cost import Cost
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.dyadic_bp import DyadicBP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Gradient, alignment
from circuitsim.learning.optimiser import Optimiser, OptimiserSpec
from circuitsim.learning.phases import Phases
from circuitsim.learning.readout import MeasuredPhases, ReadoutSpec, chip_converters, needs_readings
from circuitsim.learning.scores import Score, score_of
from circuitsim.learning.writing import DeviceWriter, ProgrammingSpec, UpdateSpec
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream
from circuitsim.solver import Drive, Plan, SolverSettings, solve

__all__ = ["Samples", "Trainer", "metric_names"]

_CHECKED = 1000
"""Test samples solved at once, and those of them whose residual and power are measured."""
_SETTLED = 1e-3
"""How far a phase settles where no converter says how far it must."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Inputs (n, n_in) with class labels (n,), or with wanted outputs (n, K) V."""

    inputs: FloatArray
    labels: IntArray | FloatArray

    def __len__(self) -> int:
        return len(self.labels)


def metric_names(score: Score, netlist: Netlist, *more: str) -> tuple[str, ...]:
    """Return what an epoch is measured by, in the order of records; ``more`` comes before the alignments."""
    names = (
        "train_cost",
        f"train_{score.name}",
        "test_cost",
        f"test_{score.name}",
        "kcl_residual",
        "power",
        "seconds",
        "settling_time",
        "inference_energy",
        "step_energy",
        "writes",
        *more,
    )
    crossbars = [crossbar.name for crossbar in netlist.trainable]
    return (*names, *(f"{kind}/{name}" for kind in ("cosine", "relative_error") for name in crossbars))


class Trainer:
    """One estimator learning on one die. `epoch` advances it; `state` is all it needs to go on.

    Where devices take exactly what they are asked for and nothing disturbs a reading, steps of small batches
    write conductances where they are; `chip` is then made when it is asked for.

    ``classes`` is None where the labels are wanted outputs: these are scored by their RMS error in V,
    classes by accuracy. ``update`` says how steps reach the devices, ``readout`` how voltages are read;
    metrics are measured ``age`` [s] after the last write.

    The adjoint is no circuit's: it reads nothing, and knows the present conductances.
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
        update: UpdateSpec | None = None,
        readout: ReadoutSpec | None = None,
        age: float = 0.0,
        written: bool = False,
    ) -> None:
        self.settings = settings or SolverSettings(check=False)
        self.plan = plan
        if not isinstance(estimator, (Dyadic, DyadicBP)):
            chip = chip.without_copy()
        if self.settings.precision == "float32":
            chip = chip.in_precision("float32")
        self.writer = DeviceWriter(update or UpdateSpec(), seed)
        self._chip = self.writer.prepare(chip)
        self._learned: Conductances | None = None
        """Conductances of a chip that is yet to be made: those that compiled steps work on."""
        self._compiled: CompiledStep | None = None
        self.readout = readout or ReadoutSpec()
        self.age = age
        # Drift has draws of its own for every write: which one the last was counts.
        drifts = chip.card.crossbar.drift is not None
        self._stores_devices = written or drifts or self.writer.method != "ideal"
        self._dac, self._adc = chip_converters(chip)
        self._reads = needs_readings(chip, self.readout, plan.chosen(self.settings))
        if isinstance(estimator, DyadicBP) and self._reads:
            _check_clocked(chip, self.readout)
        self._steps = 0
        self.cost = cost
        self.estimator = estimator
        self.optimiser = Optimiser(optimiser, plan.netlist, cost.conductance, self.settings.precision)
        self.train = self._driven(train)
        self.test = self._driven(test)
        self.classes = classes
        self.score = score_of(cost, classes)
        self.batch = batch
        self.epochs = epochs
        self.seed = seed
        # Faults and copies change phases, writers and drift what devices do with a step.
        self._compilable = (
            self.writer.plain
            and not (self._reads or chip.noisy or drifts or written)
            and chip.correction is None
            and chip.copy is None
        )
        self._probe = stream(seed, "probe").permutation(len(train))[:probe]
        self._targets = cost.targets(train.labels, classes)

    @property
    def chip(self) -> Chip:
        """The die as it is now."""
        if self._learned is not None:
            learned, self._learned = self._learned, None
            self._chip = self._chip.reprogrammed(
                {
                    name: (plus.copy(), None if minus is None else minus.copy())
                    for name, (plus, minus) in learned.items()
                }
            )
        return self._chip

    @chip.setter
    def chip(self, chip: Chip) -> None:
        self._chip, self._learned, self._compiled = chip, None, None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of what `epoch` returns, in order."""
        return metric_names(self.score, self.plan.netlist)

    def phases(self, chip: Chip | None = None) -> Phases:
        """Return the phases of the die as it is now, or of another state of it, without readings."""
        chip = chip or self.chip
        return Phases(
            plan=self.plan,
            values=chip.values,
            cost=self.cost,
            settings=self.settings,
            correction=chip.correction,
            dual=chip.dual,
        )

    def measured(self, *key: str | int, chip: Chip | None = None) -> Phases:
        """Return the phases as they are read; ``key`` tells readings apart."""
        chip = chip or self.chip
        phases = self.phases(chip)
        if not self._reads or isinstance(self.estimator, Adjoint):
            return phases
        values, dual = chip.values, chip.dual
        if chip.noisy:
            values = chip.read(*key, fast=False)
            if dual is not None and chip.copy is not None:
                dual = replace(dual, values=chip.copy.read(*key, fast=False))
        return MeasuredPhases(
            plan=self.plan,
            values=values,
            cost=self.cost,
            settings=self.settings,
            correction=chip.correction,
            dual=dual,
            chip=chip,
            readout=self.readout,
            adc=self._adc,
            key=(self.seed, *key),
        )

    def _driven(self, samples: Samples) -> Samples:
        """Return samples as the DACs put them out."""
        if self._dac is None:
            return samples
        gain = self._input_gain
        inputs = self._dac.driven(samples.inputs * gain) / gain
        return Samples(inputs=inputs, labels=samples.labels)

    @property
    def _input_gain(self) -> FloatArray:
        """Volts per unit of every input (n_in,)."""
        port = self.plan.netlist.inputs
        gain = np.ones(port.size)
        gain[port.column] = np.where(port.gain == 0, 1.0, np.abs(port.gain))
        return gain

    def _sampled(self, inputs: FloatArray, *key: str | int) -> FloatArray:
        """Return inputs with what the DACs add to every sample."""
        if self._dac is None or not self._dac.card.noise:
            return inputs
        normal = stream(self.chip.seed, "dac", self.seed, *key).standard_normal(inputs.shape)
        return inputs + self._dac.card.noise / self._input_gain * normal

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
        writes, energy = self.writer.writes, self.writer.energy
        phases = 1
        for step, rows in enumerate(parts):
            gradient = self.step(rows, factor)
            phases = len(gradient.phases)
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
            "writes": float(self.writer.writes - writes),
        }
        metrics |= self.measure()
        presented = phases * len(order) / len(parts)
        metrics["step_energy"] = presented * metrics["inference_energy"] + (
            self.writer.energy - energy
        ) / len(parts)
        return {name: metrics[name] for name in self.metric_names}

    def step(self, rows: IntArray, factor: float = 1.0) -> Gradient:
        """Learn from the training samples ``rows`` once: estimate, step, program."""
        return self.learn(self.train.inputs[rows], self._targets[rows], factor)

    def learn(self, inputs: FloatArray, targets: FloatArray, factor: float = 1.0) -> Gradient:
        """Learn once from inputs (B, n_in) and targets (B, K)."""
        self._steps += 1
        inputs = self._sampled(inputs, self._steps)
        compiled = self._compiled_step(len(inputs))
        found = None if compiled is None else compiled.learn(inputs, targets, self.optimiser, factor)
        if compiled is not None and found is not None:
            self._learned = compiled.conductance
            return found
        phases = self.measured("step", self._steps) if self._reads else self.phases()
        gradient = self.estimator.estimate(phases, inputs, targets)
        old = self.writer.conductance(self.chip)
        self.chip = self.writer.apply(self.chip, old, self.optimiser.step(old, gradient, factor))
        return gradient

    def _compiled_step(self, batch: int) -> CompiledStep | None:
        """Return what takes steps of this many samples, None where they are put together from phases."""
        if self._compiled is None and self._compilable:
            chip = self.chip
            if chip.exact and chip.matched:
                self._compiled = CompiledStep.of(
                    self.plan, chip.values, self.cost, self.estimator, self.settings
                )
            self._compilable = self._compiled is not None
        return self._compiled if self._compiled is not None and self._compiled.fits(batch) else None

    def measure(self, *, learns: bool = True) -> dict[str, float]:
        """Return the metrics that do not train: test set, residual, power, gradient alignment.

        The residual and the power are those of the first `_CHECKED` test samples. Of a die that does not
        learn (``learns`` false), alignment is NaN where its phases have no stable point.

        Raises:
            ConvergenceError: a phase did not converge.
        """
        netlist = self.plan.netlist
        checked = SolverSettings(
            method=self.settings.method,
            precision=self.settings.precision,
            relative_tolerance=self.settings.relative_tolerance,
            max_iterations=self.settings.max_iterations,
            check=True,
        )
        chip = self.chip.aged(self.age) if self.age else self.chip
        phases = self.phases(chip)
        measured = self.measured("test", self._steps, chip=chip)
        values = measured.present("free") if isinstance(measured, MeasuredPhases) else measured.values
        tested = self._sampled(self.test.inputs, "test", self._steps)
        point = solve(self.plan, values, Drive(inputs=tested[:_CHECKED]), checked)
        outputs = [netlist.outputs.read(point.node_voltage)]
        for start in range(_CHECKED, len(tested), _CHECKED):
            outputs.append(measured.outputs(measured.free(tested[start : start + _CHECKED])))
        y = np.concatenate(outputs)
        if isinstance(measured, MeasuredPhases):
            y = measured.read_voltage(y)
        metrics = {
            "test_cost": float(
                np.mean(self.cost.value(y, self.cost.targets(self.test.labels, self.classes)))
            ),
            f"test_{self.score.name}": self.score.mean(self.score.total(y, self.test.labels), len(self.test)),
            "kcl_residual": float(point.relative_residual.max()),
            "power": float(point.power.mean()),
        }
        accuracy = _SETTLED if self._adc is None else 0.5 / 2**self._adc.card.bits
        metrics["settling_time"] = settling_time(self.plan, chip, accuracy=accuracy)
        metrics["inference_energy"] = metrics["power"] * metrics["settling_time"]
        inputs, targets = self.train.inputs[self._probe], self._targets[self._probe]
        free = phases.free(inputs)
        exact = Adjoint().estimate(phases, inputs, targets, free=free)
        try:
            if self._reads:
                read = self.measured("probe", self._steps, chip=chip)
                estimate = self.estimator.estimate(read, self._sampled(inputs, "probe", self._steps), targets)
            else:
                estimate = self.estimator.estimate(phases, inputs, targets, free=free)
        except ConvergenceError:
            if learns:
                raise
            found = dict.fromkeys(exact.crossbars, (np.nan, np.nan))
        else:
            found = alignment(estimate, exact)
        for name, (cosine, error) in found.items():
            metrics[f"cosine/{name}"] = cosine
            metrics[f"relative_error/{name}"] = error
        return metrics

    def state(self) -> dict[str, FloatArray]:
        """Return everything that training changes: conductances, the optimiser's moments, the devices."""
        arrays: dict[str, FloatArray] = {"optimiser/count": np.array([float(self.optimiser.count)])}
        self._keep(arrays, "conductance", self.chip.target)
        arrays |= {f"optimiser/{key}": array for key, array in self.optimiser.state.items()}
        if self._stores_devices:
            counts = (
                self.writer.steps,
                self.writer.writes,
                self.writer.energy,
                self.chip.writes,
                self.chip.matched,
            )
            arrays["device/counts"] = np.array(counts, dtype=np.float64)
            arrays |= {f"device/pending/{key}": array for key, array in self.writer.state.items()}
            chips = {"device": self.chip}
            if self.chip.copy is not None:
                chips["device/copy"] = self.chip.copy
            for place, chip in chips.items():
                self._keep(arrays, f"{place}/written", chip.written)
                self._keep(arrays, f"{place}/present", chip.values.crossbars)
        return arrays

    def transfer(self, target: Conductances, programming: ProgrammingSpec) -> WriteReport:
        """Write conductances that were learned elsewhere."""
        chip = programming.apply(self.chip, target)
        self.chip = chip.in_precision("float32") if self.settings.precision == "float32" else chip
        return chip.report

    def _keep(self, arrays: dict[str, FloatArray], place: str, pairs: Conductances) -> None:
        for crossbar in self.plan.netlist.trainable:
            for half, g in zip(("g_plus", "g_minus"), pairs[crossbar.name], strict=True):
                if g is not None:
                    arrays[f"{place}/{crossbar.name}/{half}"] = g

    def _kept(self, state: Mapping[str, FloatArray], place: str) -> dict[str, Any]:
        found = {}
        for crossbar in self.plan.netlist.trainable:
            minus = state.get(f"{place}/{crossbar.name}/g_minus")
            found[crossbar.name] = (state[f"{place}/{crossbar.name}/g_plus"], minus)
        return found

    def restore(self, state: Mapping[str, FloatArray], *, finished: bool = False) -> None:
        """Go on from what `state` returned: the same numbers follow, bit for bit.

        ``finished``: only what was learned is wanted. It makes no difference to a simulated die.
        """
        moments = {key.removeprefix("optimiser/"): array for key, array in state.items()}
        self.optimiser.restore(moments, int(state["optimiser/count"][0]))
        self._steps = self.optimiser.count
        target = self._kept(state, "conductance")
        if not self._stores_devices:
            self.chip = self.chip.reprogrammed(target)
            return
        counts = state["device/counts"]
        pending = {
            key.removeprefix("device/pending/"): array
            for key, array in state.items()
            if key.startswith("device/pending/")
        }
        self.writer.restore(pending, counts)
        restored = self._as_stored(self.chip, state, "device", target, counts)
        if self.chip.copy is not None:
            copy = self._as_stored(self.chip.copy, state, "device/copy", target, counts)
            restored = replace(restored, copy=copy)
        self.chip = restored

    def _as_stored(
        self, chip: Chip, state: Mapping[str, FloatArray], place: str, target: Any, counts: FloatArray
    ) -> Chip:
        written, present = self._kept(state, f"{place}/written"), self._kept(state, f"{place}/present")
        return chip.restored(target, written, present, int(counts[3]), matched=bool(counts[4]))


def _check_clocked(chip: Chip, readout: ReadoutSpec) -> None:
    """Refuse what a clocked pipeline does not model: converters, and noise that differs between phases.

    Raises:
        DeviceError: with what the card has of it.
    """
    fast = [noise.kind for noise in chip.card.crossbar.read_noise if noise.kind != "flicker"]
    field = "crossbar.read_noise" if fast else "adc"
    if fast or (readout.rule == "read" and chip.card.adc is not None):
        raise DeviceError(
            "dyadic_bp has no phases to read: it knows neither converters nor fast noise",
            object=chip.card.name,
            field=field,
            value=", ".join(fast) or None,
            remedy="Choose dyadic or asymep, a card without it, or readout.rule: local.",
        )
