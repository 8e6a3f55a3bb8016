"""What each traced operation becomes in ONNX.

`ATEN` holds torch's own operations, in standard ONNX. The semantic ones have two tables: `RUNTIME`, with ONNX Runtime's
kernels where they are faster, and `PORTABLE`, standard ONNX of opset 23 throughout.

A lowering takes the graph, the types of its outputs and the operation's arguments in the order of torch's schema:
values, numbers, sizes, lists, None. The operators: https://onnx.ai/onnx/operators and
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from isoform.errors import UnsupportedExport
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Number, Size, Value
from isoform.exporters.tracing import Type
from isoform.signature import LENGTH, TOTAL, Axis

Lowering = Callable[..., Any]
Types = Sequence[Type]
Operand = Value | Number | Size

LOGITS_START = "logits_start"
"""The first slot that gets logits. The runtime makes an input of it: a prompt needs those of its last slot only."""

_END = 2**63 - 1  # "to the end", in torch and in ONNX


def tensor(graph: Graph, x: Operand, dtype: torch.dtype) -> Value:
    """An operand as a tensor of `dtype`: a number becomes a constant, a size a scalar."""
    if isinstance(x, Value):
        return graph.cast(x, dtype)
    if isinstance(x, Size):
        scalar = graph.one("Squeeze", (Value(x.name, Type(torch.int64, (1,))),), Type(torch.int64, ()))
        return graph.cast(scalar, dtype)
    return graph.number(x, dtype)


def compute_dtype(x: Operand, y: Operand) -> torch.dtype:
    """The dtype in which torch compares two operands: a number or scalar takes the other's kind of dtype."""

    def sample(operand: Operand) -> torch.Tensor | Number:
        if isinstance(operand, Value):
            return torch.empty([1] * len(operand.type.shape), dtype=operand.type.dtype, device="meta")
        return 0 if isinstance(operand, Size) else operand

    return torch.result_type(sample(x), sample(y))


def elementwise(kind: str, **attributes: Any) -> Lowering:
    """One input, one output of the same shape; further arguments must be at their defaults."""

    def lower(graph: Graph, out: Types, x: Value) -> Value:
        return graph.one(kind, (graph.cast(x, out[0].dtype),), out[0], **attributes)

    return lower


def arithmetic(kind: str) -> Lowering:
    """Two operands in the result's dtype."""

    def lower(graph: Graph, out: Types, x: Operand, y: Operand) -> Value:
        return graph.one(kind, (tensor(graph, x, out[0].dtype), tensor(graph, y, out[0].dtype)), out[0])

    return lower


def scaled(kind: str) -> Lowering:
    """Addition or subtraction of `alpha` times the second operand."""

    def lower(graph: Graph, out: Types, x: Operand, y: Operand, alpha: Number = 1) -> Value:
        right = tensor(graph, y, out[0].dtype)
        if alpha != 1:
            right = graph.one("Mul", (right, graph.number(alpha, right.type.dtype)), right.type)
        return graph.one(kind, (tensor(graph, x, out[0].dtype), right), out[0])

    return lower


