"""Backpropagation in PyTorch: a plain network, and the twin of a network of buffered crossbars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["BufferedLayer", "BufferedTwin", "PlainNetwork"]


class PlainNetwork:
    """Linear layers with tanh between them, cross entropy, and plain gradient descent.

    ``sizes`` are e.g. 784, 512, 10. The step is what a careful user writes: batches are slices of a
    tensor, gradients are dropped rather than zeroed, and the update is torch's fused one.
    """

    def __init__(
        self, sizes: Sequence[int], *, rate: float, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(seed)
        modules: list[torch.nn.Module] = []
        for below, above in itertools.pairwise(sizes):
            modules += [torch.nn.Linear(below, above, dtype=dtype), torch.nn.Tanh()]
        self.network = torch.nn.Sequential(*modules[:-1])
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=rate, fused=True)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Learn from inputs (B, n) and classes (B,); return the mean cost."""
        self.optimiser.zero_grad(set_to_none=True)
        cost = cross_entropy(self.network(inputs), labels)
        cost.backward()
        self.optimiser.step()
        return cost.detach()


@dataclass(kw_only=True, eq=False)
class BufferedLayer:
    """One layer of summing nodes, each with its buffer.

    ``g_plus``, ``g_minus`` (M, N) S; ``bias_plus``, ``bias_minus`` (1, N) S on lines at +/-
    ``bias_voltage`` [V]; ``leak`` [S]. Node and buffer:

        v_i = sum_j (g+_ji - g-_ji) r_j / (leak + sum_j (g+_ji + g-_ji)),   r_i = sat tanh(gain v_i / sat)

    where the bias line is one more j. The last layer's ``gain`` is not used: its nodes are read.
    """

    g_plus: Tensor
    g_minus: Tensor
    bias_plus: Tensor | None = None
    bias_minus: Tensor | None = None
    bias_voltage: float = 0.0
    leak: float = 0.0
    gain: float = 1.0
    saturation: float = math.inf

    def nodes(self, words: Tensor) -> Tensor:
        """Return node voltages (B, N) V for word voltages (B, M) V."""
        current = words @ (self.g_plus - self.g_minus)
        total = self.leak + (self.g_plus + self.g_minus).sum(0)
        if self.bias_plus is not None:
            assert self.bias_minus is not None
            current = current + self.bias_voltage * (self.bias_plus - self.bias_minus)
            total = total + (self.bias_plus + self.bias_minus).sum(0)
        return current / total

    def buffers(self, nodes: Tensor) -> Tensor:
        """Return buffer outputs (B, N) V."""
        if math.isinf(self.saturation):
            return self.gain * nodes
        return self.saturation * torch.tanh(self.gain / self.saturation * nodes)

    def parameters(self) -> list[Tensor]:
        return [g for g in (self.g_plus, self.g_minus, self.bias_plus, self.bias_minus) if g is not None]


@dataclass(kw_only=True, eq=False)
class BufferedTwin:
    """The circuit's own equations, differentiated by autograd and stepped by Adam in its window.

    Cost [W]: ``conductance * scale^2 * CE(softmax(y / scale), t)``, mean over the batch, y the last nodes.
    Step, with m, v the moments of dC/dg times window / conductance: ``g -= step * window * m_hat /
    (sqrt(v_hat) + 1e-10)``, then clipped to ``g_min`` ... ``g_max``. Every tensor has one precision, that of
    the conductances given; these are copied.
    """

    layers: list[BufferedLayer]
    conductance: float
    scale: float
    g_min: float
    g_max: float
    beta1: float = 0.9
    beta2: float = 0.999
    count: int = 0
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for layer in self.layers:
            for name in ("g_plus", "g_minus", "bias_plus", "bias_minus"):
                g = getattr(layer, name)
                if g is not None:
                    setattr(layer, name, g.detach().clone().requires_grad_(True))
        self.moments = [(torch.zeros_like(g), torch.zeros_like(g)) for g in self.parameters()]

    def parameters(self) -> list[Tensor]:
        """Return the conductances, layer by layer: plus, minus, bias plus, bias minus."""
        return [g for layer in self.layers for g in layer.parameters()]

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the last nodes (B, K) V for input line voltages (B, n) V."""
        words = inputs
        for layer in self.layers[:-1]:
            words = layer.buffers(layer.nodes(words))
        return self.layers[-1].nodes(words)

    def cost(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cost [W] for classes (B,)."""
        return self.conductance * self.scale**2 * cross_entropy(outputs / self.scale, labels)

    def gradients(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """Return dC/dg [W/S] in the order of `parameters`."""
        return list(torch.autograd.grad(self.cost(self.outputs(inputs), labels), self.parameters()))

    def step(self, inputs: Tensor, labels: Tensor, step: float) -> Tensor:
        """Learn from one batch, moving by ``step`` of the window at most or so; return the mean cost [W]."""
        cost = self.cost(self.outputs(inputs), labels)
        slopes = torch.autograd.grad(cost, self.parameters())
        window = self.g_max - self.g_min
        self.count += 1
        with torch.no_grad():
            for g, slope, (m, v) in zip(self.parameters(), slopes, self.moments, strict=True):
                # In units of the cost's curvature, so that float32 can hold the squares.
                slope = slope * (window / self.conductance)
                m.lerp_(slope, 1 - self.beta1)
                v.lerp_(slope.square(), 1 - self.beta2)
                size = (v / (1 - self.beta2**self.count)).sqrt_().add_(1e-10)
                g.addcdiv_(m, size, value=-step * window / (1 - self.beta1**self.count))
                g.clamp_(self.g_min, self.g_max)
        return cost.detach()

    def epoch(self, inputs: Tensor, labels: Tensor, parts: Sequence[Tensor], step: float) -> float:
        """Learn from ``parts`` of the samples, index tensors in their order; return the mean cost [W]."""
        total, count = 0.0, 0
        for rows in parts:
            total += float(self.step(inputs[rows], labels[rows], step)) * len(rows)
            count += len(rows)
        return total / count

    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        """Return the fraction of samples whose largest output is their class."""
        with torch.inference_mode():
            return float((self.outputs(inputs).argmax(1) == labels).double().mean())
