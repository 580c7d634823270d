"""What the publications say, written down again: conductances in uS, updates in their own coordinates.

Nothing here reads a card. Formulas and numbers are those of the papers and of the fits distributed with
them (see the cards' sources).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Formula = Callable[[Array], Array]

DAY = 86400.0

# ------------------------------------------------------------------------------- conductances [uS]


def nandakumar_programming(g: Array) -> Array:
    x = g / 25.0
    return 0.26348 + 1.9650 * x - 1.1731 * x**2


def nandakumar_exponent(g: Array) -> tuple[Array, Array]:
    log = np.log(np.maximum(g / 25.0, 1e-7))
    return np.clip(-0.0155 * log + 0.0244, 0.049, 0.1), np.clip(-0.0125 * log - 0.0059, 0.008, 0.045)


def nandakumar_flicker(g: Array) -> Array:
    return g * np.minimum(0.2, 0.0088 / np.maximum(g / 25.0, 1e-7) ** 0.65)


def hermes_programming(g: Array) -> Array:
    x = g / 10.35
    return 0.15781817 + 2.32443916 * x - 2.16310839 * x**2 + 0.68841818 * x**3


def hermes_exponent(g: Array) -> tuple[Array, Array]:
    x = np.maximum(g / 10.35, 1e-7)
    low_mean = np.clip(-0.0387 * np.log(x) - 0.0182, 0.0720, 0.13)
    low_std = np.clip(-0.0120 * np.log(x) - 0.0023, 0.0124, 0.04)
    mean = np.where(x < 0.0945, low_mean, 0.0736 - 0.0126 * x - 0.0436 * x**2)
    return mean, np.where(x < 0.3039, low_std, 0.0104 + 0.0116 * x - 0.0165 * x**2)


def hermes_flicker(g: Array) -> Array:
    x = np.maximum(g / 10.35, 1e-7)
    low = np.clip(-0.0078 * np.log(x) + 0.0038, 0.0179, 0.04)
    return g * np.where(x < 0.1591, low, 0.0088 + 0.0768 * x - 0.1352 * x**2 + 0.0664 * x**3)


def joshi_programming(g: Array) -> Array:
    return 0.28638599 + 0.07585724 * g - 0.00178767 * g**2


WAN = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    DAY: (0.701, 22.086, -50.773, 47.095, -16.458),
    2 * DAY: (0.782, 20.274, -43.507, 37.062, -11.934),
}
"""Age [s] -> coefficients of x = g / 40 uS, from the constant upwards."""


def wan_spread(g: Array, age: float) -> Array:
    return sum(c * (g / 40.0) ** k for k, c in enumerate(WAN[age]))  # type: ignore[return-value]


def wan_programming(g: Array) -> Array:
    return wan_spread(g, 1.0)


def milo_programming(g: Array) -> Array:
    return 4.782321 - 0.009107 * g


def cmo_programming(g: Array) -> Array:
    return 0.0112185391 + 0.01129027418 * g


def cmo_drift(age: float) -> tuple[float, float]:
    return -0.08900206 * np.log(age), 0.41183342 + 0.04201137 * np.log(age)


def cmo_flicker(g: Array) -> Array:
    return 0.0277316483 * np.log10(g)


PROGRAMMING: dict[str, tuple[Formula, tuple[float, ...]]] = {
    "pcm-nandakumar-2019": (nandakumar_programming, (0.0, 0.5, 2.0, 5.0, 12.5, 25.0)),
    "pcm-hermes-2023": (hermes_programming, (0.0, 0.3, 1.0, 4.0, 7.0, 10.35)),
    "pcm-joshi-2020": (joshi_programming, (0.25, 2.5, 10.0, 25.0)),
    "rram-wan-2022": (wan_programming, (0.0, 4.0, 10.0, 20.0, 30.0, 40.0)),
    "rram-milo-2021": (milo_programming, (50.0, 100.0, 225.0)),
    "reram-cmo-hfox-2024": (cmo_programming, (9.0, 30.0, 88.19)),
}
"""Card -> spread of a write [uS] over conductance [uS], and conductances to look at."""

EXPONENTS = {
    # start [s], formula, conductances on both sides of every clip and joint
    "pcm-nandakumar-2019": (20.0, nandakumar_exponent, (0.05, 0.5, 2.5, 8.0, 25.0)),
    "pcm-hermes-2023": (200.0, hermes_exponent, (0.1, 0.9, 1.5, 3.0, 6.0, 10.35)),
}

FLICKER = {
    # read time [s], formula, conductances
    "pcm-nandakumar-2019": (250e-9, nandakumar_flicker, (0.1, 1.0, 5.0, 25.0)),
    "pcm-hermes-2023": (512e-9, hermes_flicker, (0.3, 1.5, 3.0, 10.35)),
    "reram-cmo-hfox-2024": (1e-6, cmo_flicker, (9.0, 40.0, 88.19)),
}

WIRE_2F = {200: 0.115, 100: 0.237, 50: 0.67, 40: 1.06, 32: 1.48, 22: 2.46, 14: 5.05}
"""Width [nm] -> ohm per segment."""

THRESHOLD = {"pelgrom-130nm-nfet": 3.9, "pelgrom-130nm-pfet": 2.2, "pelgrom-sky130-nfet": 3.356}
"""mV um, one transistor."""

# --------------------------------------------------------------------------------------- updates


@dataclass(frozen=True, kw_only=True)
class Update:
    """A published update curve in its own w: what one pulse does to a device, and how that spreads.

    ``up(w)`` and ``down(w)`` are mean sizes over devices; ``spread_up(w)``, ``spread_down(w)`` standard
    deviations of the devices' means; ``pulse`` that of single pulses over the size of the device's own step,
    or over ``noise_unit`` where that is given: the root mean square of the devices' steps in the middle.
    """

    up: Formula
    down: Formula
    spread_up: Formula
    spread_down: Formula
    pulse: float
    shift: float = 0.0
    """Their w is ours plus this."""
    noise_unit: float | None = None
    slack_up: float = 0.0
    slack_down: float = 0.0
    """Relative differences of spreads that the cards state: what they cannot restate exactly."""
    bounds: tuple[float, float] = (0.0, 0.0)
    """Spreads of the upper and the lower bound."""


def _constant(value: ArrayLike) -> Formula:
    return lambda w: np.asarray(value) * np.ones_like(w)


def _linear(dw: float, gamma_up: float, gamma_down: float, top: float, bottom: float, pulse: float) -> Update:
    """Linear steps in -bottom ... top: dw and asymmetry add up, slopes spread by 0.05."""

    def up(w: Array) -> Array:
        return dw * (1 - gamma_up * w / top)

    def down(w: Array) -> Array:
        return dw * (1 + gamma_down * w / bottom)

    def spread(size: Formula, end: float) -> Formula:
        return lambda w: np.sqrt((0.1**2 + 0.01**2) * size(w) ** 2 + (dw * 0.05 * w / end) ** 2)

    return Update(
        up=up,
        down=down,
        spread_up=spread(up, top),
        spread_down=spread(down, bottom),
        pulse=pulse,
        shift=top - 1,
        # One spread of slopes for both directions, seen from the middle of the window.
        slack_up=0.07,
        slack_down=0.07,
        bounds=(0.05 * top, 0.05 * bottom),
    )


def _soft(dw: float, spread: float, pulse: float, bounds: tuple[float, float]) -> Update:
    """Soft bounds at 1 and -1: a lognormal dw of median ``dw``."""
    mean = dw * np.exp(spread**2 / 2)
    deviation = mean * np.sqrt(np.exp(spread**2) - 1)
    # The asymmetry of 0.01 dw adds to a spread of about dw: nothing.
    return Update(
        up=lambda w: mean * (1 - w),
        down=lambda w: mean * (1 + w),
        spread_up=lambda w: deviation * (1 - w),
        spread_down=lambda w: deviation * (1 + w),
        pulse=pulse,
        # Of the device's own step, whose squares add up.
        noise_unit=float(np.hypot(mean, deviation)),
        bounds=bounds,
    )


def _es_up(w: Array) -> Array:
    return 0.00135 * np.maximum(1 + 1.18445 * np.exp(5.0 * (-0.5 * w - 0.5)), 0.0)


def _es_down(w: Array) -> Array:
    return 0.00135 * np.maximum(1 + 0.081404 * np.exp(-5.0 * (-0.5 * w - 0.5)), 0.0)


_ES_SPREAD = np.hypot(0.2, 0.05)

UPDATES = {
    "rpu-gokmen-2016": Update(
        up=_constant(0.0016),
        down=_constant(0.0016),
        spread_up=_constant(0.0016 * np.hypot(0.3, 0.01)),
        spread_down=_constant(0.0016 * np.hypot(0.3, 0.01)),
        pulse=0.3,
        bounds=(0.3, 0.3),
    ),
    "reram-es-gong-2018": Update(
        up=_es_up,
        down=lambda w: (1 - 0.259359) * _es_down(w),
        spread_up=lambda w: _ES_SPREAD * _es_up(w),
        spread_down=lambda w: _ES_SPREAD * _es_down(w),
        pulse=5.0,
        slack_down=1 - 0.156 / 0.206,
        bounds=(0.3, 0.3),
    ),
    "ecram-li-tang-2018": _linear(0.002, 0.1153, 0.5085, 1.1724, 0.8276, 0.3),
    "ecram-mo-kim-2019": _linear(2.8214e-4, 0.4152, 0.7342, 1.1714, 0.8286, 2.0),
    "reram-om-gong-2022": _soft(0.0949, 0.7829, 0.4158, (0.3499, 0.5695)),
    "reram-hfo2-gong-2022": _soft(0.4622, 0.7125, 0.2174, (0.4295, 0.5990)),
}

STUCK = {"reram-om-gong-2022": 0.1348, "reram-hfo2-gong-2022": 0.0977}
"""Fraction of corrupt devices."""

WRITE_NOISE = {
    "reram-es-gong-2018": 75 * 0.00135,
    "reram-om-gong-2022": 1.4113 * 0.0949,
    "reram-hfo2-gong-2022": 0.5841 * 0.4622,
}
"""In w."""
