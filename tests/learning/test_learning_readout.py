"""Readings: converters, averaging, noise of samples and of reads, and what they do to gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import network_document
from dies import TIGHT, Reading, card, error, trainer

from circuitsim.errors import DeviceError
from circuitsim.learning import EP, Adjoint, AsymEP, Dyadic, DyadicBP, Gradient, Phases
from circuitsim.learning.estimators import Estimator
from circuitsim.learning.readout import MeasuredPhases
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.layered import LayerChange

ESTIMATORS: dict[str, Estimator] = {
    "nudged": EP(),
    "nudged one-sided": EP(centred=False),
    "corrected": AsymEP(),
    "corrected one-sided": AsymEP(centred=False),
    "dyadic": Dyadic(),
}
ADC = {"bits": 8, "range": [-1, 1]}
STEP = 2 / 255
WIRED = {"resistance": "20", "driver": "50"}


def document(**options: Any) -> dict[str, Any]:
    return network_document(**{"recurrent": True, "synapse": "amplifier", **options})


def wired() -> dict[str, Any]:
    found = network_document(recurrent=True)
    for synapse in found["synapses"]:
        synapse["wires"] = WIRED
    return found


class TestWithoutAnythingToRead:
    @pytest.mark.parametrize("settings", [{}, {"precision": "float32"}, {"method": "general"}], ids=str)
    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_readings_are_the_phases_bit_for_bit(self, name: str, settings: dict[str, Any]) -> None:
        die = Reading(card(crossbar={"device_to_device": 0.1}), document=document(), **settings)
        estimator = ESTIMATORS[name]
        np.testing.assert_array_equal(die.estimate(estimator, die.measured("k")), die.estimate(estimator))

    def test_the_local_rule_needs_no_converter(self) -> None:
        die = Reading(card(adc=ADC))
        found = die.estimate(AsymEP(), die.measured("k", rule="local"))
        np.testing.assert_array_equal(found, die.estimate(AsymEP()))
        assert error(die.estimate(AsymEP(), die.measured("k")), found) > 1e-3
        # The outputs of the free phase are still read.
        y = np.array([[0.1234, -0.5]])
        np.testing.assert_allclose(
            die.measured("k", rule="local").read_voltage(y), [[0.121569, -0.498039]], atol=1e-5
        )


FAULTS = {"correction_gain": 0.1, "anchor": "1m", "gain": 0.05, "copy_gain": 0.05}


class TestConverters:
    @pytest.mark.parametrize("kind", ["amplifiers", "wires"])
    @pytest.mark.parametrize("difference", ["analog", "digital"])
    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_a_fine_one_reads_everything_that_the_rule_uses(
        self, name: str, difference: str, kind: str
    ) -> None:
        """With faults of the correction and a copy of its own: outputs of amplifiers, drops behind wires."""
        sections = {"crossbar": {"device_to_device": 0.1}, "amplifier": FAULTS}
        fine = {"bits": 24, "range": [-1, 1]}
        die = Reading(
            card(**sections, adc=fine), document=document() if kind == "amplifiers" else wired(), **TIGHT
        )
        estimator = replace(ESTIMATORS[name], beta=1.0)  # type: ignore[type-var]
        found = die.estimate(estimator, die.measured("k", difference=difference))
        bound = 1e-5 if difference == "analog" else 5e-3
        assert 0 < error(found, die.estimate(estimator)) < bound

    def test_readings_lie_on_the_grid(self) -> None:
        die = Reading(card(adc=ADC), batch=20)
        y = np.random.default_rng(0).uniform(-1.2, 1.2, (50, 4))
        codes = (die.measured("k").read_voltage(y) + 1) / STEP
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
        assert (codes.min(), codes.max()) == pytest.approx((0, 255))
        free = die.phases.free(die.inputs)
        exact = die.phases.nudged(die.inputs, die.targets, 0.5, free)
        for difference in ("analog", "digital"):
            phases = die.measured("k", difference=difference)
            change = phases.nudged(die.inputs, die.targets, 0.5, phases.free(die.inputs))
            assert isinstance(change, LayerChange)
            for d, true in zip(change.layers, exact.layers, strict=True):
                largest = np.abs(true).max()
                gain = 2.0 ** math.floor(math.log2(1 / largest)) if largest else 1024.0
                unit = STEP if difference == "digital" else STEP / min(gain, 1024.0)
                if largest == 0:
                    continue
                # A code of 0 V lies half way between two: differences of codes are whole.
                places = d / unit if difference == "digital" else (d + unit / 2) / unit
                np.testing.assert_allclose(places, np.rint(places), atol=1e-6)
                assert np.abs(d - true).max() <= unit * (1 if difference == "digital" else 0.5) * (1 + 1e-9)

    def test_analog_differences_shrink_steps_by_the_gain(self) -> None:
        die = Reading(card(adc=ADC), batch=64)
        exact = die.estimate(AsymEP(beta=0.01))
        errors = {
            gain: error(die.estimate(AsymEP(beta=0.01), die.measured("k", gain=gain)), exact)
            for gain in (1, 16, 256)
        }
        # Changes of a few 100 uV: nothing to see at gain 1, a step of 8 mV.
        assert errors[1] > 0.9
        assert errors[16] < 0.6 * errors[1]
        assert errors[256] < 0.3 * errors[16]
        digital = error(die.estimate(AsymEP(beta=0.01), die.measured("k", difference="digital")), exact)
        assert digital > 0.5

    def test_a_range_without_zero_reads_changes_of_both_signs(self) -> None:
        die = Reading(card(adc={"bits": 16, "range": [0, 2]}), batch=16)
        phases = die.measured("k")
        free = phases.free(die.inputs)
        change, true = (p.nudged(die.inputs, die.targets, 0.1, free).layers[-1] for p in (phases, die.phases))
        assert (true < -1e-6).any()
        np.testing.assert_allclose(change, true, rtol=0, atol=0.51 * 2 / 65535 / 1024)

    def test_averaging_lowers_the_error_of_gradients_as_the_root(self) -> None:
        """Noise of 2 mV before a converter of 16 bits: its steps are far below."""
        die = Reading(card(adc={"bits": 16, "range": [-1, 1], "noise": "2m"}), batch=16)
        exact = die.estimate(AsymEP(beta=0.1))

        def rms(averaging: int) -> float:
            errors = [
                error(
                    die.estimate(AsymEP(beta=0.1), die.measured("k", k, averaging=averaging, gain=1)), exact
                )
                for k in range(20)
            ]
            return float(np.sqrt(np.mean(np.square(errors))))

        once, four, sixteen = rms(1), rms(4), rms(16)
        assert once > 0.02
        assert once / four == pytest.approx(2, rel=0.15)
        assert once / sixteen == pytest.approx(4, rel=0.15)

    def test_noise_before_a_gain_counts_less(self) -> None:
        die = Reading(card(adc={"bits": 16, "range": [-1, 1], "noise": "2m"}), batch=16)
        exact = die.estimate(AsymEP(beta=0.1))
        low, high = (
            error(die.estimate(AsymEP(beta=0.1), die.measured("k", gain=gain)), exact) for gain in (1, 8)
        )
        assert high < 0.4 * low


class TestNoise:
    def test_the_best_beta_moves_up_with_the_noise(self) -> None:
        """Noise costs 1 / beta, the curvature beta^2: what is best lies between."""
        betas = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
        best = []
        for noise in ("0.1u", "3u", "100u"):
            die = Reading(card(adc={"bits": 24, "range": [-0.5, 0.5], "noise": noise}), batch=16)
            exact = die.estimate(Adjoint())
            errors = [
                np.mean(
                    [
                        error(die.estimate(AsymEP(beta=b), die.measured("k", k, gain=1)), exact)
                        for k in range(6)
                    ]
                )
                for b in betas
            ]
            best.append(betas[int(np.argmin(errors))])
            # Ten times less beta, ten times the error, where noise is all there is.
            if noise == "100u":
                assert errors[0] / errors[2] == pytest.approx(10, rel=0.3)
        print(f"best beta {best}")
        assert best[0] < best[1] < best[2]

    def test_a_small_load_has_the_noise_of_its_capacitance(self) -> None:
        """k T / C however small g is, once the bandwidth is above the node's own."""
        temperature, c = 300.0, 1e-12
        kt = 1.380649e-23 * temperature

        def spread(bandwidth: float, scale: float) -> tuple[FloatArray, FloatArray]:
            doc = network_document()
            for layer in doc["layers"].values():
                layer["leak"] = 20e-6 * scale
            doc["conductance"] = {"min": 1e-6 * scale, "max": 100e-6 * scale}
            die = Reading(
                card(crossbar={"read_noise": [{"kind": "thermal", "bandwidth": bandwidth}]}),
                document=doc,
                batch=4000,
                same=True,
            )
            phases = die.measured("k", difference="digital")
            free = phases.free(die.inputs)
            exact = die.phases.nudged(die.inputs, die.targets, 0.1, free)
            change = phases.nudged(die.inputs, die.targets, 0.1, free)
            load = np.asarray(free._layers.weights.load[-1], float)  # type: ignore[union-attr]
            return (change.layers[-1] - exact.layers[-1]).std(axis=0), load

        for scale in (1.0, 1e-3):
            # Two readings, each with noise of its own.
            found, load = spread(1e15, scale)
            np.testing.assert_allclose(found, math.sqrt(2 * kt / c), rtol=0.06)
            narrow = 0.01 * float(load.min()) / (4 * c)
            found, load = spread(narrow, scale)
            np.testing.assert_allclose(found, np.sqrt(2 * 4 * kt * narrow / load), rtol=0.06)

    def test_slow_noise_is_shared_by_the_phases_of_a_step(self) -> None:
        flicker = {"kind": "flicker", "read_time": "1u", "relative": 0.1}
        die = Reading(card(crossbar={"range": ["1u", "100u"], "read_noise": [flicker]}), **TIGHT)
        die.chip = die.chip.aged(1.0)
        phases = die.measured("step", 1)
        one, two = (phases.present(name).crossbars["u-hidden"][0] for name in ("free", "nudged +1"))
        np.testing.assert_array_equal(one, two)
        other = die.measured("step", 2).present("free").crossbars["u-hidden"][0]
        assert 0.05 < np.std(other / one) < 1.0
        # The estimate is the exact gradient of the die as it is during this step.
        exact = die.estimate(Adjoint(), replace(die.phases, values=phases.values))
        assert error(die.estimate(AsymEP(beta=0.01), phases), exact) < 1e-4
        assert error(exact, die.estimate(Adjoint())) > 0.02

    @pytest.mark.parametrize("method", ["layered", "general"])
    def test_fast_noise_differs_between_phases(self, method: str) -> None:
        """So that it costs 1 / beta."""
        noise = {"kind": "gaussian", "relative": 1e-3}
        die = Reading(card(crossbar={"read_noise": [noise]}), method=method, **TIGHT)
        phases = die.measured("step", 1)
        free, plus, minus = (
            phases.present(name).crossbars["u-hidden"][0] for name in ("free", "nudged +1", "nudged -1")
        )
        assert np.all(free != plus)
        assert np.all(plus != minus)
        exact = die.estimate(Adjoint())
        large, small = (
            np.mean([error(die.estimate(AsymEP(beta=b), die.measured("k", k)), exact) for k in range(8)])
            for b in (0.1, 0.01)
        )
        assert small / large == pytest.approx(10, rel=0.3)

    def test_a_copy_has_noise_of_its_own(self) -> None:
        noise = {"kind": "gaussian", "relative": 0.05}
        die = Reading(card(crossbar={"read_noise": [noise]}), **TIGHT)
        assert die.chip.dual is not None
        found = [die.estimate(Dyadic(), die.measured("k", k)) for k in range(3)]
        exact = die.estimate(Adjoint())
        for k, estimate in enumerate(found):
            assert 0.005 < error(estimate, exact) < 0.4
            assert error(estimate, found[k - 1]) > 0.005
        # Even if the first network had none.
        quiet = die.measured("k", 0)
        free = quiet.free(die.inputs)
        quiet._held.update(dict.fromkeys(("free", "dyadic"), die.chip.values))
        d = quiet.dyadic(die.inputs, die.targets, 1.0, free)
        same = die.phases.dyadic(die.inputs, die.targets, 1.0, free)
        assert 1e-3 < error(d.layers[0], same.layers[0]) < 0.2

    def test_a_noisy_anchor_is_the_same_in_both_nudges(self) -> None:
        """Centred it cancels to first order; one-sided it is 1 / beta."""
        die = Reading(card(amplifier={"anchor_noise": "1m"}), **TIGHT)
        exact = die.estimate(Adjoint())
        centred = error(die.estimate(AsymEP(beta=0.1), die.measured("k")), exact)
        one_sided = error(die.estimate(AsymEP(beta=0.1, centred=False), die.measured("k")), exact)
        assert centred < 0.02
        assert one_sided > 5 * centred
        other = die.estimate(AsymEP(beta=0.1, centred=False), die.measured("l"))
        assert error(other, exact) != one_sided


