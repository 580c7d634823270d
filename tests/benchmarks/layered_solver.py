"""The layered method on its own: feedback, Shockley diodes, float32 gradients, cost against size.

Run it from the repository's root: python tests/benchmarks/layered_solver.py [TABLE ...] [1] [2]
    [--steps N] [--figure FILE]

Tables are feedback, shockley, float32 and size (all, without a word); 1 and 2 are numbers of threads
(without them: one and two in the first two tables, two in the others). Every time is a median of seven
runs or more after one that is not counted. Solves are timed without the independent check of KCL; the
same solve is then made with it, and `residual` is what it says, the largest over the samples and relative
to the largest branch current.

    feedback    784-512-10 of netlists/mnist.yaml with buffers at the outputs that drive the hidden nodes
                through dense pairs: non-reciprocal. 256 samples, float64, free phase. `kept`: other inputs
                only; `new`: other conductances, too, as in training. `loop gain`: the largest spectral
                radius of the loop through the outputs; `moves`: by how much the feedback changes them;
                `elsewhere`: the largest difference of a solution that started far away
    shockley    128-512-512-20, conductances and anti-parallel Shockley diodes, 360 of the bundled digits,
                float64, free phase. `conduct`: nodes of either hidden layer beyond 0.6 V. As drawn, the
                second layer averages the signs of the first away; in pairs, even nodes hang on even nodes
                (and positive inputs) alone, odd ones on odd ones, so that both layers conduct
    float32     1568-1024(-1024-1024)-10 of netlists/mnist-resistive.yaml: the relative error of a float32
                gradient, centred nudged phases, batch 4, against the float64 one of the same conductances,
                for each crossbar and each bias the worst of twenty batches; before and after N steps (200)
                on the bundled digits enlarged to 28 x 28. `switched`: hidden nodes that the nudge takes over
                the kink of their diode, or so close to it that rounding decides: what such a node adds
                changes with its free voltage, which is uncertain by the rounding of all its currents;
                `kept`: the worst of the batches without any. `moved`: the relative change of the conductances
    size        a training step in float32 per sample, against hidden nodes, hidden layers and batch:
                buffered crossbars with corrected centred phases, conductances and ideal diodes with centred
                nudged ones. `floor` is the arithmetic that nothing can leave out over the rate at which
                2048-square matrices are multiplied in the same process; exponents are slopes of a
                least-squares line through logarithms, of times and of floors

Threads wait for each other: with two, anything else that runs on the machine spoils the numbers.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from against_torch import PINNED, document, images, our_step, our_trainer

import circuitsim as cs
from circuitsim.chip import Chip
from circuitsim.learning import OptimiserSpec, Samples, Trainer
from circuitsim.network import parse_network
from circuitsim.network.documents import read_document

RUNS = 7
LEAST = 0.02
NETLISTS = Path(__file__).parents[2] / "netlists"
TOLERANCE = 1e-9
"""Largest KCL residual relative to the largest branch current; also the solver's own relative tolerance."""
SOLVED = cs.SolverSettings(relative_tolerance=TOLERANCE)
TIMED = replace(SOLVED, check=False)
THREADS = {"feedback": (1, 2), "shockley": (1, 2), "float32": (1,), "size": (2,)}

