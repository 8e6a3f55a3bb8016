"""question-answering by a model that writes: a prompt with the question and its context, and the text that follows.

The prompt is a conversation where the model has a chat template, and plain text otherwise. transformers shows such
prompts and has no pipeline for them; keys are those of its question-answering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.scores import whole
from isoform.runtimes.pipelines.text.questions import Questions
from isoform.runtimes.pipelines.text.text_writer import TextWriter, WritingCall, WritingOptions
from isoform.runtimes.preprocess.text.chat import ChatTemplate

if TYPE_CHECKING:
    from isoform.runtimes.session import Session

PROMPT = """Read the text and answer the question with a few of its words.

Text: {context}

Question: {question}

Answer:"""
NEWLINE = "\n"  # ends the answer to a plain prompt, and does not begin it
_PLACES = re.compile(r"\{(question|context)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptedAnsweringOptions(WritingOptions):
    """The parameters of a call; `truncation=True` cuts a context that is too long."""

    prompt: str = PROMPT  # {context} and {question} stand for those; a user's message where the model has a template
    chat_template: str | None = None  # one of the model's by name, or a template; "" for the plain prompt
    top_k: int = 1  # above it a list of at most so many answers, by as many beams
    max_answer_len: int | None = None  # tokens of an answer; max_new_tokens, 64 unless set

    def __post_init__(self) -> None:
        whole("top_k", self.top_k)
        if self.max_answer_len is not None:
            whole("max_answer_len", self.max_answer_len)
        if not isinstance(self.prompt, str) or any(name not in self.prompt for name in ("{question}", "{context}")):
            raise InputError(f"prompt={self.prompt!r:.80} lacks {{question}} or {{context}}, which it is made of")
        for name in ("return_tensors", "return_text", "return_scores", "streamer"):
            if getattr(self, name) not in (None, False):
                raise InputError(f"question-answering has no {name}; its answers are objects")


class PromptedAnswering(Questions, TextWriter):
    """`pipe(question="Where?", context="In Paris.")` -> {"score", "start", "end", "answer"}.

    The answer is what the model writes, greedily unless the call says otherwise; `start` and `end` are the characters
    of the context that say the same, or None where it does not. `score` is the mean probability of the answer's tokens.
    """

    task: ClassVar[str] = "question-answering"
    options: ClassVar[type[PromptedAnsweringOptions]] = PromptedAnsweringOptions
    defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 64}
    scored: ClassVar[bool] = True

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.chat_template = ChatTemplate.read(self.folder, self.text_tokenizer.special)

    def _model_settings(self) -> dict[str, Any]:
        """See `TextWriter._model_settings`; an answer is greedy even where the model's own texts are sampled."""
        return {**super()._model_settings(), "do_sample": False}

    def _own_settings(self, options: PromptedAnsweringOptions, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `TextWriter._own_settings`."""
        own: dict[str, Any] = {}
        if options.max_answer_len is not None:
            own["max_new_tokens"] = options.max_answer_len
        if options.top_k > 1:
            own["num_return_sequences"] = options.top_k
        for name, value in own.items():
            if given.get(name, value) != value:
                raise InputError(f"{name}={given[name]!r:.40} and max_answer_len or top_k say two things; give one")
        if options.top_k > 1:
            own["num_beams"] = max(options.top_k, given.get("num_beams") or 1)
        if not self._chats(options) and "stop_strings" not in given:
            own["stop_strings"] = [NEWLINE]
            rows = self.text_tokenizer.encode([NEWLINE, 2 * NEWLINE], add_special_tokens=False)
            own["begin_suppress_tokens"] = sorted({row.ids[-1] for row in rows if row.ids})
        return own

    def _chats(self, options: PromptedAnsweringOptions) -> bool:
        if options.chat_template is not None:
            return bool(options.chat_template)
        return bool(self.chat_template.templates)

    def prepare(self, items: Sequence[Mapping[str, str]], call: WritingCall) -> Iterable[Iterable[list[int]]]:
        """See `BatchPipeline.prepare`: the ids of the prompt."""
        return [[self._prompt(item["question"], item["context"], call)] for item in items]

    def _prompt(self, question: str, context: str, call: WritingCall) -> list[int]:
        ids = self._ids(question, context, call.options)
        new = call.settings.max_new_tokens or 0
        if self.context is None or len(ids) + new <= self.context or not call.options.truncation:
            return ids
        (row,) = self.text_tokenizer.encode([context], add_special_tokens=False)
        kept = len(row.ids)
        while len(ids) + new > self.context and kept > 0:
            kept -= len(ids) + new - self.context
            end = row.offsets[kept - 1][1] if kept > 0 else 0
            ids = self._ids(question, context[:end], call.options)
        return ids

    def _ids(self, question: str, context: str, options: PromptedAnsweringOptions) -> list[int]:
        parts = {"question": question, "context": context}
        text = _PLACES.sub(lambda place: parts[place[1]], options.prompt)
        chats = self._chats(options)
        if chats:
            message = {"role": "user", "content": text}
            text = self.chat_template.render(
                [message], add_generation_prompt=True, chat_template=options.chat_template or None
            )
        (row,) = self.text_tokenizer.encode([text], add_special_tokens=not chats)
        self._check_ids(row.ids)
        return list(row.ids)

    def _steps(self, pieces: Sequence[list[int]], call: WritingCall, first: int) -> Iterator[list[TextRow]]:
        """See `TextWriter._steps`."""
        return self._written(self.session, pieces, pieces, call, first)

    def _fed(self, piece: list[int], call: WritingCall) -> list[int]:
        """See `TextWriter._fed`."""
        return piece

    def finish(self, item: Mapping[str, str], pieces: Sequence[InputPiece], call: WritingCall) -> Any:
        """See `BatchPipeline.finish`."""
        found = [self._answer(row, item["context"], call) for row in pieces[0].output]
        answers: dict[str, dict[str, Any]] = {}
        for one in found:  # beams may differ in nothing but their ends
            answers.setdefault(one["answer"], one)
        return found[0] if call.options.top_k == 1 else list(answers.values())

    def _answer(self, row: TextRow, context: str, call: WritingCall) -> dict[str, Any]:
        ends = frozenset(call.settings.eos_token_id or ())
        chances = [chance for token, chance in zip(row.made, row.chances, strict=False) if token not in ends]
        answer = call.decode(row.made).strip()
        start, end = _place(answer, context)
        score = float(np.exp(chances or row.chances).mean())
        return {"score": score, "start": start, "end": end, "answer": answer}


def _place(answer: str, context: str) -> tuple[int | None, int | None]:
    """Where a context holds an answer, as it stands or in other letters, with its last full stop or without."""
    for text in (answer, answer.removesuffix(".")):
        for found in (context.find(text), context.casefold().find(text.casefold())):
            if text and found >= 0 and context[found : found + len(text)].casefold() == text.casefold():
                return found, found + len(text)
    return None, None
