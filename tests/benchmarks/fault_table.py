"""What hardware faults do to gradients: a table over random networks, beside the numbers of a matrix model.

Run it from the repository's root:

    python tests/benchmarks/fault_table.py [--networks N] [--seed N] [--csv FILE] [--figure FILE]

Networks are those of `circuitsim.study.faults`: 20 tanh units, all to all, through buffered differential
pairs; five of them outputs. Every row is mean and standard deviation over networks of the relative error of
the whole gradient, in %. Columns:

    circuit     the amplifiers of the correction are off; the crossbar carries both directions
    held        the same with the buffers' outputs held by perfect sample-and-holds
    matrix      every entry of J0^T - J0 (or of the copy's J^T) off on its own, in dense NumPy
    expected    single draws on another network of 20 units, told as ``matrix``, whose units are coupled about
                twice as strongly: the order of magnitude is what to compare

"lost" counts networks whose corrected phase has no stable point.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

from circuitsim.report.faults import FaultPanel, fault_figure
from circuitsim.report.style import save
from circuitsim.study.faults import (
    FaultCase,
    FaultErrors,
    averaged_errors,
    beta_sweep,
    fault_case,
    fault_errors,
)

BETA = 0.03
ROWS: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("correction gain", (0.01, 0.05, 0.1), (0.5, 2.4, 4.9)),
    ("correction mismatch", (0.01, 0.1, 0.3), (0.6, 4.7, 16)),
    ("anchor, centred", (1e-3, 1e-2), (0.26, 1.9)),
    ("anchor, one-sided", (1e-3, 1e-2), (12, 105)),
    ("copy mismatch", (0.01, 0.05, 0.1), (1.9, 3.8, 7.9)),
)
BASELINE, NOISE_EXPECTED = 0.12, (37.0, 4.0)
NOISES = (1e-4, 1e-3, 1e-2)
BETAS = np.geomspace(1e-3, 0.3, 11)
READS = (1, 4, 16, 64, 256)


def shown(errors: np.ndarray) -> str:
    """Mean and spread in %, and how many networks are missing."""
    kept = 100 * errors[~np.isnan(errors)]
    text = f"{kept.mean():.3g} ± {kept.std():.2g}" if len(kept) else "-"
    lost = int(np.isnan(errors).sum())
    return f"{text} (lost {lost})" if lost else text


def table(cases: list[FaultCase]) -> list[dict[str, Any]]:
    """Every row: fault, size, expected, and errors by how the fault is told."""
    none = {"circuit": np.array([case.corrected(None, BETA) for case in cases])}
    rows: list[dict[str, Any]] = [
        {"fault": "none", "size": 0.0, "beta": BETA, "expected": BASELINE, "errors": none}
    ]
    for fault, levels, expected in ROWS:
        found = fault_errors(cases, fault, levels, beta=BETA)
        for k, level in enumerate(levels):
            errors = {told: array[k] for told, array in found.errors.items()}
            rows.append(
                {"fault": fault, "size": level, "beta": BETA, "expected": expected[k], "errors": errors}
            )
    noisy = beta_sweep(cases, (0.01, 0.1), (1e-3,))
    for k, beta in enumerate((0.01, 0.1)):
        rows.append(
            {
                "fault": "read noise",
                "size": 1e-3,
                "beta": beta,
                "expected": NOISE_EXPECTED[k],
                "errors": {"circuit": noisy[0, k]},
            }
        )
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]], sweep: np.ndarray, averaged: np.ndarray) -> None:
    """One line per fault, size, how it is told, and network."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fault", "size", "beta", "reads", "told", "network", "relative_error"])
        for row in rows:
            for told, errors in row["errors"].items():
                for network, error in enumerate(errors):
                    writer.writerow([row["fault"], row["size"], row["beta"], 1, told, network, error])
        for noise, by_beta in zip(NOISES, sweep, strict=True):
            for beta, errors in zip(BETAS, by_beta, strict=True):
                for network, error in enumerate(errors):
                    writer.writerow(["read noise", noise, beta, 1, "circuit", network, error])
        for reads, errors in zip(READS, averaged, strict=True):
            for network, error in enumerate(errors):
                writer.writerow(["read noise", 1e-3, BETA, reads, "circuit", network, error])


