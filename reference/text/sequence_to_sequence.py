"""What encoder-decoders of text share: config, layers with their norms before or after, positions, rules, tasks.

The encoder's positions count the real tokens, so that padding on either side is legal; the decoder's count its slots.
Axis letters: B batch, T new tokens, S slots of the encoder, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import UnsupportedModel
from isoform.reference.card import Part, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import (
    Attention,
    CrossAttention,
    DecoderStep,
    EncoderStatesCache,
    Heads,
    SwitchedCache,
)
from isoform.reference.modules.encoder import DeepClassifier, encoder_layer
from isoform.reference.modules.layers import (
    MLP,
    Embedding,
    Linear,
    causal_bias,
    head_size,
    last_token,
    padding_bias,
    true_positions,
)
from isoform.reference.rules import Drop, Rename, Rule, Tail
from isoform.reference.text.bidirectional import OUTPUTS
from isoform.signature import BATCH, LENGTH, Port, Signature, encoder_decoder_signature

if TYPE_CHECKING:
    from typing import Self

    from isoform.reference.checkpoints.checkpoint import Checkpoint

UNREAD = 2
"""Rows at the beginning of a learned table of positions that nothing reads."""

TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""What the Hub calls the embeddings of both sides, and of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceToSequenceConfig(Config):
    """The fields that all of these families have.

    `final_logits_bias` and `stored_positions`: whether the checkpoint holds that bias, and tables of sinusoids.
    """

    harmless = frozenset(
        (
            *("classif_dropout", "decoder_layerdrop", "encoder_layerdrop"),  # of training
            *("extra_pos_embeddings", "force_bos_token_to_be_generated", "save_step"),  # of converters and generation
        )
    )
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    activation_function: str = "gelu"
    d_model: int = 1024
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 3
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int | None = None
    final_logits_bias: bool = True
    stored_positions: bool = False

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Raises UnsupportedModel where the tables of embeddings that the config shares differ."""
        keys = {key.removeprefix("model."): key for key in checkpoint}
        found = replace(
            cls.from_dict(checkpoint.config),
            final_logits_bias="final_logits_bias" in keys,
            stored_positions="decoder.embed_positions.weight" in keys,
        )
        both, _, own = (keys.get(table) for table in TABLES)
        if both and own and found.shared and not _equal(checkpoint, both, own):
            raise UnsupportedModel(
                f"{checkpoint.name}: {both} and {own} differ, and config.json says that they are one table; save the "
                "model with the table that it uses"
            )
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super(SequenceToSequenceConfig, cls).from_dict(with_labels(data))

    @property
    def num_hidden_layers(self) -> int:
        return self.encoder_layers + self.decoder_layers

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def target_vocabulary(self) -> int:
        """How many ids the decoder has."""
        return self.vocab_size

    @property
    def shared(self) -> bool:
        """Whether encoder and decoder read one table of embeddings."""
        return True


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    a, b = checkpoint.info(one), checkpoint.info(other)
    if (a.path, a.offset, a.shape, a.dtype) == (b.path, b.offset, b.shape, b.dtype) and a.offset >= 0:
        return True
    equal = a.shape == b.shape and torch.equal(checkpoint[one], checkpoint[other])
    checkpoint.release(one)
    checkpoint.release(other)
    return equal


def arranged(*, pre_norm: bool, embed_norm: bool, sinusoids: bool) -> dict[str, tuple[Any, ...]]:
    """The keys of old files that say how the layers are arranged, with the one value that a family has."""
    given = {
        "normalize_before": pre_norm,
        "add_final_layer_norm": pre_norm,
        "normalize_embedding": embed_norm,
        "static_position_embeddings": sinusoids,
        "add_bias_logits": False,
        "do_blenderbot_90_layernorm": False,
    }
    return {key: (value, None) for key, value in given.items()}


