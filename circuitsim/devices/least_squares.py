"""Nonlinear least squares of few parameters: Levenberg and Marquardt's method in NumPy.

Levenberg, Q. Appl. Math. 2, 164 (1944); Marquardt, SIAM J. Appl. Math. 11, 431 (1963).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from circuitsim.netlist.tables import FloatArray

__all__ = ["LeastSquares", "least_squares"]

Residual = Callable[[FloatArray], FloatArray]

_FIRST_DAMPING = 1e-3
_MOST_DAMPING = 1e12
_DIFFERENCE = 6e-6
"""Relative step of central differences, near the cube root of the rounding error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LeastSquares:
    """The parameters that make the sum of squares smallest, and how well the data fix them."""

    parameters: FloatArray
    """(P,)"""
    residual: FloatArray
    """(N,)"""
    inverse: FloatArray
    """(P, P): inverse of J^T J. Times the variance of a residual, the parameters' covariance."""
    steps: int
    converged: bool

    @property
    def cost(self) -> float:
        """Sum of squares."""
        return float(self.residual @ self.residual)

    @property
    def covariance(self) -> FloatArray:
        """(P, P): covariance of the parameters where residuals are independent and equally spread."""
        freedom = len(self.residual) - len(self.parameters)
        return self.inverse * (self.cost / freedom if freedom > 0 else np.inf)


def least_squares(
    residual: Residual,
    start: FloatArray,
    *,
    jacobian: Residual | None = None,
    tolerance: float = 1e-10,
    most_steps: int = 200,
) -> LeastSquares:
    """Return the minimum of ``sum(residual(p)**2)`` that lies downhill of ``start`` (P,).

    Args:
        residual: p (P,) -> (N,). Where it is not finite a step is shortened; at ``start`` it must be finite.
        start: where to begin.
        jacobian: p -> (N, P); by central differences if left out.
        tolerance: the search ends when a step changes the cost and each parameter by less than this,
            relatively, or the gradient is zero to rounding.
        most_steps: steps after which ``converged`` is False.

    Damping multiplies the diagonal of J^T J, so that the search does not depend on the parameters' units.
    """
    p = np.array(start, dtype=np.float64)
    r = residual(p)
    if not np.isfinite(r).all():
        raise ValueError("the residual must be finite at the start")
    cost = float(r @ r)
    damping = _FIRST_DAMPING
    converged = False
    taken = 0
    j = _slopes(residual, p) if jacobian is None else jacobian(p)
    for _ in range(most_steps):
        taken += 1
        normal, gradient = j.T @ j, j.T @ r
        scale = np.maximum(np.diag(normal), np.finfo(float).tiny)
        if np.all(np.abs(gradient) <= 1e-14 * np.sqrt(scale * max(cost, np.finfo(float).tiny))):
            converged = True
            break
        while damping <= _MOST_DAMPING:
            step = -_solved(normal + damping * np.diag(scale), gradient)
            trial = residual(p + step)
            trial_cost = float(trial @ trial) if np.isfinite(trial).all() else np.inf
            if trial_cost <= cost:
                break
            damping *= 4.0
        else:
            # No step of any length goes down: this is the minimum, to rounding.
            converged = True
            break
        gain = cost - trial_cost
        small = bool(np.all(np.abs(step) <= tolerance * (np.abs(p) + tolerance)))
        p, r = p + step, trial
        done = gain <= tolerance * cost and (small or damping <= 1.0)
        cost = trial_cost
        damping = max(damping / 9.0, 1e-12)
        j = _slopes(residual, p) if jacobian is None else jacobian(p)
        if done:
            converged = True
            break
    return LeastSquares(parameters=p, residual=r, inverse=_inverse(j.T @ j), steps=taken, converged=converged)


def _slopes(residual: Residual, p: FloatArray) -> FloatArray:
    columns = []
    for k, value in enumerate(p):
        size = _DIFFERENCE * max(abs(value), 1e-3)
        change = np.zeros(len(p))
        change[k] = size
        ahead, behind = residual(p + change), residual(p - change)
        # One side is enough where the other leaves the residual's domain.
        if not np.isfinite(ahead).all():
            columns.append((residual(p) - behind) / size)
        elif not np.isfinite(behind).all():
            columns.append((ahead - residual(p)) / size)
        else:
            columns.append((ahead - behind) / (2 * size))
    return np.column_stack(columns)


def _solved(matrix: FloatArray, right: FloatArray) -> FloatArray:
    try:
        return np.linalg.solve(matrix, right).astype(np.float64)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(matrix, right, rcond=None)[0].astype(np.float64)


def _inverse(normal: FloatArray) -> FloatArray:
    """Return the inverse of J^T J; a parameter that the data do not fix has an infinite variance."""
    scale = np.sqrt(np.diag(normal))
    if not np.isfinite(scale).all() or np.any(scale == 0):
        return np.where(np.eye(len(scale)) > 0, np.inf, 0.0)
    scaled = normal / np.outer(scale, scale)
    if np.linalg.cond(scaled) > 1e14:
        return np.where(np.eye(len(scale)) > 0, np.inf, 0.0)
    return (np.linalg.inv(scaled) / np.outer(scale, scale)).astype(np.float64)
