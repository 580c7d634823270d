"""Where a result comes from: versions, machine, time, command line."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py

__all__ = ["provenance"]

_PACKAGES = ("circuitsim", "numpy", "numba", "h5py")


def provenance() -> dict[str, Any]:
    """Return what identifies this process and machine, in plain JSON types.

    Keys: ``circuitsim``, ``python``, ``numpy``, ``numba``, ``h5py``, ``hdf5`` (versions; None where a
    package is not installed), ``platform``, ``cpu`` (model name), ``threads`` (CPUs that this process
    may use), ``created`` (UTC, ISO 8601), ``argv``.
    """
    return {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "hdf5": h5py.version.hdf5_version,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": _threads(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
