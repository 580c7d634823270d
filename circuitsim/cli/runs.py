"""`circuitsim runs`: the records of a folder with their headline numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import JSON_OPTION, print_json, print_table, remark
from circuitsim.errors import RecordError

if TYPE_CHECKING:
    from circuitsim.record import RecordSummary


def command(
    folder: Path = typer.Argument(Path("runs"), help="Folder to look in."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the records of a folder: test accuracy (%), epochs, training time (s).

    Example: circuitsim runs runs

    JSON: a list of {record, problem, name, seed, finished, estimator, test_accuracy (0 to 1), epochs,
    seconds}; problem says why a record cannot be read, and is null otherwise.
    """
    from circuitsim.record import list_records

    found = [_document(summary) for summary in list_records(folder)]
    if as_json:
        print_json(found)
        return
    columns = ["record", "estimator", "seed", "test [%]", "epochs", "time [s]", "state"]
    count = f"{len(found)} record{'' if len(found) == 1 else 's'}"
    print_table(f"{count} in {folder}", columns, [_row(item) for item in found], left=(0, 1))
    for item in found:
        if item["problem"]:
            remark(f"{item['record']}: {item['problem']}")
    if any(item["finished"] is False for item in found):
        remark("Go on with an unfinished one: circuitsim train RECORD.h5 --resume")


def _document(summary: RecordSummary) -> dict[str, Any]:
    from circuitsim.record import read_record
    from circuitsim.report.tables import headline

    item: dict[str, Any] = {
        "record": str(summary.path),
        "problem": summary.problem,
        "name": summary.header.get("name"),
        "seed": summary.header.get("seed"),
        "finished": None,
        "estimator": None,
        "test_accuracy": None,
        "epochs": None,
        "seconds": None,
    }
    if summary.problem is None:
        try:
            item |= {**headline(read_record(summary.path)), "finished": summary.finished}
        except RecordError as error:
            item["problem"] = error.rule
    return item


def _row(item: dict[str, Any]) -> list[object]:
    name = Path(item["record"]).name
    if item["problem"]:
        return [name, "", "", "", "", "", "unreadable"]
    accuracy = item["test_accuracy"]
    return [
        name,
        item["estimator"],
        item["seed"],
        "" if accuracy is None else f"{100 * accuracy:.2f}",
        item["epochs"],
        f"{item['seconds']:.1f}",
        "finished" if item["finished"] else "unfinished",
    ]
