"""What learning needs of hardware: one protocol for a simulated die, an instrument and a board.

Everything is in SI units. A substrate checks what it is given against its own limits, and so does the host
before it sends: neither trusts the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from circuitsim.chip.chip import Conductances
from circuitsim.errors import InstrumentError
from circuitsim.netlist import GROUND, Netlist, Nudge
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = [
    "PHASES",
    "AgeingSubstrate",
    "Capabilities",
    "ConverterLimits",
    "CrossbarLimits",
    "NudgeLimits",
    "Phase",
    "StatefulSubstrate",
    "Substrate",
    "Terminals",
]

Phase: TypeAlias = Literal["free", "nudged", "corrected", "dyadic"]
PHASES: tuple[Phase, ...] = ("free", "nudged", "corrected", "dyadic")


@dataclass(frozen=True, kw_only=True)
class ConverterLimits:
    """A DAC or an ADC as its user knows it: ``bits``, and the voltages [V] of its first and last code."""

    bits: int
    low: float
    high: float

    @property
    def step(self) -> float:
        """Volts between two codes."""
        return (self.high - self.low) / (2**self.bits - 1)

    def rounded(self, volts: FloatArray) -> FloatArray:
        """Return voltages as the nearest codes stand for them."""
        codes = np.clip(np.rint((volts - self.low) / self.step), 0, 2**self.bits - 1)
        return self.low + codes * self.step


@dataclass(frozen=True, kw_only=True)
class CrossbarLimits:
    """A crossbar that can be written: (M, N) devices or differential pairs, each within a window [S]."""

    name: str
    shape: tuple[int, int]
    differential: bool
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class NudgeLimits:
    """The circuit that nudges: what `Nudge` asks for it must be, and the largest beta that it takes.

    ``quadratic`` or ``softmax``; ``conductance`` [S]; ``scale`` [V].
    """

    kind: Literal["quadratic", "softmax"]
    conductance: float
    scale: float
    largest_beta: float


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a substrate is and can do."""

    identity: str
    """Maker, model, serial number, version: as `*IDN?` gives them."""
    circuit: str
    """Name of the network that it holds."""
    inputs: int
    outputs: int
    readings: tuple[str, ...]
    """Names of the nodes that it reads, in the order of what `Substrate.relax` returns."""
    crossbars: tuple[CrossbarLimits, ...]
    dac: ConverterLimits
    adc: ConverterLimits
    largest_gain: int
    """Of the amplifier before the ADC where changes are read; 1 without one."""
    nudge: NudgeLimits
    phases: tuple[Phase, ...]
    settling_time: float
    """Of one phase [s]; NaN where it is not known."""
    most_readings: int
    """How many readings of one phase can be averaged."""
    most_samples: int
    """How many samples one call takes."""
    host_writes: bool = True
    """Whether the host can write conductances."""
    updates_itself: bool = False
    """Whether circuits at the devices can make an update without the host."""
    resolution: float = 0.0
    """Step in which conductances are read back [S]; 0 where they are not."""

    def check_program(self, conductance: Conductances) -> None:
        """Refuse conductances that this substrate cannot take.

        Raises:
            InstrumentError: an unknown crossbar, a wrong shape, a missing half, a value outside its window.
        """
        known = {crossbar.name: crossbar for crossbar in self.crossbars}
        for name, (plus, minus) in conductance.items():
            if name not in known:
                remedy = f"Crossbars here: {', '.join(known)}."
                raise InstrumentError("has no such crossbar", object=self.identity, value=name, remedy=remedy)
            limits = known[name]
            if (minus is not None) != limits.differential:
                rule = "is made of pairs" if limits.differential else "has one device per crossing"
                raise InstrumentError(rule, object=name, field="g_minus")
            for half, g in (("g_plus", plus), ("g_minus", minus)):
                if g is None:
                    continue
                if g.shape != limits.shape:
                    raise InstrumentError(f"must be {limits.shape}", object=name, field=half, value=g.shape)
                # A device that a mask leaves out is 0. The last bit of a sum is no reason to refuse it.
                slack = 1e-9 * limits.high
                bad = ~((g == 0) | ((g >= limits.low - slack) & (g <= limits.high + slack)))
                if bad.any():
                    raise InstrumentError(
                        f"must be within {limits.low:g} ... {limits.high:g} S",
                        object=name,
                        field=half,
                        value=float(g[bad][0]),
                    )

    def check_relax(self, volts: FloatArray, phase: Phase, nudge: Nudge | None, n_average: int) -> None:
        """Refuse a phase that this substrate cannot go through.

        Raises:
            InstrumentError: naming what is outside which limit.
        """
        if phase not in self.phases:
            remedy = f"Phases: {', '.join(self.phases)}."
            raise InstrumentError("cannot form this phase", object=self.identity, value=phase, remedy=remedy)
        if volts.ndim != 2 or volts.shape[1] != self.inputs:
            raise InstrumentError(f"must be (B, {self.inputs})", field="inputs", value=volts.shape)
        batch = len(volts)
        if not 1 <= batch <= self.most_samples:
            raise InstrumentError(f"must be 1 to {self.most_samples} samples", field="inputs", value=batch)
        self._check_volts(volts, "inputs")
        if not 1 <= n_average <= self.most_readings:
            rule = f"must be 1 to {self.most_readings} readings"
            raise InstrumentError(rule, field="n_average", value=n_average)
        if (nudge is None) != (phase == "free"):
            rule = "goes without a nudge" if phase == "free" else "needs a nudge"
            raise InstrumentError(rule, object=f"phase {phase}")
        if nudge is not None:
            self._check_nudge(nudge, batch)

    def check_update(self, rates: Mapping[str, float]) -> None:
        """Refuse rates of an update that this substrate cannot make.

        Raises:
            InstrumentError: it does not update itself, an unknown crossbar, or a rate that is not finite.
        """
        if not self.updates_itself:
            raise InstrumentError(
                "cannot update its devices itself",
                object=self.identity,
                remedy="Let the host write: program().",
            )
        known = [crossbar.name for crossbar in self.crossbars]
        for name, rate in rates.items():
            if name not in known:
                remedy = f"Crossbars here: {', '.join(known)}."
                raise InstrumentError("no such crossbar", object="update", value=name, remedy=remedy)
            if not math.isfinite(rate):
                raise InstrumentError("must be finite", object="update", field=name, value=rate)

    def _check_volts(self, volts: FloatArray, field: str) -> None:
        slack = 0.5 * self.dac.step
        bad = ~((volts >= self.dac.low - slack) & (volts <= self.dac.high + slack))
        if bad.any():
            raise InstrumentError(
                f"must be within {self.dac.low:g} ... {self.dac.high:g} V",
                object=self.identity,
                field=field,
                value=float(volts[bad][0]),
                remedy="Scale the inputs, or choose a DAC of more range.",
            )

    def _check_nudge(self, nudge: Nudge, batch: int) -> None:
        own = self.nudge
        for name, asked, there in (
            ("kind", nudge.kind, own.kind),
            ("conductance", nudge.conductance, own.conductance),
            ("scale", nudge.scale if own.kind == "softmax" else own.scale, own.scale),
        ):
            if asked != there:
                rule = f"is {there} on this substrate"
                remedy = "Give the experiment the cost that the substrate has."
                raise InstrumentError(rule, field=f"nudge.{name}", value=asked, remedy=remedy)
        if nudge.target.shape != (batch, self.outputs):
            rule = f"must be ({batch}, {self.outputs})"
            raise InstrumentError(rule, field="nudge.target", value=nudge.target.shape)
        if not np.isfinite(nudge.target).all():
            raise InstrumentError("must be finite", field="nudge.target")
        if not 0 < abs(nudge.beta) <= own.largest_beta:
            rule = f"must be at most {own.largest_beta:g}, and not 0"
            raise InstrumentError(rule, field="nudge.beta", value=nudge.beta)


