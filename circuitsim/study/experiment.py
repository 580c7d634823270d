"""What an experiment file says: network, die, data, estimators, training. See runs/ for examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from circuitsim.learning import EP, Adjoint, AsymEP, Dyadic, DyadicBP, Estimator, OptimiserSpec
from circuitsim.network import Positive, Quantity, Spec, parse_document, read_document
from circuitsim.solver import SolverSettings

__all__ = ["DataSpec", "EstimatorSpec", "ExperimentSpec", "SolverSpec", "TrainingSpec", "load_experiment"]

Fraction = Annotated[Quantity, Field(gt=0, lt=1)]


class DataSpec(Spec):
    """The data set, and how much of it is held out by a stratified split."""

    set: Literal["digits"] = "digits"
    test_fraction: Fraction = 0.2
    split_seed: int = 0


class EPSpec(Spec):
    """Nudged phases only."""

    kind: Literal["ep"]
    beta: Positive = 0.01
    centred: bool = True

    def build(self) -> Estimator:
        return EP(beta=self.beta, centred=self.centred)


class AsymEPSpec(Spec):
    """The corrected phase."""

    kind: Literal["asymep"]
    beta: Positive = 0.01
    centred: bool = True

    def build(self) -> Estimator:
        return AsymEP(beta=self.beta, centred=self.centred)


class DyadicSpec(Spec):
    """The doubled network."""

    kind: Literal["dyadic"]
    beta: Positive = 1.0

    def build(self) -> Estimator:
        return Dyadic(beta=self.beta)


class DyadicBPSpec(Spec):
    """The clocked pipeline; without ``steps`` twice the number of layers."""

    kind: Literal["dyadic_bp"]
    steps: Annotated[int, Field(ge=1)] | None = None

    def build(self) -> Estimator:
        return DyadicBP(steps=self.steps)


class AdjointSpec(Spec):
    """The exact gradient, on a computer."""

    kind: Literal["adjoint"]

    def build(self) -> Estimator:
        return Adjoint()


EstimatorSpec = Annotated[
    EPSpec | AsymEPSpec | DyadicSpec | DyadicBPSpec | AdjointSpec, Field(discriminator="kind")
]


class TrainingSpec(Spec):
    """Epochs, samples per step, and the optimiser. ``probe`` samples measure gradient alignment."""

    epochs: Annotated[int, Field(ge=1, strict=True)] = 15
    batch: Annotated[int, Field(ge=1, strict=True)] = 32
    optimiser: OptimiserSpec = OptimiserSpec()
    probe: Annotated[int, Field(ge=1, strict=True)] = 64


class SolverSpec(Spec):
    """How to solve; see `SolverSettings`."""

    method: Literal["auto", "general", "layered"] = "auto"
    precision: Literal["float64", "float32"] = "float64"
    relative_tolerance: Positive = 1e-11
    max_iterations: Annotated[int, Field(ge=1, strict=True)] = 200

    def settings(self) -> SolverSettings:
        return SolverSettings(
            method=self.method,
            precision=self.precision,
            relative_tolerance=self.relative_tolerance,
            max_iterations=self.max_iterations,
            check=False,
        )


class ExperimentSpec(Spec):
    """One experiment: every estimator learns on the same die from the same conductances.

    ``network`` and ``card`` are files, relative to the experiment's own folder.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=64)]
    description: str = ""
    network: str
    card: str | None = None
    data: DataSpec = DataSpec()
    estimators: Annotated[list[EstimatorSpec], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    solver: SolverSpec = SolverSpec()
    seed: Annotated[int, Field(ge=0, strict=True)] = 0


def load_experiment(path: str | Path) -> ExperimentSpec:
    """Read an experiment file.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    return parse_document(ExperimentSpec, read_document(Path(path)), file=path)
