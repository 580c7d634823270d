"""Calibration: what the readings of a substrate say of its amplifiers, its correction, its devices.

Amplifiers are fitted to readings of both their ends. What no two readings show alone (the correction's way
back, back gains, virtual grounds, the second network of a dyadic phase) is fitted with the host's model of
the circuit, which has the amplifiers and devices as they were measured: one parameter per amplifier, by its
effect on one reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from circuitsim.chip.substrate import Capabilities, StatefulSubstrate, Substrate, Terminals
from circuitsim.errors import InstrumentError, SpecError
from circuitsim.instrument.calibration.amplifiers import AmplifierFit, fit_amplifiers
from circuitsim.instrument.calibration.calibration import (
    AmplifierCalibration,
    Calibration,
    ConverterCalibration,
    SenseCalibration,
    Series,
    measured_card,
)
from circuitsim.instrument.calibration.devices import MeasuredDevices, calibrate_devices
from circuitsim.instrument.calibration.host_model import HostModel, ModelParameters, fit_parameters, redrawn
from circuitsim.instrument.calibration.measurements import Measurements, PhaseReadings, measure_substrate
from circuitsim.learning import Cost
from circuitsim.learning.in_the_loop import check_substrate
from circuitsim.netlist import AmplifierBank, CurrentSense, Netlist
from circuitsim.netlist.models import buffer_gain, buffer_voltage
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream
from circuitsim.solver import SolverSettings, build_plan

__all__ = ["calibrate_substrate"]

_WORST = 0.25
"""Standard error of a ratio from which it counts as not measured."""
_CUT = 0.01
"""Share of an amplifier's readings that may lie outside the converter's range."""
_INSIDE = 0.8
_DRAWS = 8
"""Of devices within what is known of them, for what that leaves unknown of amplifiers."""


def calibrate_substrate(
    substrate: Substrate,
    netlist: Netlist,
    cost: Cost,
    *,
    date: str,
    seed: int = 0,
    samples: int = 128,
    averaging: int = 16,
    settings: SolverSettings | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Measure a substrate that holds ``netlist``.

    It is programmed with the network's own conductances, and with random ones. Where it can keep its state,
    that is brought back; otherwise it is left with the network's own.

    Args:
        substrate: what to measure.
        netlist: the circuit as designed.
        cost: as the substrate has it.
        date: of the measurement, for the file.
        seed: of the conductances, inputs and targets that are tried.
        samples: inputs of each phase.
        averaging: readings of each phase.
        settings: of the host's model.
        progress: told what is being measured.

    Raises:
        InstrumentError: another circuit, or one that takes no conductances from the host.
        SpecError: too few samples to tell anything.
    """
    for name, value, least in (("samples", samples, 16), ("averaging", averaging, 1)):
        if value < least:
            raise SpecError(f"must be at least {least}", field=name, value=value)
    check_substrate(substrate, netlist, cost, None)
    limits = substrate.capabilities
    if not limits.host_writes:
        raise InstrumentError(
            "takes no conductances from the host, so nothing is known of what it holds",
            object=limits.identity,
            remedy="Calibrate it with its own tools.",
        )
    kept = substrate.state() if isinstance(substrate, StatefulSubstrate) else None
    model = HostModel.of(build_plan(netlist), cost, settings or SolverSettings(check=False))
    try:
        found = measure_substrate(
            substrate,
            netlist,
            cost,
            model,
            seed=seed,
            samples=samples,
            averaging=averaging,
            progress=progress,
        )
    finally:
        if kept is not None and isinstance(substrate, StatefulSubstrate):
            substrate.restore(kept)
    progress("evaluation")
    return _Evaluation(limits, netlist, model, found, seed=seed).result(date)


