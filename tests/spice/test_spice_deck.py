"""Decks as text: names, values, comments, options. No simulator is needed here."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from circuits import EVERYTHING, random_netlist
from spice_networks import NETWORKS, network, sample_inputs, sample_nudge

from circuitsim.errors import NetlistError
from circuitsim.netlist import (
    AmplifierBank,
    Crossbar,
    Netlist,
    NetlistBuilder,
    SoftmaxLoad,
    flatten,
    nudged_netlist,
)
from circuitsim.netlist.expressions import parse_expression
from circuitsim.netlist.models import thermal_voltage
from circuitsim.solver import build_plan, solve
from circuitsim.spice import DeckOptions, deck_nodes, phase_netlist, with_inputs, write_deck
from circuitsim.spice.deck_file import Analysis, Deck, Sweep, SweepAnalysis, TransientAnalysis


def joined(deck: str) -> list[str]:
    """The deck's lines, continuation lines joined as a simulator joins them."""
    return deck.replace("\n+", "").splitlines()


def element(deck: str, name: str) -> str:
    """The line of one element."""
    (line,) = [line for line in joined(deck) if line.split(" ")[0] == name]
    return line


def divider(title: str = "divider") -> NetlistBuilder:
    builder = NetlistBuilder(title)
    builder.add("vsource", "in", "a", "0", voltage=1.0)
    builder.add("resistor", "top", "a", "b", conductance=1e-3)
    builder.add("resistor", "bottom", "b", "0", conductance=4e-3)
    return builder


def test_a_whole_deck() -> None:
    assert write_deck(divider().build()) == (
        "* divider\n"
        "*\n"
        "* elements\n"
        "V_in a 0 1.0\n"
        "R_top a b 1000.0\n"
        "R_bottom b 0 250.0\n"
        "*\n"
        ".options device gmin=1e-12\n"
        ".options nonlin reltol=1e-09 abstol=1e-15 vntol=1e-12 itl1=1000 pivtol=1e-24\n"
        ".op\n"
        ".end\n"
    )


def test_options_reach_the_deck() -> None:
    options = DeckOptions(relative_tolerance=1e-4, voltage_tolerance=1e-7, iterations=50)
    assert "reltol=0.0001 abstol=1e-15 vntol=1e-07 itl1=50" in write_deck(divider().build(), options=options)


@pytest.mark.parametrize("name", NETWORKS)
def test_decks_are_deterministic_and_plain(name: str) -> None:
    netlist = nudged_netlist(network(name), sample_nudge(network(name), "softmax", 0.1))
    deck = write_deck(netlist)
    assert deck == write_deck(netlist)
    assert deck.isascii()
    assert "np." not in deck
    assert "inf" not in deck
    assert "nan" not in deck
    assert max(len(line) for line in deck.splitlines()) <= 110


@pytest.mark.parametrize("name", NETWORKS)
def test_names_of_elements_are_legal_and_distinct(name: str) -> None:
    deck = write_deck(nudged_netlist(network(name), sample_nudge(network(name), "softmax", 0.1)))
    names = [line.split()[0] for line in joined(deck) if line[0] not in "*."]
    assert all(re.fullmatch(r"[RCDVIGEFHB]_[A-Za-z0-9_]+", item) for item in names)
    assert len({item.lower() for item in names}) == len(names)


def test_every_flat_element_has_its_line() -> None:
    netlist = network("bidirectional")
    flat = flatten(netlist).netlist
    lines = [line for line in joined(write_deck(netlist)) if line[0] not in "*."]
    # Linear amplifiers without an offset are VCVS.
    assert len(lines) == sum(len(table) for table in flat.tables())
    assert sum(line[0] == "E" for line in lines) == len(flat.buffer)


def test_inputs_are_put_into_their_sources() -> None:
    netlist = network("feedforward")
    u = sample_inputs(netlist)[0]
    deck = write_deck(with_inputs(netlist, u))
    assert element(deck, "V_u_2_p") == f"V_u_2_p u_2_p 0 {float(u[2])!r}"
    assert element(deck, "V_u_2_n") == f"V_u_2_n u_2_n 0 {-float(u[2])!r}"


