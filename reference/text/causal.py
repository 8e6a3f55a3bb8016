"""What the decoder families share: rules, tasks, the plain pre-norm plan, and llama.cpp's metadata both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.card import Part, Task
from isoform.reference.config import with_labels
from isoform.reference.modules.decoder_plan import Classifier, DecoderPlan, Kind
from isoform.reference.rules import Drop, Rename, Rule
from isoform.reference.text.rope_scaling import rope_refusal, rope_scaling, rope_scaling_fields
from isoform.signature import BATCH, LENGTH, Axis, Port, Signature, decoder_signature

if TYPE_CHECKING:
    from torch import nn

TRUNK: tuple[Rule, ...] = (
    Rename("model.embed_tokens", "embed"),
    Rename("model.layers.*.self_attn.q_proj", "layers.*.attn.q"),
    Rename("model.layers.*.self_attn.k_proj", "layers.*.attn.k"),
    Rename("model.layers.*.self_attn.v_proj", "layers.*.attn.v"),
    Rename("model.layers.*.self_attn.o_proj", "layers.*.attn.out"),
    Rename("model.layers.*.mlp.gate_proj", "layers.*.mlp.gate"),
    Rename("model.layers.*.mlp.up_proj", "layers.*.mlp.up"),
    Rename("model.layers.*.mlp.down_proj", "layers.*.mlp.down"),
    Rename("lm_head", "head"),
    Rename("score", "classifier"),
    Rename("qa_outputs", "qa"),
    Drop("model.layers.*.self_attn.rotary_emb.inv_freq"),  # recomputed from the config
    Drop("model.rotary_emb.inv_freq"),
)
NORMS: tuple[Rule, ...] = (
    Rename("model.layers.*.input_layernorm", "layers.*.attn_norm"),
    Rename("model.layers.*.post_attention_layernorm", "layers.*.mlp_norm"),
    Rename("model.norm", "norm"),
)
HEAD_NORMS: tuple[Rule, ...] = (
    Rename("model.layers.*.self_attn.q_norm", "layers.*.attn.q_norm"),
    Rename("model.layers.*.self_attn.k_norm", "layers.*.attn.k_norm"),
)


def tied_head(c: Any) -> Mapping[str, str]:
    """The head shares the embedding when config.json says so."""
    return {"head.weight": "embed.weight"} if c.tie_word_embeddings else {}


HEADS = ("head", "classifier", "qa")
"""The modules of a decoder that only some of its tasks have."""


def with_head(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with what classifiers need: `num_labels`, and a `pad_token_id` or none (old files say -1)."""
    found = with_labels(data)
    pad = found.get("pad_token_id")
    return {**found, "pad_token_id": None} if isinstance(pad, int) and pad < 0 else found


def causal_tasks(
    plan: Callable[[Any], DecoderPlan],
    causal: tuple[str, ...],
    trunk: tuple[str, ...],
    *,
    sequence: tuple[str, ...] = (),
    token: tuple[str, ...] = (),
    span: tuple[str, ...] = (),
    facts: Callable[[Any], Mapping[str, Any]] | None = None,
) -> tuple[Task, ...]:
    """text-generation with the head, feature-extraction without; `plan` makes the decoder of a config.

    `sequence`, `token` and `span` are the architectures that classify texts or tokens, or answer questions. Their graph
    has no cache, and pads by the mask: transformers finds the last token by `pad_token_id`, which is why it refuses a
    batch without one. `facts` are those of text-generation.
    """

    def build(c: Any, head: bool) -> nn.Module:
        from isoform.reference.modules.decoder import decoder

        return decoder(plan(c), head)

    def logits(c: Any) -> Signature:
        return decoder_signature(c.num_hidden_layers, c.kv_heads, c.head_size, c.vocab_size)

    def states(c: Any) -> Signature:
        whole = logits(c)
        first = Port("last_hidden_state", "float", (*whole.outputs[0].axes[:2], c.hidden_size))
        return replace(whole, outputs=(first, *whole.outputs[1:]))

    def task(name: str, architectures: tuple[str, ...], signature: Callable[[Any], Signature], head: bool) -> Task:
        return Task(
            name=name,
            architectures=architectures,
            build=lambda c: build(c, head),
            signature=signature,
            shapes=lambda c: plan(c).shapes(head),
        )

    generation = task("text-generation", causal, logits, True)

    def of_texts(c: Any) -> Classifier:
        return Classifier(kind="sequence", labels=c.num_labels, pad=c.pad_token_id)

    def of_tokens(c: Any) -> Classifier:
        return Classifier(kind="token", labels=c.num_labels, bias=True)

    return (
        generation if facts is None else replace(generation, facts=facts),
        *_classifier("text-classification", plan, sequence, of_texts),
        *_classifier("token-classification", plan, token, of_tokens),
        *_classifier("question-answering", plan, span, lambda c: Classifier(kind="span")),
        task("feature-extraction", trunk, states, False),
    )


