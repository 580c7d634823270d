"""The example drivers for QCoDeS and PyMeasure, on a served die.

Each imports its package, as whoever copies it will. Where that is not installed (they bring pandas, Qt,
Jupyter), the driver runs on a stand-in for the few classes that it uses; where it is, on both.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pyvisa
import yaml
from served import TINY, Served, serving

from circuitsim.compiler import compile_network
from circuitsim.devices import merged_cards
from circuitsim.instrument.simulated import simulated_substrate
from circuitsim.learning import Cost
from circuitsim.netlist.tables import FloatArray
from circuitsim.network import parse_network

DRIVERS = Path(__file__).resolve().parents[2] / "runs" / "drivers"
INPUTS = np.array([[0.05, -0.02, 0.1], [0.0, 0.03, -0.1]])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("drivers")
    (folder / "tiny.yaml").write_text(TINY)
    with serving(folder / "tiny.yaml", errors=folder / "errors") as found:
        yield found


@pytest.fixture(scope="module")
def wanted() -> FloatArray:
    """What the same die reads in this process."""
    spec = parse_network(yaml.safe_load(TINY))
    die = simulated_substrate(compile_network(spec, seed=0), Cost.of(spec), merged_cards([]), seed=0)
    return die.relax(INPUTS, "free")


def opened(address: str, library: str, **options: Any) -> Any:
    return pyvisa.ResourceManager(library).open_resource(address, **options)


class VisaInstrument:
    """As `qcodes.instrument.VisaInstrument`: parameters are called to get, and called with a value to set."""

    default_terminator: str | None = None

    def __init__(self, name: str, address: str, *, visalib: str) -> None:
        self.name = name
        self.visa_handle = opened(address, visalib)
        self.visa_handle.read_termination = self.visa_handle.write_termination = self.default_terminator

    def add_parameter(
        self, name: str, *, get_cmd: Any, set_cmd: Any = None, get_parser: Any = str, unit: str = ""
    ) -> None:
        def parameter(*value: Any) -> Any:
            if value:
                return set_cmd(*value) if callable(set_cmd) else self.write(set_cmd.format(*value))
            return get_cmd() if callable(get_cmd) else get_parser(self.ask(get_cmd))

        parameter.unit = unit  # type: ignore[attr-defined]
        setattr(self, name, parameter)

    def get_idn(self) -> dict[str, str]:
        words = ("vendor", "model", "serial", "firmware")
        return dict(zip(words, self.ask("*IDN?").split(",", 3), strict=True))

    def ask(self, command: str) -> str:
        return str(self.visa_handle.query(command))

    def write(self, command: str) -> None:
        self.visa_handle.write(command)

    def close(self) -> None:
        self.visa_handle.close()


class Instrument:
    """As `pymeasure.instruments.Instrument`: properties that send, or ask and split at commas."""

    def __init__(self, adapter: str, name: str, *, visa_library: str, **options: Any) -> None:
        self.name = name
        self.adapter = SimpleNamespace(connection=opened(adapter, visa_library, **options))
        self.adapter.close = self.adapter.connection.close

    @staticmethod
    def measurement(get_command: str, docs: str, cast: Callable[[str], Any] = float) -> property:
        return Instrument.control(get_command, "", docs, cast)

    @staticmethod
    def control(
        get_command: str, set_command: str, docs: str, cast: Callable[[str], Any] = float
    ) -> property:
        def get(self: Instrument) -> Any:
            values = []
            for word in self.ask(get_command).split(","):
                try:
                    values.append(cast(word))
                except ValueError:
                    values.append(word)
            return values if len(values) > 1 else values[0]

        def put(self: Instrument, value: Any) -> None:
            self.adapter.connection.write(set_command % value)

        return property(get, put if set_command else None, doc=docs)

    def ask(self, command: str) -> str:
        return str(self.adapter.connection.query(command))

    def write_binary_values(self, command: str, values: Any, *, datatype: Any, termination: str) -> None:
        self.adapter.connection.write_binary_values(command, values, datatype, termination=termination)


class SCPIMixin:
    """As `pymeasure.instruments.SCPIMixin`."""

    @property
    def id(self) -> str:
        return str(self.ask("*IDN?"))  # type: ignore[attr-defined]

    def check_errors(self) -> list[Any]:
        found = []
        while int((error := self.next_error)[0]):
            found.append(error)
        return found

    next_error = Instrument.measurement("SYST:ERR?", "Get the oldest error.")


STAND_INS = {
    "qcodes": {"qcodes.instrument": {"VisaInstrument": VisaInstrument}},
    "pymeasure": {"pymeasure.instruments": {"Instrument": Instrument, "SCPIMixin": SCPIMixin}},
}


def kinds(package: str) -> list[str]:
    return ["stand-in"] if importlib.util.find_spec(package) is None else ["stand-in", "installed"]


def driver(package: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module of a driver, on a stand-in or on what is installed."""
    if kind == "stand-in":
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        for name, contents in STAND_INS[package].items():
            module = ModuleType(name)
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, name, module)
    name = f"{package}_style"
    monkeypatch.syspath_prepend(str(DRIVERS))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize("kind", kinds("qcodes"))
def test_the_qcodes_driver(
    kind: str, served: Served, wanted: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    die = driver("qcodes", kind, monkeypatch).ServedDie("die", served.resource)
    try:
        found = die.get_idn()
        assert (found["vendor"], found["model"]) == ("circuitsim", "tiny")
        assert die.inputs_each() == 3
        assert die.inputs.unit == die.readings.unit == "V"
        die.inputs(INPUTS)
        # Steps of 16 bits over -0.1 ... 0.1 V.
        np.testing.assert_allclose(die.inputs(), INPUTS, atol=0.2 / 65535)
        before = die.presentations()
        die.relax("FREE")
        assert die.presentations() == before + 1
        np.testing.assert_array_equal(die.readings(), wanted)
        die.average(16)
        assert die.average() == 16
        die.beta(0.3)
        assert die.beta() == 0.3
        assert die.error() == '0,"No error"'
        die.average(0)
        assert die.error().startswith('-222,"Data out of range')
        assert die.error() == '0,"No error"'
    finally:
        die.close()


@pytest.mark.parametrize("kind", kinds("pymeasure"))
def test_the_pymeasure_driver(
    kind: str, served: Served, wanted: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    die = driver("pymeasure", kind, monkeypatch).ServedDie(served.resource)
    try:
        assert die.id.startswith("circuitsim,tiny,")
        die.inputs = INPUTS
        np.testing.assert_allclose(die.inputs, INPUTS, atol=0.2 / 65535)
        before = die.presentations
        die.relax("FREE")
        assert die.presentations == before + 1
        assert tuple(die.shape) == wanted.shape
        np.testing.assert_array_equal(die.readings, wanted)
        die.average = 16
        assert die.average == 16
        die.beta = 0.3
        assert die.beta == 0.3
        assert die.check_errors() == []
        die.beta = 0
        (error,) = die.check_errors()
        assert error[0] == -222
        assert "Data out of range" in error[1]
        assert die.check_errors() == []
    finally:
        die.adapter.close()
