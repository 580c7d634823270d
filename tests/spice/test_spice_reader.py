"""The deck reader: what each line comes to, by its values and its physics, and what it refuses."""

from __future__ import annotations

import math
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reader_decks import DECKS

from circuitsim.errors import CircuitsimError, NetlistError
from circuitsim.netlist.models import diode_current, thermal_voltage
from circuitsim.netlist.waveforms import Exponential, PiecewiseLinear, Pulse, Sine
from circuitsim.solver import SolverSettings, build_plan, solve
from circuitsim.spice import NgspiceEngine
from circuitsim.spice.deck_file import (
    Deck,
    OperatingPointAnalysis,
    Sweep,
    SweepAnalysis,
    TransientAnalysis,
)
from circuitsim.spice.reader import parse_deck, read_deck
from circuitsim.units import spice_number

TIGHT = ".options reltol=1e-9 abstol=1e-15 vntol=1e-12 itl1=1000 pivtol=1e-24\n"
GENERAL = SolverSettings(method="general", relative_tolerance=1e-13, voltage_tolerance=1e-12)


def read(*lines: str) -> Deck:
    return parse_deck("\n".join(("a title", *lines)) + "\n", file="my.cir")


def circuit(*lines: str) -> Deck:
    """A divider of 1 V and two resistors, and more lines."""
    return read("v1 a 0 1", "r1 a b 1k", "r2 b 0 1k", *lines)


def row(deck: Deck, kind: str, name: str) -> dict[str, Any]:
    """The columns of one row, nodes by name."""
    table = getattr(deck.netlist, kind)
    index = table.name.index(name)
    found: dict[str, Any] = {}
    for column in table.columns():
        value = getattr(table, column.name)[index]
        found[column.name] = deck.netlist.node_names[value] if column.metadata["role"] == "node" else value
    return found


def voltages(deck: Deck) -> dict[str, float]:
    point = solve(build_plan(deck.netlist), deck.netlist.values(), np.empty((1, 0)), GENERAL)
    return dict(zip(deck.netlist.node_names, point.node_voltage[0].tolist(), strict=True))


def refusal(*lines: str) -> str:
    with pytest.raises(NetlistError) as caught:
        circuit(*lines)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1k", 1e3), ("1kohm", 1e3), ("2MEG", 2e6), ("2megohm", 2e6), ("5M", 5e-3), ("1mil", 25.4e-6)),
        *(("10pF", 1e-11), ("1f", 1e-15), ("5volts", 5.0), ("1a", 1.0), ("1e3k", 1e6), ("1d3", 1e3)),
        *((".5", 0.5), ("5.", 5.0), ("+1.k", 1e3), ("-2u", -2e-6), ("1T", 1e12), ("1g", 1e9), ("20n", 2e-8)),
        *(("4.7µ", 4.7e-6), ("1e", 1.0), ("0", 0.0)),
    ],
)
def test_numbers_are_read_as_spice_reads_them(text: str, value: float) -> None:
    assert spice_number(text.lower()) == value


@pytest.mark.parametrize(
    "text", ["1k5", "1x", "nan", "inf", "1e400", "1_000", "0x10", "--1", "1e3.5", "", "k", "+"]
)
def test_what_programs_read_differently_is_no_number(text: str) -> None:
    assert spice_number(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_survives(value: float) -> None:
    assert spice_number(repr(value)) == value


# --------------------------------------------------------------------------------------------------- lines


def test_comments_continuations_and_case() -> None:
    plain = read("v1 in 0 1", "r1 in out 1k", "r2 out 0 2k")
    dressed = read(
        "V1 IN 0 1 ; a comment",
        "* a line of comment",
        "  * and an indented one",
        "R1 In",
        "* between",
        "",
        "+ OUT 1K $ another",
        "$ a whole line",
        "r2 out 0 2K // a third",
        ".END",
    )
    assert dressed.netlist.digest == plain.netlist.digest
    assert dressed.notes == ()


def test_the_first_line_is_the_title_whatever_it_says() -> None:
    deck = parse_deck("r9 a 0 1k\nv1 a 0 1\nr1 a 0 1k\n")
    assert deck.title == "r9 a 0 1k"
    assert deck.netlist.resistor.name == ("r1",)
    assert deck.notes == ("line 1: the title is 'r9 a 0 1k': the first line of a deck is never an element",)
    assert parse_deck("* starred\nv1 a 0 1\nr1 a 0 1\n").title == "starred"
    assert circuit(".title another one").title == "another one"


def test_a_dollar_sign_may_begin_a_node() -> None:
    deck = read("V1 $N_0001 0 1", "R1 $N_0001 $N_0002 1k $ comment", "R2 $N_0002 0 1k $comment")
    assert voltages(deck) == {"0": 0.0, "$n_0001": 1.0, "$n_0002": 0.5}


def test_line_ends_and_encodings(tmp_path: Path) -> None:
    text = "µ-circuit\r\nv1 a 0 1\r\nr1 a 0 1k\r\n"
    (tmp_path / "utf8.cir").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "latin1.cir").write_bytes(text.encode("latin-1"))
    (tmp_path / "utf16.cir").write_bytes(text.encode("utf-16"))
    decks = [read_deck(tmp_path / f"{name}.cir") for name in ("utf8", "latin1", "utf16")]
    assert {deck.title for deck in decks} == {"µ-circuit"}
    assert len({deck.netlist.digest for deck in decks}) == 1


