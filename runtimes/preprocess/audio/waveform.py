"""What wav2vec 2.0 and Moonshine take: the waveform itself, padded, and normalized where the model wants it.

The settings of every audio model are read here as well: `preprocessor_config.json`, or the `feature_extractor` of
`processor_config.json`, where newer checkpoints keep it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoform.errors import CheckpointError
from isoform.json_files import read_object
from isoform.runtimes.preprocess.known_settings import account_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float32).max)


def read_settings(folder: Path) -> tuple[dict[str, Any], str]:
    """A feature extractor's settings, and where they stand. Raises CheckpointError when the folder has none."""
    path = Path(folder) / "preprocessor_config.json"
    if data := read_object(path):
        return data, str(path)
    path = Path(folder) / "processor_config.json"
    nested = read_object(path).get("feature_extractor")
    if isinstance(nested, dict) and nested:
        return nested, str(path)
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, which says how this model takes sound; fetch it from the model's "
        "repository"
    )


def number(data: Mapping[str, Any], name: str, default: int, where: str, *, least: int = 0, most: int = 2**20) -> int:
    """A whole number of a JSON object. Raises CheckpointError when it is something else or out of the bounds."""
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or value % 1 != 0:
        raise CheckpointError(f"{where}: {name} is {value!r:.40}, not a whole number from {least} to {most}")
    return int(value)


def padding_of(data: Mapping[str, Any], where: str) -> float:
    """`padding_value` of a JSON object, 0 where it states none. Raises CheckpointError when it is no float32."""
    value = data.get("padding_value") or 0.0
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise CheckpointError(f"{where}: padding_value is {value!r:.60}, not a finite number")
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveformSettings:
    """The fields of `preprocessor_config.json`; defaults are those of the format."""

    sampling_rate: int = 16000
    padding_value: float = 0.0
    do_normalize: bool = True
    return_attention_mask: bool = False

    @classmethod
    def read(cls, folder: Path) -> WaveformSettings:
        """The settings in a model's folder. Raises CheckpointError for a file that is missing or does not fit."""
        return cls.from_json(*read_settings(folder))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "preprocessor_config.json") -> WaveformSettings:
        """Raises CheckpointError for a value that does not fit, UnsupportedModel for a setting that is not known."""
        account_settings(
            data,
            where,
            read=("do_normalize", "padding_side", "padding_value", "return_attention_mask", "sampling_rate"),
            only={"feature_size": (1,)},
        )
        if data.get("padding_side", "right") != "right":
            raise CheckpointError(f"{where}: padding_side is {data['padding_side']!r}; sound is padded on the right")
        return cls(
            sampling_rate=number(data, "sampling_rate", 16000, where, least=1),
            padding_value=padding_of(data, where),
            do_normalize=bool(data.get("do_normalize", True)),
            return_attention_mask=bool(data.get("return_attention_mask", False)),
        )


def normalize(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit variance over the whole of it: samples (N,) -> (N,), float32."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def pad(
    waveforms: Sequence[NDArray[np.float32]], settings: WaveformSettings
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Waveforms of any lengths -> (B, N) normalized where the settings say so, and the mask (B, N): 1 for a sample.

    Each waveform is normalized by itself, before the padding, so that its values do not depend on its batch.
    """
    longest = max(len(waveform) for waveform in waveforms)
    values = np.full((len(waveforms), longest), settings.padding_value, np.float32)
    mask = np.zeros((len(waveforms), longest), np.int64)
    for row, waveform in enumerate(waveforms):
        values[row, : len(waveform)] = normalize(waveform) if settings.do_normalize else waveform
        mask[row, : len(waveform)] = 1
    return values, mask
