"""The served die: phases bit for bit, refusals without a trace, bad clients, state that survives."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from served import TINY, Client, floats, serving

from circuitsim.chip.substrate import Terminals
from circuitsim.cli.main import main
from circuitsim.compiler import compile_network
from circuitsim.devices import merged_cards
from circuitsim.errors import InstrumentError
from circuitsim.instrument.served.commands import help_text
from circuitsim.instrument.served.server import ServerLimits, serve_die
from circuitsim.instrument.served.session import ServedDie
from circuitsim.instrument.served.state_file import SavedDie, StateFile
from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate
from circuitsim.learning import Cost
from circuitsim.netlist import Nudge
from circuitsim.network import NetworkSpec, parse_document

NETWORK = parse_document(NetworkSpec, yaml.safe_load(TINY))
NOISY = [{"adc": {"bits": 12, "range": [-1.25, 1.25], "noise": "1m"}}]
IDENTITY = {"circuit": "tiny", "card": "ideal", "die": "3"}
INPUTS = np.array([[0.1, -0.05, 0.02], [0.0, 0.1, -0.1]])
TARGET = np.array([[0.05, -0.05], [0.1, 0.0]])


def tiny(*, cards: list[Any] | None = None) -> SimulatedSubstrate:
    return simulated_substrate(
        compile_network(NETWORK, seed=3), Cost.of(NETWORK), merged_cards(cards or []), seed=3
    )


def digest(die: ServedDie) -> str:
    """Return what tells two states of a die apart: conductances, counts, registers, what was read back."""
    found = hashlib.sha256()
    parts = {**die.substrate.state(), **{str(key): g for key, g in die.achieved.items()}}
    for number, snapshot in die.registers.items():
        parts |= {f"{number} {key}": array for key, array in snapshot.items()}
    for key in sorted(parts):
        found.update(key.encode() + np.asarray(parts[key]).tobytes())
    return found.hexdigest()


class Here:
    """A die that is served by a thread of this process."""

    def __init__(self, die: ServedDie, limits: ServerLimits | None = None, save_every: float = 60.0) -> None:
        self.die = die
        self.log: list[str] = []
        self._limits, self._save_every = limits, save_every
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _run(self) -> None:
        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await serve_die(
                self.die,
                host="127.0.0.1",
                port=0,
                limits=self._limits,
                save_every=self._save_every,
                ready=self._at,
                stop=self._stop,
                log=self.log.append,
            )

        asyncio.run(serve())

    def _at(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._ready.set()

    def client(self, timeout: float = 20.0) -> Client:
        return Client(self.host, self.port, timeout=timeout)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def here(die: ServedDie, limits: ServerLimits | None = None, save_every: float = 60.0) -> Iterator[Here]:
    server = Here(die, limits, save_every)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[Here]:
    """One server for the tests that need no other; each takes the die as the others leave it."""
    with here(ServedDie(substrate=tiny(cards=NOISY), circuit=TINY)) as server:
        yield server


@pytest.fixture
def client(shared: Here) -> Iterator[Client]:
    with shared.client() as client:
        yield client


def ready_for_a_nudge(client: Client, beta: float = 0.1) -> None:
    client.write("INP:VOLT ", INPUTS)
    client.write("NUDG:TARG ", TARGET)
    client.write(f"NUDG:BETA {beta!r}")


def eventually(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# ---------------------------------------------------------------------------------- what it is


def test_it_says_what_it_is(shared: Here, client: Client) -> None:
    assert client.query("*idn?") == shared.die.substrate.capabilities.identity
    assert client.query("SYSTem:VERSion?;*OPC?;*TST?") == "1999.0;1;0"
    client.write("HELP?")
    assert client.block().decode() == help_text()


def test_a_title_with_separators_stays_one_field_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    substrate = tiny()
    title = 'circuitsim,a; b,\n"µ",3,0.1.0'
    monkeypatch.setattr(substrate, "capabilities", replace(substrate.capabilities, identity=title))
    with here(ServedDie(substrate=substrate)) as server, server.client() as client:
        assert client.query("*IDN?;*OPC?") == 'circuitsim,a b "?",3,0.1.0;1'


def test_it_describes_itself_so_that_a_host_can_compile_the_same_circuit(
    shared: Here, client: Client
) -> None:
    client.write("SYST:CAP?")
    capabilities = json.loads(client.block())
    own = asdict(shared.die.substrate.capabilities)
    assert capabilities == json.loads(json.dumps(own))
    client.write("SYST:CIRC?")
    spec = parse_document(NetworkSpec, yaml.safe_load(client.block()))
    assert spec == NETWORK
    terminals = Terminals.of(compile_network(spec))
    assert list(terminals.names) == capabilities["readings"]
    assert client.errors() == []


# ------------------------------------------------------------------------------------- phases


@pytest.mark.parametrize("border", ["SWAP", "NORM"])
def test_every_phase_is_that_of_the_same_die_in_this_process_bit_for_bit(border: str) -> None:
    twin = tiny(cards=NOISY)
    kind = "<f8" if border == "SWAP" else ">f8"

    def sent(values: np.ndarray) -> bytes:
        data = values.astype(kind).tobytes()
        return f"#3{len(data):03d}".encode() + data

    with here(ServedDie(substrate=tiny(cards=NOISY))) as server, server.client() as client:
        client.write(f"FORM:BORD {border};:SENS:AVER 3")
        client.write(b"INP:VOLT " + sent(INPUTS) + b";:NUDG:TARG " + sent(TARGET))
        client.write("INP:VOLT?")
        dac = twin.capabilities.dac
        assert np.array_equal(np.frombuffer(client.block(), kind), dac.rounded(INPUTS).ravel())
        for phase, beta in (
            ("free", None),
            ("nudged", 0.1),
            ("nudged", -0.1),
            ("free", None),
            ("corrected", 0.05),
            ("dyadic", 1.0),
        ):
            nudge = None
            if beta is not None:
                nudge = Nudge(kind="quadratic", beta=beta, conductance=1e-6, target=TARGET)
                client.write(f"NUDG:BETA {beta!r}")
            expected = twin.relax(INPUTS, phase, nudge, 3)  # type: ignore[arg-type]
            client.write(f"INIT {phase}")
            for _ in range(2):
                client.write("FETC?")
                assert np.frombuffer(client.block(), kind).tobytes() == expected.astype(kind).tobytes()
            assert client.query("FETC:SHAP?") == f"2,{len(twin.capabilities.readings)}"
        assert client.query("STAT:PRES?;:SENS:AVER?;:NUDG:BETA?") == "2;3;1.0"
        found = twin.update({"x-hidden": 1e3, "hidden-out": 2e3})
        client.write('UPD "x-hidden",1e3,"hidden-out",2e3')
        assert client.query("UPD:PULS?") == str(found)
        assert client.errors() == []
        own = server.die.substrate.state()
        for key, array in twin.state().items():
            assert np.array_equal(own[key], array), key


def test_conductances_are_staged_written_in_one_operation_and_read_back() -> None:
    twin = tiny(cards=NOISY)
    plus, minus = np.linspace(1e-6, 1e-4, 12).reshape(3, 4), np.full((3, 4), 2e-5)
    with here(ServedDie(substrate=tiny(cards=NOISY))) as server, server.client() as client:
        assert client.query('COND:READ? "x-hidden",PLUS;:SYST:ERR?').startswith("-230,")
        client.write('COND:WRIT "x-hidden",PLUS,', plus)
        client.write("COND:PROG")
        assert "MINus is not staged" in client.errors()[0]
        before = digest(server.die)
        client.write('COND:WRIT "x-hidden",MIN,', minus)
        assert digest(server.die) == before
        client.write("COND:PROG")
        expected = twin.program({"x-hidden": (plus, minus)})["x-hidden"]
        for half, wanted in zip(("PLUS", "minus"), expected, strict=True):
            assert wanted is not None
            assert np.array_equal(client.floats(f'COND:READ? "x-hidden",{half}'), wanted.ravel())
        client.write("COND:PROG")
        assert client.errors()[0].startswith("-221,")
        with server.client() as other:
            assert np.array_equal(other.floats("COND:READ? 'x-hidden',PLUS"), expected[0].ravel())


def test_registers_bring_back_conductances_and_the_noise_that_was_to_come() -> None:
    with here(ServedDie(substrate=tiny(cards=NOISY))) as server, server.client() as client:
        ready_for_a_nudge(client)
        client.floats("READ? FREE")
        client.write("*SAV 4")
        first = [client.floats("READ? FREE"), client.floats("READ? CORR")]
        assert not np.array_equal(first[0], client.floats("READ? FREE"))
        assert client.query('UPD "x-hidden",1e3;:SYST:ERR?').startswith('-221,"Settings conflict;no phase')
        client.floats("READ? CORR")
        client.write('UPD "x-hidden",1e3')
        assert client.errors() == []
        assert client.query("*RCL 4;:STAT:PRES?") == "1"
        assert client.query("INIT NUDG;:SYST:ERR?").startswith("-230,")
        again = [client.floats("READ? FREE"), client.floats("READ? CORR")]
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(one, other)
        assert client.query("*RCL 5;:SYST:ERR?") == ('-221,"Settings conflict;register 5 is empty (kept: 4)"')


def test_a_self_test_and_a_reset_leave_the_die_as_it_was(shared: Here, client: Client) -> None:
    ready_for_a_nudge(client)
    client.floats("READ? FREE")
    client.write("SENS:AVER 7;:FORM:BORD NORM")
    before = digest(shared.die)
    assert client.query("*TST?") == "0"
    client.write("*RST")
    assert client.query("SENS:AVER?;:FORM:BORD?") == "1;SWAP"
    assert client.query("FETC?;:SYST:ERR?").startswith("-230,")
    assert client.query("READ? FREE;:SYST:ERR?").startswith("-221,")
    assert digest(shared.die) == before


# ------------------------------------------------------------------------------------ refusals

NAN = floats([np.nan, 0, 0])
REFUSED = (
    (b"FOO:BAR 1", -113),
    (b"SYST:ERR:NEXT", -113),
    (b"INIT", -109),
    (b"INIT FREE,FREE", -108),
    (b"INIT SIDEWAYS", -141),
    (b'INIT "FREE"', -104),
    (b"INP:VOLT 0.1", -104),
    (b"INP:VOLT " + floats([0.1, 0.1]), -161),
    (b"INP:VOLT #10", -161),
    (b"INP:VOLT #17abcdefg", -161),
    (b"INP:VOLT " + floats([0.3, 0, 0]), -222),
    (b"INP:VOLT " + NAN, -222),
    (b"INP:VOLT " + floats([1e308, 0, 0]), -222),
    (b"NUDG:TARG " + floats([np.inf, 0]), -222),
    (b"NUDG:BETA 0", -222),
    (b"NUDG:BETA 1e9", -222),
    (b"NUDG:BETA nan", -120),
    (b"NUDG:BETA __import__('os')", -102),
    (b"SENS:AVER 0", -222),
    (b"SENS:AVER 1.5", -222),
    (b"SENS:AVER 99999999", -222),
    (b'COND:WRIT "nowhere",PLUS,' + floats([1e-5]), -224),
    (b"COND:WRIT x-hidden,PLUS," + floats(np.full(12, 1e-5)), -104),
    (b'COND:WRIT "x-hidden",BOTH,' + floats(np.full(12, 1e-5)), -141),
    (b'COND:WRIT "x-hidden",PLUS,' + floats(np.full(11, 1e-5)), -161),
    (b'COND:WRIT "x-hidden",PLUS,' + floats(np.full(12, 0.1)), -222),
    (b'COND:WRIT "x-hidden",PLUS,' + floats(np.full(12, np.nan)), -222),
    (b'COND:WRIT "x-hidden",PLUS,' + floats(np.full(12, -1e-5)), -222),
    (b"COND:PROG", -221),
    (b'UPD "x-hidden"', -109),
    (b'UPD "x-hidden",1e999', -222),
    (b'UPD "x-hidden",1,"x-hidden",1', -224),
    (b'UPD "nowhere",1', -224),
    (b'UPD "x-hidden",1', -230),
    (b"*SAV 10", -222),
    (b"*RCL -1", -222),
    (b"*RCL 9", -221),
    (b"*ESE 256", -222),
    (b"DIAG:WAIT -1", -222),
    (b"SYST:SAVE", -221),
    (b"FORM:BORD MIDDLE", -141),
    (b"INP:VOLT #0abc", -161),
    (b"INP:VOLT #9999999999", -223),
)


def test_a_refused_command_is_one_error_and_changes_nothing(shared: Here) -> None:
    for command, number in REFUSED:
        with shared.client() as client:
            client.write("INP:VOLT ", INPUTS)
            client.write("SENS:AVER 2")
            client.query("*OPC?")
            before = digest(shared.die)
            if number == -223:
                # The block is followed to its end, which is not waited for here.
                client.send(command + b"x" * 10_000)
                assert digest(shared.die) == before
                continue
            client.write(command)
            errors = client.errors()
            assert len(errors) == 1, (command, errors)
            assert errors[0].startswith(f"{number},"), (command, errors)
            assert digest(shared.die) == before, command
            client.write("INP:VOLT?")
            assert len(client.block()) == INPUTS.nbytes
            assert client.query("SENS:AVER?") == "2"


def test_a_refusal_names_object_value_and_rule(client: Client) -> None:
    client.write('COND:WRIT "x-hidden",PLUS,', np.full(12, 0.1))
    assert client.errors() == [
        '-222,"Data out of range;x-hidden.g_plus: must be within 1e-06 ... 0.0001 S (got 0.1)"'
    ]


def test_behind_an_error_the_rest_of_a_message_is_left_out_but_for_questions_about_it(
    shared: Here, client: Client
) -> None:
    ready_for_a_nudge(client)
    before = int(client.query("STAT:PRES?"))
    bad = b"INP:VOLT " + floats([9.0, 0, 0])
    found = client.query(bad + b";:INIT FREE;:FETC?;:SYST:ERR?;*ESR?;:SYST:ERR:COUN?")
    assert re.fullmatch(r'-222,"Data out of range;.*";16;0', found)
    assert client.query("STAT:PRES?") == str(before)
    assert client.query("*ESR?;NONSENSE;*ESR?;*STB?") == "0;32;20"
    assert client.query("*CLS;*STB?") == "0"


def test_errors_beyond_the_queue_are_an_overflow_and_are_this_session_s_alone(
    shared: Here, client: Client
) -> None:
    client.send(b"NONSENSE\n" * 40)
    with shared.client() as other:
        assert other.query("SYST:ERR:COUN?") == "0"
    errors = client.errors()
    assert len(errors) == 32
    assert errors[-1] == '-350,"Queue overflow"'
    assert all(error.startswith("-113,") for error in errors[:-1])


def test_a_fault_of_the_server_is_told_to_its_owner_and_is_an_error_to_the_client(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    substrate = tiny()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(substrate, "calibrate", broken)
    with here(ServedDie(substrate=substrate)) as server, server.client() as client:
        assert client.query("CAL?;:SYST:ERR?") == '-310,"System error;ZeroDivisionError in CALibration?"'
        assert client.query("*TST?") == "0"
    assert "ZeroDivisionError: secret" in capsys.readouterr().err


# ------------------------------------------------------------------------------ several clients


def test_with_a_lock_others_ask_but_do_not_touch(shared: Here) -> None:
    with shared.client() as one, shared.client() as two:
        ready_for_a_nudge(one)
        ready_for_a_nudge(two)
        assert one.query("SYST:LOCK:REQ?;:SYST:LOCK:REQ?") == "1;1"
        assert two.query("SYST:LOCK:REQ?") == "0"
        owner = two.query("SYST:LOCK:OWN?").strip('"')
        assert owner == "{}:{}".format(*one.socket.getsockname())
        before = digest(shared.die)
        for command in (
            "INIT FREE",
            "READ? FREE",
            "COND:PROG",
            'UPD "x-hidden",1',
            "*RST",
            "*RCL 0",
            "*SAV 0",
            "DIAG:WAIT 1",
            "*CAL?",
            "CAL?",
            "*TST?",
        ):
            assert two.query(f"{command};:SYST:ERR?") == (
                f'-203,"Command protected;the die is locked by {owner}"'
            )
        assert two.query("SYST:LOCK:REL;:SYST:ERR?").startswith("-203,")
        assert digest(shared.die) == before
        assert two.query("*IDN?;:SENS:AVER 2;:SENS:AVER?;*OPC?").endswith(";2;1")
        two.write('COND:WRIT "x-hidden",PLUS,', np.full(12, 1e-5))
        assert two.errors() == []
        one.floats("READ? FREE")
        one.close()
        assert eventually(lambda: two.query("SYST:LOCK:OWN?") == '""')
        assert two.query("SYST:LOCK:REQ?") == "1"
        two.write("SYST:LOCK:REL")
        assert two.query("SYST:LOCK:OWN?") == '""'


def test_a_free_phase_is_its_session_s_own_until_another_has_used_the_die(shared: Here) -> None:
    with shared.client() as one, shared.client() as two:
        for client in (one, two):
            ready_for_a_nudge(client)
        one.floats("READ? FREE")
        assert two.query("INIT NUDG;:SYST:ERR?").startswith('-230,"Data corrupt or stale;stale; ')
        one.floats("READ? NUDG")
        two.floats("READ? FREE")
        name = "{}:{}".format(*two.socket.getsockname())
        assert name in one.query("INIT NUDG;:SYST:ERR?")
        two.floats("READ? NUDG")
        one.write('COND:WRIT "x-hidden",PLUS,', np.full(12, 1e-5))
        one.write('COND:WRIT "x-hidden",MIN,', np.full(12, 1e-5))
        one.write("COND:PROG")
        assert one.errors() == []
        assert "has programmed the die since" in two.query("INIT CORR;:SYST:ERR?")
        two.floats("READ? FREE")
        two.write("INP:VOLT ", 0.5 * INPUTS)
        assert "other inputs" in two.query("INIT CORR;:SYST:ERR?")
        assert two.errors() == []


def test_others_are_answered_while_a_phase_goes_on_and_phases_come_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    substrate = tiny()
    relax, gate, begun, inside, most = substrate.relax, threading.Event(), [0], [0], [0]

    def slow(*arguments: Any) -> Any:
        begun[0] += 1
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        assert gate.wait(30)
        found = relax(*arguments)
        inside[0] -= 1
        return found

    with here(ServedDie(substrate=substrate)) as server:
        clients = [server.client() for _ in range(3)]
        monkeypatch.setattr(substrate, "relax", slow)
        for client in clients[:2]:
            client.write("INP:VOLT ", INPUTS)
            client.write("READ? FREE")
        assert eventually(lambda: inside[0] == 1)
        assert clients[2].query("*IDN?").startswith("circuitsim,")
        clients[1].close()
        gate.set()
        assert len(clients[0].block()) == 2 * 8 * len(substrate.capabilities.readings)
        # What has been asked in full is done, whoever waits for it.
        assert eventually(lambda: begun[0] == 2 and not inside[0])
        # Stopping finishes the command at hand and sends its response.
        gate.clear()
        clients[0].write("READ? FREE")
        assert eventually(lambda: begun[0] == 3)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert clients[2].closed()
        gate.set()
        assert len(clients[0].block()) == 2 * 8 * len(substrate.capabilities.readings)
        assert clients[0].closed()
        stopping.join(30)
        assert most[0] == 1
        for client in clients:
            client.close()
        monkeypatch.setattr(server, "stop", lambda: None)


def test_a_single_client_s_quick_phases_stay_on_the_loop_and_long_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    substrate = tiny()
    relax, threads, pause = substrate.relax, [], [0.0]

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name.startswith("die"))
        time.sleep(pause[0])
        return relax(*arguments)

    monkeypatch.setattr(substrate, "relax", watched)
    with here(ServedDie(substrate=substrate)) as server, server.client() as client:
        client.write("INP:VOLT ", INPUTS)

        def in_worker() -> bool:
            client.floats("READ? FREE")
            return threads[-1]

        # On a busy machine one may take long; not all of them.
        assert any(not in_worker() for _ in range(20))
        pause[0] = 0.02
        in_worker()
        assert all(in_worker() for _ in range(3))
        pause[0] = 0.0
        assert eventually(lambda: not in_worker())
        client.write("INP:VOLT ", np.zeros((4096, 3)))
        assert in_worker()
        with server.client() as other:
            other.query("*OPC?")
            client.write("INP:VOLT ", INPUTS)
            assert all(in_worker() for _ in range(5))


# ------------------------------------------------------------------------- limits and misbehaviour


def test_the_lock_is_given_behind_what_others_asked_for_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of theirs is done once it has been given; who is refused need not wait for that."""
    die = ServedDie(substrate=tiny())
    begun, gate = threading.Event(), threading.Event()

    def wait(seconds: float) -> None:
        begun.set()
        assert gate.wait(20)

    monkeypatch.setattr(die.substrate, "wait", wait)
    with here(die) as server, server.client() as other, server.client() as owner:
        owner.query("*IDN?")
        other.write("DIAG:WAIT 1")
        assert begun.wait(10)
        gone = server.client()
        gone.query("*IDN?")
        gone.write("SYST:LOCK:REQ?")
        time.sleep(0.05)
        # A reset: one that only closes its side still has what it asked for.
        gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        gone.close()
        owner.write("SYST:LOCK:REQ?")
        assert not select.select([owner.socket], [], [], 0.2)[0]
        gate.set()
        # The one before it had gone when its turn came.
        assert owner.line() == "1"
        gate.clear()
        begun.clear()
        owner.write("DIAG:WAIT 1")
        assert begun.wait(10)
        assert other.query("SYST:LOCK:REQ?") == "0"
        gate.set()
        assert owner.query("SYST:LOCK:REQ?;*OPC?") == "1;1"


