"""Nodal solvers: one plan per structure, one answer whatever the method, a residual with each."""

from circuitsim.solver.correction import Correction
from circuitsim.solver.dual import DualNetwork
from circuitsim.solver.equations import Equations, drive_residual
from circuitsim.solver.point import STATUS, Drive, OperatingPoint, SolverSettings
from circuitsim.solver.solve import Plan, build_plan, solve, solve_transposed

__all__ = [
    "STATUS",
    "Correction",
    "Drive",
    "DualNetwork",
    "Equations",
    "OperatingPoint",
    "Plan",
    "SolverSettings",
    "build_plan",
    "drive_residual",
    "solve",
    "solve_transposed",
]
