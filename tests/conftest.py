"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Read when the libraries are first imported, so set before any test module imports them.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("NUMBA_NUM_THREADS", "2")

import pytest
from hypothesis import settings

for _profile in ("default", "ci"):
    settings.register_profile(_profile, deadline=None, derandomize=True, max_examples=50)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ngspice() -> str:
    """The path of the ngspice program; a test that asks for it is skipped where there is none."""
    program = shutil.which("ngspice")
    if program is None:
        pytest.skip("ngspice is not installed (install the package ngspice to run this cross-check)")
    return program
