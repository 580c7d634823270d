"""The layered method gives the general method's answer, for every neuron, synapse and phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from circuits import (
    KINKED,
    NEURONS,
    SYNAPSES,
    network_document,
    random_inputs,
    random_netlist,
    random_nudge,
    small_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsim.compiler import compile_network
from circuitsim.errors import NetlistError
from circuitsim.netlist import AmplifierBank, Crossbar, CurrentSense, Netlist, NetlistBuilder
from circuitsim.network import parse_network
from circuitsim.solver import Drive, OperatingPoint, Plan, SolverSettings, build_plan, solve, solve_transposed

LAYERED = SolverSettings(method="layered", max_iterations=400)
GENERAL = SolverSettings(method="general")


def check_phases(plan: Plan, netlist: Netlist, seed: int, beta: float, transposed: float = 1e-9) -> None:
    """Every phase by both methods, each from its own free point."""
    values = netlist.values()
    batch, outputs = 3, len(netlist.outputs.pos)
    inputs = random_inputs(seed, batch, netlist.inputs.size)
    free = {s.method: solve(plan, values, inputs, s) for s in (LAYERED, GENERAL)}
    close(free["layered"], free["general"])
    for kind in ("quadratic", "softmax"):
        nudge = random_nudge(seed, kind, beta, batch, outputs, conductance=1e-5)
        for corrected in (False, True):
            found = {}
            for settings_ in (LAYERED, GENERAL):
                drive = Drive.of(netlist, inputs, nudge)
                if corrected:
                    drive = drive.corrected(free[settings_.method])
                found[settings_.method] = solve(plan, values, drive, settings_)
            close(found["layered"], found["general"])
            moved = found["layered"].displacement
            assert moved is not None
            difference = found["layered"].node_voltage - free["layered"].node_voltage
            np.testing.assert_allclose(moved, difference, rtol=0, atol=1e-12)
            assert np.abs(moved).max() > 1e-5 * abs(beta)
    current = np.random.default_rng(seed).normal(0, 1e-6, (batch, outputs))
    s, t = (
        solve_transposed(plan, values, free[s.method], current, s, inputs=inputs) for s in (LAYERED, GENERAL)
    )
    np.testing.assert_allclose(s, t, rtol=0, atol=transposed * np.abs(t).max())


def close(layered: OperatingPoint, general: OperatingPoint) -> None:
    assert layered.converged
    assert general.converged
    assert (layered.method, general.method) == ("layered", "general")
    np.testing.assert_allclose(layered.node_voltage, general.node_voltage, rtol=0, atol=1e-9)
    scale = float(general.largest_current.max())
    np.testing.assert_allclose(layered.branch_current, general.branch_current, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(layered.power, general.power, rtol=1e-8)
    for point in (layered, general):
        assert np.all(point.relative_residual < 1e-9)


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", [*NEURONS, *KINKED])
def test_every_neuron_and_synapse(neuron: str, synapse: str, recurrent: bool) -> None:
    for seed, output in ((0, "single"), (1, "differential_pair")):
        _, netlist = small_network(seed, neuron=neuron, synapse=synapse, recurrent=recurrent, output=output)
        plan = build_plan(netlist)
        assert plan.method == "layered", plan.why_not_layered
        check_phases(plan, netlist, seed, 0.05)


@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(NEURONS | KINKED)),
    st.sampled_from(sorted(SYNAPSES)),
    st.booleans(),
    st.sampled_from(["single", "differential_pair"]),
    st.sampled_from([0.3, 1e-3, -0.05]),
)
@settings(max_examples=25)
def test_random_networks(
    seed: int, neuron: str, synapse: str, recurrent: bool, output: str, beta: float
) -> None:
    _, netlist = small_network(seed, neuron=neuron, synapse=synapse, recurrent=recurrent, output=output)
    check_phases(build_plan(netlist), netlist, seed, beta)


def test_a_network_of_everything() -> None:
    """Lateral, feedback and skip connections of all kinds, current sources, and neurons of one bank apart."""
    _, netlist = small_network(5, neuron="diode", synapse="amplifier", recurrent=True)
    builder = NetlistBuilder.extending(netlist)
    nodes = netlist.groups["hidden"]
    rng = np.random.default_rng(0)
    builder.add("isource", "bias", "0", "hidden[1]", current=3e-6)
    builder.add("resistor", "pull", "u[0].p", "out[2]", conductance=1e-5)
    builder.add("resistor", "push", "out[1]", "u[1].n", conductance=2e-5)
    mask = np.triu(np.ones((5, 5), dtype=bool), k=1)
    g = rng.uniform(1e-6, 2e-5, (5, 5))
    builder.crossbar(Crossbar(name="mesh", word_pos=nodes, bit=nodes, g_plus=g, mask=mask, driven=False))
    skip = netlist.crossbar("u-hidden")
    builder.crossbar(
        replace(
            skip,
            name="skip",
            word_neg=None,
            g_minus=None,
            bit=netlist.groups["out"],
            g_plus=rng.uniform(1e-6, 1e-5, (3, 4)),
            mask=None,
        )
    )
    # One bank with saturating and linear amplifiers, offsets, and gains of its own.
    out_pos = builder.nodes(f"mixed[{k}].p" for k in range(4))
    builder.bank(
        AmplifierBank(
            name="mixed",
            control=netlist.groups["out"],
            out_pos=out_pos,
            gain=[1.0, -1.5, 2.0, 0.5],
            saturation=[0.1, np.inf, 0.3, np.inf],
            offset=[0.05, -0.02, 0.0, 0.1],
            back_gain=[0.0],
        )
    )
    builder.crossbar(
        Crossbar(name="mixed.devices", word_pos=out_pos, bit=nodes, g_plus=rng.uniform(1e-6, 2e-5, (4, 5)))
    )
    everything = builder.build()
    plan = build_plan(everything)
    assert plan.method == "layered", plan.why_not_layered
    check_phases(plan, everything, 1, 0.1)


def test_a_feedforward_network_needs_one_sweep_a_layer() -> None:
    spec, netlist = small_network(0, neuron="tanh")
    plan = build_plan(netlist)
    point = solve(plan, netlist.values(), random_inputs(0, 4, spec.input_size), LAYERED)
    assert np.all(point.iterations == 1)
    assert np.all(point.relative_residual < 1e-12)


def test_displacement_keeps_its_digits_at_a_small_nudge() -> None:
    # Differences of voltages would lose them: 1e-9 of beta leaves 1e-16 / 1e-11 of the signal.
    spec, netlist = small_network(1, neuron="tanh", recurrent=True)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(1, 2, spec.input_size)
    tight = replace(LAYERED, relative_tolerance=1e-15, voltage_tolerance=1e-22)
    base = solve(plan, values, inputs, replace(LAYERED, relative_tolerance=1e-15, voltage_tolerance=1e-14))
    nudge = random_nudge(1, "quadratic", 1e-9, 2, spec.output_size, conductance=1e-5)
    slope = nudge.current(netlist.outputs.read(base.node_voltage)) / 1e-9
    s = solve_transposed(plan, values, base, slope, GENERAL, inputs=inputs)
    moved = solve(plan, values, Drive.of(netlist, inputs, nudge).corrected(base), replace(tight, throw=False))
    assert moved.displacement is not None
    cells = np.concatenate(list(netlist.groups.values()))
    estimate = moved.displacement[:, cells] / 1e-9
    assert np.linalg.norm(estimate - s[:, cells]) < 1e-7 * np.linalg.norm(s[:, cells])


def test_batches_are_single_solves() -> None:
    for options in ({}, {"neuron": "diode", "recurrent": True}, {"synapse": "amplifier", "recurrent": True}):
        spec, netlist = small_network(2, **options)
        plan, values = build_plan(netlist), netlist.values()
        inputs = random_inputs(2, 4, spec.input_size)
        together = solve(plan, values, inputs, LAYERED)
        for b in range(4):
            alone = solve(plan, values, inputs[b : b + 1], LAYERED)
            # Products of other shapes round differently, by a unit in the last place.
            np.testing.assert_allclose(alone.node_voltage[0], together.node_voltage[b], rtol=0, atol=1e-12)
    for seed in range(3):
        netlist = random_netlist(seed)
        plan, values = build_plan(netlist), netlist.values()
        inputs = random_inputs(seed, 5, 2)
        together = solve(plan, values, inputs)
        for b in range(5):
            # Sample by sample: equal to the last bit, whatever the batch.
            alone = solve(plan, values, inputs[b : b + 1])
            np.testing.assert_array_equal(alone.node_voltage[0], together.node_voltage[b])
            np.testing.assert_array_equal(alone.branch_current[0], together.branch_current[b])
            assert alone.iterations[0] == together.iterations[b]


@pytest.mark.parametrize("method", ["layered", "general"])
def test_a_warm_start_gives_the_same_answer_sooner(method: str) -> None:
    spec, netlist = small_network(3, neuron="diode", recurrent=True)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(3, 3, spec.input_size)
    chosen = SolverSettings(method=method)  # type: ignore[arg-type]
    near = solve(plan, values, inputs + 1e-4, chosen)
    cold = solve(plan, values, inputs, chosen)
    warm = solve(plan, values, inputs, chosen, start=near)
    np.testing.assert_allclose(warm.node_voltage, cold.node_voltage, rtol=0, atol=1e-9)
    assert warm.iterations.sum() < cold.iterations.sum()
    again = solve(plan, values, inputs, chosen, start=cold)
    assert again.iterations.max() <= 2


def test_a_nudged_phase_may_start_from_other_inputs() -> None:
    spec, netlist = small_network(3, neuron="tanh", recurrent=True)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(3, 2, spec.input_size)
    drive = Drive.of(netlist, inputs, random_nudge(3, "quadratic", 0.1, 2, spec.output_size))
    other = solve(plan, values, 0.5 * inputs, LAYERED)
    started = solve(plan, values, drive, LAYERED, start=other)
    plain = solve(plan, values, drive, LAYERED)
    np.testing.assert_allclose(started.node_voltage, plain.node_voltage, rtol=0, atol=1e-10)
    assert np.all(started.relative_residual < 1e-9)
    assert started.displacement is not None
    np.testing.assert_allclose(
        started.displacement, started.node_voltage - other.node_voltage, rtol=0, atol=1e-12
    )


def test_an_anchor_that_is_off_is_solved_as_it_stands() -> None:
    # What a stored anchor that is off by 1e-3 does to the gradient.
    spec, netlist = small_network(3, neuron="tanh")
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(3, 2, spec.input_size)
    free = solve(plan, values, inputs)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(free.node_voltage.shape)
    anchor = replace(free, node_voltage=free.node_voltage * (1 + noise))
    drive = Drive.of(netlist, inputs, random_nudge(3, "quadratic", 0.1, 2, spec.output_size)).corrected(
        anchor
    )
    general = solve(plan, values, drive, GENERAL)
    assert np.all(general.relative_residual < 1e-9)
    layered = solve(plan, values, drive, LAYERED)
    np.testing.assert_allclose(layered.node_voltage, general.node_voltage, rtol=0, atol=1e-9)


@pytest.mark.parametrize("neuron", [*NEURONS, *KINKED])
@pytest.mark.parametrize("synapse", ["buffered", "amplifier"])
def test_single_precision_is_close_to_double(neuron: str, synapse: str) -> None:
    spec, netlist = small_network(4, neuron=neuron, synapse=synapse, recurrent=True)
    plan, values = build_plan(netlist), netlist.values()
    inputs = random_inputs(4, 3, spec.input_size)
    single = SolverSettings(method="layered", precision="float32")
    double = solve(plan, values, inputs, LAYERED)
    rough = solve(plan, values, inputs, single)
    assert rough.converged
    scale = np.abs(double.node_voltage).max()
    assert 0 < np.abs(rough.node_voltage - double.node_voltage).max() < 2e-5 * scale
    assert np.all(rough.relative_residual < 1e-4)
    nudge = random_nudge(4, "quadratic", 0.1, 3, spec.output_size, conductance=1e-5)
    moved = [
        solve(plan, values, Drive.of(netlist, inputs, nudge).corrected(p), s).displacement
        for p, s in ((rough, single), (double, LAYERED))
    ]
    assert moved[0] is not None
    assert moved[1] is not None
    assert np.abs(moved[0] - moved[1]).max() < 1e-4 * np.abs(moved[1]).max()
    with pytest.raises(NetlistError, match="float32 is for the layered method only"):
        solve(plan, values, inputs, replace(single, method="general"))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("synapse", ["buffered", "resistive", "amplifier"])
def test_a_nudge_may_carry_nodes_across_their_kinks(synapse: str, precision: str) -> None:
    # A node that lands on a diode of 1e6 S is as precise as its displacement, which is no small current.
    chosen = replace(LAYERED, precision=precision)
    bound = 1e-9 if precision == "float64" else 2e-5
    crossed = 0
    for seed, polarity in enumerate(("positive", "negative", "alternating")):
        document = network_document(neuron="ideal relu", synapse=synapse, recurrent=True)
        for layer in document["layers"].values():
            layer["neuron"]["polarity"] = polarity
        netlist = compile_network(parse_network(document), seed=seed)
        plan, values = build_plan(netlist), netlist.values()
        inputs = random_inputs(seed, 6, netlist.inputs.size)
        z = netlist.ideal_diode
        for beta in (1.0, -0.2):
            nudge = random_nudge(seed, "quadratic", beta, 6, len(netlist.outputs.pos), conductance=1e-4)
            for corrected in (False, True):
                found = []
                for how in (chosen, GENERAL):
                    free = solve(plan, values, inputs, how)
                    drive = Drive.of(netlist, inputs, nudge)
                    drive = drive.corrected(free) if corrected else drive
                    point = solve(plan, values, drive, how, start=None if corrected else free)
                    found.append(point.node_voltage)
                scale = float(np.abs(found[1]).max())
                np.testing.assert_allclose(found[0], found[1], rtol=0, atol=bound * scale)
                held = [v[:, z.pos] - v[:, z.neg] > 0 for v in (free.node_voltage, found[1])]
                crossed += int((held[0] != held[1]).sum())
    assert crossed > 20


# Wires -------------------------------------------------------------------------------------------

WIRES: dict[str, dict[str, Any]] = {
    "one array": {"resistance": 20.0, "driver": 50.0, "sense": 30.0},
    "far ends": {"resistance": 20.0, "driver": 50.0, "drive_end": "last", "sense_end": "first"},
    "tiles": {"resistance": 20.0, "sense": 10.0, "tile": [4, 3]},
}


@pytest.mark.parametrize("recurrent", [False, True], ids=["feedforward", "recurrent"])
@pytest.mark.parametrize("wires", WIRES)
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_wires_in_every_phase(synapse: str, wires: str, recurrent: bool) -> None:
    for seed, neuron, output in ((0, "tanh", "single"), (1, "diode", "differential_pair")):
        document = network_document(neuron=neuron, synapse=synapse, recurrent=recurrent, output=output)
        for part in document["synapses"]:
            part["wires"] = WIRES[wires]
        netlist = compile_network(parse_network(document), seed=seed)
        assert sum(c.wired for c in netlist.crossbars) > (4 if wires == "tiles" else 1)
        plan = build_plan(netlist)
        assert plan.method == "layered", plan.why_not_layered
        # The general method's transposed solve loses some digits to pivots between short wires.
        check_phases(plan, netlist, seed, 0.05, transposed=1e-7)
        # The wires count: as much as the check could miss by far.
        for part in document["synapses"]:
            del part["wires"]
        ideal = compile_network(parse_network(document), seed=seed)
        inputs = random_inputs(seed, 3, netlist.inputs.size)
        y, x = (
            n.outputs.read(solve(build_plan(n), n.values(), inputs).node_voltage) for n in (netlist, ideal)
        )
        assert np.abs(y - x).max() > 1e-5


@pytest.mark.parametrize("neuron", ["ideal relu", "relu", "linear"])
def test_wires_between_other_neurons(neuron: str) -> None:
    """Ideal wires for some synapses, tiles for others, a mask."""
    document = network_document(neuron=neuron, synapse="resistive", recurrent=True)
    document["synapses"][1]["wires"] = WIRES["tiles"]
    document["synapses"][1]["connectivity"] = {"density": 0.6}
    document["synapses"][3]["wires"] = WIRES["far ends"]
    netlist = compile_network(parse_network(document), seed=4)
    assert {c.wired for c in netlist.crossbars} == {False, True}
    plan = build_plan(netlist)
    assert plan.method == "layered", plan.why_not_layered
    check_phases(plan, netlist, 4, 0.05, transposed=1e-7)


# What does not fit goes to the general method ----------------------------------------------------


def bank(**changes: Any) -> AmplifierBank:
    columns: dict[str, Any] = {
        "name": "bank",
        "gain": 1.5,
        "saturation": np.inf,
        "offset": 0.0,
        "back_gain": 0.0,
    }
    return AmplifierBank(**(columns | changes))


def cells(*, extra: str = "") -> NetlistBuilder:
    builder = NetlistBuilder("cells")
    builder.add("vsource", "in", "a", "0", voltage=0.0)
    builder.inputs(["in"], [0])
    y = builder.nodes(["y0", "y1"])
    for k in range(2):
        builder.add("resistor", f"leak{k}", f"y{k}", "0", conductance=1e-4)
    builder.crossbar(Crossbar(name="c", word_pos=builder.nodes(["a"]), bit=y, g_plus=[[1e-4, 2e-4]]))
    builder.outputs(y)
    return builder


def test_the_plain_cells_are_layered() -> None:
    assert build_plan(cells().build()).method == "layered"


def add_bank_from_an_input(builder: NetlistBuilder) -> None:
    builder.bank(bank(control=builder.nodes(["a"]), out_pos=builder.nodes(["o"])))
    g = [[1e-5, 3e-5]]
    builder.crossbar(
        Crossbar(name="o", word_pos=builder.nodes(["o"]), bit=builder.nodes(["y0", "y1"]), g_plus=g)
    )


def add_bank_after_a_bank(builder: NetlistBuilder) -> None:
    control, middle = builder.nodes(["y0", "y1"]), builder.nodes(["p0", "p1"])
    builder.bank(bank(name="first", control=control, out_pos=middle))
    builder.bank(bank(control=middle, out_pos=builder.nodes(["o0", "o1"])))


def add_saturating_feedback(builder: NetlistBuilder) -> None:
    control, out = builder.nodes(["y0", "y1"]), builder.nodes(["o0", "o1"])
    builder.bank(bank(control=control, out_pos=out, saturation=0.3, back_gain=0.5))


def add_sense_into_a_bit(builder: NetlistBuilder) -> None:
    builder.sense(CurrentSense(name="one", bit=builder.nodes(["b"]), output=builder.nodes(["a"]), gain=[1.0]))
    builder.crossbar(
        Crossbar(name="s", word_pos=builder.nodes(["a"]), bit=builder.nodes(["b"]), g_plus=[[1e-5]])
    )


def add_partial_crossbar(builder: NetlistBuilder) -> None:
    builder.crossbar(
        Crossbar(name="part", word_pos=builder.nodes(["a"]), bit=builder.nodes(["y1"]), g_plus=[[1e-5]])
    )


def add_element(kind: str, *nodes: str, **values: float) -> Any:
    return lambda builder: builder.add(kind, "odd", *nodes, **values)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (add_bank_from_an_input, "bank bank is controlled by a driven node"),
        (add_bank_after_a_bank, "bank bank is controlled by a driven node"),
        (add_saturating_feedback, "bank bank saturates and feeds back"),
        (add_sense_into_a_bit, "crossbar s reads driven nodes"),
        (add_partial_crossbar, "two blocks share some nodes"),
        (add_element("vccs", "y0", "0", "y1", "0", transconductance=1e-5), "vccs odd is outside a block"),
        (add_element("resistor", "y0", "y1", conductance=1e-5), "resistor odd joins two nodes"),
        (add_element("vsource", "y2", "y1", voltage=0.1), "voltage source odd is not from a node of its own"),
        (
            add_element(
                "diode", "y0", "a", saturation_current=1e-9, slope_voltage=0.03, parallel_conductance=0.0
            ),
            "a diode clamps to an input",
        ),
    ],
)
def test_what_is_no_network_of_layers(spoil: Any, why: str) -> None:
    builder = cells()
    spoil(builder)
    netlist = builder.build()
    plan = build_plan(netlist)
    assert plan.method == "general"
    assert why in str(plan.why_not_layered)
    with pytest.raises(NetlistError, match="the layered method does not fit"):
        solve(plan, netlist.values(), [[0.3]], LAYERED)
    point = solve(plan, netlist.values(), [[0.3]])
    assert point.method == "general"
    assert point.relative_residual[0] < 1e-9


def test_float32_refuses_what_it_cannot_hold() -> None:
    neuron = {"kind": "ideal_relu", "clamp": 0.1}
    document = network_document(sizes=(3, 4, 2))
    document["layers"]["hidden"]["neuron"] = neuron
    netlist = compile_network(parse_network(document))
    plan, inputs = build_plan(netlist), np.ones((1, netlist.inputs.size))
    assert solve(plan, netlist.values(), inputs).converged
    with pytest.raises(NetlistError, match=r"hidden\[0\]\.lower.*away from 0 V.*precision float64"):
        solve(plan, netlist.values(), inputs, SolverSettings(precision="float32"))
