"""Cuts the attention mask at a constant that a runtime may turn into an input.

Keeps every result: the constant `mask_end` is beyond all columns as the graph is written. A runtime that sets it gives
the same array as the mask of every step, and need not bind it anew.
"""

from __future__ import annotations

from sys import maxsize

import numpy as np
import onnx
from onnx import helper, numpy_helper

MASK_END = "mask_end"


def cut_mask(model: onnx.ModelProto, mask: str) -> None:
    """Let the nodes read only the first `mask_end` columns of the input `mask`."""
    slots = f"{mask}.slots"
    for node in model.graph.node:
        node.input[:] = [slots if name == mask else name for name in node.input]
    constants = {f"{slots}.start": 0, MASK_END: maxsize, f"{slots}.axis": 1}
    model.graph.initializer.extend(numpy_helper.from_array(np.array([n]), name) for name, n in constants.items())
    model.graph.node.insert(0, helper.make_node("Slice", [mask, *constants], [slots], slots))
