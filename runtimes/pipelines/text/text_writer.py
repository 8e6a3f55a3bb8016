"""Pipelines that write texts token by token, over a decoder with a key/value cache."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.loop import refuse_settings, steps
from isoform.runtimes.generation.model_file import account_file, account_ids
from isoform.runtimes.generation.rules import CallersRules, is_transformers, read_rules
from isoform.runtimes.generation.scores import scores_of
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.generation.settings import GenerationConfig, model_settings, resolve, settings_of
from isoform.runtimes.generation.text_stream import TextStream
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.pipelines.text.assistant import Assistants
from isoform.runtimes.pipelines.text.grammars import Grammars

if TYPE_CHECKING:
    from isoform.runtimes.generation.grammar import Grammar
    from isoform.runtimes.pipelines.text.assistant import Fitted
    from isoform.runtimes.session import Decoder, Session

TOGETHER = 8  # inputs of a list that are decoded together


class TokenStreamer(Protocol):
    """transformers' streamers: arrays of ids, those that the decoder is fed first, then one token at a time."""

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


Streamer = Callable[[str], None] | TokenStreamer


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """The parameters of a call that every such task has."""

    return_text: bool | None = None
    return_tensors: bool | str | None = None  # token ids instead of text
    return_scores: bool = False  # {"score", "token_scores"} besides, see `scores_of`; not a parameter of transformers
    clean_up_tokenization_spaces: bool | None = None
    skip_special_tokens: bool = True
    stop_sequence: str | Sequence[str] | None = None  # ends a text, which keeps it
    truncation: bool | str | None = None
    generation_config: Any = None  # ours, transformers' or a mapping; replaces what the pipeline was made with
    generate_kwargs: Mapping[str, Any] | None = None  # more settings
    logits_processor: Any = None  # see `rules`
    stopping_criteria: Any = None
    prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None
    response_format: Mapping[str, Any] | None = None  # JSON, of a schema or any; see `grammar`
    grammar: str | None = None  # that the text follows, in llama.cpp's notation or Lark's
    regex: str | None = None  # that the text matches
    choices: Sequence[str] | None = None  # of which the text is one
    assistant_model: Any = None  # guesses tokens: a folder, a Hub id, a module or a pipeline
    assistant_tokenizer: Any = None  # the assistant's, instead of its own
    streamer: Streamer | None = None  # gets new text as it comes, one input after the other
    generation: Mapping[str, Any] = field(default_factory=dict)  # the settings of `GenerationConfig`


@dataclass(frozen=True, slots=True)
class WritingCall:
    """`decode` turns new ids into the text of the answer."""

    options: Any
    settings: GenerationConfig
    rules: CallersRules
    assistant: Fitted | None
    grammar: Grammar | None
    decode: Callable[[Sequence[int]], str]


