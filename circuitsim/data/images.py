"""MNIST and Fashion-MNIST: 60,000 images of 28 x 28 pixels to learn from, 10,000 to test on, 10 classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from circuitsim.data import downloads
from circuitsim.data.idx_files import read_idx
from circuitsim.data.samples import DataSet
from circuitsim.errors import SpecError
from circuitsim.netlist.tables import FloatArray

__all__ = ["DATA_FOLDER", "Pixels", "load_fashion_mnist", "load_mnist"]

DATA_FOLDER = "CIRCUITSIM_DATA"
"""The environment variable that names a folder of data sets to use instead of downloads."""

Pixels = Literal["signed", "unit"]
"""The range of pixels: -1 ... 1, or 0 ... 1."""

_TRAIN_IMAGES, _TRAIN_LABELS, _TEST_IMAGES, _TEST_LABELS = FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Published:
    """A set of four files as it was published: their SHA-256 sums, and where they are to be had."""

    name: str
    folder: str
    checksums: Mapping[str, str]
    mirrors: tuple[str, ...]
    class_names: tuple[str, ...] = ()


MNIST = Published(
    name="mnist",
    folder="mnist",
    checksums={
        _TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        _TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        _TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        _TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)
FASHION_MNIST = Published(
    name="fashion_mnist",
    folder="fashion-mnist",
    checksums={
        _TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        _TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        _TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        _TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)


def load_mnist(
    *, pixels: Pixels = "signed", train_samples: int | None = None, test_samples: int | None = None
) -> DataSet:
    """Return the handwritten digits of LeCun, Cortes and Burges: float32 inputs (n, 784), labels (n,).

    Training and test set are the published ones; ``train_samples`` and ``test_samples`` take the first
    of each. The files come from ``CIRCUITSIM_DATA``, a folder with the four IDX .gz files in it or in its
    subfolder ``mnist``, where that is set; else they are downloaded once.

    Raises:
        SpecError: a file is missing, damaged, or cannot be downloaded; a limit is out of range.
    """
    return _load(MNIST, pixels, train_samples, test_samples)


def load_fashion_mnist(
    *, pixels: Pixels = "signed", train_samples: int | None = None, test_samples: int | None = None
) -> DataSet:
    """Return Zalando's articles of clothing (arXiv:1708.07747), as `load_mnist` returns digits.

    The subfolder of ``CIRCUITSIM_DATA`` is ``fashion-mnist``.
    """
    return _load(FASHION_MNIST, pixels, train_samples, test_samples)


def _load(
    published: Published, pixels: Pixels, train_samples: int | None, test_samples: int | None
) -> DataSet:
    folder = os.environ.get(DATA_FOLDER)
    paths = _files_in(Path(folder), published) if folder else _downloads(published)
    digest = hashlib.sha256()
    parts: list[tuple[FloatArray, NDArray[np.int64]]] = []
    for images_name, labels_name, key, limit in (
        (_TRAIN_IMAGES, _TRAIN_LABELS, "train_samples", train_samples),
        (_TEST_IMAGES, _TEST_LABELS, "test_samples", test_samples),
    ):
        images = read_idx(paths[images_name], dimensions=3)
        labels = read_idx(paths[labels_name], dimensions=1)
        _check(images, labels, paths[images_name], paths[labels_name])
        if limit is not None and not 1 <= limit <= len(labels):
            rule = f"must be from 1 to the {len(labels)} samples of {published.name}"
            raise SpecError(rule, field=f"data.{key}", value=limit)
        digest.update(images.data.cast("B"))
        digest.update(labels.data.cast("B"))
        parts.append((_scaled(images[:limit], pixels), labels[:limit].astype(np.int64)))
    (train, train_labels), (test, test_labels) = parts
    return DataSet(
        name=published.name,
        train_inputs=train,
        train_labels=train_labels,
        test_inputs=test,
        test_labels=test_labels,
        classes=CLASSES,
        image_shape=(28, 28),
        class_names=published.class_names,
        digest=digest.hexdigest(),
    )


def _scaled(images: NDArray[np.uint8], pixels: Pixels) -> FloatArray:
    """Return images as input vectors: float32, which holds 256 grey levels at half the memory."""
    levels = np.arange(256) / 255
    if pixels == "signed":
        levels = 2 * levels - 1
    # Every byte is a level: clipping saves the check of bounds, half of the time.
    inputs = levels.astype(np.float32).take(images.reshape(len(images), -1), mode="clip")
    # Solvers make a batch of them what they work with.
    return cast(FloatArray, inputs)


def _check(images: NDArray[np.uint8], labels: NDArray[np.uint8], file: Path, labels_file: Path) -> None:
    if images.shape[1:] != (28, 28):
        raise SpecError("images must have 28 x 28 pixels", file=file, value=images.shape[1:])
    if len(images) != len(labels) or not len(images):
        rule = f"{len(labels)} labels do not go with the {len(images)} images of {file.name}"
        raise SpecError(rule, file=labels_file)
    if labels.max() >= CLASSES:
        raise SpecError("labels must be from 0 to 9", file=labels_file, value=int(labels.max()))


def _files_in(folder: Path, published: Published) -> dict[str, Path]:
    """Return the files of a set in a folder of the user's, or in its subfolder for the set."""
    remedy = (
        f"{DATA_FOLDER} is the folder that data sets are read from: put {', '.join(FILES)} into its "
        f"subfolder {published.folder}, or unset it to download them."
    )
    if not folder.is_dir():
        raise SpecError("is not a folder", field=DATA_FOLDER, value=str(folder), remedy=remedy)
    within = folder / published.folder
    home = within if within.is_dir() else folder
    missing = [name for name in FILES if not (home / name).is_file()]
    if missing:
        rule = f"lacks files of {published.name}: {', '.join(missing)}"
        raise SpecError(rule, file=home, remedy=remedy)
    paths = {name: home / name for name in FILES}
    # Both sets have files of the same names: one must not be taken for the other.
    (other,) = (candidate for candidate in (MNIST, FASHION_MNIST) if candidate.name != published.name)
    for name, path in paths.items():
        try:
            found = downloads.sha256(path)
        except OSError as failure:
            raise SpecError(f"cannot be read: {failure.strerror or failure}", file=path) from failure
        if found == other.checksums[name]:
            raise SpecError(f"is of {other.name}, not of {published.name}", file=path, remedy=remedy)
    return paths


def _downloads(published: Published) -> dict[str, Path]:
    folder = downloads.cache_folder(published.folder)
    remedy = (
        f"Check the network, or get {', '.join(FILES)} of {published.name} elsewhere and set {DATA_FOLDER} "
        f"to the folder that holds them in its subfolder {published.folder}."
    )
    return {
        name: downloads.fetch(name, published.checksums[name], published.mirrors, folder, remedy=remedy)
        for name in FILES
    }
