"""question-answering: the span of a text that answers a question, as transformers 4 gave it (5 dropped the task)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.text.questions import Questions
from isoform.runtimes.pipelines.text.text_encoder import TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

_NEVER = -10000.0  # the logit of a token that cannot be part of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnsweringOptions:
    """The parameters of a call."""

    top_k: int = 1
    max_answer_len: int = 15  # tokens of an answer
    max_seq_len: int | None = None  # tokens of the parts that a long context is read in, 384 unless set
    max_question_len: int = 64  # tokens; a longer question is cut
    doc_stride: int | None = None  # tokens that two parts share, 128 unless set
    handle_impossible_answer: bool = False  # "" is an answer too
    align_to_words: bool = True  # an answer has whole words; False: it may begin and end inside them
    padding: Any = None  # changes nothing

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.max_answer_len < 1:
            raise InputError(f"top_k={self.top_k} and max_answer_len={self.max_answer_len} must be at least 1")


class QuestionAnswering(Questions, TextEncoder):
    """`pipe(question="Where?", context="In Paris.")`, or with {"question", "context"}, or a list of those ->
    {"score", "start", "end", "answer"}, `start` and `end` counting characters of the context.

    A context that is too long is read in overlapping parts.
    """

    task: ClassVar[str] = "question-answering"
    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    options: ClassVar[type[QuestionAnsweringOptions]] = QuestionAnsweringOptions

    def prepare(self, items: Sequence[Mapping[str, str]], call: QuestionAnsweringOptions) -> Iterable[Iterable[Any]]:
        """See `BatchPipeline.prepare`."""
        limits = [n for n in (self.text_tokenizer.max_length, self.context) if n]
        length = call.max_seq_len or min([*limits, 384])
        questions = [self._short(item["question"], call.max_question_len) for item in items]
        contexts = [item["context"] for item in items]
        rows = self.encode(
            *((contexts, questions) if self._place == 0 else (questions, contexts)),
            truncation="only_first" if self._place == 0 else "only_second",
            max_length=length,
            stride=call.doc_stride if call.doc_stride is not None else min(length // 2, 128),
        )
        return ([row, *row.overflowing] for row in rows)

    def finish(self, item: Mapping[str, str], pieces: Sequence[InputPiece], call: QuestionAnsweringOptions) -> Any:
        """See `BatchPipeline.finish`."""
        found: list[dict[str, Any]] = []
        nothing = 1.0
        # Several spans may have the same words, and so one answer, which is as likely as all of them together.
        wanted = 2 * call.top_k + 10 if call.align_to_words else call.top_k
        for piece in pieces:
            row, logits = piece.value, (piece.output["start_logits"], piece.output["end_logits"])
            spans, null = self._spans(row, *logits, wanted, call.max_answer_len)
            nothing = min(nothing, null)
            for first, last, score in spans:
                start, end = _characters(row, first, last, self._place if call.align_to_words else None)
                text = item["context"][start:end]
                same = next((one for one in found if one["answer"].lower() == text.lower()), None)
                if same is not None:
                    same["score"] += score
                else:
                    found.append({"score": score, "start": start, "end": end, "answer": text})
        if call.handle_impossible_answer:
            found.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda a: a["score"], reverse=True)[: call.top_k]
        return found[0] if len(found) == 1 else found

    @property
    def _place(self) -> int:
        """Which of the two texts is the context: the first in models that pad on the left, as they were trained."""
        return 0 if self.text_tokenizer.padding_side == "left" else 1

    def _short(self, question: str, limit: int) -> str:
        """The question, cut to so many tokens."""
        (row,) = self.text_tokenizer.encode([question], add_special_tokens=False)
        return question[: row.offsets[limit - 1][1]] if len(row.ids) > limit else question

    def _spans(
        self, row: Encoding, start: NDArray[np.float32], end: NDArray[np.float32], top_k: int, longest: int
    ) -> tuple[list[tuple[int, int, float]], float]:
        """The best (first token, last token, score) of one part, and the score of "no answer here"."""
        inside = np.array([n == self._place for n in row.sequence_ids])
        cls = self.text_tokenizer.token_id("cls_token")
        allowed = inside | (np.array(row.ids) == cls)
        begin, finish = (softmax(np.where(allowed, logits, _NEVER)) for logits in (start, end))
        null = float(begin[0] * finish[0])
        begin[0] = finish[0] = 0
        scores = np.tril(np.triu(np.outer(begin, finish)), longest - 1)
        best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
        places = zip(*np.unravel_index(best, scores.shape), strict=True)
        return [(int(a), int(b), float(scores[a, b])) for a, b in places if allowed[a] and allowed[b]], null


def _characters(row: Encoding, first: int, last: int, place: int | None) -> tuple[int, int]:
    """Where two tokens begin and end in the context, or the words of text number `place` that they are part of."""
    if place is None:
        return row.offsets[first][0], row.offsets[last][1]
    begins, ends = row.token_to_word(first), row.token_to_word(last)
    begin = row.word_to_chars(begins, place) if begins is not None else None
    end = row.word_to_chars(ends, place) if ends is not None else None
    return (begin or row.offsets[first])[0], (end or row.offsets[last])[1]
