"""The file under a record: create it whole, lock it, write bytes at an offset, name what failed."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from io import FileIO
from pathlib import Path

from circuitsim.errors import RecordError

__all__ = ["failure", "lock", "open_for_writing", "publish", "sync", "write_at"]

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def failure(error: OSError, action: str, path: Path) -> RecordError:
    """Return the error to raise for an operating-system error met while doing ``action``."""
    if error.errno in _FULL:
        return RecordError(
            f"cannot {action}: no space is left",
            file=path,
            remedy="Free some space (or raise the quota), or record on another disk.",
        )
    if error.errno in _FORBIDDEN:
        return RecordError(
            f"cannot {action}: permission denied",
            file=path,
            remedy="Choose a folder that you may write to, or change its permissions.",
        )
    if error.errno == errno.ENOENT:
        return RecordError(f"cannot {action}: no such file or folder", file=path, remedy="Check the path.")
    if error.errno == errno.EISDIR:
        return RecordError(f"cannot {action}: it is a folder", file=path, remedy="Give the path of a file.")
    return RecordError(f"cannot {action}: {error.strerror or error}", file=path)


def open_for_writing(path: Path) -> FileIO:
    """Open an existing record, unbuffered, and lock it.

    Raises:
        RecordError: it cannot be opened, or another writer holds it.
    """
    try:
        file = FileIO(path, "r+")
    except OSError as error:
        raise failure(error, "write to the record", path) from error
    try:
        lock(file, path)
    except BaseException:
        file.close()
        raise
    return file


def lock(file: FileIO, path: Path) -> None:
    """Claim the file for this writer until it is closed; the lock dies with the process.

    Raises:
        RecordError: another writer holds it.
    """
    if sys.platform != "linux":
        return
    import fcntl

    # A lock of the open file description: HDF5 readers take flock locks, which it does not
    # disturb, and it survives when this process opens and closes the same file to read it.
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, request)
    except OSError as error:
        # A file system without locks is no reason to refuse to record.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise RecordError(
                "another run is writing this record",
                file=path,
                remedy="Wait for it to end, stop it, or record under another name.",
            ) from error


def publish(image: bytes, path: Path, *, overwrite: bool) -> FileIO:
    """Make ``image`` appear at ``path`` in one step; return the file, open and locked.

    The bytes go to a hidden file beside ``path`` first, so a failure leaves no partial record and
    an earlier record survives it.

    Raises:
        RecordError: no space, no permission, no folder, or ``path`` is taken.
    """
    if path.is_dir():
        raise RecordError("is a folder", file=path, remedy="Give the path of a file in it.")
    if not path.parent.is_dir():
        raise RecordError("the folder does not exist", file=path.parent, remedy="Make it first.")
    if overwrite and path.is_file():
        open_for_writing(path).close()  # only to learn whether a run is still writing it
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with FileIO(partial, "w") as file:
            write_at(file, 0, image)
            sync(file)
        _move(partial, path, overwrite=overwrite)
    except OSError as error:
        raise failure(error, "create the record", path) from error
    finally:
        # Gone already if all went well.
        with contextlib.suppress(OSError):
            partial.unlink()
    _sync_folder(path.parent)
    return open_for_writing(path)


def write_at(file: FileIO, offset: int, data: bytes) -> None:
    """Write all of ``data`` at ``offset``. Raises OSError."""
    view = memoryview(data)
    file.seek(offset)
    while view:
        view = view[file.write(view) :]


def sync(file: FileIO) -> None:
    """Bring every write so far to the disk, so that later writes cannot overtake it. Raises OSError."""
    os.fsync(file.fileno())


def _move(partial: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise _taken(path) from None
        except OSError:
            # Not every file system has hard links; without them the check and the move are two steps.
            if path.exists():
                raise _taken(path) from None
        else:
            return
    os.replace(partial, path)


def _taken(path: Path) -> RecordError:
    return RecordError(
        "a file of this name exists", file=path, remedy="Choose another name, or allow overwriting."
    )


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
