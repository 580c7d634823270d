"""The lab's experiments: files that can be run, and the laws that their figures show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from circuitsim.chip import Chip, Conductances, fabricate
from circuitsim.devices import DeviceCard
from circuitsim.errors import SpecError
from circuitsim.learning.writing import DeviceWriter, UpdateSpec
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_document
from circuitsim.study import Bench, load_experiment, prepare
from circuitsim.study.experiment import ExperimentSpec
from circuitsim.study.limit_cycle import Trajectory, watch_board
from circuitsim.study.sweep_points import read_design
from circuitsim.study.sweep_tasks import run_task, tasks_of

RUNS = Path(__file__).resolve().parents[2] / "runs"
SWEEPS = sorted(path.name for path in RUNS.glob("lab-*.yaml") if "\nexperiment:" in path.read_text())
EXPERIMENTS = sorted({path.name for path in RUNS.glob("lab-*.yaml")} - set(SWEEPS))


class TestFiles:
    def test_all_are_there(self) -> None:
        assert [
            f"lab-{name}.yaml"
            for name in (
                "averaging",
                "beta",
                "bias",
                "bits",
                "carried",
                "drift",
                "programming",
                "stuck",
                "transfer",
            )
        ] == SWEEPS
        bases = {yaml.safe_load((RUNS / name).read_text())["experiment"] for name in SWEEPS}
        assert bases | {"lab-biased.yaml", "lab-instrument.yaml"} == set(EXPERIMENTS)

    @pytest.mark.parametrize("name", SWEEPS)
    def test_a_sweep_can_be_built_at_every_point(self, name: str) -> None:
        design = read_design(RUNS / name)
        assert design.sweep.dies >= 10
        assert design.sweep.description
        # Every point is another experiment.
        assert len({point.digest for point in design.points}) == len(design.points)
        assert all(point.documents.experiment["substrate"] is not None for point in design.points)

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_an_experiment_connects_to_its_die(self, name: str) -> None:
        spec = load_experiment(RUNS / name)
        assert spec.description
        with prepare(spec, folder=RUNS).connected() as bench:
            assert bench.substrate is not None
            [label] = bench.estimators
            trainer = bench.trainer(bench.estimators[label])
            assert np.isfinite(trainer.measure()["test_cost"])


# ------------------------------------------------------------------------------- errors of gradients


def errors(dies: int, **changes: Any) -> FloatArray:
    """Relative error of the gradient before training on each of the first dies of `lab-digits.yaml`."""
    document = yaml.safe_load((RUNS / "lab-digits.yaml").read_text())
    document["network"] = str(RUNS / document["network"])
    adc = document["cards"][0]["adc"]
    adc |= changes.pop("adc", {})
    document["readout"] |= changes.pop("readout", {})
    document["estimators"][0] |= changes.pop("estimator", {})
    assert not changes
    found = []
    for die in range(dies):
        spec = parse_document(ExperimentSpec, document | {"die": die, "training": {"probe": 64}})
        with prepare(spec, folder=RUNS).connected() as bench:
            [estimator] = bench.estimators.values()
            metrics = bench.trainer(estimator).measure()
        found.append(np.mean([value for name, value in metrics.items() if name.startswith("relative_error")]))
    return np.array(found)


class TestGradientErrors:
    def test_averaging_follows_the_root_of_the_readings(self) -> None:
        """Four dies' means spread by 3 %, which is 0.01 of a slope over six octaves."""
        count = np.array([1, 4, 16, 64])
        mean = [errors(4, readout={"averaging": int(n)}).mean() for n in count]
        slope, _ = np.polyfit(np.log(count), np.log(mean), 1)
        assert slope == pytest.approx(-0.5, abs=0.04)

    def test_steps_that_noise_does_not_blur_do_not_average_out(self) -> None:
        """A noise of 0.15 steps: 64 readings are hardly better than 4."""
        few, many = (errors(3, adc={"bits": 8, "noise": 3e-4}, readout={"averaging": n}) for n in (4, 64))
        assert 0.85 < many.mean() / few.mean() < 1.0

    def test_the_floor_at_small_beta_is_the_step_of_the_adc(self) -> None:
        """With noise of half a step, errors are in steps per beta: 16 times at 4 bits less, 10 at a tenth."""

        def floor(bits: int, beta: float) -> float:
            step = 0.5 / (2**bits - 1)
            found = errors(4, adc={"bits": bits, "noise": 0.5 * step}, estimator={"beta": beta})
            return float(found.mean())

        fine = floor(12, 0.01)
        assert floor(8, 0.01) / fine == pytest.approx(4095 / 255, rel=0.15)
        assert floor(12, 0.001) / fine == pytest.approx(10, rel=0.15)

    def test_at_large_beta_the_error_goes_as_its_square(self) -> None:
        exact = {"bits": 24, "noise": 0}
        [one], [two] = (errors(1, adc=exact, estimator={"beta": beta}) for beta in (1.0, 2.0))
        assert two / one == pytest.approx(4, rel=0.1)


