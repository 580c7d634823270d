"""`circuitsim compile` with SPICE decks on either side."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import Command

from circuitsim.netlist import read_netlist
from circuitsim.spice.reader import read_deck

DECK = """an amplifier
Vin in 0 DC 0.1 PULSE(0 1 1n)
Rin in a 10k
D1 a 0 clamp
.model clamp d(is=1e-12 n=1.5)
E1 out 0 a 0 10
Rout out 0 1k
B1 b 0 V={tanh(v(out))}
Rb b 0 1k
B2 a 0 I={v(a)^3*1u}
.ic v(a)=0.05
.tran 1n 100n
.print tran v(out)
.end
"""


@pytest.fixture
def deck(folder: Path) -> Path:
    path = folder / "amplifier.cir"
    path.write_text(DECK)
    return path


def test_a_deck_is_counted(deck: Path, call: Command) -> None:
    done = call("compile", "amplifier.cir", "--json")
    counts = done.document
    assert counts["name"] == "an amplifier"
    assert counts["elements"]["resistor"] == 3
    # The second B source depends on its own voltage alone.
    assert counts["non_reciprocal"] == {"vcvs": 1, "behavioural_voltage": 1}
    # What was read and not acted on is said.
    assert re.search(r"^note: .*amplifier\.cir:13.*\.print", done.err, re.MULTILINE)


@pytest.mark.parametrize("suffix", [".cir", ".sp", ".spi", ".CKT", ".net", ".spice"])
def test_a_deck_written_again_is_the_same_circuit(suffix: str, deck: Path, call: Command) -> None:
    again = deck.with_name(f"again{suffix}")
    digest = call("compile", "amplifier.cir", "--format", "spice", "-o", again, "--json").document["digest"]
    assert call("compile", again, "--json").document["digest"] == digest
    first, second = read_deck(deck), read_deck(again)
    for part in ("waveforms", "initial_voltage", "analyses"):
        assert getattr(first, part) == getattr(second, part)


def test_a_deck_becomes_a_netlist(deck: Path, call: Command) -> None:
    digest = call("compile", "amplifier.cir", "-o", "amplifier.yaml", "--json").document["digest"]
    assert read_netlist(deck.with_name("amplifier.yaml")).digest == digest


def test_a_network_relaxes_from_rest(folder: Path, call: Command) -> None:
    options = ("--format", "spice", "--analysis", "tran", "--stop", "2u", "-o", "small.cir")
    assert call("compile", "small.yaml", *options).code == 0
    assert (folder / "small.cir").read_text().endswith("\n.tran 2e-08 2e-06 uic\n.end\n")


def test_an_analysis_replaces_those_of_a_deck(deck: Path, call: Command) -> None:
    def last(*options: str) -> str:
        call("compile", "amplifier.cir", "--format", "spice", "-o", "out.cir", *options)
        return deck.with_name("out.cir").read_text().splitlines()[-2]

    assert last() == ".tran 1e-09 1e-07"
    assert last("--analysis", "op") == ".op"
    assert last("--analysis", "tran", "--stop", "1m") == ".tran 1e-05 0.001"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stop", "1u"), "--stop: is for SPICE decks (got '1u'). Add --format spice."),
        (("--analysis", "op"), "--analysis: is for SPICE decks (got 'op'). Add --format spice."),
        (("--format", "spice", "--analysis", "ac"), "--analysis: is not known (got 'ac'). Known: op, tran."),
        (("--format", "spice", "--stop", "1"), "--stop: is for transients (got '1'). Add --analysis tran."),
        (
            ("--format", "spice", "--analysis", "tran"),
            "--analysis: needs an end (got 'tran'). Give --stop, in seconds.",
        ),
        (
            ("--format", "spice", "--analysis", "tran", "--stop", "0"),
            "--stop: must be positive [s] (got '0')",
        ),
        (("--format", "spice", "--analysis", "tran", "--stop", "x"), "--stop: is not a number (got 'x')."),
        (("--phase", "corrected"), "--phase: needs a cost, and a netlist has none (got 'corrected')."),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], message: str, deck: Path, call: Command) -> None:
    call("compile", "amplifier.cir", "-o", "out.cir", *options).refuses(message)
    assert not deck.with_name("out.cir").exists()


def test_a_deck_that_cannot_be_read_is_one_error(deck: Path, call: Command) -> None:
    deck.write_text(DECK.replace("E1 out 0 a 0 10", "Q1 out a 0 npn"))
    call("compile", "amplifier.cir").refuses("amplifier.cir:6", "is not an element that is supported")


def test_a_corrected_deck_starts_at_its_anchor(folder: Path, call: Command, repo_root: Path) -> None:
    # Elsewhere it has other solutions, which a simulator that starts from nothing may find.
    network = repo_root / "netlists" / "hopfield.yaml"
    args = ("--sample", 3, "--phase", "corrected", "--format", "spice", "-o", "corrected.cir")
    assert call("compile", network, *args).code == 0
    free = call("solve", network, "--sample", 3, "--json").document["nodes"]
    nodeset = read_deck(folder / "corrected.cir").nodeset
    assert nodeset["hidden_0"] == pytest.approx(free["hidden[0]"], rel=1e-12)
    assert sum(name.startswith(("hidden_", "output_")) for name in nodeset) == 74
