"""Data sets."""

from circuitsim.data.sets import DataSet, load_data, load_digits

__all__ = ["DataSet", "load_data", "load_digits"]
