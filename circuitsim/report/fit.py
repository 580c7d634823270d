"""Wanted outputs against those that the circuit gives."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from circuitsim.record import RunRecord
from circuitsim.report.style import FAINT, PALETTE, headline_arm, new_figure

__all__ = ["fit"]

_COLUMNS = 4
_PANEL = 3.4
"""Height of a panel [inch]."""


def fit(record: RunRecord) -> Figure | None:
    """Draw each output [V] of the test samples over what was wanted, one panel per output.

    None where the record has classes, or is not finished.
    """
    if "test/output" not in record.extras or "test/target" not in record.extras:
        return None
    output = 1e3 * np.asarray(record.extras["test/output"], dtype=np.float64)
    target = 1e3 * np.asarray(record.extras["test/target"], dtype=np.float64)
    arm = headline_arm(record)
    error = float(np.sqrt(np.mean((output - target) ** 2)))
    spread = float(np.sqrt(np.mean((target - target.mean(axis=0)) ** 2)))
    title = f"{'' if arm is None else arm.name + ': '}outputs come within {error:.2g} mV of what was wanted"
    if spread > 0:
        title += f", which varies by {spread:.3g} mV (root mean square)"
    count = output.shape[1]
    columns = min(_COLUMNS, count)
    figure = new_figure(1.2 + _PANEL * -(-count // columns), title)
    grid = figure.subplots(-(-count // columns), columns, squeeze=False).reshape(-1)
    for k, axes in enumerate(grid):
        if k >= count:
            axes.remove()
            continue
        ends = [min(target[:, k].min(), output[:, k].min()), max(target[:, k].max(), output[:, k].max())]
        axes.plot(ends, ends, color=FAINT, linewidth=1.0, label="exact")
        axes.plot(
            target[:, k], output[:, k], "o", color=PALETTE[0], markersize=4.5, alpha=0.7, label="test sample"
        )
        axes.set_xlabel("wanted [mV]")
        if k % columns == 0:
            axes.set_ylabel("output [mV]")
        if count > 1:
            axes.set_title(f"output {k}")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
