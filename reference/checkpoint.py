"""A checkpoint: a lazy mapping from tensor name to tensor, with the configuration and tokenizer files beside it.

Reads a folder in the Hub's layout (safetensors, sharded or whole; `.bin` through torch's restricted unpickler), a Hub
id (downloaded once into huggingface_hub's cache) or a `.gguf` file. Nothing is read before it is asked for, tensors
are views of a memory map, and no code of a checkpoint ever runs.

Format of safetensors: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from isoform.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "U8": torch.uint8,
}
"""safetensors' dtype names and torch's."""

SIDECARS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""The small files that travel with a model."""

_MAX_HEADER = 100 * 2**20  # the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes at `offset` of `path`; `dtype` is safetensors' name (or ggml's, in a GGUF);
    an offset of -1 means that the bytes in the file are not the tensor's."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


class Checkpoint(Mapping[str, Tensor]):
    """Names and tensors, `config` (the parsed config.json) and the `folder` of the files beside the weights.

    `canonical`: the names are isoform's already (a GGUF's are translated as it is opened), not the Hub's.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    canonical: bool = False

    @abstractmethod
    def info(self, key: str) -> TensorInfo:
        """Where the tensor lies, without reading it."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that hold the weights."""

    def release(self, key: str) -> None:
        """Let the kernel drop the mapped pages of a tensor that has been read; it can be read again."""

    def read_json(self, name: str) -> Any:
        """A parsed JSON file beside the weights, or None when there is none."""
        return read_json(self.folder / name)

    def read_text(self, name: str) -> str | None:
        """A text file beside the weights, or None when there is none."""
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def sidecars(self) -> list[Path]:
        """The configuration and tokenizer files that are there, in the order of `SIDECARS`."""
        return [path for name in SIDECARS if (path := self.folder / name).is_file()]


def read_json(path: Path) -> Any:
    """Parse a JSON file; None when it is missing, CheckpointError when it is not JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch the checkpoint again") from None


class _Mapped:
    """One safetensors file, its header checked against its size and its data mapped on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        self._map: mmap.mmap | None = None

    def view(self, info: TensorInfo) -> Tensor:
        dtype = DTYPES[info.dtype]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        if self._map is None:
            with self.path.open("rb") as stream:  # copy-on-write: torch wants writable memory, the file stays as it is
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(self._map, dtype=dtype, count=prod(info.shape), offset=info.offset)
        return flat.view(info.shape)

    def release(self, info: TensorInfo) -> None:
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, each checked to lie inside the file and to be as long as its shape says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8 or length > _MAX_HEADER:
                raise CheckpointError(f"{path} is truncated or no safetensors file; fetch it again")
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable safetensors header ({error}); fetch it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has no readable safetensors header; fetch it again")
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
            sound = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)) and begin <= end
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise CheckpointError(f"{path}: the header entry of {name} is malformed; fetch the file again")
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{path}: {name} has dtype {dtype}, which isoform does not read; convert the checkpoint to BF16"
            )
        if end - begin != prod(shape) * DTYPES[dtype].itemsize:
            raise CheckpointError(f"{path}: {name} {list(shape)} {dtype} does not fill its {end - begin} bytes")
        if 8 + length + end > size:
            raise CheckpointError(
                f"{path} is truncated: {name} ends at byte {8 + length + end}, the file at {size}; fetch it again"
            )
        tensors[name] = TensorInfo(dtype, shape, path, 8 + length + begin, end - begin)
    return tensors


