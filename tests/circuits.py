"""Random circuits and networks for the tests, and element equations written out one element at a time.

The makers take a seed, so a failing example is one number. What they make is solvable by construction:
every node leaks to ground, and gains are modest, so that there is one operating point.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from circuitsim.compiler import compile_network
from circuitsim.netlist import (
    AmplifierBank,
    Crossbar,
    CurrentSense,
    Netlist,
    NetlistBuilder,
    Nudge,
    SoftmaxLoad,
    Values,
)
from circuitsim.netlist.expressions import Drop, Expression, parse_expression
from circuitsim.netlist.models import DIODE_CURRENT
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import NetworkSpec, parse_network
from circuitsim.solver import Equations

SEEDS = st.integers(0, 2**32 - 1)

PASSIVE = frozenset({"resistor", "capacitor", "inductor"})
SOURCES = frozenset({"vsource", "isource"})
CONTROLLED = frozenset({"vccs", "vcvs", "cccs", "ccvs"})
LINEAR = PASSIVE | SOURCES | CONTROLLED
ELEMENTS = LINEAR | {"diode", "zener", "ideal diode", "buffer", "behavioural", "load"}
BLOCKS = frozenset({"crossbar", "bank", "sense"})
EVERYTHING = ELEMENTS | BLOCKS


def random_netlist(
    seed: int, *, kinds: Collection[str] = ELEMENTS, nodes: int = 6, strength: float = 1.0
) -> Netlist:
    """A random circuit with every kind of element asked for, two inputs and three outputs.

    Conductances are near 1e-4 S; ``strength`` scales the controlled sources' gains.
    """
    rng = np.random.default_rng(seed)
    builder = NetlistBuilder(f"random {seed}")
    inner = [f"n{k}" for k in range(nodes)]

    def conductance() -> float:
        return float(10.0 ** rng.uniform(-4.5, -3.5))

    def signed(low: float, high: float) -> float:
        return float(strength * rng.uniform(low, high) * rng.choice([-1.0, 1.0]))

    def fixed(low: float, high: float) -> float:
        return float(rng.uniform(low, high) * rng.choice([-1.0, 1.0]))

    def some(count: int, *, ground: bool = True) -> list[str]:
        return [str(node) for node in rng.choice([*inner, "0"] if ground else inner, count, replace=False)]

    def tie(node: str, label: str) -> None:
        """Connect a node that a source drives to the rest."""
        builder.add("resistor", label, node, some(1, ground=False)[0], conductance=conductance())

    for k, node in enumerate(inner):
        builder.node(node)
        builder.add("resistor", f"leak{k}", node, "0", conductance=conductance())
        builder.add("resistor", f"join{k}", node, inner[k - 1], conductance=conductance())
    for k in range(nodes // 2):
        builder.add("resistor", f"cross{k}", *some(2, ground=False), conductance=conductance())
    for k in range(2):
        builder.add("vsource", f"in{k}", f"in{k}", "0", voltage=0.0)
        tie(f"in{k}", f"drive{k}")
    builder.inputs(["in0", "in1"], [0, 1], [1.0, -0.7])
    if "capacitor" in kinds:
        builder.add("capacitor", "c0", *some(2), capacitance=1e-12)
    if "inductor" in kinds:
        for k in range(2):
            builder.add("inductor", f"l{k}", f"l{k}", some(1)[0], inductance=float(rng.uniform(1e-6, 1e-5)))
            tie(f"l{k}", f"l{k}.tie")
        builder.add("coupling", "k0", coupled=("l0", "l1"), coefficient=float(rng.uniform(-0.9, 0.9)))
    if "isource" in kinds:
        for k in range(2):
            builder.add("isource", f"i{k}", *some(2), current=signed(1e-5, 5e-5))
    if "vsource" in kinds:
        builder.add("vsource", "float", "f0", some(1, ground=False)[0], voltage=signed(0.1, 0.5))
        tie("f0", "float.tie")
        builder.add("vsource", "upside-down", "0", "f1", voltage=signed(0.1, 0.5))
        tie("f1", "upside-down.tie")
    if kinds & {"cccs", "ccvs", "behavioural"}:
        builder.add("vsource", "meter0", some(1, ground=False)[0], "m0", voltage=0.0)
        builder.add("vsource", "meter1", "m1", "0", voltage=signed(0.1, 0.5))
        builder.add("vsource", "meter2", "0", "m2", voltage=signed(0.1, 0.5))
        for k in range(3):
            tie(f"m{k}", f"meter{k}.tie")
    if "diode" in kinds:
        for k in range(3):
            builder.add(
                "diode",
                f"d{k}",
                *some(2),
                saturation_current=float(10.0 ** rng.uniform(-9, -6)),
                slope_voltage=float(rng.uniform(0.025, 0.06)),
                parallel_conductance=float(rng.choice([0.0, 1e-12])),
            )
    if "zener" in kinds:
        builder.add(
            "diode",
            "zener",
            *some(2),
            saturation_current=1e-9,
            slope_voltage=0.03,
            parallel_conductance=1e-12,
            breakdown_voltage=float(rng.uniform(0.2, 0.5)),
            breakdown_slope=0.04,
            junction_capacitance=1e-12,
            junction_potential=0.8,
            grading=0.4,
            depletion_limit=0.6,
            transit_time=1e-9,
        )
    if "ideal diode" in kinds:
        # Steep beside the rest, yet not so steep that the rounding of node voltages is a current to speak of.
        for k in range(3):
            builder.add("ideal_diode", f"z{k}", *some(2), conductance=float(10.0 ** rng.uniform(-3, -2)))
    if "behavioural" in kinds:
        a, b, c, d = some(4)
        for k, text in enumerate(
            (
                f"{fixed(1e-5, 5e-5)!r}*tanh(3*v({a},{b}))",
                f"{fixed(1e-5, 5e-5)!r}*v({a},{c})*v({b},{d}) + {fixed(0.2, 0.6)!r}*i(meter1)",
            )
        ):
            builder.add("behavioural_current", f"bi{k}", *some(2), expression=expression(builder, text))
        for k, text in enumerate(
            (
                f"{fixed(0.2, 0.6)!r}*sin(2*v({c},{a})) + {fixed(0.5e3, 2e3)!r}*i(meter0)",
                f"(v({d},{b}) > 0) ? {fixed(0.1, 0.3)!r}*v({d},{b}) : 0.1*v({d},{b})^3 + 0*v({c})",
            )
        ):
            builder.add("behavioural_voltage", f"bv{k}", f"bv{k}", "0", expression=expression(builder, text))
            tie(f"bv{k}", f"bv{k}.tie")
    if "vccs" in kinds:
        for k in range(2):
            builder.add("vccs", f"g{k}", *some(2), *some(2), transconductance=signed(1e-5, 6e-5))
    if "vcvs" in kinds:
        for k in range(2):
            builder.add("vcvs", f"e{k}", f"e{k}", some(1)[0], *some(2), gain=signed(0.2, 0.8))
            tie(f"e{k}", f"e{k}.tie")
    if "cccs" in kinds:
        # Two that read one meter: what the corrected phase adds in series must add up.
        for k, meter in enumerate((0, 0, 1, 2)):
            builder.add("cccs", f"f{k}", *some(2), control=f"meter{meter}", gain=signed(0.2, 0.8))
    if "ccvs" in kinds:
        for k in range(3):
            builder.add(
                "ccvs", f"h{k}", f"h{k}", some(1)[0], control=f"meter{k}", transresistance=signed(1e3, 4e3)
            )
            tie(f"h{k}", f"h{k}.tie")
    if "buffer" in kinds:
        for k in range(3):
            builder.add(
                "buffer",
                f"b{k}",
                f"b{k}",
                some(1)[0],
                *some(2),
                gain=signed(0.3, 1.2),
                saturation=math.inf if k == 2 else float(rng.uniform(0.2, 0.6)),
                offset=float(rng.uniform(-0.1, 0.1)),
            )
            tie(f"b{k}", f"b{k}.tie")
    if "load" in kinds:
        pos, neg = builder.nodes(some(3, ground=False)), builder.nodes(some(3))
        target = rng.dirichlet(np.ones(3))
        builder.load(SoftmaxLoad(name="load", pos=pos, neg=neg, target=target, amplitude=1e-5, scale=0.2))
    _add_blocks(builder, rng, inner, kinds, strength)
    outputs = some(3, ground=False)
    spare = [node for node in inner if node not in outputs]
    # Single ended outputs beside a differential one.
    builder.outputs(builder.nodes(outputs), builder.nodes(["0", "0", spare[0]]))
    return builder.build()


def expression(builder: NetlistBuilder, text: str) -> Expression:
    """SPICE text over the builder's nodes and sources."""
    return parse_expression(
        text, node=builder.node, source=lambda name: int(builder.rows_of("vsource", [name])[0])
    )


