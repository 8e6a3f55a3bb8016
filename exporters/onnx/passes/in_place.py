"""Marks whether the states of a decoder may be appended to in place. Keeps the graph: only its metadata changes."""

from __future__ import annotations

import onnx

from isoform.exporters.onnx.graph import MICROSOFT
from isoform.signature import Signature

KEY = "isoform.cache"


def mark_cache(model: onnx.ModelProto, signature: Signature) -> bool:
    """Write `isoform.cache` (in_place or grows) into a decoder's metadata; whether it is in place.

    The grouped-query kernel appends to one buffer of past and present, with room to spare. The other forms of attention
    read a past that is exactly as long as its shape.
    """
    states = {state.output for state in signature.states}
    makers = {(node.domain, node.op_type) for node in model.graph.node if not states.isdisjoint(node.output)}
    in_place = makers == {(MICROSOFT, "GroupQueryAttention")}
    model.metadata_props.add(key=KEY, value="in_place" if in_place else "grows")
    return in_place