class SafetensorsCheckpoint(Checkpoint):
    """A folder whose weights are safetensors files."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], shards: Mapping[str, str] | None) -> None:
        """`shards` is the index's weight map (tensor -> file), or None for the one file model.safetensors."""
        self.folder, self.name, self.config = folder, name, config
        paths = sorted(set(shards.values())) if shards is not None else ["model.safetensors"]
        for path in paths:
            if not (folder / path).is_file():
                raise CheckpointError(f"{folder}: the index names {path}, which is missing; fetch the checkpoint again")
        files = {path: _Mapped(folder / path) for path in paths}
        self._files = list(files.values())
        self._where: dict[str, _Mapped] = {}
        if shards is None:
            self._where = dict.fromkeys(self._files[0].tensors, self._files[0])
        for key, path in (shards or {}).items():
            if key not in files[path].tensors:
                raise CheckpointError(f"{folder}: the index places {key} in {path}, which does not hold it")
            self._where[key] = files[path]

    def __getitem__(self, key: str) -> Tensor:
        return self._where[key].view(self.info(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def info(self, key: str) -> TensorInfo:
        return self._where[key].tensors[key]

    def release(self, key: str) -> None:
        self._where[key].release(self.info(key))

    def files(self) -> list[Path]:
        return [file.path for file in self._files]


class PickleCheckpoint(Checkpoint):
    """A folder whose weights are `.bin` files, read by torch's restricted unpickler, which runs no code."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], shards: Mapping[str, str] | None) -> None:
        self.folder, self.name, self.config = folder, name, config
        self._paths = [folder / p for p in sorted(set(shards.values()))] if shards else [folder / "pytorch_model.bin"]
        self._tensors: dict[str, tuple[Tensor, Path]] = {}
        for path in self._paths:
            for key, value in _unpickle(path).items():
                if not isinstance(value, Tensor):
                    raise CheckpointError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
                self._tensors[str(key)] = (value, path)
        for key in shards or {}:
            if key not in self._tensors:
                raise CheckpointError(f"{folder}: the index names {key}, which no file holds; fetch it again")

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, key: str) -> TensorInfo:
        tensor, path = self._tensors[key]
        names = {dtype: name for name, dtype in DTYPES.items()}
        if tensor.dtype not in names:
            raise CheckpointError(f"{path}: {key} has dtype {tensor.dtype}, which isoform does not read")
        return TensorInfo(names[tensor.dtype], tuple(tensor.shape), path, -1, tensor.nbytes)

    def files(self) -> list[Path]:
        return self._paths


def _unpickle(path: Path) -> Mapping[Any, Any]:
    import pickle
    import zipfile

    if not path.is_file():
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds a pickle that is more than tensors, which isoform never runs ({_first_line(error)}); "
            "ask its author for safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); fetch it again") from None
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not named tensors")
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_index(path: Path) -> dict[str, str] | None:
    """The weight map of an index, every file name checked to stay in the folder."""
    index = read_json(path)
    if index is None:
        return None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files; fetch the checkpoint again")
    for file in set(shards.values()):
        pure = PurePosixPath(file)
        if pure.is_absolute() or ".." in pure.parts or PureWindowsPath(file).drive or "\\" in file or not pure.parts:
            raise CheckpointError(f"{path} points outside its folder ({file!r}); the checkpoint is not to be trusted")
    return shards


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Open a folder, a `.gguf` file or a Hub id; the keyword arguments are for Hub ids.

    Raises CheckpointError when there is nothing to open, or a file is truncated, malformed or unsafe.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            from isoform.reference.gguf_file import GgufCheckpoint

            return GgufCheckpoint(path)
        raise CheckpointError(f"{path} is not a checkpoint; give its folder, a .gguf file or a Hub id")
    if path.is_dir():
        return _open_folder(path, str(source))
    from isoform.reference.hub import download

    folder = download(str(source), revision=revision, token=token, cache_dir=cache_dir, offline=offline)
    return _open_folder(folder, str(source))


def _open_folder(folder: Path, name: str) -> Checkpoint:
    config = read_json(folder / "config.json")
    if config is None:
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f"; it holds {ggufs[0]}: open that file" if ggufs else "; give a checkpoint in the Hub's layout"
        raise CheckpointError(f"{folder} has no config.json{hint}")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json holds a {type(config).__name__}, not an object; fetch it again")
    if (folder / "model.safetensors").is_file():
        return SafetensorsCheckpoint(folder, name, config, None)
    if (shards := _read_index(folder / "model.safetensors.index.json")) is not None:
        return SafetensorsCheckpoint(folder, name, config, shards)
    if (folder / "pytorch_model.bin").is_file():
        return PickleCheckpoint(folder, name, config, None)
    if (shards := _read_index(folder / "pytorch_model.bin.index.json")) is not None:
        return PickleCheckpoint(folder, name, config, shards)
    raise CheckpointError(f"{folder} holds no weights (model.safetensors, its index, or pytorch_model.bin)")
