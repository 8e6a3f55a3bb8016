"""A damaged graph is left to ONNX Runtime, which says what is wrong."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from isoform.errors import CheckpointError
from isoform.runtimes.backends.onnxruntime.library import MASK_END, SETTINGS
from isoform.runtimes.backends.onnxruntime.prepare.prepared_graph import prepare
from isoform.runtimes.backends.onnxruntime.session import OnnxRuntimeSession
from tests.exports import copied, exported
from tests.runtimes.backends.onnxruntime.prepare.graphs import WIDTH, Graph, given

pytest.importorskip("onnxruntime")

TRIES = 150


@pytest.mark.parametrize("name", ["llama", "mistral_full", "whisper", "vit_cls", "whisper in int8"])
def test_damaged_bytes_are_no_traceback(name: str, tmp_path: Path) -> None:
    made = exported(name.split()[0], ["onnx"], "int8" if "int8" in name else "f32")
    copied(made, tmp_path / "bundle")
    path = sorted((tmp_path / "bundle" / "onnx").glob("*model*.onnx"))[0]
    whole = path.read_bytes()
    chance = random.Random(name)
    for _ in range(TRIES):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 5])):
            at = chance.randrange(len(damaged))
            if chance.random() < 0.3:
                del damaged[at : at + chance.randrange(1, 30)]
            else:
                damaged[at] = chance.randrange(256)
        path.write_bytes(damaged)
        prepare(path, SETTINGS, strict=chance.random() < 0.3, on_cpu=True)


@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_weights_that_are_not_there_are_one_clear_error(dtype: str, tmp_path: Path) -> None:
    copied(exported("vit_cls", ["onnx"], dtype), tmp_path / "bundle")
    (path,) = (tmp_path / "bundle" / "onnx").glob("*.onnx")
    path.with_name(f"{path.name}_data").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        OnnxRuntimeSession(path)


def test_a_constant_of_that_name_in_another_graph_stays_what_it_is(tmp_path: Path) -> None:
    graph = Graph(tmp_path)
    ends = [graph.integers(name, [value]) for name, value in (("start", 0), (MASK_END, 2), ("axis", 1))]
    graph.op("Slice", ["x", *ends], "y")
    graph.write(["y"])
    assert prepare(graph.path, SETTINGS, strict=False, on_cpu=True).source == graph.path
    with OnnxRuntimeSession(graph.path) as session:
        x = given(1, 5, WIDTH)
        np.testing.assert_array_equal(session.run({"x": x})["y"], x[:, :2])


def test_a_graph_with_names_that_are_no_text_stays_as_it_is(tmp_path: Path) -> None:
    copied(exported("llama"), tmp_path / "bundle")
    path = tmp_path / "bundle" / "onnx" / "model.onnx"
    assert prepare(path, (), strict=False, on_cpu=True).source != path
    path.write_bytes(path.read_bytes().replace(b"layers.0.attn.q.weight", b"layers.0.attn.\xff.weight"))
    assert prepare(path, (), strict=False, on_cpu=True).source == path
