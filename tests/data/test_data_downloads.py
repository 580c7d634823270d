"""Downloads: mirrors in turn, checksums, the cache, and what is said when nothing works."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from image_sets import TEST_LABELS, TRAIN_IMAGES, contents, idx

from circuitsim.data import downloads, images, load_mnist
from circuitsim.errors import SpecError

Answer = Callable[[str], tuple[int, bytes]]


class Server:
    """A mirror on this machine that counts what it is asked for."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self, answer))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, answer: Answer, *rest: object) -> None:
        self._mirror, self._answer = server, answer
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self._mirror.asked.append(name)
        status, body = self._answer(name)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (1 if status == 299 else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


FILES = {name: gzip.compress(idx(array), 1, mtime=0) for name, array in contents(train=200).items()}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


def serving(files: Mapping[str, bytes]) -> Answer:
    return lambda name: (200, files[name]) if name in files else (404, b"gone")


def nothing(name: str) -> tuple[int, bytes]:
    return 404, b"<html>gone</html>"


def wrong(name: str) -> tuple[int, bytes]:
    return 200, FILES[name][:-1] + b"?"


def broken(name: str) -> tuple[int, bytes]:
    """Closes the connection before all that was announced has come."""
    return 299, FILES[name]


def busy(name: str) -> tuple[int, bytes]:
    return 503, b""


def deaf() -> str:
    """Return a mirror that nobody serves."""
    server = Server(nothing)
    server.close()
    return server.url


def fetch(folder: Path, *mirrors: str, name: str = TRAIN_IMAGES) -> Path:
    return downloads.fetch(name, SUMS[name], mirrors, folder, remedy="Try elsewhere.")


@pytest.mark.parametrize(
    ("first", "reason"),
    [(nothing, "HTTP 404 Not Found"), (wrong, "wrong checksum"), (busy, "HTTP 503 Service Unavailable"),
     (broken, "broke"), (None, "no connection")],
    ids=["missing", "wrong", "busy", "broken", "deaf"],
)  # fmt: skip
def test_the_next_mirror_is_asked(
    tmp_path: Path,
    mirror: Callable[[Answer], Server],
    capsys: pytest.CaptureFixture[str],
    first: Answer | None,
    reason: str,
) -> None:
    bad = deaf() if first is None else mirror(first).url
    good = mirror(serving(FILES))
    path = fetch(tmp_path / "deep" / "cache", bad, good.url)
    assert path.read_bytes() == FILES[TRAIN_IMAGES]
    assert good.asked == [TRAIN_IMAGES]
    assert [file.name for file in path.parent.iterdir()] == [TRAIN_IMAGES]
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    hosts = [url.split("/")[2] for url in (bad, good.url)]
    assert lines[0] == f"downloading {TRAIN_IMAGES} from {hosts[0]}"
    assert lines[1].startswith(f"{hosts[0]}: ")
    assert reason in lines[1]
    assert lines[2:] == [f"downloading {TRAIN_IMAGES} from {hosts[1]}"]


def test_a_file_is_downloaded_once(
    tmp_path: Path, mirror: Callable[[Answer], Server], capsys: pytest.CaptureFixture[str]
) -> None:
    good = mirror(serving(FILES))
    first = fetch(tmp_path, good.url)
    capsys.readouterr()
    assert fetch(tmp_path, good.url) == first
    assert fetch(tmp_path) == first
    assert good.asked == [TRAIN_IMAGES]
    assert capsys.readouterr().err == ""


def test_a_damaged_file_is_replaced(
    tmp_path: Path, mirror: Callable[[Answer], Server], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / TRAIN_IMAGES
    path.write_bytes(FILES[TRAIN_IMAGES][:100])
    assert fetch(tmp_path, mirror(serving(FILES)).url).read_bytes() == FILES[TRAIN_IMAGES]
    assert f"{path}: has a wrong checksum, downloading it again" in capsys.readouterr().err


def test_every_mirror_is_named_where_none_has_the_file(
    tmp_path: Path, mirror: Callable[[Answer], Server]
) -> None:
    urls = [mirror(nothing).url, mirror(wrong).url, deaf()]
    with pytest.raises(SpecError) as error:
        fetch(tmp_path, *urls)
    tried = [f"{url}{TRAIN_IMAGES}: {why}" for url, why in zip(
        urls, ("HTTP 404 Not Found", "wrong checksum", "no connection"), strict=True
    )]  # fmt: skip
    assert str(error.value) == f"{TRAIN_IMAGES} cannot be downloaded: {'; '.join(tried)}. Try elsewhere."
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(SpecError, match="downloads cannot be kept here") as error:
        fetch(tmp_path / "cache" / "mnist")
    assert str(tmp_path / "cache") in str(error.value)


def test_a_set_from_mirrors(
    tmp_path: Path, mirror: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: no folder given, first mirror half empty, then loaded again from the cache alone."""
    half = mirror(serving({TEST_LABELS: FILES[TEST_LABELS]}))
    good = mirror(serving(FILES))
    monkeypatch.setenv("CIRCUITSIM_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    published = replace(images.MNIST, checksums=SUMS, mirrors=(half.url, good.url))
    monkeypatch.setattr(images, "MNIST", published)
    data = load_mnist()
    np.testing.assert_array_equal(data.train_labels, np.arange(200) % 10)
    assert len(half.asked) == 4
    assert TEST_LABELS not in good.asked
    assert len(good.asked) == 3
    again = load_mnist()
    assert len(half.asked) + len(good.asked) == 7
    np.testing.assert_array_equal(again.train_inputs, data.train_inputs)
    folder = downloads.cache_folder("mnist")
    assert sorted(path.name for path in folder.iterdir()) == sorted(SUMS)
    assert tmp_path in folder.parents
    monkeypatch.setenv("CIRCUITSIM_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(SpecError, match="CIRCUITSIM_DATA"):
        load_mnist()


def test_progress_on_a_terminal(
    tmp_path: Path,
    mirror: Callable[[Answer], Server],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch(tmp_path, mirror(serving(FILES)).url)
    drawn = capsys.readouterr().err.split("\n")
    assert drawn[1].split("\r")[-1] == f"  {TRAIN_IMAGES} 100 % of {len(FILES[TRAIN_IMAGES]) / 1e6:.1f} MB"
    assert drawn[2:] == [""]
