"""Whisper: speech to text, a pre-norm encoder over log-mel frames and a decoder that attends to what it gives.

Radford et al. 2022, https://arxiv.org/abs/2212.04356. All sizes up to large-v3 (128 mels), English and multilingual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.alignment_heads import listed_heads
from isoform.reference.card import Family, Part, Task
from isoform.reference.checkpoints.checkpoint import Checkpoint
from isoform.reference.config import Config, with_labels
from isoform.reference.modules.attention import (
    Attention,
    CrossAttention,
    DecoderStep,
    EncoderStatesCache,
    Heads,
    SwitchedCache,
)
from isoform.reference.modules.layers import MLP, Embedding, Linear, causal_bias, head_size
from isoform.reference.rules import Rename, Rule
from isoform.signature import BATCH, ENCODER_LENGTH, LENGTH, Port, Signature, encoder_decoder_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperConfig(Config):
    harmless = frozenset(
        (
            *("apply_spec_augment", "decoder_layerdrop", "encoder_layerdrop", "mask_feature_length"),
            *("mask_feature_min_masks", "mask_feature_prob", "mask_time_length", "mask_time_min_masks"),
            "mask_time_prob",  # and the above: of training
            "median_filter_width",  # of the times of words, not of the graph
            "scale_embedding",  # the Hub's code reads it and does not use it
        )
    )
    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
        "num_key_value_heads": "encoder_attention_heads",
    }

    vocab_size: int = 51865
    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    activation_function: str = "gelu"
    max_source_positions: int = 1500
    max_target_positions: int = 448
    tie_word_embeddings: bool = True
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    num_labels: int = 2
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) pairs of generation_config.json whose attention follows the sound word by word.

    Only those that the decoder has: without the others a text can be made all the same, and the times of words can."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> WhisperConfig:
        config = cls.from_dict(checkpoint.config)
        settings = checkpoint.read_json("generation_config.json")
        found = settings.get("alignment_heads") if isinstance(settings, Mapping) else None
        pairs, _ = listed_heads(found, config.decoder_layers, config.decoder_attention_heads)
        return replace(config, alignment_heads=pairs)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WhisperConfig:
        kept = {key: value for key, value in data.items() if key != "alignment_heads"}
        return super(WhisperConfig, cls).from_dict(with_labels(kept))

    @property
    def num_hidden_layers(self) -> int:
        return self.encoder_layers + self.decoder_layers

    @property
    def frames(self) -> int:
        """Of log-mel input: always the whole window of 30 s."""
        return 2 * self.max_source_positions

    @property
    def aligned(self) -> tuple[tuple[int, int], ...]:
        """The heads that tell where in the sound a token is: without a list, those of the upper half of the layers."""
        upper = range(self.decoder_layers // 2, self.decoder_layers)
        return tuple(dict.fromkeys(self.alignment_heads)) or tuple(
            (n, head) for n in upper for head in range(self.decoder_attention_heads)
        )

    def heads(self, count: int) -> Heads:
        return Heads(count, count, head_size(self.d_model, count, "d_model"))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        dim = c.d_model
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, c.heads(c.encoder_attention_heads), bias=True, k_bias=False, out_bias=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, c.encoder_ffn_dim, c.activation_function)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Encoder(nn.Module):
    """Two convolutions, the second of stride 2, and the layers."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(c.num_mel_bins, c.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1)
        self.position_embed = Embedding(c.max_source_positions, c.d_model)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.norm = nn.LayerNorm(c.d_model)

    def stem(self, input_features: Tensor) -> Tensor:
        """Log-mel (B, mels, frames) -> (B, frames / 2, C)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(input_features))))
        return x.transpose(1, 2) + self.position_embed.weight

    def forward(self, input_features: Tensor) -> tuple[Tensor, ...]:
        """Log-mel (B, mels, frames) -> last_hidden_state (B, frames / 2, C)."""
        x = self.stem(input_features)
        for layer in self.layers:
            x = layer(x)
        return (self.norm(x),)


class DecoderLayer(nn.Module):
    """Attention to the tokens before, to the encoder states, and an MLP, each x + f(norm(x))."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        dim, heads = c.d_model, c.heads(c.decoder_attention_heads)
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, bias=True, k_bias=False, out_bias=True)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, heads, bias=True, k_bias=False, out_bias=True)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, c.decoder_ffn_dim, c.activation_function)

    def forward(self, x: Tensor, states: Tensor, own: SwitchedCache, crossed: EncoderStatesCache) -> Tensor:
        """Shapes: x (B, T, C), encoder states (B, S, C); the caches of the tokens before and of the states."""
        x = x + self.attn.attend(self.attn_norm(x), cache=own)
        x = x + self.cross.attend(self.cross_norm(x), states, cache=crossed)
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Decoder(nn.Module):
    """Token ids and the encoder's states to logits."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.position_embed = Embedding(c.max_target_positions, c.d_model)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers))
        self.norm = nn.LayerNorm(c.d_model)
        self.head = Linear(c.d_model, c.vocab_size, bias=False)
        self.heads = c.heads(c.decoder_attention_heads)

    def embedded(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)  # never scaled: the Hub's code reads scale_embedding and does not use it
        return x + self.position_embed(positions)

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T), encoder_hidden_states (B, S, C); `cache` as the signature has it, or nothing.

        Returns logits (B, T, V), and per layer keys and values of the tokens (B, heads, P+T, D) and of those states.
        """
        step = DecoderStep.begin(input_ids, encoder_hidden_states, cache, len(self.layers), self.heads)
        x = self.embedded(input_ids, step.positions)
        for layer, caches in zip(self.layers, step.caches, strict=True):
            x = layer(x, encoder_hidden_states, *caches)
        return self.head(self.norm(x)), *step.present


