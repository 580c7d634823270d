"""The second network of a dyadic phase as a die of its own: J(m)^T d + beta dC/dm = 0 with its own J."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist, Values
from circuitsim.netlist.models import (
    DIODE_CURRENT,
    buffer_gain,
    diode_conductance,
)
from circuitsim.netlist.tables import FloatArray

__all__ = ["DualNetwork"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DualNetwork:
    """The linear, transposed copy of a circuit, with devices of its own.

    Crossbars, resistors, back gains and virtual grounds are those of ``values``. What follows the first
    network is set from that network's operating point and values: the slope of every amplifier and the
    conductance of every diode, each times a factor here.
    """

    values: Values
    slope: Mapping[str, FloatArray] = field(default_factory=dict)
    """Bank -> (n,) factors on f'(v0); 1 where a bank is not named."""
    diode: FloatArray | None = None
    """(rows,) factors on the conductances of the diode table's rows."""
    ideal_diode: FloatArray | None = None
    """(rows,) factors on those of the ideal diodes that conduct."""

    def check(self, netlist: Netlist) -> None:
        """Compare with a netlist.

        Raises:
            NetlistError: a name that is no bank, a wrong shape, or a back gain where the circuit has none.
        """
        sizes = {bank.name: len(bank.control) for bank in netlist.banks}
        rows = {"diode": len(netlist.diode), "ideal_diode": len(netlist.ideal_diode)}
        for name, factor in self.slope.items():
            if name not in sizes:
                raise NetlistError(
                    "no such amplifier bank",
                    object=netlist.title,
                    field="dual.slope",
                    value=name,
                    remedy=f"Banks here: {', '.join(sizes) or 'none'}.",
                )
            _same_shape(netlist, f"dual.slope[{name}]", factor, (sizes[name],))
        for kind, length in rows.items():
            factor = getattr(self, kind)
            if factor is not None:
                _same_shape(netlist, f"dual.{kind}", factor, (length,))
        for bank in netlist.banks:
            if bank.one_way and np.any(self.values.banks[bank.name]["back_gain"]):
                raise NetlistError(
                    "the copy of a one-way bank is one-way", object=bank.name, field="dual.values.back_gain"
                )
        for crossbar in netlist.crossbars:
            here = [None if g is None else g.shape for g in (crossbar.g_plus, crossbar.g_minus)]
            there = [None if g is None else g.shape for g in self.values.crossbars[crossbar.name]]
            if here != there:
                raise NetlistError(
                    f"the copy needs a crossbar of the same shape, {here}",
                    object=crossbar.name,
                    field="dual.values",
                    value=there,
                )

    def linearised(self, netlist: Netlist, values: Values, voltage: FloatArray) -> Values:
        """Return the copy as values of a linear circuit around node voltages (N,) V of the first network."""
        tables: dict[str, Any] = {kind: dict(columns) for kind, columns in self.values.tables.items()}
        d, own = netlist.diode, values.tables["diode"]
        factor = 1.0 if self.diode is None else self.diode
        at = diode_conductance(voltage[d.pos] - voltage[d.neg], **{name: own[name] for name in DIODE_CURRENT})
        # A diode without a junction: its parallel conductance is all of it.
        tables["diode"] = dict(own) | {
            "saturation_current": np.zeros(len(d)),
            "breakdown_voltage": np.full(len(d), np.inf),
            "parallel_conductance": factor * at,
        }
        factor = 1.0 if self.ideal_diode is None else self.ideal_diode
        ideal = values.tables["ideal_diode"]
        tables["ideal_diode"] = dict(ideal) | {"conductance": factor * ideal["conductance"]}
        tables["buffer"] = values.tables["buffer"]
        banks = {}
        for bank in netlist.banks:
            first = values.banks[bank.name]
            slope = buffer_gain(voltage[bank.control], first["gain"], first["saturation"], first["offset"])
            banks[bank.name] = {
                "gain": slope * self.slope.get(bank.name, 1.0),
                "saturation": np.full(len(slope), np.inf),
                "offset": np.zeros(len(slope)),
                "back_gain": self.values.banks[bank.name]["back_gain"],
            }
        return replace(self.values, tables=tables, banks=banks)


def _same_shape(netlist: Netlist, place: str, factor: FloatArray, shape: tuple[int, ...]) -> None:
    found = np.shape(factor)
    if found != shape:
        raise NetlistError(
            "must have one factor per element",
            object=netlist.title,
            field=place,
            value=found,
            remedy=f"Shape {shape} fits.",
        )
