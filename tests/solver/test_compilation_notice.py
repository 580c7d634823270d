"""The notice that kernels are being compiled: when they are, once, and not when they come from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import numpy as np
from circuitsim.solver.kernels.compiling import on_first_compilation
from circuitsim.solver.kernels.nodes import solve_nodes

on_first_compilation(lambda: print("compiling"))
columns = [np.zeros((1, 1)) for _ in range(5)]
columns[3] += 1
for _ in range(2):
    solve_nodes(np.ones((1, 1)), np.ones((1, 1)), *columns, np.zeros((1, 1)))
"""


def test_compiling_is_announced_once_and_loading_is_not(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    heard = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert heard == ["compiling\n", ""]
