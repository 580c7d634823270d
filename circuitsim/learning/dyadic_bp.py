"""Dyadic Backpropagation: the exact gradient in 2 L unit steps (arXiv:2602.02281).

Feedforward networks only: the circuit and its transposed copy run as one clocked pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.learning.gradient import Gradient, layered_rule
from circuitsim.learning.phases import Phases
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import OperatingPoint
from circuitsim.solver.clocked import clocked_steps

__all__ = ["DyadicBP"]


@dataclass(frozen=True, kw_only=True)
class DyadicBP:
    """Clocked estimator; ``steps`` None takes twice the number of layers."""

    steps: int | None = None

    @property
    def label(self) -> str:
        return "dyadic-bp" if self.steps is None else f"dyadic-bp-{self.steps}"

    def estimate(
        self, phases: Phases, inputs: FloatArray, targets: FloatArray, *, free: OperatingPoint | None = None
    ) -> Gradient:
        """Return the gradient after the steps; the free phase is their first half, so ``free`` is unused.

        Raises:
            NetlistError: the circuit has no layers to clock, as one that was drawn as a deck.
        """
        if phases.plan.why_not_layered is not None:
            raise NetlistError(
                f"dyadic_bp clocks a network of layers: {phases.plan.why_not_layered}",
                object=phases.netlist.title,
                remedy="Choose dyadic, asymep or adjoint.",
            )
        layered = phases.plan.layered
        steps = 2 * layered.structure.depth if self.steps is None else self.steps
        point, d = clocked_steps(
            layered,
            phases.values,
            inputs,
            phases.cost.nudge(targets, 1.0).current,
            steps,
            phases.settings,
            dual=phases.dual,
        )
        y = np.asarray(layered.read(point.layers[layered.structure.output_layer]), dtype=np.float64)
        return Gradient(
            crossbars=layered_rule(layered, point, d),
            estimator=self.label,
            beta=None,
            phases=("clocked",),
            cost=float(np.mean(phases.cost.value(y, targets))),
            outputs=y,
        )
