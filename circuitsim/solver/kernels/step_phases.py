"""A learning step of a small batch in three calls: what its devices carry; its phases, which are the free
one, what amplifiers do there, the nudged or corrected ones to both sides or the transposed system, and the
change per unit of beta; and the step of its devices. For plain networks (`circuitsim.solver.compiled`) of
one-way amplifiers.

Layers lie one behind the other in flat arrays as in `circuitsim.solver.kernels.relaxing`. What a local rule
needs of them is kept as blocks (3 B, n_l) of v, s / B and v again: v and s / B below each other are what the
word lines of a crossbar do, s / B and v what its bit lines do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.amplifiers import tangents
from circuitsim.solver.kernels.compiling import reordered
from circuitsim.solver.kernels.conductances import (
    bit_sums,
    currents_and_sums,
    pair_sums,
)
from circuitsim.solver.kernels.relaxing import CORRECTED, FREE, TRANSPOSED, Wiring, relax_layers
from circuitsim.solver.kernels.steps import adam_pairs, adam_rows, sgd_pairs, sgd_rows

__all__ = [
    "BANK",
    "KNOWN",
    "LAYER",
    "Devices",
    "Learned",
    "Signals",
    "read_devices",
    "settle_phases",
    "step_devices",
    "swing_products",
]

KNOWN, LAYER, BANK = 0, 1, 2
_QUADRATIC = 1
_CLAMPS = 1
_OUTWEIGHED = 4


class Devices(NamedTuple):
    """The crossbars of a network, the same for every batch.

    A link is a row (kind, source layer, target layer, rows M, columns N, turned?, place of g_plus, place of
    g_minus or -1, place of its word lines, of its difference or its inner weights); kinds: `KNOWN`, `LAYER`,
    `BANK`. Pairs on known word lines are at opposite voltages, so that one of them stands for both.
    """

    links: np.ndarray  # (K, 10)
    column: np.ndarray  # (M,) of all known word lines: column of the input, or -1 where they are at ``fixed``
    gain: np.ndarray  # (M,)
    fixed: np.ndarray  # (M,) V
    conductance: np.ndarray  # flat: all devices
    signed: np.ndarray  # flat: g_plus - g_minus of pairs on known word lines
    inner: np.ndarray  # flat: the weights of a `Wiring`


class Signals(NamedTuple):
    """What a local rule needs of a batch."""

    words: np.ndarray  # flat (B, M) blocks of known word lines
    blocks: np.ndarray  # flat (3 B, n_l) blocks of layers
    out: np.ndarray  # flat (B, n) blocks of banks
    swings: np.ndarray  # (n,) mean over samples of s v
    products: np.ndarray  # flat (M, N) left^T right of crossbars, or empty where they are formed on the way


class Learned(NamedTuple):
    """An optimiser's step."""

    links: np.ndarray  # (K, 4): learns?; places of both halves among the moments; of the product, or -1
    numbers: np.ndarray  # (K, 4) for SGD, (K, 9) for Adam
    m: np.ndarray  # flat, or empty
    v: np.ndarray


@reordered
def _rows(flat, place, rows, columns):  # type: ignore[no-untyped-def]
    return flat[place : place + rows * columns].reshape(rows, columns)


@reordered
def _drive(inputs, column, gain, fixed, lines):  # type: ignore[no-untyped-def]
    """Write the voltages (B, m) of word lines: of an input times a gain, or fixed where there is none."""
    m, origin = len(column), column[0] if len(column) > 0 else 0
    in_order = origin >= 0
    for j in range(m):
        in_order &= column[j] == origin + j
    for b in range(len(inputs)):
        if in_order:
            for j in range(m):
                lines[b, j] = inputs[b, origin + j] * gain[j]
            continue
        for j in range(m):
            lines[b, j] = inputs[b, column[j]] * gain[j] if column[j] >= 0 else fixed[j]