def reversed_sub(graph: Graph, out: Types, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    """y - alpha * x."""
    return scaled("Sub")(graph, out, y, x, alpha)


def comparison(kind: str, negated: bool = False) -> Lowering:
    def lower(graph: Graph, out: Types, x: Operand, y: Operand) -> Value:
        dtype = compute_dtype(x, y)
        result = graph.one(kind, (tensor(graph, x, dtype), tensor(graph, y, dtype)), out[0])
        return graph.one("Not", (result,), out[0]) if negated else result

    return lower


def logical(kind: str) -> Lowering:
    def lower(graph: Graph, out: Types, x: Value, y: Value) -> Value:
        if (x.type.dtype, y.type.dtype) != (torch.bool, torch.bool):
            raise UnsupportedExport(f"{graph.scope}: {kind} of {x.type.dtype}; only booleans have an ONNX form here")
        return graph.one(kind, (x, y), out[0])

    return lower


def reduction(kind: str) -> Lowering:
    def lower(
        graph: Graph, out: Types, x: Value, dims: int | list[int] | None, keep: bool = False, dtype: object = None
    ) -> Value:
        axes = [dims] if isinstance(dims, int) else list(dims or range(len(x.type.shape)))
        return graph.one(kind, (graph.cast(x, out[0].dtype), graph.indices(*axes)), out[0], keepdims=int(keep))

    return lower


def argmax(graph: Graph, out: Types, x: Value, dim: int, keep: bool = False) -> Value:
    """The first of several maxima, as torch's CPU kernel has it."""
    return graph.one("ArgMax", (x,), out[0], axis=dim, keepdims=int(keep))


def cast(graph: Graph, out: Types, x: Value, *_: object) -> Value:
    return graph.cast(x, out[0].dtype)


def same(graph: Graph, out: Types, x: Value, *_: object) -> Value:
    return x


def reshape(graph: Graph, out: Types, x: Value, *arguments: object) -> Value:
    """view, reshape, flatten, unflatten: the traced shape says it; `arguments` do where two sizes are unnamed."""
    (last,) = arguments[-1:] or (None,)
    dims = last if isinstance(last, list) and len(last) == len(out[0].shape) else None
    return graph.reshape(x, out[0], dims)


def unsqueeze(graph: Graph, out: Types, x: Value, dim: int) -> Value:
    return graph.one("Unsqueeze", (x, graph.indices(dim)), out[0])


def squeeze(graph: Graph, out: Types, x: Value, dim: int) -> Value:
    if x.type.shape[dim] != 1:
        return x
    return graph.one("Squeeze", (x, graph.indices(dim)), out[0])


def transpose(graph: Graph, out: Types, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.type.shape)))
    order[a], order[b] = order[b], order[a]
    return graph.one("Transpose", (x,), out[0], perm=order)


def permute(graph: Graph, out: Types, x: Value, order: list[int]) -> Value:
    return graph.one("Transpose", (x,), out[0], perm=[n % len(order) for n in order])


def expand(graph: Graph, out: Types, x: Value, dims: list[int | Size], *_: object) -> Value:
    if x.type.shape == out[0].shape:
        return x
    sizes = [axis if isinstance(dim, int) else dim for axis, dim in zip(out[0].shape, dims, strict=True)]
    return graph.one("Expand", (x, graph.shape(sizes)), out[0])


def expand_as(graph: Graph, out: Types, x: Value, other: Value) -> Value:
    return graph.expand(x, other.type.shape)


def select(graph: Graph, out: Types, x: Value, dim: int, index: int | Size) -> Value:
    return graph.one("Gather", (x, tensor(graph, index, torch.int64)), out[0], axis=dim)


def slice_(
    graph: Graph, out: Types, x: Value, dim: int, start: int | Size | None, end: int | Size | None, step: int = 1
) -> Value:
    if (start is None or start == 0) and (end is None or end == _END) and step == 1:
        return x
    bounds = [graph.shape([0 if start is None else start]), graph.shape([_END if end is None else end])]
    return graph.one("Slice", (x, *bounds, graph.indices(dim), graph.indices(step)), out[0])


def unbind(graph: Graph, out: Types, x: Value, dim: int = 0) -> list[Value]:
    count = x.type.shape[dim]
    if not isinstance(count, int):
        raise UnsupportedExport(f"{graph.scope}: unbind along {count}, whose size varies; index it instead")
    shape = tuple(axis for n, axis in enumerate(x.type.shape) if n != dim % len(x.type.shape))
    type_ = Type(x.type.dtype, shape)
    return [graph.one("Gather", (x, graph.number(n, torch.int64)), type_, axis=dim) for n in range(count)]


def concat(graph: Graph, out: Types, parts: list[Value], dim: int = 0) -> Value:
    return graph.one("Concat", [graph.cast(part, out[0].dtype) for part in parts], out[0], axis=dim)


def stack(graph: Graph, out: Types, parts: list[Value], dim: int = 0) -> Value:
    at = dim % len(out[0].shape)
    shape = (*out[0].shape[:at], 1, *out[0].shape[at + 1 :])
    raised = [graph.one("Unsqueeze", (part, graph.indices(at)), Type(part.type.dtype, shape)) for part in parts]
    return concat(graph, out, raised, at)


def cumsum(graph: Graph, out: Types, x: Value, dim: int, dtype: object = None) -> Value:
    return graph.one("CumSum", (graph.cast(x, out[0].dtype), graph.number(dim, torch.int64)), out[0])


