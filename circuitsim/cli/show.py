"""`circuitsim show`: a record as tables and figures."""

from __future__ import annotations

from pathlib import Path

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    figure_folder,
    print_facts,
    print_json,
    print_line,
    print_table,
)


def command(
    record: Path = typer.Argument(..., help="A record (.h5) of circuitsim train."),
    figures: bool = typer.Option(True, help="Write the figures (PNG)."),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Folder for the figures; RUN/ beside RUN.h5 by default."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show a record: what was run, results per estimator, figures.

    Accuracies in %, errors of outputs in mV (root mean square), times in s, KCL residuals relative to the
    largest branch current.

    Example: circuitsim show runs/demo-s7.h5

    JSON: {record, finished, estimator, test_accuracy (0 to 1; null without classes), test_rms_error (V;
    null with classes), epochs, seconds, estimators [{estimator, test_accuracy, test_rms_error, epochs,
    seconds, cosine {crossbar: mean}, kcl_residual}], figures, provenance}.
    """
    from circuitsim.record import read_record
    from circuitsim.report.tables import energy_line, headline, result_rows

    run = read_record(record)
    paths: list[Path] = []
    if figures:
        from circuitsim.report import write_figures

        paths = write_figures(run, output or figure_folder(record))
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
    facts = [
        ("name", run.header.get("name")),
        ("description", run.header.get("experiment", {}).get("description", "")),
        ("seed of the die", run.header.get("seed")),
        ("card", run.header.get("card", {}).get("name")),
        ("circuitsim", provenance.get("circuitsim")),
        ("made", provenance.get("created")),
        (
            "epochs",
            ", ".join(sorted({f"{arm.epochs_done} of {arm.epochs}" for arm in run.arms.values()})),
        ),
        ("state", "finished" if run.finished else "unfinished"),
    ]
    print_facts(str(record), facts)
    print_table("Results", columns, rows)
    energy = energy_line(run)
    if energy is not None:
        print_line(f"energy   {energy}")
    for path in paths:
        print_line(f"figure   {path}")
