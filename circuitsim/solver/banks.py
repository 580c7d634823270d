"""Amplifier banks in the layered method: their outputs, and what they pass on when nodes move.

The nudged and corrected phases and the transposed system differ only in what a bank passes on (f its
output, a = f'(v0), B its back gain):

    phase        forward, to the bit lines       back, to the control node
    nudged       f(v0 + D) - f(v0)               B
    corrected    f(v0 + D) - f(v0) - a D + B D   a
    transposed   B D                             a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.solver.kernels.amplifiers import output_changes, outputs, tangents
from circuitsim.solver.threads import share_batch
from circuitsim.solver.weights import Weights

__all__ = ["BankPoint", "Phase", "bank_output", "bank_point"]

Phase = Literal["nudged", "corrected", "transposed"]
Array = NDArray[Any]

_TANHS = 4
"""How many of them are worth one matrix entry, see `share_batch`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BankPoint:
    """A bank around the free point v0, with what its increments need: t = tanh at v0, a = f'(v0)."""

    gain: Array
    limit: Array | None
    """Saturation (n,) V, or None for linear banks."""
    t: Array | None
    slope: Array
    """a, (B, n), or (1, n) where it is the gain everywhere."""
    back: Array
    two_way: bool
    out: Array
    """f(v0), (B, n) V"""

    def change(self, d: Array) -> Array:
        """Return f(v0 + d) - f(v0) without cancellation."""
        limit, t = self.limit, self.t
        if limit is None or t is None:
            return self.gain * d
        out = np.empty_like(d)

        def rows(k: slice) -> None:
            output_changes(d[k], self.gain, limit, t[k], out[k])

        share_batch(rows, len(d), work=d.shape[1] // _TANHS)
        return out

    def forward(self, phase: Phase, d: Array) -> Array | None:
        """Return the change of the outputs that a phase passes on, or None where they are held.

        Of a corrected phase only what linear banks pass on; the bend of saturating ones is found with
        their control nodes.
        """
        if phase == "nudged":
            return self.change(d)
        return self.back * d if self.two_way else None

    def rows(self, k: NDArray[np.int64]) -> BankPoint:
        """Return the bank for some samples."""
        return BankPoint(
            gain=self.gain,
            limit=self.limit,
            t=None if self.t is None else self.t[k],
            slope=self.slope if len(self.slope) == 1 else self.slope[k],
            back=self.back,
            two_way=self.two_way,
            out=self.out[k],
        )


def bank_output(w: Weights, bank: int, v: Array) -> Array:
    """Return the output (B, n) V of a bank at control voltages v (B, n) V."""
    gain, offset, limit = w.fixed.gain[bank], w.fixed.offset[bank], w.fixed.saturation[bank]
    if w.fixed.linear[bank]:
        return gain * v if w.fixed.centred[bank] else gain * (v + offset)
    out = np.empty_like(v)

    def rows(k: slice) -> None:
        outputs(v[k], gain, offset, limit, out[k])

    share_batch(rows, len(v), work=v.shape[1] // _TANHS)
    return out


def bank_point(w: Weights, bank: int, v0: Array) -> BankPoint:
    """Return a bank around control voltages v0 (B, n) V."""
    gain, offset, limit = w.fixed.gain[bank], w.fixed.offset[bank], w.fixed.saturation[bank]
    fixed: dict[str, Any] = {"gain": gain, "back": w.fixed.back[bank], "two_way": w.fixed.two_way[bank]}
    if w.fixed.linear[bank]:
        return BankPoint(limit=None, t=None, slope=gain[None], out=bank_output(w, bank, v0), **fixed)
    t, slope, out = np.empty_like(v0), np.empty_like(v0), np.empty_like(v0)

    def rows(k: slice) -> None:
        tangents(v0[k], gain, offset, limit, t[k], slope[k], out[k])

    share_batch(rows, len(v0), work=v0.shape[1] // _TANHS)
    return BankPoint(limit=limit, t=t, slope=slope, out=out, **fixed)
