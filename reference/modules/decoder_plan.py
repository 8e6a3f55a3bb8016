"""A decoder as data: what its module is built of, and so which parameters it has, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from isoform.errors import CheckpointError
from isoform.reference.config import RopeConfig


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of layer sees: rotary positions by name (None: none), and the window (None: everything before).

    `routed`: its MLP is one of experts.
    """

    rope: str | None = "rope"
    window: int | None = None
    routed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The MLPs of routed layers: `count` experts of a width, of which a token takes `used`.

    `normalize`: the weights of those add up to 1. Raises CheckpointError where a token takes more than there are.
    """

    count: int
    used: int
    hidden: int
    normalize: bool

    def __post_init__(self) -> None:
        if self.used > self.count:
            raise CheckpointError(f"config.json: a token cannot take {self.used} of {self.count} experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A head over the last hidden state: labels of the last token, of every token, or the two ends of a span.

    `pad`: the token that fills rows up. The last token is the last one that is not it.
    """

    kind: Literal["sequence", "token", "span"]
    labels: int = 2
    bias: bool = False
    pad: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan:
    """The sizes and options of a `decoder.DecoderTrunk`. `kinds` has one entry per layer.

    `score_scale` defaults to 1/sqrt(head_dim). `head_norms`: every head of q and k is normed; `whole_norms`: all heads
    of each together. `pre_norms`: what attention and MLP read is normed; `post_norms`: what they add is. `merged`: q, k
    and v are one matrix, and so are gate and up. What is added is multiplied by `residual_scale`, and logits are
    divided by `logit_divisor`. `tied`: the head shares the table of tokens. Raises CheckpointError for heads that no
    attention can have. `experts`: those of the layers that are `routed`. `both_sides`: an
    encoder, whose tokens see what is behind them too, in windows at a distance of less than the window.
    """

    vocab: int
    dim: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    act: str
    eps: float
    kinds: tuple[Kind, ...]
    ropes: Mapping[str, RopeConfig]
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    whole_norms: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    merged: bool = False
    score_scale: float | None = None
    score_softcap: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float = 0.0
    tied: bool = False
    experts: Routing | None = None
    both_sides: bool = False

    def __post_init__(self) -> None:
        assert not (self.merged and (self.head_norms or self.whole_norms)), "merged q and k have no norms"
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"config.json: {self.heads} attention heads cannot share {self.kv_heads} key and value heads"
            )
        for rope in self.ropes.values():
            if (rotated := int(self.head_dim * rope.partial)) % 2:
                raise CheckpointError(f"config.json: heads of {rotated} channels cannot be rotated in pairs")

    def has_table(self, head: bool, embeds: bool) -> bool:
        """Whether the module holds the table of tokens; over embeddings (`embeds`) only for a head that shares it."""
        return not embeds or (head and self.tied)

    def shapes(self, head: bool | Classifier, embeds: bool = False) -> dict[str, tuple[int, ...]]:
        """The parameters of the module, in its order; `head`: with one over the vocabulary, or a classifier."""
        dim, hidden = self.dim, self.hidden
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim

        def linear(inputs: int, bias: bool, outputs: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
            found: dict[str, tuple[int, ...]] = {}
            for name, size in outputs.items():
                found |= {f"{name}.weight": (size, inputs), **({f"{name}.bias": (size,)} if bias else {})}
            return found

        def norms(wanted: bool, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (size,) for name, size in sizes.items() if wanted}

        each = (queries, keys) if self.whole_norms else (self.head_dim, self.head_dim)
        merged = {"attn.qkv": queries + 2 * keys}, {"mlp.gate_up": 2 * hidden}
        apart = {"attn.q": queries, "attn.k": keys, "attn.v": keys}, {"mlp.gate": hidden, "mlp.up": hidden}
        reads, rises = merged if self.merged else apart

        def mlp(kind: Kind) -> dict[str, tuple[int, ...]]:
            if kind.routed and (experts := self.experts) is not None:
                up, down = (experts.count, experts.hidden, dim), (experts.count, dim, experts.hidden)
                return {
                    "mlp.router.weight": (experts.count, dim),
                    "mlp.experts.gate.weight": up,
                    "mlp.experts.up.weight": up,
                    "mlp.experts.down.weight": down,
                }
            return {**linear(dim, self.mlp_bias, rises), **linear(hidden, self.mlp_bias, {"mlp.down": dim})}

        before = {
            **norms(self.pre_norms, {"attn_norm": dim}),
            **linear(dim, self.qkv_bias, reads),
            **linear(queries, self.out_bias, {"attn.out": dim}),
            **norms(self.head_norms or self.whole_norms, {"attn.q_norm": each[0], "attn.k_norm": each[1]}),
            **norms(self.pre_norms, {"mlp_norm": dim}),
        }
        after = norms(self.post_norms, {"attn_post_norm": dim, "mlp_post_norm": dim})
        layers = {
            f"layers.{n}.{name}": shape
            for n, kind in enumerate(self.kinds)
            for name, shape in {**before, **mlp(kind), **after}.items()
        }
        if isinstance(head, Classifier):
            name, labels, bias = ("qa", 2, True) if head.kind == "span" else ("classifier", head.labels, head.bias)
            top = linear(dim, bias, {name: labels})
        else:
            top = {"head.weight": (self.vocab, dim)} if head else {}
        return {
            **({"embed.weight": (self.vocab, dim)} if self.has_table(bool(head), embeds) else {}),
            **layers,
            "norm.weight": (dim,),
            **top,
        }
