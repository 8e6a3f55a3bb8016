"""T5: an encoder and a decoder that know where a token stands by a bias of the attention, by distance.

Raffel et al. 2019, https://arxiv.org/abs/1910.10683. Also serves T5 v1.1 and Flan-T5 (a gated MLP, a head of its own),
mT5 (the same for 101 languages, https://arxiv.org/abs/2010.11934) and UMT5 (a bias in every layer instead of the first
one's for all, https://arxiv.org/abs/2304.09151). Scores are not divided by the square root of the head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Family, Gguf, Part, Task
from isoform.reference.config import Config, with_labels
from isoform.reference.modules import ops
from isoform.reference.modules.attention import (
    Attention,
    CrossAttention,
    DecoderStep,
    EncoderStatesCache,
    Heads,
    SwitchedCache,
)
from isoform.reference.modules.encoder import DeepClassifier
from isoform.reference.modules.layers import Embedding, Linear, RMSNorm, activation, causal_bias, padding_bias
from isoform.reference.modules.relative import DistanceTable, one_sided_buckets, two_sided_buckets
from isoform.reference.rules import Copy, Drop, Rename, Rule
from isoform.signature import BATCH, LENGTH, Axis, Port, Signature, encoder_decoder_signature

FORMAT: Mapping[str, Any] = {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
"""Values of keys that config.json lacks in the formats of mT5 and UMT5, where they differ from those of T5."""

SCALED_DOWN = 256
"""By how much the MLP's last product is divided in half precision, whose largest number is 65504."""

END = 2**20
"""More than any text has tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Config(Config):
    """`scale_decoder_outputs`: the head reads states times d_model^-0.5.

    T5 says so by tie_word_embeddings, which otherwise means nothing: the head shares the table of tokens unless the
    file holds another one. mT5 never does, and UMT5 always, as in transformers 5. `n_positions`: how long the texts of
    its training were.
    """

    reads = frozenset(("tie_word_embeddings",))
    harmless = frozenset(("dropout_rate", "scalable_attention"))
    aliases: ClassVar[Mapping[str, str]] = {
        "head_dim": "d_kv",
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }

    model_type: str = "t5"
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    dense_act_fn: str = ""
    is_gated_act: bool = False
    scale_decoder_outputs: bool = True
    decoder_start_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = 1
    num_labels: int = 2
    n_positions: int = 512

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> T5Config:
        kind = data.get("model_type", "t5")
        found = dict(with_labels(data))
        stated = FORMAT if kind in ("mt5", "umt5") else {}
        gated, act = _feed_forward(found.get("feed_forward_proj") or stated.get("feed_forward_proj", "relu"))
        # A file of transformers 5 states what these follow from too, and it reads what the file states.
        stated = {**stated, "dense_act_fn": act, "is_gated_act": gated}
        stated |= {"scale_decoder_outputs": data.get("tie_word_embeddings") is not False}
        found |= {key: value for key, value in stated.items() if found.get(key) is None}
        if kind == "umt5":
            found["scale_decoder_outputs"] = data.get("scale_decoder_outputs") is not False
        elif kind == "mt5":
            found["scale_decoder_outputs"] = False
        config = super(T5Config, cls).from_dict(found)
        if config.relative_attention_num_buckets < 4:
            raise CheckpointError(
                f"config.json: relative_attention_num_buckets is {config.relative_attention_num_buckets}; near and far "
                "distances in two directions need 4"
            )
        if config.relative_attention_max_distance <= config.relative_attention_num_buckets // 2:
            raise CheckpointError(
                f"config.json: relative_attention_max_distance is {config.relative_attention_max_distance}, and the "
                f"{config.relative_attention_num_buckets // 2} nearest distances have a bucket each; it must be larger"
            )
        return config

    @property
    def decoder_layers(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def num_hidden_layers(self) -> int:
        return self.num_layers + self.decoder_layers

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def every_layer(self) -> bool:
        """Whether each layer has a bias of its own."""
        return self.model_type == "umt5"

    @property
    def heads(self) -> Heads:
        return Heads(self.num_heads, self.num_heads, self.d_kv, scale=1.0)

    @property
    def start(self) -> int:
        """The token before the first one of the decoder. Raises CheckpointError where the file states none."""
        if self.decoder_start_token_id is None:
            raise CheckpointError("config.json has no 'decoder_start_token_id', with which the decoder begins")
        return self.decoder_start_token_id

    @property
    def end(self) -> int:
        """The token at the end of a text. Raises UnsupportedModel where it is none or several."""
        if not isinstance(self.eos_token_id, int):
            raise UnsupportedModel(
                f"config.json: eos_token_id is {self.eos_token_id}, and a text is classified at its end, which must be "
                "one token"
            )
        return self.eos_token_id


def _feed_forward(name: Any) -> tuple[bool, str]:
    """Whether the MLP is gated, and its activation: "relu", "gated-gelu" (which means gelu_new), "gated-silu"."""
    gate, _, act = str(name).rpartition("-")
    if not isinstance(name, str) or gate not in ("", "gated"):
        raise CheckpointError(f"config.json: feed_forward_proj is {name!r}, not an activation with or without 'gated-'")
    return gate == "gated", "gelu_new" if name == "gated-gelu" else act


def wide(x: Tensor) -> Tensor:
    """States between layers: of half precision in float32, as they grow past 65504 in trained models."""
    return x.float() if x.dtype == torch.float16 else x


class Norm(RMSNorm):
    """Root mean square norm of states that may be wider than the weights, into the weights' dtype."""

    float32_ends = ("input",)

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)


