"""Frames of a video from where people have it: a file, an address, a folder of pictures, a list of them, an array.

A file is decoded by PyAV (`pip install isoform[video]`), frame by frame as transformers' pipeline does it, and no
further than the last frame that is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.preprocess.download import ADDRESSES, fetch
from isoform.runtimes.preprocess.image.pictures import is_image, load_image
from isoform.runtimes.preprocess.image.processor import is_array
from isoform.runtimes.preprocess.shared import content_of, is_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOWNLOAD = 2**30  # bytes of a video from the network at most


def sampled(source: Any, wanted: Sequence[int], timeout: float | None = None) -> list[Any]:
    """The frames of these numbers, in rising order, as arrays (H, W, 3) or PIL pictures.

    Raises InputError for what is no video or is broken, and for one that is too short.
    """
    chosen, name = set(wanted), _name(source)
    found = [frame for n, frame in enumerate(islice(_frames(source, name, timeout), wanted[-1] + 1)) if n in chosen]
    if len(found) < len(wanted):
        raise InputError(
            f"{name} has too few frames: the model reads {len(wanted)}, up to number {wanted[-1] + 1}, and "
            f"{len(found)} of these are there; give a longer video, or a smaller frame_sampling_rate"
        )
    return found


def is_video(source: Any) -> bool:
    """Whether this is one video: a file or a folder, frames (T, H, W, C), or a list of PIL pictures or arrays."""
    if isinstance(source, str | Path | bytes) or is_file(source):
        return True
    if len(getattr(source, "shape", ())) == 4:
        return True
    return isinstance(source, list | tuple) and bool(source) and all(_is_frame(one) for one in source)


def _is_frame(one: Any) -> bool:
    return is_array(one) or (is_image(one) and not isinstance(one, str | Path | bytes) and not is_file(one))


def _name(source: Any) -> str:
    return f"{str(source)[:120]}" if isinstance(source, str | Path) else "the video"


def _frames(source: Any, name: str, timeout: float | None) -> Iterator[Any]:
    if len(getattr(source, "shape", ())) == 4:
        return iter(np.asarray(source))
    if isinstance(source, list | tuple):
        return (one if is_array(one) else load_image(one, timeout) for one in source)
    if isinstance(source, bytes) or is_file(source):
        return _decoded(BytesIO(source if isinstance(source, bytes) else content_of(source, name)), name)
    if str(source).startswith(ADDRESSES):
        content = BytesIO()
        fetch(str(source), content, DOWNLOAD, timeout)
        return _decoded(content, name)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _pictures(path)
        there = path.is_file()
    except (OSError, ValueError):  # too long for a path, or a byte 0 in it
        there = False
    if not there:
        raise InputError(f"{name} is not there; give the path of a video, or of a folder with its frames as pictures")
    return _decoded(path, name)


def _pictures(folder: Path) -> Iterator[Any]:
    """The pictures of a folder, their numbers in order: frame_2.png comes before frame_10.png."""
    from PIL import Image

    known = Image.registered_extensions()
    found = sorted((one for one in folder.iterdir() if one.suffix.lower() in known and one.is_file()), key=_numbered)
    if not found:
        raise InputError(f"{folder} has no pictures; put the frames of the video there, as PNG or JPEG files")
    return (load_image(one) for one in found)


def _numbered(path: Path) -> list[tuple[int, str]]:
    """A key of a name in which digits count as numbers."""
    parts: Iterable[str] = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _decoded(file: Path | BytesIO, name: str) -> Iterator[NDArray[np.uint8]]:
    try:
        import av
    except ImportError:
        raise InputError(
            f"{name} can be decoded by PyAV only, which is not installed: pip install isoform[video] (or av); a folder "
            "or a list of its frames needs nothing"
        ) from None
    try:
        with av.open(str(file) if isinstance(file, Path) else file, "r") as container:
            if not container.streams.video:
                raise InputError(f"{name} has no pictures in it; give a video")
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot be decoded ({reason:.120}); it is damaged, or no video") from None
