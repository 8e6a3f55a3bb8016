"""Pipelines that generate text from a picture, over encoders and a decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.rules import NO_RULES, PARAMETERS, CallersRules, read_rules
from isoform.runtimes.generation.settings import GenerationConfig, resolve
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.preprocess.image.opening import open_processor
from isoform.runtimes.preprocess.image.pictures import load_image
from isoform.steps import load_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session
    from isoform.signature import Role

TOGETHER = 8  # pictures at a time, unless the call says otherwise
DEFAULTS = {"max_new_tokens": 20}
BEGIN = "begin_text"  # the host step


@dataclass(frozen=True, slots=True)
class Call:
    """`prompt`: the ids that every text begins with."""

    options: Any
    settings: GenerationConfig
    prompt: list[int]
    rules: CallersRules = NO_RULES


class PictureToText(BatchPipeline):
    """A pipeline whose session has encoders for a picture (and a text), and a decoder that writes about it.

    The model's host step `begin_text` says how a text begins, its fact `generation` how it ends. The output of a piece
    is the ids of its texts.
    """

    sees: ClassVar[bool] = True
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    together: ClassVar[int | None] = TOGETHER

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        if not callable(getattr(session, "encode", None)):
            raise InputError(f"{self.task} needs a model of an encoder and a decoder; this one is a single graph")
        super().__init__(session, folder, **parameters)
        self.pictures = open_processor(self.folder, self.facts)
        self.settings: Mapping[str, Any] = self.facts.get("generation", {})
        self._steps: Mapping[str, Mapping[str, Any]] = self.facts.get("steps", {})
        settings = {name: value for name, value in self._generation().items() if name not in PARAMETERS}
        resolve(settings, self.settings, DEFAULTS)

    def begin(self, options: Any) -> Call:
        """See `Pipeline.begin`."""
        asked = {**(options.generate_kwargs or {}), **options.generation}
        given = {name: asked.pop(name, None) for name in PARAMETERS}
        settings, rules = read_rules(resolve(asked, self.settings, DEFAULTS), **given)
        return Call(options, settings, self._begun([]), rules)

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
                callers=call.rules,
            )
            start += len(batch)
            yield [[row.made for row in rows[n : n + texts]] for n in range(0, len(rows), texts)]

    def runs_alone(self, size: int | None, call: Call) -> bool:
        """See `Pipeline.runs_alone`."""
        return size == 1

    @abstractmethod
    def feed(self, batch: list[Any]) -> dict[str, NDArray[Any]]:
        """The inputs of the encoders for a batch of pieces, by port name."""

    def _encoders(self, role: Role) -> str:
        """The name of the encoders' input of a role."""
        session: Any = self.session
        name: str = session.part(session.taking(role)).signature.port(role).name
        return name

    def _begun(self, prompt: Sequence[int]) -> list[int]:
        """The ids that the decoder is fed first, with those of a prompt."""
        if BEGIN not in self._steps:
            return list(prompt)
        tokens = load_step(BEGIN).run({"tokens": np.array([prompt], np.int64)}, **self._steps[BEGIN])
        begun: list[int] = tokens["tokens"][0].tolist()
        return begun

    def _pixels(self, sources: Sequence[Any], timeout: float | None) -> list[NDArray[np.float32]]:
        """Pixel values (C, H, W) of each picture."""
        return self.pictures([load_image(source, timeout) for source in sources])

    def _text(self, ids: Sequence[int]) -> str:
        return self.text_tokenizer.decode(ids, skip_special_tokens=True)