@pytest.mark.parametrize("name", DECKS)
def test_case_and_spacing_do_not_matter(name: str) -> None:
    deck = DECKS[name]
    title, _, body = deck.partition("\n")
    wide = re.sub(r"(?m)^(\S.*)$", lambda m: "  " + m[1].replace(" ", " \t "), body.upper())
    assert parse_deck(f"{title}\n{wide}").netlist.digest == parse_deck(deck).netlist.digest


@pytest.mark.parametrize("name", ["brackets", "controlled", "polynomials", "diodes", "switches", "reactive"])
def test_the_order_of_lines_does_not_matter(name: str) -> None:
    title, *lines = DECKS[name].replace("\n+", " ").splitlines()
    body = [line for line in lines if line and not line.startswith((".end", "*"))]
    shuffled = list(body)
    random.Random(3).shuffle(shuffled)
    one, other = (parse_deck("\n".join((title, *part))) for part in (body, shuffled))
    assert one.netlist.digest == other.netlist.digest


# -------------------------------------------------------------------------------------------------- files


def test_included_files_are_found_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "Parts").mkdir()
    (tmp_path / "main.cir").write_text("t\nv1 a 0 1\n.include 'Parts/Load One.inc'\n.inc Parts/two.inc\n")
    (tmp_path / "Parts/Load One.inc").write_text("r1 a b 1k\n.include inner.inc\n.end\nr9 a 0 nonsense\n")
    (tmp_path / "Parts/inner.inc").write_text("r2 b 0 1k\n")
    (tmp_path / "Parts/two.inc").write_text("r3 b 0\n+ 1k\n")
    deck = read_deck(tmp_path / "main.cir")
    assert deck.netlist.resistor.name == ("r1", "r2", "r3")
    assert deck.notes == (f"{tmp_path}/Parts/Load One.inc:3: 1 lines after .end were not read",)


def test_one_section_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "models.lib").write_text(
        ".lib FAST\n.param r=1k\n.include missing.inc\n.endl\n.lib slow\n.param r=3k\n.endl slow\n"
    )
    (tmp_path / "all.lib").write_text(".param extra=1\n")
    (tmp_path / "main.cir").write_text(
        "t\nv1 a 0 1\nr1 a b 1k\nr2 b 0 {r}\n.lib 'models.lib' SLOW\n.lib all.lib\n"
    )
    assert voltages(read_deck(tmp_path / "main.cir"))["b"] == 0.75


def test_files_that_cannot_be_included(tmp_path: Path) -> None:
    def message(line: str) -> str:
        (tmp_path / "main.cir").write_text(f"t\nv1 a 0 1\nr1 a 0 1\n{line}\n")
        with pytest.raises(NetlistError) as caught:
            read_deck(tmp_path / "main.cir")
        return str(caught.value).replace(f"{tmp_path}/", "")

    os.mkfifo(tmp_path / "pipe.inc")
    (tmp_path / "a.inc").write_text(".include b.inc\n")
    (tmp_path / "b.inc").write_text(".include a.inc\n")
    (tmp_path / "binary.inc").write_bytes(b"r2 a 0\x001\n")
    assert message(".include no.inc") == (
        "main.cir:4: .include: no.inc: cannot be read: No such file or directory"
    )
    assert message(".include pipe.inc") == "main.cir:4: .include: pipe.inc: is not a regular file"
    assert message(".include a.inc") == "b.inc:1: .include: the file includes itself (got 'a.inc')"
    assert message(".include main.cir") == "main.cir:4: .include: the file includes itself (got 'main.cir')"
    assert message(".include one two") == (
        "main.cir:4: .include: takes one file name (got 'one two'). Put a name with spaces in quotes."
    )
    assert message(".include binary.inc") == "binary.inc: is not a text file: it holds zero bytes"
    assert message(".lib a.inc tt") == (
        "main.cir:4: .lib: the library file has no section of this name (got 'tt')"
    )
    with pytest.raises(NetlistError, match=r"no\.cir: cannot be read: No such file or directory"):
        read_deck(tmp_path / "no.cir")


def test_text_alone_includes_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.inc").write_text("r1 a 0 1k\n")
    text = "t\nv1 a 0 1\n.include r.inc\n"
    with pytest.raises(NetlistError, match="this deck is text without a folder"):
        parse_deck(text)
    assert parse_deck(text, folder=tmp_path).netlist.resistor.name == ("r1",)


# --------------------------------------------------------------------------------- parameters and functions


def test_parameters_in_any_order_and_spelling() -> None:
    deck = read(
        ".param c = a+b , d='c * 2' e={max(d, 1k)}",
        "v1 in 0 {e}",
        ".func twice(x) {2*x}",
        ".param b=2k a=1k",
        ".global_param f(y)={twice(y) + a}",
        "r1 in 0 r=c",
        "r2 in 0 {f(b)}",
        "r3 in 0 'twice(d)'",
    )
    assert row(deck, "vsource", "v1")["voltage"] == 6000.0
    assert 1 / deck.netlist.resistor.conductance == pytest.approx([3000.0, 5000.0, 12000.0], rel=1e-15)


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        # What the instance gives, the subcircuit's own line, its header, then the circuit around it.
        ((".subckt s p k=1", ".param k=3", "r1 p 0 {k}", ".ends", "x1 a s k=2"), 2.0),
        ((".subckt s p k=1", ".param k=3", "r1 p 0 {k}", ".ends", "x1 a s"), 3.0),
        ((".subckt s p k=1", "r1 p 0 {k}", ".ends", "x1 a s", ".param k=7"), 1.0),
        ((".subckt s p", "r1 p 0 {k}", ".ends", "x1 a s", ".param k=7"), 7.0),
        ((".subckt s p", ".param k={k*2}", "r1 p 0 {k}", ".ends", "x1 a s", ".param k=7"), 14.0),
        ((".subckt s p k={k}", "r1 p 0 {k}", ".ends", "x1 a s", ".param k=7"), 7.0),
        ((".subckt s p k={j} j=5", "r1 p 0 {k}", ".ends", "x1 a s j=6"), 6.0),
        ((".subckt s p k=1", "r1 p 0 {k}", ".ends", "x1 a s k={k+1}", ".param k=7"), 8.0),
    ],
)
def test_which_parameter_counts(lines: tuple[str, ...], value: float) -> None:
    deck = read("v1 a 0 1", *lines)
    assert row(deck, "resistor", "r.x1.r1")["conductance"] == 1 / value


