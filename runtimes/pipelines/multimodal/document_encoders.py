"""The tasks of texts over pages: labels of tokens, labels of a page, and the states of its tokens and patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.multimodal.documents import Documents, PageOptions
from isoform.runtimes.pipelines.nested_lists import given_as
from isoform.runtimes.pipelines.scores import Labels, asked_function, best_first, scored, trained_function

if TYPE_CHECKING:
    from isoform.runtimes.session import Session


class _WholePages(Documents):
    """A page is one piece; what is more than the model's positions is cut off."""

    def prepare(self, items: Sequence[Any], call: PageOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        for item in items:
            yield from self.windows(list(self.pages([item], call)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentTokenClassificationOptions(PageOptions):
    """The parameters of a call."""

    ignore_labels: Sequence[str] = ()  # these are left out


class DocumentTokenClassification(_WholePages):
    """`pipe({"image": "bill.png", "word_boxes": […]})` -> [{"entity", "score", "index", "word", "start", "end"}, …].

    There is one for each token that is of a word; `start` and `end` are None, for a page has no characters to count.
    """

    task: ClassVar[str] = "token-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[DocumentTokenClassificationOptions]] = DocumentTokenClassificationOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)

    def finish(
        self, item: Any, pieces: Sequence[InputPiece], call: DocumentTokenClassificationOptions
    ) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        row, scores = pieces[0].value.row, softmax(pieces[0].output["logits"])
        found = []
        for index, special in enumerate(row.special_tokens_mask):
            best = int(scores[index].argmax())
            if not special and self.labels[best] not in call.ignore_labels:
                entity = {"entity": self.labels[best], "score": float(scores[index][best]), "index": index}
                found.append({**entity, "word": row.tokens[index], "start": None, "end": None})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentClassificationOptions(PageOptions):
    """The parameters of a call."""

    top_k: int | Literal[""] | None = ""
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None  # what the model was trained for

    def __post_init__(self) -> None:
        asked_function(self.function_to_apply)


class DocumentClassification(_WholePages):
    """`pipe({"image": "bill.png", "word_boxes": […]})` -> {"label", "score"}; with `top_k` (None: all) a list."""

    task: ClassVar[str] = "text-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[DocumentClassificationOptions]] = DocumentClassificationOptions

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: DocumentClassificationOptions) -> Any:
        """See `BatchPipeline.finish`."""
        logits = pieces[0].output["logits"]
        scores = scored(logits, asked_function(call.function_to_apply) or trained_function(self.config, len(logits)))
        top_k = 1 if call.top_k == "" else call.top_k
        found = [{"label": self.labels[n], "score": float(scores[n])} for n in best_first(scores, top_k)]
        return found[0] if call.top_k == "" else found


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFeaturesOptions(PageOptions):
    """The parameters of a call."""

    return_tensors: bool | str = False  # True or "pt": tensors of torch; "np": arrays


class DocumentFeatures(_WholePages):
    """`pipe({"image": "bill.png", "word_boxes": […]})` -> a nested list of floats [1, tokens and patches, width]."""

    task: ClassVar[str] = "feature-extraction"
    outputs: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    options: ClassVar[type[DocumentFeaturesOptions]] = DocumentFeaturesOptions

    def finish(self, item: Mapping[str, Any], pieces: Sequence[InputPiece], call: DocumentFeaturesOptions) -> Any:
        """See `BatchPipeline.finish`."""
        return given_as(pieces[0].output["last_hidden_state"][None], call.return_tensors)
