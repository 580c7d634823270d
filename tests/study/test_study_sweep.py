"""Sweeps: their points, the same numbers on every engine, and what survives a killed process."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from circuitsim.errors import CircuitsimError, SpecError
from circuitsim.record.table import Table, read_table
from circuitsim.study import run_experiment
from circuitsim.study.engines import Cluster, InProcess, LocalWorkers, TaskQueue
from circuitsim.study.sweep import SweepResult, run_sweep
from circuitsim.study.sweep_points import Design, read_design
from circuitsim.study.sweep_tasks import Outcome, tasks_of

NETWORK: dict[str, Any] = {
    "name": "pair",
    "inputs": {"x": {"size": 2, "gain": "100mV"}},
    "layers": {
        "hidden": {
            "size": 5,
            "neuron": {"kind": "tanh", "saturation": "200mV"},
            "bias": {"voltage": "100mV"},
        },
        "out": {"size": 2, "neuron": {"kind": "linear"}},
    },
    "synapses": [{"from": "x", "to": "hidden"}, {"from": "hidden", "to": "out"}],
    "output": {"layer": "out"},
    "cost": {"kind": "cross_entropy", "conductance": "10u", "scale": "20mV"},
}
LOOP = {
    **NETWORK,
    "name": "loop",
    "layers": {
        "hidden": {"size": 5, "neuron": {"kind": "diode", "offset": "50mV"}},
        "out": {"size": 2, "neuron": {"kind": "linear"}},
    },
    "synapses": [
        {"from": "x", "to": "hidden", "kind": "resistive"},
        {"from": "hidden", "to": "out", "kind": "resistive"},
    ],
}
EXPERIMENT: dict[str, Any] = {
    "name": "pairs",
    "network": "pair.yaml",
    "cards": "spread",
    "data": {"set": "xor"},
    "estimators": [{"kind": "ep"}, {"kind": "asymep"}],
    "training": {"epochs": 3, "batch": 4, "probe": 4},
    "seed": 3,
}
SWEEP: dict[str, Any] = {
    "name": "gains",
    "experiment": "pairs.yaml",
    "axes": {"cards.amplifier.gain": [0, "1e-2", 0.1], "network.layers.hidden.size": [4, 6]},
    "dies": 3,
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a sweep, and what it needs, with some keys of it and of its experiment changed."""

    def written(base: dict[str, Any] | None = None, **changes: Any) -> Path:
        for name, document in (
            ("pair", NETWORK),
            ("loop", LOOP),
            ("pairs", EXPERIMENT | (base or {})),
            ("sweep", SWEEP | changes),
        ):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        return tmp_path / "sweep.yaml"

    return written


def assert_same(a: Table, b: Table) -> None:
    """Compare every number of two tables bit for bit, but for the time that they took."""
    assert list(a.columns) == list(b.columns)
    for name, column in a.columns.items():
        np.testing.assert_array_equal(column, b.columns[name], err_msg=name)


def kept(result: SweepResult) -> dict[str, Any]:
    """What the files of the tasks hold, without times."""
    found = {}
    for path in sorted((result.folder / "tasks").iterdir()):
        document = json.loads(path.read_text())
        del document["seconds"]
        found[path.name] = document
    return found


# ------------------------------------------------------------------------------------------ points


def test_a_grid_is_the_product_of_its_axes_in_order(write: Write) -> None:
    design = read_design(write())
    assert [tuple(point.values.values()) for point in design.points] == list(
        itertools.product([0, 0.01, 0.1], [4, 6])
    )
    for point in design.points:
        gain, size = point.values.values()
        assert point.documents.card["amplifier"]["gain"] == gain
        # The card of the experiment stays as it is but for the swept value.
        assert point.documents.card["crossbar"]["device_to_device"] == 0.05
        assert point.documents.network is not None
        assert point.documents.network["layers"]["hidden"]["size"] == size
    tasks = tasks_of(design)
    assert len({task.key for task in tasks}) == len(tasks) == 18
    assert [task.die for task in tasks[:4]] == [3, 4, 5, 3]


