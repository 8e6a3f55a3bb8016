"""Pictures as a model wants them: resized, cropped, scaled and normalised, as transformers' Pillow processors do it.

transformers has a second family of processors, built on torchvision, which gives slightly other pixels; the Pillow
ones are the truth here, bit for bit. The settings come from preprocessor_config.json, in the spelling of any version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.json_files import read_object
from isoform.runtimes.devices import cpus
from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.runtimes.preprocess.known_settings import account_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

FILES = ("processor_config.json", "preprocessor_config.json")
READ = (
    *("crop_size", "default_to_square", "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"),
    *("image_mean", "image_std", "resample", "rescale_factor", "size", "use_square_size"),
)
UNREAD = ("image_seq_length", "image_token")  # of texts with pictures
ONLY: Mapping[str, tuple[Any, ...]] = {
    "data_format": ("channels_first",),
    "do_flip_channel_order": (False,),
    "do_pad": (False,),
    "do_reduce_labels": (False,),
}
LARGEST = 2**28  # values of a resized picture: a narrow one may become very long


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """`size` and `crop` have the Hub's keys; `crop`, `scale` and `mean` are None where the step is left out.

    `others`: what another kind of processor reads besides.
    """

    size: Mapping[str, int] | None
    resample: int
    crop: tuple[int, int] | None
    scale: float | None
    mean: tuple[float, ...] | float | None
    std: tuple[float, ...] | float
    convert: bool
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, facts: Mapping[str, Any], also: Collection[str] = ()) -> ImageSettings:
        """`facts` of the model, of which "image_processor" has the defaults; `also`: settings that the caller reads.

        Raises CheckpointError for a file that is missing or wrong, UnsupportedModel for another processor.
        """
        found = described(folder)
        kind: Mapping[str, Any] = facts.get("image_processor", {"refused": "it describes no image processor"})
        if "refused" in kind:
            raise UnsupportedModel(f"{folder}: {kind['refused']}")
        account_settings(found, str(folder / FILES[1]), read=(*READ, *also), harmless=UNREAD, only=ONLY)
        stated = {key: False if value is None and key.startswith("do_") else value for key, value in found.items()}
        given = {**kind} | {key: value for key, value in stated.items() if value is not None}
        if found.get("use_square_size"):
            given["size"] = given["size"] if isinstance(given["size"], int) else 224
            given["default_to_square"] = True
        try:
            read = cls(
                size=_size(given["size"], given.get("default_to_square", True)) if given["do_resize"] else None,
                resample=_whole(given["resample"], 5),
                crop=_crop(given["crop_size"]) if given.get("do_center_crop") else None,
                scale=_finite(given.get("rescale_factor", 1 / 255)) if given["do_rescale"] else None,
                mean=_numbers(given["image_mean"]) if given["do_normalize"] else None,
                std=_numbers(given["image_std"]),
                convert=bool(given.get("do_convert_rgb")),
                others={name: given.get(name) for name in also},
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else f"{error!s:.200}"
            raise CheckpointError(
                f"{folder}: the settings of its image processor make no sense ({reason!s:.200})"
            ) from None
        if isinstance(read.mean, tuple) and isinstance(read.std, tuple) and len(read.mean) != len(read.std):
            raise CheckpointError(
                f"{folder}: image_mean has {len(read.mean)} numbers, image_std has {len(read.std)}; correct the file"
            )
        return read


def described(folder: Path) -> Mapping[str, Any]:
    """The image processor's own object, which processor_config.json may hold inside."""
    inside = read_object(folder / FILES[0]).get("image_processor")
    if isinstance(inside, Mapping):
        return inside
    if not (folder / FILES[1]).is_file():
        raise CheckpointError(f"{folder} has no {FILES[1]}; put the one of the model's repository there")
    return read_object(folder / FILES[1])


def _size(value: Any, square: bool) -> dict[str, int]:
    if isinstance(value, Mapping):
        return {str(key): _whole(edge) for key, edge in value.items() if edge is not None}
    if isinstance(value, Sequence):
        height, width = value
        return {"height": _whole(height), "width": _whole(width)}
    return {"height": _whole(value), "width": _whole(value)} if square else {"shortest_edge": _whole(value)}


def _crop(value: Any) -> tuple[int, int]:
    size = _size(value, True)
    return size["height"], size["width"]


def _whole(value: Any, most: int = 2**15) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r:.40} is no whole number up to {most}")
    return value


