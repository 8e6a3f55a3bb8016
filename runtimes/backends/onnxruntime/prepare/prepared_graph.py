"""A graph as ONNX Runtime gets it, which need not be as its file has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.runtimes.backends.onnxruntime.graph_file import (
    exact,
    multiplies_signed_bytes,
    parsed,
    with_input,
    with_signed_bytes,
)
from isoform.runtimes.backends.onnxruntime.library import MASK_END, ROW_GAPS
from isoform.runtimes.backends.onnxruntime.prepare.channel_blocks import LINEAR, in_blocks
from isoform.runtimes.backends.onnxruntime.prepare.hidden_states import give_hidden_states
from isoform.runtimes.backends.onnxruntime.prepare.row_gaps import add_row_gaps
from isoform.runtimes.backends.onnxruntime.prepare.selected_rows import select_early

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE = "isoform.cache"  # in the metadata of a decoder that is our own: how its cache grows
BYTES = "MatMulIntegerToFloat"
LARGE = 2**26  # bytes of a graph with its weights inside: nothing is changed there


@dataclass(frozen=True)
class PreparedGraph:
    """A file or bytes, and the weights that are laid out in memory for it; any number of sessions may share them."""

    source: Path | bytes
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """onnxruntime.OrtValues by the name of the weight, views of the arrays."""


def prepare(path: Path, settings: Iterable[str], *, strict: bool, on_cpu: bool) -> PreparedGraph:
    """The graph of a file: exact if it is to be `strict`, with these constants as inputs, and for this CPU.

    Three changes give the same numbers faster there: signed bytes, rows that are chosen before the last layer, and
    linear layers in blocks of channels. A fourth lets the rows of a cache differ in length.
    """
    graph = exact(path) if strict else None
    content = graph or (path.read_bytes() if path.stat().st_size < LARGE else b"")
    arrays: dict[str, NDArray[Any]] = {}
    if on_cpu and multiplies_signed_bytes() and (signed := with_signed_bytes(content, path.parent)) is not None:
        content = signed[0]
        arrays.update(signed[1])
    linear, in_place = LINEAR.encode() in content, MASK_END.encode() in content
    products = linear or BYTES.encode() in content
    if on_cpu and (products or in_place) and (model := parsed(content)) is not None:
        moved = products and select_early(model.graph)
        layers = in_blocks(model, path.parent) if linear else {}
        arrays.update(layers)
        ragged = in_place and add_row_gaps(model.graph, ROW_GAPS)
        if moved or layers or ragged:
            content = graph = model.SerializeToString()
    for name in settings if CACHE.encode() in content else ():  # elsewhere the name may mean anything
        if (changed := with_input(content, name)) is not None:
            content = graph = changed
    return PreparedGraph((content if arrays else graph) or path, arrays, _values(arrays) if arrays else {})


def prepare_deep(path: Path, settings: Iterable[str], logits: str) -> tuple[PreparedGraph, str] | None:
    """The graph of a file with the hidden states of its last layer as an output, and their name; None without them.

    Only what every CPU and GPU can run is changed in it.
    """
    plain = prepare(path, settings, strict=False, on_cpu=False)
    content = plain.source if isinstance(plain.source, bytes) else path.read_bytes()
    if len(content) >= LARGE or (model := parsed(content)) is None:
        return None
    name = give_hidden_states(model.graph, logits)
    return None if name is None else (PreparedGraph(model.SerializeToString()), name)


def _values(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    from onnxruntime import OrtValue

    return {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
