"""Addresses of substrates: what stands behind the word that an experiment gives."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

from circuitsim.chip.substrate import Capabilities, Substrate
from circuitsim.devices import DeviceCard
from circuitsim.errors import CircuitsimError, SpecError
from circuitsim.instrument.simulated import simulated_substrate
from circuitsim.learning import Cost
from circuitsim.learning.readout import ReadoutSpec
from circuitsim.learning.writing import ProgrammingSpec, UpdateSpec
from circuitsim.netlist import Netlist
from circuitsim.solver import SolverSettings

__all__ = ["KINDS", "check_address", "open_substrate"]

KINDS = {
    "simulated": "simulated",
    "visa": "visa:RESOURCE, e.g. visa:TCPIP::127.0.0.1::5025::SOCKET",
    "mock": "mock:FILE, a calibration",
    "python": "python:MODULE:FUNCTION, which is called with the netlist and the cost",
}

_PARTS = ("capabilities", "program", "relax", "update", "calibrate", "close")
"""Of a `Substrate`."""


def check_address(address: str) -> tuple[str, str]:
    """Return the kind of an address, and what follows it.

    Raises:
        SpecError: no such kind, or one without what it needs.
    """
    kind, _, rest = address.partition(":")
    known = kind in KINDS and bool(rest) != (kind == "simulated")
    if not known or (kind == "python" and not all(rest.rpartition(":")[::2])):
        raise SpecError(
            "is no substrate", field="substrate", value=address, remedy=f"Use {'; '.join(KINDS.values())}."
        )
    return kind, rest


def open_substrate(
    address: str,
    netlist: Netlist,
    cost: Cost,
    card: DeviceCard,
    *,
    die: int,
    folder: Path,
    timeout: float = 10.0,
    readout: ReadoutSpec | None = None,
    programming: ProgrammingSpec | None = None,
    update: UpdateSpec | None = None,
    settings: SolverSettings | None = None,
) -> Substrate:
    """Open what an address names.

    A simulated die is that of the card and the seed ``die``; everything else is what it is, and the card
    describes it no further. Files are relative to ``folder``.

    Raises:
        SpecError: the address is wrong.
        InstrumentError: nothing answers there, or something else does.
    """
    kind, rest = check_address(address)
    if kind == "visa":
        from circuitsim.instrument.client import VisaSubstrate

        return VisaSubstrate(rest, timeout=timeout)
    if kind == "mock":
        from circuitsim.instrument.calibration.calibration import read_calibration
        from circuitsim.instrument.calibration.mock import mock_substrate

        return mock_substrate(read_calibration(folder / rest), netlist, cost, seed=die, settings=settings)
    if kind == "python":
        return _made(rest, address, netlist, cost)
    return simulated_substrate(
        netlist,
        cost,
        card,
        seed=die,
        readout=readout,
        programming=programming,
        update=update,
        settings=settings,
    )


def _made(rest: str, address: str, netlist: Netlist, cost: Cost) -> Substrate:
    """Return what a function of the user's makes; what goes wrong in it is one line, with its place."""
    module, _, name = rest.rpartition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"cannot be imported: {error}",
            field="substrate",
            value=address,
            remedy="Put its folder on PYTHONPATH.",
        ) from error
    except Exception as error:
        raise _failed("cannot be imported", error, address) from error
    try:
        found = function(netlist, cost)
    except CircuitsimError:
        raise
    except Exception as error:
        raise _failed("fails", error, address) from error
    lacks = [part for part in _PARTS if not hasattr(found, part)]
    if lacks or not isinstance(found.capabilities, Capabilities):
        what = f"it lacks {', '.join(lacks)}" if lacks else "its capabilities are none"
        raise SpecError(
            f"makes a {type(found).__name__}, which is no Substrate: {what}",
            field="substrate",
            value=address,
            remedy="circuitsim.Substrate says what one has.",
        )
    substrate: Substrate = found
    return substrate


def _failed(what: str, error: Exception, address: str) -> SpecError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    own = last.filename == __file__ or last.filename.startswith("<")
    place = "" if own else f" ({Path(last.filename).name}, line {last.lineno})"
    return SpecError(
        f"{what}: {type(error).__name__}: {error}{place}",
        field="substrate",
        value=address,
        remedy="It is called with the netlist and the cost, and returns a Substrate.",
    )
