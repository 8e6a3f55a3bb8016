"""What detectors make of the state of a query: logits of its class, and its box."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.modules.layers import Linear


class Head(nn.Module):
    """Linear layers of these sizes with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(inner, out) for inner, out in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for n, layer in enumerate(self.layers):
            x = layer(F.relu(x) if n else x)
        return x
