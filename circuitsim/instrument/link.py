"""A connection to an instrument through PyVISA: whole exchanges, lost connections, the error queue.

An exchange is a few program messages in one write, behind them the error query as a message of its own (so
that it is answered even where a message is refused as a whole), and one reading of all that comes back. It
ends at the error queue's answer, ``<number>,"<words>"``, which nothing else looks like.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from circuitsim.errors import InstrumentError
from circuitsim.instrument.served.scpi import floats_block
from circuitsim.netlist.tables import FloatArray

__all__ = ["Answer", "Command", "Link", "Message", "RefusedError"]

_PAUSES = (0.1, 0.3, 0.9)
"""How long to wait before each new try of a query [s]."""
_OPENING = 2.5
"""How long opening a connection may take [s]."""
_LONGEST_TEXT = 65536
_MOST_ERRORS = 64
_PIECE = 1 << 20
"""Bytes that are read at once."""
_PACKET = 4096
"""Bytes that PyVISA-py sends at once."""
_TEXT = re.compile(rb'(?:[^;\n"]|"(?:[^"\n]|"")*"?)*')
"""What is between two separators; one in quotes is none."""
_ERROR = re.compile(r'([+-]?\d+),"(.*)"')
_QUERY = b":SYST:ERR?\n"


class RefusedError(InstrumentError):
    """The instrument put something into its error queue: ``number``, and ``words`` as it says it."""

    def __init__(self, rule: str, *, number: int = 0, words: str = "", object: str | None = None) -> None:
        self.number = number
        self.words = words
        super().__init__(rule, object=object)


class _LostError(Exception):
    """The connection is gone, or could not be made; ``sent``: whether any of the exchange had left."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


@dataclass(frozen=True)
class Command:
    """One command: its text up to where its block begins, and the numbers in the block."""

    text: str
    data: FloatArray | None = None

    def __str__(self) -> str:
        return self.text if self.data is None else f"{self.text}<block>"

    def encoded(self) -> bytes:
        head = self.text.encode("ascii")
        return head if self.data is None else head + floats_block(self.data, big_endian=False)


Message: TypeAlias = Sequence[Command | str]
Answer: TypeAlias = str | bytearray
"""A text, or what was in a block."""


