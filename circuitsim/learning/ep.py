"""Equilibrium Propagation from nudged phases alone (Scellier and Bengio 2017; vector field: 2018).

Exact only where the circuit is reciprocal or metric-symmetrisable: elsewhere it gives the solution of
``J0 s = -dC/dx`` instead of the adjoint's ``J0^T s = -dC/dx``.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuitsim.learning.estimators import gradient_from
from circuitsim.learning.gradient import Gradient
from circuitsim.learning.phases import Phases
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import OperatingPoint

__all__ = ["EP"]


@dataclass(frozen=True, kw_only=True)
class EP:
    """Nudged-only estimator; ``centred`` takes +beta and -beta."""

    beta: float = 0.01
    centred: bool = True

    @property
    def label(self) -> str:
        return "nudged-only" if self.centred else "nudged-only-one-sided"

    def estimate(
        self, phases: Phases, inputs: FloatArray, targets: FloatArray, *, free: OperatingPoint | None = None
    ) -> Gradient:
        free = free or phases.free(inputs)
        s = phases.nudged(inputs, targets, self.beta, free)
        if self.centred:
            # To first order the other side is the mirror image.
            s = s - phases.nudged(inputs, targets, -self.beta, free, guess=-s)
        swing = (2 if self.centred else 1) * self.beta
        read = ("free", "nudged +", "nudged -") if self.centred else ("free", "nudged +")
        return gradient_from(
            phases, inputs, targets, free, s / swing, estimator=self.label, beta=self.beta, read=read
        )
