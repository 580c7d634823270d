"""The figures show the record's numbers, say their units, and come out the same every time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitsim.errors import RecordError
from circuitsim.record import ArmLayout, ArmRecord, RunRecord, RunWriter, read_record
from circuitsim.report import write_figures
from circuitsim.report.curves import FLOOR
from circuitsim.report.figures import FIGURES, build_figures
from circuitsim.report.style import styled

ARMS = ("nudged-only", "corrected-centred", "adjoint")
CROSSBARS = {"pixels-hidden": (16, 6), "hidden-output": (6, 3)}
EPOCHS = 7
# What a record with classes has figures of.
DRAWN = [stem for stem in FIGURES if stem != "fit"]
# What 1 - cosine is, by arm: misses the gradient, a small error, none.
MISS = {"nudged-only": 1.0, "corrected-centred": 1e-8, "adjoint": 0.0}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A finished run of three arms, as `circuitsim train` writes it; hidden-output has no g_minus."""
    rng = np.random.default_rng(7)
    shapes = {
        f"{name}/{half}": shape
        for name, shape in CROSSBARS.items()
        for half in ("g_plus", "g_minus")[: 1 + (name == "pixels-hidden")]
    }
    metrics = ("train_cost", "test_accuracy", *(f"cosine/{name}" for name in CROSSBARS))
    state = {f"conductance/{key}": (shape, "float64") for key, shape in shapes.items()}
    arms = [ArmLayout(name=name, epochs=EPOCHS, metrics=metrics, state=state) for name in ARMS]
    probability = np.array([0.02, 0.95, 0.03])
    extras = {f"initial/{key}": rng.uniform(2e-5, 8e-5, shape) for key, shape in shapes.items()}
    extras |= {
        "sample/input": rng.uniform(-1, 1, 16),
        "sample/voltage/hidden": rng.normal(0, 0.02, 6),
        "sample/voltage/output": rng.normal(0, 2.0, 3),
        "sample/probability": probability,
        "sample/label": np.array([1]),
    }
    header = {"figures": {"arm": "corrected-centred", "image_shape": [4, 4]}}
    layout = {name: (array.shape, str(array.dtype)) for name, array in extras.items()}
    path = tmp_path_factory.mktemp("record") / "run.h5"
    with RunWriter.create(path, header=header, arms=arms, extras=layout) as writer:
        for name, array in extras.items():
            writer.put(name, array)
        for place, name in enumerate(ARMS):
            for epoch in range(EPOCHS):
                numbers = {
                    "train_cost": 8e-8 / (1 + place) / (1 + epoch),
                    "test_accuracy": 0.80 + 0.08 * place + 0.01 * epoch,
                    "cosine/pixels-hidden": 1 - MISS[name],
                    "cosine/hidden-output": 1 - 0.1 * MISS[name],
                }
                learned = {key: rng.uniform(1e-6, 1e-4, shape) for key, (shape, _) in state.items()}
                writer.write_epoch(name, epoch, numbers, learned)
        writer.finish()
    return read_record(path)


