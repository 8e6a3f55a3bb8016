"""The weights level: every tensor of an artifact, read back from its file, is the source's bit for bit in its dtype.

A quantized tensor of a GGUF file must be, byte for byte, what ggml's own quantizer makes of the source. With an
importance matrix, which a file does not carry, its error must be what such a quantization may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError, InputError
from isoform.quality import plain_dtype
from isoform.validators.bisection.stored import SHOWN
from isoform.validators.report.records import Report, Result
from isoform.validators.report.subject import Subject
from isoform.validators.truth.tolerances import IMPORTANCE

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint
    from isoform.reference.model import Model
    from isoform.reference.weights import Weight
    from isoform.validators.report.departure import Departure

LEVEL = "weights"
PIECE = 2**20  # elements compared at a time
NARROW = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: F32, F16, BF16 or a quantization, its shape, and how to get some rows of it."""

    kind: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Stored:
    """Canonical name -> the tensor in the file; `gguf` is set where that is one."""

    tensors: Mapping[str, StoredTensor]
    gguf: GgufCheckpoint | None = None


def check_weights(
    model: Model, path: Path, form: str, dtype: str, backend: str, options: Mapping[str, Any] | None = None
) -> Report:
    """Compare the tensors in an artifact's first file with the model's; `form` is its format, `dtype` its type.

    Two results: how many values differ, and how many tensors are missing, misshapen or of another type; a third for
    files that an importance matrix went into which is not at hand. `options` are those of the manifest: with them each
    tensor must have the type that they ask for, without them some of a GGUF file may have others. Raises
    CheckpointError or InputError when the file cannot be read.
    """
    from isoform.validators.bisection.stored import missing_departure

    wrong: list[str] = []
    departures: list[Departure] = []
    differing = values = 0
    changed: list[str] = []
    with READERS[form](path) as stored:
        wrong += _label(stored, dtype)
        importance = _importance(stored, model, options or {})
        expected = _expected(stored, model, dtype, options or {}, importance)
        blocks = _Blocks(stored.gguf, importance) if stored.gguf is not None else None
        others: list[str] = []
        weights = _written(stored, model)
        for name, weight in weights.items():
            held = stored.tensors.get(name)
            if held is None:
                wrong.append(f"{name} is missing")
                departures.append(missing_departure(name, backend, dtype))
                continue
            if held.shape != weight.shape:
                wrong.append(f"{name} has shape {list(held.shape)}, not {list(weight.shape)}")
                departures.append(missing_departure(name, backend, dtype))
                continue
            kind = expected.get(name, plain_dtype(dtype).upper())
            if held.kind != kind and (stored.gguf is None or kind == "F32" or options is not None):
                wrong.append(f"{name} is stored as {held.kind}, not {kind}")
                continue
            if held.kind != kind:
                others.append(f"{name} ({held.kind})")
            count = blocks.differing(name, weight) if blocks and held.kind not in NARROW else _differing(held, weight)
            values += prod(weight.shape)
            differing += count
            if count:
                changed.append(f"{name} ({count} values)")
                if len(changed) <= SHOWN and (found := _departure(held, weight, name, stored.gguf, backend, dtype)):
                    departures.append(found)
            weight.release()
        for name in sorted(stored.tensors.keys() - weights.keys() - _extra(stored, model)):
            wrong.append(f"{name} is in the file, and the model has no such weight")
        if others and len(others) > len(model.weights) // 2:
            wrong.append(f"most tensors are of other types than {dtype} gives them: {_first(others)}")
            others = []
    case = f"weights, {len(model.weights)} tensors, {values} values"
    subject = Subject(backend, LEVEL, dtype, "weights", case)
    note = f"of another type than {dtype} gives them, as overridden: {_first(others)}" if others else _first(wrong)
    report = Report(
        [
            Result.of(subject, "differing", differing, 0, _first(changed)),
            Result.of(subject, "wrong_tensors", len(wrong), 0, note),
        ],
        departures=departures,
    )
    if blocks and blocks.worst[1]:
        share, name = blocks.worst
        note = f"{IMPORTANCE.unit}; {name}"
        report.results.append(Result.of(subject, "importance_error", share, IMPORTANCE.value, note))
    return report


def _written(stored: Stored, model: Model) -> Mapping[str, Weight]:
    """The weights as a file has them: those of a GGUF file may be multiplied by a number."""
    from isoform.exporters.gguf.tensors import written

    card = model.family.gguf_of(model.task)
    return model.weights if stored.gguf is None or card is None else written(model, card)


