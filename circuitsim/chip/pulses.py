"""Pulses on the devices of one array, along their own update curves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.card import UpdateCard
from circuitsim.devices.memristor import DeviceArray
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.kernels.pulses import pulse_rows

__all__ = ["conductance_step", "pulsed_half", "symmetric_point"]


def conductance_step(spec: UpdateCard, window: tuple[float, float]) -> float:
    """Return what a pulse moves a nominal device by in the middle of its window [S]."""
    return spec.step * 0.5 * (window[1] - window[0])


def pulsed_half(
    spec: UpdateCard,
    array: DeviceArray,
    g: FloatArray,
    counts: NDArray[np.int64],
    generator: np.random.Generator,
) -> FloatArray:
    """Return conductances (M, N) S after ``counts`` pulses, positive for up; stuck devices stay."""
    curves = array.update
    assert curves is not None
    low, high = array.window
    half = 0.5 * (high - low)
    w = (g - low) / half - 1
    if array.factor is not None:
        # Mismatch of the conductance itself is outside the curve.
        w = (g / np.maximum(array.factor, 1e-9) - low) / half - 1
    size = np.abs(counts).sum(axis=1)
    begin = np.concatenate([[0], np.cumsum(size)[:-1]])
    noise = spec.cycle_to_cycle
    normals = generator.standard_normal(int(size.sum())) if noise else np.empty(0)
    e = spec.exponential
    exponential = (
        np.empty(0)
        if e is None
        else np.array([e.amplitude_up, e.amplitude_down, e.rate_up, e.rate_down, e.a, e.b])
    )
    w = np.ascontiguousarray(w)
    pulse_rows(
        0,
        len(w),
        w,
        counts,
        begin,
        normals,
        curves.step_up,
        curves.step_down,
        curves.slope_up,
        curves.slope_down,
        curves.low,
        curves.high,
        exponential,
        noise,
        spec.multiplicative,
    )
    found = low + (w + 1) * half
    if array.factor is not None:
        found = found * array.factor
    return np.where(counts == 0, g, array.held(np.maximum(found, 0.0)))


def symmetric_point(spec: UpdateCard, array: DeviceArray) -> FloatArray:
    """Return the conductances (M, N) S at which a pulse up and one down undo each other.

    Found by bisection on each device's own curve; its bounds where there is no such point.
    """
    curves = array.update
    assert curves is not None
    below, above = curves.low.copy(), curves.high.copy()
    for _ in range(60):
        w = 0.5 * (below + above)
        up, down = _steps(spec, array, w)
        rises = up > down
        below, above = np.where(rises, w, below), np.where(rises, above, w)
    low, high = array.window
    g = low + (0.5 * (below + above) + 1) * 0.5 * (high - low)
    return array.held(np.maximum(g if array.factor is None else g * array.factor, 0.0))


def _steps(spec: UpdateCard, array: DeviceArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    curves = array.update
    assert curves is not None
    e = spec.exponential
    if e is not None:
        z = e.a * w + e.b
        up = np.maximum(1 - e.amplitude_up * np.exp(e.rate_up * z), 0.0)
        down = np.maximum(1 - e.amplitude_down * np.exp(-e.rate_down * z), 0.0)
    else:
        up, down = 1 - curves.slope_up * w, 1 + curves.slope_down * w
    return curves.step_up * up, curves.step_down * down
