"""The process in which PySpice's shared ngspice runs: one deck, then it ends.

``python -m circuitsim.spice.pyspice_child FOLDER`` reads ``deck.cir`` there and writes ``answer.json``. The
library leaks between runs and takes its process with it when it crashes, so it gets a process of its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    # Debian's run-time package has no libngspice.so, only the name with its version.
    os.environ.setdefault("NGSPICE_LIBRARY_PATH", "libngspice.so.0")
    logging.disable(logging.CRITICAL)
    # PySpice 1.5 offers a vector's numbers by `_data` alone.
    from PySpice.Spice.NgSpice.Shared import NgSpiceShared, ffi, ffi_string_utf8

    log: list[str] = []

    class Shared(NgSpiceShared):
        @staticmethod
        def _send_char(message: Any, ngspice_id: int, user_data: Any) -> int:
            """Keep what ngspice says. PySpice takes every line on stderr for an error, notes included."""
            prefix, _, content = ffi_string_utf8(message).partition(" ")
            log.append(content)
            shared = ffi.from_handle(user_data)
            (shared._stderr if prefix == "stderr" else shared._stdout).append(content)
            return 0

    shared = Shared.new_instance()
    shared.load_circuit((folder / "deck.cir").read_text(encoding="utf-8"))
    shared.run()
    # A deck that cannot be parsed leaves the plot of physical constants as the last one.
    if not shared.last_plot.startswith("op"):
        raise SystemExit(
            "no operating point; ngspice said: " + "; ".join(line for line in log[-8:] if line.strip())
        )
    plot = shared.plot(None, shared.last_plot)
    values = {name: float(vector._data[0]) for name, vector in plot.items()}
    answer = {"values": values, "log": log, "version": shared.ngspice_version}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # The library may crash in its own clean-up; the answer is written.
    os._exit(0)
