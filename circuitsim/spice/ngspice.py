"""ngspice as a program of its own: ``ngspice -b -r``, one process and one folder per deck."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from circuitsim.errors import SimulatorError, SimulatorMissingError
from circuitsim.spice.engine import SpiceRun, SpiceSolution, refuse_unsound
from circuitsim.spice.rawfile import read_raw

__all__ = ["NgspiceEngine", "quiet_environment"]

_LOG_LINES = 12


def quiet_environment() -> dict[str, str]:
    """Return the environment without what changes a simulator's files or the language of its messages."""
    return {**os.environ, "LC_ALL": "C", "SPICE_ASCIIRAWFILE": "0"}


@dataclass(frozen=True, kw_only=True)
class NgspiceEngine:
    """Runs the ngspice program. ``timeout`` [s] is per deck."""

    program: str = "ngspice"
    timeout: float = 300.0

    @cached_property
    def version(self) -> str:
        """The program's version, such as ``39``; empty if it does not say.

        Raises:
            SimulatorMissingError: the program is not there.
            SimulatorError: it does not answer.
        """
        with TemporaryDirectory(prefix="circuitsim-ngspice-") as folder:
            text = self._run(["--version"], Path(folder))
        match = re.search(r"ngspice-(\S+)", text.stdout)
        return match[1] if match else ""

    def run(self, deck: str) -> SpiceRun:
        """Run a deck that asks for one analysis.

        Raises:
            SimulatorMissingError: the program is not there.
            SimulatorError: it crashed, ran out of time, reported a singular matrix or no convergence (it
                may exit with 0 all the same), or wrote no values.
        """
        started = time.perf_counter()
        with TemporaryDirectory(prefix="circuitsim-ngspice-") as folder:
            path = Path(folder)
            (path / "deck.cir").write_text(deck, encoding="utf-8")
            # -n: a user's .spiceinit must not change the answer.
            result = self._run(["-n", "-b", "-r", "deck.raw", "deck.cir"], path)
            log = f"{result.stdout}\n{result.stderr}"
            if result.returncode:
                reason = "crashed" if result.returncode < 0 else "failed"
                raise SimulatorError(
                    f"{reason} with exit code {result.returncode}:\n{_last_lines(log)}", object=self.program
                )
            refuse_unsound(log, self.program)
            raw = path / "deck.raw"
            content = raw.read_bytes() if raw.exists() else b""
            vectors = read_raw(content, file=self.program)
        seconds = time.perf_counter() - started
        return SpiceRun(vectors=vectors, engine=f"ngspice {self.version}".rstrip(), log=log, seconds=seconds)

    def solve(self, deck: str) -> SpiceSolution:
        """Run a deck's ``.op``. Raises what `run` raises."""
        return self.run(deck).solution()

    def close(self) -> None:
        """Nothing runs between decks."""

    def _run(self, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        program = shutil.which(self.program)
        if program is None:
            raise SimulatorMissingError(
                "the program was not found", object=self.program, remedy="Install the package ngspice."
            )
        try:
            return subprocess.run(
                [program, *arguments],
                cwd=folder,
                env=quiet_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SimulatorError(
                f"was stopped after {self.timeout:g} s",
                object=self.program,
                remedy="Raise the timeout, or check a smaller circuit.",
            ) from None
        except OSError as error:
            raise SimulatorMissingError(f"could not be started: {error}", object=self.program) from None


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-_LOG_LINES:])
