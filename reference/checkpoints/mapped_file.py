"""A file whose bytes are read through a memory map, as torch tensors."""

from __future__ import annotations

import mmap
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class MappedFile:
    """Maps the file on first use, copy-on-write: torch needs writable memory, and the file does not change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None

    @property
    def bytes(self) -> mmap.mmap:
        """The whole file."""
        if self._map is None:
            with self.path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map

    def view(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The tensor at `offset`, a view of the map; a copy where the offset is not aligned for `dtype`."""
        import torch

        count = prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:  # files of old writers; torch needs aligned memory
            raw = torch.frombuffer(self.bytes, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self.bytes, dtype=dtype, count=count, offset=offset).view(shape)

    def release(self, offset: int, nbytes: int) -> None:
        """Let the kernel drop the whole pages among these bytes; they can be read again."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, start, length)
