"""Sweeps over layers until KCL holds, for any phase: accelerated, per sample, converged samples leaving.

Sweeps see the layers that close the loops alone: x -> g(x). All others are solved in between, so what
a (g - x) says is the KCL residual at the nodes of those layers, and at all others there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import IntArray
from circuitsim.solver.kernels.mixing import progress
from circuitsim.solver.layers import Sweep
from circuitsim.solver.mixing import Anderson
from circuitsim.solver.point import SolverSettings

__all__ = ["Relaxed", "System", "relax", "tolerances"]

Array = NDArray[Any]

_RAN_OUT, _GREW = 1, 3
_LEAVE = 0.2
"""Part of the samples that must have converged before the rest goes on without them."""
_SINGLE, _SINGLE_ROUNDING = 2e-7, 2e-6
"""Relative tolerance of float32, and the one that counts as met where rounding stops the sweeps."""


class System(Protocol):
    """One phase of a batch: layers' states, and how each follows from the others."""

    state: list[Array]

    def update(self, layer: int) -> None:
        """Solve the nodes of a layer, the others held."""

    def load(self, layer: int) -> Array:
        """Return what loads the nodes of a layer, (1, n) or (B, n) S."""

    def place(self, layer: int, voltage: Array) -> None:
        """Set the state of a layer."""

    def keep(self, rows: IntArray) -> None:
        """Forget all samples but these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxed:
    """States (B, n) per layer, sweeps and status (B,)."""

    state: list[Array]
    iterations: IntArray
    status: NDArray[np.int8]


def tolerances(settings: SolverSettings, dtype: Any) -> tuple[float, float, float]:
    """Return the largest step [V], the relative residual, and the relative step that is rounding."""
    step = 0.1 * settings.voltage_tolerance
    if dtype == np.float32:
        return step, max(0.1 * settings.relative_tolerance, _SINGLE), _SINGLE_ROUNDING
    return step, 0.1 * settings.relative_tolerance, 1e-15


def relax(system: System, sweep: Sweep, settings: SolverSettings) -> Relaxed:
    """Sweep until every sample meets the tolerances, or is lost."""
    batch = len(system.state[0])
    iterations, status = np.ones(batch, dtype=np.int64), np.zeros(batch, dtype=np.int8)
    # Sweeps that run away overflow: the status says so, not NumPy.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if not sweep.loops:
            for layer in sweep.order:
                system.update(layer)
            for x in system.state:
                status[~np.isfinite(x.sum(axis=1))] = _GREW
            return Relaxed(state=system.state, iterations=iterations, status=status)
        return _iterate(system, sweep, settings, iterations, status)


def _iterate(
    system: System,
    sweep: Sweep,
    settings: SolverSettings,
    iterations: IntArray,
    status: NDArray[np.int8],
) -> Relaxed:
    single = system.state[0].dtype == np.float32
    step, relative, rounding = tolerances(settings, system.state[0].dtype)
    status[:] = _RAN_OUT
    mixer = Anderson()
    active = np.arange(len(status))
    done = np.zeros(len(status), dtype=np.bool_)
    finished: list[Array] | None = None
    edges = np.cumsum([system.state[layer].shape[1] for layer in sweep.loops])[:-1]
    loads = [system.load(layer) for layer in sweep.loops]
    shared = all(len(load) == 1 for load in loads)
    a = np.concatenate(
        [load if shared else np.broadcast_to(load, (len(status), load.shape[1])) for load in loads], axis=1
    )
    for layer in sweep.loops:
        # The others are at their start, and what they send is known already.
        system.update(layer)
    x = _packed(system, sweep)
    before = np.full(len(status), np.inf)
    for count in range(1, settings.max_iterations + 1):
        for layer in sweep.order:
            system.update(layer)
        g = _packed(system, sweep)
        found = np.empty((len(x), 4))
        progress(x, g, a, found)
        moved, size, flow, scale = np.sqrt(found).T
        if not single:
            # So that the tolerance holds for the largest entries too, as promised.
            scale = scale / math.sqrt(x.shape[1])
        lost = ~np.isfinite(flow + size) | (size > 1e9)
        near = moved <= np.maximum(step, rounding * size)
        settled = near & (flow <= relative * scale + settings.absolute_tolerance)
        if single:
            # Sweeps that gain nothing more are as good as float32 is.
            settled |= near & (flow <= rounding * scale) & (flow > 0.5 * before)
        before = flow
        iterations[active[~done]] = count
        status[active[settled & ~done]] = 0
        status[active[lost & ~done]] = _GREW
        done |= settled | lost
        leaving = done.mean() >= _LEAVE and len(done) > 4
        if not single and (leaving or done.all() or count == settings.max_iterations):
            # The others last: they see where the loops have come to.
            for layer in sweep.order[: -len(sweep.loops)]:
                system.update(layer)
        if done.all():
            break
        if leaving:
            if finished is None:
                finished = [np.empty((len(status), y.shape[1]), dtype=y.dtype) for y in system.state]
            left = np.flatnonzero(~done)
            for whole, part in zip(finished, system.state, strict=True):
                whole[active[done]] = part[done]
            system.keep(left)
            mixer.keep(left)
            active, done, x, g, before = active[left], done[left], x[left], g[left], before[left]
            a = a if len(a) == 1 else a[left]
        if count < settings.max_iterations:
            mixed = mixer.mix(x, g)
            if done.any():
                # Where it is, it stays: sweeps may lead away from points that others find.
                earlier = done & (iterations[active] < count)
                mixed[done] = g[done]
                mixed[earlier] = x[earlier]
            x = mixed
            for layer, part in zip(sweep.loops, np.split(x, edges, axis=1), strict=True):
                system.place(layer, np.ascontiguousarray(part))
    if finished is None:
        return Relaxed(state=system.state, iterations=iterations, status=status)
    for whole, part in zip(finished, system.state, strict=True):
        whole[active] = part
    return Relaxed(state=finished, iterations=iterations, status=status)


def _packed(system: System, sweep: Sweep) -> Array:
    parts = [system.state[layer] for layer in sweep.loops]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