@pytest.fixture(scope="module")
def figures(record: RunRecord) -> dict[str, Figure]:
    return build_figures(record)


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Return the y values of each labelled line."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata())
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def all_text(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def draw(stem: str, record: RunRecord) -> Figure:
    """Build one figure alone."""
    with styled():
        figure = FIGURES[stem](record)
    assert figure is not None
    return figure


def shorten(arm: ArmRecord, epochs: int) -> ArmRecord:
    metrics = {name: values[:epochs] for name, values in arm.metrics.items()}
    return replace(arm, epochs_done=epochs, metrics=metrics, state=arm.state if epochs else {})


def test_all_figures_are_drawn(figures: dict[str, Figure]) -> None:
    assert list(figures) == ["learning-curves", "gradient-alignment", "conductances", "operating-point"]


def test_learning_curves(record: RunRecord, figures: dict[str, Figure]) -> None:
    figure = figures["learning-curves"]
    accuracy, cost = figure.axes
    assert accuracy.get_ylabel() == "test accuracy [%]"
    assert cost.get_ylabel() == "training cost [nW]"
    assert accuracy.get_xlabel() == cost.get_xlabel() == "epoch"
    assert cost.get_yscale() == "log"
    drawn = lines(accuracy)
    for (label, values), (name, arm) in zip(drawn.items(), record.arms.items(), strict=True):
        assert label == f"{name} {100 * arm.metrics['test_accuracy'][-1]:.2f} %"
        np.testing.assert_allclose(values, 100 * arm.metrics["test_accuracy"])
        np.testing.assert_allclose(lines(cost)[name], 1e9 * arm.metrics["train_cost"])
    np.testing.assert_array_equal(accuracy.get_lines()[0].get_xdata(), np.arange(1, EPOCHS + 1))
    assert (
        figure.get_suptitle()
        == "corrected-centred: 94.0 % of the test set after 7 epochs; nudged-only: 86.0 %"
    )


def test_gradient_alignment(record: RunRecord, figures: dict[str, Figure]) -> None:
    figure = figures["gradient-alignment"]
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == list(CROSSBARS)
    for axes, crossbar in zip(figure.axes, (*CROSSBARS, *CROSSBARS), strict=True):
        small = axes in figure.axes[2:]
        assert list(lines(axes)) == list(ARMS)
        for name, values in lines(axes).items():
            cosine = record.arms[name].metrics[f"cosine/{crossbar}"]
            np.testing.assert_allclose(values, np.maximum(1 - cosine, FLOOR) if small else cosine)
        assert axes.get_yscale() == ("log" if small else "linear")
        low, high = axes.get_ylim()
        assert low < min(map(np.min, lines(axes).values()))
        assert high >= 1
    assert (lines(figure.axes[2])["adjoint"] == FLOOR).all()
    assert figure.axes[0].get_ylabel() == "cosine to exact gradient"
    assert figure.axes[2].get_ylabel() == "1 − cosine"
    assert figure.get_suptitle().startswith("nudged-only misses the gradient in 1 of 2 crossbars")


def test_alignment_title_when_all_is_well(record: RunRecord) -> None:
    good = replace(record, arms={name: record.arms[name] for name in ("corrected-centred", "adjoint")})
    title = draw("gradient-alignment", good).get_suptitle()
    assert title == "Every estimate has the direction of the exact gradient, to 1×10⁻⁸"


def test_conductances(record: RunRecord, figures: dict[str, Figure]) -> None:
    figure = figures["conductances"]
    state = record.arms["corrected-centred"].state
    for axes, crossbar in zip(figure.axes, CROSSBARS, strict=True):
        halves = [half for half in ("g_plus", "g_minus") if f"conductance/{crossbar}/{half}" in state]
        before, after = (
            np.concatenate([arrays[f"{kind}/{crossbar}/{half}"].ravel() * 1e6 for half in halves])
            for kind, arrays in (("initial", record.extras), ("conductance", state))
        )
        assert axes.get_xlabel() == "conductance [µS]"
        assert f"{len(after)} devices" in axes.get_title(loc="left")
        filled, _, learned = axes.patches
        for patch, values in ((filled, before), (learned, after)):
            shares, edges, _ = patch.get_data()
            assert shares.sum() == pytest.approx(100)
            np.testing.assert_allclose(shares, np.histogram(values, edges)[0] * 100 / len(values))
    assert figure.axes[0].get_ylabel() == "devices [%]"
    assert "learned (corrected-centred)" in all_text(figure)


def test_devices_at_a_limit_are_counted(record: RunRecord) -> None:
    arm = record.arms["corrected-centred"]
    state = {name: np.where(array < 5.05e-5, 1e-6, array) for name, array in arm.state.items()}
    clipped = replace(record, arms={**record.arms, arm.name: replace(arm, state=state)})
    values = np.concatenate([array.ravel() for array in state.values()])
    share = f"{100 * np.mean(values == 1e-6):.0f} % sit at a limit"
    assert share in draw("conductances", clipped).get_suptitle().replace("\n", " ")


def test_operating_point(record: RunRecord, figures: dict[str, Figure]) -> None:
    figure = figures["operating-point"]
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    shown = by_title["Input, 4 × 4 pixels"].get_images()[0].get_array()
    np.testing.assert_array_equal(shown, record.extras["sample/input"].reshape(4, 4))
    for layer, unit, scale in (("hidden", "mV", 1e3), ("output", "V", 1.0)):
        voltage = record.extras[f"sample/voltage/{layer}"]
        axes = by_title[f"Layer {layer}, {voltage.size} nodes"]
        assert axes.get_ylabel() == f"voltage [{unit}]"
        heights = [bar.get_height() for bar in axes.patches]
        np.testing.assert_allclose(heights, voltage * scale)
    output = by_title["Output"]
    assert output.get_xlabel() == "class probability [%]"
    np.testing.assert_allclose([bar.get_width() for bar in output.patches], [2, 95, 3])
    assert "95.0 % (true label)" in all_text(figure)
    assert figure.get_suptitle() == "The operating point of a class 1: recognised with probability 95.0 %"


def test_operating_point_of_a_mistake_without_an_image(record: RunRecord) -> None:
    extras = {**record.extras, "sample/label": np.array([2])}
    for shape in (None, [5, 5], "8x8"):
        header = {"figures": {"image_shape": shape}}
        figure = draw("operating-point", replace(record, extras=extras, header=header))
        assert figure.axes[0].get_title(loc="left") == "Input, 16 values"
        assert "mistaken for 1" in figure.get_suptitle()


def test_many_classes(record: RunRecord) -> None:
    extras = {**record.extras, "sample/probability": np.full(300, 1 / 300), "sample/label": np.array([9])}
    axes = draw("operating-point", replace(record, extras=extras)).axes[-1]
    assert list(axes.get_yticks()) == [9, 0]


@pytest.fixture(scope="module")
def written(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_figures(record, tmp_path_factory.mktemp("figures") / "new" / "folder")


def test_files(written: list[Path]) -> None:
    assert [path.name for path in written] == [f"{stem}.png" for stem in DRAWN]
    assert sorted(os.listdir(written[0].parent)) == sorted(path.name for path in written)
    for path in written:
        pixels = pictures.imread(path)
        assert pixels.shape[1] == 1600
        assert pixels.shape[0] > 500
        assert pixels[..., :3].std() > 0.02


def test_same_bytes_whatever_the_user_s_settings(
    record: RunRecord, written: list[Path], tmp_path: Path
) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "savefig.dpi": 20}):
        again = write_figures(record, tmp_path)
        assert matplotlib.rcParams["font.size"] == 30
    for first, second in zip(written, again, strict=True):
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda record: replace(record, extras={}), {"conductances", "operating-point"}),
        (
            lambda record: replace(
                record, extras={k: v for k, v in record.extras.items() if k != "sample/label"}
            ),
            {"operating-point"},
        ),
        (
            lambda record: replace(record, arms={name: shorten(arm, 0) for name, arm in record.arms.items()}),
            {"learning-curves", "gradient-alignment", "conductances"},
        ),
        (lambda record: replace(record, arms={}, extras={}), set(DRAWN)),
        (lambda record: replace(record, header={"figures": None}), set()),
        (lambda record: replace(record, header={"figures": {"arm": "gone"}}), set()),
    ],
)
def test_figures_without_data_are_left_out(
    record: RunRecord, change: Callable[[RunRecord], RunRecord], missing: set[str]
) -> None:
    assert set(build_figures(change(record))) == set(DRAWN) - missing


