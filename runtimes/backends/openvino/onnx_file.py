"""What an ONNX file says that OpenVINO does not: its operators by domain, and the names of its axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.runtimes.backends.onnxruntime.graph_file import nodes
from isoform.runtimes.backends.onnxruntime.session import graph_signature
from isoform.signature import Signature

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class FoundPort:
    """A port as the file has it: a size that is no number is the name of an axis, or "" where it has none."""

    name: str
    type: str
    shape: tuple[int | str, ...]


TAKEN = frozenset({"FusedMatMul", "MultiHeadAttention", "SkipSimplifiedLayerNormalization"})
"""ONNX Runtime's own operators that OpenVINO computes as ONNX Runtime does. It takes more of them: with
GroupQueryAttention, a batch of several rows fails or gives one row."""


def wrong_operators(path: Path) -> list[str]:
    """The operators that OpenVINO does not take, or computes wrongly. Raises CheckpointError for no ONNX file.

    A branch within a branch: what comes out of it is lost as `branches` says, and it is no output of the model.
    """
    graph = _load(path).graph
    kinds = {node.op_type: node.domain for node in nodes(graph)}
    found = sorted(kind for kind, domain in kinds.items() if domain not in ("", "ai.onnx") and kind not in TAKEN)
    inside = {node.op_type for outer in graph.node for body in outer.attribute for node in nodes(body.g)}
    return [*found, *(["If within another operator"] if "If" in inside else [])]


def read_signature(path: Path) -> Signature:
    """The signature of a file without a manifest. Raises CheckpointError as `wrong_operators` does."""
    graph = _load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = list(_ports(value for value in graph.input if value.name not in stored))
    return graph_signature(path, inputs, list(_ports(graph.output)))


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001  (the error for bytes that are no message is protobuf's, without types)
        raise CheckpointError(f"{path} is no readable ONNX file ({error}); export the model again") from None


def _ports(values: Any) -> Iterator[FoundPort]:
    import onnx

    for value in values:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
        yield FoundPort(value.name, f"tensor({kind})", sizes)
