"""Finite time: every node settles once per clock step, given what its neighbours held before it.

A step of exactly one time constant of every node, sampled and held (arXiv:2602.02281). The circuit m
and its transposed copy d step together:

    m_l(t + 1) solves  F_l(m_l; m_others(t)) = 0
    d_l(t + 1) solves  J_ll(m(t)) d_l = -sum_k J_kl(m(t))^T d_k(t) - dC/dm_l(m(t))

In a feedforward network of L layers m is exact after L steps and d after 2 L: backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable

from circuitsim.errors import NetlistError
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.dual import DualNetwork
from circuitsim.solver.layered import FreePoint, LayerChange, LayeredPlan
from circuitsim.solver.point import SolverSettings

__all__ = ["clocked_steps"]


def clocked_steps(
    plan: LayeredPlan,
    values: Values,
    inputs: FloatArray,
    output_slope: Callable[[FloatArray], FloatArray],
    steps: int,
    settings: SolverSettings,
    *,
    dual: DualNetwork | None = None,
) -> tuple[FreePoint, LayerChange]:
    """Return the circuit m and the dual voltages d after ``steps`` clock steps from zero.

    ``output_slope`` gives dC/dy (B, K) A at outputs y (B, K) V. With ``dual`` the copy has devices of its
    own.

    Raises:
        NetlistError: the network has loops, so that no number of steps is exact; or a copy that does not
            fit.
    """
    if dual is not None:
        dual.check(plan.netlist)
    if not plan.structure.feedforward or any(not bank.one_way for bank in plan.netlist.banks):
        raise NetlistError(
            "clocked steps need a feedforward network of buffered synapses",
            object=plan.netlist.title,
            remedy="Use the dyadic estimator for networks with feedback.",
        )
    if any(link.wired for link in plan.links):
        raise NetlistError(
            "clocked steps settle each node given its neighbours: wires couple the nodes of a layer",
            object=plan.netlist.title,
            remedy="Use the dyadic estimator, or ideal wires.",
        )
    return plan.clocked(values, inputs, output_slope, steps, settings, dual)
