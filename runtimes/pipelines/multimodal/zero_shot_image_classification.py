"""zero-shot-image-classification: which of some texts fits a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.vision.pictures import Pictures
from isoform.runtimes.preprocess.text.tokenizer import pad

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHOLE = 64  # tokens of a text for a model that has no mask of the padding


class ZeroShotImageClassification(Pictures):
    """`pipe("cat.jpg", candidate_labels=["cat", "dog"])` -> [{"score": 0.9, "label": "cat"}, …], the best first.

    The texts are read once for each batch of pictures. A model that judges each pair alone (SigLIP) gives
    probabilities that do not add up to 1.
    """

    task: ClassVar[str] = "zero-shot-image-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits_per_image",)
    reads_text: ClassVar[bool] = True

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = "This is a photo of {}.",
        timeout: float | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Each label takes the place of the {} in `hypothesis_template`."""
        labels = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels or ())
        if not labels or not all(isinstance(label, str) for label in labels):
            raise InputError(f"candidate_labels={candidate_labels!r:.80} is no list of texts; give at least one")
        try:
            texts = [hypothesis_template.format(label) for label in labels]
        except (IndexError, KeyError, ValueError):
            raise InputError(
                f"hypothesis_template={hypothesis_template!r} must have one {{}}, where the label goes"
            ) from None
        others = self._tokens(texts)
        single = "siglip" in str(self.config.get("model_type"))
        answers = []
        for out in self._outputs(items, batch_size, timeout, others):
            logits = out["logits_per_image"]
            scores = np.float32(1) / (np.float32(1) + np.exp(-logits)) if single else softmax(logits)
            order = sorted(range(len(labels)), key=lambda n: -scores[n])
            answers.append([{"score": float(scores[n]), "label": labels[n]} for n in order])
        return answers

    def _tokens(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        if any(port.name == "attention_mask" for port in self.session.signature.inputs):
            batch = self.tokenizer.pad(self._encode(texts))
            return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        rows = [row.ids for row in self._encode(texts, truncation=True, max_length=WHOLE)]
        rows = [[*ids, *[self.tokenizer.pad_id] * (min(WHOLE, self.context or WHOLE) - len(ids))] for ids in rows]
        return {"input_ids": pad(rows, None, self.tokenizer.pad_id, "right").input_ids}
