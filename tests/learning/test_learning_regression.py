"""Wanted outputs instead of classes, one output for two classes, and gradients of a circuit drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from circuits import network_document
from learners import SPREAD, Case, cosine, flat, random_case, relative

from circuitsim.chip import fabricate
from circuitsim.compiler import compile_network
from circuitsim.learning import (
    EP,
    Accuracy,
    Adjoint,
    AsymEP,
    Cost,
    Dyadic,
    OptimiserSpec,
    Phases,
    RmsError,
    Samples,
    Trainer,
    score_of,
)
from circuitsim.learning.gradcheck import finite_differences
from circuitsim.netlist.roles import Roles, TrainableResistors, with_roles
from circuitsim.network import parse_network
from circuitsim.solver import SolverSettings, build_plan
from circuitsim.spice.reader import read_deck

ONE = Cost(kind="quadratic", conductance=1e-3, high=0.2, low=-0.2, one_output=True)


def test_the_error_is_the_root_of_the_mean_square() -> None:
    y = np.array([[0.1, 0.2], [0.3, 0.0], [-0.1, 0.5]])
    wanted = np.array([[0.0, 0.2], [0.3, 0.4], [-0.1, 0.2]])
    score = score_of(ONE, None)
    assert isinstance(score, RmsError)
    expected = np.sqrt(np.mean((y - wanted) ** 2))
    assert score.mean(score.total(y, wanted), 3) == pytest.approx(expected, rel=1e-15)
    parts = score.total(y[:1], wanted[:1]) + score.total(y[1:], wanted[1:])
    assert score.mean(parts, 3) == pytest.approx(expected, rel=1e-15)


def test_wanted_outputs_are_targets_as_they_are() -> None:
    wanted = np.array([[0.1, -0.2]])
    np.testing.assert_array_equal(ONE.targets(wanted, None), wanted)


@pytest.mark.parametrize(("high", "low"), [(0.2, -0.2), (-0.1, 0.3)])
def test_one_output_tells_two_classes_apart(high: float, low: float) -> None:
    cost = replace(ONE, high=high, low=low)
    np.testing.assert_allclose(cost.targets(np.array([0, 1, 1]), 2), [[low], [high], [high]], rtol=1e-15)
    middle = (high + low) / 2
    y = np.array([[low], [high], [middle + 0.01 * (high - low)], [middle - 0.01 * (high - low)]])
    np.testing.assert_array_equal(cost.classify(y), [0, 1, 1, 0])
    probability = cost.probability(y)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    np.testing.assert_array_equal(probability.argmax(axis=1), [0, 1, 1, 0])
    # As sure of it as two outputs at the two levels would be.
    pair = Cost(kind="quadratic", conductance=1.0, high=max(high, low), low=min(high, low))
    sure = pair.probability(np.array([[pair.low, pair.high]]))
    np.testing.assert_allclose(probability[[0, 1], [0, 1]], sure[0, 1])
    score = score_of(cost, 2)
    assert isinstance(score, Accuracy)
    assert score.mean(score.total(y, np.array([0, 1, 0, 0])), 4) == 0.75


def test_a_network_learns_wanted_outputs() -> None:
    """The same trainer, other labels: a small network on a die with spread fits a smooth function."""
    document = network_document(recurrent=True, output="single")
    spec = parse_network(document | {"cost": {"kind": "squared_error", "conductance": "5u"}})
    netlist = compile_network(spec, seed=7)
    rng = np.random.default_rng(3)
    inputs = rng.uniform(-1, 1, (60, 3))
    size = len(netlist.outputs.pos)
    wanted = 0.02 * np.sin(inputs @ rng.normal(size=(3, size)))
    trainer = Trainer(
        plan=build_plan(netlist),
        chip=fabricate(netlist, SPREAD, seed=1),
        cost=Cost.of(spec),
        estimator=AsymEP(),
        optimiser=OptimiserSpec(step=0.03),
        train=Samples(inputs=inputs[:40], labels=wanted[:40]),
        test=Samples(inputs=inputs[40:], labels=wanted[40:]),
        classes=None,
        batch=8,
        epochs=8,
        seed=0,
        probe=10,
    )
    names = trainer.metric_names
    assert ("train_rms_error" in names, "test_rms_error" in names) == (True, True)
    assert not [name for name in names if "accuracy" in name]
    before = trainer.measure()["test_rms_error"]
    metrics = [trainer.epoch(number) for number in range(8)]
    after = metrics[-1]["test_rms_error"]
    assert after < 0.6 * before
    phases = trainer.phases()
    y = phases.outputs(phases.free(trainer.test.inputs))
    assert after == pytest.approx(np.sqrt(np.mean((y - wanted[40:]) ** 2)), rel=1e-9)
    # The cost is the same error in other units.
    cost = trainer.cost.conductance / 2 * size * after**2
    assert metrics[-1]["test_cost"] == pytest.approx(cost, rel=1e-9)


@pytest.fixture(scope="module")
def drawn(repo_root: Path) -> Case:
    """The deck with its roles at random conductances, all four corners as a batch."""
    entries = [
        TrainableResistors(name=name, patterns=(pattern,), g_min=1e-6, g_max=1e-4, initial="random")
        for name, pattern in (("hidden", "rw*"), ("output", "rv*"))
    ]
    netlist = with_roles(
        read_deck(repo_root / "netlists" / "mixer.cir").netlist,
        Roles(inputs=("va", "vb"), input_gain=(1.0, 1.0), outputs=(("out", "0"),), trainable=tuple(entries)),
        seed=3,
    )
    phases = Phases(
        plan=build_plan(netlist),
        values=netlist.values(),
        cost=ONE,
        settings=SolverSettings(check=False, relative_tolerance=1e-13),
    )
    inputs = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    return Case(phases, inputs, ONE.targets(np.array([0, 1, 1, 0]), 2))


def test_the_corrected_gradient_of_a_drawn_circuit_is_exact(drawn: Case) -> None:
    """VCVS, VCCS, diodes and loops: against central differences of the cost, device by device."""
    corrected = drawn.estimate(AsymEP(beta=1e-4))
    for crossbar in drawn.netlist.trainable:
        devices = np.flatnonzero(
            np.ones(crossbar.shape) if crossbar.mask is None else crossbar.mask.reshape(-1)
        )
        numeric = finite_differences(drawn.phases, drawn.inputs, drawn.targets, crossbar.name, devices)
        found = corrected.flat(crossbar.name)[devices]
        assert np.linalg.norm(found - numeric) < 1e-6 * np.linalg.norm(numeric)


def test_estimates_on_a_drawn_circuit_converge_as_they_should(drawn: Case) -> None:
    exact = drawn.estimate(Adjoint())
    assert relative(drawn.estimate(Dyadic()), exact) < 1e-12
    centred = [relative(drawn.estimate(AsymEP(beta=beta)), exact) for beta in (1e-2, 1e-3)]
    assert 50 < centred[0] / centred[1] < 200
    one_sided = [relative(drawn.estimate(AsymEP(beta=b, centred=False)), exact) for b in (1e-3, 1e-4)]
    assert 5 < one_sided[0] / one_sided[1] < 20


def test_a_nudge_alone_misses_the_gradient_at_every_beta(drawn: Case) -> None:
    exact = drawn.estimate(Adjoint())
    for beta in (1e-2, 1e-4):
        nudged = drawn.estimate(EP(beta=beta))
        assert relative(nudged, exact) > 0.5
        assert cosine(nudged, exact) < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_roles_give_the_gradient_of_the_resistors_themselves(seed: int) -> None:
    """Any circuit: with resistors as a crossbar, dC/dg is that of changing each resistor in its table."""
    case = random_case(seed, frozenset({"vccs", "vcvs", "cccs", "ccvs", "diode", "buffer"}), kind="quadratic")
    drawn = replace(case.netlist, crossbars=())
    rows = [k for k, name in enumerate(drawn.resistor.name) if name.startswith("join")]
    entry = TrainableResistors(name="all", patterns=("JOIN*",), g_min=1e-6, g_max=1e-3)
    ports = Roles(
        inputs=("in0", "in1"),
        input_gain=(1.0, -0.7),
        outputs=tuple(
            (drawn.node_names[p], drawn.node_names[n])
            for p, n in zip(drawn.outputs.pos, drawn.outputs.neg, strict=True)
        ),
        trainable=(entry,),
    )
    netlist = with_roles(drawn, ports)
    phases = replace(case.phases, plan=build_plan(netlist), values=netlist.values())
    again = Case(phases, case.inputs, case.targets)
    found = again.estimate(AsymEP(beta=1e-4)).crossbars["all"][0]

    plan = build_plan(drawn)

    def mean_cost(row: int, step: float) -> float:
        g = drawn.resistor.conductance.copy()
        g[row] += step
        changed = replace(drawn, resistor=replace(drawn.resistor, conductance=g))
        free = replace(case.phases, plan=plan, values=changed.values())
        return float(np.mean(free.cost.value(free.outputs(free.free(case.inputs)), case.targets)))

    crossbar = netlist.crossbars[0]
    numeric = np.zeros(crossbar.shape)
    for row in rows:
        j = list(crossbar.word_pos).index(drawn.resistor.pos[row])
        i = list(crossbar.bit).index(drawn.resistor.neg[row])
        h = 1e-3 * drawn.resistor.conductance[row]
        differences = [(mean_cost(row, k * h) - mean_cost(row, -k * h)) / (2 * k * h) for k in (1, 2)]
        numeric[j, i] = (4 * differences[0] - differences[1]) / 3
    assert np.linalg.norm(found - numeric) < 1e-6 * np.linalg.norm(numeric)
    assert len(flat(again.estimate(EP()))) == crossbar.shape[0] * crossbar.shape[1]
