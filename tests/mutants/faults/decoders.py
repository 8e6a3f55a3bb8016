"""Faults in decoders of text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoform.reference.modules import ops
from tests.mutants.faults.planted import (
    GRAPHS,
    LAYER,
    Fault,
    forward,
    learned_positions_one_late,
    on,
    part,
    setting,
    swap,
)
from tests.mutants.planting import Checkpoint, Definition, Tensors


def halves_of_experts_exchanged(tensors: Tensors) -> None:
    key = f"{LAYER}.mlp.experts.gate_up_proj"
    tensors[key] = tensors[key].roll(tensors[key].shape[1] // 2, 1)


def last_slot(module: nn.Module) -> None:
    """Classify by what stands in the last slot, padding or not."""
    honest: Any = module
    module.forward = lambda ids, mask: (honest.classifier(honest.states(ids, mask)[:, -1]),)


def embeddings_unscaled(module: nn.Module) -> None:
    module.embed_scale = 1.0  # type: ignore[assignment]


def every_layer_rotated(module: nn.Module) -> None:
    kinds: Any = module.kinds
    module.kinds = tuple(replace(kind, rope="rope") for kind in kinds)  # type: ignore[assignment]


def route_frozen(module: nn.Module) -> None:
    """The first experts for every token, as a trace over zeros would choose them."""
    router, used = part(module, "layers.1.mlp.router"), part(module, "layers.1.mlp").used
    closed = (torch.arange(router.weight.shape[0]) >= used).float() * -1e4

    def scores(x: Tensor) -> Tensor:
        return F.linear(x, router.weight) + closed.to(x)

    router.forward = scores


def experts_gate_swapped(module: nn.Module) -> None:
    """The stored matrices are honest; the graph takes ups for gates."""
    mlp = part(module, "layers.1.mlp")
    stacks = mlp.experts.up, mlp.experts.gate, mlp.experts.down

    def forward(x: Tensor) -> Tensor:
        weights = [stack.weight for stack in stacks]
        y: Tensor = ops.routed_experts(x, mlp.router(x), *weights, None, None, None, mlp.used, 1, 1.0, 0.0, 0.0)
        return y

    mlp.forward = forward


NARROW = (*GRAPHS, "gguf f32", "gguf q8_0"), "its rows are no multiple of 256"


FAULTS: tuple[Fault, ...] = (
    Fault(
        "embeddings unscaled, Gemma",
        "tiny gemma",
        Definition(embeddings_unscaled),
        (r"^what goes into layers\.0\.attn_norm$",),
        GRAPHS,
    ),
    Fault(
        "multiplier of what layers add, Granite",
        "tiny granite",
        Checkpoint(config=setting(residual_multiplier=0.23)),
        (r"^what goes into layers\.0\.mlp_norm$", r"residual_scale$"),
        *NARROW,
    ),
    Fault(
        "multiplier of the scores, Granite",
        "tiny granite",
        Checkpoint(config=setting(attention_multiplier=0.125)),
        (r"what goes into layers\.0\.attn\.out", r"attention\.scale$"),
        *NARROW,
    ),
    Fault(
        "divisor of the logits, Granite",
        "tiny granite",
        Checkpoint(config=setting(logits_scaling=7.5)),
        (r"^logits$", r"logit_scale$"),
        *NARROW,
    ),
    Fault(
        "norm of q left out, OLMo 2",
        "tiny olmo2",
        Definition(forward("layers.1.attn.q_norm", lambda norm, _: lambda x: x)),
        (r"^layers\.1\.attn\.q_norm(\.weight)?$", r"layers\.1\.rotary", r"what goes into layers\.1\.attn\.out"),
        GRAPHS,
    ),
    Fault(
        "norm after the MLP left out, OLMo 2",
        "tiny olmo2",
        Definition(forward("layers.1.mlp_post_norm", lambda norm, _: lambda x: x)),
        (r"^layers\.1(\.mlp_post_norm\.weight)?$",),
        GRAPHS,
    ),
    Fault(
        "gate and up swapped in the file, Phi-4",
        "tiny phi4",
        Checkpoint(on(f"{LAYER}.mlp.gate_up_proj.weight", lambda x: x.roll(len(x) // 2, 0))),
        (r"^layers\.1\.mlp\.gate_up(\.weight)?$",),
        *NARROW,
    ),
    Fault(
        "positions in a layer without them, SmolLM3",
        "tiny smollm3",
        Definition(every_layer_rotated),
        (r"what goes into layers\.3\.attn\.out", r"layers\.3\.rotary", r"present\.3\.key"),
        GRAPHS,
    ),
    Fault(
        "last slot instead of last token, Qwen2 with a classifier",
        "tiny qwen2_seqcls",
        Definition(last_slot),
        (r"^(what goes into )?classifier$",),
        ("onnx f32", "torchscript f32"),
        "quantized forms are measured on rows alone, which have no padding",
    ),
    Fault(
        "queries, keys and values rotated in the file, GPT-2",
        "tiny gpt2",
        Checkpoint(on("h.1.attn.c_attn.weight", lambda x: x.roll(x.shape[0], 1))),
        (r"^layers\.1\.attn\.qkv(\.weight)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "square matrix transposed, GPT-2",
        "tiny gpt2",
        Checkpoint(on("h.1.attn.c_proj.weight", lambda x: x.T)),
        (r"^layers\.1\.attn\.out(\.weight)?$",),
        ("onnx f32", "torchscript f32", "gguf f32"),
        "its rows are no whole blocks",
    ),
    Fault(
        "learned positions one late, GPT-2",
        "tiny gpt2",
        Definition(forward("position_embed", learned_positions_one_late)),
        (r"^position_embed$",),
        GRAPHS,
    ),
    Fault(
        "scores not scaled by the layer, GPT-2",
        "tiny gpt2_b",
        Checkpoint(config=setting(scale_attn_by_inverse_layer_idx=False)),
        (r"what goes into layers\.1\.attn\.out",),
        ("onnx f32", "onnx int8", "torchscript f32"),
        "its rows are no whole blocks, and llama.cpp has no such scale",
    ),
    Fault(
        "frozen expert route",
        "tiny qwen3_moe",
        Definition(route_frozen),
        (r"^layers\.1\.mlp",),
        GRAPHS,
    ),
    Fault(
        "frozen expert route, Mixtral",
        "tiny mixtral_b",
        Definition(route_frozen),
        (r"^layers\.1\.mlp",),
        GRAPHS,
    ),
    Fault(
        "experts gated by the other matrix, Mixtral",
        "tiny mixtral_b",
        Definition(experts_gate_swapped),
        (r"^layers\.1\.mlp",),
        GRAPHS,
    ),
    Fault(
        "gates and ups of the experts exchanged, Mixtral",
        "tiny mixtral_b",
        Checkpoint(halves_of_experts_exchanged),
        (r"^layers\.1\.mlp", r"^layers\.1$"),
        (*GRAPHS, "gguf f32", "gguf q8_0"),
        "its rows are no multiple of 256",
    ),
    Fault(
        "two experts exchanged in the file",
        "tiny qwen3_moe",
        Checkpoint(swap(f"{LAYER}.mlp.experts.2.down_proj", f"{LAYER}.mlp.experts.5.down_proj")),
        (r"^layers\.1\.mlp", r"^layers\.1$"),
        (*GRAPHS, "gguf f32", "gguf q8_0"),
        "its rows are no multiple of 256",
    ),
    Fault(
        "weights of the experts not divided by their sum",
        "tiny qwen3_moe",
        Checkpoint(config=setting(norm_topk_prob=False)),
        (r"^layers\.0\.mlp",),
        GRAPHS,
        "llama.cpp always divides, and the exporter refuses",
    ),
)
