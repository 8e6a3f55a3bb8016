"""audio-classification: the label of a recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from isoform.errors import InputError
from isoform.runtimes.pipelines.audio.waveforms import WaveformModel
from isoform.runtimes.pipelines.base import Batches, BatchPipeline, InputPiece
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.pipelines.scores import FUNCTIONS, Labels, best_first, scored, trained_function, whole
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel, pad
from isoform.runtimes.preprocess.audio.recordings import is_audio, load_audio, name_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioClassificationOptions:
    """The parameters of a call."""

    top_k: int | None = None  # None: all labels
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None  # what the model was trained for

    def __post_init__(self) -> None:
        if self.function_to_apply is not None and self.function_to_apply not in FUNCTIONS:
            raise InputError(f"function_to_apply={self.function_to_apply!r} is not one of {', '.join(FUNCTIONS)}")
        whole("top_k", self.top_k, none="all labels")


class AudioClassification(BatchPipeline):
    """`pipe("yes.wav")` -> [{"score": 0.99, "label": "yes"}, …], best first; a list gives one such list each.

    A recording is a path, an address, a file's bytes, samples, or {"array" or "raw": samples, "sampling_rate": Hz}.
    """

    task: ClassVar[str] = "audio-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[AudioClassificationOptions]] = AudioClassificationOptions
    hears: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    together: ClassVar[int | None] = 1

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self.labels = Labels(self.config, self.folder)
        self._mels = self._waveforms = None
        if session.signature.takes("features"):
            self._mels = LogMelSettings.read(self.folder)
        else:
            self._waveforms = WaveformModel(session, self.folder, self.facts)

    def _is_one(self, inputs: Any) -> bool:
        return is_audio(inputs)

    def _takes(self) -> str:
        return 'a path, bytes, samples, {"array", "sampling_rate"}, or a list of these'

    def prepare(
        self, items: Sequence[Any], call: AudioClassificationOptions
    ) -> Iterable[Iterable[NDArray[np.float32]]]:
        """See `BatchPipeline.prepare`."""
        for item in items:
            if self._waveforms is not None:
                samples = load_audio(item, self._waveforms.settings.sampling_rate)
                self._waveforms.check(samples, name_of(item))
                yield [samples]
            elif self._mels is not None:
                yield [log_mel(pad(load_audio(item, self._mels.sampling_rate), self._mels), self._mels)]

    def batches(self, pieces: Iterator[InputPiece], size: int | None, count: int) -> Batches:
        """See `BatchPipeline.batches`."""
        if self._waveforms is None:
            return Batches(count, neighbours(pieces, 1))
        return Batches(count, self._waveforms.together(pieces, size, lambda piece: len(piece.value)))

    def forward(
        self, batches: Iterator[list[Any]], count: int, call: AudioClassificationOptions
    ) -> Iterator[Sequence[Any]]:
        """See `BatchPipeline.forward`."""
        for batch in batches:
            if self._waveforms is not None:
                yield self._waveforms.run(batch)
            else:
                name = self._input("features")
                yield [self.session.run({name: features[None]})["logits"][0] for features in batch]

    def finish(self, item: Any, pieces: Sequence[InputPiece], call: AudioClassificationOptions) -> list[dict[str, Any]]:
        """See `BatchPipeline.finish`."""
        logits = pieces[0].output
        function = call.function_to_apply or trained_function(self.config, len(logits), single="softmax")
        scores = scored(logits, function)
        return [{"score": float(scores[n]), "label": self.labels[n]} for n in best_first(scores, call.top_k)]
