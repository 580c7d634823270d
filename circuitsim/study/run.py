"""One experiment from its file to its record: its circuit, one die, learning with every estimator, record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from circuitsim.chip import Chip, fabricate
from circuitsim.compiler import compile_network
from circuitsim.data import DataSet, load_csv, load_data
from circuitsim.devices import DeviceCard, ideal_card, load_card
from circuitsim.errors import CircuitsimError, ConvergenceError, NetlistError, RecordError, SpecError
from circuitsim.learning import Cost, Estimator, Samples, Trainer
from circuitsim.netlist import Netlist
from circuitsim.netlist.files import netlist_document, parse_netlist
from circuitsim.netlist.roles import with_roles
from circuitsim.netlist.tables import IntArray
from circuitsim.network import NetworkSpec, load_network, parse_document
from circuitsim.record import ArmLayout, RunRecord, RunWriter, free_path, provenance, read_record
from circuitsim.record.layout import ArraySpec
from circuitsim.solver import Drive, Plan, build_plan, solve
from circuitsim.study.experiment import DataSpec, ExperimentSpec, load_experiment

__all__ = ["Bench", "Watcher", "prepare", "recorded_bench", "resume_experiment", "run_experiment"]


class Watcher(Protocol):
    """Is told how a run goes on; for progress displays."""

    def begin(self, bench: Bench, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None:
        """``running`` has metrics of the epoch so far, e.g. ``train_accuracy``."""

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None: ...


class _Silent:
    def begin(self, bench: Bench, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None: ...

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """An experiment made ready: the die, its plan, the data, and a trainer for each estimator."""

    experiment: ExperimentSpec
    circuit: NetworkSpec | Netlist
    """The network description, or the deck as it was drawn."""
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

    @property
    def network(self) -> NetworkSpec | None:
        """The network description; None where the circuit was drawn as a deck."""
        return self.circuit if isinstance(self.circuit, NetworkSpec) else None

    def header(self) -> dict[str, Any]:
        """Return what a record must hold to repeat the run, as plain JSON."""
        shape = self.data.image_shape
        network, deck = self.network, None
        if isinstance(self.circuit, Netlist):
            deck = _plain(netlist_document(self.circuit))
        return {
            "kind": "training",
            "name": self.experiment.name,
            "seed": self.experiment.seed,
            "experiment": self.experiment.model_dump(mode="json", by_alias=True),
            "network": None if network is None else network.model_dump(mode="json", by_alias=True),
            "deck": deck,
            "data": {
                "name": self.data.name,
                "classes": self.data.classes,
                "class_names": list(self.data.class_names),
                "held_out": self.data.held_out,
                "digest": self.data.digest,
            },
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
    for field in ("network", "deck", "card"):
        name = getattr(experiment, field)
        if name is not None and not (folder / name).exists():
            raise SpecError(
                "names a file that does not exist",
                file=file,
                field=field,
                value=name,
                remedy="Paths are relative to the experiment's own folder.",
            )
    circuit: NetworkSpec | Netlist
    if experiment.deck is not None:
        from circuitsim.spice.reader import read_deck

        circuit = read_deck(folder / experiment.deck).netlist
    else:
        assert experiment.network is not None
        circuit = load_network(folder / experiment.network)
    card = ideal_card() if experiment.card is None else load_card(folder / experiment.card)
    try:
        data = _load(experiment.data, folder)
    except SpecError as error:
        if error.file is not None:
            raise
        raise _of_experiment(error, file, error.field) from error
    return _bench(experiment, circuit, card, data, file=file)


def _load(spec: DataSpec, folder: Path) -> DataSet:
    if spec.file is None:
        data = load_data(spec.set or "", **spec.options())
    else:
        data = load_csv(
            folder / spec.file,
            inputs=spec.inputs or (),
            targets=spec.targets,
            label=spec.label,
            **spec.options(),
        )
    return data.scaled(spec.target_gain)


def _bench(
    experiment: ExperimentSpec,
    circuit: NetworkSpec | Netlist,
    card: DeviceCard,
    data: DataSet,
    *,
    file: object,
) -> Bench:
    netlist, cost = _circuit(experiment, circuit, data, file=file)
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
        circuit=circuit,
        card=card,
        chip=fabricate(netlist, card, seed=experiment.seed),
        plan=build_plan(netlist),
        cost=cost,
        data=data,
    )


def _circuit(
    experiment: ExperimentSpec, circuit: NetworkSpec | Netlist, data: DataSet, *, file: object
) -> tuple[Netlist, Cost]:
    """Return the netlist with its ports, and the cost; both must fit the data."""
    if isinstance(circuit, NetworkSpec):
        inputs, outputs, spec = circuit.input_size, circuit.output_size, circuit.cost
        name, where = circuit.name, "network's "
    else:
        roles = experiment.roles
        assert roles is not None
        inputs, outputs, spec = len(roles.inputs.sources), len(roles.outputs), roles.cost
        name, where = "roles", "deck's "
    one_output = data.classes == 2 and outputs == 1 and spec.kind == "squared_error"
    for what, size, needed in (
        ("inputs", inputs, data.train_inputs.shape[1]),
        ("outputs", outputs, 1 if one_output else data.outputs),
    ):
        if size != needed:
            raise SpecError(
                f"data set {data.name} needs {needed} {what}",
                file=file,
                object=name,
                field=what,
                value=size,
                remedy=f"Change the {where}{what} or the data set.",
            )
    if data.classes is None and spec.kind != "squared_error":
        raise SpecError(
            f"data set {data.name} has wanted outputs, no classes",
            file=file,
            object=name,
            field="cost.kind",
            value=spec.kind,
            remedy="Use squared_error.",
        )
    cost = Cost.of_spec(spec, one_output=one_output)
    if isinstance(circuit, NetworkSpec):
        return compile_network(circuit, seed=experiment.seed), cost
    assert roles is not None
    try:
        return with_roles(circuit, roles.roles(), seed=experiment.seed, circuit=experiment.deck), cost
    except NetlistError as error:
        if error.object:
            raise NetlistError(str(error), file=file) from error
        field = f"roles.{error.field}" if error.field else "roles"
        raise _of_experiment(error, file, field) from error


def _of_experiment(error: CircuitsimError, file: object, field: str | None) -> SpecError:
    """Return an error about what an experiment names as one about the experiment's field."""
    if error.value is None:
        return SpecError(error.rule, file=file, field=field, remedy=error.remedy)
    return SpecError(error.rule, file=file, field=field, value=error.value, remedy=error.remedy)


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
    initial = _initial_extras(bench) | _data_extras(bench)
    extras = {key: (array.shape, str(array.dtype)) for key, array in initial.items()} | _result_layout(bench)
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
    bench = recorded_bench(found)
    with RunWriter.resume(record) as writer:
        _train(bench, writer, found.arms, watcher or _Silent())
    return read_record(record)


