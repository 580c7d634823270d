"""Experiments on substrates: the same numbers in process and over a network, through interruptions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from served import PROGRAM, Served, serving, start

from circuitsim.errors import InstrumentError, RecordError, SpecError
from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate
from circuitsim.record import RunRecord, read_record
from circuitsim.study import load_experiment, prepare, resume_experiment, run_experiment
from circuitsim.study.subjects import learned_chip
from circuitsim.study.sweep import run_sweep

NETWORK: dict[str, Any] = {
    "name": "tiny",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"pixels": {"size": 64, "gain": "100m"}},
    "layers": {
        "hidden": {
            "size": 8,
            "neuron": {"kind": "tanh", "gain": 4, "saturation": "200m"},
            "bias": {"voltage": "100m"},
        },
        "output": {"size": 10, "neuron": {"kind": "linear"}},
    },
    "synapses": [{"from": "pixels", "to": "hidden"}, {"from": "hidden", "to": "output"}],
    "output": {"layer": "output"},
    "cost": {"kind": "cross_entropy", "conductance": "100u", "scale": "20m"},
}
EXPERIMENT: dict[str, Any] = {
    "name": "loop",
    "network": "network.yaml",
    "substrate": "simulated",
    "cards": [
        {
            "crossbar": {"device_to_device": 0.05, "read_noise": [{"kind": "gaussian", "relative": 0.005}]},
            "amplifier": {"offset": "1m"},
            "dac": {"bits": 12, "range": ["-100m", "100m"]},
            "adc": {"bits": 12, "range": ["-250m", "250m"], "noise": "1m"},
        }
    ],
    "readout": {"gain": 64, "averaging": 2},
    "data": {"set": "digits", "test_fraction": 0.2},
    "estimators": [{"kind": "asymep", "beta": 0.5}, {"kind": "dyadic", "beta": 50}],
    "training": {"epochs": 3, "batch": 240, "probe": 16, "optimiser": {"step": 0.05}},
    "seed": 4,
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "network.yaml").write_text(yaml.safe_dump(NETWORK))
    path = folder / f"{changes.get('name', 'loop')}.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT | changes))
    return path


def same(a: RunRecord, b: RunRecord, *, states: bool = True) -> None:
    """Bit for bit, but for the time that training took, and for what each substrate keeps of itself."""
    assert a.finished
    assert b.finished
    assert list(a.arms) == list(b.arms)
    for name, arm in a.arms.items():
        other = b.arms[name]
        for metric, values in arm.metrics.items():
            if metric != "seconds":
                np.testing.assert_array_equal(values, other.metrics[metric], err_msg=metric)
        for key, array in arm.state.items():
            if states or not key.startswith("substrate/"):
                np.testing.assert_array_equal(array, other.state[key], err_msg=key)
    for key, array in a.extras.items():
        np.testing.assert_array_equal(array, b.extras[key], err_msg=key)


class Stopped(Exception):
    """Stands for a person's Ctrl-C."""


class Stopper:
    """A watcher that does something at one step."""

    def __init__(self, arm: str, epoch: int, act: Any) -> None:
        self.at = (arm, epoch, 2)
        self.act = act

    def begin(self, bench: Any, record: Path) -> None: ...

    def arm(self, name: str, done: int, epochs: int) -> None: ...

    def step(
        self, name: str, epoch: int, step: int, steps: int, running: Mapping[str, float] | None = None
    ) -> None:
        if (name, epoch, step) == self.at:
            self.act()

    def epoch(self, name: str, epoch: int, metrics: Mapping[str, float]) -> None: ...


