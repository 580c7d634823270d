"""Corrected phases whose correction is not perfect: against circuits, a dense twin, and each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from circuits import NEURONS, SEEDS, SYNAPSES, network_document, random_inputs, random_netlist, random_nudge
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.compiler import compile_network
from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist, Nudge, corrected_netlist, flatten, nudged_netlist
from circuitsim.netlist.builder import NetlistBuilder
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.solver import Correction, Drive, OperatingPoint, SolverSettings, build_plan, compiled, solve
from circuitsim.solver.layered import LayeredPlan
from circuitsim.spice import NgspiceEngine, crosscheck_point, with_inputs

LAYERED = SolverSettings(method="layered", relative_tolerance=1e-13, voltage_tolerance=1e-13)
LAYERED = replace(LAYERED, max_iterations=2000)
GENERAL = SolverSettings(method="general", relative_tolerance=1e-13, voltage_tolerance=1e-13)
WIRES: dict[str, dict[str, Any]] = {
    "ideal": {},
    "one array": {"resistance": 20.0, "driver": 50.0, "sense": 30.0},
    "tiles": {"resistance": 20.0, "sense": 10.0, "tile": [4, 3]},
}
KINDS = ("forward", "back", "anchor", "anchor_current")


def network(
    neuron: str = "tanh", synapse: str = "buffered", wires: str = "ideal", seed: int = 0, **options: Any
) -> Netlist:
    """A network with loops."""
    document = network_document(neuron=neuron, synapse=synapse, **{"recurrent": True} | options)
    for part in document["synapses"]:
        part["wires"] = WIRES[wires] or None
        if not WIRES[wires]:
            del part["wires"]
    return compile_network(parse_network(document), seed=seed)


def correction(
    netlist: Netlist, seed: int, *, batch: int = 0, factor: float = 0.02, kinds: Any = KINDS
) -> Correction:
    """Random faults of every bank and virtual ground: factors near 1, errors of 2 mV and 100 nA.

    Small enough that the phase keeps one stable point: a hold amplifier that takes 10 % too much may latch.
    """
    rng = np.random.default_rng([seed, 9])
    sizes = {bank.name: len(bank.control) for bank in netlist.banks}
    sizes |= {sense.name: len(sense.bit) for sense in netlist.senses}
    faults: dict[str, dict[str, FloatArray]] = {kind: {} for kind in KINDS}
    for name, n in sizes.items():
        shape = (batch, n) if batch else (n,)
        drawn = {
            "forward": 1 + factor * rng.normal(size=n),
            "back": 1 + factor * rng.normal(size=n),
            "anchor": 2e-3 * rng.normal(size=shape),
            "anchor_current": 1e-7 * rng.normal(size=shape),
        }
        for kind in kinds:
            faults[kind][name] = drawn[kind]
    return Correction(**faults)


def ones(netlist: Netlist) -> Correction:
    """A perfect correction, written out."""
    blocks = {bank.name: len(bank.control) for bank in netlist.banks}
    blocks |= {sense.name: len(sense.bit) for sense in netlist.senses}
    one = {name: np.ones(n) for name, n in blocks.items()}
    nothing = {name: np.zeros(n) for name, n in blocks.items()}
    return Correction(forward=one, back=one, anchor=nothing, anchor_current=nothing)


def phase(
    netlist: Netlist,
    inputs: FloatArray,
    nudge: Nudge | None,
    faults: Correction | None,
    how: SolverSettings,
) -> OperatingPoint:
    plan, values = build_plan(netlist), netlist.values()
    anchor = solve(plan, values, inputs, how)
    return solve(plan, values, Drive.of(netlist, inputs, nudge).corrected(anchor, faults), how)


def faulty_circuit(
    netlist: Netlist, inputs: FloatArray, point: OperatingPoint, faults: Correction
) -> Netlist:
    """The corrected phase of one sample as elements: its hold, swap and anchor elements with faults."""
    flat = flatten(netlist)
    points = build_plan(netlist).general.lift(netlist.values(), point.node_voltage, point.branch_current)
    v0, i0 = points[0][0], points[1][0]
    built = corrected_netlist(flat.netlist, v0, i0)
    where = {name: k for k, name in enumerate(flat.netlist.branch_names)}
    builder = NetlistBuilder.extending(built)
    column = {
        "vsource": dict(zip(built.vsource.name, built.vsource.voltage.tolist(), strict=True)),
        "isource": dict(zip(built.isource.name, built.isource.current.tolist(), strict=True)),
        "vcvs": dict(zip(built.vcvs.name, built.vcvs.gain.tolist(), strict=True)),
        "cccs": dict(zip(built.cccs.name, built.cccs.gain.tolist(), strict=True)),
    }
    moved: dict[str, str] = {}

    def fault(kind: str, name: str, k: int, perfect: float) -> float:
        array = getattr(faults, kind).get(name)
        return perfect if array is None else float(np.atleast_2d(array)[0, k])

    def put(kind: str, name: str, value: float) -> None:
        if name in column[kind]:
            column[kind][name] = value
            return
        # The anchor that would have been zero was left out.
        assert kind == "isource"
        base = name.removesuffix(".anchor")
        row = built.cccs.name.index(f"{base}.swap")
        ends = (built.node_names[built.cccs.pos[row]], built.node_names[built.cccs.neg[row]])
        builder.add("isource", name, *ends, current=value)

    for bank in netlist.banks:
        p = netlist.values().banks[bank.name]
        for half, sign in (("p", 1.0), ("n", -1.0))[: 1 if bank.out_neg is None else 2]:
            for k, node in enumerate(bank.control):
                label = f"{bank.name}.{half}.{k}"
                gain, limit, offset = float(p["gain"][k]), float(p["saturation"][k]), float(p["offset"][k])
                c_f, c_b = (fault(kind, bank.name, k, 1.0) for kind in ("forward", "back"))
                e = fault("anchor", bank.name, k, 0.0)
                # The error of the difference is put down to the positive half.
                h = fault("anchor_current", bank.name, k, 0.0) if half == "p" else 0.0
                v = float(v0[node])
                x = gain * (v + offset)
                a = sign * (gain if np.isinf(limit) else gain * (1 - np.tanh(x / limit) ** 2))
                put("cccs", f"{label}.swap", -c_b * a)
                put("isource", f"{label}.anchor", c_b * a * (float(i0[where[label]]) + h))
                if np.isinf(limit):
                    builder.node(f"{label}.low")
                    moved[f"{label}.held"] = f"{label}.low"
                    builder.add(
                        "vcvs",
                        f"{label}.leak",
                        f"{label}.low",
                        "0",
                        netlist.node_names[node],
                        "0",
                        gain=(1 - c_f) * a,
                    )
                    put("vsource", f"{label}.held", sign * x - (1 - c_f) * a * v + c_f * a * e)
                else:
                    put("vcvs", f"{label}.hold", -c_f * a)
                    put("vsource", f"{label}.held", c_f * a * (v + e))
                if not bank.one_way:
                    back = sign * float(p["back_gain"][k])
                    # The sensing source carries the opposite of the block's branch current.
                    through = float(i0[flat.netlist.vsource.name.index(label)]) - h
                    put("isource", f"{label}.held", c_b * back * through)
                    ends = (netlist.node_names[node], "0")
                    builder.add("cccs", f"{label}.stays", *ends, control=label, gain=(1 - c_b) * back)
    for bank in netlist.banks:
        if bank.one_way:
            continue
        p = netlist.values().banks[bank.name]
        for half, sign in (("p", 1.0), ("n", -1.0))[: 1 if bank.out_neg is None else 2]:
            for k, node in enumerate(bank.control):
                label, back = f"{bank.name}.{half}.{k}", sign * float(p["back_gain"][k])
                c_f, e = fault("forward", bank.name, k, 1.0), fault("anchor", bank.name, k, 0.0)
                put("vsource", f"{label}.anchor", c_f * back * (float(v0[node]) + e))
                put("vcvs", f"{label}.swap", -c_f * back)
    for sense in netlist.senses:
        gain = netlist.values().senses[sense.name]
        for k, node in enumerate(sense.output):
            label, g = f"{sense.name}.{k}", -float(gain[k])
            c_f, c_b = (fault(kind, sense.name, k, 1.0) for kind in ("forward", "back"))
            e, h = (fault(kind, sense.name, k, 0.0) for kind in ("anchor", "anchor_current"))
            through = float(i0[flat.netlist.vsource.name.index(label)])
            put("isource", f"{label}.held", c_f * g * (through + h))
            builder.add(
                "cccs", f"{label}.stays", netlist.node_names[node], "0", control=label, gain=(1 - c_f) * g
            )
            put("vsource", f"{label}.anchor", c_b * g * (float(v0[node]) + e))
            put("vcvs", f"{label}.swap", -c_b * g)
    whole = builder.build_like(built)
    names = {name: k for k, name in enumerate(whole.node_names)}
    neg = whole.vsource.neg.copy()
    for name, end in moved.items():
        neg[whole.vsource.name.index(name)] = names[end]

    def column_of(table: Any, kind: str, name: str) -> FloatArray:
        old = getattr(table, name)
        return np.array([column[kind].get(label, old[k]) for k, label in enumerate(table.name)])

    return replace(
        whole,
        vsource=replace(whole.vsource, neg=neg, voltage=column_of(whole.vsource, "vsource", "voltage")),
        isource=replace(whole.isource, current=column_of(whole.isource, "isource", "current")),
        vcvs=replace(whole.vcvs, gain=column_of(whole.vcvs, "vcvs", "gain")),
        cccs=replace(whole.cccs, gain=column_of(whole.cccs, "cccs", "gain")),
    )


# Perfect ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wires", WIRES)
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_factors_of_one_are_the_perfect_correction(synapse: str, wires: str) -> None:
    for neuron in ("tanh", "diode"):
        netlist = network(neuron, synapse, wires)
        inputs = random_inputs(0, 3, netlist.inputs.size)
        nudge = random_nudge(0, "quadratic", 0.1, 3, len(netlist.outputs.pos), conductance=1e-5)
        # Currents through wires are known to 1e-11 of their size.
        layered = replace(LAYERED, relative_tolerance=1e-11) if WIRES[wires] else LAYERED
        for how in (layered, GENERAL):
            perfect, written = (phase(netlist, inputs, nudge, c, how) for c in (None, ones(netlist)))
            for a, b in ((perfect.displacement, written.displacement),) if how is layered else ():
                assert a is not None
                assert b is not None
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-9 * np.abs(a).max())
            np.testing.assert_allclose(written.node_voltage, perfect.node_voltage, rtol=0, atol=1e-12)


def test_what_is_not_named_is_perfect() -> None:
    netlist = network("linear", "amplifier")
    inputs = random_inputs(0, 3, netlist.inputs.size)
    nudge = random_nudge(0, "quadratic", 0.1, 3, len(netlist.outputs.pos), conductance=1e-5)
    perfect, nothing = (phase(netlist, inputs, nudge, c, LAYERED) for c in (None, Correction()))
    np.testing.assert_allclose(nothing.node_voltage, perfect.node_voltage, rtol=0, atol=1e-14)


def test_factors_of_zero_are_the_nudged_phase() -> None:
    for synapse in SYNAPSES:
        netlist = network("tanh", synapse)
        names = {bank.name: len(bank.control) for bank in netlist.banks}
        names |= {sense.name: len(sense.bit) for sense in netlist.senses}
        off = {name: np.zeros(n) for name, n in names.items()}
        inputs = random_inputs(1, 3, netlist.inputs.size)
        nudge = random_nudge(1, "softmax", 0.1, 3, len(netlist.outputs.pos), conductance=1e-5)
        plan, values = build_plan(netlist), netlist.values()
        for how in (LAYERED, GENERAL):
            free = solve(plan, values, inputs, how)
            nudged = solve(plan, values, Drive.of(netlist, inputs, nudge), how, start=free)
            held = phase(netlist, inputs, nudge, Correction(forward=off, back=off), how)
            np.testing.assert_allclose(held.node_voltage, nudged.node_voltage, rtol=0, atol=1e-11)


# Against circuits, and the other method ---------------------------------------------------------


def agree(netlist: Netlist, seed: int, faults: Correction, kind: str, beta: float = 0.05) -> None:
    inputs = random_inputs(seed, 1, netlist.inputs.size)
    nudge = random_nudge(seed, kind, beta, 1, len(netlist.outputs.pos), conductance=1e-5)
    general = phase(netlist, inputs, nudge, faults, GENERAL)
    anchor = solve(build_plan(netlist), netlist.values(), inputs, GENERAL)
    circuit = nudged_netlist(faulty_circuit(netlist, inputs, anchor, faults), nudge)
    other = solve(build_plan(circuit), circuit.values(), inputs, GENERAL)
    expected = other.node_voltage[0, : netlist.n_nodes]
    assert general.relative_residual[0] < 1e-9
    np.testing.assert_allclose(general.node_voltage[0], expected, rtol=0, atol=1e-11)
    perfect = phase(netlist, inputs, nudge, None, GENERAL)
    assert np.abs(perfect.node_voltage[0] - expected).max() > 1e-7
    if build_plan(netlist).method == "layered":
        wired = any(crossbar.wired for crossbar in netlist.crossbars)
        chosen = replace(LAYERED, relative_tolerance=1e-11) if wired else LAYERED
        layered = phase(netlist, inputs, nudge, faults, chosen)
        assert layered.method == "layered"
        assert layered.relative_residual[0] < 1e-9
        np.testing.assert_allclose(layered.node_voltage[0], expected, rtol=0, atol=1e-9)
        moved = layered.displacement
        assert moved is not None
        np.testing.assert_allclose(
            moved[0], expected - anchor.node_voltage[0], rtol=0, atol=1e-8 * np.abs(moved).max() + 1e-11
        )


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_faulty_phase_is_a_circuit(neuron: str, synapse: str, recurrent: bool) -> None:
    if synapse == "resistive" and not recurrent and neuron != "tanh":
        # Reciprocal: there is nothing to correct.
        return
    for seed, kind, output in ((0, "quadratic", "single"), (1, "softmax", "differential_pair")):
        netlist = network(neuron, synapse, seed=seed, recurrent=recurrent, output=output)
        if not netlist.banks:
            continue
        agree(netlist, seed, correction(netlist, seed), kind)


@pytest.mark.parametrize("wires", ["one array", "tiles"])
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_a_faulty_phase_behind_wires_is_a_circuit(synapse: str, wires: str) -> None:
    for seed, neuron in ((0, "tanh"), (1, "diode")):
        netlist = network(neuron, synapse, wires, seed=seed)
        assert any(crossbar.wired for crossbar in netlist.crossbars)
        agree(netlist, seed, correction(netlist, seed), "quadratic")


@given(SEEDS, st.sampled_from(["quadratic", "softmax"]))
@settings(max_examples=10)
def test_random_circuits_with_faults(seed: int, kind: str) -> None:
    """Saturating banks that feed back, differential and single, beside all other elements."""
    kinds = {"diode", "vccs", "crossbar", "bank", "sense", "isource"}
    netlist = random_netlist(seed, kinds=kinds)
    assert build_plan(netlist).method == "general"
    agree(netlist, seed, correction(netlist, seed), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_alone(kind: str) -> None:
    for synapse in ("buffered", "virtual ground", "differential amplifier"):
        netlist = network("tanh", synapse, seed=3)
        faults = correction(netlist, 3, kinds=(kind,))
        if kind == "anchor_current" and synapse == "buffered":
            assert faults.anchor_current
        agree(netlist, 3, faults, "quadratic")


@pytest.mark.ngspice
@pytest.mark.parametrize("synapse", ["buffered", "virtual ground", "differential amplifier"])
def test_ngspice_agrees(synapse: str, ngspice: str) -> None:
    netlist = network("tanh", synapse, seed=2)
    inputs = random_inputs(2, 1, netlist.inputs.size)
    faults = correction(netlist, 2)
    nudge = random_nudge(2, "quadratic", 0.05, 1, len(netlist.outputs.pos), conductance=1e-5)
    point = phase(netlist, inputs, nudge, faults, LAYERED)
    anchor = solve(build_plan(netlist), netlist.values(), inputs, GENERAL)
    circuit = nudged_netlist(faulty_circuit(netlist, inputs, anchor, faults), nudge)
    engine = NgspiceEngine(program=ngspice, timeout=60.0)
    check = crosscheck_point(with_inputs(circuit, inputs[0]), point.node_voltage[0], engine=engine)
    assert check.worst_difference < 1e-9, check.worst_node
    perfect = phase(netlist, inputs, nudge, None, LAYERED)
    assert np.abs(perfect.node_voltage - point.node_voltage).max() > 1e-5


def test_errors_of_the_anchor_move_a_phase_without_a_nudge() -> None:
    netlist = network()
    inputs = random_inputs(0, 2, netlist.inputs.size)
    faults = correction(netlist, 0, batch=2, kinds=("anchor", "anchor_current"))
    plan, values = build_plan(netlist), netlist.values()
    free = solve(plan, values, inputs, LAYERED)
    found = [
        solve(plan, values, Drive.of(netlist, inputs).corrected(free, faults), how)
        for how in (LAYERED, GENERAL)
    ]
    moved = found[0].node_voltage - free.node_voltage
    assert np.abs(moved).max() > 1e-4
    np.testing.assert_allclose(found[0].node_voltage, found[1].node_voltage, rtol=0, atol=1e-10)
    # Each sample has errors of its own.
    one = faults.rows(np.array([1]))
    alone = phase(netlist, inputs[1:], None, one, LAYERED)
    np.testing.assert_allclose(alone.node_voltage[0], found[0].node_voltage[1], rtol=0, atol=1e-11)


def test_an_anchor_that_is_no_free_point() -> None:
    """Its own branch currents are held, with the faults of what holds them."""
    netlist = network("diode", "virtual ground")
    inputs = random_inputs(0, 2, netlist.inputs.size)
    plan, values = build_plan(netlist), netlist.values()
    elsewhere = solve(plan, values, inputs * 0.7, GENERAL)
    drive = Drive.of(netlist, inputs, random_nudge(0, "quadratic", 0.1, 2, 4, conductance=1e-5))
    drive = drive.corrected(elsewhere, correction(netlist, 0))
    a, b = (solve(plan, values, drive, how) for how in (LAYERED, GENERAL))
    np.testing.assert_allclose(a.node_voltage, b.node_voltage, rtol=0, atol=1e-9)
    for point in (a, b):
        assert np.all(point.relative_residual < 1e-9)


# Compiled and NumPy ------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("neuron", NEURONS)
def test_compiled_sweeps_know_the_same_faults(
    monkeypatch: pytest.MonkeyPatch, neuron: str, precision: str
) -> None:
    for synapse, recurrent in (("buffered", True), ("amplifier", False)):
        netlist = network(neuron, synapse, recurrent=recurrent)
        plan, values = build_plan(netlist).layered, netlist.values()
        how = replace(LAYERED, precision=precision)  # type: ignore[arg-type]
        if not plan.compiled.fits(plan.weights(values, precision), 3):
            continue
        inputs = random_inputs(0, 3, netlist.inputs.size)
        faults = correction(netlist, 0, batch=3)
        nudge = random_nudge(0, "quadratic", 0.1, 3, 4, conductance=1e-5)
        free = plan.free(values, inputs, how)
        fast = plan.increments(free, "corrected", how, nudge=nudge, correction=faults)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "_MOST_PRODUCTS", 0)
            slow = plan.increments(free, "corrected", how, nudge=nudge, correction=faults)
        perfect = plan.increments(free, "corrected", how, nudge=nudge)
        assert not np.any(fast.status)
        assert not np.any(slow.status)
        scale = max(float(np.abs(x).max()) for x in slow.layers)
        bound = 1e-10 if precision == "float64" else 2e-5
        assert fast.driven is not None
        assert slow.driven is not None
        for a, b in zip((*fast.layers, *fast.driven), (*slow.layers, *slow.driven), strict=True):
            assert a.dtype == precision
            np.testing.assert_allclose(a, b, rtol=0, atol=bound * scale)
        assert (
            max(np.abs(a - b).max() for a, b in zip(fast.layers, perfect.layers, strict=True)) > 1e-3 * scale
        )


# A dense twin ------------------------------------------------------------------------------------


class Twin:
    """One layer of n tanh units, all to all through differential pairs, written with matrices.

    F(v) = (leak + sums) v - W^T f(v) - current, o = f(v): no netlist, no plan.
    """

    def __init__(self, netlist: Netlist, inputs: FloatArray) -> None:
        values = netlist.values()
        self.nodes = netlist.groups["units"]
        (bank,) = netlist.banks
        p = values.banks[bank.name]
        self.gain, self.limit, self.offset = p["gain"], p["saturation"], p["offset"]
        self.load = np.zeros(netlist.n_nodes)
        self.current = np.zeros(netlist.n_nodes)
        r = netlist.resistor
        for k, g in enumerate(r.conductance):
            self.load[[r.pos[k], r.neg[k]]] += g
        source = netlist.source_voltage(inputs)[0]
        at = dict(zip(netlist.vsource.pos.tolist(), source.tolist(), strict=True))
        for crossbar in netlist.crossbars:
            g_plus, g_minus = values.crossbars[crossbar.name]
            assert crossbar.word_neg is not None
            assert g_minus is not None
            self.load[crossbar.bit] += (g_plus + g_minus).sum(axis=0)
            if int(crossbar.word_pos[0]) in at:
                for words, g in ((crossbar.word_pos, g_plus), (crossbar.word_neg, g_minus)):
                    self.current[crossbar.bit] += np.array([at[int(node)] for node in words]) @ g
            else:
                self.weights, self.words = g_plus - g_minus, (g_plus + g_minus).sum(axis=1)
        self.load, self.current = self.load[self.nodes], self.current[self.nodes]

    def f(self, v: FloatArray) -> FloatArray:
        return np.asarray(self.limit * np.tanh(self.gain * (v + self.offset) / self.limit))

    def slope(self, v: FloatArray) -> FloatArray:
        return np.asarray(self.gain * (1 - (self.f(v) / self.limit) ** 2))

    def free(self) -> FloatArray:
        return self._root(lambda v: self.load * v - self.f(v) @ self.weights - self.current)

    def corrected(self, v0: FloatArray, pull: Any, c: dict[str, FloatArray]) -> FloatArray:
        """Amplifier by amplifier as the table of `circuitsim.solver.correction` has it."""
        a, o0 = self.slope(v0), self.f(v0)

        def taken(o: FloatArray, v: FloatArray) -> FloatArray:
            # Current that both outputs take, the negative one's counted negative: minus what they deliver.
            return -(self.words * o - self.weights @ v)

        def equations(v: FloatArray) -> FloatArray:
            d = v - v0
            o = self.f(v) - c["forward"] * a * (d - c["anchor"])
            change = taken(o, v) - taken(o0, v0) - c["anchor_current"]
            drawn = -c["back"] * a * change
            return np.asarray(self.load * v - o @ self.weights - self.current + drawn + pull(v))

        return self._root(equations, v0)

    def _root(self, f: Any, start: FloatArray | None = None) -> FloatArray:
        begin = np.zeros(len(self.nodes)) if start is None else start
        found = scipy.optimize.root(lambda v: f(v) / self.load, begin, method="hybr", tol=1e-15)
        left = f(found.x) / self.load
        assert np.abs(left).max() < 1e-13
        return np.asarray(found.x)


def units(seed: int, size: int = 20) -> Netlist:
    document = {
        "name": "units",
        "conductance": {"min": "1u", "max": "100u"},
        "inputs": {"u": {"size": 6, "gain": 0.3}},
        "layers": {"units": {"size": size, "neuron": {"kind": "tanh", "gain": 1.5, "saturation": 0.5}}},
        "synapses": [
            {"from": "u", "to": "units", "initial": {"center": 0.5, "spread": 0.4}},
            {"from": "units", "to": "units", "name": "all", "initial": {"center": 0.5, "spread": 0.4}},
        ],
        "output": {"layer": "units"},
        "cost": {"kind": "squared_error"},
    }
    return compile_network(parse_network(document), seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_dense_twin_of_twenty_units(seed: int) -> None:
    netlist = units(seed)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(seed, 1, 6)
    twin = Twin(netlist, inputs)
    (bank,) = netlist.banks
    faults = correction(netlist, seed, factor=0.05)
    of = {kind: getattr(faults, kind)[bank.name] for kind in KINDS}
    nudge = random_nudge(seed, "quadratic", 0.5, 1, 20)
    g, target = nudge.beta * nudge.conductance, nudge.target[0]
    v0 = twin.free()
    free = solve(plan, values, inputs, LAYERED)
    np.testing.assert_allclose(free.node_voltage[0, twin.nodes], v0, rtol=0, atol=1e-12)
    expected = twin.corrected(v0, lambda v: g * (v - target), of)
    for how in (LAYERED, GENERAL):
        found = phase(netlist, inputs, nudge, faults, how).node_voltage[0, twin.nodes]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    # The twin is one of the faults, too: without them it is elsewhere.
    clean = {kind: np.ones(20) if kind in ("forward", "back") else np.zeros(20) for kind in KINDS}
    assert np.abs(twin.corrected(v0, lambda v: g * (v - target), clean) - expected).max() > 1e-4


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"forward": {"nobody": np.ones(5)}}, r"correction.forward\[nobody\].*no such amplifier bank"),
        ({"back": {"hidden.buffers": np.ones(4)}}, r"one value per amplifier.*\(5,\) fits"),
        ({"back": {"hidden.buffers": np.ones((2, 5))}}, r"one value per amplifier.*\(5,\) fits"),
        ({"anchor": {"hidden.buffers": np.zeros((3, 5))}}, r"\(5,\) or \(2, 5\) fits"),
        ({"anchor_current": {"hidden.buffers": np.full(5, np.nan)}}, "must be finite"),
    ],
)
@pytest.mark.parametrize("method", ["layered", "general"])
def test_what_does_not_fit_is_refused(faults: Any, why: str, method: str) -> None:
    netlist = network(seed=0)
    name = netlist.banks[0].name
    named = {
        kind: {k.replace("hidden.buffers", name): x for k, x in part.items()} for kind, part in faults.items()
    }
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(0, 2, netlist.inputs.size)
    how = SolverSettings(method=method)  # type: ignore[arg-type]
    free = solve(plan, values, inputs, how)
    drive = Drive.of(netlist, inputs)
    with pytest.raises(NetlistError, match=why):
        solve(plan, values, drive.corrected(free, Correction(**named)), how)
    with pytest.raises(NetlistError, match="need a corrected phase"):
        solve(plan, values, replace(drive, correction=Correction()), how)


def test_a_perfect_correction_costs_nothing() -> None:
    """No array is made for faults that are not there."""
    netlist = network()
    plan, values = build_plan(netlist).layered, netlist.values()
    assert isinstance(plan, LayeredPlan)
    free = plan.free(values, random_inputs(0, 2, netlist.inputs.size), LAYERED)
    for bank in free.banks:
        assert bank.held is bank.slope
        assert bank.returned is bank.slope
        assert bank.passing is bank.back
        assert bank.shift is None
    nudge = random_nudge(0, "quadratic", 0.1, 2, 4, conductance=1e-5)
    assert plan.increments(free, "corrected", LAYERED, nudge=nudge).driven is None
