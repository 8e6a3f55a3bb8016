"""Writes safetensors files piece by piece, in shards of at most 5 GB, so that no whole tensor need be in memory.

A file is the one that the safetensors library would write, byte for byte; shards and their index are named as the Hub
names them. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from isoform.errors import CheckpointError
from isoform.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**21  # elements in memory at a time
SHARD = 5 * 10**9  # bytes of tensors in one file: transformers' limit, below that of every file system in use
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# In which the safetensors library writes them.
_ORDER = (
    *("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)

Rows = Callable[[int, int], "Tensor"]
"""Start and stop along the first axis -> that part of a tensor."""


@dataclass(frozen=True, slots=True)
class HubTensor:
    """One tensor to be written as `dtype`. `release` may drop what was read; `finite`: other values are refused."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Rows
    release: Callable[[], None]
    finite: bool

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[Tensor]:
        """The tensor in parts of at most `PIECE` elements (or one row), on the CPU."""
        import torch

        step = max(1, PIECE // max(1, prod(self.shape[1:])))
        for start in range(0, self.shape[0] if self.shape else 1, step):
            piece = self.rows(start, start + step)
            result = piece.to("cpu", self.dtype)
            if self.finite and not torch.isfinite(result).all():
                raise CheckpointError(self._not_finite(piece))
            yield result.contiguous()
            self.release()

    def _not_finite(self, piece: Tensor) -> str:
        import torch

        if not torch.isfinite(piece).all():
            return f"{self.name} holds values that are not finite; fetch the checkpoint again"
        largest, label = piece.abs().max().item(), str(self.dtype).removeprefix("torch.")
        return f"{self.name} holds {largest:g}, which {label} cannot; take float32 or bfloat16"


def write_safetensors(
    folder: Path, entries: Sequence[HubTensor], *, shard: int = SHARD, progress: Progress | None = None
) -> None:
    """Write model.safetensors, or shards and an index when the tensors are larger than `shard` bytes together."""
    report = progress or (lambda text, done, total: None)
    total, done = sum(entry.nbytes for entry in entries), 0
    groups = _shards(entries, shard)
    where: dict[str, str] = {}
    for n, group in enumerate(groups, 1):
        file = WEIGHTS if len(groups) == 1 else f"model-{n:05}-of-{len(groups):05}.safetensors"
        for count in _write(folder / file, group):
            done += count
            report("weights", done, total)
        where |= {entry.name: file for entry in group}
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_back(folder: Path, entries: Sequence[HubTensor], *, progress: Progress | None = None) -> None:
    """Compare what was written to `folder` with the entries, bit for bit. Raises CheckpointError for what differs."""
    import torch

    from isoform.reference.checkpoints.opening import open_checkpoint

    report = progress or (lambda text, done, total: None)
    opened = open_checkpoint(folder)
    if extra := sorted(opened.keys() ^ {entry.name for entry in entries}):
        raise CheckpointError(f"{folder}: {extra[0]} is not where it was written; is the disk sound?")
    for n, entry in enumerate(entries):
        report("reading back", n, len(entries))
        start = 0
        for piece in entry.pieces():
            stop = start + (len(piece) if entry.shape else 1)
            held = opened.rows(entry.name, start, stop)
            same = held.shape == piece.shape and held.dtype == piece.dtype
            if not same or not torch.equal(
                held.contiguous().view(-1).view(torch.uint8), piece.view(-1).view(torch.uint8)
            ):
                raise CheckpointError(f"{folder}: {entry.name} reads back as other values than were written")
            start = stop
        opened.release(entry.name)
    report("reading back", len(entries), len(entries))


def _shards(entries: Sequence[HubTensor], limit: int) -> list[list[HubTensor]]:
    """The entries in order, in groups of at most `limit` bytes; a larger tensor has a group of its own."""
    groups: list[list[HubTensor]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    return groups


def _write(path: Path, entries: Sequence[HubTensor]) -> Iterator[int]:
    """Write one file; gives the bytes of each piece when they are written."""
    import torch

    from isoform.reference.checkpoints.dtypes import DTYPE_NAMES

    ordered = sorted(entries, key=lambda entry: (_ORDER.index(DTYPE_NAMES[entry.dtype]), entry.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            written = 0
            for piece in entry.pieces():
                written += stream.write(piece.flatten().view(torch.uint8).numpy().data)
                yield piece.nbytes
            if written != entry.nbytes:
                raise RuntimeError(f"{entry.name} came out as {written} bytes, not {entry.nbytes}")
