"""The rules about who may import what, and how light the package starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"PySpice", "dask", "h5py", "matplotlib", "numba", "pooch", "scipy", "sklearn"}
VAGUE = {"base", "common", "helper", "helpers", "manager", "managers", "util", "utils"}


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the interpreter that runs the tests, in a process of its own."""
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "PYTHONPATH": str(cwd)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def imported(importtime: str) -> dict[str, float]:
    """Read the report of ``python -X importtime``: module name -> cumulative time [s]."""
    rows = re.findall(r"^import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)$", importtime, flags=re.MULTILINE)
    return {name: int(microseconds) * 1e-6 for microseconds, name in rows}


def complaints(importtime: str) -> str:
    """Return what a process wrote to its standard error besides the report of ``-X importtime``."""
    return "\n".join(line for line in importtime.splitlines() if not line.startswith("import time:"))


def heavy_imports(modules: dict[str, float]) -> set[str]:
    """Return the libraries among ``modules`` that no light command may load."""
    return HEAVY & {name.partition(".")[0] for name in modules}


def test_import_contracts(repo_root: Path) -> None:
    # In a process of its own, because import-linter reconfigures logging.
    result = run_python(
        "-c",
        "import sys; from importlinter.cli import lint_imports;"
        "sys.exit(lint_imports(config_filename='pyproject.toml', no_cache=True, no_logo=True))",
        cwd=repo_root,
    )
    if result.returncode != 0:
        pytest.fail(
            "The import contracts of pyproject.toml are broken; `make lint` shows the same.\n\n"
            f"{result.stdout}{result.stderr}",
            pytrace=False,
        )


def test_module_names_say_what_is_inside(repo_root: Path) -> None:
    package = repo_root / "circuitsim"
    paths = [path.relative_to(repo_root) for path in package.rglob("*.py")]
    vague = sorted(
        str(path) for path in paths if VAGUE & {part.strip("_") for part in path.with_suffix("").parts}
    )
    assert paths
    assert not vague, f"name these after what they do: {', '.join(vague)}"


def test_import_is_light(repo_root: Path) -> None:
    times = []
    for _ in range(3):
        result = run_python("-X", "importtime", "-c", "import circuitsim", cwd=repo_root)
        assert result.returncode == 0, complaints(result.stderr)
        modules = imported(result.stderr)
        assert not heavy_imports(modules), "import these inside the functions that need them"
        times.append(modules["circuitsim"])
    assert min(times) < 0.5, f"`import circuitsim` took {min(times):.2f} s at best"


def test_help_is_light(repo_root: Path) -> None:
    result = run_python("-X", "importtime", "-m", "circuitsim", "--help", cwd=repo_root)
    assert result.returncode == 0, complaints(result.stderr)
    assert "Usage" in result.stdout
    modules = imported(result.stderr)
    assert "typer" in modules, "the report of -X importtime was not understood"
    assert not heavy_imports(modules), "import these inside the commands that need them"
