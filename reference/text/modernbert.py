"""ModernBERT: a pre-norm encoder with rotary positions, gated MLPs and windows in two of three layers.

Warner et al. 2024, https://arxiv.org/abs/2412.13663. Layers that see all have another rotary base than windowed ones.
The first layer reads the embeddings' norm without one of its own. There is no bias but the masked head's, unless
config.json says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Gguf
from isoform.reference.config import Config, RopeConfig, read_rope, with_labels
from isoform.reference.modules import ops
from isoform.reference.modules.attention import Heads, MergedAttention
from isoform.reference.modules.decoder_plan import Kind
from isoform.reference.modules.layers import (
    Embedding,
    Linear,
    MergedMLP,
    Rope,
    activation,
    first_token,
    head_size,
    padding_bias,
    true_positions,
)
from isoform.reference.modules.sentence import pool
from isoform.reference.rules import Rename, Rule
from isoform.reference.text.bidirectional import encoder_tasks
from isoform.reference.text.causal import layer_types

FULL, WINDOWED = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBertConfig(Config):
    reads = frozenset(("global_rope_theta", "local_rope_theta"))
    harmless = frozenset(
        (
            *("embedding_dropout", "initializer_cutoff_factor", "mlp_dropout"),
            *("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"),  # how the same is computed
            *("sparse_prediction", "sparse_pred_ignore_index"),  # logits of the tokens that have a label, in training
            *("layer_norm_eps", "position_embedding_type"),  # in the files of the first release; nothing reads them
        )
    )

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    decoder_bias: bool = True
    local_attention: int = 128
    global_attn_every_n_layers: int = 3
    layer_types: tuple[str, ...] = ()
    classifier_pooling: str = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True
    num_labels: int = 2
    rope: RopeConfig = field(default_factory=lambda: RopeConfig(theta=160000.0))
    local_rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        ropes = {"rope": _rope(data, FULL, "global_rope_theta", 160000.0)}
        ropes["local_rope"] = _rope(data, WINDOWED, "local_rope_theta", 10000.0)
        return super(ModernBertConfig, cls).from_dict({**with_labels(data), **ropes})

    @property
    def reach(self) -> int:
        """From which distance on a token is not seen in a windowed layer: `local_attention` counts both sides."""
        return self.local_attention // 2 + 1


def _rope(data: Mapping[str, Any], kind: str, key: str, theta: float) -> RopeConfig:
    """The rotary settings of one kind of layer. What `rope_scaling` of an old file says holds for both kinds."""
    if key in data and data[key] is None:
        raise UnsupportedModel(f"config.json: {key} is null; write the rotary base of the layers there")
    own = {**data, "rope_theta": data.get(key)}
    if kind == WINDOWED:  # of which `read_rope` takes no scaling from an old file
        given, scaling = data.get("rope_parameters") or {}, data.get("rope_scaling") or {}
        own |= {"rope_parameters": {kind: {**(given.get(kind) or {}), **scaling}}, "rope_scaling": None}
    return read_rope(own, kind, theta=theta, context=8192)


class ModernBertLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the first layer's attention reads x as it is."""

    def __init__(self, c: ModernBertConfig, first: bool) -> None:
        super().__init__()
        dim, count = c.hidden_size, c.num_attention_heads
        heads = Heads(count, count, head_size(dim, count))
        self.attn_norm: nn.Module = nn.Identity() if first else nn.LayerNorm(dim, c.norm_eps, bias=c.norm_bias)
        self.attn = MergedAttention(dim, heads, bias=c.attention_bias, out_bias=c.attention_bias)
        self.mlp_norm = nn.LayerNorm(dim, c.norm_eps, bias=c.norm_bias)
        self.mlp = MergedMLP(dim, c.intermediate_size, c.hidden_activation, c.mlp_bias)

    def forward(self, x: Tensor, bias: Tensor, angles: tuple[Tensor, Tensor] | None, window: int | None) -> Tensor:
        x = x + self.attn.attend(self.attn_norm(x), bias, None, angles, window)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class PredictionHead(nn.Module):
    """Dense, activation and norm before the last layer of every head: (..., C) -> (..., C)."""

    def __init__(self, c: ModernBertConfig) -> None:
        super().__init__()
        self.dense = Linear(c.hidden_size, c.hidden_size, c.classifier_bias)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps, bias=c.norm_bias)
        self.act = activation(c.classifier_activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.act(self.dense(x)))
        return y


