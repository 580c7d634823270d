"""Deep resistive networks with ideal diodes in PyTorch: a lean step, and one in the published style.

The network of Scellier 2024 (deep resistive networks, trained by equilibrium propagation): layers of
nodes, a conductance g >= 0 between every two nodes of neighbouring layers. Input nodes are held at
voltages, (x, -x) for a data vector x. A hidden node has an ideal diode that keeps it >= 0 (even) or <= 0
(odd); an output node is free, and nudged by a conductance ``beta * g_c`` to a source at its target:

    v_i = clip((sum_j g_ij v_j + bias) / (sum_j g_ij + bias conductances))
    s = (v(+beta) - v(-beta)) / (2 beta),    dC/dg_ij = mean_b (s_i - s_j)(v_i0 - v_j0)

for the cost C = g_c / 2 sum (y - t)^2. Layers are updated one after the other, a fixed number of sweeps:
upwards from zero in the free phase, downwards from the free state in the nudged ones.

Lean means: what the inputs give is computed once a step, not once a sweep; conductances are summed once;
both nudged phases run as one batch; the gradient is never stored but added to the conductances by the
matrix product that makes it; no autograd; buffers are allocated once. As in the published code nothing
tells whether the sweeps sufficed (`residual` does, outside the step), and nothing guards an output whose
total conductance is less than ``beta * g_c``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["PublishedStyle", "ResistiveNetwork", "default_sweeps", "random_conductances"]


def default_sweeps(sizes: Sequence[int]) -> int:
    """Return the sweeps of a phase: 4 with one hidden layer, one more for each further one."""
    return len(sizes) + 1


def random_conductances(
    sizes: Sequence[int], g_max: float, seed: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return uniform conductances (N_below, N_above) S between 0 and ``g_max`` for every pair of layers."""
    generator = torch.Generator().manual_seed(seed)
    return [g_max * torch.rand(pair, generator=generator, dtype=dtype) for pair in itertools.pairwise(sizes)]


class _Network:
    """Conductances and diodes. ``weights[l]`` is (N_above, N_below) S, ``biases[l]`` (N_above, lines) S.

    ``conductances`` and ``biases`` are given (N_below, N_above) and (lines, N_above); the lines are held
    at ``bias_voltages`` [V].
    """

    def __init__(
        self,
        conductances: Sequence[Tensor],
        *,
        beta: float,
        nudge_conductance: float,
        g_min: float,
        g_max: float,
        sweeps: int | None = None,
        biases: Sequence[Tensor] = (),
        bias_voltages: Sequence[float] = (),
    ) -> None:
        self.weights = [g.t().contiguous() for g in conductances]
        self.biases = [g.t().contiguous() for g in biases]
        self.dtype = self.weights[0].dtype
        self.sizes = [self.weights[0].shape[1], *(g.shape[0] for g in self.weights)]
        self.bias_voltages = torch.tensor(bias_voltages, dtype=self.dtype)
        self.beta = beta
        self.nudge_conductance = nudge_conductance
        self.g_min = g_min
        self.g_max = g_max
        self.sweeps = sweeps or default_sweeps(self.sizes)
        self.lower, self.upper, self.polarity = [], [], []
        for size in self.sizes[1:-1]:
            even = torch.arange(size) % 2 == 0
            zero, infinite = torch.zeros((), dtype=self.dtype), torch.full((), torch.inf, dtype=self.dtype)
            self.lower.append(torch.where(even, zero, -infinite))
            self.upper.append(torch.where(even, infinite, zero))
            self.polarity.append(torch.where(even, 1.0, -1.0).to(self.dtype))

    def conductance(self, layer: int) -> Tensor:
        """Return the conductances below layer ``layer`` (from 0 for the first hidden one), as given."""
        return self.weights[layer].t()

    def residual(self, inputs: Tensor, states: Sequence[Tensor]) -> float:
        """Return the largest current that does not balance, over the largest of any node's |g v| sums."""
        layers, worst, largest = [inputs, *states], 0.0, 0.0
        for k, v in enumerate(states):
            current, total = layers[k] @ self.weights[k].t(), self.weights[k].sum(1)
            if k + 1 < len(states):
                current = current + layers[k + 2] @ self.weights[k + 1]
                total = total + self.weights[k + 1].sum(0)
            if self.biases:
                current = current + self.biases[k] @ self.bias_voltages
                total = total + self.biases[k].sum(1)
            leaving = total * v - current
            if k < len(self.lower):
                # The diode takes whatever pushes a node of 0 V beyond it.
                pushed = (v == 0) & (leaving * self.polarity[k] > 0)
                leaving = torch.where(pushed, 0.0, leaving)
            worst = max(worst, leaving.abs().max().item())
            largest = max(largest, (total * v).abs().max().item())
        return worst / largest


