"""An MLP of experts whose matrices are packed one by one, so that a token reads those of the experts that it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.modules.experts import RoutedMLP
from isoform.runtimes.backends.torch.linear import PackedLinear
from isoform.runtimes.backends.torch.operations import gated


class PackedRoutedMLP(nn.Module):
    """`RoutedMLP` with one product for gate and up of an expert. Its router stays as it is."""

    def __init__(self, mlp: RoutedMLP, pack: Callable[[Tensor, Tensor | None], PackedLinear]) -> None:
        super().__init__()
        self.router, self.used, self.normalize = mlp.router, mlp.used, mlp.normalize
        self.alpha, self.shift, self.limit = mlp.alpha, mlp.shift, mlp.limit
        gate, up, down = mlp.experts.gate, mlp.experts.up, mlp.experts.down
        every = range(len(gate.weight))

        def bias(stacks: tuple[Tensor | None, ...], n: int) -> Tensor | None:
            held = [stack[n] for stack in stacks if stack is not None]
            return torch.cat(held) if held else None

        self.gate_up = nn.ModuleList(
            pack(torch.cat((gate.weight[n], up.weight[n])), bias((gate.bias, up.bias), n)) for n in every
        )
        self.down = nn.ModuleList(pack(down.weight[n], bias((down.bias,), n)) for n in every)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C)."""
        tokens = x.flatten(0, 1)
        weights, chosen = torch.softmax(self.router(tokens), -1, dtype=torch.float32).topk(self.used, -1)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        if len(tokens) == 1:
            ranks = chosen[0].tolist()
            parts = torch.stack([self._expert(n, tokens)[0] for n in ranks])
            return (weights @ parts).view(x.shape)
        # In the order of their experts, so that each has its tokens beside each other.
        order = chosen.flatten().argsort(stable=True)
        rows = order // self.used
        gathered, found = tokens[rows], torch.empty((len(order), tokens.shape[1]), dtype=x.dtype)
        start = 0
        for n, count in enumerate(torch.bincount(chosen.flatten(), minlength=len(self.down)).tolist()):
            if count:
                found[start : start + count] = self._expert(n, gathered[start : start + count])
                start += count
        found *= weights.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(tokens).index_add_(0, rows, found).view(x.shape)

    def _expert(self, n: int, x: Tensor) -> Tensor:
        """Shapes: x (M, C) -> (M, C)."""
        both = self.gate_up[n](x)
        if both.dtype == torch.bfloat16 and not self.limit and not self.shift:
            inner = gated(both, (self.alpha, 0.0))
        else:
            g, u = both.chunk(2, -1)
            if self.limit:
                g, u = g.clamp(max=self.limit), u.clamp(-self.limit, self.limit)
            inner = (F.silu(g) if self.alpha == 1 else g * torch.sigmoid(self.alpha * g)) * (u + self.shift)
        y: Tensor = self.down[n](inner)
        return y
