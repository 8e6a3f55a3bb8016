"""image-feature-extraction: the last hidden state of a picture's patches, or one vector per picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.nested_lists import given_as
from isoform.runtimes.pipelines.vision.picture_encoder import PictureEncoder

POOLED = "pooler_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatureExtractionOptions:
    """The parameters of a call."""

    pool: bool | None = None  # the model's own vector of the picture, [1, width]
    return_tensors: bool | str = False  # True or "pt": tensors of torch; "np": arrays
    timeout: float | None = None


class ImageFeatureExtraction(PictureEncoder):
    """`pipe("cat.jpg")` -> a nested list of floats [1, tokens, width], as transformers gives it."""

    task: ClassVar[str] = "image-feature-extraction"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    options: ClassVar[type[ImageFeatureExtractionOptions]] = ImageFeatureExtractionOptions

    def begin(self, options: ImageFeatureExtractionOptions) -> ImageFeatureExtractionOptions:
        """See `Pipeline.begin`."""
        if options.pool and POOLED not in [port.name for port in self.session.signature.outputs]:
            raise InputError("pool=True needs a model with a pooler, and this one has none; leave pool out")
        return options

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: ImageFeatureExtractionOptions) -> Any:
        """See `BatchPipeline.finish`."""
        states = pieces[0].output[POOLED if call.pool else "last_hidden_state"][None]
        return given_as(states, call.return_tensors)
