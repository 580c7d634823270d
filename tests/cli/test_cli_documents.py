"""What commands print: one JSON document with --json, tables that keep every name without it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Command, Outcome

PHASES = ("nudged", "corrected", "dyadic")


def documented(call: Command, command: str) -> set[str]:
    """Every word of the part of a command's help that names its JSON keys."""
    return set(re.findall(r"\w+", call(command, "--help").out.partition("JSON")[2]))


def test_compile_counts_a_small_network(folder: Path, call: Command) -> None:
    counts = call("compile", "small.yaml", "--json").document
    assert counts["name"] == "small"
    assert (counts["inputs"], counts["outputs"]) == (3, 2)
    # 3 x 4 and 4 x 2 pairs, and a bias pair for each of 4 neurons.
    assert [(c["name"], c["word_lines"], c["bit_lines"], c["devices"]) for c in counts["crossbars"]] == [
        ("x-hidden", 3, 4, 24),
        ("hidden-out", 4, 2, 16),
        ("hidden.bias", 1, 4, 8),
    ]
    assert counts["elements"]["resistor"] == 48
    assert counts["elements"]["buffer"] == 8
    assert counts["non_reciprocal"] == {"buffer": 8}
    assert 1e-6 <= counts["conductance"]["min"] < counts["conductance"]["max"] <= 1e-4
    assert set(counts) <= documented(call, "compile")


def test_compile_summary_says_what_is_one_way(folder: Path, call: Command) -> None:
    shown = call("compile", "small.yaml")
    assert shown.err == ""
    assert re.search(r"non-reciprocal +8 buffer", shown.out)
    assert re.search(r"x-hidden +3 +4 +24 +differential pairs +yes", shown.out)


@pytest.mark.parametrize("phase", PHASES)
def test_a_compiled_phase_solves_to_the_same_voltages(phase: str, folder: Path, call: Command) -> None:
    drive = ("--input", "300m,-1,0.2", "--target", "1", "--beta", "-0.5", "--phase", phase)
    written = call("compile", "small.yaml", *drive, "-o", "phase.yaml", "--json").document
    assert (written["phase"], written["file"], written["inputs"]) == (phase, "phase.yaml", 0)
    direct = call("solve", "small.yaml", *drive, "--json").document
    from_file = call("solve", "phase.yaml", "--json").document
    shared = set(direct["nodes"]) & set(from_file["nodes"])
    assert len(shared) == len(direct["nodes"])
    for name in shared:
        assert from_file["nodes"][name] == pytest.approx(direct["nodes"][name], rel=1e-6, abs=1e-12)
    free = call("solve", "small.yaml", *drive[:2], "--json").document
    moved = [abs(direct["nodes"][name] - free["nodes"][name]) for name in free["nodes"]]
    # The dyadic phase leaves the circuit itself alone: its answer is in the copy.
    assert (max(moved) > 1e-6) == (phase != "dyadic")


def test_compile_writes_a_deck_and_a_netlist_that_reads_back(folder: Path, call: Command) -> None:
    assert call("compile", "small.yaml", "--format", "spice", "-o", "deck.cir").code == 0
    deck = (folder / "deck.cir").read_text()
    assert deck.rstrip().endswith(".end")
    counts = call("compile", "small.yaml", "-o", "small-net.yaml", "--json").document
    again = call("compile", "small-net.yaml", "--json").document
    assert again["digest"] == counts["digest"]
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()


def test_solve_gives_a_divider_s_operating_point(folder: Path, call: Command) -> None:
    point = call("solve", "divider.yaml", "--json").document
    assert point["nodes"] == {"[red]": 1.0, ":smile:": pytest.approx(0.5, rel=1e-14)}
    assert point["branches"] == {"V1": pytest.approx(-5e-4, rel=1e-14)}
    assert point["power"] == pytest.approx(5e-4, rel=1e-12)
    assert point["outputs"] == [pytest.approx(0.5)]
    assert 0 <= point["kcl_residual"]["absolute"] < 1e-17
    assert 0 <= point["kcl_residual"]["relative"] < 1e-12
    assert point["iterations"] >= 1
    assert point["small_signal"]["asymmetry"] == 0.0
    assert point["small_signal"]["metric_symmetrisable"] is True
    assert point["small_signal"]["largest_real_part"] is None
    assert set(point) <= documented(call, "solve")


