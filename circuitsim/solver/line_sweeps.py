"""The lines of one crossbar for many samples at once: currents, drops and products of drops.

Arrays come in the orientation of the kernels (driven end first, sensed end last). Conductances and currents
come times r, the resistance of a segment. R word lines cross N bit lines; B samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.kernels.wired import factor_lines
from circuitsim.solver.kernels.wired_sweeps import (
    LANES,
    Sweeps,
    coarse_words,
    sense_pivots,
    sum_products,
    sweep_lanes,
    write_drops,
)
from circuitsim.solver.threads import share_batch

__all__ = ["LineSweeps"]

_NODES_PER_DECAY = 1.6
"""Coarse functions per length, along a line, over which a current decays."""

_PARTS = 4
"""Most sums of products that are held in memory together."""


class LineSweeps:
    """Alternating sweeps over lines that are all held by something.

    Args:
        a: (R, N), r times the conductances.
        word_head: (R,), r times the conductance between each source and the first point of its line, > 0.
        bit_head: (N,), likewise.
    """

    def __init__(self, a: FloatArray, word_head: FloatArray, bit_head: FloatArray) -> None:
        rows, n = self.shape = a.shape
        padded = np.zeros((-(-rows // 4) * 4, n))
        padded[:rows] = a
        word_pivot, leak = np.ones(padded.shape), np.empty(len(padded))
        free_pivot, sense_pivot = np.empty(a.shape), np.empty(a.shape)
        factor_lines(padded, word_pivot, leak, free_pivot, bit_head)
        sense_pivots(a, bit_head, sense_pivot)
        word_pivot = word_pivot[:rows]
        word_pivot[:, 0] = 1 / (word_head + leak[:rows])
        self.word_leak = leak[:rows]
        """(R,), r times the conductance of each word line behind its head, all points of bit lines at 0 V."""
        self.bit_leak = np.maximum(1 / free_pivot[-1] - bit_head, 0.0)
        """(N,), likewise."""
        decay = np.sqrt(float(a.mean()) if a.size else 0.0)
        # No more than leave the coarse part of a sweep small beside the rest: all of them squared, 2 R N.
        most = (2.0 * a.size) ** 0.25
        row_node, row_share, rows_coarse = _hats(rows, decay, most)
        column_node, column_share, columns_coarse = _hats(n, decay, most)
        k = columns_coarse.shape[1]
        through, shunt = np.empty((2, rows, k, k))
        coarse_words(a, word_pivot, column_node, column_share, through, shunt)
        joint = (rows_coarse[:, :, None] * rows_coarse[:, None, :]).reshape(rows, -1)
        along, last = np.diff(rows_coarse, axis=0), rows_coarse[-1]
        wires = np.multiply.outer(along.T @ along, columns_coarse.T @ columns_coarse)
        heads = np.multiply.outer(
            np.outer(last, last), (columns_coarse * bit_head[:, None]).T @ columns_coarse
        )
        plain = _joined(joint, shunt) + (wires + heads).transpose(0, 2, 1, 3)
        crossing = _joined(joint, through)
        order = crossing.shape[0] * crossing.shape[1]
        flat = plain.reshape(order, order)
        correction = np.linalg.solve(flat - crossing.reshape(order, order), crossing.reshape(order, order))
        correction = np.linalg.solve(flat, correction.T)
        self._sweeps = Sweeps(
            a=a,
            word_pivot=word_pivot,
            word_gain=a * word_pivot,
            free_pivot=free_pivot,
            sense_pivot=sense_pivot,
            word_head=word_head,
            bit_head=bit_head,
            row_node=row_node,
            row_share=row_share,
            column_node=column_node,
            column_share=column_share,
            plain=np.ascontiguousarray(plain),
            correction=np.ascontiguousarray((correction + correction.T).reshape(plain.shape) / 2),
            largest=float(a.max(initial=0.0)),
        )

    def currents(
        self,
        word: FloatArray,
        bit: FloatArray,
        *,
        relative_tolerance: float,
        most: int,
        bit_drop: FloatArray | None = None,
    ) -> tuple[FloatArray, FloatArray, IntArray]:
        """Return r times the currents (B, R), (B, N) that leave the sources into the lines, and sweeps (B,).

        A number of sweeps is negative where KCL at the points was not reached to ``relative_tolerance``
        of the largest current. Drops along bit lines go into ``bit_drop`` (B, R, N) V, if it is given.
        """
        batch = len(word)
        words, bits = _lanes(word), _lanes(bit)
        word_current, bit_current = np.empty_like(words), np.empty_like(bits)
        sweeps = np.empty(len(words), np.int64)

        def solve_blocks(k: slice) -> None:
            y, c = self._state()
            for b in range(k.start, k.stop):
                sweeps[b] = sweep_lanes(
                    self._sweeps,
                    relative_tolerance,
                    most,
                    words[b],
                    bits[b],
                    y,
                    c,
                    word_current[b],
                    bit_current[b],
                )
                if bit_drop is not None:
                    drops = bit_drop[b * LANES : (b + 1) * LANES]
                    write_drops(self._sweeps, abs(sweeps[b]), c, y, drops)

        share_batch(solve_blocks, len(words), work=20 * LANES * self._sweeps.a.size)
        return (
            _samples(word_current, batch),
            _samples(bit_current, batch),
            np.repeat(sweeps, LANES)[:batch],
        )

    def products(
        self,
        first: tuple[FloatArray, FloatArray],
        second: tuple[FloatArray, FloatArray],
        *,
        relative_tolerance: float,
        most: int,
    ) -> tuple[FloatArray, bool]:
        """Return the products (R, N) V^2, summed over samples, of the voltages that two states put across
        each device, and whether KCL was reached everywhere.

        A state is given by its source voltages (B, R), (B, N) V.
        """
        half = LANES // 2
        words, bits = (
            np.concatenate([_lanes(one, half), _lanes(other, half)], axis=2)
            for one, other in zip(first, second, strict=True)
        )
        reached = np.empty(len(words), np.bool_)
        parts: dict[int, FloatArray] = {}

        def solve_blocks(k: slice) -> None:
            y, c = self._state()
            total = np.zeros(self.shape)
            word_current, bit_current = np.empty(words.shape[1:]), np.empty(bits.shape[1:])
            for b in range(k.start, k.stop):
                count = sweep_lanes(
                    self._sweeps, relative_tolerance, most, words[b], bits[b], y, c, word_current, bit_current
                )
                reached[b] = count > 0
                sum_products(self._sweeps, abs(count), words[b], bits[b], c, y, total)
            parts[k.start] = total

        # Sums of the same samples in the same order, whatever the number of threads.
        work = 20 * LANES * self._sweeps.a.size
        share_batch(solve_blocks, len(words), work=work, parts=min(len(words), _PARTS))
        return sum((parts[start] for start in sorted(parts)), np.zeros(self.shape)), bool(reached.all())

    def _state(self) -> tuple[FloatArray, FloatArray]:
        rows, columns = self._sweeps.plain.shape[:2]
        return np.empty((*self.shape, LANES)), np.empty((rows, columns, LANES))


def _hats(length: int, decay: float, most: float) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return piecewise linear functions (length, k) of the points of a line, with where they begin to fall
    (length,) and how far they have fallen (length,); ``decay`` is per point."""
    k = int(min(length, most, 2 + np.floor(_NODES_PER_DECAY * decay * length)))
    place = np.linspace(0, k - 1, length)
    node = np.clip(place.astype(np.int64), 0, max(k - 2, 0))
    share = place - node
    values = np.zeros((length, k))
    values[np.arange(length), node] = 1 - share
    if k > 1:
        values[np.arange(length), node + 1] += share
    return node, share, values


def _joined(joint: FloatArray, lines: FloatArray) -> FloatArray:
    """Return sum_j F[j, p] F[j, m] lines[j, q, o] as (p, q, m, o), ``joint`` (R, p m) being F F."""
    rows, k, _ = lines.shape
    order = round(joint.shape[1] ** 0.5)
    return (joint.T @ lines.reshape(rows, -1)).reshape(order, order, k, k).transpose(0, 2, 1, 3)


def _lanes(samples: NDArray[Any], lanes: int = LANES) -> FloatArray:
    """Return (B, n) as blocks (blocks, n, lanes), the last filled up with zeros."""
    blocks = -(-len(samples) // lanes)
    filled = np.zeros((blocks * lanes, samples.shape[1]))
    filled[: len(samples)] = samples
    return np.ascontiguousarray(filled.reshape(blocks, lanes, -1).transpose(0, 2, 1))


def _samples(blocks: FloatArray, batch: int) -> FloatArray:
    return np.ascontiguousarray(blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])[:batch])
