"""Blocks: arrays of like elements that stay together, so that a layer is one object, not 10^5 rows.

A block is exactly the elements that `circuitsim.netlist.flatten` writes for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["AmplifierBank", "Crossbar", "CurrentSense", "SoftmaxLoad"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Crossbar:
    """Devices between M word lines and N bit lines.

    Device (j, i) of ``g_plus`` [S] lies between ``word_pos[j]`` and ``bit[i]``; of ``g_minus``, if
    there is one, between ``word_neg[j]`` and ``bit[i]``: a differential pair. ``mask`` (M, N) says
    which pairs exist; None means all. ``driven`` says that the word lines are outputs of one-way
    amplifiers or sources, so that what a nudge does to them is no part of the gradient.
    ``device_names`` are those of resistors that were drawn one by one, line after line; none for devices
    that are called by their place, or in differential pairs.

    With ``r_wire`` [ohm per segment] the lines are wires: one segment from a port (the node of
    ``word_pos``, ``word_neg`` or ``bit``) to the point where the line meets its first device, one
    more from each such point to the next, and nothing beyond the last. Word lines are driven at the
    first or the last bit line (``drive_end``), bit lines are sensed at the first or the last word
    line (``sense_end``). ``r_driver`` and ``r_sense`` [ohm] lie in series with the segment at the port of
    each word line and of each bit line. The word lines of differential pairs interleave, plus above
    minus, and both cross the same bit wire: on a board the two currents cancel along the wire, where
    they flow.
    """

    name: str
    word_pos: IntArray
    word_neg: IntArray | None = None
    bit: IntArray
    g_plus: FloatArray
    g_minus: FloatArray | None = None
    mask: NDArray[np.bool_] | None = None
    g_min: float = 0.0
    g_max: float = np.inf
    trainable: bool = True
    driven: bool = False
    r_wire: float = 0.0
    r_driver: float = 0.0
    r_sense: float = 0.0
    drive_end: Literal["first", "last"] = "first"
    sense_end: Literal["first", "last"] = "last"
    device_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _freeze(self, "word_pos", np.int64)
        _freeze(self, "word_neg", np.int64)
        _freeze(self, "bit", np.int64)
        _freeze(self, "mask", np.bool_, flat=False)
        for name in ("g_plus", "g_minus"):
            if getattr(self, name) is not None:
                g = np.asarray(getattr(self, name), dtype=np.float64)
                if self.mask is not None and self.mask.shape == g.shape:
                    g = np.where(self.mask, g, 0.0)
                object.__setattr__(self, name, g)
                _freeze(self, name, np.float64, flat=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(M word lines, N bit lines)."""
        return len(self.word_pos), len(self.bit)

    @property
    def differential(self) -> bool:
        return self.g_minus is not None

    @property
    def devices(self) -> int:
        pairs = self.shape[0] * self.shape[1] if self.mask is None else int(self.mask.sum())
        return pairs * (2 if self.differential else 1)

    @property
    def wired(self) -> bool:
        return self.r_wire > 0

    @property
    def heads(self) -> tuple[float, float]:
        """Conductances [S] between a port and the first point of its word line and of its bit line."""
        return 1 / (self.r_wire + self.r_driver), 1 / (self.r_wire + self.r_sense)

    @property
    def lines(self) -> IntArray:
        """Nodes (R,) of all word lines in the order in which they cross the bit lines.

        R is M, or 2 M for differential pairs: plus 0, minus 0, plus 1, ...
        """
        if self.word_neg is None:
            return self.word_pos
        return np.stack([self.word_pos, self.word_neg], axis=1).reshape(-1)

    def cells(self, g_plus: FloatArray, g_minus: FloatArray | None) -> FloatArray:
        """Return conductances (R, N) S in the order of ``lines``, 0 where masked out."""
        g = g_plus[:, None] if g_minus is None else np.stack([g_plus, g_minus], axis=1)
        if self.mask is not None:
            g = np.where(self.mask[:, None], g, 0.0)
        return g.reshape(-1, len(self.bit))


@dataclass(frozen=True, kw_only=True, eq=False)
class AmplifierBank:
    """N amplifiers with differential outputs and, optionally, current feedback to their inputs.

    ``v(out_pos) = +f(v(control))`` and ``v(out_neg) = -f(v(control))``, with
    ``f(v) = saturation * tanh(gain * (v + offset) / saturation)``; an infinite saturation is linear.
    The current that the outputs deliver, ``out_neg``'s counted negative, is drawn from ``control``
    times ``back_gain``: 0 is a one-way buffer, ``back_gain == gain`` a reciprocal transformer.
    """

    name: str
    control: IntArray
    out_pos: IntArray
    out_neg: IntArray | None = None
    gain: FloatArray
    saturation: FloatArray
    offset: FloatArray
    back_gain: FloatArray

    def __post_init__(self) -> None:
        for name in ("control", "out_pos", "out_neg"):
            _freeze(self, name, np.int64)
        for name in ("gain", "saturation", "offset", "back_gain"):
            _freeze(self, name, np.float64, size=len(self.control))

    @property
    def one_way(self) -> bool:
        return not np.any(self.back_gain)


@dataclass(frozen=True, kw_only=True, eq=False)
class CurrentSense:
    """N virtual grounds: ``bit`` is held at 0 V and ``gain`` times its current enters ``output``."""

    name: str
    bit: IntArray
    output: IntArray
    gain: FloatArray

    def __post_init__(self) -> None:
        _freeze(self, "bit", np.int64)
        _freeze(self, "output", np.int64)
        _freeze(self, "gain", np.float64, size=len(self.bit))


@dataclass(frozen=True, kw_only=True, eq=False)
class SoftmaxLoad:
    """Current leaving ``pos[k]``: ``amplitude * (softmax(y / scale)[k] - target[k])``, y = v_pos - v_neg.

    The nudge of a cross-entropy cost. Its Jacobian is symmetric: it is a reciprocal element.
    """

    name: str
    pos: IntArray
    neg: IntArray
    target: FloatArray
    amplitude: float
    scale: float

    def __post_init__(self) -> None:
        _freeze(self, "pos", np.int64)
        _freeze(self, "neg", np.int64)
        _freeze(self, "target", np.float64)


def _freeze(block: Any, name: str, dtype: Any, *, flat: bool = True, size: int | None = None) -> None:
    value: ArrayLike | None = getattr(block, name)
    if value is None:
        return
    array = np.array(value, dtype=dtype)
    if flat:
        array = array.reshape(-1)
    if size is not None and array.size == 1 and size != 1:
        array = np.repeat(array, size)
    array.flags.writeable = False
    object.__setattr__(block, name, array)