def test_comments_say_what_lines_belong_to() -> None:
    lines = write_deck(network("virtual ground")).splitlines()
    where = lines.index("* layer hidden, neuron hidden[3]")
    assert lines[where + 1].startswith("C_hidden_3 hidden_3 0 ")
    assert lines[where + 2] == "R_hidden_3_leak hidden_3 0 2000.0"
    where = lines.index("* crossbar u-hidden, negative word lines: 9 word lines, 9 bit lines")
    assert lines[where + 1].startswith("R_u_hidden_n_0_0 u_0_n u_hidden_bit_0 ")
    where = lines.index("* amplifier bank hidden.buffer, negative outputs")
    assert lines[where + 1].startswith("B_hidden_buffer_n_0 hidden_0_n 0 V={")
    where = lines.index("* virtual grounds hidden-out.sense")
    assert lines[where + 1] == "V_hidden_out_sense_0 hidden_out_bit_0 0 0.0"
    assert lines[where + 9].startswith("F_hidden_out_sense_0 out_0 0 V_hidden_out_sense_0 ")
    assert "* node hidden_3_p is hidden[3].p" in lines


def test_elements_between_neurons_belong_to_none() -> None:
    builder = NetlistBuilder("pair")
    for name in ("h[0]", "h[1]"):
        builder.add("resistor", f"{name}.leak", name, "0", conductance=1e-3)
    builder.add("resistor", "between", "h[0]", "h[1]", conductance=1e-3)
    builder.group("h", builder.nodes(["h[0]", "h[1]"]))
    lines = write_deck(builder.build()).splitlines()
    assert lines[lines.index("* sources and elements between neurons") + 1].startswith("R_between ")
    assert lines[lines.index("* layer h, neuron h[1]") + 1].startswith("R_h_1_leak ")


def test_names_that_differ_by_case_or_marks_stay_apart() -> None:
    builder = NetlistBuilder("names")
    nodes = ["A", "a", "a.b", "a-b", "a(b", "time", "1e3", "1000", "ü", "a_b_2", "V(1)", "1(", "a//b", "$x"]
    for node in nodes:
        builder.add("resistor", node, node, "0", conductance=1e-3)
    netlist = builder.build()
    found = deck_nodes(netlist)
    assert found["0"] == "0"
    assert [found[node] for node in nodes] == [
        "A",
        "a_2",
        "a.b",
        "a-b",
        "a_b",
        "time_2",
        "1e3",
        "1000",
        "node",
        "a_b_2",
        "V_1",
        "n1",
        "a_b_3",
        "x",
    ]
    lines = joined(write_deck(netlist))
    assert "* node node is \\xfc" in lines
    assert "* node a_2 is a" in lines
    resistors = [line.split()[0].lower() for line in lines if line.startswith("R")]
    assert len(set(resistors)) == len(nodes)


def test_legal_names_stay_and_others_get_their_letter() -> None:
    builder = NetlistBuilder("names")
    names = ["R1", "rload", "r.x1.r1", "R[3]", "R-1", "1", "top", "v1", "R(1)", "r//", "R_top"]
    for k, name in enumerate(names):
        builder.add("resistor", name, f"n[{k}]", "0", conductance=1e-3)
    lines = joined(write_deck(builder.build()))
    written = [line.split()[:2] for line in lines if line.startswith(("R", "r"))]
    expected = ["R1", "rload", "r.x1.r1", "R[3]", "R-1", "R_1", "R_top", "R_v1", "R_R_1", "R_r", "R_top_2"]
    assert written == [[name, f"n[{k}]"] for k, name in enumerate(expected)]


