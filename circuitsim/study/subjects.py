"""What a cross-check reads: a network, experiment, record, netlist or SPICE deck, with its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuitsim.chip import Chip, Conductances, fabricate
from circuitsim.compiler import compile_network
from circuitsim.data import load_digits
from circuitsim.errors import NetlistError, RecordError, SpecError
from circuitsim.file_kinds import is_deck, is_netlist, is_record
from circuitsim.learning import Cost
from circuitsim.netlist import read_netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import load_network, read_document
from circuitsim.record import read_record
from circuitsim.seeds import stream
from circuitsim.solver import build_plan
from circuitsim.spice.reader import read_deck
from circuitsim.study.bench import Bench, prepare
from circuitsim.study.crosscheck import Subject
from circuitsim.study.experiment import load_experiment
from circuitsim.study.run import recorded_bench

__all__ = ["learned_chip", "read_subject"]


def read_subject(
    path: str | Path, *, samples: int = 8, seed: int | None = None, arm: str | None = None
) -> Subject:
    """Read what is to be cross-checked, and draw its samples.

    Args:
        path: a network or an experiment (.yaml), a netlist (.yaml), a record (.h5) or a deck (.cir).
        samples: how many inputs, at most; a circuit without inputs has one.
        seed: of conductances, die and samples. An experiment has its own; of a record only the samples
            depend on it. 0 by default.
        arm: the estimator whose learned conductances a record's circuit gets; the one that the record
            names for figures by default.

    Raises:
        CircuitsimError: the file cannot be read, or is something else.
    """
    path = Path(path)
    if arm is not None and not is_record(path):
        raise SpecError("is for records only", field="--arm", value=arm)
    if is_record(path):
        return _record(path, samples, seed, arm)
    if is_deck(path):
        return _deck(path)
    if is_netlist(path):
        return _netlist(path, samples, seed or 0)
    document = read_document(path)
    if "estimators" in document:
        return _experiment(path, samples, seed)
    return _network(path, samples, seed or 0, document)


def _network(path: Path, samples: int, seed: int, document: Mapping[str, Any]) -> Subject:
    if "layers" not in document and "digest" not in document:
        known = "a network has layers, an experiment estimators, a netlist a format"
        if not {"inputs", "synapses", "cost"} & set(document):
            raise SpecError(f"is nothing that can be cross-checked: {known}", file=path)
    network = load_network(path)
    try:
        netlist = compile_network(network, seed=seed)
    except NetlistError as error:
        raise NetlistError(str(error), file=path) from error
    cost = Cost.of(network)
    if (network.input_size, network.output_size) == (64, 10):
        data = load_digits()
        rows = _rows(len(data.test_labels), samples, seed)
        inputs, labels = data.test_inputs[rows], data.test_labels[rows]
        drawn = f"{_count(len(rows), 'held-out sample')} of {data.name}"
    else:
        inputs = stream(seed, "crosscheck", "inputs").uniform(-1, 1, (samples, network.input_size))
        labels = stream(seed, "crosscheck", "labels").integers(network.output_size, size=samples)
        drawn = f"{_count(samples, 'uniform random input')} in -1 ... 1, random classes"
    return Subject(
        name=network.name,
        kind="network",
        plan=build_plan(netlist),
        values=netlist.values(),
        inputs=inputs,
        targets=cost.targets(labels, network.output_size),
        cost=cost,
        drawn=drawn,
    )


def _experiment(path: Path, samples: int, seed: int | None) -> Subject:
    experiment = load_experiment(path)
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    bench = prepare(experiment, folder=path.parent, file=path)
    subject = _bench(bench, bench.chip, samples, experiment.seed)
    note = f"die {bench.chip.seed}, card {bench.card.name}, before training"
    return replace(subject, kind="experiment", notes=(note,))


def _record(path: Path, samples: int, seed: int | None, arm: str | None) -> Subject:
    bench, chip, state = learned_chip(path, arm=arm)
    subject = _bench(bench, chip, samples, seed or 0)
    note = f"die {bench.chip.seed}, card {bench.card.name}, conductances of {state}"
    return replace(subject, kind="record", notes=(note,))


def learned_chip(path: Path, *, arm: str | None = None) -> tuple[Bench, Chip, str]:
    """Return the bench of a record, its die with what an estimator has learned, and that in words.

    Of a run on a substrate it is the circuit as designed, with the conductances that were asked for: that is
    all that a record can know.

    Args:
        path: of a training run's record.
        arm: the estimator; the one that the record names for figures by default.

    Raises:
        RecordError: not a record of a training run, or without this estimator.
    """
    record = read_record(path)
    bench = recorded_bench(record)
    name = arm or str((record.header.get("figures") or {}).get("arm") or next(iter(record.arms)))
    if name not in record.arms:
        raise RecordError(
            "is not an estimator of this record",
            file=path,
            field="--arm",
            value=name,
            remedy=f"Known: {', '.join(record.arms)}.",
        )
    found = record.arms[name]
    done = f"{name} after {found.epochs_done} of {found.epochs} epochs"
    if not found.epochs_done:
        done = f"{name} before its first epoch"
    if record.header.get("substrate") is not None:
        model = fabricate(bench.plan.netlist, seed=bench.chip.seed)
        if found.epochs_done:
            model = model.programmed(_asked_for(model, found.state))
        spec = bench.experiment.substrate
        known = "what its devices have learned is not known"
        learned = "as asked for" if spec is None or spec.updates == "host" else known
        return bench, model, f"{done}, the circuit as designed ({learned})"
    trainer = bench.trainer(bench.estimators[name])
    if found.epochs_done:
        trainer.restore(found.state)
    return bench, trainer.chip, done


def _asked_for(model: Chip, state: Mapping[str, FloatArray]) -> Conductances:
    """Return the conductances of a substrate's run: before a transfer, those of its first stage."""
    place = "first/conductance" if not state.get("stage", np.ones(1))[0] else "conductance"
    return {
        crossbar.name: (
            state[f"{place}/{crossbar.name}/g_plus"],
            state.get(f"{place}/{crossbar.name}/g_minus"),
        )
        for crossbar in model.netlist.trainable
    }


