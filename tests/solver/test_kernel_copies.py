"""Numbers must not depend on what a process did before: on which kernels it loaded first."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from numba.core.registry import CPUDispatcher

from circuitsim.solver import kernels


def dispatchers() -> Iterator[tuple[str, CPUDispatcher]]:
    for module in pkgutil.iter_modules(kernels.__path__):
        loaded = importlib.import_module(f"{kernels.__name__}.{module.name}")
        for name, found in vars(loaded).items():
            if isinstance(found, CPUDispatcher) and found.py_func.__module__ == loaded.__name__:
                yield f"{module.name}.{name}", found


def test_kernels_that_round_freely_stand_inside_those_that_call_them() -> None:
    """A process takes the first copy it loads of a kernel for all calls, and copies are optimised apart."""
    found = {name: dispatcher.targetoptions for name, dispatcher in dispatchers()}
    free = {name for name, options in found.items() if options.get("fastmath")}
    assert {"relaxing.relax_layers", "nodes.solve_nodes", "steps.sgd_rows", "wired.factor_lines"} <= free
    assert {name for name in free if not found[name].get("forceinline")} == set()
    assert "newton.newton_batch" in found.keys() - free
