"""A training step of ours against PyTorch on the same layers, threads and batches: medians and ratios.

Run it from the repository's root: python tests/benchmarks/against_torch.py [TABLE ...] [1] [2]

Tables are resistive and buffered (both, without a word) and deep; 1 and 2 are numbers of threads. A step of
ours is the estimate of the gradient, the optimiser's step and the programming of the die. The peers are in
tests/benchmarks/peers, all in float32:

    resistive   1568-100-10 and 1568-1024-10, conductances and ideal diodes, centred nudged phases: the lean
                step, the same with mirrored inputs told to it, and the step in the published style
    deep        the same with two hidden layers of 1,024
    buffered    784-512-10, buffered crossbars and tanh, corrected centred and dyadic phases: a
                backpropagation step of a network of the same sizes

Every number is the median of seven blocks of steps, each about 0.2 s long; the contestants take turns, and
a ratio is the median over the turns. `floor` is ours, and `lean` the lean step's, share of the rate at which
2048-square matrices are multiplied in the same process, counting 4 B M N operations for each crossbar: its
currents once, its gradient once (mirrored inputs need half as many). `worst y` is the largest difference of
our free outputs from the lean step's, relative; `dC/dg` the worst relative error of our float32 gradient
against the float64 one of settled phases (the lean step's, 60 sweeps).

Threads wait for each other: with two, anything else that runs on the machine spoils the numbers.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import circuitsim as cs
from circuitsim.learning import OptimiserSpec, Samples, Trainer
from circuitsim.learning.estimators import Estimator
from circuitsim.network import parse_network

RUNS = 7
LEAST = 0.2
PINNED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
SETTINGS = cs.SolverSettings(check=False, precision="float32")
BETA = 0.01
STEP = 1e-4
"""Of our optimiser: small, so that a network is the same one from the first step to the last."""
WINDOW = 1e-4
NUDGE = 1e-4
# Threads, hidden layers, batch.
RESISTIVE = ((1, (100,), 4), (1, (1024,), 4), (2, (100,), 64), (2, (1024,), 64))
DEEP = ((1, (1024, 1024), 4), (2, (1024, 1024), 64))
BUFFERED = ((1, (512,), 64), (2, (512,), 64))
TABLES = {"resistive": RESISTIVE, "deep": DEEP, "buffered": BUFFERED}

Step = Callable[[], object]


def document(hidden: Sequence[int], *, resistive: bool) -> dict[str, Any]:
    """A network of 784 pixels, the given hidden layers and 10 outputs."""
    names = ["pixels", *(f"hidden{k}" for k in range(len(hidden))), "output"]
    neuron: dict[str, Any] = {"kind": "tanh", "gain": 112, "saturation": 0.2}
    cost: dict[str, Any] = {"kind": "cross_entropy", "conductance": NUDGE, "scale": 0.02}
    initial = {"center": 0.5, "spread": 0.3}
    if resistive:
        neuron = {"kind": "ideal_relu", "polarity": "alternating"}
        cost = {"kind": "squared_error", "conductance": NUDGE, "high": 0.01, "low": 0.0}
        initial = {"center": 0.25, "spread": 0.25}
    layers = {name: {"size": size, "neuron": neuron} for name, size in zip(names[1:], hidden, strict=False)}
    return {
        "name": "against-torch",
        "conductance": {"min": 0.0 if resistive else 1e-6, "max": WINDOW},
        "inputs": {"pixels": {"size": 784, "encoding": "signed_pair", "gain": 1.0 if resistive else 0.1}},
        "layers": layers | {"output": {"size": 10, "neuron": {"kind": "linear"}}},
        "synapses": [
            {
                "from": below,
                "to": above,
                "kind": "resistive" if resistive else "buffered",
                "initial": initial,
            }
            for below, above in itertools.pairwise(names)
        ],
        "output": {"layer": "output"},
        "cost": cost,
    }


def images(count: int) -> Samples:
    """Random images, dark for four fifths, with random classes."""
    rng = np.random.default_rng(0)
    bright = rng.random((count, 784)) < 0.2
    return Samples(
        inputs=(rng.random((count, 784)) * bright).astype(np.float32), labels=rng.integers(0, 10, count)
    )


def our_trainer(description: dict[str, Any], estimator: Estimator, samples: Samples) -> Trainer:
    """An ideal die of this network that learns by plain gradient descent."""
    spec = parse_network(description)
    netlist = cs.compile_network(spec)
    return Trainer(
        plan=cs.build_plan(netlist),
        chip=cs.fabricate(netlist),
        cost=cs.Cost.of(spec),
        estimator=estimator,
        optimiser=OptimiserSpec(kind="sgd", step=STEP),
        train=samples,
        test=samples,
        classes=10,
        batch=len(samples),
        epochs=1,
        seed=0,
        settings=SETTINGS,
    )


def our_step(trainer: Trainer, inputs: np.ndarray, targets: np.ndarray) -> cs.Gradient:
    """One step as `Trainer.epoch` takes it."""
    return trainer.learn(inputs, targets)


def take_turns(steps: dict[str, Step]) -> dict[str, list[float]]:
    """Return the time of a step in each block [ms], the contestants taking turns."""
    calls = {}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        step()
        calls[name] = max(1, round(LEAST / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(RUNS):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                step()
            times[name].append(1e3 * (time.perf_counter() - start) / calls[name])
    return times


def ratio(times: dict[str, list[float]], name: str, to: str = "ours") -> float:
    """Return how many times longer a step of ``name`` takes."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def product_rate() -> float:
    """Return the rate of torch's float32 product of 2048-square matrices [FLOP/s]."""
    import torch

    a, out = torch.rand(2048, 2048), torch.empty(2048, 2048)
    torch.mm(a, a, out=out)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def resistive(threads: int, hidden: tuple[int, ...], batch: int, peak: float) -> None:
    """Print one line of the table of resistive networks."""
    import torch
    from peers.resistive import PublishedStyle, ResistiveNetwork

    samples = images(batch)
    trainer = our_trainer(document(hidden, resistive=True), cs.EP(beta=BETA), samples)
    targets = trainer.cost.targets(samples.labels, 10)
    sizes = [1568, *hidden, 10]
    crossbars = [crossbar.name for crossbar in trainer.plan.netlist.trainable]
    start = [torch.from_numpy(np.array(trainer.chip.target[name][0], dtype=np.float64)) for name in crossbars]
    settings = {"beta": BETA, "nudge_conductance": NUDGE, "g_min": 0.0, "g_max": WINDOW}
    single = [g.float() for g in start]
    u = torch.from_numpy(samples.inputs).float()
    x, t = torch.cat([u, -u], 1), torch.from_numpy(targets).float()
    rate = STEP * WINDOW**2 / NUDGE
    lean = ResistiveNetwork(single, batch=batch, **settings)
    mirrored = ResistiveNetwork(single, batch=batch, mirrored=True, **settings)
    # Every drop (B, M, N) is formed only where it fits: as published, at batch 4.
    published = PublishedStyle(single, broadcast=batch <= 8, **settings)

    unbounded = {"g_min": -np.inf, "g_max": np.inf, "sweeps": 60}
    settled = ResistiveNetwork(start, batch=batch, **(settings | unbounded))
    settled.step(torch.cat([u, -u], 1).double(), torch.from_numpy(targets), 1.0)
    gradient = our_step(trainer, samples.inputs, targets)
    error = max(
        float(
            torch.linalg.norm(torch.tensor(np.array(gradient.crossbars[name][0], dtype=np.float64)) - slope)
        )
        / float(torch.linalg.norm(slope))
        for name, slope in ((n, start[k] - settled.conductance(k)) for k, n in enumerate(crossbars))
    )
    y = lean.step(x, t, rate).double().numpy()
    worst = float(np.abs(gradient.outputs - y).max() / np.abs(y).max())

    times = take_turns(
        {
            "ours": partial(our_step, trainer, samples.inputs, targets),
            "lean": partial(lean.step, x, t, rate),
            "mirrored": partial(mirrored.step, u, t, rate),
            "published": partial(published.step, x, t, rate),
        }
    )
    flops = 4 * batch * sum(a * b for a, b in itertools.pairwise(sizes))
    share = [flops / (1e-3 * statistics.median(times[name])) / peak for name in ("ours", "lean")]
    name = "-".join(str(n) for n in sizes)
    print(
        f"{name:17s} {batch:5d} {threads:7d}"
        + "".join(f"{statistics.median(took):10.3f}" for took in times.values())
        + "".join(f"{ratio(times, peer):10.2f}" for peer in ("lean", "mirrored", "published"))
        + "".join(f"{100 * part:7.0f}%" for part in share)
        + f"{worst:10.0e}{error:10.0e}",
        flush=True,
    )