def test_a_callers_parameter_reaches_inner_subcircuits() -> None:
    deck = read(
        *("v1 a 0 1", ".param k=2", "x1 a outer", "x2 a inner"),
        *(".subckt inner p", "r1 p 0 {k}", ".ends", ".subckt outer p", ".param k=5", "x1 p inner", ".ends"),
    )
    assert row(deck, "resistor", "r.x1.x1.r1")["conductance"] == 1 / 5
    assert row(deck, "resistor", "r.x2.r1")["conductance"] == 1 / 2


def test_long_chains_of_parameters() -> None:
    chain = [f".param p{k}={{p{k + 1}+1}}" for k in range(3000)]
    deck = read("v1 a 0 {p0}", *chain, ".param p3000=0", "r1 a 0 1")
    assert row(deck, "vsource", "v1")["voltage"] == 3000.0


def test_conditions_choose_lines() -> None:
    deck = read(
        *(".param kind = 3 inner=1", "v1 a 0 1"),
        *(".if (kind == 1)", "r1 a 0 1", "q9 is never read", ".elseif (kind = 3)", ".param later=5"),
        *(".if (inner >= 2)", "r1 a 0 2", ".else", "r1 a 0 {later}", ".endif", ".else", "r1 a 0 4", ".endif"),
        *(".if later>4", "r2 a 0 {x}", ".param x=7", ".endif"),
    )
    assert (1 / deck.netlist.resistor.conductance).tolist() == [5.0, 7.0]
    assert refusal(".if (1)") == "my.cir:5: .if: is not closed by .endif"
    assert refusal(".else") == "my.cir:5: .else: belongs to no .if"
    assert refusal(".subckt s p k=1", ".if (k>0)", "r1 p 0 1", ".endif", ".ends") == (
        "my.cir:6: .if: depends on a parameter of a subcircuit (got 'k'). "
        "A condition may use parameters of the deck itself only."
    )


def test_a_functions_argument_is_a_value_and_no_node() -> None:
    deck = read(
        *("v1 x 0 5", "v2 y 0 3", ".func f(x, y) {v(x) + 10*x + y}"),
        *("b1 b 0 v=f(v(y), 2)", "r1 b 0 1k"),
    )
    assert voltages(deck)["b"] == 5 + 10 * 3 + 2


# ---------------------------------------------------------------------------------------------- subcircuits


def test_names_inside_subcircuits_are_ngspices() -> None:
    deck = read(
        *(".subckt inner p q", "r1 p n 1k", "vs n q 0", ".ends"),
        *(".subckt outer a b", "x1 a m inner", "x2 m b inner", ".ends"),
        *("v1 in 0 1", "xtop in 0 outer"),
    )
    assert deck.netlist.resistor.name == ("r.xtop.x1.r1", "r.xtop.x2.r1")
    assert deck.netlist.vsource.name == ("v1", "v.xtop.x1.vs", "v.xtop.x2.vs")
    assert set(deck.netlist.node_names) == {"0", "in", "xtop.m", "xtop.x1.n", "xtop.x2.n"}


def test_global_nodes_and_ground_are_the_same_everywhere() -> None:
    deck = read(
        *(".global rail", "v1 rail 0 1", "r9 a 0 1k", "x1 a s"),
        *(".subckt s p", "r1 p rail 1k", "r2 p gnd 1k", "r3 p 0 1k", ".ends"),
    )
    assert voltages(deck) == pytest.approx({"0": 0.0, "rail": 1.0, "a": 0.25})


def test_models_are_found_where_the_subcircuit_is_defined() -> None:
    deck = read(
        *("v1 a 0 1", ".model dm D is=1p", "x1 a outer", "x2 a inner"),
        *(".subckt inner p", "d1 p 0 dm", ".ends"),
        *(".subckt outer p", ".model dm D is=2p", "d1 p 0 dm", "x1 p inner", ".ends"),
    )
    currents = dict(zip(deck.netlist.diode.name, deck.netlist.diode.saturation_current, strict=True))
    assert currents == {"d.x1.d1": 2e-12, "d.x1.x1.d1": 1e-12, "d.x2.d1": 1e-12}


def test_what_is_said_twice() -> None:
    model = ".model dm D is=1p"
    deck = circuit(model, model, "d1 b 0 dm", ".subckt s p", "r1 p 0 1k", ".ends t", "x1 b s")
    assert len(deck.netlist.diode) == 1
    assert deck.notes == ("my.cir:10: this .ends closes s, though it says t",)
    assert refusal(model, ".model dm D is=2p") == "my.cir:6: .model.dm: is defined twice. First at my.cir:5."
    assert refusal(".subckt s p", ".ends", ".subckt s p", ".ends") == (
        "my.cir:7: .subckt.s: is defined twice. First at my.cir:5."
    )


