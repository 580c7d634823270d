"""Ways of using a die: transfers, noise-aware and carried learning, fine tuning; cards in experiments."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_study_experiment import NETWORK, Recorder, write

from circuitsim.chip import fabricate
from circuitsim.devices import ideal_card, merged_cards
from circuitsim.errors import DeviceError, SpecError
from circuitsim.learning import Adjoint
from circuitsim.netlist.tables import FloatArray
from circuitsim.record import RunRecord, read_record
from circuitsim.solver import Drive, SolverSettings, solve
from circuitsim.study import Bench, load_experiment, prepare, resume_experiment, run_experiment

FIXED = copy.deepcopy(NETWORK)
FIXED["synapses"][2]["trainable"] = False
"""With devices that are written once and do not learn."""
WRITTEN: dict[str, Any] = {
    "name": "written",
    "source": "test",
    "crossbar": {"range": ["1u", "100u"], "device_to_device": 0.05, "programming": "5u"},
}
BASE: dict[str, Any] = {
    "name": "uses",
    "network": "network.yaml",
    "cards": "card.yaml",
    "data": {"set": "digits", "test_fraction": 0.2},
    "estimators": [{"kind": "adjoint"}],
    "training": {"epochs": 2, "batch": 200, "probe": 8, "optimiser": {"step": 0.05}},
    "seed": 4,
}


def ready(folder: Path, changes: dict[str, Any] | None = None, **files: Any) -> Bench:
    path = write(folder, BASE | (changes or {}), **{"card": WRITTEN, **files})
    return prepare(load_experiment(path), folder=folder, file=path)


def run(folder: Path, changes: dict[str, Any] | None = None, **files: Any) -> RunRecord:
    return run_experiment(write(folder, BASE | (changes or {}), **{"card": WRITTEN, **files}))


def rows(record: RunRecord, arm: str = "adjoint") -> dict[str, FloatArray]:
    return {name: values for name, values in record.arms[arm].metrics.items() if name != "seconds"}


def same(a: RunRecord, b: RunRecord) -> None:
    """Bit for bit, but for the time that training took."""
    assert a.finished
    assert b.finished
    for name, arm in a.arms.items():
        for metric, values in rows(b, name).items():
            np.testing.assert_array_equal(arm.metrics[metric], values, err_msg=metric)
        for key, array in arm.state.items():
            np.testing.assert_array_equal(array, b.arms[name].state[key], err_msg=key)
    for key, array in a.extras.items():
        np.testing.assert_array_equal(array, b.extras[key], err_msg=key)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A transfer, and two epochs of fine tuning."""
    return run(tmp_path_factory.mktemp("transfer"), {"use": {"kind": "transfer", "fine_tune": 2}})


class TestTransfer:
    def test_software_learns_first(self, found: RunRecord, tmp_path: Path) -> None:
        """On an ideal circuit, whatever the card is."""
        plain = run(tmp_path, {"cards": []})
        for name, values in rows(plain).items():
            if name in found.arms["adjoint"].metrics and name != "step_energy":
                np.testing.assert_array_equal(rows(found)[name][:2], values, err_msg=name)

    def test_the_row_of_the_transfer_measures_and_learns_nothing(self, found: RunRecord) -> None:
        metrics = rows(found)
        assert all(len(values) == 5 for values in metrics.values())
        trained = np.array([not name.startswith("train_") for name in metrics])
        table = np.array(list(metrics.values()))
        assert np.isfinite(table[:, [0, 1, 3, 4]]).all()
        np.testing.assert_array_equal(np.isfinite(table[:, 2]), trained)
        # Every device of the die once; fine tuning on an exact card writes none.
        devices = 2 * (64 * 6 + 6 * 10 + 6)
        assert devices < metrics["writes"][2] < devices + 2 * 60
        np.testing.assert_array_equal(metrics["writes"][[0, 1, 3, 4]], 0.0)

    def test_a_transfer_costs_and_fine_tuning_mends(self, found: RunRecord) -> None:
        cost, accuracy = (rows(found)[name] for name in ("test_cost", "test_accuracy"))
        print("cost", cost, "accuracy", accuracy)
        assert cost[2] > cost[1] * 1.05
        assert cost[4] < cost[2]
        assert accuracy[4] > accuracy[2] - 0.02

    def test_targets_are_kept_and_devices_are_off(self, found: RunRecord) -> None:
        state = found.arms["adjoint"].state
        for half in ("g_plus", "g_minus"):
            off = state[f"device/present/pixels-hidden/{half}"] - state[f"conductance/pixels-hidden/{half}"]
            assert 4e-6 < np.std(off) < 8e-6

    def test_an_exact_write_to_an_ideal_die_costs_nothing(self, tmp_path: Path) -> None:
        use = {"kind": "transfer", "fine_tune": 1}
        found = rows(run(tmp_path, {"cards": [], "use": use, "programming": {"method": "exact"}}))
        assert found["test_cost"][2] == found["test_cost"][1]
        assert found["test_accuracy"][2] == found["test_accuracy"][1]

    def test_verified_writes_cost_less(self, found: RunRecord, tmp_path: Path) -> None:
        use = {"kind": "transfer"}
        programming = {"method": "write_verify", "tolerance": 0.01, "budget": 20}
        verified = rows(run(tmp_path, {"use": use, "programming": programming}))
        cost = rows(found)["test_cost"]
        assert cost[1] < verified["test_cost"][2] < cost[1] + 0.7 * (cost[2] - cost[1])
        assert verified["writes"][2] > 2 * rows(found)["writes"][2]


