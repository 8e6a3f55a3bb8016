"""An MLP of many experts, of which every token takes a few.

Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Fedus et al. 2021, https://arxiv.org/abs/2101.03961.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoform.reference.modules import ops
from isoform.reference.modules.layers import Linear


class Stacked(nn.Module):
    """The matrices of all experts in one tensor, (experts, out, in)."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))


class Experts(nn.Module):
    """Gate, up and down of every expert."""

    def __init__(self, count: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = Stacked(count, dim, hidden), Stacked(count, dim, hidden)
        self.down = Stacked(count, hidden, dim)


class RoutedMLP(nn.Module):
    """A router that scores the experts for each token, and gated MLPs with SiLU, of which the best `used` are added.

    `normalize`: the weights of those add up to 1.
    """

    def __init__(self, dim: int, hidden: int, count: int, used: int, normalize: bool) -> None:
        super().__init__()
        self.router = Linear(dim, count, False)
        self.experts = Experts(count, dim, hidden)
        self.used, self.normalize = used, normalize

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C)."""
        matrices = self.experts.gate.weight, self.experts.up.weight, self.experts.down.weight
        y: Tensor = ops.routed_experts(x, self.router(x), *matrices, self.used, int(self.normalize))
        return y