def _add_blocks(
    builder: NetlistBuilder,
    rng: np.random.Generator,
    inner: list[str],
    kinds: Collection[str],
    strength: float,
) -> None:
    nodes = builder.nodes(inner)

    def devices(shape: tuple[int, int]) -> FloatArray:
        return np.asarray(10.0 ** rng.uniform(-5.5, -4.5, shape))

    if "crossbar" in kinds:
        words, bits = nodes[:2], nodes[2:5]
        mask = np.array([[True, False, True], [False, True, True]])
        builder.crossbar(
            Crossbar(name="plain", word_pos=words, bit=bits, g_plus=devices((2, 3)), mask=mask, driven=False)
        )
        pair = builder.nodes(["in0", "in1"])
        builder.crossbar(
            Crossbar(
                name="pairs",
                word_pos=pair,
                word_neg=pair[::-1],
                bit=bits,
                g_plus=devices((2, 3)),
                g_minus=devices((2, 3)),
                mask=rng.random((2, 3)) < 0.8,
            )
        )
    if "bank" in kinds:
        for name, two_way, differential in (
            ("one-way", 0.0, True),
            ("two-way", 1.0, True),
            ("single", 0.7, False),
        ):
            size = 2
            control = rng.choice(nodes, size, replace=False)
            out_pos = builder.nodes(f"{name}[{k}].p" for k in range(size))
            out_neg = builder.nodes(f"{name}[{k}].n" for k in range(size)) if differential else None
            builder.bank(
                AmplifierBank(
                    name=name,
                    control=control,
                    out_pos=out_pos,
                    out_neg=out_neg,
                    gain=strength * rng.uniform(0.3, 0.9, size),
                    saturation=np.array([0.4, np.inf]),
                    offset=rng.uniform(-0.1, 0.1, size),
                    back_gain=two_way * strength * rng.uniform(0.2, 0.6, size),
                )
            )
            bits = rng.choice(nodes, 3, replace=False)
            minus = None if out_neg is None else devices((size, 3))
            builder.crossbar(
                Crossbar(
                    name=f"{name}.devices",
                    word_pos=out_pos,
                    word_neg=out_neg,
                    bit=bits,
                    g_plus=devices((size, 3)),
                    g_minus=minus,
                )
            )
    if "sense" in kinds:
        bits = builder.nodes(["bit[0]", "bit[1]"])
        builder.sense(
            CurrentSense(
                name="ground",
                bit=bits,
                output=rng.choice(nodes, 2, replace=False),
                gain=strength * rng.uniform(0.3, 0.9, 2),
            )
        )
        words = np.concatenate([builder.nodes(["in0"]), nodes[:1]])
        builder.crossbar(
            Crossbar(name="summed", word_pos=words, bit=bits, g_plus=devices((2, 2)), driven=False)
        )


