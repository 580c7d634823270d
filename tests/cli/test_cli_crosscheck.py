"""`circuitsim crosscheck`: what it reads, what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import EXPERIMENT, PROGRAM, Command

from circuitsim.record import read_record

PHASE_KEYS = {
    "phase",
    "beta",
    "samples",
    "nodes",
    "worst_node",
    "worst_sample",
    "difference",
    "relative",
    "signal",
    "elsewhere",
    "seconds",
    "spice_seconds",
    "ratio",
}
SIX = [
    ("free", None),
    ("nudged", 0.05),
    ("nudged", -0.05),
    ("corrected", 0.05),
    ("corrected", -0.05),
    ("dyadic", 0.05),
]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ngspice: str) -> Callable[[str], None]:
    """Put a shell script in ngspice's place on the PATH; $NGSPICE is the program itself."""

    def make(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "ngspice"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("NGSPICE", ngspice)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return make


@pytest.mark.ngspice
def test_a_network_in_every_phase(folder: Path, call: Command, ngspice: str) -> None:
    ended = call("crosscheck", "small.yaml", "--samples", 2, "--beta", 0.05, "--figure", "a.png", "--json")
    found = ended.document
    assert found["agrees"] is True
    assert found["kind"] == "network"
    assert found["compared"] == found["planned"] == 12
    assert [(row["phase"], row["beta"]) for row in found["phases"]] == SIX
    for row in found["phases"]:
        assert row.keys() == PHASE_KEYS
        assert row["difference"] < 1e-12
        assert row["samples"] == 2
    for row in found["gradients"]:
        assert row.keys() == {
            "estimator",
            "crossbar",
            "samples",
            "to_ours",
            "to_adjoint",
            "ours_to_adjoint",
        }
        assert row["to_ours"] < 1e-6
    assert {row["estimator"] for row in found["gradients"]} == {"corrected-centred", "dyadic"}
    assert found["inputs"] == "2 uniform random inputs in -1 ... 1, random classes"
    assert found["engine"].startswith("ngspice ")
    assert found["spice_options"]["relative_tolerance"] == 1e-12
    assert found["provenance"]["circuitsim"]
    assert found["figure"] == "a.png"
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    again = call("crosscheck", "small.yaml", "--samples", 2, "--beta", 0.05, "--json").document
    same = ("phase", "worst_node", "worst_sample", "difference", "signal")
    for row, other in zip(found["phases"], again["phases"], strict=True):
        assert [row[key] for key in same] == [other[key] for key in same]


@pytest.mark.ngspice
def test_tables_and_exit_codes_of_both_verdicts(folder: Path, call: Command, ngspice: str) -> None:
    arguments = ("crosscheck", "small.yaml", "--samples", 1, "--phases", "nudged,corrected")
    agrees = call(*arguments)
    assert agrees.code == 0, agrees.err
    assert "agrees: largest difference" in agrees.out
    assert "corrected +" in agrees.out
    assert "dyadic" not in agrees.out
    assert "reltol 1e-12" in agrees.out
    differs = call(*arguments, "--tolerance", "1e-30")
    assert differs.code == 1
    assert "DOES NOT AGREE: largest difference" in differs.out
    gradients = call(*arguments, "--gradient-tolerance", "1e-30")
    assert gradients.code == 1
    assert json.loads(call(*arguments, "--tolerance", "1e-30", "--json").out)["agrees"] is False


@pytest.mark.ngspice
def test_a_trained_record_with_its_learned_conductances(folder: Path, call: Command, ngspice: str) -> None:
    from circuitsim.study.subjects import read_subject

    card = {
        "name": "spread",
        "source": "this test",
        "crossbar": {"device_to_device": 0.1},
        "amplifier": {"offset": 1e-3},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    (folder / "quick.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "cards": "card.yaml"}))
    assert call("train", "quick.yaml", "--no-figures").code == 0
    found = call("crosscheck", "quick-s5.h5", "--samples", 1, "--json").document
    assert found["kind"] == "record"
    assert found["notes"] == ["die 5, card spread, conductances of corrected-centred after 2 of 2 epochs"]
    assert found["inputs"] == "1 held-out sample of digits"
    assert found["agrees"] is True
    assert len(found["phases"]) == 6

    arm = read_record("quick-s5.h5").arms["adjoint"]
    learned = read_subject("quick-s5.h5", samples=1, arm="adjoint")
    fresh = read_subject("quick.yaml", samples=1)
    assert fresh.notes == ("die 5, card spread, before training",)
    for name, (present, _) in learned.values.crossbars.items():
        target = arm.state[f"conductance/{name}/g_plus"]
        before = fresh.values.crossbars[name][0]
        start = fresh.netlist.crossbar(name).g_plus
        mismatch = before / start
        assert 0.05 < np.std(mismatch) < 0.15
        np.testing.assert_allclose(present, target * mismatch, rtol=1e-12)
        assert np.abs(present - before).max() > 1e-7

    call("crosscheck", "quick-s5.h5", "--arm", "ep").refuses(
        "quick-s5.h5: --arm: is not an estimator of this record (got 'ep')", "corrected-centred, adjoint"
    )


@pytest.mark.ngspice
def test_a_netlist_has_a_free_phase_only(folder: Path, call: Command, ngspice: str) -> None:
    found = call("crosscheck", "divider.yaml", "--json").document
    assert [row["phase"] for row in found["phases"]] == ["free"]
    assert found["gradients"] == []
    assert found["planned"] == 1
    assert found["notes"] == ["a netlist has no cost: the free phase only"]
    assert call("crosscheck", "divider.yaml").code == 0
    call("crosscheck", "divider.yaml", "--phases", "dyadic").refuses(
        "divider.yaml: --phases: needs a cost, and this circuit has none (got 'dyadic')"
    )


DECK = """A deck that asks for much
.include "parts/models.inc"
Vin IN 0 DC 1 SIN(0 1 1k)
R1 IN 2 1k
Xclamp 2 3 clamp
E1 out 0 3 0
+ 2
Rload out 0 10k
.control
run
print v(2)
.endc
.op
.tran 10u 1m
.print tran v(2)
+ v(3)
* a comment between what is dropped and what is not
Rlast out 3 100k
.options reltol=1e-2
.end
"""
MODELS = """* models
.model dclamp D (IS=2e-14 N=1.3)
.subckt clamp a b
D1 a m dclamp
R1 m b 50
D2 b 0 dclamp
.ends
"""


@pytest.mark.ngspice
@pytest.mark.parametrize("engine", ["ngspice", "pyspice-shared", "pyspice-subprocess"])
def test_a_deck_as_it_was_drawn(engine: str, folder: Path, call: Command, ngspice: str) -> None:
    if engine.startswith("pyspice") and find_spec("PySpice") is None:
        pytest.skip("PySpice is not installed")
    (folder / "decks/parts").mkdir(parents=True)
    (folder / "decks/drawn.cir").write_text(DECK)
    (folder / "decks/parts/models.inc").write_text(MODELS)
    found = call("crosscheck", "decks/drawn.cir", "--engine", engine, "--json").document
    (row,) = found["phases"]
    assert row["phase"] == "free"
    assert row["nodes"] == 6
    assert row["difference"] < 1e-11
    assert 0.5 < row["signal"] < 2
    assert found["kind"] == "deck"
    assert found["notes"][0] == "a deck has no cost: the free phase only"


@pytest.mark.ngspice
def test_a_deck_with_two_operating_points(folder: Path, call: Command, ngspice: str) -> None:
    # A latch: ngspice and we may each find any of its states, and both are right.
    (folder / "latch.cir").write_text(
        "latch\nB1 a 0 V=tanh(3*v(b)+0.01)\nB2 b1 0 V=tanh(3*v(a))\nR1 b1 b 1k\nR2 b 0 1meg\n.op\n.end\n"
    )
    found = call("crosscheck", "latch.cir", "--json").document
    assert found["phases"][0]["elsewhere"] in (0, 1)
    assert found["agrees"] is True


@pytest.mark.ngspice
def test_decks_that_are_refused(folder: Path, call: Command, ngspice: str) -> None:
    (folder / "bad.cir").write_text("bad\nQ1 c b e bjt\n.end\n")
    call("crosscheck", "bad.cir").refuses("bad.cir")
    (folder / "open.cir").write_text('open\n.include "nowhere.inc"\nR1 a 0 1\nV1 a 0 1\n.end\n')
    call("crosscheck", "open.cir").refuses("nowhere.inc")


@pytest.mark.ngspice
def test_an_experiment_with_a_deck_and_roles(call: Command, repo_root: Path, ngspice: str) -> None:
    found = call("crosscheck", repo_root / "runs/xor.yaml", "--samples", 2, "--json").document
    assert found["agrees"] is True
    assert found["inputs"] == "2 samples of xor"
    assert {row["crossbar"] for row in found["gradients"]} == {"hidden", "output"}
    for row in found["phases"]:
        assert row["difference"] < 1e-11


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("nowhere.yaml",), ("nowhere.yaml: does not exist",)),
        (("small.yaml", "--phases", "free,fast"), ("--phases: is not known (got 'fast')", "dyadic")),
        (("small.yaml", "--engine", "hspice"), ("--engine: is not known (got 'hspice')", "pyspice-shared")),
        (("small.yaml", "--tolerance", "0"), ("--tolerance: must be greater than zero",)),
        (("small.yaml", "--tolerance", "tiny"), ("--tolerance", "tiny")),
        (("small.yaml", "--gradient-tolerance", "-1"), ("--gradient-tolerance: must be greater",)),
        (("small.yaml", "--beta", "0"), ("--beta: must be finite and not zero",)),
        (("small.yaml", "--timeout", "nan"), ("--timeout: must be greater than zero and finite",)),
        (("small.yaml", "--figure", "a.pdf"), ("--figure: a figure's name ends in .png (got 'a.pdf')",)),
    ],
)
def test_options_that_are_refused(
    arguments: tuple[str, ...], fragments: tuple[str, ...], folder: Path, call: Command
) -> None:
    call("crosscheck", *arguments).refuses(*fragments)


