"""Anderson acceleration of fixed-point sweeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.solver.kernels.mixing import mix
from circuitsim.solver.threads import share_batch

__all__ = ["Anderson"]

Array = NDArray[Any]


class Anderson:
    """History of a batch's sweeps; each sample has coefficients of its own."""

    depth = 6
    first = 2
    """The sweep after which mixing starts: fast contractions never pay for it."""

    def __init__(self) -> None:
        self._count = 0
        self._slot = 0
        self._xs: Array | None = None

    def mix(self, x: Array, g: Array) -> Array:
        """Return the next x (B, n) from a sweep's start x and its result g."""
        self._count += 1
        if self._count < self.first:
            return g
        batch, n = x.shape
        if self._xs is None:
            self._xs, self._fs = (np.empty((self.depth, batch, n), dtype=x.dtype) for _ in range(2))
            self._gram = np.zeros((batch, self.depth, self.depth))
            self._held = np.zeros((batch, self.depth), dtype=np.bool_)
        xs, fs, gram, held = self._xs, self._fs, self._gram, self._held
        out = np.empty_like(x)
        regular = 1e-13 if x.dtype == np.float64 else 1e-9
        slot = self._slot

        def rows(k: slice) -> None:
            mix(x[k], g[k], slot, xs[:, k], fs[:, k], gram[k], held[k], regular, out[k])

        share_batch(rows, batch, work=self.depth * n // 4)
        self._slot = (slot + 1) % self.depth
        return out

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Forget all samples but these."""
        if self._xs is not None:
            self._xs, self._fs = self._xs[:, rows], self._fs[:, rows]
            self._gram, self._held = self._gram[rows], self._held[rows]
