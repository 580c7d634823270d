"""How well outputs answer: the share of classes found, or the error of wanted outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from circuitsim.learning.cost import Cost
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["Accuracy", "RmsError", "Score", "score_of"]


class Score(Protocol):
    """A mean over samples that can be taken batch by batch."""

    @property
    def name(self) -> str:
        """What metrics and results call it."""

    def total(self, y: FloatArray, labels: IntArray | FloatArray) -> float:
        """Return what outputs (B, K) V add to the sum over samples."""

    def mean(self, total: float, samples: int) -> float:
        """Return the score of all samples from their sum."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The fraction of samples whose class the cost reads from the outputs."""

    cost: Cost
    name: str = "accuracy"

    def total(self, y: FloatArray, labels: IntArray | FloatArray) -> float:
        return float((self.cost.classify(y) == labels).sum())

    def mean(self, total: float, samples: int) -> float:
        return total / samples


@dataclass(frozen=True, kw_only=True)
class RmsError:
    """The root of the mean squared difference from wanted outputs [V], over samples and outputs."""

    name: str = "rms_error"

    def total(self, y: FloatArray, labels: IntArray | FloatArray) -> float:
        return float(((y - labels) ** 2).mean(axis=1).sum())

    def mean(self, total: float, samples: int) -> float:
        return math.sqrt(total / samples)


def score_of(cost: Cost, classes: int | None) -> Score:
    """Return what a data set is scored by: accuracy where it has classes, else the error in V."""
    return RmsError() if classes is None else Accuracy(cost=cost)
