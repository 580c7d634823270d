"""Gradient steps on conductances, in fractions of the window, clipped to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from circuitsim.chip import Conductances
from circuitsim.learning.gradient import Gradient
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import Positive, Quantity, Spec

__all__ = ["Optimiser", "OptimiserSpec", "ScheduleSpec"]

Fraction = Annotated[Quantity, Field(ge=0, lt=1)]


class ScheduleSpec(Spec):
    """How the step shrinks: ``exponential`` by ``decay`` an epoch, ``step`` by ``decay`` every ``every``
    epochs, ``cosine`` to ``floor`` of its start at the last epoch."""

    kind: Literal["constant", "exponential", "step", "cosine"] = "constant"
    decay: Annotated[Quantity, Field(gt=0, le=1)] = 0.85
    every: Annotated[int, Field(ge=1)] = 10
    floor: Annotated[Quantity, Field(ge=0, le=1)] = 0.0

    def factor(self, epoch: int, epochs: int) -> float:
        """Return what the step is multiplied by in ``epoch`` (from 0) of ``epochs``."""
        if self.kind == "exponential":
            return self.decay**epoch
        if self.kind == "step":
            return self.decay ** (epoch // self.every)
        if self.kind == "cosine":
            wave = 0.5 * (1 + math.cos(math.pi * epoch / max(1, epochs)))
            return self.floor + (1 - self.floor) * wave
        return 1.0


class OptimiserSpec(Spec):
    """``adam``: ``step`` is a fraction of the conductance window. ``sgd``: the step in g is ``step`` times
    window^2 times the gradient over ``conductance * 1 V^2``, with ``momentum``.

    ``rates`` multiplies the step of single crossbars by name.
    """

    kind: Literal["adam", "sgd"] = "adam"
    step: Positive = 0.02
    momentum: Fraction = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    schedule: ScheduleSpec = ScheduleSpec()
    rates: dict[str, Annotated[Quantity, Field(ge=0)]] = Field(default_factory=dict)


@dataclass(eq=False)
class Optimiser:
    """The running state of one training: steps done, and moment arrays by crossbar and half."""

    spec: OptimiserSpec
    netlist: Netlist
    unit: float
    """Scale of the cost's curvature [S]: what makes an SGD step dimensionless."""
    count: int = 0
    state: dict[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for crossbar in self.netlist.trainable:
            for half in ("g_plus", "g_minus"):
                if getattr(crossbar, half) is not None:
                    for moment in ("m", "v") if self.spec.kind == "adam" else ("m",):
                        self.state[f"{moment}/{crossbar.name}/{half}"] = np.zeros(crossbar.shape)

    def step(self, conductance: Conductances, gradient: Gradient, factor: float) -> Conductances:
        """Return new conductances; moments advance by one step. ``factor`` comes from the schedule."""
        self.count += 1
        new: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for crossbar in self.netlist.trainable:
            name = crossbar.name
            rate = self.spec.step * factor * self.spec.rates.get(name, 1.0)
            window = crossbar.g_max - crossbar.g_min
            halves: list[FloatArray | None] = []
            for half, g, slope in zip(
                ("g_plus", "g_minus"), conductance[name], gradient.crossbars[name], strict=True
            ):
                if g is None or slope is None:
                    halves.append(None)
                    continue
                moved = g - rate * window * self._direction(f"{name}/{half}", slope * window)
                np.clip(moved, crossbar.g_min, crossbar.g_max, out=moved)
                halves.append(moved if crossbar.mask is None else np.where(crossbar.mask, moved, 0.0))
            plus, minus = halves
            assert plus is not None
            new[name] = (plus, minus)
        return new

    def _direction(self, key: str, slope: FloatArray) -> FloatArray:
        """Return the step for ``slope``, dC per whole window [W], in units of the rate."""
        spec = self.spec
        m = self.state[f"m/{key}"]
        if spec.kind == "sgd":
            m *= spec.momentum
            m += slope / self.unit
            return m
        v = self.state[f"v/{key}"]
        m += (1 - spec.beta1) * (slope - m)
        v += (1 - spec.beta2) * (slope * slope - v)
        corrected = np.sqrt(v / (1 - spec.beta2**self.count))
        # The smallest cost slope that still counts, far below any real one: Adam's epsilon in watts.
        corrected += 1e-10 * self.unit
        return m / (1 - spec.beta1**self.count) / corrected

    def restore(self, state: Mapping[str, FloatArray], count: int) -> None:
        """Continue from a checkpoint."""
        for key in self.state:
            self.state[key] = np.array(state[key])
        self.count = count
