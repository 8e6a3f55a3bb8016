"""text2text-generation, summarization and translation: an encoder reads a text, a decoder writes another one.

transformers had these tasks until version 4; keys, values and defaults are those of its pipeline: at most 256 new
tokens, the best of 4 beams, each unless the model's generation_config.json, `task_specific_params` of its config.json
or the call says otherwise. A length that one of these states counts, and the default does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.generation.model_file import account_file
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.generation.settings import GenerationConfig
from isoform.runtimes.pipelines.base import InputPiece
from isoform.runtimes.pipelines.nested_lists import given_as
from isoform.runtimes.pipelines.text.text_writer import TextWriter, WritingCall, WritingOptions, even, scored

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from isoform.runtimes.session import Session

PREFIX = "prefix"
"""The entry of `task_specific_params` that is no setting of generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToTextOptions(WritingOptions):
    """The parameters of a call; `return_tensors` gives token ids: True or "pt" a tensor of torch, "np" an array."""

    prefix: str | None = None  # put before every text; the model's own unless set

    def __post_init__(self) -> None:
        if self.prefix is not None and not isinstance(self.prefix, str):
            raise InputError(f"prefix={self.prefix!r:.60} is no text")
        if self.return_text is False and not self.return_tensors:
            raise InputError("return_text=False leaves nothing to return; pass return_tensors=True for token ids")
        if self.return_text and self.return_tensors:
            raise InputError("return_text and return_tensors exclude each other; pass one of them")