def test_a_client_that_vanishes_within_a_block_leaves_nothing(shared: Here) -> None:
    before = digest(shared.die)
    for sent in (
        b"INP:VOLT #3800" + b"x" * 100,
        b'COND:WRIT "x-hidden",PLUS,' + floats(np.full(12, 1e-5)) + b"\nCOND:WRIT "
        b'"x-hidden",MIN,#296' + b"\x00" * 50,
        b'*SAV 1;COND:WRIT "x-hid',
    ):
        client = shared.client()
        client.send(sent)
        # A reset instead of a goodbye, as of a process that was killed.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        client.close()
    with shared.client() as later:
        assert later.query("COND:PROG;:SYST:ERR?").startswith("-221,")
        assert later.query("*IDN?").startswith("circuitsim,tiny,3,")
    assert digest(shared.die) == before


def test_a_message_that_stops_is_a_time_out_and_silence_between_messages_is_none() -> None:
    with here(ServedDie(substrate=tiny()), ServerLimits(silence=0.3)) as server:
        with server.client() as idle, server.client() as slow, server.client() as stopped:
            idle.query("*OPC?")
            stopped.send(b"*IDN?\nINP:VOLT #3800" + b"x" * 100)
            for piece in (b"*ID", b"N", b"?", b"\n"):
                slow.send(piece)
                time.sleep(0.15)
            assert slow.line().startswith("circuitsim,")
            assert stopped.line().startswith("circuitsim,")
            assert stopped.line() == ('-365,"Time out error;a message stopped for 0.3 s before its end"')
            assert stopped.closed()
            time.sleep(0.4)
            assert idle.query("*OPC?") == "1"
        assert any("-365" in line for line in server.log)