class DistanceAttention(Attention):
    """Self-attention that may hold a bias for each head and each of so many buckets of distances."""

    def __init__(self, dim: int, heads: Heads, buckets: int) -> None:
        super().__init__(dim, heads)
        self.distance_embed = Embedding(buckets, heads.count) if buckets else None

    def bias(self, places: Tensor) -> Tensor | None:
        """The bias (1, heads, T, S) for buckets (T, S)."""
        return None if self.distance_embed is None else self.distance_embed(places).permute(2, 0, 1).unsqueeze(0)


class Down(Linear):
    """A matrix whose results are beyond half precision, and divided there."""

    float32_ends = ("output",)


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)).

    transformers keeps `down` in float32 where the rest is float16: its results overflow. Here it stays float16, and
    what it is multiplied by is divided by a power of two, which is exact; the result is multiplied by it in float32.
    """

    float32_ends = ("output",)

    def __init__(self, dim: int, hidden: int, act: str, gated: bool) -> None:
        super().__init__()
        self.gate = Linear(dim, hidden, bias=False) if gated else None
        self.up, self.down = Linear(dim, hidden, bias=False), Down(hidden, dim, bias=False)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        if y.dtype == torch.float16:
            return wide(self.down(y * (1 / SCALED_DOWN))) * SCALED_DOWN
        z: Tensor = self.down(y)
        return z


class Layer(nn.Module):
    """Attention to the tokens, in a decoder to the encoder states too, and an MLP, each x + f(norm(x))."""

    float32_ends = ("output",)

    def __init__(self, c: T5Config, biased: bool, crossed: bool) -> None:
        super().__init__()
        dim, eps = c.d_model, c.layer_norm_epsilon
        self.attn_norm = Norm(dim, eps)
        self.attn = DistanceAttention(dim, c.heads, c.relative_attention_num_buckets if biased else 0)
        self.cross_norm = Norm(dim, eps) if crossed else None
        self.cross = CrossAttention(dim, c.heads) if crossed else None
        self.mlp_norm = Norm(dim, eps)
        self.mlp = FeedForward(dim, c.d_ff, c.dense_act_fn, c.is_gated_act)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        states: Tensor | None = None,
        hidden: Tensor | None = None,
        caches: tuple[SwitchedCache | None, EncoderStatesCache | None] = (None, None),
    ) -> Tensor:
        """Shapes: x (B, T, C), bias (B or 1, heads, T, S), encoder states (B, S', C) and what hides their padding."""
        x = x + wide(self.attn.attend(self.attn_norm(x), bias, caches[0]))
        if self.cross is not None and self.cross_norm is not None and states is not None:
            x = x + wide(self.cross.attend(self.cross_norm(x), states, hidden, caches[1]))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Stack(nn.Module):
    """The layers of an encoder or a decoder, and the norm behind them."""

    def __init__(self, c: T5Config, decodes: bool) -> None:
        super().__init__()
        count = c.decoder_layers if decodes else c.num_layers
        self.layers = nn.ModuleList(Layer(c, c.every_layer or n == 0, decodes) for n in range(count))
        self.norm = Norm(c.d_model, c.layer_norm_epsilon)
        buckets = one_sided_buckets if decodes else two_sided_buckets
        numbers = buckets(c.relative_attention_num_buckets, c.relative_attention_max_distance)
        self.buckets = DistanceTable(numbers)

    def states(
        self,
        x: Tensor,
        hidden: Tensor | None,
        states: Tensor | None = None,
        hidden_states: Tensor | None = None,
        step: DecoderStep | None = None,
        past: int = 0,
    ) -> Tensor:
        """Shapes: x (B, T, C); `hidden` (B, 1, 1 or T, S) hides slots, `hidden_states` (B, 1, 1, S') encoder states."""
        places, bias, x = self.buckets(x.shape[1], past), None, wide(x)
        layers: Iterable[Any] = self.layers
        for n, layer in enumerate(layers):
            if (own := layer.attn.bias(places)) is not None:
                bias = own if hidden is None else own + hidden
            x = layer(x, bias, states, hidden_states, (None, None) if step is None else step.caches[n])
        y: Tensor = self.norm(x)
        return y


class Encoder(Stack):
    """The part that reads a text: token ids to states."""

    def __init__(self, c: T5Config) -> None:
        super().__init__(c, decodes=False)
        self.embed = Embedding(c.vocab_size, c.d_model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Shapes: input_ids and attention_mask (B, T) -> last_hidden_state (B, T, C)."""
        x = self.embed(input_ids)
        return (self.states(x, padding_bias(attention_mask, x.dtype)),)


class Decoder(Stack):
    """The part that writes one: token ids and the encoder's states to logits."""

    def __init__(self, c: T5Config) -> None:
        super().__init__(c, decodes=True)
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.head = Linear(c.d_model, c.vocab_size, bias=False)
        self.heads = c.heads
        self.scale = c.d_model**-0.5 if c.scale_decoder_outputs else 1.0

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, encoder_hidden_states: Tensor, *cache: Tensor
    ) -> tuple[Tensor, ...]:
        """Shapes: input_ids (B, T), encoder_attention_mask (B, S), encoder_hidden_states (B, S, C); `cache` as the
        signature has it, or nothing.

        Returns logits (B, T, V), and per layer keys and values of the tokens (B, heads, P+T, D) and of those states.
        """
        step = DecoderStep.begin(input_ids, encoder_hidden_states, cache, len(self.layers), self.heads)
        x = self.embed(input_ids)
        hidden = padding_bias(encoder_attention_mask, x.dtype)
        # While the switch is off the past counts as empty, and of the bias only the last columns are looked at.
        past = cache[0].shape[2] if cache else 0
        x = self.states(x, None, encoder_hidden_states, hidden, step, past)
        return self.head(x if self.scale == 1 else x * self.scale), *step.present


class TextStates(nn.Module):
    """The encoder alone, or with a head for each token."""

    def __init__(self, c: T5Config, labels: int = 0) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.encoder = Stack(c, decodes=False)
        self.classifier = Linear(c.d_model, labels) if labels else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T) -> last_hidden_state (B, T, C), or logits (B, T, labels)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids)
        x = self.encoder.states(x, padding_bias(mask, x.dtype))
        return (x if self.classifier is None else self.classifier(x),)


