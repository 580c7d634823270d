"""Sets of images as MNIST is published, but tiny: IDX files made on the fly."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from circuitsim.data.images import FILES

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


def idx(array: np.ndarray) -> bytes:
    """The content of an IDX file of bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def images(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Noise with a bar whose row is the class: (n, 28, 28)."""
    pixels = np.random.default_rng(seed).integers(0, 100, (len(labels), 28, 28))
    for image, label in zip(pixels, labels, strict=True):
        image[2 * label + 4] = 255
    pixels[:, 0, 0] = 0
    return pixels.astype(np.uint8)


def contents(train: int = 30, test: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of the four files by name; classes take turns."""
    train_labels, test_labels = np.arange(train) % 10, (np.arange(test) + 3) % 10
    return {
        TRAIN_IMAGES: images(train_labels, seed),
        TRAIN_LABELS: train_labels.astype(np.uint8),
        TEST_IMAGES: images(test_labels, seed + 1),
        TEST_LABELS: test_labels.astype(np.uint8),
    }


def write_images(folder: Path, *, train: int = 30, test: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Write the four files into a folder, and return their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = contents(train, test, seed)
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx(array), 1))
    return arrays
