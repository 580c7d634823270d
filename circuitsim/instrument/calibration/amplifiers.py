"""Gain, offset and saturation of every amplifier of a bank from noisy readings of both its ends.

    x = xi + noise,  p = f(xi) + noise,  m = -f(xi) + noise,  f(v) = S tanh(G (v + o) / S)

Readings at either end have the same noise, so the true control voltages xi are unknowns too: one each, which
leave the normal equations before they are solved. Least squares of p on x alone would see too small a gain.
Levenberg and Marquardt's method, all amplifiers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray

__all__ = ["AmplifierFit", "fit_amplifiers"]

_REACHED = 0.4
"""Of its nominal saturation, that an output must come to before the saturation can be told."""
_WORST = 0.2
"""Relative standard error from which a saturation counts as not measured."""
_FARTHEST = 5.0
"""How many times its nominal value, or what part of it, a gain or a saturation may be."""
_LONGEST = 0.3
"""Of the nominal values, of an offset the width of the slope: what one step may be."""
_STEPS = 100
_TOLERANCE = 1e-12
_MOST_DAMPING = 1e6


@dataclass(frozen=True, kw_only=True, eq=False)
class AmplifierFit:
    """Per amplifier (n,): V/V, V and V, with standard errors; NaN where the readings cannot tell."""

    gain: FloatArray
    offset: FloatArray
    saturation: FloatArray
    gain_error: FloatArray
    offset_error: FloatArray
    saturation_error: FloatArray
    noise: float
    """Standard deviation of a reading that the residuals amount to [V]."""


def fit_amplifiers(
    x: FloatArray,
    p: FloatArray,
    m: FloatArray | None,
    good: NDArray[np.bool_],
    *,
    gain: FloatArray,
    saturation: FloatArray,
    rounding: float = 0.0,
) -> AmplifierFit:
    """Fit n amplifiers to B readings of each.

    Args:
        x: (B, n) V at the controls.
        p: (B, n) V at the outputs.
        m: (B, n) V at the inverted outputs; None where there are none.
        good: (B, n): readings that count. One at the end of the converter's range does not.
        gain: (n,) V/V nominal; must not be 0.
        saturation: (n,) V nominal; infinite where an amplifier is linear.
        rounding: standard deviation [V] of an error that alike readings have in common. It counts once, not
            once a reading: an output that has saturated is always rounded alike.
    """
    linear = ~np.isfinite(saturation)
    seen = np.where(good, np.abs(p), 0.0).max(axis=0, initial=0.0)
    free = ~linear & (seen > _REACHED * np.where(linear, 1.0, saturation))
    # Parameters: relative gain, offset, relative saturation.
    theta = np.stack([np.ones_like(gain), np.zeros_like(gain), np.ones_like(gain)])
    fitted = np.stack([np.ones_like(free), np.ones_like(free), free])
    xi = np.where(good, x, 0.0)
    weight = good.astype(np.float64)
    outputs = 1.0 if m is None else 2.0

    def model(theta: FloatArray, xi: FloatArray) -> tuple[FloatArray, ...]:
        g, o = gain * theta[0], theta[1]
        s = np.where(linear, 1.0, saturation * theta[2])
        v = xi + o
        z = g * v / s
        t = np.tanh(z)
        rise = np.where(linear, 1.0, 1 - t**2)
        f = np.where(linear, g * v, s * t)
        by_saturation = np.where(linear, 0.0, saturation * (t - z * rise))
        return f, g * rise, np.stack([gain * v * rise, g * rise, by_saturation])

    def cost(theta: FloatArray, xi: FloatArray) -> FloatArray:
        f, _, _ = model(theta, xi)
        square = (x - xi) ** 2 + (p - f) ** 2
        if m is not None:
            square = square + (m + f) ** 2
        return np.asarray((weight * square).sum(axis=0))

    def normal(theta: FloatArray, xi: FloatArray, latent: float) -> tuple[FloatArray, ...]:
        f, slope, by = model(theta, xi)
        both = (p - f) if m is None else (p - f) - (m + f)
        own = 1 + latent * outputs * slope**2
        h = np.einsum("abn,cbn->nac", by * (weight * outputs / own), by)
        r = weight * (both - latent * outputs * slope * ((x - xi) + slope * both) / own)
        g = np.einsum("abn,bn->na", by, r)
        return h, g, by, slope, both

    # A step that passes over the slope of an amplifier ends where nothing leads back.
    slope_width = np.where(
        linear, np.abs(x).max(initial=0.0), np.where(linear, 1.0, saturation) / np.abs(gain)
    )
    longest = np.stack(
        [np.full_like(gain, _LONGEST), _LONGEST * slope_width, np.full_like(gain, _LONGEST)], axis=1
    )
    # Readings of controls are taken at their word first: else true voltages far from these would make up for
    # parameters that are far off.
    for latent in (0.0, 1.0):
        damping = np.full(gain.shape, 1e-3)
        now = cost(theta, xi)
        for _ in range(_STEPS):
            h, g, by, slope, both = normal(theta, xi, latent)
            step = np.clip(_solved(h, g, fitted.T, damping), -longest, longest)
            moved = np.einsum("abn,na->bn", by, step)
            own = (1 + outputs * slope**2) * (1 + damping)
            shift = latent * ((x - xi) + slope * (both - outputs * moved)) / own
            trial_theta, trial_xi = theta + step.T, xi + np.where(good, shift, 0.0)
            for ratio in (0, 2):
                trial_theta[ratio] = np.clip(trial_theta[ratio], 1 / _FARTHEST, _FARTHEST)
            trial = cost(trial_theta, trial_xi)
            better = trial <= now
            theta = np.where(better, trial_theta, theta)
            xi = np.where(better, trial_xi, xi)
            still = ~better | (now - trial <= _TOLERANCE * now)
            now = np.where(better, trial, now)
            damping = np.where(better, np.maximum(damping / 10, 1e-12), damping * 8)
            if np.all(still & (better | (damping > _MOST_DAMPING))):
                break
    h, _, _, _, _ = normal(theta, xi, 1.0)
    freedom = np.maximum(outputs * weight.sum(axis=0) - fitted.sum(axis=0), 1.0)
    variance = now / freedom
    inverse = _inverse(h, fitted.T)
    error = np.sqrt(variance * np.maximum(np.einsum("naa->an", inverse), 0.0))
    # What moves nothing is not told at all.
    error = np.where(fitted & (np.einsum("naa->an", h) > 0), error, np.nan)
    size = np.where(linear, seen, saturation * theta[2])
    common = rounding / np.maximum(size, 1e-300)
    error[0] = np.hypot(error[0], 2 * common)
    error[2] = np.hypot(error[2], common)
    told = free & (error[2] < _WORST)
    return AmplifierFit(
        gain=gain * theta[0],
        offset=theta[1],
        saturation=np.where(told, saturation * theta[2], np.nan),
        gain_error=np.abs(gain) * error[0],
        offset_error=error[1],
        saturation_error=np.where(told, saturation * error[2], np.nan),
        noise=float(np.sqrt(np.median(variance))),
    )


def _solved(h: FloatArray, g: FloatArray, fitted: NDArray[np.bool_], damping: FloatArray) -> FloatArray:
    """Return damped steps (n, 3); those of parameters that are held are 0."""
    matrix, size = _scaled(h, fitted)
    matrix = matrix + damping[:, None, None] * np.eye(3)
    right = np.where(fitted, g, 0.0) / size
    return np.linalg.solve(matrix, right[..., None])[..., 0] / size


def _inverse(h: FloatArray, fitted: NDArray[np.bool_]) -> FloatArray:
    matrix, size = _scaled(h, fitted)
    singular = np.linalg.cond(matrix) > 1e13
    matrix = np.where(singular[:, None, None], np.eye(3), matrix)
    found = np.linalg.inv(matrix) / (size[:, :, None] * size[:, None, :])
    return np.where(singular[:, None, None], np.inf, found)


def _scaled(h: FloatArray, fitted: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return matrices (n, 3, 3) of unit diagonal, and what they were divided by (n, 3)."""
    both = fitted[:, :, None] & fitted[:, None, :]
    matrix = np.where(both, h, 0.0)
    diagonal = np.einsum("naa->na", matrix)
    size = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    matrix = matrix / (size[:, :, None] * size[:, None, :])
    return np.where(np.eye(3, dtype=bool), 1.0, matrix), size
