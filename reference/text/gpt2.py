"""GPT-2: pre-norm decoder with layer norms, learned positions and one matrix for queries, keys and values.

Radford et al. 2019, https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf.
Also serves DistilGPT-2. The Hub stores every matrix of a layer as (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from isoform.reference.card import Family, Gguf, Part, Task
from isoform.reference.config import Config
from isoform.reference.modules.attention import GrowingCache, Heads, PackedAttention
from isoform.reference.modules.decoder import TokenEmbedding
from isoform.reference.modules.layers import (
    MLP,
    Embedding,
    Linear,
    causal_bias,
    head_size,
    last_token,
    true_positions,
)
from isoform.reference.rules import Drop, Rename, Rule, Transpose
from isoform.reference.text.causal import with_head
from isoform.signature import BATCH, LENGTH, Port, Signature, decoder_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpt2Config(Config):
    harmless = frozenset(
        (
            *("summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj"),  # of the choice head
            *("n_ctx", "n_special", "predict_special_tokens"),  # of a version that nothing reads any more
            "reorder_and_upcast_attn",  # the order of rounding in half precision
        )
    )
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2
    pad_token_id: int | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(Gpt2Config, cls).from_dict(with_head(data))

    @property
    def context(self) -> int:
        return self.n_positions

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layer

    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def num_attention_heads(self) -> int:
        return self.n_head

    @property
    def inner(self) -> int:
        """The width inside the MLP."""
        return self.n_inner or 4 * self.n_embd

    @property
    def head_size(self) -> int:
        return head_size(self.n_embd, self.n_head, "n_embd", "n_head")

    def heads(self, layer: int) -> Heads:
        """The attention heads of a layer, whose scores may be scaled by its number."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        if self.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        return Heads(self.n_head, self.n_head, self.head_size, scale)


class Gpt2Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c: Gpt2Config, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.attn = PackedAttention(c.n_embd, c.heads(layer))
        self.mlp_norm = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.mlp = MLP(c.n_embd, c.inner, c.activation_function)

    def forward(self, x: Tensor, bias: Tensor, cache: GrowingCache | None = None) -> Tensor:
        x = x + self.attn.attend(self.attn_norm(x), bias, cache)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Gpt2(nn.Module):
    """The trunk with one head: "none", "vocabulary", "sequence", "token" or "span".

    `embeds`: the first input is embeddings (B, T, C) instead of ids, and the table is there for a head that shares it.
    """

    def __init__(self, c: Gpt2Config, head: str, embeds: bool = False) -> None:
        super().__init__()
        if not embeds or (head == "vocabulary" and c.tie_word_embeddings):
            self.embed = Embedding(c.vocab_size, c.n_embd)
        self.position_embed = Embedding(c.n_positions, c.n_embd)
        self.layers = nn.ModuleList(Gpt2Layer(c, n) for n in range(c.n_layer))
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.kind, self.pad, self.embeds, self.heads = head, c.pad_token_id, embeds, c.heads(0)
        if head == "vocabulary":
            self.head = Linear(c.n_embd, c.vocab_size, False)
        elif head == "sequence":
            self.score = Linear(c.n_embd, c.num_labels, False)
        elif head == "token":
            self.classifier = Linear(c.n_embd, c.num_labels)
        elif head == "span":
            self.qa = Linear(c.n_embd, 2)

    def states(self, input_ids: Tensor, mask: Tensor, positions: Tensor | None, past: tuple[Tensor, ...]) -> Any:
        """The last hidden state (B, T, C), and the extended cache."""
        # What hides what is a matter of the mask alone: position_ids may count from 1, as some programs do.
        counted = true_positions(mask)[:, mask.shape[1] - input_ids.shape[1] :]
        x = input_ids if self.embeds else self.embed(input_ids)
        x = x + self.position_embed(counted if positions is None else positions)
        bias = causal_bias(mask, counted, None, x.dtype)
        present: list[Tensor] = []
        for n, layer in enumerate(self.layers):
            cache = GrowingCache(past[2 * n], past[2 * n + 1]) if past else None
            x = layer(x, bias, cache)
            present += cache.present if cache is not None else ()
        return self.norm(x), present


class Gpt2Decoder(Gpt2):
    """Ids in, logits (or with no head the last hidden state) and the extended cache out."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """One pass over T new tokens after P cached ones; shapes as in `decoder.DecoderLM`."""
        if not past:
            empty = self.norm.weight.new_zeros(input_ids.shape[0], self.heads.kv, 0, self.heads.dim)
            past = (empty,) * (2 * len(self.layers))
        if attention_mask is None:
            slots = past[0].shape[2] + input_ids.shape[1]
            attention_mask = torch.ones(input_ids.shape[0], slots, dtype=torch.int64, device=input_ids.device)
        x, present = self.states(input_ids, attention_mask, position_ids, past)
        return (self.head(x) if self.kind == "vocabulary" else x), *present


class Gpt2Classifier(Gpt2):
    """Ids in, logits of a whole text, of each token, or of the two ends of an answer out."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T); without a mask there is no padding.

        Returns logits (B, labels) or (B, T, labels), or start and end logits (B, T) each.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x, _ = self.states(input_ids, attention_mask, None, ())
        if self.kind == "sequence":
            real = attention_mask
            if self.pad is not None:  # such a token does not count even where the mask shows it
                real = real * (input_ids != self.pad).to(real.dtype)
            return (self.score(last_token(x, real)),)
        if self.kind == "token":
            return (self.classifier(x),)
        start, end = self.qa(x).unbind(-1)
        return start, end


