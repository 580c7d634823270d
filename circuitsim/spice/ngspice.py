"""ngspice as a program of its own: ``ngspice -b -r``, one process and one folder per deck."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from circuitsim.errors import CrossCheckError
from circuitsim.spice.engine import SpiceSolution, refuse_unsound
from circuitsim.spice.rawfile import read_raw

__all__ = ["NgspiceEngine"]

_LOG_LINES = 12
_VECTOR = re.compile(r"(?:(v|i)\((.+)\)|(.+)#branch)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class NgspiceEngine:
    """Runs the ngspice program. ``timeout`` [s] is per deck."""

    program: str = "ngspice"
    timeout: float = 300.0

    @cached_property
    def version(self) -> str:
        """The program's version, such as ``39``; empty if it does not say.

        Raises:
            CrossCheckError: the program is missing.
        """
        with TemporaryDirectory(prefix="circuitsim-ngspice-") as folder:
            text = self._run(["--version"], Path(folder))
        match = re.search(r"ngspice-(\S+)", text.stdout)
        return match[1] if match else ""

    def solve(self, deck: str) -> SpiceSolution:
        """Run a deck's ``.op``.

        Raises:
            CrossCheckError: the program is missing, crashed, ran out of time, reported a singular
                matrix or no convergence (it may exit with 0 all the same), or wrote no values.
        """
        with TemporaryDirectory(prefix="circuitsim-ngspice-") as folder:
            path = Path(folder)
            (path / "deck.cir").write_text(deck, encoding="utf-8")
            # -n: a user's .spiceinit must not change the answer.
            result = self._run(["-n", "-b", "-r", "deck.raw", "deck.cir"], path)
            log = f"{result.stdout}\n{result.stderr}"
            if result.returncode:
                reason = "crashed" if result.returncode < 0 else "failed"
                raise CrossCheckError(
                    f"{reason} with exit code {result.returncode}:\n{_last_lines(log)}", object=self.program
                )
            refuse_unsound(log, self.program)
            raw = path / "deck.raw"
            content = raw.read_bytes() if raw.exists() else b""
        return self._solution(content, log)

    def _solution(self, content: bytes, log: str) -> SpiceSolution:
        voltage: dict[str, float] = {}
        current: dict[str, float] = {}
        for name, values in read_raw(content, file=self.program).items():
            value = float(values[-1])
            if not np.isfinite(value):
                raise CrossCheckError("reported a value that is not finite", object=self.program, field=name)
            match = _VECTOR.fullmatch(name)
            if match is None:
                # A node called time is written without v().
                voltage[name.lower()] = value
            elif match[1] and match[1].lower() == "v":
                voltage[match[2].lower()] = value
            else:
                current[(match[2] or match[3]).lower()] = value
        return SpiceSolution(
            node_voltage=voltage, branch_current=current, engine=f"ngspice {self.version}".rstrip(), log=log
        )

    def _run(self, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        program = shutil.which(self.program)
        if program is None:
            raise CrossCheckError(
                "the program was not found", object=self.program, remedy="Install the package ngspice."
            )
        # A user may have asked for text raw files; messages must not depend on the language.
        environment = {**os.environ, "LC_ALL": "C", "SPICE_ASCIIRAWFILE": "0"}
        try:
            return subprocess.run(
                [program, *arguments],
                cwd=folder,
                env=environment,
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
                object=self.program,
                remedy="Raise the timeout, or check a smaller circuit.",
            ) from None
        except OSError as error:
            raise CrossCheckError(f"could not be started: {error}", object=self.program) from None


def _last_lines(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-_LOG_LINES:])