def _classifier(
    name: str, plan: Callable[[Any], DecoderPlan], architectures: tuple[str, ...], head: Callable[[Any], Classifier]
) -> Iterator[Task]:
    """The task of these architectures, if there are any."""

    def build(c: Any) -> nn.Module:
        from isoform.reference.modules.decoder import classifier

        return classifier(plan(c), head(c))

    def signature(c: Any) -> Signature:
        made, slots = head(c), (BATCH, LENGTH)
        outputs: dict[str, tuple[tuple[str, tuple[Axis, ...]], ...]] = {
            "sequence": (("logits", (BATCH, made.labels)),),
            "token": (("logits", (*slots, made.labels)),),
            "span": (("start_logits", slots), ("end_logits", slots)),
        }
        return Signature(
            tuple(Port(port, "int64", slots) for port in ("input_ids", "attention_mask")),
            tuple(Port(port, "float", axes) for port, axes in outputs[made.kind]),
        )

    if architectures:
        yield Task(
            name=name,
            architectures=architectures,
            build=build,
            signature=signature,
            shapes=lambda c: plan(c).shapes(head(c)),
        )


def causal_parts(plan: Callable[[Any], DecoderPlan]) -> Mapping[str, Part]:
    """The two graphs of a decoder inside another model: token ids to embeddings, and embeddings to logits."""

    def embed(c: Any) -> nn.Module:
        from isoform.reference.modules.decoder import token_embedding

        return token_embedding(plan(c))

    def decode(c: Any) -> nn.Module:
        from isoform.reference.modules.decoder import decoder

        return decoder(plan(c), True, embeds=True)

    def embeddings(c: Any) -> Signature:
        ids = Port("input_ids", "int64", (BATCH, LENGTH))
        return Signature((ids,), (Port("inputs_embeds", "float", (BATCH, LENGTH, c.hidden_size)),))

    def logits(c: Any) -> Signature:
        return decoder_signature(c.num_hidden_layers, c.kv_heads, c.head_size, c.vocab_size, embeddings=c.hidden_size)

    return {
        "embed_tokens": Part(build=embed, signature=embeddings),
        "decoder": Part(build=decode, signature=logits),
    }


def plain_decoder(
    c: Any,
    *,
    windows: Sequence[int | None] | None = None,
    kinds: tuple[Kind, ...] | None = None,
    **options: Any,
) -> DecoderPlan:
    """Two norms per layer, one rotary base, a gated MLP; `options` of the plan are what else a family has.

    `kinds` has one entry per layer; without it all layers have rotary positions, and `windows` or none.
    """
    return DecoderPlan(
        vocab=c.vocab_size,
        dim=c.hidden_size,
        hidden=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_size,
        act=c.hidden_act,
        eps=c.rms_norm_eps,
        kinds=kinds or tuple(Kind(window=window) for window in windows or [None] * c.num_hidden_layers),
        ropes={"rope": c.rope},
        tied=c.tie_word_embeddings,
        **options,
    )


def upper_windows(c: Any) -> list[int | None]:
    """Qwen's windows, when switched on: by `layer_types`, or on the layers from `max_window_layers` on."""
    switched_on = c.use_sliding_window and c.sliding_window is not None
    types = layer_types(c, lambda n: switched_on and n >= c.max_window_layers)
    if not switched_on and "sliding_attention" in types:
        raise CheckpointError("config.json: layer_types holds sliding_attention, and no sliding window is switched on")
    return [c.sliding_window if kind == "sliding_attention" else None for kind in types]


def layer_types(c: Any, sliding: Callable[[int], bool]) -> tuple[str, ...]:
    """`layer_types` of config.json, or "sliding_attention" where `sliding(layer)` and "full_attention" elsewhere."""
    if not c.layer_types:
        names = ("full_attention", "sliding_attention")
        return tuple(names[sliding(n)] for n in range(c.num_hidden_layers))
    if unknown := sorted(set(c.layer_types) - {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(f"layers of type {unknown[0]!r} are not supported by this family")
    if len(c.layer_types) != c.num_hidden_layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(c.layer_types)} entries for {c.num_hidden_layers} layers"
        )
    return tuple(c.layer_types)


def decoder_fields(c: Any) -> dict[str, Any]:
    """llama.cpp's metadata that every decoder has, without the architecture's prefix."""
    fields: dict[str, Any] = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.kv_heads,
        "rope.freq_base": c.rope.theta,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
    }
    if c.head_dim is not None:
        fields |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    return fields | rope_scaling_fields(c.rope)


def decoder_config(
    architecture: str, model_type: str, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """config.json of a plain decoder from llama.cpp's metadata and the shapes of the GGUF's tensors."""
    heads, dim = fields["attention.head_count"], fields["embedding_length"]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": dim,
        "intermediate_size": fields["feed_forward_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("attention.head_count_kv", heads),
        "max_position_embeddings": fields["context_length"],
        "rms_norm_eps": fields["attention.layer_norm_rms_epsilon"],
        "rope_theta": fields.get("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if "attention.key_length" in fields:
        config["head_dim"] = fields["attention.key_length"]
    if scaling := rope_scaling(fields):
        config["rope_scaling"] = scaling
    return config


def decoder_refusal(c: Any, windows: Sequence[int | None] = (), *, llama3: bool = False) -> str:
    """Why llama.cpp's plain decoders would compute something else: they have no window and only a SiLU."""
    window = min((window for window in windows if window is not None), default=c.max_position_embeddings)
    if window < c.max_position_embeddings:
        return f"llama.cpp has no sliding window for this architecture, and the model's is {window} tokens"
    if c.hidden_act != "silu":
        return f"llama.cpp has only the activation silu for this architecture, not {c.hidden_act}"
    return rope_refusal(c.rope, llama3=llama3)
