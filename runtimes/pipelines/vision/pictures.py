"""What the pipelines over pictures share: how a picture is given, and running them in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.backends.parallel_runs import run_each
from isoform.runtimes.pipelines.base import Pipeline
from isoform.runtimes.preprocess.image.processor import ImageProcessor, is_array
from isoform.runtimes.preprocess.image.source import is_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

TOGETHER = 2  # pictures in a batch, unless the call says otherwise: enough to fill a core, few enough for its caches


class Pictures(Pipeline):
    """A pipeline whose model takes `pixel_values`.

    A picture is a path, an http address, base64, a file's bytes, a PIL picture or an array of pixels.
    """

    reads_text: ClassVar[bool] = False

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.processor = ImageProcessor(self.folder)

    def _is_one(self, inputs: Any) -> bool:
        return is_image(inputs) or is_array(inputs)

    def _takes(self) -> str:
        return "a picture (a path, an address, base64, bytes, a PIL picture or an array), or a list of pictures"

    def _outputs(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        timeout: float | None,
        others: Mapping[str, NDArray[Any]] | None = None,
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The outputs of each picture without its batch axis; `others` are inputs that all of them share."""
        for item in items:
            if not self._is_one(item):
                raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
        size = batch_size or TOGETHER
        counts: list[int] = []  # pictures in each of the feeds

        def feeds() -> Iterator[dict[str, NDArray[Any]]]:
            for start in range(0, len(items), size):
                for group in _alike(self.processor.load(items[start : start + size], timeout)):
                    counts.append(len(group))
                    yield {"pixel_values": group, **(others or {})}

        for place, out in enumerate(run_each(self.session, feeds(), -(-len(items) // size))):
            count = counts[place]
            for n in range(count):
                yield {name: value[n] for name, value in out.items() if len(value) == count}


def _alike(arrays: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """In order, those of one shape together: most processors give every picture the same."""
    start = 0
    for n in range(1, len(arrays) + 1):
        if n == len(arrays) or arrays[n].shape != arrays[start].shape:
            yield np.stack(arrays[start:n])
            start = n
