"""The dyadic phase: the doubled-state, variational form of arXiv:2602.03670.

Saddle function ``H(m, d) = d^T F(m) + beta C(m)``: the first network stays in its free phase, a second,
linear, transposed one takes the nudge. d is linear in beta, so d / beta is exact at every beta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from circuitsim.chip.substrate import Phase
from circuitsim.learning.estimators import PhaseSet, gradient_from
from circuitsim.learning.gradient import Gradient
from circuitsim.netlist.tables import FloatArray

__all__ = ["Dyadic"]


@dataclass(frozen=True, kw_only=True)
class Dyadic:
    """Dyadic estimator."""

    beta: float = 1.0

    phase: ClassVar[Phase] = "dyadic"

    @property
    def label(self) -> str:
        return "dyadic"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the phases that are read."""
        return ("free", "dyadic")

    def estimate(
        self, phases: PhaseSet, inputs: FloatArray, targets: FloatArray, *, free: Any = None
    ) -> Gradient:
        free = free or phases.free(inputs)
        s = phases.dyadic(inputs, targets, self.beta, free) / self.beta
        return gradient_from(
            phases, inputs, targets, free, s, estimator=self.label, beta=self.beta, read=self.reads
        )
