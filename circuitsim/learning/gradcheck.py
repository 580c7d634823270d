"""Every estimator against the adjoint, and the adjoint's circuit against finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuitsim.chip import Conductances
from circuitsim.learning.adjoint import Adjoint
from circuitsim.learning.asymep import AsymEP
from circuitsim.learning.dyadic import Dyadic
from circuitsim.learning.dyadic_bp import DyadicBP
from circuitsim.learning.ep import EP
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.gradient import Gradient
from circuitsim.learning.in_the_loop import SubstratePhases
from circuitsim.learning.phases import Phases
from circuitsim.netlist import Crossbar
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream
from circuitsim.solver import OperatingPoint

__all__ = ["GradientRow", "check_gradients", "check_on_substrate", "finite_differences"]


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """One estimator at one beta on one crossbar.

    ``relative_error`` and ``cosine`` are against the adjoint over all devices, ``..._fd`` against central
    finite differences over the ``devices`` that were drawn for them or, on a substrate, along directions in
    which so many devices move at once.
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


def check_on_substrate(
    phases: SubstratePhases,
    model: Phases,
    inputs: FloatArray,
    targets: FloatArray,
    *,
    betas: Sequence[float] = (1.0, 1e-1, 1e-2),
    directions: int = 20,
    step: float = 0.2,
    seed: int = 0,
) -> list[GradientRow]:
    """Compare what is read of a substrate with the exact gradient of the circuit as designed, ``model``.

    Finite differences are the substrate's own: all devices of a crossbar are written ``step`` of their window
    up or down at random, and the other way round, and outputs are read, for each of ``directions`` such
    patterns: what a single device does is lost in the noise of reading. The model's conductances are written
    before and after.

    Raises:
        InstrumentError: the substrate is gone, or refuses.
    """
    exact = Adjoint().estimate(model, inputs, targets)
    substrate, target = phases.substrate, model.values.crossbars
    trainable = [crossbar.name for crossbar in phases.netlist.trainable]
    substrate.program({name: target[name] for name in trainable})
    forms = phases.substrate.capabilities.phases
    estimates = [exact]
    for beta in betas:
        candidates: list[Estimator] = [
            EP(beta=beta),
            AsymEP(beta=beta, centred=False),
            AsymEP(beta=beta, centred=True),
            Dyadic(beta=beta),
        ]
        estimates += [
            estimator.estimate(phases, inputs, targets)
            for estimator in candidates
            if getattr(estimator, "phase", None) in forms
        ]
    rows = []
    for crossbar in phases.netlist.trainable:
        name = crossbar.name
        along = _directions(crossbar, target, directions, step, seed)
        numeric = _read_differences(phases, target, inputs, targets, crossbar, along, step)
        for estimate in estimates:
            a = estimate.flat(name)
            rows.append(
                GradientRow(
                    estimator="adjoint (ideal circuit)" if estimate is exact else estimate.estimator,
                    beta=estimate.beta,
                    crossbar=name,
                    **_compare(a, exact.flat(name), ""),
                    **_compare(along @ a, numeric, "_fd"),
                    devices=int(np.count_nonzero(along[0])),
                )
            )
    return rows


def _read_differences(
    phases: SubstratePhases,
    target: Conductances,
    inputs: FloatArray,
    targets: FloatArray,
    crossbar: Crossbar,
    directions: FloatArray,
    step: float,
) -> FloatArray:
    """Return slopes of the cost along directions (n, devices): central differences of what is read."""
    plus, minus = target[crossbar.name]
    h = step * (crossbar.g_max - crossbar.g_min)

    def mean_cost(move: FloatArray) -> float:
        halves: list[FloatArray | None] = []
        for place, g in enumerate((plus, minus)):
            if g is None:
                halves.append(None)
                continue
            moved = g + move[place * plus.size : (place + 1) * plus.size].reshape(plus.shape)
            halves.append(moved if crossbar.mask is None else np.where(crossbar.mask, moved, 0.0))
        assert halves[0] is not None
        phases.substrate.program({crossbar.name: (halves[0], halves[1])})
        y = phases.outputs(phases.free(inputs))
        return float(np.mean(phases.cost.value(y, targets)))

    found = [(mean_cost(h * d) - mean_cost(-h * d)) / (2 * h) for d in directions]
    phases.substrate.program({crossbar.name: (plus, minus)})
    return np.array(found)


def _directions(crossbar: Crossbar, target: Conductances, count: int, step: float, seed: int) -> FloatArray:
    """Return random signs (count, devices), 0 for devices that a step would carry out of their window."""
    h = step * (crossbar.g_max - crossbar.g_min)
    g = np.concatenate([half.reshape(-1) for half in target[crossbar.name] if half is not None])
    room = (g - h >= crossbar.g_min) & (g + h <= crossbar.g_max)
    signs = stream(seed, "gradcheck", "directions", crossbar.name).integers(0, 2, (count, g.size)) * 2 - 1
    return np.where(room, signs, 0).astype(np.float64)


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
