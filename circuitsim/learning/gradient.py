"""The gradient with respect to conductances, and the local rule that all estimators share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import NetlistError
from circuitsim.netlist import Crossbar, Netlist
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.layered import FreePoint, LayerChange, LayeredPlan
from circuitsim.solver.layers import Link
from circuitsim.solver.weights import lines_of

__all__ = ["Crossbars", "Factors", "Gradient", "LayeredGradient", "alignment", "layered_rule", "local_rule"]

Array = NDArray[Any]
Crossbars = Mapping[str, tuple[FloatArray, FloatArray | None]]
"""Crossbar name -> (dC/dg_plus, dC/dg_minus or None), each (M, N) W/S."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """One crossbar's gradient in product form, from which an optimiser can work without ever forming it:

    ``dC/dg_plus = word[:, None] + bit[None, :] - left^T right``. Where word lines come in pairs of
    opposite voltages, ``dC/dg_minus`` is the same with + for the product.
    """

    left: Array
    """(K, M)"""
    right: Array
    """(K, N)"""
    word: Array | None
    """(M,), None for zeros."""
    bit: Array
    """(N,)"""
    mirrored: bool
    minus: Factors | None
    """Of word lines at voltages of their own."""
    mask: NDArray[np.bool_] | None

    def halves(self) -> tuple[FloatArray, FloatArray | None]:
        """Return the gradient as arrays (M, N)."""
        product = self.left.T @ self.right
        base = self.bit[None, :] if self.word is None else self.bit[None, :] + self.word[:, None]
        plus = self._masked(base - product)
        if self.mirrored:
            return plus, self._masked(base + product)
        return plus, None if self.minus is None else self.minus.halves()[0]

    def _masked(self, g: Array) -> FloatArray:
        return g if self.mask is None else np.where(self.mask, g, g.dtype.type(0))


Parts = Mapping[str, "Factors | tuple[FloatArray, FloatArray | None]"]


class LayeredGradient(Mapping[str, tuple[FloatArray, FloatArray | None]]):
    """Gradients of crossbars, each in product form until it is asked for as arrays.

    ``parts`` may be what makes them, which is called when they are asked for.
    """

    def __init__(self, parts: Parts | Callable[[], Parts]) -> None:
        self._parts = parts

    @cached_property
    def parts(self) -> dict[str, Factors | tuple[FloatArray, FloatArray | None]]:
        return dict(self._parts() if callable(self._parts) else self._parts)

    def __getitem__(self, name: str) -> tuple[FloatArray, FloatArray | None]:
        part = self.parts[name]
        if isinstance(part, Factors):
            part = self.parts[name] = part.halves()
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradient:
    """Mean over a batch of dC/dg [W/S] for every trainable crossbar.

    ``crossbars[name]`` is ``(dC/dg_plus, dC/dg_minus or None)``, each (M, N). ``beta`` is None where the
    estimator has none; ``phases`` names the phases that were read.
    """

    crossbars: Crossbars
    estimator: str
    beta: float | None
    phases: tuple[str, ...]
    cost: float
    """Mean cost of the batch in the free phase [W]."""
    outputs: FloatArray
    """Outputs of the free phase (B, K) V."""

    def flat(self, name: str) -> FloatArray:
        """Return both halves of one crossbar's gradient as one vector."""
        halves = [half.reshape(-1) for half in self.crossbars[name] if half is not None]
        return np.concatenate(halves)


def local_rule(netlist: Netlist, v0: FloatArray, s: FloatArray, *, at_ports: bool = False) -> Crossbars:
    """Return dC/dg = mean_b (s_word - s_bit)(v_word - v_bit) for every trainable crossbar.

    Drop times change of drop, read at the device's own two nodes. v0: free-phase node
    voltages (B, N) V; s: their change per unit of beta (B, N) V. A driven word line is held by an ideal
    output, so its change is left out. ``at_ports`` takes the voltages at the ends of lines for those at the
    devices, which is all that a host can read.
    """
    gradients: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    for crossbar in netlist.trainable:
        if crossbar.wired and not at_ports:
            raise NetlistError(
                "the gradient of devices behind line resistance needs the layered method",
                object=crossbar.name,
                field="r_wire",
                value=crossbar.r_wire,
                remedy="Set r_wire to 0, or trainable to false.",
            )
        v_bit, s_bit = v0[:, crossbar.bit], s[:, crossbar.bit]
        halves: list[FloatArray | None] = []
        for words in (crossbar.word_pos, crossbar.word_neg):
            if words is None:
                halves.append(None)
                continue
            s_word = None if crossbar.driven else s[:, words]
            g = _drop_products(v0[:, words], v_bit, s_word, s_bit)
            halves.append(g if crossbar.mask is None else np.where(crossbar.mask, g, 0.0))
        plus, minus = halves
        assert plus is not None
        gradients[crossbar.name] = (plus, minus)
    return gradients


def _drop_products(
    v_word: FloatArray, v_bit: FloatArray, s_word: FloatArray | None, s_bit: FloatArray
) -> FloatArray:
    """Expand the mean of (s_word - s_bit)(v_word - v_bit): two matrix products, nothing (B, M, N)."""
    g = (s_bit * v_bit).sum(axis=0)[None, :] - v_word.T @ s_bit
    if s_word is not None:
        g += (s_word * v_word).sum(axis=0)[:, None] - s_word.T @ v_bit
    return g / len(v_bit)


