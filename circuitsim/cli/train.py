"""`circuitsim train`: an experiment file to a record."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    announce_compilation,
    figure_folder,
    print_json,
    print_line,
    print_table,
    remark,
)
from circuitsim.cli.progress import ProgressDisplay
from circuitsim.cli.source import SUBSTRATE_OPTION, refuse_other_kinds, substrate_address
from circuitsim.errors import CircuitsimError, RecordError, SpecError
from circuitsim.file_kinds import RECORD_SUFFIXES

if TYPE_CHECKING:
    from circuitsim.record import RunRecord


def command(
    experiment: Path = typer.Argument(
        ..., help="Experiment (.yaml), or an unfinished record (.h5) with --resume."
    ),
    seed: int | None = typer.Option(
        None, "--seed", min=0, help="Seed of die, conductances and order of samples."
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with the newest unfinished record of this seed, or with the one of -o."
    ),
    substrate: str | None = SUBSTRATE_OPTION,
    output: Path | None = typer.Option(
        None, "-o", "--output", help="Record to write; NAME-sSEED.h5 beside the experiment by default."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the record given with -o."),
    figures: bool = typer.Option(True, help="Write figures (PNG) into a folder beside the record."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Train every estimator of an experiment on one die; write a record (HDF5) and figures.

    The circuit is a network description, or a SPICE deck with roles: sources, outputs, resistors that
    learn. With a substrate it learns from what an instrument reads. Prints test accuracy (%) or, of wanted
    outputs, their error (mV, root mean square), training time (s), the cosine of each crossbar's estimated
    gradient to the exact one, and the KCL residual relative to the largest branch current or, of a
    substrate, the error of what was written (% of the window). Ctrl-C stops after the last whole epoch;
    --resume goes on to the same numbers.

    Example: circuitsim train runs/demo.yaml --seed 3

    JSON: {record, estimator, test_accuracy (0 to 1; null without classes), test_rms_error (V; null with
    classes), epochs, seconds, estimators [{estimator, test_accuracy, test_rms_error, epochs, seconds,
    cosine {crossbar: mean}, kcl_residual, settling_time (s), inference_energy and step_energy (J), writes,
    programming_error (of a substrate)}], figures}.
    """
    substrate = substrate_address(substrate)
    with ProgressDisplay() as display:
        try:
            if experiment.suffix in RECORD_SUFFIXES:
                run = _resume(experiment, seed, output, resume, substrate, display)
            else:
                run = _run(experiment, seed, output, resume, overwrite, substrate, display)
        except KeyboardInterrupt:
            display.__exit__()
            _interrupted(display.record)
            raise typer.Exit(130) from None
    paths: list[Path] = []
    try:
        if figures:
            from circuitsim.report import write_figures

            paths = write_figures(run, figure_folder(run.path))
    except CircuitsimError:
        # The results are safe; a person wants to see them all the same.
        if not as_json:
            _report(run, paths, experiment)
        raise
    if as_json:
        _report_json(run, paths)
    else:
        _report(run, paths, experiment)


def _resume(
    record: Path,
    seed: int | None,
    output: Path | None,
    resume: bool,
    substrate: str | None,
    display: ProgressDisplay,
) -> RunRecord:
    """Go on with a record named on the command line."""
    from circuitsim.study import resume_experiment

    if not resume and record.exists():
        raise SpecError("is a record", file=record, remedy="Add --resume, or use: circuitsim show.")
    for option, value in (("--seed", seed), ("--output", output)):
        if value is not None:
            raise SpecError("a record has its own", field=option, value=str(value), remedy="Leave it out.")
    return resume_experiment(record, watcher=display, substrate=substrate)


