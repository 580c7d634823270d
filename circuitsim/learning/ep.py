"""Equilibrium Propagation from nudged phases alone (Scellier and Bengio 2017; vector field: 2018).

Exact only where the circuit is reciprocal or metric-symmetrisable: elsewhere it gives the solution of
``J0 s = -dC/dx`` instead of the adjoint's ``J0^T s = -dC/dx``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from circuitsim.chip.substrate import Phase
from circuitsim.learning.estimators import PhaseSet, gradient_from
from circuitsim.learning.gradient import Gradient
from circuitsim.netlist.tables import FloatArray

__all__ = ["EP"]


@dataclass(frozen=True, kw_only=True)
class EP:
    """Nudged-only estimator; ``centred`` takes +beta and -beta."""

    beta: float = 0.01
    centred: bool = True

    phase: ClassVar[Phase] = "nudged"

    @property
    def label(self) -> str:
        return "nudged-only" if self.centred else "nudged-only-one-sided"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the phases that are read."""
        return ("free", "nudged +", "nudged -") if self.centred else ("free", "nudged +")

    def estimate(
        self, phases: PhaseSet, inputs: FloatArray, targets: FloatArray, *, free: Any = None
    ) -> Gradient:
        free = free or phases.free(inputs)
        s = phases.nudged(inputs, targets, self.beta, free)
        if self.centred:
            # To first order the other side is the mirror image.
            s = s - phases.nudged(inputs, targets, -self.beta, free, guess=-s)
        swing = (2 if self.centred else 1) * self.beta
        return gradient_from(
            phases, inputs, targets, free, s / swing, estimator=self.label, beta=self.beta, read=self.reads
        )