def test_what_other_lines_refer_to_has_no_operators_in_its_name() -> None:
    builder = NetlistBuilder("names")
    for name in ("v-1", "v-2"):
        builder.add("vsource", name, name, "0", voltage=1.0)
    builder.add("cccs", "f", "v-1", "0", control="v-2", gain=1.0)
    for name in ("l+1", "l+2", "l+3"):
        builder.add("inductor", name, "v-1", name, inductance=1.0)
        builder.add("resistor", name, name, "0", conductance=1.0)
    builder.add("coupling", "k", coupled=("l+1", "l+3"), coefficient=0.5)
    deck = write_deck(builder.build())
    assert element(deck, "f") == "f v-1 0 V_v_2 1.0"
    assert element(deck, "k") == "k L_l_1 L_l_3 0.5"
    assert element(deck, "v-1") == "v-1 v-1 0 1.0"
    assert element(deck, "l+2") == "l+2 v-1 l+2 1.0"


def test_neurons_have_no_brackets() -> None:
    # print v(h[0]) in ngspice would look for entry 0 of a vector h.
    names = deck_nodes(network("bidirectional"))
    assert names["hidden[3]"] == "hidden_3"
    assert not any(mark in name for name in names.values() for mark in "[]()")


def test_internal_nodes_rename_none_of_the_circuit() -> None:
    netlist = network("bidirectional")
    flat = flatten(netlist).netlist
    own = dict(list(deck_nodes(flat).items())[: netlist.n_nodes])
    assert {name: deck_nodes(netlist)[name] for name in netlist.node_names} == own


def test_a_title_stays_one_line_of_ascii() -> None:
    deck = write_deck(divider().build(), title="an error\n.end of µ")
    assert deck.splitlines()[0] == "* an error .end of \\xb5"
    assert write_deck(divider("other").build()).startswith("* other\n")


def test_long_lines_go_on_with_plus_and_long_comments_as_comments() -> None:
    netlist = nudged_netlist(network("relu"), sample_nudge(network("relu"), "softmax", 0.1))
    assert "\n+ " in write_deck(netlist)
    lines = write_deck(divider().build(), title="word " * 60).splitlines()
    assert [line[0] for line in lines[:4]] == ["*"] * 4


def test_devices_of_zero_conductance_are_left_out() -> None:
    builder = divider()
    nodes = builder.nodes(["a", "b"])
    g = np.array([[0.0, 2e-3], [0.0, 0.0]])
    builder.crossbar(Crossbar(name="x", word_pos=nodes, bit=builder.nodes(["p", "q"]), g_plus=g))
    for node in ("p", "q"):
        builder.add("resistor", node, node, "0", conductance=1e-3)
    deck = write_deck(builder.build())
    assert (
        "* crossbar x, positive word lines: 2 word lines, 2 bit lines; 3 devices of 0 S are left out" in deck
    )
    assert [line for line in joined(deck) if line.startswith("R_x")] == ["R_x_p_0_1 a q 500.0"]


def test_masked_pairs_have_no_lines() -> None:
    builder = divider()
    mask = np.array([[True, False], [False, True]])
    builder.crossbar(
        Crossbar(
            name="x",
            word_pos=builder.nodes(["a", "b"]),
            word_neg=builder.nodes(["b", "a"]),
            bit=builder.nodes(["p", "q"]),
            g_plus=np.full((2, 2), 1e-3),
            g_minus=np.full((2, 2), 2e-3),
            mask=mask,
        )
    )
    deck = write_deck(builder.build())
    assert [line for line in joined(deck) if line.startswith("R_x")] == [
        "R_x_p_0_0 a p 1000.0",
        "R_x_p_1_1 b q 1000.0",
        "R_x_n_0_0 b p 500.0",
        "R_x_n_1_1 a q 500.0",
    ]


def diodes(*parallel: float, slope: float = 0.05) -> Netlist:
    builder = divider()
    for k, g in enumerate(parallel):
        builder.add(
            "diode", f"d{k}", "b", "0", saturation_current=1e-9, slope_voltage=slope, parallel_conductance=g
        )
    return builder.build()


