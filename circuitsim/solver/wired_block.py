"""A crossbar with line resistance as one block between ports: currents, loads and the gradient inside.

The block is linear and reciprocal: a symmetric matrix Y [S] turns port voltages into port currents. Forming
it takes one solution inside the wires per port, so the first samples are solved for themselves; once as
many have been asked for as there are ports, Y is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuitsim.errors import ConvergenceError
from circuitsim.netlist import Crossbar
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.line_sweeps import LineSweeps
from circuitsim.solver.lines import CrossbarLines, Interior, batches, flip, line_currents

__all__ = ["WiredBlock"]

_MOST_SWEEPS = 200
_MOST_PORTS = 6_000
"""Most ports whose admittance matrix is formed."""
_ADMITTANCE_TOLERANCE = 1e-13
_NEAR = 0.3
"""Change of port voltages, relative, up to which the last currents are worth starting from."""
_IN_A_ROW = 8
"""Most changes added to currents before they are solved for afresh."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """Currents (B, P) that were found for port voltages (B, P), after so many changes."""

    voltage: FloatArray
    current: FloatArray
    tolerance: float
    changes: int


class WiredBlock:
    """One wired crossbar with given conductances.

    Ports come as word lines, in the order of ``Crossbar.lines``, then bit lines: R and N of them.

    Args:
        crossbar: with ``r_wire`` > 0.
        g_plus: (M, N) S.
        g_minus: (M, N) S, for differential pairs.
        reduce: form Y with the first samples, because many will follow.
    """

    def __init__(
        self, crossbar: Crossbar, g_plus: FloatArray, g_minus: FloatArray | None, *, reduce: bool = False
    ) -> None:
        self.crossbar = crossbar
        self.conductance = crossbar.cells(
            np.asarray(g_plus, dtype=np.float64), None if g_minus is None else np.asarray(g_minus, np.float64)
        )
        self._rows, self._columns = flip(crossbar)
        size, n = self.conductance.shape
        word_head, bit_head = (np.array([crossbar.r_wire * head]) for head in crossbar.heads)
        a = np.ascontiguousarray(crossbar.r_wire * self.conductance[:: self._rows, :: self._columns])
        self._sweeps = LineSweeps(a, np.repeat(word_head, size), np.repeat(bit_head, n))
        self.load_word = _load(self._sweeps.word_leak, word_head, crossbar.r_wire)[:: self._rows]
        """(R,) S, what each word line draws per volt at its port with all bit lines held along their length.

        At least the diagonal of Y, and little more where wires are good.
        """
        self.load_bit = _load(self._sweeps.bit_leak, bit_head, crossbar.r_wire)[:: self._columns]
        """(N,) S, likewise."""
        self._served = sum(self.conductance.shape) if reduce else 0
        self._admittance: FloatArray | None = None
        self._last: _Known | None = None

    @property
    def reduced(self) -> bool:
        """Whether Y has been formed."""
        return self._admittance is not None

    @property
    def admittance(self) -> FloatArray:
        """Y (R + N, R + N) S: the current that leaves port p into the block per volt at port q."""
        if self._admittance is None:
            found = self._solve(np.eye(sum(self.conductance.shape)), _ADMITTANCE_TOLERANCE)
            self._admittance = (found + found.T) / 2
            self._last = None
        return self._admittance

    def currents(
        self, word: FloatArray, bit: FloatArray, *, relative_tolerance: float = 1e-11
    ) -> tuple[FloatArray, FloatArray]:
        """Return the currents (B, R), (B, N) A that leave the ports into the block at (B, R), (B, N) V.

        KCL inside holds to ``relative_tolerance`` of the largest current of each sample.

        Raises:
            ConvergenceError: it does not.
        """
        voltage = np.concatenate([word, bit], axis=1, dtype=np.float64)
        batch, ports = voltage.shape
        self._served += batch
        if self._admittance is not None or (ports <= _MOST_PORTS and self._served > ports):
            current = voltage @ self.admittance
        else:
            current = self._near(voltage, relative_tolerance)
        size = len(self.conductance)
        return current[:, :size], current[:, size:]

    def gradient(
        self,
        v_word: FloatArray,
        v_bit: FloatArray,
        s_word: FloatArray,
        s_bit: FloatArray,
        *,
        relative_tolerance: float = 1e-8,
        copy: WiredBlock | None = None,
    ) -> tuple[FloatArray, FloatArray | None]:
        """Return the mean over samples of (drop of s) (drop of v) at each device: (M, N), or two of them.

        Arguments are the port voltages of two states of the same block, (B, R) and (B, N) V; or s is that of
        a ``copy`` with conductances of its own. With s the response to -dC/dv it is dC/dg [W/S]: what wires
        take from either drop is part of it. KCL inside holds to ``relative_tolerance`` of the largest
        current of each sample.

        Raises:
            ConvergenceError: it does not.
        """
        rows, columns = self._rows, self._columns
        products, reached = np.zeros(self.conductance.shape), False
        if copy is None:
            products, reached = self._sweeps.products(
                (v_word[:, ::rows], v_bit[:, ::columns]),
                (s_word[:, ::rows], s_bit[:, ::columns]),
                relative_tolerance=relative_tolerance,
                most=_MOST_SWEEPS,
            )
            products = products[::rows, ::columns]
        if not reached:
            products = np.zeros(self.conductance.shape)
            other = self if copy is None else copy
            for k in batches(len(v_word), self.conductance.size):
                v, s = self._interior(v_word[k], v_bit[k]), other._interior(s_word[k], s_bit[k])
                products += (_across(v) * _across(s)).sum(axis=0)
        g = products / len(v_word)
        mask = self.crossbar.mask
        halves = [g] if self.crossbar.word_neg is None else [g[0::2], g[1::2]]
        halves = [half if mask is None else np.where(mask, half, 0.0) for half in halves]
        return halves[0], halves[1] if len(halves) > 1 else None

    def _near(self, voltage: FloatArray, tolerance: float) -> FloatArray:
        """Return currents (B, P), from those of the last voltages if these are near."""
        last = self._last
        current, changes = None, 0
        if last is not None and last.voltage.shape == voltage.shape and last.tolerance <= tolerance:
            change = voltage - last.voltage
            moved, size = np.abs(change).max(axis=1), np.abs(voltage).max(axis=1)
            if last.changes < _IN_A_ROW and (moved <= _NEAR * size).all():
                some = moved > 0
                ease = float((size[some] / moved[some]).min(initial=1e9))
                current, changes = last.current.copy(), last.changes + 1
                if some.any():
                    current[some] += self._solve(change[some], min(1e-2, tolerance * ease))
        if current is None:
            current = self._solve(voltage, tolerance)
        self._last = _Known(voltage=voltage, current=current, tolerance=tolerance, changes=changes)
        return current

    def _solve(self, voltage: FloatArray, tolerance: float) -> FloatArray:
        """Return currents (B, P) A for port voltages (B, P) V, solved inside the wires."""
        size = len(self.conductance)
        rows, columns = self._rows, self._columns
        word, bit = voltage[:, :size], voltage[:, size:]
        at_word, at_bit, sweeps = self._sweeps.currents(
            word[:, ::rows], bit[:, ::columns], relative_tolerance=tolerance, most=_MOST_SWEEPS
        )
        current = np.concatenate([at_word[:, ::rows], at_bit[:, ::columns]], axis=1) / self.crossbar.r_wire
        left = np.flatnonzero(sweeps <= 0)
        for k in batches(len(left), self.conductance.size):
            some = left[k]
            if len(some):
                state = self._interior(word[some], bit[some])
                found = line_currents(self.crossbar, self.conductance, state)
                current[some] = np.concatenate([found.word, found.bit], axis=1)
        return current

    def _interior(self, word: FloatArray, bit: FloatArray) -> Interior:
        """Return the state for port voltages, by conjugate gradients: where sweeps gain too little."""
        state = CrossbarLines(self.crossbar, self.conductance).solve(word, bit)
        if state.status.any():
            raise ConvergenceError(
                "conjugate gradients did not reach KCL inside the wires",
                object=self.crossbar.name,
                field="r_wire",
                value=self.crossbar.r_wire,
                remedy="Are all conductances and voltages finite, and wires better than devices?",
            )
        return state


def _load(leak: FloatArray, head: FloatArray, r_wire: float) -> FloatArray:
    return head * leak / (head + leak) / r_wire


def _across(state: Interior) -> FloatArray:
    """Return the voltages (B, R, N) V across the devices."""
    return state.word[:, :, None] - state.bit[:, None, :] - state.word_drop - state.bit_drop