# ------------------------------------------------------------------ positions
class Sinusoids(nn.Module):
    """A table of sinusoids (positions, C) that is computed and not stored: positions (T,) or (B, T) -> (…, C)."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.table)


def sines_then_cosines(count: int, dim: int) -> Tensor:
    """Float32 (`count`, `dim`): sines of half the waves' angles, then cosines, computed in float64."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim
    angles = torch.arange(count, dtype=torch.float64, device="cpu").unsqueeze(1) / 10000.0**exponents
    return torch.cat((angles.sin(), angles[:, : dim // 2].cos()), 1).float()


# ------------------------------------------------------------------ layers
@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a model: its sizes, and how its layers are arranged.

    `pre_norm`: x + f(norm(x)) and a norm after the last layer, else norm(x + f(x)). `embed_norm`: a norm after the
    embeddings, which are multiplied by `scale`. `positions` makes the table of them.
    """

    vocabulary: int
    dim: int
    layers: int
    heads: Heads
    hidden: int
    act: str
    pre_norm: bool
    embed_norm: bool
    scale: float
    positions: Callable[[], nn.Module]


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(side.dim)
        self.attn = Attention(side.dim, side.heads, bias=True, out_bias=True)
        self.mlp_norm = nn.LayerNorm(side.dim)
        self.mlp = MLP(side.dim, side.hidden, side.act)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Shapes: x (B, S, C), bias (B, 1, 1, S) -> (B, S, C)."""
        x = x + self.attn(self.attn_norm(x), bias)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class PreNormDecoderLayer(nn.Module):
    """Attention to the tokens before, to the encoder states, and an MLP, each x + f(norm(x))."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        dim = side.dim
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, side.heads, bias=True, out_bias=True)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, side.heads, bias=True, out_bias=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, side.hidden, side.act)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        states: Tensor,
        states_bias: Tensor,
        own: SwitchedCache | None = None,
        crossed: EncoderStatesCache | None = None,
    ) -> Tensor:
        """Shapes: x (B, T, C), bias (B, 1, T, T) or `own` in its place, encoder states (B, S, C), bias (B, 1, 1, S)."""
        x = x + self.attn.attend(self.attn_norm(x), bias, own)
        x = x + self.cross.attend(self.cross_norm(x), states, states_bias, crossed)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class PostNormDecoderLayer(nn.Module):
    """The same, each norm(x + f(x))."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        dim = side.dim
        self.attn = Attention(dim, side.heads, bias=True, out_bias=True)
        self.attn_out_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, side.heads, bias=True, out_bias=True)
        self.cross_out_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, side.hidden, side.act)
        self.out_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        states: Tensor,
        states_bias: Tensor,
        own: SwitchedCache | None = None,
        crossed: EncoderStatesCache | None = None,
    ) -> Tensor:
        """As `PreNormDecoderLayer.forward`."""
        x = self.attn_out_norm(x + self.attn.attend(x, bias, own))
        x = self.cross_out_norm(x + self.cross.attend(x, states, states_bias, crossed))
        y: Tensor = self.out_norm(x + self.mlp(x))
        return y


