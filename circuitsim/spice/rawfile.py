"""Binary raw files, as ngspice writes them for an operating point."""

from __future__ import annotations

import re

import numpy as np

from circuitsim.errors import SimulatorError
from circuitsim.netlist.tables import FloatArray

__all__ = ["read_raw"]


def read_raw(content: bytes, *, file: object = None) -> dict[str, FloatArray]:
    """Return the vectors of a raw file's first plot by name, each of shape (points,).

    A header of text lines, ``Binary:``, then float64 values point by point (ngspice manual, section
    of the ``write`` command).

    Raises:
        SimulatorError: empty, cut short, complex, or not a binary raw file.
    """
    if not content.strip():
        raise SimulatorError("the raw file is empty: the simulation did not finish", file=file)
    header, mark, data = content.partition(b"Binary:\n")
    if not mark:
        raise SimulatorError("is not a binary raw file", file=file)
    text = header.decode("utf-8", "replace")
    fields = dict(re.findall(r"^(Flags|No\. Variables|No\. Points):\s*(\S+)", text, flags=re.MULTILINE))
    # Only after this line: a title may look like a variable.
    _, _, listing = text.partition("\nVariables:")
    names = [match[1] for match in re.finditer(r"^\s*\d+\t(\S+)\t\S+", listing, flags=re.MULTILINE)]
    try:
        variables, points = int(fields["No. Variables"]), int(fields["No. Points"])
    except (KeyError, ValueError):
        raise SimulatorError("the raw file's header names no variables and points", file=file) from None
    if fields.get("Flags") != "real" or len(names) != variables:
        raise SimulatorError("holds no real vectors", file=file, value=fields.get("Flags"))
    if points < 1 or len(data) < 8 * variables * points:
        raise SimulatorError("the raw file is cut short: the simulation did not finish", file=file)
    values = np.frombuffer(data, dtype=np.float64, count=variables * points).reshape(points, variables)
    return {name: values[:, k].copy() for k, name in enumerate(names)}
