"""KCL inside crossbars with line resistance, added up element by element; it knows of no solver.

Word line j runs from its port past bit lines 0 to N - 1, bit line i from word line 0 to its port behind word
line R - 1. Drops u lie between a word port and its points, drops x between the points of a bit line and its
port. A segment carries its difference of drops times the conductance of a wire; the one at the port, a head.
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import reordered

__all__ = ["add_up_currents"]


@reordered
def add_up_currents(
    g: np.ndarray,
    wire: float,
    word_head: float,
    bit_head: float,
    word: np.ndarray,
    bit: np.ndarray,
    word_drop: np.ndarray,
    bit_drop: np.ndarray,
    word_current: np.ndarray,
    bit_current: np.ndarray,
    residual: np.ndarray,
    largest: np.ndarray,
    power: np.ndarray,
) -> None:
    """Write what B samples of drops (B, R, N) V at ports (B, R), (B, N) V mean.

    Args:
        g: (R, N) S, devices.
        wire, word_head, bit_head: S, of a segment, and of those at the ports.
        word_current, bit_current: (B, R), (B, N) A, leaving the ports into the lines, written.
        residual, largest: (B,) A, of the sums at the points, and of the currents of elements, written.
        power: (B,) W, written.
    """
    size, n = g.shape
    device, along = np.empty(n), np.empty(n + 1)
    before, worst, most = np.empty(n), np.empty(n), np.empty(n)
    along[n] = 0.0
    for b in range(len(word)):
        before[:] = 0.0
        worst[:] = 0.0
        most[:] = 0.0
        total = 0.0
        for j in range(size):
            u, x = word_drop[b, j], bit_drop[b, j]
            for i in range(n):
                across = word[b, j] - bit[b, i] - u[i] - x[i]
                device[i] = g[j, i] * across
                total += device[i] * across
            along[0] = word_head * u[0]
            total += along[0] * u[0]
            for i in range(1, n):
                along[i] = wire * (u[i] - u[i - 1])
                total += along[i] * (u[i] - u[i - 1])
            word_current[b, j] = along[0]
            for i in range(n):
                worst[i] = max(worst[i], abs(along[i] - along[i + 1] - device[i]))
                most[i] = max(most[i], max(abs(device[i]), abs(along[i])))
            if j < size - 1:
                below = bit_drop[b, j + 1]
                for i in range(n):
                    current = wire * (x[i] - below[i])
                    total += current * (x[i] - below[i])
                    worst[i] = max(worst[i], abs(device[i] + before[i] - current))
                    most[i] = max(most[i], abs(current))
                    before[i] = current
            else:
                for i in range(n):
                    current = bit_head * x[i]
                    total += current * x[i]
                    worst[i] = max(worst[i], abs(device[i] + before[i] - current))
                    most[i] = max(most[i], abs(current))
                    bit_current[b, i] = -current
        residual[b] = worst.max()
        largest[b] = most.max()
        power[b] = total
