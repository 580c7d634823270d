"""Expressions: grammar, meaning, text, bounds."""

from __future__ import annotations

import math
import random
import re
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from random_expressions import (
    ALL,
    NODES,
    SMOOTH,
    SOURCES,
    direct_value,
    expression_of,
    head_and_rest,
    node,
    source,
    trees,
)

from circuitsim.errors import NetlistError
from circuitsim.netlist.expressions import (
    Current,
    Drop,
    Expression,
    UserFunction,
    parse_constant,
    parse_expression,
)
from circuitsim.netlist.formulas import RULES, Formula, Operation
from circuitsim.spice import NgspiceEngine

POINTS = ((0.7, -0.3), (-1.2, 0.4), (0.25, 2.5), (-0.5, -0.5))


def parse(text: str, **options: Any) -> Expression:
    return parse_expression(text, node=node, source=source, **options)


def value(text: str, a: float = 0.7, b: float = -0.3, time: float = 0.0, **options: Any) -> float:
    """Return an expression of v(a), v(b) and i(va), which is a + b."""
    expression = parse(text, **options)
    voltage = (0.0, a, b)
    x = [voltage[key.pos] - voltage[key.neg] if isinstance(key, Drop) else a + b for key in expression.inputs]
    return float(expression.formula.value(x, time))


# Meaning.

PRECEDENCE = {
    "-2^2": -4,
    "-2**2": -4,
    "2^3^2": 64,
    "2**3**2": 64,
    "2^-1": 0.5,
    "2^-3^2": 2**-9,
    "2^-2*3": 0.75,
    "2*-3^2": -18,
    "2*-3": -6,
    "2--3": 5,
    "3---2": 1,
    "2*+3": 6,
    "- -3": 3,
    "6/2*3": 9,
    "6/-2*3": -9,
    "2-3-4": -5,
    "1<2==1": 1,
    "3==2<1": 0,
    "3>2>1": 0,
    "1+1>1": 1,
    "1-1?2:3": 3,
    "1==1&&0": 0,
    "1||0&&0": 1,
    "0&&0==0": 0,
    "1>-1": 1,
    "1<-1": 0,
    "1--1>1": 1,
    "!0": 1,
    "!3==1": 0,
    "!0+5": 6,
    "!0*5": 5,
    "!2^0": 0,
    "2^!0^3": 2,
    "-!3": 0,
    "!-3": 0,
    "!!3": 1,
    "~0": 1,
    "1?2:3+4": 2,
    "(1?2:3)+4": 6,
    "1?0?5:6:7": 6,
    "0?1:0?2:3": 3,
    "1?2:0?3:4": 2,
    "0||1?5:6": 5,
    "0.5&&0.5": 1,
    "-0.3?1:2": 1,
    "1<>2": 1,
    "1 & 0 | 1": 1,
    "10k": 1e4,
    "2meg": 2e6,
    "1M": 1e-3,
    "1e3k": 1e6,
    "5V": 5,
    "1mil": 25.4e-6,
    ".5 + 5.": 5.5,
    "1E-3*1K": 1,
    "{v(a)*{2}}": 1.4,
    "'v(a)*2'": 1.4,
    '"2"': 2,
    "V( A , B )": 1.0,
    "v(0,a)": -0.7,
    "v(0)": 0,
    "v(a,A)": 0,
    "I( VA )": 0.4,
    "pi*E": math.pi * math.e,
}


@pytest.mark.parametrize("text", PRECEDENCE)
def test_grammar(text: str) -> None:
    assert value(text) == pytest.approx(PRECEDENCE[text], rel=1e-15)


FUNCTIONS = {
    "abs(v(a))": abs,
    "acos(v(a)/3)": lambda x: math.acos(x / 3),
    "acosh(v(a)+4)": lambda x: math.acosh(x + 4),
    "asin(v(a)/3)": lambda x: math.asin(x / 3),
    "asinh(v(a))": math.asinh,
    "atan(v(a))": math.atan,
    "arctan(v(a))": math.atan,
    "atanh(v(a)/3)": lambda x: math.atanh(x / 3),
    "cos(v(a))": math.cos,
    "cosh(v(a))": math.cosh,
    "exp(v(a))": math.exp,
    "ln(v(a)+4)": lambda x: math.log(x + 4),
    "log(v(a)+4)": lambda x: math.log(x + 4),
    "log10(v(a)+4)": lambda x: math.log10(x + 4),
    "sqrt(v(a)+4)": lambda x: math.sqrt(x + 4),
    "sin(v(a))": math.sin,
    "sinh(v(a))": math.sinh,
    "tan(v(a))": math.tan,
    "tanh(v(a))": math.tanh,
    "sgn(v(a))": lambda x: math.copysign(1, x),
    "u(v(a))": lambda x: float(x > 0),
    "u2(v(a))": lambda x: min(max(x, 0), 1),
    "uramp(v(a))": lambda x: max(x, 0),
    "floor(v(a))": math.floor,
    "ceil(v(a))": math.ceil,
    "int(v(a))": math.trunc,
    "nint(v(a))": round,
    "sqr(v(a))": lambda x: x * x,
    "stp(v(a))": lambda x: float(x > 0),
    "pow(v(a)+4, v(a))": lambda x: (x + 4) ** x,
}


