"""MNIST and Fashion-MNIST: what is read from a folder, and what is said about files that are wrong."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_sets import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, idx, write_images

from circuitsim.data import load_data, load_fashion_mnist, load_mnist
from circuitsim.data.downloads import sha256
from circuitsim.data.images import FASHION_MNIST, FILES, MNIST, Published
from circuitsim.errors import SpecError

REAL = os.environ.get("CIRCUITSIM_DATA")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that CIRCUITSIM_DATA names; empty."""
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv("CIRCUITSIM_DATA", str(folder))
    return folder


@pytest.mark.parametrize("within", ["mnist", "."])
def test_images_become_vectors_in_the_published_order(folder: Path, within: str) -> None:
    arrays = write_images(folder / within)
    data = load_mnist()
    assert (data.name, data.classes, data.image_shape, data.held_out) == ("mnist", 10, (28, 28), True)
    for inputs, labels, images, wanted in (
        (data.train_inputs, data.train_labels, arrays[TRAIN_IMAGES], arrays[TRAIN_LABELS]),
        (data.test_inputs, data.test_labels, arrays[TEST_IMAGES], arrays[TEST_LABELS]),
    ):
        assert (inputs.dtype, labels.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(labels, wanted)
        np.testing.assert_allclose(inputs, images.reshape(-1, 784) / 127.5 - 1, rtol=0, atol=1e-7)
        assert (inputs.min(), inputs.max()) == (-1, 1)


def test_pixels_from_zero_to_one(folder: Path) -> None:
    arrays = write_images(folder / "mnist")
    unit = load_mnist(pixels="unit").train_inputs
    np.testing.assert_allclose(unit, arrays[TRAIN_IMAGES].reshape(-1, 784) / 255, rtol=1e-7)
    assert (unit.min(), unit.max()) == (0, 1)
    digits = [load_data("digits", pixels=pixels).train_inputs for pixels in ("signed", "unit")]
    np.testing.assert_array_equal(digits[0], 2 * digits[1] - 1)


def test_limits_take_the_first_samples(folder: Path) -> None:
    write_images(folder / "mnist")
    whole, part = load_mnist(), load_mnist(train_samples=7, test_samples=1)
    assert (len(part.train_labels), len(part.test_labels)) == (7, 1)
    np.testing.assert_array_equal(part.train_inputs, whole.train_inputs[:7])
    np.testing.assert_array_equal(part.train_labels, whole.train_labels[:7])
    np.testing.assert_array_equal(part.test_inputs, whole.test_inputs[:1])
    assert part.digest == whole.digest
    for key, value in (("train_samples", 31), ("test_samples", 0)):
        with pytest.raises(SpecError) as error:
            load_data("mnist", **{key: value})
        size = 30 if key == "train_samples" else 10
        assert str(error.value) == (
            f"data.{key}: must be from 1 to the {size} samples of mnist (got {value})"
        )


def test_the_digest_tells_other_files(folder: Path) -> None:
    write_images(folder / "mnist")
    first = load_mnist().digest
    for name in FILES:
        path = folder / "mnist" / name
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 9))
    assert load_mnist().digest == first
    write_images(folder / "mnist", seed=5)
    assert load_mnist().digest != first


def test_fashion_has_its_own_folder_and_names(folder: Path) -> None:
    write_images(folder / "mnist")
    arrays = write_images(folder / "fashion-mnist", seed=9)
    data = load_fashion_mnist()
    np.testing.assert_allclose(
        data.test_inputs, arrays[TEST_IMAGES].reshape(-1, 784) / 127.5 - 1, rtol=0, atol=1e-7
    )
    assert len(data.class_names) == data.classes == 10
    assert (data.class_names[0], data.class_names[9]) == ("T-shirt/top", "Ankle boot")
    assert load_mnist().class_names == ()


def test_one_set_is_not_taken_for_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(folder)
    monkeypatch.setitem(MNIST.checksums, TEST_LABELS, sha256(folder / TEST_LABELS))  # type: ignore[arg-type]
    load_mnist()
    with pytest.raises(SpecError, match="is of mnist, not of fashion_mnist") as error:
        load_fashion_mnist()
    assert error.value.file == str(folder / TEST_LABELS)
    assert "subfolder fashion-mnist" in str(error.value)


