"""`circuitsim runs`: the records of a folder with their headline numbers."""

from __future__ import annotations

from pathlib import Path

import typer

from circuitsim.cli.output import JSON_OPTION, console, make_table, print_json
from circuitsim.errors import RecordError


def command(
    folder: Path = typer.Argument(Path("runs"), help="Folder to look in."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the records of a folder: test accuracy (%), epochs, training time (s).

    Example: [bold]circuitsim runs runs[/bold]
    """
    from circuitsim.record import list_records, read_record
    from circuitsim.report.tables import headline

    documents = []
    rows = []
    for summary in list_records(folder):
        item: dict[str, object] = {"record": str(summary.path), "problem": summary.problem}
        if summary.problem is None:
            try:
                best = headline(read_record(summary.path))
            except RecordError as error:
                item["problem"] = str(error)
            else:
                item |= {"name": summary.header.get("name"), "seed": summary.header.get("seed")}
                item |= {"finished": summary.finished, **best}
        documents.append(item)
        if item["problem"]:
            rows.append([summary.path.name, "", "", "", "", "", item["problem"]])
        else:
            accuracy = item["test_accuracy"]
            rows.append(
                [
                    summary.path.name,
                    item["estimator"],
                    item["seed"],
                    "" if accuracy is None else f"{100 * float(str(accuracy)):.2f}",
                    item["epochs"],
                    f"{float(str(item['seconds'])):.1f}",
                    "finished" if summary.finished else "unfinished: circuitsim train RUN.h5 --resume",
                ]
            )
    if as_json:
        print_json(documents)
        return
    columns = ["record", "estimator", "seed", "test [%]", "epochs", "seconds", "state"]
    console().print(make_table(f"{len(rows)} records in {folder}", columns, rows))
