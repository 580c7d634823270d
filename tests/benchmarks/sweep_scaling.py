"""A sweep in one process against two local workers, one thread each: seconds, their ratio, equal results.

Run it from the repository's root, on a machine with two processors that does nothing else:

    python tests/benchmarks/sweep_scaling.py [--points 10] [--dies 200] [--rounds 4] [--workers 2]
                                             [--epochs 1] [--json FILE]

The dies are shared out to rounds, and both engines run each round, in turns the one or the other first, so
that what else slows the machine meets both. Times are of whole sweeps, from reading the file to the table:
starting the workers counts, reading results and writing them too. Before, both engines run one die to
have kernels compiled. The tables of a round must agree byte for byte.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from circuitsim.study.sweep import run_sweep

NETWORK = Path(__file__).resolve().parents[2] / "netlists" / "digits.yaml"


def write(folder: Path, *, points: int, dies: int, first: int, epochs: int) -> Path:
    """Write the sweep of a round: gain spreads from 0 to 20 %, dies from number ``first`` on."""
    experiment: dict[str, Any] = {
        "name": "digits",
        "network": str(NETWORK),
        "estimators": [{"kind": "asymep", "beta": 0.01}],
        "training": {"epochs": epochs, "batch": 32},
        "die": first,
    }
    gains = [round(0.2 * k / max(1, points - 1), 6) for k in range(points)]
    sweep: dict[str, Any] = {
        "name": "scaling",
        "experiment": "digits.yaml",
        "axes": {"cards.amplifier.gain": gains},
        "dies": dies,
    }
    for name, document in (("digits", experiment), ("sweep", sweep)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "sweep.yaml"


def measure(path: Path, output: Path, workers: int | None) -> tuple[float, bytes]:
    """Return the seconds of a sweep and its table as CSV."""
    started = time.perf_counter()
    result = run_sweep(path, output=output, workers=workers)
    seconds = time.perf_counter() - started
    assert not result.lost, result.lost[0].lost
    return seconds, result.csv_file.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--dies", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds = min(options.rounds, options.dies)
    alone, shared, tasks = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder, points=1, dies=options.workers, first=10**6, epochs=1)
        measure(path, folder / "warm-1", None)
        starting, _ = measure(path, folder / "warm-2", options.workers)
        for number in range(rounds):
            first, last = (options.dies * k // rounds for k in (number, number + 1))
            path = write(folder, points=options.points, dies=last - first, first=first, epochs=options.epochs)
            found = {}
            for workers in (None, options.workers) if number % 2 == 0 else (options.workers, None):
                found[workers] = measure(path, folder / f"{number}-{workers}", workers)
            assert found[None][1] == found[options.workers][1], f"round {number}: the tables differ"
            alone, shared = alone + found[None][0], shared + found[options.workers][0]
            tasks += options.points * (last - first)
            print(
                f"round {number + 1}: {found[None][0]:.2f} s alone, "
                f"{found[options.workers][0]:.2f} s on {options.workers} workers",
                flush=True,
            )
    print(
        f"{tasks} tasks: {alone:.1f} s in one process ({1e3 * alone / tasks:.1f} ms each), "
        f"{shared:.1f} s on {options.workers} workers, ratio {alone / shared:.2f}; "
        f"a sweep of {options.workers} tasks on workers takes {starting:.1f} s"
    )
    if options.json is not None:
        figures = {
            "points": options.points,
            "dies": options.dies,
            "tasks": tasks,
            "rounds": rounds,
            "workers": options.workers,
            "seconds_in_process": alone,
            "seconds_on_workers": shared,
            "ratio": alone / shared,
            "seconds_of_a_small_sweep_on_workers": starting,
        }
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