@pytest.mark.ngspice
def test_files_that_are_refused(folder: Path, call: Command, ngspice: str) -> None:
    (folder / "other.yaml").write_text("name: something\n")
    call("crosscheck", "other.yaml").refuses("other.yaml: is nothing that can be cross-checked")
    (folder / "broken.h5").write_text("no record")
    call("crosscheck", "broken.h5").refuses("broken.h5: not a record")
    call("crosscheck", "small.yaml", "--arm", "ep").refuses("--arm: is for records only")
    (folder / "wrong.yaml").write_text("name: x\nlayers: {}\n")
    call("crosscheck", "wrong.yaml").refuses("wrong.yaml")


@pytest.mark.parametrize("engine", ["ngspice", "pyspice-subprocess"])
def test_without_spice_it_names_the_package(
    engine: str, folder: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))

    def never(*args: object, **options: object) -> None:
        raise AssertionError("our own work started")

    monkeypatch.setattr("circuitsim.study.subjects.read_subject", never)
    call("crosscheck", "small.yaml", "--engine", engine).refuses("nstall", code=4)


def test_without_pyspice_it_names_the_extra(
    folder: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    call("crosscheck", "small.yaml", "--engine", "pyspice-shared").refuses(
        "PySpice: is not installed. Run: pip install 'circuitsim[spice]'.", code=4
    )


@pytest.mark.ngspice
def test_a_simulator_that_fails_halfway_is_an_error(
    folder: Path, call: Command, stand_in: Callable[[str], None]
) -> None:
    # The first deck is the probe's divider; a network's has amplifiers.
    stand_in(
        'grep -qs tanh deck.cir && { echo "Warning: singular matrix: check node x"; }\nexec "$NGSPICE" "$@"'
    )
    call("crosscheck", "small.yaml").refuses("sample 0, free phase: said: Warning: singular matrix", code=3)


@pytest.mark.ngspice
def test_a_simulator_that_hangs_is_stopped(
    folder: Path, call: Command, stand_in: Callable[[str], None]
) -> None:
    stand_in('grep -qs tanh deck.cir && exec sleep 60\nexec "$NGSPICE" "$@"')
    call("crosscheck", "small.yaml", "--timeout", 1.5).refuses("was stopped after 1.5 s", code=3)


@pytest.mark.ngspice
def test_ctrl_c_prints_what_has_been_compared(folder: Path, stand_in: Callable[[str], None]) -> None:
    # The corrected decks hang, so that the interruption finds something done and something to do.
    stand_in('grep -qs held deck.cir && { : > "$MARK"; exec sleep 60; }\nexec "$NGSPICE" "$@"')
    mark = folder / "mark"
    process = subprocess.Popen(
        [PROGRAM, "crosscheck", "small.yaml", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MARK": str(mark)},
    )
    deadline = time.monotonic() + 90
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted after 3 of 48 comparisons" in err
    found = json.loads(out)
    assert (found["compared"], found["planned"]) == (3, 48)
    assert [row["phase"] for row in found["phases"]] == ["free", "nudged", "nudged"]


def test_help_needs_no_simulator() -> None:
    done = subprocess.run(
        [PROGRAM, "crosscheck", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": str(Path(sys.executable).parent)},
    )
    assert "Exit codes: 0 within the tolerances" in done.stdout
