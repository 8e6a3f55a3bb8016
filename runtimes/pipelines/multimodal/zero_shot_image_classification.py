"""zero-shot-image-classification: which of some texts fits a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import best_first, scored
from isoform.runtimes.pipelines.vision.picture_encoder import PictureEncoder
from isoform.runtimes.preprocess.text.tokenizer import pad

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHOLE = 64  # tokens of a text for a model that has no mask of the padding


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotImageClassificationOptions:
    """The parameters of a call."""

    candidate_labels: Sequence[str] | str | None = None
    hypothesis_template: str = "This is a photo of {}."  # each label takes the place of the {}
    timeout: float | None = None

    @property
    def labels(self) -> list[str]:
        """The labels as a list. Raises InputError for what is none, or an empty one."""
        given = self.candidate_labels
        labels = [given] if isinstance(given, str) else list(given or ())
        if not labels or not all(isinstance(label, str) for label in labels):
            raise InputError(f"candidate_labels={given!r:.80} is no list of texts; give at least one")
        return labels


@dataclass(frozen=True, slots=True)
class _ZeroShotCall:
    """The labels, and the inputs that are the same for all pictures: the tokens of the labels."""

    labels: list[str]
    tokens: dict[str, NDArray[np.int64]]
    timeout: float | None


class ZeroShotImageClassification(PictureEncoder):
    """`pipe("cat.jpg", candidate_labels=["cat", "dog"])` -> [{"score": 0.9, "label": "cat"}, …], the best first.

    The texts are read once for each batch of pictures. A model that judges each pair alone gives probabilities that do
    not add up to 1.
    """

    task: ClassVar[str] = "zero-shot-image-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits_per_image",)
    options: ClassVar[type[ZeroShotImageClassificationOptions]] = ZeroShotImageClassificationOptions
    reads_text: ClassVar[bool] = True
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "image", "images")

    def __call__(self, inputs: Any = None, candidate_labels: Any = None, **parameters: Any) -> Any:
        """A picture or a list of pictures -> the labels of each with their scores."""
        labels = {} if candidate_labels is None else {"candidate_labels": candidate_labels}
        return super().__call__(inputs, **parameters, **labels)

    def begin(self, options: ZeroShotImageClassificationOptions) -> _ZeroShotCall:
        """See `Pipeline.begin`."""
        labels, template = options.labels, options.hypothesis_template
        try:
            texts = [template.format(label) for label in labels]
        except (IndexError, KeyError, ValueError):
            raise InputError(f"hypothesis_template={template!r} must have one {{}}, where the label goes") from None
        return _ZeroShotCall(labels, self._tokens(texts), options.timeout)

    def feed(self, batch: list[Any], call: _ZeroShotCall) -> dict[str, NDArray[Any]]:
        """See `OneGraph.feed`."""
        return {**super().feed(batch, call), **call.tokens}

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: _ZeroShotCall) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        scores = scored(pieces[0].output["logits_per_image"], self.facts.get("scores", "softmax"))
        return [{"score": float(scores[n]), "label": call.labels[n]} for n in best_first(scores)]

    def _tokens(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        if self.session.signature.takes("mask"):
            batch = self.text_tokenizer.pad(self.encode(texts))
            return {self._input("tokens"): batch.input_ids, self._input("mask"): batch.attention_mask}
        rows = [row.ids for row in self.encode(texts, truncation=True, max_length=WHOLE)]
        rows = [[*ids, *[self.text_tokenizer.pad_id] * (min(WHOLE, self.context or WHOLE) - len(ids))] for ids in rows]
        return {self._input("tokens"): pad(rows, None, self.text_tokenizer.pad_id, "right").input_ids}
