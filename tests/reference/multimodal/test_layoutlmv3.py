"""LayoutLMv3 computes what transformers computes, with a picture and without, and says what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isoform.errors import CheckpointError, InputError, UnsupportedModel
from isoform.reference.model import open_model
from isoform.runtimes.backends.inputs import checked
from isoform.signature import BATCH, PICTURES, Size
from tests.oracle import tiny

NAMES = ("layoutlmv3", "layoutlmv3_qa", "layoutlmv3_tokcls")
OTHERS = ("layoutlmv3_qa_b", "layoutlmv3_seqcls", "layoutlmv3_tokcls_b")
RELATIVE = 1e-5  # of the largest value: float32, another order of summation


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= RELATIVE * max(1.0, float(wanted.abs().max()))


def hub(name: str) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny(name))
    return getattr(transformers, config.architectures[0]).from_pretrained(tiny(name)).eval()


def inputs(name: str, rows: int = 2, length: int = 21) -> dict[str, torch.Tensor]:
    """Random tokens in boxes all over the page, the second row shorter, and noise for pictures."""
    config = json.loads((tiny(name) / "config.json").read_text())
    random = torch.Generator().manual_seed(3)
    boxes = torch.randint(0, 1001, (rows, length, 4), generator=random)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1:, length - 4 :] = 0
    ids = torch.randint(5, config["vocab_size"], (rows, length), generator=random)
    ids[mask == 0] = 1
    found = {"input_ids": ids, "bbox": boxes, "attention_mask": mask}
    if config["type_vocab_size"] > 1:
        found["token_type_ids"] = torch.randint(0, 2, (rows, length), generator=random)
    if config["visual_embed"]:
        side = config["input_size"]
        found["pixel_values"] = torch.randn(rows, 3, side, side, generator=random)
    return found


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_outputs_equal_the_oracle(name: str) -> None:
    golden, model = load_file(tiny(name) / "golden.safetensors"), open_model(tiny(name))
    given = {port.name: golden.get(f"in.{port.name}") for port in model.signature.inputs}
    given = {key: torch.zeros_like(golden["in.input_ids"]) if x is None else x for key, x in given.items()}
    with torch.inference_mode():
        outputs = model.module()(*given.values())
    for port, found in zip(model.signature.outputs, outputs, strict=True):
        close(found, golden[f"out.{port.name}"])


@pytest.mark.parametrize("name", ["layoutlmv3", "layoutlmv3_qa_b", "layoutlmv3_tokcls_b", "layoutlmv3_seqcls"])
@pytest.mark.parametrize("sees", [True, False])
def test_padded_rows_equal_transformers_with_a_picture_and_without(name: str, sees: bool) -> None:
    model, given = open_model(tiny(name)), inputs(name)
    if "pixel_values" in given and not sees:
        theirs = {key: x for key, x in given.items() if key != "pixel_values"}
        given["pixel_values"] = given["pixel_values"][:0]
    else:
        theirs = given
    with torch.inference_mode():
        outputs = model.module()(*given.values())
        wanted = hub(name)(**theirs)
    real = given["attention_mask"].bool()
    for port, found in zip(model.signature.outputs, outputs, strict=True):
        expected = wanted[port.name]
        if found.dim() > 1 and found.shape[1] >= real.shape[1]:  # transformers gives padding the place of padding
            kept = torch.cat((real, real.new_ones(2, found.shape[1] - real.shape[1])), 1)
            found, expected = found[kept], expected[kept]
        close(found, expected)


def test_padding_on_the_left_changes_nothing() -> None:
    model, given = open_model(tiny("layoutlmv3_qa")), inputs("layoutlmv3_qa", rows=1)
    padded = {key: torch.cat((x[:, :3], x), 1) if x.dtype == torch.int64 else x for key, x in given.items()}
    padded["attention_mask"][:, :3] = 0
    with torch.inference_mode():
        wanted, found = (model.module()(*x.values()) for x in (given, padded))
    for one, other in zip(found, wanted, strict=True):
        close(one[:, 3:], other)


def test_the_signature_takes_a_picture_for_each_row_or_none_at_all() -> None:
    signature = open_model(tiny("layoutlmv3_qa")).signature
    given = {key: x.numpy() for key, x in inputs("layoutlmv3_qa").items()}
    none = {**given, "pixel_values": given["pixel_values"][:0]}
    assert checked(signature, given).keys() == checked(signature, none).keys()
    with pytest.raises(InputError, match=r"image_batch_size is 1, not 2 .*or 0"):
        checked(signature, {**given, "pixel_values": given["pixel_values"][:1]})
    size = Size(PICTURES, (BATCH,), optional=True)
    assert Size.from_json(json.loads(json.dumps(size.to_json()))) == size
    assert "optional" not in Size(PICTURES, (BATCH,)).to_json()
    assert signature == type(signature).from_json(json.loads(json.dumps(signature.to_json())))


def test_a_box_lower_than_it_is_high_counts_as_empty() -> None:
    model, given = open_model(tiny("layoutlmv3_qa")), inputs("layoutlmv3_qa")
    given["bbox"] = given["bbox"].sort(-1, descending=True).values
    with torch.inference_mode():
        outputs, wanted = model.module()(*given.values()), hub("layoutlmv3_qa")(**given)
    close(outputs[0][0], wanted.start_logits[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coordinate_size": 9}, CheckpointError, "52 channels, not hidden_size 48"),
        ({"max_2d_position_embeddings": 1000}, CheckpointError, "no row for the edge of a page, at 1000"),
        ({"pad_token_id": None}, CheckpointError, "pad_token_id is null"),
        ({"pad_token_id": 513}, CheckpointError, "leaves no positions"),
        ({"rel_pos_bins": 3}, CheckpointError, "3 rel_pos_bins for distances up to max_rel_pos 128"),
        ({"max_rel_2d_pos": 16}, CheckpointError, "64 rel_2d_pos_bins"),
        ({"text_embed": False}, UnsupportedModel, "text_embed"),
        ({"patch_size": [16, 16]}, CheckpointError, "patch_size"),
        ({"input_size": 8}, CheckpointError, "holds no patch"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, CheckpointError, "3 labels, but a head that answers"),
        ({"new_key": 1}, UnsupportedModel, "new_key"),
    ],
)
def test_configurations_that_cannot_be(tmp_path: Path, change: dict[str, Any], error: type, message: str) -> None:
    folder = tmp_path / "layout"
    shutil.copytree(tiny("layoutlmv3_qa"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=message):
        open_model(folder).module()


def test_a_saved_model_is_the_stored_one(tmp_path: Path) -> None:
    for name in ("layoutlmv3_qa", "layoutlmv3_tokcls_b"):
        open_model(tiny(name)).save(tmp_path / name)
        stored, saved = (load_file(path / "model.safetensors") for path in (tiny(name), tmp_path / name))
        assert stored.keys() == saved.keys()
        assert all(np.array_equal(saved[key], stored[key]) for key in saved)