class TextReader(nn.Module):
    """Encoder and decoder over the same text, with a head: of its last end, or the two ends of a span.

    The decoder gets the text one place to the right, behind its first token. Padding on the left is skipped.
    """

    def __init__(self, c: T5Config, span: bool) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.encoder, self.decoder = Stack(c, decodes=False), Stack(c, decodes=True)
        if span:
            self.qa = Linear(c.d_model, 2)
        else:
            self.classifier = DeepClassifier(c.d_model, c.num_labels, "tanh")
        self.span, self.start, self.end = span, c.start, 0 if span else c.end

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Shapes: both inputs (B, T) -> logits (B, labels), or start and end logits (B, T) each."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids)
        padding = padding_bias(mask, x.dtype)
        states = self.encoder.states(x, padding)
        before = torch.cat((torch.zeros_like(mask[:, :1]), mask[:, :-1]), 1)
        shifted = torch.cat((input_ids[:, :1], input_ids[:, :-1]), 1)
        x = self.embed(shifted.masked_fill(before == 0, self.start))
        places = (mask.cumsum(1) - 1).clamp(min=0)
        x = self.decoder.states(x, causal_bias(mask, places, None, x.dtype), states, padding)
        if self.span:
            start, end = self.qa(x).unbind(-1)
            return start, end
        # The last end, or the last token of a text without one.
        order = mask * (mask.cumsum(1) + (input_ids == self.end).to(mask.dtype) * END)
        last = order.argmax(1).unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[-1])
        return (self.classifier(x.gather(1, last).squeeze(1)),)


