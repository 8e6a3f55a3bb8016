"""BERT: a post-norm bidirectional encoder with learned positions and segment embeddings.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805. Also serves sentence-transformers' MiniLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family, Gguf, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import Attention, Heads
from isoform.reference.modules.layers import MLP, Embedding, Linear, activation, first_token, head_size, padding_bias
from isoform.reference.rules import Drop, Rename, Rule
from isoform.signature import BATCH, LENGTH, Port, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig(Config):
    harmless = frozenset(
        (
            *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
            *("pooler_size_per_head", "pooler_type"),  # of the first BERT's own code
        )
    )
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"is_causal": (False, None)}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BertConfig:
        return super(BertConfig, cls).from_dict(with_labels(data))


class EncoderLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, c: BertConfig) -> None:
        super().__init__()
        dim, heads = c.hidden_size, c.num_attention_heads
        self.attn = Attention(dim, Heads(heads, heads, head_size(dim, heads)), bias=True, out_bias=True)
        self.attn_out_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp = MLP(dim, c.intermediate_size, c.hidden_act)
        self.out_norm = nn.LayerNorm(dim, c.layer_norm_eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attn_out_norm(x + self.attn(x, bias))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y


class MaskedHead(nn.Module):
    """Dense, activation and norm before the vocabulary."""

    def __init__(self, c: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.act = activation(c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.act(self.dense(x)))
        return y


class Bert(nn.Module):
    """The trunk with one head: "none", "mask", "token", "sequence" or "span"."""

    def __init__(self, c: BertConfig, head: str) -> None:
        super().__init__()
        if c.is_decoder or c.position_embedding_type != "absolute":
            raise UnsupportedModel(
                f"BERT with is_decoder={c.is_decoder} and {c.position_embedding_type!r} positions is not supported"
            )
        dim = c.hidden_size
        self.embed = Embedding(c.vocab_size, dim)
        self.position_embed = Embedding(c.max_position_embeddings, dim)
        self.type_embed = Embedding(c.type_vocab_size, dim)
        self.embed_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.num_hidden_layers))
        self.kind = head
        if head == "mask":
            self.mlm = MaskedHead(c)
            self.head = Linear(dim, c.vocab_size)
        elif head == "sequence":
            self.pooler = Linear(dim, dim)
        if head in ("token", "sequence"):
            self.classifier = Linear(dim, c.num_labels)
        elif head == "span":
            self.qa = Linear(dim, 2)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Shapes: all inputs (B, T); omitted ones mean no padding, one segment.

        Returns the last hidden state (B, T, C), logits (B, T, V) or (B, T, labels), logits (B, labels), or start and
        end logits (B, T) each.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        # Learned positions count the real tokens, so that padding on the left changes nothing.
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        x = self.embed(input_ids) + self.type_embed(token_type_ids) + self.position_embed(positions)
        x = self.embed_norm(x)
        bias = padding_bias(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        if self.kind == "mask":
            return (self.head(self.mlm(x)),)
        if self.kind == "token":
            return (self.classifier(x),)
        if self.kind == "sequence":
            first = first_token(x, attention_mask)
            return (self.classifier(torch.tanh(self.pooler(first))),)
        if self.kind == "span":
            start, end = self.qa(x).unbind(-1)
            return start, end
        return (x,)


def _signature(*outputs: tuple[str, Callable[[BertConfig], tuple[Any, ...]]]) -> Callable[[BertConfig], Signature]:
    inputs = tuple(Port(n, "int64", (BATCH, LENGTH)) for n in ("input_ids", "attention_mask", "token_type_ids"))
    return lambda c: Signature(inputs, tuple(Port(name, "float", axes(c)) for name, axes in outputs))


def _task(name: str, head: str, architectures: tuple[str, ...], *outputs: Any, carried: tuple[str, ...] = ()) -> Task:
    return Task(
        name=name,
        architectures=architectures,
        build=lambda c: Bert(c, head),
        signature=_signature(*outputs),
        carried=carried,
    )


RULES: tuple[Rule, ...] = (
    Rename("bert.embeddings.word_embeddings", "embed"),
    Rename("bert.embeddings.position_embeddings", "position_embed"),
    Rename("bert.embeddings.token_type_embeddings", "type_embed"),
    Rename("bert.embeddings.LayerNorm", "embed_norm"),
    Rename("bert.encoder.layer.*.attention.self.query", "layers.*.attn.q"),
    Rename("bert.encoder.layer.*.attention.self.key", "layers.*.attn.k"),
    Rename("bert.encoder.layer.*.attention.self.value", "layers.*.attn.v"),
    Rename("bert.encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("bert.encoder.layer.*.attention.output.LayerNorm", "layers.*.attn_out_norm"),
    Rename("bert.encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("bert.encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("bert.encoder.layer.*.output.LayerNorm", "layers.*.out_norm"),
    Rename("bert.pooler.dense", "pooler"),
    Rename("cls.predictions.transform.dense", "mlm.dense"),
    Rename("cls.predictions.transform.LayerNorm", "mlm.norm"),
    Rename("cls.predictions.bias", "head.bias"),
    Rename("cls.predictions.decoder.weight", "head.weight"),
    Drop("cls.predictions.decoder.bias"),  # the same as cls.predictions.bias
    Rename("cls.seq_relationship", "nsp"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("bert.embeddings.position_ids"),
)


def gguf_fields(c: BertConfig) -> dict[str, Any]:
    return {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.layer_norm_epsilon": c.layer_norm_eps,
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": c.type_vocab_size,
        **({} if c.hidden_act == "gelu" else {"hidden_activation": c.hidden_act}),
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": fields["embedding_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": fields["attention.head_count"],
        "intermediate_size": fields["feed_forward_length"],
        "max_position_embeddings": shapes["position_embd.weight"][0],
        "type_vocab_size": shapes["token_types.weight"][0],
        "layer_norm_eps": fields["attention.layer_norm_epsilon"],
        "hidden_act": fields.get("hidden_activation", "gelu"),
    }


def refuse(c: BertConfig) -> str:
    if c.hidden_act not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        return f"llama.cpp has only the activation gelu for this architecture, not {c.hidden_act}"
    return ""


FAMILY = Family(
    name="bert",
    title="BERT, MiniLM",
    model_types=("bert",),
    config=BertConfig,
    rules=RULES,
    tasks=(
        _task(
            "fill-mask",
            "mask",
            ("BertForMaskedLM", "BertForPreTraining"),
            ("logits", lambda c: (BATCH, LENGTH, c.vocab_size)),
        ),
        _task(
            "token-classification",
            "token",
            ("BertForTokenClassification",),
            ("logits", lambda c: (BATCH, LENGTH, c.num_labels)),
        ),
        _task(
            "text-classification",
            "sequence",
            ("BertForSequenceClassification",),
            ("logits", lambda c: (BATCH, c.num_labels)),
        ),
        _task(
            "question-answering",
            "span",
            ("BertForQuestionAnswering",),
            ("start_logits", lambda c: (BATCH, LENGTH)),
            ("end_logits", lambda c: (BATCH, LENGTH)),
        ),
        _task(
            "feature-extraction",
            "none",
            ("BertModel",),
            ("last_hidden_state", lambda c: (BATCH, LENGTH, c.hidden_size)),
            carried=("pooler",),
        ),
    ),
    prefix="bert",
    heads=("pooler", "mlm", "head", "nsp", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(
        arch="bert",
        fields=gguf_fields,
        config=from_gguf,
        holds=("token_types.weight",),
        refuse=refuse,
        tasks=("feature-extraction",),
    ),
)
