"""How kernels are compiled, and word when numba really compiles, which it does once per machine.

Three decorators, by what the compiler may do to rounding:

    strict      nothing: every copy of such a kernel gives the same bits
    fused       multiply-adds may be rounded once
    reordered   the terms of sums may change places, too, which vectorises them

Copies of the last two may round differently, and a process takes the first that it loads for all calls. So
they are inlined where they are called (``forceinline``): numbers do not depend on what a process did before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

__all__ = ["fused", "on_first_compilation", "reordered", "strict"]

strict = njit(cache=True, nogil=True, error_model="numpy")
fused = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
# Nothing that would lose an inf or a NaN.
reordered = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, forceinline=True
)


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
