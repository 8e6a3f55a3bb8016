"""Maps a checkpoint's tensors to canonical parameters by the family's rules, accounts for each, and back.

The first rule that matches a key takes it. Every key must have a rule and every parameter a key: the rest is an error,
never a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import ITEM_BYTES, Checkpoint, TensorInfo
from isoform.reference.rules import Computed, Readable, Rename, Rule
from isoform.reference.wrappers import ADAPTER, left_out, notes, unwrapped

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLOATS = ("BF16", "F16", "F32", "F64")
"""What a parameter may be stored as, besides the types of ggml, which come out as F32."""

LEGACY_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}
"""Spellings of old checkpoints."""


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
    keys: tuple[str, ...]
    """The tensors of the checkpoint that it is made of."""
    rule: Rule
    folded: tuple[TensorInfo, float] | None = None
    """Where a stored tensor lies that is this one less an amount."""

    @property
    def hub(self) -> str:
        """The key in the checkpoint; of several, the last."""
        return self.keys[-1]

    @property
    def dtype(self) -> torch.dtype:
        from isoform.reference.checkpoints.dtypes import DTYPES

        return DTYPES[self.stored]


class Found(NamedTuple):
    """The rule for a key, the parameters that the key determines, and the key in the Hub's spelling of today.

    `wrapper`: a prefix of `wrappers.PREFIXES` that was taken off.
    """

    rule: Rule
    names: tuple[str, ...]
    key: str
    wrapper: str = ""


def find(key: str, rules: Iterable[Rule], prefix: str, other: str = "") -> Found | None:
    """The rule for a checkpoint key.

    It may lack the trunk's prefix, as a checkpoint saved without a head does, or have wrappers around it. `other`: a
    prefix that some classes have instead.
    """
    for old, new in LEGACY_SUFFIXES.items():
        key = key.removesuffix(old) + new if key.endswith(old) else key
    rules = tuple(rules)
    for inner, wrapper in chain(((key, ""),), unwrapped(key)):
        bare = inner.removeprefix(f"{other}.") if other else inner
        for candidate in (inner, f"{prefix}.{bare}"):
            for rule in rules:
                if (names := rule.match(candidate)) is not None:
                    return Found(rule, names, candidate, wrapper)
    return None


def wrapper_notes(checkpoint: Checkpoint, rules: Sequence[Rule], prefix: str, other: str = "") -> tuple[str, ...]:
    """What was taken off or left out, for a person to read."""
    if checkpoint.canonical:
        return ()
    found = (find(key, rules, prefix, other) for key in checkpoint)
    return notes(checkpoint, [one.wrapper for one in found if one is not None and one.wrapper])


def map_weights(checkpoint: Checkpoint, rules: Sequence[Rule], prefix: str, other: str = "") -> dict[str, Weight]:
    """Every key of the checkpoint as canonical parameters. Raises CheckpointError for a key without a rule."""
    if checkpoint.canonical:
        return {key: weight for key in checkpoint for weight in _weights(checkpoint, Rename(key, key), 1, (key,))}
    groups: dict[tuple[Rule, tuple[str, ...]], dict[str, str]] = {}  # key in the Hub's spelling -> in the checkpoint
    unknown = []
    for key in checkpoint:
        if (found := find(key, rules, prefix, other)) is None:
            if left_out(key) is None:
                unknown.append(key)
        elif found.names:
            group = groups.setdefault((found.rule, found.names), {})
            if (twin := group.setdefault(found.key, key)) != key:
                raise _twice(checkpoint, twin, key, found.names[0])
    if adapter := [key for key in unknown if any(part in key for part in ADAPTER)]:
        raise CheckpointError(
            f"{checkpoint.name} holds {adapter[0]}, of a PEFT adapter that is not merged; merge it (merge_and_unload) "
            "and save the model again"
        )
    if unknown:
        owner = unknown[0].partition(".")[0] + "."
        below = (key[len(owner) :] for key in unknown if key.startswith(owner))
        if len([key for key in below if find(key, rules, prefix, other)]) == len(unknown) == len(checkpoint):
            raise CheckpointError(
                f"{checkpoint.name}: all keys are below {owner!r}, the model's name in the class that saved it; save "
                "that model alone, or take the prefix off the keys"
            )
        raise CheckpointError(f"{checkpoint.name}: no rule for {_list(unknown)}; not a checkpoint of this architecture")
    weights: dict[str, Weight] = {}
    for (rule, names), group in sorted(groups.items(), key=lambda item: item[0][0].repeats):
        sources = rule.sources(names[0], group) or ()
        if absent := [key for key in sources if key not in group]:
            raise CheckpointError(
                f"{checkpoint.name}: the checkpoint lacks {absent[0]}, the counterpart of {next(iter(group.values()))}"
            )
        if spare := [key for key in group if key not in sources]:
            raise _twice(checkpoint, group[sources[0]], group[spare[0]], names[0])
        keys = tuple(group[key] for key in sources)
        for name, weight in zip(names, _weights(checkpoint, rule, len(names), keys), strict=True):
            if (known := weights.setdefault(name, weight)) is weight:
                continue
            if not rule.repeats:
                raise _twice(checkpoint, known.hub, weight.hub, name)
            if not same(known, weight):
                raise CheckpointError(
                    f"{checkpoint.name}: {known.hub} and {weight.hub} differ, and are one parameter, {name}; keep the "
                    "one that the model was trained with and remove the other"
                )
    return weights


def _twice(checkpoint: Checkpoint, one: str, other: str, name: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.name}: {one} and {other} are the same parameter, {name}")


def _weights(checkpoint: Checkpoint, rule: Rule, count: int, keys: tuple[str, ...]) -> Iterator[Weight]:
    """The parameters that a rule makes of these tensors."""
    infos = [checkpoint.info(key) for key in keys]
    pieces = [_piece(checkpoint, key, info) for key, info in zip(keys, infos, strict=True)]
    try:
        shapes = rule.shapes(*(info.shape for info in infos))
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.name}: {error}") from None
    if rule.exact and len({info.dtype for info in infos}) > 1:
        kinds = ", ".join(sorted({info.dtype for info in infos}))
        raise CheckpointError(f"{checkpoint.name}: {keys[0]} and its counterparts have different dtypes ({kinds})")
    lies = all(info.offset >= 0 and info.dtype in ITEM_BYTES for info in infos)

    def release() -> None:
        for key in keys:
            checkpoint.release(key)

    for n in range(count):
        yield Weight(
            shape=shapes[n],
            stored=infos[0].dtype if rule.exact and infos[0].dtype in ITEM_BYTES else "F32",
            load=partial(_load, rule, pieces, n),
            rows=partial(rule.load_rows, pieces, n),
            release=release,
            source=rule.place(infos, n) if lies else None,
            keys=keys,
            rule=rule,
            folded=rule.folded(infos[0]) if lies else None,
        )


def _piece(checkpoint: Checkpoint, key: str, info: TensorInfo) -> Readable:
    return Computed(info.shape, partial(checkpoint.__getitem__, key), partial(checkpoint.rows, key))


def _load(rule: Rule, pieces: Sequence[Readable], n: int) -> Tensor:
    return rule.load(*(piece.load() for piece in pieces))[n]


def account(
    name: str,
    weights: Mapping[str, Weight],
    shapes: Mapping[str, tuple[int, ...]],
    rules: Sequence[Rule],
    heads: Sequence[str],
    tied: Mapping[str, str],
    carried: Collection[str] = (),
) -> dict[str, Weight]:
    """The weights of the parameters that have these `shapes`, in their order, each checked for shape and dtype.

    A weight that no parameter takes must belong to a head that this task does not have, repeat a tied parameter, or be
    `carried`.
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
        keys = [key for key, _ in hub_names(missing, rules).values()]
        raise CheckpointError(f"{name}: the checkpoint lacks {_list(keys)}, which its config.json asks for")
    modules = (f"{head}." for head in heads)
    spare = tuple(head for head in modules if not any(key.startswith(head) for key in shapes))
    unexpected = [
        weight.hub
        for key, weight in weights.items()
        if not (key in expected or key in tied or key in carried or key.startswith(spare))
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


def hub_names(names: Iterable[str], rules: Iterable[Rule]) -> dict[str, tuple[str, Rule]]:
    """Canonical name -> (the Hub's key, the rule that saves it). Of several keys, the last."""
    result: dict[str, tuple[str, Rule]] = {}
    for name in names:
        rule, keys = _saving(name, rules)
        result[name] = keys[-1], rule
    return result


def _saving(name: str, rules: Iterable[Rule]) -> tuple[Rule, tuple[str, ...]]:
    for rule in rules:
        if rule.written and (keys := rule.sources(name)) is not None:
            return rule, keys
    raise CheckpointError(f"{name} has no rule that leads back to the Hub's spelling")


class Saved(NamedTuple):
    """One tensor of a checkpoint to be written: its key, and how to get rows of it."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    release: Callable[[], None]


def saved(
    checkpoint: Checkpoint, weights: Mapping[str, Weight], rules: Sequence[Rule], changed: Mapping[str, Tensor]
) -> Iterator[Saved]:
    """The Hub's tensors of these weights, of which those in `changed` have other values.

    What is unchanged and stored as the rules save it is copied; the rest is computed and keeps the stored dtype.
    """
    import torch

    from isoform.reference.checkpoints.dtypes import DTYPES

    done: set[str] = set()
    for name, weight in weights.items():
        if name in done:
            continue
        rule, keys = _saving(name, rules)
        names = rule.match(keys[0]) or (name,)
        done |= set(names)
        if absent := [one for one in names if one not in weights]:
            raise CheckpointError(f"{name} cannot be saved without {absent[0]}, which is stored in the same tensor")
        parts = [_changed(changed[one]) if one in changed else weights[one] for one in names]
        keys = rule.sources(name, weight.keys, parts[0].shape) or keys
        if weight.rule == rule and not checkpoint.canonical and not changed.keys() & set(names):
            for key, held in zip(keys, weight.keys, strict=True):
                info, release = checkpoint.info(held), partial(checkpoint.release, held)
                yield Saved(key, info.shape, DTYPES[info.dtype], partial(checkpoint.rows, held), release)
            continue
        dtype = DTYPES.get(checkpoint.info(weight.hub).dtype, torch.float32)
        for n, (key, shape) in enumerate(zip(keys, rule.saved_shapes(*(part.shape for part in parts)), strict=True)):
            yield Saved(key, shape, dtype, partial(rule.save_rows, parts, n), weight.release)


def _changed(tensor: Tensor) -> Readable:
    values = tensor.detach()
    return Computed(
        tuple(values.shape), lambda: values, lambda start, stop: values[start:stop] if values.dim() else values
    )


def _list(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:4])
    return shown if len(keys) <= 4 else f"{shown} and {len(keys) - 4} more"
