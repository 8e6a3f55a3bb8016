"""An MLP of many experts, of which every token takes a few.

Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Fedus et al. 2021, https://arxiv.org/abs/2101.03961.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoform.reference.modules import ops
from isoform.reference.modules.layers import Linear


class Stacked(nn.Module):
    """The matrices of all experts in one tensor, (experts, out, in), and their biases (experts, out)."""

    def __init__(self, count: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(count, outputs)) if bias else None


class Experts(nn.Module):
    """Gate, up and down of every expert."""

    def __init__(self, count: int, dim: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = Stacked(count, dim, hidden, bias), Stacked(count, dim, hidden, bias)
        self.down = Stacked(count, hidden, dim, bias)


class RoutedMLP(nn.Module):
    """A router that scores the experts for each token, and gated MLPs, of which the best `used` are added.

    `normalize`: the weights of those add up to 1. `bias`: of the router and of every matrix. The gate is
    g * sigmoid(alpha * g) * (u + shift), of values cut at `limit` (0: none).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        count: int,
        used: int,
        normalize: bool,
        *,
        bias: bool = False,
        alpha: float = 1.0,
        shift: float = 0.0,
        limit: float = 0.0,
    ) -> None:
        super().__init__()
        self.router = Linear(dim, count, bias)
        self.experts = Experts(count, dim, hidden, bias)
        self.used, self.normalize = used, normalize
        self.alpha, self.shift, self.limit = alpha, shift, limit

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C)."""
        stacks = self.experts.gate, self.experts.up, self.experts.down
        matrices, biases = (stack.weight for stack in stacks), (stack.bias for stack in stacks)
        settings = self.used, int(self.normalize), self.alpha, self.shift, self.limit
        y: Tensor = ops.routed_experts(x, self.router(x), *matrices, *biases, *settings)
        return y
