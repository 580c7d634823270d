"""What the device layer costs where every card is ideal: a training step with it over one without.

    python tests/benchmarks/device_overhead.py [--network netlists/digits.yaml] [--rounds 60]

Both take the same samples, estimator and optimiser in one process, in turn. Without: estimate, step, and
the conductances handed to the solver as they are. With: `Trainer.step` on a die, as every run does it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from circuitsim.chip import fabricate
from circuitsim.compiler import compile_network
from circuitsim.learning import AsymEP, Cost, Optimiser, OptimiserSpec, Phases, Samples, Trainer
from circuitsim.network import load_network
from circuitsim.seeds import stream
from circuitsim.solver import SolverSettings, build_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", type=Path, default=Path("netlists/digits.yaml"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=60, help="of ten steps of each kind, in turn")
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    arguments = parser.parse_args()
    network = load_network(arguments.network)
    netlist, cost = compile_network(network), Cost.of(network)
    plan = build_plan(netlist)
    settings = SolverSettings(check=False, precision=arguments.precision)
    inputs = stream(0, "inputs").uniform(-1, 1, (320, network.input_size))
    labels = stream(0, "labels").integers(network.output_size, size=320)
    targets = cost.targets(labels, network.output_size)
    estimator, spec = AsymEP(beta=0.01), OptimiserSpec(step=1e-4)
    samples = Samples(inputs=inputs, labels=labels)
    trainer = Trainer(
        plan=plan,
        chip=fabricate(netlist),
        cost=cost,
        estimator=estimator,
        optimiser=spec,
        train=samples,
        test=samples,
        classes=network.output_size,
        batch=arguments.batch,
        epochs=1,
        seed=0,
        settings=settings,
    )
    optimiser = Optimiser(spec, netlist, cost.conductance, arguments.precision)
    values = trainer.chip.values

    def bare(rows: np.ndarray) -> None:
        nonlocal values
        phases = Phases(plan=plan, values=values, cost=cost, settings=settings)
        gradient = estimator.estimate(phases, inputs[rows], targets[rows])
        new = optimiser.step(values.crossbars, gradient, 1.0)
        values = replace(values, crossbars={**values.crossbars, **new})

    batches = [np.arange(k, k + arguments.batch) for k in range(0, 320 - arguments.batch, arguments.batch)]
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    kinds = (("without", bare), ("with", lambda rows: trainer.step(rows)))
    for round_ in range(arguments.rounds + 1):
        for name, step in kinds if round_ % 2 else kinds[::-1]:
            started = time.perf_counter()
            for k in range(10):
                step(batches[k % len(batches)])
            if round_:
                seconds[name].append((time.perf_counter() - started) / 10)
    for name, found in seconds.items():
        print(f"{name:8} {1e3 * np.median(found):8.3f} ms a step (best {1e3 * min(found):.3f})")
    ratios = np.array(seconds["with"]) / np.array(seconds["without"])
    same = all(
        np.array_equal(trainer.chip.target[name][0], values.crossbars[name][0]) for name in values.crossbars
    )
    quartiles = np.percentile(ratios, [25, 75]).round(3)
    print(f"with / without: median {np.median(ratios):.3f}, quartiles {quartiles}")
    print(f"the same conductances afterwards: {same}")


if __name__ == "__main__":
    main()
