"""Programming spread, drift and read noise from reads of devices that were written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.card_text import rounded, spice_text
from circuitsim.devices.fit.measurements import ReadData
from circuitsim.devices.fit.result import DeviceFit, Estimate, Panel, Series, thinned
from circuitsim.devices.fit.spread import LEAST_DEVICES, Bootstrap, bootstrap, corrected_spread
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream

__all__ = ["fit_reads"]

_MOST_ORDER = 4
_LEAST_WRITES = 8
_LEAST_TIMES = 3
_REPLICATES = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class _Writes:
    """One row per write (W,): its device, target, and what its reads say of it."""

    devices: int
    number: NDArray[np.int64]
    """(N,): the write of each reading."""
    device: NDArray[np.int64]
    target: FloatArray | None
    conductance: FloatArray
    """Right after the write, or at the first time of all [S]."""
    variance: FloatArray
    """That of ``conductance`` as an estimate, from the noise of reads [S^2]."""
    relative: FloatArray
    """(W, 2): squared relative residuals of its reads, and their degrees of freedom."""
    exponent: FloatArray
    """Drift exponent; nan where there are too few times."""
    exponent_weight: FloatArray
    """Its variance is that of a relative read noise squared over this."""
    residual: FloatArray
    """(N,): relative residual of each reading about its write's mean or its drift."""


def fit_reads(data: ReadData, *, seed: int = 0) -> DeviceFit:
    """Return how writes spread, how devices drift, and how noisy reads are.

    Args:
        data: reads; see `ReadData`. Rows of one device, cycle and target are reads of one write.
        seed: of the resamples that intervals come from.

    Deviations of writes from their targets are ``target d + e``: d, N(0, device_to_device), is the device's
    own, e, N(0, programming(x)) with a polynomial in x = target / largest target, each write's. The
    polynomial is that of maximum likelihood with each device's best d, whose spread is corrected for
    estimation errors; its order has the smallest Akaike information criterion, which rather keeps a term
    than bends a curve. Telling d from e takes several writes per device. Drift exponents are slopes of
    ln g against ln(t / start) of each write; what is left is read noise, and so is what repeated reads of
    one write differ by.

    Raises:
        DeviceError: neither targets, nor times, nor repeated reads; or too few writes.
    """
    writes = _writes(data)
    devices = len(data.names)
    notes: list[str] = []
    crossbar: dict[str, Any] = {}
    estimates: list[Estimate] = []
    panels: list[Panel] = []
    findings: list[str] = []
    top = _range(data, writes, crossbar, estimates)
    if writes.target is not None:
        _programming(data, writes, top, seed, crossbar, estimates, panels, findings, notes)
    else:
        notes.append("there is no column target: nothing can be said about the spread of writes")
    if data.time is not None:
        _drift(data, writes, top, seed, crossbar, estimates, panels, findings, notes)
    _read_noise(data, writes, seed, crossbar, estimates, panels, findings, notes)
    if not findings:
        raise DeviceError(
            "holds nothing to fit",
            file=data.file,
            remedy="Give a column target (spread of writes), time (drift), or several reads of each write.",
        )
    if devices == 1:
        notes.append("one device: nothing can be said about the spread from device to device")
    elif devices < LEAST_DEVICES:
        notes.append(f"{devices} devices: too few for confidence intervals")
    text = "; ".join(findings)
    return DeviceFit(
        kind="reads",
        document={"crossbar": crossbar},
        estimates=tuple(estimates),
        panels=tuple(panels),
        finding=f"{text[0].upper()}{text[1:]}",
        devices=devices,
        cycles=data.cycles,
        readings=len(data),
        notes=tuple(notes),
    )


