"""SCPI as bytes: program messages framed as they arrive, responses, the error queue, the status registers.

Follows IEEE 488.2-1992 and SCPI-99 with the liberties that a raw socket asks for: a message ends at a line
feed and nowhere else, a definite-length block is framed by its length alone, an indefinite one is refused.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from circuitsim.netlist.tables import FloatArray

__all__ = [
    "ErrorQueue",
    "FramingLimits",
    "MessageReader",
    "Parameter",
    "ScpiError",
    "StatusRegisters",
    "Unit",
    "block",
    "floats_block",
    "floats_of",
    "quoted",
]

STANDARD_WORDS = {
    -100: "Command error",
    -101: "Invalid character",
    -102: "Syntax error",
    -104: "Data type error",
    -108: "Parameter not allowed",
    -109: "Missing parameter",
    -113: "Undefined header",
    -120: "Numeric data error",
    -141: "Invalid character data",
    -151: "Invalid string data",
    -161: "Invalid block data",
    -200: "Execution error",
    -203: "Command protected",
    -221: "Settings conflict",
    -222: "Data out of range",
    -223: "Too much data",
    -224: "Illegal parameter value",
    -230: "Data corrupt or stale",
    -250: "Mass storage error",
    -310: "System error",
    -350: "Queue overflow",
    -363: "Input buffer overrun",
    -365: "Time out error",
}
"""What SCPI-99 (volume 2, 21.8) calls the errors that are used here."""

_DESCRIPTION = 255
"""Characters of an error's words and details together: the standard's limit."""

_SPECIAL = re.compile(rb"[\n#\"']")
_QUOTES = {0x22: re.compile(rb"[\n\"]"), 0x27: re.compile(rb"[\n']")}
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"]|"")*"|'(?:[^']|'')*')|(?P<mark>[;,])|(?P<text>[^;,"']+)|(?P<bad>.)"""
)
_HEADER = re.compile(r":?[A-Za-z][A-Za-z0-9_]*(?::[A-Za-z][A-Za-z0-9_]*)*\??|\*[A-Za-z]+\??")
_PRINTABLE = re.compile(r"[\t\x20-\x7e]*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 255


class ScpiError(Exception):
    """A command that is refused: one of the standard's numbers, and what this device adds to its words."""

    def __init__(self, number: int, detail: str = "") -> None:
        self.number = number
        self.detail = detail
        super().__init__(self.entry)

    @property
    def entry(self) -> str:
        """As `SYSTem:ERRor?` gives it: number, and in quotes words;detail. ASCII, on one line."""
        words = STANDARD_WORDS[self.number]
        text = f"{words};{self.detail}" if self.detail else words
        text = " ".join(text.split()).encode("ascii", "backslashreplace").decode("ascii")
        if len(text) > _DESCRIPTION:
            text = text[: _DESCRIPTION - 3] + "..."
        return f"{self.number},{quoted(text)}"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter as it was sent; ``number``, ``integer``, ``word`` and ``floats`` say what it must be."""

    kind: Literal["plain", "string", "block"]
    text: str = ""
    """A word or a number as it was sent, or what was between quotes."""
    data: bytes | bytearray = b""
    """What is in a block."""

    def number(self, what: str) -> float:
        """Return a finite decimal number.

        Raises:
            ScpiError: it is none.
        """
        if self.kind != "plain":
            raise ScpiError(-104, f"{what}: must be a number")
        if len(self.text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(self.text):
            raise ScpiError(-120, f"{what}: must be a decimal number (got {shown(self.text)})")
        value = float(self.text)
        if not np.isfinite(value):
            raise ScpiError(-222, f"{what}: must be finite (got {shown(self.text)})")
        return value

    def integer(self, what: str, low: int, high: int) -> int:
        """Return a whole number within ``low`` to ``high``; 4, 4.0 and 4e0 are the same."""
        value = self.number(what)
        if value != int(value) or not low <= value <= high:
            raise ScpiError(-222, f"{what}: must be a whole number {low} to {high} (got {shown(self.text)})")
        return int(value)

    def word(self, what: str, *forms: str) -> str:
        """Return which of some mnemonics was sent, by its short form: of ``PLUS``, ``MINus`` PLUS or MIN."""
        if self.kind != "plain":
            raise ScpiError(-104, f"{what}: must be one of {', '.join(forms)}")
        for form in forms:
            if self.text.upper() in (short_form(form), form.upper()):
                return short_form(form)
        raise ScpiError(-141, f"{what}: must be one of {', '.join(forms)} (got {shown(self.text)})")

    def string(self, what: str) -> str:
        """Return the text of a quoted string."""
        if self.kind != "string":
            raise ScpiError(-104, f'{what}: must be in quotes, as "name"')
        return self.text

    def floats(self, what: str, *, big_endian: bool) -> FloatArray:
        """Return the binary64 numbers of a block, in this machine's byte order."""
        if self.kind != "block":
            raise ScpiError(-104, f"{what}: must be a block, as #216 and 16 bytes")
        return floats_of(self.data, what, big_endian=big_endian)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One command with its parameters. ``header`` is in upper case, with its colons and question mark."""

    header: str
    parameters: tuple[Parameter, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its blocks."""
        return sum(len(parameter.data) for parameter in self.parameters)


Message: TypeAlias = tuple[Unit | ScpiError, ...]
"""What came up to one line feed, in order. Behind an error there is nothing."""


@dataclass(frozen=True, kw_only=True)
class FramingLimits:
    """How much of one message is kept, in bytes: its text, one of its blocks, all of its blocks."""

    line: int
    block: int
    message: int


@dataclass(eq=False)
class MessageReader:
    """Makes messages of bytes, in whatever pieces they arrive.

    What goes beyond a limit is followed to its end, so that the next message is framed as it should be, but
    not kept: the message is then one error.
    """

    limits: FramingLimits
    _pieces: list[bytearray] = field(default_factory=list)
    """Text and blocks of the message so far, by turns; the first is text."""
    _fault: ScpiError | None = None
    _text: int = 0
    """Bytes outside of blocks so far."""
    _blocks: int = 0
    _quote: int = 0
    """The quotation mark that is open, 0 outside."""
    _head: bytearray | None = None
    """What has come of the head of a block, #<n><length>."""
    _left: int = 0
    """Bytes of a block that are still to come."""

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._text > 0

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Take bytes; return the messages that they complete."""
        found: list[Message] = []
        view = memoryview(data)
        place, end = 0, len(data)
        while place < end:
            if self._left:
                count = min(self._left, end - place)
                if self._fault is None:
                    self._pieces[-1] += view[place : place + count]
                self._left -= count
                place += count
                if not self._left and self._fault is None:
                    self._pieces.append(bytearray())
                continue
            if self._head is not None:
                place = self._more_head(data, place)
                continue
            pattern = _QUOTES[self._quote] if self._quote else _SPECIAL
            match = pattern.search(data, place)
            stop = end if match is None else match.start()
            self._more_text(view[place:stop])
            place = stop
            if match is None:
                break
            mark = data[stop]
            if mark == 0x0A:
                found += self._ended()
                place += 1
            elif mark == 0x23:
                self._more_text(b"", 1)
                self._head = bytearray(b"#")
                place += 1
            else:
                self._quote = 0 if self._quote else mark
                self._more_text(view[place : place + 1])
                place += 1
        return found

    def _more_text(self, text: bytes | memoryview, uncounted: int = 0) -> None:
        self._text += len(text) + uncounted
        if self._fault is not None:
            return
        if self._text > self.limits.line:
            rule = f"a message is up to {self.limits.line} bytes long, without its blocks"
            self._refuse(ScpiError(-363, rule))
            return
        if not self._pieces:
            self._pieces.append(bytearray())
        self._pieces[-1] += text

    def _refuse(self, fault: ScpiError) -> None:
        if self._fault is None:
            self._fault = fault
        self._pieces.clear()

    def _more_head(self, data: bytes | memoryview, place: int) -> int:
        """Take one byte of a block's head; return the place behind it."""
        assert self._head is not None
        head, byte = self._head, data[place]
        digit = 0x30 <= byte <= 0x39 and (len(head) > 1 or byte != 0x30)
        if not digit:
            # The byte may end the message, or open a string: it is for the text to see.
            self._head = None
            self._refuse(ScpiError(-161, "a block begins with #, a count of digits, its length in bytes"))
            return place
        head.append(byte)
        self._text += 1
        if len(head) == 1 + 1 + (head[1] - 0x30):
            self._head = None
            self._begin_block(int(head[2:]))
        return place + 1

    def _begin_block(self, size: int) -> None:
        self._left = size
        self._blocks += size
        for limit, what in ((self.limits.block, "a block"), (self.limits.message, "the blocks of a message")):
            if (size if what == "a block" else self._blocks) > limit:
                self._refuse(ScpiError(-223, f"{what} may hold up to {limit} bytes here"))
        if self._fault is None:
            self._pieces.append(bytearray())
            if not size:
                self._pieces.append(bytearray())

    def _ended(self) -> list[Message]:
        """Return the message that a line feed ends; an empty line is none."""
        pieces, fault, text = self._pieces, self._fault, self._text
        self._pieces, self._fault = [], None
        self._text = self._blocks = self._quote = 0
        if fault is not None:
            return [(fault,)]
        if not text:
            return []
        message = parsed(pieces)
        return [message] if message else []


def parsed(pieces: list[bytearray]) -> Message:
    """Return the commands of one message: ``pieces`` are text, block, text, block ..., text."""
    units: list[Unit | ScpiError] = []
    building = _Building()
    try:
        for number, piece in enumerate(pieces):
            if number % 2:
                building.block(piece)
                continue
            try:
                text = piece.decode("ascii")
            except UnicodeDecodeError:
                raise ScpiError(-101, f"only ASCII outside of blocks (got byte {max(piece)})") from None
            if not _PRINTABLE.fullmatch(text.removesuffix("\r") if number == len(pieces) - 1 else text):
                raise ScpiError(-101, "a control character")
            for match in _TOKEN.finditer(text):
                if match.lastgroup == "mark" and match.group() == ";":
                    units += building.finished()
                    building = _Building()
                else:
                    building.token(match.lastgroup or "", match.group())
        units += building.finished()
    except ScpiError as error:
        # It is kept: the frames that it came through need not be.
        units.append(error.with_traceback(None))
    return tuple(units)


@dataclass
class _Building:
    """A command that is being read."""

    header: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    wanted: bool = False
    """Whether a comma asks for another parameter."""
    full: bool = False
    """Whether the last parameter is complete."""

    def token(self, kind: str, text: str) -> None:
        stripped = text.strip()
        if kind == "bad":
            raise ScpiError(-151, "a quotation mark is not closed")
        if not stripped:
            return
        if not self.header:
            self._begin(kind, stripped)
        elif kind == "mark":
            if not self.full:
                raise ScpiError(-102, "a comma without a parameter before it")
            self.wanted, self.full = True, False
        elif kind == "string":
            mark = stripped[0]
            self._add(Parameter(kind="string", text=stripped[1:-1].replace(mark * 2, mark)))
        else:
            self._add(Parameter(kind="plain", text=stripped))

    def block(self, data: bytearray) -> None:
        if not self.header:
            raise ScpiError(-102, "a block without a command")
        self._add(Parameter(kind="block", data=data))

    def finished(self) -> list[Unit | ScpiError]:
        if self.wanted:
            raise ScpiError(-109, "a comma without a parameter after it")
        return [Unit(header=self.header, parameters=tuple(self.parameters))] if self.header else []

    def _begin(self, kind: str, text: str) -> None:
        match = _HEADER.match(text) if kind == "text" else None
        rest = "" if match is None else text[match.end() :]
        if match is None or (rest and not rest[0].isspace()):
            raise ScpiError(-102, f"no command begins like {shown(text)}")
        self.header = match.group().upper()
        if rest.strip():
            self._add(Parameter(kind="plain", text=rest.strip()))

    def _add(self, parameter: Parameter) -> None:
        if self.full:
            raise ScpiError(-102, "parameters need a comma between them")
        self.parameters.append(parameter)
        self.wanted, self.full = False, True


def short_form(mnemonic: str) -> str:
    """Return the short form of a mnemonic, which is written in capitals: of ``VOLTage`` VOLT."""
    return "".join(letter for letter in mnemonic if not letter.islower())


def shown(text: str) -> str:
    """Return text of a client as a message may repeat it: short."""
    return text if len(text) <= 40 else text[:37] + "..."


def quoted(text: str) -> str:
    """Return text as string response data: in quotes, its own quotes doubled."""
    return '"' + text.replace('"', '""') + '"'


def block(data: bytes) -> bytes:
    """Return bytes as a definite-length block, #<n><length><bytes>."""
    size = str(len(data))
    if len(size) > 9:
        raise ScpiError(-223, f"a response of {size} bytes does not fit a block")
    return f"#{len(size)}{size}".encode() + data


def floats_block(values: FloatArray, *, big_endian: bool) -> bytes:
    """Return numbers as a block of binary64."""
    return block(np.ascontiguousarray(values, dtype=">f8" if big_endian else "<f8").tobytes())


def floats_of(data: bytes | bytearray, what: str, *, big_endian: bool) -> FloatArray:
    """Return the binary64 numbers in bytes."""
    if len(data) % 8:
        raise ScpiError(-161, f"{what}: {len(data)} bytes are no whole number of doubles")
    return np.frombuffer(data, dtype=">f8" if big_endian else "<f8").astype(np.float64)


@dataclass(eq=False)
class StatusRegisters:
    """The registers of IEEE 488.2 (chapter 11) of one session."""

    events: int = 0
    """Standard event status register: operation complete 1, query 4, device 8, execution 16, command 32."""
    events_enabled: int = 0
    service_enabled: int = 0

    def note(self, number: int) -> None:
        """Set the event that an error stands for."""
        self.events |= {1: 32, 2: 16, 3: 8, 4: 4}[-number // 100]

    def complete(self) -> None:
        """Set operation complete: commands here end before the next begins."""
        self.events |= 1

    def take_events(self) -> int:
        """Return the event register and clear it, as reading it does."""
        events, self.events = self.events, 0
        return events

    def byte(self, *, errors: bool, message: bool) -> int:
        """Return the status byte: errors queued 4, message available 16, event summary 32, service 64."""
        status = 4 * errors + 16 * message + 32 * bool(self.events & self.events_enabled)
        return status + 64 * bool(status & self.service_enabled & ~64)


@dataclass(eq=False)
class ErrorQueue:
    """The errors of one session, oldest first. Where it is full, the last is the overflow."""

    size: int = 32
    _entries: deque[str] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, error: ScpiError) -> None:
        if len(self._entries) < self.size:
            self._entries.append(error.entry)
        else:
            self._entries[-1] = ScpiError(-350).entry

    def pop(self) -> str:
        return self._entries.popleft() if self._entries else '0,"No error"'

    def clear(self) -> None:
        self._entries.clear()
