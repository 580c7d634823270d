"""PySpice's shared ngspice as a second engine: the same answers, and the same refusals."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from circuitsim.compiler import compile_network
from circuitsim.errors import CrossCheckError
from circuitsim.network import parse_network
from circuitsim.solver import build_plan, solve
from circuitsim.spice import PySpiceEngine, crosscheck_point, with_inputs

needs_pyspice = pytest.mark.skipif(
    find_spec("PySpice") is None, reason="PySpice is not installed (pip install 'circuitsim[spice]')"
)


@needs_pyspice
@pytest.mark.ngspice
def test_a_network_agrees(ngspice: str) -> None:
    spec = parse_network(
        {
            "name": "error",
            "inputs": {"u": {"size": 3, "gain": 0.2}},
            "layers": {
                "h": {"size": 4, "neuron": {"kind": "tanh", "gain": 8, "saturation": 0.3}, "bias": {}},
                "y": {"size": 2, "neuron": {"kind": "diode"}},
            },
            "synapses": [{"from": "u", "to": "h"}, {"from": "h", "to": "y"}, {"from": "y", "to": "h"}],
            "output": {"layer": "y"},
            "cost": {"kind": "squared_error"},
        }
    )
    netlist = compile_network(spec)
    inputs = np.array([0.3, -1.0, 0.7])
    point = solve(build_plan(netlist), netlist.values(), inputs)
    check = crosscheck_point(with_inputs(netlist, inputs), point.node_voltage[0], engine=PySpiceEngine())
    assert check.worst_difference < 1e-11
    assert "PySpice" in check.engine


@needs_pyspice
@pytest.mark.ngspice
def test_a_singular_circuit_is_refused(ngspice: str) -> None:
    with pytest.raises(CrossCheckError, match="singular matrix"):
        PySpiceEngine().solve("* floating\nV1 a 0 1\nR1 a 0 1k\nI1 0 c 1m\nC1 c 0 1p\n.op\n.end\n")


@needs_pyspice
@pytest.mark.ngspice
def test_a_deck_that_cannot_be_read_is_refused(ngspice: str) -> None:
    with pytest.raises(CrossCheckError, match="no operating point"):
        PySpiceEngine().solve("* bad\nV1 a 0 1\nQ1 garbage\n.op\n.end\n")


@needs_pyspice
@pytest.mark.ngspice
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see processes")
def test_a_child_does_not_outlive_a_parent_that_was_killed(ngspice: str) -> None:
    parent = (
        "import os, signal\n"
        "from circuitsim.spice import PySpiceEngine\n"
        "engine = PySpiceEngine()\n"
        "engine.solve('* divider\\nV1 a 0 1\\nR1 a 0 1k\\n.op\\n.end\\n')\n"
        "print(engine.process_id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False)
    child = Path("/proc", done.stdout.strip(), "stat")
    assert done.returncode == -9
    assert done.stdout.strip().isdigit()
    deadline = time.monotonic() + 20
    # Whoever inherits a dead child may leave it as a zombie.
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.1)


def test_without_pyspice_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CrossCheckError, match=r"pip install 'circuitsim\[spice\]'"):
        PySpiceEngine().solve("* any\n.end\n")


@needs_pyspice
@pytest.mark.ngspice
def test_a_run_that_takes_too_long_is_stopped(ngspice: str) -> None:
    with pytest.raises(CrossCheckError, match="was stopped after"):
        PySpiceEngine(timeout=0.01).solve("* slow\nV1 a 0 1\nR1 a 0 1\n.op\n.end\n")


def test_importing_the_engine_imports_no_pyspice() -> None:
    import circuitsim.spice.pyspice

    assert circuitsim.spice.pyspice.PySpiceEngine is PySpiceEngine
    assert not any(name.split(".")[0] == "PySpice" for name in sys.modules)
