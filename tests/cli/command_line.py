"""The installed command, what it leaves, and small files for it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROGRAM = str(Path(sys.executable).with_name("circuitsim"))

SMALL: dict[str, Any] = {
    "name": "small",
    "conductance": {"min": "1u", "max": "100u"},
    "inputs": {"x": {"size": 3}},
    "layers": {
        "hidden": {"size": 4, "neuron": {"kind": "tanh"}, "bias": {}},
        "out": {"size": 2, "neuron": {"kind": "linear"}},
    },
    "synapses": [{"from": "x", "to": "hidden"}, {"from": "hidden", "to": "out"}],
    "output": {"layer": "out"},
    "cost": {"kind": "squared_error"},
}

DIGITS: dict[str, Any] = {
    "name": "digits16",
    "inputs": {"pixels": {"size": 64, "gain": "100mV"}},
    "layers": {
        "hidden": {"size": 16, "neuron": {"kind": "tanh", "saturation": "200mV"}},
        "output": {"size": 10, "neuron": {"kind": "linear"}},
    },
    "synapses": [{"from": "pixels", "to": "hidden"}, {"from": "hidden", "to": "output"}],
    "output": {"layer": "output"},
    "cost": {"kind": "cross_entropy", "conductance": "100u", "scale": "20mV"},
}

EXPERIMENT: dict[str, Any] = {
    "name": "quick",
    "network": "digits16.yaml",
    "estimators": [{"kind": "asymep"}, {"kind": "adjoint"}],
    "training": {"epochs": 2, "batch": 128},
    "seed": 5,
}

# Two equal resistors across one volt, with names that rich would take for markup.
DIVIDER = """
format: circuitsim-netlist/1
title: "[bold]half[/bold] [S]"
nodes: ["[red]", ":smile:"]
elements:
  vsource: {name: [V1], pos: ["[red]"], neg: ["0"], voltage: [1.0]}
  resistor: {name: [R1, R2], pos: ["[red]", ":smile:"], neg: [":smile:", "0"], conductance: [0.001, 0.001]}
outputs: {pos: [":smile:"], neg: ["0"]}
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def refuses(self, *fragments: str, code: int = 2) -> None:
        """Check that this is one clear error: its exit code, and words that it must hold."""
        assert self.code == code, self.err or self.out
        assert self.out == ""
        assert "Traceback" not in self.err
        assert self.err.count("error: ") == 1, self.err
        for fragment in fragments:
            assert fragment in self.err


class Command(Protocol):
    def __call__(self, *args: object) -> Outcome: ...


def program(*args: object, **options: Any) -> Outcome:
    """Run the installed command as a person does."""
    done = subprocess.run(
        [PROGRAM, *map(str, args)], capture_output=True, text=True, timeout=120, check=False, **options
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