def test_solve_tables_keep_names_in_brackets(folder: Path, call: Command) -> None:
    shown = call("solve", "divider.yaml")
    assert re.search(r"\[red\] +1 V", shown.out)
    assert re.search(r":smile: +500 mV", shown.out)
    assert "Voltages of [bold]half[/bold] [S]" in shown.out
    shown = call("solve", "small.yaml", "--input", "1,2,3", "--all")
    for name in ("hidden[3]", "out[1]", "x[2].p", "hidden.buffer.hidden[0].p"):
        assert re.search(rf"{re.escape(name)} +-?[\d.]+ [munp]?[VA]", shown.out), name
    assert max(map(len, shown.out.splitlines())) <= 120


def test_solve_reads_samples_and_files(folder: Path, call: Command) -> None:
    sample = call("solve", "digits16.yaml", "--sample", "0", "--json").document
    from circuitsim.data import load_digits

    pixels = load_digits().test_inputs[0]
    np.save("pixels.npy", pixels)
    Path("pixels.csv").write_text(",".join(map(repr, pixels.tolist())) + "\n# a digit\n")
    for given in ("pixels.npy", "pixels.csv"):
        assert call("solve", "digits16.yaml", "--input", given, "--json").document == sample
    written = ",".join(f"{value * 1e3:.17g}m" for value in pixels)
    typed = call("solve", "digits16.yaml", "--input", written, "--json").document
    assert typed["outputs"] == pytest.approx(sample["outputs"], rel=1e-9)


def test_solve_says_how_many_rows_it_left_out(folder: Path, call: Command) -> None:
    shown = call("solve", "digits16.yaml", "--sample", "0")
    left = int(shown.err.split(" more nodes")[0])
    every = call("solve", "digits16.yaml", "--sample", "0", "--json").document["nodes"]
    assert left == len(every) - 40
    assert "hidden[15]" in shown.out


def test_gradcheck_rows_are_complete_and_true(folder: Path, call: Command) -> None:
    args = ("gradcheck", "small.yaml", "--batch", "2", "--devices", "3", "--beta", "0.1", "--beta", "0.01")
    rows = call(*args, "--json").document
    assert set(rows[0]) <= documented(call, "gradcheck")
    keys = {(row["estimator"], row["beta"], row["crossbar"]) for row in rows}
    assert len(keys) == len(rows)
    assert {crossbar for _, _, crossbar in keys} == {"x-hidden", "hidden-out", "hidden.bias"}
    assert {beta for _, beta, _ in keys} == {None, 0.1, 0.01}
    for row in rows:
        exact = row["estimator"] in ("adjoint", "dyadic")
        if exact or row["estimator"] == "corrected-centred":
            assert row["relative_error"] < (1e-12 if exact else 1e-2)
            assert row["cosine"] > 0.9999
            assert row["relative_error_fd"] < 1e-2
    shown = call(*args)
    header = next(line for line in shown.out.splitlines() if line.startswith("crossbar"))
    assert re.split(r"\s+", header.strip())[:3] == ["crossbar", "estimator", "beta"]
    assert re.search(r"^x-hidden +adjoint ", shown.out, re.MULTILINE)
    assert re.search(r"^ +corrected-centred +0\.01 ", shown.out, re.MULTILINE)
    assert "uniform random inputs" in shown.err


@pytest.mark.parametrize("kind", ["network", "experiment", "card"])
def test_schema_is_json_with_and_without_the_option(kind: str, folder: Path, call: Command) -> None:
    schema = call("schema", kind).document
    assert call("schema", kind, "--json").document == schema
    assert schema["type"] == "object"
    assert set(schema) - {"description", "additionalProperties"} <= documented(call, "schema") | {
        "$schema",
        "$defs",
    }
    if kind == "network":
        assert set(yaml.safe_load(Path("small.yaml").read_text())) <= set(schema["properties"])


