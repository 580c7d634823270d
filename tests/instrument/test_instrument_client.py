"""The client of an instrument: against a served die, and against boards that are broken in every way."""

from __future__ import annotations

import contextlib
import json
import pickle
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import TINY, Served, serving

from circuitsim.chip.substrate import (
    AgeingSubstrate,
    Capabilities,
    ConverterLimits,
    CrossbarLimits,
    NudgeLimits,
    StatefulSubstrate,
)
from circuitsim.compiler import compile_network
from circuitsim.devices import load_card
from circuitsim.errors import InstrumentError
from circuitsim.instrument.client import VisaSubstrate
from circuitsim.instrument.link import RefusedError
from circuitsim.instrument.served.scpi import (
    FramingLimits,
    MessageReader,
    ScpiError,
    Unit,
    block,
    floats_block,
)
from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate
from circuitsim.learning import Cost
from circuitsim.netlist import Nudge
from circuitsim.network import load_network
from circuitsim.seeds import stream

CARD = """\
name: lab
description: A die with every fault that a client could meet.
source: test
crossbar:
  range: [0, 100u]
  device_to_device: 0.05
  programming: {polynomial: [0.2u, 1u]}
  drift: {kind: power_law, start: 20, mean: {polynomial: [0.05]}, std: {polynomial: [0.02]}}
amplifier: {gain: 0.05, offset: 1m, correction_gain: 0.05}
dac: {bits: 10, range: [-100m, 100m]}
adc: {bits: 12, range: [-500m, 500m], noise: 1m}
"""

ROOMY = FramingLimits(line=1 << 16, block=1 << 24, message=1 << 26)
BOARD = Capabilities(
    identity="maker,board,1,0.1",
    circuit="board",
    inputs=3,
    outputs=2,
    readings=("h0", "h1", "y0", "y1"),
    crossbars=(
        CrossbarLimits(name="x-y", shape=(3, 2), differential=True, low=1e-6, high=1e-4),
        CrossbarLimits(name="bias", shape=(1, 2), differential=False, low=1e-6, high=1e-4),
    ),
    dac=ConverterLimits(bits=8, low=-1.0, high=1.0),
    adc=ConverterLimits(bits=8, low=-1.0, high=1.0),
    largest_gain=1,
    nudge=NudgeLimits(kind="quadratic", conductance=1e-5, scale=1.0, largest_beta=1.0),
    phases=("free", "nudged"),
    settling_time=float("nan"),
    most_readings=100,
    most_samples=16,
    updates_itself=True,
)
INPUTS = np.linspace(-0.9, 0.9, 6).reshape(2, 3)
NUDGE = Nudge(kind="quadratic", beta=0.5, conductance=1e-5, target=np.array([[0.1, 0.2], [0.3, 0.4]]))
READINGS = np.arange(8.0).reshape(2, 4) / 10


class Hangs(Exception):
    """Answer nothing, but stay."""


class Drops(Exception):
    """Send some bytes, then close the connection."""

    def __init__(self, before: bytes = b"") -> None:
        self.before = before


