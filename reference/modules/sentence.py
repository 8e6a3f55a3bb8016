"""The modules that sentence-transformers puts after a model, in torch, and a model with them as its last part.

Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.modules.layers import Linear, first_token
from isoform.sentence_modules import (
    SENTENCE,
    TOKENS,
    Dense,
    LayerNorm,
    LayerPooling,
    Module,
    Normalize,
    Pooling,
    Truncate,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ELU": lambda x: torch.where(x > 0, x, torch.exp(x.clamp(max=0)) - 1),
    "GELU": F.gelu,
    "Identity": lambda x: x,
    "LeakyReLU": lambda x: torch.where(x > 0, x, 0.01 * x),
    "ReLU": F.relu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
    "Softplus": lambda x: x.clamp(min=0) + torch.log(1 + torch.exp(-x.abs())),
    "Tanh": torch.tanh,
}

_seen: ContextVar[list[Tensor] | None] = ContextVar("states of the layers in this pass", default=None)


class DenseModule(nn.Module):
    """activation(linear(x)), plus x or `residual(x)` where the module says so."""

    def __init__(self, step: Dense) -> None:
        super().__init__()
        self.linear = Linear(step.size_in, step.size_out, step.bias)
        self.projects = step.residual and step.size_in != step.size_out
        if self.projects:
            self.residual = Linear(step.size_in, step.size_out, False)
        self.adds, self.act = step.residual, ACTIVATIONS[step.activation]

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.linear(x))
        return y + (self.residual(x) if self.projects else x) if self.adds else y


class LayerNormModule(nn.Module):
    """A layer norm with torch's epsilon."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class LayerPoolingModule(nn.Module):
    """The weighted mean of the states after several layers."""

    def __init__(self, step: LayerPooling) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.ones(max(step.layers + 1 - step.start, 0)))
        self.start = step.start

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        kept = layers[self.start :]
        total = self.layer_weights[0] * kept[0]
        for n in range(1, len(kept)):
            total = total + self.layer_weights[n] * kept[n]
        return total / self.layer_weights.sum()


class SentenceHead(nn.Module):
    """The states of tokens to one vector for each text: `name_of` gives the names of the modules with weights."""

    def __init__(self, steps: Sequence[Module]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        for n, step in enumerate(steps):
            if isinstance(step, Dense):
                self.add_module(name_of(n, step), DenseModule(step))
            elif isinstance(step, LayerNorm):
                self.add_module(name_of(n, step), LayerNormModule(step.size))
            elif isinstance(step, LayerPooling):
                self.add_module(name_of(n, step), LayerPoolingModule(step))

    def forward(self, states: Tensor, mask: Tensor, layers: Sequence[Tensor] = ()) -> Tensor:
        """Shapes: states (B, T, C), mask (B, T), each of `layers` as the states -> (B, E)."""
        values = {TOKENS: states}
        for n, step in enumerate(self.steps):
            if isinstance(step, Pooling):
                pooled = [pool(values[TOKENS], mask, mode) for mode in step.modes]
                values[SENTENCE] = pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1)
            elif isinstance(step, Normalize):
                values[step.target] = normalize(values[step.source])
            elif isinstance(step, Dense):
                values[step.target] = self.get_submodule(name_of(n, step))(values[step.source])
            elif isinstance(step, LayerNorm):
                values[SENTENCE] = self.get_submodule(name_of(n, step))(values[SENTENCE])
            elif isinstance(step, Truncate):
                values[SENTENCE] = values[SENTENCE][:, : step.size]
            else:
                values[TOKENS] = self.get_submodule(name_of(n, step))(layers)
        return values[SENTENCE]


def name_of(n: int, step: Module) -> str:
    """The name of step `n` in the head: "dense_1"."""
    kinds: dict[type, str] = {Dense: "dense", LayerNorm: "norm", LayerPooling: "layers"}
    return f"{kinds[type(step)]}_{n}"


def pool(states: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Sums are in float32 at least. Shapes: states (B, T, C), mask (B, T) -> (B, C)."""
    if mode == "cls":
        return first_token(states, mask)
    if mode == "max":
        return states.masked_fill((mask == 0).unsqueeze(-1), torch.finfo(states.dtype).min).amax(1)
    order = mask.cumsum(1) * mask  # 1 for the first token of the text
    if mode == "lasttoken":
        last = order.argmax(1).unsqueeze(-1).unsqueeze(-1).expand(-1, 1, states.shape[-1])
        return states.gather(1, last).squeeze(1)
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    weights = (order if mode == "weightedmean" else mask).to(wide.dtype).unsqueeze(-1)
    total, count = (wide * weights).sum(1), weights.sum(1).clamp(min=1e-9)
    return (total / (torch.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)).to(states.dtype)


def normalize(x: Tensor) -> Tensor:
    """Over the last axis, to length 1."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / torch.sqrt((wide * wide).sum(-1, True)).clamp(min=1e-12)).to(x.dtype)


class SentenceEncoder(nn.Module):
    """A headless model and its `sentence` modules: the vectors of the texts are the output after the states.

    The model's own modules keep their names: this one registers them as its own.
    """

    def __init__(self, trunk: nn.Module, steps: Sequence[Module]) -> None:
        super().__init__()
        self._trunk = (trunk,)  # a tuple, so that torch does not register its modules a second time
        self._parameters, self._buffers = trunk._parameters, trunk._buffers
        self._modules = {**trunk._modules, "sentence": SentenceHead(steps)}
        self._pools_layers = any(isinstance(step, LayerPooling) for step in steps)
        if self._pools_layers:
            _watch(trunk, steps)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Tensor, ...]:
        """The inputs of the model -> its states (B, T, C), the vectors (B, E), then its other outputs."""
        (trunk,) = self._trunk
        given = inspect.signature(trunk.forward).bind(*inputs, **named).arguments
        token = _seen.set([] if self._pools_layers else None)
        try:
            states, *others = trunk(*inputs, **named)
            layers = _seen.get() or []
        finally:
            _seen.reset(token)
        if (mask := given.get("attention_mask")) is None:
            mask = torch.ones_like(given["input_ids"])
        if others:  # a decoder, whose mask spans the slots before this step as well
            mask = mask[:, mask.shape[1] - states.shape[1] :]
        # The last layer's states are those after the model's last norm, where it has one.
        return states, self.sentence(states, mask, [*layers[:-1], states]), *others

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_trunk":
                raise
            return getattr(self._trunk[0], name)


def _watch(trunk: nn.Module, steps: Sequence[Module]) -> None:
    """Note the states before the first layer and after each, in every pass that asks for them."""
    layers = getattr(trunk, "layers", None)
    plain = isinstance(layers, nn.ModuleList) and getattr(trunk, "plain_layers", True)
    if not isinstance(layers, nn.ModuleList) or not plain or len(getattr(trunk, "order", layers)) != len(layers):
        raise UnsupportedModel("WeightedLayerPooling is not computed over shared layers, or ones with a convolution")
    for step in steps:
        if isinstance(step, LayerPooling) and step.layers != (held := len(layers)):
            raise CheckpointError(
                f"{step.folder}/config.json: the module weighs {step.layers} layers, the model has {held}"
            )
    layers[0].register_forward_pre_hook(lambda module, inputs: _see(inputs[0]))
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: _see(output))


def _see(state: Any) -> None:
    if (seen := _seen.get()) is not None:
        seen.append(state[0] if isinstance(state, tuple) else state)
