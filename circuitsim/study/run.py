"""One experiment from its file to its record: compile, fabricate, learn with every estimator, record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from circuitsim.chip import Chip, fabricate
from circuitsim.compiler import compile_network
from circuitsim.data import DataSet, load_data
from circuitsim.devices import DeviceCard, ideal_card, load_card
from circuitsim.errors import ConvergenceError, RecordError, SpecError
from circuitsim.learning import Cost, Estimator, Samples, Trainer
from circuitsim.network import NetworkSpec, load_network, parse_document
from circuitsim.record import ArmLayout, RunRecord, RunWriter, free_path, provenance, read_record
from circuitsim.record.layout import ArraySpec
from circuitsim.solver import Drive, Plan, build_plan, solve
from circuitsim.study.experiment import ExperimentSpec, load_experiment

__all__ = ["Bench", "Watcher", "prepare", "resume_experiment", "run_experiment"]


class Watcher(Protocol):
    """Is told how a run goes on; for progress displays."""

    def begin(self, bench: Bench, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def step(self, name: str, epoch: int, step: int, steps: int) -> None: ...

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None: ...


class _Silent:
    def begin(self, bench: Bench, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def step(self, name: str, epoch: int, step: int, steps: int) -> None: ...

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """An experiment made ready: the die, its plan, the data, and a trainer for each estimator."""

    experiment: ExperimentSpec
    network: NetworkSpec
    card: DeviceCard
    chip: Chip
    plan: Plan
    cost: Cost
    data: DataSet

    @property
    def estimators(self) -> dict[str, Estimator]:
        """Label -> estimator, in the order of the file; a repeated label gets a number."""
        found: dict[str, Estimator] = {}
        for spec in self.experiment.estimators:
            estimator = spec.build()
            name, number = estimator.label, 1
            while name in found:
                number += 1
                name = f"{estimator.label}-{number}"
            found[name] = estimator
        return found

    def trainer(self, estimator: Estimator) -> Trainer:
        """Return a trainer at the start: the die as fabricated."""
        training = self.experiment.training
        return Trainer(
            plan=self.plan,
            chip=self.chip,
            cost=self.cost,
            estimator=estimator,
            optimiser=training.optimiser,
            train=Samples(inputs=self.data.train_inputs, labels=self.data.train_labels),
            test=Samples(inputs=self.data.test_inputs, labels=self.data.test_labels),
            classes=self.data.classes,
            batch=training.batch,
            epochs=training.epochs,
            seed=self.experiment.seed,
            probe=training.probe,
            settings=self.experiment.solver.settings(),
        )

    def header(self) -> dict[str, Any]:
        """Return what a record must hold to repeat the run, as plain JSON."""
        shape = self.data.image_shape
        return {
            "kind": "training",
            "name": self.experiment.name,
            "seed": self.experiment.seed,
            "experiment": self.experiment.model_dump(mode="json", by_alias=True),
            "network": self.network.model_dump(mode="json", by_alias=True),
            "card": self.card.model_dump(mode="json", by_alias=True),
            "digest": self.plan.netlist.digest,
            "figures": {"arm": self.headline, "image_shape": list(shape) if shape else None},
            "provenance": provenance(),
        }

    @property
    def headline(self) -> str:
        """The estimator whose result stands for the run: corrected centred, or else the first."""
        names = list(self.estimators)
        return "corrected-centred" if "corrected-centred" in names else names[0]


def prepare(experiment: ExperimentSpec, *, folder: Path, file: object = None) -> Bench:
    """Load what an experiment names, compile it and fabricate its die.

    Raises:
        SpecError: a file is missing or wrong, or network and data do not fit each other.
    """
    for field in ("network", "card"):
        name = getattr(experiment, field)
        if name is not None and not (folder / name).exists():
            raise SpecError(
                "names a file that does not exist",
                file=file,
                field=field,
                value=name,
                remedy="Paths are relative to the experiment's own folder.",
            )
    network = load_network(folder / experiment.network)
    card = ideal_card() if experiment.card is None else load_card(folder / experiment.card)
    return _bench(experiment, network, card, file=file)


def _bench(experiment: ExperimentSpec, network: NetworkSpec, card: DeviceCard, *, file: object) -> Bench:
    data = load_data(
        experiment.data.set,
        test_fraction=experiment.data.test_fraction,
        split_seed=experiment.data.split_seed,
    )
    features = data.train_inputs.shape[1]
    for what, size, needed in (
        ("inputs", network.input_size, features),
        ("outputs", network.output_size, data.classes),
    ):
        if size != needed:
            raise SpecError(
                f"data set {data.name} needs {needed} {what}",
                file=file,
                object=network.name,
                field=what,
                value=size,
                remedy=f"Change the network's {what} or the data set.",
            )
    netlist = compile_network(network, seed=experiment.seed)
    rates = experiment.training.optimiser.rates
    known = [crossbar.name for crossbar in netlist.trainable]
    for name in rates:
        if name not in known:
            raise SpecError(
                "is not a trainable crossbar",
                file=file,
                field="training.optimiser.rates",
                value=name,
                remedy=f"Crossbars: {', '.join(known)}.",
            )
    return Bench(
        experiment=experiment,
        network=network,
        card=card,
        chip=fabricate(netlist, card, seed=experiment.seed),
        plan=build_plan(netlist),
        cost=Cost.of(network),
        data=data,
    )


def run_experiment(
    path: str | Path,
    *,
    seed: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> RunRecord:
    """Run an experiment file and return its record.

    The record is written beside the experiment as ``NAME-sSEED.h5``, or with the next free number
    behind it; ``output`` names another file. It is readable up to the last epoch at any time.

    Raises:
        SpecError: the experiment, or what it names, is wrong.
        RecordError: the record cannot be written; earlier records stay as they are.
        ConvergenceError: a phase did not converge; the record keeps the epochs before it.
    """
    path = Path(path)
    experiment = load_experiment(path)
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    bench = prepare(experiment, folder=path.parent, file=path)
    target = output or free_path(path.parent, f"{experiment.name}-s{experiment.seed}")
    arms = []
    for name, estimator in bench.estimators.items():
        trainer = bench.trainer(estimator)
        state = {key: (array.shape, str(array.dtype)) for key, array in trainer.state().items()}
        arms.append(
            ArmLayout(name=name, epochs=experiment.training.epochs, metrics=trainer.metric_names, state=state)
        )
    initial = _initial_extras(bench)
    extras = {key: (array.shape, str(array.dtype)) for key, array in initial.items()} | _sample_layout(bench)
    with RunWriter.create(
        target,
        header=bench.header(),
        arms=arms,
        extras=extras,
        overwrite=overwrite,
    ) as writer:
        for key, array in initial.items():
            writer.put(key, array)
        _train(bench, writer, {}, watcher or _Silent())
    return read_record(target)


def resume_experiment(record: Path, *, watcher: Watcher | None = None) -> RunRecord:
    """Finish an interrupted run from its record alone, to the same numbers as without interruption.

    Raises:
        RecordError: not a record of a training run, or made by code that compiles another circuit.
    """
    found = read_record(record)
    if found.finished:
        return found
    header = found.header
    if header.get("kind") != "training":
        raise RecordError("is not the record of a training run", file=record, value=header.get("kind"))
    bench = _bench(
        parse_document(ExperimentSpec, header["experiment"], file=record),
        parse_document(NetworkSpec, header["network"], file=record),
        parse_document(DeviceCard, header["card"], file=record),
        file=record,
    )
    if bench.plan.netlist.digest != header["digest"]:
        raise RecordError(
            "was made by another version: the same description compiles to another circuit",
            file=record,
            value=header.get("provenance", {}).get("circuitsim"),
            remedy="Start the run again.",
        )
    with RunWriter.resume(record) as writer:
        _train(bench, writer, found.arms, watcher or _Silent())
    return read_record(record)


def _train(bench: Bench, writer: RunWriter, earlier: Mapping[str, Any], watcher: Watcher) -> None:
    epochs = bench.experiment.training.epochs
    watcher.begin(bench, writer.path)
    chips: dict[str, Chip] = {}
    for name, estimator in bench.estimators.items():
        trainer = bench.trainer(estimator)
        done = 0
        if name in earlier and earlier[name].epochs_done:
            done = earlier[name].epochs_done
            trainer.restore(earlier[name].state)
        watcher.arm(name, done, epochs)
        for epoch in range(done, epochs):

            def on_step(step: int, steps: int, name: str = name, epoch: int = epoch) -> None:
                watcher.step(name, epoch, step, steps)

            try:
                metrics = trainer.epoch(epoch, on_step)
            except ConvergenceError as error:
                raise ConvergenceError(
                    f"estimator {name}, epoch {epoch + 1}: {error.rule}",
                    file=writer.path,
                    object=error.object,
                    remedy="Lower the optimiser's step, beta, or the buffer gain. "
                    "The record keeps the epochs before this one.",
                ) from error
            writer.write_epoch(name, epoch, metrics, trainer.state())
            watcher.epoch(name, epoch, metrics)
        chips[name] = trainer.chip
    for key, array in _sample_extras(bench, chips[bench.headline]).items():
        writer.put(key, array)
    writer.finish()


def _initial_extras(bench: Bench) -> dict[str, np.ndarray]:
    extras = {}
    for crossbar in bench.plan.netlist.trainable:
        for half, g in zip(("g_plus", "g_minus"), bench.chip.target[crossbar.name], strict=True):
            if g is not None:
                extras[f"initial/{crossbar.name}/{half}"] = g
    return extras


def _sample_layout(bench: Bench) -> dict[str, ArraySpec]:
    """Return the shapes and types of what `_sample_extras` returns, which needs a trained die."""
    layout: dict[str, ArraySpec] = {
        "sample/input": ((bench.data.test_inputs.shape[1],), "float64"),
        "sample/label": ((1,), "int64"),
        "sample/probability": ((bench.data.classes,), "float64"),
    }
    for name, nodes in bench.plan.netlist.groups.items():
        layout[f"sample/voltage/{name}"] = ((len(nodes),), "float64")
    return layout


def _sample_extras(bench: Bench, chip: Chip) -> dict[str, np.ndarray]:
    """Return the operating point of the first held-out sample, for the figure."""
    netlist = bench.plan.netlist
    inputs = bench.data.test_inputs[:1]
    settings = replace(bench.experiment.solver.settings(), check=True)
    point = solve(bench.plan, chip.values, Drive(inputs=inputs), settings)
    y = netlist.outputs.read(point.node_voltage)
    extras = {
        "sample/input": inputs[0],
        "sample/label": bench.data.test_labels[:1],
        "sample/probability": bench.cost.probability(y)[0],
    }
    return extras | {
        f"sample/voltage/{name}": point.node_voltage[0, nodes] for name, nodes in netlist.groups.items()
    }