def test_keys_depend_on_what_is_simulated_and_on_nothing_else(write: Write) -> None:
    keys = {task.key for task in tasks_of(read_design(write()))}
    other_words = {"description": "another", "name": "renamed"}
    assert {task.key for task in tasks_of(read_design(write(other_words, name="other")))} == keys
    more = tasks_of(read_design(write(dies=4)))
    assert keys < {task.key for task in more}
    for changed in (
        {"seed": 4},
        {"data": {"set": "product"}, "network": "pair.yaml"},
        {"training": EXPERIMENT["training"] | {"epochs": 4}},
        {"solver": {"precision": "float32"}},
    ):
        path = write(changed)
        if "data" in changed:
            network = NETWORK | {"cost": {"kind": "squared_error"}, "layers": dict(NETWORK["layers"])}
            network["layers"]["out"] = {"size": 1, "neuron": {"kind": "linear"}}
            (path.parent / "pair.yaml").write_text(yaml.safe_dump(network))
        assert not keys & {task.key for task in tasks_of(read_design(path))}, changed
    assert not keys & {task.key for task in tasks_of(read_design(write(measure="gradient")))}


def axes(design: Design, path: str) -> list[Any]:
    return [point.values[path] for point in design.points]


def test_random_points_are_drawn_evenly_and_stay_when_there_are_more(write: Write) -> None:
    ranges = {
        "training.optimiser.step": {"low": "1e-3", "high": "1e-1", "log": True},
        "cards.amplifier.offset": {"low": 0, "high": "10mV"},
        "training.batch": {"low": 1, "high": 4, "integer": True},
        "solver.precision": ["float64", "float32"],
    }
    design = read_design(write(axes=ranges, design={"random": 200}))
    n = len(design.points)
    # Uniform draws have mean 1/2 and variance 1/12: five standard errors.
    bound = 5 / math.sqrt(12 * n)
    steps = np.array(axes(design, "training.optimiser.step"))
    assert 1e-3 <= steps.min() < steps.max() <= 1e-1
    assert abs(np.mean(np.log(steps / 1e-3)) / math.log(100) - 0.5) < bound
    offsets = np.array(axes(design, "cards.amplifier.offset"))
    assert 0 <= offsets.min() < offsets.max() <= 0.01
    assert abs(offsets.mean() / 0.01 - 0.5) < bound
    batches = np.array(axes(design, "training.batch"))
    counts = np.bincount(batches, minlength=5)
    assert counts[0] == 0
    # Binomial, p = 1/4: five standard deviations.
    assert np.all(np.abs(counts[1:] - n / 4) < 5 * math.sqrt(n * 3 / 16))
    assert {"float64", "float32"} == set(axes(design, "solver.precision"))
    assert abs(np.corrcoef(np.log(steps), offsets)[0, 1]) < 5 / math.sqrt(n)

    fewer = read_design(write(axes=ranges, design={"random": 20}))
    assert [point.digest for point in fewer.points] == [point.digest for point in design.points[:20]]
    other = read_design(write(axes=ranges, design={"random": 20, "seed": 1}))
    assert axes(other, "training.optimiser.step") != axes(fewer, "training.optimiser.step")


def test_labels_change_several_things_at_once(write: Write) -> None:
    cases = {
        "ideal": {
            "cards": "ideal",
            "training": {"optimiser": {"schedule": {"kind": "cosine", "floor": 0.1}}},
        },
        "diodes": {"network": "loop.yaml", "cards": {"amplifier": {"gain": 0.3}}},
        "relu": {"network.layers.hidden.neuron": {"kind": "relu", "clamp": "10mV"}, "estimators.*.beta": 0.5},
    }
    ideal, diodes, relu = (point.documents for point in read_design(write(axes={"cases": cases})).points)
    assert ideal.card["name"] == "ideal"
    assert ideal.experiment["training"]["optimiser"]["schedule"]["floor"] == 0.1
    assert (diodes.network or {})["name"] == "loop"
    assert (diodes.card["amplifier"]["gain"], diodes.card["crossbar"]["device_to_device"]) == (0.3, 0.05)
    neuron = (relu.network or {})["layers"]["hidden"]["neuron"]
    assert (neuron["kind"], neuron["clamp"], "saturation" in neuron) == ("relu", 0.01, False)
    assert [estimator["beta"] for estimator in relu.experiment["estimators"]] == [0.5, 0.5]


