"""Sparse LU and its orderings against dense algebra, and scipy for fill."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from hypothesis import given
from hypothesis import strategies as st
from numba import njit, prange

from circuitsim.solver.kernels import sparse_lu as lu
from circuitsim.solver.kernels.ordering import match_rows, minimum_degree, peel_singletons

seeds = st.integers(0, 2**32 - 1)


def mna(seed: int, nodes: int, low: float = -6.0, high: float = 0.0) -> sp.csc_matrix:
    """A random solvable circuit: resistors, transconductances, and V, E, F and L branches.

    Every branch but the sensed ones ends at a node of its own, so no two fix the same voltage.
    """
    rng = np.random.default_rng(seed)
    branches = int(rng.integers(0, nodes // 2 + 1))
    n = nodes + branches
    entries: dict[tuple[int, int], float] = {}

    def add(i: int, j: int, value: float) -> None:
        if i >= 0 and j >= 0:
            entries[i, j] = entries.get((i, j), 0.0) + value

    def conduct(p: int, q: int, cp: int, cq: int, g: float) -> None:
        add(p, cp, g)
        add(q, cq, g)
        add(p, cq, -g)
        add(q, cp, -g)

    for p in range(nodes):
        q = int(rng.integers(-1, p)) if p else -1
        conduct(p, q, p, q, 10.0 ** rng.uniform(low, high))
    for _ in range(nodes):
        p, q, cp, cq = (int(k) for k in rng.integers(-1, nodes, 4))
        if rng.random() < 0.7:
            conduct(p, q, p, q, 10.0 ** rng.uniform(low, high))
        else:
            conduct(p, q, cp, cq, 10.0 ** rng.uniform(low, high - 1.0))
    ends = rng.permutation(nodes)
    for k in range(branches):
        b, p, q = nodes + k, int(ends[k]), int(rng.integers(-1, nodes))
        if q in ends[:branches]:
            q = -1
        for node, sign in ((p, 1.0), (q, -1.0)):
            add(node, b, sign)
            add(b, node, sign)
        kind = rng.integers(0, 4)
        if kind == 0:  # VCVS: v_p - v_q - gain v_c = 0
            add(b, int(rng.integers(-1, nodes)), -rng.uniform(0.1, 3.0))
        elif kind == 1:  # CCCS: the branch current, times a gain, leaves another node
            add(int(rng.integers(-1, nodes)), b, rng.uniform(0.1, 3.0))
        elif kind == 2:  # inductor in a companion model
            add(b, b, -(10.0 ** rng.uniform(-3.0, 3.0)))
    rows, cols = zip(*entries, strict=True)
    matrix = sp.csc_matrix((list(entries.values()), (rows, cols)), shape=(n, n))
    matrix.sort_indices()
    return matrix


def grid(side: int, leak: float = 0.01) -> sp.csc_matrix:
    """Laplacian of a side x side grid of 1 S resistors with a leak at every node."""
    line = sp.diags_array([np.full(side - 1, -1.0)] * 2, offsets=[-1, 1])
    matrix = sp.kron(sp.eye_array(side), line) + sp.kron(line, sp.eye_array(side))
    matrix = sp.csc_matrix(matrix + sp.diags_array(leak - matrix.sum(axis=1)))
    matrix.sort_indices()
    return matrix


def parts(matrix: sp.csc_matrix) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    index = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
    return matrix.shape[0], *index, matrix.data.astype(np.float64)


def dense_lu(plan: lu.LUPlan, factors: lu.LUFactors) -> tuple[np.ndarray, np.ndarray]:
    n = plan.row_perm.size
    lower = sp.csc_matrix((factors.lower, plan.l_row, plan.l_ptr), shape=(n, n)).toarray() + np.eye(n)
    upper = sp.csc_matrix((factors.upper, plan.u_row, plan.u_ptr), shape=(n, n)).toarray()
    return lower, upper + np.diag(1.0 / factors.inverse)


def close_to_dense(matrix: sp.csc_matrix, plan: lu.LUPlan, factors: lu.LUFactors) -> None:
    """Both solves reproduce numpy's within what the condition number leaves, with tiny residuals."""
    n, indptr, indices, values = parts(matrix)
    full = matrix.toarray()
    b = np.random.default_rng(n).normal(size=n)
    x, work = np.empty(n), np.full(3 * n, np.nan)
    condition = np.linalg.cond(full)
    for a, solver in ((full, lu.solve), (full.T, lu.solve_transposed)):
        solver(plan, factors, b, x, work)
        expected = np.linalg.solve(a, b)
        assert np.abs(x - expected).max() <= 1e-13 * condition * np.abs(expected).max()
        in_place = b.copy()
        solver(plan, factors, in_place, in_place, work)
        assert np.array_equal(in_place, x)
    lu.solve(plan, factors, b, x, work)
    lu.refine(indptr, indices, values, plan, factors, b, x, work)
    assert lu.refine(indptr, indices, values, plan, factors, b, x, work) < 1e-13