def _writes(data: ReadData) -> _Writes:
    target = np.zeros(len(data)) if data.target is None else data.target
    keys = np.stack([data.device.astype(float), data.cycle.astype(float), target], axis=1)
    found, number = np.unique(keys, axis=0, return_inverse=True)
    number = number.reshape(-1)
    count = len(found)
    g = data.conductance

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(number, values, minlength=count).astype(np.float64)

    n = total(np.ones(len(data)))
    exponent = np.full(count, np.nan)
    weight = np.zeros(count)
    mean = total(g) / n
    residual = (g - mean[number]) / np.where(mean > 0, mean, 1.0)[number]
    freedom = n - 1
    leverage = 1 / n
    if data.time is not None:
        positive = total((g <= 0).astype(float)) == 0
        log = np.log(np.where(g > 0, g, 1.0))
        t = np.log(data.time / data.time.min())
        t_mean, log_mean = total(t) / n, total(log) / n
        squares = total((t - t_mean[number]) ** 2)
        times = np.unique(np.stack([number.astype(float), data.time], axis=1), axis=0)[:, 0].astype(np.int64)
        several = np.bincount(times, minlength=count) >= _LEAST_TIMES
        drifts = positive & several & (squares > 0)
        cross = total((t - t_mean[number]) * (log - log_mean[number]))
        slope = np.where(drifts, cross / np.where(drifts, squares, 1.0), 0.0)
        exponent = np.where(drifts, -slope, np.nan)
        weight = np.where(drifts, squares, 0.0)
        start = log_mean - slope * t_mean
        fitted = start[number] + slope[number] * t
        residual = np.where(drifts[number], log - fitted, residual)
        freedom = np.where(drifts, n - 2, freedom)
        leverage = np.where(drifts, 1 / n + t_mean**2 / np.where(drifts, squares, 1.0), leverage)
        mean = np.where(drifts, np.exp(start), mean)
    squares_left = total(residual**2)
    relative = np.stack([squares_left, freedom], axis=1)
    noise = squares_left.sum() / freedom.sum() if freedom.sum() > 0 else 0.0
    return _Writes(
        devices=len(data.names),
        number=number,
        device=found[:, 0].astype(np.int64),
        target=None if data.target is None else found[:, 2],
        conductance=mean,
        variance=noise * mean**2 * leverage,
        relative=relative,
        exponent=exponent,
        exponent_weight=weight,
        residual=residual,
    )


def _range(data: ReadData, writes: _Writes, crossbar: dict[str, Any], estimates: list[Estimate]) -> float:
    """Put the measured range into the card; return its upper end [S], as it is read back."""
    values = writes.conductance if writes.target is None else writes.target
    low, high = float(values.min()), float(values.max())
    if high <= 0:
        raise DeviceError("every conductance is 0", file=data.file)
    if low >= high:
        # One level only: what was read about it is the range.
        low = min(low, float(data.conductance.min()))
        high = max(high, float(data.conductance.max()))
    if low < high:
        crossbar["range"] = [spice_text(low), spice_text(high)]
    what = "conductances" if writes.target is None else "targets"
    for name, value in (("lowest", low), ("highest", high)):
        estimates.append(
            Estimate(
                name=f"{name} of range",
                value=value,
                interval=None,
                unit="S",
                meaning=f"measured range of {what}",
                field="crossbar.range" if low < high else "",
                spice=True,
            )
        )
    return high


@dataclass(frozen=True, kw_only=True, eq=False)
class _Spread:
    """The spread of writes about their targets."""

    coefficients: FloatArray
    """Of the polynomial in x, relative to the largest target."""
    device_to_device: float
    """Signed root of the variance."""
    likelihood: float
    own: FloatArray
    """(D,): each device's relative deviation."""
    own_variance: FloatArray


