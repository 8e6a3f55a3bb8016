"""Will float16 hold what a model computes? Its activations are measured before an export, not after it has failed.

Half precision ends at 65504. Attention adds up and multiplies inside one operation, and norms square, so what has to be
looked at are not only the modules' outputs, but scores before their cap, products of the MLP, and sums of squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isoform.reference.model import Model

LARGEST = 65504.0  # float16's
NEAR = 8.0
"""How much room is asked for: texts other than those measured had activations up to 3 times as large on the models that
were tried, and outliers grow with length."""

WIDE = ("squares",)
"""Kinds of values that every exporter computes in float32 anyway: isoform's norms are wide in ONNX and TorchScript."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest absolute value at one place.

    `kind` is "output" or "input" of a module, "weight", "scores" (of attention, before their cap and softmax) or
    "squares" (their sum, in a norm).
    """

    place: str
    kind: str
    largest: float

    @property
    def share(self) -> float:
        """Of the largest number that float16 has."""
        return self.largest / LARGEST

    @property
    def verdict(self) -> str:
        """ "overflows", "near" with less than `NEAR` times room, or "fits"."""
        if not isfinite(self.largest) or self.largest > LARGEST:
            return "overflows"
        return "near" if self.largest * NEAR > LARGEST else "fits"

    def to_json(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "kind": self.kind,
            "largest": self.largest if isfinite(self.largest) else None,
            "share": self.share if isfinite(self.largest) else None,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Forecast:
    """What was measured over so many tokens; `peaks` in the order of computation, `weights` too large to store."""

    model: str
    tokens: int
    peaks: tuple[Peak, ...]
    weights: tuple[Peak, ...]

    @property
    def overflows(self) -> list[Peak]:
        """What does not fit, wide kinds left out: they are not computed in half precision."""
        return [p for p in (*self.weights, *self.peaks) if p.verdict == "overflows" and p.kind not in WIDE]

    @property
    def near(self) -> list[Peak]:
        return [p for p in (*self.weights, *self.peaks) if p.verdict == "near" and p.kind not in WIDE]

    @property
    def keep_wide(self) -> list[str]:
        """The operations to keep in float32: those that make a value that is near or past the end."""
        return list(dict.fromkeys(p.place for p in (*self.overflows, *self.near)))

    def worst(self, count: int) -> list[Peak]:
        """The places nearest to the end or furthest past it."""
        places = [p for p in (*self.weights, *self.peaks) if p.kind not in WIDE]
        return sorted(places, key=lambda p: -_rank(p.largest))[:count]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "limit": LARGEST,
            "tokens": self.tokens,
            "fits": not self.overflows,
            "overflows": [p.to_json() for p in self.overflows],
            "near": [p.to_json() for p in self.near],
            "keep_in_float32": self.keep_wide,
            "peaks": [p.to_json() for p in self.peaks],
        }

    def __str__(self) -> str:
        """One line."""
        if not self.peaks:
            return f"{self.model}: nothing measured"
        [top] = self.worst(1)
        most = f"largest value {top.largest:.4g} at {top.place} ({top.kind}), {top.share:.1%} of 65504"
        if self.overflows:
            places = ", ".join(self.keep_wide[:4]) + (" and more" if len(self.keep_wide) > 4 else "")
            return (
                f"{self.model} overflows float16 at {places}: {most}; export to f32 or bf16, or keep these in float32"
            )
        if self.near:
            return f"{self.model} comes near the end of float16 at {', '.join(self.keep_wide[:4])}: {most}"
        return f"{self.model} fits into float16: {most}"


def _rank(value: float) -> float:
    return value if value == value else float("inf")


def float16(model: Model, *, seed: int = 0) -> Forecast:
    """Run the reference in float32 on the rows of the cases and a text, and keep the largest value of every place.

    The parts of a model are measured one after the other, and their places begin with the part's name.
    """
    import torch

    from isoform.validators.cases.case import Case
    from isoform.validators.cases.encoder_states import reads_prose
    from isoform.validators.cases.prose import prose_rows
    from isoform.validators.cases.registry import cases_of

    peaks: list[Peak] = []
    weights: list[Peak] = []
    tokens = 0
    for part in model.parts:
        prefix = f"{part.part}." if len(model.parts) > 1 else ""
        cases = [case for case in cases_of(part, seed) if not case.optional]
        rows = list(dict.fromkeys(row for case in cases for row in case.rows if not row.asked))
        if reads_prose(part.signature) and part.signature.takes("mask"):
            rows += prose_rows(part)
        tokens += sum(map(len, rows))
        module = part.module(torch.float32)
        found: dict[tuple[str, str], float] = {}
        with torch.inference_mode(), _watched(module, found):
            for row in rows:
                inputs = Case("", (row,)).inputs(part.signature)
                module(*(torch.from_numpy(array) for array in inputs.values()))
        peaks += [Peak(prefix + place, kind, top) for (place, kind), top in found.items()]
        for name, weight in part.weights.items():
            top = float(weight.load().abs().max()) if weight.shape else 0.0
            weight.release()
            if top * NEAR > LARGEST:
                weights.append(Peak(prefix + name, "weight", top))
    return Forecast(model.name, tokens, tuple(peaks), tuple(weights))


@contextmanager
def _watched(module: nn.Module, found: dict[tuple[str, str], float]) -> Iterator[None]:
    """While this lasts, `found` keeps the largest absolute value of modules and of what is inside operations.

    A module's `float32_ends` names those of its values ("input", "output") that its definition keeps out of float16.
    """
    from torch import nn

    from isoform.reference.modules import ops
    from isoform.validators.bisection.points import tensors

    running: list[str] = [""]
    handles = []

    def keep(place: str, kind: str, x: Any) -> None:
        if x is None or not x.is_floating_point() or not x.numel():
            return
        top = float(x.abs().max())
        known = found.get((place, kind), 0.0)
        found[place, kind] = top if top != top or top > known else known

    def enter(name: str, part: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            running.append(name)
            looked_at = bool(part._parameters) and "input" not in getattr(part, "float32_ends", ())
            for x in [x for x in tensors(given) if x.is_floating_point()][:1] if looked_at else ():
                keep(name, "input", x)
                if hasattr(part, "eps"):
                    keep(name, "squares", x.square().sum(-1))

        return hook

    def leave(name: str, part: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, returned: Any) -> None:
            running.pop()
            for x in tensors(returned) if "output" not in getattr(part, "float32_ends", ()) else ():
                keep(name, "output", x)

        return hook

    def watching(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            for scores in SCORES[name](*arguments) if name in SCORES else ():
                keep(f"{running[-1]}.{name}".lstrip("."), "scores", scores)
            return body(*arguments)

        return call

    for name, part in module.named_modules():
        if name and not isinstance(part, nn.Identity):
            handles.append(part.register_forward_pre_hook(enter(name, part)))
            handles.append(part.register_forward_hook(leave(name, part)))
    try:
        with ops.lowered_by({name: watching(name, body) for name, body in ops.OPS.items()}):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _product(q: Tensor, k: Tensor, heads: int, kv_heads: int, scale: float) -> Tensor:
    """q (B, T, H*D), k (B, kv_heads, S, D) -> scores before a cap (B, H, T, S), those of hidden slots as well."""
    queries = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    return queries @ k.repeat_interleave(heads // kv_heads, 1).transpose(-1, -2) * scale


def _attention(*arguments: Any) -> Any:
    import torch

    from isoform.reference.modules.ops import AttentionArguments

    a = AttentionArguments(*arguments)
    if a.switch is None:
        new = a.k.unflatten(-1, (a.kv_heads, -1)).transpose(1, 2)
        keys = new if a.past_k is None else torch.cat((a.past_k, new), 2)
        yield _product(a.q, keys, a.heads, a.kv_heads, a.scale)


SCORES: dict[str, Callable[..., Any]] = {"attention": _attention}
"""Semantic operation -> the scores inside it, from its arguments."""
