"""The peers compute what they say: Kirchhoff's law, finite differences, the circuits they are twins of."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import circuitsim as cs  # noqa: E402
from circuitsim.learning import OptimiserSpec, Samples, Trainer  # noqa: E402
from circuitsim.network import parse_network  # noqa: E402
from circuitsim.seeds import stream  # noqa: E402
from peers.backprop import PlainNetwork  # noqa: E402
from peers.resistive import PublishedStyle, ResistiveNetwork, random_conductances  # noqa: E402
from peers.twins import twin_of  # noqa: E402

SIZES = [(8, 5, 3), (8, 6, 5, 3), (8, 4, 6, 5, 3)]
BATCH = 4
UNBOUNDED = {"g_min": -math.inf, "g_max": math.inf}
FREE = {"nudge_conductance": 0.7, "beta": 1e-4, "sweeps": 400} | UNBOUNDED


def _batch(sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((BATCH, sizes[0] // 2), generator=generator, dtype=torch.float64)
    return torch.cat([x, -x], 1), torch.rand((BATCH, sizes[-1]), generator=generator, dtype=torch.float64)


def _biases(sizes):
    generator = torch.Generator().manual_seed(7)
    return [torch.rand((2, size), generator=generator, dtype=torch.float64) for size in sizes[1:]]


def _settled(weights, biases, voltages, inputs):
    """Node voltages, one node and one sample at a time until nothing moves."""
    sizes = [len(inputs[0]), *(w.shape[1] for w in weights)]
    nodes = [(k, i) for k in range(1, len(sizes)) for i in range(sizes[k])]
    states = []
    for x in inputs:
        layers = [np.array(x), *(np.zeros(n) for n in sizes[1:])]
        for _ in range(2000):
            before = [v.copy() for v in layers]
            for k, i in nodes:
                current, total = layers[k - 1] @ weights[k - 1][:, i], weights[k - 1][:, i].sum()
                if k + 1 < len(sizes):
                    current += weights[k][i] @ layers[k + 1]
                    total += weights[k][i].sum()
                if biases:
                    current += voltages @ biases[k - 1][:, i]
                    total += biases[k - 1][:, i].sum()
                v = current / total
                if k + 1 < len(sizes):
                    v = max(v, 0.0) if i % 2 == 0 else min(v, 0.0)
                layers[k][i] = v
            if max(np.abs(a - b).max() for a, b in zip(before, layers, strict=True)) < 1e-15:
                break
        states.append(layers[1:])
    return [np.array(layer) for layer in zip(*states, strict=True)]


def _cost(weights, biases, voltages, inputs, targets):
    y = _settled(weights, biases, voltages, inputs)[-1]
    return 0.5 * FREE["nudge_conductance"] * ((y - targets) ** 2).sum(1).mean()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_free_state_is_the_settled_circuit(sizes, biased):
    weights = random_conductances(sizes, 1.0, 3, torch.float64)
    biases, voltages = (_biases(sizes), (0.5, -0.5)) if biased else ((), ())
    inputs, _ = _batch(sizes)
    network = ResistiveNetwork(weights, batch=BATCH, biases=biases, bias_voltages=voltages, **FREE)
    states = network.free_states(inputs)
    expected = _settled([w.numpy() for w in weights], [b.numpy() for b in biases], voltages, inputs.numpy())
    for state, reference in zip(states, expected, strict=True):
        np.testing.assert_allclose(state.numpy(), reference, rtol=0, atol=1e-13)
    assert network.residual(inputs, states) < 1e-13
    disturbed = [*states[:-1], states[-1] + 1e-3]
    assert network.residual(inputs, disturbed) > 1e-5
    on = torch.cat([v.flatten() for v in states[:-1]]) != 0
    assert 0.2 < on.double().mean() < 0.9, "both states of the diodes must occur"


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_step_follows_finite_differences(sizes, biased):
    """The conductances move by -rate times the slope of the settled cost."""
    weights = random_conductances(sizes, 1.0, 3, torch.float64)
    biases, voltages = (_biases(sizes), (0.5, -0.5)) if biased else ((), ())
    inputs, targets = _batch(sizes)
    network = ResistiveNetwork(weights, batch=BATCH, biases=biases, bias_voltages=voltages, **FREE)
    network.step(inputs, targets, 1.0)
    moved = [w - network.conductance(k) for k, w in enumerate(weights)]
    moved += [b - network.biases[k].t() for k, b in enumerate(biases)]
    arrays = [w.numpy().copy() for w in weights], [b.numpy().copy() for b in biases]
    rng, h = np.random.default_rng(0), 1e-6
    for g, slope in zip([*arrays[0], *arrays[1]], moved, strict=True):
        for _ in range(4):
            entry = tuple(rng.integers(n) for n in g.shape)
            kept, costs = g[entry], []
            for g[entry] in (kept + h, kept - h):
                costs.append(_cost(*arrays, voltages, inputs.numpy(), targets.numpy()))
            g[entry] = kept
            difference = (costs[0] - costs[1]) / (2 * h)
            floor = 1e-9 * (1 + float(slope.abs().max()))
            assert slope[entry] == pytest.approx(difference, rel=1e-5, abs=floor)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("broadcast", [False, True])
def test_published_style_and_mirrored_take_the_same_steps(sizes, broadcast):
    """Same sweeps, same states; settled, the two forms of the gradient differ by beta^2 alone."""
    settings = {"nudge_conductance": 0.7, "beta": 1e-4, "g_min": 0.0, "g_max": 0.9, "sweeps": 60}
    weights = random_conductances(sizes, 1.0, 5, torch.float64)
    lean = ResistiveNetwork(weights, batch=BATCH, **settings)
    mirrored = ResistiveNetwork(weights, batch=BATCH, mirrored=True, **settings)
    published = PublishedStyle(weights, broadcast=broadcast, **settings)
    for seed in range(3):
        inputs, targets = _batch(sizes, seed)
        y = lean.step(inputs, targets, 3.0)
        y_mirrored = mirrored.step(inputs[:, : sizes[0] // 2], targets, 3.0)
        torch.testing.assert_close(y_mirrored, y, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(published.step(inputs, targets, 3.0), y, rtol=1e-6, atol=1e-8)
    for k, start in enumerate(weights):
        g = lean.conductance(k)
        assert (g - start.clamp(0.0, 0.9)).abs().max() > 1e-3
        assert 0.0 <= g.min() <= g.max() <= 0.9
        torch.testing.assert_close(mirrored.conductance(k), g, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(published.conductance(k), g, rtol=0, atol=1e-7)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("sweeps", [1, 2, 3])
def test_few_sweeps_leave_the_same_error(sizes, sweeps):
    """What one pair of phases does to the conductances before it has settled."""
    settings = {"nudge_conductance": 0.7, "beta": 0.1, "sweeps": sweeps} | UNBOUNDED
    weights = random_conductances(sizes, 1.0, 5, torch.float64)
    lean = ResistiveNetwork(weights, batch=BATCH, **settings)
    published = PublishedStyle(weights, **settings)
    inputs, targets = _batch(sizes)
    y = lean.step(inputs, targets, 0.0).clone()
    torch.testing.assert_close(published.step(inputs, targets, 0.0), y, rtol=1e-12, atol=1e-13)
    nudged = []
    for beta in (settings["beta"], -settings["beta"]):
        states = lean.free_states(inputs)
        published._relax(inputs, states, list(range(len(states)))[::-1], targets, beta)
        nudged.append(states)
    lean.step(inputs, targets, 0.0)
    for k, (plus, minus) in enumerate(zip(*nudged, strict=True)):
        torch.testing.assert_close(lean._s[k], plus - minus, rtol=1e-10, atol=1e-12)


def test_plain_network_descends_its_gradient():
    network = PlainNetwork([6, 5, 3], rate=0.1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((8, 6), generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (8,), generator=generator)

    def cost():
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(network.network(inputs), labels))

    weight, before = network.network[0].weight, network.network[0].weight.detach().clone()
    with torch.no_grad():
        weight[2, 3] += 1e-6
        high = cost()
        weight[2, 3] -= 2e-6
        low = cost()
        weight.copy_(before)
    network.step(inputs, labels)
    slope = float((before - weight.detach())[2, 3]) / 0.1
    assert slope == pytest.approx((high - low) / 2e-6, rel=1e-6)


DOCUMENT = {
    "name": "twin",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"u": {"size": 7, "gain": 0.1}},
    "layers": {
        "a": {
            "size": 6,
            "neuron": {"kind": "tanh", "gain": 16, "saturation": 0.2},
            "leak": "30u",
            "bias": {"voltage": 0.1},
        },
        "b": {"size": 5, "neuron": {"kind": "tanh", "gain": 9, "saturation": 0.3}},
        "y": {"size": 3, "neuron": {"kind": "linear"}, "bias": {"voltage": 0.1}},
    },
    "synapses": [{"from": "u", "to": "a"}, {"from": "a", "to": "b"}, {"from": "b", "to": "y"}],
    "output": {"layer": "y"},
    "cost": {"kind": "cross_entropy", "conductance": "100u", "scale": "20mV"},
}


def test_twin_learns_as_the_circuit_does():
    """An epoch of Adam on the adjoint's gradient: same conductances, same cost, to rounding."""
    spec = parse_network(DOCUMENT)
    netlist = cs.compile_network(spec, seed=2)
    rng = np.random.default_rng(4)
    samples = Samples(inputs=rng.normal(size=(24, 7)), labels=rng.integers(0, 3, 24))
    trainer = Trainer(
        plan=cs.build_plan(netlist),
        chip=cs.fabricate(netlist),
        cost=cs.Cost.of(spec),
        estimator=cs.Adjoint(),
        optimiser=OptimiserSpec(step=0.02),
        train=samples,
        test=samples,
        classes=3,
        batch=8,
        epochs=1,
        seed=3,
    )
    start = {name: [np.array(g) for g in pair] for name, pair in trainer.chip.target.items()}
    twin = twin_of(trainer.chip, spec)
    metrics = trainer.epoch(0)
    lines, labels = torch.from_numpy(0.1 * samples.inputs), torch.from_numpy(samples.labels)
    parts = [torch.from_numpy(rows) for rows in np.array_split(stream(3, "shuffle", 0).permutation(24), 3)]
    assert twin.epoch(lines, labels, parts, 0.02) == pytest.approx(metrics["train_cost"], rel=1e-9)
    for ours, theirs in zip(twin_of(trainer.chip, spec).parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-7, atol=0)
    moved = [np.abs(trainer.chip.target[name][0] - pair[0]).max() for name, pair in start.items()]
    assert min(moved) > 3e-6
    assert twin.accuracy(lines, labels) == metrics["test_accuracy"]
