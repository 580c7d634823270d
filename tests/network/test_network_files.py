"""Network descriptions: what is read, and how every mistake is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from circuits import NEURONS, SYNAPSES, network_document
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.errors import SpecError
from circuitsim.network import NetworkSpec, load_network, parse_network

Edit = Callable[[dict[str, Any]], Any]


def edited(edit: Edit) -> dict[str, Any]:
    document = copy.deepcopy(network_document())
    edit(document)
    return document


def refusal(document: dict[str, Any]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_network(document, file="net.yaml")
    return caught.value


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_a_file_reads_as_its_mapping_does(tmp_path: Path, neuron: str, synapse: str) -> None:
    document = network_document(neuron=neuron, synapse=synapse, recurrent=True)
    path = tmp_path / "net.yaml"
    path.write_text(yaml.safe_dump(document))
    spec = load_network(path)
    assert spec == parse_network(document)
    assert spec.input_size == 3
    assert spec.output_size == 4
    assert spec.synapse_names() == ["u-hidden", "hidden-out", "lateral", "feedback"]
    assert spec.conductance.max == pytest.approx(1e-4)


def test_what_is_left_out_gets_its_default() -> None:
    spec = parse_network(edited(lambda d: d["layers"]["out"].pop("leak")))
    assert spec.layers["out"].leak == 0.0
    assert spec.layers["out"].capacitance == 1e-12
    assert spec.inputs["u"].gain == 1.0


def test_yaml_reads_1e_minus_3_as_text_and_we_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    text = yaml.safe_dump(edited(lambda d: d["conductance"].update(max="LARGEST")))
    path.write_text(text.replace("LARGEST", "1e-3"))
    assert yaml.safe_load(path.read_text())["conductance"]["max"] == "1e-3"
    assert load_network(path).conductance.max == 1e-3


def test_merge_keys_share_settings(tmp_path: Path) -> None:
    document = network_document()
    cell = document["layers"].pop("hidden") | {"bias": None}
    document["layers"]["out"] |= {"size": 4}
    text = yaml.safe_dump(document).replace(
        "layers:\n", f"layers:\n  hidden: &cell {json.dumps(cell)}\n  more: {{<<: *cell, size: 7}}\n"
    )
    path = tmp_path / "net.yaml"
    path.write_text(text)
    spec = load_network(path)
    assert spec.layers["more"].size == 7
    assert spec.layers["more"].neuron == spec.layers["hidden"].neuron


@pytest.mark.parametrize(
    ("edit", "field", "value", "rule", "remedy"),
    [
        (lambda d: d.update(layrs={}), "layrs", None, "unknown key", "Did you mean `layers`?"),
        (
            lambda d: d["layers"]["hidden"].update(leek=1),
            "layers.hidden.leek",
            None,
            "unknown key",
            "Did you mean `leak`?",
        ),
        (
            lambda d: d["layers"]["hidden"]["neuron"].update(gian=1),
            "layers.hidden.neuron.gian",
            None,
            "unknown key",
            "Did you mean `gain`? Known keys: gain, kind, saturation.",
        ),
        (
            lambda d: d["synapses"][0].update(form="u"),
            "synapses.0.form",
            None,
            "unknown key",
            "Did you mean `from`?",
        ),
        (
            lambda d: d["layers"]["out"].update(neuron={"kind": "tahn"}),
            "layers.out.neuron",
            "tahn",
            "unknown kind; known: 'linear', 'tanh', 'diode', 'relu', 'ideal_relu'",
            None,
        ),
        (
            lambda d: d["layers"]["out"].update(neuron={"gain": 2}),
            "layers.out.neuron",
            {"gain": 2},
            "needs a `kind`",
            None,
        ),
        (
            lambda d: d.update(conductance={"min": "1m", "max": "1u"}),
            "conductance",
            {"min": "1m", "max": "1u"},
            "min must not exceed max: 0.001 S > 1e-06 S",
            None,
        ),
        (
            lambda d: d.update(conductance={"min": -1}),
            "conductance.min",
            -1,
            "must be greater than or equal",
            None,
        ),
        (lambda d: d.update(conductance={"max": 0}), "conductance.max", 0, "must be greater than 0", None),
        (
            lambda d: d.update(conductance={"max": 10**400}),
            "conductance.max",
            10**400,
            "must be finite",
            None,
        ),
        (
            lambda d: d["layers"]["out"].update(leak="2x"),
            "layers.out.leak",
            "2x",
            "has an unknown suffix. Known suffixes: t g meg k m u",
            None,
        ),
        (lambda d: d["layers"]["out"].update(leak=True), "layers.out.leak", True, "must be a number", None),
        (
            lambda d: d["layers"]["out"].update(size=0),
            "layers.out.size",
            0,
            "greater than or equal to 1",
            None,
        ),
        (
            lambda d: d["layers"]["out"].update(size=2.5),
            "layers.out.size",
            2.5,
            "must be a valid integer",
            None,
        ),
        (
            lambda d: d["layers"]["out"].update(size="4"),
            "layers.out.size",
            "4",
            "must be a valid integer",
            None,
        ),
        (lambda d: d["layers"].update(out=None), "layers.out", None, "must be a valid dictionary", None),
        (lambda d: d.update(synapses={"a": 1}), "synapses", {"a": 1}, "must be a valid list", None),
        (lambda d: d.pop("output"), "output", None, "is required", None),
        (lambda d: d.update(name="two words"), "name", "two words", "String should match pattern", None),
        (
            lambda d: d["output"].update(layer="hiden"),
            "output.layer",
            "hiden",
            "is not a layer",
            "Layers: hidden, out.",
        ),
        (
            lambda d: d["synapses"][1].update({"to": "u"}),
            "synapses.1.to",
            "u",
            "is not a layer",
            "Layers: hidden, out.",
        ),
        (
            lambda d: d["synapses"][1].update({"from": "pixels"}),
            "synapses.1.from",
            "pixels",
            "is neither an input nor a layer",
            "Known: u, hidden, out.",
        ),
        (
            lambda d: d["synapses"][1].update(connectivity={"mask": [[1, 0, 1, 1]] * 4}),
            "synapses.1.connectivity.mask",
            (4, 4),
            "must be 5 rows of 4",
            None,
        ),
        (
            lambda d: d["synapses"][1].update(connectivity={"mask": [[1, 0, 1, 1]] * 4 + [[1]]}),
            "synapses.1.connectivity.mask",
            None,
            "must be 5 rows of 4",
            None,
        ),
        (
            lambda d: d["synapses"][1].update(forward_gain=2),
            "synapses.1.forward_gain",
            2.0,
            "is only for a bidirectional_amplifier",
            None,
        ),
        (
            lambda d: d["synapses"][1].update(kind="bidirectional_amplifier", back_gain=1),
            "synapses.1.forward_gain",
            None,
            "is required for a bidirectional_amplifier",
            None,
        ),
        (
            lambda d: d["synapses"][0].update(kind="bidirectional_amplifier", back_gain=1, forward_gain=1),
            "synapses.0.from",
            "u",
            "a bidirectional_amplifier starts at a layer",
            "An input is a source already",
        ),
        (
            lambda d: d["synapses"][1].update(kind="resistive", virtual_ground=True),
            "synapses.1.virtual_ground",
            True,
            "is only for buffered synapses",
            None,
        ),
        (
            lambda d: d["synapses"][1].update(differential=True),
            "synapses.1.differential",
            True,
            "is only for a bidirectional_amplifier",
            None,
        ),
        (
            lambda d: (d["output"].update(encoding="differential_pair"), d["layers"]["out"].update(size=3)),
            "output.layer",
            3,
            "a differential_pair output needs an even number of neurons",
            None,
        ),
        (
            lambda d: d["layers"].update(u=d["layers"]["out"]),
            "layers.u",
            "u",
            "name of an input and of a layer",
            None,
        ),
        (
            lambda d: [s.update(name="w") for s in d["synapses"]],
            "synapses",
            "w",
            "the name of two synapses",
            None,
        ),
    ],
)
def test_one_mistake_is_named(edit: Edit, field: str, value: Any, rule: str, remedy: str | None) -> None:
    error = refusal(edited(edit))
    assert (error.file, error.field) == ("net.yaml", field)
    assert rule in error.rule
    if value is not None:
        assert error.value == value
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77]
        assert f"(got {shown}" in str(error)
    if remedy is not None:
        assert error.remedy is not None
        assert remedy in error.remedy
        assert remedy in str(error)
    assert str(error).startswith(f"net.yaml: {field}: {error.rule}")


def test_nan_is_refused_everywhere() -> None:
    for edit in (
        lambda d: d["conductance"].update(max=float("nan")),
        lambda d: d["layers"]["hidden"]["neuron"].update(gain=float("inf")),
        lambda d: d["synapses"][0].update(initial={"center": float("nan")}),
    ):
        assert "must be finite" in refusal(edited(edit)).rule


def test_every_mistake_is_named_at_once() -> None:
    def spoil(document: dict[str, Any]) -> None:
        document["layers"]["hidden"]["leek"] = 1
        document["conductance"]["min"] = "-3u"
        document["output"] = {}

    error = refusal(edited(spoil))
    for place in ("layers.hidden.leek", "conductance.min", "output.layer: is required"):
        assert f"net.yaml: {place}" in str(error)
    assert "3 problems" in str(error)

    def confuse(document: dict[str, Any]) -> None:
        document["output"]["layer"] = "x"
        document["synapses"][0]["to"] = "y"

    text = str(refusal(edited(confuse)))
    assert "net.yaml: output.layer: is not a layer (got 'x')" in text
    assert "net.yaml: synapses.0.to: is not a layer (got 'y')" in text


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n- 2\n", "must hold keys and values"),
        (b"just text", "must hold keys and values"),
        (b"name: a\nname: b\n", "key 'name' is given twice"),
        (b"layers:\n  a: 1\n  a: 2\n", "key 'a' is given twice"),
        (b"name: [1, 2", "is not YAML"),
        (b"\x00\x01\x02", "is not YAML"),
        (bytes(range(256)), "is not a text file"),
        (b"name: 2024-13-45", "is not YAML"),
        (b"name: " + b"9" * 5000, "is not YAML"),
        (b"[" * 1200, "is not YAML"),
        (b"name: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"{[1]: 2}", "is not YAML"),
    ],
)
def test_files_that_are_no_description(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "net.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=rule) as caught:
        load_network(path)
    assert caught.value.file == str(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.exit_code == 2


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_network(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        load_network(tmp_path)


def test_schema() -> None:
    schema = NetworkSpec.model_json_schema()
    assert set(schema["required"]) == {"name", "inputs", "layers", "synapses", "output", "cost"}
    assert schema["additionalProperties"] is False
    synapse = schema["$defs"]["SynapseSpec"]["properties"]
    assert {"from", "to", "kind"} <= set(synapse)
    neuron = schema["$defs"]["LayerSpec"]["properties"]["neuron"]
    assert set(neuron["discriminator"]["mapping"]) == {"linear", "tanh", "diode", "relu", "ideal_relu"}
    leak = schema["$defs"]["TanhNeuron"]["properties"]["saturation"]
    assert {kind["type"] for kind in leak["anyOf"]} == {"number", "string"}
    json.dumps(schema)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**310)
    | st.floats()
    | st.text(max_size=6)
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["tanh", "buffered", "u", "hidden", "out", "10k", "1e-3", "single"])
)
KEYS = st.sampled_from(["kind", "size", "neuron", "gain", "from", "to", "mask", "leak", "bias", "name", "x"])
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(0, 3), inner, max_size=3),
    max_leaves=8,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a document, as paths of keys."""
    found = [path] if path else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@given(st.data())
def test_whatever_stands_in_a_description_is_read_or_refused(data: st.DataObject) -> None:
    document = network_document(recurrent=True, synapse="amplifier")
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(document)))
        owner: Any = document
        for key in path:
            owner = owner[key]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del owner[last]
        elif action == "add" and isinstance(owner, dict):
            owner[data.draw(KEYS)] = data.draw(NESTED)
        else:
            owner[last] = data.draw(NESTED)
        if not document:
            break
    refused = None
    try:
        spec = parse_network(document, file="fuzz.yaml")
    except SpecError as error:
        refused = str(error)
    if refused is None:
        assert spec.output_size >= 1
    else:
        assert "fuzz.yaml: " in refused


@given(
    st.binary(max_size=60) | st.text(alphabet="ab:-{}[]&*!<>?|'\"%@`#, \n\t01", max_size=60).map(str.encode)
)
def test_whatever_stands_in_a_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError):
        load_network(path)