class Board:
    """A board in a thread: what it hears, and what it says to each header, which a test may change.

    An answer is bytes, or a function of the command that returns them, or raises how it breaks; a list is
    gone through one by one.
    """

    slowly = False
    """Whether it sends byte by byte."""

    def __init__(self, **answers: Any) -> None:
        described = asdict(BOARD) | {"settling_time": None}
        self.answers: dict[str, Any] = {
            "*IDN?": BOARD.identity.encode(),
            "SYST:CAP?": block(json.dumps(described).encode()),
            "SYST:LOCK:REQ?": b"1",
            "SYST:LOCK:OWN?": b'"10.0.0.9:50111"',
            "STAT:PRES?": b"7",
            "READ?": floats_block(READINGS, big_endian=False),
            "COND:READ?": floats_block(np.full(6, 2e-6), big_endian=False),
            "UPD:PULS?": b"12",
            "CAL?": block(b'{"adc_offset": 0.001}'),
        } | answers
        self.heard: list[Unit] = []
        self.errors: list[str] = []
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.05)
        self.resource = f"TCPIP::127.0.0.1::{self._listening.getsockname()[1]}::SOCKET"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def headers(self, *, of: str = "") -> list[str]:
        return [unit.header for unit in self.heard if unit.header.startswith(of)]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(ConnectionError):
                    self.connections += 1
                    self.errors.clear()
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        reader = MessageReader(ROOMY)
        while not self._stop.is_set():
            if not select.select([connection], [], [], 0.02)[0]:
                continue
            data = connection.recv(1 << 16)
            if not data:
                return
            for message in reader.feed(data):
                said = []
                for unit in message:
                    assert not isinstance(unit, ScpiError), unit.entry
                    self.heard.append(unit)
                    try:
                        answer = self._answer(unit)
                    except Hangs:
                        while not self._stop.is_set() and connection.recv(1 << 16):
                            pass
                        return
                    except Drops as drops:
                        connection.sendall(drops.before)
                        return
                    if answer is not None:
                        said.append(answer)
                if said:
                    self._say(connection, b";".join(said) + b"\n")

    def _say(self, connection: socket.socket, line: bytes) -> None:
        if not self.slowly:
            connection.sendall(line)
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in line:
            connection.sendall(bytes([byte]))
            time.sleep(2e-4)

    def _answer(self, unit: Unit) -> bytes | None:
        header = unit.header.removeprefix(":")
        found = self.answers.get(header)
        if isinstance(found, list):
            found = found.pop(0) if found else None
        if isinstance(found, str):
            # Refused: what the error queue will say.
            self.errors.append(found)
            return None
        if isinstance(found, Exception):
            raise found
        if header == "SYST:ERR?" and found is None:
            return (self.errors.pop(0) if self.errors else '0,"No error"').encode()
        return found(unit) if callable(found) else found


@pytest.fixture
def board() -> Iterator[Callable[..., Board]]:
    """Make boards, and stop them."""
    made: list[Board] = []

    def make(answers: dict[str, Any] | None = None) -> Board:
        made.append(Board(**(answers or {})))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def opened(board: Board, **options: Any) -> VisaSubstrate:
    return VisaSubstrate(board.resource, **{"timeout": 5.0} | options)


def free(substrate: VisaSubstrate) -> Any:
    return substrate.relax(INPUTS, "free")


# ---------------------------------------------------------------------------------- the served die


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "lab.yaml").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def served(files: Path) -> Iterator[Served]:
    with serving(
        files / "tiny.yaml", "--cards", files / "lab.yaml", "--seed", 7, errors=files / "errors"
    ) as found:
        yield found


def in_process(files: Path) -> SimulatedSubstrate:
    """The die that `served` serves."""
    spec = load_network(files / "tiny.yaml")
    return simulated_substrate(
        compile_network(spec, seed=7), Cost.of(spec), load_card(files / "lab.yaml"), seed=7
    )


def test_every_reading_is_that_of_the_die_in_process(served: Served, files: Path) -> None:
    here = in_process(files)
    fresh = {key: np.array(value) for key, value in here.state().items()}
    with VisaSubstrate(served.resource) as there:
        assert isinstance(there, StatefulSubstrate)
        assert isinstance(there, AgeingSubstrate)
        assert repr(there.capabilities) == repr(here.capabilities)
        assert there.presentations == 0
        here.restore(fresh)
        told = [sequence(substrate) for substrate in (here, there)]
        assert here.presentations == there.presentations > 0
    assert len(told[0]) == len(told[1]) > 30
    for mine, other in zip(*told, strict=True):
        np.testing.assert_array_equal(mine, other)
    # Noise and drift were there to be the same.
    assert len({array.tobytes() for array in told[0]}) > 0.8 * len(told[0])


