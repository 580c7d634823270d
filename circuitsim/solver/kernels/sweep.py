"""A row of operating points, each started from the one before it."""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import strict
from circuitsim.solver.kernels.newton import CONVERGED, _solve_sample

__all__ = ["follow"]


@strict
def follow(c, plan, x, v, constant, target, limits, max_iterations, iterations):  # type: ignore[no-untyped-def]
    """Solve P points in place: x (P, n), v (P, N) with known nodes filled in, constant (P, n).

    x[0] is where the first one starts. A point that is not found from its neighbour is tried from
    zero. Stops at one that is not found at all. Returns (points done, status of the last).
    """
    nothing, no_correction = np.zeros(x.shape[1]), np.empty(0)
    status = CONVERGED
    for p in range(len(x)):
        if p > 0:
            for k in range(x.shape[1]):
                x[p, k] = x[p - 1, k]
        status, used = _solve_sample(
            c, plan, x[p], v[p], constant[p], no_correction, nothing, target, 0.0, limits, max_iterations
        )
        iterations[p] = used
        if status != CONVERGED:
            for k in range(x.shape[1]):
                x[p, k] = 0.0
            status, used = _solve_sample(
                c, plan, x[p], v[p], constant[p], no_correction, nothing, target, 0.0, limits, max_iterations
            )
            iterations[p] += used
            if status != CONVERGED:
                return p, status
    return len(x), status