def test_what_is_too_long_is_refused_and_the_next_message_is_read(shared: Here, client: Client) -> None:
    before = digest(shared.die)
    client.send(b"INP:VOLT " + b"1" * 70_000 + b"\n")
    assert client.errors()[0].startswith('-363,"Input buffer overrun;')
    largest = 8 * 4096 * 4
    client.send(f"INP:VOLT #7{largest + 8:07d}".encode() + b"\n" * (largest + 8) + b"\n*OPC?\n")
    assert client.line() == "1"
    assert client.errors()[0].startswith('-223,"Too much data;a block may hold up to ')
    assert digest(shared.die) == before


def test_one_client_too_many_is_told_so_and_a_place_that_is_left_is_free() -> None:
    with here(ServedDie(substrate=tiny()), ServerLimits(clients=2)) as server:
        one, two, three = (server.client() for _ in range(3))
        assert three.line() == '-310,"System error;2 clients are connected already"'
        assert three.closed()
        one.close()

        def served() -> bool:
            with server.client() as another, contextlib.suppress(ConnectionError):
                return another.query("*OPC?") == "1"
            return False

        assert eventually(served)
        assert two.query("*OPC?") == "1"
        for client in (two, three):
            client.close()


def test_a_client_that_has_gone_gives_its_place_up_whatever_it_had_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    substrate, gate, begun = tiny(), threading.Event(), [0]
    relax = substrate.relax

    def slow(*arguments: Any) -> Any:
        begun[0] += 1
        assert gate.wait(30)
        return relax(*arguments)

    monkeypatch.setattr(substrate, "relax", slow)
    with (
        here(ServedDie(substrate=substrate), ServerLimits(clients=2)) as server,
        server.client() as stays,
    ):
        assert stays.query("*OPC?") == "1"
        with server.client() as gone:
            gone.write("INP:VOLT ", INPUTS)
            # More than is received ahead: the end of the connection is behind what is not read yet.
            gone.send(b"INIT FREE\n" * 35_000)
            assert eventually(lambda: begun[0] == 1)
        with server.client() as later:
            assert later.query("*OPC?") == stays.query("*OPC?") == "1"
            gate.set()
            assert later.query("SYST:ERR:COUN?") == "0"
        assert begun[0] == 1


