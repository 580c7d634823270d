"""The same circuit in SPICE: decks, ngspice, and the comparison with our own answer."""

from circuitsim.spice.crosscheck import (
    CrossCheck,
    crosscheck_deck,
    crosscheck_point,
    first_guess,
    phase_netlist,
    with_inputs,
)
from circuitsim.spice.deck import DeckOptions, deck_nodes, write_deck
from circuitsim.spice.engine import SpiceEngine, SpiceRun, SpiceSolution, probe
from circuitsim.spice.ngspice import NgspiceEngine
from circuitsim.spice.pyspice import PySpiceEngine
from circuitsim.spice.rawfile import read_raw

__all__ = [
    "CrossCheck",
    "DeckOptions",
    "NgspiceEngine",
    "PySpiceEngine",
    "SpiceEngine",
    "SpiceRun",
    "SpiceSolution",
    "crosscheck_deck",
    "crosscheck_point",
    "deck_nodes",
    "first_guess",
    "phase_netlist",
    "probe",
    "read_raw",
    "with_inputs",
    "write_deck",
]
