"""The kernels of the layered method against slow twins in NumPy, one node or one device at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from circuitsim.netlist.models import diode_current
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.kernels.amplifiers import held_nodes, output_changes, outputs, tangents
from circuitsim.solver.kernels.conductances import bit_sums, currents_and_sums, pair_sums, single_sums
from circuitsim.solver.kernels.maths import exponential, exponential_less_one, hyperbolic_tangent
from circuitsim.solver.kernels.mixing import progress
from circuitsim.solver.kernels.nodes import clamp_increments, clamp_nodes, solve_increments, solve_nodes
from circuitsim.solver.kernels.steps import adam_pairs, adam_rows, sgd_pairs, sgd_rows

SEEDS = st.integers(0, 2**32 - 1)
PRECISIONS = ["float64", "float32"]


# Functions ---------------------------------------------------------------------------------------


@njit
def _exponentials(x, e, less, t):  # type: ignore[no-untyped-def]
    for k in range(len(x)):
        e[k] = exponential(x[k])
        less[k] = exponential_less_one(x[k])
        t[k] = hyperbolic_tangent(x[k])


def functions(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    found = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    _exponentials(x, *found)
    return found


def test_functions_are_right_to_a_few_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    small = 10.0 ** rng.uniform(-300, 2, 20_000)
    x = np.concatenate([rng.uniform(-699, 699, 50_000), rng.uniform(-3, 3, 50_000), small, -small])
    # Halfway between two powers of two the reduction changes over.
    x = np.concatenate([x, np.arange(-1000, 1000) * (0.5 * math.log(2))])
    e, less, t = functions(x)
    for found, expected, most in ((e, np.exp(x), 3), (less, np.expm1(x), 4), (t, np.tanh(x), 5)):
        unit = np.spacing(np.abs(expected))
        assert np.all(np.abs(found - expected) <= most * unit)


@njit
def _tangents(x, t):  # type: ignore[no-untyped-def]
    for k in range(len(x)):
        t[k] = hyperbolic_tangent(x[k])


def test_tangents_of_float32_are_right_to_a_few_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    small = 10.0 ** rng.uniform(-37, 2, 20_000)
    ends = [0.0, -0.0, np.inf, -np.inf, 800.0, -800.0, 1e-38, 10.0, -10.0]
    x = np.concatenate([rng.uniform(-12, 12, 50_000), rng.uniform(-1, 1, 50_000), small, -small, ends])
    x = np.concatenate([x, np.arange(-60, 60) * (0.25 * math.log(2))]).astype(np.float32)
    t = np.empty_like(x)
    _tangents(x, t)
    expected = np.tanh(x.astype(np.float64))
    assert np.all(np.abs(t - expected) <= 4 * np.spacing(np.abs(expected).astype(np.float32)))
    nothing = np.full(3, np.nan, np.float32)
    _tangents(nothing, t[:3])
    assert np.isnan(t[:3]).all()


def test_functions_at_the_ends_of_their_range() -> None:
    x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 800.0, -800.0, 5e-324, -5e-324, 700.0, -700.0])
    e, less, t = functions(x)
    cut = np.clip(x, -700, 700)
    np.testing.assert_allclose(e, np.exp(cut), rtol=1e-15)
    np.testing.assert_allclose(less, np.expm1(cut), rtol=1e-15)
    np.testing.assert_array_equal(t, np.tanh(x))
    assert math.isnan(e[2])
    assert math.isnan(less[2])
    assert math.isnan(t[2])
    assert e[0] == e[1] == 1.0
    assert less[0] == less[1] == t[0] == t[1] == 0.0


# Nodes -------------------------------------------------------------------------------------------


def bisected(f: Callable[[float], float], low: float, high: float) -> float:
    """Root of a rising function."""
    for _ in range(120):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return 0.5 * (low + high)


def diode_layer(seed: int, batch: int, n: int) -> dict[str, Any]:
    """Loads, currents and up to two diodes to a node; some places have none."""
    rng = np.random.default_rng(seed)
    here = rng.random((2, n)) < 0.8
    return {
        "a": 10.0 ** rng.uniform(-6, -3, (batch if seed % 2 else 1, n)),
        "current": 10.0 ** rng.uniform(-8, -3, (batch, n)) * rng.choice([-1, 1], (batch, n)),
        "columns": (
            np.array([np.ones(n), -np.ones(n)]) * rng.choice([-1.0, 1.0], n),
            rng.uniform(-0.3, 0.3, (2, n)),
            np.where(here, 10.0 ** rng.uniform(-12, -6, (2, n)), 0.0),
            rng.uniform(0.025, 0.06, (2, n)),
            np.where(here, rng.choice([0.0, 1e-12], (2, n)), 0.0),
        ),
    }


def through_diodes(v: float, columns: tuple[FloatArray, ...], k: int) -> float:
    total = 0.0
    for sign, ref, i_s, slope, gmin in zip(*(column[:, k] for column in columns), strict=True):
        if i_s > 0:
            total += sign * float(diode_current(np.array(sign * (v - ref)), i_s, slope, gmin))
    return total


@given(SEEDS)
@settings(max_examples=20)
def test_nodes_with_diodes_meet_their_equation(seed: int) -> None:
    case = diode_layer(seed, 3, 7)
    a, current, columns = case["a"], case["current"], case["columns"]
    v = np.random.default_rng(seed).uniform(-1, 1, current.shape)
    solve_nodes(a, current, *columns, v)
    for b, k in np.ndindex(*v.shape):
        load = float(a[b if len(a) > 1 else 0, k])
        reach = abs(float(current[b, k])) / load + 2.0

        def leaving(x: float, load: float = load, b: int = b, k: int = k) -> float:
            return load * x + through_diodes(x, columns, k) - float(current[b, k])

        expected = bisected(leaving, -reach, reach)
        assert v[b, k] == pytest.approx(expected, rel=1e-11, abs=1e-13)


@given(SEEDS, st.sampled_from([1e-9, 1e-4, 1.0]))
@settings(max_examples=20)
def test_increments_keep_their_digits(seed: int, size: float) -> None:
    case = diode_layer(seed, 3, 7)
    a, columns = case["a"], case["columns"]
    v0 = np.zeros_like(case["current"])
    solve_nodes(a, case["current"], *columns, v0)
    extra = size * case["current"] * np.random.default_rng(seed).uniform(-1, 1, v0.shape)
    d = np.zeros_like(v0)
    solve_increments(a, extra, v0, *columns, d)
    whole = v0.copy()
    solve_nodes(a, case["current"] + extra, *columns, whole)
    np.testing.assert_allclose(v0 + d, whole, rtol=1e-10, atol=1e-12)
    if size == 1e-9:
        # To first order what moves is the current over the small-signal conductance.
        h = 1e-7
        for b, k in np.ndindex(*d.shape):
            x = float(v0[b, k])
            slope = (through_diodes(x + h, columns, k) - through_diodes(x - h, columns, k)) / (2 * h)
            linear = extra[b, k] / (a[b if len(a) > 1 else 0, k] + slope)
            assert d[b, k] == pytest.approx(linear, rel=1e-3)


def clamps(seed: int, n: int, steep: bool) -> tuple[FloatArray, ...]:
    """low, low_g, high, high_g: both, either or no ideal diode; steep ones are at ground, on one side."""
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.uniform(-0.5, 0.5, (2, n)), axis=0)
    g_low, g_high = 10.0 ** rng.uniform(-3, -2, (2, n))
    left, right = rng.random(n) < 0.7, rng.random(n) < 0.7
    if steep:
        low, high, right = np.zeros(n), np.zeros(n), ~left
        g_low = g_high = np.full(n, 1e6)
    return (
        np.where(left, low, -np.inf),
        np.where(left, g_low, 0.0),
        np.where(right, high, np.inf),
        np.where(right, g_high, 0.0),
    )


@pytest.mark.parametrize("steep", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@given(SEEDS)
@settings(max_examples=20)
def test_ideal_diodes_meet_their_equation_and_increments_lead_there(
    precision: str, steep: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    low, low_g, high, high_g = clamps(seed, 9, steep)
    eps = float(np.finfo(precision).eps)
    a = (10.0 ** rng.uniform(-4, -3, (1, 9))).astype(precision)
    first, second = ((a[0] * rng.uniform(-1.5, 1.5, (4, 9))).astype(precision) for _ in range(2))

    def solved(current: FloatArray) -> FloatArray:
        v = np.empty_like(current)
        clamp_nodes(a, current, low, low_g, high, high_g, v)
        return v

    def twin(current: FloatArray) -> FloatArray:
        """Of the three pieces of each node that which contains its own solution."""
        v = current.astype(float) / a
        below = (current + low_g * np.where(low_g > 0, low, 0.0)) / (a + low_g)
        above = (current + high_g * np.where(high_g > 0, high, 0.0)) / (a + high_g)
        return np.where(v < low, below, np.where(v > high, above, v))

    v0 = solved(first)
    np.testing.assert_allclose(v0, twin(first), rtol=8 * eps, atol=0 if steep else 8 * eps)
    d = np.empty_like(v0)
    clamp_increments(a, second - first, v0, low, low_g, high, high_g, d)
    # What a diode that opens gives back is known as well as its voltage.
    known = 8 * eps * (1 if steep else 1e2)
    np.testing.assert_allclose(v0 + d, twin(second), rtol=0, atol=known)
    nothing = np.zeros_like(first)
    clamp_increments(a, nothing, v0, low, low_g, high, high_g, d)
    assert not d.any()


# Amplifiers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_amplifiers(precision: str) -> None:
    rng = np.random.default_rng(1)
    n = 40
    gain = rng.uniform(-1.5, 1.5, n).astype(precision)
    limit = np.where(np.arange(n) % 4 == 0, np.inf, rng.uniform(0.5, 1.0, n)).astype(precision)
    offset = rng.uniform(-0.1, 0.1, n).astype(precision)
    v0 = rng.uniform(-1, 1, (5, n)).astype(precision)
    d = (10.0 ** rng.uniform(-9, 0.3, (5, n)) * rng.choice([-1, 1], (5, n))).astype(precision)
    eps = np.finfo(precision).eps

    def f(v: FloatArray) -> FloatArray:
        linear = gain.astype(np.longdouble) * (v + offset)
        saturating = np.where(np.isinf(limit), 1.0, limit)
        return np.where(np.isinf(limit), linear, saturating * np.tanh(linear / saturating))

    wide0, wide = v0.astype(np.longdouble), d.astype(np.longdouble)
    out, t, slope, again, change = (np.empty_like(v0) for _ in range(5))
    outputs(v0, gain, offset, limit, out)
    tangents(v0, gain, offset, limit, t, slope, again)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_allclose(out, f(wide0).astype(float), rtol=8 * eps, atol=2 * eps)
    h = np.longdouble(1e-7)
    derivative = ((f(wide0 + h) - f(wide0 - h)) / (2 * h)).astype(float)
    np.testing.assert_allclose(slope, derivative, rtol=1e-9 + 16 * eps, atol=1e-10 + 8 * eps)
    output_changes(d, gain, limit, t, change)
    expected = (f(wide0 + wide) - f(wide0)).astype(float)
    # No cancellation: relative to the change, up to what the rounding of t makes, and that of the twin.
    bound = 64 * eps * np.abs(expected) / (1 - np.abs(t.astype(float))).clip(min=eps)
    assert np.all(np.abs(change - expected) <= bound + 4e-19)

    # A D + drawn c(D) = current, c(D) the bend.
    a = (10.0 ** rng.uniform(-5, -3, (1, n))).astype(precision)
    drawn = (a * rng.uniform(0, 0.4, (5, n))).astype(precision)
    current = (a * d * 0.2).astype(precision)
    x, bend = np.zeros_like(d), np.empty_like(d)
    held_nodes(a, current, drawn, gain, limit, t, slope, x, bend)
    moved = x.astype(np.longdouble)
    c = (f(wide0 + moved) - f(wide0) - slope * moved).astype(float)
    left = a * x.astype(float) + drawn * c - current
    settled = 1e-14 if precision == "float64" else 1e-5
    # The bend is a difference, known to the rounding of what it is the difference of.
    scale = np.abs(current) + np.abs(drawn * slope * x) / (1 - np.abs(t)).clip(min=0.01)
    assert np.all(np.abs(left) <= 10 * settled * scale + 1e-19 * a)
    np.testing.assert_allclose(bend, c, rtol=0, atol=50 * settled * float(np.abs(slope * x).max()))


# Sums and currents -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [(0, 71), (3, 4), (5, 37), (0, 32), (2, 66)])
def test_passes_over_conductances(precision: str, rows: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    first, last = rows
    g_plus, g_minus = rng.uniform(1e-6, 1e-4, (2, 71, 13)).astype(precision)
    k = slice(first, last)
    eps = np.finfo(precision).eps
    both = g_plus.astype(float) + g_minus.astype(float)
    start = rng.uniform(0, 1e-3, 13)
    signed, words, bits = np.zeros_like(g_plus), np.zeros(71), start.copy()
    pair_sums(g_plus, g_minus, first, last, signed, words, bits)
    np.testing.assert_array_equal(signed[k], (g_plus - g_minus)[k])
    assert not signed[:first].any()
    assert not signed[last:].any()
    np.testing.assert_allclose(words[k], both[k].sum(axis=1), rtol=4 * eps)
    assert not words[:first].any()
    np.testing.assert_allclose(bits, start + both[k].sum(axis=0), rtol=16 * eps)
    bits = start.copy()
    pair_sums(g_plus, g_minus, first, last, signed, np.empty(0), bits)
    np.testing.assert_allclose(bits, start + both[k].sum(axis=0), rtol=16 * eps)
    single = g_plus.astype(float)
    words, bits = np.zeros(71), start.copy()
    single_sums(g_plus, first, last, words, bits)
    np.testing.assert_allclose(words[k], single[k].sum(axis=1), rtol=1e-14)
    np.testing.assert_allclose(bits, start + single[k].sum(axis=0), rtol=1e-14)
    bits = start.copy()
    bit_sums(g_plus, first, last, bits)
    np.testing.assert_allclose(bits, start + single[k].sum(axis=0), rtol=16 * eps)
    u = rng.uniform(-1, 1, (4, 71)).astype(precision)
    before = rng.uniform(-1e-4, 1e-4, (4, 13)).astype(precision)
    currents, bits = before.copy(), start.copy()
    currents_and_sums(u, g_plus, g_plus[:0], first, last, currents, bits)
    expected = before.astype(float) + u.astype(float)[:, k] @ single[k]
    np.testing.assert_allclose(currents, expected, rtol=0, atol=64 * eps * 1e-4 * 8)
    np.testing.assert_allclose(bits, start + single[k].sum(axis=0), rtol=16 * eps)
    for samples in (1, 4, 6):
        u = rng.uniform(-1, 1, (samples, 71)).astype(precision)
        before = rng.uniform(-1e-4, 1e-4, (samples, 13)).astype(precision)
        currents, bits = before.copy(), start.copy()
        currents_and_sums(u, g_plus, g_minus, first, last, currents, bits)
        difference = g_plus.astype(float) - g_minus.astype(float)
        expected = before.astype(float) + u.astype(float)[:, k] @ difference[k]
        np.testing.assert_allclose(currents, expected, rtol=0, atol=64 * eps * 1e-4 * 8)
        np.testing.assert_allclose(bits, start + both[k].sum(axis=0), rtol=16 * eps)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_progress_of_a_sweep(precision: str) -> None:
    rng = np.random.default_rng(3)
    x, g = rng.normal(size=(2, 3, 11)).astype(precision)
    for a in (rng.uniform(1e-5, 1e-3, (1, 11)), rng.uniform(1e-5, 1e-3, (3, 11))):
        found = np.empty((3, 4))
        load = a.astype(precision)
        progress(x, g, load, found)
        step = g.astype(float) - x
        parts = (step, g, load * step, load.astype(float) * g)
        expected = np.stack([(np.asarray(part, float) ** 2).sum(axis=1) for part in parts], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5 if precision == "float32" else 1e-13)


# Steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("with_word", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("rank", [1, 3, 4, 6, 0])
@pytest.mark.parametrize("size", [9, 31])
def test_steps_of_sgd(
    size: int, rank: int, momentum: float, sign: float, with_word: bool, precision: str
) -> None:
    """Every way through the kernel: four samples in one pass, any number row by row or, of few bit lines,
    column by column, a product given."""
    rng = np.random.default_rng(rank)
    shape = (12, size)
    g = rng.uniform(1e-6, 1e-4, shape).astype(precision)
    left = rng.normal(size=(rank or 5, shape[0])).astype(precision)
    right = rng.normal(size=(rank or 5, shape[1])).astype(precision)
    nothing = np.empty((0, 0), precision)
    product = nothing if rank else left.T @ right
    word = rng.normal(size=shape[0] if with_word else 0).astype(precision)
    bit = rng.normal(size=shape[1]).astype(precision)
    m = rng.normal(size=shape).astype(precision) if momentum else nothing
    rate, low, high = 4e-6, 1e-6, 1e-4
    slope = bit[None] + (word[:, None] if with_word else 0.0) - sign * (left.T.astype(float) @ right)
    mean = slope if not momentum else momentum * m.astype(float) + slope
    expected = np.clip(g - rate * mean, low, high)
    new = np.array(g)
    numbers = np.array([rate, momentum, low, high], dtype=precision)
    one = np.dtype(precision).type(sign)
    for first, last in ((0, 5), (5, 12)):
        sgd_rows(first, last, left, right, product, one, word, bit, new, m, numbers)
    eps = np.finfo(precision).eps
    np.testing.assert_allclose(new, expected, rtol=0, atol=16 * eps * 1e-4)
    if momentum:
        np.testing.assert_allclose(m, mean, rtol=0, atol=32 * eps * float(np.abs(mean).max()))
    assert np.any((new == numbers[2]) | (new == numbers[3]))
    assert np.any((new > numbers[2]) & (new < numbers[3]) & (new != g))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("with_word", [False, True])
@pytest.mark.parametrize("rank", [3, 4, 0])
@pytest.mark.parametrize("size", [9, 31])
def test_steps_of_pairs_are_those_of_both_halves(
    size: int, rank: int, with_word: bool, kind: str, precision: str
) -> None:
    """Halves on word lines at opposite voltages, stepped together and one after the other."""
    rng = np.random.default_rng(rank)
    shape = (12, size)
    left = rng.normal(size=(rank or 5, shape[0])).astype(precision)
    right = rng.normal(size=(rank or 5, shape[1])).astype(precision)
    product = np.empty((0, 0), precision) if rank else left.T @ right
    word = rng.normal(size=shape[0] if with_word else 0).astype(precision)
    bit = rng.normal(size=shape[1]).astype(precision)
    low, high, one = 1e-6, 1e-4, np.dtype(precision).type(1)
    starts = [rng.uniform(low, high, shape).astype(precision) for _ in range(2)]
    count = {"sgd": 0, "momentum": 1, "adam": 2}[kind]
    moments = [rng.uniform(0.5, 1, (2, *shape)).astype(precision) for _ in range(count)]
    numbers = np.array(
        (3e-6, 1.5, 0.1, 0.001, 2.0, 5.0, 1e-10, low, high) if kind == "adam" else (4e-6, 0.6, low, high),
        precision,
    )
    together, apart = [x.copy() for x in starts], [x.copy() for x in starts]
    theirs, ours = [x.copy() for x in moments], [x.copy() for x in moments]
    both = tuple(half for x in ours for half in x) or (np.empty((0, 0), precision),) * 2
    for first, last in ((0, 5), (5, 12)):
        step = adam_pairs if kind == "adam" else sgd_pairs
        step(first, last, left, right, product, word, bit, *together, both, numbers)
        for half, sign in ((0, one), (1, -one)):
            given = first, last, left, right, product, sign, word, bit, apart[half]
            if kind == "adam":
                adam_rows(*given, theirs[0][half], theirs[1][half], numbers)
            else:
                sgd_rows(*given, theirs[0][half] if theirs else np.empty((0, 0), precision), numbers)
    eps = np.finfo(precision).eps
    for a, b, start in zip(together, apart, starts, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * eps * high)
        assert not np.array_equal(a, start)
    assert not np.allclose(together[0] - starts[0], together[1] - starts[1], rtol=1e-2)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rank", [4, 6, 0])
@pytest.mark.parametrize("size", [9, 31])
def test_steps_of_adam(size: int, rank: int, precision: str) -> None:
    rng = np.random.default_rng(rank)
    shape = (7, size)
    g = rng.uniform(1e-6, 1e-4, shape).astype(precision)
    low, high, window, rate = 1e-6, 1e-4, 30.0, 3e-6
    m, v = (np.zeros(shape, precision) for _ in range(2))
    textbook_m, textbook_v, textbook_g = (x.astype(float) for x in (m, v, g))
    kind = np.dtype(precision).type
    for t in range(1, 5):
        left = rng.normal(size=(rank or 5, shape[0])).astype(precision)
        right = rng.normal(size=(rank or 5, shape[1])).astype(precision)
        bit, word = (rng.normal(size=size).astype(precision) for size in (shape[1], shape[0]))
        product = np.empty((0, 0), precision) if rank else left.T @ right
        slope = window * (bit[None] + word[:, None].astype(float) + left.T.astype(float) @ right)
        textbook_m = 0.9 * textbook_m + 0.1 * slope
        textbook_v = 0.999 * textbook_v + 0.001 * slope**2
        step = (textbook_m / (1 - 0.9**t)) / (np.sqrt(textbook_v / (1 - 0.999**t)) + 1e-10)
        textbook_g = np.clip(textbook_g - rate * step, low, high)
        numbers = (rate, window, 1 - 0.9, 1 - 0.999, 1 / (1 - 0.9**t), 1 / (1 - 0.999**t), 1e-10, low, high)
        adam_rows(  # type: ignore[call-arg]
            0, 7, left, right, product, kind(-1), word, bit, g, m, v, np.array(numbers, precision)
        )
    tight = precision == "float64"
    np.testing.assert_allclose(g, textbook_g, rtol=1e-12 if tight else 2e-5)
    np.testing.assert_allclose(m, textbook_m, rtol=0, atol=(1e-13 if tight else 1e-4) * window)
