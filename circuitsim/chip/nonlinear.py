"""A die whose devices bend: ``i = g V0 sinh(v / V0)``, each of them an element of its own.

The layered method and its gradients know conductances only, so this is a circuit for the general method
and for SPICE: how far bent devices move the operating points of what was learned with straight ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from circuitsim.chip.chip import Chip
from circuitsim.errors import DeviceError
from circuitsim.netlist import Netlist, NetlistBuilder, flatten
from circuitsim.netlist.expressions import parse_expression

__all__ = ["nonlinear_netlist"]

_MOST_DEVICES = 20_000


def nonlinear_netlist(chip: Chip, nonlinearity: float | None = None) -> Netlist:
    """Return the die as plain elements, its devices as they are now, with their nonlinear I-V.

    Args:
        chip: with present conductances g, which hold at small voltages.
        nonlinearity: V0 [V]; that of the card unless given.

    Raises:
        DeviceError: the card has no V0, or there are too many devices to write out one by one.
    """
    v0 = chip.card.crossbar.nonlinearity if nonlinearity is None else nonlinearity
    if v0 is None:
        remedy = "Give crossbar.nonlinearity: V0 in V."
        raise DeviceError(
            "has no nonlinear I-V", object=chip.card.name, field="crossbar.nonlinearity", remedy=remedy
        )
    blocks = chip.netlist.with_values(chip.values)
    devices = sum(crossbar.devices for crossbar in blocks.crossbars)
    if devices > _MOST_DEVICES:
        raise DeviceError(
            f"at most {_MOST_DEVICES} devices are written out one by one",
            object=chip.netlist.title,
            value=devices,
        )
    flat = flatten(blocks).netlist
    table = flat.resistor
    place = len(blocks.resistor)
    bent = np.zeros(len(table), dtype=np.bool_)
    for crossbar in blocks.crossbars:
        bent[place : place + crossbar.devices] = True
        place += crossbar.devices
        if crossbar.wired:
            # The segments of its lines follow, two to each crossing.
            place += 2 * len(crossbar.lines) * len(crossbar.bit)
    straight = np.flatnonzero(~bent)
    rest = replace(
        table,
        name=tuple(table.name[int(k)] for k in straight),
        pos=table.pos[straight],
        neg=table.neg[straight],
        conductance=table.conductance[straight],
    )
    builder = NetlistBuilder.extending(replace(flat, resistor=rest))
    name = flat.node_names
    index = flat.node_index
    for row in np.flatnonzero(bent):
        g = float(table.conductance[row])
        if g == 0:
            continue
        pos, neg = name[table.pos[row]], name[table.neg[row]]
        current = parse_expression(
            f"{g * v0!r} * sinh(v({pos}, {neg}) / {v0!r})",
            node=lambda label: index[label],
            source=lambda label: 0,
        )
        builder.add("behavioural_current", f"{table.name[int(row)]}", pos, neg, expression=current)
    return builder.build_like(flat)
