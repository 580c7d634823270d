"""Two ways to run the command line, and a folder of small files for it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import DIGITS, DIVIDER, EXPERIMENT, SMALL, Command, Outcome, program

from circuitsim.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with small.yaml, digits16.yaml, quick.yaml and divider.yaml."""
    monkeypatch.chdir(tmp_path)
    for name, document in (("small", SMALL), ("digits16", DIGITS), ("quick", EXPERIMENT)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (tmp_path / "divider.yaml").write_text(DIVIDER)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process: fast, with warnings as errors."""

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["circuitsim", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def installed() -> Callable[..., Outcome]:
    """Run the installed command in its own process; options go to `subprocess.run`."""
    return program


@pytest.fixture
def changed(folder: Path) -> Callable[..., Path]:
    """Write a copy of a YAML file with some keys changed: ``changed("small", {"inputs.x.size": 0})``."""

    def write(name: str, changes: Mapping[str, Any]) -> Path:
        document = copy.deepcopy({"small": SMALL, "digits16": DIGITS, "quick": EXPERIMENT}[name])
        for place, value in changes.items():
            *path, last = place.split(".")
            inner: Any = document
            for part in path:
                inner = inner[int(part)] if isinstance(inner, list) else inner[part]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        path_written = folder / "changed.yaml"
        path_written.write_text(yaml.safe_dump(document, sort_keys=False))
        return path_written

    return write
