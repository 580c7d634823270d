"""`circuitsim crosscheck`: every phase on our solver and on a SPICE simulator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    announce_compilation,
    print_facts,
    print_json,
    print_line,
    print_table,
    progress_console,
    remark,
)
from circuitsim.cli.source import BETA_OPTION, PHASES, check_choice
from circuitsim.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from circuitsim.study.crosscheck import Comparison, CrossCheckStudy

_OUTSIDE = 1
"""Exit code where the two do not agree."""


def command(
    circuit: Path = typer.Argument(
        ..., help="Network, experiment or netlist (.yaml), record (.h5), or SPICE deck (.cir)."
    ),
    samples: int = typer.Option(8, "--samples", min=1, help="Number of inputs."),
    phases: str = typer.Option("all", "--phases", help="all, or of free,nudged,corrected,dyadic."),
    engine: str = typer.Option("ngspice", "--engine", help="ngspice, pyspice-shared or pyspice-subprocess."),
    beta: float = BETA_OPTION,
    tolerance: str = typer.Option("1e-9", "--tolerance", help="Largest difference at any node (V)."),
    gradient_tolerance: str = typer.Option(
        "1e-6", "--gradient-tolerance", help="Largest relative difference of any crossbar's gradient."
    ),
    seed: int | None = typer.Option(
        None,
        "--seed",
        min=0,
        help="Seed of conductances, die and samples; of a record, of the samples alone. "
        "An experiment's own by default, or else 0.",
    ),
    arm: str | None = typer.Option(
        None, "--arm", help="Of a record: the estimator whose learned conductances are taken."
    ),
    timeout: float = typer.Option(300.0, "--timeout", help="Time limit of the simulator per deck (s)."),
    figure: Path | None = typer.Option(None, "--figure", help="Write a figure into this file (.png)."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Solve samples in every phase here and with SPICE; compare voltages (V) and gradients.

    The gradient is computed from SPICE's voltages alone, and compared to ours by the same estimator and to
    the exact one. A corrected phase is given our anchor, as a board would hold it; SPICE's own free point is
    compared to it. SPICE starts a corrected phase from the anchor: that circuit has other operating points.
    It starts the others from nothing; where it ends elsewhere, it is started again from our free point, and
    the result says so. relative: the difference over the signal, which is the largest voltage of a free
    phase, the largest change made by a nudge, the largest dual voltage of a dyadic phase. Times are means per
    sample: ours of one solve with its KCL check, SPICE's from reading a deck to its values.

    Exit codes: 0 within the tolerances, 1 outside, 2 bad input, 3 a side gave no answer, 4 no SPICE here.

    Example: circuitsim crosscheck netlists/digits.yaml --samples 2 --figure digits.png

    JSON: {circuit, kind, engine, agrees, tolerance (V), gradient_tolerance, compared, planned, beta, inputs,
    notes, phases [{phase, beta, samples, nodes, worst_node, worst_sample, difference (V), relative, signal
    (V), elsewhere (samples), seconds, spice_seconds, ratio}], gradients [{estimator, crossbar, samples,
    to_ours, to_adjoint, ours_to_adjoint}], spice_options, solver, provenance, figure}.
    """
    largest = _positive("--tolerance", tolerance)
    largest_gradient = _positive("--gradient-tolerance", gradient_tolerance)
    if not 0 < abs(beta) < math.inf:
        raise SpecError("must be finite and not zero", field="--beta", value=beta)
    if not 0 < timeout < math.inf:
        raise SpecError("must be greater than zero and finite", field="--timeout", value=timeout)
    chosen = PHASES if phases == "all" else tuple(part.strip() for part in phases.split(","))
    for phase in chosen:
        check_choice("--phases", phase, ("all", *PHASES) if len(chosen) == 1 else PHASES)
    if figure is not None and figure.suffix.lower() != ".png":
        raise SpecError("a figure's name ends in .png", field="--figure", value=str(figure))
    if not circuit.exists():
        raise SpecError("does not exist", file=circuit)

    from circuitsim.spice import probe
    from circuitsim.spice.engines import ENGINES

    check_choice("--engine", engine, tuple(ENGINES))
    simulator = ENGINES[engine](timeout)
    interrupted = False
    study: CrossCheckStudy | None = None
    try:
        # Before our own work: it may be missing.
        version = probe(simulator)
        announce_compilation()

        from circuitsim.study.crosscheck import CrossCheckStudy
        from circuitsim.study.subjects import read_subject

        subject = read_subject(circuit, samples=samples, seed=seed, arm=arm)
        _refuse_phases(circuit, phases, chosen, subject.phases)
        study = CrossCheckStudy(subject, simulator, phases=chosen, beta=beta)  # type: ignore[arg-type]
        remark(f"{subject.name}: {subject.drawn}; {version}")
        with _progress(study.total) as advance:
            study.run(advance)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        simulator.close()
    if study is None or not study.comparisons:
        remark("interrupted before the first comparison")
        raise typer.Exit(130)
    document = _document(study, circuit, version, largest, largest_gradient)
    if figure is not None:
        _draw(study, figure, version, largest)
        document["figure"] = str(figure)
    if as_json:
        print_json(document)
    else:
        _print(study, document)
    if interrupted:
        remark(f"interrupted after {document['compared']} of {document['planned']} comparisons")
        raise typer.Exit(130)
    if not document["agrees"]:
        raise typer.Exit(_OUTSIDE)