def _extra(stored: Stored, model: Model) -> set[str]:
    """Tensors that llama.cpp wants and the checkpoint does not hold."""
    card = model.family.gguf_of(model.task)
    return set(card.extra(model.config)) if stored.gguf is not None and card is not None else set()


def _departure(
    held: StoredTensor, weight: Weight, name: str, file: GgufCheckpoint | None, backend: str, dtype: str
) -> Departure | None:
    """The worst value of a tensor that differs; a quantized one is held against ggml's own quantization."""
    from isoform.validators.bisection.stored import weight_departure

    def pieces() -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        for start, stop in _ranges(weight.shape):
            got, source = held.rows(start, stop).float().numpy(), weight.rows(start, stop).float().contiguous().numpy()
            if file is not None and held.kind not in NARROW:
                source = _requantized(source, held.kind)
            elif held.kind in NARROW:
                import torch

                source = torch.from_numpy(source).to(getattr(torch, NARROW[held.kind])).float().numpy()
            yield start, got, source

    return weight_departure(name, pieces(), backend, dtype)


def _requantized(rows: NDArray[Any], kind: str) -> NDArray[Any]:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    from isoform.exporters.gguf.ggml import quantize
    from isoform.exporters.gguf.mixes import SPARSE

    ones = np.ones(rows.shape[-1], np.float32) if kind in SPARSE else None
    flat = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))
    result: NDArray[Any] = dequantize(quantize(flat, kind, imatrix=ones), GGMLQuantizationType[kind])
    return result.reshape(rows.shape)


def _label(stored: Stored, dtype: str) -> list[str]:
    """What is wrong with the type that a GGUF file says it has."""
    from isoform.exporters.gguf.mixes import MIXES

    if stored.gguf is None or dtype not in MIXES:
        return []
    found, wanted = stored.gguf.metadata.get("general.file_type"), MIXES[dtype].file_type
    return [] if found == wanted else [f"general.file_type is {found}, {wanted} stands for {dtype}"]


def _importance(stored: Stored, model: Model, options: Mapping[str, Any]) -> dict[str, NDArray[np.float32]] | None:
    """llama.cpp's name of a tensor -> the importances of its columns; None when the matrix is not where it was."""
    from isoform.exporters.gguf.imatrix import read_importance, weights_for
    from isoform.manifest import describe
    from isoform.reference.names import GGUF, rename

    matrix = options.get("imatrix")
    if stored.gguf is None or matrix is None or not (path := Path(matrix["path"])).is_file():
        return None
    if describe(path, path.parent).sha256 != matrix["sha256"]:
        return None
    shapes = {rename(key, GGUF) or key: weight.shape for key, weight in model.weights.items()}
    return weights_for(read_importance(path), shapes, model.name)


def _expected(
    stored: Stored,
    model: Model,
    dtype: str,
    options: Mapping[str, Any],
    importance: Mapping[str, NDArray[np.float32]] | None,
) -> dict[str, str]:
    """Canonical name -> the type that a GGUF file of this mix, made with these options, gives the tensor."""
    from isoform.exporters.gguf.mixes import MIXES, Depths, parse_overrides, tensor_types
    from isoform.reference.names import rename

    card = model.family.gguf_of(model.task)
    if stored.gguf is None or card is None or dtype not in MIXES:
        return {}
    fields = card.fields(model.config)
    heads = fields.get("attention.head_count", 1)
    depths = Depths(
        layers=fields["block_count"],
        sharing=heads // fields.get("attention.head_count_kv", heads),
        experts=fields.get("expert_count", 0),
        large=card.large(model.config),
    )
    weights = _written(stored, model)
    names = {key: rename(key, card.tensors) or key for key in weights}
    shapes = {names[key]: weight.shape for key, weight in weights.items()}
    weighted = importance or (shapes if _Blocks(stored.gguf).weighted else None)
    overrides = parse_overrides(options.get("overrides", ()))
    chosen = tensor_types(dtype, shapes, depths, overrides=overrides, importance=weighted)
    return {key: chosen[name] for key, name in names.items()}


def _differing(held: StoredTensor, weight: Weight) -> int:
    """How many values are not the source's bits, in the dtype that they are held in."""
    import torch

    dtype = getattr(torch, NARROW[held.kind])
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    count = 0
    for start, stop in _ranges(weight.shape):
        a, b = held.rows(start, stop).to(dtype), weight.rows(start, stop).to(dtype)
        count += int(torch.count_nonzero(a.contiguous().view(bits) != b.contiguous().view(bits)))
        weight.release()
    return count


