"""`circuitsim solve`: the operating point of one input, and the sweeps of a deck."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from circuitsim.errors import ConvergenceError, NetlistError, SpecError

if TYPE_CHECKING:
    from circuitsim.netlist import Netlist, Values
    from circuitsim.solver import OperatingPoint, Plan
    from circuitsim.solver.sweep import SweepResult
    from circuitsim.spice.deck_file import Deck, SweepAnalysis

_MOST_ROWS = 40
_MOST_COLUMNS = 6
_SWEPT_ROWS = 20


def command(
    circuit: Path = typer.Argument(
        ..., help="Network or netlist (.yaml), SPICE deck (.cir), or record (.h5)."
    ),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    phase: str = PHASE_OPTION,
    target: str | None = TARGET_OPTION,
    beta: float = BETA_OPTION,
    seed: int = SEED_OPTION,
    method: str = METHOD_OPTION,
    every: bool = typer.Option(False, "--all", help="Print every node and branch, and every swept point."),
    output: Path | None = typer.Option(None, "-o", "--output", help="Write the deck's .dc sweep as .csv."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Solve one operating point: voltages (V), currents (A), power (W), KCL residual (A).

    Also: iterations, small-signal stability (largest real part of the spectrum in 1/s, negative is
    stable), ||A||/||S|| (antisymmetric over symmetric part of the small-signal matrix) and whether a
    metric makes it symmetric. A current is that which leaves the branch's positive node into it. A deck's
    .dc sweeps are solved too, each point from the one before.

    Example: circuitsim solve netlists/digits.yaml --sample 3

    JSON: {phase, beta, nodes {name: V}, branches {name: A}, outputs [V], kcl_residual {absolute (A),
    relative}, iterations, power (W), method, small_signal {largest_real_part, asymmetry, metric_asymmetry,
    metric_symmetrisable} or null, cost (W, not in the free phase), sweeps [{names, values, nodes, branches,
    kcl_residual}] (of a deck)}.
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
    deck = source.deck
    for note in () if deck is None else deck.notes:
        remark(f"note: {note}")
    if output is not None and (deck is None or not _sweeps(deck)):
        raise SpecError("has no .dc sweep to write", file=circuit, field="--output", value=str(output))
    start = None if deck is None else _start(deck, plan, values)
    free = solve(plan, values, Drive(inputs=inputs), settings, start=start)
    point, solved, extra = free, netlist, {}
    if targets is not None and source.cost is not None:
        nudge = source.cost.nudge(targets, beta)
        if phase == "dyadic":
            # The circuit beside its transposed copy, as one netlist.
            solved, _ = phase_netlist(netlist, phase, inputs, nudge)
            point = solve(build_plan(solved), solved.values(), np.empty((1, 0)))
        else:
            anchor = free if phase == "corrected" else None
            point = solve(plan, values, Drive(inputs=inputs, nudge=nudge, anchor=anchor), settings)
        extra = {"cost": float(source.cost.value(netlist.outputs.read(free.node_voltage), targets)[0])}
    signal = small_signal(plan, values, free.node_voltage[0], free.branch_current[0])
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
    swept = [] if deck is None else _swept(deck, plan, values, start)
    if swept:
        document["sweeps"] = [_sweep_document(netlist, one) for one in swept]
    if output is not None:
        _write(output, netlist, swept)
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
    for one in swept:
        _print_sweep(netlist, one, every)
    if output is not None:
        remark(f"written: {output}")


def _start(deck: Deck, plan: Plan, values: Values) -> OperatingPoint | None:
    """Return the point with the nodes of .nodeset held, to start from; None where there is none."""
    from circuitsim.solver.transient import operating_point_at_start

    if not deck.nodeset:
        return None
    try:
        return operating_point_at_start(plan, values, initial_voltage=deck.nodeset)
    except (ConvergenceError, NetlistError):
        # It is a hint: without it the search starts from zero.
        return None


def _sweeps(deck: Deck) -> list[SweepAnalysis]:
    from circuitsim.spice.deck_file import SweepAnalysis

    return [analysis for analysis in deck.analyses if isinstance(analysis, SweepAnalysis)]


def _swept(deck: Deck, plan: Plan, values: Values, start: OperatingPoint | None) -> list[SweepResult]:
    from circuitsim.solver.sweep import Swept, sweep, sweep_values

    return [
        sweep(
            plan,
            values,
            [Swept(source=s.source, values=sweep_values(s.start, s.stop, s.step)) for s in analysis.sweeps],
            start=start,
        )
        for analysis in _sweeps(deck)
    ]


def _sweep_document(netlist: Netlist, swept: SweepResult) -> dict[str, Any]:
    return {
        "names": swept.names,
        "values": swept.swept,
        "nodes": dict(zip(netlist.node_names[1:], swept.node_voltage[:, 1:].T, strict=True)),
        "branches": dict(zip(netlist.branch_names, swept.branch_current.T, strict=True)),
        "kcl_residual": {
            "absolute": float(swept.kcl_residual.max()),
            "relative": float(swept.relative_residual.max()),
        },
    }


def _write(path: Path, netlist: Netlist, sweeps: list[SweepResult]) -> None:
    """Write sweeps one after another, each with its own line of names."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for swept in sweeps:
        nodes = [f"{name} [V]" for name in netlist.node_names[1:]]
        writer.writerow([*swept.names, *nodes, *(f"{name} [A]" for name in netlist.branch_names)])
        for row in range(len(swept.swept)):
            numbers = (swept.swept[row], swept.node_voltage[row, 1:], swept.branch_current[row])
            writer.writerow([repr(number) for part in numbers for number in part.tolist()])
    try:
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise NetlistError(f"cannot be written: {error.strerror or error}", file=path) from error


def _print_sweep(netlist: Netlist, swept: SweepResult, every: bool) -> None:
    from circuitsim.units import engineering

    count = len(swept.swept)
    rows = list(range(count))
    if not every and count > _SWEPT_ROWS + 1:
        rows = [round(k * (count - 1) / _SWEPT_ROWS) for k in range(_SWEPT_ROWS + 1)]
    nodes = list(enumerate(netlist.node_names))[1:]
    shown = nodes if every else nodes[:_MOST_COLUMNS]
    units = [
        "ohm" if name in netlist.resistor.name else "A" if name in netlist.isource.name else "V"
        for name in swept.names
    ]
    table = [
        [
            *(engineering(x, unit) for x, unit in zip(swept.swept[row].tolist(), units, strict=True)),
            *(engineering(float(swept.node_voltage[row, node]), "V") for node, _ in shown),
        ]
        for row in rows
    ]
    print_table(
        f"Sweep of {', '.join(swept.names)}", [*swept.names, *(name for _, name in shown)], table, left=()
    )
    if len(rows) < count or len(shown) < len(nodes):
        remark(f"{count} points, {len(nodes)} nodes in all: --all, --output or --json shows them\n")
    residual, relative = float(swept.kcl_residual.max()), float(swept.relative_residual.max())
    print_facts(
        "Sweep",
        [
            ("points", count),
            ("iterations", swept.iterations),
            ("KCL residual beyond rounding", f"{residual:.1e} A, {relative:.1e} of the largest current"),
        ],
    )


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
