"""Help: quick, with an example and units, and true about the JSON keys."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command, Outcome

COMMANDS = (
    "compile",
    "solve",
    "tran",
    "gradcheck",
    "crosscheck",
    "train",
    "sweep",
    "fit",
    "calibrate",
    "show",
    "runs",
    "schema",
)
UNITS = {
    "compile": "(S)",
    "solve": "(W)",
    "gradcheck": "W/S",
    "crosscheck": "(V)",
    "train": "(%)",
    "sweep": "(%)",
    "fit": "(S)",
    "calibrate": "in V",
    "tran": "(V)",
    "show": "in %",
    "runs": "(%)",
    "schema": "SI units",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_units_and_json_keys(command: str, call: Command) -> None:
    shown = call(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    text = " ".join(shown.out.split())
    assert f"Example: circuitsim {command} " in text
    assert UNITS[command] in text
    assert "JSON" in text
    assert "--json" in text
    assert "[bold]" not in text


def test_help_lists_every_command_in_full_and_the_exit_codes(call: Command) -> None:
    shown = call("--help")
    assert (shown.code, shown.err) == (0, "")
    for command in (*COMMANDS, "serve", "devices"):
        assert re.search(rf"^  {command} +\S", shown.out, re.MULTILINE)
    assert "..." not in shown.out.partition("Commands:")[2]
    assert "3 did not converge" in shown.out


def test_examples_in_the_help_run(
    call: Command, tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netlists").symlink_to(repo_root / "netlists")
    monkeypatch.chdir(tmp_path)
    for command in ("compile", "solve", "schema"):
        text = " ".join(call(command, "--help").out.split())
        line = text.partition("Example: circuitsim ")[2].partition(" JSON")[0].partition(" The output")[0]
        ended = call(*shlex.split(line.partition(" > ")[0]))
        assert ended.code == 0, ended.err
        assert ended.out
    assert (tmp_path / "c.yaml").exists()


def test_help_imports_no_numerical_library() -> None:
    heavy = {"numpy", "numba", "pydantic", "h5py", "matplotlib", "sklearn", "yaml", "scipy"}
    code = (
        "import sys\n"
        "from circuitsim.cli.main import main\n"
        "sys.argv = ['circuitsim', '--help']\n"
        "try:\n    main()\n"
        f"finally:\n    print(sorted({heavy} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_answers_within_three_tenths_of_a_second(installed: Callable[..., Outcome]) -> None:
    # The best of several: other processes share the machine.
    best = float("inf")
    for _ in range(12):
        started = time.perf_counter()
        assert installed("--help").code == 0
        best = min(best, time.perf_counter() - started)
        if best < 0.3:
            return
    pytest.fail(f"the quickest of twelve took {best:.2f} s")


def test_version_is_the_package_s(call: Command) -> None:
    from circuitsim import __version__

    assert call("--version").out.strip() == __version__


def test_the_command_alone_shows_help(installed: Callable[..., Outcome]) -> None:
    shown = installed()
    assert "Commands:" in shown.out + shown.err
    assert shown.code == 2
