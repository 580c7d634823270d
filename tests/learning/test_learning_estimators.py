"""Every estimator against the adjoint: orders in beta, exactness, and where nudging alone is biased."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from circuits import EVERYTHING, NEURONS, SYNAPSES, network_document
from learners import (
    SPREAD,
    Case,
    case,
    chain_document,
    cosine,
    feedforward_document,
    random_case,
    relative,
)

from circuitsim.chip import fabricate
from circuitsim.compiler import compile_network
from circuitsim.learning import EP, Adjoint, AsymEP, Cost, Dyadic, Phases
from circuitsim.netlist import nudged_netlist
from circuitsim.network import parse_network
from circuitsim.solver import SolverSettings, build_plan, solve
from circuitsim.solver.smallsignal import small_signal

METHODS = ["general", "layered"]


def loops(neuron: str, synapse: str, method: str) -> Case:
    """A network with a lateral and a feedback connection; the cost and the outputs alternate."""
    odd = (list(NEURONS).index(neuron) + list(SYNAPSES).index(synapse)) % 2
    document = network_document(
        neuron=neuron, synapse=synapse, recurrent=True, output="differential_pair" if odd else "single"
    )
    return case(document, cost="cross entropy" if odd else "squared error", method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", NEURONS)
class TestInTheSmallBetaLimit:
    def test_corrected_is_second_order_centred_and_first_order_one_sided(
        self, neuron: str, synapse: str, method: str
    ) -> None:
        tried = loops(neuron, synapse, method)
        exact = tried.estimate(Adjoint())
        centred = [relative(tried.estimate(AsymEP(beta=b)), exact) for b in (1e-1, 1e-2, 1e-3)]
        one_sided = [relative(tried.estimate(AsymEP(beta=b, centred=False)), exact) for b in (1e-2, 1e-3)]
        assert centred[1] < 1e-4
        assert centred[2] < 1e-6
        assert np.log10(centred[0] / centred[1]) == pytest.approx(2.0, abs=0.1)
        assert np.log10(one_sided[0] / one_sided[1]) == pytest.approx(1.0, abs=0.05)

    def test_dyadic_is_exact_at_every_beta(self, neuron: str, synapse: str, method: str) -> None:
        tried = loops(neuron, synapse, method)
        exact = tried.estimate(Adjoint())
        for beta in (1e-6, 1e-4, 1e-2, 1.0, 1e2):
            assert relative(tried.estimate(Dyadic(beta=beta)), exact) < 1e-9


@pytest.mark.parametrize("kind", ["quadratic", "softmax"])
@pytest.mark.parametrize("seed", range(4))
def test_corrected_and_dyadic_learn_random_circuits_of_every_element(seed: int, kind: str) -> None:
    tried = random_case(seed, EVERYTHING, kind=kind)
    exact = tried.estimate(Adjoint())
    errors = [relative(tried.estimate(AsymEP(beta=b)), exact) for b in (1e-1, 1e-2, 1e-3)]
    assert errors[1] < 1e-4
    assert errors[2] < 1e-6
    assert np.log10(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.2)
    assert max(relative(tried.estimate(Dyadic(beta=b)), exact) for b in (1e-6, 1.0, 1e2)) < 1e-9
    assert cosine(tried.estimate(EP(beta=1e-3)), exact) < 0.995


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cost", ["squared error", "cross entropy"])
class TestNudgedOnly:
    def test_is_exactly_zero_in_hidden_layers_of_a_feedforward_network(self, cost: str, method: str) -> None:
        tried = case(feedforward_document([3, 6, 5, 4]), cost=cost, method=method)
        exact = tried.estimate(Adjoint())
        for beta in (1e-2, 1.0):
            nudged = tried.estimate(EP(beta=beta))
            for name in ("u-l0", "l0-l1", "l0.bias", "l1.bias"):
                assert np.all(nudged.flat(name) == 0)
                assert np.abs(exact.flat(name)).max() > 0
        # The output layer needs no signal from behind: there the nudge is right.
        near = tried.estimate(EP(beta=1e-3))
        for name in ("l1-l2", "l2.bias"):
            np.testing.assert_allclose(
                near.flat(name), exact.flat(name), rtol=0, atol=1e-6 * np.abs(exact.flat(name)).max()
            )

    def test_is_biased_in_a_network_with_loops_at_every_beta(self, cost: str, method: str) -> None:
        tried = case(network_document(recurrent=True), cost=cost, method=method)
        exact = tried.estimate(Adjoint())
        for beta in (1e-1, 1e-3, 1e-5):
            nudged = tried.estimate(EP(beta=beta))
            assert cosine(nudged, exact) < 0.99
            assert relative(nudged, exact) > 0.1
        # It converges as beta falls, to something else.
        assert relative(nudged, tried.estimate(EP(beta=1e-3))) < 1e-4


def test_nudged_only_solves_the_untransposed_system() -> None:
    """``J0 s = -dC/dx``: the bias is this and nothing else."""
    tried = case(feedforward_document([3, 6, 4]), method="general")
    general = tried.phases.plan.general
    slope = tried.phases.cost.nudge(tried.targets, 1.0).current(tried.phases.outputs(tried.free))
    beta = 1e-4
    plus = tried.phases.nudged(tried.inputs, tried.targets, beta, tried.free)
    minus = tried.phases.nudged(tried.inputs, tried.targets, -beta, tried.free)
    measured = (plus - minus) / (2 * beta)
    for b in range(len(slope)):
        j = general.small_signal(tried.phases.values, tried.free.node_voltage[b])
        load = np.zeros(len(j))
        load[general.node_unknown[tried.netlist.outputs.pos]] = -slope[b]
        s = np.linalg.solve(j, load)
        nodes = np.flatnonzero(general.node_unknown[: tried.netlist.n_nodes] >= 0)
        np.testing.assert_allclose(
            measured[b, nodes], s[general.node_unknown[nodes]], rtol=0, atol=1e-5 * np.abs(s).max()
        )


RECIPROCAL: dict[str, dict[str, Any]] = {
    "resistive diode": {"neuron": "diode", "synapse": "resistive"},
    "resistive linear": {"neuron": "linear", "synapse": "resistive"},
    "resistive relu": {"neuron": "relu", "synapse": "resistive"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cost", ["squared error", "cross entropy"])
@pytest.mark.parametrize("kind", RECIPROCAL)
def test_nudged_only_equals_corrected_where_the_circuit_is_reciprocal(
    kind: str, cost: str, method: str
) -> None:
    tried = case(network_document(**RECIPROCAL[kind], output="differential_pair"), cost=cost, method=method)
    for beta in (1e-2, 1.0):
        for centred in (True, False):
            nudged = tried.estimate(EP(beta=beta, centred=centred))
            assert relative(nudged, tried.estimate(AsymEP(beta=beta, centred=centred))) < 1e-9
    assert relative(tried.estimate(EP(beta=1e-3)), tried.estimate(Adjoint())) < 1e-6
    analysis = small_signal(tried.phases.plan, tried.phases.values, tried.free.node_voltage[0])
    assert analysis is not None
    assert analysis.asymmetry < 1e-12
    assert analysis.symmetrisable


@pytest.mark.parametrize("method", METHODS)
def test_amplifiers_with_equal_gains_both_ways_are_reciprocal(method: str) -> None:
    document = chain_document([(1.5, 1.5), (0.7, 0.7)], neuron=NEURONS["diode"])
    spec = parse_network(document)
    tried = ideal(document, method)
    assert spec.synapses[1].forward_gain == spec.synapses[1].back_gain
    for beta in (1e-2, 1.0):
        assert relative(tried.estimate(EP(beta=beta)), tried.estimate(AsymEP(beta=beta))) < 1e-9
    assert relative(tried.estimate(EP(beta=1e-3)), tried.estimate(Adjoint())) < 1e-6


def ideal(document: dict[str, Any], method: str) -> Case:
    """A case on a die without spread: mismatched amplifiers are not exact transformers."""
    spec = parse_network(document)
    netlist = compile_network(spec, seed=1)
    phases = Phases(
        plan=build_plan(netlist),
        values=fabricate(netlist, seed=1).values,
        cost=Cost(kind="quadratic", conductance=5e-6),
        settings=SolverSettings(method=method, check=False),  # type: ignore[arg-type]
    )
    rng = np.random.default_rng(4)
    return Case(phases, rng.uniform(-1, 1, (3, 3)), rng.uniform(-0.3, 0.3, (3, spec.output_size)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("neuron", ["linear", "diode"])
def test_nudged_only_is_exact_after_the_layer_metric_of_a_bidirectional_chain(
    neuron: str, method: str
) -> None:
    """Metric ``m[l+1] = m[l] * B/A``: the gradient of layer l is off by ``m[out] / m[l]``, no more."""
    gains = [(1.6, 0.8), (1.2, 0.5)]
    tried = ideal(chain_document(gains, neuron=NEURONS[neuron]), method)
    exact, nudged = tried.estimate(Adjoint()), tried.estimate(EP(beta=1e-3))
    corrected = tried.estimate(AsymEP(beta=1e-3))
    metric = np.cumprod([1.0, *(back / forward for forward, back in gains)])
    for layer, name in enumerate(("u-l0", "l0-l1", "l1-l2")):
        weight = metric[layer] / metric[-1]
        scale = np.abs(exact.flat(name)).max()
        np.testing.assert_allclose(weight * nudged.flat(name), exact.flat(name), rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(corrected.flat(name), exact.flat(name), rtol=0, atol=1e-6 * scale)
        if layer < 2:
            assert weight > 2
            assert np.abs(nudged.flat(name) - exact.flat(name)).max() > 0.5 * scale
    analysis = small_signal(tried.phases.plan, tried.phases.values, tried.free.node_voltage[0])
    assert analysis is not None
    assert analysis.symmetrisable
    assert analysis.asymmetry > 0.05
    assert analysis.metric_asymmetry < 1e-9


def test_a_loop_through_bidirectional_amplifiers_is_not_symmetrisable() -> None:
    tried = case(network_document(synapse="amplifier", recurrent=True))
    analysis = small_signal(tried.phases.plan, tried.phases.values, tried.free.node_voltage[0])
    assert analysis is not None
    assert not analysis.symmetrisable
    assert relative(tried.estimate(EP(beta=1e-3)), tried.estimate(Adjoint())) > 0.05


@pytest.mark.parametrize("cost", ["squared error", "cross entropy"])
def test_the_nudge_is_elements_that_a_board_could_hold(cost: str) -> None:
    tried = case(network_document(recurrent=True, output="differential_pair"), cost=cost, method="general")
    beta = 0.1
    moved = tried.phases.nudged(tried.inputs, tried.targets, beta, tried.free)
    for b in range(len(tried.inputs)):
        nudge = tried.phases.cost.nudge(tried.targets, beta)
        board = nudged_netlist(tried.netlist.with_values(tried.phases.values), nudge, sample=b)
        point = solve(build_plan(board), board.values(), tried.inputs[b : b + 1])
        shift = point.node_voltage[0, : tried.netlist.n_nodes] - tried.free.node_voltage[b]
        np.testing.assert_allclose(shift, moved[b], rtol=0, atol=1e-9 * np.abs(moved).max() + 1e-12)


@pytest.mark.parametrize(
    ("estimator", "label", "beta", "read"),
    [
        (EP(beta=0.02), "nudged-only", 0.02, ("free", "nudged +", "nudged -")),
        (EP(beta=0.02, centred=False), "nudged-only-one-sided", 0.02, ("free", "nudged +")),
        (AsymEP(beta=0.03), "corrected-centred", 0.03, ("free", "corrected +", "corrected -")),
        (AsymEP(beta=0.03, centred=False), "corrected-one-sided", 0.03, ("free", "corrected +")),
        (Dyadic(beta=2.0), "dyadic", 2.0, ("free", "dyadic")),
        (Adjoint(), "adjoint", None, ("free",)),
    ],
)
def test_a_gradient_says_where_it_came_from(
    estimator: Any, label: str, beta: float | None, read: tuple[str, ...]
) -> None:
    found = case(network_document(recurrent=True)).estimate(estimator)
    assert (found.estimator, estimator.label, found.beta, found.phases) == (label, label, beta, read)


def test_the_die_counts() -> None:
    """Mismatch belongs to the gradient: the nominal circuit's gradient is another one."""
    document = network_document(recurrent=True)
    tried = case(document)
    nominal = Case(
        Phases(
            plan=tried.phases.plan,
            values=tried.netlist.values(),
            cost=tried.phases.cost,
            settings=tried.phases.settings,
        ),
        tried.inputs,
        tried.targets,
    )
    assert SPREAD.crossbar.device_to_device == 0.05
    assert relative(tried.estimate(AsymEP(beta=1e-3)), tried.estimate(Adjoint())) < 1e-6
    assert relative(tried.estimate(Adjoint()), nominal.estimate(Adjoint())) > 1e-2
