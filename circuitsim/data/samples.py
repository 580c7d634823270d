"""What a data set is: inputs in units of the circuit's gain, class labels or wanted outputs, a split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.seeds import stream

__all__ = ["DataSet", "random_split", "split_data", "stratified_split"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Samples to learn from and to test on.

    Inputs (n, n_in) are dimensionless; the circuit's encoding makes them volts. Large sets hold them as
    float32, and every batch becomes what its solver works with. Labels are class numbers
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
    digest: str = ""
    """SHA-256 of samples that come from files that others keep; empty for any other."""

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
