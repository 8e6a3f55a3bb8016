"""TorchScript: `torchscript/model.pt`, which plain `torch.jit.load` (2.5 or later) and libtorch open without isoform.

A model of several parts is a file for each: `torchscript/encoder.pt`, `torchscript/decoder.pt`.

`forward` takes the signature's inputs by position and returns a tuple of its outputs; batch, length and past are free.

The module is traced on the meta device, so nothing is computed and no weight is in memory. torch then saves it with
storages of eight bytes, each holding the number of its tensor; the archive is written again with the real storages,
one after another. Left out on the way: debug records, which hold the paths of this machine.

An archive names no device but where the forward pass itself creates a tensor: such a one stays on the CPU, whatever
`map_location` says.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError, UnsupportedExport
from isoform.exporters.format import elements
from isoform.formats import FLOATS
from isoform.manifest import WHOLE, Artifact, describe
from isoform.progress import Progress
from isoform.signature import Signature

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isoform.reference.card import Family, Task
    from isoform.reference.model import Model

BYTES_PER_WEIGHT = {"bf16": 2.0, "f16": 2.0, "f32": 4.0}

_ALIGNMENT = 64  # of every record, as torch writes them: they can be memory-mapped
_CHUNK = 2**24  # bytes converted and written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a TorchScript export: the dtype of weights and activations."""

    dtype: str = "f32"


def write(model: Model, folder: Path, dtype: str, progress: Progress | None = None) -> list[Artifact]:
    """Write a file per part under `folder`; peak memory is the largest weight plus a fixed base.

    Raises UnsupportedExport when the forward pass depends on the sizes it was traced with.
    """
    if dtype not in FLOATS:
        raise UnsupportedExport(f"TorchScript has no dtype {dtype!r}; choose one of {', '.join(FLOATS)}")
    show = progress or (lambda text, done, total: None)
    return [_write_part(part, folder, dtype, show) for part in model.parts]


def _write_part(part: Model, folder: Path, dtype: str, progress: Progress) -> Artifact:
    import torch

    module = part.skeleton(getattr(torch, FLOATS[dtype]))
    tensors: dict[str, _Source] = {}
    for name, parameter in module.named_parameters():
        weight = part.weights[name]
        tensors[name] = _Source(name, parameter, weight.load, weight.release)
    for name, buffer in module.named_buffers():
        tensors[name] = _Source(name, buffer.to("meta"), buffer.clone, lambda: None)
    archive, order = _skeleton(module, part.signature)
    path = folder / "torchscript" / f"{part.part}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    _fill(archive, path, [tensors[name] for name in order], progress)
    files = (describe(path, folder),)
    return Artifact(format="torchscript", dtype=dtype, files=files, signature=part.signature, part=part.part)


class _Source:
    """A tensor to come: its dtype and shape on the meta device, and how to get its data."""

    def __init__(self, name: str, meta: Tensor, load: Callable[[], Tensor], release: Callable[[], None]) -> None:
        self.name, self.dtype, self.numel, self.nbytes = name, meta.dtype, meta.numel(), meta.nbytes
        self._load, self._release = load, release

    def chunks(self) -> Iterator[memoryview]:
        import torch

        flat = self._load().reshape(-1)
        step = _CHUNK // self.dtype.itemsize
        for start in range(0, self.numel, step):
            given = flat[start : start + step]
            part = given.to(self.dtype)
            if self.dtype == torch.float16 and not bool(part.isfinite().all()) and bool(given.isfinite().all()):
                largest = float(given.abs().max())
                raise UnsupportedExport(f"{self.name} holds {largest:g}, float16 ends at 65504; export to f32 or bf16")
            yield part.contiguous().view(torch.uint8).numpy().data
        self._release()


def _skeleton(module: nn.Module, signature: Signature) -> tuple[zipfile.ZipFile, list[str]]:
    """The archive torch saves when every storage is eight bytes long, and whose tensor each of its storages is."""
    import torch

    from isoform.exporters.tracing import convolutions, examples, two_sizes

    dtype = next(module.parameters()).dtype
    _to_meta(module)
    with warnings.catch_warnings(), torch.no_grad(), convolutions():
        # "might not generalize to other inputs": that is what the second trace finds out.
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other writer of this format
        traced, other = (
            torch.jit.trace(
                module, examples(signature, sizes, dtype), strict=False, check_trace=False, _store_inputs=False
            )
            for sizes in two_sizes(signature)
        )
    _check(traced.inlined_graph, other.inlined_graph)
    names = {id(tensor): name for name, tensor in (*module.named_buffers(), *module.named_parameters())}
    numbered: dict[str, Tensor] = {}
    originals = dict(module.named_modules())
    for path, part in traced.named_modules():
        for table in (originals[path]._parameters, originals[path]._buffers):
            for leaf, meta in table.items():
                if meta is not None:
                    name = names[id(meta)]  # of tied parameters, the one that is stored
                    if name not in numbered:
                        numbered[name] = _numbered(meta, len(numbered))
                    setattr(part, leaf, numbered[name])
    archive = zipfile.ZipFile(io.BytesIO(traced.save_to_buffer()))
    count = sum("/data/" in name for name in archive.namelist())
    order = list(numbered)
    return archive, [order[struct.unpack("<q", archive.read(f"archive/data/{n}"))[0]] for n in range(count)]


