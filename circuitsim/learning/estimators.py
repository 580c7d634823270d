"""What every estimator is: settings, a name, and one function from a batch to a `Gradient`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from circuitsim.learning.gradient import Gradient
from circuitsim.learning.phases import Change, Phases
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import OperatingPoint

__all__ = ["Estimator", "gradient_from"]


class Estimator(Protocol):
    """Estimates dC/dg from a batch of inputs (B, n_in) and targets (B, K)."""

    @property
    def label(self) -> str:
        """Short name for tables and records."""

    def estimate(
        self, phases: Phases, inputs: FloatArray, targets: FloatArray, *, free: OperatingPoint | None = None
    ) -> Gradient:
        """Return the gradient; ``free`` saves solving the free phase again."""


def gradient_from(
    phases: Phases,
    inputs: FloatArray,
    targets: FloatArray,
    free: OperatingPoint,
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
