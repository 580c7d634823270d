"""One task of a sweep, a point on one die: what it is known by, how it is run, how its result is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from circuitsim.chip import fabricate
from circuitsim.data import DataSet
from circuitsim.devices import DeviceCard
from circuitsim.errors import CircuitsimError, InstrumentError, SpecError
from circuitsim.learning import Estimator
from circuitsim.netlist import Netlist
from circuitsim.netlist.files import parse_netlist
from circuitsim.network import NetworkSpec, parse_document
from circuitsim.record.storage import publish
from circuitsim.study.bench import Bench, load_samples, make_bench
from circuitsim.study.experiment import DataSpec, ExperimentSpec
from circuitsim.study.sweep_points import Design, Documents, canonical, data_digest

__all__ = ["Outcome", "Task", "read_result", "run_task", "tasks_of", "write_result"]

RESULTS_FORMAT = 1
"""Version of what a task computes and of how its result is written; part of its key."""

_MOST_RECENT = 4

Metrics = dict[str, float]
_RECENT: dict[str, Bench] = {}
"""A bench of each point that was met last, by digest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A point of a sweep on one die. Equal keys mean equal results, whoever computes them.

    ``documents`` are those of the point, shared by its tasks; ``data`` is the digest of its samples, which
    are relative to ``folder`` where they come from a file of the user's.
    """

    key: str
    point: int
    digest: str
    die: int
    measure: str
    documents: Documents
    data: str
    folder: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a task: a result as plain JSON, or the reason why there is none."""

    task: Task
    result: dict[str, Any] | None
    lost: str = ""

    @property
    def seconds(self) -> float:
        """Time that the task took, where there is a result."""
        return float(self.result["seconds"]["task"]) if self.result is not None else 0.0

    @property
    def errors(self) -> list[str]:
        """What stopped estimators, one line each."""
        rows = self.result["rows"] if self.result is not None else []
        return [f"{row['estimator']}: {row['error']}" for row in rows if row["error"]]


def tasks_of(design: Design) -> list[Task]:
    """Return the tasks of a sweep in design order: points, and the dies of each."""
    about = {"format": RESULTS_FORMAT, "circuitsim": version("circuitsim"), "measure": design.sweep.measure}
    tasks = []
    for point in design.points:
        for die in range(point.die, point.die + design.sweep.dies):
            key = hashlib.sha256(canonical(about | {"point": point.digest, "die": die})).hexdigest()
            tasks.append(
                Task(
                    key=key,
                    point=point.number,
                    digest=point.digest,
                    die=die,
                    measure=design.sweep.measure,
                    documents=point.documents,
                    data=point.data,
                    folder=str(design.folder.resolve()),
                )
            )
    return tasks


def run_task(task: Task) -> Outcome:
    """Run a task. An estimator that a CircuitsimError stops is part of the result; other errors lose it."""
    try:
        return Outcome(task=task, result=_result(task))
    except Exception as error:
        return Outcome(task=task, result=None, lost=f"{type(error).__name__}: {error}")


def write_result(result: Mapping[str, Any], folder: Path) -> None:
    """Keep a result in one step, as ``KEY.json`` in ``folder``.

    Raises:
        RecordError: it cannot be written.
    """
    text = json.dumps(result, allow_nan=False, separators=(",", ":"))
    publish(text.encode(), folder / f"{result['key']}.json", overwrite=True).close()


