"""Every phase and its gradient against SPICE: two sizes of network, two kinds of neuron, every engine.

Run it from the repository's root: python tests/benchmarks/crosscheck_networks.py [ENGINE ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from circuitsim.spice.engines import ENGINES
from circuitsim.study.crosscheck import CrossCheckStudy
from circuitsim.study.subjects import read_subject

KINDS: dict[str, dict[str, Any]] = {
    "tanh buffers": {"neuron": {"kind": "tanh", "gain": 8, "saturation": "200m"}, "synapse": "buffered"},
    "diodes": {"neuron": {"kind": "diode", "offset": "100m"}, "synapse": "resistive"},
}


def document(inputs: int, hidden: int, kind: str) -> dict[str, Any]:
    neuron, synapse = KINDS[kind]["neuron"], KINDS[kind]["synapse"]
    return {
        "name": f"n{inputs}-{hidden}-10",
        "conductance": {"min": "1u", "max": "100u"},
        "inputs": {"u": {"size": inputs, "gain": "100m"}},
        "layers": {
            "hidden": {"size": hidden, "neuron": neuron},
            "output": {"size": 10, "neuron": {"kind": "linear"}},
        },
        "synapses": [
            {"from": "u", "to": "hidden", "kind": synapse},
            {"from": "hidden", "to": "output", "kind": synapse},
        ],
        "output": {"layer": "output"},
        "cost": {"kind": "squared_error", "conductance": "100u"},
    }


def main() -> None:
    print("network     neurons       engine               worst [V]  gradient: corrected  dyadic  free ratio")
    for engine_name in sys.argv[1:] or ENGINES:
        engine = ENGINES[engine_name](600.0)
        for inputs, hidden in ((64, 32), (256, 128)):
            for kind in KINDS:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, "network.yaml")
                    path.write_text(yaml.safe_dump(document(inputs, hidden, kind)))
                    subject = read_subject(path, samples=1)
                study = CrossCheckStudy(subject, engine)
                study.run()
                phases, gradients = study.phase_results(), study.gradient_results()
                worst = {
                    name: max(g.to_ours for g in gradients if g.estimator.startswith(name))
                    for name in ("corrected", "dyadic")
                }
                print(
                    f"{subject.name:11s} {kind:13s} {engine_name:19s} "
                    f"{max(p.difference for p in phases):10.1e} {worst['corrected']:20.1e} "
                    f"{worst['dyadic']:7.1e} {phases[0].ratio:10.0f}",
                    flush=True,
                )
        engine.close()


if __name__ == "__main__":
    main()
