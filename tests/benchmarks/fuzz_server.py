"""Send a served die what no client should, and see that it lives: ``python tests/benchmarks/fuzz_server.py``.

Two rounds of half the commands each, from several clients at a time: random bytes, mutated and valid
commands, half-sent blocks. Connections end well, by a reset, or with their process killed as it writes, while
another client connects 50 times a second. In the first round one client holds the lock: whatever the others
send, the die must not change by a bit. In the second they may use it; recalling a register must bring it
back.

Prints what came back, the server's memory, and how long a later client waits. Exit code 1 if anything broke.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "instrument"))

from served import TINY, Client, Served, floats, serving

from circuitsim.instrument.served.commands import COMMANDS, spellings

_WRITER = """
import random, socket, sys
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
draw = random.Random(sys.argv[3])
while True:
    link.sendall(b"INP:VOLT #6131072" + draw.randbytes(draw.randrange(1, 131072)))
"""
"""A client that only writes, until it is killed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=100_000, help="commands, malformed and not")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--clients", type=int, default=6, help="at a time, beside those that only connect")
    arguments = parser.parse_args()
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        circuit, state = folder / "tiny.yaml", folder / "die.npz"
        circuit.write_text(TINY)
        options = ("--seed", 3, "--state", state, "--timeout", 2, "--save-every", 3600, "-v")
        with serving(circuit, *options, errors=folder / "errors") as served:
            with served.client() as owner:
                _prepare(owner)
                _round(served, arguments, "warm-up", arguments.count // 5, broken)
                # The lock first: what clients that have gone asked for in full is done before it is given.
                assert owner.query("SYST:LOCK:REQ?") == "1"
                before, memory = _digest(owner, state), _memory(served)
                _round(served, arguments, "locked", arguments.count // 2, broken)
                if _digest(owner, state) != before:
                    broken.append("the die has changed under refused commands")
                first = _memory(served)
                owner.write("*SAV 9;:SYST:LOCK:REL")
                _round(served, arguments, "open", arguments.count - arguments.count // 2, broken)
            begin = time.perf_counter()
            with served.client() as later:
                later.query("*IDN?")
                waited = 1e3 * (time.perf_counter() - begin)
                later.write("*RCL 9")
                if _digest(later, state) != before:
                    broken.append("a register does not bring the die back")
            second = _memory(served)
            said = served.said()
            code = served.stop(signal.SIGTERM)
        if code:
            broken.append(f"the server ended with {code}")
        complaints = [line for line in said.splitlines() if line.startswith(("serve: ", "Traceback"))]
        if complaints:
            broken.append(f"the server complained: {complaints[:5]}")
        ended = re.findall(r"gone after (\d+) messages, (\d+) errors", said)
        messages, errors = (sum(map(int, column)) for column in zip(*ended, strict=True))
        print(f"the server saw {messages} messages of {len(ended)} clients, and refused {errors} commands")
    print(f"memory {memory:.1f} MiB before, {first:.1f} after the first round, {second:.1f} after the second")
    print(f"a later client connects and has its answer in {waited:.1f} ms")
    if second - memory > 16:
        broken.append(f"memory grew by {second - memory:.1f} MiB")
    for line in broken:
        print(f"BROKEN: {line}")
    return 1 if broken else 0


def _prepare(client: Client) -> None:
    """Bring the die to a state that is not that of the start."""
    for name, shape in (("x-hidden", 12), ("hidden-out", 8)):
        for half in ("PLUS", "MIN"):
            client.write(f'COND:WRIT "{name}",{half},', np.linspace(1e-6, 1e-4, shape))
    client.write("COND:PROG")
    client.write("INP:VOLT ", np.full(6, 0.05))
    client.floats("READ? FREE")
    assert client.errors() == []


def _round(served: Served, arguments: argparse.Namespace, name: str, count: int, broken: list[str]) -> None:
    """Let several clients send commands, one connect again and again, and some be killed."""
    outcomes: Counter[str] = Counter()
    share = count // arguments.clients
    begin, over = time.perf_counter(), threading.Event()
    busy = [
        threading.Thread(
            target=_abuse, args=(served, f"{arguments.seed}:{name}:{k}", share, outcomes, broken)
        )
        for k in range(arguments.clients)
    ]
    others = [
        threading.Thread(target=_connect, args=(served, over, outcomes, broken)),
        threading.Thread(target=_kill, args=(served, over, outcomes)),
    ]
    for thread in (*busy, *others):
        thread.start()
    for thread in busy:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    seconds = time.perf_counter() - begin
    print(f"{name}: {share * arguments.clients} commands in {seconds:.1f} s")
    for outcome, number in outcomes.most_common(24):
        print(f"{number:9d}  {outcome}")


def _abuse(served: Served, seed: str, count: int, outcomes: Counter[str], broken: list[str]) -> None:
    draw = random.Random(seed)
    left = count
    while left:
        size = min(left, draw.randrange(1, 400))
        try:
            client = served.client(timeout=30.0)
        except OSError as error:
            broken.append(f"no connection: {error}")
            return
        received = bytearray()
        if select.select([client.socket], [], [], 0.002)[0]:
            # Refused: what clients that have gone asked for in full is still being done.
            outcomes["refused: no place"] += 1
            client.close()
            time.sleep(0.1)
            continue
        try:
            for _ in range(size):
                client.socket.setblocking(True)
                client.send(_command(draw))
                left -= 1
                while select.select([client.socket], [], [], 0)[0]:
                    data = client.socket.recv(1 << 16)
                    if not data:
                        raise ConnectionError("closed by the server")
                    received += data
            how = draw.choice(("well", "well", "half a block", "reset"))
            if how == "well":
                # The end of whatever block is open, and a question that must be answered.
                client.send(b"\n" * 70_000 + b"\n*CLS;*OPC?\n")
                deadline = time.monotonic() + 30
                while not received.endswith(b"1\n") and time.monotonic() < deadline:
                    data = client.socket.recv(1 << 16)
                    if not data:
                        break
                    received += data
                if not received.endswith(b"1\n"):
                    how = "without the last answer"
            elif how == "half a block":
                client.send(b'COND:WRIT "x-hidden",PLUS,#296' + draw.randbytes(draw.randrange(96)))
            else:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + b"\x00" * 7)
            outcomes[f"ended: {how}"] += 1
        except (ConnectionError, TimeoutError) as error:
            outcomes[f"ended: {error}"] += 1
        finally:
            client.close()
        for number, words in re.findall(rb'(-\d{3}),"([A-Z][A-Za-z ]+)', bytes(received)):
            outcomes[f"answered {number.decode()} {words.decode()}"] += 1


def _connect(served: Served, over: threading.Event, outcomes: Counter[str], broken: list[str]) -> None:
    """Connect 50 times a second; every tenth asks something, and must be answered."""
    number, begin = 0, time.monotonic()
    while not over.wait(max(0.0, begin + number / 50 - time.monotonic())):
        number += 1
        try:
            with served.client(timeout=30.0) as client:
                if number % 10 == 0:
                    answer = client.query("*IDN?")
                    if "clients are connected already" in answer:
                        outcomes["refused: no place"] += 1
                    elif not answer.startswith("circuitsim,"):
                        broken.append(f"in passing, to *IDN?: {answer!r}")
                outcomes["connected in passing"] += 1
        except OSError as error:
            broken.append(f"in passing: {error}")


def _kill(served: Served, over: threading.Event, outcomes: Counter[str]) -> None:
    """Start clients that write blocks, and kill them as they do."""
    number = 0
    while not over.is_set():
        number += 1
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, served.host, str(served.port), str(number)],
            stderr=subprocess.DEVNULL,
        )
        over.wait(0.5)
        writer.kill()
        writer.wait()
        outcomes["killed as it wrote"] += 1