class Alignment(Decoder):
    """The decoder over whole rows of tokens, for what some heads attend to; nothing after the last of them is run."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__(c)
        self.aligned = c.aligned
        self.layers = self.layers[: max(layer for layer, _ in self.aligned) + 1]
        last: Any = self.layers[-1]
        del self.norm, self.head, last.mlp_norm, last.mlp, last.cross.v, last.cross.out

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T), encoder_hidden_states (B, S, C) -> (B, heads, T, S), in the order of `aligned`."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embedded(input_ids, positions)
        bias = causal_bias(torch.ones_like(input_ids), positions.expand_as(input_ids), None, x.dtype)
        found: dict[tuple[int, int], Tensor] = {}
        layers: Iterable[Any] = self.layers
        for n, layer in enumerate(layers):
            x = x + layer.attn(layer.attn_norm(x), bias)
            normed = layer.cross_norm(x)
            if heads := [head for at, head in self.aligned if at == n]:
                weights = layer.cross.weights(normed, encoder_hidden_states, heads).unbind(1)
                found |= {(n, head): one for head, one in zip(heads, weights, strict=True)}
            if n == len(self.layers) - 1:
                break
            x = x + layer.cross.attend(normed, encoder_hidden_states)
            x = x + layer.mlp(layer.mlp_norm(x))
        return (torch.stack([found[pair] for pair in self.aligned], 1),)


class Classifier(nn.Module):
    """The encoder, its last state or a weighted sum of all layers', averaged over time, to logits."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        self.encoder = Encoder(c)
        if c.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.ones(c.encoder_layers + 1))
        self.weighted = c.use_weighted_layer_sum
        self.projector = Linear(c.d_model, c.classifier_proj_size)
        self.classifier = Linear(c.classifier_proj_size, c.num_labels)

    def forward(self, input_features: Tensor) -> tuple[Tensor, ...]:
        """Log-mel (B, mels, frames) -> logits (B, labels)."""
        x = self.encoder.stem(input_features)
        states = [x]
        layers: Iterable[Any] = self.encoder.layers
        for layer in layers:
            x = layer(x)
            states.append(x)
        states[-1] = self.encoder.norm(x)
        x = states[-1]
        if self.weighted:
            shares = torch.softmax(self.layer_weights, -1)
            x = (torch.stack(states, 1) * shares.unsqueeze(-1).unsqueeze(-1)).sum(1)
        return (self.classifier(self.projector(x).mean(1)),)


def _features(c: WhisperConfig) -> Port:
    return Port("input_features", "float", (BATCH, c.num_mel_bins, c.frames))


