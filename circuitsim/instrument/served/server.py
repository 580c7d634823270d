"""A die served over TCP as a SCPI instrument: one die, several clients, commands in the order they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from circuitsim.chip.substrate import Capabilities
from circuitsim.errors import InstrumentError
from circuitsim.instrument.served.commands import COMMANDS, Command, CommandTree
from circuitsim.instrument.served.scpi import FramingLimits, Message, MessageReader, ScpiError, Unit
from circuitsim.instrument.served.session import ServedDie, Session

__all__ = ["ServerLimits", "serve_die"]

_LARGE = 1 << 18
"""Bytes of blocks from which a command leaves the loop to others while it is done."""
_QUICK = 0.01
"""Seconds that a command may take on the loop, where nobody else waits: a change of thread costs more than it
is worth then, the more so on a busy machine."""
_CLOSED = (7, 8)
"""States of a TCP connection on Linux whose other side is closed: CLOSE, CLOSE_WAIT."""
_CHUNK = 1 << 16
"""Bytes of responses that are gathered before they are sent."""
_PIECE = 1 << 14
"""Bytes that are framed at a time: others get their turn, and messages that wait take little memory."""
_AHEAD = 1 << 18
"""Bytes of one client that wait to be framed before no more are received."""
_TURN = 16
"""Messages that a session does before others get their turn for certain."""
_FLUSH = 2.0
"""Seconds that clients have for their last responses when the server stops."""
_MEBIBYTE = 1 << 20

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What a server takes of its clients. Times in s, sizes in bytes, rates per s."""

    clients: int = 16
    """One that has closed its side may still have commands done, but gives its place up to another."""
    line: int = 1 << 16
    """Of one message, without its blocks."""
    block: int = 64 * _MEBIBYTE
    """Of one block; less where no legal one is as large."""
    silence: float = 10.0
    """Within a message; between messages a client may be silent for as long as it likes."""
    unread: float = 10.0
    """How long a client may leave its responses unread."""
    connections: float = 200.0
    """New connections, of all clients together; twice as many in a burst."""
    errors: float = 200.0
    """Refused commands of one client, five times as many in a burst: beyond, it is let go. No other
    commands are counted, and none are slowed."""

    def framing(self, capabilities: Capabilities) -> FramingLimits:
        """Return the limits of messages to a substrate: of its largest block, and of all that are of use."""
        samples = capabilities.most_samples
        sizes = [8 * samples * capabilities.inputs, 8 * samples * capabilities.outputs]
        for crossbar in capabilities.crossbars:
            rows, columns = crossbar.shape
            sizes += [8 * rows * columns] * (1 + crossbar.differential)
        largest = min(max(sizes), self.block)
        return FramingLimits(line=self.line, block=largest, message=sum(min(size, largest) for size in sizes))


