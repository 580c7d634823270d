"""Steps that are compiled as a whole do what the phases do, and leave alone what they are not made for."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from circuits import network_document
from dies import card, trainer
from interpreted import interpreted
from learners import TIGHT, chain_document, feedforward_document, flat, relative

from circuitsim.chip import fabricate
from circuitsim.compiler import compile_network
from circuitsim.errors import ConvergenceError
from circuitsim.learning import (
    EP,
    Adjoint,
    AsymEP,
    Cost,
    Dyadic,
    Estimator,
    OptimiserSpec,
    Samples,
    Trainer,
    compiled_step,
)
from circuitsim.learning.compiled_step import CompiledStep, _opposite
from circuitsim.network import parse_network
from circuitsim.solver import SolverSettings, build_plan, threads

ESTIMATORS: tuple[Estimator, ...] = (
    AsymEP(beta=0.1),
    AsymEP(beta=0.1, centred=False),
    EP(beta=0.1),
    EP(beta=0.1, centred=False),
    Dyadic(),
)
IDEAL = {"kind": "ideal_relu", "polarity": "alternating"}
SHOCKLEY = {"kind": "diode", "offset": "20mV"}
COSTS = {
    "squared error": {"kind": "squared_error", "conductance": "5u", "high": 0.1, "low": -0.1},
    "cross entropy": {"kind": "cross_entropy", "conductance": "5u", "scale": 0.2},
}


def resistive_document(neuron: dict[str, Any]) -> dict[str, Any]:
    """Conductances between layers, which currents pass both ways."""
    names = ["u", "first", "second", "y"]
    return {
        "name": "resistive",
        "inputs": {"u": {"size": 5, "encoding": "signed_pair", "gain": 2.0}},
        "layers": {
            "first": {"size": 7, "neuron": neuron, "bias": {"voltage": 0.5}},
            "second": {"size": 6, "neuron": neuron},
            "y": {"size": 3, "neuron": {"kind": "linear"}, "leak": "3u"},
        },
        "synapses": [{"from": a, "to": b, "kind": "resistive"} for a, b in itertools.pairwise(names)],
        "output": {"layer": "y"},
        "cost": {"kind": "squared_error"},
    }


def looped_document() -> dict[str, Any]:
    """Saturating buffers forward, and from the outputs back: nothing reciprocal, and a loop."""
    document = feedforward_document([4, 9, 3])
    document["synapses"].append({"from": "l1", "to": "l0", "initial": {"center": 0.5, "spread": 0.2}})
    return document


DOCUMENTS = {
    "feedforward": feedforward_document([4, 7, 6, 3]),
    "looped": looped_document(),
    "ideal diodes": resistive_document(IDEAL),
    "Shockley diodes": resistive_document(SHOCKLEY),
    "conductances": resistive_document({"kind": "linear"}),
    "differential outputs": network_document(recurrent=True, output="differential_pair"),
}


def learner(
    document: dict[str, Any],
    estimator: Estimator,
    *,
    cost: str = "squared error",
    samples: int = 12,
    batch: int = 4,
    optimiser: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer on an ideal die with random samples."""
    spec = parse_network(document | {"cost": COSTS[cost]})
    netlist = compile_network(spec, seed=3)
    rng = np.random.default_rng(5)
    data = Samples(
        inputs=rng.uniform(-0.5, 0.5, (samples, spec.input_size)),
        labels=rng.integers(0, spec.output_size, samples),
    )
    return Trainer(
        plan=build_plan(netlist),
        chip=fabricate(netlist),
        cost=Cost.of(spec),
        estimator=estimator,
        optimiser=OptimiserSpec.model_validate(optimiser or {"step": 0.02}),
        train=data,
        test=data,
        classes=spec.output_size,
        batch=batch,
        epochs=3,
        seed=0,
        probe=4,
        settings=SolverSettings(**{"check": False} | settings),
    )


