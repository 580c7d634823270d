"""Update curves from staircases of pulses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from circuitsim.devices.fit.card_text import rounded, spice_text
from circuitsim.devices.fit.measurements import PulseData, device_list
from circuitsim.devices.fit.pulse_panels import pulse_panels
from circuitsim.devices.fit.result import DeviceFit, Estimate
from circuitsim.devices.fit.spread import (
    LEAST_DEVICES,
    Interval,
    bootstrap,
    corrected_spread,
    signed_root,
)
from circuitsim.devices.fit.staircases import Steps, directions, single_steps
from circuitsim.devices.fit.update_curves import (
    LEAST_STEPS,
    UPDATES,
    Update,
    UpdateFit,
    exponential_step,
    pooled_exponential,
)
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream

__all__ = ["UPDATES", "fit_pulses"]

_SHAPE_REPLICATES = 200


def fit_pulses(
    data: PulseData, *, window: tuple[float, float] | None = None, update: Update | None = None, seed: int = 0
) -> DeviceFit:
    """Return the update curve of devices: its form, its spreads from device to device, and its noise.

    Args:
        data: staircases; see `PulseData`.
        window: conductances [S] at which w is -1 and 1. Fitted if left out: where steps vanish (soft
            bounds), where devices stop (hard bounds), or else between the mean ends of the staircases.
        update: form of the curve; by default the one with the smallest Bayesian information criterion.
        seed: of the resamples that intervals come from.

    Every device is fitted alone, by regression of its single steps on where they start. Steps that a bound
    may cut short are left out, chosen by where they start, which their own noise does not change. Where
    readings are noisy (steps that follow each other are anticorrelated) the start is predicted from the
    reading before, and the noise of readings is told from that of steps by its covariance. Spreads are
    those of the devices' estimates less what estimation errors add. Intervals hold for the window as given.

    Raises:
        DeviceError: too few pulses, pulses one way only, or steps that no update curve describes.
    """
    steps = single_steps(data)
    devices = len(data.names)
    _check(data, steps)
    fitted_window = window is None
    ends = _staircase_ends(data, steps)
    low, high = (float(ends[0].mean()), float(ends[1].mean())) if window is None else window
    if not high > low:
        raise DeviceError(
            "conductances do not rise with pulses up",
            file=data.file,
            value=f"{low:g} S to {high:g} S",
            remedy="Check which direction is up, or give --window.",
        )
    fit = UpdateFit(data, steps, (low, high), update, fitted_window)
    notes: list[str] = []
    window_devices = ends
    kind_of_window = ("as given", "as given")
    if fitted_window:
        window_devices, kind_of_window = fit.window_of_devices(ends)
        low, high = float(np.nanmean(window_devices[0])), float(np.nanmean(window_devices[1]))
        fit = UpdateFit(data, steps, (low, high), fit.kind, fitted_window, criterion=fit.criterion)
    notes += fit.notes
    if steps.gaps:
        notes.append(f"{steps.gaps} readings do not follow the one before by one pulse and make no step")
    summary = _summary(fit, window_devices if fitted_window else None, seed, data)
    window = (low, high)
    document, estimates = _card(data, fit, summary, window, kind_of_window, fitted_window, notes)
    return DeviceFit(
        kind="pulses",
        document=document,
        estimates=tuple(estimates),
        panels=pulse_panels(data, fit, window, summary.own.step, summary.own.step_variance),
        finding=_finding(fit, summary, devices),
        devices=devices,
        cycles=data.cycles,
        readings=len(data),
        notes=tuple(notes),
        criterion=fit.criterion,
    )


def _check(data: PulseData, steps: Steps) -> None:
    sides = ((True, "up"), (False, "down"))
    for up, name in sides:
        if not np.any((data.up == up) & (data.pulse > 0)):
            raise DeviceError(
                f"there is no pulse {name}",
                file=data.file,
                remedy="An update curve needs staircases up and down, each read after every pulse.",
            )
    for up, name in sides:
        count = np.bincount(steps.device[steps.up == up], minlength=len(data.names))
        worst = int(np.argmin(count))
        if count[worst] < LEAST_STEPS + 2:
            raise DeviceError(
                f"too few pulses {name} that follow a reading one pulse before: at least {LEAST_STEPS + 2} "
                "are needed",
                file=data.file,
                object=device_list(data, count < LEAST_STEPS + 2),
                value=int(count[worst]),
                remedy="Measure longer staircases, read after every pulse, or leave such devices out "
                "(--without).",
            )


def _staircase_ends(data: PulseData, steps: Steps) -> tuple[FloatArray, FloatArray]:
    """Return where each device's staircases down and up end (D,) S."""
    up, down = directions(steps, data.conductance, len(data.names))
    return -down.final, up.final


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnNumbers:
    """Every device's own numbers (D,) and the variances of their estimates."""

    step: FloatArray
    step_variance: FloatArray
    up_down: FloatArray
    up_down_variance: FloatArray
    slope: tuple[FloatArray, FloatArray]
    """Up and down."""
    slope_variance: tuple[FloatArray, FloatArray]
    bound: tuple[FloatArray, FloatArray]
    """Upper and lower, as distances from the middle of the window; nan where none was seen."""
    bound_variance: tuple[FloatArray, FloatArray]


