"""What a lowering takes: the graph, the types of its outputs, and the arguments of the operation.

The arguments come in the order of torch's schema: values, numbers, sizes, lists, None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from isoform.exporters.onnx.graph import Graph, Number, RuntimeSize, Value
from isoform.exporters.tracing import Type

Lowering = Callable[..., Any]
Types = Sequence[Type]
Operand = Value | Number | RuntimeSize

END = 2**63 - 1  # "to the end", in torch and in ONNX


def tensor(graph: Graph, x: Operand, dtype: torch.dtype) -> Value:
    """An operand as a tensor of `dtype`: a number becomes a constant, a size a scalar."""
    if isinstance(x, Value):
        return graph.cast(x, dtype)
    if isinstance(x, RuntimeSize):
        scalar = graph.one("Squeeze", (Value(x.name, Type(torch.int64, (1,))),), Type(torch.int64, ()))
        return graph.cast(scalar, dtype)
    return graph.number(x, dtype)
