"""One die."""

from circuitsim.chip.chip import Chip, Conductances, WriteReport
from circuitsim.chip.fabrication import fabricate

__all__ = ["Chip", "Conductances", "WriteReport", "fabricate"]
