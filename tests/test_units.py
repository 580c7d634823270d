"""Quantities with SPICE suffixes, and their printing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.errors import SpecError
from circuitsim.units import UNITS, engineering, parse_quantity

SUFFIXES = {
    "t": 1e12,
    "g": 1e9,
    "meg": 1e6,
    "k": 1e3,
    "m": 1e-3,
    "mil": 25.4e-6,
    "u": 1e-6,
    "µ": 1e-6,
    "n": 1e-9,
    "p": 1e-12,
    "f": 1e-15,
    "a": 1e-18,
}


@pytest.mark.parametrize(("suffix", "scale"), SUFFIXES.items())
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_suffixes_of_spice(suffix: str, scale: float, case: Callable[[str], str]) -> None:
    written = suffix if suffix == "µ" else case(suffix)
    for text in (f"2.5{written}", f"  2.5 {written} ", f"25e-1{written}"):
        assert parse_quantity(text) == pytest.approx(2.5 * scale, rel=1e-15)
    assert parse_quantity(f"-2.5{written}") == pytest.approx(-2.5 * scale, rel=1e-15)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("suffix", ["", "k", "meg", "m", "u", "n"])
def test_a_unit_may_follow(suffix: str, unit: str) -> None:
    written = f"3{suffix}{unit}"
    if written in ("3f", "3a"):
        # As in SPICE, a lone F is femto and a lone A is atto.
        assert parse_quantity(written) == float(f"{3 * SUFFIXES[unit]:.6g}")
    else:
        # To the last bit: 3n is the float 3e-09, not 3 times the float 1e-09.
        expected = float(f"{3 * SUFFIXES.get(suffix, 1.0):.6g}")
        assert parse_quantity(written) == expected
        assert parse_quantity(written.upper()) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("+.5", 0.5),
        ("4.", 4.0),
        ("0", 0.0),
        (7, 7.0),
        (2.5, 2.5),
        ("1M", 1e-3),
        ("1MEG", 1e6),
        ("1megohm", 1e6),
        ("100mV", 0.1),
        ("4.7kohm", 4700.0),
        ("1 mil", 25.4e-6),
        ("1fF", 1e-15),
        ("1aA", 1e-18),
    ],
)
def test_values(value: object, expected: float) -> None:
    assert parse_quantity(value) == expected


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("", "is not a number"),
        ("k", "is not a number"),
        ("1,5", "is not a number"),
        ("1 2", "is not a number"),
        ("--1", "is not a number"),
        ("0x10", "is not a number"),
        ("1_000", "is not a number"),
        ("nan", "is not a number"),
        ("inf", "is not a number"),
        ("1x", "has an unknown suffix"),
        ("1kk", "has an unknown suffix"),
        ("1ohmk", "has an unknown suffix"),
        ("1megvv", "has an unknown suffix"),
        ("1e999", "must be finite"),
        ("1e308k", "must be finite"),
        (math.nan, "must be finite"),
        (-math.inf, "must be finite"),
        (True, "must be a number"),
        (None, "must be a number"),
        ([1], "must be a number"),
    ],
)
def test_refusals(value: object, rule: str) -> None:
    with pytest.raises(SpecError, match=rule) as caught:
        parse_quantity(value)
    assert caught.value.value is value or math.isnan(caught.value.value)
    assert re.search(r"\(got .+\)", str(caught.value))


def test_an_integer_that_no_float_holds() -> None:
    with pytest.raises(SpecError, match="must be finite"):
        parse_quantity(10**400)


@given(
    st.floats(min_value=1e-18, max_value=9e14) | st.floats(min_value=-9e14, max_value=-1e-18),
    st.sampled_from(["", "ohm", "V", "S", "F", "Hz", "W"]),
    st.integers(2, 12),
)
def test_what_engineering_prints_parses_back(value: float, unit: str, digits: int) -> None:
    text = engineering(value, unit, digits)
    # Printed for people: M is mega there. And a unit of F or a prefix of f alone read as SPICE does.
    text = re.sub(r" M", " meg", text)
    if text.endswith(" F"):
        text = text.removesuffix("F")
    assert parse_quantity(text) == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5e-5, "25 uS"),
        (-1.5e6, "-1.5 MS"),
        (999.96, "1 kS"),
        (0.0, "0 S"),
        (1e-18, "1 aS"),
        (3e-21, "3e-21 S"),
        (math.inf, "inf S"),
        (math.nan, "nan S"),
    ],
)
def test_engineering(value: float, text: str) -> None:
    assert engineering(value, "S") == text