@given(seeds, st.integers(1, 40))
def test_matches_dense_algebra(seed: int, nodes: int) -> None:
    matrix = mna(seed, nodes)
    if np.linalg.cond(matrix.toarray()) > 1e11:
        return
    found = lu.analyse(*parts(matrix))
    assert (found.status, found.column, found.row) == (lu.OK, -1, -1)
    lower, upper = dense_lu(found.plan, found.factors)
    permuted = matrix.toarray()[found.plan.row_perm][:, found.plan.col_perm]
    assert np.allclose(lower @ upper, permuted, rtol=1e-12, atol=1e-12 * (abs(lower) @ abs(upper)).max())
    close_to_dense(matrix, found.plan, found.factors)


@given(seeds, st.integers(1, 30))
def test_solves_wide_value_ranges(seed: int, nodes: int) -> None:
    """Leaks of 1e-12 S beside 1e3 S: refined, the answer has a tiny backward error."""
    matrix = mna(seed, nodes, -12.0, 3.0)
    n, indptr, indices, values = parts(matrix)
    found = lu.analyse(n, indptr, indices, values)
    assert found.status == lu.OK
    b = np.random.default_rng(seed).normal(size=n)
    x, work = np.empty(n), np.empty(3 * n)
    lu.solve(found.plan, found.factors, b, x, work)
    for _ in range(2):
        lu.refine(indptr, indices, values, found.plan, found.factors, b, x, work)
    assert lu.refine(indptr, indices, values, found.plan, found.factors, b, x, work) < 1e-12


@given(seeds, st.integers(2, 40))
def test_refactor_equals_a_fresh_factorisation(seed: int, nodes: int) -> None:
    matrix = mna(seed, nodes)
    found = lu.analyse(*parts(matrix))
    if found.status != lu.OK:
        return
    rng = np.random.default_rng(seed)
    matrix.data *= rng.uniform(0.9, 1.1, matrix.data.size)
    factors, work = lu.new_factors(found.plan), np.full(matrix.shape[0], np.nan)
    assert lu.refactor(found.plan, matrix.data, factors, work) == lu.OK
    lower, upper = dense_lu(found.plan, factors)
    permuted = matrix.toarray()[found.plan.row_perm][:, found.plan.col_perm]
    assert np.allclose(lower @ upper, permuted, rtol=1e-12, atol=1e-12 * (abs(lower) @ abs(upper)).max())
    status, _column, _row, plan, fresh = lu.repivot(found.plan, matrix.data)
    assert status == lu.OK
    if np.array_equal(plan.row_perm, found.plan.row_perm):
        for mine, theirs in zip(factors, fresh, strict=True):
            assert np.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
        assert all(np.array_equal(a, b) for a, b in zip(plan[:10], found.plan[:10], strict=True))


def test_dense_core_uses_every_branch_of_the_update() -> None:
    rng = np.random.default_rng(1)
    matrix = sp.csc_matrix(sp.block_diag([grid(12), rng.normal(size=(37, 37))]) + 1e-3 * sp.eye_array(181))
    matrix = sp.csc_matrix(matrix + sp.random_array((181, 181), density=0.01, rng=rng) * 1e-2)
    matrix.sort_indices()
    found = lu.analyse(*parts(matrix))
    assert found.status == lu.OK
    assert found.plan.run.max() > 30
    factors = lu.new_factors(found.plan)
    assert lu.refactor(found.plan, matrix.data, factors, np.empty(181)) == lu.OK
    close_to_dense(matrix, found.plan, factors)