def read_result(key: str, folder: Path) -> dict[str, Any] | None:
    """Return the result that is kept under a key; None where there is none, or not a whole one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        result = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if result["format"] != RESULTS_FORMAT or result["key"] != key:
            return None
        if len(result["seconds"]["rows"]) != len(result["rows"]) or not result["rows"]:
            return None
        for row in result["rows"]:
            row["estimator"], row["error"], int(row["epoch"])
            for value in row["metrics"].values():
                float(value)
        float(result["seconds"]["task"])
        return dict(result)
    return None


def _result(task: Task) -> dict[str, Any]:
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    seconds: list[float] = []

    def add(estimator: str, epoch: int, metrics: Metrics, took: float, error: str = "") -> None:
        numbers = {name: _plain(value) for name, value in metrics.items()}
        rows.append({"estimator": estimator, "epoch": epoch, "metrics": numbers, "error": error})
        seconds.append(took)

    try:
        bench = _bench_of(task)
    except SpecError:
        # Points were checked before: this machine lacks something.
        raise
    except CircuitsimError as error:
        experiment = parse_document(ExperimentSpec, task.documents.experiment)
        for spec in experiment.estimators:
            add(spec.build().label, 0, {}, 0.0, _words(error))
        bench = None
    for name, estimator in bench.estimators.items() if bench is not None else ():
        assert bench is not None
        # A simulated die is as new for every estimator, as all that is not behind a substrate.
        with bench.connected() as ready:
            if task.measure == "training":
                _train(ready, name, estimator, add)
            else:
                _measure(ready, name, estimator, add)
    return {
        "format": RESULTS_FORMAT,
        "key": task.key,
        "die": task.die,
        "rows": rows,
        "seconds": {"task": time.perf_counter() - started, "rows": seconds},
    }


def _train(bench: Bench, name: str, estimator: Estimator, add: Any) -> None:
    trainer = bench.trainer(estimator)
    for epoch in range(bench.epochs):
        try:
            metrics = trainer.epoch(epoch)
        except CircuitsimError as error:
            _refuse_lost(bench, error)
            add(name, epoch + 1, {}, 0.0, _words(error))
            return
        add(name, epoch + 1, metrics, metrics.pop("seconds"))


def _measure(bench: Bench, name: str, estimator: Estimator, add: Any) -> None:
    started = time.perf_counter()
    try:
        metrics = bench.trainer(estimator).measure()
    except CircuitsimError as error:
        _refuse_lost(bench, error)
        add(name, 0, {}, 0.0, _words(error))
        return
    add(name, 0, metrics, time.perf_counter() - started)


def _refuse_lost(bench: Bench, error: CircuitsimError) -> None:
    """Raise an instrument's error again: it tells nothing about the point, which is tried another time."""
    spec = bench.experiment.substrate
    simulated = spec is None or spec.address.partition(":")[0] in ("simulated", "mock")
    if isinstance(error, InstrumentError) and not simulated:
        raise error


def _words(error: CircuitsimError) -> str:
    return f"{type(error).__name__}: {error}"


def _plain(value: float) -> float | str:
    """Return a number as JSON has it; those that it lacks by name, as Python reads them."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _bench_of(task: Task) -> Bench:
    """Make a task ready. Dies of a point share its netlist and its plan: each is fabricated from these."""
    if task.digest not in _RECENT:
        if len(_RECENT) >= _MOST_RECENT:
            _RECENT.clear()
        _RECENT[task.digest] = _first_bench(task)
    bench = _RECENT[task.digest]
    experiment = bench.experiment.model_copy(update={"die": task.die})
    return replace(
        bench, experiment=experiment, chip=fabricate(bench.plan.netlist, bench.card, seed=task.die)
    )


def _first_bench(task: Task) -> Bench:
    documents = task.documents
    circuit: NetworkSpec | Netlist
    if documents.deck is not None:
        circuit = parse_netlist(documents.deck)
    else:
        assert documents.network is not None
        circuit = parse_document(NetworkSpec, documents.network)
    experiment = parse_document(ExperimentSpec, documents.experiment | {"die": task.die})
    data, digest = _data(canonical(experiment.data.model_dump(mode="json")), task.folder)
    if digest != task.data:
        raise SpecError(
            f"the samples of {data.name} are others here than where the sweep was started",
            field="data",
            remedy="Give every worker the same CIRCUITSIM_DATA.",
        )
    card = parse_document(DeviceCard, documents.card)
    return make_bench(experiment, circuit, card, data, file=None, folder=Path(task.folder))


@lru_cache(maxsize=4)
def _data(spec: bytes, folder: str) -> tuple[DataSet, str]:
    """Return samples and their digest."""
    data = load_samples(parse_document(DataSpec, json.loads(spec)), Path(folder))
    return data, data_digest(data)
