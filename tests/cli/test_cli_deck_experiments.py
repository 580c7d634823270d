"""Experiments on a deck at the command line: results in V where there are no classes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command

from circuitsim.record import read_record
from circuitsim.report.figures import build_figures
from circuitsim.spice.reader import read_deck

TRAINABLE = {"name": "all", "resistors": "R[wv]*", "min": "1u", "max": "100u", "initial": "random"}
XOR: dict[str, Any] = {
    "name": "corners",
    "deck": "mixer.cir",
    "roles": {
        "inputs": {"sources": ["va", "vb"]},
        "outputs": ["out"],
        "trainable": [TRAINABLE],
        "cost": {"kind": "squared_error", "conductance": "1m", "high": "200m", "low": "-200m"},
    },
    "data": {"set": "xor"},
    "estimators": [{"kind": "asymep"}, {"kind": "adjoint"}],
    "training": {"epochs": 2, "batch": 4, "optimiser": {"step": 0.05}},
}
PRODUCT: dict[str, Any] = XOR | {
    "name": "multiplier",
    "data": {"set": "product", "samples": 30, "target_gain": "200m"},
}


@pytest.fixture
def decks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> Path:
    """A working folder with the deck, xor.yaml and product.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(repo_root / "netlists" / "mixer.cir", tmp_path)
    (tmp_path / "xor.yaml").write_text(yaml.safe_dump(XOR))
    (tmp_path / "product.yaml").write_text(yaml.safe_dump(PRODUCT))
    return tmp_path


def test_training_for_wanted_outputs(call: Command, decks: Path) -> None:
    trained = call("train", "product.yaml", "--json")
    document = trained.document
    assert document["test_accuracy"] is None
    metrics = read_record(document["record"]).arms["corrected-centred"].metrics
    assert document["test_rms_error"] == metrics["test_rms_error"][-1] > 0
    assert [item["test_accuracy"] for item in document["estimators"]] == [None, None]
    assert "fit.png" in [Path(path).name for path in document["figures"]]
    assert "24 samples to learn from, 6 held out" in trained.err
    in_mv = f"{1e3 * document['test_rms_error']:.3g}"
    assert re.search(rf"corrected-centred +2 epochs, test RMS {in_mv} mV", trained.err)

    shown = call("show", document["record"], "--no-figures")
    assert shown.code == 0
    assert re.search(rf"corrected-centred +{in_mv} ", shown.out)
    assert "[mV]" in shown.out
    assert "[%]" not in shown.out
    assert call("show", document["record"], "--json").document["test_rms_error"] == document["test_rms_error"]


def test_classes_and_wanted_outputs_side_by_side(call: Command, decks: Path) -> None:
    corners = call("train", "xor.yaml", "--json", "--no-figures")
    assert corners.document["test_rms_error"] is None
    assert 0 <= corners.document["test_accuracy"] <= 1
    assert "4 samples to learn from, the same ones to test on" in corners.err
    only_classes = call("runs", ".").out
    assert "[mV]" not in only_classes
    product = call("train", "product.yaml", "--json", "--no-figures").document
    listed = {item["name"]: item for item in call("runs", ".", "--json").document}
    assert listed["multiplier"]["test_rms_error"] == product["test_rms_error"]
    assert listed["multiplier"]["test_accuracy"] is None
    assert listed["corners"]["test_accuracy"] == corners.document["test_accuracy"]
    assert listed["corners"]["test_rms_error"] is None
    table = call("runs", ".").out
    assert f"{1e3 * product['test_rms_error']:.3g}" in table
    assert "[mV]" in table


