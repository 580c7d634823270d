"""`circuitsim compile`: a network description to a netlist."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import JSON_OPTION, print_facts, print_json, print_table, remark
from circuitsim.cli.source import (
    BETA_OPTION,
    INPUT_OPTION,
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
from circuitsim.errors import NetlistError, SpecError

if TYPE_CHECKING:
    from circuitsim.netlist import Netlist


def command(
    network: Path = typer.Argument(..., help="Network description (.yaml), or a netlist to inspect."),
    phase: str = PHASE_OPTION,
    output: Path | None = typer.Option(None, "-o", "--output", help="File to write; replaced if it exists."),
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
    target, so they need --sample, or --input with --target.

    Example: circuitsim compile netlists/digits.yaml --phase corrected --sample 0 -o c.yaml

    JSON: {name, phase, file, nodes, elements {kind: count}, crossbars [{name, word_lines, bit_lines,
    devices, differential, trainable}], conductance {min, max} (S), non_reciprocal {kind: count}, inputs,
    outputs, digest}.
    """
    check_choice("--phase", phase, PHASES)
    check_choice("--format", format, ("yaml", "spice"))
    if format == "spice" and output is None:
        raise SpecError("needs a file to write", field="--format", value=format, remedy="Give one with -o.")
    if output is not None and output.exists() and network.exists() and output.samefile(network):
        raise SpecError("is the file to compile", field="--output", value=str(output))
    source = read_source(network, seed=seed)
    netlist = source.netlist
    if phase != "free" or given is not None or sample is not None or target is not None:
        inputs, targets = sample_of(source, given, sample, target, beta, phase=phase)
        nudge = None if targets is None or source.cost is None else source.cost.nudge(targets, beta)
        netlist = phase_netlist(netlist, phase, inputs, nudge)
    if output is not None:
        _write(netlist, output, format)
    counts = _counts(netlist)
    if as_json:
        print_json({**counts, "phase": phase, "file": None if output is None else str(output)})
        return
    _print(counts, phase)
    if output is not None:
        remark(f"written: {output}")


def _write(netlist: Netlist, path: Path, format: str) -> None:
    """Write a netlist; an earlier file stays until the new one is whole."""
    from circuitsim.netlist import write_netlist
    from circuitsim.spice import write_deck

    goal = path.resolve()
    # A device or a pipe takes the text itself.
    regular = goal.is_file() or not goal.exists()
    partial = goal.with_name(f".{goal.name}.{os.getpid()}.partial") if regular else goal
    try:
        if format == "yaml":
            write_netlist(netlist, partial)
        else:
            partial.write_text(write_deck(netlist), encoding="utf-8")
        if regular:
            os.replace(partial, goal)
    except (NetlistError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise NetlistError(f"cannot be written: {cause.strerror or cause}", file=path) from error
    finally:
        if regular:
            with contextlib.suppress(OSError):
                partial.unlink()


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


def _print(counts: dict[str, Any], phase: str) -> None:
    from circuitsim.units import engineering

    span = counts["conductance"]
    one_way = ", ".join(f"{count} {kind}" for kind, count in counts["non_reciprocal"].items())
    print_facts(
        f"Netlist of {counts['name']}",
        [
            ("phase", phase),
            ("nodes", counts["nodes"]),
            ("inputs", counts["inputs"]),
            ("outputs", counts["outputs"]),
            (
                "elements, blocks flattened",
                ", ".join(f"{count} {kind}" for kind, count in counts["elements"].items()) or "none",
            ),
            ("of them non-reciprocal", one_way or "none"),
            (
                "conductances of crossbars",
                f"{engineering(span['min'], 'S')} to {engineering(span['max'], 'S')}" if span else "none",
            ),
            ("digest", counts["digest"][:16]),
        ],
    )
    if not counts["crossbars"]:
        return
    rows = [
        (
            c["name"],
            c["word_lines"],
            c["bit_lines"],
            c["devices"],
            "differential pairs" if c["differential"] else "single",
            "yes" if c["trainable"] else "no",
        )
        for c in counts["crossbars"]
    ]
    columns = ["crossbar", "word lines", "bit lines", "devices", "arranged as", "trainable"]
    print_table("Crossbars", columns, rows, left=(0, 4))