def test_train_writes_a_record_that_show_and_runs_read(
    folder: Path, call: Command, installed: Callable[..., Outcome]
) -> None:
    trained = call("train", "quick.yaml", "--json").document
    assert trained["record"] == "quick-s5.h5"
    assert (trained["epochs"], trained["estimator"]) == (2, "corrected-centred")
    assert 0.5 < trained["test_accuracy"] <= 1
    assert trained["seconds"] > 0
    assert [row["estimator"] for row in trained["estimators"]] == ["corrected-centred", "adjoint"]
    assert set(trained["estimators"][0]["cosine"]) == {"pixels-hidden", "hidden-output"}
    assert trained["figures"]
    for path in trained["figures"]:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert set(trained) | set(trained["estimators"][0]) <= documented(call, "train")

    shown = call("show", "quick-s5.h5", "-o", "drawn", "--json").document
    assert shown["finished"] is True
    assert set(shown) <= documented(call, "show")
    assert {Path(path).name for path in shown["figures"]} == {Path(path).name for path in trained["figures"]}
    for key in ("test_accuracy", "epochs", "seconds", "record", "estimators"):
        assert shown[key] == trained[key]

    # A second record, a broken one, and one that is no record's business.
    again = installed("train", "quick.yaml", "--no-figures", cwd=folder)
    assert again.code == 0
    assert "quick-s5-2.h5" in again.out
    Path("broken.h5").write_bytes(b"no HDF5 at all")
    listed = call("runs", ".", "--json").document
    assert [item["record"] for item in listed] == ["broken.h5", "quick-s5-2.h5", "quick-s5.h5"]
    assert "not a record" in listed[0]["problem"]
    assert listed[0]["test_accuracy"] is None
    assert listed[2]["problem"] is None
    assert listed[2]["test_accuracy"] == listed[1]["test_accuracy"] == trained["test_accuracy"]
    assert all(set(item) <= documented(call, "runs") for item in listed)
    table = call("runs", ".")
    assert re.search(r"^broken.h5 .*unreadable", table.out, re.MULTILINE)
    assert "not a record" in table.err

    # Progress is readable in a log: one line an estimator, on standard error only.
    lines = again.err.splitlines()
    assert "1438 samples to learn from" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["corrected-centred", "adjoint"]
    assert all("2 epochs, test " in line for line in lines[2:])
    assert re.search(r"^corrected-centred +\d\d\.\d\d ", again.out, re.MULTILINE)
    assert max(map(len, again.out.splitlines())) <= 100
    assert "circuitsim show quick-s5-2.h5" in again.out


def test_tables_split_where_they_are_too_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from circuitsim.cli.output import print_table

    columns = ["name", *(f"column {k}" for k in range(40))]
    print_table("wide", columns, [["a[b]", *range(40)], ["[S]", *range(40)]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    numbers = [int(word) for line in lines if line.startswith("a[b]") for word in line.split()[1:]]
    assert numbers == list(range(40))
    assert sum(line.startswith("[S]") for line in lines) == sum(line.startswith("a[b]") for line in lines) > 1


def test_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    from circuitsim.cli.output import print_json

    print_json({"a": float("nan"), "b": [np.float64("inf"), 1.5], "c": np.arange(2), "d": (None, True)})
    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": [0, 1],
        "d": [None, True],
    }


def test_streams_are_apart_in_a_real_process(folder: Path, installed: Callable[..., Outcome]) -> None:
    solved = installed("solve", "digits16.yaml", "--sample", "3", cwd=folder)
    assert solved.code == 0
    assert "more nodes" in solved.err
    assert "more nodes" not in solved.out
    as_json = installed("solve", "digits16.yaml", "--sample", "3", "--json", cwd=folder)
    assert as_json.err == ""
    assert set(as_json.document["nodes"]) >= {"hidden[0]", "output[9]"}
