"""Vision models in every form: the same as the reference, of the ecosystem's names, of every size that they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from isoform import api
from isoform.errors import InputError, UnsupportedExport
from isoform.runtimes.open import open_path
from tests.exports import exported
from tests.oracle import tiny

PORTS: dict[str, tuple[list[str], list[str]]] = {
    "dinov2_b": (["pixel_values"], ["logits"]),
    "dinov2_giant": (["pixel_values"], ["last_hidden_state", "pooler_output"]),
    "vit_b": (["pixel_values"], ["last_hidden_state", "pooler_output"]),
    "clip": (
        ["input_ids", "pixel_values", "attention_mask"],
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
    ),
    "siglip": (
        ["input_ids", "pixel_values"],
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
    ),
}


@pytest.mark.parametrize("name", PORTS)
def test_graphs_have_the_ecosystems_ports(name: str) -> None:
    graph = onnx.load(exported(name) / "onnx" / "model.onnx", load_external_data=False).graph
    assert ([port.name for port in graph.input], [port.name for port in graph.output]) == PORTS[name]
    sizes = next(port for port in graph.input if port.name == "pixel_values").type.tensor_type.shape.dim
    free = [dim.dim_param for dim in sizes]
    assert free[0] in ("batch_size", "image_batch_size")
    assert free[2:] == (["height", "width"] if name.startswith("dinov2") else ["", ""])


@pytest.mark.parametrize("name", ["dinov2_registers", "clip"])
def test_graphs_are_fused(name: str) -> None:
    kinds = [
        node.op_type for node in onnx.load(exported(name) / "onnx/model.onnx", load_external_data=False).graph.node
    ]
    assert not {"Softmax", "Erf", "ReduceMean"} & set(kinds)
    assert {"Conv", "FusedMatMul"} < set(kinds)
    assert {"Attention", "MultiHeadAttention"} & set(kinds)


def test_another_number_of_texts_than_of_pictures_is_read() -> None:
    """Every picture with every text, as each pair alone."""
    random = np.random.default_rng(0)
    session, _ = open_path(exported("clip"))
    ids, mask = random.integers(0, 90, (4, 6)), np.ones((4, 6), np.int64)
    pixels = random.standard_normal((3, 3, 32, 32)).astype(np.float32)
    with session:
        whole = session.run({"input_ids": ids, "pixel_values": pixels, "attention_mask": mask})["logits_per_image"]
        assert whole.shape == (3, 4)
        for image in range(3):
            for text in range(4):
                rows = {"input_ids": ids[text : text + 1], "attention_mask": mask[text : text + 1]}
                alone = session.run({**rows, "pixel_values": pixels[image : image + 1]})["logits_per_image"]
                np.testing.assert_allclose(whole[image, text], alone[0, 0], rtol=1e-5, atol=1e-6)


def test_a_size_that_a_model_was_not_made_for_is_refused() -> None:
    session, _ = open_path(exported("vit_b"))
    with session, pytest.raises(InputError, match=r"pixel_values has shape \(1, 3, 48, 36\), not \(1, 3, 24, 36\)"):
        session.run({"pixel_values": np.zeros((1, 3, 48, 36), np.float32)})


@pytest.mark.parametrize(
    ("name", "reason"), [("dinov2_b", "has no DINOv2"), ("clip", "only as part of a language model")]
)
def test_gguf_is_refused_with_the_reason(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match=reason):
        api.export(tiny(name), tmp_path / "out", to="gguf")