class Hide(nn.Module):
    """The bias of a window. As a module it is a place of its own in graphs, which branch by the length of the text."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, attention_mask: Tensor, like: Tensor) -> Tensor:
        """See `ops.local_bias`."""
        return ops.local_bias(attention_mask, like, self.window)


class ModernBert(nn.Module):
    """Token ids in, the outputs of one head out: "none", "mask", "token", "sequence" or "span"."""

    def __init__(self, c: ModernBertConfig, head: str) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.embed_norm = nn.LayerNorm(c.hidden_size, c.norm_eps, bias=c.norm_bias)
        self.layers = nn.ModuleList(ModernBertLayer(c, first=n == 0) for n in range(c.num_hidden_layers))
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps, bias=c.norm_bias)
        rotated = head_size(c.hidden_size, c.num_attention_heads)
        self.ropes = nn.ModuleDict({"rope": Rope(rotated, c.rope), "local_rope": Rope(rotated, c.local_rope)})
        self.hide = Hide(c.reach)
        self.kinds = kinds(c)
        self.kind, self.pooling = head, c.classifier_pooling
        if head != "none":
            self.mlm = PredictionHead(c)
        if head == "mask":
            self.head = Linear(c.hidden_size, c.vocab_size, c.decoder_bias)
        elif head != "none":
            self.classifier = Linear(c.hidden_size, c.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T); without a mask there is no padding.

        Returns the last hidden state (B, T, C), logits (B, T, V) or (B, T, labels), logits (B, labels), or start and
        end logits (B, T) each.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # Only distances count: among the tokens of a text they are those of its slots, whichever side is padded.
        positions = true_positions(attention_mask)
        x = self.embed_norm(self.embed(input_ids))
        angles = {name: rope(positions, x.dtype) for name, rope in self.ropes.items()}
        windows = dict.fromkeys(kind.window for kind in self.kinds)
        bias = {
            window: padding_bias(attention_mask, x.dtype) if window is None else self.hide(attention_mask, x)
            for window in windows
        }
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            x = layer(x, bias[kind.window], None if kind.rope is None else angles[kind.rope], kind.window)
        return self.answer(self.norm(x), attention_mask)

    def answer(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the head for the last hidden state."""
        if self.kind == "none":
            return (x,)
        if self.kind == "mask":
            return (self.head(self.mlm(x)),)
        if self.kind == "sequence":
            x = first_token(x, attention_mask) if self.pooling == "cls" else pool(x, attention_mask, "mean")
        logits = self.classifier(self.mlm(x))
        return logits.unbind(-1) if self.kind == "span" else (logits,)


def kinds(c: ModernBertConfig) -> tuple[Kind, ...]:
    """What each layer sees: all, or a window; each has its rotary base."""
    found = {FULL: Kind("rope"), WINDOWED: Kind("local_rope", c.reach)}
    return tuple(found[kind] for kind in layer_types(c, lambda n: n % c.global_attn_every_n_layers != 0))


def build(c: ModernBertConfig, head: str) -> ModernBert:
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""
    if c.classifier_pooling not in ("cls", "mean"):
        raise CheckpointError(f"config.json: classifier_pooling is {c.classifier_pooling!r}, neither 'cls' nor 'mean'")
    if head == "span" and c.num_labels != 2:
        raise CheckpointError(
            f"config.json: id2label has {c.num_labels} labels, and an answer has two ends; question answering needs 2"
        )
    return ModernBert(c, head)