# ---------------------------------------------------------------------------------- biased updates

PAIR: dict[str, Any] = {
    "name": "pair",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"x": {"size": 2, "gain": "100mV"}},
    "layers": {
        "hidden": {
            "size": 6,
            "neuron": {"kind": "tanh", "gain": 16, "saturation": "200mV"},
            "bias": {"voltage": "100mV"},
        },
        "out": {"size": 1, "neuron": {"kind": "linear"}, "bias": {"voltage": "100mV"}},
    },
    "synapses": [{"from": "x", "to": "hidden"}, {"from": "hidden", "to": "out"}],
    "output": {"layer": "out"},
    "cost": {"kind": "squared_error", "conductance": "100u", "high": "40mV", "low": "-40mV"},
}
BOARD: dict[str, Any] = {
    "name": "board",
    "network": "pair.yaml",
    "substrate": {"address": "simulated", "updates": "board"},
    "data": {"set": "xor"},
    "estimators": [{"kind": "dyadic"}],
    "training": {"epochs": 2, "batch": 1, "probe": 4, "optimiser": {"kind": "sgd", "step": 30}},
    "seed": 1,
}
Ready = Callable[..., Bench]


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    def make(**changes: Any) -> Bench:
        network = copy.deepcopy(PAIR)
        network["layers"]["hidden"]["size"] = changes.pop("hidden", 6)
        network["synapses"][0]["connectivity"] = {"density": changes.pop("density", 1.0)}
        (tmp_path / "pair.yaml").write_text(yaml.safe_dump(network))
        return prepare(parse_document(ExperimentSpec, BOARD | changes), folder=tmp_path)

    return make


def halves(conductances: Conductances) -> FloatArray:
    """All devices of all crossbars, in fractions of the window that they share."""
    return (
        np.concatenate([g.ravel() for pair in conductances.values() for g in pair if g is not None]) / 99e-6
    )


def unmoved(chip: Chip) -> Conductances:
    return {crossbar.name: chip.target[crossbar.name] for crossbar in chip.netlist.trainable}