def test_a_new_kind_keeps_the_keys_that_it_has(write: Write) -> None:
    estimators = [{"kind": "asymep", "beta": 0.2, "centred": False}]
    points = read_design(
        write({"estimators": estimators}, axes={"estimators.kind": ["asymep", "dyadic", "adjoint"]})
    ).points
    found = [point.documents.experiment["estimators"] for point in points]
    assert found == [
        [{"kind": "asymep", "beta": 0.2, "centred": False}],
        [{"kind": "dyadic", "beta": 0.2}],
        [{"kind": "adjoint"}],
    ]


@pytest.mark.parametrize(
    ("swept", "words"),
    [
        (
            {"cards.amplifier.gian": [0, 0.1]},
            "axes.cards.amplifier.gian: does not exist: cards.amplifier has no `gian` (got 0). "
            "Did you mean `cards.amplifier.gain`?",
        ),
        ({"network.layers.hiden.size": [3]}, "network.layers has no `hiden` (got 3). Did you mean"),
        ({"estimators.2.beta": [0.1]}, "axes.estimators.2.beta: does not exist: estimators has no `2`"),
        ({"training.epochs.x": [1]}, "axes.training.epochs.x: does not exist: training.epochs has no parts"),
        ({"epochs": [1]}, "axes.epochs: does not exist: the experiment has no `epochs`"),
        ({"training.epochs": [1, -2]}, "axes.training.epochs: must be greater than or equal to 1 (got -2)"),
        ({"cards.amplifier.gain": [0, "a lot"]}, "axes.cards.amplifier.gain: is not a number"),
        (
            {"network.layers.out.size": [2, 3]},
            "axes.network.layers.out.size: pair.outputs: data set xor needs 2 outputs (got 3)",
        ),
        ({"network": ["pair.yaml", "nowhere.yaml"]}, "axes.network: names a file that does not exist"),
        (
            {"cards": ["spread", "nowhere"]},
            "axes.cards: is neither a file nor the name of a card (got 'nowhere')",
        ),
        ({"estimators.*.kind": ["ep", "magic"]}, "axes.estimators.*.kind: magic: 2 problems"),
        (
            {"cases": {"a": {"trainig": {"epochs": 2}}}},
            "axes.cases: does not exist: the experiment has no `trainig`",
        ),
        ({"training.epochs": []}, "axes.training.epochs: needs at least one value"),
        ({"training.epochs": [1, 1]}, "axes.training.epochs: has a value twice (got 1)"),
        (
            {"training.epochs": 3},
            "must be a list of values, labels with partial documents, or a range (got 3)",
        ),
        (
            {"training.epochs": {"low": 1, "high": 3}},
            "axes.training.epochs: only a random design draws from a range",
        ),
        ({"epoch": [1]}, "axes.epoch: is the name of a column of the results"),
        ({"die": [1, 2]}, "axes.die: cannot be an axis where dies are counted"),
        ({}, "axes"),
    ],
)
def test_a_bad_axis_is_refused_before_anything_runs(write: Write, swept: Any, words: str) -> None:
    path = write(axes=swept)
    with pytest.raises(SpecError) as refused:
        run_sweep(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)
    assert not (path.parent / "gains").exists()


def test_every_bad_value_is_named_and_a_bad_pair_as_a_pair(write: Write) -> None:
    with pytest.raises(SpecError, match="2 problems") as refused:
        read_design(write(axes={"training.epochs": [0, 1, -1]}))
    assert "(got 0)" in str(refused.value)
    assert "(got -1)" in str(refused.value)
    pair = {"solver.precision": ["float32"], "network.conductance.min": ["1u", "50u"]}
    pair["network.conductance.max"] = ["100u", "20u"]
    with pytest.raises(SpecError) as refused:
        read_design(write(axes=pair))
    assert "min must not exceed max" in str(refused.value)
    # Neither value is wrong by itself on the base experiment, so all are named.
    network = NETWORK | {"conductance": {"min": "1n", "max": "200u"}}
    path = write(axes={"network.conductance.min": ["1n", "50u"], "network.conductance.max": ["200u", "20u"]})
    (path.parent / "pair.yaml").write_text(yaml.safe_dump(network))
    with pytest.raises(
        SpecError, match=r"axes: .*network.conductance.min: 50u, network.conductance.max: 20u"
    ):
        read_design(path)