def test_equal_diodes_share_a_model() -> None:
    deck = write_deck(diodes(1e-12, 1e-12))
    emission = 0.05 / float(thermal_voltage())
    assert element(deck, "d1") == "d1 b 0 diode_1"
    assert [line for line in joined(deck) if line.startswith(".model")] == [
        f".model diode_1 D (IS=1e-09 N={emission!r})"
    ]


def test_the_thermal_voltage_is_the_simulators() -> None:
    deck = write_deck(diodes(0.0, slope=0.06), options=DeckOptions(thermal_voltage=0.03))
    assert ".model diode_1 D (IS=1e-09 N=2.0)" in deck


@pytest.mark.parametrize(
    ("parallel", "gmin", "resistors"),
    [
        ((3e-10, 3e-10), "3e-10", []),
        ((0.0, 0.0), "1e-21", []),
        ((1e-9, 3e-9), "1e-09", [f"R_d1_parallel b 0 {1 / 2e-9!r}"]),
        ((0.0, 1e-6), "1e-21", [f"R_d1_parallel b 0 {1 / 1e-6!r}"]),
    ],
)
def test_gmin_is_what_every_diode_has_in_parallel(
    parallel: tuple[float, ...], gmin: str, resistors: list[str]
) -> None:
    deck = write_deck(diodes(*parallel))
    assert f".options device gmin={gmin}\n" in deck
    found = [line for line in joined(deck) if "parallel" in line]
    assert [line.split()[:3] for line in found] == [line.split()[:3] for line in resistors]
    values = [float(line.split()[3]) for line in found]
    assert values == pytest.approx([float(line.split()[3]) for line in resistors], rel=1e-14)


@pytest.mark.parametrize(
    ("gain", "saturation", "offset", "control", "line"),
    [
        (2.0, math.inf, 0.0, ("a", "b"), "E_x o 0 a b 2.0"),
        (2.0, math.inf, 0.5, ("a", "b"), "B_x o 0 V={2.0*((v(a) - v(b)) + 0.5)}"),
        (2.0, 0.5, 0.0, ("a", "0"), "B_x o 0 V={0.5*tanh(2.0*(v(a))/0.5)}"),
        (-2.0, 0.5, -0.1, ("0", "b"), "B_x o 0 V={0.5*tanh((-2.0)*((0 - v(b)) + (-0.1))/0.5)}"),
        (2.0, 0.5, 0.1, ("a", "a"), "B_x o 0 V={0.5*tanh(2.0*(0 + 0.1)/0.5)}"),
    ],
)
def test_buffers(gain: float, saturation: float, offset: float, control: tuple[str, str], line: str) -> None:
    builder = divider()
    builder.add("buffer", "x", "o", "0", *control, gain=gain, saturation=saturation, offset=offset)
    builder.add("resistor", "load", "o", "0", conductance=1e-3)
    deck = write_deck(builder.build())
    assert element(deck, line.split()[0]) == line


@pytest.mark.parametrize(
    "gain", [1.0491535358687136, -1.23456789012345, 1 / 3, -2e-7 / 3, 12345678901.0, 0.1]
)
def test_long_numbers_in_expressions_are_sums_of_short_ones(gain: float) -> None:
    builder = divider()
    builder.add("buffer", "x", "o", "0", "a", "0", gain=gain, saturation=math.inf, offset=1.0)
    builder.add("resistor", "load", "o", "0", conductance=1e-3)
    line = element(write_deck(builder.build()), "B_x")
    found = re.fullmatch(r"B_x o 0 V=\{(.*)\*\(v\(a\) \+ 1\.0\)\}", line)
    assert found is not None
    assert eval(found[1]) == pytest.approx(gain, rel=1e-16)
    digits = [number.replace(".", "").strip("0") for number in re.findall(r"\d+\.\d+", found[1])]
    assert max(len(number) for number in digits) <= 11