def test_too_many_connections_a_second_are_refused_and_later_ones_served() -> None:
    with here(ServedDie(substrate=tiny()), ServerLimits(connections=5, clients=100)) as server:
        clients = [server.client() for _ in range(30)]
        refused = 0
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.write("*OPC?")
                refused += client.line() == '-310,"System error;more than 5 connections a second"'
            client.close()
        assert refused >= 10
        time.sleep(0.5)
        with server.client() as later:
            assert later.query("*OPC?") == "1"


def test_too_many_errors_a_second_end_a_session_and_nothing_else_is_counted() -> None:
    with (
        here(ServedDie(substrate=tiny()), ServerLimits(errors=20)) as server,
        server.client() as wrong,
        server.client() as right,
    ):
        wrong.send(b"NONSENSE\n" * 90 + b"*OPC?\n")
        assert wrong.line() == "1"
        wrong.send(b"NONSENSE\n" * 1000 + b"*OPC?\n")
        for _ in range(300):
            assert right.query("*OPC?") == "1"
        assert wrong.line() == '-310,"System error;more than 20 errors a second"'
        assert wrong.closed()


def test_a_client_that_does_not_read_is_dropped_and_takes_little_memory() -> None:
    with (
        here(ServedDie(substrate=tiny()), ServerLimits(unread=0.5)) as server,
        server.client() as deaf,
        server.client() as other,
    ):
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(2000):
                deaf.send(b"HELP?;HELP?;HELP?;HELP?;HELP?;HELP?\n" * 20)
        (connection,) = [
            each
            for each in server_connections(server)
            if each._name == "{}:{}".format(*deaf.socket.getsockname())
        ] or [None]
        if connection is not None:
            assert connection.transport.get_write_buffer_size() < 1 << 20
            assert connection._behind <= 1 << 19
        assert other.query("*OPC?") == "1"
        assert eventually(lambda: any("unread" in line for line in server.log))
        assert other.query("*OPC?") == "1"


