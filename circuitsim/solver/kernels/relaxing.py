"""Sweeps over the layers of a small batch, compiled as a whole: what `circuitsim.solver.relaxation` does with
BLAS and NumPy, for networks whose layers are joined by so little that calling these costs more than the work.

Layers lie one behind the other in flat arrays: layer l of n_l nodes from place ``start[l]`` on, its (B, n_l)
block from ``B * start[l]`` on. A link is a row (from a bank?, source layer, target layer, first weight,
rows, columns, transposed?) over the weights W = g_plus - g_minus, stored with the longer side along the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.amplifiers import held_nodes, output_changes, outputs
from circuitsim.solver.kernels.compiling import reordered
from circuitsim.solver.kernels.mixing import coefficients, mix, progress
from circuitsim.solver.kernels.nodes import clamp_increments, clamp_nodes, solve_increments, solve_nodes

__all__ = [
    "CORRECTED",
    "FREE",
    "NUDGED",
    "TRANSPOSED",
    "Bench",
    "Nudging",
    "Wiring",
    "closed_by_few",
    "relax_layers",
]

FREE, NUDGED, CORRECTED, TRANSPOSED = 0, 1, 2, 3
_LINEAR, _CLAMPS, _DIODES = 0, 1, 2
_CONVERGED, _RAN_OUT, _GREW = 0, 1, 3
_DEPTH = 6
_FEW, _MANY = 16, 4
"""Nodes that close a loop, at most, and how many times as many it must lead through, for Newton's method
to be worth its Jacobian: for ten nodes that costs less than a sweep, and grows as their square."""
_NEAR, _AGAIN = 1e-3, 0.01
"""Relative step from which on the last Jacobian is good enough; part of its residual to which a sample must
come on its own where Newton's method led away, or sweeps would, before that is tried again."""
_PATIENCE, _SQUARINGS = 25, 8
"""Sweeps after which samples that are left, and those that had run away, follow the loop's own motion in
time; squarings by which a spectral radius is told from one."""
_SHORTEST, _LONGEST = 0.05, 1024.0
"""Steps of that motion through places where it does not come to rest [its time constants]."""


class Wiring(NamedTuple):
    """Structure and weights of a network, the same for every batch."""

    start: np.ndarray  # (L + 1,)
    links: np.ndarray  # (K, 7)
    weights: np.ndarray  # flat
    nodes: np.ndarray  # (L, 3): 0 linear, 1 ideal diodes, 2 diodes; their number; their first column
    clamps: np.ndarray  # flat: (4, n) blocks of layers with ideal diodes: low, low_g, high, high_g
    diodes: np.ndarray  # flat: (5, D, n) blocks of layers with diodes: sign, ref, i_s, slope, gmin
    bank: np.ndarray  # (L,): 0 none, 1 linear, 2 saturating
    gain: np.ndarray  # (n_total,)
    offset: np.ndarray
    limit: np.ndarray
    back: np.ndarray
    bank_start: np.ndarray  # (L,): place of a layer's bank where the arrays of banks lie one behind the other


class Bench(NamedTuple):
    """One phase of a batch; flat (B, n_l) blocks, from ``tangent`` to ``drawn`` of banks alone."""

    a: np.ndarray  # or (1, n_l) blocks, where all samples share them
    constant: np.ndarray  # or empty, where nothing is constant
    v0: np.ndarray
    tangent: np.ndarray
    returned: np.ndarray  # gain of banks on the way back, in corrected and transposed phases
    held: np.ndarray  # slope that a corrected phase takes from saturating banks
    drawn: np.ndarray
    state: np.ndarray


class Nudging(NamedTuple):
    """Current ``amplitude * (softmax((y0 + dy) / scale) - target)`` that leaves outputs, or quadratic."""

    kind: int  # 0 none, 1 quadratic, 2 softmax
    layer: int
    pos: np.ndarray  # (K,)
    neg: np.ndarray  # (K,), or empty
    y0: np.ndarray  # (B, K)
    target: np.ndarray  # (B, K)
    amplitude: float  # or beta times the conductance
    scale: float


