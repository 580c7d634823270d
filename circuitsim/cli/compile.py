"""`circuitsim compile`: a network description to a netlist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from circuitsim.netlist import Netlist


def command(
    network: Path = typer.Argument(..., help="Network description (.yaml), or a netlist to inspect."),
    phase: str = typer.Option("free", "--phase", help="free, nudged, corrected or dyadic."),
    output: Path | None = typer.Option(None, "-o", "--output", help="File to write."),
    format: str = typer.Option("yaml", "--format", help="yaml (blocks) or spice (a deck of plain elements)."),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    target: str | None = TARGET_OPTION,
    beta: float = BETA_OPTION,
    seed: int = SEED_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Compile a network to a netlist and summarise it: nodes, elements, crossbars, conductances (S).

    The nudged, corrected and dyadic phases are circuits of ordinary elements around one input and its
    target, so they need --sample or --input with --target.

    Example: [bold]circuitsim compile netlists/digits.yaml --phase corrected --sample 0 -o c.yaml[/bold]
    """
    check_phase(phase)
    if format not in ("yaml", "spice"):
        raise SpecError("is not a format", field="--format", value=format, remedy="Known: yaml, spice.")
    source = read_source(network, seed=seed)
    netlist = source.netlist
    if phase != "free" or given is not None or sample is not None:
        netlist = _phase_netlist(source, phase, given, sample, target, beta)
    if output is not None:
        _write(netlist, output, format)
    counts = _counts(netlist)
    if as_json:
        print_json({**counts, "phase": phase, "file": None if output is None else str(output)})
        return
    _print(netlist, counts, phase)
    if output is not None:
        notices().print(f"written: {output}")


def _phase_netlist(
    source: Any, phase: str, given: str | None, sample: int | None, target: str | None, beta: float
) -> Netlist:
    from dataclasses import replace

    from circuitsim.netlist import InputPort, corrected_netlist, dyadic_netlist, flatten, nudged_netlist
    from circuitsim.solver import build_plan, solve

    netlist = source.netlist
    inputs, targets = sample_of(source, given, sample, target, needs_target=phase != "free")
    voltage = netlist.source_voltage(inputs)[0]
    point = solve(build_plan(netlist), netlist.values(), inputs) if phase in ("corrected", "dyadic") else None
    netlist = replace(netlist, vsource=replace(netlist.vsource, voltage=voltage), inputs=InputPort.none())
    if targets is None or source.cost is None:
        return netlist
    nudge = source.cost.nudge(targets, beta)
    if point is None:
        return nudged_netlist(netlist, nudge)
    flat = flatten(netlist)
    v, i = flat.lift(point.node_voltage, point.branch_current)
    if phase == "corrected":
        return nudged_netlist(corrected_netlist(flat.netlist, v[0], i[0]), nudge)
    return dyadic_netlist(flat.netlist, v[0], nudge)


def _write(netlist: Netlist, path: Path, format: str) -> None:
    if format == "yaml":
        from circuitsim.netlist import write_netlist

        write_netlist(netlist, path)
        return
    from circuitsim.spice import write_deck

    path.write_text(write_deck(netlist))


def _counts(netlist: Netlist) -> dict[str, Any]:
    import numpy as np

    from circuitsim.netlist import flatten

    flat = flatten(netlist).netlist
    conductances = [g[g > 0] for c in netlist.crossbars for g in (c.g_plus, c.g_minus) if g is not None]
    every = np.concatenate([np.empty(0), *conductances])
    one_way = {
        "buffer": len(flat.buffer),
        "vccs": sum(
            (p, n) != (cp, cn)
            for p, n, cp, cn in zip(
                flat.vccs.pos, flat.vccs.neg, flat.vccs.control_pos, flat.vccs.control_neg, strict=True
            )
        ),
        "vcvs": len(flat.vcvs),
        "cccs": len(flat.cccs),
        "ccvs": len(flat.ccvs),
    }
    return {
        "name": netlist.title,
        "nodes": netlist.n_nodes - 1,
        "elements": {table.kind: len(table) for table in flat.tables() if len(table)},
        "crossbars": [
            {
                "name": c.name,
                "word_lines": c.shape[0],
                "bit_lines": c.shape[1],
                "devices": c.devices,
                "differential": c.differential,
                "trainable": c.trainable,
            }
            for c in netlist.crossbars
        ],
        "conductance": {"min": float(every.min()), "max": float(every.max())} if len(every) else None,
        "non_reciprocal": {kind: count for kind, count in one_way.items() if count},
        "inputs": netlist.inputs.size,
        "outputs": len(netlist.outputs.pos),
        "digest": netlist.digest,
    }


def _print(netlist: Netlist, counts: dict[str, Any], phase: str) -> None:
    from circuitsim.units import engineering

    out = console()
    span = counts["conductance"]
    facts: list[tuple[str, object]] = [
        ("phase", phase),
        ("nodes", counts["nodes"]),
        ("inputs, outputs", f"{counts['inputs']}, {counts['outputs']}"),
        *((f"{kind} elements, flattened", count) for kind, count in counts["elements"].items()),
        (
            "conductance of crossbar devices",
            "none" if span is None else f"{engineering(span['min'], 'S')} to {engineering(span['max'], 'S')}",
        ),
        (
            "non-reciprocal elements",
            ", ".join(f"{n} {kind}" for kind, n in counts["non_reciprocal"].items()) or "none",
        ),
        ("digest", counts["digest"][:16]),
    ]
    out.print(make_table(f"Netlist of {netlist.title}", ["", ""], facts))
    if counts["crossbars"]:
        rows = [
            (
                c["name"],
                f"{c['word_lines']} x {c['bit_lines']}",
                c["devices"],
                "pair" if c["differential"] else "single",
                "yes" if c["trainable"] else "no",
            )
            for c in counts["crossbars"]
        ]
        columns = ["crossbar", "word x bit lines", "devices", "devices are", "trainable"]
        out.print(make_table("Crossbars", columns, rows))
