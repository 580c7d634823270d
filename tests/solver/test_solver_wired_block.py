"""A wired crossbar as one block: its admittance, currents and gradient, against dense nodal analysis."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpreted

from circuitsim.errors import ConvergenceError
from circuitsim.netlist import Crossbar, NetlistBuilder, flatten
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import line_sweeps, wired_block
from circuitsim.solver.line_sweeps import LineSweeps
from circuitsim.solver.lines import CrossbarLines, line_currents
from circuitsim.solver.wired_block import WiredBlock

ENDS = [(drive, sense) for drive in ("first", "last") for sense in ("first", "last")]


def random_crossbar(
    seed: int, m: int, n: int, *, pair: bool = False, r_wire: float = 5.0, ends: Any = ENDS[1]
) -> Crossbar:
    """Word ports 1 to R, bit ports behind them; a mask, and resistances at the ports."""
    rng = np.random.default_rng(seed)
    words = 1 + np.arange(m)
    return Crossbar(
        name="x",
        word_pos=words,
        word_neg=words + m if pair else None,
        bit=1 + m * (2 if pair else 1) + np.arange(n),
        g_plus=10 ** rng.uniform(-5, -3, (m, n)),
        g_minus=10 ** rng.uniform(-5, -3, (m, n)) if pair else None,
        mask=rng.random((m, n)) < 0.8,
        r_wire=r_wire,
        r_driver=3.0 * r_wire,
        r_sense=0.5 * r_wire,
        drive_end=ends[0],
        sense_end=ends[1],
    )


def block_of(crossbar: Crossbar) -> WiredBlock:
    return WiredBlock(crossbar, crossbar.g_plus, crossbar.g_minus)


def ports(crossbar: Crossbar) -> int:
    return len(crossbar.lines) + len(crossbar.bit)


def dense(crossbar: Crossbar) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Y of the flat circuit by elimination of its points; ends of its devices, plus ones first.

    Returns Y (P, P) S, and what the voltages of the ports make of all nodes (nodes, P).
    """
    builder = NetlistBuilder("dense")
    names = [f"p{k}" for k in range(ports(crossbar))]
    builder.nodes(names)
    builder.crossbar(crossbar)
    flat = flatten(builder.build(check=False)).netlist
    r = flat.resistor
    matrix = np.zeros((flat.n_nodes, flat.n_nodes))
    for p, q, g in zip(r.pos, r.neg, r.conductance, strict=True):
        matrix[p, p] += g
        matrix[q, q] += g
        matrix[p, q] -= g
        matrix[q, p] -= g
    known = 1 + np.arange(len(names))
    inner = np.arange(1 + len(names), flat.n_nodes)
    response = np.zeros((flat.n_nodes, len(names)))
    response[known, np.arange(len(names))] = 1
    response[inner] = -np.linalg.solve(matrix[np.ix_(inner, inner)], matrix[np.ix_(inner, known)])
    order = np.concatenate([crossbar.lines, crossbar.bit]) - 1
    admittance = (matrix @ response)[known][np.ix_(order, order)]
    ends = np.stack([r.pos, r.neg])[:, : crossbar.devices]
    return admittance, response[:, order], ends


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.sampled_from(ENDS))
@settings(max_examples=30)
def test_the_admittance_is_that_of_the_flat_circuit(seed: int, m: int, n: int, pair: bool, ends: Any) -> None:
    crossbar = random_crossbar(seed, m, n, pair=pair, ends=ends, r_wire=10 ** (seed % 5 - 1))
    block = block_of(crossbar)
    expected, _, _ = dense(crossbar)
    # Elimination of points has the digits of the wires' conductances, not of the devices'.
    error = 1e-11 * np.abs(expected).max() + 1e-15 / crossbar.r_wire
    np.testing.assert_allclose(block.admittance, expected, rtol=0, atol=error)
    np.testing.assert_array_equal(block.admittance, block.admittance.T)
    # Loads are at least the diagonal, which is what makes a step with them a safe one.
    loads = np.concatenate([block.load_word, block.load_bit])
    assert (loads >= np.diag(expected) - error).all()
    voltage = np.random.default_rng(seed).uniform(-1, 1, (4, ports(crossbar)))
    size = len(crossbar.lines)
    word, bit = block_of(crossbar).currents(voltage[:, :size], voltage[:, size:])
    np.testing.assert_allclose(np.concatenate([word, bit], axis=1), voltage @ expected, atol=10 * error)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("pair", [False, True])
