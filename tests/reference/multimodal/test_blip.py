"""BLIP computes what transformers computes, in one pass and with its caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isoform.errors import CheckpointError, UnsupportedModel
from isoform.reference.model import open_model
from tests.oracle import tiny

RELATIVE = 1e-5  # of the largest logit: float32, another order of summation


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= RELATIVE * float(wanted.abs().max())


@pytest.mark.parametrize("name", ["blip_caption", "blip_caption_b"])
def test_captions_equal_the_oracle(name: str) -> None:
    folder = tiny(name)
    golden = load_file(folder / "golden.safetensors")
    model = open_model(folder)
    with torch.inference_mode():
        logits, *_ = model.module()(golden["in.pixel_values"], golden["in.input_ids"])
    close(logits, golden["out.logits"])


@pytest.mark.parametrize("name", ["blip_vqa", "blip_vqa_b"])
def test_answers_equal_the_oracle_and_their_cache(name: str) -> None:
    from transformers import BlipForQuestionAnswering

    folder = tiny(name)
    golden = load_file(folder / "golden.safetensors")
    pixels, ids, mask, answer = (
        golden[f"in.{key}"] for key in ("pixel_values", "input_ids", "attention_mask", "decoder_input_ids")
    )
    hub = BlipForQuestionAnswering.from_pretrained(folder).eval()
    module: Any = open_model(folder).module()
    with torch.inference_mode():
        picture = hub.vision_model(pixels)[0]
        states = hub.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=picture)[0]
        wanted = hub.text_decoder(input_ids=answer, encoder_hidden_states=states, encoder_attention_mask=mask).logits
        logits, *_ = module(pixels, ids, mask, answer)
        close(logits, wanted)

        # A question that is padded, in a batch with another one, and an answer that comes in two steps.
        padded = torch.cat((ids, torch.full((1, 3), 5)), 1).repeat(2, 1)
        seen = torch.cat((mask, torch.zeros(1, 3, dtype=torch.int64)), 1).repeat(2, 1)
        (memory,) = module.encoder(padded, seen, *module.vision(pixels.repeat(2, 1, 1, 1)))
        first, *cache = module.decoder(answer[:, :1].repeat(2, 1), seen, memory)
        kept = [cache[n] for n in range(len(cache))]
        rest, *_ = module.decoder(answer[:, 1:].repeat(2, 1), seen, memory, *kept, torch.ones(1, dtype=torch.bool))
    close(torch.cat((first, rest), 1), wanted.repeat(2, 1, 1))


def test_a_saved_model_is_the_stored_one(tmp_path: Path) -> None:
    folder = tiny("blip_vqa_b")
    open_model(folder).save(tmp_path / "saved")
    stored, saved = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "saved"))
    extra = {key for key in stored if key not in saved}
    assert extra <= {"text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.decoder.weight"}
    assert all(torch.equal(saved[key], stored[key]) for key in saved)


def test_configurations_that_cannot_be(tmp_path: Path) -> None:
    folder = tmp_path / "blip"
    shutil.copytree(tiny("blip_vqa"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["is_decoder"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="is_decoder"):
        open_model(folder)
    config["text_config"] |= {"is_decoder": True, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings"):
        open_model(folder)
    config["text_config"] |= {"tie_word_embeddings": True, "hidden_size": 24}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="hidden_size 24"):
        open_model(folder).module()
