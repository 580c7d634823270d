"""Dies: what is drawn, from which stream, with which spread; and what programming a die refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from circuits import network_document

from circuitsim.chip import Chip, fabricate
from circuitsim.compiler import compile_network
from circuitsim.devices import DeviceCard, ideal_card
from circuitsim.errors import DeviceError
from circuitsim.netlist import Netlist, NetlistBuilder
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network


def card(**spreads: dict[str, Any]) -> DeviceCard:
    return DeviceCard.model_validate({"name": "test", "source": "test", **spreads})


SPREAD = card(
    crossbar={"device_to_device": 0.05},
    amplifier={"gain": 0.04, "saturation": 0.02, "offset": "1mV"},
    diode={"saturation_current": 0.1},
)


def netlist(**options: Any) -> Netlist:
    return compile_network(parse_network(network_document(**options)), seed=3)


def drawn(chip: Chip) -> dict[str, FloatArray]:
    """Every value of a die by name."""
    found: dict[str, FloatArray] = {}
    for name, (plus, minus) in chip.values.crossbars.items():
        found[f"{name}.g_plus"] = plus
        if minus is not None:
            found[f"{name}.g_minus"] = minus
    for name, columns in chip.values.banks.items():
        found |= {f"{name}.{column}": values for column, values in columns.items()}
    for kind, columns in chip.values.tables.items():
        found |= {f"{kind}.{column}": np.asarray(values) for column, values in columns.items()}
    return found | {f"{name}.sense": values for name, values in chip.values.senses.items()}


def differ(a: Chip, b: Chip) -> set[str]:
    """Names of values that differ between two dies."""
    x, y = drawn(a), drawn(b)
    assert set(x) == set(y)
    return {name for name in x if not np.array_equal(x[name], y[name])}


def test_the_same_seed_is_the_same_die() -> None:
    circuit = netlist(neuron="diode", recurrent=True, synapse="amplifier")
    assert differ(fabricate(circuit, SPREAD, seed=5), fabricate(circuit, SPREAD, seed=5)) == set()


def test_another_seed_is_another_die_in_every_spread() -> None:
    circuit = netlist(recurrent=True, synapse="amplifier")
    moved = differ(fabricate(circuit, SPREAD, seed=5), fabricate(circuit, SPREAD, seed=6))
    names = {c.name for c in circuit.crossbars}
    assert {name.removesuffix(".g_plus") for name in moved if name.endswith(".g_plus")} == names
    assert {"hidden.buffer.gain", "hidden.buffer.offset", "hidden.buffer.saturation"} <= moved
    assert {"hidden-out.amplifier.gain", "hidden-out.amplifier.back_gain"} <= moved
    assert "resistor.conductance" not in moved


def test_an_ideal_card_changes_nothing() -> None:
    circuit = netlist(neuron="diode", recurrent=True, synapse="amplifier")
    for die in (fabricate(circuit), fabricate(circuit, ideal_card(), seed=9)):
        nominal = Chip(
            netlist=circuit,
            card=ideal_card(),
            seed=0,
            target={},
            written={},
            values=circuit.values(),
            mismatch={},
            arrays={},
        )
        assert differ(die, nominal) == set()
        assert all(np.all(plus == 1) for plus, _ in die.mismatch.values())


@pytest.mark.parametrize(
    ("spreads", "suffixes"),
    [
        ({"crossbar": {"device_to_device": 0.05}}, {"g_plus", "g_minus"}),
        ({"amplifier": {"gain": 0.05}}, {"gain", "back_gain"}),
        ({"amplifier": {"saturation": 0.05}}, {"saturation"}),
        ({"amplifier": {"offset": "1m"}}, {"offset"}),
        ({"diode": {"saturation_current": 0.1}}, {"saturation_current"}),
    ],
)
def test_each_spread_moves_its_own_values_only(spreads: dict[str, Any], suffixes: set[str]) -> None:
    document = network_document(neuron="diode", synapse="amplifier", recurrent=True)
    document["layers"]["hidden"]["neuron"] = {"kind": "tanh"}
    circuit = compile_network(parse_network(document))
    moved = differ(fabricate(circuit, card(**spreads)), fabricate(circuit))
    assert {name.rsplit(".", 1)[1] for name in moved} == suffixes


def test_streams_are_keyed_by_name() -> None:
    """A connection more, or other spreads, leave what the rest of the die drew."""
    document = network_document(neuron="diode")
    small = compile_network(parse_network(document))
    document["synapses"].insert(0, {"from": "hidden", "to": "hidden", "name": "lateral"})
    document["layers"] = {
        "extra": {"size": 3, "neuron": document["layers"]["hidden"]["neuron"], "leak": "20u"},
        **document["layers"],
    }
    document["synapses"].insert(0, {"from": "u", "to": "extra"})
    large = compile_network(parse_network(document))
    a, b = fabricate(small, SPREAD, seed=2), fabricate(large, SPREAD, seed=2)
    for name, (plus, minus) in a.mismatch.items():
        np.testing.assert_array_equal(plus, b.mismatch[name][0])
        if minus is not None:
            np.testing.assert_array_equal(minus, b.mismatch[name][1])  # type: ignore[arg-type]
    for name, columns in a.values.banks.items():
        for column, values in columns.items():
            np.testing.assert_array_equal(values, b.values.banks[name][column])
    current_of: list[dict[str, float]] = []
    for chip in (a, b):
        values = chip.values.tables["diode"]["saturation_current"]
        current_of.append(dict(zip(chip.netlist.diode.name, values.tolist(), strict=True)))
    assert current_of[0].items() <= current_of[1].items()
    only = fabricate(small, card(crossbar={"device_to_device": 0.05}), seed=2)
    np.testing.assert_array_equal(only.mismatch["u-hidden"][0], a.mismatch["u-hidden"][0])


def test_crossbars_with_other_names_draw_differently() -> None:
    die = fabricate(netlist(sizes=(5, 5, 5), recurrent=True), SPREAD)
    draws = [half for pair in die.mismatch.values() for half in pair if half is not None and half.size == 25]
    assert len(draws) == 8
    correlation = np.corrcoef([draw.ravel() for draw in draws])
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.75


def wide(neuron: dict[str, Any], size: int = 3000) -> Netlist:
    """One wide layer, for statistics."""
    document = {
        "name": "wide",
        "inputs": {"u": {"size": 4}},
        "layers": {"a": {"size": size, "neuron": neuron}, "b": {"size": 2, "neuron": {"kind": "linear"}}},
        "synapses": [{"from": "u", "to": "a"}, {"from": "a", "to": "b"}],
        "output": {"layer": "b"},
        "cost": {"kind": "squared_error"},
    }
    return compile_network(parse_network(document))


def test_spreads_have_the_size_the_card_says() -> None:
    circuit = wide({"kind": "tanh", "gain": 8.0, "saturation": 0.5})
    die = fabricate(circuit, SPREAD, seed=1)
    for half in (0, 1):
        factor = die.mismatch["u-a"][half]
        assert factor is not None
        assert np.mean(factor) == pytest.approx(1.0, abs=0.002)
        assert np.std(factor) == pytest.approx(0.05, rel=0.05)
        np.testing.assert_array_equal(die.values.crossbars["u-a"][half], die.target["u-a"][half] * factor)
    bank = die.values.banks["a.buffer"]
    for column, nominal, spread in (
        ("gain", 8.0, 0.04 * 8.0),
        ("saturation", 0.5, 0.02 * 0.5),
        ("offset", 0.0, 1e-3),
    ):
        assert np.mean(bank[column]) == pytest.approx(nominal, abs=0.1 * spread)
        assert np.std(bank[column]) == pytest.approx(spread, rel=0.1)
    assert np.all(bank["back_gain"] == 0)


def test_diode_currents_spread_in_proportion() -> None:
    circuit = wide({"kind": "diode", "saturation_current": "2u"})
    current = fabricate(circuit, SPREAD, seed=1).values.tables["diode"]["saturation_current"]
    assert len(current) == 6000
    ratio = np.log(current / 2e-6)
    assert np.mean(ratio) == pytest.approx(0.0, abs=0.01)
    assert np.std(ratio) == pytest.approx(0.1, rel=0.05)
    # The two diodes of a neuron are two diodes.
    assert abs(np.corrcoef(ratio[:3000], ratio[3000:])[0, 1]) < 0.1


def test_a_large_spread_never_turns_a_value_around() -> None:
    circuit = wide({"kind": "tanh", "saturation": 0.5})
    die = fabricate(circuit, card(crossbar={"device_to_device": 1.0}, amplifier={"saturation": 0.3}), seed=1)
    for pair in die.values.crossbars.values():
        assert all(np.all(g >= 0) for g in pair if g is not None)
    assert np.any(die.values.crossbars["u-a"][0] == 0)
    assert np.all(die.values.banks["a.buffer"]["saturation"] >= 0.05)


class TestProgrammed:
    @pytest.fixture
    def die(self) -> Chip:
        document = network_document(recurrent=True, synapse="amplifier")
        document["synapses"][1]["connectivity"] = {"density": 0.5}
        return fabricate(compile_network(parse_network(document)), SPREAD, seed=4)

    def test_targets_are_clipped_to_the_window(self, die: Chip) -> None:
        shape = die.netlist.crossbar("lateral").shape
        plus = np.full(shape, 1.0)
        minus = np.full(shape, -1.0)
        plus[0, 1] = 3e-5
        found = die.programmed({"lateral": (plus, minus)})
        exists = ~np.eye(5, dtype=bool)
        g_plus, g_minus = found.target["lateral"]
        assert g_minus is not None
        assert g_plus[0, 1] == 3e-5
        plus[0, 1] = 1.0
        rest = exists.copy()
        rest[0, 1] = False
        np.testing.assert_allclose(g_plus[rest], 1e-4, rtol=1e-12)
        np.testing.assert_allclose(g_minus[exists], 1e-6, rtol=1e-12)
        assert np.all(g_plus[~exists] == 0)
        assert np.all(g_minus[~exists] == 0)

    def test_present_is_target_times_the_mismatch_that_fabrication_drew(self, die: Chip) -> None:
        shape = die.netlist.crossbar("hidden-out").shape
        found = die.programmed({"hidden-out": (np.full(shape, 2e-5), None)})
        factor = die.mismatch["hidden-out"][0]
        mask = die.netlist.crossbar("hidden-out").mask
        assert mask is not None
        np.testing.assert_array_equal(
            found.values.crossbars["hidden-out"][0], np.where(mask, 2e-5, 0.0) * factor
        )
        assert np.std(factor) > 0.01
        assert found.mismatch is die.mismatch

    def test_the_rest_of_the_die_and_the_old_die_stay(self, die: Chip) -> None:
        before = drawn(die)
        shape = die.netlist.crossbar("hidden-out").shape
        found = die.programmed({"hidden-out": (np.full(shape, 2e-5), None)})
        assert differ(found, die) == {"hidden-out.g_plus"}
        assert all(np.array_equal(before[name], value) for name, value in drawn(die).items())

    def test_programming_what_is_there_changes_nothing(self, die: Chip) -> None:
        assert differ(die.programmed(die.target), die) == set()

    @pytest.mark.parametrize(
        ("name", "pair", "message"),
        [
            ("nowhere", (np.ones((5, 5)), None), "no such crossbar"),
            ("lateral", (np.full((5, 5), np.nan), np.ones((5, 5))), "must be finite"),
            ("lateral", (np.ones((5, 5)), np.full((5, 5), np.inf)), "must be finite"),
            ("lateral", (np.ones((5, 4)), np.ones((5, 5))), r"must be \(5, 5\)"),
            ("lateral", (np.ones(25), np.ones(25)), r"must be \(5, 5\)"),
            ("lateral", (np.ones((5, 5)), None), "both halves"),
            ("lateral", (None, np.ones((5, 5))), "both halves"),
            ("hidden-out", (np.ones((5, 4)), np.ones((5, 4))), "both halves"),
        ],
    )
    def test_wrong_requests_are_refused_by_name(self, die: Chip, name: str, pair: Any, message: str) -> None:
        before = drawn(die)
        with pytest.raises(DeviceError, match=message) as error:
            die.programmed({name: pair})
        assert error.value.object == name
        assert error.value.exit_code == 2
        assert all(np.array_equal(before[key], value) for key, value in drawn(die).items())

    def test_an_unknown_crossbar_comes_with_the_known_ones(self, die: Chip) -> None:
        with pytest.raises(DeviceError, match="u-hidden, hidden-out, lateral"):
            die.programmed({"nowhere": (np.ones((1, 1)), None)})


def test_a_finite_open_loop_gain_lowers_the_gain_of_every_amplifier() -> None:
    builder = NetlistBuilder("amplifiers")
    builder.add("vsource", "in", "a", "0", voltage=1.0)
    builder.add("buffer", "b", "b", "0", "a", "0", gain=4.0, saturation=np.inf, offset=0.0)
    builder.add("vcvs", "e", "e", "0", "a", "0", gain=-9.0)
    for label in ("b", "e"):
        builder.add("resistor", f"r{label}", label, "0", conductance=1e-3)
    die = fabricate(builder.build(), card(amplifier={"open_loop": 100}))
    assert die.values.tables["buffer"]["gain"] == pytest.approx([4 / 1.05])
    assert die.values.tables["vcvs"]["gain"] == pytest.approx([-9 / 1.1])
    bank = fabricate(netlist(), card(amplifier={"open_loop": 100})).values.banks
    nominal = netlist().values().banks
    for name, columns in bank.items():
        g = nominal[name]["gain"]
        assert columns["gain"] == pytest.approx(g / (1 + (1 + abs(g)) / 100))


def test_a_window_without_width_has_one_level() -> None:
    document = network_document()
    document["conductance"] = {"min": "10u", "max": "10u"}
    circuit = compile_network(parse_network(document), seed=3)
    die = fabricate(circuit, card(crossbar={"levels": 4}))
    written = die.write(die.target)
    for name, (plus, _) in written.values.crossbars.items():
        np.testing.assert_array_equal(plus, die.target[name][0])