@pytest.mark.parametrize("text", FUNCTIONS)
@pytest.mark.parametrize("a", [-2.4, -0.6, 0.3, 1.7])
def test_functions_are_those_of_the_mathematics_library(text: str, a: float) -> None:
    assert value(text, a) == pytest.approx(FUNCTIONS[text](a), rel=1e-14)


ODD = {
    "(-2)^3": 8,
    "pow(-2,0.5)": math.sqrt(2),
    "pwr(-2,3)": -8,
    "pwr(-2,0.5)": -math.sqrt(2),
    "pwr(2,3)": 8,
    "pow(0,-1)": 1e99,
    "v(a)-v(a)/1": 0,
    "1/0": 1e32,
    "-1/0": -1e32,
    "0/0": 0,
    "exp(800)": 1e99,
    "exp(-800)": 0,
    "ln(0)": -1e99,
    "log10(0)": -1e99,
    "u(0)": 0.5,
    "sgn(0)": 0,
    "sgn(-3)": -1,
    "u2(1)": 1,
    "nint(0.5)": 0,
    "nint(2.5)": 2,
    "nint(3.5)": 4,
    "nint(-1.5)": -2,
    "int(-1.5)": -1,
    "limit(5,0,2)": 2,
    "limit(-5,2,0)": 0,
    "sign(3,-2)": -3,
    "min(3,1,2)": 1,
    "max(3,1,4,2)": 4,
    "if(0,1,2)": 2,
    "ternary_fcn(1,2,3)": 2,
    "stp(0)": 0,
    "pwl(2,0,0,1,10)": 20,
    "pwl(-1,0,0,1,10)": -10,
    "table(2,0,0,1,10)": 10,
    "table(-1,0,5,1,10)": 5,
}


@pytest.mark.parametrize("text", ODD)
def test_odd_arguments(text: str) -> None:
    assert value(text) == pytest.approx(ODD[text], rel=1e-6 if "exp" in text else 1e-15)


@pytest.mark.parametrize("name", ["ln", "log10", "sqrt", "acosh"])
def test_outside_its_domain_a_function_has_no_value_and_no_slope(name: str) -> None:
    formula = parse(f"{name}(v(a))").formula
    result, slopes = formula.gradient([-2.0])
    assert np.isnan(result)
    assert np.all(np.isfinite(slopes))


@given(st.floats(-4, 4), st.floats(-4, 4))
@example(0.0, 0.0)
@example(0.0, -1.0)
@example(-1.0, 0.0)
@example(1.0, 0.0)
@example(0.0, 1.0)
def test_the_angle_of_a_point(y: float, x: float) -> None:
    # Divisors have 1e-32 added to them.
    assume(max(abs(x), abs(y)) > 1e-10 or x == y == 0)
    assert value("atan2(v(a),v(b))", y, x) == pytest.approx(
        math.atan2(y + 0.0, x + 0.0), rel=1e-14, abs=1e-15
    )


