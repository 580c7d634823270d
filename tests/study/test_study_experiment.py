"""From an experiment file to its record: repeatable, resumable, and honest about failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from image_sets import write_images

from circuitsim.compiler import compile_network
from circuitsim.errors import ConvergenceError, RecordError, SpecError
from circuitsim.learning import Phases
from circuitsim.learning import phases as phases_module
from circuitsim.network import read_document
from circuitsim.record import RunRecord, RunWriter, read_record
from circuitsim.study import load_experiment, prepare, resume_experiment, run_experiment

NETWORK: dict[str, Any] = {
    "name": "tiny",
    "inputs": {"pixels": {"size": 64, "gain": "100m"}},
    "layers": {
        "hidden": {
            "size": 6,
            "neuron": {"kind": "tanh", "gain": 12, "saturation": "200m"},
            "bias": {"voltage": "100m"},
        },
        "output": {"size": 10, "neuron": {"kind": "linear"}},
    },
    "synapses": [
        {"from": "pixels", "to": "hidden"},
        {"from": "hidden", "to": "output"},
        {"from": "output", "to": "hidden", "name": "feedback", "connectivity": {"density": 0.5}},
    ],
    "output": {"layer": "output"},
    "cost": {"kind": "cross_entropy", "conductance": "100u", "scale": "20m"},
}
CARD = {
    "name": "spread",
    "source": "test",
    "crossbar": {"device_to_device": 0.05},
    "amplifier": {"offset": "1mV"},
}
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "network": "network.yaml",
    "cards": "card.yaml",
    "data": {"set": "digits", "test_fraction": 0.2},
    "estimators": [{"kind": "asymep", "beta": 0.01}, {"kind": "adjoint"}, {"kind": "ep"}],
    "training": {
        "epochs": 3,
        "batch": 400,
        "probe": 8,
        "optimiser": {"step": 0.05, "schedule": {"kind": "cosine", "floor": 0.1}},
    },
    "seed": 4,
}


def write(folder: Path, experiment: dict[str, Any], **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"network": NETWORK, "card": CARD, **files}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return path


class Recorder:
    """A watcher that writes down what it is told, and may stop the run."""

    def __init__(self, *, arm: str = "", epoch: int = -1, step: int = -1) -> None:
        self.events: list[tuple[Any, ...]] = []
        self._stop = (arm, epoch, step)

    def begin(self, bench: Any, record: Path) -> None:
        self.events.append(("begin", record.name, list(bench.estimators)))

    def arm(self, name: str, done: int, epochs: int) -> None:
        self.events.append(("arm", name, done, epochs))

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None:
        self.events.append(("step", name, epoch, step, steps))
        if (name, epoch, step) == self._stop:
            raise KeyboardInterrupt

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
        self.events.append(("epoch", name, epoch))
        if (name, epoch, -1) == self._stop:
            raise KeyboardInterrupt


def assert_same_run(a: RunRecord, b: RunRecord) -> None:
    """Bit for bit, but for the time that training took."""
    assert a.finished
    assert b.finished
    assert list(a.arms) == list(b.arms)
    for name, arm in a.arms.items():
        other = b.arms[name]
        assert arm.epochs_done == other.epochs_done == arm.epochs
        assert set(arm.metrics) == set(other.metrics)
        for metric, values in arm.metrics.items():
            assert np.isfinite(values).all()
            if metric != "seconds":
                np.testing.assert_array_equal(values, other.metrics[metric])
        assert set(arm.state) == set(other.state)
        for key, array in arm.state.items():
            np.testing.assert_array_equal(array, other.state[key])
    assert set(a.extras) == set(b.extras)
    for key, array in a.extras.items():
        np.testing.assert_array_equal(array, b.extras[key])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run that nothing interrupted."""
    return run_experiment(write(tmp_path_factory.mktemp("whole"), EXPERIMENT))