def buffered(threads: int, hidden: tuple[int, ...], batch: int) -> None:
    """Print one line of the table of buffered networks."""
    import torch
    from peers.backprop import PlainNetwork

    samples = images(batch)
    ours = {
        "corrected": our_trainer(document(hidden, resistive=False), cs.AsymEP(), samples),
        "dyadic": our_trainer(document(hidden, resistive=False), cs.Dyadic(), samples),
    }
    targets = ours["dyadic"].cost.targets(samples.labels, 10)
    sizes = [784, *hidden, 10]
    plain = PlainNetwork(sizes, rate=1e-4)
    x, labels = torch.from_numpy(samples.inputs).float(), torch.from_numpy(samples.labels)
    times = take_turns(
        {name: partial(our_step, trainer, samples.inputs, targets) for name, trainer in ours.items()}
        | {"torch": partial(plain.step, x, labels)}
    )
    name = "-".join(str(n) for n in sizes)
    print(
        f"{name:17s} {batch:5d} {threads:7d}"
        + "".join(f"{statistics.median(took):12.3f}" for took in times.values())
        + "".join(f"{ratio(times, kind, to='torch'):17.2f}" for kind in ours),
        flush=True,
    )


def table(kind: str, threads: int) -> None:
    """Print the lines of a table that are for this number of threads."""
    import torch

    torch.set_num_threads(threads)
    peak = product_rate()
    for wanted, hidden, batch in TABLES[kind]:
        if wanted != threads:
            continue
        if kind == "buffered":
            buffered(threads, hidden, batch)
        else:
            resistive(threads, hidden, batch, peak)


