"""How commands print: tables for people on standard output, one JSON document with --json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["JSON_OPTION", "console", "make_table", "notices", "print_json"]

JSON_OPTION = typer.Option(
    False, "--json", help="Print one JSON document and nothing else on standard output."
)


def console() -> Console:
    """Return where results go: standard output; wide enough for tables where it is no terminal."""
    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, width=width)


def notices() -> Console:
    """Return where progress and remarks go: standard error."""
    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """Print a document as strict JSON: a number that is not finite becomes null."""
    typer.echo(json.dumps(_strict(document), indent=2, allow_nan=False))


def make_table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table; the first column is text, the others are aligned right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for number, column in enumerate(columns):
        left = number == 0
        table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=left)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


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
