"""Tables of sweeps: their files, their summaries, and figures that show what is in them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from circuitsim.errors import RecordError
from circuitsim.record.table import Table, read_table, write_csv, write_table
from circuitsim.report.sweep import build_sweep_figures, write_sweep_figures
from circuitsim.report.sweep_summary import die_results, summary, summary_rows
from circuitsim.seeds import stream

GAINS = (0.0, 0.1, 0.2)
DIES = 5


def table(
    *,
    axes: dict[str, list[Any]] | None = None,
    numeric: dict[str, bool] | None = None,
    x: str = "cards.amplifier.gain",
    random: bool = False,
    measure: str = "training",
    estimators: tuple[str, ...] = ("nudged-only", "corrected-centred", "adjoint"),
    metric: str = "test_accuracy",
    failing: tuple[int, int, str] | None = None,
) -> Table:
    """A sweep of two epochs: points as `axes` lists their values, five dies, numbers of a known formula."""
    axes = axes or {"cards.amplifier.gain": list(GAINS)}
    points = len(next(iter(axes.values())))
    rows = []
    for point in range(points):
        for die in range(DIES):
            for estimator in estimators:
                for epoch in (1, 2):
                    noise = stream(1, "die", point, die).normal(0, 0.01)
                    wrong = failing == (point, die, estimator) and epoch == 2
                    score = 0.9 - 0.1 * point / points + noise if epoch == 2 else 0.1
                    cosine = {"nudged-only": 0.5, "adjoint": 1.0}.get(estimator, 1 - 1e-6 * (point + 1))
                    rows.append(
                        {
                            "point": point,
                            **{axis: values[point] for axis, values in axes.items()},
                            "die": die,
                            "estimator": estimator,
                            "epoch": epoch,
                            metric: np.nan if wrong else score,
                            "cosine/a": np.nan if wrong else cosine,
                            "cosine/b": np.nan if wrong else 2 * cosine - 1,
                            "relative_error/a": 0.1,
                            "error": "ConvergenceError: 1 of 4 µA" if wrong else "",
                        }
                    )
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    header = {
        "kind": "sweep",
        "name": "gains",
        "measure": measure,
        "random": random,
        "axes": numeric or dict.fromkeys(axes, True),
        "x": x,
        "points": points,
        "dies": DIES,
    }
    return Table(columns=columns, header=header, aside={"seconds": np.full(len(rows), 0.25)})


# ------------------------------------------------------------------------------------------- files


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    whole = table(failing=(1, 2, "nudged-only"))
    write_table(whole, tmp_path / "t.h5")
    found = read_table(tmp_path / "t.h5")
    assert list(found.columns) == list(whole.columns)
    for name, column in whole.columns.items():
        assert found.columns[name].dtype.kind == column.dtype.kind
        np.testing.assert_array_equal(found.columns[name], column, err_msg=name)
    np.testing.assert_array_equal(found.aside["seconds"], whole.aside["seconds"])
    assert found.header == whole.header
    # Any reader of HDF5 finds the columns by name.
    with h5py.File(tmp_path / "t.h5") as file:
        names = [dataset.attrs["name"] for dataset in file["columns"].values()]
    assert names == list(whole.columns)


def test_an_empty_table_and_odd_texts_survive(tmp_path: Path) -> None:
    empty = Table(columns={"point": np.zeros(0, dtype=np.int64), "error": np.zeros(0, dtype=np.str_)})
    write_table(empty, tmp_path / "empty.h5")
    assert len(read_table(tmp_path / "empty.h5")) == 0
    odd = np.array(["", 'Ω ± µ, "quoted"\n2nd line', "x" * 5000])
    write_table(Table(columns={"a/b": odd, "a": odd}), tmp_path / "odd.h5")
    found = read_table(tmp_path / "odd.h5")
    assert found.columns["a/b"].tolist() == found.columns["a"].tolist() == odd.tolist()
    write_csv(Table(columns={"a/b": odd}), tmp_path / "odd.csv")
    with (tmp_path / "odd.csv").open(newline="", encoding="utf-8") as file:
        assert [row["a/b"] for row in csv.DictReader(file)] == odd.tolist()


def test_csv_numbers_read_back_exactly_and_leave_times_out(tmp_path: Path) -> None:
    whole = table(failing=(0, 0, "adjoint"))
    write_csv(whole, tmp_path / "t.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert "seconds" not in rows[0]
    found = np.array([float(row["test_accuracy"] or "nan") for row in rows])
    np.testing.assert_array_equal(found, whole.columns["test_accuracy"])
    assert [int(row["die"]) for row in rows] == whole.columns["die"].tolist()


def test_columns_that_are_no_table_are_refused() -> None:
    with pytest.raises(RecordError, match="equal length"):
        Table(columns={"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(RecordError, match="a column is one row"):
        Table(columns={"a": np.zeros((2, 2))})
    with pytest.raises(RecordError, match="a column is one row"):
        Table(columns={"a": np.array([None, 1])})


def test_what_is_no_table_of_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        read_table(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(RecordError, match="is not HDF5, or is damaged"):
        read_table(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = b"something else"
    with pytest.raises(RecordError, match="is not a table of results"):
        read_table(tmp_path / "other.h5")
    write_table(table(), tmp_path / "newer.h5")
    with h5py.File(tmp_path / "newer.h5", "a") as file:
        file.attrs["table_version"] = 99
    with pytest.raises(RecordError, match=r"newer version .* \(got 99\)"):
        read_table(tmp_path / "newer.h5")


# --------------------------------------------------------------------------------------- summaries


def test_a_summary_is_mean_and_spread_of_the_last_epoch_over_dies() -> None:
    whole = table(failing=(1, 2, "nudged-only"))
    rows = summary(whole)
    assert [(row["point"], row["estimator"]) for row in rows[:3]] == [
        (0, "nudged-only"),
        (0, "corrected-centred"),
        (0, "adjoint"),
    ]
    columns = whole.columns
    for row in rows:
        members = (columns["point"] == row["point"]) & (columns["estimator"] == row["estimator"])
        scores = columns["test_accuracy"][members & (columns["epoch"] == 2)]
        scores = scores[np.isfinite(scores)]
        assert row["dies"] == len(scores) == DIES - row["failed"]
        assert row["test_accuracy"]["mean"] == pytest.approx(scores.mean(), rel=1e-12)
        assert row["test_accuracy"]["std"] == pytest.approx(np.std(scores, ddof=1), rel=1e-12)
        assert row["test_rms_error"] is None
        assert row["seconds"] == 0.5
    assert [row["failed"] for row in rows] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    # Mean over crossbars and epochs: 0.5 and 0 of nudged-only.
    assert rows[0]["cosine"]["mean"] == pytest.approx(0.25)


def test_rows_of_text_say_what_was_measured() -> None:
    titles, rows = summary_rows(table(failing=(1, 2, "nudged-only")))
    assert titles == ["cards.amplifier.gain", "estimator", "dies", "failed", "test [%]", "cosine", "time [s]"]
    assert [row[:4] for row in rows[3:5]] == [
        ["0.1", "nudged-only", "4", "1"],
        ["0.1", "corrected-centred", "5", ""],
    ]
    assert rows[1][5].startswith("1-1e-06 ± ")
    volts = table(metric="test_rms_error")
    titles, rows = summary_rows(volts)
    assert titles[3] == "test RMS [mV]"
    mean = summary(volts)[0]["test_rms_error"]["mean"]
    assert rows[0][3].split(" ± ")[0] == f"{1e3 * mean:.3g}"
    titles, _ = summary_rows(table(measure="gradient"))
    assert titles == ["cards.amplifier.gain", "estimator", "dies", "cosine", "relative error", "time [ms]"]


# ----------------------------------------------------------------------------------------- figures


def lines(axes: Axes) -> dict[str, Any]:
    """The labelled lines of a panel."""
    return {
        str(line.get_label()): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")
    }


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def test_lines_are_means_over_dies_and_points_are_the_dies() -> None:
    whole = table(failing=(1, 2, "nudged-only"))
    figures = build_sweep_figures(whole)
    assert list(figures) == ["accuracy", "cosine"]
    [panel] = panels(figures["accuracy"])
    found = die_results(whole)
    for name in ("nudged-only", "corrected-centred", "adjoint"):
        x, y = lines(panel)[name].get_data()
        np.testing.assert_array_equal(x, GAINS)
        for gain, mean in zip(GAINS, y, strict=True):
            scores = found.score[(found.estimator == name) & (found.axes["cards.amplifier.gain"] == gain)]
            assert mean == pytest.approx(100 * np.nanmean(scores))
    # 14 dies of the one with a failure, 15 of the others.
    dies = [len(line.get_xdata()) for line in panel.get_lines() if str(line.get_label()).startswith("_")]
    assert sorted(dies) == [14, 15, 15]
    assert panel.get_xlabel() == "cards.amplifier.gain"
    assert panel.get_ylabel() == "test accuracy [%]"
    [band, *_] = panel.collections
    scores = found.score[(found.estimator == "nudged-only") & (found.axes["cards.amplifier.gain"] == 0)]
    height = np.ptp([v[1] for v in band.get_paths()[0].vertices if v[0] == 0])
    assert height == pytest.approx(200 * np.std(scores, ddof=1))


def test_cosines_near_one_are_told_apart_below() -> None:
    top, bottom = panels(build_sweep_figures(table())["cosine"])
    assert bottom.get_yscale() == "log"
    found = lines(bottom)["corrected-centred"].get_ydata()
    # Crossbar b is twice as far from 1 as crossbar a.
    np.testing.assert_allclose(found, 1.5e-6 * np.array([1, 2, 3]), rtol=1e-6)
    assert lines(bottom)["adjoint"].get_ydata().max() < 1e-15
    assert top.get_ylim()[0] < 0.25 < 1 < top.get_ylim()[1]


def test_other_axes_become_panels_and_too_many_are_pooled() -> None:
    grid = [(gain, size) for gain in GAINS for size in (4, 8)]
    axes: dict[str, list[Any]] = {
        "cards.amplifier.gain": [gain for gain, _ in grid],
        "network.layers.hidden.size": [size for _, size in grid],
    }
    figure = build_sweep_figures(table(axes=axes))["accuracy"]
    assert [panel.get_title(loc="left") for panel in panels(figure)] == ["hidden.size 4", "hidden.size 8"]
    many = [(gain, size) for gain in GAINS for size in range(13)]
    axes = {"cards.amplifier.gain": [g for g, _ in many], "network.layers.hidden.size": [s for _, s in many]}
    figure = build_sweep_figures(table(axes=axes))["accuracy"]
    assert len(panels(figure)) == 1
    assert "all values of network.layers.hidden.size together" in figure.legends[0].get_title().get_text()


def test_an_axis_of_words_is_drawn_side_by_side() -> None:
    axes: dict[str, list[Any]] = {"cards": ["ideal", "spread", "pcm"]}
    figure = build_sweep_figures(table(axes=axes, numeric={"cards": False}, x="cards"))["accuracy"]
    [panel] = panels(figure)
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["ideal", "spread", "pcm"]
    assert len(panel.containers) == 3
    # No line joins what has no order.
    assert all(container.lines[0].get_linestyle() == "None" for container in panel.containers)


def test_one_estimator_leaves_the_colours_to_another_axis() -> None:
    grid = [(technology, way) for technology in ("pcm", "rram") for way in ("transfer", "in situ")]
    axes: dict[str, list[Any]] = {"technology": [t for t, _ in grid], "way": [w for _, w in grid]}
    whole = table(axes=axes, numeric=dict.fromkeys(axes, False), x="technology", estimators=("dyadic",))
    [panel] = panels(build_sweep_figures(whole)["accuracy"])
    assert [container.get_label() for container in panel.containers] == ["transfer", "in situ"]
    numeric = {"technology": False, "way": True}
    columns = dict(whole.columns) | {"way": np.where(whole.columns["way"] == "transfer", 0.5, 2.0)}
    whole = Table(columns=columns, header={**whole.header, "axes": numeric}, aside=whole.aside)
    [panel] = panels(build_sweep_figures(whole)["accuracy"])
    assert [container.get_label() for container in panel.containers] == ["way 0.5", "way 2"]


def test_a_random_design_is_a_cloud_on_the_scale_of_its_axis() -> None:
    steps = [10.0 ** (-3 + 0.2 * k) for k in range(11)]
    axes: dict[str, list[Any]] = {
        "training.optimiser.step": steps,
        "solver.precision": ["a", "b"] * 5 + ["a"],
    }
    numeric = {"training.optimiser.step": True, "solver.precision": False}
    whole = table(axes=axes, numeric=numeric, x="training.optimiser.step", random=True)
    [panel] = panels(build_sweep_figures(whole)["accuracy"])
    assert panel.get_xscale() == "log"
    assert len(lines(panel)["nudged-only"].get_xdata()) == 11 * DIES
    assert lines(panel)["nudged-only"].get_linestyle() == "None"


def test_an_axis_that_names_the_estimator_needs_no_panels() -> None:
    whole = table(axes={"cards.amplifier.gain": [0.0, 0.1] * 2, "estimators.kind": ["a", "a", "b", "b"]})
    columns = dict(whole.columns)
    columns["estimator"] = columns["estimators.kind"]
    header = {**whole.header, "axes": {"cards.amplifier.gain": True, "estimators.kind": False}}
    # One estimator a point, called as the axis says.
    keep = np.flatnonzero(whole.columns["estimator"] == "adjoint")
    reduced = Table(
        columns={name: column[keep] for name, column in columns.items()},
        header=header,
        aside={"seconds": whole.aside["seconds"][keep]},
    )
    [panel] = panels(build_sweep_figures(reduced)["accuracy"])
    assert set(lines(panel)) == {"a", "b"}


def test_gradients_before_training_have_errors_and_no_accuracy_to_draw() -> None:
    assert list(build_sweep_figures(table(measure="gradient"))) == ["cosine", "gradient-error"]
    assert list(build_sweep_figures(table(metric="test_rms_error"))) == ["error", "cosine"]


def gradients(axis: str, values: list[Any], law: Any) -> Table:
    """Gradients before training whose relative error at ``values`` of an axis is ``law(value)``."""
    whole = table(axes={axis: values}, x=axis, measure="gradient", estimators=("dyadic",))
    columns = whole.columns | {"relative_error/a": law(whole.columns[axis].astype(float))}
    return Table(columns=columns, header=whole.header, aside=whole.aside)


def test_errors_of_gradients_are_drawn_with_the_law_of_averages() -> None:
    """On axes where powers of two are evenly spread, and a line of slope -1/2 through the first point."""
    counts = [1, 4, 16, 64, 256]
    whole = gradients("readout.averaging", counts, lambda n: 0.3 / np.sqrt(n))
    [panel] = panels(build_sweep_figures(whole)["gradient-error"])
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [str(n) for n in counts]
    found = lines(panel)
    assert set(found) == {"dyadic", "∝ 1 / √n"}
    np.testing.assert_allclose(found["dyadic"].get_ydata(), found["∝ 1 / √n"].get_ydata(), rtol=1e-12)
    low, high = panel.get_ylim()
    assert low < 0.3 / 16 < 0.3 < high


def test_errors_against_beta_fall_as_its_inverse_and_rise_as_its_square() -> None:
    betas = [0.01, 0.1, 1.0, 10.0]
    whole = gradients("estimators.0.beta", betas, lambda b: 1e-3 / b + 1e-4 * b**2)
    [panel] = panels(build_sweep_figures(whole)["gradient-error"])
    found = lines(panel)
    error = found["dyadic"].get_ydata()
    np.testing.assert_allclose(found["∝ 1 / β"].get_ydata(), error[0] * 0.01 / np.array(betas))
    np.testing.assert_allclose(found["∝ β²"].get_ydata(), error[-1] * (np.array(betas) / 10) ** 2)
    # Other axes have no law, and errors that were not measured no figure.
    other = gradients("cards.amplifier.gain", betas, lambda gain: gain)
    assert set(lines(panels(build_sweep_figures(other)["gradient-error"])[0])) == {"dyadic"}
    none = gradients("cards.amplifier.gain", betas, lambda gain: np.full(len(gain), np.nan))
    assert list(build_sweep_figures(none)) == ["cosine"]


def test_files_are_as_wide_as_all_figures_and_the_same_every_time(tmp_path: Path) -> None:
    first = write_sweep_figures(table(), tmp_path / "a")
    assert [path.name for path in first] == ["gains-accuracy.png", "gains-cosine.png"]
    for path in first:
        assert imread(path).shape[1] == 1600
    second = write_sweep_figures(table(), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
