"""Element equations in plain NumPy: the definition, and the twin that the kernels are tested against.

Sources: the diode follows ngspice's junction model (section 7 of its manual): Shockley above
``-3 * N*Vt``, a cubic reverse branch below it, an exponential one below the breakdown voltage, a
parallel conductance everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.netlist.tables import FloatArray

__all__ = [
    "BOLTZMANN",
    "CHARGE",
    "DIODE_CHARGE",
    "DIODE_CURRENT",
    "buffer_gain",
    "buffer_voltage",
    "diode_charge",
    "diode_conductance",
    "diode_current",
    "ideal_diode_conductance",
    "ideal_diode_current",
    "softmax",
    "softmax_conductance",
    "thermal_voltage",
]

BOLTZMANN = 1.38064852e-23
"""Boltzmann's constant as ngspice has it [J/K]; CODATA 2018 differs by 3e-7."""
CHARGE = 1.6021766208e-19
"""Elementary charge as ngspice has it [C]."""

DIODE_CURRENT = (
    "saturation_current",
    "slope_voltage",
    "parallel_conductance",
    "breakdown_voltage",
    "breakdown_slope",
)
"""Columns of the diode table that its current depends on."""
DIODE_CHARGE = (
    "saturation_current",
    "slope_voltage",
    "breakdown_voltage",
    "breakdown_slope",
    "junction_capacitance",
    "junction_potential",
    "grading",
    "depletion_limit",
    "transit_time",
)
"""Columns that its charge depends on."""

_LARGEST_EXPONENT = 200.0


def thermal_voltage(celsius: float = 27.0) -> float:
    """Return kT/q [V]; 25.85 mV at SPICE's default of 27 C."""
    return BOLTZMANN * (celsius + 273.15) / CHARGE


def diode_current(
    v: ArrayLike,
    saturation_current: ArrayLike,
    slope_voltage: ArrayLike,
    parallel_conductance: ArrayLike,
    breakdown_voltage: ArrayLike = np.inf,
    breakdown_slope: ArrayLike = 1.0,
) -> FloatArray:
    """Return the current from anode to cathode [A] at drop ``v`` [V]."""
    junction, _ = _junction(v, saturation_current, slope_voltage, breakdown_voltage, breakdown_slope)
    return junction + np.asarray(parallel_conductance) * np.asarray(v)


def diode_conductance(
    v: ArrayLike,
    saturation_current: ArrayLike,
    slope_voltage: ArrayLike,
    parallel_conductance: ArrayLike,
    breakdown_voltage: ArrayLike = np.inf,
    breakdown_slope: ArrayLike = 1.0,
) -> FloatArray:
    """Return the small-signal conductance [S] at drop ``v`` [V]."""
    _, slope = _junction(v, saturation_current, slope_voltage, breakdown_voltage, breakdown_slope)
    return slope + np.asarray(parallel_conductance)


def _junction(
    v: ArrayLike, saturation: ArrayLike, slope: ArrayLike, breakdown: ArrayLike, breakdown_slope: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return current [A] and conductance [S] without the parallel conductance."""
    v, saturation, slope, breakdown, breakdown_slope = _broadcast(
        v, saturation, slope, breakdown, breakdown_slope
    )
    x = v / slope
    exponent = np.minimum(x, _LARGEST_EXPONENT)
    growth = np.exp(exponent)
    cube = (3 / (np.e * np.minimum(x, -3))) ** 3
    # Far beyond breakdown the exponential goes on as a straight line, as it does far forward.
    depth = (-breakdown - v) / breakdown_slope
    bounded = np.clip(depth, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    avalanche = np.exp(bounded)
    regions = [x >= -3, v >= -breakdown]
    current = np.select(
        regions,
        [np.expm1(exponent) + growth * (x - exponent), -(1 + cube)],
        -avalanche * (1 + depth - bounded),
    )
    conductance = np.select(
        regions,
        [growth / slope, 3 * cube / (slope * np.minimum(x, -3))],
        avalanche / breakdown_slope,
    )
    return saturation * current, saturation * conductance


def diode_charge(
    v: ArrayLike,
    saturation_current: ArrayLike,
    slope_voltage: ArrayLike,
    breakdown_voltage: ArrayLike,
    breakdown_slope: ArrayLike,
    junction_capacitance: ArrayLike,
    junction_potential: ArrayLike,
    grading: ArrayLike,
    depletion_limit: ArrayLike,
    transit_time: ArrayLike,
) -> tuple[FloatArray, FloatArray]:
    """Return the junction's charge [C] and capacitance [F] at drop ``v`` [V].

    Depletion charge ``CJO * integral (1 - v/VJ)^-M``, continued linearly above FC * VJ, plus TT times the
    junction's current.
    """
    current, slope = _junction(v, saturation_current, slope_voltage, breakdown_voltage, breakdown_slope)
    v, cjo, vj, m, fc, tt = _broadcast(
        v, junction_capacitance, junction_potential, grading, depletion_limit, transit_time
    )
    knee = fc * vj
    below = np.minimum(v, knee)
    argument = 1 - below / vj
    charge = cjo * vj * (1 - argument ** (1 - m)) / (1 - m)
    capacitance = cjo * argument**-m
    # Above the knee: c(v) = CJO (1-FC)^-(1+M) (1 - FC (1+M) + M v/VJ).
    f2 = (1 - fc) ** (1 + m)
    f3 = 1 - fc * (1 + m)
    over = v - below
    charge = charge + cjo / f2 * (f3 * over + m / (2 * vj) * (v * v - below * below))
    capacitance = np.where(over > 0, cjo / f2 * (f3 + m * v / vj), capacitance)
    return charge + tt * current, capacitance + tt * slope


def ideal_diode_current(v: ArrayLike, conductance: ArrayLike) -> FloatArray:
    """Return the current [A] of an ideal diode at drop ``v`` [V]: ``conductance * max(v, 0)``."""
    return np.asarray(conductance) * np.maximum(v, 0.0)


def ideal_diode_conductance(v: ArrayLike, conductance: ArrayLike) -> FloatArray:
    """Return the small-signal conductance [S] of an ideal diode at drop ``v`` [V]; 0 at 0 V."""
    return np.asarray(conductance) * (np.asarray(v) > 0)


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