class Recorder:
    """An estimator that keeps what it was given."""

    label = "recorder"

    def __init__(self) -> None:
        self.inputs: list[FloatArray] = []
        self.phases: list[Phases] = []

    def estimate(self, phases: Phases, inputs: FloatArray, targets: FloatArray, **options: Any) -> Gradient:
        self.inputs.append(inputs)
        self.phases.append(phases)
        return Adjoint().estimate(phases, inputs, targets, **options)


class TestTrainers:
    NOISY = card(
        adc={"bits": 6, "range": [-1, 1]}, crossbar={"read_noise": [{"kind": "gaussian", "relative": 0.1}]}
    )

    def test_the_adjoint_reads_nothing(self) -> None:
        first = trainer(Adjoint(), self.NOISY)
        assert not isinstance(first.measured("k"), MeasuredPhases)
        plain = trainer(Adjoint(), card(crossbar={}))
        rows = np.arange(20)
        a, b = first.step(rows), plain.step(rows)
        for name in a.crossbars:
            np.testing.assert_array_equal(a.flat(name), b.flat(name))
        assert isinstance(trainer(AsymEP(), self.NOISY).measured("k"), MeasuredPhases)

    def test_the_dac_quantises_inputs_once(self) -> None:
        dac = {"bits": 4, "range": [-1.5, 1.5]}
        recorder = Recorder()
        found = trainer(recorder, card(dac=dac))
        step = 3 / 15
        plain = trainer(Adjoint(), card())
        for mine, exact in ((found.train, plain.train), (found.test, plain.test)):
            codes = (mine.inputs + 1.5) / step
            np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
            inside = np.abs(exact.inputs) < 1.5
            assert np.abs(mine.inputs - exact.inputs)[inside].max() <= step / 2 * (1 + 1e-9)
        found.step(np.arange(9))
        np.testing.assert_array_equal(recorder.inputs[0], found.train.inputs[:9])

    def test_noise_of_the_dac_is_in_volts(self) -> None:
        doc = network_document(recurrent=True, output="differential_pair")
        doc["inputs"]["u"]["gain"] = 0.25
        recorder = Recorder()
        found = trainer(recorder, card(dac={"bits": 12, "range": [-1, 1], "noise": "10m"}), document=doc)
        for _ in range(40):
            found.step(np.arange(40))
        volts = 0.25 * (np.array(recorder.inputs) - found.train.inputs)
        assert volts.std() == pytest.approx(0.01, rel=4 / math.sqrt(2 * volts.size))
        assert np.all(recorder.inputs[0] != recorder.inputs[1])
        restored = trainer(Recorder(), card(dac={"bits": 12, "range": [-1, 1], "noise": "10m"}), document=doc)
        restored.restore(found.state())
        restored.step(np.arange(40))
        found.step(np.arange(40))
        np.testing.assert_array_equal(restored.estimator.inputs[0], recorder.inputs[-1])  # type: ignore[attr-defined]

    def test_a_coarse_converter_shows_in_the_metrics(self) -> None:
        exact, coarse = (
            trainer(AsymEP(beta=0.1), die).measure()
            for die in (card(), card(adc={"bits": 4, "range": [-1, 1]}))
        )
        assert coarse["cosine/u-hidden"] < exact["cosine/u-hidden"]
        assert coarse["test_cost"] != exact["test_cost"]
        local = trainer(AsymEP(beta=0.1), card(adc={"bits": 4, "range": [-1, 1]}), readout={"rule": "local"})
        found = local.measure()
        assert found["test_cost"] == coarse["test_cost"]
        assert found["relative_error/u-hidden"] == exact["relative_error/u-hidden"]
        # Settling to half a step of 4 bits, and what it takes.
        ratio = math.log(2 * 2**4) / math.log(1e3)
        assert coarse["settling_time"] == pytest.approx(ratio * exact["settling_time"], rel=1e-12)
        for metrics in (exact, coarse):
            assert metrics["inference_energy"] == metrics["power"] * metrics["settling_time"] > 0

    def test_thermal_noise_needs_layers(self) -> None:
        thermal = card(crossbar={"read_noise": [{"kind": "thermal", "bandwidth": "1meg"}]})
        with pytest.raises(DeviceError, match="needs the layered method") as refused:
            trainer(AsymEP(), thermal, method="general")
        assert refused.value.field == "crossbar.read_noise"
        assert trainer(AsymEP(), thermal).step(np.arange(8)).cost > 0

    def test_a_clocked_pipeline_has_no_phases_to_read(self) -> None:
        doc = network_document(output="differential_pair")
        with pytest.raises(DeviceError, match="dyadic_bp has no phases to read"):
            trainer(DyadicBP(), self.NOISY, document=doc)
        with pytest.raises(DeviceError, match="dyadic_bp") as refused:
            trainer(DyadicBP(), card(adc=ADC), document=doc)
        assert refused.value.field == "adc"
        slow = card(
            crossbar={
                "range": ["1u", "100u"],
                "read_noise": [{"kind": "flicker", "read_time": "1u", "relative": 0.05}],
            }
        )
        found = trainer(DyadicBP(), slow, document=doc)
        assert found.chip.copy is not None
        assert found.step(np.arange(8)).cost > 0
