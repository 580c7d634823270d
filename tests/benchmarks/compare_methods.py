"""Both solver methods, and ngspice where it is installed, on the example networks: medians and ratios.

Run it from the repository's root: python tests/benchmarks/compare_methods.py
"""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
from medians import median

import circuitsim as cs
from circuitsim.spice import NgspiceEngine, with_inputs, write_deck


def main() -> None:
    inputs = cs.load_digits().test_inputs
    layered, general = cs.SolverSettings(method="layered"), cs.SolverSettings(method="general")
    print(
        "network    batch  layered [ms]  general [ms]  general/layered  ngspice [ms]  ngspice/general"
        "  worst [V]"
    )
    for name in ("digits", "hopfield", "resistive"):
        netlist = cs.compile_network(cs.load_network(f"netlists/{name}.yaml"))
        plan, values = cs.build_plan(netlist), netlist.values()
        for batch in (1, 64):
            u = inputs[:batch]
            fast = median(partial(cs.solve, plan, values, u, layered))
            slow = median(partial(cs.solve, plan, values, u, general))
            a = cs.solve(plan, values, u, layered).node_voltage
            b = cs.solve(plan, values, u, general).node_voltage
            spice, ratio = "", ""
            if batch == 1 and shutil.which("ngspice"):
                deck, engine = write_deck(with_inputs(netlist, u[0])), NgspiceEngine()
                took = median(partial(engine.solve, deck))
                spice, ratio = f"{took:.0f}", f"{took / slow:.0f}"
            worst = float(np.abs(a - b).max())
            print(
                f"{name:10s} {batch:5d} {fast:13.2f} {slow:13.2f} {slow / fast:16.1f} {spice:>13s} "
                f"{ratio:>16s} {worst:10.0e}"
            )


if __name__ == "__main__":
    main()
