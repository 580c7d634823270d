"""A served die for tests: the installed `circuitsim serve` on a free port, and a plain client for it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROGRAM = str(Path(sys.executable).with_name("circuitsim"))
_READY = re.compile(r"^serving (?P<what>.+) on (?P<host>\S+):(?P<port>\d+): visa (?P<resource>\S+)$")
_PATIENCE = 120.0
"""How long a server may take to start: kernels may have to be compiled."""

TINY = """\
name: tiny
conductance: {min: 1u, max: 100u}
inputs:
  x: {size: 3, gain: 100mV}
layers:
  hidden: {size: 4, neuron: {kind: tanh, saturation: 200mV}, bias: {}}
  out: {size: 2, neuron: {kind: linear}}
synapses:
  - {from: x, to: hidden}
  - {from: hidden, to: out}
output: {layer: out}
cost: {kind: squared_error}
"""
"""A network of 3 inputs and 2 outputs, with crossbars to program."""


@dataclass
class Served:
    """A server that runs: where, and as which process."""

    process: subprocess.Popen[str]
    what: str
    host: str
    port: int
    resource: str
    """As PyVISA names it."""
    errors: Path
    """What it wrote on standard error."""

    def client(self, timeout: float = 20.0) -> Client:
        return Client(self.host, self.port, timeout=timeout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def said(self) -> str:
        """Return what it has written on standard error so far."""
        return self.errors.read_text()


def start(
    circuit: Path, *options: object, errors: Path, port: int = 0, environment: dict[str, str] | None = None
) -> Served:
    """Start `circuitsim serve` and wait until it says where it is."""
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(circuit), "--port", str(port), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | (environment or {}),
        )
    assert process.stdout is not None
    deadline = time.monotonic() + _PATIENCE
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = process.stdout.readline() if ready else ""
        found = _READY.match(line.strip())
        if found is not None:
            break
        if not line:
            process.kill()
            process.wait()
            process.stdout.close()
            raise AssertionError(f"the server did not start: {errors.read_text()}")
    return Served(
        process=process,
        what=found["what"],
        host=found["host"],
        port=int(found["port"]),
        resource=found["resource"],
        errors=errors,
    )


@contextlib.contextmanager
def serving(
    circuit: Path, *options: object, errors: Path, port: int = 0, environment: dict[str, str] | None = None
) -> Iterator[Served]:
    """Start a server, and stop it whatever happens."""
    served = start(circuit, *options, errors=errors, port=port, environment=environment)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.stop()
        elif served.process.stdout is not None:
            served.process.stdout.close()


@dataclass
class Client:
    """A client without any library: what it sends is what goes over the wire."""

    host: str
    port: int
    timeout: float = 20.0
    _buffer: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.socket = socket.create_connection((self.host, self.port), self.timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def write(self, command: bytes | str, *blocks: NDArray[np.float64]) -> None:
        """Send one message: a command, and blocks at its end."""
        head = command if isinstance(command, bytes) else command.encode()
        self.send(head + b",".join(map(floats, blocks)) + b"\n")

    def line(self) -> str:
        """Return the next line, without its end; an empty one when the server has closed."""
        while b"\n" not in self._buffer:
            if not self._more():
                break
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line.decode()

    def query(self, command: bytes | str) -> str:
        self.write(command)
        return self.line()

    def block(self) -> bytes:
        """Return the next response, which must be one block."""
        self._need(2)
        assert self._buffer[:1] == b"#", bytes(self._buffer[:80])
        digits = int(self._buffer[1:2])
        self._need(2 + digits)
        size = int(self._buffer[2 : 2 + digits])
        self._need(3 + digits + size)
        found = bytes(self._buffer[2 + digits : 2 + digits + size])
        assert self._buffer[2 + digits + size] == 0x0A
        del self._buffer[: 3 + digits + size]
        return found

    def floats(self, command: bytes | str) -> NDArray[np.float64]:
        """Ask for a block of doubles."""
        self.write(command)
        return np.frombuffer(self.block(), dtype="<f8")

    def errors(self) -> list[str]:
        """Return the queued errors, oldest first."""
        found: list[str] = []
        while not (entry := self.query("SYST:ERR?")).startswith("0,"):
            found.append(entry)
        return found

    def closed(self) -> bool:
        """Whether the server closes the connection, whatever it says before; waits for that."""
        try:
            while self._more():
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def _need(self, size: int) -> None:
        while len(self._buffer) < size:
            assert self._more(), f"the server closed after {bytes(self._buffer[:200])!r}"

    def _more(self) -> bool:
        data = self.socket.recv(1 << 16)
        self._buffer += data
        return bool(data)


def floats(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    """Return doubles as a block."""
    data = np.asarray(values, dtype="<f8").tobytes()
    size = str(len(data))
    return f"#{len(size)}{size}".encode() + data
