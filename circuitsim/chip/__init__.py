"""One die."""

from circuitsim.chip.chip import Chip, Conductances, fabricate

__all__ = ["Chip", "Conductances", "fabricate"]
