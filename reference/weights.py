"""Weight rules: how a checkpoint's keys become canonical parameters, as invertible data.

A rule names modules with `*` for one dotted part (the layer); `.weight` and `.bias` follow along. The first rule that
matches a key takes it. Every key must have a rule and every parameter a key: the rest is an error, never a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import ITEM_BYTES, Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from isoform.reference.card import Family

FLOATS = ("BF16", "F16", "F32", "F64")
"""What a parameter may be stored as, besides the types of ggml, which come out as F32."""


@dataclass(frozen=True, slots=True)
class Rename:
    """The tensor as it is, under another name."""

    hub: str
    canonical: str

    def load(self, tensor: Tensor) -> Tensor:
        return tensor

    def save(self, tensor: Tensor) -> Tensor:
        return tensor


@dataclass(frozen=True, slots=True)
class Fold:
    """The stored tensor is `amount` less than what the layer multiplies by (Gemma's norms: 1 + weight)."""

    hub: str
    canonical: str
    amount: float

    def load(self, tensor: Tensor) -> Tensor:
        return tensor.float() + self.amount

    def save(self, tensor: Tensor) -> Tensor:
        return tensor.float() - self.amount


@dataclass(frozen=True, slots=True)
class Drop:
    """A key that the config determines or that repeats another; left out when saving."""

    hub: str


@dataclass(frozen=True, slots=True)
class WeightNorm:
    """Two tensors for one: a direction, and the length that it is to have for each index of `axis`.

    Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868. `hub` and `canonical` name the module; its bias has a
    rule of its own.
    """

    hub: str
    canonical: str
    axis: int

    def load(self, length: Tensor, direction: Tensor) -> Tensor:
        direction = direction.float()
        return direction * (length.float() / self.length(direction))

    def length(self, weight: Tensor) -> Tensor:
        """Over all axes but `axis`, which keep size 1, in float32."""
        import torch

        others = [n for n in range(weight.dim()) if n != self.axis]
        return torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)


Rule = Rename | Fold | WeightNorm | Drop

HALVES = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
"""How torch spells length and direction, in its older and its newer form."""

LEGACY_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}
"""Spellings of old checkpoints."""


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"([^.]+)") + r"(\.[^.]+)?")


def _translate(key: str, source: str, target: str) -> str | None:
    """`key` from one spelling to another, or None when `source` does not match it."""
    match = _pattern(source).fullmatch(key)
    if match is None:
        return None
    *parts, suffix = match.groups()
    for part in parts:
        target = target.replace("*", part, 1)
    return target + (suffix or "")


@dataclass(frozen=True, slots=True)
class Weight:
    """One canonical parameter: its shape, the dtype it is stored in, and how to get it, whole or some rows of it."""

    shape: tuple[int, ...]
    stored: str
    """safetensors' name of the dtype of what `load` gives."""
    load: Callable[[], Tensor]
    rows: Callable[[int, int], Tensor]
    release: Callable[[], None]
    source: TensorInfo | None
    """Where exactly these bytes lie in a file, or None when the stored tensor is another one."""
    hub: str
    """The key in the checkpoint."""
    folded: tuple[TensorInfo, float] | None = None
    """Where a stored tensor lies that is this one less an amount."""

    @property
    def dtype(self) -> torch.dtype:
        from isoform.reference.checkpoints.dtypes import DTYPES

        return DTYPES[self.stored]


def find(key: str, rules: Iterable[Rule], prefix: str) -> tuple[Rule, str] | None:
    """The rule for a checkpoint key and its canonical name ("" for a dropped key).

    A key may lack the trunk's prefix, as a checkpoint saved without a head does.
    """
    for old, new in LEGACY_SUFFIXES.items():
        key = key.removesuffix(old) + new if key.endswith(old) else key
    for candidate in (key, f"{prefix}.{key}"):
        for rule in rules:
            target = "" if isinstance(rule, Drop) else rule.canonical
            name = _translate(_whole(candidate) if isinstance(rule, WeightNorm) else candidate, rule.hub, target)
            if name is not None:
                return rule, "" if isinstance(rule, Drop) else name
    return None


def halves(key: str, like: str = "") -> tuple[str, str]:
    """The keys of length and direction for the key of either or of the weight; spelled as `like` or `key` is."""
    spelling = next((pair for text in (like, key) for pair in HALVES if text.endswith(pair)), HALVES[0])
    module = (_whole(key) or key).removesuffix(".weight")
    return module + spelling[0], module + spelling[1]


def _whole(key: str) -> str:
    """The key of the weight that this one is half of; "" for any other key."""
    suffix = next((suffix for pair in HALVES for suffix in pair if key.endswith(suffix)), None)
    return "" if suffix is None else key.removesuffix(suffix) + ".weight"