def _ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE // max(1, prod(shape[1:])))
    for start in range(0, shape[0] if shape else 1, step):
        yield start, start + step


class _Blocks:
    """Compares the blocks of a GGUF file with what ggml's own quantizer makes of the source."""

    def __init__(self, file: GgufCheckpoint, importance: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        self.file, self.importance = file, importance
        # llama-quantize's keys; an importance matrix decides between candidates, and is not in the file.
        self.weighted = any(key.startswith("quantize.imatrix.") for key in file.metadata)
        self.worst = (0.0, "")  # the largest error in times that of even weights, and whose it is

    def differing(self, name: str, weight: Weight) -> int:
        """How many values of a matrix are others.

        None with an importance matrix that is not at hand: `worst` keeps the error of those.
        """
        from concurrent.futures import ThreadPoolExecutor
        from os import cpu_count

        from isoform.reference.names import GGUF, rename

        kind = self.file.info(name).dtype
        known = None if self.importance is None else self.importance.get(rename(name, GGUF) or name)
        if weight.shape != self.file.info(name).shape or len(weight.shape) < 2:
            raise CheckpointError(f"{self.file.path}: {name} is no matrix, yet quantized as {kind}; export again")

        def one(piece: tuple[int, int]) -> tuple[int, float, float]:
            source = weight.rows(*piece).float().contiguous().numpy()
            rows = source.reshape(-1, source.shape[-1])
            held = self.file.blocks(name, *piece).numpy().reshape(len(rows), -1)
            return self._piece(kind, rows, held, known)

        with ThreadPoolExecutor(cpu_count()) as pool:  # ggml runs outside Python's lock
            found = list(pool.map(one, _ranges(weight.shape)))
        self.file.release(name)
        if self.weighted and (even := sum(e for _, _, e in found)):
            self.worst = max(self.worst, ((sum(m for _, m, _ in found) / even) ** 0.5, name))
        return sum(count for count, _, _ in found)

    def _piece(
        self, kind: str, rows: NDArray[np.float32], held: NDArray[np.uint8], known: NDArray[np.float32] | None
    ) -> tuple[int, float, float]:
        """Values that differ, and with an importance matrix the squared error and that of even weights."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        from isoform.exporters.gguf.ggml import quantize
        from isoform.exporters.gguf.mixes import SPARSE

        number = GGMLQuantizationType[kind]
        # Without any weights ggml stops the whole process for some types, so even ones stand in.
        exact = not self.weighted or (self.importance is not None and (known is None or len(known) == rows.shape[1]))
        if not exact or (known is None and kind in SPARSE):
            known = np.ones(rows.shape[1], np.float32)
        wanted = quantize(rows, kind, imatrix=known)
        if np.array_equal(held, wanted):
            return 0, 0.0, 0.0
        got, even = dequantize(held, number), dequantize(wanted, number)
        if exact:
            return max(1, int(np.count_nonzero(got != even))), 0.0, 0.0
        return (
            0,
            float(np.square(got - rows, dtype=np.float64).sum()),
            float(np.square(even - rows, dtype=np.float64).sum()),
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _gguf(path: Path) -> Iterator[Stored]:
    from isoform.reference.checkpoints.gguf_checkpoint import GgufCheckpoint

    file = GgufCheckpoint(path)

    def held(name: str) -> StoredTensor:
        info = file.info(name)
        return StoredTensor(info.dtype, info.shape, lambda start, stop: file.rows(name, start, stop))

    yield Stored({name: held(name) for name in file}, file)


def _whole(tensor: Tensor) -> StoredTensor:
    """A tensor that is in memory."""
    name, shape = _name(tensor.dtype), tuple(tensor.shape)
    return StoredTensor(name, shape, lambda start, stop: tensor[start:stop] if shape else tensor)


@contextmanager
def _torchscript(path: Path) -> Iterator[Stored]:
    import torch

    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no TorchScript file ({str(error).splitlines()[0]}); export again") from None
    yield Stored({name: _whole(parameter.detach()) for name, parameter in module.named_parameters()})


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

    def held(tensor: onnx.TensorProto) -> StoredTensor:
        kind, shape = _name(_onnx_dtype(tensor.data_type)), tuple(tensor.dims)
        return StoredTensor(kind, shape, lambda start, stop: load(tensor)[start:stop] if shape else load(tensor))

    def is_weight(tensor: onnx.TensorProto) -> bool:  # and not a constant of the graph
        return tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.name.endswith((".weight", ".bias"))

    yield Stored({tensor.name: held(tensor) for tensor in graph.initializer if is_weight(tensor)})


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