def sequence(substrate: SimulatedSubstrate | VisaSubstrate) -> list[Any]:
    """Everything that can be done, and what it gives: programming, phases, updates, drift, going back."""
    rng = np.random.default_rng(5)
    limits = substrate.capabilities
    found: list[Any] = []

    def program() -> None:
        wanted = {
            crossbar.name: tuple(
                rng.uniform(crossbar.low, crossbar.high, crossbar.shape) if half else None
                for half in (True, crossbar.differential)
            )
            for crossbar in limits.crossbars
        }
        achieved = substrate.program(wanted)
        assert list(achieved) == list(wanted)
        found.extend(half for pair in achieved.values() for half in pair if half is not None)

    def phases(batch: int, n_average: int = 1) -> None:
        volts = rng.uniform(limits.dac.low, limits.dac.high, (batch, limits.inputs))
        nudge = Nudge(
            kind=limits.nudge.kind,
            beta=0.1,
            conductance=limits.nudge.conductance,
            target=rng.uniform(-0.2, 0.2, (batch, limits.outputs)),
            scale=limits.nudge.scale,
        )
        found.append(substrate.relax(volts, "free", n_average=n_average))
        for phase in ("nudged", "corrected", "dyadic"):
            for beta in (0.1, -0.1):
                found.append(substrate.relax(volts, phase, nudge.scaled(beta), n_average))

    program()
    phases(4)
    kept = substrate.state()
    phases(1, n_average=7)
    found.append(np.array([substrate.update({limits.crossbars[0].name: 1e-7})], dtype=float))
    phases(64)
    substrate.wait(1e4)
    phases(3)
    found.append(np.array(list(substrate.calibrate().values())))
    program()
    phases(2)
    substrate.restore(kept)
    phases(2)
    return found


def test_a_round_trip_of_64_doubles_is_well_under_the_delay_of_a_nagling_client(served: Served) -> None:
    with VisaSubstrate(served.resource) as substrate:
        volts = np.full((21, 3), 0.05)
        substrate.relax(volts, "free")
        times = []
        for _ in range(50):
            start = time.perf_counter()
            assert substrate.presentations > 0
            times.append(time.perf_counter() - start)
        # A delayed acknowledgement would be 40 ms on any machine, and in every round trip.
        assert min(times) < 0.01


def test_a_lock_keeps_others_out_and_names_its_owner(served: Served) -> None:
    with VisaSubstrate(served.resource) as first:
        with pytest.raises(InstrumentError, match=r"is locked by 127\.0\.0\.1:\d+.*lock=False"):
            VisaSubstrate(served.resource)
        with VisaSubstrate(served.resource, lock=False) as second:
            assert second.presentations == first.presentations
            with pytest.raises(RefusedError, match=r'-203,"Command protected;.*locked by 127') as refusal:
                second.relax(np.zeros((1, 3)), "free")
            assert refusal.value.number == -203
            assert refusal.value.object == served.resource
            assert "INP:VOLT <block>" in str(refusal.value)
    with VisaSubstrate(served.resource):
        pass


def test_another_sessions_phase_makes_the_anchor_stale(served: Served) -> None:
    nudge = Nudge(kind="quadratic", beta=0.1, conductance=0.0, target=np.zeros((1, 2)))
    with (
        VisaSubstrate(served.resource, lock=False) as first,
        VisaSubstrate(served.resource, lock=False) as second,
    ):
        own = first.capabilities.nudge
        nudge = Nudge(
            kind=own.kind, beta=0.1, conductance=own.conductance, target=np.zeros((1, 2)), scale=own.scale
        )
        zeros = np.zeros((1, 3))
        first.relax(zeros, "free")
        first.relax(zeros, "nudged", nudge)
        second.relax(zeros, "free")
        with pytest.raises(RefusedError, match='-230,"Data corrupt or stale;'):
            first.relax(zeros, "nudged", nudge)
        first.relax(zeros, "free")
        first.relax(zeros, "nudged", nudge)


def test_descriptions_come_as_text(served: Served) -> None:
    with VisaSubstrate(served.resource) as substrate:
        assert "CONDuctance:PROGram" in substrate.commands()
        assert "tiny" in substrate.circuit()


def test_a_state_outlives_the_session_and_the_server(files: Path, tmp_path: Path) -> None:
    state = tmp_path / "die.npz"
    common = (files / "tiny.yaml", "--cards", files / "lab.yaml", "--seed", 7)
    inputs = np.full((2, 3), 0.03)
    with serving(*common, "--state", state, errors=tmp_path / "first") as first:
        with VisaSubstrate(first.resource) as substrate:
            substrate.relax(inputs, "free")
            kept = substrate.state()
            wanted = [substrate.relax(inputs, "free") for _ in range(2)]
        assert {key: value.shape for key, value in kept.items()} == {"register": (1,), "presentations": (1,)}
        with VisaSubstrate(first.resource) as substrate:
            substrate.restore(kept)
            np.testing.assert_array_equal([substrate.relax(inputs, "free") for _ in range(2)], wanted)
        first.process.kill()
        first.process.wait()
    with (
        serving(*common, "--state", state, errors=tmp_path / "second") as second,
        VisaSubstrate(second.resource) as substrate,
    ):
        substrate.restore(kept)
        np.testing.assert_array_equal([substrate.relax(inputs, "free") for _ in range(2)], wanted)


