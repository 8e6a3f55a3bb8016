"""Rows that nobody takes are not computed: a choice among the rows of the last layer moves up through that layer.

A classifier of pictures reads the first row of the last layer, and a prompt only its last one. What makes a row of the
same row of something else (linear layers, norms, activations, sums, the queries of attention) may come after the choice
as well as before it, and then costs only the rows that are left: nine tenths of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoform.runtimes.backends.onnxruntime.prepare.graph_facts import PRODUCTS, ROWS_RANK, Facts

_PREFIX = "selected_rows"


def select_early(graph: Any) -> bool:
    """Move the choice of rows, a Gather of one or a Slice, up as far as it goes. Returns whether anything moved.

    Values that are made for the chosen rows alone keep their names.
    """
    facts = Facts.of(graph)
    moved = False
    for choice in [node for node in graph.node if _chooses(node, facts)]:
        moved |= _move(choice, facts)
    return moved


def _chooses(node: Any, facts: Facts) -> bool:
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    if len(node.input) < 2 or facts.ranks.get(node.input[0]) != ROWS_RANK:
        return False
    if node.op_type == "Gather":
        index = _number(facts.constants.get(node.input[1]))
        return settings.get("axis") == 1 and facts.ranks.get(node.input[1]) == 0 and index is not None
    if node.op_type != "Slice" or len(node.input) != 4:
        return False
    return _number(facts.constants.get(node.input[3])) == 1 and {*node.input[1:3]} <= facts.constants.keys()


def _number(tensor: Any) -> int | None:
    """The one integer of a constant, None of anything else."""
    from onnx import TensorProto

    if tensor is None or tensor.data_type != TensorProto.INT64 or any(size != 1 for size in tensor.dims):
        return None
    values = np.frombuffer(tensor.raw_data, "<i8") if len(tensor.raw_data) == 8 else np.array(tensor.int64_data)
    return int(values[0]) if len(values) == 1 else None


def _move(choice: Any, facts: Facts) -> bool:
    graph, users = facts.graph, facts.users()
    order = list(graph.node)
    last = next(n for n, node in enumerate(order) if node.output[0] == choice.output[0])
    late: dict[str, Sequence[int]] = {}  # by first result: which inputs of a node have only the chosen rows

    def only_chosen(value: str) -> bool:
        return all(
            user is not None
            and all(
                n in ((0,) if user.output[0] == choice.output[0] else late.get(user.output[0], ()))
                for n, name in enumerate(user.input)
                if name == value
            )
            for user in users.get(value, ())
        )

    for node in reversed(order[:last]):
        taken = [name for name in node.output if name and users.get(name)]
        if taken and (rows := facts.rows(node)) and all(map(only_chosen, taken)):
            late[node.output[0]] = rows
    if not any(node.op_type in PRODUCTS for node in order if node.output[0] in late):
        return False
    made = {name for node in order if node.output[0] in late for name in node.output}
    chosen: dict[str, str] = {}
    found = []
    for node in order:
        for n in late.get(node.output[0], ()):
            if (name := node.input[n]) in made:
                continue
            if name not in chosen:
                chosen[name] = f"{_PREFIX}.{choice.output[0]}.{name}"
                found.append(_choice(choice, facts, name, chosen[name]))
            node.input[n] = chosen[name]
        found.append(_rest(choice, facts) if node.output[0] == choice.output[0] else node)
    del graph.node[:]
    graph.node.extend(found)
    return True


def _choice(choice: Any, facts: Facts, value: str, name: str) -> Any:
    """The same choice among the rows of another value, which keeps its rank."""
    from onnx.helper import make_node

    if choice.op_type == "Slice":
        return make_node("Slice", [value, *choice.input[1:]], [name])
    index = _number(facts.constants[choice.input[1]]) or 0  # `_chooses` has seen that there is one
    end = index + 1 if index != -1 else np.iinfo(np.int64).max
    bounds = [_vector(facts, f"{name}.{n}", number) for n, number in enumerate((index, end, 1))]
    return make_node("Slice", [value, *bounds], [name])


def _rest(choice: Any, facts: Facts) -> Any:
    """What is left to do where the choice was: nothing, or to drop the axis of one row."""
    from onnx.helper import make_node

    if choice.op_type == "Slice":
        return make_node("Identity", [choice.input[0]], [choice.output[0]])
    axis = _vector(facts, f"{_PREFIX}.{choice.output[0]}.axis", 1)
    return make_node("Squeeze", [choice.input[0], axis], [choice.output[0]])


def _vector(facts: Facts, name: str, number: int) -> str:
    from onnx.numpy_helper import from_array

    facts.graph.initializer.append(from_array(np.array([number], np.int64), name))
    return name