FEEDBACK_GAIN = 100.0
FEEDBACK_BATCH = 256
FEEDBACK_BAR = 60.0
"""Microseconds a sample."""
DIGITS = 360
INPUT_GAIN = 100.0
"""V per unit of a pixel: what takes the first hidden layer up to its diodes."""
CONDUCTING = 0.6
SHOCKLEY_BAR = 0.35
"""Seconds."""
DEPTHS = (1, 2, 3)
GRADIENT_BATCHES = 20
GRADIENT_BAR = 1e-4
HIDDEN, LAYERS, BATCHES = (64, 128, 256, 512, 1024), (1, 2, 3, 4), (1, 4, 16, 64, 256, 1024)
TYPICAL_HIDDEN, TYPICAL_BATCH = 256, 64
SMALL_BETA = 1e-4
"""Deep layers of such gains have no corrected point near the free one at 0.01."""
# Functions whose own time a profile sums up; products are made in place, so they are their callers' own.
PARTS = {
    "products": ("current", "constant_currents"),
    "node solves": ("solve_nodes",),
    "compiled sweeps": ("relax_layers",),
    "mixing": ("mix", "progress"),
}

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Return the median time of a call over `RUNS` runs of as many calls as take `LEAST` seconds."""
    work()
    start = time.perf_counter()
    work()
    calls = max(1, round(LEAST / (time.perf_counter() - start)))
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def split(work: Work) -> str:
    """Return where the time of a call goes, from a profile; of one thread only, for it sees no other."""
    if os.environ["OMP_NUM_THREADS"] != "1":
        return ""
    profile = cProfile.Profile()
    profile.runcall(work)
    own: dict[str, float] = {}
    for (_, _, name), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        own[name] = own.get(name, 0.0) + row[2]
    total = sum(own.values())
    shares = {part: sum(own.get(name, 0.0) for name in names) / total for part, names in PARTS.items()}
    shares["rest"] = 1 - sum(shares.values())
    return "   " + ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares.items() if share > 0)


def checked(plan: cs.Plan, values: Any, inputs: np.ndarray) -> cs.OperatingPoint:
    """Return the free point with the word of the independent check, which must be within the tolerance."""
    point = cs.solve(plan, values, inputs, SOLVED)
    worst = point.relative_residual.max()
    if not worst <= TOLERANCE or point.method != "layered":
        sys.exit(f"the numbers would not count: relative KCL residual {worst:.1e}, method {point.method}")
    return point


def feedback_network(gain: float) -> cs.Plan:
    """784-512-10 as netlists/mnist.yaml has it, with feedback through output buffers of this gain."""
    description = read_document(NETLISTS / "mnist.yaml")
    description["layers"]["output"]["neuron"]["gain"] = gain
    forward = description["synapses"][1]
    description["synapses"].append(forward | {"from": "output", "to": "hidden"})
    return cs.build_plan(cs.compile_network(parse_network(description)))


def loop_gain(plan: cs.Plan, point: cs.OperatingPoint) -> float:
    """Return the largest spectral radius, over the samples, of what comes back from outputs to outputs."""
    netlist = plan.netlist
    crossbars = {crossbar.name: crossbar for crossbar in netlist.crossbars}
    load = np.zeros(netlist.n_nodes)
    for crossbar in netlist.crossbars:
        assert crossbar.g_minus is not None
        np.add.at(load, crossbar.bit, (crossbar.g_plus + crossbar.g_minus).sum(0))
    passed = []
    for name in ("hidden-output", "output-hidden"):
        crossbar = crossbars[name]
        assert crossbar.g_minus is not None
        passed.append((crossbar.g_plus - crossbar.g_minus) / load[crossbar.bit])
    tanh = read_document(NETLISTS / "mnist.yaml")["layers"]["hidden"]["neuron"]
    v = point.node_voltage[:, crossbars["output-hidden"].bit]
    # Saturation is 1 V.
    slope = tanh["gain"] / np.cosh(tanh["gain"] * v) ** 2
    loops = np.einsum("oh,bh,hp->bop", FEEDBACK_GAIN * passed[1], slope, passed[0], optimize=True)
    return float(np.abs(np.linalg.eigvals(loops)).max())


def feedback() -> None:
    """Print one line: a free phase of the network with feedback."""
    inputs = images(FEEDBACK_BATCH).inputs.astype(np.float64)
    plan, open_loop = feedback_network(FEEDBACK_GAIN), feedback_network(0.0)
    values, read = plan.netlist.values(), plan.netlist.outputs.read
    point = checked(plan, values, inputs)
    without = read(checked(open_loop, open_loop.netlist.values(), inputs).node_voltage)
    moves = np.abs(read(point.node_voltage) - without).max() / np.abs(without).max()
    far = checked(plan, values, 20 * (1 - inputs))
    other = cs.solve(plan, values, inputs, SOLVED, start=far)
    elsewhere = np.abs(other.node_voltage - point.node_voltage).max()
    kept = seconds(partial(cs.solve, plan, values, inputs, TIMED))
    new = seconds(lambda: cs.solve(plan, replace(values), inputs, TIMED))
    each = 1e6 / FEEDBACK_BATCH
    print(
        f"{os.environ['OMP_NUM_THREADS']:>7s} {each * kept:8.1f} {each * new:8.1f} {FEEDBACK_BAR:6.0f}"
        f" {point.iterations.min():4d}-{point.iterations.max():<4d}"
        f" {point.relative_residual.max():9.0e} {loop_gain(plan, point):10.2f} {100 * moves:5.0f} %"
        f" {elsewhere:8.0e} V{split(partial(cs.solve, plan, values, inputs, TIMED))}",
        flush=True,
    )


def shockley_chip() -> tuple[cs.Plan, Chip]:
    """128-512-512-20 with anti-parallel Shockley diodes at the hidden nodes, on an ideal die."""
    description = read_document(NETLISTS / "mnist-shockley.yaml")
    neuron = description["layers"]["hidden"]["neuron"] | {"offset": 0.8}
    hidden = {"size": 512, "neuron": neuron}
    names = ["pixels", "first", "second", "output"]
    initial = description["synapses"][0]["initial"]
    description |= {
        "inputs": {"pixels": {"size": 64, "encoding": "signed_pair", "gain": INPUT_GAIN}},
        "layers": {"first": hidden, "second": hidden, "output": description["layers"]["output"]},
        "synapses": [
            {"from": a, "to": b, "kind": "resistive", "initial": initial}
            for a, b in itertools.pairwise(names)
        ],
    }
    netlist = cs.compile_network(parse_network(description))
    return cs.build_plan(netlist), cs.fabricate(netlist)


def in_pairs(plan: cs.Plan, chip: Chip) -> Chip:
    """Program to the window's lower end what connects even nodes (or positive inputs) with odd ones."""
    low = 1e-6
    target = {}
    for crossbar in plan.netlist.trainable:
        g = np.array(chip.target[crossbar.name][0])
        lines, nodes = g.shape
        if crossbar.name == "pixels-first":
            # The lines of a signed pair are sources of opposite gains.
            sources, gains = plan.netlist.vsource.pos[plan.netlist.inputs.source], plan.netlist.inputs.gain
            line = np.isin(crossbar.word_pos, sources[gains < 0])
        else:
            line = np.arange(lines) % 2 == 1
        g[line[:, None] != (np.arange(nodes) % 2 == 1)] = low
        target[crossbar.name] = (g, None)
    return chip.reprogrammed(target)