class ResistiveNetwork(_Network):
    """The lean step, for batches of one size.

    ``mirrored``: the inputs are (x, -x), and `step` is given x alone. Currents and outer products then
    take half the arithmetic: x (g+ - g-), and one product that one half gets with the other sign.
    """

    def __init__(
        self, conductances: Sequence[Tensor], *, batch: int, mirrored: bool = False, **settings: Any
    ) -> None:
        super().__init__(conductances, **settings)
        self.batch = batch

        def buffers(rows: int, sizes: Sequence[int], value: float = 0.0) -> list[Tensor]:
            return [torch.full((rows, size), value, dtype=self.dtype) for size in sizes]

        # Free states v have a last row of -1, signals s one of sum_b s_i v_i. One product of the two then
        # gives all that the conductances change by; where the lower layer moves too, a second one.
        nodes, width = self.sizes[1:], self.sizes[0] // 2 if mirrored else self.sizes[0]
        self._v_rows, self._s_rows = buffers(batch + 1, [width, *nodes], -1.0), buffers(batch + 1, nodes)
        self._v_columns, self._s_columns = ([a.t() for a in rows] for rows in (self._v_rows, self._s_rows))
        self._v, self._s = ([a[:batch] for a in rows] for rows in (self._v_rows, self._s_rows))
        self._s_last = [a[batch] for a in self._s_rows]
        self._products = buffers(batch, nodes)
        self._bias_rows = torch.cat(
            [self.bias_voltages.expand(batch, -1), -torch.ones_like(self.bias_voltages)[None]]
        )
        # Both nudged phases: rows of +beta, then rows of -beta.
        self._nudged = buffers(2 * batch, nodes)
        self._nudged_pairs = [v.view(2, batch, -1) for v in self._nudged]
        (self._currents,), (self._currents_twice,) = buffers(batch, nodes[:1]), buffers(2 * batch, nodes[:1])
        (self._nudge_currents,) = buffers(2 * batch, nodes[-1:])
        self._nudge = torch.tensor([1.0, -1.0], dtype=self.dtype)[:, None, None]
        self._nudge *= self.beta * self.nudge_conductance
        self._transposed = [g.t() for g in self.weights]
        first, half = self.weights[0], self.sizes[0] // 2
        self._halves = (first[:, :half], first[:, half:]) if mirrored else None
        self._difference = torch.zeros_like(first[:, :half]) if mirrored else first

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Tensor:
        """Learn from inputs (B, n) V and targets (B, K) V; return the free outputs (B, K) V.

        Conductances move by ``-rate`` [S^2/W] times dC/dg, within their window. The outputs are
        overwritten by the next step.
        """
        with torch.inference_mode():
            self._settle(inputs, targets)
            self._learn(rate / (2 * self.beta * self.batch))
        return self._v[-1]

    def free_states(self, inputs: Tensor) -> list[Tensor]:
        """Return copies of the layers' voltages (B, N) V in the free phase."""
        with torch.inference_mode():
            self._settle(inputs, torch.zeros((self.batch, self.sizes[-1]), dtype=self.dtype))
            return [v.clone() for v in self._v[1:]]

    def _settle(self, inputs: Tensor, targets: Tensor) -> None:
        """Run all phases, from what is the same in every sweep: input and nudge currents, totals."""
        x = self._v[0].copy_(inputs)
        if self._halves is not None:
            torch.sub(*self._halves, out=self._difference)
        torch.mm(x, self._difference.t(), out=self._currents)
        self._totals = [g.sum(1) for g in self.weights]
        for total, above in zip(self._totals, self.weights[1:], strict=False):
            total += above.sum(0)
        pair = self._nudge_currents.view(2, self.batch, -1)
        torch.mul(targets, self._nudge, out=pair)
        if self.biases:
            self._bias_currents = [g @ self.bias_voltages for g in self.biases]
            for total, g in zip(self._totals, self.biases, strict=True):
                total += g.sum(1)
            self._currents += self._bias_currents[0]
            pair += self._bias_currents[-1]
        self._nudged_inverse = (self._totals[-1] + self._nudge).reciprocal_()
        if len(self.sizes) == 3:
            self._one_hidden_layer()
        else:
            self._several_hidden_layers()

    def _one_hidden_layer(self) -> None:
        """Sweep with |v|: diode signs and 1 / total go into copies of the small output matrix."""
        output, sign = self.weights[1], self.polarity[0]
        scale = sign / self._totals[0]
        up, down = (output * sign).t(), output * scale
        up_scaled = up / self._totals[1]
        base = self._currents.mul_(scale)
        h, y = self._v[1:]
        torch.clamp_min(base, 0.0, out=h)
        for sweep in range(self.sweeps):
            if sweep:
                torch.addmm(base, y, down, out=h).relu_()
            if self.biases:
                torch.addmm(self._bias_currents[1] / self._totals[1], h, up_scaled, out=y)
            else:
                torch.mm(h, up_scaled, out=y)
        h2, y2 = self._nudged
        self._nudged_pairs[0].copy_(h)
        twice, y_pair = self._currents_twice, self._nudged_pairs[1]
        twice.view(2, self.batch, -1).copy_(base)
        for _ in range(self.sweeps):
            torch.addmm(self._nudge_currents, h2, up, out=y2)
            y_pair.mul_(self._nudged_inverse)
            torch.addmm(twice, y2, down, out=h2).relu_()
        h.mul_(sign)
        h2.mul_(sign)

    def _several_hidden_layers(self) -> None:
        scales = [total.reciprocal() for total in self._totals]
        last = len(self.weights) - 1

        def relax(states: Sequence[Tensor], k: int, currents: Tensor) -> None:
            v = states[k]
            if k == 0:
                torch.addmm(currents, states[1], self.weights[1], out=v)
            else:
                torch.mm(states[k - 1], self._transposed[k], out=v)
                v.addmm_(states[k + 1], self.weights[k + 1])
                if self.biases:
                    v.add_(self._bias_currents[k])
            v.mul_(scales[k])
            torch.clamp(v, self.lower[k], self.upper[k], out=v)

        free, nudged = self._v[1:], self._nudged
        for v in free:
            v.zero_()
        for _ in range(self.sweeps):
            for k in range(last):
                relax(free, k, self._currents)
            torch.mm(free[-2], self._transposed[-1], out=free[-1])
            if self.biases:
                free[-1].add_(self._bias_currents[-1])
            free[-1].mul_(scales[-1])
        self._currents_twice.view(2, self.batch, -1).copy_(self._currents)
        for v, pair in zip(free, self._nudged_pairs, strict=True):
            pair.copy_(v)
        for _ in range(self.sweeps):
            torch.addmm(self._nudge_currents, nudged[-2], self._transposed[-1], out=nudged[-1])
            self._nudged_pairs[-1].mul_(self._nudged_inverse)
            for k in reversed(range(last)):
                relax(nudged, k, self._currents_twice)

    def _learn(self, step: float) -> None:
        """Subtract the sum over the batch of (s_i - s_j)(v_i - v_j), with s not yet over 2 beta."""
        for k, g in enumerate(self.weights):
            plus, minus = self._nudged_pairs[k]
            s = torch.sub(plus, minus, out=self._s[k])
            torch.sum(torch.mul(s, self._v[k + 1], out=self._products[k]), 0, out=self._s_last[k])
            if k:
                g.addmm_(self._s_columns[k], self._v_rows[k], alpha=step)
                g.addmm_(self._v_columns[k + 1], self._s_rows[k - 1], alpha=step)
            elif self._halves is None:
                g.addmm_(self._s_columns[0], self._v_rows[0], alpha=step)
            else:
                torch.mm(s.t(), self._v[0], out=self._difference)
                g.sub_(self._s_last[0][:, None], alpha=step)
                self._halves[0].add_(self._difference, alpha=step)
                self._halves[1].sub_(self._difference, alpha=step)
            g.clamp_(self.g_min, self.g_max)
        for g, s_columns in zip(self.biases, self._s_columns, strict=False):
            g.addmm_(s_columns, self._bias_rows, alpha=step).clamp_(self.g_min, self.g_max)


