"""Network -> netlist: crossbars, buffers, amplifiers, neuron cells and ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist import (
    GROUND,
    AmplifierBank,
    Crossbar,
    CurrentSense,
    Netlist,
    NetlistBuilder,
)
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.network.spec import (
    BiasSpec,
    ConductanceSpec,
    DiodeNeuron,
    IdealDiodeNeuron,
    InitialSpec,
    LayerSpec,
    NetworkSpec,
    ReluNeuron,
    SynapseSpec,
    TanhNeuron,
    WiresSpec,
)
from circuitsim.seeds import stream

__all__ = ["compile_network"]


def compile_network(spec: NetworkSpec, *, seed: int = 0) -> Netlist:
    """Return the circuit of a network, with initial conductances drawn from ``seed``.

    Neuron k of layer ``hidden`` is node ``hidden[k]``, its buffer's outputs ``hidden[k].p`` and
    ``hidden[k].n``; element k of an input drives ``pixels[k].p`` and, where needed, ``pixels[k].n``.

    Raises:
        NetlistError: the circuit cannot be solved (a floating node, for example).
    """
    compiler = _Compiler(spec, seed)
    for name in spec.inputs:
        compiler.input_lines(name)
    for name, layer in spec.layers.items():
        compiler.neurons(name, layer)
    for name, synapse in zip(spec.synapse_names(), spec.synapses, strict=True):
        compiler.synapse(name, synapse)
    for name, layer in spec.layers.items():
        if layer.bias is not None:
            compiler.bias(name, layer.bias)
    compiler.output()
    return compiler.builder.build()


class _Compiler:
    def __init__(self, spec: NetworkSpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed
        self.builder = NetlistBuilder(spec.name)
        self.cell: dict[str, IntArray] = {}
        self.positive: dict[str, IntArray] = {}
        self.negative: dict[str, IntArray] = {}
        self.column = 0

    def input_lines(self, name: str) -> None:
        item = self.spec.inputs[name]
        columns = np.arange(self.column, self.column + item.size)
        self.column += item.size
        paired = item.encoding == "signed_pair" or any(
            synapse.source == name and synapse.kind == "buffered" for synapse in self.spec.synapses
        )
        for half, sign, lines in (("p", 1.0, self.positive), ("n", -1.0, self.negative)):
            if half == "n" and not paired:
                continue
            labels = [f"{name}[{k}].{half}" for k in range(item.size)]
            lines[name] = self.builder.nodes(labels)
            self.builder.add_rows("vsource", labels, pos=lines[name], neg=GROUND, voltage=0.0)
            self.builder.inputs(labels, columns, sign * item.gain)

    def neurons(self, name: str, layer: LayerSpec) -> None:
        builder = self.builder
        labels = [f"{name}[{k}]" for k in range(layer.size)]
        nodes = self.cell[name] = builder.nodes(labels)
        builder.group(name, nodes)
        if layer.capacitance > 0:
            builder.add_rows("capacitor", labels, pos=nodes, neg=GROUND, capacitance=layer.capacitance)
        if layer.leak > 0:
            leaks = [f"{label}.leak" for label in labels]
            builder.add_rows("resistor", leaks, pos=nodes, neg=GROUND, conductance=layer.leak)
        neuron = layer.neuron
        if isinstance(neuron, DiodeNeuron):
            self._clamp(name, nodes, neuron, "upper", neuron.offset)
            self._clamp(name, nodes, neuron, "lower", -neuron.offset)
        elif isinstance(neuron, ReluNeuron):
            self._clamp(name, nodes, neuron, "lower", neuron.clamp)
        elif isinstance(neuron, IdealDiodeNeuron):
            self._hold(name, nodes, neuron)
        if any(synapse.source == name and synapse.kind == "buffered" for synapse in self.spec.synapses):
            self.positive[name] = builder.nodes(f"{label}.p" for label in labels)
            self.negative[name] = builder.nodes(f"{label}.n" for label in labels)
            builder.bank(
                AmplifierBank(
                    name=f"{name}.buffer",
                    control=nodes,
                    out_pos=self.positive[name],
                    out_neg=self.negative[name],
                    gain=np.array([neuron.gain]),
                    saturation=np.array([neuron.saturation if isinstance(neuron, TanhNeuron) else np.inf]),
                    offset=np.zeros(1),
                    back_gain=np.zeros(1),
                )
            )

    def _clamp(
        self, name: str, nodes: IntArray, neuron: DiodeNeuron | ReluNeuron, side: str, level: float
    ) -> None:
        rail = self._rail(f"{name}.rail.{side}", level)
        self.builder.add_rows(
            "diode",
            [f"{name}[{k}].{side}" for k in range(len(nodes))],
            pos=nodes if side == "upper" else np.full_like(nodes, rail),
            neg=np.full_like(nodes, rail) if side == "upper" else nodes,
            saturation_current=neuron.saturation_current,
            slope_voltage=neuron.slope_voltage,
            parallel_conductance=neuron.parallel_conductance,
        )

    def _hold(self, name: str, nodes: IntArray, neuron: IdealDiodeNeuron) -> None:
        rail = self._rail(f"{name}.rail", neuron.clamp)
        # From a node that must not rise above the rail, or from the rail to one that must not fall below it.
        above = np.full(len(nodes), neuron.polarity == "negative")
        if neuron.polarity == "alternating":
            above[1::2] = True
        self.builder.add_rows(
            "ideal_diode",
            [f"{name}[{k}].{'upper' if down else 'lower'}" for k, down in enumerate(above)],
            pos=np.where(above, nodes, rail),
            neg=np.where(above, rail, nodes),
            conductance=neuron.conductance,
        )

    def _rail(self, name: str, level: float) -> int:
        if level == 0:
            return GROUND
        self.builder.add("vsource", name, name, "0", voltage=level)
        return self.builder.node(name)

    def synapse(self, name: str, synapse: SynapseSpec) -> None:
        builder, source = self.builder, synapse.source
        bit = self.cell[synapse.target]
        word_pos: IntArray
        word_neg: IntArray | None = None
        driven = source in self.spec.inputs
        if synapse.kind == "buffered":
            word_pos, word_neg, driven = self.positive[source], self.negative[source], True
            if synapse.virtual_ground:
                cells = bit
                bit = builder.nodes(f"{name}.bit[{k}]" for k in range(len(cells)))
                builder.sense(CurrentSense(name=f"{name}.sense", bit=bit, output=cells, gain=np.ones(1)))
        elif synapse.kind == "resistive":
            word_pos = self.cell[source] if source in self.cell else self.positive[source]
            if source in self.spec.inputs and self.spec.inputs[source].encoding == "signed_pair":
                word_pos = np.concatenate([word_pos, self.negative[source]])
        else:
            control = self.cell[source]
            word_pos = builder.nodes(f"{name}.drive[{k}].p" for k in range(len(control)))
            if synapse.differential:
                word_neg = builder.nodes(f"{name}.drive[{k}].n" for k in range(len(control)))
            builder.bank(
                AmplifierBank(
                    name=f"{name}.amplifier",
                    control=control,
                    out_pos=word_pos,
                    out_neg=word_neg,
                    gain=np.array([synapse.forward_gain]),
                    saturation=np.array([np.inf]),
                    offset=np.zeros(1),
                    back_gain=np.array([synapse.back_gain]),
                )
            )
        window = synapse.conductance or self.spec.conductance
        shape = (len(word_pos), len(bit))
        mask = self._mask(name, synapse, shape)
        g_plus, g_minus = self._initial(name, synapse.initial, window, shape, pair=word_neg is not None)
        whole = Crossbar(
            name=name,
            word_pos=word_pos,
            word_neg=word_neg,
            bit=bit,
            g_plus=g_plus,
            g_minus=g_minus,
            mask=mask,
            g_min=window.min,
            g_max=window.max,
            trainable=synapse.trainable,
            driven=driven,
        )
        for crossbar in [whole] if synapse.wires is None else _wired(whole, synapse.wires):
            builder.crossbar(crossbar)

    def bias(self, name: str, bias: BiasSpec) -> None:
        builder = self.builder
        words: dict[str, IntArray] = {}
        for half, sign in (("p", 1.0), ("n", -1.0)):
            if half == "p" or bias.differential:
                label = f"{name}.bias.{half}"
                words[half] = builder.nodes([label])
                builder.add("vsource", label, label, "0", voltage=sign * bias.voltage)
        window = self.spec.conductance
        shape = (1, len(self.cell[name]))
        g_plus, g_minus = self._initial(f"{name}.bias", bias.initial, window, shape, pair=bias.differential)
        builder.crossbar(
            Crossbar(
                name=f"{name}.bias",
                word_pos=words["p"],
                word_neg=words.get("n"),
                bit=self.cell[name],
                g_plus=g_plus,
                g_minus=g_minus,
                g_min=window.min,
                g_max=window.max,
                trainable=bias.trainable,
                driven=True,
            )
        )

    def output(self) -> None:
        nodes = self.cell[self.spec.output.layer]
        if self.spec.output.encoding == "differential_pair":
            self.builder.outputs(nodes[0::2], nodes[1::2])
        else:
            self.builder.outputs(nodes)

    def _mask(self, name: str, synapse: SynapseSpec, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        connectivity = synapse.connectivity
        mask = np.ones(shape, dtype=np.bool_)
        if connectivity.mask is not None:
            mask &= np.array(connectivity.mask, dtype=np.bool_)
        elif connectivity.density < 1:
            draw = stream(self.seed, "connectivity", name).random(shape)
            mask &= draw < connectivity.density
        if synapse.source == synapse.target and not connectivity.self_connections:
            np.fill_diagonal(mask, False)
            if synapse.kind == "resistive" and connectivity.mask is None:
                # One device joins each pair of nodes: (j, i) and (i, j) would lie in parallel.
                mask &= np.triu(np.ones(shape, dtype=np.bool_))
        return None if mask.all() else mask

    def _initial(
        self, name: str, initial: InitialSpec, window: ConductanceSpec, shape: tuple[int, int], *, pair: bool
    ) -> tuple[FloatArray, FloatArray | None]:
        def draw(half: str) -> FloatArray:
            generator = stream(self.seed, "initial", name, half)
            noise = (
                generator.uniform(-1, 1, shape)
                if initial.kind == "uniform"
                else generator.standard_normal(shape)
            )
            fraction = np.clip(initial.center + initial.spread * noise, 0, 1)
            return window.min + fraction * (window.max - window.min)

        return draw("g_plus"), draw("g_minus") if pair else None


def _wired(whole: Crossbar, wires: WiresSpec) -> Iterator[Crossbar]:
    """Yield a crossbar with wires, or the arrays that it is cut into, word lines first."""
    whole = replace(
        whole,
        r_wire=wires.resistance,
        r_driver=wires.driver,
        r_sense=wires.sense,
        drive_end=wires.drive_end,
        sense_end=wires.sense_end,
    )
    m, n = whole.shape
    if wires.tile is None:
        yield whole
        return
    most = wires.tile[0] // (2 if whole.differential else 1), wires.tile[1]
    if m <= most[0] and n <= most[1]:
        yield whole
        return
    for row, j in enumerate(range(0, m, most[0])):
        for column, i in enumerate(range(0, n, most[1])):
            words, bits = slice(j, j + most[0]), slice(i, i + most[1])
            mask = None if whole.mask is None else whole.mask[words, bits]
            yield replace(
                whole,
                name=f"{whole.name}.tile[{row},{column}]",
                word_pos=whole.word_pos[words],
                word_neg=None if whole.word_neg is None else whole.word_neg[words],
                bit=whole.bit[bits],
                g_plus=whole.g_plus[words, bits],
                g_minus=None if whole.g_minus is None else whole.g_minus[words, bits],
                mask=None if mask is None or mask.all() else mask,
            )
