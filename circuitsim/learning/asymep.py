"""Equilibrium Propagation for non-conservative systems: the corrected phase (arXiv:2602.03670).

``F(x) + (J0^T - J0)(x - x0) + beta dC/dx = 0``; at beta -> 0 its change solves the adjoint system.
One-sided the error is O(beta), centred O(beta^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from circuitsim.chip.substrate import Phase
from circuitsim.learning.estimators import PhaseSet, gradient_from
from circuitsim.learning.gradient import Gradient
from circuitsim.netlist.tables import FloatArray

__all__ = ["AsymEP"]


@dataclass(frozen=True, kw_only=True)
class AsymEP:
    """Corrected-phase estimator; ``centred`` takes +beta and -beta."""

    beta: float = 0.01
    centred: bool = True

    phase: ClassVar[Phase] = "corrected"

    @property
    def label(self) -> str:
        return "corrected-centred" if self.centred else "corrected-one-sided"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the phases that are read."""
        return ("free", "corrected +", "corrected -") if self.centred else ("free", "corrected +")

    def estimate(
        self, phases: PhaseSet, inputs: FloatArray, targets: FloatArray, *, free: Any = None
    ) -> Gradient:
        free = free or phases.free(inputs)
        s = phases.corrected(inputs, targets, self.beta, free)
        if self.centred:
            # To first order the other side is the mirror image.
            s = s - phases.corrected(inputs, targets, -self.beta, free, guess=-s)
        swing = (2 if self.centred else 1) * self.beta
        return gradient_from(
            phases, inputs, targets, free, s / swing, estimator=self.label, beta=self.beta, read=self.reads
        )