def test_a_run_writes_a_finished_record_beside_its_file(whole: RunRecord) -> None:
    assert whole.path.name == "tiny-s4.h5"
    assert whole.finished
    assert list(whole.arms) == ["corrected-centred", "adjoint", "nudged-only"]
    for arm in whole.arms.values():
        assert arm.epochs_done == 3
        assert np.all(arm.metrics["kcl_residual"] < 1e-9)
    accuracy = {name: arm.metrics["test_accuracy"][-1] for name, arm in whole.arms.items()}
    assert accuracy["corrected-centred"] > 0.3
    costs = {name: arm.metrics["test_cost"] for name, arm in whole.arms.items()}
    assert costs["corrected-centred"][-1] < costs["corrected-centred"][0]
    np.testing.assert_allclose(costs["corrected-centred"], costs["adjoint"], rtol=1e-3)
    assert costs["nudged-only"][-1] > costs["adjoint"][-1]


def test_a_run_can_be_repeated_bit_for_bit(whole: RunRecord, tmp_path: Path) -> None:
    assert_same_run(run_experiment(write(tmp_path, EXPERIMENT)), whole)


def test_another_seed_is_another_run(whole: RunRecord, tmp_path: Path) -> None:
    experiment = EXPERIMENT | {"estimators": [{"kind": "adjoint"}]}
    other = run_experiment(write(tmp_path, experiment), seed=5)
    assert other.path.name == "tiny-s5.h5"
    assert other.header["seed"] == 5
    assert other.header["experiment"]["seed"] == 5
    mine, theirs = other.arms["adjoint"].metrics, whole.arms["adjoint"].metrics
    assert np.all(mine["test_cost"] != theirs["test_cost"])


@pytest.mark.parametrize(
    "stop",
    [
        {"arm": "corrected-centred", "epoch": 0},
        {"arm": "adjoint", "epoch": 1},
        {"arm": "adjoint", "epoch": 1, "step": 2},
        {"arm": "nudged-only", "epoch": 0, "step": 1},
        {"arm": "nudged-only", "epoch": 2},
    ],
    ids=["first", "between epochs", "within an epoch", "before an arm's first", "after the last"],
)
def test_an_interrupted_run_resumes_to_the_same_numbers(
    whole: RunRecord, tmp_path: Path, stop: dict[str, Any]
) -> None:
    path = write(tmp_path, EXPERIMENT)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(path, watcher=Recorder(**stop))
    (record,) = tmp_path.glob("*.h5")
    part = read_record(record)
    assert not part.finished
    names = list(whole.arms)
    place = names.index(stop["arm"])
    reached = stop["epoch"] + ("step" not in stop)
    expected = [3] * place + [reached] + [0] * (len(names) - place - 1)
    assert [arm.epochs_done for arm in part.arms.values()] == expected
    for name, arm in part.arms.items():
        for metric, values in arm.metrics.items():
            if metric != "seconds":
                np.testing.assert_array_equal(values, whole.arms[name].metrics[metric][: arm.epochs_done])
    # From the record alone: the files that made it are gone.
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    watcher = Recorder()
    assert_same_run(resume_experiment(record, watcher=watcher), whole)
    assert [event[1:3] for event in watcher.events if event[0] == "arm"] == list(
        zip(names, expected, strict=True)
    )
    assert not [event for event in watcher.events if event[0] == "epoch" and event[1] in names[:place]]


def test_a_run_interrupted_twice_still_ends_the_same(whole: RunRecord, tmp_path: Path) -> None:
    path = write(tmp_path, EXPERIMENT)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(path, watcher=Recorder(arm="corrected-centred", epoch=1, step=3))
    (record,) = tmp_path.glob("*.h5")
    with pytest.raises(KeyboardInterrupt):
        resume_experiment(record, watcher=Recorder(arm="adjoint", epoch=0))
    assert_same_run(resume_experiment(record), whole)


