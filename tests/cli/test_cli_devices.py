"""`circuitsim devices`: every card listed, every value shown, every figure drawn, mistakes named."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from command_line import Command, Outcome
from pydantic import BaseModel

from circuitsim.devices import DeviceCard, card_names, load_card
from circuitsim.report.device_card import device_card_figure
from circuitsim.report.device_values import MEANINGS, card_values
from circuitsim.report.style import styled

CONVERTERS = """
name: converters
source: a data sheet
amplifier: {input_pair: {width: 2u, length: 1u}}
transistor: {threshold: 3n}
dac: {bits: 6, range: [0, 1], dnl: 0.1}
adc: {bits: 8, range: [-0.5, 0.5], inl: 0.8, noise: 1m}
wire: {width: 30n, table: {20n: 4, 40n: 2}, driver: 50}
crossbar:
  range: [1u, 10u]
  device_to_device: 0.1
  stuck: {on: 0.01, open: 0.02}
  read_noise:
    - {kind: gaussian, relative: 0.01}
    - {kind: telegraph, amplitude: 0.2, fraction: 0.3}
    - {kind: thermal, bandwidth: 1meg}
"""


@pytest.fixture
def mine(folder: Path) -> Path:
    path = folder / "converters.yaml"
    path.write_text(CONVERTERS, encoding="utf-8")
    return path


def documented(call: Command, *command: str) -> set[str]:
    return set(re.findall(r"\w+", call(*command, "--help").out.partition("JSON")[2]))


def test_the_list_has_every_shipped_card(folder: Path, call: Command) -> None:
    listed = call("devices", "--json").document
    assert [item["name"] for item in listed] == sorted(card_names())
    by_name = {item["name"]: item for item in listed}
    pcm = by_name["pcm-nandakumar-2019"]
    assert pcm["range"] == [0.0, 25e-6]
    assert pcm["sections"] == ["programming", "drift", "read_noise"]
    assert pcm["doi"] == "10.1109/ICECS46596.2019.8964852"
    [spread] = pcm["spreads"]
    assert (spread["field"], spread["unit"]) == ("crossbar.programming", "S")
    assert all(item["problem"] is None for item in listed)
    assert {key for item in listed for key in item} <= documented(call, "devices")
    shown = call("devices")
    for name in card_names():
        assert re.search(rf"^{re.escape(name)} ", shown.out, re.MULTILINE)
    assert re.search(
        r"^pcm-nandakumar-2019 +programming, drift, read noise +0 S \.\.\. 25 uS +write 1\.06 uS",
        shown.out,
        re.MULTILINE,
    )
    assert max(map(len, shown.out.splitlines())) <= 120
    assert "circuitsim devices show NAME" in shown.err


def test_a_folder_of_cards_is_listed_with_those_that_cannot_be_read(
    folder: Path, mine: Path, call: Command
) -> None:
    (folder / "cards").mkdir()
    mine.rename(folder / "cards" / "converters.yaml")
    (folder / "cards" / "broken.yaml").write_text("name: broken\n", encoding="utf-8")
    listed = call("devices", "--folder", "cards", "--json").document
    assert [item["name"] for item in listed] == ["broken", "converters"]
    assert listed[0]["problem"] == "is required"
    assert listed[0]["range"] is None
    assert {"transistor", "dac", "adc", "wire", "stuck"} <= set(listed[1]["sections"])
    shown = call("devices", "--folder", "cards")
    assert re.search(r"^broken .*unreadable", shown.out, re.MULTILINE)
    assert "broken.yaml: is required" in shown.err
    call("devices", "--folder", "nowhere").refuses("--folder", "is not a folder", "nowhere")


@pytest.mark.parametrize("name", sorted(card_names()))
def test_show_gives_every_value_of_every_card(name: str, folder: Path, call: Command) -> None:
    document = call("devices", "show", name, "--json").document
    card = load_card(card_names()[name])
    assert document["name"] == name
    assert document["source"] == card.source
    assert document["doi"] == card.doi
    assert document["figure"] is None
    found = {value["field"]: value for value in document["values"]}
    assert set(found) == set(leaves(card))
    for value in found.values():
        assert value["meaning"]
        assert value["shown"]
    assert set(document) | {key for value in found.values() for key in value} <= documented(
        call, "devices", "show"
    )
    shown = call("devices", "show", name)
    assert shown.err == ""
    for value in found.values():
        for part in (value["field"].rpartition(".")[2], value["meaning"], *value["shown"].split("; ")):
            assert part in shown.out, (value, part)
    assert max(map(len, shown.out.splitlines())) <= 120


def test_values_are_shown_in_their_units(mine: Path, call: Command) -> None:
    shown = {
        v["field"]: v["shown"]
        for v in call("devices", "show", "converters.yaml", "--json").document["values"]
    }
    assert shown["crossbar.range"] == "1 uS, 10 uS"
    assert shown["crossbar.device_to_device"] == "10 %"
    assert shown["crossbar.stuck.open"] == "2 %"
    assert shown["crossbar.read_noise[0].relative"] == "1 %"
    assert shown["crossbar.read_noise[2].bandwidth"] == "1 MHz"
    assert shown["amplifier.input_pair.width"] == "2 um"
    assert shown["transistor.threshold"] == "3 mV um"
    assert shown["dac.bits"] == "6 bits"
    assert shown["adc.inl"] == "0.8 LSB"
    assert shown["adc.noise"] == "1 mV"
    assert shown["wire.table"] == "20 nm: 4 ohm; 40 nm: 2 ohm"
    assert shown["wire.driver"] == "50 ohm"
    pcm = {value.field: value.shown for value in card_values(load_card(card_names()["pcm-hermes-2023"]))}
    assert pcm["crossbar.programming"] == "(0.1578 + 2.324 x - 2.163 x^2 + 0.6884 x^3) uS"
    assert pcm["crossbar.drift.start"] == "200 s"
    assert pcm["crossbar.drift.mean"] == (
        "-0.0182 - 0.0387 ln(x) within 0.072 ... 0.13 for x < 0.0945; else 0.0736 - 0.0126 x - 0.0436 x^2"
    )


def test_every_value_that_a_card_can_give_has_a_unit_and_a_meaning() -> None:
    wanted = set()
    for name, field in DeviceCard.model_fields.items():
        family = "converter" if name in ("dac", "adc") else name
        if models(field.annotation):
            wanted |= {place for model in models(field.annotation) for place in places(model, family)}
    known = {key.partition(" (")[0] for key in MEANINGS}
    assert wanted - known == set()
    assert known - wanted == set()


@pytest.mark.parametrize("name", sorted(set(card_names()) - {"ideal"}))
def test_figures_have_a_panel_for_each_thing_with_units(name: str) -> None:
    card = load_card(card_names()[name])
    with styled():
        figure = device_card_figure(card)
    assert figure is not None
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    crossbar = card.crossbar
    wanted = {
        "Spread of a write": crossbar.programming is not None or crossbar.device_to_device > 0,
        "Drift": crossbar.drift is not None,
        "Read noise": bool(crossbar.read_noise),
        "Update curves": crossbar.update is not None,
        "Mismatch": card.transistor is not None,
        "Resistance": card.wire is not None,
    }
    assert len(titles) == sum(wanted.values())
    for beginning, there in wanted.items():
        assert any(title.startswith(beginning) for title in titles) == there
    for axes in figure.axes:
        assert axes.get_lines()
        for line in axes.get_lines():
            assert np.isfinite(np.asarray(line.get_ydata(), dtype=np.float64)).all()
        for label in (axes.get_xlabel(), axes.get_ylabel()):
            assert "[" in label or "/" in label or label == "pulse"


def test_the_drawn_spread_is_the_card_s() -> None:
    card = load_card(card_names()["pcm-joshi-2020"])
    with styled():
        figure = device_card_figure(card)
    assert figure is not None
    [line] = figure.axes[0].get_lines()
    g, sigma = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert g[[0, -1]] == pytest.approx([0.25, 25.0])
    assert sigma == pytest.approx(0.28638599 + 0.07585724 * g - 0.00178767 * g**2, rel=1e-9)


def test_show_writes_the_same_figure_twice(folder: Path, mine: Path, call: Command) -> None:
    document = call("devices", "show", "converters.yaml", "-o", "one.png", "--json").document
    assert document["figure"] == "one.png"
    shown = call("devices", "show", "converters.yaml", "-o", "two.png")
    assert "figure   two.png" in shown.out
    one, two = (Path(name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert struct.unpack(">I", one[16:20]) == (1600,)
    with styled():
        figure = device_card_figure(load_card(mine))
    assert figure is not None
    titles = " ".join(axes.get_title(loc="left") for axes in figure.axes)
    for part in ("DAC", "ADC", "Mismatch", "Resistance", "Read noise"):
        assert part in titles


def test_mistakes_are_named(folder: Path, call: Command) -> None:
    call("devices", "show", "pcm-hermes").refuses("pcm-hermes-2023", "neither a file nor the name of a card")
    call("devices", "show", "ideal", "-o", "ideal.png").refuses("ideal", "nothing that can be drawn")
    call("devices", "show", "rram-milo-2021", "-o", "no/such/folder.png").refuses("folder.png")
    Path("bad.yaml").write_text("name: bad\nsource: me\ncrossbar: {levels: 1}\n", encoding="utf-8")
    call("devices", "show", "bad.yaml").refuses("bad.yaml", "crossbar.levels", "greater than or equal to 2")
    unknown = call("devices", "nope")
    assert unknown.code == 2
    assert "nope" in unknown.err
    assert not list(folder.glob("*.png"))


def test_help_has_examples_units_and_json_keys(call: Command) -> None:
    for command in (("devices",), ("devices", "show")):
        text = " ".join(call(*command, "--help").out.split())
        assert f"Example: circuitsim {' '.join(command)} " in text
        assert "JSON" in text
        assert "(S)" in text
        assert "--json" in text


def test_listing_does_not_wait_for_matplotlib(folder: Path, installed: Callable[..., Outcome]) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from circuitsim.cli.main import main\n"
        "sys.argv = ['circuitsim', 'devices', 'show', 'pcm-hermes-2023']\n"
        "try:\n    main()\n"
        "finally:\n    print({'matplotlib', 'numba', 'h5py'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


# ---------------------------------------------------------------------------- walking through models


def leaves(model: BaseModel, place: str = "") -> Iterator[str]:
    """Every value that a card gives, but for its head."""
    for name in model.model_fields_set:
        if not place and name in ("name", "source", "doi", "description"):
            continue
        value: Any = getattr(model, name)
        here = f"{place}.{name}".lstrip(".")
        if isinstance(value, BaseModel) and "pieces" not in type(value).model_fields:
            yield from leaves(value, here)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for number, item in enumerate(value):
                yield from leaves(item, f"{here}[{number}]")
        elif value is not None:
            yield here


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation; curves are values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if "pieces" in annotation.model_fields else [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def places(model: type[BaseModel], place: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = models(field.annotation)
        if not inner:
            yield f"{place}.{name}"
        for part in inner:
            yield from places(part, f"{place}.{name}")