def clamp(graph: Graph, out: Types, x: Value, low: Number | None = None, high: Number | None = None) -> Value:
    bounds = [None if bound is None else graph.number(bound, out[0].dtype) for bound in (low, high)]
    return graph.one("Clip", (graph.cast(x, out[0].dtype), *bounds), out[0])


def where(graph: Graph, out: Types, condition: Value, x: Operand, y: Operand) -> Value:
    dtype = out[0].dtype
    return graph.one("Where", (condition, tensor(graph, x, dtype), tensor(graph, y, dtype)), out[0])


def masked_fill(graph: Graph, out: Types, x: Value, mask: Value, value: Operand) -> Value:
    return where(graph, out, mask, value, x)


def arange(graph: Graph, out: Types, *arguments: Any) -> Value:
    """arange(end, dtype, layout, device, pin) or arange(start, end, dtype, …) or arange(start, end, step, dtype, …)."""
    bounds: list[Operand] = list(arguments[:-4])
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    dtype = out[0].dtype
    return graph.one("Range", [tensor(graph, x, dtype) for x in (start, end, step)], out[0])


def filled(value: Number) -> Lowering:
    """zeros, ones, zeros_like, ones_like, new_zeros, new_ones."""

    def lower(graph: Graph, out: Types, *_: object) -> Value:
        return graph.expand(graph.number(value, out[0].dtype), out[0].shape)

    return lower


def gather(graph: Graph, out: Types, x: Value, dim: int, index: Value, *_: object) -> Value:
    return graph.one("GatherElements", (x, index), out[0], axis=dim)


def softmax(graph: Graph, out: Types, x: Value, dim: int, *_: object) -> Value:
    return graph.one("Softmax", (graph.cast(x, out[0].dtype),), out[0], axis=dim)


def matmul(graph: Graph, out: Types, x: Value, y: Value) -> Value:
    return graph.one("MatMul", (x, y), out[0])


def embedding(graph: Graph, out: Types, weight: Value, ids: Value, *_: object) -> Value:
    return graph.one("Gather", (weight, ids), out[0], axis=0)


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


def gelu(graph: Graph, out: Types, x: Value, approximate: str = "none") -> Value:
    return graph.one("Gelu", (x,), out[0], approximate=approximate)


def silu(graph: Graph, out: Types, x: Value) -> Value:
    return graph.one("Mul", (x, graph.one("Sigmoid", (x,), out[0])), out[0])


ATEN: Mapping[str, Lowering] = {
    "__and__": logical("And"),
    "__or__": logical("Or"),
    "_convolution": convolution,
    "abs": elementwise("Abs"),
    "add": scaled("Add"),
    "alias": same,
    "arange": arange,
    "argmax": argmax,
    "bitwise_and": logical("And"),
    "bitwise_not": elementwise("Not"),
    "bitwise_or": logical("Or"),
    "bmm": matmul,
    "cat": concat,
    "clamp": clamp,
    "clamp_min": clamp,
    "contiguous": same,
    "cos": elementwise("Cos"),
    "cumsum": cumsum,
    "detach": same,
    "div": arithmetic("Div"),
    "dropout": same,
    "embedding": embedding,
    "eq": comparison("Equal"),
    "erf": elementwise("Erf"),
    "exp": elementwise("Exp"),
    "expand": expand,
    "expand_as": expand_as,
    "flatten": reshape,
    "floor": elementwise("Floor"),
    "gather": gather,
    "ge": comparison("GreaterOrEqual"),
    "gelu": gelu,
    "group_norm": group_norm,
    "gt": comparison("Greater"),
    "layer_norm": layer_norm,
    "le": comparison("LessOrEqual"),
    "logical_and": logical("And"),
    "logical_not": elementwise("Not"),
    "logical_or": logical("Or"),
    "lt": comparison("Less"),
    "masked_fill": masked_fill,
    "matmul": matmul,
    "mean": reduction("ReduceMean"),
    "mul": arithmetic("Mul"),
    "ne": comparison("Equal", negated=True),
    "neg": elementwise("Neg"),
    "new_ones": filled(1),
    "new_zeros": filled(0),
    "ones": filled(1),
    "ones_like": filled(1),
    "permute": permute,
    "pow": arithmetic("Pow"),
    "relu": elementwise("Relu"),
    "reshape": reshape,
    "rsub": reversed_sub,
    "select": select,
    "sigmoid": elementwise("Sigmoid"),
    "silu": silu,
    "sin": elementwise("Sin"),
    "slice": slice_,
    "softmax": softmax,
    "sqrt": elementwise("Sqrt"),
    "squeeze": squeeze,
    "stack": stack,
    "sub": scaled("Sub"),
    "sum": reduction("ReduceSum"),
    "tanh": elementwise("Tanh"),
    "to": cast,
    "transpose": transpose,
    "type_as": cast,
    "unbind": unbind,
    "unflatten": reshape,
    "unsqueeze": unsqueeze,
    "view": reshape,
    "where": where,
    "zeros": filled(0),
    "zeros_like": filled(0),
}
"""torch's operations, by name without `aten::`."""