@pytest.mark.parametrize("points", [2, 3, 7, 300])
def test_tables_are_straight_lines(points: int) -> None:
    rng = np.random.default_rng(points)
    at, y = np.cumsum(rng.uniform(0.1, 1, points)) - points / 4, rng.normal(size=points)
    listed = ",".join(f"{p!r},{q!r}" for p, q in zip(at.tolist(), y.tolist(), strict=True))
    x = np.concatenate([at, np.linspace(at[0] - 1, at[-1] + 1, 50)])[:, None]
    held, extended = (parse(f"{name}(v(a),{listed})").formula.value(x) for name in ("table", "pwl"))
    inside = (x[:, 0] >= at[0]) & (x[:, 0] <= at[-1])
    expected = np.interp(x[:, 0], at, y)
    np.testing.assert_allclose(held, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(extended[inside], expected[inside], rtol=0, atol=1e-13)
    first = y[0] + (y[1] - y[0]) / (at[1] - at[0]) * (x[:, 0] - at[0])
    np.testing.assert_allclose(extended[x[:, 0] < at[0]], first[x[:, 0] < at[0]], atol=1e-13)


def test_inputs_are_the_quantities_named_once_each_in_order() -> None:
    expression = parse("i(va)*v(b) + v(b,a) - v(A)*I(VA)/v(b)")
    assert expression.inputs == (Current(0), Drop(2, 0), Drop(2, 1), Drop(1, 0))
    assert expression.formula.n_inputs == 4


def test_equal_parts_are_worked_out_once() -> None:
    once = parse("tanh(v(a)+1)").formula
    assert len(parse("tanh(v(a)+1)*tanh(1*1+V(A)*1^0)").formula) > len(once)
    assert len(parse("tanh(v(a)+1)*tanh(V(A)+(3-2))").formula) == len(once) + 1


def test_constants_fold() -> None:
    formula = parse("2*3 > 5 ? (v(a) + (sin(1)^2 + cos(1)^2)) : 1/v(b)").formula
    assert [Operation(op) for op in formula.op] == [Operation.INPUT, Operation.CONSTANT, Operation.ADD]
    assert parse("1 > 2 ? ln(-1)*v(a) : 4").formula.constant == (4.0,)


def test_a_formula_of_arrays_is_that_of_their_entries() -> None:
    formula = parse("v(a) > 0 ? exp(v(a)*v(b))*time : v(b)^3").formula
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(3, 4, 2)), rng.normal(size=(4,))
    values, slopes = formula.gradient(x, t)
    assert values.shape == (3, 4)
    assert slopes.shape == (3, 4, 2)
    np.testing.assert_array_equal(values, formula.value(x, t))
    one, one_slope = formula.gradient(x[1, 2], t[2])
    np.testing.assert_allclose(values[1, 2], one, rtol=1e-15)
    np.testing.assert_allclose(slopes[1, 2], one_slope, rtol=1e-15)


# Parameters and functions.


def test_parameters_and_functions() -> None:
    functions = {
        "gain": UserFunction(("x", "k"), "{k*x + off}"),
        "drop": UserFunction(("P", "a"), "v(a) - p + a"),
        "twice": UserFunction(("x",), "2*gain(x, 1)"),
        "min": UserFunction(("x",), "x - 1"),
        "one": UserFunction((), "1"),
    }
    parameters = {"off": 0.25, "e": 10.0, "temper": 27.0}
    options: dict[str, Any] = {"functions": functions, "parameters": parameters}
    assert value("Gain(v(a), 2)", **options) == pytest.approx(1.65)
    # Within v() the name of an argument is a node's, as ngspice has it.
    assert value("drop(v(b), 2)", **options) == pytest.approx(value("v(a) - v(b) + 2"))
    assert value("twice(gain(v(a), off))", **options) == pytest.approx(2 * (0.7 * 0.25 + 0.25 + 0.25))
    assert value("min(3) + one()", **options) == 3
    assert value("E * TEMPER", **options) == 270
    assert value("drop(v(a))", functions={"drop": UserFunction(("drop",), "v(a)-drop")}) == 0.0


def test_an_argument_is_one_value_whatever_its_operators() -> None:
    functions = {"sq": UserFunction(("x",), "x*x"), "half": UserFunction(("x",), "x/2")}
    assert value("half(1+1)^sq(1+1)", functions=functions) == 1
    assert value("8/sq(1-3)", functions=functions) == 2


CONSTANTS = {
    "2*-3^2": 18,
    "-2^2": -4,
    "(-2)^3": 8,
    "2^-3^2": 2**-6,
    "pow(-2,3)": -8,
    "pwr(-2,3)": 8,
    "5%3": 2,
    "6%4*2": 4,
    "2*7%4": 2,
    "10k + 1": 10001,
    "!2^0": 1,
    "1 ? 2 : 3": 2,
    "int(-1.5)": -1,
    "sqr(3)": 9,
    "ln(2)": math.log(2),
}


@pytest.mark.parametrize("text", CONSTANTS)
def test_parameters_are_worked_out_as_ngspice_does(text: str) -> None:
    assert parse_constant(text) == pytest.approx(CONSTANTS[text], rel=1e-15)


# Refusals.

