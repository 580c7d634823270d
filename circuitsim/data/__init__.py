"""Data sets."""

from circuitsim.data.csv_files import load_csv
from circuitsim.data.sets import DATA_SETS, DataSet, load_data, load_digits, load_product, load_xor

__all__ = ["DATA_SETS", "DataSet", "load_csv", "load_data", "load_digits", "load_product", "load_xor"]
