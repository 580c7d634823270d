"""The figure of a board that goes round, from ways of known shape."""

from __future__ import annotations

import numpy as np
import pytest

from circuitsim.report.limit_cycle import Way, limit_cycle_figure, principal_plane
from circuitsim.seeds import stream

PERIOD = 8
STEPS = 10 * PERIOD


def circle(radius: float, devices: int = 20) -> Way:
    """A way round a circle in a plane of its own, that a slow spiral leads to."""
    axes, _ = np.linalg.qr(stream(1, "plane").standard_normal((devices, 2)))
    angle = 2 * np.pi * np.arange(STEPS + 1) / PERIOD
    size = radius * (1 + 3 * np.exp(-np.arange(STEPS + 1) / PERIOD))
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * size[:, None]
    return Way(cost=1e-6 + 1e-7 * np.cos(angle), conductance=0.5 + points @ axes.T)


def test_the_plane_is_the_one_in_which_points_vary() -> None:
    way = circle(0.1)
    middle, directions, shares = principal_plane(way.conductance)
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-12)
    assert shares.sum() == pytest.approx(1)
    offset = way.conductance - middle
    np.testing.assert_allclose(offset @ directions.T @ directions, offset, atol=1e-12)


def test_the_close_up_shows_a_circle_beside_a_point() -> None:
    rest = Way(cost=np.geomspace(1e-6, 1e-12, STEPS + 1), conductance=np.full((STEPS + 1, 20), 0.5))
    figure = limit_cycle_figure({"biased": circle(0.1), "no bias": rest}, PERIOD)
    top, whole, close = figure.axes
    assert top.get_yscale() == "log"
    assert [line.get_label() for line in top.get_lines()] == ["biased", "no bias"]
    # Way, start and end of each.
    assert len(whole.get_lines()) == 6
    round_, point = (line.get_xydata() for line in close.get_lines()[:2])
    assert len(round_) == 3 * PERIOD + 1
    np.testing.assert_allclose(np.linalg.norm(round_, axis=1), 0.1, rtol=0.02)
    np.testing.assert_allclose(point, 0, atol=1e-12)
    # An octagon's outline.
    assert figure.get_suptitle().startswith("biased: 0.61 windows of way each round")