class Substrate(Protocol):
    """Hardware that can be put through the phases of learning.

    Losing it, or being refused by it, is an `InstrumentError`.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def program(self, conductance: Conductances) -> Conductances:
        """Write crossbars (M, N) S and return what the substrate reads back of them.

        Crossbars that are not named stay as they are. What comes back has the substrate's own resolution
        and noise; of one that cannot read devices it is what was asked, as it was taken.
        """

    def relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        """Put samples through one phase and return readings (B, R) V, the mean of ``n_average``.

        ``inputs`` (B, n_in) V: what the DACs are set to. The free phase returns voltages of the nodes
        ``capabilities.readings``; every other returns their change from the free phase of the same inputs
        and conductances, which must be the last one that this host asked for.
        """

    def update(self, rates: Mapping[str, float]) -> int:
        """Let the devices learn from the phases since the last free one; return how many pulses that took.

        Each device of crossbar ``name`` moves by ``-rates[name] dC/dg`` [S], a rate being in S per W/S, and
        dC/dg the local rule's: drop times change of drop per unit of beta, the mean over the samples. Two
        phases of opposite beta are a centred estimate.
        """

    def calibrate(self) -> Mapping[str, float]:
        """Let the substrate calibrate itself; return what it found, e.g. ``adc_offset`` [V]."""

    def close(self) -> None:
        """Let go of it. It stays as it is."""


@runtime_checkable
class AgeingSubstrate(Protocol):
    """A substrate whose time can be told to pass: simulated, or a board that is left alone for so long."""

    def wait(self, seconds: float) -> None:
        """Let devices drift for so many seconds."""


@runtime_checkable
class StatefulSubstrate(Protocol):
    """A substrate whose state can be kept and brought back, so that a run resumes to the same numbers."""

    def state(self) -> Mapping[str, FloatArray]:
        """Keep the present state; return what `restore` needs, in arrays whose shapes never change."""

    def restore(self, state: Mapping[str, FloatArray]) -> None:
        """Bring a state back.

        Raises:
            InstrumentError: the substrate has lost it.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Terminals:
    """Which nodes of a circuit are read, and which are known because a source holds them.

    The local rule needs the voltages at the ends of every trainable device. Host and substrate make these
    from the same description, so they agree on names and order.
    """

    netlist: Netlist
    read: IntArray
    """Nodes (R,) that are read."""
    names: tuple[str, ...]
    layers: tuple[IntArray, ...]
    """Places in ``read`` that share an amplifier setting: those of one layer, one bank, one sense."""
    held: IntArray
    """Nodes that a source holds against ground."""
    source: IntArray
    """Which source."""
    gain: FloatArray
    """Volts per unit of every input (n_in,), without sign."""

    @classmethod
    def of(cls, netlist: Netlist) -> Terminals:
        """Return the terminals of a circuit."""
        sources = netlist.vsource
        grounded = np.flatnonzero(sources.neg == GROUND)
        held = sources.pos[grounded]
        wanted = [netlist.outputs.pos, netlist.outputs.neg]
        for crossbar in netlist.trainable:
            wanted += [crossbar.word_pos, crossbar.bit]
            if crossbar.word_neg is not None:
                wanted.append(crossbar.word_neg)
        nodes = np.setdiff1d(np.concatenate(wanted), np.append(held, GROUND))
        place = {int(node): k for k, node in enumerate(nodes)}
        families: list[Any] = [*netlist.groups.values()]
        for bank in netlist.banks:
            families.append(bank.out_pos if bank.out_neg is None else np.append(bank.out_pos, bank.out_neg))
        families += [sense.bit for sense in netlist.senses]
        layers: list[IntArray] = []
        left = set(range(len(nodes)))
        for family in families:
            found = sorted({place[int(node)] for node in family if int(node) in place} & left)
            if found:
                layers.append(np.array(found, dtype=np.int64))
                left -= set(found)
        if left:
            layers.append(np.array(sorted(left), dtype=np.int64))
        port = netlist.inputs
        gain = np.ones(port.size)
        gain[port.column] = np.where(port.gain == 0, 1.0, np.abs(port.gain))
        return cls(
            netlist=netlist,
            read=nodes,
            names=tuple(netlist.node_names[node] for node in nodes),
            layers=tuple(layers),
            held=held,
            source=grounded,
            gain=gain,
        )

    def voltages(self, readings: FloatArray, volts: FloatArray) -> FloatArray:
        """Return node voltages (B, N) V: what was read, and what sources hold at inputs (B, n_in) V."""
        v = np.zeros((len(readings), self.netlist.n_nodes))
        v[:, self.held] = self.netlist.source_voltage(volts / self.gain)[:, self.source]
        v[:, self.read] = readings
        return v

    def changes(self, readings: FloatArray) -> FloatArray:
        """Return displacements of all nodes (B, N) V: what is held does not move."""
        v = np.zeros((len(readings), self.netlist.n_nodes))
        v[:, self.read] = readings
        return v
