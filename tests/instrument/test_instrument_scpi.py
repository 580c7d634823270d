"""SCPI as bytes: framing in any pieces, parameters, errors, status, the command tree."""

from __future__ import annotations

import itertools
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsim.instrument.served.commands import COMMANDS, CommandTree, help_text, spellings
from circuitsim.instrument.served.scpi import (
    ErrorQueue,
    FramingLimits,
    MessageReader,
    Parameter,
    ScpiError,
    StatusRegisters,
    Unit,
    block,
    floats_block,
    quoted,
)

LIMITS = FramingLimits(line=200, block=64, message=100)
TREE = CommandTree(COMMANDS)


def read(data: bytes, limits: FramingLimits = LIMITS, pieces: tuple[int, ...] = ()) -> list[object]:
    """Return the messages in ``data``, cut at ``pieces``, as plain values."""
    reader = MessageReader(limits)
    cuts = [0, *sorted(cut % (len(data) + 1) for cut in pieces), len(data)]
    found: list[object] = []
    for begin, end in itertools.pairwise(cuts):
        found += [tuple(map(plain, message)) for message in reader.feed(data[begin:end])]
    return found


def plain(unit: Unit | ScpiError) -> object:
    if isinstance(unit, ScpiError):
        return unit.number, unit.detail
    return unit.header, tuple((p.kind, p.text, bytes(p.data)) for p in unit.parameters)


def words(*texts: str) -> tuple[tuple[str, str, bytes], ...]:
    return tuple(("plain", text, b"") for text in texts)


# ------------------------------------------------------------------------------------- framing

# Bytes that mean something are frequent; a short line limit and small blocks make limits frequent too.
PIECE = st.one_of(
    st.sampled_from(
        [b"\n", b"\r\n", b";", b",", b'"', b"'", b"#", b"#0", b"#15", b"#210", b"#3999", b"#9", b" ", b":"]
    ),
    st.sampled_from([b"*IDN?", b"SYST:ERR?", b"INP:VOLT ", b"UPD ", b'"a;b\n"', b"#15ab\nc;", b"#6100000"]),
    st.binary(max_size=12),
    st.binary(min_size=60, max_size=260),
)
STREAM = st.lists(PIECE, max_size=30).map(b"".join)


@given(data=STREAM, pieces=st.lists(st.integers(0, 5000), max_size=12).map(tuple))
def test_how_bytes_arrive_does_not_change_what_they_say(data: bytes, pieces: tuple[int, ...]) -> None:
    whole = read(data)
    assert read(data, pieces=pieces) == whole
    assert read(data, pieces=tuple(range(len(data)))) == whole


@given(data=STREAM)
def test_any_bytes_are_commands_or_errors_and_an_error_is_the_last_of_its_message(data: bytes) -> None:
    for message in MessageReader(LIMITS).feed(data):
        assert message
        assert all(isinstance(unit, Unit) for unit in message[:-1])
        for unit in message:
            if isinstance(unit, ScpiError):
                assert unit.entry.isascii()
                assert "\n" not in unit.entry
            else:
                assert unit.size <= LIMITS.message


@given(payload=st.binary(max_size=64), text=st.text(st.characters(codec="ascii", exclude_characters="\n\r")))
def test_a_block_and_a_string_come_through_whatever_is_in_them(payload: bytes, text: str) -> None:
    printable = "".join(letter for letter in text if letter.isprintable())[:60]
    data = b"INP:VOLT " + block(payload) + b";:A " + quoted(printable).encode() + b"\n*IDN?\n"
    assert read(data) == [
        (("INP:VOLT", (("block", "", payload),)), (":A", (("string", printable, b""),))),
        (("*IDN?", ()),),
    ]


def test_line_feeds_quotes_and_semicolons_within_blocks_and_strings_are_data() -> None:
    data = b'COND:WRIT "a;""b""",PLUS,#16\n";#\'\n ; UPD ' + b"'it''s #15', -1e-9\r\n"
    assert read(data) == [
        (
            ("COND:WRIT", (("string", 'a;"b"', b""), *words("PLUS"), ("block", "", b"\n\";#'\n"))),
            ("UPD", (("string", "it's #15", b""), *words("-1e-9"))),
        )
    ]