def random_inputs(seed: int, batch: int, size: int) -> FloatArray:
    """Input vectors (B, n_in) between -1 and 1."""
    return np.random.default_rng([seed, 1]).uniform(-1.0, 1.0, (batch, size))


def random_nudge(
    seed: int, kind: str, beta: float, batch: int, outputs: int, conductance: float = 1e-4
) -> Nudge:
    """A nudge towards random targets."""
    rng = np.random.default_rng([seed, 2])
    if kind == "quadratic":
        target = rng.uniform(-0.5, 0.5, (batch, outputs))
        return Nudge(kind="quadratic", beta=beta, conductance=conductance, target=target)
    target = rng.dirichlet(np.ones(outputs), batch)
    return Nudge(kind="softmax", beta=beta, conductance=conductance, target=target, scale=0.1)


# Networks ----------------------------------------------------------------------------------------

NEURONS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear", "gain": 1.5},
    "tanh": {"kind": "tanh", "gain": 2.0, "saturation": 0.5},
    "diode": {
        "kind": "diode",
        "offset": 0.1,
        "saturation_current": "1u",
        "slope_voltage": "40m",
        "gain": 1.5,
    },
    "relu": {"kind": "relu", "clamp": -0.05, "saturation_current": "1u", "gain": 1.5},
}
KINKED: dict[str, dict[str, Any]] = {
    # At ground a node may be held as hard as one likes; elsewhere its rounding is a current.
    "ideal relu": {"kind": "ideal_relu", "gain": 1.5},
    "ideal relu, negative": {"kind": "ideal_relu", "polarity": "negative", "conductance": "1", "clamp": 0.02},
    "ideal relu, alternating": {"kind": "ideal_relu", "polarity": "alternating", "clamp": -0.01}
    | {"conductance": "10", "gain": 1.5},
}
"""Neurons that are not smooth: gradients have jumps, and no order in beta."""
SYNAPSES: dict[str, dict[str, Any]] = {
    "buffered": {"kind": "buffered"},
    "virtual ground": {"kind": "buffered", "virtual_ground": True},
    "resistive": {"kind": "resistive"},
    "amplifier": {"kind": "bidirectional_amplifier", "forward_gain": 1.4, "back_gain": 0.6},
    "differential amplifier": {
        "kind": "bidirectional_amplifier",
        "forward_gain": 1.4,
        "back_gain": 0.6,
        "differential": True,
    },
}


