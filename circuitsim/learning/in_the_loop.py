"""Learning on a substrate: the host sees readings, and nothing else.

The estimators are those of simulation, put through phases that hardware forms. The host knows the circuit as
it was designed, and what it asked for: exact gradients to compare with are those of that ideal circuit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuitsim.chip import Chip, Conductances, WriteReport
from circuitsim.chip.substrate import AgeingSubstrate, Phase, StatefulSubstrate, Substrate, Terminals
from circuitsim.errors import InstrumentError
from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.cost import Cost
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Crossbars, Gradient, alignment, local_rule
from circuitsim.learning.optimiser import Optimiser, OptimiserSpec
from circuitsim.learning.phases import Phases
from circuitsim.learning.scores import score_of
from circuitsim.learning.training import Samples, metric_names
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream
from circuitsim.solver import Plan, SolverSettings

__all__ = ["ReadPoint", "SubstratePhases", "SubstrateTrainer", "check_substrate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPoint:
    """A free phase as it was read: node voltages (B, N) V, those that sources hold as they were asked for."""

    node_voltage: FloatArray
    volts: FloatArray
    """Voltages (B, n_in) of the inputs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SubstratePhases:
    """The phases of a substrate, for estimators: what `Phases` is to a simulated circuit.

    Every phase is read ``averaging`` times.
    """

    substrate: Substrate
    terminals: Terminals
    cost: Cost
    averaging: int = 1

    @property
    def netlist(self) -> Netlist:
        return self.terminals.netlist

    def free(self, inputs: FloatArray, start: object = None) -> ReadPoint:
        """Return the free phase at inputs (B, n_in), in the network's own units."""
        volts = inputs * self.terminals.gain
        limits = self.substrate.capabilities
        limits.check_relax(volts, "free", None, self.averaging)
        readings = self.substrate.relax(volts, "free", None, self.averaging)
        # The host knows the codes that it asked for.
        return ReadPoint(
            node_voltage=self.terminals.voltages(readings, limits.dac.rounded(volts)), volts=volts
        )

    def outputs(self, point: ReadPoint) -> FloatArray:
        """Return output voltages (B, K) V."""
        return self.netlist.outputs.read(point.node_voltage)

    def nudged(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: ReadPoint,
        guess: object = None,
    ) -> FloatArray:
        """Return the change (B, N) V in the nudged phase."""
        return self._change("nudged", targets, beta, free)

    def corrected(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: ReadPoint,
        guess: object = None,
    ) -> FloatArray:
        """Return the change (B, N) V in the corrected phase."""
        return self._change("corrected", targets, beta, free)

    def dyadic(self, inputs: FloatArray, targets: FloatArray, beta: float, free: ReadPoint) -> FloatArray:
        """Return the voltages (B, N) V of the second network of a dyadic phase."""
        return self._change("dyadic", targets, beta, free)

    def rule(self, inputs: FloatArray, free: ReadPoint, s: FloatArray) -> Crossbars:
        """Return dC/dg: drop times change of drop per unit of beta, both as if lines had no resistance."""
        return local_rule(self.netlist, free.node_voltage, s, at_ports=True)

    def _change(self, phase: Phase, targets: FloatArray, beta: float, free: ReadPoint) -> FloatArray:
        nudge = self.cost.nudge(targets, beta)
        self.substrate.capabilities.check_relax(free.volts, phase, nudge, self.averaging)
        return self.terminals.changes(self.substrate.relax(free.volts, phase, nudge, self.averaging))


def check_substrate(substrate: Substrate, netlist: Netlist, cost: Cost, estimator: Estimator | None) -> None:
    """Refuse a substrate that is not the circuit that the host means, or cannot do what an estimator needs.

    Raises:
        InstrumentError: naming what differs.
    """
    found, terminals = substrate.capabilities, Terminals.of(netlist)
    crossbars = {crossbar.name: crossbar.shape for crossbar in netlist.trainable}
    there = {crossbar.name: crossbar.shape for crossbar in found.crossbars}
    remedy = "Give the substrate and the experiment the same network."
    for what, own, other in (
        ("inputs", netlist.inputs.size, found.inputs),
        ("outputs", len(netlist.outputs.pos), found.outputs),
        ("crossbars", crossbars, there),
        ("readings", terminals.names, tuple(found.readings)),
        ("cost", cost.kind, found.nudge.kind),
    ):
        if own != other:
            rule = f"holds another circuit than {netlist.title}"
            raise InstrumentError(rule, object=found.identity, field=what, value=other, remedy=remedy)
    if estimator is None:
        return
    needed = getattr(estimator, "phase", None)
    if needed is None:
        raise InstrumentError(
            f"cannot form what the estimator {estimator.label} needs: that is no phase of a circuit",
            object=found.identity,
            field="estimators",
            value=estimator.label,
            remedy="Use ep, asymep or dyadic.",
        )
    if needed not in found.phases:
        raise InstrumentError(
            f"cannot form the phase that the estimator {estimator.label} needs",
            object=found.identity,
            field="phases",
            value=found.phases,
        )


