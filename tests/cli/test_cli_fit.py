"""`circuitsim fit`: what it prints, writes and refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, Outcome

from circuitsim.devices import load_card

PNG = b"\x89PNG\r\n"


@pytest.fixture
def example(repo_root: Path) -> Path:
    return repo_root / "devices" / "examples" / "pulses-synthetic.csv"


@pytest.fixture
def lab(folder: Path) -> Path:
    """The working folder, with reads.csv, iv.csv and diodes.csv in it."""
    rng = np.random.default_rng(1)
    lines = ["device,cycle,target [uS],time [s],conductance [uS]"]
    for device in range(8):
        own, nu = 1 + 0.04 * rng.standard_normal(), 0.05 + 0.01 * rng.standard_normal()
        for cycle in range(3):
            for target in (5.0, 10.0, 20.0):
                g = target * own + (0.3 + 0.02 * target) * rng.standard_normal()
                for time in (1.0, 10.0, 100.0, 1000.0):
                    seen = g * time**-nu * (1 + 0.01 * rng.standard_normal())
                    lines.append(f"D{device},{cycle},{target},{time},{seen:.5f}")
    (folder / "reads.csv").write_text("\n".join(lines) + "\n")
    for name, law in (
        ("iv", lambda v: 1e-5 * 0.3 * np.sinh(v / 0.3)),
        ("diodes", lambda v: 1e-9 * np.expm1(v / 0.04)),
    ):
        lines = ["device,voltage,current"]
        for device in range(6):
            factor = 1 + 0.1 * rng.standard_normal()
            for v in np.linspace(-0.2, 0.5, 15):
                i = factor * law(v) * (1 + 0.01 * rng.standard_normal())
                lines.append(f"D{device},{v:.4f},{i:.6e}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_pulses_become_a_card_with_a_figure(example: Path, folder: Path, call: Command) -> None:
    outcome = call("fit", example, "-o", "mine.yaml")
    assert outcome.code == 0, outcome.err
    card = load_card("mine.yaml")
    digest = hashlib.sha256(example.read_bytes()).hexdigest()
    assert card.name == "mine"
    assert card.source == f"fitted to pulses-synthetic.csv, sha256 {digest}"
    assert "8 devices, 2 cycles, 1616 readings" in card.description
    update = card.crossbar.update
    assert update is not None
    # What devices/examples/pulses_synthetic.py made them of.
    assert update.kind == "soft_bounds"
    assert update.step == pytest.approx(0.06, rel=0.2)
    assert update.up_down == pytest.approx(0.1, abs=0.05)
    assert update.cycle_to_cycle == pytest.approx(0.2, rel=0.15)
    assert update.write_noise == pytest.approx(0.1, rel=0.3)
    assert card.crossbar.range == pytest.approx((2e-6, 50e-6), abs=2e-6)
    assert Path("mine.png").read_bytes().startswith(PNG)
    text = Path("mine.yaml").read_text()
    assert "95 % confidence intervals" in text
    assert str(folder) not in text
    assert "soft_bounds" in outcome.out
    assert "card     mine.yaml" in outcome.out
    # The card is one like the shipped ones.
    assert call("devices", "show", "mine.yaml", "--json").document["name"] == "mine"


def test_the_example_is_what_its_script_makes(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = example.with_name("pulses_synthetic.py")
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == example.read_text()
    assert example.read_text().startswith("# Synthetic")


def test_json_holds_every_number_with_its_interval(example: Path, folder: Path, call: Command) -> None:
    run = call("fit", example, "--window", "2u", "50uS", "--json", "-o", "a.yaml", "--no-figure").document
    assert (run["kind"], run["devices"], run["cycles"], run["readings"]) == ("pulses", 8, 2, 1616)
    assert run["figure"] is None
    assert not Path("a.png").exists()
    found = {e["name"]: e for e in run["estimates"]}
    for name, true in (("step", 0.06), ("up_down", 0.1), ("cycle_to_cycle", 0.2), ("write_noise", 0.1)):
        assert found[name]["low"] <= true <= found[name]["high"]
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["step"]["field"] == "crossbar.update.step"
    assert found["window low"]["value"] == 2e-6
    assert found["window low"]["unit"] == "S"
    assert min(run["criterion"], key=run["criterion"].get) == "soft_bounds"
    assert run["card"]["crossbar"]["range"] == ["2u", "50u"]
    assert load_card("a.yaml").crossbar.update.step == run["card"]["crossbar"]["update"]["step"]  # type: ignore[union-attr]


def test_the_seed_moves_intervals_and_nothing_else(example: Path, folder: Path, call: Command) -> None:
    first, again, other = (call("fit", example, "--json", "--seed", seed).document for seed in (1, 1, 2))
    assert first == again
    assert first["card"] == other["card"]
    assert first["estimates"] != other["estimates"]
    assert first["written"] is None
    assert not list(Path().glob("*.png"))


def test_reads_become_a_card(lab: Path, call: Command) -> None:
    outcome = call("fit", "reads.csv", "-o", "cards/r.yaml")
    assert outcome.code == 0, outcome.err
    crossbar = load_card("cards/r.yaml").crossbar
    assert crossbar.range == (5e-6, 20e-6)
    assert crossbar.drift is not None
    assert crossbar.drift.kind == "power_law"
    assert float(crossbar.drift.mean(0.5)) == pytest.approx(0.05, abs=0.012)
    assert crossbar.read_noise[0].relative == pytest.approx(0.01, rel=0.15)  # type: ignore[union-attr]
    assert crossbar.programming is not None
    assert float(crossbar.programming(0.5)) == pytest.approx(0.5e-6, rel=0.3)
    assert crossbar.device_to_device == pytest.approx(0.04, rel=0.8)
    assert Path("cards/r.png").read_bytes().startswith(PNG)


def test_curves_become_cards(lab: Path, call: Command) -> None:
    run = call("fit", "iv.csv", "-o", "iv.yaml", "--name", "my memristor", "--json").document
    card = load_card("iv.yaml")
    assert card.name == "my memristor" == run["card"]["name"]
    assert card.crossbar.nonlinearity == pytest.approx(0.3, rel=0.03)
    run = call("fit", "diodes.csv", "--diode", "-o", "d.yaml", "--json").document
    value = {e["name"]: e["value"] for e in run["estimates"]}
    assert value["N Vt"] == pytest.approx(0.04, rel=0.01)
    assert value["Is"] == pytest.approx(1e-9, rel=0.2)
    assert load_card("d.yaml").diode.saturation_current == pytest.approx(0.1, rel=0.8)


def test_one_device_is_told_plainly(example: Path, folder: Path, call: Command) -> None:
    lines = example.read_text().splitlines()
    Path("one.csv").write_text("\n".join(line for line in lines if line[:2] in ("de", "D1")) + "\n")
    outcome = call("fit", "one.csv", "-o", "one.yaml")
    assert outcome.code == 0, outcome.err
    assert "one device: nothing can be said about the spread from device to device" in outcome.out
    assert "nothing can be said about the spread" in Path("one.yaml").read_text()
    update = load_card("one.yaml").crossbar.update
    assert update is not None
    assert update.step_spread == 0.0


def test_devices_can_be_left_out(example: Path, folder: Path, call: Command) -> None:
    run = call("fit", example, "--without", "D2", "--without", "D7", "--json").document
    assert run["devices"] == 6
    assert "Left out: D2, D7." in run["card"]["description"]
    lines = example.read_text().splitlines()
    Path("six.csv").write_text("\n".join(line for line in lines if line[:3] not in ("D2,", "D7,")) + "\n")
    assert call("fit", "six.csv", "--json").document["estimates"] == run["estimates"]
    call("fit", example, "--without", "D9").refuses("pulses-synthetic.csv", "'D9'", "Devices: D1, D2")


BAD = "device,pulse,direction,conductance\n"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (None, ("bad.csv", "No such file")),
        ("", ("bad.csv", "holds no samples")),
        ("device,height\na,1\n", ("bad.csv", "neither conductances nor", "device, height")),
        ("device,pulse,conductance\na,1,1u\n", ("bad.csv", "direction of pulses", "Add a column direction")),
        (BAD + "a,1,up,lots\n", ("bad.csv", "line 2", "column conductance", "'lots'")),
        (BAD + "a,1,up,1u\na,2,up,-2u\n", ("bad.csv", "line 3", "column conductance", "negative", "'-2u'")),
        (BAD + "a,1,up,1u\na,2,up,2u\n", ("bad.csv", "no pulse down")),
        (BAD + "a,1,up,1u\na,2,up,2u\na,3,down,1u\n", ("bad.csv", "device a", "too few pulses up")),
        (BAD + "a,1,up\n", ("bad.csv", "line 2", "3 cells")),
        ("device,conductance\na,1u\nb,2u\n", ("bad.csv", "holds nothing to fit")),
        ("device,voltage,current\na,1,1u\n", ("bad.csv", "device a", "too few different voltages")),
    ],
)
def test_bad_data_is_one_clear_error(
    text: str | None, fragments: tuple[str, ...], folder: Path, call: Command
) -> None:
    if text is not None:
        Path("bad.csv").write_text(text)
    call("fit", "bad.csv", "-o", "x.yaml").refuses(*fragments)
    assert not Path("x.yaml").exists()
    assert not Path("x.png").exists()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--kind", "waves"), ("--kind", "pulses, reads, curves")),
        (("--kind", "curves"), ("has no column voltage", "I-V curves")),
        (("--update", "cubic"), ("--update", "linear, soft_bounds, exponential")),
        (("--window", "5u", "2u"), ("--window", "rising")),
        (("--window", "low", "2u"), ("--window", "is not a number")),
        (("--diode",), ("--diode", "is for I-V curves")),
        (("-o", "card.png"), ("--output", ".yaml")),
        (("-o", "small.yaml/x.yaml"), ("small.yaml",)),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], fragments: tuple[str, ...], example: Path, folder: Path, call: Command
) -> None:
    call("fit", example, *options).refuses(*fragments)


def test_the_installed_command_says_what_it_takes(installed: Callable[..., Outcome]) -> None:
    outcome = installed("fit", "--help")
    assert outcome.code == 0
    for word in ("--window", "--update", "--diode", "--kind", "--seed", "--json", "pulse", "target"):
        assert word in outcome.out
