"""Element equations in plain NumPy: the definition, and the twin that the kernels are tested against.

Sources: the diode follows ngspice's junction model (section 7 of its manual): Shockley above
``-3 * N*Vt``, a cubic reverse branch below it, a parallel conductance everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.netlist.tables import FloatArray

__all__ = [
    "BOLTZMANN",
    "CHARGE",
    "buffer_gain",
    "buffer_voltage",
    "diode_conductance",
    "diode_current",
    "softmax",
    "softmax_conductance",
    "thermal_voltage",
]

BOLTZMANN = 1.38064852e-23
"""Boltzmann's constant as ngspice has it [J/K]; CODATA 2018 differs by 3e-7."""
CHARGE = 1.6021766208e-19
"""Elementary charge as ngspice has it [C]."""

_LARGEST_EXPONENT = 200.0


def thermal_voltage(celsius: float = 27.0) -> float:
    """Return kT/q [V]; 25.85 mV at SPICE's default of 27 C."""
    return BOLTZMANN * (celsius + 273.15) / CHARGE


def diode_current(v: ArrayLike, saturation: ArrayLike, slope: ArrayLike, parallel: ArrayLike) -> FloatArray:
    """Return the current from anode to cathode [A] at drop ``v`` [V]."""
    v, saturation, slope, parallel = _broadcast(v, saturation, slope, parallel)
    x = v / slope
    exponent = np.minimum(x, _LARGEST_EXPONENT)
    forward = saturation * (np.expm1(exponent) + np.exp(exponent) * (x - exponent))
    reverse = -saturation * (1 + (3 / (np.e * np.minimum(x, -3))) ** 3)
    return np.where(x >= -3, forward, reverse) + parallel * v


def diode_conductance(
    v: ArrayLike, saturation: ArrayLike, slope: ArrayLike, parallel: ArrayLike
) -> FloatArray:
    """Return the small-signal conductance [S] at drop ``v`` [V]."""
    v, saturation, slope, parallel = _broadcast(v, saturation, slope, parallel)
    x = v / slope
    forward = saturation / slope * np.exp(np.minimum(x, _LARGEST_EXPONENT))
    safe = np.minimum(x, -3)
    reverse = 3 * saturation / slope * (3 / (np.e * safe)) ** 3 / safe
    return np.where(x >= -3, forward, reverse) + parallel


def buffer_voltage(v: ArrayLike, gain: ArrayLike, saturation: ArrayLike, offset: ArrayLike) -> FloatArray:
    """Return the output [V] of a saturating amplifier at control voltage ``v`` [V].

    An infinite ``saturation`` is a linear amplifier.
    """
    v, gain, saturation, offset = _broadcast(v, gain, saturation, offset)
    linear = gain * (v + offset)
    limit = np.where(np.isinf(saturation), 1.0, saturation)
    return np.where(np.isinf(saturation), linear, limit * np.tanh(linear / limit))


def buffer_gain(v: ArrayLike, gain: ArrayLike, saturation: ArrayLike, offset: ArrayLike) -> FloatArray:
    """Return the small-signal gain of a saturating amplifier at control voltage ``v`` [V]."""
    v, gain, saturation, offset = _broadcast(v, gain, saturation, offset)
    limit = np.where(np.isinf(saturation), 1.0, saturation)
    slope = 1 - np.tanh(gain * (v + offset) / limit) ** 2
    return gain * np.where(np.isinf(saturation), 1.0, slope)


def softmax(y: ArrayLike, scale: float) -> FloatArray:
    """Return ``softmax(y / scale)`` along the last axis; ``y`` and ``scale`` in V."""
    z = np.asarray(y, dtype=np.float64) / scale
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_conductance(y: ArrayLike, scale: float) -> FloatArray:
    """Return ``d softmax(y / scale) / dy`` [1/V], shape (..., K, K); symmetric."""
    p = softmax(y, scale)
    return (p[..., None] * np.eye(p.shape[-1]) - p[..., :, None] * p[..., None, :]) / scale


def _broadcast(*arrays: ArrayLike) -> list[FloatArray]:
    return list(np.broadcast_arrays(*(np.asarray(array, dtype=np.float64) for array in arrays)))
