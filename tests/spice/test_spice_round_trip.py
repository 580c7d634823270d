"""Decks that are read, written and read again: the same circuit, name by name and bit by bit."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import reader_decks
from circuits import EVERYTHING, SEEDS, random_inputs, random_netlist, random_nudge
from hypothesis import given, settings
from hypothesis import strategies as st
from spice_networks import NETWORKS, network, sample_inputs, sample_nudge

from circuitsim.netlist import InputPort, Netlist, NetlistBuilder, flatten, nudged_netlist
from circuitsim.netlist.models import thermal_voltage
from circuitsim.netlist.tables import FloatArray
from circuitsim.netlist.waveforms import Exponential, PiecewiseLinear, Pulse, Sine, Waveform
from circuitsim.solver import SolverSettings, build_plan, solve
from circuitsim.spice import NgspiceEngine, deck_nodes, phase_netlist, with_inputs, write_deck
from circuitsim.spice.deck_file import Deck, OperatingPointAnalysis, Sweep, SweepAnalysis, TransientAnalysis
from circuitsim.spice.reader import parse_deck

GENERAL = SolverSettings(method="general", relative_tolerance=1e-13, voltage_tolerance=1e-13)
NOTHING = np.zeros((1, 0))

# Decks as people write them, with what the tables hold in another form than the deck.
DECKS = {
    "names": """names of all sorts
Vin/1 in+ 0 1
V[3] a[3] 0 2
R-1 in+ net-1 1k m=3
R$x net-1 a[3] 2k
R.y net-1 vdd! 1k
R1 vdd! n$5 1k
R9 n$5 0 1
R3 1 in+ 1k
R4 001 1 1k
R5 001 0 1k
R6 x<1> 001 4.7k
R7 x<1> 1e3 1k
R8 1e3 1000 1k
R10 1000 0 1k
Gx 0 e a[3] in+ 1m
Re e 0 1
B1 /clk 0 V={v(in+,net-1) + v(x<1>)*v(a[3]) - v(1e3) + v(001)}
Rb /clk 0 1k
F1 e 0 V[3] 2
.op
.end
""",
    "values": """values in other forms
.param r=3k twice={2*r}
V1 a 0 1
V2 b 0 {1/3}
R1 a c {twice/7}
R2 c b 1k m=3
R3 c 0 1k tc1=1m tc2=2u
R4 c d -30k
R5 d 0 0
R6 d 0 1meg
R7 c 0 2k scale=1.7
C1 c 0 2p m=3
L1 c e 3u m=7
R8 e 0 1
.options temp=50
.op
.end
""",
    "controlled": """controlled sources
V1 a 0 1
V2 b 0 1
R1 a c 1k
R2 c b 1k
E1 e 0 POLY(2) a 0 b c 0 1 2 0.5 0.1
RE e 0 1k
G1 c 0 POLY(1) a b 1e-5 2e-5 1e-6
F1 c 0 POLY(2) V1 V2 0 .1 .2 .3 .1
H1 h 0 POLY(1) V1 0 1 5
RH h 0 1k
E4 e4 0 a c 2
RE4 e4 0 1k
F2 c 0 E4 .02
B1 bb 0 V={v(c,a)*tanh(v(b)) + i(V1)*1k + i(E4)}
RB bb 0 1k
B2 c 0 I={0.001*(v(a)>0.5 ? v(b) : -v(b))}
E2 e2 0 VALUE={1.23456789012345*v(a)**2}
RE2 e2 0 1k
G2 c 0 VALUE={v(c)*1e-4/3}
E3 e3 0 TABLE {v(c)} = (0,0) (1,2) (3,4)
RE3 e3 0 1k
S1 a c b 0 sw1
W1 a c V1 w1
.model sw1 sw(vt=0.5 ron=1k roff=1meg)
.model w1 csw(it=0.5m ron=1k roff=1meg)
R7 c 0 r={1000+v(a)}
.op
.end
""",
    "diodes": """diodes
V1 a 0 -8
R1 a b 6k
D1 b 0 dm area=2
D2 0 b dz area=3
D3 b c dr
D4 c 0 dm off
R3 c 0 10k
.model dm d(is=1e-14 n=1.7 cjo=2p vj=0.7 m=0.33 tt=5n fc=.4)
.model dz d(is=1e-15 bv=5.1 ibv=1m nbv=1.3)
.model dr d(is=1e-15 rs=10 bv=20)
.options gmin=1e-13
.op
.end
""",
    "warm": """diodes at another temperature
