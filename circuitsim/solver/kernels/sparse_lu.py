"""Sparse LU of circuit matrices: planned once per pattern, refactored for every sample.

With ``p = plan.row_perm`` and ``q = plan.col_perm`` the factors satisfy

    A[p[k], q[l]] = sum_m L[k, m] U[m, l],      L unit lower, U upper triangular.

``analyse`` matches rows to columns, peels singletons, orders the core by minimum degree and factors
once with threshold pivoting. ``refactor`` then repeats the arithmetic on the recorded pattern. When a
recorded pivot no longer suits the values it says so, and ``repivot`` makes a plan and factors of the
same types for that sample:

    lu = new_factors(plan)
    if refactor(plan, values, lu, work) != OK:
        status, column, row, plan, lu = repivot(plan, values)
    solve(plan, lu, b, x, work)

Pivot choice. Entries are compared within one column only, since the rows of an MNA matrix carry
different units (a branch row holds +-1, a node row siemens down to 1e-12). The planned diagonal is
kept while it is at least ``DIAGONAL_PREFERENCE`` of the largest candidate. Singletons are pivots
whatever their size: they update nothing, so they cannot amplify an error. A column is singular when
every candidate is nothing but rounding of the terms that cancelled in it, a test that no scaling of
rows or columns changes.

All kernels are nopython, keep no global state, raise nothing and may run inside ``prange`` with one
``work`` array per thread. ``work`` need not be cleared. The inner loops index with uint64: numba then
leaves out its test for negative indices, which halves the time of a solve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuitsim.solver.kernels.compiling import strict
from circuitsim.solver.kernels.ordering import match_rows, minimum_degree, peel_singletons, transpose_pattern

__all__ = [
    "NON_FINITE",
    "OK",
    "REPIVOT",
    "SINGULAR_PATTERN",
    "SINGULAR_VALUES",
    "Analysis",
    "LUFactors",
    "LUPlan",
    "analyse",
    "new_factors",
    "refactor",
    "refine",
    "repivot",
    "solve",
    "solve_many",
    "solve_transposed",
]

OK = 0
REPIVOT = 1  # a recorded pivot is too small for these values
SINGULAR_PATTERN = 2  # no values can make the matrix regular
SINGULAR_VALUES = 3  # these values make it singular to rounding
NON_FINITE = 4  # a value is not finite, or overflowed

DIAGONAL_PREFERENCE = 1e-3
CANCELLED = 1e-14  # an entry this far below the terms summed in it is rounding; n EPSILON if that is more
EPSILON = 2.220446049250313e-16
GROWTH_FLOOR = 1e-10  # refactor: least |pivot| over the sum of candidates in its column


class LUPlan(NamedTuple):
    """Pattern and pivots of one factorisation; every array is int64 but the two floors.

    The matrix is kept with its rows and columns in pivot order: step k eliminates column
    ``col_perm[k]`` with row ``row_perm[k]``.
    """

    row_perm: np.ndarray  # (n,)
    col_perm: np.ndarray  # (n,)
    a_ptr: np.ndarray  # (n + 1,) entries of A in column k
    a_row: np.ndarray  # (nnz A,) pivot position of the entry's row
    a_src: np.ndarray  # (nnz A,) where in ``values`` the entry stands
    l_ptr: np.ndarray  # (n + 1,)
    l_row: np.ndarray  # (nnz L,) rows below the diagonal, ascending within a column
    u_ptr: np.ndarray  # (n + 1,)
    u_row: np.ndarray  # (nnz U,) rows above the diagonal, ascending within a column
    run: np.ndarray  # (n,) how many columns from k on share the pattern of L below them
    growth_floor: np.ndarray  # (n,) float64, 0 for a pivot that must be kept whatever its size
    cancel_floor: np.ndarray  # (n,) float64


class LUFactors(NamedTuple):
    """Values of L and U (strict parts, in the order of the plan) and 1 / diag(U), all float64."""

    lower: np.ndarray  # (nnz L,)
    upper: np.ndarray  # (nnz U,)
    inverse: np.ndarray  # (n,)


class Analysis(NamedTuple):
    """Outcome of ``analyse``; ``column`` and ``row`` name the trouble when ``status`` is not OK, else -1."""

    status: int
    column: int
    row: int
    plan: LUPlan
    factors: LUFactors


def analyse(n: int, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray) -> Analysis:
    """Plan and factor the n x n matrix with sorted compressed columns.

    ``status`` is OK, SINGULAR_PATTERN (``column`` and ``row`` are left without a partner),
    SINGULAR_VALUES (``column`` depends on the others at these values; ``row`` is its planned pivot
    row) or NON_FINITE. The plan is empty unless ``status`` is OK.
    """
    ptr, row, value = np.array(indptr, np.int64), np.array(indices, np.int64), np.array(values, np.float64)
    row_of_col = match_rows(n, ptr, row, value)
    unmatched = np.flatnonzero(row_of_col < 0)
    if unmatched.size:
        spare = np.setdiff1d(np.arange(n), row_of_col)
        return Analysis(SINGULAR_PATTERN, int(unmatched[0]), int(spare[0]), *_nothing())
    found = repivot(_ordered(n, ptr, row, row_of_col), value)
    plan = found[3]
    if found[0] == OK and np.any(row_of_col[plan.col_perm] != plan.row_perm):
        # Pivots left the planned diagonal, so the order was made for another pattern: order again for
        # the rows that were chosen, and keep whichever fills less.
        row_of_col[plan.col_perm] = plan.row_perm
        again = repivot(_ordered(n, ptr, row, row_of_col), value)
        if again[0] == OK and again[3].l_row.size + again[3].u_row.size < plan.l_row.size + plan.u_row.size:
            found = again
    return Analysis(*found)


def _ordered(n: int, indptr: np.ndarray, indices: np.ndarray, row_of_col: np.ndarray) -> LUPlan:
    """A plan with the matched rows on the diagonal and columns ordered, but no factors' pattern yet."""
    ptr, row, _source = _permuted(n, indptr, indices, row_of_col, np.arange(n))
    order, peeled = peel_singletons(n, ptr, row)
    order[peeled:] = order[peeled:][minimum_degree(n - peeled, *_core(n, ptr, row, order, peeled))]
    rows = row_of_col[order]
    a_ptr, a_row, a_src = _permuted(n, indptr, indices, rows, order)
    none, floor = np.empty(0, np.int64), np.where(np.arange(n) < peeled, 0.0, GROWTH_FLOOR)
    return LUPlan(rows, order, a_ptr, a_row, a_src, none, none, none, none, none, floor, np.empty(0))


