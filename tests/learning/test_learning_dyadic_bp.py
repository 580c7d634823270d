"""Clocked steps against backpropagation written out in NumPy for the loaded circuit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from circuits import ELEMENTS, NEURONS, network_document
from learners import Case, case, chain_document, cosine, feedforward_document, flat, random_case, relative

from circuitsim.errors import NetlistError
from circuitsim.learning import Adjoint, Cost, DyadicBP
from circuitsim.netlist.tables import FloatArray

LEAK, INPUT_GAIN, BIAS = 30e-6, 0.3, 0.2


class Backpropagation:
    """Forward and backward pass of buffered tanh layers, from conductances alone.

    A node is loaded by everything that touches it: ``v_i = sum_j (g+ - g-)_ji r_j / D_i`` with
    ``D_i = leak + sum_j (g+ + g-)_ji``, and ``r_j = f(v_j)``.
    """

    def __init__(self, tried: Case, depth: int) -> None:
        self.crossbars = tried.phases.values.crossbars
        banks = tried.phases.values.banks
        names = ["u", *(f"l{k}" for k in range(depth))]
        self.links = [(f"{a}-{b}", f"{b}.bias") for a, b in itertools.pairwise(names)]
        self.amplifiers = [banks[f"l{k}.buffer"] for k in range(depth - 1)]
        self.cost = tried.phases.cost
        self.inputs, self.targets = tried.inputs, tried.targets

    def gradient(self) -> tuple[FloatArray, dict[str, tuple[FloatArray, FloatArray]]]:
        """Outputs, and the mean over the batch of dC/dg+ and dC/dg- by crossbar."""
        drive = [INPUT_GAIN * self.inputs]
        one = np.full((len(self.inputs), 1), BIAS)
        nodes, loads = [], []
        for layer, (link, bias) in enumerate(self.links):
            (gp, gm), (bp, bm) = self.crossbars[link], self.crossbars[bias]
            load = LEAK + (gp + gm).sum(axis=0) + (bp + bm).sum(axis=0)
            v = (drive[layer] @ (gp - gm) + one @ (bp - bm)) / load
            nodes.append(v)
            loads.append(load)
            if layer < len(self.amplifiers):
                a = self.amplifiers[layer]
                drive.append(a["saturation"] * np.tanh(a["gain"] * (v + a["offset"]) / a["saturation"]))
        y = nodes[-1]
        delta = self.slope(y)
        found = {}
        for layer in range(len(self.links) - 1, -1, -1):
            current = delta / loads[layer]
            for name, word in zip(self.links[layer], (drive[layer], one), strict=True):
                # dv_i/dg = (+-r_j - v_i) / D_i: the row loading is the second term.
                loading = (current * nodes[layer]).sum(axis=0)
                found[name] = (
                    (word.T @ current - loading) / len(y),
                    (-word.T @ current - loading) / len(y),
                )
            if layer:
                a = self.amplifiers[layer - 1]
                gp, gm = self.crossbars[self.links[layer][0]]
                slope = a["gain"] * (1 - (drive[layer] / a["saturation"]) ** 2)
                delta = (current @ (gp - gm).T) * slope
        return y, found

    def slope(self, y: FloatArray) -> FloatArray:
        if self.cost.kind == "quadratic":
            return self.cost.conductance * (y - self.targets)
        e = np.exp(y / self.cost.scale)
        return self.cost.conductance * self.cost.scale * (e / e.sum(axis=1, keepdims=True) - self.targets)

    def errors(self, tried: Case, estimator: DyadicBP) -> dict[str, float]:
        """Relative error of each crossbar's gradient."""
        found, (_, exact) = tried.estimate(estimator), self.gradient()
        assert set(found.crossbars) == set(exact)
        wrong = {}
        for name, halves in exact.items():
            reference = np.concatenate([half.ravel() for half in halves])
            off = np.linalg.norm(found.flat(name) - reference)
            wrong[name] = float(off / np.linalg.norm(reference))
        return wrong


def deep(depth: int, cost: str = "cross entropy") -> Case:
    # Wide enough, and with gain enough, for the signal to reach the first of eight layers.
    document = feedforward_document(
        [5, *([7] * (depth - 1)), 4], neuron={"kind": "tanh", "gain": 8.0, "saturation": 0.3}
    )
    return case(document, cost=cost)