def _bench(bench: Bench, chip: Chip, samples: int, seed: int) -> Subject:
    data = bench.data
    rows = _rows(len(data.test_labels), samples, seed)
    what = "held-out sample" if data.held_out else "sample"
    return Subject(
        name=bench.experiment.name,
        kind="experiment",
        plan=bench.plan,
        values=chip.values,
        inputs=data.test_inputs[rows],
        targets=bench.cost.targets(data.test_labels[rows], data.classes),
        cost=bench.cost,
        settings=bench.experiment.solver.settings(),
        drawn=f"{_count(len(rows), what)} of {data.name}",
    )


def _netlist(path: Path, samples: int, seed: int) -> Subject:
    netlist = read_netlist(path)
    size = netlist.inputs.size
    # Without inputs all samples would be the same.
    count = samples if size else 1
    return Subject(
        name=netlist.title,
        kind="netlist",
        plan=build_plan(netlist),
        values=netlist.values(),
        inputs=stream(seed, "crosscheck", "inputs").uniform(-1, 1, (count, size)),
        drawn=f"{_count(count, 'uniform random input')} in -1 ... 1" if size else "its own sources",
        notes=("a netlist has no cost: the free phase only",),
    )


def _deck(path: Path) -> Subject:
    deck = read_deck(path)
    return Subject(
        name=path.stem,
        kind="deck",
        plan=build_plan(deck.netlist),
        values=deck.netlist.values(),
        inputs=np.empty((1, deck.netlist.inputs.size)),
        drawn="its own sources",
        notes=("a deck has no cost: the free phase only", *deck.notes),
        deck=path,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _rows(count: int, samples: int, seed: int) -> np.ndarray:
    """Return which of the held-out samples are taken, sorted."""
    return np.sort(stream(seed, "crosscheck", "samples").permutation(count)[:samples])
