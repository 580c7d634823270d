"""Network -> netlist."""

from circuitsim.compiler.compile import compile_network

__all__ = ["compile_network"]
