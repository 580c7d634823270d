"""ngspice through PySpice: as its shared library, or as its server process.

PySpice is GPLv3 and optional: the extra ``spice``. It runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import weakref
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, Literal, Self

import numpy as np

from circuitsim.errors import SimulatorError, SimulatorMissingError
from circuitsim.spice.engine import SpiceRun, SpiceSolution, refuse_unsound
from circuitsim.spice.ngspice import NgspiceEngine, quiet_environment

__all__ = ["PySpiceEngine"]

_CHILD = Path(__file__).with_name("pyspice_child.py")
_LIBRARY = "It needs ngspice as a shared library: install the package libngspice0-dev."


class PySpiceEngine:
    """Runs decks through PySpice, in a child process that is replaced after ``decks_per_process`` decks.

    ``shared`` calls libngspice in the child; ``subprocess`` lets PySpice start ``ngspice -s`` for each deck.
    The library leaks from deck to deck, hence the replacement; after a failure of any kind the next deck
    gets a new process too. ``timeout`` [s] is per deck, the start of a process included. One deck at a time.
    """

    def __init__(
        self,
        *,
        mode: Literal["shared", "subprocess"] = "shared",
        timeout: float = 300.0,
        decks_per_process: int = 50,
        program: str = "ngspice",
    ) -> None:
        self.mode: Literal["shared", "subprocess"] = mode
        self.timeout = timeout
        self.decks_per_process = decks_per_process
        self.program = program
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """The child process, or None between processes."""
        return None if self._child is None else self._child.process.pid

    def run(self, deck: str) -> SpiceRun:
        """Run a deck that asks for one analysis.

        Raises:
            SimulatorMissingError: PySpice or ngspice is not installed.
            SimulatorError: the run crashed, ran out of time, reported a singular matrix or no convergence,
                or gave no values.
        """
        child = self._ready()
        try:
            found = child.ask(deck, self.timeout)
        except BaseException:
            # Whatever it was doing, nobody waits for it any more.
            self.close()
            raise
        if child.decks >= self.decks_per_process or "error" in found:
            self.close()
        if "error" in found:
            self._refuse(found["error"])
        refuse_unsound(found["log"], "PySpice")
        return SpiceRun(
            vectors={name: np.array(values, dtype=np.float64) for name, values in found["values"].items()},
            engine=self._name(found["version"]),
            log=found["log"],
            seconds=found["seconds"],
        )

    def solve(self, deck: str) -> SpiceSolution:
        """Run a deck's ``.op``. Raises what `run` raises."""
        return self.run(deck).solution()

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _ready(self) -> _Child:
        if self._child is None:
            if not hasattr(os, "killpg"):
                raise SimulatorMissingError(
                    "needs process groups, which this system lacks", object="PySpice", remedy="Use ngspice."
                )
            if importlib.util.find_spec("PySpice") is None:
                raise SimulatorMissingError(
                    "is not installed", object="PySpice", remedy="Run: pip install 'circuitsim[spice]'."
                )
            program = self.program
            if self.mode == "subprocess":
                program = shutil.which(self.program) or ""
                if not program:
                    raise SimulatorMissingError(
                        "the program was not found",
                        object=self.program,
                        remedy="Install the package ngspice.",
                    )
            self._child = _Child(self.mode, program)
        return self._child

    def _refuse(self, reason: str) -> None:
        if "libngspice" in reason:
            raise SimulatorMissingError(f"gave no answer: {reason}", object="PySpice", remedy=_LIBRARY)
        raise SimulatorError(f"gave no answer: {reason}", object="PySpice")

    def _name(self, ngspice: str) -> str:
        return f"{self._versions} {ngspice}".rstrip()

    @cached_property
    def _versions(self) -> str:
        try:
            own = version("PySpice")
        except PackageNotFoundError:
            own = "of unknown version"
        ngspice = ""
        if self.mode == "subprocess":
            ngspice = NgspiceEngine(program=self.program, timeout=self.timeout).version
        return f"PySpice {own} ({self.mode}), ngspice {ngspice}".rstrip()


class _Child:
    """One process; ``decks`` counts what it was asked."""

    def __init__(self, mode: str, program: str) -> None:
        self.decks = 0
        self._folder = TemporaryDirectory(prefix="circuitsim-pyspice-")
        self._stderr: IO[bytes] = TemporaryFile()  # noqa: SIM115 - closed by _end
        # A folder of its own, and no home: a user's .spiceinit must not change the answer.
        environment = {**quiet_environment(), "HOME": self._folder.name}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(_CHILD), mode, program],
            cwd=self._folder.name,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # Ctrl-C is for us to handle, and what PySpice starts must end with it.
            start_new_session=True,
        )
        self._finalizer = weakref.finalize(self, _end, self.process, self._stderr, self._folder)

    def ask(self, deck: str, timeout: float) -> dict[str, Any]:
        """Return the child's answer to a deck.

        Raises:
            SimulatorError: no answer in time, or the process ended instead.
        """
        deadline = time.monotonic() + timeout
        self.decks += 1
        path = Path(self._folder.name) / "deck.cir"
        path.write_text(deck, encoding="utf-8")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{path}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._crashed() from None
        answer = bytearray()
        channel = self.process.stdout.fileno()
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([channel], [], [], left)[0]:
                raise SimulatorError(
                    f"was stopped after {timeout:g} s",
                    object="PySpice",
                    remedy="Raise the timeout, or check a smaller circuit.",
                )
            part = os.read(channel, 1 << 20)
            if not part:
                raise self._crashed()
            answer += part
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        self._finalizer()

    def _crashed(self) -> SimulatorError:
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").splitlines()
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return SimulatorError(f"crashed: its process {how}{last}", object="PySpice")


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes], folder: TemporaryDirectory[str]) -> None:
    """Kill a process and all that it started, and give back what was held for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    stderr.close()
    folder.cleanup()
