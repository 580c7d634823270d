"""The process in which PySpice runs, deck after deck, until its standard input ends.

``python pyspice_child.py shared|subprocess PROGRAM`` reads the path of a deck from each line of standard
input and answers with one line of JSON: ``{"values": {name: [...]}, "log": ..., "version": ..., "seconds":
...}``, or ``{"error": ...}``, and then it ends. A library that leaks, and takes its process with it when it
crashes, gets a process of its own. Imports nothing of circuitsim: it must start quickly.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

Values = Mapping[str, list[float]]


class _Simulator(Protocol):
    version: str

    def run(self, deck: str, log: list[str]) -> Values:
        """Return the vectors of a deck's one analysis; append to the log what is said meanwhile."""


def _shared() -> _Simulator:
    """ngspice as a library in this process."""
    # Debian's run-time package has no libngspice.so, only the name with its version.
    os.environ.setdefault("NGSPICE_LIBRARY_PATH", "libngspice.so.0")
    from PySpice.Spice.NgSpice.Shared import NgSpiceShared, ffi, ffi_string_utf8

    said: list[str] = []

    class Library(NgSpiceShared):
        @staticmethod
        def _send_char(message: Any, ngspice_id: int, user_data: Any) -> int:
            """Keep what ngspice says. PySpice takes every line on stderr for an error, notes included."""
            prefix, _, content = ffi_string_utf8(message).partition(" ")
            said.append(content)
            shared = ffi.from_handle(user_data)
            (shared._stderr if prefix == "stderr" else shared._stdout).append(content)
            return 0

    class Simulator:
        def __init__(self) -> None:
            self.library = Library.new_instance()
            self.version = str(self.library.ngspice_version)

        def run(self, deck: str, log: list[str]) -> Values:
            said.clear()
            self.library.load_circuit(deck)
            self.library.run()
            log += said
            # A deck that cannot be parsed leaves the plot of physical constants as the last one.
            name = self.library.last_plot
            if name == "const":
                lines = [line for line in said if line.strip()]
                raise RuntimeError(f"no operating point; ngspice said: {'; '.join(lines[-8:])}")
            # PySpice 1.5 offers a vector's numbers by `_data` alone.
            plot = self.library.plot(None, name)
            values = {vector: numbers._data.tolist() for vector, numbers in plot.items()}
            # Else the next deck's plot stands beside this one, and a deck that fails leaves this one.
            self.library.destroy()
            self.library.remove_circuit()
            return values

    return Simulator()


def _subprocess(program: str) -> _Simulator:
    """ngspice in server mode, one process per deck, started by PySpice."""
    import numpy as np
    from PySpice.Spice.NgSpice import Server
    from PySpice.Spice.NgSpice.RawFile import RawFile

    class Output(RawFile):
        """PySpice 1.5's reader, with what it stumbles over made good.

        Notes before and within the header; ``Warning`` in a title or among the numbers, which it counts;
        units that it does not know; and `numpy.fromstring`, which reads no bytes any more.
        """

        _name_to_unit: ClassVar = defaultdict(lambda: None, RawFile._name_to_unit)

        def _read_header(self, stdout: bytes) -> bytes:
            head, mark, data = stdout.partition(b"Binary:\n")
            above, _, below = head.partition(b"\nDate:")
            temperature = next((line for line in above.splitlines() if line.startswith(b"Doing")), b"Doing")
            fields, _, listing = below.partition(b"\nNo. of Data Columns")
            columns, *variables = listing.splitlines()
            plain = [b"Circuit: deck", temperature, b"Title: deck", b"Date:" + fields]
            plain += [b"No. of Data Columns" + columns]
            plain += [line for line in variables if line.startswith(b"\t")]
            super()._read_header(b"\n".join(plain) + b"\n" + mark)
            return data

        def _read_variable_data(self, raw_data: bytes) -> None:
            shape = (self.number_of_points, self.number_of_variables)
            if self.flags != "real" or len(raw_data) < 8 * shape[0] * shape[1]:
                raise RuntimeError("the raw data is cut short, or not real")
            data = np.frombuffer(raw_data, dtype=np.float64, count=shape[0] * shape[1]).reshape(shape)
            for variable in self.variables.values():
                variable.data = data[:, variable.index]

    class Ngspice(Server.SpiceServer):
        said: list[str]

        def _parse_stdout(self, stdout: bytes) -> None:
            self.said += stdout.partition(b"Binary:\n")[0].decode("utf-8", "replace").splitlines()
            super()._parse_stdout(stdout)

        def _parse_stderr(self, stderr: str) -> int | None:
            self.said += stderr.splitlines()
            points: int | None = super()._parse_stderr(stderr)
            return points

    Server.RawFile = Output

    class Simulator:
        version = ""

        def run(self, deck: str, log: list[str]) -> Values:
            server = Ngspice(spice_command=program)
            server.said = log
            try:
                output = server(deck)
            except NameError as error:
                lines = [line for line in log if line.strip()]
                raise RuntimeError(f"{error}: {'; '.join(lines[-8:])}") from error
            return {name: variable.data.tolist() for name, variable in output.variables.items()}

    return Simulator()


def _follow(parent: int) -> None:
    """Leave when the process that started this one is gone: a hung simulation would go on for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(mode: str, program: str) -> None:
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    # Libraries may print: what belongs to the protocol keeps its own channels.
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)

    def answer(document: Mapping[str, object]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    log: list[str] = []
    try:
        simulator = _shared() if mode == "shared" else _subprocess(program)
        for line in requests:
            started = time.perf_counter()
            log = []
            values = simulator.run(Path(line.rstrip("\n")).read_text(encoding="utf-8"), log)
            seconds = time.perf_counter() - started
            answer(
                {"values": values, "log": "\n".join(log), "version": simulator.version, "seconds": seconds}
            )
    except Exception as error:
        answer({"error": f"{error}" or type(error).__name__, "log": "\n".join(log)})


if __name__ == "__main__":
    main(*sys.argv[1:])
    # The library may crash in its own clean-up; the answers are written.
    os._exit(0)
