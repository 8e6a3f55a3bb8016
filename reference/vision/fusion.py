"""The convolutions by which maps of several scales are fused to one (Ranftl et al. 2021, arXiv 2103.13413)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.modules.layers import FrozenBatchNorm
from isoform.reference.vision.convolutions import Conv


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), with batch norms after the convolutions where `norms`."""

    def __init__(self, dim: int, bias: bool, norms: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (Conv(dim, dim, 3, padding=1, bias=bias) for _ in range(2))
        self.norm1, self.norm2 = (FrozenBatchNorm(dim) if norms else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(y)))
