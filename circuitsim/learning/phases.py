"""The phases of one circuit: each a drive handed to the solver."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from circuitsim.learning.cost import Cost
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Drive, OperatingPoint, Plan, SolverSettings, solve, solve_transposed

__all__ = ["Phases"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Phases:
    """A circuit with its values and its cost, ready to be put through the phases of learning.

    Changes are returned as displacements from the free phase (B, N) V.
    """

    plan: Plan
    values: Values
    cost: Cost
    settings: SolverSettings = field(default_factory=lambda: SolverSettings(check=False))

    @property
    def netlist(self) -> Netlist:
        return self.plan.netlist

    def outputs(self, point: OperatingPoint) -> FloatArray:
        """Return output voltages (B, K) V."""
        return self.netlist.outputs.read(point.node_voltage)

    def free(self, inputs: FloatArray, start: OperatingPoint | None = None) -> OperatingPoint:
        return solve(self.plan, self.values, Drive(inputs=inputs), self.settings, start=start)

    def nudged(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: OperatingPoint,
        guess: FloatArray | None = None,
    ) -> FloatArray:
        """``F(x) + beta dC/dx = 0``: return x - x0."""
        drive = Drive(inputs=inputs, nudge=self.cost.nudge(targets, beta))
        return _displacement(
            solve(self.plan, self.values, drive, self.settings, start=free, guess=guess), free
        )

    def corrected(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: OperatingPoint,
        guess: FloatArray | None = None,
    ) -> FloatArray:
        """``F(x) + (J0^T - J0)(x - x0) + beta dC/dx = 0``: return x - x0."""
        drive = Drive(inputs=inputs, nudge=self.cost.nudge(targets, beta), anchor=free)
        return _displacement(solve(self.plan, self.values, drive, self.settings, guess=guess), free)

    def dyadic(
        self, inputs: FloatArray, targets: FloatArray, beta: float, free: OperatingPoint
    ) -> FloatArray:
        """``F(m) = 0`` and ``J(m)^T d + beta dC/dm = 0`` with m the free phase: return d."""
        current = self.cost.nudge(targets, beta).current(self.outputs(free))
        # d is linear in beta, so what counts as nothing must be too: else a small beta costs digits.
        settings = replace(self.settings, absolute_tolerance=abs(beta) * self.settings.absolute_tolerance)
        return solve_transposed(self.plan, self.values, free, current, settings, inputs=inputs)


def _displacement(point: OperatingPoint, free: OperatingPoint) -> FloatArray:
    if point.displacement is not None:
        return point.displacement
    return point.node_voltage - free.node_voltage