def _numbers(value: Any) -> tuple[float, ...] | float:
    if isinstance(value, Sequence) and not value:
        raise ValueError("a mean or deviation of no channel")
    return tuple(map(_finite, value)) if isinstance(value, Sequence) else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r:.40} is no finite number")
    return number


class ImageProcessor:
    """Pictures (PIL, or arrays of 2 or 3 axes) to float32 arrays (C, H, W). Safe to share between threads.

    `also`: the settings that this kind of processor reads besides.
    """

    also: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.settings = ImageSettings.read(Path(folder), facts, self.also)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder describes an image processor."""
        return any((folder / name).is_file() for name in FILES)

    def __call__(self, images: Sequence[Any]) -> list[NDArray[np.float32]]:
        """One array per picture; several are prepared at the same time."""
        return _together(self.one, images)

    def load(self, sources: Sequence[Any], timeout: float | None = None) -> list[NDArray[np.float32]]:
        """One array per source that `load_image` takes, or array of pixels; several are decoded at the same time."""
        return _together(lambda source: self.one(_opened(source, timeout)), sources)

    def one(self, image: Any) -> NDArray[np.float32]:
        """Raises InputError for what is no picture, or one that the settings cannot be applied to."""
        from PIL.Image import Image

        s = self.settings
        if isinstance(image, Image):
            pixels = self._resized_picture(rgb_picture(image) if s.convert else image)
        else:
            pixels = self._resized_array(channels_last(np.asarray(image), s.convert))
        if s.crop is not None:
            pixels = _cropped(pixels, *s.crop)
        return self.values(pixels)

    def _resized_picture(self, image: Image) -> NDArray[Any]:
        """(H, W, C), after resizing."""
        if self.settings.size is not None:
            height, width = self._target(image.height, image.width)
            if image.mode not in ("RGB", "L", "RGBA"):  # an array comes before the resizing, which it cannot undergo
                pixels = np.asarray(image)
                image = from_array(pixels.astype(np.float64) * 255 if _is_unit(pixels) else pixels)
            image = image.resize((width, height), self.settings.resample)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def _resized_array(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """(H, W, C) -> (H, W, C); values between 0 and 1 are resized as bytes, as Pillow has no other pictures."""
        if self.settings.size is None:
            return pixels
        height, width = self._target(*pixels.shape[:2])
        unit = _is_unit(pixels)
        image = from_array(pixels.astype(np.float64) * 255 if unit else pixels)
        resized = np.asarray(image.resize((width, height), self.settings.resample))
        resized = resized if resized.ndim == 3 else resized[..., None]
        return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if unit else resized

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture of this size is resized to."""
        size = self.settings.size or {}
        short, long = min(height, width), max(height, width)
        if "shortest_edge" in size and "longest_edge" in size:
            edge, raw, most = size["shortest_edge"], None, size["longest_edge"]
            if long / short * edge > most:
                raw = most * float(short) / long
                edge = round(raw)
            if short == edge:
                new = height, width
            else:
                other = int((edge if raw is None else raw) * long / short)
                new = (other, edge) if width < height else (edge, other)
        elif "shortest_edge" in size:
            edge = size["shortest_edge"]
            other = int(edge * long / short)
            new = (other, edge) if width <= height else (edge, other)
        elif "max_height" in size and "max_width" in size:
            scale = min(size["max_height"] / height, size["max_width"] / width)
            new = int(height * scale), int(width * scale)
        elif "height" in size and "width" in size:
            new = size["height"], size["width"]
        else:
            raise CheckpointError(f"{FILES[1]}: size is {dict(size)}; it has height and width, or shortest_edge")
        if min(new) < 1 or new[0] * new[1] * 3 > LARGEST:
            raise InputError(f"a picture of {width} x {height} would become {new[1]} x {new[0]}; crop it first")
        return new

    def values(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(H, W, C) -> scaled and normalised (C, H, W); of bytes there are only 256, which are looked up."""
        channels = pixels.shape[2]
        mean = self.settings.mean
        if isinstance(mean, tuple) and len(mean) != channels:
            raise InputError(
                f"the picture has {channels} channels, the processor normalises {len(mean)}; convert it to RGB"
            )
        planes = np.empty((channels, *pixels.shape[:2]), np.float32)
        for n in range(channels):
            if pixels.dtype == np.uint8:
                table = self._tables[n % len(self._tables)]
                np.take(table, pixels[..., n], out=planes[n], mode="clip")
            else:
                planes[n] = self._scaled(pixels[..., n], n)
        return planes

    @cached_property
    def _tables(self) -> list[NDArray[np.float32]]:
        """What each byte becomes, per channel; one table where all channels are alike."""
        mean, std = self.settings.mean, self.settings.std
        count = max(len(x) if isinstance(x, tuple) else 1 for x in (mean, std))
        every = np.arange(256, dtype=np.uint8)
        return [self._scaled(every, n).astype(np.float32) for n in range(count)]

    def _scaled(self, values: NDArray[Any], channel: int) -> NDArray[Any]:
        """In float64 the scale and in float32 the rest, as transformers does."""
        s = self.settings
        if s.scale is not None:
            values = (values.astype(np.float64) * s.scale).astype(np.float32)
        if s.mean is not None:
            if not np.issubdtype(values.dtype, np.floating):
                values = values.astype(np.float32)
            mean, std = (np.array(x[channel] if isinstance(x, tuple) else x, values.dtype) for x in (s.mean, s.std))
            values = (values - mean) / std
        return values


def _together(work: Callable[[Any], NDArray[np.float32]], items: Sequence[Any]) -> list[NDArray[np.float32]]:
    """`work` of every item, on as many threads as there are CPUs: Pillow and NumPy release the interpreter."""
    workers = min(len(items), cpus())
    if workers < 2:
        return [work(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


def _opened(source: Any, timeout: float | None) -> Any:
    return source if is_array(source) else load_image(source, timeout)


def is_array(source: Any) -> bool:
    """Whether this is one picture as an array or a tensor."""
    return len(getattr(source, "shape", ())) in (2, 3)


def rgb_picture(image: Image) -> Image:
    """RGB, with what is transparent on white."""
    from PIL import Image as images

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, (255, 255, 255, 255))
        return images.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def channels_last(pixels: NDArray[Any], convert: bool) -> NDArray[Any]:
    """(H, W), (C, H, W) or (H, W, C) -> (H, W, C); where both ends could be channels, the first axis is."""
    if pixels.ndim == 2 and not convert:
        return pixels[..., None]
    if pixels.ndim != 3 or not pixels.size or pixels.dtype.kind not in "buif":
        raise InputError(f"an array of shape {pixels.shape} and dtype {pixels.dtype} is no picture; give (H, W, 3)")
    if pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    elif pixels.shape[2] not in (1, 3, 4):
        raise InputError(f"an array of shape {pixels.shape} has no axis of 1, 3 or 4 channels; give (H, W, 3)")
    if not convert or pixels.shape[2] == 3:
        return pixels
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, -1)
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole and (pixels.min() < 0 or pixels.max() > 1):
        raise InputError(f"the picture's values go from {pixels.min():g} to {pixels.max():g}; give 0 to 1, or bytes")
    white: Any = 255 if whole else 1.0
    alpha = pixels[..., 3:] / white
    mixed = alpha * pixels[..., :3] + (1 - alpha) * white
    result: NDArray[Any] = (np.round(mixed) if whole else mixed).astype(pixels.dtype)
    return result


def _is_unit(pixels: NDArray[Any]) -> bool:
    """Whether values are from 0 to 1 and not bytes. Raises InputError when they are neither."""
    if pixels.dtype == np.uint8:
        return False
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        raise InputError("the picture holds NaN or infinity; give bytes, or values from 0 to 1")
    if np.allclose(pixels, pixels.astype(int)):
        if low >= 0 and high <= 255:
            return False
        raise InputError(f"the picture's values go from {low:g} to {high:g}; give bytes, or values from 0 to 1")
    if low < 0 or high > 1:
        raise InputError(f"the picture's values go from {low:g} to {high:g}; give bytes, or values from 0 to 1")
    return True


def from_array(pixels: NDArray[Any]) -> Image:
    from PIL import Image as images

    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    return images.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))


def _cropped(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The middle (H, W, C); a picture that is smaller gets zeros around it."""
    have = pixels.shape[:2]
    top, left = (have[0] - height) // 2, (have[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    room = max(have[0], height), max(have[1], width)
    above, before = -((have[0] - room[0]) // 2), -((have[1] - room[1]) // 2)
    padded = np.zeros((*room, pixels.shape[2]), pixels.dtype)
    padded[above : above + have[0], before : before + have[1]] = pixels
    top, left = top + above, left + before
    return padded[max(top, 0) : min(room[0], top + height), max(left, 0) : min(room[1], left + width)]
