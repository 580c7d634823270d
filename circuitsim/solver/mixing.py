"""Anderson acceleration of fixed-point sweeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anderson"]

Array = NDArray[Any]


class Anderson:
    """Anderson acceleration of the sweeps, each sample with coefficients of its own."""

    depth = 5
    first = 4
    """Plain sweeps before mixing: fast contractions never pay for it."""

    def __init__(self) -> None:
        self._x: list[Array] = []
        self._f: list[Array] = []
        self._count = 0

    def mix(self, before: list[Array], state: list[Array], done: NDArray[np.bool_]) -> None:
        """Replace the sweep's result in ``state`` by the mixed one, for samples that are not done."""
        self._count += 1
        if self._count < self.first:
            return
        x = np.concatenate(before, axis=1).astype(np.float64)
        g = np.concatenate(state, axis=1).astype(np.float64)
        f = g - x
        worse = np.zeros(len(x), dtype=np.bool_)
        if self._f:
            worse = np.linalg.norm(f, axis=1) > 2.0 * np.linalg.norm(self._f[-1], axis=1)
        self._x.append(x)
        self._f.append(f)
        self._x, self._f = self._x[-self.depth - 1 :], self._f[-self.depth - 1 :]
        if len(self._f) < 2:
            return
        df = np.stack([f - old for old in self._f[:-1]], axis=1)
        dx = np.stack([x - old for old in self._x[:-1]], axis=1)
        normal = df @ df.transpose(0, 2, 1)
        trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
        normal += (1e-14 * trace + 1e-300) * np.eye(normal.shape[1])
        gamma = np.linalg.solve(normal, df @ f[:, :, None])
        mixed = g - ((dx + df).transpose(0, 2, 1) @ gamma)[:, :, 0]
        use = ~done & ~worse & np.isfinite(mixed).all(axis=1)
        start = 0
        for layer, old in enumerate(state):
            stop = start + old.shape[1]
            new = old.copy()
            new[use] = mixed[use, start:stop]
            state[layer] = new
            start = stop
