"""Reports: a record as tables of numbers and as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitsim.report.figures import write_figures

__all__ = ["write_figures"]


def __getattr__(name: str) -> Any:
    # Tables must not wait for matplotlib.
    if name in __all__:
        from circuitsim.report import figures

        return getattr(figures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
