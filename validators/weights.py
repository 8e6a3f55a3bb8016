"""The weights level: every tensor of an artifact, read back from its file, is the source's bit for bit in its dtype.

A quantized tensor must be what the format's own quantizer makes of the source; both are compared dequantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, InputError
from isoform.validators.report import Report, Result

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from isoform.reference.model import Model

LEVEL = "weights"
PIECE = 2**22  # elements compared at a time
NARROW = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Stored = dict[str, tuple[str, Callable[[], "Tensor"]]]
"""Canonical name -> how it is stored (F32, F16, BF16, or a quantization), and how to get it."""


def check_weights(model: Model, path: Path, form: str, dtype: str, backend: str) -> Report:
    """Compare the tensors in an artifact's first file with the model's; `form` is its format, `dtype` its type.

    Two results: how many values differ, and how many tensors are missing, misshapen or of another type.
    Raises CheckpointError or InputError when the file cannot be read.
    """
    wrong: list[str] = []
    differing = values = 0
    changed: list[str] = []
    with READERS[form](path) as stored:
        for name, weight in model.weights.items():
            if name not in stored:
                wrong.append(f"{name} is missing")
                continue
            kind, load = stored[name]
            tensor = load()
            if tuple(tensor.shape) != weight.shape:
                wrong.append(f"{name} has shape {list(tensor.shape)}, not {list(weight.shape)}")
                continue
            if kind != dtype.upper() and not (form == "gguf" and _stands_in(kind, dtype.upper(), weight.shape)):
                wrong.append(f"{name} is stored as {kind}, not {dtype.upper()}")
                continue
            count = _differing(tensor, weight.load(), kind)
            values += prod(weight.shape)
            differing += count
            if count:
                changed.append(f"{name} ({count} values)")
            weight.release()
    case = f"{dtype} weights, {len(model.weights)} tensors, {values} values"
    return Report(
        [
            Result(backend, LEVEL, case, "differing", differing, 0, not differing, _first(changed)),
            Result(backend, LEVEL, case, "wrong_tensors", len(wrong), 0, not wrong, _first(wrong)),
        ]
    )


def _stands_in(kind: str, wanted: str, shape: tuple[int, ...]) -> bool:
    """GGUF keeps norms, biases and small tables in float32, and rows that no block divides in half precision."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block = GGML_QUANT_SIZES[GGMLQuantizationType[wanted]][0]
    return kind == "F32" or (kind == "F16" and shape[-1] % block != 0)


def _differing(got: Tensor, source: Tensor, kind: str) -> int:
    """How many values are not the source's bits, in the dtype or quantization `kind`."""
    import torch

    rows, wanted = got.reshape(max(1, got.shape[0]), -1), source.reshape(max(1, source.shape[0]), -1)
    step = max(1, PIECE // max(1, rows.shape[1]))
    count = 0
    for a, b in zip(rows.split(step), wanted.split(step), strict=True):
        if kind in NARROW:
            dtype = getattr(torch, NARROW[kind])
            a, b = a.to(dtype).contiguous(), b.to(dtype).contiguous()
        else:
            a, b = a.contiguous(), quantized(b, kind)
        bits = torch.int32 if a.dtype == torch.float32 else torch.int16
        count += int(torch.count_nonzero(a.view(bits) != b.view(bits)))
    return count


def quantized(tensor: Tensor, kind: str) -> Tensor:
    """The tensor through ggml's quantization and back, in float32."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    number = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(tensor.float().contiguous().numpy(), number), number))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _gguf(path: Path) -> Iterator[Stored]:
    from isoform.reference.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    yield {name: (checkpoint.info(name).dtype, lambda name=name: checkpoint[name]) for name in checkpoint}  # type: ignore[misc]


@contextmanager
def _torchscript(path: Path) -> Iterator[Stored]:
    import torch

    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no TorchScript file ({str(error).splitlines()[0]}); export again") from None
    parameters = dict(module.named_parameters())
    yield {name: (_name(p.dtype), lambda p=p: p.detach()) for name, p in parameters.items()}  # type: ignore[misc]


@contextmanager
def _onnx(path: Path) -> Iterator[Stored]:
    import mmap

    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError as error:
        raise CheckpointError(f"{path} is no ONNX file ({error}); export again") from None
    maps: dict[Path, mmap.mmap] = {}

    def load(tensor: onnx.TensorProto) -> Tensor:
        import torch

        dtype = _onnx_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        entry = {e.key: e.value for e in tensor.external_data}
        file = (path.parent / entry["location"]).resolve()
        if file not in maps:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing, which {path} keeps its weights in; export again")
            with file.open("rb") as stream:
                maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        offset, length = int(entry.get("offset", 0)), prod(shape) * dtype.itemsize
        if offset + length > len(maps[file]):
            raise CheckpointError(f"{file} is truncated: {tensor.name} ends at byte {offset + length}; export again")
        if not length:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(maps[file], dtype=dtype, count=prod(shape), offset=offset).view(shape)

    yield {
        tensor.name: (_name(_onnx_dtype(tensor.data_type)), lambda tensor=tensor: load(tensor))  # type: ignore[misc]
        for tensor in graph.initializer
    }


def _onnx_dtype(element: int) -> torch.dtype:
    import torch
    from onnx import TensorProto

    known: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.BOOL: torch.bool,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.UINT8: torch.uint8,
        TensorProto.INT8: torch.int8,
    }
    if element not in known:
        raise InputError(f"an ONNX initializer of element type {TensorProto.DataType.Name(element)} is not known")
    return known[element]


def _name(dtype: torch.dtype) -> str:
    names: dict[str, str] = {value: key for key, value in NARROW.items()}
    plain = str(dtype).removeprefix("torch.")
    return names.get(plain, plain)


READERS: dict[str, Callable[[Path], Any]] = {"gguf": _gguf, "onnx": _onnx, "torchscript": _torchscript}
"""Format -> the tensors in its file, while the block lasts."""
