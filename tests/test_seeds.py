"""Random streams keyed by name."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.seeds import stream

NAMES = st.lists(st.text(st.characters(exclude_characters="\x1f", codec="utf-8"), max_size=8), max_size=3)


def test_values_never_change() -> None:
    # Records hold seeds only: these numbers must be the same in every version and on every machine.
    draws = stream(7, "mismatch", "hidden").random(3)
    assert draws.tolist() == [0.7643582947272762, 0.5856810115951293, 0.649699248769043]
    assert stream(0).random() == 0.24489189820488522
    assert stream(0, "initial", "a-b", "g_plus").uniform(-1, 1) == 0.5919708285092553


def test_another_process_draws_the_same() -> None:
    code = "from circuitsim.seeds import stream; print(stream(3, 'a', 5).integers(2**62))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(result.stdout) == stream(3, "a", 5).integers(2**62)


@given(st.integers(0, 2**64), NAMES, NAMES)
def test_what_was_drawn_before_moves_nothing(seed: int, first: list[str], second: list[str]) -> None:
    expected = stream(seed, *first).random(4)
    other = stream(seed, *second)
    other.random(17)
    np.testing.assert_array_equal(stream(seed, *first).random(4), expected)
    if (first or [""]) != (second or [""]):
        assert not np.array_equal(stream(seed, *second).random(4), expected)
    assert not np.array_equal(stream(seed + 1, *first).random(4), expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [(("ab", "c"), ("a", "bc")), (("a",), ("a", "")), (("a", "b"), ("b", "a")), (("a", 1), ("a", 2))],
)
def test_paths_are_not_confused(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert stream(1, *one).random() != stream(1, *other).random()


def test_streams_are_uncorrelated() -> None:
    draws = np.stack([stream(5, "layer", k).standard_normal(2000) for k in range(8)])
    correlation = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlation).max() < 0.1
