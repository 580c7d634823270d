"""What learning gets from the layers directly: gradients in product form, lazy node voltages, the guard."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import KINKED, NEURONS, SYNAPSES, network_document
from learners import TIGHT, Case, case, feedforward_document, flat, relative

from circuitsim.errors import ConvergenceError
from circuitsim.learning import EP, Adjoint, AsymEP, Cost, Dyadic, Estimator, check_gradients, local_rule
from circuitsim.learning.gradient import Factors, LayeredGradient
from circuitsim.solver import STATUS, Drive, SolverSettings, solve
from circuitsim.solver.general import GeneralPlan

ESTIMATORS: list[Estimator] = [Adjoint(), EP(), AsymEP(), AsymEP(centred=False), Dyadic()]


# The product form --------------------------------------------------------------------------------


@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", [*NEURONS, *KINKED])
def test_the_product_form_is_the_local_rule_on_node_voltages(neuron: str, synapse: str) -> None:
    document = network_document(neuron=neuron, synapse=synapse, recurrent=True)
    document["synapses"][1]["connectivity"] = {"density": 0.7}
    document["layers"]["out"]["bias"] = {"voltage": 0.3, "differential": False}
    here = case(document, batch=5, **TIGHT | {"method": "layered"})
    phases, free = here.phases, here.free
    for s in (
        phases.adjoint(here.inputs, here.targets, free),
        phases.nudged(here.inputs, here.targets, 0.05, free),
        phases.corrected(here.inputs, here.targets, 0.05, free),
    ):
        found = phases.rule(here.inputs, free, s)
        assert isinstance(found, LayeredGradient)
        assert all(isinstance(part, Factors) for part in found.parts.values())
        expected = local_rule(here.netlist, free.node_voltage, phases.nodes(s, here.inputs, free))
        assert set(found) == set(expected)
        for name, halves in expected.items():
            for half, other in zip(halves, found[name], strict=True):
                assert (half is None) == (other is None)
                if half is not None and other is not None:
                    largest = float(np.abs(half).max())
                    np.testing.assert_allclose(other, half, rtol=0, atol=1e-12 * largest + 1e-30)


def test_nothing_of_the_size_of_a_batch_of_crossbars_is_formed() -> None:
    here = case(feedforward_document([3, 6, 4]), batch=7)
    gradient = here.estimate(AsymEP()).crossbars
    assert isinstance(gradient, LayeredGradient)
    for name, part in gradient.parts.items():
        assert isinstance(part, Factors)
        shape = here.netlist.crossbar(name).shape
        assert part.left.shape[1:] == shape[:1]
        assert part.right.shape[1:] == shape[1:]
        # Biases are the same for every sample.
        assert len(part.left) == (1 if name.endswith("bias") else 7)


@pytest.mark.parametrize("neuron", KINKED)
def test_adjoint_equals_finite_differences_between_kinks(neuron: str) -> None:
    for synapse in ("buffered", "resistive"):
        document = network_document(neuron=neuron, synapse=synapse, recurrent=True)
        here = case(document, batch=2, seed=2, **TIGHT | {"method": "layered"})
        rows = check_gradients(here.phases, here.inputs, here.targets, betas=(), devices=6)
        assert max(row.relative_error_fd for row in rows) < 1e-6


def deep(precision: str) -> Case:
    """Three hidden layers of ideal diodes between resistors."""
    names = ["u", "a", "b", "c", "out"]
    diode = {"kind": "ideal_relu", "polarity": "alternating"}
    document: dict[str, Any] = {
        "name": "deep",
        "conductance": {"min": "0.1u", "max": "100u"},
        "inputs": {"u": {"size": 12, "encoding": "signed_pair"}},
        "layers": {
            name: {"size": size, "neuron": diode if name != "out" else {"kind": "linear"}}
            for name, size in (("a", 24), ("b", 24), ("c", 24), ("out", 4))
        },
        "synapses": [
            {"from": a, "to": b, "kind": "resistive", "initial": {"center": 0.2, "spread": 0.2}}
            for a, b in itertools.pairwise(names)
        ],
        "output": {"layer": "out"},
    }
    return case(document, batch=4, method="layered", precision=precision, max_iterations=2000)


@pytest.mark.parametrize("estimator", [EP(beta=0.1), AsymEP(beta=0.1), Adjoint()], ids=lambda e: e.label)
def test_single_precision_gradients_of_a_deep_resistive_network(estimator: Estimator) -> None:
    double, single = deep("float64"), deep("float32")
    exact, rough = double.estimate(estimator), single.estimate(estimator)
    assert flat(rough).dtype == np.float32
    assert 1e-9 < relative(rough, exact) < 1e-4


# Points without a check --------------------------------------------------------------------------


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_node_voltages_are_written_out_when_asked_for(synapse: str) -> None:
    here = case(network_document(synapse=synapse, recurrent=True), batch=3)
    plan, values = here.phases.plan, here.phases.values
    bare = SolverSettings(method="layered", check=False)
    point = solve(plan, values, here.inputs, bare)
    checked = solve(plan, values, here.inputs, replace(bare, check=True))
    assert "node_voltage" not in vars(point)
    assert np.all(np.isnan(point.kcl_residual))
    np.testing.assert_array_equal(point.node_voltage, checked.node_voltage)
    assert "node_voltage" in vars(point)
    assert point.node_voltage is point.node_voltage
    assert not point.node_voltage.flags.writeable
    np.testing.assert_array_equal(point.iterations, checked.iterations)
    y = here.netlist.outputs.read(checked.node_voltage)
    np.testing.assert_array_equal(here.phases.outputs(solve(plan, values, here.inputs, bare)), y)
    with pytest.raises(AttributeError, match="OperatingPoint has no attribute 'voltage'"):
        point.voltage  # type: ignore[attr-defined]  # noqa: B018


def test_a_changed_copy_of_a_lazy_point_is_a_point_of_its_own() -> None:
    here = case(network_document(recurrent=True), batch=3)
    plan, values = here.phases.plan, here.phases.values
    bare = SolverSettings(method="layered", check=False)
    point = solve(plan, values, here.inputs, bare)
    copy = replace(point, method="other")
    assert (copy.method, point.method) == ("other", "layered")
    np.testing.assert_array_equal(copy.node_voltage, point.node_voltage)
    inputs = Drive.of(plan.netlist, here.inputs).inputs
    assert point.is_free_of(values, inputs)
    assert not copy.is_free_of(values, inputs)
    # What its changed voltages say counts, not the layers of the point it was copied from.
    moved = replace(point, node_voltage=point.node_voltage * 1.01)
    assert not moved.is_free_of(values, inputs)
    outputs = here.phases.outputs(moved)
    np.testing.assert_allclose(outputs, 1.01 * here.phases.outputs(point), rtol=1e-14)


# The guard ---------------------------------------------------------------------------------------


def outweighed(kind: str, method: str = "auto") -> Case:
    """A cost whose curvature is far above what loads an output."""
    cost = "squared error" if kind == "quadratic" else "cross entropy"
    here = case(network_document(recurrent=True), cost=cost, method=method)
    heavy = Cost(kind=kind, conductance=1.0, scale=here.phases.cost.scale)  # type: ignore[arg-type]
    return Case(replace(here.phases, cost=heavy), here.inputs, here.targets)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kind", ["quadratic", "softmax"])
def test_a_nudge_that_outweighs_the_load_is_refused(
    kind: str, corrected: bool, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = outweighed(kind)
    plan, values = here.phases.plan, here.phases.values

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("Newton's method would find a point that no circuit stays at")

    settings = SolverSettings(check=check)
    free = solve(plan, values, here.inputs, settings)
    drive = Drive.of(plan.netlist, here.inputs, here.phases.cost.nudge(here.targets, -0.1))
    drive = drive.corrected(free) if corrected else drive
    start = None if corrected else free
    with monkeypatch.context() as patch:
        patch.setattr(GeneralPlan, "run", forbidden)
        point = solve(plan, values, drive, replace(settings, throw=False), start=start)
        with pytest.raises(ConvergenceError, match="negative conductance that outweighs what loads an out"):
            solve(plan, values, drive, settings, start=start)
    assert np.all(point.status == 4)
    assert point.method == "layered"
    # The other way it is a resistor like any other.
    drive = replace(drive, nudge=here.phases.cost.nudge(here.targets, 0.1))
    assert solve(plan, values, drive, settings, start=start).converged


@pytest.mark.parametrize("method", ["auto", "layered"])
@pytest.mark.parametrize("estimator", [EP(beta=0.1), AsymEP(beta=0.1)], ids=lambda e: e.label)
def test_estimators_say_so(estimator: Estimator, method: str) -> None:
    here = outweighed("quadratic", method)
    with pytest.raises(ConvergenceError) as error:
        here.estimate(estimator)
    assert STATUS[4] in str(error.value)
    # Neither the adjoint nor one side needs a negative resistor.
    assert np.all(np.isfinite(flat(here.estimate(Adjoint()))))


def test_just_below_the_load_is_solved() -> None:
    here = case(network_document(neuron="linear"), method="layered")
    layered, values = here.phases.plan.layered, here.phases.values
    load = float(layered.weights(values, "float64").load[layered.structure.output_layer].min())
    for part, expected in ((0.99, 0), (1.01, 4)):
        cost = Cost(kind="quadratic", conductance=part * load / 0.1)
        drive = Drive.of(here.netlist, here.inputs, cost.nudge(here.targets, -0.1))
        settings = SolverSettings(method="layered", throw=False)
        point = solve(here.phases.plan, values, drive, settings)
        assert np.all(point.status == expected)
