"""Weight rules: invertible data that says which keys of a checkpoint become which canonical parameters.

A rule names modules with `*` for one dotted part (the layer); `.weight` and `.bias` follow along. `load` makes the
parameters of the Hub's tensors and `save` undoes it. A rule of its own kind exists where tensors differ in more than
their names; `Chain` composes two, and `below` moves the rules of a tower under a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


class Readable(Protocol):
    """A tensor that is read when it is needed, whole or some rows of it; all of a scalar."""

    @property
    def shape(self) -> Shape: ...

    @property
    def load(self) -> Callable[[], Tensor]: ...

    @property
    def rows(self) -> Callable[[int, int], Tensor]: ...


@dataclass(frozen=True, slots=True)
class Computed:
    """A `Readable` of two functions."""

    shape: Shape
    load: Callable[[], Tensor]
    rows: Callable[[int, int], Tensor]


class Rule:
    """How some tensors of the Hub and some canonical parameters determine each other."""

    __slots__ = ()

    identity: ClassVar[bool] = False  # the parameter is the stored tensor, byte for byte
    exact: ClassVar[bool] = True  # values are moved, not computed: they keep their dtype
    written: ClassVar[bool] = True  # saving uses this rule
    repeats: ClassVar[bool] = False  # another rule may give the same parameter, of a tensor that holds the same

    def match(self, key: str) -> tuple[str, ...] | None:
        """The parameters that the Hub's tensor `key` determines, maybe with others; None: the rule does not apply."""
        raise NotImplementedError

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        """The Hub's keys that determine the parameter `name`; None: the rule does not apply.

        `held` are keys of a checkpoint, which settle what the name leaves open: how the keys are spelled, or how many
        there are. `shape` is the parameter's, where it is known.
        """
        raise NotImplementedError

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        """The shapes of the parameters. Raises CheckpointError for tensors that the rule cannot take."""
        raise NotImplementedError

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        """The shapes of the Hub's tensors."""
        raise NotImplementedError

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        """The parameters, in the order of `match`, from the Hub's tensors, in the order of `sources`."""
        raise NotImplementedError

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The Hub's tensors from the parameters."""
        raise NotImplementedError

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        """Rows of parameter `n`."""
        return _cut(self.load(*(piece.load() for piece in parts))[n], start, stop)

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        """Rows of the Hub's tensor `n`."""
        return _cut(self.save(*(weight.load() for weight in parts))[n], start, stop)

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        """Where the bytes of parameter `n` lie in a file as they are; None: nowhere."""
        return None

    def folded(self, info: TensorInfo) -> tuple[TensorInfo, float] | None:
        """A stored tensor and the amount by which it is less than the parameter, where that is all."""
        return None

    def at(self, config: Any) -> Rule:
        """The rule with the sizes that the config determines."""
        return self

    def below(self, hub: str, canonical: str) -> Self:
        """The rule with its names under a prefix on each side."""
        raise NotImplementedError

    def alias(self) -> Rule:
        """The rule for a second spelling, which is read and not written."""
        raise NotImplementedError(f"{type(self).__name__} has no second spelling")


@dataclass(frozen=True, slots=True)
class Rename(Rule):
    """The tensor as it is, under another name."""

    hub: str
    canonical: str

    identity = True

    def match(self, key: str) -> tuple[str, ...] | None:
        return _one(translate(key, self.hub, self.canonical))

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        return _one(translate(name, self.canonical, self.hub))

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        return shapes

    saved_shapes = shapes

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        return pieces

    save = load

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return parts[0].rows(start, stop)

    save_rows = load_rows

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        return infos[0]

    def below(self, hub: str, canonical: str) -> Self:
        return replace(self, hub=_join(hub, self.hub), canonical=_join(canonical, self.canonical))

    def alias(self) -> Rule:
        return Alias(self.hub, self.canonical)


@dataclass(frozen=True, slots=True)
class Alias(Rename):
    """A second spelling, which is read; saving writes the first, that of another rule for the parameter."""

    written = False


@dataclass(frozen=True, slots=True)
class Copy(Alias):
    """A tensor that files hold beside another one, both the same: it is read where the other is missing.

    Where both are there they are compared, and must be equal.
    """

    repeats = True


@dataclass(frozen=True, slots=True)
class Fold(Rename):
    """The stored tensor is `amount` less than what the layer multiplies by (Gemma's norms: 1 + weight)."""

    amount: float

    identity = False
    exact = False

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        return (pieces[0].float() + self.amount,)

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (tensors[0].float() - self.amount,)

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return self.load(parts[0].rows(start, stop))[0]

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return self.save(parts[0].rows(start, stop))[0]

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        return None

    def folded(self, info: TensorInfo) -> tuple[TensorInfo, float] | None:
        return info, self.amount