def network_document(
    *,
    neuron: str = "tanh",
    synapse: str = "buffered",
    output: str = "single",
    recurrent: bool = False,
    sizes: tuple[int, int, int] = (3, 5, 4),
    gain: float | None = None,
) -> dict[str, Any]:
    """A two-layer network; ``recurrent`` adds a lateral and a feedback connection."""
    cell = dict((NEURONS | KINKED)[neuron]) | ({} if gain is None else {"gain": gain})
    first = {"kind": "resistive"} if synapse == "resistive" else {"kind": "buffered"}
    if synapse == "virtual ground":
        first["virtual_ground"] = True
    # A virtual ground passes all the current on: a heavier load keeps the voltages of its targets small.
    leak = "400u" if synapse == "virtual ground" else "20u"
    document: dict[str, Any] = {
        "name": "small",
        "conductance": {"min": "1u", "max": "100u"},
        "inputs": {"u": {"size": sizes[0], "encoding": "signed_pair"}},
        "layers": {
            "hidden": {"size": sizes[1], "neuron": dict(cell), "leak": leak, "bias": {"voltage": 0.5}},
            "out": {"size": sizes[2], "neuron": dict(cell), "leak": leak},
        },
        "synapses": [
            {"from": "u", "to": "hidden", **first},
            {"from": "hidden", "to": "out", **SYNAPSES[synapse]},
        ],
        "output": {"layer": "out", "encoding": output},
        "cost": {"kind": "squared_error"},
    }
    if recurrent:
        document["synapses"] += [
            {"from": "hidden", "to": "hidden", "name": "lateral", "kind": "buffered"},
            {"from": "out", "to": "hidden", "name": "feedback", **SYNAPSES[synapse]},
        ]
    return document


