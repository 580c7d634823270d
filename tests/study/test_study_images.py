"""Experiments on sets of images: what they may say, what their records hold, and going on with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from image_sets import TEST_IMAGES, TRAIN_IMAGES, write_images

from circuitsim.errors import RecordError, SpecError
from circuitsim.learning import Phases
from circuitsim.network import parse_document
from circuitsim.record import RunRecord, read_record
from circuitsim.solver import Drive
from circuitsim.study import load_experiment, prepare, resume_experiment, run_experiment
from circuitsim.study.experiment import DataSpec, ExperimentSpec

NETWORK: dict[str, Any] = {
    "name": "small",
    "inputs": {"pixels": {"size": 784, "gain": "100m"}},
    "layers": {
        "hidden": {"size": 6, "neuron": {"kind": "tanh", "gain": 60, "saturation": "200m"}},
        "output": {"size": 10, "neuron": {"kind": "linear"}},
    },
    "synapses": [{"from": "pixels", "to": "hidden"}, {"from": "hidden", "to": "output"}],
    "output": {"layer": "output"},
    "cost": {"kind": "cross_entropy", "conductance": "100u", "scale": "20m"},
}
EXPERIMENT: dict[str, Any] = {
    "name": "images",
    "network": "network.yaml",
    "data": {"set": "mnist"},
    "estimators": [{"kind": "asymep"}],
    "training": {"epochs": 3, "batch": 50, "probe": 8, "optimiser": {"step": 0.03}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment on 200 images, which CIRCUITSIM_DATA names."""
    write_images(tmp_path / "mnist", train=200, test=50)
    monkeypatch.setenv("CIRCUITSIM_DATA", str(tmp_path))
    (tmp_path / "network.yaml").write_text(yaml.safe_dump(NETWORK))
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT | changes))
    return path


