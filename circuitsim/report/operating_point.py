"""One sample at rest on the chip: what goes in, the voltages it settles to, what comes out."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from circuitsim.record import RunRecord
from circuitsim.report.style import FAINT, PALETTE, new_figure

__all__ = ["operating_point"]

_VOLTAGE = "sample/voltage/"
_MANY = 24
"""More classes than this are not all labelled."""


def operating_point(record: RunRecord) -> Figure | None:
    """Draw a sample's input, its node voltages [V], and class probabilities or outputs [V].

    None where one is missing.
    """
    extras = record.extras
    voltages = {
        name.removeprefix(_VOLTAGE): array for name, array in extras.items() if name.startswith(_VOLTAGE)
    }
    classified = "sample/probability" in extras and "sample/label" in extras
    wanted = "test/output" in extras and "test/target" in extras
    if not voltages or "sample/input" not in extras or not (classified or wanted):
        return None
    image = _image(record, extras["sample/input"])
    if classified:
        probability = np.asarray(extras["sample/probability"], dtype=np.float64)
        label = int(extras["sample/label"][0])
        title = _title(probability, label, image is not None)
    else:
        output, target = (np.asarray(extras[f"test/{name}"])[0] for name in ("output", "target"))
        title = _title_of_outputs(output, target)
    figure = new_figure(max(4.6, 1.0 + 1.7 * len(voltages)), title)
    left, middle, right = figure.subfigures(1, 3, squeeze=False, width_ratios=(3.2, 5.0, 3.4))[0]
    _draw_input(left, extras["sample/input"], image)
    panels = middle.subplots(len(voltages), 1, squeeze=False)[:, 0]
    for axes, (name, voltage) in zip(panels, voltages.items(), strict=True):
        _draw_voltages(axes, name, voltage)
    panels[-1].set_xlabel("node")
    if classified:
        _draw_probabilities(right.subplots(), probability, label)
    else:
        _draw_outputs(right.subplots(), output, target)
    return figure


def _title(probability: NDArray[np.float64], label: int, is_image: bool) -> str:
    what = "digit" if is_image and len(probability) == 10 else "class"
    winner = int(probability.argmax())
    share = f"probability {100 * probability[winner]:.1f} %"
    if winner == label:
        return f"The operating point of a {what} {label}: recognised with {share}"
    return f"The operating point of a {what} {label}: mistaken for {winner} with {share}"


def _title_of_outputs(output: NDArray[np.float64], target: NDArray[np.float64]) -> str:
    worst = int(np.abs(output - target).argmax())
    which = "" if len(output) == 1 else f" {worst}"
    off = 1e3 * abs(output[worst] - target[worst])
    return (
        f"The operating point of a test sample: output{which} at {1e3 * output[worst]:.3g} mV, "
        f"{off:.2g} mV from what was wanted"
    )


def _image(record: RunRecord, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    shape = (record.header.get("figures") or {}).get("image_shape")
    if not isinstance(shape, list) or len(shape) != 2 or shape[0] * shape[1] != values.size:
        return None
    return np.asarray(values, dtype=np.float64).reshape(shape)


def _draw_input(panel: FigureBase, values: NDArray[np.float64], image: NDArray[np.float64] | None) -> None:
    axes = panel.subplots()
    if image is None:
        axes.set_title(f"Input, {values.size} values")
        _bars(axes, values, PALETTE[2])
        axes.set_xlabel("element")
        axes.set_ylabel("input [1]")
        return
    rows, columns = image.shape
    axes.set_title(f"Input, {rows} × {columns} pixels")
    shown = axes.imshow(image, cmap="gray", interpolation="nearest")
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    panel.colorbar(shown, ax=axes, orientation="horizontal", label="input [1]", shrink=0.9, pad=0.04)


def _draw_voltages(axes: Axes, name: str, voltage: NDArray[np.float64]) -> None:
    peak = float(np.abs(voltage).max(initial=0.0))
    scale, unit = (1e3, "mV") if peak < 1 else (1.0, "V")
    axes.set_title(f"All {voltage.size} nodes" if name == "nodes" else f"Layer {name}, {voltage.size} nodes")
    _bars(axes, voltage * scale, PALETTE[0])
    axes.set_ylabel(f"voltage [{unit}]")


def _bars(axes: Axes, values: NDArray[np.float64], colour: str) -> None:
    axes.bar(np.arange(values.size), values, width=0.8, color=colour)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.grid(False, axis="x")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))


def _draw_outputs(axes: Axes, output: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    place = np.arange(output.size)
    axes.barh(place, 1e3 * output, color=PALETTE[0], height=0.6 if output.size > 2 else 0.2, label="output")
    axes.plot(1e3 * target, place, "D", color=PALETTE[1], markersize=8, label="wanted")
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_title("Output")
    axes.set_xlabel("voltage [mV]")
    axes.set_ylabel("output")
    axes.set_yticks(place)
    axes.set_ylim(output.size - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.grid(False, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _draw_probabilities(axes: Axes, probability: NDArray[np.float64], label: int) -> None:
    classes = np.arange(probability.size)
    winner = int(probability.argmax())
    colours = [PALETTE[1] if k == label else PALETTE[0] if k == winner else "#B8B8B8" for k in classes]
    bars = axes.barh(classes, 100 * probability, color=colours, height=0.75)
    for k, bar in zip(classes, bars, strict=True):
        if probability.size > _MANY and k not in (label, winner):
            continue
        text = f"{100 * probability[k]:.1f} %" + (" (true label)" if k == label else "")
        inside = probability[k] > 0.6
        axes.annotate(
            text,
            (bar.get_width(), k),
            xytext=(-5 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=8.5,
            color="white" if inside else "#222222",
            fontweight="bold" if k == label else "normal",
        )
    axes.set_title("Output")
    axes.set_xlabel("class probability [%]")
    axes.set_ylabel("class")
    axes.set_yticks(classes if probability.size <= _MANY else [label, winner])
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 25))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
