"""Whisper's log-mel features: what its feature extractor makes of a waveform, with NumPy alone.

Radford et al. 2022, https://arxiv.org/abs/2212.04356; the filter bank is Slaney's (Auditory Toolbox, 1998). A frame is
the power spectrum of `n_fft` samples under a periodic Hann window, centred every `hop_length` samples; the waveform is
mirrored at both ends. The loudest value of the whole input sets the floor, 80 dB below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.preprocess.audio.waveform import number, padding_of, read_settings
from isoform.runtimes.preprocess.known_settings import account_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAMES = 256  # transformed together: their spectra stay in the second-level cache, and no BLAS starts threads for them
PIECE = 1 << 20  # samples held at a time
FLOOR = 1e-10  # power below this counts as this
RANGE = 8.0  # of log10 power below the loudest value; what is quieter is raised to it
HIGHEST = 8000.0  # Hz, the last corner of the filter bank whatever the sampling rate


LARGEST = {"feature_size": 2**10, "sampling_rate": 2**20, "hop_length": 2**16, "chunk_length": 300, "n_fft": 2**16}
"""The greatest value of each size: a window of the model is made of them before any sound is heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMelSettings:
    """The fields of `preprocessor_config.json`; defaults are those of the format."""

    feature_size: int = 80
    sampling_rate: int = 16000
    hop_length: int = 160
    chunk_length: int = 30  # seconds
    n_fft: int = 400
    padding_value: float = 0.0
    return_attention_mask: bool = False

    @property
    def n_samples(self) -> int:
        """Samples of one window of the model."""
        return self.chunk_length * self.sampling_rate

    @property
    def frames(self) -> int:
        """Frames of one window of the model."""
        return self.n_samples // self.hop_length

    @classmethod
    def read(cls, folder: Path) -> LogMelSettings:
        """The settings in a model's folder. Raises CheckpointError for a file that is missing or does not fit."""
        return cls.from_json(*read_settings(folder))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "preprocessor_config.json") -> LogMelSettings:
        """Raises CheckpointError for a value that is no number, UnsupportedModel for dither, which is random."""
        if data.get("dither"):
            raise UnsupportedModel(
                f"{where}: dither={data['dither']!r} adds noise, so that no two runs agree; set it to 0"
            )
        account_settings(
            data,
            where,
            read=("dither", "padding_value", "return_attention_mask", *LARGEST),
            harmless=("mel_filters", "n_samples", "nb_max_frames"),  # computed of the others
            only={"padding_side": ("right",)},
        )
        whole = {
            name: number(data, name, getattr(cls(), name), where, least=1, most=most) for name, most in LARGEST.items()
        }
        masked = bool(data.get("return_attention_mask", False))
        return cls(**whole, padding_value=padding_of(data, where), return_attention_mask=masked)


def log_mel(samples: NDArray[np.float32], settings: LogMelSettings) -> NDArray[np.float32]:
    """The features of a waveform as it stands: samples (N,) -> (mels, N // hop_length).

    Nothing is padded or cut; `pad` gives the window that a model of a fixed length wants. Raises InputError for a
    waveform that is too short to be mirrored at its ends (`n_fft` / 2 samples or fewer).
    """
    return log_mel_blocks([samples], settings)