def from_start(graph: Graph, x: Value) -> Value:
    """The slots (B, T, C) of which logits are made: all, unless a reader replaces the constant `logits_start` by -1."""
    start = graph.named_constant(LOGITS_START, np.zeros(1, np.int64), torch.int64)
    return graph.one("Slice", (x, start, graph.indices(_END), graph.indices(1)), x.type)


# Semantic operations, and the linear layer


def fused_linear(graph: Graph, out: Types, x: Value, weight: Value, bias: Value | None) -> Value:
    """The weight stays as the Hub has it, [out, in]: as fast as a transposed copy, and its bytes need no change."""
    y = graph.one("FusedMatMul", (x, weight), out[0], MICROSOFT, transB=1)
    return y if bias is None else graph.one("Add", (y, bias), out[0])


def portable_linear(graph: Graph, out: Types, x: Value, weight: Value, bias: Value | None) -> Value:
    """Every engine folds the transposed constant when it loads."""
    turned = graph.one("Transpose", (weight,), Type(weight.type.dtype, weight.type.shape[::-1]), perm=[1, 0])
    y = graph.one("MatMul", (x, turned), out[0])
    return y if bias is None else graph.one("Add", (y, bias), out[0])


def rms_norm(graph: Graph, out: Types, x: Value, weight: Value, eps: float) -> Value:
    """Computed in float32 (`stash_type` 1, the default), whatever the dtype."""
    return graph.one("RMSNormalization", (x, weight), out[0], axis=-1, epsilon=eps)


def skip_rms_norm(graph: Graph, out: Types, x: Value, weight: Value, eps: float) -> Value:
    """Of a sum, as at the end of every residual branch, together with that sum: one kernel makes both."""
    terms = graph.summands(x) if weight.name in graph.parameters else None
    if terms is None:
        return rms_norm(graph, out, x, weight, eps)
    return graph.absorb(x, "SkipSimplifiedLayerNormalization", (*terms, weight), 3, epsilon=eps)


def rotary(graph: Graph, out: Types, x: Value, cos: Value, sin: Value, heads: int) -> Value:
    return graph.one("RotaryEmbedding", (x, cos, sin), out[0], num_heads=heads)


def partial_rotary(graph: Graph, out: Types, x: Value, cos: Value, sin: Value, heads: int) -> Value:
    width, pairs = x.type.shape[-1], cos.type.shape[-1]
    if not isinstance(width, int) or not isinstance(pairs, int):
        raise UnsupportedExport(f"{graph.scope}: a rotation of {width} channels by {pairs} angles; both must be fixed")
    dim = 0 if 2 * pairs == width // heads else 2 * pairs
    settings: dict[str, Any] = {"num_heads": heads, "interleaved": 1, "rotary_embedding_dim": dim}
    return graph.one("RotaryEmbedding", (x, cos, sin), out[0], **settings)


def whole_bias(graph: Graph, q: Value, bias: Value) -> Value:
    """A bias with a row per query: no kernel broadcasts along the queries."""
    shape = bias.type.shape
    return graph.expand(bias, (*shape[:2], q.type.shape[1], shape[3]))


