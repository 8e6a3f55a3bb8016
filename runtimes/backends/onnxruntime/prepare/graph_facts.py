"""What can be told of the values of an ONNX graph without running it: ranks, constants, and who takes what.

ONNX' own shape inference stops at the operators of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isoform.runtimes.backends.onnxruntime.graph_file import nodes

ELEMENTWISE = frozenset(("Add", "Gelu", "Mul", "QuickGelu", "Relu", "Sigmoid", "Tanh"))
"""What activations, gates and residual sums are made of."""
_AS_FIRST = ELEMENTWISE | {
    *("Abs", "MatMulIntegerToFloat", "QuantizeLinear"),
    *("Attention", "Cast", "Clip", "Conv", "CumSum", "GroupQueryAttention", "Identity", "InstanceNormalization"),
    *("LayerNormalization", "MatMulNBits", "MultiHeadAttention", "RMSNormalization", "RotaryEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Transpose"),
}
"""What gives values of the rank of its first input."""
_SEVERAL = frozenset(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Split"))
"""Whose results all have one rank."""
PRODUCTS = frozenset(("FusedMatMul", "MatMul", "MatMulIntegerToFloat"))
_BYTES = frozenset(("Abs", "Div", "Max", "QuantizeLinear", "Sub"))
"""How rows become bytes, beside the reductions."""
_REDUCTIONS = frozenset(("ReduceMax", "ReduceSum"))
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))
_SUMMED_NORMS = frozenset(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))
_BY_ROWS = ELEMENTWISE | PRODUCTS | _NORMS | _SUMMED_NORMS | _BYTES
ROWS_RANK = 3
"""Of (B, T, C): the rows are axis 1."""
_AS_LARGEST = frozenset(("Add", "Div", "FusedMatMul", "MatMul", "Max", "Mul", "Pow", "Sub", "Where"))


@dataclass
class Facts:
    """Of a graph, or of a branch inside one, which knows what is known outside."""

    graph: Any
    constants: Mapping[str, Any]
    """Tensors by name."""
    ranks: dict[str, int]
    """By name of the value; without those of which nothing is known."""
    lengths: dict[str, int]
    """Of vectors: a shape of n integers makes a value of rank n."""
    branches: list[Facts] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Any, outer: Facts | None = None) -> Facts:
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        types = {value.name: value.type.tensor_type for value in graph.input}
        ranks |= {name: len(kind.shape.dim) for name, kind in types.items() if kind.HasField("shape")}
        if outer is not None:
            tensors, ranks = {**outer.constants, **tensors}, {**outer.ranks, **ranks}
        lengths = {name: tensor.dims[0] for name, tensor in tensors.items() if len(tensor.dims) == 1}
        facts = cls(graph, tensors, ranks, lengths)
        for node in graph.node:
            facts._look_at(node)
        return facts

    def is_number(self, name: str) -> bool:
        """Whether this is a constant of one element."""
        constant = self.constants.get(name)
        return constant is not None and all(size == 1 for size in constant.dims)

    def users(self) -> dict[str, list[Any]]:
        """The nodes that take each value; None is somebody outside, or in a branch."""
        found: dict[str, list[Any]] = {value.name: [None] for value in self.graph.output}
        for node in self.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
            for inner in (inner for attribute in node.attribute for inner in nodes(attribute.g)):
                found.update({name: [*found.get(name, ()), None] for name in inner.input})
        return found

    def rows(self, node: Any) -> list[int]:
        """The inputs whose rows are those of the results, (B, T, C) each; none where that cannot be told."""
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        first = bool(node.input) and self.ranks.get(node.input[0]) == ROWS_RANK
        if node.op_type == "MultiHeadAttention":
            return [0] if first and len(node.input) == 3 and not settings.get("unidirectional") else []
        if node.op_type in _REDUCTIONS:
            along = len(node.input) == 2 and self._is_last_axis(node.input[1])
            return [0] if first and along and settings.get("keepdims", 1) else []
        if node.op_type not in _BY_ROWS or (node.op_type in _NORMS and settings.get("axis", -1) not in (-1, 2)):
            return []
        if node.op_type in PRODUCTS:
            weight = self.ranks.get(node.input[1]) == 2 and node.input[1] in self.constants
            constant = all(name in self.constants for name in node.input[1:] if name)
            return [0] if first and weight and constant and not settings.keys() - {"transB"} else []
        found = []
        for n, name in enumerate(node.input):
            rank, constant = self.ranks.get(name), name in self.constants
            if rank == ROWS_RANK and not constant:
                found.append(n)
            elif name and not self.is_number(name) and not (constant and rank == 1):
                return []
        return found

    def _is_last_axis(self, name: str) -> bool:
        """Whether this is the constant [-1]."""
        axes = self.constants.get(name)
        return axes is not None and list(axes.dims) == [1] and axes.raw_data == b"\xff" * 8

    def _look_at(self, node: Any) -> None:
        """Learn what is known of a node's results."""
        branches = [Facts.of(attribute.g, self) for attribute in node.attribute if attribute.g.node]
        self.branches += branches
        for branch in branches[:1]:  # of the results of all branches
            inner = (branch.ranks.get(value.name) for value in branch.graph.output)
            self.ranks |= {name: rank for name, rank in zip(node.output, inner, strict=False) if rank is not None}
        if (rank := self._rank(node)) is not None:
            self.ranks |= dict.fromkeys(node.output if node.op_type in _SEVERAL else node.output[:1], rank)
        if (length := self._length(node)) is not None:
            self.lengths[node.output[0]] = length

    def _rank(self, node: Any) -> int | None:
        """Of a node's results, None where it is not known."""
        found: list[int | None] = [*(self.ranks.get(name) for name in node.input), None, None]
        lengths = [*(self.lengths.get(name) for name in node.input), None, None]
        match node.op_type:
            case "Concat":  # all have one
                return next((rank for rank in found if rank is not None), None)
            case "Expand":
                return None if found[0] is None or lengths[1] is None else max(found[0], lengths[1])
            case "Gather" | "GatherBlockQuantized":
                return None if found[0] is None or found[1] is None else found[0] + found[1] - 1
            case "Range" | "Shape":
                return 1
            case "Squeeze" if len(node.input) == 1 and lengths[0] == 1:
                return 0
            case "Reshape":
                return lengths[1]
            case "Unsqueeze" | "Squeeze" if len(node.input) == 2:
                more = 1 if node.op_type == "Unsqueeze" else -1
                return None if found[0] is None or lengths[1] is None else found[0] + more * lengths[1]
        if node.op_type in _REDUCTIONS:
            return self._reduced_rank(node)
        if node.op_type in _AS_LARGEST:
            return None if None in found[:-2] else max(rank for rank in found if rank is not None)
        return found[0] if node.op_type in _AS_FIRST else None

    def _reduced_rank(self, node: Any) -> int | None:
        """Of a reduction, which drops its axes unless it says otherwise."""
        rank = self.ranks.get(node.input[0])
        if rank is None or all(a.name != "keepdims" or a.i for a in node.attribute):
            return rank
        axes = self.lengths.get(node.input[1]) if len(node.input) == 2 else None
        return None if axes is None else rank - axes

    def _length(self, node: Any) -> int | None:
        """How many integers a node gives that makes a shape."""
        if not node.input:
            return None
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        match node.op_type:
            case "Concat":
                found = [self.lengths.get(name) for name in node.input]
                return None if None in found else sum(length for length in found if length is not None)
            case "Shape" if (rank := self.ranks.get(node.input[0])) is not None:
                return len(range(rank)[settings.get("start", 0) : settings.get("end", rank)])
            case "Unsqueeze" if self.ranks.get(node.input[0]) == 0:
                return 1
        return None
