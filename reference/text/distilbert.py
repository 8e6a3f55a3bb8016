"""DistilBERT: BERT's encoder with half of the layers, without segment embeddings and without a pooler.

Sanh et al. 2019, https://arxiv.org/abs/1910.01108. Positions may be sinusoids; they are stored like learned ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, Gguf, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.layers import MLP, Embedding, Linear, activation, first_token, head_size, padding_bias
from isoform.reference.rules import Drop, Rename, Rule
from isoform.signature import BATCH, LENGTH, Port, Signature

EPS = 1e-12
"""Of every layer norm; config.json does not state it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilBertConfig(Config):
    harmless = frozenset(
        (
            *("qa_dropout", "seq_classif_dropout"),
            "sinusoidal_pos_embds",  # the table is stored
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (False, None)}
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 30522
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DistilBertConfig:
        return super(DistilBertConfig, cls).from_dict(with_labels(data))

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layers


class EncoderLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, c: DistilBertConfig) -> None:
        super().__init__()
        size = head_size(c.dim, c.n_heads, "dim", "n_heads")
        self.attn = Attention(c.dim, Heads(c.n_heads, c.n_heads, size), bias=True, out_bias=True)
        self.attn_out_norm = nn.LayerNorm(c.dim, EPS)
        self.mlp = MLP(c.dim, c.hidden_dim, c.activation)
        self.out_norm = nn.LayerNorm(c.dim, EPS)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attn_out_norm(x + self.attn(x, bias))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y


class MaskedHead(nn.Module):
    """Dense, activation and norm before the vocabulary."""

    def __init__(self, c: DistilBertConfig) -> None:
        super().__init__()
        self.dense = Linear(c.dim, c.dim)
        self.norm = nn.LayerNorm(c.dim, EPS)
        self.act = activation(c.activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.act(self.dense(x)))
        return y


class DistilBert(nn.Module):
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""

    def __init__(self, c: DistilBertConfig, head: str) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.dim)
        self.position_embed = Embedding(c.max_position_embeddings, c.dim)
        self.embed_norm = nn.LayerNorm(c.dim, EPS)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.n_layers))
        self.kind = head
        if head == "mask":
            self.mlm = MaskedHead(c)
            self.head = Linear(c.dim, c.vocab_size)
        elif head == "sequence":
            self.pooler = Linear(c.dim, c.dim)
        if head in ("token", "sequence"):
            self.classifier = Linear(c.dim, c.num_labels)
        elif head == "span":
            self.qa = Linear(c.dim, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T); without a mask there is no padding.

        Returns the last hidden state (B, T, C), logits (B, T, V) or (B, T, labels), logits (B, labels), or start and
        end logits (B, T) each.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # Positions count the real tokens, so that padding on the left changes nothing.
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        x = self.embed_norm(self.embed(input_ids) + self.position_embed(positions))
        bias = padding_bias(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        if self.kind == "mask":
            return (self.head(self.mlm(x)),)
        if self.kind == "token":
            return (self.classifier(x),)
        if self.kind == "sequence":
            return (self.classifier(torch.relu(self.pooler(first_token(x, attention_mask)))),)
        if self.kind == "span":
            start, end = self.qa(x).unbind(-1)
            return start, end
        return (x,)


Axes = Callable[[DistilBertConfig], tuple[str | int, ...]]


def _task(name: str, head: str, architecture: str, **outputs: Axes) -> Task:
    inputs = tuple(Port(port, "int64", (BATCH, LENGTH)) for port in ("input_ids", "attention_mask"))
    return Task(
        name=name,
        architectures=(architecture,),
        build=lambda c: DistilBert(c, head),
        signature=lambda c: Signature(inputs, tuple(Port(port, "float", axes(c)) for port, axes in outputs.items())),
    )


RULES: tuple[Rule, ...] = (
    Rename("distilbert.embeddings.word_embeddings", "embed"),
    Rename("distilbert.embeddings.position_embeddings", "position_embed"),
    Rename("distilbert.embeddings.LayerNorm", "embed_norm"),
    Rename("distilbert.transformer.layer.*.attention.q_lin", "layers.*.attn.q"),
    Rename("distilbert.transformer.layer.*.attention.k_lin", "layers.*.attn.k"),
    Rename("distilbert.transformer.layer.*.attention.v_lin", "layers.*.attn.v"),
    Rename("distilbert.transformer.layer.*.attention.out_lin", "layers.*.attn.out"),
    Rename("distilbert.transformer.layer.*.sa_layer_norm", "layers.*.attn_out_norm"),
    Rename("distilbert.transformer.layer.*.ffn.lin1", "layers.*.mlp.up"),
    Rename("distilbert.transformer.layer.*.ffn.lin2", "layers.*.mlp.down"),
    Rename("distilbert.transformer.layer.*.output_layer_norm", "layers.*.out_norm"),
    Rename("vocab_transform", "mlm.dense"),
    Rename("vocab_layer_norm", "mlm.norm"),
    Rename("vocab_projector", "head"),
    Rename("pre_classifier", "pooler"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("distilbert.embeddings.position_ids"),  # 0, 1, 2, ... in files of transformers before 4.31
)


def gguf_fields(c: DistilBertConfig) -> dict[str, Any]:
    return {
        "block_count": c.n_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.dim,
        "feed_forward_length": c.hidden_dim,
        "attention.head_count": c.n_heads,
        "attention.layer_norm_epsilon": EPS,
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": 1,  # llama.cpp wants one, though there is no tensor of them
        **({} if c.activation == "gelu" else {"hidden_activation": c.activation}),
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "architectures": ["DistilBertModel"],
        "model_type": "distilbert",
        "vocab_size": shapes["token_embd.weight"][0],
        "dim": fields["embedding_length"],
        "n_layers": fields["block_count"],
        "n_heads": fields["attention.head_count"],
        "hidden_dim": fields["feed_forward_length"],
        "activation": fields.get("hidden_activation", "gelu"),
        "max_position_embeddings": shapes["position_embd.weight"][0],
    }


def refuse(c: DistilBertConfig) -> str:
    if c.activation not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        return f"llama.cpp has only the activation gelu for this architecture, not {c.activation}"
    return ""


FAMILY = Family(
    name="distilbert",
    title="DistilBERT",
    model_types=("distilbert",),
    config=DistilBertConfig,
    rules=RULES,
    tasks=(
        _task("fill-mask", "mask", "DistilBertForMaskedLM", logits=lambda c: (BATCH, LENGTH, c.vocab_size)),
        _task(
            "token-classification",
            "token",
            "DistilBertForTokenClassification",
            logits=lambda c: (BATCH, LENGTH, c.num_labels),
        ),
        _task(
            "text-classification",
            "sequence",
            "DistilBertForSequenceClassification",
            logits=lambda c: (BATCH, c.num_labels),
        ),
        _task(
            "question-answering",
            "span",
            "DistilBertForQuestionAnswering",
            start_logits=lambda c: (BATCH, LENGTH),
            end_logits=lambda c: (BATCH, LENGTH),
        ),
        _task("feature-extraction", "none", "DistilBertModel", last_hidden_state=lambda c: (BATCH, LENGTH, c.dim)),
    ),
    prefix="distilbert",
    heads=("mlm", "head", "pooler", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(arch="bert", fields=gguf_fields, config=from_gguf, refuse=refuse, tasks=("feature-extraction",)),
)
