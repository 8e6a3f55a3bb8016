"""A graph of past and present ports as one that keeps its states inside, which OpenVINO's attention extends in place.

Every past becomes a variable, read through a choice of rows (`ROWS`), so that rows are reordered where they lie. The
products of attention are written as OpenVINO's fused kernel expects them: heads that share a key are broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from isoform.signature import Signature

ROWS = "beam_idx"
"""An input of a graph with states inside, int32 (B,): which row of the states each row goes on with."""
FIRST_LOGITS = "first_logits"
"""An input, int64 (1,): the first of the new slots that gets logits; a negative number counts from the end."""
HIDDEN = "last_layer_states"
"""An output, (B, T, C): the hidden states that become logits."""

_ELEMENTWISE = ("Add", "Convert", "Divide", "Multiply", "Tanh")


def keep_states(model: Any, signature: Signature) -> None:
    """Put the states of a model of OpenVINO's into it. Its ports of states are gone then, and `ROWS` is there."""
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    rows = ops.parameter([-1], ov.Type.i32, name=ROWS)
    rows.output(0).set_names({ROWS})
    pasts = {state.input for state in signature.states}
    _fuse_attention(model, pasts)
    for port in model.inputs:
        if pasts & port.get_names():
            readers = list(port.get_target_inputs())
            chosen = ops.gather(port.get_node(), rows, np.array(0, np.int64))
            for reader in readers:
                reader.replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {state.input: state.output for state in signature.states})
    batch = ops.shape_of(rows, "i64")
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [size.get_length() if size.is_static else 0 for size in node.get_output_partial_shape(0)]
            shape = ops.concat([batch, *(np.array([size], np.int64) for size in sizes[1:])], 0)
            nothing = ops.constant(np.array(0), node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(nothing, shape).output(0)])
    model.validate_nodes_and_infer_types()


def variable(state_name: str, signature: Signature) -> str:
    """The input port of the state that OpenVINO has given this name."""
    return next(state.input for state in signature.states if f"{state.input}{state.output}" == state_name)


def cut_logits(model: Any, name: str, *, deep: bool = False) -> bool:
    """Let `FIRST_LOGITS` say which slots get logits, if one product makes them. Returns whether it does.

    `deep`: what that product is computed from, for all slots, becomes the output `HIDDEN`.
    """
    import openvino as ov
    from openvino import opset13 as ops

    node = model.output(name).get_node().input_value(0).get_node()
    while node.get_type_name() in _ELEMENTWISE:
        computed = [x.get_node() for x in node.input_values() if not _is_constant(x.get_node())]
        if len(computed) != 1:
            return False
        node = computed[0]
    if node.get_type_name() != "MatMul" or not _is_constant(node.input_value(1).get_node()):
        return False
    hidden = node.input_value(0)
    if hidden.get_partial_shape().rank != ov.Dimension(3):
        return False
    if deep:
        hidden.get_tensor().add_names({HIDDEN})
        model.add_outputs([hidden])
    first = ops.parameter([1], ov.Type.i64, name=FIRST_LOGITS)
    first.output(0).set_names({FIRST_LOGITS})
    end, step, axis = (np.array([number], np.int64) for number in (np.iinfo(np.int64).max, 1, 1))
    node.input(0).replace_source_output(ops.slice(hidden, first, end, step, axis).output(0))
    model.add_parameters([first])
    model.validate_nodes_and_infer_types()
    return True


def _fuse_attention(model: Any, pasts: set[str]) -> None:
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        inputs = list(node.input_values())
        whole = [_cache(value, pasts) for value in inputs[1:3]]
        if None in whole:
            continue
        for n, found in enumerate(whole, 1):
            if found is not None and (sharing := found[1]) > 1:
                inputs[n] = _broadcast(found[0], sharing)
        attended = ops.scaled_dot_product_attention(*inputs, causal=bool(node.get_attributes()["causal"]))
        for reader in list(_finite(node).get_target_inputs()):
            reader.replace_source_output(attended.output(0))
    model.validate_nodes_and_infer_types()


def _cache(value: Any, pasts: set[str]) -> tuple[Any, int] | None:
    """The past and new slots that attention reads, as one value, and how many heads share a key; None for no cache."""
    node, sharing = value.get_node(), 1
    if node.get_type_name() == "Reshape" and node.input_value(0).get_node().get_type_name() == "Tile":
        tile = node.input_value(0).get_node()
        expanded, repeats = (x.get_node() for x in tile.input_values())
        if expanded.get_type_name() != "Unsqueeze" or not _is_constant(repeats) or len(repeats.data) != 5:
            return None
        sharing, node = int(repeats.data[2]), expanded.input_value(0).get_node()
    if node.get_type_name() != "Concat" or not pasts & node.input_value(0).get_names():
        return None
    return node.output(0), sharing


def _broadcast(value: Any, sharing: int) -> Any:
    """Keys (B, H, S, D) for `sharing` times as many heads, in the way that is no copy to the fused kernel."""
    from openvino import opset13 as ops

    _, heads, _, width = value.get_partial_shape()
    shape, axis = ops.shape_of(value, "i64"), np.array(0, np.int64)
    before, behind = (ops.gather(shape, np.array(at, np.int64), axis) for at in ([0, 1], [2, 3]))
    target = ops.concat([before, np.array([sharing], np.int64), behind], 0)
    shared = ops.broadcast(ops.unsqueeze(value, np.array([2], np.int64)), target, broadcast_spec="BIDIRECTIONAL")
    plan = np.array([0, heads.get_length() * sharing, -1, width.get_length()], np.int64)
    return ops.reshape(shared, plan, True).output(0)


def _finite(node: Any) -> Any:
    """The output of attention, or the choice behind it that puts zeros in the place of NaN: no row of ours is hidden
    whole, and a NaN of the model's own shall be seen."""
    for reader in node.output(0).get_target_inputs():
        if reader.get_node().get_type_name() == "Select":
            return reader.get_node().output(0)
    return node.output(0)


def _is_constant(node: Any) -> bool:
    """Whether it is a constant, or made of constants alone by a conversion or a turn."""
    kind = node.get_type_name()
    return kind == "Constant" or (kind in ("Convert", "Transpose") and all(map(_is_constant, _sources(node))))


def _sources(node: Any) -> Iterator[Any]:
    return (value.get_node() for value in node.input_values())