def grouped_query_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    bias: Value,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Value, ...]:
    """The kernel's own mask is causal by slot and as long as the longest row; padding is the bias' affair alone.

    The soft-cap comes before the bias, as in the reference. `seqlens_k` is the last slot of every row.
    The kernel takes heads of a multiple of 8 channels only; on the CPU it refuses several new tokens in several rows
    after a past (a runtime feeds those row by row).
    """
    batch, total, dim = q.type.shape[0], bias.type.shape[3], past_k.type.shape[3]
    if not isinstance(dim, int) or dim % 8:
        return portable_attention(graph, out, q, k, v, bias, heads, kv_heads, scale, softcap, (past_k, past_v))
    int32, scope, graph.scope = torch.int32, graph.scope, ""
    slots = graph.cast(graph.shape([total]), int32)
    last = graph.one("Sub", (slots, graph.number(1, int32)), slots.type)
    lengths = graph.expand(last, (batch,))
    count = graph.one("Squeeze", (slots,), Type(int32, ()))
    graph.scope = scope
    inputs = (q, k, v, past_k, past_v, lengths, count, None, None, None, whole_bias(graph, q, bias))
    settings = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "softcap": softcap, "do_rotary": 0}
    return graph.op("GroupQueryAttention", inputs, *out, domain=MICROSOFT, attributes=settings)


def standard_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
    past: tuple[Value, ...] = (),
) -> tuple[Value, ...]:
    """ONNX' Attention. It may not soft-cap: opset 23 leaves open whether the cap comes before or after the bias."""
    settings = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
    mask = None if bias is None else whole_bias(graph, q, bias)
    return graph.op("Attention", (q, k, v, mask, *past), *out, attributes=settings)


def plain_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
    past: tuple[Value, ...] = (),
) -> tuple[Value, ...]:
    """The reference body, step by step, with softmax in float32. Heads that share a key are an axis of their own."""
    dtype, (batch, length, width) = q.type.dtype, q.type.shape
    if not isinstance(width, int):
        raise UnsupportedExport(f"{graph.scope}: attention over {width} channels; the width must be fixed")
    dim, groups, slots = width // heads, heads // kv_heads, k.type.shape[1] if bias is None else bias.type.shape[3]

    def op(kind: str, inputs: Sequence[Value], *shape: Axis, **attributes: Any) -> Value:
        return graph.one(kind, inputs, Type(dtype, shape), **attributes)

    def split(x: Value, *parts: int) -> Value:
        return graph.reshape(x, Type(dtype, (batch, x.type.shape[1], *parts, dim)))

    query = op("Transpose", (split(q, kv_heads, groups),), batch, kv_heads, groups, length, dim, perm=[0, 2, 3, 1, 4])
    cache = [
        op("Transpose", (split(x, kv_heads),), batch, kv_heads, x.type.shape[1], dim, perm=[0, 2, 1, 3]) for x in (k, v)
    ]
    if past:
        cache = [op("Concat", pair, batch, kv_heads, slots, dim, axis=2) for pair in zip(past, cache, strict=True)]
    key, value = (op("Unsqueeze", (x, graph.indices(2)), batch, kv_heads, 1, slots, dim) for x in cache)
    key = op("Transpose", (key,), batch, kv_heads, 1, dim, slots, perm=[0, 1, 2, 4, 3])
    sizes = (batch, kv_heads, groups, length, slots)
    scores = op("MatMul", (query, key), *sizes)
    scores = op("Mul", (scores, graph.number(scale / softcap if softcap else scale, dtype)), *sizes)
    if softcap:
        scores = op("Mul", (op("Tanh", (scores,), *sizes), graph.number(softcap, dtype)), *sizes)
    if bias is not None:
        hide = op("Unsqueeze", (bias, graph.indices(2)), batch, 1, 1, bias.type.shape[2], slots)
        scores = op("Add", (scores, hide), *sizes)
    scores = graph.cast(scores, torch.float32)
    weights = graph.cast(graph.one("Softmax", (scores,), scores.type, axis=-1), dtype)
    mixed = op("MatMul", (weights, value), batch, kv_heads, groups, length, dim)
    mixed = op("Transpose", (mixed,), batch, length, kv_heads, groups, dim, perm=[0, 3, 1, 2, 4])
    return graph.reshape(mixed, out[0]), *(cache if past else ())


def runtime_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    cap: float,
) -> tuple[Value, ...]:
    """On the CPU provider Attention is a third faster in float32, MultiHeadAttention twice as fast in float16.

    Without a bias MultiHeadAttention keeps no table of scores.
    """
    if (q.type.dtype == torch.float16 or bias is None) and heads == kv_heads and not cap:
        inputs = (q, k, v, None, None, None if bias is None else whole_bias(graph, q, bias))
        settings = {"num_heads": heads, "scale": scale}
        return graph.op("MultiHeadAttention", inputs, *out, domain=MICROSOFT, attributes=settings)
    return portable_attention(graph, out, q, k, v, bias, heads, kv_heads, scale, cap)