def encoder_signature(c: T5Config) -> Signature:
    ids = tuple(Port(name, "int64", (BATCH, LENGTH)) for name in ("input_ids", "attention_mask"))
    return Signature(ids, (Port("last_hidden_state", "float", (BATCH, LENGTH, c.d_model)),))


def decoder_signature(c: T5Config) -> Signature:
    layers, heads = c.decoder_layers, c.heads
    return encoder_decoder_signature(layers, heads.kv, heads.dim, c.vocab_size, c.d_model, masked=True)


def text_task(
    name: str,
    head: str,
    build: Callable[[T5Config], nn.Module],
    outputs: Callable[[T5Config], Sequence[tuple[str, tuple[Axis, ...]]]],
    bare: bool = False,
    gguf: Gguf | None = None,
) -> Task:
    """A task over one text, of the class of each model_type that ends in `head`."""
    return Task(
        name=name,
        architectures=tuple(f"{kind}{head}" for kind in ("T5", "MT5", "UMT5")),
        build=build,
        signature=lambda c: Signature(
            tuple(Port(port, "int64", (BATCH, LENGTH)) for port in ("input_ids", "attention_mask")),
            tuple(Port(port, "float", axes) for port, axes in outputs(c)),
        ),
        facts=lambda c: UNLIMITED,
        bare=bare,
        gguf=gguf,
    )


UNLIMITED: Mapping[str, Any] = {"context": None}
"""`n_positions` of config.json is the length of the training's texts, and no limit."""

RULES: tuple[Rule, ...] = (
    Rename("transformer.shared", "embed"),
    Copy("transformer.encoder.embed_tokens", "embed"),
    Copy("transformer.decoder.embed_tokens", "embed"),
    Rename("transformer.*.block.*.layer.0.SelfAttention.q", "*.layers.*.attn.q"),
    Rename("transformer.*.block.*.layer.0.SelfAttention.k", "*.layers.*.attn.k"),
    Rename("transformer.*.block.*.layer.0.SelfAttention.v", "*.layers.*.attn.v"),
    Rename("transformer.*.block.*.layer.0.SelfAttention.o", "*.layers.*.attn.out"),
    Rename("transformer.*.block.*.layer.0.SelfAttention.relative_attention_bias", "*.layers.*.attn.distance_embed"),
    Rename("transformer.*.block.*.layer.0.layer_norm", "*.layers.*.attn_norm"),
    Rename("transformer.decoder.block.*.layer.1.EncDecAttention.q", "decoder.layers.*.cross.q"),
    Rename("transformer.decoder.block.*.layer.1.EncDecAttention.k", "decoder.layers.*.cross.k"),
    Rename("transformer.decoder.block.*.layer.1.EncDecAttention.v", "decoder.layers.*.cross.v"),
    Rename("transformer.decoder.block.*.layer.1.EncDecAttention.o", "decoder.layers.*.cross.out"),
    Drop("transformer.decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"),  # of old files, never read
    Rename("transformer.decoder.block.*.layer.1.layer_norm", "decoder.layers.*.cross_norm"),
    Rename("transformer.encoder.block.*.layer.1.layer_norm", "encoder.layers.*.mlp_norm"),
    Rename("transformer.decoder.block.*.layer.2.layer_norm", "decoder.layers.*.mlp_norm"),
    Rename("transformer.encoder.block.*.layer.1.DenseReluDense.wo", "encoder.layers.*.mlp.down"),
    Rename("transformer.decoder.block.*.layer.2.DenseReluDense.wo", "decoder.layers.*.mlp.down"),
    Rename("transformer.*.final_layer_norm", "*.norm"),
    Rename("lm_head", "head"),
    Rename("classification_head.dense", "classifier.dense"),
    Rename("classification_head.out_proj", "classifier.out"),
    Rename("classifier", "classifier"),
    Rename("qa_outputs", "qa"),
)