class Stack(nn.Module):
    """Embeddings and layers of one side."""

    def __init__(self, side: Side, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.embed = Embedding(side.vocabulary, side.dim)
        self.position_embed = side.positions()
        self.embed_norm = nn.LayerNorm(side.dim) if side.embed_norm else None
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(side.dim) if side.pre_norm else None
        self.scale = side.scale

    def embedded(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Ids (B, T) at positions (T,) or (B, T) -> (B, T, C)."""
        x = self.embed(input_ids)
        if self.scale != 1:
            x = x * self.scale
        x = x + self.position_embed(positions).to(x.dtype)
        return x if self.embed_norm is None else self.embed_norm(x)

    def normed(self, x: Tensor) -> Tensor:
        """The state after the last layer."""
        return x if self.norm is None else self.norm(x)


class Encoder(Stack):
    """Token ids to encoder states."""

    def __init__(self, side: Side) -> None:
        super().__init__(side, (PreNormLayer(side) if side.pre_norm else _post_norm(side) for _ in range(side.layers)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: both (B, S) -> last_hidden_state (B, S, C)."""
        x = self.embedded(input_ids, true_positions(attention_mask))
        bias = padding_bias(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return (self.normed(x),)


def _post_norm(side: Side) -> nn.Module:
    return encoder_layer(side.dim, side.heads.count, side.heads.dim, side.hidden, side.act, 1e-5)


def _decoder_layers(side: Side) -> Iterable[nn.Module]:
    layer = PreNormDecoderLayer if side.pre_norm else PostNormDecoderLayer
    return (layer(side) for _ in range(side.layers))


class LogitsBias(nn.Module):
    """A bias of the logits, (1, V) as it is stored."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, vocabulary))

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.bias


class Decoder(Stack):
    """Token ids and encoder states to logits; `biased`: a stored bias is added to them."""

    def __init__(self, side: Side, biased: bool) -> None:
        super().__init__(side, _decoder_layers(side))
        self.head = Linear(side.dim, side.vocabulary, bias=False)
        self.logits_bias = LogitsBias(side.vocabulary) if biased else None
        self.heads = side.heads

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, encoder_hidden_states: Tensor, *cache: Tensor
    ) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T), the states' mask (B, S), the states (B, S, C); `cache` as the signature has it, or
        nothing.

        Returns logits (B, T, V), and per layer keys and values of the tokens (B, heads, P+T, D) and of those states.
        """
        step = DecoderStep.begin(input_ids, encoder_hidden_states, cache, len(self.layers), self.heads)
        x = self.embedded(input_ids, step.positions)
        bias = padding_bias(encoder_attention_mask, x.dtype)
        for layer, caches in zip(self.layers, step.caches, strict=True):
            x = layer(x, None, encoder_hidden_states, bias, *caches)
        logits = self.head(self.normed(x))
        return logits if self.logits_bias is None else self.logits_bias(logits), *step.present


class Reader(Stack):
    """A decoder over the encoder's own tokens in one pass, moved by one slot, for a head that reads its states."""

    def __init__(self, side: Side) -> None:
        super().__init__(side, _decoder_layers(side))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
        """Shapes: ids and mask (B, S), encoder states (B, S, C) -> (B, S, C)."""
        positions = true_positions(attention_mask)
        x = self.embedded(input_ids, positions)
        own, crossed = causal_bias(attention_mask, positions, None, x.dtype), padding_bias(attention_mask, x.dtype)
        for layer in self.layers:
            x = layer(x, own, states, crossed)
        return self.normed(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderHead:
    """ "sequence", "span" or "none", with how many labels.

    `start`: the token that the decoder reads first, None for the text's last one. `end`: the token whose last state is
    classified.
    """

    kind: str
    labels: int
    start: int | None
    end: int


class ReadTwice(nn.Module):
    """An encoder, a decoder over the same text, and a head over the decoder's states."""

    def __init__(self, encoder: Side, decoder: Side, head: ReaderHead) -> None:
        super().__init__()
        self.decoder = Reader(decoder)  # first: it holds the table of embeddings that the encoder shares
        self.encoder = Encoder(encoder)
        if head.kind == "sequence":
            self.classifier = DeepClassifier(decoder.dim, head.labels, "tanh")
        elif head.kind == "span":
            self.qa = Linear(decoder.dim, 2)
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both (B, T); no mask means no padding.

        Returns the decoder's last hidden state (B, T, C), logits (B, labels), or start and end logits (B, T) each. A
        row without `end` is classified by its first state.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        (states,) = self.encoder(input_ids, attention_mask)
        x = self.decoder(self.moved(input_ids, attention_mask), attention_mask, states)
        if self.head.kind == "sequence":
            ends = (input_ids == self.head.end).to(attention_mask.dtype) * attention_mask
            return (self.classifier(last_token(x, ends)),)
        if self.head.kind == "span":
            start, end = self.qa(x).unbind(-1)
            return start, end
        return (x,)

    def moved(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The ids (B, T), each at the next slot; the first token of a row is the start."""
        if self.head.start is None:
            first = last_token(input_ids.unsqueeze(-1), attention_mask)
        else:
            first = torch.zeros_like(input_ids[:, :1]) + self.head.start
        moved = torch.cat((first, input_ids[:, :-1]), 1)
        return torch.where(true_positions(attention_mask) == 0, first, moved)


# ------------------------------------------------------------------ sides of a config
Positions = Callable[[Any], nn.Module]
"""A config -> its table of positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """What tells the families apart: where the norms are, and the table of positions of a config."""

    pre_norm: bool
    embed_norm: bool
    positions: Positions

    def side(self, c: SequenceToSequenceConfig, name: str) -> Side:
        """The "encoder" or the "decoder" of a config."""
        heads = getattr(c, f"{name}_attention_heads")
        return Side(
            vocabulary=c.vocab_size if name == "encoder" else c.target_vocabulary,
            dim=c.d_model,
            layers=getattr(c, f"{name}_layers"),
            heads=Heads(heads, heads, head_size(c.d_model, heads, "d_model", f"{name}_attention_heads")),
            hidden=getattr(c, f"{name}_ffn_dim"),
            act=c.activation_function,
            pre_norm=self.pre_norm,
            embed_norm=self.embed_norm,
            scale=c.d_model**0.5 if c.scale_embedding else 1.0,
            positions=lambda: self.positions(c),
        )

    def encoder(self, c: SequenceToSequenceConfig) -> Encoder:
        return Encoder(self.side(c, "encoder"))

    def decoder(self, c: SequenceToSequenceConfig) -> Decoder:
        return Decoder(self.side(c, "decoder"), c.final_logits_bias)

    def reading(self, c: SequenceToSequenceConfig, kind: str) -> ReadTwice:
        """The model with a head, whose decoder begins with a token of the config, or with the text's last."""
        head = ReaderHead(kind=kind, labels=c.num_labels, start=c.decoder_start_token_id, end=c.eos_token_id)
        return ReadTwice(self.side(c, "encoder"), self.side(c, "decoder"), head)


def learned(c: SequenceToSequenceConfig) -> nn.Module:
    """A stored table, without the rows that nothing reads."""
    return Embedding(c.max_position_embeddings, c.d_model)


def sinusoids(c: SequenceToSequenceConfig) -> nn.Module:
    """A table of sinusoids, stored or computed."""
    count, dim = c.max_position_embeddings, c.d_model
    return Embedding(count, dim) if c.stored_positions else Sinusoids(sines_then_cosines(count, dim))


# ------------------------------------------------------------------ rules
SHARED_TABLE: tuple[Rule, ...] = (
    Rename("model.shared", "decoder.embed"),
    Drop("model.decoder.embed_tokens"),  # the same as model.shared
)
_LAYERS: tuple[Rule, ...] = (
    Rename("model.encoder.embed_tokens", "encoder.embed"),
    Rename("model.*.layers.*.self_attn.q_proj", "*.layers.*.attn.q"),
    Rename("model.*.layers.*.self_attn.k_proj", "*.layers.*.attn.k"),
    Rename("model.*.layers.*.self_attn.v_proj", "*.layers.*.attn.v"),
    Rename("model.*.layers.*.self_attn.out_proj", "*.layers.*.attn.out"),
    Rename("model.decoder.layers.*.encoder_attn.q_proj", "decoder.layers.*.cross.q"),
    Rename("model.decoder.layers.*.encoder_attn.k_proj", "decoder.layers.*.cross.k"),
    Rename("model.decoder.layers.*.encoder_attn.v_proj", "decoder.layers.*.cross.v"),
    Rename("model.decoder.layers.*.encoder_attn.out_proj", "decoder.layers.*.cross.out"),
    Rename("model.*.layers.*.fc1", "*.layers.*.mlp.up"),
    Rename("model.*.layers.*.fc2", "*.layers.*.mlp.down"),
    Rename("lm_head", "decoder.head"),
)
_POST_NORMS: tuple[Rule, ...] = (
    Rename("model.*.layers.*.self_attn_layer_norm", "*.layers.*.attn_out_norm"),
    Rename("model.decoder.layers.*.encoder_attn_layer_norm", "decoder.layers.*.cross_out_norm"),
    Rename("model.*.layers.*.final_layer_norm", "*.layers.*.out_norm"),
)
_PRE_NORMS: tuple[Rule, ...] = (
    Rename("model.*.layers.*.self_attn_layer_norm", "*.layers.*.attn_norm"),
    Rename("model.decoder.layers.*.encoder_attn_layer_norm", "decoder.layers.*.cross_norm"),
    Rename("model.*.layers.*.final_layer_norm", "*.layers.*.mlp_norm"),
    Rename("model.*.layer_norm", "*.norm"),
)
LOGITS_BIAS = Rename("final_logits_bias", "decoder.logits_bias.bias")
LEARNED_POSITIONS = Tail("model.*.embed_positions", "*.position_embed", UNREAD)
HEADS: tuple[Rule, ...] = (
    Rename("classification_head.dense", "classifier.dense"),
    Rename("classification_head.out_proj", "classifier.out"),
    Rename("qa_outputs", "qa"),
)
HEAD_NAMES = ("decoder.head", "decoder.logits_bias", "classifier", "qa")
STORED_POSITIONS = Rename("model.*.embed_positions", "*.position_embed")
EMBED_NORM = Rename("model.*.layernorm_embedding", "*.embed_norm")


def rules(*, pre_norm: bool) -> tuple[Rule, ...]:
    """The rules of the layers; those of the embeddings are `SHARED_TABLE`."""
    return (*_LAYERS, *(_PRE_NORMS if pre_norm else _POST_NORMS))


def tied(c: SequenceToSequenceConfig) -> dict[str, str]:
    """Which parameters share the table of the decoder's embeddings."""
    sides = {"encoder.embed.weight": "decoder.embed.weight"} if c.shared else {}
    return sides | ({"decoder.head.weight": "decoder.embed.weight"} if c.tie_word_embeddings else {})


# ------------------------------------------------------------------ tasks
def encoder_signature(c: SequenceToSequenceConfig) -> Signature:
    ids = tuple(Port(name, "int64", (BATCH, LENGTH)) for name in ("input_ids", "attention_mask"))
    return Signature(ids, (Port("last_hidden_state", "float", (BATCH, LENGTH, c.d_model)),))


def decoder_signature(c: SequenceToSequenceConfig) -> Signature:
    heads = c.decoder_attention_heads
    size = head_size(c.d_model, heads, "d_model", "decoder_attention_heads")
    return encoder_decoder_signature(c.decoder_layers, heads, size, c.target_vocabulary, c.d_model, masked=True)


def generating(arrangement: Arrangement, *architectures: str) -> Task:
    """Text to text, by an encoder and a decoder that are graphs of their own."""
    return Task(
        name="text2text-generation",
        architectures=architectures,
        parts={
            "encoder": Part(build=arrangement.encoder, signature=encoder_signature),
            "decoder": Part(build=arrangement.decoder, signature=decoder_signature, file="decoder_model_merged"),
        },
        wires={
            "decoder.encoder_attention_mask": "encoder.attention_mask",
            "decoder.encoder_hidden_states": "encoder.last_hidden_state",
        },
    )


def reading(arrangement: Arrangement, architectures: Mapping[str, tuple[str, ...]]) -> tuple[Task, ...]:
    """A task for each kind of head, of the Hub's classes that have it, in one graph."""

    def task(kind: str, classes: tuple[str, ...]) -> Task:
        name, outputs = OUTPUTS[kind]
        made = Task(
            name=name,
            architectures=classes,
            build=lambda c: arrangement.reading(c, kind),
            signature=lambda c: replace(
                encoder_signature(c), outputs=tuple(Port(port, "float", axes(c)) for port, axes in outputs.items())
            ),
        )
        return replace(made, facts=lambda c: {"needs_token": c.eos_token_id}) if kind == "sequence" else made

    return tuple(task(kind, classes) for kind, classes in architectures.items())
