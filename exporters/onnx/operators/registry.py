"""Which lowering each traced operation has.

`ATEN` holds torch's own operations, in standard ONNX. The semantic ones have two tables: `RUNTIME`, with ONNX Runtime's
kernels where they are faster, and `PORTABLE`, standard ONNX of opset 23 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping

from isoform.exporters.onnx.operators.attention import attention
from isoform.exporters.onnx.operators.elementwise import (
    arithmetic,
    cast,
    clamp,
    comparison,
    elementwise,
    gelu,
    logical,
    masked_fill,
    reversed_sub,
    same,
    scaled,
    silu,
    where,
)
from isoform.exporters.onnx.operators.layers import (
    convolution,
    embedding,
    fused_linear,
    group_norm,
    layer_norm,
    matmul,
    partial_rotary,
    portable_linear,
    rms_norm,
    rotary,
    skip_rms_norm,
)
from isoform.exporters.onnx.operators.operands import Lowering
from isoform.exporters.onnx.operators.reductions import argmax, cumsum, reduction, softmax
from isoform.exporters.onnx.operators.shapes import (
    arange,
    concat,
    expand,
    expand_as,
    filled,
    gather,
    permute,
    reshape,
    select,
    slice_,
    squeeze,
    stack,
    transpose,
    unbind,
    unsqueeze,
)

ATEN: Mapping[str, Lowering] = {
    "__and__": logical("And"),
    "__or__": logical("Or"),
    "_convolution": convolution,
    "abs": elementwise("Abs"),
    "add": scaled("Add"),
    "alias": same,
    "amax": reduction("ReduceMax"),
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
    "log": elementwise("Log"),
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


PORTABLE: Mapping[str, Lowering] = {
    "aten::linear": portable_linear,
    "isoform::attention": attention(portable_linear, portable=True),
    "isoform::partial_rotary": partial_rotary,
    "isoform::rms_norm": rms_norm,
    "isoform::rotary": rotary,
}


RUNTIME: Mapping[str, Lowering] = {
    "aten::linear": fused_linear,
    "isoform::attention": attention(fused_linear, portable=False),
    "isoform::rms_norm": skip_rms_norm,
    "isoform::partial_rotary": partial_rotary,
    "isoform::rotary": rotary,
}