def test_figures_of_wanted_outputs(call: Command, decks: Path) -> None:
    record = read_record(call("train", "product.yaml", "--json", "--no-figures").document["record"])
    figures = build_figures(record)
    assert list(figures) == [
        "learning-curves",
        "gradient-alignment",
        "conductances",
        "operating-point",
        "fit",
    ]
    (axes,) = figures["fit"].axes
    points = next(line for line in axes.get_lines() if line.get_label() == "test sample")
    assert list(points.get_xdata()) == pytest.approx(list(1e3 * record.extras["test/target"][:, 0]))
    assert list(points.get_ydata()) == pytest.approx(list(1e3 * record.extras["test/output"][:, 0]))
    left = figures["learning-curves"].axes[0]
    assert left.get_ylabel() == "test RMS error [mV]"
    drawn = {str(line.get_label()): line.get_ydata() for line in left.get_lines()}
    metric = 1e3 * record.arms["adjoint"].metrics["test_rms_error"]
    label = f"adjoint {metric[-1]:.3g} mV"
    assert list(drawn[label]) == pytest.approx(list(metric))
    right = figures["operating-point"].axes[-1]
    assert right.get_xlabel() == "voltage [mV]"
    assert right.patches[0].get_width() == pytest.approx(1e3 * record.extras["test/output"][0, 0])


def test_gradients_of_an_experiment(call: Command, decks: Path) -> None:
    rows = call("gradcheck", "xor.yaml", "--beta", 1e-4, "--devices", 5, "--json").document
    found = {row["estimator"]: row for row in rows}
    assert {row["crossbar"] for row in rows} == {"all"}
    assert found["adjoint"]["relative_error_fd"] < 1e-7
    assert found["corrected-centred"]["relative_error"] < 1e-6
    assert found["nudged-only"]["relative_error"] > 0.3
    same = call("gradcheck", "xor.yaml", "--beta", 1e-4, "--devices", 5, "--seed", 0, "--json").document
    other = call("gradcheck", "xor.yaml", "--beta", 1e-4, "--devices", 5, "--seed", 1, "--json").document
    assert same == rows
    assert other != rows


def test_a_deck_without_roles_has_no_gradient(call: Command, decks: Path) -> None:
    call("gradcheck", "mixer.cir").refuses(
        "mixer.cir: is a deck; gradients need a cost",
        "Give an experiment that names the deck, and the roles of its elements.",
    )
    call("train", "mixer.cir").refuses(
        "mixer.cir: is a SPICE deck, not an experiment. ",
        "Write an experiment that names it, and the roles of its elements.",
    )


def test_the_schema_describes_roles(call: Command) -> None:
    schema = call("schema", "experiment").document
    assert {"deck", "roles", "network"} <= set(schema["properties"])
    roles = schema["$defs"]["RolesSpec"]
    assert set(roles["required"]) == {"inputs", "outputs", "trainable", "cost"}
    assert "input sources" in roles["description"]


def test_what_was_learned_is_a_deck_again(call: Command, decks: Path) -> None:
    record = call("train", "xor.yaml", "--json").document["record"]
    written = call("compile", record, "--format", "spice", "-o", "learned.cir")
    assert re.search(r"die 0, corrected-centred after 2 of 2 epochs", written.err)
    drawn, learned = (read_deck(decks / name).netlist for name in ("mixer.cir", "learned.cir"))
    assert set(drawn.resistor.name) == set(learned.resistor.name)
    row = {name: k for k, name in enumerate(learned.resistor.name)}
    state = read_record(record).arms["corrected-centred"].state
    g = state["conductance/all/g_plus"]
    largest, smallest = 1 / g[g > 0].min(), 1 / g.max()
    found = [1 / learned.resistor.conductance[k] for name, k in row.items() if name != "rload"]
    assert max(found) == pytest.approx(largest, rel=1e-12)
    assert min(found) == pytest.approx(smallest, rel=1e-12)
    # The fixed resistor is as it was drawn.
    assert learned.resistor.conductance[row["rload"]] == pytest.approx(1e-3, rel=1e-12)
    # The deck's own sources hold the inputs that were drawn: a = 1, b = -1.
    outputs = call("solve", record, "--input", "1,-1", "--json").document["outputs"]
    assert call("solve", "learned.cir", "--json").document["nodes"]["out"] == pytest.approx(
        outputs[0], rel=1e-9
    )
