"""The data sets that are known by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from circuitsim.data.images import Pixels, load_fashion_mnist, load_mnist
from circuitsim.data.samples import DataSet, split_data
from circuitsim.errors import SpecError
from circuitsim.seeds import stream

__all__ = ["DATA_OPTIONS", "DATA_SETS", "load_data", "load_digits", "load_product", "load_xor"]

_SPLIT = ("test_fraction", "split_seed")
_IMAGES = ("pixels", "train_samples", "test_samples")

DATA_OPTIONS = {
    "digits": ("pixels", *_SPLIT),
    "xor": (),
    "product": ("samples", *_SPLIT),
    "mnist": _IMAGES,
    "fashion_mnist": _IMAGES,
}
"""The options of each set that `load_data` knows by name."""

DATA_SETS = tuple(DATA_OPTIONS)


def load_data(name: str, **options: Any) -> DataSet:
    """Return a data set by name, with options of its own; see `DATA_OPTIONS`.

    Raises:
        SpecError: an unknown name, an option of another set, or what the set's own function raises.
    """
    if name not in DATA_OPTIONS:
        known = ", ".join(DATA_SETS)
        raise SpecError("is not a data set", field="data.set", value=name, remedy=f"Known: {known}.")
    for key, value in options.items():
        if key not in DATA_OPTIONS[name]:
            known = ", ".join(DATA_OPTIONS[name]) or "none"
            rule, remedy = f"is no option of {name}", f"Its options: {known}."
            raise SpecError(rule, field=f"data.{key}", value=value, remedy=remedy)
    load = {
        "digits": load_digits,
        "xor": load_xor,
        "product": load_product,
        "mnist": load_mnist,
        "fashion_mnist": load_fashion_mnist,
    }[name]
    return load(**options)


def load_digits(*, pixels: Pixels = "signed", test_fraction: float = 0.2, split_seed: int = 0) -> DataSet:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, scaled to -1 ... 1 or 0 ... 1.

    The split is stratified by class and depends on ``split_seed`` alone.
    """
    from sklearn.datasets import load_digits as bundled

    images, labels = bundled(return_X_y=True)
    inputs = np.asarray(images, dtype=np.float64) / 8.0
    inputs = inputs - 1.0 if pixels == "signed" else inputs / 2.0
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