@strict
def new_factors(plan: LUPlan) -> LUFactors:
    """Room for the factors of one sample."""
    return LUFactors(np.zeros(plan.l_row.size), np.zeros(plan.u_row.size), np.zeros(plan.row_perm.size))


@strict
def refactor(plan: LUPlan, values: np.ndarray, factors: LUFactors, work: np.ndarray) -> int:
    """Factor new ``values`` (nnz,) with the plan's pattern and pivots; ``work`` is (n,) or longer.

    Column k solves L x = A[:, k] by columns:  x[i] -= L[i, j] x[j]  for j ascending. Columns of L
    with equal patterns are applied four at a time, which reads the row numbers once, and not at all
    where the rows are consecutive. Returns OK, or REPIVOT at the first pivot that is below
    ``growth_floor`` of the candidates in its column or ``cancel_floor`` of the U above it (which lies
    well under the ratio met when the plan was made), or not finite; the factors are then unusable.
    """
    l_ptr, l_row, u_ptr, u_row, run = plan.l_ptr, plan.l_row, plan.u_ptr, plan.u_row, plan.run
    a_ptr, a_row, a_src = plan.a_ptr, plan.a_row, plan.a_src
    lower, upper, inverse = factors.lower, factors.upper, factors.inverse
    n = plan.row_perm.size
    for k in range(n):
        work[k] = 0.0
    for k in range(n):
        for p in range(a_ptr[k], a_ptr[k + 1]):
            work[a_row[p]] = values[a_src[p]]
        p = u_ptr[k]
        end = u_ptr[k + 1]
        above = 0.0
        while p < end:
            j = u_row[p]
            if run[j] >= 4 and j + 4 <= k:
                s0, s1, s2, s3 = l_ptr[j], l_ptr[j + 1], l_ptr[j + 2], l_ptr[j + 3]
                x0 = work[j]
                x1 = work[j + 1] - lower[s0] * x0
                x2 = work[j + 2] - lower[s0 + 1] * x0 - lower[s1] * x1
                x3 = work[j + 3] - lower[s0 + 2] * x0 - lower[s1 + 1] * x1 - lower[s2] * x2
                upper[p] = x0
                upper[p + 1] = x1
                upper[p + 2] = x2
                upper[p + 3] = x3
                above += abs(x0) + abs(x1) + abs(x2) + abs(x3)
                work[j] = 0.0
                work[j + 1] = 0.0
                work[j + 2] = 0.0
                work[j + 3] = 0.0
                count = l_ptr[j + 4] - s3
                # Spelt out here: a call costs more than the loop.
                p0, p1, p2, p3 = np.uint64(s0 + 3), np.uint64(s1 + 2), np.uint64(s2 + 1), np.uint64(s3)
                if count > 0 and l_row[s3 + count - 1] - l_row[s3] == count - 1:
                    base = np.uint64(l_row[s3])
                    for t in range(np.uint64(count)):
                        work[base + t] -= (
                            lower[p0 + t] * x0 + lower[p1 + t] * x1 + lower[p2 + t] * x2 + lower[p3 + t] * x3
                        )
                else:
                    for t in range(np.uint64(count)):
                        work[np.uint64(l_row[p3 + t])] -= (
                            lower[p0 + t] * x0 + lower[p1 + t] * x1 + lower[p2 + t] * x2 + lower[p3 + t] * x3
                        )
                p += 4
            else:
                x0 = work[j]
                upper[p] = x0
                above += abs(x0)
                work[j] = 0.0
                for s in range(np.uint64(l_ptr[j]), np.uint64(l_ptr[j + 1])):
                    work[np.uint64(l_row[s])] -= lower[s] * x0
                p += 1
        pivot = work[k]
        work[k] = 0.0
        inv = 1.0 / pivot if pivot != 0.0 else 0.0
        candidates = abs(pivot)
        for s in range(np.uint64(l_ptr[k]), np.uint64(l_ptr[k + 1])):
            row = np.uint64(l_row[s])
            x = work[row]
            work[row] = 0.0
            candidates += abs(x)
            lower[s] = x * inv
        inverse[k] = inv
        # Sums rather than maxima: a NaN anywhere in the column fails the comparison.
        fit = abs(pivot) >= plan.growth_floor[k] * candidates and abs(pivot) >= plan.cancel_floor[k] * above
        if not fit or inv == 0.0 or not candidates + abs(inv) < np.inf:
            return REPIVOT
    return OK


