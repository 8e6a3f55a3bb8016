"""What a checkpoint, a bundle, a GGUF or an ONNX file holds, as plain data; no weight is read."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from isoform.errors import InputError
from isoform.manifest import NAME, Manifest
from isoform.signature import Signature


def inspect(source: str) -> dict[str, Any]:
    """The facts of a path or Hub id. Raises InputError or CheckpointError when there is nothing to look at."""
    path = Path(source).expanduser()
    if (path / NAME).is_file():
        return inspect_bundle(path)
    if path.suffix == ".onnx":
        return inspect_onnx(path)
    if path.suffix == ".gguf":
        return inspect_gguf(path)
    return inspect_checkpoint(source)


def inspect_checkpoint(source: str) -> dict[str, Any]:
    """Family, task, parameters, dtypes and files of a checkpoint."""
    from isoform.reference.model import open_model

    model = open_model(source)
    checkpoint = model.checkpoint
    stored = [checkpoint.info(key) for key in checkpoint]
    return {
        "kind": "checkpoint",
        "name": model.name,
        "family": model.family.title,
        "architectures": checkpoint.config.get("architectures"),
        "task": model.task.name,
        "tasks": [task.name for task in model.family.tasks],
        "parameters": sum(prod(weight.shape) for weight in model.weights.values()),
        "bytes": sum(info.nbytes for info in stored),
        **({"notes": "; ".join(model.notes)} if model.notes else {}),
        "tensors": dict(Counter(info.dtype for info in stored)),
        "files": [{"file": path.name, "bytes": path.stat().st_size} for path in checkpoint.files()],
        "beside": [path.relative_to(checkpoint.folder).as_posix() for path in checkpoint.sidecars()],
        "inputs": [port.to_json() for port in model.signature.inputs if port.role != "state"],
        "outputs": [port.to_json() for port in model.signature.results],
        "cache": _cache(model.signature),
    }


def _cache(signature: Signature) -> dict[str, Any] | None:
    """What a decoder keeps: layers, heads and channels where all states are alike, how many of each kind elsewhere."""
    if (layout := signature.layout()) is not None:
        return dict(zip(("layers", "heads", "head_dim"), layout, strict=True))
    return dict(Counter(state.kind for state in signature.states)) or None


def inspect_bundle(folder: Path) -> dict[str, Any]:
    """The manifest of an export, with the files that are missing or have another size."""
    manifest = Manifest.read(folder)
    files = [(artifact, file) for artifact in manifest.artifacts for file in artifact.files]

    def state(path: Path, size: int) -> str:
        if not path.is_file():
            return "missing"
        return "ok" if path.stat().st_size == size else "changed"

    return {
        "kind": "bundle",
        "family": manifest.family,
        "task": manifest.task,
        "source": manifest.source.get("path"),
        **({"notes": "; ".join(manifest.notes)} if manifest.notes else {}),
        "files": [
            {
                "format": artifact.format,
                "dtype": artifact.dtype,
                "file": file.path,
                "bytes": file.size,
                "state": state(folder / file.path, file.size),
            }
            for artifact, file in files
        ],
        "missing": manifest.missing,
        "serves": manifest.serves,
        "versions": manifest.versions,
        "parity": manifest.parity,
    }


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Ports, operators, costs and external data of an ONNX graph."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from isoform.runtimes.backends.onnxruntime.graph_file import nodes
    from isoform.validators.tools.onnx_report import graph_report

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise InputError(f"{path} is no readable ONNX file ({error})") from None
    graph = model.graph
    if not graph.node:
        raise InputError(f"{path} is no ONNX file or an incomplete one: it holds no operator")

    def port(value: Any) -> dict[str, Any]:
        kind = value.type.tensor_type
        axes = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
        return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(kind.elem_type), "axes": axes}

    outside = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    operators = Counter(f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in nodes(graph))
    return {
        "kind": "onnx",
        "file": str(path),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        **graph_report(path, model),
        "operators": dict(operators.most_common()),
        "weights": len(graph.initializer),
        "weight dtypes": dict(Counter(onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer)),
        "external data": [
            {"file": name, "bytes": p.stat().st_size if (p := path.parent / name).is_file() else "missing"}
            for name in sorted(outside)
        ],
        "inputs": [port(value) for value in graph.input],
        "outputs": [port(value) for value in graph.output],
    }


def inspect_gguf(path: Path) -> dict[str, Any]:
    """Metadata and tensor types of a GGUF file; long lists are counted."""
    from isoform.reference.checkpoints.gguf_file import read_gguf

    file = read_gguf(path)

    def short(value: Any) -> Any:
        return f"[{len(value)} values]" if hasattr(value, "__len__") and not isinstance(value, str) else value

    return {
        "kind": "gguf",
        "file": str(path),
        "bytes": path.stat().st_size,
        "metadata": {key: short(value) for key, value in file.metadata.items()},
        "parameters": sum(prod(info.shape) for info in file.tensors.values()),
        "types": dict(Counter(info.dtype for info in file.tensors.values())),
        "tensors": [
            {"name": name, "type": info.dtype, "shape": list(info.shape), "bytes": info.nbytes}
            for name, info in file.tensors.items()
        ],
    }
