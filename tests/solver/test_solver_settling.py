"""Relaxing to the operating point, and saying so where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from circuits import network_document

from circuitsim.compiler import compile_network
from circuitsim.errors import NetlistError, SpecError
from circuitsim.netlist import Netlist, NetlistBuilder
from circuitsim.network import parse_network
from circuitsim.solver import build_plan, solve
from circuitsim.solver.settling import settle


def ring(gains: list[float], *, offset: float = 0.0) -> Netlist:
    """Saturating amplifiers in a ring, each behind R and C: a latch, an oscillator, or neither."""
    b = NetlistBuilder("ring")
    for k, gain in enumerate(gains):
        a, c = f"n{k}", f"n{(k + 1) % len(gains)}"
        b.add("buffer", f"u{k}", f"o{k}", "0", a, "0", gain=gain, saturation=1.0, offset=offset * (k == 0))
        b.add("resistor", f"r{k}", f"o{k}", c, conductance=1e-3)
        b.add("capacitor", f"c{k}", c, "0", capacitance=1e-9)
    return b.build()


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_networks_settle_at_their_operating_point(recurrent: bool, seed: int) -> None:
    netlist = compile_network(parse_network(network_document(recurrent=recurrent)), seed=seed)
    inputs = np.random.default_rng(seed).normal(size=netlist.inputs.size)
    plan, values = build_plan(netlist), netlist.values()
    found = settle(plan, values, inputs=inputs)
    point = solve(plan, values, inputs[None])
    assert found.settled, found.reason
    assert np.abs(found.node_voltage - point.node_voltage[0]).max() < 1e-9
    assert found.largest_real is not None
    assert found.largest_real < 0
    # Some 20 of the slowest time constants bring 1 V down to 1e-9 V.
    assert 1 < found.time * -found.largest_real < 40


def test_a_latch_settles_beside_its_unstable_point() -> None:
    latch = ring([-3.0, -3.0])
    found = settle(build_plan(latch), latch.values(), initial_voltage={"n0": 1e-3})
    assert found.settled, found.reason
    voltage = dict(zip(latch.node_names, found.node_voltage, strict=True))
    assert voltage["n0"] == pytest.approx(-voltage["n1"])
    assert voltage["n0"] == pytest.approx(0.99490153)
    assert found.largest_real is not None
    assert found.largest_real < 0


def test_a_latch_left_on_its_unstable_point_has_not_settled() -> None:
    latch = ring([-3.0, -3.0])
    found = settle(build_plan(latch), latch.values())
    assert not found.settled
    assert "unstable operating point, largest real part 2e+06 /s" in found.reason
    assert found.largest_real == pytest.approx(2e6)


def test_an_oscillator_never_settles_and_the_spectrum_says_why() -> None:
    oscillator = ring([-5.0] * 3, offset=0.01)
    found = settle(build_plan(oscillator), oscillator.values(), limit=1e-4)
    assert not found.settled
    assert "does not settle: the operating point is unstable" in found.reason
    assert found.largest_real == pytest.approx(1.5e6, rel=0.01)
    assert found.distance > 0.1
    # With less gain the same ring comes to rest.
    calm = ring([-1.5] * 3, offset=0.01)
    assert settle(build_plan(calm), calm.values()).settled


def test_a_limit_that_is_too_short_is_told() -> None:
    netlist = ring([-0.5, -0.5], offset=0.1)
    found = settle(build_plan(netlist), netlist.values(), limit=1e-6)
    assert not found.settled
    assert "had not settled after 1e-06 s" in found.reason


def test_circuits_without_charge_have_no_dynamics() -> None:
    b = NetlistBuilder("divider")
    b.add("vsource", "v1", "a", "0", voltage=1.0)
    b.add("resistor", "r1", "a", "b", conductance=1e-3)
    b.add("resistor", "r2", "b", "0", conductance=1e-3)
    netlist = b.build()
    with pytest.raises(NetlistError, match="has no dynamics"):
        settle(build_plan(netlist), netlist.values(), limit=1.0)
    with pytest.raises(SpecError, match="limit: must be a positive number"):
        settle(build_plan(netlist), netlist.values(), limit=0.0)