@reordered
def _block(flat, start, layer, batch):  # type: ignore[no-untyped-def]
    first, last = start[layer], start[layer + 1]
    return flat[batch * first : batch * last].reshape(batch, last - first)


@reordered
def _loads(bench, start, layer, batch):  # type: ignore[no-untyped-def]
    """Return what loads the nodes of a layer, (B, n) or (1, n)."""
    return _block(bench.a, start, layer, batch if len(bench.a) == batch * start[-1] else 1)


@reordered
def _of_bank(flat, wiring, layer, batch):  # type: ignore[no-untyped-def]
    """Return the block (B, n) of the bank of a layer."""
    first, size = wiring.bank_start[layer], wiring.start[layer + 1] - wiring.start[layer]
    return flat[batch * first : batch * (first + size)].reshape(batch, size)


@reordered
def _gather(flat, start, order, loops, packed):  # type: ignore[no-untyped-def]
    """Copy the blocks of the layers that close the loops into ``packed`` (B, n), side by side."""
    batch, place = len(packed), 0
    for layer in order[len(order) - loops :]:
        block = _block(flat, start, layer, batch)
        for b in range(batch):
            for k in range(block.shape[1]):
                packed[b, place + k] = block[b, k]
        place += block.shape[1]


@reordered
def _send(x, weights, total, towards_rows, rows, columns):  # type: ignore[no-untyped-def]
    """Add x @ W to ``total`` where W (rows, columns) is stored; along its columns, or along its rows."""
    batch = len(x)
    zero = x.dtype.type(0)
    j = 0
    # Five rows at once, as ten outputs have them twice: what they share is read once.
    while j + 5 <= rows:
        for b in range(batch):
            if towards_rows:
                t0, t1, t2, t3, t4 = zero, zero, zero, zero, zero
                for i in range(columns):
                    there = x[b, i]
                    t0 += weights[j, i] * there
                    t1 += weights[j + 1, i] * there
                    t2 += weights[j + 2, i] * there
                    t3 += weights[j + 3, i] * there
                    t4 += weights[j + 4, i] * there
                total[b, j] += t0
                total[b, j + 1] += t1
                total[b, j + 2] += t2
                total[b, j + 3] += t3
                total[b, j + 4] += t4
            else:
                f0, f1, f2, f3, f4 = x[b, j], x[b, j + 1], x[b, j + 2], x[b, j + 3], x[b, j + 4]
                for i in range(columns):
                    first = f0 * weights[j, i] + f1 * weights[j + 1, i]
                    second = f2 * weights[j + 2, i] + f3 * weights[j + 3, i]
                    total[b, i] += first + (second + f4 * weights[j + 4, i])
        j += 5
    while j < rows:
        for b in range(batch):
            if towards_rows:
                t0 = zero
                for i in range(columns):
                    t0 += weights[j, i] * x[b, i]
                total[b, j] += t0
            else:
                f0 = x[b, j]
                for i in range(columns):
                    total[b, i] += f0 * weights[j, i]
        j += 1


@reordered
def _pass_on(phase, wiring, bench, layer, d, out):  # type: ignore[no-untyped-def]
    """Write what the bank of a layer passes on while its nodes are at d; return whether it does."""
    start, batch = wiring.start, len(d)
    first, last = start[layer], start[layer + 1]
    gain, limit = wiring.gain[first:last], wiring.limit[first:last]
    if phase == FREE:
        outputs(d, gain, wiring.offset[first:last], limit, out)
        return True
    if phase == NUDGED or (phase == CORRECTED and wiring.bank[layer] == 2):
        output_changes(d, gain, limit, _of_bank(bench.tangent, wiring, layer, batch), out)
        if phase == CORRECTED:
            slope = _of_bank(bench.held, wiring, layer, batch)
            for b in range(batch):
                for k in range(last - first):
                    out[b, k] -= slope[b, k] * d[b, k]
        return True
    back = wiring.back[first:last]
    moving = False
    for b in range(batch):
        for k in range(last - first):
            out[b, k] = back[k] * d[b, k]
            moving = moving or back[k] != 0.0
    return moving


