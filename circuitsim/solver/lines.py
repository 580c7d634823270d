"""Inside one crossbar with line resistance: drops along its lines, and the currents that they mean.

`CrossbarLines` finds the drops for given port voltages, or for sources behind conductances;
`line_currents` evaluates KCL at every point from drops alone and knows nothing of how they were found.
R word lines, in the order of ``Crossbar.lines``, cross N bit lines; B samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import Crossbar, Netlist, Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.kernels.line_currents import add_up_currents
from circuitsim.solver.kernels.wired import Lines, factor_lines, solve_interiors
from circuitsim.solver.line_sweeps import LineSweeps
from circuitsim.solver.threads import share_batch

__all__ = [
    "CrossbarLines",
    "Interior",
    "LineCurrents",
    "batches",
    "flip",
    "held_line_currents",
    "line_currents",
    "point_voltages",
]

_SWEEP_FROM = 3
"""Samples from which on sweeps over all of them are cheaper than conjugate gradients one by one."""
_MOST_SWEEPS = 60
_CELLS_AT_ONCE = 1 << 22
"""Most samples times cells whose interiors are held in memory together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interior:
    """State of one wired crossbar for B samples.

    Drops instead of voltages, because they keep their digits where wires are good.
    """

    word: FloatArray
    """(B, R) V, ports of word lines."""
    bit: FloatArray
    """(B, N) V, ports of bit lines."""
    word_drop: FloatArray
    """(B, R, N) V, from the port of a word line to its points."""
    bit_drop: FloatArray
    """(B, R, N) V, from the points of a bit line to its port."""
    iterations: IntArray
    """(B,) of conjugate gradients."""
    status: NDArray[np.int8]
    """(B,) as in `STATUS`."""

    @property
    def word_points(self) -> FloatArray:
        """(B, R, N) V"""
        return self.word[:, :, None] - self.word_drop

    @property
    def bit_points(self) -> FloatArray:
        """(B, R, N) V"""
        return self.bit[:, None, :] + self.bit_drop