def layered_rule(plan: LayeredPlan, point: FreePoint, s: LayerChange) -> LayeredGradient:
    """Return what `local_rule` does, from the layers' voltages and changes, in product form."""
    parts: dict[str, Factors | tuple[FloatArray, FloatArray | None]] = {}
    for number, link in enumerate(plan.links):
        if not link.crossbar.trainable:
            continue
        v_word, v_minus, s_word = _words(plan, point, s, number, link)
        v_bit, s_bit = _bits(plan, point, s, link)
        if link.wired:
            lines = v_word, v_minus, s_word, v_bit, s_bit
            parts[link.crossbar.name] = _wired(point, s, number, link, lines)
            continue
        mirrored = link.crossbar.word_neg is not None and v_minus is None
        plus = _factors(link.crossbar, v_word, s_word, v_bit, s_bit, mirrored=mirrored)
        if v_minus is not None:
            minus = _factors(link.crossbar, v_minus, s_word, v_bit, s_bit, mirrored=False)
            plus = Factors(
                left=plus.left,
                right=plus.right,
                word=plus.word,
                bit=plus.bit,
                mirrored=False,
                minus=minus,
                mask=plus.mask,
            )
        parts[link.crossbar.name] = plus
    return LayeredGradient(parts)


def _words(
    plan: LayeredPlan, point: FreePoint, s: LayerChange, number: int, link: Link
) -> tuple[Array, Array | None, Array | None]:
    """Return voltages of the word lines, of their other halves where these have their own, and changes."""
    places = slice(None) if link.words is None else link.words
    held = link.crossbar.driven
    if link.source == "known":
        line = point.words[number]
        assert line is not None
        return line.plus, line.minus, None
    if link.source == "layer":
        return point.layers[link.index][:, places], None, None if held else s.layers[link.index][:, places]
    bank = point.banks[link.index]
    moved: Array | None = None
    if not held:
        d = s.layers[plan.structure.bank_layer[link.index]]
        moved = bank.forward(s.phase, d)
        if s.driven is not None:
            moved = s.driven[link.index]
        elif s.phase == "corrected" and bank.limit is not None:
            moved = bank.change(d) - bank.slope * d
    return bank.out[:, places], None, None if moved is None else moved[:, places]


def _bits(
    plan: LayeredPlan, point: FreePoint, s: LayerChange, link: Link
) -> tuple[Array | None, Array | None]:
    """Return voltages and changes of the bit lines; None for zeros."""
    places = slice(None) if link.bits is None else link.bits
    if link.sense < 0:
        return point.layers[link.target][:, places], s.layers[link.target][:, places]
    if s.phase == "nudged":
        return None, None
    if s.driven is not None:
        return None, s.driven[len(plan.netlist.banks) + link.sense][:, places]
    return None, (point.weights.fixed.sense[link.sense] * s.layers[link.target])[:, places]


def _factors(
    crossbar: Crossbar,
    v_word: Array,
    s_word: Array | None,
    v_bit: Array | None,
    s_bit: Array | None,
    *,
    mirrored: bool,
) -> Factors:
    batch = max(len(x) for x in (v_word, s_word, v_bit, s_bit) if x is not None)
    dtype, size = v_word.dtype, len(crossbar.bit)
    share = dtype.type(1 / batch)
    s_bit = np.zeros((batch, size), dtype=dtype) if s_bit is None else s_bit * share
    bit = np.zeros(size, dtype=dtype) if v_bit is None else np.einsum("bi,bi->i", s_bit, v_bit)
    left, right = v_word, s_bit
    if len(left) == 1 and batch > 1:
        # Every sample has the same word voltages: their changes add up.
        right = right.sum(axis=0, keepdims=True)
    word: Array | None = None
    if s_word is not None:
        s_word = s_word * share
        word = (s_word * v_word).sum(axis=0)
        if v_bit is not None:
            left, right = np.concatenate([left, s_word]), np.concatenate([right, v_bit])
    return Factors(
        left=left, right=right, word=word, bit=bit, mirrored=mirrored, minus=None, mask=crossbar.mask
    )


def _wired(
    point: FreePoint,
    change: LayerChange,
    number: int,
    link: Link,
    lines: tuple[Array, Array | None, Array | None, Any, Any],
) -> tuple[FloatArray, FloatArray | None]:
    v_word, v_minus, s_word, v_bit, s_bit = lines
    block = point.weights.blocks[number]
    assert block is not None
    batch = len(point.inputs)
    size = len(link.crossbar.bit)

    def whole(x: Array | None, columns: int) -> FloatArray:
        return np.zeros((batch, columns)) if x is None else np.broadcast_to(x, (batch, columns)).astype(float)

    v_word = whole(v_word, len(link.crossbar.word_pos))
    minus = None if v_minus is None else whole(v_minus, v_word.shape[1])
    v = lines_of(link.crossbar, v_word, minus)
    s = lines_of(link.crossbar, whole(s_word, v_word.shape[1]), None)
    # The drops of a copy are those across its own devices, behind its own wires.
    copy = None if change.copy is None else change.copy.blocks[number]
    return block.gradient(v, whole(v_bit, size), s, whole(s_bit, size), copy=copy)


def alignment(estimate: Gradient, exact: Gradient) -> dict[str, tuple[float, float]]:
    """Return (cosine, relative error) of an estimate to the exact gradient, per crossbar.

    An estimate of exactly zero has cosine 0 and relative error 1.
    """
    found = {}
    for name in exact.crossbars:
        a, b = (np.asarray(g.flat(name), dtype=np.float64) for g in (estimate, exact))
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-300)
        found[name] = (float(a @ b) / size if size > 0 else 0.0, error)
    return found
