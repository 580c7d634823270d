"""What learning did to the devices: conductance histograms before and after."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from circuitsim.record import ArmRecord, RunRecord
from circuitsim.report.style import FAINT, PALETTE, headline_arm, new_figure

__all__ = ["conductance_histograms"]

_BINS = 33
_COLUMNS = 4
_HALVES = ("g_plus", "g_minus")
_SIEMENS = 1e6
"""Microsiemens in one siemens."""


def conductance_histograms(record: RunRecord) -> Figure | None:
    """Draw histograms of conductance [uS], initial against learned, one panel per crossbar.

    None where the record holds no learned or no initial conductances.
    """
    arm = _learned_arm(record)
    if arm is None:
        return None
    pairs = _pairs(record, arm)
    moved = float(np.mean(np.concatenate([np.abs(after - before) for before, after in pairs.values()])))
    title = f"Learning moved the conductances by {_number(moved)} µS on average"
    if (limited := _share_at_limits([after for _, after in pairs.values()])) > 0.01:
        title += f"; {100 * limited:.0f} % sit at a limit"
    figure = new_figure(0.9 + 3.6 * -(-len(pairs) // _COLUMNS), title)
    columns = min(_COLUMNS, len(pairs))
    grid = figure.subplots(-(-len(pairs) // columns), columns, squeeze=False).reshape(-1)
    everything = np.concatenate([np.concatenate(pair) for pair in pairs.values()])
    low, high = float(everything.min()), float(everything.max())
    if not high > low:
        low, high = low - 1, high + 1
    edges = np.linspace(low, high, _BINS + 1)
    for axes, (name, (before, after)) in zip(grid, pairs.items(), strict=False):
        _panel(axes, name, before, after, edges)
    for axes in grid[len(pairs) :]:
        axes.remove()
    for place in range(0, len(pairs), columns):
        grid[place].set_ylabel("devices [%]")
    handles, _ = grid[0].get_legend_handles_labels()
    figure.legend(handles, ["initial", f"learned ({arm.name})"], loc="outside lower center", ncols=2)
    return figure


def _panel(
    axes: Axes,
    name: str,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> None:
    moved = float(np.mean(np.abs(after - before)))
    axes.set_title(f"{name}\n{len(after)} devices, moved {_number(moved)} µS", fontsize=10)
    # Shares, so that crossbars of very different size compare.
    share = 100 / len(after)
    axes.stairs(np.histogram(before, edges)[0] * share, edges, fill=True, color="#C9C9C9", label="initial")
    axes.stairs(np.histogram(before, edges)[0] * share, edges, color=FAINT, linewidth=0.8)
    axes.stairs(
        np.histogram(after, edges)[0] * share, edges, color=PALETTE[0], linewidth=1.8, label="learned"
    )
    axes.set_xlabel("conductance [µS]")
    axes.set_ylim(bottom=0)


def _share_at_limits(learned: list[NDArray[np.float64]]) -> float:
    """Return the share of devices that the allowed range has stopped."""
    stopped = 0
    for values in learned:
        for limit in {float(values.min()), float(values.max())}:
            count = int(np.isclose(values, limit, rtol=1e-9, atol=0).sum())
            # One device has to be the least; several at exactly its value were stopped there.
            stopped += count if count > 1 else 0
    return stopped / sum(len(values) for values in learned)


def _learned_arm(record: RunRecord) -> ArmRecord | None:
    chosen = headline_arm(record)
    arms = [] if chosen is None else [chosen, *record.arms.values()]
    return next((arm for arm in arms if _pairs(record, arm)), None)


def _pairs(record: RunRecord, arm: ArmRecord) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return crossbar -> (initial, learned) conductances [uS], both halves in one vector."""
    halves: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for name, learned in arm.state.items():
        kind, _, rest = name.partition("/")
        crossbar, _, half = rest.rpartition("/")
        initial = record.extras.get(f"initial/{rest}")
        if kind != "conductance" or half not in _HALVES or initial is None or initial.shape != learned.shape:
            continue
        if learned.size:
            halves.setdefault(crossbar, []).append(
                (initial.ravel() * _SIEMENS, np.asarray(learned).ravel() * _SIEMENS)
            )
    return {
        crossbar: (np.concatenate([b for b, _ in found]), np.concatenate([a for _, a in found]))
        for crossbar, found in halves.items()
    }


def _number(value: float) -> str:
    return f"{value:.3g}"
