"""ngspice as PySpice's shared library. PySpice is GPLv3 and optional: the extra ``spice``."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from circuitsim.errors import CrossCheckError
from circuitsim.spice.engine import SpiceSolution, refuse_unsound

__all__ = ["PySpiceEngine"]


@dataclass(frozen=True, kw_only=True)
class PySpiceEngine:
    """Runs decks in libngspice through PySpice, each in a process of its own. ``timeout`` [s] is per deck."""

    timeout: float = 300.0

    def solve(self, deck: str) -> SpiceSolution:
        """Run a deck's ``.op``.

        Raises:
            CrossCheckError: PySpice or libngspice is missing, the run crashed, ran out of time, reported
                a singular matrix or no convergence, or gave no values.
        """
        if importlib.util.find_spec("PySpice") is None:
            raise CrossCheckError(
                "is not installed", object="PySpice", remedy="Run: pip install 'circuitsim[spice]'."
            )
        with TemporaryDirectory(prefix="circuitsim-pyspice-") as name:
            folder = Path(name)
            (folder / "deck.cir").write_text(deck, encoding="utf-8")
            try:
                result = subprocess.run(
                    [sys.executable, "-W", "ignore", "-m", "circuitsim.spice.pyspice_child", str(folder)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=self.timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise CrossCheckError(
                    f"was stopped after {self.timeout:g} s",
                    object="PySpice",
                    remedy="Raise the timeout, or check a smaller circuit.",
                ) from None
            answer = folder / "answer.json"
            if not answer.exists():
                reason = _reason(result.stderr)
                remedy = None
                if "libngspice" in reason:
                    remedy = "It needs ngspice as a shared library: install the package libngspice0."
                raise CrossCheckError(f"gave no answer: {reason}", object="PySpice", remedy=remedy)
            found = json.loads(answer.read_text(encoding="utf-8"))
        log = "\n".join(found["log"])
        refuse_unsound(log, "PySpice")
        voltage, current = {}, {}
        for key, value in found["values"].items():
            if not np.isfinite(value):
                raise CrossCheckError("reported a value that is not finite", object="PySpice", field=key)
            if key.endswith("#branch"):
                current[key.removesuffix("#branch").lower()] = value
            else:
                voltage[key.lower()] = value
        return SpiceSolution(
            node_voltage=voltage,
            branch_current=current,
            engine=f"PySpice, ngspice {found['version']}",
            log=log,
        )


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "its process ended"
