"""visual-question-answering: questions about pictures, answered in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.multimodal.picture_to_text import Call, PictureToText
from isoform.runtimes.preprocess.image.pictures import is_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualQuestionAnsweringOptions:
    """The parameters of a call."""

    truncation: bool = True  # cuts a question to the model's positions
    timeout: float | None = None  # seconds for a picture from the network
    top_k: int | None = None  # changes nothing: one answer is generated, as in transformers
    generate_kwargs: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # settings of `GenerationConfig`


class VisualQuestionAnswering(PictureToText):
    """`pipe(image="cats.png", question="how many?")` -> [{"answer": "2"}]; lists give one such list each.

    A picture is a path, an address, base64, a file's bytes or a PIL picture.
    """

    task: ClassVar[str] = "visual-question-answering"
    options: ClassVar[type[VisualQuestionAnsweringOptions]] = VisualQuestionAnsweringOptions
    takes_objects: ClassVar[bool] = True
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "image")

    def __call__(self, inputs: Any = None, question: Any = None, **parameters: Any) -> Any:
        """A picture and its question, {"image", "question"}, or lists: pictures with one question, a picture with
        several, or as many of each."""
        return super().__call__(inputs, **parameters, **({} if question is None else {"question": question}))

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`: objects of a picture and its question."""
        image, question = super()._inputs(inputs, parameters), parameters.pop("question", None)
        if question is not None:
            images = [image] if is_image(image) else image
            questions = [question] if isinstance(question, str) else question
            if not isinstance(images, list | tuple) or not isinstance(questions, list | tuple):
                raise InputError(f"{self.task} takes {self._takes()}, not {image!r:.80}")
            count = max(len(images), len(questions))
            if not all(len(part) in (1, count) for part in (images, questions)):
                raise InputError(
                    f"{len(images)} pictures came with {len(questions)} questions; give one of either, or as many"
                )
            images, questions = list(images) * (count // len(images)), list(questions) * (count // len(questions))
            pairs = [{"image": a, "question": b} for a, b in zip(images, questions, strict=True)]
            return pairs[0] if is_image(image) and isinstance(question, str) else pairs
        if is_image(image):
            raise InputError(f"{self.task} takes {self._takes()}; with isoform run, --set question=TEXT")
        return image

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _takes(self) -> str:
        return 'image= and question=, {"image": picture, "question": text}, or a list of those'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not isinstance(item, Mapping) or not {"image", "question"} <= item.keys():
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
        if not isinstance(item["question"], str) or not item["question"].strip():
            raise InputError(f"a question is a text that is not empty, not {item['question']!r:.60}")

    def prepare(self, items: Sequence[Mapping[str, Any]], call: Call) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`: pixel values with the tokens of the question."""
        rows = self.encode([item["question"] for item in items], truncation=call.options.truncation)
        pixels = self._pixels([item["image"] for item in items], call.options.timeout)
        return ([pair] for pair in zip(pixels, rows, strict=True))

    def feed(self, batch: list[Any]) -> dict[str, NDArray[Any]]:
        """See `PictureToText.feed`."""
        asked = self.text_tokenizer.pad([row for _, row in batch], "right")
        return {
            self._encoders("pixels"): np.stack([pixels for pixels, _ in batch]),
            self._encoders("tokens"): asked.input_ids,
            self._encoders("mask"): asked.attention_mask,
        }

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: Call) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        return [{"answer": self._text(ids).strip()} for ids in pieces[0].output]
