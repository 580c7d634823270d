"""Experiments on a deck that somebody drew: they learn, resume, and say what does not fit."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from circuitsim.errors import CircuitsimError, SpecError
from circuitsim.netlist import flatten
from circuitsim.record import RunRecord, read_record
from circuitsim.spice.reader import read_deck
from circuitsim.study import load_experiment, prepare, resume_experiment, run_experiment

XOR: dict[str, Any] = {
    "name": "corners",
    "deck": "mixer.cir",
    "roles": {
        "inputs": {"sources": ["Va", "VB"]},
        "outputs": ["out"],
        "trainable": [
            {"name": "hidden", "resistors": "Rw*", "min": "1u", "max": "100u", "initial": "random"},
            {"name": "output", "resistors": ["Rv[1-5]*", "rvup", "rvdn"], "min": "1u", "max": "100u"},
        ],
        "cost": {"kind": "squared_error", "conductance": "1m", "high": "200m", "low": "-200m"},
    },
    "data": {"set": "xor"},
    "estimators": [{"kind": "asymep"}, {"kind": "ep"}, {"kind": "adjoint"}],
    "training": {
        "epochs": 60,
        "batch": 4,
        "optimiser": {"step": 0.05, "schedule": {"kind": "cosine", "floor": 0.05}},
    },
}
PRODUCT: dict[str, Any] = XOR | {
    "name": "multiplier",
    "data": {"set": "product", "samples": 200, "target_gain": "200m"},
    "estimators": [{"kind": "dyadic"}],
    "training": XOR["training"] | {"epochs": 25, "batch": 10, "probe": 8},
}
TABLE: dict[str, Any] = PRODUCT | {
    "data": {"file": "lab.csv", "inputs": ["left", "right"], "targets": ["output"], "test_fraction": 0.25},
    "estimators": [{"kind": "asymep"}, {"kind": "dyadic"}],
    "training": XOR["training"] | {"epochs": 3, "batch": 10, "probe": 8},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, repo_root: Path) -> Write:
    """Write an experiment with some keys changed, the deck and a table of samples; return its path."""

    def written(document: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Path:
        document = copy.deepcopy(dict(document))
        for place, value in (changes or {}).items():
            *path, last = place.split(".")
            inner: Any = document
            for part in path:
                inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        shutil.copy(repo_root / "netlists" / "mixer.cir", tmp_path)
        rng = np.random.default_rng(5)
        u = rng.uniform(-1, 1, (40, 2))
        rows = [f"{a!r},{b!r},{0.1 * a - 0.05 * b!r},{'up' if a > b else 'down'}" for a, b in u.tolist()]
        (tmp_path / "lab.csv").write_text("\n".join(["left,right,output,side", *rows]))
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return written


class Stop:
    """A watcher that stops the run after one step of one epoch."""

    def __init__(self, arm: str, epoch: int) -> None:
        self.place = (arm, epoch)

    def begin(self, bench: Any, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None:
        if (name, epoch) == self.place:
            raise KeyboardInterrupt


def same_run(a: RunRecord, b: RunRecord) -> None:
    """Bit for bit, but for the time that training took."""
    assert a.finished
    assert b.finished
    for name, arm in a.arms.items():
        for metric, values in arm.metrics.items():
            if metric != "seconds":
                np.testing.assert_array_equal(values, b.arms[name].metrics[metric])
        for key, array in arm.state.items():
            np.testing.assert_array_equal(array, b.arms[name].state[key])
    assert set(a.extras) == set(b.extras)
    for key, array in a.extras.items():
        np.testing.assert_array_equal(array, b.extras[key])


def test_corrected_phases_learn_xor_and_a_nudge_alone_does_not(write: Write) -> None:
    run = run_experiment(write(XOR, {"roles.trainable.1.initial": "random"}))
    final = {name: arm.metrics["test_accuracy"][-1] for name, arm in run.arms.items()}
    assert final["corrected-centred"] == final["adjoint"] == 1.0
    assert final["nudged-only"] < 1.0
    costs = {name: arm.metrics["test_cost"][-1] for name, arm in run.arms.items()}
    # Every corner within 10 mV of its 200 mV.
    assert costs["corrected-centred"] < 1e-3 / 2 * 0.01**2
    assert costs["nudged-only"] > 1e-3 / 2 * 0.1**2
    corrected, nudged = run.arms["corrected-centred"].metrics, run.arms["nudged-only"].metrics
    for name in ("hidden", "output"):
        assert corrected[f"cosine/{name}"][:20].min() > 0.999
        assert nudged[f"cosine/{name}"][:20].mean() < 0.5
    assert run.extras["sample/label"] == [0]
    assert run.extras["sample/probability"][0] > 0.9
    assert run.extras["sample/voltage/nodes"].shape == (23,)
    assert run.header["data"] == {
        "name": "xor",
        "classes": 2,
        "class_names": [],
        "held_out": False,
        "digest": "",
    }


def test_the_same_deck_learns_a_product(write: Write) -> None:
    run = run_experiment(write(PRODUCT, {"roles.trainable.1.initial": "random"}))
    metrics = run.arms["dyadic"].metrics
    wanted, output = run.extras["test/target"], run.extras["test/output"]
    assert wanted.shape == output.shape == (40, 1)
    error = np.sqrt(np.mean((output - wanted) ** 2))
    assert error == pytest.approx(metrics["test_rms_error"][-1], rel=1e-6)
    # The best constant is off by 67 mV, the best linear function of the inputs too.
    assert np.sqrt(np.mean((wanted - wanted.mean()) ** 2)) > 0.05
    assert error < 0.02
    assert "sample/probability" not in run.extras


def test_conductances_of_the_deck_are_where_training_starts(write: Write) -> None:
    path = write(XOR, {"roles.trainable.0.initial": "deck"})
    bench = prepare(load_experiment(path), folder=path.parent, file=path)
    drawn = read_deck(path.with_name("mixer.cir")).netlist
    assert bench.network is None
    table = flatten(bench.chip.netlist).netlist.resistor
    np.testing.assert_array_equal(np.sort(table.conductance), np.sort(drawn.resistor.conductance))
    assert bench.plan.netlist.resistor.name == ("rload",)
    random = prepare(load_experiment(write(XOR)), folder=path.parent)
    for name, kept in (("hidden", False), ("output", True)):
        same = np.array_equal(random.chip.target[name][0], bench.chip.target[name][0])
        assert same == kept


def test_a_run_on_a_table_resumes_without_its_files(write: Write, tmp_path: Path) -> None:
    whole = run_experiment(write(TABLE), output=tmp_path / "whole.h5")
    for stop in (("corrected-centred", 1), ("dyadic", 0)):
        path = write(TABLE)
        record = tmp_path / "stopped.h5"
        with pytest.raises(KeyboardInterrupt):
            run_experiment(path, output=record, overwrite=True, watcher=Stop(*stop))
        assert not read_record(record).finished
        for file in (path, path.with_name("mixer.cir"), path.with_name("lab.csv")):
            file.unlink()
        same_run(resume_experiment(record), whole)
    assert whole.extras["data/train_inputs"].shape == (30, 2)
    assert whole.extras["data/test_labels"].shape == (10, 1)


def test_classes_from_a_table(write: Write) -> None:
    data = {"file": "lab.csv", "inputs": ["left", "right"], "label": "side", "test_fraction": 0}
    path = write(XOR | {"data": data}, {"estimators": [{"kind": "adjoint"}], "training.epochs": 25})
    run = run_experiment(path)
    assert run.header["data"] == {
        "name": "lab",
        "classes": 2,
        "class_names": ["down", "up"],
        "held_out": False,
        "digest": "",
    }
    assert run.arms["adjoint"].metrics["test_accuracy"][-1] >= 0.9


def test_a_record_holds_the_deck(write: Write, tmp_path: Path) -> None:
    run = run_experiment(write(TABLE, {"training.epochs": 1, "estimators": [{"kind": "adjoint"}]}))
    document = json.loads(json.dumps(run.header))
    assert document["network"] is None
    assert "rw1a" in document["deck"]["elements"]["resistor"]["name"]
    drawn = read_deck(tmp_path / "mixer.cir").netlist
    assert len(document["deck"]["elements"]["resistor"]["name"]) == len(drawn.resistor)


def test_a_network_description_learns_wanted_outputs_too(write: Write, tmp_path: Path) -> None:
    network = {
        "name": "small",
        "inputs": {"u": {"size": 2, "gain": "300m"}},
        "layers": {
            "hidden": {"size": 6, "neuron": {"kind": "tanh", "gain": 12, "saturation": "200m"}, "bias": {}},
            "out": {"size": 1, "neuron": {"kind": "linear"}, "bias": {"voltage": "100m"}},
        },
        "synapses": [{"from": "u", "to": "hidden"}, {"from": "hidden", "to": "out"}],
        "output": {"layer": "out"},
        "cost": {"kind": "squared_error", "conductance": "100u"},
    }
    (tmp_path / "network.yaml").write_text(yaml.safe_dump(network))
    changes = {"deck": None, "roles": None, "network": "network.yaml", "training.epochs": 12}
    run = run_experiment(write(TABLE, changes))
    assert run.header["deck"] is None
    error = run.arms["dyadic"].metrics["test_rms_error"]
    assert error[-1] < 0.5 * error[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"roles.inputs.sources": ["va", "vc"]},
            "{path}: roles.inputs.1: no voltage source of mixer.cir has this name (got 'vc'). "
            "Voltage sources there: va, vb, vdn, vup.",
        ),
        (
            {"roles.outputs": ["sums"]},
            "{path}: roles.outputs.0: no node of mixer.cir has this name (got 'sums'). Did you mean sum? "
            "Nodes there: a, an, b, bn, dn, h1, h2, h3, h4, h5, out, sum and 11 more.",
        ),
        (
            {"roles.trainable.0.resistors": "Rx*"},
            "{path}: roles.trainable.0.resistors: matches no resistor of mixer.cir (got 'Rx*'). "
            "Resistors there: rload, rv1, rv1n, rv2, rv2n, rv3, rv3n, rv4, rv4n, rv5, rv5n, rvdn "
            "and 31 more.",
        ),
        (
            {"roles.trainable.1.max": "20u"},
            "{path}: roles.trainable.1: rv1 starts at 83.33 uS, outside its window 1 uS to 20 uS "
            "(got 'output'). Widen the window, change the resistor, or set initial: random.",
        ),
        (
            {"roles.inputs.sources": ["va"]},
            "{path}: roles.inputs: data set xor needs 2 inputs (got 1). "
            "Change the deck's inputs or the data set.",
        ),
        (
            {"roles.outputs": ["out", "sum", ["x1", "x2"]]},
            "{path}: roles.outputs: data set xor needs 2 outputs (got 3). "
            "Change the deck's outputs or the data set.",
        ),
        (
            {"roles.cost": {"kind": "cross_entropy"}},
            "{path}: roles.outputs: data set xor needs 2 outputs (got 1). "
            "Change the deck's outputs or the data set.",
        ),
        (
            {"data.set": "product", "roles.cost": {"kind": "cross_entropy"}},
            "{path}: roles.cost.kind: data set product has wanted outputs, no classes (got 'cross_entropy'). "
            "Use squared_error.",
        ),
        (
            {"training.optimiser.rates": {"Rw1a": 2}},
            "{path}: training.optimiser.rates: is not a trainable crossbar (got 'Rw1a'). "
            "Crossbars: hidden, output.",
        ),
        (
            {"deck": "mixed.cir"},
            "{path}: deck: names a file that does not exist (got 'mixed.cir'). "
            "Paths are relative to the experiment's own folder.",
        ),
        (
            {"roles": None},
            "{path}: roles: is required with a deck (got None). "
            "Say what is driven, read and trained: inputs, outputs, trainable, cost.",
        ),
        (
            {"network": "some.yaml"},
            "{path}: deck: give a network or a deck, not both (got 'mixer.cir')",
        ),
        (
            {"deck": None, "roles": None},
            "{path}: network: a network or a deck is required (got None). "
            "Name a network description, or a deck with its roles.",
        ),
        (
            {"deck": None, "network": "some.yaml"},
            "{path}: roles: is for a deck (got None). "
            "A network description has its own inputs, outputs and cost.",
        ),
        (
            {"roles.outputs": [["out", "a", "b"]]},
            "{path}: roles.outputs.0: must be a node, or a pair of nodes [positive, negative] "
            "(got ['out', 'a', 'b'])",
        ),
        (
            {"roles.inputs.gain": [1, 2, 3]},
            "{path}: roles.inputs.gain: must be one gain, or one for each of the 2 sources (got 3)",
        ),
        (
            {"roles.trainable.1.name": "hidden"},
            "{path}: roles.trainable.1.name: is the name of two entries (got 'hidden')",
        ),
        (
            {"roles.trainable.0.min": "200u"},
            "{path}: roles.trainable.0: min must not exceed max: 0.0002 S > 0.0001 S "
            "(got {{'initial': 'random', 'max': '100u', 'min': '200u', 'name': 'hidden', 'resist...)",
        ),
        (
            {"roles.trainable.0.resistor": "Rw*"},
            "{path}: roles.trainable.0.resistor: unknown key. Did you mean `resistors`? "
            "Known keys: initial, max, min, name, resistors.",
        ),
        (
            {"data.file": "lab.csv"},
            "3 problems:\n"
            "  - {path}: data.set: give a set or a file, not both (got 'xor')\n"
            "  - {path}: data.inputs: is required with a file (got None). Name the columns of the inputs.\n"
            "  - {path}: data.targets: give targets for wanted outputs or label for classes: one of the two "
            "(got None)",
        ),
        (
            {"data": {"file": "lab.csv", "inputs": ["left", "rihgt"], "targets": ["output"]}},
            "{path}: data.inputs: no column of {folder}/lab.csv has this name (got 'rihgt'). "
            "Did you mean right? Columns there: left, right, output, side.",
        ),
        (
            {"data.inputs": ["left"]},
            "{path}: data.inputs: is for data from a file (got ['left'])",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_one_error(write: Write, change: dict[str, Any], message: str) -> None:
    path = write(XOR, change)
    with pytest.raises(CircuitsimError) as error:
        run_experiment(path)
    assert str(error.value) == message.format(path=path, folder=path.parent)
    assert error.value.exit_code == 2
    assert not list(path.parent.glob("*.h5"))


def test_a_deck_that_is_wrong_is_named(write: Write) -> None:
    path = write(XOR)
    deck = path.with_name("mixer.cir")
    deck.write_text(deck.read_text().replace("Rload out", "Q1 a b c d\nRload out"))
    with pytest.raises(CircuitsimError) as error:
        run_experiment(path)
    assert error.value.exit_code == 2
    assert "mixer.cir" in str(error.value)
    assert "q1" in str(error.value).lower()


def test_several_roles_that_do_not_fit_come_at_once(write: Write) -> None:
    path = write(XOR, {"roles.inputs.sources": ["vx", "vy"], "roles.outputs": ["zz"]})
    with pytest.raises(SpecError) as error:
        run_experiment(path)
    first = "inputs.0: no voltage source of mixer.cir has this name (got 'vx')"
    assert str(error.value).startswith(f"{path}: roles: 3 problems:\n  - {first}")
