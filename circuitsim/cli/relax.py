"""`circuitsim relax`: the gradient's error while a network relaxes, and clocked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from circuitsim.cli.output import (
    JSON_OPTION,
    announce_compilation,
    print_facts,
    print_json,
    print_table,
    remark,
)
from circuitsim.cli.source import (
    INPUT_OPTION,
    SAMPLE_OPTION,
    SEED_OPTION,
    TARGET_OPTION,
    check_choice,
    read_source,
    sample_of,
)
from circuitsim.errors import RecordError, SpecError

_MULTIPLES = (1, 2, 3, 4, 6, 8)
_MARKED = (2, 4, 8)


def command(
    network: Path = typer.Argument(..., help="Network description (.yaml)."),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    target: str | None = TARGET_OPTION,
    duration: float | None = typer.Option(
        None, "--duration", help="How long to relax, in time constants. Default: 8 L + 2 for L layers."
    ),
    capacitance: str = typer.Option(
        "equal", "--capacitance", help="equal (one time constant C / g for every node) or file (its own)."
    ),
    plot: bool = typer.Option(False, "--plot", help="Draw a figure: NAME-relax.png in this folder."),
    figure: Path | None = typer.Option(None, "--figure", help="Draw a figure into this file (.png)."),
    seed: int = SEED_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Watch the dyadic phase learn in finite time: error of the gradient (1) against time.

    The network and its transposed copy relax together from rest; at every moment the local rule gives a
    gradient, whose error against the exact one is reported, relative, over all crossbars. Beside it the
    clocked pipeline, in which every node settles once a step: exact after 2 L steps in a feedforward
    network of L layers.

    Example: circuitsim relax netlists/digits.yaml --sample 0

    JSON: {name, layers, capacitance, time_constant (s), time [time constants], error [1], forward_error
    [1], clocked [1] or null, marks {"2 L": error}, figure}.
    """
    from circuitsim.learning import Cost, Phases
    from circuitsim.solver import build_plan
    from circuitsim.study.finite_time import finite_time_learning

    announce_compilation()
    check_choice("--capacitance", capacitance, ("equal", "file"))
    source = read_source(network, seed=seed)
    inputs, targets = sample_of(source, given, sample, target, 1.0, phase="dyadic")
    assert targets is not None
    assert isinstance(source.cost, Cost)
    if duration is not None and not 0 < duration <= 1000:
        raise SpecError("must be above 0 and at most 1000", field="--duration", value=duration)
    netlist = source.netlist
    phases = Phases(plan=build_plan(netlist), values=netlist.values(), cost=source.cost)
    found = finite_time_learning(
        phases,
        inputs,
        targets,
        duration=duration,
        capacitance=capacitance,  # type: ignore[arg-type]
    )
    end = float(found.time[-1])
    marks = {f"{k} L": found.at(k * found.depth) for k in _MULTIPLES if k * found.depth <= end}
    if plot and figure is None:
        figure = Path(f"{network.stem}-relax.png")
    if figure is not None:
        from circuitsim.report.transient import draw_finite_time

        if figure.suffix.lower() != ".png":
            raise RecordError("figures are PNG files", file=figure, remedy="Give a name that ends in .png.")
        draw_finite_time(
            found.time,
            found.continuous,
            found.clocked,
            figure,
            name=netlist.title,
            depth=found.depth,
            marks=[(k, marks[f"{k} L"]) for k in _MARKED if f"{k} L" in marks],
        )
    document: dict[str, Any] = {
        "name": netlist.title,
        "layers": found.depth,
        "capacitance": found.capacitance,
        "time_constant": found.time_constant,
        "time": found.time,
        "error": found.continuous,
        "forward_error": found.forward,
        "clocked": found.clocked,
        "marks": marks,
        "figure": None if figure is None else str(figure),
    }
    if as_json:
        print_json(document)
        return
    clocked = found.clocked
    rows = []
    for k in _MULTIPLES:
        if f"{k} L" in marks:
            step = k * found.depth
            # Beyond the last step, which is exact, nothing changes any more.
            exact = "" if clocked is None else f"{clocked[min(step, len(clocked) - 1)]:.1e}"
            rows.append([f"{k} L = {step}", f"{marks[f'{k} L']:.2e}", exact])
    print_table(f"Error of the gradient of {netlist.title}", ["time", "relaxing", "clocked"], rows, left=())
    unit = "equal for all nodes" if found.capacitance == "equal" else f"slowest {found.time_constant:.3g} s"
    print_facts("Finite time", [("layers L", found.depth), ("time constant C / g", unit)])
    if clocked is None:
        remark("clocked steps are for feedforward networks of buffered synapses")
    if figure is not None:
        remark(f"written: {figure}")