class TestNoiseAware:
    def test_without_noise_it_is_a_transfer(self, tmp_path: Path) -> None:
        card = WRITTEN | {
            "amplifier": {"gain": 0.1, "offset": "2m", "saturation": 0.1},
            "passive": {"resistor": 0.2, "capacitor": 0.2},
            "supply": {"voltage": 0.05},
        }
        aware = run(tmp_path / "a", {"use": {"kind": "noise_aware", "noise": 0}}, card=card)
        plain = run(tmp_path / "b", {"use": {"kind": "transfer"}}, card=card)
        for name, values in rows(plain).items():
            np.testing.assert_array_equal(rows(aware)[name], values, err_msg=name)

    def test_every_step_meets_a_die_of_its_own(self, tmp_path: Path) -> None:
        bench = ready(tmp_path, {"use": {"kind": "noise_aware", "noise": 2.0}})
        trainer = bench.trainer(Adjoint()).first  # type: ignore[union-attr]
        plain = bench.trainer(Adjoint()).die  # type: ignore[union-attr]
        rng = np.arange(100)
        one, two = trainer.step(rng), trainer.step(rng)
        assert one.cost != two.cost
        assert plain.step(rng).cost != one.cost
        # The die that it learns for stays out of it.
        assert trainer.chip.exact
        np.testing.assert_array_equal(
            trainer.chip.values.crossbars["pixels-hidden"][0], trainer.chip.target["pixels-hidden"][0]
        )

    def test_it_loses_less_when_it_is_written(self, tmp_path: Path) -> None:
        card = WRITTEN | {"crossbar": WRITTEN["crossbar"] | {"device_to_device": 0.3, "programming": "6u"}}
        training = BASE["training"] | {"epochs": 5}
        losses = []
        for kind in ("transfer", "noise_aware"):
            cost = rows(run(tmp_path / kind, {"use": {"kind": kind}, "training": training}, card=card))[
                "test_cost"
            ]
            losses.append(cost[5] / cost[4])
        print("cost after the transfer over that before, plain and noise-aware", losses)
        assert losses[1] < 0.9 * losses[0]

    def test_ten_times_the_noise_turns_no_value_around(self, tmp_path: Path) -> None:
        card = WRITTEN | {"amplifier": {"saturation": 0.3}, "passive": {"resistor": 0.5, "capacitor": 0.5}}
        use = {"kind": "noise_aware", "noise": 10}
        network = copy.deepcopy(NETWORK)
        for layer in network["layers"].values():
            layer["leak"] = "200u"
        trainer = ready(tmp_path, {"use": use}, card=card, network=network).trainer(Adjoint())
        for _ in range(3):
            assert trainer.first.step(np.arange(20)).cost > 0  # type: ignore[union-attr]