REFUSED = {
    "": "is empty (got '')",
    "v(a)+": "ends where a value should stand (got 'v(a)+')",
    "2 3": "has no operator before '3' at character 3 (got '2 3')",
    "2*/3": "has no value before '/' at character 3 (got '2*/3')",
    "(v(a)": "lacks a ')' for '(' at character 1 (got '(v(a)')",
    "min(1,v(a)": "lacks a ')' for 'min' at character 1 (got 'min(1,v(a)')",
    "{1": "lacks a '}' for '{' at character 1 (got '{1')",
    "1)": "has no opening bracket for ')' at character 2 (got '1)')",
    "(1}": "does not close what was opened last with '}' at character 3 (got '(1}')",
    "1?2": "lacks a ':' for '?' at character 2 (got '1?2')",
    "(1?2)": "lacks a ':' for '?' at character 3 (got '(1?2)')",
    "1:2": "has a colon without a question mark ':' at character 2 (got '1:2')",
    "1,2": "has a comma outside a function ',' at character 2 (got '1,2')",
    "v(a)=1": "has '=' at character 5, which no expression holds (got 'v(a)=1')",
    "v(a)%2": "has no operator before '%' at character 5 (got 'v(a)%2')",
    "v(a,b,0)": "needs v(node) or v(node,node) instead of 'v(a,b,0)' at character 1 (got 'v(a,b,0)')",
    "v()": "needs v(node) or v(node,node) instead of 'v()' at character 1 (got 'v()')",
    "i(va,vb)": "needs i(source) instead of 'i(va,vb)' at character 1 (got 'i(va,vb)')",
    "1+k": "has an unknown name, 'k' at character 3 (got '1+k'). Known: v(node), i(source), time, pi, e.",
    "pow(2)": "needs 2 arguments, not 1, in 'pow' at character 1 (got 'pow(2)')",
    "min(2)": "needs at least 2 arguments, not 1, in 'min' at character 1 (got 'min(2)')",
    "exp()": None,
    "1x": None,
    "foo(1)": None,
    "__import__('os')": None,
    "table(v(a),1,v(b),2,3)": "needs finite constants as points in 'table' at character 1",
    "pwl(v(a),1,0,1,3)": "needs points at rising x in 'pwl' at character 1",
    "pwl(v(a),1,0,2)": None,
    "pwl(v(a),1,0,2,3,4)": "needs an x and a y for every point in 'pwl' at character 1",
    "v(a)*sqrt(0-1)": "has a part without a finite value, sqrt(-1.0) (got 'v(a)*sqrt(0-1)')",
    "1e999": None,
    "1e" + "9" * 5000: None,
    "1e300*1e300*v(a)": "has a part without a finite value, 1e+300 * 1e+300 (got",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_name_what_was_met_and_where(text: str) -> None:
    with pytest.raises(NetlistError) as caught:
        parse(text)
    expected = REFUSED[text]
    if expected is not None:
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "text", ["v(a)", "i(va)", "time", "1/0", "exp(800)", "ln(0)", "pow(-2,0.5)", "5%0", "sqrt(-1)"]
)
def test_parameters_are_finite_numbers(text: str) -> None:
    with pytest.raises(NetlistError):
        parse_constant(text)


def test_unknown_functions_are_told_what_is_known() -> None:
    with pytest.raises(
        NetlistError, match=r"unknown function, 'foo' at character 3 .*Known: abs, .*gain.*tanh"
    ):
        parse("1+foo(2)", functions={"gain": UserFunction(("x",), "x")})
    with pytest.raises(NetlistError, match=r"Known: .*width\."):
        parse("w", parameters={"width": 1.0})
    with pytest.raises(NetlistError, match=r"needs 1 arguments, not 2, in 'gain'"):
        parse("gain(1,2)", functions={"gain": UserFunction(("x",), "x")})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("(" * 100_000, "nested deeper"),
        ("(" * 2000 + "1" + ")" * 2000, "nested deeper"),
        ("-" * 50_000 + "1", "nested deeper"),
        ("abs(" * 50_000, "nested deeper"),
        ("1?" * 50_000, "nested deeper"),
        ("1?2:" * 40_000 + "1", "nested deeper"),
        ("2^-" * 50_000 + "1", "nested deeper"),
        ("1+" * 150_000 + "1", "longer than"),
        ("+".join(f"sin({k}*v(a))" for k in range(9000)), "operations"),
        (f"table(v(a){',1,1' * 2100})", "at most 4001 arguments"),
    ],
)
def test_bounds(text: str, rule: str) -> None:
    start = time.process_time()
    with pytest.raises(NetlistError, match=rule):
        parse(text)
    assert time.process_time() - start < 5


