"""question-answering: the span of a text that answers a question, as transformers 4 gave it (5 dropped the task)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.pipelines.base import Pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

_NEVER = -10000.0  # the logit of a token that cannot be part of an answer


class QuestionAnswering(Pipeline):
    """`pipe(question="Where?", context="In Paris.")`, or with {"question", "context"}, or a list of those ->
    {"score", "start", "end", "answer"}, `start` and `end` counting characters of the context.

    A context that is too long is read in overlapping parts.
    """

    task: ClassVar[str] = "question-answering"
    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")

    def __call__(self, inputs: Any = None, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """One question or a list -> one answer or a list; with `top_k` above 1 an answer is a list.

        Questions that are texts come with `context=`, a text for all of them or one each.
        """
        question = parameters.pop("question", None) if inputs is None else inputs
        if inputs is None or isinstance(question, str) or _texts(question):
            if question is None or "context" not in parameters:
                raise InputError(f"question-answering takes {self._takes()}; with isoform run, --set context=TEXT")
            context = parameters.pop("context")
            if isinstance(question, str):
                inputs = {"question": question, "context": context}
            else:
                contexts = [context] * len(question) if isinstance(context, str) else context
                if len(contexts) != len(question):
                    raise InputError(f"{len(question)} questions came with {len(contexts)} contexts")
                inputs = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
        return super().__call__(inputs, batch_size=batch_size, **parameters)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def _takes(self) -> str:
        return 'question= and context=, {"question": text, "context": text}, or a list of those'

    def _answer(
        self,
        items: Sequence[Mapping[str, str]],
        batch_size: int | None,
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int = 64,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
    ) -> list[Any]:
        """`max_answer_len`: tokens of an answer. `max_seq_len`, `doc_stride`: length and overlap of the parts that a
        long context is read in (384 and 128 unless set). `handle_impossible_answer`: "" is an answer too."""
        if top_k < 1 or max_answer_len < 1:
            raise InputError(f"top_k={top_k} and max_answer_len={max_answer_len} must be at least 1")
        for item in items:
            if not all(isinstance(item.get(name), str) and item[name] for name in ("question", "context")):
                raise InputError(f"question-answering takes {self._takes()}, neither empty; this is {item!r:.80}")
        limits = [n for n in (self.tokenizer.max_length, self.context) if n]
        length = max_seq_len or min([*limits, 384])
        stride = doc_stride if doc_stride is not None else min(length // 2, 128)
        questions = [self._short(item["question"], max_question_len) for item in items]
        whole = self._encode(
            questions,
            [item["context"] for item in items],
            truncation="only_second",
            max_length=length,
            stride=stride,
        )
        parts = [[row, *row.overflowing] for row in whole]
        outputs = iter(self._forward([part for row in parts for part in row], batch_size))
        answers = []
        for item, row in zip(items, parts, strict=True):
            found: list[dict[str, Any]] = []
            nothing = 1.0
            for part in row:
                out = next(outputs)
                spans, null = self._spans(part, out["start_logits"], out["end_logits"], top_k, max_answer_len)
                nothing = min(nothing, null)
                for first, last, score in spans:
                    start, end = _characters(part, first, last)
                    found.append({"score": score, "start": start, "end": end, "answer": item["context"][start:end]})
            if handle_impossible_answer:
                found.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
            found = sorted(found, key=lambda a: a["score"], reverse=True)[:top_k]
            answers.append(found[0] if len(found) == 1 else found)
        return answers

    def _short(self, question: str, limit: int) -> str:
        """The question, cut to so many tokens."""
        (row,) = self.tokenizer.encode([question], add_special_tokens=False)
        return question[: row.offsets[limit - 1][1]] if len(row.ids) > limit else question

    def _spans(
        self, row: Encoding, start: NDArray[np.float32], end: NDArray[np.float32], top_k: int, longest: int
    ) -> tuple[list[tuple[int, int, float]], float]:
        """The best (first token, last token, score) of one part, and the score of "no answer here"."""
        inside = np.array([n == 1 for n in row.sequence_ids])
        cls = self.tokenizer.token_id("cls_token")
        allowed = inside | (np.array(row.ids) == cls)
        begin, finish = (_probabilities(np.where(allowed, logits, _NEVER)) for logits in (start, end))
        null = float(begin[0] * finish[0])
        begin[0] = finish[0] = 0
        scores = np.tril(np.triu(np.outer(begin, finish)), longest - 1)
        best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
        places = zip(*np.unravel_index(best, scores.shape), strict=True)
        return [(int(a), int(b), float(scores[a, b])) for a, b in places if allowed[a] and allowed[b]], null


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)


def _probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def _characters(row: Encoding, first: int, last: int) -> tuple[int, int]:
    """Where the words of two tokens begin and end in the context."""
    begins, ends = row.token_to_word(first), row.token_to_word(last)
    begin = row.word_to_chars(begins, 1) if begins is not None else None
    end = row.word_to_chars(ends, 1) if ends is not None else None
    return (begin or row.offsets[first])[0], (end or row.offsets[last])[1]
