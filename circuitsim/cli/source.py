"""What commands read: a network or a netlist, one input with its target, and the phase to make of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from circuitsim.cli.output import announce_compilation, remark
from circuitsim.errors import NetlistError, SpecError
from circuitsim.file_kinds import is_deck, is_netlist, is_record

if TYPE_CHECKING:
    from circuitsim.learning import Cost
    from circuitsim.netlist import Netlist, Nudge
    from circuitsim.netlist.tables import FloatArray
    from circuitsim.network import NetworkSpec
    from circuitsim.spice.deck_file import Deck

__all__ = [
    "BETA_OPTION",
    "INPUT_OPTION",
    "METHODS",
    "METHOD_OPTION",
    "PHASES",
    "PHASE_OPTION",
    "SAMPLE_OPTION",
    "SEED_OPTION",
    "SUBSTRATE_OPTION",
    "TARGET_OPTION",
    "Source",
    "check_choice",
    "phase_netlist",
    "read_source",
    "refuse_other_kinds",
    "sample_of",
    "substrate_address",
]

PHASES = ("free", "nudged", "corrected", "dyadic")
METHODS = ("auto", "general", "layered", "wired")

INPUT_OPTION = typer.Option(
    None,
    "--input",
    help="Input vector: numbers with commas, SPICE suffixes allowed, or a .txt, .csv or .npy file.",
)
SAMPLE_OPTION = typer.Option(None, "--sample", min=0, help="Take held-out sample K of the digits data set.")
TARGET_OPTION = typer.Option(
    None,
    "--target",
    help="Class number, or one target per output with commas: V, or probabilities for cross_entropy.",
)
PHASE_OPTION = typer.Option("free", "--phase", help="free, nudged, corrected or dyadic.")
BETA_OPTION = typer.Option(0.01, "--beta", help="Nudging strength, without unit; may be negative.")
SEED_OPTION = typer.Option(0, "--seed", min=0, help="Seed of the initial conductances.")
METHOD_OPTION = typer.Option("auto", "--method", help="auto, general, layered or wired.")
SUBSTRATE_OPTION = typer.Option(
    None,
    "--substrate",
    help="What to learn on instead of the experiment's own: simulated, visa:RESOURCE, mock:FILE or "
    "python:MODULE:FUNCTION.",
)


def substrate_address(given: str | None) -> str | None:
    """Return what --substrate names: its file is relative to where the command is run."""
    kind, _, rest = (given or "").partition(":")
    return f"mock:{Path(rest).resolve()}" if kind == "mock" and rest else given


# Per kind of file: what it is called, a key that only it has, and the commands that read it.
_KINDS = {
    "network": ("a network description", "layers", "compile, solve, gradcheck"),
    "experiment": ("an experiment", "estimators", "train, gradcheck, crosscheck"),
    "netlist": ("a netlist", "format", "compile, solve"),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A circuit read from a file; network and cost are None for a netlist, and deck for all but a deck."""

    netlist: Netlist
    network: NetworkSpec | None
    cost: Cost | None
    deck: Deck | None = None


def read_source(path: Path, *, seed: int = 0) -> Source:
    """Read a network description, a netlist that `circuitsim compile` wrote, a record or a SPICE deck."""
    from circuitsim.compiler import compile_network
    from circuitsim.learning import Cost
    from circuitsim.netlist import read_netlist
    from circuitsim.network import load_network

    if is_record(path):
        from circuitsim.study.subjects import learned_chip

        bench, chip, state = learned_chip(path)
        remark(f"{path.name}: die {chip.seed}, {state}")
        return Source(netlist=chip.netlist.with_values(chip.values), network=bench.network, cost=bench.cost)
    if is_deck(path):
        from circuitsim.spice.reader import read_deck

        deck = read_deck(path)
        return Source(netlist=deck.netlist, network=None, cost=None, deck=deck)
    if is_netlist(path):
        return Source(netlist=read_netlist(path), network=None, cost=None)
    refuse_other_kinds(path, "network")
    network = load_network(path)
    try:
        netlist = compile_network(network, seed=seed)
    except NetlistError as error:
        raise NetlistError(str(error), file=path) from error
    return Source(netlist=netlist, network=network, cost=Cost.of(network))


def refuse_other_kinds(path: Path, wanted: str) -> None:
    """Raise SpecError where a file is of another known kind: one error instead of one a key."""
    from circuitsim.network import read_document

    name, key, _ = _KINDS[wanted]
    if is_deck(path):
        remedy = "Write an experiment that names it, and the roles of its elements."
        raise SpecError(f"is a SPICE deck, not {name}", file=path, remedy=remedy)
    document = read_document(path)
    if key in document:
        return
    for other, telltale, commands in _KINDS.values():
        if telltale in document:
            raise SpecError(f"is {other}, not {name}", file=path, remedy=f"Commands for it: {commands}.")


def check_choice(option: str, value: str, known: Sequence[str]) -> str:
    """Return an option's value, or raise SpecError where it is not one of the known."""
    if value not in known:
        raise SpecError("is not known", field=option, value=value, remedy=f"Known: {', '.join(known)}.")
    return value


