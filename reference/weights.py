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

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError
from isoform.reference.checkpoint import DTYPES, Checkpoint, TensorInfo

if TYPE_CHECKING:
    from isoform.reference.card import Family

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What a parameter may be stored as."""


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


Rule = Rename | Fold | Drop

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
    dtype: torch.dtype
    load: Callable[[], Tensor]
    rows: Callable[[int, int], Tensor]
    release: Callable[[], None]
    source: TensorInfo | None
    """Where exactly these bytes lie in a file, or None when the stored tensor is another one."""
    hub: str
    """The key in the checkpoint."""


def find(key: str, rules: Iterable[Rule], prefix: str) -> tuple[Rule, str] | None:
    """The rule for a checkpoint key and its canonical name ("" for a dropped key).

    A key may lack the trunk's prefix, as a checkpoint saved without a head does.
    """
    for old, new in LEGACY_SUFFIXES.items():
        key = key.removesuffix(old) + new if key.endswith(old) else key
    for candidate in (key, f"{prefix}.{key}"):
        for rule in rules:
            name = _translate(candidate, rule.hub, "" if isinstance(rule, Drop) else rule.canonical)
            if name is not None:
                return rule, "" if isinstance(rule, Drop) else name
    return None


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
        if name in weights:
            raise CheckpointError(f"{checkpoint.name}: {weights[name].hub} and {key} are the same parameter, {name}")
        weights[name] = _weight(checkpoint, key, rule)
    if unknown:
        raise CheckpointError(f"{checkpoint.name}: no rule for {_list(unknown)}; not a checkpoint of this architecture")
    return weights


def _weight(checkpoint: Checkpoint, key: str, rule: Rename | Fold) -> Weight:
    info = checkpoint.info(key)
    plain = isinstance(rule, Rename) and info.offset >= 0 and info.dtype in DTYPES
    return Weight(
        shape=info.shape,
        dtype=DTYPES.get(info.dtype, torch.float32) if isinstance(rule, Rename) else torch.float32,
        load=lambda: rule.load(checkpoint[key]),
        rows=lambda start, stop: rule.load(checkpoint.rows(key, start, stop)),
        release=lambda: checkpoint.release(key),
        source=info if plain else None,
        hub=key,
    )


def account(
    name: str, weights: Mapping[str, Weight], module: nn.Module, family: Family, tied: Mapping[str, str]
) -> dict[str, Weight]:
    """The weights of the module's parameters, in its order, each checked for shape and dtype.

    A weight that no parameter takes must belong to a head that this task does not have, or repeat a tied parameter.
    Raises CheckpointError that names what is missing, unexpected or misshapen, as the Hub spells it.
    """
    for weight in weights.values():
        if weight.dtype not in FLOATS:
            raise CheckpointError(
                f"{name}: {weight.hub} is stored as {str(weight.dtype).removeprefix('torch.')} (a quantized "
                "checkpoint), which no family can use; take the model's BF16 or F16 checkpoint"
            )
    expected = {key: tuple(p.shape) for key, p in module.named_parameters(remove_duplicate=False) if key not in tied}
    missing = [key for key in expected if key not in weights]
    if missing:
        keys = [key for key, _ in hub_names(missing, family.rules).values()]
        raise CheckpointError(f"{name}: the checkpoint lacks {_list(keys)}, which its config.json asks for")
    spare = tuple(f"{head}." for head in family.heads)
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
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    left, right = a.load(), b.load()
    equal = all(torch.equal(x, y) for x, y in zip(left.split(rows), right.split(rows), strict=True))
    a.release()
    b.release()
    return equal


def hub_names(names: Iterable[str], rules: Iterable[Rule]) -> dict[str, tuple[str, Rename | Fold]]:
    """Canonical name -> (the Hub's key, the rule to undo)."""
    result: dict[str, tuple[str, Rename | Fold]] = {}
    for name in names:
        for rule in rules:
            if isinstance(rule, Drop):
                continue
            if (key := _translate(name, rule.canonical, rule.hub)) is not None:
                result[name] = key, rule
                break
        else:
            raise CheckpointError(f"{name} has no rule that leads back to the Hub's spelling")
    return result


def _list(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:4])
    return shown if len(keys) <= 4 else f"{shown} and {len(keys) - 4} more"