V1 a 0 -8
R1 a b 6k
D1 b 0 dm area=2
D2 0 b dz area=3
D3 b c dr
R3 c 0 10k
.model dm d(is=1e-14 n=1.7 cjo=2p vj=0.7 m=0.33 tt=5n fc=.4)
.model dz d(is=1e-15 bv=5.1 ibv=1m nbv=1.3)
.model dr d(is=1e-15 rs=10 bv=20 trs1=1m)
.temp 60
.options tnom=20
.op
.end
""",
    "subcircuits": """subcircuits
.subckt amp in out params: g=10
E1 mid 0 in 0 {g}
Ro mid out 1k
D1 out 0 dd
.model dd d(is=1e-12 rs=1)
.ends
.subckt two a b
X1 a m amp g=3
X2 m b amp m=2
Vs b bb 0
R1 bb 0 1k
F1 a 0 Vs 0.1
B1 a 0 I={i(Vs)*v(m)*1e-3}
.ends
V1 src 0 0.1
Rs src in 100
Xtop in out two
Rl out 0 1k
.options rshunt=1e9
.op
.end
""",
    "inductors": """inductors
V1 a 0 1
R1 a b 100
L1 b 0 1u ic=1m
L2 c 0 2u
L3 d 0 3u
R2 c 0 1k
R3 d 0 1k
K12 L1 L2 0.3
K23 L2 L3 -0.1
.op
.end
""",
}


def assert_the_same(first: Deck, second: Deck) -> None:
    assert first.netlist.digest == second.netlist.digest
    for part in (
        "title",
        "waveforms",
        "initial_voltage",
        "element_initial",
        "nodeset",
        "analyses",
        "temperature",
    ):
        assert getattr(first, part) == getattr(second, part), part


def solved(netlist: Netlist, inputs: FloatArray = NOTHING) -> dict[str, float]:
    """Node voltages by name in lower case, as a deck that was read has them."""
    point = solve(build_plan(netlist), netlist.values(), inputs, GENERAL)
    return dict(zip((name.lower() for name in netlist.node_names), point.node_voltage[0], strict=True))


ALL_DECKS = {**DECKS, **{f"reader: {name}": text for name, text in reader_decks.DECKS.items()}}


@pytest.mark.parametrize("name", ALL_DECKS)
def test_a_deck_written_and_read_is_the_same_circuit(name: str) -> None:
    first = parse_deck(ALL_DECKS[name])
    text = write_deck(first)
    second = parse_deck(text)
    # A deck that says nothing of analyses runs its operating point.
    assert_the_same(replace(first, analyses=first.analyses or (OperatingPointAnalysis(),)), second)
    assert write_deck(second) == text
    # Nothing of the first deck is left to be done by the second: it is all elements.
    assert not re.search(r"^\.(param|subckt|temp|func)|poly|^r.* m=", text, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in DECKS if name != "warm"])
def test_the_netlist_alone_is_enough(name: str) -> None:
    first = parse_deck(DECKS[name]).netlist
    assert parse_deck(write_deck(first)).netlist.digest == first.digest or name == "values"


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_random_netlists(seed: int) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    first = parse_deck(write_deck(netlist))
    text = write_deck(first)
    second = parse_deck(text)
    assert_the_same(first, second)
    assert write_deck(second) == text
    assert parse_deck(write_deck(first.netlist)).netlist.digest == first.netlist.digest


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_what_is_read_is_what_was_written(seed: int) -> None:
    netlist = random_netlist(seed, kinds=EVERYTHING)
    nudged = nudged_netlist(netlist, random_nudge(seed, "softmax", 0.1, 1, 3))
    held = replace(with_inputs(nudged, random_inputs(seed, 1, 2)), inputs=InputPort.none())
    read = parse_deck(write_deck(held)).netlist
    ours, theirs = solved(held), solved(read)
    assert max(abs(theirs[node] - ours[node]) for node in ours) < 1e-12


@pytest.mark.parametrize("phase", ["free", "nudged", "corrected", "dyadic"])
@pytest.mark.parametrize("name", NETWORKS)
def test_phases_of_networks(name: str, phase: str) -> None:
    netlist, inputs = network(name), sample_inputs(network(name))
    anchor = solve(build_plan(netlist), netlist.values(), inputs)
    held = replace(with_inputs(netlist, inputs), inputs=InputPort.none())
    circuit = phase_netlist(held, phase, anchor=anchor, nudge=sample_nudge(netlist, "softmax", 0.1))  # type: ignore[arg-type]
    read = parse_deck(write_deck(circuit, origin=netlist)).netlist
    ours, theirs = solved(circuit), solved(read)
    names = dict(zip(flatten(circuit).netlist.node_names, read_names(circuit), strict=True))
    assert max(abs(theirs[names[node]] - ours[node]) for node in circuit.node_names) < 1e-12


def read_names(netlist: Netlist) -> list[str]:
    """The names of a circuit's nodes, internal ones last, in a deck that was read."""
    return [name.lower() for name in deck_nodes(netlist).values()]


