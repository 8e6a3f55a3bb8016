"""Llava: its three graphs, wired by a host step, equal transformers' in every form, token for token."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.model import Model, open_model
from isoform.reference.multimodal.llava import LlavaConfig
from isoform.runtimes.open import open_path, open_session
from tests.exports import exported
from tests.oracle import tiny

PARITY = 2e-5  # float32 against float32 on logits of about 5, each in its own order of sums


@cache
def model() -> Model:
    return open_model(tiny("llava"))


@cache
def golden() -> dict[str, NDArray[Any]]:
    return load_file(tiny("llava") / "golden.safetensors")


@pytest.fixture(scope="module", params=["torch", "torchscript", "onnxruntime"])
def session(request: pytest.FixtureRequest) -> Any:
    backend: str = request.param
    return open_session(model(), "torch") if backend == "torch" else open_path(exported("llava"), backend)[0]


def encoded(session: Any, **changed: NDArray[Any]) -> Any:
    known = golden()
    return session.encode({"pixel_values": known["in.pixel_values"], "input_ids": known["in.input_ids"], **changed})


def test_the_whole_module_is_generated_and_equals_the_oracle() -> None:
    names = "pixel_values", "input_ids", "attention_mask"
    pixels, ids, mask = (torch.from_numpy(golden()[f"in.{name}"]) for name in names)
    logits = model().module()(pixels, ids, mask, (mask.cumsum(1) - 1).clamp(min=0))[0]
    assert np.abs(logits.numpy() - golden()["out.logits"]).max() < PARITY


def test_greedy_tokens_are_those_of_transformers(session: Any) -> None:
    ids, want = golden()["in.input_ids"], golden()["gen.out"][0, golden()["in.input_ids"].shape[1] :]
    decoder = session.decoder(encoded(session))
    logits = decoder.step(ids, last=None)
    assert np.abs(logits - golden()["out.logits"]).max() < PARITY
    token, made = logits[:, -1].argmax(-1), []
    for _ in want:
        made.append(int(token[0]))
        token = decoder.step(token[:, None]).argmax(-1)
    assert made == want.tolist()


def test_a_prompt_may_be_fed_in_chunks_and_its_rows_be_chosen(session: Any) -> None:
    ids = np.repeat(golden()["in.input_ids"], 2, 0)
    pixels = golden()["in.pixel_values"]
    rows = encoded(session, pixel_values=np.concatenate((pixels, -pixels)), input_ids=ids)
    whole = session.decoder(rows).step(ids)
    assert np.abs(whole[0] - whole[1]).max() > 100 * PARITY, "the picture changes nothing"
    decoder = session.decoder(rows)
    decoder.select(np.array([1, 0]))
    for start, stop in ((0, 3), (3, 30), (30, ids.shape[1])):
        chunk = decoder.step(ids[:, start:stop])
    assert np.abs(chunk - whole[::-1]).max() < PARITY


def test_features_without_places_are_refused_with_both_counts(session: Any) -> None:
    ids = golden()["in.input_ids"].copy()
    ids[ids == model().config.image_token_index] = 5  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"0 places .* 16 feature vectors"):
        encoded(session, input_ids=ids)


def test_towers_are_found_by_their_model_type_and_others_refused() -> None:
    data = dict(model().checkpoint.config)
    assert model().config.text.family.name == "llama"  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedModel, match=r"BERT.* as its language model"):
        LlavaConfig.from_dict({**data, "text_config": {"model_type": "bert"}})
    with pytest.raises(UnsupportedModel, match="several layers"):
        LlavaConfig.from_dict({**data, "vision_feature_layer": [-2, -5]})


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_token_index", "x"), ("projector_hidden_act", ["gelu"]), ("multimodal_projector_bias", 5)],
)
def test_a_setting_of_another_type_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key):
        LlavaConfig.from_dict({**model().checkpoint.config, key: value})


def test_the_files_have_the_names_that_clients_look_for() -> None:
    names = {path.name for path in (exported("llava") / "onnx").iterdir() if path.suffix == ".onnx"}
    assert names == {"vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"}