def compiled_of(made: Trainer, batch: int = 4) -> CompiledStep:
    found = made._compiled_step(batch)
    assert found is not None
    return found


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.label)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_compiled_gradient_is_that_of_the_phases(name: str, estimator: Estimator, cost: str) -> None:
    """In float64, at any number of samples: those that fit one pass and those that do not."""
    made = learner(DOCUMENTS[name], estimator, cost=cost, samples=11, **{**TIGHT, "check": False})
    if isinstance(estimator, Dyadic) and name == "Shockley diodes":
        # Slopes of their diodes are not part of it.
        assert made._compiled_step(4) is None
        return
    compiled = compiled_of(made)
    for count in (1, 4, 11):
        inputs, targets = made.train.inputs[:count], made._targets[:count]
        found = compiled.gradient(inputs, targets)
        assert found is not None
        exact = made.estimator.estimate(made.phases(), inputs, targets)
        assert np.linalg.norm(flat(exact)) > 0
        assert relative(found, exact) < 1e-9
        np.testing.assert_allclose(found.outputs, exact.outputs, rtol=1e-11, atol=1e-15)
        assert found.cost == pytest.approx(exact.cost, rel=1e-11)
        assert (found.estimator, found.beta, found.phases) == (exact.estimator, exact.beta, exact.phases)


def test_word_lines_at_opposite_voltages_are_taken_together() -> None:
    """Inputs as signed pairs: half of the word lines of the first crossbar, with all of its devices."""
    made = learner(DOCUMENTS["conductances"], EP(beta=0.1))
    compiled = compiled_of(made)
    folded = dict(zip((x.name for x in compiled.crossbars), compiled.folded, strict=True))
    assert folded["u-first"]
    assert not any(folded[name] for name in folded if name != "u-first")
    assert compiled.words < sum(len(x.word_pos) for x in compiled.crossbars)
    # One line off by a little, and they are no pair.
    gain, column = np.array([2.0, 3.0, -2.0, -3.0]), np.array([0, 1, 0, 1])
    fixed = np.zeros(4)
    assert _opposite(column, gain, fixed)
    assert not _opposite(column, gain * np.array([1, 1, 1, 1 + 1e-12]), fixed)
    assert not _opposite(column[::-1].copy(), np.abs(gain), fixed)
    assert not _opposite(np.array([0, 1, 1, 0]), gain, fixed)
    assert not _opposite(column[:3], gain[:3], fixed[:3])
    assert not _opposite(np.full(2, -1), np.zeros(2), np.array([0.5, 0.5]))
    assert _opposite(np.full(2, -1), np.zeros(2), np.array([0.5, -0.5]))


@pytest.mark.parametrize("name", ["feedforward", "looped", "ideal diodes"])
def test_float32_is_as_good_as_that_of_the_phases(name: str) -> None:
    single = learner(DOCUMENTS[name], AsymEP(beta=0.1), precision="float32")
    double = learner(DOCUMENTS[name], AsymEP(beta=0.1), **TIGHT)
    inputs, targets = single.train.inputs, single._targets
    exact = double.estimator.estimate(double.phases(), inputs, targets)
    found = compiled_of(single).gradient(inputs, targets)
    assert found is not None
    assert found.crossbars["u-l0" if "l0" in single.plan.netlist.groups else "u-first"][0].dtype == np.float32
    assert relative(found, exact) < 1e-4
    assert relative(found, exact) > 1e-9


def test_the_corrected_gradient_is_exact_and_the_nudged_one_is_not() -> None:
    """Against the adjoint, through the compiled phases: second order in beta, and a bias that stays."""
    errors = []
    for beta in (0.2, 0.1, 0.05):
        made = learner(DOCUMENTS["looped"], AsymEP(beta=beta), **TIGHT)
        inputs, targets = made.train.inputs, made._targets
        exact = Adjoint().estimate(made.phases(), inputs, targets)
        found = compiled_of(made).gradient(inputs, targets)
        assert found is not None
        errors.append(relative(found, exact))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)
    made = learner(DOCUMENTS["looped"], EP(beta=0.05), **TIGHT)
    nudged = compiled_of(made).gradient(made.train.inputs, made._targets)
    assert nudged is not None
    assert relative(nudged, exact) > 0.3


@pytest.mark.parametrize(
    "kind", [{"kind": "adam"}, {"kind": "sgd"}, {"kind": "sgd", "momentum": 0.5}], ids=str
)
@pytest.mark.parametrize("name", ["feedforward", "ideal diodes"])
def test_training_goes_where_it_goes_without(name: str, kind: dict[str, Any]) -> None:
    optimiser = {**kind, "step": 0.01, "schedule": {"kind": "exponential", "decay": 0.5}}
    made = learner(DOCUMENTS[name], AsymEP(beta=0.1), optimiser=optimiser, **TIGHT)
    plain = learner(DOCUMENTS[name], AsymEP(beta=0.1), optimiser=optimiser, **TIGHT)
    plain._compilable = False
    start = made.state()
    for epoch in range(3):
        found, wanted = made.epoch(epoch), plain.epoch(epoch)
        for metric in set(wanted) - {"seconds"}:
            assert found[metric] == pytest.approx(wanted[metric], rel=1e-5, abs=1e-9), metric
    assert made._compiled is not None
    assert plain._compiled is None
    ours, theirs = made.state(), plain.state()
    assert set(ours) == set(theirs)
    for key, array in theirs.items():
        np.testing.assert_allclose(ours[key], array, rtol=1e-6, atol=1e-9 * np.abs(array).max(), err_msg=key)
    moved = [
        key for key in start if key.startswith("conductance") and not np.array_equal(start[key], ours[key])
    ]
    assert len(moved) >= len(made.plan.netlist.trainable)