def test_functions_that_call_themselves_or_explode_are_refused() -> None:
    with pytest.raises(NetlistError, match="must not call itself"):
        parse("f(1)", functions={"f": UserFunction(("x",), "f(x)")})
    with pytest.raises(NetlistError, match="must not call itself"):
        parse("f(1)", functions={"f": UserFunction(("x",), "g(f(x))"), "g": UserFunction(("x",), "x")})
    doubling = {f"f{k}": UserFunction(("x",), f"f{k + 1}(x) - 2*f{k + 1}(x+1)") for k in range(16)}
    doubling["f16"] = UserFunction(("x",), "x")
    with pytest.raises(NetlistError, match="steps to read"):
        parse("f0(v(a))", functions=doubling)
    # A short tape whose text would not fit into the machine.
    squares = {f"f{k}": UserFunction(("x",), f"f{k + 1}(x*x)") for k in range(16)}
    squares["f16"] = UserFunction(("x",), "x")
    expression = parse("f0(v(a))", functions=squares)
    assert len(expression.formula) == 17
    with pytest.raises(NetlistError, match="when written out"):
        expression.text(NODES, SOURCES)


def test_long_sums_are_no_nesting() -> None:
    text = " + ".join(f"{k}*v(a)" for k in range(1, 3001))
    expression = parse(text)
    assert float(expression.formula.value([1.0])) == 3000 * 3001 / 2
    assert parse(expression.text(NODES, SOURCES)) == expression


VALID = [*PRECEDENCE, *ODD, "v(a)>0 ? exp(-v(a,b)/0.1)*i(va) : pwl(v(b),0,1,2,3)", "sin(2*pi*1k*time)"]


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_one_error(text: str) -> None:
    _attempt(text)


@given(
    st.sampled_from(VALID),
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from(["delete", "insert", "replace", "swap"]),
            st.sampled_from(
                [*"+-*/^<>=!~?:(),{}'\"&|%.e1a \t\\", "v(", "**", "&&", "abs(", "time", "1e9", "tanh"]
            ),
        ),
        max_size=6,
    ),
)
def test_mutated_expressions_are_expressions_or_one_error(
    text: str, mutations: list[tuple[int, str, str]]
) -> None:
    for place, kind, piece in mutations:
        k = place % (len(text) + 1)
        text = {
            "delete": text[:k] + text[k + 1 :],
            "insert": text[:k] + piece + text[k:],
            "replace": text[:k] + piece + text[k + 1 :],
            "swap": text[k:] + text[:k],
        }[kind]
    _attempt(text)


def _attempt(text: str) -> None:
    def any_node(name: str) -> int:
        return len(name)

    for read in (
        lambda: parse_expression(text, node=any_node, source=any_node, parameters={"a": 2.0}),
        lambda: parse_constant(text, parameters={"a": 2.0}),
    ):
        with suppress(NetlistError):
            found = read()
            result = (
                found
                if isinstance(found, float)
                else found.formula.value(np.full(found.formula.n_inputs, 0.3))
            )
            assert np.ndim(result) == 0


# Text.


@given(trees(), st.sampled_from([repr, head_and_rest]))
def test_text_parses_to_the_same_expression(tree: Any, number: Any) -> None:
    try:
        expression = expression_of(tree)
    except NetlistError:
        assume(False)
    text = expression.text(NODES, SOURCES, number)
    again = parse(text)
    assert again == expression
    assert hash(again) == hash(expression)
    assert again.text(NODES, SOURCES, number) == text


@pytest.mark.parametrize("text", VALID)
def test_text_of_what_was_read_reads_the_same(text: str) -> None:
    expression = parse(text)
    assert parse(expression.text(NODES, SOURCES)) == expression


def test_text_is_fit_for_people() -> None:
    def text(given_: str) -> str:
        return parse(given_).text(NODES, SOURCES)

    assert text("(v(a)+v(b))*2+((i(va)))") == "(v(a) + v(b)) * 2.0 + i(va)"
    assert text("v(a)-(v(b)-1)") == "v(a) - (v(b) - 1.0)"
    assert text("v(b,a)^2>0 ? -v(b) : tanh(-3*v(a))") == (
        "(pow(abs(v(b,a)), 2.0) > 0.0 ? -v(b) : tanh((-3.0) * v(a)))"
    )


# Calculus.