def test_an_instrument_that_keeps_nothing_says_so(served: Served) -> None:
    with VisaSubstrate(served.resource) as substrate:
        never = {"register": np.array([9.0]), "presentations": np.array([1.0])}
        with pytest.raises(InstrumentError, match=r"has lost the state of register 9: .*is empty.*--state"):
            substrate.restore(never)
        kept = substrate.state()
        other = dict(kept) | {"presentations": kept["presentations"] + 1}
        with pytest.raises(InstrumentError, match=r"it holds one after \d+ presentations, not"):
            substrate.restore(other)
        substrate.restore(kept)


# ------------------------------------------------------------------------------------ nobody there


def test_nobody_listening_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(InstrumentError, match=r"Connection refused.*circuitsim serve") as failure:
        VisaSubstrate(f"TCPIP::127.0.0.1::{port}::SOCKET")
    assert time.monotonic() - start < 3
    assert failure.value.object == f"TCPIP::127.0.0.1::{port}::SOCKET"
    assert failure.value.exit_code == 2


def test_a_host_that_does_not_answer_is_given_up_after_less_than_three_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, contextlib.ExitStack() as waiting:
        address = listening.getsockname()
        # Nobody accepts these, and the queue is full: what comes now is dropped, as by a firewall.
        for _ in range(4):
            each = waiting.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(address)
        start = time.monotonic()
        with pytest.raises(InstrumentError, match=r"does not answer within 2\.5 s"):
            VisaSubstrate(f"TCPIP::127.0.0.1::{address[1]}::SOCKET")
        assert time.monotonic() - start < 3.5


@pytest.mark.parametrize("name", ["", "nonsense", "TCPIP::127.0.0.1::SOCKET", "PXI0::3::INSTR"])
def test_a_name_that_is_no_resource(name: str) -> None:
    with pytest.raises(InstrumentError, match=r"TCPIP::127\.0\.0\.1::5025::SOCKET"):
        VisaSubstrate(name)


def test_a_library_that_is_not_there() -> None:
    with pytest.raises(InstrumentError, match=r"no such library.*circuitsim\[lab\]"):
        VisaSubstrate("TCPIP::127.0.0.1::5025::SOCKET", resource_manager="@nonsense")


def test_without_pyvisa_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyvisa", None)
    with pytest.raises(InstrumentError, match=r"not installed.*pip install 'circuitsim\[lab\]'"):
        VisaSubstrate("TCPIP::127.0.0.1::5025::SOCKET")


def test_a_timeout_is_more_than_nothing() -> None:
    with pytest.raises(InstrumentError, match="must be more than 0 s"):
        VisaSubstrate("TCPIP::127.0.0.1::5025::SOCKET", timeout=0)


# ------------------------------------------------------------------------------- something else there


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request", "does not say who it is"),
        (b"hello", "does not say who it is"),
        (b"\xff\xfe\x00", "no text"),
        (b"a,b,c,d;e", "answers that nobody asked for"),
        (b"#0abc", "a block that has no length"),
        (b"#4abcd", "a block that has no length"),
        (b"#9999999999", "999999999 bytes, where at most 0"),
        (b"x" * 70000, "line without an end"),
        (None, "left `.*` without an answer"),
        (Drops(), "closed the connection"),
        (Drops(b"maker,bo"), "closed the connection"),
    ],
)
def test_what_is_no_instrument_is_called_so(board: Any, answer: Any, words: str) -> None:
    there = board({"*IDN?": answer})
    start = time.monotonic()
    with pytest.raises(InstrumentError, match=words) as failure:
        opened(there)
    assert failure.value.object == there.resource
    assert time.monotonic() - start < 3


def test_silence_is_told_within_the_timeout(board: Any) -> None:
    there = board({"*IDN?": Hangs()})
    start = time.monotonic()
    with pytest.raises(InstrumentError, match=r"gave no answer within 0\.3 s"):
        opened(there, timeout=0.3)
    assert time.monotonic() - start < 2


