"""Every setting of a processor is read, known to change nothing, or refused by its name; sizes are bounded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.classes import class_facts
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings
from isoform.runtimes.preprocess.audio.waveform import WaveformSettings
from isoform.runtimes.preprocess.image.processor import ImageSettings
from tests.oracle import tiny

READERS: dict[str, Any] = {
    "clip": lambda folder: ImageSettings.read(folder, class_facts(folder)),
    "vit_cls": lambda folder: ImageSettings.read(folder, class_facts(folder)),
    "siglip": lambda folder: ImageSettings.read(folder, class_facts(folder)),
    "moonshine": WaveformSettings.read,
    "wav2vec2_ctc": WaveformSettings.read,
    "whisper": LogMelSettings.read,
}


def changed(name: str, folder: Path, **settings: Any) -> Path:
    """A tiny checkpoint whose processor has other settings."""
    copy = Path(shutil.copytree(tiny(name), folder / name))
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return copy


@pytest.mark.parametrize("name", READERS)
def test_a_setting_that_is_not_known_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"preprocessor_config\.json: swirl = 3 is not known"):
        READERS[name](changed(name, tmp_path, swirl=3))


@pytest.mark.parametrize("name", READERS)
def test_what_changes_no_value_is_passed_over(name: str, tmp_path: Path) -> None:
    harmless = {"processor_class": "AnyProcessor", "device": "cuda", "return_tensors": None, "swirl": None}
    assert READERS[name](changed(name, tmp_path, **harmless)) == READERS[name](tiny(name))


# What transformers writes for these processors today, and wrote before.
HUB: list[tuple[str, dict[str, Any]]] = [
    ("whisper", {"mel_filters": [[0.0]], "n_samples": 480000, "nb_max_frames": 3000, "dither": 0.0}),
    ("wav2vec2_ctc", {"feature_size": 1, "padding_side": "right", "padding_value": 0.0}),
    ("clip", {"_valid_processor_keys": ["images"], "use_square_size": False, "do_convert_rgb": True}),
    ("vit_cls", {"data_format": "channels_first", "input_data_format": None, "disable_grouping": None, "do_pad": None}),
    ("siglip", {"default_to_square": True, "do_center_crop": None, "crop_size": None, "pad_size": None}),
]


@pytest.mark.parametrize(("name", "settings"), HUB)
def test_settings_of_the_hub_are_known(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    READERS[name](changed(name, tmp_path, **settings))


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("clip", {"do_pad": True}, UnsupportedModel, "do_pad is True; isoform prepares inputs with False only"),
        ("vit_cls", {"data_format": "channels_last"}, UnsupportedModel, "data_format is 'channels_last'"),
        ("wav2vec2_ctc", {"feature_size": 2}, UnsupportedModel, "feature_size is 2"),
        ("whisper", {"padding_side": "left"}, UnsupportedModel, "padding_side is 'left'"),
        ("whisper", {"chunk_length": 2**31}, CheckpointError, "chunk_length is 2147483648, not a whole number from 1"),
        ("whisper", {"feature_size": 10**9}, CheckpointError, "feature_size is 1000000000"),
        ("whisper", {"n_fft": 1e30}, CheckpointError, r"n_fft is 1e\+30"),
        ("whisper", {"hop_length": float("nan")}, CheckpointError, "hop_length is nan"),
        ("moonshine", {"sampling_rate": 2**31}, CheckpointError, "sampling_rate is 2147483648"),
    ],
)
def test_other_values_are_refused(
    name: str, settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        READERS[name](changed(name, tmp_path, **settings))