def _devices(fit: UpdateFit, data: PulseData) -> OwnNumbers:
    covariance = [side.covariance(fit.noise) for side in fit.sides]
    (up, down), (var_up, var_down) = (
        [side.coefficients[:, 0] for side in fit.sides],
        [c[:, 0, 0] for c in covariance],
    )
    for values, side in zip((up, down), fit.sides, strict=True):
        if values.min() <= 0:
            raise DeviceError(
                f"pulses {side.steps.name} move the other way on average, or too little to tell",
                file=data.file,
                object=device_list(data, values <= 0),
                remedy="Check the directions, measure more pulses, or leave such devices out (--without).",
            )
    total = up + down
    slopes, slope_variances, bounds, bound_variances = [], [], [], []
    for side, whole, c in zip(fit.sides, fit.whole, covariance, strict=True):
        level = side.coefficients[:, 0]
        change = side.coefficients[:, 1] if side.coefficients.shape[1] > 1 else np.zeros_like(level)
        slopes.append(-change / level)
        if side.coefficients.shape[1] > 1:
            gradient = np.stack([change / level**2, -1 / level], axis=1)
            slope_variances.append(np.einsum("da,dab,db->d", gradient, c, gradient))
        else:
            slope_variances.append(np.zeros_like(level))
        if fit.form == "soft_bounds":
            with np.errstate(divide="ignore", invalid="ignore"):
                bound = np.where(change < 0, -level / change, np.nan)
                gradient = np.stack([-1 / change, level / change**2], axis=1)
                bound_variances.append(np.einsum("da,dab,db->d", gradient, c, gradient))
            bounds.append(bound)
        else:
            bounds.append(whole.bound if whole.bounded else np.full(len(level), np.nan))
            bound_variances.append(whole.bound_variance)
    return OwnNumbers(
        step=0.5 * total,
        step_variance=0.25 * (var_up + var_down),
        up_down=(up - down) / total,
        up_down_variance=4 * (down**2 * var_up + up**2 * var_down) / total**4,
        slope=(slopes[0], slopes[1]),
        slope_variance=(slope_variances[0], slope_variances[1]),
        bound=(bounds[0], bounds[1]),
        bound_variance=(bound_variances[0], bound_variances[1]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Summary:
    """Values and intervals by name."""

    value: dict[str, float]
    interval: dict[str, Interval | None]
    law: Literal["normal", "lognormal"]
    own: OwnNumbers
    unclear: tuple[str, ...]
    """Spreads that the errors of single devices hide."""


def _summary(
    fit: UpdateFit,
    window: tuple[FloatArray, FloatArray] | None,
    seed: int,
    data: PulseData,
) -> _Summary:
    own = _devices(fit, data)
    devices = len(own.step)
    law = _law(own.step)

    def spread(value: FloatArray, variance: FloatArray, draws: NDArray[np.int64]) -> FloatArray:
        if draws.shape[1] < 2:
            return np.zeros(len(draws))
        return corrected_spread(value[draws], variance[draws])

    def statistic(draws: NDArray[np.int64]) -> FloatArray:
        step = own.step[draws].mean(axis=1)
        if law == "lognormal":
            steps = spread(np.log(own.step), own.step_variance / own.step**2, draws)
        else:
            steps = spread(own.step, own.step_variance, draws) / step
        slope_spreads = [spread(k, v, draws) for k, v in zip(own.slope, own.slope_variance, strict=True)]
        single, reading = fit.noise.parts(draws)
        columns = [
            step,
            steps,
            own.up_down[draws].mean(axis=1),
            spread(own.up_down, own.up_down_variance, draws),
            own.slope[0][draws].mean(axis=1),
            own.slope[1][draws].mean(axis=1),
            signed_root(
                0.5
                * (slope_spreads[0] * np.abs(slope_spreads[0]) + slope_spreads[1] * np.abs(slope_spreads[1]))
            ),
            *(_bound_spread(b, v, draws) for b, v in zip(own.bound, own.bound_variance, strict=True)),
            *(_mean(b, draws) for b in own.bound),
            single,
            reading / step,
        ]
        if window is not None:
            columns += [_mean(end, draws) for end in window]
        return np.column_stack(columns)

    labels = [
        "step", "step_spread", "up_down", "up_down_spread", "slope_up", "slope_down", "slope_spread",
        "bound_up_spread", "bound_down_spread", "bound_up", "bound_down", "cycle_to_cycle", "write_noise",
        *(["low", "high"] if window is not None else []),
    ]  # fmt: skip
    found = bootstrap(statistic, devices, stream(seed, "fit", "pulses", "devices"))
    value = dict(zip(labels, found.value.tolist(), strict=True))
    interval = dict(zip(labels, found.intervals, strict=True))
    if fit.form == "exponential":
        _add_shapes(fit, own, value, interval, seed)
    unclear: list[str] = []
    for label in labels:
        if label.endswith(("_spread", "cycle_to_cycle", "write_noise")):
            value[label] = max(value[label], 0.0)
            ends = interval[label]
            if ends is not None and ends[1] < 0:
                # The devices' own errors are larger than all that their estimates differ by.
                unclear.append(label)
                ends = None
            interval[label] = None if ends is None else (max(ends[0], 0.0), max(ends[1], 0.0))
    return _Summary(value=value, interval=interval, law=law, own=own, unclear=tuple(unclear))


def _add_shapes(
    fit: UpdateFit,
    own: OwnNumbers,
    value: dict[str, float],
    interval: dict[str, Interval | None],
    seed: int,
) -> None:
    """Put in the shapes of exponential steps, and the intervals of what changes with them.

    The scale of each device's steps means something with the common shape only, so every resample of
    devices fits its own shape.
    """
    devices = len(own.step)
    labels = [
        "amplitude_up", "rate_up", "amplitude_down", "rate_down", "step", "up_down", "cycle_to_cycle",
    ]  # fmt: skip

    def row(draw: NDArray[np.int64]) -> list[float]:
        times = np.bincount(draw, minlength=devices).astype(np.float64)
        shapes, scales = [], []
        for side, bins in zip(fit.sides, fit.bins, strict=True):
            shape = pooled_exponential(bins.weighted(times), side.shape).parameters
            shapes.append(shape)
            scales.append(bins.scale(exponential_step(shape, bins.start)))
        up, down = scales
        step, tilt = 0.5 * (up + down)[draw], ((up - down) / (up + down))[draw]
        ratio = own.step[draw] / step
        single = float(fit.noise.parts(draw[None, :])[0][0])
        return [
            *shapes[0],
            *shapes[1],
            float(step.mean()),
            float(tilt.mean()),
            single if fit.noise.multiplicative else single * float(ratio.mean()),
        ]

    found = bootstrap(
        lambda draws: np.array([row(draw) for draw in draws]),
        devices,
        stream(seed, "fit", "pulses", "shapes"),
        replicates=_SHAPE_REPLICATES,
    )
    for k, label in enumerate(labels):
        ends = found.intervals[k]
        value.setdefault(label, float(found.value[k]))
        if ends is not None:
            # Averages over bins moved the numbers a little: the interval goes along.
            shift = value[label] - float(found.value[k])
            ends = (ends[0] + shift, ends[1] + shift)
        interval[label] = ends


def _law(step: FloatArray) -> Literal["normal", "lognormal"]:
    """Return which law makes the devices' steps clearly likelier; normal where neither does."""
    if len(step) < LEAST_DEVICES or np.std(step) == 0:
        return "normal"
    log = np.log(step)
    gain = len(step) * (np.log(np.std(step)) - np.log(np.std(log))) - np.sum(log)
    return "lognormal" if gain > 2 else "normal"


def _mean(value: FloatArray, draws: NDArray[np.int64]) -> FloatArray:
    seen = np.isfinite(value[draws])
    total = np.where(seen, value[draws], 0.0).sum(axis=1)
    return np.where(seen.any(axis=1), total / np.maximum(seen.sum(axis=1), 1), np.nan)


def _bound_spread(value: FloatArray, variance: FloatArray, draws: NDArray[np.int64]) -> FloatArray:
    """Return the spread of the bounds that were seen; 0 where fewer than two were."""
    chosen = value[draws]
    seen = np.isfinite(chosen)
    count = seen.sum(axis=1)
    centre = _mean(value, draws)
    squares = np.where(seen, (chosen - centre[:, None]) ** 2, 0.0).sum(axis=1)
    error = np.where(seen, variance[draws], 0.0).sum(axis=1) / np.maximum(count, 1)
    found = squares / np.maximum(count - 1, 1) - error
    return np.where(count > 1, signed_root(found), 0.0)


def _card(
    data: PulseData,
    fit: UpdateFit,
    summary: _Summary,
    window: tuple[float, float],
    kind_of_window: tuple[str, str],
    fitted_window: bool,
    notes: list[str],
) -> tuple[dict[str, Any], list[Estimate]]:
    value, interval = summary.value, summary.interval
    several = len(data.names) > 1
    estimates: list[Estimate] = []
    update: dict[str, Any] = {"kind": fit.kind}
    at = "crossbar.update"

    def put(
        name: str, meaning: str, *, key: str | None = None, low: float = 0.0, high: float = np.inf
    ) -> None:
        number = float(np.clip(value[name], low, high))
        if number != value[name]:
            notes.append(f"{name} was fitted as {value[name]:.3g} and is {number:g} in the card, its limit")
        update[key or name] = rounded(number)
        if name in summary.unclear:
            notes.append(f"{name}: too uncertain from device to device to be told from 0")
        estimates.append(
            Estimate(
                name=name, value=number, interval=interval[name], meaning=meaning, field=f"{at}.{key or name}"
            )
        )

    if value["step"] > 1:
        raise DeviceError(
            "one pulse moves devices by more than half their window, which no update curve describes",
            file=data.file,
            field="step",
            value=value["step"],
            remedy="Use weaker or shorter pulses, or a wider window.",
        )
    put("step", "step at w = 0, mean over devices")
    if several:
        what = "of ln step, from device to device" if summary.law == "lognormal" else "of steps, relative"
        put("step_spread", f"spread {what}")
        if summary.law == "lognormal":
            update["step_law"] = "lognormal"
    put("up_down", "steps up are larger by this", low=-0.999, high=0.999)
    if several:
        put("up_down_spread", "from device to device")
    if fit.form == "slopes":
        put("slope_up", "steps up shrink by this from w = 0 to 1", high=1.0)
        put("slope_down", "steps down shrink by this from w = 0 to -1", high=1.0)
        if several:
            put("slope_spread", "from device to device")
    if fit.form == "exponential":
        inner = {}
        for way in ("up", "down"):
            for what in ("amplitude", "rate"):
                name = f"{what}_{way}"
                inner[name] = rounded(value[name])
                estimates.append(
                    Estimate(
                        name=name,
                        value=value[name],
                        interval=interval[name],
                        meaning="step = 1 - amplitude exp(rate w)" if way == "up" else "and exp(-rate w)",
                        field=f"{at}.exponential.{name}",
                    )
                )
        update["exponential"] = {**inner, "a": 1.0, "b": 0.0}
    for side, name in enumerate(("bound_up", "bound_down")):
        seen = int(np.isfinite(summary.own.bound[side]).sum())
        if several and seen > 1:
            put(f"{name}_spread", f"of {'upper' if side == 0 else 'lower'} bounds, in w; {seen} devices")
        if seen:
            mean, ends = value[name], interval[name]
            sign = 1 if side == 0 else -1
            if ends is not None and sign < 0:
                ends = (-ends[1], -ends[0])
            estimates.append(
                Estimate(name=name, value=sign * mean, interval=ends, meaning="mean bound, in w", unit="")
            )
            if (
                not fitted_window
                and abs(mean - 1) > 0.02
                and (
                    interval[name] is None or not interval[name][0] <= 1 <= interval[name][1]  # type: ignore[index]
                )
            ):
                notes.append(
                    f"devices end at w = {sign * mean:.3g} on average, where a card has {sign}: the window "
                    "that was given is not theirs"
                )
        if 0 < seen < len(data.names):
            notes.append(
                f"{len(data.names) - seen} of {len(data.names)} devices do not reach their "
                f"{'upper' if side == 0 else 'lower'} bound; its spread is that of the others"
            )
        if not seen:
            notes.append(
                f"too few devices reach {'an upper' if side == 0 else 'a lower'} bound for a spread of it"
            )
    put(
        "cycle_to_cycle",
        f"of single pulses, in {'units of each step' if fit.noise.multiplicative else 'steps at w = 0'}",
    )
    if fit.noise.multiplicative:
        update["multiplicative"] = True
    if fit.noise.noisy:
        put("write_noise", "of readings between pulses, in steps")
    if not several:
        notes.append("one device: nothing can be said about the spread from device to device")
    elif len(data.names) < LEAST_DEVICES:
        notes.append(f"{len(data.names)} devices: too few for confidence intervals")
    for name, number, origin in zip(("low", "high"), window, kind_of_window, strict=True):
        estimates.append(
            Estimate(
                name=f"window {name}",
                value=number,
                interval=interval.get(name),
                unit="S",
                meaning=f"end of the window, {origin}",
                field="crossbar.range",
                spice=True,
            )
        )
    measured = (float(data.conductance.min()), float(data.conductance.max()))
    for name, number in zip(("lowest reading", "highest reading"), measured, strict=True):
        estimates.append(
            Estimate(name=name, value=number, interval=None, unit="S", meaning="measured", spice=True)
        )
    return {"crossbar": {"range": [spice_text(end) for end in window], "update": update}}, estimates


def _finding(fit: UpdateFit, summary: _Summary, devices: int) -> str:
    names = {
        "constant": "equal steps",
        "slopes": "steps that shrink linearly",
        "soft_bounds": "soft bounds",
        "exponential": "exponential steps",
    }
    value = summary.value
    text = f"{names[fit.form]} of {value['step']:.3g} in w"
    if devices > 1:
        text += f", ± {100 * value['step_spread']:.2g} % over {devices} devices"
    noise = f"{value['cycle_to_cycle']:.2g} {'of each step' if fit.noise.multiplicative else 'steps'}"
    return f"{text[0].upper()}{text[1:]}; single pulses scatter by {noise}"
