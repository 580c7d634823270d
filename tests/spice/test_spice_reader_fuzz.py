"""The reader on decks that are wrong: a deck or one of our errors comes of each, soon, and nothing else.

``tests/benchmarks/fuzz_reader.py`` does the same for 100,000 decks.
"""

from __future__ import annotations

import random
import resource
import time

import pytest
from deck_mutations import NASTY, mutated
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reader_decks import DECKS

from circuitsim.errors import CircuitsimError, NetlistError
from circuitsim.spice.reader import parse_deck

WORDS = sorted({word for deck in DECKS.values() for word in deck.split()} | set(NASTY))


def outcome(text: str) -> str:
    """Read a deck; anything but our own errors goes through to the test."""
    try:
        deck = parse_deck(text)
    except CircuitsimError:
        return "refused"
    assert deck.netlist.n_nodes > 1
    return "read"


def test_mutated_decks() -> None:
    decks = list(DECKS.values())
    found = [outcome(mutated(random.Random(f"suite:{k}"), decks)) for k in range(1500)]
    # Not all of them may fail: a mutation that always breaks a deck tests one line.
    assert 0.05 < found.count("read") / len(found) < 0.5


@settings(max_examples=150)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), max_size=12).map("\n".join))
@example("t\nx1 a 0 s\n.subckt s p q\nr1 p q {m}\n.ends\n")
def test_words_in_any_order(text: str) -> None:
    outcome(text)


@settings(max_examples=150)
@given(st.text(max_size=200))
@example("\ud800")
@example("t\n.param a(={b)}\n")
def test_any_text(text: str) -> None:
    outcome(text)
    outcome(f"title\nv1 a 0 1\nr1 a 0 {text}\n")
    outcome(f"title\nv1 a 0 1\nr1 a 0 1\nb1 b 0 v={{{text}}}\nr2 b 0 1\n")


@pytest.mark.parametrize(
    "text",
    [
        "t\nr1 a 0 " + "(" * 100_000,
        "t\nv1 a 0 1\nr1 a 0 {" + "(" * 50_000 + "1" + ")" * 50_000 + "}\n",
        "t\nv1 a 0 1\nr1 a 0 {" + "{" * 50_000,
        "t\nv1 a 0 1\nr1 a 0 {" + "-" * 100_000 + "1}\n",
        "t\nv1 a 0 {" + "a" * 100_000 + "}\n",
        "t\n.param " + "a" * 200_000 + "\n",
        "t\n.param " + " ".join(f"p{k}={{p{k + 1}+p{k + 1}}}" for k in range(5000)) + "\nr1 a 0 {p0}\n",
        "t\n"
        + "".join(f".func f{k}(x) {{f{k + 1}(x)+f{k + 1}(x)}}\n" for k in range(60))
        + "r1 a 0 {f0(1)}\n",
        "t\n.func f(x) {f(x)}\nv1 a 0 {f(1)}\n",
        "t\n" + ".subckt s\n" * 20_000,
        "t\n"
        + "".join(f".subckt s{k} p\nx1 p s{k + 1}\nx2 p s{k + 1}\n.ends\n" for k in range(50))
        + ".subckt s50 p\nr1 p 0 1\n.ends\nv1 a 0 1\nx1 a s0\n",
        "t\nv1 a 0 1\nr1 a 0 1\n" + "+ 1\n" * 100_000,
        "t\nv1 a 0 pwl(" + "0 1 " * 50_000 + ")\nr1 a 0 1\n",
        "t\nv1 a 0 1\ne1 b 0 poly(20) " + "a 0 " * 20 + "1 " * 5_001 + "\nr1 b 0 1\n",
        "t\nv1 a 0 1\nb1 b 0 v=" + "v(a)+" * 100_000 + "1\nr1 b 0 1\n",
        "t\nv1 a 0 1\nb1 b 0 v=table(v(a)," + "1," * 100_000 + "1)\nr1 b 0 1\n",
        "t\nv1 a 0 pulse(0 1 0 1e-300 1e-300 1e-300 1e-299)\nr1 a 0 1\n.tran 1 1e300\n",
    ],
)
def test_what_grows_without_bound_is_refused_soon(text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    outcome(text)
    assert time.perf_counter() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_too_many_included_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for k in range(40):
        (folder / f"f{k}.inc").write_text(f".include f{k + 1}.inc\n" * 2)
    (folder / "f40.inc").write_text("r1 a 0 1\n")
    with pytest.raises(NetlistError, match="files are included"):
        parse_deck("t\n.include f0.inc\n", folder=folder)