def shockley() -> None:
    """Print two lines: conductances as drawn, and in pairs."""
    inputs = cs.load_digits().train_inputs[:DIGITS]
    plan, drawn = shockley_chip()
    for name, chip in (("as drawn", drawn), ("in pairs", in_pairs(plan, drawn))):
        values = chip.values
        point = checked(plan, values, inputs)
        conduct = [
            100 * np.mean(np.abs(point.node_voltage[:, nodes]) > CONDUCTING)
            for nodes in plan.layered.layers[:2]
        ]
        kept = seconds(partial(cs.solve, plan, values, inputs, TIMED))
        new = seconds(lambda v=values: cs.solve(plan, replace(v), inputs, TIMED))
        print(
            f"{os.environ['OMP_NUM_THREADS']:>7s}  {name} {kept:8.3f} {new:8.3f} {SHOCKLEY_BAR:6.2f}"
            f" {point.iterations.min():4d}-{point.iterations.max():<4d}"
            f" {point.relative_residual.max():9.0e} {conduct[0]:6.0f}, {conduct[1]:.0f} %"
            f"{split(partial(cs.solve, plan, values, inputs, TIMED))}",
            flush=True,
        )


def enlarged_digits() -> Samples:
    """The bundled digits as images of 28 x 28 pixels from 0 to 1: threefold, with a dark rim."""
    data = cs.load_digits(pixels="unit")
    small = data.train_inputs.reshape(-1, 8, 8).astype(np.float32)
    large = np.kron(small, np.ones((1, 3, 3), dtype=np.float32))
    framed = np.pad(large, ((0, 0), (2, 2), (2, 2)))
    return Samples(inputs=framed.reshape(len(framed), -1), labels=data.train_labels)


def resistive_trainer(depth: int, samples: Samples) -> Trainer:
    """The network of netlists/mnist-resistive.yaml with hidden layers of 1,024, learning as its run does."""
    description = read_document(NETLISTS / "mnist-resistive.yaml")
    names = ["pixels", *(f"hidden{k}" for k in range(depth)), "output"]
    layers, synapse = description["layers"], description["synapses"][0]
    description["layers"] = dict.fromkeys(names[1:-1], layers["hidden"]) | {"output": layers["output"]}
    description["synapses"] = [synapse | {"from": a, "to": b} for a, b in itertools.pairwise(names)]
    run = read_document(NETLISTS.parent / "runs" / "mnist-resistive.yaml")
    spec = parse_network(description)
    netlist = cs.compile_network(spec)
    return Trainer(
        plan=cs.build_plan(netlist),
        chip=cs.fabricate(netlist),
        cost=cs.Cost.of(spec),
        estimator=cs.EP(beta=run["estimators"][0]["beta"]),
        optimiser=OptimiserSpec(**run["training"]["optimiser"]),
        train=samples,
        test=samples,
        classes=10,
        batch=run["training"]["batch"],
        epochs=1,
        seed=0,
        settings=cs.SolverSettings(check=False, precision="float32"),
    )


