"""What is wrong with the correction of a real die: gains that are off, and an anchor that is.

A perfect corrected phase adds (J0^T - J0)(x - x0) to the circuit. Hold and swap amplifiers put it there, one
pair to each controlled source. Around the anchor v0, i0, with D = v - v0 the change at an amplifier's
control and d the change of the current that its outputs take (``out_neg``'s counted negative):

    bank of slope a = f'(v0), back gain B
        output          f(v0 + D) - f(v0) + c_f (B - a)(D - e)
        control draws   -(B d + c_b (a - B)(d - h))
    virtual ground of gain k, D at its output node, d the change of its bit current
        output gets     k d - c_f k (d - h)
        bit line        c_b k (D - e)

c_f, c_b are the factors ``forward`` and ``back``; e [V] and h [A] the errors ``anchor`` and
``anchor_current`` of what was sampled and held: the held value is the free phase's plus the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["Correction"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """Faults of the correction network, by the names of amplifier banks and virtual grounds.

    What is not named is perfect. Factors multiply what the correction adds, so 1 is perfect and 0 leaves the
    nudged phase; errors are in V and A, with the signs of the module's equations.
    """

    forward: Mapping[str, FloatArray] = field(default_factory=dict)
    """c_f, (n,): of what is taken from, and put in place of, the way from the control to the outputs."""
    back: Mapping[str, FloatArray] = field(default_factory=dict)
    """c_b, (n,): of what is added on the way from the outputs back to the control."""
    anchor: Mapping[str, FloatArray] = field(default_factory=dict)
    """e, (n,) or (B, n) V: error of the stored voltage of controls, or of a virtual ground's output nodes."""
    anchor_current: Mapping[str, FloatArray] = field(default_factory=dict)
    """h, (n,) or (B, n) A: error of the stored current of the outputs, or of the bit lines.

    Signs as in ``OperatingPoint.branch_current``; of differential banks it is that of the difference.
    """

    def __post_init__(self) -> None:
        for name in ("forward", "back", "anchor", "anchor_current"):
            given: Mapping[str, ArrayLike] = getattr(self, name)
            object.__setattr__(self, name, {key: _frozen(array) for key, array in given.items()})

    def check(self, netlist: Netlist, batch: int) -> None:
        """Compare with the blocks of a netlist and the number of samples.

        Raises:
            NetlistError: a name that is no bank or virtual ground, a wrong shape, a value that is not finite.
        """
        sizes = {bank.name: len(bank.control) for bank in netlist.banks}
        sizes |= {sense.name: len(sense.bit) for sense in netlist.senses}
        for kind in ("forward", "back", "anchor", "anchor_current"):
            for name, array in getattr(self, kind).items():
                place = f"correction.{kind}[{name}]"
                if name not in sizes:
                    raise NetlistError(
                        "no such amplifier bank or virtual ground",
                        object=netlist.title,
                        field=place,
                        value=name,
                        remedy=f"Known here: {', '.join(sizes) or 'none'}.",
                    )
                n = sizes[name]
                allowed: list[tuple[int, ...]] = [(n,)]
                if kind.startswith("anchor"):
                    allowed.append((batch, n))
                if array.shape not in allowed:
                    raise NetlistError(
                        "must have one value per amplifier",
                        object=netlist.title,
                        field=place,
                        value=array.shape,
                        remedy=f"Shape {' or '.join(map(str, allowed))} fits.",
                    )
                if not np.isfinite(array).all():
                    bad = array[~np.isfinite(array)]
                    raise NetlistError(
                        "must be finite", object=netlist.title, field=place, value=float(bad[0])
                    )

    def rows(self, index: IntArray) -> Correction:
        """Return the faults of some samples."""

        def some(errors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
            return {name: e if e.ndim == 1 else e[index] for name, e in errors.items()}

        return Correction(
            forward=self.forward,
            back=self.back,
            anchor=some(self.anchor),
            anchor_current=some(self.anchor_current),
        )


def _frozen(array: ArrayLike) -> FloatArray:
    found: Any = np.array(array, dtype=np.float64)
    found.flags.writeable = False
    return found