class TextWriter(BatchPipeline):
    """A pipeline whose inputs have one piece each, and whose outputs are the rows of the texts of a piece."""

    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    defaults: ClassVar[Mapping[str, Any]]  # settings that hold unless the model or the call says otherwise
    begins: ClassVar[bool] = False  # whether new text is a text from its beginning, not one that goes on
    scored: ClassVar[bool] = False  # whether an answer needs the log-probabilities of its tokens
    cleans: ClassVar[bool | None] = None  # clean_up_tokenization_spaces; None: what the tokenizer's settings say

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        if not session.signature.states:
            raise InputError(f"{self.task} needs a decoder with a key/value cache; this model is not one")
        self.settings = self._model_settings()
        account_ids(self.folder, self.settings, self._generation(), self.vocabulary)
        if "eos_token_id" not in self.settings and (end := self.text_tokenizer.token_id("eos_token")) is not None:
            self.settings["eos_token_id"] = end
        self._defaults: dict[str, Any] = dict(self.defaults)
        if (pad := self.text_tokenizer.token_id("pad_token")) is not None:
            self._defaults["pad_token_id"] = pad
        resolve(self._generation(), self.settings, self._defaults)
        self._assistants, self._grammars = Assistants(self), Grammars(self, begins=self.begins)

    def _model_settings(self) -> dict[str, Any]:
        """The settings that the model comes with."""
        settings = model_settings(self.folder)
        account_file(self.folder, settings)
        return settings

    # ------------------------------------------------------------------ a task's own
    @abstractmethod
    def _steps(self, pieces: Sequence[Any], call: WritingCall, first: int) -> Iterator[list[TextRow]]:
        """The rows of a batch of pieces after each token; `first` is the number of the first piece in the call."""

    @abstractmethod
    def _fed(self, piece: Any, call: WritingCall) -> list[int]:
        """What the decoder is fed first."""

    def _own_settings(self, options: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of generation that follow from a call's other options, given those of the call."""
        return {}

    def _settings(self, settings: GenerationConfig, options: Any) -> GenerationConfig:
        """The settings of a call as far as they depend on its other options."""
        return settings

    # ------------------------------------------------------------------ what all share
    def _written(
        self,
        begun: Session | Decoder,
        prompts: Sequence[list[int]],
        pieces: Sequence[Any],
        call: WritingCall,
        first: int,
        *,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[list[TextRow]]:
        """`steps` with all that a call asks for, over a session, or a decoder with a row for each prompt."""
        return steps(
            begun,
            prompts,
            call.settings,
            context=self.context,
            decode=self.text_tokenizer.decode,
            first_row=first,
            callers=call.rules,
            recompute_beyond=self.facts.get("recompute_beyond"),
            keep_chances=self.scored or call.options.return_scores,
            sources=sources,
            assistant=None if call.assistant is None else call.assistant.reading(pieces),
            grammar=call.grammar,
        )

    def stream(self, inputs: Any, **parameters: Any) -> Iterator[str]:
        """The new text of one input, piece by piece as it comes; the parameters are those of a call."""
        if not self._is_one(inputs):
            raise InputError(f"stream() takes one input, which is {self._one()}, not {inputs!r:.80}")
        call = self._call(self._together(parameters))
        if call.settings.num_return_sequences > 1:
            raise InputError("stream() makes one text; pass num_return_sequences=1")
        if call.settings.num_beams > 1:
            raise InputError("beams are known when they end, so stream() has no pieces of them; pass num_beams=1")
        if call.options.return_scores:
            raise InputError("stream() gives text alone; for return_scores=True, call the pipeline")
        self.check(inputs)
        ((piece,),) = self.prepare([inputs], call)
        options = call.options
        text = TextStream(partial(self.text_tokenizer.decode, skip_special_tokens=options.skip_special_tokens))
        for token in _tokens(self._steps([piece], call, 0)):
            if said := text.push(token):
                yield said
        if said := text.end():
            yield said

    def close(self) -> None:
        """See `Pipeline.close`; assistants that the pipeline opened are closed too."""
        self._assistants.close()
        super().close()

    def _one(self) -> str:
        """What one input is, in the words of an error."""
        return "a text"

    def runs_alone(self, size: int | None, call: WritingCall) -> bool:
        """See `Pipeline.runs_alone`."""
        return size == 1 or call.options.streamer is not None

    def _writes_itself(self, call: WritingCall) -> bool:
        return call.options.streamer is not None

    def begin(self, options: Any) -> WritingCall:
        """See `Pipeline.begin`."""
        generation, given = {**(options.generate_kwargs or {}), **options.generation}, options.generation_config
        if options.stop_sequence is not None:
            generation["stop_strings"] = options.stop_sequence
        generation |= self._own_settings(options, generation)
        if isinstance(given, GenerationConfig):
            if generation:
                raise InputError(
                    f"generation_config comes with {', '.join(generation)}; give all settings in one place"
                )
            settings = given
        else:
            settings = resolve({**settings_of(given), **generation}, self.settings, self._defaults)
        settings, rules = read_rules(
            self._settings(settings, options),
            options.logits_processor,
            options.stopping_criteria,
            options.prefix_allowed_tokens_fn,
        )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = getattr(settings, name)
            last = max(forced) if isinstance(forced, tuple) else forced
            if last is not None and self.vocabulary is not None and last >= self.vocabulary:
                raise InputError(f"{name}={last}, and the model has {self.vocabulary} tokens; pass one of them")
        least, most = settings.min_new_tokens, settings.max_new_tokens
        if least is not None and most is not None and least > most:
            warnings.warn(f"min_new_tokens={least} is more than max_new_tokens={most}, which ends a text", stacklevel=2)
        if options.streamer is not None and settings.num_return_sequences > 1:
            raise InputError("a streamer takes one text at a time; pass num_return_sequences=1")
        if options.streamer is not None and settings.num_beams > 1:
            raise InputError("beams are known when they end, so a streamer gets no pieces of them; pass num_beams=1")
        cleans = options.clean_up_tokenization_spaces
        decode = partial(
            self.text_tokenizer.decode,
            skip_special_tokens=options.skip_special_tokens,
            clean_up_tokenization_spaces=self.cleans if cleans is None else cleans,
        )
        assistant = self._assistants.find(options.assistant_model, options.assistant_tokenizer)
        refuse_settings(settings, guessed=assistant is not None)
        grammar = self._grammars.find(options, settings.eos_token_id)
        return WritingCall(options, settings, rules, assistant, grammar, decode)

    def answers(self, items: Sequence[Any], size: int | None, call: WritingCall) -> Iterator[Any]:
        """See `Pipeline.answers`; a streamer is given one text after the other."""
        return super().answers(items, size if call.options.streamer is None else 1, call)

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        return Batches(count, neighbours(pieces, size or TOGETHER))

    def forward(self, batches: Iterator[list[Any]], count: int, call: WritingCall) -> Iterator[Sequence[list[TextRow]]]:
        """See `BatchPipeline.forward`."""
        texts, start = call.settings.num_return_sequences, 0
        for batch in batches:
            if call.options.streamer is None:
                *_, rows = self._steps(batch, call, start)
            else:
                rows = [
                    row
                    for n, piece in enumerate(batch, start)
                    for row in self._streamed(piece, call, n, call.options.streamer)
                ]
            start += len(batch)
            yield [rows[n : n + texts] for n in range(0, len(rows), texts)]

    def _streamed(self, piece: Any, call: WritingCall, number: int, streamer: Any) -> list[TextRow]:
        """Generate one text and give the streamer every piece or token of it."""
        put = getattr(streamer, "put", None)
        if put is None and not callable(streamer):
            raise InputError(f"a streamer is a function of a text, or has put() and end(), unlike {streamer!r:.60}")
        text, rows = TextStream(call.decode), list[TextRow]()
        array = _array_for(streamer)
        if put is not None:
            put(array([self._fed(piece, call)]))
        for token in _tokens(self._steps([piece], call, number), rows):
            if put is not None:
                put(array([token]))
            elif said := text.push(token):
                streamer(said)
        if put is not None:
            streamer.end()
        elif said := text.end():
            streamer(said)
        return rows


def scored(rows: Sequence[TextRow], call: WritingCall) -> list[dict[str, Any]]:
    """What the records of these rows hold beside their texts."""
    return [scores_of(row, call.settings) if call.options.return_scores else {} for row in rows]


def even(rows: Sequence[TextRow], settings: GenerationConfig) -> list[list[int]]:
    """The new ids of the rows of one input, the shorter ones padded, as transformers returns them."""
    made = [row.made for row in rows]
    longest = max(map(len, made))
    ends = settings.eos_token_id or (0,)
    pad = settings.pad_token_id if settings.pad_token_id is not None else ends[0]
    return [ids + [pad] * (longest - len(ids)) for ids in made]


def _tokens(steps: Iterator[list[TextRow]], rows: list[TextRow] | None = None) -> Iterator[int]:
    """The new tokens of a text, of which a step may give several; `rows` becomes the rows of the last step."""
    given = 0
    for found in steps:
        if rows is not None:
            rows[:] = found
        yield from found[0].made[given:]
        given = len(found[0].made)


def _array_for(streamer: Any) -> Callable[[Any], Any]:
    """What makes the arrays that a streamer is given: torch tensors for transformers' classes, NumPy for others."""
    if is_transformers(streamer):
        import torch

        return torch.tensor
    return partial(np.array, dtype=np.int64)
