"""Moonshine: speech to text from the waveform, three convolutions, rotary positions, and no fixed window of time.

Jeffries et al. 2024, https://arxiv.org/abs/2410.15608. The first norm is over the whole recording, so padding would
change what is computed: recordings run together only when they are of one length, and no port is a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.errors import UnsupportedModel
from isoform.reference.card import Family, Part, Task
from isoform.reference.config import Config, RopeConfig, read_rope
from isoform.reference.modules import ops
from isoform.reference.modules.attention import (
    Attention,
    CrossAttention,
    DecoderStep,
    EncoderStatesCache,
    Heads,
    SwitchedCache,
)
from isoform.reference.modules.layers import MLP, Embedding, Linear, Rope, activation, head_size
from isoform.reference.rules import Rename, Rule
from isoform.signature import BATCH, ENCODER_LENGTH, Port, Signature, encoder_decoder_signature

SAMPLES = "num_samples"
FIELD = 127 + 64 * (7 - 1) + 64 * 3 * (3 - 1)  # samples that the convolutions read for one position


@dataclass(frozen=True, slots=True, kw_only=True)
class MoonshineConfig(Config):
    harmless = frozenset(("pad_head_dim_to_multiple_of",))  # zeros for a kernel
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_act": "decoder_hidden_act",
        "num_attention_heads": "decoder_num_attention_heads",
        "num_hidden_layers": "decoder_num_hidden_layers",
        "num_key_value_heads": "decoder_num_key_value_heads",
    }

    vocab_size: int = 32768
    hidden_size: int = 288
    intermediate_size: int = 1152
    encoder_num_hidden_layers: int = 6
    decoder_num_hidden_layers: int = 6
    encoder_num_attention_heads: int = 8
    decoder_num_attention_heads: int = 8
    encoder_num_key_value_heads: int | None = None
    decoder_num_key_value_heads: int | None = None
    encoder_hidden_act: str = "gelu"
    decoder_hidden_act: str = "silu"
    max_position_embeddings: int = 512
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    rope: RopeConfig = field(default_factory=RopeConfig)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MoonshineConfig:
        kept = {key: value for key, value in data.items() if key != "rope"}
        config = super(MoonshineConfig, cls).from_dict({**kept, "rope": read_rope(data, partial=0.9, context=512)})
        heads = config.decoder_num_attention_heads
        head_size(config.hidden_size, heads)
        others = (
            config.encoder_num_attention_heads,
            config.encoder_num_key_value_heads or heads,
            config.decoder_num_key_value_heads or heads,
        )
        if set(others) != {heads}:
            raise UnsupportedModel(
                f"Moonshine with {heads} heads in the decoder and {others} elsewhere "
                "is not supported: nothing that computes it is known"
            )
        return config

    @property
    def num_hidden_layers(self) -> int:
        return self.encoder_num_hidden_layers + self.decoder_num_hidden_layers

    @property
    def heads(self) -> Heads:
        count = self.decoder_num_attention_heads
        return Heads(count, count, self.hidden_size // count)

    @property
    def rotated(self) -> int:
        """Channels of a head that are rotated, from its beginning."""
        return int(self.heads.dim * self.rope.partial)


class Norm(nn.LayerNorm):
    """A layer norm without a bias."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, bias=False)