def test_resuming_a_finished_run_changes_nothing(whole: RunRecord) -> None:
    before = whole.path.read_bytes()
    watcher = Recorder()
    assert resume_experiment(whole.path, watcher=watcher).finished
    assert watcher.events == []
    assert whole.path.read_bytes() == before


def test_the_record_holds_enough_to_run_again(whole: RunRecord, tmp_path: Path) -> None:
    header = json.loads(json.dumps(whole.header))
    experiment = header["experiment"] | {"network": "network.yaml", "cards": ["card.yaml"]}
    path = write(tmp_path, experiment, network=header["network"], card=header["card"])
    again = run_experiment(path)
    assert_same_run(again, whole)
    assert again.header["digest"] == whole.header["digest"]
    assert {"circuitsim", "python", "numpy"} <= set(header["provenance"]) | set(
        header["provenance"].get("packages", {})
    )


def test_the_record_holds_where_training_started(whole: RunRecord, tmp_path: Path) -> None:
    bench = prepare(load_experiment(write(tmp_path, EXPERIMENT)), folder=tmp_path)
    for name, (plus, minus) in bench.chip.target.items():
        np.testing.assert_array_equal(whole.extras[f"initial/{name}/g_plus"], plus)
        np.testing.assert_array_equal(whole.extras[f"initial/{name}/g_minus"], minus)  # type: ignore[arg-type]
        final = whole.arms["corrected-centred"].state[f"conductance/{name}/g_plus"]
        assert np.any(final != plus)


def test_the_sample_of_the_record_is_the_headline_arm_at_its_end(whole: RunRecord, tmp_path: Path) -> None:
    bench = prepare(load_experiment(write(tmp_path, EXPERIMENT)), folder=tmp_path)
    assert bench.headline == "corrected-centred"
    trainer = bench.trainer(bench.estimators[bench.headline])
    trainer.restore(whole.arms[bench.headline].state)
    free = trainer.phases().free(bench.data.test_inputs[:1])
    for name, nodes in bench.plan.netlist.groups.items():
        np.testing.assert_allclose(
            whole.extras[f"sample/voltage/{name}"], free.node_voltage[0, nodes], rtol=1e-9, atol=1e-12
        )
    np.testing.assert_array_equal(whole.extras["sample/input"], bench.data.test_inputs[0])
    assert whole.extras["sample/label"] == bench.data.test_labels[:1]
    assert whole.extras["sample/probability"].sum() == pytest.approx(1.0)


def test_a_watcher_is_told_every_step(tmp_path: Path) -> None:
    experiment = EXPERIMENT | {
        "estimators": [{"kind": "adjoint"}, {"kind": "dyadic"}],
        "training": EXPERIMENT["training"] | {"epochs": 2, "batch": 700},
    }
    watcher = Recorder()
    run_experiment(write(tmp_path, experiment), watcher=watcher)
    expected: list[tuple[Any, ...]] = [("begin", "tiny-s4.h5", ["adjoint", "dyadic"])]
    for name in ("adjoint", "dyadic"):
        expected.append(("arm", name, 0, 2))
        for epoch in range(2):
            expected += [("step", name, epoch, 1, 2), ("step", name, epoch, 2, 2), ("epoch", name, epoch)]
    assert watcher.events == expected


@pytest.fixture
def short() -> dict[str, Any]:
    training = EXPERIMENT["training"] | {"epochs": 3, "batch": 1437}
    return EXPERIMENT | {"estimators": [{"kind": "adjoint"}], "training": training}


def test_a_second_run_takes_the_next_free_name(tmp_path: Path, short: dict[str, Any]) -> None:
    path = write(tmp_path, short)
    first, second = run_experiment(path), run_experiment(path)
    assert first.path != second.path
    assert sorted(file.name for file in tmp_path.glob("*.h5")) == sorted([first.path.name, second.path.name])
    with pytest.raises(RecordError):
        run_experiment(path, output=first.path)
    assert_same_run(run_experiment(path, output=first.path, overwrite=True), second)