def _positive(option: str, text: str) -> float:
    from circuitsim.units import parse_quantity

    try:
        value = parse_quantity(text)
    except SpecError as error:
        raise SpecError(error.rule, field=option, value=text, remedy=error.remedy) from error
    if not 0 < value < math.inf:
        raise SpecError("must be greater than zero and finite", field=option, value=text)
    return value


def _refuse_phases(circuit: Path, text: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise SpecError where phases were named that the circuit does not have."""
    missing = [phase for phase in chosen if phase not in known]
    if missing and text != "all":
        raise SpecError(
            "needs a cost, and this circuit has none",
            file=circuit,
            field="--phases",
            value=missing[0],
            remedy="Give a network, an experiment or a record.",
        )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Comparison], None]]:
    """Show on a terminal's standard error how far it is; yield what to call after each comparison."""
    console = progress_console()
    if not console.is_terminal:
        yield lambda comparison: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[worst]}", markup=False),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    worst = 0.0
    with Progress(*columns, console=console, refresh_per_second=8) as live:
        task = live.add_task("comparing", total=total, worst="")

        def advance(comparison: Comparison) -> None:
            nonlocal worst
            worst = max(worst, comparison.check.worst_difference)
            live.update(task, advance=1, worst=f"worst {worst:.0e} V")

        yield advance


def _document(
    study: CrossCheckStudy, circuit: Path, version: str, tolerance: float, gradient_tolerance: float
) -> dict[str, Any]:
    from circuitsim.record import provenance

    subject = study.subject
    return {
        "circuit": str(circuit),
        "kind": subject.kind,
        "engine": version,
        "agrees": study.agrees(tolerance, gradient_tolerance),
        "tolerance": tolerance,
        "gradient_tolerance": gradient_tolerance,
        "compared": len(study.comparisons),
        "planned": study.total,
        "beta": study.beta,
        "inputs": subject.drawn,
        "notes": [
            *subject.notes,
            *(["SPICE found no answer with our tolerances: it used the deck's own"] * study.own_tolerances),
        ],
        "phases": [asdict(result) | {"ratio": result.ratio} for result in study.phase_results()],
        "gradients": [asdict(result) for result in study.gradient_results()],
        "spice_options": asdict(study.options),
        "solver": asdict(subject.settings) | {"method": subject.plan.chosen(subject.settings)},
        "provenance": provenance(),
        "figure": None,
    }