class TestBias:
    def drift(self, bench: Bench, bias: float, die: int = 0, updates: int = 1, **update: Any) -> FloatArray:
        """What devices move by where nothing is to be learned."""
        chip = fabricate(bench.plan.netlist, bench.card, seed=die)
        writer = DeviceWriter(UpdateSpec.model_validate({"bias": bias, **update}), seed=9)
        start = chip = writer.prepare(chip)
        for _ in range(updates):
            chip = writer.apply(chip, unmoved(chip), unmoved(chip))
        return halves(chip.written) - halves(start.written)

    def test_each_device_has_its_own_and_it_is_that_of_the_die(self, ready: Ready) -> None:
        bench = ready(hidden=200)
        found = self.drift(bench, 0.01)
        n = len(found)
        # Both halves of (2 + 1 + 1) x 200 + 1 pairs.
        assert n == 2 * 801
        inside = np.abs(found)
        assert found.std() == pytest.approx(0.01, rel=4 / np.sqrt(2 * n))
        assert abs(found.mean()) < 4 * 0.01 / np.sqrt(n)
        assert inside.min() > 0
        np.testing.assert_allclose(self.drift(bench, 0.01, updates=3), 3 * found, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(self.drift(bench, 0.001), 0.1 * found, rtol=1e-9, atol=1e-12)
        other = self.drift(bench, 0.01, die=1)
        assert abs(np.corrcoef(found, other)[0, 1]) < 4 / np.sqrt(n)

    def test_pulses_take_it_too(self, ready: Ready) -> None:
        """On average what it says: each pulse 1 % of half the window, rounded at random."""
        card = DeviceCard.model_validate({"name": "t", "source": "t", "crossbar": {"update": {"step": 0.01}}})
        bench = ready(hidden=200, cards=[card.model_dump(mode="json", by_alias=True)])
        meant = self.drift(ready(hidden=200), 0.005)
        found = self.drift(bench, 0.005, method="pulses", updates=8)
        # 8 roundings to pulses of 0.005, the variance of each at most a quarter of a pulse squared.
        assert (found - 8 * meant).std() < 0.005 * np.sqrt(8 / 4)
        assert (meant @ found) / (8 * meant @ meant) == pytest.approx(1, abs=0.03)

    def test_nothing_else_moves(self, ready: Ready) -> None:
        with ready(update={"bias": 0.01}).connected() as bench, ready().connected() as plain:
            assert bench.substrate is not None
            assert plain.substrate is not None
            # What a host programs is what it gets, bias or not.
            asked = unmoved(bench.chip)
            for substrate in (bench.substrate, plain.substrate):
                substrate.program(asked)
            inputs = bench.data.train_inputs * 0.1
            np.testing.assert_array_equal(
                bench.substrate.relax(inputs, "free"), plain.substrate.relax(inputs, "free")
            )
        chip = bench.chip
        writer = DeviceWriter(UpdateSpec(bias=0.01), seed=9)
        after = writer.apply(writer.prepare(chip), asked, asked)
        assert not writer.state
        for field in fields(chip.values):
            if field.name != "crossbars":
                assert getattr(after.values, field.name) is getattr(chip.values, field.name)
        assert after.mismatch is chip.mismatch

    def test_without_it_all_is_as_before(self, ready: Ready) -> None:
        ways = []
        for update in ({}, {"bias": 0}):
            with ready(update=update).connected() as bench:
                ways.append(watch_board(bench, rounds=2, hold=1))
        np.testing.assert_array_equal(ways[0].conductance, ways[1].conductance)

    def test_windows_and_masks_hold(self, ready: Ready) -> None:
        chip = ready(density=0.5).chip
        masks = [crossbar.mask for crossbar in chip.netlist.trainable if crossbar.mask is not None]
        assert masks
        writer = DeviceWriter(UpdateSpec(bias=0.3), seed=9)
        chip = writer.prepare(chip)
        for _ in range(10):
            chip = writer.apply(chip, unmoved(chip), unmoved(chip))
        for crossbar in chip.netlist.trainable:
            for g in chip.written[crossbar.name]:
                assert g is not None
                there = np.ones(g.shape, bool) if crossbar.mask is None else crossbar.mask
                np.testing.assert_array_equal(g[~there], 0.0)
                assert g[there].min() >= 1e-6 * (1 - 1e-12)
                assert g[there].max() <= 1e-4 * (1 + 1e-12)
        # 3 windows of way: nearly every device is at an end.
        found = halves(chip.written)
        assert found.max() == pytest.approx(100 / 99)
        assert found[found > 0].min() == pytest.approx(1 / 99)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Trajectory]:
    folder = tmp_path_factory.mktemp("cycle")
    (folder / "pair.yaml").write_text(yaml.safe_dump(PAIR))
    found = {}
    # Other seeds' boards too go round, some in two rounds, and devices of little bias may drift for longer.
    for bias in (0.0, 0.01):
        spec = parse_document(ExperimentSpec, BOARD | {"update": {"bias": bias}, "seed": 3})
        with prepare(spec, folder=folder).connected() as bench:
            found[bias] = watch_board(bench, rounds=50, hold=2)
    return found


class TestLimitCycle:
    def test_without_bias_a_board_learns_and_comes_to_rest(self, ways: dict[float, Trajectory]) -> None:
        way = ways[0.0]
        assert way.late_cost < 1e-4 * way.cost[0]
        assert way.travel < 1e-3

    def test_with_bias_it_goes_round(self, ways: dict[float, Trajectory]) -> None:
        """It returns to within a twentieth of its way, and neither rests nor forgets what it learned."""
        way = ways[0.01]
        assert way.travel > 100 * ways[0.0].travel
        assert way.travel > 0.1
        assert way.gap < 0.05 * way.travel
        assert 10 * ways[0.0].late_cost < way.late_cost < 0.3 * way.cost[0]

    def test_hosts_that_program_are_not_watched(self, ready: Ready) -> None:
        with (
            ready(substrate="simulated").connected() as bench,
            pytest.raises(SpecError, match="update itself"),
        ):
            watch_board(bench, rounds=1, hold=1)


def test_a_task_of_a_lab_sweep_runs_to_its_end() -> None:
    """The first point of the shortest one, as a worker runs it."""
    [task, *_] = tasks_of(read_design(RUNS / "lab-beta.yaml"))
    outcome = run_task(task)
    assert not outcome.lost
    assert not outcome.errors