def log_mel_blocks(blocks: Iterable[NDArray[np.float32]], settings: LogMelSettings) -> NDArray[np.float32]:
    """`log_mel` of the blocks' concatenation, with no more than a block of samples in memory at a time.

    An hour of speech is 115 MB of features (80 mels), and as much again while they are joined.
    """
    window = hann(settings.n_fft)
    half, hop = settings.n_fft // 2, settings.hop_length
    parts: list[NDArray[np.float32]] = []
    held = np.zeros(0, np.float32)  # begins at the first sample of the next frame, mirrored ones included
    tail = np.zeros(0, np.float32)  # the last samples of the waveform, to be mirrored at its end
    total = done = 0  # samples seen, frames made
    for block in _pieces(blocks):
        total += block.size
        held = np.concatenate((held, block))
        tail = np.concatenate((tail, block[-half - 1 :]))[-half - 1 :]
        if done == 0 and not parts:
            if total <= half:
                continue
            held = np.concatenate((held[half:0:-1], held))
        # The last frame of all is dropped, and frames near the end need mirrored samples: wait for both.
        ready = max(0, (held.size - settings.n_fft) // hop + 1)
        if ready:
            parts.append(log_power(held, ready, window, settings))
            held = held[ready * hop :].copy()
            done += ready
    if total <= half:
        raise InputError(
            f"{total} samples are too few for a spectrum of {settings.n_fft}; give more than {half}, or pad them"
        )
    count = total // hop - done
    if count > 0:
        held = np.concatenate((held, tail[-2 : -half - 2 : -1]))
        parts.append(log_power(held, count, window, settings))
    empty = np.zeros((settings.feature_size, 0), np.float32)
    return _scale(np.concatenate((empty, *parts), axis=1)[:, : total // hop])


def _pieces(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The same samples in blocks of at most `PIECE`, none of them empty."""
    for block in blocks:
        block = np.ascontiguousarray(block, np.float32)
        for start in range(0, block.size, PIECE):
            yield block[start : start + PIECE]


def _scale(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """log10 power -> the model's range, in place: at most 8 below the largest, then (x + 4) / 4."""
    if features.size:
        np.maximum(features, features.max() - np.float32(RANGE), out=features)
    features += np.float32(4)
    features /= np.float32(4)
    return features


def log_power(
    samples: NDArray[np.float32],
    count: int,
    window: NDArray[np.float32],
    settings: LogMelSettings,
) -> NDArray[np.float32]:
    """log10 of the mel power of the first `count` frames of `samples`: (mels, count)."""
    hop, size = settings.hop_length, settings.n_fft
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    out = np.empty((settings.feature_size, count), np.float32)
    for start in range(0, count, FRAMES):
        stop = min(start + FRAMES, count)
        spectrum = np.fft.rfft(frames[start:stop] * window, axis=-1)
        power = np.ascontiguousarray((np.square(spectrum.real) + np.square(spectrum.imag)).T, np.float32)
        for row, (bins, weights) in zip(out, triangles(settings), strict=True):
            np.dot(weights, power[bins], out=row[start:stop])
    np.maximum(out, np.float32(FLOOR), out=out)
    return np.log10(out, out=out)


def pad(samples: NDArray[np.float32], settings: LogMelSettings) -> NDArray[np.float32]:
    """Cut or fill to the model's window: samples (N,) -> (n_samples,)."""
    size = settings.n_samples
    if samples.size >= size:
        return samples[:size]
    out = np.full(size, settings.padding_value, np.float32)
    out[: samples.size] = samples
    return out


def frame_mask(count: int, padded: int, settings: LogMelSettings) -> NDArray[np.int64]:
    """1 for frames of the waveform, 0 for those of its padding: `count` of `padded` samples -> (padded // hop,)."""
    starts = np.arange(padded // settings.hop_length) * settings.hop_length
    return (starts < count).astype(np.int64)


@lru_cache(maxsize=8)
def hann(size: int) -> NDArray[np.float32]:
    """The periodic Hann window."""
    angles = 2 * np.pi * np.arange(size) / size
    return (0.5 - 0.5 * np.cos(angles)).astype(np.float32)


@lru_cache(maxsize=8)
def filter_bank(settings: LogMelSettings) -> NDArray[np.float32]:
    """Triangles on Slaney's mel scale, each of the same area: (mels, n_fft / 2 + 1)."""
    bins = np.linspace(0, settings.sampling_rate // 2, settings.n_fft // 2 + 1)
    corners = _hertz(np.linspace(0.0, _mel(HIGHEST), settings.feature_size + 2))
    widths = np.diff(corners)
    slopes = corners[:, None] - bins[None, :]
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    bank = np.maximum(0.0, np.minimum(rising, falling))
    bank *= (2.0 / (corners[2:] - corners[:-2]))[:, None]
    return np.ascontiguousarray(bank, np.float32)


@lru_cache(maxsize=8)
def triangles(settings: LogMelSettings) -> tuple[tuple[slice, NDArray[np.float32]], ...]:
    """The filter bank without its zeros: per filter the bins that it covers and their weights."""
    found = []
    for row in filter_bank(settings):
        covered = np.flatnonzero(row)
        bins = slice(int(covered[0]), int(covered[-1]) + 1) if covered.size else slice(0, 0)
        found.append((bins, row[bins].copy()))
    return tuple(found)


_LINEAR = 200.0 / 3  # Hz per mel below 1 kHz
_STEP = np.log(6.4) / 27  # of the logarithm of frequency per mel above it


def _mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < 1000 else 15.0 + float(np.log(hertz / 1000.0) / _STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < 15.0, mels * _LINEAR, 1000.0 * np.exp(_STEP * (mels - 15.0)))
