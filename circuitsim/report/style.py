"""How every figure looks, whatever the user's matplotlib settings; and how it reaches the disk."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from circuitsim.record import ArmRecord, RunRecord
from circuitsim.record.storage import failure

__all__ = [
    "DPI",
    "FAINT",
    "PALETTE",
    "count_epochs",
    "headline_arm",
    "line_styles",
    "new_figure",
    "save",
    "styled",
    "write_png",
]

DPI = 160
WIDTH = 10.0
"""Width of a figure [inch]; with ``DPI``, 1600 pixels."""

# Okabe and Ito's colours, which remain distinct under the common colour-vision deficiencies.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FAINT = "#8A8A8A"
INK = "#222222"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "axes.labelsize": 10.0,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def styled() -> Iterator[None]:
    """Use this module's style inside the block and restore the caller's settings after it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, title: str) -> Figure:
    """Return an empty figure of the standard width, ``height`` [inch] high, titled with its finding."""
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=engine)
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, 82), x=0.012, ha="left", fontsize=13, fontweight="bold")
    return figure


def write_png(draw: Callable[[], Figure], path: str | Path) -> Path:
    """Draw a figure and write it as PNG, 1600 pixels wide; the folder is made if it does not exist.

    Raises:
        RecordError: it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(error, "make the folder for the figure", path.parent) from error
    with styled():
        save(draw(), path)
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG: the same bytes for the same data, and never half a file.

    Raises:
        RecordError: it cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise failure(error, "write the figure", path) from error


def headline_arm(record: RunRecord) -> ArmRecord | None:
    """Return the arm that the header names for figures, or else the first."""
    name = (record.header.get("figures") or {}).get("arm")
    return record.arms.get(str(name)) or next(iter(record.arms.values()), None)


def line_styles(record: RunRecord) -> dict[str, dict[str, Any]]:
    """Return the line properties of each arm, by name.

    Several arms often agree to within a line's width, so dashes and staggered markers keep each of
    them visible; the exact reference is a wide band beneath all.
    """
    styles: dict[str, dict[str, Any]] = {}
    epochs = max((arm.epochs_done for arm in record.arms.values()), default=0)
    number = 0
    for place, name in enumerate(record.arms):
        if name.startswith("adjoint"):
            styles[name] = {"color": "#C9C9C9", "linewidth": 6.0, "zorder": 1.5, "solid_capstyle": "round"}
            continue
        styles[name] = {
            "color": PALETTE[number % len(PALETTE)],
            "linestyle": _DASHES[number % len(_DASHES)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 6.5,
            "markeredgecolor": "white",
            "markeredgewidth": 0.8,
            "markevery": (place, len(record.arms)) if epochs > 2 * len(record.arms) else 1,
            "zorder": 3 + 0.01 * number,
        }
        number += 1
    return styles


def count_epochs(axes: Axes, epochs: int) -> None:
    """Label the x axis as epochs, 1 to ``epochs``, with whole numbers only."""
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, max(epochs, 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