def panels(cases: list[FaultCase], sweep: np.ndarray, averaged: np.ndarray) -> list[FaultPanel]:
    """The figure's curves, over more sizes than the table has."""
    floors = {
        centred: float(np.median([case.corrected(None, BETA, centred=centred) for case in cases]))
        for centred in (True, False)
    }
    found = []
    sizes = {
        "correction gain": np.geomspace(1e-3, 0.1, 7),
        "correction mismatch": np.geomspace(1e-3, 0.3, 8),
        "anchor, centred": np.geomspace(1e-4, 3e-2, 8),
        "anchor, one-sided": np.geomspace(1e-4, 3e-2, 8),
        "copy mismatch": np.geomspace(1e-3, 0.3, 8),
    }
    labels = {
        "correction gain": "gains too large by",
        "correction mismatch": "standard deviation of each gain",
        "anchor, centred": "error of what is stored, over its rms",
        "anchor, one-sided": "error of what is stored, over its rms",
        "copy mismatch": "standard deviation of each device",
    }
    for fault, levels in sizes.items():
        errors: FaultErrors = fault_errors(cases, fault, levels.tolist(), beta=BETA)
        found.append(
            FaultPanel(
                title=fault[0].upper() + fault[1:],
                abscissa=labels[fault],
                levels=levels,
                curves=errors.errors,
                # The dyadic estimate is exact without faults.
                floor=None if fault == "copy mismatch" else floors["one-sided" not in fault],
            )
        )
    curves = {f"noise {noise:g}": errors for noise, errors in zip(NOISES, sweep, strict=True)}
    found.append(FaultPanel(title="Read noise, by beta", abscissa="beta", levels=BETAS, curves=curves))
    reads = np.array(READS, dtype=np.float64)
    law = averaged[0][None] / np.sqrt(reads / reads[0])[:, None]
    found.append(
        FaultPanel(
            title="Mean of several readings, noise 0.001",
            abscissa="readings",
            levels=reads,
            curves={"circuit": averaged, "1 / sqrt(n)": law},
        )
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    arguments = parser.parse_args()
    started = time.perf_counter()
    cases = [fault_case(arguments.seed + k) for k in range(arguments.networks)]
    rows = table(cases)
    told = ("circuit", "held", "matrix")
    print(
        f"{'fault':20} {'size':>6} {'beta':>5} {'expected':>8}  " + "".join(f"{x:24}" for x in told) + "[%]"
    )
    for row in rows:
        cells = "".join(f"{shown(row['errors'][x]) if x in row['errors'] else '':24}" for x in told)
        numbers = f"{row['size']:6g} {row['beta']:5g} {row['expected']:8g}"
        print(f"{row['fault']:20} {numbers}  {cells}".rstrip())
    sweep = beta_sweep(cases, BETAS.tolist(), NOISES)
    for noise, errors in zip(NOISES, sweep, strict=True):
        medians = np.nanmedian(errors, axis=1)
        best = int(np.argmin(medians))
        print(f"read noise {noise:g}: best beta {BETAS[best]:.3g}, error {100 * medians[best]:.3g} %")
    averaged = averaged_errors(cases, BETA, 1e-3, READS)
    means = ", ".join(f"{n}: {100 * e:.3g} %" for n, e in zip(READS, averaged.mean(axis=1), strict=True))
    print(f"mean of n reads at noise 1e-3, beta {BETA}: {means}")
    if arguments.csv is not None:
        write_csv(arguments.csv, rows, sweep, averaged)
    if arguments.figure is not None:
        title = f"What faults do to the gradient of {len(cases)} random networks of 20 units, beta {BETA}"
        save(fault_figure(panels(cases, sweep, averaged), title), arguments.figure)
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
