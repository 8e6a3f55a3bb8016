"""BLIP: a vision transformer whose picture a BERT-like text model attends to, to ask about it or to caption it.

Li et al. 2022, https://arxiv.org/abs/2201.12086. A question is read by a text encoder that looks at the picture, and
its states are what the decoder of the answer attends to; a caption's decoder attends to the picture itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Part, Task
from isoform.reference.config import section
from isoform.reference.modules.attention import (
    Attention,
    CrossAttention,
    DecoderStep,
    EncoderStatesCache,
    Heads,
    PackedAttention,
    SwitchedCache,
)
from isoform.reference.modules.layers import MLP, Embedding, Linear, activation, head_size, padding_bias
from isoform.reference.multimodal.towers import TextConfig, TowersConfig, VisionConfig
from isoform.reference.rules import Drop, Rename, Rule, below
from isoform.reference.vision.patches import PatchEmbed, grid, pixels
from isoform.signature import BATCH, ENCODER_LENGTH, LENGTH, Port, Signature, encoder_decoder_signature

TOKENS = ("bos_token_id", "sep_token_id", "pad_token_id")
"""The ids of text_config that say how a text begins, ends and is padded, as in transformers' `generate` of BLIP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipTextConfig(TextConfig):
    harmless = frozenset(("encoder_hidden_size",))  # always the vision tower's

    vocab_size: int = 30524
    hidden_size: int = 768
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    is_decoder: bool = True
    tie_word_embeddings: bool = True

    @property
    def heads(self) -> Heads:
        count = self.num_attention_heads
        return Heads(count, count, head_size(self.hidden_size, count))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipVisionConfig(VisionConfig):
    image_size: int | tuple[int, ...] = 384
    patch_size: int | tuple[int, ...] = 16
    hidden_act: str = "gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipConfig(TowersConfig[BlipTextConfig, BlipVisionConfig]):
    """`tokens`: what a text begins with, ends with and is padded with, as text_config states them."""

    harmless = frozenset(("image_text_hidden_size",))  # of the head that compares pictures and texts

    tokens: tuple[Any, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BlipConfig:
        cls.account(data)
        given = section(data, "text_config")
        text = BlipTextConfig.from_dict(given)
        if not (text.tie_word_embeddings and data.get("tie_word_embeddings", True)):
            raise UnsupportedModel("BLIP with tie_word_embeddings=false is not supported: its head has two biases")
        if not text.is_decoder:
            raise UnsupportedModel("BLIP with text_config.is_decoder=false attends to no picture; take another model")
        tokens = tuple(given.get(name) for name in TOKENS)
        return cls(text=text, vision=BlipVisionConfig.from_dict(section(data, "vision_config")), tokens=tokens)


class VisionLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries, keys and values come from one matrix."""

    def __init__(self, c: BlipVisionConfig) -> None:
        super().__init__()
        dim, heads = c.hidden_size, c.num_attention_heads
        self.attn_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.attn = PackedAttention(dim, Heads(heads, heads, head_size(dim, heads)))
        self.mlp_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.mlp = MLP(dim, c.intermediate_size, c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Vision(nn.Module):
    """Patches and a class token through the layers."""

    def __init__(self, c: BlipConfig) -> None:
        super().__init__()
        v = c.vision
        rows, columns = grid(v.image_size, v.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, v.hidden_size))
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, v.hidden_size))
        self.patch_embed = PatchEmbed(v.num_channels, v.hidden_size, v.patch_size)
        self.layers = nn.ModuleList(VisionLayer(v) for _ in range(v.num_hidden_layers))
        self.norm = nn.LayerNorm(v.hidden_size, v.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W) -> last_hidden_state (B, 1 + patches, C)."""
        x = self.patch_embed(pixel_values)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.position_embed
        for layer in self.layers:
            x = layer(x)
        return (self.norm(x),)


class TextLayer(nn.Module):
    """norm(x + attention(x)), norm(x + attention to the encoder states), norm(x + mlp(x))."""

    def __init__(self, c: BlipTextConfig, states: int) -> None:
        super().__init__()
        dim, heads, eps = c.hidden_size, c.heads, c.layer_norm_eps
        self.attn = Attention(dim, heads, bias=True, out_bias=True)
        self.attn_out_norm = nn.LayerNorm(dim, eps)
        self.cross = CrossAttention(dim, heads, kv_dim=states, bias=True, out_bias=True)
        self.cross_out_norm = nn.LayerNorm(dim, eps)
        self.mlp = MLP(dim, c.intermediate_size, c.hidden_act)
        self.out_norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, states: Tensor, bias: Tensor) -> Tensor:
        """The encoder's: every token sees every other. Shapes: x (B, T, C), states (B, S, D), bias (B, 1, 1, T)."""
        x = self.attn_out_norm(x + self.attn(x, bias))
        x = self.cross_out_norm(x + self.cross.attend(x, states))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y

    def step(
        self, x: Tensor, states: Tensor, own: SwitchedCache, crossed: EncoderStatesCache, bias: Tensor | None
    ) -> Tensor:
        """The decoder's, with the caches of the tokens before and of the encoder states; bias (B, 1, 1, S)."""
        x = self.attn_out_norm(x + self.attn.attend(x, cache=own))
        x = self.cross_out_norm(x + self.cross.attend(x, states, bias, crossed))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y


