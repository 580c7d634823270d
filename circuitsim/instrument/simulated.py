"""A simulated die as its user meets it: behind converters, with nothing of its inside to be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from circuitsim.chip import Chip, Conductances, fabricate
from circuitsim.chip.energy import settling_time
from circuitsim.chip.substrate import (
    PHASES,
    Capabilities,
    ConverterLimits,
    CrossbarLimits,
    NudgeLimits,
    Phase,
    Terminals,
)
from circuitsim.devices import DeviceCard
from circuitsim.devices.card import ConverterCard
from circuitsim.errors import ConvergenceError, InstrumentError
from circuitsim.learning import Cost
from circuitsim.learning.phases import Change
from circuitsim.learning.readout import MeasuredPhases, ReadoutSpec, Sampler, chip_converters
from circuitsim.learning.writing import DeviceWriter, ProgrammingSpec, UpdateSpec
from circuitsim.netlist import Netlist, Nudge
from circuitsim.netlist.tables import FloatArray
from circuitsim.seeds import stream
from circuitsim.solver import OperatingPoint, Plan, SolverSettings, build_plan

__all__ = ["SimulatedSubstrate", "simulated_substrate", "with_converters"]

_HALVES = ("g_plus", "g_minus")
_HEADROOM = 1.25
"""Range of a reader over the largest value it should meet."""
_MOST_SAMPLES = 4096
_LARGEST_BETA = 100.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Anchor:
    """The free phase that other phases refer to, and the die that it was taken of."""

    volts: FloatArray
    inputs: FloatArray
    """What the DACs really put out, per unit of the network's inputs."""
    point: OperatingPoint
    phases: MeasuredPhases
    noise: FloatArray | None
    readings: FloatArray
    chip: Chip
    key: tuple[str | int, ...]


