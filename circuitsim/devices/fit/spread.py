"""Statistics over devices: spreads without the part that estimation errors make, bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray

__all__ = [
    "LEAST_DEVICES",
    "LEVEL",
    "Interval",
    "bootstrap",
    "corrected_spread",
    "signed_root",
    "student_quantile",
]

LEVEL = 0.95
"""Confidence of every interval."""
LEAST_DEVICES = 4
"""With fewer, resampling devices says nothing about devices."""

Interval = tuple[float, float]
Draws = NDArray[np.int64]
"""(R, N): R resamples of devices, as their numbers."""

_NORMAL = NormalDist()


def signed_root(value: FloatArray) -> FloatArray:
    """Return roots of variances; of what came out negative, minus the root of its size.

    A variance that is a difference can fall below 0 by chance. Cut off only after resampling: intervals
    need the whole distribution.
    """
    return np.sign(value) * np.sqrt(np.abs(value))


def corrected_spread(estimate: FloatArray, variance: FloatArray) -> FloatArray:
    """Return the standard deviation from device to device, along the last axis, as a signed root.

    ``variance`` is that of each device's estimate about the device's own value. It adds to the variance
    of the estimates and is taken off again.
    """
    return signed_root(np.var(estimate, axis=-1, ddof=1) - np.mean(variance, axis=-1))


def student_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t, to 4e-3 from 3 degrees of freedom on (Cornish and Fisher)."""
    z = _NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """Statistics of devices (Q,), their intervals, and the resamples they came from (R, Q)."""

    value: FloatArray
    intervals: list[Interval | None]
    replicates: FloatArray


def bootstrap(
    statistic: Callable[[Draws], FloatArray],
    devices: int,
    generator: np.random.Generator,
    *,
    replicates: int = 2000,
) -> Bootstrap:
    """Return statistics and their confidence intervals by resampling devices.

    Args:
        statistic: resamples (R, any number of devices) -> statistics (R, Q).
        devices: how many were measured; below ``LEAST_DEVICES`` there are no intervals.
        generator: draws the resamples.
        replicates: how many resamples.

    Intervals are bias-corrected and accelerated (Efron, JASA 82, 171, 1987), and widened for few devices
    as an interval of Student's t is (Hesterberg, Am. Stat. 69, 371, 2015).
    """
    every = np.arange(devices, dtype=np.int64)
    value = statistic(every[None, :])[0]
    if devices < LEAST_DEVICES:
        return Bootstrap(value=value, intervals=[None] * len(value), replicates=np.empty((0, len(value))))
    found = statistic(generator.integers(devices, size=(replicates, devices)))
    others = np.array([np.delete(every, k) for k in range(devices)])
    jackknife = statistic(others)
    reach = math.sqrt(devices / (devices - 1)) * student_quantile(0.5 + LEVEL / 2, devices - 1)
    intervals = [_interval(float(value[k]), found[:, k], jackknife[:, k], reach) for k in range(len(value))]
    return Bootstrap(value=value, intervals=intervals, replicates=found)


def _interval(value: float, found: FloatArray, jackknife: FloatArray, reach: float) -> Interval | None:
    found = found[np.isfinite(found)]
    if not len(found) or not math.isfinite(value):
        return None
    below = float(np.mean(found < value) + 0.5 * np.mean(found == value))
    shift = _NORMAL.inv_cdf(min(max(below, 1e-3), 1 - 1e-3))
    distance = jackknife.mean() - jackknife
    size = float(np.sum(distance**2)) ** 1.5
    acceleration = float(np.sum(distance**3)) / (6 * size) if size > 0 and math.isfinite(size) else 0.0
    ends = []
    for z in (-reach, reach):
        tilt = max(1 - acceleration * (shift + z), 0.1)
        ends.append(float(np.quantile(found, _NORMAL.cdf(shift + (shift + z) / tilt))))
    return ends[0], ends[1]