class Link:
    """One instrument at the other end of a VISA resource, connected when first asked.

    ``greet`` is called with every new connection: it may ask `once` for who is there, and set up a session.
    A query without effect is asked again over a new connection, three times at most. Anything else is sent
    once, and no loss of the connection goes by without an `InstrumentError` before the next of it is sent.
    """

    def __init__(
        self, resource: str, *, timeout: float, resource_manager: str, greet: Callable[[], None]
    ) -> None:
        self.resource = resource
        self._timeout = timeout
        self._manager = resource_manager
        self._greet = greet
        self._session: Any = None
        self._socket: socket.socket | None = None
        """Of a raw socket of PyVISA-py: it tells what has come, and at once when the other side closes."""
        self._buffer = bytearray()
        self._scratch = bytearray(_PIECE)
        self._untold = False
        """Whether the connection was lost and made again without an error having said so."""

    def open(self) -> None:
        """Connect now.

        Raises:
            InstrumentError: PyVISA is missing, or nobody answers; at most 3 s later.
        """
        try:
            self._connect()
        except _LostError as lost:
            self._give_up(lost, "", "")

    def ask(
        self,
        *messages: Message,
        answers: int = 0,
        largest: int = 0,
        at_stake: str = "",
        acknowledges: bool = False,
    ) -> list[Answer]:
        """Send messages and return their ``answers``, as many as are expected.

        Args:
            messages: commands; those of one message are sent, and obeyed or refused, together.
            answers: how many answers they have.
            largest: bytes of the largest block among them.
            at_stake: what may have happened when the connection is lost: for what is not to be sent twice.
            acknowledges: the caller knows that the instrument may have changed, and puts it right.

        Raises:
            RefusedError: the instrument's own words.
            InstrumentError: it is lost, or what comes back is no answer.
        """
        if acknowledges or not at_stake:
            self._untold = self._untold and not acknowledges
        elif self._untold:
            self._untold = False
            raise InstrumentError(
                f"was lost and is back: nothing of {_shown(messages)} was sent",
                object=self.resource,
                remedy="It may have been restarted, or used by others. Restore a state, or program it again.",
            )
        for pause in (*_PAUSES, None):
            try:
                if self._session is None:
                    self._connect()
                return self.once(*messages, answers=answers, largest=largest)
            except _LostError as lost:
                if at_stake or pause is None:
                    self._give_up(lost, _shown(messages), at_stake)
                self._untold = True
                time.sleep(pause)
        raise AssertionError

    def once(
        self, *messages: Message, answers: int = 0, largest: int = 0, timeout: float | None = None
    ) -> list[Answer]:
        """Exchange messages over the connection that there is, for `greet`; otherwise like `ask`."""
        try:
            sent = b"".join(b";".join(_encoded(part) for part in message) + b"\n" for message in messages)
        except UnicodeEncodeError as error:
            raise InstrumentError("takes ASCII alone", object=self.resource, value=error.object) from None
        entries: list[tuple[int, str]] = []
        done = False
        try:
            self._write(sent + _QUERY)
            found, entry = self._answers(answers, largest, self._timeout if timeout is None else timeout)
            while entry[0] != 0 and len(entries) < _MOST_ERRORS:
                entries.append(entry)
                self._write(_QUERY)
                _, entry = self._answers(0, 0, self._timeout)
            done = True
        except _LostError:
            # An instrument that refuses the connection itself says why, and closes it.
            if not entries:
                raise
        finally:
            # Whatever comes late would be taken for the answer to something else.
            if not done:
                self.close()
        if entries:
            said = "; then ".join(f'{number},"{words}"' for number, words in entries)
            number, words = entries[0]
            rule = f"refused {_shown(messages)}: {said}"
            raise RefusedError(rule, number=number, words=words, object=self.resource)
        if len(found) < answers:
            self.close()
            raise InstrumentError(
                f"left {_shown(messages)} without an answer",
                object=self.resource,
                remedy="Is this the right instrument? It needs the commands of `circuitsim serve`.",
            )
        return found

    def close(self) -> None:
        """Let the connection go; the next query makes a new one."""
        session, self._session, self._socket = self._session, None, None
        self._buffer.clear()
        if session is not None:
            pyvisa = _pyvisa()
            try:
                session.close()
            except (pyvisa.errors.Error, OSError):
                return

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._session is not None

    def nonsense(self, rule: str, value: object) -> InstrumentError:
        """Return the error that what came back is no answer."""
        return InstrumentError(
            rule, object=self.resource, value=value, remedy="Is this the address of the right instrument?"
        )

    # ------------------------------------------------------------------------------------- connection

    def _connect(self) -> None:
        pyvisa = _pyvisa()
        milliseconds = 1000 * self._timeout
        try:
            manager = pyvisa.ResourceManager(self._manager)
        except (ValueError, OSError) as error:
            raise InstrumentError(
                f"PyVISA has no such library: {error}",
                field="resource_manager",
                value=self._manager,
                remedy="`pip install 'circuitsim[lab]'` installs @py; @ivi needs a vendor's library.",
            ) from error
        try:
            session = manager.open_resource(
                self.resource, open_timeout=int(1000 * _OPENING), timeout=milliseconds
            )
        except (ValueError, pyvisa.errors.Error) as error:
            # A name that PyVISA cannot read is one error, a name that its library cannot is another.
            number = getattr(error, "error_code", None)
            invalid = (
                pyvisa.constants.StatusCode.error_invalid_resource_name,
                pyvisa.constants.StatusCode.error_resource_not_found,
            )
            if number is not None and number not in invalid:
                raise _LostError(f"cannot be reached: {error}", sent=False) from error
            raise InstrumentError(
                f"is no VISA resource that can be opened here: {error}",
                object=self.resource,
                remedy="A raw socket is TCPIP::127.0.0.1::5025::SOCKET.",
            ) from error
        except Exception as error:
            # PyVISA-py knows nothing narrower for a host that cannot be reached.
            late = str(int(pyvisa.constants.StatusCode.error_timeout)) in str(error)
            reason = f"does not answer within {_OPENING:g} s" if late else f"cannot be reached: {error}"
            raise _LostError(reason, sent=False) from error
        self._session = session
        try:
            self._prepare(pyvisa)
            self._greet()
        except _LostError as lost:
            self.close()
            raise _LostError(lost.reason, sent=False) from lost
        except BaseException:
            self.close()
            raise

    def _prepare(self, pyvisa: Any) -> None:
        if not isinstance(self._session, pyvisa.resources.MessageBasedResource):
            raise InstrumentError(
                "is no resource that messages can be sent to",
                object=self.resource,
                remedy="A raw socket is TCPIP::127.0.0.1::5025::SOCKET.",
            )
        sessions = getattr(self._session.visalib, "sessions", {})
        own: Any = sessions.get(self._session.session) if isinstance(sessions, dict) else None
        inside = getattr(own, "interface", None)
        if not isinstance(inside, socket.socket):
            return
        failed = inside.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise _LostError(f"does not answer: {os.strerror(failed)}", sent=False)
        # PyVISA-py can read VI_ATTR_TCPIP_NODELAY, but not set it.
        inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # PyVISA-py would wait for ever to write to an instrument that does not read.
            inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * self._timeout))
        own.max_recv_size = _PIECE
        self._socket = inside

    def _give_up(self, lost: _LostError, asked: str, at_stake: str) -> NoReturn:
        self._untold = False
        where = f" (asked for {asked})" if asked else ""
        if lost.sent and at_stake:
            remedy = f"{at_stake} Nothing is sent twice: see that it is there, then go on from a known state."
        elif at_stake:
            remedy = "Nothing of it was sent. See that it is there, then go on from a known state."
        else:
            remedy = (
                "See that it is there: `circuitsim serve` starts a simulated one; a real one has an address, "
                "a cable and a firewall."
            )
        raise InstrumentError(f"{lost.reason}{where}", object=self.resource, remedy=remedy) from lost

    # ---------------------------------------------------------------------------------------- exchange

    def _write(self, data: bytes) -> None:
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            said = bytes(self._scratch[: min(self._peek(sent=False), 200)]).decode("ascii", "replace").strip()
            raise _LostError(f"said {said} when nothing was asked", sent=False)
        try:
            # PyVISA-py sends 4 KiB at a time: the other side is to be woken once.
            held = self._socket if len(data) > _PACKET and hasattr(socket, "TCP_CORK") else None
            if held is not None:
                held.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            self._session.write_raw(data)
            if held is not None:
                held.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        except (_pyvisa().errors.Error, OSError) as error:
            raise _LostError(f"was lost: {error}", sent=True) from error

    def _acknowledge_at_once(self) -> None:
        """Ask for that of what comes next: Nagle's algorithm over there holds a second packet back for it."""
        assert self._socket is not None
        if hasattr(socket, "TCP_QUICKACK"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _answers(self, most: int, largest: int, timeout: float) -> tuple[list[Answer], tuple[int, str]]:
        """Read to the answer of the error query; return what came before it, and it."""
        found: list[Answer] = []
        buffer = self._buffer
        while True:
            self._need(1, timeout)
            if buffer[0] == 0x23:
                found.append(self._block(largest, timeout))
                mark = self._mark(timeout)
            else:
                text = self._text(timeout)
                mark = self._mark(timeout)
                error = _ERROR.fullmatch(text)
                if error is not None and mark == 0x0A:
                    if buffer:
                        raise self.nonsense("goes on after its answer", bytes(buffer[:40]))
                    return found, (int(error[1]), error[2].replace('""', '"'))
                found.append(text)
            if len(found) > most:
                raise self.nonsense("gives answers that nobody asked for", _start(found[-1]))

    def _block(self, largest: int, timeout: float) -> bytearray:
        buffer = self._buffer
        self._need(2, timeout)
        digits = buffer[1] - 0x30
        if not 1 <= digits <= 9:
            raise self.nonsense("answers with a block that has no length", bytes(buffer[:12]))
        self._need(2 + digits, timeout)
        size = bytes(buffer[2 : 2 + digits])
        if not size.isdigit():
            raise self.nonsense("answers with a block that has no length", bytes(buffer[:12]))
        start, stop = 2 + digits, 2 + digits + int(size)
        if int(size) > largest:
            rule = f"answers with a block of {int(size)} bytes, where at most {largest} were expected"
            raise self.nonsense(rule, bytes(buffer[:12]))
        self._need(stop, timeout)
        data = buffer[start:stop]
        del buffer[:stop]
        return data

    def _text(self, timeout: float) -> str:
        buffer = self._buffer
        while True:
            match = _TEXT.match(buffer)
            stop = match.end() if match else 0
            if stop > _LONGEST_TEXT:
                raise self.nonsense("answers with a line without an end", bytes(buffer[:40]))
            if stop < len(buffer):
                break
            self._need(len(buffer) + 1, timeout)
        data = bytes(buffer[:stop])
        del buffer[:stop]
        try:
            return data.decode("ascii").strip()
        except UnicodeDecodeError:
            raise self.nonsense("answers with what is no text", data[:40]) from None

    def _mark(self, timeout: float) -> int:
        """Take what is behind an answer: the semicolon before another, or the end of the line."""
        self._need(1, timeout)
        mark = self._buffer.pop(0)
        if mark == 0x0D:
            self._need(1, timeout)
            mark = self._buffer.pop(0)
        if mark not in b";\n":
            raise self.nonsense("answers with a block that is longer than it says", bytes([mark]))
        return mark

    def _need(self, count: int, timeout: float) -> None:
        """Read until so many bytes are there."""
        missing = count - len(self._buffer)
        while missing > 0:
            if self._socket is None:
                size = missing
            else:
                self._acknowledge_at_once()
                if not select.select([self._socket], [], [], timeout)[0]:
                    raise _LostError(f"gave no answer within {timeout:g} s", sent=True)
                size = self._peek(sent=True)
            self._buffer += self._read(size)
            missing = count - len(self._buffer)

    def _read(self, size: int) -> bytes:
        pyvisa = _pyvisa()
        try:
            data: bytes = self._session.read_bytes(size, chunk_size=size)
        except pyvisa.errors.VisaIOError as error:
            late = error.error_code == pyvisa.constants.StatusCode.error_timeout
            reason = f"gave no answer within {self._timeout:g} s" if late else f"was lost: {error}"
            raise _LostError(reason, sent=True) from error
        except (pyvisa.errors.Error, OSError) as error:
            raise _LostError(f"was lost: {error}", sent=True) from error
        return data

    def _peek(self, *, sent: bool) -> int:
        """Return how many bytes have come."""
        assert self._socket is not None
        try:
            size = self._socket.recv_into(self._scratch, _PIECE, socket.MSG_PEEK)
        except OSError as error:
            raise _LostError(f"was lost: {error}", sent=sent) from error
        if not size:
            raise _LostError("closed the connection", sent=sent)
        return size


def _pyvisa() -> Any:
    try:
        import pyvisa
    except ImportError as error:
        raise InstrumentError(
            "an instrument is reached through PyVISA, which is not installed",
            remedy="`pip install 'circuitsim[lab]'` installs it, with PyVISA-py.",
        ) from error
    return pyvisa


def _encoded(part: Command | str) -> bytes:
    return part.encode("ascii") if isinstance(part, str) else part.encoded()


def _shown(messages: Sequence[Message]) -> str:
    """Return messages as an error names them: without what is in their blocks."""
    return "`" + " | ".join(";".join(str(part) for part in message) for message in messages) + "`"


def _start(answer: Answer) -> str | bytes:
    return answer[:40] if isinstance(answer, str) else bytes(answer[:40])