def test_a_multiplier_is_so_many_in_parallel() -> None:
    # gmin lies across every diode of the deck, whatever its multiplier.
    body = (
        ".options gmin=1e-20",
        "r1 a b 1k",
        "d1 a b dm",
        ".model dm d",
        "g1 a b a b 1m",
        "i1 b a 1m",
        "l1 a c 1u",
        "r2 c b 1k",
    )
    one = read(
        "v1 in 0 1", "r0 in p 100", ".subckt s a b", *body, ".ends", *(f"x{k} p 0 s" for k in range(3))
    )
    many = read("v1 in 0 1", "r0 in p 100", ".subckt s a b", *body, ".ends", "x1 p 0 s m=3")
    assert voltages(many)["p"] == pytest.approx(voltages(one)["p"], rel=1e-12)


def test_a_circuit_that_multiplies_itself_is_refused_before_it_is_written_out() -> None:
    levels = [
        line
        for k in range(60)
        for line in (f".subckt s{k} p", *(f"x{j} p s{k + 1}" for j in range(2)), ".ends")
    ]
    assert refusal("x1 a s0", *levels, ".subckt s60 p", "r1 p 0 1", ".ends").endswith(
        "the subcircuit is nested deeper than 60 (got 's60')"
    )
    assert "the circuit has more than 2000000 elements" in refusal(
        "x1 a s30", *levels, ".subckt s60 p", "r1 p 0 1", ".ends"
    )
    assert "the subcircuit contains itself" in refusal("x1 a s", ".subckt s p", "x1 p s", ".ends")


# ------------------------------------------------------------------------------------------------ elements


def test_resistors() -> None:
    deck = circuit(
        *(".options temp=127", ".model film r(rsh=100 defw=2u narrow=0.1u tc1=1e-3)", ".model fixed r(r=7k)"),
        *(
            "r3 b 0 2k tc1=1e-3 tc2=1e-5",
            "r4 b 0 2k tc=1e-3,1e-5",
            "r5 b 0 2k m=2",
            "r6 b 0 2k tc1=1 temp=27",
        ),
        *(
            "r7 b 0 film l=9u",
            "r8 b 0 fixed",
            "r9 b 0 2k film",
            "r10 b 0 film 2k",
            "r11 b 0 -2k",
            "r12 b 0 0",
        ),
        "r13 b 0 2k dtemp=-100 tc1=1",
    )
    g = dict(zip(deck.netlist.resistor.name, (1 / deck.netlist.resistor.conductance).tolist(), strict=True))
    assert g["r3"] == g["r4"] == pytest.approx(2e3 * 1.2)
    assert g["r5"] == 1e3
    assert g["r6"] == g["r13"] == 2e3
    assert g["r7"] == pytest.approx(100 * 9 / 1.8 * 1.1)
    assert g["r8"] == pytest.approx(7e3)
    assert g["r9"] == g["r10"] == pytest.approx(2.2e3)
    assert g["r12"] == pytest.approx(1e-3)
    # A negative resistance is a controlled current.
    assert row(deck, "vccs", "r11") == {
        "pos": "b",
        "neg": "0",
        "control_pos": "b",
        "control_neg": "0",
        "transconductance": -1 / 2e3,
    }
    assert deck.notes == ("my.cir:17: r12: a resistance of 0 was taken for 1 mohm, as ngspice does",)


def test_capacitors_inductors_and_couplings() -> None:
    deck = circuit(
        *(
            "c1 b 0 1u ic=2",
            "c2 b 0 c=1u m=3",
            ".model plate c(cj=1e-3 cjsw=1e-9 defw=1u)",
            "c3 b 0 plate l=10u",
        ),
        *("c4 b 0 0", "l1 b c 1m ic=0.5", "r3 c 0 1", "l2 d 0 l=4m", "r4 d 0 1", "k1 l1 l2 0.9"),
        *("l3 e 0 1m", "r5 e 0 1", "k2 l1 l2 l3 0.5"),
    )
    assert deck.netlist.capacitor.capacitance == pytest.approx([1e-6, 3e-6, 1e-3 * 1e-11 + 1e-9 * 22e-6])
    assert deck.netlist.inductor.inductance.tolist() == [1e-3, 4e-3, 1e-3]
    assert deck.element_initial == {"c1": 2.0, "l1": 0.5}
    coupling = deck.netlist.coupling
    assert coupling.name == ("k1", "k2.0.1", "k2.0.2", "k2.1.2")
    assert list(zip(coupling.first, coupling.second, coupling.coefficient, strict=True)) == [
        *((0, 1, 0.9), (0, 1, 0.5), (0, 2, 0.5), (1, 2, 0.5)),
    ]


def test_sources_and_their_waveforms() -> None:
    deck = read(*DECKS["sources"].splitlines()[1:-1])
    rest = dict(zip(deck.netlist.vsource.name, deck.netlist.vsource.voltage.tolist(), strict=True))
    assert rest == {
        "v1": 1.0,
        "v2": 2.0,
        "v3": pytest.approx(2.0),
        "v4": 3.0,
        "v5": 0.5,
        "v6": 0.0,
        "v7": 0.0,
    }
    assert deck.netlist.isource.current.tolist() == [1e-3, 1e-3]
    assert deck.waveforms == {
        "v1": Pulse(initial=1, pulsed=2, delay=1e-9, rise=1e-9, fall=1e-9, width=5e-9, period=20e-9),
        "v2": Sine(offset=0, amplitude=1, frequency=1e6),
        "v3": Sine(offset=1, amplitude=2, frequency=1e3, phase=30),
        "v4": PiecewiseLinear(times=(0, 1e-6, 2e-6), values=(3, 4, -1), repeat_from=0),
        "v5": Exponential(
            initial=0.5, pulsed=2, rise_delay=1e-9, rise_time=2e-9, fall_delay=1e-8, fall_time=3e-9
        ),
        "i1": Pulse(initial=0, pulsed=2e-3),
    }


