"""How the graphs of a model are connected: wires between ports of parts and of host steps, as data.

A wire is "node.input": "node.port". A node is a part or a host step (`isoform.steps`). The source is one of its
outputs, or one of its inputs, which is then given once and read by both ("decoder.encoder_attention_mask":
"encoder.attention_mask").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from isoform.errors import InputError
from isoform.signature import Signature


def sources(node: str, wires: Mapping[str, str]) -> list[str]:
    """The nodes that this one reads from."""
    return [source.partition(".")[0] for target, source in wires.items() if target.partition(".")[0] == node]


def needed(last: Iterable[str], wires: Mapping[str, str], order: Iterable[str] = ()) -> list[str]:
    """The nodes that feed the nodes `last`, and these, each after those that it reads from.

    `order` decides between nodes that do not depend on each other. Raises InputError for wires that form a circle.
    """
    graph: dict[str, list[str]] = {}
    pending = list(last)
    while pending:
        node = pending.pop()
        if node not in graph:
            graph[node] = sources(node, wires)
            pending += graph[node]
    rank = {name: n for n, name in enumerate(order)}
    sorter = TopologicalSorter(graph)
    found: list[str] = []
    try:
        sorter.prepare()
    except CycleError as error:
        raise InputError(f"the wires of this model form a circle: {' -> '.join(error.args[1])}") from None
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda node: rank.get(node, len(rank)))
        found += ready
        sorter.done(*ready)
    return found


def main_part(signatures: Mapping[str, Signature]) -> str:
    """The part whose outputs are the model's: the first that decodes, or else the last."""
    return next((name for name, signature in signatures.items() if signature.states), list(signatures)[-1])


def guessed_wires(signatures: Mapping[str, Signature]) -> dict[str, str]:
    """The wires of a manifest of version 1, which has none: encoder states are what the part before gave.

    Its parts ran in their order; those after the decoder read what the decoder reads.
    """
    wires: dict[str, str] = {}
    decoder, before, mask = main_part(signatures), "", ""
    for name, signature in signatures.items():
        states, masked = signature.port("encoder_states"), signature.port("encoder_mask")
        if states is not None and before:
            wires[f"{name}.{states.name}"] = before
        if masked is not None and mask:
            wires[f"{name}.{masked.name}"] = mask
        if name == decoder:
            continue
        own, out = signature.port("mask"), signature.output("states")
        mask = f"{name}.{own.name}" if own is not None else mask
        before = f"{name}.{out.name}" if out is not None else before
    return wires
