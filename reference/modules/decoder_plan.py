"""A pre-norm decoder as data: what its module is built of, and so which parameters it has, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from isoform.errors import CheckpointError
from isoform.reference.config import RopeConfig


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of layer sees: the rotary positions by name, and the window (None: everything before)."""

    rope: str = "rope"
    window: int | None = None


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

    `score_scale` defaults to 1/sqrt(head_dim). `head_norms`: every head of q and k is normed. `post_norms`: so is what
    attention and MLP add. `tied`: the head shares the table of tokens. Raises CheckpointError for heads that no
    attention can have.
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
    post_norms: bool = False
    score_scale: float | None = None
    score_softcap: float = 0.0
    embed_scale: float = 1.0
    logit_softcap: float = 0.0
    tied: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"config.json: {self.heads} attention heads cannot share {self.kv_heads} key and value heads"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"config.json: heads of {self.head_dim} channels cannot be rotated in pairs")

    def has_table(self, head: bool, embeds: bool) -> bool:
        """Whether the module holds the table of tokens; over embeddings (`embeds`) only for a head that shares it."""
        return not embeds or (head and self.tied)

    def shapes(self, head: bool | Classifier, embeds: bool = False) -> dict[str, tuple[int, ...]]:
        """The parameters of the module, in its order; `head`: with one over the vocabulary, or a classifier."""
        dim, hidden = self.dim, self.hidden
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim

        def linear(name: str, inputs: int, outputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}

        layer = {
            "attn_norm.weight": (dim,),
            **linear("attn.q", dim, queries, self.qkv_bias),
            **linear("attn.k", dim, keys, self.qkv_bias),
            **linear("attn.v", dim, keys, self.qkv_bias),
            **linear("attn.out", queries, dim, self.out_bias),
            **({f"attn.{name}_norm.weight": (self.head_dim,) for name in "qk"} if self.head_norms else {}),
            "mlp_norm.weight": (dim,),
            **linear("mlp.gate", dim, hidden, self.mlp_bias),
            **linear("mlp.up", dim, hidden, self.mlp_bias),
            **linear("mlp.down", hidden, dim, self.mlp_bias),
            **({f"{name}_post_norm.weight": (dim,) for name in ("attn", "mlp")} if self.post_norms else {}),
        }
        if isinstance(head, Classifier):
            name, labels, bias = ("qa", 2, True) if head.kind == "span" else ("classifier", head.labels, head.bias)
            top = linear(name, dim, labels, bias)
        else:
            top = {"head.weight": (self.vocab, dim)} if head else {}
        return {
            **({"embed.weight": (self.vocab, dim)} if self.has_table(bool(head), embeds) else {}),
            **{f"layers.{n}.{name}": shape for n in range(len(self.kinds)) for name, shape in layer.items()},
            "norm.weight": (dim,),
            **top,
        }