def test_linear_controlled_sources() -> None:
    deck = read(*DECKS["controlled"].splitlines()[1:-1])
    assert row(deck, "vcvs", "e1") == {
        "pos": "e1#sense",
        "neg": "0",
        "control_pos": "a",
        "control_neg": "b",
        "gain": 3.0,
    }
    assert row(deck, "vccs", "g1")["transconductance"] == 1e-3
    assert deck.netlist.vsource.name == ("v1", "vsense", "v_e1")
    assert row(deck, "cccs", "f1") == {"pos": "0", "neg": "f", "control": 1, "gain": 2.0}
    assert row(deck, "ccvs", "h1") == {"pos": "h", "neg": "0", "control": 1, "transresistance": 1e3}
    # The current of what is no voltage source is that of 0 V in series with it.
    assert row(deck, "cccs", "f2")["control"] == 2
    assert row(deck, "vsource", "v_e1") == {"pos": "e", "neg": "e1#sense", "voltage": 0.0}


@given(
    st.integers(1, 3),
    st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=20),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
def test_polynomials_count_their_terms_as_spice_does(
    dimension: int, coefficients: list[float], at: list[float]
) -> None:
    nodes = "abc"[:dimension]
    controls = " ".join(f"{node} 0" for node in nodes)
    deck = read(
        *(f"v{node} {node} 0 {x!r}" for node, x in zip(nodes, at, strict=False)),
        f"e1 e 0 poly({dimension}) {controls} {' '.join(map(repr, coefficients))}",
        "r1 e 0 1k",
    )
    # Degree by degree; within one, the first variable's power falls slowest.
    expected, k = 0.0, 0
    for degree in range(len(coefficients)):
        for powers in sorted(_powers(dimension, degree), reverse=True):
            if k < len(coefficients):
                factors = [x**p for x, p in zip(at, powers, strict=False)]
                expected += coefficients[k] * math.prod(factors)
                k += 1
    assert voltages(deck)["e"] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def _powers(dimension: int, degree: int) -> list[tuple[int, ...]]:
    if dimension == 1:
        return [(degree,)]
    return [(p, *rest) for p in range(degree + 1) for rest in _powers(dimension - 1, degree - p)]


def test_a_polynomial_of_one_linear_term_is_a_linear_source() -> None:
    deck = circuit("e1 c 0 poly(2) a 0 b 0 0 0 3", "r3 c 0 1k", "e2 d 0 poly(1) a 0 7", "r4 d 0 1k")
    assert row(deck, "vcvs", "e1") == {
        "pos": "c",
        "neg": "0",
        "control_pos": "b",
        "control_neg": "0",
        "gain": 3.0,
    }
    assert row(deck, "vcvs", "e2")["gain"] == 7.0
    assert "the one coefficient of poly(1) was taken for the linear one" in deck.notes[0]
    assert len(deck.netlist.behavioural_voltage) == 0


def test_behavioural_sources_and_tables() -> None:
    deck = circuit(
        *("b1 c 0 v = 2*v(b) + 1", "b2 0 d i={v(a,b)*1m} m=2", "r4 d 0 1k", "e1 e 0 value={v(c)^2}"),
        *(
            "e2 f 0 table {v(c)} = (0,0) (1,10), (3,20)",
            "g1 0 g cur='v(b)*1m'",
            "r7 g 0 1k",
            "r8 h 0 {v(b)*2k}",
        ),
        *("i1 0 h 1m", "e3 i 0 table {v(c)} (3,1) (4,2)", "b3 j 0 v=1 tc1=0.1 temp=37"),
    )
    v = voltages(deck)
    assert v["c"] == 2.0
    assert v["d"] == pytest.approx(1.0)
    assert v["e"] == 4.0
    assert v["f"] == 15.0
    assert v["g"] == pytest.approx(0.5)
    assert v["h"] == pytest.approx(1.0)
    assert v["i"] == 1.0
    assert v["j"] == 2.0


def test_other_programs_spellings_of_behavioural_elements() -> None:
    deck = circuit(
        *("b1 c 0 v={POLY(1) v(b) 3 2 1}", "r3 c 0 1k", "b2 d 0 v={poly(2) v(a) i(v1) 1 2 1k}", "r4 d 0 1k"),
        *("i1 0 e 1m", "r5 e 0 r='1k*(1+v(b))' tc1=0.01", ".temp 37", "r6 f 0 film", "i2 0 f 1m"),
        ".model film r(resistance=3k)",
    )
    v = voltages(deck)
    assert v["c"] == pytest.approx(3 + 2 * 0.5 + 0.5**2)
    assert v["d"] == pytest.approx(1 + 2 - 1e3 * 0.5e-3)
    assert v["e"] == pytest.approx(1.5 * 1.1)
    assert v["f"] == pytest.approx(3.0)
    assert "programs count the terms of this poly differently" in refusal(
        "b1 c 0 v={poly(2) v(a) v(b) 1 2 3 4}"
    )


def test_expressions_reach_into_subcircuits() -> None:
    deck = read(*DECKS["interior"].splitlines()[1:-1])
    v = voltages(deck)
    # 3 V over 4 kohm: 0.75 mA; x1.n is one resistor below the source.
    assert v["out"] == pytest.approx(2.25 + 0.75)
    assert v["f"] == pytest.approx(2 * 0.75e-3 * 100)


