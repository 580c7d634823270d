"""Dies with cards of all kinds, ready to learn or to be read, for the tests of readings and of writing."""

from __future__ import annotations

from typing import Any

import numpy as np
from circuits import network_document, random_inputs
from learners import COSTS

from circuitsim.chip import fabricate
from circuitsim.compiler import compile_network
from circuitsim.devices import DeviceCard
from circuitsim.learning import Cost, OptimiserSpec, Phases, Samples, Trainer
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.readout import MeasuredPhases, ReadoutSpec, chip_converters
from circuitsim.learning.writing import UpdateSpec
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.solver import SolverSettings, build_plan

TIGHT = {"relative_tolerance": 1e-13, "max_iterations": 1000}


def card(**sections: Any) -> DeviceCard:
    return DeviceCard.model_validate({"name": "test", "source": "test", **sections})


class Reading:
    """One die with a batch: phases as they are, and as a host reads them."""

    def __init__(
        self,
        die: DeviceCard | None = None,
        *,
        document: dict[str, Any] | None = None,
        batch: int = 8,
        same: bool = False,
        seed: int = 1,
        **settings: Any,
    ) -> None:
        spec = parse_network((document or network_document()) | {"cost": COSTS["squared error"]})
        self.netlist = compile_network(spec, seed=seed)
        self.chip = fabricate(self.netlist, die, seed=seed)
        if settings.get("precision") == "float32":
            self.chip = self.chip.in_precision("float32")
        self.phases = Phases(
            plan=build_plan(self.netlist),
            values=self.chip.values,
            cost=Cost.of(spec),
            settings=SolverSettings(check=False, **settings),
            correction=self.chip.correction,
            dual=self.chip.dual,
        )
        inputs = random_inputs(seed, 1 if same else batch, spec.input_size)
        self.inputs = np.repeat(inputs, batch, axis=0) if same else inputs
        self.targets = self.phases.cost.targets(np.arange(len(self.inputs)) % 2, spec.output_size)

    def measured(self, *key: str | int, **readout: Any) -> MeasuredPhases:
        p, chip = self.phases, self.chip
        values, dual = chip.values, chip.dual
        if chip.noisy:
            values = chip.read(*key, fast=False)
        return MeasuredPhases(
            plan=p.plan,
            values=values,
            cost=p.cost,
            settings=p.settings,
            correction=p.correction,
            dual=dual,
            chip=chip,
            readout=ReadoutSpec(**readout),
            adc=chip_converters(chip)[1],
            key=key,
        )

    def estimate(self, estimator: Estimator, phases: Phases | None = None) -> FloatArray:
        """All gradients of the batch as one vector."""
        found = estimator.estimate(phases or self.phases, self.inputs, self.targets)
        return np.concatenate([found.flat(name) for name in found.crossbars])


def error(found: FloatArray, exact: FloatArray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def trainer(
    estimator: Estimator,
    die: DeviceCard | None = None,
    *,
    update: dict[str, Any] | None = None,
    readout: dict[str, Any] | None = None,
    document: dict[str, Any] | None = None,
    optimiser: dict[str, Any] | None = None,
    epochs: int = 2,
    seed: int = 0,
    write: bool = False,
    age: float = 0.0,
    **settings: Any,
) -> Trainer:
    """Two classes of three numbers each, learned by a small network with loops on a die of a card."""
    document = document or network_document(recurrent=True, output="differential_pair")
    spec = parse_network(document | {"cost": COSTS["cross entropy"]})
    netlist = compile_network(spec, seed=7)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    inputs = rng.normal(size=(60, 3)) * 0.4 + np.where(labels[:, None] == 1, 0.5, -0.5)
    chip = fabricate(netlist, die, seed=1)
    if write:
        chip = chip.write(chip.target)
    return Trainer(
        plan=build_plan(netlist),
        chip=chip,
        cost=Cost.of(spec),
        estimator=estimator,
        optimiser=OptimiserSpec.model_validate(optimiser or {"step": 0.05}),
        train=Samples(inputs=inputs[:40], labels=labels[:40]),
        test=Samples(inputs=inputs[40:], labels=labels[40:]),
        classes=2,
        batch=8,
        epochs=epochs,
        seed=seed,
        probe=10,
        settings=SolverSettings(**{"check": False} | settings),
        update=UpdateSpec.model_validate(update or {}),
        readout=ReadoutSpec.model_validate(readout or {}),
        age=age,
        written=not chip.matched,
    )
