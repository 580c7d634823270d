"""Every figure of a record, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from circuitsim.record import RunRecord
from circuitsim.record.storage import failure
from circuitsim.report.conductances import conductance_histograms
from circuitsim.report.curves import gradient_alignment, learning_curves
from circuitsim.report.fit import fit
from circuitsim.report.operating_point import operating_point
from circuitsim.report.style import save, styled

__all__ = ["FIGURES", "build_figures", "save_figures", "write_figures"]

FIGURES: dict[str, Callable[[RunRecord], Figure | None]] = {
    "learning-curves": learning_curves,
    "gradient-alignment": gradient_alignment,
    "conductances": conductance_histograms,
    "operating-point": operating_point,
    "fit": fit,
}
"""File stem -> function that draws it, or returns None where the record lacks the data."""

_OF_CONDUCTANCES = ("conductances", "operating-point", "fit")
"""Figures that need to know what was learned."""


def build_figures(record: RunRecord) -> dict[str, Figure]:
    """Return the figures that the record has data for, by file stem."""
    substrate = (record.header.get("experiment") or {}).get("substrate") or {}
    # What a board has made of its conductances, nobody but the board knows.
    hidden = _OF_CONDUCTANCES if substrate.get("updates") == "board" else ()
    with styled():
        drawn = {stem: draw(record) for stem, draw in FIGURES.items() if stem not in hidden}
    return {stem: figure for stem, figure in drawn.items() if figure is not None}


def write_figures(record: RunRecord, folder: str | Path) -> list[Path]:
    """Write the figures that the record has data for as PNG files, 1600 pixels wide.

    Args:
        record: the run; unfinished ones will do.
        folder: where to write ``learning-curves.png`` and so on; made if it does not exist.

    Returns:
        The files written.

    Raises:
        RecordError: the folder or a file cannot be written.
    """
    return save_figures(build_figures(record), folder)


def save_figures(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Write figures as ``STEM.png``, 1600 pixels wide; the folder is made if it does not exist.

    Raises:
        RecordError: the folder or a file cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(error, "make the folder for the figures", folder) from error
    paths = []
    for stem, figure in figures.items():
        path = folder / f"{stem}.png"
        with styled():
            save(figure, path)
        paths.append(path)
    return paths
