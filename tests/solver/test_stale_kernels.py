"""A kernel whose callee has changed must not run on from its cache."""

from __future__ import annotations

from pathlib import Path

from circuitsim.solver.kernels import drop_stale_caches


def test_caches_live_as_long_as_every_source(tmp_path: Path) -> None:
    source, other = tmp_path / "newton.py", tmp_path / "transient.py"
    source.write_text("a = 1\n")
    other.write_text("from newton import a\n")
    drop_stale_caches(tmp_path)
    compiled = [
        tmp_path / "__pycache__" / name for name in ("transient.advance.nbi", "transient.advance.1.nbc")
    ]
    for cache in compiled:
        cache.touch()
    bytecode = tmp_path / "__pycache__" / "newton.pyc"
    bytecode.touch()
    drop_stale_caches(tmp_path)
    assert all(cache.exists() for cache in compiled)
    source.write_text("a = 2\n")
    drop_stale_caches(tmp_path)
    assert not any(cache.exists() for cache in compiled)
    assert bytecode.exists()


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "newton.py").write_text("a = 1\n")
    # No folder of caches can be made where a file has its name.
    (tmp_path / "__pycache__").write_text("")
    drop_stale_caches(tmp_path)
    assert (tmp_path / "__pycache__").is_file()
