"""Costs on the output voltages [W], their currents, and how labels become targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuitsim.errors import SpecError
from circuitsim.netlist import Nudge
from circuitsim.netlist.models import softmax
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.network.spec import CostSpec, CrossEntropySpec, NetworkSpec

__all__ = ["Cost"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``quadratic``: g/2 sum (y - t)^2, targets t in V. ``softmax``: g s^2 CE(softmax(y/s), t), t in 1.

    g is ``conductance`` [S], s is ``scale`` [V]; see `Nudge` for dC/dy. With ``one_output``, a single
    output tells two classes apart: ``low`` asks for class 0, ``high`` for class 1.
    """

    kind: Literal["quadratic", "softmax"]
    conductance: float
    scale: float = 1.0
    high: float = 1.0
    low: float = 0.0
    one_output: bool = False

    @classmethod
    def of(cls, network: NetworkSpec) -> Cost:
        """Return the cost that a network description asks for."""
        return cls.of_spec(network.cost)

    @classmethod
    def of_spec(cls, spec: CostSpec, *, one_output: bool = False) -> Cost:
        """Return the cost that a cost description asks for."""
        if isinstance(spec, CrossEntropySpec):
            return cls(kind="softmax", conductance=spec.conductance, scale=spec.scale)
        return cls(
            kind="quadratic",
            conductance=spec.conductance,
            high=spec.high,
            low=spec.low,
            one_output=one_output,
        )

    def targets(self, labels: IntArray | FloatArray, classes: int | None) -> FloatArray:
        """Return targets (B, K) for class labels (B,): one-hot, or the high and low voltage.

        Without classes the labels are wanted outputs (B, K) V already.

        Raises:
            SpecError: a label outside 0 ... K - 1.
        """
        if classes is None:
            return np.asarray(labels, dtype=np.float64)
        found = np.asarray(labels)
        if found.size and (found.min() < 0 or found.max() >= classes):
            raise SpecError(
                f"labels must be 0 to {classes - 1}",
                field="labels",
                value=(int(found.min()), int(found.max())),
            )
        one_hot = np.eye(classes)[found]
        if self.one_output:
            one_hot = one_hot[:, 1:]
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

    def classify(self, y: FloatArray) -> IntArray:
        """Return the class (B,) of each sample: of the largest output, or of the nearer level of one."""
        if self.one_output:
            return (np.abs(y[:, 0] - self.high) < np.abs(y[:, 0] - self.low)).astype(np.int64)
        return y.argmax(axis=1)

    def probability(self, y: FloatArray) -> FloatArray:
        """Return class probabilities (B, K); of a quadratic cost, a softmax over the target swing."""
        if self.kind == "softmax":
            return softmax(y, self.scale)
        swing = max(abs(self.high - self.low), 1e-12)
        if self.one_output:
            # As two outputs would have it that share the swing, one going up and the other down.
            sign = 1.0 if self.high > self.low else -1.0
            distance = sign * (2 * y - self.high - self.low)
            return softmax(np.concatenate([np.zeros_like(y), distance], axis=1), swing / 4)
        return softmax(y, swing / 4)
