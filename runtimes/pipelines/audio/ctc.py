"""Speech to text frame by frame: the best character of each, merged (CTC); long sound in chunks that overlap.

Chunks, their strides and the times of characters and words are counted as transformers counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isoform.errors import InputError
from isoform.progress import Progress
from isoform.runtimes.pipelines.audio.waveforms import WaveformModel
from isoform.runtimes.preprocess.audio.recordings import audio_blocks, duration, load_audio, name_of
from isoform.runtimes.preprocess.text.ctc_vocabulary import CtcVocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

Stride = tuple[int, int, int]
"""Samples of a piece, and those of them at its left and right that only give context."""

_NOT_EXTRA = ("array", "raw", "sampling_rate", "stride", "path")


@dataclass(slots=True)
class _Frames:
    """The best character of each frame of one recording, and what its dictionary held besides."""

    ids: list[NDArray[np.int64]] = field(default_factory=list)
    pieces: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Samples that run at once, of one of the recordings."""

    recording: int
    samples: NDArray[np.float32]
    stride: Stride | None


class CtcRecognizer:
    """Recordings to texts with a model that has a character for every frame."""

    def __init__(self, session: Session, folder: Path, facts: Mapping[str, Any]) -> None:
        self._model = WaveformModel(session, folder, facts)
        self.vocabulary = CtcVocabulary(folder, facts)
        self._rate = self._model.settings.sampling_rate

    def recognize(
        self,
        sources: Sequence[Any],
        size: int | None,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        return_timestamps: Literal["char", "word"] | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Each gives {"text"}, and "chunks" of {"text", "timestamp"} with `return_timestamps`; times are seconds."""
        if return_timestamps not in ("char", "word", None):
            raise InputError(
                f"return_timestamps={return_timestamps!r}: this model gives the times of characters or words; pass "
                "'char' or 'word'"
            )
        window = self._window(chunk_length_s, stride_length_s) if chunk_length_s else None
        heard = [_Frames() for _ in sources]
        report = _Reporter(progress, sources, self._rate)
        pieces = self._pieces(sources, window, heard)
        for batch in self._model.together(pieces, size, lambda piece: len(piece.samples)):
            for piece, logits in zip(batch, self._model.run([piece.samples for piece in batch]), strict=True):
                ids = logits.argmax(-1)
                heard[piece.recording].ids.append(self._inner(ids, piece.stride) if piece.stride else ids)
                report.heard(len(piece.samples) - (sum(piece.stride[1:]) if piece.stride else 0))
        return [self._answer(one, return_timestamps) for one in heard]

    def _answer(self, heard: _Frames, timestamps: Literal["char", "word"] | None) -> dict[str, Any]:
        ids = np.concatenate(heard.ids).tolist() if heard.ids else []
        answer: dict[str, Any] = {"text": self.vocabulary.text(ids)}
        if timestamps:
            step = self._model.stride
            answer["chunks"] = [
                {"text": span.text, "timestamp": (span.start * step / self._rate, span.end * step / self._rate)}
                for span in self.vocabulary.spans(ids, timestamps)
            ]
        return {**answer, **{name: [value] * heard.pieces for name, value in heard.extra.items()}}

    # ------------------------------------------------------------------ pieces
    def _window(self, length: float, stride: float | Sequence[float] | None) -> Stride:
        """Samples of a chunk, shared on its left, shared on its right; multiples of a frame's, as in transformers."""
        parts = length / 6 if stride is None else stride
        left, right = (parts, parts) if isinstance(parts, int | float) else tuple(parts)
        step = self._model.stride
        sizes = [int(round(seconds * self._rate / step) * step) for seconds in (length, left, right)]
        if min(sizes) < 0 or sizes[0] <= sizes[1] + sizes[2]:
            raise InputError(
                f"chunk_length_s={length} must be longer than the strides on its sides, {left} s and {right} s"
            )
        if sizes[0] < self._model.shortest:
            raise InputError(f"chunk_length_s={length} is shorter than what the model reads for one frame")
        return sizes[0], sizes[1], sizes[2]

    def _pieces(self, sources: Sequence[Any], window: Stride | None, heard: list[_Frames]) -> Iterator[_Chunk]:
        for n, source in enumerate(sources):
            name = name_of(source)
            if isinstance(source, Mapping):
                heard[n].extra = {key: value for key, value in source.items() if key not in _NOT_EXTRA}
            if window is None:
                samples = load_audio(source, self._rate)
                self._model.check(samples, name)
                heard[n].pieces = 1
                yield _Chunk(n, samples, self._stride_of(source, samples))
                continue
            total = 0
            for samples, stride in chunks(audio_blocks(source, self._rate), window):
                total += 1
                if not heard[n].ids and total == 1:
                    self._model.check(samples, name)
                if samples.size >= self._model.shortest:  # what is left at the end may not make a frame
                    heard[n].pieces += 1
                    yield _Chunk(n, samples, stride)
            if not total:
                raise InputError(f"{name} holds no sound; give a recording of at least one sample")

    def _stride_of(self, source: Any, samples: NDArray[np.float32]) -> Stride | None:
        """The stride that a dictionary asks for, at the model's rate."""
        stride = source.get("stride") if isinstance(source, Mapping) else None
        if stride is None:
            return None
        try:
            left, right = (int(value) for value in stride)
        except (TypeError, ValueError):
            raise InputError(f'"stride" is {stride!r:.60}, not two numbers of samples: (left, right)') from None
        if min(left, right) < 0 or left + right > samples.size:
            raise InputError(f'"stride" {(left, right)} is too large for {samples.size} samples')
        ratio = self._rate / source["sampling_rate"]
        return samples.size, round(left * ratio), round(right * ratio)

    def _inner(self, ids: NDArray[np.int64], stride: Stride) -> NDArray[np.int64]:
        """The frames that are not only context."""
        samples, left, right = stride
        frames = round(samples / self._model.stride)
        left, right = round(left / samples * frames), round(right / samples * frames)
        return ids[left : frames - right]


def chunks(blocks: Iterable[NDArray[np.float32]], window: Stride) -> Iterator[tuple[NDArray[np.float32], Stride]]:
    """Blocks joined and cut into overlapping chunks, each with its stride; no more than a chunk is held.

    The first chunk has no context on its left, the last one none on its right; a rest that is all context is left out.
    """
    length, left, right = window
    step = length - left - right
    held = np.zeros(0, np.float32)
    start = 0
    for block in blocks:
        held = np.concatenate((held, block))
        while held.size > length:  # more follows: this one is not the last
            yield held[:length], (length, left if start else 0, right)
            held, start = held[step:], start + step
    if held.size > (left if start else 0):
        yield held, (held.size, left if start else 0, 0)


class _Reporter:
    """Tells how much has been heard, in seconds, where the whole is known."""

    def __init__(self, progress: Progress | None, sources: Sequence[Any], rate: int) -> None:
        seconds = [duration(source, rate) for source in sources] if progress else [None]
        self._total = None if None in seconds else int(sum(s for s in seconds if s is not None))
        self._progress, self._rate, self._samples = progress, rate, 0

    def heard(self, samples: int) -> None:
        self._samples += samples
        if self._progress is not None and self._total:
            self._progress("recognize", min(self._samples // self._rate, self._total), self._total)