def sample_of(
    source: Source, given: str | None, sample: int | None, target: str | None, beta: float, *, phase: str
) -> tuple[FloatArray, FloatArray | None]:
    """Return inputs (1, n_in) and, unless the phase is free, targets (1, K)."""
    if phase == "free" and target is not None:
        raise SpecError("is only for the nudged, corrected and dyadic phases", field="--target", value=target)
    if phase != "free" and source.cost is None:
        raise SpecError(
            "needs a cost, and a netlist has none",
            field="--phase",
            value=phase,
            remedy="Give the network description instead.",
        )
    if not math.isfinite(beta):
        raise SpecError("must be finite", field="--beta", value=beta)
    u, label = _inputs(source.netlist, given, sample)
    if source.cost is None or phase == "free":
        return u, None
    return u, _targets(source.cost, len(source.netlist.outputs.pos), target, label)


def phase_netlist(
    netlist: Netlist, phase: str, inputs: FloatArray, nudge: Nudge | None
) -> tuple[Netlist, dict[str, float]]:
    """Return the circuit of a phase, of ordinary elements, its inputs held at one vector (1, n_in).

    Beside it the voltages [V] that its solution lies near, by node: a corrected circuit has other solutions
    too, and a simulator that starts from nothing may end in one of those.
    """
    from circuitsim import spice
    from circuitsim.netlist import InputPort, nudged_netlist
    from circuitsim.solver import build_plan, solve

    announce_compilation()
    held = replace(spice.with_inputs(netlist, inputs), inputs=InputPort.none())
    if nudge is None:
        return held, {}
    if phase == "nudged":
        return nudged_netlist(held, nudge), {}
    anchor = solve(build_plan(netlist), netlist.values(), inputs)
    built = spice.phase_netlist(held, phase, anchor=anchor, nudge=nudge)  # type: ignore[arg-type]
    return built, spice.first_guess(built, anchor.node_voltage[0]) if phase == "corrected" else {}


def _inputs(netlist: Netlist, given: str | None, sample: int | None) -> tuple[FloatArray, int | None]:
    import numpy as np

    size = netlist.inputs.size
    if given is not None and sample is not None:
        raise SpecError("give --input or --sample, not both")
    if given is not None:
        u = _vector(given, field="--input")
        if len(u) != size:
            raise SpecError(f"this circuit has {size} inputs", field="--input", value=len(u))
        return u[None], None
    if sample is not None:
        from circuitsim.data import load_digits

        data = load_digits()
        count, pixels = data.test_inputs.shape
        if sample >= count:
            raise SpecError(f"must be 0 to {count - 1}", field="--sample", value=sample)
        if pixels != size:
            raise SpecError(
                f"a digit has {pixels} pixels, this circuit {size} inputs",
                field="--sample",
                value=sample,
                remedy="Give them with --input.",
            )
        return data.test_inputs[sample][None], int(data.test_labels[sample])
    if size:
        raise SpecError(
            f"this circuit has {size} inputs", remedy="Give them with --input, or --sample K of the digits."
        )
    return np.empty((1, 0)), None


def _targets(cost: Cost, count: int, target: str | None, label: int | None) -> FloatArray:
    import numpy as np

    if target is not None:
        values = _vector(target, field="--target")
        if len(values) == count > 1 or count == 1 == len(values):
            return values[None]
        if len(values) != 1:
            raise SpecError(
                f"this circuit has {count} outputs",
                field="--target",
                value=len(values),
                remedy=f"Give a class 0 to {count - 1}, or {count} targets.",
            )
        if values[0] not in range(count):
            raise SpecError(f"a class is 0 to {count - 1}", field="--target", value=float(values[0]))
        label = int(values[0])
    if label is None:
        raise SpecError(
            "is needed for this phase",
            field="--target",
            remedy=f"Give a class 0 to {count - 1}, or {count} targets.",
        )
    return cost.targets(np.array([label]), count)


def _vector(text: str, *, field: str) -> FloatArray:
    """Read finite numbers from text with commas, or from a file."""
    import numpy as np

    path = Path(text)
    if path.suffix not in (".txt", ".csv", ".npy") and not os.path.isfile(text):
        return _numbers(text.split(","), field=field)
    try:
        if path.suffix != ".npy":
            lines = [line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines()]
            return _numbers(re.split(r"[\s,;]+", " ".join(lines).strip(" ,;")), field=field, file=path)
        array = np.load(path)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", file=path, field=field) from error
    except (ValueError, EOFError) as error:
        raise SpecError(f"does not hold numbers: {error}", file=path, field=field) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise SpecError("must hold one array of real numbers", file=path, field=field)
    numbers = array.astype(np.float64).reshape(-1)
    for place in np.flatnonzero(~np.isfinite(numbers))[:1]:
        raise SpecError("must be finite", file=path, field=f"{field}[{place}]", value=float(numbers[place]))
    return numbers


def _numbers(parts: Sequence[str], *, field: str, file: Path | None = None) -> FloatArray:
    import numpy as np

    from circuitsim.units import parse_quantity

    numbers = np.empty(len(parts))
    for place, part in enumerate(parts):
        try:
            numbers[place] = parse_quantity(part)
        except SpecError as error:
            raise SpecError(
                error.rule, file=file, field=f"{field}[{place}]", value=part, remedy=error.remedy
            ) from error
    return numbers
