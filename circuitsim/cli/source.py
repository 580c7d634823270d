"""What commands read: a network or a netlist, and one input with its target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.errors import NetlistError, SpecError

if TYPE_CHECKING:
    from circuitsim.learning import Cost
    from circuitsim.netlist import Netlist
    from circuitsim.netlist.tables import FloatArray
    from circuitsim.network import NetworkSpec

__all__ = [
    "BETA_OPTION",
    "INPUT_OPTION",
    "SAMPLE_OPTION",
    "SEED_OPTION",
    "TARGET_OPTION",
    "Phase",
    "Source",
    "check_phase",
    "read_source",
    "read_vector",
    "sample_of",
]

INPUT_OPTION = typer.Option(
    None,
    "--input",
    help="Input vector: numbers with commas, SPICE suffixes allowed, or a .txt/.csv/.npy file.",
)
SAMPLE_OPTION = typer.Option(None, "--sample", min=0, help="Take held-out sample K of the digits data set.")
TARGET_OPTION = typer.Option(None, "--target", help="Class number, or target voltages [V] with commas.")
BETA_OPTION = typer.Option(0.01, "--beta", help="Nudging strength, without unit; may be negative.")
SEED_OPTION = typer.Option(0, "--seed", min=0, help="Seed of the initial conductances.")
Phase = ("free", "nudged", "corrected", "dyadic")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A circuit read from a file; network and cost are None for a netlist."""

    netlist: Netlist
    network: NetworkSpec | None
    cost: Cost | None


def read_source(path: Path, *, seed: int = 0) -> Source:
    """Read a network description, or a netlist that `circuitsim compile` wrote."""
    from circuitsim.compiler import compile_network
    from circuitsim.learning import Cost
    from circuitsim.netlist import read_netlist
    from circuitsim.network import parse_network, read_document

    if path.suffix in (".h5", ".hdf5"):
        raise SpecError("is a record, not a circuit", file=path, remedy="Use: circuitsim show.")
    with path.open("rb") as file:
        head = file.read(4096)
    if b"format: circuitsim-netlist" in head:
        return Source(netlist=read_netlist(path), network=None, cost=None)
    network = parse_network(read_document(path), file=path)
    try:
        netlist = compile_network(network, seed=seed)
    except NetlistError as error:
        raise NetlistError(str(error), file=path) from error
    return Source(netlist=netlist, network=network, cost=Cost.of(network))


def check_phase(phase: str) -> str:
    if phase not in Phase:
        raise SpecError("is not a phase", field="--phase", value=phase, remedy=f"Known: {', '.join(Phase)}.")
    return phase


def read_vector(text: str, *, field: str) -> FloatArray:
    """Read numbers from text with commas, or from a file."""
    import numpy as np

    from circuitsim.units import parse_quantity

    path = Path(text)
    if path.suffix in (".txt", ".csv", ".npy"):
        try:
            loaded: Any = (
                np.load(path)
                if path.suffix == ".npy"
                else np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None)
            )
            return np.asarray(loaded, dtype=np.float64).reshape(-1)
        except OSError as error:
            raise SpecError(f"cannot be read: {error.strerror or error}", file=path, field=field) from error
        except ValueError as error:
            raise SpecError(f"does not hold numbers: {error}", file=path, field=field) from error
    try:
        return np.array([parse_quantity(part) for part in text.split(",")])
    except SpecError as error:
        raise SpecError(error.rule, field=field, value=error.value, remedy=error.remedy) from error


def sample_of(
    source: Source, given: str | None, sample: int | None, target: str | None, *, needs_target: bool
) -> tuple[FloatArray, FloatArray | None]:
    """Return inputs (1, n_in) and targets (1, K) or None, from --input, --sample and --target."""
    import numpy as np

    from circuitsim.solver import Drive

    size = source.netlist.inputs.size
    label: int | None = None
    if given is not None and sample is not None:
        raise SpecError("give --input or --sample, not both")
    if sample is not None:
        from circuitsim.data import load_digits

        data = load_digits()
        if sample >= len(data.test_labels):
            raise SpecError(f"there are {len(data.test_labels)} samples", field="--sample", value=sample)
        u, label = data.test_inputs[sample], int(data.test_labels[sample])
        if len(u) != size:
            raise SpecError(
                f"the circuit has {size} inputs, a digit {len(u)}", field="--sample", value=sample
            )
    elif given is not None:
        u = read_vector(given, field="--input")
    elif size == 0:
        u = np.empty(0)
    else:
        raise SpecError(
            f"this circuit has {size} inputs", remedy="Give them with --input, or --sample K of the digits."
        )
    inputs = Drive.of(source.netlist, u).inputs
    if not needs_target:
        return inputs, None
    return inputs, _target(source, target, label)


def _target(source: Source, target: str | None, label: int | None) -> FloatArray:
    import numpy as np

    count = len(source.netlist.outputs.pos)
    if source.cost is None:
        raise SpecError(
            "a netlist has no cost, and this phase needs one",
            field="--phase",
            remedy="Give the network description instead.",
        )
    if target is None and label is None:
        raise SpecError(
            "is needed for this phase",
            field="--target",
            remedy=f"A class 0 to {count - 1}, or {count} voltages.",
        )
    if target is not None:
        values = read_vector(target, field="--target")
        if len(values) == 1 and count > 1:
            if values[0] != int(values[0]):
                raise SpecError("a class is a whole number", field="--target", value=float(values[0]))
            label = int(values[0])
        elif len(values) != count:
            raise SpecError(f"this circuit has {count} outputs", field="--target", value=len(values))
        else:
            return values[None]
    assert label is not None
    return source.cost.targets(np.array([label]), count)
