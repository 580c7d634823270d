"""Data sets."""

from circuitsim.data.csv_files import load_csv
from circuitsim.data.images import load_fashion_mnist, load_mnist
from circuitsim.data.samples import DataSet
from circuitsim.data.sets import DATA_OPTIONS, DATA_SETS, load_data, load_digits, load_product, load_xor

__all__ = [
    "DATA_OPTIONS",
    "DATA_SETS",
    "DataSet",
    "load_csv",
    "load_data",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "load_product",
    "load_xor",
]