class TestCarried:
    def test_another_die_learns_first(self, tmp_path: Path) -> None:
        carried = run(tmp_path / "a", {"use": {"kind": "carried", "from_die": 9}})
        there = run(tmp_path / "b", {"die": 9})
        for name, values in rows(there).items():
            np.testing.assert_array_equal(rows(carried)[name][:2], values, err_msg=name)
        here = run(tmp_path / "c", {})
        assert np.all(rows(here)["test_cost"] != rows(there)["test_cost"])
        # Its mismatch was learned around; that of the next die was not.
        assert rows(carried)["test_cost"][2] > rows(carried)["test_cost"][1]

    def test_without_writing_noise_to_the_same_die_nothing_changes(self, tmp_path: Path) -> None:
        card = WRITTEN | {"crossbar": {"device_to_device": 0.1}}
        changes = {"use": {"kind": "carried", "from_die": 4}, "programming": {"method": "exact"}}
        cost = rows(run(tmp_path, changes, card=card))["test_cost"]
        assert cost[2] == cost[1]


PULSED: dict[str, Any] = {
    "name": "pulsed",
    "source": "test",
    "crossbar": {
        "range": ["1u", "100u"],
        "update": {"kind": "soft_bounds", "step": 0.02, "step_spread": 0.3, "cycle_to_cycle": 0.3},
        "read_noise": [{"kind": "gaussian", "relative": 0.01}],
        "stuck": {"off": 0.05},
    },
    "amplifier": {"offset": "1m"},
}
STAGES: dict[str, dict[str, Any]] = {
    "transfer": {"use": {"kind": "transfer", "fine_tune": 1}},
    "exact transfer": {"use": {"kind": "transfer", "fine_tune": 2}, "programming": {"method": "exact"}},
    "noise aware": {"use": {"kind": "noise_aware", "fine_tune": 1}, "solver": {"precision": "float32"}},
    "carried": {"use": {"kind": "carried", "from_die": 2, "fine_tune": 1}, "cards": "pulsed.yaml"},
    "dyadic": {
        "use": {"kind": "transfer", "fine_tune": 1},
        "cards": ["card.yaml", {"crossbar": {"read_noise": [{"kind": "gaussian", "relative": 0.01}]}}],
        "estimators": [{"kind": "dyadic"}],
    },
    "in situ": {"cards": "pulsed.yaml", "estimators": [{"kind": "asymep", "beta": 0.1}]},
}


@pytest.mark.parametrize("case", STAGES)
def test_a_run_stopped_at_any_stage_goes_on_to_the_same_numbers(case: str, tmp_path: Path) -> None:
    changes = STAGES[case] | {"training": BASE["training"] | {"batch": 700}}
    files = {"network": FIXED, "pulsed": PULSED}
    whole = run(tmp_path / "whole", changes, **files)
    ((arm, found),) = whole.arms.items()
    assert found.epochs_done == found.epochs
    stops: list[dict[str, Any]] = [{"epoch": epoch} for epoch in range(found.epochs - 1)]
    stops.append({"epoch": found.epochs - 1, "step": 1})
    for number, stop in enumerate(stops):
        folder = tmp_path / str(number)
        path = write(folder, BASE | changes, **{"card": WRITTEN, **files})
        with pytest.raises(KeyboardInterrupt):
            run_experiment(path, watcher=Recorder(arm=arm, **stop))
        (record,) = folder.glob("*.h5")
        assert read_record(record).arms[arm].epochs_done == stop["epoch"] + ("step" not in stop)
        # From the record alone.
        for file in folder.glob("*.yaml"):
            file.unlink()
        same(resume_experiment(record), whole)
        shutil.rmtree(folder)


def test_uses_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    for use, field in (
        ({"kind": "carried"}, "use.from_die"),
        ({"kind": "transfer", "from_die": 3}, "use.from_die"),
        ({"fine_tune": 3}, "use.fine_tune"),
        ({"kind": "transfer", "noise": 2}, "use.noise"),
    ):
        with pytest.raises(SpecError) as error:
            run(tmp_path, {"use": use})
        assert error.value.field == field
    with pytest.raises(SpecError, match="is for learning in situ") as error:
        run(
            tmp_path,
            {"use": {"kind": "transfer"}, "update": {"zero_shift": True}, "cards": "pulsed.yaml"},
            pulsed=PULSED,
        )
    assert error.value.field == "update.zero_shift"
    assert not list(tmp_path.glob("*.h5"))