def portable_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    bias: Value | None,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
    past: tuple[Value, ...] = (),
) -> tuple[Value, ...]:
    lower = plain_attention if softcap else standard_attention
    return lower(graph, out, q, k, v, bias, heads, kv_heads, scale, softcap, past)


def portable_cached_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    bias: Value,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float,
) -> tuple[Value, ...]:
    return portable_attention(graph, out, q, k, v, bias, heads, kv_heads, scale, softcap, (past_k, past_v))


def runtime_causal_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    use_cache: Value,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Value, ...]:
    """The kernel hides the future by itself. It takes the whole past or none of it, so a branch chooses."""
    dim = past_k.type.shape[3]
    if not isinstance(dim, int) or dim % 8:
        return portable_causal_attention(graph, out, q, k, v, past_k, past_v, use_cache, heads, kv_heads, scale)
    int32, types = torch.int32, _with_present(out, past_k)
    settings = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "do_rotary": 0}

    def over(slots: Value, *past: Value | None) -> tuple[Value, ...]:
        scope, graph.scope = graph.scope, ""
        slots = graph.cast(slots, int32)
        last = graph.one("Sub", (slots, graph.number(1, int32)), slots.type)
        lengths = graph.expand(last, (q.type.shape[0],))
        count = graph.one("Squeeze", (slots,), Type(int32, ()))
        graph.scope = scope
        return graph.op(
            "GroupQueryAttention", (q, k, v, *past, lengths, count), *types, domain=MICROSOFT, attributes=settings
        )

    new, old = (graph.shape([x]) for x in (q.type.shape[1], past_k.type.shape[2]))
    both = graph.one("Add", (old, new), new.type)
    return graph.branch(use_cache, lambda: over(both, past_k, past_v), lambda: over(new, None, None))


def portable_causal_attention(
    graph: Graph,
    out: Types,
    q: Value,
    k: Value,
    v: Value,
    past_k: Value,
    past_v: Value,
    use_cache: Value,
    heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Value, ...]:
    int64, scope, graph.scope = torch.int64, graph.scope, ""
    used, slots = _used(graph, past_k, use_cache), _all_slots(graph, q, past_k, use_cache)
    zero, one = graph.number(0, int64), graph.number(1, int64)
    ends = [graph.one("Squeeze", (x,), Type(int64, ())) for x in (used, slots)]
    queries = graph.one("Range", (*ends, one), Type(int64, (LENGTH,)))
    keys = graph.one("Range", (zero, ends[1], one), Type(int64, (TOTAL,)))
    rows = graph.one("Unsqueeze", (queries, graph.indices(1)), Type(int64, (LENGTH, 1)))
    hidden = graph.one("Less", (rows, keys), Type(torch.bool, (LENGTH, TOTAL)))
    dtype = q.type.dtype
    low, none = graph.number(torch.finfo(dtype).min / 2, dtype), graph.number(0, dtype)
    bias = graph.one("Where", (hidden, low, none), Type(dtype, (LENGTH, TOTAL)))
    bias = graph.one("Unsqueeze", (bias, graph.indices(0, 1)), Type(dtype, (1, 1, LENGTH, TOTAL)))
    graph.scope = scope
    bounds = graph.indices(0), used, graph.indices(2)
    pasts = [graph.one("Slice", (x, *bounds), x.type) for x in (past_k, past_v)]
    settings = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
    return graph.op("Attention", (q, k, v, bias, *pasts), *_with_present(out, past_k), attributes=settings)


def _used(graph: Graph, past: Value, use_cache: Value) -> Value:
    """How many slots of the past count: int64 (1,)."""
    switch = graph.cast(use_cache, torch.int64)
    return graph.one("Mul", (graph.shape([past.type.shape[2]]), switch), Type(torch.int64, (1,)))


def _all_slots(graph: Graph, q: Value, past: Value, use_cache: Value) -> Value:
    """How many slots there are with the new ones: int64 (1,)."""
    return graph.one("Add", (_used(graph, past, use_cache), graph.shape([q.type.shape[1]])), Type(torch.int64, (1,)))


