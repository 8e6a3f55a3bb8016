"""Leaves out what no output needs. Keeps the order of the nodes, and so every value that an output depends on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx


def used(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that `outputs` need, in their order, and the names of all values that they read or give."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(name for inner in with_inner(node) for name in inner.input)
            kept.append(node)
    return kept[::-1], needed


def with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A node, and those of its branches."""
    yield node
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from with_inner(inner)