def mlp_rules(c: T5Config) -> tuple[Rule, ...]:
    """The rules of the MLP's first matrices: two of a gated one."""
    names = {"wi_0": "gate", "wi_1": "up"} if c.is_gated_act else {"wi": "up"}
    return tuple(
        Rename(f"transformer.{side}.block.*.layer.{n}.DenseReluDense.{hub}", f"{side}.layers.*.mlp.{name}")
        for side, n in (("encoder", 1), ("decoder", 2))
        for hub, name in names.items()
    )


def _roots(side: str, *whole: str) -> Mapping[str, str]:
    """The table of tokens and the head are the model's, the rest is the part's."""
    return {**{name: f"{side}.{name}" for name in ("layers", "norm", "buckets")}, **{name: name for name in whole}}


_LAYER = {
    "attn_norm": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.out": "attn_o",
    "attn.distance_embed": "attn_rel_b",
    "cross_norm": "cross_attn_norm",
    "cross.q": "cross_attn_q",
    "cross.k": "cross_attn_k",
    "cross.v": "cross_attn_v",
    "cross.out": "cross_attn_o",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
TENSORS: Mapping[str, str] = {
    **{
        f"{side}.layers.*.{ours}": f"{short}.blk.*.{theirs}"
        for side, short in (("encoder", "enc"), ("decoder", "dec"))
        for ours, theirs in _LAYER.items()
    },
    "encoder.norm": "enc.output_norm",
    "decoder.norm": "dec.output_norm",
}
"""llama.cpp's names."""


def gguf_fields(c: T5Config, decodes: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "context_length": c.n_positions,
        "embedding_length": c.d_model,
        "feed_forward_length": c.d_ff,
        "block_count": c.num_layers,
        "attention.head_count": c.num_heads,
        "attention.key_length": c.d_kv,
        "attention.value_length": c.d_kv,
        "attention.layer_norm_epsilon": c.layer_norm_epsilon,
        "attention.relative_buckets_count": c.relative_attention_num_buckets,
        "attention.layer_norm_rms_epsilon": c.layer_norm_epsilon,
    }
    if decodes:
        fields |= {"decoder_block_count": c.decoder_layers, "decoder_start_token_id": c.start}
    return fields


def from_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], decodes: bool) -> dict[str, Any]:
    """config.json of what llama.cpp computes: a head of its own is not scaled once more."""
    each = "enc.blk.1.attn_rel_b.weight" in shapes
    kind = "umt5" if each else "t5"
    config = {
        "architectures": [f"{kind.upper()}{'ForConditionalGeneration' if decodes else 'EncoderModel'}"],
        "model_type": kind,
        "vocab_size": shapes["token_embd.weight"][0],
        "d_model": fields["embedding_length"],
        "d_kv": fields["attention.key_length"],
        "d_ff": fields["feed_forward_length"],
        "num_layers": fields["block_count"],
        "num_heads": fields["attention.head_count"],
        "relative_attention_num_buckets": fields["attention.relative_buckets_count"],
        "layer_norm_epsilon": fields["attention.layer_norm_rms_epsilon"],
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in shapes else "relu",
        "n_positions": fields["context_length"],
    }
    if decodes:
        config |= {
            "num_decoder_layers": fields.get("decoder_block_count", fields["block_count"]),
            "decoder_start_token_id": fields["decoder_start_token_id"],
            "scale_decoder_outputs": "output.weight" not in shapes,
        }
    return config