def _spread_of_writes(
    writes: _Writes,
    top: float,
    order: int,
    times: FloatArray,
    separable: bool,
    start: FloatArray | None = None,
    rounds: int = 12,
) -> _Spread:
    """Return the polynomial of ``order`` and the device part, with device d counted ``times[d]`` times."""
    assert writes.target is not None
    x = writes.target / top
    y = (writes.conductance - writes.target) / top
    known = writes.variance / top**2
    device, count = writes.device, writes.devices
    weight = times[device]
    design = np.vander(x, order + 1, increasing=True)
    grid = np.vander(np.linspace(float(x.min()), 1.0, 65), order + 1, increasing=True)
    if separable:
        center = 0.0
        a, _ = _ratio(device, count, x * y, x * x)
        first = y - x * a[device]
    else:
        center = float(np.sum(weight * y * x) / max(np.sum(weight * x * x), 1e-300))
        first = y - center * x
    if start is None:
        level = np.sqrt(max(float(np.average(first**2, weights=weight)) - float(known.mean()), 1e-12))
        coefficients = np.zeros(order + 1)
        coefficients[0] = max(level, 0.05 * float(np.sqrt(np.mean(first**2)) + 1e-9))
    else:
        coefficients = start
    own, own_variance = np.zeros(count), np.zeros(count)
    likelihood = -np.inf
    for _ in range(rounds):
        sigma = design @ coefficients
        variance = sigma**2 + known
        if separable:
            own, total = _ratio(device, count, x * y / variance, x * x / variance)
            own_variance = 1 / np.maximum(total, 1e-300)
            left = y - x * own[device]
            hat = np.minimum(x * x / variance * own_variance[device], 0.999)
        else:
            left, hat = y - center * x, np.zeros(len(y))
        # A device's own deviation takes up part of its writes' scatter.
        squares = left**2 / (1 - hat)
        part = weight * (1 - hat)

        def value(c: FloatArray, squares: FloatArray = squares, part: FloatArray = part) -> float:
            if np.min(grid @ c) <= 0:
                return -np.inf
            v = (design @ c) ** 2 + known
            return -0.5 * float(np.sum(part * (np.log(v) + squares / v)))

        before = value(coefficients)
        pull = design * (part * sigma / variance)[:, None]
        score = pull.T @ ((squares - variance) / variance)
        information = (design * (part * 2 * sigma**2 / variance**2)[:, None]).T @ design
        step = np.linalg.lstsq(information, score, rcond=None)[0]
        size = 1.0
        while size > 1e-3 and value(coefficients + size * step) < before:
            size *= 0.5
        after = value(coefficients + size * step)
        if not after >= before:
            likelihood = before
            break
        coefficients = coefficients + size * step
        likelihood = after
        if after - before < 1e-7 * abs(after):
            break
    spread = 0.0
    if separable:
        total_weight = times.sum()
        mean = float(np.sum(times * own) / total_weight)
        raw = float(np.sum(times * (own - mean) ** 2) / (total_weight - 1))
        excess = raw - float(np.sum(times * own_variance) / total_weight)
        spread = float(np.sign(excess) * np.sqrt(abs(excess)))
    else:
        own = np.full(count, center)
    return _Spread(
        coefficients=coefficients,
        device_to_device=spread,
        likelihood=likelihood,
        own=own,
        own_variance=own_variance,
    )


def _ratio(
    device: NDArray[np.int64], count: int, top: FloatArray, below: FloatArray
) -> tuple[FloatArray, FloatArray]:
    total = np.bincount(device, below, minlength=count).astype(np.float64)
    return np.bincount(device, top, minlength=count) / np.maximum(total, 1e-300), total


