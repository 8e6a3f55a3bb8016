"""Pipelines that generate text from a picture, over encoders and a decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import GenerationConfig, resolve
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.preprocess.image.processor import ImageProcessor
from isoform.runtimes.preprocess.image.source import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

TOGETHER = 8  # pictures at a time, unless the call says otherwise
DEFAULTS = {"max_new_tokens": 20}


@dataclass(frozen=True, slots=True)
class Call:
    """`prompt`: the ids that every text begins with."""

    options: Any
    settings: GenerationConfig
    prompt: list[int]


class PictureToText(BatchPipeline):
    """A pipeline whose session has encoders for a picture (and a text), and a decoder that writes about it.

    The text model's own token ids (`text_config`) say how a text begins and ends, as in transformers' `generate` of
    these models: at `bos_token_id`, and with `sep_token_id`. The output of a piece is the ids of its texts.
    """

    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    together: ClassVar[int | None] = TOGETHER

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        if not callable(getattr(session, "encode", None)):
            raise InputError(f"{self.task} needs a model of an encoder and a decoder; this one is a single graph")
        super().__init__(session, folder, **parameters)
        self.processor = ImageProcessor(self.folder)
        given: Any = self.config.get("text_config")
        text: dict[str, Any] = given if isinstance(given, dict) else {}
        size = text["vocab_size"] if type(text.get("vocab_size")) is int else 2**31
        for name in ("bos_token_id", "sep_token_id"):
            if type(text.get(name)) is not int or not 0 <= text[name] < size:
                raise CheckpointError(
                    f"{self.folder}/config.json: {name} of text_config is {text.get(name)!r:.40}, no token of the "
                    "vocabulary; a text could neither begin nor end"
                )
        self.start: int = text["bos_token_id"]
        self.settings = {"pad_token_id": text.get("pad_token_id") or 0, "eos_token_id": text["sep_token_id"]}
        resolve(self._generation(), self.settings, DEFAULTS)

    def begin(self, options: Any) -> Call:
        """See `Pipeline.begin`."""
        asked = {**(options.generate_kwargs or {}), **options.generation}
        return Call(options, resolve(asked, self.settings, DEFAULTS), [self.start])

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        return Batches(count, neighbours(pieces, size or TOGETHER))

    def forward(self, batches: Iterator[list[Any]], count: int, call: Call) -> Iterator[Sequence[list[list[int]]]]:
        """See `BatchPipeline.forward`."""
        session: Any = self.session
        texts, start = call.settings.num_return_sequences, 0
        for batch in batches:
            rows = generate(
                session.decoder(session.encode(self.feed(batch))),
                [call.prompt] * len(batch),
                call.settings,
                context=self.context,
                decode=self._text,
                first_row=start,
            )
            start += len(batch)
            yield [[row.made for row in rows[n : n + texts]] for n in range(0, len(rows), texts)]

    @abstractmethod
    def feed(self, batch: list[Any]) -> dict[str, NDArray[Any]]:
        """The inputs of the encoders for a batch of pieces, by port name."""

    def _pixels(self, sources: Sequence[Any], timeout: float | None) -> list[NDArray[np.float32]]:
        """Pixel values (C, H, W) of each picture."""
        return self.processor([load_image(source, timeout) for source in sources])

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