# Windows -----------------------------------------------------------------------------------------


class TestWindow:
    def test_of_the_card_scales_the_impedance_alone(self, tmp_path: Path) -> None:
        """With no lower end all conductances scale alike: the voltages stay."""
        network = copy.deepcopy(NETWORK) | {"conductance": {"min": 0, "max": "100u"}}
        for name, neuron in (("hidden", None), ("output", {"kind": "diode", "saturation_current": "1u"})):
            network["layers"][name]["leak"] = "30u"
            if neuron is not None:
                network["layers"][name]["neuron"] = neuron
        card = WRITTEN | {"crossbar": {"range": [0, "8u"]}}
        small = ready(tmp_path / "a", {"window": "card"}, network=network, card=card)
        large = ready(tmp_path / "b", {"cards": []}, network=network)
        for crossbar in small.plan.netlist.crossbars:
            assert (crossbar.g_min, crossbar.g_max) == (0.0, pytest.approx(8e-6))
        inputs = large.data.test_inputs[:20]
        v, w = (
            solve(bench.plan, bench.chip.values, Drive(inputs=inputs), SolverSettings()).node_voltage
            for bench in (small, large)
        )
        assert np.abs(w).max() > 0.05
        np.testing.assert_allclose(v, w, rtol=1e-7, atol=1e-11)
        # And so does every gradient's direction, its cost in proportion.
        one, two = (
            Adjoint().estimate(
                bench.trainer(Adjoint()).phases(),  # type: ignore[union-attr]
                inputs,
                bench.cost.targets(bench.data.test_labels[:20], 10),
            )
            for bench in (small, large)
        )
        assert one.cost == pytest.approx(0.08 * two.cost, rel=1e-7)
        for name in one.crossbars:
            np.testing.assert_allclose(one.flat(name), two.flat(name), rtol=1e-6, atol=1e-15)

    def test_what_is_outside_of_the_card_is_refused(self, tmp_path: Path) -> None:
        card = WRITTEN | {"crossbar": {"range": ["50u", "60u"]}}
        with pytest.raises(DeviceError) as error:
            run(tmp_path, card=card)
        assert error.value.exit_code == 2
        assert error.value.file == str(tmp_path / "experiment.yaml")
        for part in (
            "pixels-hidden",
            "card written holds for 5e-05 S to 6e-05 S",
            "1e-06 S to 0.0001 S",
            "window: card",
        ):
            assert part in str(error.value)
        assert not list(tmp_path.glob("*.h5"))
        inside = ready(tmp_path, {"window": "card"}, card=card)
        g = inside.chip.target["pixels-hidden"][0]
        assert 50e-6 <= g.min() < g.max() <= 60e-6

    def test_needs_a_range_and_a_network(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="has no conductance range") as error:
            run(tmp_path, {"window": "card"}, card=WRITTEN | {"crossbar": {"device_to_device": 0.1}})
        assert error.value.field == "window"


# Cards -------------------------------------------------------------------------------------------


