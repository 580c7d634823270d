"""`circuitsim train` on sets of images: where they come from, and what is said where they do not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Command
from image_sets import FILES, TEST_IMAGES, TRAIN_IMAGES, write_images

from circuitsim.data import images
from circuitsim.record import read_record


@pytest.fixture
def experiment(changed: Callable[..., Path]) -> Path:
    """quick.yaml on MNIST."""
    network = changed("digits16", {"inputs.pixels.size": 784})
    network.rename("images.yaml")
    return changed("quick", {"network": "images.yaml", "data": {"set": "mnist"}, "training.batch": 20})


def test_images_from_a_folder(
    experiment: Path, folder: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(folder / "sets" / "mnist", train=60, test=20)
    monkeypatch.setenv("CIRCUITSIM_DATA", "sets")
    trained = call("train", experiment, "--json")
    assert "mnist, 60 samples to learn from, 20 held out" in trained.err
    record = read_record(folder / trained.document["record"])
    assert record.header["figures"]["image_shape"] == [28, 28]
    assert all(Path(figure).is_file() for figure in trained.document["figures"])


def test_a_folder_without_them(
    experiment: Path, folder: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIRCUITSIM_DATA", "sets")
    call("train", experiment).refuses("CIRCUITSIM_DATA: is not a folder (got 'sets')", *FILES)
    write_images(folder / "sets")
    Path("sets", TRAIN_IMAGES).write_bytes(b"")
    call("train", experiment).refuses(f"sets/{TRAIN_IMAGES}: is empty. ")
    Path("sets", TEST_IMAGES).unlink()
    call("train", experiment).refuses(f"sets: lacks files of mnist: {TEST_IMAGES}. ", *FILES)
    assert not list(folder.glob("*.h5"))


def test_no_network(experiment: Path, folder: Path, call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound, but nobody listens: connections are refused.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        monkeypatch.setattr(images, "MNIST", replace(images.MNIST, mirrors=(url, url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.delenv("CIRCUITSIM_DATA", raising=False)
        refused = call("train", experiment)
    refused.refuses(
        f"{TRAIN_IMAGES} cannot be downloaded: {url}{TRAIN_IMAGES}: no connection; {url}",
        "set CIRCUITSIM_DATA to the folder",
        *FILES,
    )
    assert not list(folder.glob("*.h5"))


def test_an_option_of_other_sets(changed: Callable[..., Path], call: Command) -> None:
    experiment = changed("quick", {"data": {"set": "mnist", "test_fraction": 0.2}})
    call("train", experiment).refuses(
        f"{experiment}: data.test_fraction: is no option of mnist", "test_samples take fewer of them."
    )
