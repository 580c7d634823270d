"""Crossbars with line resistance: interior drops by word-line elimination and conjugate gradients.

R word lines cross N bit lines. With wire segments of resistance r, device conductances g and
``a = r g``, the unknowns are the drops along the lines, from a port to a point [V]:

    u[j, i] = (port voltage of word line j) - (voltage of its point i)
    x[j, i] = (voltage of the point of bit line i at word line j) - (port voltage of bit line i)

KCL at the points, times r, with e[j, i] the word port's voltage minus the bit port's:

    T u + a x = a e        T: word lines as ladders of unit segments with shunts a, head at i = 0
    S x + a u = a e        S: bit lines likewise, head at j = R - 1

Drops keep their digits however small r is: at r = 0 they are 0. A head of conductance h < 1 (times
1/r) stands for a segment with a resistance in series. T and S are symmetric, positive definite
where something holds every line, so u = T^-1 a (e - x) leaves ``(S - a T^-1 a) x = a e - a T^-1 a e``,
symmetric and positive definite too: the Schur complement of the circuit's conductance matrix.
Conjugate gradients, preconditioned by S, solve it.

Along a line the pivots of T and S come from the conductance that a ladder shows towards its free
end, ``leak = a + leak' / (1 + leak')``: sums and products of positive numbers, so no digit cancels.
Word lines are solved four at a time, because each step along one waits for the step before it; arrays
of word lines therefore have a multiple of four rows, the last of them without devices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.compiling import reordered

__all__ = ["CONVERGED", "RAN_OUT", "SINGULAR", "Lines", "factor_lines", "solve_interiors"]

CONVERGED, RAN_OUT, SINGULAR = 0, 1, 2
_ROUNDS = 8
"""Most corrections of a solution; one does, unless wires are so good that rounding counts."""
_PATIENCE = 50
"""Iterations without a residual halved after which a correction is as good as rounding lets it be."""
_ROUNDING = 1e-15

# Fused multiply-adds and reordered sums; nothing that would lose an inf or a NaN.


class Lines(NamedTuple):
    """One crossbar, factored; ``rows`` is R rounded up to a multiple of four.

    A drive is the conductance, times r, from a port to its source: inf for a port that is held at its
    source's voltage, 0 for an open one.
    """

    a: np.ndarray  # (rows, N), r times the conductances
    word_pivot: np.ndarray  # (rows, N), reciprocal pivots of T, heads left out
    held_pivot: np.ndarray  # (rows,), reciprocal pivots of the heads of word lines whose ports are held
    driven_pivot: np.ndarray  # (rows,), the same with ports driven as they are
    bit_pivot: np.ndarray  # (R, N), reciprocal pivots of S
    bit_head: np.ndarray  # (N,), conductance of the last segment of a bit line and its drive in series
    word_drive: np.ndarray  # (R,)
    bit_drive: np.ndarray  # (N,)
    word_port: float  # conductance of the head of a word line, from its port to its first point
    bit_port: float  # of a bit line
    largest: float  # of a


@reordered
def factor_lines(
    a: np.ndarray, word_pivot: np.ndarray, word_leak: np.ndarray, bit_pivot: np.ndarray, bit_head: np.ndarray
) -> None:
    """Write the reciprocal pivots of T (rows, N) and S (R, N) for conductances ``a`` (rows, N).

    A word line starts at i = N - 1 and ends at its head, whose pivot depends on how the line is driven:
    ``word_leak`` (rows,) is what the line shows there, shunt included. A bit line starts at j = 0.
    """
    rows, n = a.shape
    for j in range(0, rows, 4):
        e0 = e1 = e2 = e3 = 0.0
        for i in range(n - 1, 0, -1):
            e0 += a[j, i]
            e1 += a[j + 1, i]
            e2 += a[j + 2, i]
            e3 += a[j + 3, i]
            p0 = 1.0 / (1.0 + e0)
            p1 = 1.0 / (1.0 + e1)
            p2 = 1.0 / (1.0 + e2)
            p3 = 1.0 / (1.0 + e3)
            word_pivot[j, i] = p0
            word_pivot[j + 1, i] = p1
            word_pivot[j + 2, i] = p2
            word_pivot[j + 3, i] = p3
            e0 *= p0
            e1 *= p1
            e2 *= p2
            e3 *= p3
        word_leak[j] = a[j, 0] + e0
        word_leak[j + 1] = a[j + 1, 0] + e1
        word_leak[j + 2] = a[j + 2, 0] + e2
        word_leak[j + 3] = a[j + 3, 0] + e3
    last = bit_pivot.shape[0] - 1
    leak = np.zeros(n)
    for j in range(last):
        for i in range(n):
            total = leak[i] + a[j, i]
            pivot = 1.0 / (1.0 + total)
            bit_pivot[j, i] = pivot
            leak[i] = total * pivot
    for i in range(n):
        bit_pivot[last, i] = 1.0 / (bit_head[i] + leak[i] + a[last, i])


@reordered
def _solve_four_word_lines(
    j: int, a: np.ndarray, word_pivot: np.ndarray, head_pivot: np.ndarray, x: np.ndarray, u: np.ndarray
) -> None:
    """Write ``T^-1 a x`` of word lines j to j + 3 into ``u`` (4, N)."""
    n = a.shape[1]
    y0 = y1 = y2 = y3 = 0.0
    for i in range(n - 1, 0, -1):
        y0 = (a[j, i] * x[j, i] + y0) * word_pivot[j, i]
        y1 = (a[j + 1, i] * x[j + 1, i] + y1) * word_pivot[j + 1, i]
        y2 = (a[j + 2, i] * x[j + 2, i] + y2) * word_pivot[j + 2, i]
        y3 = (a[j + 3, i] * x[j + 3, i] + y3) * word_pivot[j + 3, i]
        u[0, i] = y0
        u[1, i] = y1
        u[2, i] = y2
        u[3, i] = y3
    y0 = (a[j, 0] * x[j, 0] + y0) * head_pivot[j]
    y1 = (a[j + 1, 0] * x[j + 1, 0] + y1) * head_pivot[j + 1]
    y2 = (a[j + 2, 0] * x[j + 2, 0] + y2) * head_pivot[j + 2]
    y3 = (a[j + 3, 0] * x[j + 3, 0] + y3) * head_pivot[j + 3]
    u[0, 0] = y0
    u[1, 0] = y1
    u[2, 0] = y2
    u[3, 0] = y3
    for i in range(1, n):
        y0 = u[0, i] + word_pivot[j, i] * y0
        y1 = u[1, i] + word_pivot[j + 1, i] * y1
        y2 = u[2, i] + word_pivot[j + 2, i] * y2
        y3 = u[3, i] + word_pivot[j + 3, i] * y3
        u[0, i] = y0
        u[1, i] = y1
        u[2, i] = y2
        u[3, i] = y3


@reordered
def _conjugate_gradients(
    lines: Lines,
    target: float,
    most: int,
    y: np.ndarray,
    x: np.ndarray,
    direction: np.ndarray,
    image: np.ndarray,
) -> int:
    """Solve ``(S - a T^-1 a) x = y`` until no entry of the residual exceeds ``target``.

    ``y`` (R, N) is consumed, ``x`` (R, N) comes as zeros; ``direction`` and ``image`` (rows, N) are working
    space, ``direction`` with zeros in the rows that are no word lines. Returns the number of iterations.
    They end early where rounding lets the residual shrink no further.

    With S = L D L' only L^-1 residual is kept, in ``y``: it moves by -alpha L^-1 image.
    """
    a, bit_pivot, bit_head = lines.a, lines.bit_pivot, lines.bit_head
    size, n = bit_pivot.shape
    z, moved, peak, four = np.empty(n), np.empty(n), np.empty(n), np.empty((4, n))
    alpha, rz = 0.0, 0.0
    for j in range(1, size):
        for i in range(n):
            y[j, i] += bit_pivot[j - 1, i] * y[j - 1, i]
    for j in range(size):
        for i in range(n):
            rz += y[j, i] * y[j, i] * bit_pivot[j, i]
    beta, best, best_iteration = 0.0, np.inf, 0
    for iteration in range(1, most + 1):
        # From the sense end up: z = S^-1 residual, the direction p, its image a p + segments - a T^-1 a p.
        curvature = 0.0
        for i in range(n):
            z[i] = bit_pivot[size - 1, i] * y[size - 1, i]
        for i in range(n):
            direction[size - 1, i] = z[i] + beta * direction[size - 1, i]
        for i in range(n):
            leaving = bit_head[i] * direction[size - 1, i]
            image[size - 1, i] = a[size - 1, i] * direction[size - 1, i] + leaving
            curvature += leaving * direction[size - 1, i]
        for j in range(size - 1, -1, -1):
            if j < size - 1:
                for i in range(n):
                    z[i] = bit_pivot[j, i] * (y[j, i] + z[i])
                    direction[j, i] = z[i] + beta * direction[j, i]
                for i in range(n):
                    segment = direction[j, i] - direction[j + 1, i]
                    image[j, i] = a[j, i] * direction[j, i] + segment
                    image[j + 1, i] -= segment
                    curvature += segment * segment
            if j % 4 == 0:
                _solve_four_word_lines(j, a, lines.word_pivot, lines.driven_pivot, direction, four)
                for k in range(min(4, size - j)):
                    for i in range(n):
                        image[j + k, i] -= a[j + k, i] * four[k, i]
                        curvature += a[j + k, i] * direction[j + k, i] * (direction[j + k, i] - four[k, i])
        if not curvature > 0.0:
            return iteration
        # From the free end down: x and L^-1 residual move on.
        alpha = rz / curvature
        before, rz = rz, 0.0
        moved[:] = 0.0
        peak[:] = 0.0
        for j in range(size):
            for i in range(n):
                x[j, i] += alpha * direction[j, i]
            if j == 0:
                for i in range(n):
                    moved[i] = image[j, i]
                    y[j, i] -= alpha * moved[i]
                for i in range(n):
                    peak[i] = abs(y[j, i])
            else:
                for i in range(n):
                    moved[i] = image[j, i] + bit_pivot[j - 1, i] * moved[i]
                    y[j, i] -= alpha * moved[i]
                for i in range(n):
                    peak[i] = max(peak[i], abs(y[j, i] - bit_pivot[j - 1, i] * y[j - 1, i]))
            for i in range(n):
                rz += y[j, i] * y[j, i] * bit_pivot[j, i]
        beta = rz / before
        worst = peak.max()
        if worst < 0.5 * best:
            best, best_iteration = worst, iteration
        if worst <= target or iteration > best_iteration + _PATIENCE:
            return iteration
    return most


@reordered
def _word_drops(
    lines: Lines, word: np.ndarray, bit: np.ndarray, x: np.ndarray, across: np.ndarray, u: np.ndarray
) -> None:
    """Write the drops u that the port voltages and x imply, and ``e - x - u`` into ``across``."""
    size, n = x.shape
    for j in range(size):
        for i in range(n):
            across[j, i] = word[j] - bit[i] - x[j, i]
    for j in range(0, size, 4):
        _solve_four_word_lines(j, lines.a, lines.word_pivot, lines.held_pivot, across, u[j : j + 4])
    for j in range(size):
        for i in range(n):
            across[j, i] -= u[j, i]


@reordered
def _bit_residual(
    a: np.ndarray, bit_port: float, across: np.ndarray, x: np.ndarray, residual: np.ndarray
) -> tuple[float, float, float]:
    """Write the current into every point of bit lines; return the largest, the largest flow and drop."""
    size, n = x.shape
    # Maxima per bit line first: those of arrays are vectorised, those of scalars are not.
    worst, largest, highest = np.zeros(n), np.zeros(n), np.zeros(n)
    for j in range(size):
        for i in range(n):
            residual[j, i] = a[j, i] * across[j, i]
            largest[i] = max(largest[i], abs(residual[j, i]))
        if j > 0:
            for i in range(n):
                residual[j, i] += x[j - 1, i] - x[j, i]
        if j < size - 1:
            for i in range(n):
                residual[j, i] -= x[j, i] - x[j + 1, i]
        else:
            for i in range(n):
                residual[j, i] -= bit_port * x[j, i]
                largest[i] = max(largest[i], abs(bit_port * x[j, i]))
        for i in range(n):
            worst[i] = max(worst[i], abs(residual[j, i]))
            highest[i] = max(highest[i], abs(x[j, i]))
    return worst.max(), largest.max(), highest.max()


@reordered
def _solve_sample(
    lines: Lines,
    word_source: np.ndarray,
    bit_source: np.ndarray,
    tolerance: float,
    most: int,
    word: np.ndarray,
    bit: np.ndarray,
    u: np.ndarray,
    x: np.ndarray,
    work: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> tuple[int, int]:
    a, word_pivot, word_port, bit_port = lines.a, lines.word_pivot, lines.word_port, lines.bit_port
    word_drive, bit_drive = lines.word_drive, lines.bit_drive
    direction, image, residual, step = work
    size, n = x.shape
    highest = max(np.abs(word_source).max(), np.abs(bit_source).max())
    count = 0
    for _ in range(_ROUNDS):
        _word_drops(lines, word, bit, x, direction, u)
        worst, largest, drop = _bit_residual(a, bit_port, direction, x, residual)
        for j in range(size):
            largest = max(largest, word_port * abs(u[j, 0]))
            if word_drive[j] < np.inf:
                entering = word_drive[j] * (word_source[j] - word[j]) - word_port * u[j, 0]
                worst = max(worst, abs(entering) - _ROUNDING * word_drive[j] * abs(word_source[j]))
        for i in range(n):
            if bit_drive[i] < np.inf:
                entering = bit_drive[i] * (bit_source[i] - bit[i]) + bit_port * x[size - 1, i]
                worst = max(worst, abs(entering) - _ROUNDING * bit_drive[i] * abs(bit_source[i]))
        # What the rounding of voltages and drops makes of the currents is nothing.
        allowed = tolerance * largest + _ROUNDING * (lines.largest * highest + drop)
        if worst <= allowed:
            return count, CONVERGED
        if not worst < np.inf:
            return count, SINGULAR
        if count >= most:
            break
        # What a port that is not held has too much leaves through its own conductance and the line's.
        for j in range(size):
            if word_drive[j] < np.inf:
                entering = word_drive[j] * (word_source[j] - word[j]) - word_port * u[j, 0]
                drop = -entering * word_port / (word_port + word_drive[j]) * lines.driven_pivot[j]
                residual[j, 0] -= a[j, 0] * drop
                for i in range(1, n):
                    drop *= word_pivot[j, i]
                    residual[j, i] -= a[j, i] * drop
        for i in range(n):
            if bit_drive[i] < np.inf:
                entering = bit_drive[i] * (bit_source[i] - bit[i]) + bit_port * x[size - 1, i]
                residual[size - 1, i] += entering * bit_port / (bit_port + bit_drive[i])
        step[:, :] = 0.0
        count += _conjugate_gradients(lines, 0.5 * allowed, most - count, residual, step, direction, image)
        for j in range(size):
            if word_drive[j] < np.inf:
                entering = word_drive[j] * (word_source[j] - word[j]) - word_port * u[j, 0]
                drop = 0.0
                for i in range(n - 1, 0, -1):
                    drop = (drop - a[j, i] * step[j, i]) * word_pivot[j, i]
                drop -= a[j, 0] * step[j, 0] + entering * word_port / (word_port + word_drive[j])
                word[j] += (entering - word_port * drop * lines.driven_pivot[j]) / (word_port + word_drive[j])
        for j in range(size):
            for i in range(n):
                x[j, i] += step[j, i]
        for i in range(n):
            if bit_drive[i] < np.inf:
                entering = bit_drive[i] * (bit_source[i] - bit[i]) + bit_port * x[size - 1, i]
                moved = entering / (bit_port + bit_drive[i])
                bit[i] += moved
                for j in range(size):
                    x[j, i] -= moved
    return count, RAN_OUT


@reordered
def solve_interiors(
    lines: Lines,
    word_source: np.ndarray,
    bit_source: np.ndarray,
    tolerance: float,
    most: int,
    word: np.ndarray,
    bit: np.ndarray,
    word_drop: np.ndarray,
    bit_drop: np.ndarray,
    status: np.ndarray,
    iterations: np.ndarray,
) -> None:
    """Solve B samples: ports, drops, and what is left of KCL.

    Args:
        word_source, bit_source: (B, R), (B, N) V.
        tolerance: of KCL, relative to the largest current.
        most: iterations for a sample.
        word, bit: (B, R), (B, N) V, port voltages, written; they come as guesses, held ones as they are.
        word_drop, bit_drop: (B, R, N) V, u and x, written; bit_drop comes as a guess.
        status, iterations: (B,), written.
    """
    rows, n = lines.a.shape
    size = bit_drop.shape[1]
    u = np.zeros((rows, n))
    work = (np.zeros((rows, n)), np.zeros((rows, n)), np.empty((size, n)), np.empty((size, n)))
    for b in range(len(status)):
        iterations[b], status[b] = _solve_sample(
            lines,
            word_source[b],
            bit_source[b],
            tolerance,
            most,
            word[b],
            bit[b],
            u,
            bit_drop[b],
            work,
        )
        for j in range(size):
            for i in range(n):
                word_drop[b, j, i] = u[j, i]
