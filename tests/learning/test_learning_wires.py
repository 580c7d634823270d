"""Learning through lines with resistance: the adjoint against finite differences, estimators, tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from circuits import SYNAPSES, network_document
from learners import TIGHT, Case, case, relative, small_trainer

from circuitsim.errors import NetlistError
from circuitsim.learning import EP, Adjoint, AsymEP, OptimiserSpec, check_gradients

WIRES: dict[str, Any] = {"resistance": 20.0, "driver": 40.0, "sense": 10.0, "drive_end": "last"}
TILES: dict[str, Any] = WIRES | {"tile": [4, 3]}


def wired(
    synapse: str, wires: dict[str, Any], *, neuron: str = "tanh", output: str = "single"
) -> dict[str, Any]:
    """A network with loops, all its synapses behind wires."""
    document = network_document(neuron=neuron, synapse=synapse, recurrent=True, output=output)
    for part in document["synapses"]:
        part["wires"] = wires
    return document


def tried(synapse: str, wires: dict[str, Any], neuron: str = "tanh", seed: int = 2) -> Case:
    odd = list(SYNAPSES).index(synapse) % 2
    document = wired(synapse, wires, neuron=neuron, output="differential_pair" if odd else "single")
    cost = "cross entropy" if odd else "squared error"
    return case(document, cost=cost, batch=2, seed=seed, **TIGHT | {"method": "layered"})


@pytest.mark.parametrize("wires", [WIRES, TILES], ids=["one array", "tiles"])
@pytest.mark.parametrize("synapse", SYNAPSES)
def test_adjoint_equals_finite_differences(synapse: str, wires: dict[str, Any]) -> None:
    here = tried(synapse, wires)
    rows = check_gradients(
        here.phases, here.inputs, here.targets, betas=(), devices=2 if "tile" in wires else 5
    )
    assert {row.crossbar for row in rows} == {c.name for c in here.netlist.trainable}
    assert any(c.wired for c in here.netlist.trainable)
    assert max(row.relative_error_fd for row in rows) < 1e-6


@pytest.mark.parametrize("synapse", SYNAPSES)
def test_corrected_converges_to_the_adjoint_as_beta_squared(synapse: str) -> None:
    here = tried(synapse, TILES, neuron="diode")
    exact = here.estimate(Adjoint())
    coarse, fine = (relative(here.estimate(AsymEP(beta=beta)), exact) for beta in (1e-1, 1e-2))
    assert 1e-9 < fine < 1e-4
    assert np.log10(coarse / fine) == pytest.approx(2.0, abs=0.15)


def test_nudged_phases_alone_are_exact_through_resistive_wires() -> None:
    # The devices and their wires are reciprocal; the lateral connection is buffered, so it goes.
    document = wired("resistive", TILES, neuron="diode")
    document["synapses"] = [part for part in document["synapses"] if part["kind"] == "resistive"]
    here = case(document, batch=2, **TIGHT | {"method": "layered"})
    exact = here.estimate(Adjoint())
    assert relative(here.estimate(EP(beta=1e-3)), exact) < 1e-5


def test_a_step_sees_the_drop_along_the_wires() -> None:
    """Devices far from the driver lose voltage, and with it slope."""
    document = wired("buffered", WIRES | {"resistance": 500.0, "drive_end": "first", "sense_end": "first"})
    with_wires = case(document, **TIGHT).estimate(Adjoint())
    for part in document["synapses"]:
        del part["wires"]
    without = case(document, **TIGHT).estimate(Adjoint())
    assert relative(with_wires, without) > 0.05


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_training_moves_every_tile_and_rates_reach_them_by_their_stem(kind: str, precision: str) -> None:
    document = wired("buffered", TILES, output="differential_pair")
    optimiser = {"kind": kind, "step": 0.05 if kind == "adam" else 5.0, "rates": {"hidden-out": 0.0}}
    trainer = small_trainer(AsymEP(), document=document, optimiser=optimiser, precision=precision)
    tiles = [c.name for c in trainer.plan.netlist.trainable if ".tile[" in c.name]
    assert {name.split(".tile[")[0] for name in tiles} == {"u-hidden", "hidden-out", "lateral", "feedback"}
    before = trainer.chip.target
    trainer.step(np.arange(8))
    after = trainer.chip.target
    for name in tiles:
        for g, new in zip(before[name], after[name], strict=True):
            assert g is not None
            assert new is not None
            assert new.dtype == precision
            if name.startswith("hidden-out"):
                np.testing.assert_array_equal(g, new)
            else:
                assert np.all((g != new) == (g > 0)), name


def test_a_rate_of_one_tile_comes_before_that_of_its_stem() -> None:
    spec = OptimiserSpec.model_validate({"rates": {"a": 0.5, "a.tile[0,1]": 2.0}})
    found = [spec.rate_of(name) for name in ("a", "a.tile[0,0]", "a.tile[0,1]", "b", "b.tile[0,1]")]
    assert found == [0.5, 0.5, 2.0, 1.0, 1.0]


def test_training_through_wires_lowers_the_cost() -> None:
    document = wired("buffered", TILES, output="differential_pair")
    trainer = small_trainer(AsymEP(), document=document, epochs=4)
    start = trainer.measure()
    metrics = [trainer.epoch(number) for number in range(4)]
    assert metrics[-1]["test_cost"] < 0.8 * start["test_cost"]
    names = [crossbar.name for crossbar in trainer.plan.netlist.trainable]
    assert min(metrics[-1][f"cosine/{name}"] for name in names) > 0.9999


def test_the_general_method_says_what_it_cannot_do() -> None:
    here = case(wired("buffered", WIRES), method="general")
    with pytest.raises(NetlistError, match="behind line resistance needs the layered method"):
        here.estimate(Adjoint())
