"""What answers about pictures and captions share: a picture in, generated text out, over an encoder-decoder session."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.settings import GenerationConfig, resolve
from isoform.runtimes.pipelines.base import Pipeline
from isoform.runtimes.preprocess.image.processor import ImageProcessor
from isoform.runtimes.preprocess.image.source import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

TOGETHER = 8  # pictures at a time, unless the call says otherwise
DEFAULTS = {"max_new_tokens": 20}


class PicturesTold(Pipeline):
    """A pipeline whose session has encoders for a picture (and a text), and a decoder that tells about it.

    The text model's own token ids (`text_config`) say how a text begins and ends, as in transformers' `generate` of
    these models: at `bos_token_id`, and with `sep_token_id`.
    """

    outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        if not callable(getattr(session, "encode", None)):
            raise InputError(f"{self.task} needs a model of an encoder and a decoder; this one is a single graph")
        super().__init__(session, folder, **parameters)
        self.pictures = ImageProcessor(self.folder)
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
        resolve({k: v for k, v in self._parameters.items() if k not in self._own()}, self.settings, DEFAULTS)

    @classmethod
    @abstractmethod
    def _own(cls) -> frozenset[str]:
        """The call's parameters that are not generation's."""

    def _settings(self, given: Mapping[str, Any] | None, generation: Mapping[str, Any]) -> GenerationConfig:
        """Of `generate_kwargs` and the other parameters of a call."""
        return resolve({**(given or {}), **generation}, self.settings, DEFAULTS)

    def _pixels(self, sources: Sequence[Any], timeout: float | None) -> NDArray[np.float32]:
        """Pictures (B, C, H, W), all of one size."""
        return np.stack(self.pictures([load_image(source, timeout) for source in sources]))

    def _told(
        self,
        inputs: Mapping[str, NDArray[Any]],
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        first_row: int,
    ) -> list[list[list[int]]]:
        """The ids that are made after each prompt, per prompt and returned text; the prompts have one length."""
        session: Any = self.session
        rows = generate(
            session.decoder(session.encode(inputs)),
            prompts,
            config,
            context=self.context,
            decode=lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True),
            first_row=first_row,
        )
        count = config.num_return_sequences
        return [[row.made for row in rows[n : n + count]] for n in range(0, len(rows), count)]

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