def _label(phase: str, beta: float | None) -> str:
    return phase if beta is None or phase == "dyadic" else f"{phase} {'+' if beta > 0 else '-'}"


def _draw(study: CrossCheckStudy, path: Path, version: str, tolerance: float) -> None:
    import numpy as np

    from circuitsim.report.crosscheck import draw_crosscheck

    phases = {}
    for phase, beta in study.points:
        checks = [c.check for c in study.comparisons if (c.phase, c.beta) == (phase, beta)]
        if checks:
            ours = np.concatenate([check.ours for check in checks])
            phases[_label(phase, beta)] = (ours, np.concatenate([check.spice for check in checks]))
    draw_crosscheck(phases, path, name=study.subject.name, engine=version, tolerance=tolerance)


def _print(study: CrossCheckStudy, document: dict[str, Any]) -> None:
    phases, gradients = document["phases"], document["gradients"]
    rows = [
        (
            _label(row["phase"], row["beta"]),
            row["worst_node"],
            f"{row['difference']:.1e}",
            f"{row['relative']:.1e}",
            f"{row['signal']:.1e}",
            f"{1e3 * row['seconds']:.2f}",
            f"{1e3 * row['spice_seconds']:.1f}",
            f"{row['ratio']:.0f}",
        )
        for row in phases
    ]
    columns = [
        "phase",
        "worst node",
        "difference [V]",
        "relative",
        "signal [V]",
        "ours [ms]",
        "SPICE [ms]",
        "ratio",
    ]
    print_table(f"{study.subject.name} against {document['engine']}", columns, rows, left=(0, 1))
    if gradients:
        cells = [
            (
                row["estimator"],
                row["crossbar"],
                f"{row['to_ours']:.1e}",
                f"{row['to_adjoint']:.1e}",
                f"{row['ours_to_adjoint']:.1e}",
            )
            for row in gradients
        ]
        titles = ["gradient", "crossbar", "SPICE's to ours", "SPICE's to exact", "ours to exact"]
        print_table("Gradients from SPICE's voltages alone", titles, cells, left=(0, 1), groups=True)
    spice, solver = document["spice_options"], document["solver"]
    facts: list[tuple[str, object]] = [
        ("inputs", document["inputs"]),
        *(("note", note) for note in document["notes"]),
        *(
            (
                "note",
                f"{_label(row['phase'], row['beta'])}: by itself SPICE found another operating point for "
                f"{row['elsewhere']} of {row['samples']} samples; started from our free point it did not",
            )
            for row in phases
            if row["elsewhere"]
        ),
        *([("beta", f"{document['beta']:g}")] if len(phases) > 1 else []),
        (
            "SPICE options",
            f"reltol {spice['relative_tolerance']:g}, vntol {spice['voltage_tolerance']:g} V, "
            f"abstol {spice['current_tolerance']:g} A, pivtol {spice['pivot_tolerance']:g}",
        ),
        (
            "solver",
            f"circuitsim {document['provenance']['circuitsim']}, {solver['method']} method, "
            f"{solver['precision']}, relative tolerance {solver['relative_tolerance']:g}",
        ),
    ]
    moved = [row["signal"] for row in phases if row["phase"] == "corrected"]
    if moved and gradients:
        facts.append(
            (
                "limit",
                f"corrected gradients are differences of voltages that move by {min(moved):.0e} V: the "
                "rounding of doubles and the tolerances of both sides weigh most there",
            )
        )
    print_facts("Made with", facts)
    worst = max(row["difference"] for row in phases)
    verdict = f"largest difference {worst:.1e} V (tolerance {document['tolerance']:.0e} V)"
    if gradients:
        largest = max(row["to_ours"] for row in gradients)
        verdict += f", gradients {largest:.1e} (tolerance {document['gradient_tolerance']:.0e})"
    print_line(f"{'agrees' if document['agrees'] else 'DOES NOT AGREE'}: {verdict}")
    if document["figure"]:
        print_line(f"figure   {document['figure']}")