@dataclass(frozen=True, slots=True)
class Drop(Rule):
    """A key that the config determines or that repeats another; left out when saving."""

    hub: str

    written = False

    def match(self, key: str) -> tuple[str, ...] | None:
        return None if translate(key, self.hub, "") is None else ()

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        return None

    def below(self, hub: str, canonical: str) -> Self:
        return replace(self, hub=_join(hub, self.hub))


@dataclass(frozen=True, slots=True)
class Tail(Rename):
    """The tensor without its first rows, which the model never reads: saved from elsewhere, they are zeros.

    `skipped` gives their number from the config (RoBERTa's positions begin after the id of padding).
    """

    skipped: Callable[[Any], int] | int

    identity = False

    def at(self, config: Any) -> Rule:
        return replace(self, skipped=self.skipped(config)) if callable(self.skipped) else self

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        if not shape or shape[0] <= self._count:
            raise CheckpointError(f"{self.hub} {list(shape)} has no rows after the first {self._count}")
        return ((shape[0] - self._count, *shape[1:]),)

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        return ((shape[0] + self._count, *shape[1:]),)

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        return (pieces[0][self._count :],)

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        import torch

        (tensor,) = tensors
        return (torch.cat((tensor.new_zeros(self._count, *tensor.shape[1:]), tensor)),)

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return parts[0].rows(start + self._count, stop + self._count)

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return _cut(self.save(parts[0].load())[0], start, stop)

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        (info,) = infos
        count, row = info.shape[0] - self._count, info.nbytes // info.shape[0]
        return replace(info, shape=(count, *info.shape[1:]), offset=info.offset + self._count * row, nbytes=count * row)

    @property
    def _count(self) -> int:
        assert not callable(self.skipped), "the rule has not met its config"
        return self.skipped


@dataclass(frozen=True, slots=True)
class Transpose(Rename):
    """The tensor with its last two axes exchanged; a vector as it is (GPT-2's Conv1D stores (in, out))."""

    identity = False

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        return (shape if len(shape) < 2 else (*shape[:-2], shape[-1], shape[-2]),)

    saved_shapes = shapes

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        return (_turned(pieces[0]).contiguous(),)

    save = load

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return _cut(_turned(parts[0].load()), start, stop).contiguous()

    save_rows = load_rows

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        return infos[0] if len(infos[0].shape) < 2 else None


