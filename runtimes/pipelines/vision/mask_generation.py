"""mask-generation: every mask that a model finds on a picture, or those of given points, boxes and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.pipelines.vision.binary_masks import Enlarging, RunLengths, box_around, distinct, stability
from isoform.runtimes.pipelines.vision.mask_prompts import NAMES, MaskPrompts
from isoform.runtimes.pipelines.vision.point_grids import Box, crops, grid
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.pictures import is_image
from isoform.runtimes.preprocess.image.processor import is_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

TOGETHER = 8  # prompts at a time at most: more are no faster on a CPU and take 35 MB each at SAM's size
ENLARGED = 2**22  # pixels of masks in the picture's size at a time, or those of one mask
EDGE = 20.0  # pixels: a mask that ends so close to the edge of a crop was cut by it
SINGLE = "single_"  # what the ports of the single mask are called besides


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGenerationOptions:
    """The parameters of a call. Those of prompts exclude those that choose among a picture's masks."""

    input_points: Any = None  # [[x, y], …] of an object in pixels of the picture, or a list of those
    input_labels: Any = None  # of each point: 1 inside, 0 outside; 1 unless given
    input_boxes: Any = None  # [x1, y1, x2, y2] of an object, or a list of those
    input_masks: Any = None  # logits of a mask in the decoder's size, or one for each object
    multimask_output: bool | None = None  # several masks for each object, or its best one; several unless set
    output_low_res_masks: bool = False  # the logits in the decoder's size, to be given as input_masks
    points_per_batch: int | None = 64  # prompts that run together at most; None: no limit of the caller's
    points_per_crop: int = 32  # points along an edge
    crops_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1
    mask_threshold: float = 0.0
    crops_nms_thresh: float = 0.7
    output_rle_mask: bool = False
    output_bboxes_mask: bool = False
    max_hole_area: float | None = None  # for models that fill holes; refused
    max_sprinkle_area: float | None = None
    timeout: float | None = None  # seconds for a picture from the network

    def __post_init__(self) -> None:
        whole("points_per_batch", self.points_per_batch, none="no limit")
        whole("points_per_crop", self.points_per_crop)
        whole("crops_n_layers", self.crops_n_layers, 0)
        whole("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor)
        for name in (*_THRESHOLDS, "crop_overlap_ratio", "mask_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(f"{name}={value!r:.40} is no number")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise InputError(f"crop_overlap_ratio={self.crop_overlap_ratio!r} is not from 0 to 1")
        if self.crops_n_layers and self.points_per_crop < self.crop_n_points_downscale_factor**self.crops_n_layers:
            raise InputError(
                f"points_per_crop={self.points_per_crop} leaves no point on the crops of layer {self.crops_n_layers}; "
                "set crop_n_points_downscale_factor or crops_n_layers lower"
            )
        for name in ("max_hole_area", "max_sprinkle_area"):
            if getattr(self, name):
                raise InputError(f"{name} is not supported: the processor of this model fills no holes; leave it out")


_THRESHOLDS = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "crops_nms_thresh")
_OF_GRIDS = (*_THRESHOLDS, "points_per_crop", "crops_n_layers", "crop_overlap_ratio", "crop_n_points_downscale_factor")
_OF_PROMPTS = ("multimask_output", "output_low_res_masks")


@dataclass(frozen=True, slots=True)
class _Crop:
    """A part of a picture of `size` to be asked: its pixel values, and the prompts on it, placed as the model reads."""

    pixels: NDArray[np.float32]
    box: Box
    size: tuple[int, int]
    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: NDArray[np.float32] | None
    prompted: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Masks with their scores and boxes, in the picture's pixels."""

    masks: list[RunLengths]
    scores: list[np.float32]
    boxes: list[list[int]]


class MaskGeneration(BatchPipeline):
    """`pipe("cat.jpg")` -> {"masks": [array (H, W) of bool, …], "scores": array (N,)}, the best first.

    With prompts, `pipe("cat.jpg", input_points=[[[450, 600]]])`, the masks of each object are as the model gives them:
    {"masks": array (objects, 3, H, W), "scores": array (objects, 3)}. Prompts are the call's, for every picture of it,
    or those of an input {"image": picture, "input_points": …}.
    """

    task: ClassVar[str] = "mask-generation"
    outputs: ClassVar[tuple[str, ...]] = ("iou_scores", "pred_masks")
    options: ClassVar[type[MaskGenerationOptions]] = MaskGenerationOptions
    sees: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    together: ClassVar[int | None] = 1
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "image", "images")

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        if not callable(getattr(session, "encode", None)):
            raise InputError(f"{self.task} needs a model of an encoder and a mask decoder; this one is a single graph")
        super().__init__(session, folder, **parameters)
        self.pictures = open_processor(self.folder, self.facts)
        if not hasattr(self.pictures, "placed"):
            raise InputError(f"{self.folder}: its image processor does not say where a point of a picture goes")
        rows, columns = next(port.axes for port in session.signature.outputs if port.role == "masks")[-2:]
        self._low = int(rows), int(columns)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping) or is_image(inputs) or is_array(inputs)

    def _takes(self) -> str:
        return 'a picture (a path, an address, base64, bytes, a PIL picture or an array), {"image": …}, or a list'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not self._is_one(item):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
        if isinstance(item, Mapping):
            unknown = sorted(str(name) for name in item.keys() - {"image", *NAMES})
            if unknown or "image" not in item:
                raise InputError(
                    f"an input is {{'image': …}} with {', '.join(NAMES)}, not {', '.join(unknown) or item}"
                )

    def begin(self, options: MaskGenerationOptions) -> MaskGenerationOptions:
        """See `Pipeline.begin`."""
        if not isinstance(options.multimask_output, bool | None):
            raise InputError(f"multimask_output={options.multimask_output!r:.40} is True or False")
        names = [port.name for port in self.session.signature.outputs]
        if options.multimask_output is False and f"{SINGLE}{self.outputs[0]}" not in names:
            raise InputError("multimask_output=False needs a model that gives a single mask; export it again")
        return options

    def prepare(self, items: Sequence[Any], call: MaskGenerationOptions) -> Iterable[Iterable[_Crop]]:
        """See `BatchPipeline.prepare`: the crops of each picture, or the picture with its prompts."""
        return (self._crops(item, call) for item in items)

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`: crops run one by one, each with many prompts."""
        return Batches(count, neighbours(pieces, 1))

    def forward(self, batches: Iterator[list[_Crop]], count: int, call: MaskGenerationOptions) -> Iterator[list[Any]]:
        """See `BatchPipeline.forward`: what is found on each crop, or the low masks and scores of the prompts."""
        for batch in batches:
            yield [self._prompted(crop, call) if crop.prompted else self._found(crop, call) for crop in batch]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: MaskGenerationOptions) -> dict[str, Any]:
        """See `BatchPipeline.finish`."""
        if pieces[0].value.prompted:
            scores, logits = pieces[0].output
            return self._of_prompts(pieces[0].value, scores, logits, call)
        masks = [mask for piece in pieces for mask in piece.output.masks]
        scores = np.array([score for piece in pieces for score in piece.output.scores], np.float32)
        boxes = np.array([box for piece in pieces for box in piece.output.boxes], np.int64).reshape(-1, 4)
        kept = distinct(boxes, scores, call.crops_nms_thresh)
        answer: dict[str, Any] = {"masks": [masks[n].mask() for n in kept], "scores": scores[kept]}
        if call.output_rle_mask:
            answer["rle_mask"] = [masks[n].plain() for n in kept]
        if call.output_bboxes_mask:
            answer["bounding_boxes"] = boxes[kept]
        return answer

    # ------------------------------------------------------------------ pictures to prompts
    def _crops(self, item: Any, call: MaskGenerationOptions) -> Iterator[_Crop]:
        picture = self.pictures.opened(item["image"] if isinstance(item, Mapping) else item, call.timeout)
        width, height = picture.size
        own = item if isinstance(item, Mapping) else {}
        given = {name: own.get(name, getattr(call, name)) for name in NAMES}
        prompts = MaskPrompts.read(given, (height, width), self._low)
        self._check_fit(call, prompts is not None)
        if prompts is not None:
            points = self.pictures.placed(prompts.points, height, width)
            box = 0, 0, width, height
            yield _Crop(
                self.pictures.one(picture), box, (height, width), points, prompts.labels, prompts.masks, prompted=True
            )
            return
        for layer, box in list(crops(height, width, call.crops_n_layers, call.crop_overlap_ratio)):
            wide, high = box[2] - box[0], box[3] - box[1]
            side = call.points_per_crop // call.crop_n_points_downscale_factor**layer
            points = self.pictures.placed(grid(side, high, wide), high, wide)[:, None]
            labels = np.ones(points.shape[:2], np.int64)
            part = picture if layer == 0 else picture.crop(box)
            yield _Crop(self.pictures.one(part), box, (height, width), points, labels, None, prompted=False)

    def _check_fit(self, call: MaskGenerationOptions, prompted: bool) -> None:
        """InputError for parameters that would not be read."""
        unread = _OF_GRIDS if prompted else _OF_PROMPTS
        for spec in fields(call):
            value = getattr(call, spec.name)
            if spec.name in unread and value != spec.default:
                why = (
                    "with prompts every mask is given"
                    if prompted
                    else "it is for input_points, input_boxes or input_masks"
                )
                raise InputError(f"{spec.name}={value!r:.40} changes nothing here: {why}; leave it out")

    # ------------------------------------------------------------------ prompts to masks
    def _runs(self, crop: _Crop, call: MaskGenerationOptions) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The decoder's outputs for some prompts at a time, each (P, masks, ...)."""
        session: Any = self.session
        points, labels = self._input("points"), self._input("labels")
        encoder = session.part(session.taking("pixels")).signature.port("pixels").name
        encoded = session.encode({encoder: crop.pixels[None]})
        step = min(call.points_per_batch or TOGETHER, TOGETHER)
        for start in range(0, len(crop.points), step):
            some = slice(start, start + step)
            feed: dict[str, NDArray[Any]] = {points: crop.points[some].astype(np.float32), labels: crop.labels[some]}
            if crop.masks is None:
                made = session.run_part(session.main, encoded, {name: array[None] for name, array in feed.items()})
                yield {name: array[0] for name, array in made.items()}
                continue
            each = encoded.select(np.zeros(len(feed[points]), np.int64))  # a mask is added to the picture's embeddings
            feed = {name: array[:, None] for name, array in feed.items()} | self._with_masks(each, crop.masks[some])
            made = session.run_part(session.main, each, feed)
            yield {name: array[:, 0] for name, array in made.items()}

    def _with_masks(self, encoded: Any, masks: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The picture's embeddings with a mask for each row, by the decoder's port."""
        session: Any = self.session
        part = session.taking("masks")
        signature = session.part(part).signature
        taken, given = signature.port("image_features"), signature.output("image_features")
        made = session.run_part(part, encoded, {signature.port("masks").name: masks[:, None]})
        return {taken.name: made[given.name]}

    def _prompted(self, crop: _Crop, call: MaskGenerationOptions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        prefix = SINGLE if call.multimask_output is False else ""
        made = [[one[f"{prefix}{name}"] for name in self.outputs] for one in self._runs(crop, call)]
        scores, logits = (np.concatenate(some) for some in zip(*made, strict=True))
        return scores, logits

    def _of_prompts(
        self, crop: _Crop, scores: NDArray[np.float32], logits: NDArray[np.float32], call: MaskGenerationOptions
    ) -> dict[str, Any]:
        enlarge = self._enlarging(crop)
        masks = np.empty((*logits.shape[:2], *crop.size), np.bool_)
        for n, some in enumerate(logits):
            masks[n] = enlarge(some) > call.mask_threshold
        answer: dict[str, Any] = {"masks": masks, "scores": scores}
        if call.output_rle_mask:
            answer["rle_mask"] = [[RunLengths.of(mask).plain() for mask in some] for some in masks]
        if call.output_bboxes_mask:
            answer["bounding_boxes"] = np.array([[box_around(mask) for mask in some] for some in masks], np.int64)
        if call.output_low_res_masks:
            answer["low_res_masks"] = logits
        return answer

    def _found(self, crop: _Crop, call: MaskGenerationOptions) -> _Found:
        """The masks of a crop that are good, steady and whole; most are gone before they are enlarged."""
        found = _Found([], [], [])
        enlarge = self._enlarging(crop)
        for made in self._runs(crop, call):
            scores, logits = (made[name].reshape(-1, *made[name].shape[2:]) for name in self.outputs)
            if call.pred_iou_thresh > 0:
                good = scores > call.pred_iou_thresh
                scores, logits = scores[good], logits[good]
            step = max(1, ENLARGED // (enlarge.size[0] * enlarge.size[1]))
            for start in range(0, len(scores), step):
                some = slice(start, start + step)
                self._add(found, crop, enlarge(logits[some]), scores[some], call)
        return found

    def _add(
        self,
        found: _Found,
        crop: _Crop,
        logits: NDArray[np.float32],
        scores: NDArray[np.float32],
        call: MaskGenerationOptions,
    ) -> None:
        """Add those of some masks over a crop that are steady and that its edge does not cut."""
        if call.stability_score_thresh > 0:
            steady = stability(logits, call.mask_threshold, call.stability_score_offset) > call.stability_score_thresh
            scores, logits = scores[steady], logits[steady]
        left, top, right, bottom = crop.box
        height, width = crop.size
        for score, mask in zip(scores, logits > call.mask_threshold, strict=True):
            box = [edge + offset for edge, offset in zip(box_around(mask), (left, top, left, top), strict=True)]
            near = [
                abs(edge - cut) <= EDGE < abs(edge - end)
                for edge, cut, end in zip(box, crop.box, (0, 0, width, height), strict=True)
            ]
            if any(near):
                continue
            if (bottom - top, right - left) != crop.size:
                whole_mask = np.zeros(crop.size, np.bool_)
                whole_mask[top:bottom, left:right] = mask
                mask = whole_mask
            found.masks.append(RunLengths.of(mask))
            found.scores.append(score)
            found.boxes.append(box)

    def _enlarging(self, crop: _Crop) -> Enlarging:
        left, top, right, bottom = crop.box
        size = bottom - top, right - left
        return Enlarging(self._low, self.pictures.padded, self.pictures.resized(*size), size)
