"""Memristive conductances and diodes from I-V curves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.card_text import rounded, spice_text
from circuitsim.devices.fit.measurements import CurveData
from circuitsim.devices.fit.result import DeviceFit, Estimate, Panel, Series, thinned
from circuitsim.devices.fit.spread import LEAST_DEVICES, bootstrap, corrected_spread
from circuitsim.devices.least_squares import LeastSquares, least_squares
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream

__all__ = ["fit_curves"]

_LEAST_POINTS = 4
_ROUNDS = 6
"""Of weights in proportion to the fitted current."""
_CLEAR = 4.0
"""Standard errors from 0 at which a device's curve is bent beyond doubt."""

Model = Callable[[FloatArray, FloatArray], FloatArray]
"""Parameters (P,), voltages (N,) V -> currents (N,) A."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Curve:
    parameters: FloatArray
    covariance: FloatArray
    fitted: FloatArray
    """(N,) A"""
    residual: FloatArray
    """(N,): over the fitted spread."""
    likelihood: float


def fit_curves(data: CurveData, *, diode: bool = False, seed: int = 0) -> DeviceFit:
    """Return the card of devices from their I-V curves.

    Args:
        data: curves; see `CurveData`.
        diode: fit ``i = Is (exp(v / (N Vt)) - 1)`` instead of ``i = g V0 sinh(v / V0)``.
        seed: of the resamples that intervals come from.

    Each device is fitted alone by least squares. The scatter of currents is of one size, or in proportion
    to the current, whichever makes the data likelier. Spreads are those of the devices' estimates less
    what estimation errors add; of a saturation current, that of its logarithm.

    Raises:
        DeviceError: too few points, or currents that the model does not describe.
    """
    devices = [np.flatnonzero(data.device == d) for d in range(len(data.names))]
    for name, rows in zip(data.names, devices, strict=True):
        used = rows[data.voltage[rows] > 0] if diode else rows[data.voltage[rows] != 0]
        count = len(np.unique(data.voltage[used]))
        if count < _LEAST_POINTS:
            kind = "positive voltages" if diode else "voltages"
            raise DeviceError(
                f"too few different {kind}: at least {_LEAST_POINTS} are needed",
                file=data.file,
                object=f"device {name}",
                value=count,
            )
    model: Model = _diode if diode else _bent
    starts = [
        (_diode_start if diode else _bent_start)(data, name, rows)
        for name, rows in zip(data.names, devices, strict=True)
    ]
    found = {}
    for proportional in (False, True):
        found[proportional] = [
            _curve(data, name, rows, model, start, proportional)
            for name, rows, start in zip(data.names, devices, starts, strict=True)
        ]
    proportional = sum(c.likelihood for c in found[True]) > sum(c.likelihood for c in found[False])
    curves = found[proportional]
    notes = []
    if len(devices) == 1:
        notes.append("one device: nothing can be said about the spread from device to device")
    elif len(devices) < LEAST_DEVICES:
        notes.append(f"{len(devices)} devices: too few for confidence intervals")
    scatter = "in proportion to the current" if proportional else "of one size at all currents"
    finish = _diode_card if diode else _bent_card
    document, estimates, finding = finish(data, curves, seed, notes)
    notes.append(f"the scatter of currents about the fits is {scatter}")
    return DeviceFit(
        kind="curves",
        document=document,
        estimates=tuple(estimates),
        panels=_panels(data, devices, curves, model, diode),
        finding=finding,
        devices=len(devices),
        cycles=data.cycles,
        readings=len(data),
        notes=tuple(notes),
    )


def _bent(p: FloatArray, v: FloatArray) -> FloatArray:
    """i = g v sinh(z) / z, z = v sqrt(c), c = 1 / V0^2; for c below 0 the same function, sin(z) / z.

    So that noise on a straight line may bend it either way.
    """
    z = v * v * p[1]
    root = np.sqrt(np.minimum(np.abs(z), 400.0**2))
    small = np.abs(z) < 1e-4
    safe = np.where(small, 1.0, root)
    shape = np.where(z > 0, np.sinh(safe) / safe, np.sin(safe) / safe)
    found: FloatArray = p[0] * v * np.where(small, 1 + z / 6 + z * z / 120, shape)
    return found


def _bent_start(data: CurveData, name: str, rows: NDArray[np.int64]) -> FloatArray:
    v, i = data.voltage[rows], data.current[rows]
    used = v != 0
    v, i = v[used], i[used]
    if float(v @ i) <= 0:
        raise DeviceError(
            "current flows against the voltage",
            file=data.file,
            object=f"device {name}",
            remedy="Check the sign of the currents.",
        )
    # i / v = g (1 + c v^2 / 6 + ...): a line in v^2.
    weight = np.abs(v) / np.abs(v).max()
    design = np.column_stack([np.ones(len(v)), v * v]) * weight[:, None]
    level, slope = np.linalg.lstsq(design, i / v * weight, rcond=None)[0]
    level = level if level > 0 else 0.5 * float(v @ i) / float(v @ v)
    reach = float(np.abs(v).max())
    # Beyond a cubic the line overstates the bend.
    bend = float(np.clip(6 * slope / level, 0.0, (4 / reach) ** 2))
    return np.array([level, bend])


def _diode(p: FloatArray, v: FloatArray) -> FloatArray:
    """i = Is (exp(v / nvt) - 1), p = (ln Is, ln nvt)."""
    with np.errstate(over="ignore"):
        return np.exp(p[0]) * np.expm1(v * np.exp(-p[1]))


def _diode_start(data: CurveData, name: str, rows: NDArray[np.int64]) -> FloatArray:
    v, i = data.voltage[rows], data.current[rows]
    used = (v > 0) & (i > 0)
    if used.sum() < 3 or np.ptp(v[used]) == 0:
        raise DeviceError(
            "holds no forward current to fit",
            file=data.file,
            object=f"device {name}",
            remedy="Voltages and currents must be positive in the diode's forward direction.",
        )
    v, log = v[used], np.log(i[used])
    top = v >= np.quantile(v, 0.4)
    if np.ptp(v[top]) == 0:
        top = np.ones(len(v), dtype=bool)
    slope, level = np.polyfit(v[top], log[top], 1)
    if slope <= 0:
        raise DeviceError(
            "forward current does not rise with voltage", file=data.file, object=f"device {name}"
        )
    return np.array([level, -np.log(slope)])


def _curve(
    data: CurveData, name: str, rows: NDArray[np.int64], model: Model, start: FloatArray, proportional: bool
) -> _Curve:
    v, i = data.voltage[rows], data.current[rows]
    used = v != 0 if proportional else np.ones(len(v), dtype=bool)
    scale = float(np.abs(i).max())
    if scale == 0:
        raise DeviceError("every current is 0", file=data.file, object=f"device {name}")
    p = start
    spread = np.full(len(v), scale)
    fit: LeastSquares | None = None
    # What the search moves is in units of the start, so that 1e-14 A and 0.05 V weigh alike.
    unit = np.where(np.abs(start) > 0, np.abs(start), 1 / float(np.abs(v).max()) ** 2)
    for _ in range(_ROUNDS if proportional else 1):
        if proportional:
            spread = np.maximum(np.abs(model(p, v)), 1e-9 * scale)

        def residual(q: FloatArray, spread: FloatArray = spread) -> FloatArray:
            return ((i - model(q * unit, v)) / spread)[used]

        fit = least_squares(residual, p / unit)
        p = fit.parameters * unit
    assert fit is not None
    if not fit.converged or not np.isfinite(fit.inverse).all():
        raise DeviceError(
            "the curve does not fix the model's numbers",
            file=data.file,
            object=f"device {name}",
            remedy="Measure up to larger voltages, at more of them, or leave the device out.",
        )
    count = int(used.sum())
    variance = max(fit.cost / max(count - len(p), 1), 1e-24)
    fitted = model(p, v)
    sigma = np.sqrt(variance) * spread
    # Both kinds of scatter are compared on the same points.
    both = v != 0
    likelihood = -float(np.sum(np.log(sigma[both]) + 0.5 * ((i - fitted)[both] / sigma[both]) ** 2))
    return _Curve(
        parameters=p,
        covariance=fit.inverse * np.outer(unit, unit) * variance,
        fitted=fitted,
        residual=np.where(used, (i - fitted) / sigma, 0.0),
        likelihood=likelihood,
    )


def _clipped(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (max(ends[0], 0.0), max(ends[1], 0.0))


def _bent_card(
    data: CurveData, curves: list[_Curve], seed: int, notes: list[str]
) -> tuple[dict[str, Any], list[Estimate], str]:
    g, bend = np.array([c.parameters for c in curves]).T
    variances = np.array([np.diag(c.covariance) for c in curves])
    devices = len(curves)
    worst = int(np.argmin(g))
    if g[worst] <= 0:
        raise DeviceError(
            "conductance at 0 V is not positive", file=data.file, object=f"device {data.names[worst]}"
        )
    bent = bool(np.all(bend > _CLEAR * np.sqrt(variances[:, 1])))
    v0 = 1 / np.sqrt(np.where(bend > 0, bend, np.inf)) if bent else np.full(devices, np.inf)
    v0_variance = 0.25 * variances[:, 1] / np.where(bent, np.abs(bend), 1.0) ** 3

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        mean = g[draws].mean(axis=1)
        bends = bend[draws].mean(axis=1)
        columns = [mean, bends]
        if draws.shape[1] > 1:
            columns.append(
                corrected_spread(g[draws], np.broadcast_to(variances[draws, 0], draws.shape)) / mean
            )
        else:
            columns.append(np.zeros(len(draws)))
        if bent:
            columns.append(v0[draws].mean(axis=1))
            spread = corrected_spread(v0[draws], v0_variance[draws]) if draws.shape[1] > 1 else 0 * mean
            columns.append(spread / columns[-1])
        return np.column_stack(columns)

    found = bootstrap(statistic, devices, stream(seed, "fit", "curves", "devices"))
    value, ends = found.value.tolist(), found.intervals
    crossbar: dict[str, Any] = {}
    low, high = float(g.min()), float(g.max())
    if high > low * (1 + 1e-3):
        crossbar["range"] = [spice_text(low), spice_text(high)]
    estimates = [
        Estimate(
            name="mean conductance", value=value[0], interval=ends[0], unit="S", meaning="at 0 V", spice=True
        )
    ]
    if "range" in crossbar:
        estimates += [
            Estimate(
                name=f"{what} conductance",
                value=number,
                interval=None,
                unit="S",
                meaning="conductances measured, at 0 V",
                field="crossbar.range",
                spice=True,
            )
            for what, number in (("lowest", low), ("highest", high))
        ]
    if devices > 1:
        spread = max(value[2], 0.0)
        crossbar["device_to_device"] = rounded(min(spread, 1.0))
        estimates.append(
            Estimate(
                name="device_to_device",
                value=min(spread, 1.0),
                interval=_clipped(ends[2]),
                meaning="spread of conductances, relative: of devices in one state",
                field="crossbar.device_to_device",
            )
        )
    reach = float(np.abs(data.voltage).max())
    text = f"conductances of {1e6 * value[0]:.3g} µS"
    if devices > 1:
        text += f" ± {100 * max(value[2], 0.0):.2g} %"
    error = float(
        np.sqrt(max(variances[:, 1].mean(), np.var(bend, ddof=1) if devices > 1 else 0.0) / devices)
    )
    if bent or value[1] > _CLEAR * error:
        mean = value[3] if bent else value[1] ** -0.5
        interval = ends[3] if bent else None
        if not bent and ends[1] is not None and ends[1][0] > 0:
            interval = (ends[1][1] ** -0.5, ends[1][0] ** -0.5)
        crossbar["nonlinearity"] = spice_text(mean)
        estimates.append(
            Estimate(
                name="nonlinearity",
                value=mean,
                interval=interval,
                unit="V",
                meaning="V0 in i = g V0 sinh(v / V0)",
                field="crossbar.nonlinearity",
                spice=True,
            )
        )
        if bent and devices > 1:
            estimates.append(
                Estimate(
                    name="spread of V0",
                    value=max(value[4], 0.0),
                    interval=_clipped(ends[4]),
                    meaning="from device to device, relative",
                )
            )
        text += f", bent by sinh(v / {mean:.3g} V)"
    else:
        notes.append(f"the curves are straight within their scatter up to {reach:g} V: no nonlinearity")
        text += f", straight up to {reach:g} V"
    return {"crossbar": crossbar}, estimates, text[0].upper() + text[1:]


def _diode_card(
    data: CurveData, curves: list[_Curve], seed: int, notes: list[str]
) -> tuple[dict[str, Any], list[Estimate], str]:
    log_is, log_nvt = np.array([c.parameters for c in curves]).T
    variances = np.array([np.diag(c.covariance) for c in curves])
    nvt = np.exp(log_nvt)
    devices = len(curves)

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        mean = nvt[draws].mean(axis=1)
        columns = [np.exp(log_is[draws].mean(axis=1)), mean]
        if draws.shape[1] > 1:
            columns.append(corrected_spread(log_is[draws], variances[draws, 0]))
            columns.append(corrected_spread(nvt[draws], variances[draws, 1] * nvt[draws] ** 2) / mean)
        return np.column_stack(columns)

    found = bootstrap(statistic, devices, stream(seed, "fit", "curves", "diodes"))
    value, ends = found.value.tolist(), found.intervals
    estimates = [
        Estimate(
            name="Is",
            value=value[0],
            interval=ends[0],
            unit="A",
            meaning="median saturation current, for the network's diodes",
            spice=True,
        ),
        Estimate(
            name="N Vt",
            value=value[1],
            interval=ends[1],
            unit="V",
            meaning="mean slope voltage, for the network's diodes",
            spice=True,
        ),
    ]
    diode: dict[str, Any] = {}
    text = f"Is = {value[0]:.3g} A, N Vt = {1e3 * value[1]:.4g} mV"
    if devices > 1:
        for k, name, meaning in (
            (2, "saturation_current", "spread of ln Is, from device to device"),
            (3, "slope_voltage", "spread of N Vt, relative"),
        ):
            number = max(value[k], 0.0)
            diode[name] = rounded(number)
            estimates.append(
                Estimate(
                    name=name,
                    value=number,
                    interval=_clipped(ends[k]),
                    meaning=meaning,
                    field=f"diode.{name}",
                )
            )
        text += f"; spreads of ln Is {max(value[2], 0.0):.2g}, of N Vt {100 * max(value[3], 0.0):.2g} %"
    return {"diode": diode}, estimates, text


def _panels(
    data: CurveData, devices: list[NDArray[np.int64]], curves: list[_Curve], model: Model, diode: bool
) -> tuple[Panel, ...]:
    picked = np.unique(np.linspace(0, len(devices) - 1, min(5, len(devices))).astype(int))
    series, residuals = [], []
    scale = 1.0 if diode else 1e6
    for color, d in enumerate(picked):
        rows = devices[d]
        v = data.voltage[rows]
        grid = np.linspace(float(v.min()), float(v.max()), 120)
        fitted = model(curves[d].parameters, grid)
        shown, line = data.current[rows] > -np.inf, fitted > -np.inf
        if diode:
            shown, line = data.current[rows] > 0, fitted > 0
        series += [
            Series(
                kind="points",
                x=v[shown],
                y=scale * data.current[rows][shown],
                color=color,
                label=f"device {data.names[d]}",
            ),
            Series(kind="line", x=grid[line], y=scale * fitted[line], color=color),
        ]
    voltage = np.concatenate([data.voltage[rows] for rows in devices])
    residual = np.concatenate([c.residual for c in curves])
    shown = thinned(len(residual), 1500)
    ends = np.array([float(voltage.min()), float(voltage.max())])
    residuals = [
        Series(kind="points", x=voltage[shown], y=residual[shown], label="reading"),
        Series(kind="band", x=ends, y=np.full(2, -2.0), upper=np.full(2, 2.0), color=1, label="± 2"),
    ]
    panels = [
        Panel(
            title="I-V curves: readings and fits of a few devices",
            x_label="voltage [V]",
            y_label="current [A]" if diode else "current [µA]",
            series=tuple(series),
            log_y=diode,
        ),
        Panel(
            title="Residuals, all devices",
            x_label="voltage [V]",
            y_label="residual / fitted spread",
            series=tuple(residuals),
        ),
    ]
    parameters = np.array([c.parameters for c in curves])
    error = 1.96 * np.sqrt(np.array([np.diag(c.covariance) for c in curves]))
    if diode:
        columns = [
            (
                "Saturation currents",
                "Is [A]",
                np.exp(parameters[:, 0]),
                np.exp(parameters[:, 0]) * error[:, 0],
            ),
            (
                "Slope voltages",
                "N Vt [mV]",
                1e3 * np.exp(parameters[:, 1]),
                1e3 * np.exp(parameters[:, 1]) * error[:, 1],
            ),
        ]
    else:
        columns = [
            ("Conductances at 0 V", "g [µS]", 1e6 * parameters[:, 0], 1e6 * error[:, 0]),
            ("Bends", "1 / V0² [1/V²]", parameters[:, 1], error[:, 1]),
        ]
    for title, label, values, errors in columns:
        order = np.argsort(values)
        panels.append(
            Panel(
                title=f"{title} of the devices",
                x_label="device, in the order of its value",
                whole_x=True,
                y_label=label,
                series=(
                    Series(
                        kind="bars",
                        x=np.arange(1.0, len(order) + 1),
                        y=values[order],
                        upper=errors[order],
                        label="device, with its 95 % interval",
                    ),
                    Series(
                        kind="line",
                        x=np.array([1.0, max(len(order), 2)]),
                        y=np.full(2, values.mean()),
                        color=1,
                        label="mean",
                    ),
                ),
            )
        )
    return tuple(panels)
