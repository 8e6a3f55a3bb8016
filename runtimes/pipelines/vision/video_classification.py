"""video-classification: what happens in a video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, InputPiece
from isoform.runtimes.pipelines.scores import Labels, asked_function, best_first, scored, trained_function, whole
from isoform.runtimes.pipelines.vision.picture_encoder import PictureEncoder
from isoform.runtimes.preprocess.image.processor import is_array
from isoform.runtimes.preprocess.video.frames import is_video, sampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoClassificationOptions:
    """The parameters of a call."""

    num_frames: int | None = None  # the model's own number, the only one it has positions for
    frame_sampling_rate: int = 1  # every so many frames one is read, from the first one on
    top_k: int = 5
    function_to_apply: str | None = None  # "softmax", "sigmoid", "none"; what the model was trained for
    timeout: float | None = None  # seconds without a byte of a video from the network

    def __post_init__(self) -> None:
        asked_function(self.function_to_apply)
        whole("top_k", self.top_k)
        whole("frame_sampling_rate", self.frame_sampling_rate)
        whole("num_frames", self.num_frames, none="the model's own number")


class VideoClassification(PictureEncoder):
    """`pipe("match.mp4")` -> [{"score": 0.9, "label": "tennis"}, …], the five likeliest; a list gives a list of those.

    A video is a path, an http address, a file's bytes, a folder with its frames as pictures, an array (T, H, W, 3), or
    a list of PIL pictures or arrays. A list of texts is a list of videos; in a list of lists each is a video.
    """

    task: ClassVar[str] = "video-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[VideoClassificationOptions]] = VideoClassificationOptions
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "videos")

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)
        self._video = self._input("video")
        frames = next(port.axes[1] for port in session.signature.inputs if port.name == self._video)
        self._count: int = frames if isinstance(frames, int) else self.config.get("num_frames", 16)

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`."""
        inputs = super()._inputs(inputs, parameters)
        if is_array(inputs):
            raise InputError(
                f"an array of shape {tuple(inputs.shape)} is one picture, and no video; give (frames, height, width, 3)"
            )
        return inputs

    def _is_one(self, inputs: Any) -> bool:
        return is_video(inputs)

    def _takes(self) -> str:
        return "a video (a path, an address, bytes, a folder of pictures, frames or an array), or a list of videos"

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`; what is in a list of lists may be pictures by their paths."""
        if not (is_video(item) or (isinstance(item, list | tuple) and item)):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")

    def begin(self, options: VideoClassificationOptions) -> VideoClassificationOptions:
        """See `Pipeline.begin`."""
        if options.num_frames not in (None, self._count):
            raise InputError(f"num_frames={options.num_frames}: the model reads {self._count} frames, no other number")
        return options

    def prepare(self, items: Sequence[Any], call: VideoClassificationOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`: frames (T, C, H, W) of each video, from the first one on."""
        last = self._count * call.frame_sampling_rate - 1
        wanted = np.linspace(0, last, num=self._count, dtype=np.int64).tolist()
        return ([self._pixels(sampled(item, wanted, call.timeout))] for item in items)

    def _pixels(self, frames: Sequence[Any]) -> NDArray[np.float32]:
        """Raises InputError where frames become pictures of unlike sizes."""
        pixels = self.pictures(frames)
        sizes = sorted({one.shape for one in pixels})
        if len(sizes) > 1:
            raise InputError(f"the frames of a video become pictures of unlike sizes, {sizes}; make them alike first")
        return np.stack(pixels)

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`: one by one, which is work enough for a core."""
        return super().batches(pieces, size or 1, count)

    def feed(self, batch: list[Any], call: VideoClassificationOptions) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        return {self._video: np.stack(batch)}

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: VideoClassificationOptions) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        logits = pieces[0].output["logits"]
        trained = trained_function(self.config, len(logits), single="softmax")
        scores = scored(logits, asked_function(call.function_to_apply) or trained)
        return [{"score": float(scores[n]), "label": self.labels[n]} for n in best_first(scores, call.top_k)]
