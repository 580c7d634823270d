"""Corrected phases beside nudged ones on MNIST, over seeds: test accuracy after the first and last epoch.

Run it from the repository's root, with the data in the cache or in CIRCUITSIM_DATA:

    python tests/benchmarks/mnist_estimators.py [buffered] [feedback] [twin] [deep] [--epochs N] [--seeds N]
                                                [--samples N] [--hidden N] [--json FILE]

    buffered    784-N-10, netlists/mnist.yaml: feedforward. Corrected, nudged-only, adjoint
    feedback    the same with buffered feedback from the output to the hidden layer, that starts as the
                transpose of the forward crossbar: plain equilibrium propagation starts nearly right, and is
                wrong as soon as the two differ. Corrected, nudged-only, adjoint
    twin        784-N-10, netlists/mnist.yaml: corrected phases beside backpropagation by PyTorch through the
                same equations, same start, same order of samples
    deep        784-512-256-10, netlists/mnist-deep.yaml: dyadic backpropagation in 2 L clock steps beside
                PyTorch likewise

Every estimator of a seed starts from the same conductances and sees the samples in the same order. Spread
is the standard deviation over seeds. float32, Adam as in runs/mnist-buffered.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import circuitsim as cs
from circuitsim.data import load_mnist
from circuitsim.learning import EP, Adjoint, AsymEP, DyadicBP, OptimiserSpec, Samples, Trainer
from circuitsim.learning.estimators import Estimator
from circuitsim.network import NetworkSpec, parse_network

SETTINGS = cs.SolverSettings(check=False, precision="float32")
BATCH, STEP, DECAY = 64, 1e-3, 0.85
ESTIMATORS: tuple[Estimator, ...] = (AsymEP(beta=0.01), EP(beta=0.01), Adjoint())


def network(kind: str, hidden: int) -> NetworkSpec:
    """The network of a table."""
    name = "mnist-deep" if kind == "deep" else "mnist"
    document: dict[str, Any] = yaml.safe_load(Path(f"netlists/{name}.yaml").read_text())
    if kind != "deep":
        document["layers"]["hidden"]["size"] = hidden
    if kind == "feedback":
        document["synapses"].append(
            {"from": "output", "to": "hidden", "kind": "buffered", "name": "feedback"}
        )
        # What comes back must count beside 784 pixels, and loop gain must leave one operating point.
        document["layers"]["output"]["neuron"] = {"kind": "linear", "gain": 2}
    return parse_network(document)


def trainer(
    spec: NetworkSpec, estimator: Estimator, samples: tuple[Samples, Samples], seed: int, epochs: int
) -> Trainer:
    """A trainer on an ideal die, from the seed's conductances."""
    netlist = cs.compile_network(spec, seed=seed)
    chip = cs.fabricate(netlist, seed=seed)
    if "feedback" in chip.target:
        forward = chip.target["hidden-output"]
        assert forward[1] is not None
        chip = chip.programmed({"feedback": (forward[0].T, forward[1].T)})
    schedule = {"kind": "exponential", "decay": DECAY}
    made = Trainer(
        plan=cs.build_plan(netlist),
        chip=chip,
        cost=cs.Cost.of(spec),
        estimator=estimator,
        optimiser=OptimiserSpec.model_validate({"kind": "adam", "step": STEP, "schedule": schedule}),
        train=samples[0],
        test=samples[1],
        classes=10,
        batch=BATCH,
        epochs=epochs,
        seed=seed,
        settings=SETTINGS,
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", nargs="*", default=["buffered", "feedback"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    data = load_mnist(pixels="unit", train_samples=asked.samples)
    samples = (
        Samples(inputs=data.train_inputs, labels=data.train_labels),
        Samples(inputs=data.test_inputs, labels=data.test_labels),
    )
    results: list[dict[str, Any]] = []
    for kind in asked.tables:
        spec = network(kind, asked.hidden)
        if kind in ("deep", "twin"):
            estimator = DyadicBP() if kind == "deep" else AsymEP(beta=0.01)
            results += beside_torch(kind, spec, estimator, samples, asked.epochs, asked.seeds)
            continue
        print(f"{kind}, {asked.samples} samples, {asked.seeds} seeds: test accuracy [%]", flush=True)
        for estimator in ESTIMATORS:
            curves = []
            started = time.perf_counter()
            for seed in range(asked.seeds):
                run = trainer(spec, estimator, samples, seed, asked.epochs)
                curves.append([run.epoch(epoch)["test_accuracy"] for epoch in range(asked.epochs)])
                print(
                    f"    {estimator.label}, seed {seed}: {100 * curves[-1][-1]:.2f}",
                    file=sys.stderr,
                    flush=True,
                )
            table = 100 * np.array(curves)
            mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1) if len(table) > 1 else table[0] * 0
            seconds = (time.perf_counter() - started) / asked.seeds
            print(
                f"  {estimator.label:20s} epoch 1: {mean[0]:.2f} +- {spread[0]:.2f}   "
                f"epoch {asked.epochs}: {mean[-1]:.2f} +- {spread[-1]:.2f}   {seconds:.0f} s a seed",
                flush=True,
            )
            results.append({"network": kind, "estimator": estimator.label, "curves": table.tolist()})
    if asked.json:
        asked.json.write_text(json.dumps(results))


def beside_torch(
    kind: str,
    spec: NetworkSpec,
    estimator: Estimator,
    samples: tuple[Samples, Samples],
    epochs: int,
    seeds: int,
) -> list[dict[str, Any]]:
    """An estimator beside PyTorch's backpropagation, epoch by epoch."""
    import torch
    from peers.twins import twin_of

    from circuitsim.seeds import stream

    train, test = samples
    results = []
    print(f"{kind}: training cost [W] and test accuracy [%], {estimator.label} / PyTorch", flush=True)
    for seed in range(seeds):
        run = trainer(spec, estimator, samples, seed, epochs)
        twin = twin_of(run.chip, spec)
        lines, labels = torch.from_numpy(train.inputs), torch.from_numpy(train.labels)
        test_lines, test_labels = torch.from_numpy(test.inputs), torch.from_numpy(test.labels)
        for epoch in range(epochs):
            metrics = run.epoch(epoch)
            order = stream(seed, "shuffle", epoch).permutation(len(train))
            parts = np.array_split(order, max(1, round(len(order) / BATCH)))
            cost = twin.epoch(lines, labels, [torch.from_numpy(rows) for rows in parts], STEP * DECAY**epoch)
            accuracy = twin.accuracy(test_lines, test_labels)
            print(
                f"  seed {seed} epoch {epoch + 1:2d}   cost {metrics['train_cost']:.6e} / {cost:.6e}   "
                f"test {100 * metrics['test_accuracy']:.2f} / {100 * accuracy:.2f}",
                flush=True,
            )
            results.append(
                {
                    "network": kind,
                    "seed": seed,
                    "epoch": epoch,
                    "ours": metrics["test_accuracy"],
                    "torch": accuracy,
                }
            )
    return results


if __name__ == "__main__":
    main()
