"""A device card as a figure: how its devices spread, drift, are read and move, panel by panel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from circuitsim.chip.pulses import pulsed_half
from circuitsim.devices import DeviceCard
from circuitsim.devices.card import (
    ConverterCard,
    CrossbarCard,
    FlickerNoise,
    GaussianNoise,
    PowerLawDrift,
    RelaxationDrift,
    TelegraphNoise,
)
from circuitsim.devices.converter import converter
from circuitsim.devices.memristor import drifted, fabricated, flicker_spread
from circuitsim.errors import DeviceError
from circuitsim.netlist.tables import FloatArray
from circuitsim.report.device_values import age_text
from circuitsim.report.style import FAINT, PALETTE, new_figure, save, styled
from circuitsim.seeds import stream
from circuitsim.units import engineering

__all__ = ["device_card_figure", "write_device_card_figure"]

_SEED = 0
_DEVICES = 4000
"""Drawn for each level of the drift panel: quantiles to about 2 % of the spread."""
_LONGEST = 365.25 * 86400.0
"""Age up to which drift is drawn where the card names no end [s]."""
_AGES = (1.0, 3600.0, 365.25 * 86400.0)
"""Of 1/f noise [s]."""
_CURVES = 6
_REACH = 2.5
"""Pulses of an update curve, in mean steps over the window's two units of w."""
_POINTS = 200
_COLUMNS = 2
_US = 1e6

Panel = Callable[[Axes], None]


def device_card_figure(card: DeviceCard) -> Figure | None:
    """Return the card's figure, a panel for each thing it describes; None where there is nothing to draw."""
    panels = _panels(card)
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(0.9 + 3.9 * rows, f"{card.name}: {_finding(card)}")
    grid = figure.add_gridspec(rows, columns)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        # The last one takes what is left of its row.
        panel(figure.add_subplot(grid[row, column:] if number == len(panels) - 1 else grid[row, column]))
    return figure


def write_device_card_figure(card: DeviceCard, path: Path) -> None:
    """Write the card's figure as PNG.

    Raises:
        DeviceError: a card that describes nothing that can be drawn.
        RecordError: the file cannot be written.
    """
    with styled():
        figure = device_card_figure(card)
        if figure is None:
            raise DeviceError(
                "describes nothing that can be drawn",
                object=card.name,
                remedy="Figures show crossbar devices, transistors, converters and wires.",
            )
        save(figure, path)


def _panels(card: DeviceCard) -> list[Panel]:
    crossbar = card.crossbar
    found: list[Panel] = []
    if crossbar.programming is not None or crossbar.device_to_device:
        found.append(lambda axes: _write(axes, crossbar))
    if crossbar.drift is not None:
        found.append(lambda axes: _drift(axes, crossbar))
    if any(isinstance(n, (FlickerNoise, GaussianNoise, TelegraphNoise)) for n in crossbar.read_noise):
        found.append(lambda axes: _read(axes, crossbar))
    if crossbar.update is not None:
        found.append(lambda axes: _update(axes, crossbar))
    for name in ("dac", "adc"):
        part: ConverterCard | None = getattr(card, name)
        if part is not None:
            found.append(lambda axes, name=name, part=part: _converter(axes, name.upper(), part))  # type: ignore[misc]
    if card.transistor is not None:
        found.append(lambda axes: _offset(axes, card))
    if card.wire is not None and card.wire.table:
        found.append(lambda axes: _wire(axes, card))
    return found


def _finding(card: DeviceCard) -> str:
    crossbar = card.crossbar
    if crossbar.programming is not None and crossbar.range is not None:
        sigma = crossbar.programming(np.linspace(crossbar.range[0] / crossbar.range[1], 1, 401))
        text = f"a write of up to {_US * crossbar.range[1]:.4g} µS spreads by "
        return f"{text}{_US * sigma.min():.2g} to {_US * sigma.max():.2g} µS"
    if crossbar.update is not None:
        count, spread = 2 / crossbar.update.step, 100 * crossbar.update.step_spread
        return f"{count:.0f} mean steps across the window; steps of devices spread by {spread:.3g} %"
    if card.transistor is not None:
        pair = 1e3 * np.sqrt(2.0) * card.transistor.threshold / 1e-6
        return f"a pair of 1 µm² transistors has an offset of {pair:.2g} mV"
    if card.wire is not None and card.wire.table:
        ohms = [ohm for _, ohm in card.wire.table]
        return f"{min(ohms):.3g} to {max(ohms):.3g} Ω per segment"
    if crossbar.device_to_device:
        return f"devices spread by {100 * crossbar.device_to_device:.3g} %"
    return card.description or "what it describes"