def _to_meta(module: nn.Module) -> None:
    for owner in module.modules():
        for leaf, buffer in owner._buffers.items():
            owner._buffers[leaf] = None if buffer is None else buffer.to("meta")


def _check(graph: Any, other: Any) -> None:
    """Two traces at different sizes must be the same graph, its constants included."""
    nodes, others = list(graph.nodes()), list(other.nodes())
    if [node.kind() for node in nodes] != [node.kind() for node in others]:
        raise UnsupportedExport("the model takes another path for another input size, which TorchScript's trace loses")
    for a, b in zip(nodes, others, strict=True):
        if a.kind() != "prim::Constant":
            continue
        value, second = a.output().toIValue(), b.output().toIValue()
        if repr(value) != repr(second):
            raise UnsupportedExport(
                f"{a.scopeName() or 'the model'} freezes {value!r}, computed from an input's size, into the graph; "
                "write it with tensor operations on `tensor.shape[n]`"
            )


def _numbered(meta: Tensor, number: int) -> Tensor:
    """A tensor of that dtype and shape whose storage is cut to eight bytes, which hold `number`."""
    import torch

    tensor = torch.empty(meta.shape, dtype=meta.dtype)
    storage = tensor.untyped_storage()
    storage.resize_(8)
    storage.copy_(torch.tensor([number], dtype=torch.int64).untyped_storage())
    return torch.nn.Parameter(tensor, False) if isinstance(meta, torch.nn.Parameter) else tensor


def _fill(archive: zipfile.ZipFile, path: Path, sources: Sequence[_Source], progress: Progress) -> None:
    """Copy the archive with storage n replaced by source n."""
    done, total = 0, sum(source.nbytes for source in sources)
    progress("torchscript", 0, total)
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as target:
        for entry in archive.infolist():
            name = entry.filename
            if name.endswith((".debug_pkl", "/.data/serialization_id")):
                continue
            record = zipfile.ZipInfo(name)  # dated 1980: the same model gives the same bytes
            if "/data/" not in name:
                data = archive.read(entry)
                if name.endswith("/data.pkl"):
                    data = _resized(data, sources)
                elif name.endswith(".py"):
                    data = data.replace(b'torch.device("meta")', b'torch.device("cpu")')
                record.file_size = len(data)
                _align(record, stream.tell())
                target.writestr(record, data)
                continue
            source = sources[int(name.rpartition("/")[2])]
            record.file_size = source.nbytes
            _align(record, stream.tell())
            with target.open(record, "w") as part:
                for chunk in source.chunks():
                    part.write(chunk)
                    done += chunk.nbytes
                    progress("torchscript", done, total)


def _align(record: zipfile.ZipInfo, offset: int) -> None:
    """Pad the local header at `offset` (30 bytes, the name, 20 more in zip64) so that its data is aligned."""
    zip64 = 20 if record.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0
    end = offset + 30 + len(record.filename.encode()) + zip64 + 4
    padding = -end % _ALIGNMENT
    record.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding


def _resized(pickle: bytes, sources: Sequence[_Source]) -> bytes:
    """The pickle of the module with the number of elements of storage n taken from source n.

    A storage is the persistent id ("storage", type, key, device, number of elements), once per storage, keys counting.
    """
    result, copied, number = bytearray(), 0, 0
    operations = [(code.name, position or 0) for code, _, position in pickletools.genops(pickle)]
    for before, tuple_, current in zip(operations, operations[1:], operations[2:], strict=False):
        if current[0] == "BINPERSID":
            result += pickle[copied : before[1]]
            result += struct.pack("<BBq", 0x8A, 8, sources[number].numel)  # LONG1
            copied, number = tuple_[1], number + 1
    if number != len(sources):
        raise RuntimeError(f"torch wrote {number} storages in its pickle and {len(sources)} in its archive")
    return bytes(result + pickle[copied:])


class TorchScript:
    """The format `torchscript`, with one archive for each part of a model."""

    name = "torchscript"
    options = Options

    def of_types(self, types: Sequence[str]) -> Options:
        """Of the first type: an archive holds one."""
        return Options(dtype=types[0])

    def check_request(self, options: Options) -> None:
        if options.dtype not in FLOATS:
            raise InputError(f"torchscript has no type {options.dtype}; it has f32, f16 and bf16")

    def refusal(self, family: Family, task: Task, part: str = WHOLE, config: Any = None) -> str:
        """Every module that can be traced has an archive."""
        return ""

    def bytes_needed(self, model: Model, options: Options) -> float:
        """Parts share no file, so a weight of two parts counts twice."""
        return sum(elements(part) for part in model.parts) * BYTES_PER_WEIGHT.get(options.dtype, 0.0)

    def write(self, model: Model, folder: Path, options: Options, progress: Progress) -> list[Artifact]:
        return write(model, folder, options.dtype, progress)


FORMAT = TorchScript()
