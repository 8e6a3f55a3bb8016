"""Vision models in every form: the same as the reference, of the ecosystem's names, of every size that they read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from isoform import api
from isoform.errors import InputError, UnsupportedExport
from isoform.runtimes.open import open_path
from tests.oracle import tiny

NAMES = ("dinov2_b", "dinov2_giant", "dinov2_registers", "vit_cls", "vit_b", "clip", "siglip")
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


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> the bundle and its report."""
    root = tmp_path_factory.mktemp("vision")

    @cache
    def made(name: str) -> tuple[Path, Any]:
        _, report = api.export_and_check(tiny(name), root / name)
        return root / name, report

    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_the_same(name: str, bundles: Any) -> None:
    folder, report = bundles(name)
    assert report.same, [result for result in report.results if not result.passed]
    assert {result.backend for result in report.results if result.level == "graph"} == {"onnxruntime", "torchscript"}
    assert api.check(folder).same


@pytest.mark.parametrize("name", PORTS)
def test_graphs_have_the_ecosystems_ports(name: str, bundles: Any) -> None:
    graph = onnx.load(bundles(name)[0] / "onnx" / "model.onnx", load_external_data=False).graph
    assert ([port.name for port in graph.input], [port.name for port in graph.output]) == PORTS[name]
    sizes = next(port for port in graph.input if port.name == "pixel_values").type.tensor_type.shape.dim
    free = [dim.dim_param for dim in sizes]
    assert free[0] in ("batch_size", "image_batch_size")
    assert free[2:] == (["height", "width"] if name.startswith("dinov2") else ["", ""])


@pytest.mark.parametrize("name", ["dinov2_registers", "clip"])
def test_graphs_are_fused(name: str, bundles: Any) -> None:
    kinds = [
        node.op_type for node in onnx.load(bundles(name)[0] / "onnx/model.onnx", load_external_data=False).graph.node
    ]
    assert not {"Softmax", "Erf", "ReduceMean"} & set(kinds)
    assert {"Conv", "FusedMatMul"} < set(kinds)
    assert {"Attention", "MultiHeadAttention"} & set(kinds)


def test_another_number_of_texts_than_of_pictures_is_read(bundles: Any) -> None:
    """Every picture with every text, as each pair alone."""
    random = np.random.default_rng(0)
    session, _ = open_path(bundles("clip")[0])
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


def test_a_size_that_a_model_was_not_made_for_is_refused(bundles: Any) -> None:
    session, _ = open_path(bundles("vit_b")[0])
    with session, pytest.raises(InputError, match=r"pixel_values has shape \(1, 3, 48, 36\), not \(1, 3, 24, 36\)"):
        session.run({"pixel_values": np.zeros((1, 3, 48, 36), np.float32)})


@pytest.mark.parametrize(
    ("name", "reason"), [("dinov2_b", "has no DINOv2"), ("clip", "only as part of a language model")]
)
def test_gguf_is_refused_with_the_reason(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedExport, match=reason):
        api.export(tiny(name), tmp_path / "out", to="gguf")


@pytest.mark.parametrize(("name", "types"), [("dinov2_b", "f16,int8"), ("dinov2_registers", "q8_0"), ("clip", "q8_0")])
def test_narrow_and_quantized_graphs_are_judged(name: str, types: str, tmp_path: Path) -> None:
    """Attention, convolution and interpolation in half precision; linear layers in bytes."""
    _, report = api.export_and_check(tiny(name), tmp_path / name, to="onnx", onnx_types=types)
    assert report is not None
    assert report.same, [result for result in report.results if not result.passed]
    assert {result.level for result in report.results} >= {"weights", "deployment"}