def server_connections(server: Here) -> list[Any]:
    """Return the connections of a server, found by the tasks of its loop."""
    found = []
    for task in asyncio.all_tasks(server._loop):
        frame = task.get_coro().cr_frame  # type: ignore[union-attr]
        if frame is not None and type(frame.f_locals.get("self")).__name__ == "_Connection":
            found.append(frame.f_locals["self"])
    return found


# ------------------------------------------------------------------------------- state on disk


def test_a_state_file_comes_back_and_belongs_to_one_die(tmp_path: Path) -> None:
    file = StateFile(path=tmp_path / "die.npz", identity=IDENTITY)
    assert file.read() is None
    saved = SavedDie(
        present={"state/a:b/c": np.array([1.0, np.nan, -0.0])}, registers={3: {"x": np.eye(2)}, 0: {}}
    )
    file.write(saved)
    back = file.read()
    assert back is not None
    assert back.present["state/a:b/c"].tobytes() == saved.present["state/a:b/c"].tobytes()
    assert sorted(back.registers) == [0, 3]
    assert np.array_equal(back.registers[3]["x"], np.eye(2))
    other = StateFile(path=file.path, identity=IDENTITY | {"die": "4"})
    for _ in range(2):
        with pytest.raises(InstrumentError, match=r"die\.npz: is kept by another server that runs"):
            other.read()
        file.write(saved)
    file.release()
    with pytest.raises(InstrumentError, match=r"die\.npz: die: is the state of another die: here it is 4 "):
        other.read()
    other.release()


