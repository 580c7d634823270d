"""One experiment from its file to its record: its circuit, one die, learning with every estimator, record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from circuitsim.chip import Chip
from circuitsim.chip.substrate import Substrate
from circuitsim.data import DataSet
from circuitsim.devices import DeviceCard
from circuitsim.errors import ConvergenceError, InstrumentError, RecordError
from circuitsim.netlist.files import parse_netlist
from circuitsim.netlist.tables import IntArray
from circuitsim.network import NetworkSpec, parse_document
from circuitsim.record import ArmLayout, RunRecord, RunWriter, free_path, read_record
from circuitsim.record.layout import ArraySpec
from circuitsim.solver import Drive, solve
from circuitsim.study.bench import Bench, load_samples, make_bench, prepare
from circuitsim.study.experiment import DataSpec, ExperimentSpec, load_experiment

__all__ = ["Watcher", "recorded_bench", "resume_experiment", "run_experiment"]


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


def run_experiment(
    path: str | Path,
    *,
    seed: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    substrate: Substrate | str | None = None,
) -> RunRecord:
    """Run an experiment file and return its record.

    The record is written beside the experiment as ``NAME-sSEED.h5``, or with the next free number
    behind it; ``output`` names another file. It is readable up to the last epoch at any time.
    ``substrate``, an object or an address, is learned on instead of the one that the experiment names.

    Raises:
        SpecError: the experiment, or what it names, is wrong.
        RecordError: the record cannot be written; earlier records stay as they are.
        ConvergenceError: a phase did not converge; the record keeps the epochs before it.
        InstrumentError: likewise, where an instrument refuses or vanishes.
    """
    path = Path(path)
    experiment = load_experiment(path)
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    with prepare(experiment, folder=path.parent, file=path).connected(substrate) as bench:
        target = output or free_path(path.parent, f"{experiment.name}-s{experiment.seed}")
        _start(bench, target, overwrite, watcher or _Silent())
    return read_record(target)


def _start(bench: Bench, target: Path, overwrite: bool, watcher: Watcher) -> None:
    arms = []
    for name, estimator in bench.estimators.items():
        trainer = bench.trainer(estimator)
        state = {key: (array.shape, str(array.dtype)) for key, array in trainer.state().items()}
        arms.append(ArmLayout(name=name, epochs=bench.epochs, metrics=trainer.metric_names, state=state))
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
        _train(bench, writer, {}, watcher)


def resume_experiment(
    record: Path, *, watcher: Watcher | None = None, substrate: Substrate | str | None = None
) -> RunRecord:
    """Finish an interrupted run from its record alone, to the same numbers as without interruption.

    Raises:
        RecordError: not a record of a training run, made by code that compiles another circuit, or begun on
            another substrate.
    """
    found = read_record(record)
    if found.finished:
        return found
    with (
        recorded_bench(found).connected(substrate) as bench,
        RunWriter.resume(record) as writer,
    ):
        _check_same_substrate(found, bench)
        _train(bench, writer, found.arms, watcher or _Silent())
    return read_record(record)


def _check_same_substrate(record: RunRecord, bench: Bench) -> None:
    """Refuse to go on with a run on another substrate than it began on; its version may have changed.

    Raises:
        RecordError: naming both.
    """
    began = record.header.get("substrate")
    present = None if bench.substrate is None else bench.substrate.capabilities.identity
    if (began or "").split(",")[:3] == (present or "").split(",")[:3]:
        return
    raise RecordError(
        f"began on {began or 'no substrate'}, and this is {present or 'none'}",
        file=record.path,
        field="substrate",
        remedy="Give it the substrate that it began on, or start the run again.",
    )


def recorded_bench(record: RunRecord) -> Bench:
    """Make the bench of a run again from its record alone: the die as fabricated, the same data.

    Raises:
        RecordError: not a record of a training run, or made by code that compiles another circuit.
    """
    header = record.header
    if header.get("kind") != "training":
        raise RecordError("is not the record of a training run", file=record.path, value=header.get("kind"))
    experiment = parse_document(ExperimentSpec, header["experiment"], file=record.path)
    bench = make_bench(
        experiment,
        parse_netlist(header["deck"], file=record.path)
        if header.get("deck")
        else parse_document(NetworkSpec, header["network"], file=record.path),
        parse_document(DeviceCard, header["card"], file=record.path),
        _recorded_data(record, experiment.data),
        file=record.path,
        folder=record.path.parent,
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
    epochs = bench.epochs
    watcher.begin(bench, writer.path)
    chips: dict[str, Chip] = {}
    begun = [name for name in bench.estimators if name in earlier and earlier[name].epochs_done]
    for name, estimator in bench.estimators.items():
        trainer = bench.trainer(estimator)
        done = 0
        if name in begun:
            done = earlier[name].epochs_done
            # A substrate is one for all estimators: it goes on from where the last of them left it.
            trainer.restore(earlier[name].state, finished=name != begun[-1])
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
                state = trainer.state()
            except ConvergenceError as error:
                raise ConvergenceError(
                    f"estimator {name}, epoch {epoch + 1}: {error.rule}",
                    file=writer.path,
                    object=error.object,
                    remedy="Lower the optimiser's step, beta, the buffer gain, or faults of the correction. "
                    "The record keeps the epochs before this one.",
                ) from error
            except InstrumentError as error:
                raise InstrumentError(
                    f"estimator {name}, epoch {epoch + 1}: {error}",
                    file=writer.path,
                    remedy=f"The record keeps the epochs before this one; go on with: "
                    f"circuitsim train {writer.path} --resume",
                ) from error
            writer.write_epoch(name, epoch, metrics, state)
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
        data = load_samples(spec, record.path.parent)
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
