"""automatic-speech-recognition: the words of a recording, with their times if asked for.

The model's fact `reader` says how its output becomes text: "characters" of every frame (CTC) by `ctc`, "timestamps"
among the text by `speech`, "text" alone by `waveform_writer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.base import Pipeline
from isoform.runtimes.pipelines.reporting import reporter
from isoform.runtimes.preprocess.audio.recordings import audio_blocks, is_audio, load_audio
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from isoform.runtimes.pipelines.audio.ctc import CtcRecognizer
    from isoform.runtimes.pipelines.audio.speech.transcriber import Transcriber
    from isoform.runtimes.pipelines.audio.waveform_writer import WaveformWriter
    from isoform.runtimes.session import Session

RATE = 16_000  # samples per second, of a recording that is only tried
_CTC = ("chunk_length_s", "ignore_warning", "return_timestamps", "stride_length_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticSpeechRecognitionOptions:
    """The parameters of a call: those of the model's reader, and of generation where it writes."""

    generation: Mapping[str, Any] = field(default_factory=dict)


class AutomaticSpeechRecognition(Pipeline):
    """`pipe("speech.wav")` -> {"text": "…"}, and "chunks" of {"text", "timestamp": (start, end)} with timestamps.

    A recording is a path, an address, a file's bytes, samples, or {"array" or "raw": samples, "sampling_rate": Hz}.
    `return_timestamps` is "char" or "word" for CTC, True (segments) or "word" for a model that writes.
    """

    task: ClassVar[str] = "automatic-speech-recognition"
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    options: ClassVar[type[AutomaticSpeechRecognitionOptions]] = AutomaticSpeechRecognitionOptions
    hears: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    counts: ClassVar[bool] = False

    def __init__(self, session: Session, folder: Path, **parameters: Any) -> None:
        self._ctc: CtcRecognizer | None = None
        self._transcriber: Transcriber | None = None
        self._writer: WaveformWriter | None = None
        super().__init__(session, folder, **parameters)
        reader, several = self.facts.get("reader"), cast("Any", session)
        if reader == "characters":
            from isoform.runtimes.pipelines.audio.ctc import CtcRecognizer

            self._ctc = CtcRecognizer(session, self.folder, self.facts)
            self.characters = self._ctc.vocabulary
        elif reader == "text":
            from isoform.runtimes.pipelines.audio.waveform_writer import WaveformWriter

            self.text_tokenizer = TextTokenizer(self.folder, self.facts)
            self._writer = WaveformWriter(several, self.folder, self.text_tokenizer, self._generation())
        elif reader == "timestamps":
            from isoform.runtimes.pipelines.audio.speech.transcriber import Transcriber

            self.text_tokenizer = TextTokenizer(self.folder, self.facts)
            self._transcriber = Transcriber(several, self.folder, self.text_tokenizer)
        else:
            raise UnsupportedModel(f"{self.folder}: isoform does not know how this model's output becomes text")

    @property
    def timestamps(self) -> bool | str:
        """What to ask for as `return_timestamps` where the pieces of a transcript are wanted."""
        if self._writer is not None:
            raise InputError("this model writes no times; subtitles need one that does, or a CTC model")
        return "word" if self._ctc is not None else True

    def _is_one(self, inputs: Any) -> bool:
        return is_audio(inputs)

    def _takes(self) -> str:
        return 'a path, bytes, samples, {"array", "sampling_rate"}, or a list of these'

    def try_item(self, item: Any, call: dict[str, Any]) -> None:
        """See `Pipeline.try_item`: the recording is decoded."""
        for _ in audio_blocks(item, RATE):
            pass

    def begin(self, options: AutomaticSpeechRecognitionOptions) -> dict[str, Any]:
        """See `Pipeline.begin`: the parameters of the reader."""
        parameters = dict(options.generation)
        if self._ctc is not None:
            for name in parameters:
                if name not in _CTC:
                    raise InputError(
                        f"a CTC model has no parameter {name!r}; it has {', '.join(['batch_size', *_CTC])}"
                    )
        parameters.pop("ignore_warning", None)
        return parameters

    def answers(self, items: Sequence[Any], size: int | None, call: dict[str, Any]) -> Iterator[Any]:
        """See `Pipeline.answers`: each reader has batches of its own."""
        if self._ctc is not None:
            timestamps = call.get("return_timestamps") or None
            parameters = {**call, "return_timestamps": timestamps}
            return iter(self._ctc.recognize(items, size, progress=reporter(), **parameters))
        if self._writer is not None:
            return iter(self._writer.transcribe(items, size, progress=reporter(), **call))
        assert self._transcriber is not None
        rate = self._transcriber.features.sampling_rate
        recordings = [load_audio(item, rate) for item in items]
        return iter(self._transcriber.transcribe_many(recordings, batch_size=size, progress=reporter(), **call))
