"""The shipped cards: complete, cited, true to the published formulas, and refused where they do not hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from published import (
    EXPONENTS,
    FLICKER,
    PROGRAMMING,
    STUCK,
    THRESHOLD,
    UPDATES,
    WAN,
    WIRE_2F,
    WRITE_NOISE,
    cmo_drift,
    wan_spread,
)

from circuitsim.devices import card_names, find_card, load_card, merged_cards
from circuitsim.devices.card import FlickerNoise, LogarithmicDrift, PowerLawDrift, RelaxationDrift
from circuitsim.errors import DeviceError, SpecError

CARDS = sorted(
    {"ideal", "spread", "wire-neurosim-2f", "wire-neurosim-4f"}
    | set(PROGRAMMING)
    | set(UPDATES)
    | set(THRESHOLD)
)
US = 1e-6


def test_these_cards_are_shipped_and_no_others() -> None:
    assert sorted(card_names()) == CARDS


@pytest.mark.parametrize("name", sorted(set(CARDS) - {"ideal", "spread"}))
def test_a_card_says_where_it_comes_from_and_what_it_leaves_out(name: str) -> None:
    path = card_names()[name]
    text = path.read_text(encoding="utf-8")
    card = load_card(path)
    assert card.name == name
    assert card.description
    assert re.search(r"\b(19|20)\d\d\b|arXiv:\d{4}\.\d{5}", card.source)
    assert len(card.source) > 60
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert "Not in the\n# card:" in comment or "Not in the card:" in comment
    assert "Valid " in comment or "take any window" in comment
    if card.doi is not None:
        assert re.fullmatch(r"10\.\d{4,5}/\S+", card.doi)
    # Without a DOI the source names a document that can be found.
    else:
        assert "arXiv:" in card.source or "document" in card.source
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("name", PROGRAMMING)
def test_programming_noise_is_the_published_formula(name: str) -> None:
    formula, levels = PROGRAMMING[name]
    card = load_card(card_names()[name]).crossbar
    assert card.range is not None
    assert card.programming is not None
    assert card.range == pytest.approx((levels[0] * US, levels[-1] * US), rel=1e-12, abs=0)
    g = np.linspace(card.range[0], card.range[1], 1001)
    assert np.allclose(card.programming(card.relative(g)), formula(g / US) * US, rtol=1e-6, atol=0)
    assert (card.programming(card.relative(g)) > 0).all()


@pytest.mark.parametrize("name", EXPONENTS)
def test_drift_exponents_are_the_published_formulas(name: str) -> None:
    start, formula, _ = EXPONENTS[name]
    card = load_card(card_names()[name]).crossbar
    assert isinstance(card.drift, PowerLawDrift)
    assert card.range is not None
    assert card.drift.start == start
    g = np.linspace(*card.range, 2001)
    mean, std = formula(g / US)
    assert np.allclose(card.drift.mean(card.relative(g)), mean, rtol=1e-12)
    assert np.allclose(card.drift.std(card.relative(g)), std, rtol=1e-12)


def test_relaxation_is_as_published() -> None:
    wan = load_card(card_names()["rram-wan-2022"]).crossbar
    assert isinstance(wan.drift, RelaxationDrift)
    g = np.linspace(0, 40e-6, 801)
    assert [step.age for step in wan.drift.steps] == list(WAN)
    assert wan.drift.until == 172800
    for step in wan.drift.steps:
        assert np.allclose(step.sigma(wan.relative(g)), wan_spread(g / US, step.age) * US, rtol=1e-9)
    assert wan.programming is not None
    assert np.array_equal(wan.programming(g / 40e-6), wan.drift.steps[0].sigma(g / 40e-6))
    cmo = load_card(card_names()["reram-cmo-hfox-2024"]).crossbar
    assert isinstance(cmo.drift, LogarithmicDrift)
    for age in (1.0, 1e3, 1e7):
        mean, std = cmo_drift(age)
        assert cmo.drift.mean * np.log(age) == pytest.approx(mean * US, rel=1e-9)
        assert cmo.drift.std[0] + cmo.drift.std[1] * np.log(age) == pytest.approx(std * US, rel=1e-9)


@pytest.mark.parametrize("name", FLICKER)
def test_flicker_noise_is_the_published_formula(name: str) -> None:
    read_time, formula, _ = FLICKER[name]
    card = load_card(card_names()[name]).crossbar
    assert card.range is not None
    [noise] = card.read_noise
    assert isinstance(noise, FlickerNoise)
    assert noise.read_time == read_time
    g = np.linspace(*card.range, 2001)
    x = card.relative(g)
    if noise.relative is not None:
        found = noise.relative(x) * g
    else:
        assert noise.absolute is not None
        found = noise.absolute(x)
    assert np.allclose(found, formula(g / US) * US, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize("name", UPDATES)
def test_mean_steps_are_the_published_formulas(name: str) -> None:
    law = UPDATES[name]
    spec = load_card(card_names()[name]).crossbar.update
    assert spec is not None
    w = np.linspace(-1, 1, 101)
    if spec.exponential is not None:
        e = spec.exponential
        z = e.a * w + e.b
        up, down = 1 - e.amplitude_up * np.exp(e.rate_up * z), 1 - e.amplitude_down * np.exp(-e.rate_down * z)
    elif spec.kind == "soft_bounds":
        up, down = 1 - w, 1 + w
    else:
        up, down = 1 - spec.slope_up * w, 1 + spec.slope_down * w
    assert np.allclose(spec.step * (1 + spec.up_down) * up, law.up(w + law.shift), rtol=1e-6, atol=1e-12)
    assert np.allclose(spec.step * (1 - spec.up_down) * down, law.down(w + law.shift), rtol=1e-6, atol=1e-12)
    assert spec.cycle_to_cycle == law.pulse
    assert spec.multiplicative == (law.noise_unit is None)
    assert (spec.bound_up_spread, spec.bound_down_spread) == pytest.approx(law.bounds, rel=1e-3)
    assert spec.write_noise * spec.step == pytest.approx(WRITE_NOISE.get(name, 0.0), rel=1e-5)


@pytest.mark.parametrize("name", STUCK)
def test_corrupt_devices(name: str) -> None:
    stuck = load_card(card_names()[name]).crossbar.stuck
    assert stuck.anywhere == stuck.total == STUCK[name]


@pytest.mark.parametrize("name", PROGRAMMING)
def test_windows_outside_the_range_are_refused(name: str) -> None:
    card = load_card(card_names()[name])
    assert card.crossbar.range is not None
    low, high = card.crossbar.range
    card.crossbar.check_window(low, high, object="x-hidden", card=name)
    windows = [(low, 1.01 * high)] + ([(0.99 * low, high)] if low else [])
    for window in windows:
        with pytest.raises(DeviceError) as error:
            card.crossbar.check_window(*window, object="x-hidden", card=name)
        for part in ("x-hidden", "conductance", name, f"{high:g} S", "window: card"):
            assert part in str(error.value)


@pytest.mark.parametrize(("name", "factor"), [("wire-neurosim-2f", 1.0), ("wire-neurosim-4f", 2.0)])
def test_wires_are_exact_at_the_table_s_widths_and_refused_outside(name: str, factor: float) -> None:
    def ohm(width: float) -> float:
        card = merged_cards([name, {"wire": {"width": width}}])
        assert card.wire is not None
        return card.wire.per_segment(card=name)

    for width, expected in WIRE_2F.items():
        assert ohm(width * 1e-9) == pytest.approx(factor * expected, rel=1e-12)
    widths = np.geomspace(14e-9, 200e-9, 60)
    ohms = np.array([ohm(float(width)) for width in widths])
    assert (np.diff(ohms) < 0).all()
    # Half way between two widths, in the logarithms.
    assert ohm(np.sqrt(14e-9 * 22e-9)) == pytest.approx(factor * np.sqrt(5.05 * 2.46), rel=1e-9)
    for width in (13.9e-9, 201e-9):
        with pytest.raises(DeviceError, match=r"widths of 1\.4e-08 m to 2e-07 m") as error:
            ohm(width)
        assert "wire.width" in str(error.value)
    bare = load_card(card_names()[name]).wire
    assert bare is not None
    with pytest.raises(DeviceError, match=r"wire\.width with a table"):
        bare.per_segment(card=name)


@pytest.mark.parametrize("name", THRESHOLD)
def test_pelgrom_s_law_and_its_smallest_transistors(name: str) -> None:
    def offset(width: float, length: float) -> float:
        pair = {"width": width, "length": length}
        return merged_cards([name, {"amplifier": {"input_pair": pair}}]).offset

    assert offset(1e-6, 1e-6) == pytest.approx(np.sqrt(2) * THRESHOLD[name] * 1e-3, rel=1e-12)
    assert offset(4e-6, 1e-6) == pytest.approx(offset(1e-6, 1e-6) / 2, rel=1e-12)
    for width, length, field in ((0.1e-6, 1e-6, "width"), (1e-6, 0.1e-6, "length")):
        with pytest.raises(DeviceError, match=rf"input_pair\.{field}"):
            offset(width, length)


def test_cards_of_different_sections_merge_and_the_same_section_is_refused() -> None:
    card = merged_cards(
        ["pcm-hermes-2023", "pelgrom-130nm-nfet", "wire-neurosim-4f", {"wire": {"width": "22n"}}]
    )
    assert card.name == "pcm-hermes-2023 + pelgrom-130nm-nfet + wire-neurosim-4f"
    assert card.wire is not None
    assert card.wire.per_segment() == pytest.approx(4.92)
    for part in ("Le Gallo", "Pelgrom", "NeuroSim"):
        assert part in card.source
    with pytest.raises(SpecError, match="described by two cards, pcm-hermes-2023 and rram-wan-2022"):
        merged_cards(["pcm-hermes-2023", "rram-wan-2022"])


def test_an_unknown_card_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="pcm-hermes-2023") as error:
        find_card("pcm-hermes")
    assert error.value.value == "pcm-hermes"


def test_an_installed_package_finds_its_cards(repo_root: Path, tmp_path: Path) -> None:
    """A wheel holds the folder of cards inside the package: so does this copy."""
    settings = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))
    [(source, target)] = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items()
    shutil.copytree(
        repo_root / "circuitsim", tmp_path / "circuitsim", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(repo_root / source, tmp_path / target)
    code = (
        "import circuitsim\n"
        "from circuitsim.devices import card_names, load_card\n"
        "for name, path in card_names().items():\n"
        "    assert load_card(path).name == name\n"
        "    print(path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    paths = [Path(line) for line in done.stdout.split()]
    assert sorted(path.stem for path in paths) == CARDS
    assert {path.parent for path in paths} == {(tmp_path / target).resolve()}
