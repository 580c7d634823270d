"""A board that learns by itself, watched step by step while its samples come in turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuitsim.errors import SpecError
from circuitsim.instrument.simulated import SimulatedSubstrate
from circuitsim.learning.in_the_loop import SubstrateTrainer
from circuitsim.netlist.tables import FloatArray
from circuitsim.study.bench import Bench

__all__ = ["Trajectory", "watch_board"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What a board did.

    ``cost`` (steps + 1,) W is the mean over all training samples before the first step and after each;
    ``conductance`` (steps + 1, D) what the D devices really had, in fractions of their windows; ``period``
    the steps after which the samples come round again.
    """

    cost: FloatArray
    conductance: FloatArray
    period: int

    @property
    def travel(self) -> float:
        """Length of the way through the last period, Euclidean, in windows of a device."""
        last = self.conductance[-self.period - 1 :]
        return float(np.linalg.norm(np.diff(last, axis=0), axis=1).sum())

    @property
    def gap(self) -> float:
        """Distance between where the board is and where it was a period ago.

        Nought at rest and on a cycle; on a cycle `travel` is not.
        """
        return float(np.linalg.norm(self.conductance[-1] - self.conductance[-1 - self.period]))

    @property
    def late_cost(self) -> float:
        """Mean cost of the last period [W]."""
        return float(self.cost[-self.period :].mean())


def watch_board(bench: Bench, *, rounds: int, hold: int) -> Trajectory:
    """Show a board its training samples one by one, each ``hold`` times in a row, ``rounds`` times over.

    ``bench`` is connected to a simulated substrate, into which this looks: a host would not see what its
    devices have.

    Raises:
        SpecError: the bench's substrate is not simulated, or does not update itself.
        InstrumentError: a phase does not settle.
    """
    substrate = bench.substrate
    spec = bench.experiment.substrate
    if not isinstance(substrate, SimulatedSubstrate) or spec is None or spec.updates != "board":
        raise SpecError(
            "must be simulated, and update itself: its devices are looked at after every step",
            field="substrate",
            value=None if spec is None else spec.address,
            remedy="Write substrate: {address: simulated, updates: board}.",
        )
    trainer = bench.trainer(next(iter(bench.estimators.values())))
    if not isinstance(trainer, SubstrateTrainer):
        raise SpecError("must learn in situ", field="use.kind", value=bench.experiment.use.kind)
    inputs, labels = trainer.train.inputs, trainer.train.labels
    targets = trainer.cost.targets(labels, trainer.classes)

    def cost() -> float:
        outputs = trainer.phases.outputs(trainer.phases.free(inputs))
        return float(np.mean(trainer.cost.value(outputs, targets)))

    costs, conductances = [cost()], [_conductances(bench, substrate)]
    for _ in range(rounds):
        for sample in range(len(inputs)):
            for _ in range(hold):
                trainer.step(np.array([sample]))
                costs.append(cost())
                conductances.append(_conductances(bench, substrate))
    return Trajectory(cost=np.array(costs), conductance=np.array(conductances), period=hold * len(inputs))


def _conductances(bench: Bench, substrate: SimulatedSubstrate) -> FloatArray:
    """Return what all trainable devices have (D,), 0 and 1 being the ends of their windows."""
    state = substrate.state()
    found: list[FloatArray] = []
    for crossbar in bench.plan.netlist.trainable:
        there = np.ones(crossbar.shape, bool) if crossbar.mask is None else crossbar.mask
        for half in ("g_plus", "g_minus"):
            g = state.get(f"present/{crossbar.name}/{half}")
            if g is not None:
                found.append((g[there] - crossbar.g_min) / (crossbar.g_max - crossbar.g_min))
    return np.concatenate(found)
