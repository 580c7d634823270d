"""Read, plan and solve one deck of a 256-128-10 network, against ngspice's whole process: medians, ratios.

Run it from the repository's root: python tests/benchmarks/against_ngspice.py
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from medians import median

import circuitsim as cs
from circuitsim import spice
from circuitsim.netlist import Netlist
from circuitsim.network import parse_network
from circuitsim.spice.reader import read_deck

NEURONS = {
    "tanh": {"kind": "tanh", "gain": 8, "saturation": "200m"},
    "diode": {"kind": "diode", "offset": "100m"},
}


def network(neuron: str) -> Netlist:
    document = {
        "name": neuron,
        "conductance": {"min": "1u", "max": "100u"},
        "inputs": {"x": {"size": 256, "gain": "100m"}},
        "layers": {
            "hidden": {"size": 128, "neuron": NEURONS[neuron]},
            "output": {"size": 10, "neuron": {"kind": "linear"}},
        },
        "synapses": [
            {"from": "x", "to": "hidden", "kind": "resistive"},
            {"from": "hidden", "to": "output", "kind": "resistive" if neuron == "diode" else "buffered"},
        ],
        "output": {"layer": "output"},
        "cost": {"kind": "squared_error", "conductance": "100u"},
    }
    return cs.compile_network(parse_network(document))


def main() -> None:
    print("network  elements  read+plan+solve [ms]  again [ms]  ngspice [ms]  ratio  again  worst [V]")
    nothing = np.empty((1, 0))
    for neuron in NEURONS:
        inputs = np.random.default_rng(0).uniform(-1, 1, (2, 256))
        netlist = spice.with_inputs(network(neuron), inputs[:1])
        deck = spice.write_deck(netlist)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "deck.cir")
            path.write_text(deck)

            def whole(path: Path = path) -> cs.OperatingPoint:
                found = read_deck(path).netlist
                return cs.solve(cs.build_plan(found), found.values(), nothing)

            def process(path: Path = path) -> None:
                command = ["ngspice", "-n", "-b", "-r", "deck.raw", path.name]
                subprocess.run(command, cwd=path.parent, check=True, capture_output=True)

            first = median(whole)
            found = read_deck(path).netlist
            plan, values = cs.build_plan(found), found.values()
            again = median(lambda plan=plan, values=values: cs.solve(plan, values, nothing))
            spiced = median(process)
            solution = spice.NgspiceEngine().solve(deck)
        v = cs.solve(plan, values, nothing).node_voltage[0]
        names = found.node_names
        worst = max(abs(v[k] - solution.node_voltage[name.lower()]) for k, name in enumerate(names) if k)
        count = sum(len(table) for table in found.tables())
        print(
            f"{neuron:8s} {count:8d} {first:21.0f} {again:11.2f} {spiced:13.0f} {spiced / first:6.1f} "
            f"{spiced / again:6.0f} {worst:10.0e}"
        )


if __name__ == "__main__":
    main()
