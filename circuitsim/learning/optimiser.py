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
from circuitsim.solver.kernels.steps import LOW_RANK, adam_pairs, adam_rows, sgd_pairs, sgd_rows
from circuitsim.solver.threads import share_batch

__all__ = ["Optimiser", "OptimiserSpec", "ScheduleSpec"]

Array = NDArray[Any]
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

    def rate_of(self, crossbar: str) -> float:
        """Return the factor of a crossbar; a tile has that of the crossbar it is part of."""
        return self.rates.get(crossbar, self.rates.get(crossbar.split(".tile[")[0], 1.0))


@dataclass(kw_only=False, eq=False)
class Optimiser:
    """Steps with moments of their own: ``count`` steps done, and moment arrays by crossbar and half.

    ``moments`` are flat, halves of trainable crossbars one behind the other, from ``places`` on; ``state``
    are views of them.
    """

    spec: OptimiserSpec
    netlist: Netlist
    unit: float
    """Scale of the cost's curvature [S]: what makes an SGD step dimensionless."""
    precision: str = "float64"
    count: int = 0
    state: dict[str, Array] = field(default_factory=dict)
    moments: dict[str, Array] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First places of both halves of a crossbar; -1 where there is no second one."""

    def __post_init__(self) -> None:
        adam, momentum = self.spec.kind == "adam", self.spec.momentum > 0
        names = ("m", "v") if adam else ("m",) if momentum else ()
        size = 0
        for crossbar in self.netlist.trainable:
            m, n = crossbar.shape
            paired = crossbar.g_minus is not None
            self.places[crossbar.name] = size, size + m * n if paired else -1
            size += 2 * m * n if paired else m * n
        for name in names:
            flat = self.moments[name] = np.zeros(size, dtype=self.precision)
            for crossbar in self.netlist.trainable:
                m, n = crossbar.shape
                for half, place in zip(("g_plus", "g_minus"), self.places[crossbar.name], strict=True):
                    if place >= 0:
                        view = flat[place : place + m * n].reshape(m, n)
                        self.state[f"{name}/{crossbar.name}/{half}"] = view

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
            numbers = self.numbers(crossbar, factor)
            plus, minus = conductance[crossbar.name]
            found = gradient.crossbars
            part = found.parts[crossbar.name] if isinstance(found, LayeredGradient) else found[crossbar.name]
            if isinstance(part, Factors) and part.mirrored and minus is not None:
                self._pair(crossbar, plus, minus, self._slope(part), numbers)
                continue
            halves = (part, part.minus) if isinstance(part, Factors) else part
            for half, g, slope in zip(("g_plus", "g_minus"), (plus, minus), halves, strict=True):
                if g is not None and slope is not None:
                    self._half(crossbar, half, g, self._slope(slope), numbers)

    def numbers(self, crossbar: Crossbar, factor: float) -> tuple[float, ...]:
        """Return the numbers of a step of a crossbar, as the kernels take them: a tuple of 4, or of 9 for
        Adam, whose ``count`` is that of the step."""
        spec, low, high = self.spec, float(crossbar.g_min), float(crossbar.g_max)
        window, rate = high - low, spec.step * factor * spec.rate_of(crossbar.name)
        if spec.kind == "sgd":
            return rate * window * window / self.unit, spec.momentum, low, high
        # In units of the cost's curvature, so that squares of slopes stay far from float32's smallest
        # numbers. The smallest slope that still counts is far below any real one.
        return (
            rate * window,
            window / self.unit,
            1 - spec.beta1,
            1 - spec.beta2,
            1 / (1 - spec.beta1**self.count),
            1 / (1 - spec.beta2**self.count),
            1e-10,
            low,
            high,
        )

    def _slope(self, part: Factors | Array) -> _Slope:
        dtype = np.dtype(self.precision)
        if isinstance(part, Factors):
            return _Slope.of(part, dtype)
        return _Slope.given(np.ascontiguousarray(part, dtype=dtype))

    def _moments(self, key: str) -> tuple[Array, ...]:
        return tuple(self.state[f"{name}/{key}"] for name in self.moments)

    def _half(
        self, crossbar: Crossbar, half: str, g: Array, slope: _Slope, numbers: tuple[float, ...]
    ) -> None:
        dtype = np.dtype(self.precision)
        moments = self._moments(f"{crossbar.name}/{half}")
        given = np.array(numbers, dtype=dtype)

        def rows(k: slice) -> None:
            if self.spec.kind == "sgd":
                m = moments[0] if moments else np.empty((0, 0), dtype=dtype)
                sgd_rows(k.start, k.stop, *slope.arrays, g, m, given)
            else:
                adam_rows(k.start, k.stop, *slope.arrays, g, *moments, given)  # type: ignore[call-arg]

        share_batch(rows, len(g), work=g.shape[1] // 16)
        if crossbar.mask is not None:
            g[~crossbar.mask] = 0

    def _pair(
        self, crossbar: Crossbar, plus: Array, minus: Array, slope: _Slope, numbers: tuple[float, ...]
    ) -> None:
        dtype = np.dtype(self.precision)
        left, right, product, _, word, bit = slope.arrays
        both = [self._moments(f"{crossbar.name}/{half}") for half in ("g_plus", "g_minus")]
        moments = tuple(x for pair in zip(*both, strict=True) for x in pair)
        step = adam_pairs if self.spec.kind == "adam" else sgd_pairs
        moments = moments or (np.empty((0, 0), dtype=dtype),) * 2
        given = plus, minus, moments, np.array(numbers, dtype=dtype)

        def rows(k: slice) -> None:
            step(k.start, k.stop, left, right, product, word, bit, *given)

        share_batch(rows, len(plus), work=plus.shape[1] // 8)
        if crossbar.mask is not None:
            plus[~crossbar.mask] = 0
            minus[~crossbar.mask] = 0

    def restore(self, state: Mapping[str, Array], count: int) -> None:
        """Continue from a checkpoint."""
        for key, array in self.state.items():
            array[...] = state[key]
        self.count = count


@dataclass(frozen=True, eq=False)
class _Slope:
    """dC/dg of one half of a crossbar as the kernels take it."""

    arrays: tuple[Array, Array, Array, Any, Array, Array]
    """left, right, product, sign, word, bit."""

    @classmethod
    def of(cls, factors: Factors, dtype: np.dtype[Any]) -> _Slope:
        left, right = (np.ascontiguousarray(x, dtype=dtype) for x in (factors.left, factors.right))
        product = np.empty((0, 0), dtype=dtype) if len(left) <= LOW_RANK else left.T @ right
        word = np.empty(0, dtype=dtype) if factors.word is None else factors.word.astype(dtype, copy=False)
        bit = factors.bit.astype(dtype, copy=False)
        return cls((left, right, product, dtype.type(1), word, bit))

    @classmethod
    def given(cls, g: Array) -> _Slope:
        nothing = np.empty((0, 0), dtype=g.dtype)
        return cls(
            (nothing, nothing, g, g.dtype.type(-1), np.empty(0, g.dtype), np.zeros(g.shape[1], g.dtype))
        )