def test_a_chip_once_asked_for_stays_as_it_was() -> None:
    made = learner(DOCUMENTS["feedforward"], AsymEP())
    first = made.chip
    names = list(first.target)
    before = {name: np.array(first.target[name][0]) for name in names}
    made.step(np.arange(4))
    second = made.chip
    after = {name: np.array(second.target[name][0]) for name in names}
    assert made._compiled is not None
    for name in names:
        assert not np.array_equal(before[name], after[name])
        assert second.values.crossbars[name][0] is second.target[name][0]
    assert made.chip is second
    made.step(np.arange(4))
    for name in names:
        assert np.array_equal(first.target[name][0], before[name])
        assert np.array_equal(second.target[name][0], after[name])
    # One that is put in its place is learned on from there.
    made.chip = first
    made.step(np.arange(4, 8))
    assert made._compiled is not None
    assert not np.array_equal(made.chip.target[names[0]][0], after[names[0]])


def test_it_resumes_bit_for_bit_whatever_was_asked_in_between() -> None:
    straight = learner(DOCUMENTS["looped"], AsymEP(), precision="float32")
    whole = [straight.epoch(epoch) for epoch in range(3)]
    first = learner(DOCUMENTS["looped"], AsymEP(), precision="float32")
    first.epoch(0)
    saved = {key: np.array(array) for key, array in first.state().items()}
    again = learner(DOCUMENTS["looped"], AsymEP(), precision="float32")
    again.restore(saved)
    for epoch in (1, 2):
        found = again.epoch(epoch)
        assert {k: v for k, v in found.items() if k != "seconds"} == {
            k: v for k, v in whole[epoch].items() if k != "seconds"
        }
    assert again._compiled is not None
    for key, array in straight.state().items():
        assert np.array_equal(again.state()[key], array), key


LEARN = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_learning_compiled_step import learned_by_a_process
learned_by_a_process(sys.argv[3] == "phases first")
"""


def learned_by_a_process(phases_first: bool) -> None:
    """Print what each network has learned after a few steps, in a process that may have run phases before."""
    for name, document in DOCUMENTS.items():
        made = learner(document, AsymEP(beta=0.1))
        if phases_first:
            targets = made.cost.targets(made.train.labels[:4], made.classes)
            made.estimator.estimate(made.phases(), made.train.inputs[:4], targets)
        for first in (0, 4, 8, 0, 4, 8):
            made.step(np.arange(first, first + 4))
        assert made._compiled is not None
        digest = hashlib.sha256()
        for array in made.state().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        print(name, digest.hexdigest())


def test_what_a_process_did_before_changes_no_bit(repo_root: Path) -> None:
    """A kernel that the phases call on their own stands inside those of a step, too."""
    found = [
        subprocess.run(
            [sys.executable, "-c", LEARN, repo_root / "tests", repo_root / "tests/learning", order],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for order in ("phases first", "steps first")
    ]
    assert found[0].count("\n") == len(DOCUMENTS)
    assert found[0] == found[1]


@pytest.mark.parametrize("batch", [4, 300])
def test_the_number_of_threads_changes_no_bit(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for rows of devices, and samples, to be shared between threads."""
    document = feedforward_document([600, 500, 4])
    found, shares = [], []
    share = threads.share_batch
    monkeypatch.setattr(
        compiled_step,
        "share_batch",
        lambda *a, parts, **b: (shares.append(parts), share(*a, parts=parts, **b)),
    )
    for count in (1, 2, 3):
        for module in (threads, compiled_step):
            monkeypatch.setattr(module, "threads", lambda count=count: count)
        made = learner(document, AsymEP(), samples=batch, batch=batch, precision="float32")
        compiled_of(made, batch)
        for _ in range(2):
            made.step(np.arange(batch))
        found.append(made.state())
    # Parts of the phases' samples are as many as threads, if the batch is worth sharing.
    assert (3 in shares) == (batch > 4)
    for other in found[1:]:
        for key, array in found[0].items():
            assert np.array_equal(other[key], array), key