def test_a_solve_that_fails_keeps_the_epochs_before(
    tmp_path: Path, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of the third epoch are allowed one sweep, which no network with a loop settles in."""
    path = write(tmp_path, short)
    reference = run_experiment(path, output=tmp_path / "reference.h5")
    free = Phases.free
    epochs = 0

    class Starving(Recorder):
        def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None:
            nonlocal epochs
            epochs += 1

    def starved(self: Phases, *rest: Any, **options: Any) -> Any:
        if epochs < 2:
            return free(self, *rest, **options)
        settings = replace(self.settings, method="layered", max_iterations=1)
        return free(replace(self, settings=settings), *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(phases_module.Phases, "free", starved)
        with pytest.raises(ConvergenceError) as error:
            run_experiment(path, watcher=Starving())
    assert error.value.exit_code == 3
    assert "estimator adjoint, epoch 3" in str(error.value)
    assert "did not converge" in str(error.value)
    assert "keeps the epochs before" in str(error.value)
    record = tmp_path / "tiny-s4.h5"
    assert error.value.file == str(record)
    part = read_record(record)
    assert not part.finished
    assert part.arms["adjoint"].epochs_done == 2
    np.testing.assert_array_equal(
        part.arms["adjoint"].metrics["test_cost"], reference.arms["adjoint"].metrics["test_cost"][:2]
    )
    assert_same_run(resume_experiment(record), reference)


def test_the_solver_settings_of_the_file_are_used(tmp_path: Path, short: dict[str, Any]) -> None:
    experiment = short | {"solver": {"method": "layered", "max_iterations": 1}}
    with pytest.raises(ConvergenceError) as error:
        run_experiment(write(tmp_path, experiment))
    assert error.value.exit_code == 3
    part = read_record(tmp_path / "tiny-s4.h5")
    assert part.arms["adjoint"].epochs_done == 0
    assert not part.finished


def test_methods_agree_on_a_training(tmp_path: Path, short: dict[str, Any]) -> None:
    runs = []
    for method in ("general", "layered"):
        training = short["training"] | {"epochs": 1}
        experiment = short | {"solver": {"method": method}, "training": training}
        runs.append(run_experiment(write(tmp_path / method, experiment)).arms["adjoint"].metrics)
    for name in ("train_cost", "test_cost", "power"):
        np.testing.assert_allclose(runs[0][name], runs[1][name], rtol=1e-6)
    assert runs[0]["test_accuracy"] == runs[1]["test_accuracy"]


def test_repeated_estimators_get_numbers(tmp_path: Path) -> None:
    experiment = EXPERIMENT | {
        "estimators": [{"kind": "ep"}, {"kind": "ep", "beta": 0.1}, {"kind": "adjoint"}, {"kind": "ep"}]
    }
    bench = prepare(load_experiment(write(tmp_path, experiment)), folder=tmp_path)
    assert list(bench.estimators) == ["nudged-only", "nudged-only-2", "adjoint", "nudged-only-3"]
    assert bench.headline == "nudged-only"


def test_every_estimator_starts_from_the_same_die(tmp_path: Path) -> None:
    bench = prepare(load_experiment(write(tmp_path, EXPERIMENT)), folder=tmp_path)
    states = [bench.trainer(estimator).state() for estimator in bench.estimators.values()]
    for state in states[1:]:
        assert set(state) == set(states[0])
        for key, array in state.items():
            np.testing.assert_array_equal(array, states[0][key])


class TestWrongExperiments:
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"estimators": []}, "estimators"),
            ({"estimators": [{"kind": "magic"}]}, "estimators.0"),
            ({"estimators": [{"kind": "ep", "beta": 0}]}, "estimators.0.beta"),
            ({"estimators": [{"kind": "ep", "bta": 0.1}]}, "estimators.0.bta"),
            ({"training": {"epochs": 0}}, "training.epochs"),
            ({"training": {"batch": 1.5}}, "training.batch"),
            ({"data": {"set": "letters"}}, "data.set"),
            ({"data": {"test_fraction": 1.0}}, "data.test_fraction"),
            ({"seed": -1}, "seed"),
            ({"name": "a/b"}, "name"),
            ({"sede": 1}, "sede"),
        ],
    )
    def test_are_refused_with_file_and_field(
        self, tmp_path: Path, change: dict[str, Any], field: str
    ) -> None:
        path = write(tmp_path, EXPERIMENT | change)
        with pytest.raises(SpecError) as error:
            run_experiment(path)
        assert error.value.file == str(path)
        assert error.value.field == field
        assert list(tmp_path.glob("*.h5")) == []

    @pytest.mark.parametrize(("place", "size", "field"), [("inputs", 63, "inputs"), ("layers", 9, "outputs")])
    def test_a_network_that_does_not_fit_the_data(
        self, tmp_path: Path, place: str, size: int, field: str
    ) -> None:
        network = json.loads(json.dumps(NETWORK))
        network[place]["pixels" if place == "inputs" else "output"]["size"] = size
        path = write(tmp_path, EXPERIMENT, network=network)
        with pytest.raises(SpecError, match="digits needs") as error:
            run_experiment(path)
        assert (error.value.field, error.value.value) == (field, size)
        assert error.value.file == str(path)

    def test_a_rate_for_a_crossbar_that_is_not_there(self, tmp_path: Path) -> None:
        training = {"optimiser": {"rates": {"nowhere": 0.1}}}
        with pytest.raises(SpecError, match="is not a trainable crossbar") as error:
            run_experiment(write(tmp_path, EXPERIMENT | {"training": training}))
        assert error.value.value == "nowhere"
        assert "pixels-hidden, hidden-output, feedback, hidden.bias" in str(error.value)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            ("network", "network: names a file that does not exist"),
            ("card", "cards: is neither a file nor the name of a card"),
        ],
    )
    def test_a_file_that_is_not_there(self, tmp_path: Path, missing: str, message: str) -> None:
        path = write(tmp_path, EXPERIMENT)
        (tmp_path / f"{missing}.yaml").unlink()
        with pytest.raises(SpecError, match=message) as error:
            run_experiment(path)
        assert error.value.file == str(path)

    def test_records_of_something_else_cannot_be_resumed(self, tmp_path: Path) -> None:
        path = tmp_path / "other.h5"
        with RunWriter.create(path, header={"kind": "other"}, arms=[], extras={}):
            pass
        with pytest.raises(RecordError, match="not the record of a training run"):
            resume_experiment(path)

    def test_a_circuit_that_compiles_differently_is_not_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path, EXPERIMENT)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(path, watcher=Recorder(arm="corrected-centred", epoch=0, step=1))
        (record,) = tmp_path.glob("*.h5")
        before = record.read_bytes()
        monkeypatch.setattr(
            "circuitsim.study.bench.compile_network",
            lambda network, seed: compile_network(network, seed=seed + 1),
        )
        with pytest.raises(RecordError, match="another circuit"):
            resume_experiment(record)
        assert record.read_bytes() == before


def test_shipped_experiments_are_ready_to_run(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mnist", "fashion-mnist"):
        write_images(tmp_path / name, train=40, test=20)
    monkeypatch.setenv("CIRCUITSIM_DATA", str(tmp_path))
    # Sweeps are files of another kind, with an experiment inside.
    files = [
        path for path in sorted((repo_root / "runs").glob("*.yaml")) if "axes" not in read_document(path)
    ]
    assert "demo.yaml" in [file.name for file in files]
    for file in files:
        bench = prepare(load_experiment(file), folder=file.parent, file=file)
        assert bench.headline in bench.estimators