def test_the_block_is_reciprocal_and_loses_nothing(ends: Any, pair: bool) -> None:
    crossbar = random_crossbar(3, 6, 7, pair=pair, ends=ends, r_wire=40.0)
    size, count = len(crossbar.lines), ports(crossbar)
    # Each port driven alone, without the symmetric matrix: what p sends to q is what q sends to p.
    columns = np.array([np.concatenate(block_of(crossbar).currents(
        np.eye(count)[[k], :size], np.eye(count)[[k], size:]), axis=1)[0] for k in range(count)
    ])  # fmt: skip
    np.testing.assert_allclose(columns, columns.T, rtol=0, atol=1e-11 * columns.max())
    np.testing.assert_allclose(columns.sum(axis=0), 0, atol=1e-10 * columns.max())
    assert (columns - np.diag(np.diag(columns)) <= 1e-15).all()
    # Tellegen: power into the ports is what devices and wires dissipate.
    voltage = np.random.default_rng(1).uniform(-1, 1, (3, count))
    word, bit = block_of(crossbar).currents(voltage[:, :size], voltage[:, size:])
    supplied = (np.concatenate([word, bit], axis=1) * voltage).sum(axis=1)
    g = crossbar.cells(crossbar.g_plus, crossbar.g_minus)
    state = CrossbarLines(crossbar, g).solve(voltage[:, :size], voltage[:, size:])
    np.testing.assert_allclose(supplied, line_currents(crossbar, g, state).power, rtol=1e-9)


@pytest.mark.parametrize(("m", "n", "r_wire"), [(40, 30, 1.0), (70, 40, 10.0), (25, 60, 200.0)])
def test_sweeps_agree_with_conjugate_gradients(m: int, n: int, r_wire: float) -> None:
    # Large enough for several coarse functions, and for lines along which currents decay.
    crossbar = random_crossbar(5, m, n, r_wire=r_wire)
    rng = np.random.default_rng(5)
    word, bit = rng.uniform(-1, 1, (11, m)), rng.uniform(-1, 1, (11, n))
    found = block_of(crossbar).currents(word, bit, relative_tolerance=1e-12)
    g = crossbar.cells(crossbar.g_plus, None)
    lines = CrossbarLines(crossbar, g)
    for b in range(11):
        state = lines.solve(word[[b]], bit[[b]], relative_tolerance=1e-14)
        expected = line_currents(crossbar, g, state)
        for ours, one in zip(found, (expected.word, expected.bit), strict=True):
            np.testing.assert_allclose(ours[b], one[0], rtol=0, atol=1e-11 * expected.largest[0])
    together = lines.solve(word, bit, relative_tolerance=1e-12)
    currents = line_currents(crossbar, g, together)
    assert not together.status.any()
    assert (currents.residual <= 1e-11 * currents.largest).all()


def test_how_many_sweeps_it_takes() -> None:
    rng = np.random.default_rng(2)
    for size, r_wire, low, most in ((96, 1.0, 1e-5, 9), (96, 20.0, 1e-3, 25), (64, 1e-3, 1e-5, 3)):
        a = r_wire * 10 ** rng.uniform(np.log10(low), -3, (size, size))
        sweeps = LineSweeps(a, np.ones(size), np.ones(size))
        word, bit = rng.uniform(-1, 1, (8, size)), np.zeros((8, size))
        count = sweeps.currents(word, bit, relative_tolerance=1e-10, most=100)[2]
        assert (count > 0).all()
        assert (count <= most).all()


