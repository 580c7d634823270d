"""Staircases of pulses as single steps, and what can be seen of them before any curve is fitted.

Both directions are treated alike: ``u`` is w for pulses up and -w for pulses down, ``move`` the change of
u by one pulse, so that pulses always drive towards larger u.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.measurements import PulseData
from circuitsim.netlist.tables import FloatArray

__all__ = ["Direction", "Steps", "directions", "grouped_regression", "single_steps"]

_TOP = 0.15
"""Part of a device's own range next to its far end that may lie on a bound."""
_FINAL = 0.05
"""Part of a staircase whose mean is its final level."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """Single steps of all devices in the order of time: rows of the data before and after each."""

    device: NDArray[np.int64]
    staircase: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    earlier: NDArray[np.int64]
    """The row before ``before`` where a pulse of the same direction lies between them; otherwise -1."""
    up: NDArray[np.bool_]
    gaps: int
    """Rows that do not follow the one before by one pulse."""


def single_steps(data: PulseData) -> Steps:
    """Return the steps between readings that are one pulse apart.

    The first reading of a cycle starts a staircase, and so does one with pulse number 0. Where the
    direction turns, pulses may count on or start again at 1.
    """
    order = np.lexsort((np.arange(len(data)), data.cycle, data.device))
    device, cycle = data.device[order], data.cycle[order]
    pulse, up = data.pulse[order], data.up[order]
    together = (device[1:] == device[:-1]) & (cycle[1:] == cycle[:-1])
    next_one = pulse[1:] == pulse[:-1] + 1
    # A reading before any pulse has no direction of its own.
    turned = (up[1:] != up[:-1]) & (pulse[:-1] > 0)
    step = together & (pulse[1:] > 0) & (next_one | (turned & (pulse[1:] == 1)))
    restart = (pulse[1:] == 0) | (~turned & (pulse[1:] == 1))
    gaps = int(np.sum(together & ~step & ~restart))
    place = np.flatnonzero(step)
    here_up = up[place + 1]
    follows = np.zeros(len(place), dtype=bool)
    follows[1:] = (np.diff(place) == 1) & (here_up[1:] == here_up[:-1])
    return Steps(
        device=device[place + 1],
        staircase=np.cumsum(~follows) - 1,
        before=order[place],
        after=order[place + 1],
        earlier=np.where(follows, order[np.maximum(place - 1, 0)], -1),
        up=here_up,
        gaps=gaps,
    )


def grouped_regression(
    group: NDArray[np.int64], count: int, design: FloatArray, y: FloatArray, weight: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return coefficients (G, P) of one weighted regression per group, and (X^T W X)^-1 (G, P, P).

    Directions of the design that a group does not fix get the smallest coefficients.
    """
    weight = np.ones(len(y)) if weight is None else weight
    width = design.shape[1]
    normal = np.empty((count, width, width))
    right = np.empty((count, width))
    for a in range(width):
        right[:, a] = np.bincount(group, weight * design[:, a] * y, minlength=count)
        for b in range(width):
            normal[:, a, b] = np.bincount(group, weight * design[:, a] * design[:, b], minlength=count)
    inverse: FloatArray = np.linalg.pinv(normal, rcond=1e-13, hermitian=True).astype(np.float64)
    return np.einsum("gab,gb->ga", inverse, right), inverse


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """The steps of one direction, in u."""

    name: str
    devices: int
    device: NDArray[np.int64]
    staircase: NDArray[np.int64]
    row: NDArray[np.int64]
    """Row of the data after each step."""
    start: FloatArray
    """Where each step began: as read, or, where readings are noisy, as the reading before predicts."""
    read: FloatArray
    """Where each step began, as read."""
    move: FloatArray
    kept: NDArray[np.bool_]
    """Steps that no bound can have cut short."""
    final: FloatArray
    """(D,): where the device's staircases end."""
    bound: FloatArray
    """(D,): the device's hard bound; nan where none was seen."""
    bound_variance: FloatArray
    """(D,): that of its estimate."""
    noisy: bool
    """Whether readings differ from the state: consecutive steps are anticorrelated."""

    @property
    def bounded(self) -> bool:
        """Whether most devices stop at a hard bound: of fewer, those that do are no fair sample."""
        return bool(np.mean(np.isfinite(self.bound)) >= 0.5)

    def only_kept(self) -> Direction:
        """Return the direction with its kept steps alone."""
        k = self.kept
        return replace(
            self,
            device=self.device[k],
            staircase=self.staircase[k],
            row=self.row[k],
            start=self.start[k],
            read=self.read[k],
            move=self.move[k],
            kept=np.ones(int(k.sum()), dtype=bool),
            order=self.order[k],
        )

    def neighbours(self) -> NDArray[np.int64]:
        """Return k where steps k and k + 1 follow each other in one staircase."""
        # Consecutive rows of one staircase that are both there: a step that was left out parts them.
        same = (self.staircase[1:] == self.staircase[:-1]) & (self.order[1:] == self.order[:-1] + 1)
        return np.flatnonzero(same)

    order: NDArray[np.int64]
    """(N,): number of each step in time."""


