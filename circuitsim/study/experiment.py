"""What an experiment file says: network or deck, die, data, estimators, training. See runs/ for examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from circuitsim.data import DATA_OPTIONS
from circuitsim.errors import SpecError
from circuitsim.instrument.opening import check_address
from circuitsim.learning import EP, Adjoint, AsymEP, Dyadic, DyadicBP, Estimator, OptimiserSpec
from circuitsim.learning.readout import ReadoutSpec
from circuitsim.learning.writing import ProgrammingSpec, UpdateSpec
from circuitsim.netlist.roles import Roles, TrainableResistors
from circuitsim.network import Positive, Quantity, Spec, parse_document, read_document
from circuitsim.network.documents import Inconsistent
from circuitsim.network.spec import CostSpec
from circuitsim.solver import SolverSettings

__all__ = [
    "DataSpec",
    "EstimatorSpec",
    "ExperimentSpec",
    "InputsRole",
    "RolesSpec",
    "SolverSpec",
    "SubstrateSpec",
    "TrainableRole",
    "TrainingSpec",
    "UseSpec",
    "load_experiment",
]

Fraction = Annotated[Quantity, Field(ge=0, lt=1)]
BlockName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=64)]


def _name(value: Any) -> Any:
    # A node called 3 is a number in YAML.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _pair(value: Any) -> Any:
    pair = _list(value)
    if len(pair) not in (1, 2) or not all(isinstance(_name(node), str) for node in pair):
        raise ValueError("must be a node, or a pair of nodes [positive, negative]")
    return [*pair, "0"] if len(pair) == 1 else pair


_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string"}]}
_NAME = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
Name = Annotated[str, BeforeValidator(_name), WithJsonSchema(_NAME)]
"""The name of a node or an element."""
NodePair = Annotated[
    tuple[Name, Name],
    BeforeValidator(_pair),
    WithJsonSchema({"anyOf": [*_NAME["anyOf"], {"type": "array", "items": _NAME, "maxItems": 2}]}),
]
"""Two nodes; a single one stands for itself and ground."""
Patterns = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Gains = Annotated[
    tuple[Quantity, ...],
    Field(min_length=1),
    BeforeValidator(_list),
    WithJsonSchema({"anyOf": [*_NUMBER["anyOf"], {"type": "array", "items": _NUMBER}]}),
]


class InputsRole(Spec):
    """Voltage sources of the deck that carry the inputs, in the order of the data's columns.

    Element k of the input vector makes source k ``gain`` times its value [V]: one gain for all, or a list.
    """

    sources: Annotated[list[Name], Field(min_length=1)]
    gain: Gains = (1.0,)

    @model_validator(mode="after")
    def _one_gain_each(self) -> InputsRole:
        if len(self.gain) not in (1, len(self.sources)):
            rule = f"must be one gain, or one for each of the {len(self.sources)} sources"
            raise Inconsistent([SpecError(rule, field="gain", value=len(self.gain))])
        return self


class TrainableRole(Spec):
    """Resistors of the deck that learn: one block, called ``name`` in results.

    ``resistors`` is a pattern for their names, or several: ``Rw*``, ``Rw[12]a``; case does not count.
    ``min`` and ``max`` are their window as conductances [S]. ``initial: deck`` starts from the values in
    the deck, ``random`` from values drawn evenly from the window.
    """

    name: BlockName
    resistors: Patterns
    min: Positive
    max: Positive
    initial: Literal["deck", "random"] = "deck"

    @model_validator(mode="after")
    def _ordered(self) -> TrainableRole:
        if self.min > self.max:
            raise ValueError(f"min must not exceed max: {self.min:g} S > {self.max:g} S")
        return self


class RolesSpec(Spec):
    """What the elements of a deck are for: input sources, output nodes, resistors that learn, the cost.

    An output is a node, read against ground, or a pair of nodes [positive, negative].
    """

    inputs: InputsRole
    outputs: Annotated[list[NodePair], Field(min_length=1)]
    trainable: Annotated[list[TrainableRole], Field(min_length=1)]
    cost: CostSpec

    @model_validator(mode="after")
    def _named_once(self) -> RolesSpec:
        names = [entry.name for entry in self.trainable]
        for k, name in enumerate(names):
            if name in names[:k]:
                rule = "is the name of two entries"
                raise Inconsistent([SpecError(rule, field=f"trainable.{k}.name", value=name)])
        return self

    def roles(self) -> Roles:
        gains = self.inputs.gain
        return Roles(
            inputs=tuple(self.inputs.sources),
            input_gain=gains if len(gains) > 1 else gains * len(self.inputs.sources),
            outputs=tuple(self.outputs),
            trainable=tuple(
                TrainableResistors(
                    name=entry.name,
                    patterns=tuple(entry.resistors),
                    g_min=entry.min,
                    g_max=entry.max,
                    initial=entry.initial,
                )
                for entry in self.trainable
            ),
        )


class DataSpec(Spec):
    """The samples, and how many of them are held out: of every class alike where there are classes.

    ``set``: ``digits``, 8 x 8 pixels in 10 classes; ``mnist`` and ``fashion_mnist``, 28 x 28 pixels in 10
    classes, of whose published training and test samples ``train_samples`` and ``test_samples`` take the
    first; ``xor``, the four corners of -1 ... 1 squared in 2 classes, which all are training and test
    samples; ``product``, ``samples`` (400) pairs from -1 ... 1 squared with their product as the wanted
    output. Pixels are ``signed``, -1 ... 1, or ``unit``, 0 ... 1. Or ``file``, a CSV file beside the
    experiment: columns ``inputs``, and either a column ``label`` of classes or columns ``targets`` of
    wanted outputs.

    A wanted output of 1 asks for ``target_gain`` [V]. ``test_fraction`` is 0.2 unless given; with 0 the
    training samples are the test samples.
    """

    set: Literal["digits", "xor", "product", "mnist", "fashion_mnist"] | None = None
    file: str | None = None
    inputs: Annotated[list[Name], Field(min_length=1)] | None = None
    targets: Annotated[list[Name], Field(min_length=1)] | None = None
    label: Name | None = None
    pixels: Literal["signed", "unit"] | None = None
    samples: Annotated[int, Field(ge=10, le=1_000_000, strict=True)] | None = None
    train_samples: Annotated[int, Field(ge=1, strict=True)] | None = None
    test_samples: Annotated[int, Field(ge=1, strict=True)] | None = None
    target_gain: Quantity = 1.0
    test_fraction: Fraction | None = None
    split_seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _digits_by_default(cls, document: Any) -> Any:
        if isinstance(document, dict) and document.get("file") is None and document.get("set") is None:
            return document | {"set": "digits"}
        return document

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        problems = []
        if self.file is None:
            for key in ("inputs", "targets", "label"):
                if getattr(self, key) is not None:
                    problems.append(SpecError("is for data from a file", field=key, value=getattr(self, key)))
        else:
            if self.set is not None:
                problems.append(SpecError("give a set or a file, not both", field="set", value=self.set))
            if self.inputs is None:
                rule, remedy = "is required with a file", "Name the columns of the inputs."
                problems.append(SpecError(rule, field="inputs", value=None, remedy=remedy))
            if (self.targets is None) == (self.label is None):
                rule = "give targets for wanted outputs or label for classes: one of the two"
                problems.append(SpecError(rule, field="targets", value=self.targets))
        problems += self._options_of_others()
        if problems:
            raise Inconsistent(problems)
        return self

    def _options_of_others(self) -> list[SpecError]:
        """Return a problem for every option that this source of samples lacks."""
        problems = []
        published = self.set in ("mnist", "fashion_mnist")
        keys = ["pixels", "train_samples", "test_samples"]
        if published:
            keys += ["samples", "test_fraction", "split_seed"]
        for key in keys:
            value = getattr(self, key)
            if value is None or key in DATA_OPTIONS.get(self.set or "", ()):
                continue
            rule, remedy = f"is no option of {self.set or 'a file'}", None
            if published:
                rule = f"is no option of {self.set}: its test samples are published apart from the others"
                remedy = "Leave it out; train_samples and test_samples take fewer of them."
            problems.append(SpecError(rule, field=key, value=value, remedy=remedy))
        return problems

    def options(self) -> dict[str, Any]:
        """Return what is given for the split and for the set, by the names of its function's arguments."""
        keys = ("test_fraction", "split_seed") if self.set is None else DATA_OPTIONS[self.set]
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


