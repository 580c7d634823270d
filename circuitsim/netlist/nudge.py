"""The nudge: the current that a cost draws from the outputs, and the elements that draw it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from circuitsim.netlist.blocks import SoftmaxLoad
from circuitsim.netlist.builder import NetlistBuilder
from circuitsim.netlist.models import softmax
from circuitsim.netlist.netlist import Netlist
from circuitsim.netlist.tables import FloatArray

__all__ = ["Nudge", "nudged_netlist"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nudge:
    """Currents ``beta * dC/dy`` [A] that leave the outputs.

    ``quadratic``: ``dC/dy = conductance * (y - target)``, target (B, K) V: a resistor
    ``beta * conductance`` to a source at the target. ``softmax``: ``dC/dy = conductance * scale *
    (softmax(y / scale) - target)``, target (B, K) probabilities.
    """

    kind: Literal["quadratic", "softmax"]
    beta: float
    conductance: float
    target: FloatArray
    scale: float = 1.0

    @property
    def amplitude(self) -> float:
        """``beta * conductance * scale`` [A], the largest current of a softmax nudge."""
        return self.beta * self.conductance * self.scale

    def current(self, y: FloatArray) -> FloatArray:
        """Return the currents (B, K) A that leave the outputs at output voltages y (B, K) V."""
        if self.kind == "quadratic":
            return self.beta * self.conductance * (y - self.target)
        return self.amplitude * (softmax(y, self.scale) - self.target)

    def scaled(self, beta: float) -> Nudge:
        return replace(self, beta=beta)

    def rows(self, index: np.ndarray | slice) -> Nudge:
        """Return the nudge of a subset of samples."""
        return replace(self, target=self.target[index])


def nudged_netlist(netlist: Netlist, nudge: Nudge, sample: int = 0) -> Netlist:
    """Return ``netlist`` with the elements that draw the nudge of one sample.

    A negative beta needs a negative resistance: it is written as a VCCS across its own control.
    """
    builder = NetlistBuilder.extending(netlist)
    ports = netlist.outputs
    target = nudge.target[sample]
    if nudge.kind == "softmax":
        builder.load(
            SoftmaxLoad(
                name="nudge",
                pos=ports.pos,
                neg=ports.neg,
                target=target,
                amplitude=nudge.amplitude,
                scale=nudge.scale,
            )
        )
        return builder.build_like(netlist)
    g = nudge.beta * nudge.conductance
    size = len(ports.pos)
    labels = [f"nudge.{k}" for k in range(size)]
    targets = builder.nodes(f"nudge.target[{k}]" for k in range(size))
    # The target source hangs from the output's other side, so that the drop is y - target.
    builder.add_rows(
        "vsource", [f"nudge.target.{k}" for k in range(size)], pos=targets, neg=ports.neg, voltage=target
    )
    if g > 0:
        builder.add_rows("resistor", labels, pos=ports.pos, neg=targets, conductance=g)
    else:
        builder.add_rows(
            "vccs",
            labels,
            pos=ports.pos,
            neg=targets,
            control_pos=ports.pos,
            control_neg=targets,
            transconductance=g,
        )
    return builder.build_like(netlist)
