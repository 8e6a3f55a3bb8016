"""Pictures from where people have them: a path, an address, base64, bytes, or a PIL picture; always RGB and upright.

As transformers' `load_image` does: the EXIF orientation is applied, of an animation the first frame is taken, and
Pillow's `convert("RGB")` drops transparency and cuts 16 bits to 8.
"""

from __future__ import annotations

import base64
import binascii
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoform.errors import InputError
from isoform.runtimes.preprocess.download import ADDRESSES, fetch
from isoform.runtimes.preprocess.shared import content_of, is_file, lock_of

if TYPE_CHECKING:
    from PIL.Image import Image

DOWNLOAD = 64 * 2**20  # bytes of a picture from the network at most


def load_image(source: Any, timeout: float | None = None) -> Image:
    """The picture as RGB. Raises InputError with what is wrong: no such file, no picture, a broken or a huge one."""
    from PIL import Image as images
    from PIL import ImageOps, UnidentifiedImageError

    name = _name(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", images.DecompressionBombWarning)  # twice that size is an error, below
        try:
            if isinstance(source, images.Image):
                with lock_of(source):  # a picture that is opened and not decoded yet may be given twice
                    return ImageOps.exif_transpose(source).convert("RGB")
            with images.open(_stream(source, timeout)) as picture:
                return ImageOps.exif_transpose(picture).convert("RGB")
        except InputError:
            raise
        except images.DecompressionBombError:
            limit = 2 * (images.MAX_IMAGE_PIXELS or 0)
            raise InputError(f"{name} has more than {limit:,} pixels, too many to decode; make it smaller") from None
        except UnidentifiedImageError:
            raise InputError(f"{name} is no picture that Pillow can read; give PNG, JPEG, WebP, GIF, …") from None
        except Exception as error:  # noqa: BLE001  (decoders raise OSError, ValueError, SyntaxError, struct.error, …)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{name} cannot be decoded ({reason}); it is damaged or incomplete") from None


def is_image(source: Any) -> bool:
    """Whether this is one picture in a form that `load_image` takes (a text may still be no file)."""
    from PIL.Image import Image

    return isinstance(source, str | Path | bytes | Image) or is_file(source)


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        text = str(source)
        return text if len(text) <= 120 else f"{text[:60]}… ({len(text)} characters)"
    return "the picture"


def _stream(source: Any, timeout: float | None) -> Path | BytesIO:
    """What Pillow can open."""
    if is_file(source):
        source = content_of(source, "the picture")
    if isinstance(source, bytes):
        return BytesIO(source)
    if isinstance(source, str) and source.startswith(ADDRESSES):
        content = BytesIO()
        fetch(source, content, DOWNLOAD, timeout)
        return content
    if not isinstance(source, str | Path):
        raise InputError(
            f"a picture is a path, an address, base64, bytes, an opened file or a PIL picture, not {source!r:.80}"
        )
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        if path.is_dir():
            raise InputError(f"{source} is a folder; give a picture in it")
    except (OSError, ValueError, RuntimeError):
        path = None  # too long for a path, or a byte 0 in it: base64, if anything
    text = str(source)
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    elif path is not None and len(text) < 512 and (path.suffix or "/" in text[:1]):
        raise InputError(f"{source} is not there; give the path of a picture")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise InputError(f"{_name(source)} is neither a file, an address (http:// or https://) nor base64")
    return BytesIO(data)