@pytest.mark.parametrize("cost", ["squared error", "cross entropy"])
@pytest.mark.parametrize("depth", [2, 4, 8])
def test_backpropagation_is_reached_at_step_2L_and_not_before(depth: int, cost: str) -> None:
    tried = deep(depth, cost)
    exact = Backpropagation(tried, depth)
    assert max(exact.errors(tried, DyadicBP(steps=2 * depth)).values()) < 1e-12
    assert max(exact.errors(tried, DyadicBP()).values()) < 1e-12
    # Wrong by a lot until the very last step, and there in the first layer alone.
    for steps in range(1, 2 * depth):
        assert max(exact.errors(tried, DyadicBP(steps=steps)).values()) > 1e-2
    assert exact.errors(tried, DyadicBP(steps=2 * depth - 1))["u-l0"] > 1e-2
    # It stays: the pipeline is a fixed point.
    assert max(exact.errors(tried, DyadicBP(steps=2 * depth + 3)).values()) < 1e-12


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_outputs_of_the_reference_are_those_of_the_circuit(depth: int) -> None:
    tried = deep(depth)
    y, _ = Backpropagation(tried, depth).gradient()
    np.testing.assert_allclose(tried.phases.outputs(tried.free), y, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(tried.estimate(DyadicBP()).outputs, y, rtol=1e-12, atol=1e-15)


def test_error_falls_from_the_output_layer_backwards() -> None:
    """L = 4: each step after the fourth completes one more layer, counted from the output."""
    depth = 4
    tried = deep(depth)
    exact = Backpropagation(tried, depth)
    by_step = {steps: exact.errors(tried, DyadicBP(steps=steps)) for steps in range(1, 2 * depth + 1)}
    assert max(by_step[4].values()) > 0.1
    assert max(by_step[7].values()) > 0.02
    assert max(by_step[8].values()) < 1e-14
    for steps, errors in by_step.items():
        for layer, (link, _) in enumerate(exact.links):
            # The state is exact at L, the dual of the layer k places from the end k + 1 steps later.
            assert (errors[link] < 1e-12) == (steps >= depth + (depth - layer))


def test_total_error_before_the_last_step_is_large() -> None:
    tried = deep(4)
    exact = tried.estimate(Adjoint())
    errors = [relative(tried.estimate(DyadicBP(steps=steps)), exact) for steps in range(1, 9)]
    assert min(errors[:5]) > 1e-2
    assert errors[6] > 1e-4
    assert errors[7] < 1e-9


def test_nothing_has_moved_before_the_first_step_reaches_a_layer() -> None:
    tried = deep(4)
    first = tried.estimate(DyadicBP(steps=1))
    # After one step only the first layer knows the inputs; no error signal has come back yet.
    assert np.all(first.flat("u-l0") == 0)
    assert np.all(first.flat("l0-l1") == 0)
    assert np.abs(first.flat("l2-l3")).max() > 0


@pytest.mark.parametrize(
    "neuron",
    [
        "linear",
        "tanh",
        "diode",
        "relu",
    ],
)
def test_two_steps_a_layer_are_exact_for_every_neuron(neuron: str) -> None:
    tried = case(feedforward_document([3, 6, 5, 4], neuron=NEURONS[neuron]))
    exact = tried.estimate(Adjoint())
    assert relative(tried.estimate(DyadicBP(steps=6)), exact) < 1e-9
    assert relative(tried.estimate(DyadicBP(steps=5)), exact) > 1e-6


def test_two_steps_a_layer_are_exact_through_virtual_grounds_and_masks() -> None:
    document = feedforward_document([3, 6, 5, 4])
    document["synapses"][1] |= {"virtual_ground": True, "connectivity": {"density": 0.7}}
    document["layers"]["l1"]["leak"] = "400u"
    tried = case(document)
    exact = tried.estimate(Adjoint())
    assert relative(tried.estimate(DyadicBP()), exact) < 1e-9
    assert relative(tried.estimate(DyadicBP(steps=5)), exact) > 1e-6


def test_skips_take_the_longest_way() -> None:
    document = feedforward_document([3, 6, 5, 4])
    document["synapses"].append({"from": "l0", "to": "l2", "name": "skip"})
    tried = case(document)
    assert tried.phases.plan.layered.structure.depth == 3
    assert relative(tried.estimate(DyadicBP()), tried.estimate(Adjoint())) < 1e-9


@pytest.mark.parametrize(
    "document",
    [
        network_document(recurrent=True),
        network_document(synapse="amplifier"),
        network_document(synapse="resistive"),
        chain_document([(1.0, 0.5)]),
    ],
    ids=["recurrent", "amplifier", "resistive", "chain"],
)
def test_networks_with_feedback_are_refused(document: dict[str, Any]) -> None:
    tried = case(document)
    with pytest.raises(NetlistError, match="feedforward") as error:
        tried.estimate(DyadicBP())
    assert "dyadic" in str(error.value)


def test_labels_and_phases() -> None:
    assert (DyadicBP().label, DyadicBP(steps=7).label) == ("dyadic-bp", "dyadic-bp-7")
    found = deep(2).estimate(DyadicBP())
    assert (found.phases, found.beta) == (("clocked",), None)
    assert np.isfinite(flat(found)).all()


def test_backpropagation_agrees_with_the_cost_it_differentiates() -> None:
    """The reference against its own cost: a small step of one conductance, no simulator involved."""
    tried = deep(4)
    reference = Backpropagation(tried, 4)
    y, gradient = reference.gradient()
    cost = Cost(kind="softmax", conductance=5e-6, scale=0.2)
    step = 1e-9
    for name, j, i in (("u-l0", 2, 3), ("l1-l2", 4, 1), ("l2-l3", 0, 2), ("l0.bias", 0, 5)):
        values = []
        for sign in (1, -1):
            changed = Backpropagation(tried, 4)
            plus, minus = reference.crossbars[name]
            plus = plus.copy()
            plus[j, i] += sign * step
            changed.crossbars = {**reference.crossbars, name: (plus, minus)}
            values.append(cost.value(changed.gradient()[0], tried.targets).mean())
        numeric = (values[0] - values[1]) / (2 * step)
        assert numeric == pytest.approx(gradient[name][0][j, i], rel=1e-4)
    assert cosine(tried.estimate(DyadicBP()), tried.estimate(Adjoint())) == pytest.approx(1.0)
    assert y.shape == (3, 4)


def test_a_circuit_without_layers_cannot_be_clocked() -> None:
    tried = random_case(0, ELEMENTS, kind="quadratic")
    with pytest.raises(NetlistError, match=r"dyadic_bp clocks a network of layers: .*Choose dyadic, asymep"):
        tried.estimate(DyadicBP())
