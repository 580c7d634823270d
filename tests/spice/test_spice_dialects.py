"""Decks in the ways of several programs, solved: what a user of each expects by hand calculation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from circuitsim.solver import build_plan, solve
from circuitsim.solver.transient import transient
from circuitsim.spice.deck_file import Deck, TransientAnalysis
from circuitsim.spice.reader import parse_deck, read_deck

TAB = "\t"


def operating_point(deck: Deck) -> Mapping[str, float]:
    point = solve(build_plan(deck.netlist), deck.netlist.values(), np.zeros((1, 0)))
    return dict(zip(deck.netlist.node_names, point.node_voltage[0].tolist(), strict=True))


# name: (lines, {node: V})
RESTING = {
    "tabs between all words": (
        (
            f".subckt{TAB}half{TAB}a b r=1k",
            f"r1{TAB}a{TAB}b{TAB}{{r}}",
            f"r2{TAB}b 0{TAB}{{r}}",
            ".ends",
            f"v1{TAB}in 0{TAB}2",
            f"x1 in out{TAB}half r=5k",
            f".model{TAB}unused D (is=1f)",
        ),
        {"out": 1.0},
    ),
    "a quoted formula and a multiplier": (
        (
            "v1 c 0 0.5",
            "b1 0 a i='v(c,0)*0.02' m=10",
            "ra a 0 10",
            "g1 0 b cur='v(c)*0.02' m=10",
            "rb b 0 10",
        ),
        {"a": 1.0, "b": 1.0},
    ),
    "multipliers of nested subcircuits": (
        (
            ".subckt inner a b",
            "g1 a b value={v(c)*1m}",
            "r1 c 0 1",
            "v1 c 0 1",
            ".ends",
            ".subckt outer a b",
            "x1 a b inner m=2",
            ".ends",
            "x1 0 out outer m=5",
            "rl out 0 100",
        ),
        {"out": 1.0},
    ),
    "units after scale factors, also in braces": (
        (".param r={1.0e+6um} c={2*500mohm}", "v1 a 0 1000mvolts", "r1 a b {r}", "r2 b 0 {c}"),
        {"b": 0.5},
    ),
    "functions of functions": (
        (
            ".func scaled(x) {gain*x + shift}",
            ".func squared(x) {x*x}",
            ".param gain=2 shift=1",
            "v1 a 0 3",
            "b1 b 0 v={scaled(squared(v(a)))}",
            "r1 b 0 1",
        ),
        {"b": 19.0},
    ),
    "functions among parameters": (
        (
            ".param a=1 weigh(x,y)={2*x+y} b=12",
            "v1 in 0 1",
            "r1 in o {weigh(2,a)*b}",
            "r2 o 0 {weigh(1,a)*20}",
        ),
        {"o": 0.5},
    ),
    "formulas without braces or with quotes": (
        (".param u=1 v=u+0.5, w='2*u' x = 3 * u", "v1 a 0 {v+w+x}", "r1 a 0 1"),
        {"a": 6.5},
    ),
    "choices": (
        (
            "v1 a 0 2",
            "b1 b 0 v={v(a)>1 ? v(a)>3 ? 1 : 2 : 3}",
            "b2 c 0 v={if(v(a)<=2 && !(v(a)==1), 4, 5)}",
            "b3 d 0 v={1+(v(a)>0)?2*v(a):0+2}",
            "e4 e 0 value={max(min(v(a), 1.5), 1)}",
            "e5 f 0 value={limit(-v(a), -1.5, 2.5)}",
            *(f"r{n} {n} 0 1" for n in "bcdef"),
        ),
        {"b": 2.0, "c": 4.0, "d": 4.0, "e": 1.5, "f": -1.5},
    ),
    "precedence": (
        (
            "v1 a 0 3",
            "b1 b 0 v={-v(a)**2}",
            "b2 c 0 v={2**3**2}",
            "b3 d 0 v={8/2/2 - 2 - 1}",
            *(f"r{n} {n} 0 1" for n in "bcd"),
        ),
        {"b": -9.0, "c": 64.0, "d": -1.0},
    ),
    "currents of all that carries them": (
        (
            "v1 a 0 1",
            "r1 a 0 1",
            "e1 e 0 a 0 3",
            "re e 0 3",
            "h1 h 0 v1 -2",
            "rh h 0 1",
            "b1 b 0 v={2*v(a)}",
            "rb b 0 4",
            "b2 s 0 v={i(v1) + 10*i(e1) + 100*i(h1) + 1000*i(b1)}",
            "rs s 0 1",
        ),
        {"s": -1.0 - 10.0 - 200.0 - 500.0},
    ),
    "a transformer of two controlled sources": (
        (
            ".subckt ideal p1 p2 s1 s2 params: ratio=1",
            "es s1 s2 p1 p2 {ratio}",
            "fp p2 p1 es {ratio}",
            ".ends",
            "v1 in 0 2",
            "r1 in p 3",
            "x1 p 0 s 0 ideal params: ratio=2",
            "r2 s 0 4",
        ),
        # 4 ohm on the secondary are 1 ohm on the primary.
        {"p": 0.5, "s": 1.0},
    ),
    "products of voltages": (
        (
            "v1 a 0 3",
            "v2 b 0 2",
            "e1 c 0 poly(2) a 0 b 0 1 0 0 0 1",
            "g1 0 d poly(2) a 0 b 0 0 0.1 0.2 0.01 0 0.03",
            "e3 e 0 poly(1) a 0 3 2 1",
            *(f"r{n} {n} 0 1" for n in "cde"),
        ),
        {"c": 1 + 3 * 2, "d": 0.3 + 0.4 + 0.09 + 0.12, "e": 3 + 6 + 9},
    ),
    "tables": (
        (
            "v1 a 0 0.5",
            "e1 b 0 table {v(a)} = (-1,1) (1,-1)",
            "b2 c 0 v={table(v(a)*4, 0, 0, 1, 10, 3, 30)}",
            "b3 d 0 v={pwl(v(a), -1, 2, 0, 4, 1, 8)}",
            *(f"r{n} {n} 0 1" for n in "bcd"),
        ),
        {"b": -0.5, "c": 20.0, "d": 6.0},
    ),
    "temperature": (
        (
            ".options temp=-55",
            "i1 0 a 1m",
            "r1 a 0 1k rmod",
            ".model rmod r (tc1=0.0007325 tc2=-2.217e-07)",
            "i2 0 b 1m",
            "r2 b 0 2k tc=1m,0",
            "i3 0 c 1m",
            "r3 c 0 1k rmod dtemp=82",
        ),
        {"a": 0.9384443, "b": 2 * (1 - 0.082), "c": 1.0},
    ),
    "the temperature by name": (
        (
            ".temp 50",
            ".model rmod r r='500+temper'",
            ".model dmod d is='1e-16*temper' n=1",
            "i1 0 a 1m",
            "r1 a 0 'temper'",
            "i2 0 b 1m",
            "r2 b 0 rmod",
            ".param half={temper/2}",
            "i3 0 c {half*1m}",
            "r3 c 0 1",
        ),
        {"a": 0.05, "b": 0.55, "c": 0.025},
    ),
    "dc without a number": (("v1 a 0 dc pulse(3 5 1 1 1) ac 1", "r1 a 0 1"), {"a": 3.0}),
    "blocks for analyses that are not run": (
        ("v1 a 0 2", "r1 a 0 1", ".step data=fred", ".data fred", "r b", "1 2", "3 4", ".enddata"),
        {"a": 2.0},
    ),
    "an element without resistance": (("v1 a 0 5", "r1 a b 0", "r2 b 0 1k"), {"b": 5 / (1 + 1e-6)}),
    "comments anywhere": (
        ("v1 a 0 2; no space before", "*", "r1 a b 1k $ a dollar", "r2 b 0 1k;", "+ ; nothing"),
        {"b": 1.0},
    ),
    "names of a power grid": (
        (
            "v1 _x_n3_0_0 0 1.8",
            "r1 _X_n3_0_0 n3_0_0 0.25",
            "v2 n3_0_0 n1_0_0 0",
            "rr2 n1_0_0 n1_1200_0 0.75",
            "iB1 n1_1200_0 0 0.1",
        ),
        {"n1_0_0": 1.775, "n1_1200_0": 1.7},
    ),
    "a global node in a subcircuit that also has it as a pin": (
        (".global vdd", ".subckt s a vdd", "r1 vdd a 3", ".ends", "v1 VDD 0 4", "x1 o vdd s", "r2 o 0 1"),
        {"o": 1.0},
    ),
    "a logarithm of what begins at nothing": (
        ("v1 a 0 2.5", "b1 b 0 v={exp(v(a))}", "r1 b 0 1", "b2 c 0 v={ln(v(b))}", "r2 c 0 1"),
        {"c": 2.5},
    ),
    "an inverse beyond its domain by rounding": (
        ("v1 a 0 25", "b1 b 0 v={tanh(v(a))}", "r1 b 0 1", "b2 c 0 v={cos(atanh(v(b))*0)}", "r2 c 0 1"),
        {"b": 1.0, "c": 1.0},
    ),
    "amplifiers with a gain of a million": (
        ("v1 a 0 1.1", "e1 o 0 a m 1meg", "r1 o m 9k", "r2 m 0 1k", "e2 p 0 o p 1e6", "r3 p 0 1k"),
        {"o": 11.0 / (1 + 1e-5), "p": 11.0 / (1 + 1e-5) / (1 + 1e-6)},
    ),
}


@pytest.mark.parametrize("name", RESTING)
def test_operating_points(name: str) -> None:
    lines, expected = RESTING[name]
    found = operating_point(parse_deck("\n".join([name, *lines, ".op", ".end", ""])))
    assert_allclose([found[node] for node in expected], list(expected.values()), rtol=1e-6)


def test_a_section_of_a_library_takes_another_of_the_same_file(tmp_path: Path) -> None:
    library = (
        ".lib slow",
        ".lib 'parts.lib' shared",
        ".param r=3k",
        ".endl",
        ".lib shared",
        "r2 b 0 1k",
        ".endl",
    )
    (tmp_path / "parts.lib").write_text("\n".join(library))
    deck = tmp_path / "deck.cir"
    deck.write_text("library\nv1 a 0 4\nr1 a b {r}\n.lib parts.lib slow\n.op\n.end\n")
    assert_allclose(operating_point(read_deck(deck))["b"], 1.0)


SPELLINGS = (
    "pwl(0 0 2 3 3 2 4 2 4.01 5)",
    "pwl 0s 0v 2s 3v 3s 2v 4s 2v 4.01s 5v",
    "pwl 0s 0v, 2s 3v, 3s 2v, 4s 2v, 4.01s 5v",
    "dc 0 pwl (0,0 2,3 3,2 4,2 4.01,5) ac 1",
    "pwl(0 0 2 3 3 2\n+ 4 2 4.01 5)",
)


@pytest.mark.parametrize("text", SPELLINGS)
def test_one_waveform_in_many_spellings(text: str) -> None:
    deck = parse_deck(f"w\nv1 a 0 {text}\nr1 a 0 1\n.tran 1 5\n.end\n")
    times = np.array([0.0, 1.0, 2.0, 2.5, 4.0, 4.005, 5.0])
    assert_allclose(deck.waveforms["v1"].value(times), [0.0, 1.5, 3.0, 2.5, 2.0, 3.5, 5.0], atol=1e-12)


def moving(lines: tuple[str, ...], times: np.ndarray) -> Mapping[str, np.ndarray]:
    deck = parse_deck("\n".join(["moving", *lines, ".end", ""]))
    (analysis,) = deck.analyses
    assert isinstance(analysis, TransientAnalysis)
    result = transient(
        build_plan(deck.netlist),
        deck.netlist.values(),
        stop=analysis.stop,
        step=analysis.step,
        waveforms=deck.waveforms,
        initial_voltage=deck.initial_voltage,
        element_initial=deck.element_initial,
        uic=analysis.uic,
        times=times,
    )
    return {node: result.voltage(node) for node in deck.netlist.node_names}


def test_a_held_capacitor_discharges_from_ic() -> None:
    times = np.linspace(0, 5e-3, 11)
    lines = (".param start=1", ".ic v(1)={start}", "c1 1 0 1uF", "r1 1 2 1k", "v1 2 0 0v", ".tran 0 5ms")
    assert_allclose(moving(lines, times)["1"], np.exp(-times / 1e-3), atol=5e-5)


@pytest.mark.parametrize("text", ["v(1)=1 v(2)=0", "1 1", "1 1 2 0", "V(1) = {0.5*2}", "1={1}, 2=0"])
def test_spellings_of_initial_voltages(text: str) -> None:
    deck = parse_deck(f"i\n.ic {text}\nc1 1 0 1u\nr1 1 2 1k\nr2 2 0 1k\n.tran 1u 1m\n.end\n")
    assert deck.initial_voltage == ({"1": 1.0, "2": 0.0} if "2" in text.replace("*2", "") else {"1": 1.0})


def test_initial_conditions_without_effect_are_noted() -> None:
    lines = "i\nc1 1 0 1u ic=400\nl1 1 2 1m ic=0\nr1 2 0 1\n.tran 1u 1m{}\n.end\n"
    assert [note for note in parse_deck(lines.format("")).notes if "c1 and 1 more has no effect" in note]
    assert not parse_deck(lines.format(" uic")).notes


def test_a_step_into_a_series_resonator_that_is_overdamped() -> None:
    # s^2 + 3 s + 2 = (s + 1)(s + 2): i(t) = 10 (exp(-t) - exp(-2t))
    times = np.linspace(0.01, 10, 50)
    lines = ("r1 1 2 3", "l1 2 3 1", "c1 3 0 .5", "v1 1 0 10 pulse(0 10 0 1n 0 10 10)", ".tran 0.01 10 0")
    found = moving(lines, times)
    assert_allclose((found["1"] - found["2"]) / 3, 10 * (np.exp(-times) - np.exp(-2 * times)), atol=1e-4)


def test_diodes_charge_a_capacitor_as_their_law_says() -> None:
    # C dv/dt = Is (exp((V - v)/Vt) - 1): exp(v/Vt) = top - (top - 1) exp(-Is t / (C Vt)), top = exp(V/Vt)
    thermal = 1.38064852e-23 * 300.15 / 1.6021766208e-19
    lines = (".options gmin=0", "v1 1 0 0.2", "d1 1 2 dm", "c1 2 0 1p ic=0", ".model dm d level=1 rs=0")
    times = np.linspace(0, 10, 9)
    top = np.exp(0.2 / thermal)
    expected = thermal * np.log(top - (top - 1) * np.exp(-1e-14 / (1e-12 * thermal) * times))
    assert_allclose(moving((*lines, ".tran 1m 10 uic"), times)["2"], expected, atol=1e-4)


def test_mutual_coils_without_sources_decay_in_two_modes() -> None:
    # Equal coils of L = 10 mH with k = 0.95 and 1 ohm each: currents (i1 +- i2) fall with L (1 +- k) / R.
    lines = ("l1 2 0 10mh ic=5", "r1 0 2 1", "l2 1 0 10mh", "r2 0 1 1", "k1 l1 l2 .95", ".tran .1ms 50ms uic")
    times = np.linspace(1e-3, 50e-3, 20)
    even, odd = 2.5 * np.exp(-times / 0.0195), 2.5 * np.exp(-times / 0.0005)
    found = moving(lines, times)
    assert_allclose(found["2"], -(even + odd), atol=1e-4)
    assert_allclose(found["1"], -(even - odd), atol=1e-4)


def test_a_formula_of_a_waveform_is_right_between_the_corners() -> None:
    times = np.array([0.0, 0.37, 1.0, 1.5, 2.25, 2.9975, 3.0, 3.3])
    lines = ("v1 a 0 pwl(0 100 1 1000 2 1e5 3 1)", "b1 b 0 v={ln(v(a))}", "r1 b 0 1", ".tran 1 4")
    expected = np.log(np.interp(times, [0, 1, 2, 3], [100, 1000, 1e5, 1]))
    assert_allclose(moving(lines, times)["b"], expected, atol=1e-9)


def test_a_jump_is_not_smeared() -> None:
    times = np.linspace(0, 2e-6, 401)[1:]
    pulse = "v1 a 0 pulse(0 2 0 10n 10n .49u 1u)"
    lines = (pulse, "e1 b 0 value={if(v(a) < 0.8, 3.5, 0.4)}", "r1 b 0 1", ".tran 10n 2u")
    inside = moving(lines, times)
    assert set(np.round(inside["b"], 9)) == {3.5, 0.4}
    off = np.abs(inside["a"] - 0.8) > 0.05
    assert_allclose(inside["b"][off], np.where(inside["a"][off] < 0.8, 3.5, 0.4))


@pytest.mark.parametrize("periods", [1, 3, 5, 7, 10, 33])
def test_a_pulse_may_begin_anew_as_the_run_stops(periods: int) -> None:
    # periods * 1e-6 is not always periods microseconds.
    lines = ("v1 a 0 pulse(0 2 0 10n 10n .49u 1u)", "r1 a b 1k", "c1 b 0 1p", f".tran 10n {periods}u")
    found = moving(lines, np.array([0.25e-6, (periods - 0.25) * 1e-6, periods * 1e-6]))
    assert_allclose(found["b"], [2.0, 0.0, 0.0], atol=1e-5)
