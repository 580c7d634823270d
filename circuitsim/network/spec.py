"""What the user wants: layers, neurons, synapses, encodings and cost. No node numbers here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from circuitsim.errors import SpecError
from circuitsim.network.documents import (
    Inconsistent,
    Positive,
    Quantity,
    Spec,
    parse_document,
    read_document,
)

__all__ = [
    "BiasSpec",
    "ConductanceSpec",
    "ConnectivitySpec",
    "CostSpec",
    "CrossEntropySpec",
    "DiodeNeuron",
    "IdealDiodeNeuron",
    "InitialSpec",
    "InputSpec",
    "LayerSpec",
    "LinearNeuron",
    "NetworkSpec",
    "NeuronSpec",
    "OutputSpec",
    "ReluNeuron",
    "SquaredErrorSpec",
    "SynapseSpec",
    "TanhNeuron",
    "WiresSpec",
    "load_network",
    "parse_network",
]

NotNegative = Annotated[Quantity, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", max_length=64)]
Size = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class ConductanceSpec(Spec):
    """Conductance window of the programmable devices [S]."""

    min: NotNegative = 1e-6
    max: Positive = 1e-4

    @model_validator(mode="after")
    def _ordered(self) -> ConductanceSpec:
        if self.min > self.max:
            raise ValueError(f"min must not exceed max: {self.min:g} S > {self.max:g} S")
        return self


class InputSpec(Spec):
    """Input lines: element k of the input vector becomes ``gain * u[k]`` [V].

    ``voltage``: one line per element; ``signed_pair``: a second line at the opposite voltage, so that
    positive conductances can form either sign. Buffered synapses use both lines in either case.
    """

    size: Size
    encoding: Literal["voltage", "signed_pair"] = "voltage"
    gain: Quantity = 1.0


class LinearNeuron(Spec):
    """A node; its buffer gives ``gain * v``."""

    kind: Literal["linear"]
    gain: Quantity = 1.0


class TanhNeuron(Spec):
    """A node; its buffer is a saturating amplifier, ``saturation * tanh(gain * v / saturation)``."""

    kind: Literal["tanh"]
    gain: Quantity = 16.0
    saturation: Positive = 1.0


class DiodeNeuron(Spec):
    """A node clamped between ``-offset`` and ``+offset`` by anti-parallel Shockley diodes."""

    kind: Literal["diode"]
    offset: NotNegative = 0.0
    saturation_current: Positive = 1e-6
    slope_voltage: Positive = 0.05
    parallel_conductance: NotNegative = 1e-12
    gain: Quantity = 1.0


class ReluNeuron(Spec):
    """A node that a Shockley diode keeps from falling below ``clamp``."""

    kind: Literal["relu"]
    clamp: Quantity = 0.0
    saturation_current: Positive = 1e-6
    slope_voltage: Positive = 0.05
    parallel_conductance: NotNegative = 1e-12
    gain: Quantity = 1.0


class IdealDiodeNeuron(Spec):
    """A node that an ideal diode of ``conductance`` [S] holds on one side of ``clamp`` [V].

    ``positive``: at or above it; ``negative``: at or below it; ``alternating``: even neurons above, odd
    neurons below.
    """

    kind: Literal["ideal_relu"]
    clamp: Quantity = 0.0
    polarity: Literal["positive", "negative", "alternating"] = "positive"
    conductance: Positive = 1e6
    gain: Quantity = 1.0


NeuronSpec = Annotated[
    LinearNeuron | TanhNeuron | DiodeNeuron | ReluNeuron | IdealDiodeNeuron, Field(discriminator="kind")
]


class InitialSpec(Spec):
    """Initial conductances, in fractions of the window: drawn for each device on its own.

    ``uniform``: ``center + spread * U(-1, 1)``; ``normal``: ``center + spread * N(0, 1)``; both are
    clipped to the window.
    """

    kind: Literal["uniform", "normal"] = "uniform"
    center: Annotated[Quantity, Field(ge=0, le=1)] = 0.5
    spread: Annotated[Quantity, Field(ge=0, le=1)] = 0.25


class ConnectivitySpec(Spec):
    """Which pairs of neurons have devices: all, a random fraction, or an explicit mask of 0 and 1.

    ``mask[j][i]`` is the pair from neuron j to neuron i.
    """

    density: Annotated[Quantity, Field(gt=0, le=1)] = 1.0
    mask: list[list[Literal[0, 1]]] | None = None
    self_connections: bool = False


class BiasSpec(Spec):
    """A bias line at ``voltage`` and, where ``differential``, one at the opposite voltage."""

    voltage: Positive = 1.0
    differential: bool = True
    initial: InitialSpec = InitialSpec()
    trainable: bool = True


class LayerSpec(Spec):
    """Neurons: per node a capacitance and a leak to ground, and what makes it nonlinear."""

    size: Size
    neuron: NeuronSpec
    capacitance: NotNegative = 1e-12
    leak: NotNegative = 0.0
    bias: BiasSpec | None = None


class WiresSpec(Spec):
    """Lines with resistance: ``resistance`` [ohm] per segment, ``driver`` and ``sense`` [ohm] at their ports.

    Word lines are driven at the first or the last bit line, bit lines sensed at the first or the last word
    line. ``tile``: the largest physical array, in word lines (a differential pair has two) and bit lines. A
    larger matrix is cut into several arrays whose bit lines meet at their ports, where partial sums add up.
    """

    resistance: Positive
    driver: NotNegative = 0.0
    sense: NotNegative = 0.0
    drive_end: Literal["first", "last"] = "first"
    sense_end: Literal["first", "last"] = "last"
    tile: tuple[Size, Size] | None = None


class SynapseSpec(Spec):
    """Devices between two layers.

    ``buffered``: differential pairs driven by the +/- outputs of the source's buffer, non-reciprocal.
    ``resistive``: plain conductances between the nodes, reciprocal. ``bidirectional_amplifier``: the
    source drives through voltage gain ``forward_gain`` and takes ``back_gain`` times the current
    that flows; reciprocal where the two are equal. Without ``wires`` lines have no resistance.
    """

    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    kind: Literal["buffered", "resistive", "bidirectional_amplifier"] = "buffered"
    name: Name | None = None
    virtual_ground: bool = False
    forward_gain: Quantity | None = None
    back_gain: Quantity | None = None
    differential: bool | None = None
    wires: WiresSpec | None = None
    connectivity: ConnectivitySpec = ConnectivitySpec()
    conductance: ConductanceSpec | None = None
    initial: InitialSpec = InitialSpec()
    trainable: bool = True


class OutputSpec(Spec):
    """Which layer is read: node voltages, or differences of neighbouring nodes 2k and 2k + 1."""

    layer: Name
    encoding: Literal["single", "differential_pair"] = "single"


class SquaredErrorSpec(Spec):
    """``conductance / 2 * sum (y - t)^2`` [W]; class labels become ``high`` and ``low`` [V]."""

    kind: Literal["squared_error"]
    conductance: Positive = 1e-6
    high: Quantity = 0.1
    low: Quantity = 0.0


class CrossEntropySpec(Spec):
    """``conductance * scale^2 * CE(softmax(y / scale))`` [W], so that dC/dy is a current."""

    kind: Literal["cross_entropy"]
    conductance: Positive = 1e-6
    scale: Positive = 0.025


CostSpec = Annotated[SquaredErrorSpec | CrossEntropySpec, Field(discriminator="kind")]


class NetworkSpec(Spec):
    """A whole network; `load_network` reads one from YAML."""

    name: Name
    description: str = ""
    conductance: ConductanceSpec = ConductanceSpec()
    inputs: dict[Name, InputSpec]
    layers: dict[Name, LayerSpec]
    synapses: list[SynapseSpec]
    output: OutputSpec
    cost: CostSpec

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSpec:
        problems = _problems(self)
        if problems:
            raise Inconsistent(problems)
        return self

    @property
    def input_size(self) -> int:
        """Length of the input vector: all inputs, in their order."""
        return sum(item.size for item in self.inputs.values())

    @property
    def output_size(self) -> int:
        """Number of outputs that are read."""
        size = self.layers[self.output.layer].size
        return size // 2 if self.output.encoding == "differential_pair" else size

    def scaled_to(self, low: float, high: float) -> NetworkSpec:
        """Return the network at another impedance level, with the conductance window ``low`` to ``high`` [S].

        Windows, leaks, diodes and the cost scale by ``high`` over the present upper end, so that without
        wires voltages stay as they are but for a different ``low``.
        """
        ratio = high / self.conductance.max

        def window(old: ConductanceSpec) -> ConductanceSpec:
            return ConductanceSpec(min=min(max(low, old.min * ratio), high), max=min(old.max * ratio, high))

        def neuron(old: NeuronSpec) -> NeuronSpec:
            scaled: dict[str, Any] = {
                name: getattr(old, name) * ratio
                for name in ("saturation_current", "parallel_conductance", "conductance")
                if name in type(old).model_fields
            }
            return old.model_copy(update=scaled)

        return self.model_copy(
            update={
                "conductance": ConductanceSpec(min=low, max=high),
                "layers": {
                    name: layer.model_copy(
                        update={"leak": layer.leak * ratio, "neuron": neuron(layer.neuron)}
                    )
                    for name, layer in self.layers.items()
                },
                "synapses": [
                    synapse
                    if synapse.conductance is None
                    else synapse.model_copy(update={"conductance": window(synapse.conductance)})
                    for synapse in self.synapses
                ],
                "cost": self.cost.model_copy(update={"conductance": self.cost.conductance * ratio}),
            }
        )

    def synapse_names(self) -> list[str]:
        """Return the name of each synapse: as given, or ``source-target`` made unique."""
        names: list[str] = []
        for synapse in self.synapses:
            stem = synapse.name or f"{synapse.source}-{synapse.target}"
            name, number = stem, 1
            while name in names:
                number += 1
                name = f"{stem}-{number}"
            names.append(name)
        return names


def _problems(spec: NetworkSpec) -> list[SpecError]:
    problems: list[SpecError] = []

    def problem(rule: str, field: str, value: Any, remedy: str | None = None) -> None:
        problems.append(SpecError(rule, field=field, value=value, remedy=remedy))

    known = ", ".join([*spec.inputs, *spec.layers])
    for name in spec.inputs:
        if name in spec.layers:
            problem("is the name of an input and of a layer", f"layers.{name}", name)
    if not spec.inputs:
        problem("at least one input is needed", "inputs", {})
    if not spec.layers:
        problem("at least one layer is needed", "layers", {})
    if spec.output.layer not in spec.layers:
        problem("is not a layer", "output.layer", spec.output.layer, f"Layers: {', '.join(spec.layers)}.")
    elif spec.output.encoding == "differential_pair" and spec.layers[spec.output.layer].size % 2:
        size = spec.layers[spec.output.layer].size
        problem("a differential_pair output needs an even number of neurons", "output.layer", size)
    explicit = [synapse.name for synapse in spec.synapses if synapse.name]
    for name in sorted({name for name in explicit if explicit.count(name) > 1}):
        problem("is the name of two synapses", "synapses", name)
    for number, synapse in enumerate(spec.synapses):
        where = f"synapses.{number}"
        if synapse.source not in spec.inputs and synapse.source not in spec.layers:
            problem("is neither an input nor a layer", f"{where}.from", synapse.source, f"Known: {known}.")
            continue
        if synapse.target not in spec.layers:
            remedy = f"Layers: {', '.join(spec.layers)}."
            problem("is not a layer", f"{where}.to", synapse.target, remedy)
            continue
        amplifier = synapse.kind == "bidirectional_amplifier"
        for key in ("forward_gain", "back_gain"):
            given = getattr(synapse, key) is not None
            if amplifier and not given:
                problem("is required for a bidirectional_amplifier", f"{where}.{key}", None)
            if given and not amplifier:
                problem("is only for a bidirectional_amplifier", f"{where}.{key}", getattr(synapse, key))
        if amplifier and synapse.source in spec.inputs:
            remedy = "An input is a source already: use buffered or resistive and the input's gain."
            problem("a bidirectional_amplifier starts at a layer", f"{where}.from", synapse.source, remedy)
        if synapse.virtual_ground and synapse.kind != "buffered":
            problem("is only for buffered synapses", f"{where}.virtual_ground", True)
        if synapse.differential is not None and not amplifier:
            problem("is only for a bidirectional_amplifier", f"{where}.differential", synapse.differential)
        if synapse.wires is not None and synapse.wires.tile is not None:
            pair = synapse.kind == "buffered" or bool(synapse.differential)
            if pair and synapse.wires.tile[0] < 2:
                remedy = "A differential pair has two word lines in one array."
                problem("is too small", f"{where}.wires.tile", synapse.wires.tile, remedy)
        mask = synapse.connectivity.mask
        if mask is not None:
            shape = (_lines(spec, synapse), spec.layers[synapse.target].size)
            rows = {len(row) for row in mask}
            if len(mask) != shape[0] or rows != {shape[1]}:
                problem(
                    f"must be {shape[0]} rows of {shape[1]}", f"{where}.connectivity.mask", (len(mask), *rows)
                )
    return problems


def _lines(spec: NetworkSpec, synapse: SynapseSpec) -> int:
    if synapse.source in spec.layers:
        return spec.layers[synapse.source].size
    source = spec.inputs[synapse.source]
    doubled = source.encoding == "signed_pair" and synapse.kind == "resistive"
    return source.size * (2 if doubled else 1)


def parse_network(document: dict[str, Any], *, file: object = None) -> NetworkSpec:
    """Check a mapping as `load_network` checks a file."""
    return parse_document(NetworkSpec, document, file=file)


def load_network(path: str | Path) -> NetworkSpec:
    """Read a network description.

    Raises:
        SpecError: naming the file, the field, the value, the rule and the remedy.
    """
    return parse_network(read_document(Path(path)), file=path)
