"""A served die (`circuitsim serve`) as an instrument of PyMeasure: `pip install pymeasure PyVISA-py`.

>>> die = ServedDie("TCPIP::127.0.0.1::5025::SOCKET")
>>> die.inputs = np.zeros((1, 64))
>>> die.relax("FREE")
>>> die.readings
"""

from typing import Any

import numpy as np
from pymeasure.instruments import Instrument, SCPIMixin


class ServedDie(SCPIMixin, Instrument):
    """One die behind its converters: set inputs, go through a phase, read. Has `id` and `check_errors()`."""

    average = Instrument.control(
        "SENS:AVER?", "SENS:AVER %d", "Control how many readings are averaged.", cast=int
    )
    beta = Instrument.control("NUDG:BETA?", "NUDG:BETA %.17g", "Control the nudge, and hear of a wrong one.")
    presentations = Instrument.measurement("STAT:PRES?", "Get how many free phases there were.", cast=int)
    shape = Instrument.measurement("FETC:SHAP?", "Get the (B, R) of the readings.", cast=int)

    def __init__(self, adapter: str, name: str = "served die", **options: Any) -> None:
        ends = {"read_termination": "\n", "write_termination": "\n"}
        super().__init__(adapter, name, visa_library="@py", **ends, **options)

    @property
    def inputs(self) -> np.ndarray:
        """Control the inputs (B, n_in) V; they come back as the DACs' codes have them."""
        return self._block("INP:VOLT?").reshape(self._samples, -1)

    @inputs.setter
    def inputs(self, volts: np.ndarray) -> None:
        self._samples = len(volts)
        self.write_binary_values("INP:VOLT ", volts.ravel(), datatype="d", termination="\n")

    @property
    def readings(self) -> np.ndarray:
        """Get the readings (B, R) V of the last phase."""
        return self._block("FETC?").reshape(self.shape)

    def relax(self, phase: str = "FREE") -> None:
        """Go through a phase with the inputs that are set, and wait for it."""
        self.ask(f"INIT {phase};*OPC?")

    def _block(self, query: str) -> np.ndarray:
        return self.adapter.connection.query_binary_values(query, datatype="d", container=np.array)