def test_an_instrument_without_the_commands(board: Any) -> None:
    there = board({"SYST:CAP?": '-113,"Undefined header"'})
    with pytest.raises(InstrumentError, match=r'no substrate.*-113,"Undefined header".*got .maker,board'):
        opened(there)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (b"not JSON", "no JSON object"),
        (b"[1, 2]", "no JSON object"),
        (b"\xff\xfe", "no text"),
        ({"inputs": None}, "inputs"),
        ({"inputs": "3"}, "inputs"),
        ({"inputs": 0}, "no inputs"),
        ({"phases": ["free", "frozen"]}, "phases"),
        ({"phases": ["nudged"]}, "no free phase"),
        ({"readings": []}, "no node is read"),
        ({"readings": ["y0", "y0", "y1", "h"]}, "read twice"),
        ({"dac": {"bits": 8, "low": 1.0, "high": -1.0}}, "converter"),
        ({"adc": {"bits": 0, "low": -1.0, "high": 1.0}}, "converter"),
        ({"adc": {"low": -1.0, "high": 1.0}}, r"adc\.bits"),
        ({"nudge": {"kind": "quadratic", "conductance": 0.0, "scale": 1.0, "largest_beta": 1.0}}, "nudge"),
        ({"most_samples": 0}, "no samples"),
        ({"settling_time": -1.0}, "settling time"),
        ({"resolution": float("inf")}, "resolution"),
        (
            {"crossbars": [{"name": "x", "shape": [2, 2], "differential": True, "low": 1.0, "high": 0.1}]},
            "x has no window",
        ),
        (
            {"crossbars": [{"name": "x", "shape": [0, 2], "differential": True, "low": 0.0, "high": 0.1}]},
            "x has no devices",
        ),
    ],
)
def test_a_description_that_cannot_be(board: Any, change: Any, words: str) -> None:
    text = change
    if isinstance(change, dict):
        text = json.dumps(asdict(BOARD) | {"settling_time": None} | change).encode()
    there = board({"SYST:CAP?": block(text)})
    with pytest.raises(InstrumentError, match=words) as failure:
        opened(there)
    assert failure.value.object == there.resource


def test_an_instrument_that_says_why_it_refuses_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b'-310,"System error;16 clients are connected already"\n')

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(InstrumentError, match=r"16 clients are connected already|reset by peer"):
            VisaSubstrate(f"TCPIP::127.0.0.1::{listening.getsockname()[1]}::SOCKET")
        thread.join()


def test_whatever_comes_back_is_an_answer_or_an_instrument_error(board: Any) -> None:
    rng = stream(6, "garbage")
    alphabet = np.frombuffer(b'#;\n"0123456789,-\r\xff\x00 ab', dtype=np.uint8)
    there = board()
    failures = 0
    for _ in range(150):
        with opened(there) as substrate:
            garbage = alphabet[rng.integers(len(alphabet), size=rng.integers(1, 30))].tobytes()
            there.answers["READ?"] = Drops(garbage)
            try:
                free(substrate)
            except InstrumentError:
                failures += 1
            there.answers["READ?"] = floats_block(READINGS, big_endian=False)
            there.answers["SYST:ERR?"] = None
            np.testing.assert_array_equal(free(substrate), READINGS)
    assert failures == 150


# --------------------------------------------------------------------------------- what it refuses