def _programming(
    data: ReadData,
    writes: _Writes,
    top: float,
    seed: int,
    crossbar: dict[str, Any],
    estimates: list[Estimate],
    panels: list[Panel],
    findings: list[str],
    notes: list[str],
) -> None:
    assert writes.target is not None
    devices = writes.devices
    count = len(writes.device)
    if count < _LEAST_WRITES:
        raise DeviceError(
            f"too few writes for their spread: at least {_LEAST_WRITES} are needed",
            file=data.file,
            value=count,
            remedy="Rows of one device, cycle and target are reads of one write: number the cycles.",
        )
    per_device = np.bincount(writes.device[writes.target > 0], minlength=devices)
    separable = devices > 1 and int(per_device.min()) >= 2
    if devices > 1 and not separable:
        worst = data.names[int(np.argmin(per_device))]
        notes.append(
            f"device {worst} was written once: its own deviation cannot be told from that of the write, "
            "so all of the spread is in `programming`"
        )
    levels = len(np.unique(writes.target))
    every = np.ones(devices)
    fits = [
        _spread_of_writes(writes, top, order, every, separable, rounds=60)
        for order in range(min(_MOST_ORDER, levels - 1) + 1)
    ]
    criterion = [2 * (k + 1) - 2 * fit.likelihood for k, fit in enumerate(fits)]
    order = int(np.argmin(criterion))
    best = fits[order]
    x = writes.target / top
    grid = np.linspace(float(x.min()), 1.0, 41)
    basis = np.vander(grid, order + 1, increasing=True)

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        rows = []
        for row in draws:
            times = np.bincount(row, minlength=devices).astype(np.float64)
            fit = _spread_of_writes(writes, top, order, times, separable, best.coefficients, rounds=6)
            mean = float(np.average(fit.own, weights=times))
            rows.append(
                [*(top * fit.coefficients), fit.device_to_device, mean, *(top * (basis @ fit.coefficients))]
            )
        return np.array(rows)

    found = bootstrap(statistic, devices, stream(seed, "fit", "reads", "writes"), replicates=_REPLICATES)
    value = found.value
    coefficients = [spice_text(float(c), 5) for c in value[: order + 1]]
    crossbar["programming"] = {"polynomial": coefficients}
    for k in range(order + 1):
        estimates.append(
            Estimate(
                name=f"programming x^{k}",
                value=float(value[k]),
                interval=found.intervals[k],
                unit="S",
                meaning="spread of writes, polynomial in x = target / top",
                field="crossbar.programming.polynomial",
                spice=True,
            )
        )
    if separable:
        spread = max(float(value[order + 1]), 0.0)
        ends = found.intervals[order + 1]
        ends = None if ends is None else (max(ends[0], 0.0), max(ends[1], 0.0))
        crossbar["device_to_device"] = rounded(spread)
        estimates.append(
            Estimate(
                name="device_to_device",
                value=spread,
                interval=ends,
                meaning="of conductance over target, from device to device",
                field="crossbar.device_to_device",
            )
        )
    mean = float(value[order + 2])
    ends = found.intervals[order + 2]
    estimates.append(
        Estimate(
            name="mean deviation", value=mean, interval=ends, meaning="of writes from their targets, relative"
        )
    )
    if ends is not None and not ends[0] <= 0 <= ends[1]:
        notes.append(
            f"writes end {100 * abs(mean):.2g} % {'above' if mean > 0 else 'below'} their targets on "
            "average, which a card does not hold"
        )
    middle = float(np.interp(0.5, grid, value[order + 3 :]))
    text = f"writes spread by {1e6 * middle:.3g} µS at half range"
    if separable:
        text += f", devices by {100 * max(float(value[order + 1]), 0.0):.2g} %"
    findings.append(text)
    panels += _write_panels(data, writes, top, best, grid, found, order)


def _write_panels(
    data: ReadData,
    writes: _Writes,
    top: float,
    best: _Spread,
    grid: FloatArray,
    found: Bootstrap,
    order: int,
) -> list[Panel]:
    assert writes.target is not None
    deviation = writes.conductance - writes.target - best.own[writes.device] * writes.target
    sigma = top * (np.vander(writes.target / top, order + 1, increasing=True) @ best.coefficients)
    total = np.sqrt(sigma**2 + writes.variance)
    edges = np.quantile(writes.target, np.linspace(0, 1, 13))
    place = np.clip(np.searchsorted(np.unique(edges), writes.target, side="right") - 1, 0, None)
    levels = [place == k for k in np.unique(place)]
    levels = [level for level in levels if level.sum() > 2]
    center = np.array([writes.target[level].mean() for level in levels])
    measured = np.array([np.sqrt(np.mean(deviation[level] ** 2)) for level in levels])
    error = np.array([1.96 / np.sqrt(2 * level.sum()) for level in levels]) * measured
    curve = found.value[order + 3 :]
    series = [Series(kind="line", x=1e6 * top * grid, y=1e6 * curve, label="fit, with its 95 % interval")]
    ends = found.intervals[order + 3 :]
    if all(end is not None for end in ends):
        low, high = np.array(ends, dtype=float).T
        series.append(Series(kind="band", x=1e6 * top * grid, y=1e6 * low, upper=1e6 * high))
    series.append(
        Series(
            kind="bars",
            x=1e6 * center,
            y=1e6 * measured,
            upper=1e6 * error,
            color=1,
            label="writes near this target, with its 95 % interval",
        )
    )
    shown = thinned(len(deviation), 1500)
    rise = np.argsort(writes.target)
    residuals = Panel(
        title="Residuals of writes",
        x_label="target [µS]",
        y_label="deviation without the device's own / fitted spread",
        series=(
            Series(kind="points", x=1e6 * writes.target[shown], y=(deviation / total)[shown], label="write"),
            Series(
                kind="band",
                x=1e6 * writes.target[rise],
                y=np.full(len(rise), -2.0),
                upper=np.full(len(rise), 2.0),
                color=1,
                label="± 2",
            ),
        ),
    )
    spread = Panel(
        title="Spread of writes", x_label="target [µS]", y_label="spread [µS]", series=tuple(series)
    )
    return [spread, residuals]


