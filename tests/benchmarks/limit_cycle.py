"""A board with biased updates goes round where one without comes to rest: figure, and a table over dies.

    python tests/benchmarks/limit_cycle.py [--experiment runs/lab-biased.yaml] [--dies 10] [--rounds 50]

The samples come in turn, each ``--hold`` times in a row. Travel is the way through the last round, gap the
distance from where the board was a round before, both Euclidean over all devices, in windows. The figure is
that of the first die: limit-cycle.png in the folder of the experiment's name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from circuitsim.learning.writing import UpdateSpec
from circuitsim.report.figures import save_figures
from circuitsim.report.limit_cycle import Way, limit_cycle_figure
from circuitsim.study import load_experiment, prepare
from circuitsim.study.experiment import ExperimentSpec
from circuitsim.study.limit_cycle import Trajectory, watch_board


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", type=Path, default=Path("runs/lab-biased.yaml"))
    parser.add_argument("--dies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--hold", type=int, default=3)
    arguments = parser.parse_args()
    spec = load_experiment(arguments.experiment)

    def watched(experiment: ExperimentSpec) -> Trajectory:
        with prepare(experiment, folder=arguments.experiment.parent).connected() as bench:
            return watch_board(bench, rounds=arguments.rounds, hold=arguments.hold)

    plain = watched(spec.model_copy(update={"update": UpdateSpec()}))
    print(f"{'':12} {'cost [W]':>10} {'travel':>9} {'gap':>9} {'gap/travel':>10} {'at ends':>8}")
    report("no bias", plain)
    found: list[Trajectory] = []
    for die in range(arguments.dies):
        found.append(watched(spec.model_copy(update={"die": die})))
        report(f"die {die}", found[-1])
    for name, values in (
        ("cost [W]", [way.late_cost for way in found]),
        ("travel", [way.travel for way in found]),
        ("gap/travel", [way.gap / way.travel for way in found]),
    ):
        print(
            f"{name}: {np.mean(values):.3g} +- {np.std(values, ddof=1):.2g}, median {np.median(values):.3g}"
        )
    ways = {f"bias {100 * spec.update.bias:g} % of the window": found[0], "no bias": plain}
    figure = limit_cycle_figure(
        {label: Way(cost=way.cost, conductance=way.conductance) for label, way in ways.items()},
        found[0].period,
    )
    for path in save_figures({"limit-cycle": figure}, arguments.experiment.parent / spec.name):
        print(f"figure {path}")


def report(name: str, way: Trajectory) -> None:
    ends = np.mean((way.conductance[-1] < 1e-9) | (way.conductance[-1] > 1 - 1e-9))
    closed = f"{way.gap / way.travel:10.3f}" if way.travel > 1e-9 else f"{'at rest':>10}"
    print(
        f"{name:12} {way.late_cost:10.2e} {way.travel:9.2e} {way.gap:9.2e} {closed} {ends:8.0%}", flush=True
    )


if __name__ == "__main__":
    main()
