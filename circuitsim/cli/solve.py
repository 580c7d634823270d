"""`circuitsim solve`: the operating point of one input."""

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
    BETA_OPTION,
    INPUT_OPTION,
    METHOD_OPTION,
    METHODS,
    PHASE_OPTION,
    PHASES,
    SAMPLE_OPTION,
    SEED_OPTION,
    TARGET_OPTION,
    check_choice,
    phase_netlist,
    read_source,
    sample_of,
)

_MOST_ROWS = 40


def command(
    circuit: Path = typer.Argument(..., help="Network description or netlist (.yaml)."),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    phase: str = PHASE_OPTION,
    target: str | None = TARGET_OPTION,
    beta: float = BETA_OPTION,
    seed: int = SEED_OPTION,
    method: str = METHOD_OPTION,
    every: bool = typer.Option(False, "--all", help="Print every node and branch."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Solve one operating point: voltages (V), currents (A), power (W), KCL residual (A).

    Also: iterations, small-signal stability (largest real part of the spectrum in 1/s, negative is
    stable), ||A||/||S|| (antisymmetric over symmetric part of the small-signal matrix) and whether a
    metric makes it symmetric. A current is that which leaves the branch's positive node into it.

    Example: circuitsim solve netlists/digits.yaml --sample 3

    JSON: {phase, beta, nodes {name: V}, branches {name: A}, outputs [V], kcl_residual {absolute (A),
    relative}, iterations, power (W), method, small_signal {largest_real_part, asymmetry, metric_asymmetry,
    metric_symmetrisable} or null, cost (W, not in the free phase)}.
    """
    import numpy as np

    from circuitsim.solver import Drive, SolverSettings, build_plan, solve
    from circuitsim.solver.smallsignal import small_signal

    announce_compilation()
    check_choice("--phase", phase, PHASES)
    check_choice("--method", method, METHODS)
    source = read_source(circuit, seed=seed)
    netlist = source.netlist
    inputs, targets = sample_of(source, given, sample, target, beta, phase=phase)
    plan, values = build_plan(netlist), netlist.values()
    settings = SolverSettings(method=method)  # type: ignore[arg-type]
    free = solve(plan, values, Drive(inputs=inputs), settings)
    point, solved, extra = free, netlist, {}
    if targets is not None and source.cost is not None:
        nudge = source.cost.nudge(targets, beta)
        if phase == "dyadic":
            # The circuit beside its transposed copy, as one netlist.
            solved = phase_netlist(netlist, phase, inputs, nudge)
            point = solve(build_plan(solved), solved.values(), np.empty((1, 0)))
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
        "nodes": dict(zip(solved.node_names[1:], point.node_voltage[0, 1:].tolist(), strict=True)),
        "branches": dict(zip(solved.branch_names, point.branch_current[0].tolist(), strict=True)),
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


def _print(title: str, document: dict[str, Any], every: bool) -> None:
    from circuitsim.units import engineering

    for kind, singular, what, unit in (
        ("nodes", "node", "voltage", "V"),
        ("branches", "branch", "current", "A"),
    ):
        items = [(name, engineering(value, unit)) for name, value in document[kind].items()]
        shown = items if every else items[:_MOST_ROWS]
        if not shown:
            continue
        # Two pairs of columns: a network has more nodes than a screen has lines.
        half = (len(shown) + 1) // 2
        right = [*shown[half:], ("", "")]
        rows = [(*pair, "", *right[k]) for k, pair in enumerate(shown[:half])]
        columns = [singular, what, "", singular, what]
        print_table(f"{what.capitalize()}s of {title}", columns, rows, left=(0, 3))
        if len(shown) < len(items):
            remark(f"{len(items) - len(shown)} more {kind}: --all or --json shows them\n")
    residual = document["kcl_residual"]
    beta = "" if document["beta"] is None else f", beta {document['beta']:g}"
    facts: list[tuple[str, object]] = [
        ("phase", document["phase"] + beta),
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
            ("||A||/||S||", f"{small['asymmetry']:.3g} (0 is reciprocal)"),
            (
                "metric-symmetrisable",
                f"{'yes' if small['metric_symmetrisable'] else 'no'} "
                f"(||A||/||S|| with the best metric: {small['metric_asymmetry']:.3g})",
            ),
        ]
    print_facts("Operating point", facts)
