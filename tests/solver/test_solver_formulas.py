"""The kernel of formulas against its NumPy twin, compiled and interpreted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from interpreted import interpreted
from random_expressions import SMOOTH, expression_of, node, source, trees

from circuitsim.errors import NetlistError
from circuitsim.netlist.expressions import Drop, parse_expression
from circuitsim.netlist.formulas import RULES, Formula, Operation
from circuitsim.solver.kernels.formulas import formula_value_and_slopes

HERE = Path(__file__).resolve().parent

ARGUMENTS = (-300.0, -2.5, -1.0, -0.5, -1e-9, 0.0, 1e-9, 0.3, 0.5, 1.0, 1.5, 2.5, 40.0, 228.0, 800.0)


class Concatenated:
    """Formulas after each other, as a kernel takes them."""

    def __init__(self, formulas: list[Formula]) -> None:
        self.columns = [
            np.array([entry for f in formulas for entry in getattr(f, name)], dtype=np.int64)
            for name in ("op", "a", "b", "c")
        ]
        self.constant = np.array([entry for f in formulas for entry in f.constant])
        self.begin = np.cumsum([0, *(len(f) for f in formulas)]).tolist()
        self.longest = max(len(f) for f in formulas)

    def run(
        self, which: int, x: np.ndarray, x_begin: int, n_inputs: int, time: float, slopes: np.ndarray
    ) -> float:
        # What the work arrays held before must not matter.
        y, bar = (np.full(self.longest, np.nan) for _ in range(2))
        begin, end = self.begin[which], self.begin[which + 1]
        with np.errstate(all="ignore"):
            return float(
                formula_value_and_slopes(
                    *self.columns, self.constant, begin, end, x, x_begin, n_inputs, time, y, bar, slopes
                )
            )


def compiled(formula: Formula, x: np.ndarray, time: float = 0.0) -> tuple[float, np.ndarray]:
    slopes = np.full(formula.n_inputs, np.nan)
    value = Concatenated([formula]).run(0, np.asarray(x, dtype=float), 0, formula.n_inputs, time, slopes)
    return value, slopes


def every_operation() -> list[float]:
    """Return value and slopes of each operation on odd and plain arguments."""
    found: list[float] = []
    for operation, rule in RULES.items():
        formula = expression_of((operation, *[Drop(1, 0), Drop(2, 0), Drop(3, 0)][: rule.operands])).formula
        for x in ARGUMENTS:
            for others in ((0.5, -1.0), (0.0, 2.0), (x, 0.0)):
                value, slopes = compiled(formula, np.array([x, *others][: rule.operands]))
                found += [value, *slopes.tolist()]
    return found


@pytest.mark.parametrize("operation", RULES, ids=lambda op: op.name.lower())
def test_every_operation_is_that_of_the_twin(operation: Operation) -> None:
    count = RULES[operation].operands
    formula = expression_of((operation, *[Drop(1, 0), Drop(2, 0), Drop(3, 0)][:count])).formula
    for x in ARGUMENTS:
        for others in ((0.5, -1.0), (0.0, 2.0), (x, 0.0), (-x, 1.0), (2.0, x)):
            at = np.array([x, *others][:count])
            value, slopes = compiled(formula, at)
            expected, expected_slopes = formula.gradient(at)
            # Two mathematics libraries, each right to a few units in the last place.
            np.testing.assert_allclose(value, expected, rtol=2e-15, atol=1e-300)
            np.testing.assert_allclose(slopes, expected_slopes, rtol=4e-15, atol=1e-300)


@given(
    trees(
        tuple(op for op in SMOOTH if op not in (Operation.EXP, Operation.SINH, Operation.COSH)),
        constants=st.floats(-2, 2),
        leaves=20,
    ),
    st.lists(st.floats(-2, 2), min_size=9, max_size=9),
)
def test_random_tapes_are_those_of_the_twin(tree: Any, numbers: list[float]) -> None:
    try:
        formula = expression_of(tree).formula
    except NetlistError:
        assume(False)
    x = np.resize(numbers[:-1], formula.n_inputs)
    value, slopes = compiled(formula, x, numbers[-1])
    expected, expected_slopes = formula.gradient(x, numbers[-1])
    # Sines of large numbers multiply the rounding of their arguments.
    parts = [np.abs(y).max(initial=1.0) for y in formula._forward(*formula._arguments(x, numbers[-1]))]
    assume(max(parts) < 1e3)
    np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-9, atol=1e-9)


TEXTS = (
    "v(a) > 0 ? exp(v(a)*v(b)) : ln(-v(a))",
    "3.5",
    "i(va)*tanh(v(a,b)) - i(v.2)^2 + v(a)*v(a)",
    "sin(time)*v(n1.x)",
    "pwl(v(b),-1,0,0,1,2,-3)*v(b)",
)


def test_sources_share_tapes_and_keep_to_their_own_inputs() -> None:
    formulas = [parse_expression(text, node=node, source=source).formula for text in TEXTS]
    tapes = Concatenated(formulas)
    rng = np.random.default_rng(2)
    of_source = rng.integers(0, len(formulas), 40)
    x_begin = np.cumsum([0, *(formulas[which].n_inputs for which in of_source)]).tolist()
    x = rng.normal(size=x_begin[-1])
    for k, which in enumerate(of_source):
        slopes = np.full(len(x), 7.0)
        formula = formulas[which]
        value = tapes.run(which, x, x_begin[k], formula.n_inputs, 0.3, slopes)
        mine = slice(x_begin[k], x_begin[k] + formula.n_inputs)
        expected, expected_slopes = formula.gradient(x[mine], 0.3)
        assert value == pytest.approx(float(expected), rel=1e-14)
        np.testing.assert_allclose(slopes[mine], expected_slopes, rtol=1e-13)
        assert np.all(np.delete(slopes, np.r_[mine]) == 7.0)


def test_the_twin_and_the_kernel_know_the_same_operations() -> None:
    leaves = {Operation.CONSTANT, Operation.INPUT, Operation.TIME}
    assert set(RULES) == set(Operation) - leaves


def test_interpreted_kernel_agrees() -> None:
    np.testing.assert_allclose(
        interpreted(__file__, "every_operation"), every_operation(), rtol=4e-15, atol=1e-300
    )