@given(trees(), st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5]) | st.floats(-3, 3), min_size=24, max_size=24))
def test_a_tape_means_what_its_tree_means(tree: Any, numbers: list[float]) -> None:
    try:
        expression = expression_of(tree)
    except NetlistError:
        assume(False)
    keys = [Drop(p, q) for p in range(4) for q in range(4) if p != q] + [Current(0), Current(1)]
    at = dict(zip(keys, numbers, strict=False))
    found = expression.formula.value([at[key] for key in expression.inputs], numbers[-1])
    # A tape has one zero.
    np.testing.assert_equal(float(found) + 0.0, direct_value(tree, at, numbers[-1]) + 0.0)


@given(
    trees(), st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e-300]) | st.floats(-3, 3), min_size=8, max_size=8)
)
def test_slopes_are_finite(tree: Any, numbers: list[float]) -> None:
    try:
        formula = expression_of(tree).formula
    except NetlistError:
        assume(False)
    slopes = formula.gradient(np.resize(numbers, formula.n_inputs))[1]
    assert np.all(np.isfinite(slopes))


_SMOOTH_AT = {
    Operation.LN: 1.3,
    Operation.LOG10: 1.3,
    Operation.SQRT: 1.3,
    Operation.ACOSH: 1.8,
    Operation.POWER: 1.3,
    Operation.ABSOLUTE: -0.7,
}
_FLAT = tuple(
    op for op in RULES if RULES[op].slopes is None and op not in (Operation.AND, Operation.OR, Operation.NOT)
)


