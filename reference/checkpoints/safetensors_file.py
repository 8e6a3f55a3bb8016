"""Reads safetensors files: one file's header and tensors, and a folder of them as a checkpoint.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import CheckpointError
from isoform.reference.checkpoints.checkpoint import ITEM_BYTES, Checkpoint, TensorInfo, first_line
from isoform.reference.checkpoints.mapped_file import MappedFile

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 100 * 2**20  # the limit of the safetensors library


class _MappedShard:
    """One safetensors file, its header checked against its size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        self._mapped = MappedFile(path)

    def view(self, info: TensorInfo) -> Tensor:
        from isoform.reference.checkpoints.dtypes import DTYPES

        return self._mapped.view(info.offset, DTYPES[info.dtype], info.shape)

    def release(self, info: TensorInfo) -> None:
        self._mapped.release(info.offset, info.nbytes)


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
        files = {path: _MappedShard(folder / path) for path in paths}
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
