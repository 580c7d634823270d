"""The figure of a fault study draws medians, bands and what is lost."""

from __future__ import annotations

import numpy as np
import pytest

from circuitsim.report.faults import FaultPanel, fault_figure


def test_medians_bands_and_losses() -> None:
    levels = np.array([1e-3, 1e-2, 1e-1])
    rng = np.random.default_rng(0)
    errors = levels[:, None] * np.exp(rng.normal(0, 0.3, (3, 21)))
    lost = errors.copy()
    lost[2, :15] = np.nan
    panels = [
        FaultPanel(
            title="Gain",
            abscissa="size",
            levels=levels,
            curves={"circuit": lost, "matrix": errors},
            floor=1e-4,
        ),
        FaultPanel(title="Copy", abscissa="size", levels=levels, curves={"matrix": errors}),
    ]
    figure = fault_figure(panels, "Faults")
    gain, copy = figure.axes
    assert (gain.get_xscale(), gain.get_yscale()) == ("log", "log")
    assert gain.get_ylabel().endswith("[%]")
    lines = {line.get_label(): line for line in gain.lines}
    # Where most networks are lost there is no point; elsewhere it is the median, in %.
    np.testing.assert_array_equal(np.asarray(lines["circuit"].get_xdata()), levels[:2])
    np.testing.assert_allclose(
        np.asarray(lines["matrix"].get_ydata(), dtype=float), 100 * np.median(errors, axis=1)
    )
    assert lines["no fault"].get_ydata()[0] == pytest.approx(0.01)  # type: ignore[index]
    band = gain.collections[1].get_paths()[0].vertices
    assert np.asarray(band)[:, 1].max() == pytest.approx(100 * np.percentile(errors[2], 90))
    # One colour per way of telling, in every panel.
    assert copy.lines[0].get_color() == lines["matrix"].get_color()
    assert {line.get_label() for line in copy.lines} == {"matrix"}