RULES: tuple[Rule, ...] = (
    Rename("model.embeddings.tok_embeddings", "embed"),
    Rename("model.embeddings.norm", "embed_norm"),
    Rename("model.layers.*.attn_norm", "layers.*.attn_norm"),
    Rename("model.layers.*.attn.Wqkv", "layers.*.attn.qkv"),
    Rename("model.layers.*.attn.Wo", "layers.*.attn.out"),
    Rename("model.layers.*.mlp_norm", "layers.*.mlp_norm"),
    Rename("model.layers.*.mlp.Wi", "layers.*.mlp.gate_up"),
    Rename("model.layers.*.mlp.Wo", "layers.*.mlp.down"),
    Rename("model.final_norm", "norm"),
    Rename("head.dense", "mlm.dense"),
    Rename("head.norm", "mlm.norm"),
    Rename("decoder", "head"),
    Rename("classifier", "classifier"),
)


def gguf_fields(c: ModernBertConfig) -> dict[str, Any]:
    return {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.layer_norm_epsilon": c.norm_eps,
        "attention.layer_norm_rms_epsilon": c.norm_eps,  # which the converter writes and nothing reads
        "attention.causal": False,
        "attention.sliding_window": c.local_attention,
        "attention.sliding_window_pattern": period(c),
        "rope.freq_base": c.rope.theta,
        "rope.freq_base_swa": c.local_rope.theta,
        "rope.scaling.type": "none",
        "vocab_size": c.vocab_size,
        "hidden_activation": c.hidden_activation,
    }


def period(c: ModernBertConfig) -> int:
    """Every how many layers one sees all, the first of them to begin with; 0 when the layers follow no such rule."""
    windowed = [kind.window is not None for kind in kinds(c)]
    counts = (c.global_attn_every_n_layers, *range(1, len(windowed) + 1))
    return next((every for every in counts if windowed == [n % every != 0 for n in range(len(windowed))]), 0)


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": fields["embedding_length"],
        "intermediate_size": fields["feed_forward_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": fields["attention.head_count"],
        "max_position_embeddings": fields["context_length"],
        "norm_eps": fields["attention.layer_norm_epsilon"],
        "local_attention": fields["attention.sliding_window"],
        "global_attn_every_n_layers": fields.get("attention.sliding_window_pattern", 3),
        "global_rope_theta": fields["rope.freq_base"],
        "local_rope_theta": fields.get("rope.freq_base_swa", 10000.0),
        "hidden_activation": fields.get("hidden_activation", "gelu"),
    }


def refuse(c: ModernBertConfig) -> str:
    if c.norm_bias or c.attention_bias or c.mlp_bias:
        return "llama.cpp has no biases in this architecture (norm_bias, attention_bias or mlp_bias is true)"
    if not period(c):
        return "llama.cpp wants windowed layers in a regular pattern (layer_types follows none)"
    if c.rope.kind != "default" or c.local_rope.kind != "default":
        return "llama.cpp does not scale the rotary positions of this architecture"
    if c.hidden_activation not in ("gelu", "gelu_new", "gelu_pytorch_tanh", "silu"):
        return f"llama.cpp has the activations gelu and silu for this architecture, not {c.hidden_activation}"
    return ""


FAMILY = Family(
    name="modernbert",
    title="ModernBERT",
    model_types=("modernbert",),
    config=ModernBertConfig,
    rules=RULES,
    tasks=encoder_tasks(
        build,
        {
            "mask": ("ModernBertForMaskedLM",),
            "token": ("ModernBertForTokenClassification",),
            "sequence": ("ModernBertForSequenceClassification",),
            "span": ("ModernBertForQuestionAnswering",),
            "none": ("ModernBertModel",),
        },
        types=lambda c: False,
    ),
    prefix="model",
    heads=("mlm", "head", "classifier"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(
        arch="modern-bert",
        fields=gguf_fields,
        config=from_gguf,
        refuse=refuse,
        tasks=("feature-extraction",),
        names={"layers.*.mlp.gate_up": "blk.*.ffn_up"},
    ),
)
