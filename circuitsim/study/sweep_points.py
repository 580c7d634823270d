"""The points of a sweep: axis values put into the base experiment, and every one of them checked."""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from pydantic import BaseModel

from circuitsim.data import DataSet
from circuitsim.devices import DeviceCard, merged_cards
from circuitsim.errors import CircuitsimError, SpecError
from circuitsim.netlist import Netlist
from circuitsim.netlist.files import netlist_document
from circuitsim.network import NetworkSpec, Spec, load_network, parse_document
from circuitsim.seeds import stream
from circuitsim.study.bench import Bench, load_samples, make_bench, plain_document, prepare
from circuitsim.study.experiment import ExperimentSpec, load_experiment
from circuitsim.study.sweep_spec import AxisRange, RandomDesign, SweepSpec, label_of, load_sweep, number_of

__all__ = ["Design", "Documents", "Point", "canonical", "data_digest", "read_design"]

S = TypeVar("S", bound=Spec)

_Specs = tuple[ExperimentSpec, NetworkSpec | Netlist, DeviceCard]

_MOST_PROBLEMS = 10
_FILES = ("network", "deck", "cards")
"""Fields of an experiment that name files; what these hold is inlined."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """An experiment and all that it names but its data, as plain JSON. Either network or deck is None."""

    experiment: dict[str, Any]
    network: dict[str, Any] | None
    deck: dict[str, Any] | None
    card: dict[str, Any]

    @classmethod
    def of(cls, experiment: ExperimentSpec, circuit: NetworkSpec | Netlist, card: DeviceCard) -> Documents:
        network, deck = None, None
        if isinstance(circuit, Netlist):
            deck = plain_document(netlist_document(circuit))
        else:
            network = _dump(circuit)
        return cls(experiment=_dump(experiment), network=network, deck=deck, card=_dump(card))


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One point of a sweep.

    ``values`` are the axis values as they stand in tables: numbers, or text. ``digest`` identifies what is
    simulated, whatever the die, and ``data`` its samples; ``die`` is the number of the first.
    """

    number: int
    values: Mapping[str, float | str]
    documents: Documents
    data: str
    digest: str
    die: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """A sweep with all its points. ``folder`` is that of the experiment, to which its data are relative."""

    file: Path
    folder: Path
    sweep: SweepSpec
    base: Documents
    points: tuple[Point, ...]


def read_design(path: str | Path) -> Design:
    """Read a sweep file, make its points, and check that each of them can be built.

    Raises:
        SpecError: the sweep is wrong, or what it names; of a bad value the axis, the value and the rule.
    """
    path = Path(path)
    sweep = load_sweep(path)
    file = path.parent / sweep.experiment
    if not file.exists():
        raise SpecError(
            "names a file that does not exist",
            file=path,
            field="experiment",
            value=sweep.experiment,
            remedy="Paths are relative to the sweep's own folder.",
        )
    bench = prepare(load_experiment(file), folder=file.parent, file=file)
    base = _Base(path, file.parent, sweep, bench)
    described = Documents.of(*base.specs)
    points: list[Point] = []
    problems: dict[str, SpecError] = {}
    for number, values in enumerate(_design(sweep)):
        try:
            points.append(base.point(number, values))
        except CircuitsimError as error:
            found = base.blame(values, error)
            # A path that does not exist is one problem, however many values it has.
            problems.setdefault(found.rule if "does not exist:" in found.rule else str(found), found)
            if len(problems) == _MOST_PROBLEMS:
                break
    if problems:
        raise SpecError.all_of(list(problems.values()))
    return Design(file=path, folder=file.parent, sweep=sweep, base=described, points=tuple(points))


