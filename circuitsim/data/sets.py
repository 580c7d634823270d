"""Data sets: inputs scaled to volts per unit of gain, targets as labels, and a fixed split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import SpecError
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream

__all__ = ["DataSet", "load_data", "load_digits", "stratified_split"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Classified samples. Inputs (n, n_in) are dimensionless; the network's encoding makes them volts."""

    name: str
    train_inputs: FloatArray
    train_labels: IntArray
    test_inputs: FloatArray
    test_labels: IntArray
    classes: int
    image_shape: tuple[int, int] | None = None


def load_data(name: str, *, test_fraction: float = 0.2, split_seed: int = 0) -> DataSet:
    """Return a data set by name.

    Raises:
        SpecError: an unknown name.
    """
    if name == "digits":
        return load_digits(test_fraction=test_fraction, split_seed=split_seed)
    raise SpecError("is not a data set", field="data.set", value=name, remedy="Known: digits.")


def load_digits(*, test_fraction: float = 0.2, split_seed: int = 0) -> DataSet:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, scaled to -1 ... 1.

    The split is stratified by class and depends on ``split_seed`` alone.
    """
    from sklearn.datasets import load_digits as bundled

    pixels, labels = bundled(return_X_y=True)
    inputs = np.asarray(pixels, dtype=np.float64) / 8.0 - 1.0
    labels = np.asarray(labels, dtype=np.int64)
    test = stratified_split(labels, test_fraction, split_seed)
    return DataSet(
        name="digits",
        train_inputs=inputs[~test],
        train_labels=labels[~test],
        test_inputs=inputs[test],
        test_labels=labels[test],
        classes=10,
        image_shape=(8, 8),
    )


def stratified_split(labels: IntArray, test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples (n,) are held out: the same fraction of every class, to the nearest one."""
    test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = stream(seed, "split", int(label)).permutation(len(members))
        test[members[order[: round(test_fraction * len(members))]]] = True
    return test
