"""What a sweep file says: a base experiment, axes through it, how many dies, what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from circuitsim.errors import SpecError
from circuitsim.network import Quantity, Spec, parse_document, read_document
from circuitsim.network.documents import Inconsistent
from circuitsim.study.experiment import BlockName
from circuitsim.units import parse_quantity

__all__ = ["AxisRange", "RandomDesign", "SweepSpec", "label_of", "load_sweep", "number_of"]

RESERVED = ("point", "estimator", "epoch", "error")
"""Columns that every table of results has; ``die`` too, which may be swept where there is one die a point."""

_AXIS = {
    "anyOf": [
        {"type": "array", "minItems": 1, "description": "values"},
        {
            "type": "object",
            "description": "values by label: partial documents, or {low, high, log, integer} to draw from",
        },
    ]
}
Axis = Annotated[Any, WithJsonSchema(_AXIS)]


class AxisRange(Spec):
    """Where a random design draws an axis: evenly from ``low`` ... ``high``, or evenly in its logarithm.

    ``integer`` draws whole numbers, both ends among them.
    """

    low: Quantity
    high: Quantity
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _a_range(self) -> AxisRange:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high: {self.low:g} >= {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0: low is {self.low:g}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("the ends of a range of whole numbers must be whole")
        return self


class RandomDesign(Spec):
    """``random`` points, each with one draw of every axis; ``seed`` of the draws.

    Raising ``random`` adds points and leaves those before as they are.
    """

    random: Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
    seed: Annotated[int, Field(ge=0, strict=True)] = 0


class FiguresSpec(Spec):
    """``x``: the axis along which results are drawn; by default the first with numbers, or else the first."""

    x: str | None = None


class SweepSpec(Spec):
    """An experiment at many points, on many dies each. ``experiment`` is relative to the sweep's folder.

    An axis is a path into the experiment with its network and its cards inlined:
    ``network.layers.hidden.size``, ``cards.amplifier.gain``, ``estimators.0.beta``, ``estimators.*.beta``
    (of all), ``training.optimiser.step``, ``seed``; ``network``, ``deck`` and ``cards`` by themselves name
    files. It has a list of values or, to change several things at once under a label, a mapping of labels
    to partial documents (the axis then has any name). A random design can also draw from
    ``{low, high, log, integer}``.

    ``design: grid`` is the product of all axes; ``{random: 50}`` draws each axis once for each of 50 points.
    Each point is measured on ``dies`` dies: the experiment's own and those of the numbers after it.
    ``measure: training`` trains every estimator; ``gradient`` compares them to the exact gradient before
    any training.
    """

    name: BlockName
    description: str = ""
    experiment: str
    axes: Annotated[dict[str, Axis], Field(min_length=1)]
    design: Literal["grid"] | RandomDesign = "grid"
    dies: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 1
    measure: Literal["training", "gradient"] = "training"
    figures: FiguresSpec = FiguresSpec()

    @model_validator(mode="after")
    def _axes(self) -> SweepSpec:
        problems: list[SpecError] = []
        for path, axis in self.axes.items():
            problems += _axis_problems(path, axis, self)
        x = self.figures.x
        if x is not None and x not in self.axes:
            remedy = f"Axes: {', '.join(self.axes)}."
            problems.append(SpecError("is not an axis", field="figures.x", value=x, remedy=remedy))
        if problems:
            raise Inconsistent(problems)
        return self

    def ranges(self) -> dict[str, AxisRange]:
        """Return the axes that are drawn from a range."""
        return {p: AxisRange.model_validate(axis) for p, axis in self.axes.items() if _is_range(axis)}

    def is_cases(self, path: str) -> bool:
        """Whether an axis has labels with partial documents."""
        axis = self.axes[path]
        return isinstance(axis, dict) and not _is_range(axis)

    def numeric(self, path: str) -> bool:
        """Whether all values of an axis are numbers."""
        axis = self.axes[path]
        if isinstance(axis, dict):
            return _is_range(axis)
        return all(number_of(value) is not None for value in axis)


def load_sweep(path: str | Path) -> SweepSpec:
    """Read a sweep file.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    return parse_document(SweepSpec, read_document(Path(path)), file=path)


def number_of(value: Any) -> float | None:
    """Return a value as a number, None if it is none: YAML reads ``1e-3`` as text, and ``10k`` is 10,000."""
    try:
        return parse_quantity(value)
    except SpecError:
        return None


def label_of(value: Any) -> str:
    """Return a value in the words of a sweep file."""
    return value if isinstance(value, str) else json.dumps(value)


def _is_range(axis: Any) -> bool:
    return isinstance(axis, dict) and {"low", "high"} <= set(axis) and not isinstance(axis["low"], dict)


def _axis_problems(path: str, axis: Any, sweep: SweepSpec) -> list[SpecError]:
    field = f"axes.{path}"
    if path in RESERVED or not path.strip():
        rule, remedy = "is the name of a column of the results", "Choose another."
        return [SpecError(rule, field=field, value=path, remedy=remedy)]
    if path == "die" and sweep.dies > 1:
        remedy = "Leave one of the two out."
        return [SpecError("cannot be an axis where dies are counted", field=field, value=axis, remedy=remedy)]
    if isinstance(axis, list):
        if not axis:
            return [SpecError("needs at least one value", field=field, value=axis)]
        labels = [label_of(value) for value in axis]
        for k, label in enumerate(labels):
            if label in labels[:k]:
                return [SpecError("has a value twice", field=field, value=axis[k])]
        return []
    if _is_range(axis):
        if sweep.design == "grid":
            rule, remedy = (
                "only a random design draws from a range",
                "List its values, or use a random design.",
            )
            return [SpecError(rule, field=field, value=axis, remedy=remedy)]
        try:
            parse_document(AxisRange, axis)
        except SpecError as error:
            inner = f"{field}.{error.field}" if error.field else field
            return [SpecError(error.rule, field=inner, value=error.value, remedy=error.remedy)]
        return []
    if isinstance(axis, dict) and axis and all(isinstance(case, dict) for case in axis.values()):
        if not all(isinstance(label, str) for label in axis):
            return [SpecError("labels must be text", field=field, value=list(axis))]
        return []
    remedy = "Write [0, 0.05, 0.1], or {label: {training: {epochs: 5}}, ...}, or {low: 1e-3, high: 1e-1}."
    rule = "must be a list of values, labels with partial documents, or a range"
    return [SpecError(rule, field=field, value=axis, remedy=remedy)]