def recorded_bench(record: RunRecord) -> Bench:
    """Make the bench of a run again from its record alone: the die as fabricated, the same data.

    Raises:
        RecordError: not a record of a training run, or made by code that compiles another circuit.
    """
    header = record.header
    if header.get("kind") != "training":
        raise RecordError("is not the record of a training run", file=record.path, value=header.get("kind"))
    experiment = parse_document(ExperimentSpec, header["experiment"], file=record.path)
    bench = _bench(
        experiment,
        parse_netlist(header["deck"], file=record.path)
        if header.get("deck")
        else parse_document(NetworkSpec, header["network"], file=record.path),
        parse_document(DeviceCard, header["card"], file=record.path),
        _recorded_data(record, experiment.data),
        file=record.path,
    )
    if bench.plan.netlist.digest != header["digest"]:
        raise RecordError(
            "was made by another version: the same description compiles to another circuit",
            file=record.path,
            value=header.get("provenance", {}).get("circuitsim"),
            remedy="Start the run again.",
        )
    return bench


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

            def on_step(
                step: int,
                steps: int,
                running: Mapping[str, float] | None = None,
                name: str = name,
                epoch: int = epoch,
            ) -> None:
                watcher.step(name, epoch, step, steps, running)

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
    for key, array in _result_extras(bench, chips[bench.headline]).items():
        writer.put(key, array)
    writer.finish()