def test_switches_are_conductances() -> None:
    v = voltages(read(*DECKS["switches"].splitlines()[1:-1]))
    assert v["a"] == pytest.approx(10 / 1010)
    assert v["b"] == pytest.approx(1e6 / 1.001e6)
    # 2 mA flow from the source into its node: its current is negative.
    assert v["c"] == pytest.approx(10 / 11)


@pytest.mark.parametrize(("control", "expected"), [(-1.0, 1e6), (0.5, 1e3), (2.0, 1.0)])
def test_a_smooth_switch_goes_through_the_mean_of_its_logarithms(control: float, expected: float) -> None:
    deck = read(
        f"v1 c 0 {control}", "i1 0 a 1", "s1 a 0 c 0 s", ".model s vswitch(ron=1 roff=1meg von=1 voff=0)"
    )
    assert voltages(deck)["a"] == pytest.approx(expected)


# -------------------------------------------------------------------------------------------------- diodes


def test_diode_values() -> None:
    deck = circuit(
        ".model dm D (IS=2p N=1.5 RS=10 CJ0=3p PB=0.7 MJ=0.3 FC=0.4 TT=2n KF=1 JSW=1)",
        *("d1 b 0 dm", "d2 b 0 dm area=2 m=2", ".options gmin=1e-10"),
    )
    first, second = row(deck, "diode", "d1"), row(deck, "diode", "d2")
    assert first == {
        "pos": "d1#internal",
        "neg": "0",
        "saturation_current": 2e-12,
        "parallel_conductance": 1e-10,
        "slope_voltage": 1.5 * thermal_voltage(),
        "breakdown_voltage": math.inf,
        "breakdown_slope": 1.0,
        "junction_capacitance": 3e-12,
        "junction_potential": 0.7,
        "grading": 0.3,
        "depletion_limit": 0.4,
        "transit_time": 2e-9,
    }
    assert second["saturation_current"] == pytest.approx(8e-12)
    assert second["junction_capacitance"] == pytest.approx(12e-12)
    resistor = row(deck, "resistor", "r.d2#rs")
    assert (resistor["pos"], resistor["neg"]) == ("b", "d2#internal")
    assert resistor["conductance"] == pytest.approx(0.4)


DIODES = {
    "plain": ("is=1e-14", ""),
    "emission": ("is=1e-12 n=1.7", ""),
    "area": ("is=1e-12 n=1.7", "area=3"),
    "parallel": ("is=1e-12", "area=3 m=2"),
    "hot": ("is=1e-12 n=1.2", "temp=50"),
    "nominal": ("is=1e-12 n=1.2 tnom=50 eg=0.69 xti=2", ""),
    "breakdown": ("is=1e-14 bv=5", ""),
    "early breakdown": ("is=1e-9 bv=5 ibv=1e-9", ""),
    "soft breakdown": ("is=1e-12 bv=5 nbv=3 ibv=1u", ""),
    "large breakdown": ("is=1e-12 bv=5 ibv=1u", "area=3"),
    "parallel breakdown": ("is=1e-12 bv=5 ibv=1u", "m=3"),
    "hot breakdown": ("is=1e-12 bv=5 ibv=1u tcv=1e-2", "temp=90"),
    "model area": ("is=1e-12 area=4", ""),
    "side wall": ("is=1e-12 jsw=1e-10 cjsw=1p", ""),
}


@pytest.mark.ngspice
@pytest.mark.parametrize("options", ["", ".options temp=-20 gmin=1e-9"])
def test_diodes_draw_what_they_draw_in_ngspice(engine: NgspiceEngine, options: str) -> None:
    for voltage in (-6.0, -4.4, -1.0, -0.05, 0.3, 0.75):
        lines = [f"v1 a 0 {voltage}", TIGHT.strip(), options]
        for k, (model, instance) in enumerate(DIODES.values()):
            lines += [f".model m{k} d({model})", f"v{k}s a n{k} 0", f"d{k} n{k} 0 m{k} {instance}"]
        text = "\n".join(("diodes", *lines, ".op", ".end\n"))
        table = parse_deck(text).netlist.diode
        ours = diode_current(
            voltage,
            *(
                getattr(table, name)
                for name in ("saturation_current", "slope_voltage", "parallel_conductance")
            ),
            *(getattr(table, name) for name in ("breakdown_voltage", "breakdown_slope")),
        )
        theirs = engine.solve(text).branch_current
        for k, name in enumerate(DIODES):
            assert ours[k] == pytest.approx(theirs[f"v{k}s"], rel=1e-9, abs=1e-16), (name, voltage)


# ----------------------------------------------------------------------------- analyses, options and starts


def test_analyses() -> None:
    deck = circuit(
        *(
            ".op",
            ".dc v1 0 5 0.5",
            ".dc v1 0 1 0.1 r2 1k 2k 500",
            ".tran 1n 1u",
            ".tran 0 {2*stop} 1u 10n uic",
        ),
        ".param stop=5u",
    )
    assert deck.analyses == (
        OperatingPointAnalysis(),
        SweepAnalysis(sweeps=(Sweep(source="v1", start=0, stop=5, step=0.5),)),
        SweepAnalysis(
            sweeps=(
                Sweep(source="v1", start=0, stop=1, step=0.1),
                Sweep(source="r2", start=1e3, stop=2e3, step=500),
            )
        ),
        TransientAnalysis(step=1e-9, stop=1e-6),
        TransientAnalysis(
            step=pytest.approx(9e-8), stop=pytest.approx(1e-5), start=1e-6, largest_step=1e-8, uic=True
        ),
    )


