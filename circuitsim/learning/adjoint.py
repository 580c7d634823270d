"""The exact gradient by one transposed solve, ``J0^T s = -dC/dx``: what estimators are measured against."""

from __future__ import annotations

from dataclasses import dataclass

from circuitsim.learning.estimators import gradient_from
from circuitsim.learning.gradient import Gradient
from circuitsim.learning.phases import Phases
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import OperatingPoint

__all__ = ["Adjoint"]


@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """What a computer that knows every element can do; a circuit cannot."""

    @property
    def label(self) -> str:
        return "adjoint"

    def estimate(
        self, phases: Phases, inputs: FloatArray, targets: FloatArray, *, free: OperatingPoint | None = None
    ) -> Gradient:
        free = free or phases.free(inputs)
        s = phases.adjoint(inputs, targets, free)
        return gradient_from(
            phases, inputs, targets, free, s, estimator=self.label, beta=None, read=("free",)
        )
