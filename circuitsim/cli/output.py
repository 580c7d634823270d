"""How commands print: tables for people on standard output, one JSON document with --json."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "JSON_OPTION",
    "announce_compilation",
    "figure_folder",
    "print_facts",
    "print_json",
    "print_line",
    "print_table",
    "progress_console",
    "remark",
]

JSON_OPTION = typer.Option(
    False, "--json", help="Print one JSON document and nothing else on standard output."
)
_WIDTH = 120
"""Of tables that go to a file or a pipe; a terminal has its own."""
_GAP = 2
"""Between columns."""
_LONG_WORD = 9
"""Column titles with longer words are broken behind a hyphen or a dot."""


def print_line(text: str) -> None:
    """Print one line of results, unwrapped and as it is."""
    typer.echo(text)


def remark(text: str) -> None:
    """Print one line that is no result: on standard error."""
    typer.echo(text, err=True)


@cache
def announce_compilation() -> None:
    """Say so, once in a process, when kernels are compiled, which takes up to a minute."""
    from circuitsim.solver.kernels.compiling import on_first_compilation

    on_first_compilation(lambda: remark("compiling kernels, once on this machine: up to a minute ..."))


def print_json(document: Any) -> None:
    """Print a document as strict JSON: a number that is not finite becomes null."""
    typer.echo(json.dumps(_strict(document), indent=2, allow_nan=False))


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: Sequence[int] = (0,),
    groups: bool = False,
) -> None:
    """Print a table. Columns in ``left`` hold text, the others are aligned right.

    With ``groups``, rows that begin with the same cell stand together, and only the first shows it. What
    is too wide is printed in parts, each with the first column.
    """
    titles = [
        column if number in left else _broken(column).replace(" ", "\n")
        for number, column in enumerate(columns)
    ]
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(len(line) for text in texts for line in text.split("\n"))
        for texts in zip(titles, *cells, strict=True)
    ]
    out = _console()
    for part in _parts(widths, out.width):
        table = _table(title if part[1:2] in ([], [1]) else None, show_header=True)
        for number in part:
            table.add_column(titles[number], justify="left" if number in left else "right", overflow="fold")
        previous: str | None = None
        for row in cells:
            first = row[0]
            if groups and previous is not None and first != previous:
                table.add_section()
            shown = ["" if groups and first == previous else first, *(row[number] for number in part[1:])]
            previous = first
            table.add_row(*shown)
        out.print(table)
        out.print()


def print_facts(title: str, facts: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    table = _table(title, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, str(value))
    out = _console()
    out.print(table)
    out.print()


def progress_console() -> Console:
    """Return standard error for a live display."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def figure_folder(record: Path) -> Path:
    """Return where the figures of a record go: RUN/ beside RUN.h5."""
    return record.with_suffix("") if record.suffix else record.with_name(f"{record.name}-figures")


def _table(title: str | None, *, show_header: bool) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        show_header=show_header,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _console() -> Console:
    from rich.console import Console

    # No markup: [S] and hidden[3] are a unit and a node.
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(markup=False, emoji=False, highlight=False, width=width)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Return the columns of each part of a table that is at most ``room`` wide, if that is possible."""
    parts = [[0]]
    used = widths[0]
    for number, width in enumerate(widths[1:], start=1):
        if used + _GAP + width > room and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(number)
        used += _GAP + width
    return parts


def _broken(title: str) -> str:
    """Break long words of a column's title behind hyphens and dots."""
    words = re.split(r"(\s)", title)
    return "".join(re.sub(r"([-.])(?=.)", "\\1\n", w) if len(w) > _LONG_WORD else w for w in words)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if hasattr(value, "tolist"):
        return _strict(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
