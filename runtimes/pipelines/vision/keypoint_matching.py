"""keypoint-matching: the places of two pictures that show the same thing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.pipelines.vision.keypoint_detection import SELECT, in_picture
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.pictures import is_image
from isoform.runtimes.preprocess.image.processor import is_array
from isoform.runtimes.preprocess.image.sized import Sized, sized
from isoform.steps import load_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

CENTRE, MATCH = "centre_keypoints", "match_keypoints"  # host steps
Arrays = dict[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointMatchingOptions:
    """The parameters of a call."""

    threshold: float = 0.0  # matches with a score over it
    timeout: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise InputError(f"threshold is a number, not {self.threshold!r:.40}")


class KeypointMatching(BatchPipeline):
    """`pipe(["left.jpg", "right.jpg"])` -> [{"keypoint_image_0": {"x", "y"}, "keypoint_image_1", "score"}, …].

    The best match comes first. A list of pairs gives a list of those, but for a list of one pair, as in transformers.
    Places are in each picture's own pixels.
    """

    task: ClassVar[str] = "keypoint-matching"
    sees: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    takes_objects: ClassVar[bool] = True
    paired: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("assignment",)
    options: ClassVar[type[KeypointMatchingOptions]] = KeypointMatchingOptions
    together: ClassVar[int | None] = 1
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "images")

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        if not callable(getattr(session, "part", None)):
            raise InputError(f"{self.task} needs a model of a detector and a matcher; this one is a single graph")
        super().__init__(session, folder, **parameters)
        self.pictures = open_processor(self.folder, self.facts)
        self._steps: Mapping[str, Mapping[str, Any]] = self.facts["steps"]
        parts: Any = session
        self._detector: Session = parts.part(parts.giving("descriptors"))

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, list | tuple) and len(inputs) == 2 and all(map(_is_picture, inputs))

    def _takes(self) -> str:
        return "a pair of pictures, [first, second], or a list of pairs"

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """See `Pipeline._shaped`."""
        return answer if self._is_one(inputs) or len(answer) != 1 else answer[0]

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`."""
        inputs = super()._inputs(inputs, parameters)
        if _is_picture(inputs):
            raise InputError(f"{self.task} takes {self._takes()}; one picture was given")
        return inputs

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not self._is_one(item):
            given = "one picture" if _is_picture(item) else f"{item!r:.80}"
            raise InputError(f"{self.task} takes {self._takes()}, not {given}")

    def prepare(self, items: Sequence[Any], call: KeypointMatchingOptions) -> Iterable[Iterable[list[Sized]]]:
        """See `BatchPipeline.prepare`."""
        for item in items:
            pair = sized(self.pictures, item, call.timeout)
            first, second = (one.pixels.shape[-2:] for one in pair)
            if first != second:
                raise InputError(
                    f"the pictures of a pair have {first[1]} x {first[0]} and {second[1]} x {second[0]} pixels; the "
                    "model reads pairs of one size, so resize them or set do_resize in preprocessor_config.json"
                )
            yield [pair]

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`; one pair alone fills a core."""
        size = size or 1
        return Batches(-(-count // size), neighbours(pieces, size, kind=lambda piece: piece.value[0].pixels.shape))

    def forward(
        self, batches: Iterator[list[list[Sized]]], count: int, call: KeypointMatchingOptions
    ) -> Iterator[Sequence[Arrays]]:
        """See `BatchPipeline.forward`. The output of a pair is its keypoints and their matches.

        Pairs are detected together and matched one by one: they have different numbers of keypoints.
        """
        (pixels,) = self._detector.signature.given
        for batch in batches:
            stacked = np.stack([np.stack([one.pixels for one in pair]) for pair in batch])
            maps = self._detector.run({pixels.name: stacked})
            yield [
                self._matched({name: array[n] for name, array in maps.items()}, pair) for n, pair in enumerate(batch)
            ]

    def _matched(self, maps: Arrays, pair: Sequence[Sized]) -> Arrays:
        """The keypoints of a pair (2, N, 2), their mask (2, N), and the matches (2, N) with their scores."""
        found = load_step(SELECT).run(maps, **self._steps[SELECT])
        if found["mask"].shape[-1]:
            sizes = np.array([one.pixels.shape[-2:] for one in pair])
            centred = load_step(CENTRE).run({**found, "sizes": sizes}, **self._steps[CENTRE])
            outputs = self.session.run({name: array[None] for name, array in {**found, **centred}.items()})
        else:
            outputs = {"assignment": np.zeros((1, 0, 0), np.float32)}
        matched = load_step(MATCH).run(outputs, **self._steps[MATCH])
        return {**found, **{name: array[0] for name, array in matched.items()}}

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: KeypointMatchingOptions) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        (piece,) = pieces
        found = piece.output
        first, second = (
            in_picture(places, one.pixels.shape[-2:], one.size)
            for places, one in zip(found["keypoints"], piece.value, strict=True)
        )
        matches, scores = found["matches"][0], found["matching_scores"][0]
        kept = np.flatnonzero((scores > np.float32(call.threshold)) & (matches >= 0))
        return [
            {
                "keypoint_image_0": _place(first[n]),
                "keypoint_image_1": _place(second[matches[n]]),
                "score": float(scores[n]),
            }
            for n in kept[np.argsort(-scores[kept], kind="stable")]
        ]


def _is_picture(source: Any) -> bool:
    return is_image(source) or is_array(source)


def _place(place: NDArray[np.int32]) -> dict[str, int]:
    return {"x": int(place[0]), "y": int(place[1])}
