"""Fixtures of the SPICE tests."""

from __future__ import annotations

import pytest

from circuitsim.spice import NgspiceEngine


@pytest.fixture(scope="session")
def engine(ngspice: str) -> NgspiceEngine:
    """The ngspice program."""
    return NgspiceEngine(program=ngspice, timeout=60.0)
