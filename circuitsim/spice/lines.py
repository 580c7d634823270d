"""Deck text -> logical lines: continuations joined, comments gone, included files in their places.

Letters are folded to lower case, as SPICE does. Each line keeps its file and number for messages.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from circuitsim.errors import NetlistError

__all__ = ["DeckText", "Line", "deck_text", "deck_text_of_file", "problem"]

_LARGEST_FILE = 256 * 2**20
_LARGEST_TOTAL = 512 * 2**20
_DEEPEST_INCLUDE = 50
_MOST_FILES = 5_000

_NON_ASCII = re.compile(r"[^\x00-\x7f]")
_UPPER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
# A dollar sign starts a comment after a space, but a node may be called $n_0001.
_COMMENT = re.compile(r";|//|(?<=[\s,])\$")
_AFTER_PATH = re.compile(r";|(?<=\s)\$|(?<=\s)//")
_STRETCH = re.compile(r"  |[^\S \n]")
_NODE_POSITION = 3
_INCLUDE = re.compile(r"\.inc(?:l|lude)?\b\s*(.*)", re.IGNORECASE)
_LIBRARY = re.compile(r"\.lib\b\s*(.*)", re.IGNORECASE)
_PATH = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|(\S+))""")


_Chain = tuple[tuple[Path, str], ...]
"""The files, or sections of libraries, that led to a line."""


class Line(NamedTuple):
    """One logical line: ``text`` in lower case, ``number`` and ``file`` of its first physical line."""

    text: str
    number: int
    file: str | None

    @property
    def place(self) -> str:
        return f"line {self.number}" if self.file is None else f"{self.file}:{self.number}"


def problem(line: Line, rule: str, **details: Any) -> NetlistError:
    """Return the error of a line, which names its file, its number and, by default, its first word."""
    details.setdefault("object", line.text.split(None, 1)[0][:40] if line.text.strip() else None)
    return NetlistError(rule, file=line.place, **details)


@dataclass
class DeckText:
    """A deck's title and its logical lines, in the order in which they count."""

    title: str
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def deck_text_of_file(path: str | Path) -> DeckText:
    """Read a deck and every file that it includes.

    Raises:
        NetlistError: a file that is missing, is no regular file, is too large, or includes itself.
    """
    reader = _Reader()
    return reader.deck(
        reader.content(Path(path), None), str(path), Path(path).parent, ((_identity(Path(path)), ""),)
    )


def deck_text(text: str, *, file: str | Path | None = None, folder: str | Path | None = None) -> DeckText:
    """Return the lines of a deck given as text; ``folder`` is where ``.include`` looks, None for nowhere."""
    if folder is None and file is not None:
        folder = Path(file).parent
    return _Reader().deck(
        text, None if file is None else str(file), None if folder is None else Path(folder), ()
    )


class _Reader:
    """One deck being read: limits hold for all its files together."""

    def __init__(self) -> None:
        self.files = 0
        self.size = 0
        self.notes: list[str] = []

    def deck(self, text: str, file: str | None, folder: Path | None, including: _Chain) -> DeckText:
        first, _, rest = _unified(text).partition("\n")
        lines = self.lines(rest, file, folder, including, first_number=2)
        return DeckText(title=first.strip(), lines=lines, notes=self.notes)

    def lines(
        self,
        text: str,
        file: str | None,
        folder: Path | None,
        including: _Chain,
        *,
        first_number: int,
        section: Line | None = None,
    ) -> list[Line]:
        """Return the logical lines of a file's text, those of included files in their places.

        ``section`` is the line that asks for one section of a library file.
        """
        if "\0" in text:
            raise NetlistError("is not a text file: it holds zero bytes", file=file)
        lines = _logical(_unified(text), file, first_number)
        if section is not None:
            lines = _section(lines, section)
        found: list[Line] = []
        done = 0
        for k in [k for k, line in enumerate(lines) if line.text[0] == "."]:
            line = lines[k]
            found += lines[done:k]
            done = k + 1
            if match := _INCLUDE.match(line.text):
                found += self._included(line, _words(match[1]), folder, including)
            elif match := _LIBRARY.match(line.text):
                found += self._included(line, _words(match[1]), folder, including, library=True)
            elif line.text.lower() == ".end":
                if len(lines) > done:
                    self.notes.append(f"{line.place}: {len(lines) - done} lines after .end were not read")
                return found
            else:
                found.append(_folded(line))
        return [*found, *lines[done:]] if found else lines

    def content(self, path: Path, line: Line | None) -> str:
        """Return the text of a file."""

        def refuse(rule: str, remedy: str | None = None) -> NetlistError:
            if line is None:
                return NetlistError(rule, file=path, remedy=remedy)
            return problem(line, f"{path}: {rule}", remedy=remedy)

        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise refuse("is not a regular file")
            self.files += 1
            self.size += status.st_size
            if status.st_size > _LARGEST_FILE or self.size > _LARGEST_TOTAL:
                raise refuse(f"is larger than a deck may be, {_LARGEST_FILE // 2**20} MiB")
            if self.files > _MOST_FILES:
                raise refuse(f"more than {_MOST_FILES} files are included")
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise refuse(f"cannot be read: {reason}") from None
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16", "replace")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("latin-1")

    def _included(
        self,
        line: Line,
        words: list[str],
        folder: Path | None,
        including: _Chain,
        *,
        library: bool = False,
    ) -> list[Line]:
        if not 1 <= len(words) <= (2 if library else 1):
            raise problem(
                line,
                "takes a file name and a section" if library else "takes one file name",
                value=" ".join(words),
                remedy="Put a name with spaces in quotes.",
            )
        section = line._replace(text=words[1].lower()) if len(words) == 2 else None
        path, chain = self._resolved(line, words[0], section, folder, including)
        return self.lines(
            self.content(path, line), str(path), path.parent, chain, first_number=1, section=section
        )

    def _resolved(
        self, line: Line, name: str, section: Line | None, folder: Path | None, including: _Chain
    ) -> tuple[Path, _Chain]:
        if folder is None:
            raise problem(
                line,
                "names a file, but this deck is text without a folder",
                value=name,
                remedy="Read the deck from a file, or give the folder.",
            )
        if "\0" in name:
            raise problem(line, "is no file name", value=name)
        path = Path(name).expanduser() if name.startswith("~/") else Path(name)
        path = folder / path
        identity = (_identity(path), section.text if section else "")
        if identity in including:
            raise problem(line, "the file includes itself", value=name)
        if len(including) >= _DEEPEST_INCLUDE:
            raise problem(line, f"files include each other more than {_DEEPEST_INCLUDE} deep", value=name)
        return path, (*including, identity)