# Numbers ------------------------------------------------------------------------------------------

POSITIVE = st.floats(1e-15, 1e15)


@given(resistance=POSITIVE)
def test_a_resistance_is_read_back_to_the_last_bit(resistance: float) -> None:
    first = parse_deck(f"t\nR1 a 0 {resistance!r}\n.op\n.end\n")
    assert_the_same(first, parse_deck(write_deck(first)))


@given(resistance=st.decimals(1, 10_000, places=3).map(float), exponent=st.integers(-6, 12))
def test_a_short_resistance_stays_short(resistance: float, exponent: int) -> None:
    value = float(f"{resistance!r}e{exponent}")
    assert f"\nr1 a 0 {value!r}\n" in write_deck(parse_deck(f"t\nR1 a 0 {value!r}\n.end\n"))


@pytest.mark.parametrize("text", ["1000000000.0", "4700.0", "0.1", "333.0", "6800000.0", "1e+20", "5e-07"])
def test_round_numbers_stay_round(text: str) -> None:
    deck = f"t\nR1 a 0 {text}\nD1 a 0 m\n.model m d(is=1e-14 n=1.3 bv=5.1 ibv=1e-20 nbv=1.7)\n.end\n"
    written = write_deck(parse_deck(deck))
    assert f"\nr1 a 0 {text}\n" in written
    assert re.search(r" N=1\.3 BV=5\.1 IBV=\S+ NBV=1\.7\)", written.replace("\n+", ""))


@given(
    saturation=st.floats(1e-30, 1e-3),
    emission=st.floats(0.1, 10),
    breakdown=st.one_of(st.none(), st.floats(0.01, 1e4)),
    slope=st.floats(0.1, 10),
    junction=st.tuples(POSITIVE, st.floats(0.6, 2), st.floats(0, 0.9), st.floats(0, 0.95), POSITIVE),
    temperature=st.sampled_from([27.0, -40.0, 50.0, 125.0]),
)
def test_a_diode_is_read_back_to_the_last_bit(
    saturation: float,
    emission: float,
    breakdown: float | None,
    slope: float,
    junction: tuple[float, ...],
    temperature: float,
) -> None:
    card = "is={!r} n={!r} cjo={!r} vj={!r} m={!r} fc={!r} tt={!r}".format(saturation, emission, *junction)
    if breakdown is not None:
        card += f" bv={breakdown!r} ibv=1e-40 nbv={slope!r}"
    deck = f"t\nR1 a 0 1\nD1 a 0 m\n.model m d({card})\n.temp {temperature!r}\n.options tnom=27\n.op\n.end\n"
    first = parse_deck(deck)
    assert_the_same(first, parse_deck(write_deck(first)))


@given(value=st.floats(-1e30, 1e30).filter(lambda value: value == 0 or abs(value) > 1e-250))
def test_a_number_in_an_expression_is_read_back_to_the_last_bit(value: float) -> None:
    builder = NetlistBuilder("t")
    builder.add("buffer", "x", "o", "0", "a", "0", gain=value, saturation=np.inf, offset=0.5)
    for node in ("a", "o"):
        builder.add("resistor", node, node, "0", conductance=1.0)
    (expression,) = parse_deck(write_deck(builder.build())).netlist.behavioural_voltage.expression
    assert expression.formula.value(np.array([0.5])) == value * (0.5 + 0.5)