def gradient_errors(trainer: Trainer, rows: np.ndarray) -> tuple[dict[str, float], int]:
    """Return the relative error of the float32 gradient of one batch for each crossbar, and what switched.

    That is the number of hidden nodes whose ideal diode conducts in one phase and not in another, or in one
    precision and not in the other.
    """
    chip = trainer.chip.in_precision("float64")
    single = trainer.phases()
    double = replace(single, values=chip.values, settings=cs.SolverSettings(check=False))
    targets = trainer.cost.targets(trainer.train.labels, trainer.classes)[rows]
    inputs = trainer.train.inputs[rows]
    hidden = np.concatenate(trainer.plan.layered.layers[:-1])
    gradients, sides = [], []
    for phases in (single, double):
        free = phases.free(inputs)
        gradients.append(trainer.estimator.estimate(phases, inputs, targets, free=free))
        voltages = [free.node_voltage]
        for beta in (trainer.estimator.beta, -trainer.estimator.beta):
            change = phases.nudged(inputs, targets, beta, free)
            voltages.append(free.node_voltage + phases.nodes(change, inputs, free))
        sides.append(np.array(voltages)[:, :, hidden] < 0)
    found, wanted = gradients
    errors = {}
    for name in wanted.crossbars:
        reference = wanted.flat(name)
        errors[name] = float(np.linalg.norm(found.flat(name) - reference) / np.linalg.norm(reference))
    return errors, int((np.array(sides) != sides[0][0]).any(axis=(0, 1)).sum())