@reordered
def read_devices(  # type: ignore[no-untyped-def]
    first_part, last_part, parts, devices, start, inputs, words, sent, sums, word_load
):
    """Add up what devices carry while free nodes are at 0 V, some parts of the rows of known word lines.

    Writes voltages of known word lines into ``words`` (flat (B, M) blocks) and the weights between layers;
    adds currents to ``sent`` (P, flat (B, n_l) blocks, or empty where a product is left to BLAS), sums of
    conductances to ``sums`` (P, n) and, over the word lines of amplifiers, to ``word_load`` (n,).
    """
    links, column, gain, fixed, conductance, difference, inner = devices
    batch = len(inputs)
    none = np.empty(0, np.float64)
    for link in links:
        kind, source, target, m, n, turned, plus_at, minus_at, word_at, place = link
        g_plus = _rows(conductance, plus_at, m, n)
        paired = minus_at >= 0
        g_minus = _rows(conductance, minus_at, m if paired else 0, n)
        for part in range(first_part, last_part):
            bit_sum = sums[part, start[target] : start[target] + n]
            if kind != KNOWN:
                if part == 0:
                    loaded = word_load if kind == BANK else sums[0]
                    word_sum = loaded[start[source] : start[source] + m]
                    weights = inner[place : place + m * n]
                    _inner_weights(g_plus, g_minus, paired, turned == 1, weights, word_sum, bit_sum)
                continue
            first, last = m * part // parts, m * (part + 1) // parts
            lines = _rows(words, batch * word_at, batch, m)
            at = slice(word_at + first, word_at + last)
            _drive(inputs, column[at], gain[at], fixed[at], lines[:, first:last])
            if sent.shape[1] > 0:
                currents = _rows(sent[part], batch * start[target], batch, n)
                currents_and_sums(lines, g_plus, g_minus, first, last, currents, bit_sum)
            elif paired:
                pair_sums(g_plus, g_minus, first, last, _rows(difference, place, m, n), none, bit_sum)
            else:
                bit_sums(g_plus, first, last, bit_sum)


@reordered
def _inner_weights(g_plus, g_minus, paired, turned, weights, word_sum, bit_sum):  # type: ignore[no-untyped-def]
    """Write g_plus - g_minus (M, N), or its transpose, into ``weights``; add sums of both, (M,) and (N,)."""
    m, n = g_plus.shape
    if not turned:
        for j in range(m):
            total = 0.0
            for i in range(n):
                signed = both = g_plus[j, i]
                if paired:
                    signed -= g_minus[j, i]
                    both += g_minus[j, i]
                weights[j * n + i] = signed
                bit_sum[i] += both
                total += both
            word_sum[j] += total
        return
    # Few bit lines: along the word lines, which are many.
    column = np.empty(m, g_plus.dtype)
    for i in range(n):
        line = weights[i * m : (i + 1) * m]
        for j in range(m):
            line[j] = column[j] = g_plus[j, i]
        if paired:
            for j in range(m):
                line[j] -= g_minus[j, i]
                column[j] += g_minus[j, i]
        total = 0.0
        for j in range(m):
            both = np.float64(column[j])
            word_sum[j] += both
            total += both
        bit_sum[i] += total


@reordered
def step_devices(  # type: ignore[no-untyped-def]
    first_part, last_part, parts, devices, start, bank_start, batch, signals, learned
):
    """Take an optimiser's step on some parts of the rows of every crossbar that learns.

    Numbers are those of `circuitsim.learning.optimiser.Optimiser`.
    """
    links, conductance = devices[0], devices[4]
    words, blocks, out, products, formed = signals
    table, numbers, all_m, all_v = learned
    adam = numbers.shape[1] > 4
    one = blocks.dtype.type(1)
    nothing, no_word = np.empty((0, 0), blocks.dtype), np.empty(0, blocks.dtype)
    for k in range(len(links)):
        if table[k, 0] == 0:
            continue
        kind, source, target, m, n, _, plus_at, minus_at, word_at, _ = links[k]
        first, last = m * first_part // parts, m * last_part // parts
        # v, then s / B, then v again.
        from_target, word, bit = (
            3 * batch * start[target],
            no_word,
            products[start[target] : start[target] + n],
        )
        if kind == KNOWN:
            left = _rows(words, batch * word_at, batch, m)
            right = _rows(blocks, from_target + batch * n, batch, n)
        elif kind == BANK:
            left = _rows(out, batch * bank_start[source], batch, m)
            right = _rows(blocks, from_target + batch * n, batch, n)
        else:
            left = _rows(blocks, 3 * batch * start[source], 2 * batch, m)
            right = _rows(blocks, from_target + batch * n, 2 * batch, n)
            word = products[start[source] : start[source] + m]
        product = _rows(formed, table[k, 3], m, n) if len(formed) > 0 else nothing
        plus, own = _rows(conductance, plus_at, m, n), numbers[k]
        m_plus = _rows(all_m, table[k, 1], m, n) if len(all_m) > 0 else nothing
        v_plus = _rows(all_v, table[k, 1], m, n) if len(all_v) > 0 else nothing
        if minus_at < 0:
            if adam:
                adam_rows(first, last, left, right, product, one, word, bit, plus, m_plus, v_plus, own)
            else:
                sgd_rows(first, last, left, right, product, one, word, bit, plus, m_plus, own)
            continue
        minus = _rows(conductance, minus_at, m, n)
        m_minus = _rows(all_m, table[k, 2], m, n) if len(all_m) > 0 else nothing
        v_minus = _rows(all_v, table[k, 2], m, n) if len(all_v) > 0 else nothing
        if adam:
            moments = m_plus, m_minus, v_plus, v_minus
            adam_pairs(first, last, left, right, product, word, bit, plus, minus, moments, own)
        else:
            sgd_pairs(first, last, left, right, product, word, bit, plus, minus, (m_plus, m_minus), own)