class TestCards:
    def test_names_files_and_mappings_make_one(self, tmp_path: Path) -> None:
        changes = {
            "cards": [
                "pcm-nandakumar-2019",
                "pelgrom-130nm-nfet",
                "extra.yaml",
                {
                    "amplifier": {"input_pair": {"width": "1u", "length": "1u"}},
                    "diode": {"slope_voltage": 0.02},
                },
            ],
            "window": "card",
        }
        extra = {"name": "extra", "source": "here", "diode": {"saturation_current": 0.1}}
        card = ready(tmp_path, changes, extra=extra).card
        assert card.name.startswith("pcm-nandakumar-2019 + ")
        assert card.name.endswith("+ extra")
        assert card.source.endswith("; here")
        assert card.doi is not None
        assert card.crossbar.range == (0.0, pytest.approx(25e-6))
        assert (card.diode.saturation_current, card.diode.slope_voltage) == (0.1, 0.02)
        assert card.offset == pytest.approx(np.sqrt(2) * 3.9e-3, rel=1e-9)

    def test_mappings_change_what_comes_before(self) -> None:
        card = merged_cards(["spread", {"crossbar": {"device_to_device": 0.2}}, {"crossbar": {"levels": 8}}])
        assert card.crossbar.device_to_device == 0.2
        assert card.crossbar.levels == 8
        assert card.amplifier.gain == 0.05
        assert merged_cards([]) == ideal_card()
        alone = merged_cards([{"amplifier": {"gain": 0.1}}])
        assert (alone.name, alone.source) == ("inline", "given in the experiment")

    @pytest.mark.parametrize(
        ("cards", "field", "message"),
        [
            (["spread", "rram-wan-2022"], "cards.crossbar", "is described by two cards, spread and rram"),
            ([{"crossbar": {"levels": 4}}, "spread"], "cards.crossbar", "is given before spread"),
            ("nowhere", "cards", "is neither a file nor the name of a card"),
            ([{"crossbar": {"levels": 1}}], "cards.crossbar.levels", "greater than or equal to 2"),
            ([{"crosbar": {}}], "cards.crosbar", "unknown key"),
        ],
        ids=["two of one kind", "a mapping too early", "unknown", "a wrong value", "a wrong key"],
    )
    def test_that_do_not_fit_are_refused(self, tmp_path: Path, cards: Any, field: str, message: str) -> None:
        with pytest.raises(SpecError, match=message) as error:
            ready(tmp_path, {"cards": cards})
        assert error.value.field == field
        assert error.value.file == str(tmp_path / "experiment.yaml")

    def test_a_record_holds_the_card_as_it_was_merged(self, tmp_path: Path) -> None:
        """The words on and off too, which YAML reads as true and false."""
        path = write(tmp_path, BASE | {"cards": ["card.yaml", "CHANGES"]}, card=WRITTEN)
        path.write_text(path.read_text().replace("- CHANGES", "- {crossbar: {stuck: {on: 0.1, off: 0.05}}}"))
        found = run_experiment(path)
        header = json.loads(json.dumps(found.header))
        assert header["card"]["crossbar"]["stuck"]["on"] == 0.1
        assert header["card"]["crossbar"]["programming"] is not None
        again = write(tmp_path / "again", header["experiment"] | {"network": "network.yaml"}, card=WRITTEN)
        same(run_experiment(again), found)

    def test_wires_of_a_card_are_on_the_die_alone(self, tmp_path: Path) -> None:
        cards = ["card.yaml", "wire-neurosim-2f", {"wire": {"width": "50n", "driver": 100, "sense": 30}}]
        cards += [{"amplifier": {"output_resistance": 200}}]
        bench = ready(tmp_path, {"cards": cards, "use": {"kind": "transfer"}})
        for crossbar in bench.plan.netlist.crossbars:
            if crossbar.name.endswith(".bias"):
                continue
            assert (crossbar.r_wire, crossbar.r_driver, crossbar.r_sense) == (
                pytest.approx(0.67),
                300.0,
                30.0,
            )
        assert not any(crossbar.wired for crossbar in bench.software.netlist.crossbars)
        found = rows(
            run(tmp_path, {"cards": cards, "use": {"kind": "transfer"}, "programming": {"method": "exact"}})
        )
        assert found["test_cost"][2] != found["test_cost"][1]

    def test_no_amplifier_drives_between_the_nodes_of_layers(self, tmp_path: Path) -> None:
        network = copy.deepcopy(NETWORK)
        network["synapses"][1]["kind"] = "resistive"
        cards = [{"wire": {"resistance": 5, "driver": 10}, "amplifier": {"output_resistance": 20}}]
        netlist = ready(tmp_path, {"cards": cards}, network=network).plan.netlist
        assert netlist.crossbar("pixels-hidden").r_driver == 30
        assert netlist.crossbar("hidden-output").r_driver == 10
        assert netlist.crossbar("feedback").r_driver == 30

    def test_an_output_resistance_needs_wires(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="needs word lines that are wires") as error:
            ready(tmp_path, {"cards": [{"amplifier": {"output_resistance": 20}}]})
        assert error.value.field == "cards.amplifier.output_resistance"
        wired = copy.deepcopy(NETWORK)
        for synapse in wired["synapses"]:
            synapse["wires"] = {"resistance": 1, "driver": 7}
        netlist = ready(
            tmp_path, {"cards": [{"amplifier": {"output_resistance": 20}}]}, network=wired
        ).plan.netlist
        assert netlist.crossbar("feedback").r_driver == 27

    def test_an_age_beyond_the_card_is_refused_before_the_run(self, tmp_path: Path) -> None:
        drift = {"kind": "power_law", "start": 20, "mean": 0.05, "std": 0.01, "until": "1e6"}
        card = WRITTEN | {"crossbar": WRITTEN["crossbar"] | {"drift": drift}}
        with pytest.raises(DeviceError, match="holds up to 1e\\+06 s") as error:
            run(tmp_path, {"age": "1e7"}, card=card)
        assert error.value.field == "age"
        assert not list(tmp_path.glob("*.h5"))
        fresh, old = (
            rows(run(tmp_path / age, {"age": age, "use": {"kind": "transfer"}}, card=card))
            for age in ("0", "1e6")
        )
        # Software does not age; what was written to the die has.
        np.testing.assert_array_equal(fresh["test_cost"][:2], old["test_cost"][:2])
        assert fresh["test_cost"][2] != old["test_cost"][2]
        assert old["power"][2] < fresh["power"][2]