def encoder_signature(c: WhisperConfig) -> Signature:
    states = Port("last_hidden_state", "float", (BATCH, c.max_source_positions, c.d_model))
    return Signature((_features(c),), (states,))


def decoder_signature(c: WhisperConfig) -> Signature:
    heads = c.decoder_attention_heads
    return encoder_decoder_signature(c.decoder_layers, heads, c.heads(heads).dim, c.vocab_size, c.d_model)


def alignment_signature(c: WhisperConfig) -> Signature:
    ids = Port("input_ids", "int64", (BATCH, LENGTH))
    states = Port("encoder_hidden_states", "float", (BATCH, ENCODER_LENGTH, c.d_model))
    return Signature(
        (ids, states), (Port("cross_attentions", "float", (BATCH, len(c.aligned), LENGTH, ENCODER_LENGTH)),)
    )


def classifier_signature(c: WhisperConfig) -> Signature:
    return Signature((_features(c),), (Port("logits", "float", (BATCH, c.num_labels)),))


RULES: tuple[Rule, ...] = (
    Rename("model.encoder.conv1", "encoder.conv1"),
    Rename("model.encoder.conv2", "encoder.conv2"),
    Rename("model.*.embed_positions", "*.position_embed"),
    Rename("model.*.layers.*.self_attn.q_proj", "*.layers.*.attn.q"),
    Rename("model.*.layers.*.self_attn.k_proj", "*.layers.*.attn.k"),
    Rename("model.*.layers.*.self_attn.v_proj", "*.layers.*.attn.v"),
    Rename("model.*.layers.*.self_attn.out_proj", "*.layers.*.attn.out"),
    Rename("model.*.layers.*.self_attn_layer_norm", "*.layers.*.attn_norm"),
    Rename("model.decoder.layers.*.encoder_attn.q_proj", "decoder.layers.*.cross.q"),
    Rename("model.decoder.layers.*.encoder_attn.k_proj", "decoder.layers.*.cross.k"),
    Rename("model.decoder.layers.*.encoder_attn.v_proj", "decoder.layers.*.cross.v"),
    Rename("model.decoder.layers.*.encoder_attn.out_proj", "decoder.layers.*.cross.out"),
    Rename("model.decoder.layers.*.encoder_attn_layer_norm", "decoder.layers.*.cross_norm"),
    Rename("model.*.layers.*.fc1", "*.layers.*.mlp.up"),
    Rename("model.*.layers.*.fc2", "*.layers.*.mlp.down"),
    Rename("model.*.layers.*.final_layer_norm", "*.layers.*.mlp_norm"),
    Rename("model.*.layer_norm", "*.norm"),
    Rename("model.decoder.embed_tokens", "decoder.embed"),
    Rename("proj_out", "decoder.head"),
    Rename("layer_weights", "layer_weights"),
    Rename("projector", "projector"),
    Rename("classifier", "classifier"),
)

FAMILY = Family(
    name="whisper",
    title="Whisper",
    model_types=("whisper",),
    config=WhisperConfig,
    rules=RULES,
    tasks=(
        Task(
            name="automatic-speech-recognition",
            architectures=("WhisperForConditionalGeneration",),
            parts={
                "encoder": Part(build=Encoder, signature=encoder_signature),
                "decoder": Part(build=Decoder, signature=decoder_signature, file="decoder_model_merged"),
                "alignment": Part(build=Alignment, signature=alignment_signature, roots={"": "decoder"}),
            },
            wires={
                "decoder.encoder_hidden_states": "encoder.last_hidden_state",
                "alignment.encoder_hidden_states": "encoder.last_hidden_state",
            },
            facts=lambda c: {"reader": "timestamps"},
        ),
        Task(
            name="audio-classification",
            architectures=("WhisperForAudioClassification",),
            build=Classifier,
            signature=classifier_signature,
        ),
    ),
    prefix="model",
    heads=("decoder", "layer_weights", "projector", "classifier"),
    tied=lambda c: {"decoder.head.weight": "decoder.embed.weight"} if c.tie_word_embeddings else {},
    no_gguf="llama.cpp has no architecture that transcribes speech",
)
