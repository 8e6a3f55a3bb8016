"""What an ONNX graph costs and how it will run: layers, fused operations, bytes per token, nodes that are widened."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

FUSED = (
    *("Attention", "Gelu", "GroupNormalization", "LayerNormalization", "RMSNormalization", "RotaryEmbedding", "Swish"),
)
"""Standard operators that stand for several plain ones. Those of other domains are fused by nature."""

LOOKUPS = {"Gather": 0, "GatherBlockQuantized": 0}  # which input is a table, of which a token reads one row
_LAYER = re.compile(r"(?:^|[./])(?:layers?|blocks?|h)[./](\d+)[./]")


def graph_report(path: Path, model: Any) -> dict[str, Any]:
    """The report on a model (onnx.ModelProto, without its weights) that lies at `path`."""
    graph = model.graph
    layers: dict[int, Counter[str]] = {}
    for node in graph.node:
        if match := _LAYER.search(node.name):
            layers.setdefault(int(match[1]), Counter())[node.op_type] += 1
    fused = Counter(node.op_type for node in graph.node if node.domain or node.op_type in FUSED)
    kinds = {tuple(sorted(counts.items())) for counts in layers.values()}
    return {
        "nodes": len(graph.node),
        "nodes in layers": {
            "layers": len(layers),
            "each": _range(sum(counts.values()) for counts in layers.values()),
            "fused in each": _range(sum(counts[kind] for kind in fused) for counts in layers.values()),
            "kinds of layers": len(kinds),
        },
        "fused operators": dict(fused.most_common()),
        "bytes": {
            "graph": path.stat().st_size,
            "weights": sum(size for _, size in _places(graph.initializer).values()),
            "read per token": bytes_per_token(graph),
            "read per cached token": _cache_bytes(graph),
        },
        "widened on the CPU": widened(model),
    }


def _range(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _places(tensors: Iterable[Any]) -> dict[str, tuple[Any, int]]:
    """Initializer -> its place and size; of tensors over the same bytes the first has the size, the others have 0."""
    from onnx.helper import tensor_dtype_to_np_dtype

    result: dict[str, tuple[Any, int]] = {}
    seen: set[Any] = set()
    for tensor in tensors:
        entry = {item.key: item.value for item in tensor.external_data}
        place = (entry["location"], entry.get("offset", "0")) if "location" in entry else tensor.name
        size = prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        result[tensor.name] = place, 0 if place in seen else size
        seen.add(place)
    return result


def bytes_per_token(graph: Any) -> int:
    """Bytes of weights that a step of decoding reads: what any node takes, once, but one row of a looked-up table."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    places = _places(graph.initializer)
    whole: dict[Any, int] = {}
    rows: dict[Any, int] = {}
    for node in graph.node:
        scales = (2, 3) if node.op_type == "GatherBlockQuantized" else ()
        for n, name in enumerate(node.input):
            if name not in tensors:
                continue
            tensor = tensors[name]
            size = prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            place = places[name][0]
            if n == LOOKUPS.get(node.op_type) or n in scales:
                rows[place] = size // max(1, tensor.dims[0] if tensor.dims else 1)
            else:
                whole[place] = size
    return sum(whole.values()) + sum(size for place, size in rows.items() if place not in whole)


def _cache_bytes(graph: Any) -> int:
    """Bytes of keys and values that a step reads for every token that is cached."""
    from onnx.helper import tensor_dtype_to_np_dtype

    total = 0
    for value in graph.input:
        kind = value.type.tensor_type
        if value.name.startswith("past_key_values."):
            sizes = [dim.dim_value for dim in kind.shape.dim if dim.dim_value]
            total += prod(sizes) * tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return total


def widened(model: Any) -> dict[str, Any]:
    """The operators that ONNX Runtime's CPU provider runs in float32 instead of the graph's dtype, or why it runs none.

    It has no kernel for them, or none worth two casts; what it takes apart is there in parts. The graph is opened with
    its weights as inputs and without optimizations.
    """
    import onnx

    try:
        import onnxruntime
    except ImportError:
        return {"unknown": "onnxruntime is not installed"}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.external_data:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            bare.graph.initializer.append(tensor)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "opened.onnx")
        try:
            onnxruntime.InferenceSession(bare.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (its exceptions have no common base but this)
            return {"cannot run": " ".join(str(error).split())[:300]}
        opened = onnx.load(options.optimized_model_filepath)
    return dict(Counter(node.op_type for node in _widened(model, opened)).most_common())


def _widened(model: Any, opened: Any) -> Iterator[Any]:
    """The nodes that compute in float32 what the graph has in a narrower dtype: from a cast that was added to the next.

    They come in the order of the graph, so that a value is known before it is taken.
    """
    from onnx import TensorProto

    own = {name for node in model.graph.node for name in node.output}
    widened: set[str] = set()
    for node in opened.graph.node:
        if node.op_type == "Cast":
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            if to == TensorProto.FLOAT and not own.issuperset(node.output):
                widened.update(node.output)
        elif widened.intersection(node.input):
            widened.update(node.output)
            yield node