def test_an_interrupted_run(record: RunRecord, tmp_path: Path) -> None:
    # The first arm is through, the second has one epoch with a number missing, the third has none.
    first, second, third = record.arms.values()
    second = shorten(second, 1)
    second.metrics["cosine/hidden-output"] = np.array([np.nan])  # type: ignore[index]
    arms = {arm.name: arm for arm in (first, second, shorten(third, 0))}
    partial = replace(record, arms=arms, extras={})
    assert len(write_figures(partial, tmp_path)) == 2
    axes = draw("learning-curves", partial).axes[0]
    assert [len(values) for values in lines(axes).values()] == [EPOCHS, 1]


def test_one_epoch_of_one_arm(record: RunRecord, tmp_path: Path) -> None:
    only = replace(record, arms={"adjoint": shorten(record.arms["adjoint"], 1)}, extras={})
    assert len(write_figures(only, tmp_path)) == 2


def test_crossbars_wrap_into_rows(record: RunRecord) -> None:
    arm = record.arms["corrected-centred"]
    metrics = {f"cosine/c{number}": np.full(EPOCHS, -0.5) for number in range(6)}
    figure = build_figures(replace(record, arms={arm.name: replace(arm, metrics=metrics)}))[
        "gradient-alignment"
    ]
    assert len(figure.axes) == 12
    assert figure.axes[0].get_ylim()[0] < -0.5


def test_a_folder_that_cannot_be_made(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="cannot make the folder"):
        write_figures(record, tmp_path / "file")
    (tmp_path / "learning-curves.png").mkdir()
    with pytest.raises(RecordError, match="cannot write the figure"):
        write_figures(replace(record, extras={}), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "learning-curves.png"]


def test_report_starts_without_matplotlib() -> None:
    script = "import sys, circuitsim.report; sys.exit('matplotlib' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