def test_a_folder_that_is_not_there_or_not_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(folder / "mnist")
    (folder / "mnist" / TRAIN_LABELS).unlink()
    (folder / "mnist" / TEST_IMAGES).unlink()
    with pytest.raises(SpecError) as error:
        load_mnist()
    assert str(error.value) == (
        f"{folder}/mnist: lacks files of mnist: {TRAIN_LABELS}, {TEST_IMAGES}. CIRCUITSIM_DATA is the folder "
        f"that data sets are read from: put {', '.join(FILES)} into its subfolder mnist, "
        "or unset it to download them."
    )
    monkeypatch.setenv("CIRCUITSIM_DATA", str(folder / "gone"))
    with pytest.raises(SpecError, match=r"^CIRCUITSIM_DATA: is not a folder \(got '.*\)\. CIRCUIT"):
        load_mnist()


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress(change(gzip.decompress(data)))


def packed(array: np.ndarray) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress(idx(array))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TRAIN_IMAGES, truncated, "is damaged, or no gzip file"),
        (TRAIN_IMAGES, flipped, "is damaged, or no gzip file"),
        (TRAIN_LABELS, lambda data: b"", "is empty. Wanted: IDX bytes in 1 dimension, .gz, as published."),
        (TEST_IMAGES, gzip.decompress, "is damaged, or no gzip file"),
        (TEST_IMAGES, rewritten(lambda data: data[:3]), "is another kind of file .got '00 00 08'"),
        (TEST_IMAGES, rewritten(lambda data: data[:-1]), "it holds 10 x 28 x 28 bytes, and holds 7839"),
        (TEST_IMAGES, rewritten(lambda data: data[:4] + b"\xff" * 12 + data[16:]), "and holds 7840"),
        (TEST_LABELS, packed(np.zeros((10, 28, 28))), "is another kind of file .got '00 00 08 03'"),
        (TEST_IMAGES, packed(np.zeros((10, 8, 8))), r"images must have 28 x 28 pixels \(got \(8, 8\)\)"),
        (TRAIN_LABELS, packed(np.zeros(29)), "29 labels do not go with the 30 images of train-images"),
        (TRAIN_LABELS, packed(np.full(30, 10)), r"labels must be from 0 to 9 \(got 10\)"),
    ],
)
def test_files_that_are_wrong(
    folder: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    write_images(folder / "mnist")
    path = folder / "mnist" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SpecError, match=message) as error:
        load_mnist()
    assert error.value.file == str(path)


def test_options_of_other_sets_are_refused(folder: Path) -> None:
    write_images(folder / "mnist")
    with pytest.raises(SpecError) as error:
        load_data("mnist", test_fraction=0.1)
    assert str(error.value) == (
        "data.test_fraction: is no option of mnist (got 0.1). "
        "Its options: pixels, train_samples, test_samples."
    )
    with pytest.raises(SpecError, match=r"data.train_samples: is no option of digits \(got 5\)"):
        load_data("digits", train_samples=5)


@pytest.mark.skipif(not REAL, reason="CIRCUITSIM_DATA is not set: no files of the published sets here")
@pytest.mark.parametrize("published", [MNIST, FASHION_MNIST], ids=lambda published: published.name)
def test_the_published_files(published: Published) -> None:
    assert REAL is not None
    home = Path(REAL) / published.folder
    home = home if home.is_dir() else Path(REAL)
    if not (home / TRAIN_IMAGES).is_file():
        pytest.skip(f"no files of {published.name} in CIRCUITSIM_DATA")
    assert {name: sha256(home / name) for name in FILES} == published.checksums
    data = load_data(published.name)
    assert data.train_inputs.shape == (60_000, 784)
    assert data.test_inputs.shape == (10_000, 784)
    np.testing.assert_array_equal(np.bincount(data.test_labels).sum(), 10_000)
    # The first labels as everybody knows them.
    first = [5, 0, 4, 1, 9] if published is MNIST else [9, 0, 0, 3, 0]
    assert data.train_labels[:5].tolist() == first
