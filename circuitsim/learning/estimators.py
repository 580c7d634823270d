"""What every estimator is: settings, a name, and one function from a batch to a `Gradient`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from circuitsim.learning.cost import Cost
from circuitsim.learning.gradient import Crossbars, Gradient
from circuitsim.learning.phases import Change
from circuitsim.netlist.tables import FloatArray

__all__ = ["Estimator", "PhaseSet", "gradient_from"]


class PhaseSet(Protocol):
    """What estimators that hardware can form need of a circuit, simulated or read.

    Free points are handed back as they came; changes can be subtracted and scaled.
    """

    @property
    def cost(self) -> Cost: ...

    def free(self, inputs: FloatArray) -> Any: ...

    def outputs(self, point: Any) -> FloatArray: ...

    def nudged(
        self, inputs: FloatArray, targets: FloatArray, beta: float, free: Any, guess: Any = None
    ) -> Any: ...

    def corrected(
        self, inputs: FloatArray, targets: FloatArray, beta: float, free: Any, guess: Any = None
    ) -> Any: ...

    def dyadic(self, inputs: FloatArray, targets: FloatArray, beta: float, free: Any) -> Any: ...

    def rule(self, inputs: FloatArray, free: Any, s: Any) -> Crossbars: ...


class Estimator(Protocol):
    """Estimates dC/dg from a batch of inputs (B, n_in) and targets (B, K)."""

    @property
    def label(self) -> str:
        """Short name for tables and records."""

    def estimate(self, phases: Any, inputs: FloatArray, targets: FloatArray, *, free: Any = None) -> Gradient:
        """Return the gradient; ``free`` saves solving the free phase again.

        ``phases`` are those of a circuit (`Phases`) or, where the estimator has a ``phase`` of its own, of a
        substrate (`SubstratePhases`).
        """


def gradient_from(
    phases: PhaseSet,
    inputs: FloatArray,
    targets: FloatArray,
    free: Any,
    s: Change,
    *,
    estimator: str,
    beta: float | None,
    read: tuple[str, ...],
) -> Gradient:
    """Apply the local rule to the change per unit of beta, ``s``."""
    y = phases.outputs(free)
    return Gradient(
        crossbars=phases.rule(inputs, free, s),
        estimator=estimator,
        beta=beta,
        phases=read,
        cost=float(np.mean(phases.cost.value(y, targets))),
        outputs=y,
    )