class EPSpec(Spec):
    """Nudged phases only."""

    kind: Literal["ep"]
    beta: Positive = 0.01
    centred: bool = True

    def build(self) -> Estimator:
        return EP(beta=self.beta, centred=self.centred)


class AsymEPSpec(Spec):
    """The corrected phase."""

    kind: Literal["asymep"]
    beta: Positive = 0.01
    centred: bool = True

    def build(self) -> Estimator:
        return AsymEP(beta=self.beta, centred=self.centred)


class DyadicSpec(Spec):
    """The doubled network."""

    kind: Literal["dyadic"]
    beta: Positive = 1.0

    def build(self) -> Estimator:
        return Dyadic(beta=self.beta)


class DyadicBPSpec(Spec):
    """The clocked pipeline; without ``steps`` twice the number of layers."""

    kind: Literal["dyadic_bp"]
    steps: Annotated[int, Field(ge=1)] | None = None

    def build(self) -> Estimator:
        return DyadicBP(steps=self.steps)


class AdjointSpec(Spec):
    """The exact gradient, on a computer."""

    kind: Literal["adjoint"]

    def build(self) -> Estimator:
        return Adjoint()


EstimatorSpec = Annotated[
    EPSpec | AsymEPSpec | DyadicSpec | DyadicBPSpec | AdjointSpec, Field(discriminator="kind")
]


