"""Sound as the models take it, against transformers' feature extractors."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.runtimes.preprocess.audio import log_mel, waveform
from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings
from isoform.runtimes.preprocess.audio.waveform import WaveformSettings

LOG_MEL = 1e-5  # log10 power / 4 against transformers' float64 path: float32's rounding in spectrum and sum
LOG_MEL_TORCH = 5e-5  # against its torch path, which is float32 and itself that far from its float64 one
BLOCKS = 2e-6  # a product of matrices is summed in another order for another size
WAVEFORM = 1e-6  # units of the standard deviation


def speech_like(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Tones that come and go over quiet noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(count) / 16000
    tones = sum(np.sin(2 * np.pi * f * time) * (np.sin(2 * np.pi * f / 97 * time) > 0) for f in (131.0, 420.0, 2310.0))
    return (0.2 * np.asarray(tones) + rng.normal(0, 0.003, count)).astype(np.float32)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.9, 30.0, 41.37])
def test_log_mel_is_transformers(mels: int, seconds: float) -> None:
    samples = speech_like(int(seconds * 16000))
    extractor = WhisperFeatureExtractor(feature_size=mels)
    ours = LogMelSettings(feature_size=mels)
    long = samples.size > ours.n_samples
    options: dict[str, Any] = {"truncation": False, "padding": "longest"} if long else {}
    theirs = extractor(samples, sampling_rate=16000, return_tensors="np", **options).input_features[0]
    given = samples if long else log_mel.pad(samples, ours)
    found = log_mel.log_mel(given, ours)
    assert found.shape == theirs.shape
    assert found.dtype == np.float32
    assert np.abs(found - theirs).max() < LOG_MEL_TORCH
    exact = extractor._np_extract_fbank_features(given[None].astype(np.float64), "cpu")[0]
    assert np.abs(found - exact).max() < LOG_MEL


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(0, 3))
def test_log_mel_does_not_depend_on_the_blocks(cuts: list[int], seed: int) -> None:
    ours = LogMelSettings()
    samples = speech_like(3000 + seed * 7, seed)
    places = [0, *sorted(cuts), samples.size]
    blocks = [samples[a:b] for a, b in pairwise(places)]
    together = log_mel.log_mel(samples, ours)
    np.testing.assert_allclose(log_mel.log_mel_blocks(blocks, ours), together, rtol=0, atol=BLOCKS)


def test_too_few_samples_for_a_spectrum_are_refused() -> None:
    assert log_mel.log_mel(np.zeros(201, np.float32), LogMelSettings()).shape == (80, 1)
    for count in (0, 1, 200):
        with pytest.raises(InputError, match=f"^{count} samples are too few for a spectrum of 400"):
            log_mel.log_mel(np.zeros(count, np.float32), LogMelSettings())


def test_the_mask_of_frames_is_transformers() -> None:
    extractor = WhisperFeatureExtractor()
    for count in (1, 159, 160, 161, 12345):
        batch = extractor(
            np.zeros(count, np.float32), sampling_rate=16000, return_tensors="np", return_attention_mask=True
        )
        ours = LogMelSettings()
        np.testing.assert_array_equal(log_mel.frame_mask(count, ours.n_samples, ours), batch.attention_mask[0])


@pytest.mark.parametrize("do_normalize", [True, False])
def test_waveforms_are_transformers(do_normalize: bool) -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True, padding_value=0.5)
    waveforms = [speech_like(4000), speech_like(2500, 1) + np.float32(0.1), np.zeros(1000, np.float32)]
    theirs = extractor(waveforms, sampling_rate=16000, padding=True, return_tensors="np")
    values, mask = waveform.pad(waveforms, WaveformSettings(do_normalize=do_normalize, padding_value=0.5))
    np.testing.assert_array_equal(mask, theirs.attention_mask)
    np.testing.assert_allclose(values, theirs.input_values, atol=WAVEFORM)


def test_settings_come_from_the_folder(tmp_path: Path) -> None:
    WhisperFeatureExtractor(feature_size=128, chunk_length=20).save_pretrained(tmp_path)
    found = LogMelSettings.read(tmp_path)
    assert (found.feature_size, found.n_samples, found.frames) == (128, 320000, 2000)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(tmp_path)
    assert WaveformSettings.read(tmp_path) == WaveformSettings(do_normalize=False, return_attention_mask=True)


def test_settings_may_lie_in_the_processor_config(tmp_path: Path) -> None:
    nested = {"feature_extractor": {"sampling_rate": 8000, "do_normalize": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert WaveformSettings.read(tmp_path) == WaveformSettings(sampling_rate=8000, do_normalize=False)


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        WaveformSettings.read(tmp_path)
    for values, error, message in (
        ({"hop_length": 0}, CheckpointError, "hop_length is 0"),
        ({"feature_size": "80"}, CheckpointError, "feature_size is '80'"),
        ({"dither": 1e-4}, UnsupportedModel, "dither=0.0001"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        with pytest.raises(error, match=message):
            LogMelSettings.read(tmp_path)


@pytest.mark.parametrize("kind", [WaveformSettings, LogMelSettings])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("padding_value", "zero"),
        ("padding_value", float("nan")),
        ("padding_value", 10**400),
        ("sampling_rate", float("inf")),
        ("sampling_rate", 0.5),
    ],
)
def test_settings_that_are_no_fitting_number_are_refused(kind: Any, field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=field):
        kind.from_json({field: value})
