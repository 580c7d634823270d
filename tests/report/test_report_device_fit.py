"""Figures of device fits show the readings, the fits and their intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.axes import Axes

from circuitsim.data.measurements import load_measurement
from circuitsim.devices.fit.curves import fit_curves
from circuitsim.devices.fit.measurements import CurveData, PulseData
from circuitsim.devices.fit.pulses import fit_pulses
from circuitsim.devices.fit.result import DeviceFit, Panel, Series, thinned
from circuitsim.errors import RecordError
from circuitsim.report.device_fit import draw_fit, write_fit
from circuitsim.report.style import styled


@pytest.fixture(scope="module")
def example(repo_root: Path) -> PulseData:
    data = load_measurement(repo_root / "devices" / "examples" / "pulses-synthetic.csv")
    assert isinstance(data, PulseData)
    return data


@pytest.fixture(scope="module")
def fit(example: PulseData) -> DeviceFit:
    return fit_pulses(example)


def panel(fit: DeviceFit, title: str) -> Axes:
    with styled():
        (found,) = [axes for axes in draw_fit(fit).axes if axes.get_title(loc="left").startswith(title)]
    return found


def test_staircases_are_the_readings_and_their_curves_stay_near(fit: DeviceFit, example: PulseData) -> None:
    axes = panel(fit, "Staircases")
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    curves = [line for line in axes.lines if line.get_linestyle() != "None"]
    assert len(points) == len(curves) == 3
    first = (example.device == 0) & (example.cycle == 0)
    assert points[0].get_ydata() == pytest.approx(1e6 * example.conductance[first])
    for shown, curve in zip(points, curves, strict=True):
        off = np.asarray(shown.get_ydata()) - np.asarray(curve.get_ydata())
        # Noise of single pulses piles up along a staircase, and every step forgets some of it.
        assert np.sqrt(np.mean(off**2)) < 1.5
    assert "µS" in axes.get_ylabel()


def test_the_update_curve_lies_in_its_band(fit: DeviceFit) -> None:
    axes = panel(fit, "Update curve")
    bands = axes.collections
    assert len(bands) == 2
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]
    for band, line in zip(bands, lines, strict=True):
        y, edge = np.asarray(line.get_ydata()), band.get_paths()[0].vertices[:, 1]
        assert edge.min() <= y.min() <= y.max() <= edge.max()
    # Up pulses raise w, pulses down lower it.
    assert np.asarray(lines[0].get_ydata()).min() > 0 > np.asarray(lines[1].get_ydata()).max()


def test_residuals_lie_about_zero_and_mostly_in_twice_their_spread(fit: DeviceFit) -> None:
    axes = panel(fit, "Residuals")
    for line, band in zip(axes.lines, axes.collections, strict=True):
        y = np.asarray(line.get_ydata())
        reach = band.get_paths()[0].vertices[:, 1].max()
        assert abs(y.mean()) < 4 * y.std() / np.sqrt(len(y))
        assert 0.9 < np.mean(np.abs(y) <= reach) < 0.99


def test_every_device_has_its_step_with_an_interval(fit: DeviceFit) -> None:
    axes = panel(fit, "Steps")
    (bars,) = axes.containers
    assert len(bars[0].get_xdata()) == fit.devices == 8
    assert np.all(np.diff(bars[0].get_ydata()) >= 0)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_figures_are_titled_written_and_the_same_every_time(fit: DeviceFit, tmp_path: Path) -> None:
    with styled():
        figure = draw_fit(fit)
    title = figure.get_suptitle()
    assert title.replace("\n", " ") == fit.finding
    first = write_fit(fit, tmp_path / "new" / "a.png").read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30}):
        assert write_fit(fit, tmp_path / "b.png").read_bytes() == first
    assert pictures.imread(tmp_path / "b.png").shape[1] == 1600
    assert {path.name for path in tmp_path.rglob("*.png")} == {"a.png", "b.png"}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_diode_is_drawn_over_decades_of_current() -> None:
    rng = np.random.default_rng(1)
    voltage = np.tile(np.linspace(-0.1, 0.6, 20), 5)
    device = np.repeat(np.arange(5), 20)
    current = 1e-9 * np.expm1(voltage / 0.05) * (1 + 0.02 * rng.standard_normal(100))
    names = tuple("abcde")
    data = CurveData(
        file="d.csv",
        names=names,
        device=device,
        cycle=0 * device,
        line=device,
        voltage=voltage,
        current=current,
    )
    axes = panel(fit_curves(data, diode=True), "I-V")
    assert axes.get_yscale() == "log"
    assert min(np.asarray(line.get_ydata()).min() for line in axes.lines) > 0


def test_an_odd_number_of_panels_leaves_no_empty_axes(fit: DeviceFit) -> None:
    series = Series(kind="line", x=np.arange(3.0), y=np.arange(3.0))
    one = Panel(title="one", x_label="x", y_label="y", series=(series,), log_x=False)
    with styled():
        figure = draw_fit(replace(fit, panels=(one, one, one)))
    assert len(figure.axes) == 3


def test_points_are_thinned_evenly() -> None:
    assert thinned(5, 9).tolist() == [0, 1, 2, 3, 4]
    places = thinned(4000, 500)
    assert len(np.unique(places)) == 500
    # Whatever comes every fourth time is shown as often as the rest.
    assert np.bincount(places % 4).min() > 90


def test_a_figure_that_cannot_be_written_is_an_error(fit: DeviceFit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="file"):
        write_fit(fit, tmp_path / "file" / "a.png")
