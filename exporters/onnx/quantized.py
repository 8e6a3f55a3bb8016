"""The same layers over quantized weights, as lowerings that go before those of `operators`.

`aten::linear`, the lookup in a table of tokens and the matrices of experts take a form of their weight; what the form
cannot hold (a row that is no multiple of the block) stays as it is, as it does in GGUF. Position and type tables and
what scores experts stay as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from isoform.exporters.onnx.forms import DATA, SCALES, ZEROS, Blocks, Channels
from isoform.exporters.onnx.graph import MICROSOFT, Graph, Value, matrix
from isoform.exporters.onnx.operators.experts import biases_in_turn, in_turn, one_kernel
from isoform.exporters.onnx.operators.operands import Lowering, Types
from isoform.exporters.onnx.operators.registry import ATEN
from isoform.exporters.tracing import Type
from isoform.reference.modules.ops import ExpertArguments
from isoform.reference.names import ROUTER

TOKENS = "embed.weight"
"""The table of tokens, in every family's vocabulary of names."""

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level: its input goes to 8 bits by blocks, as llama.cpp does; the exact levels take up to 50
times as long on a CPU."""

STEPS = 127
"""To each side of zero, in 8 bits: -128 would be one more to one side only."""

SMALLEST = 1e-30
"""The largest value of a row counts as no smaller: what divides by it is a number where all values are zero."""


def block_tables(body: Blocks, last: Blocks, head: str, base: Mapping[str, Lowering]) -> dict[str, Lowering]:
    """Weights in blocks for ONNX Runtime: MatMulNBits, and GatherBlockQuantized on the same bytes.

    `head` is the weight that is in the form `last`, the others are in `body`.
    """

    def linear(graph: Graph, out: Types, x: Value, weight: Value, bias: Value | None) -> Value:
        form = last if weight.name == head else body
        if not _fits(graph, weight, form):
            return base["aten::linear"](graph, out, x, weight, bias)
        rows, columns = matrix(weight)
        zeros = graph.part(weight, form, ZEROS) if form.asymmetric else None
        inputs = (x, graph.part(weight, form, DATA), graph.part(weight, form, SCALES), zeros, None, bias)
        settings = {"bits": form.bits, "block_size": form.size, "accuracy_level": INT8_ACTIVATIONS}
        settings |= {"K": columns, "N": rows}
        return graph.op("MatMulNBits", inputs, *out, domain=MICROSOFT, attributes=settings)[0]

    def embedding(graph: Graph, out: Types, weight: Value, ids: Value, *rest: object) -> Value:
        form = last if weight.name == head else body
        if not (_fits(graph, weight, form) and _is_table(weight)):
            return ATEN["embedding"](graph, out, weight, ids, *rest)
        rows, columns = matrix(weight)
        table = graph.part(weight, form, DATA, (rows, columns * form.bits // 8))
        zeros = graph.part(weight, form, ZEROS) if form.asymmetric else None
        inputs = (table, ids, graph.part(weight, form, SCALES), zeros)
        settings = {"bits": form.bits, "block_size": form.size, "gather_axis": 0, "quantize_axis": 1}
        return graph.op("GatherBlockQuantized", inputs, *out, domain=MICROSOFT, attributes=settings)[0]

    def experts(graph: Graph, out: Types, *arguments: Any) -> Value:
        a = ExpertArguments[Value](*arguments)
        if not all(_fits(graph, weight, body) for weight in (a.gate, a.up, a.down)):
            plain: Value = base["isoform::routed_experts"](graph, out, *arguments)
            return plain
        first, second = ([_stack(graph, w, body, part) for w in (a.gate, a.up)] for part in (DATA, SCALES))
        weights = [in_turn(graph, *first), in_turn(graph, *second), biases_in_turn(graph, a)]
        weights += [_stack(graph, a.down, body, DATA), _stack(graph, a.down, body, SCALES), a.down_bias]
        if body.asymmetric:
            zeros = [_stack(graph, w, body, ZEROS) for w in (a.gate, a.up, a.down)]
            weights += [None, None, None, in_turn(graph, *zeros[:2]), zeros[2]]
        settings = {"expert_weight_bits": body.bits, "block_size": body.size, "accuracy_level": INT8_ACTIVATIONS}
        y = one_kernel(graph, out, a._replace(normalize=1), "QMoE", weights, settings)
        return y if a.normalize else graph.one("Mul", (y, _taken(graph, a)), out[0])

    return {**base, "aten::embedding": embedding, "aten::linear": linear, "isoform::routed_experts": experts}


def byte_tables(head: str, base: Mapping[str, Lowering], fused: bool) -> dict[str, Lowering]:
    """Weights and activations of 8 bits: each row of activations (B, T, C) gets its scale when it comes.

    `fused` takes ONNX Runtime's kernel that multiplies by the scales of the weight as well. A table of tokens is in
    blocks there, and so is the `head` that shares it, from the same bytes; otherwise such a table stays as it is. So do
    experts: the kernel takes those in blocks, and rounds activations by blocks; without it they stay in float.
    """
    form = Channels()
    blocks = block_tables(Blocks(8), Blocks(8), head, base)

    def linear(graph: Graph, out: Types, x: Value, weight: Value, bias: Value | None) -> Value:
        if weight.name not in graph.parameters or _is_router(weight):
            return base["aten::linear"](graph, out, x, weight, bias)
        if fused and _is_table(weight):
            return blocks["aten::linear"](graph, out, x, weight, bias)
        bytes_, largest = _bytes(graph, x)
        data, scales = graph.part(weight, form, DATA), graph.part(weight, form, SCALES)
        middle, step = graph.number(128, torch.uint8), graph.number(1 / STEPS, torch.float32)
        if fused:
            y = graph.one("MatMulIntegerToFloat", (bytes_, data, step, scales, middle, middle), out[0], MICROSOFT)
        else:
            sums = graph.one("MatMulInteger", (bytes_, data, middle, middle), Type(torch.int32, out[0].shape))
            steps = graph.one("Mul", (scales, step), scales.type)
            y = graph.one("Mul", (graph.cast(sums, torch.float32), steps), out[0])
        y = graph.one("Mul", (y, largest), out[0])
        return y if bias is None else graph.one("Add", (y, bias), out[0])

    def embedding(graph: Graph, out: Types, weight: Value, ids: Value, *rest: object) -> Value:
        if fused:
            return blocks["aten::embedding"](graph, out, weight, ids, *rest)
        return ATEN["embedding"](graph, out, weight, ids, *rest)

    table: dict[str, Lowering] = {**base, "aten::embedding": embedding, "aten::linear": linear}
    return {**table, "isoform::routed_experts": blocks["isoform::routed_experts"]} if fused else table


def _bytes(graph: Graph, x: Value) -> tuple[Value, Value]:
    """`x` (..., C) in 127 steps to each side of 128, and by which its rows are to be multiplied (..., 1).

    Layers that read the same value share these nodes. A row with NaN or an infinity is multiplied by one, since bytes
    cannot hold it and ReduceMax may pass over it; the sum of values of at most 1 cannot overflow.
    """
    float32 = torch.float32
    rows, axis = Type(float32, (*x.type.shape[:-1], 1)), graph.indices(-1)
    most = graph.one("ReduceMax", (graph.one("Abs", (x,), x.type), axis), rows, keepdims=1)
    most = graph.one("Max", (most, graph.number(SMALLEST, float32)), rows)
    small = graph.one("Div", (x, most), x.type)
    step, middle = graph.number(1 / STEPS, float32), graph.number(128, torch.uint8)
    bytes_ = graph.one("QuantizeLinear", (small, step, middle), Type(torch.uint8, x.type.shape))
    total = graph.one("ReduceSum", (small, axis), rows, keepdims=1)
    nothing = graph.one("Sub", (total, total), rows)
    return bytes_, graph.one("Add", (most, nothing), rows)


def _taken(graph: Graph, a: ExpertArguments[Value]) -> Value:
    """The sum of the chosen experts' weights (..., 1). ONNX Runtime 1.31.1 divides by it, whatever QMoE is told."""
    rows = a.scores.type.shape[:-1]
    wide = graph.cast(a.scores, torch.float32)
    chances = graph.one("Softmax", (wide,), wide.type, axis=-1)
    types = Type(torch.float32, (*rows, a.used)), Type(torch.int64, (*rows, a.used))
    best, _ = graph.op("TopK", (chances, graph.indices(a.used)), *types)
    total = graph.one("ReduceSum", (best, graph.indices(-1)), Type(torch.float32, (*rows, 1)), keepdims=1)
    return graph.cast(total, a.x.type.dtype)


def _stack(graph: Graph, weight: Value, form: Blocks, part: str) -> Value:
    """A part of a stack of matrices (E, rows, columns), as (E, rows, ...)."""
    count, rows, columns = weight.type.shape
    assert isinstance(count, int) and isinstance(rows, int) and isinstance(columns, int)
    blocks = columns // form.size
    widths = {DATA: columns * form.bits // 8, SCALES: blocks, ZEROS: -(-blocks * form.bits // 8)}
    return graph.part(weight, form, part, (count, rows, widths[part]))


def _is_table(weight: Value) -> bool:
    return weight.name == TOKENS or weight.name.endswith(f".{TOKENS}")


def _fits(graph: Graph, weight: Value, form: Blocks) -> bool:
    """Whether this is a weight as it is stored, in whole blocks, and may be rounded."""
    return weight.name in graph.parameters and matrix(weight)[1] % form.size == 0 and not _is_router(weight)


def _is_router(weight: Value) -> bool:
    return weight.name.endswith(ROUTER)