def test_a_deck_has_no_network_to_sweep(write: Write, repo_root: Path) -> None:
    deck = {"experiment": str(repo_root / "runs" / "xor.yaml")}
    path = write(**SWEEP | deck | {"axes": {"network.layers.hidden.size": [3]}})
    with pytest.raises(SpecError, match="the experiment has a deck"):
        read_design(path)
    axis = {"roles.trainable.0.min": ["1u", "2u"], "cards.diode.saturation_current": [0.2]}
    path = write(**SWEEP | deck | {"axes": axis})
    design = read_design(path)
    assert [point.documents.network for point in design.points] == [None, None]
    assert design.points[0].documents.deck == design.points[1].documents.deck
    assert design.points[0].digest != design.points[1].digest


# ----------------------------------------------------------------------------------------- results


def test_rows_are_those_of_training_on_the_same_die(write: Write, tmp_path: Path) -> None:
    result = run_sweep(write(axes={"cards.amplifier.gain": [0.05, 0.2]}, dies=2))
    columns = result.table.columns
    assert len(result.table) == 2 * 2 * 2 * 3
    for die, gain in itertools.product((3, 4), (0.05, 0.2)):
        cards = ["spread", {"amplifier": {"gain": gain}}]
        document = EXPERIMENT | {"cards": cards, "die": die, "name": f"die{die}-{gain}"}
        (tmp_path / "one.yaml").write_text(yaml.safe_dump(document))
        record = run_experiment(tmp_path / "one.yaml")
        for name, arm in record.arms.items():
            rows = (columns["die"] == die) & (columns["cards.amplifier.gain"] == gain)
            rows &= columns["estimator"] == name
            assert columns["epoch"][rows].tolist() == [1, 2, 3]
            for metric in ("train_cost", "test_accuracy", "power", "cosine/x-hidden"):
                # The sweep has one thread: sums may be taken in another order.
                np.testing.assert_allclose(columns[metric][rows], arm.metrics[metric], rtol=1e-9, atol=1e-15)


def test_mismatch_leaves_corrected_gradients_exact_and_nudged_ones_blind(write: Write) -> None:
    swept = {"cards.amplifier.gain": [0, 0.3], "estimators.*.beta": [1e-2, 1e-3]}
    path = write({"cards": "ideal"}, axes=swept, dies=8, measure="gradient")
    weak = NETWORK | {"cost": NETWORK["cost"] | {"conductance": "1u"}}
    (path.parent / "pair.yaml").write_text(yaml.safe_dump(weak))
    columns = run_sweep(path).table.columns
    assert len(columns["point"]) == 4 * 8 * 2
    assert set(columns["epoch"].tolist()) == {0}
    corrected = columns["estimator"] == "corrected-centred"
    # Gains that differ from amplifier to amplifier are part of the circuit, and of its exact gradient: what
    # is left is the error of a finite beta, centred O(beta^2).
    error = columns["relative_error/x-hidden"][corrected].reshape(2, 2, 8)
    assert 1e-6 < error.max() < 0.02
    np.testing.assert_allclose(error[:, 0] / error[:, 1], 100, rtol=0.05)
    # Feedforward: nothing of a nudge at the output reaches the hidden layer.
    assert np.all(columns["cosine/x-hidden"][~corrected] == 0)
    assert columns["cosine/hidden-out"][~corrected].min() > 1 - 1e-3
    # Dies of an ideal card are alike, others are not.
    some = corrected & (columns["estimators.*.beta"] == 1e-2)
    spread = columns["cards.amplifier.gain"] == 0.3
    assert len(np.unique(columns["test_cost"][spread & some])) == 8
    assert len(np.unique(columns["test_cost"][~spread & some])) == 1


def test_a_second_run_computes_nothing_and_more_dies_only_the_new_ones(write: Write) -> None:
    first = run_sweep(write())
    assert (first.tasks, first.done_before, first.lost) == (18, 0, ())
    before = {path: path.stat().st_mtime_ns for path in (first.folder / "tasks").iterdir()}
    again = run_sweep(write())
    assert (again.tasks, again.done_before) == (18, 18)
    assert_same(again.table, first.table)
    assert_same(read_table(first.table_file), first.table)
    more = run_sweep(write(dies=4))
    assert (more.tasks, more.done_before) == (24, 18)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text(""),
        lambda path: path.write_text(json.dumps([1, 2])),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "other"})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0})),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": []})),
    ],
)
def test_a_damaged_or_foreign_result_is_made_again(write: Write, damage: Callable[[Path], Any]) -> None:
    path = write(dies=1, axes={"cards.amplifier.gain": [0, 0.1]})
    first = run_sweep(path)
    csv = first.csv_file.read_bytes()
    damage(sorted((first.folder / "tasks").iterdir())[0])
    again = run_sweep(path)
    assert (again.tasks, again.done_before) == (2, 1)
    assert_same(again.table, first.table)
    assert again.csv_file.read_bytes() == csv


