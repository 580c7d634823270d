"""The gradient with respect to conductances, and the local rule that all estimators share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist import Netlist
from circuitsim.netlist.tables import FloatArray

__all__ = ["Gradient", "alignment", "local_rule"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradient:
    """Mean over a batch of dC/dg [W/S] for every trainable crossbar.

    ``crossbars[name]`` is ``(dC/dg_plus, dC/dg_minus or None)``, each (M, N). ``beta`` is None where the
    estimator has none; ``phases`` names the phases that were read.
    """

    crossbars: Mapping[str, tuple[FloatArray, FloatArray | None]]
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


def local_rule(
    netlist: Netlist, v0: FloatArray, s: FloatArray
) -> dict[str, tuple[FloatArray, FloatArray | None]]:
    """Return dC/dg = mean_b (s_word - s_bit)(v_word - v_bit) for every trainable crossbar.

    Drop times change of drop, read at the device's own two nodes. v0: free-phase node
    voltages (B, N) V; s: their change per unit of beta (B, N) V. A driven word line is held by an ideal
    output, so its change is left out.
    """
    gradients: dict[str, tuple[FloatArray, FloatArray | None]] = {}
    for crossbar in netlist.trainable:
        if crossbar.wired:
            raise NetlistError(
                "the gradient of devices behind line resistance is not there yet",
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


def alignment(estimate: Gradient, exact: Gradient) -> dict[str, tuple[float, float]]:
    """Return (cosine, relative error) of an estimate to the exact gradient, per crossbar.

    An estimate of exactly zero has cosine 0 and relative error 1.
    """
    found = {}
    for name in exact.crossbars:
        a, b = estimate.flat(name), exact.flat(name)
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-300)
        found[name] = (float(a @ b) / size if size > 0 else 0.0, error)
    return found
