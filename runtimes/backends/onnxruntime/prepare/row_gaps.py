"""Rows of a cache may end at slots of their own, where a graph appends to all of them at one slot."""

from __future__ import annotations

from typing import Any

import numpy as np

LAST = 5  # the input of grouped-query attention that says, by row, which slot is the last
RANK = "rows"


def add_row_gaps(graph: Any, name: str) -> bool:
    """Let each row end so many slots before the longest as the input `name`, int32 (B,), says; without it, 0.

    Only where grouped-query attention keeps the whole cache. Returns whether that is so.
    """
    from onnx import TensorProto
    from onnx.helper import make_node, make_tensor_value_info
    from onnx.numpy_helper import from_array

    kept = {output.name for output in graph.output}
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention" and kept & set(node.output)]
    if not nodes or any(len(node.input) <= LAST or not node.input[LAST] for node in nodes):
        return False
    first = next(n for n, node in enumerate(graph.node) if node.op_type == "GroupQueryAttention")
    for last in dict.fromkeys(node.input[LAST] for node in nodes):
        if not any(last in node.output for node in list(graph.node)[:first]):
            return False
        graph.node.insert(first, make_node("Sub", [last, name], [f"{name}.{last}"]))
    for node in nodes:
        node.input[LAST] = f"{name}.{node.input[LAST]}"
    graph.input.append(make_tensor_value_info(name, TensorProto.INT32, [RANK]))
    graph.initializer.append(from_array(np.zeros(1, np.int32), name))  # what it is where nothing is fed
    return True
