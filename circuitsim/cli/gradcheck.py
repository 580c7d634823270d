"""`circuitsim gradcheck`: every estimator against the exact gradient."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from circuitsim.cli.output import JSON_OPTION, announce_compilation, print_json, print_table, remark
from circuitsim.cli.source import METHOD_OPTION, METHODS, SEED_OPTION, check_choice, read_source
from circuitsim.errors import SpecError


def command(
    network: Path = typer.Argument(..., help="Network description (.yaml)."),
    beta: list[float] = typer.Option(
        [0.1, 0.01, 0.001], "--beta", help="Nudging strength; repeat for several."
    ),
    batch: int = typer.Option(8, "--batch", min=1, help="Number of input vectors."),
    devices: int = typer.Option(
        20, "--devices", min=1, help="Devices of each crossbar for finite differences."
    ),
    method: str = METHOD_OPTION,
    seed: int = SEED_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare each estimator's gradient to the adjoint, and to central finite differences.

    Relative error and cosine are without unit, gradients in W/S. A network with 64 inputs and 10
    outputs gets digits, any other random inputs.

    Example: circuitsim gradcheck netlists/digits.yaml --beta 0.1 --beta 0.01

    JSON: a list of {estimator, beta, crossbar, relative_error, cosine (against the adjoint),
    relative_error_fd, cosine_fd (against finite differences), devices (of those)}.
    """
    import numpy as np

    from circuitsim.data import load_digits
    from circuitsim.learning import Phases, check_gradients
    from circuitsim.seeds import stream
    from circuitsim.solver import SolverSettings, build_plan

    announce_compilation()
    for strength in beta:
        if not 0 < strength < np.inf:
            raise SpecError("must be greater than zero and finite", field="--beta", value=strength)
    check_choice("--method", method, METHODS)
    source = read_source(network, seed=seed)
    if source.network is None or source.cost is None:
        raise SpecError(
            "is a netlist; gradients need a cost", file=network, remedy="Give a network description."
        )
    if not source.netlist.trainable:
        raise SpecError(
            "has no trainable crossbar, so there is nothing to check",
            file=network,
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
    phases = Phases(
        plan=build_plan(source.netlist),
        values=source.netlist.values(),
        cost=source.cost,
        settings=SolverSettings(method=method, check=False),  # type: ignore[arg-type]
    )
    targets = source.cost.targets(labels, classes)
    rows = check_gradients(phases, inputs, targets, betas=beta, devices=devices, seed=seed)
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
    print_table(f"Gradients of {source.netlist.title}", columns, table, left=(0, 1), groups=True)
    remark(f"{len(inputs)} {drawn} inputs; finite differences on up to {devices} devices of each crossbar")
