"""Two artifacts side by side, and what is said about two that cannot be compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from isoform.errors import InputError
from isoform.validators.tools.compare import compare
from isoform.validators.tools.sides import find_side
from tests import oracle
from tests.validators.check.test_bundle import flip, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("bundles") / "llama")


def metrics(a: object, b: object) -> dict[str, float]:
    found = compare(str(a), str(b), threads=1)
    assert found.same, found.to_json()
    return {metric.name: metric.value for metric in found.metrics}


def test_two_backends_of_a_bundle_are_the_same(bundle: Path) -> None:
    found = compare(f"{bundle}::onnxruntime", f"{bundle}::llamacpp", threads=1)
    assert found.same, found.to_json()
    names = [metric.name for metric in found.metrics]
    assert names == ["max_abs", "rms", "kl", "other_choice", "greedy_other"]
    assert found.a.bytes > 10_000
    assert found.a.pass_speed > 0
    assert found.b.step_speed
    assert found.rows > 5


def test_a_checkpoint_and_a_file_are_the_same_and_a_thing_is_itself(bundle: Path) -> None:
    assert metrics(oracle.tiny("llama"), bundle / "torchscript" / "model.pt")["max_abs"] < 1e-4
    alone = metrics(bundle / "onnx" / "model.onnx", bundle / "onnx" / "model.onnx")
    assert alone == dict.fromkeys(alone, 0.0)


def test_a_quantized_file_is_held_to_its_budget(bundle: Path) -> None:
    found = compare(f"{oracle.tiny('llama')}::torch", f"{bundle}::gguf:q8_0", threads=1)
    assert {"kl", "clear_other_choice"} <= {metric.name for metric in found.metrics if metric.limit}
    assert found.same, found.to_json()


def test_a_wrong_weight_is_not_the_same(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    data = other / "onnx" / "model.onnx_data"
    if not data.is_file():
        data = other / "onnx" / "model.onnx"
    graph = onnx.load(bundle / "onnx" / "model.onnx")
    weight = next(t for t in graph.graph.initializer if t.name.endswith("mlp.down.weight"))
    at = data.read_bytes().index(onnx.numpy_helper.to_array(weight).tobytes())
    for n in range(0, 4000, 4):
        flip(data, at + n + 2)
    found = compare(f"{bundle}::onnx", f"{other}::onnx", threads=1)
    assert not found.same
    assert not np.isnan(found.metrics[0].value)


def test_two_models_or_tasks_are_wrong_input(bundle: Path) -> None:
    with pytest.raises(InputError, match="other models or serve other tasks"):
        compare(str(bundle), str(oracle.tiny("bert")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("::torch", "is not PATH"),
        ("BUNDLE::", "is not PATH"),
        ("BUNDLE::onnxrt", "did you mean 'onnx"),
        ("BUNDLE::onnx:q4_0", "holds onnx:f32"),
        ("nowhere.gguf", "not there"),
        ("BUNDLE/onnx/model.onnx::llamacpp", "reads gguf"),
        ("CHECKPOINT::onnxruntime", "export it first"),
        ("BUNDLE/onnx", "neither a bundle"),
    ],
)
def test_what_cannot_be_found_is_said(bundle: Path, text: str, said: str) -> None:
    place = text.replace("BUNDLE", str(bundle)).replace("CHECKPOINT", str(oracle.tiny("llama")))
    with pytest.raises(InputError, match=said):
        find_side(place)