def _run(
    experiment: Path,
    seed: int | None,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    substrate: str | None,
    display: ProgressDisplay,
) -> RunRecord:
    """Start an experiment, or go on with its record."""
    from circuitsim.study import resume_experiment, run_experiment

    announce_compilation()
    if output is not None and output.suffix not in RECORD_SUFFIXES:
        raise SpecError("a record's name ends in .h5", field="--output", value=str(output))
    if overwrite and (output is None or resume):
        raise SpecError("needs -o, and goes without --resume", field="--overwrite")
    refuse_other_kinds(experiment, "experiment")
    record = _unfinished(experiment, seed, output) if resume else None
    if record is not None:
        return resume_experiment(record, watcher=display, substrate=substrate)
    return run_experiment(
        experiment, seed=seed, output=output, overwrite=overwrite, watcher=display, substrate=substrate
    )


def _unfinished(experiment: Path, seed: int | None, output: Path | None) -> Path | None:
    """Return the record to go on with: the one of -o, or else the newest that is not finished."""
    from circuitsim.record import list_records, read_record
    from circuitsim.study import load_experiment

    spec = load_experiment(experiment)
    wanted = {"name": spec.name, "seed": spec.seed if seed is None else seed}
    if output is not None:
        header = read_record(output).header
        for key, value in wanted.items():
            if header.get(key) != value:
                raise RecordError(
                    f"belongs to another run: {experiment} has {value}",
                    file=output,
                    field=key,
                    value=header.get(key),
                )
        return output
    found = [
        summary
        for summary in list_records(experiment.parent)
        if all(summary.header.get(key) == value for key, value in wanted.items())
    ]
    left = [summary for summary in found if not summary.finished]
    if not found:
        remark(f"no record of {spec.name} with seed {wanted['seed']} yet: starting one")
        return None
    newest = max(left or found, key=lambda summary: summary.path.stat().st_mtime)
    if newest.finished:
        remark(f"{newest.path} is finished: nothing to resume")
    return newest.path


def _interrupted(record: Path | None) -> None:
    if record is None:
        remark("interrupted before the first epoch: nothing was written")
        return
    remark(f"interrupted; {record} holds every whole epoch. Go on with:")
    remark(f"  circuitsim train {shlex.quote(str(record))} --resume")


def _report_json(run: RunRecord, paths: list[Path]) -> None:
    from circuitsim.report.tables import headline, result_rows

    print_json(
        {
            **headline(run),
            "record": str(run.path),
            "estimators": result_rows(run)[2],
            "figures": [str(path) for path in paths],
        }
    )


def _report(run: RunRecord, paths: list[Path], experiment: Path) -> None:
    from circuitsim.report.tables import energy_line, result_rows

    columns, rows, _ = result_rows(run)
    seed = run.header["seed"]
    substrate = run.header.get("substrate")
    on = f"one die (seed {seed}, card {run.header['card']['name']})"
    if substrate is not None:
        on = f"substrate {substrate}"
    print_table(
        f"{run.header['name']}: {on}, {max(arm.epochs for arm in run.arms.values())} epochs",
        columns,
        rows,
    )
    of = "exact gradient" if substrate is None else "the ideal circuit's gradient"
    print_line(f"cosine: estimated to {of}, mean over epochs (1-1e-3 is 0.999)\n")
    # Nobody sees the currents of a substrate.
    energy = energy_line(run) if substrate is None else None
    if energy is not None:
        print_line(f"energy   {energy}")
    print_line(f"record   {run.path}")
    for path in paths:
        print_line(f"figure   {path}")
    print_line("\nTry next:")
    print_line(f"  circuitsim show {shlex.quote(str(run.path))}")
    if experiment.suffix not in RECORD_SUFFIXES:
        print_line(f"  circuitsim train {shlex.quote(str(experiment))} --seed {seed + 1}     (another die)")
    hopfield = Path("netlists/hopfield.yaml")
    if run.header["network"] is None:
        print_line(f"  circuitsim crosscheck {shlex.quote(str(run.path))}     (every phase against ngspice)")
    elif hopfield.exists() and not str(run.header["experiment"]["network"]).endswith(hopfield.name):
        print_line(f"  circuitsim gradcheck {hopfield}     (loops)")
