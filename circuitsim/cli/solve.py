"""`circuitsim solve`: the operating point of one input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from circuitsim.cli.output import JSON_OPTION, console, make_table, notices, print_json
from circuitsim.cli.source import (
    BETA_OPTION,
    INPUT_OPTION,
    SAMPLE_OPTION,
    SEED_OPTION,
    TARGET_OPTION,
    check_phase,
    read_source,
    sample_of,
)
from circuitsim.errors import SpecError

_MOST_ROWS = 40


def command(
    circuit: Path = typer.Argument(..., help="Network description or netlist (.yaml)."),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    phase: str = typer.Option("free", "--phase", help="free, nudged, corrected or dyadic."),
    target: str | None = TARGET_OPTION,
    beta: float = BETA_OPTION,
    seed: int = SEED_OPTION,
    method: str = typer.Option("auto", "--method", help="auto, general or layered."),
    every: bool = typer.Option(False, "--all", help="Print every node and branch."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Solve one operating point: voltages (V), currents (A), power (W), KCL residual (A).

    Also: iterations, small-signal stability (largest real part of the spectrum (1/s), negative is
    stable), ||A||/||S|| (antisymmetric over symmetric part of the small-signal matrix) and whether a
    metric makes it symmetric. A current is that which leaves the branch's positive node into it.

    Example: [bold]circuitsim solve netlists/digits.yaml --sample 3[/bold]
    """
    from circuitsim.solver import Drive, SolverSettings, build_plan, solve
    from circuitsim.solver.smallsignal import small_signal

    check_phase(phase)
    if method not in ("auto", "general", "layered"):
        raise SpecError(
            "is not a method", field="--method", value=method, remedy="Known: auto, general, layered."
        )
    source = read_source(circuit, seed=seed)
    netlist = source.netlist
    inputs, targets = sample_of(source, given, sample, target, needs_target=phase != "free")
    plan, values = build_plan(netlist), netlist.values()
    settings = SolverSettings(method=method)  # type: ignore[arg-type]
    free = solve(plan, values, Drive(inputs=inputs), settings)
    point, names, extra = free, netlist.node_names, {}
    branches = netlist.branch_names
    if targets is not None and source.cost is not None:
        nudge = source.cost.nudge(targets, beta)
        if phase == "dyadic":
            point, names, branches = _dyadic(netlist, free, nudge)
        else:
            anchor = free if phase == "corrected" else None
            point = solve(plan, values, Drive(inputs=inputs, nudge=nudge, anchor=anchor), settings)
        extra = {"cost": float(source.cost.value(netlist.outputs.read(free.node_voltage), targets)[0])}
    signal = small_signal(plan, values, free.node_voltage[0])
    small: dict[str, Any] = {}
    if signal is not None:
        small = {
            "largest_real_part": signal.largest_real,
            "asymmetry": signal.asymmetry,
            "metric_asymmetry": signal.metric_asymmetry,
            "metric_symmetrisable": signal.symmetrisable,
        }
    document = {
        "phase": phase,
        "beta": None if phase == "free" else beta,
        "nodes": dict(zip(names[1:], point.node_voltage[0, 1:].tolist(), strict=True)),
        "branches": dict(zip(branches, point.branch_current[0].tolist(), strict=True)),
        "outputs": netlist.outputs.read(point.node_voltage)[0].tolist(),
        "kcl_residual": {
            "absolute": float(point.kcl_residual[0]),
            "relative": float(point.relative_residual[0]),
        },
        "iterations": int(point.iterations[0]),
        "power": float(point.power[0]),
        "method": point.method,
        "small_signal": small or None,
        **extra,
    }
    if as_json:
        print_json(document)
        return
    # Neurons first: a person asks for those.
    neurons = [
        netlist.node_names[node] for nodes in reversed(list(netlist.groups.values())) for node in nodes
    ]
    ordered = {name: document["nodes"][name] for name in neurons}
    document["nodes"] = ordered | document["nodes"]
    _print(netlist.title, document, every)


def _dyadic(netlist: Any, free: Any, nudge: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Solve the circuit beside its transposed copy, as one netlist."""
    from dataclasses import replace

    import numpy as np

    from circuitsim.netlist import InputPort, dyadic_netlist, flatten
    from circuitsim.solver import build_plan, solve

    flat = flatten(netlist)
    v, _ = flat.lift(free.node_voltage, free.branch_current)
    # The anchor holds the voltages of the input sources.
    voltage = np.array(flat.netlist.vsource.voltage)
    rows = netlist.inputs.source
    voltage[rows] = v[0, flat.netlist.vsource.pos[rows]]
    held = replace(
        flat.netlist, vsource=replace(flat.netlist.vsource, voltage=voltage), inputs=InputPort.none()
    )
    double = dyadic_netlist(held, v[0], nudge)
    point = solve(build_plan(double), double.values(), np.empty((1, 0)))
    return point, double.node_names, double.branch_names


def _print(title: str, document: dict[str, Any], every: bool) -> None:
    from circuitsim.units import engineering

    out = console()
    for kind, unit in (("nodes", "V"), ("branches", "A")):
        items = list(document[kind].items())
        shown = items if every else items[:_MOST_ROWS]
        if not shown:
            continue
        what = "voltage" if unit == "V" else "current"
        # Four columns of pairs: a network has more nodes than a screen has lines.
        columns = [f"{kind[:-1] if kind == 'nodes' else 'branch'}", what] * 2
        half = (len(shown) + 1) // 2
        rows = []
        for k in range(half):
            row = [shown[k][0], engineering(shown[k][1], unit)]
            if k + half < len(shown):
                row += [shown[k + half][0], engineering(shown[k + half][1], unit)]
            rows.append(row + [""] * (4 - len(row)))
        out.print(make_table(f"{what.capitalize()}s of {title}", columns, rows))
        if len(shown) < len(items):
            notices().print(f"{len(items) - len(shown)} more {kind}: --all or --json shows them")
    residual = document["kcl_residual"]
    facts: list[tuple[str, object]] = [
        (
            "phase",
            document["phase"]
            if document["beta"] is None
            else f"{document['phase']}, beta {document['beta']:g}",
        ),
        ("outputs", ", ".join(engineering(y, "V") for y in document["outputs"]) or "none"),
        ("power", engineering(document["power"], "W")),
        ("KCL residual", f"{residual['absolute']:.1e} A, {residual['relative']:.1e} of the largest current"),
        ("iterations", f"{document['iterations']} ({document['method']})"),
    ]
    small = document["small_signal"]
    if small is None:
        facts.append(("small signal", "not computed: too many unknowns for a dense analysis"))
    else:
        rate = small["largest_real_part"]
        if rate is None:
            stable = "no capacitance, no dynamics"
        else:
            stable = f"{'stable' if rate < 0 else 'UNSTABLE'}, largest real part {rate:.3g} /s"
        facts += [
            ("stability of the free phase", stable),
            ("||A|| / ||S||", f"{small['asymmetry']:.3g} (0 is reciprocal)"),
            (
                "metric-symmetrisable",
                f"{'yes' if small['metric_symmetrisable'] else 'no'} "
                f"(||A|| / ||S|| with the best metric: {small['metric_asymmetry']:.3g})",
            ),
        ]
    out.print(make_table("Operating point", ["", ""], facts))