def _conductances(crossbar: CrossbarCard) -> tuple[FloatArray, float, str]:
    """Return conductances to draw over, the unit of the axis, and its label."""
    if crossbar.range is None:
        return np.linspace(0.0, 1.0, 401), 1.0, "conductance / largest"
    return np.linspace(*crossbar.range, 401), 1 / _US, "conductance [µS]"


def _write(axes: Axes, crossbar: CrossbarCard) -> None:
    g, unit, label = _conductances(crossbar)
    axes.set_title("Spread of a write about its target")
    curves = []
    if crossbar.programming is not None:
        curves.append(("programming", crossbar.programming(crossbar.relative(g))))
    if crossbar.device_to_device:
        curves.append(("device to device", crossbar.device_to_device * g))
    for number, (name, sigma) in enumerate(curves):
        axes.plot(g / unit, sigma / unit, color=PALETTE[number], label=name)
    if isinstance(crossbar.drift, RelaxationDrift):
        for number, step in enumerate(crossbar.drift.steps[1:], start=len(curves)):
            sigma = step.sigma(crossbar.relative(g))
            axes.plot(g / unit, sigma / unit, color=PALETTE[number], label=f"after {age_text(step.age)}")
    axes.set_xlabel(label)
    axes.set_ylabel("standard deviation" + (" [µS]" if crossbar.range is not None else " / largest"))
    axes.set_ylim(bottom=0)
    if len(axes.get_lines()) > 1:
        axes.legend()