class TextToText(TextWriter):
    """`pipe("question: … context: …")` -> [{"generated_text": "…"}]; a list of texts gives an object for each.

    With `num_return_sequences` above 1, a list gives a list of objects for each text.
    """

    task: ClassVar[str] = "text2text-generation"
    returned: ClassVar[str] = "generated"  # how the keys of an answer begin
    options: ClassVar[type[TextToTextOptions]] = TextToTextOptions
    defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256, "num_beams": 4}
    begins: ClassVar[bool] = True
    cleans: ClassVar[bool | None] = False

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        if not callable(getattr(session, "encode", None)):
            raise InputError(f"{self.task} needs a model of an encoder and a decoder; this one is a single graph")
        super().__init__(session, folder, **parameters)

    def _model_settings(self) -> dict[str, Any]:
        """See `TextWriter._model_settings`: with those that the model has for the task."""
        own = {name: value for name, value in self._special.items() if name != PREFIX and value is not None}
        account_file(self.folder, own, file="config.json")
        return {**self.facts.get("generation", {}), **super()._model_settings(), **own}

    @property
    def _special(self) -> Mapping[str, Any]:
        """What `task_specific_params` of config.json says of the task."""
        found: Mapping[str, Any] = self._by_task().get(self.task) or {}
        return found

    def _by_task(self) -> Mapping[str, Mapping[str, Any]]:
        found = self.config.get("task_specific_params") or {}
        if not isinstance(found, Mapping) or not all(isinstance(one, Mapping) for one in found.values()):
            raise CheckpointError(f"{self.folder}/config.json: task_specific_params is {found!r:.60}, not objects")
        return found

    def check(self, item: Any) -> None:
        """See `BatchPipeline.check`."""
        if not isinstance(item, str):
            raise InputError(f"{self.task} takes {self._takes()}, not {item!r:.80}")

    def begin(self, options: TextToTextOptions) -> WritingCall:
        """See `Pipeline.begin`."""
        call = super().begin(options)
        start = _start(call.settings)
        if self.vocabulary is not None and start >= self.vocabulary:
            raise InputError(
                f"decoder_start_token_id={start}, and the model's embedding has {self.vocabulary} rows; pass another"
            )
        return call

    def prepare(self, items: Sequence[str], call: WritingCall) -> Iterable[Iterable[Encoding]]:
        """See `BatchPipeline.prepare`."""
        rows = self._read([self._prefix(call.options) + item for item in items], call.options)
        settings = call.settings
        longest = settings.max_length if settings.max_new_tokens is None else None
        for row in rows:
            self._advise(len(row.ids), settings.min_length, longest)
        return [[row] for row in rows]

    def _read(self, texts: Sequence[str], options: Any) -> list[Encoding]:
        """The tokens that the encoder is given for each text."""
        return self.encode(texts, truncation=options.truncation or False)

    def _prefix(self, options: TextToTextOptions) -> str:
        if options.prefix is not None:
            return options.prefix
        own = self._special.get(PREFIX, self.config.get(PREFIX))
        return own if isinstance(own, str) else ""

    def _advise(self, length: int, least: int | None, most: int | None) -> None:
        """Warn where the length of an input, in tokens, and the lengths asked for do not fit the task."""

    def _steps(self, pieces: Sequence[Encoding], call: WritingCall, first: int) -> Iterator[list[TextRow]]:
        """See `TextWriter._steps`."""
        session: Any = self.session
        begun = session.decoder(self.encoded(pieces))
        prompts = [[_start(call.settings)]] * len(pieces)
        return self._written(begun, prompts, pieces, call, first, sources=[piece.ids for piece in pieces])

    def encoded(self, pieces: Sequence[Encoding]) -> Any:
        """What the encoder makes of a batch, with a row for each text; see `PartsSession.encode`."""
        session: Any = self.session
        return session.encode(self._encoder_inputs(pieces))

    def _fed(self, piece: Encoding, call: WritingCall) -> list[int]:
        """See `TextWriter._fed`."""
        return [_start(call.settings)]

    def _encoder_inputs(self, rows: Sequence[Encoding]) -> dict[str, NDArray[Any]]:
        """The inputs of the encoder for a batch, padded on the right, by port name."""
        if any(not row.ids for row in rows):
            raise InputError("a text without a single token cannot be read; give a text that is not empty")
        session: Any = self.session
        padded = self.text_tokenizer.pad(rows, "right")
        roles = {"tokens": padded.input_ids, "mask": padded.attention_mask, "token_types": padded.token_type_ids}
        ports = session.part(session.taking("tokens")).signature.inputs
        return {port.name: roles[port.role] for port in ports if port.role in roles}

    def finish(self, item: str, pieces: Sequence[InputPiece], call: WritingCall) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        start, tensors = _start(call.settings), call.options.return_tensors
        rows = pieces[0].output
        made = [([start, *ids], more) for ids, more in zip(even(rows, call.settings), scored(rows, call), strict=True)]
        if tensors:
            name = f"{self.returned}_token_ids"
            return [{name: given_as(np.array(ids, np.int64), tensors), **more} for ids, more in made]
        return [{f"{self.returned}_text": call.decode(ids), **more} for ids, more in made]

    def _shaped(self, answer: Any, inputs: Any, parameters: Mapping[str, Any]) -> Any:
        """A list of texts gives one object for each, where each has one."""
        if not isinstance(inputs, list | tuple) or any(isinstance(one, list) and len(one) != 1 for one in answer):
            return answer
        return [one[0] if isinstance(one, list) else one for one in answer]


class Summarization(TextToText):
    """`pipe("A long article …")` -> [{"summary_text": "…"}]; a list of texts gives an object for each."""

    task: ClassVar[str] = "summarization"
    returned: ClassVar[str] = "summary"

    def _advise(self, length: int, least: int | None, most: int | None) -> None:
        """See `TextToText._advise`."""
        if most is None:
            return
        if least is not None and most < least:
            warnings.warn(f"Your min_length={least} must be inferior than your max_length={most}.", stacklevel=2)
        if length < most:
            warnings.warn(
                f"Your max_length is set to {most}, but your input_length is only {length}. Since this is a "
                "summarization task, where outputs shorter than the input are typically wanted, you might consider "
                f"decreasing max_length manually, e.g. summarizer('...', max_length={length // 2})",
                stacklevel=2,
            )


def _start(settings: GenerationConfig) -> int:
    """The token that the decoder is fed first. InputError where neither the model nor the call names one."""
    start = settings.decoder_start_token_id
    start = settings.bos_token_id if start is None else start
    if start is None:
        raise InputError(
            "the model names no token that its decoder begins with (decoder_start_token_id or bos_token_id of "
            "generation_config.json or config.json); pass decoder_start_token_id="
        )
    return start