@dataclass(frozen=True, slots=True)
class Interleave(Rename):
    """The rows in another order: stored as (groups, length, ways), here (groups, ways, length), each of some rows.

    `view` gives groups, length and ways from the config. Rotary pairs that are stored side by side: (heads, D/2, 2).
    Queries, keys and values that are stored head by head: (1, heads, 3). Gate and up in turn: (1, hidden, 2).
    """

    view: Callable[[Any], tuple[int, int, int]] | tuple[int, int, int]

    identity = False

    def at(self, config: Any) -> Rule:
        return replace(self, view=self.view(config)) if callable(self.view) else self

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        self._order(shapes[0])
        return shapes

    saved_shapes = shapes

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        return (pieces[0][self._order(tuple(pieces[0].shape))],)

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (tensors[0][self._order(tuple(tensors[0].shape)).argsort()],)

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return parts[0].load()[self._order(parts[0].shape)[start:stop]]

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return parts[0].load()[self._order(parts[0].shape).argsort()[start:stop]]

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        return None

    def _order(self, shape: Shape) -> Tensor:
        """Which stored row becomes each row here: int64 (rows,)."""
        import torch

        assert not callable(self.view), "the rule has not met its config"
        if not shape or shape[0] % prod(self.view):
            raise CheckpointError(f"the rows of {self.hub} {list(shape)} do not divide into {list(self.view)}")
        return torch.arange(shape[0]).view(*self.view, -1).transpose(1, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class Split(Rule):
    """One stored tensor whose rows are those of several parameters (merged queries, keys and values).

    `sizes` gives the rows of each from the config, or their ratios (2, 1, 1); without it they are equal.
    """

    hub: str
    canonical: tuple[str, ...]
    sizes: Callable[[Any], tuple[int, ...]] | tuple[int, ...] = ()

    def at(self, config: Any) -> Rule:
        return replace(self, sizes=self.sizes(config)) if callable(self.sizes) else self

    def match(self, key: str) -> tuple[str, ...] | None:
        names = [translate(key, self.hub, name) for name in self.canonical]
        return tuple(name for name in names if name is not None) or None

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        keys = (translate(name, canonical, self.hub) for canonical in self.canonical)
        return _one(next((key for key in keys if key is not None), None))

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        edges = self._edges(shape)
        return tuple((stop - start, *shape[1:]) for start, stop in edges)

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        return ((sum(shape[0] for shape in shapes), *shapes[0][1:]),)

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        (piece,) = pieces
        return tuple(piece[start:stop] for start, stop in self._edges(tuple(piece.shape)))

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        import torch

        return (torch.cat(tensors),)

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        first, last = self._edges(parts[0].shape)[n]
        return parts[0].rows(first + start, min(first + stop, last))

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        import torch

        found, first = [], 0
        for weight in parts:
            count = weight.shape[0]
            if start < first + count and first < stop:
                found.append(weight.rows(max(start - first, 0), min(stop - first, count)))
            first += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        (info,) = infos
        (start, stop), row = self._edges(info.shape)[n], info.nbytes // max(1, info.shape[0])
        return replace(
            info, shape=(stop - start, *info.shape[1:]), offset=info.offset + start * row, nbytes=(stop - start) * row
        )

    def below(self, hub: str, canonical: str) -> Self:
        return replace(self, hub=_join(hub, self.hub), canonical=tuple(_join(canonical, c) for c in self.canonical))

    def _edges(self, shape: Shape) -> list[tuple[int, int]]:
        """Start and stop of each parameter's rows."""
        assert not callable(self.sizes), "the rule has not met its config"
        shares = self.sizes or (1,) * len(self.canonical)
        if not shape or shape[0] % sum(shares):
            raise CheckpointError(f"the rows of {self.hub} {list(shape)} do not divide into {list(shares)}")
        ends = [0]
        for share in shares:
            ends.append(ends[-1] + share * (shape[0] // sum(shares)))
        return list(pairwise(ends))


@dataclass(frozen=True, slots=True)
class SplitStack(Split):
    """The same of a stack of matrices (experts): each is cut by rows. A second spelling, which only is read."""

    written = False

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        return tuple((*shape[:1], stop - start, *shape[2:]) for start, stop in self._edges(shape[1:]))

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        first = shapes[0]
        return ((first[0], sum(shape[1] for shape in shapes), *first[2:]),)

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        (piece,) = pieces
        return tuple(piece[:, start:stop] for start, stop in self._edges(tuple(piece.shape[1:])))

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        import torch

        return (torch.cat(tensors, 1),)

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        first, last = self._edges(parts[0].shape[1:])[n]
        return parts[0].rows(start, stop)[:, first:last]

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        import torch

        return torch.cat([weight.rows(start, stop) for weight in parts], 1)

    def place(self, infos: Sequence[TensorInfo], n: int) -> TensorInfo | None:
        return None


@dataclass(frozen=True, slots=True)
class Stack(Rule):
    """Stored tensors of one shape as one, along a new first axis: the last `*` of `hub` counts them (experts)."""

    hub: str
    canonical: str

    def match(self, key: str) -> tuple[str, ...] | None:
        name = translate(key, self.hub, f"{self.canonical}.\0*")
        if name is None:
            return None
        found = re.fullmatch(r"(.*)\.\0([0-9]+)(\.[^.]+)?", name)
        return found and (f"{found[1]}{found[3] or ''}",)

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        before, _, after = self.hub.rpartition("*")
        template = translate(name, self.canonical, f"{before}\0{after}")
        if template is None:
            return None
        count = shape[0] if shape else 1
        if held and not shape:
            indices = re.compile(re.escape(template).replace("\0", "([0-9]+)"))
            last = max((int(match[1]) for key in held if (match := indices.fullmatch(key))), default=0)
            count = min(last, len(held)) + 1  # more than are held: one of them is missing
        return tuple(template.replace("\0", str(n)) for n in range(count))

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        if len(set(shapes)) > 1:
            raise CheckpointError(f"the tensors of {self.hub} have different shapes, {sorted(set(shapes))}")
        return ((len(shapes), *shapes[0]),)

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        return (shape[1:],) * shape[0]

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        import torch

        return (torch.stack(pieces),)

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        return tensor.unbind()

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return self.load(*(piece.load() for piece in parts[start:stop]))[0]

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        return _cut(parts[0].rows(n, n + 1)[0], start, stop)

    def below(self, hub: str, canonical: str) -> Self:
        return replace(self, hub=_join(hub, self.hub), canonical=_join(canonical, self.canonical))


HALVES = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
"""How torch spells length and direction, in its older and its newer form."""


@dataclass(frozen=True, slots=True)
class WeightNorm(Rule):
    """Two tensors for one: the length that the weight has for each index of `axis`, and a direction.

    Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868. `hub` and `canonical` name the module; its bias has a
    rule of its own.
    """

    hub: str
    canonical: str
    axis: int

    exact = False

    def match(self, key: str) -> tuple[str, ...] | None:
        suffix = next((suffix for pair in HALVES for suffix in pair if key.endswith(suffix)), None)
        whole = "" if suffix is None else f"{key.removesuffix(suffix)}.weight"
        return _one(translate(whole, self.hub, self.canonical))

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        """Spelled as `held` spells a half of this module, or else of any, or else in the older form."""
        key = translate(name, self.canonical, self.hub)
        if key is None or not key.endswith(".weight"):
            return None
        module = key.removesuffix(".weight")
        first = next((pair for pair in HALVES if any(module + half in held for half in pair)), None)
        spelling = first or next((pair for pair in HALVES if any(key.endswith(pair) for key in held)), HALVES[0])
        return module + spelling[0], module + spelling[1]

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        return (shapes[1],)

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        (shape,) = shapes
        return tuple(size if n == self.axis else 1 for n, size in enumerate(shape)), shape

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        length, direction = pieces
        direction = direction.float()
        return (direction * (length.float() / self._length(direction)),)

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (weight,) = tensors
        return self._length(weight), weight

    def below(self, hub: str, canonical: str) -> Self:
        return replace(self, hub=_join(hub, self.hub), canonical=_join(canonical, self.canonical))

    def _length(self, weight: Tensor) -> Tensor:
        """Over all axes but `axis`, which keep size 1, in float32."""
        import torch

        others = [n for n in range(weight.dim()) if n != self.axis]
        return torch.linalg.vector_norm(weight.float(), dim=others, keepdim=True)


@dataclass(frozen=True, slots=True)
class Chain(Rule):
    """One rule after the other: `first` makes one tensor of the Hub's, `second` makes the parameters of that.

    The name in between is one that both use: `Transpose("h.*.attn.c_attn", "h.*.qkv")`, `Split("h.*.qkv", (…))`.
    """

    first: Rule
    second: Rule

    @property
    def hub(self) -> str:
        hub: str = self.first.hub  # type: ignore[attr-defined]
        return hub

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.first.exact and self.second.exact

    def at(self, config: Any) -> Rule:
        return Chain(self.first.at(config), self.second.at(config))

    def match(self, key: str) -> tuple[str, ...] | None:
        between = self.first.match(key)
        return self.second.match(between[0]) if between else None

    def sources(self, name: str, held: Collection[str] = (), shape: Shape = ()) -> tuple[str, ...] | None:
        between = self.second.sources(name)
        return self.first.sources(between[0], held) if between else None

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        return self.second.shapes(*self.first.shapes(*shapes))

    def saved_shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        return self.first.saved_shapes(*self.second.saved_shapes(*shapes))

    def load(self, *pieces: Tensor) -> tuple[Tensor, ...]:
        return self.second.load(*self.first.load(*pieces))

    def save(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.first.save(*self.second.save(*tensors))

    def load_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        (shape,) = self.first.shapes(*(piece.shape for piece in parts))
        between = Computed(
            shape,
            lambda: self.first.load(*(piece.load() for piece in parts))[0],
            partial(self.first.load_rows, parts, 0),
        )
        return self.second.load_rows((between,), n, start, stop)

    def save_rows(self, parts: Sequence[Readable], n: int, start: int, stop: int) -> Tensor:
        (shape,) = self.second.saved_shapes(*(weight.shape for weight in parts))
        between = Computed(
            shape,
            lambda: self.second.save(*(weight.load() for weight in parts))[0],
            partial(self.second.save_rows, parts, 0),
        )
        return self.first.save_rows((between,), n, start, stop)

    def below(self, hub: str, canonical: str) -> Self:
        return replace(self, first=self.first.below(hub, ""), second=self.second.below("", canonical))


def below(rules: Iterable[Rule], hub: str, canonical: str) -> tuple[Rule, ...]:
    """The rules of a tower, its names under `hub` in the checkpoint and under `canonical` here."""
    return tuple(rule.below(hub, canonical) for rule in rules)


def aliases(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules that keep a tensor as it is, for a second spelling of the Hub's keys."""
    return tuple(rule.alias() for rule in rules if rule.identity)


def batch_norm(hub: str, canonical: str) -> tuple[Rule, ...]:
    """The rules of a `layers.FrozenBatchNorm`, whose statistics the Hub stores as buffers."""
    rules = (
        Rename("weight", "weight"),
        Rename("bias", "bias"),
        Rename("running_mean", "mean"),
        Rename("running_var", "var"),
        Drop("num_batches_tracked"),  # counts the steps of a training
    )
    return below(rules, hub, canonical)


def translate(key: str, source: str, target: str) -> str | None:
    """`key` from one spelling to another, or None when `source` does not match it."""
    match = _pattern(source).fullmatch(key)
    if match is None:
        return None
    *parts, suffix = match.groups()
    for part in parts:
        target = target.replace("*", part, 1)
    return target + (suffix or "")


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"([^.]+)") + r"(\.[^.]+)?")


def _one(name: str | None) -> tuple[str, ...] | None:
    return None if name is None else (name,)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _cut(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor; all of a scalar."""
    return tensor[start:stop] if tensor.dim() else tensor


def _turned(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2) if tensor.dim() > 1 else tensor