@strict
def solve(plan: LUPlan, factors: LUFactors, b: np.ndarray, x: np.ndarray, work: np.ndarray) -> None:
    """Solve A x = b; ``b`` and ``x`` are (n,) and may be one array, ``work`` is (n,) or longer."""
    l_ptr, l_row, u_ptr, u_row = plan.l_ptr, plan.l_row, plan.u_ptr, plan.u_row
    lower, upper, inverse = factors.lower, factors.upper, factors.inverse
    n = plan.row_perm.size
    for k in range(n):
        work[k] = b[plan.row_perm[k]]
    for k in range(n):
        y = work[k]
        if y != 0.0:
            for p in range(np.uint64(l_ptr[k]), np.uint64(l_ptr[k + 1])):
                work[np.uint64(l_row[p])] -= lower[p] * y
    for k in range(n - 1, -1, -1):
        y = work[k] * inverse[k]
        x[plan.col_perm[k]] = y
        if y != 0.0:
            for p in range(np.uint64(u_ptr[k]), np.uint64(u_ptr[k + 1])):
                work[np.uint64(u_row[p])] -= upper[p] * y


@strict
def solve_transposed(
    plan: LUPlan, factors: LUFactors, b: np.ndarray, x: np.ndarray, work: np.ndarray
) -> None:
    """Solve A^T x = b with the factors of A: U^T y = Q^T b, L^T (P x) = y; arrays as in ``solve``."""
    l_ptr, l_row, u_ptr, u_row = plan.l_ptr, plan.l_row, plan.u_ptr, plan.u_row
    lower, upper, inverse = factors.lower, factors.upper, factors.inverse
    n = plan.row_perm.size
    for k in range(n):
        work[k] = b[plan.col_perm[k]]
    for k in range(n):
        y = work[k]
        for p in range(np.uint64(u_ptr[k]), np.uint64(u_ptr[k + 1])):
            y -= upper[p] * work[np.uint64(u_row[p])]
        work[k] = y * inverse[k]
    for k in range(n - 1, -1, -1):
        y = work[k]
        for p in range(np.uint64(l_ptr[k]), np.uint64(l_ptr[k + 1])):
            y -= lower[p] * work[np.uint64(l_row[p])]
        work[k] = y
        x[plan.row_perm[k]] = y


