"""Convolutions of pictures (B, C, H, W), with the batch normalization that follows them in one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.modules.layers import FrozenBatchNorm, activation
from isoform.reference.rules import Rename, Rule, batch_norm


class Conv(nn.Conv2d):
    """nn.Conv2d without its random initialisation: weights come from a checkpoint."""

    def reset_parameters(self) -> None:
        pass


class Upsample(nn.ConvTranspose2d):
    """nn.ConvTranspose2d without its random initialisation."""

    def reset_parameters(self) -> None:
        pass


class ConvNorm(nn.Module):
    """A convolution without a bias, a batch normalization and an activation, or none.

    The normalization scales the convolution's weights and shifts its result, so that pictures are passed over once; an
    engine that loads a graph computes these weights once. Padding keeps the size of a picture at a stride of 1.
    """

    def __init__(
        self, inner: int, out: int, size: int, stride: int = 1, act: str | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.conv = Conv(inner, out, size, stride, size // 2, bias=False)
        self.norm = FrozenBatchNorm(out, eps)
        self.act = activation("linear" if act is None else act)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The weights of the convolution with the normalization in them, (C out, C, size, size), and its bias."""
        scale, shift = self.norm.scale_and_shift()
        return self.conv.weight * scale.view(-1, 1, 1, 1), shift

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded()
        return self.act(F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding))


def conv_norm(hub: Sequence[str], canonical: str) -> tuple[Rule, ...]:
    """The rules of a `ConvNorm`: `hub` names the convolution and the normalization."""
    conv, norm = hub
    return (Rename(conv, f"{canonical}.conv"), *batch_norm(norm, f"{canonical}.norm"))