class Text(nn.Module):
    """Embeddings and layers of the question's encoder and of both decoders."""

    def __init__(self, c: BlipTextConfig, states: int) -> None:
        super().__init__()
        dim = c.hidden_size
        self.embed = Embedding(c.vocab_size, dim)
        self.position_embed = Embedding(c.max_position_embeddings, dim)
        self.embed_norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.layers = nn.ModuleList(TextLayer(c, states) for _ in range(c.num_hidden_layers))

    def embedded(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.embed_norm(self.embed(input_ids) + self.position_embed(positions))
        return x


class Question(Text):
    """The encoder of a question, which looks at the picture."""

    def __init__(self, c: BlipConfig) -> None:
        super().__init__(c.text, c.vision.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids and attention_mask (B, T), encoder_hidden_states (B, S, D).

        Returns last_hidden_state (B, T, C).
        """
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        x = self.embedded(input_ids, positions)
        bias = padding_bias(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, encoder_hidden_states, bias)
        return (x,)


class Transform(nn.Module):
    """Dense, activation and norm before the vocabulary."""

    def __init__(self, c: BlipTextConfig) -> None:
        super().__init__()
        self.dense = Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.act = activation(c.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.act(self.dense(x)))
        return y


class Decoder(Text):
    """Token ids and encoder states to logits; `asked`: the states are of a question, which may be padded."""

    def __init__(self, c: BlipConfig, asked: bool) -> None:
        if asked and c.text.hidden_size != c.vision.hidden_size:
            raise CheckpointError(
                f"config.json: hidden_size {c.text.hidden_size} of the text and {c.vision.hidden_size} of the picture "
                "differ; a decoder that answers attends to either with the same matrices"
            )
        super().__init__(c.text, c.vision.hidden_size)
        self.mlm = Transform(c.text)
        self.head = Linear(c.text.hidden_size, c.text.vocab_size)
        self.asked = asked
        self.heads = c.text.heads

    def forward(self, input_ids: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T); the states' mask (B, S) if asked, the states (B, S, D), and the cache or nothing.

        Returns logits (B, T, V), and per layer keys and values of the tokens (B, heads, P+T, D) and of the states.
        """
        mask, (states, *cache) = (others[0], others[1:]) if self.asked else (None, others)
        step = DecoderStep.begin(input_ids, states, cache, len(self.layers), self.heads)
        x = self.embedded(input_ids, step.positions)
        bias = None if mask is None else padding_bias(mask, x.dtype)
        layers: Iterable[Any] = self.layers
        for layer, caches in zip(layers, step.caches, strict=True):
            x = layer.step(x, states, *caches, bias)
        return self.head(self.mlm(x)), *step.present


def vision_signature(c: BlipConfig) -> Signature:
    v = c.vision
    rows, columns = grid(v.image_size, v.patch_size)
    states = Port("last_hidden_state", "float", (BATCH, 1 + rows * columns, v.hidden_size))
    return Signature((pixels(v.num_channels, v.image_size),), (states,))


def question_signature(c: BlipConfig) -> Signature:
    ids = tuple(Port(name, "int64", (BATCH, LENGTH)) for name in ("input_ids", "attention_mask"))
    states = Port("encoder_hidden_states", "float", (BATCH, ENCODER_LENGTH, c.vision.hidden_size))
    return Signature((*ids, states), (Port("last_hidden_state", "float", (BATCH, LENGTH, c.text.hidden_size)),))


def decoder_signature(c: BlipConfig, asked: bool) -> Signature:
    t, heads = c.text, c.text.heads
    width = t.hidden_size if asked else c.vision.hidden_size
    return encoder_decoder_signature(t.num_hidden_layers, heads.kv, heads.dim, t.vocab_size, width, masked=asked)


TEXT_RULES: tuple[Rule, ...] = (
    Rename("embeddings.word_embeddings", "embed"),
    Rename("embeddings.position_embeddings", "position_embed"),
    Rename("embeddings.LayerNorm", "embed_norm"),
    Rename("encoder.layer.*.attention.self.query", "layers.*.attn.q"),
    Rename("encoder.layer.*.attention.self.key", "layers.*.attn.k"),
    Rename("encoder.layer.*.attention.self.value", "layers.*.attn.v"),
    Rename("encoder.layer.*.attention.output.dense", "layers.*.attn.out"),
    Rename("encoder.layer.*.attention.output.LayerNorm", "layers.*.attn_out_norm"),
    Rename("encoder.layer.*.crossattention.self.query", "layers.*.cross.q"),
    Rename("encoder.layer.*.crossattention.self.key", "layers.*.cross.k"),
    Rename("encoder.layer.*.crossattention.self.value", "layers.*.cross.v"),
    Rename("encoder.layer.*.crossattention.output.dense", "layers.*.cross.out"),
    Rename("encoder.layer.*.crossattention.output.LayerNorm", "layers.*.cross_out_norm"),
    Rename("encoder.layer.*.intermediate.dense", "layers.*.mlp.up"),
    Rename("encoder.layer.*.output.dense", "layers.*.mlp.down"),
    Rename("encoder.layer.*.output.LayerNorm", "layers.*.out_norm"),
    Drop("embeddings.position_ids"),
)
RULES: tuple[Rule, ...] = (
    Rename("vision_model.embeddings.class_embedding", "vision.class_token"),
    Rename("vision_model.embeddings.position_embedding", "vision.position_embed"),
    Rename("vision_model.embeddings.patch_embedding", "vision.patch_embed"),
    Rename("vision_model.encoder.layers.*.layer_norm1", "vision.layers.*.attn_norm"),
    Rename("vision_model.encoder.layers.*.self_attn.qkv", "vision.layers.*.attn.qkv"),
    Rename("vision_model.encoder.layers.*.self_attn.projection", "vision.layers.*.attn.out"),
    Rename("vision_model.encoder.layers.*.layer_norm2", "vision.layers.*.mlp_norm"),
    Rename("vision_model.encoder.layers.*.mlp.fc1", "vision.layers.*.mlp.up"),
    Rename("vision_model.encoder.layers.*.mlp.fc2", "vision.layers.*.mlp.down"),
    Rename("vision_model.post_layernorm", "vision.norm"),
    *below(TEXT_RULES, "text_encoder", "encoder"),
    *below(TEXT_RULES, "text_decoder.bert", "decoder"),
    Rename("text_decoder.cls.predictions.transform.dense", "decoder.mlm.dense"),
    Rename("text_decoder.cls.predictions.transform.LayerNorm", "decoder.mlm.norm"),
    Rename("text_decoder.cls.predictions.bias", "decoder.head.bias"),
    Rename("text_decoder.cls.predictions.decoder.weight", "decoder.head.weight"),
    Drop("text_decoder.cls.predictions.decoder.bias"),  # the same as text_decoder.cls.predictions.bias
)


def begins(c: BlipConfig) -> dict[str, dict[str, Any]]:
    """The host step that begins a text. Raises CheckpointError for a token that is none of the vocabulary."""
    return {"begin_text": {"start": _token(c, 0)}}


def ends(c: BlipConfig) -> dict[str, Any]:
    """The settings of generation that end a text. Raises CheckpointError as `begins`."""
    return {"generation": {"pad_token_id": c.tokens[2] or 0, "eos_token_id": _token(c, 1)}}


def _token(c: BlipConfig, place: int) -> int:
    token = c.tokens[place]
    if type(token) is not int or not 0 <= token < c.text.vocab_size:
        raise CheckpointError(
            f"config.json: {TOKENS[place]} of text_config is {token!r:.40}, no token of the vocabulary; a text could "
            "neither begin nor end"
        )
    return token


FAMILY = Family(
    name="blip",
    title="BLIP",
    model_types=("blip",),
    config=BlipConfig,
    rules=RULES,
    tasks=(
        Task(
            name="visual-question-answering",
            architectures=("BlipForQuestionAnswering",),
            parts={
                "vision": Part(build=Vision, signature=vision_signature),
                "encoder": Part(build=Question, signature=question_signature),
                "decoder": Part(
                    build=lambda c: Decoder(c, True),
                    signature=lambda c: decoder_signature(c, True),
                    file="decoder_model_merged",
                ),
            },
            wires={
                "encoder.encoder_hidden_states": "vision.last_hidden_state",
                "decoder.encoder_attention_mask": "encoder.attention_mask",
                "decoder.encoder_hidden_states": "encoder.last_hidden_state",
            },
            steps=begins,
            facts=ends,
        ),
        Task(
            name="image-to-text",
            architectures=("BlipForConditionalGeneration",),
            parts={
                "vision": Part(build=Vision, signature=vision_signature),
                "decoder": Part(
                    build=lambda c: Decoder(c, False),
                    signature=lambda c: decoder_signature(c, False),
                    file="decoder_model_merged",
                ),
            },
            wires={"decoder.encoder_hidden_states": "vision.last_hidden_state"},
            steps=begins,
            facts=ends,
        ),
    ),
    prefix="blip",
    heads=("encoder",),
    tied=lambda c: {"decoder.head.weight": "decoder.embed.weight"},
    no_gguf="llama.cpp has no BLIP",
)