def _section(lines: list[Line], wanted: Line) -> list[Line]:
    """Return the lines of a library file between ``.lib NAME`` and ``.endl``."""
    name, inside, found = wanted.text, False, False
    inner = []
    for line in lines:
        match = _LIBRARY.match(line.text)
        words = _words(match[1]) if match else []
        if len(words) == 1:
            inside = words[0].lower() == name
            found = found or inside
        elif line.text[:5].lower() == ".endl":
            inside = False
        elif inside:
            inner.append(line)
    if not found:
        raise NetlistError(
            "the library file has no section of this name", file=wanted.place, object=".lib", value=name
        )
    return inner


def _identity(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _unified(text: str) -> str:
    """Return text with one kind of line end and no byte order mark."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removeprefix("\ufeff")


def _folded(line: Line) -> Line:
    return Line(_single_spaced(_lower(line.text)), line.number, line.file)


def _single_spaced(text: str) -> str:
    """Return text with one space for each stretch of them: patterns need not search long ones."""
    return " ".join(text.split()) if _STRETCH.search(text) else text


def _lower(text: str) -> str:
    """Fold ASCII letters only: other letters may change their number with their case."""
    return text.lower() if text.isascii() else text.translate(_UPPER)


def _logical(text: str, file: str | None, first_number: int) -> list[Line]:
    """Return logical lines; directives keep their case, for file names."""
    raw_lines = text.split("\n")
    lines = _lower(text).split("\n")
    comments = ";" in text or "$" in text or "//" in text
    stretched = _STRETCH.search(text) is not None
    found: list[Line] = []
    more: list[str] = []
    for number, folded in enumerate(lines, first_number):
        physical = folded.strip()
        if not physical:
            continue
        head = physical[0]
        if head == "*":
            continue
        if head == "." or (head == "+" and found and found[-1].text[0] == "."):
            physical = raw_lines[number - first_number].strip()
        if comments:
            physical = _without_comment(physical)
            if not physical:
                continue
        if stretched and head != ".":
            physical = _single_spaced(physical)
        if head == "+":
            if not found:
                raise problem(Line(physical, number, file), "continues nothing", object="+")
            more.append(physical[1:])
            continue
        if more:
            found[-1] = _joined(found[-1], more)
            more = []
        found.append(Line(physical, number, file))
    if more:
        found[-1] = _joined(found[-1], more)
    return found


def _joined(line: Line, more: list[str]) -> Line:
    text = " ".join((line.text, *more)).strip()
    return Line(text if text[0] == "." else _single_spaced(text), line.number, line.file)


def _without_comment(text: str) -> str:
    """Return a physical line without what follows ``;``, ``//`` or a dollar sign after a space."""
    if text[0] == "$" or text.startswith("//"):
        return ""
    if text[0] == "." and _INCLUDE.match(text):
        return _AFTER_PATH.split(text, maxsplit=1)[0].rstrip()
    begin = 0
    while match := _COMMENT.search(text, begin):
        at = match.start()
        named = match[0] == "$" and text[at + 1 : at + 2].strip() and text[0] not in ".+"
        if named and len(text[:at].replace(",", " ").replace("(", " ").split()) < _NODE_POSITION:
            begin = at + 1
            continue
        return text[:at].rstrip()
    return text


def _words(text: str) -> list[str]:
    """Split at spaces, keeping what is in quotes together."""
    return [match[1] or match[2] or match[3] or "" for match in _PATH.finditer(text)]