@reordered
def _pull(nudging, d, current, load):  # type: ignore[no-untyped-def]
    """Take the nudge's current from the outputs, linearised where they are; ``load`` grows by its slope."""
    batch, outputs_ = nudging.target.shape
    paired = len(nudging.neg) > 0
    y = np.empty(outputs_)
    for b in range(batch):
        for k in range(outputs_):
            y[k] = nudging.y0[b, k] + d[b, nudging.pos[k]]
            if paired:
                y[k] -= d[b, nudging.neg[k]]
        if nudging.kind == 1:
            for k in range(outputs_):
                # What the node's own displacement adds is in its load already.
                own = y[k] - nudging.target[b, k]
                current[b, nudging.pos[k]] -= nudging.amplitude * (own - d[b, nudging.pos[k]])
                if paired:
                    current[b, nudging.neg[k]] += nudging.amplitude * (own + d[b, nudging.neg[k]])
            continue
        top, total = y.max(), 0.0
        for k in range(outputs_):
            y[k] = np.exp((y[k] - top) / nudging.scale)
            total += y[k]
        for k in range(outputs_):
            p = y[k] / total
            pull = nudging.amplitude * (p - nudging.target[b, k])
            stiff = nudging.amplitude / nudging.scale * p * (1.0 - p)
            node = nudging.pos[k]
            current[b, node] += stiff * d[b, node] - pull
            load[b, node] += stiff
            if paired:
                node = nudging.neg[k]
                current[b, node] += stiff * d[b, node] + pull
                load[b, node] += stiff


@reordered
def _visit(phase, wiring, bench, nudging, layer, old, passing, passes, work):  # type: ignore[no-untyped-def]
    """Solve the nodes of a layer in place; ``passing`` is what banks pass on, ``passes`` whether they do."""
    start = wiring.start
    state = _block(bench.state, start, layer, old)
    batch, n = state.shape
    first, last = start[layer], start[layer + 1]
    a = _loads(bench, start, layer, batch)
    current = work[0, : batch * n].reshape(batch, n)
    if len(bench.constant) > 0:
        constant = _block(bench.constant, start, layer, batch)
        for b in range(batch):
            for k in range(n):
                current[b, k] = constant[b, k]
    else:
        for b in range(batch):
            for k in range(n):
                current[b, k] = 0
    for link in wiring.links:
        banked, source, target, place, rows, columns, turned = link
        if source != layer and target != layer:
            continue
        weights = wiring.weights[place : place + rows * columns].reshape(rows, columns)
        returns = phase >= CORRECTED or (wiring.bank[layer] == 1 and np.any(wiring.back[first:last]))
        for backwards in range(2):
            if backwards == 0:
                if target != layer or (banked and not passes[source]):
                    continue
                sent, received = _block(passing if banked else bench.state, start, source, batch), current
            else:
                if source != layer or (banked and not returns):
                    continue
                sent, received = _block(bench.state, start, target, batch), current
                if banked:
                    received = work[1, : batch * n].reshape(batch, n)
                    for b in range(batch):
                        for k in range(n):
                            received[b, k] = 0
            _send(sent, weights, received, turned != backwards, rows, columns)
            if backwards == 1 and banked:
                slope = _of_bank(bench.returned, wiring, layer, batch) if phase >= CORRECTED else received
                for b in range(batch):
                    for k in range(n):
                        factor = slope[b, k] if phase >= CORRECTED else wiring.back[first + k]
                        current[b, k] += factor * received[b, k]
    load = a
    if nudging.kind > 0 and nudging.layer == layer:
        load = work[2, : batch * n].reshape(batch, n)
        for b in range(batch):
            for k in range(n):
                load[b, k] = a[b if len(a) > 1 else 0, k]
        _pull(nudging, state, current, load)
    kind, count, column = wiring.nodes[layer]
    out = _block(passing, start, layer, batch)
    if kind == _CLAMPS and phase != TRANSPOSED:
        c = wiring.clamps[column : column + 4 * n].reshape(4, n)
        if phase == FREE:
            clamp_nodes(load, current, c[0], c[1], c[2], c[3], state)
        else:
            clamp_increments(
                load, current, _block(bench.v0, start, layer, batch), c[0], c[1], c[2], c[3], state
            )
    elif kind == _DIODES and phase != TRANSPOSED:
        d = wiring.diodes[column : column + 5 * count * n].reshape(5, count, n)
        if phase == FREE:
            solve_nodes(load, current, d[0], d[1], d[2], d[3], d[4], state)
        else:
            v0 = _block(bench.v0, start, layer, batch)
            solve_increments(load, current, v0, d[0], d[1], d[2], d[3], d[4], state)
    elif phase == CORRECTED and wiring.bank[layer] == 2:
        held_nodes(
            load,
            current,
            _of_bank(bench.drawn, wiring, layer, batch),
            wiring.gain[first:last],
            wiring.limit[first:last],
            _of_bank(bench.tangent, wiring, layer, batch),
            _of_bank(bench.held, wiring, layer, batch),
            state,
            out,
        )
        passes[layer] = True
        return
    else:
        for b in range(batch):
            own = load[b if len(load) > 1 else 0]
            for k in range(n):
                state[b, k] = current[b, k] / own[k]
    if wiring.bank[layer] > 0:
        passes[layer] = _pass_on(phase, wiring, bench, layer, state, out)