def test_what_does_not_settle_goes_to_the_phases_and_moves_nothing() -> None:
    """A nudge that outweighs an output's load, and sweeps that run out."""
    for estimator, settings, words in (
        (EP(beta=1e4), {}, "outweighs"),
        (AsymEP(), {"max_iterations": 1, "method": "layered"}, "iterations ran out"),
    ):
        made = learner(DOCUMENTS["looped"], estimator, **settings)
        compiled = compiled_of(made)
        assert compiled.gradient(made.train.inputs, made._targets) is None
        before = {name: np.array(pair[0]) for name, pair in compiled.conductance.items()}
        with pytest.raises(ConvergenceError, match=words):
            made.step(np.arange(4))
        for name, g in before.items():
            assert np.array_equal(made.chip.target[name][0], g)


def test_it_is_taken_only_for_what_it_knows() -> None:
    plain = DOCUMENTS["feedforward"]
    assert learner(plain, AsymEP())._compiled_step(4) is not None
    assert learner(plain, Adjoint())._compiled_step(4) is None
    assert learner(plain, AsymEP(), method="general")._compiled_step(4) is None
    assert learner(plain, AsymEP(), check=True)._compiled_step(4) is None
    # Beyond some size of batch BLAS is faster.
    assert learner(plain, AsymEP())._compiled_step(1_000_000) is None
    for more in ({"wires": {"resistance": 2.0}}, {"virtual_ground": True}):
        changed = {**plain, "synapses": [{**synapse, **more} for synapse in plain["synapses"]]}
        assert learner(changed, AsymEP())._compiled_step(4) is None
    both_ways = chain_document([(2.0, 1.0)])
    assert learner(both_ways, AsymEP())._compiled_step(4) is None


def test_dies_whose_devices_or_readings_are_not_ideal_take_no_such_step() -> None:
    assert trainer(AsymEP())._compiled_step(8) is not None
    for die in (
        card(crossbar={"device_to_device": 0.05}),
        card(crossbar={"read_noise": [{"kind": "gaussian", "relative": 0.01}]}),
        card(adc={"bits": 8, "range": [-1.0, 1.0]}),
        card(amplifier={"correction_gain": 0.05}),
    ):
        assert trainer(AsymEP(), die)._compiled_step(8) is None
    assert trainer(AsymEP(), update={"bias": 0.01})._compiled_step(8) is None
    # Spread of amplifiers is part of the circuit.
    made = trainer(AsymEP(), card(amplifier={"gain": 0.05, "offset": "1mV"}))
    compiled = made._compiled_step(8)
    assert compiled is not None
    inputs, targets = made.train.inputs[:8], made._targets[:8]
    found = compiled.gradient(inputs, targets)
    assert found is not None
    assert relative(found, made.estimator.estimate(made.phases(), inputs, targets)) < 1e-7


def test_a_dual_network_of_its_own_is_left_to_the_phases() -> None:
    made = trainer(Dyadic(), card(crossbar={"device_to_device": 0.05}))
    assert made.chip.copy is not None
    assert made._compiled_step(8) is None


def few_steps() -> list[Any]:
    """States of a learner after two compiled steps, for a run without the compiler."""
    found: list[Any] = []
    for name, estimator in (("looped", AsymEP()), ("ideal diodes", EP()), ("feedforward", Dyadic())):
        made = learner(DOCUMENTS[name], estimator)
        compiled_of(made)
        for _ in range(2):
            found.append(made.step(np.arange(4)).outputs)
        found += [array for _, array in sorted(made.state().items())]
    return found


def test_kernels_do_without_the_compiler_what_they_do_with_it() -> None:
    for found, wanted in zip(interpreted(__file__, "few_steps"), few_steps(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-12 * np.abs(wanted).max())


def test_a_gradient_is_not_changed_by_the_next_step() -> None:
    made = learner(DOCUMENTS["ideal diodes"], EP())
    first = made.step(np.arange(4))
    kept = replace(first, crossbars={name: first.crossbars[name] for name in first.crossbars})
    outputs, arrays = np.array(first.outputs), np.array(flat(kept))
    made.step(np.arange(4, 8))
    assert np.array_equal(first.outputs, outputs)
    assert np.array_equal(flat(first), arrays)