def float32(steps: int) -> None:
    """Print two lines for each network: before training and after."""
    samples = enlarged_digits()
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(1 + 4 * steps // len(samples))])
    batches = [rng.choice(len(samples), 4, replace=False) for _ in range(GRADIENT_BATCHES)]
    for depth in DEPTHS:
        trainer = resistive_trainer(depth, samples)
        start = {name: np.array(pair[0]) for name, pair in trainer.chip.target.items()}
        right: list[float] = []
        for done in (0, steps):
            for step in range(done):
                rows = order[4 * step : 4 * step + 4]
                right.append(float(np.mean(trainer.step(rows).outputs.argmax(1) == samples.labels[rows])))
            moved = max(
                float(np.linalg.norm(trainer.chip.target[name][0] - g) / np.linalg.norm(g))
                for name, g in start.items()
            )
            recent = right[-max(1, steps // 4) :]
            accuracy = f"{100 * statistics.mean(recent):5.0f} %" if recent else "      -"
            found = [gradient_errors(trainer, rows) for rows in batches]
            worst = [max(errors.values()) for errors, _ in found]
            kept = [error for error, (_, switched) in zip(worst, found, strict=True) if not switched]
            parts = {part: max(errors[part] for errors, _ in found) for part in found[0][0]}
            name = "-".join(str(n) for n in (1568, *(1024,) * depth, 10))
            print(
                f"{name:23s} {done:5d} {max(worst):8.0e} {max(kept, default=np.nan):8.0e}"
                f" {sum(switched for _, switched in found):8d} {GRADIENT_BAR:7.0e} {100 * moved:6.1f} %"
                f" {accuracy}  " + "  ".join(f"{part} {error:.0e}" for part, error in parts.items()),
                flush=True,
            )


def product_rate() -> float:
    """Return the rate of numpy's float32 product of 2048-square matrices [FLOP/s]."""
    a = np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def least_operations(hidden: Sequence[int]) -> int:
    """Return the operations that a training step of either kind cannot do without, for one sample.

    The currents of every crossbar once and its gradient once; once what a crossbar sends back to a layer
    that moves. The two lines of a signed pair count as one, and all that is not a product as nothing.
    """
    products = [a * b for a, b in itertools.pairwise([784, *hidden, 10])]
    return 4 * sum(products) + 2 * sum(products[1:])


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measured(hidden: tuple[int, ...], batch: int, *, resistive: bool) -> float:
    """Return the time of a training step for one sample [s]."""
    samples = images(batch)
    estimator = cs.EP(beta=0.1) if resistive else cs.AsymEP(beta=SMALL_BETA)
    trainer = our_trainer(document(hidden, resistive=resistive), estimator, samples)
    targets = trainer.cost.targets(samples.labels, 10)
    return seconds(partial(our_step, trainer, samples.inputs, targets)) / batch


Curve = tuple[str, str, Sequence[int], list[float], list[float]]
"""Kind of network, what is varied, its values, seconds a sample, and their floor."""


def curves() -> Iterator[Curve]:
    """Measure one curve after the other."""
    rate = product_rate()
    print(f"        2048-square products: {rate / 1e9:.0f} GFLOP/s")
    for kind in ("buffered", "resistive"):
        resistive = kind == "resistive"
        sweeps = {
            "hidden nodes": (HIDDEN, [((n,), TYPICAL_BATCH) for n in HIDDEN]),
            "hidden layers": (LAYERS, [((TYPICAL_HIDDEN,) * n, TYPICAL_BATCH) for n in LAYERS]),
            "batch": (BATCHES, [((TYPICAL_HIDDEN,), n) for n in BATCHES]),
        }
        for varied, (sizes, networks) in sweeps.items():
            times = [measured(hidden, batch, resistive=resistive) for hidden, batch in networks]
            floors = [least_operations(hidden) / rate for hidden, _ in networks]
            yield kind, varied, sizes, times, floors


def size(figure: str) -> None:
    """Print a block of lines for each kind of network and what is varied; draw them if asked to."""
    found: list[Curve] = []
    for curve in curves():
        found.append(curve)
        kind, varied, sizes, times, floors = curve
        for label, cells in (
            (varied, [f"{n:9d}" for n in sizes]),
            ("us a sample", [f"{1e6 * t:9.2f}" for t in times]),
            ("floor", [f"{1e6 * t:9.2f}" for t in floors]),
        ):
            print(f"{kind:10s} {label:14s}" + "".join(cells))
        print(
            f"{kind:10s} {'exponent':14s} {exponent(sizes, times):8.2f}, of the floor"
            f" {exponent(sizes, floors):.2f}",
            flush=True,
        )
    if figure:
        draw(found, figure)


def draw(found: Sequence[Curve], figure: str) -> None:
    """Draw the curves beside their floors, one panel for each thing that is varied."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(varied for _, varied, *_ in found))
    drawing, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True)
    colours = {"buffered": "C0", "resistive": "C1"}
    for axis, panel in zip(axes, panels, strict=True):
        for kind, varied, sizes, times, floors in found:
            if varied != panel:
                continue
            label = f"{kind}: exponent {exponent(sizes, times):.2f}"
            axis.loglog(sizes, 1e6 * np.array(times), "o-", color=colours[kind], label=label)
            label = f"floor: {exponent(sizes, floors):.2f}"
            axis.loglog(sizes, 1e6 * np.array(floors), ":", color=colours[kind], label=label)
        axis.set_xlabel(panel)
        axis.set_xticks(found[[varied for _, varied, *_ in found].index(panel)][2])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("µs per sample and training step, float32")
    drawing.tight_layout()
    drawing.savefig(figure, dpi=150)
    print(f"figure: {figure}")


HEADS = {
    "feedback": "784-512-10 with feedback, 256 samples, float64: microseconds a sample and free phase\n"
    "threads     kept      new    bar    sweeps  residual  loop gain  moves elsewhere"
    "   profile",
    "shockley": "128-512-512-20, Shockley pairs, 360 samples, float64: seconds in all\n"
    "threads  devices      kept      new    bar    sweeps  residual    conduct"
    "   profile",
    "float32": "resistive, ideal diodes, batch 4: relative error of the float32 gradient\n"
    "network                 steps    worst     kept switched     bar    moved accuracy  crossbars",
    "size": "a training step in float32, microseconds a sample",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of the layered method.")
    parser.add_argument("words", nargs="*", metavar="TABLE|1|2", help=f"{', '.join(THREADS)}; threads")
    parser.add_argument("--steps", type=int, default=200, help="training steps of table float32")
    parser.add_argument("--figure", default="", help="file that table size is drawn into")
    given = parser.parse_args()
    unknown = [word for word in given.words if word not in (*THREADS, "1", "2")]
    if unknown:
        sys.exit(
            f"{unknown[0]}: give tables ({', '.join(THREADS)}) and numbers of threads (1, 2), or nothing"
        )
    wanted = [word for word in given.words if word in THREADS] or list(THREADS)
    counts = [int(word) for word in given.words if word not in THREADS]
    if "LAYERED_SOLVER" in os.environ:
        tables: dict[str, Work] = {
            "feedback": feedback,
            "shockley": shockley,
            "float32": partial(float32, given.steps),
            "size": partial(size, given.figure),
        }
        tables[os.environ["LAYERED_SOLVER"]]()
        return
    for name in wanted:
        print(f"\n{name}: {HEADS[name]}", flush=True)
        for threads in counts or THREADS[name]:
            # Read when the libraries are first imported, so a process for each number of threads.
            environment = os.environ | dict.fromkeys(PINNED, str(threads)) | {"LAYERED_SOLVER": name}
            # A number of threads from elsewhere would win over these.
            environment.pop("CIRCUITSIM_THREADS", None)
            subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment, check=True)


if __name__ == "__main__":
    main()
