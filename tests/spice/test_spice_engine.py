"""The engine: what it reads, and what it refuses. Stand-ins for ngspice are small shell scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from circuitsim.errors import CrossCheckError
from circuitsim.netlist import NetlistBuilder
from circuitsim.spice import NgspiceEngine, deck_nodes, read_raw, write_deck

DIVIDER = "* {title}\nV1 a 0 1\nR1 a b 1k\nR2 b 0 1k\n.op\n.end\n"
FLOATING = "* floating\nV1 a 0 1\nR1 a 0 1k\nI1 0 c 1m\nC1 c 0 1p\n.op\n.end\n"

StandIn = Callable[[str], NgspiceEngine]


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """Make a program that does what a shell script says."""

    def make(script: str) -> NgspiceEngine:
        program = tmp_path / "ngspice"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return NgspiceEngine(program=str(program), timeout=20.0)

    return make


def raw(values: list[float], names: list[str], *, points: int = 1, flags: str = "real") -> bytes:
    listing = "".join(f"\t{k}\t{name}\tvoltage\n" for k, name in enumerate(names))
    header = (
        "Title: \t0\tv(fake)\tvoltage\nDate: today\nPlotname: Operating Point\n"
        f"Flags: {flags}\nNo. Variables: {len(names)}\nNo. Points: {points}       \n"
        f"Variables:\n{listing}Binary:\n"
    )
    return header.encode() + np.array(values).tobytes()


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CrossCheckError) as caught:
        NgspiceEngine().solve(DIVIDER)
    assert str(caught.value) == "ngspice: the program was not found. Install the package ngspice."
    with pytest.raises(CrossCheckError, match="not found"):
        _ = NgspiceEngine().version


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    program = tmp_path / "ngspice"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with pytest.raises(CrossCheckError, match="could not be started"):
        NgspiceEngine(program=str(program)).solve(DIVIDER)


def test_a_slow_program_is_stopped(stand_in: StandIn) -> None:
    engine = NgspiceEngine(program=stand_in("exec sleep 60").program, timeout=0.2)
    with pytest.raises(CrossCheckError, match=r"was stopped after 0\.2 s\. Raise the timeout"):
        engine.solve(DIVIDER)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "crashed with exit code -11"),
        ("echo 'Error: circuit not parsed.' >&2; exit 1", r"failed with exit code 1:\n.*not parsed"),
        (
            "echo 'Warning: singular matrix:  check node a' >&2",
            r"said: Warning: singular matrix:  check node a\. ",
        ),
        ("echo 'doAnalyses: iteration limit reached'; echo 'run simulation(s) aborted'", "aborted"),
        ("echo 'No convergence in DC operating point'", "No convergence"),
        ("echo 'Note: Transient op finished successfully' >&2", "transient run"),
        ("exit 0", "raw file is empty"),
        (": > deck.raw", "raw file is empty"),
        ("echo 'Title: x' > deck.raw", "not a binary raw file"),
    ],
)
def test_what_is_not_to_be_trusted_is_refused(stand_in: StandIn, script: str, message: str) -> None:
    with pytest.raises(CrossCheckError, match=message):
        stand_in(script).solve(DIVIDER)


def test_values_that_are_not_finite_are_refused(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "made.raw").write_bytes(raw([1.0, float("nan")], ["v(a)", "v(b)"]))
    with pytest.raises(CrossCheckError, match=r"v\(b\).*not finite"):
        stand_in(f"cp {tmp_path}/made.raw deck.raw").solve(DIVIDER)


def test_names_of_vectors(stand_in: StandIn, tmp_path: Path) -> None:
    names = ["V(A)", "time", "i(v1)", "e1#branch"]
    (tmp_path / "made.raw").write_bytes(raw([1.0, 2.0, 3.0, 4.0], names))
    found = stand_in(f"cp {tmp_path}/made.raw deck.raw").solve(DIVIDER)
    assert found.node_voltage == {"a": 1.0, "time": 2.0}
    assert found.branch_current == {"v1": 3.0, "e1": 4.0}
    assert found.voltages(["A", "0", "time"]).tolist() == [1.0, 0.0, 2.0]
    with pytest.raises(CrossCheckError, match="no voltage was reported"):
        found.voltages(["b"])


def test_raw_files() -> None:
    found = read_raw(raw([1.0, 2.0, 3.0, 4.0], ["v(a)", "v(b)"], points=2))
    assert {name: values.tolist() for name, values in found.items()} == {
        "v(a)": [1.0, 3.0],
        "v(b)": [2.0, 4.0],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"Title: x\nValues:\n", "not a binary"),
        (b"Title: x\nBinary:\n", "names no variables"),
        (raw([1.0], ["v(a)"], flags="complex"), "no real vectors"),
        (raw([], ["v(a)"], points=0), "cut short"),
        (raw([1.0, 2.0, 3.0, 4.0], ["v(a)", "v(b)"], points=3), "cut short"),
    ],
)
def test_raw_files_that_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(CrossCheckError, match=message):
        read_raw(content)


@pytest.mark.ngspice
def test_version(engine: NgspiceEngine) -> None:
    assert engine.version[0].isdigit()
    assert engine.solve(DIVIDER).engine == f"ngspice {engine.version}"


@pytest.mark.ngspice
def test_a_floating_node_is_refused_though_ngspice_exits_with_0(engine: NgspiceEngine) -> None:
    with pytest.raises(CrossCheckError, match="singular matrix"):
        engine.solve(FLOATING)


@pytest.mark.ngspice
def test_a_deck_that_ngspice_cannot_read(engine: NgspiceEngine) -> None:
    with pytest.raises(CrossCheckError, match="failed with exit code 1"):
        engine.solve("* wrong\nQ\n.op\n.end\n")


@pytest.mark.ngspice
@pytest.mark.parametrize(
    "title", ["an error", "singular matrix", "no convergence: aborted", "", ".end", "x" * 3000]
)
def test_titles_are_only_titles(engine: NgspiceEngine, title: str) -> None:
    builder = NetlistBuilder("divider")
    builder.add("vsource", "in", "a", "0", voltage=1.0)
    builder.add("resistor", "top", "a", "b", conductance=1e-3)
    builder.add("resistor", "bottom", "b", "0", conductance=1e-3)
    assert engine.solve(write_deck(builder.build(), title=title)).node_voltage["b"] == pytest.approx(0.5)


@pytest.mark.ngspice
def test_a_users_settings_change_nothing(
    engine: NgspiceEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".spiceinit").write_text("set filetype=ascii\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPICE_ASCIIRAWFILE", "1")
    assert engine.solve(DIVIDER).node_voltage["b"] == pytest.approx(0.5)


@pytest.mark.ngspice
def test_names_come_back(engine: NgspiceEngine) -> None:
    builder = NetlistBuilder("names")
    nodes = ["A", "a", "a.b", "a-b", "a[b]", "time", "1e3", "1000", "ü", "gnd2", "V(1)", "pi", "temper"]
    builder.add("vsource", "in", "in", "0", voltage=1.0)
    for k, node in enumerate(nodes, start=1):
        builder.add("resistor", f"{node}.top", "in", node, conductance=1e-3)
        builder.add("resistor", f"{node}.low", node, "0", conductance=1e-3 * k)
        builder.add("buffer", node, f"{node}.out", "0", node, "0", gain=1.0, saturation=np.inf, offset=1.0)
    netlist = builder.build()
    names = deck_nodes(netlist)
    solution = engine.solve(write_deck(netlist))
    expected = np.array([1 / (1 + k) for k in range(1, len(nodes) + 1)])
    np.testing.assert_allclose(solution.voltages(names[node] for node in nodes), expected, rtol=1e-12)
    out = solution.voltages(names[f"{node}.out"] for node in nodes)
    np.testing.assert_allclose(out, expected + 1, rtol=1e-12)
