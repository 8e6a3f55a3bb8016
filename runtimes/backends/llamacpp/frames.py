"""The messages between a session and its worker: a JSON object and any number of raw byte blocks, over a pipe."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

Buffer = bytes | bytearray | memoryview


def send(pipe: BinaryIO, message: dict[str, Any], blocks: Sequence[Buffer] = ()) -> None:
    """Write the length of the JSON text (4 bytes, little-endian), the text, then the blocks."""
    text = json.dumps({**message, "blocks": [memoryview(block).nbytes for block in blocks]}).encode()
    pipe.write(struct.pack("<I", len(text)) + text)
    for block in blocks:
        pipe.write(block)
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], list[bytearray]]:
    """Read what `send` wrote; EOFError when the other side is gone."""
    (length,) = struct.unpack("<I", _read(pipe, 4))
    message: dict[str, Any] = json.loads(_read(pipe, length))
    return message, [_read(pipe, size) for size in message.pop("blocks")]


def _read(pipe: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = pipe.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other side of the pipe is gone")
        rest = rest[count:]
    return data