class GluMLP(nn.Module):
    """down(act(second half of up(x)) * first half)."""

    def __init__(self, dim: int, hidden: int, act: str) -> None:
        super().__init__()
        self.up, self.down = Linear(dim, 2 * hidden), Linear(hidden, dim)
        self.hidden, self.act = hidden, activation(act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        y: Tensor = self.down(self.act(x[..., self.hidden :]) * x[..., : self.hidden])
        return y


class RotatedAttention(Attention):
    """Attention whose queries and keys are rotated by neighbouring pairs, the first channels of each head only."""

    def project(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, C), rotated by these angles (B, T, pairs)."""
        q, k = self.q(x), self.k(x)
        if angles is not None:
            q = ops.partial_rotary(q, *angles, self.heads.count)
            k = ops.partial_rotary(k, *angles, self.heads.kv)
        return q, k, self.v(x)


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c: MoonshineConfig) -> None:
        super().__init__()
        self.attn_norm = Norm(c.hidden_size)
        self.attn = RotatedAttention(c.hidden_size, c.heads, bias=c.attention_bias)
        self.mlp_norm = Norm(c.hidden_size)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.encoder_hidden_act)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn.attend(self.attn_norm(x), angles=angles)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Encoder(nn.Module):
    """One position for 384 samples."""

    def __init__(self, c: MoonshineConfig) -> None:
        super().__init__()
        dim = c.hidden_size
        self.conv1 = nn.Conv1d(1, dim, 127, 64, bias=False)
        self.conv_norm = nn.GroupNorm(1, dim)
        self.conv2 = nn.Conv1d(dim, 2 * dim, 7, 3)
        self.conv3 = nn.Conv1d(2 * dim, dim, 3, 2)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_num_hidden_layers))
        self.norm = Norm(dim)
        self.rope = Rope(c.rotated, c.rope)

    def forward(self, input_values: Tensor) -> tuple[Tensor, ...]:
        """Samples (B, N) at 16 kHz -> last_hidden_state (B, S, C)."""
        x = self.conv_norm(torch.tanh(self.conv1(input_values.unsqueeze(1))))
        x = F.gelu(self.conv3(F.gelu(self.conv2(x)))).transpose(1, 2)
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0).expand(x.shape[0], -1)
        angles = self.rope(positions, x.dtype)
        for layer in self.layers:
            x = layer(x, angles)
        return (self.norm(x),)


class DecoderLayer(nn.Module):
    """Attention to the tokens before, to the encoder states, and an MLP, each x + f(norm(x))."""

    def __init__(self, c: MoonshineConfig) -> None:
        super().__init__()
        dim = c.hidden_size
        self.attn_norm = Norm(dim)
        self.attn = RotatedAttention(dim, c.heads, bias=c.attention_bias)
        self.cross_norm = Norm(dim)
        self.cross = CrossAttention(dim, c.heads, bias=c.attention_bias)
        self.mlp_norm = Norm(dim)
        self.mlp = GluMLP(dim, c.intermediate_size, c.decoder_hidden_act)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        states: Tensor,
        own: SwitchedCache,
        crossed: EncoderStatesCache,
    ) -> Tensor:
        """Shapes: x (B, T, C), encoder states (B, S, C); the caches of the tokens before and of the states."""
        x = x + self.attn.attend(self.attn_norm(x), cache=own, angles=angles)
        x = x + self.cross.attend(self.cross_norm(x), states, cache=crossed)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Decoder(nn.Module):
    """Token ids and the encoder's states to logits."""

    def __init__(self, c: MoonshineConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_num_hidden_layers))
        self.norm = Norm(c.hidden_size)
        self.head = Linear(c.hidden_size, c.vocab_size, bias=False)
        self.rope = Rope(c.rotated, c.rope)
        self.heads = c.heads

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T), encoder_hidden_states (B, S, C); `cache` as the signature has it, or nothing.

        Returns logits (B, T, V), and per layer keys and values of the tokens (B, heads, P+T, D) and of those states.
        """
        step = DecoderStep.begin(input_ids, encoder_hidden_states, cache, len(self.layers), self.heads)
        x = self.embed(input_ids)
        angles = self.rope(step.positions.unsqueeze(0).expand(input_ids.shape[0], -1), x.dtype)
        for layer, caches in zip(self.layers, step.caches, strict=True):
            x = layer(x, angles, encoder_hidden_states, *caches)
        return self.head(self.norm(x)), *step.present


def encoder_signature(c: MoonshineConfig) -> Signature:
    states = Port("last_hidden_state", "float", (BATCH, ENCODER_LENGTH, c.hidden_size))
    return Signature((Port("input_values", "float", (BATCH, SAMPLES)),), (states,), units={SAMPLES: FIELD})


def decoder_signature(c: MoonshineConfig) -> Signature:
    layers = c.decoder_num_hidden_layers
    return encoder_decoder_signature(layers, c.heads.kv, c.heads.dim, c.vocab_size, c.hidden_size)


RULES: tuple[Rule, ...] = (
    Rename("model.encoder.conv1", "encoder.conv1"),
    Rename("model.encoder.conv2", "encoder.conv2"),
    Rename("model.encoder.conv3", "encoder.conv3"),
    Rename("model.encoder.groupnorm", "encoder.conv_norm"),
    Rename("model.encoder.layer_norm", "encoder.norm"),
    Rename("model.encoder.layers.*.post_attention_layernorm", "encoder.layers.*.mlp_norm"),
    Rename("model.decoder.layers.*.post_attention_layernorm", "decoder.layers.*.cross_norm"),
    Rename("model.decoder.layers.*.final_layernorm", "decoder.layers.*.mlp_norm"),
    Rename("model.*.layers.*.input_layernorm", "*.layers.*.attn_norm"),
    Rename("model.*.layers.*.self_attn.q_proj", "*.layers.*.attn.q"),
    Rename("model.*.layers.*.self_attn.k_proj", "*.layers.*.attn.k"),
    Rename("model.*.layers.*.self_attn.v_proj", "*.layers.*.attn.v"),
    Rename("model.*.layers.*.self_attn.o_proj", "*.layers.*.attn.out"),
    Rename("model.decoder.layers.*.encoder_attn.q_proj", "decoder.layers.*.cross.q"),
    Rename("model.decoder.layers.*.encoder_attn.k_proj", "decoder.layers.*.cross.k"),
    Rename("model.decoder.layers.*.encoder_attn.v_proj", "decoder.layers.*.cross.v"),
    Rename("model.decoder.layers.*.encoder_attn.o_proj", "decoder.layers.*.cross.out"),
    Rename("model.*.layers.*.mlp.fc1", "*.layers.*.mlp.up"),
    Rename("model.*.layers.*.mlp.fc2", "*.layers.*.mlp.down"),
    Rename("model.decoder.embed_tokens", "decoder.embed"),
    Rename("model.decoder.norm", "decoder.norm"),
    Rename("proj_out", "decoder.head"),
)

FAMILY = Family(
    name="moonshine",
    title="Moonshine",
    model_types=("moonshine",),
    config=MoonshineConfig,
    rules=RULES,
    tasks=(
        Task(
            name="automatic-speech-recognition",
            architectures=("MoonshineForConditionalGeneration",),
            parts={
                "encoder": Part(build=Encoder, signature=encoder_signature),
                "decoder": Part(build=Decoder, signature=decoder_signature, file="decoder_model_merged"),
            },
            wires={"decoder.encoder_hidden_states": "encoder.last_hidden_state"},
            facts=lambda c: {"reader": "text"},
        ),
    ),
    prefix="model",
    tied=lambda c: {"decoder.head.weight": "decoder.embed.weight"} if c.tie_word_embeddings else {},
    no_gguf="llama.cpp has no architecture that transcribes speech",
)
