"""Crossbars with line resistance: drops, ports and currents against dense and element-by-element twins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from circuits import SEEDS, branch_errors, kcl
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import interpreted

from circuitsim.errors import ConvergenceError, NetlistError
from circuitsim.learning.gradient import local_rule
from circuitsim.netlist import AmplifierBank, Crossbar, CurrentSense, Netlist, NetlistBuilder, Nudge, flatten
from circuitsim.netlist.files import netlist_document, parse_netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Drive, Equations, SolverSettings, build_plan, solve, solve_transposed
from circuitsim.solver import lines as lines_module
from circuitsim.solver.kernels.wired import factor_lines
from circuitsim.solver.lines import CrossbarLines, Interior, line_currents, point_voltages

HERE = Path(__file__).resolve().parent
GENERAL = SolverSettings(method="general")
WIRED = SolverSettings(method="wired")
TIGHT = SolverSettings(method="wired", relative_tolerance=1e-13)
ENDS = [(drive, sense) for drive in ("first", "last") for sense in ("first", "last")]

End = Literal["first", "last"]


# Twins -------------------------------------------------------------------------------------------


def ladder(a: FloatArray, head: float) -> FloatArray:
    """The matrix of a line: unit segments between n points with shunts a, point 0 at the head."""
    n = len(a)
    matrix = np.diag(a)
    matrix[0, 0] += head
    for k in range(n - 1):
        matrix[k : k + 2, k : k + 2] += np.array([[1.0, -1.0], [-1.0, 1.0]])
    return matrix


def voltages(
    crossbar: Crossbar,
    g: FloatArray,
    sources: tuple[FloatArray, FloatArray],
    drives: tuple[FloatArray, FloatArray],
) -> list[FloatArray]:
    """Dense nodal analysis: word ports (R,), bit ports (N,), word points and bit points (R, N)."""
    size, n = g.shape
    w = np.arange(size * n).reshape(size, n)
    b, ports = w + size * n, 2 * size * n + np.arange(size + n)
    matrix, load = np.zeros((2, 0)), np.zeros(len(ports) + 2 * size * n)
    matrix = np.zeros((len(load), len(load)))

    def join(p: int, q: int, conductance: float) -> None:
        matrix[p, p] += conductance
        matrix[q, q] += conductance
        matrix[p, q] -= conductance
        matrix[q, p] -= conductance

    wire = 1 / crossbar.r_wire
    word_head, bit_head = (1 / (crossbar.r_wire + r) for r in (crossbar.r_driver, crossbar.r_sense))
    for j in range(size):
        for i in range(n):
            join(w[j, i], b[j, i], g[j, i])
            if i + 1 < n:
                join(w[j, i], w[j, i + 1], wire)
            if j + 1 < size:
                join(b[j, i], b[j + 1, i], wire)
    for j in range(size):
        join(ports[j], w[j, 0 if crossbar.drive_end == "first" else n - 1], word_head)
    for i in range(n):
        join(ports[size + i], b[size - 1 if crossbar.sense_end == "last" else 0, i], bit_head)
    for port, drive, source in zip(ports, np.concatenate(drives), np.concatenate(sources), strict=True):
        if np.isinf(drive):
            matrix[port] = 0.0
            matrix[port, port], load[port] = 1.0, source
        else:
            matrix[port, port] += drive
            load[port] += drive * source
    v = np.linalg.solve(matrix, load)
    return [v[ports[:size]], v[ports[size:]], v[w], v[b]]


def slow_currents(crossbar: Crossbar, g: FloatArray, state: Interior) -> dict[str, float]:
    """KCL of one sample at every point, one segment and device at a time, from drops alone."""
    size, n = g.shape
    u, x = state.word_drop[0], state.bit_drop[0]
    into_word, into_bit = np.zeros((size, n)), np.zeros((size, n))
    largest = power = 0.0
    for j in range(size):
        for i in range(n):
            across = state.word[0, j] - state.bit[0, i] - u[j, i] - x[j, i]
            before = i - 1 if crossbar.drive_end == "first" else i + 1
            after = j + 1 if crossbar.sense_end == "last" else j - 1
            word_wire = crossbar.r_wire + (0.0 if 0 <= before < n else crossbar.r_driver)
            bit_wire = crossbar.r_wire + (0.0 if 0 <= after < size else crossbar.r_sense)
            along_word = (u[j, i] - (u[j, before] if 0 <= before < n else 0.0)) / word_wire
            along_bit = (x[j, i] - (x[after, i] if 0 <= after < size else 0.0)) / bit_wire
            into_word[j, i] += along_word - g[j, i] * across
            into_bit[j, i] += g[j, i] * across - along_bit
            if 0 <= before < n:
                into_word[j, before] -= along_word
            if 0 <= after < size:
                into_bit[after, i] += along_bit
            largest = max(largest, abs(g[j, i] * across), abs(along_word), abs(along_bit))
            power += g[j, i] * across**2 + word_wire * along_word**2 + bit_wire * along_bit**2
    worst = max(np.abs(into_word).max(), np.abs(into_bit).max())
    return {"residual": worst, "largest": largest, "power": power}


def random_crossbar(rng: np.random.Generator, r_wire: float, size: int, n: int, ends: Any) -> Crossbar:
    g = 10 ** rng.uniform(-6, -3, (size, n))
    g[rng.random((size, n)) < 0.2] = 0.0
    return Crossbar(
        name="x",
        word_pos=1 + np.arange(size),
        bit=1 + size + np.arange(n),
        g_plus=g,
        r_wire=r_wire,
        r_driver=r_wire * float(rng.choice([0.0, 0.3, 40.0])),
        r_sense=r_wire * float(rng.choice([0.0, 0.3, 40.0])),
        drive_end=ends[0],
        sense_end=ends[1],
    )


def random_drives(rng: np.random.Generator, size: int, n: int) -> tuple[FloatArray, FloatArray]:
    """Ports held, driven through something, or open; the first word port is always held."""
    drives = []
    for length in (size, n):
        drive = 10 ** rng.uniform(-6, -1, length)
        drive[rng.random(length) < 0.3] = np.inf
        drive[rng.random(length) < 0.2] = 0.0
        drives.append(drive)
    drives[0][0] = np.inf
    return drives[0], drives[1]


# The lines themselves ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "n"), [(1, 1), (3, 5), (8, 2)])
def test_pivots_are_those_of_the_ladders(size: int, n: int) -> None:
    rng = np.random.default_rng(1)
    rows = -(-size // 4) * 4
    a = np.zeros((rows, n))
    a[:size] = 10 ** rng.uniform(-6, 0, (size, n))
    head = rng.uniform(0.1, 1, n)
    word_pivot, leak, bit_pivot = np.ones((rows, n)), np.empty(rows), np.empty((size, n))
    factor_lines(a, word_pivot, leak, bit_pivot, head)

    def last_pivots(matrix: FloatArray) -> FloatArray:
        """Reciprocal pivots of elimination from the last row to the first."""
        return np.diag(np.linalg.cholesky(matrix[::-1, ::-1]))[::-1] ** -2

    for j in range(size):
        expected = last_pivots(ladder(a[j], 0.7))
        np.testing.assert_allclose(word_pivot[j, 1:], expected[1:], rtol=1e-12)
        np.testing.assert_allclose(1 / (0.7 + leak[j]), expected[0], rtol=1e-12)
    for i in range(n):
        expected = last_pivots(ladder(a[size - 1 :: -1, i][:size], head[i]))
        np.testing.assert_allclose(bit_pivot[:, i], expected[::-1], rtol=1e-12)


@given(SEEDS, st.integers(1, 7), st.integers(1, 7), st.sampled_from(ENDS), st.booleans())
@settings(max_examples=40)
def test_ports_and_points_are_those_of_dense_nodal_analysis(
    seed: int, size: int, n: int, ends: tuple[End, End], held: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Dense analysis has no digits to spare where wires are much better than devices.
    crossbar = random_crossbar(rng, float(10 ** rng.uniform(0, 4)), size, n, ends)
    # A device on every line: an open line without one would float.
    g = crossbar.g_plus + 1e-6
    drives = (np.full(size, np.inf), np.full(n, np.inf)) if held else random_drives(rng, size, n)
    # Two samples go one by one, three together.
    batch = 2 + seed % 2
    sources = rng.uniform(-1, 1, (batch, size)), rng.uniform(-1, 1, (batch, n))
    lines = CrossbarLines(crossbar, g, word_drive=drives[0], bit_drive=drives[1])
    # An open line on weak devices has what accuracy KCL has, and no more.
    state = lines.solve(*sources, relative_tolerance=1e-15)
    assert not state.status.any()
    currents = line_currents(crossbar, g, state)
    assert (currents.residual <= 1e-11 * currents.largest + 1e-15 * g.max()).all()
    for b in range(batch):
        expected = voltages(crossbar, g, (sources[0][b], sources[1][b]), drives)
        found = state.word[b], state.bit[b], state.word_points[b], state.bit_points[b]
        for ours, dense in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, dense, rtol=0, atol=1e-9)


@given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.sampled_from(ENDS), st.floats(-9, 4))
@settings(max_examples=40)
def test_kcl_holds_however_good_or_bad_the_wires_are(
    seed: int, size: int, n: int, ends: tuple[End, End], decade: float
) -> None:
    rng = np.random.default_rng(seed)
    crossbar = random_crossbar(rng, 10**decade, size, n, ends)
    g = crossbar.g_plus + 1e-7
    word_drive, bit_drive = random_drives(rng, size, n)
    sources = rng.uniform(-1, 1, (1, size)), rng.uniform(-1, 1, (1, n))
    state = CrossbarLines(crossbar, g, word_drive=word_drive, bit_drive=bit_drive).solve(*sources)
    assert not state.status.any()
    found, slow = line_currents(crossbar, g, state), slow_currents(crossbar, g, state)
    # Where nothing flows, rounded voltages still do.
    largest = slow["largest"] + 1e-4 * g.max()
    assert slow["residual"] <= 1e-11 * largest
    np.testing.assert_allclose(found.residual[0], slow["residual"], rtol=0, atol=1e-14 * largest)
    np.testing.assert_allclose(found.largest[0], slow["largest"], rtol=1e-12, atol=1e-16 * g.max())
    np.testing.assert_allclose(found.power[0], slow["power"], rtol=1e-9, atol=1e-30)
    # What leaves the ports is what their sources deliver, to the rounding of the voltages.
    for drive, source, port, current in (
        (word_drive, sources[0], state.word, found.word),
        (bit_drive, sources[1], state.bit, found.bit),
    ):
        own = np.isfinite(drive)
        delivered = drive[own] * (source - port)[:, own]
        rounding = 1e-15 * drive[own] * np.maximum(np.abs(source), np.abs(port))[:, own]
        assert (np.abs(delivered - current[:, own]) <= 1e-11 * largest + rounding).all()
    # Tellegen: nothing is lost or made inside.
    supplied = (found.word * state.word).sum() + (found.bit * state.bit).sum()
    np.testing.assert_allclose(supplied, found.power[0], rtol=1e-9, atol=1e-11 * largest)
    assert abs(found.word.sum() + found.bit.sum()) <= 1e-11 * largest


def test_a_wrong_interior_is_seen() -> None:
    rng = np.random.default_rng(4)
    crossbar = random_crossbar(rng, 2.0, 5, 4, ("first", "last"))
    state = CrossbarLines(crossbar, crossbar.g_plus).solve(rng.normal(size=(1, 5)), np.zeros((1, 4)))
    for name in ("word_drop", "bit_drop"):
        wrong = getattr(state, name).copy()
        wrong[0, 2, 1] += 1e-9
        residual = line_currents(crossbar, crossbar.g_plus, replace(state, **{name: wrong})).residual[0]
        # One point off by 1 nV, two segments of 2 ohm at it.
        assert residual == pytest.approx(1e-9, rel=1e-2)


@pytest.mark.parametrize("ends", ENDS)
def test_reciprocity(ends: tuple[End, End]) -> None:
    rng = np.random.default_rng(7)
    crossbar = random_crossbar(rng, 30.0, 6, 5, ends)
    lines = CrossbarLines(crossbar, crossbar.g_plus)
    unit = np.eye(11)
    state = lines.solve(unit[:, :6], unit[:, 6:])
    currents = line_currents(crossbar, crossbar.g_plus, state)
    admittance = np.concatenate([currents.word, currents.bit], axis=1)
    np.testing.assert_allclose(admittance, admittance.T, rtol=0, atol=1e-12 * admittance.max())
    assert np.linalg.eigvalsh(admittance).min() > -1e-15
    np.testing.assert_allclose(admittance.sum(axis=0), 0, atol=1e-12 * admittance.max())
    assert (admittance - np.diag(np.diag(admittance)) <= 0).all()


def test_good_wires_are_ideal_wires() -> None:
    rng = np.random.default_rng(8)
    crossbar = random_crossbar(rng, 1.0, 7, 6, ("first", "last"))
    g, word, bit = crossbar.g_plus, rng.normal(size=(1, 7)), rng.normal(size=(1, 6))
    ideal = (g * (word[0][:, None] - bit[0])).sum(axis=0)
    lost = []
    for r_wire in (1e-2, 1e-4, 1e-6, 1e-8, 1e-12):
        wires = replace(crossbar, r_wire=r_wire, r_driver=r_wire, r_sense=3 * r_wire)
        found = line_currents(wires, g, CrossbarLines(wires, g).solve(word, bit))
        lost.append(np.abs(-found.bit[0] - ideal).max() / np.abs(ideal).max())
    # What wires take is proportional to their resistance, down to rounding.
    np.testing.assert_allclose(np.array(lost[:3]) / lost[0], [1, 1e-2, 1e-4], rtol=0.05)
    assert lost[-1] < 1e-13


@pytest.mark.parametrize(
    ("size", "r_wire", "low", "most"), [(128, 20.0, 1e-3, 60), (64, 1.0, 1e-5, 12), (48, 1e5, 1e-3, 250)]
)
def test_how_many_iterations_it_takes(size: int, r_wire: float, low: float, most: int) -> None:
    rng = np.random.default_rng(size)
    g = 10 ** rng.uniform(np.log10(low), -3, (size, size))
    ports = 1 + np.arange(size)
    crossbar = Crossbar(name="x", word_pos=ports, bit=size + ports, g_plus=g, r_wire=r_wire)
    state = CrossbarLines(crossbar, g).solve(rng.uniform(-1, 1, (1, size)), np.zeros((1, size)))
    currents = line_currents(crossbar, g, state)
    assert not state.status.any()
    assert currents.residual[0] < 1e-11 * currents.largest[0]
    assert state.iterations[0] <= most


def test_lines_without_devices_stay_at_their_ports() -> None:
    g = np.zeros((3, 2))
    crossbar = Crossbar(name="x", word_pos=[1, 2, 3], bit=[4, 5], g_plus=g, r_wire=1.0)
    state = CrossbarLines(crossbar, g).solve(np.ones((1, 3)), np.zeros((1, 2)))
    assert not state.status.any()
    assert not state.word_drop.any()
    assert not state.bit_drop.any()


# Whole circuits ----------------------------------------------------------------------------------


def wired_netlist(
    seed: int,
    size: int = 5,
    n: int = 4,
    *,
    r_wire: float = 3.0,
    ends: Any = ("first", "last"),
    pair: bool = False,
    masked: bool = False,
    word_resistance: float = 0.0,
    sense: str = "resistor",
    r_driver: float = 0.0,
    r_sense: float = 0.0,
) -> Netlist:
    """A crossbar driven from sources, through resistances if asked for, and sensed in one of four ways."""
    rng = np.random.default_rng(seed)
    builder = NetlistBuilder(f"wired {seed}")
    words, sources = [], []
    for half in "pn" if pair else "p":
        for j in range(size):
            port = f"word.{half}.{j}"
            source = f"{port}.source" if word_resistance else port
            builder.add("vsource", f"u.{half}.{j}", source, "0", voltage=0.0)
            sources.append(f"u.{half}.{j}")
            if word_resistance:
                builder.add("resistor", f"drive.{half}.{j}", source, port, conductance=1 / word_resistance)
            words.append(port)
    bits = ["0"] * n if sense == "ground" else [f"bit.{i}" for i in range(n)]
    bit = builder.nodes(bits)
    outputs = bit
    if sense == "resistor":
        for i, node in enumerate(bits):
            builder.add("resistor", f"sense.{i}", "0", node, conductance=float(rng.uniform(1e-4, 1e-3)))
    elif sense == "source":
        for i, node in enumerate(bits):
            builder.add("vsource", f"sense.{i}", "0", node, voltage=float(rng.uniform(-0.1, 0.1)))
    elif sense == "virtual ground":
        outputs = builder.nodes([f"out.{i}" for i in range(n)])
        for i in range(n):
            builder.add("resistor", f"load.{i}", f"out.{i}", "0", conductance=1e-3)
            builder.add("isource", f"bias.{i}", "0", f"out.{i}", current=1e-5)
        builder.sense(CurrentSense(name="tia", bit=bit, output=outputs, gain=rng.uniform(0.5, 1.5, n)))
    nodes = builder.nodes(words)
    builder.crossbar(
        Crossbar(
            name="x",
            word_pos=nodes[:size],
            word_neg=nodes[size:] if pair else None,
            bit=bit,
            g_plus=10 ** rng.uniform(-6, -3, (size, n)),
            g_minus=10 ** rng.uniform(-6, -3, (size, n)) if pair else None,
            mask=rng.random((size, n)) < 0.7 if masked else None,
            r_wire=r_wire,
            r_driver=r_driver,
            r_sense=r_sense,
            drive_end=ends[0],
            sense_end=ends[1],
        )
    )
    columns = list(range(size)) * (2 if pair else 1)
    builder.inputs(sources, columns, [1.0] * size + [-1.0] * (len(sources) - size))
    if sense != "ground":
        builder.outputs(outputs)
    return builder.build()


@pytest.mark.parametrize("sense", ["resistor", "ground", "source", "virtual ground"])
@pytest.mark.parametrize("word_resistance", [0.0, 75.0])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("ends", ENDS)
def test_the_wired_method_solves_the_flat_circuit(
    ends: tuple[End, End], pair: bool, word_resistance: float, sense: str
) -> None:
    # Resistances at ports in the netlist, or of the block itself.
    netlist = wired_netlist(
        len(sense),
        ends=ends,
        pair=pair,
        masked=pair,
        word_resistance=word_resistance,
        sense=sense,
        r_driver=0.0 if word_resistance else 45.0,
        r_sense=20.0 if pair else 0.0,
    )
    plan, inputs = build_plan(netlist), np.random.default_rng(3).uniform(-1, 1, (3, 5))
    assert plan.why_not_wired is None
    point = solve(plan, netlist.values(), inputs, TIGHT)
    assert point.method == "wired"
    assert (point.relative_residual < 1e-12).all()
    flat = flatten(netlist)
    plain = solve(build_plan(flat.netlist), flat.netlist.values(), inputs)
    assert plain.method == "general"
    points = point_voltages(netlist, netlist.values(), point.node_voltage)
    v, i = flat.lift(point.node_voltage, point.branch_current, points)
    np.testing.assert_allclose(plain.node_voltage, v, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain.branch_current, i, rtol=0, atol=1e-15)
    np.testing.assert_allclose(plain.power, point.power, rtol=1e-10)
    source = flat.netlist.source_voltage(inputs)
    for b in range(3):
        assert kcl(flat.netlist, v[b], i[b]) < 1e-11
        assert max(map(abs, branch_errors(flat.netlist, v[b], i[b], source[b]))) < 1e-12
    general = solve(plan, netlist.values(), inputs, GENERAL)
    np.testing.assert_allclose(general.node_voltage, point.node_voltage, rtol=0, atol=1e-12)
    np.testing.assert_allclose(general.branch_current, point.branch_current, rtol=0, atol=1e-14)


def test_where_lines_are_driven_and_sensed_is_a_mirror_image() -> None:
    inputs = np.random.default_rng(5).uniform(-1, 1, (2, 5))
    base = wired_netlist(1, sense="resistor")
    found = base.crossbars[0]
    expected = solve(build_plan(base), base.values(), inputs, TIGHT).node_voltage
    for ends in ENDS:
        rows = slice(None, None, 1 if ends[1] == "last" else -1)
        columns = slice(None, None, 1 if ends[0] == "first" else -1)
        mirrored = replace(
            found,
            word_pos=found.word_pos[rows],
            bit=found.bit[columns],
            g_plus=found.g_plus[rows, columns],
            drive_end=ends[0],
            sense_end=ends[1],
        )
        netlist = replace(base, crossbars=(mirrored,))
        v = solve(build_plan(netlist), netlist.values(), inputs, TIGHT).node_voltage
        np.testing.assert_allclose(v, expected, rtol=0, atol=1e-13)
        elsewhere = replace(found, drive_end=ends[0], sense_end=ends[1])
        other = replace(base, crossbars=(elsewhere,))
        moved = solve(build_plan(other), other.values(), inputs, TIGHT).node_voltage - expected
        assert np.abs(moved).max() > 1e-6 or ends == ("first", "last")


def test_differential_pairs_interleave() -> None:
    pairs = wired_netlist(2, pair=True)
    crossbar = pairs.crossbars[0]
    assert crossbar.g_minus is not None
    interleaved = replace(
        crossbar,
        word_pos=crossbar.lines,
        word_neg=None,
        g_plus=np.stack([crossbar.g_plus, crossbar.g_minus], axis=1).reshape(-1, 4),
        g_minus=None,
    )
    single = replace(pairs, crossbars=(interleaved,))
    inputs = np.random.default_rng(5).uniform(-1, 1, (2, 5))
    a, b = (solve(build_plan(n), n.values(), inputs, WIRED) for n in (pairs, single))
    np.testing.assert_array_equal(a.node_voltage, b.node_voltage)
    names = flatten(pairs).netlist.node_names[pairs.n_nodes :]
    assert names[:5] == ("x.w.p.0.0", "x.w.p.0.1", "x.w.p.0.2", "x.w.p.0.3", "x.w.n.0.0")
    assert names[-1] == "x.b.n.4.3"
    resistors = flatten(single).netlist.resistor.name
    assert {"x.p.9.3", "x.word.9.3", "x.bit.0.0"} <= set(resistors)


def test_new_values_and_inputs_on_one_plan() -> None:
    netlist = wired_netlist(3)
    plan, inputs = build_plan(netlist), np.random.default_rng(5).uniform(-1, 1, (2, 5))
    first = solve(plan, netlist.values(), inputs, WIRED)
    values = netlist.values()
    g, _ = values.crossbars["x"]
    tables = {kind: dict(columns) for kind, columns in values.tables.items()}
    tables["resistor"]["conductance"] = 2 * tables["resistor"]["conductance"]
    changed = replace(values, crossbars={"x": (2 * g, None)}, tables=tables)
    point = solve(plan, changed, inputs, WIRED)
    assert np.abs(point.node_voltage - first.node_voltage).max() > 1e-4
    fresh = netlist.with_values(changed)
    again = solve(build_plan(fresh), fresh.values(), inputs, WIRED)
    np.testing.assert_array_equal(point.node_voltage, again.node_voltage)
    np.testing.assert_array_equal(
        solve(plan, netlist.values(), inputs, WIRED).node_voltage, first.node_voltage
    )


def test_a_large_batch_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    netlist = wired_netlist(3, sense="virtual ground")
    plan, inputs = build_plan(netlist), np.random.default_rng(5).uniform(-1, 1, (7, 5))
    whole = solve(plan, netlist.values(), inputs, WIRED)
    monkeypatch.setattr(lines_module, "_CELLS_AT_ONCE", 45)
    parts = solve(plan, netlist.values(), inputs, WIRED)
    # Two at a time are solved one by one, seven are swept together.
    np.testing.assert_allclose(parts.node_voltage, whole.node_voltage, rtol=0, atol=1e-11)
    np.testing.assert_allclose(parts.branch_current, whole.branch_current, rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.power, whole.power, rtol=1e-10)
    assert parts.iterations.shape == parts.status.shape == (7,)
    general = solve(plan, netlist.values(), inputs, GENERAL)
    np.testing.assert_allclose(general.power, whole.power, rtol=1e-10)


def test_without_iterations_it_is_not_converged() -> None:
    netlist = wired_netlist(3)
    plan, inputs = build_plan(netlist), np.ones((1, 5))
    few = SolverSettings(method="wired", max_iterations=0)
    with pytest.raises(ConvergenceError, match="wired"):
        solve(plan, netlist.values(), inputs, few)
    point = solve(plan, netlist.values(), inputs, replace(few, throw=False))
    assert point.status[0] == 1
    assert point.relative_residual[0] > 1e-6


def test_the_referee_looks_inside() -> None:
    # Ports that are all held have no residual of their own: what is wrong inside must still be seen.
    netlist = wired_netlist(3, sense="source")
    plan, inputs = build_plan(netlist), np.ones((1, 5))
    few = SolverSettings(method="wired", max_iterations=0, throw=False)
    assert solve(plan, netlist.values(), inputs, few).relative_residual[0] > 1e-6
    v = solve(plan, netlist.values(), inputs, WIRED).node_voltage
    equations = Equations(netlist=netlist, values=netlist.values())
    assert equations.interior_residual(v)[0] < 1e-16


@pytest.mark.parametrize("sense", ["resistor", "virtual ground"])
def test_phases_of_wired_circuits(sense: str) -> None:
    netlist = wired_netlist(6, pair=True, word_resistance=40.0, sense=sense)
    plan, values = build_plan(netlist), netlist.values()
    inputs = np.random.default_rng(5).uniform(-1, 1, (2, 5))
    free = solve(plan, values, inputs, WIRED)
    nudge = Nudge(kind="softmax", beta=0.3, conductance=2e-4, target=np.eye(4)[:2], scale=0.05)
    drive = Drive.of(netlist, inputs, nudge)
    nudged = solve(plan, values, drive, WIRED)
    corrected = solve(plan, values, drive.corrected(free), WIRED)
    assert nudged.method == corrected.method == "general"
    assert np.abs(nudged.node_voltage - free.node_voltage).max() > 1e-4
    if sense == "resistor":
        # Resistances only: reciprocal, nothing to correct.
        np.testing.assert_allclose(corrected.node_voltage, nudged.node_voltage, rtol=0, atol=1e-12)
    # The transposed response, by finite differences of the reciprocal circuit or of the cost.
    current = np.random.default_rng(6).normal(0, 1e-5, (2, 4))
    s = solve_transposed(plan, values, free, current, inputs=inputs)
    flat = flatten(netlist)
    flat_plan = build_plan(flat.netlist)
    flat_free = solve(flat_plan, flat.netlist.values(), inputs)
    expected = solve_transposed(flat_plan, flat.netlist.values(), flat_free, current, inputs=inputs)
    np.testing.assert_allclose(s, expected[:, : netlist.n_nodes], rtol=0, atol=1e-13)
    assert np.abs(s).max() > 1e-4 * np.abs(current).max() / 1e-3


def test_a_gradient_through_wires_is_refused() -> None:
    netlist = wired_netlist(1)
    v = np.zeros((1, netlist.n_nodes))
    with pytest.raises(NetlistError, match="behind line resistance"):
        local_rule(netlist, v, v)


def network_of_wires(seed: int) -> Netlist:
    """A wired crossbar among everything else: amplifiers at its word lines, diodes at its bit lines."""
    rng = np.random.default_rng(seed)
    builder = NetlistBuilder("mixed")
    builder.add("vsource", "u0", "in0", "0", voltage=0.0)
    builder.add("vsource", "u1", "in1", "0", voltage=0.0)
    builder.inputs(["u0", "u1"], [0, 1], [1.0, 1.0])
    hidden = builder.nodes([f"h{k}" for k in range(3)])
    drive = builder.nodes([f"d{k}.{half}" for half in "pn" for k in range(3)])
    out = builder.nodes(["y0", "y1"])
    builder.crossbar(
        Crossbar(
            name="first",
            word_pos=builder.nodes(["in0", "in1"]),
            bit=hidden,
            g_plus=10 ** rng.uniform(-5, -3, (2, 3)),
            r_wire=50.0,
        )
    )
    builder.bank(
        AmplifierBank(
            name="amplifiers",
            control=hidden,
            out_pos=drive[:3],
            out_neg=drive[3:],
            gain=4.0,
            saturation=0.5,
            offset=0.01,
            back_gain=0.3,
        )
    )
    builder.crossbar(
        Crossbar(
            name="second",
            word_pos=drive[:3],
            word_neg=drive[3:],
            bit=out,
            g_plus=10 ** rng.uniform(-5, -3, (3, 2)),
            g_minus=10 ** rng.uniform(-5, -3, (3, 2)),
            r_wire=20.0,
            drive_end="last",
            sense_end="first",
        )
    )
    for k, node in enumerate(("y0", "y1")):
        builder.add("resistor", f"leak{k}", node, "0", conductance=1e-4)
        builder.add(
            "diode",
            f"clamp{k}",
            node,
            "0",
            saturation_current=1e-6,
            slope_voltage=0.04,
            parallel_conductance=0.0,
        )
    builder.outputs(out)
    return builder.build()


@pytest.mark.parametrize("seed", range(3))
def test_wires_among_amplifiers_and_diodes(seed: int) -> None:
    netlist = network_of_wires(seed)
    plan, values = build_plan(netlist), netlist.values()
    inputs = np.random.default_rng(seed).uniform(-1, 1, (2, 2))
    free = solve(plan, values, inputs, GENERAL)
    assert (free.relative_residual < 1e-11).all()
    flat = flatten(netlist)
    plain = solve(build_plan(flat.netlist), flat.netlist.values(), inputs)
    points = point_voltages(netlist, values, free.node_voltage)
    v, i = flat.lift(free.node_voltage, free.branch_current, points)
    np.testing.assert_allclose(plain.node_voltage, v, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain.power, free.power, rtol=1e-10)
    for b in range(2):
        assert kcl(flat.netlist, v[b], i[b]) < 1e-11
    # The corrected phase of blocks is that of their elements.
    nudge = Nudge(kind="quadratic", beta=0.1, conductance=1e-4, target=np.full((2, 2), 0.2))
    corrected = solve(plan, values, Drive.of(netlist, inputs, nudge).corrected(free), GENERAL)
    assert (corrected.relative_residual < 1e-11).all()
    plain_corrected = solve(
        build_plan(flat.netlist),
        flat.netlist.values(),
        Drive.of(flat.netlist, inputs, nudge).corrected(plain),
    )
    size = netlist.n_nodes
    np.testing.assert_allclose(
        corrected.node_voltage, plain_corrected.node_voltage[:, :size], rtol=0, atol=1e-11
    )
    assert np.abs(corrected.node_voltage - free.node_voltage).max() > 1e-5
    # Wires matter here.
    ideal = replace(netlist, crossbars=tuple(replace(c, r_wire=0.0) for c in netlist.crossbars))
    assert (
        np.abs(solve(build_plan(ideal), values, inputs, GENERAL).node_voltage - free.node_voltage).max()
        > 1e-4
    )


def test_what_does_not_fit_is_named() -> None:
    base = wired_netlist(1)

    def reason(change: Any) -> str:
        builder = NetlistBuilder.extending(base)
        change(builder)
        plan = build_plan(builder.build_like(base))
        with pytest.raises(NetlistError, match=r"the wired method does not fit.*Use method general"):
            solve(plan, plan.netlist.values(), np.zeros((1, 5)), SolverSettings(method="wired"))
        assert plan.why_not_wired is not None
        return plan.why_not_wired

    def joined(builder: NetlistBuilder) -> None:
        builder.add("resistor", "bridge", "bit.0", "bit.1", conductance=1e-3)

    def driven(builder: NetlistBuilder) -> None:
        builder.add("isource", "drive", "bit.0", "0", current=1e-6)

    def clamped(builder: NetlistBuilder) -> None:
        builder.add(
            "diode", "clamp", "bit.0", "0", saturation_current=1e-6, slope_voltage=0.04,
            parallel_conductance=0.0,
        )  # fmt: skip

    assert reason(joined) == "resistor bridge joins two nodes that are not held"
    assert reason(driven) == "current source drive drives a line"
    assert reason(clamped) == "diode clamp is no source or resistance"
    ideal = replace(base, crossbars=(replace(base.crossbars[0], r_wire=0.0),))
    assert build_plan(ideal).why_not_wired == "no crossbar has line resistance"
    shared = replace(base.crossbars[0], bit=base.crossbars[0].bit[[0, 0, 1, 2]])
    plan = build_plan(replace(base, crossbars=(shared,)))
    assert plan.why_not_wired == "node bit.0 is the port of two lines"
    point = solve(plan, base.values(), np.ones((1, 5)))
    assert point.method == "general"
    assert point.relative_residual[0] < 1e-11
    with pytest.raises(NetlistError, match="float32 is for the layered method only"):
        solve(build_plan(base), base.values(), np.ones((1, 5)), replace(WIRED, precision="float32"))


def test_wires_in_files() -> None:
    for pair in (False, True):
        netlist = wired_netlist(4, pair=pair, masked=True, ends=("last", "first"))
        document = json.loads(json.dumps(netlist_document(netlist)))
        assert document["crossbars"][0]["r_wire"] == 3.0
        read = parse_netlist(document)
        assert read.digest == netlist.digest
        assert read.crossbars[0].drive_end == "last"
        for field, value in (
            ("r_wire", 4.0),
            ("r_driver", 5.0),
            ("r_sense", 1.0),
            ("drive_end", "first"),
            ("sense_end", "last"),
        ):
            other = replace(netlist, crossbars=(replace(netlist.crossbars[0], **{field: value}),))
            assert other.digest != netlist.digest
        document["crossbars"][0] |= {"r_driver": 5.0, "r_sense": 2.5}
        read = parse_netlist(document).crossbars[0]
        assert (read.r_driver, read.r_sense) == (5.0, 2.5)
    document["crossbars"][0]["r_sense"] = -1.0
    with pytest.raises(NetlistError, match=r"x\.r_sense: must be finite and not negative \[ohm\]"):
        parse_netlist(document)
    document["crossbars"][0] |= {"r_wire": 0.0, "r_driver": 0.0, "r_sense": 2.5}
    with pytest.raises(NetlistError, match=r"x\.r_sense: is in series with the wires.*Set r_wire, or put"):
        parse_netlist(document)
    document["crossbars"][0]["r_wire"] = -1.0
    with pytest.raises(NetlistError, match=r"x\.r_wire: must be finite and not negative \[ohm per segment\]"):
        parse_netlist(document)
    document["crossbars"][0] |= {"r_wire": 1.0, "sense_end": "middle"}
    with pytest.raises(NetlistError, match=r"x\.sense_end: must be first or last"):
        parse_netlist(document)


# As plain Python ---------------------------------------------------------------------------------


def interpreted_case() -> list[FloatArray]:
    netlist = wired_netlist(9, 5, 3, word_resistance=60.0, pair=False)
    point = solve(build_plan(netlist), netlist.values(), np.full((1, 5), 0.4), WIRED)
    return [point.node_voltage, point.power, point.iterations.astype(float)]


def test_interpreted_kernels_agree() -> None:
    for found, expected in zip(interpreted(__file__, "interpreted_case"), interpreted_case(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-16)