def test_what_is_not_run_is_noted() -> None:
    deck = circuit(
        *(
            ".ac dec 10 1 1k",
            ".print tran v(a)",
            ".dc temp 0 100 10",
            ".step v1 0 1 1",
            ".options acct abstol=1p",
        ),
        *(".control", "run", "print v(b)", "tran 1n 5n", ".endc", ".measure tran x find v(b) at=1n"),
    )
    assert deck.notes == (
        "my.cir:5: .ac was not run: this analysis is not supported",
        "my.cir:6: .print was ignored",
        "my.cir:8: .step was not run: this analysis is not supported",
        "my.cir:10: the .control block was not run, but for its analyses",
        "my.cir:15: .measure was ignored",
        "my.cir:9: options without effect here: acct",
        "my.cir:7: .dc was not run: temp is no element",
    )
    assert deck.analyses == (TransientAnalysis(step=1e-9, stop=5e-9),)


def test_starts_temperature_and_options() -> None:
    deck = circuit(
        *(".ic v(b)=0.5 V(a) = {2*x}", ".nodeset v(b) 0.25", ".param x=2", ".ic v(nowhere)=1"),
        *(".options RELTOL=1e-5 temp=40 noacct method=gear", ".options timeint reltol=1e-3"),
    )
    assert deck.initial_voltage == {"b": 0.5, "a": 4.0}
    assert deck.nodeset == {"b": 0.25}
    assert deck.temperature == 40.0
    assert circuit(".temp 50", ".options temp=40").temperature == 50.0
    assert deck.options == {
        "reltol": 1e-5,
        "temp": 40.0,
        "noacct": True,
        "method": "gear",
        "timeint.reltol": 1e-3,
    }
    assert "my.cir:8: .ic of nowhere was ignored: no element connects to it" in deck.notes


def test_a_circuit_without_an_operating_point_may_run_from_initial_conditions() -> None:
    lines = ("v1 a 0 1", "r1 a b 1k", "c1 b c 1n", "c2 c 0 1n", ".tran 1n 1u uic")
    assert len(read(*lines).netlist.capacitor) == 2
    with pytest.raises(NetlistError, match="no path for direct current to ground from node c"):
        read(*lines, ".op")


def test_xyces_spellings() -> None:
    deck = read(
        *(".GLOBAL_PARAM VS = 2", ".PARAM RL={1k*2}", "VIN IN GND! {VS}", "R1 IN OUT R=1K", "R2 OUT 0 {RL}"),
        *(
            ".SUBCKT AMP A B PARAMS: GAIN=1",
            "E1 B 0 VALUE = {GAIN*V(A)}",
            ".ENDS",
            "XA OUT AMPD AMP PARAMS: GAIN=3",
        ),
        *("RA AMPD 0 1k", "BX BX 0 V={IF(V(OUT) > 1, 5, 6)}", "RB BX 0 1k", ".PREPROCESS REPLACEGROUND TRUE"),
        *(
            ".PRINT DC V(1) I(VIN)",
            ".OPTIONS NONLIN MAXSTEP=50 ABSTOL=1e-12",
            ".DC VIN 0 5 1",
            ".STEP RL 1 2 1",
        ),
        *(".OPTIONS LINSOL TYPE=KLU", "S1 SW 0 SWM CONTROL={V(OUT)}", ".MODEL SWM SWITCH (ON=1 OFF=0 RON=1)"),
        *("RS IN SW 1", ".TRAN 0 1m"),
    )
    v = voltages(deck)
    assert v["out"] == pytest.approx(4 / 3)
    assert v["ampd"] == pytest.approx(4.0)
    assert v["bx"] == 5.0
    assert v["sw"] == pytest.approx(1.0)
    assert deck.options["linsol.type"] == "klu"


# -------------------------------------------------------------------------------------------- as ngspice


