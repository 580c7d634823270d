"""Decks in time and swept, here and in ngspice at its tightest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import build_plan
from circuitsim.solver.sweep import Swept, sweep, sweep_values
from circuitsim.solver.transient import TransientResult, TransientSettings, transient
from circuitsim.spice import NgspiceEngine
from circuitsim.spice.deck_file import Deck, SweepAnalysis, TransientAnalysis
from circuitsim.spice.reader import parse_deck

pytestmark = pytest.mark.ngspice

TIGHT = ".options reltol=1e-6 abstol=1e-15 vntol=1e-9 chgtol=1e-18"

AMPLIFIER = """R, C, diodes and an amplifier
v1 in 0 pulse(0 2 1u 10n 20n 4u 10u)
r1 in a 1k
c1 a 0 100p
d1 a b dm
r2 b 0 2k
c2 b 0 50p
e1 y 0 b 0 -5
r3 y z 5k
c3 z 0 20p
d2 0 z dn
d3 z 0 dn
.model dm d(is=1e-14 cjo=2p vj=0.8 m=0.4 tt=5n rs=10)
.model dn d(is=1e-12 n=1.2)
.tran 10n 12u 0 {tmax}
.end
"""

# A deck, the largest step of ngspice, and how far apart the two may be, relative to the swing of a node.
DECKS = {
    "reverse recovery": (
        """a diode with stored charge is turned off
v1 in 0 pwl(0 5 1u 5 1.01u -5 3u -5)
r1 in a 1k
d1 a 0 dm
.model dm d(is=1e-14 cjo=4p vj=0.7 m=0.5 tt=100n fc=0.5)
.tran 1n 2u 0 {tmax}
.end
""",
        2e-10,
        5e-4,
    ),
    "resonance": (
        """series resonance
v1 in 0 pulse(0 1 0 1n 1n 1u 2u)
r1 in m 10
l1 m o 1u
c1 o 0 1n
.tran 1n 3u 0 {tmax}
.end
""",
        2e-10,
        5e-5,
    ),
    "transformer": (
        """two coupled coils
v1 in 0 sin(0 1 10k)
rs in p 50
l1 p 0 1m
l2 s 0 4m
k1 l1 l2 0.99
rl s 0 1k
.tran 1u 200u 0 {tmax}
.end
""",
        2e-8,
        5e-5,
    ),
    "behavioural": (
        """amplifier and formula with the time in it
v1 in 0 exp(0 0.5 1u 0.5u 5u 1u)
r1 in a 1k
c1 a 0 100p
b1 y 0 v=2*tanh(5*(v(a)-0.3*v(z)))
r2 y z 10k
c2 z 0 30p
b2 0 z i=1e-5*sin(6.283e6*time)*v(a)
.tran 10n 8u 0 {tmax}
.end
""",
        1e-9,
        5e-5,
    ),
    "initial conditions": (
        """charged capacitor and coil
c1 a 0 1n ic=2
l1 a b 1u ic=1m
r1 b 0 20
c2 b 0 100p
.tran 1n 1u 0 {tmax} uic
.end
""",
        5e-11,
        1e-4,
    ),
    "held nodes": (
        """.ic without uic
v1 in 0 1
r1 in a 1k
c1 a 0 1n
r2 a b 2k
c2 b 0 1n
.ic v(b)=2
.tran 10n 5u 0 {tmax}
.end
""",
        1e-9,
        5e-5,
    ),
    "breakdown": (
        """clamp at a diode's breakdown
v1 in 0 sin(0 12 100k)
r1 in a 100
d1 0 a dz
c1 a 0 1n
.model dz d(is=1e-14 bv=5.1 ibv=1m cjo=50p)
.tran 0.1u 20u 0 {tmax}
.end
""",
        2e-9,
        5e-5,
    ),
    "controlled sources": (
        """every controlled source, driven by a current
i1 0 a pulse(0 1m 1u 0.1u 0.1u 2u 5u)
r1 a 0 1k
c1 a 0 1n
g1 0 b a 0 2m
r2 b 0 500
c2 b a 100p
f1 c 0 vs 3
vs b d 0
rd d 0 1k
rc c 0 100
cc c 0 1n
h1 e 0 vs 10
re e f 100
cf f 0 10n
.tran 10n 10u 0 {tmax}
.end
""",
        1e-9,
        5e-5,
    ),
}


def of_kind(deck: Deck, kind: type) -> list:  # type: ignore[type-arg]
    return [analysis for analysis in deck.analyses if isinstance(analysis, kind)]


def ours(deck: Deck, times: FloatArray | None, tolerance: float) -> TransientResult:
    analysis: TransientAnalysis = of_kind(deck, TransientAnalysis)[0]
    return transient(
        build_plan(deck.netlist),
        deck.netlist.values(),
        stop=analysis.stop,
        step=analysis.step,
        waveforms=deck.waveforms,
        initial_voltage=deck.initial_voltage,
        element_initial=deck.element_initial if analysis.uic else None,
        uic=analysis.uic,
        times=times,
        settings=TransientSettings(relative_tolerance=tolerance),
    )


def theirs(engine: NgspiceEngine, text: str) -> dict[str, FloatArray]:
    """What ngspice finds, without the points that it repeats."""
    title, _, rest = text.partition("\n")
    vectors = engine.run(f"{title}\n{TIGHT}\n{rest}").vectors
    rising = np.concatenate([[True], np.diff(vectors["time"]) > 0]) if "time" in vectors else slice(None)
    return {name: values[rising] for name, values in vectors.items()}


def some(vectors: dict[str, FloatArray], stop: float, count: int = 400) -> dict[str, FloatArray]:
    """Some of the points, so that what is between them is for the steps to choose."""
    rows = np.unique(np.linspace(0, len(vectors["time"]) - 1, count).astype(int))
    found = {name: values[rows] for name, values in vectors.items()}
    return {**found, "time": np.minimum(found["time"], stop)}


def distance(
    found: TransientResult, vectors: dict[str, FloatArray], where: FloatArray | None = None
) -> float:
    """Largest difference of a node's voltage, relative to its swing, or to 1 V where it stands still."""
    worst, seen = 0.0, 0
    for name in found.node_names[1:]:
        if f"v({name})" in vectors:
            spice = vectors[f"v({name})"]
            off = np.abs(found.voltage(name) - spice) / (np.ptp(spice) or 1.0)
            worst, seen = max(worst, float(off.max() if where is None else off[where].max())), seen + 1
    assert seen > 0
    return worst