@dataclass(eq=False)
class _TokenBucket:
    """``rate`` tokens a second, at most ``size`` at once."""

    rate: float
    size: float

    def __post_init__(self) -> None:
        self._tokens, self._at = self.size, time.monotonic()

    def take(self) -> bool:
        """Take a token; return whether there was one."""
        now = time.monotonic()
        self._tokens = min(self.size, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Server:
    """What the connections to one die share."""

    def __init__(self, die: ServedDie, limits: ServerLimits, log: Log) -> None:
        self.die = die
        self.limits = limits
        self.framing = limits.framing(die.substrate.capabilities)
        self.log = log
        self.tree = CommandTree(COMMANDS)
        # The die is one piece of hardware: one thread, first come first served.
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="die")
        self._jobs: list[Future[Any]] = []
        self._took: dict[str, tuple[int, float]] = {}
        """Of each command that took the die: how much it did when last done, and in how many seconds."""
        self.connections: set[_Connection] = set()
        self.arrivals = _TokenBucket(limits.connections, 2 * limits.connections)
        self.stopping = False

    async def on_die(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the die's thread, when its turn comes."""
        job = self.worker.submit(function, *arguments)
        self._jobs = [each for each in self._jobs if not each.done()]
        self._jobs.append(job)
        return await asyncio.wrap_future(job)

    def quick(self, command: Command, work: int) -> bool:
        """Whether a command may be done on the loop: nobody else waits, and it should take no time."""
        if len(self.connections) > 1 or not all(job.done() for job in self._jobs):
            return False
        before, seconds = self._took.get(command.header, (1, _QUICK))
        return seconds * max(1.0, work / before) < _QUICK

    def took(self, command: Command, work: int, seconds: float) -> None:
        """Note how long a command took."""
        self._took[command.header] = (work, seconds)

    def make_room(self) -> bool:
        """Let go of a connection whose client has gone, if there is one."""
        for connection in self.connections:
            if connection.left:
                connection.drop("its client had gone, and another needed the place")
                self.connections.discard(connection)
                return True
        return False

    async def save_changes(self, every: float) -> None:
        """Write the state file now and then, where there is something new to write."""
        while True:
            await asyncio.sleep(every)
            if not self.die.unsaved:
                continue
            try:
                await self.on_die(self.die.save)
            except OSError as error:
                _complain(f"the state cannot be saved: {error}; trying again in {every:g} s")

    async def stop(self) -> None:
        """Finish the commands at hand, send their responses, let the clients go."""
        self.stopping = True
        connections = list(self.connections)
        for connection in connections:
            connection.stop()
        tasks = [connection.task for connection in connections]
        if tasks:
            await asyncio.wait(tasks)
        ends = [connection.ended for connection in connections]
        if ends:
            await asyncio.wait(ends, timeout=_FLUSH)
        for connection in list(self.connections):
            connection.transport.abort()


class _Connection(asyncio.Protocol):
    """One client: frames what it sends, does its commands in order, sends the responses."""

    transport: asyncio.Transport
    task: asyncio.Task[None]
    ended: asyncio.Future[None]

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._limits = server.limits
        self._reader = MessageReader(server.framing)
        self._received: deque[memoryview] = deque()
        """Bytes that have not been framed yet."""
        self._behind = 0
        """How many."""
        self._waiting: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False
        self._busy = False
        """Whether a command is being done."""
        self._heard = 0.0
        """When bytes came last."""
        self._timer: asyncio.TimerHandle | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._errors = _TokenBucket(server.limits.errors, 5 * server.limits.errors)
        self._refused = False
        self._eof = False
        """Whether the client has closed its side."""
        self._done = 0
        """Messages so far."""
        self._wrong = 0
        """Commands in error so far."""
        self._reason = "closed by the client"

    # ------------------------------------------------------------------- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        server, loop = self._server, asyncio.get_running_loop()
        peer = transport.get_extra_info("peername") or ("?", 0)
        self._name = f"{peer[0]}:{peer[1]}"
        self._socket = transport.get_extra_info("socket")
        for level, option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(level, option, 1)
        self._acknowledge_at_once()
        why = None
        if not server.arrivals.take():
            why = f"more than {self._limits.connections:g} connections a second"
        elif len(server.connections) >= self._limits.clients and not server.make_room():
            why = f"{self._limits.clients} clients are connected already"
        if why is not None or server.stopping:
            self._refused = True
            server.log(f"{self._name} refused: {why or 'stopping'}")
            transport.write(f"{ScpiError(-310, why or 'the server is stopping').entry}\n".encode())
            transport.close()
            return
        self.session = Session(die=server.die, name=self._name)
        self.ended = loop.create_future()
        server.connections.add(self)
        self.task = loop.create_task(self._serve())
        server.log(f"{self._name} connected ({len(server.connections)} of {self._limits.clients})")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._acknowledge_at_once()
        self._heard = time.monotonic()
        self._received.append(memoryview(data))
        self._behind += len(data)
        self._arrived.set()
        if self._behind > _AHEAD and not self._paused:
            self._paused = True
            self.transport.pause_reading()
        if self._timer is None:
            self._watch_silence(self._limits.silence)

    def eof_received(self) -> bool:
        # A client may close its side once it has asked: what it asked is still answered.
        if not self._refused:
            inside = self._reader.inside or bool(self._received)
            self._reason = f"closed by the client{' within a message' if inside else ''}"
            self._arrived.set()
            self._eof = True
        return not self._refused

    def pause_writing(self) -> None:
        self._writable.clear()
        self._watch_unread(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._writable.set()
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    def connection_lost(self, error: Exception | None) -> None:
        if self._refused:
            return
        for timer in (self._timer, self._drain):
            if timer is not None:
                timer.cancel()
        server = self._server
        server.connections.discard(self)
        server.die.forget(self.session)
        self.task.cancel()
        self._writable.set()
        if not self.ended.done():
            self.ended.set_result(None)
        why = self._reason if error is None else str(error)
        server.log(f"{self._name} gone after {self._done} messages, {self._wrong} errors: {why}")

    # -------------------------------------------------------------------------------- time-outs

    def _acknowledge_at_once(self) -> None:
        """Ask for acknowledgements without delay, which lasts for one receipt only.

        A client with Nagle's algorithm holds its second write back until the first is acknowledged.
        """
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _watch_silence(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._silent)

    def _silent(self) -> None:
        self._timer = None
        left = self._limits.silence - (time.monotonic() - self._heard)
        if self._received or self._waiting or self._busy:
            # It is not the client that is late.
            left = self._limits.silence
        elif not self._reader.inside:
            return
        if left > 0:
            self._watch_silence(left)
            return
        self._end(ScpiError(-365, f"a message stopped for {self._limits.silence:g} s before its end"))

    def _watch_unread(self, size: int) -> None:
        loop = asyncio.get_running_loop()
        self._drain = loop.call_later(self._limits.unread, self._unread, size)

    def _unread(self, before: int) -> None:
        size = self.transport.get_write_buffer_size()
        if size < before:
            self._watch_unread(size)
            return
        self._drain = None
        self.drop(f"left its responses unread for {self._limits.unread:g} s")

    def _end(self, error: ScpiError) -> None:
        """Say why, and close: what has not been done is left."""
        self._reason = error.entry
        self._received.clear()
        self._waiting.clear()
        self.transport.write(f"{error.entry}\n".encode())
        self.transport.close()
        self._arrived.set()

    @property
    def left(self) -> bool:
        """Whether the client has closed its side, be there bytes before that or not."""
        if self._eof or not hasattr(socket, "TCP_INFO") or sys.platform != "linux":
            return self._eof
        try:
            return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _CLOSED
        except OSError:
            return True

    def drop(self, reason: str) -> None:
        """Close at once: what has not been done is left."""
        self._reason = reason
        self._received.clear()
        self._waiting.clear()
        self.transport.abort()

    def stop(self) -> None:
        """End when the command at hand is done."""
        self._reason = "the server stops"
        if not self._busy:
            self.task.cancel()

    # -------------------------------------------------------------------------------- commands

    async def _serve(self) -> None:
        try:
            while not self._server.stopping and not self.transport.is_closing():
                if not self._waiting:
                    if self._received:
                        self._frame()
                        continue
                    if self._eof:
                        break
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                message = self._waiting.popleft()
                await self._respond(message)
                self._done += 1
                if self._done % _TURN == 0:
                    await asyncio.sleep(0)
        finally:
            self.transport.close()

    def _frame(self) -> None:
        """Make messages of some of what was received."""
        data = self._received.popleft()
        if len(data) > _PIECE:
            self._received.appendleft(data[_PIECE:])
            data = data[:_PIECE]
        self._behind -= len(data)
        self._waiting += self._reader.feed(data)
        if self._paused and self._behind <= _AHEAD // 2:
            self._paused = False
            self._heard = time.monotonic()
            self.transport.resume_reading()

    async def _respond(self, message: Message) -> None:
        """Do the commands of one message; send their responses on one line."""
        gathered = bytearray()
        answered = failed = False
        path = ""
        for unit in message:
            if self._server.stopping or self.transport.is_closing():
                # A response to half a message would be worse than none.
                if not answered:
                    return
                break
            if isinstance(unit, ScpiError):
                self._note(unit)
                break
            try:
                command, path = self._server.tree.find(unit.header, path)
                if failed and not command.always:
                    continue
                self.session.answering = answered
                response = await self._run(command, unit)
            except ScpiError as error:
                failed = True
                self._note(error)
                continue
            if response is None:
                continue
            if answered:
                gathered += b";"
            gathered += response
            answered = True
            if len(gathered) > _CHUNK:
                await self._send(gathered)
                gathered = bytearray()
        if answered:
            gathered += b"\n"
            await self._send(gathered)

    async def _run(self, command: Command, unit: Unit) -> bytes | None:
        command.check_count(unit.parameters)
        die = self._server.die
        if command.guarded and die.owner is not None and die.owner is not self.session:
            raise ScpiError(-203, f"the die is locked by {die.owner.name}")
        try:
            waits = command.die and not command.at_once(self.session)
            if not waits and unit.size <= _LARGE:
                response = command.run(self.session, unit.parameters)
            else:
                response = await self._run_on_die(command, unit)
        except (ScpiError, asyncio.CancelledError):
            raise
        except Exception as error:
            # A fault of the server's own: whoever runs it must see it, its clients must not suffer it.
            _complain(f"{command.header} failed:\n{''.join(traceback.format_exception(error))}")
            raise ScpiError(-310, f"{type(error).__name__} in {command.header}") from error
        return response.encode("ascii") if isinstance(response, str) else response

    async def _run_on_die(self, command: Command, unit: Unit) -> str | bytes | None:
        server, inputs = self._server, self.session.inputs
        work = max(1, unit.size // 8, 0 if inputs is None else inputs.size * self.session.average)
        begin = time.perf_counter()
        if server.quick(command, work):
            response = command.run(self.session, unit.parameters)
        else:
            self._busy = True
            try:
                response = await server.on_die(command.run, self.session, unit.parameters)
            finally:
                self._busy = False
        server.took(command, work, time.perf_counter() - begin)
        return response

    def _note(self, error: ScpiError) -> None:
        self.session.refused(error)
        self._wrong += 1
        if not self._errors.take() and not self.transport.is_closing():
            self._end(ScpiError(-310, f"more than {self._limits.errors:g} errors a second"))

    async def _send(self, data: bytearray) -> None:
        self.transport.write(data)
        await self._writable.wait()


async def serve_die(
    die: ServedDie,
    *,
    host: str,
    port: int,
    limits: ServerLimits | None = None,
    save_every: float = 10.0,
    ready: Callable[[str, int], None] = lambda host, port: None,
    stop: asyncio.Event,
    log: Log = lambda line: None,
) -> None:
    """Serve a die until ``stop`` is set; ``ready`` is told where, port 0 being any that is free.

    Then the commands at hand are finished, and the state file, where there is one, is written.

    Raises:
        InstrumentError: the address cannot be had.
        OSError: the state file cannot be written.
    """
    limits = limits or ServerLimits()
    server = _Server(die, limits, log)
    loop = asyncio.get_running_loop()
    try:
        listening = await loop.create_server(lambda: _Connection(server), host, port, backlog=256)
    except OSError as error:
        server.worker.shutdown()
        raise _not_served(error, host, port) from error
    saving = loop.create_task(server.save_changes(save_every))
    try:
        address = listening.sockets[0].getsockname()
        ready(address[0], address[1])
        await stop.wait()
    finally:
        listening.close()
        saving.cancel()
        await server.stop()
        try:
            if die.state_file is not None:
                await server.on_die(die.save)
        finally:
            server.worker.shutdown()


def _not_served(error: OSError, host: str, port: int) -> InstrumentError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        remedy = "Stop what listens there, or choose another port; --port 0 takes any that is free."
        return InstrumentError("is in use already", field="--port", value=where, remedy=remedy)
    if error.errno == errno.EACCES:
        return InstrumentError(
            "is not allowed to this user", field="--port", value=where, remedy="Choose one above 1023."
        )
    why = (error.strerror or str(error)).lower()
    remedy = "Give an address of this machine: 127.0.0.1, or 0.0.0.0 for all."
    return InstrumentError(f"cannot be served: {why}", field="--host", value=where, remedy=remedy)


def _complain(text: str) -> None:
    print(f"serve: {text}", file=sys.stderr, flush=True)