def test_empty_lines_and_empty_commands_are_nothing() -> None:
    assert read(b"\n\r\n  \n;;\n; *IDN? ;\n") == [(("*IDN?", ()),)]


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"INP:VOLT #0abc", -161),
        (b"INP:VOLT #H1F", -161),
        (b"INP:VOLT #2", -161),
        (b"INP:VOLT #3 12", -161),
        (b"INP:VOLT #15abcde#", -161),
        (b"INP:VOLT #15abcdeX", -102),
        (b"INP:VOLT #265" + 65 * b"x", -223),
        (b"A #250" + 50 * b"\n" + b",#251" + 51 * b"\n", -223),
        (b"A " + 250 * b"x", -363),
        (b'A "open', -151),
        (b"A 'open\"", -151),
        (b"A b c,", -109),
        (b"A ,b", -102),
        (b"A b,,c", -102),
        (b'A b "c"', -102),
        (b"#13abc", -102),
        (b'"a"', -102),
        (b"12", -102),
        (b"A:", -102),
        (b"A-B", -102),
        (b"*IDN*?", -102),
        (b"A \xff", -101),
        (b"A\x00", -101),
        ("A µ".encode(), -101),
    ],
)
def test_what_is_wrong_is_one_error_and_the_next_message_is_read(line: bytes, number: int) -> None:
    found = read(line + b"\n*IDN?\n")
    assert found[-1] == (("*IDN?", ()),)
    assert len(found) == 2
    assert found[0][-1][0] == number  # type: ignore[index]


def test_an_announced_block_takes_no_memory_before_it_comes_and_none_if_it_is_too_large() -> None:
    reader = MessageReader(FramingLimits(line=200, block=1 << 30, message=1 << 30))
    assert reader.feed(b"A #9999999999") == []
    assert reader.feed(b"x" * 1000) == []
    assert sum(map(len, reader._pieces)) < 1100
    reader = MessageReader(LIMITS)
    assert reader.feed(b"A #9999999999" + b"x" * 100_000) == []
    assert not reader._pieces
    assert reader.inside


# ---------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("text", ["1", "+1.", ".5", "-2.5E-3", "0", "1e+3", "007"])
def test_decimal_numbers(text: str) -> None:
    assert Parameter(kind="plain", text=text).number("x") == float(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_000",
        "1,5",
        "1e",
        "e5",
        "--1",
        "1 2",
        "١",
        "1" * 256,
        "__import__",
    ],
)
def test_what_python_would_take_for_a_number_and_the_standard_does_not(text: str) -> None:
    with pytest.raises(ScpiError) as refused:
        Parameter(kind="plain", text=text).number("x")
    assert refused.value.number == -120


def test_numbers_out_of_range() -> None:
    for call in (
        lambda: Parameter(kind="plain", text="1e999").number("x"),
        lambda: Parameter(kind="plain", text="1.5").integer("x", 0, 9),
        lambda: Parameter(kind="plain", text="10").integer("x", 0, 9),
        lambda: Parameter(kind="plain", text="-1").integer("x", 0, 9),
    ):
        with pytest.raises(ScpiError) as refused:
            call()
        assert refused.value.number == -222
    assert Parameter(kind="plain", text="9.0").integer("x", 0, 9) == 9


def test_words_in_short_and_long_form_in_any_case_and_nothing_between() -> None:
    for text in ("nudg", "NUDGED", "Nudged"):
        assert Parameter(kind="plain", text=text).word("phase", "FREE", "NUDGed") == "NUDG"
    for text in ("nud", "nudge", "nudgedd"):
        with pytest.raises(ScpiError) as refused:
            Parameter(kind="plain", text=text).word("phase", "FREE", "NUDGed")
        assert refused.value.number == -141


def test_doubles_in_either_byte_order_bit_for_bit() -> None:
    values = np.array([0.1, -0.0, 5e-324, np.pi, np.inf, np.nan])
    assert floats_block(values, big_endian=False) == b"#248" + struct.pack("<6d", *values)
    assert floats_block(values, big_endian=True) == b"#248" + struct.pack(">6d", *values)
    for big_endian in (False, True):
        data = floats_block(values, big_endian=big_endian)[4:]
        back = Parameter(kind="block", data=data).floats("x", big_endian=big_endian)
        assert back.tobytes() == values.tobytes()
    with pytest.raises(ScpiError) as refused:
        Parameter(kind="block", data=b"1234567").floats("x", big_endian=False)
    assert refused.value.number == -161


