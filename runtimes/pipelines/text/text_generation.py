"""text-generation: a text or a conversation goes on.

Defaults are those of transformers 5's pipeline: at most 256 new tokens, sampled at temperature 0.7 from the 50 best,
each unless the model's generation_config.json or the call says otherwise. Pass do_sample=False for greedy text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.loop import steps
from isoform.runtimes.generation.model_file import account_file, account_ids
from isoform.runtimes.generation.rules import CallersRules, is_transformers, read_rules
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.generation.settings import GenerationConfig, model_settings, resolve, settings_of
from isoform.runtimes.generation.text_stream import TextStream
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.pipelines.text.assistant import Assistants
from isoform.runtimes.pipelines.text.tokenizer_options import tokenizer_options
from isoform.runtimes.preprocess.text.chat import ChatTemplate, is_chat

if TYPE_CHECKING:
    from isoform.runtimes.conversation import Conversation
    from isoform.runtimes.generation.speculative import Assistant
    from isoform.runtimes.session import Decoder, Session

DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
TOGETHER = 8  # prompts of a list that are decoded together


class TokenStreamer(Protocol):
    """transformers' streamers: arrays of ids, the prompt first, then one token at a time."""

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


Streamer = Callable[[str], None] | TokenStreamer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was given, as text or conversation, and its ids."""

    given: Any
    ids: list[int]
    continues: bool  # a conversation whose last message goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGenerationOptions:
    """The parameters of a call."""

    return_full_text: bool | None = None  # False leaves the prompt out
    return_text: bool | None = None
    return_tensors: bool | None = None  # {"generated_token_ids"} instead of text
    clean_up_tokenization_spaces: bool | None = None
    skip_special_tokens: bool = True
    prefix: str | None = None  # put before a text; lengths of the call do not count it
    stop_sequence: str | Sequence[str] | None = None  # ends a text, which keeps it
    handle_long_generation: str | None = None
    truncation: bool | str | None = None
    add_special_tokens: bool | None = None
    padding: Any = None  # changes nothing
    continue_final_message: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    chat_template: str | None = None
    tokenizer_encode_kwargs: Mapping[str, Any] | None = None  # for the tokenizer, or for a chat template
    generation_config: Any = None  # ours, transformers' or a mapping; replaces what the pipeline was made with
    generate_kwargs: Mapping[str, Any] | None = None  # more settings
    logits_processor: Any = None  # see `rules`
    stopping_criteria: Any = None
    prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None
    assistant_model: Any = None  # guesses tokens: a folder, a Hub id, a module or a pipeline
    assistant_tokenizer: Any = None  # the assistant's, instead of its own
    streamer: Streamer | None = None  # gets new text as it comes, one input after the other
    generation: Mapping[str, Any] = field(default_factory=dict)  # the settings of `GenerationConfig`

    def __post_init__(self) -> None:
        if self.return_full_text is not None and (self.return_text is not None or self.return_tensors is not None):
            raise InputError("return_full_text excludes return_text and return_tensors; pass one of them")
        if self.return_text is not None and self.return_tensors is not None:
            raise InputError("return_text and return_tensors exclude each other; pass one of them")
        if self.handle_long_generation not in (None, "hole"):
            raise InputError(f"handle_long_generation={self.handle_long_generation!r} is not None or 'hole'")


@dataclass(frozen=True, slots=True)
class _GenerationCall:
    """`decode` turns new ids into the text of the answer."""

    options: TextGenerationOptions
    settings: GenerationConfig
    rules: CallersRules
    assistant: Assistant | None
    decode: Callable[[Sequence[int]], str]


class TextGeneration(BatchPipeline):
    """`pipe("Once upon")` -> [{"generated_text": "Once upon a time"}].

    A conversation (a list of {"role", "content"}) gives [{"generated_text": the conversation with the answer added}];
    if its last message is the assistant's, that message goes on. Lists of texts or conversations give lists.
    """

    task: ClassVar[str] = "text-generation"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[TextGenerationOptions]] = TextGenerationOptions
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "text_inputs")

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        if not session.signature.states:
            raise InputError("text-generation needs a decoder with a key/value cache; this model is not one")
        self.chat_template = ChatTemplate.read(self.folder, self.text_tokenizer.special)
        self.settings = model_settings(self.folder)
        account_file(self.folder, self.settings)
        account_ids(self.folder, self.settings, self._generation(), self.vocabulary)
        if "eos_token_id" not in self.settings and (end := self.text_tokenizer.token_id("eos_token")) is not None:
            self.settings["eos_token_id"] = end
        self._defaults: dict[str, Any] = dict(DEFAULTS)
        if (pad := self.text_tokenizer.token_id("pad_token")) is not None:
            self._defaults["pad_token_id"] = pad
        resolve(self._generation(), self.settings, self._defaults)
        self._assistants = Assistants(self)

    def _inputs(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """See `Pipeline._inputs`; a generator of messages is one conversation."""
        inputs = super()._inputs(inputs, parameters)
        if isinstance(inputs, Iterator):
            first = next(inputs, None)
            if first is None:
                return []
            inputs = chain([first], inputs)
            if is_chat([first]):
                inputs = list(inputs)
        return inputs

    def stream(self, inputs: Any, **parameters: Any) -> Iterator[str]:
        """The new text of one input, piece by piece as it comes; the parameters are those of a call."""
        if not self._is_one(inputs):
            raise InputError(f"stream() takes one text or one conversation, not {inputs!r:.80}")
        call = self._call(self._together(parameters))
        if call.settings.num_return_sequences > 1:
            raise InputError("stream() makes one text; pass num_return_sequences=1")
        if call.settings.num_beams > 1:
            raise InputError("beams are known when they end, so stream() has no pieces of them; pass num_beams=1")
        ((prompt,),) = self.prepare([inputs], call)
        options = call.options
        text = TextStream(partial(self.text_tokenizer.decode, skip_special_tokens=options.skip_special_tokens))
        for token in _tokens(self._steps([prompt], call, 0)):
            if piece := text.push(token):
                yield piece
        if piece := text.end():
            yield piece

    def close(self) -> None:
        """See `Pipeline.close`; assistants that the pipeline opened are closed too."""
        self._assistants.close()
        super().close()

    def conversation(self, system: str | None = None, **parameters: Any) -> Conversation:
        """A conversation whose turns cost what they add: it keeps the KV cache of what was said.

        The parameters are those of a call: settings of generation, tools, documents, chat_template, …
        """
        from isoform.runtimes.conversation import Conversation

        return Conversation(self, system, parameters)

    def call_of(self, parameters: Mapping[str, Any]) -> _GenerationCall:
        """The parameters of a call, checked."""
        return self._call(self._together(parameters))

    def continued(self, prompt: Prompt, call: _GenerationCall, decoder: Decoder) -> Iterator[TextRow]:
        """The text of one prompt after every token, decoded by a `decoder` of one row."""
        for (row,) in self._steps([prompt], call, 0, decoder):
            yield row

    def runs_alone(self, size: int | None, call: _GenerationCall) -> bool:
        """See `Pipeline.runs_alone`."""
        return size == 1 or call.options.streamer is not None

    def _writes_itself(self, call: _GenerationCall) -> bool:
        return call.options.streamer is not None

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or is_chat(inputs)

    def _takes(self) -> str:
        return "a text, a conversation (a list of {'role', 'content'}), or a list of either"

    def begin(self, options: TextGenerationOptions) -> _GenerationCall:
        """See `Pipeline.begin`."""
        generation, given = {**(options.generate_kwargs or {}), **options.generation}, options.generation_config
        if options.stop_sequence is not None:
            generation["stop_strings"] = options.stop_sequence
        if isinstance(given, GenerationConfig):
            if generation:
                raise InputError(
                    f"generation_config comes with {', '.join(generation)}; give all settings in one place"
                )
            settings = given
        else:
            settings = resolve({**settings_of(given), **generation}, self.settings, self._defaults)
        settings, rules = read_rules(
            self._beside_prefix(settings, options),
            options.logits_processor,
            options.stopping_criteria,
            options.prefix_allowed_tokens_fn,
        )
        if options.streamer is not None and settings.num_return_sequences > 1:
            raise InputError("a streamer takes one text at a time; pass num_return_sequences=1")
        if options.streamer is not None and settings.num_beams > 1:
            raise InputError("beams are known when they end, so a streamer gets no pieces of them; pass num_beams=1")
        decode = partial(
            self.text_tokenizer.decode,
            skip_special_tokens=options.skip_special_tokens,
            clean_up_tokenization_spaces=options.clean_up_tokenization_spaces,
        )
        assistant = self._assistants.find(options.assistant_model, options.assistant_tokenizer)
        return _GenerationCall(options, settings, rules, assistant, decode)

    def _beside_prefix(self, settings: GenerationConfig, options: TextGenerationOptions) -> GenerationConfig:
        """The settings, their whole lengths counted without the tokens of the prefix."""
        prefix = self._prefix(options)
        if not prefix or (settings.max_length is None and settings.min_length is None):
            return settings
        special = bool(options.add_special_tokens)
        (row,) = self.text_tokenizer.encode([prefix], add_special_tokens=special)
        longer = {
            whole: length + len(row.ids)
            for whole, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))
            if (length := getattr(settings, whole)) is not None and getattr(settings, new) is None
        }
        return replace(settings, **longer)

    def _prefix(self, options: TextGenerationOptions) -> str:
        """What stands before every text: the call's, else the model's."""
        own = self.config.get("prefix")
        return (own if isinstance(own, str) else "") if options.prefix is None else options.prefix

    def answers(self, items: Sequence[Any], size: int | None, call: _GenerationCall) -> Iterator[Any]:
        """See `Pipeline.answers`; a streamer is given one text after the other."""
        return super().answers(items, size if call.options.streamer is None else 1, call)

    def prepare(self, items: Sequence[Any], call: _GenerationCall) -> Iterable[Iterable[Prompt]]:
        """See `BatchPipeline.prepare`."""
        return [[self._prompt(item, call.options, call.settings)] for item in items]

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        return Batches(count, neighbours(pieces, size or TOGETHER))

    def forward(
        self, batches: Iterator[list[Prompt]], count: int, call: _GenerationCall
    ) -> Iterator[Sequence[list[list[int]]]]:
        """See `BatchPipeline.forward`: the ids of the texts of each prompt."""
        texts, start = call.settings.num_return_sequences, 0
        for batch in batches:
            if call.options.streamer is None:
                *_, rows = self._steps(batch, call, start)
            else:
                rows = [
                    row
                    for n, prompt in enumerate(batch, start)
                    for row in self._streamed(prompt, call, n, call.options.streamer)
                ]
            start += len(batch)
            made = [row.made for row in rows]
            yield [self._even(made[n : n + texts], call.settings) for n in range(0, len(made), texts)]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: _GenerationCall) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        (piece,), options = pieces, call.options
        if options.return_tensors:
            return [{"generated_token_ids": [*piece.value.ids, *ids]} for ids in piece.output]
        full = options.return_full_text is None or options.return_full_text
        return [{"generated_text": _joined(piece.value, call.decode(ids), full)} for ids in piece.output]

    # ------------------------------------------------------------------ prompts
    def _prompt(self, item: Any, o: TextGenerationOptions, settings: GenerationConfig) -> Prompt:
        """A text or a conversation as the model reads it."""
        if isinstance(item, str):
            options = tokenizer_options(o.tokenizer_encode_kwargs, "tokenizer_encode_kwargs")
            if o.truncation is not None:
                options.setdefault("truncation", o.truncation)
            if o.add_special_tokens is not None:
                options.setdefault("add_special_tokens", o.add_special_tokens)
            if options.get("truncation") and (limit := o.generation.get("max_length")):
                options.setdefault("max_length", limit)
            text, continues = self._prefix(o) + item, False
        elif is_chat(item):
            by_role = item[-1].get("role") == "assistant"
            continues = by_role if o.continue_final_message is None else o.continue_final_message
            text = self.chat_template.render(
                item,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                tools=o.tools,
                documents=o.documents,
                chat_template=o.chat_template,
                **(o.tokenizer_encode_kwargs or {}),
            )
            options = {"add_special_tokens": False, "truncation": o.truncation or False}
        else:
            raise InputError(f"text-generation takes {self._takes()}, not {item!r:.80}")
        ids = self._ids(text, options)
        self._check_begin(ids, settings.bos_token_id)
        if o.handle_long_generation == "hole":
            ids = self._with_room(ids, settings)
        return Prompt(item, ids, continues)

    def _ids(self, text: str, options: dict[str, Any]) -> list[int]:
        options.setdefault("truncation", False)
        if options["truncation"] and options.get("max_length") is None:
            limits = [n for n in (self.text_tokenizer.max_length, self.context) if n]
            options["max_length"] = min(limits, default=None)
        (row,) = self.text_tokenizer.encode([text], **options)
        self._check_ids(row.ids)
        return list(row.ids)

    def _check_begin(self, ids: list[int], begin: int | None) -> None:
        """InputError for an empty prompt whose place takes a token that the model's embedding has no row for."""
        if not ids and begin is not None and self.vocabulary is not None and begin >= self.vocabulary:
            raise InputError(
                f"an empty text begins with bos_token_id={begin}, and the model's embedding has {self.vocabulary} "
                "rows; pass another bos_token_id"
            )

    def _with_room(self, ids: list[int], settings: GenerationConfig) -> list[int]:
        """The end of the prompt, cut so that the new tokens fit into the model ("hole")."""
        limits = [n for n in (self.text_tokenizer.max_length, self.context) if n]
        new = settings.max_new_tokens
        new = new if new is not None else (settings.max_length or len(ids) + 20) - len(ids)
        limit = min(limits, default=len(ids) + new)
        if len(ids) + new <= limit:
            return ids
        if limit <= new:
            raise InputError(f"{new} new tokens leave no room for a prompt in {limit} positions; ask for fewer")
        return ids[new - limit :]

    # ------------------------------------------------------------------ generation
    def _steps(
        self, prompts: Sequence[Prompt], call: _GenerationCall, first: int, decoder: Decoder | None = None
    ) -> Iterator[list[TextRow]]:
        """`steps` over the session, or over a `decoder` that has a row for each prompt."""
        return steps(
            decoder or self.session,
            [_begun(prompt, call.settings) for prompt in prompts],
            call.settings,
            context=self.context,
            decode=self.text_tokenizer.decode,
            first_row=first,
            callers=call.rules,
            recompute_beyond=self.facts.get("recompute_beyond"),
            assistant=call.assistant,
        )

    def _streamed(self, prompt: Prompt, call: _GenerationCall, number: int, streamer: Any) -> list[TextRow]:
        """Generate one text and give the streamer every piece or token of it."""
        put = getattr(streamer, "put", None)
        if put is None and not callable(streamer):
            raise InputError(f"a streamer is a function of a text, or has put() and end(), unlike {streamer!r:.60}")
        text, rows = TextStream(call.decode), list[TextRow]()
        array = _array_for(streamer)
        if put is not None:
            put(array([_begun(prompt, call.settings)]))
        for token in _tokens(self._steps([prompt], call, number), rows):
            if put is not None:
                put(array([token]))
            elif piece := text.push(token):
                streamer(piece)
        if put is not None:
            streamer.end()
        elif piece := text.end():
            streamer(piece)
        return rows

    def _even(self, made: Sequence[list[int]], settings: GenerationConfig) -> list[list[int]]:
        """The rows of one prompt, the shorter ones padded, as transformers returns them."""
        longest = max(map(len, made))
        ends = settings.eos_token_id or (0,)
        pad = settings.pad_token_id if settings.pad_token_id is not None else ends[0]
        return [ids + [pad] * (longest - len(ids)) for ids in made]


def _begun(prompt: Prompt, settings: GenerationConfig) -> list[int]:
    """What the model is fed first: the prompt, or the token that stands for an empty one."""
    return prompt.ids or ([] if settings.bos_token_id is None else [settings.bos_token_id])


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


def _joined(prompt: Prompt, text: str, full: bool) -> Any:
    """What a record holds: the text alone, after its prompt, or as a message of the conversation."""
    if not full:
        return text
    if isinstance(prompt.given, str):
        return prompt.given + text
    *before, last = prompt.given
    if not prompt.continues:
        return [*before, last, {"role": "assistant", "content": text}]
    return [*before, {"role": last["role"], "content": last["content"] + text}]
