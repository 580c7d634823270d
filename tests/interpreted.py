"""Kernels without the compiler: a function of a test module, run in a process with NUMBA_DISABLE_JIT=1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def interpreted(module: str, function: str) -> Any:
    """Return what ``function`` of a test file returns, arrays as lists, from an uncompiled run."""
    file = Path(module)
    code = (
        "import json, sys\n"
        f"sys.path[:0] = [{str(file.parent)!r}, {str(file.parents[1])!r}]\n"
        "import numba\n"
        "assert numba.config.DISABLE_JIT\n"
        f"import {file.stem} as here\n"
        f"print(json.dumps([a.tolist() if hasattr(a, 'tolist') else a for a in here.{function}()]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
