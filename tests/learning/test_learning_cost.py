"""Costs: their currents are their slopes, labels become targets, and errors say which label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from circuits import network_document
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.errors import SpecError
from circuitsim.learning import Cost
from circuitsim.netlist.models import softmax
from circuitsim.network import parse_network

COSTS = [
    Cost(kind="quadratic", conductance=2e-6, high=0.3, low=-0.1),
    Cost(kind="softmax", conductance=3e-6, scale=0.05),
]


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.kind)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_nudge_current_is_the_slope_of_the_cost(cost: Cost, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.uniform(-0.3, 0.3, (3, 4))
    targets = rng.dirichlet(np.ones(4), 3)
    beta, step = 0.7, 1e-5
    current = cost.nudge(targets, beta).current(y)
    for k in range(4):
        change = np.zeros(4)
        change[k] = step
        slope = (cost.value(y + change, targets) - cost.value(y - change, targets)) / (2 * step)
        np.testing.assert_allclose(current[:, k], beta * slope, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("total", [1.0, 0.5])
def test_the_softmax_cost_is_cross_entropy_in_watts(total: float) -> None:
    cost = COSTS[1]
    y = np.array([[0.1, -0.2, 0.3]])
    targets = total * np.array([[0.2, 0.5, 0.3]])
    expected = -3e-6 * 0.05**2 * (targets * np.log(softmax(y, 0.05))).sum()
    np.testing.assert_allclose(cost.value(y, targets), [expected], rtol=1e-12)


def test_the_softmax_cost_stands_large_voltages() -> None:
    cost = Cost(kind="softmax", conductance=1.0, scale=1e-3)
    y = np.array([[5.0, 0.0], [0.0, 5.0]])
    targets = np.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(cost.value(y, targets), [0.0, 1e-6 * 5000], rtol=1e-12)
    np.testing.assert_allclose(cost.nudge(targets, 1.0).current(y), [[0, 0], [-1e-3, 1e-3]])


def test_the_quadratic_cost_is_half_the_conductance_times_the_square() -> None:
    cost = COSTS[0]
    value = cost.value(np.array([[0.1, 0.4], [0.0, 0.0]]), np.array([[0.3, 0.4], [0.0, 1.0]]))
    np.testing.assert_allclose(value, [1e-6 * 0.04, 1e-6], rtol=1e-12)


def test_labels_become_targets() -> None:
    labels = np.array([2, 0, 2])
    np.testing.assert_array_equal(COSTS[1].targets(labels, 3), [[0, 0, 1], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        COSTS[0].targets(labels, 3), [[-0.1, -0.1, 0.3], [0.3, -0.1, -0.1], [-0.1, -0.1, 0.3]]
    )
    assert COSTS[1].targets(np.array([], dtype=int), 3).shape == (0, 3)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [10]])
@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.kind)
def test_labels_outside_the_classes_are_refused(cost: Cost, labels: list[int]) -> None:
    with pytest.raises(SpecError, match="labels must be 0 to 2") as error:
        cost.targets(np.array(labels), 3)
    assert error.value.field == "labels"
    assert error.value.value == (min(labels), max(labels))


def test_probabilities_sum_to_one_and_favour_the_largest_output() -> None:
    y = np.array([[0.05, 0.3, -0.1], [0.2, 0.0, 0.1]])
    for cost in COSTS:
        p = cost.probability(y)
        np.testing.assert_allclose(p.sum(axis=1), 1.0)
        np.testing.assert_array_equal(p.argmax(axis=1), [1, 0])
    np.testing.assert_allclose(COSTS[1].probability(y), softmax(y, 0.05))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            {"kind": "cross_entropy", "conductance": "4u", "scale": "20m"},
            Cost(kind="softmax", conductance=4e-6, scale=0.02),
        ),
        (
            {"kind": "squared_error", "conductance": "4u", "high": "50m", "low": "-50m"},
            Cost(kind="quadratic", conductance=4e-6, high=0.05, low=-0.05),
        ),
    ],
)
def test_a_network_says_its_cost(document: dict[str, Any], expected: Cost) -> None:
    found = Cost.of(parse_network(network_document() | {"cost": document}))
    assert found.kind == expected.kind
    for name in ("conductance", "scale", "high", "low"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