@reordered
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


@reordered
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


@reordered
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


@reordered
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


@reordered
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


@reordered
def settle_phases(  # type: ignore[no-untyped-def]
    phase, sides, beta, tables, carried, cost, output, sweeps, limits, most, regular, samples, found
):
    """Put some samples through the phases; return whether all settled, else nothing of ``found`` counts.

    ``sides`` is 2 for centred phases. ``tables`` are those of a `Wiring`; ``carried`` leaks and currents of
    sources (n,), and what `read_devices` found, part by part: sums (P, n), currents of all samples (Q, ...),
    what crossbars load amplifiers with (n,). ``cost``: kind, conductance [S] and scale [V]; ``output``: layer
    and places of both sides; ``sweeps`` order and number of loops, ``limits`` what ends them, of the free
    phase and of the others. ``samples``: the first one's number, how many there are in all, targets (B, K).
    ``found``: of all samples blocks of v, s / B, v, and outputs of banks; outputs (B, K) V, costs (B,) W.
    """
    wiring = Wiring(*tables)
    leak, injected, sums, sent, word_load = carried
    number, every, target = samples
    blocks, bank_out, y, value = found
    layer_out, pos, neg = output
    kind, conductance, scale = cost
    start, batch = wiring.start, len(target)
    size = start[-1]
    one = blocks.dtype.type(1)
    nothing, empty = np.empty(0, blocks.dtype), np.empty((0, 0))
    a = np.empty(size, blocks.dtype)
    for k in range(size):
        load = leak[k]
        for part in sums:
            load += part[k]
        a[k] = load
    own = np.empty(batch * size, blocks.dtype)
    for layer in range(len(start) - 1):
        n = start[layer + 1] - start[layer]
        place, there = every * start[layer] + number * n, batch * start[layer]
        for b in range(batch):
            for k in range(n):
                own[there + b * n + k] = injected[start[layer] + k]
        for part in sent:
            for k in range(batch * n):
                own[there + k] += part[place + k]
    iterations, status = np.empty(batch, np.int64), np.empty(batch, np.int8)
    v = np.zeros(batch * size, blocks.dtype)
    slope_y = np.empty_like(y)
    out = np.empty(batch * (len(bank_out) // every), blocks.dtype)
    load_now, tangent, slope, drawn, d, before = a, nothing, nothing, nothing, v, v
    nudging = (0, -1, pos, neg, empty, empty, 0.0, 1.0)
    # The free phase, then the nudged ones, of which the second pulls the other way.
    for turn in range(1 + sides):
        nudged = min(turn, 1)
        if nudged and phase != TRANSPOSED:
            swing = beta if turn == 1 else -beta
            amplitude = swing * conductance
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
        if turn == 2:
            # To first order the other side is the mirror image.
            before, d = d, -d
        relax_layers(
            phase if nudged else FREE,
            (tables, (load_now, own, v if nudged else nothing, tangent, slope, slope, drawn, d), nudging),
            sweeps[nudged][0],
            sweeps[nudged][1],
            limits[nudged],
            most,
            regular,
            iterations,
            status,
        )
        if status.any():
            return False
        if nudged:
            continue
        _read(v, start, output, y)
        _slopes_and_costs(cost, y, target, slope_y, value)
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
