"""YAML files into typed specs: unknown keys refused, every problem named with its place and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from circuitsim.errors import SpecError
from circuitsim.units import parse_quantity
from circuitsim.yaml_files import read_yaml

__all__ = ["Inconsistent", "Positive", "Quantity", "Spec", "parse_document", "read_document"]

S = TypeVar("S", bound="Spec")


def _quantity(value: object) -> float:
    try:
        return parse_quantity(value)
    except SpecError as error:
        hint = f". {error.remedy}" if error.remedy else ""
        raise ValueError(f"{error.rule}{hint}") from None
    except OverflowError:
        raise ValueError("must be finite") from None


_SCHEMA = {
    "anyOf": [{"type": "number"}, {"type": "string", "description": "with a SPICE suffix: 10k, 2meg, 1u"}]
}
Quantity = Annotated[float, BeforeValidator(_quantity), WithJsonSchema(_SCHEMA)]
"""A float in SI units, or text with a SPICE suffix."""
Positive = Annotated[float, Field(gt=0), BeforeValidator(_quantity), WithJsonSchema(_SCHEMA)]
"""A quantity greater than zero."""


class Spec(BaseModel):
    """Base of all specs: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Inconsistent(ValueError):
    """What a spec's own checks raise: problems that name their fields, as seen from that spec."""

    def __init__(self, problems: Sequence[SpecError]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        SpecError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    document = read_yaml(path)
    if document is None:
        raise SpecError("is empty", file=path)
    if not isinstance(document, dict):
        raise SpecError("must hold keys and values", file=path, value=type(document).__name__)
    return document


def parse_document(model: type[S], document: Mapping[str, Any], *, file: object = None) -> S:
    """Check a mapping against a spec type.

    Raises:
        SpecError: with one line per problem: file, field, rule, value, remedy.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        problems = [p for item in error.errors(include_url=False) for p in _problems(model, item, file)]
        raise SpecError.all_of(problems) from None


def _problems(model: type[BaseModel], item: Any, file: object) -> list[SpecError]:
    cause = item.get("ctx", {}).get("error")
    if not isinstance(cause, Inconsistent):
        return [_problem(model, item, file)]
    above = [str(part) for part in item["loc"]]
    found = []
    for p in cause.problems:
        field = ".".join([*above, *([p.field] if p.field else [])])
        found.append(SpecError(p.rule, file=file, field=field, value=p.value, remedy=p.remedy))
    return found


def _problem(model: type[BaseModel], item: Any, file: object) -> SpecError:
    # Pydantic puts the tag of a discriminated union into the path; the file has no such key.
    path = [str(part) for part in item["loc"]]
    keys, tags = _walk(model, list(item["loc"]))
    field = ".".join(part for k, part in enumerate(path) if k not in tags)
    kind = item["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], keys, n=1)
        meant = f"Did you mean `{close[0]}`? " if close else ""
        return SpecError(
            "unknown key", file=file, field=field, remedy=f"{meant}Known keys: {', '.join(sorted(keys))}."
        )
    if kind == "missing":
        return SpecError("is required", file=file, field=field)
    message = item["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("Input tag", "kind")
    if kind == "union_tag_invalid":
        message = f"unknown kind; known: {item['ctx']['expected_tags']}"
        return SpecError(message, file=file, field=field, value=item["ctx"]["tag"])
    if kind == "union_tag_not_found":
        return SpecError("needs a `kind`", file=file, field=field, value=item["input"])
    return SpecError(message, file=file, field=field, value=item["input"])


def _walk(model: type[BaseModel], path: list[Any]) -> tuple[list[str], set[int]]:
    """Return the keys that are known where ``path`` ends, and the places of union tags in it."""
    current: Any = model
    tags: set[int] = set()
    for place, part in enumerate(path[:-1]):
        models = _models(current)
        if isinstance(part, str) and not any(part in m.model_fields or part in _aliases(m) for m in models):
            tagged = [
                m
                for m in models
                if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)
            ]
            if tagged:
                tags.add(place)
                current = tagged[0]
                continue
        annotations = []
        for m in models:
            name = _aliases(m).get(part, part)
            if name in m.model_fields:
                annotations.append(m.model_fields[name].annotation)
        if annotations:
            current = annotations[0] if len(annotations) == 1 else tuple(annotations)
    keys: list[str] = []
    for m in _models(current):
        keys += [field.alias or name for name, field in m.model_fields.items()]
    return keys, tags


def _aliases(model: type[BaseModel]) -> dict[Any, str]:
    return {field.alias: name for name, field in model.model_fields.items() if field.alias}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    parts = annotation if isinstance(annotation, tuple) else get_args(annotation)
    return [model for part in parts for model in _models(part)]
