"""Costs on the output voltages [W], their currents, and how labels become targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuitsim.errors import SpecError
from circuitsim.netlist import Nudge
from circuitsim.netlist.models import softmax
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.network.spec import CrossEntropySpec, NetworkSpec

__all__ = ["Cost"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``quadratic``: g/2 sum (y - t)^2, targets t in V. ``softmax``: g s^2 CE(softmax(y/s), t), t in 1.

    g is ``conductance`` [S], s is ``scale`` [V]; see `Nudge` for dC/dy.
    """

    kind: Literal["quadratic", "softmax"]
    conductance: float
    scale: float = 1.0
    high: float = 1.0
    low: float = 0.0

    @classmethod
    def of(cls, network: NetworkSpec) -> Cost:
        """Return the cost that a network description asks for."""
        spec = network.cost
        if isinstance(spec, CrossEntropySpec):
            return cls(kind="softmax", conductance=spec.conductance, scale=spec.scale)
        return cls(kind="quadratic", conductance=spec.conductance, high=spec.high, low=spec.low)

    def targets(self, labels: IntArray, classes: int) -> FloatArray:
        """Return targets (B, K) for class labels (B,): one-hot, or the high and low voltage.

        Raises:
            SpecError: a label outside 0 ... K - 1.
        """
        labels = np.asarray(labels)
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise SpecError(
                f"labels must be 0 to {classes - 1}",
                field="labels",
                value=(int(labels.min()), int(labels.max())),
            )
        one_hot = np.eye(classes)[labels]
        return one_hot if self.kind == "softmax" else self.low + (self.high - self.low) * one_hot

    def value(self, y: FloatArray, targets: FloatArray) -> FloatArray:
        """Return the cost of each sample (B,) W at outputs y (B, K) V."""
        if self.kind == "quadratic":
            return 0.5 * self.conductance * ((y - targets) ** 2).sum(axis=1)
        z = y / self.scale
        top = z.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
        return self.conductance * self.scale**2 * (log_sum * targets.sum(axis=1) - (targets * z).sum(axis=1))

    def nudge(self, targets: FloatArray, beta: float) -> Nudge:
        """Return the nudge ``beta * dC/dy`` towards targets (B, K)."""
        return Nudge(
            kind=self.kind, beta=beta, conductance=self.conductance, target=targets, scale=self.scale
        )

    def probability(self, y: FloatArray) -> FloatArray:
        """Return class probabilities (B, K); of a quadratic cost, a softmax over the target swing."""
        return softmax(y, self.scale if self.kind == "softmax" else max(abs(self.high - self.low) / 4, 1e-12))
