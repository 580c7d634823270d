"""Networks into circuits: what is built, how it is wired, and that the seed alone decides the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from circuits import NEURONS, SYNAPSES, network_document, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.compiler import compile_network
from circuitsim.errors import NetlistError, SpecError
from circuitsim.netlist import GROUND, Netlist
from circuitsim.network import parse_network
from circuitsim.solver import SolverSettings, build_plan, solve


def compiled(document: dict[str, Any], seed: int = 0) -> Netlist:
    return compile_network(parse_network(document), seed=seed)


def counts(netlist: Netlist) -> dict[str, int]:
    return {table.kind: len(table) for table in netlist.tables() if len(table)}


def test_feedforward_network() -> None:
    netlist = compiled(network_document())
    # 3 inputs and one bias, each with an opposite line; leaks and capacitors at 9 neurons.
    assert counts(netlist) == {"vsource": 8, "resistor": 9, "capacitor": 9}
    assert {c.name: c.shape for c in netlist.crossbars} == {
        "u-hidden": (3, 5),
        "hidden-out": (5, 4),
        "hidden.bias": (1, 5),
    }
    assert all(c.differential and c.driven and c.trainable and c.mask is None for c in netlist.crossbars)
    assert sum(c.devices for c in netlist.crossbars) == 2 * (15 + 20 + 5)
    (bank,) = netlist.banks
    assert bank.one_way
    assert bank.gain.tolist() == [2.0] * 5
    assert bank.saturation.tolist() == [0.5] * 5
    index = netlist.node_index
    assert netlist.groups["hidden"].tolist() == [index[f"hidden[{k}]"] for k in range(5)]
    assert netlist.crossbar("hidden-out").word_pos.tolist() == [index[f"hidden[{k}].p"] for k in range(5)]
    assert netlist.crossbar("hidden-out").word_neg.tolist() == [index[f"hidden[{k}].n"] for k in range(5)]
    assert netlist.crossbar("hidden-out").bit.tolist() == netlist.groups["out"].tolist()
    assert netlist.outputs.pos.tolist() == netlist.groups["out"].tolist()
    assert netlist.outputs.neg.tolist() == [GROUND] * 4
    assert netlist.resistor.conductance.tolist() == pytest.approx([2e-5] * 9)
    bias = netlist.vsource.voltage[[netlist.vsource.name.index(f"hidden.bias.{half}") for half in "pn"]]
    assert bias.tolist() == [0.5, -0.5]


def test_inputs_drive_both_lines() -> None:
    document = network_document()
    document["inputs"] = {
        "u": {"size": 2, "gain": 0.5},
        "more": {"size": 2, "encoding": "signed_pair", "gain": "-2"},
        "plain": {"size": 1},
    }
    document["synapses"] += [
        {"from": "more", "to": "out", "kind": "resistive"},
        {"from": "plain", "to": "out", "kind": "resistive"},
    ]
    netlist = compiled(document)
    drive = netlist.source_voltage([[1.0, 2.0, 3.0, 4.0, 5.0]])[0]
    voltage = {name: drive[row] for row, name in enumerate(netlist.vsource.name)}
    for k, expected in enumerate((0.5, 1.0)):
        assert (voltage[f"u[{k}].p"], voltage[f"u[{k}].n"]) == (expected, -expected)
    for k, expected in enumerate((-6.0, -8.0)):
        assert (voltage[f"more[{k}].p"], voltage[f"more[{k}].n"]) == (expected, -expected)
    assert voltage["plain[0].p"] == 5.0
    # No buffered synapse takes the plain input: it has no opposite line.
    assert "plain[0].n" not in voltage
    assert netlist.crossbar("more-out").shape == (4, 4)
    assert not netlist.crossbar("more-out").differential
    assert netlist.crossbar("plain-out").shape == (1, 4)


def test_recurrent_network() -> None:
    document = network_document(recurrent=True)
    netlist = compiled(document)
    lateral, feedback = netlist.crossbar("lateral"), netlist.crossbar("feedback")
    assert lateral.bit.tolist() == netlist.groups["hidden"].tolist()
    assert lateral.mask is not None
    # No neuron feeds itself, unless it is asked for.
    np.testing.assert_array_equal(lateral.mask, ~np.eye(5, dtype=bool))
    assert np.all(np.diag(lateral.g_plus) == 0)
    assert np.all(np.diag(lateral.g_minus) == 0)
    assert lateral.devices == 2 * 20
    assert feedback.bit.tolist() == netlist.groups["hidden"].tolist()
    assert len(netlist.banks) == 2
    document["synapses"][2]["connectivity"] = {"self_connections": True}
    assert compiled(document).crossbar("lateral").mask is None


def test_a_resistive_hopfield_network_has_one_device_per_pair() -> None:
    document = network_document(synapse="resistive", neuron="diode")
    document["synapses"].append({"from": "hidden", "to": "hidden", "kind": "resistive", "name": "lateral"})
    netlist = compiled(document)
    lateral = netlist.crossbar("lateral")
    assert lateral.mask is not None
    np.testing.assert_array_equal(lateral.mask, np.triu(np.ones((5, 5), dtype=bool), k=1))
    assert lateral.word_pos.tolist() == lateral.bit.tolist()
    assert not netlist.banks
    assert not lateral.driven
    assert netlist.crossbar("u-hidden").shape == (6, 5)


def test_bidirectional_amplifier() -> None:
    for synapse, differential in (("amplifier", False), ("differential amplifier", True)):
        netlist = compiled(network_document(synapse=synapse, neuron="linear"))
        bank = next(b for b in netlist.banks if b.name == "hidden-out.amplifier")
        assert bank.gain.tolist() == [1.4] * 5
        assert bank.back_gain.tolist() == [0.6] * 5
        assert np.isinf(bank.saturation).all()
        assert (bank.out_neg is not None) is differential
        assert bank.control.tolist() == netlist.groups["hidden"].tolist()
        crossbar = netlist.crossbar("hidden-out")
        assert crossbar.word_pos.tolist() == bank.out_pos.tolist()
        assert crossbar.differential is differential
        assert not crossbar.driven


def test_virtual_ground() -> None:
    netlist = compiled(network_document(synapse="virtual ground"))
    assert {sense.name for sense in netlist.senses} == {"u-hidden.sense", "hidden-out.sense"}
    sense = next(s for s in netlist.senses if s.name == "hidden-out.sense")
    assert sense.output.tolist() == netlist.groups["out"].tolist()
    assert netlist.crossbar("hidden-out").bit.tolist() == sense.bit.tolist()
    assert sense.gain.tolist() == [1.0] * 4


def test_differential_outputs_take_neighbours() -> None:
    netlist = compiled(network_document(output="differential_pair"))
    out = netlist.groups["out"]
    assert netlist.outputs.pos.tolist() == out[0::2].tolist()
    assert netlist.outputs.neg.tolist() == out[1::2].tolist()
    assert netlist.outputs.read(np.arange(netlist.n_nodes, dtype=float)).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("neuron", "diodes", "rails"),
    [
        ({"kind": "diode"}, 18, 0),
        ({"kind": "diode", "offset": 0.2}, 18, 4),
        ({"kind": "relu"}, 9, 0),
        ({"kind": "relu", "clamp": -0.1}, 9, 2),
        ({"kind": "linear"}, 0, 0),
    ],
)
def test_clamps(neuron: dict[str, Any], diodes: int, rails: int) -> None:
    document = network_document()
    for layer in document["layers"].values():
        layer["neuron"] = dict(neuron)
    netlist = compiled(document)
    assert len(netlist.diode) == diodes
    assert len(netlist.vsource) == 8 + rails
    d = netlist.diode
    names = list(netlist.node_names)
    for row, label in enumerate(d.name):
        cell, side = label.rsplit(".", 1)
        anode, cathode = names[d.pos[row]], names[d.neg[row]]
        rail = anode if side == "lower" else cathode
        assert cell == (cathode if side == "lower" else anode)
        assert rail == (f"{cell.split('[')[0]}.rail.{side}" if rails else "0")
    levels = {n: v for n, v in zip(netlist.vsource.name, netlist.vsource.voltage, strict=True) if "rail" in n}
    for name, level in levels.items():
        assert level == (0.2 if "upper" in name else -neuron.get("offset", 0.1))


@pytest.mark.parametrize("clamp", [0.0, 0.3])
@pytest.mark.parametrize("polarity", ["positive", "negative", "alternating"])
def test_ideal_diodes(polarity: str, clamp: float) -> None:
    document = network_document()
    document["layers"]["hidden"]["neuron"] = {"kind": "ideal_relu", "polarity": polarity, "clamp": clamp}
    document["layers"]["out"]["neuron"] = {"kind": "ideal_relu", "polarity": polarity, "conductance": "2k"}
    netlist = compiled(document)
    z, names = netlist.ideal_diode, netlist.node_names
    assert len(z) == 9
    assert z.conductance.tolist() == [1e6] * 5 + [2e3] * 4
    for row, label in enumerate(z.name):
        cell, side = label.rsplit(".", 1)
        layer, number = cell.rstrip("]").split("[")
        above = polarity == "negative" or (polarity == "alternating" and int(number) % 2 == 1)
        rail = "hidden.rail" if clamp and layer == "hidden" else "0"
        assert side == ("upper" if above else "lower")
        ends = (names[z.pos[row]], names[z.neg[row]])
        assert ends == ((cell, rail) if above else (rail, cell))
    rails = {n: v for n, v in zip(netlist.vsource.name, netlist.vsource.voltage, strict=True) if "rail" in n}
    assert rails == ({"hidden.rail": clamp} if clamp else {})


def test_density_and_mask() -> None:
    document = network_document(sizes=(3, 60, 50))
    document["synapses"][1]["connectivity"] = {"density": 0.3}
    mask = compiled(document).crossbar("hidden-out").mask
    assert mask is not None
    assert mask.mean() == pytest.approx(0.3, abs=0.03)
    again = compiled(document).crossbar("hidden-out").mask
    np.testing.assert_array_equal(mask, again)
    assert not np.array_equal(mask, compiled(document, seed=1).crossbar("hidden-out").mask)
    document = network_document()
    wanted = [[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]]
    document["synapses"][1]["connectivity"] = {"mask": wanted}
    crossbar = compiled(document).crossbar("hidden-out")
    np.testing.assert_array_equal(crossbar.mask, np.array(wanted, dtype=bool))
    np.testing.assert_array_equal(crossbar.g_plus == 0, ~np.array(wanted, dtype=bool))


@given(
    st.integers(0, 2**32),
    st.sampled_from(["uniform", "normal"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([("1u", "100u"), (0, 1e-3), ("5u", "5u")]),
)
@settings(max_examples=30)
def test_initial_conductances_stay_inside_the_window(
    seed: int, kind: str, center: float, spread: float, window: tuple[Any, Any]
) -> None:
    document = network_document()
    document["conductance"] = {"min": window[0], "max": window[1]}
    initial = {"kind": kind, "center": center, "spread": spread}
    document["synapses"][1]["initial"] = initial
    document["layers"]["hidden"]["bias"]["initial"] = initial
    spec = parse_network(document)
    netlist = compile_network(spec, seed=seed)
    low, high = spec.conductance.min, spec.conductance.max
    for crossbar in netlist.crossbars:
        assert (crossbar.g_min, crossbar.g_max) == (low, high)
        for g in (crossbar.g_plus, crossbar.g_minus):
            assert g is not None
            assert g.min() >= low
            assert g.max() <= high
    g = netlist.crossbar("hidden-out").g_plus
    if kind == "uniform" and high > low:
        fraction = (g - low) / (high - low)
        assert np.all(np.abs(fraction - center) <= spread + 1e-9)


def test_initial_conductances_are_spread_as_asked() -> None:
    document = network_document(sizes=(3, 60, 50))
    document["conductance"] = {"min": 0, "max": 1}
    document["synapses"][1]["initial"] = {"kind": "normal", "center": 0.5, "spread": 0.1}
    crossbar = compiled(document).crossbar("hidden-out")
    assert crossbar.g_plus.mean() == pytest.approx(0.5, abs=0.01)
    assert crossbar.g_plus.std() == pytest.approx(0.1, abs=0.01)
    assert crossbar.g_minus is not None
    assert abs(np.corrcoef(crossbar.g_plus.ravel(), crossbar.g_minus.ravel())[0, 1]) < 0.1


@given(st.sampled_from(sorted(NEURONS)), st.sampled_from(sorted(SYNAPSES)), st.booleans(), st.integers(0, 99))
@settings(max_examples=20)
def test_the_seed_decides_everything(neuron: str, synapse: str, recurrent: bool, seed: int) -> None:
    options = {"neuron": neuron, "synapse": synapse, "recurrent": recurrent}
    one, same = small_network(seed, **options)[1], small_network(seed, **options)[1]
    other = small_network(seed + 1, **options)[1]
    assert one.digest == same.digest
    assert one.digest != other.digest
    assert one.structure_digest == other.structure_digest


def test_another_synapse_moves_no_draw() -> None:
    before, after = compiled(network_document(), 5), compiled(network_document(recurrent=True), 5)
    for crossbar in before.crossbars:
        np.testing.assert_array_equal(crossbar.g_plus, after.crossbar(crossbar.name).g_plus)
        np.testing.assert_array_equal(crossbar.g_minus, after.crossbar(crossbar.name).g_minus)


def test_two_synapses_between_the_same_layers() -> None:
    document = network_document()
    document["synapses"].append({"from": "hidden", "to": "out"})
    netlist = compiled(document)
    assert [c.name for c in netlist.crossbars] == ["u-hidden", "hidden-out", "hidden-out-2", "hidden.bias"]
    assert len(netlist.banks) == 1
    assert not np.array_equal(netlist.crossbar("hidden-out").g_plus, netlist.crossbar("hidden-out-2").g_plus)


def test_windows_and_trainability_of_one_synapse() -> None:
    document = network_document()
    document["synapses"][1] |= {"conductance": {"min": "2u", "max": "3u"}, "trainable": False}
    document["layers"]["hidden"]["bias"] |= {"trainable": False, "differential": False}
    netlist = compiled(document)
    crossbar = netlist.crossbar("hidden-out")
    assert (crossbar.g_min, crossbar.g_max) == (2e-6, 3e-6)
    assert [c.name for c in netlist.trainable] == ["u-hidden"]
    assert not netlist.crossbar("hidden.bias").differential
    assert "hidden.bias.n" not in netlist.vsource.name


def test_a_neuron_that_nothing_reaches_is_refused() -> None:
    document = network_document()
    document["layers"]["alone"] = {"size": 2, "neuron": {"kind": "tanh"}}
    with pytest.raises(NetlistError, match=r"ground from node alone\[0\], alone\[1\]"):
        compiled(document)


WIRES = {"resistance": 2, "driver": "1k", "sense": 30, "drive_end": "last", "sense_end": "first"}


@pytest.mark.parametrize("synapse", ["buffered", "resistive", "virtual ground", "differential amplifier"])
def test_wires(synapse: str) -> None:
    document = network_document(synapse=synapse)
    plain = compiled(document, 3)
    document["synapses"][1]["wires"] = dict(WIRES)
    netlist = compiled(document, 3)
    crossbar = netlist.crossbar("hidden-out")
    assert (crossbar.r_wire, crossbar.r_driver, crossbar.r_sense) == (2.0, 1000.0, 30.0)
    assert (crossbar.drive_end, crossbar.sense_end) == ("last", "first")
    assert netlist.crossbar("u-hidden").r_wire == 0
    np.testing.assert_array_equal(crossbar.g_plus, plain.crossbar("hidden-out").g_plus)
    assert netlist.node_names == plain.node_names


@pytest.mark.parametrize("synapse", ["buffered", "resistive", "virtual ground", "differential amplifier"])
def test_tiles_are_the_matrix_cut_up(synapse: str) -> None:
    document = network_document(sizes=(3, 7, 5), synapse=synapse)
    document["synapses"][1]["connectivity"] = {"density": 0.8}
    document["synapses"][1]["wires"] = {"resistance": 2}
    whole = compiled(document, 3).crossbar("hidden-out")
    document["synapses"][1]["wires"]["tile"] = [6, 2]
    netlist = compiled(document, 3)
    tiles = [c for c in netlist.crossbars if c.name.startswith("hidden-out")]
    # Six word lines are three differential pairs.
    most = 3 if whole.differential else 6
    assert [c.name for c in tiles] == [
        f"hidden-out.tile[{row},{column}]" for row in range(-(-7 // most)) for column in range(3)
    ]
    assert whole.mask is not None
    total, minus, mask = np.zeros((7, 5)), np.zeros((7, 5)), np.zeros((7, 5), dtype=bool)
    for tile in tiles:
        assert len(tile.lines) <= 6
        assert len(tile.bit) <= 2
        # Nodes are shared: partial sums add up at the bit nodes.
        rows = np.flatnonzero(np.isin(whole.word_pos, tile.word_pos))
        columns = np.flatnonzero(np.isin(whole.bit, tile.bit))
        assert whole.word_pos[rows].tolist() == tile.word_pos.tolist()
        assert whole.bit[columns].tolist() == tile.bit.tolist()
        total[np.ix_(rows, columns)] += tile.g_plus
        if tile.g_minus is not None:
            assert whole.word_neg is not None
            assert tile.word_neg is not None
            assert whole.word_neg[rows].tolist() == tile.word_neg.tolist()
            minus[np.ix_(rows, columns)] += tile.g_minus
        mask[np.ix_(rows, columns)] |= True if tile.mask is None else tile.mask
        assert (tile.r_wire, tile.g_min, tile.g_max) == (2.0, whole.g_min, whole.g_max)
    np.testing.assert_array_equal(total, whole.g_plus)
    np.testing.assert_array_equal(mask, whole.mask)
    if whole.g_minus is not None:
        np.testing.assert_array_equal(minus, whole.g_minus)


def test_a_matrix_that_fits_is_one_array() -> None:
    document = network_document()
    document["synapses"][1]["wires"] = {"resistance": 2, "tile": [10, 4]}
    assert [c.name for c in compiled(document).crossbars] == ["u-hidden", "hidden-out", "hidden.bias"]
    document["synapses"][1]["wires"]["tile"] = [9, 4]
    assert sum(c.name.startswith("hidden-out.tile") for c in compiled(document).crossbars) == 2


def test_partial_sums_of_tiles_are_those_of_ideal_wires_where_wires_are_good() -> None:
    document = network_document(neuron="linear", gain=0.5)
    ideal = compiled(document)
    document["synapses"][1]["wires"] = {"resistance": 1e-2, "tile": [4, 3]}
    tiled = compiled(document)
    inputs = np.random.default_rng(1).uniform(-1, 1, (2, 3))
    a, b = (
        solve(build_plan(n), n.values(), inputs, SolverSettings(method="general")).node_voltage
        for n in (ideal, tiled)
    )
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert np.abs(a - b).max() > 0


@pytest.mark.parametrize(
    ("wires", "message"),
    [
        ({"tile": [4, 4]}, r"synapses.1.wires.resistance: is required"),
        ({"resistance": 0}, r"synapses.1.wires.resistance: must be greater than 0"),
        ({"resistance": 1, "driver": -1}, r"synapses.1.wires.driver: must be greater than or equal to 0"),
        ({"resistance": 1, "drive_end": "left"}, r"synapses.1.wires.drive_end: must be 'first' or 'last'"),
        ({"resistance": 1, "tile": [0, 4]}, r"synapses.1.wires.tile.0: must be greater than or equal to 1"),
        ({"resistance": 1, "tile": [4]}, r"synapses.1.wires.tile.1: is required"),
        (
            {"resistance": 1, "tile": [1, 4]},
            r"synapses.1.wires.tile: is too small \(got \(1, 4\)\). A differential pair has two word lines",
        ),
        ({"resistance": 1, "tiles": [4, 4]}, r"unknown key. Did you mean `tile`"),
    ],
)
def test_wires_that_cannot_be(wires: dict[str, Any], message: str) -> None:
    document = network_document()
    document["synapses"][1]["wires"] = wires
    with pytest.raises(SpecError, match=message):
        parse_network(document)