def stop() -> None:
    raise Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The experiment in process, undisturbed."""
    return run_experiment(write(tmp_path_factory.mktemp("whole")))


class TestInProcess:
    def test_it_learns(self, whole: RunRecord) -> None:
        for arm in whole.arms.values():
            assert arm.metrics["test_accuracy"][-1] > 0.4
            assert arm.metrics["cosine/hidden-output"][-1] > 0.75
            assert 0.01 < arm.metrics["programming_error"][-1] < 0.1  # 5 % of targets within a window
            assert np.isnan(arm.metrics["kcl_residual"]).all()
        assert whole.header["substrate"].startswith("circuitsim,tiny,4,")

    @pytest.mark.parametrize(("arm", "epoch"), [("corrected-centred", 1), ("dyadic", 0), ("dyadic", 2)])
    def test_resumes_to_the_same_numbers(
        self, arm: str, epoch: int, whole: RunRecord, tmp_path: Path
    ) -> None:
        path = write(tmp_path)
        with pytest.raises(Stopped):
            run_experiment(path, watcher=Stopper(arm, epoch, stop))
        record = tmp_path / "loop-s4.h5"
        assert not read_record(record).finished
        same(whole, resume_experiment(record))

    def test_resumes_behind_an_interrupted_transfer(self, tmp_path: Path) -> None:
        """The die has been written, and the record does not know: it is brought back to before."""
        changes = {
            "use": {"kind": "transfer", "fine_tune": 1},
            "training": EXPERIMENT["training"] | {"epochs": 1},
        }
        undisturbed = run_experiment(write(tmp_path / "whole", **changes))
        path = write(tmp_path / "stopped", **changes)
        bench = prepare(load_experiment(path), folder=path.parent, file=path)
        die = simulated_substrate(
            bench.plan.netlist, bench.cost, bench.card, seed=4, readout=bench.experiment.readout
        )
        stopper = Stopper("corrected-centred", 1, stop)
        stopper.at = ("corrected-centred", 1, 1)
        with pytest.raises(Stopped):
            run_experiment(path, watcher=stopper, substrate=die)
        assert die.presentations > 0
        record = path.with_name("loop-s4.h5")
        assert read_record(record).arms["corrected-centred"].epochs_done == 1
        same(undisturbed, resume_experiment(record, substrate=die))

    def test_goes_on_where_it_began_only(self, tmp_path: Path) -> None:
        path = write(tmp_path, substrate=None)
        bench = prepare(load_experiment(path), folder=tmp_path, file=path)

        def die(seed: int) -> SimulatedSubstrate:
            return simulated_substrate(bench.plan.netlist, bench.cost, bench.card, seed=seed)

        with pytest.raises(Stopped):
            run_experiment(path, watcher=Stopper("corrected-centred", 1, stop), substrate=die(4))
        record = tmp_path / "loop-s4.h5"
        with pytest.raises(RecordError, match=r"substrate: began on circuitsim,tiny,4,\S+, and this is none"):
            resume_experiment(record)
        with pytest.raises(
            RecordError, match=r"began on circuitsim,tiny,4,\S+ and this is circuitsim,tiny,5,"
        ):
            resume_experiment(record, substrate=die(5))
        assert resume_experiment(record, substrate=die(4)).finished

    def test_a_substrate_of_ones_own(self, whole: RunRecord, tmp_path: Path) -> None:
        path = write(tmp_path)
        bench = prepare(load_experiment(path), folder=tmp_path, file=path)
        experiment = bench.experiment
        own = simulated_substrate(
            bench.plan.netlist,
            bench.cost,
            bench.card,
            seed=4,
            readout=experiment.readout,
            settings=experiment.solver.settings(),
        )
        same(whole, run_experiment(path, substrate=own))

    @pytest.mark.parametrize("use", ["transfer", "carried"])
    def test_transfers(self, use: str, tmp_path: Path) -> None:
        """Software, or another die, learns first; what it learned is written, then learned on further."""
        how: dict[str, Any] = {"kind": use, "fine_tune": 1} | ({"from_die": 9} if use == "carried" else {})
        changes: dict[str, Any] = {
            "use": how,
            "estimators": [{"kind": "asymep", "beta": 0.5}],
            "cards": [EXPERIMENT["cards"][0], {"crossbar": {"device_to_device": 0.3}}],
        }
        found = run_experiment(write(tmp_path, **changes)).arms["corrected-centred"].metrics
        accuracy = found["test_accuracy"]
        assert len(accuracy) == 5
        assert accuracy[3] < accuracy[2] - 0.03
        assert accuracy[4] != accuracy[3]
        assert np.isnan(found["programming_error"][:3]).all()
        assert (found["programming_error"][3:] > 0.05).all()
        with pytest.raises(Stopped):
            run_experiment(
                write(tmp_path / "again", **changes), watcher=Stopper("corrected-centred", 4, stop)
            )
        resumed = resume_experiment(tmp_path / "again" / "loop-s4.h5").arms["corrected-centred"].metrics
        np.testing.assert_array_equal(resumed["test_accuracy"], accuracy)

    def test_at_an_age(self, tmp_path: Path) -> None:
        """Drift is measured, and learning goes on as if nobody had waited."""
        accuracy = {}
        for age in (0, 3e6):
            path = write(
                tmp_path / str(age),
                cards=["pcm-nandakumar-2019", {"adc": {"bits": 12, "range": [-0.25, 0.25]}}],
                window="card",
                age=age,
                estimators=[{"kind": "dyadic", "beta": 50}],
            )
            accuracy[age] = run_experiment(path).arms["dyadic"].metrics
        np.testing.assert_array_equal(accuracy[0]["train_accuracy"][:1], accuracy[3e6]["train_accuracy"][:1])
        assert abs(accuracy[3e6]["test_cost"][0] / accuracy[0]["test_cost"][0] - 1) > 0.01

    def test_sweeps(self, tmp_path: Path) -> None:
        noisy = {"adc": {"bits": 12, "range": [-0.25, 0.25], "noise": "20m"}}
        write(tmp_path, estimators=[{"kind": "asymep", "beta": 0.5}], cards=[noisy])
        sweep = tmp_path / "sweep.yaml"
        sweep.write_text(
            yaml.safe_dump(
                {
                    "name": "averaging",
                    "experiment": "loop.yaml",
                    "axes": {"readout.averaging": [1, 64]},
                    "dies": 3,
                    "measure": "gradient",
                }
            )
        )
        table = run_sweep(sweep).table.columns
        error = table["relative_error/hidden-output"]
        averaging = table["readout.averaging"]
        assert not any(table["error"])
        assert error[averaging == 64].mean() < 0.6 * error[averaging == 1].mean()
        assert len(set(table["die"])) == 3

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"substrate": "visa"}, "is no substrate.*visa:RESOURCE"),
            ({"substrate": "gpib:7"}, "is no substrate"),
            ({"substrate": {"address": "simulated", "updates": "board"}}, "Use sgd, or updates: host"),
            ({"update": {"method": "pulses"}}, "a host programs conductances"),
            ({"estimators": [{"kind": "adjoint"}]}, "no phase that a substrate forms"),
            ({"solver": {"precision": "float32"}}, "is for runs without a substrate"),
        ],
    )
    def test_refuses(self, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=words):
            load_experiment(write(tmp_path, **changes))

    def test_a_module_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"cannot be imported.*PYTHONPATH"):
            run_experiment(write(tmp_path, substrate="python:no_such_module_here:connect"))

    def test_a_function_of_ones_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: RunRecord
    ) -> None:
        module = tmp_path / "my_bench_board.py"
        module.write_text(
            "from pathlib import Path\n"
            "from circuitsim.study import load_experiment, prepare\n"
            "from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate\n"
            "def connect(netlist, cost):\n"
            f"    path = Path({str(tmp_path)!r}) / 'loop.yaml'\n"
            "    bench = prepare(load_experiment(path), folder=path.parent, file=path)\n"
            "    return simulated_substrate(netlist, cost, bench.card, seed=4,\n"
            "        readout=bench.experiment.readout, settings=bench.experiment.solver.settings())\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        write(tmp_path)
        path = write(tmp_path, name="own", substrate="python:my_bench_board:connect")
        same(whole, run_experiment(path))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    with serving(write(folder), errors=folder / "server.log") as found:
        yield found


def over(served: Served, folder: Path, **changes: Any) -> Path:
    return write(folder, substrate={"address": f"visa:{served.resource}", "timeout": 20}, **changes)


class TestOverTheNetwork:
    def test_the_same_numbers_bit_for_bit(self, served: Served, whole: RunRecord, tmp_path: Path) -> None:
        found = run_experiment(over(served, tmp_path / "client"))
        same(whole, found, states=False)
        assert found.header["substrate"] == whole.header["substrate"]

    def test_gradients_and_a_sweep_of_one_die(self, served: Served, whole: RunRecord, tmp_path: Path) -> None:
        path = over(served, tmp_path / "client")
        done = subprocess.run(
            [PROGRAM, "gradcheck", str(path), "--beta", "1", "--batch", "64", "--devices", "4", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = {(row["crossbar"], row["estimator"]): row["cosine"] for row in json.loads(done.stdout)}
        assert rows["hidden-output", "corrected-centred"] > 0.9
        assert abs(rows["pixels-hidden", "nudged-only"]) < 0.9
        sweep = tmp_path / "client" / "sweep.yaml"
        document = {
            "name": "beta",
            "experiment": "loop.yaml",
            "axes": {"estimators.0.beta": [0.01, 1]},
            "measure": "gradient",
        }
        sweep.write_text(yaml.safe_dump(document | {"dies": 2}))
        with pytest.raises(SpecError, match="is one die"):
            run_sweep(sweep)
        sweep.write_text(yaml.safe_dump(document))
        result = run_sweep(sweep)
        assert not result.lost
        assert len(result.table.columns["point"]) == 4

    def test_the_wrong_circuit(self, served: Served, tmp_path: Path) -> None:
        folder = tmp_path / "client"
        path = over(served, folder)
        other = json.loads(json.dumps(NETWORK))
        other["layers"]["hidden"]["size"] = 7
        (folder / "network.yaml").write_text(yaml.safe_dump(other))
        with pytest.raises(InstrumentError, match="holds another circuit than tiny"):
            run_experiment(path)

    def test_nobody_there(self, tmp_path: Path) -> None:
        path = write(tmp_path, substrate="visa:TCPIP::127.0.0.1::9::SOCKET")
        done = subprocess.run([PROGRAM, "train", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "TCPIP::127.0.0.1::9::SOCKET" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("*.h5"))


def test_a_server_that_is_killed_comes_back_and_the_run_finishes(whole: RunRecord, tmp_path: Path) -> None:
    """kill -9 in an epoch: the run stops with its checkpoint, and ends with the same numbers."""
    circuit, state = write(tmp_path / "served"), tmp_path / "die.npz"
    first = start(circuit, "--state", state, errors=tmp_path / "first.log")
    try:
        path = over(first, tmp_path / "client")

        def kill() -> None:
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(10)

        with pytest.raises(InstrumentError, match=r"epoch 2: .*--resume") as found:
            run_experiment(path, watcher=Stopper("corrected-centred", 1, kill))
        assert first.resource in str(found.value)
        record = path.with_name("loop-s4.h5")
        assert read_record(record).arms["corrected-centred"].epochs_done == 1
        # As long as it is away the run cannot go on, and nothing is lost by trying.
        with pytest.raises(InstrumentError):
            resume_experiment(record)
    finally:
        first.stop(signal.SIGKILL)
    # One that has lost its state is not taken for the same.
    with (
        serving(circuit, port=first.port, errors=tmp_path / "another.log"),
        pytest.raises(InstrumentError, match="--state"),
    ):
        resume_experiment(record)
    with serving(circuit, "--state", state, port=first.port, errors=tmp_path / "second.log"):
        same(whole, resume_experiment(record), states=False)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", r"fails: ZeroDivisionError: division by zero \(my_wrong_board\.py, line 2\)"),
        (
            "takes_nothing",
            r"fails: TypeError: takes_nothing\(\) takes 0 positional arguments but 2 were given",
        ),
        ("makes_nothing", "makes a NoneType, which is no Substrate: it lacks capabilities, program, relax"),
        ("makes_half", "makes a Half, which is no Substrate: its capabilities are none"),
    ],
)
def test_a_function_that_makes_no_substrate(
    function: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("program", "relax", "update", "calibrate", "close")
    (tmp_path / "my_wrong_board.py").write_text(
        "def raises(netlist, cost):\n    1 / 0\n"
        "def takes_nothing(): ...\n"
        "def makes_nothing(netlist, cost): ...\n"
        f"Half = type('Half', (), dict.fromkeys({('capabilities', *names)!r}))\n"
        "def makes_half(netlist, cost):\n    return Half()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_wrong_board", raising=False)
    with pytest.raises(SpecError, match=words):
        run_experiment(write(tmp_path, substrate=f"python:my_wrong_board:{function}"))
    assert not list(tmp_path.glob("*.h5"))


class TestAfterwards:
    """What reads a record of a substrate's run knows what was asked of it, and no more."""

    @pytest.mark.parametrize("kind", ["in_situ", "transfer"])
    def test_the_circuit_of_a_record(self, kind: str, tmp_path: Path) -> None:
        # Pulsed devices: a simulated die that is looked into keeps more of them than a substrate tells.
        use = {"kind": kind} | ({"fine_tune": 1} if kind == "transfer" else {})
        path = write(
            tmp_path,
            cards=["ecram-li-tang-2018"],
            estimators=[{"kind": "dyadic", "beta": 50}],
            training=EXPERIMENT["training"] | {"epochs": 1},
            use=use,
        )
        record = run_experiment(path)
        bench, chip, words = learned_chip(record.path)
        assert words.endswith("the circuit as designed (as asked for)")
        state = record.arms["dyadic"].state
        for crossbar in bench.plan.netlist.trainable:
            plus, _ = chip.values.crossbars[crossbar.name]
            np.testing.assert_array_equal(plus, state[f"conductance/{crossbar.name}/g_plus"])
            assert np.ptp(plus - bench.chip.target[crossbar.name][0]) > 0