def test_what_sweeps_do_not_reach_conjugate_gradients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    crossbar = random_crossbar(6, 9, 8, pair=True, r_wire=300.0)
    expected, _, _ = dense(crossbar)
    rng = np.random.default_rng(6)
    v, s = rng.uniform(-1, 1, (2, 5, ports(crossbar)))
    gradient = block_of(crossbar).gradient(
        v[:, :18], v[:, 18:], s[:, :18], s[:, 18:], relative_tolerance=1e-12
    )
    monkeypatch.setattr(wired_block, "_MOST_SWEEPS", 1)
    block = block_of(crossbar)
    found = np.concatenate(block.currents(v[:, :18], v[:, 18:]), axis=1)
    np.testing.assert_allclose(found, v @ expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    for ours, swept in zip(
        block.gradient(v[:, :18], v[:, 18:], s[:, :18], s[:, 18:], relative_tolerance=1e-12),
        gradient,
        strict=True,
    ):
        assert ours is not None
        assert swept is not None
        np.testing.assert_allclose(ours, swept, rtol=0, atol=1e-9 * np.abs(ours).max())
    with pytest.raises(ConvergenceError, match=r"x\.r_wire: .*did not reach KCL"):
        block.currents(np.full((1, 18), np.nan), np.zeros((1, 8)))


def test_after_as_many_samples_as_ports_the_admittance_answers() -> None:
    crossbar = random_crossbar(7, 5, 4)
    block, expected = block_of(crossbar), dense(crossbar)[0]
    rng = np.random.default_rng(7)
    served = 0
    for batch in (2, 3, 4, 1, 6):
        v = rng.uniform(-1, 1, (batch, 9))
        found = np.concatenate(block.currents(v[:, :5], v[:, 5:]), axis=1)
        np.testing.assert_allclose(found, v @ expected, rtol=0, atol=1e-11 * np.abs(expected).max())
        served += batch
        assert (block._admittance is not None) == (served > 9)


def test_small_changes_start_from_the_last_currents(monkeypatch: pytest.MonkeyPatch) -> None:
    crossbar = random_crossbar(8, 30, 20, r_wire=10.0)
    expected = dense(crossbar)[0]
    monkeypatch.setattr(wired_block, "_MOST_PORTS", 0)
    block, rng = block_of(crossbar), np.random.default_rng(8)
    asked: list[float] = []
    solve = block._solve

    def watched(voltage: FloatArray, tolerance: float) -> FloatArray:
        asked.append(tolerance)
        return solve(voltage, tolerance)

    monkeypatch.setattr(block, "_solve", watched)
    v = rng.uniform(-1, 1, (3, 50))
    for step in range(24):
        # One sample stays where it is.
        v = v + 10.0 ** -(step / 4) * rng.uniform(-0.3, 0.3, v.shape) * [[1.0], [0.0], [1.0]]
        found = np.concatenate(block.currents(v[:, :30], v[:, 30:]), axis=1)
        np.testing.assert_allclose(found, v @ expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert min(asked) == 1e-11
    assert max(asked) > 1e-7
    # Now and then afresh, so that errors do not add up.
    assert asked.count(1e-11) >= 2


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("ends", ENDS)
def test_the_gradient_is_that_of_the_devices_in_the_flat_circuit(pair: bool, ends: Any) -> None:
    crossbar = random_crossbar(9, 5, 6, pair=pair, ends=ends, r_wire=60.0)
    _, response, (pos, neg) = dense(crossbar)
    rng, size = np.random.default_rng(9), len(crossbar.lines)
    v, s = rng.uniform(-1, 1, (2, 7, ports(crossbar)))
    found = block_of(crossbar).gradient(
        v[:, :size], v[:, size:], s[:, :size], s[:, size:], relative_tolerance=1e-12
    )
    drops = (response[pos] - response[neg]) @ np.stack([v, s]).swapaxes(1, 2)
    expected = (drops[0] * drops[1]).mean(axis=1)
    assert crossbar.mask is not None
    halves = [half for half in found if half is not None]
    assert len(halves) == 1 + pair
    np.testing.assert_allclose(
        np.concatenate([half[crossbar.mask] for half in halves]), expected, rtol=0, atol=1e-10
    )
    assert all(not half[~crossbar.mask].any() for half in halves)


def test_the_gradient_is_the_slope_of_the_energy() -> None:
    # s' Y v as a function of one conductance: its slope is the product of the two drops.
    crossbar = random_crossbar(10, 4, 3, pair=True, r_wire=80.0)
    rng = np.random.default_rng(10)
    v, s = rng.uniform(-1, 1, (2, 2, 11))
    halves = block_of(crossbar).gradient(v[:, :8], v[:, 8:], s[:, :8], s[:, 8:], relative_tolerance=1e-12)
    assert crossbar.mask is not None
    for name, half in zip(("g_plus", "g_minus"), halves, strict=True):
        assert half is not None
        for j, i in np.argwhere(crossbar.mask):
            energy = []
            for sign in (1, -1):
                g = getattr(crossbar, name).copy()
                step = 1e-3 * g[j, i]
                g[j, i] += sign * step
                y = block_of(replace(crossbar, **{name: g})).admittance
                energy.append(np.einsum("bp,pq,bq", s, y, v) / 2)
            slope = (energy[0] - energy[1]) / (2 * step)
            assert half[j, i] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_the_gradient_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    crossbar = random_crossbar(11, 20, 30)
    v, s = np.random.default_rng(11).uniform(-1, 1, (2, 40, 50))
    seen = []
    for parts in (1, 2):
        monkeypatch.setattr(line_sweeps, "share_batch", _in_order(reverse=parts == 2))
        seen.append(block_of(crossbar).gradient(v[:, :20], v[:, 20:], s[:, :20], s[:, 20:])[0])
    np.testing.assert_array_equal(*seen)


def _in_order(*, reverse: bool) -> Any:
    def share(rows: Any, batch: int, *, work: int, parts: int | None = None) -> None:
        edges = np.linspace(0, batch, (parts or 1) + 1).astype(int).tolist()
        slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        for part in reversed(slices) if reverse else slices:
            rows(part)

    return share


# As plain Python ---------------------------------------------------------------------------------


def interpreted_case() -> list[FloatArray]:
    crossbar = random_crossbar(12, 6, 5, pair=True, r_wire=20.0)
    v, s = np.random.default_rng(12).uniform(-1, 1, (2, 3, 17))
    block = block_of(crossbar)
    word, bit = block.currents(v[:, :12], v[:, 12:])
    plus, minus = block.gradient(v[:, :12], v[:, 12:], s[:, :12], s[:, 12:], relative_tolerance=1e-12)
    assert minus is not None
    g = crossbar.cells(crossbar.g_plus, crossbar.g_minus)
    state = CrossbarLines(crossbar, g, word_drive=np.full(12, 1e-3)).solve(v[:, :12], v[:, 12:])
    return [word, bit, plus, minus, state.word, state.bit_drop]


def test_interpreted_kernels_agree() -> None:
    case = interpreted(str(Path(__file__).resolve()), "interpreted_case")
    for found, expected in zip(case, interpreted_case(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)
