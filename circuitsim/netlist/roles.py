"""Roles in a circuit that somebody drew: which sources are inputs, what is read, which resistors learn."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist.blocks import Crossbar
from circuitsim.netlist.netlist import InputPort, Netlist, OutputPort
from circuitsim.netlist.tables import FloatArray, IntArray, Resistors
from circuitsim.netlist.validate import validate
from circuitsim.seeds import stream
from circuitsim.units import engineering

__all__ = ["Roles", "TrainableResistors", "with_roles"]

_MOST_SHOWN = 12
_LARGEST_BLOCK = 20_000_000
"""Most pairs of a word line and a bit line in one crossbar: 160 MB of conductances."""


@dataclass(frozen=True, kw_only=True)
class TrainableResistors:
    """Resistors that become one trainable crossbar, ``name``.

    ``patterns`` are shell patterns for their names (``Rw*``, ``x1.r[12]``), blind to case. ``g_min`` and
    ``g_max`` [S] are the window. They start at the circuit's own values, or drawn evenly from the window.
    """

    name: str
    patterns: tuple[str, ...]
    g_min: float
    g_max: float
    initial: Literal["deck", "random"] = "deck"


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What `with_roles` makes of a circuit.

    Voltage source ``inputs[k]`` carries ``input_gain[k]`` times element k of the input vector [V]; output
    k is the voltage between the two nodes ``outputs[k]``. Names are blind to case.
    """

    inputs: tuple[str, ...]
    input_gain: tuple[float, ...]
    outputs: tuple[tuple[str, str], ...]
    trainable: tuple[TrainableResistors, ...]


def with_roles(netlist: Netlist, roles: Roles, *, seed: int = 0, circuit: str | None = None) -> Netlist:
    """Return the circuit with its ports, and with the trainable resistors taken out into crossbars.

    A crossbar's word lines are the first nodes of its resistors and its bit lines their second nodes,
    each once, in the order of their first appearance; a word line stands there again for each further
    resistor between the same two nodes. It is the same circuit: `flatten` gives the resistors back.

    Args:
        netlist: a circuit, for example a deck's.
        roles: what is driven, read and trained.
        seed: of the conductances that are drawn.
        circuit: what messages call the circuit; its title by default.

    Raises:
        NetlistError: every role that does not fit the circuit, in one message. ``field`` is its place
            in ``roles``: ``inputs.0``, ``outputs.1``, ``trainable.0.resistors``.
    """
    problems: list[NetlistError] = []
    called = circuit or netlist.title
    inputs = _inputs(netlist, roles, called, problems)
    outputs = _outputs(netlist, roles, called, problems)
    chosen = _choose(netlist.resistor, roles.trainable, called, problems)
    crossbars = [
        crossbar
        for k, (entry, rows) in enumerate(zip(roles.trainable, chosen, strict=True))
        if len(rows)
        and (crossbar := _crossbar(netlist.resistor, entry, rows, seed, f"trainable.{k}", problems))
    ]
    if problems:
        raise NetlistError.all_of(problems)
    kept = np.ones(len(netlist.resistor), dtype=np.bool_)
    kept[np.concatenate([np.empty(0, np.int64), *chosen])] = False
    built = replace(
        netlist,
        resistor=_rows(netlist.resistor, np.flatnonzero(kept)),
        crossbars=(*netlist.crossbars, *crossbars),
        inputs=inputs,
        outputs=outputs,
    )
    validate(built)
    return built


def _inputs(netlist: Netlist, roles: Roles, circuit: str, problems: list[NetlistError]) -> InputPort:
    row = {name.lower(): k for k, name in reversed(list(enumerate(netlist.vsource.name)))}
    found: list[int] = []
    for k, name in enumerate(roles.inputs):
        place = f"inputs.{k}"
        if name.lower() not in row:
            problems.append(
                _unknown(f"no voltage source of {circuit} has this name", place, name, "Voltage sources", row)
            )
        elif row[name.lower()] in found:
            problems.append(NetlistError("is an input already", field=place, value=name))
        else:
            found.append(row[name.lower()])
    return InputPort(
        source=np.array(found, dtype=np.int64),
        column=np.arange(len(found)),
        gain=np.array(roles.input_gain[: len(found)], dtype=np.float64),
    )


def _outputs(netlist: Netlist, roles: Roles, circuit: str, problems: list[NetlistError]) -> OutputPort:
    index = {name.lower(): k for k, name in enumerate(netlist.node_names)} | {"gnd": 0}
    ends: list[list[int]] = [[], []]
    for k, pair in enumerate(roles.outputs):
        for nodes, name in zip(ends, pair, strict=True):
            if name.lower() in index:
                nodes.append(index[name.lower()])
            else:
                rule = f"no node of {circuit} has this name"
                problems.append(_unknown(rule, f"outputs.{k}", name, "Nodes", index))
    return OutputPort(pos=np.array(ends[0], dtype=np.int64), neg=np.array(ends[1], dtype=np.int64))


