"""Our operating point against a SPICE simulator's, for any phase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import CrossCheckError
from circuitsim.netlist import Netlist, Nudge, corrected_netlist, dyadic_netlist, flatten, nudged_netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver import OperatingPoint
from circuitsim.spice.deck import DeckOptions, deck_nodes, write_deck
from circuitsim.spice.engine import SpiceEngine
from circuitsim.spice.ngspice import NgspiceEngine

__all__ = ["CrossCheck", "Phase", "crosscheck_point", "phase_netlist", "with_inputs"]

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
            return dyadic_netlist(circuit, voltage[0], nudge, sample)
        circuit = corrected_netlist(circuit, voltage[0], current[0])
    if phase != "free" and nudge is not None:
        circuit = nudged_netlist(circuit, nudge, sample)
    return circuit


def crosscheck_point(
    netlist: Netlist,
    node_voltage: FloatArray,
    *,
    engine: SpiceEngine | None = None,
    options: DeckOptions | None = None,
) -> CrossCheck:
    """Solve a circuit with a SPICE simulator and compare.

    Args:
        netlist: the circuit, its values and the sample's inputs in it.
        node_voltage: our voltages (N,) V of its nodes, or of its first N (internal ones come last).
        engine: the simulator; the ngspice program by default.
        options: the deck's tolerances; `DeckOptions` by default.

    Raises:
        CrossCheckError: the simulator is missing, failed, or its answer is not to be trusted.
    """
    names = deck_nodes(netlist)
    compared = tuple(names)[: len(node_voltage)]
    solution = (engine or NgspiceEngine()).solve(write_deck(netlist, options=options or DeckOptions()))
    return CrossCheck(
        node_names=compared,
        ours=np.asarray(node_voltage, dtype=np.float64),
        spice=solution.voltages(names[name] for name in compared),
        engine=solution.engine,
    )