class TrainingSpec(Spec):
    """Epochs, samples per step, and the optimiser. ``probe`` samples measure gradient alignment."""

    epochs: Annotated[int, Field(ge=1, strict=True)] = 15
    batch: Annotated[int, Field(ge=1, strict=True)] = 32
    optimiser: OptimiserSpec = OptimiserSpec()
    probe: Annotated[int, Field(ge=1, strict=True)] = 64


class SolverSpec(Spec):
    """How to solve; see `SolverSettings`."""

    method: Literal["auto", "general", "layered", "wired"] = "auto"
    precision: Literal["float64", "float32"] = "float64"
    relative_tolerance: Positive = 1e-11
    max_iterations: Annotated[int, Field(ge=1, strict=True)] = 200

    def settings(self) -> SolverSettings:
        return SolverSettings(
            method=self.method,
            precision=self.precision,
            relative_tolerance=self.relative_tolerance,
            max_iterations=self.max_iterations,
            check=False,
        )


class UseSpec(Spec):
    """Where a network learns, and what its die has to do with it.

    ``in_situ``: on the die. ``transfer``: on an ideal circuit, in software; the conductances are then
    written to the die. ``noise_aware``: likewise, but every step meets a die of its own, ``noise`` times as
    noisy as the card's. ``carried``: on the die ``from_die``, whose conductances are then written to
    this one. After a transfer ``fine_tune`` more epochs learn on the die.
    """

    kind: Literal["in_situ", "transfer", "noise_aware", "carried"] = "in_situ"
    from_die: Annotated[int, Field(ge=0, strict=True)] | None = None
    noise: Annotated[Quantity, Field(ge=0, le=10)] = 1.0
    fine_tune: Annotated[int, Field(ge=0, strict=True)] = 0

    @model_validator(mode="after")
    def _fits(self) -> UseSpec:
        problems = []
        if (self.kind == "carried") != (self.from_die is not None):
            rule = "is for kind carried, which needs it"
            problems.append(SpecError(rule, field="from_die", value=self.from_die))
        if self.kind == "in_situ" and self.fine_tune:
            remedy = "Give training.epochs instead."
            rule = "in situ learning is on the die already"
            problems.append(SpecError(rule, field="fine_tune", value=self.fine_tune, remedy=remedy))
        if self.kind != "noise_aware" and self.noise != 1:
            problems.append(SpecError("is for kind noise_aware", field="noise", value=self.noise))
        if problems:
            raise Inconsistent(problems)
        return self


def _addressed(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


class SubstrateSpec(Spec):
    """What an experiment learns on, seen through its readings alone; an address by itself will do.

    ``address``: ``simulated``, a die of the experiment's cards behind converters; ``visa:RESOURCE``, an
    instrument, e.g. one that ``circuitsim serve`` makes; ``mock:FILE``, a simulated die with what
    ``circuitsim calibrate`` measured; ``python:MODULE:FUNCTION``, a function of yours that returns a
    `Substrate`. ``updates: host`` reads, computes and programs; ``board`` leaves learning to circuits at the
    devices. ``timeout`` [s]: how long an instrument may take to answer.
    """

    address: str
    updates: Literal["host", "board"] = "host"
    timeout: Positive = 10.0

    @field_validator("address")
    @classmethod
    def _known(cls, address: str) -> str:
        try:
            check_address(address)
        except SpecError as error:
            raise ValueError(f"{error.rule}. {error.remedy}") from error
        return address


def _cards(value: Any) -> Any:
    if value is None:
        return ()
    return tuple(map(_worded, value)) if isinstance(value, (list, tuple)) else (_worded(value),)


def _worded(value: Any) -> Any:
    # YAML 1.1 reads the words on and off as true and false, which JSON would keep as other words.
    if not isinstance(value, Mapping):
        return value
    words = {True: "on", False: "off"}
    return {words[key] if isinstance(key, bool) else key: _worded(item) for key, item in value.items()}


Cards = Annotated[
    tuple[str | dict[str, Any], ...],
    BeforeValidator(_cards),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object"},
                {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
            ]
        }
    ),
]
"""Names of cards, files, mappings of single values: one of them, or a list."""