def test_what_does_not_converge_is_a_result_with_its_message(write: Write) -> None:
    path = write(
        {"network": "loop.yaml", "solver": {"method": "general", "max_iterations": 1}},
        axes={"solver.max_iterations": [1, 200]},
        dies=2,
    )
    result = run_sweep(path)
    assert result.lost == ()
    columns = result.table.columns
    few = columns["solver.max_iterations"] == 1
    assert few.sum() == 2 * 2
    assert all(error.startswith("ConvergenceError: ") for error in columns["error"][few])
    assert np.isnan(columns["test_accuracy"][few]).all()
    assert set(columns["error"][~few]) == {""}
    assert np.isfinite(columns["test_accuracy"][~few]).all()
    assert run_sweep(path).done_before == 4


def test_an_error_of_the_program_loses_its_task_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from circuitsim.study import sweep_tasks

    whole = sweep_tasks._train

    def broken(bench: Any, *args: Any) -> None:
        if bench.experiment.die == 4:
            raise ZeroDivisionError("die 4")
        whole(bench, *args)

    monkeypatch.setattr(sweep_tasks, "_train", broken)
    path = write(axes={"cards.amplifier.gain": [0.1]})
    result = run_sweep(path)
    assert [(outcome.task.die, outcome.lost) for outcome in result.lost] == [(4, "ZeroDivisionError: die 4")]
    assert set(result.table.columns["die"].tolist()) == {3, 5}
    monkeypatch.undo()
    mended = run_sweep(path)
    assert (mended.done_before, mended.lost) == (2, ())
    assert set(mended.table.columns["die"].tolist()) == {3, 4, 5}


# ----------------------------------------------------------------------------------------- engines


