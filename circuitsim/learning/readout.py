"""Phases as a host sees them: through converters, with the noise of samples and of reads.

What is read: node voltages and amplifier outputs in the free phase, and their changes in the other phases.
The local rule then works on readings. Nudges and corrections are circuits: they follow the nodes
themselves, not the readings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from circuitsim.chip import Chip
from circuitsim.devices.card import ThermalNoise
from circuitsim.devices.converter import Converter, converter
from circuitsim.errors import DeviceError
from circuitsim.learning.gradient import Crossbars, layered_rule, local_rule
from circuitsim.learning.phases import Change, Phases
from circuitsim.netlist import Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import Spec
from circuitsim.seeds import stream
from circuitsim.solver import Drive, OperatingPoint, solve
from circuitsim.solver.correction import Correction
from circuitsim.solver.layered import FreePoint, LayerChange

__all__ = ["MeasuredPhases", "ReadoutSpec", "Sampler", "chip_converters", "needs_readings"]

_BOLTZMANN = 1.380649e-23
"""J/K, SI 2019."""


class ReadoutSpec(Spec):
    """How voltages are read.

    ``averaging``: readings per phase, whose mean counts. ``difference``: ``analog`` holds the free phase's
    voltage and converts the change from it, amplified layer by layer by a power of two up to ``gain`` so that
    it fills the range; ``digital`` converts both voltages and subtracts codes. ``rule``: ``read`` computes
    updates from readings; ``local`` leaves them to circuits at the devices, which need no converter.
    """

    averaging: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1
    difference: Literal["analog", "digital"] = "analog"
    gain: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 1024
    rule: Literal["read", "local"] = "read"


def chip_converters(chip: Chip) -> tuple[Converter | None, Converter | None]:
    """Return a die's (DAC, ADC) as fabricated, None where its card has none."""
    found = []
    for name, card in (("dac", chip.card.dac), ("adc", chip.card.adc)):
        generator = stream(chip.seed, "mismatch", name)
        found.append(None if card is None else converter(card, generator, object=chip.card.name))
    return found[0], found[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Readings of voltages through an ADC, or straight without one. ``seed`` and ``key`` name their noise."""

    readout: ReadoutSpec
    adc: Converter | None
    seed: int
    key: tuple[str | int, ...]

    def sample(self, v: FloatArray, spread: FloatArray | None, name: str, scale: float = 1.0) -> FloatArray:
        """Return the mean of several readings of voltages v (B, n) V with noise of ``spread`` (n,) V.

        ``scale`` is the ADC's range over its card's; ``name`` tells readings of one key apart.
        """
        generator = stream(self.seed, "read", *self.key, name)
        count = self.readout.averaging
        if self.adc is None:
            if spread is None:
                return v
            return v + (spread / math.sqrt(count)) * generator.standard_normal(v.shape)
        total = np.zeros(v.shape)
        repeats = count if spread is not None or self.adc.card.noise else 1
        for _ in range(repeats):
            seen = v if spread is None else v + spread * generator.standard_normal(v.shape)
            total += self.adc.read(np.asarray(seen, dtype=np.float64), generator, scale)
        return np.asarray(total / repeats, dtype=v.dtype)

    def change(self, d: FloatArray, spread: FloatArray | None, name: str) -> FloatArray:
        """Return changes d (B, n) V, read behind an amplifier that makes the largest fill the range."""
        scale = self._scale(d)
        shift = d.dtype.type(scale * self._middle)
        return self.sample(d + shift, spread, name, scale) - shift

    def _scale(self, d: FloatArray) -> float:
        """Return the range of the converter over its card's that takes the largest change."""
        if self.adc is None:
            return 1.0
        low, high = self.adc.card.range
        room = min(high - self._middle, self._middle - low)
        largest = float(np.abs(d).max(initial=0.0))
        gain = 1
        while gain * 2 <= self.readout.gain and 2 * gain * largest <= room:
            gain *= 2
        return 1.0 / gain

    @property
    def _middle(self) -> float:
        """Where in the range a change of 0 lies [V]: in the middle where the range has no 0 inside."""
        low, high = (-1.0, 1.0) if self.adc is None else self.adc.card.range
        return 0.0 if low < 0 < high else 0.5 * (low + high)


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredPhases(Phases):
    """Phases of one training step on a die with noise. ``key`` tells steps apart."""

    chip: Chip
    readout: ReadoutSpec
    adc: Converter | None
    key: tuple[str | int, ...]
    _held: dict[str, Any] = field(default_factory=dict)
    """What was read of the free phase: it is read once."""

    def free(self, inputs: FloatArray, start: OperatingPoint | None = None) -> OperatingPoint:
        self._held.clear()
        return solve(self.plan, self.present("free"), Drive(inputs=inputs), self.settings, start=start)

    def nudged(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: OperatingPoint,
        guess: Change | None = None,
    ) -> Change:
        name = f"nudged {math.copysign(1, beta):+.0f}"
        change = self._circuit(name).nudged(inputs, targets, beta, free, guess)
        return self._measured(change, free, name)

    def corrected(
        self,
        inputs: FloatArray,
        targets: FloatArray,
        beta: float,
        free: OperatingPoint,
        guess: Change | None = None,
    ) -> Change:
        name = f"corrected {math.copysign(1, beta):+.0f}"
        circuit = self._circuit(name)
        if self.chip.card.amplifier.anchor_noise:
            circuit = replace(circuit, correction=self._anchored(len(inputs)))
        return self._measured(circuit.corrected(inputs, targets, beta, free, guess), free, name)

    def dyadic(self, inputs: FloatArray, targets: FloatArray, beta: float, free: OperatingPoint) -> Change:
        # A linear network at rest: its voltages are the change.
        circuit, copy = self._circuit("dyadic"), self.chip.copy
        if self.dual is not None and copy is not None and self.chip.noisy:
            noisy = copy.read(*self.key, "dyadic", values=self.dual.values)
            circuit = replace(circuit, dual=replace(self.dual, values=noisy))
        change = circuit.dyadic(inputs, targets, beta, free)
        return self._measured(change, free, "dyadic", held=False)

    def rule(self, inputs: FloatArray, free: OperatingPoint, s: Change) -> Crossbars:
        if isinstance(s, LayerChange):
            return layered_rule(self.plan.layered, self._read_point(free), s)
        return local_rule(self.netlist, self._read_free("nodes", free.node_voltage, None), s)

    def read_voltage(self, y: FloatArray) -> FloatArray:
        """Return outputs y (B, K) V as they are read."""
        return self._sampler.sample(y, None, "outputs")

    def node_noise(self, free: OperatingPoint) -> FloatArray | None:
        """Return the thermal noise of all nodes (N,) V; None where the devices have none."""
        point = free._layers
        if self._thermal is None or point is None:
            return None
        found = np.zeros(self.netlist.n_nodes)
        for layer, nodes in enumerate(self.plan.layered.layers):
            found[nodes] = self._spread(point, layer)
        return found

    def _circuit(self, name: str) -> Phases:
        """Return the circuit in one phase, without readings."""
        return Phases(
            plan=self.plan,
            values=self.present(name),
            cost=self.cost,
            settings=self.settings,
            correction=self.correction,
            dual=self.dual,
        )

    def present(self, name: str) -> Values:
        """Return what one phase finds of the devices."""
        if not self.chip.noisy:
            return self.values
        if name not in self._held:
            self._held[name] = self.chip.read(*self.key, name, values=self.values)
        return self._held[name]

    def _anchored(self, batch: int) -> Correction:
        """Return the correction with what was sampled and held for each sample: the same in both nudges."""
        if "anchor" not in self._held:
            spread = self.chip.card.amplifier.anchor_noise
            base = self.correction or Correction()
            blocks = {bank.name: len(bank.control) for bank in self.netlist.banks}
            blocks |= {sense.name: len(sense.bit) for sense in self.netlist.senses}
            generator = stream(self.chip.seed, "anchor", *self.key)
            anchor = {
                name: base.anchor.get(name, 0.0) + spread * generator.standard_normal((batch, size))
                for name, size in blocks.items()
            }
            self._held["anchor"] = replace(base, anchor=anchor)
        return self._held["anchor"]

    @property
    def _reads(self) -> bool:
        return self.readout.rule == "read" and (self.adc is not None or self._thermal is not None)

    @property
    def _thermal(self) -> ThermalNoise | None:
        noises = self.chip.card.crossbar.read_noise
        return next((noise for noise in noises if isinstance(noise, ThermalNoise)), None)

    def _measured(self, change: Change, free: OperatingPoint, name: str, *, held: bool = True) -> Change:
        if not self._reads:
            return change
        if not isinstance(change, LayerChange):
            return self._difference(change, free.node_voltage, None, name, "nodes", held)
        own = free._layers
        assert own is not None
        layers = tuple(
            self._difference(d, v0, self._spread(own, layer), name, str(layer), held)
            for layer, (d, v0) in enumerate(zip(change.layers, own.layers, strict=True))
        )
        if change.driven is None:
            return replace(change, layers=layers)
        outs = [bank.out for bank in own.banks]
        outs += [np.zeros_like(d) for d in change.driven[len(outs) :]]
        driven = tuple(
            self._difference(d, v0, None, name, f"bank {number}", held)
            for number, (d, v0) in enumerate(zip(change.driven, outs, strict=True))
        )
        return replace(change, layers=layers, driven=driven)

    def _difference(
        self, d: FloatArray, v0: FloatArray, spread: FloatArray | None, name: str, part: str, held: bool
    ) -> FloatArray:
        """Return the change d (B, n) V of a layer, or of all nodes, as it is read."""
        if held and self.readout.difference == "digital":
            before = self._read_free(part, v0, spread)
            return self._sampler.sample(v0 + d, spread, f"{name} {part}") - before
        # What is held was sampled too, with noise of its own.
        both = None if spread is None else spread * (math.sqrt(2.0) if held else 1.0)
        return self._sampler.change(d, both, f"{name} {part}")

    @property
    def _sampler(self) -> Sampler:
        return Sampler(readout=self.readout, adc=self.adc, seed=self.chip.seed, key=self.key)

    def _read_free(self, name: str, v0: FloatArray, spread: FloatArray | None) -> FloatArray:
        key = f"free {name}"
        if key not in self._held:
            self._held[key] = self._sampler.sample(v0, spread, key) if self._reads else v0
        return self._held[key]

    def _read_point(self, free: OperatingPoint) -> FreePoint:
        point = free._layers
        assert point is not None
        if not self._reads:
            return point
        layers = [self._read_free(str(k), v0, self._spread(point, k)) for k, v0 in enumerate(point.layers)]
        banks = [
            replace(bank, out=self._read_free(f"bank {k}", bank.out, None))
            for k, bank in enumerate(point.banks)
        ]
        return replace(point, layers=layers, banks=banks)

    def _spread(self, point: FreePoint, layer: int) -> FloatArray | None:
        """Return the thermal noise of the nodes of a layer (n,) V."""
        noise = self._thermal
        if noise is None:
            return None
        key = f"thermal {layer}"
        if key not in self._held:
            nodes, load = self.plan.layered.layers[layer], np.asarray(point.weights.load[layer], float)
            capacitance = np.zeros(self.netlist.n_nodes)
            table = self.netlist.capacitor
            for ends in (table.pos, table.neg):
                np.add.at(capacitance, ends, self.values.tables["capacitor"]["capacitance"])
            c = capacitance[nodes]
            own = np.where(c > 0, load / (4 * np.maximum(c, 1e-30)), np.inf)
            band = np.minimum(noise.bandwidth, own)
            self._held[key] = np.sqrt(4 * _BOLTZMANN * noise.temperature * band / load)
        return self._held[key]


def needs_readings(chip: Chip, readout: ReadoutSpec, method: str) -> bool:
    """Return whether what a host reads of a die differs from what its circuit does.

    Raises:
        DeviceError: thermal noise, which is known for the layered ``method`` only.
    """
    thermal = any(isinstance(noise, ThermalNoise) for noise in chip.card.crossbar.read_noise)
    if thermal and method != "layered":
        raise DeviceError(
            "thermal noise needs the layered method",
            object=chip.card.name,
            field="crossbar.read_noise",
            remedy="Leave it out, or use a network of layers.",
        )
    # Outputs are converted whatever the rule is.
    reads = chip.card.adc is not None or (readout.rule == "read" and thermal)
    return reads or chip.noisy or chip.card.amplifier.anchor_noise > 0
