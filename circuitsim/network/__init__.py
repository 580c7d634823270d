"""What the user wants: typed network descriptions and their YAML files."""

from circuitsim.network.documents import Positive, Quantity, Spec, parse_document, read_document
from circuitsim.network.spec import NetworkSpec, SynapseSpec, load_network, parse_network

__all__ = [
    "NetworkSpec",
    "Positive",
    "Quantity",
    "Spec",
    "SynapseSpec",
    "load_network",
    "parse_document",
    "parse_network",
    "read_document",
]
