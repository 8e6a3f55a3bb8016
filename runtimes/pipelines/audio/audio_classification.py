"""audio-classification: the label of a recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from isoform.errors import InputError
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.pipelines.audio.waveforms import WaveformModel
from isoform.runtimes.pipelines.base import Pipeline
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel, pad
from isoform.runtimes.preprocess.audio.source import is_audio, load_audio, name_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

FUNCTIONS = ("softmax", "sigmoid", "none")
FEATURES = "input_features"


class AudioClassification(Pipeline):
    """`pipe("yes.wav")` -> [{"score": 0.99, "label": "yes"}, …], best first; a list gives one such list each.

    A recording is a path, an address, a file's bytes, samples, or {"array" or "raw": samples, "sampling_rate": Hz}.
    """

    task: ClassVar[str] = "audio-classification"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    reads_text: ClassVar[bool] = False

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        super().__init__(session, folder, **parameters)
        self._mels = self._waveforms = None
        if any(port.name == FEATURES for port in session.signature.inputs):
            self._mels = LogMelSettings.read(self.folder)
        else:
            self._waveforms = WaveformModel(session, self.folder, self.config)

    def _is_one(self, inputs: Any) -> bool:
        return is_audio(inputs)

    def _takes(self) -> str:
        return 'a path, bytes, samples, {"array", "sampling_rate"}, or a list of these'

    def _answer(
        self,
        items: Sequence[Any],
        batch_size: int | None,
        *,
        top_k: int | None = None,
        function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None,
    ) -> list[Any]:
        """`top_k` None: all labels. `function_to_apply` defaults to what the model was trained for."""
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise InputError(f"function_to_apply={function_to_apply!r} is not one of {', '.join(FUNCTIONS)}")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k={top_k!r} must be a whole number of at least 1, or None for all labels")
        return [self._labels(logits, function_to_apply, top_k) for logits in self._logits(items, batch_size)]

    def _logits(self, items: Sequence[Any], batch_size: int | None) -> Iterator[NDArray[np.float32]]:
        if self._waveforms is not None:
            model = self._waveforms

            def waveforms() -> Iterator[NDArray[np.float32]]:
                for item in items:
                    samples = load_audio(item, model.settings.sampling_rate)
                    model.check(samples, name_of(item))
                    yield samples

            yield from model.run(waveforms(), batch_size)
            return
        assert self._mels is not None
        for item in items:
            samples = pad(load_audio(item, self._mels.sampling_rate), self._mels)
            yield self.session.run({FEATURES: log_mel(samples, self._mels)[None]})["logits"][0]

    def _labels(self, logits: NDArray[np.float32], function: str | None, top_k: int | None) -> list[dict[str, Any]]:
        if function is None:
            kinds = {"regression": "none", "multi_label_classification": "sigmoid"}
            function = kinds.get(str(self.config.get("problem_type")), "softmax")
        scores = logits
        if function != "none":
            scores = softmax(logits) if function == "softmax" else np.float32(1) / (np.float32(1) + np.exp(-logits))
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"score": float(scores[n]), "label": self._label(int(n))} for n in order]