Axes = Callable[[Gpt2Config], tuple[str | int, ...]]


def logits(c: Gpt2Config, embeddings: int | None = None) -> Signature:
    return decoder_signature(c.n_layer, c.n_head, c.head_size, c.vocab_size, embeddings=embeddings)


def embedded(c: Gpt2Config) -> Signature:
    ids = Port("input_ids", "int64", (BATCH, LENGTH))
    return Signature((ids,), (Port("inputs_embeds", "float", (BATCH, LENGTH, c.n_embd)),))


def states(c: Gpt2Config) -> Signature:
    whole = logits(c)
    first = Port("last_hidden_state", "float", (BATCH, LENGTH, c.n_embd))
    return replace(whole, outputs=(first, *whole.outputs[1:]))


def _classifier(name: str, head: str, architecture: str, **outputs: Axes) -> Task:
    inputs = tuple(Port(port, "int64", (BATCH, LENGTH)) for port in ("input_ids", "attention_mask"))
    return Task(
        name=name,
        architectures=(architecture,),
        build=lambda c: Gpt2Classifier(c, head),
        signature=lambda c: Signature(inputs, tuple(Port(port, "float", axes(c)) for port, axes in outputs.items())),
    )


RULES: tuple[Rule, ...] = (
    Rename("transformer.wte", "embed"),
    Rename("transformer.wpe", "position_embed"),
    Rename("transformer.h.*.ln_1", "layers.*.attn_norm"),
    Transpose("transformer.h.*.attn.c_attn", "layers.*.attn.qkv"),
    Transpose("transformer.h.*.attn.c_proj", "layers.*.attn.out"),
    Rename("transformer.h.*.ln_2", "layers.*.mlp_norm"),
    Transpose("transformer.h.*.mlp.c_fc", "layers.*.mlp.up"),
    Transpose("transformer.h.*.mlp.c_proj", "layers.*.mlp.down"),
    Rename("transformer.ln_f", "norm"),
    Rename("lm_head", "head"),
    Rename("score", "score"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
    Rename("multiple_choice_head.summary", "choice"),
    Drop("transformer.h.*.attn.bias"),  # the causal mask
    Drop("transformer.h.*.attn.masked_bias"),  # what hides a score
)


def gguf_fields(c: Gpt2Config) -> dict[str, Any]:
    return {
        "block_count": c.n_layer,
        "context_length": c.n_positions,
        "embedding_length": c.n_embd,
        "feed_forward_length": c.inner,
        "attention.head_count": c.n_head,
        "attention.layer_norm_epsilon": c.layer_norm_epsilon,
    }


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shapes["token_embd.weight"][0],
        "n_positions": fields["context_length"],
        "n_embd": fields["embedding_length"],
        "n_layer": fields["block_count"],
        "n_head": fields["attention.head_count"],
        "n_inner": fields["feed_forward_length"],
        "layer_norm_epsilon": fields["attention.layer_norm_epsilon"],
        "tie_word_embeddings": "output.weight" not in shapes,
    }


def refuse(c: Gpt2Config) -> str:
    if c.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"llama.cpp has only the activation gelu_new for this architecture, not {c.activation_function}"
    if not c.scale_attn_weights:
        return "llama.cpp divides scores by the root of the head size, which scale_attn_weights = false does not"
    if c.scale_attn_by_inverse_layer_idx:
        return "llama.cpp does not scale scores by the layer (scale_attn_by_inverse_layer_idx is true)"
    return ""


FAMILY = Family(
    name="gpt2",
    title="GPT-2, DistilGPT-2",
    model_types=("gpt2",),
    config=Gpt2Config,
    rules=RULES,
    tasks=(
        Task(
            name="text-generation",
            architectures=("GPT2LMHeadModel", "GPT2DoubleHeadsModel"),
            build=lambda c: Gpt2Decoder(c, "vocabulary"),
            signature=logits,
            carried=("choice",),
        ),
        _classifier(
            "text-classification", "sequence", "GPT2ForSequenceClassification", logits=lambda c: (BATCH, c.num_labels)
        ),
        _classifier(
            "token-classification",
            "token",
            "GPT2ForTokenClassification",
            logits=lambda c: (BATCH, LENGTH, c.num_labels),
        ),
        _classifier(
            "question-answering",
            "span",
            "GPT2ForQuestionAnswering",
            start_logits=lambda c: (BATCH, LENGTH),
            end_logits=lambda c: (BATCH, LENGTH),
        ),
        Task(
            name="feature-extraction",
            architectures=("GPT2Model",),
            build=lambda c: Gpt2Decoder(c, "none"),
            signature=states,
        ),
    ),
    parts={
        "embed_tokens": Part(build=lambda c: TokenEmbedding(Embedding(c.vocab_size, c.n_embd)), signature=embedded),
        "decoder": Part(
            build=lambda c: Gpt2Decoder(c, "vocabulary", embeds=True), signature=lambda c: logits(c, c.n_embd)
        ),
    },
    prefix="transformer",
    heads=("head", "score", "classifier", "qa", "choice"),
    tied=lambda c: {"head.weight": "embed.weight"} if c.tie_word_embeddings else {},
    gguf=Gguf(arch="gpt2", fields=gguf_fields, config=from_gguf, refuse=refuse, tasks=("text-generation",)),
)
