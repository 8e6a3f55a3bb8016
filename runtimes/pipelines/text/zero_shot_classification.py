"""zero-shot-classification: which of the caller's labels fit a text, by a model that knows what follows from what."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotClassificationOptions:
    """The parameters of a call."""

    candidate_labels: str | Sequence[str] | None = None  # a list, or a text with commas
    hypothesis_template: str = "This example is {}."  # {} stands for a label
    multi_label: bool = False  # True: each label for itself; False: their scores sum up to 1

    def __post_init__(self) -> None:
        if not isinstance(self.hypothesis_template, str):
            raise InputError(f"hypothesis_template={self.hypothesis_template!r:.60} is no text with {{}} in it")
        if not isinstance(self.multi_label, bool):
            raise InputError(f"multi_label={self.multi_label!r:.60} is neither True nor False")


@dataclass(frozen=True, slots=True)
class _ZeroShotCall:
    labels: list[str]
    hypotheses: list[str]
    several: bool


class ZeroShotClassification(TextEncoder):
    """`pipe("I need it now!", candidate_labels=["urgent", "calm"])` -> {"sequence", "labels", "scores"}, best first.

    A list of texts gives a list of such objects. Each label makes a hypothesis about the text ("This example is
    urgent."), and the model says how surely the hypothesis follows. A text that is too long is cut, a hypothesis not.
    """

    task: ClassVar[str] = "zero-shot-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[ZeroShotClassificationOptions]] = ZeroShotClassificationOptions
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "sequences")

    def __call__(self, inputs: Any = None, candidate_labels: Any = None, **parameters: Any) -> Any:
        """One text -> its labels; a list -> a list."""
        given = {} if candidate_labels is None else {"candidate_labels": candidate_labels}
        return super().__call__(inputs, **given, **parameters)

    @cached_property
    def entailment(self) -> int:
        """The class that means "it follows", by `label2id` of config.json; -1 where none is called so."""
        stated = self.config.get("label2id")
        if stated is None:
            stated = {name: index for index, name in (self.config.get("id2label") or {}).items()}
        try:
            return next((int(n) for name, n in stated.items() if str(name).lower().startswith("entail")), -1)
        except (AttributeError, TypeError, ValueError):
            raise CheckpointError(
                f"{self.folder}/config.json: label2id is {stated!r:.60}, not an object of numbers"
            ) from None

    def begin(self, options: ZeroShotClassificationOptions) -> _ZeroShotCall:
        """See `Pipeline.begin`."""
        given = options.candidate_labels
        labels = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
        if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
            raise InputError(
                f"candidate_labels={given!r:.60} is neither a list of texts nor one text with commas; name the labels "
                "to choose from"
            )
        if not labels:
            raise InputError("candidate_labels names no label; give one at least")
        template = options.hypothesis_template
        try:
            hypotheses = [template.format(label) for label in labels]
        except (IndexError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"hypothesis_template={template!r:.60} takes no label ({error}); write one {{}}") from None
        if hypotheses[0] == template:
            raise InputError(f"hypothesis_template={template!r:.60} has no {{}}, where the label goes")
        if self.entailment < 0:
            warnings.warn(
                f"no label of {self.folder}/config.json begins with 'entail' (label2id), so the last class is taken "
                "for it; the scores mean nothing unless the model was trained to tell what follows from a text",
                stacklevel=4,
            )
        return _ZeroShotCall(list(labels), hypotheses, options.multi_label or len(labels) == 1)

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not isinstance(item, str) or not item:
            raise InputError(f"{self.task} takes {self._takes()}, none of them empty; this is {item!r:.80}")

    def prepare(self, items: Sequence[str], call: _ZeroShotCall) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`: a pair of the text and a hypothesis for each label."""
        return (self._pairs(item, call.hypotheses) for item in items)

    def _pairs(self, text: str, hypotheses: Sequence[str]) -> list[Encoding]:
        texts = [text] * len(hypotheses)
        try:
            return self.encode(texts, hypotheses, truncation="only_first")
        except InputError:  # a hypothesis fills the room alone
            return self.encode(texts, hypotheses)

    def finish(self, item: str, pieces: Sequence[InputPiece], call: _ZeroShotCall) -> dict[str, Any]:
        """See `BatchPipeline.finish`."""
        logits = np.stack([piece.output["logits"] for piece in pieces])  # (labels, classes)
        if call.several:
            against = -1 if self.entailment == 0 else 0
            scores = softmax(logits[:, [against, self.entailment]])[:, 1]
        else:
            scores = softmax(logits[:, self.entailment])
        best = scores.argsort()[::-1]
        return {"sequence": item, "labels": [call.labels[n] for n in best], "scores": scores[best].tolist()}