@reordered
def closed_by_few(wiring, order, loops):  # type: ignore[no-untyped-def]
    """Return whether few nodes close the loop, each way around leading through one other layer; these layers.

    That is: all nodes are linear but for what their banks pass on, and banks alone join the layers.
    """
    start, links = wiring.start, wiring.links
    inner = np.zeros(len(start) - 1, np.bool_)
    if loops != 1 or np.any(wiring.back):
        return False, inner
    hub = order[-1]
    size, through = start[hub + 1] - start[hub], 0
    for k in range(len(links)):
        if links[k, 0] == 0 or links[k, 1] == links[k, 2]:
            return False, inner
        if links[k, 1] == hub:
            inner[links[k, 2]] = True
    for layer in order:
        if wiring.nodes[layer, 0] != _LINEAR:
            return False, inner
    for k in range(len(links)):
        if inner[links[k, 1]] and links[k, 2] != hub:
            return False, inner
    for layer in range(len(inner)):
        if inner[layer]:
            n = start[layer + 1] - start[layer]
            through += n
            if n <= size:
                return False, inner
    return size <= _FEW and through >= _MANY * size, inner


@reordered
def _round_trips(wiring, hub, inner):  # type: ignore[no-untyped-def]
    """Return the products of the weights to and from each node of the ``inner`` layers, between all pairs of
    nodes of the ``hub``: flat, the block (n n, n_l) of layer l from ``n n start[l]`` on, rows from p to o at
    (o, p)."""
    start, links, weights = wiring.start, wiring.links, wiring.weights
    size = start[hub + 1] - start[hub]
    found = np.zeros(size * size * start[-1], np.float32)
    for there in links:
        layer = there[2]
        if there[1] != hub or not inner[layer]:
            continue
        n = start[layer + 1] - start[layer]
        block = found[size * size * start[layer] : size * size * start[layer + 1]].reshape(size * size, n)
        going = weights[there[3] : there[3] + size * n].reshape(size, n)
        for back in links:
            if back[1] != layer:
                continue
            coming = weights[back[3] : back[3] + size * n].reshape(size, n)
            for o in range(size):
                for p in range(size):
                    for k in range(n):
                        block[o * size + p, k] += coming[o, k] * going[p, k]
    return found


@reordered
def _slopes(phase, wiring, bench, layer, passing, batch, rows, found):  # type: ignore[no-untyped-def]
    """Write what the bank of a layer passes on more per volt, or returns (R, n), for these samples."""
    start = wiring.start
    first, last = start[layer], start[layer + 1]
    if phase >= CORRECTED:
        returned = _of_bank(bench.returned, wiring, layer, batch)
        for row in range(len(rows)):
            for k in range(last - first):
                found[row, k] = returned[rows[row], k]
        return
    gain, limit = wiring.gain[first:last], wiring.limit[first:last]
    out = _block(passing, start, layer, batch)
    per = 1 / limit
    if phase == FREE:
        for row in range(len(rows)):
            b = rows[row]
            for k in range(last - first):
                t = out[b, k] * per[k]
                found[row, k] = gain[k] * (1 - t * t)
        return
    tangent = _of_bank(bench.tangent, wiring, layer, batch)
    for row in range(len(rows)):
        b = rows[row]
        for k in range(last - first):
            t = tangent[b, k] + out[b, k] * per[k]
            found[row, k] = gain[k] * (1 - t * t)


