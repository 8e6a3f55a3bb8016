"""Sound to text with an encoder and a decoder that writes timestamps, as transformers' Whisper does it.

Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 3.8. Long recordings are read window by window: each
begins where the last timestamp of the one before ended (sequential), or they overlap and are joined (chunks). A
recording's text does not depend on those it is transcribed with.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isoform.errors import InputError
from isoform.json_files import JsonObject
from isoform.progress import Progress
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.processors import softmax
from isoform.runtimes.generation.searches import TextRow
from isoform.runtimes.pipelines.audio.speech.alignment import token_times
from isoform.runtimes.pipelines.audio.speech.joining import SoundTokens, SpeechVocabulary, join
from isoform.runtimes.pipelines.audio.speech.languages import LANGUAGES
from isoform.runtimes.pipelines.audio.speech.speech_settings import SpeechModel, SpeechSettings, read_call, room
from isoform.runtimes.pipelines.audio.speech.timestamp_rules import timestamps
from isoform.runtimes.pipelines.audio.speech.windows import Windows
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer
from isoform.runtimes.session import rewinds

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from isoform.runtimes.backends.parts import Encoded, PartsSession
    from isoform.runtimes.generation.processors import Processor
    from isoform.runtimes.session import Decoder, Rewinds

Stride = tuple[float, float, float]
"""Seconds of a piece, and those it shares with the one before and the one after."""

_Ready = tuple[int, "NDArray[np.float32]", Stride | None]
"""The number of a recording, a piece of it, and what the piece shares."""

TOGETHER = 8  # rows of the decoder at a time, beams included


@dataclass(slots=True)
class _Recording:
    """A recording being transcribed."""

    windows: Windows
    seek: int = 0  # the next frame
    prefix: list[int] = field(default_factory=list)
    language: int | None = None
    said: list[list[int]] = field(default_factory=list)  # tokens by segment
    times: list[float] = field(default_factory=list)
    conditioned: bool = False  # whether the next window continues what was said

    @property
    def is_over(self) -> bool:
        return self.seek >= self.windows.frames


@dataclass(slots=True)
class _Window:
    """What one window gave."""

    prompt: list[int]
    made: list[int]  # with the end, if it came
    chances: list[float]
    silence: float  # the probability that nobody speaks
    temperature: float
    skip: bool = False


class Transcriber:
    """Recordings to texts, over an open session and the folder with the model's files."""

    def __init__(self, session: PartsSession, folder: Path, tokenizer: TextTokenizer) -> None:
        self._session, self._folder, self._tokenizer = session, folder, tokenizer
        self.model = SpeechModel.read(folder)
        self.features = LogMelSettings.read(folder)
        self._stride = self.features.frames // self.model.window  # frames of a position
        self._precision = self.features.chunk_length / self.model.window  # seconds of a position
        languages = {f"<|{code}|>": code for code in LANGUAGES}
        by_text = tokenizer.vocabulary()
        name = JsonObject.read(folder / "tokenizer_config.json").text("language")
        self._vocabulary = SpeechVocabulary(
            decode=tokenizer.decode,
            special=tokenizer.special_ids,
            languages={by_text[text]: code for text, code in languages.items() if text in by_text},
            first_timestamp=self.model.first_timestamp,
            end=self.model.eos_token_id,
            language=name if isinstance(name, str) else "english",
        )

    def prompt_ids(self, text: str) -> list[int]:
        """The tokens of a text that the recording is said to follow, for `prompt_ids`."""
        (row,) = self._tokenizer.encode([" " + text.strip()], add_special_tokens=False)
        start = self._tokenizer.vocabulary().get("<|startofprev|>")
        if start is None or any(token in self._vocabulary.special for token in row.ids):
            raise InputError(f"this text cannot stand before a recording: {text!r:.60}")
        return [start, *row.ids]

    def transcribe(self, samples: NDArray[np.float32], **options: Any) -> dict[str, Any]:
        """`transcribe_many` for one recording."""
        return self.transcribe_many([samples], **options)[0]

    def transcribe_many(
        self,
        recordings: Sequence[NDArray[np.float32]],
        *,
        batch_size: int | None = None,
        return_timestamps: bool | str | None = None,
        return_language: bool | None = None,
        chunk_length_s: float = 0,
        stride_length_s: float | Sequence[float] | None = None,
        progress: Progress | None = None,
        **asked: Any,
    ) -> list[dict[str, Any]]:
        """Each gives {"text"}, and "chunks" where timestamps or the language are asked for.

        recordings: (N,) each, at the model's sampling rate. With `chunk_length_s` a recording is cut into chunks that
        share `stride_length_s` seconds with their neighbours (a sixth of a chunk by default) and are transcribed
        together; without it, one longer than the window is read in sequence. `asked` are language ("en" or "english"),
        task ("transcribe" or "translate", into English), prompt_ids, condition_on_prev_tokens, temperature (one, or
        several to try in turn), compression_ratio_threshold, logprob_threshold, no_speech_threshold, and the settings
        of `GenerationConfig`.
        """
        asked = {**(asked.pop("generate_kwargs", None) or {}), **asked}
        if return_timestamps == "char":
            raise InputError("this model gives the times of words or segments; pass return_timestamps='word' or True")
        if return_timestamps not in (None, False, True, "word"):
            raise InputError(f"return_timestamps={return_timestamps!r} is none of True, False, 'word'")
        given: bool | Literal["word"] = bool(return_timestamps or self.model.settings.get("return_timestamps"))
        if return_timestamps == "word":
            given = "word"
        long = [not chunk_length_s and len(samples) > self.features.n_samples for samples in recordings]
        if any(long) and return_timestamps is False:
            raise InputError(
                f"a recording longer than {self.features.chunk_length} s is read by its timestamps; pass "
                "return_timestamps=True, or chunk_length_s="
                f"{self.features.chunk_length} to read it in chunks without them"
            )
        if given == "word":
            self._check_heads()
        settings = read_call(self.model, asked, timestamps=bool(given))
        by_time = replace(settings, timestamps=True) if any(long) else settings
        cut = _Cut.of(chunk_length_s, stride_length_s, self.features.sampling_rate) if chunk_length_s else None
        size = batch_size or max(TOGETHER // settings.generation.num_beams, 1)
        heard = self._read(
            recordings,
            [by_time if one else settings for one in long],
            cut,
            size,
            words=given == "word",
            progress=progress,
        )
        return [
            join(
                [self._piece(recording, stride, bool(return_language)) for recording, stride in pieces],
                self._vocabulary,
                timestamps=given,
                with_language=bool(return_language),
                precision=self._precision,
                window=self.model.window,
            )
            for pieces in heard
        ]

    def _piece(self, recording: _Recording, stride: Stride | None, with_language: bool) -> SoundTokens:
        tokens = [token for segment in recording.said for token in segment]
        times = recording.times
        if with_language and recording.language is not None:
            tokens, times = [recording.language, *tokens], [0.0, *times]
        return SoundTokens(tokens, times, stride)

    # ------------------------------------------------------------------ windows
    def _check_heads(self) -> None:
        """InputError where no head tells the times of words; a warning where some of those listed do not exist."""
        absent = ", ".join(str(head) for head in self.model.absent_heads[:3])
        if not self.model.alignment_heads:
            said = f"names {absent}, which the decoder does not have" if absent else "does not name"
            raise InputError(
                "the times of words come from the model's alignment_heads, which its generation_config.json "
                f"{said}; pass return_timestamps=True for those of segments"
            )
        if (width := self.model.median_filter_width) < 1 or width % 2 == 0:
            raise InputError(
                "the times of words are smoothed over an odd number of positions, and median_filter_width of "
                f"config.json is {width}; correct the file, or pass return_timestamps=True for those of segments"
            )
        if absent:
            warnings.warn(
                f"generation_config.json lists alignment heads that the decoder does not have ({absent}); the times of "
                "words come from the others",
                stacklevel=3,
            )

    def _read(
        self,
        recordings: Sequence[NDArray[np.float32]],
        settings: Sequence[SpeechSettings],
        cut: _Cut | None,
        size: int,
        *,
        words: bool,
        progress: Progress | None,
    ) -> list[list[tuple[_Recording, Stride | None]]]:
        """Every recording's pieces, in order; `settings` are those of each recording."""
        rate = self.features.sampling_rate
        total, done = sum(map(len, recordings)) // rate, 0
        ready: list[_Ready] = []
        for n, samples in enumerate(recordings):
            if cut is None:
                ready.append((n, samples, None))
            else:
                # What a chunk has more than the model's window is not heard.
                ready += [(n, chunk[: self.features.n_samples], stride) for chunk, stride in cut.chunks(samples)]
        found: list[list[tuple[_Recording, Stride | None]]] = [[] for _ in recordings]
        for group in neighbours(ready, size, kind=lambda one: settings[one[0]]):
            heard = [_Recording(Windows(chunk, self.features)) for _, chunk, _ in group]

            def tell(seconds: float, before: int = done) -> None:
                if progress is not None:
                    progress("transcribe", min(int(before + seconds), total), total)

            self._transcribe(heard, settings[group[0][0]], words=words, tell=tell)
            for (n, chunk, stride), recording in zip(group, heard, strict=True):
                recording.windows.drop()
                found[n].append((recording, stride))
                shared = stride[1] + stride[2] if stride else 0
                done += max(int(len(chunk) / rate - shared), 0)
            tell(0, done)
        return found

    def _transcribe(
        self,
        recordings: Sequence[_Recording],
        settings: SpeechSettings,
        *,
        words: bool,
        tell: Callable[[float], None],
    ) -> None:
        """The sequential algorithm: every round takes the next window of each recording that is not over."""
        span = self.features.frames
        prompt = list(settings.prompt_ids)
        if prompt and not settings.every_segment:
            start = 1 if prompt[0] == self.model.prev_sot_token_id else 0
            for recording in recordings:
                recording.said.append(prompt[start:])
        for recording in recordings:
            recording.conditioned = settings.condition_on_prev_tokens
        while active := [recording for recording in recordings if not recording.is_over]:
            features = np.stack([recording.windows.window(recording.seek) for recording in active])
            encoded = self._session.encode({"input_features": features})
            self._begin(active, encoded, settings)
            prompts = [self._prompt(recording, settings) for recording in active]
            heard = self._hear(encoded, active, prompts, settings)
            times = self._times(encoded, active, heard) if words else None
            for n, (recording, window) in enumerate(zip(active, heard, strict=True)):
                left = min(recording.windows.frames - recording.seek, span)
                recording.conditioned = settings.condition_on_prev_tokens and window.temperature < 0.5
                if window.skip:
                    recording.seek += left
                    continue
                made = window.made[:-1] if window.made[-1:] == [self.model.eos_token_id] else window.made
                segments, step = self._segments(made, left)
                if times is not None:
                    offset = np.float32(recording.seek * self._precision / self._stride)
                    kept = sum(map(len, segments))
                    recording.times += (times[n][:kept].astype(np.float32) + offset).tolist()
                recording.said += segments
                recording.seek += step
            tell(sum(min(r.seek, r.windows.sounding) for r in recordings) * self.features.hop_length / self._rate)
        for recording in recordings:
            if prompt and not settings.every_segment:
                del recording.said[0]

    @property
    def _rate(self) -> int:
        return self.features.sampling_rate

    def _begin(self, active: Sequence[_Recording], encoded: Encoded, settings: SpeechSettings) -> None:
        """The prefix of recordings at their first window, whose language may have to be heard."""
        new = [n for n, recording in enumerate(active) if not recording.prefix]
        if not new:
            return
        heard: dict[int, int] = {}
        if settings.detects(self.model):
            decoder = self._session.decoder(encoded)
            logits = decoder.step(np.full((len(active), 1), self.model.decoder_start_token_id, np.int64))
            languages = sorted(self.model.lang_to_id.values())
            heard = {n: languages[int(logits[n, languages].argmax())] for n in new}
        for n in new:
            recording = active[n]
            recording.prefix = settings.prefix(self.model, heard.get(n))
            recording.language = next(
                (token for token in recording.prefix if token in self.model.lang_to_id.values()), None
            )

    def _prompt(self, recording: _Recording, settings: SpeechSettings) -> list[int]:
        """What the decoder is given for the next window: what was said before, where asked for, and the prefix."""
        before = list(settings.prompt_ids)
        if recording.conditioned and recording.said:
            start = self.model.prev_sot_token_id
            head = before if before and settings.every_segment else [] if start is None else [start]
            first = self.model.first_timestamp
            said = [
                token
                for segment in recording.said
                for token in (segment[:-1] if len(segment) > 2 and segment[-2] >= first else segment)
            ]
            before = head + said[-(self.model.positions // 2 - 1) :]
        return before + recording.prefix

    def _segments(self, made: list[int], left: int) -> tuple[list[list[int]], int]:
        """The tokens of a window of `left` frames by segment, and by how many frames to go on.

        A pair of timestamps ends a segment. What follows the last pair was cut off by the window's end: the next window
        begins there, unless a single timestamp says that nothing follows.
        """
        first = self.model.first_timestamp
        is_time = [token >= first for token in made]
        ends = [n + 1 for n in range(len(made) - 1) if is_time[n] and is_time[n + 1]]
        if not ends:
            return [made], left
        if is_time[-2:] == [False, True]:
            ends.append(len(made))
            step = left
        else:
            step = (made[ends[-1] - 1] - first) * self._stride
            ends[-1] += 1
        starts = [0, *ends[:-1]]
        return [made[start:end] for start, end in zip(starts, ends, strict=True)], step

    # ------------------------------------------------------------------ decoding
    def _hear(
        self, encoded: Encoded, active: Sequence[_Recording], prompts: Sequence[list[int]], settings: SpeechSettings
    ) -> list[_Window]:
        """Decode every window, again and at the next temperature while the text looks wrong."""
        heard: list[_Window | None] = [None] * len(active)
        waiting = list(range(len(active)))
        for temperature in settings.temperatures:
            again = []
            for lane in _by_length(waiting, prompts):
                rows = self._decode(encoded, len(active), lane, [prompts[n] for n in lane], settings, temperature)
                for n, window in zip(lane, rows, strict=True):
                    # How likely it is that nobody speaks is asked once.
                    if (earlier := heard[n]) is not None:
                        window.silence = earlier.silence
                    heard[n] = window
                    if self._looks_wrong(window, settings):
                        again.append(n)
            waiting = again
            if not waiting:
                break
        return [window for window in heard if window is not None]

    def _looks_wrong(self, window: _Window, settings: SpeechSettings) -> bool:
        """Whether to decode a window again; `skip` is set where it holds no speech."""
        wrong, likely = False, 0.0
        if settings.compression_ratio_threshold is not None:
            wrong = self._compression(window.made) > settings.compression_ratio_threshold
        if settings.logprob_threshold is not None:
            likely = sum(window.chances) / max(len(window.made), 1)
            wrong = wrong or likely < settings.logprob_threshold
            if settings.no_speech_threshold is not None and likely < settings.logprob_threshold:
                window.skip = window.silence > settings.no_speech_threshold
        return wrong and not window.skip

    def _compression(self, tokens: Sequence[int]) -> float:
        """How much zlib shortens the tokens: repetition is the sign of a text gone wrong."""
        width = int(math.log2(self.model.vocab_size) / 8) + 1
        data = b"".join(token.to_bytes(width, "little") for token in tokens)
        return len(data) / len(zlib.compress(data))

    def _decode(
        self,
        encoded: Encoded,
        count: int,
        lane: Sequence[int],
        prompts: Sequence[list[int]],
        settings: SpeechSettings,
        temperature: float,
    ) -> list[_Window]:
        """The windows of rows `lane` of the `count` rows encoded; their prompts are of one length."""
        decoder = self._session.decoder(encoded)
        if list(lane) != list(range(count)):
            decoder.select(np.array(lane, np.int64))
        asked, length = settings.generation, len(prompts[0])
        listener = _Listener(decoder)
        if settings.no_speech_threshold is not None:
            assert self.model.no_timestamps_token_id is not None
            place = next(n for n in range(length) if prompts[0][n:][:1] == [self.model.decoder_start_token_id])
            listener = _Listener(decoder, place, self.model.no_timestamps_token_id - 1)
        config = replace(
            asked,
            max_new_tokens=room(settings, self.model, prompts[0]),
            max_length=None,
            num_return_sequences=1,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            num_beams=1 if temperature > 0 else asked.num_beams,
        )
        rows = generate(
            listener,
            prompts,
            config,
            context=self.model.positions,
            decode=self._tokenizer.decode,
            rules=self._rules if settings.timestamps else None,
            keep_chances=settings.logprob_threshold is not None,
        )
        return [self._heard(row, silence, temperature) for row, silence in zip(rows, listener.chances, strict=True)]

    @staticmethod
    def _heard(row: TextRow, silence: float, temperature: float) -> _Window:
        return _Window(row.prompt, row.made, row.chances, silence, temperature)

    def _rules(self, length: int) -> list[Processor]:
        model = self.model
        assert model.no_timestamps_token_id is not None
        latest = model.settings.get("max_initial_timestamp_index")
        first, silent = model.first_timestamp, model.no_timestamps_token_id
        return [timestamps(length, first, silent, model.eos_token_id, latest)]

    # ------------------------------------------------------------------ words
    def _times(
        self, encoded: Encoded, active: Sequence[_Recording], heard: Sequence[_Window]
    ) -> list[NDArray[np.float64]]:
        """When each new token of every window begins, seconds from the window's start."""
        rows = [[*window.prompt, *window.made[:-1]] for window in heard]
        ids = np.full((len(rows), max(map(len, rows))), self.model.eos_token_id, np.int64)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = row
        part = self._session.giving("attentions")
        (weights,) = self._session.run_part(part, encoded, {"input_ids": ids}).values()
        found = []
        for n, (recording, window) in enumerate(zip(active, heard, strict=True)):
            sounding = recording.windows.sounding - recording.seek
            said = weights[n, :, len(window.prompt) : len(rows[n])]
            times = token_times(said, self.model.median_filter_width, self._precision, sounding // 2)
            # The last token, mostly the end, was never fed: it begins with the one before.
            found.append(np.append(times, times[-1] if len(times) else 0.0))
        return found


class _Listener:
    """A decoder that notes, while it reads the prompt, how likely a token is after the one at `place`."""

    def __init__(self, decoder: Decoder, place: int | None = None, token: int = 0) -> None:
        self._decoder, self._place, self._token = decoder, place, token
        self._chances: NDArray[np.float32] | None = None
        self._rows = 0

    @property
    def chances(self) -> Iterator[float]:
        """By row of the prompt; 0 if no place was given."""
        values = np.zeros(self._rows, np.float32) if self._chances is None else self._chances
        return iter(values.tolist())

    def step(self, tokens: Any, **options: Any) -> NDArray[np.float32]:
        """See `Decoder.step`; the first one has nothing but the prompts."""
        if self._rows:
            return self._decoder.step(tokens, **options)
        self._rows = len(tokens)
        place = tokens.shape[1] if self._place is None else self._place + 1
        logits = self._decoder.step(tokens[:, :place])
        if self._place is not None:
            self._chances = softmax(logits)[:, self._token]
        if place < tokens.shape[1]:
            logits = self._decoder.step(tokens[:, place:])
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        self._decoder.select(rows)

    def join(self, other: Decoder) -> None:
        self._decoder.join(other)

    def rewind(self, counts: ArrayLike) -> None:
        self._decoder.rewind(counts)

    @property
    def rewinds(self) -> Rewinds:
        """See `session.rewinds`."""
        return rewinds(self._decoder)

    def __len__(self) -> int:
        return len(self._decoder)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a recording is cut into chunks, in samples."""

    length: int
    left: int
    right: int
    rate: int

    @classmethod
    def of(cls, length: float, stride: float | Sequence[float] | None, rate: int) -> _Cut:
        if stride is None:
            stride = length / 6
        try:
            left, right = (stride, stride) if isinstance(stride, int | float) else stride
            cut = cls(round(length * rate), round(left * rate), round(right * rate), rate)
        except (TypeError, ValueError):
            raise InputError(
                f"chunk_length_s={length!r} and stride_length_s={stride!r} are not seconds: give a number, and one or "
                "two numbers"
            ) from None
        if cut.length <= cut.left + cut.right or min(cut.left, cut.right) < 0:
            raise InputError(
                f"chunk_length_s={length} leaves nothing between strides of {left} and {right} seconds; make it longer"
            )
        return cut

    def chunks(self, samples: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], Stride]]:
        """Chunks, each with the seconds it lasts and shares with the one before and after."""
        for start in range(0, len(samples), self.length - self.left - self.right):
            chunk = samples[start : start + self.length]
            left = self.left if start else 0
            is_last = start + self.length >= len(samples)
            if len(chunk) > left:
                right = 0 if is_last else self.right
                yield chunk, (len(chunk) / self.rate, left / self.rate, right / self.rate)
            if is_last:
                return


def _by_length(rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows whose prompts are of one length."""
    for length in sorted({len(prompts[n]) for n in rows}):
        yield [n for n in rows if len(prompts[n]) == length]
