"""Our operating point against a SPICE simulator's, for any phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import CrossCheckError
from circuitsim.netlist import Netlist, Nudge, corrected_netlist, dyadic_netlist, flatten, nudged_netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import OperatingPoint
from circuitsim.spice.deck import DeckOptions, deck_nodes, write_deck
from circuitsim.spice.deck_file import Deck
from circuitsim.spice.engine import SpiceEngine
from circuitsim.spice.ngspice import NgspiceEngine
from circuitsim.spice.original import operating_point_deck

__all__ = [
    "CrossCheck",
    "Phase",
    "crosscheck_deck",
    "crosscheck_point",
    "first_guess",
    "phase_netlist",
    "with_inputs",
]

Phase = Literal["free", "nudged", "corrected", "dyadic"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossCheck:
    """Node by node, the simulator's voltage against ours."""

    node_names: tuple[str, ...]
    ours: FloatArray
    """(N,) V"""
    spice: FloatArray
    """(N,) V"""
    engine: str
    seconds: float
    """What the simulator took, from reading the deck to its values."""

    @property
    def difference(self) -> FloatArray:
        """(N,) V, the simulator's voltage minus ours."""
        return self.spice - self.ours

    @property
    def worst_node(self) -> str:
        return self.node_names[int(np.argmax(np.abs(self.difference)))]

    @property
    def worst_difference(self) -> float:
        """The largest difference at any node [V]."""
        return float(np.abs(self.difference).max())


def with_inputs(netlist: Netlist, inputs: ArrayLike) -> Netlist:
    """Return the circuit with one input vector (n_in,) in its voltage sources."""
    voltage = netlist.source_voltage(inputs)
    if len(voltage) != 1:
        raise CrossCheckError("one input vector is needed", field="inputs", value=voltage.shape)
    return replace(netlist, vsource=replace(netlist.vsource, voltage=voltage[0]))


def phase_netlist(
    netlist: Netlist,
    phase: Phase,
    *,
    anchor: OperatingPoint | None = None,
    nudge: Nudge | None = None,
    sample: int = 0,
) -> Netlist:
    """Return the flat circuit whose operating point is a phase of one sample.

    Its first nodes are those of ``netlist``; those of the dual network of the dyadic phase have names
    that start with ``d.``.

    Args:
        netlist: the circuit with the sample's inputs in its sources (see `with_inputs`).
        phase: free; nudged; corrected, around ``anchor``; dyadic, with the gains of ``anchor``.
        anchor: free operating points, with branch currents, of ``netlist``'s own nodes.
        nudge: the cost's nudge; without one a corrected phase rests at its anchor.
        sample: the row of ``anchor`` and ``nudge``.
    """
    flat = flatten(netlist)
    circuit = flat.netlist
    if phase in ("corrected", "dyadic"):
        if anchor is None or (phase == "dyadic" and nudge is None):
            needed = "an anchor" if anchor is None else "a nudge"
            raise CrossCheckError(f"the {phase} phase needs {needed}", object=netlist.title)
        rows = slice(sample, sample + 1)
        voltage, current = flat.lift(anchor.node_voltage[rows], anchor.branch_current[rows])
        if phase == "dyadic":
            assert nudge is not None
            return dyadic_netlist(circuit, voltage[0], nudge, sample, current=current[0])
        circuit = corrected_netlist(circuit, voltage[0], current[0])
    if phase != "free" and nudge is not None:
        circuit = nudged_netlist(circuit, nudge, sample)
    return circuit


def crosscheck_point(
    netlist: Netlist,
    node_voltage: FloatArray,
    *,
    nodes: Sequence[str] | None = None,
    start: FloatArray | None = None,
    engine: SpiceEngine | None = None,
    options: DeckOptions | None = None,
) -> CrossCheck:
    """Solve a circuit with a SPICE simulator and compare.

    Args:
        netlist: the circuit, its values and the sample's inputs in it.
        node_voltage: our voltages (N,) V of its nodes, or of its first N (internal ones come last).
        nodes: the names of the nodes that ``node_voltage`` is of, where those are others.
        start: voltages (K,) V of the first K nodes that the simulator starts from. A corrected phase has
            other operating points than the one next to its anchor, and a board starts at the anchor.
        engine: the simulator; the ngspice program by default.
        options: the deck's tolerances; `DeckOptions` by default.

    Raises:
        CrossCheckError: the simulator is missing, failed, or its answer is not to be trusted.
    """
    flat = flatten(netlist).netlist
    names = deck_nodes(flat)
    deck = Deck(title=netlist.title, netlist=flat, nodeset={} if start is None else first_guess(flat, start))
    compared = tuple(names)[: len(node_voltage)] if nodes is None else tuple(nodes)
    solution = (engine or NgspiceEngine()).solve(write_deck(deck, options=options or DeckOptions()))
    return CrossCheck(
        node_names=compared,
        ours=np.asarray(node_voltage, dtype=np.float64),
        spice=solution.voltages(names[name] for name in compared),
        engine=solution.engine,
        seconds=solution.seconds,
    )


def crosscheck_deck(
    path: str | Path,
    netlist: Netlist,
    node_voltage: FloatArray,
    *,
    start: FloatArray | None = None,
    engine: SpiceEngine | None = None,
    options: DeckOptions | None = None,
) -> CrossCheck:
    """Run the operating point of a deck file itself with a SPICE simulator and compare.

    Args:
        path: the deck that ``netlist`` was read from.
        netlist: what was read: the names of nodes.
        node_voltage: our voltages (N,) V; those of nodes inside a device, named ``device#...``, are not
            compared.
        start: voltages (N,) V that the simulator starts from.
        engine: the simulator; the ngspice program by default.
        options: tolerances; the deck's own by default.

    Raises:
        NetlistError: the deck cannot be read.
        CrossCheckError: the simulator is missing, failed, or its answer is not to be trusted.
    """
    own = [index for index, name in enumerate(netlist.node_names) if "#" not in name]
    names = tuple(netlist.node_names[index] for index in own)
    guess = {} if start is None else first_guess(netlist, start)
    guess = {name: value for name, value in guess.items() if "#" not in name}
    deck = operating_point_deck(path, options=options, start=guess)
    solution = (engine or NgspiceEngine()).solve(deck)
    return CrossCheck(
        node_names=names,
        ours=np.asarray(node_voltage, dtype=np.float64)[own],
        spice=solution.voltages(names),
        engine=solution.engine,
        seconds=solution.seconds,
    )


def first_guess(netlist: Netlist, voltage: FloatArray) -> dict[str, float]:
    """Return the first guesses of a flat circuit's first nodes: those that no branch holds.

    A simulator enforces a guess with a large conductance. At a node that a source holds as well, the rounding
    of the voltage then makes a large current, and whatever senses that current is thrown far off.
    """
    free = np.ones(netlist.n_nodes, dtype=np.bool_)
    free[0] = False
    for table in netlist.voltage_defined:
        for column in ("pos", "neg"):
            free[getattr(table, column)] = False
    return {
        name: value
        for name, value, own in zip(netlist.node_names, voltage.tolist(), free.tolist(), strict=False)
        if own
    }