@reordered
def _linearise(  # type: ignore[no-untyped-def]
    phase, wiring, bench, hub, inner, trips, passing, own, rows, turns
):
    """Write dg / dx (B, n, n) of these samples, x the nodes of the hub.

    With the slopes ``own`` (B, n) of the hub's bank, s of the others, w_kp from the hub to them and w_ok
    back, dg_o / dx_p = own_p sum_k w_ok s_k w_kp / (a_k a_o). In transposed and corrected phases signals
    go the same ways back.
    """
    start = wiring.start
    batch, size = own.shape
    widest = 0
    for layer in range(len(inner)):
        widest = max(widest, start[layer + 1] - start[layer])
    sums, work = np.zeros((len(rows), size * size), np.float32), np.empty(len(rows) * widest, np.float32)
    for layer in range(len(inner)):
        if not inner[layer]:
            continue
        n = start[layer + 1] - start[layer]
        slope = work[: len(rows) * n].reshape(len(rows), n)
        _slopes(phase, wiring, bench, layer, passing, batch, rows, slope)
        a = _loads(bench, start, layer, batch)
        for row in range(len(rows)):
            load = a[rows[row] if len(a) > 1 else 0]
            for k in range(n):
                slope[row, k] /= load[k]
        block = trips[size * size * start[layer] : size * size * start[layer + 1]].reshape(size * size, n)
        _send(slope, block, sums, True, size * size, n)
    a = _loads(bench, start, hub, batch)
    for row in range(len(rows)):
        b = rows[row]
        load = a[b if len(a) > 1 else 0]
        for o in range(size):
            for p in range(size):
                turn = sums[row, o * size + p] * own[b, p]
                if phase >= CORRECTED:
                    turn = sums[row, p * size + o] * own[b, o]
                turns[b, o, p] = turn / load[o]


@reordered
def _contracts(turn):  # type: ignore[no-untyped-def]
    """Whether |T| < 1 or |T^2| < 1 in Frobenius' norm: two sweeps bring any two points nearer together."""
    size = len(turn)
    twice, once, total = np.empty(size), 0.0, 0.0
    for o in range(size):
        for p in range(size):
            once += turn[o, p] * turn[o, p]
    if once < 1.0:
        return True
    for o in range(size):
        for p in range(size):
            twice[p] = 0.0
        for q in range(size):
            for p in range(size):
                twice[p] += turn[o, q] * turn[q, p]
        for p in range(size):
            total += twice[p] * twice[p]
    return total < 1.0


@reordered
def _longest_step(turn):  # type: ignore[no-untyped-def]
    """Return how long an implicit step of dx/dt = g(x) - x may be and lead away from unstable points.

    Where all eigenvalues of T = dg/dx have real parts below c = 1 + 1 / length: where (1 + c - T)^-1
    (1 - c + T), which takes that half-plane into the unit circle, has powers that vanish.
    """
    size = len(turn)
    left, power, column = np.empty((size, size)), np.empty((size, size)), np.empty(size)
    length = np.inf
    while length > _SHORTEST:
        c = 1.0 + 1.0 / length
        for p in range(size):
            for o in range(size):
                column[o] = turn[o, p] + (1.0 - c if o == p else 0.0)
                for q in range(size):
                    left[o, q] = (1.0 + c if o == q else 0.0) - turn[o, q]
            coefficients(left, column, power[:, p], size)
        for _ in range(_SQUARINGS):
            total = 0.0
            for o in range(size):
                for p in range(size):
                    entry = 0.0
                    for q in range(size):
                        entry += power[o, q] * power[q, p]
                    left[o, p] = entry
                    total += entry * entry
            if total < 1.0:
                # At half of it such a step at most doubles what leads away.
                return 0.5 * length
            if not total < 1e100:
                break
            power[:] = left
        length = min(0.25 * length, _LONGEST)
    return _SHORTEST