def main() -> None:
    kinds = [text for text in sys.argv[1:] if text in TABLES] or ["resistive", "buffered"]
    counts = [int(text) for text in sys.argv[1:] if text in ("1", "2")] or [1, 2]
    unknown = [text for text in sys.argv[1:] if text not in (*TABLES, "1", "2")]
    if unknown:
        sys.exit(f"{unknown[0]}: give tables ({', '.join(TABLES)}) and numbers of threads (1, 2), or nothing")
    if importlib.util.find_spec("torch") is None:
        sys.exit("torch is not installed: pip install 'circuitsim[bench]'")
    head = f"{'network':17s} batch threads"
    for kind in kinds:
        print(f"\n{kind}: a training step in float32, milliseconds, and ratios")
        if kind == "buffered":
            print(f"{head}   corrected      dyadic       torch  corrected/torch     dyadic/torch")
        else:
            print(
                f"{head}      ours      lean  mirrored published lean/ours mirr/ours publ/ours"
                "   floor    lean  worst y     dC/dg"
            )
        for threads in counts:
            # Read when the libraries are first imported, so a process for each number of threads.
            environment = os.environ | dict.fromkeys(PINNED, str(threads)) | {"AGAINST_TORCH": kind}
            subprocess.run([sys.executable, __file__], env=environment, check=True)


if __name__ == "__main__":
    if "AGAINST_TORCH" in os.environ:
        table(os.environ["AGAINST_TORCH"], int(os.environ["OMP_NUM_THREADS"]))
    else:
        main()
