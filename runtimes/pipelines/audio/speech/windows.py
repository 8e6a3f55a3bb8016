"""The features of a recording, window by window, so that hours of it need little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isoform.runtimes.preprocess.audio.log_mel import RANGE, LogMelSettings, hann, log_mel, log_power, pad

if TYPE_CHECKING:
    from numpy.typing import NDArray

HELD = 60_000  # frames that are made once and held, ten minutes; those of longer recordings are made when asked for
PIECE = 6_000  # frames made at a time while the loudest is sought


class Windows:
    """The log-mel features of a whole recording, of which one window is handed out at a time.

    A recording shorter than the model's window is filled up with silence; a longer one stays as it is. `frames` counts
    them all, `sounding` those that hold sound. The loudest value of the whole recording sets the floor of every window.
    """

    def __init__(self, samples: NDArray[np.float32], settings: LogMelSettings) -> None:
        self._settings = settings
        self._samples = pad(samples, settings) if len(samples) < settings.n_samples else samples
        self.frames = len(self._samples) // settings.hop_length
        self.sounding = min(-(-len(samples) // settings.hop_length), self.frames)
        self._features: NDArray[np.float32] | None = None
        if self.frames <= HELD:
            self._features = log_mel(self._samples, settings)
        else:
            starts = range(0, self.frames, PIECE)
            self._loudest = max(self._powers(n, min(n + PIECE, self.frames)).max() for n in starts)

    def window(self, start: int) -> NDArray[np.float32]:
        """Frames from `start` on, zeros after the last: (mels, frames of the model's window)."""
        out = np.zeros((self._settings.feature_size, self._settings.frames), np.float32)
        stop = min(start + out.shape[1], self.frames)
        out[:, : stop - start] = self._made(start, stop)
        return out

    def drop(self) -> None:
        """Forget the sound; what is counted stays."""
        self._samples = np.zeros(0, np.float32)
        self._features = None

    def _made(self, start: int, stop: int) -> NDArray[np.float32]:
        if self._features is not None:
            return self._features[:, start:stop]
        powers = np.maximum(self._powers(start, stop), self._loudest - np.float32(RANGE))
        return (powers + np.float32(4)) / np.float32(4)

    def _powers(self, start: int, stop: int) -> NDArray[np.float32]:
        """log10 power of frames [start, stop): (mels, stop - start). The recording is mirrored at its ends."""
        settings, samples = self._settings, self._samples
        first = start * settings.hop_length - settings.n_fft // 2
        last = (stop - 1) * settings.hop_length + settings.n_fft - settings.n_fft // 2
        before, after = max(-first, 0), max(last - len(samples), 0)
        parts = (
            samples[before:0:-1],
            samples[max(first, 0) : min(last, len(samples))],
            samples[-2 : -2 - after : -1],
        )
        whole = np.concatenate(parts)
        return log_power(whole, stop - start, hann(settings.n_fft), settings)