def test_what_the_instrument_refuses_comes_in_its_own_words(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        there.answers["READ?"] = [
            '-222,"Data out of range;a ""quoted"" word; and more"',
            floats_block(READINGS, big_endian=False),
        ]
        there.errors += ['-350,"Queue overflow"']
        with pytest.raises(RefusedError) as refusal:
            free(substrate)
        assert refusal.value.number == -350
        assert '-222,"Data out of range;a "quoted" word; and more"' in str(refusal.value)
        assert "`INP:VOLT <block>;:SENS:AVER 1;:READ? FREE`" in str(refusal.value)
        # Sweeps bring errors home from other processes.
        assert str(refusal.value) in str(pickle.loads(pickle.dumps(refusal.value)))
        # All of the queue has been read: the next answer is nobody else's.
        np.testing.assert_array_equal(free(substrate), READINGS)
        assert there.connections == 1


def test_nothing_is_programmed_that_was_not_all_taken(board: Any) -> None:
    there = board()
    pair = np.full((3, 2), 5e-6), np.full((3, 2), 6e-6)
    with opened(there) as substrate:
        there.answers["COND:WRIT"] = [None, '-222,"Data out of range;x-y"']
        with pytest.raises(RefusedError, match=r'COND:WRIT "x-y",PLUS,<block>.*-222'):
            substrate.program({"x-y": pair})
        assert there.headers(of="COND") + there.headers(of=":COND") == ["COND:DISC", "COND:WRIT", "COND:WRIT"]
        achieved = substrate.program({"x-y": pair})
        np.testing.assert_array_equal(achieved["x-y"], np.full((2, 3, 2), 2e-6))
        writes = [unit for unit in there.heard if unit.header == "COND:WRIT"][-2:]
        for unit, word, half in zip(writes, ("PLUS", "MIN"), pair, strict=True):
            assert unit.parameters[0].string("name") == "x-y"
            assert unit.parameters[1].word("half", "PLUS", "MINus") == word
            np.testing.assert_array_equal(unit.parameters[2].floats("g", big_endian=False), half.ravel())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda s: s.relax(2 * INPUTS, "free"), r"must be within -1 \.\.\. 1 V"),
        (lambda s: s.relax(INPUTS[:, :2], "free"), r"must be \(B, 3\)"),
        (lambda s: s.relax(INPUTS, "corrected", NUDGE), "cannot form this phase"),
        (lambda s: s.relax(INPUTS, "nudged", NUDGE.scaled(2.0)), "must be at most 1"),
        (lambda s: s.relax(INPUTS, "nudged"), "needs a nudge"),
        (lambda s: s.relax(INPUTS, "free", n_average=101), "must be 1 to 100 readings"),
        (lambda s: s.program({"bias": (np.full((1, 2), 1.0), None)}), "must be within 1e-06"),
        (lambda s: s.program({"z": (np.full((1, 2), 1e-6), None)}), "no such crossbar"),
        (lambda s: s.update({"z": 1.0}), "no such crossbar"),
        (lambda s: s.update({"bias": float("nan")}), "must be finite"),
        (lambda s: s.wait(-1.0), "must be 0 s or more"),
        (lambda s: s.restore({"register": np.zeros(1)}), "count of presentations"),
        (lambda s: s.restore({"register": np.full(1, 10.0), "presentations": np.zeros(1)}), "must be 0 to 9"),
    ],
)
def test_what_is_outside_its_limits_is_not_even_sent(
    board: Any, wrong: Callable[[VisaSubstrate], object], words: str
) -> None:
    there = board()
    with opened(there) as substrate:
        before = len(there.heard)
        with pytest.raises(InstrumentError, match=words):
            wrong(substrate)
        assert len(there.heard) == before


def test_boards_that_cannot_write_or_update(board: Any) -> None:
    described = asdict(BOARD) | {"settling_time": 1e-6, "host_writes": False, "updates_itself": False}
    with opened(board({"SYST:CAP?": block(json.dumps(described).encode())})) as substrate:
        assert substrate.capabilities.settling_time == 1e-6
        with pytest.raises(InstrumentError, match="writes its conductances itself"):
            substrate.program({"bias": (np.full((1, 2), 1e-6), None)})
        with pytest.raises(InstrumentError, match="cannot update its devices itself"):
            substrate.update({"bias": 1.0})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"7", "with a word"),
        (block(b"\x00" * 63), "63 bytes, not the 64"),
        (block(b"\x00" * 72), "72 bytes, where at most 64"),
        (floats_block(np.full(8, np.nan), big_endian=False), "not finite"),
        (floats_block(READINGS, big_endian=False) + b"x", "longer than it says"),
        (floats_block(READINGS, big_endian=False) + b";7", "nobody asked for"),
        (None, "without an answer"),
    ],
)
def test_readings_that_are_none(board: Any, answer: Any, words: str) -> None:
    with opened(board({"READ?": answer})) as substrate, pytest.raises(InstrumentError, match=words):
        free(substrate)


