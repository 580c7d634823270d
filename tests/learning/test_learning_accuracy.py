"""Whole trainings on the example networks: how well each estimator learns handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from circuitsim.learning import EP, Adjoint, AsymEP, Estimator, Trainer, alignment
from circuitsim.network import parse_document
from circuitsim.solver.smallsignal import small_signal
from circuitsim.study import Bench, ExperimentSpec, load_experiment, prepare
from circuitsim.study import bench as study_bench


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of this size are slower with more threads, and the tests run side by side."""
    with threadpool_limits(1):
        yield


class Hurried(Trainer):
    """Measures after the last epoch only."""

    number = 0

    def epoch(self, number: int, *rest: Any) -> dict[str, float]:
        self.number = number
        return super().epoch(number, *rest)

    def measure(self) -> dict[str, float]:
        if self.number < self.epochs - 1:
            return {}.fromkeys(self.metric_names, float("nan"))
        return super().measure()


@pytest.fixture
def folder(repo_root: Path) -> Path:
    return repo_root / "runs"


def learn(bench: Bench, estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Train to the end and return the last metrics."""
    monkeypatch.setattr(study_bench, "Trainer", Hurried)
    trainer = bench.trainer(estimator)
    metrics: dict[str, float] = {}
    for number in range(trainer.epochs):
        metrics = trainer.epoch(number)
    print(
        f"{bench.network.name} seed {bench.experiment.seed} {estimator.label}: {metrics['test_accuracy']:.4f}"
    )
    assert metrics["kcl_residual"] < 1e-9
    return metrics


def bench(folder: Path, network: str, seed: int, training: dict[str, Any], card: str | None) -> Bench:
    document = {
        "name": network,
        "network": f"../netlists/{network}.yaml",
        "cards": [] if card is None else [card],
        "estimators": [{"kind": "adjoint"}],
        "training": training,
        "seed": seed,
    }
    return prepare(parse_document(ExperimentSpec, document), folder=folder)


@pytest.mark.slow
class TestDigits:
    """64-64-10, buffered tanh neurons, on dies with the spread card, as runs/demo.yaml trains it."""

    def demo(self, folder: Path, seed: int) -> Bench:
        experiment = load_experiment(folder / "demo.yaml").model_copy(update={"seed": seed})
        assert experiment.cards == ("spread",)
        return prepare(experiment, folder=folder)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_corrected_reaches_97_percent_and_the_adjoint(
        self, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """97 % for each seed, so for their mean too."""
        die = self.demo(folder, seed)
        estimator = next(e for e in die.estimators.values() if e.label == "corrected-centred")
        corrected = learn(die, estimator, monkeypatch)
        exact = learn(die, Adjoint(), monkeypatch)
        assert corrected["test_accuracy"] >= 0.97
        assert abs(corrected["test_accuracy"] - exact["test_accuracy"]) <= 0.005
        # Two trainings, not one seen twice.
        assert corrected["test_cost"] != exact["test_cost"]

    def test_nudged_only_is_clearly_worse(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        die = self.demo(folder, 0)
        metrics = learn(die, die.estimators["nudged-only"], monkeypatch)
        # Above chance, since the output layer does learn; far below the 97 % of the corrected phase.
        assert 0.5 < metrics["test_accuracy"] <= 0.94
        assert metrics["cosine/pixels-hidden"] == 0.0
        assert metrics["relative_error/pixels-hidden"] == 1.0
        assert metrics["cosine/hidden-output"] > 0.99


HOPFIELD = {
    "epochs": 4,
    "batch": 32,
    "optimiser": {"kind": "adam", "step": 0.04, "schedule": {"kind": "cosine", "floor": 0.05}},
}


@pytest.mark.slow
def test_asymmetric_feedback_learns_as_well_as_the_adjoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die = bench(folder, "hopfield", 1, HOPFIELD, "../devices/spread.yaml")
    phases = die.trainer(Adjoint()).phases()
    free = phases.free(die.data.test_inputs[:1])
    analysis = small_signal(die.plan, die.chip.values, free.node_voltage[0])
    assert analysis is not None
    assert not analysis.symmetrisable
    assert min(analysis.asymmetry, analysis.metric_asymmetry) > 0.05
    corrected = learn(die, AsymEP(beta=0.01), monkeypatch)
    assert corrected["test_accuracy"] >= 0.96
    assert corrected["relative_error/lateral"] < 1e-4
    exact = learn(die, Adjoint(), monkeypatch)
    assert abs(corrected["test_accuracy"] - exact["test_accuracy"]) <= 0.005


RESISTIVE = {
    "epochs": 2,
    "batch": 32,
    "optimiser": {"kind": "adam", "step": 0.01, "schedule": {"kind": "cosine", "floor": 0.05}},
}


@pytest.mark.slow
def test_a_reciprocal_network_learns_from_nudged_phases_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die = bench(folder, "resistive", 0, RESISTIVE, "../devices/spread.yaml")
    phases = die.trainer(Adjoint()).phases()
    inputs = die.data.train_inputs[:32]
    targets = die.cost.targets(die.data.train_labels[:32], 10)
    free = phases.free(inputs)
    for centred in (True, False):
        plain = EP(beta=0.01, centred=centred).estimate(phases, inputs, targets, free=free)
        corrected = AsymEP(beta=0.01, centred=centred).estimate(phases, inputs, targets, free=free)
        for _, error in alignment(plain, corrected).values():
            assert error < 1e-9
    analysis = small_signal(die.plan, die.chip.values, free.node_voltage[0])
    assert analysis is not None
    assert analysis.symmetrisable
    assert analysis.asymmetry < 1e-12
    assert learn(die, EP(beta=0.01), monkeypatch)["test_accuracy"] >= 0.95
