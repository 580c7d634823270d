"""Compiled kernels: arrays in, status codes out.

A kernel is cached with what it calls, but numba looks at its own file alone: of a kernel whose callee has
changed the old code would run on. So a change of any kernel drops them all.
"""

import contextlib
import hashlib
from pathlib import Path

__all__ = ["drop_stale_caches"]


def drop_stale_caches(folder: Path, *others: Path) -> None:
    """Delete the compiled kernels of a folder if its sources, or others, are not those of the last call."""
    digest = hashlib.sha256()
    for source in (*sorted(folder.glob("*.py")), *others):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    caches = folder / "__pycache__"
    marker = caches / "kernels.sha256"
    # A folder that cannot be written to holds no caches of ours, or only those of its installation.
    with contextlib.suppress(OSError):
        if marker.exists() and marker.read_text() == digest.hexdigest():
            return
        caches.mkdir(exist_ok=True)
        for pattern in ("*.nbi", "*.nbc"):
            for stale in caches.glob(pattern):
                stale.unlink(missing_ok=True)
        marker.write_text(digest.hexdigest())


_folder = Path(__file__).parent
# The numbers of a tape's operations are constants in the code.
drop_stale_caches(_folder, _folder.parents[1] / "netlist" / "formulas.py")
