"""What a SPICE deck says: a circuit, what its sources do in time, where to start, and what to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from circuitsim.netlist.netlist import Netlist

if TYPE_CHECKING:
    from circuitsim.netlist.waveforms import Waveform

__all__ = ["Analysis", "Deck", "OperatingPointAnalysis", "Sweep", "SweepAnalysis", "TransientAnalysis"]


@dataclass(frozen=True, kw_only=True)
class OperatingPointAnalysis:
    """``.op``: the DC operating point, capacitors open and inductors shorted."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One swept quantity: the value of ``source`` from ``start`` to ``stop`` in steps of ``step``.

    ``source`` is the name of a V or I source in the netlist [V or A], or of a resistor [ohm].
    """

    source: str
    start: float
    stop: float
    step: float


@dataclass(frozen=True, kw_only=True)
class SweepAnalysis:
    """``.dc``: an operating point at each value of one sweep, or of two; the first runs fastest."""

    sweeps: tuple[Sweep, ...]


@dataclass(frozen=True, kw_only=True)
class TransientAnalysis:
    """``.tran``: from time 0 to ``stop`` [s]; results are kept from ``start`` on, every ``step``.

    ``largest_step`` [s] bounds the solver's own steps, None for its default. With ``uic`` the run
    starts from the given initial conditions and no operating point is solved first.
    """

    step: float
    stop: float
    start: float = 0.0
    largest_step: float | None = None
    uic: bool = False


Analysis = OperatingPointAnalysis | SweepAnalysis | TransientAnalysis


@dataclass(frozen=True, kw_only=True, eq=False)
class Deck:
    """A SPICE deck, read: names are folded to lower case and subcircuits are written out.

    ``waveforms`` holds what V and I sources do in time, by the source's name; the netlist holds
    their DC values. Initial conditions: ``initial_voltage`` [V] by node (``.ic``),
    ``element_initial`` by capacitor [V] or inductor [A] (``ic=``), ``nodeset`` [V] by node, a first
    guess only. ``temperature`` is the circuit's [C]. ``options`` are as written; ``notes`` says what
    was read and not acted on, each with its file and line.
    """

    title: str
    netlist: Netlist
    waveforms: Mapping[str, Waveform] = field(default_factory=dict)
    initial_voltage: Mapping[str, float] = field(default_factory=dict)
    element_initial: Mapping[str, float] = field(default_factory=dict)
    nodeset: Mapping[str, float] = field(default_factory=dict)
    analyses: tuple[Analysis, ...] = ()
    temperature: float = 27.0
    options: Mapping[str, float | str | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
