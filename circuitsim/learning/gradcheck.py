"""Every estimator against the adjoint, and the adjoint's circuit against finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.asymep import AsymEP
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.dyadic_bp import DyadicBP
from circuitsim.learning.ep import EP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Gradient
from circuitsim.learning.phases import Phases
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream
from circuitsim.solver import OperatingPoint

__all__ = ["GradientRow", "check_gradients", "finite_differences"]


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """One estimator at one beta on one crossbar.

    ``relative_error`` and ``cosine`` are against the adjoint over all devices, ``..._fd`` against central
    finite differences over the ``devices`` that were drawn for them.
    """

    estimator: str
    beta: float | None
    crossbar: str
    relative_error: float
    cosine: float
    relative_error_fd: float
    cosine_fd: float
    devices: int


def check_gradients(
    phases: Phases,
    inputs: FloatArray,
    targets: FloatArray,
    *,
    betas: Sequence[float] = (1e-1, 1e-2, 1e-3),
    devices: int = 50,
    seed: int = 0,
) -> list[GradientRow]:
    """Compare all estimators on one batch; ``devices`` of each crossbar get finite differences."""
    free = phases.free(inputs)
    exact = Adjoint().estimate(phases, inputs, targets, free=free)
    estimators: list[Estimator] = [Adjoint()]
    for beta in betas:
        estimators += [
            EP(beta=beta),
            AsymEP(beta=beta, centred=False),
            AsymEP(beta=beta, centred=True),
            Dyadic(beta=beta),
        ]
    clocked = phases.plan.method == "layered" and phases.plan.layered.structure.feedforward
    if clocked and all(bank.one_way for bank in phases.netlist.banks):
        estimators.append(DyadicBP())
    estimates = [estimator.estimate(phases, inputs, targets, free=free) for estimator in estimators]
    rows = []
    for crossbar in phases.netlist.trainable:
        name = crossbar.name
        pick = _pick(exact, name, crossbar.mask, devices, seed)
        numeric = finite_differences(phases, inputs, targets, name, pick, free)
        for estimate in estimates:
            a = estimate.flat(name)
            rows.append(
                GradientRow(
                    estimator=estimate.estimator,
                    beta=estimate.beta,
                    crossbar=name,
                    **_compare(a, exact.flat(name), ""),
                    **_compare(a[pick], numeric, "_fd"),
                    devices=len(pick),
                )
            )
    return rows


def finite_differences(
    phases: Phases,
    inputs: FloatArray,
    targets: FloatArray,
    crossbar: str,
    devices: IntArray,
    free: OperatingPoint | None = None,
    *,
    step: float = 1e-3,
) -> FloatArray:
    """Return dC/dg [W/S] of some devices by central differences at h and 2 h, extrapolated to O(h^4).

    ``devices`` index the vector that `Gradient.flat` gives; h is ``step`` times the largest conductance.
    Where a step carries a diode across the joint of its branches at -3 N Vt, the error is O(h^2) only: a
    smaller step tells that from a wrong gradient.
    """
    g_plus, g_minus = phases.values.crossbars[crossbar]
    size = g_plus.size

    def mean_cost(device: int, step: float) -> float:
        halves = [g_plus.copy(), None if g_minus is None else g_minus.copy()]
        half = halves[device // size]
        assert half is not None
        half.reshape(-1)[device % size] += step
        crossbars = {**phases.values.crossbars, crossbar: (halves[0], halves[1])}
        shifted = replace(phases, values=replace(phases.values, crossbars=crossbars))  # type: ignore[arg-type]
        y = shifted.outputs(shifted.free(inputs, start=free))
        return float(np.mean(phases.cost.value(y, targets)))

    def slope(device: int, step: float) -> float:
        return (mean_cost(device, step) - mean_cost(device, -step)) / (2 * step)

    window = phases.netlist.crossbar(crossbar)
    scale = min(window.g_max, float(g_plus.max()))
    found = []
    for device in devices.tolist():
        h = step * scale
        found.append((4 * slope(device, h) - slope(device, 2 * h)) / 3)
    return np.array(found)


def _pick(exact: Gradient, name: str, mask: object, devices: int, seed: int) -> IntArray:
    size = len(exact.flat(name))
    allowed = np.arange(size)
    if mask is not None:
        halves = size // np.asarray(mask).size
        allowed = np.flatnonzero(np.tile(np.asarray(mask).reshape(-1), halves))
    return np.sort(stream(seed, "gradcheck", name).permutation(allowed)[:devices])


def _compare(a: FloatArray, b: FloatArray, suffix: str) -> dict[str, float]:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {
        f"relative_error{suffix}": float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-300),
        f"cosine{suffix}": float(a @ b) / size if size > 0 else 0.0,
    }
