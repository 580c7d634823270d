"""The phases of one circuit: each a drive handed to the solver."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from circuitsim.learning.cost import Cost
from circuitsim.learning.gradient import Crossbars, layered_rule, local_rule
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import (
    Correction,
    Drive,
    DualNetwork,
    OperatingPoint,
    Plan,
    SolverSettings,
    solve,
    solve_transposed,
)
from circuitsim.solver.layered import LayerChange
from circuitsim.solver.solve import free_layers, layered_change

__all__ = ["Change", "Phases"]

Change: TypeAlias = Any
"""Displacement from the free phase: of nodes (B, N) V, or of the layers of a layered plan (`LayerChange`)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Phases:
    """A circuit with its values and its cost, ready to be put through the phases of learning.

    Changes are displacements from the free phase that can be subtracted and scaled; `nodes` gives them
    as (B, N) V, whatever the method.

    ``correction`` says what is wrong with the corrected phase's amplifiers, ``dual`` which devices the
    dyadic phase's second network has, clocked or not; None is a perfect correction, and an exact copy. No
    other phase knows of them.
    """

    plan: Plan
    values: Values
    cost: Cost
    settings: SolverSettings = field(default_factory=lambda: SolverSettings(check=False))
    correction: Correction | None = None
    dual: DualNetwork | None = None

    @property
    def netlist(self) -> Netlist:
        return self.plan.netlist

    @property
    def _layered(self) -> bool:
        return self.plan.chosen(self.settings) == "layered"

    def outputs(self, point: OperatingPoint) -> FloatArray:
        """Return output voltages (B, K) V."""
        if point._layers is not None and self.plan.layered.structure.output_layer >= 0:
            layered = self.plan.layered
            y = layered.read(point._layers.layers[layered.structure.output_layer])
            return np.asarray(y, dtype=np.float64)
        return self.netlist.outputs.read(point.node_voltage)

    def free(self, inputs: FloatArray, start: OperatingPoint | None = None) -> OperatingPoint:
        return solve(self.plan, self.values, Drive(inputs=inputs), self.settings, start=start)

    def nudged(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: OperatingPoint,
        guess: Change | None = None,
    ) -> Change:
        """``F(x) + beta dC/dx = 0``: return x - x0."""
        drive = Drive(inputs=inputs, nudge=self.cost.nudge(targets, beta))
        return self._change(drive, free, guess)

    def corrected(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: OperatingPoint,
        guess: Change | None = None,
    ) -> Change:
        """``F(x) + (J0^T - J0)(x - x0) + beta dC/dx = 0``: return x - x0."""
        nudge = self.cost.nudge(targets, beta)
        drive = Drive(inputs=inputs, nudge=nudge, anchor=free, correction=self.correction)
        return self._change(drive, free, guess)

    def dyadic(self, inputs: FloatArray, targets: FloatArray, beta: float, free: OperatingPoint) -> Change:
        """``F(m) = 0`` and ``J(m)^T d + beta dC/dm = 0`` with m the free phase: return d."""
        current = self.cost.nudge(targets, beta).current(self.outputs(free))
        # d is linear in beta, so what counts as nothing must be too: else a small beta costs digits.
        settings = replace(self.settings, absolute_tolerance=abs(beta) * self.settings.absolute_tolerance)
        return self._transposed(inputs, current, free, settings, self.dual)

    def adjoint(self, inputs: FloatArray, targets: FloatArray, free: OperatingPoint) -> Change:
        """``J0^T s = -dC/dx``, by computer: return s."""
        slope = self.cost.nudge(targets, 1.0).current(self.outputs(free))
        return self._transposed(inputs, slope, free, self.settings)

    def rule(self, inputs: FloatArray, free: OperatingPoint, s: Change) -> Crossbars:
        """Return dC/dg of every trainable crossbar: drop times change of drop per unit of beta, ``s``."""
        if isinstance(s, LayerChange):
            base = free_layers(self.plan, self.values, inputs, free, self.settings)
            return layered_rule(self.plan.layered, base, s)
        return local_rule(self.netlist, free.node_voltage, s)

    def nodes(self, change: Change, inputs: FloatArray, free: OperatingPoint) -> FloatArray:
        """Return a change as displacements of all nodes (B, N) V."""
        if not isinstance(change, LayerChange):
            return change
        base = free_layers(self.plan, self.values, inputs, free, self.settings)
        return self.plan.layered.displacement(base, change)

    def _change(self, drive: Drive, free: OperatingPoint, guess: Change | None) -> Change:
        if not self._layered:
            assert not isinstance(guess, LayerChange)
            start = free if drive.anchor is None else None
            point = solve(self.plan, self.values, drive, self.settings, start=start, guess=guess)
            return point.node_voltage - free.node_voltage
        layered = self.plan.layered
        first = guess if isinstance(guess, LayerChange) else None
        change, _ = layered_change(self.plan, self.values, drive, free, self.settings, start=first)
        if not change.status.any():
            return change
        # Sweeps left some samples: the general method takes them, or the error says why not.
        start = free if drive.anchor is None else None
        point = solve(self.plan, self.values, drive, self.settings, start=start)
        assert point.displacement is not None
        faulty = drive.correction is not None
        return layered.change_of(point.displacement, change.phase, self.settings.precision, driven=faulty)

    def _transposed(
        self,
        inputs: FloatArray,
        current: FloatArray,
        free: OperatingPoint,
        settings: SolverSettings,
        dual: DualNetwork | None = None,
    ) -> Change:
        if not self._layered:
            return solve_transposed(self.plan, self.values, free, current, settings, inputs=inputs, dual=dual)
        layered = self.plan.layered
        base = free_layers(self.plan, self.values, inputs, free, settings)
        if dual is not None:
            dual.check(self.netlist)
        change = layered.increments(base, "transposed", settings, output_current=current, dual=dual)
        if not change.status.any():
            return change
        moved = solve_transposed(self.plan, self.values, free, current, settings, inputs=inputs, dual=dual)
        return layered.change_of(
            moved, "transposed", settings.precision, driven=change.driven is not None, copy=change.copy
        )
