"""text-generation: a text or a conversation goes on.

Defaults are those of transformers 5's pipeline: at most 256 new tokens, sampled at temperature 0.7 from the 50 best,
each unless the model's generation_config.json or the call says otherwise. Pass do_sample=False for greedy text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.generation.settings import GenerationConfig
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.text.text_writer import TextWriter, WritingCall, WritingOptions, even, scored
from isoform.runtimes.pipelines.text.tokenizer_options import tokenizer_options
from isoform.runtimes.preprocess.text.chat import ChatTemplate, is_chat

if TYPE_CHECKING:
    from isoform.runtimes.conversation import Conversation
    from isoform.runtimes.session import Decoder, Session

DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was given, as text or conversation, and its ids."""

    given: Any
    ids: list[int]
    continues: bool  # a conversation whose last message goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGenerationOptions(WritingOptions):
    """The parameters of a call; `return_tensors` gives {"generated_token_ids"}."""

    return_full_text: bool | None = None  # False leaves the prompt out
    prefix: str | None = None  # put before a text; lengths of the call do not count it
    handle_long_generation: str | None = None
    add_special_tokens: bool | None = None
    padding: Any = None  # changes nothing
    continue_final_message: bool | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    chat_template: str | None = None
    tokenizer_encode_kwargs: Mapping[str, Any] | None = None  # for the tokenizer, or for a chat template
    negative_prompt: str | None = None  # a text that guidance_scale moves away from; ids are negative_prompt_ids
    negative_prompt_attention_mask: Any = None  # 0 for the ids that count as padding

    def __post_init__(self) -> None:
        if self.return_full_text is not None and (self.return_text is not None or self.return_tensors is not None):
            raise InputError("return_full_text excludes return_text and return_tensors; pass one of them")
        if self.return_text is not None and self.return_tensors is not None:
            raise InputError("return_text and return_tensors exclude each other; pass one of them")
        if self.handle_long_generation not in (None, "hole"):
            raise InputError(f"handle_long_generation={self.handle_long_generation!r} is not None or 'hole'")


class TextGeneration(TextWriter):
    """`pipe("Once upon")` -> [{"generated_text": "Once upon a time"}].

    A conversation (a list of {"role", "content"}) gives [{"generated_text": the conversation with the answer added}];
    if its last message is the assistant's, that message goes on. Lists of texts or conversations give lists.
    """

    task: ClassVar[str] = "text-generation"
    options: ClassVar[type[TextGenerationOptions]] = TextGenerationOptions
    keywords: ClassVar[tuple[str, ...]] = ("inputs", "text_inputs")
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.chat_template = ChatTemplate.read(self.folder, self.text_tokenizer.special)

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

    def conversation(self, system: str | None = None, **parameters: Any) -> Conversation:
        """A conversation whose turns cost what they add: it keeps the KV cache of what was said.

        The parameters are those of a call: settings of generation, tools, documents, chat_template, …
        """
        from isoform.runtimes.conversation import Conversation

        return Conversation(self, system, parameters)

    def call_of(self, parameters: Mapping[str, Any]) -> WritingCall:
        """The parameters of a call, checked."""
        return self._call(self._together(parameters))

    def continued(self, prompt: Prompt, call: WritingCall, decoder: Decoder) -> Iterator[TextRow]:
        """The text of one prompt after every token, decoded by a `decoder` of one row."""
        for (row,) in self._steps([prompt], call, 0, decoder):
            yield row

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or is_chat(inputs)

    def _takes(self) -> str:
        return "a text, a conversation (a list of {'role', 'content'}), or a list of either"

    def _one(self) -> str:
        return "a text or a conversation"

    def _guided(self, settings: GenerationConfig, options: TextGenerationOptions) -> GenerationConfig:
        """The settings with the negative prompt that the call gives as text or as padded ids."""
        given, mask = settings.negative_prompt_ids, options.negative_prompt_attention_mask
        if mask is not None:
            rows = np.atleast_2d(np.asarray(mask)).tolist()
            if given is None or [len(row) for row in rows] != [len(row) for row in given]:
                raise InputError("negative_prompt_attention_mask has another shape than negative_prompt_ids")
            pairs = zip(given, rows, strict=True)
            given = tuple(tuple(n for n, held in zip(*pair, strict=True) if held) for pair in pairs)
        if given is not None and len(given) > 1:
            raise InputError(
                f"negative_prompt_ids has {len(given)} rows, and holds for every input of a call; give one"
            )
        if options.negative_prompt is None:
            for row in given or ():
                self._check_ids(row)
            return replace(settings, negative_prompt_ids=given)
        if given is not None:
            raise InputError("negative_prompt and negative_prompt_ids are both given; leave one out")
        if not isinstance(options.negative_prompt, str):
            raise InputError(f"negative_prompt={options.negative_prompt!r:.60} is no text")
        special = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
        return replace(settings, negative_prompt_ids=(tuple(self._ids(options.negative_prompt, dict(special))),))

    def _settings(self, settings: GenerationConfig, options: TextGenerationOptions) -> GenerationConfig:
        """See `TextWriter._settings`: whole lengths are counted without the tokens of the prefix."""
        settings = self._guided(settings, options)
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

    def prepare(self, items: Sequence[Any], call: WritingCall) -> Iterable[Iterable[Prompt]]:
        """See `BatchPipeline.prepare`."""
        return [[self._prompt(item, call.options, call.settings)] for item in items]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: WritingCall) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        (piece,), options = pieces, call.options
        made = list(zip(even(piece.output, call.settings), scored(piece.output, call), strict=True))
        if options.return_tensors:
            return [{"generated_token_ids": [*piece.value.ids, *ids], **more} for ids, more in made]
        full = options.return_full_text is None or options.return_full_text
        return [{"generated_text": _joined(piece.value, call.decode(ids), full), **more} for ids, more in made]

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
        self, pieces: Sequence[Prompt], call: WritingCall, first: int, decoder: Decoder | None = None
    ) -> Iterator[list[TextRow]]:
        """See `TextWriter._steps`; over the session, or over a `decoder` that has a row for each prompt."""
        begun = self.session if decoder is None else decoder
        return self._written(begun, [_begun(piece, call.settings) for piece in pieces], pieces, call, first)

    def _fed(self, piece: Prompt, call: WritingCall) -> list[int]:
        """See `TextWriter._fed`."""
        return _begun(piece, call.settings)


def _begun(prompt: Prompt, settings: GenerationConfig) -> list[int]:
    """What the model is fed first: the prompt, or the token that stands for an empty one."""
    return prompt.ids or ([] if settings.bos_token_id is None else [settings.bos_token_id])


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
