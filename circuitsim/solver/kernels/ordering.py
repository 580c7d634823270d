"""Orderings for sparse LU: a zero-free diagonal, fill-free singletons, and minimum degree.

A matrix is an ``n x n`` pattern in compressed columns: ``indptr`` (n + 1,) and ``indices`` (nnz,),
both int64. Every function is a nopython kernel with no global state, so it may be called inside
``prange``; all of them also run as plain Python.
"""

from __future__ import annotations

import numpy as np

from circuitsim.solver.kernels.compiling import strict

__all__ = ["match_rows", "minimum_degree", "peel_singletons", "symmetric_pattern", "transpose_pattern"]


@strict
def match_rows(n: int, indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give every column a row of its own: ``row_of_col`` (n,), -1 where none is left.

    The result is a maximum transversal of the pattern; any -1 means structurally singular. Entries
    whose weight (nnz,), usually the value, is zero serve only where nothing else completes the
    match: a device that is off at the values in hand may conduct later. Diagonal entries are taken
    first, then the heaviest free row, then augmenting paths.
    """
    row_of_col = np.full(n, -1, np.int64)
    col_of_row = np.full(n, -1, np.int64)
    for j in range(n):
        for p in range(indptr[j], indptr[j + 1]):
            if indices[p] == j and weights[p] != 0.0:
                row_of_col[j] = j
                col_of_row[j] = j
    for j in range(n):
        if row_of_col[j] >= 0:
            continue
        best, heaviest = -1, 0.0
        for p in range(indptr[j], indptr[j + 1]):
            if col_of_row[indices[p]] < 0 and abs(weights[p]) > heaviest:
                best, heaviest = indices[p], abs(weights[p])
        if best >= 0:
            row_of_col[j] = best
            col_of_row[best] = j

    seen = np.full(n, -1, np.int64)  # the last search that reached this column
    cheap = np.empty(n, np.int64)  # entries before this one lead to no free row: rows never become free
    step = np.empty(n, np.int64)
    path = np.empty(n, np.int64)
    search = 0
    for zeros_allowed in range(2):
        for j in range(n):
            cheap[j] = indptr[j]
        for root in range(n):
            if row_of_col[root] >= 0:
                continue
            search += 1
            seen[root] = search
            step[root] = indptr[root]
            path[0] = root
            depth = 0
            while depth >= 0:
                j = path[depth]
                end = indptr[j + 1]
                free = -1
                while cheap[j] < end and free < 0:
                    p = cheap[j]
                    cheap[j] += 1
                    if col_of_row[indices[p]] < 0 and (zeros_allowed == 1 or weights[p] != 0.0):
                        free = indices[p]
                if free >= 0:
                    # Hand the rows down the path: each column takes the free one and gives up its own.
                    for d in range(depth, -1, -1):
                        j = path[d]
                        given_up = row_of_col[j]
                        row_of_col[j] = free
                        col_of_row[free] = j
                        free = given_up
                    break
                deeper = -1
                while step[j] < end and deeper < 0:
                    p = step[j]
                    step[j] += 1
                    owner = col_of_row[indices[p]]
                    if owner >= 0 and seen[owner] != search and (zeros_allowed == 1 or weights[p] != 0.0):
                        deeper = owner
                if deeper >= 0:
                    seen[deeper] = search
                    step[deeper] = indptr[deeper]
                    depth += 1
                    path[depth] = deeper
                else:
                    depth -= 1
    return row_of_col


@strict
def transpose_pattern(n: int, indptr: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(indptr, indices)`` of the transposed pattern, sorted within each column."""
    t_ptr = np.zeros(n + 1, np.int64)
    for p in range(indptr[n]):
        t_ptr[indices[p] + 1] += 1
    for i in range(n):
        t_ptr[i + 1] += t_ptr[i]
    fill = t_ptr[:n].copy()
    t_idx = np.empty(indptr[n], np.int64)
    for j in range(n):
        for p in range(indptr[j], indptr[j + 1]):
            i = indices[p]
            t_idx[fill[i]] = j
            fill[i] += 1
    return t_ptr, t_idx


@strict
def peel_singletons(n: int, indptr: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, int]:
    """Order first what costs no fill: ``(order, count)``, with ``order[:count]`` the peeled indices.

    The diagonal must be structurally non-zero. An index whose row (or column) holds only its diagonal
    among the indices still present can be eliminated at once without an update to the rest: a source
    to ground fixes its node's voltage. ``order[count:]`` keeps the core in its old sequence.
    """
    t_ptr, t_idx = transpose_pattern(n, indptr, indices)
    in_col = indptr[1:] - indptr[:-1]
    in_row = t_ptr[1:] - t_ptr[:-1]
    taken = np.zeros(n, np.bool_)
    order = np.empty(n, np.int64)
    count = 0
    for k in range(n):
        if in_col[k] == 1 or in_row[k] == 1:
            taken[k] = True
            order[count] = k
            count += 1
    done = 0
    while done < count:
        k = order[done]
        done += 1
        for p in range(indptr[k], indptr[k + 1]):
            i = indices[p]
            in_row[i] -= 1
            if in_row[i] == 1 and not taken[i]:
                taken[i] = True
                order[count] = i
                count += 1
        for p in range(t_ptr[k], t_ptr[k + 1]):
            j = t_idx[p]
            in_col[j] -= 1
            if in_col[j] == 1 and not taken[j]:
                taken[j] = True
                order[count] = j
                count += 1
    last = count
    for k in range(n):
        if not taken[k]:
            order[last] = k
            last += 1
    return order, count


@strict
def symmetric_pattern(n: int, indptr: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(indptr, indices)`` of A + A^T without its diagonal and without repeats."""
    ptr = np.zeros(n + 1, np.int64)
    for j in range(n):
        for p in range(indptr[j], indptr[j + 1]):
            if indices[p] != j:
                ptr[indices[p] + 1] += 1
                ptr[j + 1] += 1
    for j in range(n):
        ptr[j + 1] += ptr[j]
    fill = ptr[:n].copy()
    adjacent = np.empty(ptr[n], np.int64)
    for j in range(n):
        for p in range(indptr[j], indptr[j + 1]):
            i = indices[p]
            if i != j:
                adjacent[fill[i]] = j
                adjacent[fill[j]] = i
                fill[i] += 1
                fill[j] += 1
    mark = np.full(n, -1, np.int64)
    out = 0
    for j in range(n):
        begin, end = ptr[j], ptr[j + 1]
        ptr[j] = out
        for p in range(begin, end):
            i = adjacent[p]
            if mark[i] != j:
                mark[i] = j
                adjacent[out] = i
                out += 1
    ptr[n] = out
    return ptr, adjacent[:out].copy()


@strict
def _link(i: int, degree: int, head: np.ndarray, after: np.ndarray, before: np.ndarray) -> None:
    """Put i at the front of the list of its degree."""
    after[i] = head[degree]
    before[i] = -1
    if head[degree] >= 0:
        before[head[degree]] = i
    head[degree] = i


@strict
def _unlink(i: int, degree: int, head: np.ndarray, after: np.ndarray, before: np.ndarray) -> None:
    """Take i out of the list of its degree."""
    if after[i] >= 0:
        before[after[i]] = before[i]
    if before[i] >= 0:
        after[before[i]] = after[i]
    else:
        head[degree] = after[i]


@strict
def minimum_degree(n: int, indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Fill-reducing elimination order (n,) for the pattern of A + A^T.

    Minimum degree on the quotient graph. An eliminated pivot becomes an *element*: the list of the
    variables its clique joins. A variable i keeps the elements E_i and the plain neighbours A_i, and
    its degree is bounded above, after pivot p with clique L_p, by

        min(n - k,  d_i + |L_p minus i|,  |A_i minus i| + |L_p minus i| + sum_e |L_e minus L_p|)

    over e in E_i. Elements whose clique lies inside L_p are absorbed, variables left with no other
    neighbour go with the pivot, and variables with equal lists merge into one of weight ``size``.
    Rows with more than 10 sqrt(n) neighbours are ordered last, so that they cannot make it quadratic.
    The order is a postorder of the element tree, which puts columns of equal structure side by side.
    """
    start, space = symmetric_pattern(n, indptr, indices)
    used = space.size
    grown = np.empty(2 * used + 4 * n + 16, np.int64)
    for p in range(used):
        grown[p] = space[p]
    space = grown
    length = start[1:] - start[:-1]  # entries in the list of a variable or an element
    start = start[:n].copy()
    elements = np.zeros(n, np.int64)  # how many entries at the front of a variable's list are elements
    size = np.ones(n, np.int64)  # 0: gone; negative: in the clique being built
    degree = length.copy()
    parent = np.full(n, -1, np.int64)  # what absorbed an element or a variable
    is_element = np.zeros(n, np.bool_)
    mark = np.ones(n, np.int64)  # 0: a dead element
    head = np.full(n + 1, -1, np.int64)
    after = np.full(n, -1, np.int64)
    before = np.full(n, -1, np.int64)
    bucket = np.full(n, -1, np.int64)
    elimination = np.empty(n, np.int64)
    n_elements = 0
    eliminated = 0
    limit = max(16, int(10.0 * np.sqrt(n)))
    dense = np.zeros(n, np.bool_)
    for i in range(n):
        if degree[i] > limit:
            dense[i] = True
            size[i] = 0
            eliminated += 1
        else:
            _link(i, degree[i], head, after, before)

    tag = 2
    least = 0
    while eliminated < n:
        while head[least] < 0:
            least += 1
        me = head[least]
        _unlink(me, least, head, after, before)
        pivots = size[me]
        size[me] = -pivots
        is_element[me] = True
        elimination[n_elements] = me
        n_elements += 1

        # Build the clique of the pivot at the end of the space, absorbing the pivot's elements.
        need = used + length[me]
        for p in range(start[me], start[me] + elements[me]):
            need += length[space[p]]
        if need > space.size:
            grown = np.empty(2 * need, np.int64)
            for q in range(used):
                grown[q] = space[q]
            space = grown
        first = used
        clique = 0
        n_lists = elements[me]
        for number in range(n_lists + 1):
            if number < n_lists:
                e = space[start[me] + number]
                begin, end = start[e], start[e] + length[e]
                parent[e] = me
                mark[e] = 0
            else:
                begin, end = start[me] + n_lists, start[me] + length[me]
            for p in range(begin, end):
                i = space[p]
                if size[i] > 0:
                    clique += size[i]
                    size[i] = -size[i]
                    space[used] = i
                    used += 1
                    _unlink(i, degree[i], head, after, before)
        last = used

        # mark[e] - tag becomes |L_e minus L_me| for every element that touches the clique.
        for q in range(first, last):
            i = space[q]
            for p in range(start[i], start[i] + elements[i]):
                e = space[p]
                if mark[e] >= tag:
                    mark[e] += size[i]
                elif mark[e] != 0:
                    mark[e] = degree[e] + tag + size[i]

        # Shorten the lists of the clique's variables and bound their degrees.
        for q in range(first, last):
            i = space[q]
            begin = start[i]
            middle, end = begin + elements[i], begin + length[i]
            out = begin
            outside = 0
            hashed = 0
            for p in range(begin, middle):
                e = space[p]
                if mark[e] > tag:
                    outside += mark[e] - tag
                    hashed += e
                    space[out] = e
                    out += 1
                elif mark[e] != 0:
                    parent[e] = me
                    mark[e] = 0
            kept = out
            for p in range(middle, end):
                j = space[p]
                if size[j] > 0:
                    outside += size[j]
                    hashed += j
                    space[out] = j
                    out += 1
            if out == begin:
                # Nothing outside the clique: i can follow the pivot at once, with no further fill.
                parent[i] = me
                pivots -= size[i]
                clique += size[i]
                size[i] = 0
                continue
            # The list has lost me, or an element that me absorbed, so there is room to put me first.
            space[out] = space[kept]
            space[kept] = space[begin]
            space[begin] = me
            elements[i] = kept - begin + 1
            length[i] = out - begin + 1
            degree[i] = min(degree[i], outside)
            hashed %= n
            before[i] = hashed
            after[i] = bucket[hashed]
            bucket[hashed] = i
        eliminated += pivots
        tag += n + 1  # above every mark set so far

        # Merge variables with equal lists, found by hash, then compared entry by entry.
        for q in range(first, last):
            i = space[q]
            if size[i] == 0:
                continue
            i = bucket[before[i]]
            bucket[before[space[q]]] = -1
            while i >= 0 and after[i] >= 0:
                for p in range(start[i] + 1, start[i] + length[i]):
                    mark[space[p]] = tag
                previous = i
                j = after[i]
                while j >= 0:
                    same = length[j] == length[i] and elements[j] == elements[i]
                    p = start[j] + 1
                    while same and p < start[j] + length[j]:
                        same = mark[space[p]] == tag
                        p += 1
                    if same:
                        parent[j] = i
                        size[i] += size[j]
                        size[j] = 0
                        after[previous] = after[j]
                    else:
                        previous = j
                    j = after[j]
                tag += 1
                i = after[i]
        tag += 1

        used = first
        for q in range(first, last):
            i = space[q]
            if size[i] < 0:
                size[i] = -size[i]
                degree[i] = min(degree[i] + clique - size[i], n - eliminated - size[i])
                _link(i, degree[i], head, after, before)
                least = min(least, degree[i])
                space[used] = i
                used += 1
        start[me] = first
        length[me] = used - first
        degree[me] = clique
        size[me] = 0
        if used == first:
            mark[me] = 0

    return _tree_order(n, parent, is_element, dense, elimination[:n_elements])


@strict
def _tree_order(
    n: int, parent: np.ndarray, is_element: np.ndarray, dense: np.ndarray, elimination: np.ndarray
) -> np.ndarray:
    """Postorder the element tree and place every absorbed variable with its element; dense rows last."""
    child = np.full(n, -1, np.int64)
    sibling = np.full(n, -1, np.int64)
    for k in range(elimination.size - 1, -1, -1):
        e = elimination[k]
        if parent[e] >= 0:
            sibling[e] = child[parent[e]]
            child[parent[e]] = e
    rank = np.full(n, elimination.size, np.int64)
    stack = np.empty(n, np.int64)
    count = 0
    for root in elimination:
        if parent[root] >= 0:
            continue
        depth = 0
        stack[0] = root
        while depth >= 0:
            e = stack[depth]
            if child[e] >= 0:
                depth += 1
                stack[depth] = child[e]
                child[e] = sibling[child[e]]
            else:
                rank[e] = count
                count += 1
                depth -= 1
    place = np.zeros(elimination.size + 2, np.int64)
    for i in range(n):
        top = i
        while not is_element[top] and not dense[top]:
            top = parent[top]
        rank[i] = rank[top]
        walk = i
        while not is_element[walk] and not dense[walk]:  # shorten the way for those below
            parent[walk], walk = top, parent[walk]
        place[rank[i] + 1] += 1
    for k in range(elimination.size + 1):
        place[k + 1] += place[k]
    order = np.empty(n, np.int64)
    for i in range(n):
        order[place[rank[i]]] = i
        place[rank[i]] += 1
    return order