class CrossbarLines:
    """The lines of one wired crossbar with given conductances, ready to be solved.

    Args:
        crossbar: with ``r_wire`` > 0.
        conductance: (R, N) S, from ``Crossbar.cells``.
        word_drive: (R,) S, from the source to the port of each word line: inf where the port is the source
            itself, 0 where nothing drives it. Held everywhere by default.
        bit_drive: (N,) S, likewise.
    """

    def __init__(
        self,
        crossbar: Crossbar,
        conductance: FloatArray,
        *,
        word_drive: FloatArray | None = None,
        bit_drive: FloatArray | None = None,
    ) -> None:
        size, n = conductance.shape
        self.shape = conductance.shape
        self._flip = flip(crossbar)
        rows, columns = self._flip
        rounded = -(-size // 4) * 4
        a = np.zeros((rounded, n))
        a[:size] = (crossbar.r_wire * conductance)[::rows, ::columns]
        word, bit = (
            np.full(length, np.inf) if drive is None else crossbar.r_wire * drive[::step]
            for length, drive, step in ((size, word_drive, rows), (n, bit_drive, columns))
        )
        word_port, bit_port = (crossbar.r_wire * head for head in crossbar.heads)
        word_head, bit_head = np.ones(rounded), _in_series(bit_port, bit)
        word_head[:size] = _in_series(word_port, word)
        word_pivot, word_leak, bit_pivot = np.ones((rounded, n)), np.empty(rounded), np.empty((size, n))
        factor_lines(a, word_pivot, word_leak, bit_pivot, bit_head)
        with np.errstate(divide="ignore"):
            held_pivot, driven_pivot = 1 / (word_port + word_leak), 1 / (word_head + word_leak)
        self._lines = Lines(
            a=a,
            word_pivot=word_pivot,
            held_pivot=held_pivot,
            driven_pivot=driven_pivot,
            bit_pivot=bit_pivot,
            bit_head=bit_head,
            word_drive=word,
            bit_drive=bit,
            word_port=word_port,
            bit_port=bit_port,
            largest=float(a.max(initial=0.0)),
        )
        self._heads = word_head[:size], bit_head
        self._sweeps: LineSweeps | None = None

    def solve(
        self,
        word_source: FloatArray,
        bit_source: FloatArray,
        *,
        relative_tolerance: float = 1e-12,
        max_iterations: int = 10_000,
    ) -> Interior:
        """Return the state for source voltages (B, R) and (B, N) V.

        Iterations end when KCL holds at every point, and at every port that is not held, to
        ``relative_tolerance`` of the largest current. Several samples are swept together first; what that
        leaves, if anything, is for conjugate gradients, and they alone have the last word.
        """
        batch, (size, n) = len(word_source), self.shape
        rows, columns = self._flip
        sources = (
            np.ascontiguousarray(word_source[:, ::rows], dtype=np.float64),
            np.ascontiguousarray(bit_source[:, ::columns], dtype=np.float64),
        )
        word, bit = sources[0].copy(), sources[1].copy()
        word_drop, bit_drop = np.empty((batch, size, n)), np.zeros((batch, size, n))
        status, iterations = np.empty(batch, np.int8), np.empty(batch, np.int64)
        swept = 0 if max_iterations == 0 else self._sweep(word, bit, bit_drop, relative_tolerance)

        def solve_rows(k: slice) -> None:
            solve_interiors(
                self._lines,
                sources[0][k],
                sources[1][k],
                relative_tolerance,
                max_iterations,
                word[k],
                bit[k],
                word_drop[k],
                bit_drop[k],
                status[k],
                iterations[k],
            )

        share_batch(solve_rows, batch, work=20 * size * n)
        return Interior(
            word=word[:, ::rows],
            bit=bit[:, ::columns],
            word_drop=word_drop[:, ::rows, ::columns],
            bit_drop=bit_drop[:, ::rows, ::columns],
            iterations=iterations + swept,
            status=status,
        )

    def _sweep(
        self, word: FloatArray, bit: FloatArray, bit_drop: FloatArray, relative_tolerance: float
    ) -> IntArray | int:
        """Turn source voltages (B, R), (B, N) V into a guess of the state; return the sweeps it took (B,)."""
        word_head, bit_head = self._heads
        if len(word) < _SWEEP_FROM or not (word_head.all() and bit_head.all()):
            return 0
        if self._sweeps is None:
            a = np.ascontiguousarray(self._lines.a[: len(word_head)])
            self._sweeps = LineSweeps(a, word_head, bit_head)
        at_word, at_bit, sweeps = self._sweeps.currents(
            word, bit, relative_tolerance=0.5 * relative_tolerance, most=_MOST_SWEEPS, bit_drop=bit_drop
        )
        # From the sources to the ports, and drops from the ports on.
        word -= at_word / self._lines.word_drive
        behind = at_bit / self._lines.bit_drive
        bit -= behind
        if behind.any():
            bit_drop += behind[:, None, :]
        return np.abs(sweeps)


@dataclass(frozen=True, kw_only=True, eq=False)
class LineCurrents:
    """What the state of one wired crossbar means for KCL."""

    word: FloatArray
    """(B, R) A, leaving the port of each word line into it."""
    bit: FloatArray
    """(B, N) A, leaving the port of each bit line into it."""
    residual: FloatArray
    """(B,) A, the largest sum of currents at a point inside."""
    largest: FloatArray
    """(B,) A, the largest current of a device or a segment."""
    power: FloatArray
    """(B,) W, dissipated in devices and wires."""


def line_currents(crossbar: Crossbar, conductance: FloatArray, state: Interior) -> LineCurrents:
    """Add up the currents at every point of the lines, element by element.

    ``conductance`` (R, N) S is what ``Crossbar.cells`` returns.
    """
    rows, columns = flip(crossbar)
    word_head, bit_head = crossbar.heads
    g = np.ascontiguousarray(conductance[::rows, ::columns])
    word, bit = (
        np.ascontiguousarray(ports[:, ::step]) for ports, step in ((state.word, rows), (state.bit, columns))
    )
    word_drop, bit_drop = (
        np.ascontiguousarray(drop[:, ::rows, ::columns]) for drop in (state.word_drop, state.bit_drop)
    )
    word_current, bit_current = np.empty(word.shape), np.empty(bit.shape)
    residual, largest, power = np.empty((3, len(word)))

    def add_up(k: slice) -> None:
        add_up_currents(
            g,
            1 / crossbar.r_wire,
            word_head,
            bit_head,
            word[k],
            bit[k],
            word_drop[k],
            bit_drop[k],
            word_current[k],
            bit_current[k],
            residual[k],
            largest[k],
            power[k],
        )

    share_batch(add_up, len(word), work=g.size)
    return LineCurrents(
        word=word_current[:, ::rows],
        bit=bit_current[:, ::columns],
        residual=residual,
        largest=largest,
        power=power,
    )


def held_line_currents(
    crossbar: Crossbar, conductance: FloatArray, word: FloatArray, bit: FloatArray
) -> LineCurrents:
    """Return the currents for port voltages (B, R) and (B, N) V, a few samples' interiors at a time."""
    lines, parts = CrossbarLines(crossbar, conductance), []
    for k in batches(len(word), conductance.size):
        parts.append(line_currents(crossbar, conductance, lines.solve(word[k], bit[k])))
    return LineCurrents(
        **{
            item.name: np.concatenate([getattr(part, item.name) for part in parts])
            for item in fields(LineCurrents)
        }
    )


def point_voltages(netlist: Netlist, values: Values, voltage: FloatArray) -> FloatArray | None:
    """Return what `Flat.lift` asks for: the points of wired lines (B, P) V at node voltages (B, N) V."""
    points = []
    for crossbar in netlist.crossbars:
        if crossbar.wired:
            lines = CrossbarLines(crossbar, crossbar.cells(*values.crossbars[crossbar.name]))
            state = lines.solve(voltage[:, crossbar.lines], voltage[:, crossbar.bit])
            points += [
                state.word_points.reshape(len(voltage), -1),
                state.bit_points.reshape(len(voltage), -1),
            ]
    return np.concatenate(points, axis=1) if points else None


def batches(samples: int, cells: int) -> list[slice]:
    """Return slices of a batch, such that the interiors of one slice fit in memory."""
    step = max(1, _CELLS_AT_ONCE // max(1, cells))
    return [slice(start, start + step) for start in range(0, samples, step)] or [slice(0, 0)]


def flip(crossbar: Crossbar) -> tuple[int, int]:
    """Return the steps that put the sensed end last along the rows and the driven end first along columns."""
    return (1 if crossbar.sense_end == "last" else -1), (1 if crossbar.drive_end == "first" else -1)


def _in_series(port: float, drive: FloatArray) -> FloatArray:
    """Return the conductance between a port and the first point in series with a drive."""
    return 1 / (1 / port + 1 / np.where(drive > 0, drive, 1)) * (drive > 0)
