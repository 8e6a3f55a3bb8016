"""document-question-answering: the words of a page that answer a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.multimodal.documents import WORDS, Documents, PageOptions
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.preprocess.image.pictures import is_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.preprocess.document.page import Window

_NEVER = -10000.0  # the logit of a token that cannot be part of an answer
_SHARED = 256  # tokens that two windows share, unless a window has fewer than twice as many


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentQuestionAnsweringOptions(PageOptions):
    """The parameters of a call.

    `use_image`: the model sees the picture, as it did when it was trained. transformers' pipeline never shows it one
    (it hands the pixels over under a name that the model does not read), so that is not the default.
    """

    top_k: int = 1
    max_answer_len: int = 15  # tokens of an answer
    max_seq_len: int | None = None  # tokens of the windows that a page is read in; as many as the tokenizer may give
    max_question_len: int | None = None  # tokens; a longer question is cut
    doc_stride: int | None = None  # tokens that two windows share: half a window or 256
    handle_impossible_answer: bool = False  # "" is an answer too
    use_image: bool = False
    padding: Any = None  # changes nothing

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len"):
            whole(name, getattr(self, name))
        for name in ("max_seq_len", "max_question_len"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        if self.doc_stride is not None:
            whole("doc_stride", self.doc_stride, 0)


class DocumentQuestionAnswering(Documents):
    """`pipe(image="bill.png", question="How much?")` -> [{"score", "answer", "start", "end"}], the best `top_k`.

    `start` and `end` count the words of the page, both included. A page that is too long is read in windows that
    overlap, and a page without words has no answer: [].
    """

    task: ClassVar[str] = "document-question-answering"
    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    options: ClassVar[type[DocumentQuestionAnsweringOptions]] = DocumentQuestionAnsweringOptions
    asks: ClassVar[tuple[str, ...]] = ("question",)

    def __call__(self, inputs: Any = None, question: Any = None, word_boxes: Any = None, **parameters: Any) -> Any:
        """A page with its question, {"image", "question"[, "word_boxes"]}, or a list of those; or a page and a list of
        questions, or lists of both of one length."""
        given = {"question": question, "word_boxes": word_boxes}
        return super().__call__(inputs, **parameters, **{name: x for name, x in given.items() if x is not None})

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`: objects of a page and its question."""
        question = parameters.pop("question", None)
        if question is None:
            page = super()._inputs(inputs, parameters)
            if isinstance(page, Mapping) and "question" not in page:
                raise InputError(f"{self.task} takes {self._takes()}; with isoform run, --set question=TEXT")
            return page
        own = {name: parameters.pop(name) for name in WORDS if name in parameters}
        images: Any = {} if inputs is None and not any(k in parameters for k in self.keywords) else None
        if images is None:
            images = super()._inputs(inputs, parameters)
        many = isinstance(images, list | tuple)
        if many and own:
            raise InputError(f"{next(iter(own))}= goes with one picture; give a list of objects that hold their own")
        pages = [_page(image, own) for image in (images if many else [images])]
        questions = list(question) if isinstance(question, list | tuple) else [question]
        count = max(len(pages), len(questions))
        if not all(len(part) in (1, count) for part in (pages, questions)):
            raise InputError(f"{len(pages)} pages came with {len(questions)} questions; give one of either, or as many")
        pages, questions = pages * (count // len(pages)), questions * (count // len(questions))
        pairs = [{**page, "question": asked} for page, asked in zip(pages, questions, strict=True)]
        return pairs if many or isinstance(question, list | tuple) else pairs[0]

    def _takes(self) -> str:
        return 'image= and question=, {"image": picture, "question": text[, "word_boxes"]}, or a list of those'

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        super().check(item)
        if not isinstance(item, Mapping) or not isinstance(item.get("question"), str):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")
        if not item["question"].strip():
            raise InputError(f"a question is a text that is not empty, not {item['question']!r:.60}")

    def prepare(
        self, items: Sequence[Mapping[str, Any]], call: DocumentQuestionAnsweringOptions
    ) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        limits = [n for n in (call.max_seq_len or self.text_tokenizer.max_length, self.context) if n]
        length = min(limits, default=None)
        shared = call.doc_stride if call.doc_stride is not None else min((length or 2 * _SHARED) // 2, _SHARED)
        for item in items:
            (page,) = self.pages([item], call, seen=call.use_image)
            question = self._short(item["question"].split(), call.max_question_len)
            yield from self.windows([page], [question], length=length, stride=shared)

    def _short(self, words: list[str], limit: int | None) -> list[str]:
        """The words of a question, cut to so many tokens."""
        if limit is None:
            return words
        texts: list[Any] = [words]
        (row,) = self.text_tokenizer.encode(texts, add_special_tokens=False, words=True)
        if len(row.ids) <= limit:
            return words
        last = row.word_ids[limit - 1] or 0
        return [*words[:last], words[last][: row.offsets[limit - 1][1]]]

    def finish(
        self, item: Any, pieces: Sequence[InputPiece], call: DocumentQuestionAnsweringOptions
    ) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        found: list[dict[str, Any]] = []
        nothing = 1.0
        for piece in pieces:
            window: Window = piece.value
            spans, null = self._spans(window, piece.output, call)
            nothing = min(nothing, null)
            for first, last, score in spans:
                start, end = window.row.word_ids[first], window.row.word_ids[last]
                if start is not None and end is not None:
                    answer = " ".join(word for word, _ in window.page.words[start : end + 1])
                    found.append({"score": score, "answer": answer, "start": start, "end": end})
        if call.handle_impossible_answer:
            found.append({"score": nothing, "answer": "", "start": 0, "end": 0})
        return sorted(found, key=lambda one: one["score"], reverse=True)[: call.top_k]

    def _spans(
        self, window: Window, output: Mapping[str, NDArray[np.float32]], call: DocumentQuestionAnsweringOptions
    ) -> tuple[list[tuple[int, int, float]], float]:
        """The best (first token, last token, score) of a window, and the score of "no answer here"."""
        cls = self.text_tokenizer.token_id("cls_token")
        allowed = np.array([n == 1 for n in window.row.sequence_ids]) | (np.array(window.row.ids) == cls)
        begin, end = (_chances(output[name][: len(window)], allowed) for name in self.outputs)
        null = float(begin[0] * end[0])
        begin[0] = end[0] = 0
        scores = np.tril(np.triu(np.outer(begin, end)), call.max_answer_len - 1)
        best = np.argsort(-scores, axis=None, kind="stable")[: call.top_k]
        places = zip(*np.unravel_index(best, scores.shape), strict=True)
        return [(int(a), int(b), float(scores[a, b])) for a, b in places if allowed[a] and allowed[b]], null


def _page(image: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """One page as an object."""
    if isinstance(image, Mapping):
        return {**image, **own}
    if not is_image(image):
        raise InputError(f"a page is a picture (a path, an address, base64, bytes or a PIL picture), not {image!r:.60}")
    return {"image": image, **own}


def _chances(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Softmax over the tokens that may be in an answer."""
    kept = np.where(allowed, logits, np.float32(_NEVER))
    powers = np.exp(kept - kept.max())
    return np.asarray(powers / powers.sum(), np.float32)
