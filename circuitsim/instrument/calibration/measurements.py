"""What is tried on a substrate to calibrate it, and what is read: programs, repeats, phases.

Nothing is used but `Substrate.program`, `relax` and `calibrate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuitsim.chip import Conductances
from circuitsim.chip.substrate import Phase, Substrate, Terminals
from circuitsim.errors import ConvergenceError, InstrumentError
from circuitsim.instrument.calibration.calibration import Estimate, NoiseCalibration, rounded
from circuitsim.instrument.calibration.devices import DeviceReadings
from circuitsim.instrument.calibration.host_model import HostModel
from circuitsim.learning import Cost
from circuitsim.netlist import Crossbar, Netlist, Nudge
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream

__all__ = ["FreeReadings", "Measurements", "PhaseReadings", "measure_substrate", "reading_noise"]

_REPEATS = 12
"""Of one free phase, for the noise of reading."""
_CHANGE_REPEATS = 4
_NOISE_SAMPLES = 32
_BETAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_PARTS = (1.0, 0.03)
"""Of the strength that the model allows, to try until the substrate settles."""
_MOST_SWING = 0.25
"""Of the converter's range, that a nudge may move an output by."""
_EDGE = 0.05
"""Of the window, that random conductances keep clear of at either end."""
_VARIED = 0.15
"""Of the window, that large and small ones vary by."""
_SMALL = 0.3
"""Size of every other input."""
_NOTHING = 1e-12
"""Of a converter's step squared: a variance that is rounding of the arithmetic."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FreeReadings:
    """A free phase after the program ``program``: at inputs (B, n_in), in the network's units."""

    program: str
    inputs: FloatArray
    readings: FloatArray
    """(B, R) V, the converter's offset taken off."""
    good: NDArray[np.bool_]
    """(B, R): whether a reading is inside the converter's range."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseReadings:
    """A free phase, and what the corrected and the dyadic phase of the same inputs changed (B, R) V."""

    free: FreeReadings
    targets: FloatArray
    beta: float
    corrected: FloatArray
    dyadic: FloatArray | None
    noise: Estimate
    """Of one reading of a change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurements:
    """All that was read."""

    noise: NoiseCalibration
    programs: list[DeviceReadings]
    free: list[FreeReadings]
    phases: PhaseReadings | None
    readings: int
    """Conversions that it took."""
    notes: list[str]


def measure_substrate(
    substrate: Substrate,
    netlist: Netlist,
    cost: Cost,
    model: HostModel,
    *,
    seed: int,
    samples: int,
    averaging: int,
    progress: Callable[[str], None],
) -> Measurements:
    """Put a substrate through everything that a calibration needs, and leave it with the network's own.

    ``model`` is the circuit as designed: it says how strong a nudge may be.

    Raises:
        InstrumentError: the substrate is gone, refuses, or does not settle in the free phase.
    """
    bench = _Bench(substrate, netlist, cost, seed=seed, samples=samples, averaging=averaging)
    return bench.measured(model, progress)


def reading_noise(variance: float, step: float) -> float:
    """Return the noise [V] of a converter's input whose readings vary by ``variance`` [V^2], of steps [V].

    Noise s adds its own variance and that of rounding. Over voltages that lie anywhere between two codes
    that is, in the mean, ``s^2 + step^2 / 12 - sum_k step^2 / (2 pi^2 k^2) exp(-(2 pi k s / step)^2)``: the
    sum takes away what does not vary from reading to reading. (Fourier series of the rounding error.)
    """
    if variance <= 0:
        return 0.0

    def total(s: float) -> float:
        if step <= 0:
            return s * s
        k = np.arange(1, 2001)
        still = np.sum(np.exp(-np.minimum((2 * np.pi * k * s / step) ** 2, 700.0)) / k**2)
        # The tail of sum 1 / k^2, where the exponential has not begun to fall.
        rest = np.pi**2 / 6 - np.sum(1.0 / k**2) if s == 0 else 0.0
        return float(s * s + step**2 / 12 - step**2 / (2 * np.pi**2) * (still + rest))

    low, high = 0.0, math.sqrt(variance)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if total(middle) < variance else (low, middle)
    return 0.5 * (low + high)