@pytest.mark.ngspice
@pytest.mark.parametrize("name", DECKS)
def test_decks_solve_as_in_ngspice(engine: NgspiceEngine, name: str) -> None:
    text = re.sub(r"(?ms)^\.control.*?^\.endc\n|^\.(tran|dc|print|save|op|end)\b.*?\n", "", DECKS[name])
    text += f"{TIGHT}.op\n.end\n"
    ours = voltages(parse_deck(text))
    theirs = engine.solve(text).node_voltage
    compared = [node for node in ours if node in theirs]
    assert set(ours) - set(compared) <= {"0", "e1#sense", *(f"d{k}#internal" for k in range(9))}
    for node in compared:
        assert ours[node] == pytest.approx(theirs[node], rel=1e-9, abs=1e-9), node


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "r3 b 0 1k5",
            "r3.r: is not a number (got '1k5'). Write for example 1.5k, 2meg, 10pF, or an "
            "expression as {2*x}.",
        ),
        (
            "r3 b 0 1x",
            "r3.r: is not a number (got '1x'). x is 1e6 to some programs and a unit to others: write meg.",
        ),
        (
            "r3 b 0 ten",
            "r3.r: is not a number (got 'ten'). No parameter has this name; define it: .param ten=...",
        ),
        ("r3 b 0", "r3: has no resistance (got 'r3 b 0'). Write Rname node node value."),
        (
            "r3 b 0 1k foo=2",
            "r3: is no parameter that is supported here (got 'foo'). Supported: r l w m scale "
            "temp dtemp tc1 tc2 tce ac noisy.",
        ),
        ("R1 b 0 2k", "r1: is the name of another element too. First at my.cir:3; case is ignored."),
        (
            "q1 b a 0 npn",
            "q1: is not an element that is supported (got 'q'). Supported elements: R C L K V I "
            "E F G H B D S W X.",
        ),
        ("d1 b 0 dm", "d1: names a model that is not defined (got 'dm'). Add a .model line."),
        ("c1 b 0 -1n", "c1.c: must be positive (got -1e-09)"),
        ("k1 l1 l2 1", "k1: names an inductor that is not there (got 'l1')"),
        (
            "x1 b 0 amp",
            "x1: names a subcircuit that is not defined (got 'amp'). Add its .subckt, or .include it.",
        ),
        (
            "f1 b 0 vx 2",
            "f1: names an element that is not there (got 'vx'). A current is sensed through an "
            "element of this deck, as a rule a source of 0 V.",
        ),
        ("b1 b 0 i=v(zz)", "b1: is a node that no element connects to (got 'zz')"),
        (
            "b1 b 0 v(a)",
            "b1: wants V= or I= (got 'v(a)'). Write Bname node node V={expression} or I={expression}.",
        ),
        ("e1 c 0 a 0", "e1: is not understood (got 'a 0'). Write Ename node node control control gain."),
        (
            "g1 b 0 laplace {v(a)} {1/s}",
            "g1: is a kind of source that is not supported (got 'laplace'). Supported: linear, "
            "POLY, VALUE, TABLE.",
        ),
        ("e1 c 0 poly(2) a 0 1", "e1: poly(2) wants 4 nodes and coefficients (got 'a 0 1')"),
        (
            "v2 c 0 sffm(0 1)",
            "v2: is not supported (got 'sffm'). Supported: DC, AC (not used), PULSE, PWL, SIN, EXP.",
        ),
        ("v2 c 0 pulse(1)", "v2.pulse: wants 2 to 8 numbers (got 1)"),
        ("v2 c 0 pwl(0 1 2)", "v2.pwl: wants pairs of time and value (got 3)"),
        (
            "v2 a 0 2",
            "vsource v2: closes a loop of voltage sources between nodes a and 0. Put a "
            "resistance in series with one of them.",
        ),
        (
            ".param x={y}",
            ".param.x: has an unknown name, 'y' at character 2 (got '{y}'). Known: pi, e, temper, x.",
        ),
        (".dc v9 0 1 .1", ".dc: sweeps what is no V, I or R element of this deck (got 'v9')"),
        (".ic i(v1)=1", ".ic: wants v(node)=value (got 'i(v1)=1'). Only node voltages can be set."),
        (".ends", ".ends: closes no .subckt"),
        (".subckt s p", ".subckt.s: is not closed by .ends"),
        (".temp 27 50", ".temp: wants one temperature (got '27 50')"),
        (
            ".options cshunt=1p",
            ".options.cshunt: changes the circuit and is not supported (got '1p'). Leave it out, "
            "or write its elements into the deck.",
        ),
    ],
)
def test_messages(line: str, message: str) -> None:
    extra = ("r9 b 0 {x}",) if line.startswith(".param") else ()
    assert refusal(line, *extra) == f"my.cir:5: {message}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((".param x={y} y={x}", "r3 b 0 {x}"), "my.cir:5: .param.y: depends on itself (got '{x}')"),
        (
            (".model dm npn", "d1 b 0 dm"),
            "my.cir:5: .model: is a kind of model that is not supported (got 'npn'). Supported: "
            "D, R, C, L, SW, CSW, VSWITCH, ISWITCH.",
        ),
        ((".model dm d(level=3)", "d1 b 0 dm"), "my.cir:5: dm.level: only level 1 is supported (got 3.0)"),
        ((".model dm d(is=0)", "d1 b 0 dm"), "my.cir:5: dm.is: must be positive (got 0.0)"),
        (
            (".model s sw(vh=1)", "s1 b 0 a 0 s"),
            "my.cir:5: s.vh: a switch with hysteresis is not supported (got 1.0). Use 0, or a "
            "model with von and voff, whose resistance changes smoothly.",
        ),
        (
            (".control", "alter r1=2", ".endc"),
            "my.cir:6: alter: is a command that may change the circuit from a .control block, "
            "which is not supported (got 'alter'). Leave it out; change the deck's lines instead.",
        ),
        (
            (".control", "set temp=50", ".endc"),
            "my.cir:6: set: changes the circuit from a .control block, which is not supported "
            "(got 'set temp=50'). Write .options temp=... outside it.",
        ),
        (
            ("x1 b 0 s", ".subckt s p", "r1 p 0 1", ".ends"),
            "my.cir:5: x1: s has 1 pins, not 2 (got 'b 0'). Its pins: p.",
        ),
        (
            ("x1 b s k=1", ".subckt s p", "r1 p 0 1", ".ends"),
            "my.cir:5: x1: is no parameter of s (got 'k'). It has none.",
        ),
        (
            ("r3 b z 1k", "c1 z 0 1n", "c2 y 0 1n"),
            "my.cir: no path for direct current to ground from node y. Connect it by a resistor "
            "(a leak), a diode or a source; capacitors and current sources do not fix a voltage.",
        ),
    ],
)
def test_messages_of_several_lines(lines: tuple[str, ...], message: str) -> None:
    assert refusal(*lines) == message


def test_an_empty_deck_is_refused() -> None:
    for text in ("", "only a title\n", "t\n* nothing\n.end\n"):
        with pytest.raises(CircuitsimError, match="holds no elements"):
            parse_deck(text)