@strict
def solve_many(plan: LUPlan, factors: LUFactors, b: np.ndarray, x: np.ndarray, work: np.ndarray) -> None:
    """Solve A X = B for C-ordered blocks; ``b``, ``x`` and ``work`` are (n, m), b and x may be one."""
    l_ptr, l_row, u_ptr, u_row = plan.l_ptr, plan.l_row, plan.u_ptr, plan.u_row
    n = plan.row_perm.size
    many = b.shape[1]
    for k in range(n):
        for c in range(many):
            work[k, c] = b[plan.row_perm[k], c]
    for k in range(n):
        for p in range(l_ptr[k], l_ptr[k + 1]):
            for c in range(many):
                work[l_row[p], c] -= factors.lower[p] * work[k, c]
    for k in range(n - 1, -1, -1):
        for c in range(many):
            work[k, c] *= factors.inverse[k]
            x[plan.col_perm[k], c] = work[k, c]
        for p in range(u_ptr[k], u_ptr[k + 1]):
            for c in range(many):
                work[u_row[p], c] -= factors.upper[p] * work[k, c]


@strict
def refine(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    plan: LUPlan,
    factors: LUFactors,
    b: np.ndarray,
    x: np.ndarray,
    work: np.ndarray,
) -> float:
    """Add to ``x`` one correction d with A d = b - A x; ``work`` is (3 n,) and ``b`` is not ``x``.

    Returns the componentwise backward error of the x it was given, max |b - A x| / (|A| |x| + |b|):
    near 1e-16 for a solution as good as rounding allows, and the same under any scaling.
    """
    n = plan.row_perm.size
    residual = work[n : 2 * n]
    scale = work[2 * n : 3 * n]
    for i in range(n):
        residual[i] = b[i]
        scale[i] = abs(b[i])
    for j in range(n):
        for p in range(indptr[j], indptr[j + 1]):
            term = values[p] * x[j]
            residual[indices[p]] -= term
            scale[indices[p]] += abs(term)
    error = 0.0
    for i in range(n):
        if scale[i] > 0.0:
            error = max(error, abs(residual[i]) / scale[i])
    solve(plan, factors, residual, residual, work)
    for i in range(n):
        x[i] += residual[i]
    return error


@strict
def _nothing() -> tuple[LUPlan, LUFactors]:
    """An empty plan and factors, returned with every failure."""
    i = np.empty(0, np.int64)
    x = np.empty(0)
    return LUPlan(i, i, i, i, i, i, i, i, i, i, x, x), LUFactors(x, x, x)


