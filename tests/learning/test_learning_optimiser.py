"""Steps on conductances against textbook optimisers written out for one number at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import network_document
from learners import Case, case
from pydantic import ValidationError

from circuitsim.chip import Conductances, fabricate
from circuitsim.learning import Adjoint, Gradient, Optimiser, OptimiserSpec
from circuitsim.learning.optimiser import ScheduleSpec
from circuitsim.netlist import Netlist

UNIT = 1e-5


@pytest.fixture(scope="module")
def tried() -> Case:
    return case(network_document(recurrent=True, synapse="amplifier"))


def gradients(netlist: Netlist, steps: int, size: float, seed: int = 0) -> list[Gradient]:
    """Made-up gradients [W/S], also where no device is."""
    rng = np.random.default_rng(seed)

    def half(shape: tuple[int, int], exists: bool) -> Any:
        return size * rng.normal(size=shape) if exists else None

    return [
        Gradient(
            crossbars={
                c.name: (half(c.shape, True), half(c.shape, c.differential)) for c in netlist.trainable
            },
            estimator="made up",
            beta=None,
            phases=(),
            cost=0.0,
            outputs=np.zeros((1, 1)),
        )
        for _ in range(steps)
    ]


def run(netlist: Netlist, spec: OptimiserSpec, given: list[Gradient], factor: float = 1.0) -> Conductances:
    optimiser = Optimiser(spec, netlist, UNIT)
    g = fabricate(netlist).target
    for gradient in given:
        g = g | optimiser.step(g, gradient, factor)  # type: ignore[operator]
    return g


def each_device(netlist: Netlist) -> list[tuple[str, int, int, int]]:
    """Some devices as (crossbar, half, row, column), masked ones left out."""
    found = []
    for c in netlist.trainable:
        for half in range(2 if c.differential else 1):
            for j, i in ((0, 1), (c.shape[0] - 1, c.shape[1] - 2)):
                if c.mask is None or c.mask[j, i]:
                    found.append((c.name, half, j, i))
    return found


def textbook_adam(g: float, slopes: list[float], rate: float, window: tuple[float, float]) -> float:
    """Kingma and Ba, algorithm 1, on x = g / (g_max - g_min), kept inside the window."""
    low, high = window
    width = high - low
    m = v = 0.0
    for t, slope in enumerate(slopes, 1):
        per_window = slope * width
        m = 0.9 * m + 0.1 * per_window
        v = 0.999 * v + 0.001 * per_window**2
        g -= rate * width * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-10 * UNIT)
        g = min(max(g, low), high)
    return g


def test_adam_is_the_textbook_adam(tried: Case) -> None:
    netlist = tried.netlist
    given = gradients(netlist, 25, 1e-2)
    found = run(netlist, OptimiserSpec(step=0.03), given, factor=0.5)
    start = fabricate(netlist).target
    moved, clipped = 0, 0
    for name, half, j, i in each_device(netlist):
        c = netlist.crossbar(name)
        slopes = [float(gradient.crossbars[name][half][j, i]) for gradient in given]  # type: ignore[index]
        expected = textbook_adam(float(start[name][half][j, i]), slopes, 0.015, (c.g_min, c.g_max))  # type: ignore[index]
        np.testing.assert_allclose(found[name][half][j, i], expected, rtol=1e-12)  # type: ignore[index]
        moved += expected != float(start[name][half][j, i])  # type: ignore[index]
        clipped += expected in (c.g_min, c.g_max)
    assert moved == len(each_device(netlist))
    assert clipped < moved


def test_sgd_is_the_textbook_sgd_with_momentum(tried: Case) -> None:
    netlist = tried.netlist
    given = gradients(netlist, 6, 1e-3)
    found = run(netlist, OptimiserSpec(kind="sgd", step=0.1, momentum=0.6), given)
    start = fabricate(netlist).target
    for name, half, j, i in each_device(netlist):
        c = netlist.crossbar(name)
        width, m = c.g_max - c.g_min, 0.0
        g = float(start[name][half][j, i])  # type: ignore[index]
        for gradient in given:
            m = 0.6 * m + float(gradient.crossbars[name][half][j, i]) * width / UNIT  # type: ignore[index]
            g = min(max(g - 0.1 * width * m, c.g_min), c.g_max)
        np.testing.assert_allclose(found[name][half][j, i], g, rtol=1e-12)  # type: ignore[index]


def test_adam_does_not_see_the_scale_of_the_cost(tried: Case) -> None:
    spec = OptimiserSpec(step=0.03)
    small = run(tried.netlist, spec, gradients(tried.netlist, 5, 1e-4))
    large = run(tried.netlist, spec, gradients(tried.netlist, 5, 1e2))
    for name, halves in small.items():
        for a, b in zip(halves, large[name], strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_conductances_stay_in_the_window_and_devices_that_do_not_exist_stay_away(
    tried: Case, kind: str
) -> None:
    netlist = tried.netlist
    spec = OptimiserSpec.model_validate({"kind": kind, "step": 10.0})
    found = run(netlist, spec, gradients(netlist, 1, 10.0))
    masked = 0
    for c in netlist.trainable:
        for g in found[c.name]:
            if g is None:
                assert not c.differential
                continue
            exists = np.ones(c.shape, dtype=bool) if c.mask is None else c.mask
            assert np.all(np.isin(g[exists], (c.g_min, c.g_max)))
            assert np.all(g[~exists] == 0)
            masked += int((~exists).sum())
    assert masked == 10


def test_a_step_changes_nothing_it_was_given(tried: Case) -> None:
    netlist = tried.netlist
    start = fabricate(netlist).target
    copies = {name: [None if g is None else g.copy() for g in pair] for name, pair in start.items()}
    (gradient,) = gradients(netlist, 1, 1e-2)
    new = Optimiser(OptimiserSpec(), netlist, UNIT).step(start, gradient, 1.0)
    for name, pair in copies.items():
        for before, now, after in zip(pair, start[name], new[name], strict=True):
            if before is not None:
                np.testing.assert_array_equal(before, now)
                assert np.any(after != before)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_rates_multiply_the_step_of_one_crossbar(tried: Case, kind: str) -> None:
    netlist = tried.netlist
    given = gradients(netlist, 1, 1e-4)
    start = fabricate(netlist).target
    base: dict[str, Any] = {"kind": kind, "step": 0.01}
    plain = run(netlist, OptimiserSpec.model_validate(base), given)
    rates = {"hidden-out": 0.0, "lateral": 0.5}
    rated = run(netlist, OptimiserSpec.model_validate(base | {"rates": rates}), given)
    for name, pair in start.items():
        for before, once, other in zip(pair, plain[name], rated[name], strict=True):
            if before is None:
                continue
            inside = (once > 1.0001e-6) & (once < 0.9999e-4) if kind == "adam" else once > 0
            np.testing.assert_allclose(
                (other - before)[inside],
                rates.get(name, 1.0) * (once - before)[inside],
                rtol=1e-6,
                atol=1e-14,
            )
            assert np.any(once != before)


def test_sgd_goes_down(tried: Case) -> None:
    spec = OptimiserSpec(kind="sgd", step=5.0)
    chip = fabricate(tried.netlist)
    optimiser = Optimiser(spec, tried.netlist, tried.phases.cost.conductance)
    costs = []
    for _ in range(12):
        phases = replace(tried.phases, values=chip.values)
        gradient = Adjoint().estimate(phases, tried.inputs, tried.targets)
        costs.append(gradient.cost)
        chip = chip.programmed(optimiser.step(chip.target, gradient, 1.0))
    assert np.all(np.diff(costs) < 0)
    assert costs[-1] < 0.9 * costs[0]


def test_the_first_sgd_step_falls_as_much_as_the_slope_says(tried: Case) -> None:
    """First order: dC = -step * window^2 / unit * |dC/dg|^2, where nothing clips."""
    netlist = tried.netlist
    chip = fabricate(netlist)
    gradient = Adjoint().estimate(replace(tried.phases, values=chip.values), tried.inputs, tried.targets)
    unit = tried.phases.cost.conductance
    new = chip.programmed(
        Optimiser(OptimiserSpec(kind="sgd", step=1e-3), netlist, unit).step(chip.target, gradient, 1.0)
    )
    expected = 0.0
    for name, pair in new.target.items():
        for g, before, slope in zip(pair, chip.target[name], gradient.crossbars[name], strict=True):
            if g is not None:
                expected += float(((g - before) * slope).sum())
    phases = replace(tried.phases, values=new.values)
    y = phases.outputs(phases.free(tried.inputs))
    fell = float(tried.phases.cost.value(y, tried.targets).mean()) - gradient.cost
    assert fell == pytest.approx(expected, rel=0.02)
    window = netlist.crossbar("lateral").g_max - netlist.crossbar("lateral").g_min
    flat = gradient.flat("lateral")
    step = np.concatenate(
        [
            (g - b).ravel()
            for g, b in zip(new.target["lateral"], chip.target["lateral"], strict=True)
            if g is not None and b is not None
        ]
    )
    np.testing.assert_allclose(step, -1e-3 * window**2 / unit * flat, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"kind": "exponential", "decay": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625]),
        ({"kind": "step", "decay": 0.1, "every": 2}, [1, 1, 0.1, 0.1, 0.01]),
        ({"kind": "cosine"}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        ({"kind": "cosine", "floor": 0.2}, [1, 0.6 + 0.8 * math.sqrt(0.125), 0.6, None, 0.2]),
    ],
)
def test_schedules(schedule: dict[str, Any], expected: list[float | None]) -> None:
    spec = ScheduleSpec.model_validate(schedule)
    for epoch, factor in enumerate(expected):
        if factor is not None:
            assert spec.factor(epoch, 4) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    "bad",
    [
        {"step": 0},
        {"step": -1},
        {"kind": "rmsprop"},
        {"beta1": 1.0},
        {"momentum": -0.1},
        {"rates": {"a": -1}},
        {"schedule": {"decay": 0}},
        {"schedule": {"kind": "cosine", "floor": 2}},
        {"lr": 0.1},
    ],
)
def test_settings_outside_their_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OptimiserSpec.model_validate(bad)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_restored_optimiser_goes_on_the_same(tried: Case, kind: str) -> None:
    netlist = tried.netlist
    spec = OptimiserSpec.model_validate({"kind": kind, "step": 0.01, "momentum": 0.5})
    given = gradients(netlist, 6, 1e-4)
    straight = run(netlist, spec, given)
    first = Optimiser(spec, netlist, UNIT)
    g = fabricate(netlist).target
    for gradient in given[:3]:
        g = g | first.step(g, gradient, 1.0)  # type: ignore[operator]
    saved = {key: array.copy() for key, array in first.state.items()}
    second = Optimiser(spec, netlist, UNIT)
    second.restore(saved, first.count)
    for gradient in given[3:]:
        g = g | second.step(g, gradient, 1.0)  # type: ignore[operator]
    for name, pair in straight.items():
        for a, b in zip(pair, g[name], strict=True):
            if a is not None:
                np.testing.assert_array_equal(a, b)
    # The checkpoint is a copy: going on did not change it.
    for key, array in saved.items():
        np.testing.assert_array_equal(array, first.state[key])