class SimulatedSubstrate:
    """One die behind its DACs and ADCs. Satisfies `Substrate`, and can be saved, restored and aged.

    ``presentations`` counts free phases: all noise of reading is keyed by it, so a die in the same state
    goes on to the same numbers. Several readings of a phase are averaged by ``relax``.

    A phase whose point is not found is an `InstrumentError`, as a board that oscillates would be.
    """

    def __init__(
        self,
        *,
        chip: Chip,
        plan: Plan,
        cost: Cost,
        readout: ReadoutSpec | None = None,
        programming: ProgrammingSpec | None = None,
        update: UpdateSpec | None = None,
        settings: SolverSettings | None = None,
    ) -> None:
        self._readout = readout or ReadoutSpec()
        self._programming = programming or ProgrammingSpec()
        self._plan = plan
        self._cost = cost
        self._settings = settings or SolverSettings(check=False)
        self._writer = DeviceWriter(update or UpdateSpec(), chip.seed)
        self._chip = self._writer.prepare(chip)
        dac, adc = chip_converters(chip)
        if dac is None or adc is None:
            raise InstrumentError(
                "needs a DAC and an ADC: a substrate is known by its readings alone",
                object=chip.card.name,
                field="adc" if adc is None else "dac",
                remedy="with_converters() gives a card some.",
            )
        self._dac, self._adc = dac, adc
        self.terminals = Terminals.of(plan.netlist)
        self.presentations = 0
        self._calibrations = 0
        self._touched = False
        """Whether conductances have ever been written from outside."""
        self._anchor: _Anchor | None = None
        self._changes: list[tuple[Phase, float, Change]] = []
        """What the last two phases since the free one did: phase, beta, change of the circuit."""
        self.capabilities = self._described()

    def _described(self) -> Capabilities:
        card, netlist = self._chip.card, self._plan.netlist
        assert card.dac is not None
        assert card.adc is not None
        cost = self._cost
        # A data sheet is of the design: that of the die itself would tell what it is like inside.
        designed = replace(fabricate(netlist, seed=self._chip.seed), card=card)
        return Capabilities(
            identity=f"circuitsim,{netlist.title},{self._chip.seed},{version('circuitsim')}",
            circuit=netlist.title,
            inputs=netlist.inputs.size,
            outputs=len(netlist.outputs.pos),
            readings=self.terminals.names,
            crossbars=tuple(
                CrossbarLimits(
                    name=crossbar.name,
                    shape=crossbar.shape,
                    differential=crossbar.differential,
                    low=crossbar.g_min,
                    high=crossbar.g_max,
                )
                for crossbar in netlist.trainable
            ),
            dac=_limits(card.dac),
            adc=_limits(card.adc),
            largest_gain=self._readout.gain if self._readout.difference == "analog" else 1,
            nudge=NudgeLimits(
                kind=cost.kind, conductance=cost.conductance, scale=cost.scale, largest_beta=_LARGEST_BETA
            ),
            phases=PHASES,
            settling_time=settling_time(self._plan, designed, accuracy=0.5 / 2**card.adc.bits),
            most_readings=10_000,
            most_samples=_MOST_SAMPLES,
            updates_itself=True,
            resolution=self._resolution,
        )

    @property
    def _resolution(self) -> float:
        """Step in which conductances are read: the ADC over a range for the largest one [S]."""
        largest = max((crossbar.g_max for crossbar in self._plan.netlist.trainable), default=0.0)
        return _HEADROOM * largest / (2**self._adc.card.bits - 1)

    def program(self, conductance: Conductances) -> Conductances:
        """Write crossbars and return what is read back, with the ADC's resolution and noise."""
        self.capabilities.check_program(conductance)
        chip, card = self._chip, self._chip.card.crossbar
        target = chip.checked(conductance)
        if card.programming is None and card.levels is None and card.update is None:
            self._chip = chip.reprogrammed(target) if chip.matched else chip.moved(target)
        else:
            self._chip = self._programming.apply(chip, target, self._due(target) if self._touched else None)
        self._touched = True
        self._anchor = None
        return self._read_back(target)

    def _due(self, target: Conductances) -> Mapping[str, tuple[Any, Any]]:
        """Return which devices are asked for something new: the others are left as they are."""
        found: dict[str, tuple[Any, Any]] = {}
        for name, pair in target.items():
            halves: list[Any] = []
            for g, before in zip(pair, self._chip.target[name], strict=True):
                halves.append(None if g is None or before is None else g != before)
            found[name] = halves[0], halves[1]
        return found

    def _read_back(self, target: Conductances) -> Conductances:
        chip, step = self._chip, self._resolution
        values = chip.read("read back", chip.writes) if chip.noisy else chip.values
        low, high = self._adc.card.range
        noise = self._adc.card.noise / (high - low) * step * (2**self._adc.card.bits - 1)
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for name in target:
            halves: list[FloatArray | None] = []
            for half, g in zip(_HALVES, values.crossbars[name], strict=True):
                if g is None:
                    halves.append(None)
                    continue
                seen = np.asarray(g, dtype=np.float64)
                if noise:
                    draw = stream(chip.seed, "read back", name, half, chip.writes)
                    spread = noise / math.sqrt(self._readout.averaging)
                    seen = seen + spread * draw.standard_normal(seen.shape)
                halves.append(np.clip(np.rint(seen / step), 0, 2**self._adc.card.bits - 1) * step)
            assert halves[0] is not None
            found[name] = halves[0], halves[1]
        return found

    def relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        """Put samples through a phase and return what the ADCs read (B, R) V."""
        volts = np.array(inputs, dtype=np.float64)
        self.capabilities.check_relax(volts, phase, nudge, n_average)
        try:
            if nudge is None:
                return self._free(volts, n_average)
            return self._moved(volts, phase, nudge, n_average)
        except ConvergenceError as error:
            raise InstrumentError(
                "did not settle",
                object=f"phase {phase}",
                remedy="Lower beta, or the conductances of what feeds back.",
            ) from error

    def _free(self, volts: FloatArray, n_average: int) -> FloatArray:
        self._anchor = None
        self._changes = []
        self.presentations += 1
        key = ("presentation", self.presentations)
        chip = self._chip
        driven = self._dac.driven(volts)
        if self._dac.card.noise:
            normal = stream(chip.seed, "dac", *key).standard_normal(volts.shape)
            driven = driven + self._dac.card.noise * normal
        values, dual = chip.values, chip.dual
        if chip.noisy:
            values = chip.read(*key, fast=False)
            if dual is not None and chip.copy is not None:
                dual = replace(dual, values=chip.copy.read(*key, fast=False))
        phases = MeasuredPhases(
            plan=self._plan,
            values=values,
            cost=self._cost,
            settings=self._settings,
            correction=chip.correction,
            dual=dual,
            chip=chip,
            readout=ReadoutSpec(rule="local"),
            adc=None,
            key=key,
        )
        u = driven / self.terminals.gain
        point = phases.free(u)
        noise = phases.node_noise(point)
        readings = self._sampled(point.node_voltage, noise, "free", key, n_average)
        self._anchor = _Anchor(
            volts=volts,
            inputs=u,
            point=point,
            phases=phases,
            noise=noise,
            readings=readings,
            chip=chip,
            key=key,
        )
        return readings.copy()

    def _moved(self, volts: FloatArray, phase: Phase, nudge: Nudge, n_average: int) -> FloatArray:
        anchor = self._anchor
        if anchor is None or not np.array_equal(anchor.volts, volts):
            what = "conductances" if anchor is None else "inputs"
            raise InstrumentError(
                f"has no free phase of these {what} to refer to",
                object=f"phase {phase}",
                remedy="Relax the free phase first, then every other phase of the same inputs.",
            )
        phases, free = anchor.phases, anchor.point
        if phase == "dyadic":
            change = phases.dyadic(anchor.inputs, nudge.target, nudge.beta, free)
        else:
            # To first order the other side is the mirror image.
            guess = next((-d for p, beta, d in self._changes if p == phase and beta == -nudge.beta), None)
            form = phases.nudged if phase == "nudged" else phases.corrected
            change = form(anchor.inputs, nudge.target, nudge.beta, free, guess)
        self._changes = [*self._changes[-1:], (phase, nudge.beta, change)]
        d = change
        if free._layers is not None:
            d = self._plan.layered.displacement(free._layers, change)
        name = f"{phase} {nudge.beta:+g}"
        if phase != "dyadic" and self._readout.difference == "digital":
            seen = self._sampled(free.node_voltage + d, anchor.noise, name, anchor.key, n_average)
            return seen - anchor.readings
        return self._amplified(d, anchor, name, n_average, held=phase != "dyadic")

    def _sampler(self, key: tuple[str | int, ...], n_average: int) -> Sampler:
        readout = self._readout.model_copy(update={"averaging": n_average})
        return Sampler(readout=readout, adc=self._adc, seed=self._chip.seed, key=key)

    def _sampled(
        self,
        v: FloatArray,
        noise: FloatArray | None,
        name: str,
        key: tuple[str | int, ...],
        n_average: int,
    ) -> FloatArray:
        """Return readings (B, R) of node voltages (B, N)."""
        read = self.terminals.read
        return self._sampler(key, n_average).sample(v[:, read], _at(noise, read), name)

    def _amplified(
        self, d: FloatArray, anchor: _Anchor, name: str, n_average: int, *, held: bool
    ) -> FloatArray:
        """Return readings (B, R) of displacements (B, N), layer by layer behind an amplifier."""
        sampler = self._sampler(anchor.key, n_average)
        found = np.empty((len(d), len(self.terminals.read)))
        for number, places in enumerate(self.terminals.layers):
            nodes = self.terminals.read[places]
            spread = _at(anchor.noise, nodes)
            if spread is not None and held:
                # What is held was sampled too, with noise of its own.
                spread = spread * math.sqrt(2.0)
            found[:, places] = sampler.change(d[:, nodes], spread, f"{name} {number}")
        return found

    def update(self, rates: Mapping[str, float]) -> int:
        """Let circuits at the devices learn from drops that they see themselves, without a converter."""
        anchor = self._anchor
        if anchor is None or not self._changes:
            raise InstrumentError(
                "needs a free phase, and one or two others of the same inputs",
                object="update",
                remedy="Relax them, then update.",
            )
        self.capabilities.check_update(rates)
        gradient = anchor.phases.rule(anchor.inputs, anchor.point, self._slope())
        old = self._writer.conductance(self._chip)
        new: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for name in gradient:
            rate, (plus, minus), (up, down) = rates.get(name, 0.0), old[name], gradient[name]
            moved = plus - rate * up
            new[name] = moved, None if minus is None or down is None else minus - rate * down
        self._touched = True
        self._anchor, self._changes = None, []
        before = self._writer.writes
        self._chip = self._writer.apply(self._chip, old, self._chip.checked(new))
        return self._writer.writes - before

    def _slope(self) -> Change:
        """Return the change per unit of beta: centred, where the last two phases are of opposite betas."""
        phase, beta, change = self._changes[-1]
        if len(self._changes) > 1:
            other, opposite, before = self._changes[-2]
            if other == phase and opposite == -beta:
                return (change - before) / (2 * beta)
        return change / beta

    def calibrate(self) -> Mapping[str, float]:
        """Read 0 V many times: return the ADC's mean ``adc_offset`` and rms ``adc_noise`` [V]."""
        self._calibrations += 1
        sampler = self._sampler(("calibration", self._calibrations), 1)
        found = sampler.sample(np.zeros((256, len(self.terminals.read))), None, "zero")
        return {"adc_offset": float(found.mean()), "adc_noise": float(found.std())}

    def wait(self, seconds: float) -> None:
        """Let devices drift."""
        self._chip = self._chip.aged(seconds)
        self._anchor = None

    def close(self) -> None:
        """Do nothing: a simulated die holds nothing open."""

    def state(self) -> Mapping[str, FloatArray]:
        """Return everything that changes in use, as arrays whose shapes never do."""
        chip, writer = self._chip, self._writer
        counts = [
            self.presentations,
            self._calibrations,
            self._touched,
            writer.steps,
            writer.writes,
            writer.energy,
            chip.writes,
            chip.matched,
            chip.age,
        ]
        arrays = {"counts": np.array(counts, dtype=np.float64)}
        # Of the writer's own memory, which changes in place, copies.
        arrays |= {f"pending/{key}": array.copy() for key, array in writer.state.items()}
        for place, die in _dies(chip):
            for kind in ("target", "written", "present"):
                pairs = die.values.crossbars if kind == "present" else getattr(die, kind)
                for crossbar in chip.netlist.crossbars:
                    for half, g in zip(_HALVES, pairs[crossbar.name], strict=True):
                        if g is not None:
                            arrays[f"{place}{kind}/{crossbar.name}/{half}"] = g
        return arrays

    def restore(self, state: Mapping[str, FloatArray]) -> None:
        """Bring a state back.

        Raises:
            InstrumentError: it is that of another circuit or card.
        """
        present = self.state()
        if {key: array.shape for key, array in state.items()} != {k: a.shape for k, a in present.items()}:
            raise InstrumentError("is the state of another circuit or card", object="state")
        counts = state["counts"]
        self._writer.restore(
            {
                key.removeprefix("pending/"): array
                for key, array in state.items()
                if key.startswith("pending/")
            },
            counts[3:6],
        )
        chip = self._brought_back(self._chip, "", state)
        if chip.copy is not None:
            chip = replace(chip, copy=self._brought_back(chip.copy, "copy/", state))
        self._chip = chip
        self.presentations, self._calibrations = int(counts[0]), int(counts[1])
        self._touched = bool(counts[2])
        self._anchor, self._changes = None, []

    def _brought_back(self, die: Chip, place: str, state: Mapping[str, FloatArray]) -> Chip:
        def kept(kind: str) -> dict[str, tuple[FloatArray, FloatArray | None]]:
            found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
            for crossbar in die.netlist.crossbars:
                key = f"{place}{kind}/{crossbar.name}/"
                minus = state.get(f"{key}g_minus")
                found[crossbar.name] = (
                    np.array(state[f"{key}g_plus"]),
                    None if minus is None else np.array(minus),
                )
            return found

        counts = state["counts"]
        found = die.restored(
            kept("target"), kept("written"), kept("present"), int(counts[6]), matched=bool(counts[7])
        )
        return replace(found, age=float(counts[8]))


