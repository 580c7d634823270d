"""The digits: scaling and a split that is fixed, stratified and complete."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits as bundled

from circuitsim.data import load_data, load_digits
from circuitsim.data.samples import stratified_split
from circuitsim.errors import SpecError


def rows(array: np.ndarray) -> np.ndarray:
    return array[np.lexsort(array.T)]


def test_every_sample_is_in_one_part() -> None:
    data = load_digits()
    pixels, labels = bundled(return_X_y=True)
    together = np.concatenate([data.train_inputs, data.test_inputs])
    marked = np.column_stack([together, np.concatenate([data.train_labels, data.test_labels])])
    np.testing.assert_array_equal(rows(marked), rows(np.column_stack([pixels / 8 - 1, labels])))


def test_shapes_and_scale() -> None:
    data = load_digits()
    assert (data.name, data.classes, data.image_shape) == ("digits", 10, (8, 8))
    assert len(data.train_labels) + len(data.test_labels) == 1797
    for inputs, labels in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)):
        assert inputs.shape == (len(labels), 64)
        assert inputs.dtype == np.float64
        assert labels.dtype == np.int64
        assert (inputs.min(), inputs.max()) == (-1.0, 1.0)


def test_a_fifth_of_every_class_is_held_out() -> None:
    data = load_digits(test_fraction=0.2)
    assert len(data.test_labels) / 1797 == pytest.approx(0.2, abs=0.002)
    for digit in range(10):
        held = np.sum(data.test_labels == digit)
        every = held + np.sum(data.train_labels == digit)
        assert held == round(0.2 * every)


def test_the_split_is_fixed_for_all_time() -> None:
    """A changed split would make old records unrepeatable: this digest must not change."""
    _, labels = bundled(return_X_y=True)
    split = stratified_split(labels.astype(np.int64), 0.2, 0)
    assert hashlib.sha256(np.packbits(split).tobytes()).hexdigest()[:16] == "6c06e07dd48561ed"


def test_the_split_depends_on_its_seed_alone() -> None:
    first, again, other = load_digits(), load_digits(split_seed=0), load_digits(split_seed=1)
    np.testing.assert_array_equal(first.test_inputs, again.test_inputs)
    assert not np.array_equal(first.test_inputs, other.test_inputs)
    np.testing.assert_array_equal(np.bincount(first.test_labels), np.bincount(other.test_labels))


def test_the_split_does_not_depend_on_the_global_generator() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = load_digits().test_inputs
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(load_digits().test_inputs, first)


def test_split_of_a_hand_made_set() -> None:
    labels = np.array([3] * 10 + [7] * 4 + [9])
    test = stratified_split(labels, 0.5, 0)
    assert [int(test[labels == label].sum()) for label in (3, 7, 9)] == [5, 2, 0]
    # The draws of one class do not depend on the others.
    np.testing.assert_array_equal(test[:10], stratified_split(labels[:10], 0.5, 0))


def test_data_sets_by_name() -> None:
    np.testing.assert_array_equal(
        load_data("digits", test_fraction=0.3, split_seed=2).test_inputs,
        load_digits(test_fraction=0.3, split_seed=2).test_inputs,
    )
    with pytest.raises(SpecError, match="is not a data set") as error:
        load_data("letters")
    assert (error.value.field, error.value.value) == ("data.set", "letters")
    assert "digits" in str(error.value)
