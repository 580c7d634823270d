"""Round trips to a served die through PyVISA-py: pings, 64 doubles there and back, phases.

    python tests/benchmarks/instrument.py [--network netlists/digits.yaml] [--rounds 3000]

Starts `circuitsim serve` on a free port of this machine. Times are medians and 99th percentiles in ms.
Phases go through `VisaSubstrate`, and are compared with the same die in this process: what is left is the
socket, PyVISA, client and server.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyvisa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "instrument"))

from served import serving

from circuitsim.compiler import compile_network
from circuitsim.devices import ideal_card
from circuitsim.instrument.client import VisaSubstrate
from circuitsim.instrument.simulated import simulated_substrate
from circuitsim.learning import Cost
from circuitsim.network import load_network
from circuitsim.seeds import stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", type=Path, default=Path("netlists/digits.yaml"))
    parser.add_argument("--rounds", type=int, default=3000)
    arguments = parser.parse_args()
    network = load_network(arguments.network)
    here = simulated_substrate(
        compile_network(network, seed=7), Cost.of(network), ideal_card(), seed=7, bits=16
    )
    dac = here.capabilities.dac
    width = here.capabilities.inputs
    draw = stream(0, "benchmark", "inputs")

    def volts(batch: int) -> np.ndarray:
        return dac.rounded(draw.uniform(dac.low, dac.high, (batch, width)))

    system = f"{platform.system()}, Python {platform.python_version()}"
    print(f"{_processor()}, {os.cpu_count()} processors, {system},")
    print(f"PyVISA {pyvisa.__version__} with @py; load {os.getloadavg()[0]:.1f}; {arguments.network}\n")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(arguments.network, "--seed", 7, errors=Path(folder, "errors")) as served,
    ):
        manager = pyvisa.ResourceManager("@py")
        instrument = manager.open_resource(
            served.resource, read_termination="\n", write_termination="\n", timeout=20_000
        )
        row = volts(1)

        def exchange() -> None:
            instrument.write_binary_values("INP:VOLT ", row[0], datatype="d")
            back = instrument.query_binary_values("INP:VOLT?", datatype="d", container=np.array)
            assert np.array_equal(back, row[0])

        _report("*OPC?", _timed(lambda: instrument.query("*OPC?"), arguments.rounds))
        _report(f"write and query of {width} doubles", _timed(exchange, arguments.rounds))
        instrument.close()
        manager.close()
        there = VisaSubstrate(served.resource, timeout=20.0)
        for batch in (1, 64):
            inputs = volts(batch)
            assert np.array_equal(there.relax(inputs, "free"), here.relax(inputs, "free"))
            rounds = max(10, arguments.rounds // (4 * batch))
            # In turn, so that both meet the same load.
            served_times, own_times = [], []
            for _ in range(10):
                served_times.append(_timed(lambda inputs=inputs: there.relax(inputs, "free"), rounds))
                own_times.append(_timed(lambda inputs=inputs: here.relax(inputs, "free"), rounds))
            over, own = np.concatenate(served_times), np.concatenate(own_times)
            _report(f"free phase, {batch} samples, served", over)
            _report(f"free phase, {batch} samples, in process", own)
            print(f"{'':40}overhead {np.median(over) - np.median(own):.3f} ms")
        there.close()


def _timed(function: Callable[[], object], rounds: int) -> np.ndarray:
    """Return seconds in ms of every round."""
    for _ in range(min(20, rounds)):
        function()
    times = np.empty(rounds)
    for k in range(rounds):
        begin = time.perf_counter()
        function()
        times[k] = time.perf_counter() - begin
    return 1e3 * times


def _report(what: str, times: np.ndarray) -> None:
    median, late = np.percentile(times, [50, 99])
    print(f"{what:40}{median:8.3f} ms median{late:8.3f} ms p99   ({len(times)})")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    main()
