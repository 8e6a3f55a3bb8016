"""pose-estimation: where the joints of the persons in a picture are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.pipelines.vision.detectors import Detectors
from isoform.runtimes.pipelines.vision.heatmaps import keypoints, mirrored_back
from isoform.runtimes.pipelines.vision.picture_encoder import PictureEncoder
from isoform.runtimes.preprocess.image.person_crops import Crop, PersonCrops, checked_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseEstimationOptions:
    """The parameters of a call; `threshold` and `kernel_size` are those of transformers' post-processing."""

    boxes: Any = None  # of the persons, [[x, y, width, height], …] in pixels; of each picture of a list, such a list
    detector: Any = None  # finds them instead: a folder, a Hub id or an object-detection pipeline
    detector_label: str | Sequence[str] = "person"  # what is looked for
    detector_threshold: float | None = None  # the detector's own
    dataset_index: int | None = None  # of a model with experts, the data set whose keypoints it finds; the first
    threshold: float | None = None  # leaves out keypoints with a lower score
    kernel_size: int = 11  # cells of a heatmap along an edge of the blur before keypoints are refined
    flip_pairs: Any = None  # [[left, right], …]: the mirrored picture is read as well, and both heatmaps averaged
    timeout: float | None = None  # seconds for a picture from the network

    def __post_init__(self) -> None:
        whole("kernel_size", self.kernel_size)
        if self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size={self.kernel_size} has no middle; give an odd number")
        for name in ("threshold", "detector_threshold"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{name}={value!r:.60} is no number")
        if self.boxes is not None and self.detector is not None:
            raise InputError("boxes= and detector= both say where the persons are; give one of them")


@dataclass(frozen=True, slots=True)
class Call:
    """A call's options, what the graph takes as data set (None: it takes none), and pairs of keypoints to exchange."""

    options: PoseEstimationOptions
    dataset: int | None
    pairs: tuple[tuple[int, int], ...] | None
    detect: Callable[[Any], list[Any]] | None

    @property
    def timeout(self) -> float | None:
        return self.options.timeout


@dataclass(frozen=True, slots=True)
class Person:
    """One box of a picture: its pixels (C, H, W) as the model reads them, where they are from, and what found it."""

    pixels: NDArray[np.float32]
    crop: Crop
    dataset: int | None
    mirrored: bool = False
    found: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels: all persons of a model have one, and run together."""
        return self.pixels.shape


class PoseEstimation(PictureEncoder):
    """`pipe("street.jpg", boxes=[[x, y, width, height], …])` -> a dict for each person, in the order of the boxes.

    {"keypoints": [[x, y], …] in the picture's pixels, "scores": […], "labels": numbers of config.json's `id2label`,
    "bbox": [x, y, x, y] as transformers' post-processing gives it: the middle of the box twice, the second time with
    its size in units of 200 pixels added and a pixel taken off}. With `detector=` there is the detector's "box" too.
    Without either the whole picture is one person. An input may be {"image": picture, "boxes": […]}.
    """

    task: ClassVar[str] = "pose-estimation"
    outputs: ClassVar[tuple[str, ...]] = ("heatmaps",)
    options: ClassVar[type[PoseEstimationOptions]] = PoseEstimationOptions
    takes_objects: ClassVar[bool] = True

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        if not isinstance(self.pictures, PersonCrops):
            raise UnsupportedModel(
                f"{self.folder}: its image processor does not cut out persons; {self.task} needs that"
            )
        self._crops: PersonCrops = self.pictures
        self._dataset = session.signature.port("choice")
        self._detectors = Detectors(self)
        (port,) = (port for port in session.signature.outputs if port.name == "heatmaps")
        self._keypoints = port.axes[1]

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`: a list of boxes for a list of pictures is shared out."""
        inputs = super()._inputs(inputs, parameters)
        boxes = parameters.get("boxes")
        if boxes is None or not isinstance(inputs, list | tuple) or self._is_one(inputs):
            return inputs
        del parameters["boxes"]
        if not isinstance(boxes, list | tuple) or len(boxes) != len(inputs):
            count = f"{len(boxes)} of them" if isinstance(boxes, list | tuple) else "something else"
            raise InputError(f"{len(inputs)} pictures need as many lists of boxes, not {count}")
        if any(isinstance(one, Mapping) for one in inputs):
            raise InputError('boxes came twice, as boxes= and inside {"image", "boxes"}; give them once')
        return [{"image": one, "boxes": mine} for one, mine in zip(inputs, boxes, strict=True)]

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping) or super()._is_one(inputs)

    def _takes(self) -> str:
        return f'{super()._takes()}, or {{"image": picture, "boxes": [[x, y, width, height], …]}}'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        image = item.get("image") if isinstance(item, Mapping) else item
        if isinstance(item, Mapping) and not {"image"} <= item.keys() <= {"image", "boxes"}:
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
        super().check(image)

    def begin(self, options: PoseEstimationOptions) -> Call:
        """See `Pipeline.begin`."""
        return Call(options, self._chosen(options.dataset_index), self._pairs(options.flip_pairs), self._finds(options))

    def _chosen(self, index: int | None) -> int | None:
        """The data set of a model with experts. Raises InputError for one that there is not."""
        port = self._dataset
        if port is None:
            if index is not None:
                raise InputError("this model has no experts for data sets; leave dataset_index out")
            return None
        if index is None:
            return 0
        count = self.facts.get("choices", {}).get(port.name)
        if isinstance(index, bool) or not isinstance(index, int) or index < 0 or (count and index >= count):
            most = f"from 0 to {count - 1}" if count else "of at least 0"
            raise InputError(f"dataset_index={index!r:.60} must be a whole number {most}: the expert of a data set")
        return index

    def _pairs(self, given: Any) -> tuple[tuple[int, int], ...] | None:
        if given is None:
            return None
        try:
            pairs = tuple((int(left), int(right)) for left, right in given)
        except (TypeError, ValueError):
            pairs = ((-1, -1),)
        flat = [n for pair in pairs for n in pair]
        count = self._keypoints if isinstance(self._keypoints, int) else max(flat, default=0) + 1
        if len(set(flat)) < len(flat) or not all(0 <= n < count for n in flat):
            raise InputError(
                f"flip_pairs={given!r:.80} must be pairs of keypoints from 0 to {count - 1}, each at most once: "
                "[[left, right], …]"
            )
        return pairs

    def _finds(self, options: PoseEstimationOptions) -> Callable[[Any], list[Any]] | None:
        if options.detector is None:
            return None
        labels = options.detector_label
        wanted = (labels,) if isinstance(labels, str) else tuple(labels)
        return self._detectors.find(options.detector, wanted, options.detector_threshold)

    def close(self) -> None:
        """See `Pipeline.close`; a detector that the pipeline opened is closed too."""
        self._detectors.close()
        super().close()

    def prepare(self, items: Sequence[Any], call: Call) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`: a piece for each person, and with `flip_pairs` one for its mirror image."""
        return (self._persons(item, call) for item in items)

    def _persons(self, item: Any, call: Call) -> Iterator[Person]:
        image = item["image"] if isinstance(item, Mapping) else item
        given = item.get("boxes") if isinstance(item, Mapping) else None
        given = call.options.boxes if given is None else given
        pixels = self._crops.opened(image, call.timeout)
        height, width = pixels.shape[:2]
        found: list[Any] = []
        if given is None and call.detect is not None:
            found = call.detect(pixels)
            given = [one["box"] for one in found]
            given = [[b["xmin"], b["ymin"], b["xmax"] - b["xmin"], b["ymax"] - b["ymin"]] for b in given]
        boxes = [(0.0, 0.0, width, height)] if given is None else checked_boxes(given, height, width)
        for n, box in enumerate(boxes):
            crop = self._crops.crop(box)
            person = Person(self._crops.warped(pixels, crop), crop, call.dataset, found=found[n] if found else None)
            yield person
            if call.pairs is not None:
                yield Person(person.pixels[:, :, ::-1], crop, call.dataset, mirrored=True)

    def feed(self, batch: list[Person], call: Call) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        feed: dict[str, NDArray[Any]] = {self._input("pixels"): np.stack([person.pixels for person in batch])}
        if self._dataset is not None:
            feed[self._dataset.name] = np.array([person.dataset for person in batch], np.int64)
        return feed

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: Call) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        own = [piece for piece in pieces if not piece.value.mirrored]
        if not own:
            return []
        heatmaps = np.stack([piece.output["heatmaps"] for piece in own]).astype(np.float32)
        if call.pairs is not None:
            mirrored = np.stack([piece.output["heatmaps"] for piece in pieces if piece.value.mirrored])
            heatmaps = (heatmaps + mirrored_back(mirrored, call.pairs)) * np.float32(0.5)
        crops = [piece.value.crop for piece in own]
        places, scores = keypoints(heatmaps, crops, call.options.kernel_size)
        least = call.options.threshold
        return [
            _answer(piece.value, place, score, np.ones(len(score), bool) if least is None else score > least)
            for piece, place, score in zip(own, places, scores, strict=True)
        ]


def _answer(
    person: Person, places: NDArray[np.float32], scores: NDArray[np.float32], kept: NDArray[np.bool_]
) -> dict[str, Any]:
    center, scale = person.crop.center, person.crop.scale
    answer = {
        "keypoints": places[kept].tolist(),
        "scores": scores[kept].tolist(),
        "labels": np.flatnonzero(kept).tolist(),
        "bbox": [*center.tolist(), *(scale + center - 1).tolist()],
    }
    return answer if person.found is None else {**answer, "box": person.found["box"]}