_HEADERS = [form for command in COMMANDS for form in spellings(command.header)]
_VALID = (
    b"*IDN?",
    b"SYST:ERR?",
    b"SYST:ERR?",
    b"SYST:CAP?",
    b"HELP?",
    b"INP:VOLT " + floats([0.1, 0.0, -0.1]),
    b"INP:VOLT?",
    b"NUDG:TARG " + floats([0.1, 0.0]),
    b"NUDG:BETA 0.1",
    b"INIT FREE",
    b"READ? FREE",
    b"READ? NUDG",
    b"INIT CORR;:FETC?",
    b"INIT DYAD",
    b"SENS:AVER 4",
    b'COND:WRIT "x-hidden",PLUS,' + floats([1e-5] * 12),
    b'COND:WRIT "x-hidden",MIN,' + floats([2e-5] * 12),
    b"COND:PROG",
    b'COND:READ? "x-hidden",PLUS',
    b'UPD "x-hidden",1e3,"hidden-out",1e3',
    b"*RST",
    b"*RCL 1",
    b"*TST?",
    b"CAL?",
    b"FORM:BORD NORM",
    b"DIAG:WAIT 1",
)
_PIECES = (
    b"#",
    b"#0",
    b"#19",
    b"#9999999999",
    b'"',
    b"'",
    b",",
    b";",
    b":",
    b"\n",
    b"1e999",
    b"nan",
    b"\x00",
    b"\xff",
)


def _command(draw: random.Random) -> bytes:
    """Return one message: valid, mutated, made of parts, or bytes."""
    kind = draw.random()
    if kind < 0.3:
        # Registers go to the disk: seldom, or there would be nothing else.
        return (b"*SAV 1" if draw.random() < 0.002 else draw.choice(_VALID)) + b"\n"
    if kind < 0.6:
        data = bytearray(draw.choice(_VALID))
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(data) + 1)
            change = draw.randrange(3)
            if change == 0:
                data[place:place] = draw.choice(_PIECES[:3] + _PIECES[4:])
            elif change == 1:
                del data[place : place + draw.randrange(1, 6)]
            else:
                data[place : place + 1] = draw.randbytes(1)
        return bytes(data) + b"\n"
    if kind < 0.85:
        words = [draw.choice(_HEADERS).encode()]
        words += [
            draw.choice((b"1", b"-1e-9", b"FREE", b'"x-hidden"', b"PLUS", floats([1.0]))) for _ in range(3)
        ]
        return words[0] + b" " + b",".join(words[1 : draw.randrange(1, 5)]) + b"\n"
    if kind < 0.852:
        return b"X" * draw.randrange(60_000, 80_000) + b"\n"
    if kind < 0.854:
        # Too large a block, and all of it.
        return b"INP:VOLT #6400000" + bytes(400_000) + b"\n"
    return draw.randbytes(draw.randrange(1, 60)).replace(b"#", b"") + b"\n"


def _digest(client: Client, state: Path) -> str:
    """Return the digest of the die's present state, as its file has it."""
    assert client.query("SYST:SAVE;*OPC?") == "1"
    found = hashlib.sha256()
    with np.load(state) as archive:
        for key in sorted(archive.files):
            if key.startswith("present/"):
                found.update(key.encode() + archive[key].tobytes())
    return found.hexdigest()


def _memory(served: Served) -> float:
    """Return the resident memory of the server [MiB]."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{served.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float("nan")


if __name__ == "__main__":
    sys.exit(main())
