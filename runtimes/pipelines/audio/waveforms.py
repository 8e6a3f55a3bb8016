"""Running a model over waveforms of any lengths, in batches that change no answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from isoform.errors import InputError, UnsupportedModel
from isoform.runtimes.pipelines.batching import neighbours
from isoform.runtimes.preprocess.audio.waveform import WaveformSettings, pad

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isoform.runtimes.session import Session

SAMPLES = 160_000  # in a batch, where no size is asked for: ten seconds fill the cores, and more would leave the caches

_T = TypeVar("_T")


class WaveformModel:
    """A session whose input is a waveform. `stride` samples lie between two frames of its output."""

    def __init__(self, session: Session, folder: Path, facts: Mapping[str, Any]) -> None:
        """`facts` of the model, of which "frames" says how samples become frames.

        Raises UnsupportedModel when the session wants something else, or nothing says so.
        """
        sound, self._mask = session.signature.port("sound"), session.signature.port("mask")
        if sound is None or any(port not in (sound, self._mask) for port in session.signature.inputs):
            names = ", ".join(port.name for port in session.signature.inputs)
            raise UnsupportedModel(f"a model that reads {names} does not run over waveforms here")
        if "frames" not in facts:
            raise UnsupportedModel(f"{folder}: isoform does not know how this model makes frames of samples")
        self._session, self._sound = session, sound.name
        self._framed = len(session.signature.outputs[0].axes) == 3
        self.settings = WaveformSettings.read(folder)
        kernels, strides = zip(*facts["frames"]["convolutions"], strict=True)
        self.stride = prod(strides)
        self.shortest = 1 + sum((k - 1) * prod(strides[:n]) for n, k in enumerate(kernels))
        self._adapters = facts["frames"]["adapters"]

    def frames(self, samples: int) -> int:
        """How many frames a waveform of so many samples gives."""
        count = (samples - self.shortest) // self.stride + 1
        for kernel, stride in self._adapters:
            count = (count + 2 - kernel) // stride + 1
        return count

    def check(self, samples: NDArray[np.float32], name: str) -> None:
        """InputError for a waveform that is shorter than what the model reads for one frame."""
        if samples.size < self.shortest:
            ms = 1000 * self.shortest / self.settings.sampling_rate
            raise InputError(
                f"{name} is too short: {samples.size} of the {self.shortest} samples ({ms:.1f} ms) that the model "
                "reads at once"
            )

    def together(self, items: Iterable[_T], size: int | None, samples: Callable[[_T], int]) -> Iterator[list[_T]]:
        """Items that run in one batch, in order; `samples` counts those of an item's waveform.

        A model without a mask of the padding gets waveforms of one length at a time: each runs as if alone.
        """
        kind: Callable[[_T], Any] = samples if self._mask is None else (lambda item: None)
        return neighbours(items, size, length=samples, budget=SAMPLES, kind=kind)

    def run(self, waveforms: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The first output of each waveform of a batch, without batch axis and padding."""
        values, mask = pad(waveforms, self.settings)
        feed: dict[str, NDArray[Any]] = {self._sound: values}
        if self._mask is not None:
            feed[self._mask.name] = mask
        rows = self._session.run(feed)[self._session.signature.outputs[0].name]
        return [
            row[: self.frames(len(waveform))] if self._framed else row
            for row, waveform in zip(rows, waveforms, strict=True)
        ]
