"""Pipelines over an encoder of pictures: they are read while others run, those of one shape together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, InputPiece, OneGraph
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.pictures import is_image
from isoform.runtimes.preprocess.image.processor import is_array
from isoform.runtimes.preprocess.image.sized import Sized, sized

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

TOGETHER = 2  # pictures in a batch, unless the call says otherwise: enough to fill a core, few enough for its caches


class PictureEncoder(OneGraph):
    """A pipeline whose pieces are pixel values (C, H, W); the output of each is {port: array without batch axis}.

    A picture is a path, an http address, base64, a file's bytes, a PIL picture or an array of pixels.
    """

    sees: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    together: ClassVar[int | None] = TOGETHER
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "images", "image")

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.pictures = open_processor(self.folder, self.facts)

    def _is_one(self, inputs: Any) -> bool:
        return is_image(inputs) or is_array(inputs)

    def _takes(self) -> str:
        return "a picture (a path, an address, base64, bytes, a PIL picture or an array), or a list of pictures"

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not self._is_one(item):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")

    def prepare(self, items: Sequence[Any], call: Any) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`; `call.timeout` is the seconds for a picture from the network."""
        return ([pixels] for pixels in self.pictures.load(items, call.timeout))

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        size = size or self.together or TOGETHER
        return Batches(-(-count // size), neighbours(pieces, size, kind=lambda piece: piece.value.shape))

    def feed(self, batch: list[Any], call: Any) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        return {self._input("pixels"): np.stack(batch)}

    def split(self, batch: list[Any], outputs: dict[str, NDArray[np.float32]]) -> Sequence[Any]:
        """See `OneGraph.split`; outputs that are no pictures' are left out."""
        mine = {name: value for name, value in outputs.items() if len(value) == len(batch)}
        return [{name: value[n] for name, value in mine.items()} for n in range(len(batch))]


class SizedPictures(PictureEncoder):
    """A `PictureEncoder` whose answers are in the picture's own pixels: its pieces are `Sized`.

    `budget`: the pixels of the pictures in a batch, unless the call says otherwise; without one they are `together`.
    """

    budget: ClassVar[int | None] = None

    def prepare(self, items: Sequence[Any], call: Any) -> Iterable[Iterable[Sized]]:
        """See `BatchPipeline.prepare`; `call.timeout` is the seconds for a picture from the network."""
        return ([one] for one in sized(self.pictures, items, call.timeout))

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""

        def shape(piece: InputPiece) -> Any:
            return piece.value.pixels.shape

        if self.budget is None:
            size = size or self.together or TOGETHER
            return Batches(-(-count // size), neighbours(pieces, size, kind=shape))
        groups = neighbours(
            pieces, size, length=lambda piece: piece.value.pixels[0].size, budget=self.budget, kind=shape
        )
        return Batches(count if size is None else -(-count // size), groups)

    def feed(self, batch: list[Sized], call: Any) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        return super().feed([piece.pixels for piece in batch], call)
