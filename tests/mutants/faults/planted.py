"""What a fault is, and the ways of planting one that several families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.mutants.planting import FORMS, Config, Plant, Tensors

GRAPHS = tuple(form for form in FORMS if not form.startswith("gguf"))
SINGLE = ("onnx f32", "onnx int8", "torchscript f32")
FLOATS_ONLY = ("onnx f32", "torchscript f32")
NOT_LOOKED_INTO = "a quantized part that reads encoder states is measured on rows alone, and not bisected"


@dataclass(frozen=True)
class Fault:
    """`places` are regular expressions, one of which the place of the first departure must match, and that of every
    bisection of the graph; without a departure the note of the first failed result. `missing` says why a form is not
    among `forms`, where the fault could be there."""

    name: str
    source: str
    plant: Plant
    places: tuple[str, ...]
    forms: tuple[str, ...] = FORMS
    missing: str = ""


def swap(one: str, other: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for leaf in ("weight", "bias"):
            a, b = f"{one}.{leaf}", f"{other}.{leaf}"
            if a in tensors:
                tensors[a], tensors[b] = tensors[b], tensors[a]

    return change


def on(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return apply


def setting(**values: Any) -> Callable[[Config], None]:
    return lambda config: config.update(values)


def part(module: nn.Module, path: str) -> Any:
    return module.get_submodule(path)


def forward(path: str, make: Callable[[Any, nn.Module], Callable[..., Any]]) -> Callable[[nn.Module], None]:
    """Give a module another forward pass: `make` gets it and the whole."""

    def change(module: nn.Module) -> None:
        found = part(module, path) if path else module
        found.forward = make(found, module)

    return change


def takes_the_weight_of(other: str) -> Callable[[Any, nn.Module], Callable[..., Any]]:
    def make(found: Any, whole: nn.Module) -> Callable[..., Any]:
        return lambda x: F.linear(x, part(whole, other).weight, part(whole, other).bias)

    return make


def padding_ignored(module: nn.Module) -> None:
    honest = module.forward
    module.forward = lambda ids, mask, *rest: honest(ids, torch.ones_like(mask), *rest)


def learned_positions_one_late(found: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda ids: F.embedding(ids + 1, found.weight)


def wrong_epsilon(module: nn.Module) -> None:
    norm = part(module, "layers.1.mlp_norm" if hasattr(part(module, "layers.1"), "mlp_norm") else "layers.1.out_norm")
    norm.eps = norm.eps * 10 if norm.eps > 1e-9 else 1e-6


def activation(act: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        part(module, "layers.1.mlp").act = act

    return change


def distances_one_late(module: nn.Module) -> None:
    table = part(module, "buckets")
    table.numbers = table.numbers.roll(1)


def left_out(path: str) -> Callable[[nn.Module], None]:
    """A module that gives what it gets."""
    return forward(path, lambda found, whole: lambda x: x)


CONVOLUTIONS = "a model of convolutions has no matrix to quantize"


LAYER = "model.layers.1"
