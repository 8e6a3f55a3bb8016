"""Faults in encoders of text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.mutants.faults.planted import (
    GRAPHS,
    Fault,
    activation,
    distances_one_late,
    forward,
    learned_positions_one_late,
    padding_ignored,
    part,
    setting,
    swap,
    wrong_epsilon,
)
from tests.mutants.planting import Checkpoint, Definition


def window_one_longer(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(replace(kind, window=kind.window and kind.window + 1) for kind in kinds)  # type: ignore[assignment]


def hides_one_later(module: nn.Module) -> None:
    window_one_longer(module)
    hide: Any = module.hide
    hide.window += 1


def large_epsilon(module: nn.Module) -> None:
    """One that shows: 1e-6 instead of 1e-12 moves states of size 1 by less than the order of a sum does."""
    part(module, "layers.1.out_norm").eps = 1e-3


def every_distance_a_bucket(module: nn.Module) -> None:
    """The far distances all in the last bucket, and none on a logarithmic scale."""
    table, last = part(module, "buckets"), int(part(module, "buckets").numbers.max())
    table.numbers = (torch.arange(table.far, -table.far - 1, -1) + last // 2 + 1).clamp(0, last)


def without_its_norm(module: nn.Module) -> None:
    part(module, "distance_norm").forward = lambda x: x


def places_exchanged(module: nn.Module) -> None:
    """In one layer the distances of keys are projected like those of queries."""
    attention = part(module, "layers.1.attn")
    attention.place_k.forward = lambda x: F.linear(x, attention.place_q.weight, attention.place_q.bias)


def head_without_activation(module: nn.Module) -> None:
    part(module, "mlm").act = lambda x: x


def thetas_swapped(module: nn.Module) -> None:
    kinds: Any = module.kinds
    other = {"rope": "local_rope", "local_rope": "rope"}
    module.kinds = tuple(replace(kind, rope=other[kind.rope]) for kind in kinds)  # type: ignore[assignment]


def first_layer_normed(module: nn.Module) -> None:
    part(module, "layers.0").attn_norm.forward = lambda x: F.layer_norm(x, x.shape[-1:])


def other_half_gated(module: nn.Module) -> None:
    mlp = part(module, "layers.1.mlp")

    def swapped(x: Tensor) -> Any:
        up, gate = mlp.gate_up(x).chunk(2, -1)
        return mlp.down(mlp.act(gate) * up)

    mlp.forward = swapped


def pooled_otherwise(module: nn.Module) -> None:
    module.pooling = {"cls": "mean", "mean": "cls"}[str(module.pooling)]  # type: ignore[assignment]


def one_side_seen(module: nn.Module) -> None:
    module.both_sides = False  # type: ignore[assignment]


def classifier_without_activation(module: nn.Module) -> None:
    part(module, "classifier").act = lambda x: x


def without_bias(found: Any, _: nn.Module) -> Callable[..., Any]:
    return lambda x: F.linear(x, found.weight)


def groups_in_turn(module: nn.Module) -> None:
    """Layers 0, 1, 0, 1 instead of 0, 0, 1, 1."""
    order: Any = module.order
    module.order = (*order[::2], *order[1::2])  # type: ignore[assignment]


def one_run_less(module: nn.Module) -> None:
    order: Any = module.order
    module.order = order[:-1]


def activation_of_shared_layers(module: nn.Module) -> None:
    part(module, "layers.0.inner.0.mlp").act = F.gelu


SHARED = "encoder.albert_layer_groups.1.albert_layers.0"


FAULTS: tuple[Fault, ...] = (
    Fault(
        "epsilon of the norms, encoder",
        "tiny bert_embed",
        Checkpoint(config=setting(layer_norm_eps=1e-4)),
        (r"^embed_norm$", r"epsilon$"),
        (*GRAPHS, "gguf f32", "gguf q8_0"),
        "its rows are no multiple of 256",
    ),
    Fault(
        "epsilon of one norm, encoder", "tiny bert_embed", Definition(wrong_epsilon), (r"layers\.1\.out_norm$",), GRAPHS
    ),
    Fault(
        "learned positions one late",
        "tiny bert_embed",
        Definition(forward("position_embed", learned_positions_one_late)),
        (r"^position_embed$",),
        GRAPHS,
    ),
    Fault(
        "padding ignored, encoder",
        "tiny bert_embed",
        Definition(padding_ignored),
        (r"^position_embed$", r"what goes into layers\.0\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "GELU by tanh instead of erf",
        "tiny bert_embed",
        Definition(activation(lambda x: F.gelu(x, approximate="tanh"))),
        (r"what goes into layers\.1\.mlp\.down",),
        GRAPHS,
    ),
    # distances
    Fault(
        "distances one late, MPNet",
        "tiny mpnet_b",
        Definition(distances_one_late),
        (r"^distance_embed$", r"^buckets$", r"layers\.0\.attn\.out$"),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "padding ignored, MPNet",
        "tiny mpnet_seqcls",
        Definition(padding_ignored),
        (r"^position_embed$", r"layers\.0\.attn\.out$"),
        GRAPHS,
    ),
    Fault(
        "head without its activation, MPNet",
        "tiny mpnet",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "no logarithm of distances, DeBERTa",
        "tiny deberta_b",
        Definition(every_distance_a_bucket),
        (r"^buckets$", r"layers\.0\.attn\.out$"),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "table of distances without its norm, DeBERTa",
        "tiny deberta",
        Definition(without_its_norm),
        (r"^distance_norm(\.weight)?$", r"layers\.0\.attn\.[qk]$", r"layers\.0\.attn\.out$"),
        GRAPHS,
    ),
    Fault(
        "places exchanged, DeBERTa",
        "tiny deberta_seqcls",
        Definition(places_exchanged),
        (r"layers\.1\.attn\.place_k(\.weight)?$", r"layers\.1\.attn\.out$"),
        GRAPHS,
    ),
    Fault(
        "padding ignored, DeBERTa",
        "tiny deberta_seqcls",
        Definition(padding_ignored),
        (r"layers\.0\.attn\.out$", r"^embed_norm$"),
        GRAPHS,
    ),
    # windows on both sides, ModernBERT
    Fault(
        "window one longer, ModernBERT",
        "tiny modernbert_b",
        Definition(hides_one_later),
        (r"layers\.1\.attn\.out$", r"^layers\.1$", r"^hide$"),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "thetas swapped, ModernBERT",
        "tiny modernbert",
        Definition(thetas_swapped),
        (r"layers\.0\.attn\.out$", r"^layers\.0\.rotary$"),
        GRAPHS,
    ),
    Fault(
        "first layer normed, ModernBERT",
        "tiny modernbert_mask",
        Definition(first_layer_normed),
        (r"layers\.0\.attn_norm$", r"layers\.0\.attn\.qkv$"),
        GRAPHS,
    ),
    Fault(
        "other half gated, ModernBERT",
        "tiny modernbert_ner",
        Definition(other_half_gated),
        # TorchScript: a layer that branches by the length of the text is taken as a whole
        (r"what goes into layers\.1\.mlp\.down", r"^layers\.1$"),
        GRAPHS,
    ),
    Fault(
        "pooled otherwise, ModernBERT",
        "tiny modernbert_seqcls",
        Definition(pooled_otherwise),
        (r"what goes into mlm\.dense|^mlm\.dense$|^logits$",),
        GRAPHS,
    ),
    Fault(
        "padding ignored, ModernBERT",
        "tiny modernbert_cls",
        Definition(padding_ignored),
        (r"layers\.0\.attn\.out$", r"^ropes\.rope$"),
        GRAPHS,
    ),
    # a family's own: its keys, its heads
    Fault(
        "q and k swapped in the file, DistilBERT",
        "tiny distilbert_base",
        Checkpoint(swap("transformer.layer.1.attention.q_lin", "transformer.layer.1.attention.k_lin")),
        (r"^layers\.1\.attn\.[qk](\.weight|\.bias)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "epsilon of one norm, DistilBERT",
        "tiny distilbert",
        Definition(large_epsilon),
        (r"layers\.1\.out_norm$",),
        GRAPHS,
    ),
    Fault(
        "learned positions one late, DistilBERT",
        "tiny distilbert_seqcls",
        Definition(forward("position_embed", learned_positions_one_late)),
        (r"^position_embed$",),
        GRAPHS,
    ),
    Fault(
        "padding ignored, DistilBERT",
        "tiny distilbert_qa",
        Definition(padding_ignored),
        (r"^position_embed$", r"what goes into layers\.0\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "GELU by tanh instead of erf, DistilBERT",
        "tiny distilbert",
        Definition(activation(lambda x: F.gelu(x, approximate="tanh"))),
        (r"what goes into layers\.1\.mlp\.down",),
        GRAPHS,
    ),
    Fault(
        "head without its activation, DistilBERT",
        "tiny distilbert",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "q and k swapped in the file, RoBERTa",
        "tiny xlm_roberta_b",
        Checkpoint(swap("encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.key")),
        (r"^layers\.1\.attn\.[qk](\.weight|\.bias)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "positions one early, RoBERTa",
        "tiny xlm_roberta_b",
        Checkpoint(config=setting(pad_token_id=0)),
        (r"^position_embed(\.weight)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "one side seen instead of both",
        "tiny embedding_gemma_b",
        Definition(one_side_seen),
        (r"what goes into layers\.0\.attn\.out",),
        GRAPHS,
    ),
    Fault(
        "window one token longer to both sides",
        "tiny embedding_gemma_b",
        Definition(window_one_longer),
        (r"what goes into layers\.0\.attn\.out",),
        GRAPHS,
    ),
    Fault(
        "padding ignored, RoBERTa",
        "tiny xlm_roberta_qa",
        Definition(padding_ignored),
        (r"^position_embed$", r"what goes into layers\.0\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "head without its activation, RoBERTa",
        "tiny roberta",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "classifier without its activation, RoBERTa",
        "tiny roberta_seqcls",
        Definition(classifier_without_activation),
        (r"classifier\.out$",),
        GRAPHS,
    ),
    Fault(
        "embeddings projected without a bias, ELECTRA",
        "tiny electra_ner",
        Definition(forward("project", without_bias)),
        (r"^project(\.bias)?$",),
        GRAPHS,
    ),
    Fault(
        "head without its activation, ELECTRA",
        "tiny electra",
        Definition(head_without_activation),
        (r"what goes into mlm\.norm|^mlm\.norm$",),
        GRAPHS,
    ),
    Fault(
        "classifier without its activation, ELECTRA",
        "tiny electra_seqcls",
        Definition(classifier_without_activation),
        (r"classifier\.out$",),
        GRAPHS,
    ),
    Fault(
        "q and k swapped in the file, ALBERT",
        "tiny albert_b",
        Checkpoint(swap(f"{SHARED}.attention.query", f"{SHARED}.attention.key")),
        (r"^layers\.1\.inner\.0\.attn\.[qk](\.weight|\.bias)?$",),
        ("onnx f32", "torchscript f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "groups of layers in turn, ALBERT",
        "tiny albert_ner",
        Definition(groups_in_turn),
        (r"layers\.[01]\.",),
        GRAPHS,
    ),
    Fault(
        "the last layer not run again, ALBERT",
        "tiny albert_seqcls",
        Definition(one_run_less),
        (r"layers\.0\.|pooler",),
        GRAPHS,
    ),
    Fault(
        "GELU by erf instead of tanh, ALBERT",
        "tiny albert",
        Definition(activation_of_shared_layers),
        (r"what goes into layers\.0\.inner\.0\.mlp\.down",),
        GRAPHS,
    ),
)
