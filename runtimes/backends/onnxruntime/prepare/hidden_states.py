"""A decoder's graph that gives the hidden states of its last layer as well: what its head turns into logits."""

from __future__ import annotations

from typing import Any

from isoform.runtimes.backends.onnxruntime.library import START

_PRODUCTS = frozenset(("FusedMatMul", "Gemm", "MatMul", "MatMulIntegerToFloat", "MatMulNBits"))
_AFTER = frozenset(("Add", "Cast", "Div", "Identity", "Mul", "Tanh"))
"""What may stand between the head's product and the logits: a bias, a scale, a cap, a type."""
_BEFORE = frozenset(("Cast", "Div", "Identity", "QuantizeLinear"))
"""And between the hidden states and the product: how they become bytes."""


def give_hidden_states(graph: Any, logits: str) -> str | None:
    """Make the hidden states an output, which has their value's own name; None where they cannot be told."""
    from onnx import ValueInfoProto

    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}

    def source(name: str) -> str:
        """The first thing that a value is computed from and that is no constant."""
        return next((given for given in makers[name].input if given and given not in constants), "")

    value = logits
    while value in makers and makers[value].op_type in _AFTER:
        value = source(value)
    if value not in makers or makers[value].op_type not in _PRODUCTS:
        return None
    value = source(value)
    while value in makers and makers[value].op_type in _BEFORE:
        value = source(value)
    if value in makers and makers[value].op_type == "Slice" and START in makers[value].input:
        value = makers[value].input[0]
    if not value:
        return None
    if value not in {output.name for output in graph.output}:
        graph.output.append(ValueInfoProto(name=value))
    return value
