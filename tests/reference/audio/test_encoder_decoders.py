"""The encoder-decoders of speech compute what the Hub's own code computes, in one pass, by parts and step by step."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.model import Model, open_model
from tests.oracle import SPEECH, tiny

ORDER = 1e-5  # of the largest value: float32 sums of some hundred terms through up to eight layers, in another order
INPUTS = ("input_features", "input_values")


@cache
def model(name: str) -> Model:
    return open_model(tiny(name))


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(tiny(name) / "golden.safetensors")


def heard(name: str) -> Tensor:
    return next(golden(name)[f"in.{key}"] for key in INPUTS if f"in.{key}" in golden(name))


def part(name: str, which: str) -> nn.Module:
    return next(part for part in model(name).parts if part.part == which).module()


def same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ORDER * float(expected.abs().max())


@pytest.mark.parametrize("name", SPEECH)
def test_encoder_and_logits_are_the_hubs(name: str) -> None:
    known = golden(name)
    states = part(name, "encoder")(heard(name))[0]
    same(states, known["out.encoder_last_hidden_state"])
    logits = part(name, "decoder")(known["in.decoder_input_ids"], states)[0]
    same(logits, known["out.logits"])
    assert torch.equal(model(name).module()(heard(name), known["in.decoder_input_ids"])[0], logits)


def test_a_classifier_weighs_the_encoders_layers() -> None:
    known = golden("whisper_labels")
    assert model("whisper_labels").task.name == "audio-classification"
    same(model("whisper_labels").module()(known["in.input_features"])[0], known["out.logits"])


def step_by_step(decoder: nn.Module, ids: Tensor, states: Tensor, sizes: list[int]) -> Tensor:
    """Logits of all slots, fed in steps of these sizes."""
    logits, *past = decoder(ids[:, : sizes[0]], states)
    found, start = [logits], sizes[0]
    for size in sizes[1:]:
        logits, *present = decoder(ids[:, start : start + size], states, *past, torch.ones(1, dtype=torch.bool))
        assert all(made.shape[2] == 0 for n, made in enumerate(present) if n % 4 > 1)  # the memory's are not made again
        past = [old if n % 4 > 1 else made for n, (old, made) in enumerate(zip(past, present, strict=True))]
        found.append(logits)
        start += size
    return torch.cat(found, 1)


@pytest.mark.parametrize("name", SPEECH)
def test_decoding_with_a_cache_equals_one_pass(name: str) -> None:
    states, decoder = golden(name)["out.encoder_last_hidden_state"], part(name, "decoder")
    vocabulary = golden(name)["out.logits"].shape[-1]
    ids = torch.randint(0, vocabulary, (len(states), 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same(step_by_step(decoder, ids, states, [4, 1, 1, 3]), decoder(ids, states)[0])


@pytest.mark.parametrize("name", ["moonshine", "moonshine_b"])
def test_greedy_ids_are_the_hubs(name: str) -> None:
    states, decoder = golden(name)["out.encoder_last_hidden_state"], part(name, "decoder")
    wanted = golden(name)["gen.out"]
    ids = wanted[:, :1]
    with torch.inference_mode():
        while ids.shape[1] < wanted.shape[1]:
            ids = torch.cat((ids, decoder(ids, states)[0][:, -1].argmax(-1, keepdim=True)), 1)
    ended = (wanted[:, 1:] == 2).cumsum(1) > 0  # what follows an end is padding
    assert torch.equal(torch.where(ended, 0, ids[:, 1:]), torch.where(ended, 0, wanted[:, 1:]))


@pytest.mark.parametrize("name", ["whisper", "whisper_b"])
def test_alignment_is_what_the_hubs_heads_attend_to(name: str) -> None:
    from transformers import WhisperForConditionalGeneration

    other: Any = WhisperForConditionalGeneration.from_pretrained(tiny(name), attn_implementation="eager").eval()
    ids = golden(name)["in.decoder_input_ids"]
    with torch.no_grad():
        known = other(heard(name), decoder_input_ids=ids, output_attentions=True)
    heads = model(name).config.aligned  # type: ignore[attr-defined]
    wanted = torch.stack([known.cross_attentions[layer][:, head] for layer, head in heads], 1)
    same(part(name, "alignment")(ids, known.encoder_last_hidden_state)[0], wanted)


def test_without_a_list_the_upper_half_of_the_layers_is_aligned() -> None:
    config: Any = model("whisper_b").config
    assert config.aligned == tuple((layer, head) for layer in (2, 3) for head in range(4))
    assert model("whisper").config.aligned == ((0, 1), (1, 0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*SPEECH, "whisper_labels"])
def test_saving_gives_the_hubs_tensors_back(name: str, tmp_path: Path) -> None:
    model(name).save(tmp_path / "saved")
    old, new = (load_file(folder / "model.safetensors") for folder in (tiny(name), tmp_path / "saved"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_parts_hold_what_they_use_and_share_what_they_can() -> None:
    parts = {part.part: part for part in model("whisper").parts}
    assert list(parts) == ["encoder", "decoder", "alignment"]
    assert parts["decoder"].tied == {"head.weight": "embed.weight"}
    assert not parts["encoder"].weights.keys() & {"embed.weight"}
    aligned, decoder = parts["alignment"], parts["decoder"]
    assert aligned.roots == decoder.roots
    assert aligned.weights.keys() < decoder.weights.keys()
    assert all(weight is decoder.weights[name] for name, weight in aligned.weights.items())
    assert [part.part for part in model("whisper_labels").parts] == ["model"]


def changed(name: str, folder: Path, **config: Any) -> Path:
    shutil.copytree(tiny(name), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_alignment_heads_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    """Only the times of words need them, and a pipeline says so when they are asked for."""
    folder = changed("whisper", tmp_path / "model")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    for found, kept in (([[0, 0], [2, 1], [1, 1], [0, 0]], ((0, 0), (1, 1))), ([3, "x", [True, 0], [0, 0, 0]], ())):
        path.write_text(json.dumps({**settings, "alignment_heads": found}))
        config: Any = open_model(folder).config
        assert config.alignment_heads == kept
        assert config.aligned


def test_a_bias_that_keys_do_not_have_is_named(tmp_path: Path) -> None:
    folder = changed("whisper_b", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    key = "model.decoder.layers.0.encoder_attn.k_proj.bias"
    save_file({**tensors, key: torch.zeros(48)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"holds {key}".replace(".", r"\.")):
        _ = open_model(folder).weights


def test_heads_that_the_hubs_code_cannot_mix_are_refused(tmp_path: Path) -> None:
    folder = changed("moonshine_b", tmp_path / "model", encoder_num_attention_heads=4)
    with pytest.raises(UnsupportedModel, match="3 heads in the decoder"):
        open_model(folder)
