"""The circuit as tables and blocks: building, checking, flattening, transposing, files."""

from circuitsim.netlist.adjoint import corrected_netlist, dyadic_netlist
from circuitsim.netlist.blocks import AmplifierBank, Crossbar, CurrentSense, SoftmaxLoad
from circuitsim.netlist.builder import NetlistBuilder
from circuitsim.netlist.files import netlist_document, parse_netlist, read_netlist, write_netlist
from circuitsim.netlist.flatten import Flat, flatten
from circuitsim.netlist.netlist import GROUND, InputPort, Netlist, OutputPort, Values
from circuitsim.netlist.nudge import Nudge, nudged_netlist
from circuitsim.netlist.validate import validate

__all__ = [
    "GROUND",
    "AmplifierBank",
    "Crossbar",
    "CurrentSense",
    "Flat",
    "InputPort",
    "Netlist",
    "NetlistBuilder",
    "Nudge",
    "OutputPort",
    "SoftmaxLoad",
    "Values",
    "corrected_netlist",
    "dyadic_netlist",
    "flatten",
    "netlist_document",
    "nudged_netlist",
    "parse_netlist",
    "read_netlist",
    "validate",
    "write_netlist",
]
