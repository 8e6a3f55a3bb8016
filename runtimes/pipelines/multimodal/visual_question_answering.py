"""visual-question-answering: questions about pictures, answered in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.multimodal.pictures_told import TOGETHER, PicturesTold
from isoform.runtimes.preprocess.image.source import is_image


class VisualQuestionAnswering(PicturesTold):
    """`pipe(image="cats.png", question="how many?")` -> [{"answer": "2"}]; lists give one such list each.

    A picture is a path, an address, base64, a file's bytes or a PIL picture.
    """

    task: ClassVar[str] = "visual-question-answering"

    def __call__(
        self, inputs: Any = None, question: Any = None, *, batch_size: int | None = None, **parameters: Any
    ) -> Any:
        """A picture and its question, {"image", "question"}, or lists: pictures with one question, a picture with
        several, or as many of each."""
        image = parameters.pop("image", inputs)
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
            inputs = pairs[0] if is_image(image) and isinstance(question, str) else pairs
        elif is_image(image):
            raise InputError(f"{self.task} takes {self._takes()}; with isoform run, --set question=TEXT")
        return super().__call__(inputs, batch_size=batch_size, **parameters)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _takes(self) -> str:
        return 'image= and question=, {"image": picture, "question": text}, or a list of those'

    @classmethod
    def _own(cls) -> frozenset[str]:
        return frozenset(("truncation", "timeout", "generate_kwargs", "top_k"))

    def _answer(
        self,
        items: Sequence[Mapping[str, Any]],
        batch_size: int | None,
        *,
        truncation: bool = True,
        timeout: float | None = None,
        top_k: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **generation: Any,
    ) -> list[Any]:
        """`truncation` cuts a question to the model's positions. `timeout`: seconds for a picture from the network.

        `top_k` changes nothing: one answer is generated, as in transformers. The others are generation's settings.
        """
        config = self._settings(generate_kwargs, generation)
        for item in items:
            if not isinstance(item, Mapping) or not {"image", "question"} <= item.keys():
                raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
            if not isinstance(item["question"], str) or not item["question"].strip():
                raise InputError(f"a question is a text that is not empty, not {item['question']!r:.60}")
        answers: list[Any] = []
        size = batch_size or TOGETHER
        for first in range(0, len(items), size):
            group = items[first : first + size]
            rows = self._encode([item["question"] for item in group], truncation=truncation)
            asked = self.tokenizer.pad(rows, "right")
            inputs: dict[str, Any] = {
                "pixel_values": self._pixels([item["image"] for item in group], timeout),
                "input_ids": asked.input_ids,
                "attention_mask": asked.attention_mask,
            }
            told = self._told(inputs, [[self.start]] * len(group), config, first)
            answers += [[{"answer": self._text(ids).strip()} for ids in texts] for texts in told]
        return answers
