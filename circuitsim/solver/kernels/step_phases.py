"""The phases of one learning step of a small batch, compiled as a whole: the free phase, what amplifiers do
there, then the nudged or corrected phases to both sides or the transposed system, and the change per unit of
beta. For plain networks (`circuitsim.solver.compiled`) of one-way amplifiers and crossbars that they drive.

Layers lie one behind the other in flat arrays as in `circuitsim.solver.kernels.relaxing`. What a local rule
needs of them is kept as blocks (3 B, n_l) of v, s / B and v again: v and s / B below each other are what the
word lines of a crossbar do, s / B and v what its bit lines do.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from circuitsim.solver.kernels.amplifiers import tangents
from circuitsim.solver.kernels.relaxing import CORRECTED, FREE, TRANSPOSED, Wiring, relax_layers

__all__ = ["settle_phases", "signed_weights", "swing_products"]

_QUADRATIC, _SOFTMAX = 1, 2
_CLAMPS = 1
_OUTWEIGHED = 4

kernel = njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@kernel
def signed_weights(g_plus, g_minus, turned, weights, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write g_plus - g_minus (M, N), or its transpose, into ``weights``; add sums of both, (M,) and (N,).

    ``g_minus`` may be empty.
    """
    m, n = g_plus.shape
    paired = len(g_minus) > 0
    for j in range(m):
        total = 0.0
        for i in range(n):
            signed = both = g_plus[j, i]
            if paired:
                signed -= g_minus[j, i]
                both += g_minus[j, i]
            weights[i * m + j if turned else j * n + i] = signed
            bit_sum[i] += both
            total += both
        word_sum[j] += total


@kernel
def swing_products(start, batch, blocks, products):  # type: ignore[no-untyped-def]
    """Write the mean over samples of s v into ``products`` (n,), from ``blocks`` of v and s / B."""
    for layer in range(len(start) - 1):
        first, n = start[layer], start[layer + 1] - start[layer]
        block = blocks[3 * batch * first : 3 * batch * (first + n)].reshape(3 * batch, n)
        for k in range(n):
            products[first + k] = 0
        for b in range(batch):
            for k in range(n):
                products[first + k] += block[batch + b, k] * block[b, k]


@kernel
def _read(state, start, output, y):  # type: ignore[no-untyped-def]
    """Write the outputs (B, K) V."""
    layer, pos, neg = output
    batch, n = len(y), start[layer + 1] - start[layer]
    v = state[batch * start[layer] : batch * start[layer + 1]].reshape(batch, n)
    for b in range(batch):
        for k in range(len(pos)):
            y[b, k] = v[b, pos[k]]
            if len(neg) > 0:
                y[b, k] -= v[b, neg[k]]


@kernel
def _slopes_and_costs(cost, y, target, slope, value):  # type: ignore[no-untyped-def]
    """Write dC/dy (B, K) A and C (B,) W."""
    kind, conductance, scale = cost
    batch, outputs = y.shape
    p = np.empty(outputs)
    for b in range(batch):
        total = 0.0
        if kind == _QUADRATIC:
            for k in range(outputs):
                off = y[b, k] - target[b, k]
                slope[b, k] = conductance * off
                total += off * off
            value[b] = 0.5 * conductance * total
            continue
        top = y[b].max() / scale
        asked = wanted = 0.0
        for k in range(outputs):
            z = y[b, k] / scale
            p[k] = np.exp(z - top)
            total += p[k]
            asked += target[b, k]
            wanted += target[b, k] * z
        for k in range(outputs):
            slope[b, k] = conductance * scale * (p[k] / total - target[b, k])
        value[b] = conductance * scale * scale * ((top + np.log(total)) * asked - wanted)


@kernel
def _around(phase, wiring, word_load, v, batch, out):  # type: ignore[no-untyped-def]
    """Return what amplifiers pass on around v: tangents, slopes, and what is drawn back through them.

    Blocks of banks; writes their outputs into ``out``.
    """
    tangent, slope, drawn = np.empty_like(out), np.empty_like(out), np.zeros_like(out)
    start = wiring.start
    for layer in range(len(start) - 1):
        if wiring.bank[layer] == 0:
            continue
        first, last, place = start[layer], start[layer + 1], batch * wiring.bank_start[layer]
        n = last - first
        k = slice(place, place + batch * n)
        t, a = tangent[k].reshape(batch, n), slope[k].reshape(batch, n)
        tangents(
            v[batch * first : batch * last].reshape(batch, n),
            wiring.gain[first:last],
            wiring.offset[first:last],
            wiring.limit[first:last],
            t,
            a,
            out[k].reshape(batch, n),
        )
        if phase == CORRECTED and wiring.bank[layer] == 2:
            back = drawn[k].reshape(batch, n)
            for b in range(batch):
                for i in range(n):
                    back[b, i] = a[b, i] * word_load[first + i]
    return tangent, slope, drawn


@kernel
def _dual_loads(wiring, load, v, batch):  # type: ignore[no-untyped-def]
    """Return the loads (B, n) of the transposed system: ideal diodes count where they conduct."""
    start = wiring.start
    a = np.empty(batch * start[-1], load.dtype)
    for layer in range(len(start) - 1):
        first, n = start[layer], start[layer + 1] - start[layer]
        block = a[batch * first : batch * (first + n)].reshape(batch, n)
        voltage = v[batch * first : batch * (first + n)].reshape(batch, n)
        kind, _, column = wiring.nodes[layer]
        for b in range(batch):
            for k in range(n):
                block[b, k] = load[first + k]
        if kind == _CLAMPS:
            c = wiring.clamps[column : column + 4 * n].reshape(4, n)
            for b in range(batch):
                for k in range(n):
                    if voltage[b, k] < c[0, k]:
                        block[b, k] += c[1, k]
                    if voltage[b, k] > c[2, k]:
                        block[b, k] += c[3, k]
    return a