def canonical(document: Any) -> bytes:
    """Return a document as the one JSON text that equal documents share."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def data_digest(data: DataSet) -> str:
    """Return the SHA-256 of all samples, in hexadecimal."""
    found = hashlib.sha256(canonical([data.name, data.classes, data.held_out]))
    for array in (data.train_inputs, data.train_labels, data.test_inputs, data.test_labels):
        found.update(canonical([list(array.shape), array.dtype.str]))
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _design(sweep: SweepSpec) -> Iterator[dict[str, Any]]:
    """Yield the axis values of every point; of cases the label."""
    choices = {path: list(axis) for path, axis in sweep.axes.items() if path not in sweep.ranges()}
    if not isinstance(sweep.design, RandomDesign):
        for values in itertools.product(*choices.values()):
            yield dict(zip(choices, values, strict=True))
        return
    ranges = sweep.ranges()
    for number in range(sweep.design.random):
        drawn: dict[str, Any] = {}
        for path in sweep.axes:
            # A stream for each number, so that more points or axes leave the earlier draws alone.
            draws = stream(sweep.design.seed, "sweep", path, number)
            if path in ranges:
                drawn[path] = _between(ranges[path], float(draws.random()))
            else:
                drawn[path] = choices[path][int(draws.integers(len(choices[path])))]
        yield drawn


def _between(axis: AxisRange, share: float) -> float | int:
    low, high = axis.low, axis.high + axis.integer
    value = low * (high / low) ** share if axis.log else low + (high - low) * share
    if axis.integer:
        return min(math.floor(value), int(axis.high))
    # Six digits: a number to write down and to come back to.
    return min(max(float(f"{value:.6g}"), axis.low), axis.high)


class _Base:
    """The base experiment, into which the values of points are put."""

    def __init__(self, file: Path, folder: Path, sweep: SweepSpec, bench: Bench) -> None:
        self.file, self.folder, self.sweep = file, folder, sweep
        self.specs: _Specs = (bench.experiment, bench.circuit, bench.card)
        self._named: dict[bytes, Any] = {}
        self._data = {canonical(bench.experiment.data.model_dump(mode="json")): bench.data}
        self._hashed: tuple[DataSet | None, str] = (None, "")

    def point(self, number: int, values: Mapping[str, Any]) -> Point:
        specs, samples = self._build(values)
        documents = Documents.of(*specs)
        die = documents.experiment["die"]
        data = data_digest(samples) if samples is not self._hashed[0] else self._hashed[1]
        self._hashed = (samples, data)
        return Point(
            number=number,
            values={path: self._cell(path, value) for path, value in values.items()},
            documents=documents,
            data=data,
            digest=_digest(documents, data),
            die=int(documents.experiment["seed"] if die is None else die),
        )

    def blame(self, values: Mapping[str, Any], error: CircuitsimError) -> SpecError:
        """Return the error of a point as one about the axis whose value is refused, or about all of them."""
        guilty = dict(values)
        for path, value in values.items():
            try:
                self._build({path: value})
            except CircuitsimError as alone:
                guilty, error = {path: value}, alone
                break
        field, got = "axes", ", ".join(f"{path}: {label_of(value)}" for path, value in guilty.items())
        if len(guilty) == 1:
            field = f"axes.{next(iter(guilty))}"
            [got] = guilty.values()
        if not error.field and "\n" in error.rule:
            return SpecError(f"{label_of(got)}: {error.rule}", file=self.file, field=field)
        rule = error.rule
        inner = ".".join(part for part in (error.object, error.field) if part)
        if inner and f"axes.{inner}" != field:
            rule = f"{inner}: {rule}"
            if error.value is not None and error.value != got:
                rule += f" ({label_of(error.value)})"
        return SpecError(rule, file=self.file, field=field, value=got, remedy=error.remedy)

    def _cell(self, path: str, value: Any) -> float | str:
        if self.sweep.numeric(path):
            number = number_of(value)
            assert number is not None
            return int(value) if isinstance(value, int) else number
        return label_of(value)

    def _build(self, values: Mapping[str, Any]) -> tuple[_Specs, DataSet]:
        """Return what a point is made of; of axes that are not given the base's own values.

        Raises:
            CircuitsimError: its first die cannot be made.
        """
        assignments: list[tuple[list[str], Any]] = []
        for path, value in values.items():
            if self.sweep.is_cases(path):
                assignments += _leaves([], self.sweep.axes[path][value])
            else:
                assignments.append((path.split("."), value))
        # A file replaces a whole document, which single values then change.
        assignments.sort(key=lambda item: not (len(item[0]) == 1 and item[0][0] in _FILES))
        experiment, circuit, card = self.specs
        edits: dict[str, list[tuple[list[str], Any]]] = {"experiment": [], "network": [], "cards": []}
        for parts, value in assignments:
            root = parts[0]
            if len(parts) == 1 and root in _FILES:
                edits["experiment"].append((parts, value))
                if root == "cards":
                    card = self._cards(value)
                elif value is not None:
                    circuit = self._file(root, value)
            elif root in ("network", "cards"):
                edits[root].append((parts[1:], value))
            else:
                edits["experiment"].append((parts, value))
        experiment = _edited(experiment, edits["experiment"], "")
        if edits["network"]:
            if not isinstance(circuit, NetworkSpec):
                raise SpecError(
                    "the experiment has a deck", remedy="Its own fields can be swept: roles, data."
                )
            circuit = _edited(circuit, edits["network"], "network.")
        if edits["cards"]:
            card = _edited(card, edits["cards"], "cards.")
        samples = self._samples(experiment)
        make_bench(experiment, circuit, card, samples, file=None)
        self._check_substrate(experiment)
        if self.sweep.measure == "gradient" and experiment.use.kind != "in_situ":
            rule, remedy = "has no gradient on the die before training", "Use in_situ, or measure: training."
            raise SpecError(rule, field="use.kind", value=experiment.use.kind, remedy=remedy)
        return (experiment, circuit, card), samples

    def _check_substrate(self, experiment: ExperimentSpec) -> None:
        """Refuse what would give the same numbers under other names, or other numbers under the same."""
        if experiment.substrate is None:
            return
        address, remedy = experiment.substrate.address, None
        kind = address.partition(":")[0]
        if kind == "mock":
            rule = "can be trained on, not swept: what it stands for may change under its name"
            remedy = "Sweep over dies of the calibration's card instead."
        elif kind != "simulated" and self.sweep.dies > 1:
            rule, remedy = "is one die", "Set dies to 1, or use substrate: simulated."
        else:
            return
        raise SpecError(rule, field="substrate", value=address, remedy=remedy)

    def _file(self, field: str, name: Any) -> Any:
        """Read a file that a value names."""
        known = canonical([field, name])
        if known not in self._named:
            if not isinstance(name, str) or not (self.folder / name).exists():
                raise SpecError(
                    "names a file that does not exist",
                    field=field,
                    value=name,
                    remedy="Paths are relative to the experiment's own folder.",
                )
            if field == "network":
                self._named[known] = load_network(self.folder / name)
            else:
                from circuitsim.spice.reader import read_deck

                self._named[known] = read_deck(self.folder / name).netlist
        return self._named[known]

    def _cards(self, value: Any) -> DeviceCard:
        """Return the card of a value like that of an experiment's ``cards``."""
        known = canonical(["cards", value])
        if known not in self._named:
            changed = _edited(self.specs[0], [(["cards"], value)], "")
            self._named[known] = merged_cards(changed.cards, self.folder)
        return self._named[known]

    def _samples(self, experiment: ExperimentSpec) -> DataSet:
        known = canonical(experiment.data.model_dump(mode="json"))
        if known not in self._data:
            self._data[known] = load_samples(experiment.data, self.folder)
        return self._data[known]


