"""A served die (`circuitsim serve`) as an instrument of QCoDeS: `pip install qcodes PyVISA-py`.

>>> die = ServedDie("die", "TCPIP::127.0.0.1::5025::SOCKET")
>>> die.inputs(np.zeros((1, die.inputs_each())))
>>> die.relax("FREE")
>>> die.readings()
"""

import json
from typing import Any

import numpy as np
from qcodes.instrument import VisaInstrument


class ServedDie(VisaInstrument):
    """One die behind its converters: set inputs, go through a phase, read."""

    default_terminator = "\n"

    def __init__(self, name: str, address: str, **options: Any) -> None:
        super().__init__(name, address, visalib="@py", **options)
        about = json.loads(bytes(self._block("SYST:CAP?", "B")))
        self.names = about["readings"]
        self.add_parameter("inputs_each", get_cmd=lambda: about["inputs"])
        self.add_parameter("inputs", unit="V", get_cmd=self._get_inputs, set_cmd=self._set_inputs)
        self.add_parameter("readings", unit="V", get_cmd=self._readings)
        self.add_parameter("average", get_cmd="SENS:AVER?", set_cmd="SENS:AVER {}", get_parser=int)
        self.add_parameter("beta", get_cmd="NUDG:BETA?", set_cmd="NUDG:BETA {!r}", get_parser=float)
        self.add_parameter("presentations", get_cmd="STAT:PRES?", get_parser=int)
        self.add_parameter("error", get_cmd="SYST:ERR?")

    def relax(self, phase: str = "FREE") -> None:
        """Go through a phase with the inputs that are set, and wait for it."""
        self.ask(f"INIT {phase};*OPC?")

    def _set_inputs(self, volts: np.ndarray) -> None:
        self.visa_handle.write_binary_values("INP:VOLT ", volts.ravel(), datatype="d")

    def _get_inputs(self) -> np.ndarray:
        return self._block("INP:VOLT?").reshape(-1, self.inputs_each())

    def _readings(self) -> np.ndarray:
        return self._block("FETC?").reshape(-1, len(self.names))

    def _block(self, query: str, datatype: Any = "d") -> np.ndarray:
        return self.visa_handle.query_binary_values(query, datatype=datatype, container=np.array)
