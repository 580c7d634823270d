"""`circuitsim tran` and `relax`, and the sweeps of `solve`: what they print, write and refuse."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import Command

PNG = b"\x89PNG\r\n"
RC = """an RC section
v1 in 0 pulse(0 1 1u 1n 1n 3u 10u)
r1 in out 1k
c1 out 0 1n
.tran 0.5u 5u 1u
.end
"""
LATCH = """a latch
b1 x 0 v=tanh(-3*v(b))
r1 x a 1k
c1 a 0 1n
b2 y 0 v=tanh(-3*v(a))
r2 y b 1k
c2 b 0 1n
.end
"""
DIODE = """a diode's curve
v1 a 0 1
r1 a b 1k
d1 b 0 dm
.model dm d(is=1e-14)
.nodeset v(b)=0.6
.dc v1 -1 1 0.5 r1 1k 2k 1k
.end
"""


@pytest.fixture
def decks(folder: Path) -> Path:
    """The folder of small files, with decks in it."""
    for name, text in (("rc", RC), ("latch", LATCH), ("diode", DIODE)):
        (folder / f"{name}.cir").write_text(text)
    return folder


def test_a_deck_runs_as_its_tran_line_says(decks: Path, call: Command) -> None:
    run = call("tran", "rc.cir", "--json").document
    assert run["time"] == pytest.approx(np.arange(1e-6, 5.1e-6, 0.5e-6))
    assert run["start"] == "operating point"
    assert set(run["nodes"]) == {"in", "out"}
    charged = 1 - math.exp(-3)
    assert run["nodes"]["out"][6] == pytest.approx(charged, abs=1e-3)
    assert run["nodes"]["out"][8] == pytest.approx(charged * math.exp(-1), abs=1e-3)
    through = (np.array(run["nodes"]["in"]) - np.array(run["nodes"]["out"])) / 1e3
    assert run["branches"]["v1"] == pytest.approx(-through, abs=1e-12)
    assert run["steps"]["accepted"] > 50
    assert run["kcl_residual"]["relative"] < 1e-9


def test_options_come_before_what_the_deck_says(decks: Path, call: Command) -> None:
    run = call("tran", "rc.cir", "--stop", "2u", "--step", "1u", "--nodes", "out", "--json").document
    assert run["time"] == pytest.approx([0, 1e-6, 2e-6])
    assert list(run["nodes"]) == ["out"]
    loose = call("tran", "rc.cir", "--tolerance", "1e-3", "--json").document
    tight = call("tran", "rc.cir", "--tolerance", "1e-8", "--json").document
    assert loose["steps"]["accepted"] < tight["steps"]["accepted"]
    assert loose["nodes"]["out"] == pytest.approx(tight["nodes"]["out"], abs=5e-3)


def test_a_run_is_printed_written_and_drawn(decks: Path, call: Command) -> None:
    done = call("tran", "rc.cir", "-o", "rc.csv", "--plot")
    assert done.code == 0
    assert "Voltages of an RC" in done.out
    assert "5 us" in done.out
    assert "KCL residual" in done.out
    assert "written: rc.csv" in done.err
    rows = list(csv.reader((decks / "rc.csv").read_text().splitlines()))
    assert rows[0] == ["time [s]", "in [V]", "out [V]", "v1 [A]"]
    assert len(rows) == 1 + 9
    assert float(rows[-1][0]) == 5e-6
    assert (decks / "rc-tran.png").read_bytes().startswith(PNG)


def test_a_network_relaxes_until_it_has_settled(decks: Path, call: Command) -> None:
    drive = ["--input", "0.5,-0.2,1"]
    settled = call("tran", "small.yaml", *drive, "--until-settled", "--json").document
    assert settled["settled"] is True
    assert settled["distance"] <= 1e-9
    assert settled["largest_real_part"] < 0
    point = call("solve", "small.yaml", *drive, "--json").document
    assert settled["nodes"] == pytest.approx(point["nodes"], abs=1e-9)
    # In time it starts from rest and ends there too.
    run = call("tran", "small.yaml", *drive, "--stop", str(3 * settled["time"]), "--json").document
    assert run["start"] == "initial conditions"
    assert run["nodes"]["hidden[0]"][0] == pytest.approx(0, abs=1e-6)
    assert run["nodes"]["hidden[0]"][-1] == pytest.approx(point["nodes"]["hidden[0]"], abs=1e-7)


def test_what_does_not_settle_says_why_and_exits_with_3(decks: Path, call: Command) -> None:
    done = call("tran", "latch.cir", "--until-settled")
    assert done.code == 3
    assert "does not settle" in done.out
    assert "unstable" in done.out
    assert "Traceback" not in done.err


def test_refusals_of_tran(decks: Path, call: Command) -> None:
    call("tran", "latch.cir").refuses("--stop: needs an end")
    call("tran", "rc.cir", "--stop", "soon").refuses("--stop: is not a number")
    call("tran", "rc.cir", "--stop", "-1u").refuses("--stop: must be greater than zero")
    call("tran", "rc.cir", "--step", "1e-15").refuses("--step: makes more than")
    call("tran", "rc.cir", "--nodes", "out,nowhere").refuses("--nodes: no such node", "nowhere")
    call("tran", "rc.cir", "--tolerance", "0").refuses("--tolerance: must be greater than zero")
    call("tran", "rc.cir", "--figure", "rc.pdf").refuses("figures are PNG files")
    call("tran", "rc.cir", "--until-settled", "--stop", "1u").refuses("--stop: does not go with")
    call("tran", "small.yaml", "--stop", "1u").refuses("this circuit has 3 inputs")
    call("tran", "divider.yaml", "--until-settled").refuses("has no dynamics")


def test_sweeps_of_a_deck(decks: Path, call: Command) -> None:
    solved = call("solve", "diode.cir", "--json").document
    assert solved["nodes"]["b"] == pytest.approx(0.629, abs=1e-3)
    (swept,) = solved["sweeps"]
    assert swept["names"] == ["v1", "r1"]
    assert swept["values"] == [[v, r] for r in (1e3, 2e3) for v in (-1, -0.5, 0, 0.5, 1)]
    assert swept["nodes"]["b"][4] == pytest.approx(solved["nodes"]["b"], abs=1e-12)
    assert swept["branches"]["v1"][4] == pytest.approx(solved["branches"]["v1"], rel=1e-9)
    assert swept["nodes"]["b"][9] < swept["nodes"]["b"][4]
    done = call("solve", "diode.cir", "-o", "curve.csv")
    assert done.code == 0
    assert "Sweep of v1, r1" in done.out
    assert "2 kohm" in done.out
    rows = list(csv.reader((decks / "curve.csv").read_text().splitlines()))
    assert rows[0] == ["v1", "r1", "a [V]", "b [V]", "v1 [A]"]
    assert len(rows) == 1 + 10
    call("solve", "rc.cir", "-o", "curve.csv").refuses("has no .dc sweep to write")


def test_relaxing_comes_close_to_the_gradient_and_clocked_steps_reach_it(decks: Path, call: Command) -> None:
    drive = ["--input", "0.5,-0.2,1", "--target", "1"]
    found = call("relax", "small.yaml", *drive, "--figure", "small.png", "--json").document
    assert found["layers"] == 2
    assert found["clocked"][4] < 1e-14
    assert found["clocked"][3] > 1e-4
    marks = found["marks"]
    assert 1e-3 < marks["2 L"] < 0.5
    assert marks["8 L"] < 1e-4 * marks["2 L"]
    assert (decks / "small.png").read_bytes().startswith(PNG)
    shown = call("relax", "small.yaml", *drive, "--duration", "4")
    assert "Error of the gradient" in shown.out
    call("relax", "divider.yaml", *drive).refuses("needs a cost")
    call("relax", "small.yaml", "--input", "1,2,3").refuses("--target")
    call("relax", "small.yaml", *drive, "--capacitance", "none").refuses("--capacitance: is not known")
    call("relax", "small.yaml", *drive, "--duration", "-1").refuses("--duration: must be above 0")


@pytest.mark.parametrize(("command", "unit"), [("tran", "(s)"), ("relax", "(1)")])
def test_help_has_an_example_units_and_json_keys(command: str, unit: str, call: Command) -> None:
    text = " ".join(call(command, "--help").out.split())
    assert f"Example: circuitsim {command} netlists/digits.yaml" in text
    assert unit in text
    assert "JSON" in text