def test_softmax_load() -> None:
    builder = divider()
    builder.load(
        SoftmaxLoad(
            name="nudge",
            pos=builder.nodes(["a", "b"]),
            neg=builder.nodes(["0", "0"]),
            target=np.array([1.0, 0.0]),
            amplitude=-1e-6,
            scale=0.1,
        )
    )
    assert element(write_deck(builder.build()), "B_nudge_0") == (
        "B_nudge_0 a 0 I={(-1e-06)*(1/(1 + exp(min((v(b) - v(a))/0.1, 100.0))) - 1.0)}"
    )


def test_current_controlled_sources_name_their_source() -> None:
    builder = divider()
    builder.add("cccs", "f", "b", "0", control="in", gain=0.5)
    builder.add("ccvs", "h", "o", "0", control="in", transresistance=100.0)
    builder.add("resistor", "load", "o", "0", conductance=1e-3)
    deck = write_deck(builder.build())
    assert element(deck, "f") == "f b 0 V_in 0.5"
    assert element(deck, "h") == "h o 0 V_in 100.0"


def test_two_way_bank_senses_its_outputs() -> None:
    builder = divider()
    builder.bank(
        AmplifierBank(
            name="t",
            control=builder.nodes(["b"]),
            out_pos=builder.nodes(["o"]),
            gain=np.array([3.0]),
            saturation=np.array([np.inf]),
            offset=np.zeros(1),
            back_gain=np.array([2.0]),
        )
    )
    builder.add("resistor", "load", "o", "0", conductance=1e-3)
    lines = joined(write_deck(builder.build()))
    where = lines.index("* amplifier bank t, positive outputs")
    assert lines[where + 1 : where + 4] == [
        "V_t_p_0 o.drive o 0.0",
        "F_t_p_0 b 0 V_t_p_0 2.0",
        "E_t_p_0 o.drive 0 b 0 3.0",
    ]


def test_numpy_scalars_print_as_numbers() -> None:
    builder = divider()
    load = SoftmaxLoad(
        name="n",
        pos=builder.nodes(["b"]),
        neg=builder.nodes(["0"]),
        target=np.ones(1),
        amplitude=np.float64(1e-6),
        scale=np.float64(0.1),
    )
    builder.load(load)
    deck = write_deck(
        replace(builder.build(), title="t"), options=DeckOptions(thermal_voltage=np.float64(0.025))
    )
    assert "np." not in deck


def test_new_kinds_of_elements() -> None:
    builder = divider()
    builder.add("inductor", "l1", "b", "c", inductance=1e-6)
    builder.add("inductor", "coil", "c", "0", inductance=2e-6)
    builder.add("coupling", "pair", coupled=("l1", "coil"), coefficient=-0.25)
    node, source = builder.node, lambda name: int(builder.rows_of("vsource", [name])[0])
    for kind, name, text in (
        ("behavioural_current", "b1", "v(b,a)*1.234567890125e-6 + i(in)"),
        ("behavioural_current", "g1", "v(a)^2"),
        ("behavioural_voltage", "out", "tanh(v(0,b))"),
        ("behavioural_voltage", "E1", "v(b) > 0.5 ? 1 : -1"),
    ):
        expression = parse_expression(text, node=node, source=source)
        builder.add(kind, name, f"n{name}", "0", expression=expression)
        builder.add("resistor", f"{name}.load", f"n{name}", "0", conductance=1e-3)
    deck = write_deck(builder.build())
    assert element(deck, "l1") == "l1 b c 1e-06"
    assert element(deck, "K_pair") == "K_pair l1 L_coil -0.25"
    assert element(deck, "b1") == "b1 nb1 0 I={v(b,a) * (1.2345678901e-06 + 2.499997e-17) + i(V_in)}"
    assert element(deck, "g1").startswith("g1 ng1 0 VALUE={")
    assert element(deck, "B_out").startswith("B_out nout 0 V={tanh(v(0,b))}")
    assert element(deck, "E1") == "E1 nE1 0 VALUE={(v(b) > 0.5 ? 1.0 : (-1.0))}"