def gguf_refusal(c: T5Config, decodes: bool) -> str:
    if c.relative_attention_max_distance != 128:
        return (
            "llama.cpp's farthest distance with a bias of its own is 128, and config.json says "
            f"relative_attention_max_distance {c.relative_attention_max_distance}"
        )
    if c.dense_act_fn not in (("gelu", "gelu_new", "gelu_pytorch_tanh") if c.is_gated_act else ("relu",)):
        kind, other = ("a gated", "gelu") if c.is_gated_act else ("a plain", "relu")
        return f"llama.cpp's activation of {kind} MLP is {other} in this architecture, not {c.dense_act_fn}"
    if decodes and c.decoder_start_token_id is None:
        return "config.json has no decoder_start_token_id, and llama.cpp would begin with the token that begins a text"
    return ""


def gguf_card(arch: str, task: str, decodes: bool) -> Gguf:
    """llama.cpp has one architecture for both sides, and one for an encoder alone."""
    return Gguf(
        arch=arch,
        fields=lambda c: gguf_fields(c, decodes),
        config=lambda fields, shapes: from_gguf(fields, shapes, decodes),
        refuse=lambda c: gguf_refusal(c, decodes),
        scales=lambda c: {"head.weight": c.d_model**-0.5} if decodes and c.scale_decoder_outputs else {},
        tasks=(task,),
        names=TENSORS,
    )


FAMILY = Family(
    name="t5",
    title="T5",
    model_types=("t5", "mt5", "umt5"),
    config=T5Config,
    rules=RULES,
    towers=mlp_rules,
    tasks=(
        Task(
            name="text2text-generation",
            architectures=(
                *(f"{kind}ForConditionalGeneration" for kind in ("T5", "MT5", "UMT5")),
                "T5WithLMHeadModel",  # of old files
            ),
            parts={
                "encoder": Part(build=Encoder, signature=encoder_signature, roots=_roots("encoder", "embed")),
                "decoder": Part(
                    build=Decoder,
                    signature=decoder_signature,
                    roots=_roots("decoder", "embed", "head"),
                    file="decoder_model_merged",
                ),
            },
            wires={
                "decoder.encoder_hidden_states": "encoder.last_hidden_state",
                "decoder.encoder_attention_mask": "encoder.attention_mask",
            },
            facts=lambda c: UNLIMITED,
            bare=True,
        ),
        text_task(
            "text-classification",
            "ForSequenceClassification",
            lambda c: TextReader(c, span=False),
            lambda c: (("logits", (BATCH, c.num_labels)),),
        ),
        text_task(
            "token-classification",
            "ForTokenClassification",
            lambda c: TextStates(c, c.num_labels),
            lambda c: (("logits", (BATCH, LENGTH, c.num_labels)),),
        ),
        text_task(
            "question-answering",
            "ForQuestionAnswering",
            lambda c: TextReader(c, span=True),
            lambda c: (("start_logits", (BATCH, LENGTH)), ("end_logits", (BATCH, LENGTH))),
            bare=True,
        ),
        text_task(
            "feature-extraction",
            "EncoderModel",
            TextStates,
            lambda c: (("last_hidden_state", (BATCH, LENGTH, c.d_model)),),
            gguf=gguf_card("t5encoder", "feature-extraction", decodes=False),
        ),
    ),
    prefix="transformer",
    heads=("decoder", "head", "classifier", "qa"),
    tied=lambda c: {"head.weight": "embed.weight"},
    gguf=gguf_card("t5", "text2text-generation", decodes=True),
)