def test_units_grow_to_what_is_worth_sending_and_shrink_at_the_end(write: Write) -> None:
    tasks = tasks_of(read_design(write(dies=100, axes={"cards.amplifier.gain": [0, 0.1]})))
    queue = TaskQueue(tasks, workers=2)
    first = queue.take()
    assert len(first) == 1
    result = {"seconds": {"task": 0.02, "rows": []}, "rows": []}
    assert [outcome.seconds for outcome in queue.finished(first, [(result, "")])] == [0.02]
    assert len(queue.take()) == 15
    sizes = []
    while unit := queue.take():
        sizes.append(len(unit))
    assert sum(sizes) == 200 - 16
    assert sizes[-1] == 1
    # At any time enough is left for the other worker.
    left = 184
    for size in sizes:
        assert size <= max(1, left // 4)
        left -= size


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """A sweep of a second or so, and its result in this process."""
    folder = tmp_path_factory.mktemp("many")
    experiment = EXPERIMENT | {"training": {"epochs": 12, "batch": 1, "probe": 4}}
    sweep = SWEEP | {"dies": 6}
    for name, document in (("pair", NETWORK), ("pairs", experiment), ("sweep", sweep)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "sweep.yaml", run_sweep(folder / "sweep.yaml", output=folder / "reference")


class Killer:
    """Watches a sweep and kills one of its workers after some outcomes."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.seen = 0
        self.killed: list[int] = []

    def begin(self, design: Design, folder: Path, tasks: int, done: int) -> None: ...

    def outcome(self, outcome: Outcome) -> None:
        self.seen += 1
        if self.seen == self.after:
            victim = multiprocessing.active_children()[0]
            self.killed.append(victim.pid or 0)
            victim.kill()


def test_two_workers_give_the_same_files_even_if_one_is_killed(
    many: tuple[Path, SweepResult], tmp_path: Path
) -> None:
    path, reference = many
    killer = Killer(after=5)
    result = run_sweep(path, output=tmp_path / "two", workers=2, watcher=killer)
    assert killer.killed
    assert killer.seen == 36
    assert result.lost == ()
    assert_same(result.table, reference.table)
    assert result.csv_file.read_bytes() == reference.csv_file.read_bytes()
    assert kept(result) == kept(reference)
    assert multiprocessing.active_children() == []


class Deadly:
    """Ends the process that unpickles it, at once."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.slow
def test_a_task_that_kills_its_worker_is_given_up_and_the_rest_finishes(write: Write) -> None:
    tasks = tasks_of(read_design(write()))
    deadly: Any = Deadly()
    tasks[7] = replace(tasks[7], documents=deadly)
    outcomes = list(LocalWorkers(workers=2).run(tasks))
    assert sorted(outcome.task.key for outcome in outcomes) == sorted(task.key for task in tasks)
    lost = [outcome for outcome in outcomes if outcome.result is None]
    assert [(outcome.task.key, outcome.lost) for outcome in lost] == [
        (tasks[7].key, "killed its worker process 3 times")
    ]


def test_stopping_early_leaves_no_process_behind(write: Write) -> None:
    outcomes: Iterator[Outcome] = LocalWorkers(workers=2).run(tasks_of(read_design(write())))
    next(outcomes)
    assert len(multiprocessing.active_children()) == 2
    outcomes.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_one_thread_inside_and_what_was_before_outside(write: Write) -> None:
    from threadpoolctl import threadpool_info

    from circuitsim.solver.threads import threads

    def blas() -> list[int]:
        return [library["num_threads"] for library in threadpool_info()]

    before = (threads(), blas(), os.environ.get("CIRCUITSIM_THREADS"))
    outcomes = InProcess().run(tasks_of(read_design(write())))
    next(outcomes)
    assert threads() == 1
    assert set(blas()) == {1}
    outcomes.close()  # type: ignore[attr-defined]
    assert (threads(), blas(), os.environ.get("CIRCUITSIM_THREADS")) == before


def test_a_scheduler_that_is_not_there_is_one_clear_error(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(dies=1)
    with pytest.raises(SpecError, match="--workers: is for local processes only"):
        run_sweep(path, workers=2, scheduler="tcp://localhost:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SpecError, match=r"not installed .* pip install 'circuitsim\[cluster\]'"):
        run_sweep(path, scheduler="tcp://localhost:1")


CLUSTER = """
import sys
from distributed import Client, LocalCluster
from circuitsim.study.sweep import run_sweep

class Killer:
    def __init__(self, cluster):
        self.cluster, self.seen = cluster, 0
    def begin(self, *args): ...
    def outcome(self, outcome):
        self.seen += 1
        if self.seen == 3:
            import os, signal
            os.kill(next(iter(self.cluster.workers.values())).pid, signal.SIGKILL)

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        killer = Killer(cluster)
        result = run_sweep(sys.argv[1], output=__import__("pathlib").Path(sys.argv[2]),
                           scheduler=cluster.scheduler_address, watcher=killer)
        print(killer.seen, len(result.lost))
"""


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_files_even_if_a_worker_is_killed(
    many: tuple[Path, SweepResult], tmp_path: Path
) -> None:
    pytest.importorskip("distributed", exc_type=ImportError)
    path, reference = many
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(tmp_path / "dask")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["36", "0"]
    assert (tmp_path / "dask" / "gains.csv").read_bytes() == reference.csv_file.read_bytes()


class Client:
    """What is asked of a dask client that has lost its cluster."""

    def __init__(self, status: str, workers: int) -> None:
        self.status, self.workers = status, workers

    def nthreads(self) -> dict[str, int]:
        return {f"worker {k}": 1 for k in range(self.workers)}


def test_a_cluster_may_be_without_workers_for_a_while_only() -> None:
    cluster = Cluster(address="tcp://there:8786")
    long_ago = time.monotonic() - 50
    assert cluster._watch(Client("running", 2), long_ago) > long_ago + 49
    assert cluster._watch(Client("running", 0), long_ago) == long_ago
    with pytest.raises(CircuitsimError, match=r"no worker for 60 s .*the same command goes on"):
        cluster._watch(Client("running", 0), long_ago - 11)
    with pytest.raises(CircuitsimError, match="the scheduler has closed it"):
        cluster._watch(Client("closed", 2), long_ago)
