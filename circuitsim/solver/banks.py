"""Amplifier banks in the layered method: their outputs, and what they pass on when nodes move.

The nudged and corrected phases and the transposed system differ only in what a bank passes on (f its
output, a = f'(v0), B its back gain):

    phase        forward, to the bit lines       back, to the control node
    nudged       f(v0 + D) - f(v0)               B
    corrected    f(v0 + D) - f(v0) - a D + B D   a
    transposed   B D                             a

Faults of the correction (`circuitsim.solver.correction`) and a transposed copy with devices of its own change
what is passed on, not how:

    corrected    f(v0 + D) - f(v0) + c_f (B - a)(D - e)   B + c_b (a - B)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray
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
    held: Array
    """What the corrected phase takes from the slope of saturating amplifiers, c_f (a - B): like ``slope``."""
    passing: Array
    """What linear banks pass on per volt in the corrected and transposed phases, (n,)."""
    passes: bool
    """Whether they pass on anything."""
    returned: Array
    """The gain on the way back in these phases: like ``slope``."""
    shift: Array | None = None
    """What errors of the anchor add to the outputs, (1, n) or (B, n) V."""

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
        return self.passing * d if self.passes else None

    def faulty(
        self, forward: FloatArray | None, back: FloatArray | None, anchor: FloatArray | None
    ) -> BankPoint:
        """Return the bank with c_f, c_b (n,) and e (n,) or (B, n) V of a correction that is not perfect."""
        dtype = self.gain.dtype
        c_f, c_b = (np.ones_like(self.gain) if c is None else c.astype(dtype) for c in (forward, back))
        taken = c_f * (self.slope - self.back)
        passing = self.gain - c_f * (self.gain - self.back)
        return replace(
            self,
            held=taken,
            passing=passing,
            passes=self.limit is None and bool(np.any(passing)),
            returned=self.back + c_b * (self.slope - self.back),
            shift=None if anchor is None else taken * np.atleast_2d(anchor).astype(dtype),
        )

    def of_copy(self, back: Array, slope: FloatArray | None) -> BankPoint:
        """Return the bank of a transposed copy: back gain (n,), and factors (n,) on the slope."""
        returned = self.slope if slope is None else self.slope * slope.astype(self.gain.dtype)
        return replace(
            self, back=back, passing=back, passes=bool(np.any(back)), slope=returned, returned=returned
        )

    def rows(self, k: NDArray[np.int64]) -> BankPoint:
        """Return the bank for some samples."""

        def some(x: Array) -> Array:
            return x if len(x) == 1 else x[k]

        slope = some(self.slope)
        return replace(
            self,
            t=None if self.t is None else self.t[k],
            slope=slope,
            out=self.out[k],
            held=slope if self.held is self.slope else some(self.held),
            returned=slope if self.returned is self.slope else some(self.returned),
            shift=None if self.shift is None else some(self.shift),
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
    back, two_way = w.fixed.back[bank], w.fixed.two_way[bank]
    fixed: dict[str, Any] = {"gain": gain, "back": back, "two_way": two_way}
    fixed |= {"passing": back, "passes": two_way}
    if w.fixed.linear[bank]:
        slope, out = gain[None], bank_output(w, bank, v0)
        return BankPoint(limit=None, t=None, slope=slope, held=slope, returned=slope, out=out, **fixed)
    t, slope, out = np.empty_like(v0), np.empty_like(v0), np.empty_like(v0)

    def rows(k: slice) -> None:
        tangents(v0[k], gain, offset, limit, t[k], slope[k], out[k])

    share_batch(rows, len(v0), work=v0.shape[1] // _TANHS)
    return BankPoint(limit=limit, t=t, slope=slope, held=slope, returned=slope, out=out, **fixed)
