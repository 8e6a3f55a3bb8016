"""Speech to text by an encoder over the waveform and a decoder that writes the text, without times (Moonshine).

Jeffries et al. 2024, https://arxiv.org/abs/2410.15608. A recording is read at once; chunks, if asked for, are written
one after the other, as transformers' pipeline does it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError, InputError
from isoform.json_files import read_object
from isoform.progress import Progress
from isoform.runtimes.generation.loop import generate
from isoform.runtimes.generation.model_file import account_file, account_ids
from isoform.runtimes.generation.rules import PARAMETERS, CallersRules, read_rules
from isoform.runtimes.generation.settings import context_length, model_settings, resolve, vocabulary_size
from isoform.runtimes.pipelines.audio.ctc import chunks
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.preprocess.audio.recordings import audio_blocks, load_audio, name_of
from isoform.runtimes.preprocess.audio.waveform import WaveformSettings, pad
from isoform.runtimes.preprocess.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.backends.parts import PartsSession
    from isoform.runtimes.generation.settings import GenerationConfig

DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "num_beams": 5}
"""Those of transformers' pipeline, where neither the call nor the model says otherwise."""
TOGETHER = 8  # rows of the decoder at a time, beams included


class WaveformWriter:
    """Recordings to texts, over an open session and the folder with the model's files."""

    def __init__(
        self, session: PartsSession, folder: Path, tokenizer: TextTokenizer, asked: Collection[str] = ()
    ) -> None:
        """`asked`: the names of the settings that every call has."""
        self._session, self._tokenizer = session, tokenizer
        self.settings = WaveformSettings.read(folder)
        config = read_object(folder / "config.json")
        self._model = model_settings(folder)
        account_file(folder, self._model)
        account_ids(folder, self._model, asked, vocabulary_size(config))
        start = self._model.get("decoder_start_token_id", config.get("decoder_start_token_id"))
        rows = config.get("vocab_size")
        if type(start) is not int or start < 0 or (isinstance(rows, int) and start >= rows):
            raise CheckpointError(
                f"{folder}: decoder_start_token_id is {start!r:.60}, and the model has logits for {rows} tokens; "
                "correct generation_config.json or config.json"
            )
        self._start, self._context = start, context_length(config)
        encoder = session.part(session.taking("sound")).signature
        sound, self._mask = encoder.port("sound"), encoder.port("mask")
        assert sound is not None
        self._sound = sound
        self._shortest = encoder.units.get(str(self._sound.axes[1]), 1)

    def transcribe(
        self,
        sources: Sequence[Any],
        size: int | None,
        *,
        return_timestamps: bool | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        progress: Progress | None = None,
        **asked: Any,
    ) -> list[dict[str, Any]]:
        """Each gives {"text"}. `asked` are the settings of `GenerationConfig`."""
        if return_timestamps:
            raise InputError("this model writes no times; leave return_timestamps out")
        asked = {**(asked.pop("generate_kwargs", None) or {}), **asked}
        asked.pop("return_timestamps", None)
        given = {name: asked.pop(name, None) for name in PARAMETERS}
        config, rules = read_rules(resolve(asked, self._model, DEFAULTS), **given)
        limit = size or max(TOGETHER // config.num_beams, 1)
        written: list[list[int]] = [[] for _ in sources]

        def pieces() -> Iterator[tuple[int, NDArray[np.float32]]]:
            for n, samples in self._pieces(sources, chunk_length_s, stride_length_s):
                if progress is not None:
                    progress("recognize", n, len(sources))
                yield n, samples

        # The first norm sees the whole row, so that only rows of one length share a batch.
        for group in neighbours(pieces(), limit, kind=lambda piece: len(piece[1])):
            self._write(group, config, rules, written)
        return [{"text": self._tokenizer.decode(ids, skip_special_tokens=True)} for ids in written]

    def _write(
        self,
        group: Sequence[tuple[int, NDArray[np.float32]]],
        config: GenerationConfig,
        rules: CallersRules,
        written: list[list[int]],
    ) -> None:
        values, mask = pad([samples for _, samples in group], self.settings)
        feed: dict[str, NDArray[Any]] = {self._sound.name: values}
        if self._mask is not None:
            feed[self._mask.name] = mask
        encoded = self._session.encode(feed)
        decoder = self._session.decoder(encoded)
        prompts = [[self._start] for _ in group]
        decode = self._tokenizer.decode
        rows = generate(decoder, prompts, config, context=self._context, decode=decode, callers=rules)
        for (n, _), row in zip(group, rows, strict=True):
            written[n] += [*row.prompt, *row.made]

    def _pieces(
        self, sources: Sequence[Any], length: float | None, stride: float | Sequence[float] | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        rate = self.settings.sampling_rate
        for n, source in enumerate(sources):
            if not length:
                samples = load_audio(source, rate)
                if samples.size < self._shortest:
                    raise InputError(
                        f"{name_of(source)} is too short: {samples.size} of the {self._shortest} samples that the "
                        "model reads at once"
                    )
                yield n, samples
                continue
            parts = length / 6 if stride is None else stride
            left, right = (parts, parts) if isinstance(parts, int | float) else tuple(parts)
            window = round(length * rate), round(left * rate), round(right * rate)
            if min(window) < 0 or window[0] <= window[1] + window[2] or window[0] < self._shortest:
                raise InputError(
                    f"chunk_length_s={length} must be longer than the strides on its sides, {left} s and {right} s"
                )
            for samples, _ in chunks(audio_blocks(source, rate), window):
                if samples.size >= self._shortest:
                    yield n, samples