def small_network(seed: int = 0, **options: Any) -> tuple[NetworkSpec, Netlist]:
    """The network of `network_document` and its circuit."""
    spec = parse_network(network_document(**options))
    return spec, compile_network(spec, seed=seed)


# The equations, one element at a time -------------------------------------------------------------


class Branch(NamedTuple):
    """One two-terminal branch: the current that flows from pos through it to neg [A]."""

    kind: str
    name: str
    pos: int
    neg: int
    current: float


def _diode(v: float, i_s: float, slope: float, parallel: float, breakdown: float, steep: float) -> float:
    if v < min(-breakdown, -3.0 * slope):
        return -i_s * math.exp((-breakdown - v) / steep) + parallel * v
    if v >= -3.0 * slope:
        return i_s * (math.exp(v / slope) - 1.0) + parallel * v
    return -i_s * (1.0 + (3.0 * slope / (v * math.e)) ** 3) + parallel * v


def branches(netlist: Netlist, v: FloatArray, i: FloatArray) -> list[Branch]:
    """Every branch of a flat netlist with its current, from node voltages (N,) and currents (M,)."""
    found: list[Branch] = []
    t = netlist.resistor
    for k, name in enumerate(t.name):
        current = float(t.conductance[k] * (v[t.pos[k]] - v[t.neg[k]]))
        found.append(Branch("resistor", name, int(t.pos[k]), int(t.neg[k]), current))
    d = netlist.diode
    for k, name in enumerate(d.name):
        drop = float(v[d.pos[k]] - v[d.neg[k]])
        values = (getattr(d, column)[k] for column in DIODE_CURRENT)
        current = _diode(drop, *values)
        found.append(Branch("diode", name, int(d.pos[k]), int(d.neg[k]), float(current)))
    z = netlist.ideal_diode
    for k, name in enumerate(z.name):
        drop = float(v[z.pos[k]] - v[z.neg[k]])
        current = float(z.conductance[k]) * drop if drop > 0 else 0.0
        found.append(Branch("ideal_diode", name, int(z.pos[k]), int(z.neg[k]), current))
    s = netlist.isource
    for k, name in enumerate(s.name):
        found.append(Branch("isource", name, int(s.pos[k]), int(s.neg[k]), float(s.current[k])))
    g = netlist.vccs
    for k, name in enumerate(g.name):
        current = float(g.transconductance[k] * (v[g.control_pos[k]] - v[g.control_neg[k]]))
        found.append(Branch("vccs", name, int(g.pos[k]), int(g.neg[k]), current))
    f = netlist.cccs
    for k, name in enumerate(f.name):
        current = float(f.gain[k] * i[f.control[k]])
        found.append(Branch("cccs", name, int(f.pos[k]), int(f.neg[k]), current))
    e = netlist.behavioural_current
    for k, name in enumerate(e.name):
        current = float(e.expression[k].formula.value(behavioural_inputs(e.expression[k], v, i)))
        found.append(Branch("behavioural_current", name, int(e.pos[k]), int(e.neg[k]), current))
    row = 0
    tables: tuple[Any, ...] = netlist.voltage_defined
    for table in tables:
        for k, name in enumerate(table.name):
            found.append(Branch(table.kind, name, int(table.pos[k]), int(table.neg[k]), float(i[row])))
            row += 1
    for load in netlist.loads:
        y = [float(v[p] - v[n]) / load.scale for p, n in zip(load.pos, load.neg, strict=True)]
        total = sum(math.exp(x) for x in y)
        for k, x in enumerate(y):
            current = load.amplitude * (math.exp(x) / total - float(load.target[k]))
            found.append(Branch("load", f"{load.name}.{k}", int(load.pos[k]), int(load.neg[k]), current))
    return found


def behavioural_inputs(expression: Expression, v: FloatArray, i: FloatArray) -> FloatArray:
    """The inputs (n,) of an expression at node voltages (N,) and branch currents (M,)."""
    return np.array([v[e.pos] - v[e.neg] if isinstance(e, Drop) else i[e.source] for e in expression.inputs])