def test_what_is_no_state_file_or_not_whole_is_one_error(tmp_path: Path) -> None:
    file = StateFile(path=tmp_path / "die.npz", identity=IDENTITY)
    file.write(SavedDie(present={"x": np.arange(1000.0)}))
    whole = file.path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:-30], bytes(flipped)):
        file.path.write_bytes(data)
        with pytest.raises(
            InstrumentError, match=r"die\.npz: is not the state of a served die, or not whole"
        ):
            file.read()
    np.savez(file.path, header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InstrumentError, match="not the state of a served die"):
        file.read()
    file.release()


def test_a_state_file_that_cannot_be_written_keeps_the_old_one_and_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(path=tmp_path / "die.npz", identity=IDENTITY)
    die = ServedDie(substrate=tiny(), state_file=file)
    assert not die.resume()
    before = file.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with here(die) as server, server.client() as client:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            for command in ("*SAV 2", "SYST:SAVE"):
                assert re.fullmatch(
                    r'-250,"Mass storage error;.*die\.npz: No space left on device"',
                    client.query(f"{command};:SYST:ERR?"),
                )
        assert client.query("*RCL 2;:SYST:ERR?").startswith("-221,")
        assert file.path.read_bytes() == before
        assert client.query("*SAV 2;*OPC?") == "1"
    back = file.read()
    assert back is not None
    assert list(back.registers) == [2]
    file.release()