@strict
def _permuted(
    n: int, indptr: np.ndarray, indices: np.ndarray, row_perm: np.ndarray, col_perm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed columns of A[row_perm, col_perm] and where each entry stood: ``(ptr, row, source)``."""
    position = np.empty(n, np.int64)
    for k in range(n):
        position[row_perm[k]] = k
    ptr = np.zeros(n + 1, np.int64)
    row = np.empty(indptr[n], np.int64)
    source = np.empty(indptr[n], np.int64)
    out = 0
    for k in range(n):
        j = col_perm[k]
        for p in range(indptr[j], indptr[j + 1]):
            row[out] = position[indices[p]]
            source[out] = p
            out += 1
        ptr[k + 1] = out
    return ptr, row, source


@strict
def _core(
    n: int, ptr: np.ndarray, row: np.ndarray, order: np.ndarray, peeled: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern ``(ptr, row)`` of the rows and columns ``order[peeled:]``, renumbered from 0."""
    place = np.empty(n, np.int64)
    for k in range(n):
        place[order[k]] = k - peeled
    core_ptr = np.zeros(n - peeled + 1, np.int64)
    core_row = np.empty(row.size, np.int64)
    out = 0
    for k in range(n - peeled):
        j = order[peeled + k]
        for p in range(ptr[j], ptr[j + 1]):
            if place[row[p]] >= 0:
                core_row[out] = place[row[p]]
                out += 1
        core_ptr[k + 1] = out
    return core_ptr, core_row[:out].copy()


@strict
def _grown_index(array: np.ndarray, need: int) -> np.ndarray:
    """The array, or a copy with room for at least ``need`` entries."""
    if need <= array.size:
        return array
    grown = np.empty(max(need, 2 * array.size), np.int64)
    for k in range(array.size):
        grown[k] = array[k]
    return grown


@strict
def _grown_value(array: np.ndarray, need: int) -> np.ndarray:
    """``_grown_index`` for float64."""
    if need <= array.size:
        return array
    grown = np.empty(max(need, 2 * array.size))
    for k in range(array.size):
        grown[k] = array[k]
    return grown


@strict
def _sorted_columns(
    n: int, ptr: np.ndarray, row: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of compressed columns with the rows ascending in each column."""
    t_ptr, t_col = transpose_pattern(n, ptr, row)
    fill = t_ptr[:n].copy()
    t_val = np.empty(t_col.size)
    for j in range(n):
        for p in range(ptr[j], ptr[j + 1]):
            t_val[fill[row[p]]] = value[p]
            fill[row[p]] += 1
    fill = ptr[:n].copy()
    out_row = np.empty(t_col.size, np.int64)
    out_val = np.empty(t_col.size)
    for i in range(n):
        for p in range(t_ptr[i], t_ptr[i + 1]):
            j = t_col[p]
            out_row[fill[j]] = i
            out_val[fill[j]] = t_val[p]
            fill[j] += 1
    return out_row, out_val


@strict
def repivot(plan: LUPlan, values: np.ndarray) -> tuple[int, int, int, LUPlan, LUFactors]:
    """Factor with fresh row pivots in the plan's column order: ``(status, column, row, plan, factors)``.

    The new plan serves this pattern like any other, so a caller may go on with it. When ``status`` is
    not OK, ``column`` and ``row`` name the column of A that failed and its planned row, and the plan
    returned is empty. Allocates, and takes several times as long as ``refactor``.

    Column k of the permuted matrix solves L x = A[:, k] over the rows reachable from its pattern in
    the graph of L (left-looking, after Gilbert and Peierls); structure is kept whatever the numbers do.
    """
    row_perm, col_perm = plan.row_perm, plan.col_perm
    a_ptr, a_row, a_src = plan.a_ptr, plan.a_row, plan.a_src
    n = row_perm.size
    cancelled = max(CANCELLED, EPSILON * n)
    l_ptr = np.zeros(n + 1, np.int64)
    u_ptr = np.zeros(n + 1, np.int64)
    l_row = np.empty(4 * a_row.size + n + 1, np.int64)
    u_row = np.empty(4 * a_row.size + n + 1, np.int64)
    l_val = np.empty(l_row.size)
    u_val = np.empty(u_row.size)
    inverse = np.empty(n)
    growth_floor = np.full(n, GROWTH_FLOOR)
    cancel_floor = np.full(n, cancelled)
    step_of_row = np.full(n, -1, np.int64)
    row_of_step = np.empty(n, np.int64)
    planned_row = np.arange(n)
    planned_col = np.arange(n)
    walk_end = np.full(n, -1, np.int64)  # of a pruned column: rows before this one suffice for reach
    seen = np.full(n, -1, np.int64)
    path = np.empty(n, np.int64)
    cursor = np.empty(n, np.int64)
    reach = np.empty(n, np.int64)  # steps that update the column; topological from ``top`` on
    below = np.empty(n, np.int64)  # candidate rows
    x = np.zeros(n)
    terms = np.zeros(n)  # sum of the magnitudes added into x
    for k in range(n):
        forced = plan.growth_floor[k] == 0.0  # a singleton
        top = n
        n_below = 0
        for q in range(a_ptr[k], a_ptr[k + 1]):
            root = a_row[q]
            if seen[root] == k:
                continue
            seen[root] = k
            if step_of_row[root] < 0:
                below[n_below] = root
                n_below += 1
                continue
            depth = 0
            path[0] = step_of_row[root]
            cursor[0] = l_ptr[path[0]]
            while depth >= 0:
                j = path[depth]
                end = walk_end[j] if walk_end[j] >= 0 else l_ptr[j + 1]
                deeper = -1
                p = cursor[depth]
                while p < end and deeper < 0:
                    i = l_row[p]
                    p += 1
                    if seen[i] != k:
                        seen[i] = k
                        deeper = step_of_row[i]
                        if deeper < 0:
                            below[n_below] = i
                            n_below += 1
                cursor[depth] = p
                if deeper >= 0:
                    depth += 1
                    path[depth] = deeper
                    cursor[depth] = l_ptr[deeper]
                else:
                    depth -= 1
                    top -= 1
                    reach[top] = j

        for q in range(a_ptr[k], a_ptr[k + 1]):
            x[a_row[q]] = values[a_src[q]]
            terms[a_row[q]] = abs(values[a_src[q]])
        used = u_ptr[k]
        u_row = _grown_index(u_row, used + n - top)
        u_val = _grown_value(u_val, used + n - top)
        above = 0.0
        for q in range(top, n):
            j = reach[q]
            xj = x[row_of_step[j]]
            x[row_of_step[j]] = 0.0
            terms[row_of_step[j]] = 0.0
            u_row[used] = j
            u_val[used] = xj
            used += 1
            above += abs(xj)
            for p in range(l_ptr[j], l_ptr[j + 1]):
                update = l_val[p] * xj
                x[l_row[p]] -= update
                terms[l_row[p]] += abs(update)
        u_ptr[k + 1] = used

        # Choose the pivot among the rows not yet used.
        best, largest, total = -1, 0.0, 0.0
        diagonal = planned_row[k]
        diagonal_size = 0.0
        for q in range(n_below):
            i = below[q]
            magnitude = abs(x[i])
            total += magnitude
            if magnitude > cancelled * terms[i]:
                if magnitude > largest:
                    best, largest = i, magnitude
                if i == diagonal:
                    diagonal_size = magnitude
        status = OK
        if not total + above < np.inf:
            status = NON_FINITE
        elif best < 0 or 1.0 / largest == np.inf:
            status = SINGULAR_VALUES
        if status != OK:
            empty, nothing = _nothing()
            return status, col_perm[k], row_perm[diagonal], empty, nothing
        if diagonal_size >= DIAGONAL_PREFERENCE * largest or (forced and diagonal_size > 0.0):
            best = diagonal
            if forced:
                growth_floor[k] = 0.0
        else:
            # The displaced diagonal row becomes the preference of the column that lost its own.
            loser = planned_col[best]
            planned_row[loser] = diagonal
            planned_col[diagonal] = loser
        pivot = x[best]
        inverse[k] = 1.0 / pivot
        if above > 0.0:
            cancel_floor[k] = min(cancelled, 1e-3 * abs(pivot) / above)
        row_of_step[k] = best
        step_of_row[best] = k
        used = l_ptr[k]
        l_row = _grown_index(l_row, used + n_below)
        l_val = _grown_value(l_val, used + n_below)
        for q in range(n_below):
            i = below[q]
            if i != best:
                l_row[used] = i
                l_val[used] = x[i] * inverse[k]
                used += 1
            x[i] = 0.0
            terms[i] = 0.0
        l_ptr[k + 1] = used

        # Prune: once L[best, j] and U[j, k] are both present, what column j reaches below the pivot
        # is in column k as well, so a walk need look only at the rows of j pivoted by now.
        for p in range(u_ptr[k], u_ptr[k + 1]):
            j = u_row[p]
            if walk_end[j] >= 0:
                continue
            found = False
            for s in range(l_ptr[j], l_ptr[j + 1]):
                if l_row[s] == best:
                    found = True
                    break
            if found:
                front, back = l_ptr[j], l_ptr[j + 1]
                while front < back:
                    if step_of_row[l_row[front]] >= 0:
                        front += 1
                    else:
                        back -= 1
                        l_row[front], l_row[back] = l_row[back], l_row[front]
                        l_val[front], l_val[back] = l_val[back], l_val[front]
                walk_end[j] = front

    for p in range(l_ptr[n]):
        l_row[p] = step_of_row[l_row[p]]
    final_a_row = np.empty_like(a_row)
    for p in range(a_row.size):
        final_a_row[p] = step_of_row[a_row[p]]
    l_row, l_val = _sorted_columns(n, l_ptr, l_row, l_val)
    u_row, u_val = _sorted_columns(n, u_ptr, u_row, u_val)
    final = LUPlan(
        row_perm[row_of_step],
        col_perm.copy(),
        a_ptr.copy(),
        final_a_row,
        a_src.copy(),
        l_ptr,
        l_row,
        u_ptr,
        u_row,
        _runs(n, l_ptr, l_row),
        growth_floor,
        cancel_floor,
    )
    return OK, -1, -1, final, LUFactors(l_val, u_val, inverse)


@strict
def _runs(n: int, l_ptr: np.ndarray, l_row: np.ndarray) -> np.ndarray:
    """For each column of L, how many columns from it on differ only by their leading rows."""
    run = np.ones(n, np.int64)
    for k in range(n - 2, -1, -1):
        first, second = l_ptr[k], l_ptr[k + 1]
        count = second - first
        if count > 0 and l_row[first] == k + 1 and l_ptr[k + 2] - second == count - 1:
            same = True
            for t in range(count - 1):
                if l_row[first + 1 + t] != l_row[second + t]:
                    same = False
                    break
            if same:
                run[k] = run[k + 1] + 1
    return run