def test_every_slope_voltage_that_a_deck_can_say_is_kept() -> None:
    vt = thermal_voltage()
    emission = np.random.default_rng(1).uniform(0.5, 3.0, 20_000)
    slope = emission * vt
    assert np.all(slope / vt * vt == slope)


# Names --------------------------------------------------------------------------------------------

LETTERS = "abcxyzRV019_.:#/+-!<>@%&|?^*$[]"
NAMES = st.text(LETTERS, min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.lists(NAMES, min_size=1, max_size=6, unique=True),
    elements=st.lists(NAMES, min_size=6, max_size=6),
)
def test_any_names_are_read_and_kept(nodes: list[str], elements: list[str]) -> None:
    builder = NetlistBuilder("t")
    for k, name in enumerate(nodes):
        if name in ("0", "gnd"):
            continue
        builder.add("resistor", f"{elements[k]}{k}", name, "0", conductance=1e-3)
        builder.add("vsource", f"{elements[k]}{k}", f"{name}.{k}", "0", voltage=float(k))
        builder.add("vccs", f"{elements[k]}{k}", name, "0", f"{name}.{k}", "0", transconductance=1e-3)
        builder.add("cccs", f"{elements[k]}{k}", name, "0", control=f"{elements[k]}{k}", gain=2.0)
        builder.add(
            "buffer", f"b.{k}", f"{k}.{name}", "0", name, f"{name}.{k}", gain=2.0, saturation=1.0, offset=0.0
        )
        builder.add("resistor", f"load{k}", f"{k}.{name}", "0", conductance=1e-3)
    netlist = builder.build(check=False)
    if netlist.n_nodes == 1:
        return
    first = parse_deck(write_deck(netlist))
    assert first.netlist.n_nodes == netlist.n_nodes
    assert_the_same(first, parse_deck(write_deck(first)))


@pytest.mark.ngspice
def test_ngspice_takes_names_of_all_sorts(engine: NgspiceEngine) -> None:
    nodes = [
        "1e3",
        "1000",
        "01",
        "a[3]",
        "x<1>",
        "vdd!",
        "n$5",
        "in+",
        "net-1",
        "/clk",
        "a:b",
        "#n",
        "x@1",
        "x%1",
    ]
    nodes += [
        "x&1",
        "x?1",
        "x|1",
        "x^1",
        "x*1",
        "a.b",
        "_a",
        "e",
        "pi",
        "temp",
        "v",
        "all",
        "-1",
        "3.5",
        "time",
    ]
    nodes += ["limit", "temper", "gauss"]
    deck = ["names", "Vref[0] ref 0 0.5"]
    for k, node in enumerate(nodes):
        deck += [f"R{node}{k} {node} ref 1k", f"V{k} {node} 0 {k + 1}"]
        deck += [f"B{node}.{k} out{k} 0 V={{v({node}) + 2*v({node},ref)}}", f"Rload{k} out{k} 0 1k"]
        deck += [f".nodeset v({node})={k + 1}", f"E{node}.{k} e{k} 0 {node} ref 3", f"C{node} e{k} 0 1u"]
    netlist = parse_deck("\n".join([*deck, ".end", ""]))
    found = engine.solve(write_deck(netlist)).node_voltage
    for k in range(len(nodes)):
        assert found[f"out{k}"] == pytest.approx(3 * (k + 1) - 1.0, rel=1e-12)
        assert found[f"e{k}"] == pytest.approx(3 * (k + 0.5), rel=1e-12)


# Simulators ---------------------------------------------------------------------------------------


@pytest.mark.ngspice
@pytest.mark.parametrize("name", DECKS)
def test_ngspice_solves_both_decks_alike(name: str, engine: NgspiceEngine) -> None:
    tight = ".options reltol=1e-9 abstol=1e-15 vntol=1e-12 itl1=500\n"
    text = DECKS[name].replace(".op\n", f"{tight}.op\n")
    before = engine.solve(text).node_voltage
    after = engine.solve(write_deck(parse_deck(text))).node_voltage
    common = [node for node in parse_deck(text).netlist.node_names[1:] if node in before]
    assert len(common) >= 3
    for node in common:
        assert after[node] == pytest.approx(before[node], rel=1e-9, abs=1e-9), node


