"""What a record holds, and under which names: fixed when the file is created."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from circuitsim.errors import RecordError

__all__ = ["SCHEMA_VERSION", "SLOTS", "ArmLayout", "ArraySpec", "Layout", "header_text"]

SCHEMA_VERSION = 1
"""Version of the file layout; raised when an older reader could misread a newer file."""

SLOTS = ("slot_a", "slot_b")
"""Checkpoints alternate between two slots, so that one is always whole."""

ArraySpec = tuple[tuple[int, ...], str]
"""Shape and NumPy dtype of one array, e.g. ``((64, 30), "float64")``."""


@dataclass(frozen=True, kw_only=True)
class ArmLayout:
    """One arm of a run: one estimator that trains on the same die.

    Args:
        name: e.g. ``"corrected-centred"``; no ``/``.
        epochs: how many epochs are planned, >= 0.
        metrics: names of the numbers kept per epoch (float64; NaN = not reached), in the unit that
            the name implies; ``/`` makes groups, as in ``"cosine/hidden.crossbar"``.
        state: checkpoint arrays, name -> (shape, dtype). Only the last checkpoint is kept.
    """

    name: str
    epochs: int
    metrics: tuple[str, ...] = ()
    state: Mapping[str, ArraySpec] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The arms and extra arrays of one record, checked on construction.

    Raises:
        RecordError: a name, shape or dtype that HDF5 cannot hold, or a name used twice.
    """

    arms: Mapping[str, ArmLayout]
    extras: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

    @classmethod
    def of(cls, arms: Sequence[ArmLayout], extras: Mapping[str, ArraySpec]) -> Layout:
        """Check and normalise what a caller asks for."""
        checked: dict[str, ArmLayout] = {}
        for arm in arms:
            _check_names("arm", [arm.name])
            if "/" in arm.name:
                raise RecordError("an arm's name must not contain '/'", object="arm", value=arm.name)
            if arm.name in checked:
                raise RecordError("two arms have the same name", object="arm", value=arm.name)
            if arm.epochs < 0:
                raise RecordError("must be zero or more", object=arm.name, field="epochs", value=arm.epochs)
            _check_names(f"{arm.name}.metrics", arm.metrics)
            _check_names(f"{arm.name}.state", list(arm.state))
            state = {
                name: (shape, dtype.str)
                for name, (shape, dtype) in _check_arrays(f"{arm.name}.state", arm.state).items()
            }
            checked[arm.name] = ArmLayout(
                name=arm.name, epochs=arm.epochs, metrics=tuple(arm.metrics), state=state
            )
        _check_names("extras", list(extras))
        return cls(arms=checked, extras=_check_arrays("extras", extras))

    def to_json(self) -> str:
        """Return the layout as JSON text; ``from_json`` reads it back."""
        arms = [
            {"name": arm.name, "epochs": arm.epochs, "metrics": arm.metrics, "state": dict(arm.state)}
            for arm in self.arms.values()
        ]
        extras = {name: (shape, dtype.str) for name, (shape, dtype) in self.extras.items()}
        return json.dumps({"arms": arms, "extras": extras})

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Read what ``to_json`` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        data = json.loads(text)
        arms = [
            ArmLayout(
                name=arm["name"],
                epochs=arm["epochs"],
                metrics=tuple(arm["metrics"]),
                state={name: (tuple(shape), dtype) for name, (shape, dtype) in arm["state"].items()},
            )
            for arm in data["arms"]
        ]
        extras = {name: (tuple(shape), dtype) for name, (shape, dtype) in data["extras"].items()}
        return cls.of(arms, extras)

    def datasets(self) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        """Yield the HDF5 path, shape and dtype of every dataset of the file."""
        byte, count, number = np.dtype("u1"), np.dtype("<i8"), np.dtype("<f8")
        yield finished_path(), (1,), byte
        yield written_path(), (len(self.extras),), byte
        for name, (shape, dtype) in self.extras.items():
            yield extra_path(name), shape, dtype
        for arm in self.arms.values():
            yield counter_path(arm.name), (1,), count
            for metric in arm.metrics:
                yield metric_path(arm.name, metric), (arm.epochs,), number
            for epoch in range(len(SLOTS)):
                for name, (shape, text) in arm.state.items():
                    yield state_path(arm.name, epoch, name), shape, np.dtype(text)


def finished_path() -> str:
    return "finished"


def written_path() -> str:
    return "extras_written"


def extra_path(name: str) -> str:
    return f"extras/{name}"


def counter_path(arm: str) -> str:
    return f"arms/{arm}/epochs_done"


def metric_path(arm: str, metric: str) -> str:
    return f"arms/{arm}/metrics/{metric}"


def state_path(arm: str, epoch: int, name: str) -> str:
    """Path of a checkpoint array in the slot that ``epoch`` (from 0) writes."""
    return f"arms/{arm}/state/{SLOTS[epoch % len(SLOTS)]}/{name}"


def header_text(header: Mapping[str, Any]) -> str:
    """Return the header as JSON text.

    Raises:
        RecordError: a value that JSON does not have, named by its place in the header.
    """
    _check_plain(header, "header")
    return json.dumps(dict(header), allow_nan=False)


def _check_plain(value: object, place: str) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError("JSON has no such number", object=place, value=value, remedy="Use null.")
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise RecordError("keys must be text", object=place, value=key)
            _check_plain(inner, f"{place}.{key}")
        return
    if isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{place}[{index}]")
        return
    raise RecordError(
        f"JSON has no type for a {type(value).__name__}",
        object=place,
        value=value,
        remedy="Convert it to text, int, float, list or dict.",
    )


def _check_names(place: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise RecordError(
                "not a usable name: parts between '/' must not be empty or dots", object=place, value=name
            )
        if name in seen:
            raise RecordError("the same name twice", object=place, value=name)
        seen.add(name)
    for name in names:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if (group := "/".join(parts[:depth])) in seen:
                raise RecordError(
                    f"'{group}' cannot be both an array and the group of '{name}'", object=place, value=group
                )


def _check_arrays(
    place: str, arrays: Mapping[str, ArraySpec]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    checked: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name, (shape, text) in arrays.items():
        sizes = tuple(int(size) for size in shape)
        if any(size < 0 for size in sizes):
            raise RecordError("a size is negative", object=place, field=name, value=shape)
        try:
            dtype = np.dtype(text)
        except (TypeError, ValueError) as error:
            raise RecordError("not a NumPy dtype", object=place, field=name, value=text) from error
        if dtype.kind not in "biufcS" or dtype.itemsize == 0 or (dtype.itemsize > 16 and dtype.kind != "S"):
            raise RecordError(
                "only numbers, booleans and fixed-length bytes can be recorded",
                object=place,
                field=name,
                value=text,
            )
        checked[name] = (sizes, dtype)
    return checked