def test_counts_pulses_and_calibrations_are_numbers(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        assert substrate.update({"x-y": 0.1, "bias": 1e-7}) == 12
        unit = next(unit for unit in there.heard if unit.header == "UPD")
        assert [parameter.text for parameter in unit.parameters] == ["x-y", "0.1", "bias", "1e-07"]
        assert substrate.calibrate() == {"adc_offset": 0.001}
        for header, answer, call in (
            ("STAT:PRES?", b"many", lambda: substrate.presentations),
            ("UPD:PULS?", b"-1", lambda: substrate.update({"bias": 1.0})),
            ("CAL?", block(b'{"adc_offset": "x"}'), substrate.calibrate),
        ):
            there.answers[header] = answer
            with pytest.raises(InstrumentError, match="number"):
                call()


def test_registers_are_used_in_turn(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        kept = [substrate.state() for _ in range(12)]
        assert [int(state["register"][0]) for state in kept] == [*range(10), 0, 1]
        substrate.restore(kept[4])
        assert int(substrate.state()["register"][0]) == 5
        there.answers["STAT:PRES?"] = b"8"
        with pytest.raises(
            InstrumentError, match=r"lost the state of register 4.*after 8 presentations, not 7"
        ):
            substrate.restore(kept[4])
        there.answers["*RCL"] = '-203,"Command protected;the die is locked by 10.0.0.9:50111"'
        with pytest.raises(RefusedError, match="locked by"):
            substrate.restore(kept[4])


# ------------------------------------------------------------------------------- a lost connection


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 40, 68])
def test_a_phase_that_is_cut_off_is_not_asked_for_again(board: Any, cut: int) -> None:
    there = board()
    whole = floats_block(READINGS, big_endian=False)
    with opened(there) as substrate:
        there.answers["READ?"] = [Drops(whole[:cut]), whole, whole]
        with pytest.raises(
            InstrumentError, match=r"closed the connection.*READ\? FREE.*may have gone through"
        ):
            free(substrate)
        assert there.headers(of=":READ?") == [":READ?"]
        # The next phase goes over a new connection, with all that it depends on.
        there.heard.clear()
        substrate.relax(INPUTS, "nudged", NUDGE, n_average=3)
        assert there.connections == 2
        assert there.headers(of="SYST:LOCK:REQ?") == ["SYST:LOCK:REQ?"]
        own = ["INP:VOLT", ":NUDG:TARG", ":NUDG:BETA", ":SENS:AVER", ":READ?", ":SYST:ERR?"]
        assert there.headers()[-6:] == own
        sent = {unit.header: unit.parameters[0] for unit in there.heard if unit.parameters}
        np.testing.assert_array_equal(sent["INP:VOLT"].floats("u", big_endian=False), INPUTS.ravel())
        np.testing.assert_array_equal(sent[":NUDG:TARG"].floats("t", big_endian=False), NUDGE.target.ravel())
        assert sent[":NUDG:BETA"].number("beta") == 0.5
        assert sent[":SENS:AVER"].number("average") == 3
        assert sent[":READ?"].text == "NUDGed"


@pytest.mark.parametrize(
    ("header", "call"),
    [
        ("COND:PROG", lambda s: s.program({"bias": (np.full((1, 2), 1e-6), None)})),
        ("UPD", lambda s: s.update({"bias": 1.0})),
        ("*SAV", lambda s: s.state()),
        ("*RCL", lambda s: s.restore({"register": np.zeros(1), "presentations": np.full(1, 7.0)})),
        ("DIAG:WAIT", lambda s: s.wait(1.0)),
        ("CAL?", lambda s: s.calibrate()),
    ],
)
def test_nothing_that_changes_the_die_is_sent_twice(
    board: Any, header: str, call: Callable[[VisaSubstrate], object]
) -> None:
    there = board({header: Drops()})
    with opened(there) as substrate:
        with pytest.raises(InstrumentError, match=r"closed the connection.*Nothing is sent twice"):
            call(substrate)
        assert there.headers().count(header) == 1


