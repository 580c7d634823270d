"""The adjoint against finite differences, on every neuron and synapse kind, and the local rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import EVERYTHING, NEURONS, SYNAPSES, dense_jacobian, network_document
from learners import TIGHT, Case, case, chain_document, feedforward_document, flat, random_case, relative

from circuitsim.learning import (
    EP,
    Adjoint,
    AsymEP,
    DyadicBP,
    Estimator,
    alignment,
    check_gradients,
    local_rule,
)
from circuitsim.learning.gradcheck import finite_differences
from circuitsim.netlist import flatten
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import Equations


def adjoint_errors(tried: Case, devices: int = 6) -> list[float]:
    """Relative errors of the adjoint against finite differences, one per crossbar."""
    rows = check_gradients(tried.phases, tried.inputs, tried.targets, betas=(), devices=devices)
    assert [row.crossbar for row in rows if row.estimator == "adjoint"] == [
        crossbar.name for crossbar in tried.netlist.trainable
    ]
    return [row.relative_error_fd for row in rows]


@pytest.mark.parametrize("method", ["general", "layered"])
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_adjoint_equals_finite_differences_for_every_neuron_and_synapse(
    neuron: str, synapse: str, method: str
) -> None:
    # Loops, a lateral mask, mismatch; each cost and each output encoding for half of the kinds.
    odd = (list(NEURONS).index(neuron) + list(SYNAPSES).index(synapse)) % 2
    document = network_document(
        neuron=neuron, synapse=synapse, recurrent=True, output="differential_pair" if odd else "single"
    )
    cost = "cross entropy" if odd else "squared error"
    # One circuit of 240 (12 seeds) needs a smaller step than this: seed 1, in the test below.
    tried = case(document, cost=cost, batch=2, seed=2, **TIGHT | {"method": method})
    assert max(adjoint_errors(tried)) < 1e-7


def test_a_diode_at_its_joint_needs_a_smaller_step() -> None:
    odd = (list(NEURONS).index("diode") + list(SYNAPSES).index("amplifier")) % 2
    document = network_document(
        neuron="diode", synapse="amplifier", recurrent=True, output="differential_pair" if odd else "single"
    )
    cost = "cross entropy" if odd else "squared error"
    tried = case(document, cost=cost, batch=2, seed=1, **TIGHT | {"method": "layered"})
    exact = Adjoint().estimate(tried.phases, tried.inputs, tried.targets)

    def worst(step: float) -> float:
        errors = []
        for crossbar in tried.netlist.trainable:
            flat = exact.flat(crossbar.name)
            devices = np.flatnonzero(flat)
            numeric = finite_differences(
                tried.phases, tried.inputs, tried.targets, crossbar.name, devices, step=step
            )
            errors.append(float(np.linalg.norm(flat[devices] - numeric) / np.linalg.norm(numeric)))
        return max(errors)

    coarse, fine = worst(1e-3), worst(2.5e-4)
    assert fine < 1e-7 < coarse


@pytest.mark.parametrize("kind", ["quadratic", "softmax"])
@pytest.mark.parametrize("seed", range(5))
def test_adjoint_equals_finite_differences_on_random_circuits(seed: int, kind: str) -> None:
    tried = random_case(seed, EVERYTHING, kind=kind)
    assert tried.phases.plan.method == "general"
    assert {crossbar.name for crossbar in tried.netlist.trainable} >= {
        "plain",
        "pairs",
        "one-way.devices",
        "two-way.devices",
        "summed",
    }
    assert max(adjoint_errors(tried)) < 1e-7


@pytest.mark.parametrize("cost", ["squared error", "cross entropy"])
def test_adjoint_equals_finite_differences_with_sparse_and_masked_synapses(cost: str) -> None:
    document = network_document(recurrent=True, output="differential_pair")
    mask = [[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1], [1, 0, 0, 1]]
    document["synapses"][0]["connectivity"] = {"density": 0.6}
    document["synapses"][1]["connectivity"] = {"mask": mask}
    document["synapses"][2]["connectivity"] = {"density": 0.5, "self_connections": True}
    tried = case(document, cost=cost, batch=2)
    assert sum(crossbar.mask is not None for crossbar in tried.netlist.trainable) == 3
    assert max(adjoint_errors(tried, devices=12)) < 1e-7


def test_finite_differences_see_a_change_of_one_device() -> None:
    """The ruler itself: the cost of a die with one device moved."""
    tried = case(network_document(recurrent=True))
    name = "hidden-out"
    step = 1e-9
    costs = []
    for sign in (1, -1):
        g_plus, g_minus = tried.phases.values.crossbars[name]
        moved = g_plus.copy()
        moved[2, 3] += sign * step
        values = replace(
            tried.phases.values, crossbars={**tried.phases.values.crossbars, name: (moved, g_minus)}
        )
        phases = replace(tried.phases, values=values)
        y = phases.outputs(phases.free(tried.inputs))
        costs.append(phases.cost.value(y, tried.targets).mean())
    device = 2 * g_plus.shape[1] + 3
    (measured,) = finite_differences(tried.phases, tried.inputs, tried.targets, name, np.array([device]))
    np.testing.assert_allclose(measured, (costs[0] - costs[1]) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("method", ["general", "layered"])
@pytest.mark.parametrize("synapse", ["buffered", "virtual ground", "differential amplifier"])
def test_adjoint_solves_the_transposed_system_of_the_flat_circuit(synapse: str, method: str) -> None:
    tried = case(network_document(synapse=synapse, neuron="diode", recurrent=True), method=method)
    wide = flatten(tried.netlist)
    equations = Equations(netlist=wide.netlist, values=wide.values(tried.phases.values))
    y = tried.phases.outputs(tried.free)
    slope = tried.phases.cost.nudge(tried.targets, 1.0).current(y)
    s = np.zeros_like(tried.free.node_voltage)
    point = Equations(netlist=tried.netlist, values=tried.phases.values)
    currents = point.grounded_branch_currents(tried.free.node_voltage)
    for b in range(len(s)):
        v, _ = wide.lift(tried.free.node_voltage[b : b + 1], currents[b : b + 1])
        j = dense_jacobian(equations, v[0])
        load = np.zeros(len(j))
        load[tried.netlist.outputs.pos - 1] = -slope[b]
        s[b, 1:] = np.linalg.solve(j.T, load)[: tried.netlist.n_nodes - 1]
    found = tried.estimate(Adjoint())
    expected = local_rule(tried.netlist, tried.free.node_voltage, s)
    for name, halves in expected.items():
        for half, other in zip(halves, found.crossbars[name], strict=True):
            if half is None:
                assert other is None
                continue
            assert other is not None
            np.testing.assert_allclose(other, half, rtol=1e-8, atol=1e-9 * np.abs(half).max())


def naive_rule(tried: Case, s: FloatArray) -> dict[str, list[FloatArray]]:
    """The local rule one sample and one device at a time."""
    v = tried.free.node_voltage
    found: dict[str, list[FloatArray]] = {}
    for crossbar in tried.netlist.trainable:
        halves = []
        for words in (crossbar.word_pos, crossbar.word_neg):
            if words is None:
                continue
            g = np.zeros((len(v), *crossbar.shape))
            for b in range(len(v)):
                for j, word in enumerate(words):
                    for i, bit in enumerate(crossbar.bit):
                        if crossbar.mask is None or crossbar.mask[j, i]:
                            moved = -s[b, bit] if crossbar.driven else s[b, word] - s[b, bit]
                            g[b, j, i] = moved * (v[b, word] - v[b, bit])
            halves.append(g.mean(axis=0))
        found[crossbar.name] = halves
    return found


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_local_rule_is_the_mean_of_drop_times_change_of_drop(synapse: str) -> None:
    document = network_document(synapse=synapse, recurrent=True)
    document["synapses"][1]["connectivity"] = {"density": 0.7}
    tried = case(document, batch=5)
    s = np.random.default_rng(1).normal(size=tried.free.node_voltage.shape)
    found = local_rule(tried.netlist, tried.free.node_voltage, s)
    for name, halves in naive_rule(tried, s).items():
        got = [half for half in found[name] if half is not None]
        assert len(got) == len(halves)
        for half, expected in zip(got, halves, strict=True):
            np.testing.assert_allclose(half, expected, rtol=1e-12, atol=1e-13)


ESTIMATORS: list[Estimator] = [Adjoint(), EP(), AsymEP(), AsymEP(centred=False), DyadicBP()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: estimator.label)
def test_devices_that_do_not_exist_have_no_gradient(estimator: Estimator) -> None:
    document = feedforward_document([3, 6, 4])
    document["synapses"][0]["connectivity"] = {"density": 0.5}
    document["synapses"][1]["connectivity"] = {"density": 0.5}
    tried = case(document)
    masked = 0
    for name, halves in tried.estimate(estimator).crossbars.items():
        mask = tried.netlist.crossbar(name).mask
        if mask is None:
            continue
        masked += 1
        for half in halves:
            assert half is not None
            assert np.all(half[~mask] == 0)
        if name == "l0-l1":
            assert np.abs(halves[0][mask]).min() > 0
    assert masked == 2


def read_from_voltages(tried: Case, beta: float, *, corrected: bool) -> dict[str, FloatArray]:
    """What a board would do: three measured sets of node voltages, subtracted, and nothing else."""
    from circuitsim.solver import Drive, SolverSettings, solve

    settings = SolverSettings(**TIGHT | {"method": "general"})
    phases = tried.phases
    drive = Drive(inputs=tried.inputs)
    free = solve(phases.plan, phases.values, drive, settings)
    voltages = []
    for sign in (1, -1):
        pushed = drive.with_nudge(phases.cost.nudge(tried.targets, sign * beta))
        if corrected:
            pushed = pushed.corrected(free)
        voltages.append(solve(phases.plan, phases.values, pushed, settings).node_voltage)
    s = (voltages[0] - voltages[1]) / (2 * beta)
    rule = local_rule(tried.netlist, free.node_voltage, s)
    return {name: np.concatenate([h.ravel() for h in g if h is not None]) for name, g in rule.items()}


@pytest.mark.parametrize("corrected", [False, True])
def test_estimators_read_node_voltages_only(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = case(network_document(recurrent=True, synapse="amplifier"), **TIGHT)
    expected = read_from_voltages(tried, 0.01, corrected=corrected)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a circuit has no transposed solve")

    monkeypatch.setattr("circuitsim.learning.phases.Phases._transposed", forbidden)
    monkeypatch.setattr("circuitsim.learning.phases.solve_transposed", forbidden)
    found = tried.estimate(AsymEP(beta=0.01) if corrected else EP(beta=0.01))
    for name, g in expected.items():
        np.testing.assert_allclose(found.flat(name), g, rtol=1e-7, atol=1e-7 * np.abs(g).max())


def test_an_estimate_solves_its_own_free_phase() -> None:
    tried = case(network_document(recurrent=True))
    for estimator in (Adjoint(), EP(), AsymEP()):
        alone = estimator.estimate(tried.phases, tried.inputs, tried.targets)
        np.testing.assert_array_equal(flat(alone), flat(tried.estimate(estimator)))
        y = tried.phases.outputs(tried.free)
        np.testing.assert_array_equal(alone.outputs, y)
        assert alone.cost == pytest.approx(tried.phases.cost.value(y, tried.targets).mean(), rel=1e-14)


def test_a_batch_gives_the_mean_of_its_samples() -> None:
    tried = case(network_document(recurrent=True), batch=4)
    whole = flat(tried.estimate(Adjoint()))
    single = [
        Adjoint().estimate(tried.phases, tried.inputs[b : b + 1], tried.targets[b : b + 1]) for b in range(4)
    ]
    np.testing.assert_allclose(
        whole, np.mean([flat(g) for g in single], axis=0), rtol=1e-9, atol=1e-9 * np.abs(whole).max()
    )


def test_alignment_reports_cosine_and_relative_error() -> None:
    tried = case(network_document(recurrent=True))
    exact = tried.estimate(Adjoint())
    assert alignment(exact, exact) == {
        crossbar.name: (pytest.approx(1.0), 0.0) for crossbar in tried.netlist.trainable
    }
    turned = replace(
        exact, crossbars={n: (-2 * p, None if m is None else -2 * m) for n, (p, m) in exact.crossbars.items()}
    )
    for found, error in alignment(turned, exact).values():
        assert found == pytest.approx(-1.0)
        assert error == pytest.approx(3.0)
    zero = replace(
        exact, crossbars={n: (0 * p, None if m is None else 0 * m) for n, (p, m) in exact.crossbars.items()}
    )
    assert set(alignment(zero, exact).values()) == {(0.0, 1.0)}


def test_check_gradients_has_a_row_for_every_estimator_beta_and_crossbar() -> None:
    tried = case(feedforward_document([3, 5, 4]))
    rows = check_gradients(tried.phases, tried.inputs, tried.targets, betas=(1e-1, 1e-3), devices=4)
    crossbars = [crossbar.name for crossbar in tried.netlist.trainable]
    per_beta = ("nudged-only", "corrected-one-sided", "corrected-centred", "dyadic")
    expected = {("adjoint", None), ("dyadic-bp", None)} | {(n, b) for n in per_beta for b in (1e-1, 1e-3)}
    for crossbar in crossbars:
        mine = [row for row in rows if row.crossbar == crossbar]
        assert len(mine) == len(expected)
        assert {(row.estimator, row.beta) for row in mine} == expected
        assert all(row.devices == 4 for row in mine)
        for row in mine:
            # The nudged phase reaches the output layer of a feedforward network correctly.
            biased = row.estimator == "nudged-only" and crossbar not in ("l0-l1", "l1.bias")
            if biased:
                assert (row.relative_error, row.cosine) == (1.0, 0.0)
                assert (row.relative_error_fd, row.cosine_fd) == (1.0, 0.0)
                continue
            assert row.cosine > 0.999
            assert row.cosine_fd > 0.999
            if row.estimator in ("adjoint", "dyadic", "dyadic-bp"):
                assert row.relative_error < 1e-9
                assert row.relative_error_fd < 1e-7
    loops = check_gradients(
        *(lambda c: (c.phases, c.inputs, c.targets))(case(chain_document([(1.2, 0.8)]))), betas=(), devices=2
    )
    assert {row.estimator for row in loops} == {"adjoint"}


def test_gradient_check_draws_the_same_devices_from_the_same_seed() -> None:
    tried = case(network_document(recurrent=True))
    first, again, other = (
        check_gradients(tried.phases, tried.inputs, tried.targets, betas=(), devices=3, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert relative(tried.estimate(Adjoint()), tried.estimate(Adjoint())) == 0.0
