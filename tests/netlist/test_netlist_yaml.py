"""Netlist files: the same circuit comes back, and a damaged file is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from circuits import ELEMENTS, EVERYTHING, SEEDS, random_netlist, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.errors import NetlistError
from circuitsim.netlist import flatten, netlist_document, parse_netlist, read_netlist, write_netlist


@given(SEEDS, st.sampled_from([ELEMENTS, EVERYTHING]))
@settings(max_examples=25)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, kinds: frozenset[str]) -> None:
    netlist = random_netlist(seed, kinds=kinds)
    path = tmp_path_factory.getbasetemp() / "circuit.yaml"
    write_netlist(netlist, path)
    again = read_netlist(path)
    assert again.digest == netlist.digest
    assert again.structure_digest == netlist.structure_digest
    assert again.title == netlist.title
    flat = flatten(netlist).netlist
    assert parse_netlist(netlist_document(flat)).digest == flat.digest


@pytest.mark.parametrize(
    "options", [{}, {"synapse": "virtual ground"}, {"synapse": "differential amplifier"}]
)
def test_round_trip_of_networks(tmp_path: Path, options: dict[str, Any]) -> None:
    _, netlist = small_network(1, neuron="diode", recurrent=True, **options)
    path = tmp_path / "circuit.yaml"
    write_netlist(netlist, path)
    again = read_netlist(path)
    assert again.digest == netlist.digest
    assert {name: nodes.tolist() for name, nodes in again.groups.items()} == {
        name: nodes.tolist() for name, nodes in netlist.groups.items()
    }
    assert [c.trainable for c in again.crossbars] == [c.trainable for c in netlist.crossbars]
    assert [c.driven for c in again.crossbars] == [c.driven for c in netlist.crossbars]


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "circuit.yaml"
    path.write_text(
        "format: circuitsim-netlist/1\n"
        "elements:\n"
        "  vsource: {name: [in], pos: [a], neg: [0], voltage: [1]}\n"
        "  resistor: {name: [top, bottom], pos: [a, b], neg: [b, gnd], conductance: [1e-3, 2.0e-3]}\n"
    )
    netlist = read_netlist(path)
    assert netlist.node_names == ("0", "a", "b")
    assert netlist.resistor.conductance.tolist() == [1e-3, 2e-3]


def document() -> dict[str, Any]:
    return copy.deepcopy(netlist_document(random_netlist(3, kinds=EVERYTHING)))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("elments",), "elments: unknown key. Known: banks, crossbars"),
        (("elements", "resistors"), "elements.resistors: unknown key. Known: behavioural_current, "),
        (("elements", "resistor", "resistance"), "elements.resistor.resistance: unknown key"),
        (("crossbars", 0, "maks"), "crossbars[0].maks: unknown key"),
        (("banks", 1, "gains"), "banks[1].gains: unknown key"),
        (("senses", 0, "resistance"), "senses[0].resistance: unknown key"),
        (("loads", 0, "scales"), "loads[0].scales: unknown key"),
        (("outputs", "positive"), "outputs.positive: unknown key"),
        (("inputs", "columns"), "inputs.columns: unknown key"),
    ],
)
def test_keys_that_mean_nothing(keys: tuple[Any, ...], text: str) -> None:
    spoilt = document()
    owner: Any = spoilt
    for key in keys[:-1]:
        owner = owner[key]
    owner[keys[-1]] = [1.0]
    with pytest.raises(NetlistError) as caught:
        parse_netlist(spoilt, file=Path("c.yaml"))
    assert text in str(caught.value)
    assert caught.value.file == "c.yaml"


@pytest.mark.parametrize(
    ("keys", "value", "text"),
    [
        (("format",), "circuitsim-netlist/9", "`format: circuitsim-netlist/1` is missing"),
        (("elements",), [1], "elements"),
        (("elements", "resistor"), "abc", "elements"),
        (("elements", "resistor", "conductance"), [1.0], "elements.resistor.conductance: has 1 entries for"),
        (("elements", "resistor", "conductance", 0), "ten", "elements.resistor: is malformed"),
        (("elements", "resistor", "conductance", 0), 10**400, "elements.resistor: is malformed"),
        (("elements", "resistor", "conductance", 0), -1.0, "resistor leak0.conductance: must be positive"),
        (
            ("elements", "cccs", "control", 0),
            "nowhere",
            "elements.cccs: no voltage source of this name has been added (got 'nowhere')",
        ),
        (("elements", "vcvs", "gain", 0), None, "vcvs e0.gain: must be finite"),
        (("crossbars", 0, "g_plus"), [[1.0]], "plain.g_plus: must have the crossbar's shape (2, 3)"),
        (("crossbars", 0, "g_plus"), [[1.0], [1.0, 2.0]], "crossbars[0]: is malformed"),
        (("crossbars", 0, "trainable"), "no", "crossbars[0]: is malformed: trainable must be true or false"),
        (("crossbars", 0, "g_max"), "big", "crossbars[0]: is malformed"),
        (("banks", 0, "gain"), [1.0, 2.0, 3.0], "one-way.gain: must have 2 entries"),
        (("loads", 0, "amplitude"), float("nan"), "load.amplitude[0]: must be finite"),
        (
            ("inputs", "source", 0),
            "nowhere",
            "inputs: no voltage source of this name has been added (got 'nowhere')",
        ),
        (("inputs", "gain"), [1.0, 2.0, 3.0], "inputs"),
        (("outputs", "pos"), 3, "outputs: is malformed"),
    ],
)
def test_values_that_mean_nothing(keys: tuple[Any, ...], value: Any, text: str) -> None:
    spoilt = document()
    owner: Any = spoilt
    for key in keys[:-1]:
        owner = owner[key]
    owner[keys[-1]] = value
    with pytest.raises(NetlistError) as caught:
        parse_netlist(spoilt, file=Path("c.yaml"))
    assert text in str(caught.value)
    assert str(caught.value).startswith("c.yaml: ")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (("format",), "`format"),
        (("elements", "resistor", "conductance"), "elements.resistor: key or name 'conductance' is missing"),
        (("elements", "vsource"), "meter0"),
        (("crossbars", 0, "g_plus"), "g_plus"),
        (("crossbars", 1, "g_minus"), "pairs: word_neg and g_minus: both or neither"),
        (("banks", 0, "name"), "banks[0]: key or name 'name' is missing"),
        (("outputs", "neg"), "outputs: key or name 'neg' is missing"),
    ],
)
def test_what_is_missing(keys: tuple[Any, ...], text: str) -> None:
    spoilt = document()
    owner: Any = spoilt
    for key in keys[:-1]:
        owner = owner[key]
    del owner[keys[-1]]
    with pytest.raises(NetlistError) as caught:
        parse_netlist(spoilt, file=Path("c.yaml"))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "is not a netlist"),
        (b"[1, 2]", "is not a netlist"),
        (b"format: [", "is not YAML"),
        (b"\xff\xfe\x00garbage", "is not a text file"),
        (b"format: circuitsim-netlist/1\nelements: {}\nelements: {}\n", "key 'elements' is given twice"),
        (b"format: circuitsim-netlist/1\ntitle: 2024-13-45\n", "is not YAML"),
    ],
)
def test_files_that_are_no_netlist(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "circuit.yaml"
    path.write_bytes(content)
    with pytest.raises(NetlistError, match=rule) as caught:
        read_netlist(path)
    assert caught.value.file == str(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NetlistError, match="cannot be read: No such file"):
        read_netlist(tmp_path / "none.yaml")
    with pytest.raises(NetlistError, match="cannot be written: No such file"):
        write_netlist(random_netlist(0), tmp_path / "none" / "circuit.yaml")


@given(st.integers(0, 4000), st.integers(0, 2))
@settings(max_examples=25)
def test_truncated_files_are_refused_or_end_at_an_element(
    tmp_path_factory: pytest.TempPathFactory, cut: int, damage: int
) -> None:
    text = yaml.safe_dump(netlist_document(random_netlist(5, kinds=EVERYTHING)), sort_keys=False, width=9999)
    cut = cut * len(text) // 4001
    spoilt = (text[:cut], text[:cut] + "]" + text[cut:], text[:cut] + "\x07" + text[cut + 1 :])[damage]
    path = tmp_path_factory.getbasetemp() / "cut.yaml"
    path.write_text(spoilt)
    try:
        netlist = read_netlist(path)
    except NetlistError:
        return
    # What still reads is a circuit that is sound by itself.
    assert parse_netlist(netlist_document(netlist)).digest == netlist.digest


@given(st.data())
@settings(max_examples=60)
def test_whatever_stands_in_a_netlist_is_read_or_refused(data: st.DataObject) -> None:
    spoilt: Any = document()
    junk = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(-(10**400), 10**400)
    junk |= st.lists(junk, max_size=3) | st.dictionaries(st.text(max_size=3), junk, max_size=2)
    owner, key = spoilt, data.draw(st.sampled_from(sorted(spoilt)))
    for _ in range(data.draw(st.integers(0, 4))):
        inner = owner[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        owner = inner
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    owner[key] = data.draw(junk)
    try:
        netlist = parse_netlist(spoilt)
    except NetlistError:
        return
    assert netlist.n_nodes > 1