def test_many_right_hand_sides_equal_single_ones() -> None:
    matrix = mna(5, 30)
    n = matrix.shape[0]
    found = lu.analyse(*parts(matrix))
    b = np.random.default_rng(2).normal(size=(n, 3))
    block, x, work = np.empty((n, 3)), np.empty(n), np.empty(n)
    lu.solve_many(found.plan, found.factors, b, block, np.empty((n, 3)))
    for c in range(3):
        lu.solve(found.plan, found.factors, b[:, c].copy(), x, work)
        assert np.allclose(block[:, c], x, rtol=1e-13, atol=0.0)


def test_a_vanished_pivot_is_repivoted() -> None:
    full = np.array([[4.0, 1.0, 2.0], [1.0, 3.0, 1.0], [2.0, 1.0, 5.0]])
    found = lu.analyse(*parts(sp.csc_matrix(full)))
    assert np.array_equal(found.plan.row_perm, found.plan.col_perm)
    np.fill_diagonal(full, 0.0)
    values = full.T.ravel().copy()
    factors, work = lu.new_factors(found.plan), np.empty(3)
    assert lu.refactor(found.plan, values, factors, work) == lu.REPIVOT
    status, column, row, plan, fresh = lu.repivot(found.plan, values)
    assert (status, column, row) == (lu.OK, -1, -1)
    x = np.empty(3)
    lu.solve(plan, fresh, np.array([1.0, 2.0, 3.0]), x, work)
    assert np.allclose(full @ x, [1.0, 2.0, 3.0], rtol=0.0, atol=1e-14)
    assert lu.refactor(plan, values, fresh, work) == lu.OK  # the new plan serves in its turn


@njit(parallel=True, cache=True, error_model="numpy")
def _solve_samples(
    plan: lu.LUPlan, values: np.ndarray, b: np.ndarray, x: np.ndarray, status: np.ndarray
) -> None:
    for s in prange(values.shape[0]):
        work = np.empty(b.shape[0])
        mine = plan
        factors = lu.new_factors(plan)
        status[s] = lu.refactor(mine, values[s], factors, work)
        if status[s] != lu.OK:
            _status, _column, _row, mine, factors = lu.repivot(plan, values[s])
        lu.solve(mine, factors, b, x[s], work)


def test_runs_inside_prange_with_its_fallback() -> None:
    matrix = sp.csc_matrix(np.random.default_rng(3).normal(size=(12, 12)) + 5.0 * np.eye(12))
    plan = lu.analyse(*parts(matrix)).plan
    values = np.repeat(matrix.data[None], 6, axis=0)
    values[2, ::13] = 0.0  # the whole diagonal
    x, status = np.empty((6, 12)), np.empty(6, np.int64)
    _solve_samples(plan, values, np.ones(12), x, status)
    assert status.tolist() == [0, 0, lu.REPIVOT, 0, 0, 0]
    for s in range(6):
        assert np.allclose(values[s].reshape(12, 12).T @ x[s], 1.0, rtol=1e-10)


def test_a_structurally_singular_matrix_names_column_and_row() -> None:
    full = np.diag([1.0, 2.0, 3.0, 4.0])
    full[1, 1] = 0.0
    full[1, 0] = 1.0  # column 1 is empty, and rows 0 and 1 have only column 0 between them
    found = lu.analyse(*parts(sp.csc_matrix(full)))
    assert found.status == lu.SINGULAR_PATTERN
    assert found.column == 1
    assert found.row in (0, 1)
    assert found.plan.row_perm.size == 0


