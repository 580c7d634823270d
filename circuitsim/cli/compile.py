"""`circuitsim compile`: a network description or a SPICE deck to a netlist or a deck."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
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
    from circuitsim.spice.deck_file import Analysis

_PRINTED_STEPS = 100
"""Intervals that a transient analysis prints where the deck says nothing else."""


def command(
    network: Path = typer.Argument(
        ..., help="Network or netlist (.yaml), SPICE deck (.cir), or record (.h5)."
    ),
    phase: str = PHASE_OPTION,
    output: Path | None = typer.Option(None, "-o", "--output", help="File to write; replaced if it exists."),
    format: str = typer.Option("yaml", "--format", help="yaml (blocks) or spice (a deck of plain elements)."),
    analysis: str | None = typer.Option(
        None, "--analysis", help="What a SPICE deck runs: op or tran. Default: a deck's own, else op."
    ),
    stop: str | None = typer.Option(None, "--stop", help="End of the transient analysis (s)."),
    given: str | None = INPUT_OPTION,
    sample: int | None = SAMPLE_OPTION,
    target: str | None = TARGET_OPTION,
    beta: float = BETA_OPTION,
    seed: int = SEED_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Compile a network to a netlist and summarise it: nodes, elements, crossbars, conductances (S).

    The nudged, corrected and dyadic phases are circuits of ordinary elements around one input and its
    target, so they need --sample, or --input with --target. A transient of a network begins at rest
    (uic): its capacitors charge towards the operating point.

    Example: circuitsim compile netlists/digits.yaml --phase corrected --sample 0 -o c.yaml

    JSON: {name, phase, file, nodes, elements {kind: count}, crossbars [{name, word_lines, bit_lines,
    devices, differential, trainable}], conductance {min, max} (S), non_reciprocal {kind: count}, inputs,
    outputs, digest}.
    """
    check_choice("--phase", phase, PHASES)
    check_choice("--format", format, ("yaml", "spice"))
    if format == "spice" and output is None:
        raise SpecError("needs a file to write", field="--format", value=format, remedy="Give one with -o.")
    if format != "spice" and (analysis is not None or stop is not None):
        option, value = ("--stop", stop) if analysis is None else ("--analysis", analysis)
        raise SpecError("is for SPICE decks", field=option, value=value, remedy="Add --format spice.")
    if output is not None and output.exists() and network.exists() and output.samefile(network):
        raise SpecError("is the file to compile", field="--output", value=str(output))
    source = read_source(network, seed=seed)
    analyses = _analyses(analysis, stop, at_rest=source.deck is None)
    for note in () if source.deck is None else source.deck.notes:
        remark(f"note: {note}")
    netlist = source.netlist
    changed, nodeset = False, dict[str, float]()
    if phase != "free" or given is not None or sample is not None or target is not None:
        inputs, targets = sample_of(source, given, sample, target, beta, phase=phase)
        nudge = None if targets is None or source.cost is None else source.cost.nudge(targets, beta)
        netlist, nodeset = phase_netlist(netlist, phase, inputs, nudge)
        changed = True
    if output is not None:
        from circuitsim.netlist import write_netlist
        from circuitsim.spice import write_deck
        from circuitsim.spice.deck_file import Deck

        if format == "yaml":
            _write(output, lambda path: write_netlist(netlist, path))
        else:
            circuit = netlist if source.deck is None or changed else source.deck
            if nodeset:
                circuit = Deck(title=netlist.title, netlist=netlist, nodeset=nodeset)
            origin = source.netlist if phase != "free" else None
            deck = write_deck(circuit, analyses=analyses, origin=origin)
            _write(output, lambda path: path.write_text(deck, encoding="utf-8"))
    counts = _counts(netlist)
    if as_json:
        print_json({**counts, "phase": phase, "file": None if output is None else str(output)})
        return
    _print(counts, phase)
    if output is not None:
        remark(f"written: {output}")


def _analyses(analysis: str | None, stop: str | None, *, at_rest: bool) -> list[Analysis] | None:
    """Return the analyses asked for, or None for what the circuit says itself."""
    from circuitsim.spice.deck_file import OperatingPointAnalysis, TransientAnalysis
    from circuitsim.units import parse_quantity

    if analysis is not None:
        check_choice("--analysis", analysis, ("op", "tran"))
    if analysis != "tran":
        if stop is not None:
            raise SpecError("is for transients", field="--stop", value=stop, remedy="Add --analysis tran.")
        return None if analysis is None else [OperatingPointAnalysis()]
    if stop is None:
        raise SpecError("needs an end", field="--analysis", value=analysis, remedy="Give --stop, in seconds.")
    try:
        end = parse_quantity(stop)
    except SpecError as error:
        raise SpecError(error.rule, field="--stop", value=stop, remedy=error.remedy) from error
    if end <= 0:
        raise SpecError("must be positive [s]", field="--stop", value=stop)
    # Sources of a network are constant: from its operating point it would not move.
    return [TransientAnalysis(step=end / _PRINTED_STEPS, stop=end, uic=at_rest)]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file; an earlier one stays until the new one is whole."""
    goal = path.resolve()
    # A device or a pipe takes the text itself.
    regular = goal.is_file() or not goal.exists()
    partial = goal.with_name(f".{goal.name}.{os.getpid()}.partial") if regular else goal
    try:
        write(partial)
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
    from circuitsim.netlist.expressions import Drop

    flat = flatten(netlist).netlist
    own = flat.behavioural_current
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
        "behavioural_current": sum(
            any(not isinstance(x, Drop) or {x.pos, x.neg} != {pos, neg} for x in expression.inputs)
            for pos, neg, expression in zip(own.pos, own.neg, own.expression, strict=True)
        ),
        "behavioural_voltage": sum(bool(e.inputs) for e in flat.behavioural_voltage.expression),
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