@pytest.mark.parametrize("method", ["number", "string", "floats", "word"])
def test_a_parameter_of_another_kind_is_a_data_type_error(method: str) -> None:
    wrong = Parameter(kind="string" if method != "string" else "block", text="1")
    options = {"big_endian": False} if method == "floats" else {}
    with pytest.raises(ScpiError) as refused:
        getattr(wrong, method)("x", **options)
    assert refused.value.number == -104


# ------------------------------------------------------------------------ errors and registers


def test_error_queue_is_first_in_first_out_and_its_last_entry_tells_of_an_overflow() -> None:
    queue = ErrorQueue(size=3)
    assert queue.pop() == '0,"No error"'
    for number in (-101, -102, -104, -108, -109):
        queue.push(ScpiError(number))
    assert len(queue) == 3
    assert [queue.pop() for _ in range(4)] == [
        '-101,"Invalid character"',
        '-102,"Syntax error"',
        '-350,"Queue overflow"',
        '0,"No error"',
    ]
    queue.push(ScpiError(-113))
    queue.clear()
    assert len(queue) == 0


def test_an_error_is_one_line_of_ascii_of_at_most_255_characters_with_its_quotes_doubled() -> None:
    entry = ScpiError(-222, 'a "b"\n  µ; ' + 300 * "x").entry
    assert entry.startswith('-222,"Data out of range;a ""b"" \\xb5; xxx')
    assert len(entry.removeprefix('-222,"').removesuffix('"').replace('""', '"')) == 255
    assert entry.endswith('..."')


def test_status_registers_sum_up_events_and_service() -> None:
    status = StatusRegisters()
    for number, event in ((-113, 32), (-222, 16), (-310, 8)):
        status.note(number)
        assert status.take_events() == event
        assert status.take_events() == 0
    status.complete()
    status.note(-101)
    assert status.byte(errors=False, message=False) == 0
    status.events_enabled = 32
    assert status.byte(errors=True, message=True) == 4 + 16 + 32
    status.service_enabled = 32
    assert status.byte(errors=False, message=False) == 32 + 64
    assert status.take_events() == 33
    assert status.byte(errors=False, message=False) == 0


# ----------------------------------------------------------------------------------- the tree


def test_headers_in_every_spelling() -> None:
    assert set(spellings("SYSTem:ERRor[:NEXT]?")) == {
        f"{a}:{b}{c}?" for a in ("SYST", "SYSTEM") for b in ("ERR", "ERROR") for c in ("", ":NEXT")
    }
    assert spellings("*IDN?") == ["*IDN?"]
    for command in COMMANDS:
        for form in spellings(command.header):
            assert TREE.find(form, "")[0] is command


def test_paths_go_on_from_the_command_before_or_from_the_root() -> None:
    version, path = TREE.find("SYST:VERS?", "")
    assert (version.header, path) == ("SYSTem:VERSion?", "SYST:")
    assert TREE.find("ERR?", path)[0].header == "SYSTem:ERRor[:NEXT]?"
    assert TREE.find(":FETC?", path)[0].header == "FETCh?"
    assert TREE.find("FETC?", path)[0].header == "FETCh?"
    assert TREE.find("*IDN?", path)[1] == path
    # COND:READ? and READ? are two: nearer comes first, a colon says the other.
    assert TREE.find("READ?", "COND:")[0].header == "CONDuctance:READ?"
    assert TREE.find(":READ?", "COND:")[0].header == "READ?"
    for header in (":ERR?", "VERS", "SYST:VERSI?", "*XXX", "SYST"):
        with pytest.raises(ScpiError) as refused:
            TREE.find(header, "")
        assert refused.value.number == -113


def test_help_documents_every_command_in_ascii() -> None:
    text = help_text()
    assert text.isascii()
    for command in COMMANDS:
        written = re.escape(f"{command.header} {command.parameters}".strip())
        assert re.search(rf"^{written}(  .*)?$", text, re.MULTILINE)
        assert command.help in text
        assert command.help.startswith("L. ") == command.guarded
