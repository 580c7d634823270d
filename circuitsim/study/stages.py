"""Ways of using a die that begin elsewhere: software or another die first, then this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from circuitsim.chip import Chip, WriteReport, fabricate
from circuitsim.chip.substrate import StatefulSubstrate
from circuitsim.devices import DeviceCard
from circuitsim.learning import Gradient, Phases, Trainer
from circuitsim.learning.in_the_loop import SubstrateTrainer
from circuitsim.learning.writing import ProgrammingSpec
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream

__all__ = ["NoiseAwareTrainer", "StagedTrainer"]

_POSITIVE = frozenset({"conductance", "capacitance", "saturation", "saturation_current", "slope_voltage"})

Step = Callable[[int, int, Mapping[str, float]], None]


class NoiseAwareTrainer(Trainer):
    """Learns in software on a die of its own for every step, so that what it learns bears mismatch."""

    card: DeviceCard
    noise: float

    @classmethod
    def of(cls, trainer: Trainer, card: DeviceCard, *, noise: float) -> NoiseAwareTrainer:
        """Return a trainer like ``trainer``, whose steps meet ``noise`` times the spreads of a card."""
        found = cls.__new__(cls)
        found.__dict__.update(vars(trainer))
        found.card, found.noise = card, noise
        return found

    def step(self, rows: IntArray, factor: float = 1.0) -> Gradient:
        """Learn once: the gradient is that of a die drawn for this step, set to the present conductances."""
        self._steps += 1
        seed = int(stream(self.seed, "noise aware", self._steps).integers(2**62))
        die = fabricate(self.plan.netlist, self.card, seed=seed, copy=False)
        # Where a card has no noise of writing, its devices' mismatch and bounds are what there is.
        noisy = self.card.crossbar.programming is not None
        die = die.write(self.chip.target) if noisy else die.reprogrammed(self.chip.target)
        values = _between(self.chip.values, die.values, self.noise)
        phases = Phases(plan=self.plan, values=values, cost=self.cost, settings=self.settings)
        gradient = self.estimator.estimate(phases, self.train.inputs[rows], self._targets[rows])
        target = self.optimiser.step(self.chip.target, gradient, factor)
        self.chip = self.chip.reprogrammed(target)
        return gradient


class StagedTrainer:
    """A first trainer, a transfer of what it learned, and a trainer on the die; epochs run through all."""

    def __init__(
        self,
        *,
        first: Trainer,
        die: Trainer | SubstrateTrainer,
        epochs: int,
        fine_tune: int,
        programming: ProgrammingSpec,
    ) -> None:
        self.first, self.die = first, die
        self.programming = programming
        self.epochs = epochs + 1 + fine_tune
        self._transfer = epochs
        self._on_die = False

    @property
    def chip(self) -> Chip:
        return self.die.chip if self._on_die else self.first.chip

    @property
    def plan(self) -> Any:
        return (self.die if self._on_die else self.first).plan

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.die.metric_names

    def epoch(self, number: int, on_step: Step = lambda step, steps, running: None) -> dict[str, float]:
        """Do one epoch (from 0); that of the transfer writes the die and measures it, and learns nothing."""
        if number < self._transfer:
            # What only the die knows is not a number yet.
            return dict.fromkeys(self.metric_names, np.nan) | self.first.epoch(number, on_step)
        if number > self._transfer:
            return self.die.epoch(number - self._transfer - 1, on_step)
        report = self._write()
        self._on_die = True
        metrics = dict.fromkeys(self.metric_names, np.nan)
        metrics |= self.die.measure(learns=False) | {"seconds": 0.0, "writes": float(report.writes)}
        metrics["step_energy"] = report.energy
        on_step(1, 1, {})
        return metrics

    def measure(self) -> dict[str, float]:
        """Return the metrics of the stage that it is in."""
        return (self.die if self._on_die else self.first).measure()

    def state(self) -> dict[str, FloatArray]:
        """Return the state of both trainers: that of the die as it is, of the first under ``first/``."""
        arrays = self.die.state()
        arrays |= {f"first/{key}": array for key, array in self.first.state().items()}
        return arrays | {"stage": np.array([float(self._on_die)])}

    def restore(self, state: Mapping[str, FloatArray], *, finished: bool = False) -> None:
        """Go on from what `state` returned. ``finished``: only what was learned is wanted."""
        self._on_die = bool(state["stage"][0])
        first = {
            key.removeprefix("first/"): value for key, value in state.items() if key.startswith("first/")
        }
        self.first.restore(first)
        if self._on_die and isinstance(self.die, Trainer):
            # Devices that do not learn are as the transfer wrote them.
            self._write()
        # A substrate may have been written since: an interrupted transfer. One without a memory waits for it.
        keeps = isinstance(self.die, SubstrateTrainer) and isinstance(self.die.substrate, StatefulSubstrate)
        self.die.restore(state, finished=finished or not (self._on_die or keeps))

    def _write(self) -> WriteReport:
        return self.die.transfer(self.first.chip.target, self.programming)


def _between(ideal: Values, noisy: Values, noise: float) -> Values:
    """Return ``ideal + noise (noisy - ideal)`` for every value that is finite."""
    if noise == 1:
        return noisy

    def mixed(a: FloatArray, b: FloatArray, column: str = "") -> FloatArray:
        with np.errstate(invalid="ignore"):
            found = np.where(np.isfinite(a) & np.isfinite(b), a + noise * (b - a), a)
        # Fabrication lets none of these fall below a tenth either.
        return np.maximum(found, 0.1 * a) if column in _POSITIVE else found

    crossbars: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    for name, (plus, minus) in ideal.crossbars.items():
        p, m = noisy.crossbars[name]
        crossbars[name] = (
            np.maximum(mixed(plus, p), 0.0),
            None if minus is None or m is None else np.maximum(mixed(minus, m), 0.0),
        )
    banks = {
        name: {column: mixed(a, noisy.banks[name][column], column) for column, a in columns.items()}
        for name, columns in ideal.banks.items()
    }
    senses = {name: mixed(a, noisy.senses[name]) for name, a in ideal.senses.items()}
    tables = {
        kind: {column: mixed(a, noisy.tables[kind][column], column) for column, a in columns.items()}
        for kind, columns in ideal.tables.items()
    }
    return replace(noisy, tables=tables, crossbars=crossbars, banks=banks, senses=senses)