class _Bench:
    """One substrate, and what has been read of it so far."""

    def __init__(
        self, substrate: Substrate, netlist: Netlist, cost: Cost, *, seed: int, samples: int, averaging: int
    ) -> None:
        self.substrate = substrate
        self.limits = substrate.capabilities
        self.netlist = netlist
        self.cost = cost
        self.seed = seed
        self.samples = min(samples, self.limits.most_samples)
        self.averaging = min(averaging, self.limits.most_readings)
        self.terminals = Terminals.of(netlist)
        self.readings = 0
        self.zero = 0.0
        self.notes: list[str] = []
        self.programs: list[DeviceReadings] = []

    def measured(self, model: HostModel, progress: Callable[[str], None]) -> Measurements:
        progress("converters and noise")
        own = self.substrate.calibrate()
        self.zero = self._resolved(own)
        self._program("own")
        self._program("own again")
        noise = self._noise(own)
        free = [self._free("own again", self._random_inputs("own"))]
        progress("amplifiers")
        free += self._driven()
        progress("correction")
        phases: PhaseReadings | None = None
        try:
            # Random conductances tell most, but with them loops may have no operating point.
            for name in ("random", "own anew"):
                self._program(name)
                beta = self._beta(model, name)
                if beta is not None:
                    phases = self._phases(name, beta)
                    break
        except InstrumentError as error:
            self.notes.append(f"correction not measured: {error.rule}")
        if self.programs[-1].name != "own anew":
            self._program("own anew")
        free.append(self._free("own anew", self._random_inputs("anew")) if phases is None else phases.free)
        if phases is not None:
            noise = noise.model_copy(update={"change": phases.noise})
        return Measurements(
            noise=noise,
            programs=self.programs,
            free=free,
            phases=phases,
            readings=self.readings,
            notes=self.notes,
        )

    def _pattern(self, name: str) -> Conductances:
        """Return conductances: the network's own, random ones, or those that drive amplifiers furthest."""
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for crossbar in self.netlist.trainable:
            plus, minus = crossbar.g_plus, crossbar.g_minus
            if name != "own":
                low, window = crossbar.g_min, crossbar.g_max - crossbar.g_min
                draw = stream(self.seed, "calibration", name, crossbar.name)
                if minus is None:
                    plus = low + window * draw.uniform(_EDGE, 1 - _EDGE, crossbar.shape)
                else:
                    # Few devices ask for the same, so that their rounding has nothing in common.
                    small, large = (
                        low + window * draw.uniform(start, start + _VARIED, crossbar.shape)
                        for start in (_EDGE, 1 - _EDGE - _VARIED)
                    )
                    if self._constant(crossbar):
                        # Lines of bias would only move amplifiers away from where their slopes show.
                        large = small
                    up = (draw.random(crossbar.shape) < 0.5) | (name == "driven")
                    plus, minus = np.where(up, large, small), np.where(up, small, large)
                if crossbar.mask is not None:
                    plus = np.where(crossbar.mask, plus, 0.0)
                    minus = None if minus is None else np.where(crossbar.mask, minus, 0.0)
            found[crossbar.name] = plus, minus
        return found

    def _constant(self, crossbar: Crossbar) -> bool:
        """Whether the word lines are held at constant voltages."""
        driven = self.netlist.vsource.pos[self.netlist.inputs.source]
        held = np.isin(crossbar.word_pos, np.setdiff1d(self.terminals.held, driven))
        return bool(held.all())

    def _random_inputs(self, name: str) -> FloatArray:
        draw = stream(self.seed, "calibration", "inputs", name)
        inputs = draw.uniform(-1, 1, (self.samples, self.limits.inputs))
        # Few inputs saturate amplifiers more than many: small ones show the slopes of all.
        inputs[1::2] *= _SMALL
        return self._converted(inputs)

    def _converted(self, inputs: FloatArray) -> FloatArray:
        """Return inputs (B, n_in) as the DACs make them."""
        dac = self.limits.dac
        return dac.rounded(np.clip(inputs * self.terminals.gain, dac.low, dac.high)) / self.terminals.gain

    def _targets(self, count: int) -> FloatArray:
        draw = stream(self.seed, "calibration", "targets")
        shape = (count, self.limits.outputs)
        if self.cost.kind == "softmax":
            return np.eye(shape[1])[draw.integers(shape[1], size=count)]
        size = max(abs(self.cost.high), abs(self.cost.low), 1e-3)
        return draw.uniform(-size, size, shape)

    def _program(self, name: str) -> None:
        """Write the pattern that is the first word of ``name``, and keep what is read back."""
        asked = self._pattern(name.split()[0])
        self.limits.check_program(asked)
        self.programs.append(DeviceReadings(name=name, asked=asked, read=self.substrate.program(asked)))

    def _relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int | None = None
    ) -> FloatArray:
        count = self.averaging if n_average is None else n_average
        volts = inputs * self.terminals.gain
        self.limits.check_relax(volts, phase, nudge, count)
        found = np.asarray(self.substrate.relax(volts, phase, nudge, count), dtype=np.float64)
        if found.shape != (len(inputs), len(self.limits.readings)) or not np.isfinite(found).all():
            raise InstrumentError(
                "returned no finite readings", object=self.limits.identity, value=found.shape
            )
        self.readings += found.size * count
        return found

    def _free(self, name: str, inputs: FloatArray) -> FreeReadings:
        raw = self._relax(inputs, "free")
        adc = self.limits.adc
        good = (raw > adc.low + adc.step) & (raw < adc.high - adc.step)
        return FreeReadings(program=name, inputs=inputs, readings=raw - self.zero, good=good)

    def _driven(self) -> list[FreeReadings]:
        """Read amplifiers far into saturation: all devices of one sign, all inputs alike."""
        if not self.netlist.banks or not any(c.differential for c in self.netlist.trainable):
            return []
        draw = stream(self.seed, "calibration", "inputs", "driven")
        # More small inputs than large ones: the slope is told by those, the saturation by these.
        size = draw.uniform(-1, 1, (self.samples, 1)) ** 3
        inputs = self._converted(np.repeat(size, self.limits.inputs, axis=1))
        try:
            self._program("driven")
            return [self._free("driven", inputs)]
        except InstrumentError as error:
            self.notes.append(f"amplifiers not driven into saturation: {error.rule}")
            return []

    def _resolved(self, own: Mapping[str, float]) -> float:
        """Return the ADC's offset that is told apart from its rounding [V]."""
        offset, noise = float(own.get("adc_offset", 0.0)), float(own.get("adc_noise", 0.0))
        half = 0.5 * self.limits.adc.step
        if noise >= half:
            return offset
        return math.copysign(max(abs(offset) - half * (1 + 1e-9), 0.0), offset)

    def _noise(self, own: Mapping[str, float]) -> NoiseCalibration:
        """Repeat one free phase, read once and read several times."""
        inputs = self._random_inputs("noise")[:_NOISE_SAMPLES]
        count = self.averaging if self.averaging > 1 else min(16, self.limits.most_readings)
        channels = self._varied
        variance, freedom = [], []
        for n_average in (1, count):
            stack = np.stack([self._relax(inputs, "free", n_average=n_average) for _ in range(_REPEATS)])
            variance.append(stack.var(axis=0, ddof=1)[:, channels])
            freedom.append((_REPEATS - 1) * variance[-1].size)
        step = self.limits.adc.step
        variance = [np.where(part > _NOTHING * step**2, part, 0.0) for part in variance]
        total = float(variance[0].mean())
        single = reading_noise(total, step)
        doubt = total * math.sqrt(2 / freedom[0])
        error = doubt / (2 * max(single, math.sqrt(doubt), 1e-300))
        each = np.sqrt(variance[0].mean(axis=0))
        own_error = float(np.mean(each)) / math.sqrt(2 * (_REPEATS - 1) * len(inputs))
        among = float(each.var(ddof=1)) if len(each) > 1 else 0.0
        averaged = Estimate.of(1.0, 0.0, "1")
        if total > 0:
            ratio = math.sqrt(float(variance[1].mean()) * count / total)
            averaged = Estimate.of(ratio, ratio * math.sqrt(0.5 / freedom[0] + 0.5 / freedom[1]), "1")
        return NoiseCalibration(
            single=Estimate.of(single, error, "V"),
            channels=Estimate.of(
                math.sqrt(max(among - own_error**2, 0.0)), own_error / (2 * max(len(each), 1)) ** 0.25, "V"
            ),
            averaging=count,
            averaged=averaged,
            adc_offset=rounded(float(own.get("adc_offset", 0.0))),
            adc_noise=rounded(float(own.get("adc_noise", 0.0))),
        )

    @property
    def _varied(self) -> IntArray:
        """Places of readings whose voltages lie anywhere between two codes: not those of virtual grounds."""
        still = {int(node) for sense in self.netlist.senses for node in sense.bit}
        places = [k for k, node in enumerate(self.terminals.read) if int(node) not in still]
        return np.array(places or range(len(self.terminals.read)), dtype=np.int64)

    def _phases(self, name: str, beta: float) -> PhaseReadings:
        """Go through the corrected and the dyadic phase, after the program ``name``."""
        inputs = self._random_inputs("random")
        targets = self._targets(len(inputs))
        failure: InstrumentError | None = None
        for part in _PARTS:
            nudge = self.cost.nudge(targets, part * beta)
            free = self._free(name, inputs)
            try:
                corrected = self._relax(inputs, "corrected", nudge)
                dyadic = self._relax(inputs, "dyadic", nudge) if "dyadic" in self.limits.phases else None
            except InstrumentError as error:
                failure = error
                continue
            return PhaseReadings(
                free=free,
                targets=targets,
                beta=part * beta,
                corrected=corrected,
                dyadic=dyadic,
                noise=self._change_noise(inputs[:_NOISE_SAMPLES], targets[:_NOISE_SAMPLES], part * beta),
            )
        assert failure is not None
        raise failure

    def _beta(self, model: HostModel, name: str) -> float | None:
        """Return the strongest nudge that leaves amplifiers near where they are, as the model has it.

        None where there is no correction to measure, or the model has no operating point.
        """
        if "corrected" not in self.limits.phases or not (self.netlist.banks or self.netlist.senses):
            return None
        inputs = self._random_inputs("random")[:_NOISE_SAMPLES]
        targets = self._targets(len(inputs))
        model.crossbars = self._pattern(name.split()[0])
        adc = self.limits.adc
        most = _MOST_SWING * (adc.high - adc.low)
        found: float | None = None
        # Upwards: a nudge that is far too strong may have no operating point, and finding that takes long.
        for beta in (b for b in _BETAS if b <= self.limits.nudge.largest_beta):
            try:
                d = np.abs(model.changed("corrected", inputs, targets, beta))
            except ConvergenceError:
                break
            near = d[:, self.terminals.read].max() <= most
            for bank in self.netlist.banks:
                room = np.where(np.isfinite(bank.saturation), bank.saturation, most)
                near = near and bool(np.all(d[:, bank.control] * np.abs(bank.gain) <= room))
            if not near:
                break
            found = beta
        return found

    def _change_noise(self, inputs: FloatArray, targets: FloatArray, beta: float) -> Estimate:
        stack = []
        for _ in range(_CHANGE_REPEATS):
            self._relax(inputs, "free", n_average=1)
            stack.append(self._relax(inputs, "corrected", self.cost.nudge(targets, beta), n_average=1))
        variance = np.stack(stack).var(axis=0, ddof=1)
        value = math.sqrt(float(variance.mean()))
        return Estimate.of(value, value / math.sqrt(2 * (_CHANGE_REPEATS - 1) * variance.size), "V")