@pytest.mark.parametrize("side", [2, 10, 60])
def test_a_floating_grid_is_singular_in_values(side: int) -> None:
    n, indptr, indices, values = parts(grid(side, leak=0.0))
    found = lu.analyse(n, indptr, indices, values)
    assert found.status == lu.SINGULAR_VALUES
    assert 0 <= found.column < n
    leaky = lu.analyse(*parts(grid(side, leak=1e-6)))
    assert leaky.status == lu.OK
    # The leaky plan meets the floating values: first the refactorisation balks, then the pivoting.
    assert lu.refactor(leaky.plan, values, leaky.factors, np.empty(n)) == lu.REPIVOT
    assert lu.repivot(leaky.plan, values)[0] == lu.SINGULAR_VALUES


def test_parallel_voltage_sources_are_singular_in_values() -> None:
    full = np.zeros((4, 4))
    full[:2, :2] = [[2.0, -1.0], [-1.0, 2.0]]
    full[0, 2:] = full[2:, 0] = 1.0
    full[1, 2:] = full[2:, 1] = -1.0
    found = lu.analyse(*parts(sp.csc_matrix(full)))
    assert found.status == lu.SINGULAR_VALUES
    assert found.column in (2, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_reported(bad: float) -> None:
    matrix = mna(11, 12)
    plan = lu.analyse(*parts(matrix)).plan
    for where in range(matrix.data.size):
        values = matrix.data.copy()
        values[where] = bad
        with np.errstate(all="ignore"):  # plain Python warns of inf - inf; compiled code does not
            assert lu.refactor(plan, values, lu.new_factors(plan), np.empty(matrix.shape[0])) == lu.REPIVOT
            assert lu.repivot(plan, values)[0] == lu.NON_FINITE
    matrix.data[0] = bad
    assert lu.analyse(*parts(matrix)).status == lu.NON_FINITE


def test_a_singleton_pivot_may_be_tiny() -> None:
    """A gain of 1e12 from a node that only a 1e-12 S leak defines: badly scaled, yet exact."""
    full = np.array([[1e-12, 0.0, 0.0], [0.0, 1e3, 1.0], [-1e12, 1.0, 0.0]])
    found = lu.analyse(*parts(sp.csc_matrix(full)))
    assert found.status == lu.OK
    x, work = np.empty(3), np.empty(3)
    assert lu.refactor(found.plan, parts(sp.csc_matrix(full))[3], found.factors, work) == lu.OK
    lu.solve(found.plan, found.factors, np.array([1e-12, 0.0, 0.0]), x, work)
    assert np.allclose(x, [1.0, 1e12, -1e15], rtol=1e-14)


def test_zero_diagonals_and_small_sizes() -> None:
    swap = sp.csc_matrix(np.array([[0.0, 2.0], [3.0, 0.0]]))
    close_to_dense(swap, *lu.analyse(*parts(swap))[3:])
    cycle = sp.csc_matrix(np.roll(np.eye(9), 1, axis=0))
    found = lu.analyse(*parts(cycle))
    assert found.plan.l_row.size == found.plan.u_row.size == 0
    close_to_dense(cycle, *found[3:])
    one = sp.csc_matrix(np.array([[0.25]]))
    close_to_dense(one, *lu.analyse(*parts(one))[3:])
    assert lu.analyse(0, np.zeros(1), np.zeros(0), np.zeros(0)).status == lu.OK


@given(seeds, st.integers(1, 60), st.floats(0.2, 4.0))
def test_orderings_are_permutations_and_the_matching_is_maximum(seed: int, n: int, per_column: float) -> None:
    rng = np.random.default_rng(seed)
    pattern = sp.csc_matrix(sp.random_array((n, n), density=min(1.0, per_column / n), rng=rng))
    pattern.data[rng.random(pattern.data.size) < 0.3] = 0.0
    pattern.sort_indices()
    _n, indptr, indices, weights = parts(pattern)
    assert np.array_equal(np.sort(minimum_degree(n, indptr, indices)), np.arange(n))
    row_of_col = match_rows(n, indptr, indices, weights)
    matched = np.flatnonzero(row_of_col >= 0)
    assert np.unique(row_of_col[matched]).size == matched.size
    assert all(row_of_col[j] in indices[indptr[j] : indptr[j + 1]] for j in matched)
    pattern.data[:] = 1.0
    assert matched.size == sp.csgraph.structural_rank(pattern)


def test_the_matching_keeps_the_diagonal_where_it_can() -> None:
    matrix = mna(3, 40)
    n, indptr, indices, values = parts(matrix)
    row_of_col = match_rows(n, indptr, indices, values)
    assert np.array_equal(match_rows(40, *parts(grid(8))[1:])[:40], np.arange(40))
    assert sorted(row_of_col) == list(range(n))


def test_grounded_sources_peel_away_without_fill() -> None:
    side = 10
    supply = sp.csc_matrix((np.ones(5), (np.arange(5) * 17, np.arange(5))), shape=(side * side, 5))
    matrix = sp.csc_matrix(sp.block_array([[grid(side), supply], [supply.T, None]]))
    matrix.sort_indices()
    n, indptr, indices, values = parts(matrix)
    row_of_col = match_rows(n, indptr, indices, values)
    matched = sp.csc_matrix(matrix[row_of_col])
    matched.sort_indices()
    order, count = peel_singletons(n, *parts(matched)[1:3])
    assert count >= 10
    assert np.array_equal(np.sort(order), np.arange(n))
    plan = lu.analyse(n, indptr, indices, values).plan
    reduced = lu.analyse(*parts(grid(side))).plan
    assert plan.l_row.size + plan.u_row.size < reduced.l_row.size + reduced.u_row.size


@pytest.mark.parametrize("kind", ["grid", "cube", "rows of a bus"])
def test_fill_is_comparable_to_scipy(kind: str) -> None:
    matrix = grid(60)
    if kind == "cube":
        line, eye = grid(12)[:12, :12], sp.eye_array(12)
        cube = sp.kron(sp.kron(line, eye), eye) + sp.kron(sp.kron(eye, line), eye)
        matrix = sp.csc_matrix(cube + sp.kron(sp.kron(eye, eye), line))
    elif kind == "rows of a bus":
        bus = sp.random_array((3600, 4), density=0.5, rng=np.random.default_rng(4)) * -1e-3
        matrix = sp.csc_matrix(sp.block_array([[matrix, bus], [bus.T, 9.0 * sp.eye_array(4)]]))
    matrix.sort_indices()
    plan = lu.analyse(*parts(matrix)).plan
    theirs = spla.splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0.001, options={"SymmetricMode": True})
    mine = plan.l_row.size + plan.u_row.size + 2 * plan.row_perm.size
    assert mine <= 1.3 * (theirs.L.nnz + theirs.U.nnz)


