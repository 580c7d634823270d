"""Small-signal properties of one operating point: stability, reciprocity, symmetrisability.

The matrix is J with everything that stores no charge eliminated: ``C dv/dt = -J v`` over the nodes
that carry capacitance. Nodes that conducting ideal diodes hold do not move, and of nodes that they join
one stands for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.netlist.validate import connected_parts
from circuitsim.solver.general import GeneralPlan
from circuitsim.solver.solve import Plan

__all__ = ["SmallSignal", "metric_of", "small_signal"]

LARGEST = 2000
"""Most unknowns for which the dense analysis is done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SmallSignal:
    """The reduced matrix J (n, n) S and what follows from it."""

    matrix: FloatArray
    nodes: IntArray
    """Nodes that the rows belong to; -1 for the current of an inductor."""
    largest_real: float | None
    """Largest real part of the spectrum of ``-C^-1 J`` [1/s]; negative is stable. None without C."""
    asymmetry: float
    """``||A|| / ||S||``, antisymmetric over symmetric part, Frobenius norms; 0 is reciprocal."""
    metric_asymmetry: float
    """The same of ``M^1/2 J M^-1/2`` with the best positive diagonal M."""
    symmetrisable: bool
    """Whether a positive diagonal M makes M J symmetric: then nudged phases alone are exact."""


def small_signal(
    plan: Plan, values: Values, node_voltage: FloatArray, branch_current: FloatArray | None = None
) -> SmallSignal | None:
    """Analyse one operating point, node voltages (N,) V; None where the circuit is too large, or the
    nodes without storage do not follow from the others.

    Branch currents (M,) A matter where behavioural sources sense them.
    """
    general = plan.general
    if general.n_unknowns > LARGEST:
        return None
    j = general.small_signal(values, node_voltage, branch_current)
    c = general.dense(general.storage(values)[0])
    dynamic = np.abs(c).sum(axis=1) > 0
    has_capacitance = bool(dynamic.any())
    if not has_capacitance:
        dynamic = general.is_node & ~_driven(general.n_unknowns, j, general.is_node)
        if not dynamic.any():
            dynamic = general.is_node.copy()
    held, joined = _tied(general, node_voltage)
    if (dynamic & ~held).any():
        dynamic &= ~held
    try:
        reduced = _reduced(j, dynamic)
        alone = dynamic & ~joined
        apart = reduced if not joined.any() or not alone.any() else _reduced(j, alone)
    except np.linalg.LinAlgError:
        return None
    largest = None
    if has_capacitance:
        try:
            rates = np.linalg.eigvals(-np.linalg.solve(c[np.ix_(dynamic, dynamic)], reduced))
            largest = float(rates.real.max())
        except np.linalg.LinAlgError:
            largest = None
    if apart is not reduced:
        dynamic, reduced = alone, apart
    symmetrisable, metric = metric_of(reduced)
    root = np.sqrt(metric)
    weighted = reduced * root[:, None] / root[None, :]
    return SmallSignal(
        matrix=reduced,
        nodes=np.concatenate([general.free_nodes, np.full(len(general.free_branches), -1)])[dynamic],
        largest_real=largest,
        asymmetry=_ratio(reduced),
        metric_asymmetry=min(_ratio(weighted), _ratio(reduced)),
        symmetrisable=symmetrisable,
    )


def _reduced(j: FloatArray, kept: np.ndarray) -> FloatArray:
    """Return the matrix of the unknowns kept, the others following from them."""
    rest = ~kept
    reduced = j[np.ix_(kept, kept)]
    if rest.any():
        inner = np.linalg.solve(j[np.ix_(rest, rest)], j[np.ix_(rest, kept)])
        reduced = reduced - j[np.ix_(kept, rest)] @ inner
    return reduced


def _tied(general: GeneralPlan, v: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """Return which unknowns ideal diodes tie to known nodes, and which to those or to an earlier unknown.

    Their conductance beside the rest would hide every asymmetry.
    """
    z = general.netlist.ideal_diode
    on = v[z.pos] > v[z.neg]
    # Known nodes count as one, in front of the unknowns.
    ends = (general.node_unknown[nodes[on]] + 1 for nodes in (z.pos, z.neg))
    part = connected_parts(general.n_unknowns + 1, *ends)[1:]
    return part == 0, part != np.arange(1, len(part) + 1)


def metric_of(matrix: FloatArray, tolerance: float = 1e-9) -> tuple[bool, FloatArray]:
    """Return whether a positive diagonal M makes ``M matrix`` symmetric, and the best M (n,).

    The products J_ij J_ji do not change under ``M^1/2 J M^-1/2``, so the least asymmetric form is the one
    of least Frobenius norm: balancing (Osborne 1960) over the pairs that couple both ways, started from
    ``m_i J_ij = m_j J_ji`` along a spanning tree, which is exact where M exists.
    """
    n = len(matrix)
    off = np.abs(matrix - np.diag(np.diag(matrix)))
    floor = tolerance * off.max() if n > 1 else 0.0
    both = (np.minimum(off, off.T) > floor) & (matrix * matrix.T > 0)
    metric = np.ones(n)
    left = np.ones(n, dtype=np.bool_)
    for root in range(n):
        if not left[root]:
            continue
        left[root] = False
        front = [root]
        while front:
            i = front.pop()
            for j in np.flatnonzero(both[i] & left):
                metric[j] = metric[i] * matrix[i, j] / matrix[j, i]
                left[j] = False
                front.append(int(j))
    weighted = metric[:, None] * matrix
    size = np.maximum(np.abs(weighted), np.abs(weighted.T))
    significant = np.maximum(off, off.T) > floor
    symmetric = np.abs(weighted - weighted.T) <= 1e3 * tolerance * size
    if np.all(symmetric | ~significant):
        return True, metric
    return False, _balanced(np.where(both, off, 0.0) ** 2)


def _balanced(square: FloatArray, sweeps: int = 50) -> FloatArray:
    """Return M (n,) that equalises the row and column sums of ``square_ij m_i / m_j``."""
    metric = np.ones(len(square))
    coupled = np.flatnonzero(square.any(axis=1))
    for _ in range(sweeps):
        before = metric.copy()
        for i in coupled:
            row = metric[i] * (square[i] / metric).sum()
            column = (square[:, i] * metric).sum() / metric[i]
            metric[i] *= np.sqrt(column / row)
        if np.allclose(metric, before, rtol=1e-9, atol=0):
            break
    return metric


def _ratio(matrix: FloatArray) -> float:
    symmetric, antisymmetric = (matrix + matrix.T) / 2, (matrix - matrix.T) / 2
    return float(np.linalg.norm(antisymmetric)) / max(float(np.linalg.norm(symmetric)), 1e-300)


def _driven(size: int, j: FloatArray, is_node: np.ndarray) -> np.ndarray:
    """Return which unknowns are nodes that a voltage-defined branch holds."""
    driven = np.zeros(size, dtype=np.bool_)
    driven[is_node] = (np.abs(j[np.ix_(is_node, ~is_node)]) > 0).any(axis=1)
    return driven
