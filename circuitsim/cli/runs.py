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
    """List the records of a folder: test accuracy (%) or error (mV, root mean square), epochs, time (s).

    Example: circuitsim runs runs

    JSON: a list of {record, problem, name, seed, finished, estimator, test_accuracy (0 to 1),
    test_rms_error (V), epochs, seconds}; problem says why a record cannot be read, and is null otherwise.
    """
    from circuitsim.record import list_records

    found = [_document(summary) for summary in list_records(folder)]
    if as_json:
        print_json(found)
        return
    in_volts = any(item["test_rms_error"] is not None for item in found)
    tests = ["test [%]", *(["RMS [mV]"] if in_volts else [])]
    columns = ["record", "estimator", "seed", *tests, "epochs", "time [s]", "state"]
    count = f"{len(found)} record{'' if len(found) == 1 else 's'}"
    print_table(f"{count} in {folder}", columns, [_row(item, in_volts) for item in found], left=(0, 1))
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
        "test_rms_error": None,
        "epochs": None,
        "seconds": None,
    }
    if summary.problem is None:
        try:
            item |= {**headline(read_record(summary.path)), "finished": summary.finished}
        except RecordError as error:
            item["problem"] = error.rule
    return item


def _row(item: dict[str, Any], in_volts: bool) -> list[object]:
    from circuitsim.report.tables import score_cell

    name = Path(item["record"]).name
    errors = [score_cell(item["test_rms_error"], in_volts=True)] if in_volts else []
    if item["problem"]:
        return [name, "", "", "", *errors, "", "", "unreadable"]
    return [
        name,
        item["estimator"],
        item["seed"],
        score_cell(item["test_accuracy"], in_volts=False),
        *errors,
        item["epochs"],
        f"{item['seconds']:.1f}",
        "finished" if item["finished"] else "unfinished",
    ]
