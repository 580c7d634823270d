"""The general method on 784-32-10 written out as plain elements: one sample, planned once.

Times are reported, not asserted: ``pytest tests/benchmarks -n 0 -s``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from circuitsim.compiler import compile_network
from circuitsim.netlist import Netlist, flatten
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.solver import OperatingPoint, Plan, build_plan, solve

DOCUMENT = {
    "name": "mnist",
    "inputs": {"pixels": {"size": 784, "gain": "100m"}},
    "layers": {
        "hidden": {"size": 32, "neuron": {"kind": "tanh", "gain": 16, "saturation": "200m"}},
        "output": {"size": 10, "neuron": {"kind": "diode", "offset": "100m"}},
    },
    "synapses": [{"from": "pixels", "to": "hidden"}, {"from": "hidden", "to": "output"}],
    "output": {"layer": "output"},
    "cost": {"kind": "cross_entropy"},
}


@pytest.fixture(scope="module")
def blocks() -> Netlist:
    return compile_network(parse_network(DOCUMENT), seed=0)


@pytest.fixture(scope="module")
def plan(blocks: Netlist) -> Plan:
    found = build_plan(flatten(blocks).netlist)
    # 50 816 resistors, no block left.
    assert len(found.netlist.resistor) == 2 * (784 * 32 + 32 * 10)
    assert not found.netlist.blocks
    assert found.method == "general"
    return found


@pytest.fixture(scope="module")
def sample() -> FloatArray:
    return np.random.default_rng(0).uniform(-1, 1, (1, 784))


def assert_solved(point: OperatingPoint, blocks: Netlist, sample: FloatArray) -> None:
    """KCL by the independent check, and the layered method's answer."""
    assert point.converged
    assert point.method == "general"
    assert point.relative_residual[0] < 1e-12
    other = solve(build_plan(blocks), blocks.values(), sample)
    assert other.method == "layered"
    shared = point.node_voltage[:, : blocks.n_nodes]
    np.testing.assert_allclose(shared, other.node_voltage, rtol=0, atol=1e-9)
    assert np.abs(shared).max() > 0.05


def best(run: Callable[[], object], rounds: int = 7) -> float:
    """Shortest of several times [s]."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def test_newton_solve_of_one_sample(
    benchmark: BenchmarkFixture, plan: Plan, blocks: Netlist, sample: FloatArray
) -> None:
    values = plan.netlist.values()
    solve(plan, values, sample)
    point = benchmark(solve, plan, values, sample)
    assert_solved(point, blocks, sample)
    benchmark.extra_info["newton_steps"] = int(point.iterations[0])


def test_newton_solve_against_scipy_on_the_same_matrix(
    plan: Plan, blocks: Netlist, sample: FloatArray
) -> None:
    """One factor and solve by SuperLU, in the same run, is the yardstick."""
    values = plan.netlist.values()
    point = solve(plan, values, sample)
    assert_solved(point, blocks, sample)
    dense = plan.general.small_signal(values, point.node_voltage[0])
    matrix = csc_matrix(dense)
    load = np.random.default_rng(1).normal(size=matrix.shape[0])
    residual = dense @ splu(matrix).solve(load) - load
    assert np.abs(residual).max() < 1e-9 * np.abs(load).max()
    ours = best(lambda: solve(plan, values, sample))
    theirs = best(lambda: splu(matrix).solve(load))
    steps = int(point.iterations[0])
    print(
        f"\ngeneral, 784-32-10 flat ({matrix.shape[0]} unknowns, {matrix.nnz} entries): "
        f"{1e3 * ours:.2f} ms for {steps} Newton steps with check; "
        f"splu factor and solve {1e3 * theirs:.2f} ms; "
        f"ratio {ours / theirs:.1f}, {ours / theirs / steps:.1f} per step"
    )