def test_changes_are_saved_now_and_then_without_being_asked(tmp_path: Path) -> None:
    file = StateFile(path=tmp_path / "die.npz", identity=IDENTITY)
    die = ServedDie(substrate=tiny(), state_file=file)
    die.resume()
    with here(die, save_every=0.1) as server, server.client() as client:
        written = file.path.stat().st_mtime_ns
        client.query("*IDN?")
        time.sleep(0.3)
        assert file.path.stat().st_mtime_ns == written
        client.write("INP:VOLT ", INPUTS)
        client.floats("READ? FREE")
        assert eventually(lambda: file.path.stat().st_mtime_ns != written and not die.unsaved)
    again = ServedDie(substrate=tiny(), state_file=file)
    assert again.resume()
    assert digest(again) == digest(die)
    assert again.substrate.presentations == 1
    file.release()


# ------------------------------------------------------------------------------ the command line


def test_a_killed_server_resumes_with_its_registers_and_a_stopped_one_with_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit, state, errors = tmp_path / "tiny.yaml", tmp_path / "die.npz", tmp_path / "errors"
    circuit.write_text(TINY)
    options = ("--seed", 3, "--state", state, "--save-every", 3600)
    g = np.full(12, 5e-5)
    with serving(circuit, *options, "-v", errors=errors) as served, served.client() as client:
        assert served.what == "tiny (die 3, card ideal)"
        assert served.resource == f"TCPIP::127.0.0.1::{served.port}::SOCKET"
        client.write("INP:VOLT ", INPUTS)
        for half in ("PLUS", "MIN"):
            client.write(f'COND:WRIT "x-hidden",{half},', g)
        client.write("COND:PROG")
        kept = client.floats("READ? FREE")
        assert client.query("*SAV 1;*OPC?") == "1"
        after = client.floats("READ? FREE")
        served.process.kill()
        served.process.wait()
        log = served.said()
        assert re.search(r"127\.0\.0\.1:\d+ connected \(1 of 16\)", log)
    with serving(circuit, *options, errors=errors) as served, served.client() as client:
        assert "resumed from" in served.said()
        assert "registers: 1" in served.said()
        code, error = run(monkeypatch, capsys, circuit, *options)
        assert code == 2
        assert "is kept by another server that runs" in error
        client.write("INP:VOLT ", INPUTS)
        assert client.query("*RCL 1;:STAT:PRES?") == "1"
        assert np.array_equal(client.floats("READ? FREE"), after)
        assert np.array_equal(
            client.floats('COND:READ? "x-hidden",MIN'), client.floats('COND:READ? "x-hidden",PLUS')
        )
        assert np.abs(kept).max() > 1e-3
        begin = time.monotonic()
        assert served.stop(signal.SIGTERM) == 0
        assert time.monotonic() - begin < 10
        assert client.closed()
    # Everywhere: a warning says what that exposes. Nothing but the state of the end is resumed.
    with serving(circuit, *options, "--host", "0.0.0.0", errors=errors) as served:
        warning = served.said()
        assert f"warning: 0.0.0.0:{served.port} is not only for this machine" in warning
        assert "without a password" in warning
        assert f"TCPIP::{socket.gethostname()}::" in served.resource
        with Client("127.0.0.1", served.port) as client:
            assert client.query("STAT:PRES?") == "2"
        assert served.stop(signal.SIGINT) == 0
        assert "Traceback" not in served.said()


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object
) -> tuple[int, str]:
    """Run a command that must fail in this process; return its exit code and standard error."""
    monkeypatch.setattr(sys, "argv", ["circuitsim", "serve", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert captured.out == ""
    return int(ended.value.code or 0), captured.err


def test_what_cannot_be_served_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], repo_root: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    Path("die.npz").write_bytes(b"not a state")
    Path("net.yaml").write_text("format: circuitsim-netlist/1\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            (("missing.yaml",), ("missing.yaml",)),
            (("net.yaml",), ("is a netlist, not a network description",)),
            (("tiny.yaml", "--cards", "nonesuch"), ("--cards", "nonesuch", "neither a file nor")),
            (("tiny.yaml", "--bits", "1"), ("--bits",)),
            (("tiny.yaml", "--port", "70000"), ("--port",)),
            (("tiny.yaml", "--window", "door"), ("--window", "network, card")),
            (("tiny.yaml", "--window", "card"), ("window", "no conductance range")),
            (("tiny.yaml", "--state", "die.npz"), ("die.npz", "not the state of a served die")),
            (("tiny.yaml", "--state", "nowhere/die.npz"), ("--state", "No such file or directory")),
            (("tiny.yaml", "--state", "tiny.yaml"), ("--state", "is the file to serve")),
            (("tiny.yaml", "--port", port), ("--port", f"127.0.0.1:{port}", "is in use already")),
            (("tiny.yaml", "--host", "192.0.2.1"), ("--host", "192.0.2.1", "cannot be served")),
        ):
            code, error = run(monkeypatch, capsys, *arguments)
            assert code == 2, error
            assert "Traceback" not in error
            for word in words:
                assert word in error, (arguments, error)


def test_an_experiment_is_served_as_its_own_die(tmp_path: Path) -> None:
    from circuitsim.cli.serve import _bench, _served

    experiment = {
        "name": "short",
        "network": "digits.yaml",
        "cards": [{"adc": {"bits": 10, "range": [-0.5, 0.5]}}],
        "estimators": [{"kind": "asymep"}],
        "readout": {"gain": 64},
        "seed": 11,
        "die": 4,
    }
    (tmp_path / "digits.yaml").write_text((Path(__file__).parents[2] / "netlists/digits.yaml").read_text())
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(experiment))
    bench = _bench(tmp_path / "short.yaml", [], None, None, None)
    limits = _served(bench, tmp_path / "short.yaml", 14, None).substrate.capabilities
    assert (limits.adc.bits, limits.dac.bits, limits.largest_gain) == (10, 14, 64)
    assert limits.identity.startswith("circuitsim,digits,4,")
    other = _bench(tmp_path / "short.yaml", [], 5, 6, None)
    assert (other.experiment.seed, other.chip.seed) == (5, 6)