@kernel
def settle_phases(  # type: ignore[no-untyped-def]
    phase, sides, beta, tables, sums, cost, output, sweeps, limits, most, regular, samples, found
):
    """Put some samples through the phases; return whether all settled, else nothing of ``found`` counts.

    ``sides`` is 2 for centred phases. ``tables`` are those of a `Wiring`; ``sums`` what loads the nodes (n,)
    and what crossbars load amplifiers with (n,); ``cost`` kind, conductance [S] and scale [V]; ``output``
    layer and places of both sides; ``sweeps`` order and number of loops, ``limits`` what ends them, of the
    free phase and of the others. ``samples``: the first one's number, how many there are of all, constant
    currents of all (flat), targets (B, K). ``found``: blocks of v, s / B, v of all, outputs of banks of all,
    outputs (B, K) V, costs (B,) W.
    """
    wiring = Wiring(*tables)
    load, word_load = sums
    number, every, constant, target = samples
    blocks, bank_out, y, value = found
    layer_out, pos, neg = output
    kind, conductance, scale = cost
    start, batch = wiring.start, len(target)
    size = start[-1]
    one = blocks.dtype.type(1)
    nothing, empty = np.empty(0, blocks.dtype), np.empty((0, 0))
    a = np.empty(size, blocks.dtype)
    for k in range(size):
        a[k] = load[k]
    own = np.empty(batch * size, blocks.dtype)
    for layer in range(len(start) - 1):
        n = start[layer + 1] - start[layer]
        place = every * start[layer] + number * n
        own[batch * start[layer] : batch * start[layer + 1]] = constant[place : place + batch * n]
    iterations, status = np.empty(batch, np.int64), np.empty(batch, np.int8)
    v = np.zeros(batch * size, blocks.dtype)
    relax_layers(
        FREE,
        (
            tables,
            (a, own, nothing, nothing, nothing, nothing, nothing, v),
            (0, -1, pos, neg, empty, empty, 0.0, 1.0),
        ),
        sweeps[0][0],
        sweeps[0][1],
        limits[0],
        most,
        regular,
        iterations,
        status,
    )
    if status.any():
        return False
    _read(v, start, output, y)
    slope_y = np.empty_like(y)
    _slopes_and_costs(cost, y, target, slope_y, value)
    out = np.empty(batch * (len(bank_out) // every), blocks.dtype)
    tangent, slope, drawn = _around(phase, wiring, word_load, v, batch, out)
    if phase == TRANSPOSED:
        load_now, own = _dual_loads(wiring, a, v, batch), np.zeros_like(v)
        n = start[layer_out + 1] - start[layer_out]
        pulled = own[batch * start[layer_out] : batch * start[layer_out + 1]].reshape(batch, n)
        for b in range(batch):
            for k in range(len(pos)):
                pulled[b, pos[k]] -= beta * slope_y[b, k]
                if len(neg) > 0:
                    pulled[b, neg[k]] += beta * slope_y[b, k]
    else:
        load_now, own = a.copy(), nothing
    d = np.zeros_like(v)
    before = d
    for side in range(sides):
        swing = beta if side == 0 else -beta
        amplitude = swing * conductance
        if phase == TRANSPOSED:
            nudging = (0, -1, pos, neg, empty, empty, 0.0, 1.0)
        else:
            first = start[layer_out]
            # A softmax is steepest at a probability of one half.
            steepest = 0.0 if kind == _QUADRATIC else 0.25 * amplitude
            if kind == _QUADRATIC:
                # A resistor at each output: part of its load.
                for k in range(len(pos)):
                    load_now[first + pos[k]] = a[first + pos[k]] + blocks.dtype.type(amplitude)
                    if len(neg) > 0:
                        load_now[first + neg[k]] = a[first + neg[k]] + blocks.dtype.type(amplitude)
            else:
                amplitude *= scale
            if swing < 0 and load_now[first : start[layer_out + 1]].min() + steepest <= 0:
                return False
            nudging = (kind, layer_out, pos, neg, y, target, amplitude, scale)
        if side == 1:
            # To first order the other side is the mirror image.
            before = d
            d = -before
        relax_layers(
            phase,
            (tables, (load_now, own, v, tangent, slope, slope, drawn, d), nudging),
            sweeps[1][0],
            sweeps[1][1],
            limits[1],
            most,
            regular,
            iterations,
            status,
        )
        if status.any():
            return False
    per_beta, share = blocks.dtype.type(1 / (sides * beta)), one / blocks.dtype.type(every)
    for layer in range(len(start) - 1):
        first, n = start[layer], start[layer + 1] - start[layer]
        place = 3 * every * first + number * n
        for k in range(batch * n):
            there = batch * first + k
            moved = d[there] if sides == 1 else before[there] - d[there]
            blocks[place + k] = v[there]
            blocks[place + every * n + k] = moved * per_beta * share
            blocks[place + 2 * every * n + k] = v[there]
        if wiring.bank[layer] > 0:
            place = every * wiring.bank_start[layer] + number * n
            there = batch * wiring.bank_start[layer]
            bank_out[place : place + batch * n] = out[there : there + batch * n]
    return True