# What runs, and from where ------------------------------------------------------------------------

WAVEFORMS: dict[str, Waveform] = {
    "vp": Pulse(initial=0.0, pulsed=1 / 3, delay=1e-9, rise=1e-9, fall=2e-9, width=5e-9, period=2e-8),
    "vq": Pulse(initial=1.0, pulsed=-1.0),
    "vs": Sine(offset=0.1, amplitude=1.0, frequency=1e6, delay=1e-7, damping=1e5, phase=30.0),
    "ve": Exponential(initial=0.0, pulsed=1.0, rise_delay=1e-9, rise_time=2e-9, fall_delay=5e-9),
    "vw": PiecewiseLinear(
        times=(0.0, 1e-9, 1e-9, 4e-9), values=(0.0, 1.0, 0.5, 0.0), repeat_from=1e-9, delay=2e-9
    ),
    "ip": Pulse(initial=0.0, pulsed=1e-3, rise=1e-9),
}


def test_waveforms_starts_and_analyses() -> None:
    builder = NetlistBuilder("in time")
    for name in WAVEFORMS:
        kind, value = ("vsource", "voltage") if name[0] == "v" else ("isource", "current")
        builder.add(kind, name, f"n{name}", "0", **{value: 0.25})
        builder.add("resistor", f"r{name}", f"n{name}", "0", conductance=1e-3)
    builder.add("capacitor", "c1", "nip", "0", capacitance=1e-12)
    builder.add("inductor", "l1", "nip", "x", inductance=1e-6)
    builder.add("resistor", "rx", "x", "0", conductance=1e-3)
    deck = Deck(
        title="in time",
        netlist=builder.build(),
        waveforms=WAVEFORMS,
        initial_voltage={"nip": 0.1},
        element_initial={"c1": 1 / 7, "l1": -1e-3},
        nodeset={"x": 1e-9},
        analyses=(
            OperatingPointAnalysis(),
            SweepAnalysis(
                sweeps=(
                    Sweep(source="vp", start=0.0, stop=1.0, step=0.1),
                    Sweep(source="rx", start=1.0, stop=2.0, step=0.5),
                )
            ),
            TransientAnalysis(step=1e-9, stop=1e-7),
            TransientAnalysis(step=1e-9, stop=1e-7, start=1e-8),
            TransientAnalysis(step=1e-9, stop=1e-7, largest_step=1e-10, uic=True),
        ),
        temperature=50.0,
        options={"reltol": 1e-6, "itl1": 200.0, "method": "gear", "timeint.maxord": 2.0},
    )
    text = write_deck(deck)
    read = parse_deck(text)
    resolved = {name: wave.resolved(1e-9, 1e-7) for name, wave in WAVEFORMS.items()}
    assert {name: wave.resolved(1e-9, 1e-7) for name, wave in read.waveforms.items()} == resolved
    assert_the_same(read, parse_deck(write_deck(read)))
    for part in ("initial_voltage", "element_initial", "nodeset", "analyses", "temperature"):
        assert getattr(read, part) == getattr(deck, part), part
    assert read.netlist.digest == deck.netlist.digest
    assert {**read.options} == {**deck.options, "gmin": 1e-12, "temp": 50.0, "tnom": 50.0}


@pytest.mark.ngspice
def test_ngspice_starts_from_the_initial_conditions(engine: NgspiceEngine) -> None:
    builder = NetlistBuilder("discharge")
    builder.add("capacitor", "store", "a", "0", capacitance=1e-9)
    builder.add("resistor", "drain", "a", "0", conductance=1e-3)
    builder.add("capacitor", "other", "b", "0", capacitance=1e-9)
    builder.add("resistor", "b.drain", "b", "0", conductance=1e-3)
    deck = Deck(
        title="discharge",
        netlist=builder.build(),
        element_initial={"store": 2.0},
        initial_voltage={"b": 3.0},
        analyses=(TransientAnalysis(step=1e-8, stop=1e-6, largest_step=1e-9, uic=True),),
        options={"reltol": 1e-6},
    )
    run = engine.run(write_deck(deck))
    for node, start in (("a", 2.0), ("b", 3.0)):
        decay = start * np.exp(-run.vectors["time"] / 1e-6)
        np.testing.assert_allclose(run.vectors[f"v({node})"], decay, rtol=1e-4)