def remainders(formula: Formula, x: np.ndarray, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return |f(x + h d) - f(x) - h f'(x) d| for each h."""
    value, slopes = formula.gradient(x)
    moved = formula.value(x + steps[:, None] * direction)
    return np.abs(moved - value - steps * float(slopes @ direction))


@pytest.mark.parametrize("operation", ALL, ids=lambda op: op.name.lower())
def test_the_slope_of_every_operation(operation: Operation) -> None:
    count = RULES[operation].operands
    drops = [Drop(1, 0), Drop(2, 0), Drop(3, 0)][:count]
    formula = expression_of((operation, *drops)).formula
    x = np.array([_SMOOTH_AT.get(operation, 0.37), 0.81, -0.55])[:count]
    steps = np.array([1e-2, 5e-3])
    coarse, fine = remainders(formula, x, np.array([1.0, 0.6, -0.8])[:count], steps)
    assert coarse < 1e-3
    assert fine < 1e-13 or 3.5 < coarse / fine < 4.5


@given(
    trees(SMOOTH, constants=st.floats(-2, 2), leaves=8), st.lists(st.floats(-1, 1), min_size=6, max_size=6)
)
def test_slopes_of_smooth_expressions(tree: Any, numbers: list[float]) -> None:
    try:
        formula = expression_of(tree).formula
    except NetlistError:
        assume(False)
    x = np.resize(numbers, formula.n_inputs)
    direction = np.resize([0.7, -0.4, 1.0], formula.n_inputs)
    value, slopes = formula.gradient(x)
    h = 1e-4
    ahead, behind = (formula.value(x + s * h * direction) for s in (1, -1))
    wide = [formula.value(x + s * 2 * h * direction) for s in (1, -1)]
    change, double = (ahead - behind) / (2 * h), (wide[0] - wide[1]) / (4 * h)
    # The difference of the two estimates is three times the error of the better.
    scale = max(abs(float(value)), abs(float(ahead)), 1e-3)
    assume(np.isfinite(double) and abs(double - change) < 1e-4 * (abs(change) + scale))
    assert float(slopes @ direction) == pytest.approx(
        float(change), abs=2 * abs(double - change) + 1e-9 * scale / h**0.5
    )


def test_slopes_at_kinks_and_ends() -> None:
    def slope(text: str, a: float) -> float:
        return float(parse(text).formula.gradient([a])[1][0])

    assert slope("sqrt(v(a))", 0.0) == 0
    assert slope("v(a)^0.5", 0.0) == 0
    assert slope("pow(v(a),2)", -0.3) == pytest.approx(-0.6)
    assert slope("v(a)^2", 0.0) == 0
    assert slope("v(a)^0", 0.0) == 0
    assert slope("ln(v(a))", 0.0) == 0
    assert slope("u(v(a))", 0.0) == 0
    assert slope("floor(v(a))", 1.0) == 0
    assert slope("v(a) > 0 ? v(a)*3 : sqrt(-v(a))", 2.0) == 3
    assert slope("exp(v(a))", 300.0) == 1e99
    assert slope("1/(1+exp(v(a)))", 300.0) == pytest.approx(-1e-99)
    assert slope("v(a) > 0 ? 1/v(a) : 0", 0.0) == 0
    assert slope("max(v(a),0)*uramp(v(a))", 2.0) == 4
    assert slope("min(v(a),1)", 1.0) == 1
    assert slope("1/v(a)", 0.0) == pytest.approx(-1e64)
    assert slope("abs(v(a))", 0.0) == 0


# ngspice.

_OTHER_DIALECTS = re.compile(
    r"~|<>|&(?!&)|table|limit|\bint\(|sign\(|stp|if\(|atan2|min\(3|max\(3|pow\(0|\"|3---2|1 & 0"
)
"""What ngspice 39 does not have, or has and means otherwise: compared as it is written back only."""
COMPARED = [
    *PRECEDENCE,
    *(text for text in ODD if text != "pow(0,-1)"),
    "table(v(a),-1,2,0.5,1,1,4)",
    "limit(v(a),-0.4,0.4)",
    "atan2(v(a),v(b))",
    "int(v(a)*3)",
    "sign(v(a),v(b))",
    "nint(v(a)*5)",
    "v(a)*v(b) - v(a)/(2+v(b)^2)",
    "-v(a)^2",
    "v(b)^3",
    "v(b)**3",
    "v(b)^2.5",
    "pow(v(b),3)",
    "pwr(v(b),3)",
    "pwr(v(b),2.5)",
    "(2+v(a))^v(b)",
    "(3+v(a))^(v(b)/2)",
    "2^v(a)^v(b)",
    "2^-v(a)",
    "v(a) ? v(b) : -v(b)",
    "v(a)>0?1:2",
    "-v(a)>0?1:2",
    "v(a)>v(b)&&v(b)>0||v(a)<-1",
    "v(a)<=-v(b)",
    "v(a)>=v(b)",
    "v(a)!=-1",
    "v(a)==v(b)",
    "!v(a)+1",
    "!(v(a)>0)*3",
    "v(a)>0 ? v(b)>0 ? 1 : 2 : v(b)>0 ? 3 : 4",
    "exp(v(a)*3)",
    "exp(v(a)*v(a)*1000)",
    "exp(-v(a)*v(a)*1000)",
    "ln(3+v(a))",
    "log(3+v(a))",
    "log10(3+v(a))",
    "sqrt(3+v(a))",
    "acos(v(a)/3)",
    "asin(v(a)/3)",
    "atanh(v(a)/3)",
    "acosh(3+v(a))",
    "asinh(v(a))",
    "atan(v(a)*10)",
    "sin(v(a)*20)",
    "cos(v(a)*20)",
    "tan(v(a))",
    "sinh(v(a)*5)",
    "cosh(v(a)*5)",
    "tanh(v(a)*3)",
    "min(v(a),v(b))",
    "max(v(a),v(b))",
    "max(min(v(a),0.5),-0.5)",
    "u(v(a))",
    "u2(v(a))",
    "uramp(v(a))",
    "sgn(v(b))",
    "abs(v(a)-v(b))",
    "floor(v(a)*3)",
    "ceil(v(a)*3)",
    "pwl(v(a),-1,2,0,1,1,4,2,-3)",
    "pwl(v(a)*v(b), -1, 2, 1, 4)",
    "i(va)*2 - i(vb)",
    "v(a,b)*v(b,a)",
    "v(0,a) + v(0)",
    "1/v(a)",
    "v(a)/(v(b)-v(b))",
    "time + 1",
    "sin(2*pi*v(a))*e",
    "ternary_fcn(v(a)>0, v(b), 2*v(b))",
    "10k*v(a) + 2meg*v(b)",
    "abs(-2)^2",
    "-abs(-2)^2",
    "min(1,max(2,v(a)))",
    "v(a)*{2}",
    "{v(a)*(v(b)+1)}",
]


def random_texts(count: int) -> list[str]:
    """Return expressions with next to no brackets, so that precedence decides."""
    rng = random.Random(5)
    operators = ["+", "-", "*", "/", "^", "**", "<", ">", "<=", ">=", "==", "!=", "&&", "||"]
    found = []
    for _ in range(count):
        text = ""
        for k in range(rng.randint(3, 7)):
            if k:
                text += rng.choice(operators)
            # ngspice's own reader trips over most signs in a row.
            text += rng.choice(["", "", "", "-", "!"]) if not text.endswith(("<", ">", "-", "+")) else ""
            text += rng.choice(["v(a)", "v(b)", "2", "3", "0.5", "(v(a)+v(b))", "abs(v(b))", "1"])
        found.append(f"{text}?{rng.randint(1, 3)}+v(a):{text}" if rng.random() < 0.3 else text)
    return found


def within_range(formula: Formula, x: ArrayLike) -> bool:
    """Return whether ngspice evaluates a formula and its slopes without an error."""
    columns = (formula.op, formula.a, formula.b, formula.c, formula.constant)
    parts = [
        float(Formula(*(column[: k + 1] for column in columns), formula.n_inputs).value(x))
        for k in range(len(formula))
    ]
    powers = [k for k, op in enumerate(formula.op) if op == Operation.POWER]
    singular = any(parts[formula.a[k]] == 0 and parts[formula.b[k]] < 1 for k in powers)
    return bool(np.all(np.isfinite(parts)) and max(map(abs, parts)) < 1e98 and not singular)


def at_point(text: str, k: int) -> str:
    """Return an expression of the nodes and sources of point k."""
    return re.sub(
        r"\b(v|i)\(([^)]*)\)",
        lambda m: f"{m[1]}({re.sub('[abAB]', lambda name: f'{name[0]}{k}', m[2])})",
        text,
        flags=re.IGNORECASE,
    )


@pytest.mark.ngspice
def test_expressions_are_worth_what_ngspice_makes_of_them(ngspice: str) -> None:
    """As they were written and as they are written back, at four points each, in one deck."""
    lines = ["* expressions", ".options reltol=1e-12 vntol=1e-15 abstol=1e-18"]
    for k, (a, b) in enumerate(POINTS):
        lines += [f"va{k} a{k} 0 {a!r}", f"vb{k} b{k} 0 {b!r}", f"r{k} a{k} b{k} 2"]
    expected: dict[str, tuple[str, float]] = {}
    for text in [*COMPARED, *random_texts(60)]:
        expression = parse_expression(text, node=node, source=lambda name: ("va", "vb").index(name.lower()))
        for k, (a, b) in enumerate(POINTS):
            voltage, current = (0.0, a, b), (-(a - b) / 2, (a - b) / 2)
            x = [
                voltage[key.pos] - voltage[key.neg] if isinstance(key, Drop) else current[key.source]
                for key in expression.inputs
            ]
            result = float(expression.formula.value(x))
            # ngspice gives up where an iterate, the first at 0 V, is out of range.
            if not (
                within_range(expression.formula, x) and within_range(expression.formula, np.zeros(len(x)))
            ):
                continue
            names = ("0", f"a{k}", f"b{k}")
            written = expression.text(names, (f"va{k}", f"vb{k}"), head_and_rest)
            for form in (written, *([] if _OTHER_DIALECTS.search(text) else [at_point(text, k)])):
                output = f"n{len(expected)}"
                expected[output] = (f"{text} at {a}, {b} as {form}", result)
                lines.append(f"b{output} {output} 0 v={form}")
    solution = NgspiceEngine(program=ngspice, timeout=60.0).solve("\n".join([*lines, ".op", ".end"]) + "\n")
    wrong = [
        (label, value, solution.node_voltage[output])
        for output, (label, value) in expected.items()
        if not math.isclose(solution.node_voltage[output], value, rel_tol=1e-9, abs_tol=1e-12)
    ]
    assert not wrong, wrong[:10]
    assert len(expected) > 1000


@pytest.mark.ngspice
def test_parameters_are_worth_what_ngspice_makes_of_them(ngspice: str) -> None:
    texts = [
        *CONSTANTS,
        "-5%3",
        "2*7%4+1",
        "sgn(-2)*abs(-3)",
        "1>0 ? 2 : 3",
        "nint(2.5)",
        "pow(2,-2)",
        "1-2-3^2",
    ]
    texts += [
        "10k/2meg",
        "3*(2-4)",
        "2**-1",
        "min(1,2)-max(3,4)",
        "exp(-1)*log(10)",
        "floor(-1.5)+ceil(-1.5)",
    ]
    lines = ["* parameters", *(f".param p{k}={{{text}}}" for k, text in enumerate(texts))]
    for k in range(len(texts)):
        lines += [f"v{k} n{k} 0 {{p{k}}}", f"r{k} n{k} 0 1"]
    solution = NgspiceEngine(program=ngspice, timeout=60.0).solve("\n".join([*lines, ".op", ".end"]) + "\n")
    for k, text in enumerate(texts):
        assert solution.node_voltage[f"n{k}"] == pytest.approx(parse_constant(text), rel=1e-12), text