def _dump(spec: Spec, **options: Any) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, **options)


def _digest(documents: Documents, data: str) -> str:
    """Return what identifies a point: all that its numbers depend on but the die."""
    unread = {"name", "description", "die", *_FILES}
    experiment = {key: value for key, value in documents.experiment.items() if key not in unread}
    if experiment.get("substrate") is None:
        # A field that came later: results without it keep their names.
        experiment.pop("substrate", None)
    update = dict(experiment.get("update") or {})
    if update.get("bias") == 0:
        update.pop("bias")
        experiment["update"] = update
    parts = [experiment, documents.network, documents.deck, documents.card, data]
    return hashlib.sha256(canonical(parts)).hexdigest()


def _leaves(above: list[str], document: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    """Return the values in a partial document, each with its path; keys may be paths themselves."""
    found: list[tuple[list[str], Any]] = []
    # The kind of a thing decides which keys it has.
    for key in sorted(document, key=lambda key: key != "kind"):
        path = [*above, *str(key).split(".")]
        value = document[key]
        if isinstance(value, dict) and value:
            found += _leaves(path, value)
        else:
            found.append((path, value))
    return found


def _edited(base: S, edits: Sequence[tuple[list[str], Any]], root: str) -> S:
    """Return a spec with values at paths replaced, and checked again.

    Raises:
        SpecError: a path that does not exist, or a value that the spec refuses.
    """
    if not edits:
        return base
    document, complete = _dump(base, exclude_unset=True), _dump(base)
    for parts, value in edits:
        for keys, models in _places(base, type(base), parts, root):
            _assign(document, complete, keys, value, models)
    try:
        return parse_document(type(base), document)
    except SpecError as error:
        if not error.field:
            raise
        raise SpecError(
            error.rule, field=f"{root}{error.field}", value=error.value, remedy=error.remedy
        ) from None


Place = tuple[list[str | int], list[type[BaseModel]]]
"""Keys from the top of a document, and the specs that may stand where the last key is."""


def _places(found: Any, annotation: Any, parts: Sequence[str], root: str) -> Iterator[Place]:
    """Yield the places that a path means in a spec: several where it goes through all entries of a list.

    Raises:
        SpecError: it does not exist.
    """
    part, rest = parts[0], parts[1:]
    models = _models(annotation)
    if isinstance(found, (list, tuple)):
        if part.isdigit():
            if int(part) >= len(found):
                raise _missing(root, part, [str(k) for k in range(len(found))])
            picks, following = [int(part)], rest
        else:
            # `estimators.beta` means `estimators.*.beta`.
            picks, following = list(range(len(found))), rest if part == "*" else parts
        for k in picks:
            if not following:
                yield [k], models
                continue
            for keys, inner in _places(found[k], annotation, following, f"{root}{k}."):
                yield [k, *keys], inner
        return
    inside: Any
    if isinstance(found, dict):
        if part not in found and (rest or models):
            raise _missing(root, part, list(found))
        key, inside = part, found.get(part)
    else:
        own = [type(found)] if isinstance(found, BaseModel) else []
        # Another axis may change the kind, and with it the keys.
        others = models if not own or "kind" in own[0].model_fields else []
        spec, name = next(((m, n) for m in (*own, *others) if (n := _field(m, part))), (None, None))
        if spec is None or name is None:
            known = [field.alias or n for m in own or others for n, field in m.model_fields.items()]
            raise _missing(root, part, known)
        field = spec.model_fields[name]
        key, annotation = field.alias or name, field.annotation
        inside = getattr(found, name, None)
    if not rest:
        yield [key], models
        return
    for keys, inner in _places(inside, annotation, rest, f"{root}{key}."):
        yield [key, *keys], inner


def _missing(root: str, part: str, known: Sequence[str]) -> SpecError:
    above = root.removesuffix(".")
    if not known:
        return SpecError(f"does not exist: {above or 'the experiment'} has no parts")
    close = difflib.get_close_matches(part, known, n=1)
    meant = f"Did you mean `{root}{close[0]}`? " if close else ""
    rule = f"does not exist: {above or 'the experiment'} has no `{part}`"
    return SpecError(rule, remedy=f"{meant}Known: {', '.join(dict.fromkeys(known))}.")


def _field(model: type[BaseModel], part: str) -> str | None:
    """Return the name of the field that a document calls ``part``."""
    return next((name for name, field in model.model_fields.items() if part == (field.alias or name)), None)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _assign(
    document: Any, complete: Any, keys: Sequence[str | int], value: Any, models: Sequence[type[BaseModel]]
) -> None:
    """Put a value into a document in place; what is missing on the way there is added.

    ``complete`` is the same document with every default. A new ``kind`` takes away the keys that it lacks.
    """
    for key in keys[:-1]:
        complete = complete[key] if _has(complete, key) else None
        inside = document[key] if _has(document, key) else None
        if inside is None:
            if isinstance(complete, list):
                inside = copy.deepcopy(complete)
            else:
                inside = {"kind": complete["kind"]} if _has(complete, "kind") else {}
            document[key] = inside
        document = inside
    last = keys[-1]
    if last == "kind":
        for model in models:
            if "kind" in model.model_fields and value in get_args(model.model_fields["kind"].annotation):
                names = {field.alias or name for name, field in model.model_fields.items()}
                for key in set(document) - names:
                    del document[key]
                break
    document[last] = copy.deepcopy(value)


def _has(document: Any, key: str | int) -> bool:
    if isinstance(document, dict):
        return key in document
    return isinstance(document, list) and isinstance(key, int) and key < len(document)