def _drift(
    data: ReadData,
    writes: _Writes,
    top: float,
    seed: int,
    crossbar: dict[str, Any],
    estimates: list[Estimate],
    panels: list[Panel],
    findings: list[str],
    notes: list[str],
) -> None:
    assert data.time is not None
    there = np.isfinite(writes.exponent)
    if not there.any():
        notes.append(f"no write was read at {_LEAST_TIMES} times or more: nothing can be said about drift")
        return
    if not there.all():
        notes.append(
            f"{int((~there).sum())} writes were read at fewer than {_LEAST_TIMES} times, or read as 0 S, and "
            "say nothing about drift"
        )
    devices = writes.devices
    device, nu, weight = writes.device[there], writes.exponent[there], writes.exponent_weight[there]
    squares, freedom = writes.relative.sum(axis=0)
    noise = squares / freedom
    seen = np.unique(device)
    total = np.bincount(device, weight, minlength=devices)[seen]
    own = np.bincount(device, weight * nu, minlength=devices)[seen] / total
    variance = noise / total

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        mean = own[draws].mean(axis=1)
        if draws.shape[1] < 2:
            return np.column_stack([mean, np.zeros(len(draws))])
        return np.column_stack([mean, corrected_spread(own[draws], variance[draws])])

    found = bootstrap(statistic, len(seen), stream(seed, "fit", "reads", "drift"))
    start, until = float(data.time.min()), float(data.time.max())
    mean, spread = float(found.value[0]), max(float(found.value[1]), 0.0)
    if "range" not in crossbar:
        notes.append("all conductances are equal: a card's drift needs a range")
        return
    crossbar["drift"] = {
        "kind": "power_law",
        "start": spice_text(start),
        "mean": rounded(mean),
        "std": rounded(spread),
        "until": spice_text(until),
    }
    ends = found.intervals[1]
    estimates += [
        Estimate(
            name="drift mean",
            value=mean,
            interval=found.intervals[0],
            meaning="exponent: g falls as (t / start)^-mean",
            field="crossbar.drift.mean",
        ),
        Estimate(
            name="drift std",
            value=spread,
            interval=None if ends is None else (max(ends[0], 0.0), max(ends[1], 0.0)),
            meaning="of exponents, from device to device",
            field="crossbar.drift.std",
        ),
    ]
    findings.append(f"conductances drift by exponents of {mean:.3g} ± {spread:.2g}")
    x = writes.conductance[there] / top
    tilt = _trend(x, nu, noise / weight + spread**2)
    if tilt is not None and abs(tilt[0]) > 3 * tilt[1]:
        notes.append(
            f"drift exponents change with conductance, by {tilt[0]:.2g} ± {tilt[1]:.1g} from x = 0 to 1, and "
            "the card holds their mean: give `drift.mean` a polynomial where that matters"
        )
    panels.append(_drift_panel(data, writes, mean, spread))
    panels.append(
        Panel(
            title="Drift exponents of the devices",
            x_label="device, in the order of its exponent",
            whole_x=True,
            y_label="exponent",
            series=(
                Series(
                    kind="bars",
                    x=np.arange(1.0, len(own) + 1),
                    y=own[np.argsort(own)],
                    upper=1.96 * np.sqrt(variance[np.argsort(own)]),
                    label="device, with its 95 % interval",
                ),
                Series(kind="line", x=np.array([1.0, len(own)]), y=np.full(2, mean), color=1, label="mean"),
                Series(
                    kind="band",
                    x=np.array([1.0, len(own)]),
                    y=np.full(2, mean - spread),
                    upper=np.full(2, mean + spread),
                    color=1,
                    label="spread from device to device",
                ),
            ),
        )
    )