def test_a_negative_resistor_stays_a_resistor() -> None:
    builder = divider()
    builder.add("vccs", "r1", "a", "b", "a", "b", transconductance=-1e-4)
    builder.add("vccs", "r2", "a", "b", "a", "b", transconductance=1e-4)
    builder.add("vccs", "nudge", "a", "b", "a", "b", transconductance=-1e-4)
    deck = write_deck(builder.build())
    assert element(deck, "r1") == "r1 a b -10000.0"
    assert element(deck, "G_r2") == "G_r2 a b a b 0.0001"
    assert element(deck, "G_nudge") == "G_nudge a b a b -0.0001"


def test_a_card_holds_what_a_diode_has() -> None:
    builder = divider()
    plain = {"saturation_current": 1e-9, "slope_voltage": 2 * thermal_voltage(), "parallel_conductance": 0.0}
    builder.add("diode", "d1", "b", "0", **plain, junction_potential=0.7)
    builder.add(
        "diode",
        "d2",
        "b",
        "0",
        **plain,
        breakdown_voltage=5.0,
        breakdown_slope=thermal_voltage(),
        junction_capacitance=1e-12,
        grading=0.3,
        depletion_limit=0.6,
        transit_time=1e-9,
    )
    cards = [line for line in joined(write_deck(builder.build())) if line.startswith(".model")]
    knee = 0.5 * 1e-9 * 5.0 / thermal_voltage()
    assert cards == [
        ".model diode_1 D (IS=1e-09 N=2.0 VJ=0.7)",
        f".model diode_2 D (IS=1e-09 N=2.0 BV=5.0 IBV={knee!r} NBV=1.0 CJO=1e-12 M=0.3 FC=0.6 TT=1e-09)",
    ]


# Phases -------------------------------------------------------------------------------------------


def phase(name: str, which: str) -> tuple[Netlist, str]:
    """The circuit of a phase of a network, and its deck."""
    netlist, inputs = network(name), sample_inputs(network(name))
    anchor = solve(build_plan(netlist), netlist.values(), inputs)
    held = with_inputs(netlist, inputs)
    circuit = phase_netlist(held, which, anchor=anchor, nudge=sample_nudge(netlist, "quadratic", 0.1))  # type: ignore[arg-type]
    return circuit, write_deck(circuit, origin=netlist)


@pytest.mark.parametrize("name", ["recurrent", "bidirectional", "virtual ground"])
def test_anchor_values_are_named_parameters(name: str) -> None:
    circuit, deck = phase(name, "corrected")
    lines = joined(deck)
    given = {}
    for k, line in enumerate(lines):
        if line.startswith(".param "):
            definition, _, comment = line.partition(" ; ")
            parameter, value = definition.removeprefix(".param ").split("=")
            # The comment stands before a line that would be too long with it.
            given[parameter] = (float(value), comment or lines[k - 1])
            # The line that uses it comes next.
            assert lines[k + 1].split(" ")[-1] == f"{{{parameter}}}"
    # A feedback source and an amplifier of one name have an anchor value each, in A and in V.
    anchored = [
        (name, float(value), unit)
        for table, values, unit in (
            (circuit.vsource, circuit.vsource.voltage, "V"),
            (circuit.isource, circuit.isource.current, "A"),
        )
        for name, value in zip(table.name, values, strict=True)
        if name.endswith((".held", ".anchor"))
    ]
    assert len(anchored) >= 10
    assert len(given) == len(anchored)
    for name, value, unit in anchored:
        stem, _, role = name.rpartition(".")
        parameter = re.sub(r"[^A-Za-z0-9]+", "_", f"{role}_{stem}")
        found = [given[key] for key in (parameter, f"{parameter}_2") if key in given]
        (comment,) = [comment for number, comment in found if number == value]
        assert f"{stem}: " in comment
        assert comment.endswith(f"[{unit}]")


def test_dual_sources_that_only_sense_are_no_parameters() -> None:
    _, deck = phase("recurrent", "dyadic")
    assert ".param" not in deck
    assert "V_d_hidden_buffer_p_0_held d.hidden_0_p 0 0.0" in deck or "_held d_hidden_0_p 0 0.0" in deck