def test_a_query_is_asked_again_and_the_loss_told_before_the_next_change(board: Any) -> None:
    there = board({"STAT:PRES?": [Drops(), Drops(b"1"), b"7", b"7"]})
    with opened(there) as substrate:
        assert substrate.presentations == 7
        assert there.connections == 3
        with pytest.raises(
            InstrumentError, match=r"was lost and is back: nothing of .*READ\? FREE.* was sent"
        ):
            free(substrate)
        assert not there.headers(of=":READ?")
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_whoever_restores_a_state_knows_of_the_loss(board: Any) -> None:
    there = board({"STAT:PRES?": [b"7", Drops(), b"9", b"7"]})
    with opened(there) as substrate:
        kept = substrate.state()
        assert substrate.presentations == 9
        substrate.restore(kept)
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_a_connection_that_ended_between_two_phases_is_told_before_anything_is_sent(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        there.answers["SYST:ERR?"] = [Drops(floats_block(READINGS, big_endian=False) + b'\n0,"No error"\n')]
        there.answers["READ?"] = None
        np.testing.assert_array_equal(free(substrate), READINGS)
        there.answers |= {"SYST:ERR?": None, "READ?": floats_block(READINGS, big_endian=False)}
        wait_for(lambda: bool(select.select([substrate._link._socket], [], [], 0)[0]))
        there.heard.clear()
        with pytest.raises(InstrumentError, match=r"closed the connection.*Nothing of it was sent"):
            free(substrate)
        assert not there.heard
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_tries_end_when_nobody_comes_back(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        there.answers["STAT:PRES?"] = Drops()
        start = time.monotonic()
        with pytest.raises(InstrumentError, match=r"closed the connection.*STAT:PRES\?"):
            _ = substrate.presentations
        assert time.monotonic() - start < 4
        assert there.headers().count("STAT:PRES?") == 4


def test_another_instrument_in_its_place_is_noticed(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        there.answers["STAT:PRES?"] = Drops()
        other = asdict(BOARD) | {"settling_time": None, "identity": "maker,board,2,0.1"}
        there.answers["SYST:CAP?"] = block(json.dumps(other).encode())
        with pytest.raises(InstrumentError, match="another instrument than before"):
            _ = substrate.presentations


def test_silence_ends_a_phase_and_its_late_answer_is_nobodys(board: Any) -> None:
    there = board()
    with opened(there, timeout=0.3) as substrate:
        there.answers["READ?"] = [Hangs(), floats_block(READINGS, big_endian=False)]
        with pytest.raises(InstrumentError, match=r"no answer within 0\.3 s.*may have gone through"):
            free(substrate)
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_an_answer_that_nobody_asked_for_is_not_taken_for_another(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        there.answers["SYST:ERR?"] = [b'0,"No error"\n5']
        with contextlib.suppress(InstrumentError):
            free(substrate)
        there.answers["SYST:ERR?"] = None
        with contextlib.suppress(InstrumentError):
            free(substrate)
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_an_instrument_that_does_not_read_does_not_stop_the_client_for_ever(board: Any) -> None:
    stuck = threading.Event()

    def stop_reading(unit: Unit) -> bytes:
        stuck.wait(20)
        return b"7"

    many = asdict(BOARD) | {"settling_time": None, "most_samples": 10**6}
    there = board({"SYST:CAP?": block(json.dumps(many).encode()), "STAT:PRES?": stop_reading})
    substrate = opened(there, timeout=1.0)
    asked = substrate._link._session
    asked.write_raw(b"STAT:PRES?\n")
    start = time.monotonic()
    with pytest.raises(InstrumentError, match=r"was lost|no answer"):
        substrate.relax(np.zeros((700_000, 3)), "free")
    assert time.monotonic() - start < 10
    stuck.set()
    substrate.close()


def test_answers_that_come_byte_by_byte_are_put_together(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        there.slowly = True
        np.testing.assert_array_equal(free(substrate), READINGS)
        assert substrate.presentations == 7
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_other_libraries_than_pyvisa_py_are_read_by_count(board: Any) -> None:
    there = board()
    with opened(there) as substrate:
        substrate._link._socket = None
        for _ in range(3):
            np.testing.assert_array_equal(free(substrate), READINGS)
        assert substrate.presentations == 7
        there.answers["READ?"] = ['-221,"Settings conflict;no"', floats_block(READINGS, big_endian=False)]
        with pytest.raises(RefusedError, match="Settings conflict"):
            free(substrate)
        np.testing.assert_array_equal(free(substrate), READINGS)


def test_what_was_closed_stays_closed(board: Any) -> None:
    there = board()
    substrate = opened(there)
    substrate.close()
    substrate.close()
    assert there.headers()[-2:] == ["SYST:LOCK:REL", ":SYST:ERR?"]
    with pytest.raises(InstrumentError, match="was closed"):
        free(substrate)
    assert there.connections == 1


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