def directions(steps: Steps, w: FloatArray, devices: int) -> tuple[Direction, Direction]:
    """Return the steps up and the steps down of readings ``w`` (N,)."""
    sides = [_Side(steps, w, devices, up) for up in (True, False)]
    # Noise of readings is one property of the measurement, whatever the direction.
    noisy = _anticorrelated(sides)
    up, down = (side.direction(noisy) for side in sides)
    return up, down


class _Side:
    def __init__(self, steps: Steps, w: FloatArray, devices: int, up: bool) -> None:
        sign = 1.0 if up else -1.0
        own = np.flatnonzero(steps.up == up)
        self.name = "up" if up else "down"
        self.devices = devices
        self.device = steps.device[own]
        self.staircase = steps.staircase[own]
        self.row = steps.after[own]
        self.order = own
        self.before = sign * w[steps.before[own]]
        self.after = sign * w[steps.after[own]]
        earlier = steps.earlier[own]
        self.earlier = np.where(earlier >= 0, sign * w[np.maximum(earlier, 0)], np.nan)
        self.move = self.after - self.before
        self.final = self._final()
        lowest = np.full(devices, np.inf)
        np.minimum.at(lowest, self.device, self.before)
        self.span = np.maximum(self.final - lowest, 1e-12)
        inner = self.before < (self.final - _TOP * self.span)[self.device]
        few = np.bincount(self.device[inner], minlength=devices) < 3
        self.inner = inner | few[self.device]
        self.expected, self.spread, self.residual = self._smooth(self.before)

    def _final(self) -> FloatArray:
        """Mean over staircases of the last readings, per device."""
        total, count = np.zeros(self.devices), np.zeros(self.devices)
        edges = np.flatnonzero(np.diff(self.staircase, prepend=-1, append=-1))
        for first, last in pairwise(edges.tolist()):
            size = max(1, round(_FINAL * (last - first)))
            total[self.device[first]] += self.after[last - size : last].mean()
            count[self.device[first]] += 1
        return total / np.maximum(count, 1)

    def _smooth(self, at: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the mean step at ``at`` as a smooth curve per device, from steps away from the far end;
        each device's spread of single steps about it, and residuals."""
        number = np.bincount(self.device[self.inner], minlength=self.devices)
        least = int(number.min())
        degree = 2 if least >= 12 else 1 if least >= 6 else 0
        centre = (self.final - 0.5 * self.span)[self.device]
        half = (0.5 * self.span)[self.device]

        def design(u: FloatArray) -> FloatArray:
            return np.column_stack([((u - centre) / half) ** power for power in range(degree + 1)])

        k = self.inner
        found, _ = grouped_regression(self.device[k], self.devices, design(self.before)[k], self.move[k])
        expected = np.einsum("np,np->n", design(at), found[self.device])
        residual = self.move - np.einsum("np,np->n", design(self.before), found[self.device])
        freedom = np.maximum(number - degree - 1, 1)
        squares = np.bincount(self.device[k], residual[k] ** 2, minlength=self.devices)
        return expected, np.sqrt(squares / freedom), residual

    def lagged(self) -> tuple[float, float, int]:
        """Return the summed products of residuals that follow each other, of residuals, and their number."""
        both = self.inner[1:] & self.inner[:-1] & (np.diff(self.order) == 1)
        both &= self.staircase[1:] == self.staircase[:-1]
        ahead, behind = self.residual[1:][both], self.residual[:-1][both]
        return float(ahead @ behind), float(0.5 * (ahead @ ahead + behind @ behind)), int(both.sum())

    def direction(self, noisy: bool) -> Direction:
        """Return the steps with their starts, and those near a bound marked."""
        start = self.before
        usable = np.ones(len(start), dtype=bool)
        if noisy:
            # The reading that starts a step is also part of the step: its noise would tilt every curve.
            # What the reading before it predicts is free of that noise (two-stage least squares).
            usable = np.isfinite(self.earlier)
            start = np.where(usable, self._predicted(), self.before)
        expected, _, _ = self._smooth(start)
        drive = np.maximum(expected, 0.0)
        near = usable & (start >= self.final[self.device] - 0.5 * drive)
        bound = np.full(self.devices, np.nan)
        uncertain = np.zeros(self.devices)
        kept = usable
        room = drive + 3 * self.spread[self.device]
        last = usable & (start >= self.final[self.device] - room)
        size = np.bincount(self.device[near], minlength=self.devices)
        saturated = self._stopped(near, drive, 6 if noisy else 3)
        level: FloatArray
        if noisy:
            level = np.bincount(self.device[near], self.after[near], minlength=self.devices).astype(float)
            level = level / np.maximum(size, 1)
            off = (self.after - level[self.device])[near] ** 2
            uncertain = np.bincount(self.device[near], off, minlength=self.devices).astype(float)
            uncertain = uncertain / np.maximum(size * (size - 1), 1)
            tied = np.zeros(self.devices, dtype=bool)
        else:
            level = np.full(self.devices, -np.inf)
            np.maximum.at(level, self.device, np.maximum(self.after, self.before))
            # Readings without noise that end at the very same place ended at a bound.
            at_level = np.abs(self.after - level[self.device]) < 1e-9 * self.span[self.device]
            tied = np.bincount(self.device[at_level], minlength=self.devices) > 1
        if saturated.any() or tied.any():
            bound = np.where(saturated, level, np.nan)
            limit = np.where(saturated | tied, level, self.final)[self.device]
            kept = usable & (start + room <= limit)
        elif self._slow(last):
            # Where steps vanish, a bound may still cut off the noise above it.
            kept = usable & ~last
        return Direction(
            name=self.name,
            devices=self.devices,
            device=self.device,
            staircase=self.staircase,
            row=self.row,
            start=start,
            read=self.before,
            move=self.move,
            kept=kept,
            final=self.final,
            bound=bound,
            bound_variance=uncertain,
            noisy=noisy,
            order=self.order,
        )

    def _predicted(self) -> FloatArray:
        k = np.isfinite(self.earlier) & self.inner
        earlier = np.where(np.isfinite(self.earlier), self.earlier, 0.0)
        number = np.bincount(self.device[k], minlength=self.devices)
        degree = 2 if number.min() >= 12 else 1 if number.min() >= 6 else 0
        design = np.column_stack([earlier**power for power in range(degree + 1)])
        found, _ = grouped_regression(self.device[k], self.devices, design[k], (self.before - earlier)[k])
        predicted: FloatArray = earlier + np.einsum("np,np->n", design, found[self.device])
        return predicted

    def _slow(self, last: NDArray[np.bool_]) -> bool:
        """Whether steps next to the far end are much smaller than elsewhere."""
        if int(last.sum()) < max(4, self.devices // 2):
            return False
        inner = float(np.mean(np.abs(self.move[self.inner])))
        return float(self.move[last].mean()) < 0.25 * inner

    def _stopped(self, near: NDArray[np.bool_], drive: FloatArray, least: int) -> NDArray[np.bool_]:
        """Return which devices' steps near the far end fall short of what the curve before it leads to."""
        size = np.maximum(np.bincount(self.device[near], minlength=self.devices), 1)
        moved = np.bincount(self.device[near], self.move[near], minlength=self.devices) / size
        hoped = np.bincount(self.device[near], drive[near], minlength=self.devices) / size
        inner = float(np.mean(np.abs(self.move[self.inner])))
        error = self.spread / np.sqrt(size)
        short = (moved < 0.5 * hoped) & (hoped - moved > 3 * error) & (hoped > 0.15 * inner)
        found: NDArray[np.bool_] = (size >= least) & short
        return found


def _anticorrelated(sides: list[_Side]) -> bool:
    """Whether steps that follow each other are anticorrelated by more than chance, and by more than the
    few coefficients fitted to each device make them."""
    product, square, count = (sum(column) for column in zip(*(s.lagged() for s in sides), strict=True))
    span = max(float(side.span.max()) for side in sides)
    if not count or square < count * (1e-9 * span) ** 2:
        # Nothing is left but rounding.
        return False
    fitted = 4 * 2 * sides[0].devices
    return product / square < -3 / np.sqrt(count) - fitted / count
