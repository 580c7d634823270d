"""Random expressions: trees of operations, the same written on a tape, and their direct value."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from circuitsim.netlist.expressions import Current, Drop, Expression
from circuitsim.netlist.formulas import RULES, Operation, Tape

NODES = ("0", "a", "b", "n1.x")
SOURCES = ("va", "v.2")

SMOOTH = tuple(
    Operation[name]
    for name in (
        *("NEGATIVE", "ADD", "SUBTRACT", "MULTIPLY", "SIN", "COS", "TANH", "ATAN", "ASINH", "EXP", "SINH"),
        "COSH",
    )
)
ALL = tuple(RULES)

Tree = Any
"""A number, ``"time"``, a `Drop`, a `Current`, or an operation and its operands: (operation, tree, ...)."""


def node(name: str) -> int:
    return NODES.index(name.lower())


def source(name: str) -> int:
    return SOURCES.index(name.lower())


def inputs() -> st.SearchStrategy[Tree]:
    ends = st.tuples(st.integers(0, len(NODES) - 1), st.integers(0, len(NODES) - 1))
    drops = ends.filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Drop(*pair))
    return drops | st.integers(0, len(SOURCES) - 1).map(Current)


def numbers() -> st.SearchStrategy[float]:
    sane = st.floats(-10, 10, allow_nan=False)
    return sane | st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 3.0]) | st.floats(-1e30, 1e30, allow_nan=False)


def trees(
    operations: tuple[Operation, ...] = ALL,
    *,
    constants: st.SearchStrategy[float] = numbers(),  # noqa: B008
    leaves: int = 12,
) -> st.SearchStrategy[Tree]:
    def grown(part: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        by_count: dict[int, list[Operation]] = {}
        for operation in operations:
            by_count.setdefault(RULES[operation].operands, []).append(operation)
        return st.one_of(
            st.tuples(st.sampled_from(chosen), *[part] * count) for count, chosen in sorted(by_count.items())
        )

    return st.recursive(inputs() | constants | st.just("time"), grown, max_leaves=leaves)


def expression_of(tree: Tree) -> Expression:
    """Write a tree on a tape."""
    tape = Tape()
    formula, keys = tape.formula(_write(tree, tape))
    return Expression(formula, keys)  # type: ignore[arg-type]


def _write(tree: Tree, tape: Tape) -> int:
    if isinstance(tree, float):
        return tape.constant(tree)
    if tree == "time":
        return tape.time()
    if isinstance(tree, Drop | Current):
        return tape.input(tree)
    return tape.apply(tree[0], *(_write(part, tape) for part in tree[1:]))


def direct_value(tree: Tree, at: dict[Drop | Current, float], time: float) -> float:
    """Return a tree's value without a tape."""
    if isinstance(tree, float):
        return tree
    if tree == "time":
        return time
    if isinstance(tree, Drop | Current):
        return at[tree]
    operation, *parts = tree
    operands = [np.float64(direct_value(part, at, time)) for part in parts]
    if operation is Operation.POWER:
        operands[0] = np.abs(operands[0])
    with np.errstate(all="ignore"):
        return float(RULES[operation].value(*operands))


def head_and_rest(value: float) -> str:
    """Write a constant as a sum of two numbers of eleven digits."""
    head = float(f"{value:.10e}")
    rest = float(f"{value - head:.10e}")
    return f"({head!r} {'-' if rest < 0 else '+'} {abs(rest)!r})" if rest else repr(head)
