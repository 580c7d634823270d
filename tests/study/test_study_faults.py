"""Laws of hardware faults, on few networks: linear in small faults, over beta, by the root of the reads."""

from __future__ import annotations

import numpy as np
import pytest

from circuitsim.learning import EP
from circuitsim.study.faults import (
    FAULTS,
    FaultCase,
    _Units,
    averaged_errors,
    beta_sweep,
    fault_case,
    fault_errors,
    mismatched_copy,
)

BETA = 0.03


@pytest.fixture(scope="module")
def cases() -> list[FaultCase]:
    return [fault_case(seed) for seed in range(5)]


def test_the_networks_are_what_they_say(cases: list[FaultCase]) -> None:
    for case in cases:
        assert case.size == 20
        assert not case.netlist.crossbar("recurrent").mask.diagonal().any()  # type: ignore[union-attr]
        # Nothing is symmetric: the nudge alone is far off.
        nudged = EP(beta=BETA).estimate(case.phases, case.inputs, case.targets, free=case.free)
        assert case.error(nudged.crossbars) > 0.1
        # And the baseline is small, of second order.
        none = [case.corrected(None, beta) for beta in (BETA, BETA / 10)]
        assert none[0] < 3e-3
        assert np.log10(none[0] / none[1]) == pytest.approx(2.0, abs=0.1)


def test_matrices_describe_the_same_network(cases: list[FaultCase]) -> None:
    """At a small beta without faults both are the adjoint, and so is the copy."""
    for case in cases[:2]:
        assert _Units(case).corrected(1e-3) < 1e-5
        assert _Units(case).dyadic(np.ones((case.size, case.size))) < 1e-10
        assert case.dyadic(None) < 1e-10


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_grow_in_proportion_to_small_faults(cases: list[FaultCase], fault: str) -> None:
    # So small a beta that the estimate without faults is exact beside them; an anchor counts over beta.
    one_sided = fault == "anchor, one-sided"
    beta = 1e-3 if not fault.startswith("anchor") else 3e-3
    levels = np.array([1e-3, 3e-3, 1e-2]) * (0.1 if fault.startswith("anchor") else 1.0)
    found = fault_errors(cases, fault, levels.tolist(), beta=beta)
    for told, errors in found.errors.items():
        assert not np.isnan(errors).any(), told
        if one_sided:
            # What one side costs without a fault is of first order in beta.
            errors = errors[1:]
        slopes = np.diff(np.log(errors), axis=0) / np.diff(np.log(levels[-len(errors) :]))[:, None]
        assert np.all(errors[1:] > errors[:-1]), told
        np.testing.assert_allclose(slopes.mean(axis=1), 1.0, atol=0.15, err_msg=told)


# Bounds a factor of 4 around single draws on another network of 20 units: (fault, size, error).
ORDERS = [
    ("correction gain", 0.05, "matrix", 0.024),
    ("correction gain", 0.05, "held", 0.024),
    ("correction mismatch", 0.1, "matrix", 0.047),
    ("correction mismatch", 0.1, "held", 0.047),
    ("anchor, centred", 1e-2, "circuit", 0.019),
    ("anchor, one-sided", 1e-2, "circuit", 1.05),
    ("copy mismatch", 0.05, "circuit", 0.038),
    ("copy mismatch", 0.05, "matrix", 0.038),
]


@pytest.mark.parametrize(("fault", "level", "told", "expected"), ORDERS)
def test_errors_are_of_the_known_order(
    cases: list[FaultCase], fault: str, level: float, told: str, expected: float
) -> None:
    found = fault_errors(cases, fault, (level,), beta=BETA)
    assert expected / 4 < found.mean(told)[0] < expected * 4
    assert found.lost(told)[0] == 0
    assert 0 < found.spread(told)[0] < found.mean(told)[0]


def test_a_hold_amplifier_that_is_off_loads_its_own_unit(cases: list[FaultCase]) -> None:
    """The circuit's price for one array in both directions: an error that J0^T - J0 has no place for."""
    gain = fault_errors(cases, "correction gain", (0.05, 0.4), beta=BETA)
    assert np.all(gain.errors["circuit"][0] > 3 * gain.errors["held"][0])
    # Far off it latches: no stable phase is left, and none is made up.
    assert gain.lost("circuit")[1] > 0
    assert gain.lost("held")[1] == 0


def test_one_sided_estimates_take_the_anchor_whole(cases: list[FaultCase]) -> None:
    centred, one_sided = (
        fault_errors(cases, f"anchor, {side}", (1e-2,), beta=BETA) for side in ("centred", "one-sided")
    )
    for told in ("circuit", "held", "matrix"):
        assert np.all(one_sided.errors[told] > 20 * centred.errors[told])


def test_the_best_beta_moves_up_with_read_noise(cases: list[FaultCase]) -> None:
    betas = np.geomspace(3e-3, 0.2, 8)
    errors = np.nanmedian(beta_sweep(cases, betas.tolist(), (1e-5, 1e-4, 1e-3)), axis=2)
    best = np.argmin(errors, axis=1)
    assert np.all(np.diff(best) > 0)
    # Below the best, noise over beta.
    np.testing.assert_allclose(errors[2, 0] / errors[2, 2], betas[2] / betas[0], rtol=0.1)
    # Ten times the noise, ten times the error.
    np.testing.assert_allclose(errors[2, 0] / errors[1, 0], 10.0, rtol=0.1)


def test_read_noise_is_of_the_known_order(cases: list[FaultCase]) -> None:
    weak, strong = beta_sweep(cases, (0.01, 0.1), (1e-3,))[0].mean(axis=1)
    assert 0.37 / 4 < weak < 0.37 * 4
    assert 0.04 / 4 < strong < 0.04 * 4


def test_averaging_lowers_the_error_by_the_root_of_the_reads(cases: list[FaultCase]) -> None:
    reads = np.array([1, 4, 16, 64])
    errors = averaged_errors(cases, 0.01, 1e-3, reads.tolist()).mean(axis=1)
    slope = np.polyfit(np.log(reads), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.08)


def test_draws_are_those_of_the_seed(cases: list[FaultCase]) -> None:
    again = fault_case(0)
    for fault in FAULTS:
        a, b = (fault_errors([case], fault, (0.01,), beta=BETA) for case in (cases[0], again))
        for told in a.errors:
            np.testing.assert_array_equal(a.errors[told], b.errors[told])
    # A copy without spread is exact, whatever is drawn.
    dual = mismatched_copy(again.netlist, again.phases.values, 0.0, again.drawn("copy"))
    assert again.dyadic(dual) < 1e-10