@pytest.mark.parametrize("name", DECKS)
def test_decks_move_as_in_ngspice(name: str, engine: NgspiceEngine) -> None:
    text, largest, bar = DECKS[name]
    text = text.format(tmax=largest)
    deck, vectors = parse_deck(text), theirs(engine, text)
    vectors = some(vectors, of_kind(deck, TransientAnalysis)[0].stop)
    found = ours(deck, vectors["time"], 1e-7 if name == "reverse recovery" else 1e-6)
    assert distance(found, vectors) < bar
    for branch in found.branch_names:
        spice = vectors[f"i({branch})"][1:]
        # At the start ngspice has currents of the operating point, we those of the first instant.
        assert np.abs(found.current(branch)[1:] - spice).max() < 5 * bar * np.ptp(spice)


def test_amplifier_at_every_breakpoint_and_converging(engine: NgspiceEngine) -> None:
    text = AMPLIFIER.format(tmax="0.5n")
    deck, vectors = parse_deck(text), theirs(engine, text)
    stop, step = 12e-6, 10e-9
    corners = np.array(list(deck.waveforms["v1"].resolved(step, stop).corners(stop)))
    places = np.array([int(np.argmin(np.abs(vectors["time"] - corner))) for corner in corners])
    assert np.abs(vectors["time"][places] - corners).max() < 1e-15
    errors, steps, times = [], [], np.minimum(vectors["time"], stop)
    exact = ours(deck, times, 1e-9)
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        found = ours(deck, times, tolerance)
        swing = np.ptp(exact.node_voltage, axis=0) + 1e-300
        errors.append(float((np.abs(found.node_voltage - exact.node_voltage) / swing).max()))
        steps.append(found.accepted)
    assert distance(found, vectors, places) < 2e-5
    assert distance(exact, vectors) < 1e-4
    assert errors == sorted(errors, reverse=True)
    # Second order in the number of steps, or better.
    assert math.log(errors[1] / errors[3]) / math.log(steps[3] / steps[1]) > 1.7


def test_sources_do_what_they_do_in_ngspice(engine: NgspiceEngine) -> None:
    sources = [
        "pulse(0 1)",
        "pulse(0 1 1u 0 0 0 0)",
        "pulse(0 1 1u 2u 3u 4u 15u)",
        "pulse(0 1 1u 2u 3u 4u 12u 2)",
        "pulse(0 1 -1u 2u 3u 4u 10u)",
        "sin(1 2)",
        "sin(1 2 100k 3u 1e5 30)",
        "sin(0 1 0 1u)",
        "exp(0 1)",
        "exp(0 1 2u 3u 10u 4u)",
        "exp(0 1 2u 3u)",
        "pwl(1u 1 2u 3 2.5u 3 5u -1)",
        "pwl(0 0 1u 1 2u 0) r=0",
        "pwl(0 0 1u 1 2u 0 3u 0) r=1u td=3u",
    ]
    lines = [f"v{k} n{k} 0 {source}\nr{k} n{k} 0 1k" for k, source in enumerate(sources)]
    text = "\n".join(["sources", *lines, ".tran 0.5u 40u 0 0.2u", ".end", ""])
    deck, vectors = parse_deck(text), theirs(engine, text)
    found = ours(deck, vectors["time"], 1e-6)
    for k in range(len(sources)):
        # Its own constants of pi have ten digits.
        assert found.voltage(f"n{k}") == pytest.approx(vectors[f"v(n{k})"], abs=2e-8), sources[k]


def test_sweeps_go_through_the_points_of_ngspice(engine: NgspiceEngine) -> None:
    text = """clipper
v1 a 0 1
r1 a b 1k
d1 b 0 dm
i1 0 b 0
b1 c 0 v=tanh(10*v(b))*v(a)
.model dm d(is=1e-14 rs=5)
.dc v1 -1 2 0.05 i1 0 1m 0.5m
.end
"""
    deck = parse_deck(text)
    analysis: SweepAnalysis = of_kind(deck, SweepAnalysis)[0]
    swept = [Swept(source=s.source, values=sweep_values(s.start, s.stop, s.step)) for s in analysis.sweeps]
    vectors = theirs(engine, text.replace(".dc", ".options reltol=1e-10\n.dc"))
    found = sweep(build_plan(deck.netlist), deck.netlist.values(), swept)
    assert len(found.swept) == len(vectors["v(a)"]) == 61 * 3
    for place, name in enumerate(deck.netlist.node_names):
        if f"v({name})" in vectors:
            assert found.node_voltage[:, place] == pytest.approx(vectors[f"v({name})"], abs=1e-9)