def _small_case() -> dict[str, list[float]]:
    """Everything the kernels give for one small circuit, as plain numbers."""
    matrix = mna(21, 9)
    n, indptr, indices, values = parts(matrix)
    found = lu.analyse(n, indptr, indices, values)
    factors, work = lu.new_factors(found.plan), np.empty(3 * n)
    assert lu.refactor(found.plan, values * 1.01, factors, work) == lu.OK
    b, x = np.arange(1.0, n + 1.0), np.empty(n)
    result = {"l": factors.lower.tolist(), "u": factors.upper.tolist()}
    result |= {
        name: getattr(found.plan, name).tolist() for name in ("row_perm", "col_perm", "l_row", "u_row")
    }
    for solver in (lu.solve, lu.solve_transposed):
        solver(found.plan, factors, b, x, work)
        result[solver.__name__] = x.tolist()
    lu.refine(indptr, indices, values * 1.01, found.plan, factors, b, x, work)
    dense = np.random.default_rng(6).normal(size=(11, 11))
    result["dense"] = lu.analyse(*parts(sp.csc_matrix(dense))).factors.inverse.tolist()
    return result


def test_plain_python_agrees_with_the_compiled_kernels() -> None:
    code = "import json, test_sparse_lu as t; print(json.dumps(t._small_case()))"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.path.dirname(__file__)},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert run.returncode == 0, run.stderr
    plain, compiled = json.loads(run.stdout), _small_case()
    assert plain.keys() == compiled.keys()
    for name, numbers in compiled.items():
        assert np.allclose(plain[name], numbers, rtol=1e-12, atol=1e-15), name
