"""Device cards: the shipped ones, and errors that name file, field and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitsim.devices import DeviceCard, ideal_card, load_card
from circuitsim.errors import SpecError


def write(folder: Path, text: str) -> Path:
    path = folder / "card.yaml"
    path.write_text(text, encoding="utf-8")
    return path


HEAD = "name: mine\nsource: measured\n"


def test_shipped_cards_load(repo_root: Path) -> None:
    cards = {path.stem: load_card(path) for path in sorted((repo_root / "devices").glob("*.yaml"))}
    assert {"ideal", "spread"} <= set(cards)
    for stem, card in cards.items():
        assert card.name == stem
        assert card.source
    ideal = cards["ideal"].model_dump(exclude={"description"})
    assert ideal == ideal_card().model_dump(exclude={"description"})
    assert cards["spread"].crossbar.device_to_device == 0.05
    assert cards["spread"].amplifier.offset == pytest.approx(1e-3)


def test_units_are_understood(tmp_path: Path) -> None:
    card = load_card(write(tmp_path, HEAD + "amplifier: {offset: 2mV, gain: 1e-2}\n"))
    assert card.amplifier.offset == pytest.approx(2e-3)
    assert card.amplifier.gain == 0.01
    assert card.crossbar.device_to_device == 0


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (HEAD + "crossbar: {device_to_device: -0.1}\n", "crossbar.device_to_device", "greater than or equal"),
        (HEAD + "crossbar: {device_to_device: 1.5}\n", "crossbar.device_to_device", "less than or equal"),
        (HEAD + "amplifier: {saturation: 0.5}\n", "amplifier.saturation", "less than or equal"),
        (HEAD + "diode: {saturation_current: 3}\n", "diode.saturation_current", "less than or equal"),
        (HEAD + "crossbar: {device_to_device: .nan}\n", "crossbar.device_to_device", ""),
        (HEAD + "crossbar: {device_to_device: lots}\n", "crossbar.device_to_device", ""),
        (HEAD + "crossbar: {device_to_devise: 0.1}\n", "crossbar.device_to_devise", "device_to_device"),
        (HEAD + "memristor: {}\n", "memristor", "Known keys"),
        (HEAD + "transistor: {}\n", "transistor.threshold", "is required"),
        (HEAD + "crossbar: {range: [2u, 1u]}\n", "crossbar", "range must rise"),
        (HEAD + "crossbar: {programming: 1u}\n", "crossbar.programming", "needs a range"),
        (HEAD + "crossbar: {levels: 1}\n", "crossbar.levels", "greater than or equal to 2"),
        (HEAD + "crossbar: {stuck: {on: 0.6, off: 0.6}}\n", "crossbar.stuck", "more than all devices"),
        (HEAD + "crossbar: {read_noise: [{kind: pink}]}\n", "crossbar.read_noise.0", "flicker"),
        (HEAD + "crossbar: {range: [0, 1u], drift: {start: 1}}\n", "crossbar.drift", "needs a `kind`"),
        (
            HEAD + "crossbar: {range: [0, 1u], programming: [{log: 1, below: 0.5}]}\n",
            "crossbar.programming",
            "every piece but the last",
        ),
        (HEAD + "crossbar: {update: {step: 0}}\n", "crossbar.update.step", "greater than 0"),
        (
            HEAD + "crossbar: {update: {step: 0.1, kind: exponential}}\n",
            "crossbar.update",
            "kind exponential",
        ),
        (HEAD + "adc: {bits: 8, range: [1, 0]}\n", "adc", "range must rise"),
        (HEAD + "wire: {table: {40n: 0}}\n", "wire.table.0.1", "greater than 0"),
        (
            HEAD
            + "amplifier: {offset: 1m, input_pair: {width: 1u, length: 1u}}\n"
            + "transistor: {threshold: 3n}\n",
            "amplifier.offset",
            "not both",
        ),
        ("source: x\n", "name", "is required"),
        ("name: x\n", "source", "is required"),
    ],
)
def test_a_wrong_card_is_refused_with_file_and_field(
    tmp_path: Path, text: str, field: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as error:
        load_card(path)
    assert error.value.file == str(path)
    assert error.value.field == field
    assert message in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("read_noise: [{kind: flicker, read_time: 1u}]", "crossbar.read_noise.0", "one of the two"),
        (
            "range: [0, 1u], drift: {kind: relaxation, steps: [{age: 2, sigma: 1n}, {age: 1, sigma: 2n}]}",
            "crossbar.drift",
            "ages must rise",
        ),
    ],
)
def test_laws_that_contradict_themselves_are_refused(
    tmp_path: Path, text: str, field: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as error:
        load_card(write(tmp_path, f"{HEAD}crossbar: {{{text}}}\n"))
    assert str(error.value.field).startswith(field)


def test_the_words_on_and_off_are_keys(tmp_path: Path) -> None:
    """YAML 1.1 takes them for true and false."""
    card = load_card(write(tmp_path, HEAD + "crossbar: {stuck: {on: 0.1, off: 0.2, open: 0.05}}\n"))
    stuck = card.crossbar.stuck
    assert (stuck.on, stuck.off, stuck.anywhere, stuck.open) == (0.1, 0.2, 0.0, 0.05)


def test_several_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ncrossbar: {device_to_device: 2}\namplifier: {gain: -1}\n")
    with pytest.raises(SpecError, match="3 problems") as error:
        load_card(path)
    for field in ("source", "crossbar.device_to_device", "amplifier.gain"):
        assert field in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b"- a\n- b\n", "keys and values"),
        (b"name: [x\n", "is not YAML"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"name: a\nname: b\nsource: x\n", "given twice"),
    ],
)
def test_a_file_that_is_no_card_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "card.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=message) as error:
        load_card(path)
    assert error.value.file == str(path)


def test_cards_cannot_be_changed() -> None:
    card = DeviceCard(name="a", source="b")
    with pytest.raises(ValueError, match="frozen"):
        card.name = "c"  # type: ignore[misc]
