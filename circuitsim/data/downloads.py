"""Files of published data sets: from mirrors in turn, checked against their sums, kept in a cache."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from circuitsim.errors import SpecError

__all__ = ["cache_folder", "fetch", "sha256"]

_CHUNK = 1 << 16
_TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""
_REASONS = {
    "ConnectionError": "no connection",
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "no answer in time",
    "ProxyError": "the proxy refuses",
    "SSLError": "no secure connection",
    "ChunkedEncodingError": "the connection broke",
}
"""What network failures are called; the library's own words fill a screen."""


def cache_folder(name: str) -> Path:
    """Return where downloads of a data set are kept: in the user's cache."""
    import pooch

    return Path(pooch.os_cache("circuitsim")) / name


def sha256(path: Path) -> str:
    """Return a file's SHA-256 sum. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str, checksum: str, mirrors: Sequence[str], folder: Path, *, remedy: str) -> Path:
    """Return ``folder/name``, downloaded from the first mirror that has it unless it is there already.

    A file appears there whole and only with the right SHA-256 ``checksum``; one that was damaged
    is replaced. Progress goes to standard error. Mirrors are URLs that end in a slash.

    Raises:
        SpecError: no mirror gave the file, each with its reason; or the folder cannot be written to.
    """
    path = folder / name
    try:
        if path.is_file():
            if sha256(path) == checksum:
                return path
            _say(f"{path}: has a wrong checksum, downloading it again")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        rule = f"downloads cannot be kept here: {failure.strerror or failure}"
        raise SpecError(rule, file=failure.filename or path, remedy=remedy) from failure

    # Here, not above: these take a while to import, and most runs find the file.
    import pooch

    failures = []
    for mirror in mirrors:
        progress = _Progress(name)
        _say(f"downloading {name} from {urlsplit(mirror).netloc}")
        try:
            with _quiet(pooch.get_logger()):
                pooch.retrieve(
                    mirror + name,
                    known_hash=f"sha256:{checksum}",
                    fname=name,
                    path=folder,
                    downloader=pooch.HTTPDownloader(
                        progressbar=progress, chunk_size=_CHUNK, timeout=_TIMEOUT
                    ),
                )
        # Network failures are OSErrors too.
        except (OSError, ValueError) as failure:
            reason = _reason(failure)
            failures.append(f"{mirror}{name}: {reason}")
            progress.end()
            _say(f"{urlsplit(mirror).netloc}: {reason}")
        else:
            return path
        finally:
            progress.end()
    raise SpecError(f"{name} cannot be downloaded: {'; '.join(failures)}", remedy=remedy)


class _Progress:
    """What pooch tells of a download: on a terminal one line that is written over, else nothing."""

    total = 0
    """Bytes to come; 0 if the server does not say."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._done = 0
        self._last = 0.0
        self._open = False

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        last = self._done >= self.total > 0
        if sys.stderr.isatty() and (last or now - self._last > 0.1):
            self._last, self._open = now, True
            done = min(self._done, self.total) if self.total else self._done
            share = f"{100 * done / self.total:3.0f} % of " if self.total else ""
            size = (self.total or done) / 1e6
            print(f"\r  {self._name} {share}{size:.1f} MB", end="", file=sys.stderr, flush=True)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        self.end()

    def end(self) -> None:
        """Leave the line."""
        if self._open:
            print(file=sys.stderr, flush=True)
        self._open = False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _reason(failure: Exception) -> str:
    """Return why a mirror did not give a file, in a few words."""
    answer = getattr(failure, "response", None)
    if answer is not None:
        return f"HTTP {answer.status_code} {answer.reason}".rstrip()
    if not isinstance(failure, OSError):
        return "wrong checksum" if "hash" in str(failure) else str(failure)
    return _REASONS.get(type(failure).__name__) or failure.strerror or str(failure)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
