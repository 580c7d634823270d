"""The small sets: XOR and the product of two numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_sets import write_images

from circuitsim.data import DATA_SETS, load_data
from circuitsim.errors import SpecError


def test_xor_is_its_four_corners_for_training_and_test() -> None:
    data = load_data("xor")
    for row, label in zip(data.train_inputs, data.train_labels, strict=True):
        assert label == (row[0] != row[1])
    assert sorted(map(tuple, data.train_inputs.tolist())) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    assert not data.held_out
    assert data.test_inputs is data.train_inputs
    assert (data.classes, data.outputs) == (2, 2)


def test_products_of_what_goes_in() -> None:
    data = load_data("product", samples=500, test_fraction=0.4)
    assert (data.classes, data.outputs, data.held_out) == (None, 1, True)
    assert (len(data.train_labels), len(data.test_labels)) == (300, 200)
    for inputs, wanted in (
        (data.train_inputs, data.train_labels),
        (data.test_inputs, data.test_labels),
    ):
        np.testing.assert_array_equal(wanted[:, 0], inputs[:, 0] * inputs[:, 1])
        assert np.abs(inputs).max() <= 1
    # Even over the square: mean 0 and variance 1/3, within four standard errors.
    assert np.abs(data.train_inputs.mean(axis=0)).max() < 4 * np.sqrt(1 / 3 / 300)
    together = np.concatenate([data.train_inputs, data.test_inputs])
    assert len(np.unique(together, axis=0)) == 500
    again, other = load_data("product", samples=500), load_data("product", samples=500, split_seed=1)
    assert set(map(tuple, again.test_inputs)) <= set(map(tuple, together))
    assert not set(map(tuple, other.test_inputs)) & set(map(tuple, together))


def test_wanted_outputs_are_scaled_and_classes_are_not() -> None:
    product, xor = load_data("product"), load_data("xor")
    scaled = product.scaled(0.2)
    np.testing.assert_allclose(scaled.train_labels, 0.2 * product.train_labels)
    np.testing.assert_allclose(scaled.test_labels, 0.2 * product.test_labels)
    np.testing.assert_array_equal(scaled.test_inputs, product.test_inputs)
    assert xor.scaled(0.2) is xor


def test_all_sets_are_named_where_one_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError) as error:
        load_data("letters")
    known = "digits, xor, product, mnist, fashion_mnist"
    assert str(error.value) == f"data.set: is not a data set (got 'letters'). Known: {known}."
    write_images(tmp_path)
    monkeypatch.setenv("CIRCUITSIM_DATA", str(tmp_path))
    for name in DATA_SETS:
        assert load_data(name).name == name