def simulated_substrate(
    netlist: Netlist,
    cost: Cost,
    card: DeviceCard,
    *,
    seed: int,
    bits: int = 16,
    readout: ReadoutSpec | None = None,
    programming: ProgrammingSpec | None = None,
    update: UpdateSpec | None = None,
    settings: SolverSettings | None = None,
) -> SimulatedSubstrate:
    """Fabricate a die and put it behind converters: those of its card, or plain ones of ``bits``.

    The same arguments give the same die with the same noise, wherever it is made.
    """
    carded = with_converters(card, netlist, bits=bits)
    return SimulatedSubstrate(
        chip=fabricate(netlist, carded, seed=seed),
        plan=build_plan(netlist),
        cost=cost,
        readout=readout,
        programming=programming,
        update=update,
        settings=settings,
    )


def with_converters(card: DeviceCard, netlist: Netlist, *, bits: int = 16) -> DeviceCard:
    """Return a card that has a DAC and an ADC: its own, or ideal ones of ``bits``.

    The DAC's range is that of inputs -1 ... 1. The ADC's is 1.25 times the largest voltage of a source, or of
    an amplifier: its saturation, or else its gain times that of a source.
    """
    port = netlist.inputs
    driven = float(np.abs(port.gain).max(initial=0.0)) or 1.0
    largest = max(driven, float(np.abs(netlist.vsource.voltage).max(initial=0.0)))
    for bank in netlist.banks:
        limit = np.where(np.isfinite(bank.saturation), bank.saturation, np.abs(bank.gain) * largest)
        largest = max(largest, float(limit.max(initial=0.0)))
    room = _HEADROOM * largest
    changes: dict[str, ConverterCard] = {}
    if card.dac is None:
        changes["dac"] = ConverterCard(bits=bits, range=(-driven, driven))
    if card.adc is None:
        changes["adc"] = ConverterCard(bits=bits, range=(-room, room))
    return card.model_copy(update=changes) if changes else card


def _limits(card: ConverterCard) -> ConverterLimits:
    return ConverterLimits(bits=card.bits, low=card.range[0], high=card.range[1])


def _at(noise: FloatArray | None, nodes: Any) -> FloatArray | None:
    return None if noise is None else noise[nodes]


def _dies(chip: Chip) -> list[tuple[str, Chip]]:
    return [("", chip)] if chip.copy is None else [("", chip), ("copy/", chip.copy)]
