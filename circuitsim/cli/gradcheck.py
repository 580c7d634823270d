"""`circuitsim gradcheck`: every estimator against the exact gradient."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from circuitsim.cli.output import JSON_OPTION, announce_compilation, print_json, print_table, remark
from circuitsim.cli.source import (
    METHOD_OPTION,
    METHODS,
    SUBSTRATE_OPTION,
    check_choice,
    read_source,
    substrate_address,
)
from circuitsim.errors import SpecError
from circuitsim.file_kinds import is_experiment

if TYPE_CHECKING:
    from circuitsim.learning import Cost, GradientRow
    from circuitsim.netlist import Values
    from circuitsim.netlist.tables import FloatArray
    from circuitsim.solver import Plan, SolverSettings
    from circuitsim.study import Bench


def command(
    circuit: Path = typer.Argument(..., help="Network description or experiment (.yaml)."),
    beta: list[float] = typer.Option(
        [0.1, 0.01, 0.001], "--beta", help="Nudging strength; repeat for several."
    ),
    batch: int = typer.Option(8, "--batch", min=1, help="Number of input vectors."),
    devices: int = typer.Option(
        20, "--devices", min=1, help="Devices of each crossbar for finite differences."
    ),
    method: str = METHOD_OPTION,
    seed: int | None = typer.Option(
        None, "--seed", min=0, help="Seed of the initial conductances: 0, or an experiment's own."
    ),
    substrate: str | None = SUBSTRATE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare each estimator's gradient to the adjoint, and to central finite differences.

    Relative error and cosine are without unit, gradients in W/S. A network with 64 inputs and 10
    outputs gets digits, any other random inputs. Of an experiment it is the die before training, on the
    first training samples: the way to check a SPICE deck, as in runs/xor.yaml. Of an experiment with a
    substrate, gradients are read from it and compared with the ideal circuit's exact one, and with
    differences of outputs that are read, along --devices random directions of all of a crossbar's devices.

    Example: circuitsim gradcheck netlists/digits.yaml --beta 0.1 --beta 0.01

    JSON: a list of {estimator, beta, crossbar, relative_error, cosine (against the adjoint),
    relative_error_fd, cosine_fd (against finite differences), devices (of those)}.
    """
    from circuitsim.learning import Phases, check_gradients
    from circuitsim.solver import SolverSettings

    announce_compilation()
    for strength in beta:
        if not 0 < strength < math.inf:
            raise SpecError("must be greater than zero and finite", field="--beta", value=strength)
    check_choice("--method", method, METHODS)
    substrate = substrate_address(substrate)
    settings = SolverSettings(method=method, check=False)  # type: ignore[arg-type]
    if is_experiment(circuit):
        bench = _bench(circuit, seed)
        subject = _experiment(bench, batch)
        on_substrate = substrate is not None or bench.experiment.substrate is not None
    else:
        if substrate is not None:
            raise SpecError("is for experiments", field="--substrate", value=substrate)
        subject = _network(circuit, batch, seed or 0)
        on_substrate = False
    if on_substrate:
        rows = _on_substrate(bench, substrate, subject, settings, beta, devices)
    else:
        phases = Phases(plan=subject.plan, values=subject.values, cost=subject.cost, settings=settings)
        rows = check_gradients(
            phases, subject.inputs, subject.targets, betas=beta, devices=devices, seed=subject.seed
        )
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = [
        (
            row.crossbar,
            row.estimator,
            "" if row.beta is None else f"{row.beta:g}",
            f"{row.relative_error:.1e}",
            f"{row.cosine:.6f}",
            f"{row.relative_error_fd:.1e}",
            f"{row.cosine_fd:.6f}",
        )
        for row in rows
    ]
    columns = [
        "crossbar",
        "estimator",
        "beta",
        "error to adjoint",
        "cosine",
        "error to differences",
        "cosine",
    ]
    print_table(f"Gradients of {subject.plan.netlist.title}", columns, table, left=(0, 1), groups=True)
    drawn = f"{len(subject.inputs)} {subject.drawn} inputs"
    where = "along {} directions" if on_substrate else "on up to {} devices"
    remark(f"{drawn}; finite differences {where.format(devices)} of each crossbar")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A circuit with its cost, and a batch to take gradients of."""

    plan: Plan
    values: Values
    cost: Cost
    inputs: FloatArray
    targets: FloatArray
    drawn: str
    seed: int


def _bench(path: Path, seed: int | None) -> Bench:
    from circuitsim.study import load_experiment, prepare

    experiment = load_experiment(path)
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    return prepare(experiment, folder=path.parent, file=path)


def _on_substrate(
    bench: Bench,
    address: str | None,
    subject: _Subject,
    settings: SolverSettings,
    betas: list[float],
    devices: int,
) -> list[GradientRow]:
    from circuitsim.chip.substrate import Terminals
    from circuitsim.learning import Phases, SubstratePhases, check_on_substrate
    from circuitsim.learning.in_the_loop import check_substrate

    netlist = bench.plan.netlist
    with bench.connected(address) as ready:
        assert ready.substrate is not None
        check_substrate(ready.substrate, netlist, bench.cost, None)
        phases = SubstratePhases(
            substrate=ready.substrate,
            terminals=Terminals.of(netlist),
            cost=bench.cost,
            averaging=bench.experiment.readout.averaging,
        )
        model = Phases(plan=bench.plan, values=netlist.values(), cost=bench.cost, settings=settings)
        return check_on_substrate(
            phases,
            model,
            subject.inputs,
            subject.targets,
            betas=betas,
            directions=devices,
            seed=subject.seed,
        )


def _experiment(bench: Bench, batch: int) -> _Subject:
    """The die of an experiment, before training, on its first training samples."""
    return _Subject(
        plan=bench.plan,
        values=bench.chip.values,
        cost=bench.cost,
        inputs=bench.data.train_inputs[:batch],
        targets=bench.cost.targets(bench.data.train_labels[:batch], bench.data.classes),
        drawn=bench.data.name,
        seed=bench.experiment.seed,
    )


def _network(path: Path, batch: int, seed: int) -> _Subject:
    from circuitsim.data import load_digits
    from circuitsim.seeds import stream
    from circuitsim.solver import build_plan

    source = read_source(path, seed=seed)
    if source.network is None or source.cost is None:
        kind, remedy = "a netlist", "Give a network description."
        if source.deck is not None:
            kind, remedy = "a deck", "Give an experiment that names the deck, and the roles of its elements."
        raise SpecError(f"is {kind}; gradients need a cost", file=path, remedy=remedy)
    if not source.netlist.trainable:
        raise SpecError(
            "has no trainable crossbar, so there is nothing to check",
            file=path,
            remedy="Set trainable: true in a synapse or a bias.",
        )
    size, classes = source.network.input_size, source.network.output_size
    if (size, classes) == (64, 10):
        data = load_digits()
        inputs, labels = data.train_inputs[:batch], data.train_labels[:batch]
        drawn = "digits"
    else:
        inputs = stream(seed, "gradcheck", "inputs").uniform(-1, 1, (batch, size))
        labels = stream(seed, "gradcheck", "labels").integers(classes, size=batch)
        drawn = "uniform random"
    return _Subject(
        plan=build_plan(source.netlist),
        values=source.netlist.values(),
        cost=source.cost,
        inputs=inputs,
        targets=source.cost.targets(labels, classes),
        drawn=drawn,
        seed=seed,
    )
