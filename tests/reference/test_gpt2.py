"""GPT-2: what its switches and its rarer heads change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from isoform.reference.model import open_model
from tests.oracle import tiny


def test_a_model_of_two_heads_generates_and_keeps_the_other_one(tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny("gpt2"))
    config.num_labels = 1
    torch.manual_seed(0)
    theirs = transformers.GPT2DoubleHeadsModel(config).eval()
    theirs.save_pretrained(tmp_path / "double")
    ids = torch.arange(5, 14).view(1, -1)
    opened = open_model(tmp_path / "double")
    assert opened.task.name == "text-generation"
    with torch.no_grad():
        expected = theirs(ids).logits
    torch.testing.assert_close(opened.module()(ids)[0], expected, rtol=1e-5, atol=1e-6)
    opened.save(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    for key, tensor in load_file(tmp_path / "double" / "model.safetensors").items():
        assert torch.equal(again[key], tensor), key
    trunk = open_model(tmp_path / "double", task="feature-extraction")
    assert trunk.module()(ids)[0].shape == (1, 9, 48)


def test_the_order_of_rounding_changes_nothing_in_float32() -> None:
    """reorder_and_upcast_attn, which transformers applies in its eager attention only."""
    ids = torch.arange(5, 30).view(1, -1)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tiny("gpt2_b"), attn_implementation="eager").eval()
    assert theirs.config.reorder_and_upcast_attn
    with torch.no_grad():
        expected = theirs(ids).logits
    torch.testing.assert_close(open_model(tiny("gpt2_b")).module()(ids)[0], expected, rtol=1e-5, atol=1e-5)


def test_each_switch_of_the_scores_changes_them(tmp_path: Path) -> None:
    ids = torch.arange(5, 14).view(1, -1)
    for name, key in (("gpt2_b", "scale_attn_by_inverse_layer_idx"), ("gpt2_unscaled", "scale_attn_weights")):
        folder = shutil.copytree(tiny(name), tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: not config[key]}))
        gap = open_model(folder).module()(ids)[0] - open_model(tiny(name)).module()(ids)[0]
        assert float(gap.abs().max()) > 0.01


def test_the_last_token_that_is_not_the_padding_one_is_classified() -> None:
    """A row may end in a real token that is the padding one; transformers goes by its id."""
    model = open_model(tiny("gpt2_seqcls"))
    pad = model.checkpoint.config["pad_token_id"]
    ids = torch.tensor([[7, 9, 11, pad], [pad, pad, 9, 7], [7, pad, 9, pad]])
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tiny("gpt2_seqcls")).eval()
    with torch.no_grad():
        expected = theirs(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model.module()(ids)[0], expected, rtol=1e-5, atol=1e-6)
