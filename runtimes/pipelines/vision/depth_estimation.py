"""depth-estimation: how far away each pixel of a picture is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.nested_lists import given_as
from isoform.runtimes.pipelines.vision.picture_encoder import SizedPictures
from isoform.runtimes.preprocess.image.interpolation import bicubic, bilinear

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from isoform.runtimes.session import Session

RESAMPLED = {"bicubic": bicubic, "bilinear": bilinear}
PIXELS = 2 * 518 * 518
"""Of pictures in a batch, unless the call says otherwise: more than that is run one by one, and needs less memory."""
NEAREST, FARTHEST = np.float32(1e-4), np.float32(1e4)
"""What an inverse depth is at least and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthEstimationOptions:
    """The parameters of a call."""

    return_tensors: bool | str = "pt"  # "pt": predicted_depth as a tensor of torch; "np": as an array; False: as lists
    timeout: float | None = None
    parameters: Mapping[str, Any] | None = None  # {"timeout": seconds}, the older way to give it

    def __post_init__(self) -> None:
        given = self.parameters
        if given is not None and (not isinstance(given, Mapping) or set(given) - {"timeout"}):
            raise InputError(f"parameters={given!r:.80}: it may hold a timeout and nothing else")
        object.__setattr__(self, "timeout", (given or {}).get("timeout", self.timeout))


class DepthEstimation(SizedPictures):
    """`pipe("street.jpg")` -> {"predicted_depth": tensor (H, W), "depth": picture}; a list gives a list of those.

    Both have the picture's own size. `predicted_depth` is in the units of the model: metres of DepthPro, whose field of
    view scales it, and otherwise an inverse depth up to scale and shift. `depth` is gray, from the least value to the
    greatest.
    """

    task: ClassVar[str] = "depth-estimation"
    outputs: ClassVar[tuple[str, ...]] = ("predicted_depth",)
    options: ClassVar[type[DepthEstimationOptions]] = DepthEstimationOptions
    budget: ClassVar[int | None] = PIXELS

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        found: Mapping[str, Any] = self.facts.get("image_processor", {}).get("depth", {})
        if not found:
            raise UnsupportedModel(f"{self.folder}: its image processor does not say how depths are resized")
        self.inverse, self.resample = bool(found.get("inverse")), RESAMPLED[found["resample"]]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: DepthEstimationOptions) -> dict[str, Any]:
        """See `BatchPipeline.finish`."""
        size, output = pieces[0].value.size, pieces[0].output
        depth = output["predicted_depth"]
        if self.inverse and "field_of_view" in output:
            depth = depth * focal_scale(float(output["field_of_view"]))
        depth = self.resample(depth[None], *size)[0]
        if self.inverse:
            depth = np.float32(1) / np.clip(depth, NEAREST, FARTHEST)
        return {"predicted_depth": given_as(depth, call.return_tensors), "depth": gray(depth)}


def focal_scale(degrees: float) -> np.float32:
    """The width of a picture divided by its focal length in pixels, of its horizontal field of view."""
    return np.float32(2 * math.tan(0.5 * math.radians(degrees)))


def gray(depth: NDArray[np.float32]) -> Image:
    """A picture in mode L, black where the depth is least; all black where it is the same everywhere."""
    from PIL import Image

    low, high = depth.min(), depth.max()
    span = high - low
    shown = (depth - low) / span if span > 0 else np.zeros_like(depth)
    return Image.fromarray((shown * np.float32(255)).astype(np.uint8))