class PublishedStyle(_Network):
    """The same step as the published code takes it, in our own words: nothing kept, everything in float32.

    Input currents and sums of conductances are formed in every sweep. The gradient is
    ``mean_b ((v_i+ - v_j+)^2 - (v_i- - v_j-)^2) / (4 beta)``, a difference of nearly equal numbers:
    ``broadcast`` forms every drop (B, M, N), otherwise the squares are expanded into products.
    """

    def __init__(self, conductances: Sequence[Tensor], *, broadcast: bool = True, **settings: Any) -> None:
        super().__init__(conductances, **settings)
        if self.biases:
            raise ValueError("the published style has no bias lines here: add constant inputs instead")
        self.broadcast = broadcast

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Tensor:
        """Learn as `ResistiveNetwork.step` does."""
        with torch.inference_mode():
            free = [torch.zeros((len(inputs), size), dtype=self.dtype) for size in self.sizes[1:]]
            order = list(range(len(free)))
            self._relax(inputs, free, order, targets, 0.0)
            plus, minus = list(free), list(free)
            self._relax(inputs, plus, order[::-1], targets, self.beta)
            self._relax(inputs, minus, order[::-1], targets, -self.beta)
            plus, minus = [inputs, *plus], [inputs, *minus]
            for k, g in enumerate(self.weights):
                squared = self._squared_drops(plus[k + 1], plus[k])
                slope = (squared - self._squared_drops(minus[k + 1], minus[k])) / (4 * self.beta)
                g.sub_(slope, alpha=rate).clamp_(self.g_min, self.g_max)
        return free[-1]

    def _relax(
        self, inputs: Tensor, states: list[Tensor], order: list[int], targets: Tensor, beta: float
    ) -> None:
        last = len(states) - 1
        for _ in range(self.sweeps):
            for k in order:
                below = states[k - 1] if k else inputs
                current = below @ self.weights[k].t()
                total = self.weights[k].sum(1)
                if k < last:
                    current = current + states[k + 1] @ self.weights[k + 1]
                    total = total + self.weights[k + 1].sum(0)
                    states[k] = torch.clamp(current / total, self.lower[k], self.upper[k])
                else:
                    g = beta * self.nudge_conductance
                    states[k] = (current + g * targets) / (total + g)

    def _squared_drops(self, above: Tensor, below: Tensor) -> Tensor:
        if self.broadcast:
            return (above[:, :, None] - below[:, None, :]).square().mean(0)
        squares = above.square().mean(0)[:, None] + below.square().mean(0)
        return squares - (2 / len(above)) * (above.t() @ below)