def map_weights(checkpoint: Checkpoint, rules: Iterable[Rule], prefix: str) -> dict[str, Weight]:
    """Every key of the checkpoint as a canonical parameter. Raises CheckpointError for a key without a rule."""
    if checkpoint.canonical:
        return {key: _weight(checkpoint, key, Rename(key, key)) for key in checkpoint}
    weights: dict[str, Weight] = {}
    unknown = []
    for key in checkpoint:
        found = find(key, rules, prefix)
        if found is None:
            unknown.append(key)
            continue
        rule, name = found
        if isinstance(rule, Drop):
            continue
        if isinstance(rule, WeightNorm):
            pair = halves(key)
            if absent := [half for half in pair if half not in checkpoint]:
                raise CheckpointError(f"{checkpoint.name}: the checkpoint lacks {absent[0]}, the other half of {key}")
            if key == pair[1]:
                weights[name] = _normed(checkpoint, pair, rule)
            continue
        if name in weights:
            raise CheckpointError(f"{checkpoint.name}: {weights[name].hub} and {key} are the same parameter, {name}")
        weights[name] = _weight(checkpoint, key, rule)
    if unknown:
        raise CheckpointError(f"{checkpoint.name}: no rule for {_list(unknown)}; not a checkpoint of this architecture")
    return weights


def _weight(checkpoint: Checkpoint, key: str, rule: Rename | Fold) -> Weight:
    info = checkpoint.info(key)
    lies = info.offset >= 0 and info.dtype in ITEM_BYTES
    return Weight(
        shape=info.shape,
        stored=info.dtype if isinstance(rule, Rename) and info.dtype in ITEM_BYTES else "F32",
        load=lambda: rule.load(checkpoint[key]),
        rows=lambda start, stop: rule.load(checkpoint.rows(key, start, stop)),
        release=lambda: checkpoint.release(key),
        source=info if lies and isinstance(rule, Rename) else None,
        hub=key,
        folded=(info, rule.amount) if lies and isinstance(rule, Fold) else None,
    )


def _normed(checkpoint: Checkpoint, pair: tuple[str, str], rule: WeightNorm) -> Weight:
    def load() -> Tensor:
        return rule.load(*(checkpoint[key] for key in pair))

    def release() -> None:
        for key in pair:
            checkpoint.release(key)

    info = checkpoint.info(pair[1])
    return Weight(
        shape=info.shape,
        stored="F32",
        load=load,
        rows=lambda start, stop: load()[start:stop],
        release=release,
        source=None,
        hub=pair[1],
    )


def account(
    name: str,
    weights: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    tied: Mapping[str, str],
) -> dict[str, Weight]:
    """The weights of the parameters that have these `shapes`, in their order, each checked for shape and dtype.

    A weight that no parameter takes must belong to a head that this task does not have, or repeat a tied parameter.
    Raises CheckpointError that names what is missing, unexpected or misshapen, as the Hub spells it.
    """
    for weight in weights.values():
        if weight.stored not in FLOATS:
            raise CheckpointError(
                f"{name}: {weight.hub} is stored as {str(weight.dtype).removeprefix('torch.')} (a quantized "
                "checkpoint), which no family can use; take the model's BF16 or F16 checkpoint"
            )
    expected = {key: shape for key, shape in shapes.items() if key not in tied}
    missing = [key for key in expected if key not in weights]
    if missing:
        keys = [key for key, _ in hub_names(missing, family.rules).values()]
        raise CheckpointError(f"{name}: the checkpoint lacks {_list(keys)}, which its config.json asks for")
    heads = (f"{head}." for head in family.heads)
    spare = tuple(head for head in heads if not any(key.startswith(head) for key in shapes))
    unexpected = [
        weight.hub
        for key, weight in weights.items()
        if key not in expected and key not in tied and not key.startswith(spare)
    ]
    if unexpected:
        raise CheckpointError(
            f"{name}: the checkpoint holds {_list(unexpected)}, which its config.json has no place for"
        )
    for key, shape in expected.items():
        if weights[key].shape != shape:
            raise CheckpointError(
                f"{name}: {weights[key].hub} has shape {list(weights[key].shape)}, config.json asks for {list(shape)}"
            )
    return {key: weights[key] for key in expected}


def same(a: Weight, b: Weight, rows: int = 4096) -> bool:
    """Whether two stored tensors are equal; compared by `rows`, so that no more than that is in memory."""
    import torch

    if (a.shape, a.stored) != (b.shape, b.stored):
        return False
    left, right = a.load(), b.load()
    equal = all(torch.equal(x, y) for x, y in zip(left.split(rows), right.split(rows), strict=True))
    a.release()
    b.release()
    return equal


def hub_names(names: Iterable[str], rules: Iterable[Rule]) -> dict[str, tuple[str, Rename | Fold | WeightNorm]]:
    """Canonical name -> (the Hub's key, the rule to undo). Of a `WeightNorm`, the key is the direction's."""
    result: dict[str, tuple[str, Rename | Fold | WeightNorm]] = {}
    for name in names:
        for rule in rules:
            if isinstance(rule, Drop) or (isinstance(rule, WeightNorm) and not name.endswith(".weight")):
                continue
            if (key := _translate(name, rule.canonical, rule.hub)) is not None:
                result[name] = halves(key)[1] if isinstance(rule, WeightNorm) else key, rule
                break
        else:
            raise CheckpointError(f"{name} has no rule that leads back to the Hub's spelling")
    return result


def _list(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:4])
    return shown if len(keys) <= 4 else f"{shown} and {len(keys) - 4} more"
