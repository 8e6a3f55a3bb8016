"""Replaces the linear layers of a module by packed ones, one after the other, and lets go of the floats.

Layers that read the same input become one product: queries, keys and values, or the two projections of a gated MLP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isoform.reference.modules.attention import Attention
from isoform.reference.modules.experts import RoutedMLP
from isoform.reference.modules.layers import GatedMLP, Linear, MergedMLP
from isoform.reference.names import HEAD, ROUTER
from isoform.runtimes.backends.torch.asked import asked
from isoform.runtimes.backends.torch.experts import PackedRoutedMLP
from isoform.runtimes.backends.torch.linear import HEADS, LAYERS, PackedLinear
from isoform.runtimes.backends.torch.operations import CURVES, gated

GATED = (GatedMLP, MergedMLP)
SIDE_BY_SIDE: dict[type[nn.Module], tuple[str, ...]] = {Attention: ("q", "k", "v"), GatedMLP: ("gate", "up")}
"""The layers of a module that are called on the same tensor, in turn."""

Pack = Callable[[Tensor, Tensor | None], PackedLinear]


class Merged:
    """The product that several layers have in common; it lasts from the first one's call to the last one's."""

    def __init__(self, packed: PackedLinear, sizes: list[int]) -> None:
        self.packed, self.sizes = packed, sizes
        self._made: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def take(self, number: int, x: Tensor) -> Tensor:
        """The columns of one layer: computed again where another input came in between, from another thread."""
        made = self._made
        if made is None or made[0] is not x:
            made = self._made = x, self.packed(x).split(self.sizes, -1)
        if number == len(self.sizes) - 1:
            self._made = None
        return made[1][number]


class Column(nn.Module):
    """One of the layers of a merged product."""

    def __init__(self, merged: Merged, number: int) -> None:
        super().__init__()
        self._merged, self._number = merged, number

    def forward(self, x: Tensor) -> Tensor:
        return self._merged.take(self._number, x)


class PackedMLP(nn.Module):
    """A gated MLP in bf16, whose gate and up projections are one product and whose activation is one kernel."""

    def __init__(self, gate_up: PackedLinear, down: PackedLinear, curve: tuple[float, float]) -> None:
        super().__init__()
        self.gate_up, self.down, self.curve = gate_up, down, curve

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(gated(self.gate_up(x), self.curve))
        return y


class Head(nn.Module):
    """The layer that gives the logits (B, T, V), of the last positions alone where a pass needs no more."""

    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        last = asked()
        y: Tensor = self.packed(x if last is None else x[:, -last:])
        return y


def pack(module: nn.Module, form: str) -> set[str]:
    """Replace the linear layers in place by those of a form -> the parameters that went.

    The matrix of a router stays, and so does what is no linear layer of its own: convolutions, tables. Experts are
    packed one by one.
    """
    gone: dict[nn.Module, nn.Module] = {}
    names: set[str] = set()

    def put(prefix: str, owner: nn.Module, leaf: str, layer: nn.Module) -> None:
        old = owner._modules[leaf]
        assert old is not None
        names.update(f"{prefix}{leaf}.{name}" for name, _ in old.named_parameters())
        owner._modules[leaf] = gone[old] = layer

    for path, owner in list(module.named_modules(remove_duplicate=False)):
        if owner in gone:
            continue
        prefix = f"{path}." if path else ""
        leaves = SIDE_BY_SIDE.get(type(owner), ())
        layers = [owner._modules.get(leaf) for leaf in leaves]
        if layers and _mergeable(layers):
            merged = _merged(layers, LAYERS[form])
            for number, leaf in enumerate(leaves):
                put(prefix, owner, leaf, Column(merged, number))
        for leaf, child in list(owner._modules.items()):
            name = f"{prefix}{leaf}"
            if child in gone:
                owner._modules[leaf] = gone[child]
            elif type(child) is RoutedMLP:
                put(prefix, owner, leaf, PackedRoutedMLP(child, LAYERS[form]))
                names.difference_update(f"{name}.router.{kept}" for kept, _ in child.router.named_parameters())
            elif (mlp := _gated(child, LAYERS[form])) is not None:
                put(prefix, owner, leaf, mlp)
            elif type(child) in (Linear, nn.Linear) and not f".{name}.weight".endswith(ROUTER):
                layer = (HEADS if leaf == HEAD else LAYERS)[form](child.weight, child.bias)
                put(prefix, owner, leaf, Head(layer) if name == HEAD else layer)
    return names


def _gated(child: nn.Module | None, pack_: Pack) -> PackedMLP | None:
    """What stands for a gated MLP in bf16, if there is a kernel for its activation."""
    if not isinstance(child, GATED) or type(child) not in GATED or child.act not in CURVES:
        return None
    if any(weight.dtype != torch.bfloat16 for weight in child.parameters()):
        return None
    if isinstance(child, GatedMLP):
        layers: list[nn.Module | None] = [child.gate, child.up]
        if not _mergeable(layers):
            return None
        both = _merged(layers, pack_).packed
    else:
        both = pack_(child.gate_up.weight, child.gate_up.bias)
    return PackedMLP(both, pack_(child.down.weight, child.down.bias), CURVES[child.act])


def _mergeable(layers: list[nn.Module | None]) -> bool:
    """Whether these are linear layers that one matrix can stand for."""
    if not all(type(layer) is Linear for layer in layers):
        return False
    found = [layer for layer in layers if isinstance(layer, Linear)]
    return len({(layer.in_features, layer.bias is None) for layer in found}) == 1


def _merged(layers: list[nn.Module | None], pack_: Pack) -> Merged:
    found = [layer for layer in layers if isinstance(layer, Linear)]
    bias = None if found[0].bias is None else torch.cat([layer.bias for layer in found])
    packed = pack_(torch.cat([layer.weight for layer in found]), bias)
    return Merged(packed, [layer.out_features for layer in found])
