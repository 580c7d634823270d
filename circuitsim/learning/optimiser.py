"""Gradient steps on conductances, in fractions of the window, clipped to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from circuitsim.chip import Conductances
from circuitsim.learning.gradient import Factors, Gradient, LayeredGradient
from circuitsim.netlist import Crossbar, Netlist
from circuitsim.network import Positive, Quantity, Spec
from circuitsim.solver.kernels.steps import adam_rows, sgd_rows
from circuitsim.solver.threads import share_batch

__all__ = ["Optimiser", "OptimiserSpec", "ScheduleSpec"]

Array = NDArray[Any]
Fraction = Annotated[Quantity, Field(ge=0, lt=1)]
_LOW_RANK = 16
"""Rank up to which a product is formed row by row inside the step, which saves two passes over it."""


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

    def rate_of(self, crossbar: str) -> float:
        """Return the factor of a crossbar; a tile has that of the crossbar it is part of."""
        return self.rates.get(crossbar, self.rates.get(crossbar.split(".tile[")[0], 1.0))


@dataclass(kw_only=False, eq=False)
class Optimiser:
    """Steps with moments of their own: ``count`` steps done, and moment arrays by crossbar and half."""

    spec: OptimiserSpec
    netlist: Netlist
    unit: float
    """Scale of the cost's curvature [S]: what makes an SGD step dimensionless."""
    precision: str = "float64"
    count: int = 0
    state: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        adam, momentum = self.spec.kind == "adam", self.spec.momentum > 0
        moments = ("m", "v") if adam else ("m",) if momentum else ()
        for crossbar in self.netlist.trainable:
            for half in ("g_plus", "g_minus"):
                if getattr(crossbar, half) is not None:
                    for moment in moments:
                        zeros = np.zeros(crossbar.shape, dtype=self.precision)
                        self.state[f"{moment}/{crossbar.name}/{half}"] = zeros

    def step(self, conductance: Conductances, gradient: Gradient, factor: float) -> Conductances:
        """Return new conductances; moments advance by one step. ``factor`` comes from the schedule.

        Conductances stay in their window, and 0 where a mask leaves devices out.
        """

        def copied(g: Array | None) -> Any:
            return None if g is None else np.array(g, dtype=self.precision, order="C")

        new = {
            crossbar.name: (copied(conductance[crossbar.name][0]), copied(conductance[crossbar.name][1]))
            for crossbar in self.netlist.trainable
        }
        self.advance(new, gradient, factor)
        return new

    def advance(self, conductance: Conductances, gradient: Gradient, factor: float) -> None:
        """Take a step where the conductances are: C-contiguous arrays of the optimiser's precision."""
        self.count += 1
        for crossbar in self.netlist.trainable:
            rate = self.spec.step * factor * self.spec.rate_of(crossbar.name)
            plus, minus = conductance[crossbar.name]
            slopes = self._slopes(gradient, crossbar)
            self._half(crossbar, "g_plus", plus, slopes[0], rate)
            if minus is not None and slopes[1] is not None:
                self._half(crossbar, "g_minus", minus, slopes[1], rate)

    def _slopes(self, gradient: Gradient, crossbar: Crossbar) -> tuple[_Slope, _Slope | None]:
        """Return dC/dg of both halves, in product form where the gradient has it."""
        dtype = np.dtype(self.precision)
        found = gradient.crossbars
        part = found.parts[crossbar.name] if isinstance(found, LayeredGradient) else found[crossbar.name]
        if isinstance(part, Factors):
            plus = _Slope.of(part, 1.0, dtype)
            if part.minus is not None:
                return plus, _Slope.of(part.minus, 1.0, dtype)
            return plus, plus.opposite() if part.mirrored else None
        halves = [None if g is None else _Slope.given(np.ascontiguousarray(g, dtype=dtype)) for g in part]
        assert halves[0] is not None
        return halves[0], halves[1]

    def _half(self, crossbar: Crossbar, half: str, g: Array, slope: _Slope, rate: float) -> None:
        spec, dtype = self.spec, np.dtype(self.precision)
        window = crossbar.g_max - crossbar.g_min
        nothing = np.empty((0, 0), dtype=dtype)
        key = f"{crossbar.name}/{half}"
        low, high = dtype.type(crossbar.g_min), dtype.type(crossbar.g_max)
        if spec.kind == "sgd":
            m = self.state.get(f"m/{key}", nothing)
            numbers: tuple[float, ...] = (rate * window * window / self.unit, spec.momentum)

            def rows(k: slice) -> None:
                sgd_rows(  # type: ignore[call-arg]
                    k.start, k.stop, *slope.arrays, g, m, *(dtype.type(x) for x in numbers), low, high
                )

        else:
            m, v = self.state[f"m/{key}"], self.state[f"v/{key}"]
            # In units of the cost's curvature, so that squares of slopes stay far from float32's smallest
            # numbers. The last is the smallest slope that still counts, far below any real one.
            numbers = (
                rate * window,
                window / self.unit,
                1 - spec.beta1,
                1 - spec.beta2,
                1 / (1 - spec.beta1**self.count),
                1 / (1 - spec.beta2**self.count),
                1e-10,
            )

            def rows(k: slice) -> None:
                adam_rows(  # type: ignore[call-arg]
                    k.start, k.stop, *slope.arrays, g, m, v, *(dtype.type(x) for x in numbers), low, high
                )

        share_batch(rows, len(g), work=g.shape[1] // 16)
        if crossbar.mask is not None:
            g[~crossbar.mask] = 0

    def restore(self, state: Mapping[str, Array], count: int) -> None:
        """Continue from a checkpoint."""
        for key in self.state:
            self.state[key] = np.array(state[key], dtype=self.precision)
        self.count = count


@dataclass(frozen=True, eq=False)
class _Slope:
    """dC/dg of one half of a crossbar as the kernels take it."""

    arrays: tuple[Array, Array, Array, Any, Array, Array]
    """left, right, product, sign, word, bit."""

    @classmethod
    def of(cls, factors: Factors, sign: float, dtype: np.dtype[Any]) -> _Slope:
        left, right = (np.ascontiguousarray(x, dtype=dtype) for x in (factors.left, factors.right))
        product = np.empty((0, 0), dtype=dtype) if len(left) <= _LOW_RANK else left.T @ right
        word = np.empty(0, dtype=dtype) if factors.word is None else factors.word.astype(dtype, copy=False)
        bit = factors.bit.astype(dtype, copy=False)
        return cls((left, right, product, dtype.type(sign), word, bit))

    @classmethod
    def given(cls, g: Array) -> _Slope:
        nothing = np.empty((0, 0), dtype=g.dtype)
        return cls(
            (nothing, nothing, g, g.dtype.type(-1), np.empty(0, g.dtype), np.zeros(g.shape[1], g.dtype))
        )

    def opposite(self) -> _Slope:
        """Return the other half's, whose word lines are at opposite voltages."""
        left, right, product, sign, word, bit = self.arrays
        return _Slope((left, right, product, -sign, word, bit))
