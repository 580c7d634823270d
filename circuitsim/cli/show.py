"""`circuitsim show`: a record as tables and figures."""

from __future__ import annotations

from pathlib import Path

import typer

from circuitsim.cli.output import JSON_OPTION, console, make_table, print_json


def command(
    record: Path = typer.Argument(..., help="A record (.h5) of circuitsim train."),
    figures: bool = typer.Option(True, help="Write the figures (PNG)."),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Folder for the figures; RUN/ beside RUN.h5."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show a record: what was run, results per estimator, figures.

    Accuracies in %, times in s, residuals relative to the largest branch current.

    Example: [bold]circuitsim show runs/demo-s7.h5[/bold]
    """
    from circuitsim.record import read_record
    from circuitsim.report import write_figures
    from circuitsim.report.tables import headline, result_rows

    run = read_record(record)
    paths: list[Path] = []
    if figures:
        folder = output or record.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_figures(run, folder)
    columns, rows, results = result_rows(run)
    provenance = run.header.get("provenance", {})
    if as_json:
        print_json(
            {
                **headline(run),
                "record": str(record),
                "finished": run.finished,
                "estimators": results,
                "figures": [str(path) for path in paths],
                "provenance": provenance,
            }
        )
        return
    out = console()
    facts = [
        ("name", run.header.get("name")),
        ("description", run.header.get("experiment", {}).get("description", "")),
        ("seed of the die", run.header.get("seed")),
        ("card", run.header.get("card", {}).get("name")),
        ("circuitsim", provenance.get("circuitsim")),
        ("made", provenance.get("created")),
        ("state", "finished" if run.finished else "unfinished"),
    ]
    out.print(make_table(str(record), ["", ""], facts))
    out.print(make_table("Results", columns, rows))
    for path in paths:
        out.print(f"figure: {path}")