class Stop:
    """A watcher that stops the run after its first epoch."""

    def begin(self, bench: Any, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None: ...

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt


def interrupted(path: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(path, watcher=Stop())
    (record,) = path.parent.glob("*.h5")
    return record


def datasets(record: RunRecord) -> dict[str, np.ndarray]:
    state = {f"{name}/{key}": array for name, arm in record.arms.items() for key, array in arm.state.items()}
    return {**record.extras, **state}


def test_bars_are_learned_and_the_record_does_not_hold_the_images(folder: Path) -> None:
    record = run_experiment(write(folder))
    arm = record.arms["corrected-centred"]
    assert arm.metrics["test_accuracy"][-1] > 0.6
    assert arm.metrics["kcl_residual"].max() < 1e-9
    assert record.header["data"]["name"] == "mnist"
    np.testing.assert_array_equal(record.header["figures"]["image_shape"], (28, 28))
    # No array is as long as the set, and more samples take no more space.
    assert max(max(array.shape, default=0) for array in datasets(record).values()) <= 784
    write_images(folder / "mnist", train=900, test=50)
    larger = run_experiment(write(folder, name="larger"))
    assert larger.path.stat().st_size == pytest.approx(record.path.stat().st_size, abs=200)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_run_goes_on_to_the_same_numbers(folder: Path, precision: str) -> None:
    path = write(folder, solver={"precision": precision})
    whole = run_experiment(path, output=folder / "whole.h5")
    whole.path.rename(folder / "whole")
    record = interrupted(path)
    resumed = resume_experiment(record)
    wanted, found = read_record(folder / "whole").arms, resumed.arms
    for name, arm in wanted.items():
        for metric, values in arm.metrics.items():
            if metric != "seconds":
                np.testing.assert_array_equal(found[name].metrics[metric], values)
        bench = prepare(load_experiment(path), folder=folder)
        fresh = bench.trainer(bench.estimators[name]).state()
        for key, array in arm.state.items():
            assert array.dtype == found[name].state[key].dtype == fresh[key].dtype
            np.testing.assert_array_equal(found[name].state[key], array)


def test_a_run_does_not_go_on_with_other_images(folder: Path) -> None:
    record = interrupted(write(folder))
    before = record.read_bytes()
    write_images(folder / "mnist", train=200, test=50, seed=3)
    with pytest.raises(RecordError) as error:
        resume_experiment(record)
    assert str(error.value) == (
        f"{record}: data: was made from other samples: the files of mnist have changed. "
        "Set CIRCUITSIM_DATA as it was when the run began, or start the run again."
    )
    assert record.read_bytes() == before
    for name in (TRAIN_IMAGES, TEST_IMAGES):
        (folder / "mnist" / name).unlink()
    with pytest.raises(SpecError, match="lacks files of mnist"):
        resume_experiment(record)


def test_inputs_of_single_precision_drive_the_circuit_as_they_are(folder: Path) -> None:
    """The voltages at the pins are the exact products of gain and the stored pixels."""
    bench = prepare(load_experiment(write(folder)), folder=folder)
    inputs = bench.data.test_inputs[:3]
    assert inputs.dtype == np.float32
    phases = Phases(plan=bench.plan, values=bench.chip.values, cost=bench.cost)
    free, wide = phases.free(inputs), phases.free(inputs.astype(np.float64))
    np.testing.assert_array_equal(free.node_voltage, wide.node_voltage)
    assert free.node_voltage.dtype == np.float64
    netlist = bench.plan.netlist
    pins = netlist.vsource.pos[netlist.inputs.source]
    drive = Drive.of(netlist, inputs).inputs
    np.testing.assert_array_equal(
        free.node_voltage[:, pins], drive[:, netlist.inputs.column] * netlist.inputs.gain
    )


def test_limits_reach_the_set(folder: Path) -> None:
    path = write(folder, data={"set": "mnist", "pixels": "unit", "train_samples": 120, "test_samples": 5})
    data = prepare(load_experiment(path), folder=folder).data
    assert (data.train_inputs.shape, data.test_inputs.shape) == ((120, 784), (5, 784))
    assert data.train_inputs.min() == 0
    path = write(folder, data={"set": "mnist", "test_samples": 51})
    with pytest.raises(SpecError) as error:
        prepare(load_experiment(path), folder=folder, file=path)
    assert str(error.value) == (
        f"{path}: data.test_samples: must be from 1 to the 50 samples of mnist (got 51)"
    )


PUBLISHED = (
    "is no option of {set}: its test samples are published apart from the others (got {value}). "
    "Leave it out; train_samples and test_samples take fewer of them."
)


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ({"set": "mnist", "test_fraction": 0.2}, "test_fraction", PUBLISHED),
        ({"set": "fashion_mnist", "split_seed": 1}, "split_seed", PUBLISHED),
        ({"set": "mnist", "samples": 400}, "samples", PUBLISHED),
        ({"train_samples": 100}, "train_samples", "is no option of digits (got {value})"),
        ({"set": "xor", "test_samples": 4}, "test_samples", "is no option of xor (got {value})"),
        ({"set": "product", "pixels": "unit"}, "pixels", "is no option of product (got {value})"),
        ({"file": "lab.csv", "inputs": ["x"], "label": "y", "pixels": "unit"}, "pixels",
         "is no option of a file (got {value})"),
    ],
)  # fmt: skip
def test_options_of_other_sets_are_refused(data: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_document(ExperimentSpec, EXPERIMENT | {"data": data}, file="e.yaml")
    text = message.format(set=data.get("set"), value=repr(data[field]))
    assert str(error.value) == f"e.yaml: data.{field}: {text}"


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"set": "mnist"}, {}),
        (
            {"set": "fashion_mnist", "pixels": "unit", "test_samples": 3},
            {"pixels": "unit", "test_samples": 3},
        ),
        ({"test_fraction": 0, "pixels": "unit"}, {"test_fraction": 0, "pixels": "unit"}),
        # As records of earlier versions have them.
        ({"set": "xor", "samples": 400, "test_fraction": 0.2, "split_seed": 0}, {}),
        ({"set": "digits", "samples": 400, "test_fraction": 0.2}, {"test_fraction": 0.2}),
        (
            {"file": "a.csv", "inputs": ["x"], "label": "y", "samples": 400, "split_seed": 2},
            {"split_seed": 2},
        ),
    ],
)
def test_what_a_set_is_loaded_with(data: dict[str, Any], options: dict[str, Any]) -> None:
    spec = DataSpec.model_validate(data)
    assert spec.options() == options
    assert DataSpec.model_validate(spec.model_dump(mode="json")) == spec