def _choose(
    table: Resistors, entries: Sequence[TrainableResistors], circuit: str, problems: list[NetlistError]
) -> list[IntArray]:
    """Return the resistor rows of each entry."""
    names = [name.lower() for name in table.name]
    owner: dict[int, str] = {}
    chosen = []
    for k, entry in enumerate(entries):
        place = f"trainable.{k}.resistors"
        rows: list[int] = []
        for pattern in entry.patterns:
            matched = [row for row, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern.lower())]
            if not matched:
                rule = f"matches no resistor of {circuit}"
                problems.append(_unknown(rule, place, pattern, "Resistors", names))
            rows += matched
        rows = sorted(set(rows))
        for row in [row for row in rows if row in owner][:1]:
            rule = f"takes {table.name[row]}, which {owner[row]} has already"
            problems.append(NetlistError(rule, field=place, value=", ".join(entry.patterns)))
        owner |= dict.fromkeys(rows, entry.name)
        chosen.append(np.array(rows, dtype=np.int64))
    return chosen


def _crossbar(
    table: Resistors,
    entry: TrainableResistors,
    rows: IntArray,
    seed: int,
    place: str,
    problems: list[NetlistError],
) -> Crossbar | None:
    if entry.initial == "deck":
        g = table.conductance[rows]
        for row in rows[(g < entry.g_min) | (g > entry.g_max)][:1]:
            value = float(table.conductance[row])
            rule = (
                f"{table.name[row]} starts at {engineering(value, 'S')}, outside its window "
                f"{engineering(entry.g_min, 'S')} to {engineering(entry.g_max, 'S')}"
            )
            remedy = "Widen the window, change the resistor, or set initial: random."
            problems.append(NetlistError(rule, field=place, value=entry.name, remedy=remedy))
    else:
        g = stream(seed, "initial", entry.name).uniform(entry.g_min, entry.g_max, len(rows))
    # The k-th resistor between the same two nodes goes to the k-th copy of their word line.
    word: dict[tuple[int, int], int] = {}
    bit: dict[int, int] = {}
    copies: dict[tuple[int, int], int] = {}
    j, i = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    for k, (pos, neg) in enumerate(zip(table.pos[rows].tolist(), table.neg[rows].tolist(), strict=True)):
        copy = copies[pos, neg] = copies.get((pos, neg), -1) + 1
        j[k] = word.setdefault((pos, copy), len(word))
        i[k] = bit.setdefault(neg, len(bit))
    shape = (len(word), len(bit))
    if shape[0] * shape[1] > _LARGEST_BLOCK:
        rule = f"{len(rows)} resistors between {shape[0]} and {shape[1]} nodes do not make one crossbar"
        remedy = "Split them into several entries that share nodes."
        problems.append(NetlistError(rule, field=f"{place}.resistors", value=entry.name, remedy=remedy))
        return None
    conductance, mask = np.zeros(shape), np.zeros(shape, dtype=np.bool_)
    conductance[j, i] = g
    mask[j, i] = True
    return Crossbar(
        name=entry.name,
        word_pos=np.array([pos for pos, _ in word], dtype=np.int64),
        bit=np.array(list(bit), dtype=np.int64),
        g_plus=conductance,
        mask=None if mask.all() else mask,
        g_min=entry.g_min,
        g_max=entry.g_max,
        trainable=True,
        driven=False,
        device_names=tuple(table.name[rows[k]] for k in np.lexsort((i, j))),
    )


def _rows(table: Resistors, rows: IntArray) -> Resistors:
    columns: Mapping[str, IntArray | FloatArray] = {
        column.name: getattr(table, column.name)[rows] for column in table.columns()
    }
    return Resistors(name=tuple(table.name[row] for row in rows), **columns)  # type: ignore[arg-type]


def _unknown(rule: str, field: str, value: str, kind: str, known: Iterable[str]) -> NetlistError:
    """Name what was asked for, what comes close to it, and what there is."""
    names = sorted(set(known) - {"0", "gnd"})
    plain = value.lower().strip("*?")
    close = difflib.get_close_matches(plain, names, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    shown = ", ".join(names[:_MOST_SHOWN]) or "none"
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return NetlistError(rule, field=field, value=value, remedy=f"{meant}{kind} there: {shown}{more}.")
