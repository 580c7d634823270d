"""`.if`, `.elseif`, `.else`, `.endif`: which lines of a deck count."""

from __future__ import annotations

import re
from dataclasses import dataclass

from circuitsim.spice.fields import read_fields, words_of
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.parameters import PARAMETER_LINES, Names, Scope, read_parameters

__all__ = ["chosen_lines"]

_WORDS = (".if", ".elseif", ".elif", ".else", ".endif")
_EQUALS = re.compile(r"(?<![<>=!])=(?!=)")
_NAME = re.compile(r"(?<![a-z0-9_.$#@])[a-z_][a-z0-9_.$#@]*")
_DEEPEST = 50


@dataclass
class _Block:
    """An ``.if`` that is open: has a branch been taken, and is this one it?"""

    line: Line
    taken: bool
    inside: bool


def chosen_lines(lines: list[Line]) -> list[Line]:
    """Return the lines whose conditions hold, without the conditions.

    A condition may use the parameters of the deck itself, those in branches above it included, but not
    those of a subcircuit.

    Raises:
        NetlistError: a condition that cannot be decided, or blocks that do not match.
    """
    if not any(line.text.startswith(_WORDS) for line in lines):
        return lines
    reader = _Reader(lines)
    for line in lines:
        reader.take(line)
    if reader.blocks:
        raise problem(reader.blocks[-1].line, "is not closed by .endif")
    return reader.chosen


class _Reader:
    def __init__(self, lines: list[Line]) -> None:
        self.chosen: list[Line] = []
        self.blocks: list[_Block] = []
        self.local: list[set[str]] = []
        self.names = Names()
        depth = 0
        for line in lines:
            word = line.text.split(None, 1)[0]
            depth += (word in (".if", ".subckt", ".macro")) - (word in (".endif", ".ends", ".eom"))
            if depth == 0:
                read_parameters(self.names, line)

    def take(self, line: Line) -> None:
        word, _, rest = line.text.partition(" ")
        word, bracket, more = word.partition("(")
        if word in _WORDS:
            self.branch(line, word, (bracket + more + " " + rest).strip())
        elif all(block.inside for block in self.blocks):
            self.chosen.append(line)
            self.define(line, word)

    def define(self, line: Line, word: str) -> None:
        """Take notice of parameters that conditions further down may use."""
        if word in (".subckt", ".macro"):
            self.local.append(set(read_fields(line, words_of(line)[2:]).named))
        elif word in (".ends", ".eom") and self.local:
            self.local.pop()
        elif self.local and word in PARAMETER_LINES:
            own = Names()
            read_parameters(own, line)
            self.local[-1] |= set(own.parameters)
        elif self.blocks:
            read_parameters(self.names, line)

    def branch(self, line: Line, word: str, condition: str) -> None:
        if word == ".if":
            if len(self.blocks) >= _DEEPEST:
                raise problem(line, f"is nested deeper than {_DEEPEST}")
            reached = all(block.inside for block in self.blocks)
            holds = reached and self.holds(line, condition)
            self.blocks.append(_Block(line, taken=holds or not reached, inside=holds))
            return
        if not self.blocks:
            raise problem(line, "belongs to no .if")
        block = self.blocks[-1]
        if word == ".endif":
            self.blocks.pop()
            return
        block.inside = not block.taken and (word == ".else" or self.holds(line, condition))
        block.taken = block.taken or block.inside

    def holds(self, line: Line, condition: str) -> bool:
        own = {name for names in self.local for name in names}
        used = own & set(_NAME.findall(condition))
        if used:
            remedy = "A condition may use parameters of the deck itself only."
            raise problem(line, "depends on a parameter of a subcircuit", value=min(used), remedy=remedy)
        text = _EQUALS.sub("==", condition)
        return Scope(self.names).constant(line, text, "condition") != 0