def _trend(x: FloatArray, y: FloatArray, variance: FloatArray) -> tuple[float, float] | None:
    """Return the slope of y against x and its error, or None where x does not vary."""
    if np.ptp(x) < 0.05 or np.any(variance <= 0):
        return None
    weight = 1 / variance
    mean = np.average(x, weights=weight)
    size = float(np.sum(weight * (x - mean) ** 2))
    return float(np.sum(weight * (x - mean) * y) / size), float(size**-0.5)


def _drift_panel(data: ReadData, writes: _Writes, mean: float, spread: float) -> Panel:
    assert data.time is not None
    series = []
    chosen = np.flatnonzero(np.isfinite(writes.exponent))
    picked = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(6, len(chosen))).astype(int))]
    start = data.time.min()
    times = np.geomspace(start, data.time.max(), 40)
    for color, write in enumerate(picked):
        rows = np.flatnonzero(writes.number == write)
        g = writes.conductance[write]
        series.append(Series(kind="points", x=data.time[rows], y=data.conductance[rows] / g, color=color))
        series.append(
            Series(
                kind="line",
                x=times,
                y=(times / start) ** -writes.exponent[write],
                color=color,
                label=f"device {data.names[writes.device[write]]}",
            )
        )
    edges = (times / start) ** -(mean + 2 * spread), (times / start) ** -(mean - 2 * spread)
    series.append(
        Series(kind="band", x=times, y=edges[0], upper=edges[1], color=6, label="mean exponent ± 2 spreads")
    )
    return Panel(
        title="Drift: reads and fits of a few writes",
        x_label="time since the write [s]",
        y_label="conductance over that at the first time",
        series=tuple(series),
        log_x=True,
    )


def _read_noise(
    data: ReadData,
    writes: _Writes,
    seed: int,
    crossbar: dict[str, Any],
    estimates: list[Estimate],
    panels: list[Panel],
    findings: list[str],
    notes: list[str],
) -> None:
    devices = writes.devices
    squares = np.bincount(writes.device, writes.relative[:, 0], minlength=devices)
    freedom = np.bincount(writes.device, writes.relative[:, 1], minlength=devices)
    if freedom.sum() < 3:
        notes.append("every write was read once: nothing can be said about read noise")
        return

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        total = np.maximum(freedom[draws].sum(axis=1), 1e-300)
        found: FloatArray = np.sqrt(squares[draws].sum(axis=1) / total)[:, None]
        return found

    found = bootstrap(statistic, devices, stream(seed, "fit", "reads", "noise"))
    relative = float(found.value[0])
    if relative > 1:
        raise DeviceError(
            "reads of one write differ by more than the conductance itself",
            file=data.file,
            value=relative,
            remedy="Rows of one device, cycle and target are reads of one write: number the cycles.",
        )
    crossbar["read_noise"] = [{"kind": "gaussian", "relative": rounded(relative)}]
    estimates.append(
        Estimate(
            name="read noise",
            value=relative,
            interval=found.intervals[0],
            meaning="spread of reads, relative to the conductance",
            field="crossbar.read_noise.0.relative",
        )
    )
    findings.append(f"reads scatter by {100 * relative:.2g} %")
    shown = thinned(len(data), 1500)
    drifted = data.time is not None and np.isfinite(writes.exponent).any()
    x = data.time if drifted and data.time is not None else 1e6 * data.conductance
    ends = np.array([float(x.min()), float(x.max())])
    panels.append(
        Panel(
            title="Residuals of reads" + (" about the drift of their writes" if drifted else ""),
            x_label="time since the write [s]" if drifted else "conductance [µS]",
            y_label="residual, relative",
            series=(
                Series(kind="points", x=x[shown], y=writes.residual[shown], label="read"),
                Series(
                    kind="band",
                    x=ends,
                    y=np.full(2, -2 * relative),
                    upper=np.full(2, 2 * relative),
                    color=1,
                    label="± 2 fitted spreads",
                ),
            ),
            log_x=bool(drifted),
        )
    )
