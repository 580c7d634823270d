"""Compiled sweeps give the numbers of the NumPy sweeps; samples give those that they have alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import KINKED, NEURONS, SYNAPSES, network_document, random_inputs, random_nudge, small_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsim.compiler import compile_network
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.solver import Drive, SolverSettings, build_plan, compiled, layered, solve
from circuitsim.solver.layered import FreePoint, LayeredPlan
from circuitsim.solver.smallsignal import small_signal

PHASES = ("nudged", "corrected", "transposed")
DOUBLE = SolverSettings(
    method="layered", relative_tolerance=1e-12, voltage_tolerance=1e-12, max_iterations=2000
)
SINGLE = replace(DOUBLE, precision="float32")
ORDER = {"float64": DOUBLE, "float32": SINGLE}


def sweeps(
    plan: LayeredPlan, netlist: Netlist, inputs: FloatArray, kind: str, beta: float, chosen: SolverSettings
) -> dict[str, Any]:
    """States, sweeps and statuses of every phase, all increments from the free point of this run."""
    values, outputs = netlist.values(), len(netlist.outputs.pos)
    free = plan.free(values, inputs, chosen)
    found: dict[str, Any] = {"free": free}
    nudge = random_nudge(5, kind, beta, len(inputs), outputs, conductance=1e-5)
    current = np.random.default_rng(6).normal(0, 1e-6, (len(inputs), outputs))
    for phase in PHASES:
        drive: dict[str, Any] = {"output_current": current} if phase == "transposed" else {"nudge": nudge}
        found[phase] = plan.increments(free, phase, chosen, **drive)  # type: ignore[arg-type]
    return found


def by_both(
    monkeypatch: pytest.MonkeyPatch, netlist: Netlist, inputs: FloatArray, *how: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every phase by compiled sweeps, and by NumPy's."""
    plan = build_plan(netlist).layered
    ran: list[str] = []
    relax, slow = compiled.CompiledSweeps.relax, layered.relax

    def spied(self: Any, phase: str, *rest: Any, **options: Any) -> Any:
        ran.append("compiled")
        return relax(self, phase, *rest, **options)

    def spied_slow(*rest: Any) -> Any:
        ran.append("numpy")
        return slow(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(compiled.CompiledSweeps, "relax", spied)
        patch.setattr(layered, "relax", spied_slow)
        fast = sweeps(plan, netlist, inputs, *how)
        patch.setattr(compiled, "_MOST_PRODUCTS", 0)
        patch.setattr(compiled, "_MOST_OF_FEW", 0)
        plain = sweeps(plan, netlist, inputs, *how)
    # A comparison of a thing with itself would not fail.
    assert ran == ["compiled"] * 4 + ["numpy"] * 4
    return fast, plain


def agree(fast: dict[str, Any], plain: dict[str, Any], precision: str, *, fewer: bool = False) -> None:
    for phase, one in fast.items():
        other = plain[phase]
        assert not np.any(one.status), phase
        assert not np.any(other.status), phase
        if fewer:
            # What a corrected phase lets amplifiers bend is no part of the Jacobian.
            least = 0 if phase == "corrected" else 1
            assert one.iterations.mean() <= other.iterations.mean() - least, phase
        else:
            # Sums are taken in another order: the last sweep may be one more or one less.
            assert np.all(np.abs(one.iterations - other.iterations) <= 2 + other.iterations // 8), phase
        scale = max(float(np.abs(x).max()) for x in other.layers)
        assert scale > 0, phase
        for a, b in zip(one.layers, other.layers, strict=True):
            assert a.dtype == b.dtype == precision
            bound = 1e-11 * scale + 1e-13 if precision == "float64" else 1e-5 * scale
            np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=phase)


def plain_kinds() -> list[tuple[str, str, bool]]:
    """Neurons and synapses whose networks have one bank to a layer at most and no virtual ground."""
    return [
        (neuron, synapse, recurrent)
        for neuron in NEURONS | KINKED
        for synapse in SYNAPSES
        for recurrent in (False, True)
        if build_plan(
            small_network(neuron=neuron, synapse=synapse, recurrent=recurrent)[1]
        ).layered.compiled.plain
    ]


KINDS = plain_kinds()


@pytest.mark.parametrize("precision", ORDER)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_every_neuron_and_synapse(
    monkeypatch: pytest.MonkeyPatch, kind: tuple[str, str, bool], precision: str
) -> None:
    neuron, synapse, recurrent = kind
    for seed, output, cost in ((0, "single", "quadratic"), (1, "differential_pair", "softmax")):
        _, netlist = small_network(seed, neuron=neuron, synapse=synapse, recurrent=recurrent, output=output)
        inputs = random_inputs(seed, 3, netlist.inputs.size)
        agree(*by_both(monkeypatch, netlist, inputs, cost, 0.1, ORDER[precision]), precision)


def test_what_is_compiled_and_what_is_not() -> None:
    assert {neuron for neuron, _, _ in KINDS} == set(NEURONS | KINKED)
    assert {synapse for _, synapse, _ in KINDS} == set(SYNAPSES) - {"virtual ground"}
    # Beside its own buffer a layer that drives an amplifier has a second bank.
    assert {synapse for _, synapse, recurrent in KINDS if recurrent} == {"buffered", "resistive"}


@given(
    st.integers(0, 10**6),
    st.sampled_from(KINDS),
    st.sampled_from(["single", "differential_pair"]),
    st.sampled_from(["quadratic", "softmax"]),
    st.sampled_from([0.3, 1e-3, -0.05]),
    st.integers(1, 9),
    st.sampled_from([(3, 5, 4), (6, 2, 2), (2, 7, 6), (1, 1, 2)]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_networks(
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    kind: tuple[str, str, bool],
    output: str,
    cost: str,
    beta: float,
    batch: int,
    sizes: tuple[int, int, int],
) -> None:
    neuron, synapse, recurrent = kind
    _, netlist = small_network(
        seed, neuron=neuron, synapse=synapse, recurrent=recurrent, output=output, sizes=sizes
    )
    inputs = random_inputs(seed, batch, netlist.inputs.size)
    agree(*by_both(monkeypatch, netlist, inputs, cost, beta, DOUBLE), "float64")


LOOPS: dict[str, dict[str, Any]] = {
    "tanh": {"neuron": "tanh", "recurrent": True},
    "diode": {"neuron": "diode", "recurrent": True},
    "resistive diode": {"neuron": "diode", "synapse": "resistive", "recurrent": True},
    "virtual ground": {"neuron": "tanh", "synapse": "virtual ground", "recurrent": True},
    "ideal diodes": {"neuron": "ideal relu", "synapse": "resistive", "recurrent": True},
    "amplifier": {"neuron": "relu", "synapse": "amplifier", "recurrent": True},
}


@pytest.mark.parametrize("numpy_sweeps", [False, True], ids=["compiled", "numpy"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_sample_has_the_numbers_it_has_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, numpy_sweeps: bool
) -> None:
    """Samples that need few sweeps leave the batch for those that need many."""
    document = network_document(**LOOPS[name])
    for layer in document["layers"].values():
        # Without biases an input of zero is there at once.
        layer.pop("bias", None)
    netlist = compile_network(parse_network(document), seed=3)
    plan = build_plan(netlist).layered
    size = netlist.inputs.size
    scale = np.array([0.0, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 3.0, 10.0, 0.0, 1e-12])
    inputs = scale[:, None] * random_inputs(3, len(scale), size)
    left: list[int] = []
    for system in (layered.FreeSystem, layered.IncrementSystem):

        def keep(self: Any, rows: Any, kept: Any = system.keep) -> None:
            left.append(len(rows))
            kept(self, rows)

        monkeypatch.setattr(system, "keep", keep)
    if numpy_sweeps:
        monkeypatch.setattr(compiled, "_MOST_PRODUCTS", 0)
    together = sweeps(plan, netlist, inputs, "quadratic", 0.1, DOUBLE)
    if numpy_sweeps:
        assert left, "no sample left the batch before the others"
        assert max(left) < len(inputs)
    assert len(set(together["free"].iterations.tolist())) > 1
    values = netlist.values()
    nudge = random_nudge(5, "quadratic", 0.1, len(inputs), len(netlist.outputs.pos), conductance=1e-5)
    current = np.random.default_rng(6).normal(0, 1e-6, (len(inputs), len(netlist.outputs.pos)))
    for b in range(len(inputs)):
        row = np.array([b])
        free = plan.free(values, inputs[row], DOUBLE)
        alone: dict[str, Any] = {"free": free}
        for phase in PHASES:
            drive: dict[str, Any] = (
                {"output_current": current[row]} if phase == "transposed" else {"nudge": nudge.rows(row)}
            )
            alone[phase] = plan.increments(free, phase, DOUBLE, **drive)  # type: ignore[arg-type]
        for phase, one in alone.items():
            assert together[phase].status[b] == one.status[0] == 0, phase
            for a, whole in zip(one.layers, together[phase].layers, strict=True):
                np.testing.assert_allclose(a[0], whole[b], rtol=0, atol=1e-12, err_msg=phase)


def test_batches_of_one_to_many_are_rows_of_each_other() -> None:
    """Shared between threads or not."""
    _, netlist = small_network(2, recurrent=True, sizes=(20, 90, 40))
    plan, values = build_plan(netlist).layered, netlist.values()
    inputs = random_inputs(2, 64, netlist.inputs.size)
    assert plan.compiled.fits(plan.weights(values, "float64"), 64)
    assert 64 * plan.compiled.products // 4 > compiled._WORTH // 2
    whole = plan.free(values, inputs, DOUBLE)
    for rows in (slice(0, 1), slice(5, 12), slice(30, 64)):
        part = plan.free(values, inputs[rows], DOUBLE)
        for a, b in zip(part.layers, whole.layers, strict=True):
            np.testing.assert_allclose(a, b[rows], rtol=0, atol=1e-13)
        np.testing.assert_array_equal(part.iterations, whole.iterations[rows])


def test_voltages_without_bound_are_lost_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    _, netlist = small_network(0, neuron="linear", recurrent=True, gain=1e4)
    plan, values = build_plan(netlist).layered, netlist.values()
    inputs = random_inputs(0, 2, netlist.inputs.size)
    few = replace(DOUBLE, max_iterations=3)
    for most in (compiled._MOST_PRODUCTS, 0):
        monkeypatch.setattr(compiled, "_MOST_PRODUCTS", most)
        assert np.all(plan.free(values, inputs, few).status == 3), most


# Loops that few nodes close -----------------------------------------------------------------------


def closed_by_few(
    seed: int = 0, *, hidden: int = 60, outputs: int = 4, output: str = "single", **options: Any
) -> Netlist:
    """The outputs drive the hidden nodes, and these nothing but the outputs; other amplifiers each layer."""
    document = network_document(recurrent=True, sizes=(3, hidden, outputs), output=output, **options)
    document["synapses"] = [synapse for synapse in document["synapses"] if synapse.get("name") != "lateral"]
    return compile_network(parse_network(document), seed=seed)


def beside(seed: int, *, gain: float) -> Netlist:
    """Two layers of different size between the outputs and themselves, behind one that is in no loop."""
    document = network_document(recurrent=True, sizes=(3, 50, 3), gain=gain)
    hidden = document["layers"]["hidden"]
    document["layers"] = {
        "first": {**hidden, "size": 7},
        "hidden": hidden,
        "other": {**hidden, "size": 30},
        "out": document["layers"]["out"],
    }
    document["synapses"] = [
        {"from": a, "to": b, "kind": "buffered"}
        for a, b in (
            ("u", "first"),
            ("first", "hidden"),
            ("first", "other"),
            ("hidden", "out"),
            ("other", "out"),
            ("out", "hidden"),
            ("out", "other"),
        )
    ]
    return compile_network(parse_network(document), seed=seed)


@pytest.mark.parametrize("precision", ORDER)
@pytest.mark.parametrize(("neuron", "gain"), [("tanh", 8.0), ("linear", 15.0)])
@pytest.mark.parametrize(
    ("output", "cost", "beta"), [("single", "quadratic", 0.1), ("differential_pair", "softmax", -0.05)]
)
def test_newton_finds_what_sweeps_find_in_fewer(
    monkeypatch: pytest.MonkeyPatch,
    neuron: str,
    gain: float,
    output: str,
    cost: str,
    beta: float,
    precision: str,
) -> None:
    netlist = closed_by_few(1, neuron=neuron, output=output, gain=gain)
    assert build_plan(netlist).layered.structure.sweeps["free"].loops == (1,)
    inputs = random_inputs(1, 5, netlist.inputs.size)
    fast, plain = by_both(monkeypatch, netlist, inputs, cost, beta, ORDER[precision])
    agree(fast, plain, precision, fewer=True)
    # A Jacobian that is right takes a linear phase there in one step; the sweep after it says so.
    linear = {"transposed"} | (
        set(PHASES) | {"free"} if neuron == "linear" and cost == "quadratic" else set()
    )
    for phase in linear:
        assert np.all(fast[phase].iterations <= 3), phase


def test_newton_through_two_layers_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    netlist = beside(2, gain=8.0)
    inputs = random_inputs(2, 5, netlist.inputs.size)
    fast, plain = by_both(monkeypatch, netlist, inputs, "softmax", 0.1, DOUBLE)
    agree(fast, plain, "float64", fewer=True)
    assert np.all(fast["transposed"].iterations <= 3)


def by_sweeps_alone(monkeypatch: pytest.MonkeyPatch, plan: LayeredPlan, *given: Any) -> FreePoint:
    """The free phase by BLAS and NumPy, which take no step but sweeps."""
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_MOST_PRODUCTS", 0)
        patch.setattr(compiled, "_MOST_OF_FEW", 0)
        return plan.free(*given)


@pytest.mark.parametrize(("seed", "stable"), [(1, True), (0, False), (7, False)])
def test_loops_whose_sweeps_run_away_are_followed_in_time(
    monkeypatch: pytest.MonkeyPatch, seed: int, stable: bool
) -> None:
    """Sweeps of all three run away. One of the circuits comes to rest and is found where it does; from the
    points of the others, which Newton's method would find, the circuits run away as well."""
    netlist = closed_by_few(seed, neuron="linear", gain=60.0)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(1, 5, netlist.inputs.size)
    exact = solve(plan, values, Drive(inputs=inputs), SolverSettings(method="general"))
    found = small_signal(plan, values, exact.node_voltage[0])
    assert found is not None
    assert found.largest_real is not None
    assert (found.largest_real < 0) == stable
    fast = plan.layered.free(values, inputs, DOUBLE)
    np.testing.assert_array_equal(fast.status, 0 if stable else 3)
    np.testing.assert_array_equal(
        by_sweeps_alone(monkeypatch, plan.layered, values, inputs, DOUBLE).status, 3
    )
    if stable:
        point = solve(plan, values, Drive(inputs=inputs), DOUBLE)
        np.testing.assert_allclose(point.node_voltage, exact.node_voltage, rtol=0, atol=1e-10)


def test_samples_that_sweeps_do_not_settle_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of strong saturating amplifiers: sweeps circle, or crawl past where two points have just met."""
    few = replace(DOUBLE, max_iterations=200)
    left = 0
    for seed, gain in ((0, 150.0), (5, 150.0), (7, 150.0), (1, 200.0), (8, 200.0)):
        netlist = closed_by_few(seed, neuron="tanh", gain=gain)
        plan, values = build_plan(netlist), netlist.values()
        inputs = random_inputs(1, 5, netlist.inputs.size)
        left += np.count_nonzero(by_sweeps_alone(monkeypatch, plan.layered, values, inputs, few).status)
        # Checked at every node.
        point = solve(plan, values, Drive(inputs=inputs), replace(few, check=True))
        assert not point.status.any()
        assert point.relative_residual.max() < 1e-9
    assert left >= 5


def test_where_sweeps_come_to_rest_they_are_left_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    netlist = closed_by_few(1, neuron="tanh", gain=60.0)
    plan, values = build_plan(netlist).layered, netlist.values()
    inputs = random_inputs(1, 5, netlist.inputs.size)
    fast = plan.free(values, inputs, DOUBLE)
    assert plan.compiled.fits(fast.weights, 5)
    plain = by_sweeps_alone(monkeypatch, plan, values, inputs, DOUBLE)
    assert not fast.status.any()
    assert not plain.status.any()
    for a, b in zip(fast.layers, plain.layers, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * float(np.abs(b).max()))


def test_samples_steered_by_newton_are_rows_of_their_batch() -> None:
    """Weak and strong loops together: some take Newton's steps, others do not."""
    netlist = closed_by_few(1, gain=30.0)
    plan, values = build_plan(netlist).layered, netlist.values()
    inputs = random_inputs(1, 12, netlist.inputs.size) * np.geomspace(1e-6, 10.0, 12)[:, None]
    whole = plan.free(values, inputs, DOUBLE)
    assert not whole.status.any()
    assert len(set(whole.iterations.tolist())) > 2
    for rows in (slice(0, 1), slice(3, 8), slice(11, 12)):
        part = plan.free(values, inputs[rows], DOUBLE)
        np.testing.assert_array_equal(part.iterations, whole.iterations[rows])
        for a, b in zip(part.layers, whole.layers, strict=True):
            np.testing.assert_allclose(a, b[rows], rtol=0, atol=1e-13)