class ExperimentSpec(Spec):
    """One experiment: every estimator learns on the same die from the same conductances.

    The circuit comes from a ``network`` description, or from a SPICE ``deck`` with the ``roles`` of its
    elements. ``network`` and ``deck`` are files, relative to the experiment's own folder.

    ``cards`` describes the die: names of shipped cards, files, mappings that change single values, or a
    list of these. ``die`` is the die's own seed; that of the experiment unless given. ``window: card`` gives
    the programmable devices the conductance window that the card holds for: the network's conductances,
    its cost's included, are scaled to it. ``use`` says where the network learns, ``programming`` how
    conductances are written, ``update`` how steps of learning reach the devices, ``readout`` how voltages
    are read; test samples are measured ``age`` [s] after the last write.

    Without a ``substrate`` the run looks inside the die that it simulates: exact gradients, residuals,
    power. With one it sees what hardware shows, and compares with the ideal circuit.
    """

    name: BlockName
    description: str = ""
    network: str | None = None
    deck: str | None = None
    roles: RolesSpec | None = None
    substrate: Annotated[
        SubstrateSpec | None,
        BeforeValidator(_addressed),
        WithJsonSchema({"anyOf": [{"type": "string"}, SubstrateSpec.model_json_schema(), {"type": "null"}]}),
    ] = None
    cards: Cards = ()
    die: Annotated[int, Field(ge=0, strict=True)] | None = None
    window: Literal["network", "card"] = "network"
    use: UseSpec = UseSpec()
    programming: ProgrammingSpec = ProgrammingSpec()
    update: UpdateSpec = UpdateSpec()
    readout: ReadoutSpec = ReadoutSpec()
    age: Annotated[Quantity, Field(ge=0)] = 0.0
    data: DataSpec = DataSpec()
    estimators: Annotated[list[EstimatorSpec], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    solver: SolverSpec = SolverSpec()
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    @model_validator(mode="after")
    def _one_circuit(self) -> ExperimentSpec:
        problems = []
        if self.network is None and self.deck is None:
            remedy = "Name a network description, or a deck with its roles."
            problems.append(SpecError("a network or a deck is required", field="network", remedy=remedy))
        elif self.network is not None and self.deck is not None:
            problems.append(SpecError("give a network or a deck, not both", field="deck", value=self.deck))
        elif self.deck is not None and self.roles is None:
            remedy = "Say what is driven, read and trained: inputs, outputs, trainable, cost."
            problems.append(SpecError("is required with a deck", field="roles", value=None, remedy=remedy))
        elif self.network is not None and self.roles is not None:
            remedy = "A network description has its own inputs, outputs and cost."
            problems.append(SpecError("is for a deck", field="roles", remedy=remedy))
        if self.substrate is not None:
            problems += self._substrate_problems()
        if problems:
            raise Inconsistent(problems)
        return self

    def _substrate_problems(self) -> list[SpecError]:
        problems = []
        for k, estimator in enumerate(self.estimators):
            if isinstance(estimator, (AdjointSpec, DyadicBPSpec)):
                rule, remedy = "is no phase that a substrate forms", "Use ep, asymep or dyadic."
                field = f"estimators.{k}.kind"
                problems.append(SpecError(rule, field=field, value=estimator.kind, remedy=remedy))
        assert self.substrate is not None
        if self.substrate.updates == "board" and self.training.optimiser.kind != "sgd":
            rule, remedy = "is not what circuits at the devices do", "Use sgd, or updates: host."
            problems.append(SpecError(rule, field="training.optimiser.kind", value="adam", remedy=remedy))
        if self.substrate.updates == "host" and self.use.kind == "in_situ" and self.update != UpdateSpec():
            rule = "is for devices that learn by themselves: a host programs conductances"
            remedy = "Use substrate: {address: ..., updates: board}, or say under programming how to write."
            problems.append(SpecError(rule, field="update", remedy=remedy))
        if self.solver.precision != "float64":
            rule = "is for runs without a substrate"
            problems.append(SpecError(rule, field="solver.precision", value=self.solver.precision))
        return problems


def load_experiment(path: str | Path) -> ExperimentSpec:
    """Read an experiment file.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    return parse_document(ExperimentSpec, read_document(Path(path)), file=path)
