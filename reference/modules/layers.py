"""The layers that families compose. They take plain arguments, never a config.

Axis letters: B batch, T new positions, P cached positions, S = P + T, C channels, D head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.modules import ops
from isoform.reference.modules.rotary import Rope as Rope

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "linear": lambda x: x,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""config.json's `hidden_act` names."""


def activation(name: str) -> Activation:
    """Raises UnsupportedModel for a name that no layer knows."""
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"activation {name!r} is not supported; isoform knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Linear(nn.Linear):
    """nn.Linear without its random initialisation: weights come from a checkpoint."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding without its random initialisation."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """`ops.rms_norm` with a weight of `dim` channels."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class FrozenBatchNorm(nn.Module):
    """Batch normalization by the statistics of the training, which the checkpoint stores: they are parameters too.

    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167. `rules.batch_norm` gives the names of the Hub.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.mean, self.var = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(dim))
        self.eps = eps

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What a channel is multiplied by, and what is added then: (C,) each."""
        scale = self.weight / torch.sqrt(self.var + self.eps)
        return scale, self.bias - self.mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Channels are the second axis: (B, C, ...) -> (B, C, ...)."""
        scale, shift = self.scale_and_shift()
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * scale.view(shape) + shift.view(shape)


def true_positions(mask: Tensor) -> Tensor:
    """The position of each slot among the real tokens of its row: mask (B, S) -> (B, S); padding repeats the last."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def hidden(dtype: torch.dtype) -> float:
    """What is added to a score to hide it: so low that its softmax is 0, half the range so that no sum overflows."""
    return torch.finfo(dtype).min / 2


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Hide padding from every query: mask (B, S) -> (B, 1, 1, S)."""
    return ((1 - mask.to(dtype)) * hidden(dtype)).unsqueeze(1).unsqueeze(1)


def causal_bias(mask: Tensor, positions: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Hide padding, the future and what left the window, by true positions, so that the side of the padding is free.

    Shapes: mask (B, S), positions of the queries (B, T) -> (B, 1, T, S).
    """
    keys = (mask.cumsum(1) - 1).unsqueeze(1)
    queries = positions.unsqueeze(2)
    seen = (keys <= queries) & (mask != 0).unsqueeze(1)
    if window is not None:
        seen = seen & (queries - keys < window)
    return ((~seen).to(dtype) * hidden(dtype)).unsqueeze(1)


def window_bias(mask: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Hide padding, and what is at a true distance of `window` or more on either side.

    Shapes: mask (B, S) -> (B, 1, S, S), or (B, 1, 1, S) without a window.
    """
    if window is None:
        return padding_bias(mask, dtype)
    places = true_positions(mask)
    near = (places.unsqueeze(2) - places.unsqueeze(1)).abs() < window
    seen = near & (mask != 0).unsqueeze(1)
    return ((~seen).to(dtype) * hidden(dtype)).unsqueeze(1)


def head_size(dim: int, heads: int, name: str = "hidden_size", count: str = "num_attention_heads") -> int:
    """Channels of a head, all of them together being `dim`. Raises CheckpointError when they do not come out even.

    `name` and `count` are what config.json calls the two.
    """
    if dim % heads:
        raise CheckpointError(f"config.json: {name} {dim} is no multiple of {count} {heads}")
    return dim // heads


def first_token(x: Tensor, mask: Tensor) -> Tensor:
    """The state of each row's first real token: x (B, T, C), mask (B, T) -> (B, C)."""
    start = mask.argmax(1).unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[-1])
    return x.gather(1, start).squeeze(1)


def last_token(x: Tensor, mask: Tensor) -> Tensor:
    """The state of each row's last real token: x (B, T, C), mask (B, T) -> (B, C)."""
    end = mask.cumsum(1).argmax(1).unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[-1])
    return x.gather(1, end).squeeze(1)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)). Shazeer 2020, https://arxiv.org/abs/2002.05202"""

    def __init__(self, dim: int, hidden: int, act: str, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up, self.down = Linear(dim, hidden, bias), Linear(dim, hidden, bias), Linear(hidden, dim, bias)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return y


class MergedMLP(nn.Module):
    """A `GatedMLP` whose gate and up projections are one matrix, as the checkpoint has it."""

    def __init__(self, dim: int, hidden: int, act: str, bias: bool = False) -> None:
        super().__init__()
        self.gate_up, self.down = Linear(dim, 2 * hidden, bias), Linear(hidden, dim, bias)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        y: Tensor = self.down(self.act(gate) * up)
        return y


class MLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, dim: int, hidden: int, act: str) -> None:
        super().__init__()
        self.up, self.down = Linear(dim, hidden), Linear(hidden, dim)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.up(x)))
        return y
