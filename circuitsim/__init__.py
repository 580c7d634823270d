"""circuitsim: learning on simulated analog hardware.

describe -> compile -> fabricate -> solve -> learn -> record. Names are imported when first used, so that
importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitsim.chip import Chip, fabricate
    from circuitsim.chip.nonlinear import nonlinear_netlist
    from circuitsim.chip.substrate import Capabilities, Substrate, Terminals
    from circuitsim.compiler import compile_network
    from circuitsim.data import load_digits, load_fashion_mnist, load_mnist
    from circuitsim.devices import DeviceCard, find_card, ideal_card, load_card, merged_cards
    from circuitsim.errors import (
        CircuitsimError,
        ConvergenceError,
        DeviceError,
        InstrumentError,
        NetlistError,
        RecordError,
        SpecError,
    )
    from circuitsim.instrument.client import VisaSubstrate
    from circuitsim.instrument.simulated import SimulatedSubstrate, simulated_substrate
    from circuitsim.learning import (
        EP,
        Adjoint,
        AsymEP,
        Cost,
        Dyadic,
        DyadicBP,
        Gradient,
        Phases,
        SubstratePhases,
        SubstrateTrainer,
        check_gradients,
    )
    from circuitsim.netlist import (
        Netlist,
        NetlistBuilder,
        Nudge,
        Values,
        corrected_netlist,
        dyadic_netlist,
        flatten,
        nudged_netlist,
        read_netlist,
        write_netlist,
    )
    from circuitsim.network import NetworkSpec, load_network
    from circuitsim.record import RunRecord, read_record
    from circuitsim.solver import Drive, OperatingPoint, Plan, SolverSettings, build_plan, solve
    from circuitsim.solver.correction import Correction
    from circuitsim.solver.dual import DualNetwork
    from circuitsim.solver.settling import settle
    from circuitsim.solver.sweep import sweep
    from circuitsim.solver.transient import TransientResult, TransientSettings, transient
    from circuitsim.spice.deck import write_deck
    from circuitsim.spice.deck_file import Deck
    from circuitsim.spice.reader import parse_deck, read_deck
    from circuitsim.study import resume_experiment, run_experiment
    from circuitsim.study.sweep import run_sweep

__version__ = "0.1.0"

_HOMES = {
    "chip": ("Chip", "fabricate"),
    "chip.nonlinear": ("nonlinear_netlist",),
    "chip.substrate": ("Capabilities", "Substrate", "Terminals"),
    "compiler": ("compile_network",),
    "data": ("load_digits", "load_fashion_mnist", "load_mnist"),
    "devices": ("DeviceCard", "find_card", "ideal_card", "load_card", "merged_cards"),
    "errors": (
        "CircuitsimError",
        "ConvergenceError",
        "DeviceError",
        "InstrumentError",
        "NetlistError",
        "RecordError",
        "SpecError",
    ),
    "instrument.client": ("VisaSubstrate",),
    "instrument.simulated": ("SimulatedSubstrate", "simulated_substrate"),
    "learning": (
        "EP",
        "Adjoint",
        "AsymEP",
        "Cost",
        "Dyadic",
        "DyadicBP",
        "Gradient",
        "Phases",
        "SubstratePhases",
        "SubstrateTrainer",
        "check_gradients",
    ),
    "netlist": (
        "Netlist",
        "NetlistBuilder",
        "Nudge",
        "Values",
        "corrected_netlist",
        "dyadic_netlist",
        "flatten",
        "nudged_netlist",
        "read_netlist",
        "write_netlist",
    ),
    "network": ("NetworkSpec", "load_network"),
    "record": ("RunRecord", "read_record"),
    "solver": ("Drive", "OperatingPoint", "Plan", "SolverSettings", "build_plan", "solve"),
    "solver.correction": ("Correction",),
    "solver.dual": ("DualNetwork",),
    "solver.settling": ("settle",),
    "solver.sweep": ("sweep",),
    "solver.transient": ("TransientResult", "TransientSettings", "transient"),
    "spice.deck": ("write_deck",),
    "spice.deck_file": ("Deck",),
    "spice.reader": ("parse_deck", "read_deck"),
    "study": ("resume_experiment", "run_experiment"),
    "study.sweep": ("run_sweep",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'circuitsim' has no attribute {name!r}")
    return getattr(import_module(f"circuitsim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
