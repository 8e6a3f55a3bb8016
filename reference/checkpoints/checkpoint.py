"""A checkpoint: a lazy mapping from tensor name to tensor, with the configuration and tokenizer files beside it.

Reads a folder in the Hub's layout (safetensors, sharded or whole; `.bin` through torch's restricted unpickler), a Hub
id (downloaded once into huggingface_hub's cache) or a `.gguf` file. Nothing is read before it is asked for, tensors
are views of a memory map, and no code of a checkpoint ever runs. torch is imported where a tensor is made.

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
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "I8", "U8"), 1),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64"), 8),
}
"""The bytes of one value, by safetensors' names."""

SIDECARS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""The small files that travel with a model."""

HUB_OPTIONS = ("revision", "token", "cache_dir", "offline")
"""The keyword arguments of `open_checkpoint`."""

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


class Checkpoint(Mapping[str, "Tensor"]):
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

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """A part of a tensor along its first axis, without reading the rest; all of a scalar."""
        tensor = self[key]
        return tensor[start:stop] if tensor.dim() else tensor

    def release(self, key: str) -> None:
        """Let the kernel drop the mapped pages of a tensor that has been read; it can be read again."""

    def read_json(self, name: str) -> Any:
        """A parsed JSON file beside the weights, or None when there is none."""
        return read_json(self.folder / name)

    def read_text(self, name: str) -> str | None:
        """A text file beside the weights, or None when there is none."""
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not readable text ({first_line(error)}); fetch it again") from None

    def sidecars(self) -> list[Path]:
        """The configuration and tokenizer files that are there, in the order of `SIDECARS`."""
        return [path for name in SIDECARS if (path := self.folder / name).is_file()]


def read_json(path: Path) -> Any:
    """Parse a JSON file; None when it is missing, CheckpointError when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read by this user; change its permissions") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not readable JSON ({reason}); fetch the checkpoint again") from None


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Mapped:
    """One safetensors file, its header checked against its size and its data mapped on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        self._map: mmap.mmap | None = None

    def view(self, info: TensorInfo) -> Tensor:
        import torch

        from isoform.reference.checkpoints.dtypes import DTYPES

        dtype = DTYPES[info.dtype]
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        if self._map is None:
            with self.path.open("rb") as stream:  # copy-on-write: torch wants writable memory, the file stays as it is
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        if info.offset % dtype.itemsize:  # files of old writers; torch wants aligned memory, so these are copied
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=info.nbytes, offset=info.offset)
            return raw.clone().view(dtype).view(info.shape)
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
    """The tensors of a safetensors file, in the order of their bytes.

    Each is checked to be as long as its shape says, and all together to fill the file without gap or overlap.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8 or length > _MAX_HEADER:
                raise CheckpointError(f"{path} is truncated or no safetensors file; fetch it again")
            header = json.loads(stream.read(length), object_pairs_hook=_no_repeats)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again") from None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read by this user; change its permissions") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} has no readable safetensors header ({reason}); fetch it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has no readable safetensors header; fetch it again")
    header.pop("__metadata__", None)
    tensors = [_entry(path, name, entry, 8 + length) for name, entry in header.items()]
    end = 8 + length
    for name, info in sorted(tensors, key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            raise CheckpointError(f"{path}: {name} begins at byte {info.offset}, not at {end}; fetch the file again")
        end += info.nbytes
    if end > size:
        raise CheckpointError(f"{path} is truncated: its tensors end at byte {end}, the file at {size}; fetch it again")
    if end < size:
        raise CheckpointError(f"{path} has {size - end} bytes that belong to no tensor; fetch it again")
    return dict(tensors)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, or ValueError when it names something twice (the last one would win in silence)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(path: Path, name: str, entry: Any, start: int) -> tuple[str, TensorInfo]:
    """One tensor of a header; `start` is where the data begins."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        sound = sound and begin <= end and prod(max(n, 1) for n in shape) < 2**60
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or not name.isprintable():
        raise CheckpointError(f"{path}: the header entry of {name!r} is malformed; fetch the file again")
    if dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{path}: {name} has dtype {dtype!r}, which isoform does not read; convert the checkpoint to BF16"
        )
    if end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{path}: {name} {list(shape)} {dtype} does not fill its {end - begin} bytes")
    return name, TensorInfo(dtype, shape, path, start + begin, end - begin)


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
        self._where = {key: file for file in self._files for key in file.tensors}
        for key, path in (shards or {}).items():
            if key not in files[path].tensors:
                raise CheckpointError(f"{folder}: the index places {key!r} in {path}, which does not hold it")
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
        import torch

        from isoform.reference.checkpoints.dtypes import DTYPE_NAMES

        self.folder, self.name, self.config = folder, name, config
        self._paths = [folder / p for p in sorted(set(shards.values()))] if shards else [folder / "pytorch_model.bin"]
        self._tensors: dict[str, tuple[Tensor, Path]] = {}
        for path in self._paths:
            for key, value in _unpickle(path).items():
                if not isinstance(key, str) or not key.isprintable() or not isinstance(value, torch.Tensor):
                    raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor with a name")
                if value.layout != torch.strided or value.device.type != "cpu":
                    raise CheckpointError(f"{path}: {key} is no plain tensor ({value.layout}, {value.device})")
                if value.dtype not in DTYPE_NAMES:
                    raise CheckpointError(f"{path}: {key} has dtype {value.dtype}, which isoform does not read")
                self._tensors[key] = (value.detach(), path)
        for key in shards or {}:
            if key not in self._tensors:
                raise CheckpointError(f"{folder}: the index names {key!r}, which no file holds; fetch it again")

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def info(self, key: str) -> TensorInfo:
        from isoform.reference.checkpoints.dtypes import DTYPE_NAMES

        tensor, path = self._tensors[key]
        return TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), path, -1, tensor.nbytes)

    def files(self) -> list[Path]:
        return self._paths


def _unpickle(path: Path) -> Mapping[Any, Any]:
    import pickle
    import warnings
    import zipfile

    import torch

    if not path.is_file():
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols: what matters is raised
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds a pickle that is more than tensors, which isoform never runs ({first_line(error)}); "
            "ask its author for safetensors"
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); fetch it again") from error
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not named tensors")
    return data


def _read_index(path: Path) -> dict[str, str] | None:
    """The weight map of an index (None without one), every file name checked to stay in the folder."""
    index = read_json(path)
    if index is None:
        return None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files; fetch the checkpoint again")
    for file in sorted(set(shards.values())):
        pure = PurePosixPath(file)
        inside = pure.parts and not pure.is_absolute() and ".." not in pure.parts and file.isprintable()
        if not inside or "\\" in file or PureWindowsPath(file).drive:
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
    if not str(source):
        raise CheckpointError("the name of the checkpoint is empty; give a folder, a .gguf file or a Hub id")
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that nobody has
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{source} cannot be opened ({reason})") from None
    if is_file:
        if path.suffix == ".gguf":
            from isoform.reference.checkpoints.gguf_file import GgufCheckpoint

            return GgufCheckpoint(path)
        raise CheckpointError(f"{path} is not a checkpoint; give its folder, a .gguf file or a Hub id")
    if is_folder:
        return _open_folder(path, str(source))
    from isoform.reference.checkpoints.hub import download

    folder = download(str(source), revision=revision, token=token, cache_dir=cache_dir, offline=offline)
    return _open_folder(folder, str(source))


def _open_folder(folder: Path, name: str) -> Checkpoint:
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    hint = f"it holds {ggufs[0]}: open that file" if ggufs else "give a checkpoint in the Hub's layout"
    config = read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{name} has no config.json; {hint}")
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: config.json holds a {type(config).__name__}, not an object; fetch it again")
    if (folder / "model.safetensors").is_file():
        return SafetensorsCheckpoint(folder, name, config, None)
    if (shards := _read_index(folder / "model.safetensors.index.json")) is not None:
        return SafetensorsCheckpoint(folder, name, config, shards)
    if (folder / "pytorch_model.bin").is_file():
        return PickleCheckpoint(folder, name, config, None)
    if (shards := _read_index(folder / "pytorch_model.bin.index.json")) is not None:
        return PickleCheckpoint(folder, name, config, shards)
    raise CheckpointError(f"{name} holds no weights (model.safetensors, its index, or pytorch_model.bin); {hint}")
