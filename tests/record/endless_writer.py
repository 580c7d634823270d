"""Write epochs until killed: ``endless_writer.py PATH PAUSE_S``. Every number of epoch k is k."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from circuitsim.record import ArmLayout, RunWriter

ARM = "corrected-centred"
STATE = {"large": ((80_000,), "float64"), "adam/m": ((33, 7), "float32"), "step": ((), "int64")}


def create(path: Path) -> RunWriter:
    """Create the record that ``main`` goes on writing."""
    layout = ArmLayout(name=ARM, epochs=1_000_000, metrics=("cost", "cosine/hidden"), state=STATE)
    return RunWriter.create(path, header={"name": "endless"}, arms=[layout])


def write(writer: RunWriter, epoch: int) -> None:
    """Write epoch ``epoch``, filled with its number."""
    state = {name: np.full(shape, epoch, dtype) for name, (shape, dtype) in STATE.items()}
    writer.write_epoch(ARM, epoch, {"cost": epoch, "cosine/hidden": epoch}, state)


def main() -> None:
    path, pause = Path(sys.argv[1]), float(sys.argv[2])
    with RunWriter.resume(path) if path.exists() else create(path) as writer:
        print("ready", flush=True)
        epoch = writer.epochs_done[ARM]
        while True:
            write(writer, epoch)
            epoch += 1
            time.sleep(pause)


if __name__ == "__main__":
    main()