class _Evaluation:
    """Measurements of one substrate, and a model that is fitted to them part by part."""

    def __init__(
        self, limits: Capabilities, netlist: Netlist, model: HostModel, found: Measurements, *, seed: int
    ) -> None:
        self.limits = limits
        self.netlist = netlist
        self.model = model
        self.found = found
        self.seed = seed
        self.notes = list(found.notes)
        self.read = Terminals.of(netlist).read
        self.place = {int(node): k for k, node in enumerate(self.read)}
        self.error: dict[tuple[str, str], FloatArray] = {}
        """Block, what of it -> standard errors (n,), in the units of the model."""
        # Devices are read by the same converter: noise is as many of its steps as of a voltage's.
        steps = math.hypot(found.noise.single.value / limits.adc.step, 1 / math.sqrt(12))
        self.devices: MeasuredDevices = calibrate_devices(
            found.programs,
            netlist,
            resolution=limits.resolution,
            reading_error=limits.resolution * steps,
        )

    def result(self, date: str) -> Calibration:
        """Fit everything, and return it."""
        limits, found = self.limits, self.found
        fits = self._amplifiers()
        last = found.free[-1].program
        self.model.crossbars = self.devices.present(last)
        self._free_phase()
        if found.phases is not None:
            self._correction(found.phases, fits)
            self._copy(found.phases, fits)
        amplifiers = {bank.name: self._bank(bank, fits.get(bank.name)) for bank in self.netlist.banks}
        senses = {
            sense.name: SenseCalibration(
                gain=self._series(sense.name, "gain", self.model.senses, sense.gain),
                forward=self._series(sense.name, "forward", self.model.forward),
                back=self._series(sense.name, "back", self.model.back),
            )
            for sense in self.netlist.senses
        }
        dac = ConverterCalibration(bits=limits.dac.bits, range=(limits.dac.low, limits.dac.high))
        adc = ConverterCalibration(bits=limits.adc.bits, range=(limits.adc.low, limits.adc.high))
        crossbars = dict(self.devices.crossbars)
        windows = {crossbar.name: (crossbar.g_min, crossbar.g_max) for crossbar in self.netlist.trainable}
        return Calibration(
            identity=limits.identity,
            circuit=limits.circuit,
            date=date,
            seed=self.seed,
            readings=found.readings,
            beta=None if found.phases is None else found.phases.beta,
            notes=tuple(self.notes),
            dac=dac,
            adc=adc,
            largest_gain=limits.largest_gain,
            noise=found.noise,
            amplifiers=amplifiers,
            senses=senses,
            crossbars=crossbars,
            card=measured_card(
                dac=dac,
                adc=adc,
                noise=found.noise,
                amplifiers=list(amplifiers.values()),
                senses=list(senses.values()),
                crossbars=list(crossbars.values()),
                windows=[windows[name] for name in crossbars],
            ),
        )

    def _places(self, nodes: IntArray | None) -> IntArray | None:
        """Return where nodes are among the readings; None where any of them is not read."""
        if nodes is None or any(int(node) not in self.place for node in nodes):
            return None
        return np.array([self.place[int(node)] for node in nodes], dtype=np.int64)

    def _amplifiers(self) -> dict[str, AmplifierFit]:
        """Fit every bank whose outputs are read, those first whose controls are read too."""
        found: dict[str, AmplifierFit] = {}
        read = {bank.name: self._places(bank.control) is not None for bank in self.netlist.banks}
        # Noise dithers: what it leaves of the converter's rounding that averages do not take away.
        step, noise = self.limits.adc.step, self.found.noise.single.value
        rounding = step / math.sqrt(12) * math.exp(-2 * (math.pi * noise / step) ** 2)
        for bank in sorted(self.netlist.banks, key=lambda bank: not read[bank.name]):
            out = self._places(bank.out_pos)
            if out is None or not np.all(bank.gain):
                self.notes.append(f"{bank.name} not measured: its outputs are not read")
                continue
            inverted = self._places(bank.out_neg)
            control = self._places(bank.control)
            x, p, m, good = [], [], [], []
            for one in self.found.free:
                ok = one.good[:, out]
                if control is not None:
                    v = one.readings[:, control]
                    ok = ok & one.good[:, control]
                else:
                    self.model.crossbars = self.devices.present(one.program)
                    v = self.model.free(one.inputs)[:, bank.control]
                x.append(v)
                p.append(one.readings[:, out])
                if inverted is not None:
                    m.append(one.readings[:, inverted])
                    ok = ok & one.good[:, inverted]
                good.append(ok)
            whole = np.concatenate(good)
            # Noise decides which readings of an output at the end of the range are cut off, and what is left
            # would be biased: of such an amplifier only what is well inside counts.
            inside = np.abs(np.concatenate(p)) < _INSIDE * max(abs(self.limits.adc.low), self.limits.adc.high)
            whole &= inside | (whole.mean(axis=0) > 1 - _CUT)
            fit = fit_amplifiers(
                np.concatenate(x),
                np.concatenate(p),
                np.concatenate(m) if m else None,
                whole,
                gain=bank.gain,
                saturation=bank.saturation,
                rounding=rounding,
            )
            found[bank.name] = fit
            columns = self.model.banks[bank.name]
            told = np.isfinite(fit.gain_error) & (fit.gain_error < _WORST * np.abs(bank.gain))
            self.error[bank.name, "gain"] = np.where(told, fit.gain_error, np.nan)
            columns["gain"] = np.where(told, fit.gain, bank.gain)
            columns["offset"] = np.where(told, fit.offset, bank.offset)
            columns["saturation"] = np.where(np.isfinite(fit.saturation), fit.saturation, bank.saturation)
        return found

    def _free_phase(self) -> None:
        """Fit back gains, and gains of virtual grounds whose outputs are read, to the last free phase."""
        model, last = self.model, self.found.free[-1]
        wanted: list[ModelParameters] = []
        for bank in self.netlist.banks:
            probe = self._places(bank.control)
            if probe is not None and np.all(bank.back_gain):
                wanted.append(
                    self._parameters(bank.name, "back_gain", model.banks[bank.name], probe, "back_gain")
                )
        for sense in self.netlist.senses:
            probe = self._places(sense.output)
            if probe is not None:
                wanted.append(self._parameters(sense.name, "gain", model.senses, probe))

        def predict() -> FloatArray:
            return model.free(last.inputs)[:, self.read]

        self._fit(wanted, predict, last.readings, last.good.astype(np.float64))

    def _correction(self, phases: PhaseReadings, fits: dict[str, AmplifierFit]) -> None:
        """Fit the correction's gains of every bank and virtual ground."""
        model = self.model
        wanted: list[ModelParameters] = []
        for bank in self.netlist.banks:
            if bank.name not in fits:
                continue
            n = len(bank.control)
            control, out, probe = self._places(bank.control), self._places(bank.out_pos), self._probe(bank)
            model.forward[bank.name], model.back[bank.name] = np.ones(n), np.ones(n)
            model.anchor[bank.name] = np.zeros(n)
            if control is not None:
                self._forward(bank, fits[bank.name], phases)
            elif out is not None:
                wanted.append(self._parameters(bank.name, "forward", model.forward, out))
            if probe is not None:
                back = self._parameters(bank.name, "back", model.back, probe)
                for kind, home in (("forward", model.forward), ("anchor", model.anchor)):
                    if (bank.name, kind) in self.error:
                        back.nuisances.append((home, bank.name, self.error[bank.name, kind]))
                back.nuisances.append((model.banks[bank.name], "gain", self.error[bank.name, "gain"]))
                fit, columns = fits[bank.name], model.banks[bank.name]
                back.nuisances.append((columns, "offset", np.nan_to_num(fit.offset_error)))
                if np.isfinite(columns["saturation"]).all():
                    # One that is never reached does nothing, known or not.
                    back.nuisances.append((columns, "saturation", np.nan_to_num(fit.saturation_error)))
                back.nuisances += [
                    (model.banks[name], kind, error)
                    for (name, kind), error in self.error.items()
                    if kind == "back_gain"
                ]
                wanted.append(back)
        for sense in self.netlist.senses:
            bit, output = self._places(sense.bit), self._places(sense.output)
            if bit is None or output is None:
                continue
            model.back[sense.name] = np.ones(len(bit))
            wanted.append(self._parameters(sense.name, "back", model.back, bit))
            if not any(self._behind(bank, sense) for bank in self.netlist.banks):
                model.forward[sense.name] = np.ones(len(bit))
                wanted.append(self._parameters(sense.name, "forward", model.forward, output))

        def predict() -> FloatArray:
            moved = model.changed("corrected", phases.free.inputs, phases.targets, phases.beta)
            return moved[:, self.read]

        self._fit(wanted, predict, phases.corrected, np.ones(phases.corrected.shape))

    def _copy(self, phases: PhaseReadings, fits: dict[str, AmplifierFit]) -> None:
        """Fit the slopes of the second network of a dyadic phase, whose devices nothing reads."""
        model, changes = self.model, phases.dyadic
        if changes is None:
            return
        wanted: list[ModelParameters] = []
        for bank in self.netlist.banks:
            probe = self._probe(bank)
            if bank.name in fits and probe is not None:
                model.slope[bank.name] = np.ones(len(probe))
                slope = self._parameters(bank.name, "copy_slope", model.slope, probe)
                slope.nuisances.append((model.banks[bank.name], "gain", self.error[bank.name, "gain"]))
                wanted.append(slope)
        program = phases.free.program
        model.copy = self.devices.asked(program)

        def predict() -> FloatArray:
            return model.changed("dyadic", phases.free.inputs, phases.targets, phases.beta)[:, self.read]

        self._fit(wanted, predict, changes, np.ones(changes.shape), copy=True)

    def _parameters(
        self, name: str, kind: str, home: dict[str, FloatArray], probe: IntArray, key: str | None = None
    ) -> ModelParameters:
        return ModelParameters(name=name, kind=kind, home=home, key=key or name, probe=probe)

    def _fit(
        self,
        wanted: Sequence[ModelParameters],
        predict: Callable[[], FloatArray],
        read: FloatArray,
        weight: FloatArray,
        *,
        copy: bool = False,
    ) -> None:
        """Fit parameters to readings, keep their errors, and take back what could not be told."""
        if not wanted:
            return
        nominal = [p.value.copy() for p in wanted]
        failure = fit_parameters(wanted, predict, read, weight, self._scatter(predict, copy=copy))
        if failure is not None:
            what = ", ".join(f"{p.kind} of {p.name}" for p in wanted)
            self.notes.append(f"not fitted: {what}: {failure}")
        for p, before in zip(wanted, nominal, strict=True):
            lost = ~(p.error < _WORST * np.abs(before))
            p.home[p.key] = np.where(lost, before, p.value)
            self.error[p.name, p.kind] = np.where(lost, np.nan, p.error)

    def _scatter(self, predict: Callable[[], FloatArray], *, copy: bool) -> list[Callable[[], FloatArray]]:
        """Return predictions with devices redrawn: those of the circuit, or those of its copy."""
        model, program = self.model, self.found.free[-1].program
        spread = self.devices.copy_doubt(program) if copy else self.devices.doubt(program)
        if not any(np.any(s) for pair in spread.values() for s in pair if s is not None):
            return []

        def draw(number: int) -> Callable[[], FloatArray]:
            def predicted() -> FloatArray:
                held = model.copy if copy else model.crossbars
                generators = {
                    name: stream(self.seed, "calibration", "redrawn", name, number) for name in held
                }
                other = redrawn(held, spread, generators)
                try:
                    if copy:
                        model.copy = other
                    else:
                        model.crossbars = other
                    return predict()
                finally:
                    if copy:
                        model.copy = held
                    else:
                        model.crossbars = held

            return predicted

        return [draw(number) for number in range(_DRAWS)]

    def _probe(self, bank: AmplifierBank) -> IntArray | None:
        """Return the readings in which the way back to a bank's controls shows: the controls themselves, or
        the bit lines whose virtual grounds drive them."""
        probe = self._places(bank.control)
        if probe is not None:
            return probe
        for sense in self.netlist.senses:
            if self._behind(bank, sense):
                return self._places(sense.bit)
        return None

    @staticmethod
    def _behind(bank: AmplifierBank, sense: CurrentSense) -> bool:
        """Whether virtual grounds drive a bank's controls: then their ways forward and its ways back move the
        same readings alike, and what is off counts as the bank's."""
        return np.array_equal(sense.output, bank.control)

    def _forward(self, bank: AmplifierBank, fitted: AmplifierFit, phases: PhaseReadings) -> None:
        """Fit c_f and e, from how an output moves as its control does by D.

        f(v0 + D) - f(v0) - c_f (a - B)(D - e)
        """
        control, out = self._places(bank.control), self._places(bank.out_pos)
        inverted = self._places(bank.out_neg)
        assert control is not None
        if out is None:
            return
        columns = self.model.banks[bank.name]
        v0, d = phases.free.readings[:, control], phases.corrected[:, control]
        moved = phases.corrected[:, out]
        if inverted is not None:
            moved = 0.5 * (moved - phases.corrected[:, inverted])

        def fit(
            gain: FloatArray, saturation: FloatArray, offset: FloatArray, back_gain: FloatArray
        ) -> tuple[FloatArray, ...]:
            shape = gain, saturation, offset
            y = buffer_voltage(v0 + d, *shape) - buffer_voltage(v0, *shape) - moved
            swap = buffer_gain(v0, *shape) - back_gain
            one, two = swap * d, -swap
            a, b, c = (one**2).sum(axis=0), (one * two).sum(axis=0), (two**2).sum(axis=0)
            determinant = a * c - b**2
            right, left = (one * y).sum(axis=0), (two * y).sum(axis=0)
            forward = (c * right - b * left) / determinant
            product = (a * left - b * right) / determinant
            variance = ((y - forward * one - product * two) ** 2).sum(axis=0) / max(len(y) - 2, 1)
            known = determinant > 1e-9 * a * c
            anchor = product / forward
            doubts = variance * c / determinant, variance * a / determinant / forward**2
            return forward, anchor, *doubts, known

        shape = [columns["gain"], columns["saturation"], columns["offset"], columns["back_gain"]]
        back_error = self.error.get((bank.name, "back_gain"), np.zeros(len(bank.control)))
        with np.errstate(divide="ignore", invalid="ignore"):
            forward, anchor, square, anchor_square, known = fit(*shape)
            # What the host has wrong of an amplifier it mistakes for what is not corrected.
            for place, error in enumerate(
                (self.error[bank.name, "gain"], fitted.saturation_error, fitted.offset_error, back_error)
            ):
                other = list(shape)
                error = np.nan_to_num(error)
                other[place] = shape[place] + error
                off = fit(*other)
                square = square + (off[0] - forward) ** 2
                anchor_square = anchor_square + (off[1] - anchor) ** 2
            error, anchor_error = np.sqrt(square), np.sqrt(anchor_square)
        told = np.isfinite(error) & (error < _WORST) & known.astype(bool)
        self.error[bank.name, "forward"] = np.where(told, error, np.nan)
        self.error[bank.name, "anchor"] = np.where(told, anchor_error, np.nan)
        self.model.forward[bank.name] = np.where(told, forward, 1.0)
        self.model.anchor[bank.name] = np.where(told, anchor, 0.0)

    def _bank(self, bank: AmplifierBank, fit: AmplifierFit | None) -> AmplifierCalibration:
        control: Literal["read", "modelled"] = (
            "read" if self._places(bank.control) is not None else "modelled"
        )
        sensed = any(self._behind(bank, sense) for sense in self.netlist.senses)
        if fit is None:
            return AmplifierCalibration(control=control, sensed=sensed)
        name, model = bank.name, self.model
        told = np.isfinite(self.error[name, "gain"])
        size = np.abs(bank.gain)
        limit = np.where(np.isfinite(bank.saturation), bank.saturation, 1.0)
        own = {name: model.banks[name]["back_gain"]}
        return AmplifierCalibration(
            control=control,
            sensed=sensed,
            gain=Series.of(np.where(told, fit.gain / bank.gain, np.nan), fit.gain_error / size, "1"),
            offset=Series.of(np.where(told, fit.offset, np.nan), fit.offset_error, "V"),
            saturation=Series.of(fit.saturation / limit, fit.saturation_error / limit, "1"),
            back_gain=self._series(name, "back_gain", own, bank.back_gain),
            forward=self._series(name, "forward", model.forward),
            back=self._series(name, "back", model.back),
            anchor=self._series(name, "anchor", model.anchor, unit="V"),
            copy_slope=self._series(name, "copy_slope", model.slope),
        )

    def _series(
        self,
        name: str,
        kind: str,
        home: dict[str, FloatArray],
        nominal: FloatArray | float = 1.0,
        unit: str = "1",
    ) -> Series | None:
        """Return what was fitted, over its nominal value; None where it was not."""
        error = self.error.get((name, kind))
        return None if error is None else Series.of(home[name] / nominal, error / np.abs(nominal), unit)