def test_headings_of_a_derived_circuit_are_those_of_its_origin() -> None:
    lines = phase("feedforward", "dyadic")[1].splitlines()

    def after(heading: str) -> str:
        return lines[lines.index(heading) + 1]

    size = "9 word lines, 10 bit lines"
    assert after(f"* crossbar u-hidden, negative word lines: {size}").startswith("R_u_hidden_n_0_0 u_0_n ")
    dual = after(f"* dual network: crossbar u-hidden, negative word lines: {size}")
    assert dual.startswith("R_d_u_hidden_n_0_0 d_u_0_n d_hidden_0 ")
    assert after("* dual network: layer hidden, neuron hidden[3]").startswith("C_d_hidden_3 d_hidden_3 0 ")
    assert after("* dual network: amplifier bank hidden.buffer, positive outputs").startswith("V_d_hidden_")
    assert after("* nudge").startswith("I_nudge_0 ") or after("* nudge").startswith("i_nudge_0 ")
    assert "* other elements" not in lines
    lines = phase("feedforward", "corrected")[1].splitlines()
    assert after("* amplifier bank hidden.buffer, positive outputs").startswith(
        ".param held_hidden_buffer_p_0="
    )
    assert "* other elements" not in lines


def test_wires_have_a_heading_of_their_own() -> None:
    builder = divider()
    words, bits = builder.nodes(["a", "b"]), builder.nodes(["p", "q"])
    builder.crossbar(Crossbar(name="x", word_pos=words, bit=bits, g_plus=np.full((2, 2), 1e-3), r_wire=2.0))
    for node in ("p", "q"):
        builder.add("resistor", node, node, "0", conductance=1e-3)
    lines = write_deck(builder.build()).splitlines()
    where = lines.index("* crossbar x, wires")
    assert all(re.match(r"R_x_(word|bit)_\d_\d \S+ \S+ 2\.0$", line) for line in lines[where + 1 : where + 9])


# Analyses and options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("analysis", "line"),
    [
        (TransientAnalysis(step=1e-9, stop=1e-6), ".tran 1e-09 1e-06"),
        (TransientAnalysis(step=1e-9, stop=1e-6, start=1e-7), ".tran 1e-09 1e-06 1e-07"),
        (TransientAnalysis(step=1e-9, stop=1e-6, largest_step=1e-10), ".tran 1e-09 1e-06 0.0 1e-10"),
        (TransientAnalysis(step=1e-9, stop=1e-6, uic=True), ".tran 1e-09 1e-06 uic"),
        (SweepAnalysis(sweeps=(Sweep(source="in", start=0, stop=1, step=0.5),)), ".dc V_in 0.0 1.0 0.5"),
        (SweepAnalysis(sweeps=(Sweep(source="top", start=1, stop=2, step=1),)), ".dc R_top 1.0 2.0 1.0"),
    ],
)
def test_analyses(analysis: Analysis, line: str) -> None:
    lines = write_deck(divider().build(), analyses=[analysis]).splitlines()
    assert lines[-2:] == [line, ".end"]
    in_time = isinstance(analysis, TransientAnalysis)
    assert (".options timeint reltol=1e-09 abstol=1e-15" in lines) == in_time


def test_a_deck_keeps_its_options_unless_others_are_given() -> None:
    deck = Deck(
        title="own",
        netlist=divider().build(),
        temperature=60.0,
        options={"reltol": 1e-4, "itl1": 200.0, "method": "gear", "noacct": True, "gmin": 1e-9, "temp": 60.0}
        | {"rshunt": 1e9, "device": True, "timeint.maxord": 2.0, "bad": "{x}"},
    )
    lines = write_deck(deck).splitlines()
    # The shunts are elements of the netlist already.
    assert [line for line in lines if line.startswith(".options")] == [
        ".options device gmin=1e-12 temp=60.0 tnom=60.0",
        ".options nonlin reltol=0.0001 itl1=200 method=gear noacct device",
        ".options timeint maxord=2.0",
    ]
    assert "itl1=1000" in write_deck(deck, options=DeckOptions())