@reordered
def _newton(turns, steered, length, x, g):  # type: ignore[no-untyped-def]
    """Write into g where an implicit step of dx/dt = g(x) - x of this ``length`` (B,) goes from x, for the
    ``steered`` samples: of infinite length, Newton's method."""
    batch, size = x.shape
    matrix, right, step = np.empty((size, size)), np.empty(size), np.empty(size)
    for b in range(batch):
        if not steered[b]:
            continue
        for o in range(size):
            right[o] = np.float64(g[b, o]) - np.float64(x[b, o])
            for p in range(size):
                matrix[o, p] = (1.0 + 1.0 / length[b] if o == p else 0.0) - turns[b, o, p]
        coefficients(matrix, right, step, size)
        for o in range(size):
            g[b, o] = x[b, o] + step[o]


@reordered
def relax_layers(  # type: ignore[no-untyped-def]
    phase, tables, order, loops, limits, most, regular, iterations, status
):
    """Sweep until every sample meets the limits (step, relative, rounding, absolute), or is lost.

    ``order`` ends with the ``loops`` layers that close the loops; without any, one pass is exact. The tables
    come as plain tuples, which a call of a kernel takes in less time than named ones.
    """
    wiring, bench, nudging = Wiring(*tables[0]), Bench(*tables[1]), Nudging(*tables[2])
    start, batch = wiring.start, len(status)
    widest = 0
    for layer in range(len(start) - 1):
        widest = max(widest, start[layer + 1] - start[layer])
    work = np.empty((3, batch * widest), bench.state.dtype)
    passing = np.zeros_like(bench.state)
    passes = np.zeros(len(start) - 1, np.bool_)
    # Without loops all are visited before what they pass on is asked for.
    asked = (wiring.bank > 0) & (loops > 0)
    size = 0
    for layer in order[len(order) - loops :]:
        size += start[layer + 1] - start[layer]
    x, g = np.empty((batch, size), work.dtype), np.empty((batch, size), work.dtype)
    out = np.empty((batch, size), work.dtype)
    a = np.empty((batch if len(bench.a) == batch * start[-1] else 1, size), work.dtype)
    xs = np.empty((_DEPTH, batch, size), work.dtype)
    fs = np.empty((_DEPTH, batch, size), work.dtype)
    gram, held = np.zeros((batch, _DEPTH, _DEPTH)), np.zeros((batch, _DEPTH), np.bool_)
    found, done = np.empty((batch, 4)), np.zeros(batch, np.bool_)
    before, single = np.full(batch, np.inf), bench.state.itemsize == 4
    few, inner = closed_by_few(wiring, order, loops)
    hub = order[len(order) - 1] if loops > 0 else 0
    everyone, steered = np.arange(batch), np.zeros(batch, np.bool_)
    known, fresh = np.zeros(batch, np.bool_), np.zeros(batch, np.bool_)
    trusted = np.full(batch, np.inf if few else 0.0)
    trips = _round_trips(wiring, hub, inner) if few else np.empty(0, np.float32)
    own = np.empty((batch, size if few else 0), work.dtype)
    turns = np.empty((batch, own.shape[1], own.shape[1]))
    length, follows, again = np.full(batch, np.inf), np.zeros(batch, np.bool_), np.zeros(batch, np.bool_)
    step, relative, rounding, absolute = limits
    for b in range(batch):
        status[b] = _RAN_OUT
    _gather(bench.a, start, order, loops, a)
    from_there = x
    # First the layers that close the loops, then all; without loops that is done once.
    first, last, ended = (len(order) - loops if loops > 0 else 0), len(order), False
    for count in range(most + 2):
        for layer in range(len(start) - 1):
            if not asked[layer]:
                continue
            asked[layer] = False
            state, there = _block(bench.state, start, layer, batch), _block(passing, start, layer, batch)
            # At rest, all samples pass on the same; in other phases what does not move, nothing.
            alike = count == 0 and not np.any(state)
            if phase == FREE or not alike:
                one = 1 if alike else batch
                passes[layer] = _pass_on(phase, wiring, bench, layer, state[:one], there[:one])
                for b in range(one, batch):
                    there[b] = there[0]
        if few and count > 0 and not ended:
            _slopes(phase, wiring, bench, hub, passing, batch, everyone, own)
        for layer in order[first:last]:
            _visit(phase, wiring, bench, nudging, layer, batch, passing, passes, work)
        if ended or loops == 0:
            break
        _gather(bench.state, start, order, loops, g)
        if count == 0:
            first = 0
            x[:] = g
            from_there = x.copy()
            continue
        progress(x, g, a, found)
        left = 0
        for b in range(batch):
            if done[b]:
                continue
            moved, there, flow, scale = (
                np.sqrt(found[b, 0]),
                np.sqrt(found[b, 1]),
                np.sqrt(found[b, 2]),
                np.sqrt(found[b, 3]),
            )
            iterations[b] = count
            again[b] = False
            if not (flow + there < np.inf and there <= 1e9):
                if few and not follows[b]:
                    again[b], flow = True, np.inf
                    left += 1
                else:
                    status[b], done[b] = _GREW, True
            elif moved <= max(step, rounding * there) and (
                flow <= relative * scale + absolute
                # Sweeps that gain nothing more are as good as float32 is.
                or (single and flow <= rounding * scale and flow > 0.5 * before[b])
            ):
                status[b], done[b] = _CONVERGED, True
            else:
                left += 1
            if steered[b] and not flow < before[b]:
                # Newton's method led away.
                trusted[b] = _AGAIN * before[b]
                held[b] = False
            known[b], steered[b] = steered[b], flow < trusted[b] and not done[b]
            fresh[b] = steered[b] and (moved > _NEAR * there or not known[b])
            if follows[b] and not done[b]:
                steered[b] = fresh[b] = True
                length[b] = max(length[b] * (4.0 if flow < 2.0 * before[b] else 0.1), _SHORTEST)
            elif few and (again[b] or count == _PATIENCE) and not done[b]:
                steered[b] = fresh[b] = not again[b]
                follows[b], length[b] = True, 1.0
            before[b] = flow
        if left == 0 or count == most:
            if single:
                break
            # The others last: they see where the loops have come to.
            last, ended = len(order) - loops, True
            continue
        if few:
            rows = np.flatnonzero(fresh)
            if len(rows) > 0:
                _linearise(phase, wiring, bench, hub, inner, trips, passing, own, rows, turns)
            for sample in rows:
                if follows[sample]:
                    length[sample] = min(length[sample], _longest_step(turns[sample]))
                    held[sample] = False
                    continue
                steered[sample] = _contracts(turns[sample])
                if not steered[sample]:
                    trusted[sample] = _AGAIN * before[sample]
                if steered[sample] or known[sample]:
                    held[sample] = False
            _newton(turns, steered, length, x, g)
        if count > 1:
            mix(x, g, (count - 2) % _DEPTH, xs, fs, gram, held, regular, out)
        for b in range(batch):
            if done[b] and iterations[b] < count:
                # Where it is, it stays: sweeps may lead away from points that others find.
                continue
            for k in range(size):
                x[b, k] = from_there[b, k] if again[b] else g[b, k] if done[b] or count == 1 else out[b, k]
        place = 0
        for layer in order[len(order) - loops :]:
            n = start[layer + 1] - start[layer]
            state = _block(bench.state, start, layer, batch)
            for b in range(batch):
                for k in range(n):
                    state[b, k] = x[b, place + k]
            asked[layer] = wiring.bank[layer] > 0
            place += n
    if loops == 0:
        for b in range(batch):
            iterations[b] = 1
            total = 0.0
            for layer in range(len(start) - 1):
                state = _block(bench.state, start, layer, batch)
                for k in range(state.shape[1]):
                    total += abs(float(state[b, k]))
            status[b] = _CONVERGED if total < np.inf else _GREW