def _drift(axes: Axes, crossbar: CrossbarCard) -> None:
    drift, window = crossbar.drift, crossbar.range
    assert drift is not None
    assert window is not None
    start = drift.start if isinstance(drift, PowerLawDrift) else 1.0
    ages = np.geomspace(start, drift.until or _LONGEST, 60)
    low, high = window
    levels = np.linspace(low if low > 0 else 0.1 * high, high, 4)
    shape = (1, _DEVICES)
    for number, level in enumerate(levels):
        array = fabricated(crossbar, shape, window, lambda name: stream(_SEED, "figure", name))
        g = np.full(shape, level)
        found = np.array(
            [drifted(crossbar, array, g, float(age), stream(_SEED, "figure", "path")) for age in ages]
        ).reshape(len(ages), -1)
        free = found if array.stuck is None else found[:, ~array.stuck.reshape(-1)]
        mean, spread = 100 * free.mean(1) / level, 100 * free.std(1) / level
        color = PALETTE[number]
        axes.fill_between(ages, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
        axes.plot(ages, mean, color=color, label=f"{_US * level:.4g} µS")
    axes.set_title("Drift: mean and standard deviation of devices")
    axes.set_xscale("log")
    axes.set_xlabel("age after the write [s]")
    axes.set_ylabel("conductance [% of written]")
    axes.legend(title="written", title_fontsize=9)


def _read(axes: Axes, crossbar: CrossbarCard) -> None:
    g, unit, label = _conductances(crossbar)
    number = 0
    for noise in crossbar.read_noise:
        curves: list[tuple[str, FloatArray]] = []
        if isinstance(noise, FlickerNoise) and crossbar.range is not None:
            curves = [(f"1/f, {age_text(age)}", flicker_spread(crossbar, noise, g, age)) for age in _AGES]
        elif isinstance(noise, GaussianNoise):
            curves = [("each read", noise.relative * g)]
        elif isinstance(noise, TelegraphNoise):
            spread = np.sqrt(noise.duty * (1 - noise.duty)) * noise.amplitude * g
            curves = [("telegraph, devices with a trap", spread)]
        for name, sigma in curves:
            axes.plot(g / unit, sigma / unit, color=PALETTE[number % len(PALETTE)], label=name)
            number += 1
    axes.set_title("Read noise")
    axes.set_xlabel(label)
    axes.set_ylabel("standard deviation" + (" [µS]" if crossbar.range is not None else " / largest"))
    axes.set_ylim(bottom=0)
    axes.legend()


def _update(axes: Axes, crossbar: CrossbarCard) -> None:
    spec = crossbar.update
    assert spec is not None
    window = crossbar.range or (0.0, 1.0)
    shape = (_CURVES, 1)
    array = fabricated(crossbar, shape, window, lambda name: stream(_SEED, "figure", name))
    pulses = int(np.ceil(_REACH / spec.step))
    # Where there are many pulses, a point every few of them.
    parts = np.diff(np.linspace(0, pulses, min(pulses, _POINTS) + 1).astype(np.int64))
    generator = stream(_SEED, "figure", "pulses")
    g = np.full(shape, window[0])
    path, number = [g], [0]
    for sign in (1, -1):
        for part in parts:
            g = pulsed_half(spec, array, g, np.full(shape, sign * part), generator)
            path.append(g)
            number.append(number[-1] + int(part))
    values = np.array(path)[:, :, 0]
    for device in range(_CURVES):
        stuck = array.stuck is not None and bool(array.stuck[device, 0])
        axes.plot(
            number,
            values[:, device] * (1.0 if crossbar.range is None else _US),
            color=PALETTE[device % len(PALETTE)],
            linestyle=(0, (2, 2)) if stuck else "-",
            linewidth=1.2,
        )
    axes.axvline(pulses, color=FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    axes.set_title(f"Update curves of {_CURVES} devices: {pulses} pulses up, then down")
    axes.set_xlabel("pulse")
    axes.set_ylabel("conductance / window" if crossbar.range is None else "conductance [µS]")


def _converter(axes: Axes, name: str, card: ConverterCard) -> None:
    codes = np.arange(2**card.bits)
    ideal = card.range[0] + codes * card.step
    for number in range(3):
        part = converter(card, stream(_SEED, "figure", name, number), object=name)
        levels = ideal if part.levels is None else part.levels
        axes.plot(codes, (levels - ideal) / card.step, color=PALETTE[number], linewidth=1.2)
    axes.set_title(f"{name}: transfer error of three dice")
    axes.set_xlabel(f"code ({card.bits} bits over {engineering(card.range[1] - card.range[0], 'V')})")
    axes.set_ylabel("error [LSB]")


def _offset(axes: Axes, card: DeviceCard) -> None:
    law = card.transistor
    assert law is not None
    least = 1e-14 if law.smallest is None else law.smallest.width * law.smallest.length
    area = np.geomspace(least, 1e-10, 100)
    sigma = 1e3 * law.threshold / np.sqrt(area)
    axes.plot(area * 1e12, np.sqrt(2.0) * sigma, color=PALETTE[0], label="offset of a pair")
    axes.plot(area * 1e12, sigma, color=PALETTE[1], label="threshold of one transistor")
    pair = card.amplifier.input_pair
    if pair is not None:
        offset = 1e3 * law.pair_offset(pair, card=card.name)
        axes.plot([pair.width * pair.length * 1e12], [offset], "o", color=PALETTE[6], label="input pair")
    axes.set_title("Mismatch, one standard deviation")
    axes.set_xlabel("area of one transistor, width × length [µm²]")
    axes.set_ylabel("voltage [mV]")
    _decades(axes)
    axes.legend()


def _wire(axes: Axes, card: DeviceCard) -> None:
    wire = card.wire
    assert wire is not None
    widths, ohms = np.array(sorted(wire.table)).T
    axes.plot(1e9 * widths, ohms, "o-", color=PALETTE[0], label="table, interpolated in the logarithms")
    if wire.width is not None:
        axes.plot(1e9 * wire.width, wire.per_segment(card=card.name), "D", color=PALETTE[1], label="chosen")
        axes.legend()
    axes.set_title("Resistance of one segment of a line")
    axes.set_xlabel("width of the line [nm]")
    axes.set_ylabel("resistance [Ω]")
    _decades(axes)


def _decades(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