def test_a_diode_of_a_warm_deck_has_its_slope_there() -> None:
    slope = 2 * thermal_voltage(60.0)
    deck = write_deck(Deck(title="warm", netlist=diodes(1e-12, slope=slope), temperature=60.0))
    assert ".model diode_1 D (IS=1e-09 N=2.0)" in deck


def test_what_a_deck_names_must_be_there() -> None:
    netlist = divider().build()
    with pytest.raises(NetlistError, match=r"^\.ic: no such node \(got 'nowhere'\)"):
        write_deck(Deck(title="t", netlist=netlist, initial_voltage={"nowhere": 1.0}))
    sweep = SweepAnalysis(sweeps=(Sweep(source="nothing", start=0, stop=1, step=1),))
    with pytest.raises(NetlistError, match=r"^\.dc: no such source \(got 'nothing'\)"):
        write_deck(netlist, analyses=[sweep])


# Xyce ---------------------------------------------------------------------------------------------

NAME = r"[^\s(){},;=:\"']+"
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
VALUE = rf"(?:{NUMBER}|\{{\w+\}})"
# The forms of the Xyce Reference Guide that a deck may use; there is no Xyce here to ask.
XYCE = re.compile(
    rf"""\*.*
    |R{NAME}\s{NAME}\s{NAME}\s{NUMBER}
    |[CL]{NAME}\s{NAME}\s{NAME}\s{NUMBER}(?:\sic={NUMBER})?
    |K{NAME}\sL{NAME}\sL{NAME}\s{NUMBER}
    |D{NAME}\s{NAME}\s{NAME}\sdiode_\d+
    |[VI]{NAME}\s{NAME}\s{NAME}\s(?:{VALUE}|DC\s{VALUE}\s(?:PULSE|SIN|EXP|PWL)\([^()]*\).*)
    |[EG]{NAME}\s{NAME}\s{NAME}\s(?:{NAME}\s{NAME}\s{NUMBER}|VALUE=\{{[^{{}}]*\}})
    |[FH]{NAME}\s{NAME}\s{NAME}\sV{NAME}\s{NUMBER}
    |B{NAME}\s{NAME}\s{NAME}\s[VI]=\{{[^{{}}]*\}}
    |\.model\s\w+\sD\s\((?:(?:IS|N|BV|IBV|NBV|CJO|VJ|M|FC|TT)={NUMBER}\s?)+\)
    |\.param\s[a-z_]\w*={NUMBER}(?:\s;.*)?
    |\.options\s(?:device|nonlin|timeint)(?:\s\w+=\S+)+
    |\.(?:ic|nodeset)\sv\({NAME}\)={NUMBER}
    |\.tran(?:\s{NUMBER}){{2,4}}(?:\suic)?
    |\.dc(?:\s{NAME}(?:\s{NUMBER}){{3}}){{1,2}}
    |\.op|\.end""",
    re.VERBOSE | re.IGNORECASE,
)


@pytest.mark.parametrize("which", ["free", "corrected", "dyadic"])
@pytest.mark.parametrize("name", NETWORKS)
def test_decks_keep_to_what_xyce_accepts(name: str, which: str) -> None:
    for line in joined(phase(name, which)[1]):
        assert XYCE.fullmatch(line), line
        assert line.isascii()


def test_random_decks_keep_to_what_xyce_accepts() -> None:
    analyses = [TransientAnalysis(step=1e-9, stop=1e-6, largest_step=1e-9, uic=True)]
    for seed in range(8):
        netlist = random_netlist(seed, kinds=EVERYTHING)
        deck = Deck(title="t", netlist=netlist, initial_voltage={"n0": 0.1}, temperature=50.0)
        for line in joined(write_deck(deck, analyses=analyses)):
            assert XYCE.fullmatch(line), line