def test_a_die_has_a_seed_of_its_own(tmp_path: Path) -> None:
    """Another die, the same start: initial conductances, data and order are the experiment's."""
    one, two = ready(tmp_path / "a"), ready(tmp_path / "b", {"die": 11})
    assert (one.chip.seed, two.chip.seed) == (4, 11)
    for name, (plus, _) in one.chip.target.items():
        np.testing.assert_array_equal(plus, two.chip.target[name][0])
        assert np.all(one.chip.mismatch[name][0] != two.chip.mismatch[name][0])
        twin = fabricate(two.plan.netlist, two.card, seed=11)
        np.testing.assert_array_equal(twin.mismatch[name][0], two.chip.mismatch[name][0])
    np.testing.assert_array_equal(one.data.train_inputs, two.data.train_inputs)
    states = [bench.trainer(Adjoint()).state() for bench in (one, two)]
    name = "device/present/pixels-hidden/g_plus"
    assert np.all(states[0][name] != states[1][name])


@pytest.mark.parametrize(
    ("cards", "field"),
    [
        ({"wire": {"resistance": 1}}, "cards.wire"),
        ({"amplifier": {"output_resistance": 10}}, "cards.amplifier.output_resistance"),
    ],
    ids=["wires", "output resistance"],
)
def test_a_deck_draws_its_own_wires(
    cards: dict[str, Any], field: str, tmp_path: Path, repo_root: Path
) -> None:
    from test_study_deck import XOR

    shutil.copy(repo_root / "netlists" / "mixer.cir", tmp_path)
    path = write(tmp_path, XOR | {"cards": cards})
    with pytest.raises(SpecError, match="is for networks: a deck draws its own") as error:
        prepare(load_experiment(path), folder=tmp_path, file=path)
    assert error.value.field == field


def test_a_deck_learns_by_pulses_and_goes_on(tmp_path: Path, repo_root: Path) -> None:
    from test_study_deck import XOR

    changes = {
        "cards": "pulsed.yaml",
        "estimators": [{"kind": "dyadic"}],
        "training": XOR["training"] | {"epochs": 3},
    }
    card = PULSED | {"passive": {"resistor": 0.02}}
    records = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        path = write(folder, XOR | changes, pulsed=card)
        shutil.copy(repo_root / "netlists" / "mixer.cir", folder)
        if name == "whole":
            records.append(run_experiment(path))
            continue
        with pytest.raises(KeyboardInterrupt):
            run_experiment(path, watcher=Recorder(arm="dyadic", epoch=1))
        (record,) = folder.glob("*.h5")
        records.append(resume_experiment(record))
    same(*records)
    metrics = rows(records[0], "dyadic")
    assert np.all(metrics["writes"] > 0)
    assert np.isnan(metrics["settling_time"]).all()