def _with_present(out: Types, past: Value) -> tuple[Type, ...]:
    """The types of the output and of the extended cache, which is traced without its past."""
    batch, heads, _, dim = past.type.shape
    present = Type(past.type.dtype, (batch, heads, TOTAL, dim))
    return out[0], present, present


def cross_attention(linear: Lowering, portable: bool) -> Lowering:
    """A branch holds all of it, so that a cache that is there is read where it lies; `linear` lowers projections."""

    def lower(
        graph: Graph,
        out: Types,
        q: Value,
        memory: Value,
        k_weight: Value,
        k_bias: Value | None,
        v_weight: Value,
        v_bias: Value | None,
        past_k: Value,
        past_v: Value,
        use_cache: Value,
        bias: Value | None,
        heads: int,
        kv_heads: int,
        scale: float,
    ) -> tuple[Value, ...]:
        dtype, (batch, slots, _) = q.type.dtype, memory.type.shape
        dim, width = past_k.type.shape[3], k_weight.type.shape[0]

        def attend(q: Value, key: Value, value: Value) -> Value:
            mask = None if bias is None else whole_bias(graph, q, bias)
            if not portable and heads == kv_heads:
                settings = {"num_heads": heads, "scale": scale}
                inputs = (q, key, value, None, None, mask)
                return graph.one("MultiHeadAttention", inputs, out[0], MICROSOFT, **settings)
            length = q.type.shape[1]
            query = graph.reshape(q, Type(dtype, (batch, length, heads, dim)))
            query = graph.one("Transpose", (query,), Type(dtype, (batch, heads, length, dim)), perm=[0, 2, 1, 3])
            mixed = graph.one("Attention", (query, key, value, mask), query.type, scale=scale)
            mixed = graph.one("Transpose", (mixed,), Type(dtype, (batch, length, heads, dim)), perm=[0, 2, 1, 3])
            return graph.reshape(mixed, out[0])

        def project(weight: Value, shift: Value | None) -> Value:
            x = linear(graph, [Type(dtype, (batch, slots, width))], memory, weight, shift)
            x = graph.reshape(x, Type(dtype, (batch, slots, kv_heads, dim)))
            return graph.one("Transpose", (x,), Type(dtype, (batch, kv_heads, slots, dim)), perm=[0, 2, 1, 3])

        def recalled() -> tuple[Value, ...]:
            nothing = graph.indices(0), graph.indices(0), graph.indices(2)
            empty = (graph.one("Slice", (x, *nothing), x.type) for x in (past_k, past_v))
            if bias is not None:
                return attend(q, past_k, past_v), *empty
            # Rows that share a memory, such as beams, become more queries of one row.
            rows = graph.one("Shape", (past_k,), Type(torch.int64, (1,)), start=0, end=1)
            plan = (rows, graph.indices(-1), graph.shape([q.type.shape[2]]))
            together = graph.one("Reshape", (q, graph.one("Concat", plan, Type(torch.int64, (3,)), axis=0)), q.type)
            mixed = attend(together, past_k, past_v)
            return graph.one("Reshape", (mixed, graph.one("Shape", (q,), Type(torch.int64, (3,)))), mixed.type), *empty

        def projected() -> tuple[Value, ...]:
            key, value = project(k_weight, k_bias), project(v_weight, v_bias)
            return attend(q, key, value), key, value

        return graph.branch(use_cache, recalled, projected)

    return lower


PORTABLE: Mapping[str, Lowering] = {
    "aten::linear": portable_linear,
    "isoform::attention": portable_attention,
    "isoform::cached_attention": portable_cached_attention,
    "isoform::causal_attention": portable_causal_attention,
    "isoform::partial_rotary": partial_rotary,
    "isoform::rms_norm": rms_norm,
    "isoform::rotary": rotary,
}

RUNTIME: Mapping[str, Lowering] = {
    "aten::linear": fused_linear,
    "isoform::attention": runtime_attention,
    "isoform::cached_attention": grouped_query_attention,
    "isoform::causal_attention": runtime_causal_attention,
    "isoform::rms_norm": skip_rms_norm,
    "isoform::partial_rotary": partial_rotary,
    "isoform::rotary": rotary,
}