def kcl(netlist: Netlist, v: FloatArray, i: FloatArray) -> float:
    """The largest KCL residual of a flat netlist over its largest branch current, element by element."""
    node = [0.0] * netlist.n_nodes
    largest = 0.0
    for branch in branches(netlist, v, i):
        node[branch.pos] += branch.current
        node[branch.neg] -= branch.current
        largest = max(largest, abs(branch.current))
    return max(abs(x) for x in node[1:]) / max(largest, 1e-300)


def branch_errors(netlist: Netlist, v: FloatArray, i: FloatArray, source: FloatArray) -> list[float]:
    """Left minus right of every voltage-defined branch's equation [V], for source voltages (n_vsource,)."""
    wrong = []
    s, e, h, b = netlist.vsource, netlist.vcvs, netlist.ccvs, netlist.buffer
    for k in range(len(s)):
        wrong.append(v[s.pos[k]] - v[s.neg[k]] - source[k])
    for k in range(len(e)):
        wrong.append(v[e.pos[k]] - v[e.neg[k]] - e.gain[k] * (v[e.control_pos[k]] - v[e.control_neg[k]]))
    for k in range(len(h)):
        wrong.append(v[h.pos[k]] - v[h.neg[k]] - h.transresistance[k] * i[h.control[k]])
    for k in range(len(b)):
        out = b.gain[k] * (v[b.control_pos[k]] - v[b.control_neg[k]] + b.offset[k])
        if math.isfinite(b.saturation[k]):
            out = b.saturation[k] * math.tanh(out / b.saturation[k])
        wrong.append(v[b.pos[k]] - v[b.neg[k]] - out)
    for inductor in zip(netlist.inductor.pos, netlist.inductor.neg, strict=True):
        wrong.append(v[inductor[0]] - v[inductor[1]])
    w = netlist.behavioural_voltage
    for k in range(len(w)):
        out = w.expression[k].formula.value(behavioural_inputs(w.expression[k], v, i))
        wrong.append(v[w.pos[k]] - v[w.neg[k]] - out)
    return [float(x) for x in wrong]


# The slow, obvious solver ------------------------------------------------------------------------


def dense_jacobian(equations: Equations, v: FloatArray, i: FloatArray | None = None) -> FloatArray:
    """J = dF/dx at (v, i), (N,) and (M,), x = (v without ground, i), one column per unit vector."""
    n, m = equations.netlist.n_nodes, equations.n_branches
    unit = np.eye(n + m)[1:]
    at = np.tile(v, (n + m - 1, 1)), np.tile(np.zeros(m) if i is None else i, (n + m - 1, 1))
    node, branch = equations.jacobian_product(*at, unit[:, :n], unit[:, n:])
    return np.concatenate([node[:, 1:], branch], axis=1).T


def dense_newton(
    netlist: Netlist, inputs: FloatArray, values: Values | None = None, *, step: float = 0.05
) -> tuple[FloatArray, FloatArray]:
    """Newton from zero with dense matrices and steps of at most ``step`` volts: (v, i) of one sample."""
    equations = Equations(netlist=netlist, values=values or netlist.values())
    n, m = netlist.n_nodes, equations.n_branches
    v, i = np.zeros(n), np.zeros(m)
    source = netlist.source_voltage(inputs)
    for _ in range(2000):
        node, branch, _ = equations.residual(v[None], i[None], source)
        f = np.concatenate([node[0, 1:], branch[0]])
        dx = np.linalg.solve(dense_jacobian(equations, v, i), f)
        dv = dx[: n - 1]
        damping = min(1.0, step / max(1e-300, float(np.abs(dv).max())))
        v[1:] -= damping * dv
        i -= damping * dx[n - 1 :]
        if damping == 1.0 and np.abs(dv).max() < 1e-13:
            return v, i
    raise AssertionError("the reference solver did not converge")