class SubstrateTrainer:
    """One estimator learning on a substrate. `epoch` advances it; `state` is all that it needs to go on.

    ``model`` is the circuit as designed: the host's idea of the substrate, with the conductances that it
    asked for. Cosines and errors compare what was read to that circuit's exact gradient.

    With ``updates: host`` the host reads, steps and programs. With ``board`` circuits at the devices learn by
    themselves, by plain gradient steps whose rates the optimiser's ``step`` and ``rates`` give.
    """

    def __init__(
        self,
        *,
        substrate: Substrate,
        model: Chip,
        plan: Plan,
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
        averaging: int = 1,
        updates: str = "host",
        age: float = 0.0,
        settings: SolverSettings | None = None,
    ) -> None:
        check_substrate(substrate, plan.netlist, cost, estimator)
        limits = substrate.capabilities
        if updates == "host" and not limits.host_writes:
            raise InstrumentError(
                "takes no conductances from the host", object=limits.identity, remedy="Use updates: board."
            )
        if updates == "board" and not limits.updates_itself:
            raise InstrumentError(
                "cannot learn by itself", object=limits.identity, remedy="Use updates: host."
            )
        self.substrate = substrate
        self.model = model
        self.plan = plan
        self.cost = cost
        self.estimator = estimator
        self.optimiser = Optimiser(optimiser, plan.netlist, cost.conductance, "float64")
        self.train = train
        self.test = test
        self.classes = classes
        self.score = score_of(cost, classes)
        self.batch = batch
        self.epochs = epochs
        self.seed = seed
        self.updates = updates
        if age and not (isinstance(substrate, AgeingSubstrate) and isinstance(substrate, StatefulSubstrate)):
            raise InstrumentError(
                "cannot be measured at an age and then go on as it was",
                object=limits.identity,
                field="age",
                value=age,
                remedy="Leave age out.",
            )
        self.age = age
        self.settings = settings or SolverSettings(check=False)
        self.phases = SubstratePhases(
            substrate=substrate, terminals=Terminals.of(plan.netlist), cost=cost, averaging=averaging
        )
        self._probe = stream(seed, "probe").permutation(len(train))[:probe]
        self._targets = cost.targets(train.labels, classes)
        self._achieved: Conductances | None = None
        self._writes = 0

    @property
    def chip(self) -> Chip:
        """The host's idea of the die: the circuit as designed, with the conductances that were asked for."""
        return self.model

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of what `epoch` returns, in order; those that no reading can tell are NaN."""
        return metric_names(self.score, self.plan.netlist, "programming_error")

    def transfer(self, target: Conductances, programming: object = None) -> WriteReport:
        """Write conductances that were learned elsewhere; how is the substrate's own business."""
        before = self._writes
        self._program(target)
        return WriteReport(writes=self._writes - before)

    def _start(self) -> None:
        if self._achieved is None:
            self._program(self.model.target)

    def _program(self, target: Conductances) -> None:
        trainable = [crossbar.name for crossbar in self.plan.netlist.trainable]
        asked = {name: target[name] for name in trainable}
        self.substrate.capabilities.check_program(asked)
        self._writes += sum(
            int((g != before).sum())
            for name in trainable
            for g, before in zip(asked[name], self.model.target[name], strict=True)
            if g is not None and before is not None
        )
        self._achieved = self.substrate.program(asked)
        self.model = self.model.programmed(asked)

    @property
    def programming_error(self) -> float:
        """RMS of what was read back minus what was asked, over the window; NaN where nothing was written."""
        if self._achieved is None or self.updates == "board":
            return math.nan
        square, count = 0.0, 0
        for crossbar in self.plan.netlist.trainable:
            window = crossbar.g_max - crossbar.g_min
            pairs = self._achieved[crossbar.name], self.model.target[crossbar.name]
            for found, asked in zip(*pairs, strict=True):
                if found is None or asked is None:
                    continue
                error = (found - asked) / window
                there = np.ones(error.shape, bool) if crossbar.mask is None else crossbar.mask
                square += float((error[there] ** 2).sum())
                count += int(there.sum())
        return math.sqrt(square / max(count, 1))

    def epoch(
        self,
        number: int,
        on_step: Callable[[int, int, Mapping[str, float]], None] = lambda step, steps, running: None,
    ) -> dict[str, float]:
        """Train one epoch (from 0) and return its metrics, see `Trainer.epoch`.

        Raises:
            InstrumentError: the substrate is gone, or refuses.
        """
        started = time.perf_counter()
        self._start()
        order = stream(self.seed, "shuffle", number).permutation(len(self.train))
        parts = np.array_split(order, max(1, round(len(order) / self.batch)))
        factor = self.optimiser.spec.schedule.factor(number, self.epochs)
        cost, total, seen, writes = 0.0, 0.0, 0, self._writes
        for step, rows in enumerate(parts):
            gradient = self.step(rows, factor)
            seen += len(rows)
            cost += gradient.cost * len(rows)
            total += self.score.total(gradient.outputs, self.train.labels[rows])
            running = {"train_cost": cost / seen, f"train_{self.score.name}": self.score.mean(total, seen)}
            on_step(step + 1, len(parts), running)
        metrics = {
            "train_cost": cost / len(order),
            f"train_{self.score.name}": self.score.mean(total, len(order)),
            "seconds": time.perf_counter() - started,
            "writes": float(self._writes - writes),
        }
        metrics |= self.measure()
        return {name: metrics.get(name, math.nan) for name in self.metric_names}

    def step(self, rows: IntArray, factor: float = 1.0) -> Gradient:
        """Learn from the training samples ``rows`` once."""
        self._start()
        inputs, targets = self.train.inputs[rows], self._targets[rows]
        if self.updates == "board":
            self.optimiser.count += 1
            return self._estimate(inputs, targets, self._rates(factor))
        gradient = self._estimate(inputs, targets)
        self._program(self.optimiser.step(self.model.target, gradient, factor))
        return gradient

    def _estimate(
        self, inputs: FloatArray, targets: FloatArray, rates: Mapping[str, float] | None = None
    ) -> Gradient:
        """Return the gradient of a batch, in as many parts as the substrate needs.

        With ``rates`` the devices learn from each part, by its share.
        """
        count = math.ceil(len(inputs) / self.substrate.capabilities.most_samples)
        parts = []
        for rows in np.array_split(np.arange(len(inputs)), count):
            parts.append(self.estimator.estimate(self.phases, inputs[rows], targets[rows]))
            if rates is not None:
                share = len(rows) / len(inputs)
                self._writes += self.substrate.update({name: rate * share for name, rate in rates.items()})
        return parts[0] if count == 1 else _together(parts)

    def _rates(self, factor: float) -> dict[str, float]:
        """Return the rate of each crossbar [S per W/S]."""
        spec = self.optimiser.spec
        return {
            crossbar.name: spec.step
            * factor
            * spec.rate_of(crossbar.name)
            * (crossbar.g_max - crossbar.g_min) ** 2
            / self.cost.conductance
            for crossbar in self.plan.netlist.trainable
        }

    def measure(self, *, learns: bool = True) -> dict[str, float]:
        """Return the metrics that do not train: test set, alignment, programming error.

        They are measured ``age`` [s] after the last write; the substrate then is brought back.
        """
        self._start()
        substrate = self.substrate
        if not self.age:
            return self._measured(learns)
        assert isinstance(substrate, AgeingSubstrate)
        assert isinstance(substrate, StatefulSubstrate)
        kept = substrate.state()
        substrate.wait(self.age)
        try:
            return self._measured(learns)
        finally:
            substrate.restore(kept)

    def _measured(self, learns: bool) -> dict[str, float]:
        most = min(1000, self.substrate.capabilities.most_samples)
        outputs = [
            self.phases.outputs(self.phases.free(self.test.inputs[start : start + most]))
            for start in range(0, len(self.test), most)
        ]
        y = np.concatenate(outputs)
        wanted = self.cost.targets(self.test.labels, self.classes)
        metrics = {
            "test_cost": float(np.mean(self.cost.value(y, wanted))),
            f"test_{self.score.name}": self.score.mean(self.score.total(y, self.test.labels), len(self.test)),
            "settling_time": self.substrate.capabilities.settling_time,
            "programming_error": self.programming_error,
        }
        inputs, targets = self.train.inputs[self._probe], self._targets[self._probe]
        crossbars = [crossbar.name for crossbar in self.plan.netlist.trainable]
        found = dict.fromkeys(crossbars, (math.nan, math.nan))
        if self.updates == "host":
            try:
                estimate = self._estimate(inputs, targets)
            except InstrumentError:
                if learns:
                    raise
            else:
                found = alignment(estimate, self._exact(inputs, targets))
        for name, (cosine, error) in found.items():
            metrics[f"cosine/{name}"] = cosine
            metrics[f"relative_error/{name}"] = error
        return metrics

    def _exact(self, inputs: FloatArray, targets: FloatArray) -> Gradient:
        model = Phases(plan=self.plan, values=self.model.values, cost=self.cost, settings=self.settings)
        return Adjoint().estimate(model, inputs, targets)

    def state(self) -> dict[str, FloatArray]:
        """Return everything that training changes, the substrate's own state with it where it has one."""
        achieved = self.model.target if self._achieved is None else self._achieved
        counts = [float(self.optimiser.count), float(self._writes)]
        arrays = {"optimiser/count": np.array(counts)}
        arrays |= {f"optimiser/{key}": array for key, array in self.optimiser.state.items()}
        for place, pairs in (("conductance", self.model.target), ("read back", achieved)):
            for crossbar in self.plan.netlist.trainable:
                for half, g in zip(("g_plus", "g_minus"), pairs[crossbar.name], strict=True):
                    if g is not None:
                        arrays[f"{place}/{crossbar.name}/{half}"] = g
        if isinstance(self.substrate, StatefulSubstrate):
            arrays |= {f"substrate/{key}": array for key, array in self.substrate.state().items()}
        return arrays

    def restore(self, state: Mapping[str, FloatArray], *, finished: bool = False) -> None:
        """Go on from what `state` returned. ``finished``: leave the substrate as it is.

        A substrate that cannot bring back its state is programmed again: noise and what it forgot are then
        others.

        Raises:
            InstrumentError: the substrate has lost a state that it had kept.
        """
        moments = {key.removeprefix("optimiser/"): array for key, array in state.items()}
        count, writes = state["optimiser/count"]
        self.optimiser.restore(moments, int(count))

        def kept(place: str) -> dict[str, tuple[FloatArray, FloatArray | None]]:
            return {
                crossbar.name: (
                    np.array(state[f"{place}/{crossbar.name}/g_plus"]),
                    state.get(f"{place}/{crossbar.name}/g_minus"),
                )
                for crossbar in self.plan.netlist.trainable
            }

        target = kept("conductance")
        if finished:
            self.model = self.model.programmed(target)
            self._achieved = kept("read back")
        elif isinstance(self.substrate, StatefulSubstrate):
            own = {k.removeprefix("substrate/"): a for k, a in state.items() if k.startswith("substrate/")}
            self.substrate.restore(own)
            self.model = self.model.programmed(target)
            self._achieved = kept("read back")
        else:
            self._program(target)
        self._writes = int(writes)


def _together(parts: Sequence[Gradient]) -> Gradient:
    """Return the gradient of a batch from those of its parts."""
    sizes = np.array([len(part.outputs) for part in parts], dtype=np.float64)
    shares = sizes / sizes.sum()
    crossbars: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    for name, (_, minus) in parts[0].crossbars.items():
        pairs = [part.crossbars[name] for part in parts]
        plus = sum(share * pair[0] for share, pair in zip(shares, pairs, strict=True))
        other = None
        if minus is not None:
            other = sum(share * np.asarray(pair[1]) for share, pair in zip(shares, pairs, strict=True))
        crossbars[name] = np.asarray(plus), None if other is None else np.asarray(other)
    return replace(
        parts[0],
        crossbars=crossbars,
        cost=float(sum(share * part.cost for share, part in zip(shares, parts, strict=True))),
        outputs=np.concatenate([part.outputs for part in parts]),
    )
