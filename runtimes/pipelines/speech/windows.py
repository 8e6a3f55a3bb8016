"""The features of a recording, window by window, so that hours of it need little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isoform.runtimes.preprocess.log_mel import LogMelSettings, log_mel, pad

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Windows:
    """The log-mel features of a whole recording, of which one window is handed out at a time.

    A recording shorter than the model's window is filled up with silence; a longer one stays as it is. `frames` counts
    them all, `sounding` those that hold sound.
    """

    def __init__(self, samples: NDArray[np.float32], settings: LogMelSettings) -> None:
        self._settings = settings
        whole = pad(samples, settings) if len(samples) < settings.n_samples else samples
        self.frames = len(whole) // settings.hop_length
        self.sounding = min(-(-len(samples) // settings.hop_length), self.frames)
        self._features = log_mel(whole, settings)

    def window(self, start: int) -> NDArray[np.float32]:
        """Frames from `start` on, zeros after the last: (mels, frames of the model's window)."""
        out = np.zeros((self._settings.feature_size, self._settings.frames), np.float32)
        found = self._features[:, start : start + out.shape[1]]
        out[:, : found.shape[1]] = found
        return out

    def drop(self) -> None:
        """Forget the features; what is counted stays."""
        self._features = self._features[:, :0].copy()
