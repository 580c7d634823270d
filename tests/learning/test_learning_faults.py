"""What faults of the correction and of the dyadic copy do to gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import (
    EVERYTHING,
    NEURONS,
    SYNAPSES,
    dense_jacobian,
    network_document,
)
from learners import TIGHT, Case, case, random_case, relative

from circuitsim.errors import ConvergenceError, NetlistError
from circuitsim.learning import EP, Adjoint, AsymEP, Dyadic, DyadicBP
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import (
    Correction,
    DualNetwork,
    Equations,
    SolverSettings,
    solve,
)

METHODS = ["general", "layered"]
WIRES: dict[str, Any] = {"resistance": 20.0, "driver": 40.0, "sense": 10.0, "drive_end": "last"}


def loops(neuron: str, synapse: str, method: str, *, wires: bool = False, **options: Any) -> Case:
    """A network with loops on a die with spread."""
    document = network_document(neuron=neuron, synapse=synapse, recurrent=True)
    for part in document["synapses"] if wires else ():
        part["wires"] = WIRES
    return case(document, method=method, **TIGHT | options)


def other_die(netlist: Netlist, values: Values, seed: int, spread: float = 0.1) -> DualNetwork:
    """A copy whose every device is off by ``spread`` (normal)."""
    rng = np.random.default_rng([seed, 3])

    def off(array: FloatArray) -> FloatArray:
        return np.asarray(array * (1 + spread * rng.normal(size=array.shape)))

    tables = {kind: dict(columns) for kind, columns in values.tables.items()}
    tables["resistor"]["conductance"] = off(tables["resistor"]["conductance"])
    banks = {name: dict(bank) | {"back_gain": off(bank["back_gain"])} for name, bank in values.banks.items()}
    crossbars = {
        name: (off(g_plus), None if g_minus is None else off(g_minus))
        for name, (g_plus, g_minus) in values.crossbars.items()
    }
    senses = {name: off(gain) for name, gain in values.senses.items()}
    copied = Values(tables=tables, crossbars=crossbars, banks=banks, senses=senses)
    return DualNetwork(
        values=copied,
        slope={bank.name: off(np.ones(len(bank.control))) for bank in netlist.banks},
        diode=off(np.ones(len(netlist.diode))),
        ideal_diode=off(np.ones(len(netlist.ideal_diode))),
    )


def dense_dual(
    netlist: Netlist, values: Values, dual: DualNetwork, v: FloatArray, i: FloatArray, pull: FloatArray
) -> FloatArray:
    """The copy's node voltages (N,) from a dense transposed Jacobian, stamped with its own values."""
    base = Equations(netlist=netlist, values=values)
    n = netlist.n_nodes
    # The Jacobian of the copy's linear part at the point, without diodes and amplifiers ...
    d, z = netlist.diode, netlist.ideal_diode
    tables = {kind: dict(columns) for kind, columns in dual.values.tables.items()}
    tables["diode"] |= {"saturation_current": np.zeros(len(d)), "parallel_conductance": np.zeros(len(d))}
    tables["ideal_diode"] |= {"conductance": np.zeros(len(z))}
    banks = {
        name: dict(bank)
        | {"gain": np.zeros_like(bank["gain"]), "saturation": np.full_like(bank["gain"], np.inf)}
        for name, bank in dual.values.banks.items()
    }
    j = dense_jacobian(
        Equations(netlist=netlist, values=replace(dual.values, tables=tables, banks=banks)), v, i
    )

    # ... and these by hand: conductances by finite differences of the first circuit's currents.
    def stamp(pos: int, neg: int, g: float) -> None:
        for a, b, sign in ((pos, pos, 1), (neg, neg, 1), (pos, neg, -1), (neg, pos, -1)):
            if a and b:
                j[a - 1, b - 1] += sign * g

    assert dual.diode is not None
    assert dual.ideal_diode is not None
    for k in range(len(d)):
        drop = float(v[d.pos[k]] - v[d.neg[k]])
        t = {name: float(values.tables["diode"][name][k]) for name in ("saturation_current", "slope_voltage")}
        i_s, slope = t["saturation_current"], t["slope_voltage"]
        if drop >= -3 * slope:
            g = i_s / slope * np.exp(drop / slope)
        else:
            g = 3 * i_s * (3 * slope / np.e) ** 3 / drop**4
        g += float(values.tables["diode"]["parallel_conductance"][k])
        stamp(int(d.pos[k]), int(d.neg[k]), float(dual.diode[k] * g))
    for k in range(len(z)):
        if v[z.pos[k]] > v[z.neg[k]]:
            g = values.tables["ideal_diode"]["conductance"][k]
            stamp(int(z.pos[k]), int(z.neg[k]), float(dual.ideal_diode[k] * g))
    for bank in netlist.banks:
        p = values.banks[bank.name]
        start = n - 1 + base._starts[f"bank {bank.name}"]
        for sign, ends in ((1.0, bank.out_pos), (-1.0, bank.out_neg)):
            if ends is None:
                continue
            for k, node in enumerate(bank.control):
                x = p["gain"][k] * (v[node] + p["offset"][k])
                limit = p["saturation"][k]
                a = p["gain"][k] * (1.0 if np.isinf(limit) else 1 - np.tanh(x / limit) ** 2)
                j[start + k, node - 1] -= sign * a * dual.slope[bank.name][k]
            start += len(bank.control)
    load = np.zeros(len(j))
    for node, sign in ((netlist.outputs.pos, 1.0), (netlist.outputs.neg, -1.0)):
        for k, row in enumerate(node):
            if row:
                load[row - 1] += sign * pull[k]
    s = np.linalg.solve(j.T, -load)
    return np.concatenate([[0.0], s[: n - 1]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_copy_with_devices_of_its_own_is_a_dense_transposed_solve(
    neuron: str, synapse: str, method: str
) -> None:
    here = loops(neuron, synapse, method, batch=2)
    values, netlist = here.phases.values, here.netlist
    dual = other_die(netlist, values, 1)
    phases = replace(here.phases, dual=dual)
    beta = 0.3
    d = phases.nodes(phases.dyadic(here.inputs, here.targets, beta, here.free), here.inputs, here.free)
    pull = phases.cost.nudge(here.targets, beta).current(phases.outputs(here.free))
    exact = here.phases.nodes(
        here.phases.dyadic(here.inputs, here.targets, beta, here.free), here.inputs, here.free
    )
    for b in range(2):
        v = here.free.node_voltage[b]
        i = np.zeros(len(netlist.branch_names))
        expected = dense_dual(netlist, values, dual, v, i, pull[b])
        scale = np.abs(expected).max()
        # Driven nodes of a copy are held: what the outputs of one-way amplifiers do is nothing.
        np.testing.assert_allclose(d[b], expected, rtol=0, atol=1e-8 * scale)
        assert np.abs(exact[b] - expected).max() > 1e-3 * scale


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_of_a_circuit_of_every_element(seed: int) -> None:
    here = random_case(seed, EVERYTHING, kind="quadratic")
    netlist, values = here.netlist, here.phases.values
    dual = other_die(netlist, values, seed)
    phases = replace(here.phases, dual=dual)
    point = solve(phases.plan, values, here.inputs, SolverSettings(**TIGHT | {"check": True}))
    d = phases.dyadic(here.inputs, here.targets, 1.0, point)
    pull = phases.cost.nudge(here.targets, 1.0).current(phases.outputs(point))
    for b in range(len(d)):
        expected = dense_dual(netlist, values, dual, point.node_voltage[b], point.branch_current[b], pull[b])
        np.testing.assert_allclose(d[b], expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    # The adjoint knows the circuit alone.
    exact = here.phases.adjoint(here.inputs, here.targets, point)
    np.testing.assert_array_equal(phases.adjoint(here.inputs, here.targets, point), exact)


@pytest.mark.parametrize("wires", [False, True], ids=["ideal", "wired"])
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", ["tanh", "diode"])
def test_a_copy_of_the_same_values_is_the_perfect_one(neuron: str, synapse: str, wires: bool) -> None:
    here = loops(neuron, synapse, "layered", wires=wires, batch=2)
    exact = here.estimate(Dyadic())
    same = Case(
        replace(here.phases, dual=DualNetwork(values=replace(here.phases.values))), here.inputs, here.targets
    ).estimate(Dyadic())
    assert relative(same, exact) < (1e-7 if wires else 1e-12)


def drops(netlist: Netlist, v: FloatArray, s: FloatArray, name: str) -> FloatArray:
    """Drop times drop of every device, loop by loop."""
    crossbar = netlist.crossbar(name)
    halves = []
    for words in (crossbar.word_pos, crossbar.word_neg):
        if words is None:
            continue
        g = np.zeros(crossbar.shape)
        for j, word in enumerate(words):
            s_word = 0.0 if crossbar.driven else s[:, word]
            for i, bit in enumerate(crossbar.bit):
                g[j, i] = np.mean((s_word - s[:, bit]) * (v[:, word] - v[:, bit]))
        halves.append((g if crossbar.mask is None else np.where(crossbar.mask, g, 0)).reshape(-1))
    return np.concatenate(halves)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_the_rule_is_drop_in_the_circuit_times_drop_in_the_copy(synapse: str, method: str) -> None:
    here = loops("diode", synapse, method, batch=2)
    dual = other_die(here.netlist, here.phases.values, 4)
    tried = Case(replace(here.phases, dual=dual), here.inputs, here.targets)
    found = tried.estimate(Dyadic(beta=0.5))
    phases = tried.phases
    s = phases.nodes(phases.dyadic(here.inputs, here.targets, 0.5, tried.free), here.inputs, tried.free) / 0.5
    for name in found.crossbars:
        expected = drops(here.netlist, tried.free.node_voltage, s, name)
        np.testing.assert_allclose(found.flat(name), expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_behind_wires_each_network_has_its_own_drops(synapse: str) -> None:
    """The drops of the copy are those across its own devices: against dense solves inside the wires."""
    here = loops("tanh", synapse, "layered", wires=True, batch=2)
    netlist, values = here.netlist, here.phases.values
    dual = other_die(netlist, values, 5)
    tried = Case(replace(here.phases, dual=dual), here.inputs, here.targets)
    found = tried.estimate(Dyadic())
    phases = tried.phases
    s = phases.nodes(phases.dyadic(here.inputs, here.targets, 1.0, tried.free), here.inputs, tried.free)
    wired = [crossbar for crossbar in netlist.trainable if crossbar.wired]
    assert len(wired) == 4
    for crossbar in wired:
        across = []
        for volts, g in ((tried.free.node_voltage, values), (s, dual.values)):
            line = volts[:, crossbar.lines].copy()
            if crossbar.driven and g is dual.values:
                line[:] = 0.0
            across.append(device_drops(crossbar, crossbar.cells(*g.crossbars[crossbar.name]), line, volts))
        expected = (across[0] * across[1]).mean(axis=0)
        plus = expected if crossbar.word_neg is None else expected[0::2]
        plus = plus if crossbar.mask is None else np.where(crossbar.mask, plus, 0.0)
        np.testing.assert_allclose(
            found.crossbars[crossbar.name][0], plus, rtol=0, atol=1e-6 * np.abs(expected).max()
        )


def device_drops(crossbar: Any, g: FloatArray, line: FloatArray, volts: FloatArray) -> FloatArray:
    """Voltages (B, R, N) across devices from a dense nodal solve of the wires."""
    size, n = g.shape
    word, bit = (np.arange(size * n).reshape(size, n) + k * size * n for k in (0, 1))
    matrix, current = np.zeros((2 * size * n, 2 * size * n)), np.zeros((len(line), 2 * size * n))

    def join(a: int, b: int, conductance: float) -> None:
        matrix[[a, b], [a, b]] += conductance
        matrix[a, b] -= conductance
        matrix[b, a] -= conductance

    word_head, bit_head = crossbar.heads
    driven = 0 if crossbar.drive_end == "first" else n - 1
    sensed = 0 if crossbar.sense_end == "first" else size - 1
    for j in range(size):
        for i in range(n):
            join(word[j, i], bit[j, i], g[j, i])
            if i:
                join(word[j, i - 1], word[j, i], 1 / crossbar.r_wire)
            if j:
                join(bit[j - 1, i], bit[j, i], 1 / crossbar.r_wire)
        matrix[word[j, driven], word[j, driven]] += word_head
        current[:, word[j, driven]] += word_head * line[:, j]
    for i in range(n):
        matrix[bit[sensed, i], bit[sensed, i]] += bit_head
        current[:, bit[sensed, i]] += bit_head * volts[:, crossbar.bit[i]]
    x = np.linalg.solve(matrix, current.T).T
    return x[:, word] - x[:, bit]


@pytest.mark.parametrize("synapse", ["buffered", "virtual ground"])
@pytest.mark.parametrize("neuron", ["tanh", "diode"])
def test_a_clocked_copy_ends_where_the_settled_one_does(neuron: str, synapse: str) -> None:
    """After 2 L steps of a feedforward network, with the copy's own devices."""
    here = case(network_document(neuron=neuron, synapse=synapse), method="layered", **TIGHT)
    dual = other_die(here.netlist, here.phases.values, 2)
    tried = Case(replace(here.phases, dual=dual), here.inputs, here.targets)
    assert relative(tried.estimate(DyadicBP()), tried.estimate(Dyadic())) < 1e-9
    assert relative(tried.estimate(DyadicBP()), here.estimate(DyadicBP())) > 1e-3


# Laws --------------------------------------------------------------------------------------------


def faulty(here: Case, kind: str, size: float, seed: int = 0) -> Case:
    """A fault of one kind, drawn with one seed and scaled: its direction does not change."""
    rng = np.random.default_rng([seed, 11])
    banks = {bank.name: len(bank.control) for bank in here.netlist.banks}
    drawn = {name: rng.normal(size=n) for name, n in banks.items()}
    if kind == "copy":
        shaped = other_die(here.netlist, here.phases.values, seed, size)
        return Case(replace(here.phases, dual=shaped), here.inputs, here.targets)
    scaled = {name: size * x for name, x in drawn.items()}
    if kind in ("forward", "back"):
        faults = Correction(**{kind: {name: 1 + x for name, x in scaled.items()}})
    else:
        unit = 1e-2 if kind == "anchor" else 1e-6
        faults = Correction(**{kind: {name: unit * x for name, x in scaled.items()}})
    return Case(replace(here.phases, correction=faults), here.inputs, here.targets)


@pytest.mark.parametrize("kind", ["forward", "back", "anchor", "anchor_current", "copy"])
def test_the_error_of_the_gradient_grows_linearly_with_a_small_fault(kind: str) -> None:
    # A die without spread and diodes that bend: errors of an anchor need curvature to be seen at all.
    here = loops("tanh", "buffered", "layered")
    estimator = Dyadic() if kind == "copy" else AsymEP(beta=0.02)
    # Against the same estimate without faults, so that what beta costs is not counted.
    exact = here.estimate(estimator)
    sizes = np.array([1e-4, 1e-3, 1e-2])
    errors = [relative(faulty(here, kind, size).estimate(estimator), exact) for size in sizes]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(sizes))
    np.testing.assert_allclose(slopes, 1.0, atol=0.1)
    assert errors[-1] > 1e-5


def test_a_one_sided_estimate_takes_errors_of_the_anchor_whole() -> None:
    here = loops("tanh", "buffered", "layered")
    exact = here.estimate(Adjoint())
    tried = faulty(here, "anchor", 0.1)
    centred, one_sided = (
        relative(tried.estimate(AsymEP(beta=0.02, centred=c)), exact) for c in (True, False)
    )
    assert one_sided > 10 * centred
    # The shift of the anchor is over beta.
    further = relative(tried.estimate(AsymEP(beta=0.01, centred=False)), exact)
    assert further / one_sided == pytest.approx(2.0, abs=0.2)


def test_other_phases_know_nothing_of_faults() -> None:
    here = loops("diode", "amplifier", "layered")
    tried = faulty(faulty(here, "forward", 0.05), "copy", 0.1)
    for estimator in (Adjoint(), EP(beta=0.02)):
        assert relative(tried.estimate(estimator), here.estimate(estimator)) == 0.0
    for estimator in (AsymEP(beta=0.02), Dyadic()):
        assert relative(tried.estimate(estimator), here.estimate(estimator)) > 1e-3


def test_samples_that_sweeps_leave_go_to_the_general_method_with_their_faults() -> None:
    here = loops("diode", "amplifier", "auto")
    for kind, estimator in (("forward", AsymEP(beta=0.02)), ("copy", Dyadic())):
        tried = faulty(here, kind, 0.05)
        expected = tried.estimate(estimator)

        def few(method: str, tried: Case = tried, estimator: Any = estimator) -> Any:
            settings = replace(tried.phases.settings, max_iterations=5, method=method)  # type: ignore[arg-type]
            phases = replace(tried.phases, settings=settings)
            return estimator.estimate(phases, here.inputs, here.targets, free=tried.free)

        with pytest.raises(ConvergenceError):
            few("layered")
        assert relative(few("auto"), expected) < 1e-8


def test_what_does_not_fit_is_refused() -> None:
    here = loops("diode", "buffered", "layered")
    values = here.phases.values
    name = here.netlist.banks[0].name
    odd = {"nobody": np.ones(5)}
    narrow = dict(values.crossbars)
    first = next(iter(narrow))
    narrow[first] = (np.ones((1, 1)), narrow[first][1])
    loud = {key: dict(bank) | {"back_gain": np.ones_like(bank["gain"])} for key, bank in values.banks.items()}
    for dual, why in (
        (DualNetwork(values=values, slope=odd), "no such amplifier bank"),
        (DualNetwork(values=values, slope={name: np.ones(2)}), "one factor per element"),
        (DualNetwork(values=values, diode=np.ones(1)), "one factor per element"),
        (DualNetwork(values=replace(values, crossbars=narrow)), "crossbar of the same shape"),
        (DualNetwork(values=replace(values, banks=loud)), "copy of a one-way bank is one-way"),
    ):
        for method in METHODS:
            settings = replace(here.phases.settings, method=method)  # type: ignore[arg-type]
            phases = replace(here.phases, dual=dual, settings=settings)
            free = phases.free(here.inputs)
            with pytest.raises(NetlistError, match=why):
                phases.dyadic(here.inputs, here.targets, 1.0, free)
