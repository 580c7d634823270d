"""Learning through the Substrate protocol alone: any object that satisfies it will do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from circuitsim.chip import fabricate
from circuitsim.chip.substrate import (
    Capabilities,
    ConverterLimits,
    CrossbarLimits,
    NudgeLimits,
    Substrate,
    Terminals,
)
from circuitsim.compiler import compile_network
from circuitsim.errors import InstrumentError
from circuitsim.learning import EP, Adjoint, AsymEP, Cost, Dyadic, OptimiserSpec, Samples, SubstrateTrainer
from circuitsim.learning.in_the_loop import check_substrate
from circuitsim.netlist import Nudge
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network
from circuitsim.solver import build_plan

NETWORK: dict[str, Any] = {
    "name": "board",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"u": {"size": 4}},
    "layers": {
        "output": {"size": 2, "neuron": {"kind": "linear"}, "leak": "100u", "bias": {"voltage": 0.5}},
    },
    "synapses": [{"from": "u", "to": "output"}],
    "output": {"layer": "output"},
    "cost": {"kind": "squared_error", "conductance": "50u", "low": -0.1, "high": 0.1},
}
SPEC = parse_network(NETWORK)
NETLIST = compile_network(SPEC, seed=2)
COST = Cost.of(SPEC)


class Board:
    """A board of somebody else's, which knows no word of this package: one layer, solved by hand.

    Each output holds ``v = sum g w / (sum g + leak)``, w being the voltages of its word lines. A nudge is
    a resistor to the target.
    """

    def __init__(self) -> None:
        self.terminals = Terminals.of(NETLIST)
        self.g: dict[str, tuple[FloatArray, FloatArray]] = {}
        self.calls: list[str] = []
        self.free: FloatArray | None = None
        self.volts: FloatArray | None = None
        self.slope: FloatArray | None = None
        self.capabilities = Capabilities(
            identity="somebody,board,1,0",
            circuit="board",
            inputs=4,
            outputs=2,
            readings=self.terminals.names,
            crossbars=tuple(
                CrossbarLimits(name=c.name, shape=c.shape, differential=True, low=1e-6, high=1e-4)
                for c in NETLIST.trainable
            ),
            dac=ConverterLimits(bits=20, low=-1.0, high=1.0),
            adc=ConverterLimits(bits=20, low=-1.0, high=1.0),
            largest_gain=1,
            nudge=NudgeLimits(kind="quadratic", conductance=50e-6, scale=1.0, largest_beta=2.0),
            phases=("free", "nudged", "corrected"),
            settling_time=1e-6,
            most_readings=1,
            most_samples=50,
            updates_itself=True,
        )

    def program(self, conductance: Any) -> Any:
        self.calls.append("program")
        self.g |= conductance
        return conductance

    def _solve(self, volts: FloatArray, load: float, pull: FloatArray | float) -> FloatArray:
        total = np.full(2, 100e-6 + load)
        current = np.zeros((len(volts), 2)) + pull
        for name, words in (("u-output", volts), ("output.bias", np.full((len(volts), 1), 0.5))):
            plus, minus = self.g[name]
            total += (plus + minus).sum(axis=0)
            current += words @ (plus - minus)
        return current / total

    def relax(
        self, inputs: FloatArray, phase: str, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        self.calls.append(phase)
        assert len(inputs) <= 50
        if nudge is None:
            self.free, self.volts = self._solve(inputs, 0.0, 0.0), inputs
            return self.free
        assert self.free is not None
        load = nudge.beta * nudge.conductance
        moved = self._solve(inputs, load, load * nudge.target) - self.free
        self.slope = moved / nudge.beta
        return moved

    def update(self, rates: Mapping[str, float]) -> int:
        self.calls.append("update")
        assert self.free is not None
        assert self.volts is not None
        assert self.slope is not None
        for name, words in (("u-output", self.volts), ("output.bias", np.full((len(self.volts), 1), 0.5))):
            halves = []
            for g, sign in zip(self.g[name], (1.0, -1.0), strict=True):
                drop = sign * words[:, :, None] - self.free[:, None, :]
                slope = (-self.slope[:, None, :] * drop).mean(axis=0)
                halves.append(np.clip(g - rates[name] * slope, 1e-6, 1e-4))
            self.g[name] = halves[0], halves[1]
        return 1

    def calibrate(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.calls.append("close")


def samples(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(-1, 1, (count, 4))
    return Samples(inputs=inputs, labels=(inputs @ [1.0, -1.0, 0.5, 0.0] > 0).astype(np.int64))


def trainer(board: Substrate, **changes: Any) -> SubstrateTrainer:
    options: dict[str, Any] = {
        "estimator": EP(beta=0.1),
        "optimiser": OptimiserSpec(step=0.05),
        "updates": "host",
        **changes,
    }
    return SubstrateTrainer(
        substrate=board,
        model=fabricate(NETLIST),
        plan=build_plan(NETLIST),
        cost=COST,
        train=samples(200, 0),
        test=samples(120, 1),
        classes=2,
        batch=20,
        epochs=6,
        seed=0,
        **options,
    )


class TestBoardOfSomebodyElse:
    def test_learns(self) -> None:
        board = Board()
        learner = trainer(board)
        first = learner.measure()["test_accuracy"]
        for epoch in range(6):
            metrics = learner.epoch(epoch)
        assert metrics["test_accuracy"] > 0.93 > first + 0.1
        # The ideal circuit that the host has in mind is this board.
        assert metrics["cosine/u-output"] > 0.999
        assert metrics["programming_error"] == 0.0
        assert set(metrics) == set(learner.metric_names)
        assert np.isnan(metrics["kcl_residual"])

    def test_learns_by_itself(self) -> None:
        board = Board()
        learner = trainer(board, updates="board", optimiser=OptimiserSpec(kind="sgd", step=2.0))
        for epoch in range(6):
            metrics = learner.epoch(epoch)
        assert metrics["test_accuracy"] > 0.9
        assert board.calls.count("program") == 1
        assert board.calls.count("update") == 60

    def test_sees_no_more_samples_than_it_takes(self) -> None:
        board = Board()
        trainer(board).measure()
        assert "free" in board.calls  # and the board asserts that no call had more than 50

    def test_a_batch_in_parts_is_the_batch(self) -> None:
        """Of a board that takes few samples at once the gradient is the same, and so is what it learns."""
        found = []
        for most in (50, 7):
            board = Board()
            board.capabilities = replace(board.capabilities, most_samples=most)
            learner = trainer(board)
            gradient = learner.step(np.arange(20))
            found.append((gradient, board.g))
        (whole, g), (parts, h) = found
        assert parts.cost == pytest.approx(whole.cost, rel=1e-12)
        np.testing.assert_allclose(parts.outputs, whole.outputs, rtol=1e-12)
        for name in g:
            for a, b in zip(whole.crossbars[name], parts.crossbars[name], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * np.abs(a).max())
            for a, b in zip(g[name], h[name], strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9)

    def test_is_resumed_by_programming_it_again(self) -> None:
        """It has no state to bring back, and needs none: it goes on to the same numbers."""
        whole = trainer(Board())
        for epoch in range(4):
            expected = whole.epoch(epoch)
        first = trainer(Board())
        for epoch in range(2):
            first.epoch(epoch)
        second = trainer(Board())
        second.restore(first.state())
        for epoch in (2, 3):
            metrics = second.epoch(epoch)
        for name, value in expected.items():
            if name != "seconds":
                np.testing.assert_equal(metrics[name], value, err_msg=name)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"inputs": 5}, r"inputs: holds another circuit than board \(got 5\)"),
            ({"outputs": 3}, "outputs: holds another circuit"),
            ({"readings": ("a", "b")}, "readings: holds another circuit"),
            ({"crossbars": ()}, "crossbars: holds another circuit"),
        ],
    )
    def test_another_circuit(self, change: dict[str, Any], words: str) -> None:
        board = Board()
        board.capabilities = replace(board.capabilities, **change)
        with pytest.raises(InstrumentError, match=words):
            check_substrate(board, NETLIST, COST, EP())

    def test_an_estimator_that_needs_what_it_cannot_form(self) -> None:
        with pytest.raises(InstrumentError, match="cannot form the phase that the estimator dyadic needs"):
            trainer(Board(), estimator=Dyadic())
        with pytest.raises(InstrumentError, match="no phase of a circuit"):
            trainer(Board(), estimator=Adjoint())

    def test_updates_that_it_cannot_make(self) -> None:
        board = Board()
        board.capabilities = replace(board.capabilities, updates_itself=False)
        with pytest.raises(InstrumentError, match=r"cannot learn by itself\. Use updates: host"):
            trainer(board, updates="board")
        board.capabilities = replace(board.capabilities, host_writes=False, updates_itself=True)
        with pytest.raises(InstrumentError, match="takes no conductances from the host"):
            trainer(board)

    def test_an_age_that_it_cannot_come_back_from(self) -> None:
        with pytest.raises(InstrumentError, match="cannot be measured at an age"):
            trainer(Board(), age=10.0)

    def test_the_host_asks_for_nothing_out_of_range(self) -> None:
        """Before anything is sent: the board is not even called."""
        board = Board()
        learner = trainer(board, estimator=AsymEP(beta=3.0))
        learner.substrate.program(learner.model.target)
        with pytest.raises(InstrumentError, match="at most 2, and not 0"):
            learner.estimator.estimate(learner.phases, learner.train.inputs[:4], np.zeros((4, 2)))
        assert "corrected" not in board.calls
        with pytest.raises(InstrumentError, match=r"within -1 \.\.\. 1 V"):
            learner.phases.free(np.full((1, 4), 1.5))
        assert board.calls.count("free") == 1