def _initial_extras(bench: Bench) -> dict[str, np.ndarray]:
    extras = {}
    for crossbar in bench.plan.netlist.trainable:
        for half, g in zip(("g_plus", "g_minus"), bench.chip.target[crossbar.name], strict=True):
            if g is not None:
                extras[f"initial/{crossbar.name}/{half}"] = g
    return extras


_DATA = ("train_inputs", "train_labels", "test_inputs", "test_labels")


def _data_extras(bench: Bench) -> dict[str, np.ndarray]:
    """Return samples that came from a file, which may change or vanish before the run goes on."""
    if bench.experiment.data.file is None:
        return {}
    return {f"data/{part}": getattr(bench.data, part) for part in _DATA}


def _recorded_data(record: RunRecord, spec: DataSpec) -> DataSet:
    about = record.header["data"]
    if spec.file is None:
        data = _load(spec, record.path.parent)
        if data.digest != about.get("digest", ""):
            raise RecordError(
                f"was made from other samples: the files of {data.name} have changed",
                file=record.path,
                field="data",
                remedy="Set CIRCUITSIM_DATA as it was when the run began, or start the run again.",
            )
        return data
    parts: dict[str, Any] = {part: record.extras[f"data/{part}"] for part in _DATA}
    if not about["held_out"]:
        parts |= {"test_inputs": parts["train_inputs"], "test_labels": parts["train_labels"]}
    return DataSet(
        name=about["name"], classes=about["classes"], class_names=tuple(about["class_names"]), **parts
    )


def _result_layout(bench: Bench) -> dict[str, ArraySpec]:
    """Return the shapes and types of what `_result_extras` returns, which needs a trained die."""
    data = bench.data
    layout: dict[str, ArraySpec] = {"sample/input": ((data.test_inputs.shape[1],), "float64")}
    if data.classes is None:
        for key in ("test/output", "test/target"):
            layout[key] = (data.test_labels.shape, "float64")
    else:
        layout |= {"sample/label": ((1,), "int64"), "sample/probability": ((data.classes,), "float64")}
    for name, nodes in _groups(bench).items():
        layout[f"sample/voltage/{name}"] = ((len(nodes),), "float64")
    return layout


def _result_extras(bench: Bench, chip: Chip) -> dict[str, np.ndarray]:
    """Return the operating point of the first test sample, and the outputs that have no classes."""
    data, netlist = bench.data, bench.plan.netlist
    settings = replace(bench.experiment.solver.settings(), check=True)
    inputs = data.test_inputs[:1] if data.classes is not None else data.test_inputs
    point = solve(bench.plan, chip.values, Drive(inputs=inputs), settings)
    y = netlist.outputs.read(point.node_voltage)
    extras = {"sample/input": inputs[0]}
    if data.classes is None:
        extras |= {"test/output": y, "test/target": np.asarray(data.test_labels)}
    else:
        extras |= {
            "sample/label": data.test_labels[:1],
            "sample/probability": bench.cost.probability(y)[0],
        }
    return extras | {
        f"sample/voltage/{name}": point.node_voltage[0, nodes] for name, nodes in _groups(bench).items()
    }


def _groups(bench: Bench) -> Mapping[str, IntArray]:
    """Return the layers of a network; a circuit that was drawn is one group of nodes."""
    netlist = bench.plan.netlist
    return netlist.groups or {"nodes": np.arange(1, netlist.n_nodes)}


def _plain(document: Any) -> Any:
    """Return a netlist's document with its infinities by name, which JSON lacks and its reader takes."""
    if isinstance(document, dict):
        return {key: _plain(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_plain(value) for value in document]
    return repr(document) if document in (math.inf, -math.inf) else document
