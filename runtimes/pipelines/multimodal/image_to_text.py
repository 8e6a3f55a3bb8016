"""image-to-text: captions of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.multimodal.picture_to_text import Call, PictureToText
from isoform.runtimes.preprocess.image.pictures import is_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToTextOptions:
    """The parameters of a call."""

    prompt: str | None = None  # how every caption begins, kept in its text
    timeout: float | None = None  # seconds for a picture from the network
    generate_kwargs: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # settings of `GenerationConfig`: max_new_tokens, …

    def __post_init__(self) -> None:
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InputError(f"prompt={self.prompt!r:.60} is no text")


class ImageToText(PictureToText):
    """`pipe("cats.png")` -> [{"generated_text": "two cats sleeping on a couch"}]; a list gives one such list each.

    A picture is a path, an address, base64, a file's bytes or a PIL picture.
    """

    task: ClassVar[str] = "image-to-text"
    options: ClassVar[type[ImageToTextOptions]] = ImageToTextOptions
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "images")

    def _is_one(self, inputs: Any) -> bool:
        return is_image(inputs)

    def _takes(self) -> str:
        return "a picture (a path, an address, base64, bytes or a PIL picture), or a list of pictures"

    def begin(self, options: ImageToTextOptions) -> Call:
        """See `Pipeline.begin`."""
        call = super().begin(options)
        prompt = self.encode([options.prompt])[0].ids[1:-1] if options.prompt else ()
        return replace(call, prompt=self._begun(prompt))

    def prepare(self, items: Sequence[Any], call: Call) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`: pixel values."""
        return ([pixels] for pixels in self._pixels(items, call.options.timeout))

    def feed(self, batch: list[Any]) -> dict[str, NDArray[Any]]:
        """See `PictureToText.feed`."""
        return {self._encoders("pixels"): np.stack(batch)}

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: Call) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        return [{"generated_text": self._text([*call.prompt, *ids])} for ids in pieces[0].output]
