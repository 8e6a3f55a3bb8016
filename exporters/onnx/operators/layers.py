"""Projections, lookups, normalizations, convolutions and rotary positions, plain and with ONNX Runtime's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Value
from isoform.exporters.onnx.operators.operands import END, Lowering, Types
from isoform.exporters.tracing import Type

LOGITS_START = "logits_start"
"""The first slot that gets logits. The runtime makes an input of it: a prompt needs those of its last slot only."""


def matmul(graph: Graph, out: Types, x: Value, y: Value) -> Value:
    return graph.one("MatMul", (x, y), out[0])


def embedding(graph: Graph, out: Types, weight: Value, ids: Value, *_: object) -> Value:
    return graph.one("Gather", (weight, ids), out[0], axis=0)


def from_start(graph: Graph, x: Value) -> Value:
    """The slots (B, T, C) of which logits are made: all, unless a reader replaces the constant `logits_start` by -1."""
    start = graph.named_constant(LOGITS_START, np.zeros(1, np.int64), torch.int64)
    return graph.one("Slice", (x, start, graph.indices(END), graph.indices(1)), x.type)


def fused_linear(graph: Graph, out: Types, x: Value, weight: Value, bias: Value | None) -> Value:
    """The weight stays as the Hub has it, [out, in]: as fast as a transposed copy, and its bytes need no change."""
    y = graph.one("FusedMatMul", (x, weight), out[0], MICROSOFT, transB=1)
    return y if bias is None else graph.one("Add", (y, bias), out[0])


def portable_linear(graph: Graph, out: Types, x: Value, weight: Value, bias: Value | None) -> Value:
    """Every engine folds the transposed constant when it loads."""
    turned = graph.one("Transpose", (weight,), Type(weight.type.dtype, weight.type.shape[::-1]), perm=[1, 0])
    y = graph.one("MatMul", (x, turned), out[0])
    return y if bias is None else graph.one("Add", (y, bias), out[0])


def layer_norm(
    graph: Graph,
    out: Types,
    x: Value,
    shape: list[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
    *_: object,
) -> Value:
    if weight is None:
        weight = graph.expand(graph.number(1, out[0].dtype), tuple(shape))
    return graph.one("LayerNormalization", (x, weight, bias), out[0], axis=-len(shape), epsilon=eps)


def group_norm(
    graph: Graph, out: Types, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float, *_: object
) -> Value:
    """Over the channels of a group and all that is behind them: x (B, C, ...). In float32, whatever the dtype."""
    if weight is None or bias is None:
        raise UnsupportedExport(f"{graph.scope}: a group norm without weight and bias has no ONNX form here")
    batch, channels, *rest = x.type.shape
    wide = graph.cast(x, torch.float32)
    if groups == channels:
        scale, shift = graph.cast(weight, torch.float32), graph.cast(bias, torch.float32)
        normal = graph.one("InstanceNormalization", (wide, scale, shift), wide.type, epsilon=eps)
        return graph.cast(normal, out[0].dtype)
    flat = graph.reshape(wide, Type(torch.float32, (batch, groups, "?group")), [0, groups, -1])
    ones = graph.constant(np.ones(groups, np.float32), torch.float32)
    zeros = graph.constant(np.zeros(groups, np.float32), torch.float32)
    normal = graph.one("InstanceNormalization", (flat, ones, zeros), flat.type, epsilon=eps)
    shape = graph.one("Shape", (wide,), Type(torch.int64, (len(x.type.shape),)))
    normal = graph.cast(graph.one("Reshape", (normal, shape), wide.type), out[0].dtype)
    axes = graph.indices(*range(1, len(rest) + 1))
    column = Type(out[0].dtype, (channels, *(1 for _ in rest)))
    scale, shift = (graph.one("Unsqueeze", (part, axes), column) for part in (weight, bias))
    normal = graph.one("Mul", (normal, scale), out[0])
    return graph.one("Add", (normal, shift), out[0])


def rms_norm(graph: Graph, out: Types, x: Value, weight: Value, eps: float) -> Value:
    """Computed in float32 (`stash_type` 1, the default), whatever the dtype."""
    return graph.one("RMSNormalization", (x, weight), out[0], axis=-1, epsilon=eps)


def skip_rms_norm(graph: Graph, out: Types, x: Value, weight: Value, eps: float) -> Value:
    """Of a sum, as at the end of every residual branch, together with that sum: one kernel makes both."""
    terms = graph.summands(x) if weight.name in graph.parameters else None
    if terms is None:
        return rms_norm(graph, out, x, weight, eps)
    return graph.absorb(x, "SkipSimplifiedLayerNormalization", (*terms, weight), 3, epsilon=eps)


def convolution(
    graph: Graph,
    out: Types,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *_: object,
) -> Value:
    """Over one axis or several: x (B, C, ...), weight (C out, C / groups, ...)."""
    settings: dict[str, Any] = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    if transposed:
        return graph.one("ConvTranspose", (x, weight, bias), out[0], **settings, output_padding=output_padding)
    return graph.one("Conv", (x, weight, bias), out[0], **settings)


def rotary(interleaved: bool) -> Lowering:
    """Rotates halves of a head, or neighbouring channels; of a wider head as many as there are angles for."""

    def lower(graph: Graph, out: Types, x: Value, cos: Value, sin: Value, heads: int) -> Value:
        width, pairs = x.type.shape[-1], cos.type.shape[-1]
        if not isinstance(width, int) or not isinstance(pairs, int):
            raise UnsupportedExport(
                f"{graph.scope}: a rotation of {width} channels by {pairs} angles; both must be fixed"
            )
        settings: dict[str, Any] = {"num_heads": heads}
        if interleaved:
            settings["interleaved"] = 1
        if 2 * pairs != width // heads:
            settings["rotary_embedding_dim"] = 2 * pairs
        return graph.one("RotaryEmbedding", (x, cos, sin), out[0], **settings)

    return lower
