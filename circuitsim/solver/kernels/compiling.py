"""Tell when numba really compiles, which it does once per machine; loading from its cache is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import event

__all__ = ["on_first_compilation"]


class _Once(event.Listener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: Any) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def on_end(self, event: Any) -> None:
        pass


def on_first_compilation(tell: Callable[[], None]) -> None:
    """Call ``tell`` when the first kernel of this process is compiled rather than loaded."""
    event.register("numba:compile", _Once(tell))
