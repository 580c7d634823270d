"""Data sets: inputs in units of the circuit's gain, class labels or wanted outputs, and a fixed split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import SpecError
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream

__all__ = [
    "DATA_SETS",
    "DataSet",
    "load_data",
    "load_digits",
    "load_product",
    "load_xor",
    "random_split",
    "split_data",
    "stratified_split",
]

DATA_SETS = ("digits", "xor", "product")
"""The sets that `load_data` knows by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Samples to learn from and to test on.

    Inputs (n, n_in) are dimensionless; the circuit's encoding makes them volts. Labels are class numbers
    (n,) from 0 to ``classes - 1``, or, where ``classes`` is None, wanted outputs (n, K).
    """

    name: str
    train_inputs: FloatArray
    train_labels: IntArray | FloatArray
    test_inputs: FloatArray
    test_labels: IntArray | FloatArray
    classes: int | None
    image_shape: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()
    """What the classes are called where the data come from; empty for 0, 1, 2 ..."""

    @property
    def outputs(self) -> int:
        """Number of outputs that the labels ask for."""
        return self.classes if self.classes is not None else self.train_labels.shape[1]

    @property
    def held_out(self) -> bool:
        """Whether the test samples are others than the training samples."""
        return self.test_inputs is not self.train_inputs

    def scaled(self, gain: float) -> DataSet:
        """Return wanted outputs times ``gain``; class labels stay as they are."""
        if self.classes is not None or gain == 1:
            return self
        train, test = (np.asarray(gain * labels) for labels in (self.train_labels, self.test_labels))
        return replace(self, train_labels=train, test_labels=test)


def load_data(
    name: str, *, test_fraction: float = 0.2, split_seed: int = 0, samples: int | None = None
) -> DataSet:
    """Return a data set by name; ``samples`` is for sets that are drawn.

    Raises:
        SpecError: an unknown name.
    """
    if name == "digits":
        return load_digits(test_fraction=test_fraction, split_seed=split_seed)
    if name == "xor":
        return load_xor()
    if name == "product":
        return load_product(samples or 400, test_fraction=test_fraction, split_seed=split_seed)
    known = ", ".join(DATA_SETS)
    raise SpecError("is not a data set", field="data.set", value=name, remedy=f"Known: {known}.")


def load_digits(*, test_fraction: float = 0.2, split_seed: int = 0) -> DataSet:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, scaled to -1 ... 1.

    The split is stratified by class and depends on ``split_seed`` alone.
    """
    from sklearn.datasets import load_digits as bundled

    pixels, labels = bundled(return_X_y=True)
    inputs = np.asarray(pixels, dtype=np.float64) / 8.0 - 1.0
    labels = np.asarray(labels, dtype=np.int64)
    data = split_data(
        "digits", inputs, labels, classes=10, test_fraction=test_fraction, split_seed=split_seed
    )
    return replace(data, image_shape=(8, 8))


def load_xor() -> DataSet:
    """Return the four corners of -1 ... 1 squared; class 1 where the two signs differ.

    Nothing can be held out of four samples: they are the training set and the test set.
    """
    inputs = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    labels = np.array([0, 1, 1, 0], dtype=np.int64)
    return split_data("xor", inputs, labels, classes=2, test_fraction=0.0)


def load_product(samples: int = 400, *, test_fraction: float = 0.2, split_seed: int = 0) -> DataSet:
    """Return pairs drawn evenly from -1 ... 1 squared, with their product as the wanted output."""
    inputs = stream(split_seed, "product").uniform(-1, 1, (samples, 2))
    wanted = inputs.prod(axis=1, keepdims=True)
    return split_data(
        "product", inputs, wanted, classes=None, test_fraction=test_fraction, split_seed=split_seed
    )


def split_data(
    name: str,
    inputs: FloatArray,
    labels: IntArray | FloatArray,
    *,
    classes: int | None,
    test_fraction: float,
    split_seed: int = 0,
) -> DataSet:
    """Hold a fraction of the samples out: of every class alike, or of all where there are no classes.

    With ``test_fraction`` 0 the training samples are the test samples too.
    """
    if test_fraction == 0:
        train, held = (inputs, labels), (inputs, labels)
    else:
        if classes is None:
            test = random_split(len(labels), test_fraction, split_seed)
        else:
            test = stratified_split(labels.astype(np.int64), test_fraction, split_seed)
        train, held = (inputs[~test], labels[~test]), (inputs[test], labels[test])
    return DataSet(
        name=name,
        train_inputs=train[0],
        train_labels=train[1],
        test_inputs=held[0],
        test_labels=held[1],
        classes=classes,
    )


def stratified_split(labels: IntArray, test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples (n,) are held out: the same fraction of every class, to the nearest one."""
    test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = stream(seed, "split", int(label)).permutation(len(members))
        test[members[order[: round(test_fraction * len(members))]]] = True
    return test


def random_split(count: int, test_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which of ``count`` samples are held out: a fraction of them, to the nearest one."""
    test = np.zeros(count, dtype=np.bool_)
    test[stream(seed, "split").permutation(count)[: round(test_fraction * count)]] = True
    return test
